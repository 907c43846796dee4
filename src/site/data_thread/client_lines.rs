//! The lines of the log that clients cause by coming and going, which must not fill a disk however many come.
//!
//! The first few of a kind are told as they come, then one a second, with how many were left out before it. Not for failures of
//! our own, which [`Repetition`](crate::protect::repetition::Repetition) tells when they change and when they end: each of
//! these is another client's, and none of them is the end of the others.
//!
//! Invariant: each is told or counted; a count is told within a second, also if nobody comes any more.

use std::fmt::Display;
use std::io;

use crate::units::MonotonicNanos;

/// Lines of a kind that are told as they come.
const BURST: u64 = 10;
/// After those, a line may be told each time that this has passed.
const TELL_EVERY_NANOS: u64 = 1_000_000_000;

/// What a data thread tells of its clients.
#[derive(Debug, Default)]
pub(super) struct ClientLines {
    ended: Limit,
    cut_off: Limit,
    hoarders: Limit,
    turned_away: Limit,
    tls_failed: Limit,
    not_accepted: Limit,
}

impl ClientLines {
    pub(super) fn ended(&mut self, now: MonotonicNanos, session: u64, reason: impl Display) {
        if let Some(left_out) = self.ended.admit(now) {
            tracing::info!(session, %reason, left_out = shown(left_out), "a session ended");
        }
    }

    pub(super) fn cut_off(&mut self, now: MonotonicNanos, session: u64) {
        if let Some(left_out) = self.cut_off.admit(now) {
            let left_out = shown(left_out);
            tracing::info!(session, left_out, "a client is cut off: its deadline has passed");
        }
    }

    pub(super) fn hoarder(&mut self, now: MonotonicNanos, session: u64) {
        if let Some(left_out) = self.hoarders.admit(now) {
            let left_out = shown(left_out);
            tracing::warn!(
                session,
                left_out,
                "a client is cut off: it holds buffers that others wait for, and moves nothing"
            );
        }
    }

    pub(super) fn turned_away(&mut self, now: MonotonicNanos, connections_max: usize) {
        if let Some(left_out) = self.turned_away.admit(now) {
            let left_out = shown(left_out);
            tracing::warn!(connections_max, left_out, "a client is turned away: too many connections");
        }
    }

    pub(super) fn tls_failed(&mut self, now: MonotonicNanos, session: u64, error: impl Display) {
        if let Some(left_out) = self.tls_failed.admit(now) {
            tracing::warn!(session, %error, left_out = shown(left_out), "TLS with a client failed");
        }
    }

    pub(super) fn not_accepted(&mut self, now: MonotonicNanos, error: &io::Error) {
        if let Some(left_out) = self.not_accepted.admit(now) {
            tracing::warn!(%error, left_out = shown(left_out), "cannot accept a client now");
        }
    }

    /// When a count is to be told.
    pub(super) fn next_deadline(&self) -> Option<MonotonicNanos> {
        let told = [&self.ended, &self.cut_off, &self.hoarders];
        let warned = [&self.turned_away, &self.tls_failed, &self.not_accepted];
        told.into_iter().chain(warned).filter_map(Limit::due_at).min()
    }

    /// Tells what was left out long enough ago.
    pub(super) fn tell_left_out(&mut self, now: MonotonicNanos) {
        self.tell(|limit| limit.overdue(now));
    }

    /// Tells all that was left out: nothing comes any more.
    pub(super) fn finish(&mut self) {
        self.tell(|limit| Some(std::mem::take(&mut limit.left_out)).filter(|&count| count > 0));
    }

    fn tell(&mut self, left_out: impl Fn(&mut Limit) -> Option<u64>) {
        if let Some(left_out) = left_out(&mut self.ended) {
            tracing::info!(left_out, "more sessions ended");
        }
        if let Some(left_out) = left_out(&mut self.cut_off) {
            tracing::info!(left_out, "more clients were cut off");
        }
        if let Some(left_out) = left_out(&mut self.hoarders) {
            tracing::warn!(left_out, "more clients were cut off that held buffers which others waited for");
        }
        if let Some(left_out) = left_out(&mut self.turned_away) {
            tracing::warn!(left_out, "more clients were turned away: too many connections");
        }
        if let Some(left_out) = left_out(&mut self.tls_failed) {
            tracing::warn!(left_out, "TLS with more clients failed");
        }
        if let Some(left_out) = left_out(&mut self.not_accepted) {
            tracing::warn!(left_out, "clients could not be accepted more often");
        }
    }
}

