//! Builds a delta blob: extents in, chunks and tables out, in one pass and with bounded memory.
//!
//! The extents come coalesced and sorted, per disk, from frozen maps; their bytes are read from wherever the map says
//! (the journal). A few chunks are read ahead, so that many small reads are in flight; besides them only the tables
//! (24 bytes an extent, 64 a chunk) are held. Data that turns out to be zeros is stored as such.

use std::pin::pin;

use futures::future::try_join_all;
use futures::stream::{self, StreamExt};

use super::pack::Packer;
use crate::error::Result;
use crate::extent::{Extent, Location};
use crate::format::delta::{
    CHUNK_BYTES, Content, DeltaExtent, DeltaRef, DiskTable, HEADER_BYTES, Header, Tables,
};
use crate::seal::GroupKeys;
use crate::storage::{Buffer, Slice};
use crate::units::{DiskId, DiskSlot, SECTOR_BYTES, SectorCount, SectorRange, to_usize};

/// Chunks being read at a time.
const CHUNKS_AHEAD: usize = 4;
/// Sectors of a chunk.
const CHUNK_SECTORS: u64 = CHUNK_BYTES as u64 / SECTOR_BYTES;
/// Sectors that an extent's entry can say.
pub(super) const EXTENT_SECTORS_MAX: u64 = u32::MAX as u64;

/// The tables are written in pieces of this size.
const TAIL_PIECE_BYTES: usize = 1 << 20;

/// What a location stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceContent {
    /// Bytes that [`Source::read`] gives.
    Data,
    /// Zeros.
    Zero {
        /// Whether the space is to stay allocated.
        allocated: bool,
    },
}

/// Where the bytes of an interval are.
pub trait Source {
    /// What the extent maps say.
    type Location: Location;

    /// What a location stands for.
    fn content(&self, location: Self::Location) -> SourceContent;

    /// The bytes at a location of kind [`SourceContent::Data`]: `sectors` of them, verified. Many calls are in
    /// flight at a time.
    fn read(&self, location: Self::Location, sectors: SectorCount) -> impl Future<Output = Result<Slice>>;
}

/// One disk's part of an interval.
pub struct DiskExtents<I> {
    /// The disk's place in its group.
    pub slot: DiskSlot,
    /// The disk.
    pub disk: DiskId,
    /// Its size at the marker.
    pub sectors: SectorCount,
    /// What was written: sorted and disjoint.
    pub extents: I,
}

/// A blob that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuiltDelta {
    /// For the point that it belongs to.
    pub reference: DeltaRef,
    /// Entries in its extent tables.
    pub extents: u64,
    /// Bytes of data in it.
    pub plain_bytes: u64,
}

/// Where a blob's bytes go, piece after piece.
pub trait Sink {
    /// How much was appended.
    fn length(&self) -> u64;

    /// Appends a piece; waits while too much is in flight.
    fn append(&mut self, piece: Slice) -> impl Future<Output = Result<()>>;
}

/// A delta that is known to hold something, and is ready to be written.
pub struct Build<'a, S: Source, I, D> {
    source: &'a S,
    plans: Planner<'a, S, I, D>,
    first: Plan<S::Location>,
}

