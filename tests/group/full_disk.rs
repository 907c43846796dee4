//! A group on a simulated disk that is full: what gives space back goes on, and a stop does not wait for space, nor for long for a vault
//! that fails.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use afterimage::block::{Export, Request, Response};
use afterimage::env::Environment;
use afterimage::error::{ErrorKind, Result};
use afterimage::format::ladder::{Ladder, Rung};
use afterimage::format::record::DiskRecord;
use afterimage::protect::events::GroupEvent;
use afterimage::protect::group::Group;
use afterimage::protect::open::{self, GroupPlan};
use afterimage::protect::shrinking::{Shrink, SpaceLimits};
use afterimage::protect::status::Condition;
use afterimage::runtime::Runtime;
use afterimage::storage::sim::{
    FaultKind, Matcher, OpKind, ProcessId, Random, SimDisk, SimEnvironment, SimStorage,
};
use afterimage::units::{MonotonicNanos, PointId, SectorRange};
use afterimage::vault::{SPARES, Vault};
use afterimage::view::View;
use bytes::Bytes;

use super::pieces::flatten;
use super::stepped::{GROUP, Stepped, Steps, callback, record};

const IDLE: Duration = Duration::from_millis(1);
const RANGE: SectorRange = SectorRange { start: 0, end: 64 };

struct Small {
    disk: SimDisk,
    process: ProcessId,
    environment: Rc<SimEnvironment>,
    stepped: Stepped,
}

impl Deref for Small {
    type Target = Stepped;

    fn deref(&self) -> &Stepped {
        &self.stepped
    }
}

impl DerefMut for Small {
    fn deref_mut(&mut self) -> &mut Stepped {
        &mut self.stepped
    }
}

impl Steps for Small {
    const ROUNDS_MAX: u64 = 1_000_000;

    fn stepped(&mut self) -> &mut Stepped {
        &mut self.stepped
    }

    /// Where nothing is left to do, time passes.
    fn step(&mut self) {
        self.stepped.round();
        if !self.disk.step() && !self.runtime.has_ready_tasks() {
            self.environment.advance(IDLE);
        }
    }
}

/// No room is kept back: only spares.
fn plan() -> GroupPlan {
    let space = SpaceLimits { reserve_bytes_max: 0, ..SpaceLimits::default() };
    let small = super::plan(Path::new("/data"));
    GroupPlan { segment_bytes: 256 << 10, journal_bytes: 4 << 20, space, ..small }
}

impl Small {
    fn new() -> Small {
        Small::with(plan())
    }

    fn with(plan: GroupPlan) -> Small {
        let disk = SimDisk::new(1);
        let environment = SimEnvironment::new(1);
        Small::start(disk, environment, |runtime| open::create(runtime, plan, GROUP, record(3_600_000)))
    }

