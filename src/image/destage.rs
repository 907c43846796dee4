//! Destage: moves what frozen layers hold into the images, in LBA order, then advances the checkpoints.
//!
//! ```text
//!  layers, oldest first ─▶ merged map per disk ─▶ read journal, write image ─▶ sync image ─▶ checkpoint
//! ```
//!
//! The caller hands in only layers whose records are all durable in the journal: an image never gets ahead of it.
//! One disk's error stops that disk only: its checkpoint stays, and what it lacks stays where it is.

use std::cell::RefCell;
use std::rc::Rc;

use futures::stream::{self, StreamExt};

use crate::error::Result;
use crate::extent::{Extent, FrozenMap, merge};
use crate::image::Image;
use crate::image::pace::Pace;
use crate::journal::reader::Reader;
use crate::journal::segments::Source;
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::units::{DiskSlot, Lsn};

/// Extents that are read and written at once.
const CONCURRENCY: usize = 64;

/// What one disk gets in a batch.
pub struct DiskWork {
    /// Which disk.
    pub slot: DiskSlot,
    /// Its image; given back advanced.
    pub image: Image,
    /// The disk's maps, oldest first.
    pub maps: Vec<Rc<FrozenMap<Source>>>,
}

/// A batch.
pub struct Batch {
    /// The disks that have something.
    pub disks: Vec<DiskWork>,
    /// The newest record of the batch.
    pub through: Lsn,
    /// Where payloads are read.
    pub reader: Reader,
    /// The gate that each extent passes.
    pub pace: Rc<Pace>,
}

/// How a disk's part went.
pub struct DiskResult {
    /// Which disk.
    pub slot: DiskSlot,
    /// The image with its new checkpoint, or why it stays where it was.
    pub result: Result<Image>,
    /// Bytes written to it.
    pub written_bytes: u64,
}

/// Carries out a batch.
pub async fn destage(runtime: Rc<Runtime>, batch: Batch, planted: Planted) -> Vec<DiskResult> {
    let mut results = Vec::with_capacity(batch.disks.len());
    for work in batch.disks {
        let slot = work.slot;
        let mut written_bytes = 0;
        let destager = Destager {
            runtime: &runtime,
            reader: &batch.reader,
            pace: &batch.pace,
            through: batch.through,
            planted,
        };
        let result = destager.disk(work, &mut written_bytes).await;
        results.push(DiskResult { slot, result, written_bytes });
    }
    results
}

/// What every disk of a batch needs.
struct Destager<'a> {
    runtime: &'a Rc<Runtime>,
    reader: &'a Reader,
    pace: &'a Pace,
    through: Lsn,
    planted: Planted,
}

impl Destager<'_> {
    async fn disk(&self, work: DiskWork, written: &mut u64) -> Result<Image> {
        let merged = merge(&work.maps, || self.runtime.yield_now()).await;
        let mut image = work.image;
        if self.planted.is(Bug::CheckpointBeforeImageSync) {
            image.advance(self.runtime, self.through).await?;
        }
        let target = &image;
        pour(merged.below(target.sectors()).map(|extent| self.apply(target, extent)), written).await?;
        image.sync(self.runtime, self.through).await?;
        if !self.planted.is(Bug::CheckpointBeforeImageSync) {
            image.advance(self.runtime, self.through).await?;
        }
        Ok(image)
    }

    async fn apply(&self, image: &Image, extent: Extent<Source>) -> Result<u64> {
        self.pace.turn().await;
        apply(self.runtime, self.reader, image, extent).await
    }
}

/// Brings one extent of the journal into an image; returns its bytes.
pub(super) async fn apply(
    runtime: &Rc<Runtime>,
    reader: &Reader,
    image: &Image,
    extent: Extent<Source>,
) -> Result<u64> {
    let range = extent.range;
    match extent.location {
        Source::Journal { segment, sector } => {
            let data = reader.read(segment, sector, range.sectors()).await?;
            runtime.write(&image.file, range.byte_offset(), data).await?;
            Ok(range.bytes())
        }
        Source::Zero { allocated } => {
            runtime.zero(&image.file, range.byte_range(), allocated).await?;
            Ok(0)
        }
    }
}

/// Carries out many writes to one image, some at a time, and adds their bytes to `written`. After an error none is
/// begun any more, but those under way are waited for: one that landed later would undo what a next attempt writes.
pub(super) async fn pour<F>(writes: impl Iterator<Item = F>, written: &mut u64) -> Result<()>
where
    F: Future<Output = Result<u64>>,
{
    let failure = RefCell::new(None);
    stream::iter(writes.take_while(|_| failure.borrow().is_none()))
        .buffer_unordered(CONCURRENCY)
        .for_each(|result| {
            match result {
                Ok(bytes) => *written += bytes,
                Err(error) => drop(failure.borrow_mut().get_or_insert(error)),
            }
            std::future::ready(())
        })
        .await;
    failure.into_inner().map_or(Ok(()), Err)
}
