//! Blobs in the vault's directory: put in pieces, published whole, read in ranges.
//!
//! A blob exists when bytes *and* name are durable: written under a partial name, file synced, published, directory
//! synced. What a dead owner left unpublished, in files or in the manifest, is removed at opening
//! ([`Blobs::clean`]).

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;

use futures::future::LocalBoxFuture;

use super::files::remove_partials;
use super::layout::{self, Layout, parse_blob_name};
use crate::delta::Sink;
use crate::error::{ErrorKind, Result};
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::storage::{File, Op, OpenOptions, Outcome, Slice};
use crate::units::BlobId;

/// Writes of one blob in flight; with the builder's chunks this bounds what a put keeps in memory.
const WRITES_IN_FLIGHT_MAX: usize = 4;

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
        let path = self.layout.blob(blob);
        let partial = layout::partial(&path, self.runtime.random_u128());
        let file = self.runtime.open(&partial, OpenOptions::CREATE).await?;
        self.unsettled.borrow_mut().insert(blob);
        let (in_flight, newest) = (VecDeque::new(), None);
        Ok(BlobWriter { blobs: self, path, partial, file, length: 0, in_flight, newest })
    }

    /// Opens a blob for reading.
    pub async fn open(&self, blob: BlobId) -> Result<File> {
        self.runtime.open(self.layout.blob(blob), OpenOptions::READ).await
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
        remove_partials(&self.runtime, &self.layout.blobs()).await?;
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
    path: PathBuf,
    partial: PathBuf,
    file: File,
    length: u64,
    in_flight: VecDeque<LocalBoxFuture<'static, Result<Outcome>>>,
    /// The last piece: by it a lost reply is told from another's blob.
    newest: Option<Slice>,
}

impl BlobWriter<'_> {
    async fn drain(&mut self, left: usize) -> Result<()> {
        while self.in_flight.len() > left {
            let Some(write) = self.in_flight.pop_front() else { break };
            write.await?;
        }
        Ok(())
    }

    /// Makes the blob exist, durably.
    pub async fn finish(mut self) -> Result<()> {
        self.drain(0).await?;
        let runtime = &self.blobs.runtime;
        if !self.blobs.planted.is(Bug::BlobNotSynced) {
            runtime.sync(&self.file).await?;
        }
        if let Err(error) = runtime.publish(&self.partial, &self.path).await
            && !self.was_published().await?
        {
            return Err(error);
        }
        runtime.sync_directory(self.blobs.layout.blobs()).await
    }

    /// Whether the blob is there although publishing said otherwise: a reply can be lost. Ids are random, so its
    /// length and last piece (the footer, which sums all others) tell.
    async fn was_published(&self) -> Result<bool> {
        let runtime = &self.blobs.runtime;
        let file = match runtime.open(&self.path, OpenOptions::READ).await {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let Some(newest) = &self.newest else { return Ok(false) };
        if runtime.length(&file).await? != self.length {
            return Ok(false);
        }
        let offset = self.length - newest.len() as u64;
        Ok(runtime.read(&file, offset, newest.len()).await?[..] == newest[..])
    }

    /// Gives the blob up.
    pub async fn abandon(mut self) -> Result<()> {
        // A write that failed does not matter any more; one in flight would land in the removed file.
        while let Some(write) = self.in_flight.pop_front() {
            let _ = write.await;
        }
        if let Some(blob) = self.path.file_name().and_then(|name| name.to_str()).and_then(parse_blob_name) {
            self.blobs.settle(blob);
        }
        self.blobs.runtime.remove(&self.partial).await
    }
}

impl Sink for BlobWriter<'_> {
    fn length(&self) -> u64 {
        self.length
    }

    async fn append(&mut self, piece: Slice) -> Result<()> {
        let op = Op::Write { file: self.file.clone(), offset: self.length, data: piece.clone() };
        self.in_flight.push_back(Box::pin(self.blobs.runtime.call(op)));
        self.length += piece.len() as u64;
        self.newest = Some(piece);
        self.drain(WRITES_IN_FLIGHT_MAX).await
    }
}
