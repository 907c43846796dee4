//! Each promise of the simulated disk, shown over many seeds: what may happen happens for some seed, what may not
//! happens for none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::*;
use crate::error::{ErrorKind, Result};
use crate::storage::{
    Access, Buffer, Completion, Create, File, Lock, Op, OpenOptions, Outcome, Slice, Storage, Token,
};

const SEEDS: u64 = 300;
const SECTOR: usize = 512;
const LOCKED: OpenOptions =
    OpenOptions { access: Access::ReadWrite, create: Create::IfMissing, lock: Lock::Try, direct: true };
const NEW: OpenOptions = OpenOptions { lock: Lock::None, ..LOCKED };

/// A process that does one thing after the other.
struct Process {
    disk: SimDisk,
    storage: SimStorage,
}

impl Process {
    fn new(disk: &SimDisk) -> Process {
        Process { disk: disk.clone(), storage: SimStorage::new(disk) }
    }

    /// Starts an operation and leaves it in flight.
    fn begin(&self, token: u64, op: Op) {
        self.storage.submit(Token(token), op);
        self.storage.start();
    }

    fn reap(&self) -> Vec<Completion> {
        let mut completions = Vec::new();
        self.storage.reap(&mut completions);
        completions
    }

    fn call(&self, op: Op) -> Result<Outcome> {
        self.begin(u64::MAX, op);
        loop {
            for completion in self.reap() {
                if completion.token == Token(u64::MAX) {
                    return completion.result;
                }
            }
            assert!(self.disk.step(), "the operation can complete");
        }
    }

    fn done(&self, op: Op) {
        self.call(op).expect("the operation succeeds");
    }

    fn open(&self, path: &str, options: OpenOptions) -> File {
        match self.call(Op::Open { path: path.into(), options }) {
            Ok(Outcome::Opened(file)) => file,
            other => panic!("{other:?}"),
        }
    }

    fn read(&self, file: &File, offset: u64, len: usize) -> Vec<u8> {
        match self.call(Op::Read { file: file.clone(), offset, buffer: Buffer::zeroed(len) }) {
            Ok(Outcome::Read(buffer)) => buffer.to_vec(),
            other => panic!("{other:?}"),
        }
    }
}

fn write(file: &File, offset: u64, data: Slice) -> Op {
    Op::Write { file: file.clone(), offset, data }
}

fn sync(file: &File) -> Op {
    Op::Sync { file: file.clone() }
}

fn evict(file: &File) -> Op {
    Op::Evict { file: file.clone() }
}

fn sync_directory(path: &str) -> Op {
    Op::SyncDirectory { path: path.into() }
}

/// `sectors` sectors of one byte.
fn filled(byte: u8, sectors: usize) -> Slice {
    let mut buffer = Buffer::zeroed(sectors * SECTOR);
    buffer.fill(byte);
    buffer.freeze()
}

/// A durable file of `sectors` sectors that hold `byte`.
fn durable_file(process: &Process, path: &str, byte: u8, sectors: usize) -> File {
    let file = process.open(path, NEW);
    process.done(write(&file, 0, filled(byte, sectors)));
    process.done(sync(&file));
    process.done(sync_directory("/"));
    file
}

/// What a sector is: the byte that it is full of, or `None` for anything else.
fn sectors_of(disk: &SimDisk, path: &str) -> Vec<Option<u8>> {
    let bytes = disk.read_file(Path::new(path)).expect("the file survives");
    let uniform = |sector: &[u8]| sector.iter().all(|byte| *byte == sector[0]).then_some(sector[0]);
    bytes.chunks(SECTOR).map(uniform).collect()
}

#[test]
fn operations_complete_in_random_order_and_only_once_started() {
    let mut orders = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let process = Process::new(&disk);
        for token in 0..3 {
            process.storage.submit(Token(token), Op::List { path: "/".into() });
        }
        assert!(!disk.step(), "nothing was started");
        process.storage.start();
        disk.run();
        orders.insert(process.reap().iter().map(|completion| completion.token).collect::<Vec<_>>());
    }
    assert_eq!(orders.len(), 6, "all orders of three");
}

