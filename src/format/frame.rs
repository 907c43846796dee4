//! Journal frames: one group commit, as it stands in a segment.
//!
//! ```text
//! ┌──────────── header_bytes: whole pages ────────────┬──────── payload_pages ────────┐
//! │ fixed header, 128 B │ descriptor, 32 B │ … │ zeros │ payload │ payload │ … │ zeros │
//! └───────────────────────────────────────────────────┴───────────────────────────────┘
//! ```
//!
//! Little-endian throughout; the layout is in `docs/format.md`. `header_sum` covers the header's pages (itself
//! taken as zero), and so, through the descriptors' `payload_sum`, every byte that counts. In a sealed frame a trailer
//! follows the descriptors: which key, the header's tag, and a tag for each record. `chain` is the previous
//! frame's `header_sum`: a frame is accepted only behind the very frame that it was written behind.
//!
//! Bytes from disk are parsed into an [`UntrustedHeader`], which only says what is claimed; [`Frame`] is what the
//! rest of the crate may hold: every field within its bounds, every payload inside the frame.

use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::seal::{Generation, TAG_BYTES, Tag};
use crate::units::{
    DiskSlot, FrameNumber, GroupId, IncarnationId, Lsn, PAGE_BYTES, SECTOR_BYTES, SectorRange,
    SegmentSequence, TimelineId, to_usize,
};

/// First bytes of every frame.
pub const MAGIC: [u8; 8] = *b"AIFRAME\0";
/// The version that this code writes, and the only one that it reads.
pub const VERSION: u16 = 1;
/// Size of the fixed header.
pub const FIXED_BYTES: usize = size_of::<FixedHeader>();
/// Size of a descriptor.
pub const DESCRIPTOR_BYTES: usize = size_of::<RawDescriptor>();
/// Most records that one frame may carry: its header stays within 32 pages.
pub const RECORDS_MAX: usize = (32 * PAGE_BYTES - FIXED_BYTES) / DESCRIPTOR_BYTES;
/// Most records that a sealed frame may carry.
pub const SEALED_RECORDS_MAX: usize =
    (32 * PAGE_BYTES - FIXED_BYTES - size_of::<RawSeal>()) / (DESCRIPTOR_BYTES + TAG_BYTES);
/// Most payload that one record may carry, so that one checksum (later one seal) covers no more.
pub const RECORD_PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// Most payload that one frame may carry.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 4 << 20;
/// Sectors in a page.
const PAGE_SECTORS: u64 = PAGE_BYTES as u64 / SECTOR_BYTES;

const SEALING_NONE: u8 = 0;
const SEALING_AES_GCM: u8 = 1;
const HEADER_SUM_OFFSET: usize = 16;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FixedHeader {
    magic: [u8; 8],
    version: U16,
    sealing: u8,
    reserved_a: u8,
    header_bytes: U32,
    header_sum: U64,
    chain: U64,
    group: U128,
    timeline: U128,
    incarnation: U128,
    number: U64,
    first_lsn: U64,
    durable_through: U64,
    segment: U64,
    segment_page: U32,
    record_count: U32,
    payload_pages: U32,
    tail_distance: U32,
}

const _: () = assert!(FIXED_BYTES == 128);
const _: () = assert!(std::mem::offset_of!(FixedHeader, header_sum) == HEADER_SUM_OFFSET);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawDescriptor {
    kind: u8,
    flags: u8,
    reserved: U16,
    disk: U32,
    start: U64,
    sectors: U32,
    payload_sector: U32,
    payload_sum: U64,
}

const _: () = assert!(DESCRIPTOR_BYTES == 32);

/// What follows the descriptors of a sealed frame; then a tag for each record.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSeal {
    generation: U32,
    reserved: [u8; 12],
    header: [u8; TAG_BYTES],
}

const _: () = assert!(size_of::<RawSeal>() == 32);

