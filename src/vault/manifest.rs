//! The manifest: a group's log of numbered steps, and the state that they add up to.
//!
//! Step n is decided on state n − 1 and created by put-if-absent; whoever loses the race replays and decides anew. Replay
//! is the newest snapshot and the contiguous steps after it. Nothing here repairs: a hole, a broken chain or a step
//! that does not fit stops the opening.
//!
//! Invariant: the state in memory is one that is durable on disk; after a failure that leaves this in doubt the
//! manifest is latched until it is opened again.

use std::cell::{Cell, Ref, RefCell};
use std::rc::Rc;

use futures::lock::{Mutex, MutexGuard};

use super::files::{self, Put, PutError, read_whole};
use super::layout::{Layout, ManifestName, parse_manifest_name};
use super::reserve::Reserve;
use super::state::State;
use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::{
    Encoded, HEADER_BYTES, Header, SNAPSHOT_PAYLOAD_BYTES_MAX, STEP_PAYLOAD_BYTES_MAX, Snapshot, Step,
    StepNumber, WriterSeal,
};
use crate::format::record::{Change, GroupRecord};
use crate::planted::Planted;
use crate::runtime::Runtime;
use crate::seal::{GroupKeys, Purpose, Sealing};
use crate::units::{GroupId, TimelineId, WriterId};

/// A snapshot is written after so many steps, and the steps before the one before it are removed.
pub const SNAPSHOT_STEPS: u64 = 256;

/// A group's manifest, open for reading and appending.
pub struct Manifest {
    runtime: Rc<Runtime>,
    layout: Layout,
    keys: GroupKeys,
    writer: Writer,
    state: RefCell<State>,
    newest_snapshot: Cell<StepNumber>,
    /// One append at a time; what waits is decided on the state that the one before it leaves.
    turn: Mutex<()>,
    latched: RefCell<Option<String>>,
    reserve: Rc<Reserve>,
    planted: Planted,
}

/// Who writes, and what seals it.
struct Writer {
    id: WriterId,
    sealing: Option<Sealing>,
    /// The next number under its key. Every attempt takes one, whatever becomes of it.
    next_seal: Cell<u64>,
}

impl Writer {
    fn new(id: u128, keys: &GroupKeys) -> Writer {
        let sealing = keys.sealing(Purpose::Manifest, id);
        Writer { id: WriterId(id), sealing, next_seal: Cell::new(0) }
    }

    /// For one file.
    fn seal(&self) -> Option<WriterSeal<'_>> {
        let sealing = self.sealing.as_ref()?;
        let number = self.next_seal.get();
        self.next_seal.set(number + 1);
        Some(WriterSeal { sealing, number })
    }
}

impl Manifest {
    /// Begins the manifest of a new group in an existing, empty directory. Fails with `AlreadyExists` where another
    /// one began.
    pub async fn create(
        runtime: &Rc<Runtime>,
        layout: &Layout,
        group: GroupId,
        timeline: TimelineId,
        record: GroupRecord,
        keys: GroupKeys,
    ) -> Result<Manifest> {
        record.check()?;
        let writer = Writer::new(runtime.random_u128(), &keys);
        let header = Header { number: StepNumber(1), group, writer: writer.id, timeline, previous: 0 };
        let step = Step { header, change: Change::GroupCreated(record) };
        let encoded = step.encode(writer.seal());
        let path = layout.step(header.number);
        match files::put(runtime, &path, &encoded.bytes, Planted::NONE).await {
            Ok(Put::Ours) => {}
            Ok(Put::Theirs) => {
                let text = format!("group {group} has a manifest already");
                return Err(Error::new(ErrorKind::AlreadyExists, text).at_path(&path));
            }
            Err(PutError::Absent(error) | PutError::Unknown(error)) => return Err(error),
        }
        let state = State::first(&step, encoded.checksum)?;
        let replayed = Replayed { state, newest_snapshot: StepNumber(0) };
        Ok(Manifest::new(runtime, layout, keys, writer, replayed))
    }

