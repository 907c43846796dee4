//! Gives freed memory back while the gateway has little to do.
//!
//! The C library keeps what a burst of writes took: two hundred MiB of a group that is idle since. To give it back holds up who
//! wants memory meanwhile, so that it waits until nobody does: until the process has used little CPU time for a while.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::MissedTickBehavior;

use crate::storage::heap;

/// How long it has to be idle.
const TICK: Duration = Duration::from_secs(5);
/// Idle is who uses no more CPU time than this in one tick,
const IDLE: Duration = Duration::from_millis(100);
/// and there may be something to give back after so much of it.
const WORK: Duration = Duration::from_millis(500);

/// Looks for idle moments until it is cancelled.
pub(super) async fn keep() {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut moments = IdleMoments::default();
    loop {
        ticks.tick().await;
        if moments.come_now(used()) {
            // Its own time is no work.
            let _ = tokio::task::spawn_blocking(heap::give_back).await;
            moments.given_back(used());
        }
    }
}

/// CPU time that the process has used.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    // It only grows, from zero.
    Duration::try_from(time).unwrap_or_default()
}

/// Tells when memory is to be given back, by CPU time.
#[derive(Debug, Default)]
struct IdleMoments {
    /// What was used when memory was given back last,
    at_last: Duration,
    /// and at the last tick.
    at_tick: Duration,
}

impl IdleMoments {
    /// Whether the last tick was idle, and work came before it.
    fn come_now(&mut self, used: Duration) -> bool {
        let in_tick = used.saturating_sub(std::mem::replace(&mut self.at_tick, used));
        in_tick <= IDLE && used.saturating_sub(self.at_last) >= WORK
    }

    fn given_back(&mut self, used: Duration) {
        (self.at_last, self.at_tick) = (used, used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_come_once_after_work() {
        let mut moments = IdleMoments::default();
        let mut come = |ms| {
            let comes = moments.come_now(Duration::from_millis(ms));
            if comes {
                moments.given_back(Duration::from_millis(ms + 50));
            }
            comes
        };
        assert!(!come(90), "it has only begun");
        assert!(!come(2_000), "at work");
        assert!(!come(2_101), "still");
        assert!(come(2_190), "nearly idle");
        assert!(!come(2_240) && !come(2_340), "nothing was done since");
        assert!(!come(2_600), "at work");
        assert!(!come(2_700), "idle, after little");
        assert!(!come(5_000) && come(5_000));
    }
}