    fn start<O: Future<Output = Result<Group>> + 'static>(
        disk: SimDisk,
        environment: Rc<SimEnvironment>,
        opening: impl FnOnce(Rc<Runtime>) -> O,
    ) -> Small {
        let storage = SimStorage::new(&disk);
        let process = storage.process();
        let runtime = Runtime::new(Box::new(storage), Rc::clone(&environment) as _);
        let group = runtime.block_on(opening(Rc::clone(&runtime))).expect("sound");
        let mut small = Small { disk, process, environment, stepped: Stepped::new(runtime, group) };
        small.drive(|group| group.is_serving());
        small
    }

    /// Another group of the same process, whose vault is on the same disk.
    fn beside(&self) -> Small {
        let own = self.group.plan();
        let paths = super::plan(Path::new("/other"));
        let plan = GroupPlan { directory: paths.directory, vault: paths.vault, ..own.clone() };
        let (disk, environment) = (self.disk.clone(), Rc::clone(&self.environment));
        Small::start(disk, environment, |runtime| open::create(runtime, plan, GROUP, record(3_600_000)))
    }

    fn reopened(self) -> Small {
        self.disk.kill_process(self.process);
        self.runtime.abandon_tasks();
        let plan = GroupPlan { gates: Arc::default(), ..self.group.plan().clone() };
        let Small { disk, environment, .. } = self;
        Small::start(disk, environment, |runtime| open::open(runtime, plan))
    }

    #[track_caller]
    fn drive(&mut self, mut until: impl FnMut(&mut Group) -> bool) {
        self.until("a group", |small| until(&mut small.group));
    }

    fn add_disk(&mut self) -> DiskRecord {
        self.join("d", RANGE.end)
    }

    /// Overwrites the same range; a point of it is made.
    fn write_and_mark(&mut self, disk: &DiskRecord, seed: u8) {
        self.write(disk, seed);
        self.called(|group, callback| group.create_point(format!("p{seed}"), callback)).expect("room");
    }

    fn write(&mut self, disk: &DiskRecord, seed: u8) {
        assert!(self.answer(Export::Disk(GROUP, disk.id), write(RANGE, seed)).is_ok());
    }

    /// Writes a part of a disk, a range after the other.
    fn write_all(&mut self, disk: &DiskRecord, part: SectorRange, seed: u8) {
        for range in ranges(part) {
            assert!(self.answer(Export::Disk(GROUP, disk.id), write(range, seed)).is_ok());
        }
    }

    fn fill(&self) {
        self.disk.set_capacity(Some(self.disk.allocated_bytes()));
    }

    fn until_reserve(&mut self) {
        self.drive(|group| group.vault().reserve().spares() as u64 == u64::from(SPARES));
    }
}

/// Bytes that nothing makes smaller.
fn write(range: SectorRange, seed: u8) -> Request {
    let mut random = Random::new(range.start << 8 | u64::from(seed));
    let words = (0..range.bytes() / 8).flat_map(|_| random.next().to_le_bytes());
    Request::Write { range, payload: Bytes::from(words.collect::<Vec<u8>>()), durable: true }
}

fn ranges(part: SectorRange) -> impl Iterator<Item = SectorRange> {
    (part.start..part.end).step_by(64).map(|start| SectorRange::new(start, start + 64))
}

fn labels(group: &Group) -> Vec<String> {
    group.points().iter().map(|point| point.label.clone()).collect()
}

fn strings<const N: usize>(labels: [&str; N]) -> Vec<String> {
    labels.map(str::to_owned).to_vec()
}

#[test]
fn a_stop_ends_who_waits_for_space_and_does_not_wait_for_it() {
    let mut small = Small::new();
    let disk = small.add_disk();
    small.until_reserve();
    small.write(&disk, 1);
    small.fill();
    let (told, callback) = callback();
    small.group.create_point("wanted".into(), callback);
    small.drive(|group| group.condition() == Condition::NoSpace);
    assert!(told.borrow().is_none(), "it waits");
    small.group.end_waits();
    small.drive(|_| told.borrow().is_some());
    let refused = told.take().expect("told").expect_err("there is no room");
    assert_eq!(refused.kind(), ErrorKind::Shutdown);
    assert!(refused.to_string().contains("a file system is full"), "{refused}");
    let again = small.called(|group, callback| group.create_point("another".into(), callback));
    assert_eq!(again.expect_err("a stop is near").kind(), ErrorKind::Shutdown);
    small.group.stop();
    small.drive(Group::is_stopped);
    small.disk.set_capacity(None);
    let mut small = small.reopened();
    small.drive(|group| labels(group).contains(&"wanted".to_owned()));
}

