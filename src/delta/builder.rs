//! Builds a delta blob: extents in, chunks and tables out, in one pass and with bounded memory.
//!
//! The extents come coalesced and sorted, per disk, from frozen maps; their bytes are read from wherever the map says
//! (the journal). A few chunks are read ahead, so that many small reads are in flight; besides them only the tables
//! (24 bytes an extent, 64 a chunk) are held.

use std::pin::pin;

use futures::future::try_join_all;
use futures::stream::{self, StreamExt};

use crate::error::Result;
use crate::extent::{Extent, Location};
use crate::format::checksum;
use crate::format::delta::{
    CHUNK_BYTES, Chunk, Content, DeltaExtent, DeltaRef, DiskTable, Footer, HEADER_BYTES, Header, Tables,
};
use crate::storage::{Buffer, Slice};
use crate::units::{BlobId, DiskId, DiskSlot, SECTOR_BYTES, SectorCount, SectorRange, to_usize};

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
        let mut plans = Planner { source, disks, current: None, rest: None, next_chunk: 0 };
        let first = plans.next()?;
        Some(Build { source, plans, first })
    }

    /// Writes the blob that `header` announces; its `chunk_bytes` is the builder's to say.
    pub async fn write(self, sink: &mut impl Sink, mut header: Header) -> Result<BuiltDelta> {
        header.chunk_bytes = CHUNK_BYTES;
        let encoded_header = write_header(sink, &header).await?;
        let tables = self.write_chunks(sink, header.blob).await?;
        write_tail(sink, &encoded_header, header.blob, &tables).await
    }

    async fn write_chunks(self, sink: &mut impl Sink, blob: BlobId) -> Result<Tables> {
        let Build { source, plans, first } = self;
        let plans = stream::iter(std::iter::once(first).chain(plans));
        let mut chunks = pin!(plans.map(|plan| fill(source, plan)).buffered(CHUNKS_AHEAD));
        let mut tables = Tables::default();
        while let Some(filled) = chunks.next().await {
            let (placed, bytes) = filled?;
            placed.into_iter().for_each(|placed| add_extent(&mut tables, placed));
            if let Some(bytes) = bytes {
                tables.chunks.push(directory_entry(&tables, blob, sink.length(), &bytes));
                sink.append(bytes).await?;
            }
        }
        Ok(tables)
    }
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
    blob: BlobId,
    tables: &Tables,
) -> Result<BuiltDelta> {
    let encoded_tables = tables.encode();
    let footer = Footer::new(header, blob, tables, &encoded_tables);
    let tail = [encoded_tables.as_slice(), &footer.encode()].concat();
    for piece in tail.chunks(TAIL_PIECE_BYTES) {
        sink.append(Buffer::copy_of(piece).freeze()).await?;
    }
    let (extents, plain_bytes) = (footer.extents, footer.plain_bytes);
    Ok(BuiltDelta { reference: footer.reference(), extents, plain_bytes })
}

pub(super) fn directory_entry(tables: &Tables, blob: BlobId, offset: u64, bytes: &Slice) -> Chunk {
    let length = u32::try_from(bytes.len()).expect("a chunk is bounded");
    Chunk {
        offset,
        stored_bytes: length,
        plain_bytes: length,
        origin_blob: blob,
        origin_chunk: u32::try_from(tables.chunks.len()).expect("2^32 chunks are 512 TiB of one interval"),
        checksum: checksum(bytes),
    }
}

fn add_extent(tables: &mut Tables, placed: Placed) {
    let DiskExtents { slot, disk, sectors, .. } = placed.disk;
    match tables.disks.last_mut() {
        Some(table) if table.slot == slot => table.extents.push(placed.extent),
        _ => tables.disks.push(DiskTable { slot, disk, sectors, extents: vec![placed.extent] }),
    }
}

/// Reads a plan's pieces side by side and puts them together.
async fn fill<S: Source>(source: &S, plan: Plan<S::Location>) -> Result<(Vec<Placed>, Option<Slice>)> {
    if plan.pieces.is_empty() {
        return Ok((plan.placed, None));
    }
    let reads = plan.pieces.iter().map(|piece| source.read(piece.location, SectorCount(piece.sectors)));
    let parts = try_join_all(reads).await?;
    let mut chunk = Buffer::recycled(to_usize(plan.sectors * SECTOR_BYTES));
    let mut rest = &mut chunk[..];
    for (part, piece) in parts.iter().zip(&plan.pieces) {
        let (place, others) = rest.split_at_mut(to_usize(piece.sectors * SECTOR_BYTES));
        place.copy_from_slice(part);
        rest = others;
    }
    Ok((plan.placed, Some(chunk.freeze())))
}

/// An extent with its place in the blob.
struct Placed {
    disk: DiskExtents<()>,
    extent: DeltaExtent,
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
    next_chunk: u32,
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
                    (self.split(extent, EXTENT_SECTORS_MAX), Content::Zero { allocated })
                }
                SourceContent::Data => {
                    let sector = u32::try_from(plan.sectors).expect("a chunk is bounded");
                    let range = self.split(extent, CHUNK_SECTORS - plan.sectors);
                    plan.pieces.push(Piece { location: extent.location, sectors: range.sectors() });
                    plan.sectors += range.sectors();
                    (range, Content::Data { chunk: self.next_chunk, sector })
                }
            };
            plan.placed.push(Placed { disk, extent: DeltaExtent { range, content } });
        }
        if plan.placed.is_empty() {
            return None;
        }
        if !plan.pieces.is_empty() {
            self.next_chunk += 1;
        }
        Some(plan)
    }
}
