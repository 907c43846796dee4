//! The task that goes through the disks piece by piece.
//!
//! It compares with one point for a **round**, then with the then newest: a round is short, so that retention does not wait for a
//! verification of days, and few later points have to be looked at. What neither side has allocated is not read.
//!
//! What no point holds (of a disk that joined since, or grew, or of a group without a point) is only read, and compared with its sums.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::Verification;
use super::bytes::{allocated, differences, joined, pieces, sectors, stored_bytes};
use super::findings::{Difference, GroupReport, What};
use super::live::{Asker, LiveRead};
use crate::block::DataPiece;
use crate::bookmark::Place;
use crate::error::{Error, ErrorKind, Result};
use crate::extent::Ranges;
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::storage::Op;
use crate::throttle::Throttle;
use crate::units::{DiskId, DiskSlot, Lsn, MonotonicNanos, PointId, SECTOR_BYTES, SectorRange};
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
    let (round, unopened, done, total) = (None, None, 0, 0);
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
        unopened,
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
    /// The newest point, if that cannot be opened.
    unopened: Option<PointId>,
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
    /// How many of these the newest point held in the beginning.
    held: u64,
}

/// How going through a part of a disk ended.
enum Passed {
    Done,
    /// There is nothing more to compare of this disk.
    Over,
}

