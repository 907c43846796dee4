//! The judge of mutants: a bounded sweep in the binary of the unit tests, so that each mutant is compiled once.
//! `tests/run mutants` says how many seeds a mutant has to survive; without it a few show that the judge works, and
//! `tests/simulation.rs` sweeps what was not mutated.

use super::sweep;
use crate::planted::Planted;

const SEEDS_UNLESS_SAID: u64 = 2;

#[test]
fn no_seed_shows_a_broken_rule() {
    let seeds = match std::env::var("AFTERIMAGE_JUDGE_SEEDS") {
        Ok(text) => text.parse().expect("AFTERIMAGE_JUDGE_SEEDS is a number"),
        Err(_) => SEEDS_UNLESS_SAID,
    };
    let swept = sweep(0..seeds, Planted::NONE, || false);
    if let Some(failure) = swept.failures.first() {
        panic!("{failure}");
    }
    assert_eq!(swept.clean, seeds);
}
