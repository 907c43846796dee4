//! Destage: moves what frozen layers hold into the images ([`Transfer`]), then advances the checkpoints.
//!
//! ```text
//!  layers, oldest first ─▶ merged map per disk ─▶ transfer: read journal, write image, then its sums ─▶ sync both ─▶ checkpoint
//! ```
//!
//! The caller hands in only layers whose records are all durable in the journal: an image never gets ahead of it.
//! One disk's error stops that disk only: its checkpoint stays, and what it lacks stays where it is.

use std::cell::RefCell;
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
/// Operations under way at once.
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
        // A file that somebody cut short would show zeros where these writes make it longer again.
        image.check_length(self.runtime, image.sectors()).await?;
        let Destager { runtime, reader, pace, .. } = *self;
        let transfer = Transfer { runtime, reader, pace, image: &image, planted: self.planted };
        transfer.bring(&merged, image.sectors(), written).await?;
        image.sync(self.runtime, self.through, self.planted).await?;
        if !self.planted.is(Bug::CheckpointBeforeImageSync) {
            image.advance(self.runtime, self.through).await?;
        }
        Ok(image)
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures::FutureExt;
    use futures::channel::oneshot;

    use super::*;
    use crate::error::Error;

    #[test]
    fn bytes_are_counted_whatever_fails() {
        let mut written = 5;
        let writes = [Ok(512), Ok(0), Ok(4096)].map(std::future::ready);
        pour(writes.into_iter(), &mut written).now_or_never().expect("all are ready").expect("none failed");
        assert_eq!(written, 5 + 512 + 4096);
        let writes = [Ok(512), Err(Error::invalid("first")), Ok(1), Err(Error::invalid("second"))];
        let result = pour(writes.map(std::future::ready).into_iter(), &mut written).now_or_never();
        assert!(result.expect("all are ready").expect_err("two failed").to_string().contains("first"));
        assert_eq!(written, 5 + 512 + 4096 + 512 + 1);
    }

    #[test]
    fn after_an_error_nothing_is_begun_and_what_was_begun_is_waited_for() {
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..2 * CONCURRENCY).map(|_| oneshot::channel::<Result<u64>>()).unzip();
        let begun = Cell::new(0);
        let begun = &begun;
        let writes = receivers.into_iter().map(|receiver| async move {
            begun.set(begun.get() + 1);
            receiver.await.expect("nobody gives up")
        });
        let mut written = 0;
        let mut poured = Box::pin(pour(writes, &mut written));
        assert!(poured.as_mut().now_or_never().is_none());
        assert_eq!(begun.get(), CONCURRENCY);
        let mut senders = senders.into_iter();
        let mut answer = |result| senders.next().expect("there are more").send(result).expect("it waits");
        answer(Ok(512));
        assert!(poured.as_mut().now_or_never().is_none());
        assert_eq!(begun.get(), CONCURRENCY + 1);
        answer(Err(Error::invalid("no")));
        (2..CONCURRENCY).for_each(|_| answer(Ok(512)));
        assert!(poured.as_mut().now_or_never().is_none(), "one is under way");
        // One may have been asked for before the error was seen.
        assert!(begun.get() <= CONCURRENCY + 2, "{} begun", begun.get());
        (CONCURRENCY..begun.get()).for_each(|_| answer(Ok(512)));
        poured.now_or_never().expect("none is under way").expect_err("one failed");
        assert_eq!(written, 512 * (begun.get() as u64 - 1));
    }
}
