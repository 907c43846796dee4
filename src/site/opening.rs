//! Opening the groups of a data directory, also again after a failure.
//!
//! ```text
//!   vault opened ─┬─ journal and images opened ─▶ hosted, served
//!                 └─ not                        ─▶ hosted with its vault alone: points, views, test failovers
//!   vault not opened                            ─▶ known by its last name, and that is all
//! ```
//!
//! Invariant: a group whose files are there is in the table, whatever became of it; only one that was removed, or whose
//! creation never came to its first manifest step, is cleared away.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::oneshot;

use super::convert;
use super::gateway::{Inner, cached};
use super::group_table::{Entry, OpeningFailure};
use super::host::Host;
use super::member::Member;
use super::removal;
use crate::block::Export;
use crate::control::catalogue::{GroupDescription, GroupRecord, Snapshot};
use crate::control::name::Name;
use crate::error::{Error, ErrorKind, Result};
use crate::protect::group::Group;
use crate::protect::open::{self, GroupPlan};
use crate::runtime::Runtime;
use crate::site::events::EventQueue;
use crate::site::suspicion::Suspicions;
use crate::units::GroupId;
use crate::vault::{self, Vault};

/// Groups that are opened at a time, the first that is not open yet among them: several, so that others are opened while one reads a long
/// journal, or waits for another process's lock; few, since each takes memory for three segments while it reads them.
const OPENINGS_AT_ONCE: usize = 8;
/// How long a group whose failure may pass by itself waits before it is opened again,
const RETRY_MIN: Duration = Duration::from_secs(3);
/// and how many times as long as the attempt took: reading a long journal again and again must not keep the disk busy.
const RETRY_RESTS: u32 = 10;

/// What became of an opening.
pub(super) enum Opened {
    /// It is served.
    Serving,
    /// It is hosted with its vault alone, and why.
    VaultOnly(Error),
    /// Not even its vault could be opened, and why.
    Nothing(Error),
    /// It had been removed, and is gone now.
    Removed,
}

/// What a thread opened of a group.
struct Parts {
    member: Member,
    group: Result<Group>,
}

/// Opens what can be opened of a group; `None` if it had been removed, and is gone now.
async fn open_parts(
    runtime: &Rc<Runtime>,
    plan: &GroupPlan,
    id: GroupId,
    told: (Arc<EventQueue>, Arc<Suspicions>),
) -> Result<Option<Parts>> {
    let vault = match open::open_vault(runtime, plan).await {
        Err(error) if error.kind() == ErrorKind::Shutdown || is_unbegun(runtime, plan, &error).await? => {
            removal::clear(runtime, plan).await?;
            return Ok(None);
        }
        opened => opened?,
    };
    let found = vault.manifest().state().group();
    if found != id {
        let text = format!("the vault of group {found}, in the place of another's");
        return Err(Error::corrupt(text).at_path(&plan.vault));
    }
    let group = open::open_over(Rc::clone(runtime), plan.clone(), Rc::clone(&vault)).await;
    Ok(Some(Parts { member: Member::open(runtime, vault, plan, told).await, group }))
}

/// Whether a vault could not be opened because the creation of its group was cut off before anything was there.
async fn is_unbegun(runtime: &Rc<Runtime>, plan: &GroupPlan, error: &Error) -> Result<bool> {
    let has_files = match runtime.list(&plan.directory).await {
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        names => names.map(|_| true)?,
    };
    Ok(error.kind() == ErrorKind::NotFound && !has_files && vault::is_unbegun(runtime, &plan.vault).await?)
}

