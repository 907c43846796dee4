//! What a vault keeps back for giving space back on a full file system: spare files that manifest steps are made of, and
//! room for what a base advance or a merge has to write before anything goes. See `docs/limits.md`.
//!
//! A spare is a file in the manifest's directory whose blocks were written. A step that frees space,
//! and for which there is no room, is written over one, which then gets the step's name: that takes neither a block nor
//! an inode, and nobody else can be faster. The room is one larger file that is emptied when it is needed, once nobody else of
//! this process is about to take what that gives: the gate of the file system ([`SpaceGate`]) is closed before, and opens when the room is
//! whole again, or nobody needs it any more.
//!
//! Both are called partial files, so that whoever does not know them takes them for what was never published: they may be
//! removed at any time. They hold zeros, or what a death left of a step; nobody reads them.
//!
//! Invariant: a file that has a spare's name was whole and durable when it got the name. One that a death kept from becoming
//! a step is shorter, and has a block all the same: a step that frees space is shorter than any block. Once there was a room there is
//! its file, as long as what is kept: one that is too short says, also after a death, that what gets free is the room's first.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use super::files::{self, Put, PutError, publish_written, remove_partials};
use super::layout::{self, Layout, SPARES, parse_spare_name};
use crate::error::{ErrorKind, Result};
use crate::format::record::Change;
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::space_gate::{Closed, SpaceGate, SpaceGates};
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
/// What is made of the room at once, at least.
const ROOM_STEP_MIN: u64 = 64 << 10;
/// To write over a file that a dead owner wrote to: that has landed.
const TO_WRITE: OpenOptions =
    OpenOptions { access: Access::ReadWrite, create: Create::Existing, lock: Lock::Wait, direct: false };

