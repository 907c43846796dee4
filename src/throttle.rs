//! A throttle: lets so many bytes a second pass, and makes whoever wants more wait, on the runtime's timers.
//!
//! It is a token bucket that may run into debt: who took too much waits until it is paid off, so that one take may be
//! larger than the bucket. Nothing here waits but the task that asked; the owner thread goes on.
//!
//! Whoever made a throttle may also hold it: then nobody passes until it lets go.

use std::cell::Cell;
use std::num::NonZeroU64;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::runtime::Runtime;
use crate::units::MonotonicNanos;

/// What an idle throttle saves up at most: a pause is not made up for by a burst.
const SAVED_MAX: Duration = Duration::from_millis(100);
/// Longest single wait: the rest is waited for in turns, so that a hold, or a cancellation between turns, is heard.
const TURN_MAX: Duration = Duration::from_secs(1);
const NANOS_A_SECOND: u128 = 1_000_000_000;

/// Bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRate(pub NonZeroU64);

impl ByteRate {
    fn nanos_for(self, bytes: u64) -> u64 {
        let nanos = u128::from(bytes) * NANOS_A_SECOND / u128::from(self.0.get());
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

/// Whether a throttle lets anything pass; clones say the same. It may be kept on another thread.
#[derive(Clone, Debug, Default)]
pub struct Hold(Arc<AtomicBool>);

impl Hold {
    /// Lets nothing pass from now on, or lets it pass again.
    pub fn set(&self, held: bool) {
        self.0.store(held, Ordering::Relaxed);
    }

    /// Whether it is held.
    pub fn is_held(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a throttle is to do, before it has a runtime to do it on.
#[derive(Clone, Debug, Default)]
pub struct Pacing {
    /// How much may pass; without one as much as there is.
    pub rate: Option<ByteRate>,
    /// When nothing may.
    pub hold: Hold,
}

impl Pacing {
    /// The throttle, on a runtime.
    pub fn on(&self, runtime: &Rc<Runtime>) -> Throttle {
        Throttle { runtime: Rc::clone(runtime), pacing: self.clone(), paid_until: Cell::new(runtime.now()) }
    }
}

/// Lets bytes pass at a rate.
pub struct Throttle {
    runtime: Rc<Runtime>,
    pacing: Pacing,
    /// When everything that was taken so far is paid off.
    paid_until: Cell<MonotonicNanos>,
}

impl Throttle {
    /// Takes `bytes` that were just moved. `wanted` is asked whenever a wait goes on; its error ends the wait.
    pub async fn take<E>(&self, bytes: u64, wanted: impl Fn() -> Result<(), E>) -> Result<(), E> {
        if let Some(rate) = self.pacing.rate {
            let saved = u64::try_from(SAVED_MAX.as_nanos()).unwrap_or(u64::MAX);
            let earliest = self.runtime.now().0.saturating_sub(saved);
            let from = self.paid_until.get().0.max(earliest);
            self.paid_until.set(MonotonicNanos(from.saturating_add(rate.nanos_for(bytes))));
        }
        loop {
            wanted()?;
            let debt = Duration::from_nanos(self.paid_until.get().0.saturating_sub(self.runtime.now().0));
            let wait = if self.pacing.hold.is_held() { TURN_MAX } else { debt.min(TURN_MAX) };
            if wait.is_zero() {
                return Ok(());
            }
            self.runtime.sleep(wait).await;
        }
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::storage::sim::{SimDisk, SimEnvironment, SimStorage};

    fn rate(bytes: u64) -> Option<ByteRate> {
        NonZeroU64::new(bytes).map(ByteRate)
    }

    /// How long `takes` take, as the environment counts.
    fn time(pacing: &Pacing, takes: &'static [u64]) -> Duration {
        let environment = SimEnvironment::new(1);
        let storage = SimStorage::new(&SimDisk::new(1));
        let runtime = Runtime::new(Box::new(storage), Rc::clone(&environment) as _);
        let throttle = pacing.on(&runtime);
        let done = Rc::new(Cell::new(false));
        let noted = Rc::clone(&done);
        runtime.spawn(async move {
            for &bytes in takes {
                throttle.take(bytes, || Ok::<_, Infallible>(())).await.expect("never fails");
            }
            noted.set(true);
        });
        let began = runtime.now();
        loop {
            runtime.step(&mut Vec::new());
            if done.get() {
                return Duration::from_nanos(runtime.now().0 - began.0);
            }
            environment.advance_to(runtime.next_timer().expect("it waits"));
        }
    }

    #[test]
    fn bytes_pass_at_the_rate_whatever_their_portions() {
        let pacing = Pacing { rate: rate(1000), hold: Hold::default() };
        assert_eq!(time(&pacing, &[10_000]), Duration::from_secs(10));
        assert_eq!(time(&pacing, &[2500; 4]), Duration::from_secs(10));
        assert_eq!(time(&Pacing::default(), &[u64::MAX; 4]), Duration::ZERO);
    }

    #[test]
    fn who_is_held_waits_and_who_is_no_longer_wanted_does_not() {
        let environment = SimEnvironment::new(1);
        let runtime = Runtime::new(Box::new(SimStorage::new(&SimDisk::new(1))), Rc::clone(&environment) as _);
        let pacing = Pacing::default();
        pacing.hold.set(true);
        let (throttle, wanted) = (pacing.on(&runtime), Rc::new(Cell::new(true)));
        let (result, asked) = (Rc::new(Cell::new(None)), Rc::clone(&wanted));
        let noted = Rc::clone(&result);
        runtime.spawn(async move {
            let is_wanted = || if asked.get() { Ok(()) } else { Err("cancelled") };
            noted.set(Some(throttle.take(1, is_wanted).await));
            noted.set(Some(throttle.take(1, is_wanted).await));
        });
        let pass = || {
            runtime.step(&mut Vec::new());
            environment.advance(TURN_MAX);
            runtime.step(&mut Vec::new());
        };
        pass();
        assert_eq!(result.get(), None, "held");
        pacing.hold.set(false);
        pass();
        assert_eq!(result.get(), Some(Ok(())));
        let (held, unwanted) = (pacing.on(&runtime), Rc::clone(&result));
        pacing.hold.set(true);
        let asked = Rc::clone(&wanted);
        runtime.spawn(async move {
            let is_wanted = || if asked.get() { Ok(()) } else { Err("cancelled") };
            unwanted.set(Some(held.take(1, is_wanted).await));
        });
        wanted.set(false);
        pass();
        assert_eq!(result.get(), Some(Err("cancelled")));
    }
}
