//! A view: the disks of a group as of a recovery point, read-only.
//!
//! The deltas up to the point are layered, newest bytes winning, into one frozen extent map per disk over the disk's
//! base. Opening reads header and tables of each delta; chunks are read, and compared with their checksums, when they are
//! asked for. Overlay and restore build on this; serving over NBD is the failover room's.
//!
//! Invariant: what a view reads never changes while it lives. The base is never written and blobs are immutable; a pin
//! keeps both from being retired.

mod cache;
mod overlay;
mod presence;
mod restore;
mod turns;

use std::rc::Rc;

use futures::stream::{self, StreamExt, TryStreamExt};

pub use overlay::{BLOCK_BYTES, Overlay};
pub use restore::{RestoreProgress, restore};

use self::cache::Recent;
use crate::block::{AllocationRun, DataPiece};
use crate::delta::{DeltaReader, read_chunk};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::{ExtentMap, FrozenMap, Location};
use crate::format::delta::{Chunk, Content, DeltaRef, Tables};
use crate::format::record::{Membership, PointRecord};
use crate::runtime::Runtime;
use crate::storage::{File, Slice};
use crate::units::{BlobId, DiskId, DiskSlot, PointId, SECTOR_BYTES, SectorCount, SectorRange, to_usize};
use crate::vault::{State, Vault};

/// Deltas whose tables are read at a time while a view opens.
const OPENS_IN_FLIGHT: usize = 16;
/// Parts of one read that are in flight at a time.
const READS_IN_FLIGHT: usize = 16;
/// Chunks kept per view: 4 MiB.
const CHUNKS_KEPT: usize = 32;
/// Blobs kept open per view: a view of a day of points has more of them than a process may have files.
const FILES_KEPT: usize = 32;
/// Extents that are layered before the owner's hot path gets its turn.
const EXTENTS_PER_TURN: usize = 8192;

/// Where a view finds a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In a chunk of a layer.
    Chunk { layer: u32, chunk: u32, sector: u32 },
    /// Nowhere: it is zero.
    Zero { allocated: bool },
}

impl Location for Place {
    fn advance(self, sectors: u64) -> Place {
        match self {
            Place::Chunk { layer, chunk, sector } => {
                let sectors = u32::try_from(sectors).expect("an extent with data lies within one chunk");
                Place::Chunk { layer, chunk, sector: sector + sectors }
            }
            zero @ Place::Zero { .. } => zero,
        }
    }
}

/// A delta of the view.
struct Layer {
    blob: BlobId,
    chunks: Box<[Chunk]>,
}

/// A disk of a view.
pub struct ViewDisk {
    slot: DiskSlot,
    id: DiskId,
    name: String,
    sectors: SectorCount,
    map: FrozenMap<Place>,
    base: File,
    base_sectors: u64,
}

impl ViewDisk {
    /// Its place in the group.
    pub fn slot(&self) -> DiskSlot {
        self.slot
    }

