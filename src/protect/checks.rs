//! What a read compares with the sums of its disk's image: the bytes that come from there, once they and the sums are all there.
//!
//! Of a block that memory has not, both places are read in one operation beside the bytes. Where that fails each is read by itself: a
//! power cut may have left one that its device does not give.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::format::sums::{BLOCK_BYTES, Copy};
use crate::image::sums::{ImageSums, Known, Verdict};
use crate::planted::{Bug, Planted};
use crate::storage::{Op, Slice};
use crate::sums::Stored;
use crate::units::SectorRange;

/// A read of sums.
#[derive(Clone)]
pub(super) struct SumsRead {
    sums: Rc<ImageSums>,
    block: u64,
    /// One place of it; both, if none is said.
    copy: Option<Copy>,
}

impl SumsRead {
    pub(super) fn operation(&self) -> Op {
        self.sums.operation(self.block, self.copy)
    }

    pub(super) fn bytes(&self) -> usize {
        if self.copy.is_some() { BLOCK_BYTES } else { 2 * BLOCK_BYTES }
    }
}

/// The bytes of an image and their sums, as far as they are there.
pub(super) struct Checks {
    sums: Rc<ImageSums>,
    /// When the places of the read were looked up.
    epoch: u64,
    blocks: BTreeMap<u64, Known>,
    /// Blocks of which each place is read by itself, and the one that is there.
    places: BTreeMap<u64, Option<(Copy, Stored)>>,
    bytes: Vec<(SectorRange, Slice)>,
}

impl Checks {
    pub(super) fn new(sums: &Rc<ImageSums>) -> Checks {
        let (sums, epoch) = (Rc::clone(sums), sums.epoch());
        Checks { sums, epoch, blocks: BTreeMap::new(), places: BTreeMap::new(), bytes: Vec::new() }
    }

    /// What has to be read to know the sums of a block; nothing if memory has them.
    pub(super) fn want(&mut self, block: u64) -> Option<SumsRead> {
        if self.blocks.contains_key(&block) {
            return None;
        }
        let known = self.sums.recall(block);
        let read = SumsRead { sums: Rc::clone(&self.sums), block, copy: None };
        let is_known = known.is_some();
        // What is asked for counts as unknown until it comes.
        self.blocks.insert(block, known.unwrap_or(Known::NOTHING));
        (!is_known).then_some(read)
    }

    /// Takes bytes of the image.
    pub(super) fn take_bytes(&mut self, range: SectorRange, bytes: Slice) {
        self.bytes.push((range, bytes));
    }

    /// Takes what a read of sums brought; gives what has to be read instead, if that is nothing.
    pub(super) fn take_sums(&mut self, read: &SumsRead, bytes: Option<&[u8]>) -> Vec<SumsRead> {
        let SumsRead { block, copy, .. } = *read;
        match (copy, bytes) {
            (None, Some(bytes)) => {
                let known = self.sums.found(block, bytes, self.epoch);
                self.blocks.insert(block, known);
                Vec::new()
            }
            (None, None) => {
                self.places.insert(block, None);
                Copy::BOTH.map(|copy| SumsRead { copy: Some(copy), ..read.clone() }).into()
            }
            (Some(copy), bytes) => {
                let stored = bytes.map_or(Stored::Damaged, |bytes| self.sums.parse(block, bytes));
                match self.places.insert(block, Some((copy, stored.clone()))).flatten() {
                    None => {}
                    Some((Copy::First, first)) => {
                        drop(self.blocks.insert(block, self.sums.known(block, (first, stored))))
                    }
                    Some((Copy::Second, second)) => {
                        drop(self.blocks.insert(block, self.sums.known(block, (stored, second))));
                    }
                }
                Vec::new()
            }
        }
    }

    /// Compares all of it.
    pub(super) fn judge(&self, planted: Planted) -> Verdict {
        if planted.is(Bug::ImageUnverified) {
            return Verdict::Sound;
        }
        let is_blind = planted.is(Bug::MismatchNotLookedAt);
        let epoch = if is_blind { self.sums.epoch() } else { self.epoch };
        let judged =
            |(range, bytes): &(SectorRange, Slice)| self.sums.judge(epoch, *range, bytes, &self.blocks);
        let is_sound = |verdict: &Verdict| matches!(verdict, Verdict::Sound);
        self.bytes.iter().map(judged).find(|verdict| !is_sound(verdict)).unwrap_or(Verdict::Sound)
    }
}
