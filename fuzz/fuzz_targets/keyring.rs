//! Arbitrary bytes as a keyring: no panic, no allocation beyond the input, and the copy that is accepted is canonical.

#![no_main]

#[path = "../../tests/support/keyring_fuzz.rs"]
mod keyring_fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    keyring_fuzz::keyring(data);
});
