//! Requests that failed lately, export by export: what people are told while that goes on, and for a while after the last one.
//!
//! Not the place where they are refused, logged or told as events ([`super::repetition`]). What failed once counts as failing for
//! [`FAILING_FOR`]: clients give up, or wait before they try again, and what they ask for in between may lie elsewhere and succeed. So
//! a success ends nothing, and what fails every few minutes neither begins nor ends again and again.
//!
//! Invariant: as many exports are remembered as had a request fail within that time, each with one message.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::protect::group::nanos;
use crate::units::{MonotonicNanos, WallNanos};

/// How long an export counts as failing after a request to it did.
pub const FAILING_FOR: Duration = Duration::from_secs(300);

/// Requests to one export that failed lately, in a row without a long gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing<K> {
    /// The export.
    pub export: K,
    /// When the first one failed,
    pub since: WallNanos,
    /// and the newest.
    pub newest: WallNanos,
    /// How many did.
    pub requests: u64,
    /// Why the newest one did:
    pub kind: ErrorKind,
    /// in words, with file and offset.
    pub error: String,
}

impl<K> Failing<K> {
    /// The same, of an export that goes by another name.
    pub fn renamed<L>(self, rename: impl FnOnce(K) -> L) -> Failing<L> {
        let Failing { export, since, newest, requests, kind, error } = self;
        Failing { export: rename(export), since, newest, requests, kind, error }
    }
}

/// The exports that had requests fail, which `K` tells apart.
#[derive(Debug)]
pub struct FailingRequests<K> {
    exports: BTreeMap<K, (MonotonicNanos, Failing<K>)>,
}

impl<K> Default for FailingRequests<K> {
    fn default() -> FailingRequests<K> {
        FailingRequests { exports: BTreeMap::new() }
    }
}

impl<K: Clone + Ord> FailingRequests<K> {
    /// A request failed.
    pub fn note(&mut self, export: K, (now, wall): (MonotonicNanos, WallNanos), error: &Error) {
        self.exports.retain(|_, (newest, _)| is_recent(*newest, now));
        let begin = || Failing {
            export: export.clone(),
            since: wall,
            newest: wall,
            requests: 0,
            kind: error.kind(),
            error: String::new(),
        };
        let (at, failing) = self.exports.entry(export.clone()).or_insert_with(|| (now, begin()));
        *at = now;
        failing.newest = wall;
        failing.requests += 1;
        (failing.kind, failing.error) = (error.kind(), error.to_string());
    }

    /// Those that count as failing now.
    pub fn now(&self, now: MonotonicNanos) -> impl Iterator<Item = &Failing<K>> {
        self.exports.values().filter(move |(newest, _)| is_recent(*newest, now)).map(|(_, failing)| failing)
    }
}

fn is_recent(newest: MonotonicNanos, now: MonotonicNanos) -> bool {
    now.0 < newest.0.saturating_add(nanos(FAILING_FOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the two clocks have it; the wall clock stands an hour ahead.
    fn at(seconds: u64) -> (MonotonicNanos, WallNanos) {
        let nanos = seconds * 1_000_000_000;
        (MonotonicNanos(nanos), WallNanos(i64::try_from(nanos).unwrap() + 3_600_000_000_000))
    }

    fn told(requests: &FailingRequests<&'static str>, seconds: u64) -> Vec<(&'static str, u64, u64)> {
        let since = |failing: &Failing<_>| (0..=seconds).find(|second| at(*second).1 == failing.since);
        let told = requests.now(at(seconds).0);
        told.map(|failing| (failing.export, since(failing).unwrap(), failing.requests)).collect()
    }

    #[test]
    fn what_failed_counts_for_five_minutes_after_the_last_and_begins_anew_later() {
        let mut requests = FailingRequests::default();
        assert!(told(&requests, 0).is_empty());
        for second in [10, 11, 300, 590] {
            requests.note("db", at(second), &Error::corrupt("rotten"));
            assert_eq!(told(&requests, second).first().map(|(_, since, _)| *since), Some(10), "no gap yet");
        }
        assert_eq!(told(&requests, 889), [("db", 10, 4)]);
        assert!(told(&requests, 890).is_empty());
        requests.note("db", at(900), &Error::corrupt("rotten"));
        assert_eq!(told(&requests, 900), [("db", 900, 1)], "another time, with a count of its own");
    }

    #[test]
    fn each_export_has_its_own_time_and_its_newest_error() {
        let mut requests = FailingRequests::default();
        requests.note("db", at(0), &Error::corrupt("rotten"));
        requests.note("log", at(200), &Error::corrupt("rotten"));
        requests.note("log", at(250), &Error::new(ErrorKind::Io, "refused"));
        assert_eq!(told(&requests, 299), [("db", 0, 1), ("log", 200, 2)]);
        assert_eq!(told(&requests, 300), [("log", 200, 2)]);
        let failing: Vec<_> = requests.now(at(300).0).collect();
        let newest = (failing[0].kind, failing[0].error.as_str(), failing[0].newest);
        assert_eq!(newest, (ErrorKind::Io, "refused", at(250).1));
        for second in 300..600 {
            requests.note("log", at(second), &Error::corrupt("rotten"));
        }
        assert_eq!(requests.exports.len(), 1, "what is over is forgotten");
    }
}
