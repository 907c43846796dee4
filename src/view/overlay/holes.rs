//! What the holes of an overlay are, decided before anybody reads or writes there: `cp -a` and `rsync -S` make holes of blocks of zeros, and the
//! point would show through them. The sums say which were written; these are filled again.
//!
//! Looked at when it is asked for, and once: of a hole of which no unit ever said anything nobody asks. A unit of which both places are damaged might have
//! said it: its holes are refused until they are written anew, as is what does not have its sums. Before anything is written in such a unit, which
//! makes it whole, what is refused is made a block of its own without a sum, or the next reader would be shown the point.

use super::{Overlay, PIECE_SECTORS};
use crate::error::Result;
use crate::format::overlay_sums::{SECTORS_A_UNIT, units_of};
use crate::storage::{Buffer, Slice};
use crate::units::{SECTOR_BYTES, SectorRange, to_usize};
use crate::view::overlay_sums::OverlaySums;
use crate::view::presence::Presence;

/// What a range is looked at for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    /// What nobody can tell is refused.
    Read,
    /// What nobody can tell in the same units stays refused afterwards.
    Write,
    /// What nobody can tell stays undecided.
    Describe,
}

/// Decided at a time: whole units.
const STEP_SECTORS: u64 = PIECE_SECTORS / SECTORS_A_UNIT * SECTORS_A_UNIT;

impl Overlay {
    /// Decides what the holes of a range are, with all of their blocks.
    pub(super) async fn decide(&self, range: SectorRange, intent: Intent) -> Result<()> {
        let Some(sums) = &self.sums else { return Ok(()) };
        let around = match intent {
            Intent::Write => self.units_around(range),
            Intent::Read | Intent::Describe => self.blocks_around(range),
        };
        if !self.undecided.borrow().touches(around) {
            return Ok(());
        }
        let parts = self.undecided.borrow().within(around);
        for piece in parts.into_iter().flat_map(steps) {
            let _turn = self.turns.take(self.units_around(piece)).await;
            self.decide_piece(sums, piece, intent).await?;
        }
        Ok(())
    }

    /// What is allocated as far as is known: of what nobody can tell it is not said that it reads as zeros.
    pub(super) fn allocated(&self, window: SectorRange) -> Presence {
        let mut allocated = Presence::default();
        for map in [&self.presence, &self.undecided] {
            map.borrow().within(window).into_iter().for_each(|part| allocated.insert(part));
        }
        allocated
    }

    /// The sectors of a range's units.
    pub(super) fn units_around(&self, range: SectorRange) -> SectorRange {
        let units = units_of(range);
        let end = (units.end * SECTORS_A_UNIT).min(self.sectors);
        SectorRange::new(units.start * SECTORS_A_UNIT, end)
    }

    /// In a turn on all the units of the piece.
    async fn decide_piece(&self, sums: &OverlaySums, piece: SectorRange, intent: Intent) -> Result<()> {
        // Somebody may have been here meanwhile.
        let parts = self.undecided.borrow().within(piece);
        let holes = sums.holes(&parts).await?;
        let lost = self.shown_as_other(&holes.zeros).await;
        for range in lost.ranges() {
            self.fill_hole(sums, range).await?;
            self.tell_of_lost(range);
        }
        let mut unknown = holes.unknown.into_iter();
        match intent {
            Intent::Write => {
                for (block, _) in unknown.by_ref() {
                    self.fill_hole(sums, block).await?;
                }
            }
            Intent::Read | Intent::Describe => {}
        }
        let mut refused = None;
        let mut undecided = self.undecided.borrow_mut();
        parts.into_iter().for_each(|part| undecided.remove(part));
        for (block, error) in unknown {
            undecided.insert(block);
            refused.get_or_insert(error);
        }
        refused.filter(|_| intent == Intent::Read).map_or(Ok(()), Err)
    }

    /// Of blocks of zeros those that lie over something else.
    async fn shown_as_other(&self, zeros: &Presence) -> Presence {
        let mut lost = Presence::default();
        for range in zeros.ranges() {
            let mut start = range.start;
            match self.view.allocation(self.disk, range).await {
                Ok(runs) => {
                    for run in runs {
                        let part = SectorRange::new(start, start + run.bytes / SECTOR_BYTES);
                        start = part.end;
                        if let Some(blocks) =
                            self.blocks_around(part).intersection(range).filter(|_| run.allocated)
                        {
                            lost.insert(blocks);
                        }
                    }
                }
                // What the point has there nobody needs to know.
                Err(_) => lost.insert(range),
            }
        }
        lost
    }

    /// Makes blocks of a hole, of zeros: which have the sums of these, or none.
    async fn fill_hole(&self, sums: &OverlaySums, range: SectorRange) -> Result<()> {
        let zeros = Buffer::zeroed(to_usize(range.bytes())).freeze();
        self.runtime().write(&self.file, range.byte_offset(), zeros).await?;
        let mut presence = self.presence.borrow_mut();
        presence.insert(range);
        sums.doubt(range, &presence);
        Ok(())
    }

    fn tell_of_lost(&self, range: SectorRange) {
        if !self.has_told.replace(true) {
            tracing::warn!(
                overlay = %self.file.path().display(),
                offset = range.byte_offset(),
                "blocks of zeros of an overlay have become holes, as a copy that makes files sparse leaves them; its sums tell which, and \
                 they are filled again"
            );
        }
    }

    /// After a write that failed: what was announced and is absent still is a hole.
    pub(super) async fn take_back(&self, sums: &OverlaySums, blocks: SectorRange, bytes: &Slice) {
        let mut holes = Presence::default();
        holes.insert(blocks);
        self.presence.borrow().within(blocks).into_iter().for_each(|part| holes.remove(part));
        let holes: Vec<_> = holes.ranges().collect();
        // Of nothing else it would be believed.
        let is_zeros = |range: &SectorRange| {
            let start = to_usize(range.byte_offset() - blocks.byte_offset());
            bytes[start..start + to_usize(range.bytes())]
                .chunks(512)
                .any(|sector| sector.iter().all(|byte| *byte == 0))
        };
        let holes: Vec<_> = holes.into_iter().filter(is_zeros).collect();
        if let Err(error) = sums.withdraw(&holes).await {
            tracing::error!(%error, "an overlay is latched: the sums of a write that failed could not be taken back");
            self.latched.set(true);
        }
    }
}

/// A range in pieces that end on multiples of the step, and so with a unit.
pub(super) fn steps(range: SectorRange) -> impl Iterator<Item = SectorRange> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let end = ((start / STEP_SECTORS + 1) * STEP_SECTORS).min(range.end);
        let piece = (start < end).then(|| SectorRange::new(start, end));
        start = end;
        piece
    })
}
