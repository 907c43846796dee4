//! The storage seam: everything that Afterimage reads or writes on the data path goes through [`Storage`].
//!
//! Operations are submitted with a token and own their buffers; completions come back in any order, and only when
//! the owner reaps them. Three back ends keep the same contract under one conformance suite: io_uring
//! ([`uring`]), blocking threads ([`blocking`]) and, behind the `sim` feature, a simulated disk ([`sim`]) that
//! does what real disks do at a power cut.
//!
//! # Contract
//!
//! - An operation may complete in any order relative to others in flight. Whoever needs an order waits.
//! - A read fills its whole buffer or fails; reading past the end of the file is an error of kind `Corrupt`, never
//!   zeros.
//! - A write that completed is seen by every later read and survives the death of this process. Only
//!   [`Op::Sync`] makes it survive the death of the machine, and a sync covers exactly the writes to *its* file
//!   that had **completed when the sync was submitted**.
//! - After a sync that failed, reads may go on showing writes that no later sync makes durable. [`Op::Evict`] ends that.
//! - A name (create, publish, rename, remove) survives the death of the machine once an [`Op::SyncDirectory`] that
//!   was submitted after it on the directory that holds it has completed.
//! - Offsets, lengths and buffers are multiples of 512 bytes for a file that was opened `direct`; others take any.
//! - Dropping a back end waits for what is in flight, or leaks it: the kernel never writes into freed memory.

pub mod blocking;
mod buffer;
mod choose;
pub mod direct;
mod extents;
pub mod heap;
mod lock_wait;
pub mod read_only;
mod receive;
#[cfg(feature = "sim")]
pub mod sim;
pub mod size_limit;
mod slab;
mod syscalls;
pub mod uring;

use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use buffer::{Buffer, Slice};
pub use choose::{BackendOptions, Chosen, Preference, open_best};
pub use direct::Buffered;
pub use receive::receive;

use extents::Unsent;

use crate::error::{Error, Result};
use crate::units::SECTOR_BYTES;

/// Names a submitted operation to whoever submitted it; unique among those in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Which implementation really runs behind the seam.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// io_uring.
    Uring,
    /// pread, pwrite and fdatasync on a few threads.
    Blocking,
    /// The simulator's disk.
    Simulated,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Uring => "io_uring",
            Backend::Blocking => "blocking",
            Backend::Simulated => "simulated",
        })
    }
}

/// Whether a file is opened to read or to write as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// What opening does about a file that is or is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// The file must exist (else `NotFound`).
    Existing,
    /// The file must not exist (else `AlreadyExists`); it is created empty.
    New,
    /// Either.
    IfMissing,
}

/// How long requests of a process that died may go on landing, and hold its locks: whoever has one longer is alive.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// What `mkfs` makes where a file system begins: nobody's file, where a directory of ours is one of its own.
pub(crate) const FILE_SYSTEMS_OWN: &str = "lost+found";

/// What opening does about the exclusive advisory lock (flock) of the open file description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// No lock.
    None,
    /// Takes the lock or fails with `Locked`: another living process owns the file.
    Try,
    /// Waits for the lock: a dead process's requests in flight still hold it, and must land first. Where somebody keeps it for longer than
    /// [`LOCK_PATIENCE`], it fails as well; but not in the simulator, whose storage has no clock.
    Wait,
}

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Reading or writing.
    pub access: Access,
    /// Existing or new.
    pub create: Create,
    /// Whether to take the exclusive lock.
    pub lock: Lock,
    /// Whether to bypass the page cache. Where O_DIRECT is refused, or takes no sectors of 512 bytes, the file is opened
    /// buffered, and [`File::buffered`] says why.
    pub direct: bool,
}

impl OpenOptions {
    /// An existing file, to read, through the page cache, without a lock.
    pub const READ: OpenOptions =
        OpenOptions { access: Access::ReadOnly, create: Create::Existing, lock: Lock::None, direct: false };
    /// A new file, to write, through the page cache, without a lock.
    pub const CREATE: OpenOptions =
        OpenOptions { access: Access::ReadWrite, create: Create::New, lock: Lock::None, direct: false };
    /// An existing file of the data path: O_DIRECT, and exclusively ours once earlier owners' requests landed.
    pub const OWNED: OpenOptions =
        OpenOptions { access: Access::ReadWrite, create: Create::Existing, lock: Lock::Wait, direct: true };
}

