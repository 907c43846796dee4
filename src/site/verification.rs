//! Verifications: those that somebody asks for, and those that go on in the background, one group after the other.
//!
//! In the background each group's vault is read, then its disks are compared with it, at the configured rate, `[verify] every` after the
//! last time. When that was is kept in a file beside the group's journal ([`verify_marks`]), for the catalogue is only a cache; a group that
//! was never verified counts from its creation. One that a restart cut off goes on where it was, also if
//! somebody had asked for it, who is no longer there to be answered: its end is an event.

use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Weak;
use std::time::Duration;

use parking_lot::Mutex;

use super::convert;
use super::gateway::{Answering, Inner};
use super::group_table::Entry;
use super::member::Member;
use super::verify_marks::{self, CutOff, Keeper, Scope};
use crate::bookmark::{Bookmark, Mark, Place};
use crate::byte_size::ByteSize;
use crate::control::jobs::Progress;
use crate::control::model::{
    GroupFault, GroupVerified, Severity, VerifyLast, VerifyPart, VerifyReport, VerifyRunning, VerifyStatus,
};
use crate::control::name::Name;
use crate::counted::counted;
use crate::error::{Error, ErrorKind, Result};
use crate::protect::verify::{GroupReport, Verification};
use crate::throttle::{ByteRate, Hold, Pacing};
use crate::units::{DiskSlot, GroupId, WallNanos};
use crate::vault::{self, Vault};

/// How often it is looked which group is due, at most and at least.
const LOOK_MIN: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(60);
/// How often a running verification looks whether its group is paused.
const WATCH_PERIOD: Duration = Duration::from_secs(1);
/// After one that could not come to its end, the next try waits so long, or until it would be due if that is sooner.
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// Faults that an event names.
const FAULTS_TOLD: usize = 3;

/// How the verifications of all groups stand.
#[derive(Default)]
pub(super) struct Verifications(Mutex<HashMap<GroupId, Standing>>);

#[derive(Clone, Default)]
struct Standing {
    running: Option<Running>,
    /// What the record said, once it was read.
    last: Option<Option<VerifyLast>>,
    /// No other try before.
    not_before: Option<WallNanos>,
    /// What was cut off, by the process before or by an error, once that was looked for.
    cut_off: Option<Option<CutOff>>,
}

#[derive(Clone)]
struct Running {
    started: WallNanos,
    part: VerifyPart,
    progress: Progress,
    hold: Hold,
    resumed: bool,
}

