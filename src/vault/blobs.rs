//! Blobs in the vault's directory: put in pieces, published whole, read in ranges.
//!
//! A blob exists when bytes *and* name are durable: written under a partial name, file synced, published, directory
//! synced. What a dead owner left unpublished, in files or in the manifest, is removed at opening
//! ([`Blobs::clean`]).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

use super::files::{PartialFile, remove_partials};
use super::layout::{Layout, parse_blob_name};
use crate::delta::Sink;
use crate::error::{ErrorKind, Result};
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::storage::{Access, File, OpenOptions, Slice};
use crate::units::BlobId;

/// The blobs of one vault.
pub struct Blobs {
    runtime: Rc<Runtime>,
    layout: Layout,
    /// Put by this process, and not named by the manifest yet.
    unsettled: RefCell<BTreeSet<BlobId>>,
    planted: Planted,
}

impl Blobs {
    pub(super) fn new(runtime: &Rc<Runtime>, layout: &Layout) -> Blobs {
        Blobs {
            runtime: Rc::clone(runtime),
            layout: layout.clone(),
            unsettled: RefCell::default(),
            planted: Planted::NONE,
        }
    }

    pub(super) fn plant(&mut self, planted: Planted) {
        self.planted = planted;
    }

    /// Begins to put a blob.
    pub async fn create(&self, blob: BlobId) -> Result<BlobWriter<'_>> {
        let file = PartialFile::create(&self.runtime, self.layout.blob(blob)).await?;
        self.unsettled.borrow_mut().insert(blob);
        Ok(BlobWriter { blobs: self, blob, file })
    }

    /// Opens a blob for reading.
    pub async fn open(&self, blob: BlobId) -> Result<File> {
        self.runtime.open(self.layout.blob(blob), OpenOptions::READ).await
    }

    /// Gives back the space of parts of a blob that nobody reads any more; it keeps its length.
    pub(super) async fn punch(&self, blob: BlobId, parts: &[Range<u64>]) -> Result<()> {
        let options = OpenOptions { access: Access::ReadWrite, ..OpenOptions::READ };
        let file = self.runtime.open(self.layout.blob(blob), options).await?;
        for part in parts {
            self.runtime.zero(&file, part.clone(), false).await?;
        }
        // A file system gives blocks to others once it is durable that they are free.
        self.runtime.sync(&file).await
    }

    /// All blobs, ascending by id.
    pub async fn list(&self) -> Result<Vec<BlobId>> {
        let names = self.runtime.list(self.layout.blobs()).await?;
        Ok(names.iter().filter_map(|name| parse_blob_name(name)).collect())
    }

    /// Deletes a blob; one that is not there is deleted already.
    pub async fn delete(&self, blob: BlobId) -> Result<()> {
        self.settle(blob);
        match self.runtime.remove(self.layout.blob(blob)).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Says that the manifest names the blob now, or that it is given up.
    pub(super) fn settle(&self, blob: BlobId) {
        self.unsettled.borrow_mut().remove(&blob);
    }

    /// Whether this process put the blob, or is at it, and the manifest does not name it yet.
    pub fn is_unsettled(&self, blob: BlobId) -> bool {
        self.unsettled.borrow().contains(&blob)
    }

    /// Removes what an owner before this one did not publish. Only its successor may do this.
    pub(super) async fn clean(&self, is_published: impl Fn(BlobId) -> bool) -> Result<()> {
        remove_partials(&self.runtime, &self.layout.blobs(), |_| false).await?;
        for blob in self.list().await? {
            if !is_published(blob) {
                tracing::info!(%blob, "removing a delta that no recovery point names");
                self.delete(blob).await?;
            }
        }
        Ok(())
    }
}

/// A blob on its way into the vault. Until [`BlobWriter::finish`] returns, it does not exist; dropped before, it leaves
/// a partial file for the next opening to remove.
pub struct BlobWriter<'a> {
    blobs: &'a Blobs,
    blob: BlobId,
    file: PartialFile,
}

impl BlobWriter<'_> {
    /// Makes the blob exist, durably.
    pub async fn finish(self) -> Result<()> {
        self.file.finish(!self.blobs.planted.is(Bug::BlobNotSynced)).await
    }

    /// Gives the blob up.
    pub async fn abandon(self) -> Result<()> {
        self.blobs.settle(self.blob);
        self.file.abandon().await
    }
}

impl Sink for BlobWriter<'_> {
    fn length(&self) -> u64 {
        self.file.length()
    }

    async fn append(&mut self, piece: Slice) -> Result<()> {
        self.file.append(piece).await
    }
}
