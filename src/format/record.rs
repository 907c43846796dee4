//! What a manifest says about a group: disks, points, pins and the changes to them, with their encoding.
//!
//! Records are checked one by one here (lengths, legal values); whether a change fits the state before it is decided
//! by `vault::State`.

use std::cmp::Ordering;
use std::sync::Arc;

use super::codec::{Decoder, Encoder};
use super::delta::{DISK_SECTORS_MAX, DeltaRef};
use super::ladder::Ladder;
use super::marker::{Consistency, LABEL_BYTES_MAX};
use crate::block::TestId;
use crate::counted::counted;
use crate::error::{Error, Result};
use crate::units::{
    BlobId, DiskId, DiskSlot, GroupNanos, Lsn, PinId, PointId, SectorCount, SectorRange, TimelineId,
    WallNanos,
};

/// Longest name of a group or disk.
pub const NAME_BYTES_MAX: usize = 255;
/// Disks that a group ever had, at most: keeps a marker within one record of 64 KiB, and a point within a step.
pub const DISKS_MAX: usize = 2048;

/// A group, apart from its disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRecord {
    /// What people call it.
    pub name: String,
    /// When it was created.
    pub created: WallNanos,
    /// How often a point is made, in milliseconds; 0 if none ever is.
    pub interval_ms: u32,
    /// Which points are kept.
    pub retain: Ladder,
}

/// A disk of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRecord {
    /// Its place in the group's disk table, never reused.
    pub slot: DiskSlot,
    /// Its permanent id.
    pub id: DiskId,
    /// What people call it; its own among the group's living disks.
    pub name: String,
    /// Its size.
    pub sectors: SectorCount,
}

/// Whether a disk can be restored from a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It can.
    Included,
    /// It cannot: it was not settled at the marker.
    Excluded,
    /// It cannot: writes to these sectors rotted in the journal, and are in no delta up to the point. The ranges ascend, with
    /// gaps between them; there is one at least.
    Lacking(Arc<[SectorRange]>),
}

/// Ranges that the disks of a point lack, at most: keeps a point within a step.
pub const LACKING_MAX: usize = 16_384;

/// A disk in a point's disk table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointDisk {
    /// Its place in the group.
    pub slot: DiskSlot,
    /// Its permanent id.
    pub disk: DiskId,
    /// Its size at the marker.
    pub sectors: SectorCount,
    /// Whether it belongs to the point.
    pub membership: Membership,
}

/// A recovery point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointRecord {
    /// Its id.
    pub id: PointId,
    /// The record that names it.
    pub marker: Lsn,
    /// The wall clock at the marker: for people.
    pub wall: WallNanos,
    /// The group's own time at the marker: for ages.
    pub group_time: GroupNanos,
    /// What it promises.
    pub consistency: Consistency,
    /// What people call it; may be empty.
    pub label: String,
    /// What changed since the point before it; nothing if nothing did.
    pub delta: Option<DeltaRef>,
    /// The group's disks at the marker, ascending by slot; shared between points with the same table.
    pub disks: Arc<[PointDisk]>,
}

/// What a test failover is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TestUse {
    /// Clients read and write it: it has overlays.
    Rehearsal,
    /// Clients read it.
    ReadOnly,
    /// A restore reads it through another program, which does not outlive its connection: it ends with the gateway.
    Restore,
}

impl TestUse {
    /// Whether writes are refused, so that it needs no overlays.
    pub fn is_read_only(self) -> bool {
        self != TestUse::Rehearsal
    }
}

/// Why a pin exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PinKind {
    /// A test failover serves the point.
    Test {
        /// Its number within the group.
        test: TestId,
        /// What for.
        purpose: TestUse,
    },
    /// Somebody wants it kept.
    Hold,
}

/// A durable note that a point's blobs are still needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinRecord {
    /// Its id.
    pub id: PinId,
    /// What is needed.
    pub point: PointId,
    /// By whom.
    pub kind: PinKind,
    /// Since when.
    pub created: WallNanos,
}

