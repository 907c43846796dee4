//! Blocks of sums that were read lately, of all images that one thread keeps.
//!
//! Invariant: of sectors of an image that no layer and no side file holds, a block that is here says what the image's newest one says.
//! Who writes blocks sees to it ([`crate::image::sums`]).

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use crate::format::sums::{Block, Copy};

/// Blocks that are kept, for all images of a thread together: 64 MiB, the sums of 8 GiB.
pub const BLOCKS_MAX: usize = 16 << 10;

/// Whose block: a number that an open file of sums has for itself, and the block's.
pub type Key = (u32, u64);

/// A block that is sound, and where it stands.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The block.
    pub sums: Rc<Block>,
    /// Which of its places counts.
    pub at: Copy,
}

/// The cache.
#[derive(Debug, Default)]
pub struct SumsCache {
    blocks: HashMap<Key, (Kept, Cell<bool>)>,
    /// In the order in which they came; one that was used since comes to the end again when its turn to go comes.
    order: VecDeque<Key>,
}

impl SumsCache {
    /// A block.
    pub fn get(&self, key: Key) -> Option<Kept> {
        let (kept, is_used) = self.blocks.get(&key)?;
        is_used.set(true);
        Some(kept.clone())
    }

    /// Keeps a block, in the place of what is kept of it.
    pub fn insert(&mut self, key: Key, block: Kept) {
        if let Some((kept, _)) = self.blocks.get_mut(&key) {
            *kept = block;
            return;
        }
        while self.order.len() >= BLOCKS_MAX {
            let Some(first) = self.order.pop_front() else { break };
            let is_used = self.blocks.get(&first).is_some_and(|(_, is_used)| is_used.take());
            if is_used {
                self.order.push_back(first);
            } else {
                self.blocks.remove(&first);
            }
        }
        self.order.push_back(key);
        self.blocks.insert(key, (block, Cell::new(false)));
    }

    /// Forgets some blocks.
    pub fn forget(&mut self, is_meant: impl Fn(&Key) -> bool) {
        self.blocks.retain(|key, _| !is_meant(key));
        self.order.retain(|key| !is_meant(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let mut cache = SumsCache::default();
        let block = |sums: Block| Kept { sums: Rc::new(sums), at: Copy::First };
        for number in 0..BLOCKS_MAX as u64 * 3 {
            cache.insert((0, number), block(Block::ZEROS));
            assert!(cache.get((0, 5)).is_some() || number < 5);
        }
        assert_eq!((cache.blocks.len(), cache.order.len()), (BLOCKS_MAX, BLOCKS_MAX));
        assert!(cache.get((0, 6)).is_none() && cache.get((1, 5)).is_none());
        cache.insert((0, 5), block(Block::UNKNOWN));
        assert_eq!(cache.get((0, 5)).as_ref().map(|kept| &*kept.sums), Some(&Block::UNKNOWN));
        assert_eq!((cache.blocks.len(), cache.order.len()), (BLOCKS_MAX, BLOCKS_MAX));
        cache.forget(|(owner, _)| *owner == 0);
        assert!(cache.blocks.is_empty() && cache.order.is_empty());
    }
}
