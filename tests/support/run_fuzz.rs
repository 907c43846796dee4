//! What the fuzz target of index runs checks; shared with the ordinary tests, which replay the seeds.
//!
//! Each input is taken as it is, which its sum nearly always ends, and again with the sum made right, which is what a
//! hostile writer would send. Whatever is accepted must be exactly what the encoder writes.

use afterimage::format::run::{HEADER_BYTES, Run};
use xxhash_rust::xxh3::xxh3_64;

const SUM: std::ops::Range<usize> = 16..24;

/// Tries `input` as a run's file; whether it was accepted as it is.
pub fn run(input: &[u8]) -> bool {
    let accepted = check(&mut input.to_vec());
    let mut resealed = input.to_vec();
    if resealed.len() >= HEADER_BYTES {
        resealed[SUM].fill(0);
        let sum = xxh3_64(&resealed);
        resealed[SUM].copy_from_slice(&sum.to_le_bytes());
    }
    check(&mut resealed);
    accepted
}

fn check(bytes: &mut [u8]) -> bool {
    let before = bytes.to_vec();
    let Ok((run, tables)) = Run::decode(bytes) else { return false };
    let extents: Option<Vec<_>> = tables.extents().collect();
    let payloads: Option<Vec<_>> = tables.payloads().collect();
    let tags = tables.tags().to_vec();
    let (Some(extents), Some(payloads)) = (extents, payloads) else { return false };
    assert_eq!(run.encode(extents.into_iter(), payloads.into_iter(), &tags), before);
    true
}