    /// Replays a manifest. Fails with `NotFound` where none began.
    pub async fn open(runtime: &Rc<Runtime>, layout: &Layout, keys: GroupKeys) -> Result<Manifest> {
        let replayed = replay(runtime, layout, &keys).await?;
        let writer = Writer::new(runtime.random_u128(), &keys);
        Ok(Manifest::new(runtime, layout, keys, writer, replayed))
    }

    fn new(
        runtime: &Rc<Runtime>,
        layout: &Layout,
        keys: GroupKeys,
        writer: Writer,
        replayed: Replayed,
    ) -> Manifest {
        Manifest {
            runtime: Rc::clone(runtime),
            layout: layout.clone(),
            keys,
            writer,
            state: RefCell::new(replayed.state),
            newest_snapshot: Cell::new(replayed.newest_snapshot),
            turn: Mutex::new(()),
            latched: RefCell::new(None),
            reserve: Rc::new(Reserve::new(runtime, layout)),
            planted: Planted::NONE,
        }
    }

    pub(super) fn plant(&mut self, planted: Planted) {
        self.planted = planted;
        self.state.borrow_mut().plant(planted);
    }

    /// What steps that free space are made of where there is no room.
    pub(super) fn reserve(&self) -> &Rc<Reserve> {
        &self.reserve
    }

    /// The group's keys.
    pub fn keys(&self) -> &GroupKeys {
        &self.keys
    }

