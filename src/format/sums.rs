//! The sums of a base or of an image: for each sector 32 bits, in blocks of 4 KiB that are proven by checksums of their own, and for
//! which the file has two places each. `docs/format.md` draws every byte, `docs/retention.md` says how those of bases are kept true,
//! `image::sums` those of images.
//!
//! ```text
//! place 0      1         2                 a place is 4 KiB, and stands in the file twice: of a base 1 MiB apart, of an image
//! +--------+---------+---------+-- … --+   side by side, so that one operation reads both
//! | header | block 0 | block 1 |       |   a block: the sums of 1,016 sectors
//! +--------+---------+---------+-- … --+
//! ```
//!
//! The sum of a sector of zeros is 0, so that a place that nobody wrote says that its sectors are zeros, and the file of a sparse base
//! is sparse. Sums go by sector since deltas do: writing some sectors changes no sum of another.
//!
//! A base's two places are copies of each other. An image's are written in turn, and the one with the higher sequence number counts.

use std::ops::Range;

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128, xxh3_128_with_seed};

use crate::error::{Error, Result};
use crate::units::{DiskId, SECTOR_BYTES, SectorRange, to_usize};

/// Length of a block as it is stored, and of the header.
pub const BLOCK_BYTES: usize = 4096;
/// Sectors whose sums a block holds.
pub const SECTORS_A_BLOCK: u64 = 1016;
/// The sum of a sector of which nobody knows what it should be: it fits no content.
pub const UNKNOWN: u32 = u32::MAX;
/// The sum of a sector of an image that nobody summed: it fits every content. A base has none.
pub const UNCHECKED: u32 = u32::MAX - 1;

const VERSION: u32 = 1;
/// Where the header says what a place means that nobody wrote.
const HOLES_AT: usize = 12;
/// Where the checksum of a block is, and of the header.
const CHECKSUM_AT: usize = BLOCK_BYTES - 16;
const SUM_BYTES: usize = 4;
const SUMS_A_BLOCK: usize = 1016;
const SUMS_END: usize = SUMS_A_BLOCK * SUM_BYTES;
/// Where the sequence number ends, which begins behind the sums.
const SEQUENCE_END: usize = SUMS_END + 8;
/// Where the marks end, which begin behind the sequence number.
const MARKS_END: usize = SEQUENCE_END + 8;
/// The other place was a hole when this was written.
const ALONE: u64 = 1;
/// Some of the sums were taken over from a place beside one that was damaged, or of which nobody knew anything.
const DOUBTFUL: u64 = 2;
const SECTOR_LEN: usize = 512;
/// Bytes between the two copies of a place, of a base.
const AREA_BYTES: u64 = 1 << 20;
const PLACES_AN_AREA: u64 = AREA_BYTES / BLOCK_BYTES as u64;

const _: () = assert!(SUMS_A_BLOCK as u64 == SECTORS_A_BLOCK && SECTOR_LEN as u64 == SECTOR_BYTES);
const _: () = assert!(MARKS_END == CHECKSUM_AT);

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

/// What the sums are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// A base: what no place says is zeros.
    Base,
    /// An image.
    Image(Holes),
}

/// What a block of an image's sums says that nobody wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Holes {
    /// That its sectors are zeros.
    #[default]
    Zeros,
    /// Nothing: the image was there before its sums were.
    Unchecked,
}

impl Of {
    fn magic(self) -> [u8; 8] {
        match self {
            Of::Base => *b"AFTRSUMS",
            Of::Image(_) => *b"AFTRIMGS",
        }
    }

    fn holes(self) -> u32 {
        u32::from(self == Of::Image(Holes::Unchecked))
    }

