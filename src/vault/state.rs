//! What a manifest's steps add up to: a pure fold, [`State::apply`], that refuses what does not fit.
//!
//! The same rules decide a change before it is written ([`State::check`]) and judge it at replay. No I/O, no clock.
//!
//! Invariant: slots, disk ids, point ids and blob ids are given once; points ascend by marker and by group time; a
//! pin names a point that exists. Points go only where no pin names them, and the newest never does.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use thiserror::Error as ThisError;

use crate::block::TestId;
use crate::error::{Error, ErrorKind};
use crate::format::delta::DeltaRef;
use crate::format::manifest::{Contents, DiskState, Header, Snapshot, Step, StepNumber};
use crate::format::record::{
    Change, DISKS_MAX, DiskRecord, ForkRecord, GroupRecord, MergeRecord, PinKind, PinRecord, PointDisk,
    PointRecord, Reached, check_interval, check_sectors,
};
use crate::planted::{Bug, Planted};
use crate::units::{BlobId, DiskId, DiskSlot, GroupId, GroupNanos, Lsn, PinId, PointId, TimelineId};

/// Why a step or a change does not fit the state before it.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[allow(missing_docs)]
pub enum Refusal {
    #[error("manifest step {found} follows step {newest}")]
    OutOfSequence { found: StepNumber, newest: StepNumber },
    #[error("manifest step {number} is not chained to the step before it")]
    BrokenChain { number: StepNumber },
    #[error("the manifest of group {expected} holds a step of group {found}")]
    OtherGroup { found: GroupId, expected: GroupId },
    #[error("timeline {found} was superseded by {newest}")]
    Superseded { found: TimelineId, newest: TimelineId },
    #[error("a group is created by its first step, and only by it")]
    Creation,
    #[error("the group was removed")]
    Removed,
    #[error(
        "the group was created without recovery points, and has none: create another one for its disks ('group create', 'disk create --import')"
    )]
    Pointless,
    #[error("the group still has pins: clean up its test failovers, release its held points")]
    Pinned,
    #[error("a disk named {0:?} exists already")]
    NameTaken(String),
    #[error("disk slot {} was given before", .0.0)]
    SlotTaken(DiskSlot),
    #[error("disk {0} exists already")]
    DiskTaken(DiskId),
    #[error("a group has at most {DISKS_MAX} disks over its life")]
    TooManyDisks,
    #[error("no disk has slot {}", .0.0)]
    UnknownSlot(DiskSlot),
    #[error("disk {0} does not have the slot that the point says")]
    UnknownDisk(DiskId),
    #[error("point {0} exists already")]
    PointTaken(PointId),
    #[error("point at marker {found} comes after one at {newest}")]
    PointOutOfOrder { found: Lsn, newest: Lsn },
    #[error("group time went back from {} to {} ns", newest.0, found.0)]
    TimeWentBack { found: GroupNanos, newest: GroupNanos },
    #[error("delta {0} belongs to another point already")]
    DeltaTaken(BlobId),
    #[error("there is no point {0}")]
    UnknownPoint(PointId),
    #[error("pin {0} exists already")]
    PinTaken(PinId),
    #[error("there is no pin {0}")]
    UnknownPin(PinId),
    #[error("test failover {} was given before", .0.0)]
    TestTaken(TestId),
    #[error("recovery point {0} is held: 'point release' it first")]
    PointHeld(PointId),
    #[error("recovery point {0} is held already")]
    HeldAlready(PointId),
    #[error("recovery point {0} is in use by a test failover or restore: clean it up, or wait for it")]
    PointInUse(PointId),
    #[error("no recovery point lies between {first} and {last} that could go")]
    NothingGoes { first: PointId, last: PointId },
    #[error("timeline {timeline} does not go on from the newest point, at {marker}, or was there before")]
    NotAFork { timeline: TimelineId, marker: Lsn },
    #[error("the base is on its way to point {0}")]
    BaseOnItsWay(PointId),
    #[error("the base is not on its way to point {0}")]
    BaseNotOnItsWay(PointId),
    #[error("the base, on its way to point {0}, has come further than that")]
    BaseGoesBack(PointId),
    #[error("{0}")]
    Malformed(String),
}