/// An open file; clones share one open file description, which closes (and unlocks) with the last of them and the
/// last operation in flight.
#[derive(Clone, Debug)]
pub struct File(Arc<FileInner>);

#[derive(Debug)]
struct FileInner {
    path: PathBuf,
    published_as: OnceLock<PathBuf>,
    buffered: Option<Buffered>,
    /// Where the file system gives back whole extents only.
    unsent: Option<Unsent>,
    handle: Handle,
}

#[derive(Debug)]
enum Handle {
    Os(OwnedFd),
    #[cfg(feature = "sim")]
    Sim(sim::OpenDescription),
}

impl File {
    /// The same for clones, and for no other open file.
    pub fn identity(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    fn new(path: PathBuf, buffered: Option<Buffered>, handle: Handle) -> File {
        let keeps_extents = match &handle {
            Handle::Os(descriptor) => buffered.is_some() && extents::are_kept_whole(descriptor),
            #[cfg(feature = "sim")]
            Handle::Sim(_) => false,
        };
        let unsent = keeps_extents.then(Unsent::default);
        File(Arc::new(FileInner { path, published_as: OnceLock::new(), buffered, unsent, handle }))
    }

    /// What is to be told of each write, if anything.
    fn unsent(&self) -> Option<&Unsent> {
        self.0.unsent.as_ref()
    }

    /// The path that it was opened by, or has been published as since; for messages.
    pub fn path(&self) -> &Path {
        self.0.published_as.get().unwrap_or(&self.0.path)
    }

    /// Notes the name that the file got by [`Op::Publish`].
    pub fn note_published(&self, path: &Path) {
        // A file is published once; whoever notes it again says the same.
        let _ = self.0.published_as.set(path.to_owned());
    }

    /// Whether it really bypasses the page cache.
    pub fn is_direct(&self) -> bool {
        self.0.buffered.is_none()
    }

    /// Why it goes through the page cache, if it does.
    pub fn buffered(&self) -> Option<Buffered> {
        self.0.buffered
    }

    /// The descriptor behind a file of an operating-system back end.
    ///
    /// # Panics
    /// If the file was opened by the simulated disk: only our own bug mixes back ends.
    fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.0.handle {
            Handle::Os(descriptor) => descriptor.as_fd(),
            #[cfg(feature = "sim")]
            Handle::Sim(_) => panic!("{} was opened by the simulated disk", self.path().display()),
        }
    }

    /// Refuses I/O that O_DIRECT cannot take. Each back end asks here before it starts anything, so that code which
    /// passes on one of them passes on all.
    fn check_alignment(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let bits = offset | bytes.len() as u64 | bytes.as_ptr().addr() as u64;
        if !self.is_direct() || bits.is_multiple_of(SECTOR_BYTES) {
            return Ok(());
        }
        // No address in the text: it would differ between two runs of one seed.
        let context = format!(
            "direct I/O needs offset, length and memory in multiples of {SECTOR_BYTES} bytes, not {} bytes of memory that lies {} past one",
            bytes.len(),
            bytes.as_ptr().addr() as u64 % SECTOR_BYTES
        );
        Err(Error::invalid(context).at_path(self.path()).at_offset(offset))
    }
}

