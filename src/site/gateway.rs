//! The gateway: opens the groups of a data directory on the data threads, and carries out what people ask of them.
//!
//! A verb runs in a task of its own, so that a client that leaves does not leave it half done. Verbs that change
//! which groups, disks and exports exist take turns. What a group is and has is asked of its owner, never kept here
//! but for its name and id.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::RwLock;
use tokio::sync::{Mutex, oneshot};

use crate::block::Export;
use crate::capture::nbd::ExportInfo;
use crate::config::Configuration;
use crate::control::backend::Answer;
use crate::control::catalogue::Catalogue;
use crate::control::model::Group;
use crate::control::name::{DiskPath, Name};
use crate::data_directory::DataDirectory;
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::failover::{TestFailover, TestFailovers, TestListing};
use crate::format::record::{DiskRecord, GroupRecord};
use crate::listen::ListenAddress;
use crate::planted::Planted;
use crate::protect::group::{Callback, Group as ProtectionGroup};
use crate::protect::open::{self, GroupPlan};
use crate::runtime::Runtime;
use crate::site::convert;
use crate::site::data_threads::DataThreads;
use crate::site::member::Member;
use crate::site::removal;
use crate::units::{GroupId, WallNanos};

/// Memory for recently written frames, per group.
const CACHE_BYTES_MAX: usize = 64 << 20;
/// Time between the recovery points of a new group.
pub(super) const INTERVAL_MS_DEFAULT: u32 = 5_000;
/// How long the sessions of a disk that is removed may take to end.
pub(super) const SESSIONS_END: Duration = Duration::from_secs(5);

/// What the storage really is, as the data threads found it.
#[derive(Clone, Debug)]
pub struct StorageFound {
    /// `io_uring` or `blocking`.
    pub backend: String,
    /// Why.
    pub reason: String,
}

/// The gateway; clones share it.
#[derive(Clone)]
pub struct Gateway(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) configuration: Configuration,
    pub(super) directory: DataDirectory,
    pub(super) threads: DataThreads<Member>,
    pub(super) environment: Arc<dyn Environment + Send + Sync>,
    /// A cache: whatever becomes of it, nothing fails. `None` where it could not even be opened.
    pub(super) catalogue: Option<Catalogue>,
    pub(super) storage: StorageFound,
    pub(super) started: WallNanos,
    pub(super) groups: RwLock<BTreeMap<Name, GroupId>>,
    /// Held by verbs that change which groups, disks and exports exist.
    pub(super) turn: Mutex<()>,
}

/// Hands a result from a data thread to whoever waits for it.
pub(super) struct Answering<T>(oneshot::Sender<Result<T>>);

impl<T: 'static> Answering<T> {
    pub(super) fn callback(self) -> Callback<T> {
        // Whoever asked may have lost interest.
        Box::new(move |result| drop(self.0.send(result)))
    }

    pub(super) fn send(self, result: Result<T>) {
        let _ = self.0.send(result);
    }
}

impl Gateway {
    /// A gateway over running data threads, with no group open yet.
    pub fn new(
        configuration: Configuration,
        directory: DataDirectory,
        threads: DataThreads<Member>,
        environment: Arc<dyn Environment + Send + Sync>,
        catalogue: Option<Catalogue>,
        storage: StorageFound,
    ) -> Gateway {
        let started = environment.wall();
        Gateway(Arc::new(Inner {
            configuration,
            directory,
            threads,
            environment,
            catalogue,
            storage,
            started,
            groups: RwLock::default(),
            turn: Mutex::new(()),
        }))
    }

