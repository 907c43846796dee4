//! Giving a new file the length of a disk. A file system that takes no file so long says only that; this finds out how
//! long one may be, because that is what a person has to know.

use std::io;
use std::path::Path;
use std::rc::Rc;

use crate::byte_size::ByteSize;
use crate::error::{Error, Result};
use crate::runtime::Runtime;
use crate::storage::{File, OpenOptions, size_limit};
use crate::units::SectorCount;

/// How exactly the limit is told: to the whole MiB below it.
const STEP_BYTES: u64 = 1 << 20;

/// Makes an empty file as long as a disk of `size`; `mend` is what to do where the file system takes no file so long.
/// The file is of no use to anybody after an error.
pub async fn set_disk_length(
    runtime: &Rc<Runtime>,
    file: &File,
    size: SectorCount,
    mend: &str,
) -> Result<()> {
    let refused = match runtime.set_length(file, size.bytes()).await {
        Err(error) if is_too_long(&error) => error,
        set => return set,
    };
    let Some(longest) = longest(runtime, file, size.bytes()).await else { return Err(refused) };
    let (whose, mend) = match size_limit::bytes() {
        Some(limit) if limit < size.bytes() => {
            ("the limit on the length of files (LimitFSIZE=, ulimit -f)", format!("raise it, or {mend}"))
        }
        _ => ("the file system", mend.to_owned()),
    };
    let (size, longest) = (ByteSize(size.bytes()).exact(), ByteSize(longest).exact());
    let text = format!("size = {size}: {whose} here takes files of at most {longest}: {mend}");
    Err(Error::invalid(text).at_path(file.path().parent().unwrap_or(Path::new("/"))))
}

/// Whether the file system of `directory` takes a file as long as a disk of `size`. What a death leaves of the trial is a
/// `.partial` file.
pub async fn check_disk_length(
    runtime: &Rc<Runtime>,
    trial: &Path,
    size: SectorCount,
    mend: &str,
) -> Result<()> {
    let file = runtime.open(trial, OpenOptions::CREATE).await?;
    let taken = set_disk_length(runtime, &file, size, mend).await;
    drop(file);
    runtime.remove(trial).await?;
    taken
}

/// Whether it is the length that a file system refused: beyond its limit, or beyond what any file may have.
fn is_too_long(error: &Error) -> bool {
    matches!(error.io_kind(), Some(io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidInput))
}

/// The longest that the file can be made below `refused`; `None` where something else is wrong with it.
async fn longest(runtime: &Rc<Runtime>, file: &File, refused: u64) -> Option<u64> {
    let (mut taken, mut refused) = (0, refused.div_ceil(STEP_BYTES));
    while refused - taken > 1 {
        let between = taken + (refused - taken) / 2;
        match runtime.set_length(file, between * STEP_BYTES).await {
            Ok(()) => taken = between,
            Err(error) if is_too_long(&error) => refused = between,
            Err(_) => return None,
        }
    }
    Some(taken * STEP_BYTES)
}
