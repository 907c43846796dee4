//! Merges layered deltas into one blob. A chunk whose every sector is still live is copied as it is stored, with its
//! origin; what is left of the others is put together anew.
//!
//! Everything is planned from the tables before a byte is read; then chunks are read and written in stored order, a few
//! at a time.

use std::collections::HashMap;
use std::pin::pin;

use futures::stream::{self, StreamExt};

use super::builder::{BuiltDelta, EXTENT_SECTORS_MAX, Sink, next_index, write_header, write_tail};
use super::layers::{LayeredDisk, Place};
use super::pack::Packer;
use super::reader::DeltaReader;
use crate::error::Result;
use crate::extent::FrozenMap;
use crate::format::delta::{CHUNK_BYTES, Chunk, Content, DeltaExtent, DiskTable, Header, Tables};
use crate::seal::GroupKeys;
use crate::storage::{Buffer, Slice};
use crate::units::{SECTOR_BYTES, SectorRange, to_usize};

/// Sectors of a chunk that is put together.
const CHUNK_SECTORS: u32 = CHUNK_BYTES / 512;
const _: () = assert!(CHUNK_SECTORS as u64 * SECTOR_BYTES == CHUNK_BYTES as u64);
/// Chunks being read at a time.
const CHUNKS_AHEAD: usize = 4;

/// A chunk of a layer.
type Origin = (u32, u32);

/// A part of a chunk that is put together.
#[derive(Clone, Copy, Debug)]
struct Piece {
    from: Origin,
    sector: u32,
    sectors: u32,
}

/// What a chunk of the merged blob is made of.
#[derive(Clone, Debug)]
enum ChunkPlan {
    Copied(Origin),
    Rebuilt(Vec<Piece>),
}

/// Writes the blob that `header` announces: what `disks` say is live in `layers`. `None`, and nothing written, if that
/// is nothing at all.
pub async fn merge(
    sink: &mut impl Sink,
    mut header: Header,
    layers: &[DeltaReader],
    disks: &[LayeredDisk<FrozenMap<Place>>],
    keys: &GroupKeys,
) -> Result<Option<BuiltDelta>> {
    let mut planner = Planner::new(layers, disks);
    disks.iter().for_each(|disk| planner.add_disk(disk));
    let Planner { chunks, mut tables, .. } = planner;
    if tables.disks.is_empty() {
        return Ok(None);
    }
    // Copied chunks are as long as their origins made them.
    header.chunk_bytes = layers.iter().map(|layer| layer.header().chunk_bytes).fold(CHUNK_BYTES, u32::max);
    let mut packer = Packer::new(header.blob, keys);
    let encoded_header = write_header(sink, &header).await?;
    let mut filled = pin!(stream::iter(&chunks).map(|chunk| fill(layers, chunk)).buffered(CHUNKS_AHEAD));
    while let Some(filled) = filled.next().await {
        let (origin, bytes) = filled?;
        let offset = sink.length();
        let (chunk, stored) = match origin {
            Some(origin) => (Chunk { offset, ..origin }, bytes),
            None => packer.chunk(next_index(&tables), offset, bytes),
        };
        tables.chunks.push(chunk);
        sink.append(stored).await?;
    }
    write_tail(sink, &encoded_header, &packer, &tables).await.map(Some)
}

/// A chunk's stored bytes and its entry where it is a copy, else its plain bytes.
async fn fill(layers: &[DeltaReader], plan: &ChunkPlan) -> Result<(Option<Chunk>, Slice)> {
    match plan {
        ChunkPlan::Copied((layer, chunk)) => {
            let reader = &layers[*layer as usize];
            let entry = reader.tables().chunks[*chunk as usize];
            Ok((Some(entry), reader.stored_chunk(*chunk).await?))
        }
        ChunkPlan::Rebuilt(pieces) => Ok((None, rebuild(layers, pieces).await?)),
    }
}