/// The ids of all groups that have a vault, or other files.
pub(super) fn ids<const N: usize>(directories: [&Path; N]) -> Result<Vec<GroupId>> {
    let mut ids = Vec::new();
    for directory in directories {
        let failed = |error| Error::io("listing the groups", error).at_path(directory);
        let entries = match std::fs::read_dir(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let id = name.to_str().and_then(|name| name.parse().ok());
            match id.filter(|id: &GroupId| name.to_str() == Some(&id.to_string())) {
                Some(id) => ids.push(id),
                None => tracing::warn!(?name, directory = %directory.display(), "not a group's; left alone"),
            }
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

impl Inner {
    /// Opens every group of the data directory and notes each, open or not.
    pub(super) async fn open_groups(self: &Arc<Self>) -> Result<()> {
        self.resume_rotation().await;
        let known = self.last_known().await;
        let mut snapshot = Snapshot::default();
        let mut without_vault = Vec::new();
        // Noted in the order of their ids, so that a name that two of them claim goes to the same one at each start.
        let ids = ids([&self.directory.vault(), &self.directory.groups()])?;
        let open = |id| async move { Ok::<_, Error>((id, self.open(id).await?)) };
        let mut opening = stream::iter(ids).map(open).buffered(OPENINGS_AT_ONCE);
        while let Some((id, opened)) = opening.try_next().await? {
            match opened {
                Opened::Serving => self.serve_or_report(id, None).await,
                Opened::VaultOnly(error) => {
                    let failed = self.environment.wall();
                    self.serve_or_report(id, Some(self.failure(&error, true))).await;
                    self.tell_opening(id, failed);
                }
                Opened::Nothing(error) => {
                    without_vault.push((id, error, self.environment.wall()));
                    continue;
                }
                Opened::Removed => continue,
            }
            snapshot.groups.extend(self.record(id).await);
        }
        // These come last: a name that only the catalogue knows is not taken from a group whose manifest says it.
        for (id, error, failed) in without_vault {
            self.note_without_vault(id, &error, known.get(&id).map(|record| record.name.clone()));
            self.tell_opening(id, failed);
            snapshot.groups.extend(known.get(&id).cloned());
        }
        cached(self.catalogue.as_ref().map(|catalogue| catalogue.rebuild(&snapshot))).await;
        Ok(())
    }

    /// What the catalogue knew when the gateway ended.
    async fn last_known(&self) -> HashMap<GroupId, GroupRecord> {
        let Some(catalogue) = &self.catalogue else { return HashMap::new() };
        match catalogue.snapshot().await {
            Ok(snapshot) => snapshot.groups.into_iter().map(|record| (record.id, record)).collect(),
            Err(error) => {
                tracing::warn!(%error, "the catalogue cannot be read; it is rebuilt");
                HashMap::new()
            }
        }
    }

    /// What the catalogue knows of a group whose manifest cannot be read.
    pub(super) async fn last_described(&self, id: GroupId) -> Option<GroupDescription> {
        let described = self.catalogue.as_ref()?.describe(id).await;
        described.unwrap_or_else(|error| {
            tracing::warn!(group = %id, %error, "the catalogue cannot be read; it is rebuilt at the next start");
            None
        })
    }

    /// What the catalogue is told of a hosted group, points included.
    pub(super) async fn record(&self, id: GroupId) -> Option<GroupRecord> {
        let (name, _) = self.find_by_id(id)?;
        let known = self.read(id, move |member| convert::catalogue_group(id, name, member)).await;
        match known.flatten() {
            Ok(record) => Some(record),
            Err(error) => {
                tracing::warn!(group = %id, %error, "the catalogue could not be told of a group");
                None
            }
        }
    }

    /// Opens what there is of a group on its thread; hosts it there if it has at least its vault.
    pub(super) async fn open(&self, id: GroupId) -> Result<Opened> {
        self.open_as(id, self.plan(id)).await
    }

    async fn open_as(&self, id: GroupId, plan: GroupPlan) -> Result<Opened> {
        let home = self.threads.exports().place_group(id, self.threads.count());
        let told = (Arc::clone(&self.events), Arc::clone(&self.suspicions));
        let (sender, receiver) = oneshot::channel();
        self.threads.command(home, move |host| {
            let (runtime, later) = (Rc::clone(host.runtime()), host.later());
            host.runtime().spawn(async move {
                let opened = open_parts(&runtime, &plan, id, told).await;
                later.run(move |host| host_parts(host, id, opened, sender));
            });
        })?;
        let opened = receiver.await.map_err(|_| stopped())?;
        if matches!(opened, Opened::Nothing(_) | Opened::Removed) {
            self.threads.exports().forget_group(id);
        }
        Ok(opened)
    }

    /// The same as [`Inner::serve_all`]; that one group is served in part is no reason not to serve the others.
    async fn serve_or_report(&self, id: GroupId, failure: Option<OpeningFailure>) {
        if let Err(error) = self.serve_all(id, failure).await {
            tracing::error!(group = %id, %error, "not all of a group's exports can be served");
        }
    }

    /// Registers a hosted group under its name, with the exports of its test failovers, and of its disks if it is open.
    pub(super) async fn serve_all(&self, id: GroupId, failure: Option<OpeningFailure>) -> Result<()> {
        let description = self.read(id, |member| member.description()).await?;
        let wanted = convert::name(&description.record.name).ok();
        let name = self.serve_group(id, failure, wanted).await?;
        for test in self.read(id, |member| member.test_listings()).await? {
            self.serve_test(&name, id, &test)?;
        }
        Ok(())
    }

    /// Registers a hosted group under a name, with the exports of its disks if it is open.
    async fn serve_group(
        &self,
        id: GroupId,
        failure: Option<OpeningFailure>,
        wanted: Option<Name>,
    ) -> Result<Name> {
        let description = self.read(id, |member| member.description()).await?;
        let name = self.note(Entry { id, failure: failure.clone() }, wanted);
        if failure.is_none() {
            for record in &description.disks {
                self.serve_disk(&name, id, record)?;
            }
        }
        Ok(name)
    }

    pub(super) fn note_without_vault(&self, id: GroupId, error: &Error, name: Option<Name>) -> Name {
        self.note(Entry { id, failure: Some(self.failure(error, false)) }, name)
    }

    pub(super) fn note(&self, entry: Entry, wanted: Option<Name>) -> Name {
        if let Some((before, _)) = self.find_by_id(entry.id) {
            self.threads.exports().end_refusal(before.as_str());
        }
        let failure = entry.failure.clone();
        let id = entry.id;
        let name = self.groups.write().put(entry, wanted);
        self.events.named();
        if let Some(failure) = failure {
            let told = failure.told_clients(&name);
            tracing::error!(group = %id, %name, "{told}; its disks are not served");
            self.threads.exports().refuse_group(name.as_str(), told);
        }
        name
    }

    pub(super) fn failure(&self, error: &Error, has_vault: bool) -> OpeningFailure {
        OpeningFailure::new(error, self.environment.wall(), has_vault)
    }

    /// Opens a group again that could not be opened, with the name that it goes by then. It may be accepted that its journal lacks
    /// what was acknowledged and not durable.
    ///
    /// # Errors
    /// The refusal that names the reason, if it still cannot be opened. The group is then listed as before.
    pub(super) async fn reopen(
        self: &Arc<Self>,
        name: &Name,
        entry: &Entry,
        accepts_loss: bool,
    ) -> Result<Name> {
        let id = entry.id;
        let plan = GroupPlan { accepts_loss, ..self.plan(id) };
        let since = entry.failure.as_ref().map(|failure| failure.model(name).since);
        let keeps_vault = entry.is_hosted() && self.read(id, |member| member.lacks_only_the_group()).await?;
        let opened = if keeps_vault {
            self.open_over(id, plan).await?
        } else {
            self.evict(name, entry).await?;
            self.open_as(id, plan).await?
        };
        let failed = |error: &Error, has_vault| {
            let failure = self.failure(error, has_vault);
            since.map_or(failure.clone(), |since| failure.since(since))
        };
        match opened {
            Opened::Serving if keeps_vault => {
                // Its test failovers are served under the name that it goes by.
                self.serve_group(id, None, Some(name.clone())).await?;
            }
            Opened::Serving => self.serve_all(id, None).await?,
            Opened::VaultOnly(error) if keeps_vault => {
                self.note(Entry { id, failure: Some(failed(&error, true)) }, Some(name.clone()));
            }
            Opened::VaultOnly(error) => self.serve_all(id, Some(failed(&error, true))).await?,
            Opened::Nothing(error) => {
                self.note(Entry { id, failure: Some(failed(&error, false)) }, Some(name.clone()));
            }
            Opened::Removed => {
                self.threads.exports().end_refusal(name.as_str());
                self.groups.write().remove(id);
                self.events.forget(id);
                return Err(Error::new(ErrorKind::NotFound, format!("group {name} had been removed")));
            }
        }
        let (name, entry) = self.find_by_id(id).expect("it was noted, and verbs that remove take turns");
        match entry.failure {
            None => {
                tracing::info!(group = %id, %name, "the group is open again");
                Ok(name)
            }
            Some(failure) => Err(failure.refusal(&name)),
        }
    }

    /// Opens a hosted group over the vault that it has.
    async fn open_over(&self, id: GroupId, plan: GroupPlan) -> Result<Opened> {
        let (sender, receiver) = oneshot::channel();
        self.threads.command_group(id, move |host| {
            let Some(vault) = host.volume(id).map(|member| Rc::clone(member.vault())) else { return };
            let (runtime, later) = (Rc::clone(host.runtime()), host.later());
            host.runtime().spawn(async move {
                let opened = open::reopen_over(runtime, plan, vault).await;
                later.run(move |host| {
                    if let Some(member) = host.volume(id) {
                        protect(member, opened, sender);
                    }
                });
            });
        })?;
        receiver.await.map_err(|_| stopped())
    }

    /// Stops hosting a group that is not open; its test failovers stay what they are on disk.
    pub(super) async fn evict(&self, name: &Name, entry: &Entry) -> Result<()> {
        let id = entry.id;
        if !entry.is_hosted() {
            return Ok(());
        }
        for test in self.read(id, |member| member.test_listings()).await? {
            for disk in &test.disks {
                let path = convert::disk_path(name, &disk.name)?;
                self.withdraw(&path.test_export(test.test), Export::Test(id, disk.id, test.test)).await;
            }
        }
        // Whoever asks from now on is told without asking its thread.
        if self.find_by_id(id).is_some() {
            let failure = entry.failure.clone().map(OpeningFailure::without_vault);
            self.groups.write().put(Entry { id, failure }, Some(name.clone()));
        }
        let (sender, receiver) = oneshot::channel();
        self.threads.command_group(id, move |host| {
            drop(host.remove(id));
            let _ = sender.send(());
        })?;
        receiver.await.map_err(|_| stopped())?;
        self.threads.exports().forget_group(id);
        Ok(())
    }

    /// Reads a vault that could not be opened as it is now, to verify it.
    pub(super) async fn look_at_vault<T: Send + 'static, W: Future<Output = Result<T>>>(
        &self,
        id: GroupId,
        look: impl FnOnce(Rc<Vault>) -> W + Send + 'static,
    ) -> Result<T> {
        let open_and_look = async move |runtime: Rc<Runtime>, plan: GroupPlan| {
            let vault = Vault::open_as_it_is(&runtime, &plan.vault, &plan.site_keys).await?;
            look(Rc::new(vault)).await
        };
        self.look(id, open_and_look).await
    }

    /// Reads the manifest of a vault that cannot be opened.
    pub(super) async fn look_at_manifest(&self, id: GroupId) -> Result<vault::VerifyReport> {
        let read = async move |runtime: Rc<Runtime>, plan: GroupPlan| {
            vault::verify_manifest(&runtime, &plan.vault, &plan.site_keys).await
        };
        self.look(id, read).await
    }

    async fn look<T: Send + 'static, W: Future<Output = Result<T>>>(
        &self,
        id: GroupId,
        look: impl FnOnce(Rc<Runtime>, GroupPlan) -> W + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        let plan = self.plan(id);
        // Any thread will do: nothing of it stays.
        self.threads.command(0, move |host| {
            let runtime = Rc::clone(host.runtime());
            host.runtime().spawn(async move { drop(sender.send(look(runtime, plan).await)) });
        })?;
        receiver.await.map_err(|_| stopped())?
    }

    /// Why a group is not open, if it is not.
    fn why_failed(&self, id: GroupId) -> Option<OpeningFailure> {
        self.find_by_id(id).and_then(|(_, entry)| entry.failure)
    }

    /// Whether why a group is not open may pass by itself.
    fn may_pass(&self, id: GroupId) -> bool {
        self.why_failed(id).is_some_and(|failure| failure.may_pass())
    }

    fn is_locked(&self, id: GroupId) -> bool {
        self.why_failed(id).is_some_and(|failure| failure.is_locked())
    }

    /// Opens groups again whose failure may pass by itself, until it has: one attempt at a time, and rests in between.
    pub(super) async fn retry_failed(gateway: Weak<Inner>) {
        let mut rest = RETRY_MIN;
        loop {
            tokio::time::sleep(rest).await;
            let Some(inner) = gateway.upgrade() else { return };
            let mut took = Duration::ZERO;
            let waiting =
                inner.groups.read().list().into_iter().filter(|(_, entry)| inner.may_pass(entry.id));
            for (_, entry) in waiting.collect::<Vec<_>>() {
                let began = inner.environment.monotonic();
                inner.retry(entry.id).await;
                // Waiting for a lock reads nothing.
                if !inner.is_locked(entry.id) {
                    took += Duration::from_nanos(inner.environment.monotonic().0 - began.0);
                }
            }
            rest = RETRY_MIN.max(took * RETRY_RESTS);
        }
    }

    async fn retry(self: &Arc<Self>, id: GroupId) {
        let _turn = self.turn_of_id(id).await;
        // Somebody may have opened or removed it meanwhile.
        if let Some((name, entry)) = self.find_by_id(id)
            && self.may_pass(id)
        {
            if let Err(error) = self.reopen(&name, &entry, false).await {
                // What it lacks was logged when that was found, and is in `status`.
                match self.may_pass(id) {
                    true => tracing::debug!(group = %id, %error, "tried again"),
                    false => tracing::warn!(group = %id, %error, "tried again"),
                }
            }
            // That it still lacks it was told when it first did.
            if !self.may_pass(id) {
                self.tell_opening(id, self.environment.wall());
            }
        }
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Shutdown, "the gateway stopped while the group was opened")
}

/// Hosts what was opened; says what it is once that is known.
fn host_parts(
    host: &mut Host<Member>,
    id: GroupId,
    opened: Result<Option<Parts>>,
    sender: oneshot::Sender<Opened>,
) {
    // Whoever asked may have lost interest.
    match opened {
        Ok(Some(Parts { mut member, group })) => {
            protect(&mut member, group, sender);
            host.insert(id, member);
        }
        Ok(None) => drop(sender.send(Opened::Removed)),
        Err(error) => drop(sender.send(Opened::Nothing(error))),
    }
}

fn protect(member: &mut Member, opened: Result<Group>, sender: oneshot::Sender<Opened>) {
    match opened {
        Ok(group) => member.protect(group, move |serving| {
            let _ = sender.send(serving.map_or_else(Opened::VaultOnly, |()| Opened::Serving));
        }),
        Err(error) => drop(sender.send(Opened::VaultOnly(error))),
    }
}