impl Refusal {
    fn kind(&self) -> ErrorKind {
        match self {
            Refusal::NameTaken(_)
            | Refusal::SlotTaken(_)
            | Refusal::DiskTaken(_)
            | Refusal::PointTaken(_)
            | Refusal::DeltaTaken(_)
            | Refusal::PinTaken(_)
            | Refusal::HeldAlready(_)
            | Refusal::TestTaken(_) => ErrorKind::AlreadyExists,
            Refusal::UnknownSlot(_)
            | Refusal::UnknownDisk(_)
            | Refusal::UnknownPoint(_)
            | Refusal::UnknownPin(_) => ErrorKind::NotFound,
            Refusal::Superseded { .. } => ErrorKind::Fenced,
            Refusal::Removed => ErrorKind::Shutdown,
            _ => ErrorKind::Invalid,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::new(refusal.kind(), refusal.to_string())
    }
}

type Verdict = std::result::Result<(), Refusal>;

/// A group as its manifest has it after some step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    newest: StepNumber,
    checksum: u128,
    group: GroupId,
    timeline: TimelineId,
    contents: Contents,
    /// Point → its marker, by which it is found in `contents.points`.
    points: BTreeMap<PointId, Lsn>,
    /// The blobs that points name, and those of retired ones that the base still needs.
    blobs: BTreeSet<BlobId>,
    planted: Planted,
}

impl State {
    /// The state after step 1, whose checksum is `checksum`.
    pub fn first(step: &Step, checksum: u128) -> Result<State, Refusal> {
        let header = &step.header;
        if header.number != StepNumber(1) {
            return Err(Refusal::OutOfSequence { found: header.number, newest: StepNumber(0) });
        }
        if header.previous != 0 {
            return Err(Refusal::BrokenChain { number: header.number });
        }
        let Change::GroupCreated(group) = &step.change else { return Err(Refusal::Creation) };
        let contents = Contents {
            group: group.clone(),
            removed: false,
            paused: false,
            newest_test: TestId(0),
            disks: Vec::new(),
            points: Vec::new(),
            pins: Vec::new(),
            retired: None,
            forks: Vec::new(),
            taken_in: BTreeMap::new(),
        };
        Ok(State::indexed(header.number, checksum, header, contents))
    }

    /// The state that a snapshot holds.
    pub fn from_snapshot(snapshot: Snapshot) -> State {
        let header = snapshot.header;
        State::indexed(header.number, header.previous, &header, snapshot.contents)
    }

    fn indexed(newest: StepNumber, checksum: u128, header: &Header, contents: Contents) -> State {
        let points = contents.points.iter().map(|point| (point.id, point.marker)).collect();
        let deltas = contents.points.iter().filter_map(|point| point.delta);
        let blobs =
            deltas.chain(contents.retired.iter().flatten().copied()).map(|delta| delta.blob).collect();
        let (group, timeline, planted) = (header.group, header.timeline, Planted::NONE);
        State { newest, checksum, group, timeline, contents, points, blobs, planted }
    }

    pub(super) fn plant(&mut self, planted: Planted) {
        self.planted = planted;
    }

    /// The newest step.
    pub fn newest(&self) -> StepNumber {
        self.newest
    }

    /// The newest step's checksum, which the next one names.
    pub fn checksum(&self) -> u128 {
        self.checksum
    }

    /// Whose manifest this is.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The group's history.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Where this timeline begins: the marker of the point that it goes on from, zero for a group's first.
    pub fn begin(&self) -> Lsn {
        self.contents.forks.last().map_or(Lsn::ZERO, |fork| fork.marker)
    }

    /// Everything that a snapshot holds.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Name and policy.
    pub fn record(&self) -> &GroupRecord {
        &self.contents.group
    }

    /// Whether timed points and retention rest.
    pub fn is_paused(&self) -> bool {
        self.contents.paused
    }

    /// Whether the group was removed.
    pub fn is_removed(&self) -> bool {
        self.contents.removed
    }

