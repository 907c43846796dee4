//! Index runs: what some consecutive frames of a journal say, coalesced, so that opening need not read their payloads.
//!
//! ```text
//! 0        256      + 32 × parts  + 32 × layers                                  + 24 × extents  + 16 × payloads
//! +--------+--------+--------------+---------------------------------------------+---------------+--------+-----+
//! | header | parts  | layers       | of each layer: disks, 16 B each; marker     | extents       | payloads | pad |
//! +--------+--------+--------------+---------------------------------------------+---------------+--------+-----+
//! ```
//!
//! A sealed group's run goes on with a tag for each payload and the key of each part. Little-endian; every field is in `docs/format.md`. The file's sum covers all of it, padding included. A run is a cache:
//! whoever cannot believe it reads the frames themselves. So there is one kind of fault, which says what was wrong.
//!
//! [`Run`] holds the small tables. The large ones, extents and payloads, stay in the bytes and are taken one by one
//! ([`RunTables`]), for a backlog has millions of them.

use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::frame::{Payload, RECORD_PAYLOAD_BYTES_MAX};
use crate::format::marker::Marker;
use crate::seal::{Generation, TAG_BYTES, Tag};
use crate::units::{
    DiskSlot, FrameNumber, GroupId, IncarnationId, Lsn, PAGE_BYTES, SECTOR_BYTES, SectorRange,
    SegmentSequence, TimelineId, to_usize,
};

/// First bytes of every run.
pub const MAGIC: [u8; 8] = *b"AIRUN\0\0\0";
/// The version that this code writes, and the only one that it reads.
pub const VERSION: u16 = 1;
/// Size of the header.
pub const HEADER_BYTES: usize = size_of::<RawHeader>();
const SUM_OFFSET: usize = 16;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLink {
    incarnation: U128,
    number: U64,
    sum: U64,
    segment: U64,
    last_lsn: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U16,
    reserved_a: [u8; 6],
    sum: U64,
    group: U128,
    timeline: U128,
    begin: RawLink,
    end: RawLink,
    parts: U32,
    layers: U32,
    extents: U64,
    payloads: U64,
    tags: U64,
    seals: U32,
    reserved_b: [u8; 68],
}

const _: () = assert!(HEADER_BYTES == 256);
const _: () = assert!(std::mem::offset_of!(RawHeader, sum) == SUM_OFFSET);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPart {
    index: U32,
    payloads: U32,
    sequence: U64,
    last_lsn: U64,
    reserved: [u8; 8],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLayer {
    last: U64,
    oldest: U64,
    data_bytes: U64,
    disks: U32,
    marker_bytes: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawDisk {
    slot: U32,
    extents: U32,
    reserved: [u8; 8],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawExtent {
    start: U64,
    sectors: U32,
    segment: U32,
    sector: U32,
    kind: u8,
    reserved: [u8; 3],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPayload {
    sector: U32,
    sectors: U32,
    sum: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPartSeal {
    incarnation: U128,
    generation: U32,
    reserved: [u8; 12],
}

const PART_BYTES: usize = size_of::<RawPart>();
const LAYER_BYTES: usize = size_of::<RawLayer>();
const DISK_BYTES: usize = size_of::<RawDisk>();
const EXTENT_BYTES: usize = size_of::<RawExtent>();
const PAYLOAD_BYTES: usize = size_of::<RawPayload>();
const _: () = assert!(PART_BYTES == 32 && LAYER_BYTES == 32 && DISK_BYTES == 16);
const SEAL_BYTES: usize = size_of::<RawPartSeal>();
const _: () = assert!(EXTENT_BYTES == 24 && PAYLOAD_BYTES == 16 && SEAL_BYTES == 32);

const KIND_JOURNAL: u8 = 0;
const KIND_ZERO: u8 = 1;
const KIND_ZERO_ALLOCATED: u8 = 2;

/// A frame of the chain, by all that tells it from any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLink {
    /// Which opening of the journal wrote it.
    pub incarnation: IncarnationId,
    /// Its number; zero: before a journal's first.
    pub number: FrameNumber,
    /// Its `header_sum`, and so, through the chain, all that came before.
    pub sum: u64,
    /// The use of a segment that it stands in.
    pub segment: SegmentSequence,
    /// The last record up to its end.
    pub last_lsn: Lsn,
}

/// Which key sealed payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartSeal {
    /// That of this incarnation,
    pub incarnation: IncarnationId,
    /// of this group key.
    pub generation: Generation,
}

/// What the run's frames take of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunPart {
    /// Number of the segment's file.
    pub index: u32,
    /// The use of the file that is meant.
    pub sequence: SegmentSequence,
    /// The last record in it, as far as the run goes.
    pub last_lsn: Lsn,
    /// How many payloads of it the run lists.
    pub payloads: u32,
    /// What sealed them, where the group is sealed.
    pub seal: Option<PartSeal>,
}

/// Consecutive records of the run, up to where a layer was frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunLayer {
    /// The last record.
    pub last: Lsn,
    /// The oldest segment that holds data of it.
    pub oldest: SegmentSequence,
    /// Bytes of data that its records carried.
    pub data_bytes: u64,
    /// The disks that it is about, and how many extents each has.
    pub disks: Vec<(DiskSlot, u32)>,
    /// The marker that ends it; its number is `last`.
    pub marker: Option<Marker>,
}

/// A run, but for its extents and payloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whose journal it is beside.
    pub group: GroupId,
    /// In which history.
    pub timeline: TimelineId,
    /// The frame before the first one covered.
    pub begin: FrameLink,
    /// The last frame covered.
    pub end: FrameLink,
    /// Its segments, oldest first.
    pub parts: Vec<RunPart>,
    /// Its layers, oldest first.
    pub layers: Vec<RunLayer>,
}