const KIND_WRITE: u8 = 1;
const KIND_ZERO: u8 = 2;
const KIND_MARKER: u8 = 3;
const KIND_OPENING: u8 = 4;
const KIND_SEAL: u8 = 5;
const FLAG_ALLOCATED: u8 = 1;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// The payload is the new content of a range of a disk.
    Write {
        /// Which disk.
        disk: DiskSlot,
        /// Which sectors; as long as the payload.
        range: SectorRange,
    },
    /// A range of a disk is zeros; there is no payload.
    Zero {
        /// Which disk.
        disk: DiskSlot,
        /// Which sectors.
        range: SectorRange,
        /// Whether the source asked to keep the space.
        allocated: bool,
    },
    /// An interval ends; the payload is a [`crate::format::marker::Marker`].
    Marker,
    /// An incarnation begins; the payload is a [`crate::format::marker::Opening`].
    Opening,
    /// The incarnation ended in good order: nothing follows but another opening.
    Seal,
}

/// Where a record's payload stands in its frame, and its sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// First sector, counted from the end of the header.
    pub sector: u32,
    /// Length in sectors.
    pub sectors: u32,
    /// xxh3-64 of the stored bytes.
    pub sum: u64,
}

/// One record of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it says.
    pub kind: RecordKind,
    /// Where its payload is; empty for kinds that have none.
    pub payload: Payload,
}

/// What sealed a frame, under the key of its incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameSeal {
    /// Of which group key that key is.
    pub generation: Generation,
    /// Binds the header, descriptors and the tags below.
    pub header: Tag,
    /// One for each record; zeros where there is no payload.
    pub payloads: Vec<Tag>,
}

