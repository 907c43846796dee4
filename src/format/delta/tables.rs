//! The tables of a delta blob: sorted extents per disk, and the chunk directory.
//!
//! Only the footer's counts say where one table ends and the next starts; what is decoded is sorted, disjoint, inside
//! its disk and inside its chunk, so that nobody above has to ask again.

use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Compression, DISK_SECTORS_MAX, Footer, HEADER_BYTES, Header, generation, is_legal_length};
use crate::counted::counted;
use crate::error::{Error, Result};
use crate::format::checksum;
use crate::format::record::Reached;
use crate::seal::Generation;
use crate::units::{BlobId, DiskId, DiskSlot, SECTOR_BYTES, Sector, SectorCount, SectorRange, to_usize};

const KIND_DATA: u8 = 1;
const KIND_HOLE: u8 = 2;
const KIND_ZEROS: u8 = 3;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawDisk {
    slot: U32,
    reserved: U32,
    disk: U128,
    sectors: U64,
    first_extent: U64,
    extents: U64,
}

/// An extent's entry; summaries have the same.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(in crate::format) struct RawExtent {
    start: U64,
    sectors: U32,
    kind: u8,
    reserved: [u8; 3],
    chunk: U32,
    chunk_sector: U32,
}

/// A chunk's entry; summaries have the same, with a member.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(in crate::format) struct RawChunk {
    offset: U64,
    stored_bytes: U32,
    plain_bytes: U32,
    compression: u8,
    reserved_short: [u8; 3],
    origin_chunk: U32,
    key_generation: U32,
    /// In a summary: which of its deltas the chunk is in. In a delta 0.
    pub(in crate::format) member: U32,
    origin_blob: U128,
    checksum: U128,
}

const DISK_ENTRY_BYTES: usize = size_of::<RawDisk>();
pub(in crate::format) const EXTENT_ENTRY_BYTES: usize = size_of::<RawExtent>();
pub(in crate::format) const CHUNK_ENTRY_BYTES: usize = size_of::<RawChunk>();
const _: () = assert!(DISK_ENTRY_BYTES == 48 && EXTENT_ENTRY_BYTES == 24 && CHUNK_ENTRY_BYTES == 64);

/// Length of tables with these counts, unless it overflows.
pub(super) fn stored_bytes(disks: u32, extents: u64, chunks: u32) -> Option<u64> {
    let fixed = u64::from(disks) * DISK_ENTRY_BYTES as u64 + u64::from(chunks) * CHUNK_ENTRY_BYTES as u64;
    extents.checked_mul(EXTENT_ENTRY_BYTES as u64)?.checked_add(fixed)
}

/// What an extent holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes in a chunk.
    Data {
        /// Index in the chunk directory.
        chunk: u32,
        /// Where in the chunk's plain bytes, in sectors.
        sector: u32,
    },
    /// Zeros.
    Zero {
        /// Whether the space was to stay allocated.
        allocated: bool,
    },
}

/// A run of sectors of one disk and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaExtent {
    /// Which sectors.
    pub range: SectorRange,
    /// What they hold.
    pub content: Content,
}

/// One disk's part of the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskTable {
    /// The disk's place in its group.
    pub slot: DiskSlot,
    /// The disk.
    pub disk: DiskId,
    /// Its size at the marker.
    pub sectors: SectorCount,
    /// Sorted, disjoint, not empty.
    pub extents: Vec<DeltaExtent>,
}

impl DiskTable {
    /// Leaves out what lies below `reached`.
    pub(crate) fn cut_below(&mut self, reached: Reached) {
        let below = reached.of(self.slot);
        self.extents.drain(..self.extents.partition_point(|extent| extent.range.end <= below));
        let Some(first) = self.extents.first_mut().filter(|first| first.range.start < below) else { return };
        if let Content::Data { sector, .. } = &mut first.content {
            *sector +=
                u32::try_from(below - first.range.start).expect("an extent with data lies within one chunk");
        }
        first.range = SectorRange::new(below, first.range.end);
    }
}