/// Where the bytes of an extent are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunSource {
    /// In the segment file with this number, from this sector on.
    Journal {
        /// Number of the file.
        segment: u32,
        /// First sector in it.
        sector: u32,
    },
    /// Zeros.
    Zero {
        /// Whether the source asked to keep the space.
        allocated: bool,
    },
}

/// A range of a disk, and where its bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunExtent {
    /// The sectors.
    pub range: SectorRange,
    /// Where the first of them is.
    pub source: RunSource,
}

/// Why bytes are no run: what was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunFault(pub &'static str);

/// The extents and payloads of a run, in the order of its tables.
#[derive(Clone, Copy)]
pub struct RunTables<'a> {
    extents: &'a [RawExtent],
    payloads: &'a [RawPayload],
    tags: &'a [Tag],
}

impl RunTables<'_> {
    /// The extents: of the first layer's first disk, of its second disk, and so on. `None` for one that cannot be.
    pub fn extents(&self) -> impl ExactSizeIterator<Item = Option<RunExtent>> + '_ {
        self.extents.iter().map(RawExtent::parse)
    }

    /// The payloads of the first part, of the second, and so on; sectors count from the segment's start. `None` for one
    /// that cannot be.
    pub fn payloads(&self) -> impl ExactSizeIterator<Item = Option<Payload>> + '_ {
        self.payloads.iter().map(RawPayload::parse)
    }

    /// Of each payload its tag; none at all where the group is not sealed.
    pub fn tags(&self) -> &[Tag] {
        self.tags
    }
}