/// One change of a group: the payload of a manifest step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The group begins.
    GroupCreated(GroupRecord),
    /// A disk joins.
    DiskAdded(DiskRecord),
    /// A disk leaves; points that hold it stay.
    DiskRemoved(DiskSlot),
    /// A disk has another size from now on; points keep their own.
    DiskResized(DiskSlot, SectorCount),
    /// The policy becomes another one; what is not given stays.
    PolicySet {
        /// Milliseconds between points.
        interval_ms: Option<u32>,
        /// Which points are kept.
        retain: Option<Ladder>,
    },
    /// Timed points and retention rest, or go on.
    PauseSet(bool),
    /// A point becomes restorable.
    PointPublished(PointRecord),
    /// A point is needed.
    PinAdded(PinRecord),
    /// It no longer is.
    PinRemoved(PinId),
    /// The group ends; its directory may be deleted.
    GroupRemoved,
    /// The points before this one are gone, and the base is about to become it; their deltas are needed until then.
    PointsRetired(PointId),
    /// The base is the oldest point now, the one that the newest retirement named; its delta is part of it.
    BaseSet(PointId),
    /// The base, on its way to this point, has arrived as far as this: there the deltas are not needed any more.
    BaseReached {
        /// Where the base is going.
        point: PointId,
        /// How far it came.
        reached: Reached,
    },
    /// A run of points is gone, and what changed up to them belongs to the point after them.
    PointsMerged(MergeRecord),
    /// The group goes on under another timeline.
    TimelineForked {
        /// The new one.
        timeline: TimelineId,
        /// Where, and when.
        fork: ForkRecord,
    },
}

/// How far a base came on its way to a point: disks ascend by slot, and each from its first sector on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reached {
    /// All disks with a lower slot have arrived whole,
    pub slot: DiskSlot,
    /// and this one below this sector.
    pub sector: u64,
}

impl Reached {
    pub(super) const ENCODED_BYTES: usize = 4 + 8;

    /// The sector of a disk up to which it has arrived.
    #[must_use]
    pub fn of(self, slot: DiskSlot) -> u64 {
        match slot.cmp(&self.slot) {
            Ordering::Less => u64::MAX,
            Ordering::Equal => self.sector,
            Ordering::Greater => 0,
        }
    }

    pub(super) fn encode(self, to: &mut Encoder) {
        to.u32(self.slot.0);
        to.u64(self.sector);
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Reached> {
        let slot = DiskSlot(from.u32("slot that the base reached")?);
        Ok(Reached { slot, sector: from.u64("sector that the base reached")? })
    }
}

/// Where a group left one timeline for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForkRecord {
    /// The timeline that was left; its records above the marker are not the group's.
    pub left: TimelineId,
    /// The marker of the point that the group went on from; zero where it had none.
    pub marker: Lsn,
    /// The wall clock then.
    pub wall: WallNanos,
}

impl ForkRecord {
    pub(super) const ENCODED_BYTES: usize = 16 + 8 + 8;

    pub(super) fn encode(&self, to: &mut Encoder) {
        to.u128(self.left.0);
        to.u64(self.marker.0);
        to.i64(self.wall.0);
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<ForkRecord> {
        Ok(ForkRecord {
            left: TimelineId(from.u128("timeline that was left")?),
            marker: Lsn(from.u64("marker of the fork")?),
            wall: WallNanos(from.i64("time of the fork")?),
        })
    }
}

/// Which points became one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeRecord {
    /// The first point that goes.
    pub first: PointId,
    /// The point that stays: all from the first up to it go.
    pub into: PointId,
    /// What changed since the point before the first one; nothing if nothing did.
    pub delta: Option<DeltaRef>,
}

/// Checks a name: 1 to 255 bytes without control characters.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let legal = !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control);
    if legal {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{what} {name:?} is not 1 to {NAME_BYTES_MAX} bytes without control characters"
    )))
}

/// Checks a label: up to 255 bytes without control characters.
pub fn check_label(label: &str) -> Result<()> {
    if label.len() <= LABEL_BYTES_MAX && !label.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "label {label:?} is not up to {LABEL_BYTES_MAX} bytes without control characters"
    )))
}

impl GroupRecord {
    /// Checks what a person chose.
    pub fn check(&self) -> Result<()> {
        check_name("group name", &self.name)
    }

    /// Whether recovery points are made of it, from its first write on.
    pub fn keeps_points(&self) -> bool {
        self.interval_ms > 0
    }

