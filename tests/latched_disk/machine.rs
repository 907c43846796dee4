//! A group of two disks on a simulated machine, stepped by hand.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use afterimage::block::{Export, Reply, Request, Response, Ticket};
use afterimage::error::Result;
use afterimage::image::image_path;
use afterimage::image::side::side_path;
use afterimage::journal::cache::SharedFrames;
use afterimage::protect::disk::Disk;
use afterimage::protect::events::GroupEvent;
use afterimage::protect::group::Group;
use afterimage::protect::open::{self, GroupPlan};
use afterimage::protect::resume::ResumeReport;
use afterimage::runtime::Runtime;
use afterimage::storage::sim::{FaultKind, Matcher, OpKind, ProcessId, SimDisk, SimEnvironment, SimStorage};
use afterimage::storage::{Access, Buffer, OpenOptions};
use afterimage::units::{DiskId, SectorRange, to_usize};

use crate::pieces::flatten;
use crate::stepped::{self, Stepped, record};
pub use crate::stepped::{GROUP, Steps, write};

pub const SECTORS: u64 = 256;
pub const SEGMENT_BYTES: u64 = 128 << 10;
pub const SEGMENTS: u64 = 8;
/// Rounds after which what was waited for is taken not to come.
pub const ROUNDS_MAX: u64 = 200_000;

pub fn plan() -> GroupPlan {
    GroupPlan {
        segment_bytes: SEGMENT_BYTES,
        journal_bytes: SEGMENT_BYTES * SEGMENTS,
        index_bytes_min: 1 << 20,
        cache_bytes_max: 64 << 10,
        shared_frames: SharedFrames::unbounded(),
        shared_pieces: std::sync::Arc::default(),
        ..stepped::plan(PathBuf::from("/group"), PathBuf::from("/vault"))
    }
}

/// A machine, and the process that serves the group on it.
pub struct Machine {
    pub disk: SimDisk,
    pub environment: Rc<SimEnvironment>,
    pub process: ProcessId,
    pub runtime: Rc<Runtime>,
    stepped: Option<Stepped>,
}

impl Steps for Machine {
    const ROUNDS_MAX: u64 = ROUNDS_MAX;

    fn stepped(&mut self) -> &mut Stepped {
        self.stepped.as_mut().expect("the group is open")
    }

    fn step(&mut self) {
        match &mut self.stepped {
            Some(stepped) => stepped.round(),
            None => {
                self.runtime.step(&mut Vec::new());
                self.runtime.storage().start();
            }
        }
        if !self.disk.step() {
            self.environment.advance(Duration::from_millis(20));
        }
    }
}

impl Machine {
    /// A group with two disks.
    pub fn new(seed: u64) -> (Machine, DiskId, DiskId) {
        let disk = SimDisk::new(seed);
        let mut machine = Machine::boot(disk, SimEnvironment::new(seed));
        let opening = open::create(Rc::clone(&machine.runtime), plan(), GROUP, record(100));
        machine.serve(opening).expect("creates");
        let (first, second) = (machine.add_disk("first"), machine.add_disk("second"));
        (machine, first, second)
    }

    pub fn boot(disk: SimDisk, environment: Rc<SimEnvironment>) -> Machine {
        let storage = SimStorage::new(&disk);
        let process = storage.process();
        let runtime = Runtime::new(Box::new(storage), Rc::clone(&environment) as _);
        Machine { disk, environment, process, runtime, stepped: None }
    }

    pub fn serve(&mut self, opening: impl Future<Output = Result<Group>> + 'static) -> Result<()> {
        let slot = Rc::new(RefCell::new(None));
        let filled = Rc::clone(&slot);
        self.runtime.spawn(async move { drop(filled.replace(Some(opening.await))) });
        self.drive("opening", |_| slot.borrow().is_some());
        let group = slot.take().expect("filled")?;
        self.stepped = Some(Stepped::new(Rc::clone(&self.runtime), group));
        self.drive("serving", |machine| machine.group().is_serving());
        Ok(())
    }

    /// The process dies, alone or with the machine, and the next one opens the group.
    pub fn restart(self, power_cut: bool) -> Machine {
        let mut next = self.die(power_cut);
        next.open().expect("opens");
        next
    }

    /// The process dies, alone or with the machine; the next one has opened nothing yet.
    pub fn die(self, power_cut: bool) -> Machine {
        if power_cut {
            self.disk.power_cut();
            self.environment.reboot();
        } else {
            self.disk.kill_process(self.process);
            self.disk.run();
        }
        self.runtime.abandon_tasks();
        Machine::boot(self.disk.clone(), Rc::clone(&self.environment))
    }

    /// Opens the group.
    pub fn open(&mut self) -> Result<()> {
        let opening = open::open(Rc::clone(&self.runtime), plan());
        self.serve(opening)
    }

