//! Bytes ↔ values: pure functions without I/O or clock. `docs/format.md` draws every layout.
//!
//! Invariant: no input, however hostile, makes a decoder panic or allocate more than a small multiple of the input's
//! length; and what a decoder accepts, the encoder writes back byte for byte.

pub(crate) mod codec;
pub mod delta;
pub mod manifest;
pub mod record;

use xxhash_rust::xxh3::xxh3_128;

/// The checksum of stored bytes: XXH3-128, against accidents only.
pub fn checksum(bytes: &[u8]) -> u128 {
    xxh3_128(bytes)
}