    /// Its permanent id.
    pub fn id(&self) -> DiskId {
        self.id
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its size at the point.
    pub fn sectors(&self) -> SectorCount {
        self.sectors
    }

    /// Extents in the merged map: what the view keeps in memory.
    pub fn extents(&self) -> usize {
        self.map.len()
    }
}

/// A group's disks as of a recovery point.
pub struct View {
    vault: Rc<Vault>,
    point: PointRecord,
    disks: Vec<ViewDisk>,
    layers: Vec<Layer>,
    chunks: Recent<(u32, u32), Slice>,
    files: Recent<u32, File>,
}

impl View {
    /// Opens the view of a point. Whoever does this has pinned the point.
    pub async fn open(vault: &Rc<Vault>, point: PointId) -> Result<Rc<View>> {
        let (point, deltas, mut drafts) = {
            let state = vault.manifest().state();
            let point = state.point(point).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("there is no recovery point {point}"))
            })?;
            (point.clone(), deltas_up_to(&state, point), drafts(&state, point))
        };
        let mut layers = Vec::with_capacity(deltas.len());
        let mut readers = stream::iter(deltas)
            .map(|delta| async move { vault.open_delta(&delta).await })
            .buffered(OPENS_IN_FLIGHT)
            .boxed_local();
        while let Some(reader) = readers.next().await {
            let layer = u32::try_from(layers.len()).expect("a vault has fewer than 2^32 points");
            layers.push(add_layer(vault.runtime(), &mut drafts, layer, reader?).await);
        }
        drop(readers);
        let mut disks = Vec::with_capacity(drafts.len());
        for draft in drafts {
            disks.push(draft.finish(vault).await?);
        }
        let (chunks, files) = (Recent::new(CHUNKS_KEPT), Recent::new(FILES_KEPT));
        Ok(Rc::new(View { vault: Rc::clone(vault), point, disks, layers, chunks, files }))
    }

    /// The point.
    pub fn point(&self) -> &PointRecord {
        &self.point
    }

    /// The disks that can be had at this point, ascending by slot.
    pub fn disks(&self) -> &[ViewDisk] {
        &self.disks
    }

    /// A disk by its id.
    pub fn disk(&self, disk: DiskId) -> Result<&ViewDisk> {
        self.disks.iter().find(|viewed| viewed.id == disk).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("point {} does not hold disk {disk}", self.point.id))
        })
    }

    /// What the view's I/O runs on.
    pub fn runtime(&self) -> &Rc<Runtime> {
        self.vault.runtime()
    }

    /// The bytes of a range, in order.
    pub async fn read(&self, disk: DiskId, range: SectorRange) -> Result<Vec<DataPiece>> {
        let disk = self.checked(disk, range)?;
        let parts = disk.map.lookup(range).map(|(range, place)| self.read_part(disk, range, place));
        let parts: Vec<_> = parts.collect();
        let pieces: Vec<Vec<DataPiece>> = stream::iter(parts).buffered(READS_IN_FLIGHT).try_collect().await?;
        Ok(pieces.into_iter().flatten().collect())
    }

    /// Which parts of a range are allocated, in order, neighbours of one state in one run. What is not reads as zeros.
    pub async fn allocation(&self, disk: DiskId, range: SectorRange) -> Result<Vec<AllocationRun>> {
        let disk = self.checked(disk, range)?;
        let mut runs = Vec::new();
        let parts: Vec<_> = disk.map.lookup(range).collect();
        for (range, place) in parts {
            match place {
                Some(Place::Chunk { .. }) => add_run(&mut runs, range.bytes(), true),
                Some(Place::Zero { allocated }) => add_run(&mut runs, range.bytes(), allocated),
                None => self.add_base_runs(disk, range, &mut runs).await?,
            }
        }
        Ok(runs)
    }

    fn checked(&self, disk: DiskId, range: SectorRange) -> Result<&ViewDisk> {
        let disk = self.disk(disk)?;
        if range.end > disk.sectors.0 {
            let text = format!("sectors {range} of disk {:?}, which has {}", disk.name, disk.sectors.0);
            return Err(Error::invalid(text));
        }
        Ok(disk)
    }

    async fn read_part(
        &self,
        disk: &ViewDisk,
        range: SectorRange,
        place: Option<Place>,
    ) -> Result<Vec<DataPiece>> {
        match place {
            Some(Place::Zero { .. }) => Ok(vec![DataPiece::Zeros(range.bytes())]),
            Some(Place::Chunk { layer, chunk, sector }) => {
                let chunk = self.chunk(layer, chunk).await?;
                let start = to_usize(u64::from(sector) * SECTOR_BYTES);
                Ok(vec![DataPiece::Bytes(chunk.slice(start..start + to_usize(range.bytes())))])
            }
            None => self.read_base(disk, range).await,
        }
    }

    /// Past its end a base is zeros: the disk may have grown since.
    async fn read_base(&self, disk: &ViewDisk, range: SectorRange) -> Result<Vec<DataPiece>> {
        let mut pieces = Vec::new();
        let stored = range.intersection(SectorRange::new(0, disk.base_sectors));
        if let Some(stored) = stored {
            let bytes = to_usize(stored.bytes());
            let buffer = self.runtime().read(&disk.base, stored.byte_offset(), bytes).await?;
            pieces.push(DataPiece::Bytes(buffer.freeze()));
        }
        let missing = range.bytes() - stored.map_or(0, SectorRange::bytes);
        if missing > 0 {
            pieces.push(DataPiece::Zeros(missing));
        }
        Ok(pieces)
    }

    async fn add_base_runs(
        &self,
        disk: &ViewDisk,
        range: SectorRange,
        runs: &mut Vec<AllocationRun>,
    ) -> Result<()> {
        let mut position = range.byte_offset();
        let end = range.byte_range().end;
        let stored_end = end.min(disk.base_sectors * SECTOR_BYTES);
        if position < stored_end {
            for data in self.runtime().data_ranges(&disk.base, position..stored_end).await? {
                add_run(runs, data.start - position, false);
                add_run(runs, data.end - data.start, true);
                position = data.end;
            }
        }
        add_run(runs, end - position, false);
        Ok(())
    }

    async fn chunk(&self, layer: u32, index: u32) -> Result<Slice> {
        if let Some(chunk) = self.chunks.get((layer, index)) {
            return Ok(chunk);
        }
        let file = self.file(layer).await?;
        let entry = self.layers[layer as usize].chunks[index as usize];
        let chunk = read_chunk(self.runtime(), &file, &entry).await?;
        self.chunks.put((layer, index), chunk.clone());
        Ok(chunk)
    }

    async fn file(&self, layer: u32) -> Result<File> {
        if let Some(file) = self.files.get(layer) {
            return Ok(file);
        }
        let file = self.vault.blobs().open(self.layers[layer as usize].blob).await?;
        self.files.put(layer, file.clone());
        Ok(file)
    }
}

