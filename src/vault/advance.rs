//! Base advance: the oldest points go, and the bases become the oldest one that stays. See `docs/retention.md`.
//!
//! Invariants: a base is written only where the deltas that are applied to it cover it, so that views which layer them
//! do not see it; and whatever became of an earlier try, applying all of them again gives the point.

use std::collections::BTreeMap;
use std::rc::Rc;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::base::BaseWriter;
use super::pieces::Part;
use super::state::Refusal;
use super::thinning::{Opened, batch, check_hidden};
use super::{Vault, lacks_space};
use crate::delta::{DeltaReader, LayeredDisk, Layering, Place};
use crate::error::{Error, Result, is_of_the_file};
use crate::extent::{FrozenMap, Ranges};
use crate::format::delta::DeltaRef;
use crate::format::ladder::Ladder;
use crate::format::record::{Change, PointRecord};
use crate::planted::Bug;
use crate::runtime::Runtime;
use crate::units::{DiskId, PointId, SECTOR_BYTES, SectorRange, to_usize};

/// Chunks that are read, and written to bases, at a time.
const CHUNKS_IN_FLIGHT: usize = 4;
/// Chunks whose sums are kept in memory, until they are written.
const CHUNKS_SUMMED: usize = 2048;
/// Extents of zeros that are written at a time.
const ZEROS_IN_FLIGHT: usize = 8;

/// How far a base advance came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advance {
    /// None was begun.
    None,
    /// It waits for a view: of a point that is gone, or, where room is scarce, of the deltas that it takes up.
    Waits,
    /// The bases are the oldest point.
    Done,
}

/// Part of a disk and where in a chunk it is.
struct Fragment {
    disk: usize,
    range: SectorRange,
    sector: u32,
}

pub(super) type Layered = Vec<LayeredDisk<FrozenMap<Place>>>;

/// What is to be written to the bases.
#[derive(Default)]
struct Writes {
    /// By layer and chunk, so that each chunk is read once.
    data: BTreeMap<(u32, u32), Vec<Fragment>>,
    zeros: Vec<(usize, SectorRange, bool)>,
}

impl Vault {
    /// Retires the points before `point`, or as many of them as the base takes up at a time; then
    /// [`Vault::finish_advance`]. Refused like [`Vault::merge_points`].
    pub async fn retire_before(&self, point: PointId, ladder: Option<&Ladder>) -> Result<()> {
        let target = {
            let state = self.manifest.state();
            // Only a repair has reason to send a base on that did not arrive.
            if let Some((target, _)) = state.base_advance() {
                return Err(Refusal::BaseOnItsWay(target.id).into());
            }
            state.check(&Change::PointsRetired(point))?;
            let index = state.index_of(point).expect("checked");
            let run = &state.points()[..=index];
            run[batch(run) - 1].id
        };
        self.append_for(ladder, Change::PointsRetired(target)).await?;
        self.bases.tell_rot(true);
        Ok(())
    }

    /// Brings the bases to the oldest point, if a retirement began that, and leaves the
    /// blobs that this makes superfluous to [`Vault::sweep`]. To be called again after an error.
    pub async fn finish_advance(&self) -> Result<Advance> {
        let Some((target, deltas)) = self.pending_advance() else { return Ok(Advance::None) };
        // Nobody can open a view of a retired point; one that was opened before reads the base as it is.
        if self.leases.holds_point_before(target.marker) {
            return Ok(Advance::Waits);
        }
        if !deltas.is_empty() && self.apply(&target, &deltas).await? == Advance::Waits {
            return Ok(Advance::Waits);
        }
        self.manifest.append(Change::BaseSet(target.id)).await?;
        deltas.iter().for_each(|delta| self.leases.doom(delta.blob));
        Ok(Advance::Done)
    }

    /// Writes what the deltas hold to the bases of the disks of `target`: all at once where there is room for it, else in pieces.
    /// Durable once it is done.
    async fn apply(&self, target: &PointRecord, deltas: &[DeltaRef]) -> Result<Advance> {
        let is_viewed = self.leases.hold_any(deltas.iter().map(|delta| delta.blob));
        if is_viewed && !self.may_fit().await? {
            return Ok(Advance::Waits);
        }
        let (readers, mut disks) = self.layer(target, deltas).await?;
        disks.retain(|disk| !disk.map.is_empty());
        if (is_viewed || !self.has_piece_bytes()) && self.fits(&disks).await? {
            match self.write(&readers, &disks, Part::ALL).await {
                Err(error) if lacks_space(&error) => {}
                written => return written.map(|()| Advance::Done),
            }
        }
        if is_viewed {
            // None of their space comes back before the view ends, so that nothing is won by going on where room is scarce.
            return Ok(Advance::Waits);
        }
        self.apply_in_pieces(target.id, &readers, &disks).await
    }