#[test]
fn a_sync_covers_only_what_had_completed_when_it_was_submitted() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let process = Process::new(&disk);
        let file = durable_file(&process, "/file", 1, 2);
        process.done(write(&file, 0, filled(2, 1)));
        process.begin(0, write(&file, 512, filled(2, 1)));
        process.begin(1, sync(&file));
        disk.run();
        let write_came_first = process.reap()[0].token == Token(0);
        disk.power_cut();
        let sectors = sectors_of(&disk, "/file");
        assert_eq!(sectors[0], Some(2), "seed {seed}: it had completed before the sync");
        lost += u64::from(write_came_first && sectors[1] != Some(2));
    }
    assert!(
        lost > SEEDS / 10,
        "a write that completed before the sync did, but not before its submission: {lost}"
    );
}

#[test]
fn what_a_failed_sync_lost_is_seen_until_it_is_evicted() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let process = Process::new(&disk);
        let file = durable_file(&process, "/file", 1, 2);
        process.done(write(&file, 0, filled(2, 1)));
        disk.fail_next(Matcher::kind(OpKind::Sync), FaultKind::Io);
        process.call(sync(&file)).expect_err("as planned");
        process.done(write(&file, 512, filled(3, 1)));
        process.done(sync(&file));
        assert_eq!(process.read(&file, 0, 512)[0], 2, "seed {seed}: it stays in sight");
        process.done(write(&file, 512, filled(4, 1)));
        process.done(evict(&file));
        let found = process.read(&file, 0, 1024);
        assert_eq!(found[512], 4, "seed {seed}: what has yet to be synced stays");
        let kept = found[0];
        disk.power_cut();
        assert_eq!(sectors_of(&disk, "/file")[0], Some(kept), "seed {seed}: what is seen is what is there");
        lost += u64::from(kept == 1);
    }
    assert!((1..SEEDS).contains(&lost), "{lost}");
}

#[test]
fn a_directory_sync_covers_only_what_had_completed_when_it_was_submitted() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let process = Process::new(&disk);
        drop(process.open("/before", NEW));
        process.begin(0, Op::Open { path: "/during".into(), options: NEW });
        process.begin(1, sync_directory("/"));
        disk.run();
        let open_came_first = process.reap()[0].token == Token(0);
        disk.power_cut();
        let files = disk.files();
        assert!(files.contains(&PathBuf::from("/before")), "seed {seed}");
        lost += u64::from(open_came_first && files.len() == 1);
    }
    assert!(lost > SEEDS / 10, "{lost}");
}

#[test]
fn a_sync_covers_its_own_file_only() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let process = Process::new(&disk);
        let (one, other) = (durable_file(&process, "/one", 1, 1), durable_file(&process, "/other", 1, 1));
        process.done(write(&one, 0, filled(2, 1)));
        process.done(write(&other, 0, filled(2, 1)));
        process.done(sync(&one));
        disk.power_cut();
        assert_eq!(sectors_of(&disk, "/one"), [Some(2)]);
        lost += u64::from(sectors_of(&disk, "/other") != [Some(2)]);
    }
    assert!(lost > SEEDS / 10);
}

#[test]
fn a_power_cut_keeps_any_subset_of_unsynced_sectors() {
    let mut outcomes = BTreeSet::new();
    let mut torn = 0;
    for seed in 0..4 * SEEDS {
        let disk = SimDisk::new(seed);
        let process = Process::new(&disk);
        let file = durable_file(&process, "/file", 1, 3);
        // Two completed, in this order, and one in flight.
        process.done(write(&file, 0, filled(2, 1)));
        process.done(write(&file, 512, filled(3, 1)));
        process.begin(0, write(&file, 1024, filled(4, 1)));
        disk.power_cut();
        let sectors = sectors_of(&disk, "/file");
        torn += u64::from(sectors.contains(&None));
        for (sector, new) in sectors.iter().zip([2, 3, 4]) {
            assert!([None, Some(1), Some(new)].contains(sector), "seed {seed}: {sectors:?}");
        }
        outcomes.insert(sectors);
    }
    for earlier in [1, 2] {
        for later in [1, 3] {
            for in_flight in [1, 4] {
                let outcome = vec![Some(earlier), Some(later), Some(in_flight)];
                assert!(outcomes.contains(&outcome), "{outcome:?} never happened");
            }
        }
    }
    assert!(torn > 0, "some sectors are torn");
}