/// A file system that writes elsewhere than before may find no space for a segment that is there: that latched the group, and no write was
/// taken any more. A death meanwhile loses what nobody was told of, and no more.
#[test]
fn a_write_to_a_segment_that_finds_no_space_waits() {
    for dies in [false, true] {
        let mut small = Small::new();
        let disk = small.add_disk();
        small.write(&disk, 1);
        small.disk.fail_always(Matcher::kind(OpKind::Write).path("/journal/segment"), FaultKind::NoSpace);
        let export = Export::Disk(GROUP, disk.id);
        let rest = SectorRange::new(0, 32);
        small.submit(export, write(rest, 2));
        small.submit(export, write(rest, 3));
        small.drive(|group| group.condition() == Condition::NoSpace);
        let since = small.environment.monotonic();
        let environment = Rc::clone(&small.environment);
        small.drive(|_| environment.monotonic().0 - since.0 > 5_000_000_000);
        assert!(small.replies.is_empty() && small.group.failure().is_none());
        small.disk.mend();
        if dies {
            small = small.reopened();
        } else {
            small.until("their answers", |small| small.replies.len() == 2);
            assert!(small.replies.drain(..).all(|(_, reply)| reply.is_ok()));
        }
        let found = match small.answer(export, Request::Read { range: RANGE }) {
            Ok(Response::Data(pieces)) => flatten(&pieces),
            other => panic!("{other:?}"),
        };
        let payload = |request| match request {
            Request::Write { payload, .. } => payload,
            other => panic!("{other:?}"),
        };
        let (all, newest) = (payload(write(RANGE, 1)), payload(write(rest, 3)));
        assert_eq!(found[newest.len()..], all[newest.len()..]);
        if !dies {
            assert_eq!(found[..newest.len()], newest[..]);
        }
        small.write(&disk, 4);
    }
}

/// Below its limit a journal waited for space without end, though all but a point was done that gives some back.
#[test]
fn a_journal_that_cannot_grow_has_a_point_made_that_gives_it_room() {
    let mut small = Small::new();
    let disk = small.add_disk();
    small.disk.fail_always(Matcher::any().path(".new"), FaultKind::NoSpace);
    for seed in 0..60 {
        small.write(&disk, seed);
    }
    assert!(!small.group.points().is_empty(), "an hour has not passed");
}

#[test]
fn a_stop_waits_for_points_that_nothing_is_in_the_way_of() {
    let mut small = Small::new();
    let disk = small.add_disk();
    small.write(&disk, 1);
    let (told, callback) = callback();
    small.group.create_point("wanted".into(), callback);
    small.group.stop();
    small.drive(Group::is_stopped);
    assert_eq!(told.take().expect("told").expect("made").label, "wanted");
}

/// It used to wait for as long as the vault failed, and the process with it for a minute.
#[test]
fn a_stop_waits_some_seconds_for_a_vault_that_fails_and_no_longer() {
    let fails = || Matcher::kind(OpKind::Write).path("/data/vault");
    let seconds =
        |small: &Small, since: MonotonicNanos| (small.environment.monotonic().0 - since.0) / 1_000_000_000;
    for is_mended in [true, false] {
        let mut small = Small::new();
        let disk = small.add_disk();
        small.until_reserve();
        small.write(&disk, 1);
        small.disk.fail_always(fails(), FaultKind::Io);
        let began = small.environment.monotonic();
        small.group.stop();
        let environment = Rc::clone(&small.environment);
        small.drive(|group| {
            assert!(!group.is_stopped(), "it is tried again");
            environment.monotonic().0 - began.0 > 2_000_000_000
        });
        if is_mended {
            small.disk.mend();
        }
        small.drive(Group::is_stopped);
        assert!(seconds(&small, began) < 10, "{} s", seconds(&small, began));
        small.disk.mend();
        let mut small = small.reopened();
        assert_eq!(
            small.group.points().len(),
            usize::from(is_mended),
            "the last interval is a point, or left"
        );
        // Nothing that was acknowledged is lost: the next process makes the point.
        small.drive(|group| group.points().len() == 1);
    }
}

