//! The sums of an overlay: for each sector what it holds and what it held before, in units that are proven by checksums of their own, and
//! for which the file has two places each. `docs/format.md` draws every byte, `view::overlay_sums` says in which order they are written.
//!
//! ```text
//! 0        4 KiB    8 KiB      12 KiB     16 KiB     20 KiB
//! +--------+--------+----------+----------+----------+----------+-- …      a page: 8 units of 512 bytes, each with
//! | header | header | page 0,  | page 0,  | page 1,  | page 1,  |          the sums of 56 sectors, now and before
//! |        |        | place A  | place B  | place A  | place B  |
//! +--------+--------+----------+----------+----------+----------+-- …
//! ```
//!
//! A unit is a sector long, so that the death of a process, and a disk that keeps its sectors whole, leave it as it was or as it should
//! be. Not the unit of a base or of an image: what they say of a sector is one thing, and here it is two.

use std::ops::Range;

use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

use super::sums::{Copy, UNKNOWN, seed};
use crate::error::{Error, Result};
use crate::units::{DiskId, SectorRange, to_usize};

/// Sectors whose sums a unit holds: seven blocks of an overlay.
pub const SECTORS_A_UNIT: u64 = 56;
/// Length of a unit as it is stored.
pub const UNIT_BYTES: usize = 512;
/// Units that lie side by side in one place.
pub const UNITS_A_PAGE: u64 = 8;
/// Length of both places of a page, which lie side by side.
pub const PAIR_BYTES: u64 = 2 * PAGE_BYTES;
/// Length of a copy of the header.
pub const HEADER_BYTES: usize = 4096;

/// The sum of a sector of zeros.
pub const ZEROS: u32 = 0;

const MAGIC: [u8; 8] = *b"AFTROVLS";
const VERSION: u32 = 1;
const PAGE_BYTES: u64 = 4096;
const SUMS: usize = 56;
const SUM_BYTES: usize = 4;
const BEFORE_AT: usize = SUMS * SUM_BYTES;
const SEQUENCE_AT: usize = 2 * SUMS * SUM_BYTES;
const SEQUENCE_END: usize = SEQUENCE_AT + 8;
const CHECKSUM_AT: usize = UNIT_BYTES - 16;
const HEADER_CHECKSUM_AT: usize = HEADER_BYTES - 16;

const _: () = assert!(SUMS as u64 == SECTORS_A_UNIT && UNITS_A_PAGE * UNIT_BYTES as u64 == PAGE_BYTES);

/// Where a copy of the header is in the file.
pub fn header_offset(copy: Copy) -> u64 {
    copy as u64 * HEADER_BYTES as u64
}

/// Where a unit is in the file.
pub fn unit_offset(unit: u64, copy: Copy) -> u64 {
    pair_offset(unit / UNITS_A_PAGE) + copy as u64 * PAGE_BYTES + unit % UNITS_A_PAGE * UNIT_BYTES as u64
}

/// Where both places of a page are in the file.
pub fn pair_offset(page: u64) -> u64 {
    (page + 1) * PAIR_BYTES
}

/// How long the file is for a disk of so many sectors.
pub fn file_bytes(sectors: u64) -> u64 {
    pair_offset(sectors.div_ceil(SECTORS_A_UNIT).div_ceil(UNITS_A_PAGE))
}

/// The units that have sums of a range's sectors.
pub fn units_of(range: SectorRange) -> Range<u64> {
    range.start / SECTORS_A_UNIT..range.end.div_ceil(SECTORS_A_UNIT)
}

/// Which of its unit's sums is that of a sector.
pub fn place_of(sector: u64) -> usize {
    to_usize(sector % SECTORS_A_UNIT)
}

