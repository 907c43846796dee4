//! Base advance: the oldest points go, and the bases become the oldest one that stays. See `docs/retention.md`.
//!
//! Invariants: a base is written only where the deltas that are applied to it cover it, so that views which layer them
//! do not see it; and whatever became of an earlier try, applying all of them again gives the point.

use std::collections::BTreeMap;
use std::rc::Rc;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::Vault;
use super::thinning::batch;
use crate::delta::{DeltaReader, LayeredDisk, Layering, Place};
use crate::error::Result;
use crate::extent::FrozenMap;
use crate::format::delta::DeltaRef;
use crate::format::ladder::Ladder;
use crate::format::record::{Change, PointRecord};
use crate::planted::Bug;
use crate::runtime::Runtime;
use crate::storage::File;
use crate::units::{PointId, SECTOR_BYTES, SectorRange, to_usize};

/// Chunks that are read, and written to bases, at a time.
const CHUNKS_IN_FLIGHT: usize = 4;
/// Extents of zeros that are written at a time.
const ZEROS_IN_FLIGHT: usize = 8;

/// How far a base advance came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advance {
    /// None was begun.
    None,
    /// It waits for a view of a point that is gone.
    Waits,
    /// The bases are the oldest point.
    Done,
}

/// Part of a disk and where in a chunk it is.
struct Piece {
    disk: usize,
    range: SectorRange,
    sector: u32,
}

/// What is to be written to the bases.
#[derive(Default)]
struct Writes {
    /// By layer and chunk, so that each chunk is read once.
    data: BTreeMap<(u32, u32), Vec<Piece>>,
    zeros: Vec<(usize, SectorRange, bool)>,
}

impl Vault {
    /// Retires the points before `point`, or as many of them as the base takes up at a time; then
    /// [`Vault::finish_advance`]. Refused like [`Vault::merge_points`].
    pub async fn retire_before(&self, point: PointId, ladder: Option<&Ladder>) -> Result<()> {
        let target = {
            let state = self.manifest.state();
            state.check(&Change::PointsRetired(point))?;
            let index = state.index_of(point).expect("checked");
            let run = &state.points()[..=index];
            run[batch(run) - 1].id
        };
        self.append_for(ladder, Change::PointsRetired(target)).await
    }

    /// Brings the bases to the oldest point, if a retirement began that, and leaves the
    /// blobs that this makes superfluous to [`Vault::sweep`]. To be called again after an error.
    pub async fn finish_advance(&self) -> Result<Advance> {
        let (target, deltas) = {
            let state = self.manifest.state();
            let Some((target, retired)) = state.base_advance() else { return Ok(Advance::None) };
            (target.clone(), retired.iter().copied().chain(target.delta).collect::<Vec<_>>())
        };
        // Nobody can open a view of a retired point; one that was opened before reads the base as it is.
        if self.leases.holds_point_before(target.marker) {
            return Ok(Advance::Waits);
        }
        if !deltas.is_empty() {
            self.with_room(async || self.apply(&target, &deltas).await).await?;
        }
        self.manifest.append(Change::BaseSet(target.id)).await?;
        deltas.iter().for_each(|delta| self.leases.doom(delta.blob));
        Ok(Advance::Done)
    }

    /// Writes what the deltas hold to the bases of the disks of `target`; durable when this returns.
    async fn apply(&self, target: &PointRecord, deltas: &[DeltaRef]) -> Result<()> {
        let sizes = target.disks.iter().map(|disk| (disk.slot, disk.disk, disk.sectors));
        let mut layering = Layering::new(sizes);
        let mut layers = Vec::with_capacity(deltas.len());
        for (layer, delta) in (0_u32..).zip(deltas) {
            let reader = self.open_delta(delta).await?;
            layering.add(&self.runtime, layer, &reader.tables().disks).await;
            layers.push(reader);
        }
        let disks: Vec<_> = layering.finish().into_iter().filter(|disk| !disk.map.is_empty()).collect();
        let mut files = Vec::with_capacity(disks.len());
        for disk in &disks {
            files.push(self.open_base(disk).await?);
        }
        let writes = writes(&disks);
        write_data(&self.runtime, &layers, &files, writes.data).await?;
        let zeros = writes
            .zeros
            .into_iter()
            .map(|(disk, range, allocated)| self.runtime.zero(&files[disk], range.byte_range(), allocated));
        stream::iter(zeros).buffer_unordered(ZEROS_IN_FLIGHT).try_collect::<()>().await?;
        if self.planted.is(Bug::BaseSetBeforeSync) {
            return Ok(());
        }
        for file in &files {
            self.runtime.sync(file).await?;
        }
        Ok(())
    }

    /// Opens a base to write to it, as long as its disk at least; what a disk that shrank has lost becomes zeros. A dead
    /// process's writes have landed when this returns.
    async fn open_base(&self, disk: &LayeredDisk<FrozenMap<Place>>) -> Result<File> {
        let file = self.bases.open_to_write(disk.id).await?;
        let (length, wanted) = (self.runtime.length(&file).await?, disk.sectors.bytes());
        if length < wanted {
            self.runtime.set_length(&file, wanted).await?;
        } else if length > wanted {
            self.runtime.zero(&file, wanted..length, false).await?;
        }
        Ok(file)
    }
}

fn writes(disks: &[LayeredDisk<FrozenMap<Place>>]) -> Writes {
    let mut writes = Writes::default();
    for (disk, layered) in disks.iter().enumerate() {
        for extent in layered.map.iter() {
            let range = extent.range;
            match extent.location {
                Place::Chunk { layer, chunk, sector } => {
                    writes.data.entry((layer, chunk)).or_default().push(Piece { disk, range, sector });
                }
                Place::Zero { allocated } => writes.zeros.push((disk, range, allocated)),
            }
        }
    }
    writes
}

async fn write_data(
    runtime: &Rc<Runtime>,
    layers: &[DeltaReader],
    files: &[File],
    data: BTreeMap<(u32, u32), Vec<Piece>>,
) -> Result<()> {
    let chunks = data.into_iter().map(|((layer, chunk), pieces)| async move {
        let bytes = layers[layer as usize].chunk(chunk).await?;
        for Piece { disk, range, sector } in pieces {
            let start = to_usize(u64::from(sector) * SECTOR_BYTES);
            let piece = bytes.slice(start..start + to_usize(range.bytes()));
            runtime.write(&files[disk], range.byte_offset(), piece).await?;
        }
        Ok(())
    });
    stream::iter(chunks).buffer_unordered(CHUNKS_IN_FLIGHT).try_collect::<()>().await
}