/// Adds to the last run, or begins one.
pub(crate) fn add_run(runs: &mut Vec<AllocationRun>, bytes: u64, allocated: bool) {
    match runs.last_mut() {
        _ if bytes == 0 => {}
        Some(run) if run.allocated == allocated => run.bytes += bytes,
        _ => runs.push(AllocationRun { bytes, allocated }),
    }
}

/// The deltas whose layers make up a point, oldest first.
fn deltas_up_to(state: &State, point: &PointRecord) -> Vec<DeltaRef> {
    let points = state.points().iter().take_while(|other| other.marker <= point.marker);
    points.filter_map(|other| other.delta).collect()
}

/// A disk whose layers are being merged.
struct Draft {
    slot: DiskSlot,
    id: DiskId,
    name: String,
    sectors: SectorCount,
    map: ExtentMap<Place>,
}

fn drafts(state: &State, point: &PointRecord) -> Vec<Draft> {
    let included = point.disks.iter().filter(|disk| disk.membership == Membership::Included);
    let draft = |disk: &crate::format::record::PointDisk| Draft {
        slot: disk.slot,
        id: disk.disk,
        name: state.disk(disk.slot).map_or_else(String::new, |disk| disk.record.name.clone()),
        sectors: disk.sectors,
        map: ExtentMap::new(),
    };
    included.map(draft).collect()
}

impl Draft {
    async fn finish(self, vault: &Vault) -> Result<ViewDisk> {
        let base = vault.bases().open(self.id).await?;
        let base_sectors = vault.runtime().length(&base).await? / SECTOR_BYTES;
        let Draft { slot, id, name, sectors, mut map } = self;
        // A disk that shrank since has older extents past its end.
        map.remove(SectorRange::new(sectors.0, u64::MAX));
        Ok(ViewDisk { slot, id, name, sectors, map: map.freeze(), base, base_sectors })
    }
}

async fn add_layer(runtime: &Rc<Runtime>, drafts: &mut [Draft], layer: u32, reader: DeltaReader) -> Layer {
    let blob = reader.header().blob;
    let Tables { disks, chunks } = reader.into_tables();
    for table in disks {
        let Some(draft) = drafts.iter_mut().find(|draft| draft.slot == table.slot) else { continue };
        for batch in table.extents.chunks(EXTENTS_PER_TURN) {
            for extent in batch {
                let place = match extent.content {
                    Content::Data { chunk, sector } => Place::Chunk { layer, chunk, sector },
                    Content::Zero { allocated } => Place::Zero { allocated },
                };
                draft.map.insert(extent.range, place);
            }
            runtime.yield_now().await;
        }
    }
    Layer { blob, chunks: chunks.into_boxed_slice() }
}
