//! A view of any point is the model's state at that point, on all disks; a restore writes just that.

use std::os::unix::fs::MetadataExt;

use afterimage::block::TestId;
use afterimage::error::{Error, ErrorKind};
use afterimage::storage::OpenOptions;
use afterimage::units::{DiskId, PointId, SectorCount, SectorRange, to_usize};
use afterimage::view::{View, restore};
use proptest::prelude::*;

use crate::support::{Edit, Group, block_on, directory, edits, flatten, pattern};

const SIZES: [u64; 2] = [600, 77];

#[derive(Clone, Debug)]
enum Step {
    Edit(Edit),
    Publish,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![6 => edits(SIZES, 300).prop_map(Step::Edit), 1 => Just(Step::Publish)];
    proptest::collection::vec(step, 1..40)
}

fn replay(group: &mut Group, steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::Edit(edit) => group.apply(&edit),
            Step::Publish => drop(group.publish()),
        }
    }
    group.publish();
}

fn check(group: &Group, point: PointId, model: &[Vec<u8>], window: SectorRange) {
    let view = block_on(&group.runtime, View::open(&group.vault, point)).expect("the point is sound");
    for (disk, model) in view.disks().iter().zip(model) {
        let whole = SectorRange::new(0, disk.sectors().0);
        for range in [Some(whole), window.intersection(whole)].into_iter().flatten() {
            let expected = &model[to_usize(range.byte_offset())..to_usize(range.byte_range().end)];
            let pieces = block_on(&group.runtime, view.read(disk.id(), range)).expect("sound");
            assert!(flatten(&pieces) == expected, "disk {} sectors {range}", disk.name());
            let runs = block_on(&group.runtime, view.allocation(disk.id(), range)).expect("sound");
            assert!(runs.windows(2).all(|pair| pair[0].allocated != pair[1].allocated));
            let mut position = 0;
            for run in runs {
                let end = position + to_usize(run.bytes);
                assert!(run.allocated || expected[position..end].iter().all(|&byte| byte == 0));
                position = end;
            }
            assert_eq!(position, expected.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_view_is_the_model_at_its_point(steps in steps(), (start, sectors) in (0..600_u64, 0..200_u64)) {
        let mut group = Group::new(&SIZES);
        replay(&mut group, steps);
        for (point, model) in &group.points {
            check(&group, *point, model, SectorRange::new(start, start + sectors));
        }
    }
}

#[test]
fn an_imported_disk_begins_with_its_image_and_zeros_after_it() {
    let mut group = Group::new(&[64]);
    let directory = directory();
    let image = directory.path().join("image.raw");
    let content = pattern(40 * 512, 5);
    std::fs::write(&image, &content).expect("written");
    let disk = DiskId(0xd0);
    let imported = async {
        let source = group.runtime.open(&image, OpenOptions::READ).await?;
        group.vault.bases().delete(disk).await?;
        group.vault.bases().import(disk, SectorCount(64), &source, |_| Ok(())).await
    };
    block_on(&group.runtime, imported).expect("it fits");
    group.model[0][..content.len()].copy_from_slice(&content);
    group.write(0, SectorRange::new(3, 5), 8);
    let point = group.publish();
    check(&group, point, &group.points[0].1, SectorRange::new(30, 50));
    let source =
        block_on(&group.runtime, group.runtime.open(&image, OpenOptions::READ)).expect("it is there");
    let small = group.vault.bases().import(DiskId(9), SectorCount(39), &source, |_| Ok(()));
    assert_eq!(block_on(&group.runtime, small).expect_err("too small").kind(), ErrorKind::Invalid);
}

#[test]
fn out_of_range_and_unknown_are_said_so() {
    let mut group = Group::new(&[64]);
    let point = group.publish();
    let unknown = block_on(&group.runtime, View::open(&group.vault, PointId(TestId(1).0.into())));
    assert_eq!(unknown.err().expect("no such point").kind(), ErrorKind::NotFound);
    let view = block_on(&group.runtime, View::open(&group.vault, point)).expect("sound");
    let read = |disk, range| block_on(&group.runtime, view.read(disk, range)).expect_err("refused").kind();
    assert_eq!(read(DiskId(0xd0), SectorRange::new(60, 65)), ErrorKind::Invalid);
    assert_eq!(read(DiskId(1), SectorRange::new(0, 1)), ErrorKind::NotFound);
}

#[test]
fn a_restore_writes_the_model_sparsely_and_over_nothing() {
    let mut group = Group::new(&[1 << 18, 4096]);
    group.write(0, SectorRange::new(1000, 5000), 1);
    group.write(1, SectorRange::new(0, 8), 2);
    group.zero(1, SectorRange::new(64, 128), true);
    let point = group.publish();
    group.write(0, SectorRange::new(0, 4096), 9);
    group.publish();
    let view = block_on(&group.runtime, View::open(&group.vault, point)).expect("sound");
    let directory = directory();
    let target = directory.path().join("restored");
    let mut seen = Vec::new();
    let restored = restore(&view, &target, |progress| {
        seen.push(progress);
        Ok(())
    });
    let paths = block_on(&group.runtime, restored).expect("an empty place");
    for ((path, model), disk) in paths.iter().zip(&group.points[0].1).zip(&group.disks) {
        assert_eq!(path, &target.join(format!("{}.raw", disk.name)));
        assert!(std::fs::read(path).expect("restored") == *model, "{}", path.display());
    }
    let allocated = std::fs::metadata(&paths[0]).expect("restored").blocks() * 512;
    assert!(allocated < 4 << 20, "128 MiB with 2 MB of data take {allocated} bytes");
    let last = seen.last().expect("told");
    assert_eq!((last.bytes_done, last.disks_done), (last.bytes_total, 2));
    assert_eq!(std::fs::read_dir(&target).expect("there").count(), 2, "no partial file stays");

    let again = block_on(&group.runtime, restore(&view, &target, |_| Ok(()))).expect_err("never overwrites");
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    let elsewhere = directory.path().join("cancelled");
    let cancelled = restore(&view, &elsewhere, |progress| match progress.bytes_done {
        0 => Ok(()),
        _ => Err(Error::new(ErrorKind::Shutdown, "no longer wanted")),
    });
    let cancelled = block_on(&group.runtime, cancelled).expect_err("cancelled half-way");
    assert_eq!(cancelled.kind(), ErrorKind::Shutdown);
    assert_eq!(std::fs::read_dir(&elsewhere).expect("there").count(), 0);
}
