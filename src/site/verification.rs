//! Verifications: how they stand, and those that somebody asks for. The others are in [`super::background_verification`].

use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use parking_lot::Mutex;

use super::convert;
use super::gateway::{Answering, Inner};
use super::group_table::Entry;
use super::member::Member;
use super::verify_marks::{self, CutOff, Keeper, Scope};
use crate::bookmark::{Bookmark, Mark};
use crate::control::jobs::Progress;
use crate::control::model::{GroupVerified, Severity, VerifyLast, VerifyPart, VerifyReport};
use crate::control::name::Name;
use crate::counted::counted;
use crate::error::{Error, ErrorKind, Result, is_of_the_file};
use crate::throttle::{ByteRate, Hold, Pacing};
use crate::units::{GroupId, WallNanos};
use crate::vault::{self, Vault};

/// Faults that an event names.
const FAULTS_TOLD: usize = 3;

/// How the verifications of all groups stand.
#[derive(Default)]
pub(super) struct Verifications(pub(super) Mutex<HashMap<GroupId, Standing>>);

#[derive(Clone, Default)]
pub(super) struct Standing {
    pub(super) running: Option<Running>,
    /// How many are under way of its vault that are none in their turn.
    asked: usize,
    /// What the record said, once it was read.
    pub(super) last: Option<Option<VerifyLast>>,
    /// No other try before.
    pub(super) not_before: Option<WallNanos>,
    /// What was cut off, by the process before or by an error, once that was looked for.
    pub(super) cut_off: Option<Option<CutOff>>,
}

#[derive(Clone)]
pub(super) struct Running {
    pub(super) started: WallNanos,
    pub(super) part: VerifyPart,
    pub(super) progress: Progress,
    pub(super) hold: Hold,
    pub(super) resumed: bool,
}

/// Counts a verification of a vault as under way, as long as it lives.
struct Reading<'a>(&'a Inner, GroupId);