/// Where a chunk is stored, and in which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// From the start of the blob.
    pub offset: u64,
    /// Stored length.
    pub stored_bytes: u32,
    /// Length of what it holds.
    pub plain_bytes: u32,
    /// The blob in which it was first written, and
    pub origin_blob: BlobId,
    /// its index there: a merge copies chunks verbatim.
    pub origin_chunk: u32,
    /// How it was made shorter.
    pub compression: Compression,
    /// Which group key sealed it, in the blob where it was first written.
    pub sealed_under: Option<Generation>,
    /// Over the stored bytes.
    pub checksum: u128,
}

impl Chunk {
    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.stored_bytes)
    }

    /// What its seal binds: all that the directory says of it wherever it is copied to. Origin blob and chunk are in key and
    /// nonce.
    pub fn bound(&self) -> [u8; 9] {
        let mut bound = [0; 9];
        bound[..4].copy_from_slice(&self.plain_bytes.to_le_bytes());
        bound[4..8].copy_from_slice(&self.stored_bytes.to_le_bytes());
        bound[8] = self.compression.code();
        bound
    }

    /// Checks stored bytes against the directory.
    pub fn verify(&self, stored: &[u8]) -> Result<()> {
        if stored.len() as u64 != u64::from(self.stored_bytes) || checksum(stored) != self.checksum {
            return Err(Error::corrupt("a chunk's checksum does not match").at_offset(self.offset));
        }
        Ok(())
    }
}

/// Everything but the chunks' bytes: sorted extents per disk, and where the chunks are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Ascending by slot; only disks that have extents.
    pub disks: Vec<DiskTable>,
    /// In stored order, without gaps.
    pub chunks: Vec<Chunk>,
}

impl Tables {
    /// Which chunks an extent is in.
    pub(crate) fn needed_chunks(&self) -> Vec<bool> {
        let mut needed = vec![false; self.chunks.len()];
        for extent in self.disks.iter().flat_map(|disk| &disk.extents) {
            if let Content::Data { chunk, .. } = extent.content {
                needed[chunk as usize] = true;
            }
        }
        needed
    }

    /// The stored tables.
    ///
    /// # Panics
    /// If an extent is longer than 2^32 − 1 sectors; the builder splits those.
    pub fn encode(&self) -> Vec<u8> {
        let extents: usize = self.disks.iter().map(|disk| disk.extents.len()).sum();
        let mut bytes = Vec::with_capacity(
            self.disks.len() * DISK_ENTRY_BYTES
                + extents * EXTENT_ENTRY_BYTES
                + self.chunks.len() * CHUNK_ENTRY_BYTES,
        );
        let mut first_extent = 0_u64;
        for disk in &self.disks {
            bytes.extend_from_slice(encode_disk(disk, first_extent).as_bytes());
            first_extent += disk.extents.len() as u64;
        }
        for extent in self.disks.iter().flat_map(|disk| &disk.extents) {
            bytes.extend_from_slice(encode_extent(extent).as_bytes());
        }
        for chunk in &self.chunks {
            bytes.extend_from_slice(encode_chunk(chunk).as_bytes());
        }
        bytes
    }

    /// The tables in `bytes`, which are what `footer` sums, opened.
    pub fn decode(bytes: &[u8], header: &Header, footer: &Footer) -> Result<Tables> {
        let corrupt = |text: &str| Error::corrupt(text).at_offset(footer.tables_offset);
        if bytes.len() as u64 != footer.plain_tables_bytes() {
            return Err(corrupt("the delta tables' lengths do not match the footer's counts"));
        }
        let disks_end = footer.disks as usize * DISK_ENTRY_BYTES;
        let extents_end = disks_end + to_usize(footer.extents) * EXTENT_ENTRY_BYTES;
        let disks = <[RawDisk]>::ref_from_bytes(&bytes[..disks_end]);
        let extents = <[RawExtent]>::ref_from_bytes(&bytes[disks_end..extents_end]);
        let chunks = <[RawChunk]>::ref_from_bytes(&bytes[extents_end..]);
        let (Ok(disks), Ok(extents), Ok(chunks)) = (disks, extents, chunks) else {
            return Err(corrupt("the delta tables' lengths do not match the footer's counts"));
        };
        let chunks = decode_chunks(chunks, header, footer)
            .map_err(|error| error.at_offset(footer.tables_offset + extents_end as u64))?;
        let disks =
            decode_disks(disks, extents, &chunks).map_err(|error| error.at_offset(footer.tables_offset))?;
        Ok(Tables { disks, chunks })
    }
}

