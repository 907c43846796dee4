//! Target disk images: sparse raw files that follow the journal, each with its checkpoint.
//!
//! An image holds every record up to its checkpoint, durably, and possibly later ones, never one that is not
//! durable in the journal. Only destage and the mend of a latched disk write to it. What an image that fails lacks
//! goes into [side files](side); the two are [attached] together, for neither is the disk without the other.

pub mod attach;
pub mod destage;
pub mod length;
pub mod mend;
pub mod pace;
pub mod pieces;
pub mod resize;
pub mod side;
pub mod sums;
mod transfer;

use std::cell::Cell;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use futures::future::join;

use crate::error::{Error, ErrorKind, Result};
use crate::format::checkpoint::{self, Checkpoint, FILE_BYTES, offset_of};
use crate::format::sums::Holes;
use crate::planted::Planted;
use crate::runtime::Runtime;
use crate::storage::{Buffer, Create, File, OpenOptions, Slice};
use crate::sums::builder::SumsBuilder;
use crate::sums::with_lost;
use crate::units::{DiskId, Lsn, PAGE_BYTES, SectorCount, SectorRange, TimelineId};

use length::set_disk_length;
use sums::{ImageSums, sums_path};

/// What to do about a disk that is longer than a file may be.
pub const TOO_LONG: &str =
    "write a smaller size, or move the data directory to a file system that takes longer files, such as XFS";

/// An open image with its checkpoint.
#[derive(Clone, Debug)]
pub struct Image {
    /// The disk.
    pub disk: DiskId,
    /// Its content.
    pub file: File,
    /// What its sectors should hold.
    pub sums: Rc<ImageSums>,
    /// Opened and locked anew for each statement: a disk keeps one file open, not two. The image's lock keeps others out meanwhile,
    /// and a write on its way holds the lock of its own descriptor.
    checkpoint_path: Rc<PathBuf>,
    checkpoint: Checkpoint,
    /// Whether the newest statement may be in the page cache only, and never reach the disk: a process that died after a
    /// failed sync leaves such. The other slot then holds the one before, durably.
    in_doubt: bool,
    /// The slot of the checkpoint that was rotten when it was opened; the next statement goes there.
    rotten_slot: Option<u8>,
    /// Shared by the clones: what a failed attempt achieved counts for the next.
    synced: Rc<Cell<Lsn>>,
}

/// Path of a disk's image.
pub fn image_path(directory: &Path, disk: DiskId) -> PathBuf {
    directory.join(format!("{disk}.raw"))
}

/// Path of a disk's checkpoint.
pub fn checkpoint_path(directory: &Path, disk: DiskId) -> PathBuf {
    directory.join(format!("{disk}.checkpoint"))
}

impl Image {
    /// Creates an empty, sparse image and its first checkpoint; durable when this returns. An attempt that a crash
    /// cut short is taken up again.
    pub async fn create(
        runtime: &Rc<Runtime>,
        directory: &Path,
        disk: DiskId,
        timeline: TimelineId,
        size: SectorCount,
    ) -> Result<Image> {
        let options = OpenOptions { create: Create::IfMissing, ..OpenOptions::OWNED };
        let file = runtime.open(image_path(directory, disk), options).await?;
        set_disk_length(runtime, &file, size, TOO_LONG).await?;
        runtime.sync(&file).await?;
        let sums = ImageSums::create(runtime, directory, (disk, size), Holes::Zeros, file.path()).await?;
        let checkpoint_path = Rc::new(checkpoint_path(directory, disk));
        let checkpoint_file = runtime.open(checkpoint_path.as_path(), options).await?;
        runtime.write(&checkpoint_file, 0, Buffer::zeroed(FILE_BYTES).freeze()).await?;
        // The first statement takes the lock itself.
        drop(checkpoint_file);
        let checkpoint = Checkpoint {
            sequence: 0,
            disk,
            timeline,
            destaged: Lsn::ZERO,
            sectors: size,
            resizing_to: None,
            has_sums: true,
        };
        let (in_doubt, rotten_slot, synced) = (false, None, Rc::default());
        let mut image =
            Image { disk, file, sums, checkpoint_path, checkpoint, in_doubt, rotten_slot, synced };
        image.advance(runtime, Lsn::ZERO).await?;
        runtime.sync_directory(directory).await?;
        Ok(image)
    }

