//! How long a data thread looks for what comes next before it goes to sleep.
//!
//! To fall asleep and to be woken takes longer than many a device: at depth 1, where each request waits for one write, a fifth of the
//! whole. So the thread looks again and again for a while, if it would not have slept longer than that lately; otherwise it sleeps at
//! once, and costs nothing. The kernel's `halt_poll_ns` does the same for virtual processors.

use std::time::Duration;

/// The longest time that it looks without sleeping. A sleep that would have been shorter was not worth it.
const LOOK_MAX: Duration = Duration::from_micros(100);
/// How it begins, after one such sleep.
const LOOK_FIRST: Duration = Duration::from_micros(25);

/// How long to look, as the last waits went.
#[derive(Debug, Default)]
pub(super) struct Patience {
    look: Duration,
}

impl Patience {
    /// How long to look before the next sleep; zero for not at all.
    pub(super) fn look(&self) -> Duration {
        self.look
    }

    /// Nothing came while it looked, and what it waited for came after this long in all.
    pub(super) fn slept(&mut self, waited: Duration) {
        self.look = if waited <= LOOK_MAX {
            (self.look * 2).clamp(LOOK_FIRST, LOOK_MAX)
        } else if self.look > LOOK_FIRST {
            self.look / 2
        } else {
            Duration::ZERO
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_long_sleeps_at_once() {
        let mut patience = Patience::default();
        assert_eq!(patience.look(), Duration::ZERO);
        let (short, long) = (Duration::from_micros(60), Duration::from_millis(1));
        let after = |patience: &mut Patience, waited| {
            patience.slept(waited);
            patience.look().as_micros()
        };
        assert_eq!([(); 4].map(|()| after(&mut patience, short)), [25, 50, 100, 100]);
        assert_eq!([(); 4].map(|()| after(&mut patience, long)), [50, 25, 0, 0]);
        assert_eq!(after(&mut patience, LOOK_MAX), 25);
    }
}
