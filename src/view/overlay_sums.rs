//! The sums of an overlay, kept beside it while it is written: what is read of it is what was written there, or it is refused. The bytes are
//! `format::overlay_sums`'s.
//!
//! ```text
//!  write:   unit of sums: what it holds now, what it is about to hold ──▶ the blocks        flush: sync of the sums ──▶ of the overlay
//!  read:    blocks and sums at once ──▶ compared ──▶ given │ once more, with nobody writing there ──▶ given │ refused
//! ```
//!
//! Invariants:
//!
//! 1. Before a block is written, its unit says both what it holds and what it is about to hold. So a process may die between any two
//!    writes, and within each: of every sector one of the two is there.
//! 2. Since the last sync, a unit was written in one of its places only, and the other one is durable: so what was flushed can be told
//!    whatever a power cut does to the place that was being written. A sync and the writes of units exclude each other.
//! 3. What is not *doubtful* holds what its unit says that it holds, and nothing older. After an opening everything is doubtful: nobody knows how far
//!    the last process came. The first write of a unit reads what is doubtful of it, and says what is really there: else the next death
//!    would find a third content.
//!
//! What a hole is, the overlay's allocation says, and no sum: blocks that somebody gave back keep theirs, which then say nothing. So what was
//! written first into a hole has nothing before: torn, it is refused, and never taken for zeros. There is one exception: a copy of the overlay may
//! have made holes of blocks of zeros, and [the sums of these](OverlaySums::holes) say that they were written.

mod adopting;
mod file;
mod holes;
mod mending;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use futures::future::join_all;

pub(super) use self::file::beside;
pub(super) use self::mending::Looked;
pub use self::mending::Rot;
use super::presence::Presence;
use super::turns::Turns;
use crate::error::{Error, Result};
use crate::format::overlay_sums::{
    Found, PAIR_BYTES, SECTORS_A_UNIT, UNIT_BYTES, UNITS_A_PAGE, pair_offset, place_of, unit_offset, units_of,
};
use crate::format::sums::{Copy, UNKNOWN, sector_sums};
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::storage::{Buffer, File};
use crate::units::{DiskId, SECTOR_BYTES, SectorRange, to_usize};

/// Units that may await a sync: some 3 MiB of memory, of 1.7 GiB that were written without a flush in between.
const UNSYNCED_MAX: usize = 64 << 10;

/// The sums of one overlay.
pub(super) struct OverlaySums {
    runtime: Rc<Runtime>,
    file: File,
    overlay: File,
    disk: DiskId,
    /// On units, by whoever writes them or has to read what counts.
    turns: Turns,
    /// Units that were written since the last sync, and where.
    unsynced: RefCell<BTreeMap<u64, Copy>>,
    /// What may hold something older than its unit says.
    doubtful: RefCell<Presence>,
    /// What was written before there were sums, and has none yet: it is served unchecked.
    unsummed: RefCell<Presence>,
    /// Where in the file something was damaged and is written anew, that nobody was told of yet.
    rot: RefCell<Vec<u64>>,
    planted: Planted,
}

impl OverlaySums {
    /// Where the sums are.
    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// What the overlay holds of a range that is present in it, while somebody may be writing there: then it may be refused.
    pub(super) async fn glance(&self, range: SectorRange) -> Result<Buffer> {
        let bytes = self.runtime.read(&self.overlay, range.byte_offset(), to_usize(range.bytes()));
        let (bytes, found) = futures::join!(bytes, self.load(units_of(range)));
        let bytes = bytes?;
        self.compare(range, &bytes, &found?)?;
        Ok(bytes)
    }

    /// The same while nobody writes there.
    pub(super) async fn read(&self, range: SectorRange) -> Result<Buffer> {
        let units = units_of(range);
        // Others may be writing sums of blocks beside these.
        let _turn = self.turns.take(SectorRange::new(units.start, units.end)).await;
        self.glance(range).await
    }

