//! A disk's checkpoint: how far the journal has been destaged to its image.
//!
//! The file holds two slots of one page, written in turn: a torn write spoils the older statement only. Each slot:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `AICHECK\0` |
//! | 8 | 2 | version: 2, or 1 of an image that has no sums yet |
//! | 10 | 6 | zeros |
//! | 16 | 8 | sum: xxh3-64 of the page, this field taken as zero |
//! | 24 | 8 | sequence; slot = sequence mod 2 |
//! | 32 | 16 | disk id |
//! | 48 | 16 | timeline |
//! | 64 | 8 | destaged: every record up to this LSN is in the image, durably |
//! | 72 | 8 | sectors: the image's length |
//! | 80 | 8 | resizing to: the length that a resize gives it, begun and not ended; 0 if there is none |
//!
//! The rest is zeros. The valid slot with the higher sequence counts; a file with no valid slot is corrupt. Of a slot that is not
//! valid beside one that is, a power cut while it was written is the harmless cause, and nobody can tell it from rot; but one that a
//! single flipped bit keeps from being valid was not torn.

use xxhash_rust::xxh3::xxh3_64;

use crate::units::{DiskId, Lsn, PAGE_BYTES, SectorCount, TimelineId};

const MAGIC: [u8; 8] = *b"AICHECK\0";
/// The version that this code writes. Of those before it, it reads 1.
pub const VERSION: u16 = 2;
/// Of an image that has no sums: a program that knows no others would write to an image that has some, and leave these as they are.
const VERSION_UNSUMMED: u16 = 1;
/// Length of the file: two slots.
pub const FILE_BYTES: usize = 2 * PAGE_BYTES;

/// Bytes of a slot that may be other than zeros.
const USED_BYTES: usize = 88;

/// A slot that is not valid, beside one that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadSlot {
    /// The first or the second: 0 or 1.
    pub number: u8,
    /// Whether it is a statement but for one flipped bit. Else it may have been torn by a power cut.
    pub is_rotten: bool,
}

/// Where in the file a slot begins.
pub fn offset_of(number: u8) -> u64 {
    u64::from(number) * PAGE_BYTES as u64
}

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
    /// Whether the image has sums beside it, which were true when this was stated. It is what the version says.
    pub has_sums: bool,
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
        let version = if self.has_sums { VERSION } else { VERSION_UNSUMMED };
        page[8..10].copy_from_slice(&version.to_le_bytes());
        page[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        page[32..48].copy_from_slice(&self.disk.0.to_le_bytes());
        page[48..64].copy_from_slice(&self.timeline.0.to_le_bytes());
        page[64..72].copy_from_slice(&self.destaged.0.to_le_bytes());
        page[72..80].copy_from_slice(&self.sectors.0.to_le_bytes());
        page[80..88].copy_from_slice(&self.resizing_to.map_or(0, |to| to.0).to_le_bytes());
        let sum = xxh3_64(page);
        page[16..24].copy_from_slice(&sum.to_le_bytes());
    }

    /// The version of a statement that this program cannot take apart, in whichever slot: it may be the newer one, so that
    /// the other one must not be believed. Magic, version and sum lie where they do in every version.
    pub fn unknown_version(file: &[u8]) -> Option<u16> {
        let version = |page: &[u8]| {
            let version = u16::from_le_bytes([page[8], page[9]]);
            (!is_known(version) && is_sound(page)).then_some(version)
        };
        file.get(..FILE_BYTES)?.chunks(PAGE_BYTES).find_map(version)
    }

    fn decode(page: &[u8], slot: u64) -> Option<Checkpoint> {
        let field =
            |start: usize| u64::from_le_bytes(page[start..start + 8].try_into().expect("eight bytes"));
        let wide =
            |start: usize| u128::from_le_bytes(page[start..start + 16].try_into().expect("sixteen bytes"));
        let version = u16::from_le_bytes([page[8], page[9]]);
        let is_ours = is_known(version) && is_sound(page);
        let checkpoint = Checkpoint {
            sequence: field(24),
            disk: DiskId(wide(32)),
            timeline: TimelineId(wide(48)),
            destaged: Lsn(field(64)),
            sectors: SectorCount(field(72)),
            resizing_to: Some(SectorCount(field(80))).filter(|to| to.0 > 0),
            has_sums: version == VERSION,
        };
        (is_ours && checkpoint.sequence % 2 == slot).then_some(checkpoint)
    }

    /// The valid statements of a checkpoint file, by slot.
    pub fn slots(file: &[u8]) -> [Option<Checkpoint>; 2] {
        let Some(file) = file.get(..FILE_BYTES) else { return [None; 2] };
        let (first, second) = file.split_at(PAGE_BYTES);
        [Checkpoint::decode(first, 0), Checkpoint::decode(second, 1)]
    }

    /// The slot that should be valid, too, and is not. The first statement goes to the second slot, and leaves the first one blank.
    pub fn bad_slot(file: &[u8]) -> Option<BadSlot> {
        let (number, valid) = match Checkpoint::slots(file) {
            [None, Some(valid)] => (0, valid),
            [Some(valid), None] => (1, valid),
            [None, None] | [Some(_), Some(_)] => return None,
        };
        let page = &file[usize::from(number) * PAGE_BYTES..][..PAGE_BYTES];
        let is_unused = valid.sequence == 1 && page.iter().all(|&byte| byte == 0);
        let is_rotten = is_one_bit_off(page, number.into());
        (!is_unused).then_some(BadSlot { number, is_rotten })
    }

    /// The newest valid statement of a checkpoint file.
    pub fn newest(file: &[u8]) -> Option<Checkpoint> {
        Checkpoint::slots(file).into_iter().flatten().max_by_key(|checkpoint| checkpoint.sequence)
    }
}

