//! Recently used values, bounded: a few that a scan finds, for chunks and open files of a view, or many, for pages.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// The most recently used values, newest first.
pub(super) struct Recent<K, V> {
    entries: RefCell<VecDeque<(K, V)>>,
    entries_max: usize,
}

impl<K: Copy + PartialEq, V: Clone> Recent<K, V> {
    pub(super) fn new(entries_max: usize) -> Recent<K, V> {
        Recent { entries: RefCell::default(), entries_max }
    }

    pub(super) fn get(&self, key: K) -> Option<V> {
        let mut entries = self.entries.borrow_mut();
        let index = entries.iter().position(|(other, _)| *other == key)?;
        let entry = entries.remove(index)?;
        let value = entry.1.clone();
        entries.push_front(entry);
        Some(value)
    }

    pub(super) fn put(&self, key: K, value: V) {
        let mut entries = self.entries.borrow_mut();
        // Two readers may have missed the same key at once.
        entries.retain(|(other, _)| *other != key);
        entries.push_front((key, value));
        entries.truncate(self.entries_max);
    }
}

/// Many values in two generations: what is used comes into the younger one, and when that is full it becomes the older one,
/// in whose place it goes.
pub(super) struct Generations<K, V> {
    /// The younger one, the older one.
    entries: RefCell<[HashMap<K, V>; 2]>,
    generation_max: usize,
}

impl<K: Copy + Eq + Hash, V: Clone> Generations<K, V> {
    pub(super) fn new(generation_max: usize) -> Generations<K, V> {
        Generations { entries: RefCell::default(), generation_max }
    }

    pub(super) fn get(&self, key: K) -> Option<V> {
        let [younger, older] = &mut *self.entries.borrow_mut();
        if let Some(value) = younger.get(&key) {
            return Some(value.clone());
        }
        let value = older.remove(&key)?;
        self.insert(younger, older, key, value.clone());
        Some(value)
    }

    pub(super) fn put(&self, key: K, value: V) {
        let [younger, older] = &mut *self.entries.borrow_mut();
        self.insert(younger, older, key, value);
    }

    fn insert(&self, younger: &mut HashMap<K, V>, older: &mut HashMap<K, V>, key: K, value: V) {
        if younger.len() >= self.generation_max {
            *older = std::mem::take(younger);
        }
        younger.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let recent = Recent::new(2);
        recent.put(1, 'a');
        recent.put(2, 'b');
        assert_eq!(recent.get(1), Some('a'));
        recent.put(3, 'c');
        assert_eq!((recent.get(1), recent.get(2), recent.get(3)), (Some('a'), None, Some('c')));
    }

    #[test]
    fn what_is_used_outlives_a_generation() {
        let pages = Generations::new(2);
        pages.put(1, 'a');
        pages.put(2, 'b');
        pages.put(3, 'c');
        assert_eq!(pages.get(1), Some('a'));
        pages.put(4, 'd');
        pages.put(5, 'e');
        assert_eq!((pages.get(1), pages.get(2)), (Some('a'), None));
    }
}
