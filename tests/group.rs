//! A group on a real disk, stepped by hand: requests, points, stop, reopening, test failover.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use afterimage::block::{Export, Refusal, Reply, Request, Response, TestId, Ticket};
use afterimage::env::{Environment, OsEnvironment};
use afterimage::error::{ErrorKind, Result};
use afterimage::failover::{TestFailover, TestFailovers};
use afterimage::format::frame::RecordKind;
use afterimage::format::record::{PinKind, PointRecord, TestUse};
use afterimage::journal::scan::{Checks, scan_segment};
use afterimage::journal::segments::SegmentIndex;
use afterimage::protect::adopt;
use afterimage::protect::group::Group;
use afterimage::protect::loss::{Loss, Terms};
use afterimage::protect::open::{self, GroupPlan};
use afterimage::protect::status::Condition;
use afterimage::runtime::Runtime;
use afterimage::storage::blocking::Blocking;
use afterimage::units::{GroupId, PointId, SectorRange, to_usize};
use bytes::Bytes;
use pieces::flatten;
use stepped::{GROUP, Stepped, Steps, record};

#[path = "group/adoption.rs"]
mod adoption;
#[path = "group/batches.rs"]
mod batches;
#[path = "group/checkpoint.rs"]
mod checkpoint;
#[path = "group/closing.rs"]
mod closing;
#[cfg(feature = "sim")]
#[path = "group/full_disk.rs"]
mod full_disk;
#[path = "group/many_points.rs"]
mod many_points;
#[path = "group/no_points.rs"]
mod no_points;
#[path = "support/pieces.rs"]
mod pieces;
#[path = "group/repair.rs"]
mod repair;
#[path = "group/stalled.rs"]
mod stalled;
#[path = "support/stepped.rs"]
mod stepped;
#[path = "group/suspension.rs"]
mod suspension;
#[path = "group/unflushed.rs"]
mod unflushed;
#[path = "group/verify.rs"]
mod verify;

/// A group on a real disk.
struct Harness(Stepped);

impl Deref for Harness {
    type Target = Stepped;

    fn deref(&self) -> &Stepped {
        &self.0
    }
}

impl DerefMut for Harness {
    fn deref_mut(&mut self) -> &mut Stepped {
        &mut self.0
    }
}

impl Steps for Harness {
    /// The storage's own waiting is the only wait.
    const ROUNDS_MAX: u64 = u64::MAX;

    fn stepped(&mut self) -> &mut Stepped {
        &mut self.0
    }

    fn step(&mut self) {
        self.round();
    }
}

fn plan(root: &Path) -> GroupPlan {
    stepped::plan(root.join("groups/g"), root.join("vault/g"))
}

fn runtime() -> Rc<Runtime> {
    runtime_in(Rc::new(OsEnvironment::new()))
}

fn runtime_in(environment: Rc<dyn Environment>) -> Rc<Runtime> {
    let storage = Blocking::new(4).expect("threads");
    Runtime::new(Box::new(storage), environment)
}

/// A process that ends takes its tasks with it, and the locks that they hold.
impl Drop for Harness {
    fn drop(&mut self) {
        self.runtime.abandon_tasks();
    }
}

impl Harness {
    fn create(root: &Path) -> Harness {
        Harness::create_with(plan(root))
    }

    fn create_with(plan: GroupPlan) -> Harness {
        let runtime = runtime();
        let opening = open::create(Rc::clone(&runtime), plan, GROUP, record(3_600_000));
        let group = runtime.block_on(opening).expect("create");
        Harness(Stepped::new(runtime, group)).serving()
    }

    fn open(root: &Path) -> Result<Harness> {
        Harness::open_in(root, Rc::new(OsEnvironment::new()))
    }

    fn open_in(root: &Path, environment: Rc<dyn Environment>) -> Result<Harness> {
        let runtime = runtime_in(environment);
        let group = runtime.block_on(open::open(Rc::clone(&runtime), plan(root)))?;
        Ok(Harness(Stepped::new(runtime, group)).serving())
    }

    fn serving(mut self) -> Harness {
        self.drive(|group| group.is_serving());
        self
    }

    fn drive(&mut self, mut until: impl FnMut(&mut Group) -> bool) {
        self.until("a group", |harness| until(&mut harness.group));
    }

