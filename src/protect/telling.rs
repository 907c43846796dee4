//! Which conditions of a group people are told of: hooks fire for each, and a guest at full speed has its journal full and not full
//! several times a second.
//!
//! What passes by itself is told once until the group was well for a while, which is told then. What does not pass by itself is told each
//! time.

use crate::protect::alarm::OVER_AFTER;
use crate::protect::group::nanos;
use crate::protect::status::Condition;
use crate::units::MonotonicNanos;

/// What of a group's conditions was told.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// What passes by itself, and was told since the group was last well.
    troubles: Vec<Condition>,
    /// Since when it seems to be well again.
    well_since: Option<MonotonicNanos>,
    /// What was told last.
    last: Option<Condition>,
}

/// What to make of a condition.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing is wrong that it would have to be told of.
    Well,
    /// It may be over in a moment, and back in another.
    Passing,
    /// It was asked for, or somebody has to do something.
    Lasting,
}

fn kind(condition: Condition) -> Kind {
    match condition {
        // Points that are late have events of their own.
        Condition::Protected | Condition::Paused | Condition::PointsLate => Kind::Well,
        Condition::JournalFull
        | Condition::MapsFull
        | Condition::NoSpace
        | Condition::SpaceShort
        | Condition::RetentionStalled
        | Condition::Retrying => Kind::Passing,
        Condition::Opening
        | Condition::ImageFailed
        | Condition::VaultFailed
        | Condition::JournalFailed
        | Condition::Stopping => Kind::Lasting,
    }
}

impl Telling {
    /// Whether it is to be told that the group is in this condition; whether it was in another one until now.
    pub(super) fn turn(&mut self, condition: Condition, has_changed: bool, now: MonotonicNanos) -> bool {
        let is_well_again = self.due().is_some_and(|due| now >= due);
        if is_well_again {
            self.forget_troubles();
        }
        let is_told = match has_changed {
            true => self.changed(condition, now),
            false => is_well_again && self.is_news(condition),
        };
        if is_told {
            self.last = Some(condition);
        }
        is_told
    }

    fn changed(&mut self, condition: Condition, now: MonotonicNanos) -> bool {
        match kind(condition) {
            Kind::Well if !self.troubles.is_empty() => {
                self.well_since.get_or_insert(now);
                false
            }
            Kind::Well => self.is_news(condition),
            Kind::Passing => {
                self.well_since = None;
                let is_new = !self.troubles.contains(&condition);
                if is_new {
                    self.troubles.push(condition);
                }
                is_new
            }
            Kind::Lasting => {
                self.forget_troubles();
                true
            }
        }
    }

    fn is_news(&self, well: Condition) -> bool {
        well != Condition::PointsLate && self.last != Some(well)
    }

    fn forget_troubles(&mut self) {
        self.troubles.clear();
        self.well_since = None;
    }

    /// When there is something to tell, if nothing changes before.
    pub(super) fn due(&self) -> Option<MonotonicNanos> {
        self.well_since.map(|since| MonotonicNanos(since.0 + nanos(OVER_AFTER)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of conditions at such seconds; a turn of the group without a change says the condition again.
    fn told(turns: &[(u64, Condition)]) -> Vec<(u64, Condition)> {
        let (mut telling, mut last) = (Telling::default(), None);
        let is_told = |&&(second, condition): &&(u64, Condition)| {
            let now = MonotonicNanos(second * 1_000_000_000);
            let has_changed = last.replace(condition) != Some(condition);
            telling.turn(condition, has_changed, now)
        };
        turns.iter().filter(is_told).copied().collect()
    }

    use Condition::{JournalFailed, JournalFull, NoSpace, Opening, Paused, PointsLate, Protected};

    #[test]
    fn what_alternates_is_told_once_and_that_it_is_over_once_it_stays_so() {
        let flaps = (1..60).map(|second| (second, if second % 2 == 1 { JournalFull } else { Protected }));
        let turns: Vec<_> = [(0, Protected)].into_iter().chain(flaps).collect();
        assert_eq!(told(&turns), [(0, Protected), (1, JournalFull)]);
        let turns =
            [turns, vec![(60, Protected), (69, Protected), (70, Protected), (99, Protected)]].concat();
        assert_eq!(told(&turns), [(0, Protected), (1, JournalFull), (70, Protected)]);
    }

    #[test]
    fn another_trouble_is_told_at_once_and_the_same_one_again_after_a_while() {
        let turns = [(0, JournalFull), (1, NoSpace), (2, JournalFull), (3, Protected), (12, JournalFull)];
        assert_eq!(told(&turns), [(0, JournalFull), (1, NoSpace)]);
        let turns = [(0, JournalFull), (1, Protected), (11, Protected), (12, JournalFull)];
        assert_eq!(told(&turns), [(0, JournalFull), (11, Protected), (12, JournalFull)]);
    }

    #[test]
    fn what_lasts_is_told_each_time() {
        let turns = [
            (0, Opening),
            (1, Protected),
            (2, JournalFailed),
            (3, Protected),
            (4, JournalFailed),
            (5, Paused),
        ];
        assert_eq!(told(&turns), turns);
        let turns = [(0, JournalFull), (1, JournalFailed), (2, Protected)];
        assert_eq!(told(&turns), turns, "a resume is told at once, whatever passed before");
    }

    #[test]
    fn late_points_are_told_by_their_own_events_and_end_what_passed() {
        assert_eq!(told(&[(0, Protected), (1, PointsLate), (2, Protected)]), [(0, Protected)]);
        let turns = [(0, JournalFull), (1, PointsLate), (12, PointsLate), (13, Protected)];
        assert_eq!(told(&turns), [(0, JournalFull), (13, Protected)]);
    }
}
