//! Bytes ↔ values: what is written is read; every bit that is wrong is noticed; nothing panics.

use std::sync::Arc;

use afterimage::block::TestId;
use afterimage::error::{ErrorKind, Result};
use afterimage::format::checksum;
use afterimage::format::delta::{
    self, CHUNK_BYTES, Chunk, Compression, Content, DeltaExtent, DeltaRef, DiskTable, FOOTER_BYTES, Footer,
    HEADER_BYTES, Tables, TablesForm,
};
use afterimage::format::ladder::Ladder;
use afterimage::format::manifest::{self, Contents, DiskState, Snapshot, Step, StepNumber};
use afterimage::format::marker::Consistency;
use afterimage::format::record::{
    Change, DiskRecord, ForkRecord, GroupRecord, Membership, MergeRecord, PinKind, PinRecord, PointDisk,
    PointRecord, Reached, TestUse,
};
use afterimage::seal::GroupKeys;
use afterimage::units::{
    BlobId, DiskId, DiskSlot, GroupId, GroupNanos, Lsn, PinId, PointId, SECTOR_BYTES, SectorCount,
    SectorRange, TimelineId, WallNanos, WriterId, to_usize,
};
use proptest::prelude::*;

use crate::support::{GROUP, TIMELINE, disk_record, group_record, pattern, point_record};

const BLOB: BlobId = BlobId(0xb1);

fn header() -> delta::Header {
    delta::Header {
        blob: BLOB,
        group: GROUP,
        timeline: TIMELINE,
        after: Lsn(100),
        through: Lsn(180),
        marker: Lsn(200),
        created: WallNanos(-5),
        intervals: 1,
        chunk_bytes: CHUNK_BYTES,
    }
}

/// A blob of two disks and two chunks, put together by hand.
fn blob() -> (Vec<u8>, DeltaRef) {
    let chunks = [pattern(3 * SECTOR_BYTES, 1), pattern(SECTOR_BYTES, 2)];
    let mut bytes = header().encode().to_vec();
    let mut tables = Tables::default();
    for (index, chunk) in (0_u32..).zip(&chunks) {
        let length = u32::try_from(chunk.len()).expect("small");
        tables.chunks.push(Chunk {
            offset: bytes.len() as u64,
            stored_bytes: length,
            plain_bytes: length,
            origin_blob: BLOB,
            origin_chunk: index,
            compression: Compression::None,
            sealed_under: None,
            checksum: checksum(chunk),
        });
        bytes.extend_from_slice(chunk);
    }
    let extent = |start, end, content| DeltaExtent { range: SectorRange::new(start, end), content };
    tables.disks.push(DiskTable {
        slot: DiskSlot(0),
        disk: DiskId(7),
        sectors: SectorCount(100),
        extents: vec![
            extent(0, 2, Content::Data { chunk: 0, sector: 0 }),
            extent(2, 50, Content::Zero { allocated: true }),
            extent(60, 61, Content::Data { chunk: 0, sector: 2 }),
        ],
    });
    tables.disks.push(DiskTable {
        slot: DiskSlot(3),
        disk: DiskId(8),
        sectors: SectorCount(10),
        extents: vec![
            extent(1, 2, Content::Data { chunk: 1, sector: 0 }),
            extent(9, 10, Content::Zero { allocated: false }),
        ],
    });
    let encoded = tables.encode();
    let start: [u8; HEADER_BYTES] = bytes[..HEADER_BYTES].try_into().expect("a header");
    let form = TablesForm { bytes: encoded.len() as u64, ..TablesForm::default() };
    let footer = Footer::new(&start, BLOB, &tables, form).with_tables(&encoded);
    bytes.extend_from_slice(&encoded);
    bytes.extend_from_slice(&footer.encode());
    assert_eq!(bytes.len() as u64, footer.total_bytes);
    (bytes, footer.reference())
}

/// Everything that a reader checks, without a file.
fn read_blob(bytes: &[u8], reference: &DeltaRef) -> Result<Tables> {
    let footer = Footer::decode(bytes, bytes.len() as u64)?;
    footer.check_identity(reference, bytes)?;
    let header = delta::Header::decode(bytes)?;
    let stored = &bytes[to_usize(footer.tables_offset)..bytes.len() - FOOTER_BYTES];
    footer.verify_tables(stored)?;
    let tables = Tables::decode(stored, &header, &footer)?;
    for chunk in &tables.chunks {
        let start = to_usize(chunk.offset);
        chunk.verify(&bytes[start..start + to_usize(chunk.stored_bytes.into())])?;
    }
    Ok(tables)
}

