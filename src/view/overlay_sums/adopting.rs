//! Sums for what was written before there were any: whatever is there is believed, once.

use super::OverlaySums;
use crate::error::Result;
use crate::format::overlay_sums::{SECTORS_A_UNIT, place_of, units_of};
use crate::format::sums::sector_sums;
use crate::units::{SectorRange, to_usize};

impl OverlaySums {
    /// What has no sums yet of a range.
    pub(in crate::view) fn unsummed(&self, range: SectorRange) -> Vec<SectorRange> {
        self.unsummed.borrow().within(range)
    }

    /// Gives what a part holds its sums. Nobody writes there meanwhile.
    pub(in crate::view) async fn adopt(&self, part: SectorRange) -> Result<()> {
        let bytes = self.runtime.read(&self.overlay, part.byte_offset(), to_usize(part.bytes())).await?;
        let units = units_of(part);
        let _turn = self.turns.take(SectorRange::new(units.start, units.end)).await;
        let mut found = self.load(units.clone()).await?;
        for (sector, sum) in (part.start..).zip(sector_sums(part.start, &bytes)) {
            found[to_usize(sector / SECTORS_A_UNIT - units.start)].newest.now[place_of(sector)] = sum;
        }
        self.store(&units, found).await?;
        self.give_up(part);
        Ok(())
    }

    /// What has no sum by now has none for good, and is refused.
    pub(in crate::view) fn give_up(&self, part: SectorRange) {
        self.unsummed.borrow_mut().remove(part);
        self.doubtful.borrow_mut().remove(part);
    }
}