/// The header as it is stored.
pub fn encode_header(disk: DiskId) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(&disk.0.to_le_bytes());
    let checksum = xxh3_128(&bytes[..HEADER_CHECKSUM_AT]);
    bytes[HEADER_CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Compares a header with that of a disk's overlay.
///
/// # Errors
/// `Corrupt` if it is none or another disk's, `Unsupported` if it is one of a version that this build does not know.
pub fn check_header(bytes: &[u8], disk: DiskId) -> Result<()> {
    let name = "the sums of an overlay";
    let checksum = bytes.get(HEADER_CHECKSUM_AT..HEADER_BYTES).filter(|_| bytes.len() == HEADER_BYTES);
    let expected = checksum.map(|_| xxh3_128(&bytes[..HEADER_CHECKSUM_AT]).to_le_bytes());
    if checksum != expected.as_ref().map(|bytes| &bytes[..]) || !bytes.starts_with(&MAGIC) {
        return Err(Error::corrupt(format!("the header of {name} does not match its checksum")));
    }
    if bytes[8..12] != VERSION.to_le_bytes() {
        let version = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        return Err(Error::unknown_version(name, version, VERSION));
    }
    if *bytes != encode_header(disk) {
        return Err(Error::corrupt("the sums are not those of this disk's overlay"));
    }
    Ok(())
}

/// What a unit says of its sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The sums of what they hold. [`UNKNOWN`] fits no content.
    pub now: [u32; SUMS],
    /// The sums of what they held before; who wrote this may have died before the sectors were written.
    pub before: [u32; SUMS],
    /// Which of the two places counts: the one that has more. At least 1 of a unit that was written.
    pub sequence: u64,
}

impl Unit {
    /// What a unit says that nobody wrote: nothing.
    pub const UNWRITTEN: Unit = Unit { now: [UNKNOWN; SUMS], before: [UNKNOWN; SUMS], sequence: 0 };

    /// The unit as it is stored.
    pub fn encode(&self, disk: DiskId, unit: u64) -> [u8; UNIT_BYTES] {
        let mut bytes = [0; UNIT_BYTES];
        let sums = self.now.iter().chain(&self.before);
        for (stored, sum) in bytes[..SEQUENCE_AT].chunks_exact_mut(SUM_BYTES).zip(sums) {
            stored.copy_from_slice(&sum.to_le_bytes());
        }
        bytes[SEQUENCE_AT..SEQUENCE_END].copy_from_slice(&self.sequence.to_le_bytes());
        let checksum = xxh3_128_with_seed(&bytes[..CHECKSUM_AT], seed(disk, unit));
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a stored unit; `None` if it is not what was stored as this one.
    pub fn decode(bytes: &[u8], disk: DiskId, unit: u64) -> Option<Unit> {
        let checksum = bytes.get(CHECKSUM_AT..).filter(|_| bytes.len() == UNIT_BYTES)?;
        let sequence = u64::from_le_bytes(bytes[SEQUENCE_AT..SEQUENCE_END].try_into().expect("eight bytes"));
        let is_sound = checksum == xxh3_128_with_seed(&bytes[..CHECKSUM_AT], seed(disk, unit)).to_le_bytes()
            && bytes[SEQUENCE_END..CHECKSUM_AT].iter().all(|byte| *byte == 0);
        let sums_at = |at: usize| {
            let stored = |index: usize| &bytes[at + index * SUM_BYTES..][..SUM_BYTES];
            std::array::from_fn(|index| u32::from_le_bytes(stored(index).try_into().expect("four bytes")))
        };
        (is_sound && sequence > 0).then(|| Unit { now: sums_at(0), before: sums_at(BEFORE_AT), sequence })
    }
}

/// What a block is that the overlay's allocation calls a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hole {
    /// A hole: what lies under the overlay shows.
    Empty,
    /// Zeros that were written there.
    Zeros,
    /// Nobody can tell.
    Unknown,
}

/// What the two places of a unit say together.
///
/// | one place | the other | what counts | what may be left of what was flushed |
/// |---|---|---|---|
/// | sound | sound | the one with the higher sequence | the other |
/// | sound | a hole, or damaged | the sound one | – |
/// | a hole, or damaged | the same | nothing: no content fits | – |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What counts.
    pub newest: Unit,
    /// Where it is; `None` if nobody wrote the unit, or it is damaged.
    pub at: Option<Copy>,
    /// What the other place says, if it is sound: a power cut may have left a sector as this one has it.
    pub older: Option<Unit>,
    /// The place that is neither sound nor a hole, if there is one.
    pub damaged: Option<Copy>,
    /// Whether both are.
    pub is_lost: bool,
}