    /// Carries something out beside the group.
    pub fn run<T: 'static>(&mut self, work: impl Future<Output = T> + 'static) -> T {
        let slot = Rc::new(RefCell::new(None));
        let filled = Rc::clone(&slot);
        self.runtime.spawn(async move { drop(filled.replace(Some(work.await))) });
        self.drive("work beside the group", |_| slot.borrow().is_some());
        slot.take().expect("filled")
    }

    /// Gives a file another name, durably.
    pub fn rename(&mut self, from: &Path, to: &Path) {
        let (runtime, from, to) = (Rc::clone(&self.runtime), from.to_owned(), to.to_owned());
        self.run(async move {
            runtime.publish(&from, &to).await.expect("no faults yet");
            for path in [from, to] {
                runtime.sync_directory(path.parent().expect("not the root")).await.expect("no faults yet");
            }
        });
    }

    /// Somebody gives a file another length, and writes to its start.
    pub fn rewrite(&mut self, path: PathBuf, length: u64, bytes: Vec<u8>) {
        let runtime = Rc::clone(&self.runtime);
        self.run(async move {
            let options = OpenOptions { access: Access::ReadWrite, ..OpenOptions::READ };
            let file = runtime.open(path, options).await.expect("it is there");
            runtime.set_length(&file, length).await.expect("no faults yet");
            if !bytes.is_empty() {
                runtime.write(&file, 0, Buffer::copy_of(&bytes).freeze()).await.expect("no faults yet");
            }
        });
    }

    pub fn group(&mut self) -> &mut Group {
        &mut self.stepped().group
    }

    /// What the group has told since the last time.
    pub fn told(&mut self) -> Vec<GroupEvent> {
        self.group().take_events().into_iter().map(|told| told.event).collect()
    }

    pub fn drive(&mut self, what: &str, done: impl FnMut(&mut Machine) -> bool) {
        self.until(what, done);
    }

    /// Answers that nobody has asked for yet.
    pub fn replies(&mut self) -> &[(Ticket, Reply)] {
        &self.stepped().replies
    }

    pub fn add_disk(&mut self, name: &str) -> DiskId {
        self.join(name, SECTORS).id
    }

    pub fn resume(&mut self) -> Result<ResumeReport> {
        self.called(|group, done| group.mend_disks(done))
    }

    pub fn submit(&mut self, disk: DiskId, request: Request) -> Ticket {
        self.stepped().submit(Export::Disk(GROUP, disk), request)
    }

    pub fn ask(&mut self, disk: DiskId, request: Request) -> Reply {
        self.answer(Export::Disk(GROUP, disk), request)
    }

    pub fn write(&mut self, disk: DiskId, start: u64, byte: u8, sectors: u64) -> Reply {
        self.ask(disk, write(start, byte, sectors))
    }

    pub fn read(&mut self, disk: DiskId) -> Vec<u8> {
        match self.ask(disk, Request::Read { range: SectorRange::new(0, SECTORS) }) {
            Ok(Response::Data(pieces)) => flatten(&pieces),
            other => panic!("a read gave {other:?}"),
        }
    }

    /// The group's disk of this id.
    pub fn member(&mut self, disk: DiskId) -> &Disk {
        self.group().disks().find(|member| member.record.id == disk).expect("a member")
    }

    pub fn is_latched(&mut self, disk: DiskId) -> bool {
        self.member(disk).latched.is_some()
    }

    /// Writes so much that the journal is turned over a few times.
    pub fn turn_the_journal_over(&mut self, disk: DiskId) {
        for round in 0..4 * SEGMENTS * SEGMENT_BYTES / (64 << 10) {
            let byte = u8::try_from(round % 250).expect("small") + 1;
            assert!(self.write(disk, round % 2 * 128, byte, 128).is_ok(), "round {round}");
        }
    }

    pub fn has_side_file(&self, disk: DiskId) -> bool {
        self.disk.files().contains(&side(disk))
    }
}

pub fn side(disk: DiskId) -> PathBuf {
    side_path(&plan().images(), disk, 1)
}

pub fn image(disk: DiskId) -> PathBuf {
    image_path(&plan().images(), disk)
}

pub fn part(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// What the tests write to the disk that breaks, and what it holds then.
pub fn fill(machine: &mut Machine, disk: DiskId) -> Vec<u8> {
    assert!(machine.write(disk, 0, 1, 100).is_ok());
    assert!(machine.write(disk, 10, 2, 7).is_ok());
    let zero = Request::Zero { range: SectorRange::new(50, 60), durable: false, keep_allocated: false };
    assert!(machine.ask(disk, zero).is_ok());
    let mut expected = vec![0; to_usize(SECTORS * 512)];
    expected[..100 * 512].fill(1);
    expected[10 * 512..17 * 512].fill(2);
    expected[50 * 512..60 * 512].fill(0);
    expected
}

/// A disk that is latched, with a side file, and what it holds.
pub fn latched(seed: u64) -> (Machine, DiskId, DiskId, Vec<u8>) {
    let (mut machine, broken, sound) = Machine::new(seed);
    let first = fill(&mut machine, broken);
    machine.drive("destaging", |machine| machine.disk.durable_file(&image(broken)).expect("there") == first);
    machine.disk.fail_always(Matcher::kind(OpKind::Write).path(part(&image(broken))), FaultKind::Io);
    assert!(machine.write(broken, 90, 3, 20).is_ok());
    let mut expected = first;
    expected[90 * 512..110 * 512].fill(3);
    machine.drive("a side file", |machine| {
        machine.has_side_file(broken) && machine.disk.is_durable(&side(broken))
    });
    machine.drive("the latch", |machine| machine.group().disks().any(|disk| !disk.sides.is_empty()));
    assert!(machine.is_latched(broken));
    (machine, broken, sound, expected)
}
