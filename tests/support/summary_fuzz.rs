//! What the fuzz target of summaries checks; shared with the ordinary tests, which replay the seeds.
//!
//! An input is a whole file that is not sealed. It is taken as it is, which its sums nearly always end, and again with the sums made right,
//! which is what a hostile writer would send; what proves a page is not looked at. Whatever is accepted must be exactly
//! what the encoder writes.

use afterimage::format::checksum;
use afterimage::format::summary::{
    self, BODY_BYTES, FOOTER_BYTES, Footer, PAGE_BYTES, Root, put_chunks, put_extents,
};

const ROOT_SUM: usize = 120;
const FOOTER_SUM: usize = FOOTER_BYTES - 16;

/// Tries `input` as a summary; whether it was accepted as it is.
pub fn summary(input: &[u8]) -> bool {
    let accepted = check(input);
    let mut resealed = input.to_vec();
    reseal(&mut resealed);
    check(&resealed);
    accepted
}

fn put_sum(footer: &mut [u8], at: usize, sum: u128) {
    footer[at..at + 16].copy_from_slice(&sum.to_le_bytes());
}

fn reseal(bytes: &mut [u8]) {
    let Some(start) = bytes.len().checked_sub(FOOTER_BYTES) else { return };
    let total = bytes.len() as u64;
    // Twice: where the root is, is known only to a footer that is sound.
    for _ in 0..2 {
        let root = Footer::decode(bytes, total).ok().and_then(|footer| {
            let from = usize::try_from(footer.root_offset()).ok()?;
            bytes.get(from..start).map(checksum)
        });
        let footer = &mut bytes[start..];
        if let Some(root) = root {
            put_sum(footer, ROOT_SUM, root);
        }
        let sum = checksum(&footer[..FOOTER_SUM]);
        put_sum(footer, FOOTER_SUM, sum);
    }
}

fn check(bytes: &[u8]) -> bool {
    let Ok(footer) = Footer::decode(bytes, bytes.len() as u64) else { return false };
    let start = bytes.len() - FOOTER_BYTES;
    assert_eq!(footer.encode(), bytes[start..]);
    let stored = &bytes[usize::try_from(footer.root_offset()).expect("within the input")..start];
    if footer.sealed_under.is_some() || footer.verify_root(stored).is_err() {
        return false;
    }
    let Ok(root) = Root::decode(stored, &footer) else { return false };
    assert_eq!(root.encode(), stored);
    let body = |page: u64| {
        let at = usize::try_from(page).expect("within the input") * PAGE_BYTES;
        &bytes[at..at + BODY_BYTES]
    };
    let mut sound = true;
    for disk in &root.disks {
        for page in 0..disk.fences.len() {
            let stored = body(disk.first_page + page as u64);
            match summary::decode_extents(stored, disk, page, footer.chunks) {
                Ok(extents) => assert_eq!(written(|body| put_extents(body, &extents)), stored),
                Err(_) => sound = false,
            }
        }
    }
    for page in 0..footer.chunk_pages() {
        let stored = body(footer.extent_pages + page);
        match summary::decode_chunks(stored, &footer, page) {
            Ok(chunks) => assert_eq!(written(|body| put_chunks(body, &chunks)), stored),
            Err(_) => sound = false,
        }
    }
    sound
}

fn written(put: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut body = vec![0; BODY_BYTES];
    put(&mut body);
    body
}