    fn ask(&mut self, export: Export, request: Request) -> Reply {
        self.answer(export, request)
    }

    fn add_disk(&mut self, name: &str, sectors: u64) -> Export {
        Export::Disk(GROUP, self.join(name, sectors).id)
    }

    fn write(&mut self, disk: Export, start: u64, byte: u8, sectors: u64) {
        let request = stepped::write(start, byte, sectors);
        assert!(matches!(self.ask(disk, request), Ok(Response::Done)));
    }

    fn read(&mut self, disk: Export, start: u64, sectors: u64) -> Vec<u8> {
        match self.ask(disk, Request::Read { range: SectorRange::new(start, start + sectors) }) {
            Ok(Response::Data(pieces)) => flatten(&pieces),
            other => panic!("a read gave {other:?}"),
        }
    }

    fn point(&mut self, label: &str) -> PointRecord {
        self.called(|group, done| group.create_point(label.into(), done)).expect("point")
    }

    fn stop(mut self) {
        self.group.stop();
        self.drive(|group| group.is_stopped());
    }
}

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().to_owned();
    (directory, path)
}

#[test]
fn what_was_acknowledged_is_read_back_before_and_after_a_stop() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("root", 4096);
    harness.write(disk, 0, 1, 8);
    harness.write(disk, 4, 2, 1);
    harness.write(disk, 1000, 3, 600);
    let expected = [vec![1; 4 * 512], vec![2; 512], vec![1; 3 * 512]].concat();
    assert_eq!(harness.read(disk, 0, 8), expected);
    assert_eq!(harness.read(disk, 990, 20), [vec![0; 10 * 512], vec![3; 10 * 512]].concat());
    harness.stop();
    let mut harness = Harness::open(&root).expect("reopens");
    assert_eq!(harness.read(disk, 0, 8), expected);
    assert_eq!(harness.read(disk, 1000, 600), vec![3; 600 * 512]);
}

#[test]
fn what_was_acknowledged_survives_without_a_stop() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("root", 4096);
    for sector in 0..64 {
        harness.write(disk, sector * 8, u8::try_from(sector).expect("small") + 1, 8);
    }
    drop(harness);
    for _ in 0..3 {
        let mut harness = Harness::open(&root).expect("reopens");
        for sector in 0..64 {
            assert_eq!(
                harness.read(disk, sector * 8, 1),
                vec![u8::try_from(sector).expect("small") + 1; 512]
            );
        }
    }
}

/// It was 0 until something was destaged, whatever the checkpoints said.
#[test]
fn what_the_images_have_is_known_at_opening() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("root", 4096);
    let other = harness.add_disk("other", 4096);
    harness.write(disk, 0, 1, 8);
    harness.write(other, 0, 1, 8);
    harness.write(disk, 8, 1, 8);
    let stored = harness.group.ladder().visible;
    harness.stop();
    let mut harness = Harness::open(&root).expect("reopens");
    let sealed = harness.group.ladder();
    assert!(sealed.destaged >= stored && sealed.destaged <= sealed.durable, "{stored}: {sealed:?}");
    // And then nothing is destaged: the group dies within the second for which it waits.
    harness.write(disk, 16, 2, 8);
    let written = harness.group.ladder().visible;
    drop(harness);
    let mut harness = Harness::open(&root).expect("reopens");
    let crashed = harness.group.ladder();
    assert!(crashed.destaged >= stored && crashed.destaged < written, "{written}: {crashed:?}");
    assert_eq!(harness.read(disk, 16, 8), vec![2; 8 * 512]);
    harness.drive(|group| group.ladder().destaged >= written);
}

#[test]
fn zeros_and_ranges_outside_the_disk() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("root", 64);
    harness.write(disk, 0, 9, 64);
    let range = SectorRange::new(8, 16);
    let zero = Request::Zero { range, durable: true, keep_allocated: false };
    assert!(matches!(harness.ask(disk, zero), Ok(Response::Done)));
    assert_eq!(harness.read(disk, 7, 10), [vec![9; 512], vec![0; 8 * 512], vec![9; 512]].concat());
    let outside = Request::Read { range: SectorRange::new(60, 65) };
    assert_eq!(harness.ask(disk, outside).unwrap_err(), Refusal::Invalid);
    let outside =
        Request::Write { range: SectorRange::new(60, 65), payload: vec![0; 5 * 512].into(), durable: false };
    assert_eq!(harness.ask(disk, outside).unwrap_err(), Refusal::NoSpace);
}