impl Reading<'_> {
    fn begin(inner: &Inner, id: GroupId) -> Reading<'_> {
        inner.verifications.0.lock().entry(id).or_default().asked += 1;
        Reading(inner, id)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if let Some(standing) = self.0.verifications.0.lock().get_mut(&self.1) {
            standing.asked = standing.asked.saturating_sub(1);
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
        // Whichever of them the process dies at, the next one goes on with all that are left.
        let mut waiting = self.keep_waiting(&groups).await;
        for (name, entry) in groups {
            waiting.retain(|&id| id != entry.id);
            report.groups += 1;
            let begun = self.environment.wall();
            let work =
                |bookmark| self.verify_vault(&entry, begun, pacing.clone(), bookmark, progress.clone());
            match self.kept_while(entry.id, Scope::Vault, &progress, work).await {
                Ok(looked) => self.report_vault(&name, &entry, &looked, &mut report),
                Err(error) if !entry.is_hosted() && error.kind() != ErrorKind::Shutdown => {
                    report.faults.push(format!("group {}: its vault cannot be opened: {error}", entry.id));
                    report.faults.extend(self.further_faults(entry.id, &error).await);
                }
                // The vaults of the others may be on another device. A group that was removed meanwhile is another matter.
                Err(error) if is_of_the_file(error.kind()) && error.path().is_some() => {
                    let fault = format!("group {name}: its vault cannot be read: {error}");
                    self.tell_faults(entry.id, &name, std::slice::from_ref(&fault), 0);
                    report.faults.push(fault);
                }
                Err(error) => {
                    if !is_cut_off(&error, &progress) {
                        self.forget_waiting(waiting).await;
                    }
                    return Err(error);
                }
            }
        }
        Ok(report)
    }

    /// Adds what a verification of a vault saw to what is reported of all.
    fn report_vault(
        &self,
        name: &Name,
        entry: &Entry,
        looked: &vault::VerifyReport,
        report: &mut VerifyReport,
    ) {
        report.steps += looked.manifest_files;
        report.blobs += looked.blobs;
        report.bytes += looked.blob_bytes;
        report.base_bytes += looked.base_bytes;
        report.harmed.extend(looked.harmed.iter().map(|point| convert::harmed_point(name, point)));
        for finding in &looked.findings {
            let is_harmless = finding.severity == vault::Severity::Cache;
            let lines = if is_harmless { &mut report.warnings } else { &mut report.faults };
            lines.push(finding.to_string());
        }
        if !looked.is_sound() {
            self.tell_faults(entry.id, name, &damage(looked), 0);
        }
        self.tell_rotten_copies(entry.id, name, looked);
    }

    /// Says which copies of sums have flipped that others stand for: nothing is lost, but the device flips bits.
    pub(super) fn tell_rotten_copies(&self, id: GroupId, name: &Name, looked: &vault::VerifyReport) {
        let is_copy =
            |finding: &&vault::Finding| finding.severity == vault::Severity::Cache && finding.is_of_sums();
        let copies: Vec<_> = looked.findings.iter().filter(is_copy).collect();
        let Some(first) = copies.first() else { return };
        let others = match copies.len() - 1 {
            0 => String::new(),
            others => format!("; and {others} more, which `vault verify {name}` lists"),
        };
        let text =
            format!("a verification found bits flipped in sums that others stand for: {first}{others}");
        tracing::warn!(group = %name, code = "sums_rotten", "{text}");
        self.tell_now(id, name, (Severity::Warning, "sums_rotten"), text);
    }

    /// Has the next process verify these vaults if this one dies before their turn; gives those of which that is kept.
    async fn keep_waiting(&self, groups: &[(Name, Entry)]) -> Vec<GroupId> {
        let mut kept = Vec::new();
        for entry in groups.iter().map(|(_, entry)| entry).filter(|entry| entry.is_hosted()) {
            if self.has_mark_of_another(entry.id).await {
                continue;
            }
            let begun =
                CutOff { started: self.environment.wall(), scope: Scope::Vault, mark: Mark::default() };
            let keeper = Keeper { path: self.mark_path(entry.id), begun, bookmark: Bookmark::default() };
            keeper.save(begun.mark).await;
            kept.push(entry.id);
        }
        kept
    }

    /// Nobody wants these vaults verified any more, whose turn never came.
    async fn forget_waiting(&self, waiting: Vec<GroupId>) {
        for id in waiting.into_iter().filter(|&id| !self.is_verified_in_background(id)) {
            verify_marks::remove(self.mark_path(id)).await;
        }
    }

    /// Whether the file that says how far a verification is belongs to one that was cut off, or that is in the background.
    async fn has_mark_of_another(&self, id: GroupId) -> bool {
        self.cut_off(id).await.is_some() || self.is_verified_in_background(id)
    }

    /// `begun`: when, by this or an earlier process.
    pub(super) async fn verify_vault(
        &self,
        entry: &Entry,
        begun: WallNanos,
        pacing: Pacing,
        bookmark: Bookmark,
        progress: Progress,
    ) -> Result<vault::VerifyReport> {
        let report = self.read_vault(entry, pacing, bookmark, progress).await?;
        self.note_vault(entry.id, &report, begun).await;
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

    /// What else is wrong with the manifest of a vault that cannot be opened: what lies behind what stopped the opening.
    async fn further_faults(&self, id: GroupId, stopped: &Error) -> Vec<String> {
        match self.look_at_manifest(id).await {
            Ok(looked) => {
                let others = looked.findings.iter().filter(|finding| Some(&*finding.path) != stopped.path());
                others.map(ToString::to_string).collect()
            }
            Err(error) => {
                tracing::warn!(group = %id, %error, "its manifest cannot be read");
                Vec::new()
            }
        }
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
        let begun = self.environment.wall();
        let work = |bookmark| self.verify_disks(id, begun, pacing, bookmark, progress.clone());
        let report = self.kept_while(id, Scope::Disks, &progress, work).await?;
        if !report.is_sound() {
            self.tell_faults(id, &name, &report.faults(), report.more_faults());
        }
        Ok(report.model(name))
    }

    /// Carries out what somebody asked for, of which the next process finds how far it was if this one dies.
    pub(super) async fn kept_while<T, W: Future<Output = Result<T>>>(
        &self,
        id: GroupId,
        scope: Scope,
        progress: &Progress,
        work: impl FnOnce(Bookmark) -> W,
    ) -> Result<T> {
        let _reading = (scope == Scope::Vault).then(|| Reading::begin(self, id));
        let bookmark = Bookmark::default();
        let begun = CutOff { started: self.environment.wall(), scope, mark: Mark::default() };
        if self.has_mark_of_another(id).await {
            // There is one file.
            return work(bookmark).await;
        }
        let keeper = Keeper { path: self.mark_path(id), begun, bookmark: bookmark.clone() };
        let stays = |result: &Result<T>| result.as_ref().is_err_and(|error| is_cut_off(error, progress));
        keeper.beside(work(bookmark), stays).await
    }

    /// Whether a vault is being read whole, for whatever reason.
    pub(super) fn is_vault_read(&self, id: GroupId) -> bool {
        let reads = |standing: &Standing| {
            let part = standing.running.as_ref().map(|running| running.part);
            standing.asked > 0 || part == Some(VerifyPart::Vault)
        };
        self.verifications.0.lock().get(&id).is_some_and(reads)
    }

    fn is_verified_in_background(&self, id: GroupId) -> bool {
        self.verifications.0.lock().get(&id).is_some_and(|standing| standing.running.is_some())
    }

    /// The verification that was cut off, if one was.
    pub(super) async fn cut_off(&self, id: GroupId) -> Option<CutOff> {
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

    pub(super) fn mark_path(&self, id: GroupId) -> PathBuf {
        self.directory.group(id).join("verifying")
    }

    pub(super) fn tell_faults(&self, id: GroupId, name: &Name, faults: &[String], more: u64) {
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
}

/// Whether work that somebody asked for, and still wants, ended with the process.
fn is_cut_off(error: &Error, progress: &Progress) -> bool {
    error.kind() == ErrorKind::Shutdown && progress.go_on().is_ok()
}

pub(super) fn after(from: WallNanos, duration: Duration) -> WallNanos {
    WallNanos(from.0.saturating_add(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)))
}

/// What is lost or wrong; what only takes space, or is made anew, is not.
pub(super) fn damage(report: &vault::VerifyReport) -> Vec<String> {
    let damage = report.findings.iter().filter(|finding| finding.severity >= vault::Severity::Damage);
    damage.map(ToString::to_string).collect()
}

/// Tells a job how far work is that knows its bytes done and their sum.
pub(super) fn teller(progress: Progress) -> impl Fn(u64, u64) -> Result<()> {
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