#[test]
fn sectors_of_one_write_have_fates_of_their_own() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let process = Process::new(&disk);
        let file = durable_file(&process, "/file", 1, 3);
        process.done(write(&file, 0, filled(2, 3)));
        disk.power_cut();
        outcomes.insert(sectors_of(&disk, "/file"));
    }
    assert!(outcomes.contains(&vec![Some(1), Some(1), Some(2)]), "not only a prefix survives");
    assert!(outcomes.contains(&vec![Some(2), Some(1), Some(2)]), "there may be a hole in the middle");
}

#[test]
fn of_two_unsynced_writes_to_a_sector_the_older_may_be_what_is_left() {
    let mut found = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let process = Process::new(&disk);
        let file = durable_file(&process, "/file", 1, 1);
        process.done(write(&file, 0, filled(2, 1)));
        process.done(write(&file, 0, filled(3, 1)));
        disk.power_cut();
        found.insert(sectors_of(&disk, "/file")[0]);
    }
    assert!(found.is_superset(&BTreeSet::from([Some(1), Some(2), Some(3)])), "{found:?}");
}

#[test]
fn what_was_never_written_does_not_come_back_as_zeros() {
    let (mut shorter, mut garbage) = (0, 0);
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let process = Process::new(&disk);
        let file = durable_file(&process, "/file", 1, 1);
        process.done(write(&file, 512, filled(2, 4)));
        disk.power_cut();
        let sectors = sectors_of(&disk, "/file");
        assert_eq!(sectors[0], Some(1));
        shorter += u64::from(sectors.len() < 5);
        garbage += u64::from(sectors.contains(&None));
        assert!(!sectors.contains(&Some(0)), "seed {seed}: {sectors:?}");
    }
    assert!(shorter > 0 && garbage > 0, "{shorter} {garbage}");
}

#[test]
fn lengths_and_zeros_are_unsynced_until_a_sync() {
    let (mut lengths, mut zeroed) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..SEEDS {
        for synced in [false, true] {
            let disk = SimDisk::new(seed);
            let process = Process::new(&disk);
            let file = durable_file(&process, "/file", 1, 8);
            process.done(Op::Zero { file: file.clone(), range: 0..1024, keep_allocated: seed % 2 == 0 });
            process.done(Op::SetLength { file: file.clone(), length: 8192 });
            assert_eq!(process.read(&file, 4096, 4096), [0; 4096]);
            if synced {
                process.done(sync(&file));
            }
            disk.power_cut();
            let sectors = sectors_of(&disk, "/file");
            if synced {
                assert_eq!((sectors.len(), sectors[0], sectors[1]), (16, Some(0), Some(0)));
            } else {
                lengths.insert(sectors.len());
                zeroed.insert(sectors[0]);
            }
            assert_eq!(sectors[2..8], [Some(1); 6]);
            assert!(sectors[8..].iter().all(|sector| *sector == Some(0)), "lengthening shows zeros");
        }
    }
    assert_eq!((lengths, zeroed), (BTreeSet::from([8, 16]), BTreeSet::from([Some(0), Some(1)])));
}

#[test]
fn names_survive_one_by_one_unless_their_directory_is_synced() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        for synced in [false, true] {
            let disk = SimDisk::new(seed);
            let process = Process::new(&disk);
            drop(durable_file(&process, "/old", 1, 1));
            process.done(Op::Remove { path: "/old".into() });
            drop(process.open("/first", NEW));
            drop(process.open("/second", NEW));
            if synced {
                process.done(sync_directory("/"));
                assert!(disk.is_durable(Path::new("/second")));
            }
            disk.power_cut();
            let files = disk.files();
            if synced {
                assert_eq!(files, [PathBuf::from("/first"), PathBuf::from("/second")]);
            } else {
                outcomes.insert(files);
            }
        }
    }
    assert_eq!(outcomes.len(), 8, "every subset of three changes: {outcomes:?}");
}