    /// Says what `blocks` are about to hold. Afterwards they are written, or it is said that they [may not be](OverlaySums::doubt).
    /// Nobody else writes there meanwhile.
    pub(super) async fn announce(
        &self,
        blocks: SectorRange,
        bytes: &[u8],
        presence: &RefCell<Presence>,
    ) -> Result<()> {
        let units = units_of(blocks);
        let _turn = self.turns.take(SectorRange::new(units.start, units.end)).await;
        let mut found = self.load(units.clone()).await?;
        let certain = self.look_at_doubtful(&units, &mut found).await?;
        let parts = presence.borrow().lookup(blocks);
        let is_present = parts.iter().flat_map(|(part, present)| (part.start..part.end).map(|_| *present));
        for ((sector, sum), is_present) in
            (blocks.start..).zip(sector_sums(blocks.start, bytes)).zip(is_present)
        {
            let unit = &mut found[to_usize(sector / SECTORS_A_UNIT - units.start)].newest;
            let place = place_of(sector);
            unit.before[place] = if is_present { unit.now[place] } else { UNKNOWN };
            unit.now[place] = sum;
        }
        self.store(&units, found).await?;
        let mut doubtful = self.doubtful.borrow_mut();
        certain.into_iter().for_each(|part| doubtful.remove(part));
        Ok(())
    }

    /// Blocks may hold what they held before they were announced, as far as they are present.
    pub(super) fn doubt(&self, blocks: SectorRange, presence: &Presence) {
        let parts = presence.lookup(blocks).into_iter().filter(|(_, present)| *present);
        let mut doubtful = self.doubtful.borrow_mut();
        parts.for_each(|(part, _)| doubtful.insert(part));
    }

    /// Blocks hold what was announced.
    pub(super) fn settle(&self, blocks: SectorRange) {
        self.unsummed.borrow_mut().remove(blocks);
    }

    /// Blocks are holes now.
    pub(super) fn forget(&self, blocks: SectorRange) {
        self.doubtful.borrow_mut().remove(blocks);
        self.unsummed.borrow_mut().remove(blocks);
    }

    /// Makes all sums that were written durable.
    pub(super) async fn sync(&self) -> Result<()> {
        // No unit is being written: the place that it is in would be neither durable nor free to be written.
        let _turn = self.turns.take(SectorRange::new(0, u64::MAX)).await;
        if self.unsynced.borrow().is_empty() {
            return Ok(());
        }
        if !self.planted.is(Bug::OverlaySumsNotSynced) {
            self.runtime.sync(&self.file).await?;
        }
        self.unsynced.borrow_mut().clear();
        Ok(())
    }

    /// Whether it is time for a sync, for memory's sake.
    pub(super) fn wants_sync(&self) -> bool {
        self.unsynced.borrow().len() >= UNSYNCED_MAX
    }

    /// What the places of some units say.
    async fn load(&self, units: Range<u64>) -> Result<Vec<Found>> {
        let pages = units.start / UNITS_A_PAGE..units.end.div_ceil(UNITS_A_PAGE);
        let start = pair_offset(pages.start);
        let length = to_usize((pages.end - pages.start) * PAIR_BYTES);
        let bytes = self.runtime.read(&self.file, start, length).await?;
        let place = |unit, copy| &bytes[to_usize(unit_offset(unit, copy) - start)..][..UNIT_BYTES];
        Ok(units.map(|unit| Found::of(Copy::BOTH.map(|copy| place(unit, copy)), self.disk, unit)).collect())
    }

    /// Has units say what their doubtful sectors really hold, as far as that is something that they may; which these are.
    async fn look_at_doubtful(&self, units: &Range<u64>, found: &mut [Found]) -> Result<Vec<SectorRange>> {
        let around = SectorRange::new(units.start * SECTORS_A_UNIT, units.end * SECTORS_A_UNIT);
        let parts = self.doubtful.borrow().lookup(around);
        let parts: Vec<_> =
            parts.into_iter().filter(|(_, doubtful)| *doubtful).map(|(part, _)| part).collect();
        for &part in &parts {
            let bytes = self.runtime.read(&self.overlay, part.byte_offset(), to_usize(part.bytes())).await?;
            for (sector, sum) in (part.start..).zip(sector_sums(part.start, &bytes)) {
                let found = &mut found[to_usize(sector / SECTORS_A_UNIT - units.start)];
                let place = place_of(sector);
                // What is damaged keeps the sum that it does not have.
                if found.fits(place, sum, false) {
                    found.newest.now[place] = sum;
                }
            }
        }
        Ok(parts)
    }

