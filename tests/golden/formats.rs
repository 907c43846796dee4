//! Every format's files: accepted, written back byte for byte, and meaning what they meant.
//!
//! What follows from values is written here, value by value, and must come out as the file's bytes. What a whole
//! journal or vault makes (frames, deltas, summaries) was taken from one, and is read. Nothing of it is shared with the tests of
//! the fuzzers' corpora: those change with the encoders, this does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use afterimage::block::TestId;
use afterimage::format::checkpoint::{Checkpoint, FILE_BYTES};
use afterimage::format::delta::{self, DeltaExtent, DeltaRef, Tables};
use afterimage::format::frame::{Payload, RecordKind};
use afterimage::format::keyring::{self, Keyring};
use afterimage::format::ladder::{Ladder, Rung};
use afterimage::format::manifest::{self, Contents, DiskState, Snapshot, Step, StepNumber, WriterSeal};
use afterimage::format::marker::{Consistency, DiskEntry, Marker};
use afterimage::format::overlay_sums::{self, Unit};
use afterimage::format::record::{
    Change, DiskRecord, ForkRecord, GroupRecord, Membership, MergeRecord, PinKind, PinRecord, PointDisk,
    PointRecord, Reached, TestUse,
};
use afterimage::format::run::{FrameLink, PartSeal, Run, RunExtent, RunLayer, RunPart, RunSource};
use afterimage::format::side::{Content, Footer, Identity, SideExtent, Stood, encode_table};
use afterimage::format::summary;
use afterimage::format::sums;
use afterimage::journal::scan::{Checks, scan_segment};
use afterimage::journal::segments::SegmentIndex;
use afterimage::seal::{Generation, GroupKeys, Purpose, SiteKey, SiteKeys};
use afterimage::units::{
    BlobId, DiskId, DiskSlot, FrameNumber, GroupId, GroupNanos, IncarnationId, Lsn, PAGE_BYTES, PinId,
    PointId, SectorCount, SectorRange, SegmentSequence, TimelineId, WallNanos, WriterId,
};

use crate::files::{fifth, first, fourth, golden, golden_at, of_format, second, sixth, third};
use crate::{frame_fuzz, keyring_fuzz, run_fuzz, side_fuzz, summary_fuzz, sums_fuzz, vault_fuzz};

fn keys() -> (GroupKeys, SiteKeys) {
    let site = SiteKeys::new(vec![site_key()]);
    (GroupKeys::drawn([5, 6], &site).with_next([7, 8]), site)
}

fn site_key() -> SiteKey {
    SiteKey::drawn([3, 4])
}

/// What this build writes for the value is the file, and the file means the value.
#[test]
fn site_keys() {
    let text = golden("site-key/first", site_key().to_text().as_bytes());
    let read = SiteKey::from_text(std::str::from_utf8(&text).expect("text")).expect("a site key");
    assert_eq!(read.to_text(), site_key().to_text());
}

#[test]
fn keyrings() {
    let (keys, site) = keys();
    let header = keyring::Header {
        number: 3,
        created: WallNanos(1_767_225_600_000_000_000),
        group: GroupId(7),
        site_key: site_key().id(),
        wrapping: 1 << 100,
    };
    let wrapped = keys.wrap(&site_key(), header.wrapping, &header.bound(2));
    let ring = Keyring { header, keys: wrapped };
    let bytes = golden("keyring/rotated", &ring.encode());
    let read = Keyring::decode(&bytes).expect("a keyring");
    assert_eq!(read, ring);
    let opened = GroupKeys::unwrap(&read.keys, (&site, &site_key()), 1 << 100, &header.bound(2));
    assert_eq!(opened.and_then(|keys| keys.newest()), Some(Generation(2)));
    for (name, bytes) in of_format("keyring") {
        assert!(keyring_fuzz::keyring(&bytes), "{name}");
    }
}

