//! Payloads of the records that are about no disk: a marker ends an interval, an opening begins an incarnation.
//!
//! Both are padded with zeros to whole sectors; lengths are stated inside. The record's sum in the frame's
//! descriptor covers them, so a fault here is our own or a stranger's, never a disk's.

use crate::units::{
    DiskId, DiskSlot, FrameNumber, GroupNanos, IncarnationId, Lsn, PointId, SECTOR_BYTES, SectorCount,
    WallNanos, to_usize,
};

/// Longest label in bytes.
pub const LABEL_BYTES_MAX: usize = 255;

/// How consistent a recovery point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// As after a power cut: what file systems and databases recover from.
    Crash,
    /// The application had flushed and paused.
    Application,
}

impl Consistency {
    /// The number that formats use.
    pub fn code(self) -> u8 {
        match self {
            Consistency::Crash => 0,
            Consistency::Application => 1,
        }
    }

    /// The value of a format's number.
    pub fn from_code(code: u8) -> Option<Consistency> {
        match code {
            0 => Some(Consistency::Crash),
            1 => Some(Consistency::Application),
            _ => None,
        }
    }
}

/// A disk as a point's disk table names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DiskEntry {
    /// Its place in the group.
    pub slot: DiskSlot,
    /// Its permanent id.
    pub disk: DiskId,
    /// Its size.
    pub sectors: SectorCount,
}

/// Ends an interval and names a recovery point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The point's id.
    pub point: PointId,
    /// When it was made, by the wall clock.
    pub wall: WallNanos,
    /// When it was made, by the group's own time.
    pub group_time: GroupNanos,
    /// How consistent it is.
    pub consistency: Consistency,
    /// What a person called it; empty where nobody did.
    pub label: String,
    /// The group's disks at this moment.
    pub disks: Vec<DiskEntry>,
}

/// Begins an incarnation: names what it follows, so that everything else that the predecessor left is dead for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The incarnation before; `None` for a journal's first.
    pub predecessor: Option<IncarnationId>,
    /// Its last accepted frame.
    pub last_frame: FrameNumber,
    /// That frame's `header_sum`.
    pub last_sum: u64,
    /// Its last accepted record.
    pub last_lsn: Lsn,
    /// When, by the wall clock.
    pub wall: WallNanos,
}

impl Marker {
    /// The payload: whole sectors.
    ///
    /// # Panics
    /// If the label or the disk table is beyond its bounds, which whoever makes a marker checks.
    pub fn encode(&self) -> Vec<u8> {
        let label_bytes = u8::try_from(self.label.len()).expect("labels are checked where they come in");
        let mut out = Vec::with_capacity(64 + self.label.len() + self.disks.len() * 32);
        out.extend(self.point.0.to_le_bytes());
        out.extend(self.wall.0.to_le_bytes());
        out.extend(self.group_time.0.to_le_bytes());
        out.push(self.consistency.code());
        out.push(label_bytes);
        out.extend(u32::try_from(self.disks.len()).expect("a group has few disks").to_le_bytes());
        out.extend(self.label.as_bytes());
        for entry in &self.disks {
            out.extend(entry.slot.0.to_le_bytes());
            out.extend(entry.disk.0.to_le_bytes());
            out.extend(entry.sectors.0.to_le_bytes());
        }
        pad(out)
    }

    /// Reads what [`Marker::encode`] wrote; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Marker> {
        let mut input = Input(bytes);
        let point = PointId(input.u128()?);
        let wall = WallNanos(input.i64()?);
        let group_time = GroupNanos(input.u64()?);
        let consistency = Consistency::from_code(input.u8()?)?;
        let label_bytes = usize::from(input.u8()?);
        let count = input.u32()?;
        let label = String::from_utf8(input.take(label_bytes)?.to_vec()).ok()?;
        let mut disks = Vec::new();
        for _ in 0..count {
            let slot = DiskSlot(input.u32()?);
            disks.push(DiskEntry { slot, disk: DiskId(input.u128()?), sectors: SectorCount(input.u64()?) });
        }
        input.is_padding().then_some(Marker { point, wall, group_time, consistency, label, disks })
    }
}

impl Opening {
    /// The payload: whole sectors.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.extend(self.predecessor.map_or(0, |id| id.0).to_le_bytes());
        out.extend(self.last_frame.0.to_le_bytes());
        out.extend(self.last_sum.to_le_bytes());
        out.extend(self.last_lsn.0.to_le_bytes());
        out.extend(self.wall.0.to_le_bytes());
        pad(out)
    }

    /// Reads what [`Opening::encode`] wrote; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Opening> {
        let mut input = Input(bytes);
        let predecessor = input.u128()?;
        let opening = Opening {
            predecessor: (predecessor != 0).then_some(IncarnationId(predecessor)),
            last_frame: FrameNumber(input.u64()?),
            last_sum: input.u64()?,
            last_lsn: Lsn(input.u64()?),
            wall: WallNanos(input.i64()?),
        };
        input.is_padding().then_some(opening)
    }
}

fn pad(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(to_usize(SECTOR_BYTES)), 0);
    bytes
}

/// Bytes that are read from the front.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    fn is_padding(&self) -> bool {
        self.0.len() < to_usize(SECTOR_BYTES) && self.0.iter().all(|&byte| byte == 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn marker(label: String, disks: u32) -> Marker {
        let entry = |slot| DiskEntry { slot: DiskSlot(slot), disk: DiskId(9), sectors: SectorCount(1 << 31) };
        Marker {
            point: PointId(1),
            wall: WallNanos(-5),
            group_time: GroupNanos(6),
            consistency: Consistency::Application,
            label,
            disks: (0..disks).map(entry).collect(),
        }
    }

    proptest! {
        #[test]
        fn a_marker_survives_its_bytes(label in "\\PC{0,60}", disks in 0..40_u32) {
            let marker = marker(label, disks);
            let bytes = marker.encode();
            prop_assert_eq!(bytes.len() % 512, 0);
            prop_assert_eq!(Marker::decode(&bytes), Some(marker));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1024)) {
            let _ = Marker::decode(&bytes);
            let _ = Opening::decode(&bytes);
        }
    }

    #[test]
    fn every_cut_of_a_marker_is_refused() {
        let bytes = marker("before the upgrade".into(), 30).encode();
        for length in 0..bytes.len() - 512 {
            assert_eq!(Marker::decode(&bytes[..length]), None, "cut to {length}");
        }
    }

    #[test]
    fn an_opening_survives_its_bytes() {
        for predecessor in [None, Some(IncarnationId(7))] {
            let opening = Opening {
                predecessor,
                last_frame: FrameNumber(1),
                last_sum: 2,
                last_lsn: Lsn(3),
                wall: WallNanos(4),
            };
            assert_eq!(Opening::decode(&opening.encode()), Some(opening));
        }
    }
}
