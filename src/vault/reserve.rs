//! What a vault keeps back for giving space back on a full file system: spare files that manifest steps are made of, and
//! room for what a base advance or a merge has to write before anything goes. See `docs/limits.md`.
//!
//! A spare is a file in the manifest's directory whose blocks were written. A step that frees space,
//! and for which there is no room, is written over one, which then gets the step's name: that takes neither a block nor
//! an inode, and nobody else can be faster. The room is one larger file that is removed when it is needed.
//!
//! Both are called partial files, so that whoever does not know them takes them for what was never published: they may be
//! removed at any time. They hold zeros, or what a death left of a step; nobody reads them.
//!
//! Invariant: a file that has a spare's name was whole and durable when it got the name. One that a death kept from becoming
//! a step is shorter, and has a block all the same: a step that frees space is shorter than any block.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::files::{self, Put, PutError, publish_written, remove_partials};
use super::layout::{self, Layout, SPARES, parse_spare_name};
use crate::error::{ErrorKind, Result};
use crate::format::record::Change;
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::storage::{Access, Buffer, Create, File, Lock, OpenOptions};
use crate::units::{PAGE_BYTES, to_usize};

/// Bytes of a spare: a block of the usual file systems, and more than any step has that frees space.
const SPARE_BYTES: u64 = PAGE_BYTES as u64;
/// So many spares are left by steps that only allow others to free space,
const LEFT_BY_CONSENT: usize = 8;
/// and so many by retention, for disks that are removed and a base advance that is under way.
const LEFT_BY_RETENTION: usize = 4;
/// So many are left by a base that goes in pieces: it arrives in the end.
const LEFT_BY_ADVANCE: usize = 2;
/// The reserve of one vault.
pub struct Reserve {
    runtime: Rc<Runtime>,
    layout: Layout,
    /// Numbers of the spares that are there.
    spares: RefCell<BTreeSet<u32>>,
    room_bytes: Cell<u64>,
    /// Whether it is durable that there is no room.
    is_given: Cell<bool>,
}

/// How many spares a change has to leave where it is; `None` if it may take none.
fn leaves(change: &Change) -> Option<usize> {
    match change {
        Change::DiskRemoved(_) | Change::BaseSet(_) | Change::GroupRemoved => Some(0),
        Change::BaseReached { .. } => Some(LEFT_BY_ADVANCE),
        Change::PointsMerged(_) | Change::PointsRetired(_) => Some(LEFT_BY_RETENTION),
        // A shorter ladder, the end of a pause, a point that nobody keeps any more: others free space then.
        Change::PolicySet { .. } | Change::PauseSet(_) | Change::PinRemoved(_) => Some(LEFT_BY_CONSENT),
        Change::GroupCreated(_)
        | Change::DiskAdded(_)
        | Change::DiskResized(..)
        | Change::PointPublished(_)
        | Change::PinAdded(_)
        | Change::TimelineForked { .. } => None,
    }
}

impl Reserve {
    /// None so far: it is [loaded](Reserve::load), or [made](Reserve::refill).
    pub(super) fn new(runtime: &Rc<Runtime>, layout: &Layout) -> Reserve {
        let (spares, room_bytes, is_given) = (RefCell::default(), Cell::new(0), Cell::new(false));
        Reserve { runtime: Rc::clone(runtime), layout: layout.clone(), spares, room_bytes, is_given }
    }

    /// Takes over what the last owner left, and removes what it did not finish.
    pub(super) async fn load(&self) -> Result<()> {
        for name in self.runtime.list(self.layout.manifest()).await? {
            self.spares.borrow_mut().extend(parse_spare_name(&name));
        }
        let room = self.layout.room();
        let is_room = |name: &str| room.file_name().is_some_and(|room| room == name);
        remove_partials(&self.runtime, self.layout.root(), is_room).await?;
        if self.runtime.list(self.layout.root()).await?.iter().any(|name| is_room(name)) {
            let file = self.runtime.open(&room, OpenOptions::READ).await?;
            self.room_bytes.set(self.runtime.length(&file).await?);
        }
        Ok(())
    }

    /// How many spares there are.
    pub fn spares(&self) -> usize {
        self.spares.borrow().len()
    }

    /// Bytes of the room.
    pub fn room_bytes(&self) -> u64 {
        self.room_bytes.get()
    }