    /// The disks that the group has, ascending by slot.
    pub fn disks(&self) -> impl Iterator<Item = &DiskRecord> {
        self.contents.disks.iter().filter(|disk| !disk.removed).map(|disk| &disk.record)
    }

    /// The disks that the group ever had, ascending by slot: old points hold removed ones.
    pub fn all_disks(&self) -> &[DiskState] {
        &self.contents.disks
    }

    /// The disk with a slot, also a removed one.
    pub fn disk(&self, slot: DiskSlot) -> Option<&DiskState> {
        let disks = &self.contents.disks;
        disks.binary_search_by_key(&slot, |disk| disk.record.slot).ok().map(|index| &disks[index])
    }

    /// A slot that was never given.
    pub fn next_slot(&self) -> DiskSlot {
        DiskSlot(self.contents.disks.last().map_or(0, |disk| disk.record.slot.0 + 1))
    }

    /// A number that no test failover ever had.
    pub fn next_test(&self) -> TestId {
        TestId(self.contents.newest_test.0 + 1)
    }

    /// All points, ascending by marker.
    pub fn points(&self) -> &[PointRecord] {
        &self.contents.points
    }

    /// A point by its id.
    pub fn point(&self, id: PointId) -> Option<&PointRecord> {
        self.index_of(id).map(|index| &self.contents.points[index])
    }

    /// A point's place among the points.
    pub fn index_of(&self, id: PointId) -> Option<usize> {
        let marker = self.points.get(&id)?;
        self.contents.points.binary_search_by_key(marker, |point| point.marker).ok()
    }

    /// The deltas that lie above the base at a point, oldest first.
    pub fn deltas_up_to(&self, marker: Lsn) -> Vec<DeltaRef> {
        let points = self.contents.points.iter().take_while(|point| point.marker <= marker);
        let retired = self.contents.retired.iter().flatten().copied();
        retired.chain(points.filter_map(|point| point.delta)).collect()
    }

    /// The point that the base is on its way to, and the deltas of those before it, which are gone.
    pub fn base_advance(&self) -> Option<(&PointRecord, &[DeltaRef])> {
        let retired = self.contents.retired.as_deref()?;
        self.contents.points.first().map(|point| (point, retired))
    }

    /// How far a base that goes in pieces has taken in each delta that it is on its way over: what lies below is read from the
    /// base, and may be gone from the delta. To be asked for in one breath with the deltas: a newer one that is cut further than
    /// an older one would let the older one show.
    pub fn taken_in(&self) -> &BTreeMap<BlobId, Reached> {
        &self.contents.taken_in
    }

    /// The pin that holds a point, if it is held.
    pub fn hold_of(&self, point: PointId) -> Option<PinId> {
        let held = |pin: &&PinRecord| pin.point == point && pin.kind == PinKind::Hold;
        self.contents.pins.iter().find(held).map(|pin| pin.id)
    }

    /// Whether a disk's base is needed: the group has it, or a point does.
    pub fn needs_base(&self, disk: &DiskState) -> bool {
        let holds = |point: &PointRecord| point.disks.iter().any(|member| member.slot == disk.record.slot);
        !disk.removed || self.contents.points.iter().any(holds)
    }

    /// All pins, ascending by id.
    pub fn pins(&self) -> &[PinRecord] {
        &self.contents.pins
    }

    /// Whether a point names the blob, or the base still needs it.
    pub fn names_blob(&self, blob: BlobId) -> bool {
        self.blobs.contains(&blob)
    }

    /// Whether a disk, perhaps a removed one, has that id.
    pub fn names_disk(&self, disk: DiskId) -> bool {
        self.contents.disks.iter().any(|entry| entry.record.id == disk)
    }

    /// Moves on by one step, whose checksum is `checksum`; on a refusal nothing changes.
    pub fn apply(&mut self, step: Step, checksum: u128) -> Verdict {
        let Header { number, group, timeline, previous, .. } = step.header;
        if group != self.group {
            return Err(Refusal::OtherGroup { found: group, expected: self.group });
        }
        if number != self.newest.next() {
            return Err(Refusal::OutOfSequence { found: number, newest: self.newest });
        }
        if previous != self.checksum {
            return Err(Refusal::BrokenChain { number });
        }
        if timeline != self.timeline {
            return Err(Refusal::Superseded { found: timeline, newest: self.timeline });
        }
        self.check(&step.change)?;
        self.change(step.change);
        self.newest = number;
        self.checksum = checksum;
        Ok(())
    }

