//! Where the payloads of a segment stand, and their sums: what whoever reads one back compares it with.
//!
//! A payload is read and checked whole: it is what one checksum and one seal cover, at most 64 KiB. The table
//! is filled by the writer as frames are submitted, and at opening from what was accepted; it goes when the segment
//! is recycled. It takes 16 bytes a record that has a payload, 32 where it is sealed.
//!
//! Invariant: payloads ascend and do not overlap, for frames are only ever appended to a segment.

use std::rc::Rc;

use xxhash_rust::xxh3::xxh3_64;

use crate::format::frame::Frame;
use crate::journal::keys::FrameKey;
use crate::seal::{TAG_BYTES, Tag};
use crate::units::SECTOR_BYTES;

/// A record's payload, as it stands in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPayload {
    /// Its first sector, counted from the segment's start.
    pub sector: u32,
    /// Its length in sectors.
    pub sectors: u32,
    /// xxh3-64 of its bytes.
    pub sum: u64,
}

impl StoredPayload {
    /// The sector just past it.
    pub fn end(&self) -> u32 {
        self.sector + self.sectors
    }

    /// Byte offset of its start in the segment.
    pub fn byte_offset(&self) -> u64 {
        u64::from(self.sector) * SECTOR_BYTES
    }

    /// Whether `bytes` are what was stored.
    pub fn is_sound(&self, bytes: &[u8]) -> bool {
        bytes.len() as u64 == u64::from(self.sectors) * SECTOR_BYTES && xxh3_64(bytes) == self.sum
    }
}

/// How a payload is sealed.
#[derive(Clone, Debug)]
pub struct PayloadSeal {
    /// Under which key.
    pub key: Rc<FrameKey>,
    /// Its tag.
    pub tag: Tag,
}

/// Payloads of consecutive frames of one incarnation in one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedPayloads {
    /// In the order of their places.
    pub payloads: Vec<StoredPayload>,
    /// Their tags, if they are sealed.
    pub tags: Vec<Tag>,
}

/// The payloads of one segment, in the order of their places.
#[derive(Debug, Default)]
pub struct Payloads {
    table: Vec<StoredPayload>,
    /// A tag for each, where the group is sealed.
    tags: Vec<Tag>,
    /// From which payload on which key sealed them.
    keys: Vec<(usize, Rc<FrameKey>)>,
}

impl Payloads {
    /// Adds those of a frame, which lies behind all that were added before, and was sealed under `key`.
    pub fn add(&mut self, frame: &Frame, key: Option<&Rc<FrameKey>>) {
        let base = frame.payload_base();
        self.use_key(key);
        for (index, record) in
            frame.records.iter().enumerate().filter(|(_, record)| record.payload.sectors > 0)
        {
            let payload = record.payload;
            self.push(StoredPayload {
                sector: base + payload.sector,
                sectors: payload.sectors,
                sum: payload.sum,
            });
            self.tags.extend(frame.seal.as_ref().map(|seal| seal.payloads[index]));
        }
    }

    fn use_key(&mut self, key: Option<&Rc<FrameKey>>) {
        let Some(key) = key else { return };
        if self.keys.last().is_none_or(|(_, last)| !Rc::ptr_eq(last, key)) {
            self.keys.push((self.table.len(), Rc::clone(key)));
        }
    }

    /// Adds one, which lies behind all that were added before.
    pub fn push(&mut self, payload: StoredPayload) {
        let end = self.table.last().map_or(0, StoredPayload::end);
        assert!(payload.sector >= end, "frames are appended: {payload:?} after sector {end}");
        self.table.push(payload);
    }

    /// The payload that holds `sectors` sectors from `sector` on.
    pub fn find(&self, sector: u32, sectors: u64) -> Option<(StoredPayload, Option<PayloadSeal>)> {
        let index = self.table.partition_point(|payload| payload.end() <= sector);
        let found = *self.table.get(index)?;
        let holds = found.sector <= sector && u64::from(sector) + sectors <= u64::from(found.end());
        holds.then(|| (found, self.seal_of(index)))
    }

    fn seal_of(&self, index: usize) -> Option<PayloadSeal> {
        let tag = *self.tags.get(index)?;
        let (_, key) = &self.keys[self.keys.partition_point(|(first, _)| *first <= index) - 1];
        Some(PayloadSeal { key: Rc::clone(key), tag })
    }

    /// What the table takes.
    pub fn memory_bytes(&self) -> usize {
        self.table.len() * size_of::<StoredPayload>() + self.tags.len() * TAG_BYTES
    }

    /// Those that begin within `sectors`.
    pub fn within(&self, sectors: &std::ops::Range<u32>) -> ListedPayloads {
        let first = self.table.partition_point(|payload| payload.sector < sectors.start);
        let end = self.table.partition_point(|payload| payload.sector < sectors.end);
        let tags = self.tags.get(first..end).unwrap_or_default().to_vec();
        ListedPayloads { payloads: self.table[first..end].to_vec(), tags }
    }

    /// Adds several, which lie behind all that were added before, and were sealed under `key`.
    pub fn extend(&mut self, listed: ListedPayloads, key: Option<&Rc<FrameKey>>) {
        let ListedPayloads { payloads, tags } = listed;
        let Some(first) = payloads.first() else { return };
        let end = self.table.last().map_or(0, StoredPayload::end);
        assert!(first.sector >= end, "frames are appended: {first:?} after sector {end}");
        self.use_key(key);
        self.tags.extend(tags);
        if self.table.is_empty() { self.table = payloads } else { self.table.extend(payloads) }
    }

    /// Forgets all: the segment is used anew.
    pub fn clear(&mut self) {
        *self = Payloads::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(sector: u32, sectors: u32) -> StoredPayload {
        StoredPayload { sector, sectors, sum: u64::from(sector) }
    }

    #[test]
    fn a_part_is_found_in_the_payload_that_holds_all_of_it_and_nowhere_else() {
        let mut payloads = Payloads::default();
        for (sector, sectors) in [(8, 8), (16, 1), (24, 128)] {
            payloads.push(payload(sector, sectors));
        }
        for (sector, sectors, found) in [
            (8, 8, Some(8)),
            (15, 1, Some(8)),
            (16, 1, Some(16)),
            (24, 128, Some(24)),
            (151, 1, Some(24)),
            (0, 1, None),
            (7, 2, None),
            (15, 2, None),
            (17, 1, None),
            (151, 2, None),
            (152, 1, None),
        ] {
            let answer = payloads.find(sector, sectors).map(|(payload, _)| payload.sector);
            assert_eq!(answer, found, "{sectors} at {sector}");
        }
    }

    #[test]
    #[should_panic(expected = "frames are appended")]
    fn what_overlaps_is_our_own_bug() {
        let mut payloads = Payloads::default();
        payloads.push(payload(8, 8));
        payloads.push(payload(15, 1));
    }

    #[test]
    fn other_bytes_or_another_length_are_not_what_was_stored() {
        let bytes = [7; 512];
        let stored = StoredPayload { sector: 8, sectors: 1, sum: xxh3_64(&bytes) };
        assert!(stored.is_sound(&bytes));
        assert!(!stored.is_sound(&[7; 1024]));
        let mut flipped = bytes;
        flipped[300] ^= 4;
        assert!(!stored.is_sound(&flipped));
    }
}
