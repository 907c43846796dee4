//! The crate's error: a kind (what to do about it), a context (what was being done, to which file, where), and
//! the source (why).
//!
//! Kinds are few, and two kinds never ask for the same action. What only our own bug can cause is an `assert!`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::storage::size_limit;

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A device or file system refused an operation: latch what depends on it, tell a person.
    Io,
    /// There is no room: push back and tell a person; not a fault.
    NoSpace,
    /// Stored bytes are not what was stored: stop, name file and offset, offer another copy.
    Corrupt,
    /// Written by a newer version, or needs a feature that is not here.
    Unsupported,
    /// Sealed under a key that is not here: import it.
    NoKey,
    /// A peer or client broke a protocol.
    Protocol,
    /// The name is taken: whoever created it first owns it.
    AlreadyExists,
    /// Nothing has that name.
    NotFound,
    /// The caller asked for what cannot be: mend the request.
    Invalid,
    /// The caller may not ask for it: ask as somebody else.
    Denied,
    /// A superseding timeline exists: stop acknowledging.
    Fenced,
    /// An earlier error latched this group or disk.
    Latched,
    /// Another living process has locked a file of ours: end it, and try again.
    Locked,
    /// The process is stopping, or the object was removed.
    Shutdown,
}

/// An error with its kind, its context and its source.
#[derive(Debug)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    context: String,
    path: Option<PathBuf>,
    offset: Option<u64>,
    source: Option<io::Error>,
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind`; `context` is one sentence without a full stop that says what went wrong.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Error {
        let inner = Inner { kind, context: context.into(), path: None, offset: None, source: None };
        Error { inner: Box::new(inner) }
    }

    /// An operating-system error; the kind follows from it (no space, exists, not found, or I/O). That no more files can be opened is
    /// no fault of a file: it passes, and is tried again as on a full file system.
    pub fn io(context: impl Into<String>, source: io::Error) -> Error {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                ErrorKind::NoSpace
            }
            _ if lacks_descriptors(&source) => ErrorKind::NoSpace,
            io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        let mut context = context.into();
        if lacks_descriptors(&source) {
            context += ": raise the limit on open files (LimitNOFILE=, ulimit -Hn)";
        }
        if source.kind() == io::ErrorKind::FileTooLarge && size_limit::bytes().is_some() {
            context += ": raise the limit on the length of files (LimitFSIZE=, ulimit -f)";
        }
        let mut error = Error::new(kind, context);
        error.inner.source = Some(source);
        error
    }

    /// Stored bytes that are not what was stored.
    pub fn corrupt(context: impl Into<String>) -> Error {
        Error::new(ErrorKind::Corrupt, context)
    }

    /// A file in a version of its format that this program does not know; `known` says which it does.
    pub fn unknown_version(what: &str, found: impl fmt::Display, known: impl fmt::Display) -> Error {
        let text = format!(
            "{what} has format version {found}, and this program reads {known}: start the program that wrote it, or a later one"
        );
        Error::new(ErrorKind::Unsupported, text)
    }

    /// A request that cannot be; the text says how to mend it.
    pub fn invalid(context: impl Into<String>) -> Error {
        Error::new(ErrorKind::Invalid, context)
    }

    /// Adds the file concerned, unless one is named already.
    #[must_use]
    pub fn at_path(mut self, path: &Path) -> Error {
        self.inner.path.get_or_insert_with(|| path.to_owned());
        self
    }

    /// Adds the byte offset concerned, unless one is named already.
    #[must_use]
    pub fn at_offset(mut self, offset: u64) -> Error {
        self.inner.offset.get_or_insert(offset);
        self
    }

    /// The same error, which asks for something else from now on.
    #[must_use]
    pub fn as_kind(mut self, kind: ErrorKind) -> Error {
        self.inner.kind = kind;
        self
    }

    /// The same error, met in doing something larger, of which `context` says what is to be said.
    #[must_use]
    pub fn within(mut self, context: &str) -> Error {
        self.inner.context = format!("{context}: {}", self.inner.context);
        self
    }

    /// What went wrong, without file and offset: for whoever says those themselves.
    pub fn without_place(&self) -> String {
        match &self.inner.source {
            Some(source) => format!("{}: {source}", self.inner.context),
            None => self.inner.context.clone(),
        }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// What the operating system said, where it was asked.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        self.inner.source.as_ref().map(io::Error::kind)
    }

    /// Whether what is missing is a descriptor, not room on a file system.
    pub fn lacks_descriptors(&self) -> bool {
        self.inner.source.as_ref().is_some_and(lacks_descriptors)
    }

    /// The file concerned, where one is known.
    pub fn path(&self) -> Option<&Path> {
        self.inner.path.as_deref()
    }

    /// The byte offset concerned, where one is known.
    pub fn offset(&self) -> Option<u64> {
        self.inner.offset
    }
}

/// Whether this process, or the system, has as many files open as it may.
fn lacks_descriptors(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(Errno::MFILE.raw_os_error()) || code == Some(Errno::NFILE.raw_os_error())
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.context)?;
        if let Some(path) = &self.inner.path {
            write!(f, " ({}", path.display())?;
            if let Some(offset) = self.inner.offset {
                write!(f, " at byte {offset}")?;
            }
            f.write_str(")")?;
        } else if let Some(offset) = self.inner.offset {
            write!(f, " (at byte {offset})")?;
        }
        if let Some(source) = &self.inner.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_ref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

/// Whether an error says something of a file that was read, not of who reads it.
pub fn is_of_the_file(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Io | ErrorKind::NoKey | ErrorKind::Unsupported
    )
}