impl<'a, S, I, D> Build<'a, S, I, D>
where
    S: Source,
    I: Iterator<Item = Extent<S::Location>>,
    D: Iterator<Item = DiskExtents<I>>,
{
    /// A delta of `disks`, which ascend by slot; `None` if nothing was written to any of them.
    pub fn new(source: &'a S, disks: D) -> Option<Self> {
        let mut plans = Planner { source, disks, current: None, rest: None };
        let first = plans.next()?;
        Some(Build { source, plans, first })
    }

    /// Writes the blob that `header` announces, whose id was drawn for this attempt; its `chunk_bytes` is the builder's to
    /// say.
    pub async fn write(
        self,
        sink: &mut impl Sink,
        mut header: Header,
        keys: &GroupKeys,
    ) -> Result<BuiltDelta> {
        header.chunk_bytes = CHUNK_BYTES;
        let mut packer = Packer::new(header.blob, keys);
        let encoded_header = write_header(sink, &header).await?;
        let tables = self.write_chunks(sink, &mut packer).await?;
        write_tail(sink, &encoded_header, &packer, &tables).await
    }

    async fn write_chunks(self, sink: &mut impl Sink, packer: &mut Packer) -> Result<Tables> {
        let Build { source, plans, first } = self;
        let plans = stream::iter(std::iter::once(first).chain(plans));
        let mut chunks = pin!(plans.map(|plan| fill(source, plan)).buffered(CHUNKS_AHEAD));
        let mut tables = Tables::default();
        while let Some(filled) = chunks.next().await {
            let Filled { placed, bytes } = filled?;
            let index = next_index(&tables);
            placed.into_iter().for_each(|placed| add_extent(&mut tables, placed, index));
            if let Some(bytes) = bytes {
                let (chunk, stored) = packer.chunk(index, sink.length(), bytes);
                tables.chunks.push(chunk);
                sink.append(stored).await?;
            }
        }
        Ok(tables)
    }
}

/// The index of the chunk that comes next.
pub(super) fn next_index(tables: &Tables) -> u32 {
    u32::try_from(tables.chunks.len()).expect("2^32 chunks are 512 TiB of one interval")
}

/// Begins a blob.
pub(super) async fn write_header(sink: &mut impl Sink, header: &Header) -> Result<[u8; HEADER_BYTES]> {
    let encoded = header.encode();
    sink.append(Buffer::copy_of(&encoded).freeze()).await?;
    Ok(encoded)
}

/// Ends a blob whose chunks were written.
pub(super) async fn write_tail(
    sink: &mut impl Sink,
    header: &[u8; HEADER_BYTES],
    packer: &Packer,
    tables: &Tables,
) -> Result<BuiltDelta> {
    let (footer, tail) = packer.tail(header, tables);
    for piece in tail.chunks(TAIL_PIECE_BYTES) {
        sink.append(Buffer::copy_of(piece).freeze()).await?;
    }
    let (extents, plain_bytes) = (footer.extents, footer.plain_bytes);
    Ok(BuiltDelta { reference: footer.reference(), extents, plain_bytes })
}

fn add_extent(tables: &mut Tables, placed: Placed, chunk: u32) {
    let content = match placed.content {
        PlacedContent::Data { sector } => Content::Data { chunk, sector },
        PlacedContent::Zero { allocated } => Content::Zero { allocated },
    };
    let extent = DeltaExtent { range: placed.range, content };
    let DiskExtents { slot, disk, sectors, .. } = placed.disk;
    match tables.disks.last_mut() {
        Some(table) if table.slot == slot => table.extents.push(extent),
        _ => tables.disks.push(DiskTable { slot, disk, sectors, extents: vec![extent] }),
    }
}

/// What became of a plan.
struct Filled {
    placed: Vec<Placed>,
    bytes: Option<Slice>,
}

/// Reads a plan's pieces side by side and puts them together. One that is zeros throughout needs no place: it stays
/// allocated, for it was written.
async fn fill<S: Source>(source: &S, plan: Plan<S::Location>) -> Result<Filled> {
    let Plan { mut placed, pieces, sectors } = plan;
    let reads = pieces.iter().map(|piece| source.read(piece.location, SectorCount(piece.sectors)));
    let parts = try_join_all(reads).await?;
    let mut chunk = Buffer::recycled(to_usize(sectors * SECTOR_BYTES));
    let mut end = 0;
    let data = placed.iter_mut().filter(|placed| matches!(placed.content, PlacedContent::Data { .. }));
    for (part, placed) in parts.iter().zip(data) {
        if is_zero(part) {
            placed.content = PlacedContent::Zero { allocated: true };
            continue;
        }
        let sector = u32::try_from(end as u64 / SECTOR_BYTES).expect("a chunk is bounded");
        placed.content = PlacedContent::Data { sector };
        chunk[end..end + part.len()].copy_from_slice(part);
        end += part.len();
    }
    chunk.truncate(end);
    Ok(Filled { placed, bytes: (end > 0).then(|| chunk.freeze()) })
}

