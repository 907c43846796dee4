//! The intake: how any thread hands items to an owner thread, without a lock and with few wake-ups.
//!
//! It is a lock-free queue plus two words that answer the two questions that a queue leaves open:
//!
//! ```text
//!  asleep   bool                    may the owner sleep?   owner:    asleep = true │ fence │ empty?  → sleep
//!                                                          producer: push          │ fence │ asleep? → wake
//!  entry    closed │ entering       is all of it drained?  producer: entering + 1, unless closed │ push │ − 1
//!                                                          owner:    closed, entering = 0, then empty → finished
//! ```
//!
//! Each side of `asleep` writes its own word and then reads the other's, with a sequentially consistent fence
//! between; so at least one of them sees the other, and no wake-up is lost. Producers pay for a wake-up only when
//! the owner sleeps, and only one of them pays; the owner then drains all that has gathered.
//!
//! `entering` counts the producers that have seen the intake open and may not have pushed yet. Once it is zero
//! under the closed bit, no item can arrive any more: what was accepted is in the queue, all else was refused and
//! given back.
//!
//! Invariant: an accepted item is drained exactly once, in the order in which its producer published; an item
//! published after the close is given back. The intake does not bound the queue: each session's limit of requests
//! in flight does. `tests/loom_intake.rs` checks all of it over every interleaving within bounds, and that four
//! ways to get it wrong are found.

use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use crate::sync::{Arc, Queue};

/// Ends an owner's sleep. A wake-up of an owner that is awake must end its next sleep at once.
pub trait Wake: Send + Sync {
    /// Ends the owner's sleep.
    fn wake(&self);
}

/// Set in `entry` once nothing is accepted any more; the other bits count the entering producers.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// The owner's end; dropping it closes the intake.
pub struct Intake<T> {
    shared: Arc<Shared<T>>,
}

/// A producer's end.
pub struct Publisher<T> {
    shared: Arc<Shared<T>>,
}

/// The intake was closed; the item comes back.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed<T>(pub T);

struct Shared<T> {
    queue: Queue<T>,
    entry: AtomicUsize,
    asleep: AtomicBool,
    waker: Box<dyn Wake>,
    #[cfg(afterimage_loom)]
    flaw: Flaw,
}

/// Ways to get the protocol wrong, planted to prove that the loom test finds them.
#[cfg(afterimage_loom)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The real protocol.
    None,
    /// The owner looks for items first and says afterwards that it sleeps.
    AnnouncedAfterCheck,
    /// A producer looks whether the owner sleeps first and pushes afterwards.
    PushedAfterCheck,
    /// No fence orders a side's write before its read of the other's.
    NoFence,
    /// The owner takes closed and empty for finished, whoever is entering.
    EnteringNotCounted,
}

/// An intake, and its first publisher, for an owner that `waker` wakes.
pub fn intake<T>(waker: impl Wake + 'static) -> (Publisher<T>, Intake<T>) {
    let shared = Shared {
        queue: Queue::new(),
        entry: AtomicUsize::new(0),
        asleep: AtomicBool::new(false),
        waker: Box::new(waker),
        #[cfg(afterimage_loom)]
        flaw: Flaw::None,
    };
    ends(shared)
}

/// An intake with a flaw.
#[cfg(afterimage_loom)]
pub fn flawed_intake<T>(waker: impl Wake + 'static, flaw: Flaw) -> (Publisher<T>, Intake<T>) {
    let shared = Shared {
        queue: Queue::new(),
        entry: AtomicUsize::new(0),
        asleep: AtomicBool::new(false),
        waker: Box::new(waker),
        flaw,
    };
    ends(shared)
}

fn ends<T>(shared: Shared<T>) -> (Publisher<T>, Intake<T>) {
    let shared = Arc::new(shared);
    (Publisher { shared: Arc::clone(&shared) }, Intake { shared })
}