/// One operation; it owns its buffers until it completes.
#[derive(Debug)]
pub enum Op {
    /// Opens a file. → [`Outcome::Opened`]
    Open {
        /// The file.
        path: PathBuf,
        /// How.
        options: OpenOptions,
    },
    /// Fills `buffer` from `offset`. → [`Outcome::Read`]
    Read {
        /// The file.
        file: File,
        /// Byte offset in the file.
        offset: u64,
        /// Filled whole.
        buffer: Buffer,
    },
    /// Writes `data` whole at `offset`. → [`Outcome::Done`]
    Write {
        /// The file.
        file: File,
        /// Byte offset in the file.
        offset: u64,
        /// What to write.
        data: Slice,
    },
    /// Makes the writes that completed before this was submitted survive a power cut. → [`Outcome::Done`]
    Sync {
        /// The file.
        file: File,
    },
    /// Gives up what the page cache remembers of a file and does not still have to write, so that later reads show
    /// what the device holds: after a failed sync the two differ. A file that bypasses the page cache has nothing to
    /// give up. → [`Outcome::Done`]
    Evict {
        /// The file.
        file: File,
    },
    /// Makes a range read as zeros. → [`Outcome::Done`]
    Zero {
        /// The file.
        file: File,
        /// The bytes concerned; what lies past the end of the file stays outside it.
        range: Range<u64>,
        /// Keeps the space allocated; otherwise it is given back where the file system can.
        keep_allocated: bool,
    },
    /// Sets a file's length; what is added reads as zeros. → [`Outcome::Done`]
    SetLength {
        /// The file.
        file: File,
        /// The new length in bytes.
        length: u64,
    },
    /// Tells a file's length. → [`Outcome::Length`]
    Length {
        /// The file.
        file: File,
    },
    /// Tells which parts of a range hold data; the rest are holes, which read as zeros. A file system that cannot
    /// tell answers with the whole range. → [`Outcome::Ranges`]
    DataRanges {
        /// The file.
        file: File,
        /// The bytes concerned.
        range: Range<u64>,
    },
    /// Gives the file `from` the name `to` if nothing has it, and takes its name `from` away: put-if-absent
    /// (else `AlreadyExists`, and `from` stays). → [`Outcome::Done`]
    Publish {
        /// The temporary name.
        from: PathBuf,
        /// The final name, in the same file system.
        to: PathBuf,
    },
    /// Removes a file. → [`Outcome::Done`]
    Remove {
        /// The file.
        path: PathBuf,
    },
    /// Removes an empty directory. → [`Outcome::Done`]
    RemoveDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// Creates a directory and its missing parents; one that exists is fine. → [`Outcome::Done`]
    CreateDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// Lists a directory's names, sorted, without `lost+found`. → [`Outcome::Names`]
    List {
        /// The directory.
        path: PathBuf,
    },
    /// Makes names in a directory survive a power cut. → [`Outcome::Done`]
    SyncDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// Tells how full the file system of a directory is. → [`Outcome::Space`]
    Space {
        /// The directory.
        path: PathBuf,
    },
}

/// How full a file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that may still be written.
    pub free: u64,
    /// Bytes that it holds in all.
    pub total: u64,
    /// Which one it is: the same number for all that is in it.
    pub device: u64,
}

/// What a successful operation gives back.
#[derive(Debug)]
pub enum Outcome {
    /// The opened file.
    Opened(File),
    /// The filled buffer.
    Read(Buffer),
    /// Nothing to tell.
    Done,
    /// A length in bytes.
    Length(u64),
    /// Byte ranges that hold data: sorted, disjoint, within what was asked.
    Ranges(Vec<Range<u64>>),
    /// Names, sorted.
    Names(Vec<String>),
    /// How full a file system is.
    Space(Space),
}

impl Outcome {
    /// What a read filled.
    ///
    /// # Panics
    /// If the operation was no read.
    pub fn into_buffer(self) -> Buffer {
        match self {
            Outcome::Read(buffer) => buffer,
            other => unreachable!("a read gives a buffer, not {other:?}"),
        }
    }
}

/// A finished operation.
#[derive(Debug)]
pub struct Completion {
    /// The token that it was submitted with.
    pub token: Token,
    /// How it went; errors name the path and, where there is one, the offset.
    pub result: Result<Outcome>,
}

/// A back end; owned and called by one thread.
pub trait Storage {
    /// Which implementation this is.
    fn backend(&self) -> Backend;

    /// Accepts an operation; never waits for it. It starts at the latest at the next [`Storage::start`].
    fn submit(&self, token: Token, op: Op);

    /// Hands what was accepted to the device in one go.
    fn start(&self);

    /// Moves what has completed to `completions`, without waiting.
    fn reap(&self, completions: &mut Vec<Completion>);

    /// Waits until something has completed, or nothing is in flight.
    fn wait(&self);

    /// Becomes readable when something may have completed; `None` where only [`Storage::wait`] can tell.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;
}