#[test]
fn checkpoints() {
    for (path, has_sums) in [(first("checkpoint/resizing"), false), (third("checkpoint/summed"), true)] {
        let statement = |sequence, resizing_to| Checkpoint {
            sequence,
            disk: DiskId(0x1111_2222),
            timeline: TimelineId(2),
            destaged: Lsn(sequence * 1000),
            sectors: SectorCount(1 << 30),
            resizing_to,
            has_sums,
        };
        let statements = [statement(8, None), statement(9, Some(SectorCount(1 << 31)))];
        let mut encoded = vec![0; FILE_BYTES];
        for statement in &statements {
            let start = usize::try_from(statement.slot_offset()).expect("small");
            statement.encode(&mut encoded[start..start + PAGE_BYTES]);
        }
        let bytes = golden_at(&path, &encoded);
        assert_eq!(Checkpoint::slots(&bytes), statements.map(Some));
    }
}

fn link(number: u64, segment: u64) -> FrameLink {
    FrameLink {
        incarnation: IncarnationId(3),
        number: FrameNumber(number),
        sum: number * 31,
        segment: SegmentSequence(segment),
        last_lsn: Lsn(number * 10),
    }
}

fn marker() -> Marker {
    Marker {
        point: PointId(4),
        wall: WallNanos(5),
        group_time: GroupNanos(6),
        consistency: Consistency::Application,
        label: "before the upgrade".into(),
        disks: vec![DiskEntry { slot: DiskSlot(0), disk: DiskId(9), sectors: SectorCount(64) }],
    }
}

#[test]
fn index_runs() {
    for (name, seal) in [
        ("plain", None),
        ("sealed", Some(PartSeal { incarnation: IncarnationId(3), generation: Generation(2) })),
    ] {
        let part = |index, sequence, payloads| RunPart {
            index,
            sequence: SegmentSequence(sequence),
            last_lsn: Lsn(80),
            payloads,
            seal,
        };
        let layer = |last, disks: &[(u32, u32)], marker| RunLayer {
            last: Lsn(last),
            oldest: SegmentSequence(2),
            data_bytes: 4096,
            disks: disks.iter().map(|&(slot, extents)| (DiskSlot(slot), extents)).collect(),
            marker,
        };
        let run = Run {
            group: GroupId(1),
            timeline: TimelineId(2),
            begin: link(1, 2),
            end: link(9, 3),
            parts: vec![part(4, 2, 2), part(0, 3, 0)],
            layers: vec![layer(20, &[(0, 2), (2, 1)], Some(marker())), layer(90, &[(1, 1)], None)],
        };
        let sources = [
            RunSource::Journal { segment: 4, sector: 8 },
            RunSource::Zero { allocated: true },
            RunSource::Zero { allocated: false },
            RunSource::Journal { segment: 4, sector: 16 },
        ];
        let extents: Vec<RunExtent> =
            (0..).zip(sources).map(|(index, source)| extent(index, source)).collect();
        let payloads =
            [8, 16].map(|sector| Payload { sector, sectors: 8, sum: if seal.is_some() { 0 } else { 7 } });
        let tags = if seal.is_some() { vec![[9; 16]; 2] } else { Vec::new() };
        let encoded = run.encode(extents.iter().copied(), payloads.into_iter(), &tags);
        let mut bytes = golden(&format!("run/{name}"), &encoded);
        let (read, tables) = Run::decode(&mut bytes).expect("a run");
        assert_eq!(read, run);
        assert_eq!(tables.extents().collect::<Option<Vec<_>>>(), Some(extents));
        assert_eq!((tables.payloads().len(), tables.tags()), (2, tags.as_slice()));
    }
    for (name, bytes) in of_format("run") {
        assert!(run_fuzz::run(&bytes), "{name}");
    }
}

fn extent(index: u64, source: RunSource) -> RunExtent {
    RunExtent { range: SectorRange::new(index * 8, index * 8 + 8), source }
}

/// The end of a side file: its chunks before it are bytes as they are.
#[test]
fn side_files() {
    let extents = [
        (0, 8, Content::Data { checksum: 7 }),
        (8, 8, Content::Zero { allocated: false }),
        (64, 1 << 20, Content::Zero { allocated: true }),
        (4, 2, Content::Unreadable(Stood { segment: 3, sector: 4096 })),
    ];
    let extents = extents.map(|(start, sectors, content)| SideExtent {
        range: SectorRange::new(start, start + sectors),
        content,
    });
    let identity = Identity {
        group: GroupId(1),
        timeline: TimelineId(2),
        disk: DiskId(3),
        number: 4,
        after: Lsn(5),
        through: Lsn(6),
    };
    let table = encode_table(&extents);
    let footer = Footer::new(identity, &extents, &table);
    let bytes = golden("side/mixed", &[table.as_slice(), &footer.encode()].concat());
    let read = Footer::decode(&bytes[table.len()..], 4096 + bytes.len() as u64).expect("a footer");
    assert_eq!(read, footer);
    assert_eq!(read.decode_table(&bytes[..table.len()], 1 << 30).expect("a table"), extents);
    for (name, bytes) in of_format("side") {
        assert!(side_fuzz::tail(&bytes), "{name}");
    }
}

