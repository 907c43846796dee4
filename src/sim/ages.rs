//! How old points truly are: the simulator knows what no group can, the true time, and by how much the wall clock is wrong.
//!
//! What is held against retention: an age exceeds the truth at most by as much as the wall clock is ahead now, beyond what it
//! was ahead at any time since the point was made (`vault::age` says why). So where the clock is right, or was set back to
//! what it was, no leap of group time makes a point old.

use std::collections::BTreeMap;

use crate::env::Environment;
use crate::format::record::PointRecord;
use crate::units::Lsn;
use crate::vault::Moment;

/// Both clocks, as they were whenever the process did something.
#[derive(Default)]
pub(super) struct TrueTime {
    now: u64,
    /// True time less group time, by the first record of each incarnation: within one group time is true.
    lives: BTreeMap<Lsn, i128>,
    /// Wall clock less true time, from a time on.
    ahead: Vec<(u64, i128)>,
    /// The most that it was ahead when a plan was made that may still be carried out.
    ahead_max: i128,
}

impl TrueTime {
    /// The process did something; `life` is its group's moment.
    pub(super) fn note(&mut self, environment: &dyn Environment, life: Option<Moment>) {
        self.now = environment.monotonic().0;
        let ahead = i128::from(environment.wall().0) - i128::from(self.now);
        if self.ahead.last().is_none_or(|&(_, known)| known != ahead) {
            self.ahead.push((self.now, ahead));
        }
        self.ahead_max = self.ahead_max.max(ahead);
        if let Some(Moment { group, lsn, .. }) = life {
            self.lives.insert(lsn, i128::from(self.now) - i128::from(group.0));
        }
    }

    /// Nothing that was planned is under way any more.
    pub(super) fn forget_plans(&mut self) {
        self.ahead_max = self.ahead.last().map_or(0, |&(_, ahead)| ahead);
    }

    /// What is known now.
    pub(super) fn ages(&self) -> Ages<'_> {
        Ages(self)
    }
}

/// What is known of the ages of points.
pub(super) struct Ages<'a>(&'a TrueTime);

impl Ages<'_> {
    /// Nanoseconds that a point may be taken to be old, at most.
    pub(super) fn most(&self, point: &PointRecord) -> Option<u64> {
        let Ages(time) = self;
        let (first, life) = time.lives.range(..=point.marker).next_back()?;
        let made = i128::from(point.group_time.0) + life;
        if !first.shares_incarnation(point.marker) {
            return None;
        }
        // Somebody may set the clock in the very moment of a marker.
        let after = time.ahead.partition_point(|&(from, _)| i128::from(from) < made);
        let since = &time.ahead[after.saturating_sub(1)..];
        let least = since.iter().map(|&(_, ahead)| ahead).min()?;
        let excess = (time.ahead_max - least).max(0);
        u64::try_from(i128::from(time.now) - made + excess).ok()
    }
}
