//! Arbitrary bytes after an agreed handshake: limits hold, every request is answered once, an end is final.

#![no_main]

#[path = "../../tests/support/nbd_fuzz.rs"]
mod nbd_fuzz;
#[path = "../../tests/support/nbd_model.rs"]
mod nbd_model;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    nbd_fuzz::requests(data);
});