/// A frame's header and descriptors; everything in it was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The group whose journal this is.
    pub group: GroupId,
    /// The history that it belongs to.
    pub timeline: TimelineId,
    /// Which opening of the journal wrote it.
    pub incarnation: IncarnationId,
    /// Its number.
    pub number: FrameNumber,
    /// `header_sum` of the frame before it; zero for a journal's first.
    pub chain: u64,
    /// LSN of its first record, or of the next one to come where it has none.
    pub first_lsn: Lsn,
    /// Every record up to here was durable when this was written.
    pub durable_through: Lsn,
    /// The use of a segment file that it stands in.
    pub segment: SegmentSequence,
    /// Where in the segment it starts, in pages.
    pub segment_page: u32,
    /// The oldest segment that was still needed when this was written.
    pub tail: SegmentSequence,
    /// Its records, in LSN order.
    pub records: Vec<Record>,
    /// Length of the payload area in pages.
    pub payload_pages: u32,
    /// Its seal, if the group is sealed.
    pub seal: Option<FrameSeal>,
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameFault {
    /// All zeros: never written.
    Blank,
    /// No frame starts here.
    NoMagic,
    /// Written by a version that this code does not know.
    Version(u16),
    /// A field is outside its bounds; its name.
    Field(&'static str),
    /// More bytes are needed: this many in all.
    Short(usize),
    /// The header's sum does not match.
    HeaderSum,
    /// The payload of the record with this index does not match its sum.
    PayloadSum(usize),
}

/// Pages that a header with `records` descriptors takes, in bytes.
pub fn header_bytes(records: usize, is_sealed: bool) -> usize {
    let seal = if is_sealed { size_of::<RawSeal>() + records * TAG_BYTES } else { 0 };
    (FIXED_BYTES + records * DESCRIPTOR_BYTES + seal).next_multiple_of(PAGE_BYTES)
}

/// Most records that a frame may carry.
pub fn records_max(is_sealed: bool) -> usize {
    if is_sealed { SEALED_RECORDS_MAX } else { RECORDS_MAX }
}

impl Frame {
    /// LSN of the last record; the one before `first_lsn` where there is none.
    pub fn last_lsn(&self) -> Lsn {
        Lsn(self.first_lsn.0 + self.records.len() as u64 - 1)
    }

    /// Length of the header in bytes: whole pages.
    pub fn header_bytes(&self) -> usize {
        header_bytes(self.records.len(), self.seal.is_some())
    }

    /// Length of header and payload in bytes: whole pages.
    pub fn total_bytes(&self) -> usize {
        self.header_bytes() + to_usize(u64::from(self.payload_pages)) * PAGE_BYTES
    }

    /// Byte offset of the frame in its segment.
    pub fn segment_offset(&self) -> u64 {
        u64::from(self.segment_page) * PAGE_BYTES as u64
    }

    /// Sector of the segment at which the payload area begins; payloads count from there.
    pub fn payload_base(&self) -> u32 {
        let bytes = self.segment_offset() + self.header_bytes() as u64;
        u32::try_from(bytes / SECTOR_BYTES).expect("a frame ends below 2 TiB of its segment")
    }

    /// Where a payload's bytes are within the frame.
    pub fn payload_range(&self, payload: Payload) -> std::ops::Range<usize> {
        let start = self.header_bytes() + to_usize(u64::from(payload.sector) * SECTOR_BYTES);
        start..start + to_usize(u64::from(payload.sectors) * SECTOR_BYTES)
    }

    /// Whether the page at byte `offset` of its segment is one of its payload's.
    pub fn holds_payload(&self, offset: u64) -> bool {
        let begin = self.segment_offset() + self.header_bytes() as u64;
        (begin..self.segment_offset() + self.total_bytes() as u64).contains(&offset)
    }

    /// Whether it begins an incarnation.
    pub fn is_opening(&self) -> bool {
        matches!(self.records.first(), Some(Record { kind: RecordKind::Opening, .. }))
    }

    /// Writes the header into `out`, which is exactly [`Frame::header_bytes`] long, and returns its sum: the next
    /// frame's chain.
    ///
    /// # Panics
    /// If `out` has another length, or a number is beyond its field: only our own bug can do that.
    pub fn encode_header(&self, out: &mut [u8]) -> u64 {
        assert_eq!(out.len(), self.header_bytes(), "a header fills its pages");
        let (fixed, rest) = out.split_at_mut(FIXED_BYTES);
        let (descriptors, rest) = rest.split_at_mut(self.records.len() * DESCRIPTOR_BYTES);
        rest.fill(0);
        if let Some(FrameSeal { generation, header, payloads }) = &self.seal {
            assert_eq!(payloads.len(), self.records.len(), "every record has a tag");
            let raw = RawSeal { generation: generation.0.into(), reserved: [0; 12], header: *header };
            let (seal, tags) = rest.split_at_mut(size_of::<RawSeal>());
            seal.copy_from_slice(raw.as_bytes());
            tags[..payloads.len() * TAG_BYTES].copy_from_slice(payloads.as_bytes());
        }
        for (record, bytes) in self.records.iter().zip(descriptors.chunks_exact_mut(DESCRIPTOR_BYTES)) {
            bytes.copy_from_slice(RawDescriptor::from(record).as_bytes());
        }
        fixed.copy_from_slice(self.fixed().as_bytes());
        let sum = xxh3_64(out);
        out[HEADER_SUM_OFFSET..HEADER_SUM_OFFSET + 8].copy_from_slice(&sum.to_le_bytes());
        sum
    }

    /// What the header's tag binds: the header, that tag and the sum taken as zero.
    pub fn bound_header(&self) -> Vec<u8> {
        let seal = self.seal.as_ref().map(|seal| FrameSeal { header: [0; TAG_BYTES], ..seal.clone() });
        let mut bytes = vec![0; self.header_bytes()];
        Frame { seal, ..self.clone() }.encode_header(&mut bytes);
        bytes[HEADER_SUM_OFFSET..HEADER_SUM_OFFSET + 8].fill(0);
        bytes
    }

    fn fixed(&self) -> FixedHeader {
        let length = u32::try_from(self.header_bytes()).expect("a header has few pages");
        let tail_distance = self.segment.0.checked_sub(self.tail.0).expect("the tail is behind the head");
        FixedHeader {
            magic: MAGIC,
            version: VERSION.into(),
            sealing: if self.seal.is_some() { SEALING_AES_GCM } else { SEALING_NONE },
            reserved_a: 0,
            header_bytes: length.into(),
            header_sum: 0.into(),
            chain: self.chain.into(),
            group: self.group.0.into(),
            timeline: self.timeline.0.into(),
            incarnation: self.incarnation.0.into(),
            number: self.number.0.into(),
            first_lsn: self.first_lsn.0.into(),
            durable_through: self.durable_through.0.into(),
            segment: self.segment.0.into(),
            segment_page: self.segment_page.into(),
            record_count: u32::try_from(self.records.len()).expect("bounded by RECORDS_MAX").into(),
            payload_pages: self.payload_pages.into(),
            tail_distance: u32::try_from(tail_distance).expect("few segments are live").into(),
        }
    }

    /// Checks every payload's sum; `payload` is the payload area.
    pub fn verify_payloads(&self, payload: &[u8]) -> Result<(), FrameFault> {
        self.damaged_payloads(payload).next().map_or(Ok(()), |index| Err(FrameFault::PayloadSum(index)))
    }

    /// The records whose payload does not match its sum.
    pub fn damaged_payloads<'a>(&'a self, payload: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
        let header = self.header_bytes();
        let is_damaged = move |record: &Record| {
            let range = self.payload_range(record.payload);
            let bytes = payload.get(range.start - header..range.end - header);
            record.payload.sectors > 0 && bytes.map(xxh3_64) != Some(record.payload.sum)
        };
        let records = self.records.iter().enumerate();
        records.filter(move |(_, record)| is_damaged(record)).map(|(index, _)| index)
    }
}