#[test]
fn a_publish_may_be_undone_or_half_done_but_loses_nothing() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let process = Process::new(&disk);
        process.done(Op::CreateDirectory { path: "/to".into() });
        drop(durable_file(&process, "/from", 7, 1));
        process.done(Op::Publish { from: "/from".into(), to: "/to/name".into() });
        if seed % 2 == 0 {
            // Taking the old name away for good brings the new one with it.
            process.done(sync_directory("/"));
        }
        disk.power_cut();
        let files = disk.files();
        for file in &files {
            assert_eq!(sectors_of(&disk, file.to_str().expect("UTF-8")), [Some(7)]);
        }
        assert!(seed % 2 != 0 || files == [PathBuf::from("/to/name")], "{files:?}");
        assert!(!files.is_empty(), "seed {seed}: the file is lost");
        outcomes.insert(files);
    }
    assert_eq!(outcomes.len(), 3, "{outcomes:?}");
}

#[test]
fn a_name_without_its_directory_is_gone() {
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let process = Process::new(&disk);
        process.done(Op::CreateDirectory { path: "/a/b".into() });
        drop(process.open("/a/b/file", NEW));
        process.done(sync_directory("/a/b"));
        disk.power_cut();
        let process = Process::new(&disk);
        let listed = process.call(Op::List { path: "/a/b".into() });
        assert_eq!(disk.files().is_empty(), listed.is_err(), "seed {seed}");
    }
}

/// What became of a write of two sectors that was in flight when its process was killed.
fn kill_with_a_write_in_flight(seed: u64) -> (SimDisk, Vec<Option<u8>>) {
    let disk = SimDisk::new(seed);
    let process = Process::new(&disk);
    let file = process.open("/file", LOCKED);
    process.done(write(&file, 0, filled(1, 2)));
    process.done(write(&file, 1024, filled(5, 1)));
    process.begin(0, write(&file, 0, filled(2, 2)));
    disk.kill_process(process.storage.process());
    let sectors = sectors_of(&disk, "/file");
    assert_eq!(sectors[2], Some(5), "what completed survives the process");
    // The dead process's objects may live on in the simulator for a while.
    drop((process, file));
    (disk, sectors)
}

#[test]
fn a_killed_process_leaves_writes_whole_in_part_or_not_at_all() {
    let outcomes: BTreeSet<_> = (0..SEEDS).map(|seed| kill_with_a_write_in_flight(seed).1).collect();
    let pairs: BTreeSet<_> = outcomes.iter().map(|sectors| (sectors[0], sectors[1])).collect();
    let all = [1, 2].map(|first| [1, 2].map(|second| (Some(first), Some(second)))).concat();
    assert_eq!(pairs, all.into_iter().collect(), "and never torn");
}

#[test]
fn a_killed_process_leaves_names_changed_or_not_but_settled() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let process = Process::new(&disk);
        drop(process.open("/from", NEW));
        process.begin(0, Op::Publish { from: "/from".into(), to: "/to".into() });
        disk.kill_process(process.storage.process());
        assert_eq!(disk.in_flight(), 0, "seed {seed}");
        outcomes.insert(disk.files());
    }
    assert_eq!(outcomes, BTreeSet::from([vec![PathBuf::from("/from")], vec![PathBuf::from("/to")]]));
}

