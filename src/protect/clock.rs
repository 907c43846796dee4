//! A group's own time: what ages of recovery points are reckoned by, and where it is not to be believed at once.
//!
//! It runs with the monotonic clock while a gateway serves the group, and at an opening goes on where the newest marker left
//! it, by as much as the wall clock says has passed. What the wall clock says may be wrong; so a stretch of group time that
//! was assumed and is long, or in which the two clocks parted, is a step, which suspends retention for a while
//! (`protect::suspension`). What a later look contradicts is no part of any age (`vault::ages`).
//!
//! Invariants: steps follow from what is durable, the markers, so that no restart cuts a suspension short; and after a start
//! with a clock that was behind, the next one does not count what that clock makes up for.

use std::time::Duration;

use crate::planted::{Bug, Planted};
use crate::protect::group::nanos;
use crate::runtime::Runtime;
use crate::units::{GroupNanos, Lsn, MonotonicNanos, WallNanos};
use crate::vault::Moment;

/// Wall clock and group time may part by so much between two looks, or two markers: more is a step.
pub(super) const STEP_MIN: Duration = Duration::from_secs(1);
/// Two markers may be far apart: a clock that is slewed leaves the monotonic one by less than one part in this.
const SLEW_PART: u64 = 1000;
/// Longest suspension after a step.
const SUSPENSION_MAX: Duration = Duration::from_secs(3600);

/// A group's clock since its opening.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupClock {
    /// The newest marker before it, published or not.
    newest: Option<Moment>,
    opening: Moment,
    /// What the monotonic clock showed then.
    opened: MonotonicNanos,
}

/// What the wall clock did that makes group time doubtful.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockStep {
    /// What it showed, or should have shown, before,
    pub from: WallNanos,
    /// and after.
    pub to: WallNanos,
    /// Whether it went on so far while nobody served the group, and group time with it; else it was set, and group time goes
    /// on as if it had not been.
    pub is_assumed: bool,
}

/// A step, and when it was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stepped {
    pub(super) at: GroupNanos,
    pub(super) step: ClockStep,
}

impl GroupClock {
    /// Goes on where the newest marker left group time, by as much as the wall clock moved forward since; `first` is this
    /// incarnation's first record. Was the clock set back some time after one of the `points`, it may make up for that.
    pub(super) fn take_up(
        newest: Option<Moment>,
        points: impl Iterator<Item = Moment>,
        first: Lsn,
        runtime: &Runtime,
        planted: Planted,
    ) -> GroupClock {
        let (opened, wall) = (runtime.now(), runtime.wall());
        let group = match newest {
            _ if planted.is(Bug::GroupTimeFromClock) => u64::try_from(wall.0).unwrap_or(0),
            None => 0,
            Some(newest) => newest.group.0.saturating_add(assumed(newest, points, wall)),
        };
        GroupClock { newest, opening: Moment { group: GroupNanos(group), wall, lsn: first }, opened }
    }

    /// Both clocks as they stand.
    pub(super) fn now(&self, runtime: &Runtime) -> Moment {
        let passed = runtime.now().0 - self.opened.0;
        Moment { group: GroupNanos(self.opening.group.0 + passed), wall: runtime.wall(), ..self.opening }
    }

    /// The newest marker before the opening.
    pub(super) fn before_opening(&self) -> Option<Moment> {
        self.newest
    }

    /// Whether a step is the opening's own.
    pub(super) fn is_of_opening(&self, stepped: &Stepped) -> bool {
        stepped.at == self.opening.group && stepped.step.to == self.opening.wall
    }