impl<T> Publisher<T> {
    /// Hands `item` to the owner; never waits. Once the intake is closed the item comes back.
    pub fn publish(&self, item: T) -> Result<(), Closed<T>> {
        let shared = &*self.shared;
        // Acquire and release on `entry` order a push before the owner's view of its producer having left.
        if shared.entry.fetch_add(1, Ordering::Acquire) & CLOSED != 0 {
            shared.leave();
            return Err(Closed(item));
        }
        if shared.flawed_by_pushing_late() {
            shared.wake_if_asleep();
            shared.queue.push(item);
            shared.entry.fetch_sub(1, Ordering::Release);
            return Ok(());
        }
        shared.queue.push(item);
        shared.leave();
        Ok(())
    }
}

impl<T> Shared<T> {
    /// Ends a producer's entering, whether it pushed or was refused: the owner may be waiting for either.
    fn leave(&self) {
        self.entry.fetch_sub(1, Ordering::Release);
        self.wake_if_asleep();
    }

    fn wake_if_asleep(&self) {
        self.order_write_before_read();
        // The load spares the owner's cache line while it is awake; the swap picks the one producer that wakes.
        if self.asleep.load(Ordering::Relaxed) && self.set_asleep(false) {
            self.waker.wake();
        }
    }

    /// Sets `asleep`, and tells what it was. Always a read-modify-write: these are ordered among each other, where
    /// loom would let a plain store pass another thread's swap that it cannot pass.
    fn set_asleep(&self, asleep: bool) -> bool {
        self.asleep.swap(asleep, Ordering::Relaxed)
    }

    fn is_finished(&self) -> bool {
        let entry = self.entry.load(Ordering::Acquire);
        let none_enters = entry == CLOSED || (entry & CLOSED != 0 && self.flawed_by_not_counting());
        none_enters && self.queue.is_empty()
    }
}

impl<T> Intake<T> {
    /// Moves up to `limit` items to `items`; returns how many.
    pub fn drain(&mut self, limit: usize, items: &mut Vec<T>) -> usize {
        let before = items.len();
        items.extend(std::iter::from_fn(|| self.shared.queue.pop()).take(limit));
        items.len() - before
    }

    /// Announces that the owner is about to sleep. `true`: it may, since whoever publishes from now on wakes it.
    /// `false`: there is something to drain, or the intake is finished.
    ///
    /// After the sleep, however it ended, the owner says so with [`Intake::awake`].
    #[must_use]
    pub fn prepare_to_sleep(&mut self) -> bool {
        let shared = &*self.shared;
        if shared.flawed_by_announcing_late() {
            let idle = shared.queue.is_empty() && !shared.is_finished();
            shared.set_asleep(idle);
            return idle;
        }
        shared.set_asleep(true);
        shared.order_write_before_read();
        let idle = shared.queue.is_empty() && !shared.is_finished();
        if !idle {
            self.awake();
        }
        idle
    }

    /// Says that the owner is awake: nobody needs to wake it.
    pub fn awake(&mut self) {
        self.shared.set_asleep(false);
    }

    /// Closes the intake: what is published from now on is given back. What was accepted is still drained, until
    /// [`Intake::is_finished`].
    pub fn close(&mut self) {
        self.shared.entry.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Whether the intake is closed and everything that it accepted was drained.
    pub fn is_finished(&self) -> bool {
        self.shared.is_finished()
    }
}

#[cfg(not(afterimage_loom))]
impl<T> Shared<T> {
    fn order_write_before_read(&self) {
        fence(Ordering::SeqCst);
    }

    const fn flawed_by_pushing_late(&self) -> bool {
        false
    }

    const fn flawed_by_announcing_late(&self) -> bool {
        false
    }

    const fn flawed_by_not_counting(&self) -> bool {
        false
    }
}

#[cfg(afterimage_loom)]
impl<T> Shared<T> {
    fn order_write_before_read(&self) {
        if self.flaw != Flaw::NoFence {
            fence(Ordering::SeqCst);
        }
    }

