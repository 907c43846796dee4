//! Test failover: a group's disks as of a recovery point, served beside ongoing protection.
//!
//! Each disk is a view of the point, with a throwaway overlay unless the test failover is read-only: then it has no file at
//! all. A pin in the manifest keeps what the view reads, and says which test failovers exist and what for: it
//! comes before the overlays and goes before them, so that after a crash every overlay either belongs to a pin or is removed, and what belongs to
//! one is whole.
//!
//! One that a restore reads ends with the process: qemu-img gives up with its connection, so nobody would ever end it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::backing::{Backing, Of};
use crate::block::{Export, Refusal, Reply, Request, TestId, Ticket};
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::{Change, PinKind, PinRecord, PointRecord, TestUse};
use crate::protect::events::{GroupEvent, TimedEvent};
use crate::protect::failing::{Failing, FailingRequests};
use crate::protect::group::Callback;
use crate::protect::repetition::Repetition;
use crate::runtime::Runtime;
use crate::units::{DiskId, PinId, PointId, SectorCount, WallNanos};
use crate::vault::Vault;
use crate::view::{Rot, View};

/// A disk of a test failover.
#[derive(Clone)]
pub struct TestDisk {
    /// The disk that it shows.
    pub id: DiskId,
    /// What people call it.
    pub name: String,
    /// Its size at the point.
    pub sectors: SectorCount,
    backing: Backing,
}

/// A disk of a test failover that cannot be served, or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unserved {
    /// What people call it; nothing if it is all of them.
    pub disk: Option<String>,
    /// Why, with file and offset.
    pub error: String,
    /// Since when that is known.
    pub since: WallNanos,
}

/// A test failover.
#[derive(Clone)]
pub struct TestFailover {
    /// Its number within the group.
    pub test: TestId,
    /// The point that it shows.
    pub point: PointRecord,
    /// Its disks that are served.
    pub disks: Vec<TestDisk>,
    /// Those that are not.
    pub unserved: Vec<Unserved>,
    /// When it was started.
    pub started: WallNanos,
    /// What for.
    pub purpose: TestUse,
    pin: PinId,
}

/// What is wrong with a test failover, or with a disk of one, for longer than a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestTrouble {
    /// `test-N`, or `DISK@test-N`.
    pub what: String,
    /// Whether it is served all the same: a verification found that not all that was written there is what it was.
    pub is_served: bool,
    /// Why, with file and offset.
    pub error: String,
    /// Since when that is known.
    pub since: WallNanos,
}

/// What people are told of a test failover; it can leave the owner's thread.
#[derive(Clone, Debug)]
pub struct TestListing {
    /// Its number within the group.
    pub test: TestId,
    /// The point that it shows.
    pub point: PointRecord,
    /// When it was started.
    pub started: WallNanos,
    /// What for.
    pub purpose: TestUse,
    /// Its disks that are served.
    pub disks: Vec<TestListedDisk>,
    /// Those that are not.
    pub unserved: Vec<Unserved>,
    /// Bytes written to it so far.
    pub overlay_bytes: u64,
}

/// A disk of a [`TestListing`].
#[derive(Clone, Debug)]
pub struct TestListedDisk {
    /// The disk that it shows.
    pub id: DiskId,
    /// What people call it.
    pub name: String,
    /// Its size at the point.
    pub sectors: SectorCount,
}

impl TestFailover {
    /// What people are told of it.
    pub fn listing(&self) -> TestListing {
        let listed =
            |disk: &TestDisk| TestListedDisk { id: disk.id, name: disk.name.clone(), sectors: disk.sectors };
        TestListing {
            test: self.test,
            point: self.point.clone(),
            started: self.started,
            purpose: self.purpose,
            disks: self.disks.iter().map(listed).collect(),
            unserved: self.unserved.clone(),
            overlay_bytes: self.disks.iter().map(|disk| disk.backing.written_bytes()).sum(),
        }
    }
}

enum Done {
    Reply(Ticket, Reply),
    Started(Box<Result<TestFailover>>, Callback<TestFailover>),
}

