//! Restores the disks of a view to raw files: sparse, under temporary names until all are complete, over nothing.
//!
//! Invariant: a file under its final name is whole and durable. A restore that fails or is cancelled removes what it
//! wrote; one that is killed leaves `.partial` files only.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::{View, ViewDisk};
use crate::block::DataPiece;
use crate::error::{Error, ErrorKind, Result};
use crate::extent::Ranges;
use crate::image::length::set_disk_length;
use crate::runtime::Runtime;
use crate::storage::{File, OpenOptions, Slice};
use crate::units::{SECTOR_BYTES, SectorRange};

/// Sectors of one copied piece.
const PIECE_SECTORS: u64 = (1 << 20) / SECTOR_BYTES;
/// What to do about a disk that is longer than a file may be there.
const TOO_LONG: &str = "restore to another file system, or as qcow2";
/// Pieces being copied at a time.
const PIECES_IN_FLIGHT: usize = 4;

/// How far a restore is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreProgress {
    /// Bytes written.
    pub bytes_done: u64,
    /// Bytes to write: what is allocated in the view.
    pub bytes_total: u64,
    /// Disks written.
    pub disks_done: usize,
    /// Disks to write.
    pub disks_total: usize,
}

/// A disk on its way.
struct Target {
    partial: PathBuf,
    path: PathBuf,
}

/// Restores every disk of `view` to `directory/NAME.raw` and gives back the paths. Fails with `AlreadyExists`, and writes
/// nothing, where one of the files is there. `proceed` is told how far it is; its error ends the restore.
pub async fn restore(
    view: &Rc<View>,
    directory: &Path,
    proceed: impl FnMut(RestoreProgress) -> Result<()>,
) -> Result<Vec<PathBuf>> {
    let runtime = view.runtime();
    let targets = plan(view, directory)?;
    runtime.create_directory(directory).await?;
    let names = runtime.list(directory).await?;
    for target in &targets {
        let taken = |path: &Path| names.iter().any(|name| Some(name.as_ref()) == path.file_name());
        if let Some(path) = [&target.path, &target.partial].into_iter().find(|path| taken(path)) {
            let text = "this file is there already: name another directory, or move it away";
            return Err(Error::new(ErrorKind::AlreadyExists, text).at_path(path));
        }
    }
    let restored = fill_and_publish(view, directory, &targets, proceed).await;
    if restored.is_err() {
        for target in &targets {
            // Best effort: not all were begun, and the error that matters is the first.
            let _ = runtime.remove(&target.partial).await;
        }
    }
    restored.map(|()| targets.into_iter().map(|target| target.path).collect())
}

/// Names come from people: as a file's name, one must not lead elsewhere.
fn plan(view: &View, directory: &Path) -> Result<Vec<Target>> {
    let target = |disk: &ViewDisk| {
        let name = disk.name();
        if name.contains('/') || name.starts_with('.') {
            let text =
                format!("disk name {name:?} cannot name a file: rename the disk or restore it by test");
            return Err(Error::invalid(text));
        }
        let path = directory.join(format!("{name}.raw"));
        Ok(Target { partial: directory.join(format!("{name}.raw.partial")), path })
    };
    view.disks().iter().map(target).collect()
}

async fn fill_and_publish(
    view: &Rc<View>,
    directory: &Path,
    targets: &[Target],
    mut proceed: impl FnMut(RestoreProgress) -> Result<()>,
) -> Result<()> {
    let runtime = view.runtime();
    let mut progress = RestoreProgress { disks_total: targets.len(), ..RestoreProgress::default() };
    let mut plans = Vec::with_capacity(targets.len());
    for disk in view.disks() {
        let whole = Ranges::of([SectorRange::new(0, disk.sectors().0)]);
        let pieces = allocated_pieces(view, disk, &whole).await?;
        progress.bytes_total += pieces.iter().map(|piece| piece.bytes()).sum::<u64>();
        plans.push(pieces);
    }
    for ((disk, target), pieces) in view.disks().iter().zip(targets).zip(plans) {
        let file = runtime.open(&target.partial, OpenOptions::CREATE).await?;
        set_disk_length(runtime, &file, disk.sectors(), TOO_LONG).await?;
        copy_pieces(view, disk, pieces, &file, async |piece, _| {
            progress.bytes_done += piece.bytes();
            proceed(progress)
        })
        .await?;
        runtime.sync(&file).await?;
        progress.disks_done += 1;
        proceed(progress)?;
    }
    for target in targets {
        runtime.publish(&target.partial, &target.path).await?;
    }
    sync_names(runtime, directory).await
}

async fn sync_names(runtime: &Rc<Runtime>, directory: &Path) -> Result<()> {
    runtime.sync_directory(directory).await?;
    // The directory may be new itself. Only a root has no parent; a relative name's is the working directory.
    match directory.parent() {
        Some(parent) if parent.as_os_str().is_empty() => runtime.sync_directory(".").await,
        Some(parent) => runtime.sync_directory(parent).await,
        None => Ok(()),
    }
}

/// Copies pieces of a disk to a file that has holes there. `copied` is told each, with its data; its error ends it.
pub async fn copy_pieces(
    view: &View,
    disk: &ViewDisk,
    pieces: Vec<SectorRange>,
    file: &File,
    mut copied: impl AsyncFnMut(SectorRange, &[(SectorRange, Slice)]) -> Result<()>,
) -> Result<()> {
    let copies = stream::iter(pieces).map(|piece| copy(view, disk, file, piece));
    let mut copies = copies.buffer_unordered(PIECES_IN_FLIGHT).boxed_local();
    while let Some((piece, data)) = copies.try_next().await? {
        copied(piece, &data).await?;
    }
    Ok(())
}

/// The allocated parts of some ranges of a disk, in pieces of at most 1 MiB.
pub async fn allocated_pieces(view: &View, disk: &ViewDisk, ranges: &Ranges) -> Result<Vec<SectorRange>> {
    let mut pieces = Vec::new();
    for &range in ranges.as_slice() {
        let mut position = range.start;
        for run in view.allocation(disk.id(), range).await? {
            let end = position + run.bytes / SECTOR_BYTES;
            if run.allocated {
                pieces.extend(Ranges::of([SectorRange::new(position, end)]).pieces(PIECE_SECTORS));
            }
            position = end;
        }
    }
    Ok(pieces)
}

async fn copy(
    view: &View,
    disk: &ViewDisk,
    file: &File,
    range: SectorRange,
) -> Result<(SectorRange, Vec<(SectorRange, Slice)>)> {
    let (mut start, mut written) = (range.start, Vec::new());
    for piece in view.read(disk.id(), range).await? {
        let part = SectorRange::new(start, start + piece.bytes() / SECTOR_BYTES);
        match piece {
            DataPiece::Bytes(data) => {
                view.runtime().write(file, part.byte_offset(), data.clone()).await?;
                written.push((part, data));
            }
            // The file is new: what is not written there is zero already.
            DataPiece::Zeros(_) => {}
        }
        start = part.end;
    }
    Ok((range, written))
}
