//! Arbitrary bytes as a manifest step or snapshot: no panic, no allocation beyond the input, and what is accepted is
//! canonical.

#![no_main]

#[path = "../../tests/support/vault_fuzz.rs"]
mod vault_fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vault_fuzz::manifest(data);
});