    /// Opens every group that the vault knows. One that cannot be opened is logged and left out; the others go on.
    pub async fn open_groups(&self) -> Result<()> {
        let inner = &self.0;
        let mut snapshot = crate::control::catalogue::Snapshot::default();
        for id in vaults(&inner.directory.vault())? {
            match inner.open_group(id, None).await {
                Ok(Some(record)) => snapshot.groups.push(record),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(group = %id, %error, "a group could not be opened; it is not served")
                }
            }
        }
        cached(inner.catalogue.as_ref().map(|catalogue| catalogue.rebuild(&snapshot))).await;
        Ok(())
    }

    /// Lets block clients connect.
    pub fn listen(&self, address: &ListenAddress) -> Result<ListenAddress> {
        self.0.threads.listen(address)
    }

    /// Stops all groups in good order: sessions end, journals are sealed, checkpoints written.
    pub async fn stop(&self, within: Duration) {
        let inner = &self.0;
        inner.threads.drain(SESSIONS_END).finished().await;
        let ids: Vec<GroupId> = inner.groups.read().values().copied().collect();
        let stops = ids.into_iter().map(|id| {
            inner.ask(id, |member: &mut Member, answer: Answering<()>| {
                member.stop(move || answer.send(Ok(())))
            })
        });
        if tokio::time::timeout(within, futures::future::join_all(stops)).await.is_err() {
            tracing::warn!(
                "not every group could be sealed in time; the next start recovers them from their journals"
            );
        }
        if let Some(catalogue) = &inner.catalogue {
            catalogue.close().await;
        }
    }

    /// Ends the data threads; call it last.
    pub fn end(self) -> Result<()> {
        match Arc::try_unwrap(self.0) {
            Ok(inner) => inner.threads.stop(),
            Err(_) => Err(Error::new(
                ErrorKind::Shutdown,
                "a verb is still at work; the data threads end with the process",
            )),
        }
    }

    pub(super) fn detached<T: Send + 'static>(
        &self,
        verb: impl FnOnce(Arc<Inner>) -> BoxFuture<'static, Result<T>>,
    ) -> Answer<'_, T> {
        let task = tokio::spawn(verb(Arc::clone(&self.0)));
        Box::pin(async move {
            let lost = |_| Error::new(ErrorKind::Shutdown, "the gateway stopped before the verb was done");
            task.await.map_err(lost)?
        })
    }
}

/// The ids of all vaults.
fn vaults(directory: &std::path::Path) -> Result<Vec<GroupId>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| Error::io("listing the vaults", error).at_path(directory))?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("listing the vaults", error).at_path(directory))?;
        match entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            Some(id) => ids.push(id),
            None => tracing::warn!(name = ?entry.file_name(), "not a vault; left alone"),
        }
    }
    ids.sort_unstable();
    Ok(ids)
}

/// Opens, or creates, a group and its test failovers on its thread; a group that had been removed is cleared away.
async fn open_member(
    runtime: &Rc<Runtime>,
    plan: GroupPlan,
    id: GroupId,
    new: Option<GroupRecord>,
) -> Result<Option<(ProtectionGroup, TestFailovers)>> {
    let opened = match new {
        Some(record) => open::create(Rc::clone(runtime), plan.clone(), id, record).await,
        None => open::open(Rc::clone(runtime), plan.clone()).await,
    };
    let group = match opened {
        Err(error) if error.kind() == ErrorKind::Shutdown => {
            removal::clear(runtime, &plan).await?;
            return Ok(None);
        }
        opened => opened?,
    };
    let vault = Rc::clone(group.vault());
    let tests = TestFailovers::open(Rc::clone(runtime), vault, plan.tests()).await?;
    Ok(Some((group, tests)))
}

impl Inner {
    pub(super) fn address(&self) -> &ListenAddress {
        &self.configuration.nbd.listen[0]
    }

    pub(super) fn plan(&self, id: GroupId) -> GroupPlan {
        GroupPlan {
            directory: self.directory.group(id),
            vault: self.directory.vault().join(id.to_string()),
            segment_bytes: self.configuration.journal.segment_size.0,
            journal_bytes: self.configuration.journal.size.0,
            cache_bytes_max: CACHE_BYTES_MAX,
            planted: Planted::NONE,
        }
    }

    pub(super) fn id(&self, name: &Name) -> Result<GroupId> {
        let missing =
            || Error::new(ErrorKind::NotFound, format!("there is no group {name}: 'group list' shows them"));
        self.groups.read().get(name).copied().ok_or_else(missing)
    }

