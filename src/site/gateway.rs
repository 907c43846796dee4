//! The gateway: opens the groups of a data directory on the data threads, and carries out what people ask of them.
//!
//! A verb runs in a task of its own, so that a client that leaves does not leave it half done. Verbs that change
//! which groups, disks and exports exist take turns. What a group is and has is asked of its owner, never kept here
//! but for its name and id, and why it could not be opened.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::RwLock;
use rustls::ServerConfig;
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use crate::block::Export;
use crate::capture::nbd::ExportInfo;
use crate::config::Configuration;
use crate::control::backend::Answer;
use crate::control::catalogue::Catalogue;
use crate::control::model::Group;
use crate::control::name::{DiskPath, Name};
use crate::control::server::{self, ApiConnections};
use crate::data_directory::DataDirectory;
use crate::descriptors;
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::failover::TestListing;
use crate::format::record::{DiskRecord, TestUse};
use crate::image::pieces::SharedPieces;
use crate::journal::cache::SharedFrames;
use crate::listen::{Endpoint, ListenAddress, SocketMode};
use crate::planted::Planted;
use crate::protect::group::Callback;
use crate::protect::open::GroupPlan;
use crate::protect::shrinking::SpaceLimits;
use crate::protect::summing::{Summing, SummingTurn};
use crate::site::KeyStore;
use crate::site::background_verification;
use crate::site::clients::{self, BuffersWait};
use crate::site::convert::{self, Troubles};
use crate::site::damage::Damages;
use crate::site::data_threads::DataThreads;
use crate::site::events::{self, EventQueue};
use crate::site::failing;
use crate::site::group_table::{Entry, GroupTable};
use crate::site::hooks::{self, Hooks};
use crate::site::idle_memory;
use crate::site::member::Member;
use crate::site::sampling::{self, Sampling};
use crate::site::suspicion::{self, Suspicions};
use crate::site::verification::Verifications;
use crate::space_gate::SpaceGates;
use crate::units::{GroupId, WallNanos, to_usize};