fn encode_disk(disk: &DiskTable, first_extent: u64) -> RawDisk {
    RawDisk {
        slot: disk.slot.0.into(),
        reserved: 0.into(),
        disk: disk.disk.0.into(),
        sectors: disk.sectors.0.into(),
        first_extent: first_extent.into(),
        extents: (disk.extents.len() as u64).into(),
    }
}

pub(in crate::format) fn encode_extent(extent: &DeltaExtent) -> RawExtent {
    let (kind, chunk, chunk_sector) = match extent.content {
        Content::Data { chunk, sector } => (KIND_DATA, chunk, sector),
        Content::Zero { allocated: false } => (KIND_HOLE, 0, 0),
        Content::Zero { allocated: true } => (KIND_ZEROS, 0, 0),
    };
    RawExtent {
        start: extent.range.start.into(),
        sectors: u32::try_from(extent.range.sectors()).expect("the builder splits long extents").into(),
        kind,
        reserved: [0; 3],
        chunk: chunk.into(),
        chunk_sector: chunk_sector.into(),
    }
}

pub(in crate::format) fn encode_chunk(chunk: &Chunk) -> RawChunk {
    RawChunk {
        offset: chunk.offset.into(),
        stored_bytes: chunk.stored_bytes.into(),
        plain_bytes: chunk.plain_bytes.into(),
        compression: chunk.compression.code(),
        reserved_short: [0; 3],
        origin_chunk: chunk.origin_chunk.into(),
        key_generation: chunk.sealed_under.map_or(0, |generation| generation.0).into(),
        member: 0.into(),
        origin_blob: chunk.origin_blob.0.into(),
        checksum: chunk.checksum.into(),
    }
}

fn decode_chunks(raw: &[RawChunk], header: &Header, footer: &Footer) -> Result<Vec<Chunk>> {
    let mut chunks = Vec::with_capacity(raw.len());
    let (mut offset, mut plain_bytes) = (HEADER_BYTES as u64, 0_u64);
    for (index, raw) in raw.iter().enumerate() {
        let chunk = decode_chunk(raw, header.chunk_bytes)
            .and_then(|chunk| match chunk.offset == offset && raw.member.get() == 0 {
                true => Ok(chunk),
                false => Err(Error::corrupt(format!("it starts at {}, not at {offset}", chunk.offset))),
            })
            .map_err(|error| Error::new(error.kind(), format!("chunk {index}: {error}")))?;
        offset = chunk.end();
        plain_bytes += u64::from(chunk.plain_bytes);
        chunks.push(chunk);
    }
    if offset != footer.tables_offset || plain_bytes != footer.plain_bytes {
        return Err(Error::corrupt("the chunks do not add up to what the footer says"));
    }
    Ok(chunks)
}

/// A chunk's entry on its own, of at most so many plain bytes; the member is the caller's to judge.
pub(in crate::format) fn decode_chunk(raw: &RawChunk, chunk_bytes_max: u32) -> Result<Chunk> {
    let compression = Compression::from_code(raw.compression)?;
    let (plain, stored) = (raw.plain_bytes.get(), raw.stored_bytes.get());
    let legal = plain > 0
        && plain <= chunk_bytes_max
        && u64::from(plain).is_multiple_of(SECTOR_BYTES)
        && is_legal_length(plain.into(), stored.into(), compression, raw.key_generation.get());
    if !legal || raw.reserved_short != [0; 3] {
        return Err(Error::corrupt(format!("{stored} stored bytes, {plain} plain")));
    }
    Ok(Chunk {
        offset: raw.offset.get(),
        stored_bytes: stored,
        plain_bytes: plain,
        origin_blob: BlobId(raw.origin_blob.get()),
        origin_chunk: raw.origin_chunk.get(),
        compression,
        sealed_under: generation(raw.key_generation),
        checksum: raw.checksum.get(),
    })
}

