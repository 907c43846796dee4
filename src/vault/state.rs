//! What a manifest's steps add up to: a pure fold, [`State::apply`], that refuses what does not fit.
//!
//! The same rules decide a change before it is written ([`State::check`]) and judge it at replay. No I/O, no clock.
//!
//! Invariant: slots, disk ids, point ids and blob ids are given once; points ascend by marker and by group time; a
//! pin names a point that exists.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use thiserror::Error as ThisError;

use crate::block::TestId;
use crate::error::{Error, ErrorKind};
use crate::format::manifest::{Contents, DiskState, Header, Snapshot, Step, StepNumber};
use crate::format::record::{
    Change, DISKS_MAX, DiskRecord, GroupRecord, PinKind, PinRecord, PointDisk, PointRecord, check_interval,
};
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
    #[error("the group still has pins: clean up its test failovers and wait for its restores")]
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
    /// Point → its index in `contents.points`.
    points: BTreeMap<PointId, usize>,
    /// The blobs that points name.
    blobs: BTreeSet<BlobId>,
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
            newest_test: TestId(0),
            disks: Vec::new(),
            points: Vec::new(),
            pins: Vec::new(),
        };
        Ok(State::indexed(header.number, checksum, header, contents))
    }

    /// The state that a snapshot holds.
    pub fn from_snapshot(snapshot: Snapshot) -> State {
        let header = snapshot.header;
        State::indexed(header.number, header.previous, &header, snapshot.contents)
    }

    fn indexed(newest: StepNumber, checksum: u128, header: &Header, contents: Contents) -> State {
        let points = contents.points.iter().enumerate().map(|(index, point)| (point.id, index)).collect();
        let blobs = contents.points.iter().filter_map(|point| point.delta).map(|delta| delta.blob).collect();
        State { newest, checksum, group: header.group, timeline: header.timeline, contents, points, blobs }
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

    /// Everything that a snapshot holds.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Name and policy.
    pub fn record(&self) -> &GroupRecord {
        &self.contents.group
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
        self.points.get(&id).map(|&index| &self.contents.points[index])
    }

    /// All pins, ascending by id.
    pub fn pins(&self) -> &[PinRecord] {
        &self.contents.pins
    }

    /// Whether a point names the blob.
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
            Change::PolicySet { interval_ms } => well_formed(check_interval(*interval_ms)),
            Change::PointPublished(point) => self.check_point(point),
            Change::PinAdded(pin) => self.check_pin(pin),
            Change::PinRemoved(pin) => match self.pin_index(*pin) {
                Ok(_) => Ok(()),
                Err(_) => Err(Refusal::UnknownPin(*pin)),
            },
            Change::GroupRemoved if !self.contents.pins.is_empty() => Err(Refusal::Pinned),
            Change::GroupRemoved => Ok(()),
        }
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
            PinKind::Test(test) if test <= self.contents.newest_test => Err(Refusal::TestTaken(test)),
            PinKind::Test(_) | PinKind::Restore => Ok(()),
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
            Change::PolicySet { interval_ms } => self.contents.group.interval_ms = interval_ms,
            Change::PointPublished(point) => self.push_point(point),
            Change::PinAdded(pin) => {
                if let PinKind::Test(test) = pin.kind {
                    self.contents.newest_test = test;
                }
                if let Err(index) = self.pin_index(pin.id) {
                    self.contents.pins.insert(index, pin);
                }
            }
            Change::PinRemoved(pin) => self.contents.pins.retain(|other| other.id != pin),
            Change::GroupRemoved => self.contents.removed = true,
        }
    }

    /// Points with the same disk table share it: a day of points a second is 86,400 tables otherwise.
    fn push_point(&mut self, mut point: PointRecord) {
        if let Some(newest) = self.contents.points.last()
            && newest.disks == point.disks
        {
            point.disks = Arc::clone(&newest.disks);
        }
        self.points.insert(point.id, self.contents.points.len());
        self.blobs.extend(point.delta.map(|delta| delta.blob));
        self.contents.points.push(point);
    }
}

fn well_formed(checked: crate::error::Result<()>) -> Verdict {
    checked.map_err(|error| Refusal::Malformed(error.to_string()))
}
