//! Clock and randomness: the only door through which either enters the crate.
//!
//! The simulator hands in its own, so that one seed decides everything; clippy's `disallowed-methods` keeps every
//! other module from opening a door of its own.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::units::{MonotonicNanos, WallNanos};

/// Where time and randomness come from.
pub trait Environment {
    /// A clock that only goes forward.
    fn monotonic(&self) -> MonotonicNanos;
    /// The wall clock, which a person or NTP may step either way.
    fn wall(&self) -> WallNanos;
    /// 128 random bits; ids are drawn here, so they must not repeat between processes or copies of a data
    /// directory.
    fn random_u128(&self) -> u128;
}

/// The operating system's clocks and random numbers.
#[derive(Debug)]
pub struct OsEnvironment {
    start: Instant,
}

impl OsEnvironment {
    /// The environment of this process; its monotonic clock starts at zero now.
    #[allow(clippy::disallowed_methods)]
    pub fn new() -> OsEnvironment {
        OsEnvironment { start: Instant::now() }
    }
}

impl Default for OsEnvironment {
    fn default() -> OsEnvironment {
        OsEnvironment::new()
    }
}

impl Environment for OsEnvironment {
    fn monotonic(&self) -> MonotonicNanos {
        MonotonicNanos(u64::try_from(self.start.elapsed().as_nanos()).expect("584 years of uptime"))
    }

    #[allow(clippy::disallowed_methods)]
    fn wall(&self) -> WallNanos {
        let now = SystemTime::now();
        let nanos = match now.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_nanos()),
            Err(before) => i64::try_from(before.duration().as_nanos()).map(|nanos| -nanos),
        };
        WallNanos(nanos.unwrap_or(i64::MAX))
    }

    #[allow(clippy::disallowed_methods)]
    fn random_u128(&self) -> u128 {
        let mut bytes = [0_u8; 16];
        getrandom::fill(&mut bytes).expect("the kernel's random numbers are always there after boot");
        u128::from_le_bytes(bytes)
    }
}
