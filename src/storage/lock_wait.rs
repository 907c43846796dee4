//! Waiting for the lock of a file that somebody else has: on a thread of its own, for a while.
//!
//! A dead process's last requests hold its locks, and end by themselves; whoever else has one may keep it for ever, and must not keep
//! what waits for the file from being told so.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use rustix::io::Errno;

use super::direct::Buffered;
use super::syscalls::{failed, locked, try_lock};
use super::{File, Handle, Outcome};
use crate::error::{Error, ErrorKind, Result};

/// Between two tries, at first
const REST_MIN: Duration = Duration::from_millis(1);
/// and at last.
const REST_MAX: Duration = Duration::from_millis(100);
/// What takes no longer is in no log.
const UNTOLD: Duration = Duration::from_secs(1);

/// An open file whose lock is still to be had.
pub(super) struct LockWait {
    path: PathBuf,
    buffered: Option<Buffered>,
    descriptor: OwnedFd,
}

impl LockWait {
    pub(super) fn new(path: PathBuf, buffered: Option<Buffered>, descriptor: OwnedFd) -> LockWait {
        LockWait { path, buffered, descriptor }
    }

    /// Waits for the lock for so long, at most until `closing` has no sender any more.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] where somebody else has kept the lock all the while.
    pub(super) fn wait(self, patience: Duration, closing: &Receiver<Infallible>) -> Result<Outcome> {
        let (mut waited, mut rest) = (Duration::ZERO, REST_MIN);
        let mut is_told = false;
        while waited < patience {
            // A predecessor's last requests end soon; whoever else it is may not, and what waits is somebody's disk.
            if waited >= UNTOLD && !std::mem::replace(&mut is_told, true) {
                tracing::warn!(path = %self.path.display(), "another process has locked this file: waiting for its end");
            }
            match closing.recv_timeout(rest) {
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(ErrorKind::Shutdown, "nobody waits for the lock any more")
                        .at_path(&self.path));
                }
                Ok(nothing) => match nothing {},
            }
            match try_lock(self.descriptor.as_fd()) {
                Ok(()) => {
                    let file = File::new(self.path, self.buffered, Handle::Os(self.descriptor));
                    return Ok(Outcome::Opened(file));
                }
                Err(Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(failed("waiting for the lock", errno).at_path(&self.path)),
            }
            waited += rest;
            rest = (rest * 2).min(REST_MAX);
        }
        Err(locked(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File as Held;

    use crossbeam::channel::bounded;
    use rustix::fs::{FlockOperation, flock};

    use super::*;
    use crate::storage::LOCK_PATIENCE;

    /// A file that somebody else has locked, and who waits for it.
    fn locked_file() -> (tempfile::TempDir, Held, LockWait) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        let held = Held::create(&path).expect("a file");
        flock(&held, FlockOperation::LockExclusive).expect("nobody else has it");
        let descriptor = OwnedFd::from(Held::open(&path).expect("the file"));
        (directory, held, LockWait::new(path, None, descriptor))
    }

    #[test]
    fn a_lock_is_given_up_while_somebody_keeps_it_and_had_once_it_is_let_go() {
        let (_open, closing) = bounded(0);
        let (_directory, _held, wait) = locked_file();
        let error = wait.wait(5 * REST_MIN, &closing).expect_err("it is kept");
        assert_eq!(error.kind(), ErrorKind::Locked);
        let (_directory, held, wait) = locked_file();
        drop(held);
        assert!(matches!(wait.wait(LOCK_PATIENCE, &closing), Ok(Outcome::Opened(_))));
    }

    #[test]
    fn nobody_waits_once_the_pool_goes() {
        let (open, closing) = bounded(0);
        let (_directory, _held, wait) = locked_file();
        drop(open);
        assert_eq!(wait.wait(LOCK_PATIENCE, &closing).expect_err("it goes").kind(), ErrorKind::Shutdown);
    }
}
