//! A clock that jumped suspends retention, however often the group is opened anew meanwhile; and what it jumped makes no point
//! old once it was set right.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use afterimage::env::{Environment, OsEnvironment};
use afterimage::format::ladder::{Ladder, Rung};
use afterimage::protect::events::GroupEvent;
use afterimage::units::{MonotonicNanos, WallNanos};

use super::{Harness, Steps, scratch};

/// The operating system's clocks, the wall clock set ahead by so much.
struct SetAhead {
    os: OsEnvironment,
    by: Cell<Duration>,
}

impl SetAhead {
    fn new(by: Duration) -> SetAhead {
        SetAhead { os: OsEnvironment::new(), by: Cell::new(by) }
    }
}

impl Environment for SetAhead {
    fn monotonic(&self) -> MonotonicNanos {
        self.os.monotonic()
    }

    fn wall(&self) -> WallNanos {
        let by = i64::try_from(self.by.get().as_nanos()).expect("less than 292 years");
        WallNanos(self.os.wall().0 + by)
    }

    fn random_u128(&self) -> u128 {
        self.os.random_u128()
    }
}

impl Harness {
    /// Opens the group on that clock, and waits until its retention has had its first turn.
    fn open_on(root: &Path, clock: Rc<SetAhead>) -> Harness {
        let mut harness = Harness::open_in(root, clock).expect("opens");
        // It looks at space once it has done what the ladder wants.
        harness.drive(|group| group.snapshot().retention.space.is_some());
        harness
    }

    fn is_suspended(&self) -> bool {
        self.group.snapshot().retention.suspended.is_some()
    }

    fn labels(&self) -> Vec<String> {
        self.group.points().iter().map(|point| point.label.clone()).collect()
    }
}

/// A group with the ladder of new groups, and some points within one minute.
fn with_history(root: &Path) {
    with_history_at(root, Duration::ZERO);
}

fn with_history_at(root: &Path, by: Duration) {
    let created = Harness::create(root);
    created.stop();
    let mut harness = Harness::open_on(root, Rc::new(SetAhead::new(by)));
    harness.called(|group, done| group.set_policy(None, Some(Ladder::default()), done)).expect("a policy");
    let disk = harness.add_disk("d", 64);
    for label in ["a", "b", "c"] {
        harness.write(disk, 0, 1, 8);
        harness.point(label);
    }
    harness.stop();
}

#[test]
fn a_restart_goes_on_with_the_suspension_of_the_one_before() {
    let (_guard, root) = scratch();
    with_history(&root);
    let two_hours = Duration::from_secs(7200);
    let mut first = Harness::open_on(&root, Rc::new(SetAhead::new(two_hours)));
    assert_eq!(first.labels(), ["a", "b", "c"]);
    first.point("after");
    first.stop();
    let second = Harness::open_on(&root, Rc::new(SetAhead::new(two_hours)));
    assert_eq!(second.labels(), ["a", "b", "c", "after"]);
    second.stop();
    let mut third = Harness::open_on(&root, Rc::new(SetAhead::new(two_hours + Duration::from_secs(3500))));
    assert_eq!(third.labels(), ["a", "b", "c", "after"]);
    third.point("later");
    third.stop();
    // An hour after the jump the ladder applies: a restart after minutes is no jump.
    let fourth = Harness::open_on(&root, Rc::new(SetAhead::new(two_hours + Duration::from_secs(3700))));
    assert!(!fourth.is_suspended());
    assert!(!fourth.labels().contains(&"b".to_owned()));
    fourth.stop();
}

#[test]
fn a_clock_that_was_set_under_a_running_group_suspends_the_next_opening_too() {
    let (_guard, root) = scratch();
    with_history(&root);
    let clock = Rc::new(SetAhead::new(Duration::ZERO));
    let mut running = Harness::open_in(&root, Rc::clone(&clock) as _).expect("opens");
    clock.by.set(Duration::from_secs(30 * 24 * 3600));
    running.point("after");
    running.stop();
    let next = Harness::open_on(&root, clock);
    assert!(next.is_suspended());
    assert_eq!(next.labels(), ["a", "b", "c", "after"]);
    next.stop();
}

const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);