impl From<&Record> for RawDescriptor {
    fn from(record: &Record) -> RawDescriptor {
        let (kind, flags, disk, range) = match record.kind {
            RecordKind::Write { disk, range } => (KIND_WRITE, 0, disk.0, range),
            RecordKind::Zero { disk, range, allocated } => {
                (KIND_ZERO, if allocated { FLAG_ALLOCATED } else { 0 }, disk.0, range)
            }
            RecordKind::Marker => (KIND_MARKER, 0, 0, payload_range(record.payload)),
            RecordKind::Opening => (KIND_OPENING, 0, 0, payload_range(record.payload)),
            RecordKind::Seal => (KIND_SEAL, 0, 0, SectorRange::new(0, 0)),
        };
        RawDescriptor {
            kind,
            flags,
            reserved: 0.into(),
            disk: disk.into(),
            start: range.start.into(),
            sectors: u32::try_from(range.sectors()).expect("a record's range is bounded").into(),
            payload_sector: record.payload.sector.into(),
            payload_sum: record.payload.sum.into(),
        }
    }
}

/// The range that a record about no disk states: its payload's length.
fn payload_range(payload: Payload) -> SectorRange {
    SectorRange::new(0, u64::from(payload.sectors))
}

/// What a header says that cannot be read: some of it may be what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderTraces {
    group: GroupId,
    timeline: TimelineId,
    number: u64,
    chain: u64,
}

impl HeaderTraces {
    /// Of the first page of what may have been a frame.
    pub fn read(bytes: &[u8]) -> Option<HeaderTraces> {
        let (fixed, _) = FixedHeader::read_from_prefix(bytes).ok()?;
        Some(HeaderTraces {
            group: GroupId(fixed.group.get()),
            timeline: TimelineId(fixed.timeline.get()),
            number: fixed.number.get(),
            chain: fixed.chain.get(),
        })
    }

    /// Whether it was that frame's, written behind the one with the sum `chain`: one field alone may have been hit.
    pub fn names(&self, (group, timeline): (GroupId, TimelineId), number: FrameNumber, chain: u64) -> bool {
        let owner = self.group == group && self.timeline == timeline;
        self.chain == chain || owner && self.number == number.0
    }

