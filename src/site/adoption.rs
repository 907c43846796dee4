//! Making a group of a vault whose gateway is gone (`docs/adoption.md`): which vault, whether it may be taken, and what the group
//! is listed as meanwhile and afterwards. The work itself is `protect::adopt`'s.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::gateway::Inner;
use super::opening::Opened;
use super::repair::behind;
use crate::control::jobs::Progress;
use crate::control::model::{AdoptRequest, Adopted, LostSectors, Severity};
use crate::control::name::Name;
use crate::data_directory;
use crate::error::{Error, ErrorKind, Result};
use crate::extent::Ranges;
use crate::protect::adopt;
use crate::protect::loss::{DiskLoss, Loss, Terms};
use crate::protect::open::{self, GroupPlan};
use crate::runtime::Runtime;
use crate::units::GroupId;
use crate::vault::Vault;

/// Ranges of a disk that one line of the log, or an event, names.
const RANGES_A_LINE: usize = 64;

/// A vault that somebody wants to have as a group.
#[derive(Clone)]
struct Found {
    id: GroupId,
    directory: PathBuf,
    /// Whether it lies where this gateway would keep it.
    is_in_place: bool,
}

impl Inner {
    pub(super) async fn vault_adopt(
        self: &Arc<Self>,
        request: AdoptRequest,
        progress: Progress,
    ) -> Result<Adopted> {
        let found = self.find_orphan(request.directory).await?;
        let id = found.id;
        let _turn = self.turn_of_id(id).await;
        let known = self.find_by_id(id);
        if let Some((name, _)) = known.as_ref().filter(|(_, entry)| entry.failure.is_none()) {
            let text = format!("group {name} is open here, with this vault or another copy of it");
            return Err(Error::new(ErrorKind::AlreadyExists, text).at_path(&found.directory));
        }
        let (plan, checked) = (self.plan(id), found.clone());
        self.on_a_thread(0, move |runtime| async move { check(&runtime, &plan, &checked).await }).await?;
        if let Some((name, entry)) = &known {
            self.evict(name, entry).await?;
        }
        let home = self.threads.exports().place_group(id, self.threads.count());
        let terms = if request.accept_loss { Terms::AcceptLoss } else { Terms::RefuseLoss };
        let adopted = self.take_and_keep(home, found, terms, progress).await;
        let listed_as = known.map(|(name, _)| name);
        let closed = self.list_opened(id, self.open(id).await?, listed_as).await?;
        let lost = adopted?;
        if let Some(error) = closed {
            return Err(error);
        }
        self.remember(id).await;
        let (name, entry) = self.find_by_id(id).expect("it was noted, and this is its turn");
        tracing::info!(group = %id, %name, "the vault was adopted");
        Ok(Adopted { group: self.group_model(&name, &entry).await?, lost })
    }

    /// Makes the group's files. What was given up is told, and kept, before the group can be opened: nobody meets zeros that were not
    /// named.
    async fn take_and_keep(
        &self,
        home: usize,
        found: Found,
        terms: Terms,
        progress: Progress,
    ) -> Result<Vec<LostSectors>> {
        let (id, plan) = (found.id, self.plan(found.id));
        let work = move |runtime| async move { take(&runtime, &plan, &found, terms, progress).await };
        let Taken { name, loss } = self.on_a_thread(home, work).await?;
        if !loss.is_empty() {
            self.tell_loss(id, &name, &loss);
            self.keep_damage(id, &loss.report).await?;
        }
        let plan = self.plan(id);
        self.on_a_thread(home, move |runtime| async move { adopt::finish(&runtime, &plan).await }).await?;
        let sectors = loss.disks.iter().flat_map(|lost| {
            lost.ranges.as_slice().iter().map(|range| LostSectors {
                disk: lost.name.clone(),
                first_sector: range.start,
                sectors: range.sectors(),
            })
        });
        Ok(sectors.collect())
    }

    /// The log has every range.
    fn tell_loss(&self, id: GroupId, name: &str, loss: &Loss) {
        let name = name
            .parse()
            .unwrap_or_else(|_| id.to_string().parse().expect("an id is made of what names are made of"));
        for lost in &loss.disks {
            for ranges in lost.ranges.as_slice().chunks(RANGES_A_LINE) {
                let part = DiskLoss { ranges: Ranges::of(ranges.iter().copied()), ..lost.clone() };
                tracing::error!(group = %id, %name, "adopted with a loss, zeros now: {}", part.told(RANGES_A_LINE));
            }
            let text = format!(
                "the vault was adopted, and what its newest point shows here is lost, and zeros now: {}; 'vault repair {name}' leads out",
                lost.told(RANGES_A_LINE)
            );
            self.tell_now(id, &name, (Severity::Error, "adopted_with_loss"), text);
        }
    }

