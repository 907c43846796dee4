//! Verifying a base: every sector against its sum, holes too, and the sums against their own checksums.
//!
//! While an advance is pending, the sectors that it covers are anything, and shown by no point. So what does not match is looked at
//! again while nobody writes, and what is covered is left out.

use std::ops::Range;
use std::path::Path;

use super::Vault;
use super::base::Base;
use super::harm::Lost;
use super::sums::{BlockFault, Sums};
use super::verify::{Finding, Pace, Severity, VerifyReport, evict};
use crate::bookmark::Place;
use crate::error::{Error, ErrorKind, Result};
use crate::extent::Ranges;
use crate::format::manifest::DiskState;
use crate::format::sums::{BLOCK_BYTES, Copy, Of, sectors_of};
use crate::storage::File;
use crate::units::{DiskId, SECTOR_BYTES, SectorRange, to_usize};

/// Bytes of a base that are read at a time,
const PIECE_BYTES: u64 = 1 << 20;
/// and where they cannot be: a page.
const PAGE_BYTES: u64 = 4 << 10;

/// What is verified.
struct Target<'a> {
    vault: &'a Vault,
    disk: DiskId,
    base: &'a Base,
    /// Sectors that any point has of it: what a disk lost by shrinking is shown by none, and written anew should it grow.
    shown: u64,
}

/// Reads a base and its sums, and reports what is wrong. Fails where it cannot be opened.
pub(super) async fn verify_base<P: Fn(u64, u64) -> Result<()>>(
    vault: &Vault,
    disk: &DiskState,
    length_min: u64,
    report: &mut VerifyReport,
    pace: &Pace<P>,
) -> Result<()> {
    let (id, slot) = (disk.record.id, disk.record.slot);
    let base = vault.bases().open(id).await?;
    let length = base.bytes().await?;
    if length < length_min {
        let text = format!("{length} bytes long; its disk has {length_min}");
        report.damage(beyond(id, length), Error::corrupt(text), base.file().path())?;
    }
    let target = Target { vault, disk: id, base: &base, shown: length_min / SECTOR_BYTES };
    target.evict().await;
    let end = length.max(length_min) / SECTOR_BYTES;
    if let Some(sums) = base.sums() {
        target.verify_sums(sums, SectorRange::new(0, end), report, pace).await?;
    }
    let mut hole = 0;
    for range in vault.runtime().data_ranges(base.file(), 0..length).await? {
        target.verify_hole(hole..range.start, report).await?;
        hole = range.end;
        for start in (range.start..range.end).step_by(to_usize(PIECE_BYTES)) {
            let piece = start..range.end.min(start + PIECE_BYTES);
            let bytes = piece.end - piece.start;
            let place = Place::Bases(slot, piece.end);
            if place <= pace.from {
                pace.skip(bytes);
                continue;
            }
            target.verify_piece(piece, report).await?;
            report.base_bytes += bytes;
            pace.pass(place, report);
            pace.read(bytes).await?;
        }
    }
    target.verify_hole(hole..end * SECTOR_BYTES, report).await?;
    target.evict().await;
    Ok(())
}

/// All of a base.
pub(super) fn whole(disk: &DiskState) -> Lost {
    beyond(disk.record.id, 0)
}

/// What a base lacks from a length on.
fn beyond(disk: DiskId, length: u64) -> Lost {
    Lost::Base(disk, SectorRange::new(length / SECTOR_BYTES, u64::MAX))
}