    /// Removes what an attempt at a disk's image left, makes it anew with what `fill` writes, and states durably that it has
    /// everything up to `destaged`.
    pub async fn create_filled(
        runtime: &Rc<Runtime>,
        directory: &Path,
        (disk, timeline): (DiskId, TimelineId),
        size: SectorCount,
        destaged: Lsn,
        fill: impl AsyncFnOnce(&mut Filling) -> Result<()>,
    ) -> Result<Image> {
        remove(runtime, directory, disk).await?;
        let mut image = Image::create(runtime, directory, disk, timeline, size).await?;
        let mut filling = Filling { file: image.file.clone(), sums: image.sums.builder().await? };
        fill(&mut filling).await?;
        filling.sums.finish().await?;
        image.sync(runtime, destaged, Planted::NONE).await?;
        image.advance(runtime, destaged).await?;
        Ok(image)
    }

    /// Opens an image and reads its checkpoint; a resize that was begun comes to its end. Where the checkpoint cannot be had
    /// from the device, it has to be [confirmed](Image::confirm).
    pub async fn open(
        runtime: &Rc<Runtime>,
        directory: &Path,
        disk: DiskId,
        size: SectorCount,
    ) -> Result<Image> {
        let file = open_owned(runtime, &image_path(directory, disk), "the image").await?;
        let checkpoint_path = Rc::new(checkpoint_path(directory, disk));
        let checkpoint_file = open_owned(runtime, &checkpoint_path, "the checkpoint").await?;
        let settled = runtime.settle(&checkpoint_file).await;
        let bytes = runtime.read(&checkpoint_file, 0, FILE_BYTES).await?;
        if let Some(found) = Checkpoint::unknown_version(&bytes) {
            let error = Error::unknown_version("the checkpoint", found, checkpoint::VERSION);
            return Err(error.at_path(checkpoint_file.path()));
        }
        let checkpoint = Checkpoint::newest(&bytes).filter(|checkpoint| checkpoint.disk == disk);
        // A slot is only written while the statement in the other one is durable: one that is alone is durable.
        let in_doubt = settled.is_err() && Checkpoint::slots(&bytes).iter().all(Option::is_some);
        let Some(checkpoint) = checkpoint else {
            let text = "the checkpoint has no valid slot for this disk: restore the file with its image";
            return Err(Error::corrupt(text).at_path(checkpoint_file.path()));
        };
        // A resize that is settled states so, under its own lock.
        drop(checkpoint_file);
        let sums = open_sums(runtime, directory, &checkpoint, &file).await?;
        let synced = Rc::new(Cell::new(checkpoint.destaged));
        let rotten_slot = rotten_slot(&checkpoint_path, &bytes);
        let stated = Checkpoint { has_sums: true, ..checkpoint };
        let mut image =
            Image { disk, file, sums, checkpoint_path, checkpoint: stated, in_doubt, rotten_slot, synced };
        image.check_length(runtime, size).await?;
        image.settle_size(runtime, size).await?;
        // What a power cut left of it may be shorter than the checkpoint.
        image.sums.lengthen(image.sectors()).await?;
        if !checkpoint.has_sums {
            image.state_sums(runtime).await?;
        }
        Ok(image)
    }

    /// Where a bit of its checkpoint had flipped when it was opened: file and offset. The other slot was used.
    pub fn rot(&self) -> Option<(&Path, u64)> {
        Some((self.checkpoint_path.as_path(), offset_of(self.rotten_slot?)))
    }