#[test]
fn a_delta_says_what_was_put_into_it() {
    let (bytes, reference) = blob();
    let tables = read_blob(&bytes, &reference).expect("as written");
    assert_eq!(tables.disks.len(), 2);
    assert_eq!(tables.encode(), bytes[to_usize(reference.tables_offset())..bytes.len() - FOOTER_BYTES]);
    assert_eq!(delta::Header::decode(&bytes).expect("as written"), header());
}

#[test]
fn a_delta_that_was_cut_off_anywhere_is_corrupt() {
    let (bytes, reference) = blob();
    for length in 0..bytes.len() {
        let error = read_blob(&bytes[..length], &reference).expect_err("it was cut off");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{length} bytes: {error}");
    }
}

#[test]
fn every_flipped_bit_of_a_delta_is_noticed() {
    let (bytes, reference) = blob();
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let error = read_blob(&bytes, &reference).expect_err("a bit was flipped");
        let version = (8..12).contains(&(bit / 8));
        let expected = if version { ErrorKind::Unsupported } else { ErrorKind::Corrupt };
        // The identity check sees a flipped header before the header itself is decoded.
        assert!([expected, ErrorKind::Corrupt].contains(&error.kind()), "bit {bit}: {error}");
    }
}

#[test]
fn another_delta_under_the_same_name_is_noticed() {
    let (bytes, reference) = blob();
    let other = DeltaRef { checksum: reference.checksum ^ 1, ..reference };
    assert_eq!(read_blob(&bytes, &other).expect_err("another blob").kind(), ErrorKind::Corrupt);
}

/// Recomputes all checksums, as somebody would who writes well-summed nonsense.
fn reseal(bytes: &mut [u8]) {
    let footer_at = bytes.len() - FOOTER_BYTES;
    let header_sum = checksum(&bytes[..HEADER_BYTES - 16]).to_le_bytes();
    bytes[HEADER_BYTES - 16..HEADER_BYTES].copy_from_slice(&header_sum);
    let tables_at = u64::from_le_bytes(bytes[footer_at + 24..footer_at + 32].try_into().expect("8 bytes"));
    if let Some(tables) = bytes.get(to_usize(tables_at)..footer_at) {
        let sum = checksum(tables).to_le_bytes();
        bytes[footer_at + 64..footer_at + 80].copy_from_slice(&sum);
    }
    bytes[footer_at + 80..footer_at + 96].copy_from_slice(&header_sum);
    let sum = checksum(&bytes[footer_at..bytes.len() - 16]).to_le_bytes();
    let end = bytes.len();
    bytes[end - 16..].copy_from_slice(&sum);
}

/// As [`read_blob`], but with the blob's own word for what it is.
fn read_any_blob(bytes: &[u8]) -> Result<(Tables, Footer)> {
    let footer = Footer::decode(bytes, bytes.len() as u64)?;
    Ok((read_blob(bytes, &footer.reference())?, footer))
}

/// Contradictions under good checksums: what the tables say must be possible, byte by byte, or be refused; and what
/// is accepted is exactly what the encoder writes.
#[test]
fn a_well_summed_contradiction_is_refused_or_harmless() {
    let (bytes, _) = blob();
    let mut accepted = 0;
    for index in 0..bytes.len() {
        for value in [0, 1, 2, 0x7f, 0xff] {
            let mut bytes = bytes.clone();
            bytes[index] = value;
            reseal(&mut bytes);
            if let Ok((tables, footer)) = read_any_blob(&bytes) {
                accepted += 1;
                let end = bytes.len() - FOOTER_BYTES;
                assert_eq!(tables.encode(), bytes[to_usize(footer.tables_offset)..end]);
                assert_eq!(delta::Header::decode(&bytes).expect("accepted").encode(), bytes[..HEADER_BYTES]);
                assert_eq!(footer.encode(), bytes[end..]);
            }
        }
    }
    assert!(accepted > 0, "ids and times may be anything");
}

fn step_header(number: u64) -> manifest::Header {
    manifest::Header {
        number: StepNumber(number),
        group: GroupId(3),
        writer: WriterId(4),
        timeline: TimelineId(5),
        previous: 6,
    }
}

