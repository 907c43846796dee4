//! How many clients were turned away because there were too many, and when the last one was.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::model::TurnedAway;
use crate::units::WallNanos;

/// A count that whoever turns clients away adds to, and `status` reads.
#[derive(Debug, Default)]
pub struct TurnedAwayCount {
    clients: AtomicU64,
    /// Of no meaning while there are none.
    newest: AtomicI64,
}

impl TurnedAwayCount {
    /// One more; how many there are now.
    pub fn add(&self, now: WallNanos) -> u64 {
        self.newest.store(now.0, Ordering::Relaxed);
        // Whoever sees the count sees a time with it.
        self.clients.fetch_add(1, Ordering::Release) + 1
    }

    /// What there is to tell.
    pub fn read(&self) -> TurnedAway {
        let clients = self.clients.load(Ordering::Acquire);
        let newest = (clients > 0).then(|| WallNanos(self.newest.load(Ordering::Relaxed)));
        TurnedAway { clients, newest }
    }
}
