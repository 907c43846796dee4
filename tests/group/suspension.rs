//! A clock that jumped suspends retention, however often the group is opened anew meanwhile.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use afterimage::env::{Environment, OsEnvironment};
use afterimage::format::ladder::Ladder;
use afterimage::units::{MonotonicNanos, WallNanos};

use super::{Harness, scratch};

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
        self.group.snapshot().retention.suspended
    }

    fn labels(&self) -> Vec<String> {
        self.group.points().iter().map(|point| point.label.clone()).collect()
    }
}

/// A group with the ladder of new groups, and some points within one minute.
fn with_history(root: &Path) {
    let mut harness = Harness::create(root);
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