#[test]
fn a_test_failover_shows_its_point_while_the_disk_goes_on() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("root", 4096);
    harness.write(disk, 0, 1, 16);
    let first = harness.point("before");
    harness.write(disk, 8, 2, 16);
    let second = harness.point("after");
    harness.write(disk, 0, 3, 32);
    assert_eq!(harness.group.points().len(), 2);

    let (runtime, vault) = (Rc::clone(&harness.runtime), Rc::clone(harness.group.vault()));
    let opening = TestFailovers::open(Rc::clone(&runtime), vault, plan(&root).tests());
    let mut tests = runtime.block_on(opening).expect("test failovers");
    for (point, expected) in [(first, [1, 1, 0, 0]), (second, [1, 2, 2, 0])] {
        let failover = start_test(&mut harness, &mut tests, point.id, TestUse::Rehearsal);
        let request = Request::Read { range: SectorRange::new(0, 32) };
        let reply = ask_test(&mut harness, &mut tests, disk, failover.test, request);
        let Ok(Response::Data(pieces)) = reply else { panic!("{reply:?}") };
        let bytes = flatten(&pieces);
        let found: Vec<u8> = (0..4).map(|index| bytes[index * 8 * 512]).collect();
        assert_eq!(found, expected);
    }
    assert_eq!(harness.read(disk, 0, 1), vec![3; 512]);
}

fn start_test(
    harness: &mut Harness,
    tests: &mut TestFailovers,
    point: PointId,
    purpose: TestUse,
) -> TestFailover {
    let slot = Rc::new(RefCell::new(None));
    let filled = Rc::clone(&slot);
    tests.start(point, purpose, Box::new(move |result| drop(filled.replace(Some(result)))));
    while slot.borrow().is_none() {
        harness.step();
        tests.advance();
    }
    slot.take().expect("filled").expect("starts")
}

fn ask_test(
    harness: &mut Harness,
    tests: &mut TestFailovers,
    disk: Export,
    test: TestId,
    request: Request,
) -> Reply {
    let Export::Disk(group, id) = disk else { unreachable!() };
    tests.submit(Ticket { session: 2, request: 0 }, Export::Test(group, id, test), request);
    let mut replies = Vec::new();
    while replies.is_empty() {
        harness.step();
        tests.advance();
        tests.take_replies(&mut replies);
    }
    replies.remove(0).1
}

#[test]
fn a_read_only_test_failover_has_no_files_and_stays_read_only() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("root", 4096);
    harness.write(disk, 0, 1, 16);
    let point = harness.point("before");
    harness.write(disk, 0, 2, 16);
    let (runtime, vault) = (Rc::clone(&harness.runtime), Rc::clone(harness.group.vault()));
    let open = || {
        let opening = TestFailovers::open(Rc::clone(&runtime), Rc::clone(&vault), plan(&root).tests());
        runtime.block_on(opening).expect("test failovers")
    };
    let mut tests = open();
    let test = start_test(&mut harness, &mut tests, point.id, TestUse::ReadOnly).test;
    drop(tests);
    // As a restart finds it.
    let mut tests = open();
    let listing = tests.list().next().expect("it is there").listing();
    assert_eq!((listing.test, listing.purpose, listing.disks.len()), (test, TestUse::ReadOnly, 1));
    let range = SectorRange::new(0, 16);
    let mut ask = |request| ask_test(&mut harness, &mut tests, disk, test, request);
    let write = Request::Write { range, payload: vec![3; 16 * 512].into(), durable: false };
    assert_eq!(ask(write).unwrap_err(), Refusal::ReadOnly);
    let zero = Request::Zero { range, durable: true, keep_allocated: false };
    assert_eq!(ask(zero).unwrap_err(), Refusal::ReadOnly);
    assert!(matches!(ask(Request::Flush), Ok(Response::Done)));
    let Ok(Response::Data(pieces)) = ask(Request::Read { range }) else { panic!("it is readable") };
    assert_eq!(flatten(&pieces), vec![1; 16 * 512]);
    let Ok(Response::Allocation(runs)) = ask(Request::Allocation { range, runs_max: 4096 }) else {
        panic!("it is known")
    };
    assert_eq!(runs.iter().map(|run| run.bytes).sum::<u64>(), range.bytes());
    assert_eq!(std::fs::read_dir(plan(&root).tests()).expect("the directory").count(), 0, "no file is made");
}

