//! Arbitrary bytes as a script of requests, faults and deaths, played on a real group over the simulated disk, beside the
//! simulator's model of it. `tests/run sim --script FILE` plays one with a trace.

#![no_main]

#[path = "../../tests/support/model_fuzz.rs"]
mod model_fuzz;

use afterimage::planted::Planted;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|data: &[u8]| {
    if let Err(failure) = model_fuzz::play(data, Planted::NONE) {
        panic!("{failure}");
    }
});

// Most mutants keep the acts apart from each other; libFuzzer's own, which know what was compared with what, do not.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 4 == 0 {
        fuzzer_mutate(data, size, max_size)
    } else {
        model_fuzz::mutate(data, size, max_size, seed)
    }
});
