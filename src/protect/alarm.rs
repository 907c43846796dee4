//! That something is wrong which comes and goes: told once, and that it is over once it has been so for a while.

use std::time::Duration;

use crate::protect::group::nanos;
use crate::units::MonotonicNanos;

/// What is wrong is over once it has been so for so long.
pub(super) const OVER_AFTER: Duration = Duration::from_secs(10);

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It begins.
    Raised,
    /// It is over.
    Over,
}

/// Whether something is wrong.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    was_told: bool,
    /// Since when nothing is wrong any more.
    well_since: Option<MonotonicNanos>,
}

impl Alarm {
    /// What is to be told, if anything.
    pub(super) fn look(&mut self, is_wrong: bool, now: MonotonicNanos) -> Option<Told> {
        let is_over = self.due().is_some_and(|due| now >= due);
        if is_wrong {
            self.well_since = None;
            let is_new = !std::mem::replace(&mut self.was_told, true) || is_over;
            return is_new.then_some(Told::Raised);
        }
        if !self.was_told {
            return None;
        }
        self.well_since.get_or_insert(now);
        if is_over {
            *self = Alarm::default();
        }
        is_over.then_some(Told::Over)
    }

    /// When it is over, if nothing is wrong before.
    pub(super) fn due(&self) -> Option<MonotonicNanos> {
        self.well_since.map(|since| MonotonicNanos(since.0 + nanos(OVER_AFTER)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_and_goes_is_told_once_until_it_was_well_for_a_while() {
        let mut alarm = Alarm::default();
        let mut look = |second: u64, is_wrong| alarm.look(is_wrong, MonotonicNanos(second * 1_000_000_000));
        assert_eq!((look(0, false), look(1, true), look(2, true)), (None, Some(Told::Raised), None));
        assert_eq!((look(3, false), look(4, true)), (None, None), "it comes and goes");
        assert_eq!((look(13, false), look(22, true)), (None, None));
        assert_eq!((look(23, false), look(33, false), look(34, false)), (None, Some(Told::Over), None));
        assert_eq!(look(35, true), Some(Told::Raised));
        assert_eq!(look(99, true), None, "however long nobody looked");
        assert_eq!(
            (look(100, false), look(110, true)),
            (None, Some(Told::Raised)),
            "nobody looked meanwhile"
        );
    }
}
