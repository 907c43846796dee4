//! Whether retention rests because of the clock, and what people are told of that.
//!
//! A step of the clock ([`ClockStep`]) that an opening finds, or that is seen while the group is served, suspends retention for as
//! long as the ladder's first rung lasts, an hour at most. It is told once; so is that group time of an earlier leap
//! is no part of ages any more, because the clock was set back.

use std::time::Duration;

use crate::counted::counted;
use crate::protect::clock::{self, ClockStep, GroupClock, STEP_MIN, Stepped};
use crate::protect::events::GroupEvent;
use crate::protect::group::nanos;
use crate::runtime::Runtime;
use crate::units::{GroupNanos, WallNanos};
use crate::vault::{Moment, Vault};

/// What comes to be doubtful of ages is told from this on.
const DOUBT_MIN: Duration = Duration::from_secs(60);

/// Why no point goes by its age, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspension {
    /// Because of this.
    pub step: ClockStep,
    /// When it ends, by the wall clock as it is.
    pub until: WallNanos,
}

impl Suspension {
    /// For people: `until TIME, because the clock …`.
    pub fn text(&self) -> String {
        let Suspension { step: ClockStep { from, to, is_assumed }, until } = self;
        if *is_assumed {
            format!(
                "until {until}, because the clock went on from {from} to {to} before a start, or is wrong"
            )
        } else {
            format!("until {until}, because the clock was set from {from} to {to}")
        }
    }
}

/// Watches both clocks of a group.
pub(super) struct ClockWatch {
    clock: GroupClock,
    /// Wall minus monotonic clock, as seen last.
    offset: i128,
    /// The last step.
    stepped: Option<Stepped>,
    /// What was doubtful of ages when it was looked at last, or told.
    doubtful: Duration,
}

impl ClockWatch {
    /// Looks at what an opening found; `first_rung` is the age that the ladder's first rung ends at.
    pub(super) fn new(
        clock: GroupClock,
        runtime: &Runtime,
        vault: &Vault,
        first_rung: Option<Duration>,
    ) -> (ClockWatch, Option<GroupEvent>) {
        let stepped = first_rung.and_then(|first_rung| {
            let manifest = vault.manifest();
            let state = manifest.state();
            clock.step_before_opening(state.points().iter().rev().map(Moment::of), first_rung)
        });
        // As of the marker before: what this opening adds is news.
        let doubtful = clock.before_opening().map(|before| vault.doubtful(before)).unwrap_or_default();
        let watch = ClockWatch { clock, offset: offset(runtime), stepped, doubtful };
        let is_news = stepped.is_some_and(|stepped| clock.is_of_opening(&stepped));
        let event =
            is_news.then(|| watch.suspension(runtime, first_rung)).flatten().map(GroupEvent::ClockStepped);
        (watch, event)
    }

    /// Both clocks as they stand.
    pub(super) fn now(&self, runtime: &Runtime) -> Moment {
        self.clock.now(runtime)
    }

    /// Looks at the clocks; what is to be told.
    pub(super) fn look(
        &mut self,
        runtime: &Runtime,
        vault: &Vault,
        first_rung: Option<Duration>,
    ) -> Vec<GroupEvent> {
        let mut events = Vec::new();
        let offset = offset(runtime);
        let parted = offset - std::mem::replace(&mut self.offset, offset);
        if parted.unsigned_abs() > STEP_MIN.as_nanos() {
            let now = self.now(runtime);
            let from = i64::try_from(i128::from(now.wall.0) - parted).unwrap_or(i64::MAX);
            let step = ClockStep { from: WallNanos(from), to: now.wall, is_assumed: false };
            self.stepped = Some(Stepped { at: now.group, step });
            events.extend(self.suspension(runtime, first_rung).map(GroupEvent::ClockStepped));
        }
        if first_rung.is_some() {
            events.extend(self.look_at_doubt(vault.doubtful(self.now(runtime))));
        }
        events
    }