impl Harness {
    /// What was said of the clock since the last time.
    fn said_of_the_clock(&mut self) -> Vec<&'static str> {
        let events = self.group.take_events();
        let codes = events.iter().map(|told| told.event.code());
        codes.filter(|code| ["clock_stepped", "leap_excluded"].contains(code)).collect()
    }

    /// A ladder whose first rung is so short that a suspension is over at once, and nothing older than an hour stays.
    fn keep_an_hour(&mut self) {
        let rungs = vec![Rung { until_ms: 10, spacing_ms: 0 }, Rung { until_ms: 3_600_000, spacing_ms: 1 }];
        let ladder = Ladder::new(rungs).expect("legal");
        self.called(|group, done| group.set_policy(None, Some(ladder), done)).expect("a policy");
    }

    /// Waits until retention did what the ladder wants, with no suspension left.
    fn apply_ladder(&mut self) {
        self.drive(|group| {
            let retention = group.snapshot().retention;
            retention.suspended.is_none() && retention.space.is_some() && !group.is_retaining()
        });
        // And once more, now that nothing suspends it.
        self.point("last");
        self.called(|group, done| group.set_policy(None, None, done)).expect("a policy");
    }
}

#[test]
fn a_leap_that_was_taken_back_makes_no_point_old() {
    let (_guard, root) = scratch();
    with_history(&root);
    let clock = Rc::new(SetAhead::new(YEAR));
    let mut wrong = Harness::open_on(&root, Rc::clone(&clock));
    assert_eq!(wrong.said_of_the_clock(), ["clock_stepped"]);
    wrong.point("ahead");
    clock.by.set(Duration::ZERO);
    wrong.point("right");
    wrong.keep_an_hour();
    wrong.drive(|group| group.forecast(&an_hour()).points == 0);
    wrong.apply_ladder();
    assert_eq!(wrong.labels()[..3], ["a", "b", "c"]);
    assert_eq!(wrong.said_of_the_clock(), ["clock_stepped", "leap_excluded"]);
    wrong.stop();
    // Nor after a restart, which says nothing that was said before.
    let mut next = Harness::open_on(&root, clock);
    next.apply_ladder();
    assert_eq!(next.labels()[..3], ["a", "b", "c"]);
    // An opening that comes later than the first rung allows, ten milliseconds, is a step of its own.
    assert!(!next.said_of_the_clock().contains(&"leap_excluded"));
    next.stop();
}

#[test]
fn a_start_with_a_clock_that_is_behind_makes_no_point_old_at_the_next() {
    let (_guard, root) = scratch();
    with_history_at(&root, YEAR);
    let mut behind = Harness::open_on(&root, Rc::new(SetAhead::new(Duration::ZERO)));
    behind.point("behind");
    behind.stop();
    let right = Harness::open_on(&root, Rc::new(SetAhead::new(YEAR + Duration::from_secs(60))));
    assert!(right.is_suspended());
    let oldest = right.group.points()[0].group_time.0;
    let passed = Duration::from_nanos(right.group.group_time().0 - oldest);
    assert!(passed < HOUR, "{passed:?}");
    right.stop();
}

fn an_hour() -> Ladder {
    Ladder::new(vec![Rung { until_ms: 3_600_000, spacing_ms: 0 }]).expect("legal")
}

#[test]
fn status_says_until_when_no_point_goes_and_why() {
    let (_guard, root) = scratch();
    with_history(&root);
    let mut harness = Harness::open_on(&root, Rc::new(SetAhead::new(YEAR)));
    let suspension = harness.group.snapshot().retention.suspended.expect("a year has passed");
    assert!(suspension.step.is_assumed);
    assert!(suspension.step.to.0 - suspension.step.from.0 >= i64::try_from(YEAR.as_nanos()).expect("fits"));
    let left = suspension.until.0 - suspension.step.to.0;
    assert!(left <= i64::try_from(HOUR.as_nanos()).expect("fits"));
    let events = harness.group.take_events();
    let told =
        events.iter().find(|told| matches!(told.event, GroupEvent::ClockStepped(_))).expect("it is told");
    let text = told.event.text();
    assert!(text.contains("because the clock went on from") && text.contains("group pause"), "{text}");
    harness.stop();
}