    /// Whether a change fits.
    pub fn check(&self, change: &Change) -> Verdict {
        if self.contents.removed {
            return Err(Refusal::Removed);
        }
        match change {
            Change::GroupCreated(_) => Err(Refusal::Creation),
            Change::DiskAdded(disk) => self.check_disk(disk),
            Change::DiskRemoved(slot) => match self.disk(*slot) {
                Some(disk) if !disk.removed => Ok(()),
                _ => Err(Refusal::UnknownSlot(*slot)),
            },
            Change::DiskResized(slot, sectors) => match self.disk(*slot) {
                Some(disk) if !disk.removed => well_formed(check_sectors(*sectors)),
                _ => Err(Refusal::UnknownSlot(*slot)),
            },
            Change::PolicySet { .. } | Change::PointPublished(_) if !self.record().keeps_points() => {
                Err(Refusal::Pointless)
            }
            Change::PolicySet { interval_ms, .. } => well_formed(interval_ms.map_or(Ok(()), check_interval)),
            Change::PauseSet(_) => Ok(()),
            Change::PointPublished(point) => self.check_point(point),
            Change::PinAdded(pin) => self.check_pin(pin),
            Change::PinRemoved(pin) => match self.pin_index(*pin) {
                Ok(_) => Ok(()),
                Err(_) => Err(Refusal::UnknownPin(*pin)),
            },
            Change::GroupRemoved if !self.contents.pins.is_empty() => Err(Refusal::Pinned),
            Change::GroupRemoved => Ok(()),
            Change::PointsRetired(point) => self.check_retirement(*point),
            Change::BaseSet(point) => match self.base_advance() {
                Some((target, _)) if target.id == *point => Ok(()),
                _ => Err(Refusal::BaseNotOnItsWay(*point)),
            },
            Change::BaseReached { point, reached } => self.check_reached(*point, *reached),
            Change::PointsMerged(merge) => self.check_merge(merge),
            Change::TimelineForked { timeline, fork } => self.check_fork(*timeline, fork),
        }
    }

    /// A group goes on from its newest point, under a timeline that it never had.
    fn check_fork(&self, timeline: TimelineId, fork: &ForkRecord) -> Verdict {
        let newest = self.contents.points.last().map_or(Lsn::ZERO, |point| point.marker);
        let is_new =
            timeline != self.timeline && self.contents.forks.iter().all(|fork| fork.left != timeline);
        if !is_new || fork.left != self.timeline || fork.marker != newest {
            return Err(Refusal::NotAFork { timeline, marker: fork.marker });
        }
        Ok(())
    }

    /// A base goes on, and never back.
    fn check_reached(&self, point: PointId, reached: Reached) -> Verdict {
        match self.base_advance() {
            Some((target, _)) if target.id == point => {}
            _ => return Err(Refusal::BaseNotOnItsWay(point)),
        }
        let is_on =
            self.pending_blobs().any(|blob| self.contents.taken_in.get(&blob).is_none_or(|&at| at < reached));
        if is_on { Ok(()) } else { Err(Refusal::BaseGoesBack(point)) }
    }

    /// The deltas that the base is on its way over.
    fn pending_blobs(&self) -> impl Iterator<Item = BlobId> {
        let pending =
            self.base_advance().map(|(target, retired)| retired.iter().copied().chain(target.delta));
        pending.into_iter().flatten().map(|delta| delta.blob)
    }

    fn check_retirement(&self, point: PointId) -> Verdict {
        let index = self.index_of(point).ok_or(Refusal::UnknownPoint(point))?;
        // The base may be sent to the oldest point, whose delta it takes up then, and from there on to a later one.
        if let Some((target, _)) = self.base_advance().filter(|_| index == 0) {
            return Err(Refusal::BaseOnItsWay(target.id));
        }
        if self.planted.is(Bug::BaseAdvancedUnderPin) {
            return Ok(());
        }
        self.check_unpinned(0..index)
    }

