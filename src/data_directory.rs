//! The data directory and its lock: whoever holds a [`DataDirectory`] is the only living gateway on it.
//!
//! The lock is flock(2) on `DATA_DIR/lock`; it ends with the process however that ends, so a lock file that lies
//! there says nothing. Journal segments and images carry their own locks besides, on the descriptors of their I/O.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::units::GroupId;

const LOCK: &str = "lock";
const KEYS: &str = "keys";
const CATALOGUE: &str = "catalogue.sqlite";
const TOKENS: &str = "tokens.json";
const GROUPS: &str = "groups";
const VAULT: &str = "vault";
/// What a killed gateway's requests are given to land before its successor takes it for a living one.
const OWNER_ENDS_WITHIN: Duration = Duration::from_secs(2);
/// What a first start needs, about: lock, key, directories.
const FIRST_BYTES: usize = 64 << 10;
/// Made and removed at once, to see whether a directory takes files.
const PROBE: &str = ".afterimage-probe";

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
        catalogue(&self.path)
    }

    /// Who may ask over TCP.
    pub fn tokens(&self) -> PathBuf {
        self.path.join(TOKENS)
    }

    /// Where the groups' journals, images and overlays are.
    pub fn groups(&self) -> PathBuf {
        groups(&self.path)
    }

    /// A group's journal, images and overlays.
    pub fn group(&self, group: GroupId) -> PathBuf {
        self.groups().join(group.to_string())
    }

    /// The local vault.
    pub fn vault(&self) -> PathBuf {
        vault(&self.path)
    }
}

/// Where the groups' journals, images and overlays are in a data directory.
pub fn groups(data_dir: &Path) -> PathBuf {
    data_dir.join(GROUPS)
}

/// Where the local vault is in a data directory.
pub fn vault(data_dir: &Path) -> PathBuf {
    data_dir.join(VAULT)
}

/// Where a data directory's keys are unless the configuration names another place; made when it is needed.
pub fn keys(data_dir: &Path) -> PathBuf {
    data_dir.join(KEYS)
}

/// The name in the data directory, a file's or a directory's, that the gateway uses itself and that `path` is or is in.
/// Compares text: both paths must have the same form ([`normalised`]).
pub fn own_name(data_dir: &Path, path: &Path) -> Option<String> {
    let inside = path.strip_prefix(data_dir).ok()?;
    let name = inside.components().next()?.as_os_str().to_str()?;
    // SQLite keeps files of its own beside the catalogue.
    let is_own = [LOCK, KEYS, GROUPS, VAULT, PROBE].contains(&name)
        || name.starts_with(CATALOGUE)
        || name.starts_with(TOKENS);
    is_own.then(|| name.to_owned())
}

/// A path by which no other spelling passes for another file: what exists of its directory without links, `.` and `..`.
/// The name itself is not followed.
pub fn normalised(path: &Path) -> PathBuf {
    let mut above = path.ancestors().skip(1);
    let found = above
        .find_map(|directory| Some((directory.canonicalize().ok()?, path.strip_prefix(directory).ok()?)));
    found.map_or_else(|| path.to_owned(), |(directory, rest)| directory.join(rest))
}

/// What keeps a directory from becoming ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Nothing has that name.
    Missing,
    /// Something else than a directory has that name.
    NotADirectory,
    /// We may not create files there (permissions or a read-only file system).
    Unwritable(Errno),
    /// Nobody can create files there: it belongs to a file system like `/proc`.
    TakesNoFiles(Errno),
    /// There is no space for what has to be made in it.
    Full(Errno),
    /// Another living process holds its lock.
    InUse,
}

/// Looks for an obstacle in a directory, or in those that we make in it, and says where it is; leaves nothing behind.
pub fn obstacle(path: &Path) -> Option<(PathBuf, Obstacle)> {
    let own = writable_directory(path).or_else(|| match is_in_use(path) {
        Some(true) => stays_in_use(path).then_some(Obstacle::InUse),
        Some(false) => None,
        // It never was anybody's: a lock and more must be made.
        None if holds_groups(path) => takes_no_files(path),
        None => takes_no_files(path).or_else(|| lacks_room(path)),
    });
    let own = own.map(|obstacle| (path.to_owned(), obstacle));
    own.or_else(|| {
        let inner = [path.join(GROUPS), path.join(VAULT), keys(path)];
        inner.into_iter().find_map(|inner| made_directory(&inner).map(|obstacle| (inner, obstacle)))
    })
}

/// Whether a living process holds a data directory's lock; nothing if there is none.
pub fn is_in_use(path: &Path) -> Option<bool> {
    let lock = File::open(lock_path(path)).ok()?;
    // Shared: two that only look don't take each other for an owner.
    let free = try_lock(&lock, FlockOperation::NonBlockingLockShared);
    Some(matches!(free, Ok(false)))
}

/// Whether it is still somebody's in a moment: a gateway that was killed owns it until the last of its requests has landed.
fn stays_in_use(path: &Path) -> bool {
    let Ok(lock) = File::open(lock_path(path)) else { return false };
    let (tell, told) = mpsc::channel();
    // Whoever waits for longer ends with this process, which has nothing else to do then.
    std::thread::spawn(move || {
        let is_free = rustix::fs::flock(&lock, FlockOperation::LockShared).is_ok();
        drop(lock);
        // Nobody listens any more if it took too long.
        let _ = tell.send(is_free);
    });
    told.recv_timeout(OWNER_ENDS_WITHIN) != Ok(true)
}