fn decode_disks(raw: &[RawDisk], extents: &[RawExtent], chunks: &[Chunk]) -> Result<Vec<DiskTable>> {
    let mut disks: Vec<DiskTable> = Vec::with_capacity(raw.len());
    let mut rest = extents;
    for raw in raw {
        let slot = DiskSlot(raw.slot.get());
        let first = (extents.len() - rest.len()) as u64;
        let (count, sectors) = (raw.extents.get(), raw.sectors.get());
        if disks.last().is_some_and(|previous| previous.slot >= slot)
            || raw.first_extent.get() != first
            || !(1..=rest.len() as u64).contains(&count)
            || !(1..=DISK_SECTORS_MAX).contains(&sectors)
            || raw.reserved.get() != 0
        {
            return Err(Error::corrupt(format!("the entry of disk slot {} is not legal", slot.0)));
        }
        let (own, others) = rest.split_at(to_usize(count));
        rest = others;
        let extents = decode_extents(own, sectors, chunks)
            .map_err(|error| Error::new(error.kind(), format!("disk slot {}: {error}", slot.0)))?;
        let sectors = SectorCount(sectors);
        disks.push(DiskTable { slot, disk: DiskId(raw.disk.get()), sectors, extents });
    }
    if !rest.is_empty() {
        return Err(Error::corrupt(format!("{} of no disk", counted(rest.len(), "extent"))));
    }
    Ok(disks)
}

fn decode_extents(raw: &[RawExtent], sectors: u64, chunks: &[Chunk]) -> Result<Vec<DeltaExtent>> {
    let mut extents: Vec<DeltaExtent> = Vec::with_capacity(raw.len());
    for raw in raw {
        let extent = decode_extent(raw)?;
        check_placed(&extent, chunks)?;
        let sorted = extents.last().is_none_or(|previous| previous.range.end <= extent.range.start);
        if !sorted || extent.range.end > sectors {
            return Err(Error::corrupt(format!("extent {} is out of order or range", extent.range)));
        }
        extents.push(extent);
    }
    Ok(extents)
}

/// An extent's entry on its own; whether its chunk has what it says is the caller's to judge.
pub(in crate::format) fn decode_extent(raw: &RawExtent) -> Result<DeltaExtent> {
    let count = u64::from(raw.sectors.get());
    let (chunk, sector) = (raw.chunk.get(), raw.chunk_sector.get());
    let content = match raw.kind {
        KIND_DATA => Content::Data { chunk, sector },
        KIND_HOLE => Content::Zero { allocated: false },
        KIND_ZEROS => Content::Zero { allocated: true },
        other => return Err(Error::corrupt(format!("extent kind {other} is not legal"))),
    };
    let placed = matches!(content, Content::Data { .. }) || (chunk, sector) == (0, 0);
    let range = SectorRange::with_count(Sector(raw.start.get()), SectorCount(count));
    let Some(range) = range.filter(|_| placed && count > 0 && raw.reserved == [0; 3]) else {
        let text = format!("extent of {count} sectors at {} is not legal", raw.start.get());
        return Err(Error::corrupt(text));
    };
    Ok(DeltaExtent { range, content })
}

fn check_placed(extent: &DeltaExtent, chunks: &[Chunk]) -> Result<()> {
    let Content::Data { chunk, sector } = extent.content else { return Ok(()) };
    let end = (u64::from(sector) + extent.range.sectors()) * SECTOR_BYTES;
    if chunks.get(chunk as usize).is_some_and(|chunk| end <= u64::from(chunk.plain_bytes)) {
        return Ok(());
    }
    Err(Error::corrupt(format!("extent {} is not in its chunk", extent.range)))
}