    fn check_merge(&self, merge: &MergeRecord) -> Verdict {
        let MergeRecord { first, into, delta } = merge;
        let start = self.index_of(*first).ok_or(Refusal::UnknownPoint(*first))?;
        let end = self.index_of(*into).ok_or(Refusal::UnknownPoint(*into))?;
        if start >= end {
            return Err(Refusal::NothingGoes { first: *first, last: *into });
        }
        // The base is on its way to the oldest point: it must stay what it is.
        if let Some((target, _)) = self.base_advance().filter(|_| start == 0) {
            return Err(Refusal::BaseOnItsWay(target.id));
        }
        if let Some(delta) = delta {
            well_formed(delta.check())?;
            let own = self.contents.points[end].delta.as_ref() == Some(delta);
            if !own && self.blobs.contains(&delta.blob) {
                return Err(Refusal::DeltaTaken(delta.blob));
            }
        }
        self.check_unpinned(start..end)
    }

    /// No pin names one of these points.
    fn check_unpinned(&self, points: Range<usize>) -> Verdict {
        let going = &self.contents.points[points];
        for pin in &self.contents.pins {
            if going.iter().any(|point| point.id == pin.point) {
                return Err(match pin.kind {
                    PinKind::Hold => Refusal::PointHeld(pin.point),
                    PinKind::Test { .. } => Refusal::PointInUse(pin.point),
                });
            }
        }
        Ok(())
    }

    fn check_disk(&self, disk: &DiskRecord) -> Verdict {
        well_formed(disk.check())?;
        if self.contents.disks.len() >= DISKS_MAX {
            return Err(Refusal::TooManyDisks);
        }
        if self.disks().any(|living| living.name == disk.name) {
            return Err(Refusal::NameTaken(disk.name.clone()));
        }
        if self.names_disk(disk.id) {
            return Err(Refusal::DiskTaken(disk.id));
        }
        // Ascending slots are never reused slots, and keep the table sorted.
        if disk.slot < self.next_slot() {
            return Err(Refusal::SlotTaken(disk.slot));
        }
        Ok(())
    }

    fn check_point(&self, point: &PointRecord) -> Verdict {
        well_formed(point.check())?;
        if self.points.contains_key(&point.id) {
            return Err(Refusal::PointTaken(point.id));
        }
        if let Some(newest) = self.contents.points.last() {
            if point.marker <= newest.marker {
                return Err(Refusal::PointOutOfOrder { found: point.marker, newest: newest.marker });
            }
            if point.group_time < newest.group_time {
                return Err(Refusal::TimeWentBack { found: point.group_time, newest: newest.group_time });
            }
        }
        if let Some(delta) = point.delta.filter(|delta| self.blobs.contains(&delta.blob)) {
            return Err(Refusal::DeltaTaken(delta.blob));
        }
        point.disks.iter().try_for_each(|disk| self.check_member(disk))
    }

    /// A removed disk may still be in a point: its marker can lie before the removal.
    fn check_member(&self, member: &PointDisk) -> Verdict {
        match self.disk(member.slot) {
            Some(disk) if disk.record.id == member.disk => Ok(()),
            Some(_) => Err(Refusal::UnknownDisk(member.disk)),
            None => Err(Refusal::UnknownSlot(member.slot)),
        }
    }

    fn check_pin(&self, pin: &PinRecord) -> Verdict {
        if !self.points.contains_key(&pin.point) {
            return Err(Refusal::UnknownPoint(pin.point));
        }
        if self.pin_index(pin.id).is_ok() {
            return Err(Refusal::PinTaken(pin.id));
        }
        match pin.kind {
            PinKind::Test { test, .. } if test <= self.contents.newest_test => Err(Refusal::TestTaken(test)),
            PinKind::Hold if self.hold_of(pin.point).is_some() => Err(Refusal::HeldAlready(pin.point)),
            PinKind::Test { .. } | PinKind::Hold => Ok(()),
        }
    }

