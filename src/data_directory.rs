//! The data directory and its lock: whoever holds a [`DataDirectory`] is the only living gateway on it.
//!
//! The lock is flock(2) on `DATA_DIR/lock`; it ends with the process however that ends, so a lock file that lies
//! there says nothing. Journal segments and images carry their own locks besides, on the descriptors of their I/O.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FlockOperation};

use crate::error::{Error, ErrorKind, Result};
use crate::units::GroupId;

/// A directory that this process owns until the value is dropped.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    _lock: File,
}

impl DataDirectory {
    /// Takes the lock of an existing directory, creating its `lock` file; `Latched` if another process holds it.
    pub fn acquire(path: &Path) -> Result<DataDirectory> {
        let lock_path = lock_path(path);
        let lock =
            OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&lock_path)
                .map_err(|error| Error::io("opening the data directory's lock", error).at_path(&lock_path))?;
        if !try_lock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| Error::io("locking the data directory", error).at_path(&lock_path))?
        {
            return Err(in_use(path));
        }
        Ok(DataDirectory { path: path.to_owned(), _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The catalogue, a cache that may be deleted.
    pub fn catalogue(&self) -> PathBuf {
        self.path.join("catalogue.sqlite")
    }

    /// Where the groups' journals, images and overlays are.
    pub fn groups(&self) -> PathBuf {
        self.path.join("groups")
    }

    /// A group's journal, images and overlays.
    pub fn group(&self, group: GroupId) -> PathBuf {
        self.groups().join(group.to_string())
    }

    /// The local vault.
    pub fn vault(&self) -> PathBuf {
        self.path.join("vault")
    }
}

/// Where a data directory's keys are unless the configuration names another place; made when it is needed.
pub fn keys(data_dir: &Path) -> PathBuf {
    data_dir.join("keys")
}

/// What keeps a directory from becoming ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Nothing has that name.
    Missing,
    /// Something else than a directory has that name.
    NotADirectory,
    /// We may not create files there (permissions or a read-only file system).
    Unwritable(rustix::io::Errno),
    /// Another living process holds its lock.
    InUse,
}

/// Looks for an obstacle without touching anything.
pub fn obstacle(path: &Path) -> Option<Obstacle> {
    writable_directory(path).or_else(|| {
        let lock = File::open(lock_path(path)).ok()?;
        // Shared: two that only look don't take each other for an owner.
        let free = try_lock(&lock, FlockOperation::NonBlockingLockShared);
        matches!(free, Ok(false)).then_some(Obstacle::InUse)
    })
}

/// Whether files can be created in a directory, as the effective user; creates none.
pub fn writable_directory(path: &Path) -> Option<Obstacle> {
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(Obstacle::Missing),
        Err(error) => {
            return Some(Obstacle::Unwritable(
                rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
            ));
        }
        Ok(metadata) if !metadata.is_dir() => return Some(Obstacle::NotADirectory),
        Ok(_) => {}
    }
    rustix::fs::accessat(CWD, path, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .err()
        .map(Obstacle::Unwritable)
}

fn lock_path(directory: &Path) -> PathBuf {
    directory.join("lock")
}

fn try_lock(file: &File, operation: FlockOperation) -> io::Result<bool> {
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn in_use(path: &Path) -> Error {
    Error::new(ErrorKind::Latched, "data directory in use by another gateway").at_path(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(obstacle(directory.path()), None);
        assert!(!directory.path().join("lock").exists(), "looking creates nothing");
        let owner = DataDirectory::acquire(directory.path()).unwrap();
        assert_eq!(obstacle(directory.path()), Some(Obstacle::InUse));
        assert_eq!(DataDirectory::acquire(directory.path()).unwrap_err().kind(), ErrorKind::Latched);
        drop(owner);
        assert_eq!(obstacle(directory.path()), None);
        DataDirectory::acquire(directory.path()).expect("the last owner is gone");
    }

    #[test]
    fn obstacles_have_names() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(obstacle(&file), Some(Obstacle::NotADirectory));
        assert_eq!(obstacle(&directory.path().join("none")), Some(Obstacle::Missing));
    }
}
