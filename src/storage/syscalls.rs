//! What each operation means in system calls, run to its end on the calling thread.
//!
//! This is not a back end: the blocking one runs everything here on its workers, io_uring all that it has no ring
//! operation for. Short reads and writes are continued and interrupted calls repeated here, so that above the seam an
//! operation either did all of its work or failed.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    Advice, CWD, FallocateFlags, FileType, FlockOperation, IFlags, Mode, OFlags, RenameFlags, SeekFrom,
};
use rustix::io::{Errno, retry_on_intr};

use super::direct::{self, Buffered};
use super::extents;
use super::lock_wait::LockWait;
use super::{Access, Buffer, Create, FILE_SYSTEMS_OWN, File, Handle, Lock, Op, OpenOptions, Outcome, Space};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{PAGE_BYTES, SECTOR_BYTES, to_usize};

/// Files hold what guests wrote: nobody but their owner reads them.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const DIRECTORY_MODE: u32 = 0o700;
/// How much is zeroed by one write where the file system cannot zero a range itself.
const ZERO_WRITE_BYTES: u64 = 1 << 20;

/// How far [`execute`] came.
pub(super) enum Executed {
    /// To the end.
    Done(Result<Outcome>),
    /// The file is open, but someone else holds its lock: whoever calls decides where to wait.
    LockHeld(LockWait),
}

/// Takes the exclusive lock of an open file description, unless somebody else has it.
pub(super) fn try_lock(descriptor: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    retry_on_intr(|| rustix::fs::flock(descriptor, FlockOperation::NonBlockingLockExclusive))
}

/// The error of an opening where somebody else keeps the lock.
pub(super) fn locked(path: &Path) -> Error {
    let context = "another process holds the lock of this file: end that process";
    Error::new(ErrorKind::Locked, context).at_path(path)
}

/// Runs an operation to its end, or to a lock that somebody holds.
pub(super) fn execute(op: Op) -> Executed {
    Executed::Done(match op {
        Op::Open { path, options } => match open(path, options) {
            Ok(Opened::Ready(file)) => Ok(Outcome::Opened(file)),
            Ok(Opened::Locked(wait)) => return Executed::LockHeld(wait),
            Err(error) => Err(error),
        },
        Op::Read { file, offset, buffer } => read(&file, offset, buffer).map(Outcome::Read),
        Op::Write { file, offset, data } => write(&file, offset, &data).map(done),
        Op::Sync { file } => sync(&file).map(done),
        Op::Evict { file } => evict(&file).map(done),
        Op::Zero { file, range, keep_allocated } => zero(&file, range, keep_allocated).map(done),
        Op::SetLength { file, length } => set_length(&file, length).map(done),
        Op::Length { file } => length(&file).map(Outcome::Length),
        Op::DataRanges { file, range } => data_ranges(&file, range).map(Outcome::Ranges),
        Op::Publish { from, to } => publish(&from, &to).map(done),
        Op::Remove { path } => remove(&path).map(done),
        Op::RemoveDirectory { path } => remove_directory(&path).map(done),
        Op::CreateDirectory { path } => create_directory(&path).map(done),
        Op::List { path } => list(&path).map(Outcome::Names),
        Op::SyncDirectory { path } => sync_directory(&path).map(done),
        Op::Space { path } => space(&path).map(Outcome::Space),
    })
}

fn done((): ()) -> Outcome {
    Outcome::Done
}

/// An error of a system call, told as `context`.
pub(super) fn failed(context: &str, errno: impl Into<io::Error>) -> Error {
    Error::io(format!("{context} failed"), errno.into())
}

/// The error of a read that met the end of the file.
pub(super) fn past_end(file: &File, offset: u64, missing: usize) -> Error {
    let context = format!("the file ends {missing} bytes before the end of what is to be read");
    Error::corrupt(context).at_path(file.path()).at_offset(offset)
}

/// The error of a write that the system accepted no byte of.
pub(super) fn no_progress(file: &File, offset: u64) -> Error {
    failed("writing", io::Error::from(io::ErrorKind::WriteZero)).at_path(file.path()).at_offset(offset)
}

/// Whether `count` bytes of a transfer can be followed by a request for the rest. A direct transfer that stops within
/// a sector has met the end of the file, and a request for the rest would be misaligned.
pub(super) fn can_continue(file: &File, count: usize) -> bool {
    count > 0 && (!file.is_direct() || (count as u64).is_multiple_of(SECTOR_BYTES))
}

enum Opened {
    Ready(File),
    Locked(LockWait),
}

