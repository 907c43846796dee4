//! Watches what all clients share, and tells when there is too little of it: places, and room in the buffers of all.
//!
//! Looks once a second at counts that the data threads and the API keep, and changes nothing. Invariant: one event when a want begins,
//! however many clients it meets, and none again before it has been gone for a minute.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::gateway::Inner;
use crate::control::model::Severity;
use crate::control::server::ApiConnections;
use crate::units::{MonotonicNanos, WallNanos};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What has been gone for as long begins anew.
const GONE_NANOS: u64 = 60_000_000_000;

/// Since when requests wait for room in the buffers of all, as looked at last.
#[derive(Debug, Default)]
pub(super) struct BuffersWait(Mutex<Option<MonotonicNanos>>);

/// Something that comes and goes.
#[derive(Debug, Default)]
struct Spell {
    newest: Option<MonotonicNanos>,
}

impl Spell {
    /// Whether it begins: it is so, and was not for a while.
    fn begins(&mut self, now: MonotonicNanos, is_so: bool) -> bool {
        let goes_on = self.newest.is_some_and(|newest| now.0.saturating_sub(newest.0) < GONE_NANOS);
        if is_so {
            self.newest = Some(now);
        }
        is_so && !goes_on
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
struct Growing(u64);

impl Growing {
    fn grew(&mut self, now: u64) -> bool {
        std::mem::replace(&mut self.0, now) < now
    }
}

/// What was seen so far.
#[derive(Debug, Default)]
struct Watch {
    refusals: Growing,
    turned_away: Growing,
    api_turned_away: Growing,
    buffers: Spell,
    places: Spell,
    api_places: Spell,
}

/// Watches until the gateway is gone.
pub(super) async fn watch(gateway: Weak<Inner>, api: Arc<ApiConnections>) {
    let mut watch = Watch::default();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(inner) = gateway.upgrade() else { return };
        inner.look_at_clients(&mut watch, &api);
    }
}

impl Inner {
    /// For how long requests have had to wait for room in the buffers of all, if any does.
    pub(super) fn buffers_waiting(&self) -> Option<Duration> {
        let since = *self.buffers_wait.0.lock();
        let now = self.environment.monotonic();
        let waited = since.map(|since| Duration::from_nanos(now.0.saturating_sub(since.0)));
        waited.or(self.threads.budget().is_awaited().then_some(Duration::ZERO))
    }

    fn look_at_clients(&self, watch: &mut Watch, api: &ApiConnections) {
        let (now, wall) = (self.environment.monotonic(), self.environment.wall());
        let nbd = &self.configuration.nbd;
        let budget = self.threads.budget();
        // Who waits and tries again is not announced for a moment.
        let waits = watch.refusals.grew(budget.refusals() as u64) | budget.is_awaited();
        {
            let mut since = self.buffers_wait.0.lock();
            *since = waits.then(|| since.unwrap_or(now));
        }
        if watch.buffers.begins(now, waits) {
            self.warn_of_clients(
                wall,
                "buffers_full",
                format!(
                    "requests wait for room in [nbd] buffers_total ({}), all of which is taken: end clients, have fewer requests in \
                     flight, or write a larger value",
                    nbd.buffers_total
                ),
            );
        }
        let too_many = |service: &str, most: usize| {
            format!(
                "clients of {service} are turned away: {most} are connected, as many as may be: end some, or write a larger \
                 [{service}] connections_max"
            )
        };
        let turned_away = watch.turned_away.grew(self.threads.turned_away().clients);
        if watch.places.begins(now, turned_away) {
            self.warn_of_clients(wall, "clients_turned_away", too_many("nbd", nbd.connections_max.get()));
        }
        let turned_away = watch.api_turned_away.grew(api.turned_away().clients);
        if watch.api_places.begins(now, turned_away) {
            let most = self.configuration.api.connections_max.get();
            self.warn_of_clients(wall, "clients_turned_away", too_many("api", most));
        }
    }

    fn warn_of_clients(&self, time: WallNanos, code: &str, message: String) {
        tracing::warn!(code, "{message}");
        self.tell_of_gateway(time, (Severity::Warning, code), message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_want_is_told_when_it_begins_and_again_only_after_a_while_without_it() {
        let mut spell = Spell::default();
        let mut begins = |s: u64, is_so| spell.begins(MonotonicNanos(s * 1_000_000_000), is_so);
        assert!(!begins(1, false) && begins(2, true));
        assert!((3..200).all(|s| !begins(s, true)), "it goes on");
        assert!((200..259).all(|s| !begins(s, false)) && !begins(258, true), "not for long enough");
        assert!(!begins(300, false) && begins(318, true));
    }

    #[test]
    fn only_what_grew_counts() {
        let mut count = Growing::default();
        assert_eq!([0, 2, 2, 3].map(|now| count.grew(now)), [false, true, false, true]);
    }
}