#[test]
fn a_late_write_holds_the_lock_until_it_has_landed() {
    let mut late = 0;
    let mut changed = 0;
    for seed in 0..SEEDS {
        let (disk, before) = kill_with_a_write_in_flight(seed);
        let is_late = disk.in_flight() > 0;
        late += u64::from(is_late);
        let next = Process::new(&disk);
        let open = |lock| Op::Open { path: "/file".into(), options: OpenOptions { lock, ..LOCKED } };
        // The world is asked directly, since a step could land the write first.
        let tried = next.try_now(open(Lock::Try));
        assert_eq!(tried.is_err(), is_late, "seed {seed}");
        if let Err(error) = &tried {
            assert_eq!(error.kind(), ErrorKind::Locked);
        }
        drop(tried);
        let waited = next.call(open(Lock::Wait));
        assert!(waited.is_ok());
        assert_eq!(disk.in_flight(), 0, "seed {seed}: the lock was given away before the write landed");
        let after = sectors_of(&disk, "/file");
        assert!(is_late || after == before, "seed {seed}: a write landed without holding the lock");
        changed += u64::from(after != before);
    }
    assert!(late > SEEDS / 10, "writes land late in some runs");
    assert!(changed > SEEDS / 20, "and then change the file under the new process");
}

impl Process {
    /// Completes an operation with nothing else happening.
    fn try_now(&self, op: Op) -> Result<Outcome> {
        let world = &mut *self.disk.0.borrow_mut();
        let submitted = world.next_moment();
        world.execute(self.storage.process(), submitted, op)
    }
}

#[test]
fn a_power_cut_frees_locks_and_ends_late_writes() {
    for seed in 0..SEEDS {
        let (disk, _) = kill_with_a_write_in_flight(seed);
        disk.power_cut();
        assert_eq!(disk.in_flight(), 0);
        if disk.files().is_empty() {
            continue;
        }
        let next = Process::new(&disk);
        drop(next.open("/file", LOCKED));
    }
}

#[test]
fn a_dead_process_does_nothing() {
    let disk = SimDisk::new(1);
    let process = Process::new(&disk);
    let file = durable_file(&process, "/file", 1, 1);
    disk.kill_process(process.storage.process());
    process.begin(0, write(&file, 0, filled(2, 1)));
    disk.run();
    process.storage.wait();
    assert!(process.reap().is_empty());
    assert_eq!(sectors_of(&disk, "/file"), [Some(1)]);
}

#[test]
fn after_a_failed_sync_a_later_one_does_not_bring_it_back() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let process = Process::new(&disk);
        let file = durable_file(&process, "/file", 1, 2);
        process.done(write(&file, 0, filled(2, 1)));
        disk.fail_next(Matcher::kind(OpKind::Sync), FaultKind::Io);
        assert_eq!(process.call(sync(&file)).expect_err("planned").kind(), ErrorKind::Io);
        process.done(sync(&file));
        assert_eq!(process.read(&file, 0, 512), [2; 512], "it stays in sight");
        process.done(write(&file, 512, filled(3, 1)));
        process.done(sync(&file));
        disk.power_cut();
        let sectors = sectors_of(&disk, "/file");
        assert_eq!(sectors[1], Some(3), "what was written after the failure is covered again");
        lost += u64::from(sectors[0] == Some(1));
    }
    assert!((SEEDS / 10..SEEDS).contains(&lost), "{lost}");
}

#[test]
fn rot_stays_at_its_place() {
    for unsynced in [false, true] {
        let disk = SimDisk::new(3);
        let process = Process::new(&disk);
        let file = durable_file(&process, "/file", 0x10, 2);
        if unsynced {
            process.done(write(&file, 0, filled(0x20, 2)));
        }
        let before = process.read(&file, 512, 512)[0];
        assert!(disk.rot(Path::new("/file"), 512, 0));
        assert!(!disk.rot(Path::new("/file"), 5000, 0), "nothing is stored there");
        assert_eq!(process.read(&file, 512, 512)[..2], [before ^ 1, before]);
        process.done(sync(&file));
        disk.power_cut();
        let bytes = disk.read_file(Path::new("/file")).expect("the file survives");
        assert_eq!(bytes[512..514], [before ^ 1, before]);
        let process = Process::new(&disk);
        let file = process.open("/file", NEW);
        process.done(write(&file, 512, filled(0x30, 1)));
        assert_eq!(process.read(&file, 512, 512), [0x30; 512], "writing anew heals it");
    }
}

