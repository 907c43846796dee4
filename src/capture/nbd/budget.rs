//! What all connections hold together: a [`Budget`] that they share, and each one's [`Account`] with it.
//!
//! A connection may always hold [`OWN_BYTES`], so that small requests go on whoever hoards. What it holds beyond comes out of the
//! budget, in steps, so that small requests touch no word that threads share. In all, connections hold no more than the budget
//! and `OWN_BYTES` each; only a reply that takes more than was reckoned for its request goes beyond, by its headers.
//!
//! Not a queue: who waits is told when there is room, and tries again. It is the owner of the connections, a data thread, that
//! waits, for all of its own:
//!
//! ```text
//!   who waits      awaited = bytes │ fence │ do they fit by now?    → sleep, unless they do
//!   who gives      held -= bytes   │ fence │ does what is awaited?  → wake
//! ```
//!
//! Each side writes its own word and then reads the other's, with a sequentially consistent fence between; so at least one of
//! them sees the other, and no wake-up is lost. `tests/loom_budget.rs` checks it over every interleaving within bounds.

use std::fmt;

use crate::sync::Arc;
use crate::sync::atomic::{AtomicUsize, Ordering, fence};

/// What each connection may hold whatever the others do: as much as 32 requests of 4 KiB.
pub const OWN_BYTES: usize = 128 << 10;
/// What an account takes or gives back is a multiple of this.
const STEP_BYTES: usize = 64 << 10;

/// What all connections may hold beyond their own.
pub struct Budget {
    limit: usize,
    held: AtomicUsize,
    /// By waiter: the least that one of its connections waits for; zero where none does.
    awaited: Box<[AtomicUsize]>,
    /// How often there was no room.
    refusals: AtomicUsize,
}

impl Budget {
    /// A budget of `limit` bytes, which `waiters` may wait for.
    pub fn new(limit: usize, waiters: usize) -> Budget {
        Budget {
            limit,
            held: AtomicUsize::new(0),
            awaited: (0..waiters).map(|_| AtomicUsize::new(0)).collect(),
            refusals: AtomicUsize::new(0),
        }
    }

    /// One that never runs out: a connection's own limits are all that holds.
    pub fn unlimited() -> Arc<Budget> {
        Arc::new(Budget::new(usize::MAX, 0))
    }

