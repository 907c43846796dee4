//! What the fuzz target of the sums of bases and images checks; shared with the ordinary tests, which replay the seeds.
//!
//! An input is a place of such a file: a header, or a block, of a disk and with a number that it does not say itself. Those of the seeds
//! are taken, and those that the input says in bytes that a block leaves zero. It is tried as it is and with its checksum made right.

use afterimage::format::sums::{
    BLOCK_BYTES, Block, Holes, Of, check_header, check_image_header, encode_header,
};
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
    let disk = DiskId(DISK);
    let base = check_header(bytes, disk).is_ok().then_some(Of::Base);
    let header = base.or(check_image_header(bytes, disk).ok());
    if let Some(of) = header {
        assert!(encode_header(of, disk) == bytes, "what is accepted is what is written");
    }
    let kinds = [Of::Base, Of::Image(Holes::Zeros)];
    let blocks = kinds.map(|of| Block::decode(bytes, of, disk, BLOCK));
    for block in blocks.iter().flatten() {
        assert!(block.encode(disk, BLOCK) == bytes, "what is accepted is what is written");
    }
    let is_block = blocks.iter().any(Option::is_some);
    assert!(!blocks.iter().all(Option::is_some), "a base's block is no image's");
    assert!(header.is_none() || !is_block, "a header is no block");
    header.is_some() || is_block
}