/// Time between the recovery points of a new group.
pub(super) const INTERVAL_MS_DEFAULT: u32 = 5_000;
/// How long writing down the last events may take.
const EVENTS_END: Duration = Duration::from_secs(5);
/// How long hooks may take to be told the last events.
const HOOKS_END: Duration = Duration::from_secs(5);
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
    pub(super) keys: KeyStore,
    pub(super) threads: DataThreads<Member>,
    pub(super) environment: Arc<dyn Environment + Send + Sync>,
    /// A cache: whatever becomes of it, nothing fails. `None` where it could not even be opened.
    pub(super) catalogue: Option<Catalogue>,
    pub(super) storage: StorageFound,
    pub(super) started: WallNanos,
    pub(super) groups: RwLock<GroupTable>,
    /// Held while a group is created: a name is given once.
    pub(super) creating: Mutex<()>,
    /// Held by verbs that change what exists of a group: its disks, its test failovers, itself. One for each group, so that
    /// one that takes long, or waits, is felt by its own group only.
    pub(super) turns: parking_lot::Mutex<HashMap<GroupId, Arc<Mutex<()>>>>,
    /// Directories that a restore writes to.
    pub(super) restoring: parking_lot::Mutex<HashSet<PathBuf>>,
    /// Verifications in the background: how they stand,
    pub(super) verifications: Verifications,
    /// what any verification found,
    pub(super) damages: Damages,
    /// and which vaults are to be verified for what clients met.
    pub(super) suspicions: Arc<Suspicions>,
    /// Since when requests wait for shared buffers.
    pub(super) buffers_wait: BuffersWait,
    /// What recently written frames of all groups take.
    pub(super) frames: Arc<SharedFrames>,
    /// What destage of all groups keeps in memory.
    pub(super) pieces: Arc<SharedPieces>,
    /// Who may take what is left of file systems.
    pub(super) gates: Arc<SpaceGates>,
    /// Which group's images of before there were sums get theirs.
    pub(super) summing: SummingTurn,
    /// What groups did lately, of which the catalogue has samples.
    pub(super) sampling: Sampling,
    /// What happened and is not in the catalogue yet,
    pub(super) events: Arc<EventQueue>,
    /// who is told it,
    pub(super) hooks: Hooks,
    /// and who writes it there.
    keeper: Mutex<Option<JoinHandle<()>>>,
    /// What goes on without anybody having asked; ended when the gateway stops.
    background: Mutex<JoinSet<()>>,
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
        keys: KeyStore,
        threads: DataThreads<Member>,
        environment: Arc<dyn Environment + Send + Sync>,
        catalogue: Option<Catalogue>,
        storage: StorageFound,
    ) -> Gateway {
        let started = environment.wall();
        let events = Arc::<EventQueue>::default();
        let Configuration { hooks, site, memory, .. } = &configuration;
        let frames = SharedFrames::at_most(to_usize(memory.frames_total.0));
        let hooks = Hooks::new(hooks, &site.name, &events, &environment, catalogue.as_ref());
        Gateway(Arc::new(Inner {
            configuration,
            directory,
            keys,
            threads,
            environment,
            catalogue,
            storage,
            started,
            groups: RwLock::default(),
            creating: Mutex::new(()),
            turns: parking_lot::Mutex::default(),
            restoring: parking_lot::Mutex::default(),
            verifications: Verifications::default(),
            damages: Damages::default(),
            suspicions: Arc::default(),
            frames,
            pieces: Arc::default(),
            gates: Arc::default(),
            summing: SummingTurn::default(),
            sampling: Sampling::default(),
            events,
            hooks,
            buffers_wait: BuffersWait::default(),
            keeper: Mutex::default(),
            background: Mutex::default(),
        }))
    }

    /// Opens every group of the data directory. One that cannot be opened is listed with the reason, and serves what its
    /// vault can give; the others go on.
    pub async fn open_groups(&self) -> Result<()> {
        self.0.hooks.start().await;
        // Openings take long, and have much to tell.
        let keeper = events::keep(Arc::downgrade(&self.0), Arc::clone(&self.0.events));
        *self.0.keeper.lock().await = Some(tokio::spawn(keeper));
        self.0.load_samples().await;
        self.0.open_groups().await?;
        self.0.background.lock().await.spawn(Inner::retry_failed(Arc::downgrade(&self.0)));
        self.0.background.lock().await.spawn(background_verification::keep(Arc::downgrade(&self.0)));
        self.0.background.lock().await.spawn(suspicion::keep(Arc::downgrade(&self.0)));
        self.0.background.lock().await.spawn(idle_memory::keep());
        self.0.background.lock().await.spawn(sampling::keep(Arc::downgrade(&self.0)));
        Ok(())
    }

    /// Has what clients share be watched; `api` are the API's.
    pub(super) async fn watch_clients(&self, api: &Arc<ApiConnections>) {
        self.0.background.lock().await.spawn(clients::watch(Arc::downgrade(&self.0), Arc::clone(api)));
    }

    /// Lets block clients connect; those who come by TCP must begin TLS if there is a configuration of it.
    pub fn listen(
        &self,
        address: &ListenAddress,
        mode: SocketMode,
        tls: Option<&Arc<ServerConfig>>,
    ) -> Result<ListenAddress> {
        match (address, tls) {
            (ListenAddress::Tcp(_), Some(tls)) => {
                self.0.threads.listen_by_tls(address, mode, Arc::clone(tls))
            }
            _ => self.0.threads.listen(address, mode),
        }
    }

    /// The data threads.
    pub(super) fn threads(&self) -> &DataThreads<Member> {
        &self.0.threads
    }

    /// How many groups there are now, and how many of them could not be opened.
    pub(super) fn count_groups(&self) -> (usize, usize) {
        let groups = self.0.groups_now();
        (groups.len(), groups.iter().filter(|(_, entry)| entry.failure.is_some()).count())
    }

    /// A stop is near: whoever waits for what a full file system, or one that fails, does not give is told so now.
    pub fn end_waits(&self) {
        self.0.events.end_waits();
        for (_, Entry { id, .. }) in self.0.groups_now() {
            // A group that is not on a thread has nobody who waits for it.
            let _ = self.0.threads.command_group(id, move |host| {
                if let Some(Ok(group)) = host.volume(id).map(Member::group) {
                    group.end_waits();
                }
            });
        }
    }

    /// Stops all groups in good order: sessions end, journals are sealed, checkpoints written.
    pub async fn stop(&self, within: Duration) {
        let inner = &self.0;
        inner.background.lock().await.shutdown().await;
        inner.threads.drain(SESSIONS_END).finished().await;
        // No guest writes any more, and the groups can still say what was written.
        if tokio::time::timeout(EVENTS_END, inner.record_samples()).await.is_err() {
            tracing::warn!("the catalogue did not take the last samples in time");
        }
        let groups = inner.groups.read().list();
        let hosted = groups.iter().filter(|(_, entry)| entry.is_hosted()).map(|(_, entry)| entry.id);
        let stops = hosted.map(|id| {
            inner.ask(id, |member: &mut Member, answer: Answering<()>| {
                member.stop(move || answer.send(Ok(())))
            })
        });
        if tokio::time::timeout(within, futures::future::join_all(stops)).await.is_err() {
            tracing::warn!(
                "not every group could be sealed in time; the next start recovers them from their journals"
            );
        }
        if tokio::time::timeout(EVENTS_END, inner.end_events()).await.is_err() {
            tracing::warn!("the catalogue did not take the last events in time; the log has them");
        }
        inner.hooks.stop(HOOKS_END).await;
        if let Some(catalogue) = &inner.catalogue {
            // Also that a hook failed just now.
            let _ = tokio::time::timeout(EVENTS_END, inner.record_events()).await;
            catalogue.close().await;
        }
    }

    /// Ends the data threads; call it last.
    pub fn end(self) -> Result<()> {
        match Arc::try_unwrap(self.0) {
            Ok(inner) => inner.threads.stop(),
            // Of groups nothing is left to be done; a job that is cut off leaves what the death of the process leaves.
            Err(_) => {
                tracing::warn!(
                    "a job is still at work: it ends with the process, and so do the data threads"
                );
                Ok(())
            }
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

impl Inner {
    /// Has everything that happened in the catalogue; nothing happens any more.
    async fn end_events(&self) {
        self.events.end();
        if let Some(keeper) = self.keeper.lock().await.take()
            && let Err(error) = keeper.await
        {
            tracing::warn!(%error, "the keeper of events ended early");
        }
        if !self.record_events().await {
            tracing::warn!("the catalogue did not take the last events; the log has them");
        }
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        let nbd = &self.configuration.nbd;
        Endpoint::new(nbd.listen[0].clone(), nbd.tls.is_some())
    }

    pub(super) fn plan(&self, id: GroupId) -> GroupPlan {
        GroupPlan {
            directory: self.directory.group(id),
            vault: self.directory.vault().join(id.to_string()),
            segment_bytes: self.configuration.journal.segment_size.0,
            journal_bytes: self.configuration.journal.size.0,
            cache_bytes_max: to_usize(self.configuration.memory.frames.0),
            shared_frames: Arc::clone(&self.frames),
            shared_pieces: Arc::clone(&self.pieces),
            map_bytes_max: to_usize(self.configuration.memory.maps.0),
            index_bytes_min: crate::protect::open::index_bytes_min(self.configuration.journal.size.0),
            fan_out: crate::vault::FAN_OUT,
            piece_bytes: None,
            space: SpaceLimits {
                history_bytes_max: self.configuration.vault.history_max.map(|size| size.0),
                free_bytes_min: self.configuration.vault.free_min.map(|size| size.0),
                images_free_bytes_min: self.configuration.images.free_min.map(|size| size.0),
                ..SpaceLimits::default()
            },
            gates: Arc::clone(&self.gates),
            site_keys: self.keys.site_keys(),
            summing: Summing { rate: Some(self.configuration.verify.rate), turn: self.summing.clone() },
            seals: self.configuration.keys.seals_groups,
            accepts_loss: false,
            planted: Planted::NONE,
        }
    }

    /// Whether so many more files can be kept open, and each client that may come has a descriptor all the same.
    pub(super) fn check_descriptors(&self, more: usize) -> Result<()> {
        let nbd = self.configuration.nbd.connections_max.get().saturating_sub(self.threads.connections());
        // Who asks for this is one of the API's, and the others come and go.
        let api = self.configuration.api.connections_max.get() + server::DESCRIPTORS_BEYOND;
        let metrics = server::descriptors_of_metrics(self.configuration.metrics.listen.len());
        let hooks = hooks::descriptors_of_hooks(self.configuration.hooks.len());
        descriptors::check_room(more, nbd + api + metrics + hooks)
    }

    /// The group that a person means, with the name that it goes by.
    pub(super) fn find(&self, name: &Name) -> Result<(Name, Entry)> {
        self.groups.read().find(name)
    }

    /// The turn of a group: what is decided while it is held stays so. To be taken before the group is looked up for good.
    pub(super) async fn turn_of(&self, meant: &Name) -> Result<OwnedMutexGuard<()>> {
        let (_, entry) = self.find(meant)?;
        Ok(self.turn_of_id(entry.id).await)
    }

    pub(super) async fn turn_of_id(&self, id: GroupId) -> OwnedMutexGuard<()> {
        let turn = Arc::clone(self.turns.lock().entry(id).or_default());
        turn.lock_owned().await
    }

    /// The same, if it is open.
    ///
    /// # Errors
    /// `Latched` if it could not be opened, with the reason and the mend.
    pub(super) fn find_open(&self, name: &Name) -> Result<(Name, GroupId)> {
        let (name, entry) = self.find(name)?;
        match entry.failure {
            None => Ok((name, entry.id)),
            Some(failure) => Err(failure.refusal(&name)),
        }
    }

    /// The same, if at least its vault is open.
    pub(super) fn find_vault(&self, name: &Name) -> Result<(Name, GroupId)> {
        let (name, entry) = self.find(name)?;
        match entry.failure {
            Some(ref failure) if !entry.is_hosted() => Err(failure.refusal(&name)),
            _ => Ok((name, entry.id)),
        }
    }

    /// A group by its id, with the name that it goes by.
    pub(super) fn find_by_id(&self, id: GroupId) -> Option<(Name, Entry)> {
        self.groups.read().find_by_id(id)
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
            let kind = match test.purpose {
                TestUse::Rehearsal => "a test failover",
                TestUse::ReadOnly => "a read-only test failover",
                TestUse::Restore => "for a restore",
            };
            let info = ExportInfo {
                export: Export::Test(id, disk.id, test.test),
                size: disk.sectors.bytes(),
                read_only: test.purpose.is_read_only(),
                description: format!("disk {path} as of {}, {kind}", test.point.wall),
            };
            self.threads.exports().add(&path.test_export(test.test), info)?;
        }
        Ok(())
    }

    /// What people are told of a group.
    pub(super) async fn group_model(&self, name: &Name, entry: &Entry) -> Result<Group> {
        let failure = entry.failure.as_ref().map(|failure| failure.model(name));
        if !entry.is_hosted() {
            let known = self.last_described(entry.id).await;
            return Ok(convert::unreadable_group(entry.id, name, known.as_ref(), failure, &self.endpoint()));
        }
        let asked = |member: &mut Member| {
            let snapshot = member.group().ok().map(|group| group.snapshot());
            (member.description(), snapshot, (member.failing_tests(), member.test_troubles()))
        };
        let (description, snapshot, (failing_tests, test_troubles)) = self.read(entry.id, asked).await?;
        let failing_disks = snapshot.as_ref().map_or(Vec::new(), |snapshot| snapshot.failing.clone());
        let troubles = Troubles {
            failure,
            damage: failing::with_tests(name, self.damage_of(name, entry).await, &test_troubles),
            failing: failing::failure(name, failing_disks, failing_tests),
        };
        convert::group(entry.id, name, &description, snapshot.as_ref(), troubles, &self.endpoint())
    }

    /// Has the catalogue say what a disk of a group is; nothing else of the group, whose history may be long.
    pub(super) async fn remember_disk(&self, id: GroupId, record: &DiskRecord) -> Result<()> {
        let disk = convert::catalogue_disk(record)?;
        cached(self.catalogue.as_ref().map(|catalogue| catalogue.put_disk(id, &disk))).await;
        Ok(())
    }

    pub(super) async fn remember(&self, id: GroupId) {
        if let Some(record) = self.record(id).await {
            cached(self.catalogue.as_ref().map(|catalogue| catalogue.put_group(&record))).await;
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