    /// Whether it was some frame of that group and timeline.
    pub fn is_of(&self, group: GroupId, timeline: TimelineId) -> bool {
        self.group == group && self.timeline == timeline
    }
}

/// A header as it was read: only its claims, none of them believed but its length.
#[derive(Clone, Copy)]
pub struct UntrustedHeader {
    fixed: FixedHeader,
}

impl UntrustedHeader {
    /// Looks at the first page of what may be a frame.
    pub fn read(bytes: &[u8]) -> Result<UntrustedHeader, FrameFault> {
        let (fixed, _) = FixedHeader::read_from_prefix(bytes).map_err(|_| FrameFault::Short(FIXED_BYTES))?;
        if fixed.magic != MAGIC {
            let blank = bytes.iter().all(|&byte| byte == 0);
            return Err(if blank { FrameFault::Blank } else { FrameFault::NoMagic });
        }
        if fixed.version != VERSION {
            return Err(FrameFault::Version(fixed.version.get()));
        }
        let header = UntrustedHeader { fixed };
        let records = to_usize(u64::from(fixed.record_count.get()));
        if records > records_max(header.is_sealed()) {
            return Err(FrameFault::Field("record_count"));
        }
        if header.header_bytes() != header_bytes(records, header.is_sealed()) {
            return Err(FrameFault::Field("header_bytes"));
        }
        if to_usize(u64::from(fixed.payload_pages.get())) > FRAME_PAYLOAD_BYTES_MAX / PAGE_BYTES {
            return Err(FrameFault::Field("payload_pages"));
        }
        Ok(header)
    }

    fn is_sealed(&self) -> bool {
        self.fixed.sealing == SEALING_AES_GCM
    }

    /// Length of the header in bytes, within its bounds.
    pub fn header_bytes(&self) -> usize {
        to_usize(u64::from(self.fixed.header_bytes.get()))
    }

    /// Length of header and payload in bytes, within their bounds.
    pub fn total_bytes(&self) -> usize {
        self.header_bytes() + to_usize(u64::from(self.fixed.payload_pages.get())) * PAGE_BYTES
    }

    /// Checks the whole header; returns the frame and its `header_sum`.
    pub fn parse(&self, bytes: &[u8]) -> Result<(Frame, u64), FrameFault> {
        let length = self.header_bytes();
        let header = bytes.get(..length).ok_or(FrameFault::Short(length))?;
        let sum = self.fixed.header_sum.get();
        if header_sum(header) != sum {
            return Err(FrameFault::HeaderSum);
        }
        if ![SEALING_NONE, SEALING_AES_GCM].contains(&self.fixed.sealing) {
            return Err(FrameFault::Field("sealing"));
        }
        self.check_numbers()?;
        let count = to_usize(u64::from(self.fixed.record_count.get()));
        let (descriptors, padding) = header[FIXED_BYTES..].split_at(count * DESCRIPTOR_BYTES);
        let (seal, padding) = if self.is_sealed() { seal(padding, count)? } else { (None, padding) };
        if padding.iter().any(|&byte| byte != 0) {
            return Err(FrameFault::Field("padding"));
        }
        let segment = self.fixed.segment.get();
        let tail = segment.checked_sub(u64::from(self.fixed.tail_distance.get()));
        let frame = Frame {
            group: GroupId(self.fixed.group.get()),
            timeline: TimelineId(self.fixed.timeline.get()),
            incarnation: IncarnationId(self.fixed.incarnation.get()),
            number: FrameNumber(self.fixed.number.get()),
            chain: self.fixed.chain.get(),
            first_lsn: Lsn(self.fixed.first_lsn.get()),
            durable_through: Lsn(self.fixed.durable_through.get()),
            segment: SegmentSequence(segment),
            segment_page: self.fixed.segment_page.get(),
            tail: SegmentSequence(tail.ok_or(FrameFault::Field("tail_distance"))?),
            records: self.records(descriptors)?,
            payload_pages: self.fixed.payload_pages.get(),
            seal,
        };
        Ok((frame, sum))
    }