impl Run {
    /// The whole file: whole pages.
    ///
    /// # Panics
    /// If there are not as many extents and payloads as the tables say: only our own bug can do that.
    pub fn encode(
        &self,
        extents: impl Iterator<Item = RunExtent>,
        payloads: impl Iterator<Item = Payload>,
        tags: &[Tag],
    ) -> Vec<u8> {
        let (extent_count, payload_count) = self.counts();
        let seals: Vec<PartSeal> = self.parts.iter().filter_map(|part| part.seal).collect();
        let tables = to_usize(extent_count) * EXTENT_BYTES
            + to_usize(payload_count) * PAYLOAD_BYTES
            + tags.len() * TAG_BYTES
            + seals.len() * SEAL_BYTES;
        let mut out = Vec::with_capacity((HEADER_BYTES + tables + PAGE_BYTES).next_multiple_of(PAGE_BYTES));
        out.extend_from_slice(
            self.raw_header(extent_count, payload_count, tags.len() as u64, seals.len()).as_bytes(),
        );
        self.parts.iter().for_each(|part| out.extend_from_slice(RawPart::from(part).as_bytes()));
        let markers: Vec<Vec<u8>> = self
            .layers
            .iter()
            .map(|layer| layer.marker.as_ref().map(Marker::encode).unwrap_or_default())
            .collect();
        for (layer, marker) in self.layers.iter().zip(&markers) {
            out.extend_from_slice(raw_layer(layer, marker.len()).as_bytes());
        }
        for (layer, marker) in self.layers.iter().zip(&markers) {
            for &(slot, extents) in &layer.disks {
                let disk = RawDisk { slot: slot.0.into(), extents: extents.into(), reserved: [0; 8] };
                out.extend_from_slice(disk.as_bytes());
            }
            out.extend_from_slice(marker);
        }
        let start = out.len();
        extents.for_each(|extent| out.extend_from_slice(RawExtent::from(extent).as_bytes()));
        payloads.for_each(|payload| out.extend_from_slice(RawPayload::from(payload).as_bytes()));
        out.extend_from_slice(tags.as_bytes());
        seals.iter().for_each(|seal| out.extend_from_slice(RawPartSeal::from(seal).as_bytes()));
        assert_eq!(out.len() - start, tables, "the tables say how much follows");
        out.resize(out.len().next_multiple_of(PAGE_BYTES), 0);
        let sum = xxh3_64(&out);
        out[SUM_OFFSET..SUM_OFFSET + 8].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Takes a whole file, which it needs to change in passing, apart.
    pub fn decode(bytes: &mut [u8]) -> Result<(Run, RunTables<'_>), RunFault> {
        let (header, _) = RawHeader::read_from_prefix(bytes).map_err(|_| RunFault("length"))?;
        if header.magic != MAGIC {
            return Err(RunFault("magic"));
        }
        if header.version != VERSION {
            return Err(RunFault("version"));
        }
        // The sum is taken with its own field as zero, and put back.
        bytes[SUM_OFFSET..SUM_OFFSET + 8].fill(0);
        let sum = xxh3_64(bytes);
        bytes[SUM_OFFSET..SUM_OFFSET + 8].copy_from_slice(header.sum.as_bytes());
        if sum != header.sum.get() {
            return Err(RunFault("sum"));
        }
        decode_body(&header, bytes)
    }

    /// How many extents and payloads the tables announce.
    fn counts(&self) -> (u64, u64) {
        let disks = self.layers.iter().flat_map(|layer| &layer.disks);
        let extents = disks.map(|&(_, extents)| u64::from(extents)).sum();
        (extents, self.parts.iter().map(|part| u64::from(part.payloads)).sum())
    }

    fn raw_header(&self, extents: u64, payloads: u64, tags: u64, seals: usize) -> RawHeader {
        let count = |count: usize| u32::try_from(count).expect("a run has few parts and layers").into();
        RawHeader {
            magic: MAGIC,
            version: VERSION.into(),
            reserved_a: [0; 6],
            sum: 0.into(),
            group: self.group.0.into(),
            timeline: self.timeline.0.into(),
            begin: RawLink::from(&self.begin),
            end: RawLink::from(&self.end),
            parts: count(self.parts.len()),
            layers: count(self.layers.len()),
            extents: extents.into(),
            payloads: payloads.into(),
            tags: tags.into(),
            seals: count(seals),
            reserved_b: [0; 68],
        }
    }

    /// What the tables must say whoever wrote them: records and segments ascend from begin to end.
    fn check(&self) -> Result<(), RunFault> {
        let (begin, end) = (&self.begin, &self.end);
        if begin.number >= end.number || begin.segment > end.segment || begin.last_lsn > end.last_lsn {
            return Err(RunFault("links"));
        }
        let mut last = begin.last_lsn;
        for layer in &self.layers {
            if layer.last <= last || layer.last > end.last_lsn || layer.oldest > end.segment {
                return Err(RunFault("layers"));
            }
            if !layer.disks.is_sorted_by(|one, other| one.0 < other.0) {
                return Err(RunFault("disks"));
            }
            last = layer.last;
        }
        let ascend = self.parts.is_sorted_by(|one, other| {
            one.sequence < other.sequence || (one.sequence == other.sequence && one.seal != other.seal)
        });
        let within =
            self.parts.iter().all(|part| part.sequence >= begin.segment && part.last_lsn <= end.last_lsn);
        let reach = self.parts.last().is_some_and(|part| part.sequence == end.segment);
        if !(ascend && within && reach) {
            return Err(RunFault("parts"));
        }
        Ok(())
    }
}

fn decode_body<'a>(header: &RawHeader, bytes: &'a [u8]) -> Result<(Run, RunTables<'a>), RunFault> {
    if header.reserved_a != [0; 6] || header.reserved_b != [0; 68] {
        return Err(RunFault("reserved"));
    }
    let rest = &bytes[HEADER_BYTES..];
    let (parts, rest) = table::<RawPart>(rest, header.parts.get().into())?;
    let (layers, mut rest) = table::<RawLayer>(rest, header.layers.get().into())?;
    let mut run = Run {
        group: GroupId(header.group.get()),
        timeline: TimelineId(header.timeline.get()),
        begin: FrameLink::from(&header.begin),
        end: FrameLink::from(&header.end),
        parts: parts.iter().map(RawPart::parse).collect::<Result<_, _>>()?,
        layers: Vec::with_capacity(layers.len()),
    };
    for layer in layers {
        let (disks, after) = table::<RawDisk>(rest, layer.disks.get().into())?;
        let (marker, after) =
            after.split_at_checked(layer.marker_bytes.get() as usize).ok_or(RunFault("length"))?;
        run.layers.push(parse_layer(layer, disks, marker)?);
        rest = after;
    }
    let (extents, rest) = table::<RawExtent>(rest, header.extents.get())?;
    let (payloads, rest) = table::<RawPayload>(rest, header.payloads.get())?;
    let (tags, rest) = table::<Tag>(rest, header.tags.get())?;
    let (seals, padding) = table::<RawPartSeal>(rest, header.seals.get().into())?;
    if !seals.is_empty() {
        if seals.len() != run.parts.len() || tags.len() != payloads.len() {
            return Err(RunFault("seals"));
        }
        for (part, seal) in run.parts.iter_mut().zip(seals) {
            part.seal = Some(seal.parse()?);
        }
    } else if !tags.is_empty() {
        return Err(RunFault("tags"));
    }
    if run.counts() != (header.extents.get(), header.payloads.get()) {
        return Err(RunFault("counts"));
    }
    if padding.len() >= PAGE_BYTES
        || !bytes.len().is_multiple_of(PAGE_BYTES)
        || padding.iter().any(|&byte| byte != 0)
    {
        return Err(RunFault("padding"));
    }
    run.check()?;
    Ok((run, RunTables { extents, payloads, tags }))
}

