//! The judge of mutants: a bounded sweep, in the binary of the unit tests, so that each mutant is compiled once. Ignored
//! otherwise; `tests/run mutants` asks for it, and `tests/simulation.rs` sweeps what was not mutated.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Options, run};

/// Seeds that a mutant has to survive; most do not survive the first.
const SEEDS: u64 = 150;

#[test]
#[ignore = "half a minute of seeds: the judge of `tests/run mutants`"]
fn no_seed_shows_a_broken_rule() {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let failures = Mutex::new(Vec::new());
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= SEEDS {
                return;
            }
            if let Err(failure) = run(seed, &Options::default()) {
                stop.store(true, Ordering::Relaxed);
                failures.lock().expect("no thread panics with it").push(failure.to_string());
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let failures = failures.into_inner().expect("no thread panics with it");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