fn open(path: PathBuf, options: OpenOptions) -> Result<Opened> {
    let access = match options.access {
        Access::ReadOnly => OFlags::RDONLY,
        Access::ReadWrite => OFlags::RDWR,
    };
    let create = match options.create {
        Create::Existing => OFlags::empty(),
        Create::New => OFlags::CREATE.union(OFlags::EXCL),
        Create::IfMissing => OFlags::CREATE,
    };
    let flags = access | create | OFlags::CLOEXEC | OFlags::NOCTTY;
    let descriptor = retry_on_intr(|| rustix::fs::open(&path, flags, FILE_MODE))
        .map_err(|errno| failed("opening", errno).at_path(&path))?;
    let buffered = match options.direct {
        true => bypass_cache(descriptor.as_fd(), &path)?,
        false => Some(Buffered::Wanted),
    };
    if options.lock == Lock::None {
        return Ok(Opened::Ready(File::new(path, buffered, Handle::Os(descriptor))));
    }
    match try_lock(descriptor.as_fd()) {
        Ok(()) => Ok(Opened::Ready(File::new(path, buffered, Handle::Os(descriptor)))),
        Err(Errno::WOULDBLOCK) if options.lock == Lock::Wait => {
            Ok(Opened::Locked(LockWait::new(path, buffered, descriptor)))
        }
        Err(Errno::WOULDBLOCK) => Err(locked(&path)),
        Err(errno) => Err(failed("locking", errno).at_path(&path)),
    }
}

fn bypass_cache(descriptor: BorrowedFd<'_>, path: &Path) -> Result<Option<Buffered>> {
    let buffered = direct::bypass(descriptor).map_err(|error| error.at_path(path))?;
    if let Some(buffered) = buffered {
        direct::tell(descriptor, path, buffered);
    }
    Ok(buffered)
}

fn read(file: &File, offset: u64, mut buffer: Buffer) -> Result<Buffer> {
    file.check_alignment(offset, &buffer)?;
    let mut filled = 0;
    while filled < buffer.len() {
        let position = offset + filled as u64;
        let count = retry_on_intr(|| rustix::io::pread(file.descriptor(), &mut buffer[filled..], position))
            .map_err(|errno| failed("reading", errno).at_path(file.path()).at_offset(position))?;
        filled += count;
        if filled < buffer.len() && !can_continue(file, count) {
            return Err(past_end(file, offset, buffer.len() - filled));
        }
    }
    Ok(buffer)
}

fn write(file: &File, offset: u64, data: &[u8]) -> Result<()> {
    file.check_alignment(offset, data)?;
    let mut written = 0;
    while written < data.len() {
        let position = offset + written as u64;
        let count = retry_on_intr(|| rustix::io::pwrite(file.descriptor(), &data[written..], position))
            .map_err(|errno| failed("writing", errno).at_path(file.path()).at_offset(position))?;
        written += count;
        if written < data.len() && !can_continue(file, count) {
            return Err(no_progress(file, position));
        }
    }
    if let Some(unsent) = file.unsent() {
        unsent.note(file.descriptor(), data.len() as u64);
    }
    Ok(())
}

fn sync(file: &File) -> Result<()> {
    retry_on_intr(|| rustix::fs::fdatasync(file.descriptor()))
        .map_err(|errno| failed("syncing", errno).at_path(file.path()))
}

fn evict(file: &File) -> Result<()> {
    if file.is_direct() {
        return Ok(());
    }
    rustix::fs::fadvise(file.descriptor(), 0, None, Advice::DontNeed)
        .map_err(|errno| failed("giving up the page cache", errno).at_path(file.path()))
}

fn zero(file: &File, range: Range<u64>, keep_allocated: bool) -> Result<()> {
    let file_end = length(file)?;
    let end = range.end.min(file_end);
    if range.start >= end {
        return Ok(());
    }
    // A block device is zeroed, never merely discarded: its data may be discarded to anything.
    let keep_allocated = keep_allocated || is_block_device(file)?;
    let how = if keep_allocated { FallocateFlags::ZERO_RANGE } else { FallocateFlags::PUNCH_HOLE };
    // File systems give back whole blocks only, and the last one of a file ends behind it.
    let ends_with_block = !keep_allocated && end == file_end;
    let fallocate_end = if ends_with_block { end.next_multiple_of(PAGE_BYTES as u64) } else { end };
    let zeroed = retry_on_intr(|| {
        let flags = how | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(file.descriptor(), flags, range.start, fallocate_end - range.start)
    });
    match zeroed {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => write_zeros(file, range.start..end),
        Err(errno) => Err(failed("zeroing", errno).at_path(file.path()).at_offset(range.start)),
    }
}

fn write_zeros(file: &File, range: Range<u64>) -> Result<()> {
    let zeros = Buffer::zeroed(to_usize(ZERO_WRITE_BYTES.min(range.end - range.start)));
    let mut offset = range.start;
    while offset < range.end {
        let count = ZERO_WRITE_BYTES.min(range.end - offset);
        write(file, offset, &zeros[..to_usize(count)])?;
        offset += count;
    }
    Ok(())
}