/// The reserve of one vault.
pub struct Reserve {
    runtime: Rc<Runtime>,
    layout: Layout,
    /// Numbers of the spares that are there.
    spares: RefCell<BTreeSet<u32>>,
    /// Bytes of the room; `None` if there was none so far.
    room_bytes: Cell<Option<u64>>,
    /// Whether it is durable that there is no room.
    is_given: Cell<bool>,
    /// Who may take what is left of file systems,
    gates: RefCell<Arc<SpaceGates>>,
    /// which of them the vault's is, once that was asked,
    device: Cell<Option<u64>>,
    /// what keeps its gate closed,
    closed: RefCell<Option<Closed>>,
    /// and whether the room is wanted, but others had passed before.
    waits_for_others: Cell<bool>,
    /// What the room is to have, as far as anybody said.
    wanted_bytes: Cell<u64>,
    /// Whether it was told that the room is given up, which it has not been whole since.
    is_told: Cell<bool>,
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
        Reserve {
            runtime: Rc::clone(runtime),
            layout: layout.clone(),
            spares: RefCell::default(),
            room_bytes: Cell::new(None),
            is_given: Cell::new(false),
            gates: RefCell::default(),
            device: Cell::new(None),
            closed: RefCell::default(),
            waits_for_others: Cell::new(false),
            wanted_bytes: Cell::new(0),
            is_told: Cell::new(false),
        }
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
            self.room_bytes.set(Some(self.runtime.length(&file).await?));
        }
        Ok(())
    }

    /// Has others wait at these gates while the room is given up.
    pub fn guard(&self, gates: Arc<SpaceGates>) {
        self.gates.replace(gates);
    }

    /// Notes which file system the vault is in.
    pub fn note_device(&self, device: u64) {
        self.device.set(Some(device));
    }

    /// The gate of the vault's file system.
    pub fn gate(&self) -> Arc<SpaceGate> {
        self.gates.borrow().of(self.device.get())
    }

    /// Has others wait from the opening on if the last owner gave the room up.
    pub async fn take_up(&self) {
        if self.room_bytes.get() == Some(0) {
            self.hold_others().await;
        }
    }

    async fn hold_others(&self) {
        if self.closed.borrow().is_some() {
            return;
        }
        if self.device.get().is_none() {
            // If nobody can tell, those wait that do not know either.
            let space = self.runtime.space(self.layout.root()).await;
            self.device.set(space.ok().map(|space| space.device));
        }
        self.closed.replace(Some(self.gates.borrow().close(self.device.get())));
    }

    /// Whether others wait until there is a room again.
    pub fn holds_others(&self) -> bool {
        self.closed.borrow().is_some()
    }

    /// Lets others have what is left, unless the room `is_needed`, and has less than `room_bytes`, or could not be given up since the last
    /// time, because others had to finish.
    pub fn settle(&self, room_bytes: u64, is_needed: bool) {
        let waits_for_others = self.waits_for_others.replace(false);
        if !is_needed || self.room_bytes() >= room_bytes && !waits_for_others {
            self.let_others();
        }
    }

    /// Lets others have what is left: nobody needs the room.
    pub fn let_others(&self) {
        self.closed.take();
    }

    /// Whether somebody else is about to take what is given up.
    fn has_others(&self) -> bool {
        self.closed.borrow().as_ref().is_some_and(|closed| !closed.is_empty())
    }

    /// How many spares there are.
    pub fn spares(&self) -> usize {
        self.spares.borrow().len()
    }

    /// Bytes of the room.
    pub fn room_bytes(&self) -> u64 {
        self.room_bytes.get().unwrap_or_default()
    }

    /// Whether there ever was a room: one that is too short has the first right to what gets free.
    pub fn had_room(&self) -> bool {
        self.room_bytes.get().is_some()
    }

    /// Makes what is missing of the spares, and of a room of `room_bytes`, if that had been given up only as much as there is space
    /// for. `proceed` is asked before each.
    pub async fn refill(&self, room_bytes: u64, proceed: &impl Fn() -> Result<()>) -> Result<()> {
        self.wanted_bytes.set(room_bytes);
        self.refill_spares(proceed).await?;
        match self.room_bytes.get() {
            None if room_bytes > 0 => {
                proceed()?;
                let allocate = async |file: &File| {
                    self.runtime.set_length(file, room_bytes).await?;
                    self.runtime.zero(file, 0..room_bytes, true).await
                };
                self.make(&self.layout.room(), allocate).await?;
                self.room_bytes.set(Some(room_bytes));
            }
            Some(bytes) if bytes < room_bytes => {
                proceed()?;
                self.refill_room(bytes, room_bytes).await?;
            }
            None | Some(_) => {}
        }
        Ok(())
    }

    /// Makes what is missing of the spares, and, where there is space for a whole room again and as much beside it, of the room: others
    /// wait no longer then. For who takes one piece of the room after the other.
    pub(super) async fn refill_between(&self) -> Result<()> {
        if self.spares() == 0 {
            // There is no reserve.
            return Ok(());
        }
        let proceed = || Ok(());
        self.refill_spares(&proceed).await?;
        let wanted = self.wanted_bytes.get();
        if self.holds_others()
            && self.runtime.space(self.layout.root()).await?.free >= wanted.saturating_mul(2)
        {
            self.refill(wanted, &proceed).await?;
            self.settle(wanted, true);
        }
        Ok(())
    }

    async fn refill_spares(&self, proceed: &impl Fn() -> Result<()>) -> Result<()> {
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
        Ok(())
    }

    /// Has the room grow again from `bytes` to `wanted`, as far as there is space; fails with `NoSpace` where it is short of that.
    async fn refill_room(&self, bytes: u64, wanted: u64) -> Result<()> {
        let file = self.runtime.open(&self.layout.room(), TO_WRITE).await?;
        self.is_given.set(false);
        let (mut bytes, mut step) = (bytes, wanted - bytes);
        while bytes < wanted {
            step = step.min(wanted - bytes);
            match self.lengthen_room(&file, bytes, step).await {
                Ok(()) => bytes += step,
                Err(error) if error.kind() == ErrorKind::NoSpace && step > ROOM_STEP_MIN => step /= 2,
                Err(error) => return Err(error),
            }
            self.room_bytes.set(Some(bytes));
        }
        self.is_told.set(false);
        self.runtime.sync(&file).await
    }

    async fn lengthen_room(&self, file: &File, bytes: u64, step: u64) -> Result<()> {
        self.runtime.set_length(file, bytes + step).await?;
        let allocated = self.runtime.zero(file, bytes..bytes + step, true).await;
        if allocated.is_err() {
            self.runtime.set_length(file, bytes).await?;
        }
        allocated
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
        let file = self.runtime.open(spare, TO_WRITE).await?;
        self.runtime.write(&file, 0, Buffer::copy_of(bytes).freeze()).await?;
        self.runtime.set_length(&file, bytes.len() as u64).await?;
        self.runtime.sync(&file).await
    }

    /// Gives the room up; whether there may be more space now, which nobody else of this process takes.
    pub async fn give_room(&self) -> bool {
        if !self.had_room() {
            // What was just removed may be room, once that is durable.
            return !self.is_given.replace(true)
                && self.runtime.sync_directory(self.layout.root()).await.is_ok();
        }
        self.hold_others().await;
        // Who is about to write is let finish: this is tried again.
        self.waits_for_others.set(self.has_others());
        if self.waits_for_others.get() {
            return false;
        }
        let was_given = self.is_given.replace(true);
        let bytes = self.room_bytes.replace(Some(0)).unwrap_or_default();
        if bytes == 0 && was_given {
            return false;
        }
        let given = async {
            let file = self.runtime.open(&self.layout.room(), TO_WRITE).await?;
            self.runtime.set_length(&file, 0).await?;
            // A file system gives blocks to others once it is durable that they are free. A dead owner may have given the room up without
            // living to make that durable.
            self.runtime.sync(&file).await
        };
        match given.await {
            Ok(()) if bytes > 0 && !self.is_told.replace(true) => {
                tracing::info!(
                    "the reserve is given up, to give space back: what guests write waits until it is made anew"
                );
            }
            Ok(()) => {}
            Err(error) => tracing::warn!(%error, "the reserve could not be given up"),
        }
        true
    }
}