/// A restore by another program does not outlive the gateway that it reads from, so neither does what it reads.
#[test]
fn what_a_restore_reads_through_ends_with_the_process() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("root", 4096);
    harness.write(disk, 0, 1, 16);
    let first = harness.point("first");
    harness.write(disk, 0, 2, 16);
    harness.point("second");
    let (runtime, vault) = (Rc::clone(&harness.runtime), Rc::clone(harness.group.vault()));
    let open = || {
        let opening = TestFailovers::open(Rc::clone(&runtime), Rc::clone(&vault), plan(&root).tests());
        runtime.block_on(opening).expect("test failovers")
    };
    let mut tests = open();
    let rehearsal = start_test(&mut harness, &mut tests, first.id, TestUse::Rehearsal).test;
    let restore = start_test(&mut harness, &mut tests, first.id, TestUse::Restore).test;
    let write =
        Request::Write { range: SectorRange::new(0, 1), payload: vec![3; 512].into(), durable: false };
    assert_eq!(ask_test(&mut harness, &mut tests, disk, restore, write).unwrap_err(), Refusal::ReadOnly);
    drop(tests);
    // As a restart finds it.
    let tests = open();
    let left: Vec<_> = tests.list().map(|test| (test.test, test.purpose)).collect();
    assert_eq!(left, [(rehearsal, TestUse::Rehearsal)]);
    let pins: Vec<_> = vault.manifest().state().pins().iter().map(|pin| pin.kind).collect();
    assert_eq!(pins, [PinKind::Test { test: rehearsal, purpose: TestUse::Rehearsal }]);
}

#[test]
fn a_small_journal_is_recycled_many_times_over() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("root", 1 << 16);
    for round in 0..40_u64 {
        for piece in 0..32 {
            harness.write(disk, piece * 256, u8::try_from(1 + round).expect("small"), 256);
        }
    }
    for piece in 0..32 {
        assert_eq!(harness.read(disk, piece * 256 + 255, 1), vec![40; 512]);
    }
    let files = std::fs::read_dir(plan(&root).journal()).expect("journal").count();
    assert!(files <= 16, "{files} segments for a limit of 16");
    drop(harness);
    let mut harness = Harness::open(&root).expect("reopens");
    for piece in 0..32 {
        assert_eq!(harness.read(disk, piece * 256 + 7, 1), vec![40; 512]);
    }
}

/// Written bytes were counted when they arrived, also those of writes that failed.
#[test]
fn counters_count_what_was_answered() {
    let root = tempfile::tempdir().unwrap();
    let mut harness = Harness::create(root.path());
    let disk = harness.add_disk("db", 1024);
    let counted = |harness: &Harness| {
        let counters = harness.group.snapshot().counters;
        (counters.writes, counters.written_bytes, counters.reads)
    };
    let write = |range, durable| Request::Write { range, payload: Bytes::from(vec![7; 4096]), durable };
    harness.group.submit(Ticket { session: 1, request: 0 }, disk, write(SectorRange::new(0, 8), false));
    assert_eq!(counted(&harness), (0, 0, 0), "it has only arrived");
    harness.until("an answer", |harness| !harness.replies.is_empty());
    assert_eq!(counted(&harness), (1, 4096, 0));
    harness.ask(disk, write(SectorRange::new(8, 16), true)).expect("durable");
    harness.ask(disk, Request::Flush).expect("a flush is no write");
    harness.ask(disk, Request::Read { range: SectorRange::new(0, 8) }).expect("readable");
    assert_eq!(counted(&harness), (2, 8192, 1));
    harness.ask(disk, write(SectorRange::new(1020, 1028), false)).expect_err("beyond the end");
    harness.ask(disk, Request::Read { range: SectorRange::new(1020, 1028) }).expect_err("beyond the end");
    assert_eq!(counted(&harness), (2, 8192, 1), "a refusal is no answer");
}