fn is_block_device(file: &File) -> Result<bool> {
    let status = rustix::fs::fstat(file.descriptor())
        .map_err(|errno| failed("reading the file's status", errno).at_path(file.path()))?;
    Ok(FileType::from_raw_mode(status.st_mode) == FileType::BlockDevice)
}

fn set_length(file: &File, length: u64) -> Result<()> {
    retry_on_intr(|| rustix::fs::ftruncate(file.descriptor(), length))
        .map_err(|errno| failed("setting the length", errno).at_path(file.path()).at_offset(length))
}

/// By seeking, since the status of a block device does not tell its length. Nothing else uses the file's position.
fn length(file: &File) -> Result<u64> {
    rustix::fs::seek(file.descriptor(), SeekFrom::End(0))
        .map_err(|errno| failed("reading the length", errno).at_path(file.path()))
}

fn data_ranges(file: &File, range: Range<u64>) -> Result<Vec<Range<u64>>> {
    let end = range.end.min(length(file)?);
    let mut ranges = Vec::new();
    let mut offset = range.start;
    while offset < end {
        let start = match rustix::fs::seek(file.descriptor(), SeekFrom::Data(offset)) {
            Ok(start) => start.max(offset),
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                ranges.push(offset..end);
                break;
            }
            Err(errno) => {
                return Err(failed("looking for data", errno).at_path(file.path()).at_offset(offset));
            }
        };
        if start >= end {
            break;
        }
        let hole = match rustix::fs::seek(file.descriptor(), SeekFrom::Hole(start)) {
            Ok(hole) => hole.min(end),
            // Truncated since: what lay here is gone.
            Err(Errno::NXIO) => break,
            Err(errno) => {
                return Err(failed("looking for holes", errno).at_path(file.path()).at_offset(start));
            }
        };
        ranges.push(start..hole);
        offset = hole;
    }
    Ok(ranges)
}

fn publish(from: &Path, to: &Path) -> Result<()> {
    let renamed = retry_on_intr(|| rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE))
        .or_else(|errno| {
            // Older file systems know no exclusive rename, but every one has an exclusive link.
            if matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) {
                rustix::fs::link(from, to).and_then(|()| rustix::fs::unlink(from))
            } else {
                Err(errno)
            }
        });
    renamed.map_err(|errno| {
        let path = if errno == Errno::EXIST { to } else { from };
        failed("publishing", errno).at_path(path)
    })
}

fn remove(path: &Path) -> Result<()> {
    rustix::fs::unlink(path).map_err(|errno| failed("removing", errno).at_path(path))
}

fn remove_directory(path: &Path) -> Result<()> {
    rustix::fs::rmdir(path).map_err(|errno| failed("removing the directory", errno).at_path(path))
}

fn create_directory(path: &Path) -> Result<()> {
    let parents = path.ancestors().skip(1);
    let missing: Vec<_> = parents.take_while(|parent| !parent.exists()).collect();
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
        .map_err(|error| failed("creating the directory", error).at_path(path))?;
    write_in_place(path);
    missing.into_iter().for_each(write_in_place);
    Ok(())
}

/// Has what is made in a directory from now on written in place where the file system would else write every change elsewhere, and would want
/// space for that when it has none left. Best effort: whoever lacks space waits.
fn write_in_place(directory: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = rustix::fs::open(directory, flags, Mode::empty()) else { return };
    if !extents::are_kept_whole(&directory) {
        return;
    }
    if let Ok(flags) = rustix::fs::ioctl_getflags(&directory)
        && !flags.contains(IFlags::NOCOW)
        && let Err(error) = rustix::fs::ioctl_setflags(&directory, flags | IFlags::NOCOW)
    {
        tracing::debug!(%error, "the directory's files are written by copying");
    }
}

fn list(path: &Path) -> Result<Vec<String>> {
    let unreadable = |error: io::Error| failed("listing the directory", error).at_path(path);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        if name != FILE_SYSTEMS_OWN {
            names.push(name.into_string().map_err(|name| foreign_name(path, name))?);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn space(path: &Path) -> Result<Space> {
    let found = retry_on_intr(|| rustix::fs::statvfs(path));
    let found = found.map_err(|errno| failed("asking for free space", errno).at_path(path))?;
    let device = retry_on_intr(|| rustix::fs::stat(path));
    let device = device.map_err(|errno| failed("asking for the file system", errno).at_path(path))?.st_dev;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    // Blocks that only root may use are not free for whoever runs as somebody else; for root they are a last reserve.
    Ok(Space { free: bytes(found.f_bavail), total: bytes(found.f_blocks), device })
}

fn foreign_name(directory: &Path, name: OsString) -> Error {
    let context = format!("the name {name:?} is not UTF-8, so it is none of ours: move it elsewhere");
    Error::invalid(context).at_path(directory)
}

fn sync_directory(path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))
        .and_then(|directory| retry_on_intr(|| rustix::fs::fsync(&directory)))
        .map_err(|errno| failed("syncing the directory", errno).at_path(path))
}
