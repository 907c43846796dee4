//! Arbitrary bytes from the first one on: the NBD handshake never panics and speaks only protocol.

#![no_main]

#[path = "../../tests/support/nbd_fuzz.rs"]
mod nbd_fuzz;
#[path = "../../tests/support/nbd_model.rs"]
mod nbd_model;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    nbd_fuzz::handshake(data);
});
