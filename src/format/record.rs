//! What a manifest says about a group: disks, points, pins and the changes to them, with their encoding.
//!
//! Records are checked one by one here (lengths, legal values); whether a change fits the state before it is decided
//! by `vault::State`.

mod pin;
mod point;

use std::cmp::Ordering;

pub use pin::{PinKind, PinRecord, TestUse};
pub use point::{LACKING_MAX, Membership, PointDisk, PointRecord, check_label};
pub(super) use point::{REFERENCE_BYTES, decode_reference, encode_reference};
use point::{decode_optional_reference, encode_optional_reference};

use super::codec::{Decoder, Encoder};
use super::delta::{DISK_SECTORS_MAX, DeltaRef};
use super::ladder::Ladder;
use crate::error::{Error, Result};
use crate::units::{DiskId, DiskSlot, Lsn, PinId, PointId, SectorCount, TimelineId, WallNanos};

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
