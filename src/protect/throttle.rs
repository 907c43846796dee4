//! Slows guests down before the journal is full, so that they wait a little each time instead of long at once.
//!
//! The journal gets room back in lumps: a batch of destage, or a point, lets go of many segments together. A guest that writes faster than
//! images take would go on at full speed until nothing is left, and stand still until the next lump. Instead, once
//! little is free, data goes into the journal at the pace that makes what is free last until the next lump is expected:
//!
//! ```text
//!  free │\
//!       │ \  full speed          lump
//!   3/8 ├──\────────────────────│────────────
//!       │   `·.   slowed       /│`·.
//!       │      `·.            / │   `·.
//!     0 └─────────`·.________/──┴──────`·.___▶ time
//!          rate = free / what is left of the time from one lump to the next
//! ```
//!
//! A lump that is late has it go on at half the pace at which room came back lately, for as long as the rest lasts; then data waits for a segment.
//! Only data waits: what the group writes itself does not.

use std::time::Duration;

use crate::protect::group::nanos;
use crate::units::MonotonicNanos;

/// Guests are slowed once less than this part of the journal is free.
const FREE_PART_SLOWED: (u64, u64) = (3, 8);
/// This part of it is left for a lump that comes late.
const MARGIN_PART: u64 = 8;
/// A lump that is late is waited for as if this part of the time were left.
const LATE_PART: u64 = 4;
/// Whatever is free, data goes neither this many times faster than room came back lately, nor slower;
const PACE_FACTOR: u128 = 2;
/// and never slower than so many bytes a second: a pace that nobody takes for a stop.
const SLOWEST_BYTES_S: u64 = 4 << 20;
/// Room that was longer on its way was not worked for all the time.
const CYCLE_MAX: Duration = Duration::from_secs(10);
/// What comes within this part of the time from lump to lump belongs to the one before.
const SAME_LUMP_PART: u64 = 8;
/// Until lumps have come, images are expected to take so many bytes a second,
const EXPECTED_BYTES_S: u64 = 200 << 20;
/// in lumps of this part of the journal.
const EXPECTED_LUMP_PART: u64 = 8;
/// Data goes on this far apart: often enough for nobody to notice, and seldom enough for frames to hold many writes.
const QUANTUM: Duration = Duration::from_millis(1);
/// After it was slowed, data counts as slowed for so long.
const SLOWED_FOR: Duration = Duration::from_secs(1);

/// What is free of a journal, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Of it, what data may take before it waits for a segment.
    pub(super) free: u64,
    /// All of it.
    pub(super) limit: u64,
}

impl Room {
    /// Whether little is free.
    pub(super) fn is_short(self) -> bool {
        self.free < self.slowed_below()
    }

    fn slowed_below(self) -> u64 {
        let (part, of) = FREE_PART_SLOWED;
        self.limit / of * part
    }
}

/// Room that comes back at once, and how long it takes to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lump {
    bytes: u64,
    cycle: u64,
}

impl Lump {
    fn expected(limit: u64) -> Lump {
        let bytes = limit / EXPECTED_LUMP_PART;
        Lump { bytes, cycle: bytes * 1_000_000_000 / EXPECTED_BYTES_S }
    }

    /// The newest counts for as much as all before it.
    fn then(self, newest: Lump) -> Lump {
        Lump { bytes: self.bytes / 2 + newest.bytes / 2, cycle: self.cycle / 2 + newest.cycle / 2 }
    }
}

/// The pace of data.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// What lumps are like, as far as is known.
    usual: Option<Lump>,
    /// Since when the next lump is waited for,
    begun: MonotonicNanos,
    /// and how the last one has been until now.
    last: Option<Lump>,
    /// Up to when what may go was reckoned, while data is slowed.
    reckoned: Option<MonotonicNanos>,
    /// When data last waited for more.
    withheld: Option<MonotonicNanos>,
}

impl Throttle {
    /// Work began that will give room back.
    pub(super) fn begins(&mut self, now: MonotonicNanos) {
        self.begun = now;
    }

