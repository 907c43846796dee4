//! What a file holds: a length and sparse pages.
//!
//! **Invariant**: bytes of a page past the length are zero, so that lengthening shows zeros and never what was cut
//! off. Clones share their pages until one of them is written.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use crate::units::{PAGE_BYTES, to_usize};

const PAGE: u64 = PAGE_BYTES as u64;

/// A file's bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    length: u64,
    pages: BTreeMap<u64, Rc<[u8; PAGE_BYTES]>>,
}

impl Content {
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Bytes that take up space.
    pub(super) fn allocated_bytes(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// Bytes of space that writing `range` would take in addition.
    pub(super) fn missing_bytes(&self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let pages = range.start / PAGE..(range.end - 1) / PAGE + 1;
        let present = self.pages.range(pages.clone()).count() as u64;
        (pages.end - pages.start - present) * PAGE
    }

    /// Fills `bytes` from `offset`; holes and what lies past the end read as zeros.
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) {
        for (page, within, part) in pieces(offset, bytes.len()) {
            match self.pages.get(&page) {
                Some(page) => bytes[part].copy_from_slice(&page[within]),
                None => bytes[part].fill(0),
            }
        }
    }

    /// Writes `bytes` at `offset` and lengthens the file where needed.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.length = self.length.max(offset + bytes.len() as u64);
        for (page, within, part) in pieces(offset, bytes.len()) {
            let page = self.pages.entry(page).or_insert_with(|| Rc::new([0; PAGE_BYTES]));
            Rc::make_mut(page)[within].copy_from_slice(&bytes[part]);
        }
    }

    /// Makes what of `range` lies in the file read as zeros; whole pages are given back, or taken up.
    pub(super) fn zero(&mut self, range: Range<u64>, keep_allocated: bool) {
        let range = range.start..range.end.min(self.length);
        if range.is_empty() {
            return;
        }
        if keep_allocated {
            for (page, within, _) in pieces(range.start, to_usize(range.end - range.start)) {
                let page = self.pages.entry(page).or_insert_with(|| Rc::new([0; PAGE_BYTES]));
                Rc::make_mut(page)[within].fill(0);
            }
            return;
        }
        for page in self.allocated_pages(range.clone()) {
            let start = page * PAGE;
            // The last page of a file is whole if all that the file has of it is.
            let end = (start + PAGE).min(self.length);
            if range.start <= start && end <= range.end {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                let within = to_usize(range.start.max(start) - start)..to_usize(range.end.min(end) - start);
                Rc::make_mut(bytes)[within].fill(0);
            }
        }
    }

    /// Cuts the file off, or lengthens it by a hole.
    pub(super) fn set_length(&mut self, length: u64) {
        if length < self.length {
            self.zero(length..self.length, false);
            self.pages.split_off(&length.div_ceil(PAGE));
        }
        self.length = length;
    }

    /// Numbers of the pages that hold something of `range`.
    pub(super) fn allocated_pages(&self, range: Range<u64>) -> Vec<u64> {
        self.pages.range(range.start / PAGE..range.end.div_ceil(PAGE)).map(|(&page, _)| page).collect()
    }

    /// The parts of `range` that take up space.
    pub(super) fn data_ranges(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let range = range.start..range.end.min(self.length);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for page in self.allocated_pages(range.clone()) {
            let piece = (page * PAGE).max(range.start)..((page + 1) * PAGE).min(range.end);
            match ranges.last_mut() {
                Some(last) if last.end == piece.start => last.end = piece.end,
                _ if piece.is_empty() => {}
                _ => ranges.push(piece),
            }
        }
        ranges
    }

    /// Flips a bit of a byte that is stored; `false` in a hole.
    pub(super) fn flip(&mut self, offset: u64, bit: u8) -> bool {
        let page = (offset < self.length).then(|| self.pages.get_mut(&(offset / PAGE))).flatten();
        match page {
            Some(page) => {
                Rc::make_mut(page)[to_usize(offset % PAGE)] ^= 1 << (bit % 8);
                true
            }
            None => false,
        }
    }

    /// Gives every stored page to `visit`, in order.
    pub(super) fn for_each_page(&self, mut visit: impl FnMut(u64, &[u8])) {
        for (&page, bytes) in &self.pages {
            visit(page * PAGE, &bytes[..]);
        }
    }
}

/// Splits a transfer at pages: page number, range within the page, range within the transfer.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let within = to_usize(at % PAGE);
        let count = (PAGE_BYTES - within).min(len - done);
        let piece = (at / PAGE, within..within + count, done..done + count);
        done += count;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Bytes, and which of them were ever given space.
    fn check(content: &Content, model: &[u8]) {
        assert_eq!(content.length(), model.len() as u64);
        let mut bytes = vec![0xee; model.len()];
        content.read(0, &mut bytes);
        assert!(bytes == model);
        let mut hole = vec![true; model.len()];
        for range in content.data_ranges(0..u64::MAX) {
            assert!(range.start < range.end);
            hole[to_usize(range.start)..to_usize(range.end)].fill(false);
        }
        assert!(hole.iter().zip(model).all(|(hole, byte)| !hole || *byte == 0), "a hole reads as zeros");
    }

    #[test]
    fn it_holds_what_a_plain_vector_holds() {
        let mut random = Random::new(11);
        let (mut content, mut model) = (Content::default(), Vec::new());
        for round in 0..2_000 {
            let offset = random.index(40_000);
            let len = random.index(9_000);
            match random.below(4) {
                0 | 1 => {
                    let bytes = random.garbage(len);
                    content.write(offset as u64, &bytes);
                    if len > 0 {
                        model.resize(model.len().max(offset + len), 0);
                        model[offset..offset + len].copy_from_slice(&bytes);
                    }
                }
                2 => {
                    content.zero(offset as u64..(offset + len) as u64, round % 2 == 0);
                    let end = model.len().min(offset + len);
                    model[offset.min(end)..end].fill(0);
                }
                _ => {
                    content.set_length(offset as u64);
                    model.resize(offset, 0);
                }
            }
            check(&content, &model);
        }
    }

    #[test]
    fn clones_do_not_see_each_others_writes() {
        let mut content = Content::default();
        content.write(0, &[1; 8192]);
        let kept = content.clone();
        content.write(0, &[2; 1]);
        content.flip(1, 0);
        let mut bytes = [0; 2];
        kept.read(0, &mut bytes);
        assert_eq!(bytes, [1, 1]);
    }
}
