//! What a ladder makes of a group's points: which go, and what becomes of what changed up to them. A pure function; see
//! `docs/retention.md`.
//!
//! Invariant: the newest point and those that must stay are in no plan; a plan that was carried out leaves nothing to
//! plan for the same ages.

use std::collections::HashSet;
use std::ops::Range;
use std::time::Duration;

use crate::format::ladder::{Ladder, Rung};
use crate::units::GroupNanos;

const NANOS_PER_MS: u64 = 1_000_000;

/// A point, as far as the ladder cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedPoint {
    /// When it was made.
    pub group_time: GroupNanos,
    /// How long ago that is ([`super::ages`]): an older point is not younger.
    pub age: Duration,
    /// Whether it must stay: it is held, or somebody reads it.
    pub must_stay: bool,
}

/// What is to go, by index of point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The point that the base advances to: all before it go.
    pub base: Option<usize>,
    /// Runs of points that go; each merges into the point at the run's end.
    pub merges: Vec<Range<usize>>,
}

impl Plan {
    /// How many points go.
    pub fn points(&self) -> usize {
        self.base.unwrap_or(0) + self.merges.iter().map(ExactSizeIterator::len).sum::<usize>()
    }

    /// The points that go, ascending.
    pub fn going(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.base.unwrap_or(0)).chain(self.merges.iter().flat_map(Range::clone))
    }
}

/// What a ladder makes of `points`, which ascend by group time.
pub fn plan(points: &[PlannedPoint], ladder: &Ladder) -> Plan {
    let stays = keep(points, ladder);
    let Some(first) = stays.iter().position(|&stays| stays) else { return Plan::default() };
    let mut merges = Vec::new();
    let mut start = first;
    for (index, &stays) in stays.iter().enumerate().skip(first) {
        if stays {
            if start < index {
                merges.push(start..index);
            }
            start = index + 1;
        }
    }
    Plan { base: (first > 0).then_some(first), merges }
}

/// Which points stay.
fn keep(points: &[PlannedPoint], ladder: &Ladder) -> Vec<bool> {
    let mut buckets = HashSet::new();
    let newest = points.len().checked_sub(1);
    let stays = |(index, point): (usize, &PlannedPoint)| {
        let kept = match place(point, ladder.rungs()) {
            Place::Every => true,
            // The first of its bucket.
            Place::Bucket { rung, bucket } => buckets.insert((rung, bucket)),
            Place::Expired => false,
        };
        kept || point.must_stay || Some(index) == newest
    };
    points.iter().enumerate().map(stays).collect()
}

/// What a ladder says of one point.
enum Place {
    Every,
    Bucket { rung: usize, bucket: u64 },
    Expired,
}

fn place(point: &PlannedPoint, rungs: &[Rung]) -> Place {
    let Some(last) = rungs.last() else { return Place::Every };
    if Duration::from_millis(last.until_ms) < point.age {
        return Place::Expired;
    }
    let time = point.group_time.0;
    for (index, rung) in rungs.iter().enumerate().rev() {
        let begins = index.checked_sub(1).map_or(0, |before| rungs[before].until_ms);
        if rung.spacing_ms == 0 {
            return Place::Every;
        }
        let spacing = nanos(rung.spacing_ms);
        let bucket = time / spacing;
        // Thinned only when all of it has aged past the rung's beginning.
        let rest = Duration::from_nanos((bucket + 1).saturating_mul(spacing) - time);
        if Duration::from_millis(begins) + rest <= point.age {
            return Place::Bucket { rung: index, bucket };
        }
    }
    Place::Every
}