    fn name(self) -> &'static str {
        match self {
            Of::Base => "the sums of a base",
            Of::Image(_) => "the sums of an image",
        }
    }

    /// What a block says that nobody wrote.
    pub fn empty(self) -> Block {
        match self {
            Of::Base | Of::Image(Holes::Zeros) => Block::ZEROS,
            Of::Image(Holes::Unchecked) => Block { sums: [UNCHECKED; SUMS_A_BLOCK], ..Block::ZEROS },
        }
    }

    /// Where a place is in the file.
    fn offset(self, place: u64, copy: Copy) -> u64 {
        let second = u64::from(copy == Copy::Second);
        match self {
            Of::Base => {
                let area = place / PLACES_AN_AREA * 2 + second;
                area * AREA_BYTES + place % PLACES_AN_AREA * BLOCK_BYTES as u64
            }
            Of::Image(_) => (place * 2 + second) * BLOCK_BYTES as u64,
        }
    }

    /// Where the header is in the file.
    pub fn header_offset(self, copy: Copy) -> u64 {
        self.offset(0, copy)
    }

    /// Where a block is in the file.
    pub fn block_offset(self, block: u64, copy: Copy) -> u64 {
        self.offset(block + 1, copy)
    }

    /// The sum of a sector's content.
    fn sum(self, sum: u32) -> u32 {
        match self {
            Of::Base => sum,
            Of::Image(_) => sum.min(UNCHECKED - 1),
        }
    }

    /// The sums of sectors one behind the other, from `first` on; what is missing of the last is zeros.
    pub fn sums_of(self, first: u64, bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
        sector_sums(first, bytes).map(move |sum| self.sum(sum))
    }

    /// The sectors, from `first` on, that do not have the sums that are stored of them.
    pub fn mismatches(self, first: u64, bytes: &[u8], stored: &[u32]) -> Vec<SectorRange> {
        let mut found: Vec<SectorRange> = Vec::new();
        let is_checked = |stored: u32| self == Of::Base || stored != UNCHECKED;
        for ((sector, sum), &stored) in (first..).zip(self.sums_of(first, bytes)).zip(stored) {
            match found.last_mut() {
                _ if sum == stored || !is_checked(stored) => {}
                Some(last) if last.end == sector => last.end += 1,
                _ => found.push(SectorRange::new(sector, sector + 1)),
            }
        }
        found
    }
}

/// The blocks that have sums of a range's sectors, with these.
pub fn by_block(range: SectorRange) -> impl Iterator<Item = (u64, SectorRange)> {
    let blocks = range.start / SECTORS_A_BLOCK..range.end.div_ceil(SECTORS_A_BLOCK);
    blocks.filter_map(move |block| Some((block, sectors_of(block).intersection(range)?)))
}

/// Where sectors of a block are among its sums.
pub fn within(block: u64, sectors: SectorRange) -> Range<usize> {
    let start = sectors_of(block).start;
    to_usize(sectors.start - start)..to_usize(sectors.end - start)
}

/// The blocks and the copy of which a range of a base's file has something; none of the header. A range that crosses areas is several.
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
pub fn encode_header(of: Of, disk: DiskId) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0; BLOCK_BYTES];
    bytes[..8].copy_from_slice(&of.magic());
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[HOLES_AT..16].copy_from_slice(&of.holes().to_le_bytes());
    bytes[16..32].copy_from_slice(&disk.0.to_le_bytes());
    let checksum = xxh3_128(&bytes[..CHECKSUM_AT]);
    bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Compares a header with that of a disk's base.
///
/// # Errors
/// `Corrupt` if it is none or another disk's, `Unsupported` if it is one of a version that this build does not know.
pub fn check_header(bytes: &[u8], disk: DiskId) -> Result<()> {
    find_header(bytes, disk, &[Of::Base]).map(drop)
}

/// Compares a header with that of a disk's image; what it says of places that nobody wrote.
///
/// # Errors
/// As of [`check_header`].
pub fn check_image_header(bytes: &[u8], disk: DiskId) -> Result<Of> {
    find_header(bytes, disk, &[Of::Image(Holes::Zeros), Of::Image(Holes::Unchecked)])
}

/// Which of `candidates`, all of one magic, a header is of.
fn find_header(bytes: &[u8], disk: DiskId, candidates: &[Of]) -> Result<Of> {
    let of = candidates[0];
    let name = of.name();
    let Some(checksum) = bytes.get(CHECKSUM_AT..BLOCK_BYTES).filter(|_| bytes.len() == BLOCK_BYTES) else {
        return Err(Error::corrupt(format!("the header of {name} is cut off")));
    };
    if bytes[..8] != of.magic() || checksum != xxh3_128(&bytes[..CHECKSUM_AT]).to_le_bytes() {
        return Err(Error::corrupt(format!("the header of {name} does not match its checksum")));
    }
    if bytes[8..12] != VERSION.to_le_bytes() {
        let version = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        return Err(Error::unknown_version(name, version, VERSION));
    }
    let is_it = |of: &&Of| *bytes == encode_header(**of, disk);
    let text = "the sums are not those of this disk";
    candidates.iter().find(is_it).copied().ok_or_else(|| Error::corrupt(text))
}

