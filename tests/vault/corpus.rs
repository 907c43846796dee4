//! The fuzzers' seed inputs for a vault's formats: taken from a real vault, checked in under `fuzz/corpus/`, replayed
//! here. After a change: `AFTERIMAGE_WRITE_CORPUS=1 cargo test --test vault corpus`.

use std::fs;
use std::path::Path;

use afterimage::block::TestId;
use afterimage::format::ladder::Ladder;
use afterimage::format::manifest::StepNumber;
use afterimage::format::manifest::{self, Snapshot};
use afterimage::format::record::{Change, MergeRecord, PinKind, PinRecord, TestUse};
use afterimage::format::summary::{self, Footer};
use afterimage::format::sums::{Block, Holes, Of, encode_header};
use afterimage::seal::GroupKeys;
use afterimage::units::{
    DiskId, DiskSlot, PinId, SECTOR_BYTES, SectorCount, SectorRange, SummaryId, WallNanos, WriterId,
};

use crate::support::{Group, block_on};
use crate::{summary_fuzz, sums_fuzz, vault_fuzz};

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
            kind: PinKind::Test { test: TestId(1), purpose: TestUse::Rehearsal },
            created: WallNanos(7),
        }),
        Change::PinAdded(PinRecord {
            id: PinId(2),
            point,
            kind: PinKind::Test { test: TestId(2), purpose: TestUse::Restore },
            created: WallNanos(8),
        }),
        Change::PinAdded(PinRecord {
            id: PinId(4),
            point,
            kind: PinKind::Test { test: TestId(3), purpose: TestUse::ReadOnly },
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

/// A delta of a shape of its own, out of a vault whose bytes are the same each time.
fn delta_of(sizes: &[u64], is_sealed: bool, write: impl FnOnce(&mut Group)) -> Vec<u8> {
    let mut group = Group::steady(sizes, is_sealed);
    write(&mut group);
    let point = group.publish();
    let delta = group.vault.manifest().state().point(point).and_then(|point| point.delta);
    fs::read(group.vault.layout().blob(delta.expect("something was written").blob))
        .expect("the blob is there")
}

/// Bytes that no compression makes shorter.
fn noise(sectors: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..sectors * SECTOR_BYTES / 8).flat_map(|_| next()).collect()
}

/// Deltas of the shapes that there are. Those whose tables are compressed or sealed end where a fuzzer cannot follow, but
/// for header and footer.
fn delta_shapes() -> Vec<(&'static str, Vec<u8>, Follows)> {
    let scattered =
        |group: &mut Group| (0..700).for_each(|n| group.write(0, SectorRange::new(3 * n, 3 * n + 1), 1));
    let every_kind = |group: &mut Group| {
        group.write(0, SectorRange::new(0, 40), 3);
        group.zero(0, SectorRange::new(40, 80), false);
        group.zero(1, SectorRange::new(0, 8), true);
        group.write_bytes(1, SectorRange::new(8, 16), &noise(8));
    };
    vec![
        (
            "one-sector",
            delta_of(&[64], false, |group| group.write(0, SectorRange::new(5, 6), 1)),
            Follows::All,
        ),
        (
            "zeros-only",
            delta_of(&[4096, 64], false, |group| {
                group.zero(0, SectorRange::new(0, 1000), false);
                group.zero(0, SectorRange::new(2000, 4096), true);
                group.zero(1, SectorRange::new(0, 64), false);
            }),
            Follows::All,
        ),
        (
            "written-zeros",
            delta_of(&[64], false, |group| group.write_bytes(0, SectorRange::new(0, 64), &vec![0; 64 * 512])),
            Follows::All,
        ),
        (
            "noise",
            delta_of(&[64], false, |group| group.write_bytes(0, SectorRange::new(0, 16), &noise(16))),
            Follows::All,
        ),
        (
            "many-chunks",
            delta_of(&[4096], false, |group| group.write(0, SectorRange::new(100, 2100), 1)),
            Follows::All,
        ),
        (
            "five-disks",
            delta_of(&[64, 8, 16, 1, 4096], false, |group| {
                (0..5)
                    .for_each(|disk| group.write(disk, SectorRange::new(0, 1), u8::try_from(disk).unwrap()));
            }),
            Follows::All,
        ),
        ("compressed-tables", delta_of(&[4096], false, scattered), Follows::ToTables),
        ("sealed", delta_of(&[4096, 64], true, every_kind), Follows::ToTables),
        ("sealed-compressed-tables", delta_of(&[4096], true, scattered), Follows::ToTables),
    ]
}

/// How far a fuzz target goes with an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follows {
    All,
    ToTables,
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

/// The summaries of a vault that these points were made in, the lowest level first.
fn summaries_of(is_sealed: bool, points: &[&dyn Fn(&mut Group)]) -> Vec<Vec<u8>> {
    let mut group = Group::steady(&[64 << 10, 64], is_sealed);
    for write in points {
        write(&mut group);
        group.publish();
    }
    group.summarize();
    let entries = fs::read_dir(group.vault.layout().index()).expect("there");
    let read = |entry: std::io::Result<fs::DirEntry>| fs::read(entry.expect("read").path()).expect("there");
    let mut found: Vec<(u8, Vec<u8>)> = entries
        .map(read)
        .map(|bytes| (Footer::decode(&bytes, bytes.len() as u64).expect("as written").cover.level, bytes))
        .collect();
    found.sort();
    found.into_iter().map(|(_, bytes)| bytes).collect()
}

/// Summaries of the shapes that there are.
fn summary_shapes() -> Vec<(&'static str, Vec<u8>, Follows)> {
    let sector = |group: &mut Group| group.write(0, SectorRange::new(9, 10), 1);
    let zeros = |group: &mut Group| group.zero(0, SectorRange::new(0, 64 << 10), false);
    let scattered =
        |group: &mut Group| (0..700).for_each(|n| group.write(0, SectorRange::new(90 * n, 90 * n + 1), 1));
    // Seventy chunks and more: a second page of them.
    let long = |group: &mut Group| group.write(0, SectorRange::new(0, 70 * 256), 2);
    let both = |group: &mut Group| {
        group.zero(1, SectorRange::new(0, 8), true);
        group.write(1, SectorRange::new(60, 64), 3);
    };
    let only = |is_sealed, points: &[&dyn Fn(&mut Group)]| {
        let mut found = summaries_of(is_sealed, points);
        assert_eq!(found.len(), 1, "two points make one summary");
        found.remove(0)
    };
    let levels = summaries_of(false, &[&sector, &both, &zeros, &sector, &scattered, &both, &sector, &both]);
    let highest = levels.last().expect("eight points make several");
    let level = Footer::decode(highest, highest.len() as u64).expect("as written").cover.level;
    assert!(level >= 2, "level {level}");
    vec![
        ("one-extent", only(false, &[&sector, &sector]), Follows::All),
        ("zeros-only", only(false, &[&zeros, &zeros]), Follows::All),
        ("many-extent-pages", only(false, &[&scattered, &both]), Follows::All),
        ("many-chunk-pages", only(false, &[&long, &sector]), Follows::All),
        ("third-level", highest.clone(), Follows::All),
        ("sealed", only(true, &[&scattered, &both]), Follows::ToTables),
    ]
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
fn deltas_of_every_shape_are_valid_and_checked_in() {
    for (name, input, follows) in delta_shapes() {
        assert_eq!(vault_fuzz::delta(&input), follows == Follows::All, "{name}");
        check_in("delta", &vec![(name.to_owned(), input)]);
    }
}

#[test]
fn summaries_of_every_shape_are_valid_and_checked_in() {
    for (name, input, follows) in summary_shapes() {
        assert_eq!(summary_fuzz::summary(&input), follows == Follows::All, "{name}");
        check_in("summary", &vec![(name.to_owned(), input)]);
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

#[test]
fn sums_seeds_are_valid_and_checked_in() {
    let disk = DiskId(0x1111_2222_3333_4444_5555_6666_7777_8888);
    let mut block = Block::ZEROS;
    block.sums_mut()[7..100].fill(0x0102_0304);
    let of_image = |holes| encode_header(Of::Image(holes), disk);
    let mut of_images = block.clone();
    of_images.succeed(0);
    let places = [
        ("header", encode_header(Of::Base, disk)),
        ("block", block.encode(disk, 2)),
        ("image-header", of_image(Holes::Zeros)),
        ("image-header-unchecked", of_image(Holes::Unchecked)),
        ("image-block", of_images.encode(disk, 2)),
    ];
    for (name, place) in places {
        assert!(sums_fuzz::place(&place), "{name}");
        check_in("sums", &vec![(name.to_owned(), place.to_vec())]);
    }
}
