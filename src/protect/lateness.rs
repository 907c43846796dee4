//! Whether recovery points come as often as the policy says.
//!
//! What counts is how long ago the oldest write was made that no point holds: an idle group is never late, however old its
//! newest point is. Points that wait for their vault, and timed ones that are left out meanwhile, are late alike.

use std::collections::VecDeque;
use std::time::Duration;

use crate::protect::group::nanos;
use crate::units::MonotonicNanos;

/// Points are late when twice the interval has passed, and at least this: below, a vault at work is no news.
const LATE_AFTER_MIN: Duration = Duration::from_secs(1);

/// When the first write was made of each interval that is no point yet; `None` for one without writes.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    /// Those that a marker ended, oldest first.
    closed: VecDeque<Option<MonotonicNanos>>,
    open: Option<MonotonicNanos>,
}

impl Lateness {
    /// What an opening found: so many intervals on their way to the vault, and one at work, with or without writes. How old
    /// the writes are nobody knows any more.
    pub(super) fn at_opening(waiting: usize, is_dirty: bool, now: MonotonicNanos) -> Lateness {
        Lateness { closed: vec![Some(now); waiting].into(), open: is_dirty.then_some(now) }
    }

    /// A write became visible.
    pub(super) fn wrote(&mut self, now: impl FnOnce() -> MonotonicNanos) {
        self.open.get_or_insert_with(now);
    }

    /// A marker ended the interval.
    pub(super) fn closed(&mut self) {
        self.closed.push_back(self.open.take());
    }

    /// The oldest closed interval became a point.
    pub(super) fn published(&mut self) {
        self.closed.pop_front();
    }

    /// When the oldest write was made that no point holds; at an opening, if it is from before.
    pub(super) fn oldest(&self) -> Option<MonotonicNanos> {
        self.closed.iter().copied().flatten().next().or(self.open)
    }

    /// When the points are late, if nothing becomes one before.
    pub(super) fn due(&self, interval: Duration) -> Option<MonotonicNanos> {
        let oldest = self.oldest()?;
        let patience = nanos(interval.saturating_mul(2).max(LATE_AFTER_MIN));
        Some(MonotonicNanos(oldest.0.saturating_add(patience)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> MonotonicNanos {
        MonotonicNanos(seconds * 1_000_000_000)
    }

    #[test]
    fn the_oldest_write_without_a_point_counts() {
        let mut lateness = Lateness::default();
        assert_eq!(lateness.due(INTERVAL), None, "idle");
        lateness.wrote(|| at(100));
        lateness.wrote(|| at(105));
        assert_eq!(lateness.due(INTERVAL), Some(at(120)));
        lateness.closed();
        lateness.wrote(|| at(110));
        assert_eq!(lateness.due(INTERVAL), Some(at(120)), "closed is no point yet");
        lateness.published();
        assert_eq!(lateness.due(INTERVAL), Some(at(130)));
        lateness.closed();
        lateness.closed();
        lateness.published();
        assert_eq!(lateness.due(INTERVAL), None, "an interval without writes is never late");
    }

    #[test]
    fn short_intervals_have_a_second() {
        let lateness = Lateness::at_opening(0, true, at(7));
        assert_eq!(lateness.due(Duration::from_millis(100)), Some(at(8)));
        assert_eq!(Lateness::at_opening(2, false, at(7)).due(INTERVAL), Some(at(27)));
        assert_eq!(Lateness::at_opening(0, false, at(7)).due(INTERVAL), None);
    }
}
