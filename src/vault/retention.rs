//! Retention, one step at a time: what a ladder asks for, what a person asks for. The task that calls this is
//! `protect::retention`.

use std::collections::HashSet;
use std::time::Duration;

use super::age::{Age, Moment, ages};
use super::plan::{Plan, PlannedPoint, plan};
use super::thinning::batch;
use super::{Detour, State, Vault};
use crate::error::{Error, ErrorKind, Result};
use crate::format::ladder::Ladder;
use crate::format::record::{Change, PinKind, PinRecord, PointRecord};
use crate::planted::Bug;
use crate::units::{PinId, PointId};

/// History goes for space only where at least one part in this many of what goes comes back.
const WORTH_OF_WHAT_GOES: u64 = 16;

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetentionStep {
    /// Retire the points before this one.
    RetireBefore(PointId),
    /// Merge the points from the first into the second.
    Merge(PointId, PointId),
}

/// What a ladder would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forecast {
    /// Points that would go.
    pub points: u64,
    /// Bytes that come back at most: those of their deltas, for what a merge keeps of them stays.
    pub bytes_max: u64,
}

impl Vault {
    /// The age of each point, oldest first.
    fn ages(&self, state: &State, now: Moment) -> Vec<Age> {
        let mut ages: Vec<Age> = ages(now, state.points().iter().rev().map(Moment::of)).collect();
        if self.planted.is(Bug::LeapCounted) {
            ages.iter_mut().for_each(|age| age.certain += age.doubtful);
        }
        ages.reverse();
        ages
    }

    /// What is doubtful of the age of any point, at most.
    pub fn doubtful(&self, now: Moment) -> Duration {
        let ages = self.ages(&self.manifest.state(), now);
        ages.iter().map(|age| age.doubtful).max().unwrap_or_default()
    }

    fn planned(&self, state: &State, ladder: &Ladder, now: Moment) -> Plan {
        let pinned: HashSet<PointId> = state.pins().iter().map(|pin| pin.point).collect();
        let is_planted = self.planted.is(Bug::BaseAdvancedUnderPin);
        let points = state.points().iter().zip(self.ages(state, now)).map(|(point, age)| PlannedPoint {
            group_time: point.group_time,
            age: age.certain,
            must_stay: !is_planted && (pinned.contains(&point.id) || self.leases.holds_point(point.marker)),
        });
        plan(&points.collect::<Vec<_>>(), ladder)
    }

    /// The next thing that the ladder asks for now, of what does not meet what `detour` goes round.
    pub fn next_step(&self, detour: &Detour, ladder: &Ladder, now: Moment) -> Option<RetentionStep> {
        let state = self.manifest.state();
        let plan = self.planned(&state, ladder, now);
        let (points, id) = (state.points(), |index: usize| state.points()[index].id);
        let base = plan.base.filter(|_| state.base_advance().is_none());
        let base = base.and_then(|target| detour.base(points, target));
        let merge = plan.merges.iter().find_map(|run| detour.merge(points, run.start, run.end));
        let merge = merge.map(|(first, into)| RetentionStep::Merge(id(first), id(into)));
        base.map(|index| RetentionStep::RetireBefore(id(index))).or(merge)
    }

    /// Bytes that all deltas take.
    pub fn history_bytes(&self) -> u64 {
        let state = self.manifest.state();
        let points = state.points().iter().filter_map(|point| point.delta);
        points.map(|delta| delta.total_bytes).sum()
    }

    /// What to do for space: the oldest points go, as few as may be. Where history is to take so much less (`excess`), at a time no
    /// more than there is `room` for in the base; else where that gives back about `lack` bytes, or, if nothing gives back as much, a part
    /// of it that is worth it. `None` where the oldest must stay, or nothing comes back.
    pub async fn shrink_step(
        &self,
        excess: u64,
        lack: u64,
        room: u64,
    ) -> Result<Option<(RetentionStep, Forecast)>> {
        let oldest = self.oldest_that_may_go();
        if oldest.len() < 2 {
            return Ok(None);
        }
        let sizes: Vec<u64> =
            oldest.iter().map(|point| point.delta.map_or(0, |delta| delta.total_bytes)).collect();
        let step = |target: usize, bytes| {
            let forecast = Forecast { points: target as u64, bytes_max: bytes };
            (RetentionStep::RetireBefore(oldest[target].id), forecast)
        };
        if excess > 0 {
            let (mut target, mut freed) = (1, sizes[0] + sizes[1]);
            while target + 1 < oldest.len() && freed < excess && freed + sizes[target + 1] <= room {
                target += 1;
                freed += sizes[target];
            }
            return Ok(Some(step(target, freed)));
        }
        let gains = self.gains(&oldest).await?.bytes;
        let mut goes = sizes[0];
        let mut worth = Vec::new();
        for target in 1..oldest.len() {
            goes += sizes[target];
            let gain = u64::try_from(gains[target]).unwrap_or_default();
            if gain > 0 && gain >= goes / WORTH_OF_WHAT_GOES {
                worth.push((target, gain));
            }
        }
        let enough = worth.iter().find(|(_, gain)| *gain >= lack);
        Ok(enough.or(worth.first()).map(|&(target, gain)| step(target, gain)))
    }