fn nanos(ms: u64) -> u64 {
    ms.saturating_mul(NANOS_PER_MS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ladder(rungs: &[(u64, u64)]) -> Ladder {
        let rungs = rungs.iter().map(|&(until_ms, spacing_ms)| Rung { until_ms, spacing_ms });
        Ladder::new(rungs.collect()).expect("legal")
    }

    fn points(times_ms: &[u64]) -> Vec<PlannedPoint> {
        let point = |ms: &u64| PlannedPoint { group_time: at(*ms), age: Duration::ZERO, must_stay: false };
        times_ms.iter().map(point).collect()
    }

    /// They, at a group time that nothing is doubtful of.
    fn aged(points: &[PlannedPoint], now: GroupNanos) -> Vec<PlannedPoint> {
        let age = |point: &PlannedPoint| Duration::from_nanos(now.0.saturating_sub(point.group_time.0));
        points.iter().map(|point| PlannedPoint { age: age(point), ..*point }).collect()
    }

    fn plan(points: &[PlannedPoint], ladder: &Ladder, now: GroupNanos) -> Plan {
        super::plan(&aged(points, now), ladder)
    }

    fn at(ms: u64) -> GroupNanos {
        GroupNanos(nanos(ms))
    }

    fn one(run: Range<usize>) -> Vec<Range<usize>> {
        vec![run]
    }

    /// The points that are left.
    fn left(points: &[PlannedPoint], plan: &Plan) -> Vec<PlannedPoint> {
        let going: HashSet<usize> = plan.going().collect();
        points
            .iter()
            .enumerate()
            .filter(|(index, _)| !going.contains(index))
            .map(|(_, point)| *point)
            .collect()
    }

    #[test]
    fn a_bucket_is_thinned_when_all_of_it_has_aged_into_its_rung() {
        let ladder = ladder(&[(10, 0), (100, 10)]);
        let points = points(&[0, 3, 6, 12, 15, 30]);
        // At 19 the bucket 0..10 ends 9 before now, at 20 it has aged past 10.
        assert_eq!(plan(&points, &ladder, at(19)), Plan::default());
        assert_eq!(plan(&points, &ladder, at(20)), Plan { base: None, merges: one(1..3) });
        assert_eq!(plan(&points, &ladder, at(30)), Plan { base: None, merges: vec![1..3, 4..5] });
    }

    #[test]
    fn expired_points_move_the_base_and_those_behind_a_held_one_merge() {
        let ladder = ladder(&[(10, 0)]);
        let mut points = points(&[0, 1, 2, 3, 20]);
        assert_eq!(plan(&points, &ladder, at(12)), Plan { base: Some(2), merges: vec![] });
        points[1].must_stay = true;
        assert_eq!(plan(&points, &ladder, at(14)), Plan { base: Some(1), merges: one(2..4) });
        assert_eq!(plan(&points, &ladder, at(1000)), Plan { base: Some(1), merges: one(2..4) });
    }

    #[test]
    fn the_newest_stays_whatever_its_age_and_everything_does_without_rungs() {
        let points = points(&[0, 1]);
        assert_eq!(plan(&points, &ladder(&[(10, 0)]), at(1000)), Plan { base: Some(1), merges: vec![] });
        assert_eq!(plan(&points[1..], &ladder(&[(10, 0)]), at(1000)), Plan::default());
        assert_eq!(plan(&points, &Ladder::keep_all(), at(1000)), Plan::default());
        assert_eq!(plan(&[], &ladder(&[(10, 0)]), at(1000)), Plan::default());
    }

    fn ladders() -> impl Strategy<Value = Ladder> {
        let rung = (1..40_u64, 0..12_u64);
        proptest::collection::vec(rung, 0..4).prop_filter_map("legal", |steps| {
            let (mut until, mut spacing) = (0, 0);
            let rungs = steps.into_iter().enumerate().map(|(index, (age, more))| {
                until += age;
                spacing += if index == 0 { more } else { more + 1 };
                Rung { until_ms: until, spacing_ms: spacing }
            });
            Ladder::new(rungs.collect()).ok()
        })
    }

    fn histories() -> impl Strategy<Value = Vec<PlannedPoint>> {
        let gap = (0..9_u64, prop::bool::weighted(0.1));
        proptest::collection::vec(gap, 0..40).prop_map(|gaps| {
            let mut time = 0;
            let point = |(gap, must_stay)| {
                time += gap;
                PlannedPoint { group_time: at(time), age: Duration::ZERO, must_stay }
            };
            gaps.into_iter().map(point).collect()
        })
    }

    #[test]
    fn what_is_doubtful_of_an_age_keeps_a_point_and_moves_no_bucket() {
        let ladder = ladder(&[(10, 0), (100, 10)]);
        let mut points = aged(&points(&[0, 3, 6, 12, 15, 300]), at(310));
        assert_eq!(super::plan(&points, &ladder), Plan { base: Some(5), merges: vec![] });
        // A leap lay between the first five and the last: only the first bucket is old enough.
        points[..5].iter_mut().for_each(|point| point.age -= Duration::from_millis(290));
        assert_eq!(super::plan(&points, &ladder), Plan { base: None, merges: one(1..3) });
    }

    proptest! {
        #[test]
        fn a_plan_that_was_carried_out_leaves_nothing_to_plan_for_the_same_ages(
            points in histories(), ladder in ladders(), now in 0..400_u64, doubts in proptest::collection::vec(0..9_u64, 40),
        ) {
            let mut points = aged(&points, at(now));
            let mut doubt = Duration::ZERO;
            let mut later = Duration::ZERO;
            for (point, more) in points.iter_mut().zip(doubts).rev() {
                doubt += Duration::from_millis(more);
                point.age = point.age.saturating_sub(doubt).max(later);
                later = point.age;
            }
            let rest = left(&points, &super::plan(&points, &ladder));
            prop_assert_eq!(super::plan(&rest, &ladder), Plan::default());
        }

        #[test]
        fn a_plan_keeps_what_it_must_and_leaves_nothing_to_plan(
            points in histories(), ladder in ladders(), now in 0..400_u64,
        ) {
            let planned = plan(&points, &ladder, at(now));
            let going: Vec<usize> = planned.going().collect();
            prop_assert_eq!(going.len(), planned.points());
            prop_assert!(going.windows(2).all(|pair| pair[0] < pair[1]));
            for &index in &going {
                prop_assert!(!points[index].must_stay && index + 1 < points.len());
            }
            for run in &planned.merges {
                prop_assert!(!run.is_empty() && !going.contains(&run.end));
            }
            let rest = left(&points, &planned);
            prop_assert_eq!(plan(&rest, &ladder, at(now)), Plan::default());
        }

        #[test]
        fn whatever_goes_is_expired_or_has_an_older_one_in_its_bucket(
            points in histories(), ladder in ladders(), now in 0..400_u64,
        ) {
            let planned = plan(&points, &ladder, at(now));
            let now = nanos(now);
            for index in planned.going() {
                let time = points[index].group_time.0;
                let rungs = ladder.rungs();
                let expired = rungs.last().is_some_and(|last| time + nanos(last.until_ms) < now);
                let thinned = rungs.iter().enumerate().any(|(rung, Rung { spacing_ms, .. })| {
                    let begins = if rung == 0 { 0 } else { nanos(rungs[rung - 1].until_ms) };
                    let spacing = nanos(*spacing_ms).max(1);
                    let older = points[..index].iter().any(|point| point.group_time.0 / spacing == time / spacing);
                    *spacing_ms > 0 && older && (time / spacing + 1) * spacing + begins <= now
                });
                prop_assert!(expired || thinned);
            }
        }

        #[test]
        fn young_points_all_stay(points in histories(), ladder in ladders(), now in 0..400_u64) {
            let planned = plan(&points, &ladder, at(now));
            let first = ladder.rungs().first().filter(|rung| rung.spacing_ms == 0);
            if let Some(rung) = first {
                for index in planned.going() {
                    prop_assert!(points[index].group_time.0 + nanos(rung.until_ms) <= nanos(now));
                }
            }
        }
    }
}
