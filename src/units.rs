//! Newtypes for every number that crosses two function boundaries, and the few conversions between them.
//!
//! A sector is 512 bytes everywhere, as in the kernel's block layer. Nothing here does I/O or reads a clock.

use std::fmt;
use std::num::ParseIntError;
use std::ops::Range;
use std::str::FromStr;

/// Bytes in a sector, the unit in which disks are addressed.
pub const SECTOR_BYTES: u64 = 512;
/// Alignment of everything that is written with O_DIRECT: a page.
pub const PAGE_BYTES: usize = 4096;

const _: () = assert!(usize::BITS == 64, "Afterimage addresses disks and buffers with 64-bit usize");

/// A length from a format or a protocol as an index; lossless, because only 64-bit targets build.
#[allow(clippy::cast_possible_truncation)]
pub const fn to_usize(value: u64) -> usize {
    value as usize
}

/// Number of a record in a group's journal: dense within an incarnation, never reused. Zero precedes all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Precedes every record.
    pub const ZERO: Lsn = Lsn(0);
    /// How far apart incarnations start, so that no number is given twice even if a torn tail had used it.
    pub const INCARNATION_STRIDE: u64 = 1 << 32;

    /// The record after this one in the same incarnation.
    #[must_use]
    pub fn next(self) -> Lsn {
        self.advance(1)
    }

    /// The record `count` after this one in the same incarnation.
    #[must_use]
    pub fn advance(self, count: u64) -> Lsn {
        Lsn(self.0.checked_add(count).expect("2^64 records outlast any disk"))
    }

    /// Whether no opening lies between two records. Of an incarnation of more than [`Lsn::INCARNATION_STRIDE`] records the
    /// parts pass for different ones.
    pub fn shares_incarnation(self, other: Lsn) -> bool {
        self.0 / Self::INCARNATION_STRIDE == other.0 / Self::INCARNATION_STRIDE
    }

    /// First number of an incarnation that follows one whose last accepted record is `self`.
    #[must_use]
    pub fn first_of_next_incarnation(self) -> Lsn {
        let strides = self.0 / Self::INCARNATION_STRIDE + 1;
        Lsn(strides.checked_mul(Self::INCARNATION_STRIDE).expect("2^32 incarnations outlast any disk"))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{:08x}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// Address of a sector on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sector(pub u64);

impl Sector {
    /// Byte offset of the sector's start.
    pub const fn byte_offset(self) -> u64 {
        self.0 * SECTOR_BYTES
    }
}

/// A number of sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectorCount(pub u64);

impl SectorCount {
    /// The same amount in bytes.
    pub const fn bytes(self) -> u64 {
        self.0 * SECTOR_BYTES
    }

    /// `bytes` in sectors; `None` unless it is a whole number of them.
    pub const fn from_bytes(bytes: u64) -> Option<SectorCount> {
        if bytes.is_multiple_of(SECTOR_BYTES) { Some(SectorCount(bytes / SECTOR_BYTES)) } else { None }
    }
}

/// A half-open range of sectors of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SectorRange {
    /// First sector of the range.
    pub start: u64,
    /// First sector after the range; at least `start`.
    pub end: u64,
}

impl SectorRange {
    /// The sectors from `start` up to, not including, `end`.
    ///
    /// # Panics
    /// If `end` lies before `start`: only our own bug makes such a range.
    pub fn new(start: u64, end: u64) -> SectorRange {
        assert!(start <= end, "a range ends at or after its start: {start}..{end}");
        SectorRange { start, end }
    }

    /// `count` sectors from `start` on; `None` where that overflows.
    pub fn with_count(start: Sector, count: SectorCount) -> Option<SectorRange> {
        Some(SectorRange { start: start.0, end: start.0.checked_add(count.0)? })
    }

    /// Number of sectors in the range.
    pub const fn sectors(self) -> u64 {
        self.end - self.start
    }

    /// Number of bytes in the range.
    pub const fn bytes(self) -> u64 {
        self.sectors() * SECTOR_BYTES
    }

    /// Byte offset of the range's start.
    pub const fn byte_offset(self) -> u64 {
        self.start * SECTOR_BYTES
    }

    /// Whether the range holds no sector.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The sectors that both ranges hold, if any.
    pub fn intersection(self, other: SectorRange) -> Option<SectorRange> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(SectorRange { start, end })
    }

    /// The range as byte offsets.
    pub const fn byte_range(self) -> Range<u64> {
        self.start * SECTOR_BYTES..self.end * SECTOR_BYTES
    }
}

impl fmt::Display for SectorRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// A disk's place in its group's disk table: given once, never reused, small enough for a record descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskSlot(pub u32);

/// Number of a frame in a group's journal; dense across incarnations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameNumber(pub u64);

impl FrameNumber {
    /// The frame after this one.
    #[must_use]
    pub fn next(self) -> FrameNumber {
        FrameNumber(self.0 + 1)
    }
}

/// Sequence number of a journal segment: given anew each time that its file is recycled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentSequence(pub u64);

/// Nanoseconds on a clock that only goes forward; comparable within one process only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MonotonicNanos(pub u64);

/// Wall-clock time, nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallNanos(pub i64);

/// Group time, nanoseconds: goes forward only, across restarts too, and knows nothing of steps of the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupNanos(pub u64);

impl fmt::Display for WallNanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => write!(f, "{} ns", self.0),
        }
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:032x})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;

            fn from_str(text: &str) -> Result<$name, ParseIntError> {
                u128::from_str_radix(text, 16).map($name)
            }
        }
    };
}

random_id!(
    /// Permanent id of a disk.
    DiskId
);
random_id!(
    /// Permanent id of a protection group.
    GroupId
);
random_id!(
    /// One opening of a journal.
    IncarnationId
);
random_id!(
    /// An unbroken history of a group.
    TimelineId
);
random_id!(
    /// An immutable blob in a vault.
    BlobId
);
random_id!(
    /// One attempt to write a summary of deltas.
    SummaryId
);
random_id!(
    /// A recovery point.
    PointId
);
random_id!(
    /// A durable note that a point is still needed.
    PinId
);
random_id!(
    /// Whoever writes a manifest step: drawn at each opening of a vault.
    WriterId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_incarnation_starts_above_every_number_of_the_last() {
        for last in
            [0, 1, Lsn::INCARNATION_STRIDE - 1, Lsn::INCARNATION_STRIDE, 7 * Lsn::INCARNATION_STRIDE + 5]
        {
            let first = Lsn(last).first_of_next_incarnation();
            assert!(!first.shares_incarnation(Lsn(last)) && first.shares_incarnation(first.next()));
            assert!(first.0 > last);
            assert_eq!(first.0 % Lsn::INCARNATION_STRIDE, 0);
        }
    }

    #[test]
    fn ranges_intersect_only_where_both_hold_a_sector() {
        let range = SectorRange::new(10, 20);
        assert_eq!(range.intersection(SectorRange::new(0, 10)), None);
        assert_eq!(range.intersection(SectorRange::new(19, 30)), Some(SectorRange::new(19, 20)));
        assert_eq!(range.intersection(SectorRange::new(12, 13)), Some(SectorRange::new(12, 13)));
    }

    #[test]
    fn ids_survive_their_text() {
        let id = DiskId(0x00ff_u128 << 64 | 7);
        assert_eq!(id.to_string().parse::<DiskId>(), Ok(id));
        assert_eq!(id.to_string().len(), 32);
    }
}
