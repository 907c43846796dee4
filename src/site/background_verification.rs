//! Verifications in the background: each group in its turn, and what a restart cut off.
//!
//! Of each group the vault is read, then its disks are compared with it, at the configured rate, `[verify] every` after the last
//! time. When that was is kept in a file beside the group's journal ([`verify_marks`]), for the catalogue is only a cache; a group
//! that was never verified counts from its creation. One that a restart cut off goes on where it was, also if somebody had
//! asked for it, who is no longer there to be answered: its end is an event.

use std::path::PathBuf;
use std::sync::Weak;
use std::time::Duration;

use super::gateway::Inner;
use super::group_table::Entry;
use super::verification::{Running, Standing, after, damage};
use super::verify_marks::{self, CutOff, Keeper, Scope};
use crate::bookmark::{Bookmark, Mark, Place};
use crate::byte_size::ByteSize;
use crate::control::jobs::Progress;
use crate::control::model::{Severity, VerifyLast, VerifyPart, VerifyRunning, VerifyStatus};
use crate::control::name::Name;
use crate::error::{Error, ErrorKind, Result};
use crate::throttle::{Hold, Pacing};
use crate::units::{DiskSlot, GroupId, WallNanos};

/// How often it is looked which group is due, at most and at least.
const LOOK_MIN: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(60);
/// How often a running verification looks whether its group is paused.
const WATCH_PERIOD: Duration = Duration::from_secs(1);
/// After one that could not come to its end, the next try waits so long, or until it would be due if that is sooner.
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// Ends work on a data thread once nobody waits for it.
pub(super) struct CancelOnDrop(pub(super) Progress);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// What a verification of vault and disks came to.
#[derive(Default)]
struct Sum {
    read_bytes: u64,
    faults: Vec<String>,
    more_faults: u64,
}

/// Verifies in the background until the gateway is gone.
pub(super) async fn keep(gateway: Weak<Inner>) {
    let Some(every) = gateway.upgrade().map(|inner| inner.configuration.verify.every) else { return };
    // What the process before left is gone on with at once.
    let mut look = LOOK_MIN;
    loop {
        tokio::time::sleep(look).await;
        look = every.map_or(LOOK_MAX, |every| (every / 16).clamp(LOOK_MIN, LOOK_MAX));
        let Some(inner) = gateway.upgrade() else { return };
        let groups = inner.groups.read().list();
        for (name, entry) in groups.into_iter().filter(|(_, entry)| entry.is_hosted()) {
            let cut_off = inner.cut_off(entry.id).await;
            if cut_off.is_some() || every.is_some() {
                let is_due = inner.is_due(entry.id, every, cut_off.is_some()).await;
                if is_due {
                    inner.verify_in_background(&name, &entry, cut_off).await;
                }
            }
        }
    }
}

impl Inner {
    /// Whether a group is to be verified now.
    async fn is_due(&self, id: GroupId, every: Option<Duration>, is_cut_off: bool) -> bool {
        let now = self.environment.wall();
        let rests = |standing: &Standing| {
            // Its vault may be suspected, and is read for that.
            standing.running.is_some() || standing.not_before.is_some_and(|not_before| now < not_before)
        };
        let rests = self.verifications.0.lock().get(&id).is_some_and(rests);
        if rests || self.is_paused(id).await {
            return false;
        }
        let Some(every) = every.filter(|_| !is_cut_off) else { return is_cut_off };
        let created = self.read(id, |member| member.description().record.created).await.ok();
        self.due(id, created, every).await.is_some_and(|due| due <= now)
    }

    /// When a group's next verification is due.
    async fn due(&self, id: GroupId, created: Option<WallNanos>, every: Duration) -> Option<WallNanos> {
        let last = self.last_verified(id).await.map(|last| last.finished);
        last.or(created).map(|from| after(from, every))
    }