fn is_zero(bytes: &[u8]) -> bool {
    // The compiler makes wide comparisons of a whole block, and the first one tells nearly always.
    bytes.chunks(256).all(|block| block.iter().fold(0, |any, byte| any | byte) == 0)
}

/// An extent with its place in the blob.
struct Placed {
    disk: DiskExtents<()>,
    range: SectorRange,
    content: PlacedContent,
}

#[derive(Clone, Copy)]
enum PlacedContent {
    /// In its chunk, from this sector on.
    Data {
        sector: u32,
    },
    Zero {
        allocated: bool,
    },
}

struct Piece<L> {
    location: L,
    sectors: u64,
}

/// What goes into one chunk, and the zeros met on the way.
struct Plan<L> {
    placed: Vec<Placed>,
    pieces: Vec<Piece<L>>,
    sectors: u64,
}

/// Cuts sorted extents into chunks, disk after disk: an extent never crosses from one chunk to the next.
struct Planner<'a, S: Source, I, D> {
    source: &'a S,
    disks: D,
    current: Option<DiskExtents<I>>,
    /// What is left of an extent that did not fit.
    rest: Option<Extent<S::Location>>,
}

impl<S, I, D> Planner<'_, S, I, D>
where
    S: Source,
    I: Iterator<Item = Extent<S::Location>>,
    D: Iterator<Item = DiskExtents<I>>,
{
    /// The next extent and its disk.
    fn next_extent(&mut self) -> Option<(DiskExtents<()>, Extent<S::Location>)> {
        loop {
            if let Some(disk) = &mut self.current
                && let Some(extent) = self.rest.take().or_else(|| disk.extents.next())
            {
                let (slot, id, sectors) = (disk.slot, disk.disk, disk.sectors);
                return Some((DiskExtents { slot, disk: id, sectors, extents: () }, extent));
            }
            self.current = Some(self.disks.next()?);
        }
    }

    /// Takes the first `sectors` of `extent`, and keeps the rest for later.
    fn split(&mut self, extent: Extent<S::Location>, sectors: u64) -> SectorRange {
        let middle = extent.range.start + sectors.min(extent.range.sectors());
        if middle < extent.range.end {
            let location = extent.location.advance(middle - extent.range.start);
            self.rest = Some(Extent { range: SectorRange::new(middle, extent.range.end), location });
        }
        SectorRange::new(extent.range.start, middle)
    }
}

impl<S, I, D> Iterator for Planner<'_, S, I, D>
where
    S: Source,
    I: Iterator<Item = Extent<S::Location>>,
    D: Iterator<Item = DiskExtents<I>>,
{
    type Item = Plan<S::Location>;

    fn next(&mut self) -> Option<Plan<S::Location>> {
        let mut plan = Plan { placed: Vec::new(), pieces: Vec::new(), sectors: 0 };
        while plan.sectors < CHUNK_SECTORS {
            let Some((disk, extent)) = self.next_extent() else { break };
            let (range, content) = match self.source.content(extent.location) {
                SourceContent::Zero { allocated } => {
                    (self.split(extent, EXTENT_SECTORS_MAX), PlacedContent::Zero { allocated })
                }
                SourceContent::Data => {
                    let sector = u32::try_from(plan.sectors).expect("a chunk is bounded");
                    let range = self.split(extent, CHUNK_SECTORS - plan.sectors);
                    plan.pieces.push(Piece { location: extent.location, sectors: range.sectors() });
                    plan.sectors += range.sectors();
                    (range, PlacedContent::Data { sector })
                }
            };
            plan.placed.push(Placed { disk, range, content });
        }
        (!plan.placed.is_empty()).then_some(plan)
    }
}
