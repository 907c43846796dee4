//! Whole files for the offline tools, read-only, also from a disk that gives some of their bytes no more.
//!
//! Not for the data path, which goes through [`Storage`](super::Storage). Every writer of this crate's files holds
//! the exclusive lock of its open file description before its first write; so whoever gets a shared lock has bytes
//! that stand still. Who does not get one reads bytes of some moment, or of several.
//!
//! They are read, never mapped: a mapped page that the disk refuses ends the process, and here a disk that refuses is
//! what is looked for.
//!
//! Invariant: nothing here creates, changes or waits. A gateway that starts while the shared lock is held waits
//! until the [`ReadOnlyFile`] is dropped.

use std::fs::{self, File};
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::units::{PAGE_BYTES, to_usize};

/// Bytes read at once. Where that fails, it is tried again page by page.
const PIECE_BYTES: usize = 1 << 20;

/// How bytes of a file are read from an offset on, as by [`FileExt::read_at`].
pub type ReadAt<'a> = &'a dyn Fn(&File, &mut [u8], u64) -> io::Result<usize>;

/// A file that is only read.
#[derive(Debug)]
pub struct ReadOnlyFile {
    path: PathBuf,
    file: File,
    is_in_use: bool,
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
        // A file system that knows no locks says so with another error.
        let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared);
        Ok(ReadOnlyFile { path: path.to_owned(), file, is_in_use: locked == Err(Errno::WOULDBLOCK) })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether another process holds it for writing.
    pub fn is_in_use(&self) -> bool {
        self.is_in_use
    }

    /// Its bytes, all that can be read.
    pub fn contents(&self) -> Result<Contents> {
        self.contents_by(&|file, bytes, offset| file.read_at(bytes, offset))
    }

    /// Its bytes, all that `read_at` can read.
    pub fn contents_by(&self, read_at: ReadAt<'_>) -> Result<Contents> {
        let metadata = self.file.metadata();
        let length = metadata.map_err(|error| Error::io("reading", error).at_path(&self.path))?.len();
        Ok(Contents::read(to_usize(length), |bytes, offset| read_at(&self.file, bytes, offset)))
    }
}

/// A file's bytes; zeros where they are unreadable.
#[derive(Debug, Default)]
pub struct Contents {
    bytes: Vec<u8>,
    /// In order, with something readable between any two that failed alike.
    pub unreadable: Vec<Unreadable>,
}

/// Bytes of a file that the operating system did not give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Where in the file, in whole pages.
    pub range: Range<u64>,
    /// What the operating system said.
    pub error: String,
}

impl Contents {
    /// Reads `length` bytes, or up to where the file ends by now.
    fn read(length: usize, read_at: impl Fn(&mut [u8], u64) -> io::Result<usize>) -> Contents {
        let mut contents = Contents::default();
        while contents.bytes.len() < length {
            let (start, end) = (contents.bytes.len(), length.min(contents.bytes.len() + PIECE_BYTES));
            contents.bytes.resize(end, 0);
            let filled = match fill(&mut contents.bytes[start..], start, &read_at) {
                Ok(filled) => filled,
                Err(_) => contents.read_pages(start, &read_at),
            };
            if start + filled < end {
                contents.bytes.truncate(start + filled);
                break;
            }
        }
        contents
    }

    /// Reads the bytes from `start` on page by page, past those that cannot be read; gives how many there are.
    fn read_pages(&mut self, start: usize, read_at: &impl Fn(&mut [u8], u64) -> io::Result<usize>) -> usize {
        let mut offset = start;
        while offset < self.bytes.len() {
            let end = self.bytes.len().min(offset + PAGE_BYTES);
            match fill(&mut self.bytes[offset..end], offset, read_at) {
                Ok(filled) if offset + filled < end => return offset + filled - start,
                Ok(_) => {}
                Err(error) => {
                    // A part of it may have come.
                    self.bytes[offset..end].fill(0);
                    self.note(offset as u64..end as u64, &error);
                }
            }
            offset = end;
        }
        offset - start
    }

    fn note(&mut self, range: Range<u64>, error: &io::Error) {
        let error = error.to_string();
        match self.unreadable.last_mut() {
            Some(last) if last.range.end == range.start && last.error == error => last.range.end = range.end,
            _ => self.unreadable.push(Unreadable { range, error }),
        }
    }
}

/// Reads until `bytes` are full or the file ends; gives how many there are.
fn fill(
    bytes: &mut [u8],
    offset: usize,
    read_at: &impl Fn(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match read_at(&mut bytes[filled..], (offset + filled) as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl Deref for Contents {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_while_free_and_while_in_use() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        fs::write(&path, b"content").expect("written");
        let free = ReadOnlyFile::open(&path).expect("opens");
        assert!(!free.is_in_use());
        assert_eq!(&*free.contents().expect("reads"), b"content");
        drop(free);
        let owner = File::open(&path).expect("opens");
        rustix::fs::flock(&owner, FlockOperation::NonBlockingLockExclusive).expect("nobody else holds it");
        let used = ReadOnlyFile::open(&path).expect("opens");
        assert!(used.is_in_use());
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

    /// Two pieces and a bit of ones, of which some pages cannot be read, in reads that are cut short and interrupted.
    #[test]
    fn what_cannot_be_read_is_told_page_by_page_and_the_rest_is_there() {
        const LENGTH: usize = 2 * PIECE_BYTES + 5000;
        let page = |number: usize| (number * PAGE_BYTES) as u64;
        let bad = [page(3)..page(5), page(255)..page(257), page(513)..LENGTH as u64];
        let interrupted = std::cell::Cell::new(false);
        let contents = Contents::read(LENGTH, |bytes, offset| {
            if !interrupted.replace(true) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if bad.iter().any(|bad| bad.contains(&offset)) {
                return Err(Errno::IO.into());
            }
            // As a disk does it: what stands before the bad page comes.
            let next =
                bad.iter().map(|bad| to_usize(bad.start.saturating_sub(offset))).filter(|&left| left > 0);
            let count = next.min().unwrap_or(bytes.len()).min(bytes.len());
            bytes[..count].fill(1);
            Ok(count)
        });
        let ranges: Vec<_> = contents.unreadable.iter().map(|unreadable| unreadable.range.clone()).collect();
        assert_eq!(ranges, bad);
        assert!(contents.unreadable[0].error.contains("os error 5"), "{:?}", contents.unreadable);
        assert_eq!(contents.len(), LENGTH);
        let is_bad = |offset: usize| bad.iter().any(|bad| bad.contains(&(offset as u64)));
        assert!((0..LENGTH).all(|offset| contents[offset] == u8::from(!is_bad(offset))));
    }

    #[test]
    fn a_file_that_is_cut_while_it_is_read_ends_where_it_ends() {
        for (end, bad) in [(0, None), (5000, None), (PIECE_BYTES, None), (5000, Some(0))] {
            let contents = Contents::read(3 * PIECE_BYTES, |bytes, offset| {
                let offset = to_usize(offset);
                if bad.is_some_and(|bad| (bad..bad + PAGE_BYTES).contains(&offset)) {
                    return Err(Errno::IO.into());
                }
                Ok(bytes.len().min(end.saturating_sub(offset)))
            });
            assert_eq!((contents.len(), contents.unreadable.len()), (end, usize::from(bad.is_some())));
        }
    }
}
