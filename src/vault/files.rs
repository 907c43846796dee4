//! The two things that a vault does with whole small files: read one, and publish one durably.

use std::path::Path;
use std::rc::Rc;

use super::layout;
use crate::error::{Error, ErrorKind, Result};
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::storage::{Buffer, OpenOptions};
use crate::units::to_usize;

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
    let directory = path.parent().expect("a vault's files are in directories");
    let partial = layout::partial(path, runtime.random_u128());
    if let Err(error) = write_partial(runtime, &partial, bytes).await {
        // Best effort: what stays is removed when the vault is opened next.
        let _ = runtime.remove(&partial).await;
        return Err(PutError::Absent(error));
    }
    let put = loop {
        let Err(error) = runtime.publish(&partial, path).await else { break Put::Ours };
        match read_whole(runtime, path, bytes.len() as u64).await {
            Ok(_) if planted.is(Bug::LostCreateReply) => break Put::Theirs,
            Ok(stored) if stored[..] == *bytes => break Put::Ours,
            Ok(_) => break Put::Theirs,
            // Longer than ours: somebody else's.
            Err(read) if read.kind() == ErrorKind::Corrupt => break Put::Theirs,
            Err(read) if read.kind() == ErrorKind::NotFound => {
                // It was taken and is gone again: try once more. Any other failure published nothing.
                if error.kind() != ErrorKind::AlreadyExists {
                    let _ = runtime.remove(&partial).await;
                    return Err(PutError::Absent(error));
                }
            }
            Err(_) => return Err(PutError::Unknown(error)),
        }
    };
    if put == Put::Theirs {
        let _ = runtime.remove(&partial).await;
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

/// Removes what was never published in `directory`.
pub(super) async fn remove_partials(runtime: &Rc<Runtime>, directory: &Path) -> Result<()> {
    for name in runtime.list(directory).await? {
        if layout::is_partial(&name) {
            runtime.remove(directory.join(name)).await?;
        }
    }
    Ok(())
}