/// The test failovers of a group.
pub struct TestFailovers {
    pub(super) runtime: Rc<Runtime>,
    vault: Rc<Vault>,
    directory: PathBuf,
    tests: BTreeMap<TestId, TestFailover>,
    /// What serves each disk, and what people call the disk.
    backings: HashMap<(TestId, DiskId), (Backing, Rc<str>)>,
    mailbox: Rc<RefCell<VecDeque<Done>>>,
    /// Requests that are not answered yet.
    asked: BTreeSet<Ticket>,
    replies: Vec<(Ticket, Reply)>,
    pub(super) failures: Rc<RefCell<Failures>>,
}

/// Requests that failed, and what is to be told of them.
#[derive(Default)]
pub(super) struct Failures {
    repetition: Repetition,
    events: Vec<TimedEvent>,
    failing: FailingRequests<(TestId, String)>,
    /// Something that is stored of the point was not what it should be.
    met_damage: bool,
    /// What the last verification found damaged.
    pub(super) rotten: Vec<(TestId, TestTrouble)>,
}

impl Failures {
    fn note(&mut self, runtime: &Runtime, (test, disk): (TestId, &str), (error, of): (&Error, Of)) {
        if matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Shutdown) {
            return;
        }
        // A vault that is read whole has nothing to say of an overlay.
        self.met_damage |= error.kind() == ErrorKind::Corrupt && of == Of::Point;
        self.failing.note((test, disk.to_owned()), (runtime.now(), runtime.wall()), error);
        if let Some(times) = self.repetition.failed(runtime.now(), error.kind()) {
            tracing::warn!(%error, times, "requests to a test failover failed");
            let event = GroupEvent::RequestsFailed { error: error.to_string(), times };
            self.events.push(TimedEvent { time: runtime.wall(), event });
        }
    }
}

impl Failures {
    fn tell(&mut self, runtime: &Runtime, event: GroupEvent) {
        self.events.push(TimedEvent { time: runtime.wall(), event });
    }

    /// Bits of sums had flipped that were written anew.
    pub(super) fn tell_of_rot(&mut self, runtime: &Runtime, (test, disk): (TestId, &str), rot: Vec<Rot>) {
        for Rot { path, offset } in rot {
            let export = named(test, Some(disk));
            self.tell(runtime, GroupEvent::OverlaySumsRotten { export, path, offset });
        }
    }
}

impl TestFailovers {
    /// The test failovers that the manifest's pins name, as they were; overlays that none names are removed.
    pub async fn open(runtime: Rc<Runtime>, vault: Rc<Vault>, directory: PathBuf) -> Result<TestFailovers> {
        TestFailovers::open_each(runtime, vault, directory, Err).await
    }

    /// The same, but a test failover whose point cannot be read is there without disks, and one of which overlays cannot be read without
    /// these, so that it holds up nothing else and can be ended.
    pub async fn open_readable(
        runtime: Rc<Runtime>,
        vault: Rc<Vault>,
        directory: PathBuf,
    ) -> Result<TestFailovers> {
        TestFailovers::open_each(runtime, vault, directory, |_| Ok(())).await
    }

    async fn open_each(
        runtime: Rc<Runtime>,
        vault: Rc<Vault>,
        directory: PathBuf,
        unreadable: impl Fn(Error) -> Result<()>,
    ) -> Result<TestFailovers> {
        let mut opened = TestFailovers {
            runtime,
            vault,
            directory,
            tests: BTreeMap::new(),
            backings: HashMap::new(),
            mailbox: Rc::default(),
            asked: BTreeSet::new(),
            replies: Vec::new(),
            failures: Rc::default(),
        };
        let pins: Vec<_> = opened.vault.manifest().state().pins().to_vec();
        for pin in pins {
            let PinKind::Test { test, purpose } = pin.kind else { continue };
            if purpose == TestUse::Restore {
                match opened.vault.manifest().append(Change::PinRemoved(pin.id)).await {
                    Ok(_) => continue,
                    // It stays until somebody, or the next opening, ends it.
                    Err(error) => {
                        tracing::error!(%error, "a test failover cannot be ended");
                        unreadable(error)?;
                    }
                }
            }
            let overlays = opened.overlays_of(test);
            let failover = match prepare(&opened.runtime, &opened.vault, &overlays, pin, &unreadable).await {
                Ok(failover) => failover,
                Err(error) => {
                    let unserved =
                        Unserved { disk: None, error: error.to_string(), since: opened.runtime.wall() };
                    unreadable(error)?;
                    opened.without_disks(pin, (test, purpose), unserved)?
                }
            };
            opened.tell_of(&failover);
            opened.insert(failover);
        }
        opened.remove_left_overs().await?;
        Ok(opened)
    }

