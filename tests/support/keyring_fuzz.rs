//! What the fuzz target of keyrings checks; shared with the ordinary tests, which replay the seeds.
//!
//! Each input is taken as it is, which its sums nearly always end, and again with the sums of both copies made right,
//! which is what a hostile writer would send. The copy that is accepted must be exactly what the encoder writes.

use afterimage::format::keyring::Keyring;
use xxhash_rust::xxh3::xxh3_128;

const SUM_BYTES: usize = 16;

/// Tries `input` as a keyring's file; whether it was accepted as it is.
pub fn keyring(input: &[u8]) -> bool {
    let accepted = check(input);
    let mut resealed = input.to_vec();
    for copy in resealed.chunks_mut((input.len() / 2).max(1)) {
        if let Some(start) = copy.len().checked_sub(SUM_BYTES) {
            let sum = xxh3_128(&copy[..start]);
            copy[start..].copy_from_slice(&sum.to_le_bytes());
        }
    }
    check(&resealed);
    accepted
}

fn check(bytes: &[u8]) -> bool {
    let is_whole = Keyring::is_whole(bytes);
    let Ok(ring) = Keyring::decode(bytes) else {
        assert!(!is_whole, "two sound copies were refused");
        return false;
    };
    let encoded = ring.encode();
    assert_eq!(is_whole, encoded == bytes);
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let sound = &encoded[..encoded.len() / 2];
    assert!(first == sound || second == sound, "neither copy is what the encoder writes");
    true
}