/// The sums of a block's sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    sums: [u32; SUMS_A_BLOCK],
    /// Which of the two places counts: 0 of a base's, and of one that nobody wrote.
    sequence: u64,
    /// What else there is to say of an image's: [`ALONE`], [`DOUBTFUL`].
    marks: u64,
}

impl Block {
    /// Of zeros.
    pub const ZEROS: Block = Block { sums: [0; SUMS_A_BLOCK], sequence: 0, marks: 0 };
    /// Of sectors that nobody knows.
    pub const UNKNOWN: Block = Block { sums: [UNKNOWN; SUMS_A_BLOCK], ..Block::ZEROS };

    /// The sums, in order of their sectors.
    pub fn sums(&self) -> &[u32] {
        &self.sums
    }

    /// The same, to be changed.
    pub fn sums_mut(&mut self) -> &mut [u32] {
        &mut self.sums
    }

    /// Which of two places of an image's block is the newer one. 0, if nobody wrote it.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The same sums, as those of a write after this one, with a sequence number of `least` or more.
    pub fn succeed(&mut self, least: u64) {
        self.marks &= !ALONE;
        if self.sequence == 0 {
            self.marks |= ALONE;
        }
        self.sequence = least.max(self.sequence + 1);
    }

    /// Whether the other place was a hole when this was written: if it is one now and was not, something became of it.
    pub fn is_alone(&self) -> bool {
        self.marks & ALONE > 0
    }

    /// Whether some of the sums may be older than what was written to their sectors.
    pub fn is_doubtful(&self) -> bool {
        self.marks & DOUBTFUL > 0
    }

    /// Notes whether some of them may be.
    pub fn mark_doubtful(&mut self, is_doubtful: bool) {
        self.marks = self.marks & !DOUBTFUL | if is_doubtful { DOUBTFUL } else { 0 };
    }

    /// The block as it is stored.
    pub fn encode(&self, disk: DiskId, block: u64) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        for (stored, sum) in bytes.chunks_exact_mut(SUM_BYTES).zip(&self.sums) {
            stored.copy_from_slice(&sum.to_le_bytes());
        }
        bytes[SUMS_END..SEQUENCE_END].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[SEQUENCE_END..MARKS_END].copy_from_slice(&self.marks.to_le_bytes());
        let checksum = xxh3_128_with_seed(&bytes[..CHECKSUM_AT], seed(disk, block));
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a stored block; `None` if it is not what was stored as this one.
    pub fn decode(bytes: &[u8], of: Of, disk: DiskId, block: u64) -> Option<Block> {
        let checksum = bytes.get(CHECKSUM_AT..).filter(|_| bytes.len() == BLOCK_BYTES)?;
        if checksum != xxh3_128_with_seed(&bytes[..CHECKSUM_AT], seed(disk, block)).to_le_bytes() {
            return None;
        }
        let number = |at: Range<usize>| u64::from_le_bytes(bytes[at].try_into().expect("eight bytes"));
        let (sequence, marks) = (number(SUMS_END..SEQUENCE_END), number(SEQUENCE_END..MARKS_END));
        let mut found = Block { sequence, marks, ..Block::ZEROS };
        for (sum, stored) in found.sums.iter_mut().zip(bytes.chunks_exact(SUM_BYTES)) {
            *sum = u32::from_le_bytes(stored.try_into().expect("chunks of four"));
        }
        let is_legal = match of {
            Of::Base => (sequence, marks) == (0, 0),
            Of::Image(_) => sequence > 0 && marks & !(ALONE | DOUBTFUL) == 0,
        };
        is_legal.then_some(found)
    }
}