    fn flawed_by_pushing_late(&self) -> bool {
        self.flaw == Flaw::PushedAfterCheck
    }

    fn flawed_by_announcing_late(&self) -> bool {
        self.flaw == Flaw::AnnouncedAfterCheck
    }

    fn flawed_by_not_counting(&self) -> bool {
        self.flaw == Flaw::EnteringNotCounted
    }
}

impl<T> Clone for Publisher<T> {
    fn clone(&self) -> Publisher<T> {
        Publisher { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Intake<T> {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(all(test, not(afterimage_loom)))]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::thread;

    use super::*;

    /// Rings a channel of one place: like an eventfd, it remembers one wake-up.
    struct Bell(SyncSender<()>);

    impl Wake for Bell {
        fn wake(&self) {
            // A full channel means that a wake-up is already remembered.
            let _ = self.0.try_send(());
        }
    }

    fn with_bell<T>() -> (Publisher<T>, Intake<T>, Receiver<()>) {
        let (ring, rung) = sync_channel(1);
        let (publisher, intake) = intake(Bell(ring));
        (publisher, intake, rung)
    }

    #[test]
    fn an_owner_that_is_awake_is_not_woken_and_one_that_sleeps_is_woken_once() {
        let (publisher, mut intake, rung) = with_bell();
        publisher.publish(1).unwrap();
        assert!(rung.try_recv().is_err(), "nobody slept");
        assert!(!intake.prepare_to_sleep(), "there is something to drain");
        let mut items = Vec::new();
        assert_eq!(intake.drain(usize::MAX, &mut items), 1);
        assert!(intake.prepare_to_sleep());
        publisher.publish(2).unwrap();
        rung.try_recv().expect("a sleeping owner is woken");
        publisher.publish(3).unwrap();
        assert!(rung.try_recv().is_err(), "woken once");
        intake.awake();
        assert_eq!(intake.drain(1, &mut items), 1, "the limit holds");
        assert_eq!(intake.drain(usize::MAX, &mut items), 1);
        assert_eq!(items, [1, 2, 3]);
    }

    #[test]
    fn what_was_accepted_before_the_close_is_drained_and_the_rest_comes_back() {
        let (publisher, mut intake, _rung) = with_bell();
        publisher.publish(1).unwrap();
        intake.close();
        assert_eq!(publisher.publish(2), Err(Closed(2)));
        assert!(!intake.is_finished());
        let mut items = Vec::new();
        intake.drain(usize::MAX, &mut items);
        assert_eq!(items, [1]);
        assert!(intake.is_finished());
        assert!(!intake.prepare_to_sleep(), "nothing will wake a finished owner");
    }

    #[test]
    fn a_dropped_owner_refuses() {
        let (publisher, intake, _rung) = with_bell();
        drop(intake);
        assert_eq!(publisher.publish(1), Err(Closed(1)));
    }

    #[test]
    fn four_producers_keep_their_orders_while_the_owner_sleeps_between() {
        const PRODUCERS: usize = 4;
        const ITEMS: usize = 50_000;
        let (publisher, mut intake, rung) = with_bell();
        let producers: [_; PRODUCERS] = std::array::from_fn(|producer| {
            let publisher = publisher.clone();
            let publish = move |item| publisher.publish((producer, item)).unwrap();
            thread::spawn(move || (0..ITEMS).for_each(publish))
        });
        let mut next = [0; PRODUCERS];
        let mut items = Vec::new();
        while next.iter().sum::<usize>() < PRODUCERS * ITEMS {
            if intake.drain(1000, &mut items) == 0 && intake.prepare_to_sleep() {
                rung.recv().unwrap();
                intake.awake();
            }
            for (producer, item) in items.drain(..) {
                assert_eq!(item, next[producer], "producer {producer}'s order");
                next[producer] += 1;
            }
        }
        for producer in producers {
            producer.join().unwrap();
        }
        assert_eq!(intake.drain(usize::MAX, &mut items), 0);
    }
}
