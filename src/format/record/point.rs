//! Recovery points and their disk tables, as a manifest has them.

use std::sync::Arc;

use super::{DISKS_MAX, as_stored, check_sectors};
use crate::counted::counted;
use crate::error::{Error, Result};
use crate::format::codec::{Decoder, Encoder};
use crate::format::delta::DeltaRef;
use crate::format::marker::{Consistency, LABEL_BYTES_MAX};
use crate::units::{BlobId, DiskId, DiskSlot, GroupNanos, Lsn, PointId, SectorCount, SectorRange, WallNanos};

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

/// Checks a label: up to 255 bytes without control characters.
pub fn check_label(label: &str) -> Result<()> {
    if label.len() <= LABEL_BYTES_MAX && !label.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "label {label:?} is not up to {LABEL_BYTES_MAX} bytes without control characters"
    )))
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
    pub(in crate::format) fn encode(&self, to: &mut Encoder, previous: Option<&[PointDisk]>) {
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

    pub(in crate::format) fn decode(
        from: &mut Decoder<'_>,
        previous: Option<&Arc<[PointDisk]>>,
    ) -> Result<PointRecord> {
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

pub(super) fn encode_optional_reference(delta: Option<&DeltaRef>, to: &mut Encoder) {
    to.flag(delta.is_some());
    if let Some(delta) = delta {
        encode_reference(delta, to);
    }
}

pub(super) fn decode_optional_reference(from: &mut Decoder<'_>) -> Result<Option<DeltaRef>> {
    from.flag("delta flag")?.then(|| decode_reference(from)).transpose()
}

pub(in crate::format) fn encode_reference(delta: &DeltaRef, to: &mut Encoder) {
    to.u128(delta.blob.0);
    to.u64(delta.total_bytes);
    to.u64(delta.tables_bytes);
    to.u128(delta.checksum);
}

/// Length of an encoded reference.
pub(in crate::format) const REFERENCE_BYTES: usize = 16 + 8 + 8 + 16;

pub(in crate::format) fn decode_reference(from: &mut Decoder<'_>) -> Result<DeltaRef> {
    let delta = DeltaRef {
        blob: BlobId(from.u128("blob id")?),
        total_bytes: from.u64("blob length")?,
        tables_bytes: from.u64("tables length")?,
        checksum: from.u128("footer checksum")?,
    };
    as_stored(delta.check(), from)?;
    Ok(delta)
}