    /// Makes what is missing of the spares, and a room of `room_bytes` if there is none. `proceed` is asked before each.
    pub async fn refill(&self, room_bytes: u64, proceed: &impl Fn() -> Result<()>) -> Result<()> {
        for number in 0..SPARES {
            if !self.spares.borrow().contains(&number) {
                proceed()?;
                // Really written: what is written over it later takes no block, not even to say that it was written.
                let write = async |file: &File| {
                    self.runtime.write(file, 0, Buffer::zeroed(to_usize(SPARE_BYTES)).freeze()).await
                };
                self.make(&self.layout.spare(number), write).await?;
                self.spares.borrow_mut().insert(number);
            }
        }
        if self.room_bytes.get() == 0 && room_bytes > 0 {
            proceed()?;
            let allocate = async |file: &File| {
                self.runtime.set_length(file, room_bytes).await?;
                self.runtime.zero(file, 0..room_bytes, true).await
            };
            self.make(&self.layout.room(), allocate).await?;
            self.room_bytes.set(room_bytes);
        }
        Ok(())
    }

    /// Makes a file of what `fill` gives it, durably.
    async fn make(&self, path: &Path, fill: impl AsyncFn(&File) -> Result<()>) -> Result<()> {
        let partial = layout::partial(path, self.runtime.random_u128());
        let made = async {
            let file = self.runtime.open(&partial, OpenOptions::CREATE).await?;
            fill(&file).await?;
            self.runtime.sync(&file).await?;
            self.runtime.publish(&partial, path).await
        };
        if let Err(error) = made.await {
            // Best effort: what stays is removed when the vault is opened next.
            let _ = self.runtime.remove(&partial).await;
            if error.kind() == ErrorKind::AlreadyExists {
                // One that could not be removed: it is made anew the next time.
                let _ = self.runtime.remove(path).await;
            }
            return Err(error);
        }
        self.runtime.sync_directory(path.parent().expect("a vault's files are in directories")).await
    }

    /// Makes a step for which there is no room (`full` says so) of a spare, if it frees space.
    pub(super) async fn put_step(
        &self,
        path: &Path,
        bytes: &[u8],
        change: &Change,
        full: PutError,
        planted: Planted,
    ) -> std::result::Result<Put, PutError> {
        let is_full = |error: &PutError| matches!(error, PutError::Absent(error) if error.kind() == ErrorKind::NoSpace && !error.lacks_descriptors());
        let fits = bytes.len() as u64 <= SPARE_BYTES && !planted.is(Bug::ReserveForgotten);
        let Some(left) = leaves(change).filter(|_| fits && is_full(&full)) else { return Err(full) };
        let mut failed = full;
        while let Some(spare) = self.take_spare(left) {
            failed = match self.put_in(&spare, path, bytes, planted).await {
                Err(error) if is_full(&error) => error,
                put => return put,
            };
            // Its name found no room in the directory; or the file system writes in other places than before, and what
            // was just removed is room.
            self.give_room().await;
            failed = match files::put(&self.runtime, path, bytes, planted).await {
                Err(error) if is_full(&error) => failed,
                put => return put,
            };
        }
        Err(failed)
    }

    fn take_spare(&self, left: usize) -> Option<PathBuf> {
        let mut spares = self.spares.borrow_mut();
        let number = if spares.len() > left { spares.pop_first() } else { None };
        number.map(|number| self.layout.spare(number))
    }

    async fn put_in(
        &self,
        spare: &Path,
        path: &Path,
        bytes: &[u8],
        planted: Planted,
    ) -> std::result::Result<Put, PutError> {
        if let Err(error) = self.write_over(spare, bytes).await {
            // Best effort: what stays is removed when the vault is opened next.
            let _ = self.runtime.remove(spare).await;
            return Err(PutError::Absent(error));
        }
        publish_written(&self.runtime, spare, path, bytes, planted).await
    }

    async fn write_over(&self, spare: &Path, bytes: &[u8]) -> Result<()> {
        // What a dead owner wrote to it has landed.
        let options = OpenOptions {
            access: Access::ReadWrite,
            create: Create::Existing,
            lock: Lock::Wait,
            direct: false,
        };
        let file = self.runtime.open(spare, options).await?;
        self.runtime.write(&file, 0, Buffer::copy_of(bytes).freeze()).await?;
        self.runtime.set_length(&file, bytes.len() as u64).await?;
        self.runtime.sync(&file).await
    }

    /// Gives the room up; whether there may be more space now.
    pub(super) async fn give_room(&self) -> bool {
        let was_given = self.is_given.replace(true);
        if self.room_bytes.replace(0) == 0 {
            // A dead owner may have removed it without living to make that durable.
            return !was_given && self.runtime.sync_directory(self.layout.root()).await.is_ok();
        }
        let given = async {
            self.runtime.remove(self.layout.room()).await?;
            // A file system gives blocks to others once it is durable that they are free.
            self.runtime.sync_directory(self.layout.root()).await
        };
        match given.await {
            Ok(()) => {
                tracing::info!(
                    "the reserve is given up, to give space back: it is made anew when there is room"
                );
            }
            Err(error) => tracing::warn!(%error, "the reserve could not be given up"),
        }
        true
    }
}
