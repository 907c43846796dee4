//! The sums of a base: for each sector 32 bits, in blocks of 4 KiB that are proven by checksums of their own, and of which the file
//! holds two copies. `docs/format.md` draws every byte, `docs/retention.md` says how they are kept true.
//!
//! ```text
//! place 0      1         2                 a place is 4 KiB, and stands in the file twice, 1 MiB apart
//! +--------+---------+---------+-- … --+
//! | header | block 0 | block 1 |       |   a block: the sums of 1,016 sectors
//! +--------+---------+---------+-- … --+
//! ```
//!
//! The sum of a sector of zeros is 0, so that a place that nobody wrote says that its sectors are zeros, and the file of a sparse base
//! is sparse. Sums go by sector since deltas do: writing some sectors of a base changes no sum of another.

use std::ops::Range;

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128, xxh3_128_with_seed};

use crate::error::{Error, Result};
use crate::units::{DiskId, SECTOR_BYTES, SectorRange};

/// Length of a block as it is stored, and of the header.
pub const BLOCK_BYTES: usize = 4096;
/// Sectors whose sums a block holds.
pub const SECTORS_A_BLOCK: u64 = 1016;
/// The sum of a sector of which nobody knows what it should be: it fits no content.
pub const UNKNOWN: u32 = u32::MAX;

const MAGIC: [u8; 8] = *b"AFTRSUMS";
const VERSION: u32 = 1;
/// Where the checksum of a block is, and of the header.
const CHECKSUM_AT: usize = BLOCK_BYTES - 16;
const SUM_BYTES: usize = 4;
const SUMS_A_BLOCK: usize = 1016;
const SUMS_END: usize = SUMS_A_BLOCK * SUM_BYTES;
const SECTOR_LEN: usize = 512;
/// Bytes between the two copies of a place.
const AREA_BYTES: u64 = 1 << 20;
const PLACES_AN_AREA: u64 = AREA_BYTES / BLOCK_BYTES as u64;

const _: () = assert!(SUMS_A_BLOCK as u64 == SECTORS_A_BLOCK && SECTOR_LEN as u64 == SECTOR_BYTES);

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Copy {
    /// The one that is read.
    First,
    /// The one that is read where the first cannot be.
    Second,
}

impl Copy {
    /// Both.
    pub const BOTH: [Copy; 2] = [Copy::First, Copy::Second];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Copy {
        match self {
            Copy::First => Copy::Second,
            Copy::Second => Copy::First,
        }
    }
}

/// Where a place is in the file.
fn offset(place: u64, copy: Copy) -> u64 {
    let area = place / PLACES_AN_AREA * 2 + u64::from(copy == Copy::Second);
    area * AREA_BYTES + place % PLACES_AN_AREA * BLOCK_BYTES as u64
}

/// Where the header is in the file.
pub fn header_offset(copy: Copy) -> u64 {
    offset(0, copy)
}

/// Where a block is in the file.
pub fn block_offset(block: u64, copy: Copy) -> u64 {
    offset(block + 1, copy)
}

/// The blocks and the copy of which a range of the file has something; none of the header. A range that crosses areas is several.
pub fn blocks_of(mut bytes: Range<u64>) -> Vec<(Range<u64>, Copy)> {
    let mut found = Vec::new();
    while bytes.start < bytes.end {
        let area = bytes.start / AREA_BYTES;
        let end = bytes.end.min((area + 1) * AREA_BYTES);
        let first = area / 2 * PLACES_AN_AREA;
        let within = |byte: u64| first + (byte - area * AREA_BYTES) / BLOCK_BYTES as u64;
        let places = within(bytes.start).max(1)..within(end - 1) + 1;
        let copy = if area.is_multiple_of(2) { Copy::First } else { Copy::Second };
        if places.start < places.end {
            found.push((places.start - 1..places.end - 1, copy));
        }
        bytes.start = end;
    }
    found
}

/// The sectors of a block.
pub fn sectors_of(block: u64) -> SectorRange {
    SectorRange::new(block * SECTORS_A_BLOCK, (block + 1) * SECTORS_A_BLOCK)
}

/// The sum of a sector's content: 0 just of zeros.
pub fn sector_sum(sector: u64, bytes: &[u8]) -> u32 {
    // A fold, so that the compiler takes many bytes at a time.
    if bytes.iter().fold(0, |found, byte| found | byte) == 0 {
        return 0;
    }
    let [a, b, c, d, ..] = xxh3_64_with_seed(bytes, sector).to_le_bytes();
    u32::from_le_bytes([a, b, c, d]).clamp(1, UNKNOWN - 1)
}

/// The sums of sectors one behind the other, from `first` on; what is missing of the last is zeros.
pub fn sector_sums(first: u64, bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    (first..).zip(bytes.chunks(SECTOR_LEN)).map(|(sector, content)| {
        if content.len() == SECTOR_LEN {
            return sector_sum(sector, content);
        }
        let mut whole = [0; SECTOR_LEN];
        whole[..content.len()].copy_from_slice(content);
        sector_sum(sector, &whole)
    })
}

/// The header as it is stored.
pub fn encode_header(disk: DiskId) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0; BLOCK_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(&disk.0.to_le_bytes());
    let checksum = xxh3_128(&bytes[..CHECKSUM_AT]);
    bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Compares a header with that of a disk.
