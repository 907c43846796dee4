//! A disk whose image fails, on the simulated disk: the other disks live on, what it lacks survives in a side file, and a
//! resume or a restart brings it back.
//!
//! It began with a group that stopped for one broken image: what that lacked stayed in the journal, the journal filled,
//! and in the end every disk waited.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use afterimage::block::{DataPiece, Export, Refusal, Reply, Request, Response, Ticket};
use afterimage::error::{ErrorKind, Result};
use afterimage::format::ladder::Ladder;
use afterimage::format::record::{DiskRecord, GroupRecord};
use afterimage::image::image_path;
use afterimage::image::side::side_path;
use afterimage::planted::Planted;
use afterimage::protect::group::Group;
use afterimage::protect::latching::{Finding, ResumeReport};
use afterimage::protect::membership::Content;
use afterimage::protect::open::{self, GroupPlan};
use afterimage::protect::shrinking::SpaceLimits;
use afterimage::runtime::Runtime;
use afterimage::seal::{SiteKey, SiteKeys};
use afterimage::storage::sim::{FaultKind, Matcher, OpKind, ProcessId, SimDisk, SimEnvironment, SimStorage};
use afterimage::units::{DiskId, GroupId, Lsn, SectorCount, SectorRange, WallNanos, to_usize};
use bytes::Bytes;

const GROUP: GroupId = GroupId(7);
const SECTORS: u64 = 256;
const SEGMENT_BYTES: u64 = 128 << 10;
const SEGMENTS: u64 = 8;
/// Rounds after which what was waited for is taken not to come.
const ROUNDS_MAX: usize = 200_000;

fn plan() -> GroupPlan {
    GroupPlan {
        directory: PathBuf::from("/group"),
        vault: PathBuf::from("/vault"),
        segment_bytes: SEGMENT_BYTES,
        journal_bytes: SEGMENT_BYTES * SEGMENTS,
        index_bytes_min: 1 << 20,
        space: SpaceLimits::default(),
        cache_bytes_max: 64 << 10,
        map_bytes_max: 16 << 20,
        site_keys: SiteKeys::new(vec![SiteKey::drawn([1, 2])]),
        seals: true,
        planted: Planted::NONE,
    }
}

/// A machine, and the process that serves the group on it.
struct Machine {
    disk: SimDisk,
    environment: Rc<SimEnvironment>,
    process: ProcessId,
    runtime: Rc<Runtime>,
    group: Option<Group>,
    replies: Vec<(Ticket, Reply)>,
    next: u64,
}

impl Machine {
    /// A group with two disks.
    fn new(seed: u64) -> (Machine, DiskId, DiskId) {
        let disk = SimDisk::new(seed);
        let mut machine = Machine::boot(disk, SimEnvironment::new(seed));
        let record = GroupRecord {
            name: "g".into(),
            created: WallNanos(0),
            interval_ms: 100,
            retain: Ladder::keep_all(),
        };
        let opening = open::create(Rc::clone(&machine.runtime), plan(), GROUP, record);
        machine.serve(opening).expect("creates");
        let (first, second) = (machine.add_disk("first"), machine.add_disk("second"));
        (machine, first, second)
    }

    fn boot(disk: SimDisk, environment: Rc<SimEnvironment>) -> Machine {
        let storage = SimStorage::new(&disk);
        let process = storage.process();
        let runtime = Runtime::new(Box::new(storage), Rc::clone(&environment) as _);
        Machine { disk, environment, process, runtime, group: None, replies: Vec::new(), next: 0 }
    }

    fn serve(&mut self, opening: impl Future<Output = Result<Group>> + 'static) -> Result<()> {
        let slot = Rc::new(RefCell::new(None));
        let filled = Rc::clone(&slot);
        self.runtime.spawn(async move { drop(filled.replace(Some(opening.await))) });
        self.drive("opening", |_| slot.borrow().is_some());
        self.group = Some(slot.take().expect("filled")?);
        self.drive("serving", |machine| machine.group().is_serving());
        Ok(())
    }

    /// The process dies, alone or with the machine, and the next one opens the group.
    fn restart(self, power_cut: bool) -> Machine {
        if power_cut {
            self.disk.power_cut();
        } else {
            self.disk.kill_process(self.process);
            self.disk.run();
        }
        self.runtime.abandon_tasks();
        let mut next = Machine::boot(self.disk.clone(), Rc::clone(&self.environment));
        let opening = open::open(Rc::clone(&next.runtime), plan());
        next.serve(opening).expect("opens");
        next
    }

    fn group(&mut self) -> &mut Group {
        self.group.as_mut().expect("the group is open")
    }