    pub(super) async fn is_paused(&self, id: GroupId) -> bool {
        let paused = self.read(id, |member| member.vault().manifest().state().is_paused()).await;
        paused.unwrap_or(false)
    }

    /// How the last one ended, from the record beside the group.
    async fn last_verified(&self, id: GroupId) -> Option<VerifyLast> {
        if let Some(last) = self.verifications.0.lock().get(&id).and_then(|standing| standing.last.clone()) {
            return last;
        }
        let path = self.record_path(id);
        let last = tokio::task::spawn_blocking(move || verify_marks::read_last(&path)).await.ok().flatten();
        self.verifications.0.lock().entry(id).or_default().last = Some(last.clone());
        last
    }

    fn record_path(&self, id: GroupId) -> PathBuf {
        self.directory.group(id).join("verified")
    }

    async fn verify_in_background(&self, name: &Name, entry: &Entry, cut_off: Option<CutOff>) {
        let id = entry.id;
        let begun = cut_off.unwrap_or_else(|| CutOff {
            started: self.environment.wall(),
            scope: Scope::Both,
            mark: Mark::default(),
        });
        if cut_off.is_some() {
            self.tell_resumed(id, name, begun);
        }
        tracing::info!(group = %name, "verifying in the background");
        let keeper = Keeper { path: self.mark_path(id), begun, bookmark: Bookmark::at(begun.mark) };
        let work = self.verify_scope(name, entry, begun, &keeper.bookmark, cut_off.is_some());
        let verified = keeper.beside(work, Result::is_err).await;
        let started = begun.started;
        let finished = self.environment.wall();
        let standing = |change: &mut dyn FnMut(&mut Standing)| {
            change(self.verifications.0.lock().entry(id).or_default());
        };
        standing(&mut |standing| (standing.running, standing.cut_off) = (None, Some(None)));
        let sum = match verified {
            // Of a removed group's files some were gone while they were read.
            Ok(_) | Err(_) if self.find_by_id(id).is_none() => {
                self.verifications.0.lock().remove(&id);
                return;
            }
            Ok(sum) => sum,
            Err(error) => {
                tracing::warn!(group = %name, %error, "a verification came to no end; it is tried again later");
                let every = self.configuration.verify.every.unwrap_or(RETRY_MAX);
                let again = after(finished, every.min(RETRY_MAX));
                let left = CutOff { mark: keeper.bookmark.mark(), ..begun };
                return standing(&mut |standing| {
                    (standing.not_before, standing.cut_off) = (Some(again), Some(Some(left)));
                });
            }
        };
        let faults = sum.faults.len() as u64 + sum.more_faults;
        let first_fault = sum.faults.first().cloned();
        let last = VerifyLast { started, finished, read_bytes: sum.read_bytes, faults, first_fault };
        let is_whole = begun.scope == Scope::Both;
        if is_whole {
            let (path, record) = (self.record_path(id), last.clone());
            let written = tokio::task::spawn_blocking(move || verify_marks::write_last(&path, record)).await;
            if let Ok(Err(error)) = written {
                tracing::warn!(group = %name, %error, "that it was verified is forgotten at the next start");
            }
        }
        if faults > 0 {
            self.tell_faults(id, name, &sum.faults, sum.more_faults);
        } else {
            let text = format!("verified: {} read, no faults", ByteSize(sum.read_bytes).approximate());
            tracing::info!(group = %name, "{text}");
            self.tell_now(id, name, (Severity::Info, "verify_done"), text);
        }
        // Last: whoever sees it finds its event, too.
        if is_whole {
            standing(&mut |standing| standing.last = Some(Some(last.clone())));
        }
    }