fn delta_ref(blob: u128) -> DeltaRef {
    DeltaRef { blob: BlobId(blob), total_bytes: 1 << 20, tables_bytes: 500, checksum: blob << 64 }
}

fn point(id: u128) -> PointRecord {
    let disk = |slot, membership| PointDisk {
        slot: DiskSlot(slot),
        disk: DiskId(u128::from(slot) + 9),
        sectors: SectorCount(2048),
        membership,
    };
    let lacking = [SectorRange::new(8, 16), SectorRange::new(100, 101)];
    PointRecord {
        id: PointId(id),
        marker: Lsn(100),
        wall: WallNanos(-5),
        group_time: GroupNanos(6),
        consistency: Consistency::Crash,
        label: "vor der Änderung".into(),
        delta: Some(delta_ref(0xd)),
        disks: Arc::new([
            disk(0, Membership::Included),
            disk(1, Membership::Excluded),
            disk(2, Membership::Lacking(Arc::new(lacking))),
        ]),
    }
}

fn pin(id: u128, kind: PinKind) -> PinRecord {
    PinRecord { id: PinId(id), point: PointId(4), kind, created: WallNanos(9) }
}

fn group() -> GroupRecord {
    let rung = |until_ms, spacing_ms| Rung { until_ms, spacing_ms };
    let retain = Ladder::new(vec![rung(3_600_000, 0), rung(86_400_000, 60_000)]).expect("it ascends");
    GroupRecord { name: "erp".into(), created: WallNanos(1), interval_ms: 5000, retain }
}

fn disk(slot: u32) -> DiskRecord {
    let id = DiskId(u128::from(slot) + 9);
    DiskRecord { slot: DiskSlot(slot), id, name: format!("disk{slot}"), sectors: SectorCount(2048) }
}

fn fork() -> ForkRecord {
    ForkRecord { left: TimelineId(1), marker: Lsn(100), wall: WallNanos(8) }
}

fn changes() -> Vec<(&'static str, Change)> {
    let test = |purpose| PinKind::Test { test: TestId(1), purpose };
    vec![
        ("group-created", Change::GroupCreated(group())),
        ("disk-added", Change::DiskAdded(disk(0))),
        ("disk-removed", Change::DiskRemoved(DiskSlot(1))),
        ("disk-resized", Change::DiskResized(DiskSlot(0), SectorCount(4096))),
        ("policy-interval", Change::PolicySet { interval_ms: Some(250), retain: None }),
        ("policy-retain", Change::PolicySet { interval_ms: None, retain: Some(Ladder::default()) }),
        ("paused", Change::PauseSet(true)),
        ("resumed", Change::PauseSet(false)),
        ("point-published", Change::PointPublished(point(4))),
        ("point-unchanged", Change::PointPublished(PointRecord { delta: None, ..point(5) })),
        ("pin-test", Change::PinAdded(pin(1, test(TestUse::Rehearsal)))),
        ("pin-test-read-only", Change::PinAdded(pin(2, test(TestUse::ReadOnly)))),
        ("pin-restore", Change::PinAdded(pin(3, test(TestUse::Restore)))),
        ("pin-hold", Change::PinAdded(pin(4, PinKind::Hold))),
        ("pin-removed", Change::PinRemoved(PinId(1))),
        ("points-retired", Change::PointsRetired(PointId(4))),
        ("base-set", Change::BaseSet(PointId(4))),
        (
            "points-merged",
            Change::PointsMerged(MergeRecord {
                first: PointId(4),
                into: PointId(5),
                delta: Some(delta_ref(0xe)),
            }),
        ),
        ("timeline-forked", Change::TimelineForked { timeline: TimelineId(2), fork: fork() }),
        ("group-removed", Change::GroupRemoved),
    ]
}