/// Puts pieces together; each origin is read once, and one at a time, so that memory is bounded.
async fn rebuild(layers: &[DeltaReader], pieces: &[Piece]) -> Result<Slice> {
    let sectors: u32 = pieces.iter().map(|piece| piece.sectors).sum();
    let mut target = Buffer::recycled(to_usize(u64::from(sectors) * SECTOR_BYTES));
    let mut by_origin: Vec<(Origin, usize, &Piece)> = Vec::with_capacity(pieces.len());
    let mut at = 0;
    for piece in pieces {
        by_origin.push((piece.from, at, piece));
        at += to_usize(u64::from(piece.sectors) * SECTOR_BYTES);
    }
    by_origin.sort_by_key(|&(from, at, _)| (from, at));
    for group in by_origin.chunk_by(|a, b| a.0 == b.0) {
        let (layer, chunk) = group[0].0;
        let plain = layers[layer as usize].chunk(chunk).await?;
        for &(_, at, piece) in group {
            let bytes = to_usize(u64::from(piece.sectors) * SECTOR_BYTES);
            let start = to_usize(u64::from(piece.sector) * SECTOR_BYTES);
            target[at..at + bytes].copy_from_slice(&plain[start..start + bytes]);
        }
    }
    Ok(target.freeze())
}

/// Decides for each live extent where in the merged blob it comes to lie.
struct Planner<'a> {
    layers: &'a [DeltaReader],
    /// Live sectors of each chunk that has any.
    live: HashMap<Origin, u64>,
    /// Where a copied chunk comes to lie.
    copied: HashMap<Origin, u32>,
    chunks: Vec<ChunkPlan>,
    /// The chunk that is being put together, and how much it holds.
    open: Option<(u32, u32)>,
    tables: Tables,
}