fn changes() -> Vec<Change> {
    let disks = [disk_record(0, "a", 8), disk_record(2, "β", 1 << 54)];
    let mut point = point_record(9, &disks);
    point.delta = Some(DeltaRef { blob: BLOB, total_bytes: 4096, tables_bytes: 100, checksum: 77 });
    let point_delta = point.delta;
    vec![
        Change::GroupCreated(group_record("group")),
        Change::DiskAdded(disks[1].clone()),
        Change::DiskRemoved(DiskSlot(2)),
        Change::PolicySet { interval_ms: Some(250), retain: Some(Ladder::default()) },
        Change::PolicySet { interval_ms: None, retain: Some(Ladder::keep_all()) },
        Change::PauseSet(true),
        Change::PauseSet(false),
        Change::TimelineForked {
            timeline: TimelineId(8),
            fork: ForkRecord { left: TimelineId(7), marker: Lsn(10), wall: WallNanos(-3) },
        },
        Change::PointPublished(point),
        Change::PointPublished(point_record(10, &[])),
        Change::PinAdded(PinRecord {
            id: PinId(1),
            point: PointId(2),
            kind: PinKind::Test { test: TestId(3), purpose: TestUse::Rehearsal },
            created: WallNanos(4),
        }),
        Change::PinAdded(PinRecord {
            id: PinId(1),
            point: PointId(2),
            kind: PinKind::Test { test: TestId(3), purpose: TestUse::ReadOnly },
            created: WallNanos(4),
        }),
        Change::PinAdded(PinRecord {
            id: PinId(1),
            point: PointId(2),
            kind: PinKind::Test { test: TestId(3), purpose: TestUse::Restore },
            created: WallNanos(4),
        }),
        Change::PinAdded(PinRecord {
            id: PinId(1),
            point: PointId(2),
            kind: PinKind::Hold,
            created: WallNanos(4),
        }),
        Change::PinRemoved(PinId(1)),
        Change::PointsRetired(PointId(2)),
        Change::BaseSet(PointId(2)),
        Change::BaseReached { point: PointId(2), reached: Reached { slot: DiskSlot(1), sector: 4096 } },
        Change::PointsMerged(MergeRecord { first: PointId(2), into: PointId(3), delta: None }),
        Change::PointsMerged(MergeRecord { first: PointId(2), into: PointId(3), delta: point_delta }),
        Change::GroupRemoved,
    ]
}

#[test]
fn a_step_that_was_cut_off_or_has_a_flipped_bit_is_noticed() {
    for change in changes() {
        let bytes = Step { header: step_header(12), change }.encode(None).bytes;
        for length in 0..bytes.len() {
            let error = Step::decode(&bytes[..length], &GroupKeys::NONE).expect_err("it was cut off");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{length} bytes: {error}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = Step::decode(&bytes, &GroupKeys::NONE).expect_err("a bit was flipped");
            let version = (8..12).contains(&(bit / 8));
            let expected = if version { ErrorKind::Unsupported } else { ErrorKind::Corrupt };
            assert_eq!(error.kind(), expected, "bit {bit}: {error}");
        }
        assert!(
            Step::decode(&[bytes.as_slice(), &[0]].concat(), &GroupKeys::NONE).is_err(),
            "a byte too many"
        );
    }
}

#[test]
fn a_step_of_an_unknown_kind_is_unsupported_not_skipped() {
    let mut bytes = Step { header: step_header(2), change: Change::GroupRemoved }.encode(None).bytes;
    bytes[12..14].copy_from_slice(&99_u16.to_le_bytes());
    let end = manifest::HEADER_BYTES;
    let sum = checksum(&bytes[..end - 16]).to_le_bytes();
    bytes[end - 16..end].copy_from_slice(&sum);
    assert_eq!(
        Step::decode(&bytes, &GroupKeys::NONE).expect_err("kind 99 was never given").kind(),
        ErrorKind::Unsupported
    );
}

fn names() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9 ._äß-]{1,40}"
}

fn disk_states() -> impl Strategy<Value = Vec<DiskState>> {
    proptest::collection::btree_map(
        any::<u32>(),
        (any::<u128>(), names(), 1..=1_u64 << 54, any::<bool>()),
        0..5,
    )
    .prop_map(|disks| {
        let state = |(slot, (id, name, sectors, removed))| DiskState {
            record: DiskRecord { slot: DiskSlot(slot), id: DiskId(id), name, sectors: SectorCount(sectors) },
            removed,
        };
        disks.into_iter().map(state).collect()
    })
}

prop_compose! {
    fn tables()(disks in proptest::collection::btree_map(any::<u32>(), (any::<u128>(), 1..=1_u64 << 54, any::<bool>()), 0..4))
        -> Arc<[PointDisk]> {
        disks.into_iter().map(|(slot, (disk, sectors, included))| PointDisk {
            slot: DiskSlot(slot),
            disk: DiskId(disk),
            sectors: SectorCount(sectors),
            membership: if included { Membership::Included } else { Membership::Excluded },
        }).collect()
    }
}