fn header(number: u64) -> manifest::Header {
    manifest::Header {
        number: StepNumber(number),
        group: GroupId(7),
        writer: WriterId(8),
        timeline: TimelineId(2),
        previous: 1 << 127,
    }
}

fn contents() -> Contents {
    Contents {
        group: group(),
        removed: false,
        paused: true,
        newest_test: TestId(3),
        disks: vec![
            DiskState { record: disk(0), removed: false },
            DiskState { record: disk(1), removed: true },
            DiskState { record: disk(2), removed: false },
        ],
        points: vec![point(4)],
        pins: vec![
            pin(1, PinKind::Hold),
            pin(2, PinKind::Test { test: TestId(1), purpose: TestUse::Restore }),
        ],
        retired: Some(vec![delta_ref(0xb), delta_ref(0xc)]),
        forks: vec![fork()],
        taken_in: BTreeMap::new(),
    }
}

#[test]
fn manifest_steps() {
    let (keys, _) = keys();
    let sealing = keys.sealing(Purpose::Manifest, 8);
    for (number, (name, change)) in (1..).zip(changes()) {
        let step = Step { header: header(number), change };
        let plain = golden(&format!("manifest/{name}"), &step.encode(None).bytes);
        assert_eq!(Step::decode(&plain, &GroupKeys::NONE).expect("a step").0, step, "{name}");
        let seal = sealing.as_ref().map(|sealing| WriterSeal { sealing, number });
        let sealed = golden(&format!("manifest-sealed/{name}"), &step.encode(seal).bytes);
        assert_eq!(Step::decode(&sealed, &keys).expect("a sealed step").0, step, "{name}");
    }
    for (name, bytes) in of_format("manifest") {
        assert!(vault_fuzz::manifest(&bytes), "{name}");
    }
}

#[test]
fn manifest_snapshots() {
    let (keys, _) = keys();
    let sealing = keys.sealing(Purpose::Manifest, 8).expect("they seal");
    let snapshot = Snapshot { header: header(256), contents: contents() };
    let plain = golden("manifest/snapshot", &snapshot.encode(None).bytes);
    assert_eq!(Snapshot::decode(&plain, &GroupKeys::NONE).expect("a snapshot"), snapshot);
    let seal = WriterSeal { sealing: &sealing, number: 99 };
    let sealed = golden("manifest-sealed/snapshot", &snapshot.encode(Some(seal)).bytes);
    assert_eq!(Snapshot::decode(&sealed, &keys).expect("a sealed snapshot"), snapshot);
}

/// A base that goes in pieces: its step, and a snapshot of one that is on its way.
#[test]
fn manifests_of_a_base_in_pieces() {
    let reached = Reached { slot: DiskSlot(2), sector: 4096 };
    let change = Change::BaseReached { point: PointId(4), reached };
    let step = Step { header: header(30), change };
    let read = golden_at(&fifth("manifest/base-reached"), &step.encode(None).bytes);
    assert_eq!(Step::decode(&read, &GroupKeys::NONE).expect("a step").0, step);
    let taken_in = [(BlobId(0xb), reached), (BlobId(0xc), Reached { sector: 8, ..reached })].into();
    let snapshot = Snapshot { header: header(257), contents: Contents { taken_in, ..contents() } };
    let read = golden_at(&fifth("manifest/snapshot-in-pieces"), &snapshot.encode(None).bytes);
    assert_eq!(Snapshot::decode(&read, &GroupKeys::NONE).expect("a snapshot"), snapshot);
}

#[test]
fn manifest_of_a_group_without_points() {
    let record = GroupRecord { interval_ms: 0, ..group() };
    let step = Step { header: header(1), change: Change::GroupCreated(record.clone()) };
    let read = golden_at(&sixth("manifest/group-created-without-points"), &step.encode(None).bytes);
    assert_eq!(Step::decode(&read, &GroupKeys::NONE).expect("a step").0, step);
    let contents =
        Contents { group: record, points: Vec::new(), pins: Vec::new(), retired: None, ..contents() };
    let snapshot = Snapshot { header: header(256), contents };
    let read = golden_at(&sixth("manifest/snapshot-without-points"), &snapshot.encode(None).bytes);
    assert_eq!(Snapshot::decode(&read, &GroupKeys::NONE).expect("a snapshot"), snapshot);
}