/// The first `count` entries of `bytes`, and what is behind them.
fn table<T: FromBytes + Immutable + KnownLayout + Unaligned>(
    bytes: &[u8],
    count: u64,
) -> Result<(&[T], &[u8]), RunFault> {
    let count = usize::try_from(count).map_err(|_| RunFault("length"))?;
    <[T]>::ref_from_prefix_with_elems(bytes, count).map_err(|_| RunFault("length"))
}

fn raw_layer(layer: &RunLayer, marker_bytes: usize) -> RawLayer {
    let count = |count: usize| u32::try_from(count).expect("a layer has few disks and one marker").into();
    RawLayer {
        last: layer.last.0.into(),
        oldest: layer.oldest.0.into(),
        data_bytes: layer.data_bytes.into(),
        disks: count(layer.disks.len()),
        marker_bytes: count(marker_bytes),
    }
}

fn parse_layer(raw: &RawLayer, disks: &[RawDisk], marker: &[u8]) -> Result<RunLayer, RunFault> {
    if disks.iter().any(|disk| disk.reserved != [0; 8]) {
        return Err(RunFault("reserved"));
    }
    let marker = match marker {
        [] => None,
        bytes => {
            Some(Marker::decode(bytes).filter(|marker| marker.encode() == bytes).ok_or(RunFault("marker"))?)
        }
    };
    Ok(RunLayer {
        last: Lsn(raw.last.get()),
        oldest: SegmentSequence(raw.oldest.get()),
        data_bytes: raw.data_bytes.get(),
        disks: disks.iter().map(|disk| (DiskSlot(disk.slot.get()), disk.extents.get())).collect(),
        marker,
    })
}

impl RawPart {
    fn parse(&self) -> Result<RunPart, RunFault> {
        if self.reserved != [0; 8] {
            return Err(RunFault("reserved"));
        }
        Ok(RunPart {
            index: self.index.get(),
            sequence: SegmentSequence(self.sequence.get()),
            last_lsn: Lsn(self.last_lsn.get()),
            payloads: self.payloads.get(),
            seal: None,
        })
    }
}