prop_compose! {
    fn points()(
        choices in proptest::collection::vec(tables(), 1..3),
        points in proptest::collection::btree_map(
            any::<u64>(),
            (any::<u128>(), any::<i64>(), any::<u64>(), any::<bool>(), "[^\\p{Cc}]{0,20}", any::<Option<u128>>(), 0..2_usize),
            0..8,
        ),
    ) -> Vec<PointRecord> {
        points.into_iter().map(|(marker, (id, wall, time, crash, label, blob, table))| PointRecord {
            id: PointId(id),
            marker: Lsn(marker),
            wall: WallNanos(wall),
            group_time: GroupNanos(time),
            consistency: if crash { Consistency::Crash } else { Consistency::Application },
            label,
            delta: blob.map(|blob| DeltaRef { blob: BlobId(blob), total_bytes: 5000, tables_bytes: 96, checksum: !blob }),
            disks: choices[table % choices.len()].clone(),
        }).collect()
    }
}

prop_compose! {
    fn snapshots()(
        (name, created, interval_ms, removed) in (names(), any::<i64>(), 0..u32::MAX, any::<bool>()),
        disks in disk_states(),
        points in points(),
        pins in proptest::collection::btree_map(any::<u128>(), (any::<u128>(), 0..4_u64), 0..4),
        newest_test in any::<u64>(),
        retired in proptest::option::of(proptest::collection::vec(any::<u128>(), 0..3)),
        taken_in in proptest::collection::btree_map(any::<u128>(), (any::<u32>(), any::<u64>()), 0..3),
        forks in proptest::collection::btree_map(any::<u64>(), any::<u128>(), 0..3),
    ) -> Snapshot {
        let forks = forks.into_iter().map(|(marker, left)| ForkRecord {
            left: TimelineId(left),
            marker: Lsn(marker),
            wall: WallNanos(created),
        }).collect();
        let pins = pins.into_iter().map(|(id, (point, test))| PinRecord {
            id: PinId(id),
            point: PointId(point),
            kind: match test {
                0 => PinKind::Hold,
                1 => PinKind::Test { test: TestId(test), purpose: TestUse::Restore },
                2 => PinKind::Test { test: TestId(test), purpose: TestUse::ReadOnly },
                test => PinKind::Test { test: TestId(test), purpose: TestUse::Rehearsal },
            },
            created: WallNanos(created),
        });
        let group = GroupRecord { name, created: WallNanos(created), interval_ms, retain: Ladder::default() };
        let delta = |blob| DeltaRef { blob: BlobId(blob), total_bytes: 5000, tables_bytes: 96, checksum: 7 };
        // A base is on its way only to a point.
        let retired = retired.filter(|_| !points.is_empty());
        let taken_in = taken_in.into_iter().filter(|_| retired.is_some());
        let taken_in = taken_in.map(|(blob, (slot, sector))| (BlobId(blob), Reached { slot: DiskSlot(slot), sector }));
        let taken_in = taken_in.collect();
        let retired = retired.map(|blobs| blobs.into_iter().map(delta).collect());
        let contents = Contents {
            group, removed, paused: !removed, newest_test: TestId(newest_test), disks, points, pins: pins.collect(), retired, forks, taken_in,
        };
        Snapshot { header: step_header(256), contents }
    }
}

proptest! {
    #[test]
    fn snapshots_and_their_points_survive_their_bytes(snapshot in snapshots()) {
        let bytes = snapshot.encode(None).bytes;
        let decoded = Snapshot::decode(&bytes, &GroupKeys::NONE).expect("as written");
        prop_assert_eq!(&decoded, &snapshot);
        prop_assert_eq!(decoded.encode(None).bytes, bytes);
        for point in snapshot.contents.points {
            let step = Step { header: step_header(1), change: Change::PointPublished(point) };
            let encoded = step.encode(None);
            prop_assert_eq!(Step::decode(&encoded.bytes, &GroupKeys::NONE).expect("as written"), (step, encoded.checksum));
        }
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Step::decode(&bytes, &GroupKeys::NONE);
        let _ = Snapshot::decode(&bytes, &GroupKeys::NONE);
        let _ = read_any_blob(&bytes);
        let mut blob = bytes;
        if blob.len() >= HEADER_BYTES + FOOTER_BYTES {
            blob[..8].copy_from_slice(b"AFTRDLTA");
            let footer_at = blob.len() - FOOTER_BYTES;
            blob[footer_at..footer_at + 8].copy_from_slice(b"AFTRDEND");
            reseal(&mut blob);
            let _ = read_any_blob(&blob);
        }
    }
}

#[test]
fn every_change_survives_its_bytes() {
    for change in changes() {
        let step = Step { header: step_header(5), change };
        let encoded = step.encode(None);
        assert_eq!(
            Step::decode(&encoded.bytes, &GroupKeys::NONE).expect("as written"),
            (step, encoded.checksum)
        );
    }
}
