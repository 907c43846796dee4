//! The vault of a group: a directory with its manifest, its delta blobs and its bases.
//!
//! The manifest is the truth about a group's name, disks, policy and points; whatever it does not name does not exist, and
//! is removed by the next owner. One process owns a vault at a time; it holds the lock of the data directory. The
//! manifest's put-if-absent protocol holds without that, as object stores will need it.
//!
//! Invariant: whatever the manifest names was durable before the step that names it.

mod advance;
mod age;
mod base;
mod blobs;
mod copy;
mod cover;
mod detour;
mod files;
mod gain;
mod harm;
mod kept;
mod keyring;
mod layout;
mod leases;
mod manifest;
mod pieces;
mod plan;
mod repair;
mod reserve;
mod retention;
mod state;
mod summaries;
mod sums;
mod thinning;
mod verify;
mod verify_base;

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use futures::lock::{Mutex, MutexGuard};

pub use advance::Advance;
pub use age::{Age, Moment, ages};
pub use base::{Base, Bases, copy_sparse};
pub use blobs::{BlobWriter, Blobs};
pub use copy::copy;
pub use cover::Stretch;
pub use detour::Detour;
pub use harm::{Harmed, POINTS_TOLD, named as named_points};
pub use keyring::{Wrapped, describe as describe_keys, rewrap as rewrap_keys};
pub use layout::{BaseName, Layout, SPARES, parse_base_name};
pub use leases::{Lease, Leases, SummaryLease};
pub use manifest::{Manifest, SNAPSHOT_STEPS};
pub use plan::{Plan, PlannedPoint, plan};
pub use repair::{RepairPlan, damage};
pub use reserve::Reserve;
pub use retention::{Forecast, RetentionStep};
pub use state::{Refusal, State};
pub use summaries::{FAN_OUT, Summaries};
pub use sums::SumsRot;
pub use verify::{Finding, Severity, VerifyReport, verify, verify_at, verify_manifest};

