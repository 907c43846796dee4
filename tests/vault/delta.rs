//! Building and reading deltas on real files.

use afterimage::error::ErrorKind;
use afterimage::format::delta::{CHUNK_BYTES, Content};
use afterimage::units::{SECTOR_BYTES, SectorRange, to_usize};

use crate::support::{Group, block_on};

const CHUNK_SECTORS: u64 = CHUNK_BYTES as u64 / SECTOR_BYTES;

fn range(start: u64, end: u64) -> SectorRange {
    SectorRange::new(start, end)
}

#[test]
fn nothing_written_is_no_blob() {
    let mut group = Group::new(&[100]);
    let point = group.publish();
    assert_eq!(group.vault.manifest().state().point(point).expect("published").delta, None);
    assert_eq!(block_on(&group.runtime, group.vault.blobs().list()).expect("listed"), []);
}

#[test]
fn extents_never_cross_chunks_and_zeros_carry_no_data() {
    let mut group = Group::new(&[1 << 16, 4096]);
    group.write(0, range(8, 8 + 2 * CHUNK_SECTORS + 5), 1);
    group.zero(0, range(5000, 1 << 16), false);
    group.write(1, range(0, 3), 2);
    let point = group.publish();
    let reference = group.vault.manifest().state().point(point).expect("published").delta.expect("written");
    let reader = block_on(&group.runtime, group.vault.open_delta(&reference)).expect("as built");
    let tables = reader.tables();
    assert_eq!(tables.chunks.len(), 3);
    assert_eq!(tables.disks.len(), 2);
    let extents: Vec<_> = tables.disks[0].extents.iter().map(|extent| extent.range).collect();
    let first = range(8, 8 + CHUNK_SECTORS);
    let second = range(first.end, first.end + CHUNK_SECTORS);
    assert_eq!(extents, [first, second, range(second.end, second.end + 5), range(5000, 1 << 16)]);
    assert_eq!(tables.disks[1].extents[0].content, Content::Data { chunk: 2, sector: 5 });
    assert!(reference.total_bytes < 3 * u64::from(CHUNK_BYTES), "zeros are not stored");
}

#[test]
fn a_zero_extent_longer_than_an_entry_can_say_is_split() {
    let mut group = Group::new(&[16]);
    // A disk of 16 TiB, without a model of its bytes.
    let sectors = 1_u64 << 35;
    group.disks[0].sectors.0 = sectors;
    group.model[0] = Vec::new();
    group.zero_unmodelled(0, range(3, sectors));
    let point = group.publish();
    let reference = group.vault.manifest().state().point(point).expect("published").delta.expect("written");
    let reader = block_on(&group.runtime, group.vault.open_delta(&reference)).expect("as built");
    let extents = &reader.tables().disks[0].extents;
    assert_eq!(extents.len(), 9);
    assert_eq!((extents[0].range.start, extents[8].range.end), (3, sectors));
    assert!(extents.windows(2).all(|pair| pair[0].range.end == pair[1].range.start));
}

/// 64 MiB of an interval pass through a few chunks' worth of memory.
#[test]
fn what_is_read_ahead_is_bounded() {
    let mut group = Group::new(&[1 << 17]);
    for start in (0..1 << 17).step_by(16) {
        group.write(0, range(start, start + 16), 3);
    }
    group.publish();
    let read_ahead = group.log.read_sectors_max.get() / CHUNK_SECTORS;
    assert!((2..=4).contains(&read_ahead), "{read_ahead} chunks: several at once, and no more than that");
}

#[test]
fn a_bad_chunk_is_corrupt_with_path_and_offset_and_the_others_are_readable() {
    let mut group = Group::new(&[4096]);
    group.write(0, range(0, 3 * CHUNK_SECTORS), 9);
    let point = group.publish();
    let reference = group.vault.manifest().state().point(point).expect("published").delta.expect("written");
    let path = group.vault.layout().blob(reference.blob);
    let mut bytes = std::fs::read(&path).expect("the blob is there");
    let reader = block_on(&group.runtime, group.vault.open_delta(&reference)).expect("as built");
    let bad = reader.tables().chunks[1].offset;
    bytes[to_usize(bad) + 17] ^= 0x10;
    std::fs::write(&path, bytes).expect("tests may write it");
    let reader = block_on(&group.runtime, group.vault.open_delta(&reference)).expect("the tables are good");
    let error = block_on(&group.runtime, reader.chunk(1)).expect_err("a bit was flipped");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(error.path(), Some(path.as_path()));
    assert_eq!(error.offset(), Some(bad));
    block_on(&group.runtime, reader.chunk(0)).expect("untouched");
    block_on(&group.runtime, reader.chunk(2)).expect("untouched");
}