    /// Writes units, each to the place that does not count, or that was written already since the last sync.
    async fn store(&self, units: &Range<u64>, found: Vec<Found>) -> Result<()> {
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for (unit, mut found) in units.clone().zip(found) {
            let free = match found.at {
                Some(counts) if self.planted.is(Bug::OverlaySumsInPlace) => counts,
                counts => counts.map_or(Copy::First, Copy::other),
            };
            let to = *self.unsynced.borrow_mut().entry(unit).or_insert(free);
            found.newest.sequence += 1;
            let (at, stored) = (unit_offset(unit, to), found.newest.encode(self.disk, unit));
            match runs.last_mut() {
                Some((start, run)) if *start + run.len() as u64 == at => run.extend_from_slice(&stored),
                _ => runs.push((at, stored.to_vec())),
            }
        }
        let write =
            |(at, run): (u64, Vec<u8>)| self.runtime.write(&self.file, at, Buffer::copy_of(&run).freeze());
        // All of them to their end, whatever fails: none may land later.
        join_all(runs.into_iter().map(write)).await.into_iter().collect()
    }

    fn compare(&self, range: SectorRange, bytes: &[u8], found: &[Found]) -> Result<()> {
        if self.planted.is(Bug::OverlayUnverified) {
            return Ok(());
        }
        let bad = self.misfits(range, bytes, found).into_iter().next();
        bad.map_or(Ok(()), |(_, error)| Err(error))
    }

    /// The runs of sectors that do not have their sums, and what there is to say of each.
    fn misfits(&self, range: SectorRange, bytes: &[u8], found: &[Found]) -> Vec<(SectorRange, Error)> {
        let first_unit = range.start / SECTORS_A_UNIT;
        let of_sector = |sector: u64| &found[to_usize(sector / SECTORS_A_UNIT - first_unit)];
        let parts = self.doubtful.borrow().lookup(range);
        let is_doubtful = parts.iter().flat_map(|(part, doubtful)| (part.start..part.end).map(|_| *doubtful));
        let mut bad: Vec<SectorRange> = Vec::new();
        for ((sector, sum), is_doubtful) in
            (range.start..).zip(sector_sums(range.start, bytes)).zip(is_doubtful)
        {
            let fits = of_sector(sector).fits(place_of(sector), sum, !is_doubtful);
            match bad.last_mut().filter(|bad| bad.end == sector) {
                _ if fits => {}
                Some(bad) => bad.end += 1,
                None => bad.push(SectorRange::new(sector, sector + 1)),
            }
        }
        let unsummed = self.unsummed.borrow();
        let is_summed = |bad: &SectorRange| !unsummed.touches(*bad);
        let named = |bad: SectorRange| (bad, self.damage(bad, of_sector(bad.start)));
        bad.into_iter()
            .flat_map(|bad| unsummed.lookup(bad))
            .map(|(part, _)| part)
            .filter(is_summed)
            .map(named)
            .collect()
    }

    fn at_place(&self, error: Error, unit: u64, copy: Copy) -> Error {
        error.at_path(self.file.path()).at_offset(unit_offset(unit, copy))
    }

    /// What there is to say of sectors that do not have their sums.
    fn damage(&self, bad: SectorRange, found: &Found) -> Error {
        if let Some(copy) = found.damaged {
            let text = format!("the sums of sectors {bad} of the overlay are damaged: {MEND}");
            return self.at_place(Error::corrupt(text), bad.start / SECTORS_A_UNIT, copy);
        }
        let text = format!(
            "sectors {bad} of the overlay do not match their sums; bits flipped in either, or the power failed before they were flushed: {MEND}"
        );
        Error::corrupt(text).at_path(self.overlay.path()).at_offset(bad.start * SECTOR_BYTES)
    }
}

/// What helps where sectors are refused.
const MEND: &str = "write them anew, or end the test failover (failover cleanup) and start another";
/// What helps where nothing can be served.
const END: &str = "end the test failover (failover cleanup) and start another";

#[cfg(all(test, feature = "sim"))]
mod tests;
