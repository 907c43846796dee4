//! What a vault does with files: read and publish whole small ones, and put long ones piece after piece.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use futures::future::LocalBoxFuture;

use super::layout;
use crate::delta::Sink;
use crate::error::{Error, ErrorKind, Result};
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::storage::{Buffer, File, Op, OpenOptions, Outcome, Slice};
use crate::units::to_usize;

/// Writes of one file in flight; with what makes its pieces this bounds what a put keeps in memory.
const WRITES_IN_FLIGHT_MAX: usize = 4;

/// Reads a whole file of at most `bytes_max`; a longer one is not what was stored.
pub(super) async fn read_whole(runtime: &Rc<Runtime>, path: &Path, bytes_max: u64) -> Result<Buffer> {
    let file = runtime.open(path, OpenOptions::READ).await?;
    let length = runtime.length(&file).await?;
    if length > bytes_max {
        let text = format!("{length} bytes long; no such file has more than {bytes_max}");
        return Err(Error::corrupt(text).at_path(path));
    }
    if length == 0 {
        return Ok(Buffer::zeroed(0));
    }
    runtime.read(&file, 0, to_usize(length)).await
}

/// How a put-if-absent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// The file is there with our bytes, durably.
    Ours,
    /// Somebody else's file has the name; durably, so that it can be built upon.
    Theirs,
}

/// Why a put-if-absent failed.
#[derive(Debug)]
pub(super) enum PutError {
    /// Nothing was published.
    Absent(Error),
    /// It may or may not have been published, or may not last: only reading again after a restart can tell.
    Unknown(Error),
}

/// Publishes `bytes` as `path` if nothing has that name, and makes file and name durable.
///
/// A reply can be lost, so that one's own create looks like somebody else's or like a failure: whatever publishing
/// answers but success is resolved by reading.
pub(super) async fn put(
    runtime: &Rc<Runtime>,
    path: &Path,
    bytes: &[u8],
    planted: Planted,
) -> std::result::Result<Put, PutError> {
    let partial = layout::partial(path, runtime.random_u128());
    if let Err(error) = write_partial(runtime, &partial, bytes).await {
        // Best effort: what stays is removed when the vault is opened next.
        let _ = runtime.remove(&partial).await;
        return Err(PutError::Absent(error));
    }
    publish_written(runtime, &partial, path, bytes, planted).await
}

/// The second half of [`put`]: `partial` holds `bytes`, durably, and goes if it does not become `path`.
pub(super) async fn publish_written(
    runtime: &Rc<Runtime>,
    partial: &Path,
    path: &Path,
    bytes: &[u8],
    planted: Planted,
) -> std::result::Result<Put, PutError> {
    let directory = path.parent().expect("a vault's files are in directories");
    let put = loop {
        let Err(error) = runtime.publish(partial, path).await else { break Put::Ours };
        match read_whole(runtime, path, bytes.len() as u64).await {
            Ok(_) if planted.is(Bug::LostCreateReply) => break Put::Theirs,
            Ok(stored) if stored[..] == *bytes => break Put::Ours,
            Ok(_) => break Put::Theirs,
            // Longer than ours: somebody else's.
            Err(read) if read.kind() == ErrorKind::Corrupt => break Put::Theirs,
            Err(read) if read.kind() == ErrorKind::NotFound => {
                // It was taken and is gone again: try once more. Any other failure published nothing.
                if error.kind() != ErrorKind::AlreadyExists {
                    let _ = runtime.remove(partial).await;
                    return Err(PutError::Absent(error));
                }
            }
            Err(_) => return Err(PutError::Unknown(error)),
        }
    };
    if put == Put::Theirs {
        let _ = runtime.remove(partial).await;
    }
    runtime.sync_directory(directory).await.map_err(PutError::Unknown)?;
    Ok(put)
}

async fn write_partial(runtime: &Rc<Runtime>, partial: &Path, bytes: &[u8]) -> Result<()> {
    let file = runtime.open(partial, OpenOptions::CREATE).await?;
    if !bytes.is_empty() {
        runtime.write(&file, 0, Buffer::copy_of(bytes).freeze()).await?;
    }
    runtime.sync(&file).await
}