    fn pin_index(&self, pin: PinId) -> Result<usize, usize> {
        self.contents.pins.binary_search_by_key(&pin, |pin| pin.id)
    }

    /// Carries out a change that was checked.
    fn change(&mut self, change: Change) {
        match change {
            Change::GroupCreated(_) => unreachable!("checked before"),
            Change::DiskAdded(record) => self.contents.disks.push(DiskState { record, removed: false }),
            Change::DiskRemoved(slot) => {
                let disks = &mut self.contents.disks;
                if let Some(disk) = disks.iter_mut().find(|disk| disk.record.slot == slot) {
                    disk.removed = true;
                }
            }
            Change::DiskResized(slot, sectors) => {
                let disks = &mut self.contents.disks;
                if let Some(disk) = disks.iter_mut().find(|disk| disk.record.slot == slot) {
                    disk.record.sectors = sectors;
                }
            }
            Change::PolicySet { interval_ms, retain } => {
                let group = &mut self.contents.group;
                group.interval_ms = interval_ms.unwrap_or(group.interval_ms);
                if let Some(retain) = retain {
                    group.retain = retain;
                }
            }
            Change::PauseSet(paused) => self.contents.paused = paused,
            Change::PointPublished(point) => self.push_point(point),
            Change::PinAdded(pin) => {
                if let PinKind::Test { test, .. } = pin.kind {
                    self.contents.newest_test = test;
                }
                if let Err(index) = self.pin_index(pin.id) {
                    self.contents.pins.insert(index, pin);
                }
            }
            Change::PinRemoved(pin) => self.contents.pins.retain(|other| other.id != pin),
            Change::GroupRemoved => self.contents.removed = true,
            Change::PointsRetired(point) => self.retire_before(point),
            Change::BaseSet(_) => self.settle_base(),
            Change::BaseReached { reached, .. } => {
                for blob in self.pending_blobs().collect::<Vec<_>>() {
                    let at = self.contents.taken_in.entry(blob).or_default();
                    *at = reached.max(*at);
                }
            }
            Change::PointsMerged(merge) => self.merge_points(&merge),
            Change::TimelineForked { timeline, fork } => {
                self.contents.forks.push(fork);
                self.timeline = timeline;
            }
        }
    }

    fn retire_before(&mut self, point: PointId) {
        let index = self.index_of(point).expect("checked before");
        let retired: Vec<_> = self.contents.points.drain(..index).collect();
        for point in &retired {
            self.points.remove(&point.id);
        }
        // Their blobs stay named until the base holds what they hold.
        let deltas = retired.iter().filter_map(|point| point.delta);
        self.contents.retired.get_or_insert_default().extend(deltas);
    }

    fn settle_base(&mut self) {
        let retired = self.contents.retired.take().unwrap_or_default();
        self.contents.taken_in.clear();
        let own = self.contents.points.first_mut().and_then(|point| point.delta.take());
        for delta in retired.into_iter().chain(own) {
            self.blobs.remove(&delta.blob);
        }
    }

    fn merge_points(&mut self, merge: &MergeRecord) {
        let start = self.index_of(merge.first).expect("checked before");
        let end = self.index_of(merge.into).expect("checked before");
        for delta in self.contents.points[start..=end].iter().filter_map(|point| point.delta) {
            self.blobs.remove(&delta.blob);
        }
        self.blobs.extend(merge.delta.map(|delta| delta.blob));
        self.contents.points[end].delta = merge.delta;
        for point in self.contents.points.drain(start..end) {
            self.points.remove(&point.id);
        }
    }

    /// Points with the same disk table share it: a day of points a second is 86,400 tables otherwise.
    fn push_point(&mut self, mut point: PointRecord) {
        if let Some(newest) = self.contents.points.last()
            && newest.disks == point.disks
        {
            point.disks = Arc::clone(&newest.disks);
        }
        self.points.insert(point.id, point.marker);
        self.blobs.extend(point.delta.map(|delta| delta.blob));
        self.contents.points.push(point);
    }
}

fn well_formed(checked: crate::error::Result<()>) -> Verdict {
    checked.map_err(|error| Refusal::Malformed(error.to_string()))
}
