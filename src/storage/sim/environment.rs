//! The simulator's clock and randomness: nothing passes unless the simulator says so, and a seed decides every id.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::env::{BootId, Environment};
use crate::random::Random;
use crate::units::{MonotonicNanos, WallNanos};

/// Where the simulated wall clock starts: 2026-01-01T00:00:00Z.
const WALL_START: i64 = 1_767_225_600_000_000_000;

/// A virtual clock and seeded ids.
#[derive(Debug)]
pub struct SimEnvironment {
    monotonic: Cell<u64>,
    /// Wall clock less monotonic clock.
    wall_offset: Cell<i64>,
    boot: Cell<u128>,
    random: RefCell<Random>,
}

impl SimEnvironment {
    /// The environment of `seed`, at monotonic zero.
    pub fn new(seed: u64) -> Rc<SimEnvironment> {
        let random = RefCell::new(Random::new(seed));
        let (monotonic, wall_offset) = (Cell::new(0), Cell::new(WALL_START));
        Rc::new(SimEnvironment { monotonic, wall_offset, boot: Cell::new(1), random })
    }

    /// Lets time pass on both clocks.
    pub fn advance(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).expect("a simulation ends within 584 years");
        self.monotonic.update(|now| now + nanos);
    }

    /// Lets time pass until `due`, such as the runtime's next timer; what is past already changes nothing.
    pub fn advance_to(&self, due: MonotonicNanos) {
        self.monotonic.update(|now| now.max(due.0));
    }

    /// The machine starts anew, as it does after a power cut.
    pub fn reboot(&self) {
        self.boot.update(|boot| boot + 1);
    }

    /// A person or NTP steps the wall clock, either way; the monotonic clock goes on.
    pub fn step_wall(&self, nanos: i64) {
        self.wall_offset.update(|offset| offset.saturating_add(nanos));
    }
}

impl Environment for SimEnvironment {
    fn monotonic(&self) -> MonotonicNanos {
        MonotonicNanos(self.monotonic.get())
    }

    fn wall(&self) -> WallNanos {
        let elapsed = i64::try_from(self.monotonic.get()).unwrap_or(i64::MAX);
        WallNanos(self.wall_offset.get().saturating_add(elapsed))
    }

    fn random_u128(&self) -> u128 {
        let mut random = self.random.borrow_mut();
        u128::from(random.next()) << 64 | u128::from(random.next())
    }

    fn boot(&self) -> Option<BootId> {
        Some(BootId(self.boot.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_only_when_told() {
        let environment = SimEnvironment::new(1);
        let wall = environment.wall();
        assert_eq!((environment.monotonic(), environment.wall()), (MonotonicNanos(0), wall));
        environment.advance(Duration::from_secs(2));
        environment.advance_to(MonotonicNanos(1));
        assert_eq!(environment.monotonic(), MonotonicNanos(2_000_000_000));
        environment.step_wall(-3_000_000_000);
        assert_eq!(environment.wall().0, wall.0 - 1_000_000_000);
        assert_eq!(
            environment.monotonic(),
            MonotonicNanos(2_000_000_000),
            "a step moves the wall clock only"
        );
    }

    #[test]
    fn a_seed_decides_every_id() {
        let (first, second) = (SimEnvironment::new(7), SimEnvironment::new(7));
        let ids: Vec<u128> = (0..100).map(|_| first.random_u128()).collect();
        assert!(ids.iter().all(|id| second.random_u128() == *id));
        assert_ne!(ids[0], SimEnvironment::new(8).random_u128());
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 100);
    }
}
