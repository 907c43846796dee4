//! What threads share: std and crossbeam, or loom's models of them under `--cfg afterimage_loom`.
//!
//! Only the hand-over protocol ([`crate::journal::intake`]) is built on this module; everything else has one owner.
//! The cfg is our own because `--cfg loom` changes tokio too.

#[cfg(not(afterimage_loom))]
mod imp {
    pub use std::sync::Arc;
    pub use std::sync::atomic;

    use crossbeam::queue::SegQueue;

    /// An unbounded lock-free queue for many producers and one consumer.
    #[derive(Debug)]
    pub struct Queue<T>(SegQueue<T>);

    impl<T> Queue<T> {
        /// An empty queue.
        pub fn new() -> Queue<T> {
            Queue(SegQueue::new())
        }

        /// Adds an item at the end.
        pub fn push(&self, item: T) {
            self.0.push(item);
        }

        /// Takes the item at the front.
        pub fn pop(&self) -> Option<T> {
            self.0.pop()
        }

        /// Whether no push has begun that is not popped yet.
        pub fn is_empty(&self) -> bool {
            self.0.is_empty()
        }
    }
}

/// crossbeam's queue is invisible to loom, so the model has its own, of the same make: a push reserves a place with
/// one read-modify-write, fills it and then marks it full; a pop waits for the mark. Its orders are weaker than
/// crossbeam's (acquire and release, where that is sequentially consistent), so what holds on it holds on both.
#[cfg(afterimage_loom)]
mod imp {
    use std::sync::Mutex;

    pub use loom::sync::Arc;
    pub use loom::sync::atomic;

    use self::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// Pushes in the life of a queue: models are small.
    const PLACES: usize = 8;

    /// A queue for many producers and one consumer that takes eight pushes in all.
    #[derive(Debug)]
    pub struct Queue<T> {
        places: [Place<T>; PLACES],
        reserved: AtomicUsize,
        popped: AtomicUsize,
    }

    #[derive(Debug)]
    struct Place<T> {
        full: AtomicBool,
        /// Never contended: `full` says whose it is. Not loom's, to add no steps to the model.
        item: Mutex<Option<T>>,
    }

    impl<T> Queue<T> {
        /// An empty queue.
        pub fn new() -> Queue<T> {
            let place = |_| Place { full: AtomicBool::new(false), item: Mutex::new(None) };
            Queue {
                places: std::array::from_fn(place),
                reserved: AtomicUsize::new(0),
                popped: AtomicUsize::new(0),
            }
        }

        /// Adds an item at the end.
        pub fn push(&self, item: T) {
            let place = &self.places[self.reserved.fetch_add(1, Ordering::AcqRel)];
            *place.item.lock().expect("no panic while it is held") = Some(item);
            place.full.store(true, Ordering::Release);
        }

        /// Takes the item at the front; called by one thread only.
        pub fn pop(&self) -> Option<T> {
            if self.is_empty() {
                return None;
            }
            let popped = self.popped.load(Ordering::Relaxed);
            let place = &self.places[popped];
            while !place.full.load(Ordering::Acquire) {
                loom::thread::yield_now();
            }
            self.popped.store(popped + 1, Ordering::Relaxed);
            place.item.lock().expect("no panic while it is held").take()
        }

        /// Whether no push has begun that is not popped yet.
        pub fn is_empty(&self) -> bool {
            self.popped.load(Ordering::Relaxed) == self.reserved.load(Ordering::Acquire)
        }
    }
}

pub use imp::{Arc, Queue, atomic};

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue::new()
    }
}
