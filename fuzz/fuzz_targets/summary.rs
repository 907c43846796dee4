//! Arbitrary bytes as a summary: no panic, no allocation beyond the input, and what is accepted is canonical.

#![no_main]

#[path = "../../tests/support/summary_fuzz.rs"]
mod summary_fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    summary_fuzz::summary(data);
});
