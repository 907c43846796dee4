//! The bases: one sparse raw file per disk that holds the disk as it was before the oldest delta.
//!
//! A base is complete when it is published; the manifest step that adds the disk comes after. Only a base advance
//! (`super::advance`) writes to one again.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use super::files::remove_partials;
use super::layout::{self, Layout, parse_base_name};
use crate::error::{Error, ErrorKind, Result};
use crate::image::TOO_LONG;
use crate::image::length::{check_disk_length, set_disk_length};
use crate::runtime::Runtime;
use crate::storage::{Access, Create, File, Lock, OpenOptions};
use crate::units::{DiskId, SectorCount, to_usize};

/// Bytes of one copied piece.
const COPY_BYTES: u64 = 1 << 20;

/// The bases of one vault.
pub struct Bases {
    runtime: Rc<Runtime>,
    layout: Layout,
    /// Deleted by this process.
    deleted: RefCell<BTreeSet<DiskId>>,
}

impl Bases {
    pub(super) fn new(runtime: &Rc<Runtime>, layout: &Layout) -> Bases {
        Bases { runtime: Rc::clone(runtime), layout: layout.clone(), deleted: RefCell::default() }
    }

    /// Creates the base of a new disk: nothing but zeros, without space.
    pub async fn create_empty(&self, disk: DiskId, sectors: SectorCount) -> Result<()> {
        self.create(disk, sectors, None, |_| Ok(())).await
    }

    /// Creates the base of a disk that is imported: a sparse copy of `source`, zeros past its end. `progress` is told
    /// the bytes copied so far; its error ends the copy.
    pub async fn import(
        &self,
        disk: DiskId,
        sectors: SectorCount,
        source: &File,
        progress: impl Fn(u64) -> Result<()>,
    ) -> Result<()> {
        self.create(disk, sectors, Some(source), progress).await
    }

    async fn create(
        &self,
        disk: DiskId,
        sectors: SectorCount,
        source: Option<&File>,
        progress: impl Fn(u64) -> Result<()>,
    ) -> Result<()> {
        let runtime = &self.runtime;
        let path = self.layout.base(disk);
        let partial = layout::partial(&path, runtime.random_u128());
        let file = runtime.open(&partial, OpenOptions::CREATE).await?;
        let filled = async {
            set_disk_length(runtime, &file, sectors, TOO_LONG).await?;
            if let Some(source) = source {
                copy_sparse(runtime, source, &file, sectors.bytes(), &progress).await?;
            }
            runtime.sync(&file).await
        };
        if let Err(error) = filled.await {
            // Best effort: what stays is removed when the vault is opened next.
            let _ = runtime.remove(&partial).await;
            return Err(error.at_path(&partial));
        }
        runtime.publish(&partial, &path).await?;
        runtime.sync_directory(self.layout.bases()).await
    }

    /// Makes a disk's base as long as the disk is about to be, durably; it stays so, whatever becomes of the growth. An
    /// advance that writes to it is waited for.
    pub async fn lengthen(&self, disk: DiskId, sectors: SectorCount) -> Result<()> {
        // Not tried on the base itself: the search for how long a file may be makes it shorter.
        let trial = layout::partial(&self.layout.bases().join("trial"), self.runtime.random_u128());
        check_disk_length(&self.runtime, &trial, sectors, TOO_LONG).await?;
        let file = self.open_to_write(disk).await?;
        if self.runtime.length(&file).await? < sectors.bytes() {
            self.runtime.set_length(&file, sectors.bytes()).await?;
        }
        self.runtime.sync(&file).await
    }

    /// Opens a disk's base for reading.
    pub async fn open(&self, disk: DiskId) -> Result<File> {
        self.runtime.open(self.layout.base(disk), OpenOptions::READ).await
    }

    /// Opens a disk's base to write to it, once the writes of a dead owner have landed.
    pub(super) async fn open_to_write(&self, disk: DiskId) -> Result<File> {
        let options = OpenOptions {
            access: Access::ReadWrite,
            create: Create::Existing,
            lock: Lock::Wait,
            direct: false,
        };
        self.runtime.open(self.layout.base(disk), options).await
    }

    /// Whether this process deleted the disk's base.
    pub(super) fn is_deleted(&self, disk: DiskId) -> bool {
        self.deleted.borrow().contains(&disk)
    }

    /// Deletes a disk's base; one that is not there is deleted already.
    pub async fn delete(&self, disk: DiskId) -> Result<()> {
        match self.runtime.remove(self.layout.base(disk)).await {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.deleted.borrow_mut().insert(disk);
        Ok(())
    }

    /// Removes what an owner before this one did not publish.
    pub(super) async fn clean(&self, is_published: impl Fn(DiskId) -> bool) -> Result<()> {
        remove_partials(&self.runtime, &self.layout.bases(), |_| false).await?;
        for name in self.runtime.list(self.layout.bases()).await? {
            if let Some(disk) = parse_base_name(&name).filter(|&disk| !is_published(disk)) {
                tracing::info!(%disk, "removing the base of a disk that never joined");
                self.delete(disk).await?;
            }
        }
        Ok(())
    }
}

/// Copies the data of the first `bytes` of `source`, leaving its holes alone: the target reads as zeros there. An error of
/// `progress` ends it.
pub async fn copy_sparse(
    runtime: &Rc<Runtime>,
    source: &File,
    target: &File,
    bytes: u64,
    progress: &impl Fn(u64) -> Result<()>,
) -> Result<()> {
    let length = runtime.length(source).await?;
    if length > bytes {
        let text =
            format!("the image has {length} bytes, the disk {bytes}: give the disk at least that size");
        return Err(Error::invalid(text).at_path(source.path()));
    }
    copy_data(runtime, source, target, length, progress).await
}

/// The same of a source that may be longer: what lies behind the first `bytes` is left out.
pub async fn copy_data(
    runtime: &Rc<Runtime>,
    source: &File,
    target: &File,
    bytes: u64,
    progress: &impl Fn(u64) -> Result<()>,
) -> Result<()> {
    let length = runtime.length(source).await?.min(bytes);
    let mut copied = 0;
    for range in runtime.data_ranges(source, 0..length).await? {
        let mut offset = range.start;
        while offset < range.end {
            let piece = COPY_BYTES.min(range.end - offset);
            let data = runtime.read(source, offset, to_usize(piece)).await?.freeze();
            runtime.write(target, offset, data).await?;
            offset += piece;
            copied += piece;
            progress(copied)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
