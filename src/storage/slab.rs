//! Values under small keys that are used again: what io_uring's 64 bits of user data point at.
//!
//! Its memory grows to the largest number of values held at once, and stays; inserting and removing then allocate
//! nothing.

/// Values by key.
#[derive(Debug)]
pub(super) struct Slab<T> {
    slots: Vec<Slot<T>>,
    /// First of the free slots, each of which names the next.
    free: Option<usize>,
    len: usize,
}

#[derive(Debug)]
enum Slot<T> {
    Taken(T),
    Free { next: Option<usize> },
}

impl<T> Slab<T> {
    pub(super) fn with_capacity(capacity: usize) -> Slab<T> {
        Slab { slots: Vec::with_capacity(capacity), free: None, len: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn insert(&mut self, value: T) -> usize {
        self.len += 1;
        let Some(key) = self.free else {
            self.slots.push(Slot::Taken(value));
            return self.slots.len() - 1;
        };
        match std::mem::replace(&mut self.slots[key], Slot::Taken(value)) {
            Slot::Free { next } => self.free = next,
            Slot::Taken(_) => unreachable!("slot {key} is on the free list"),
        }
        key
    }

    /// # Panics
    /// If nothing has this key.
    pub(super) fn get_mut(&mut self, key: usize) -> &mut T {
        match &mut self.slots[key] {
            Slot::Taken(value) => value,
            Slot::Free { .. } => panic!("nothing in flight has key {key}"),
        }
    }

    /// # Panics
    /// If nothing has this key.
    pub(super) fn remove(&mut self, key: usize) -> T {
        match std::mem::replace(&mut self.slots[key], Slot::Free { next: self.free }) {
            Slot::Taken(value) => {
                self.free = Some(key);
                self.len -= 1;
                value
            }
            Slot::Free { .. } => panic!("nothing in flight has key {key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_used_again_and_memory_does_not_grow() {
        let mut slab = Slab::with_capacity(2);
        let (first, second) = (slab.insert("a"), slab.insert("b"));
        for _ in 0..100 {
            assert_eq!(slab.remove(first), "a");
            assert_eq!(slab.insert("a"), first);
        }
        assert_eq!(*slab.get_mut(second), "b");
        assert_eq!(slab.slots.len(), 2);
        slab.remove(second);
        slab.remove(first);
        assert!(slab.is_empty());
        assert_eq!((slab.insert("c"), slab.insert("d")), (first, second));
    }

    #[test]
    #[should_panic(expected = "nothing in flight has key 0")]
    fn a_key_completes_once() {
        let mut slab = Slab::with_capacity(1);
        let key = slab.insert(());
        slab.remove(key);
        slab.remove(key);
    }
}
