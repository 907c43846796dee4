//! A way out of damage: the recovery points that need what is lost go, merged into a sound one, and with them what is damaged.
//!
//! ```text
//!  base ─▶ delta 1 ─▶ delta 2 ─▶ delta 3 ─▶ delta 4      delta 1 lost sectors 8..16, which delta 4 has anew
//!             ✗ ───────── need it ──────▶  │  sound       1, 2 and 3 merge into 4, the newest first; the oldest is retired
//! ```
//!
//! Nothing is made up: a point that goes is gone, and one that stays shows what it showed. What the newest point shows of the loss
//! must have been written anew before (`protect::repair`). Invariant: what is lost is never read. Each step's newer side has every
//! sector that is lost of its older side, and merge and advance read chunks of which a sector is live.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::pin::pin;
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{Either, select};

use super::harm::{self, Harm, Lost};
use super::thinning::batch_behind;
use super::verify::{Finding, Severity, length_min};
use super::{Advance, State, Vault};
use crate::error::{Error, ErrorKind, Result, is_of_the_file};
use crate::extent::Ranges;
use crate::format::manifest::DiskState;
use crate::format::record::{Change, PointRecord};
use crate::units::{DiskSlot, PointId, SECTOR_BYTES, SectorCount, SectorRange};

/// While the base waits for a view, whether the repair is to be broken off is asked as often.
const PROCEED_DELAY: Duration = Duration::from_millis(500);
/// Sectors of a base that are read at a time.
const BASE_PIECE_SECTORS: u64 = (1 << 20) / SECTOR_BYTES;

/// What has to be done about a vault's damage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairPlan {
    /// The points that need what is lost, oldest first: they go.
    pub going: Vec<PointRecord>,
    /// What of it the newest point shows: to be written anew with what the disks hold, so that the next one is sound.
    pub renewed: BTreeMap<DiskSlot, Ranges>,
    /// Whether the base is on its way to a point.
    pub is_advancing: bool,
}

impl RepairPlan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.going.is_empty() && self.renewed.is_empty()
    }

    /// Bytes that are to be written anew.
    pub fn renewed_bytes(&self) -> u64 {
        self.renewed.values().map(|ranges| ranges.sectors() * SECTOR_BYTES).sum()
    }
}

/// The findings of a verification that say that stored bytes are lost.
pub fn damage(findings: &[Finding]) -> Vec<Finding> {
    findings.iter().filter(|finding| finding.severity >= Severity::Damage).cloned().collect()
}

impl Vault {
    async fn harm_of(&self, state: &State, findings: &mut [Finding]) -> Result<Harm> {
        harm::look(self, state, findings, async |_| Ok(())).await
    }

    /// What has to be done about what a verification found, as things are now. Fails where the manifest is damaged: what it does not
    /// say nobody can.
    pub async fn plan_repair(&self, findings: &mut [Finding]) -> Result<RepairPlan> {
        if let Some(finding) = findings.iter().find(|finding| finding.lost == Lost::Manifest) {
            let text = format!(
                "the manifest is damaged ({}): no repair goes by it; put back an earlier copy of the file, or stop the gateway and \
                 adopt a sound copy of the vault ('vault adopt')",
                finding.alone()
            );
            return Err(Error::corrupt(text));
        }
        let state = self.manifest.state().clone();
        let harm = self.harm_of(&state, findings).await?;
        let going = harm.needing.iter().map(|&index| state.points()[index].clone()).collect();
        Ok(RepairPlan { going, renewed: harm.newest, is_advancing: state.base_advance().is_some() })
    }

    /// Has the points go that need what is lost, and the base go where it was on its way to. The newest point must not be one of
    /// them. Each step is whole: broken off at any place, it is taken up by doing it again.
    pub async fn retire_harmed(&self, findings: &[Finding], proceed: impl Fn() -> Result<()>) -> Result<()> {
        {
            let _turn = self.retention_turn().await;
            // The base may have taken up meanwhile what hides its damage.
            let mut findings = self.still_damaged(findings).await?;
            let state = self.manifest.state().clone();
            let harm = self.harm_of(&state, &mut findings).await?;
            let newest = state.points().len().saturating_sub(1);
            if harm.needing.contains(&newest) {
                let text = "the newest recovery point still shows what is lost: repair again";
                return Err(Error::new(ErrorKind::Latched, text));
            }
            // The newest first: the places of those before do not change.
            for run in runs(&harm.needing).into_iter().rev() {
                self.check_unkept(&state.points()[run.clone()])?;
                self.retire_run(run, &state, &proceed).await?;
            }
            self.begin_new_base(&findings).await?;
        }
        self.arrive(findings, proceed).await?;
        self.sweep().await
    }

    /// The points of `run`, by their places, merge into the one behind them.
    async fn retire_run(
        &self,
        run: Range<usize>,
        before: &State,
        proceed: &impl Fn() -> Result<()>,
    ) -> Result<()> {
        let into = before.points()[run.end].id;
        let first = run.start.max(1);
        let mut end = run.end;
        while first < end {
            proceed()?;
            let start = {
                let state = self.manifest.state();
                end + 1 - batch_behind(&state.points()[first..=end])
            };
            self.merge_points(before.points()[start].id, into, None).await?;
            end = start;
        }
        if run.start == 0 {
            // What is lost may be the base's own, or of a delta that is on its way there: the base takes up what hides it.
            proceed()?;
            self.append_retirement(into).await?;
        }
        Ok(())
    }

    async fn append_retirement(&self, into: PointId) -> Result<()> {
        self.with_room(async || self.manifest.append(Change::PointsRetired(into)).await.map(drop)).await
    }

