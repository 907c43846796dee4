//! Bytes ↔ values: pure, no I/O, no clock. Every byte is described in `docs/format.md`.
//!
//! Hostile or damaged bytes give a typed fault, never a panic and never an allocation beyond the stated bounds; what
//! a decoder accepts, its encoder writes back byte for byte.

pub mod checkpoint;
pub(crate) mod codec;
pub mod delta;
pub mod frame;
pub mod keyring;
pub mod ladder;
pub mod manifest;
pub mod marker;
pub mod overlay_sums;
pub mod record;
pub mod run;
pub mod side;
pub mod summary;
pub mod sums;

use xxhash_rust::xxh3::xxh3_128;

/// The checksum of stored bytes in a vault: XXH3-128, against accidents only.
pub fn checksum(bytes: &[u8]) -> u128 {
    xxh3_128(bytes)
}