    fn step(&mut self) {
        let mut events = Vec::new();
        self.runtime.step(&mut events);
        if let Some(group) = &mut self.group {
            for event in events {
                group.handle(event);
            }
            group.advance();
            group.take_replies(&mut self.replies);
        }
        self.runtime.storage().start();
        if !self.disk.step() {
            self.environment.advance(Duration::from_millis(20));
        }
    }

    fn drive(&mut self, what: &str, mut done: impl FnMut(&mut Machine) -> bool) {
        for _ in 0..ROUNDS_MAX {
            self.step();
            if done(self) {
                return;
            }
        }
        panic!("{what} never comes to its end");
    }

    fn called<T: 'static>(
        &mut self,
        start: impl FnOnce(&mut Group, Box<dyn FnOnce(Result<T>)>),
    ) -> Result<T> {
        let slot = Rc::new(RefCell::new(None));
        let filled = Rc::clone(&slot);
        start(self.group(), Box::new(move |result| drop(filled.replace(Some(result)))));
        self.drive("a call", |_| slot.borrow().is_some());
        slot.take().expect("filled")
    }

    fn add_disk(&mut self, name: &str) -> DiskId {
        let added = self.called(|group, done| {
            group.add_disk(name.into(), SectorCount(SECTORS), Content::Empty, done);
        });
        let record: DiskRecord = added.expect("joins");
        record.id
    }

    fn resume(&mut self) -> Result<ResumeReport> {
        self.called(|group, done| group.mend_disks(done))
    }

    fn submit(&mut self, disk: DiskId, request: Request) -> Ticket {
        self.next += 1;
        let ticket = Ticket { session: 1, request: self.next };
        self.group().submit(ticket, Export::Disk(GROUP, disk), request);
        ticket
    }

    fn ask(&mut self, disk: DiskId, request: Request) -> Reply {
        let ticket = self.submit(disk, request);
        self.drive("a request", |machine| machine.replies.iter().any(|(answered, _)| *answered == ticket));
        let place = self.replies.iter().position(|(answered, _)| *answered == ticket).expect("answered");
        self.replies.swap_remove(place).1
    }

    fn write(&mut self, disk: DiskId, start: u64, byte: u8, sectors: u64) -> Reply {
        self.ask(disk, write(start, byte, sectors))
    }

    fn read(&mut self, disk: DiskId) -> Vec<u8> {
        match self.ask(disk, Request::Read { range: SectorRange::new(0, SECTORS) }) {
            Ok(Response::Data(pieces)) => flatten(&pieces),
            other => panic!("a read gave {other:?}"),
        }
    }

    fn is_latched(&mut self, disk: DiskId) -> bool {
        self.group().disks().any(|member| member.record.id == disk && member.latched.is_some())
    }

    /// Writes so much that the journal is turned over a few times.
    fn turn_the_journal_over(&mut self, disk: DiskId) {
        for round in 0..4 * SEGMENTS * SEGMENT_BYTES / (64 << 10) {
            let byte = u8::try_from(round % 250).expect("small") + 1;
            assert!(self.write(disk, round % 2 * 128, byte, 128).is_ok(), "round {round}");
        }
    }

    fn has_side_file(&self, disk: DiskId) -> bool {
        self.disk.files().contains(&side(disk))
    }
}

fn write(start: u64, byte: u8, sectors: u64) -> Request {
    let payload = Bytes::from(vec![byte; to_usize(sectors * 512)]);
    Request::Write { range: SectorRange::new(start, start + sectors), payload, durable: false }
}

fn side(disk: DiskId) -> PathBuf {
    side_path(&plan().images(), disk, 1)
}

fn image(disk: DiskId) -> PathBuf {
    image_path(&plan().images(), disk)
}

fn part(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn flatten(pieces: &[DataPiece]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            DataPiece::Bytes(slice) => bytes.extend_from_slice(slice),
            DataPiece::Zeros(count) => bytes.resize(bytes.len() + to_usize(*count), 0),
        }
    }
    bytes
}

