//! The task that goes through the disks piece by piece.
//!
//! It compares with one point for a **round**, then with the then newest: a round is short, so that retention does not wait for a
//! verification of days, and few later points have to be looked at. What neither side has allocated is not read.

use std::rc::Rc;
use std::time::Duration;

use super::Verification;
use super::findings::{Difference, GroupReport, What};
use super::live::{Asker, LiveRead};
use crate::allocation::AllocationRun;
use crate::block::DataPiece;
use crate::bookmark::Place;
use crate::error::{Error, ErrorKind, Result};
use crate::extent::Ranges;
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::storage::Op;
use crate::throttle::Throttle;
use crate::units::{DiskId, DiskSlot, MonotonicNanos, SECTOR_BYTES, SectorRange, to_usize};
use crate::vault::Vault;
use crate::view::View;

/// A round lasts so long,
const ROUND: Duration = Duration::from_secs(60);
/// or until there are so many later points.
const ROUND_POINTS: usize = 16;
/// Pieces of which is asked at a time whether they are allocated.
const PIECES_A_WINDOW: u64 = 64;
/// What cannot be read is found to this many sectors.
const UNREADABLE_SECTORS: u64 = 8;
/// A point may go between the look and the opening of its view.
const OPENINGS: usize = 4;

/// Goes through everything once.
pub(super) async fn run(
    runtime: Rc<Runtime>,
    vault: Rc<Vault>,
    asker: Asker,
    verification: Verification,
    planted: Planted,
) -> Result<GroupReport> {
    let throttle = verification.pacing.on(&runtime);
    let piece_sectors = (verification.piece_bytes / SECTOR_BYTES).max(1);
    let report = GroupReport::default();
    let (round, done, total) = (None, 0, 0);
    let mut task = Task {
        runtime,
        vault,
        asker,
        verification,
        throttle,
        planted,
        piece_sectors,
        report,
        round,
        done,
        total,
    };
    task.run().await?;
    Ok(task.report)
}

pub(super) struct Task {
    runtime: Rc<Runtime>,
    vault: Rc<Vault>,
    pub(super) asker: Asker,
    verification: Verification,
    throttle: Throttle,
    pub(super) planted: Planted,
    piece_sectors: u64,
    pub(super) report: GroupReport,
    round: Option<Round>,
    /// Bytes of disks that were gone through, and all.
    done: u64,
    total: u64,
}

/// The point that is compared with for now.
#[derive(Clone)]
struct Round {
    view: Rc<View>,
    began: MonotonicNanos,
}

/// A disk that is gone through.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) id: DiskId,
    slot: DiskSlot,
    pub(super) name: String,
    pub(super) sectors: u64,
}

/// How going through a part of a disk ended.
enum Passed {
    Done,
    /// There is nothing more to compare of this disk.
    Over,
}

impl Task {
    async fn run(&mut self) -> Result<()> {
        let Some(round) = self.round().await? else { return Ok(()) };
        let targets = round.view.disks().iter().map(|disk| Target {
            id: disk.id(),
            slot: disk.slot(),
            name: disk.name().to_owned(),
            sectors: disk.sectors().0,
        });
        let mut targets: Vec<Target> = targets.collect();
        self.note_missing(&targets);
        self.leave_out_removed(&mut targets);
        targets.sort_by_key(|target| target.slot);
        self.total = targets.iter().map(|target| target.sectors * SECTOR_BYTES).sum();
        let mut before = 0;
        let from = self.verification.bookmark.mark().place;
        for target in targets {
            let from = match from {
                Place::Disks(slot, _) if target.slot < slot => target.sectors,
                Place::Disks(slot, sector) if target.slot == slot => sector.min(target.sectors),
                _ => 0,
            };
            if from < target.sectors {
                self.forget_cached(target.id).await;
                self.headers(&target).await?;
                self.disk(&target, from, before).await?;
            }
            before += target.sectors * SECTOR_BYTES;
            self.done = before;
        }
        self.tell()
    }

    /// Disks of the group that the point does not hold.
    fn note_missing(&mut self, targets: &[Target]) {
        let state = self.vault.manifest().state();
        for disk in state.disks().filter(|disk| targets.iter().all(|target| target.id != disk.id)) {
            self.report.notes.push(format!("disk {}: the newest recovery point does not hold it", disk.name));
        }
    }

