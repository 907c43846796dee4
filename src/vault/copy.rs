//! Copying a vault from another place: every file under its name, sparse ones sparse, all of it durable when it is done.
//!
//! Nothing is checked here: whoever opens the copy does, and `vault verify` reads all of it.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::base::copy_sparse;
use super::layout::{self, Layout};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::Runtime;
use crate::storage::OpenOptions;

/// Copies the vault in `from` to `to`, of which whatever is there already goes. `proceed` is told bytes copied and to copy, holes aside; its error
/// ends the copy.
pub async fn copy(
    runtime: &Rc<Runtime>,
    from: &Path,
    to: &Path,
    proceed: impl Fn(u64, u64) -> Result<()>,
) -> Result<()> {
    let (from, to) = (Layout::new(from), Layout::new(to));
    runtime.create_directory(to.root()).await?;
    let (mut files, mut total) = (Vec::new(), 0);
    for (source, target) in from.directories().into_iter().zip(to.directories()) {
        runtime.create_directory(&target).await?;
        for name in runtime.list(&target).await? {
            runtime.remove(target.join(name)).await?;
        }
        for name in names(runtime, &source).await? {
            let bytes = data_bytes(runtime, source.join(&name)).await?;
            files.push((source.join(&name), target.join(&name), bytes));
            total += bytes;
        }
    }
    let mut done = 0;
    for (source, target, bytes) in files {
        copy_file(runtime, &source, &target, &|copied| proceed(done + copied, total)).await?;
        done += bytes;
        proceed(done, total)?;
    }
    for directory in to.directories() {
        runtime.sync_directory(directory).await?;
    }
    runtime.sync_directory(to.root()).await?;
    match to.root().parent() {
        Some(parent) => runtime.sync_directory(parent).await,
        None => Ok(()),
    }
}

/// What a directory of a vault holds, but for what was never published. A vault that is not sealed has none of keys.
async fn names(runtime: &Runtime, directory: &Path) -> Result<Vec<String>> {
    let names = match runtime.list(directory).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        names => names?,
    };
    Ok(names.into_iter().filter(|name| !layout::is_partial(name)).collect())
}

async fn data_bytes(runtime: &Runtime, path: PathBuf) -> Result<u64> {
    let file = runtime.open(path, OpenOptions::READ).await?;
    let data = runtime.data_ranges(&file, 0..runtime.length(&file).await?).await?;
    Ok(data.iter().map(|range| range.end - range.start).sum())
}

async fn copy_file(
    runtime: &Rc<Runtime>,
    from: &Path,
    to: &Path,
    proceed: &impl Fn(u64) -> Result<()>,
) -> Result<()> {
    let source = runtime.open(from, OpenOptions::READ).await?;
    let length = runtime.length(&source).await?;
    let target = runtime.open(to, OpenOptions::CREATE).await?;
    runtime.set_length(&target, length).await?;
    copy_sparse(runtime, &source, &target, length, proceed).await?;
    if runtime.length(&source).await? != length {
        let text = "the file changed while it was copied: end whoever writes to this vault";
        return Err(Error::invalid(text).at_path(from));
    }
    runtime.sync(&target).await
}
