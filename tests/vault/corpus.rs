//! The fuzzers' seed inputs for a vault's formats: taken from a real vault, checked in under `fuzz/corpus/`, replayed
//! here. After a change: `AFTERIMAGE_WRITE_CORPUS=1 cargo test --test vault corpus`.

use std::fs;
use std::path::Path;

use afterimage::block::TestId;
use afterimage::format::ladder::Ladder;
use afterimage::format::manifest::StepNumber;
use afterimage::format::manifest::{self, Snapshot};
use afterimage::format::record::{Change, MergeRecord, PinKind, PinRecord};
use afterimage::format::summary::{self, Footer};
use afterimage::seal::GroupKeys;
use afterimage::units::{DiskSlot, PinId, SectorCount, SectorRange, SummaryId, WallNanos, WriterId};

use crate::support::{Group, block_on};
use crate::{summary_fuzz, vault_fuzz};

type Seeds = Vec<(String, Vec<u8>)>;

/// A vault with every kind of step and extent.
fn group() -> Group {
    let mut group = Group::plain(&[4096, 64]);
    group.write(0, SectorRange::new(7, 300), 1);
    group.zero(0, SectorRange::new(1000, 2000), false);
    group.zero(1, SectorRange::new(0, 8), true);
    group.write(1, SectorRange::new(60, 64), 2);
    let point = group.publish();
    let changes = [
        Change::PolicySet { interval_ms: Some(250), retain: Some(Ladder::default()) },
        Change::PinAdded(PinRecord {
            id: PinId(1),
            point,
            kind: PinKind::Test { test: TestId(1), read_only: false },
            created: WallNanos(7),
        }),
        Change::PinAdded(PinRecord { id: PinId(2), point, kind: PinKind::Restore, created: WallNanos(8) }),
        Change::PinAdded(PinRecord {
            id: PinId(4),
            point,
            kind: PinKind::Test { test: TestId(2), read_only: true },
            created: WallNanos(8),
        }),
        Change::PinRemoved(PinId(4)),
        Change::PinRemoved(PinId(1)),
        Change::PinRemoved(PinId(2)),
        Change::DiskRemoved(DiskSlot(1)),
    ];
    append(&group, changes);
    group.publish();
    group.write(0, SectorRange::new(8, 16), 3);
    let third = group.publish();
    let newest = group.publish();
    let delta = group.vault.manifest().state().point(third).and_then(|point| point.delta);
    let hold = PinRecord { id: PinId(3), point: newest, kind: PinKind::Hold, created: WallNanos(9) };
    let second = group.points[1].0;
    append(
        &group,
        [
            Change::PointsMerged(MergeRecord { first: second, into: third, delta }),
            Change::PinAdded(hold),
            Change::PointsRetired(third),
            Change::DiskResized(DiskSlot(0), SectorCount(8192)),
        ],
    );
    group
}

fn append<const N: usize>(group: &Group, changes: [Change; N]) {
    for change in changes {
        block_on(&group.runtime, group.vault.manifest().append(change)).expect("it fits");
    }
}

/// Writers are drawn at random; seeds must not change each time that they are made.
fn steady(bytes: &[u8], previous: u128) -> manifest::Encoded {
    let (mut step, _) = manifest::Step::decode(bytes, &GroupKeys::NONE).expect("as written");
    step.header.writer = WriterId(7);
    step.header.previous = previous;
    step.encode(None)
}

fn manifest_seeds(group: &Group) -> Seeds {
    let state = group.vault.manifest().state();
    let mut seeds = Seeds::new();
    let mut previous = 0;
    for number in 1..=state.newest().0 {
        let bytes = fs::read(group.vault.layout().step(StepNumber(number))).expect("the step is there");
        let encoded = steady(&bytes, previous);
        previous = encoded.checksum;
        seeds.push((format!("step-{number:02}"), encoded.bytes));
    }
    let header = manifest::Header {
        number: state.newest(),
        group: state.group(),
        writer: WriterId(7),
        timeline: state.timeline(),
        previous,
    };
    seeds.push(("snapshot".to_owned(), Snapshot::encode_parts(&header, state.contents(), None).bytes));
    seeds
}

fn delta_seeds(group: &Group) -> Seeds {
    let state = group.vault.manifest().state();
    let (_, retired) = state.base_advance().expect("the base is on its way");
    let blobs = retired[..1].iter().map(|delta| {
        let bytes = fs::read(group.vault.layout().blob(delta.blob)).expect("the blob is there");
        ("interval".to_owned(), bytes)
    });
    blobs.collect()
}

/// A summary of two disks, of more than one page, and with every kind of extent.
fn summary_seeds() -> Seeds {
    let mut group = Group::plain(&[4096, 64]);
    (0..180).for_each(|index| group.write(0, SectorRange::new(3 * index, 3 * index + 2), 1));
    group.publish();
    group.zero(0, SectorRange::new(7, 90), false);
    group.zero(1, SectorRange::new(0, 8), true);
    group.write(1, SectorRange::new(60, 64), 2);
    group.publish();
    group.summarize();
    let entry = fs::read_dir(group.vault.layout().index()).expect("there").next();
    let mut bytes = fs::read(entry.expect("a summary").expect("read").path()).expect("there");
    // Drawn, and the clock's: seeds must not change each time that they are made.
    let footer = Footer::decode(&bytes, bytes.len() as u64).expect("as written");
    let steady = Footer { id: SummaryId(7), created: WallNanos(0), ..footer };
    let start = bytes.len() - summary::FOOTER_BYTES;
    bytes[start..].copy_from_slice(&steady.encode());
    for page in
        bytes[..start / summary::PAGE_BYTES * summary::PAGE_BYTES].chunks_exact_mut(summary::PAGE_BYTES)
    {
        page[summary::BODY_BYTES..].fill(0);
    }
    vec![("two-deltas".to_owned(), bytes)]
}

fn check_in(target: &str, seeds: &Seeds) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    if std::env::var_os("AFTERIMAGE_WRITE_CORPUS").is_some() {
        fs::create_dir_all(&directory).expect("the work tree can be written");
        for (name, input) in seeds {
            fs::write(directory.join(name), input).expect("the work tree can be written");
        }
    }
    for (name, input) in seeds {
        let stored = fs::read(directory.join(name)).unwrap_or_default();
        assert!(stored == *input, "{target}/{name} is stale: run with AFTERIMAGE_WRITE_CORPUS=1");
    }
}

#[test]
fn manifest_seeds_are_valid_and_checked_in() {
    let seeds = manifest_seeds(&group());
    check_in("manifest", &seeds);
    for (name, input) in &seeds {
        assert!(vault_fuzz::manifest(input), "{name}");
    }
}

#[test]
fn delta_seeds_are_valid_and_checked_in() {
    let seeds = delta_seeds(&group());
    assert_eq!(seeds.len(), 1);
    check_in("delta", &seeds);
    for (name, input) in &seeds {
        assert!(vault_fuzz::delta(input), "{name}");
    }
}

#[test]
fn summary_seeds_are_valid_and_checked_in() {
    let seeds = summary_seeds();
    check_in("summary", &seeds);
    for (name, input) in &seeds {
        assert!(summary_fuzz::summary(input), "{name}");
    }
}