    /// Disks that the point holds, and that left the group since, or parts of them: there is nothing to compare these with.
    fn leave_out_removed(&mut self, targets: &mut Vec<Target>) {
        let vault = Rc::clone(&self.vault);
        let state = vault.manifest().state();
        targets.retain_mut(|target| {
            let name = &target.name;
            let Some(disk) = state.disks().find(|disk| disk.id == target.id) else {
                let text = format!(
                    "disk {name}: it left the group after the newest recovery point, which holds it still"
                );
                self.report.notes.push(text);
                return false;
            };
            if disk.sectors.0 < target.sectors {
                target.sectors = disk.sectors.0;
                let text = format!("disk {name}: it is shorter than at the newest recovery point, and is compared up to its end");
                self.report.notes.push(text);
            }
            true
        });
    }

    /// Has a base read from its device, not from what the page cache remembers of it.
    async fn forget_cached(&self, disk: DiskId) {
        if let Ok(base) = self.vault.bases().open(disk).await {
            // Best effort: it would only be read from memory.
            let _ = self.runtime.call(Op::Evict { file: base.file().clone() }).await;
        }
    }

    fn tell(&self) -> Result<()> {
        (self.verification.report)(self.done, self.total)
    }

    /// The view to compare with; none where the group has no point, or its view cannot be had, which is a finding.
    async fn round(&mut self) -> Result<Option<Round>> {
        for _ in 0..OPENINGS {
            let Some((newest, marker)) = self.newest() else {
                self.report.notes.push("the group has no recovery point yet".to_owned());
                return Ok(None);
            };
            if let Some(round) = self.round.clone().filter(|round| !self.is_over(round)) {
                return Ok(Some(round));
            }
            // Let go of the old one first: nothing is to be held twice.
            self.round = None;
            match View::open(&self.vault, newest).await {
                Ok(view) => {
                    self.report.point = Some((newest, marker));
                    self.round = Some(Round { view, began: self.runtime.now() });
                }
                Err(error) if error.kind() == ErrorKind::NotFound && self.is_gone(newest) => {}
                Err(error) => {
                    self.unreadable_point(error)?;
                    return Ok(None);
                }
            }
        }
        Ok(self.round.clone())
    }

    fn newest(&self) -> Option<(crate::units::PointId, crate::units::Lsn)> {
        self.vault.manifest().state().points().last().map(|point| (point.id, point.marker))
    }

    fn is_gone(&self, point: crate::units::PointId) -> bool {
        self.vault.manifest().state().point(point).is_none()
    }

    fn is_over(&self, round: &Round) -> bool {
        let lasted = Duration::from_nanos(self.runtime.now().0 - round.began.0);
        let marker = round.view.point().marker;
        let state = self.vault.manifest().state();
        let later = state.points().iter().rev().take_while(|point| point.marker > marker).count();
        lasted >= ROUND || later >= ROUND_POINTS
    }

    fn unreadable_point(&mut self, error: Error) -> Result<()> {
        if !is_of_content(&error) {
            return Err(error);
        }
        let error = format!("the newest recovery point cannot be opened: {error}");
        self.report.find(Difference {
            disk: DiskId(0),
            name: "-".to_owned(),
            range: SectorRange::new(0, 0),
            what: What::Unreadable { error },
        });
        Ok(())
    }

    async fn disk(&mut self, target: &Target, from: u64, before: u64) -> Result<()> {
        let mut position = from;
        while position < target.sectors {
            let Some(round) = self.round().await? else { return Ok(()) };
            let Ok(viewed) = round.view.disk(target.id) else {
                self.report.notes.push(format!("disk {}: later recovery points do not hold it", target.name));
                return Ok(());
            };
            let window = PIECES_A_WINDOW * self.piece_sectors;
            let end = target.sectors.min(position + window).min(viewed.sectors().0);
            if end <= position {
                self.report.notes.push(format!("disk {}: it became shorter", target.name));
                return Ok(());
            }
            let range = SectorRange::new(position, end);
            if let Passed::Over = self.window(&round.view, target, range, before).await? {
                return Ok(());
            }
            position = end;
            self.pass(target, position);
        }
        Ok(())
    }

    /// Everything up to `sector` of a disk was compared.
    fn pass(&self, target: &Target, sector: u64) {
        let (read_bytes, is_sound) = (self.report.read_bytes, self.report.is_sound());
        self.verification.bookmark.pass(Place::Disks(target.slot, sector), read_bytes, is_sound);
    }