fn segment(directory: &Path) -> (PathBuf, Vec<u8>) {
    let path = directory.join("segment-00000000");
    let bytes = std::fs::read(&path).expect("readable");
    (path, bytes)
}

/// Flips a bit of the first payload of a write.
fn flip_first_write(directory: &Path) {
    let (path, mut bytes) = segment(directory);
    let scan = scan_segment(SegmentIndex(0), &bytes, Checks::ALL);
    let places = scan.frames.iter().flat_map(|scanned| {
        let frame = &scanned.frame;
        let writes = frame.records.iter().filter(|record| matches!(record.kind, RecordKind::Write { .. }));
        writes.map(|record| to_usize(frame.segment_offset()) + frame.payload_range(record.payload).start)
    });
    let first = places.min().expect("something was written");
    bytes[first + 77] ^= 1;
    std::fs::write(&path, bytes).expect("writable");
}

#[test]
fn a_bit_that_flips_under_a_running_group_is_never_served_nor_carried_on() {
    rot_is_never_served_nor_carried_on(false, "checksum");
}

#[test]
fn nor_is_one_of_a_sealed_group_whose_journal_shows_nothing_of_what_was_written() {
    rot_is_never_served_nor_carried_on(true, "seal");
}

fn rot_is_never_served_nor_carried_on(seals: bool, noticed_by: &str) {
    let (_guard, root) = scratch();
    let mut harness = Harness::create_with(GroupPlan { cache_bytes_max: 0, seals, ..plan(&root) });
    let (rotten, sound) = (harness.add_disk("rotten", 256), harness.add_disk("sound", 256));
    harness.write(rotten, 0, 5, 8);
    harness.write(rotten, 100, 6, 8);
    harness.write(sound, 0, 7, 8);
    let (_, stored) = segment(&plan(&root).journal());
    let shows = stored.chunks_exact(512).any(|sector| sector.iter().all(|&byte| byte == 5));
    assert_eq!(shows, !seals, "what a guest wrote stands in the journal");
    flip_first_write(&plan(&root).journal());

    // The flipped bit is in the first sector; what is asked for is the last one: the whole payload is refused.
    let read = Request::Read { range: SectorRange::new(7, 8) };
    assert_eq!(harness.ask(rotten, read).unwrap_err(), Refusal::Io);
    assert_eq!(harness.read(rotten, 100, 8), vec![6; 8 * 512]);
    let failing = harness.group.snapshot().failing;
    let failing: Vec<_> = failing.iter().map(|failing| (&failing.export[..], failing.requests)).collect();
    assert_eq!(failing, [("rotten", 1)]);
    let point = harness.point("without it");
    let lacking: Vec<_> = point.disks.iter().map(|disk| disk.lacking().to_vec()).collect();
    assert_eq!(lacking, [vec![SectorRange::new(0, 8)], vec![]]);

    harness.drive(|group| group.condition() == Condition::ImageFailed);
    let snapshot = harness.group.snapshot();
    assert_eq!(snapshot.latched_disks, ["rotten"]);
    let why = snapshot.latched_because.join("");
    assert!(why.contains(noticed_by) && why.contains("segment-00000000 at byte"), "{why}");
    harness.drive(|group| group.disks().any(|disk| !disk.sides.is_empty()));
    let why = harness.group.snapshot().latched_because.join("");
    assert!(why.contains("sectors 0..8 (segment-00000000 at byte"), "{why}");
    for (export, byte) in [(rotten, 5 ^ 1), (rotten, 5)] {
        let Export::Disk(_, id) = export else { unreachable!() };
        let image = std::fs::read(plan(&root).images().join(format!("{id}.raw"))).expect("an image");
        assert!(!image[..8 * 512].contains(&byte), "the damaged record reached the image");
    }
    assert_eq!(harness.read(sound, 0, 8), vec![7; 8 * 512]);
    harness.write(sound, 8, 8, 8);
}