/// Keeps a block from passing for another one, or for another disk's.
pub(super) fn seed(disk: DiskId, block: u64) -> u64 {
    let bytes = disk.0.to_le_bytes();
    let low: [u8; 8] = std::array::from_fn(|index| bytes[index]);
    u64::from_le_bytes(low).wrapping_add(block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const IMAGE: Of = Of::Image(Holes::Zeros);
    const DISK: DiskId = DiskId(0x1234_5678_9abc_def0_1122_3344_5566_7788);

    #[test]
    fn places_do_not_overlap_and_are_found_again() {
        let mut seen = std::collections::BTreeSet::new();
        for copy in Copy::BOTH {
            assert!(seen.insert(Of::Base.header_offset(copy)));
            assert!(blocks_of(Of::Base.header_offset(copy)..Of::Base.header_offset(copy) + 4096).is_empty());
            for block in 0..1000 {
                let at = Of::Base.block_offset(block, copy);
                assert!(seen.insert(at) && at.is_multiple_of(4096));
                assert_eq!(blocks_of(at..at + 1), [(block..block + 1, copy)]);
                let pair = Copy::BOTH.map(|copy| Of::Base.block_offset(block, copy));
                assert_eq!(pair[1], pair[0] + AREA_BYTES);
                let pair = Copy::BOTH.map(|copy| IMAGE.block_offset(block, copy));
                assert_eq!(pair, [(block + 1) * 8192, (block + 1) * 8192 + 4096]);
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
        assert_eq!(Block::decode(&stored, Of::Base, DISK, 9), Some(block));
        for other in
            [Block::decode(&stored, Of::Base, DISK, 8), Block::decode(&stored, Of::Base, DiskId(7), 9)]
        {
            assert_eq!(other, None);
        }
        let header = encode_header(Of::Base, DISK);
        check_header(&header, DISK).expect("its own");
        assert!(check_header(&header, DiskId(1)).is_err() && check_header(&header[1..], DISK).is_err());
        for bit in 0..BLOCK_BYTES * 8 {
            let flip = |mut bytes: [u8; BLOCK_BYTES]| {
                bytes[bit / 8] ^= 1 << (bit % 8);
                bytes
            };
            assert_eq!(Block::decode(&flip(stored), Of::Base, DISK, 9), None, "bit {bit}");
            assert!(check_header(&flip(header), DISK).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_version_that_nobody_knows_is_not_guessed_at() {
        let mut header = encode_header(Of::Base, DISK);
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

    #[test]
    fn an_images_block_has_a_number_and_passes_for_no_bases() {
        let mut block = Block::ZEROS;
        assert_eq!(Block::decode(&block.encode(DISK, 0), IMAGE, DISK, 0), None, "never written");
        block.succeed(0);
        assert!(block.sequence() == 1 && block.is_alone());
        block.mark_doubtful(true);
        block.succeed(70);
        assert!(block.sequence() == 70 && !block.is_alone() && block.is_doubtful());
        block.succeed(7);
        assert_eq!(block.sequence(), 71, "never less");
        let stored = block.encode(DISK, 3);
        block.mark_doubtful(false);
        assert_ne!(Block::decode(&stored, IMAGE, DISK, 3).as_ref(), Some(&block));
        block.mark_doubtful(true);
        assert_eq!(Block::decode(&stored, IMAGE, DISK, 3), Some(block));
        assert_eq!(Block::decode(&stored, Of::Base, DISK, 3), None);
        for bit in 0..BLOCK_BYTES * 8 {
            let mut bad = stored;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Block::decode(&bad, IMAGE, DISK, 3), None, "bit {bit}");
        }
        for of in [IMAGE, Of::Image(Holes::Unchecked)] {
            let header = encode_header(of, DISK);
            assert_eq!(check_image_header(&header, DISK).expect("its own"), of);
            assert!(check_header(&header, DISK).is_err() && check_image_header(&header, DiskId(1)).is_err());
        }
        assert!(check_image_header(&encode_header(Of::Base, DISK), DISK).is_err());
    }

    #[test]
    fn what_nobody_summed_fits_and_what_nobody_knows_does_not() {
        let bytes = [7; 512 * 4];
        let sums: Vec<_> = IMAGE.sums_of(20, &bytes).collect();
        assert_eq!(IMAGE.mismatches(20, &bytes, &sums), []);
        let odd = [sums[0], UNCHECKED, UNKNOWN, 0];
        assert_eq!(IMAGE.mismatches(20, &bytes, &odd), [SectorRange::new(22, 24)]);
        assert_eq!(Of::Base.mismatches(20, &bytes, &odd), [SectorRange::new(21, 24)]);
        assert_eq!((IMAGE.sum(UNKNOWN - 1), IMAGE.sum(UNCHECKED - 1)), (UNCHECKED - 1, UNCHECKED - 1));
    }
}