    /// Writes a part of what the layers hold to the bases; durable when this returns.
    pub(super) async fn write(&self, readers: &[DeltaReader], disks: &Layered, part: Part) -> Result<()> {
        let disks: Vec<_> = disks.iter().filter(|disk| part.of(disk).next().is_some()).collect();
        let mut bases = Vec::with_capacity(disks.len());
        for disk in &disks {
            bases.push(self.open_base(disk).await?);
        }
        // Another try may find what this one tore.
        let tells_rot = self.bases.tell_rot(false);
        let writes = writes(&disks, part);
        write_data(&self.runtime, readers, &bases, writes.data).await?;
        let zeros = writes.zeros.into_iter().map(|(disk, range, allocated)| {
            bases[disk].sums.iter().for_each(|sums| sums.note_zeros(range));
            self.runtime.zero(&bases[disk].file, range.byte_range(), allocated)
        });
        stream::iter(zeros).buffer_unordered(ZEROS_IN_FLIGHT).try_collect::<()>().await?;
        if self.planted.is(Bug::BaseSetBeforeSync) {
            return Ok(());
        }
        for BaseWriter { file, sums } in bases {
            self.runtime.sync(&file).await?;
            if let Some(sums) = sums {
                sums.finish().await?;
            }
        }
        self.bases.tell_rot(tells_rot);
        Ok(())
    }

    /// What the deltas say of the disks of `target`.
    async fn layer(&self, target: &PointRecord, deltas: &[DeltaRef]) -> Result<(Vec<DeltaReader>, Layered)> {
        let sizes = target.disks.iter().map(|disk| (disk.slot, disk.disk, disk.sectors));
        let mut layering = Layering::new(sizes);
        let Opened { readers, lost, .. } = self.open_layers(deltas.iter().copied()).await?;
        for (layer, reader) in (0_u32..).zip(&readers) {
            layering.add(&self.runtime, layer, &reader.tables().disks).await;
        }
        let disks = layering.finish();
        // The newest has been taken in least.
        let newest =
            deltas.last().and_then(|delta| self.manifest.state().taken_in().get(&delta.blob).copied());
        check_hidden(lost, &disks, newest.unwrap_or_default())?;
        Ok((readers, disks))
    }

    /// The sectors of a disk's base that are anything, since an advance of it was begun; `None` if nobody can tell. Base and
    /// manifest must stay as they are meanwhile.
    pub(super) async fn covered_by_advance(&self, disk: DiskId) -> Result<Option<Ranges>> {
        let Some((target, deltas)) = self.pending_advance() else { return Ok(Some(Ranges::default())) };
        let disks = match self.layer(&target, &deltas).await {
            Err(error) if is_of_the_file(error.kind()) => return Ok(None),
            layered => layered?.1,
        };
        let layered = disks.iter().find(|layered| layered.id == disk);
        // What it loses at its end becomes zeros.
        let tail = layered.map(|layered| SectorRange::new(layered.sectors.0, u64::MAX));
        let covered = layered.into_iter().flat_map(|layered| layered.map.iter()).map(|extent| extent.range);
        Ok(Some(Ranges::of(covered.chain(tail))))
    }

    /// The point that the base is on its way to, and the deltas that it takes up, oldest first.
    fn pending_advance(&self) -> Option<(PointRecord, Vec<DeltaRef>)> {
        let state = self.manifest.state();
        let (target, retired) = state.base_advance()?;
        Some((target.clone(), retired.iter().copied().chain(target.delta).collect()))
    }

    /// Opens a base to write to it, as long as its disk at least; what a disk that shrank has lost becomes zeros. A dead
    /// process's writes have landed when this returns.
    async fn open_base(&self, disk: &LayeredDisk<FrozenMap<Place>>) -> Result<BaseWriter> {
        let base = self.bases.open_to_write(disk.id).await?;
        let (length, wanted) = (self.runtime.length(&base.file).await?, disk.sectors.bytes());
        if length < wanted {
            self.runtime.set_length(&base.file, wanted).await?;
        } else if length > wanted {
            self.runtime.zero(&base.file, wanted..length, false).await?;
            let lost = SectorRange::new(disk.sectors.0, length / SECTOR_BYTES);
            base.sums.iter().for_each(|sums| sums.note_zeros(lost));
        }
        Ok(base)
    }
}

fn writes(disks: &[&LayeredDisk<FrozenMap<Place>>], part: Part) -> Writes {
    let mut writes = Writes::default();
    for (disk, layered) in disks.iter().enumerate() {
        for (range, place) in part.of(layered) {
            match place {
                Place::Chunk { layer, chunk, sector } => {
                    writes.data.entry((layer, chunk)).or_default().push(Fragment { disk, range, sector });
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
    bases: &[BaseWriter],
    data: BTreeMap<(u32, u32), Vec<Fragment>>,
) -> Result<()> {
    let write = async |((layer, chunk), fragments): ((u32, u32), Vec<Fragment>)| {
        let bytes = layers[layer as usize].chunk(chunk).await?;
        for Fragment { disk, range, sector } in fragments {
            let start = to_usize(u64::from(sector) * SECTOR_BYTES);
            let fragment = bytes.slice(start..start + to_usize(range.bytes()));
            bases[disk].sums.iter().for_each(|sums| sums.note(range, &fragment));
            runtime.write(&bases[disk].file, range.byte_offset(), fragment).await?;
        }
        Ok::<(), Error>(())
    };
    let mut data = data.into_iter().peekable();
    while data.peek().is_some() {
        let batch = data.by_ref().take(CHUNKS_SUMMED).map(&write);
        stream::iter(batch).buffer_unordered(CHUNKS_IN_FLIGHT).try_collect::<()>().await?;
        for sums in bases.iter().filter_map(|base| base.sums.as_ref()) {
            sums.flush().await?;
        }
    }
    Ok(())
}