/// Ends work on a data thread once nobody waits for it.
struct CancelOnDrop(Progress);

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
    /// Reads vaults whole.
    pub(super) async fn vault_verify(
        &self,
        group: Option<Name>,
        rate: Option<ByteRate>,
        progress: Progress,
    ) -> Result<VerifyReport> {
        let groups = match group {
            Some(name) => vec![self.find(&name)?],
            None => self.groups_now(),
        };
        let mut report = VerifyReport::default();
        let pacing = Pacing { rate, hold: Hold::default() };
        for (name, entry) in groups {
            report.groups += 1;
            let work = |bookmark| self.verify_vault(&entry, pacing.clone(), bookmark, progress.clone());
            let looked = match self.kept_while(entry.id, Scope::Vault, &progress, work).await {
                Err(error) if !entry.is_hosted() && error.kind() != ErrorKind::Shutdown => {
                    report.faults.push(format!("group {}: its vault cannot be opened: {error}", entry.id));
                    continue;
                }
                looked => looked?,
            };
            report.steps += looked.manifest_files;
            report.blobs += looked.blobs;
            report.bytes += looked.blob_bytes;
            report.base_bytes += looked.base_bytes;
            report.harmed.extend(looked.harmed.iter().map(|point| convert::harmed_point(&name, point)));
            for finding in &looked.findings {
                let is_harmless = finding.severity == vault::Severity::Cache;
                let lines = if is_harmless { &mut report.warnings } else { &mut report.faults };
                lines.push(finding.to_string());
            }
            if !looked.is_sound() {
                self.tell_faults(entry.id, &name, &damage(&looked), 0);
            }
        }
        Ok(report)
    }

    async fn verify_vault(
        &self,
        entry: &Entry,
        pacing: Pacing,
        bookmark: Bookmark,
        progress: Progress,
    ) -> Result<vault::VerifyReport> {
        let report = self.read_vault(entry, pacing, bookmark, progress).await?;
        self.note_vault(entry.id, &report).await;
        Ok(report)
    }

    async fn read_vault(
        &self,
        entry: &Entry,
        pacing: Pacing,
        bookmark: Bookmark,
        progress: Progress,
    ) -> Result<vault::VerifyReport> {
        if !entry.is_hosted() {
            let look =
                move |vault: Rc<Vault>| async move { verify(&vault, &pacing, &bookmark, &progress).await };
            return self.look_at_vault(entry.id, look).await;
        }
        self.ask(entry.id, move |member: &mut Member, answer: Answering<vault::VerifyReport>| {
            let vault = Rc::clone(member.vault());
            vault.runtime().clone().spawn(async move {
                answer.send(verify(&vault, &pacing, &bookmark, &progress).await);
            });
        })
        .await
    }

    /// Compares a group with its vault.
    pub(super) async fn group_verify(
        &self,
        group: Name,
        rate: Option<ByteRate>,
        progress: Progress,
    ) -> Result<GroupVerified> {
        let (name, id) = self.find_open(&group)?;
        let pacing = Pacing { rate, hold: Hold::default() };
        let work = |bookmark| self.verify_disks(id, pacing, bookmark, progress.clone());
        let report = self.kept_while(id, Scope::Disks, &progress, work).await?;
        if !report.is_sound() {
            self.tell_faults(id, &name, &texts(&report), report.more_findings);
        }
        let faults = report.findings.iter().map(|finding| GroupFault {
            disk: finding.name.clone(),
            first_sector: finding.range.start,
            sectors: finding.range.sectors(),
            message: finding.to_string(),
        });
        Ok(GroupVerified {
            group: name,
            point: report.point.map(|(point, _)| point),
            compared_bytes: report.compared_bytes,
            newer_bytes: report.newer_bytes,
            read_bytes: report.read_bytes,
            faults: faults.collect(),
            more_faults: report.more_findings,
            notes: report.notes,
        })
    }

    /// Carries out what somebody asked for, of which the next process finds how far it was if this one dies.
    async fn kept_while<T, W: Future<Output = Result<T>>>(
        &self,
        id: GroupId,
        scope: Scope,
        progress: &Progress,
        work: impl FnOnce(Bookmark) -> W,
    ) -> Result<T> {
        let bookmark = Bookmark::default();
        let begun = CutOff { started: self.environment.wall(), scope, mark: Mark::default() };
        if self.cut_off(id).await.is_some() || self.is_verified_in_background(id) {
            // There is one file, and it is the other's.
            return work(bookmark).await;
        }
        let keeper = Keeper { path: self.mark_path(id), begun, bookmark: bookmark.clone() };
        let is_cut_off = |result: &Result<T>| {
            result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Shutdown)
                && progress.go_on().is_ok()
        };
        keeper.beside(work(bookmark), is_cut_off).await
    }

    fn is_verified_in_background(&self, id: GroupId) -> bool {
        self.verifications.0.lock().get(&id).is_some_and(|standing| standing.running.is_some())
    }

    /// The verification that was cut off, if one was.
    async fn cut_off(&self, id: GroupId) -> Option<CutOff> {
        if let Some(known) = self.verifications.0.lock().get(&id).and_then(|standing| standing.cut_off) {
            return known;
        }
        let path = self.mark_path(id);
        let found = tokio::task::spawn_blocking(move || verify_marks::read(&path)).await.ok().flatten();
        let now = self.environment.wall();
        // Everything is to have been read within the period: what was read longer ago counts no more.
        let is_young = |started| {
            self.configuration.verify.every.is_none_or(|every| now < after(started, every)) && started <= now
        };
        let found = found.map(|cut_off| match is_young(cut_off.started) {
            true => cut_off,
            false => CutOff { started: now, mark: Mark::default(), ..cut_off },
        });
        *self.verifications.0.lock().entry(id).or_default().cut_off.get_or_insert(found)
    }

    fn mark_path(&self, id: GroupId) -> PathBuf {
        self.directory.group(id).join("verifying")
    }

    async fn verify_disks(
        &self,
        id: GroupId,
        pacing: Pacing,
        bookmark: Bookmark,
        progress: Progress,
    ) -> Result<GroupReport> {
        let report = self.compare_disks(id, pacing, bookmark, progress).await?;
        self.note_disks(id, &report).await;
        Ok(report)
    }

    async fn compare_disks(
        &self,
        id: GroupId,
        pacing: Pacing,
        bookmark: Bookmark,
        progress: Progress,
    ) -> Result<GroupReport> {
        self.ask(id, move |member: &mut Member, answer: Answering<GroupReport>| match member.group() {
            Ok(group) => {
                let report = Rc::new(teller(progress));
                let verification = Verification { bookmark, ..Verification::new(pacing, report) };
                group.verify(verification, answer.callback());
            }
            Err(error) => answer.send(Err(error)),
        })
        .await
    }

    /// Whether a group is to be verified now.
    async fn is_due(&self, id: GroupId, every: Option<Duration>, is_cut_off: bool) -> bool {
        let now = self.environment.wall();
        let not_before = self.verifications.0.lock().get(&id).and_then(|standing| standing.not_before);
        if not_before.is_some_and(|not_before| now < not_before) || self.is_paused(id).await {
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

    async fn is_paused(&self, id: GroupId) -> bool {
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
        let work = self.verify_scope(entry, begun, &keeper.bookmark, cut_off.is_some());
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
            Scope::Vault => "a verification of the vault that somebody asked for",
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
                let vault = self.verify_vault(entry, pacing.clone(), bookmark.clone(), progress).await?;
                let read_bytes = vault.blob_bytes + vault.base_bytes;
                bookmark.turn(read_bytes, vault.is_sound());
                sum.read_bytes += read_bytes;
                sum.faults.extend(damage(&vault));
            }
            if has_disks {
                let progress = begin(VerifyPart::Disks);
                let _ended = CancelOnDrop(progress.clone());
                let disks = self.verify_disks(entry.id, pacing.clone(), bookmark.clone(), progress).await?;
                sum.read_bytes += disks.read_bytes;
                sum.faults.extend(texts(&disks));
                sum.more_faults = disks.more_findings;
            }
            Ok(sum)
        };
        let watch = async {
            loop {
                tokio::time::sleep(WATCH_PERIOD).await;
                hold.set(self.is_paused(entry.id).await);
            }
        };
        tokio::select! {
            sum = work => sum,
            () = watch => unreachable!("it never ends"),
        }
    }

    fn tell_faults(&self, id: GroupId, name: &Name, faults: &[String], more: u64) {
        let count = faults.len() as u64 + more;
        let mut text = format!("verification found {}: ", counted(count, "fault"));
        text += &faults.iter().take(FAULTS_TOLD).cloned().collect::<Vec<_>>().join("; ");
        if count > FAULTS_TOLD as u64 {
            text += &format!(
                "; and {} more: `vault verify {name}` and `verify {name}` list them",
                count - FAULTS_TOLD as u64
            );
        }
        tracing::error!(group = %name, code = "verify_found", "{text}");
        self.tell_now(id, name, (Severity::Error, "verify_found"), text);
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

fn after(from: WallNanos, duration: Duration) -> WallNanos {
    WallNanos(from.0.saturating_add(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)))
}

/// What is lost or wrong; what only takes space, or is made anew, is not.
fn damage(report: &vault::VerifyReport) -> Vec<String> {
    let damage = report.findings.iter().filter(|finding| finding.severity >= vault::Severity::Damage);
    damage.map(ToString::to_string).collect()
}

fn texts(report: &GroupReport) -> Vec<String> {
    report.findings.iter().map(ToString::to_string).collect()
}

/// Tells a job how far work is that knows its bytes done and their sum.
fn teller(progress: Progress) -> impl Fn(u64, u64) -> Result<()> {
    let told = std::cell::Cell::new(0);
    move |done, total| {
        progress.set_total(total);
        progress.advance(done - told.replace(done));
        progress.go_on()
    }
}

async fn verify(
    vault: &Vault,
    pacing: &Pacing,
    bookmark: &Bookmark,
    progress: &Progress,
) -> Result<vault::VerifyReport> {
    vault::verify_at(vault, pacing, bookmark, teller(progress.clone())).await
}