#[test]
fn rot_is_repeatable() {
    let place = |seed, rot_seed| {
        let disk = SimDisk::new(seed);
        let process = Process::new(&disk);
        drop(durable_file(&process, "/file", 1, 64));
        drop(durable_file(&process, "/spared", 1, 64));
        disk.rot_somewhere(rot_seed, |path| path != Path::new("/spared"))
    };
    let places: Vec<Rot> = (0..50).map(|seed| place(1, seed).expect("something is stored")).collect();
    assert!(places.iter().all(|rot| rot.path == Path::new("/file") && rot.offset < 64 * 512));
    assert_eq!(place(2, 0), Some(places[0].clone()), "whatever the disk's own seed");
    assert!(places.iter().map(|rot| rot.offset).collect::<BTreeSet<_>>().len() > 40);
    assert_eq!(SimDisk::new(0).rot_somewhere(1, |_| true), None);
}

#[test]
fn planned_faults_hit_what_they_match() {
    let disk = SimDisk::new(5);
    let process = Process::new(&disk);
    let (one, other) = (durable_file(&process, "/one", 1, 1), durable_file(&process, "/other", 1, 1));
    disk.fail_next(Matcher::kind(OpKind::Write).path("other").after(1), FaultKind::NoSpace);
    process.done(write(&one, 0, filled(2, 1)));
    process.done(write(&other, 0, filled(2, 1)));
    process.done(write(&one, 0, filled(2, 1)));
    let error = process.call(write(&other, 0, filled(3, 1))).expect_err("planned");
    assert_eq!(
        (error.kind(), error.path(), error.offset()),
        (ErrorKind::NoSpace, Some(Path::new("/other")), Some(0))
    );
    assert_eq!(process.read(&other, 0, 512), [2; 512]);
    assert_eq!(disk.planned_faults(), 0);
    process.done(write(&other, 0, filled(3, 1)));
    disk.fail_next(Matcher::kind(OpKind::Read).process(process.storage.process()), FaultKind::Io);
    let read = Op::Read { file: one.clone(), offset: 0, buffer: Buffer::zeroed(512) };
    assert_eq!(process.call(read).expect_err("planned").kind(), ErrorKind::Io);
}

#[test]
fn a_failed_publish_may_have_happened() {
    let mut happened = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let process = Process::new(&disk);
        drop(process.open("/from", NEW));
        disk.fail_next(Matcher::kind(OpKind::Publish), FaultKind::Io);
        let publish = Op::Publish { from: "/from".into(), to: "/to".into() };
        assert_eq!(process.call(publish).expect_err("planned").kind(), ErrorKind::Io);
        happened.insert(disk.files());
    }
    assert_eq!(happened.len(), 2, "{happened:?}");
}

#[test]
fn a_short_write_leaves_a_prefix() {
    let mut lengths = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let process = Process::new(&disk);
        let file = process.open("/file", NEW);
        disk.fail_next(Matcher::kind(OpKind::Write), FaultKind::Short);
        assert_eq!(process.call(write(&file, 0, filled(2, 3))).expect_err("planned").kind(), ErrorKind::Io);
        let sectors = sectors_of(&disk, "/file");
        assert!(sectors.iter().all(|sector| *sector == Some(2)));
        lengths.insert(sectors.len());
    }
    assert_eq!(lengths, BTreeSet::from([0, 1, 2, 3]));
}

#[test]
fn rates_make_faults_by_chance() {
    let disk = SimDisk::new(1);
    let process = Process::new(&disk);
    let file = durable_file(&process, "/file", 1, 1);
    disk.set_fault_rates(FaultRates { write_io: 250_000, ..FaultRates::default() });
    let failed = (0..1000).filter(|_| process.call(write(&file, 0, filled(2, 1))).is_err()).count();
    assert!((150..350).contains(&failed), "{failed} of 1000 at one in four");
    disk.clear_faults();
    assert!((0..100).all(|_| process.call(write(&file, 0, filled(2, 1))).is_ok()));
}

