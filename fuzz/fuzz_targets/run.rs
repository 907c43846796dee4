//! Arbitrary bytes as an index run: no panic, no allocation beyond the input, and what is accepted is canonical.

#![no_main]

#[path = "../../tests/support/run_fuzz.rs"]
mod run_fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    run_fuzz::run(data);
});