    /// The last step whose suspension may not be over at this opening. `first_rung` is the age that the ladder's first rung
    /// ends at, and `points` are those that the vault has, newest first.
    pub(super) fn step_before_opening(
        &self,
        points: impl Iterator<Item = Moment>,
        first_rung: Duration,
    ) -> Option<Stepped> {
        let mut later = self.opening;
        for earlier in self.newest.into_iter().chain(points) {
            if later.group.0 + nanos(suspension(first_rung)) < self.opening.group.0 {
                return None;
            }
            if let Some(step) = step_between(earlier, later, first_rung) {
                return Some(Stepped { at: later.group, step });
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

/// Nanoseconds that passed between the newest marker and a wall time, according to that. A clock that had been set back
/// and went on by about as much again makes up for that first: it is right again, and time passed beyond that only.
fn assumed(newest: Moment, points: impl Iterator<Item = Moment>, wall: WallNanos) -> u64 {
    let most_ahead = points.map(|point| point.ahead()).fold(newest.ahead(), i128::max);
    let (set_back, moved) = (most_ahead - newest.ahead(), i128::from(wall.0) - i128::from(newest.wall.0));
    // One that moved on by less is as right, or wrong, as it was.
    let passed = if moved > set_back / 2 { moved - set_back } else { moved };
    u64::try_from(passed.max(0)).unwrap_or(u64::MAX)
}

/// What the wall clock did between two moments, if the time between them may not have passed, or not so.
fn step_between(earlier: Moment, later: Moment, first_rung: Duration) -> Option<ClockStep> {
    let passed = later.group.0.saturating_sub(earlier.group.0);
    let parted = later.ahead() - earlier.ahead();
    let allowed = STEP_MIN.as_nanos() + u128::from(passed / SLEW_PART);
    let to = later.wall;
    if parted.unsigned_abs() > allowed {
        let should = i64::try_from(i128::from(to.0) - parted).unwrap_or(i64::MAX);
        return Some(ClockStep { from: WallNanos(should), to, is_assumed: false });
    }
    let is_assumed = !earlier.lsn.shares_incarnation(later.lsn) && Duration::from_nanos(passed) > first_rung;
    is_assumed.then_some(ClockStep { from: earlier.wall, to, is_assumed })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNG: Duration = Duration::from_secs(3600);

    fn moment(group_s: u64, wall_s: i64, incarnation: u64) -> Moment {
        Moment {
            group: GroupNanos(group_s * 1_000_000_000),
            wall: WallNanos(wall_s * 1_000_000_000),
            lsn: Lsn(incarnation * Lsn::INCARNATION_STRIDE),
        }
    }

    /// The step that an opening at the last of these moments sees; the one before is the newest marker.
    fn stepped(newest_first: impl Iterator<Item = Moment>) -> (GroupClock, Option<Stepped>) {
        let mut newest_first = newest_first;
        let opening = newest_first.next().expect("an opening");
        let clock = GroupClock { newest: newest_first.next(), opening, opened: MonotonicNanos(0) };
        (clock, clock.step_before_opening(newest_first, RUNG))
    }

    /// Seconds for which retention rests after an opening at the last of these moments, each in an incarnation of its own.
    fn suspended(moments: &[(u64, i64)]) -> u64 {
        let moments =
            (1..).zip(moments).map(|(incarnation, &(group, wall))| moment(group, wall, incarnation));
        let moments: Vec<Moment> = moments.collect();
        let (clock, stepped) = stepped(moments.into_iter().rev());
        stepped.map_or(0, |stepped| {
            (stepped.at.0 + nanos(suspension(RUNG)) - clock.opening.group.0) / 1_000_000_000
        })
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

    #[test]
    fn an_idle_group_was_served_all_the_same() {
        let idle = [moment(0, 0, 1), moment(90_000, 90_000, 1), moment(90_010, 90_010, 2)];
        assert_eq!(stepped(idle.into_iter().rev()).1, None);
    }

    #[test]
    fn a_step_says_what_the_clock_showed_and_whose_it_is() {
        let wall = |seconds: i64| WallNanos(seconds * 1_000_000_000);
        let (clock, leap) = stepped([moment(90_000, 90_100, 2), moment(10, 110, 1)].into_iter());
        let leap = leap.expect("a long time");
        assert_eq!(leap.step, ClockStep { from: wall(110), to: wall(90_100), is_assumed: true });
        assert!(clock.is_of_opening(&leap));
        let (clock, set) = stepped(
            [moment(35, 20, 2), moment(30, 15, 1), moment(20, 900, 1), moment(0, 880, 1)].into_iter(),
        );
        let set = set.expect("it was set back");
        assert_eq!(set.step, ClockStep { from: wall(910), to: wall(15), is_assumed: false });
        assert!(!clock.is_of_opening(&set));
    }

    #[test]
    fn an_opening_makes_up_first_for_what_the_clock_was_set_back() {
        let passed = |newest, points: &[Moment], wall_s: i64| {
            assumed(newest, points.iter().copied(), WallNanos(wall_s * 1_000_000_000)) / 1_000_000_000
        };
        let newest = moment(200, 1200, 1);
        assert_eq!(passed(newest, &[], 1500), 300);
        assert_eq!(passed(newest, &[], 900), 0);
        // Set forward before: that is no time that passed.
        assert_eq!(passed(newest, &[moment(100, 100, 1)], 1500), 300);
        // A start with a clock that had lost its battery, in between: of all the years 100 s passed.
        let behind = moment(230, 30, 2);
        assert_eq!(passed(behind, &[newest, moment(100, 1100, 1)], 1330), 100);
        assert_eq!(passed(behind, &[newest], 1000), 0);
        // One that was ahead for a while, and was set right: it has nothing to make up for.
        assert_eq!(passed(moment(300, 300, 2), &[moment(200, 9000, 1)], 390), 90);
    }
}
