//! The hand-over between threads under loom: every interleaving, and every value that the memory model lets a load
//! return, of two producers and an owner, up to a bound on preemptions.
//!
//! ```text
//! RUSTFLAGS="--cfg afterimage_loom" cargo test --release --no-default-features --test loom_intake
//! ```
//!
//! In each: nothing accepted is lost or doubled, nothing refused arrives, a producer's order is kept, and the owner
//! is never left asleep (loom reports that as a deadlock). Four planted flaws show that the test can fail.

#![cfg(afterimage_loom)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use afterimage::journal::intake::{Closed, Flaw, Intake, Publisher, Wake, flawed_intake};
use loom::sync::{Arc, Condvar, Mutex};

/// What the owner sleeps on: like an eventfd, it remembers a wake-up that came before the sleep.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    ring: Condvar,
}

impl Bell {
    fn sleep(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.ring.wait(rung).unwrap();
        }
        *rung = false;
    }
}

struct Waker(Arc<Bell>);

impl Wake for Waker {
    fn wake(&self) {
        *self.0.rung.lock().unwrap() = true;
        self.0.ring.notify_one();
    }
}

/// Publishes `items` in order; returns how many were accepted.
fn produce(publisher: &Publisher<u32>, items: &[u32]) -> usize {
    let accepted = |item: &&u32| match publisher.publish(**item) {
        Ok(()) => true,
        Err(Closed(returned)) => {
            assert_eq!(returned, **item, "a refused item comes back");
            false
        }
    };
    let count = items.iter().take_while(accepted).count();
    for item in &items[(count + 1).min(items.len())..] {
        assert_eq!(publisher.publish(*item), Err(Closed(*item)), "closed stays closed");
    }
    count
}

/// Drains and sleeps until `enough`.
fn serve(
    intake: &mut Intake<u32>,
    bell: &Bell,
    drained: &mut Vec<u32>,
    enough: impl Fn(&Intake<u32>, &[u32]) -> bool,
) {
    loop {
        intake.drain(usize::MAX, drained);
        if enough(intake, drained) {
            return;
        }
        if intake.prepare_to_sleep() {
            bell.sleep();
            intake.awake();
        }
    }
}

/// Two producers against an owner that closes after the first item it sees; returns how many interleavings ran.
fn explore(flaw: Flaw) -> usize {
    let explored = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = std::sync::Arc::clone(&explored);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        let bell = Arc::new(Bell::default());
        let (publisher, mut intake) = flawed_intake(Waker(Arc::clone(&bell)), flaw);
        let items: [&[u32]; 2] = [&[10, 11], &[20]];
        let producers = items.map(|items| {
            let publisher = publisher.clone();
            loom::thread::spawn(move || produce(&publisher, items))
        });
        let mut drained = Vec::new();
        serve(&mut intake, &bell, &mut drained, |_, drained| !drained.is_empty());
        intake.close();
        serve(&mut intake, &bell, &mut drained, |intake, _| intake.is_finished());
        for (producer, items) in producers.into_iter().zip(items) {
            let accepted = producer.join().unwrap();
            let of_producer: Vec<u32> = drained.iter().copied().filter(|item| items.contains(item)).collect();
            assert_eq!(of_producer, items[..accepted], "drained is what was accepted, once, in order");
        }
        assert_eq!(publisher.publish(99), Err(Closed(99)));
    });
    explored.load(Ordering::Relaxed)
}

#[test]
fn no_item_and_no_wake_up_is_lost_in_any_interleaving() {
    let explored = explore(Flaw::None);
    println!("{explored} interleavings");
    assert!(explored > 1000, "only {explored} interleavings: the model no longer explores");
}

fn panic_of(flaw: Flaw) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| explore(flaw))).expect_err("the flaw was not found");
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).expect("a panic with a message")
}

#[test]
fn an_owner_that_announces_its_sleep_after_looking_is_found_asleep() {
    assert!(panic_of(Flaw::AnnouncedAfterCheck).contains("deadlock"));
}

#[test]
fn a_producer_that_pushes_after_looking_leaves_the_owner_asleep() {
    assert!(panic_of(Flaw::PushedAfterCheck).contains("deadlock"));
}

#[test]
fn without_the_fences_the_owner_is_found_asleep() {
    assert!(panic_of(Flaw::NoFence).contains("deadlock"));
}

#[test]
fn a_close_that_does_not_count_who_is_entering_loses_an_item() {
    assert!(panic_of(Flaw::EnteringNotCounted).contains("drained is what was accepted"));
}
