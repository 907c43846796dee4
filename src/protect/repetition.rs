//! A failure that comes again with every attempt, once a second perhaps, for as long as its cause stays: it is logged when it
//! begins or changes, and then once a minute, with how often it came.

use std::time::Duration;

use crate::error::ErrorKind;
use crate::protect::group::nanos;
use crate::units::MonotonicNanos;

/// How often a failure that goes on is logged again.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What was logged of a failure, and how often it came since.
#[derive(Clone, Copy, Debug, Default)]
pub struct Repetition {
    told: Option<(ErrorKind, MonotonicNanos)>,
    untold: u64,
}

impl Repetition {
    /// The work failed: how often it did since that was logged last, if it is to be logged now.
    #[must_use]
    pub fn failed(&mut self, now: MonotonicNanos, kind: ErrorKind) -> Option<u64> {
        self.untold += 1;
        let goes_on =
            |(told, at): (ErrorKind, MonotonicNanos)| told == kind && now.0 < at.0 + nanos(TELL_EVERY);
        if self.told.is_some_and(goes_on) {
            return None;
        }
        self.told = Some((kind, now));
        Some(std::mem::take(&mut self.untold))
    }

    /// The work succeeded: whether that is to be logged, since its failure was.
    pub fn succeeded(&mut self) -> bool {
        std::mem::take(self).told.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_told_once_a_minute_with_a_count_and_a_change_at_once() {
        let mut repetition = Repetition::default();
        let mut told = Vec::new();
        for second in 0..130 {
            let kind = if second == 100 { ErrorKind::Io } else { ErrorKind::NoSpace };
            let times = repetition.failed(MonotonicNanos(second * 1_000_000_000), kind);
            told.extend(times.map(|times| (second, times)));
        }
        assert_eq!(told, [(0, 1), (60, 60), (100, 40), (101, 1)]);
        assert!(repetition.succeeded() && !repetition.succeeded());
        assert_eq!(repetition.failed(MonotonicNanos(131_000_000_000), ErrorKind::NoSpace), Some(1));
    }
}