    async fn window(
        &mut self,
        view: &View,
        target: &Target,
        range: SectorRange,
        before: u64,
    ) -> Result<Passed> {
        let live = match self.asker.live(target.id, range).await {
            Ok(live) => live,
            Err(error) => return self.out_of_reach(target, range.start, error),
        };
        let read_bytes = self.places(target, range).await?;
        let (report, done, total) = (Rc::clone(&self.verification.report), self.done, self.total);
        self.throttle.take(read_bytes, || report(done, total)).await?;
        let ranges = allocated(range, live.allocation().await, view.allocation(target.id, range).await);
        drop(live);
        let (mut compared, piece_sectors) = (0, self.piece_sectors);
        for range in ranges.iter().flat_map(|range| pieces(*range, piece_sectors)) {
            if let Passed::Over = self.piece(view, target, range).await? {
                return Ok(Passed::Over);
            }
            compared += range.bytes();
            self.done = before + range.byte_range().end;
            self.pass(target, range.end);
            self.tell()?;
        }
        // Holes of both are equal without being read.
        self.report.compared_bytes += range.bytes() - compared;
        self.done = before + range.byte_range().end;
        self.tell()?;
        Ok(Passed::Done)
    }

    /// A disk that answers no read, or none any more.
    fn out_of_reach(&mut self, target: &Target, from: u64, error: Error) -> Result<Passed> {
        match error.kind() {
            ErrorKind::NotFound => {
                self.report.notes.push(format!("disk {}: {error}", target.name));
                Ok(Passed::Over)
            }
            ErrorKind::Latched => {
                self.unreadable(target, SectorRange::new(from, target.sectors), &error);
                Ok(Passed::Over)
            }
            _ => Err(error),
        }
    }

    /// Compares a piece; what cannot be read as a whole is read in halves.
    async fn piece(&mut self, view: &View, target: &Target, range: SectorRange) -> Result<Passed> {
        let mut left = vec![range];
        while let Some(range) = left.pop() {
            let live = match self.asker.live(target.id, range).await {
                Ok(live) => live,
                Err(error) => return self.out_of_reach(target, range.start, error),
            };
            let read = (live.read().await, view.read(target.id, range).await);
            let here = read.0.iter().flatten().flat_map(|here| &here.pieces);
            let taken = here.chain(read.1.iter().flatten()).map(stored_bytes).sum();
            self.report.read_bytes += taken;
            match read {
                (Ok(None), _) => left.push(range),
                (Ok(Some(here)), Ok(there)) => {
                    for (range, error) in &here.damaged {
                        if !self.planted.is(Bug::VerifySkips) {
                            self.unreadable(target, *range, error);
                        }
                    }
                    let damaged: Vec<_> = here.damaged.iter().map(|(range, _)| *range).collect();
                    let bytes = (here.pieces.as_slice(), there.as_slice());
                    self.compare(view, target, range, &live, bytes, &damaged).await?;
                }
                (Err(error), _) | (_, Err(error)) if !is_of_content(&error) => return Err(error),
                (Err(_), _) | (_, Err(_)) if range.sectors() > UNREADABLE_SECTORS => {
                    let middle = range.start + range.sectors() / 2;
                    left.push(SectorRange::new(middle, range.end));
                    left.push(SectorRange::new(range.start, middle));
                }
                (Err(error), _) => self.unreadable(target, range, &error),
                (Ok(Some(here)), Err(error)) => {
                    for (range, error) in &here.damaged {
                        self.unreadable(target, *range, error);
                    }
                    self.unreadable(target, range, &error);
                }
            }
            let (report, done, total) = (Rc::clone(&self.verification.report), self.done, self.total);
            self.throttle.take(taken, || report(done, total)).await?;
        }
        Ok(Passed::Done)
    }

    pub(super) fn unreadable(&mut self, target: &Target, range: SectorRange, error: &Error) {
        self.report.find(Difference {
            disk: target.id,
            name: target.name.clone(),
            range,
            what: What::Unreadable { error: error.to_string() },
        });
    }