    fn without_disks(
        &self,
        pin: PinRecord,
        (test, purpose): (TestId, TestUse),
        unserved: Unserved,
    ) -> Result<TestFailover> {
        let state = self.vault.manifest().state();
        let point = state.points().iter().find(|point| point.id == pin.point).cloned();
        let missing = || Error::corrupt(format!("test failover {} pins a point that is not there", test.0));
        let point = point.ok_or_else(missing)?;
        let (disks, unserved) = (Vec::new(), vec![unserved]);
        Ok(TestFailover { test, point, disks, unserved, started: pin.created, purpose, pin: pin.id })
    }

    /// Says what of a test failover that was opened cannot be served, and what of it was damaged.
    fn tell_of(&self, failover: &TestFailover) {
        let mut failures = self.failures.borrow_mut();
        for unserved in &failover.unserved {
            let what = named(failover.test, unserved.disk.as_deref());
            tracing::error!(%what, error = %unserved.error, "a test failover cannot be served; it can be ended");
            failures.tell(&self.runtime, GroupEvent::TestUnserved { what, error: unserved.error.clone() });
        }
        for disk in &failover.disks {
            failures.tell_of_rot(&self.runtime, (failover.test, &disk.name), disk.backing.take_rot());
        }
    }

    fn overlays_of(&self, test: TestId) -> PathBuf {
        self.directory.join(test.0.to_string())
    }

    fn insert(&mut self, failover: TestFailover) {
        for disk in &failover.disks {
            let served = (disk.backing.clone(), Rc::from(disk.name.as_str()));
            self.backings.insert((failover.test, disk.id), served);
        }
        self.tests.insert(failover.test, failover);
    }

    async fn remove_left_overs(&self) -> Result<()> {
        for name in self.runtime.list(&self.directory).await? {
            let known = name.parse().is_ok_and(|test| self.tests.contains_key(&TestId(test)));
            if !known {
                remove_overlays(&self.runtime, &self.directory.join(name)).await?;
            }
        }
        Ok(())
    }

    /// The test failovers, by number.
    pub fn list(&self) -> impl Iterator<Item = &TestFailover> {
        self.tests.values()
    }

    /// Starts a test failover of a point; `callback` gets it when its disks can be served.
    pub fn start(&mut self, point: PointId, purpose: TestUse, callback: Callback<TestFailover>) {
        let (runtime, vault) = (Rc::clone(&self.runtime), Rc::clone(&self.vault));
        let (directory, mailbox) = (self.directory.clone(), Rc::clone(&self.mailbox));
        self.runtime.spawn(async move {
            let result = start(&runtime, &vault, &directory, point, purpose).await;
            mailbox.borrow_mut().push_back(Done::Started(Box::new(result), callback));
        });
    }

    /// Ends a test failover: its overlays go, and with the pin what they kept.
    pub fn cleanup(&mut self, test: TestId, callback: Callback<()>) {
        let Some(failover) = self.tests.remove(&test) else {
            let text = format!("there is no test failover {}: 'failover list' shows them", test.0);
            return callback(Err(Error::new(ErrorKind::NotFound, text)));
        };
        self.backings.retain(|(other, _), _| *other != test);
        let (runtime, vault, overlays) =
            (Rc::clone(&self.runtime), Rc::clone(&self.vault), self.overlays_of(test));
        self.runtime.spawn(async move {
            let pin = failover.pin;
            drop(failover);
            callback(end(&runtime, &vault, pin, &overlays).await);
        });
    }

