//! Clock, randomness and the host's boot: the only door through which any of them enters the crate.
//!
//! The simulator hands in its own, so that one seed decides everything; clippy's `disallowed-methods` keeps every
//! other module from opening a door of its own.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::units::{MonotonicNanos, WallNanos};

/// One run of the host's kernel, from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootId(pub u128);

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where time and randomness come from.
pub trait Environment {
    /// A clock that only goes forward.
    fn monotonic(&self) -> MonotonicNanos;
    /// The wall clock, which a person or NTP may step either way.
    fn wall(&self) -> WallNanos;
    /// 128 random bits; ids are drawn here, so they must not repeat between processes or copies of a data
    /// directory.
    fn random_u128(&self) -> u128;
    /// The boot of the host, if it is known: the death of a process keeps it, a power cut does not.
    fn boot(&self) -> Option<BootId> {
        None
    }
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

    fn boot(&self) -> Option<BootId> {
        std::fs::read_to_string(BOOT_ID).ok().as_deref().and_then(parse_boot_id)
    }
}

/// Reads a UUID; one of zeros names nothing.
fn parse_boot_id(text: &str) -> Option<BootId> {
    let digits = text.trim().replace('-', "");
    let id = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32)?;
    (id != 0).then_some(BootId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_known_by_its_uuid() {
        let id = parse_boot_id("5cf7d2a1-0000-4b6c-8f12-0123456789ab\n");
        assert_eq!(id, Some(BootId(0x5cf7_d2a1_0000_4b6c_8f12_0123_4567_89ab)));
        for text in ["", "none", "5cf7d2a1", "00000000-0000-0000-0000-000000000000"] {
            assert_eq!(parse_boot_id(text), None, "{text:?}");
        }
        assert_eq!(OsEnvironment::new().boot(), OsEnvironment::new().boot(), "it stays the same");
    }
}