/// Makes a group of the vault that is in `plan`'s place; says what was given up.
async fn rebuild(runtime: Rc<Runtime>, plan: GroupPlan, terms: Terms) -> Result<Loss> {
    let vault = open::open_vault(&runtime, &plan).await?;
    let loss = adopt::rebuild(&runtime, &plan, &vault, terms, |_, _| Ok(())).await?;
    adopt::finish(&runtime, &plan).await?;
    Ok(loss)
}

/// Copies a vault to `plan`'s place, and makes a group of it.
async fn adopt_copy(runtime: Rc<Runtime>, plan: GroupPlan, source: PathBuf) -> Result<()> {
    adopt::fetch(&runtime, &plan, &source, |_, _| Ok(())).await?;
    rebuild(runtime, plan, Terms::RefuseLoss).await.map(drop)
}

/// Does what a person does about an adoption that was cut off.
async fn adopt_again(runtime: Rc<Runtime>, plan: GroupPlan, source: PathBuf) -> Result<()> {
    if adopt::refuse_second_vault(&runtime, &plan).await.is_ok() {
        return adopt_copy(runtime, plan, source).await;
    }
    rebuild(runtime, plan, Terms::RefuseLoss).await.map(drop)
}

#[test]
fn an_adoption_that_dies_at_any_await_is_not_opened_and_is_done_again() {
    let (_guard, source) = scratch();
    let (expected, newest) = {
        let mut harness = Harness::create(&source);
        let disk = harness.add_disk("disk", 4096);
        harness.write(disk, 0, 1, 300);
        harness.point("first");
        harness.write(disk, 100, 2, 8);
        let newest = harness.point("newest");
        let expected = harness.read(disk, 0, 4096);
        harness.write(disk, 200, 3, 8);
        (expected, newest)
    };
    let disk = Export::Disk(GroupId(7), newest.disks[0].disk);
    for polls in (0..).step_by(9) {
        let (_guard, root) = scratch();
        std::fs::create_dir_all(root.join("groups")).expect("a directory");
        std::fs::create_dir_all(root.join("vault")).expect("a directory");
        let dying = runtime();
        let mut adoption = Box::pin(adopt_copy(Rc::clone(&dying), plan(&root), source.join("vault/g")));
        let ended = die_after(&dying, polls, &mut adoption);
        drop(adoption);
        dying.abandon_tasks();
        if !ended {
            if let Ok(group) = Harness::open(&root) {
                // What was left to do was to say that it is done.
                drop(group);
                assert!(polls > 20, "{polls}");
            } else {
                let next = runtime();
                let again = adopt_again(Rc::clone(&next), plan(&root), source.join("vault/g"));
                next.block_on(again).expect("adopted");
            }
        }
        let mut harness = Harness::open(&root).expect("adopted");
        assert_eq!(harness.read(disk, 0, 4096), expected, "after {polls} polls");
        harness.write(disk, 300, 4, 8);
        assert!(harness.point("afterwards").marker > newest.marker);
        harness.stop();
        let mut harness = Harness::open(&root).expect("it is a group like any other");
        assert_eq!(harness.read(disk, 300, 8), [4; 8 * 512]);
        if ended {
            return;
        }
    }
}

/// Polls a future a number of times, and then leaves it: a death at that await. Gives back whether it had ended.
fn die_after<T>(runtime: &Rc<Runtime>, polls: usize, mut future: impl Future<Output = T> + Unpin) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..polls {
        runtime.step(&mut Vec::new());
        if std::pin::Pin::new(&mut future).poll(&mut context).is_ready() {
            return true;
        }
        runtime.storage().start();
        runtime.storage().wait();
    }
    false
}

#[test]
fn a_journal_of_the_timeline_that_was_left_is_refused() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("disk", 4096);
    harness.write(disk, 0, 1, 300);
    harness.point("newest");
    harness.write(disk, 0, 2, 300);
    drop(harness);
    let old = root.join("old");
    std::fs::rename(root.join("groups/g"), &old).expect("moved");
    let process = runtime();
    process.block_on(adopt_again(Rc::clone(&process), plan(&root), root.join("none"))).expect("adopted");
    drop(process);
    std::fs::remove_dir_all(root.join("groups/g/journal")).ok();
    std::fs::rename(old.join("journal"), root.join("groups/g/journal")).expect("moved");
    let error = Harness::open(&root).err().expect("another history");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}