impl Found {
    /// Of a unit's two places.
    pub fn of(places: [&[u8]; 2], disk: DiskId, unit: u64) -> Found {
        let decoded = places.map(|place| Unit::decode(place, disk, unit));
        let is_damaged = |(place, decoded): (&[u8], &Option<Unit>)| {
            decoded.is_none() && place.iter().any(|byte| *byte != 0)
        };
        let damaged = places.into_iter().zip(&decoded).map(is_damaged).collect::<Vec<_>>();
        let is_lost = damaged.iter().all(|is_damaged| *is_damaged);
        let damaged = damaged.iter().position(|is_damaged| *is_damaged).map(|index| Copy::BOTH[index]);
        let (newest, at, older) = match decoded {
            [Some(first), Some(second)] if first.sequence >= second.sequence => {
                (first, Some(Copy::First), Some(second))
            }
            [first, Some(second)] => (second, Some(Copy::Second), first),
            [Some(first), None] => (first, Some(Copy::First), None),
            [None, None] => (Unit::UNWRITTEN, None, None),
        };
        Found { newest, at, older, damaged, is_lost }
    }

    /// What the unit says of a block that the overlay's allocation calls a hole, by the places of its sectors.
    ///
    /// | what is said of it | it is |
    /// |---|---|
    /// | by a unit of which both places are damaged: whatever | unknown: they may have said that it was written, with zeros |
    /// | nothing | empty: nobody wrote it, or nobody flushed it: a power cut tears one place at most |
    /// | that each sector is, or may be, zeros | lost: it was written with zeros, and a copy of the file made a hole of it |
    /// | something else | empty: it was given back, or who announced it died before it was written |
    pub fn hole(&self, mut places: Range<usize>) -> Hole {
        // Of what was taken back, or never said, an older place has nothing to say either.
        let is_zeros = |place| self.newest.now[place] != UNKNOWN && self.fits(place, ZEROS, false);
        if self.is_lost {
            return Hole::Unknown;
        }
        if places.all(is_zeros) { Hole::Zeros } else { Hole::Empty }
    }