    /// The state after the newest step that this manifest knows of; not to be held across an await.
    pub fn state(&self) -> Ref<'_, State> {
        self.state.borrow()
    }

    /// Whether an append failed in a way that leaves open whether its step is there.
    pub fn is_in_doubt(&self) -> bool {
        self.latched.borrow().is_some()
    }

    /// Appends a change; durable when this returns.
    pub async fn append(&self, change: Change) -> Result<StepNumber> {
        self.append_with(|_| Ok(change.clone())).await
    }

    /// Appends the change that `decide` makes of the newest state; it is asked anew after a lost race.
    pub async fn append_with(&self, decide: impl Fn(&State) -> Result<Change>) -> Result<StepNumber> {
        let _turn = self.turn.lock().await;
        loop {
            if let Some(reason) = &*self.latched.borrow() {
                let text = format!("the manifest is latched until it is opened again: {reason}");
                return Err(Error::new(ErrorKind::Latched, text).at_path(&self.layout.manifest()));
            }
            let step = self.next_step(&decide)?;
            let number = step.header.number;
            let encoded = step.encode(self.writer.seal());
            if self.put(&step, &encoded).await? {
                let applied = self.state.borrow_mut().apply(step, encoded.checksum);
                applied.expect("the step was decided on this very state, and appends take turns");
                self.snapshot_when_due().await;
                return Ok(number);
            }
            self.replay().await?;
        }
    }

    async fn replay(&self) -> Result<()> {
        let replayed = replay(&self.runtime, &self.layout, &self.keys).await?;
        self.state.replace(replayed.state);
        self.state.borrow_mut().plant(self.planted);
        self.newest_snapshot.set(replayed.newest_snapshot);
        Ok(())
    }

    /// Replays the manifest anew: afterwards the state is what is on disk, and a latch is gone.
    pub async fn reload(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.replay().await?;
        self.latched.replace(None);
        Ok(())
    }

    /// Keeps appends waiting while the returned guard lives: for who reads the manifest's files.
    pub(super) async fn pause(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    fn next_step(&self, decide: &impl Fn(&State) -> Result<Change>) -> Result<Step> {
        let state = self.state.borrow();
        let change = decide(&state)?;
        state.check(&change)?;
        let header = Header {
            number: state.newest().next(),
            group: state.group(),
            writer: self.writer.id,
            timeline: state.timeline(),
            previous: state.checksum(),
        };
        Ok(Step { header, change })
    }

    /// Creates a step; whether it is ours. A name that is free because a later owner replaced it by a snapshot and
    /// removed it counts as lost.
    async fn put(&self, step: &Step, encoded: &Encoded) -> Result<bool> {
        let number = step.header.number;
        let (path, bytes) = (self.layout.step(number), &encoded.bytes);
        let put = match files::put(&self.runtime, &path, bytes, self.planted).await {
            Err(error) => self.reserve.put_step(&path, bytes, &step.change, error, self.planted).await,
            put => put,
        };
        match put {
            Ok(Put::Theirs) => return Ok(false),
            Ok(Put::Ours) => {}
            Err(PutError::Absent(error)) => return Err(error.at_path(&path)),
            Err(PutError::Unknown(error)) => return Err(self.latch(error.at_path(&path))),
        }
        let listing = match Listing::read(&self.runtime, &self.layout).await {
            Ok(listing) => listing,
            Err(error) => return Err(self.latch(error)),
        };
        Ok(listing.newest_snapshot() < number)
    }

    fn latch(&self, error: Error) -> Error {
        self.latched.borrow_mut().get_or_insert(error.to_string());
        error
    }

    /// Writes a snapshot when it is due. Its failure is not the append's: the steps are all there, and the next
    /// append tries again.
    async fn snapshot_when_due(&self) {
        let newest = self.state.borrow().newest();
        if newest.0 - self.newest_snapshot.get().0 < SNAPSHOT_STEPS {
            return;
        }
        if let Err(error) = self.snapshot().await {
            tracing::warn!(%error, step = newest.0, "no manifest snapshot was written");
        }
    }

    /// Writes a snapshot of the state, then removes what the snapshot before it replaces.
    async fn snapshot(&self) -> Result<()> {
        let (header, encoded) = {
            let state = self.state.borrow();
            let header = Header {
                number: state.newest(),
                group: state.group(),
                writer: self.writer.id,
                timeline: state.timeline(),
                previous: state.checksum(),
            };
            (header, Snapshot::encode_parts(&header, state.contents(), self.writer.seal()))
        };
        let path = self.layout.snapshot(header.number);
        match files::put(&self.runtime, &path, &encoded.bytes, self.planted).await {
            // Somebody else's snapshot after the same step holds the same state.
            Ok(Put::Ours | Put::Theirs) => self.newest_snapshot.set(header.number),
            Err(PutError::Absent(error) | PutError::Unknown(error)) => return Err(error.at_path(&path)),
        }
        let listing = Listing::read(&self.runtime, &self.layout).await?;
        let keep = listing.kept_from();
        // A snapshot before the steps that it needs: nobody is to take them for lost.
        for &snapshot in listing.snapshots.iter().filter(|&&snapshot| snapshot < keep) {
            self.runtime.remove(self.layout.snapshot(snapshot)).await?;
        }
        for &step in listing.steps.iter().filter(|&&step| step <= keep) {
            self.runtime.remove(self.layout.step(step)).await?;
        }
        Ok(())
    }
}

/// The numbers that a manifest's directory holds, ascending.
pub(super) struct Listing {
    pub(super) steps: Vec<StepNumber>,
    pub(super) snapshots: Vec<StepNumber>,
    /// Names that nothing here writes.
    pub(super) strangers: Vec<String>,
}

impl Listing {
    pub(super) async fn read(runtime: &Rc<Runtime>, layout: &Layout) -> Result<Listing> {
        let mut listing = Listing { steps: Vec::new(), snapshots: Vec::new(), strangers: Vec::new() };
        for name in runtime.list(layout.manifest()).await? {
            match parse_manifest_name(&name) {
                Some(ManifestName::Step(step)) => listing.steps.push(step),
                Some(ManifestName::Snapshot(step)) => listing.snapshots.push(step),
                None => listing.strangers.push(name),
            }
        }
        // Names are padded with zeros, so that they come sorted; but nothing should hang on that.
        listing.steps.sort_unstable();
        listing.snapshots.sort_unstable();
        Ok(listing)
    }

    pub(super) fn newest_snapshot(&self) -> StepNumber {
        self.snapshots.last().copied().unwrap_or_default()
    }

