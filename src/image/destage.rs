//! Destage: moves what frozen layers hold into the images ([`Transfer`]), then advances the checkpoints.
//!
//! ```text
//!  layers, oldest first ─▶ merged map per disk ─▶ transfer: read journal, write image, then its sums ─▶ sync both ─▶ checkpoint
//! ```
//!
//! The caller hands in only layers whose records are all durable in the journal: an image never gets ahead of it.
//! One disk's error stops that disk only: its checkpoint stays, and what it lacks stays where it is.

use std::rc::Rc;

use futures::stream::{self, StreamExt};

use crate::error::Result;
use crate::extent::{FrozenMap, merge};
use crate::image::Image;
use crate::image::pace::Pace;
use crate::image::transfer::Transfer;
use crate::journal::reader::Reader;
use crate::journal::segments::Source;
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::units::{DiskSlot, Lsn};

/// Layers that are brought into an image at a time, at most: what bounds the memory for the sums of what is brought.
pub const BATCH_LAYERS_MAX: usize = 16;

/// Disks of a batch that are at it at once, so that they wait for their syncs together.
const DISKS_AT_ONCE: usize = 8;

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
    /// The gate that each operation passes.
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
    let Batch { disks, through, reader, pace } = batch;
    let destager = &Destager { runtime: &runtime, reader: &reader, pace: &pace, through, planted };
    let disks = disks.into_iter().map(async |work| {
        let (slot, mut written_bytes) = (work.slot, 0);
        let result = destager.disk(work, &mut written_bytes).await;
        DiskResult { slot, result, written_bytes }
    });
    stream::iter(disks).buffer_unordered(DISKS_AT_ONCE).collect().await
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
        let sums = Rc::clone(&image.sums);
        let turn = sums.turn().await;
        if self.planted.is(Bug::CheckpointBeforeImageSync) {
            image.advance(self.runtime, self.through).await?;
        }
        // A file that somebody cut short would show zeros where these writes make it longer again.
        image.check_length(self.runtime, image.sectors()).await?;
        let Destager { runtime, reader, pace, through, planted } = *self;
        let gives_up = false;
        let transfer = Transfer { runtime, reader, image: &image, through, gives_up, pace, planted };
        transfer.bring(&merged, image.sectors(), written).await?;
        image.sync(self.runtime, self.through, self.planted).await?;
        drop(turn);
        if !self.planted.is(Bug::CheckpointBeforeImageSync) {
            image.advance(self.runtime, self.through).await?;
        }
        Ok(image)
    }
}