impl RawPartSeal {
    fn parse(&self) -> Result<PartSeal, RunFault> {
        if self.reserved != [0; 12] || self.generation.get() == 0 {
            return Err(RunFault("seals"));
        }
        let generation = Generation(self.generation.get());
        Ok(PartSeal { incarnation: IncarnationId(self.incarnation.get()), generation })
    }
}

impl From<&PartSeal> for RawPartSeal {
    fn from(seal: &PartSeal) -> RawPartSeal {
        RawPartSeal {
            incarnation: seal.incarnation.0.into(),
            generation: seal.generation.0.into(),
            reserved: [0; 12],
        }
    }
}

impl RawExtent {
    fn parse(&self) -> Option<RunExtent> {
        let start = self.start.get();
        let end = start.checked_add(self.sectors.get().into())?;
        let (segment, sector) = (self.segment.get(), self.sector.get());
        let source = match (self.kind, segment, sector) {
            (KIND_JOURNAL, segment, sector) => RunSource::Journal { segment, sector },
            (KIND_ZERO, 0, 0) => RunSource::Zero { allocated: false },
            (KIND_ZERO_ALLOCATED, 0, 0) => RunSource::Zero { allocated: true },
            _ => return None,
        };
        let is_legal = self.reserved == [0; 3] && start < end;
        is_legal.then_some(RunExtent { range: SectorRange { start, end }, source })
    }
}

impl RawPayload {
    fn parse(&self) -> Option<Payload> {
        let payload = Payload { sector: self.sector.get(), sectors: self.sectors.get(), sum: self.sum.get() };
        payload.sector.checked_add(payload.sectors)?;
        let bytes = u64::from(payload.sectors) * SECTOR_BYTES;
        (1..=RECORD_PAYLOAD_BYTES_MAX as u64).contains(&bytes).then_some(payload)
    }
}

impl From<RunExtent> for RawExtent {
    fn from(extent: RunExtent) -> RawExtent {
        let (kind, segment, sector) = match extent.source {
            RunSource::Journal { segment, sector } => (KIND_JOURNAL, segment, sector),
            RunSource::Zero { allocated: false } => (KIND_ZERO, 0, 0),
            RunSource::Zero { allocated: true } => (KIND_ZERO_ALLOCATED, 0, 0),
        };
        RawExtent {
            start: extent.range.start.into(),
            sectors: u32::try_from(extent.range.sectors()).expect("an extent lies within a record").into(),
            segment: segment.into(),
            sector: sector.into(),
            kind,
            reserved: [0; 3],
        }
    }
}

impl From<Payload> for RawPayload {
    fn from(payload: Payload) -> RawPayload {
        RawPayload { sector: payload.sector.into(), sectors: payload.sectors.into(), sum: payload.sum.into() }
    }
}

impl From<&RunPart> for RawPart {
    fn from(part: &RunPart) -> RawPart {
        RawPart {
            index: part.index.into(),
            payloads: part.payloads.into(),
            sequence: part.sequence.0.into(),
            last_lsn: part.last_lsn.0.into(),
            reserved: [0; 8],
        }
    }
}

impl From<&FrameLink> for RawLink {
    fn from(link: &FrameLink) -> RawLink {
        RawLink {
            incarnation: link.incarnation.0.into(),
            number: link.number.0.into(),
            sum: link.sum.into(),
            segment: link.segment.0.into(),
            last_lsn: link.last_lsn.0.into(),
        }
    }
}

