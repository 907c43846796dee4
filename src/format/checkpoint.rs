//! A disk's checkpoint: how far the journal has been destaged to its image.
//!
//! The file holds two slots of one page, written in turn: a torn write spoils the older statement only. Each slot:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `AICHECK\0` |
//! | 8 | 2 | version = 1 |
//! | 10 | 6 | zeros |
//! | 16 | 8 | sum: xxh3-64 of the page, this field taken as zero |
//! | 24 | 8 | sequence; slot = sequence mod 2 |
//! | 32 | 16 | disk id |
//! | 48 | 16 | timeline |
//! | 64 | 8 | destaged: every record up to this LSN is in the image, durably |
//! | 72 | 8 | sectors: the image's length |
//! | 80 | 8 | resizing to: the length that a resize gives it, begun and not ended; 0 if there is none |
//!
//! The rest is zeros. The valid slot with the higher sequence counts; a file with no valid slot is corrupt.

use xxhash_rust::xxh3::xxh3_64;

use crate::units::{DiskId, Lsn, PAGE_BYTES, SectorCount, TimelineId};

const MAGIC: [u8; 8] = *b"AICHECK\0";
const VERSION: u16 = 1;
/// Length of the file: two slots.
pub const FILE_BYTES: usize = 2 * PAGE_BYTES;

/// What a slot states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Grows by one with each statement.
    pub sequence: u64,
    /// The disk.
    pub disk: DiskId,
    /// The history that the LSN belongs to.
    pub timeline: TimelineId,
    /// Every record up to here is in the image, durably.
    pub destaged: Lsn,
    /// The image's length.
    pub sectors: SectorCount,
    /// The length that a resize is about to give it: until that has ended the file may have either, and the manifest says
    /// which it is to be.
    pub resizing_to: Option<SectorCount>,
}

impl Checkpoint {
    /// Byte offset of the slot that this statement goes to.
    pub fn slot_offset(&self) -> u64 {
        (self.sequence % 2) * PAGE_BYTES as u64
    }

    /// Writes the slot into a page.
    ///
    /// # Panics
    /// If `page` is not a page.
    pub fn encode(&self, page: &mut [u8]) {
        assert_eq!(page.len(), PAGE_BYTES);
        page.fill(0);
        page[..8].copy_from_slice(&MAGIC);
        page[8..10].copy_from_slice(&VERSION.to_le_bytes());
        page[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        page[32..48].copy_from_slice(&self.disk.0.to_le_bytes());
        page[48..64].copy_from_slice(&self.timeline.0.to_le_bytes());
        page[64..72].copy_from_slice(&self.destaged.0.to_le_bytes());
        page[72..80].copy_from_slice(&self.sectors.0.to_le_bytes());
        page[80..88].copy_from_slice(&self.resizing_to.map_or(0, |to| to.0).to_le_bytes());
        let sum = xxh3_64(page);
        page[16..24].copy_from_slice(&sum.to_le_bytes());
    }

    fn decode(page: &[u8], slot: u64) -> Option<Checkpoint> {
        let field =
            |start: usize| u64::from_le_bytes(page[start..start + 8].try_into().expect("eight bytes"));
        let wide =
            |start: usize| u128::from_le_bytes(page[start..start + 16].try_into().expect("sixteen bytes"));
        let mut copy = page.to_vec();
        copy[16..24].fill(0);
        let sound = page[..8] == MAGIC && page[8..10] == VERSION.to_le_bytes() && xxh3_64(&copy) == field(16);
        let checkpoint = Checkpoint {
            sequence: field(24),
            disk: DiskId(wide(32)),
            timeline: TimelineId(wide(48)),
            destaged: Lsn(field(64)),
            sectors: SectorCount(field(72)),
            resizing_to: Some(SectorCount(field(80))).filter(|to| to.0 > 0),
        };
        (sound && checkpoint.sequence % 2 == slot).then_some(checkpoint)
    }

    /// The valid statements of a checkpoint file, by slot.
    pub fn slots(file: &[u8]) -> [Option<Checkpoint>; 2] {
        let Some(file) = file.get(..FILE_BYTES) else { return [None; 2] };
        let (first, second) = file.split_at(PAGE_BYTES);
        [Checkpoint::decode(first, 0), Checkpoint::decode(second, 1)]
    }

    /// The newest valid statement of a checkpoint file.
    pub fn newest(file: &[u8]) -> Option<Checkpoint> {
        Checkpoint::slots(file).into_iter().flatten().max_by_key(|checkpoint| checkpoint.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(sequence: u64) -> Checkpoint {
        Checkpoint {
            sequence,
            disk: DiskId(1),
            timeline: TimelineId(2),
            destaged: Lsn(10 * sequence),
            sectors: SectorCount(64),
            resizing_to: sequence.is_multiple_of(3).then_some(SectorCount(128)),
        }
    }

    fn file(statements: &[Checkpoint]) -> Vec<u8> {
        let mut file = vec![0; FILE_BYTES];
        for statement in statements {
            let start = usize::try_from(statement.slot_offset()).expect("small");
            statement.encode(&mut file[start..start + PAGE_BYTES]);
        }
        file
    }

    #[test]
    fn the_newer_slot_counts_and_a_torn_one_does_not() {
        let mut bytes = file(&[statement(1), statement(2), statement(3)]);
        assert_eq!(Checkpoint::newest(&bytes), Some(statement(3)));
        bytes[PAGE_BYTES + 70] ^= 1;
        assert_eq!(Checkpoint::newest(&bytes), Some(statement(2)));
        bytes[30] ^= 1;
        assert_eq!(Checkpoint::newest(&bytes), None);
    }

    #[test]
    fn no_flipped_bit_is_believed() {
        let bytes = file(&[statement(1)]);
        for bit in PAGE_BYTES * 8..2 * PAGE_BYTES * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Checkpoint::newest(&bad), None, "bit {bit}");
        }
    }

    #[test]
    fn a_slot_in_the_wrong_place_is_not_believed() {
        let mut bytes = vec![0; FILE_BYTES];
        statement(1).encode(&mut bytes[..PAGE_BYTES]);
        assert_eq!(Checkpoint::newest(&bytes), None);
    }
}
