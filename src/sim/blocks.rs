//! Disks of more than one block of sums, in one seed of [`LARGE_EVERY`]: their blocks are written, emptied and read side by side, and
//! a fault of the sums may hit several operations in a row. The other seeds have small disks, which are what most of the rules need,
//! and which are compared in no time.

use super::clients::Member;
use super::site::{Outcome, Site};
use crate::format::sums::SECTORS_A_BLOCK;
use crate::storage::sim::{FaultKind, Matcher, OpKind};
use crate::units::SectorRange;

/// One seed in so many has large disks.
const LARGE_EVERY: u64 = 4;
/// Sizes of disks that join: of a part of a block; of one block, of two, and of two and a part.
const SIZES: [u64; 4] = [256, SECTORS_A_BLOCK, 2 * SECTORS_A_BLOCK, 3000];
/// Sizes that disks get: within a block, at its end, and just across.
const RESIZES: [u64; 8] = [
    33,
    512,
    SECTORS_A_BLOCK - 1,
    SECTORS_A_BLOCK,
    SECTORS_A_BLOCK + 8,
    2 * SECTORS_A_BLOCK,
    2 * SECTORS_A_BLOCK + 100,
    3000,
];
/// Sectors around the end of a block in which requests begin.
const AROUND: u64 = 16;
/// One request of a client in so many is for whole blocks.
const WHOLE_EVERY: u64 = 24;
/// Operations that fail in a row, at most: one more than those of one look at a block.
const ROW_MAX: u64 = 4;

/// Whether the disks of a seed are large.
pub(super) fn has_large_disks(seed: u64) -> bool {
    seed % LARGE_EVERY == LARGE_EVERY - 1
}

impl Site {
    /// The size of a disk that joins.
    pub(super) fn draw_size(&mut self) -> u64 {
        let small = [64, 100, 256, 512];
        *self.random.choose(if self.plan.has_large_disks { &SIZES } else { &small })
    }

    /// The size that a disk gets: a multiple of what a write is at most, or an odd one.
    pub(super) fn draw_other_size(&mut self) -> u64 {
        match self.plan.has_large_disks {
            true => *self.random.choose(&RESIZES),
            false => *self.random.choose(&[8, 33, 64, 100, 256, 300, 512]),
        }
    }

    /// Where a request of a few sectors begins, where places are hot: around the ends of blocks, if there are any.
    pub(super) fn draw_hot_start(&mut self, sectors: u64) -> u64 {
        let ends = sectors / SECTORS_A_BLOCK;
        if self.plan.has_large_disks && ends > 0 && self.random.chance(1, 2) {
            let end = SECTORS_A_BLOCK * (1 + self.random.below(ends));
            return end - AROUND + self.random.below(2 * AROUND);
        }
        self.random.below(3) * 24 + self.random.below(8)
    }

    /// Now and then a client zeroes or reads whole blocks, or all of its disk; whether it did.
    pub(super) fn asks_for_blocks(&mut self, member: &Member) -> Option<Outcome> {
        if !self.plan.has_large_disks || !self.random.chance(1, WHOLE_EVERY) {
            return None;
        }
        let range = self.draw_blocks(self.history.sectors(member.number));
        Some(match self.random.below(4) {
            0 => self.read(member, range, false),
            1 => self.read(member, range, true),
            _ => self.change(member, range, None),
        })
    }

    /// A whole disk, or whole blocks of it, with some sectors more at either end at times.
    fn draw_blocks(&mut self, sectors: u64) -> SectorRange {
        let blocks = sectors / SECTORS_A_BLOCK;
        if blocks == 0 || self.random.chance(1, 3) {
            return SectorRange::new(0, sectors);
        }
        let first = self.random.below(blocks);
        let end = first + 1 + self.random.below(blocks - first);
        let more = if self.random.chance(1, 2) { self.random.below(AROUND) } else { 0 };
        let range = SectorRange::new(first * SECTORS_A_BLOCK, end * SECTORS_A_BLOCK);
        SectorRange::new(range.start.saturating_sub(more), sectors.min(range.end + more))
    }

    /// Several operations in a row on files of sums fail; whether they will.
    pub(super) fn fails_sums(&mut self) -> bool {
        if !self.plan.has_large_disks || !self.random.chance(1, 4) {
            return false;
        }
        let kinds = [OpKind::Read, OpKind::Read, OpKind::Write, OpKind::Sync, OpKind::Zero];
        let (kind, after) = (*self.random.choose(&kinds), self.random.below(4));
        let row = 1 + self.random.below(ROW_MAX);
        self.tracer.note(|| format!("after {after} others, {row} {kind:?}s of sums fail in a row"));
        for _ in 0..row {
            self.disk.fail_next(Matcher::kind(kind).path(".sums").after(after), FaultKind::Io);
        }
        self.note_fault();
        true
    }
}