impl Target<'_> {
    async fn evict(&self) {
        let sums = self.base.sums().map(|sums| sums.file().clone());
        for file in sums.into_iter().chain([self.base.file().clone()]) {
            evict(self.vault, Ok(file)).await;
        }
    }

    async fn verify_piece(&self, piece: Range<u64>, report: &mut VerifyReport) -> Result<()> {
        let Some(found) = self.look(&piece).await? else {
            return self.find_unreadable(piece, report).await;
        };
        if found.is_empty() {
            return Ok(());
        }
        let again = async || Ok(self.look(&piece).await?.unwrap_or_default());
        self.report_mismatches(self.that_stay(again).await?, report).await
    }

    /// The sectors of a piece that do not have their sums; `None` if it cannot be read.
    async fn look(&self, piece: &Range<u64>) -> Result<Option<Vec<SectorRange>>> {
        let len = to_usize(piece.end - piece.start);
        match (self.vault.runtime().read(self.base.file(), piece.start, len).await, self.base.sums()) {
            (Ok(bytes), Some(sums)) => sums.mismatches(piece.start / SECTOR_BYTES, &bytes).await.map(Some),
            (Ok(_), None) => Ok(Some(Vec::new())),
            (Err(error), _) if error.kind() == ErrorKind::Shutdown => Err(error),
            (Err(_), _) => Ok(None),
        }
    }

    /// A hole must be one by the sums, too.
    async fn verify_hole(&self, hole: Range<u64>, report: &mut VerifyReport) -> Result<()> {
        let Some(sums) = self.base.sums() else { return Ok(()) };
        let range = SectorRange::new(hole.start / SECTOR_BYTES, hole.end / SECTOR_BYTES);
        if range.is_empty() || sums.nonzero(&[range]).await?.is_empty() {
            return Ok(());
        }
        // An advance may have filled it meanwhile.
        let again = async || {
            let mut found = Vec::new();
            for data in self.base.data_ranges(hole.clone()).await? {
                for start in (data.start..data.end).step_by(to_usize(PIECE_BYTES)) {
                    found.extend(
                        self.look(&(start..data.end.min(start + PIECE_BYTES))).await?.unwrap_or_default(),
                    );
                }
            }
            Ok(found)
        };
        self.report_mismatches(self.that_stay(again).await?, report).await
    }

    /// What is still found while no base is written, without the sectors that a pending advance covers.
    async fn that_stay(&self, look: impl AsyncFn() -> Result<Vec<SectorRange>>) -> Result<Vec<SectorRange>> {
        let _turn = self.vault.retention_turn().await;
        self.base.sums().iter().for_each(|sums| sums.forget());
        let found = look().await?;
        if found.is_empty() {
            return Ok(found);
        }
        // Where nobody can tell what it covers, what hinders that is a finding, and no view is given what does not match.
        let Some(covered) = self.vault.covered_by_advance(self.disk).await? else { return Ok(Vec::new()) };
        Ok(Ranges::of(found).without(covered.as_slice().iter().copied()).as_slice().to_vec())
    }

    /// What it means that sectors are lost.
    fn loss_of(&self, sectors: SectorRange) -> (Severity, Lost) {
        if sectors.start < self.shown {
            (Severity::Damage, Lost::Base(self.disk, sectors))
        } else {
            (Severity::Cache, Lost::Nothing)
        }
    }

    async fn report_mismatches(&self, sectors: Vec<SectorRange>, report: &mut VerifyReport) -> Result<()> {
        for sectors in sectors {
            for (part, error) in self.base.blame(sectors).await? {
                self.report_mismatch(part, error, report)?;
            }
        }
        Ok(())
    }

    fn report_mismatch(&self, sectors: SectorRange, error: Error, report: &mut VerifyReport) -> Result<()> {
        let path = self.base.file().path();
        let is_of_sums = error.path() != Some(path);
        let is_same = |last: &Finding| {
            let is_there = error.path() == Some(&last.path) && (!is_of_sums || error.offset() == last.offset);
            match &last.lost {
                Lost::Base(disk, lost) if is_there && *disk == self.disk => Some(*lost),
                _ => None,
            }
        };
        // Both copies of its sums are damaged, which is a finding already.
        let is_told = |last: &Finding| {
            is_of_sums
                && is_same(last).is_some_and(|lost| lost.start <= sectors.start && sectors.end <= lost.end)
        };
        if report.findings.iter().any(is_told) {
            return Ok(());
        }
        // Neighbours in one finding, also from piece to piece.
        let continues = |last: &&mut Finding| is_same(last).is_some_and(|lost| lost.end == sectors.start);
        match report.findings.last_mut().filter(continues) {
            Some(Finding { lost: Lost::Base(_, last), .. }) if sectors.start < self.shown => {
                last.end = sectors.end;
                Ok(())
            }
            _ => {
                let (severity, lost) = self.loss_of(sectors);
                report.find(severity, lost, error, path)
            }
        }
    }

    /// Says which pages of a piece cannot be read: neighbours in one finding.
    async fn find_unreadable(&self, piece: Range<u64>, report: &mut VerifyReport) -> Result<()> {
        let (file, mut next): (&File, _) = (self.base.file(), None);
        for start in (piece.start..piece.end).step_by(to_usize(PAGE_BYTES)) {
            let bytes = PAGE_BYTES.min(piece.end - start);
            if let Err(error) = self.vault.runtime().read(file, start, to_usize(bytes)).await {
                let range = SectorRange::new(start / SECTOR_BYTES, (start + bytes).div_ceil(SECTOR_BYTES));
                match report.findings.last_mut().map(|last| &mut last.lost) {
                    Some(Lost::Base(_, last)) if next == Some(start) => last.end = range.end,
                    _ => {
                        let (severity, lost) = self.loss_of(range);
                        report.find(severity, lost, error.at_offset(start), file.path())?;
                    }
                }
                next = Some(start + bytes);
            }
        }
        Ok(())
    }

    async fn verify_sums<P: Fn(u64, u64) -> Result<()>>(
        &self,
        sums: &Sums,
        all: SectorRange,
        report: &mut VerifyReport,
        pace: &Pace<P>,
    ) -> Result<()> {
        let path = sums.file().path();
        if let Some(error) = sums.header_fault().await? {
            report.find(Severity::Cache, Lost::Nothing, error, path)?;
        }
        for block in sums.stored_blocks(all).await? {
            if sums.fault_of(block).await?.is_some()
                && let Some(fault) = self.block_fault_that_stays(sums, block).await?
            {
                self.report_block(block, fault, path, report)?;
            }
            pace.read_besides(2 * BLOCK_BYTES as u64).await?;
        }
        Ok(())
    }

    async fn block_fault_that_stays(&self, sums: &Sums, block: u64) -> Result<Option<BlockFault>> {
        let _turn = self.vault.retention_turn().await;
        let fault = sums.fault_of(block).await?;
        if fault.is_none() {
            return Ok(None);
        }
        // An advance that was begun leaves its blocks in any state, and goes on.
        let covered = self.vault.covered_by_advance(self.disk).await?;
        Ok(fault.filter(|_| covered.is_some_and(|covered| !covered.meets(sectors_of(block)))))
    }

    fn report_block(
        &self,
        block: u64,
        fault: BlockFault,
        path: &Path,
        report: &mut VerifyReport,
    ) -> Result<()> {
        let sectors = sectors_of(block);
        let (severity, lost, copy, text) = match fault {
            BlockFault::One(copy) => {
                let text = format!(
                    "one of the two copies of the sums of the base's sectors {sectors} is damaged; the other one is used, and an \
                     advance of the base there writes both anew"
                );
                (Severity::Cache, Lost::Nothing, copy, text)
            }
            BlockFault::Both => {
                let text = format!("both copies of the sums of the base's sectors {sectors} are damaged");
                let (severity, lost) = self.loss_of(sectors);
                (severity, lost, Copy::First, text)
            }
        };
        let error = Error::corrupt(text).at_offset(Of::Base.block_offset(block, copy));
        report.find(severity, lost, error, path)
    }
}