    /// Numbers that a valid sum does not make legal: whoever holds a [`Frame`] may count on from them.
    fn check_numbers(&self) -> Result<(), FrameFault> {
        let (first, count) = (self.fixed.first_lsn.get(), u64::from(self.fixed.record_count.get()));
        if self.fixed.reserved_a != 0 {
            return Err(FrameFault::Field("reserved"));
        }
        if first == 0 || first.checked_add(count).is_none() {
            return Err(FrameFault::Field("first_lsn"));
        }
        if self.fixed.number == u64::MAX {
            return Err(FrameFault::Field("number"));
        }
        let start = u64::from(self.fixed.segment_page.get()) * PAGE_SECTORS;
        if start + self.total_bytes() as u64 / SECTOR_BYTES > u64::from(u32::MAX) {
            return Err(FrameFault::Field("segment_page"));
        }
        Ok(())
    }

    /// The records, whose payloads stand one behind the other: no byte is summed, or counted, twice.
    fn records(&self, descriptors: &[u8]) -> Result<Vec<Record>, FrameFault> {
        let mut records = Vec::with_capacity(descriptors.len() / DESCRIPTOR_BYTES);
        let mut end = 0;
        for bytes in descriptors.chunks_exact(DESCRIPTOR_BYTES) {
            let record = self.record(bytes)?;
            if record.payload.sectors > 0 && record.payload.sector < end {
                return Err(FrameFault::Field("payload"));
            }
            end = end.max(record.payload.sector + record.payload.sectors);
            records.push(record);
        }
        Ok(records)
    }

    fn record(&self, bytes: &[u8]) -> Result<Record, FrameFault> {
        let raw = RawDescriptor::read_from_bytes(bytes).map_err(|_| FrameFault::Field("descriptor"))?;
        let start = raw.start.get();
        let end = start.checked_add(u64::from(raw.sectors.get())).ok_or(FrameFault::Field("sectors"))?;
        let range = SectorRange { start, end };
        let disk = DiskSlot(raw.disk.get());
        let kind = match raw.kind {
            KIND_WRITE => RecordKind::Write { disk, range },
            KIND_ZERO => RecordKind::Zero { disk, range, allocated: raw.flags & FLAG_ALLOCATED != 0 },
            KIND_MARKER => RecordKind::Marker,
            KIND_OPENING => RecordKind::Opening,
            KIND_SEAL => RecordKind::Seal,
            _ => return Err(FrameFault::Field("kind")),
        };
        let has_payload = !matches!(kind, RecordKind::Zero { .. } | RecordKind::Seal);
        let sectors = if has_payload { raw.sectors.get() } else { 0 };
        let payload = Payload { sector: raw.payload_sector.get(), sectors, sum: raw.payload_sum.get() };
        let payload_end = u64::from(payload.sector) + u64::from(payload.sectors);
        let area = u64::from(self.fixed.payload_pages.get()) * PAGE_SECTORS;
        if payload_end > area || u64::from(sectors) * SECTOR_BYTES > RECORD_PAYLOAD_BYTES_MAX as u64 {
            return Err(FrameFault::Field("payload"));
        }
        let record = Record { kind, payload };
        // Whatever a kind does not use is zero: what is accepted is written back byte for byte.
        if RawDescriptor::from(&record).as_bytes() != bytes {
            return Err(FrameFault::Field("descriptor"));
        }
        Ok(record)
    }
}

/// The seal of a frame of so many records, and what is behind it.
fn seal(bytes: &[u8], records: usize) -> Result<(Option<FrameSeal>, &[u8]), FrameFault> {
    let fault = FrameFault::Field("seal");
    let (raw, rest) = RawSeal::read_from_prefix(bytes).map_err(|_| fault)?;
    let (tags, rest) = <[Tag]>::ref_from_prefix_with_elems(rest, records).map_err(|_| fault)?;
    let generation = Generation(raw.generation.get());
    if raw.reserved != [0; 12] || generation.0 == 0 {
        return Err(fault);
    }
    Ok((Some(FrameSeal { generation, header: raw.header, payloads: tags.to_vec() }), rest))
}

