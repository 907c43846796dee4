//! How old points are, as far as that is beyond doubt.
//!
//! Group time is true while a gateway serves the group: it is the monotonic clock's. At an opening it goes on by what the
//! wall clock says has passed (`protect::clock`); was that clock ahead, so is group time from then on. Once the clock is set
//! right, the points from before show it: since them less wall time has passed than group time. For a moment `q` let
//!
//! - `set_back(q)` be how far the wall clock was set back since, net: group time less wall time that passed from `q` to now;
//! - `assumed(p, q)` be the group time from `p` to `q` in pairs of neighbours between which the group was opened.
//!
//! Doubtful of a point `p` is the least, over `q` among `p`, all later points and now, of `set_back(q) + assumed(p, q)`, where
//! a negative `set_back` counts as none; the age is the group time since `p` less that. Hence
//!
//! - *no age is larger than group time says*, and without a setting back it is that: `set_back(p)` is none;
//! - *an older point is never younger*: from one point to the next older one doubt grows by `assumed` at most, and that is part of
//!   the group time between them;
//! - *a point that goes makes none older*: there is one `q` less, and what was `assumed` between two neighbours still is. So
//!   thinning takes nothing away that kept others, and what was planned does not grow while it is carried out;
//! - *a leap that was taken back is none*: before it `set_back` and `assumed` are the leap, after it nothing is assumed;
//! - *what a wrong clock can do is bounded*: `p` to `q` without `assumed` is true, and group time since `q` less `set_back(q)` is at
//!   most what the wall clock says has passed since `q`. An age exceeds the truth at most by as much as the clock is ahead now,
//!   beyond what it was ahead at `p` or a later point. The simulator holds the planner to that (`sim::ages`).
//!
//! The clock as it is *now* is believed, not the one that contradicts most of what it ever showed: a clock that started behind and
//! was then set right makes nothing doubtful.

use std::time::Duration;

use crate::format::record::PointRecord;
use crate::units::{GroupNanos, Lsn, WallNanos};

/// What both clocks showed at one time, and the newest record then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Group time.
    pub group: GroupNanos,
    /// Wall time.
    pub wall: WallNanos,
    /// A record of the incarnation: the marker, or any.
    pub lsn: Lsn,
}

impl Moment {
    /// When a point was made.
    pub fn of(point: &PointRecord) -> Moment {
        Moment { group: point.group_time, wall: point.wall, lsn: point.marker }
    }

    /// Nanoseconds that the wall clock is ahead of group time.
    pub fn ahead(&self) -> i128 {
        i128::from(self.wall.0) - i128::from(self.group.0)
    }
}

/// The group time since a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// As far as it is beyond doubt.
    pub certain: Duration,
    /// What is doubtful.
    pub doubtful: Duration,
}