/// The catalogue of a data directory.
pub fn catalogue(path: &Path) -> PathBuf {
    path.join(CATALOGUE)
}

/// What keeps a directory from being used that is made if it is missing.
fn made_directory(path: &Path) -> Option<Obstacle> {
    match writable_directory(path)? {
        // A link to nothing has the name all the same.
        Obstacle::Missing => path.symlink_metadata().is_ok().then_some(Obstacle::NotADirectory),
        obstacle => Some(obstacle),
    }
}

/// Whether groups may be there: then there is something to serve, also where no space is left.
pub fn holds_groups(data_dir: &Path) -> bool {
    let has_entries = |name: &&str| {
        std::fs::read_dir(data_dir.join(name)).is_ok_and(|mut entries| entries.next().is_some())
    };
    [GROUPS, VAULT].iter().any(has_entries)
}

/// Whether a directory that takes files has no space for what a first start makes; leaves nothing behind.
pub fn lacks_room(path: &Path) -> Option<Obstacle> {
    let written = unnamed_file(path).and_then(|mut file| file.write_all(&[1; FIRST_BYTES]));
    let errno = Errno::from_io_error(&written.err()?)?;
    // Whatever else fails, or is not known there, is said by whoever makes the files.
    matches!(errno, Errno::NOSPC | Errno::DQUOT).then_some(Obstacle::Full(errno))
}

/// A file that is there while it is open: one without a name where there is such, else one whose name is removed at once.
fn unnamed_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
        return Ok(File::from(file));
    }
    let probe = path.join(PROBE);
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&probe)?;
    std::fs::remove_file(&probe)?;
    Ok(file)
}

/// Whether a directory that we may write to takes no files all the same. A full file system is no obstacle: what is there can
/// be served.
fn takes_no_files(path: &Path) -> Option<Obstacle> {
    let error = unnamed_file(path).err()?;
    match error.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => None,
        _ => Some(Obstacle::TakesNoFiles(Errno::from_io_error(&error).unwrap_or(Errno::IO))),
    }
}

fn unwritable(error: &io::Error) -> Obstacle {
    Obstacle::Unwritable(Errno::from_io_error(error).unwrap_or(Errno::IO))
}

/// Whether files can be created in a directory, as the effective user; creates none.
pub fn writable_directory(path: &Path) -> Option<Obstacle> {
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(Obstacle::Missing),
        Err(error) => return Some(unwritable(&error)),
        Ok(metadata) if !metadata.is_dir() => return Some(Obstacle::NotADirectory),
        Ok(_) => {}
    }
    rustix::fs::accessat(CWD, path, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .err()
        .map(Obstacle::Unwritable)
}

fn lock_path(directory: &Path) -> PathBuf {
    directory.join(LOCK)
}

fn try_lock(file: &File, operation: FlockOperation) -> io::Result<bool> {
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn in_use(path: &Path) -> Error {
    Error::new(ErrorKind::Locked, "data directory in use by another gateway").at_path(path)
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
        assert_eq!(obstacle(directory.path()), Some((directory.path().to_owned(), Obstacle::InUse)));
        assert_eq!(DataDirectory::acquire(directory.path()).unwrap_err().kind(), ErrorKind::Locked);
        drop(owner);
        // Which waits: a child of another test has the descriptor, and with it the lock, until it executes its program.
        assert_eq!(obstacle(directory.path()), None);
    }

    #[test]
    fn an_owner_that_is_about_to_end_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let owner = DataDirectory::acquire(directory.path()).unwrap();
        let path = directory.path().to_owned();
        let looking = std::thread::spawn(move || obstacle(&path));
        drop(owner);
        assert_eq!(looking.join().unwrap(), None);
    }

    #[test]
    fn obstacles_have_names() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(obstacle(&file), Some((file, Obstacle::NotADirectory)));
        let none = directory.path().join("none");
        assert_eq!(obstacle(&none), Some((none, Obstacle::Missing)));
        let dangling = directory.path().join(VAULT);
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        assert_eq!(obstacle(directory.path()), Some((dangling, Obstacle::NotADirectory)));
    }

    #[test]
    fn own_names_are_known_by_any_path() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let data_dir = root.join("data");
        std::fs::create_dir_all(data_dir.join(VAULT)).unwrap();
        let own = |name: &str| own_name(&data_dir, &normalised(&root.join(name)));
        for name in ["lock", "keys", "catalogue.sqlite", "catalogue.sqlite-wal", "tokens.json"] {
            assert_eq!(own(&format!("data/{name}")).as_deref(), Some(name));
            assert_eq!(own(&format!("data/vault/../{name}")).as_deref(), Some(name));
        }
        assert_eq!(own("data/vault/nbd.sock").as_deref(), Some(VAULT));
        assert_eq!(own("data/vault/../groups/nbd.sock").as_deref(), Some(GROUPS), "not made yet");
        for name in ["data/nbd.sock", "lock", "data/../lock"] {
            assert_eq!(own(name), None, "{name}");
        }
    }

    #[test]
    fn who_asks_whether_files_are_taken_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let before = directory.path().metadata().unwrap().modified().unwrap();
        assert_eq!(takes_no_files(directory.path()), None);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert_eq!(directory.path().metadata().unwrap().modified().unwrap(), before);
        assert!(matches!(takes_no_files(Path::new("/proc")), Some(Obstacle::TakesNoFiles(_))));
    }
}