    /// So many bytes of room came back.
    pub(super) fn gave_back(&mut self, now: MonotonicNanos, bytes: u64) {
        let took = now.0.saturating_sub(self.begun.0).min(nanos(CYCLE_MAX));
        if let Some(last) = &mut self.last {
            if took < last.cycle / SAME_LUMP_PART {
                last.bytes += bytes;
                return;
            }
            self.usual = Some(self.usual.map_or(*last, |usual| usual.then(*last)));
        }
        self.last = Some(Lump { bytes, cycle: took });
        self.begun = now;
    }

    /// What of data may go now, if `left` is what is left of the last answer; none: all of it.
    pub(super) fn allow(&mut self, now: MonotonicNanos, room: Room, left: Option<i64>) -> Option<i64> {
        if !room.is_short() {
            self.reckoned = None;
            return None;
        }
        let (Some(reckoned), Some(left)) = (self.reckoned, left) else {
            self.reckoned = Some(now);
            return Some(self.bytes_in(nanos(QUANTUM), now, room));
        };
        let passed = now.0.saturating_sub(reckoned.0);
        if passed < nanos(QUANTUM) {
            return Some(left);
        }
        self.reckoned = Some(now);
        // What nobody took is not saved up.
        let most = self.bytes_in(2 * nanos(QUANTUM), now, room);
        Some(left.saturating_add(self.bytes_in(passed, now, room)).min(most))
    }

    /// Data waits for its turn.
    pub(super) fn withholds(&mut self, now: MonotonicNanos) {
        self.withheld = Some(now);
    }

    /// When data that waits may go on.
    pub(super) fn due(&self) -> Option<MonotonicNanos> {
        self.reckoned.map(|reckoned| MonotonicNanos(reckoned.0 + nanos(QUANTUM)))
    }

    /// Whether data waited for its turn lately.
    pub(super) fn is_slowing(&self, now: MonotonicNanos) -> bool {
        self.withheld.is_some_and(|withheld| now.0 < withheld.0 + nanos(SLOWED_FOR))
    }