impl From<&RawLink> for FrameLink {
    fn from(raw: &RawLink) -> FrameLink {
        FrameLink {
            incarnation: IncarnationId(raw.incarnation.get()),
            number: FrameNumber(raw.number.get()),
            sum: raw.sum.get(),
            segment: SegmentSequence(raw.segment.get()),
            last_lsn: Lsn(raw.last_lsn.get()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(number: u64, segment: u64, last_lsn: u64) -> FrameLink {
        FrameLink {
            incarnation: IncarnationId(9),
            number: FrameNumber(number),
            sum: number * 7,
            segment: SegmentSequence(segment),
            last_lsn: Lsn(last_lsn),
        }
    }

    fn run() -> (Run, Vec<RunExtent>, Vec<Payload>) {
        let extent = |start, source| RunExtent { range: SectorRange::new(start, start + 8), source };
        let extents = vec![
            extent(0, RunSource::Journal { segment: 1, sector: 16 }),
            extent(64, RunSource::Zero { allocated: true }),
            extent(8, RunSource::Zero { allocated: false }),
        ];
        let payloads =
            vec![Payload { sector: 16, sectors: 8, sum: 5 }, Payload { sector: 32, sectors: 128, sum: 6 }];
        let layer = |last, disks| RunLayer {
            last: Lsn(last),
            oldest: SegmentSequence(3),
            data_bytes: 4096,
            disks,
            marker: None,
        };
        let part = |index, sequence, last_lsn, payloads| RunPart {
            index,
            sequence: SegmentSequence(sequence),
            last_lsn: Lsn(last_lsn),
            payloads,
            seal: None,
        };
        let run = Run {
            group: GroupId(1),
            timeline: TimelineId(2),
            begin: link(4, 3, 10),
            end: link(9, 4, 20),
            parts: vec![part(1, 3, 14, 1), part(0, 4, 20, 1)],
            layers: vec![layer(14, vec![(DiskSlot(0), 2)]), layer(20, vec![(DiskSlot(1), 1)])],
        };
        (run, extents, payloads)
    }

    fn encoded() -> Vec<u8> {
        let (run, extents, payloads) = run();
        run.encode(extents.into_iter(), payloads.into_iter(), &[])
    }

    #[test]
    fn a_run_is_what_was_written() {
        let mut bytes = encoded();
        let kept = bytes.clone();
        let (run, extents, payloads) = run();
        {
            let (found, tables) = Run::decode(&mut bytes).expect("a run");
            assert_eq!(found, run);
            assert_eq!(tables.extents().collect::<Option<Vec<_>>>(), Some(extents));
            assert_eq!(tables.payloads().collect::<Option<Vec<_>>>(), Some(payloads));
        }
        assert_eq!(bytes, kept, "decoding leaves the bytes as they were");
    }

    #[test]
    fn a_sealed_run_names_tags_and_keys() {
        let (mut run, extents, payloads) = run();
        for (part, incarnation) in run.parts.iter_mut().zip(5..) {
            let (incarnation, generation) = (IncarnationId(incarnation), Generation(2));
            part.seal = Some(PartSeal { incarnation, generation });
        }
        // Two incarnations wrote to one segment.
        run.parts[0].sequence = run.parts[1].sequence;
        let tags = [[7; TAG_BYTES], [8; TAG_BYTES]];
        let mut bytes = run.encode(extents.clone().into_iter(), payloads.clone().into_iter(), &tags);
        let (found, tables) = Run::decode(&mut bytes).expect("a run");
        assert_eq!((&found, tables.tags()), (&run, &tags[..]));
        let mut bytes = run.encode(extents.clone().into_iter(), payloads.clone().into_iter(), &tags[..1]);
        assert_eq!(Run::decode(&mut bytes).map(drop), Err(RunFault("seals")));
        run.parts.iter_mut().for_each(|part| part.seal = None);
        let mut bytes = run.encode(extents.into_iter(), payloads.into_iter(), &tags);
        assert_eq!(Run::decode(&mut bytes).map(drop), Err(RunFault("tags")));
    }

    #[test]
    fn no_flipped_bit_and_no_cut_is_believed() {
        let whole = encoded();
        for byte in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[byte] ^= 1 << (byte % 8);
            assert!(Run::decode(&mut bytes).is_err(), "byte {byte}");
        }
        for length in [0, 8, HEADER_BYTES, whole.len() - 1] {
            assert!(Run::decode(&mut whole[..length].to_vec()).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn tables_that_contradict_their_links_are_refused() {
        let refused = |change: &dyn Fn(&mut Run)| {
            let (mut run, extents, payloads) = run();
            change(&mut run);
            let mut bytes = run.encode(extents.into_iter(), payloads.into_iter(), &[]);
            Run::decode(&mut bytes).map(drop).unwrap_err().0
        };
        assert_eq!(refused(&|run| run.end.number = run.begin.number), "links");
        assert_eq!(refused(&|run| run.layers.swap(0, 1)), "layers");
        assert_eq!(refused(&|run| run.layers[1].last = Lsn(21)), "layers");
        assert_eq!(refused(&|run| run.parts.swap(0, 1)), "parts");
        assert_eq!(refused(&|run| run.end.segment = SegmentSequence(5)), "parts");
    }
}
