//! What the fuzz target of the sums of bases checks; shared with the ordinary tests, which replay the seeds.
//!
//! An input is a place of such a file: a header, or a block, of a disk and with a number that it does not say itself. Those of the seeds
//! are taken, and those that the input says in bytes that a block leaves zero. It is tried as it is and with its checksum made right.

use afterimage::format::sums::{BLOCK_BYTES, Block, check_header, encode_header};
use afterimage::units::DiskId;
use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

/// The disk of the seeds, and the block.
const DISK: u128 = 0x1111_2222_3333_4444_5555_6666_7777_8888;
const BLOCK: u64 = 2;
/// What its checksum begins from: the low half of the id, and the number.
const SEED: u64 = 0x5555_6666_7777_8888 + BLOCK;
const CHECKSUM_AT: usize = BLOCK_BYTES - 16;

/// Tries `input` as a header and as a block; whether it was accepted as it is.
pub fn place(input: &[u8]) -> bool {
    let accepted = check(input);
    let Some(body) = input.get(..CHECKSUM_AT).filter(|_| input.len() == BLOCK_BYTES) else {
        assert!(!accepted, "of another length");
        return accepted;
    };
    for sum in [xxh3_128(body), xxh3_128_with_seed(body, SEED)] {
        check(&[body, &sum.to_le_bytes()].concat());
    }
    accepted
}

fn check(bytes: &[u8]) -> bool {
    let is_header = check_header(bytes, DiskId(DISK)).is_ok();
    if is_header {
        assert!(encode_header(DiskId(DISK)) == bytes, "what is accepted is what is written");
    }
    let block = Block::decode(bytes, DiskId(DISK), BLOCK);
    if let Some(block) = &block {
        assert!(block.encode(DiskId(DISK), BLOCK) == bytes, "what is accepted is what is written");
    }
    assert!(!is_header || block.is_none(), "a header is no block");
    is_header || block.is_some()
}