    pub(super) fn encode(&self, to: &mut Encoder) {
        to.string(&self.name);
        to.i64(self.created.0);
        to.u32(self.interval_ms);
        self.retain.encode(to);
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<GroupRecord> {
        let group = GroupRecord {
            name: from.string("group name")?.to_owned(),
            created: WallNanos(from.i64("creation time")?),
            interval_ms: from.u32("interval")?,
            retain: Ladder::decode(from)?,
        };
        as_stored(group.check(), from)?;
        Ok(group)
    }
}

/// Checks an interval between points.
pub fn check_interval(interval_ms: u32) -> Result<()> {
    if interval_ms == 0 {
        return Err(Error::invalid("interval 0 ms: points need at least 1 ms between them"));
    }
    Ok(())
}

impl DiskRecord {
    /// Checks what a person chose.
    pub fn check(&self) -> Result<()> {
        check_name("disk name", &self.name)?;
        check_sectors(self.sectors)
    }

    pub(super) fn encode(&self, to: &mut Encoder) {
        to.u32(self.slot.0);
        to.u128(self.id.0);
        to.u64(self.sectors.0);
        to.string(&self.name);
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<DiskRecord> {
        let disk = DiskRecord {
            slot: DiskSlot(from.u32("disk slot")?),
            id: DiskId(from.u128("disk id")?),
            sectors: SectorCount(from.u64("disk size")?),
            name: from.string("disk name")?.to_owned(),
        };
        as_stored(disk.check(), from)?;
        Ok(disk)
    }
}

/// Checks a disk's size.
pub fn check_sectors(sectors: SectorCount) -> Result<()> {
    if (1..=DISK_SECTORS_MAX).contains(&sectors.0) {
        return Ok(());
    }
    Err(Error::invalid(format!("a disk of {} sectors; legal are 1 to {DISK_SECTORS_MAX}", sectors.0)))
}

impl PointDisk {
    const ENCODED_BYTES: usize = 4 + 16 + 8 + 1;

    fn encode(&self, to: &mut Encoder) {
        to.u32(self.slot.0);
        to.u128(self.disk.0);
        to.u64(self.sectors.0);
        match &self.membership {
            Membership::Included => to.u8(1),
            Membership::Excluded => to.u8(2),
            Membership::Lacking(ranges) => {
                to.u8(3);
                to.count(ranges.len());
                for range in &**ranges {
                    to.u64(range.start);
                    to.u64(range.sectors());
                }
            }
        }
    }

    fn decode(from: &mut Decoder<'_>) -> Result<PointDisk> {
        let disk = PointDisk {
            slot: DiskSlot(from.u32("disk slot")?),
            disk: DiskId(from.u128("disk id")?),
            sectors: SectorCount(from.u64("disk size")?),
            membership: match from.u8("membership")? {
                1 => Membership::Included,
                2 => Membership::Excluded,
                3 => Membership::Lacking(PointDisk::decode_lacking(from)?),
                other => return Err(from.corrupt(format!("membership {other} is none of 1 to 3"))),
            },
        };
        as_stored(check_sectors(disk.sectors), from)?;
        Ok(disk)
    }

    fn decode_lacking(from: &mut Decoder<'_>) -> Result<Arc<[SectorRange]>> {
        let count = from.count(8 + 8, "lacking ranges")?;
        let range = |_| {
            let (start, sectors) = (from.u64("lacking range")?, from.u64("lacking sectors")?);
            let end =
                start.checked_add(sectors).ok_or_else(|| from.corrupt("a lacking range is on no disk"))?;
            Ok(SectorRange::new(start, end))
        };
        (0..count).map(range).collect()
    }

    /// What it lacks.
    pub fn lacking(&self) -> &[SectorRange] {
        match &self.membership {
            Membership::Lacking(ranges) => ranges,
            Membership::Included | Membership::Excluded => &[],
        }
    }

    fn check(&self) -> Result<()> {
        check_sectors(self.sectors)?;
        let Membership::Lacking(ranges) = &self.membership else { return Ok(()) };
        let is_inside = ranges.last().is_some_and(|last| last.end <= self.sectors.0);
        let are_filled = ranges.iter().all(|range| !range.is_empty());
        if is_inside && are_filled && ranges.windows(2).all(|pair| pair[0].end < pair[1].start) {
            return Ok(());
        }
        Err(Error::invalid("the ranges that a disk lacks are none, out of order, or past its end"))
    }

