//! Room in the budget of all connections under loom: every interleaving, and every value that the memory model lets a load return,
//! of connections that wait for room and one that gives it back, up to a bound on preemptions.
//!
//! ```text
//! RUSTFLAGS="--cfg afterimage_loom" cargo test --release --no-default-features --test loom_budget
//! ```
//!
//! In each: who waits gets the room (loom reports who is left asleep as a deadlock), and no more is given out than there is.

#![cfg(afterimage_loom)]

use afterimage::capture::nbd::Budget;
use afterimage::capture::nbd::budget::{Account, OWN_BYTES};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

const ROOM_BYTES: usize = 64 << 10;

/// What a waiter sleeps on: like an eventfd, it remembers a wake-up that came before the sleep.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    ring: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.ring.notify_one();
    }

    fn sleep(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.ring.wait(rung).unwrap();
        }
        *rung = false;
    }
}

type Bells = Arc<Vec<Bell>>;

/// Ends a turn, as a data thread does.
fn share(budget: &Budget, bells: &Bells) {
    budget.find_roused(|waiter| bells[waiter].ring());
}

/// Takes all of the room, waiting for it as a data thread does, and gives it back.
fn take_and_give_back(waiter: usize, budget: &Arc<Budget>, bells: &Bells) {
    let mut account = Account::new(Arc::clone(budget));
    while !account.cover(OWN_BYTES + ROOM_BYTES) {
        if budget.wait_for(waiter, account.missing()) {
            share(budget, bells);
            bells[waiter].sleep();
        }
    }
    assert_eq!(budget.held(), ROOM_BYTES, "never more than there is");
    drop(account);
    share(budget, bells);
}

fn model(waiters: usize) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let budget = Arc::new(Budget::new(ROOM_BYTES, waiters));
        let bells: Bells = Arc::new((0..waiters).map(|_| Bell::default()).collect());
        let mut holder = Account::new(Arc::clone(&budget));
        assert!(holder.cover(OWN_BYTES + ROOM_BYTES));
        let threads: Vec<_> = (0..waiters)
            .map(|waiter| {
                let (budget, bells) = (Arc::clone(&budget), Arc::clone(&bells));
                thread::spawn(move || take_and_give_back(waiter, &budget, &bells))
            })
            .collect();
        drop(holder);
        share(&budget, &bells);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!((budget.held(), budget.is_awaited()), (0, false));
    });
}

#[test]
fn who_waits_gets_what_is_given_back() {
    model(1);
}

#[test]
fn two_who_wait_get_it_one_after_the_other() {
    model(2);
}
