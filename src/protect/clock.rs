//! A group's own time: what ages of recovery points are reckoned by, and how far it is to be believed.
//!
//! It runs with the monotonic clock while a gateway serves the group, and at an opening goes on where the newest marker left
//! it, by as much as the wall clock says has passed. What the wall clock says may be wrong; so a stretch of group time that
//! was assumed and is long, or in which the two clocks parted, suspends retention for a while.
//!
//! Invariant: the suspension follows from what is durable, the markers, so that no restart cuts it short.

use std::time::Duration;

use crate::planted::{Bug, Planted};
use crate::protect::group::nanos;
use crate::runtime::Runtime;
use crate::units::{GroupNanos, MonotonicNanos, WallNanos};

/// Wall clock and group time may part by so much between two looks, or two markers: more is a step.
pub(super) const STEP_MIN: Duration = Duration::from_secs(1);
/// Two markers may be far apart: a clock that is slewed leaves the monotonic one by less than one part in this.
const SLEW_PART: u64 = 1000;
/// Longest suspension after a step.
const SUSPENSION_MAX: Duration = Duration::from_secs(3600);

/// What both clocks showed at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) group: GroupNanos,
    pub(super) wall: WallNanos,
}

/// A group's clock since its opening.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupClock {
    /// The newest marker before it, published or not.
    newest: Option<Moment>,
    opening: Moment,
    /// What the monotonic clock showed then.
    opened: MonotonicNanos,
}

impl GroupClock {
    /// Goes on where the newest marker left group time, by as much as the wall clock moved since, if it moved forward.
    pub(super) fn take_up(newest: Option<Moment>, runtime: &Runtime, planted: Planted) -> GroupClock {
        let (opened, wall) = (runtime.now(), runtime.wall());
        let from = match planted.is(Bug::GroupTimeFromClock) {
            true => Moment { group: GroupNanos(u64::try_from(wall.0).unwrap_or(0)), wall },
            false => newest.unwrap_or(Moment { group: GroupNanos(0), wall }),
        };
        let passed = u64::try_from(wall.0.saturating_sub(from.wall.0)).unwrap_or(0);
        GroupClock { newest, opening: Moment { group: GroupNanos(from.group.0 + passed), wall }, opened }
    }

    /// Group time at opening.
    pub(super) fn at_opening(&self) -> GroupNanos {
        self.opening.group
    }

    pub(super) fn now(&self, runtime: &Runtime) -> GroupNanos {
        GroupNanos(self.opening.group.0 + (runtime.now().0 - self.opened.0))
    }

    /// When the last step was whose suspension may not be over at this opening, in group time. `first_rung` is the age that the
    /// ladder's first rung ends at, and `points` are those that the vault has, newest first.
    pub(super) fn step_before_opening(
        &self,
        points: impl Iterator<Item = Moment>,
        first_rung: Duration,
    ) -> Option<GroupNanos> {
        let mut later = self.opening;
        for earlier in self.newest.into_iter().chain(points) {
            if later.group.0 + nanos(suspension(first_rung)) < self.opening.group.0 {
                return None;
            }
            if is_doubtful(earlier, later, first_rung) {
                return Some(later.group);
            }
            later = earlier;
        }
        None
    }
}

/// How long a step suspends retention.
pub(super) fn suspension(first_rung: Duration) -> Duration {
    first_rung.min(SUSPENSION_MAX)
}

/// Whether the time between two moments may not have passed, or not so.
fn is_doubtful(earlier: Moment, later: Moment, first_rung: Duration) -> bool {
    let passed = later.group.0.saturating_sub(earlier.group.0);
    let parted = (i128::from(later.wall.0) - i128::from(earlier.wall.0)).abs_diff(i128::from(passed));
    let allowed = STEP_MIN.as_nanos() + u128::from(passed / SLEW_PART);
    Duration::from_nanos(passed) > first_rung || parted > allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNG: Duration = Duration::from_secs(3600);

    fn moment(group_s: u64, wall_s: i64) -> Moment {
        Moment { group: GroupNanos(group_s * 1_000_000_000), wall: WallNanos(wall_s * 1_000_000_000) }
    }

    /// Seconds for which retention rests after an opening at the last of these moments; the one before is the newest marker.
    fn suspended(moments: &[(u64, i64)]) -> u64 {
        let mut newest_first = moments.iter().rev().map(|&(group, wall)| moment(group, wall));
        let opening = newest_first.next().expect("an opening");
        let clock = GroupClock { newest: newest_first.next(), opening, opened: MonotonicNanos(0) };
        let step = clock.step_before_opening(newest_first, RUNG);
        step.map_or(0, |step| (step.0 + nanos(suspension(RUNG)) - opening.group.0) / 1_000_000_000)
    }

    #[test]
    fn an_opening_within_the_first_rung_is_believed() {
        assert_eq!(suspended(&[(0, 0)]), 0);
        assert_eq!(suspended(&[(0, 0), (3600, 3600)]), 0);
        assert_eq!(suspended(&[(0, 0), (1, 1), (2, 2), (3000, 3002)]), 0);
    }

    #[test]
    fn an_opening_after_a_longer_time_suspends_for_the_longest() {
        assert_eq!(suspended(&[(0, 0), (3601, 3601)]), 3600);
        assert_eq!(suspended(&[(0, 0), (1, 1), (90_000, 90_000)]), 3600);
    }

    #[test]
    fn the_next_opening_suspends_for_what_is_left() {
        assert_eq!(suspended(&[(0, 0), (90_000, 90_000), (90_600, 90_600)]), 3000);
        assert_eq!(suspended(&[(0, 0), (90_000, 90_000), (91_000, 91_000), (92_000, 92_000)]), 1600);
        assert_eq!(suspended(&[(0, 0), (90_000, 90_000), (92_000, 92_000), (93_601, 93_601)]), 0);
    }

    #[test]
    fn a_wall_clock_that_was_set_between_two_markers_suspends() {
        assert_eq!(suspended(&[(0, 0), (10, 90_000), (20, 90_010)]), 3590);
        assert_eq!(suspended(&[(0, 0), (10, -90_000), (20, -89_990)]), 3590);
        // Back while nobody ran: group time stood still.
        assert_eq!(suspended(&[(0, 0), (10, 10), (10, -500)]), 3600);
    }

    #[test]
    fn a_clock_that_is_slewed_was_not_set() {
        assert_eq!(suspended(&[(0, 0), (3000, 3003), (3010, 3013)]), 0);
        assert_eq!(suspended(&[(0, 0), (3000, 3005), (3010, 3015)]), 3590);
    }
}