/// Sum of a header's pages, its own field taken as zero.
fn header_sum(header: &[u8]) -> u64 {
    let mut copy = header.to_vec();
    copy[HEADER_SUM_OFFSET..HEADER_SUM_OFFSET + 8].fill(0);
    xxh3_64(&copy)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(records: Vec<Record>, payload_pages: u32) -> Frame {
        Frame {
            group: GroupId(1),
            timeline: TimelineId(2),
            incarnation: IncarnationId(3),
            number: FrameNumber(4),
            chain: 5,
            first_lsn: Lsn(6),
            durable_through: Lsn(5),
            segment: SegmentSequence(8),
            segment_page: 9,
            tail: SegmentSequence(7),
            records,
            payload_pages,
            seal: None,
        }
    }

    fn parse(bytes: &[u8]) -> Result<(Frame, u64), FrameFault> {
        UntrustedHeader::read(bytes)?.parse(bytes)
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let range =
            (0..1_u64 << 40, 1..24_u64).prop_map(|(start, count)| SectorRange::new(start, start + count));
        let payload = |sectors| Payload { sector: 0, sectors, sum: 77 };
        prop_oneof![
            (0..9_u32, range.clone()).prop_map(move |(disk, range)| Record {
                kind: RecordKind::Write { disk: DiskSlot(disk), range },
                payload: payload(u32::try_from(range.sectors()).expect("small")),
            }),
            (0..9_u32, range, any::<bool>()).prop_map(|(disk, range, allocated)| Record {
                kind: RecordKind::Zero { disk: DiskSlot(disk), range, allocated },
                payload: Payload::default(),
            }),
            Just(Record { kind: RecordKind::Marker, payload: payload(2) }),
            Just(Record { kind: RecordKind::Opening, payload: payload(1) }),
            Just(Record { kind: RecordKind::Seal, payload: Payload::default() }),
        ]
    }

    /// The frame of `records`, with their payloads one behind the other.
    fn laid_out(mut records: Vec<Record>) -> Frame {
        let mut end = 0;
        for record in &mut records {
            record.payload.sector = end;
            end += record.payload.sectors;
        }
        frame(records, end.div_ceil(8))
    }

    proptest! {
        #[test]
        fn a_header_survives_its_bytes(records in proptest::collection::vec(any_record(), 0..300)) {
            let frame = laid_out(records);
            let mut bytes = vec![0xff; frame.header_bytes()];
            let sum = frame.encode_header(&mut bytes);
            prop_assert_eq!(parse(&bytes), Ok((frame, sum)));
        }

        #[test]
        fn a_sealed_header_survives_its_bytes(records in proptest::collection::vec(any_record(), 0..300), tag: u8) {
            let mut frame = laid_out(records);
            let payloads = vec![[tag; TAG_BYTES]; frame.records.len()];
            frame.seal = Some(FrameSeal { generation: Generation(3), header: [9; TAG_BYTES], payloads });
            let mut bytes = vec![0xff; frame.header_bytes()];
            let sum = frame.encode_header(&mut bytes);
            let (bound, own) = (frame.bound_header(), frame.header_bytes());
            prop_assert_eq!(parse(&bytes), Ok((frame, sum)));
            let differ = bound.iter().zip(&bytes).filter(|(one, other)| one != other).count();
            prop_assert!(bound.len() == own && differ <= 8 + TAG_BYTES, "sum and tag are not bound, all else is");
        }

        #[test]
        fn no_flipped_bit_goes_unseen(bit in 0..PAGE_BYTES * 8) {
            let frame = frame(vec![Record { kind: RecordKind::Seal, payload: Payload::default() }], 0);
            let mut bytes = vec![0; frame.header_bytes()];
            frame.encode_header(&mut bytes);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(parse(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_refused_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..8192)) {
            prop_assert!(parse(&bytes).is_err());
            if bytes.len() > 10 {
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
                prop_assert!(parse(&bytes).is_err());
            }
        }
    }

    #[test]
    fn a_payload_outside_the_frame_is_refused() {
        let payload = Payload { sector: 8, sectors: 1, sum: 0 };
        let frame = frame(vec![Record { kind: RecordKind::Marker, payload }], 1);
        let mut bytes = vec![0; frame.header_bytes()];
        frame.encode_header(&mut bytes);
        assert_eq!(parse(&bytes), Err(FrameFault::Field("payload")));
    }

    /// Bytes of `frame`, changed, under a sum that matches again: what a stranger could write.
    fn resummed(frame: &Frame, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut bytes = vec![0; frame.header_bytes()];
        frame.encode_header(&mut bytes);
        change(&mut bytes);
        let sum = header_sum(&bytes);
        bytes[HEADER_SUM_OFFSET..HEADER_SUM_OFFSET + 8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    #[test]
    fn a_matching_sum_does_not_make_a_field_legal() {
        let seal = Record { kind: RecordKind::Seal, payload: Payload::default() };
        let marker = Record { kind: RecordKind::Marker, payload: Payload { sector: 0, sectors: 8, sum: 1 } };
        let sound = frame(vec![seal, marker], 1);
        assert!(parse(&resummed(&sound, |_| ())).is_ok());
        let set = |range: std::ops::Range<usize>, byte: u8| {
            parse(&resummed(&sound, |bytes| bytes[range].fill(byte))).map(drop)
        };
        let seal_at = FIXED_BYTES;
        let marker_at = FIXED_BYTES + DESCRIPTOR_BYTES;
        for (range, byte, field) in [
            (10..11, 2, "sealing"),
            (11..12, 1, "reserved"),
            (80..88, 0xff, "number"),
            (88..96, 0, "first_lsn"),
            (88..96, 0xff, "first_lsn"),
            (124..128, 0xff, "tail_distance"),
            (seal_at..seal_at + 1, 0, "kind"),
            (seal_at..seal_at + 1, 6, "kind"),
            (seal_at + 1..seal_at + 2, 1, "descriptor"),
            (seal_at + 4..seal_at + 8, 1, "descriptor"),
            (marker_at + 16..marker_at + 20, 0xff, "payload"),
            (PAGE_BYTES - 1..PAGE_BYTES, 1, "padding"),
        ] {
            assert_eq!(set(range.clone(), byte), Err(FrameFault::Field(field)), "{range:?} = {byte}");
        }
    }

    #[test]
    fn payloads_that_overlap_are_refused() {
        let marker = Record { kind: RecordKind::Marker, payload: Payload { sector: 0, sectors: 8, sum: 1 } };
        let frame = frame(vec![marker, marker], 2);
        let mut bytes = vec![0; frame.header_bytes()];
        frame.encode_header(&mut bytes);
        assert_eq!(parse(&bytes), Err(FrameFault::Field("payload")));
    }

    #[test]
    fn a_payload_is_checked_against_its_sum() {
        let body = [7_u8; 4096];
        let payload = Payload { sector: 0, sectors: 8, sum: xxh3_64(&body) };
        let frame = frame(vec![Record { kind: RecordKind::Marker, payload }], 1);
        assert_eq!(frame.verify_payloads(&body), Ok(()));
        let mut bad = body;
        bad[4095] ^= 1;
        assert_eq!(frame.verify_payloads(&bad), Err(FrameFault::PayloadSum(0)));
    }

    #[test]
    fn a_blank_page_is_told_from_a_strange_one() {
        assert_eq!(parse(&[0; 4096]), Err(FrameFault::Blank));
        assert_eq!(parse(&[9; 4096]), Err(FrameFault::NoMagic));
    }
}