/// A merge that found no space ended the pass before the shrinking that makes space.
#[test]
fn history_shrinks_though_the_ladder_finds_no_space() {
    let mut small = Small::new();
    let disk = small.add_disk();
    (0..5).for_each(|seed| small.write_and_mark(&disk, seed));
    // From now on the base has all of its blocks.
    let oldest = small.group.points()[0].id;
    small.called(|group, callback| group.delete_point(oldest, callback)).expect("room");
    small.drive(|group| group.vault().manifest().state().base_advance().is_none());
    small.until_reserve();
    // What went is others' once that is durable, which a new point makes it.
    small.write_and_mark(&disk, 5);
    small.environment.advance(Duration::from_secs(5));
    small.fill();
    let before = labels(&small.group);
    let rungs = [(10, 0), (3_600_000, 2000)].map(|(until_ms, spacing_ms)| Rung { until_ms, spacing_ms });
    let ladder = Ladder::new(rungs.to_vec()).expect("legal");
    small.called(|group, callback| group.set_policy(None, Some(ladder), callback)).expect("of a spare");
    small.drive(|group| group.retention().stalled.is_some());
    assert_eq!(labels(&small.group), before, "there is no room for a merge");
    let mut shrinks = false;
    small.drive(|group| {
        let events = group.take_events();
        shrinks |= events.iter().any(|told| matches!(told.event, GroupEvent::HistoryShrinks { .. }));
        shrinks
            && group.vault().manifest().state().base_advance().is_none()
            && labels(group).len() < before.len()
    });
}

/// A disk of 8 MiB; all of what three points differ in, and the base does not have yet, is in its first 2.
fn with_points() -> (Small, DiskRecord) {
    // Points are not to go by themselves meanwhile.
    with_points_and_grace(Duration::from_secs(1 << 20))
}

fn with_points_and_grace(grace: Duration) -> (Small, DiskRecord) {
    let space = SpaceLimits {
        free_bytes_min: Some(2 * ROOM_BYTES),
        reserve_bytes_max: ROOM_BYTES,
        grace,
        ..plan().space
    };
    let mut small = Small::with(GroupPlan { space, journal_bytes: 8 << 20, ..plan() });
    let disk = small.join("d", 16 << 10);
    for seed in 0..3 {
        small.write_all(&disk, SectorRange::new(0, 4 << 10), seed);
        small.called(|group, callback| group.create_point(format!("p{seed}"), callback)).expect("room");
    }
    small.until_reserve();
    small.drive(|group| group.vault().reserve().room_bytes() == ROOM_BYTES && is_destaged(group));
    (small, disk)
}

fn is_destaged(group: &Group) -> bool {
    let lsns = group.ladder();
    lsns.destaged == lsns.visible
}

const ROOM_BYTES: u64 = 256 << 10;

/// What guests wrote meanwhile took the room of the reserve, and what came back piece by piece, and nothing came back any more.
#[test]
fn points_go_from_a_full_disk_though_guests_go_on_writing() {
    let (mut small, disk) = with_points();
    small.fill();
    // Acknowledged, as far as the journal has segments; their image has no block for any of it.
    for range in ranges(SectorRange::new(4 << 10, 12 << 10)) {
        small.submit(Export::Disk(GROUP, disk.id), write(range, 9));
    }
    small.drive(|group| group.condition() == Condition::NoSpace);
    for _ in 0..2 {
        let oldest = small.group.points()[0].id;
        small.called(|group, callback| group.delete_point(oldest, callback)).expect("of a spare");
        small.drive(|group| group.vault().manifest().state().base_advance().is_none());
    }
    assert_eq!(labels(&small.group), ["p2"]);
    small.disk.set_capacity(None);
    let answered = ranges(SectorRange::new(4 << 10, 12 << 10)).count();
    small.until("their writes", |small| small.replies.len() == answered);
    assert!(small.replies.iter().all(|(_, reply)| reply.is_ok()));
    small.drive(|group| group.vault().reserve().room_bytes() == ROOM_BYTES);
}

/// A death between the room's being given up and its being whole again let guests take all of it.
#[test]
fn what_was_given_up_before_a_death_is_the_reserves_first() {
    let (mut small, disk) = with_points();
    small.fill();
    let oldest = small.group.points()[0].id;
    small.called(|group, callback| group.delete_point(oldest, callback)).expect("of a spare");
    small.drive(|group| group.vault().reserve().room_bytes() == 0);
    let mut small = small.reopened();
    for range in ranges(SectorRange::new(4 << 10, 12 << 10)) {
        small.submit(Export::Disk(GROUP, disk.id), write(range, 9));
    }
    small.drive(|group| group.vault().manifest().state().base_advance().is_none());
    assert_eq!(labels(&small.group), ["p1", "p2"]);
}