impl<'a> Planner<'a> {
    fn new(layers: &'a [DeltaReader], disks: &[LayeredDisk<FrozenMap<Place>>]) -> Planner<'a> {
        let mut live = HashMap::new();
        for extent in disks.iter().flat_map(|disk| disk.map.iter()) {
            if let Place::Chunk { layer, chunk, .. } = extent.location {
                *live.entry((layer, chunk)).or_default() += extent.range.sectors();
            }
        }
        let (copied, chunks, tables) = (HashMap::new(), Vec::new(), Tables::default());
        Planner { layers, live, copied, chunks, open: None, tables }
    }

    fn add_disk(&mut self, disk: &LayeredDisk<FrozenMap<Place>>) {
        let mut extents = Vec::with_capacity(disk.map.len());
        for extent in disk.map.iter() {
            match extent.location {
                Place::Zero { allocated } => add_zeros(&mut extents, extent.range, allocated),
                Place::Chunk { layer, chunk, sector } if self.is_whole((layer, chunk)) => {
                    let chunk = self.copy((layer, chunk));
                    let content = Content::Data { chunk, sector };
                    extents.push(DeltaExtent { range: extent.range, content });
                }
                Place::Chunk { layer, chunk, sector } => {
                    self.gather(&mut extents, extent.range, (layer, chunk), sector);
                }
            }
        }
        if !extents.is_empty() {
            let (slot, sectors) = (disk.slot, disk.sectors);
            self.tables.disks.push(DiskTable { slot, disk: disk.id, sectors, extents });
        }
    }

    fn is_whole(&self, origin: Origin) -> bool {
        let chunk = &self.layers[origin.0 as usize].tables().chunks[origin.1 as usize];
        self.live.get(&origin) == Some(&(u64::from(chunk.plain_bytes) / SECTOR_BYTES))
    }

    /// Where a copied chunk comes to lie.
    fn copy(&mut self, origin: Origin) -> u32 {
        if let Some(&chunk) = self.copied.get(&origin) {
            return chunk;
        }
        let chunk = self.add_chunk(ChunkPlan::Copied(origin));
        self.copied.insert(origin, chunk);
        chunk
    }

    fn add_chunk(&mut self, plan: ChunkPlan) -> u32 {
        let index = u32::try_from(self.chunks.len()).expect("2^32 chunks are 512 TiB of one delta");
        self.chunks.push(plan);
        index
    }

    /// Adds a piece of a chunk to those that are put together, in parts where it does not fit.
    fn gather(&mut self, extents: &mut Vec<DeltaExtent>, range: SectorRange, from: Origin, sector: u32) {
        let (mut start, mut sector) = (range.start, sector);
        while start < range.end {
            let (index, used) = self.open_chunk();
            let left = u32::try_from(range.end - start).expect("an extent with data lies within one chunk");
            let sectors = left.min(CHUNK_SECTORS - used);
            let ChunkPlan::Rebuilt(pieces) = &mut self.chunks[index as usize] else {
                unreachable!("the open chunk is one that is put together")
            };
            pieces.push(Piece { from, sector, sectors });
            self.open = Some((index, used + sectors));
            let end = start + u64::from(sectors);
            let content = Content::Data { chunk: index, sector: used };
            extents.push(DeltaExtent { range: SectorRange::new(start, end), content });
            (start, sector) = (end, sector + sectors);
        }
    }

    /// The chunk that is being put together; a new one where there is none with room.
    fn open_chunk(&mut self) -> (u32, u32) {
        match self.open {
            Some((index, used)) if used < CHUNK_SECTORS => (index, used),
            _ => (self.add_chunk(ChunkPlan::Rebuilt(Vec::new())), 0),
        }
    }
}

fn add_zeros(extents: &mut Vec<DeltaExtent>, range: SectorRange, allocated: bool) {
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min(start + EXTENT_SECTORS_MAX);
        let content = Content::Zero { allocated };
        extents.push(DeltaExtent { range: SectorRange::new(start, end), content });
        start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> SectorRange {
        SectorRange::new(start, end)
    }

    fn data(range: SectorRange, chunk: u32, sector: u32) -> DeltaExtent {
        DeltaExtent { range, content: Content::Data { chunk, sector } }
    }

    fn pieces(plan: &ChunkPlan) -> Vec<(Origin, u32, u32)> {
        let ChunkPlan::Rebuilt(pieces) = plan else { panic!("{plan:?} is a copy") };
        pieces.iter().map(|piece| (piece.from, piece.sector, piece.sectors)).collect()
    }

    #[test]
    fn pieces_fill_one_chunk_after_the_other() {
        let mut planner = Planner::new(&[], &[]);
        let mut extents = Vec::new();
        planner.gather(&mut extents, range(1000, 1200), (0, 7), 5);
        planner.gather(&mut extents, range(2000, 2300), (1, 8), 20);
        // This one begins where a chunk is full.
        planner.gather(&mut extents, range(3000, 3012), (2, 9), 0);
        planner.gather(&mut extents, range(4000, 4001), (0, 7), 210);
        let placed = [
            data(range(1000, 1200), 0, 0),
            data(range(2000, 2056), 0, 200),
            data(range(2056, 2300), 1, 0),
            data(range(3000, 3012), 1, 244),
            data(range(4000, 4001), 2, 0),
        ];
        assert_eq!(CHUNK_SECTORS, 256);
        assert_eq!(extents, placed);
        let chunks: Vec<_> = planner.chunks.iter().map(pieces).collect();
        let expected = [
            vec![((0, 7), 5, 200), ((1, 8), 20, 56)],
            vec![((1, 8), 76, 244), ((2, 9), 0, 12)],
            vec![((0, 7), 210, 1)],
        ];
        assert_eq!(chunks, expected);
    }

    #[test]
    fn a_copied_chunk_is_copied_once_and_ends_nothing_that_is_put_together() {
        let mut planner = Planner::new(&[], &[]);
        let mut extents = Vec::new();
        planner.gather(&mut extents, range(0, 10), (0, 0), 0);
        assert_eq!([planner.copy((1, 1)), planner.copy((1, 2)), planner.copy((1, 1))], [1, 2, 1]);
        planner.gather(&mut extents, range(20, 30), (0, 0), 20);
        assert_eq!(extents[1], data(range(20, 30), 0, 10));
        assert_eq!(planner.chunks.len(), 3);
        assert!(matches!(planner.chunks[2], ChunkPlan::Copied((1, 2))));
    }

    #[test]
    fn zeros_are_split_where_an_entry_cannot_say_them() {
        let mut extents = Vec::new();
        let zeros =
            |start, end| DeltaExtent { range: range(start, end), content: Content::Zero { allocated: true } };
        add_zeros(&mut extents, range(10, 10 + EXTENT_SECTORS_MAX), true);
        assert_eq!(extents, [zeros(10, 10 + EXTENT_SECTORS_MAX)]);
        extents.clear();
        add_zeros(&mut extents, range(10, 11 + EXTENT_SECTORS_MAX), true);
        let cut = 10 + EXTENT_SECTORS_MAX;
        assert_eq!(extents, [zeros(10, cut), zeros(cut, cut + 1)]);
    }
}