    async fn compare(
        &mut self,
        view: &View,
        target: &Target,
        range: SectorRange,
        live: &LiveRead,
        (here, there): (&[DataPiece], &[DataPiece]),
        damaged: &[SectorRange],
    ) -> Result<()> {
        self.report.compared_bytes += range.bytes();
        let differing = differences(range, &joined(here, range), &joined(there, range));
        // What is known to be wrong needs no comparison.
        let differing = Ranges::of(differing).without(damaged.iter().copied()).as_slice().to_vec();
        if differing.is_empty() {
            return Ok(());
        }
        // Asked for only now: whatever the live read showed was visible before.
        let since = self.asker.since(target.slot, range, view.point().marker).await?;
        let written = match since.complete(&self.vault, target.slot, range).await {
            Ok(written) => written,
            Err(error) if is_of_content(&error) => {
                self.unreadable(target, range, &error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let wrong = written.without(&differing);
        let (all, left) = (sectors(&differing), sectors(&wrong));
        self.report.newer_bytes += (all - left) * SECTOR_BYTES;
        for range in wrong {
            self.name(view, target, range, live).await?;
        }
        Ok(())
    }

    /// Says of a range that is wrong in which files it is.
    async fn name(
        &mut self,
        view: &View,
        target: &Target,
        range: SectorRange,
        live: &LiveRead,
    ) -> Result<()> {
        for (range, vault) in view.origins(target.id, range).await? {
            for (part, side) in live.sides(range) {
                let ahead = (part.start - range.start) * SECTOR_BYTES;
                self.report.find(Difference {
                    disk: target.id,
                    name: target.name.clone(),
                    range: part,
                    what: What::Differs { live: side, vault: vault.clone().advanced(ahead) },
                });
            }
        }
        Ok(())
    }
}

/// Whether an error says something of stored bytes.
fn is_of_content(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::NoKey
    )
}

fn stored_bytes(piece: &DataPiece) -> u64 {
    match piece {
        DataPiece::Bytes(bytes) => bytes.len() as u64,
        DataPiece::Zeros(_) => 0,
    }
}

fn sectors(ranges: &[SectorRange]) -> u64 {
    ranges.iter().map(|range| range.sectors()).sum()
}

/// What one of the two has allocated; all of it where that cannot be told.
fn allocated(
    range: SectorRange,
    live: Result<Vec<AllocationRun>>,
    vault: Result<Vec<AllocationRun>>,
) -> Vec<SectorRange> {
    let (Ok(live), Ok(vault)) = (live, vault) else { return vec![range] };
    let mut found: Vec<SectorRange> = Vec::new();
    for runs in [live, vault] {
        let mut offset = range.byte_offset();
        for run in runs {
            let end = offset + run.bytes;
            if run.allocated {
                // Holes begin and end where file systems like: whole sectors are compared.
                found
                    .push(SectorRange::new(offset / SECTOR_BYTES, end.div_ceil(SECTOR_BYTES).min(range.end)));
            }
            offset = end;
        }
    }
    found.sort_unstable();
    let mut union: Vec<SectorRange> = Vec::with_capacity(found.len());
    for range in found {
        match union.last_mut().filter(|last| range.start <= last.end) {
            Some(last) => last.end = last.end.max(range.end),
            None => union.push(range),
        }
    }
    union
}

fn pieces(range: SectorRange, sectors: u64) -> impl Iterator<Item = SectorRange> {
    let starts = (range.start..range.end).step_by(to_usize(sectors));
    starts.map(move |start| SectorRange::new(start, range.end.min(start + sectors)))
}

fn joined(pieces: &[DataPiece], range: SectorRange) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(to_usize(range.bytes()));
    for piece in pieces {
        match piece {
            DataPiece::Bytes(slice) => bytes.extend_from_slice(slice),
            DataPiece::Zeros(count) => bytes.resize(bytes.len() + to_usize(*count), 0),
        }
    }
    assert_eq!(bytes.len() as u64, range.bytes(), "a read gives what was asked for");
    bytes
}

/// Runs of sectors in which two buffers differ.
fn differences(range: SectorRange, here: &[u8], there: &[u8]) -> Vec<SectorRange> {
    let mut runs: Vec<SectorRange> = Vec::new();
    if here == there {
        return runs;
    }
    let sector = to_usize(SECTOR_BYTES);
    let both = here.chunks(sector).zip(there.chunks(sector));
    for (number, _) in (range.start..).zip(both).filter(|(_, (here, there))| here != there) {
        match runs.last_mut().filter(|last| last.end == number) {
            Some(last) => last.end += 1,
            None => runs.push(SectorRange::new(number, number + 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(bytes: u64, allocated: bool) -> AllocationRun {
        AllocationRun { bytes, allocated }
    }

    #[test]
    fn only_what_neither_side_has_is_not_read() {
        let range = SectorRange::new(8, 40);
        let live = vec![run(8 * 512, false), run(8 * 512, true), run(16 * 512, false)];
        let vault = vec![run(12 * 512, false), run(8 * 512, true), run(12 * 512, false)];
        assert_eq!(allocated(range, Ok(live), Ok(vault)), [SectorRange::new(16, 28)]);
        assert_eq!(allocated(range, Ok(vec![run(32 * 512, false)]), Ok(vec![])), []);
        assert_eq!(allocated(range, Err(Error::corrupt("x")), Ok(vec![])), [range]);
    }

    #[test]
    fn differing_sectors_are_named_in_runs() {
        let range = SectorRange::new(100, 104);
        let here = vec![0; 4 * 512];
        let mut there = here.clone();
        assert_eq!(differences(range, &here, &there), []);
        (there[511], there[512], there[2047]) = (1, 1, 1);
        assert_eq!(
            differences(range, &here, &there),
            [SectorRange::new(100, 102), SectorRange::new(103, 104)]
        );
    }
}
