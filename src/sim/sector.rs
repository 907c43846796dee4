//! What the simulated clients write: every sector says which disk, which sector and which write it comes from, in all
//! of its bytes; so whatever comes back tells where it belongs, and a torn or exchanged sector tells on itself.
//!
//! Some writes are *forgeries*: each page of the disk is a valid header of a journal frame, another group's, that claims
//! the most. A guest may hold such pages, and they must never be taken for the journal's own.

use crate::format::frame::{DESCRIPTOR_BYTES, FIXED_BYTES, Frame, Payload, Record, RecordKind};
use crate::storage::sim::Random;
use crate::units::{
    DiskSlot, FrameNumber, GroupId, IncarnationId, Lsn, PAGE_BYTES, SECTOR_BYTES, SectorRange,
    SegmentSequence, TimelineId, to_usize,
};

/// Which write a sector's content comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u32);

impl Stamp {
    /// Zeros: nobody wrote there, or somebody zeroed it.
    pub const ZEROS: Stamp = Stamp(0);

    fn is_forgery(self) -> bool {
        self.0 % 4 == 3
    }
}

const SECTOR: usize = to_usize(SECTOR_BYTES);
const WORD: usize = size_of::<u64>();
const PAGE_SECTORS: u64 = PAGE_BYTES as u64 / SECTOR_BYTES;
/// Where a header's records start, how long each is, and where in it its range starts.
const FORGED_RECORDS_START: usize = FIXED_BYTES;
const FORGED_RECORD: usize = DESCRIPTOR_BYTES;
const FORGED_RECORD_RANGE: usize = 8;
/// Pages of a small segment.
const FORGED_PLACES: u32 = 8;

/// The bytes of `sectors` sectors from `start` on, as the write `stamp` leaves them on disk number `disk`.
pub fn content(disk: usize, start: u64, sectors: u64, stamp: Stamp) -> Vec<u8> {
    let mut bytes = vec![0; to_usize(sectors * SECTOR_BYTES)];
    for (sector, place) in (start..).zip(bytes.chunks_exact_mut(SECTOR)) {
        fill(place, disk, sector, stamp);
    }
    bytes
}

fn fill(place: &mut [u8], disk: usize, sector: u64, stamp: Stamp) {
    if stamp.is_forgery() {
        let page = forged_page(disk, sector - sector % PAGE_SECTORS, stamp);
        let start = to_usize(sector % PAGE_SECTORS) * SECTOR;
        place.copy_from_slice(&page[start..start + SECTOR]);
        return;
    }
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

/// A frame's header, full of records of zeros, each of which names disk, sector and write where its range starts.
fn forged_page(disk: usize, first_sector: u64, stamp: Stamp) -> [u8; PAGE_BYTES] {
    let of_record = |index: usize| {
        let sector = first_sector + ((FORGED_RECORDS_START + index * FORGED_RECORD) / SECTOR) as u64;
        let start = head(disk, sector, stamp);
        let range = SectorRange::new(start, start + 1);
        let kind = RecordKind::Zero { disk: DiskSlot(0), range, allocated: false };
        Record { kind, payload: Payload::default() }
    };
    let records = (0..(PAGE_BYTES - FORGED_RECORDS_START) / FORGED_RECORD).map(of_record).collect();
    let frame = Frame {
        group: GroupId(3),
        timeline: TimelineId(3),
        incarnation: IncarnationId(3),
        number: FrameNumber(1 << 40),
        chain: 0,
        first_lsn: Lsn(1 << 60),
        durable_through: Lsn(1 << 60),
        segment: SegmentSequence(1 << 40),
        // Where the page will stand is not for the guest to know, but it may guess.
        segment_page: stamp.0 / 4 % FORGED_PLACES,
        tail: SegmentSequence(1 << 40),
        records,
        payload_pages: 0,
        seal: None,
    };
    let mut page = [0; PAGE_BYTES];
    frame.encode_header(&mut page);
    page
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
    let word =
        |at: usize| u64::from_le_bytes(bytes[at..at + WORD].try_into().expect("a sector has many words"));
    let forged = word(FORGED_RECORDS_START + FORGED_RECORD_RANGE);
    let found = if forged >> 32 == head(disk, sector, Stamp::ZEROS) >> 32 { forged } else { word(0) };
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
    use crate::format::frame::UntrustedHeader;

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

    #[test]
    fn a_forgery_tells_its_write_and_passes_for_a_header() {
        let bytes = content(2, 5, 12, Stamp(7));
        assert_eq!(stamps(2, 5, &bytes), Ok(vec![Stamp(7); 12]));
        assert!(stamps(2, 13, &bytes).is_err(), "another sector's");
        let page = &bytes[3 * SECTOR..3 * SECTOR + PAGE_BYTES];
        let header = UntrustedHeader::read(page).expect("a header");
        let (frame, _) = header.parse(page).expect("a valid one");
        assert_eq!(frame.segment_page, 1);
    }
}