///
/// # Errors
/// `Corrupt` if it is none or another disk's, `Unsupported` if it is one of a version that this build does not know.
pub fn check_header(bytes: &[u8], disk: DiskId) -> Result<()> {
    let Some(checksum) = bytes.get(CHECKSUM_AT..BLOCK_BYTES).filter(|_| bytes.len() == BLOCK_BYTES) else {
        return Err(Error::corrupt("the header of the sums of a base is cut off"));
    };
    if bytes[..8] != MAGIC || checksum != xxh3_128(&bytes[..CHECKSUM_AT]).to_le_bytes() {
        return Err(Error::corrupt("the header of the sums of a base does not match its checksum"));
    }
    if bytes[8..12] != VERSION.to_le_bytes() {
        let version = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        return Err(Error::unknown_version("the sums of a base", version, VERSION));
    }
    if *bytes != encode_header(disk) {
        return Err(Error::corrupt("the sums are not those of this disk's base"));
    }
    Ok(())
}

/// The sums of a block's sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block([u32; SUMS_A_BLOCK]);

impl Block {
    /// Of zeros.
    pub const ZEROS: Block = Block([0; SUMS_A_BLOCK]);
    /// Of sectors that nobody knows.
    pub const UNKNOWN: Block = Block([UNKNOWN; SUMS_A_BLOCK]);

    /// The sums, in order of their sectors.
    pub fn sums(&self) -> &[u32] {
        &self.0
    }

    /// The same, to be changed.
    pub fn sums_mut(&mut self) -> &mut [u32] {
        &mut self.0
    }

    /// The block as it is stored.
    pub fn encode(&self, disk: DiskId, block: u64) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        for (stored, sum) in bytes.chunks_exact_mut(SUM_BYTES).zip(&self.0) {
            stored.copy_from_slice(&sum.to_le_bytes());
        }
        let checksum = xxh3_128_with_seed(&bytes[..CHECKSUM_AT], seed(disk, block));
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a stored block; `None` if it is not what was stored as this one.
    pub fn decode(bytes: &[u8], disk: DiskId, block: u64) -> Option<Block> {
        let checksum = bytes.get(CHECKSUM_AT..).filter(|_| bytes.len() == BLOCK_BYTES)?;
        let is_sound = checksum == xxh3_128_with_seed(&bytes[..CHECKSUM_AT], seed(disk, block)).to_le_bytes()
            && bytes[SUMS_END..CHECKSUM_AT].iter().all(|byte| *byte == 0);
        let mut sums = Block::ZEROS;
        for (sum, stored) in sums.0.iter_mut().zip(bytes.chunks_exact(SUM_BYTES)) {
            *sum = u32::from_le_bytes(stored.try_into().expect("chunks of four"));
        }
        is_sound.then_some(sums)
    }
}

/// Keeps a block from passing for another one, or for another disk's.
fn seed(disk: DiskId, block: u64) -> u64 {
    let bytes = disk.0.to_le_bytes();
    let low: [u8; 8] = std::array::from_fn(|index| bytes[index]);
    u64::from_le_bytes(low).wrapping_add(block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const DISK: DiskId = DiskId(0x1234_5678_9abc_def0_1122_3344_5566_7788);

    #[test]
    fn places_do_not_overlap_and_are_found_again() {
        let mut seen = std::collections::BTreeSet::new();
        for copy in Copy::BOTH {
            assert!(seen.insert(header_offset(copy)));
            assert!(blocks_of(header_offset(copy)..header_offset(copy) + 4096).is_empty());
            for block in 0..1000 {
                let at = block_offset(block, copy);
                assert!(seen.insert(at) && at.is_multiple_of(4096));
                assert_eq!(blocks_of(at..at + 1), [(block..block + 1, copy)]);
                assert_eq!(block_offset(block, Copy::Second), block_offset(block, Copy::First) + AREA_BYTES);
            }
        }
        let all = blocks_of(0..4 * AREA_BYTES);
        assert_eq!(
            all,
            [
                (0..255, Copy::First),
                (0..255, Copy::Second),
                (255..511, Copy::First),
                (255..511, Copy::Second)
            ]
        );
    }

    #[test]
    fn every_flipped_bit_of_a_block_or_header_is_seen() {
        let mut block = Block::ZEROS;
        block.sums_mut().iter_mut().zip(0..).for_each(|(sum, index)| *sum = index * 77);
        let stored = block.encode(DISK, 9);
        assert_eq!(Block::decode(&stored, DISK, 9), Some(block));
        for other in [Block::decode(&stored, DISK, 8), Block::decode(&stored, DiskId(7), 9)] {
            assert_eq!(other, None);
        }
        let header = encode_header(DISK);
        check_header(&header, DISK).expect("its own");
        assert!(check_header(&header, DiskId(1)).is_err() && check_header(&header[1..], DISK).is_err());
        for bit in 0..BLOCK_BYTES * 8 {
            let flip = |mut bytes: [u8; BLOCK_BYTES]| {
                bytes[bit / 8] ^= 1 << (bit % 8);
                bytes
            };
            assert_eq!(Block::decode(&flip(stored), DISK, 9), None, "bit {bit}");
            assert!(check_header(&flip(header), DISK).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_version_that_nobody_knows_is_not_guessed_at() {
        let mut header = encode_header(DISK);
        header[8] = 2;
        let checksum = xxh3_128(&header[..CHECKSUM_AT]);
        header[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(check_header(&header, DISK).expect_err("unknown").kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn only_zeros_have_the_sum_of_zeros_and_places_count() {
        let zeros = [0; 512];
        let mut one = zeros;
        one[511] = 1;
        assert_eq!(sector_sum(7, &zeros), 0);
        for sector in 0..10_000 {
            let sum = sector_sum(sector, &one);
            assert!(sum != 0 && sum != UNKNOWN);
            assert_ne!(sum, sector_sum(sector + 1, &one), "misplaced");
        }
        let short = sector_sums(3, &one[..100]).collect::<Vec<_>>();
        assert_eq!(short, [0]);
        let bytes = [zeros, one].concat();
        assert_eq!(sector_sums(3, &bytes).collect::<Vec<_>>(), [0, sector_sum(4, &one)]);
    }
}
