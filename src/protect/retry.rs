//! Work that failed and is tried again after a while: destaging, a new journal segment, a point's publication. Each has
//! its own, so that one that is due does not wake another that is not.
//!
//! It also keeps what `status` says while the work has not succeeded: between two attempts, and during one, a group that
//! waits for space goes on saying so.

use std::time::Duration;

use crate::error::ErrorKind;
use crate::protect::group::nanos;
use crate::units::MonotonicNanos;

/// How long work that failed waits before it is tried again.
pub(super) const RETRY_DELAY: Duration = Duration::from_secs(1);

/// When some work is tried again, and why it must be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Retry {
    at: Option<MonotonicNanos>,
    failed: Option<ErrorKind>,
}

impl Retry {
    /// An attempt failed.
    pub(super) fn failed(&mut self, now: MonotonicNanos, kind: ErrorKind) {
        *self = Retry { at: Some(MonotonicNanos(now.0 + nanos(RETRY_DELAY))), failed: Some(kind) };
    }

    /// An attempt succeeded, or nothing is left to do.
    pub(super) fn succeeded(&mut self) {
        *self = Retry::default();
    }

    /// Whether an attempt may be made; if so, its time has come and is forgotten.
    pub(super) fn take_turn(&mut self, now: MonotonicNanos) -> bool {
        let due = self.at.is_none_or(|at| at <= now);
        if due {
            self.at = None;
        }
        due
    }

    /// When the next attempt is due, if one waits for its time.
    pub(super) fn at(&self) -> Option<MonotonicNanos> {
        self.at
    }

    /// Whether the last attempt found no space.
    pub(super) fn wants_space(&self) -> bool {
        self.failed == Some(ErrorKind::NoSpace)
    }

    /// Whether the last attempt failed, whatever it was.
    pub(super) fn is_failing(&self) -> bool {
        self.failed.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_outlasts_the_wait_and_ends_with_success() {
        let mut retry = Retry::default();
        let begin = MonotonicNanos(5);
        assert!(retry.take_turn(begin) && !retry.wants_space());
        retry.failed(begin, ErrorKind::NoSpace);
        let due = retry.at().expect("an attempt waits");
        assert!(!retry.take_turn(MonotonicNanos(due.0 - 1)));
        assert!(retry.take_turn(due) && retry.at().is_none());
        assert!(retry.wants_space(), "the attempt under way has not succeeded yet");
        retry.failed(due, ErrorKind::Io);
        assert!(!retry.wants_space(), "the newest reason counts");
        retry.succeeded();
        assert!(retry.take_turn(begin) && !retry.wants_space());
    }
}