    /// Lists a group as what its opening made of it; says why it is not open, if it is not.
    async fn list_opened(
        self: &Arc<Self>,
        id: GroupId,
        opened: Opened,
        name: Option<Name>,
    ) -> Result<Option<Error>> {
        match opened {
            Opened::Serving => self.serve_all(id, None).await.map(|()| None),
            Opened::VaultOnly(error) => {
                self.serve_all(id, Some(self.failure(&error, true))).await?;
                Ok(Some(error))
            }
            Opened::Nothing(error) => {
                self.note_without_vault(id, &error, name);
                Ok(Some(error))
            }
            Opened::Removed => Ok(Some(Error::new(ErrorKind::NotFound, "the vault's group was removed"))),
        }
    }

    /// Looks at a directory that should be the vault of a group that nobody serves.
    async fn find_orphan(&self, directory: PathBuf) -> Result<Found> {
        let failed = |error| Error::io("looking at the vault", error).at_path(&directory);
        let directory = std::fs::canonicalize(&directory).map_err(failed)?;
        // `DATA_DIR/vault/GROUP_ID`, if it is one that a gateway may be serving.
        let owner = directory.parent().and_then(Path::parent).filter(|owner| *owner != self.directory.path());
        if let Some(owner) = owner.filter(|owner| data_directory::is_in_use(owner) == Some(true)) {
            let text = "a gateway serves this vault: stop it, or copy the directory while it is stopped";
            return Err(Error::new(ErrorKind::Latched, text).at_path(owner));
        }
        let vaults = std::fs::canonicalize(self.directory.vault()).ok();
        let is_in_place = directory.parent().is_some_and(|parent| Some(parent) == vaults.as_deref());
        // What was not copied to the end would only seem to be damaged.
        if let Some(id) =
            directory.file_name().and_then(|name| name.to_str()?.parse().ok()).filter(|_| is_in_place)
        {
            let plan = self.plan(id);
            self.on_a_thread(0, move |runtime| async move { adopt::refuse_uncopied(&runtime, &plan).await })
                .await?;
        }
        let (keys, place) = (self.keys.site_keys(), directory.clone());
        let id = self
            .on_a_thread(0, move |runtime| async move {
                let vault = Vault::open_as_it_is(&runtime, &place, &keys).await?;
                let id = vault.manifest().state().group();
                Ok(id)
            })
            .await
            .map_err(with_mend)?;
        let own = self.plan(id).vault;
        if is_in_place && own.file_name() != directory.file_name() {
            let text = format!("this is the vault of group {id}: name its directory so");
            return Err(Error::invalid(text).at_path(&directory));
        }
        Ok(Found { id, is_in_place, directory })
    }

    /// Runs `work` on a data thread.
    async fn on_a_thread<T: Send + 'static, W: Future<Output = Result<T>>>(
        &self,
        thread: usize,
        work: impl FnOnce(Rc<Runtime>) -> W + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        self.threads.command(thread, move |host| {
            let runtime = Rc::clone(host.runtime());
            host.runtime().spawn(async move {
                // Whoever asked may have lost interest.
                let _ = sender.send(work(runtime).await);
            });
        })?;
        let lost = |_| Error::new(ErrorKind::Shutdown, "the gateway stopped while a vault was adopted");
        receiver.await.map_err(lost)?
    }
}

fn with_mend(error: Error) -> Error {
    match error.kind() {
        ErrorKind::NoKey => {
            Error::new(ErrorKind::NoKey, format!("{error}: 'key import' the key that was exported, first"))
        }
        ErrorKind::NotFound => {
            let text =
                format!("this is no vault of a group ({error}): name a directory like DATA_DIR/vault/ID");
            Error::new(ErrorKind::NotFound, text)
        }
        ErrorKind::Corrupt => error.within(
            "nothing can be had of a vault whose manifest or keys are damaged: put an undamaged copy of the file in its place",
        ),
        _ => error,
    }
}

/// Refuses what would lose something, before anything is touched.
async fn check(runtime: &Rc<Runtime>, plan: &GroupPlan, found: &Found) -> Result<()> {
    if !found.is_in_place {
        adopt::refuse_second_vault(runtime, plan).await?;
    }
    adopt::refuse_protected(runtime, plan).await
}

/// What was made of a vault.
struct Taken {
    /// What people call the group.
    name: String,
    loss: Loss,
}

async fn take(
    runtime: &Rc<Runtime>,
    plan: &GroupPlan,
    found: &Found,
    terms: Terms,
    progress: Progress,
) -> Result<Taken> {
    if !found.is_in_place {
        adopt::fetch(runtime, plan, &found.directory, behind(progress.clone())).await?;
    }
    let vault = open::open_vault(runtime, plan).await?;
    let name = vault.manifest().state().record().name.clone();
    let loss = adopt::rebuild(runtime, plan, &vault, terms, behind(progress)).await?;
    Ok(Taken { name, loss })
}