    /// States that the image has sums, so that a next process does not begin them anew. If that fails, the next statement says so.
    async fn state_sums(&mut self, runtime: &Rc<Runtime>) -> Result<()> {
        match self.advance(runtime, self.destaged()).await {
            Err(error) if error.kind() == ErrorKind::Shutdown => Err(error),
            Err(error) => {
                tracing::warn!(%error, "that the image has sums is not stated yet");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Every record up to here is in the image, durably.
    pub fn destaged(&self) -> Lsn {
        self.checkpoint.destaged
    }

    /// Every record up to here is in the image, durably, whatever became of the checkpoint that says so: a failed sync
    /// leaves open whether it is there. Nothing up to here may be written again, since nothing would mend a torn write.
    pub fn synced(&self) -> Lsn {
        self.synced.get()
    }

    /// The parts of a range of bytes that are allocated, or should be by their sums: others are zeros.
    pub async fn data_ranges(&self, runtime: &Runtime, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let data = runtime.data_ranges(&self.file, range.clone()).await?;
        with_lost(data, range, async |holes| self.sums.nonzero(&holes).await).await
    }

    /// Makes what was written survive a power cut: the records up to `through`.
    pub async fn sync(&self, runtime: &Rc<Runtime>, through: Lsn, planted: Planted) -> Result<()> {
        let (image, sums) = join(runtime.sync(&self.file), self.sums.sync(planted)).await;
        image.and(sums)?;
        self.synced.set(self.synced.get().max(through));
        Ok(())
    }

    /// States durably that everything up to `destaged` is in the image; the caller has synced the image.
    pub async fn advance(&mut self, runtime: &Rc<Runtime>, destaged: Lsn) -> Result<()> {
        assert!(destaged >= self.checkpoint.destaged, "a checkpoint never goes back");
        self.confirm(runtime).await?;
        let sequence = self.checkpoint.sequence + 1;
        self.put(runtime, Checkpoint { sequence, destaged, ..self.checkpoint }).await
    }

    /// Makes durable the newest statement, if opening could not tell whether it is: before that the other slot must not be
    /// written, or a torn write would leave none.
    pub async fn confirm(&mut self, runtime: &Rc<Runtime>) -> Result<()> {
        if self.in_doubt { self.put(runtime, self.checkpoint).await } else { Ok(()) }
    }

    async fn put(&mut self, runtime: &Rc<Runtime>, statement: Checkpoint) -> Result<()> {
        let mut page = Buffer::zeroed(PAGE_BYTES);
        statement.encode(&mut page);
        // Nobody else has its lock but a write of ours that has yet to land.
        let file = runtime.open(self.checkpoint_path.as_path(), OpenOptions::OWNED).await?;
        runtime.write(&file, statement.slot_offset(), page.freeze()).await?;
        runtime.sync(&file).await?;
        self.checkpoint = statement;
        self.in_doubt = false;
        Ok(())
    }
}

/// A new image while it is filled with what nobody has written yet.
pub struct Filling {
    /// The image: zeros, where nothing is written.
    pub file: File,
    sums: SumsBuilder,
}

impl Filling {
    /// Notes what was written to it.
    pub async fn wrote(&mut self, range: SectorRange, data: &Slice) -> Result<()> {
        self.sums.add(range.start, data).await
    }
}

/// Opens the sums of an image. One of before there were any gets some that say nothing yet: whatever is there was not kept while such
/// a program wrote to the image.
async fn open_sums(
    runtime: &Rc<Runtime>,
    directory: &Path,
    checkpoint: &Checkpoint,
    image: &File,
) -> Result<Rc<ImageSums>> {
    let (disk, size) = (checkpoint.disk, checkpoint.sectors);
    if checkpoint.has_sums {
        let file = open_owned(runtime, &sums_path(directory, disk), "the sums file of the image").await?;
        return ImageSums::open(runtime, file, disk, image.path()).await;
    }
    let sums = ImageSums::create(runtime, directory, (disk, size), Holes::Unchecked, image.path()).await?;
    runtime.sync_directory(directory).await?;
    tracing::info!(image = %image.path().display(), "the image gets sums: what is written from now on is compared with them");
    Ok(sums)
}

/// The slot in which a bit has flipped. One that may as well be torn is what power cuts leave: the log notes it.
fn rotten_slot(checkpoint_path: &Path, bytes: &[u8]) -> Option<u8> {
    let bad = Checkpoint::bad_slot(bytes)?;
    if !bad.is_rotten {
        let path = checkpoint_path.display();
        tracing::info!(%path, offset = offset_of(bad.number), "a slot of the checkpoint is torn, as after a power cut; the other is used");
    }
    bad.is_rotten.then_some(bad.number)
}

/// Opens a file that only this process may use: whoever else holds its lock keeps one disk from being served, not its group.
async fn open_owned(runtime: &Runtime, path: &Path, what: &str) -> Result<File> {
    match runtime.open_owned(path, what).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let text = format!("{what} is missing: put its file back");
            Err(Error::new(ErrorKind::NotFound, text).at_path(path))
        }
        opened => opened,
    }
}

/// Removes a disk's image, its sums, checkpoint and side files; what is missing already is fine.
pub async fn remove(runtime: &Rc<Runtime>, directory: &Path, disk: DiskId) -> Result<()> {
    for path in [image_path(directory, disk), sums_path(directory, disk), checkpoint_path(directory, disk)] {
        match runtime.remove(&path).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => other?,
        }
    }
    side::remove_all(runtime, directory, disk).await?;
    runtime.sync_directory(directory).await
}
