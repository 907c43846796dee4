//! Arbitrary bytes as a place of the sums of a base: no panic, and what is accepted is canonical.

#![no_main]

#[path = "../../tests/support/sums_fuzz.rs"]
mod sums_fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sums_fuzz::place(data);
});
