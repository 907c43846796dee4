//! Arbitrary bytes as a journal segment: no panic, no allocation beyond the input, and what is accepted is canonical.

#![no_main]

#[path = "../../tests/support/frame_fuzz.rs"]
mod frame_fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    frame_fuzz::segment(data);
});