    fn look_at_doubt(&mut self, doubtful: Duration) -> Option<GroupEvent> {
        let more = doubtful.saturating_sub(self.doubtful);
        let is_news = more >= DOUBT_MIN;
        if is_news || doubtful < self.doubtful {
            self.doubtful = doubtful;
        }
        is_news.then_some(GroupEvent::LeapExcluded { doubtful: more })
    }

    /// Whether retention rests: a ladder whose first rung is shorter shortens that, too.
    pub(super) fn suspension(&self, runtime: &Runtime, first_rung: Option<Duration>) -> Option<Suspension> {
        let Stepped { at: GroupNanos(at), step } = self.stepped?;
        let now = self.now(runtime);
        let left =
            (at + nanos(clock::suspension(first_rung?))).checked_sub(now.group.0).filter(|&left| left > 0)?;
        let until = WallNanos(now.wall.0.saturating_add(i64::try_from(left).unwrap_or(i64::MAX)));
        Some(Suspension { step, until })
    }
}

fn offset(runtime: &Runtime) -> i128 {
    i128::from(runtime.wall().0) - i128::from(runtime.now().0)
}

/// A stretch of time for people.
pub(super) fn stretch(duration: Duration) -> String {
    let minutes = duration.as_secs() / 60;
    match minutes {
        ..120 => counted(minutes, "minute").to_string(),
        120..2880 => counted(minutes / 60, "hour").to_string(),
        _ => counted(minutes / (24 * 60), "day").to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_to_be_doubtful_is_told_once() {
        let mut clock = watch();
        let told =
            |watch: &mut ClockWatch, minutes: u64| watch.look_at_doubt(Duration::from_secs(60 * minutes));
        let news =
            |minutes: u64| Some(GroupEvent::LeapExcluded { doubtful: Duration::from_secs(60 * minutes) });
        assert_eq!(told(&mut clock, 0), None);
        assert_eq!(clock.look_at_doubt(Duration::from_secs(59)), None);
        assert_eq!(told(&mut clock, 30), news(30));
        assert_eq!(told(&mut clock, 30), None);
        assert_eq!(told(&mut clock, 40), news(10));
        // The points from before it have gone: another leap is another story.
        assert_eq!(told(&mut clock, 0), None);
        assert_eq!(told(&mut clock, 5), news(5));
    }

    fn watch() -> ClockWatch {
        let environment = std::rc::Rc::new(crate::env::OsEnvironment::new());
        let storage = crate::storage::blocking::Blocking::new(1).expect("a back end");
        let runtime = Runtime::new(Box::new(storage), environment);
        let clock = GroupClock::take_up(
            None,
            std::iter::empty(),
            crate::units::Lsn(1),
            &runtime,
            crate::planted::Planted::NONE,
        );
        ClockWatch { clock, offset: 0, stepped: None, doubtful: Duration::ZERO }
    }

    #[test]
    fn a_suspension_says_until_when_and_why() {
        let second = |seconds: i64| WallNanos(seconds * 1_000_000_000);
        let step = ClockStep { from: second(0), to: second(60), is_assumed: false };
        let set = Suspension { step, until: second(3600) };
        assert_eq!(
            set.text(),
            "until 1970-01-01T01:00:00.000Z, because the clock was set from 1970-01-01T00:00:00.000Z to \
             1970-01-01T00:01:00.000Z"
        );
        let leap = Suspension { step: ClockStep { is_assumed: true, ..step }, ..set };
        assert!(leap.text().ends_with("before a start, or is wrong"), "{}", leap.text());
    }

    #[test]
    fn stretches_are_told_in_the_unit_that_matters() {
        let told = |seconds| stretch(Duration::from_secs(seconds));
        assert_eq!([told(90), told(7200), told(366 * 24 * 3600)], ["1 minute", "2 hours", "366 days"]);
    }
}