/// The records of a segment, in words.
fn told(bytes: &[u8]) -> Vec<String> {
    let scan = scan_segment(SegmentIndex(0), bytes, Checks::ALL);
    let tell = |kind: RecordKind| match kind {
        RecordKind::Write { disk, range } => format!("write {} {}..{}", disk.0, range.start, range.end),
        RecordKind::Zero { disk, range, allocated } => {
            format!("zero {} {}..{} {allocated}", disk.0, range.start, range.end)
        }
        RecordKind::Marker => "marker".to_owned(),
        RecordKind::Opening => "opening".to_owned(),
        RecordKind::Seal => "seal".to_owned(),
    };
    let frames = scan.frames.iter();
    frames.flat_map(|scanned| scanned.frame.records.iter().map(|record| tell(record.kind))).collect()
}

#[test]
fn journal_segments() {
    let expected: [(&str, &[&str]); 4] = [
        ("opening", &["opening"]),
        (
            "records",
            &["opening", "write 0 0..8", "write 0 8..9", "zero 0 16..1048576 false", "marker", "seal"],
        ),
        ("batch", &["opening", "write 0 0..8", "write 0 9..10", "write 0 10..13", "write 0 64..72"]),
        ("reopened", &["opening", "write 0 0..8", "opening", "write 0 8..16"]),
    ];
    for (name, records) in expected {
        let bytes = std::fs::read(first("frame").join(name)).expect("a golden file");
        assert_eq!(told(&bytes), records, "{name}");
    }
    for (name, bytes) in of_format("frame") {
        assert!(frame_fuzz::segment(&bytes) > 0, "{name}");
    }
}

/// What is sealed or compressed opens in a vault only: `site` reads whole ones.
fn is_plain(name: &str) -> bool {
    !name.contains("sealed") && !name.contains("compressed")
}

#[test]
fn deltas() {
    for (name, bytes) in of_format("delta") {
        assert_eq!(vault_fuzz::delta(&bytes), is_plain(&name), "{name}");
        let footer = delta::Footer::decode(&bytes, bytes.len() as u64).expect("a footer");
        footer.check_identity(&footer.reference(), &bytes).expect("its own header");
        let header = delta::Header::decode(&bytes).expect("a header");
        assert_eq!(header.encode(), bytes[..delta::HEADER_BYTES], "{name}");
        assert_eq!(footer.encode(), bytes[bytes.len() - delta::FOOTER_BYTES..], "{name}");
        assert_eq!(footer.sealed_under.is_some(), name.contains("sealed"), "{name}");
    }
}

#[test]
fn what_a_delta_says() {
    let bytes = std::fs::read(first("delta/interval")).expect("a golden file");
    let footer = delta::Footer::decode(&bytes, bytes.len() as u64).expect("a footer");
    let header = delta::Header::decode(&bytes).expect("a header");
    let start = usize::try_from(footer.tables_offset).expect("small");
    let stored = &bytes[start..bytes.len() - delta::FOOTER_BYTES];
    let tables = Tables::decode(stored, &header, &footer).expect("tables");
    let told = |extent: &DeltaExtent| {
        let range = extent.range;
        match extent.content {
            delta::Content::Zero { allocated } => format!("{}..{} zero {allocated}", range.start, range.end),
            delta::Content::Data { chunk, sector } => {
                format!("{}..{} chunk {chunk} from {sector}", range.start, range.end)
            }
        }
    };
    let disks =
        tables.disks.iter().map(|disk| (disk.slot.0, disk.extents.iter().map(told).collect::<Vec<_>>()));
    let expected = [
        (0, vec!["7..263 chunk 0 from 0", "263..300 chunk 1 from 0", "1000..2000 zero false"]),
        (1, vec!["0..8 zero true", "60..64 chunk 1 from 37"]),
    ];
    let expected = expected.map(|(slot, told)| (slot, told.into_iter().map(str::to_owned).collect()));
    assert_eq!(disks.collect::<Vec<_>>(), expected);
}