    fn decode_table(from: &mut Decoder<'_>) -> Result<Arc<[PointDisk]>> {
        let count = from.count(PointDisk::ENCODED_BYTES, "disk table")?;
        let disks = (0..count).map(|_| PointDisk::decode(from)).collect::<Result<Arc<[_]>>>()?;
        as_stored(check_table(&disks), from)?;
        Ok(disks)
    }
}

fn check_table(disks: &[PointDisk]) -> Result<()> {
    if disks.len() > DISKS_MAX || !disks.is_sorted_by(|a, b| a.slot < b.slot) {
        let disks = counted(disks.len(), "disk");
        let text = format!("a point's table of {disks} is too long, or not ascending by slot");
        return Err(Error::invalid(text));
    }
    let lacking: usize = disks.iter().map(|disk| disk.lacking().len()).sum();
    if lacking > LACKING_MAX {
        return Err(Error::invalid(format!(
            "a point's disks lack {lacking} ranges; legal are {LACKING_MAX}"
        )));
    }
    disks.iter().try_for_each(PointDisk::check)
}

impl PointRecord {
    /// Checks label, disk table and reference.
    pub fn check(&self) -> Result<()> {
        check_label(&self.label)?;
        check_table(&self.disks)?;
        self.delta.as_ref().map_or(Ok(()), DeltaRef::check)
    }

    /// Encodes the point; `previous` is the disk table that the reader knows already, if any.
    pub(super) fn encode(&self, to: &mut Encoder, previous: Option<&[PointDisk]>) {
        to.u128(self.id.0);
        to.u64(self.marker.0);
        to.i64(self.wall.0);
        to.u64(self.group_time.0);
        to.u8(self.consistency.code());
        to.string(&self.label);
        encode_optional_reference(self.delta.as_ref(), to);
        let known = previous == Some(&*self.disks);
        to.flag(!known);
        if !known {
            to.count(self.disks.len());
            self.disks.iter().for_each(|disk| disk.encode(to));
        }
    }

    pub(super) fn decode(from: &mut Decoder<'_>, previous: Option<&Arc<[PointDisk]>>) -> Result<PointRecord> {
        let point = PointRecord {
            id: PointId(from.u128("point id")?),
            marker: Lsn(from.u64("marker")?),
            wall: WallNanos(from.i64("wall time")?),
            group_time: GroupNanos(from.u64("group time")?),
            consistency: Consistency::from_code(from.u8("consistency")?)
                .ok_or_else(|| from.corrupt("the point's consistency is not legal"))?,
            label: from.string("label")?.to_owned(),
            delta: decode_optional_reference(from)?,
            disks: match (from.flag("disk table flag")?, previous) {
                (true, _) => PointDisk::decode_table(from)?,
                (false, Some(previous)) => Arc::clone(previous),
                (false, None) => return Err(from.corrupt("the first point has no disk table")),
            },
        };
        as_stored(point.check(), from)?;
        Ok(point)
    }
}

fn encode_optional_reference(delta: Option<&DeltaRef>, to: &mut Encoder) {
    to.flag(delta.is_some());
    if let Some(delta) = delta {
        encode_reference(delta, to);
    }
}

fn decode_optional_reference(from: &mut Decoder<'_>) -> Result<Option<DeltaRef>> {
    from.flag("delta flag")?.then(|| decode_reference(from)).transpose()
}

pub(super) fn encode_reference(delta: &DeltaRef, to: &mut Encoder) {
    to.u128(delta.blob.0);
    to.u64(delta.total_bytes);
    to.u64(delta.tables_bytes);
    to.u128(delta.checksum);
}

/// Length of an encoded reference.
pub(super) const REFERENCE_BYTES: usize = 16 + 8 + 8 + 16;

pub(super) fn decode_reference(from: &mut Decoder<'_>) -> Result<DeltaRef> {
    let delta = DeltaRef {
        blob: BlobId(from.u128("blob id")?),
        total_bytes: from.u64("blob length")?,
        tables_bytes: from.u64("tables length")?,
        checksum: from.u128("footer checksum")?,
    };
    as_stored(delta.check(), from)?;
    Ok(delta)
}

impl PinRecord {
    pub(super) const ENCODED_BYTES: usize = 16 + 16 + 1 + 8 + 8;