async fn open_view(vault: Rc<Vault>, point: PointId) -> Result<Rc<View>> {
    View::open(&vault, point).await
}

/// Nothing of what a view reads comes back before it ends: the base waits for it, and guests do not wait with it.
#[test]
fn a_base_waits_for_a_view_where_there_is_no_room_and_guests_do_not() {
    let (mut small, disk) = with_points();
    let vault = Rc::clone(small.group.vault());
    let newest = small.group.points()[2].id;
    let view = small.runtime.block_on(open_view(Rc::clone(&vault), newest)).expect("sound");
    small.fill();
    let oldest = small.group.points()[0].id;
    small.called(|group, callback| group.delete_point(oldest, callback)).expect("of a spare");
    small.drive(|group| group.retention().waits_for_view);
    assert_eq!(vault.reserve().room_bytes(), ROOM_BYTES);
    // All of it is in blocks that the image has.
    small.write_all(&disk, SectorRange::new(0, 4 << 10), 7);
    small.drive(|group| is_destaged(group));
    assert_ne!(small.group.condition(), Condition::NoSpace);
    drop(view);
    small.drive(|group| group.vault().manifest().state().base_advance().is_none());
}

/// The journal keeps what it holds until that is in the vault: the point waited, and in time guests with it, while points lay there that
/// nobody would have missed as much.
#[test]
fn the_oldest_points_go_for_one_that_does_not_fit() {
    let (mut small, disk) = with_points_and_grace(Duration::from_secs(10));
    // From now on the base has all of its blocks.
    let oldest = small.group.points()[0].id;
    small.called(|group, callback| group.delete_point(oldest, callback)).expect("room");
    small.drive(|group| group.vault().manifest().state().base_advance().is_none());
    small.until_reserve();
    // What went is others' once that is durable, which a new point makes it.
    small.write_all(&disk, SectorRange::new(0, 4 << 10), 3);
    small.called(|group, callback| group.create_point("p3".into(), callback)).expect("room");
    small.write_all(&disk, SectorRange::new(0, 4 << 10), 5);
    small.drive(|group| is_destaged(group) && group.vault().reserve().room_bytes() == ROOM_BYTES);
    // More than has to stay free, but less than the point takes.
    small.disk.set_capacity(Some(small.disk.allocated_bytes() + (1 << 20)));
    small.group.take_events();
    let (told, callback) = callback();
    small.group.create_point("large".into(), callback);
    let mut codes = Vec::new();
    small.drive(|group| {
        codes.extend(group.take_events().iter().map(|told| told.event.code()));
        told.borrow().is_some()
    });
    told.take().expect("told").expect("it fits in the end");
    let codes: Vec<_> = codes.into_iter().filter(|code| code.starts_with("history")).collect();
    assert_eq!(codes, ["history_will_shrink", "history_shrinks"], "once");
    assert_eq!(labels(&small.group), ["p2", "p3", "large"], "no more than is needed");
}

/// Its own group had nothing to give: guests of that hung for good, beside history that nobody would have missed as much.
#[test]
fn history_of_another_group_goes_for_a_point_that_does_not_fit() {
    let (mut other, disk) = with_points_and_grace(Duration::from_secs(10));
    // From now on its base has all of its blocks.
    let oldest = other.group.points()[0].id;
    other.called(|group, callback| group.delete_point(oldest, callback)).expect("room");
    other.drive(|group| group.vault().manifest().state().base_advance().is_none());
    let mut small = other.beside();
    let own = small.join("d", 16 << 10);
    small.write_all(&own, SectorRange::new(0, 64), 1);
    small.called(|group, callback| group.create_point("p0".into(), callback)).expect("room");
    small.write_all(&own, SectorRange::new(0, 3 << 10), 2);
    small.drive(|group| is_destaged(group) && group.vault().reserve().room_bytes() == ROOM_BYTES);
    other.write_all(&disk, SectorRange::new(0, 4 << 10), 3);
    other.called(|group, callback| group.create_point("p3".into(), callback)).expect("room");
    other.drive(|group| is_destaged(group) && group.vault().reserve().room_bytes() == ROOM_BYTES);
    // More than has to stay free, but less than the point takes.
    small.disk.set_capacity(Some(small.disk.allocated_bytes() + (1 << 20)));
    let (told, callback) = callback();
    small.group.create_point("large".into(), callback);
    let mut codes = [Vec::new(), Vec::new()];
    small.until("a point", |small| {
        other.step();
        for (group, codes) in [&mut small.group, &mut other.group].into_iter().zip(&mut codes) {
            let events = group.take_events();
            codes.extend(
                events.iter().map(|told| told.event.code()).filter(|code| code.starts_with("history")),
            );
        }
        told.borrow().is_some()
    });
    told.take().expect("told").expect("it fits in the end");
    assert_eq!(codes, [vec!["history_cannot_shrink"], vec!["history_will_shrink", "history_shrinks"]]);
    assert_eq!(
        (labels(&small.group), labels(&other.group)),
        (strings(["p0", "large"]), strings(["p2", "p3"]))
    );
    // Nobody wants anything any more.
    small.until("rest", |small| {
        other.step();
        [&small.group, &other.group].iter().all(|group| group.retention().shrink == Shrink::Rests)
    });
}

