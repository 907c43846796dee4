//! Turns on ranges: requests that overlap go one after the other in the order in which they asked; others pass.

use std::cell::{Cell, RefCell};

use futures::channel::oneshot;

use crate::units::SectorRange;

/// Who has, or waits for, which range.
#[derive(Default)]
pub(super) struct Turns {
    entries: RefCell<Vec<Entry>>,
    next_id: Cell<u64>,
}

struct Entry {
    id: u64,
    range: SectorRange,
    /// Dropped, and with it heard, when the entry goes.
    waiters: Vec<oneshot::Sender<()>>,
}

/// A turn on a range, until it is dropped.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    id: u64,
}

impl Turns {
    /// Waits for everyone who asked before for a part of `range`.
    pub(super) async fn take(&self, range: SectorRange) -> Turn<'_> {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let mut before = Vec::new();
        {
            let mut entries = self.entries.borrow_mut();
            for entry in entries.iter_mut().filter(|entry| entry.range.intersection(range).is_some()) {
                let (sender, receiver) = oneshot::channel::<()>();
                entry.waiters.push(sender);
                before.push(receiver);
            }
            entries.push(Entry { id, range, waiters: Vec::new() });
        }
        // From here on the entry goes with the turn, also if the wait itself is given up.
        let turn = Turn { turns: self, id };
        for receiver in before {
            // Nothing is ever sent: the sender's end is the news.
            let _ = receiver.await;
        }
        turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.entries.borrow_mut().retain(|entry| entry.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn range(start: u64, end: u64) -> SectorRange {
        SectorRange::new(start, end)
    }

    #[test]
    fn overlapping_requests_go_in_order_and_others_pass() {
        let turns = Turns::default();
        let first = turns.take(range(0, 8)).now_or_never().expect("nobody is before");
        let mut second = Box::pin(turns.take(range(4, 12)));
        assert!(second.as_mut().now_or_never().is_none(), "it overlaps the first");
        let mut third = Box::pin(turns.take(range(10, 20)));
        assert!(third.as_mut().now_or_never().is_none(), "it overlaps the second, which waits");
        let other = turns.take(range(20, 30)).now_or_never().expect("it overlaps none");
        drop(first);
        let second = second.as_mut().now_or_never().expect("the first is done");
        assert!(third.as_mut().now_or_never().is_none());
        drop((second, other));
        assert!(third.as_mut().now_or_never().is_some());
    }

    #[test]
    fn who_gives_up_waiting_holds_up_nobody_and_lets_nobody_past_another() {
        let turns = Turns::default();
        let first = turns.take(range(0, 8)).now_or_never().expect("nobody is before");
        let mut second = Box::pin(turns.take(range(0, 8)));
        assert!(second.as_mut().now_or_never().is_none());
        let mut third = Box::pin(turns.take(range(0, 8)));
        assert!(third.as_mut().now_or_never().is_none());
        drop(second);
        assert!(third.as_mut().now_or_never().is_none(), "the first still has its turn");
        drop(first);
        assert!(third.as_mut().now_or_never().is_some());
    }
}