use self::gain::Gains;
use crate::delta::{Build, BuiltDelta, DeltaReader, DiskExtents, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::Extent;
use crate::format::delta::{DeltaRef, Header};
use crate::format::manifest::StepNumber;
use crate::format::record::{Change, GroupRecord, PointRecord, Reached};
use crate::planted::Planted;
use crate::runtime::Runtime;
use crate::seal::{GroupKeys, SiteKeys};
use crate::units::{DiskId, DiskSlot, GroupId, PointId, TimelineId};

/// Ranges that a disk lacks and that an error names.
const LACKING_NAMED_MAX: usize = 8;

/// A group's vault, owned by this process.
pub struct Vault {
    runtime: Rc<Runtime>,
    layout: Layout,
    manifest: Manifest,
    blobs: Blobs,
    bases: Bases,
    summaries: Summaries,
    leases: Leases,
    /// One retention at a time, also while a group is opened anew over its vault.
    turn: Mutex<()>,
    /// Bytes that a base advance takes up at a time, if it is said.
    piece_bytes: Option<u64>,
    /// What a base advance would have taken at once, and when there was no room for it.
    did_not_fit: Cell<Option<(StepNumber, u64)>>,
    /// What retiring the oldest points would give back, as of the last look.
    gains: Cell<Option<Gains>>,
    /// Bytes that were free when the merge into this point found no space.
    merge_exceeds: Cell<Option<(PointId, u64)>>,
    planted: Planted,
}

impl Vault {
    /// Creates the vault of a new group in `directory`, which may exist; sealed, if site keys are given. Fails with
    /// `AlreadyExists` where a group has its vault.
    pub async fn create(
        runtime: &Rc<Runtime>,
        directory: &Path,
        group: GroupId,
        timeline: TimelineId,
        record: GroupRecord,
        seal_with: Option<&SiteKeys>,
    ) -> Result<Vault> {
        let layout = Layout::new(directory);
        for directory in layout.directories() {
            runtime.create_directory(directory).await?;
        }
        runtime.sync_directory(layout.root()).await?;
        if let Some(parent) = layout.root().parent() {
            runtime.sync_directory(parent).await?;
        }
        // Before the first step: a step that nobody can open would be a group that nobody can open.
        let keys = match seal_with {
            Some(site) => keyring::create(runtime, &layout, group, site).await?,
            None => GroupKeys::NONE,
        };
        let manifest = Manifest::create(runtime, &layout, group, timeline, record, keys).await?;
        Ok(Vault::new(runtime, layout, manifest))
    }

    /// Opens a group's vault and removes what its last owner left unpublished. Fails with `NotFound` where no group
    /// began, with `Shutdown` where one was removed: then [`destroy`] it; and with `NoKey` where `site` lacks the key.
    pub async fn open(runtime: &Rc<Runtime>, directory: &Path, site: &SiteKeys) -> Result<Vault> {
        let layout = Layout::new(directory);
        if is_removed(runtime, &layout).await? {
            return Err(removed(&layout));
        }
        let keys = keyring::open(runtime, &layout, site).await?;
        let is_spare = |name: &str| layout::parse_spare_name(name).is_some();
        files::remove_partials(runtime, &layout.manifest(), is_spare).await?;
        let manifest = Manifest::open(runtime, &layout, keys).await?;
        if manifest.state().is_removed() {
            return Err(removed(&layout));
        }
        if manifest.keys().is_sealed() {
            files::remove_partials(runtime, &layout.keys(), |_| false).await?;
        }
        let vault = Vault::new(runtime, layout, manifest);
        vault.reserve().load().await?;
        vault.blobs.clean(|blob| vault.manifest.state().names_blob(blob)).await?;
        vault.bases.clean(|disk| vault.manifest.state().names_disk(disk)).await?;
        let deltas = vault.manifest.state().all_deltas();
        vault.summaries.clean(&deltas).await?;
        Ok(vault)
    }

    /// Opens a vault for somebody who only looks, as it is: what its last owner left stays. Fails like [`Vault::open`].
    pub async fn open_as_it_is(runtime: &Rc<Runtime>, directory: &Path, site: &SiteKeys) -> Result<Vault> {
        let layout = Layout::new(directory);
        if is_removed(runtime, &layout).await? {
            return Err(removed(&layout));
        }
        let keys = keyring::open(runtime, &layout, site).await?;
        let manifest = Manifest::open(runtime, &layout, keys).await?;
        let vault = Vault::new(runtime, layout, manifest);
        vault.summaries.load().await?;
        Ok(vault)
    }

    fn new(runtime: &Rc<Runtime>, layout: Layout, manifest: Manifest) -> Vault {
        let blobs = Blobs::new(runtime, &layout);
        let bases = Bases::new(runtime, &layout);
        let summaries = Summaries::new(runtime, &layout);
        let (leases, turn, planted) = (Leases::default(), Mutex::new(()), Planted::NONE);
        Vault {
            runtime: Rc::clone(runtime),
            layout,
            manifest,
            blobs,
            bases,
            summaries,
            leases,
            turn,
            piece_bytes: None,
            did_not_fit: Cell::default(),
            gains: Cell::default(),
            merge_exceeds: Cell::default(),
            planted,
        }
    }

    /// The same vault with a bug: for the simulator.
    #[must_use]
    pub fn with_planted(mut self, planted: Planted) -> Vault {
        self.planted = planted;
        self.manifest.plant(planted);
        self.blobs.plant(planted);
        self.bases.plant(planted);
        self.summaries.plant(planted);
        self
    }

    /// The same vault, which makes one summary of so many neighbours: at least two.
    #[must_use]
    pub fn with_fan_out(mut self, fan_out: usize) -> Vault {
        self.summaries.gather(fan_out);
        self
    }

    /// The same vault, whose base advances always go in pieces, of so many bytes: for the simulator.
    #[must_use]
    pub fn with_pieces(mut self, bytes: u64) -> Vault {
        self.piece_bytes = Some(bytes);
        self
    }

    /// What the vault's I/O runs on.
    pub fn runtime(&self) -> &Rc<Runtime> {
        &self.runtime
    }

    /// Where its files are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its group's keys.
    pub fn keys(&self) -> &GroupKeys {
        self.manifest.keys()
    }

    /// The bug that is planted in it, and in what is built on it.
    pub(crate) fn planted(&self) -> Planted {
        self.planted
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What it keeps back for giving space back.
    pub fn reserve(&self) -> &Reserve {
        self.manifest.reserve()
    }

    /// Does what gives space back in the end, and takes some first: where there is none, with that of the reserve.
    async fn with_room<T>(&self, work: impl AsyncFn() -> Result<T>) -> Result<T> {
        match work().await {
            Err(error) if lacks_space(&error) && self.reserve().give_room().await => work().await,
            done => done,
        }
    }

    /// Its delta blobs.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Its bases.
    pub fn bases(&self) -> &Bases {
        &self.bases
    }

    /// Its summaries of deltas.
    pub fn summaries(&self) -> &Summaries {
        &self.summaries
    }

    /// What the views of this process read.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Keeps others from retention while the returned guard lives.
    pub async fn retention_turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Builds the delta that `header` announces and puts it into the vault; durable when this returns. `disks` ascend by
    /// slot. `None`, and no blob, if nothing was written.
    ///
    /// Dropped on the way, it leaves at most a partial file, which the vault's next opening removes.
    pub async fn put_delta<S, I>(
        &self,
        header: Header,
        source: &S,
        disks: impl IntoIterator<Item = DiskExtents<I>>,
    ) -> Result<Option<BuiltDelta>>
    where
        S: Source,
        I: Iterator<Item = Extent<S::Location>>,
    {
        let Some(build) = Build::new(source, disks.into_iter()) else { return Ok(None) };
        let mut writer = self.blobs.create(header.blob).await?;
        match build.write(&mut writer, header, self.keys()).await {
            Ok(built) => writer.finish().await.map(|()| Some(built)),
            Err(error) => {
                // Best effort: what stays is removed when the vault is opened next.
                let _ = writer.abandon().await;
                Err(error)
            }
        }
    }

    /// Opens a delta that a point names, without what the base has taken in of it by now.
    pub async fn open_delta(&self, reference: &DeltaRef) -> Result<DeltaReader> {
        let taken_in = self.manifest.state().taken_in().get(&reference.blob).copied();
        self.open_delta_beyond(reference, taken_in).await
    }

    /// The same without what the base had taken in of it when somebody looked.
    pub async fn open_delta_beyond(
        &self,
        reference: &DeltaRef,
        taken_in: Option<Reached>,
    ) -> Result<DeltaReader> {
        let group = self.manifest.state().group();
        let file = self.blobs.open(reference.blob).await?;
        let reader = DeltaReader::open(&self.runtime, file, reference, group, self.keys()).await?;
        Ok(match taken_in {
            Some(reached) => reader.beyond(reached),
            None => reader,
        })
    }

    /// Makes a point restorable; its delta, if it has one, was put before.
    pub async fn publish(&self, point: PointRecord) -> Result<StepNumber> {
        let delta = point.delta;
        let step = self.manifest.append(Change::PointPublished(point)).await?;
        delta.into_iter().for_each(|delta| self.blobs.settle(delta.blob));
        Ok(step)
    }

    /// Names of the disks that cannot be had at a point since writes to them rotted in the journal.
    pub fn lacking_disks(&self, point: &PointRecord) -> Vec<String> {
        let lacking = point.disks.iter().filter(|disk| !disk.lacking().is_empty());
        lacking.map(|disk| self.disk_name(disk.slot)).collect()
    }

    fn disk_name(&self, slot: DiskSlot) -> String {
        self.manifest.state().disk(slot).map_or_else(String::new, |disk| disk.record.name.clone())
    }

    /// Why a point does not hold a disk.
    pub fn missing_disk(&self, point: &PointRecord, disk: DiskId) -> Error {
        let lacking = point.disks.iter().find(|member| member.disk == disk && !member.lacking().is_empty());
        let text = match lacking {
            None => format!("point {} does not hold disk {disk}", point.id),
            Some(member) => {
                let ranges: Vec<_> =
                    member.lacking().iter().take(LACKING_NAMED_MAX).map(ToString::to_string).collect();
                let more = if member.lacking().len() > LACKING_NAMED_MAX { ", …" } else { "" };
                format!(
                    "point {} cannot give disk {}: writes to its sectors {}{more} rotted in the journal; choose an earlier \
                     point, or one from after the loss was accepted",
                    point.id,
                    self.disk_name(member.slot),
                    ranges.join(", "),
                )
            }
        };
        Error::new(ErrorKind::NotFound, text)
    }

    /// Ends the group and deletes its vault.
    pub async fn remove(&self) -> Result<()> {
        self.manifest.append(Change::GroupRemoved).await?;
        destroy(&self.runtime, self.layout.root()).await
    }
}

/// Whether a file system lacks space, and not a process descriptors.
pub(crate) fn lacks_space(error: &Error) -> bool {
    error.kind() == ErrorKind::NoSpace && !error.lacks_descriptors()
}

fn removed(layout: &Layout) -> Error {
    Error::new(ErrorKind::Shutdown, "the group of this vault was removed").at_path(layout.root())
}

async fn is_removed(runtime: &Rc<Runtime>, layout: &Layout) -> Result<bool> {
    let names = runtime.list(layout.root()).await?;
    let tombstone = layout.tombstone();
    Ok(names.iter().any(|name| Some(name.as_ref()) == tombstone.file_name()))
}

/// Whether a vault's directory holds nothing that anybody put there: its creation did not come to the first step.
pub async fn is_unbegun(runtime: &Rc<Runtime>, directory: &Path) -> Result<bool> {
    for directory in Layout::new(directory).content_directories() {
        match runtime.list(directory).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(names) if names.iter().all(|name| layout::is_partial(name)) => {}
            Ok(_) => return Ok(false),
        }
    }
    Ok(true)
}

/// Says for good that a vault's group was removed, also where the manifest can say nothing any more; then [`destroy`] it.
pub async fn entomb(runtime: &Rc<Runtime>, directory: &Path) -> Result<()> {
    runtime.create_directory(directory).await?;
    let layout = Layout::new(directory);
    let put = async || files::put(runtime, &layout.tombstone(), &[], Planted::NONE).await;
    let put = match put().await {
        // Nobody needs the reserve any more.
        Err(files::PutError::Absent(error))
            if error.kind() == ErrorKind::NoSpace && runtime.remove(layout.room()).await.is_ok() =>
        {
            put().await
        }
        put => put,
    };
    match put {
        Ok(_) => Ok(()),
        Err(files::PutError::Absent(error) | files::PutError::Unknown(error)) => Err(error),
    }
}

/// Deletes the vault of a removed group; resumable. The tombstone comes first and goes last, so that a manifest that
/// is deleted in part is never taken for a damaged one.
pub async fn destroy(runtime: &Rc<Runtime>, directory: &Path) -> Result<()> {
    let layout = Layout::new(directory);
    let tombstone = layout.tombstone();
    entomb(runtime, directory).await?;
    for directory in layout.directories() {
        let names = match runtime.list(&directory).await {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            names => names?,
        };
        for name in names {
            runtime.remove(directory.join(name)).await?;
        }
        runtime.remove_directory(&directory).await?;
    }
    runtime.sync_directory(layout.root()).await?;
    runtime.remove(&tombstone).await?;
    for name in runtime.list(layout.root()).await? {
        if layout::is_partial(&name) {
            runtime.remove(layout.root().join(name)).await?;
        }
    }
    runtime.remove_directory(layout.root()).await?;
    match layout.root().parent() {
        Some(parent) => runtime.sync_directory(parent).await,
        None => Ok(()),
    }
}
