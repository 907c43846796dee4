//! Disks that join and leave a group, and its policy: changes that the manifest decides.
//!
//! A disk joins in this order: base and image complete and durable, then the manifest step, then the table here; so a
//! crash leaves files that nobody names, never a name without its files. It leaves the other way round.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::format::ladder::Ladder;
use crate::format::record::{Change, DiskRecord};
use crate::image::{self, Filling, Image};
use crate::protect::disk::Disk;
use crate::protect::events::GroupEvent;
use crate::protect::group::{Callback, Group};
use crate::protect::mailbox::Done;
use crate::runtime::Runtime;
use crate::storage::OpenOptions;
use crate::units::{DiskId, DiskSlot, Lsn, SectorCount, TimelineId};
use crate::vault::Vault;

/// What a new disk holds at first.
pub enum Content {
    /// Zeros.
    Empty,
    /// A copy of a raw file; the disk may be larger. The function is told bytes copied and to copy; its error ends the
    /// copy.
    Import(PathBuf, Rc<dyn Fn(u64, u64) -> Result<()>>),
}

/// A disk that joined.
pub(super) struct Joined {
    pub record: DiskRecord,
    pub image: Image,
}

impl Group {
    /// Adds a disk; `callback` gets it when it can be served.
    pub fn add_disk(
        &mut self,
        name: String,
        size: SectorCount,
        content: Content,
        callback: Callback<DiskRecord>,
    ) {
        let (runtime, mailbox) = (Rc::clone(&self.runtime), Rc::clone(&self.mailbox));
        let vault = Rc::clone(&self.settings.vault);
        let images = self.settings.plan.images();
        let timeline = self.identity.timeline;
        self.tasks.spawn(async move {
            let id = DiskId(runtime.random_u128());
            let files = Files { runtime: &runtime, vault: &vault, images: &images, id, timeline, size };
            let result = files.join(name, content).await;
            // Where the step may have been made, its files must stay: the next opening sees.
            if result.is_err() && !vault.manifest().is_in_doubt() {
                files.discard().await;
            }
            mailbox.borrow_mut().push_back(Done::Joined(result, callback));
        });
    }

    pub(super) fn finish_join(&mut self, result: Result<Joined>, callback: Callback<DiskRecord>) {
        callback(result.map(|joined| {
            self.slots.insert(joined.record.id, joined.record.slot);
            self.disks.insert(joined.record.slot, Disk::new(joined.record.clone(), joined.image));
            joined.record
        }));
    }

    /// Removes a disk: its points stay restorable, its image goes.
    pub fn remove_disk(&mut self, id: DiskId, callback: Callback<()>) {
        let Some(&slot) = self.slots.get(&id) else {
            return callback(Err(Error::new(ErrorKind::NotFound, "the group has no such disk")));
        };
        if self.resizes(slot) {
            return callback(Err(Error::invalid("the disk is being resized: try again when that is done")));
        }
        self.slots.remove(&id);
        self.mind_retention();
        let (vault, mailbox) = (Rc::clone(&self.settings.vault), Rc::clone(&self.mailbox));
        self.tasks.spawn(async move {
            let result = vault.manifest().append(Change::DiskRemoved(slot)).await.map(drop);
            mailbox.borrow_mut().push_back(Done::Left(id, slot, result, callback));
        });
    }

    pub(super) fn finish_leave(
        &mut self,
        id: DiskId,
        slot: DiskSlot,
        result: Result<()>,
        callback: Callback<()>,
    ) {
        if let Err(error) = result {
            self.slots.insert(id, slot);
            return callback(Err(error));
        }
        // The read path forgets the disk; the interval does not, for a marker that lists it may be under way.
        self.freeze(self.writer.visible(), None);
        self.layers.forget(slot);
        self.disks.remove(&slot);
        let (runtime, images) = (Rc::clone(&self.runtime), self.settings.plan.images());
        self.tasks.spawn(async move { callback(image::remove(&runtime, &images, id).await) });
    }

    /// Changes how often recovery points are made, and which are kept; what is not given stays.
    pub fn set_policy(&mut self, interval: Option<Duration>, retain: Option<Ladder>, callback: Callback<()>) {
        let Ok(interval_ms) = interval.map(|interval| u32::try_from(interval.as_millis())).transpose() else {
            return callback(Err(Error::invalid("an interval above 49 days: choose a shorter one")));
        };
        let (vault, mailbox) = (Rc::clone(&self.settings.vault), Rc::clone(&self.mailbox));
        self.tasks.spawn(async move {
            let change = Change::PolicySet { interval_ms, retain };
            let result = vault.manifest().append(change).await.map(drop);
            mailbox.borrow_mut().push_back(Done::Policy(interval, result, callback));
        });
    }