    /// What is lost of a base that no point shows is written anew when the base takes up what hides it: the oldest point's delta.
    async fn begin_new_base(&self, findings: &[Finding]) -> Result<()> {
        let bases: Vec<_> = findings.iter().filter(|finding| finding.is_of_base()).cloned().collect();
        if self.still_damaged(&bases).await?.is_empty() {
            return Ok(());
        }
        let oldest = {
            let state = self.manifest.state();
            state.points().first().filter(|_| state.base_advance().is_none()).map(|oldest| oldest.id)
        };
        match oldest {
            Some(oldest) => self.append_retirement(oldest).await,
            None => Ok(()),
        }
    }

    /// Waits until the base is where it was on its way to.
    async fn arrive(&self, findings: &[Finding], proceed: impl Fn() -> Result<()>) -> Result<()> {
        loop {
            proceed()?;
            let ended = self.leases.next_end();
            {
                let _turn = self.retention_turn().await;
                self.make_missing_bases(findings).await?;
                if self.finish_advance().await? != Advance::Waits {
                    return Ok(());
                }
            }
            self.wait_for_view(ended, &proceed).await?;
        }
    }

    /// Waits until a view has ended.
    async fn wait_for_view(
        &self,
        mut ended: oneshot::Receiver<()>,
        proceed: &impl Fn() -> Result<()>,
    ) -> Result<()> {
        while let Either::Right(_) = select(&mut ended, pin!(self.runtime.sleep(PROCEED_DELAY))).await {
            proceed()?;
        }
        Ok(())
    }

    /// Makes bases that are gone, and of which no point shows anything: the advance writes what it has to.
    async fn make_missing_bases(&self, findings: &[Finding]) -> Result<()> {
        let state = self.manifest.state().clone();
        if state.base_advance().is_none() || !findings.iter().any(Finding::is_of_base) {
            return Ok(());
        }
        let mut missing = Vec::new();
        for disk in state.all_disks().iter().filter(|disk| state.needs_base(disk)) {
            match self.bases.open(disk.record.id).await {
                // Or its sums cannot be opened: nobody can tell what it holds.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {
                    missing.push(disk)
                }
                _ => {}
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let mut findings = self.still_damaged(findings).await?;
        if !self.harm_of(&state, &mut findings).await?.needing.is_empty() {
            return Ok(());
        }
        for disk in missing {
            let sectors = length_min(&state, disk) / SECTOR_BYTES;
            tracing::warn!(disk = %disk.record.name, "making its base anew: every recovery point hides what it held");
            self.bases.delete(disk.record.id).await?;
            self.bases.create_empty(disk.record.id, SectorCount(sectors)).await?;
        }
        Ok(())
    }

    /// Those of `findings` that are still so, and of a base's as much of each as still is: sectors that an advance has written anew
    /// meanwhile are sound, and shown from there.
    pub async fn still_damaged(&self, findings: &[Finding]) -> Result<Vec<Finding>> {
        let state = self.manifest.state().clone();
        let mut left = Vec::new();
        for finding in findings {
            match finding.lost {
                Lost::Nothing | Lost::Manifest => left.push(finding.alone()),
                Lost::Blob(blob) | Lost::Chunk(blob, _) if state.names_blob(blob) => {
                    left.push(finding.alone());
                }
                Lost::Blob(_) | Lost::Chunk(..) => {}
                Lost::Base(id, range) => {
                    let disk = state.all_disks().iter().find(|disk| disk.record.id == id);
                    if let Some(disk) = disk.filter(|disk| state.needs_base(disk)) {
                        let lost = self.lost_of_base(&state, disk, range).await?;
                        left.extend(
                            lost.as_slice()
                                .iter()
                                .map(|&sectors| Finding { lost: Lost::Base(id, sectors), ..finding.alone() }),
                        );
                    }
                }
            }
        }
        let _ = self.harm_of(&state, &mut left).await?;
        Ok(left)
    }

    /// What of a range of a base is lost: all of it where the base cannot be read.
    async fn lost_of_base(&self, state: &State, disk: &DiskState, range: SectorRange) -> Result<Ranges> {
        let whole = || Ranges::of([range]);
        let read = async {
            let base = self.bases.open(disk.record.id).await?;
            let (length, wanted) = (base.bytes().await?, length_min(state, disk));
            if length < wanted {
                return Ok::<Ranges, Error>(whole());
            }
            // What lies beyond what any point has of it is shown by none.
            let end = range.end.saturating_mul(SECTOR_BYTES).min(wanted);
            let bytes = (range.start * SECTOR_BYTES).min(end)..end;
            let mut wrong = Vec::new();
            for data in base.data_ranges(bytes).await? {
                let sectors = SectorRange::new(data.start / SECTOR_BYTES, data.end.div_ceil(SECTOR_BYTES));
                for piece in Ranges::of([sectors]).pieces(BASE_PIECE_SECTORS) {
                    wrong.extend(base.mismatches(piece).await?);
                }
            }
            if wrong.is_empty() {
                return Ok(Ranges::default());
            }
            // What an advance covers no point shows, and it is written anew.
            let covered = self.covered_by_advance(disk.record.id).await?.unwrap_or_default();
            Ok(Ranges::of(wrong).without(covered.as_slice().iter().copied()))
        };
        match read.await {
            Err(error) if is_of_the_file(error.kind()) => Ok(whole()),
            read => read,
        }
    }
}

/// Places that follow each other, as runs.
fn runs(places: &BTreeSet<usize>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for &place in places {
        match runs.last_mut() {
            Some(run) if run.end == place => run.end += 1,
            _ => runs.push(place..place + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_make_runs() {
        let places = |places: &[usize]| runs(&places.iter().copied().collect());
        assert_eq!(places(&[]), Vec::<Range<usize>>::new());
        assert_eq!(places(&[0, 1, 2, 5, 7, 8]), [0..3, 5..6, 7..9]);
    }
}