    /// Takes a request for a disk of a test failover.
    pub fn submit(&mut self, ticket: Ticket, export: Export, request: Request) {
        let served = match export {
            Export::Test(_, disk, test) => {
                self.backings.get(&(test, disk)).cloned().map(|(backing, name)| (backing, test, name))
            }
            Export::Disk(..) => None,
        };
        let Some((backing, test, name)) = served else {
            self.replies.push((ticket, Err(Refusal::Shutdown)));
            return;
        };
        self.asked.insert(ticket);
        let (mailbox, failures) = (Rc::clone(&self.mailbox), Rc::clone(&self.failures));
        let runtime = Rc::clone(&self.runtime);
        self.runtime.spawn(async move {
            let note = |error: &Error, of| failures.borrow_mut().note(&runtime, (test, &name), (error, of));
            let reply = backing.answer(request, note).await;
            mailbox.borrow_mut().push_back(Done::Reply(ticket, reply));
        });
    }

    /// What happened since this was asked last.
    pub fn take_events(&mut self) -> Vec<TimedEvent> {
        std::mem::take(&mut self.failures.borrow_mut().events)
    }

    /// Whether a client was refused bytes of a point that are not what was stored, since this was asked last. Not what it wrote itself:
    /// of that the vault knows nothing.
    pub fn take_met_damage(&mut self) -> bool {
        std::mem::take(&mut self.failures.borrow_mut().met_damage)
    }

    /// The disks that requests fail of now, by test failover and name.
    pub fn failing(&self) -> Vec<Failing<(TestId, String)>> {
        self.failures.borrow().failing.now(self.runtime.now()).cloned().collect()
    }

    /// What of them cannot be served, and what the last verification found damaged.
    pub fn troubles(&self) -> Vec<TestTrouble> {
        let unserved = self.tests.values().flat_map(|test| {
            test.unserved.iter().map(|Unserved { disk, error, since }| TestTrouble {
                what: named(test.test, disk.as_deref()),
                is_served: false,
                error: error.clone(),
                since: *since,
            })
        });
        let failures = self.failures.borrow();
        let rotten = failures.rotten.iter().filter(|(test, _)| self.tests.contains_key(test));
        unserved.chain(rotten.map(|(_, trouble)| trouble.clone())).collect()
    }

    /// What serves each disk, in their order.
    pub(super) fn served(&self) -> impl Iterator<Item = (TestId, Rc<str>, Backing)> {
        let disks = self.tests.values().flat_map(|test| test.disks.iter().map(|disk| (test.test, disk)));
        disks.map(|(test, disk)| (test, Rc::from(disk.name.as_str()), disk.backing.clone()))
    }

    /// Takes what tasks left behind.
    pub fn advance(&mut self) {
        loop {
            let done = self.mailbox.borrow_mut().pop_front();
            match done {
                None => return,
                Some(Done::Reply(ticket, reply)) => {
                    // It may have been refused meanwhile.
                    if self.asked.remove(&ticket) {
                        self.replies.push((ticket, reply));
                    }
                }
                Some(Done::Started(result, callback)) => {
                    if let Ok(failover) = &*result {
                        self.insert(failover.clone());
                    }
                    callback(*result);
                }
            }
        }
    }

    /// Refuses what is not answered yet: nobody will come for the answers.
    pub fn refuse_all(&mut self) {
        let refused = |ticket| (ticket, Err(Refusal::Shutdown));
        self.replies.extend(std::mem::take(&mut self.asked).into_iter().map(refused));
    }

    /// Moves the replies that are ready to `out`.
    pub fn take_replies(&mut self, out: &mut Vec<(Ticket, Reply)>) {
        out.append(&mut self.replies);
    }
}