/// What is kept back for giving space back is of no use where nothing can.
#[test]
fn where_no_point_can_go_the_room_is_that_of_the_point_that_waits() {
    let grace = Duration::from_secs(10);
    let space = SpaceLimits {
        free_bytes_min: Some(2 * ROOM_BYTES),
        reserve_bytes_max: ROOM_BYTES,
        grace,
        ..plan().space
    };
    let mut small = Small::with(GroupPlan { space, ..plan() });
    let disk = small.add_disk();
    small.write_and_mark(&disk, 0);
    small.until_reserve();
    small.write(&disk, 1);
    small.drive(|group| is_destaged(group) && group.vault().reserve().room_bytes() == ROOM_BYTES);
    small.fill();
    small.group.take_events();
    small.called(|group, callback| group.create_point("p1".into(), callback)).expect("room");
    let codes: Vec<_> = small.group.take_events().iter().map(|told| told.event.code()).collect();
    assert!(!codes.contains(&"history_cannot_shrink"), "{codes:?}");
    // The room has the first right to what comes back then.
    small.disk.set_capacity(None);
    small.drive(|group| group.vault().reserve().room_bytes() == ROOM_BYTES);
}

/// What is in deltas only moves into the base: all of history but the newest point went in seconds, and less was free than before.
#[test]
fn history_that_gives_nothing_back_stays() {
    let grace = Duration::from_secs(10);
    let space =
        SpaceLimits { free_bytes_min: Some(2 * ROOM_BYTES), reserve_bytes_max: 0, grace, ..plan().space };
    let mut small = Small::with(GroupPlan { space, journal_bytes: 8 << 20, ..plan() });
    let disk = small.join("d", 16 << 10);
    let part = |number: u64| SectorRange::new(number * 2048, (number + 1) * 2048);
    for number in 0..3 {
        small.write_all(&disk, part(number), 1);
        small.called(|group, callback| group.create_point(format!("p{number}"), callback)).expect("room");
    }
    small.until_reserve();
    small.drive(|group| is_destaged(group));
    small.disk.set_capacity(Some(small.disk.allocated_bytes() + ROOM_BYTES));
    small.drive(|group| group.take_events().iter().any(|told| told.event.code() == "history_cannot_shrink"));
    assert_eq!(labels(&small.group), ["p0", "p1", "p2"], "nothing would come back");
    // Once the newest says the same anew, what the oldest holds of it is superfluous.
    small.disk.set_capacity(None);
    small.write_all(&disk, part(0), 2);
    small.called(|group, callback| group.create_point("p3".into(), callback)).expect("room");
    small.write_all(&disk, part(0), 3);
    small.called(|group, callback| group.create_point("p4".into(), callback)).expect("room");
    small.drive(|group| is_destaged(group));
    small.disk.set_capacity(Some(small.disk.allocated_bytes() + ROOM_BYTES));
    small.drive(|group| labels(group) == ["p3", "p4"] || labels(group) == ["p4"]);
}
