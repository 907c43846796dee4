//! What the fuzz target of side files checks; shared with the ordinary tests, which replay the seeds.
//!
//! An input is the end of a file, its table and footer: chunks are bytes, and no decoder looks into them. Each is taken as it
//! is, which its sums nearly always end, and again with the sums made right, which is what a hostile writer would
//! send. Whatever is accepted must be exactly what the encoder writes.

use afterimage::format::delta::DISK_SECTORS_MAX;
use afterimage::format::side::{FOOTER_BYTES, Footer, encode_table};
use xxhash_rust::xxh3::xxh3_128;

const TABLE_OFFSET: usize = 80;
const TABLE_SUM: std::ops::Range<usize> = 96..112;
const FOOTER_SUM: std::ops::Range<usize> = 112..128;

/// Tries `input` as the end of a side file; whether it was accepted as it is.
pub fn tail(input: &[u8]) -> bool {
    let accepted = check(input);
    let mut resealed = input.to_vec();
    if let Some(start) = resealed.len().checked_sub(FOOTER_BYTES) {
        let (table, footer) = resealed.split_at_mut(start);
        footer[TABLE_SUM].copy_from_slice(&xxh3_128(table).to_le_bytes());
        let sum = xxh3_128(&footer[..FOOTER_SUM.start]);
        footer[FOOTER_SUM].copy_from_slice(&sum.to_le_bytes());
    }
    check(&resealed);
    accepted
}

fn check(bytes: &[u8]) -> bool {
    let Some(table_bytes) = bytes.len().checked_sub(FOOTER_BYTES) else { return false };
    let place: [u8; 8] = bytes[table_bytes + TABLE_OFFSET..][..8].try_into().expect("eight bytes");
    let Some(total) = u64::from_le_bytes(place).checked_add(bytes.len() as u64) else { return false };
    let Ok(footer) = Footer::decode(&bytes[table_bytes..], total) else { return false };
    let Ok(extents) = footer.decode_table(&bytes[..table_bytes], DISK_SECTORS_MAX) else { return false };
    let table = encode_table(&extents);
    assert_eq!(Footer::new(footer.identity, &extents, &table), footer);
    assert_eq!([table.as_slice(), &footer.encode()].concat(), bytes);
    true
}