#[test]
fn a_full_disk_has_no_space_until_some_is_given_back() {
    let disk = SimDisk::new(1);
    let process = Process::new(&disk);
    disk.set_capacity(Some(16 << 10));
    let file = process.open("/file", NEW);
    process.done(Op::SetLength { file: file.clone(), length: 1 << 40 });
    process.done(write(&file, 1 << 30, filled(1, 32)));
    assert_eq!(disk.allocated_bytes(), 16 << 10);
    let error = process.call(write(&file, 0, filled(1, 1))).expect_err("full");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    process.done(write(&file, 1 << 30, filled(2, 32)));
    let start = 1 << 30;
    process.done(Op::Zero { file: file.clone(), range: start..start + 8192, keep_allocated: false });
    process.done(write(&file, 0, filled(1, 1)));
    process.done(Op::Remove { path: "/file".into() });
    assert_eq!(disk.allocated_bytes(), 12 << 10, "an open file keeps its space");
    process.done(sync_directory("/"));
    drop(file);
    process.done(Op::List { path: "/".into() });
    assert_eq!(disk.allocated_bytes(), 0);
}

/// A workload that draws on everything.
fn fingerprint_of_a_run(seed: u64) -> u64 {
    let disk = SimDisk::new(seed);
    let mut random = Random::new(seed);
    for _ in 0..5 {
        let process = Process::new(&disk);
        let file = process.open("/file", OpenOptions { lock: Lock::Wait, ..LOCKED });
        for token in 0..40 {
            let sectors = 1 + random.index(8);
            let offset = random.below(64) * 512;
            process.begin(token, write(&file, offset, filled(u8::try_from(token).expect("small"), sectors)));
            if random.chance(1, 4) {
                process.begin(1000 + token, sync(&file));
            }
            if random.chance(1, 2) {
                disk.step();
            }
        }
        if random.chance(1, 2) {
            disk.power_cut();
        } else {
            disk.kill_process(process.storage.process());
        }
    }
    disk.fingerprint()
}

#[test]
fn one_seed_is_one_run() {
    let fingerprints: Vec<u64> = (0..20).map(fingerprint_of_a_run).collect();
    assert!((0..20).zip(&fingerprints).all(|(seed, found)| fingerprint_of_a_run(seed) == *found));
    assert_eq!(fingerprints.iter().collect::<BTreeSet<_>>().len(), 20);
}

#[test]
fn the_trace_tells_what_happened() {
    let disk = SimDisk::new(1);
    let lines = Rc::new(RefCell::new(Vec::new()));
    let kept = Rc::clone(&lines);
    disk.set_trace(Some(Box::new(move |line| kept.borrow_mut().push(line.to_owned()))));
    let process = Process::new(&disk);
    drop(durable_file(&process, "/file", 1, 2));
    disk.power_cut();
    let lines = lines.borrow();
    assert!(lines.iter().any(|line| line.ends_with("write /file 0+1024")), "{lines:?}");
    assert_eq!(lines.last().map(String::as_str), Some("the power is cut"));
    assert_eq!(disk.count(OpKind::Write), 1);
}

#[test]
fn an_image_brings_back_the_whole_disk() {
    let disk = SimDisk::new(1);
    let process = Process::new(&disk);
    process.done(Op::CreateDirectory { path: "/data".into() });
    let file = process.open("/data/file", NEW);
    process.done(write(&file, 0, filled(1, 2)));
    let image = disk.image();
    process.done(write(&file, 0, filled(2, 2)));
    drop(process.open("/data/later", NEW));
    drop((file, process));
    disk.restore(&image);
    disk.power_cut();
    assert_eq!(disk.files(), [PathBuf::from("/data/file")]);
    assert_eq!(sectors_of(&disk, "/data/file"), [Some(1), Some(1)]);
}

#[test]
#[should_panic(expected = "waits for a lock that nobody will release")]
fn waiting_for_a_lock_for_ever_is_noticed() {
    let disk = SimDisk::new(1);
    let process = Process::new(&disk);
    let _held = process.open("/file", LOCKED);
    let second = SimStorage::new(&disk);
    let options = OpenOptions { lock: Lock::Wait, ..LOCKED };
    second.submit(Token(0), Op::Open { path: "/file".into(), options });
    second.wait();
}