/// What the tests write to the disk that breaks, and what it holds then.
fn fill(machine: &mut Machine, disk: DiskId) -> Vec<u8> {
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
fn latched(seed: u64) -> (Machine, DiskId, DiskId, Vec<u8>) {
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

#[test]
fn a_broken_image_stops_neither_the_other_disks_nor_its_own_reads() {
    for seed in 0..8 {
        let (mut machine, broken, sound, expected) = latched(seed);
        machine.turn_the_journal_over(sound);
        assert_eq!(machine.read(broken), expected, "seed {seed}");
        assert_eq!(machine.write(broken, 0, 9, 1).unwrap_err(), Refusal::Io);
        let segments = machine.disk.files().iter().filter(|path| path.starts_with(plan().journal())).count();
        assert!(segments as u64 <= SEGMENTS + 1, "{segments} segments");

        // The image fails still: the next process latches the disk again, and has lost nothing.
        let mut machine = machine.restart(seed % 2 == 0);
        assert!(machine.is_latched(broken));
        assert_eq!(machine.read(broken), expected, "seed {seed}");
        machine.turn_the_journal_over(sound);

        machine.disk.mend();
        let report = machine.resume().expect("a group that works");
        let found: Vec<_> = report.disks.into_iter().map(|disk| (disk.disk, disk.finding)).collect();
        assert_eq!(found, [(broken, Finding::Mended), (sound, Finding::Sound)]);
        assert!(!machine.has_side_file(broken));
        assert_eq!(machine.disk.durable_file(&image(broken)).expect("there"), expected);
        assert!(machine.write(broken, 0, 9, 1).is_ok());
        let mut machine = machine.restart(false);
        assert_eq!(machine.read(broken)[..1024], [vec![9; 512], vec![1; 512]].concat());
    }
}

#[test]
fn an_opening_mends_what_it_can() {
    for seed in 0..8 {
        let (machine, broken, _, expected) = latched(seed);
        machine.disk.mend();
        let mut machine = machine.restart(seed % 2 == 0);
        assert!(!machine.is_latched(broken) && !machine.has_side_file(broken));
        assert_eq!(machine.disk.durable_file(&image(broken)).expect("there"), expected, "seed {seed}");
        assert_eq!(machine.read(broken), expected);
        assert!(machine.write(broken, 0, 9, 1).is_ok());
    }
}

#[test]
fn a_resume_that_finds_the_image_broken_says_so_and_loses_nothing() {
    let (mut machine, broken, _, expected) = latched(1);
    let report = machine.resume().expect("a group that works");
    let Finding::Latched { kind, reason } = &report.disks[0].finding else { panic!("{report:?}") };
    assert_eq!(*kind, ErrorKind::Io);
    assert!(reason.contains(&part(&image(broken))), "{reason}");
    assert!(machine.is_latched(broken));
    assert_eq!(machine.read(broken), expected);
}

/// A batch that began while a disk was latched leaves the disk out. Were the latch cleared before that batch ends, its
/// layers would retire as destaged, and what they hold of the disk would be lost.
#[test]
fn a_disk_that_is_mended_while_a_batch_runs_loses_nothing() {
    let mut mended_meanwhile = 0;
    for seed in 0..24 {
        let (mut machine, broken, sound) = Machine::new(seed);
        // No marker freezes a layer between the two failures.
        machine
            .called(|group, done| group.set_policy(Some(Duration::from_secs(3600)), None, done))
            .expect("set");
        machine.disk.fail_always(Matcher::kind(OpKind::Write).path(part(&image(broken))), FaultKind::Io);
        assert!(machine.write(broken, 0, 1, 16).is_ok());
        machine.drive("the first failure", |machine| {
            machine.group().disks().any(|disk| disk.record.id == broken && disk.failures == 1)
        });
        assert!(machine.write(broken, 8, 2, 16).is_ok());
        // Many extents, for a batch that takes long; at once, for else they would fill the journal.
        for start in (0..SECTORS).step_by(2) {
            machine.submit(sound, write(start, 7, 1));
        }
        machine.drive("many writes", |machine| machine.replies.len() as u64 == SECTORS / 2);
        machine.drive("the latch", |machine| machine.is_latched(broken));
        let expected =
            [vec![1; 8 * 512], vec![2; 16 * 512], vec![0; to_usize((SECTORS - 24) * 512)]].concat();
        assert_eq!(machine.read(broken), expected);

        let destaged = |machine: &Machine| machine.disk.read_file(&image(sound)).expect("there");
        machine.drive("a batch", |machine| destaged(machine).contains(&7));
        // A guest that writes holds the batch at its gate; the mend does not pass it.
        assert!(machine.write(sound, 1, 8, 1).is_ok());
        machine.disk.mend();
        let all = [vec![7; 512], vec![0; 512]].concat().repeat(to_usize(SECTORS / 2));
        let slot = Rc::new(RefCell::new(None));
        let filled = Rc::clone(&slot);
        machine.group().resume(Box::new(move |result| drop(filled.replace(Some(result)))));
        machine.drive("a mend", |machine| {
            let batch_runs = destaged(machine) != all;
            let mended = machine.disk.read_file(&image(broken)).is_some_and(|bytes| bytes[..512] == [1; 512]);
            mended_meanwhile += usize::from(batch_runs && mended);
            slot.borrow().is_some()
        });
        machine.drive("rest", |machine| {
            machine.group().ladder().destaged == machine.group().ladder().visible
                && machine.disk.in_flight() == 0
        });
        assert_eq!(machine.read(broken), expected, "seed {seed}");
        assert_eq!(machine.restart(true).read(broken), expected, "seed {seed}");
    }
    assert!(mended_meanwhile > 0, "no seed mends while a batch runs");
}

#[test]
fn where_no_side_file_can_be_written_the_journal_keeps_what_the_image_lacks() {
    let (mut machine, broken, sound) = Machine::new(3);
    machine.disk.fail_always(Matcher::kind(OpKind::Write).path(format!("{broken}.")), FaultKind::Io);
    let expected = fill(&mut machine, broken);
    machine.drive("the latch", |machine| machine.is_latched(broken));
    // More than the journal takes: the last of these wait.
    let asked =
        (0..2 * SEGMENTS * SEGMENT_BYTES / (64 << 10)).map(|_| machine.submit(sound, write(0, 7, 128)));
    let asked: Vec<Ticket> = asked.collect();
    machine.drive("a full journal", |machine| {
        machine.group().condition() == afterimage::protect::status::Condition::ImageFailed
            && machine.disk.in_flight() == 0
            && machine.group().snapshot().journal_used_bytes >= (SEGMENTS - 2) * SEGMENT_BYTES
    });
    assert!(machine.replies.len() < asked.len(), "the journal is too large for this test");
    assert_eq!(machine.read(broken), expected);
    machine.disk.mend();
    machine.resume().expect("a group that works");
    assert!(!machine.is_latched(broken));
    machine.drive("what waited", |machine| machine.replies.len() == asked.len());
    assert!(machine.replies.iter().all(|(_, reply)| reply.is_ok()));
    assert_eq!(machine.restart(true).read(broken), expected);
}

#[test]
fn a_checkpoint_that_cannot_be_had_from_the_device_latches_its_disk_only() {
    let (mut machine, broken, sound) = Machine::new(5);
    let expected = fill(&mut machine, broken);
    machine.drive("destaging", |machine| {
        machine.group().disks().any(|disk| disk.record.id == broken && disk.image.destaged() > Lsn::ZERO)
    });
    let path = format!("{broken}.checkpoint");
    machine.disk.fail_always(Matcher::kind(OpKind::Sync).path(path), FaultKind::Io);
    let mut machine = machine.restart(false);
    assert!(machine.is_latched(broken));
    assert!(machine.write(sound, 0, 1, 1).is_ok());
    assert_eq!(machine.read(broken), expected);
    machine.disk.mend();
    machine.resume().expect("a group that works");
    assert!(machine.write(broken, 0, 9, 1).is_ok());
}

#[test]
fn a_damaged_chunk_of_a_side_file_is_never_served() {
    let (mut machine, broken, sound, expected) = latched(6);
    assert!(machine.disk.rot(&side(broken), 300, 3), "chunks come first");
    let whole = Request::Read { range: SectorRange::new(0, SECTORS) };
    assert_eq!(machine.ask(broken, whole.clone()).unwrap_err(), Refusal::Io);
    machine.disk.mend();
    let report = machine.resume().expect("a group that works");
    let Finding::Latched { kind, .. } = &report.disks[0].finding else { panic!("{report:?}") };
    assert_eq!(*kind, ErrorKind::Corrupt);
    let mut machine = machine.restart(false);
    assert_eq!(machine.ask(broken, whole).unwrap_err(), Refusal::Io);
    let sound_part = Request::Read { range: SectorRange::new(0, 80) };
    let Ok(Response::Data(pieces)) = machine.ask(broken, sound_part) else {
        panic!("what is sound is served")
    };
    assert_eq!(flatten(&pieces), expected[..80 * 512]);
    assert!(machine.write(sound, 0, 1, 1).is_ok());
}

#[test]
fn a_disk_leaves_with_its_side_files() {
    let (mut machine, broken, sound, _) = latched(7);
    machine.called(|group, done| group.remove_disk(broken, done)).expect("leaves");
    assert!(
        !machine
            .disk
            .files()
            .iter()
            .any(|path| part(path).contains(&broken.to_string()) && path.starts_with("/group"))
    );
    let mut machine = machine.restart(true);
    assert!(machine.write(sound, 0, 1, 1).is_ok());
}

#[test]
fn a_group_whose_journal_failed_is_not_resumed() {
    let (mut machine, first, _) = Machine::new(9);
    machine.disk.fail_next(Matcher::kind(OpKind::Write).path("/journal/"), FaultKind::Io);
    assert_eq!(machine.write(first, 0, 1, 1).unwrap_err(), Refusal::Io);
    assert_eq!(machine.resume().unwrap_err().kind(), ErrorKind::Latched);
}
