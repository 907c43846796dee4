//! A group without recovery points: journal and images, and nothing of it in the vault but what it is.

use std::fs;
use std::path::Path;
use std::rc::Rc;

use afterimage::block::{Request, Response};
use afterimage::error::ErrorKind;
use afterimage::format::record::GroupRecord;
use afterimage::protect::membership::Content;
use afterimage::protect::open;
use afterimage::units::{SectorCount, SectorRange};

use super::stepped::{GROUP, Stepped, Steps, record};
use super::{Harness, plan, runtime, scratch};

const SECTORS: u64 = 16 << 10;

fn create(root: &Path) -> Harness {
    let runtime = runtime();
    let record = GroupRecord { interval_ms: 0, ..record(1) };
    let small = open::GroupPlan { segment_bytes: 1 << 20, journal_bytes: 4 << 20, ..plan(root) };
    let opening = open::create(Rc::clone(&runtime), small, GROUP, record);
    Harness(Stepped::new(runtime.clone(), runtime.block_on(opening).expect("create"))).serving()
}

fn blobs(root: &Path) -> usize {
    fs::read_dir(root.join("vault/g/blobs")).expect("there").count()
}

/// Four times what the journal takes is written, and read back after each kind of end.
#[test]
fn its_journal_is_used_again_without_a_point() {
    let (_guard, root) = scratch();
    let mut harness = create(&root);
    let disk = harness.add_disk("d", SECTORS);
    let mut expected = vec![0; 512 * usize::try_from(SECTORS).expect("small")];
    for round in 0..32_u8 {
        let start = u64::from(round) * 1021 % (SECTORS - 1024);
        harness.write(disk, start, round + 1, 1024);
        let from = 512 * usize::try_from(start).expect("small");
        expected[from..from + (512 << 10)].fill(round + 1);
    }
    assert_eq!(harness.read(disk, 0, SECTORS), expected);
    let journal: u64 = fs::read_dir(root.join("groups/g/journal"))
        .expect("there")
        .map(|entry| entry.expect("readable").metadata().expect("there").len())
        .sum();
    assert!(journal <= 6 << 20, "{journal}");
    // It dies, and is closed.
    for is_stopped in [false, true, false] {
        match is_stopped {
            true => harness.stop(),
            false => drop(harness),
        }
        harness = Harness::open(&root).expect("reopens");
        assert_eq!(harness.read(disk, 0, SECTORS), expected);
        harness.write(disk, 7, 99, 16);
        expected[7 * 512..23 * 512].fill(99);
    }
    harness.drive(|group| group.ladder().destaged == group.ladder().visible);
    assert!(harness.group.points().is_empty() && blobs(&root) == 0);
}

#[test]
fn points_and_intervals_are_refused() {
    let (_guard, root) = scratch();
    let mut harness = create(&root);
    let disk = harness.add_disk("d", SECTORS);
    harness.write(disk, 0, 1, 8);
    let point = harness.called(|group, done| group.create_point("now".into(), done)).expect_err("refused");
    let policy = harness
        .called(|group, done| group.set_policy(Some(std::time::Duration::from_secs(1)), None, done))
        .expect_err("refused");
    for refused in [point, policy] {
        assert_eq!(refused.kind(), ErrorKind::Invalid);
        assert!(refused.to_string().contains("without recovery points"), "{refused}");
    }
    harness.stop();
    assert_eq!(blobs(&root), 0, "nor by a stop");
}

/// It is not stored twice, as a base would.
#[test]
fn an_import_is_in_the_image_alone() {
    let (_guard, root) = scratch();
    let source = root.join("source");
    fs::write(&source, vec![5; 1 << 20]).expect("a file");
    let mut harness = create(&root);
    let content = Content::Import(source, Rc::new(|_, _| Ok(())));
    let joined = harness.called(|group, done| group.add_disk("d".into(), SectorCount(4096), content, done));
    let disk = afterimage::block::Export::Disk(GROUP, joined.expect("joins").id);
    let range = SectorRange::new(2040, 2056);
    match harness.ask(disk, Request::Read { range }) {
        Ok(Response::Data(pieces)) => {
            assert_eq!(super::flatten(&pieces), [vec![5; 8 * 512], vec![0; 8 * 512]].concat());
        }
        other => panic!("{other:?}"),
    }
    let stored = |directory: &str| -> u64 {
        let entries = fs::read_dir(root.join(directory)).expect("there");
        let raws = entries.map(|entry| entry.expect("readable").path());
        let raws = raws.filter(|path| path.extension().is_some_and(|found| found == "raw"));
        raws.map(|path| std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).expect("there"))).sum()
    };
    assert_eq!(stored("vault/g/base"), 0);
    assert!(stored("groups/g/images") >= 2048);
}