    /// The oldest points up to which the base may advance, as many as are worked on at a time: up to the first that must stay, or the
    /// newest.
    fn oldest_that_may_go(&self) -> Vec<PointRecord> {
        let state = self.manifest.state();
        let pinned: HashSet<PointId> = state.pins().iter().map(|pin| pin.point).collect();
        let must_stay =
            |point: &PointRecord| pinned.contains(&point.id) || self.leases.holds_point(point.marker);
        let points = state.points();
        let count = points.iter().position(must_stay).map_or(points.len(), |first| first + 1);
        points[..batch(&points[..count]).min(count)].to_vec()
    }

    /// Takes a step, for a ladder or for a person.
    pub async fn take_step(&self, step: RetentionStep, ladder: Option<&Ladder>) -> Result<()> {
        match step {
            RetentionStep::RetireBefore(point) => self.retire_before(point, ladder).await,
            RetentionStep::Merge(first, into) => self.merge_points(first, into, ladder).await,
        }
    }

    /// What a ladder would do now.
    pub fn forecast(&self, ladder: &Ladder, now: Moment) -> Forecast {
        let state = self.manifest.state();
        let plan = self.planned(&state, ladder, now);
        let going = plan.going().map(|index| &state.points()[index]);
        // The delta of the point that the base becomes goes into it too.
        let base = plan.base.map(|index| &state.points()[index]);
        let bytes = going.chain(base).filter_map(|point| point.delta).map(|delta| delta.total_bytes).sum();
        Forecast { points: plan.points() as u64, bytes_max: bytes }
    }

    /// Drops a point: what changed up to it becomes part of the next one. Of the oldest, [`Vault::finish_advance`] has to
    /// follow.
    pub async fn delete_point(&self, point: PointId) -> Result<()> {
        let step = {
            let state = self.manifest.state();
            let unknown = || Error::new(ErrorKind::NotFound, format!("there is no recovery point {point}"));
            let index = state.index_of(point).ok_or_else(unknown)?;
            let Some(next) = state.points().get(index + 1) else {
                let text =
                    "the newest recovery point cannot be deleted: make another one first ('point create')";
                return Err(Error::invalid(text));
            };
            self.check_unread(&state.points()[index])?;
            match index {
                0 => RetentionStep::RetireBefore(next.id),
                _ => RetentionStep::Merge(point, next.id),
            }
        };
        let lacks_room =
            |error: &Error| error.kind() == ErrorKind::NoSpace && matches!(step, RetentionStep::Merge(..));
        self.take_step(step, None).await.map_err(|error| match error {
            error if lacks_room(&error) => error.within(
                "there is no room for what the next point takes over of this one: delete points from the oldest on, or free space",
            ),
            error => error,
        })
    }

    /// Keeps a point until it is released.
    pub async fn hold_point(&self, point: PointId) -> Result<()> {
        let (id, created) = (PinId(self.runtime.random_u128()), self.runtime.wall());
        let pin = PinRecord { id, point, created, kind: PinKind::Hold };
        self.manifest.append(Change::PinAdded(pin)).await.map(drop)
    }

    /// Ends a hold.
    pub async fn release_point(&self, point: PointId) -> Result<()> {
        let decide = |state: &State| {
            state.hold_of(point).map(Change::PinRemoved).ok_or_else(|| {
                Error::invalid(format!("recovery point {point} is not held: 'point list' shows which are"))
            })
        };
        self.manifest.append_with(decide).await.map(drop)
    }
}