    fn tell_resumed(&self, id: GroupId, name: &Name, cut_off: CutOff) {
        let what = match cut_off.scope {
            Scope::Both => "a verification",
            Scope::Vault => "a verification of the vault that somebody asked for, or a client's read began",
            Scope::Disks => "a verification of the disks that somebody asked for",
        };
        let read = ByteSize(cut_off.mark.read_bytes).approximate();
        let text = format!("{what} was cut off, and goes on in the background: {read} were read before");
        tracing::info!(group = %name, "{text}");
        self.tell_now(id, name, (Severity::Info, "verify_resumed"), text);
    }

    /// The vault, then the disks if the group is open; from the bookmark on.
    async fn verify_scope(
        &self,
        name: &Name,
        entry: &Entry,
        begun: CutOff,
        bookmark: &Bookmark,
        resumed: bool,
    ) -> Result<Sum> {
        let started = begun.started;
        let has_vault = begun.scope != Scope::Disks && begun.mark.place < Place::Disks(DiskSlot(0), 0);
        let has_disks = begun.scope != Scope::Vault && entry.failure.is_none();
        if begun.scope == Scope::Disks && !has_disks {
            return Err(Error::new(ErrorKind::Latched, "the group is not open"));
        }
        let hold = Hold::default();
        let pacing = Pacing { rate: Some(self.configuration.verify.rate), hold: hold.clone() };
        let begin = |part| {
            let progress = Progress::default();
            let running = Running { started, part, progress: progress.clone(), hold: hold.clone(), resumed };
            self.verifications.0.lock().entry(entry.id).or_default().running = Some(running);
            progress
        };
        let work = async {
            let mut sum = Sum { read_bytes: begun.mark.read_bytes, ..Sum::default() };
            if has_vault {
                let progress = begin(VerifyPart::Vault);
                let _ended = CancelOnDrop(progress.clone());
                let vault =
                    self.verify_vault(entry, started, pacing.clone(), bookmark.clone(), progress).await?;
                let read_bytes = vault.blob_bytes + vault.base_bytes;
                bookmark.turn(read_bytes, vault.is_sound());
                sum.read_bytes += read_bytes;
                sum.faults.extend(damage(&vault));
                self.tell_rotten_copies(entry.id, name, &vault);
            }
            if has_disks {
                let progress = begin(VerifyPart::Disks);
                let _ended = CancelOnDrop(progress.clone());
                let disks =
                    self.verify_disks(entry.id, started, pacing.clone(), bookmark.clone(), progress).await?;
                sum.read_bytes += disks.read_bytes();
                sum.faults.extend(disks.faults());
                sum.more_faults = disks.more_faults();
            }
            Ok(sum)
        };
        self.held_while_paused(entry.id, &hold, work).await
    }

    /// Carries out `work`, which rests while the group is paused.
    pub(super) async fn held_while_paused<T>(
        &self,
        id: GroupId,
        hold: &Hold,
        work: impl Future<Output = T>,
    ) -> T {
        let watch = async {
            loop {
                tokio::time::sleep(WATCH_PERIOD).await;
                hold.set(self.is_paused(id).await);
            }
        };
        tokio::select! {
            done = work => done,
            () = watch => unreachable!("it never ends"),
        }
    }

    /// What people are told; nothing where verifications in the background are off and none ever ran.
    pub(super) async fn verify_status(
        &self,
        id: GroupId,
        created: Option<WallNanos>,
    ) -> Option<VerifyStatus> {
        let last = self.last_verified(id).await;
        let running = self.verifications.0.lock().get(&id).and_then(|standing| standing.running.clone());
        let next = match self.configuration.verify.every {
            Some(every) if running.is_none() => self.due(id, created, every).await,
            _ => None,
        };
        let running = running.map(|running| VerifyRunning {
            started: running.started,
            part: running.part,
            bytes_done: running.progress.bytes_done(),
            bytes_total: running.progress.bytes_total(),
            held: running.hold.is_held(),
            resumed: running.resumed,
        });
        let is_known = running.is_some() || last.is_some() || next.is_some();
        is_known.then_some(VerifyStatus { running, last, next })
    }
}
