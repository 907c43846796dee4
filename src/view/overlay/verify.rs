//! An overlay compared with its sums, all of it and both places of these, beside its clients. What counts no more is written anew.

use super::holes::{Intent, steps};
use super::{BLOCK_SECTORS, Overlay};
use crate::error::{Error, Result};
use crate::format::overlay_sums::SECTORS_A_UNIT;
use crate::format::sums::Copy;
use crate::throttle::Throttle;
use crate::units::SectorRange;
use crate::view::overlay_sums::{Looked, OverlaySums, Rot};

/// What a verification of an overlay saw.
#[derive(Debug, Default)]
pub struct OverlayReport {
    /// Bytes that were read of it.
    pub read_bytes: u64,
    /// What does not have its sums, or of which nobody can tell what it was.
    pub faults: Vec<(SectorRange, Error)>,
    /// Where bits of its sums had flipped that were written anew.
    pub mended: Vec<Rot>,
}

impl Overlay {
    /// Reads all that it holds, and all that its sums say. `wanted` is asked now and then; its error ends it.
    pub async fn verify(
        &self,
        throttle: &Throttle,
        wanted: impl Fn() -> Result<()>,
    ) -> Result<OverlayReport> {
        let mut report = OverlayReport::default();
        let Some(sums) = &self.sums else { return Ok(report) };
        if let Err(error) = sums.look_at_headers().await {
            report.faults.push((SectorRange::new(0, self.sectors), error));
        }
        let mut all = sums.said(self.sectors).await?;
        self.presence.borrow().ranges().for_each(|range| all.insert(self.units_around(range)));
        let all: Vec<_> = all.ranges().collect();
        for piece in all.into_iter().flat_map(steps) {
            let mut read_bytes = 0;
            match self.verify_piece(sums, piece).await {
                Ok(looked) => {
                    read_bytes = looked.bytes;
                    report.faults.extend(looked.faults);
                }
                Err(error) => report.faults.push((piece, error)),
            }
            report.read_bytes += read_bytes;
            throttle.take(read_bytes, &wanted).await?;
        }
        if let Err(error) = sums.mend_behind(self.sectors).await {
            report.faults.push((SectorRange::new(self.sectors, self.sectors), error));
        }
        report.mended = sums.take_rot();
        if !report.mended.is_empty() {
            self.flush().await?;
        }
        report.faults.sort_by_key(|(range, _)| range.start);
        Ok(report)
    }

    async fn verify_piece(&self, sums: &OverlaySums, piece: SectorRange) -> Result<Looked> {
        self.decide(piece, Intent::Describe).await?;
        let _turn = self.turns.take(piece).await;
        let present = self.presence.borrow().within(piece);
        let mut looked = sums.look(piece, &present).await?;
        let undecided = self.undecided.borrow().within(piece);
        looked.faults.extend(sums.holes(&undecided).await?.unknown);
        let damaged = std::mem::take(&mut looked.damaged);
        for (unit, copy) in damaged {
            let of_unit = SectorRange::new(unit * SECTORS_A_UNIT, (unit + 1) * SECTORS_A_UNIT);
            if looked.faults.iter().any(|(range, _)| range.intersection(of_unit).is_some()) {
                // What is wrong there would get sums that it does not have.
                looked.faults.push((of_unit, sums.damaged_place(unit, copy)));
            } else {
                self.mend(sums, unit, copy).await?;
            }
        }
        Ok(looked)
    }

    async fn mend(&self, sums: &OverlaySums, unit: u64, copy: Copy) -> Result<()> {
        if sums.waits_for_sync(unit, copy) {
            self.flush().await?;
        }
        sums.mend(unit, copy).await
    }
}

const _: () = assert!(SECTORS_A_UNIT.is_multiple_of(BLOCK_SECTORS));