    /// Has timed points and retention rest, or go on; durable when `callback` is called. Guests do not feel it.
    pub fn set_paused(&mut self, paused: bool, callback: Callback<()>) {
        let (vault, mailbox) = (Rc::clone(&self.settings.vault), Rc::clone(&self.mailbox));
        self.tasks.spawn(async move {
            let result = vault.manifest().append(Change::PauseSet(paused)).await.map(drop);
            mailbox.borrow_mut().push_back(Done::Paused(paused, result, callback));
        });
    }

    pub(super) fn finish_pause(&mut self, paused: bool, result: Result<()>, callback: Callback<()>) {
        if result.is_ok() && self.is_paused != paused {
            self.is_paused = paused;
            self.tell(if paused { GroupEvent::Paused } else { GroupEvent::Resumed });
            self.look_at_ladder();
        }
        callback(result);
    }

    pub(super) fn finish_policy(
        &mut self,
        interval: Option<Duration>,
        result: Result<()>,
        callback: Callback<()>,
    ) {
        if result.is_ok() {
            interval.into_iter().for_each(|interval| self.schedule.set_interval(interval));
            self.look_at_ladder();
        }
        callback(result);
    }
}

/// The files of a disk that is about to join.
struct Files<'a> {
    runtime: &'a Rc<Runtime>,
    vault: &'a Rc<Vault>,
    images: &'a Path,
    id: DiskId,
    timeline: TimelineId,
    size: SectorCount,
}

impl Files<'_> {
    async fn join(&self, name: String, content: Content) -> Result<Joined> {
        let candidate = |slot| DiskRecord { slot, id: self.id, name: name.clone(), sectors: self.size };
        let slot = {
            // Refused before anything is copied; decided for good when the step is made.
            let state = self.vault.manifest().state();
            state.check(&Change::DiskAdded(candidate(state.next_slot())))?;
            state.next_slot()
        };
        candidate(slot).check()?;
        let image = self.fill(content).await?;
        let decide = |state: &crate::vault::State| Ok(Change::DiskAdded(candidate(state.next_slot())));
        self.vault.manifest().append_with(decide).await?;
        let record = self.vault.manifest().state().disks().find(|disk| disk.id == self.id).cloned();
        let record = record.expect("the step that added the disk was applied");
        Ok(Joined { record, image })
    }

    async fn fill(&self, content: Content) -> Result<Image> {
        let bases = self.vault.bases();
        let Content::Import(source, progress) = content else {
            bases.create_empty(self.id, self.size).await?;
            return Image::create(self.runtime, self.images, self.id, self.timeline, self.size).await;
        };
        let source = self.runtime.open(source, OpenOptions::READ).await?;
        let length = self.runtime.length(&source).await?;
        let data = self.runtime.data_ranges(&source, 0..length).await?;
        // It is copied twice: into the base, and from there into the image.
        let total = 2 * data.iter().map(|range| range.end - range.start).sum::<u64>();
        bases.import(self.id, self.size, &source, |done| progress(done, total)).await?;
        let base = bases.open(self.id).await?;
        let (bytes, mut done) = (self.size.bytes(), total / 2);
        let fill = async |image: &mut Filling| {
            let file = image.file.clone();
            base.copy_to(&file, bytes, async |piece, data| {
                done += piece.bytes();
                image.wrote(piece, data).await?;
                progress(done, total)
            })
            .await
        };
        let named = (self.id, self.timeline);
        let image =
            Image::create_filled(self.runtime, self.images, named, self.size, Lsn::ZERO, fill).await?;
        if !self.vault.manifest().state().record().keeps_points() {
            // No point will ever need it.
            bases.delete(self.id).await?;
            bases.create_empty(self.id, self.size).await?;
        }
        Ok(image)
    }

    /// Removes what a failed attempt left; what cannot be removed now is removed at the next opening.
    async fn discard(&self) {
        let _ = image::remove(self.runtime, self.images, self.id).await;
        let _ = self.vault.bases().delete(self.id).await;
    }
}
