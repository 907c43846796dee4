//! Whole files for the offline tools, read-only: mapped while nobody writes to them, copied while somebody does.
//!
//! Not for the data path, which goes through [`Storage`](super::Storage). Every writer of this crate's files holds
//! the exclusive lock of its open file description before its first write; so whoever gets a shared lock has bytes
//! that stand still, and may map them. Who does not get one reads a copy: bytes of some moment, or of several.
//!
//! Invariant: nothing here creates, changes or waits. A gateway that starts while the shared lock is held waits
//! until the [`ReadOnlyFile`] is dropped.

use std::fs::{self, File};
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::units::to_usize;

/// A file that is only read.
#[derive(Debug)]
pub struct ReadOnlyFile {
    path: PathBuf,
    file: File,
    writer: Writer,
}

/// Whether somebody may be writing to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writer {
    /// Nobody: the shared lock is ours.
    None,
    /// Somebody holds the exclusive lock.
    Present,
    /// The file system knows no locks.
    Unknown,
}

impl ReadOnlyFile {
    /// Opens a regular file, and locks it if nobody writes to it.
    pub fn open(path: &Path) -> Result<ReadOnlyFile> {
        // Looked at first: opening a FIFO would wait for a writer.
        let metadata = fs::metadata(path).map_err(|error| Error::io("reading", error).at_path(path))?;
        if !metadata.is_file() {
            return Err(Error::invalid("not a regular file: name a file or its directory").at_path(path));
        }
        let file = File::open(path).map_err(|error| Error::io("opening", error).at_path(path))?;
        let writer = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Writer::None,
            Err(Errno::WOULDBLOCK) => Writer::Present,
            Err(_) => Writer::Unknown,
        };
        Ok(ReadOnlyFile { path: path.to_owned(), file, writer })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether another process holds it for writing.
    pub fn is_in_use(&self) -> bool {
        self.writer == Writer::Present
    }

    /// Its bytes, all of them.
    pub fn contents(&self) -> Result<Contents<'_>> {
        let io = |error| Error::io("reading", error).at_path(&self.path);
        let length = to_usize(self.file.metadata().map_err(io)?.len());
        if self.writer != Writer::None || length == 0 {
            let mut copy = vec![0; length];
            self.file.read_exact_at(&mut copy, 0).map_err(io)?;
            return Ok(Contents { bytes: Bytes::Copied(copy), _file: self });
        }
        // SAFETY: `self.file` holds the shared lock for as long as `Contents` borrows it, and every writer of this
        // crate takes the exclusive one before it writes or shortens a file; so the mapped bytes stand still. A
        // stranger who ignores locks and cuts the file ends this process (SIGBUS), which only reads.
        let map = unsafe { Mmap::map(&self.file) }.map_err(io)?;
        Ok(Contents { bytes: Bytes::Mapped(map), _file: self })
    }
}

/// A file's bytes, for as long as the file is open.
#[derive(Debug)]
pub struct Contents<'a> {
    bytes: Bytes,
    _file: &'a ReadOnlyFile,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Copied(Vec<u8>),
}

impl Deref for Contents<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Copied(copy) => copy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_mapped_while_free_and_copied_while_in_use() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        fs::write(&path, b"content").expect("written");
        let free = ReadOnlyFile::open(&path).expect("opens");
        assert!(matches!(free.contents().expect("reads").bytes, Bytes::Mapped(_)));
        assert_eq!(&*free.contents().expect("reads"), b"content");
        drop(free);
        let owner = File::open(&path).expect("opens");
        rustix::fs::flock(&owner, FlockOperation::NonBlockingLockExclusive).expect("nobody else holds it");
        let used = ReadOnlyFile::open(&path).expect("opens");
        assert!(used.is_in_use());
        assert!(matches!(used.contents().expect("reads").bytes, Bytes::Copied(_)));
        assert_eq!(&*used.contents().expect("reads"), b"content");
    }

    #[test]
    fn what_is_no_regular_file_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(ReadOnlyFile::open(directory.path()).is_err());
        assert!(ReadOnlyFile::open(&directory.path().join("none")).is_err());
        let empty = directory.path().join("empty");
        fs::write(&empty, b"").expect("written");
        assert!(ReadOnlyFile::open(&empty).expect("opens").contents().expect("reads").is_empty());
    }
}