impl Task {
    async fn run(&mut self) -> Result<()> {
        let targets = self.targets().await?;
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

    /// The disks of the group, in the order of their slots. What of them no point holds, and what of a point they have no more, is noted.
    async fn targets(&mut self) -> Result<Vec<Target>> {
        let view = self.round().await?.map(|round| round.view);
        let held = view.iter().flat_map(|view| view.disks());
        let mut left: BTreeMap<DiskId, (String, u64)> =
            held.map(|disk| (disk.id(), (disk.name().to_owned(), disk.sectors().0))).collect();
        let vault = Rc::clone(&self.vault);
        let state = vault.manifest().state();
        let mut targets = Vec::new();
        for disk in state.disks() {
            let (name, sectors) = (disk.name.clone(), disk.sectors.0);
            let held = left.remove(&disk.id).map(|(_, sectors)| sectors);
            match held {
                _ if view.is_none() => {}
                None => self.note(format!(
                    "disk {name}: the newest recovery point does not hold it: its image was compared with its sums, and nothing else"
                )),
                Some(held) if sectors < held => self.note(format!(
                    "disk {name}: it is shorter than at the newest recovery point, and is compared up to its end"
                )),
                Some(held) if held < sectors => self.note(format!(
                    "disk {name}: it is longer than at the newest recovery point: what is behind that was compared with its sums, and nothing else"
                )),
                Some(_) => {}
            }
            targets.push(Target {
                id: disk.id,
                slot: disk.slot,
                name,
                sectors,
                held: held.unwrap_or(0).min(sectors),
            });
        }
        for (name, _) in left.values() {
            self.note(format!(
                "disk {name}: it left the group after the newest recovery point, which holds it still"
            ));
        }
        targets.sort_by_key(|target| target.slot);
        Ok(targets)
    }

    /// Notes something, once.
    fn note(&mut self, text: String) {
        if !self.report.notes.contains(&text) {
            self.report.notes.push(text);
        }
    }

    /// Has a base read from its device, not from what the page cache remembers of it.
    async fn forget_cached(&self, disk: DiskId) {
        if let Ok(base) = self.vault.bases().open(disk).await {
            // Best effort: it would only be read from memory.
            let _ = self.runtime.call(Op::Evict { file: base.file().clone() }).await;
        }
    }

    pub(super) fn tell(&self) -> Result<()> {
        (self.verification.report)(self.done, self.total)
    }

    /// The view to compare with; none where the group has no point, or its view cannot be had, which is a finding.
    async fn round(&mut self) -> Result<Option<Round>> {
        for _ in 0..OPENINGS {
            let Some((newest, marker)) = self.newest() else {
                let text = "the group has no recovery point yet: images were compared with their sums, and nothing else";
                self.note(text.to_owned());
                return Ok(None);
            };
            if self.unopened == Some(newest) {
                return Ok(None);
            }
            if let Some(round) = self.round.clone().filter(|round| !self.is_over(round)) {
                return Ok(Some(round));
            }
            // Let go of the old one first: nothing is to be held twice.
            self.round = None;
            let mut opened = View::open(&self.vault, newest).await;
            if opened.as_ref().is_err_and(is_of_content) {
                // The other disks are compared all the same.
                let unopened = self.unopened_bases(newest).await;
                if !unopened.is_empty() {
                    opened = View::open_without(&self.vault, newest, &unopened).await;
                }
            }
            match opened {
                Ok(view) => {
                    self.report.point = Some((newest, marker));
                    self.round = Some(Round { view, began: self.runtime.now() });
                }
                Err(error) if error.kind() == ErrorKind::NotFound && self.is_gone(newest) => {}
                Err(error) => {
                    self.unreadable_point(error)?;
                    self.unopened = Some(newest);
                    return Ok(None);
                }
            }
        }
        Ok(self.round.clone())
    }

    /// The disks of a point whose bases cannot be opened: each is a finding.
    async fn unopened_bases(&mut self, point: PointId) -> Vec<DiskId> {
        let vault = Rc::clone(&self.vault);
        let disks =
            vault.manifest().state().point(point).map(|point| point.disks.to_vec()).unwrap_or_default();
        let mut unopened = Vec::new();
        for disk in disks {
            let Err(error) = vault.bases().open(disk.disk).await else { continue };
            if !is_of_content(&error) {
                continue;
            }
            let name = {
                let state = vault.manifest().state();
                let named = state.all_disks().iter().find(|known| known.record.id == disk.disk);
                named.map_or_else(|| disk.disk.to_string(), |known| known.record.name.clone())
            };
            let range = SectorRange::new(0, disk.sectors.0);
            let error =
                format!("its base cannot be opened, and its image was compared with its sums alone: {error}");
            let found = Difference { disk: disk.disk, name, range, what: What::Unreadable { error } };
            if !self.report.findings.contains(&found) {
                self.report.find(found);
            }
            unopened.push(disk.disk);
        }
        unopened
    }

    fn newest(&self) -> Option<(PointId, Lsn)> {
        self.vault.manifest().state().points().last().map(|point| (point.id, point.marker))
    }

    fn is_gone(&self, point: PointId) -> bool {
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
            let round = self.round().await?;
            let viewed = round.as_ref().and_then(|round| round.view.disk(target.id).ok());
            let held = viewed.map_or(0, |viewed| viewed.sectors().0);
            let window = PIECES_A_WINDOW * self.piece_sectors;
            let end = target.sectors.min(position + window);
            let (view, end) = match &round {
                Some(round) if position < held => (Some(&*round.view), end.min(held)),
                _ => (None, end),
            };
            if view.is_none() && position < target.held {
                self.note(format!(
                    "disk {}: later recovery points do not hold all of it: the rest was compared with its sums, and nothing else",
                    target.name
                ));
            }
            let range = SectorRange::new(position, end);
            if let Passed::Over = self.window(view, target, range, before).await? {
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

    /// Goes through a range: compares it with a view, if there is one that holds it.
    async fn window(
        &mut self,
        view: Option<&View>,
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
        let there = match view {
            Some(view) => view.allocation(target.id, range).await,
            None => Ok(Vec::new()),
        };
        let ranges = allocated(range, live.allocation().await, there);
        drop(live);
        let (mut passed, piece_sectors) = (0, self.piece_sectors);
        for range in ranges.iter().flat_map(|range| pieces(*range, piece_sectors)) {
            if let Passed::Over = self.piece(view, target, range).await? {
                return Ok(Passed::Over);
            }
            passed += range.bytes();
            self.done = before + range.byte_range().end;
            self.pass(target, range.end);
            self.tell()?;
        }
        // Holes of both are equal without being read.
        if view.is_some() {
            self.report.compared_bytes += range.bytes() - passed;
        }
        self.done = before + range.byte_range().end;
        self.tell()?;
        Ok(Passed::Done)
    }

    /// A disk that answers no read, or none any more.
    fn out_of_reach(&mut self, target: &Target, from: u64, error: Error) -> Result<Passed> {
        match error.kind() {
            ErrorKind::NotFound => {
                self.note(format!("disk {}: {error}", target.name));
                Ok(Passed::Over)
            }
            ErrorKind::Latched => {
                self.unreadable(target, SectorRange::new(from, target.sectors), &error);
                Ok(Passed::Over)
            }
            _ => Err(error),
        }
    }

    /// Goes through a piece; what cannot be read as a whole is read in halves.
    async fn piece(&mut self, view: Option<&View>, target: &Target, range: SectorRange) -> Result<Passed> {
        let mut left = vec![range];
        while let Some(range) = left.pop() {
            let live = match self.asker.live(target.id, range).await {
                Ok(live) => live,
                Err(error) => return self.out_of_reach(target, range.start, error),
            };
            let here = live.read().await;
            let there = match view {
                Some(view) => view.read(target.id, range).await.map(|there| Some((view, there))),
                None => Ok(None),
            };
            let read = (here, there);
            let here = read.0.iter().flatten().flat_map(|here| &here.pieces);
            let there = read.1.iter().flatten().flat_map(|(_, there)| there);
            let taken = here.chain(there).map(stored_bytes).sum();
            self.report.read_bytes += taken;
            match read {
                (Ok(None), _) => left.push(range),
                (Ok(Some(here)), Ok(there)) => {
                    for (range, error) in &here.damaged {
                        if !self.planted.is(Bug::VerifySkips) {
                            self.unreadable(target, *range, error);
                        }
                    }
                    if let Some((view, there)) = there {
                        let damaged: Vec<_> = here.damaged.iter().map(|(range, _)| *range).collect();
                        let bytes = (here.pieces.as_slice(), there.as_slice());
                        self.compare(view, target, range, &live, bytes, &damaged).await?;
                    }
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
pub(super) fn is_of_content(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::NoKey
    )
}