#[test]
fn summaries() {
    for (name, bytes) in of_format("summary") {
        assert_eq!(summary_fuzz::summary(&bytes), is_plain(&name), "{name}");
        let footer = summary::Footer::decode(&bytes, bytes.len() as u64).expect("a footer");
        assert_eq!(footer.encode(), bytes[bytes.len() - summary::FOOTER_BYTES..], "{name}");
        assert_eq!(footer.sealed_under.is_some(), name.contains("sealed"), "{name}");
    }
}

/// Headers and a block of an image's sums.
#[test]
fn sums_of_images() {
    let disk = DiskId(0x1111_2222_3333_4444_5555_6666_7777_8888);
    let kinds = [("header", sums::Holes::Zeros), ("header-unchecked", sums::Holes::Unchecked)];
    for (name, holes) in kinds {
        let of = sums::Of::Image(holes);
        let header = golden_at(&third("image-sums").join(name), &sums::encode_header(of, disk));
        assert_eq!(sums::check_image_header(&header, disk).expect("its own"), of);
    }
    let of = sums::Of::Image(sums::Holes::Zeros);
    let mut block = sums::Block::ZEROS;
    let content = [7; 1016 * 512];
    let first = sums::sectors_of(2).start;
    for (sum, stored) in block.sums_mut().iter_mut().zip(of.sums_of(first, &content)) {
        *sum = stored;
    }
    (block.sums_mut()[4], block.sums_mut()[5]) = (sums::UNKNOWN, sums::UNCHECKED);
    block.mark_doubtful(true);
    block.succeed(257);
    block.succeed(258);
    let stored = golden_at(&third("image-sums/block"), &block.encode(disk, 2));
    assert_eq!(sums::Block::decode(&stored, of, disk, 2), Some(block.clone()));
    assert_eq!(of.mismatches(first, &content, block.sums()), [SectorRange::new(first + 4, first + 5)]);
    for (name, bytes) in of_format("image-sums") {
        assert!(sums_fuzz::place(&bytes), "{name}");
    }
}

/// A header and a block of a base's sums, and what sectors have which sum.
#[test]
fn sums_of_bases() {
    let disk = DiskId(0x1111_2222_3333_4444_5555_6666_7777_8888);
    let header = golden_at(&second("sums/header"), &sums::encode_header(sums::Of::Base, disk));
    sums::check_header(&header, disk).expect("its own");
    let mut block = sums::Block::ZEROS;
    let content = |sector: u64| [u8::try_from(sector % 3).expect("small"); 512];
    for (sum, sector) in block.sums_mut().iter_mut().zip(sums::sectors_of(2).start..) {
        *sum = sums::sector_sum(sector, &content(sector));
    }
    block.sums_mut()[1015] = sums::UNKNOWN;
    let stored = golden_at(&second("sums/block"), &block.encode(disk, 2));
    assert_eq!(sums::Block::decode(&stored, sums::Of::Base, disk, 2), Some(block));
    for (name, bytes) in of_format("sums") {
        assert!(sums_fuzz::place(&bytes), "{name}");
    }
}

/// The header and a unit of an overlay's sums.
#[test]
fn sums_of_overlays() {
    let disk = DiskId(0x1111_2222_3333_4444_5555_6666_7777_8888);
    let header = golden_at(&fourth("overlay-sums/header"), &overlay_sums::encode_header(disk));
    overlay_sums::check_header(&header, disk).expect("its own");
    let mut unit = Unit { sequence: 258, ..Unit::UNWRITTEN };
    let content = |sector: u64| [u8::try_from(sector % 5).expect("small"); 512];
    for sector in 56 * 9..56 * 10 {
        let place = overlay_sums::place_of(sector);
        unit.now[place] = sums::sector_sum(sector, &content(sector));
        unit.before[place] = sums::sector_sum(sector, &content(sector + 1));
    }
    (unit.before[7], unit.now[8], unit.before[8]) = (sums::UNKNOWN, sums::UNKNOWN, sums::UNKNOWN);
    let stored = golden_at(&fourth("overlay-sums/unit"), &unit.encode(disk, 9));
    assert_eq!(Unit::decode(&stored, disk, 9), Some(unit));
    let places = overlay_sums::unit_offset(9, sums::Copy::First)..overlay_sums::file_bytes(56 * 10);
    assert_eq!((places, overlay_sums::unit_offset(9, sums::Copy::Second)), (16_896..24_576, 20_992));
}