    /// The most that is given out.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// What is given out now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// How often there was no room, ever.
    pub fn refusals(&self) -> usize {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Whether anybody waits.
    pub fn is_awaited(&self) -> bool {
        self.awaited.iter().any(|awaited| awaited.load(Ordering::Relaxed) > 0)
    }

    /// Announces that `waiter` waits for `bytes`, zero that it does not wait any more. Whether it may sleep, since who makes
    /// room from now on finds it; otherwise there is room, and the announcement is taken back.
    #[must_use]
    pub fn wait_for(&self, waiter: usize, bytes: usize) -> bool {
        self.awaited[waiter].store(bytes, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if bytes == 0 || !self.fits(bytes) {
            return true;
        }
        // Somebody else may have found it at the same time: then it is woken for nothing.
        self.awaited[waiter].store(0, Ordering::Relaxed);
        false
    }

    /// The waiters for whom there is room now; each is told once, by whom it is told, and then waits no more. To be asked after
    /// whatever may have given something back.
    pub fn find_roused(&self, mut rouse: impl FnMut(usize)) {
        fence(Ordering::SeqCst);
        for (waiter, awaited) in self.awaited.iter().enumerate() {
            let bytes = awaited.load(Ordering::Relaxed);
            let is_ours = || awaited.compare_exchange(bytes, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            if bytes > 0 && self.fits(bytes) && is_ours() {
                rouse(waiter);
            }
        }
    }

    fn fits(&self, bytes: usize) -> bool {
        self.limit.saturating_sub(self.held.load(Ordering::Relaxed)) >= bytes
    }

    fn try_take(&self, bytes: usize) -> bool {
        let fits = |held: usize| held.checked_add(bytes).filter(|&held| held <= self.limit);
        let taken = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if !taken {
            self.refusals.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget")
            .field("limit", &self.limit)
            .field("held", &self.held())
            .finish_non_exhaustive()
    }
}

/// One connection's account: what it has of the budget. Dropping it gives that back.
pub struct Account {
    budget: Arc<Budget>,
    taken: usize,
    missing: usize,
}

impl Account {
    /// An account that has nothing of `budget` yet.
    pub fn new(budget: Arc<Budget>) -> Account {
        Account { budget, taken: 0, missing: 0 }
    }

    /// Whether the connection may hold `bytes` in all: takes what it lacks for that, if there is room.
    #[must_use]
    pub fn cover(&mut self, bytes: usize) -> bool {
        let lacks = due(bytes).saturating_sub(self.taken);
        if lacks > 0 && !self.budget.try_take(lacks) {
            self.missing = lacks;
            return false;
        }
        self.taken += lacks;
        self.missing = 0;
        true
    }

    /// Takes or gives back until the account has what is due for the `bytes` that the connection holds, room or not: they are
    /// held already.
    pub fn settle(&mut self, bytes: usize) {
        let due = due(bytes);
        if due < self.taken {
            self.budget.give_back(self.taken - due);
        } else if due > self.taken {
            self.budget.held.fetch_add(due - self.taken, Ordering::Relaxed);
        }
        self.taken = due;
    }

    /// What it has of the budget.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// What there was no room for, if [`Account::cover`] said so last; zero otherwise.
    pub fn missing(&self) -> usize {
        self.missing
    }

    /// It does not wait for room any more.
    pub fn wait_no_more(&mut self) {
        self.missing = 0;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.settle(0);
    }
}

/// What a connection that holds `bytes` must have of the budget.
fn due(bytes: usize) -> usize {
    bytes.saturating_sub(OWN_BYTES).next_multiple_of(STEP_BYTES)
}

#[cfg(all(test, not(afterimage_loom)))]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn roused(budget: &Budget) -> Vec<usize> {
        let mut waiters = Vec::new();
        budget.find_roused(|waiter| waiters.push(waiter));
        waiters
    }

    #[test]
    fn what_a_connection_may_hold_anyhow_is_not_taken() {
        let budget = Arc::new(Budget::new(0, 0));
        let mut account = Account::new(Arc::clone(&budget));
        assert!(account.cover(OWN_BYTES) && !account.cover(OWN_BYTES + 1));
        assert_eq!((account.taken(), account.missing(), budget.held()), (0, STEP_BYTES, 0));
        assert!(account.cover(1) && account.missing() == 0);
    }

    #[test]
    fn what_is_taken_is_given_back_in_part_and_when_the_account_ends() {
        let budget = Arc::new(Budget::new(3 * MIB, 0));
        let mut first = Account::new(Arc::clone(&budget));
        let mut second = Account::new(Arc::clone(&budget));
        assert!(first.cover(2 * MIB + OWN_BYTES));
        assert!(!second.cover(2 * MIB + OWN_BYTES), "only one of two is left");
        assert_eq!((second.missing(), budget.refusals()), (2 * MIB, 1));
        first.settle(MIB + OWN_BYTES);
        assert!(second.cover(2 * MIB + OWN_BYTES));
        assert_eq!(budget.held(), 3 * MIB);
        drop(second);
        assert_eq!(budget.held(), MIB);
        first.settle(0);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn what_is_held_already_is_counted_beyond_the_limit_and_keeps_others_out() {
        let budget = Arc::new(Budget::new(MIB, 0));
        let mut first = Account::new(Arc::clone(&budget));
        first.settle(2 * MIB + OWN_BYTES);
        assert_eq!(budget.held(), 2 * MIB);
        let mut second = Account::new(Arc::clone(&budget));
        assert!(!second.cover(OWN_BYTES + 1));
        first.settle(0);
        assert!(second.cover(OWN_BYTES + 1));
    }

    #[test]
    fn who_waits_is_told_once_when_there_is_room_for_it_and_not_before() {
        let budget = Arc::new(Budget::new(4 * MIB, 3));
        let mut account = Account::new(Arc::clone(&budget));
        assert!(account.cover(4 * MIB + OWN_BYTES));
        assert!(budget.wait_for(0, 2 * MIB) && budget.wait_for(2, MIB) && budget.is_awaited());
        assert!(roused(&budget).is_empty());
        account.settle(3 * MIB + OWN_BYTES);
        assert_eq!(roused(&budget), [2], "there is one, not two");
        assert!(roused(&budget).is_empty(), "told once");
        account.settle(0);
        assert!(!budget.wait_for(1, MIB), "there is room by now");
        assert_eq!(roused(&budget), [0]);
        assert!(!budget.is_awaited());
    }
}