async fn start(
    runtime: &Rc<Runtime>,
    vault: &Rc<Vault>,
    directory: &Path,
    point: PointId,
    purpose: TestUse,
) -> Result<TestFailover> {
    let id = PinId(runtime.random_u128());
    let created = runtime.wall();
    let decide = |state: &crate::vault::State| {
        let kind = PinKind::Test { test: state.next_test(), purpose };
        Ok(Change::PinAdded(PinRecord { id, point, created, kind }))
    };
    vault.manifest().append_with(decide).await?;
    let pin = vault.manifest().state().pins().iter().find(|pin| pin.id == id).copied();
    let pin = pin.expect("the step that added the pin was applied");
    let PinKind::Test { test, .. } = pin.kind else { unreachable!("a test failover's pin is of its kind") };
    let overlays = directory.join(test.0.to_string());
    let result = prepare(runtime, vault, &overlays, pin, &Err).await;
    if result.is_err() {
        // What this leaves behind is removed at the next opening.
        let _ = remove_overlays(runtime, &overlays).await;
        let _ = vault.manifest().append(Change::PinRemoved(id)).await;
    }
    result
}

/// Opens the view of a pinned test failover, and its overlays unless it takes no writes; those that are missing are created. An overlay that
/// cannot be opened is handed to `unreadable`, and its disk left out unless that fails.
async fn prepare(
    runtime: &Rc<Runtime>,
    vault: &Rc<Vault>,
    overlays: &Path,
    pin: PinRecord,
    unreadable: &impl Fn(Error) -> Result<()>,
) -> Result<TestFailover> {
    let PinKind::Test { test, purpose } = pin.kind else {
        unreachable!("a test failover's pin is of its kind")
    };
    let view = View::open(vault, pin.point).await?;
    if !purpose.is_read_only() {
        runtime.create_directory(overlays).await?;
        if let Some(all_overlays) = overlays.parent() {
            // What clients flush goes with the directory's name, too.
            runtime.sync_directory(all_overlays).await?;
        }
    }
    let (mut disks, mut unserved) = (Vec::new(), Vec::new());
    for disk in view.disks() {
        let (name, sectors) = (disk.name().to_owned(), disk.sectors());
        let backing = if purpose.is_read_only() {
            Backing::View(Rc::clone(&view), disk.id())
        } else {
            let path = overlays.join(format!("{}.overlay", disk.id()));
            match Backing::with_overlay(&path, &view, disk.id()).await {
                Ok(backing) => backing,
                Err(error) => {
                    let (error_text, since) = (error.to_string(), runtime.wall());
                    unreadable(error)?;
                    unserved.push(Unserved { disk: Some(name), error: error_text, since });
                    continue;
                }
            }
        };
        disks.push(TestDisk { id: disk.id(), name, sectors, backing });
    }
    if !purpose.is_read_only() {
        runtime.sync_directory(overlays).await?;
    }
    let point = view.point().clone();
    Ok(TestFailover { test, point, disks, unserved, started: pin.created, purpose, pin: pin.id })
}

/// What people call a test failover, or a disk of one.
pub(super) fn named(test: TestId, disk: Option<&str>) -> String {
    match disk {
        Some(disk) => format!("{disk}@test-{}", test.0),
        None => format!("test-{}", test.0),
    }
}

/// The pin goes first: then a death leaves overlays that nobody needs, and else it would leave half of what somebody wrote.
async fn end(runtime: &Rc<Runtime>, vault: &Rc<Vault>, pin: PinId, overlays: &Path) -> Result<()> {
    match vault.manifest().append(Change::PinRemoved(pin)).await {
        Err(error) if error.kind() == ErrorKind::NoSpace => {
            // What the overlays take may be what is lacking.
            let removed = remove_overlays(runtime, overlays).await;
            let unpinned = vault.manifest().append(Change::PinRemoved(pin)).await;
            removed.and(unpinned.map(drop))
        }
        // It is there again, whole, after the next opening.
        Err(error) => Err(error),
        Ok(_) => remove_overlays(runtime, overlays).await,
    }
}

async fn remove_overlays(runtime: &Rc<Runtime>, directory: &Path) -> Result<()> {
    let names = match runtime.list(directory).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        names => names?,
    };
    for name in names {
        match runtime.remove(directory.join(name)).await {
            // Sums that were being made have got their name meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            removed => removed?,
        }
    }
    runtime.remove_directory(directory).await
}