    /// The snapshot before the newest; zero if there is none. What is before it is replaced: it may be there in part, since whoever
    /// removes it may die, and a power cut may give names back in any order.
    pub(super) fn kept_from(&self) -> StepNumber {
        match self.snapshots[..] {
            [.., keep, _] => keep,
            _ => StepNumber(0),
        }
    }
}

struct Replayed {
    state: State,
    newest_snapshot: StepNumber,
}

async fn replay(runtime: &Rc<Runtime>, layout: &Layout, keys: &GroupKeys) -> Result<Replayed> {
    let listing = Listing::read(runtime, layout).await?;
    // A dead owner may have published a step without living to sync its name: nobody may build on it before.
    runtime.sync_directory(layout.manifest()).await?;
    let newest_snapshot = listing.newest_snapshot();
    let steps = steps_after(&listing, newest_snapshot, layout)?;
    let mut state = None;
    if newest_snapshot > StepNumber(0) {
        state = Some(State::from_snapshot(read_snapshot(runtime, layout, newest_snapshot, keys).await?));
    }
    for number in steps {
        let (step, checksum) = read_step(runtime, layout, number, keys).await?;
        let advanced = advance(state, step, checksum);
        state = Some(advanced.map_err(|error| error.at_path(&layout.step(number)))?);
    }
    let Some(state) = state else {
        let text = "no manifest begins here";
        return Err(Error::new(ErrorKind::NotFound, text).at_path(&layout.manifest()));
    };
    Ok(Replayed { state, newest_snapshot })
}

/// The steps after `snapshot`; an error if one is missing although a later one was reached.
fn steps_after(
    listing: &Listing,
    snapshot: StepNumber,
    layout: &Layout,
) -> Result<impl Iterator<Item = StepNumber>> {
    let after: Vec<StepNumber> = listing.steps.iter().copied().filter(|&step| step > snapshot).collect();
    let mut expected = snapshot.next();
    for &step in &after {
        if step != expected {
            let text = format!("manifest step {expected} is missing, although step {step} is there");
            return Err(Error::corrupt(text).at_path(&layout.step(expected)));
        }
        expected = step.next();
    }
    Ok(after.into_iter())
}

/// The state after `step`; a stored step that does not fit is corruption.
pub(super) fn advance(state: Option<State>, step: Step, checksum: u128) -> Result<State> {
    let advanced = match state {
        None => State::first(&step, checksum),
        Some(mut state) => state.apply(step, checksum).map(|()| state),
    };
    advanced.map_err(|refusal| Error::corrupt(format!("the manifest contradicts itself: {refusal}")))
}

/// Reads a step and checks that it is the one that its name says.
pub(super) async fn read_step(
    runtime: &Rc<Runtime>,
    layout: &Layout,
    number: StepNumber,
    keys: &GroupKeys,
) -> Result<(Step, u128)> {
    let path = layout.step(number);
    let bytes = read_whole(runtime, &path, HEADER_BYTES as u64 + STEP_PAYLOAD_BYTES_MAX).await?;
    let (step, checksum) = Step::decode(&bytes, keys).map_err(|error| error.at_path(&path))?;
    check_number(step.header.number, number).map_err(|error| error.at_path(&path))?;
    Ok((step, checksum))
}

/// Reads a snapshot and checks that it is the one that its name says.
pub(super) async fn read_snapshot(
    runtime: &Rc<Runtime>,
    layout: &Layout,
    number: StepNumber,
    keys: &GroupKeys,
) -> Result<Snapshot> {
    let path = layout.snapshot(number);
    let bytes = read_whole(runtime, &path, HEADER_BYTES as u64 + SNAPSHOT_PAYLOAD_BYTES_MAX).await?;
    let snapshot = Snapshot::decode(&bytes, keys).map_err(|error| error.at_path(&path))?;
    check_number(snapshot.header.number, number).map_err(|error| error.at_path(&path))?;
    Ok(snapshot)
}

fn check_number(found: StepNumber, named: StepNumber) -> Result<()> {
    if found == named {
        return Ok(());
    }
    Err(Error::corrupt(format!("the file holds step {found}, its name says {named}")).at_offset(16))
}
