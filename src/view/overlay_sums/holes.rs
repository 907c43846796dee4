//! What the sums say of blocks that the overlay's allocation calls holes: a copy of the overlay that makes holes of zeros leaves no other trace
//! of what was written there.

use super::OverlaySums;
use crate::error::{Error, Result};
use crate::format::overlay_sums::{Found, Hole, SECTORS_A_UNIT, place_of, units_of};
use crate::format::sums::UNKNOWN;
use crate::units::{SectorRange, to_usize};
use crate::view::overlay::BLOCK_SECTORS;
use crate::view::presence::Presence;

/// What holes turn out to be.
#[derive(Default)]
pub(in crate::view) struct Holes {
    /// Blocks of zeros that were written.
    pub(in crate::view) zeros: Presence,
    /// Blocks of which the damaged places of a unit may have said that they were written, and what there is to say of each.
    pub(in crate::view) unknown: Vec<(SectorRange, Error)>,
}

impl OverlaySums {
    /// What is said of holes. Nobody writes in their units meanwhile.
    pub(in crate::view) async fn holes(&self, parts: &[SectorRange]) -> Result<Holes> {
        let mut holes = Holes::default();
        for &part in parts {
            let units = units_of(part);
            let found = self.load(units.clone()).await?;
            for block in blocks(part) {
                let found = &found[to_usize(block.start / SECTORS_A_UNIT - units.start)];
                match hole(found, block) {
                    Hole::Empty => {}
                    Hole::Zeros => holes.zeros.insert(block),
                    Hole::Unknown => holes.unknown.push((block, self.damage(block, found))),
                }
            }
        }
        Ok(holes)
    }

    /// Blocks that were announced with zeros stay holes: what was said of them is taken back, or the next opening would take it for what is
    /// there. Nobody else writes there meanwhile.
    pub(in crate::view) async fn withdraw(&self, parts: &[SectorRange]) -> Result<()> {
        for &part in parts {
            let units = units_of(part);
            let _turn = self.turns.take(SectorRange::new(units.start, units.end)).await;
            let mut found = self.load(units.clone()).await?;
            let mut is_said = false;
            for block in blocks(part) {
                let found = &mut found[to_usize(block.start / SECTORS_A_UNIT - units.start)];
                is_said |= hole(found, block) != Hole::Empty;
                for sector in block.start..block.end {
                    found.newest.now[place_of(sector)] = UNKNOWN;
                    found.newest.before[place_of(sector)] = UNKNOWN;
                }
            }
            if is_said {
                self.store(&units, found).await?;
            }
        }
        Ok(())
    }
}

fn hole(found: &Found, block: SectorRange) -> Hole {
    let first = place_of(block.start);
    found.hole(first..first + to_usize(block.sectors()))
}

/// A range in parts of one block each. Of a block some may be data: file systems may have smaller ones than an overlay.
fn blocks(range: SectorRange) -> impl Iterator<Item = SectorRange> {
    let first = range.start / BLOCK_SECTORS * BLOCK_SECTORS;
    let starts = (first..range.end).step_by(to_usize(BLOCK_SECTORS));
    starts.map(move |start| SectorRange::new(start.max(range.start), range.end.min(start + BLOCK_SECTORS)))
}