    /// Bytes that may go in so many nanoseconds.
    fn bytes_in(&self, passed: u64, now: MonotonicNanos, room: Room) -> i64 {
        let known = match (self.usual, self.last) {
            (Some(usual), Some(last)) => Some(usual.then(last)),
            (usual, last) => usual.or(last),
        };
        let Lump { bytes, cycle } = known.unwrap_or_else(|| Lump::expected(room.limit));
        let share = |bytes: u64, time: u64| u128::from(bytes) * u128::from(passed) / u128::from(time.max(1));
        let waited = now.0.saturating_sub(self.begun.0);
        let rest = cycle.saturating_sub(waited).max(cycle / LATE_PART);
        let lasting = room.free.saturating_sub(room.limit / MARGIN_PART);
        let usual = share(bytes, cycle);
        let pace = share(lasting, rest).clamp(usual / PACE_FACTOR, usual * PACE_FACTOR);
        i64::try_from(pace.max(share(SLOWEST_BYTES_S, nanos(Duration::from_secs(1))))).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SECOND: u64 = 1_000_000_000;
    const LIMIT: u64 = 1024 * MIB;

    fn room(free: u64) -> Room {
        Room { free, limit: LIMIT }
    }

    /// A guest that takes all that it may, beside lumps of so many bytes so far apart: the bytes of each millisecond behind the last of so many
    /// lumps, first of those in which it was not slowed.
    fn paces(lump: u64, apart: u64, lumps: u64) -> [Vec<i64>; 2] {
        let mut throttle = Throttle::default();
        let mut free = LIMIT * 3 / 8;
        let (mut left, mut paces) = (None, [Vec::new(), Vec::new()]);
        for millisecond in 0..lumps * apart / 1_000_000 {
            let now = MonotonicNanos(millisecond * 1_000_000);
            if now.0 > 0 && now.0.is_multiple_of(apart) {
                free += lump;
                throttle.gave_back(now, lump);
                paces.iter_mut().for_each(Vec::clear);
            }
            let allowed = throttle.allow(now, room(free), left);
            let takes = allowed.unwrap_or(MIB as i64).clamp(0, free as i64);
            free -= takes as u64;
            left = allowed.map(|allowed| allowed - takes);
            paces[usize::from(allowed.is_some())].push(takes);
        }
        paces
    }

    #[test]
    fn with_room_enough_nothing_is_held_back() {
        let mut throttle = Throttle::default();
        assert_eq!(throttle.allow(MonotonicNanos(5), room(LIMIT / 2), None), None);
        assert_eq!(throttle.due(), None);
        assert!(!throttle.is_slowing(MonotonicNanos(5)));
    }

    #[test]
    fn between_lumps_the_pace_is_steady_and_all_of_a_lump_is_taken() {
        let [fast, slowed] = paces(256 * MIB, 5 * SECOND / 2, 12);
        assert!(fast.len() < 50, "{} milliseconds at full speed", fast.len());
        let mean = 256 * MIB as i64 / 2500;
        let (least, most) = (*slowed.iter().min().expect("some"), *slowed.iter().max().expect("some"));
        assert!(least >= mean / 2 && most <= mean * 3 / 2, "{least} to {most} bytes a millisecond");
        let taken: i64 = fast.iter().chain(&slowed).sum();
        assert!(taken as u64 > 240 * MIB, "{taken} bytes of a lump were taken");
    }

    #[test]
    fn what_a_late_lump_leaves_is_used_up_in_the_end() {
        let mut throttle = Throttle::default();
        throttle.gave_back(MonotonicNanos(SECOND), LIMIT / 4);
        let (mut free, mut left) = (LIMIT / 4, None);
        let mut now = MonotonicNanos(SECOND);
        while free > 0 {
            now.0 += nanos(QUANTUM);
            let allowed = throttle.allow(now, room(free), left).expect("little is free");
            let takes = allowed.clamp(0, free as i64);
            (free, left) = (free - takes as u64, Some(allowed - takes));
            assert!(now.0 < 10 * SECOND, "{free} bytes are left");
        }
        assert!(now.0 > 2 * SECOND, "it was slowed down");
    }

    /// A lump that came after an idle hour was taken for the pace of images: nothing went on before the next one.
    #[test]
    fn no_lump_makes_the_pace_nothing() {
        let mut throttle = Throttle::default();
        throttle.begins(MonotonicNanos(SECOND));
        let mut now = MonotonicNanos(3600 * SECOND);
        throttle.gave_back(now, 1 << 16);
        let (mut taken, mut left) = (0, None);
        for _ in 0..1000 {
            now.0 += nanos(QUANTUM);
            let allowed = throttle.allow(now, room(LIMIT / 8), left).expect("little is free");
            taken += allowed.max(0);
            left = Some(0);
        }
        assert!(taken >= 4_000_000, "{taken} bytes in a second");
    }

    #[test]
    fn data_goes_on_after_its_turn_and_is_not_saved_up() {
        let mut throttle = Throttle::default();
        let begin = MonotonicNanos(SECOND);
        let first = throttle.allow(begin, room(LIMIT / 4), None).expect("little is free");
        assert!(first > 0);
        assert_eq!(throttle.allow(begin, room(LIMIT / 4), Some(-7)), Some(-7), "its turn has yet to come");
        throttle.withholds(begin);
        assert!(throttle.is_slowing(begin));
        let due = throttle.due().expect("data is slowed");
        assert!(throttle.allow(due, room(LIMIT / 4), Some(-7)).is_some_and(|bytes| bytes > 0));
        let later = MonotonicNanos(due.0 + SECOND);
        let saved = throttle.allow(later, room(LIMIT / 4), Some(first)).expect("little is free");
        assert!(saved <= 4 * first, "{saved} of {first}");
        assert!(!throttle.is_slowing(later));
    }
}