    /// Asks a group's owner.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        id: GroupId,
        question: impl FnOnce(&mut Member, Answering<T>) + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        let gone = |_| Error::new(ErrorKind::Shutdown, "the group was closed meanwhile");
        self.threads.command_group(id, move |host| {
            if let Some(member) = host.volume(id) {
                question(member, Answering(sender));
            }
        })?;
        receiver.await.map_err(gone)?
    }

    /// Asks a group's owner what it can say at once.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        id: GroupId,
        question: impl FnOnce(&mut Member) -> T + Send + 'static,
    ) -> Result<T> {
        self.ask(id, move |member, answer| answer.send(Ok(question(member)))).await
    }

    /// Opens a group, or creates it if `new` says what it is, and serves its exports. `None`: it had been removed, and
    /// is gone now.
    pub(super) async fn open_group(
        self: &Arc<Self>,
        id: GroupId,
        new: Option<GroupRecord>,
    ) -> Result<Option<crate::control::catalogue::GroupRecord>> {
        let home = self.threads.exports().place_group(id, self.threads.count());
        let plan = self.plan(id);
        let (sender, receiver) = oneshot::channel();
        let answer = Answering(sender);
        self.threads.command(home, move |host| {
            let (runtime, later) = (Rc::clone(host.runtime()), host.later());
            host.runtime().spawn(async move {
                let opened = open_member(&runtime, plan, id, new).await;
                later.run(move |host| match opened {
                    Ok(Some((group, tests))) => {
                        host.insert(id, Member::new(group, tests, move || answer.send(Ok(true))));
                    }
                    Ok(None) => answer.send(Ok(false)),
                    Err(error) => answer.send(Err(error)),
                });
            });
        })?;
        let lost = |_| Error::new(ErrorKind::Shutdown, "the gateway stopped while the group was opened");
        let opened = receiver.await.map_err(lost).flatten();
        if !matches!(opened, Ok(true)) {
            self.threads.exports().forget_group(id);
        }
        if !opened? {
            return Ok(None);
        }
        self.serve_group(id).await.map(Some)
    }

    /// Registers a group's name and exports.
    async fn serve_group(&self, id: GroupId) -> Result<crate::control::catalogue::GroupRecord> {
        let (snapshot, points, tests) = self
            .read(id, |member| {
                let tests: Vec<_> = member.tests.list().map(TestFailover::listing).collect();
                (member.group.snapshot(), member.group.points().to_vec(), tests)
            })
            .await?;
        let name = convert::name(&snapshot.name)?;
        for record in &snapshot.disks {
            self.serve_disk(&name, id, record)?;
        }
        for test in &tests {
            self.serve_test(&name, id, test)?;
        }
        self.groups.write().insert(name, id);
        convert::catalogue_group(&snapshot, &points, &tests)
    }

    pub(super) fn serve_disk(&self, group: &Name, id: GroupId, record: &DiskRecord) -> Result<()> {
        let path = DiskPath { group: group.clone(), disk: convert::name(&record.name)? };
        let info = ExportInfo {
            export: Export::Disk(id, record.id),
            size: record.sectors.bytes(),
            read_only: false,
            description: format!("disk {path}, protected by Afterimage"),
        };
        self.threads.exports().add(&path.to_string(), info)
    }

    pub(super) fn serve_test(&self, group: &Name, id: GroupId, test: &TestListing) -> Result<()> {
        for disk in &test.disks {
            let path = DiskPath { group: group.clone(), disk: convert::name(&disk.name)? };
            let info = ExportInfo {
                export: Export::Test(id, disk.id, test.test),
                size: disk.sectors.bytes(),
                read_only: false,
                description: format!("disk {path} as of {}, a test failover", test.point.wall),
            };
            self.threads.exports().add(&path.test_export(test.test), info)?;
        }
        Ok(())
    }

    pub(super) async fn group_model(&self, id: GroupId) -> Result<Group> {
        let snapshot = self.read(id, |member| member.group.snapshot()).await?;
        convert::group(&snapshot, self.address())
    }

    pub(super) async fn remember(&self, id: GroupId) {
        let known = self
            .read(id, |member| {
                let tests: Vec<_> = member.tests.list().map(TestFailover::listing).collect();
                (member.group.snapshot(), member.group.points().to_vec(), tests)
            })
            .await;
        let record =
            known.and_then(|(group, points, tests)| convert::catalogue_group(&group, &points, &tests));
        match record {
            Ok(record) => {
                cached(self.catalogue.as_ref().map(|catalogue| catalogue.put_group(&record))).await;
            }
            Err(error) => tracing::warn!(group = %id, %error, "the catalogue could not be told of a group"),
        }
    }
}

/// Waits for an update of the catalogue; that one fails is no reason for anything else to.
pub(super) async fn cached(update: Option<impl Future<Output = Result<()>>>) {
    if let Some(update) = update
        && let Err(error) = update.await
    {
        tracing::warn!(%error, "the catalogue could not be brought up to date; it is rebuilt at the next start");
    }
}