    pub(super) fn encode(&self, to: &mut Encoder) {
        to.u128(self.id.0);
        to.u128(self.point.0);
        let (kind, number) = match self.kind {
            PinKind::Test { test, purpose: TestUse::Rehearsal } => (1, test.0),
            PinKind::Test { test, purpose: TestUse::Restore } => (2, test.0),
            PinKind::Test { test, purpose: TestUse::ReadOnly } => (4, test.0),
            PinKind::Hold => (3, 0),
        };
        to.u8(kind);
        to.u64(number);
        to.i64(self.created.0);
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<PinRecord> {
        let (id, point) = (PinId(from.u128("pin id")?), PointId(from.u128("point id")?));
        let kind = match (from.u8("pin kind")?, from.u64("pin number")?) {
            (kind @ (1 | 2 | 4), number) if number > 0 => {
                let purpose = match kind {
                    1 => TestUse::Rehearsal,
                    2 => TestUse::Restore,
                    _ => TestUse::ReadOnly,
                };
                PinKind::Test { test: TestId(number), purpose }
            }
            (3, 0) => PinKind::Hold,
            (kind, number) => return Err(from.corrupt(format!("pin kind {kind}, number {number}"))),
        };
        Ok(PinRecord { id, point, kind, created: WallNanos(from.i64("pin time")?) })
    }
}

impl MergeRecord {
    fn encode(&self, to: &mut Encoder) {
        to.u128(self.first.0);
        to.u128(self.into.0);
        encode_optional_reference(self.delta.as_ref(), to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<MergeRecord> {
        Ok(MergeRecord {
            first: PointId(from.u128("first point")?),
            into: PointId(from.u128("kept point")?),
            delta: decode_optional_reference(from)?,
        })
    }
}

fn encode_policy(interval_ms: Option<u32>, retain: Option<&Ladder>, to: &mut Encoder) {
    to.flag(interval_ms.is_some());
    if let Some(interval_ms) = interval_ms {
        to.u32(interval_ms);
    }
    to.flag(retain.is_some());
    if let Some(retain) = retain {
        retain.encode(to);
    }
}

fn decode_policy(from: &mut Decoder<'_>) -> Result<Change> {
    let interval_ms = from.flag("interval flag")?.then(|| from.u32("interval")).transpose()?;
    if let Some(interval_ms) = interval_ms {
        as_stored(check_interval(interval_ms), from)?;
    }
    let retain = from.flag("ladder flag")?.then(|| Ladder::decode(from)).transpose()?;
    Ok(Change::PolicySet { interval_ms, retain })
}

fn decode_resize(from: &mut Decoder<'_>) -> Result<Change> {
    let slot = DiskSlot(from.u32("disk slot")?);
    let sectors = SectorCount(from.u64("disk size")?);
    as_stored(check_sectors(sectors), from)?;
    Ok(Change::DiskResized(slot, sectors))
}

/// What is bad in a request is corrupt when it was stored.
fn as_stored(checked: Result<()>, from: &Decoder<'_>) -> Result<()> {
    checked.map_err(|error| from.corrupt(error.to_string()))
}

/// The numbered kinds of changes; a number is given once.
mod kind {
    pub(super) const GROUP_CREATED: u16 = 1;
    pub(super) const DISK_ADDED: u16 = 2;
    pub(super) const DISK_REMOVED: u16 = 3;
    pub(super) const POLICY_SET: u16 = 4;
    pub(super) const POINT_PUBLISHED: u16 = 5;
    pub(super) const PIN_ADDED: u16 = 6;
    pub(super) const PIN_REMOVED: u16 = 7;
    pub(super) const GROUP_REMOVED: u16 = 8;
    pub(super) const POINTS_RETIRED: u16 = 9;
    pub(super) const BASE_SET: u16 = 10;
    pub(super) const TIMELINE_FORKED: u16 = 11;
    pub(super) const DISK_RESIZED: u16 = 12;
    pub(super) const POINTS_MERGED: u16 = 13;
    pub(super) const PAUSE_SET: u16 = 14;
    pub(super) const BASE_REACHED: u16 = 15;
}

impl Change {
    /// The change's kind number and payload.
    pub(super) fn encode(&self) -> (u16, Vec<u8>) {
        let mut to = Encoder::new();
        let kind = match self {
            Change::GroupCreated(group) => {
                group.encode(&mut to);
                kind::GROUP_CREATED
            }
            Change::DiskAdded(disk) => {
                disk.encode(&mut to);
                kind::DISK_ADDED
            }
            Change::DiskRemoved(slot) => {
                to.u32(slot.0);
                kind::DISK_REMOVED
            }
            Change::DiskResized(slot, sectors) => {
                to.u32(slot.0);
                to.u64(sectors.0);
                kind::DISK_RESIZED
            }
            Change::PolicySet { interval_ms, retain } => {
                encode_policy(*interval_ms, retain.as_ref(), &mut to);
                kind::POLICY_SET
            }
            Change::PauseSet(paused) => {
                to.flag(*paused);
                kind::PAUSE_SET
            }
            Change::PointPublished(point) => {
                point.encode(&mut to, None);
                kind::POINT_PUBLISHED
            }
            Change::PinAdded(pin) => {
                pin.encode(&mut to);
                kind::PIN_ADDED
            }
            Change::PinRemoved(pin) => {
                to.u128(pin.0);
                kind::PIN_REMOVED
            }
            Change::GroupRemoved => kind::GROUP_REMOVED,
            Change::PointsRetired(point) => {
                to.u128(point.0);
                kind::POINTS_RETIRED
            }
            Change::BaseSet(point) => {
                to.u128(point.0);
                kind::BASE_SET
            }
            Change::BaseReached { point, reached } => {
                to.u128(point.0);
                reached.encode(&mut to);
                kind::BASE_REACHED
            }
            Change::PointsMerged(merge) => {
                merge.encode(&mut to);
                kind::POINTS_MERGED
            }
            Change::TimelineForked { timeline, fork } => {
                to.u128(timeline.0);
                fork.encode(&mut to);
                kind::TIMELINE_FORKED
            }
        };
        (kind, to.finish())
    }

    /// The change of `kind` in `from`; `None` for a kind that this build does not know.
    pub(super) fn decode(kind: u16, mut from: Decoder<'_>) -> Result<Option<Change>> {
        let change = match kind {
            kind::GROUP_CREATED => Change::GroupCreated(GroupRecord::decode(&mut from)?),
            kind::DISK_ADDED => Change::DiskAdded(DiskRecord::decode(&mut from)?),
            kind::DISK_REMOVED => Change::DiskRemoved(DiskSlot(from.u32("disk slot")?)),
            kind::DISK_RESIZED => decode_resize(&mut from)?,
            kind::POLICY_SET => decode_policy(&mut from)?,
            kind::POINT_PUBLISHED => Change::PointPublished(PointRecord::decode(&mut from, None)?),
            kind::PIN_ADDED => Change::PinAdded(PinRecord::decode(&mut from)?),
            kind::PIN_REMOVED => Change::PinRemoved(PinId(from.u128("pin id")?)),
            kind::GROUP_REMOVED => Change::GroupRemoved,
            kind::POINTS_RETIRED => Change::PointsRetired(PointId(from.u128("point id")?)),
            kind::BASE_SET => Change::BaseSet(PointId(from.u128("point id")?)),
            kind::BASE_REACHED => Change::BaseReached {
                point: PointId(from.u128("point id")?),
                reached: Reached::decode(&mut from)?,
            },
            kind::POINTS_MERGED => Change::PointsMerged(MergeRecord::decode(&mut from)?),
            kind::TIMELINE_FORKED => Change::TimelineForked {
                timeline: TimelineId(from.u128("new timeline")?),
                fork: ForkRecord::decode(&mut from)?,
            },
            kind::PAUSE_SET => Change::PauseSet(from.flag("pause flag")?),
            _ => return Ok(None),
        };
        from.finish("the change")?;
        Ok(Some(change))
    }
}
