//! Arbitrary bytes as the end of a side file: no panic, no allocation beyond the input, and what is accepted is canonical.

#![no_main]

#[path = "../../tests/support/side_fuzz.rs"]
mod side_fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    side_fuzz::tail(data);
});
