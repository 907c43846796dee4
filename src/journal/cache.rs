//! Recently written frames, kept in memory: destage and deltas read most of what they need from here instead of
//! from the device.
//!
//! Bounded by bytes, those of each group and those of all groups together; the oldest frames leave first, and a segment's frames leave
//! when it is recycled. Losing an entry costs a read, never correctness.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::journal::segments::SegmentIndex;
use crate::storage::Slice;
use crate::units::{SECTOR_BYTES, to_usize};

/// What the caches of all groups take together, on whatever thread each is.
///
/// A cache that grows while they take more than they may gives up its own oldest frames, down to its even part. One that has more than that and
/// does not grow keeps it: so they may take up to twice as much for as long as it rests.
#[derive(Debug)]
pub struct SharedFrames {
    bytes: AtomicUsize,
    bytes_max: usize,
    caches: AtomicUsize,
}

impl SharedFrames {
    /// At most so many bytes in all.
    pub fn at_most(bytes_max: usize) -> Arc<SharedFrames> {
        Arc::new(SharedFrames { bytes: AtomicUsize::new(0), bytes_max, caches: AtomicUsize::new(0) })
    }

    /// As many as the caches may keep each.
    pub fn unbounded() -> Arc<SharedFrames> {
        SharedFrames::at_most(usize::MAX)
    }

    /// Bytes that all of them keep.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The most that they may keep.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// What one that has grown may keep now.
    fn part(&self) -> usize {
        match self.bytes() > self.bytes_max {
            true => self.bytes_max / self.caches.load(Ordering::Relaxed).max(1),
            false => usize::MAX,
        }
    }
}

/// Frames by where they start.
#[derive(Debug)]
pub struct FrameCache {
    frames: BTreeMap<(SegmentIndex, u32), Slice>,
    order: VecDeque<(SegmentIndex, u32)>,
    bytes: usize,
    bytes_max: usize,
    shared: Arc<SharedFrames>,
}

impl FrameCache {
    /// An empty cache that keeps at most `bytes_max`, and what `shared` has room for.
    pub fn new(bytes_max: usize, shared: Arc<SharedFrames>) -> FrameCache {
        shared.caches.fetch_add(1, Ordering::Relaxed);
        FrameCache { frames: BTreeMap::new(), order: VecDeque::new(), bytes: 0, bytes_max, shared }
    }

    /// Keeps a written frame that starts at `sector` of `segment`.
    pub fn insert(&mut self, segment: SegmentIndex, sector: u32, frame: Slice) {
        self.add(frame.len());
        self.order.push_back((segment, sector));
        if let Some(old) = self.frames.insert((segment, sector), frame) {
            self.subtract(old.len());
        }
        while self.bytes > self.bytes_max.min(self.shared.part()) {
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
        self.subtract(self.bytes);
    }

    /// Bytes kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn remove(&mut self, key: (SegmentIndex, u32)) {
        if let Some(frame) = self.frames.remove(&key) {
            self.subtract(frame.len());
        }
    }

    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn subtract(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for FrameCache {
    fn drop(&mut self) {
        self.clear();
        self.shared.caches.fetch_sub(1, Ordering::Relaxed);
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
        let mut cache = FrameCache::new(1 << 20, SharedFrames::unbounded());
        cache.insert(SegmentIndex(1), 16, frame(7));
        assert_eq!(cache.get(SegmentIndex(1), 24, 8).map(|slice| slice[0]), Some(7));
        assert!(cache.get(SegmentIndex(1), 8, 8).is_none());
        assert!(cache.get(SegmentIndex(1), 28, 8).is_none());
        assert!(cache.get(SegmentIndex(2), 16, 8).is_none());
    }

    #[test]
    fn the_oldest_leave_first_and_bytes_are_counted() {
        let mut cache = FrameCache::new(2 * 8192, SharedFrames::unbounded());
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

    #[test]
    fn all_together_are_bounded_and_each_has_its_part() {
        let shared = SharedFrames::at_most(4 * 8192);
        let [mut idle, mut busy] = [(); 2].map(|()| FrameCache::new(1 << 20, Arc::clone(&shared)));
        let put = |cache: &mut FrameCache, index| cache.insert(SegmentIndex(index), 0, frame(1));
        (0..3).for_each(|index| put(&mut idle, index));
        (0..9).for_each(|index| put(&mut busy, index));
        // One has more than its half, and the other no less for it.
        assert_eq!((idle.bytes(), busy.bytes(), shared.bytes()), (3 * 8192, 2 * 8192, 5 * 8192));
        put(&mut idle, 9);
        assert_eq!((idle.bytes(), shared.bytes()), (2 * 8192, 4 * 8192));
        drop(idle);
        (0..9).for_each(|index| put(&mut busy, index));
        assert_eq!((busy.bytes(), shared.bytes()), (4 * 8192, 4 * 8192), "nobody else is there");
        drop(busy);
        assert_eq!(shared.bytes(), 0);
    }
}