fn is_known(version: u16) -> bool {
    matches!(version, VERSION | VERSION_UNSUMMED)
}

/// Whether a slot holds a statement of any version.
fn is_sound(page: &[u8]) -> bool {
    let mut copy = page.to_vec();
    copy[16..24].fill(0);
    page[..8] == MAGIC && page[16..24] == xxh3_64(&copy).to_le_bytes()
}

/// Whether a slot would be valid with one bit turned. What a torn write leaves never is: two statements differ in many bits of
/// their sums.
fn is_one_bit_off(page: &[u8], slot: u64) -> bool {
    let is_set = |bit: &usize| page[bit / 8] >> (bit % 8) & 1 == 1;
    let strays: Vec<usize> = (USED_BYTES * 8..PAGE_BYTES * 8).filter(is_set).take(2).collect();
    let suspects = match strays[..] {
        [] => 0..USED_BYTES * 8,
        [stray] => stray..stray + 1,
        _ => return false,
    };
    let mut page = page.to_vec();
    suspects.into_iter().any(|bit| {
        page[bit / 8] ^= 1 << (bit % 8);
        let is_valid = Checkpoint::decode(&page, slot).is_some();
        page[bit / 8] ^= 1 << (bit % 8);
        is_valid
    })
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
            has_sums: sequence > 1,
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

    /// An older program would take up writing where the later one had long been, with a journal that has no longer what is between.
    #[test]
    fn a_statement_of_a_later_version_is_told_in_either_slot() {
        for slot in 0..2 {
            let mut bytes = file(&[statement(1), statement(2)]);
            assert_eq!(Checkpoint::unknown_version(&bytes), None);
            let page = &mut bytes[slot * PAGE_BYTES..][..PAGE_BYTES];
            page[8] = 3;
            assert!(!is_sound(page), "the sum covers it");
            page[16..24].fill(0);
            let sum = xxh3_64(page);
            page[16..24].copy_from_slice(&sum.to_le_bytes());
            assert_eq!(Checkpoint::unknown_version(&bytes), Some(3));
        }
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

    /// Every bit of either slot; whatever else is there may be a torn write.
    #[test]
    fn a_flipped_bit_is_told_from_a_torn_write() {
        let sound = file(&[statement(4), statement(5)]);
        assert_eq!(Checkpoint::bad_slot(&sound), None);
        for bit in 0..FILE_BYTES * 8 {
            let mut bad = sound.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let number = u8::from(bit / 8 >= PAGE_BYTES);
            assert_eq!(Checkpoint::bad_slot(&bad), Some(BadSlot { number, is_rotten: true }), "bit {bit}");
        }
        let mut torn = sound.clone();
        // Half of the next statement, which goes to the slot of the older one.
        let mut next = vec![0; PAGE_BYTES];
        statement(6).encode(&mut next);
        torn[..40].copy_from_slice(&next[..40]);
        let unclear = Some(BadSlot { number: 0, is_rotten: false });
        assert_eq!(Checkpoint::bad_slot(&torn), unclear);
        torn[..PAGE_BYTES].fill(0);
        assert_eq!(Checkpoint::bad_slot(&torn), unclear, "it was written to before");
        torn[PAGE_BYTES..].fill(0);
        assert_eq!(Checkpoint::bad_slot(&torn), None, "no valid slot is another error");
        assert_eq!(Checkpoint::bad_slot(&file(&[statement(1)])), None, "the other was never written");
    }

    #[test]
    fn a_slot_in_the_wrong_place_is_not_believed() {
        let mut bytes = vec![0; FILE_BYTES];
        statement(1).encode(&mut bytes[..PAGE_BYTES]);
        assert_eq!(Checkpoint::newest(&bytes), None);
    }
}