/// A count that a line bears only if there is something to count.
fn shown(left_out: u64) -> Option<u64> {
    (left_out > 0).then_some(left_out)
}

/// Lines of one kind: a bucket that is full at first, and gets a token back a second.
#[derive(Debug)]
struct Limit {
    tokens: u64,
    /// Up to when tokens came back.
    refilled: MonotonicNanos,
    left_out: u64,
}

impl Default for Limit {
    fn default() -> Limit {
        Limit { tokens: BURST, refilled: MonotonicNanos(0), left_out: 0 }
    }
}

impl Limit {
    /// One more: how many were left out before it, if it is to be told.
    fn admit(&mut self, now: MonotonicNanos) -> Option<u64> {
        if !self.take_token(now) {
            self.left_out += 1;
            return None;
        }
        Some(std::mem::take(&mut self.left_out))
    }

    /// How many were left out, if that is to be told by itself.
    fn overdue(&mut self, now: MonotonicNanos) -> Option<u64> {
        (self.left_out > 0 && self.take_token(now)).then(|| std::mem::take(&mut self.left_out))
    }

    /// When `overdue` tells something. Where any was left out there was no token, and none was looked for since.
    fn due_at(&self) -> Option<MonotonicNanos> {
        (self.left_out > 0).then(|| MonotonicNanos(self.refilled.0.saturating_add(TELL_EVERY_NANOS)))
    }

    fn take_token(&mut self, now: MonotonicNanos) -> bool {
        let earned = now.0.saturating_sub(self.refilled.0) / TELL_EVERY_NANOS;
        self.refilled.0 += earned * TELL_EVERY_NANOS;
        self.tokens = BURST.min(self.tokens.saturating_add(earned));
        let is_told = self.tokens > 0;
        self.tokens -= u64::from(is_told);
        is_told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> MonotonicNanos {
        MonotonicNanos(3_000_000_000_000 + ms * 1_000_000)
    }

    #[test]
    fn the_first_few_are_told_then_one_a_second_and_each_is_counted() {
        let mut limit = Limit::default();
        // One a millisecond for three seconds and a half.
        let told: Vec<(u64, u64)> =
            (0..3500).filter_map(|ms| limit.admit(at(ms)).map(|left_out| (ms, left_out))).collect();
        let first = (0..BURST).map(|ms| (ms, 0));
        let later = [(1000, 1000 - BURST), (2000, 999), (3000, 999)];
        assert_eq!(told, first.chain(later).collect::<Vec<_>>());
        // Nobody comes any more: the rest is told once it is time, and once only.
        assert_eq!(limit.due_at(), Some(at(4000)));
        assert_eq!(limit.overdue(at(3999)), None);
        assert_eq!(limit.overdue(at(4000)), Some(499));
        assert_eq!((limit.overdue(at(5000)), limit.due_at()), (None, None));
        // After a while of peace there is room for a few again.
        let again = (0..100).filter(|_| limit.admit(at(100_000)).is_some()).count();
        assert_eq!(again as u64, BURST);
    }

    #[test]
    fn what_was_left_out_has_a_deadline_until_it_is_told() {
        let mut lines = ClientLines::default();
        (0..=BURST).for_each(|session| lines.ended(at(0), session, "garbage"));
        assert_eq!(lines.next_deadline(), Some(at(1000)));
        lines.tell_left_out(at(1000));
        assert_eq!(lines.next_deadline(), None);
        (0..=BURST).for_each(|_| lines.turned_away(at(1000), 1));
        assert!(lines.next_deadline().is_some());
        lines.finish();
        assert_eq!(lines.next_deadline(), None);
    }
}
