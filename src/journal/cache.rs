//! Recently written frames, kept in memory: destage and deltas read most of what they need from here instead of
//! from the device.
//!
//! Bounded by bytes; the oldest frames leave first, and a segment's frames leave when it is recycled. Losing an
//! entry costs a read, never correctness.

use std::collections::{BTreeMap, VecDeque};

use crate::journal::segments::SegmentIndex;
use crate::storage::Slice;
use crate::units::{SECTOR_BYTES, to_usize};

/// Frames by where they start.
#[derive(Debug)]
pub struct FrameCache {
    frames: BTreeMap<(SegmentIndex, u32), Slice>,
    order: VecDeque<(SegmentIndex, u32)>,
    bytes: usize,
    bytes_max: usize,
}

impl FrameCache {
    /// An empty cache that keeps at most `bytes_max`.
    pub fn new(bytes_max: usize) -> FrameCache {
        FrameCache { frames: BTreeMap::new(), order: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Keeps a written frame that starts at `sector` of `segment`.
    pub fn insert(&mut self, segment: SegmentIndex, sector: u32, frame: Slice) {
        self.bytes += frame.len();
        self.order.push_back((segment, sector));
        if let Some(old) = self.frames.insert((segment, sector), frame) {
            self.bytes -= old.len();
        }
        while self.bytes > self.bytes_max {
            let Some(key) = self.order.pop_front() else { break };
            self.remove(key);
        }
    }

    /// The bytes of `sectors` sectors at `sector` of `segment`, if a frame that holds them all is here.
    pub fn get(&self, segment: SegmentIndex, sector: u32, sectors: u64) -> Option<Slice> {
        let (&(found, first), frame) = self.frames.range(..=(segment, sector)).next_back()?;
        let start =
            to_usize(u64::from(sector - if found == segment { first } else { return None }) * SECTOR_BYTES);
        let end = start + to_usize(sectors * SECTOR_BYTES);
        (end <= frame.len()).then(|| frame.slice(start..end))
    }

    /// Forgets the frames of a segment.
    pub fn forget(&mut self, segment: SegmentIndex) {
        let keys: Vec<_> =
            self.frames.range((segment, 0)..=(segment, u32::MAX)).map(|(&key, _)| key).collect();
        for key in keys {
            self.remove(key);
        }
        self.order.retain(|&(index, _)| index != segment);
    }

    /// Forgets everything: what an idle group does with its memory.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.order.clear();
        self.bytes = 0;
    }

    /// Bytes kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn remove(&mut self, key: (SegmentIndex, u32)) {
        if let Some(frame) = self.frames.remove(&key) {
            self.bytes -= frame.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Buffer;

    fn frame(byte: u8) -> Slice {
        let mut buffer = Buffer::zeroed(8192);
        buffer.fill(byte);
        buffer.freeze()
    }

    #[test]
    fn a_part_of_a_kept_frame_is_found_and_nothing_else() {
        let mut cache = FrameCache::new(1 << 20);
        cache.insert(SegmentIndex(1), 16, frame(7));
        assert_eq!(cache.get(SegmentIndex(1), 24, 8).map(|slice| slice[0]), Some(7));
        assert!(cache.get(SegmentIndex(1), 8, 8).is_none());
        assert!(cache.get(SegmentIndex(1), 28, 8).is_none());
        assert!(cache.get(SegmentIndex(2), 16, 8).is_none());
    }

    #[test]
    fn the_oldest_leave_first_and_bytes_are_counted() {
        let mut cache = FrameCache::new(2 * 8192);
        for index in 0..3 {
            cache.insert(SegmentIndex(index), 0, frame(1));
        }
        assert!(cache.get(SegmentIndex(0), 0, 8).is_none());
        assert!(cache.get(SegmentIndex(2), 0, 8).is_some());
        assert_eq!(cache.bytes(), 2 * 8192);
        cache.forget(SegmentIndex(2));
        assert!(cache.get(SegmentIndex(2), 0, 8).is_none());
        assert_eq!(cache.bytes(), 8192);
    }
}
