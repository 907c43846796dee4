//! Vaults that are suspected: a client of a test failover was refused bytes, since they are not what was stored.
//!
//! ```text
//!  test failover ─▶ member ─▶ Suspicions ─▶ keep ─▶ that vault is read whole ─▶ events, damage of the group
//! ```
//!
//! Who met the damage is told of one place; which points it harms, and what else there is, only a verification knows. So one is begun
//! at once, at the background's rate, also where verifications are off: beside those in their turn, which may be days off. Like one
//! that somebody asks for it outlives a restart ([`super::verification`]), and it rests while its group is paused.
//!
//! Invariants: at most one of these runs of a group, and none begins while its vault is read for another reason; a client that goes on
//! asking has it read once in [`AGAIN_AFTER`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::background_verification::CancelOnDrop;
use super::gateway::Inner;
use super::verification::{Running, damage};
use super::verify_marks::Scope;
use crate::byte_size::ByteSize;
use crate::control::jobs::Progress;
use crate::control::model::{Severity, VerifyPart};
use crate::throttle::{Hold, Pacing};
use crate::units::{GroupId, MonotonicNanos};

/// A vault is not read again for this reason before.
const AGAIN_AFTER: Duration = Duration::from_secs(3600);
/// How often it is looked whether what a suspicion waits for has ended.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The vaults that are suspected, and since when they were read for that reason.
#[derive(Debug, Default)]
pub struct Suspicions {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: BTreeSet<GroupId>,
    begun: BTreeMap<GroupId, MonotonicNanos>,
}

impl Suspicions {
    /// A client was refused bytes of a group's points.
    pub(super) fn raise(&self, id: GroupId) {
        self.state.lock().waiting.insert(id);
        self.news.notify_one();
    }

    /// Waits for news, or until it is to be looked again at what waits.
    async fn news(&self) {
        let waits = !self.state.lock().waiting.is_empty();
        let again = async {
            match waits {
                true => tokio::time::sleep(LOOK_EVERY).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.news.notified() => {}
            () = again => {}
        }
    }
}

impl State {
    /// The groups whose vaults are to be read now; those that `is_read` already wait for the end of that: it may have passed the place.
    fn due(&mut self, now: MonotonicNanos, is_read: impl Fn(GroupId) -> bool) -> Vec<GroupId> {
        let hour = u64::try_from(AGAIN_AFTER.as_nanos()).expect("an hour");
        self.begun.retain(|_, begun| now.0 < begun.0.saturating_add(hour));
        let (waiting, rest): (BTreeSet<_>, _) =
            std::mem::take(&mut self.waiting).into_iter().partition(|&id| is_read(id));
        self.waiting = waiting;
        let due: Vec<_> = rest.into_iter().filter(|id| !self.begun.contains_key(id)).collect();
        self.begun.extend(due.iter().map(|&id| (id, now)));
        due
    }
}

/// Has suspected vaults be read, until the gateway is gone.
pub(super) async fn keep(gateway: Weak<Inner>) {
    let Some(suspicions) = gateway.upgrade().map(|inner| inner.suspicions.clone()) else { return };
    let mut reading = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = suspicions.news() => {}
            Some(()) = reading.next() => {}
        }
        let Some(inner) = gateway.upgrade() else { return };
        let now = inner.environment.monotonic();
        let due = suspicions.state.lock().due(now, |id| inner.is_vault_read(id));
        reading.extend(due.into_iter().map(|id| {
            let inner = inner.clone();
            async move { inner.verify_suspected(id).await }
        }));
    }
}

impl Inner {
    /// Reads a vault whole, as if somebody had asked for it, who is told by events.
    async fn verify_suspected(&self, id: GroupId) {
        let Some((name, entry)) = self.find_by_id(id) else { return };
        tracing::info!(group = %name, "a client was refused damaged bytes of a point: the vault is verified in the background");
        let begun = self.environment.wall();
        let (progress, hold) = (Progress::default(), Hold::default());
        hold.set(self.is_paused(id).await);
        let _ended = CancelOnDrop(progress.clone());
        let pacing = Pacing { rate: Some(self.configuration.verify.rate), hold: hold.clone() };
        let read = |bookmark| {
            let shown = Shown::begin(self, id, &progress, &hold);
            let read = self.verify_vault(&entry, begun, pacing, bookmark, progress.clone());
            read.inspect(move |_| drop(shown))
        };
        let work = self.kept_while(id, Scope::Vault, &progress, read);
        let verified = self.held_while_paused(id, &hold, work).await;
        match verified {
            // Of a removed group's files some were gone while they were read.
            Ok(_) | Err(_) if self.find_by_id(id).is_none() => {
                self.verifications.0.lock().remove(&id);
            }
            Ok(report) if report.is_sound() => {
                let read = ByteSize(report.blob_bytes + report.base_bytes).approximate();
                let text = format!(
                    "verified, since a client was refused damaged bytes: {read} of the vault read, no faults"
                );
                tracing::info!(group = %name, "{text}");
                self.tell_now(id, &name, (Severity::Info, "verify_done"), text);
            }
            Ok(report) => self.tell_faults(id, &name, &damage(&report), 0),
            Err(error) => tracing::warn!(group = %name, %error, "a verification of the vault came to no end"),
        }
    }
}

/// Has `status` show a verification as long as this lives, unless it shows another one.
struct Shown<'a>(Option<(&'a Inner, GroupId)>);

impl Shown<'_> {
    fn begin<'a>(inner: &'a Inner, id: GroupId, progress: &Progress, hold: &Hold) -> Shown<'a> {
        let mut verifications = inner.verifications.0.lock();
        let running = &mut verifications.entry(id).or_default().running;
        if running.is_some() {
            return Shown(None);
        }
        let (started, part) = (inner.environment.wall(), VerifyPart::Vault);
        let (progress, hold) = (progress.clone(), hold.clone());
        *running = Some(Running { started, part, progress, hold, resumed: false });
        Shown(Some((inner, id)))
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if let Some((inner, id)) = self.0
            && let Some(standing) = inner.verifications.0.lock().get_mut(&id)
        {
            standing.running = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: GroupId = GroupId(1);
    const B: GroupId = GroupId(2);

    fn minute(minute: u64) -> MonotonicNanos {
        MonotonicNanos(minute * 60_000_000_000)
    }

    #[test]
    fn a_suspected_vault_is_read_at_once_and_not_again_for_an_hour() {
        let suspicions = Suspicions::default();
        let due = |now| suspicions.state.lock().due(minute(now), |_| false);
        assert!(due(0).is_empty());
        suspicions.raise(A);
        suspicions.raise(A);
        assert_eq!(due(5), [A]);
        suspicions.raise(A);
        suspicions.raise(B);
        assert_eq!(due(10), [B], "each has its own hour");
        assert!(due(65).is_empty(), "what came within the hour is not kept for its end");
        suspicions.raise(A);
        assert_eq!(due(65), [A]);
    }

    #[test]
    fn it_waits_for_the_end_of_what_reads_the_vault_already() {
        let suspicions = Suspicions::default();
        suspicions.raise(A);
        suspicions.raise(B);
        let due = |now, is_read: bool| suspicions.state.lock().due(minute(now), |id| is_read && id == A);
        assert_eq!(due(1, true), [B]);
        assert!(due(100, true).is_empty());
        assert_eq!(due(200, false), [A], "that may have passed the place before");
    }
}