/// The age of each moment at `now`; from the newest to the oldest.
pub fn ages(now: Moment, newest_first: impl Iterator<Item = Moment>) -> impl Iterator<Item = Age> {
    let (mut later, mut doubtful) = (now, 0_u64);
    newest_first.map(move |moment| {
        let passed = later.group.0.saturating_sub(moment.group.0);
        let assumed = if moment.lsn.shares_incarnation(later.lsn) { 0 } else { passed };
        let set_back = u64::try_from((moment.ahead() - now.ahead()).max(0)).unwrap_or(u64::MAX);
        doubtful = set_back.min(doubtful.saturating_add(assumed));
        later = moment;
        let since = now.group.0.saturating_sub(moment.group.0);
        Age {
            certain: Duration::from_nanos(since.saturating_sub(doubtful)),
            doubtful: Duration::from_nanos(doubtful),
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const YEAR: u64 = 365 * 24 * 3600;

    /// Group time, wall time (seconds), and in which incarnation.
    type Shown = (u64, i64, u64);

    fn moment((group_s, wall_s, incarnation): Shown) -> Moment {
        Moment {
            group: GroupNanos(group_s * 1_000_000_000),
            wall: WallNanos(wall_s * 1_000_000_000),
            lsn: Lsn(incarnation * Lsn::INCARNATION_STRIDE + group_s % Lsn::INCARNATION_STRIDE),
        }
    }

    /// Seconds that all but the last moment are old at the last.
    fn certain(moments: &[Shown]) -> Vec<u64> {
        let (now, points) = moments.split_last().expect("now");
        let points = points.iter().rev().copied().map(moment);
        let mut ages: Vec<u64> = ages(moment(*now), points).map(|age| age.certain.as_secs()).collect();
        ages.reverse();
        ages
    }

    fn seconds(value: u64) -> i64 {
        i64::try_from(value).expect("small")
    }

    #[test]
    fn without_a_setting_back_ages_are_group_time() {
        assert_eq!(certain(&[(0, 0, 1), (10, 10, 1), (30, 30, 2), (100, 100, 3)]), [100, 90, 70]);
        // Set forward while it runs, and left so.
        assert_eq!(certain(&[(0, 0, 1), (10, 500, 1), (30, 520, 2)]), [30, 20]);
    }

    #[test]
    fn a_leap_that_was_taken_back_is_as_if_it_had_not_been() {
        let ahead = 10 + YEAR;
        let leapt = (ahead, seconds(ahead), 2);
        // Before anybody sets the clock right all of it counts.
        assert_eq!(certain(&[(0, 0, 1), leapt, (ahead + 60, seconds(ahead) + 60, 2)]), [ahead + 60, 60]);
        // Set right under the running gateway,
        let right = (ahead + 60, 70, 2);
        assert_eq!(certain(&[(0, 0, 1), leapt, right, (ahead + 90, 100, 2)]), [100, 90, 30]);
        // after more starts,
        let later = (ahead + 500, 510, 4);
        assert_eq!(certain(&[(0, 0, 1), leapt, right, later]), [510, 500, 440]);
        // by a start, which group time does not follow back,
        assert_eq!(certain(&[(0, 0, 1), leapt, (ahead, 5, 3), (ahead + 10, 15, 3)]), [15, 10, 10]);
        // and with nothing left that shows it but what was before.
        assert_eq!(certain(&[(0, 0, 1), right, (ahead + 90, 100, 2)]), [100, 30]);
        assert_eq!(certain(&[(0, 0, 1), (ahead + 90, 100, 2)]), [100]);
    }

    #[test]
    fn what_passed_under_a_running_gateway_is_beyond_doubt() {
        // Wrong from the installation on, and set right.
        let moments =
            [(0, seconds(YEAR), 1), (5000, seconds(YEAR) + 5000, 1), (5010, 5010, 1), (9000, 9000, 1)];
        assert_eq!(certain(&moments), [9000, 4000, 3990]);
        // With a night in between, which nobody can vouch for.
        let moments = [(0, seconds(YEAR), 1), (5000, seconds(YEAR) + 5000, 2), (5010, 5010, 2)];
        assert_eq!(certain(&moments), [10, 10]);
    }

    #[test]
    fn two_leaps_that_were_both_taken_back_are_none() {
        let moments = [
            (0, 0, 1),
            (YEAR, seconds(YEAR), 2),
            (YEAR + 10, 10, 2),
            (2 * YEAR + 20, seconds(YEAR) + 20, 3),
            (2 * YEAR + 30, 30, 3),
        ];
        assert_eq!(certain(&moments), [30, 30, 20, 10]);
    }

    #[test]
    fn a_clock_that_was_behind_for_a_while_makes_nothing_doubtful() {
        let moments = [(0, 1000, 1), (5, 0, 2), (15, 1015, 2), (500, 1500, 3)];
        assert_eq!(certain(&moments), [500, 495, 485]);
    }

    /// Histories of a group that runs, is opened, and whose wall clock is set now and then; the last moment is now.
    fn histories(steps: std::ops::Range<i64>) -> impl Strategy<Value = Vec<Shown>> {
        let step = (0..90_u64, prop::bool::weighted(0.3), prop_oneof![3 => Just(0_i64), 1 => steps]);
        proptest::collection::vec(step, 1..14).prop_map(|steps| {
            let (mut group, mut wall, mut incarnation) = (0_u64, 0_i64, 1);
            let shown = |(passed, opens, set): (u64, bool, i64)| {
                let moved = seconds(passed) + set;
                wall += moved;
                (group, incarnation) = match opens {
                    true => (group + u64::try_from(moved).unwrap_or(0), incarnation + 1),
                    false => (group + passed, incarnation),
                };
                (group, wall, incarnation)
            };
            steps.into_iter().map(shown).collect()
        })
    }

    proptest! {
        #[test]
        fn no_age_is_beyond_group_time_and_none_is_out_of_order(moments in histories(-500..500)) {
            let now = moments.last().expect("now").0;
            let ages = certain(&moments);
            prop_assert!(ages.iter().zip(&moments).all(|(age, (group, ..))| *age <= now - group));
            prop_assert!(ages.windows(2).all(|pair| pair[0] >= pair[1]));
        }

        #[test]
        fn a_clock_that_is_only_set_forward_makes_nothing_doubtful(moments in histories(0..500)) {
            let now = moments.last().expect("now").0;
            let expected: Vec<u64> = moments[..moments.len() - 1].iter().map(|(group, ..)| now - group).collect();
            prop_assert_eq!(certain(&moments), expected);
        }

        #[test]
        fn a_point_that_goes_makes_none_older(moments in histories(-500..500), which in 0..13_usize) {
            prop_assume!(which + 1 < moments.len());
            let mut before = certain(&moments);
            before.remove(which);
            let mut left = moments;
            left.remove(which);
            let after = certain(&left);
            prop_assert!(after.iter().zip(&before).all(|(after, before)| after <= before));
        }
    }
}
