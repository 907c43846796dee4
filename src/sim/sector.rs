//! What the simulated clients write: every sector says which disk, which sector and which write it comes from, in all
//! of its bytes; so whatever comes back tells where it belongs, and a torn or exchanged sector tells on itself.

use crate::storage::sim::Random;
use crate::units::{SECTOR_BYTES, to_usize};

/// Which write a sector's content comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u32);

impl Stamp {
    /// Zeros: nobody wrote there, or somebody zeroed it.
    pub const ZEROS: Stamp = Stamp(0);
}

const SECTOR: usize = to_usize(SECTOR_BYTES);
const WORD: usize = size_of::<u64>();

/// The bytes of `sectors` sectors from `start` on, as the write `stamp` leaves them on disk number `disk`.
pub fn content(disk: usize, start: u64, sectors: u64, stamp: Stamp) -> Vec<u8> {
    let mut bytes = vec![0; to_usize(sectors * SECTOR_BYTES)];
    for (sector, place) in (start..).zip(bytes.chunks_exact_mut(SECTOR)) {
        fill(place, disk, sector, stamp);
    }
    bytes
}

fn fill(place: &mut [u8], disk: usize, sector: u64, stamp: Stamp) {
    let head = head(disk, sector, stamp);
    let filler = Random::new(head).next();
    for (index, word) in place.chunks_exact_mut(WORD).enumerate() {
        let value = if index == 0 { head } else { filler.wrapping_add(index as u64) };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// 16 bits of disk, 16 of sector, 32 of stamp; never zero, since stamps of writes are not.
fn head(disk: usize, sector: u64, stamp: Stamp) -> u64 {
    (disk as u64) << 48 | (sector & 0xffff) << 32 | u64::from(stamp.0)
}

/// Tells the writes that the sectors in `bytes`, read from `start` of disk number `disk`, come from.
pub fn stamps(disk: usize, start: u64, bytes: &[u8]) -> Result<Vec<Stamp>, String> {
    let sectors = (start..).zip(bytes.chunks_exact(SECTOR));
    sectors.map(|(sector, bytes)| stamp(disk, sector, bytes)).collect()
}

fn stamp(disk: usize, sector: u64, bytes: &[u8]) -> Result<Stamp, String> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(Stamp::ZEROS);
    }
    let head_bytes = bytes[..WORD].try_into().expect("a sector has a first word");
    let found = u64::from_le_bytes(head_bytes);
    let stamp = Stamp(u32::try_from(found & 0xffff_ffff).expect("32 bits"));
    let mut expected = [0; SECTOR];
    fill(&mut expected, disk, sector, stamp);
    if bytes == expected {
        return Ok(stamp);
    }
    let differing = bytes.iter().zip(&expected).filter(|(found, expected)| found != expected).count();
    Err(format!(
        "sector {sector} of disk {disk} holds no write's bytes: its head says disk {}, sector {}, write {}; \
         {differing} bytes differ from that write's",
        found >> 48,
        found >> 32 & 0xffff,
        stamp.0
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_tells_its_write_and_nothing_else_passes_for_one() {
        let mut bytes = content(2, 7, 3, Stamp(9));
        assert_eq!(stamps(2, 7, &bytes), Ok(vec![Stamp(9); 3]));
        assert!(stamps(1, 7, &bytes).is_err(), "another disk's");
        assert!(stamps(2, 8, &bytes).is_err(), "another sector's");
        bytes[SECTOR + 100] ^= 1;
        assert!(stamps(2, 7, &bytes).is_err(), "rotten");
        assert_eq!(stamps(0, 0, &[0; SECTOR]), Ok(vec![Stamp::ZEROS]));
    }
}