    /// Whether content with this sum may be in a sector. Who `knows` that the sector was written as the unit says, takes nothing else;
    /// after a death it may as well hold what was there before.
    pub fn fits(&self, place: usize, sum: u32, knows: bool) -> bool {
        let is_said = |unit: &Unit| unit.now[place] == sum || unit.before[place] == sum;
        if knows {
            return self.newest.now[place] == sum;
        }
        is_said(&self.newest) || self.older.as_ref().is_some_and(is_said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const DISK: DiskId = DiskId(0x1234_5678_9abc_def0_1122_3344_5566_7788);

    fn unit(first: u32, sequence: u64) -> Unit {
        let mut unit = Unit { sequence, ..Unit::UNWRITTEN };
        unit.now.iter_mut().zip(first..).for_each(|(sum, value)| *sum = value);
        unit.before.iter_mut().zip(first + 100..).for_each(|(sum, value)| *sum = value);
        unit
    }

    #[test]
    fn the_sum_of_zeros_is_the_one_that_is_looked_for() {
        assert!(super::super::sums::sector_sums(77, &[0; 1024]).into_iter().all(|sum| sum == ZEROS));
    }

    #[test]
    fn places_do_not_overlap_and_lie_within_the_file() {
        let mut seen = std::collections::BTreeSet::new();
        for number in 0..1000 {
            for copy in Copy::BOTH {
                let at = unit_offset(number, copy);
                assert!(seen.insert(at) && at.is_multiple_of(512) && at >= 2 * HEADER_BYTES as u64);
                assert!(at + 512 <= file_bytes((number + 1) * SECTORS_A_UNIT));
                assert!((pair_offset(number / 8)..pair_offset(number / 8) + PAIR_BYTES).contains(&at));
            }
        }
        assert_eq!(units_of(SectorRange::new(55, 57)), 0..2);
        assert_eq!(units_of(SectorRange::new(56, 112)), 1..2);
        assert_eq!((place_of(55), place_of(56)), (55, 0));
    }

    #[test]
    fn every_flipped_bit_of_a_unit_or_header_is_seen() {
        let stored = unit(7, 3).encode(DISK, 9);
        assert_eq!(Unit::decode(&stored, DISK, 9), Some(unit(7, 3)));
        for other in [
            Unit::decode(&stored, DISK, 8),
            Unit::decode(&stored, DiskId(7), 9),
            Unit::decode(&stored[1..], DISK, 9),
            Unit::decode(&unit(7, 0).encode(DISK, 9), DISK, 9),
        ] {
            assert_eq!(other, None);
        }
        for bit in 0..UNIT_BYTES * 8 {
            let mut bad = stored;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Unit::decode(&bad, DISK, 9), None, "bit {bit}");
        }
        let header = encode_header(DISK);
        check_header(&header, DISK).expect("its own");
        assert!(check_header(&header, DiskId(1)).is_err() && check_header(&header[1..], DISK).is_err());
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = header;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(check_header(&bad, DISK).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_version_that_nobody_knows_is_not_guessed_at() {
        let mut header = encode_header(DISK);
        header[8] = 2;
        let checksum = xxh3_128(&header[..HEADER_CHECKSUM_AT]);
        header[HEADER_CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(check_header(&header, DISK).expect_err("unknown").kind(), ErrorKind::Unsupported);
    }

    /// Every pair of what a place may hold.
    #[test]
    fn the_place_that_counts_is_the_newest_sound_one() {
        let hole = [0; UNIT_BYTES];
        let [old, new] = [(10, 1), (20, 2)].map(|(first, sequence)| unit(first, sequence).encode(DISK, 4));
        let mut bad = new;
        bad[3] ^= 1;
        let find = |first: &[u8], second: &[u8]| Found::of([first, second], DISK, 4);
        let (first, second) = (Some(Copy::First), Some(Copy::Second));
        for (places, sequence, at, older, damaged) in [
            ([old, new], 2, second, true, None),
            ([new, old], 2, first, true, None),
            ([old, hole], 1, first, false, None),
            ([hole, old], 1, second, false, None),
            ([old, bad], 1, first, false, second),
            ([bad, old], 1, second, false, first),
            ([bad, bad], 0, None, false, first),
            ([hole, bad], 0, None, false, second),
            ([bad, hole], 0, None, false, first),
            ([hole, hole], 0, None, false, None),
        ] {
            let found = find(&places[0], &places[1]);
            let is = (found.newest.sequence, found.at, found.older.is_some(), found.damaged);
            assert_eq!(is, (sequence, at, older, damaged));
        }
    }

    #[test]
    fn a_hole_is_zeros_only_where_its_unit_says_so_of_every_sector() {
        let of = |now: [u32; 2], before: [u32; 2]| {
            let mut unit = Unit { sequence: 2, ..Unit::UNWRITTEN };
            unit.now[..2].copy_from_slice(&now);
            unit.before[..2].copy_from_slice(&before);
            unit
        };
        let found = |newest: Unit, older: Option<Unit>, damaged| Found {
            newest,
            at: Some(Copy::First),
            older,
            damaged,
            is_lost: damaged == Some(Copy::First),
        };
        let zeros = of([0, 0], [UNKNOWN, UNKNOWN]);
        let (written, announced) = (of([7, 8], [UNKNOWN, UNKNOWN]), of([0, 9], [0, 0]));
        let taken_back = of([UNKNOWN, UNKNOWN], [UNKNOWN, UNKNOWN]);
        for (newest, older, damaged, expected) in [
            (zeros.clone(), None, None, Hole::Zeros),
            (zeros.clone(), Some(written.clone()), None, Hole::Zeros),
            (announced, None, None, Hole::Zeros),
            (of([9, 9], [8, 8]), Some(zeros.clone()), None, Hole::Zeros),
            (of([0, 9], [UNKNOWN, UNKNOWN]), None, None, Hole::Empty),
            (written.clone(), None, None, Hole::Empty),
            (taken_back, Some(zeros.clone()), None, Hole::Empty),
            (Unit::UNWRITTEN, None, None, Hole::Empty),
            (zeros, None, Some(Copy::Second), Hole::Zeros),
            (written, None, Some(Copy::Second), Hole::Empty),
            (Unit::UNWRITTEN, None, Some(Copy::First), Hole::Unknown),
        ] {
            let found = found(newest, older, damaged);
            assert_eq!(found.hole(0..2), expected, "{found:?}");
        }
    }

    #[test]
    fn who_knows_takes_what_was_written_and_nobody_takes_anything_else() {
        let found = Found::of([&unit(10, 1).encode(DISK, 4), &unit(20, 2).encode(DISK, 4)], DISK, 4);
        for (sum, fits_known, fits) in
            [(22, true, true), (122, false, true), (12, false, true), (112, false, true), (13, false, false)]
        {
            assert_eq!((found.fits(2, sum, true), found.fits(2, sum, false)), (fits_known, fits), "{sum}");
        }
        let unwritten = Found::of([&[0; UNIT_BYTES], &[0; UNIT_BYTES]], DISK, 4);
        assert!(!unwritten.fits(0, 0, true) && !unwritten.fits(0, 0, false), "zeros neither");
    }
}
