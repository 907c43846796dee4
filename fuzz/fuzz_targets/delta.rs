//! Arbitrary bytes as a delta blob: no panic, no allocation beyond the input, and what is accepted is canonical.

#![no_main]

#[path = "../../tests/support/vault_fuzz.rs"]
mod vault_fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vault_fuzz::delta(data);
});
