//! A sector that says what it is: which run wrote it, on which disk, where, and as which write.
//!
//! ```text
//! offset  bytes
//!      0      8  magic "AFTERIMG"
//!      8      8  run: of which history it is part
//!     16      8  disk: index in the history
//!     24      8  sector: its own number on that disk
//!     32      8  sequence: the stamp at which its write was issued
//!     40    464  filler that depends on disk, sector and sequence, so that two writes differ in every word
//!    504      8  xxh3-64 of all that stands before it
//! ```
//!
//! All little-endian. A sector of zeros was never written, or was zeroed: the judge knows which it may be.

use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::history::Stamp;
use crate::random::Random;

/// Length of a sector.
pub const SECTOR_BYTES: usize = 512;
const MAGIC: [u8; 8] = *b"AFTERIMG";
const FILLER_WORDS: usize = 58;
const SUMMED_BYTES: usize = SECTOR_BYTES - 8;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Layout {
    magic: [u8; 8],
    run: U64,
    disk: U64,
    sector: U64,
    sequence: U64,
    filler: [U64; FILLER_WORDS],
    checksum: U64,
}

const _: () = assert!(size_of::<Layout>() == SECTOR_BYTES);

/// Where a sector lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The history's run.
    pub run: u64,
    /// The disk's index in the history.
    pub disk: usize,
    /// The sector's number on the disk.
    pub sector: u64,
}

/// Content that no write of this run put in this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// No record: it begins with these bytes.
    Unknown([u8; 8]),
    /// A record whose checksum does not match: torn, or altered.
    Torn {
        /// The write that its head names.
        sequence: Stamp,
    },
    /// A whole record that belongs elsewhere.
    Misplaced {
        /// On which disk.
        disk: u64,
        /// Where on it.
        sector: u64,
        /// Of which write.
        sequence: Stamp,
    },
    /// A whole record of another run.
    OtherRun(u64),
}

/// Fills whole sectors from `place` on with the content of the write `sequence`.
pub fn fill(place: Place, sequence: Stamp, bytes: &mut [u8]) {
    for (sector, bytes) in (place.sector..).zip(bytes.chunks_exact_mut(SECTOR_BYTES)) {
        let mut filler =
            Random::new(sequence.0 ^ sector.rotate_left(24) ^ (place.disk as u64).rotate_left(56));
        let mut layout = Layout {
            magic: MAGIC,
            run: place.run.into(),
            disk: (place.disk as u64).into(),
            sector: sector.into(),
            sequence: sequence.0.into(),
            filler: std::array::from_fn(|_| filler.next().into()),
            checksum: 0.into(),
        };
        layout.checksum = xxh3_64(&layout.as_bytes()[..SUMMED_BYTES]).into();
        bytes.copy_from_slice(layout.as_bytes());
    }
}

/// The write whose content lies at `place`; `None` where there are zeros.
pub fn identify(place: Place, bytes: &[u8; SECTOR_BYTES]) -> Result<Option<Stamp>, Foreign> {
    let layout = Layout::ref_from_bytes(bytes).expect("bytes of that length, without alignment");
    let sequence = Stamp(layout.sequence.get());
    if layout.magic != MAGIC {
        let zero = bytes.iter().all(|&byte| byte == 0);
        return if zero { Ok(None) } else { Err(Foreign::Unknown(layout.magic)) };
    }
    if layout.checksum.get() != xxh3_64(&bytes[..SUMMED_BYTES]) {
        return Err(Foreign::Torn { sequence });
    }
    if layout.run.get() != place.run {
        return Err(Foreign::OtherRun(layout.run.get()));
    }
    if (layout.disk.get(), layout.sector.get()) != (place.disk as u64, place.sector) {
        return Err(Foreign::Misplaced { disk: layout.disk.get(), sector: layout.sector.get(), sequence });
    }
    Ok(Some(sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { run: 7, disk: 1, sector: 40 };

    fn sector(place: Place, sequence: u64) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0; SECTOR_BYTES];
        fill(place, Stamp(sequence), &mut bytes);
        bytes
    }

    #[test]
    fn a_sector_tells_its_write_only_in_its_place() {
        assert_eq!(identify(PLACE, &sector(PLACE, 9)), Ok(Some(Stamp(9))));
        assert_eq!(identify(PLACE, &[0; SECTOR_BYTES]), Ok(None));
        assert_eq!(identify(PLACE, &sector(Place { run: 8, ..PLACE }, 9)), Err(Foreign::OtherRun(8)));
        for (disk, sector_number) in [(0, 40), (1, 41)] {
            let elsewhere = Place { run: 7, disk, sector: sector_number };
            let misplaced =
                Foreign::Misplaced { disk: disk as u64, sector: sector_number, sequence: Stamp(9) };
            assert_eq!(identify(PLACE, &sector(elsewhere, 9)), Err(misplaced));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_tear_shows() {
        let (old, new) = (sector(PLACE, 8), sector(PLACE, 9));
        for bit in 0..SECTOR_BYTES * 8 {
            let mut bytes = new;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(identify(PLACE, &bytes).is_err(), "bit {bit}");
        }
        for cut in (48..SECTOR_BYTES).step_by(8) {
            let mut bytes = new;
            bytes[cut..].copy_from_slice(&old[cut..]);
            assert_eq!(identify(PLACE, &bytes), Err(Foreign::Torn { sequence: Stamp(9) }), "torn at {cut}");
        }
        assert_eq!(identify(PLACE, &[0xaa; SECTOR_BYTES]), Err(Foreign::Unknown([0xaa; 8])));
    }

    #[test]
    fn a_long_write_numbers_its_sectors() {
        let mut bytes = [0; 4 * SECTOR_BYTES];
        fill(PLACE, Stamp(3), &mut bytes);
        for (index, bytes) in bytes.as_chunks::<SECTOR_BYTES>().0.iter().enumerate() {
            let place = Place { sector: PLACE.sector + index as u64, ..PLACE };
            assert_eq!(identify(place, bytes), Ok(Some(Stamp(3))));
        }
    }
}