/// Removes what was never published in `directory`, but for those of which `stays` says so.
pub(super) async fn remove_partials(
    runtime: &Rc<Runtime>,
    directory: &Path,
    stays: impl Fn(&str) -> bool,
) -> Result<()> {
    for name in runtime.list(directory).await? {
        if layout::is_partial(&name) && !stays(&name) {
            runtime.remove(directory.join(name)).await?;
        }
    }
    Ok(())
}

/// A long file on its way. Until [`PartialFile::finish`] returns it does not exist; dropped before, it leaves what the next
/// opening removes.
pub(super) struct PartialFile {
    runtime: Rc<Runtime>,
    path: PathBuf,
    partial: PathBuf,
    file: File,
    length: u64,
    in_flight: VecDeque<LocalBoxFuture<'static, Result<Outcome>>>,
    /// The last piece: by it a lost reply is told from another's file.
    newest: Option<Slice>,
}

impl PartialFile {
    /// Begins the file that is to be `path`.
    pub(super) async fn create(runtime: &Rc<Runtime>, path: PathBuf) -> Result<PartialFile> {
        let partial = layout::partial(&path, runtime.random_u128());
        let file = runtime.open(&partial, OpenOptions::CREATE).await?;
        let (runtime, in_flight) = (Rc::clone(runtime), VecDeque::new());
        Ok(PartialFile { runtime, path, partial, file, length: 0, in_flight, newest: None })
    }

    async fn drain(&mut self, left: usize) -> Result<()> {
        while self.in_flight.len() > left {
            let Some(write) = self.in_flight.pop_front() else { break };
            write.await?;
        }
        Ok(())
    }

    /// Makes the file exist, durably; not to sync it first is a bug.
    pub(super) async fn finish(mut self, sync: bool) -> Result<()> {
        if let Err(error) = self.settle(sync).await {
            // Best effort, as below: what stays is removed at the next opening, but takes space until then.
            let _ = self.abandon().await;
            return Err(error);
        }
        if let Err(error) = self.runtime.publish(&self.partial, &self.path).await
            && !self.was_published().await?
        {
            let _ = self.abandon().await;
            return Err(error);
        }
        let directory = self.path.parent().expect("a vault's files are in directories");
        self.runtime.sync_directory(directory).await
    }

    async fn settle(&mut self, sync: bool) -> Result<()> {
        self.drain(0).await?;
        match sync {
            true => self.runtime.sync(&self.file).await,
            false => Ok(()),
        }
    }

    /// Whether the file is there although publishing said otherwise: a reply can be lost. Ids are random, so its
    /// length and last piece (the footer, which sums all others) tell.
    async fn was_published(&self) -> Result<bool> {
        let file = match self.runtime.open(&self.path, OpenOptions::READ).await {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let Some(newest) = &self.newest else { return Ok(false) };
        if self.runtime.length(&file).await? != self.length {
            return Ok(false);
        }
        let offset = self.length - newest.len() as u64;
        Ok(self.runtime.read(&file, offset, newest.len()).await?[..] == newest[..])
    }

    /// Gives the file up.
    pub(super) async fn abandon(mut self) -> Result<()> {
        // A write that failed does not matter any more; one in flight would land in the removed file.
        while let Some(write) = self.in_flight.pop_front() {
            let _ = write.await;
        }
        self.runtime.remove(&self.partial).await?;
        // Its blocks are free for others once that is durable.
        self.runtime.sync_directory(self.partial.parent().expect("a vault's files are in directories")).await
    }
}

impl Sink for PartialFile {
    fn length(&self) -> u64 {
        self.length
    }

    async fn append(&mut self, piece: Slice) -> Result<()> {
        let op = Op::Write { file: self.file.clone(), offset: self.length, data: piece.clone() };
        self.in_flight.push_back(Box::pin(self.runtime.call(op)));
        self.length += piece.len() as u64;
        self.newest = Some(piece);
        self.drain(WRITES_IN_FLIGHT_MAX).await
    }
}
