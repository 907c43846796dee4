//! Bytes for tests to write and find again: no two blocks alike, so that a block in the wrong place shows.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64_with_seed;

const BLOCK_BYTES: usize = 4096;

/// `length` bytes that follow from the seed; each block of 4 KiB also from its place.
pub fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for (block, chunk) in bytes.chunks_mut(BLOCK_BYTES).enumerate() {
        let mut word = xxh3_64_with_seed(&block.to_le_bytes(), seed);
        for part in chunk.chunks_mut(8) {
            word = xxh3_64_with_seed(&word.to_le_bytes(), seed);
            part.copy_from_slice(&word.to_le_bytes()[..part.len()]);
        }
    }
    bytes
}

/// Writes a sparse file of `length` bytes: `pieces` of 64 KiB of content, far apart, and holes between.
pub fn sparse_file(path: &Path, seed: u64, length: u64, pieces: u64) {
    const PIECE_BYTES: usize = 64 << 10;
    let file = File::create(path).expect("a new file");
    file.set_len(length).expect("a sparse file");
    let stride = length / pieces;
    for piece in 0..pieces {
        file.write_all_at(&content(seed + piece, PIECE_BYTES), piece * stride).expect("room");
    }
    file.sync_all().expect("room");
}

/// Bytes that a file takes on disk.
pub fn allocated_bytes(path: &Path) -> u64 {
    fs::metadata(path).expect("the file").blocks() * 512
}

/// The files below a directory with this extension.
pub fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory that can be read") {
        let path = entry.expect("a directory that can be read").path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found
}

/// Asserts that two files have the same bytes, and says where they differ if not.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path) {
    let (a, b) = (fs::read(left).expect("the file"), fs::read(right).expect("the file"));
    assert_same_bytes(&a, &b);
}

/// Asserts that two runs of bytes are the same, and says where they differ if not.
#[track_caller]
pub fn assert_same_bytes(left: &[u8], right: &[u8]) {
    assert_eq!(left.len(), right.len(), "as many bytes");
    let differs = left.iter().zip(right).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the first byte that differs");
}
