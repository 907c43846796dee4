//! A few recently used values, for chunks and open files of a view: bounded, and so small that a scan finds them.

use std::cell::RefCell;
use std::collections::VecDeque;

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
}
