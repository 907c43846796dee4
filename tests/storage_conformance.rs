//! One suite for every storage back end: what code above the seam relies on, whichever runs below it.
//!
//! Each test runs on each back end, and each process that a test starts asserts which back end it really got. What
//! only operating-system back ends have (refusing file systems, full devices) is at the end.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use afterimage::error::{ErrorKind, Result};
use afterimage::storage::{
    Access, Backend, BackendOptions, Buffer, Completion, Create, File, Lock, Op, OpenOptions, Outcome,
    Preference, Slice, Storage, Token, open_best,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Small, so that tests overflow the ring.
const QUEUE_DEPTH: u32 = 8;
const WORKERS: usize = 3;

const LOCKED: OpenOptions =
    OpenOptions { access: Access::ReadWrite, create: Create::Existing, lock: Lock::Try, direct: false };
const DIRECT: OpenOptions =
    OpenOptions { access: Access::ReadWrite, create: Create::IfMissing, lock: Lock::None, direct: true };

/// A place for files, and the kind of back end that its processes run.
struct Machine {
    backend: Backend,
    directory: PathBuf,
    _temporary: Option<TempDir>,
    #[cfg(feature = "sim")]
    disk: afterimage::storage::sim::SimDisk,
}

impl Machine {
    fn new(backend: Backend) -> Machine {
        Machine::within(backend, Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    fn within(backend: Backend, parent: &Path) -> Machine {
        let temporary = (backend != Backend::Simulated)
            .then(|| tempfile::tempdir_in(parent).expect("the target directory takes a temporary one"));
        let directory = temporary.as_ref().map_or(PathBuf::from("/data"), |kept| kept.path().to_owned());
        let machine = Machine {
            backend,
            directory,
            _temporary: temporary,
            #[cfg(feature = "sim")]
            disk: afterimage::storage::sim::SimDisk::new(0x5eed),
        };
        machine.process().done(Op::CreateDirectory { path: machine.directory.clone() });
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A back end of its own over the same files.
    fn process(&self) -> Process {
        let preference = match self.backend {
            Backend::Uring => Preference::Uring,
            Backend::Blocking => Preference::Blocking,
            Backend::Simulated => return Process::new(self.simulated()),
        };
        let options = BackendOptions { preference, queue_depth: QUEUE_DEPTH, workers: WORKERS };
        let chosen = open_best(&options).expect("every back end works where the suite runs");
        assert_eq!(chosen.fallback, None);
        assert_eq!(chosen.storage.backend(), self.backend, "the back end that was asked for really runs");
        Process::new(chosen.storage)
    }

    #[cfg(feature = "sim")]
    fn simulated(&self) -> Box<dyn Storage> {
        let storage = afterimage::storage::sim::SimStorage::new(&self.disk);
        assert_eq!(storage.backend(), Backend::Simulated);
        Box::new(storage)
    }

    #[cfg(not(feature = "sim"))]
    fn simulated(&self) -> Box<dyn Storage> {
        unreachable!("the simulated disk is tested with the feature `sim`")
    }
}

/// One owner of a back end.
struct Process {
    storage: Box<dyn Storage>,
    next_token: Cell<u64>,
    arrived: RefCell<HashMap<Token, Result<Outcome>>>,
}

impl Process {
    fn new(storage: Box<dyn Storage>) -> Process {
        Process { storage, next_token: Cell::new(0), arrived: RefCell::default() }
    }

    fn submit(&self, op: Op) -> Token {
        let token = Token(self.next_token.get());
        self.next_token.set(token.0 + 1);
        self.storage.submit(token, op);
        token
    }

    fn reap(&self) -> usize {
        let mut completions = Vec::new();
        self.storage.reap(&mut completions);
        let count = completions.len();
        for Completion { token, result } in completions {
            assert!(token.0 < self.next_token.get(), "{token:?} was never submitted");
            let before = self.arrived.borrow_mut().insert(token, result);
            assert!(before.is_none(), "{token:?} completed twice");
        }
        count
    }

    fn finish(&self, token: Token) -> Result<Outcome> {
        self.storage.start();
        loop {
            self.reap();
            if let Some(result) = self.arrived.borrow_mut().remove(&token) {
                return result;
            }
            self.storage.wait();
        }
    }

    fn call(&self, op: Op) -> Result<Outcome> {
        self.finish(self.submit(op))
    }

    fn done(&self, op: Op) {
        let outcome = self.call(op).expect("the operation succeeds");
        assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    }

    fn kind(&self, op: Op) -> ErrorKind {
        self.call(op).expect_err("the operation is refused").kind()
    }

    fn try_open(&self, path: &Path, options: OpenOptions) -> Result<File> {
        self.call(Op::Open { path: path.to_owned(), options }).map(opened)
    }

    fn open(&self, path: &Path, options: OpenOptions) -> File {
        self.try_open(path, options).expect("the file opens")
    }

    fn write(&self, file: &File, offset: u64, data: Slice) {
        self.done(Op::Write { file: file.clone(), offset, data });
    }

    fn try_read(&self, file: &File, offset: u64, len: usize) -> Result<Buffer> {
        let mut buffer = Buffer::recycled(len);
        // So that a read which fills nothing shows.
        buffer.fill(0xee);
        match self.call(Op::Read { file: file.clone(), offset, buffer })? {
            Outcome::Read(buffer) => Ok(buffer),
            other => panic!("{other:?}"),
        }
    }

    fn read(&self, file: &File, offset: u64, len: usize) -> Buffer {
        self.try_read(file, offset, len).expect("the range can be read")
    }

    fn length(&self, file: &File) -> u64 {
        match self.call(Op::Length { file: file.clone() }).expect("a file has a length") {
            Outcome::Length(length) => length,
            other => panic!("{other:?}"),
        }
    }

    fn data_ranges(&self, file: &File, range: Range<u64>) -> Vec<Range<u64>> {
        match self.call(Op::DataRanges { file: file.clone(), range }).expect("a file has data ranges") {
            Outcome::Ranges(ranges) => ranges,
            other => panic!("{other:?}"),
        }
    }

    fn names(&self, path: &Path) -> Vec<String> {
        match self.call(Op::List { path: path.to_owned() }).expect("the directory can be listed") {
            Outcome::Names(names) => names,
            other => panic!("{other:?}"),
        }
    }
}

fn opened(outcome: Outcome) -> File {
    match outcome {
        Outcome::Opened(file) => file,
        other => panic!("{other:?}"),
    }
}

/// `len` bytes that tell `seed` and their own place.
fn pattern(seed: u64, len: u64) -> Slice {
    let mut buffer = Buffer::zeroed(usize::try_from(len).expect("64 bits"));
    for (index, word) in buffer.chunks_mut(8).enumerate() {
        let value = (seed << 32 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
    buffer.freeze()
}

fn remove(path: &Path) -> Op {
    Op::Remove { path: path.to_owned() }
}

fn publish(from: &Path, to: &Path) -> Op {
    Op::Publish { from: from.to_owned(), to: to.to_owned() }
}

fn a_write_is_read_back(machine: &Machine) {
    let process = machine.process();
    for direct in [false, true] {
        let path = machine.path(if direct { "direct" } else { "buffered" });
        let file = process.open(&path, OpenOptions { direct, ..OpenOptions::CREATE });
        assert_eq!(file.is_direct(), direct, "the suite needs a file system with O_DIRECT");
        assert_eq!(file.path(), path);
        process.write(&file, 0, pattern(1, 64 * KIB));
        process.write(&file, 4 * KIB, pattern(2, 512));
        process.done(Op::Sync { file: file.clone() });
        assert_eq!(process.length(&file), 64 * KIB);
        assert_eq!(process.read(&file, 4 * KIB, 512)[..], pattern(2, 512)[..]);
        let whole = process.read(&file, 0, 64 << 10);
        assert_eq!(whole[..4 << 10], pattern(1, 64 * KIB)[..4 << 10]);
        assert_eq!(whole[4608..], pattern(1, 64 * KIB)[4608..]);
        drop(file);
        let other = machine.process();
        let again = other.open(&path, OpenOptions::READ);
        assert_eq!(other.read(&again, 0, 64 << 10)[..], whole[..]);
    }
}

fn odd_ranges_are_fine_without_direct(machine: &Machine) {
    let process = machine.process();
    let file = process.open(&machine.path("odd"), OpenOptions::CREATE);
    process.write(&file, 7, pattern(3, 1001));
    assert_eq!(process.length(&file), 1008);
    assert_eq!(process.read(&file, 0, 7)[..], [0; 7]);
    assert_eq!(process.read(&file, 8, 1000)[..], pattern(3, 1001)[1..]);
    assert_eq!(process.read(&file, 1 << 40, 0).len(), 0, "nothing is anywhere");
    process.write(&file, 1 << 40, pattern(3, 0));
    assert_eq!(process.length(&file), 1008);
}

fn reading_past_the_end_is_corrupt(machine: &Machine) {
    let process = machine.process();
    for direct in [false, true] {
        let path = machine.path(if direct { "short-direct" } else { "short" });
        let plain = process.open(&path, OpenOptions::CREATE);
        process.write(&plain, 0, pattern(4, 4096 + 1000));
        let file = process.open(&path, OpenOptions { direct, ..OpenOptions::READ });
        for (offset, len) in [(0, 8192), (4096, 4096), (4096, 1024), (8192, 512), (1 << 30, 512)] {
            let error = process.try_read(&file, offset, len).expect_err("the file is shorter");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert_eq!((error.path(), error.offset()), (Some(&*path), Some(offset)), "{error}");
        }
        assert_eq!(process.read(&file, 4096, 512)[..], pattern(4, 5096)[4096..4608]);
    }
}

fn errors_name_their_kind_and_path(machine: &Machine) {
    let process = machine.process();
    let (here, absent) = (machine.path("here"), machine.path("absent"));
    drop(process.open(&here, OpenOptions::CREATE));
    let open = |path: &Path, options| Op::Open { path: path.to_owned(), options };
    assert_eq!(process.kind(open(&absent, OpenOptions::READ)), ErrorKind::NotFound);
    assert_eq!(process.kind(open(&here, OpenOptions::CREATE)), ErrorKind::AlreadyExists);
    assert_eq!(process.kind(open(&absent.join("x"), OpenOptions::CREATE)), ErrorKind::NotFound);
    assert_eq!(process.kind(remove(&absent)), ErrorKind::NotFound);
    assert_eq!(process.kind(Op::List { path: absent.clone() }), ErrorKind::NotFound);
    assert_eq!(process.kind(Op::SyncDirectory { path: absent.clone() }), ErrorKind::NotFound);
    assert_eq!(process.kind(Op::Space { path: absent.clone() }), ErrorKind::NotFound);
    assert_eq!(process.kind(Op::RemoveDirectory { path: absent.clone() }), ErrorKind::NotFound);
    assert_eq!(process.kind(publish(&absent, &machine.path("to"))), ErrorKind::NotFound);
    assert_eq!(process.kind(Op::RemoveDirectory { path: machine.directory.clone() }), ErrorKind::Io);
    assert_eq!(process.kind(remove(&machine.directory)), ErrorKind::Io);
    let error = process.call(open(&absent, OpenOptions::READ)).expect_err("absent");
    assert_eq!(error.path(), Some(&*absent));
    let read_only = process.open(&here, OpenOptions::READ);
    let refused = process.call(Op::Write { file: read_only, offset: 512, data: pattern(0, 512) });
    let refused = refused.expect_err("the file was opened to read");
    assert_eq!((refused.kind(), refused.path(), refused.offset()), (ErrorKind::Io, Some(&*here), Some(512)));
}

fn create_decides_about_what_is_there(machine: &Machine) {
    let process = machine.process();
    let path = machine.path("file");
    let if_missing = OpenOptions { create: Create::IfMissing, ..OpenOptions::CREATE };
    let file = process.open(&path, if_missing);
    process.write(&file, 0, pattern(5, 512));
    drop(file);
    let file = process.open(&path, if_missing);
    assert_eq!(process.length(&file), 512, "opening does not truncate");
}

fn names_come_and_go(machine: &Machine) {
    let process = machine.process();
    let nested = machine.path("a/b/c");
    process.done(Op::CreateDirectory { path: nested.clone() });
    process.done(Op::CreateDirectory { path: nested.clone() });
    for name in ["zebra", "ant", "mole"] {
        drop(process.open(&nested.join(name), OpenOptions::CREATE));
    }
    assert_eq!(process.names(&nested), ["ant", "mole", "zebra"]);
    assert_eq!(process.names(&machine.directory), ["a"]);
    process.done(remove(&nested.join("mole")));
    assert_eq!(process.names(&nested), ["ant", "zebra"]);
    process.done(Op::SyncDirectory { path: nested.clone() });
    match process.call(Op::Space { path: nested.clone() }) {
        Ok(Outcome::Space(space)) => assert!(space.free > 0 && space.free <= space.total, "{space:?}"),
        other => panic!("how full is it? {other:?}"),
    }
    assert_eq!(process.kind(Op::RemoveDirectory { path: nested.clone() }), ErrorKind::Io);
    process.done(remove(&nested.join("ant")));
    process.done(remove(&nested.join("zebra")));
    process.done(Op::RemoveDirectory { path: nested });
    assert_eq!(process.names(&machine.path("a/b")), [""; 0]);
}

fn a_removed_file_lives_while_it_is_open(machine: &Machine) {
    let process = machine.process();
    let path = machine.path("file");
    let file = process.open(&path, OpenOptions::CREATE);
    process.write(&file, 0, pattern(6, 512));
    process.done(remove(&path));
    let second = process.open(&path, OpenOptions::CREATE);
    assert_eq!(process.length(&second), 0);
    assert_eq!(process.read(&file, 0, 512)[..], pattern(6, 512)[..]);
}

fn publishing_never_replaces(machine: &Machine) {
    let process = machine.process();
    let (from, to) = (machine.path("temporary"), machine.path("final"));
    let file = process.open(&from, OpenOptions::CREATE);
    process.write(&file, 0, pattern(7, 512));
    process.done(publish(&from, &to));
    assert_eq!(process.names(&machine.directory), ["final"]);
    drop(process.open(&from, OpenOptions::CREATE));
    let error = process.call(publish(&from, &to)).expect_err("the name is taken");
    assert_eq!((error.kind(), error.path()), (ErrorKind::AlreadyExists, Some(&*to)));
    assert_eq!(process.names(&machine.directory), ["final", "temporary"], "the loser keeps its name");
    let winner = process.open(&to, OpenOptions::READ);
    assert_eq!(process.read(&winner, 0, 512)[..], pattern(7, 512)[..]);
}

fn of_racing_publishers_one_wins(machine: &Machine) {
    let processes = [machine.process(), machine.process()];
    for round in 0..50 {
        let to = machine.path(&format!("step-{round}"));
        let froms = [machine.path(&format!("a-{round}")), machine.path(&format!("b-{round}"))];
        let mut tokens = Vec::new();
        for (process, from) in processes.iter().zip(&froms) {
            drop(process.open(from, OpenOptions::CREATE));
        }
        for (process, from) in processes.iter().zip(&froms) {
            tokens.push(process.submit(publish(from, &to)));
        }
        processes.iter().for_each(|process| process.storage.start());
        let results: Vec<_> =
            processes.iter().zip(tokens).map(|(process, token)| process.finish(token)).collect();
        let losers: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
        assert_eq!(losers.len(), 1, "one of two wins: {results:?}");
        assert_eq!(losers[0].kind(), ErrorKind::AlreadyExists);
    }
}

fn a_lock_excludes_others(machine: &Machine) {
    let path = machine.path("locked");
    let (first, second) = (machine.process(), machine.process());
    drop(first.open(&path, OpenOptions::CREATE));
    let held = first.open(&path, LOCKED);
    let clone = held.clone();
    let error = second.try_open(&path, LOCKED).expect_err("the lock is held");
    assert_eq!((error.kind(), error.path()), (ErrorKind::Locked, Some(&*path)));
    drop(second.open(&path, OpenOptions::READ));
    drop(held);
    let error = second.try_open(&path, LOCKED).expect_err("a clone holds the lock");
    assert_eq!(error.kind(), ErrorKind::Locked);
    drop(clone);
    // Waiting, for a child that another test starts may hold the descriptor until it runs its program.
    drop(second.open(&path, OpenOptions { lock: Lock::Wait, ..LOCKED }));
}

fn waiting_for_locks_holds_up_nothing_else(machine: &Machine) {
    let (first, second) = (machine.process(), machine.process());
    let wait = OpenOptions { lock: Lock::Wait, ..LOCKED };
    let mut held = Vec::new();
    let mut waiting = Vec::new();
    // More waiters than there are workers.
    for index in 0..2 * WORKERS {
        let path = machine.path(&format!("locked-{index}"));
        drop(first.open(&path, OpenOptions::CREATE));
        held.push(first.open(&path, LOCKED));
        waiting.push(second.submit(Op::Open { path, options: wait }));
    }
    for _ in 0..4 * WORKERS {
        assert_eq!(second.names(&machine.directory).len(), 2 * WORKERS);
    }
    second.reap();
    assert_eq!(second.arrived.borrow().len(), 0, "a lock that is held was given away");
    while let Some(file) = held.pop() {
        let token = waiting.pop().expect("one waits for each");
        let path = file.path().to_owned();
        drop(file);
        let file = opened(second.finish(token).expect("the lock is free"));
        assert_eq!(file.path(), path);
        assert_eq!(first.kind(Op::Open { path, options: LOCKED }), ErrorKind::Locked, "and it is taken");
    }
}

fn a_back_end_can_be_dropped_while_it_waits_for_a_lock(machine: &Machine) {
    let path = machine.path("locked");
    let (first, second) = (machine.process(), machine.process());
    let held = first.open(&path, OpenOptions { lock: Lock::Try, ..OpenOptions::CREATE });
    second.submit(Op::Open { path: path.clone(), options: OpenOptions { lock: Lock::Wait, ..LOCKED } });
    second.storage.start();
    drop(second);
    drop(held);
    // Whoever waited gets it, has no use for it, and gives it back.
    drop(first.open(&path, OpenOptions { lock: Lock::Wait, ..LOCKED }));
}

fn direct_wants_alignment(machine: &Machine) {
    let process = machine.process();
    let path = machine.path("direct");
    let file = process.open(&path, DIRECT);
    assert!(file.is_direct());
    process.write(&file, 0, pattern(8, 8192));
    let shifted = pattern(8, 8192).slice(100..612);
    for (offset, data) in [(100, pattern(8, 512)), (0, pattern(8, 500)), (0, shifted)] {
        let refused = process.call(Op::Write { file: file.clone(), offset, data });
        let error = refused.expect_err("misaligned");
        assert_eq!((error.kind(), error.path()), (ErrorKind::Invalid, Some(&*path)), "{error}");
        assert_eq!(error.offset(), Some(offset));
    }
    for (offset, len) in [(100, 512), (0, 500)] {
        let error = process.try_read(&file, offset, len).expect_err("misaligned");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    process.write(&file, 512, pattern(9, 8192).slice(512..1536));
    assert_eq!(process.read(&file, 512, 1024)[..], pattern(9, 8192)[512..1536]);
}

fn a_longer_file_is_sparse_and_reads_as_zeros(machine: &Machine) {
    let process = machine.process();
    let file = process.open(&machine.path("sparse"), DIRECT);
    process.done(Op::SetLength { file: file.clone(), length: 1 << 40 });
    assert_eq!(process.length(&file), 1 << 40);
    assert_eq!(process.data_ranges(&file, 0..1 << 40), []);
    assert!(process.read(&file, 1 << 39, 64 << 10).iter().all(|&byte| byte == 0));
    for offset in [MIB, 5 * MIB, 1 << 39] {
        process.write(&file, offset, pattern(10, 64 * KIB));
    }
    process.done(Op::Sync { file: file.clone() });
    let data = |start: u64| start..start + 64 * KIB;
    assert_eq!(process.data_ranges(&file, 0..1 << 40), [data(MIB), data(5 * MIB), data(1 << 39)]);
    let part = MIB + 4 * KIB..5 * MIB + 8 * KIB;
    assert_eq!(
        process.data_ranges(&file, part),
        [MIB + 4 * KIB..MIB + 64 * KIB, 5 * MIB..5 * MIB + 8 * KIB],
        "answers stay within the question"
    );
    process.done(Op::SetLength { file: file.clone(), length: MIB + 32 * KIB });
    assert_eq!(process.data_ranges(&file, 0..1 << 40), std::slice::from_ref(&(MIB..MIB + 32 * KIB)));
    process.done(Op::SetLength { file: file.clone(), length: 8 * MIB });
    let tail = process.read(&file, MIB, 64 << 10);
    assert_eq!(tail[..32 << 10], pattern(10, 64 * KIB)[..32 << 10]);
    assert!(tail[32 << 10..].iter().all(|&byte| byte == 0), "what was cut off does not come back");
}

fn evicting_loses_nothing_that_was_written(machine: &Machine) {
    for direct in [false, true] {
        let process = machine.process();
        let options = OpenOptions { direct, ..DIRECT };
        let file = process.open(&machine.path(&format!("evict-{direct}")), options);
        process.write(&file, 0, pattern(12, MIB));
        process.done(Op::Sync { file: file.clone() });
        process.write(&file, 64 * KIB, pattern(13, 64 * KIB));
        process.done(Op::Evict { file: file.clone() });
        let mut expected = pattern(12, MIB).to_vec();
        expected[64 << 10..128 << 10].copy_from_slice(&pattern(13, 64 * KIB));
        assert!(process.read(&file, 0, 1 << 20)[..] == expected[..]);
    }
}

fn zeroing_zeroes_what_was_asked(machine: &Machine) {
    let process = machine.process();
    for keep_allocated in [false, true] {
        let file = process.open(&machine.path(&format!("zero-{keep_allocated}")), DIRECT);
        process.write(&file, 0, pattern(11, MIB));
        process.done(Op::Sync { file: file.clone() });
        let zero = |range: Range<u64>| Op::Zero { file: file.clone(), range, keep_allocated };
        process.done(zero(256 * KIB..512 * KIB));
        process.done(zero(1024..1536));
        process.done(zero(960 * KIB..4 * MIB));
        process.done(zero(8 * MIB..9 * MIB));
        assert_eq!(process.length(&file), MIB, "zeroing does not lengthen a file");
        let mut expected = pattern(11, MIB).to_vec();
        for range in [256 << 10..512 << 10, 1024..1536, 960 << 10..1 << 20] {
            expected[range].fill(0);
        }
        let found = process.read(&file, 0, 1 << 20);
        assert!(found[..] == expected[..], "keep_allocated: {keep_allocated}");
        if !keep_allocated {
            assert_eq!(
                process.data_ranges(&file, 0..MIB),
                [0..256 * KIB, 512 * KIB..960 * KIB],
                "space is given back"
            );
        }
    }
}

fn a_short_last_page_is_given_back(machine: &Machine) {
    let process = machine.process();
    let file = process.open(&machine.path("short-end"), OpenOptions::CREATE);
    let length = 8 * KIB + 1536;
    process.write(&file, 0, pattern(12, length));
    process.done(Op::Zero { file: file.clone(), range: 8 * KIB..length, keep_allocated: false });
    assert_eq!(process.length(&file), length);
    assert_eq!(process.data_ranges(&file, 0..length), std::slice::from_ref(&(0..8 * KIB)));
    assert!(process.read(&file, 8 * KIB, 1536).iter().all(|&byte| byte == 0));
}

fn many_operations_complete_once_each(machine: &Machine) {
    const COUNT: u64 = 500;
    let process = machine.process();
    let file = process.open(&machine.path("many"), DIRECT);
    let write = |index: u64| Op::Write {
        file: file.clone(),
        offset: index * 4 * KIB,
        data: pattern(100 + index, 4 * KIB),
    };
    let writes: Vec<Token> = (0..COUNT).map(|index| process.submit(write(index))).collect();
    for token in writes.into_iter().rev() {
        process.finish(token).expect("the write succeeds");
    }
    let read = |index: u64| Op::Read {
        file: file.clone(),
        offset: index * 4 * KIB,
        buffer: Buffer::zeroed(4 << 10),
    };
    let reads: Vec<Token> = (0..COUNT).map(|index| process.submit(read(index))).collect();
    let sync = process.submit(Op::Sync { file: file.clone() });
    let listing = process.submit(Op::List { path: machine.directory.clone() });
    for (index, token) in (0..COUNT).zip(reads) {
        match process.finish(token).expect("the read succeeds") {
            Outcome::Read(buffer) => assert_eq!(buffer[..], pattern(100 + index, 4 * KIB)[..]),
            other => panic!("{other:?}"),
        }
    }
    process.finish(sync).expect("the sync succeeds");
    process.finish(listing).expect("the listing succeeds");
    assert_eq!(process.arrived.borrow().len(), 0, "nothing completes that was not submitted");
    process.storage.wait();
}

fn large_transfers_are_whole(machine: &Machine) {
    let process = machine.process();
    for direct in [false, true] {
        let path = machine.path(&format!("large-{direct}"));
        let file = process.open(&path, OpenOptions { direct, ..OpenOptions::CREATE });
        let data = pattern(12, 8 * MIB);
        process.write(&file, 4 * KIB, data.clone());
        assert_eq!(process.length(&file), 8 * MIB + 4 * KIB);
        assert!(process.read(&file, 4 * KIB, 8 << 20)[..] == data[..]);
    }
}

fn readiness_tells_of_completions(machine: &Machine) {
    let process = machine.process();
    let Some(ready) = process.storage.readiness() else {
        assert_eq!(machine.backend, Backend::Simulated, "only the simulated disk has nothing to poll");
        return;
    };
    let is_ready = |seconds: i64| {
        let mut descriptors = [PollFd::new(&ready, PollFlags::IN)];
        let timeout = Timespec { tv_sec: seconds, tv_nsec: 0 };
        loop {
            match poll(&mut descriptors, Some(&timeout)) {
                Ok(count) => return count == 1,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => panic!("{errno}"),
            }
        }
    };
    let file = process.open(&machine.path("ready"), DIRECT);
    for round in 0..20 {
        // It may have been raised once more than there was to reap, but not for ever.
        assert!((0..3).any(|_| process.reap() == 0 && !is_ready(0)), "readable with nothing to reap");
        let op = match round % 3 {
            0 => Op::Write { file: file.clone(), offset: 0, data: pattern(round, 64 * KIB) },
            1 => Op::Sync { file: file.clone() },
            _ => Op::List { path: machine.directory.clone() },
        };
        let token = process.submit(op);
        process.storage.start();
        while !process.arrived.borrow().contains_key(&token) {
            assert!(is_ready(30), "a completion that nobody was told of");
            process.reap();
        }
        process.arrived.borrow_mut().clear();
    }
}

fn dropping_with_operations_in_flight_is_safe(machine: &Machine) {
    const BLOCK: u64 = 256 * KIB;
    const COUNT: u64 = 32;
    let path = machine.path("dropped");
    let process = machine.process();
    let file = process.open(&path, OpenOptions { lock: Lock::Try, ..DIRECT });
    process.write(&file, 0, pattern(20, COUNT * BLOCK));
    for index in 0..COUNT {
        let write = Op::Write { file: file.clone(), offset: index * BLOCK, data: pattern(index, BLOCK) };
        process.submit(write);
        let buffer = Buffer::recycled(256 << 10);
        process.submit(Op::Read { file: file.clone(), offset: index * BLOCK, buffer });
    }
    process.storage.start();
    drop(file);
    drop(process);
    let process = machine.process();
    let file = process.open(&path, OpenOptions::OWNED);
    assert_eq!(process.length(&file), COUNT * BLOCK);
    let old = pattern(20, COUNT * BLOCK);
    for index in 0..COUNT {
        let found = process.read(&file, index * BLOCK, 256 << 10);
        let new = pattern(index, BLOCK);
        let start = usize::try_from(index * BLOCK).expect("64 bits");
        let old = &old[start..start + (256 << 10)];
        assert!(found[..] == new[..] || found[..] == *old, "block {index} is neither old nor new");
    }
}

/// What only operating-system back ends meet.
mod operating_system {
    use super::*;

    pub(crate) fn a_full_device_is_no_space(machine: &Machine) {
        let process = machine.process();
        let path = Path::new("/dev/full");
        let options = OpenOptions { create: Create::Existing, ..OpenOptions::CREATE };
        let file = process.open(path, options);
        let refused = process.call(Op::Write { file, offset: 4096, data: pattern(1, 4096) });
        let error = refused.expect_err("/dev/full is full");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!((error.path(), error.offset()), (Some(path), Some(4096)));
    }

    pub(crate) fn a_file_system_may_refuse_direct(machine: &Machine) {
        let process = machine.process();
        let file =
            process.open(Path::new("/proc/version"), OpenOptions { direct: true, ..OpenOptions::READ });
        assert!(!file.is_direct(), "procfs has no O_DIRECT");
        assert_eq!(process.read(&file, 0, 5)[..], *b"Linux");
    }

    /// tmpfs punches holes but has no FALLOC_FL_ZERO_RANGE.
    pub(crate) fn zeroing_falls_back_to_writing(machine: &Machine) {
        let machine = Machine::within(machine.backend, Path::new("/dev/shm"));
        let process = machine.process();
        let file = process.open(&machine.path("file"), OpenOptions::CREATE);
        process.write(&file, 0, pattern(13, 3 * MIB));
        let range = 4 * KIB..3 * MIB - 8 * KIB;
        process.done(Op::Zero { file: file.clone(), range, keep_allocated: true });
        let mut expected = pattern(13, 3 * MIB).to_vec();
        expected[4 << 10..(3 << 20) - (8 << 10)].fill(0);
        assert!(process.read(&file, 0, 3 << 20)[..] == expected[..]);
        let whole = 0..3 * MIB;
        assert_eq!(
            process.data_ranges(&file, whole.clone()),
            std::slice::from_ref(&whole),
            "it stays allocated"
        );
    }

    pub(crate) fn descriptors_do_not_leak_into_children(machine: &Machine) {
        let process = machine.process();
        let file = process.open(&machine.path("file"), DIRECT);
        let children = std::process::Command::new("/bin/ls").args(["-l", "/proc/self/fd"]).output();
        let listing = children.expect("ls runs");
        let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
        assert!(listing.contains("/proc"), "the listing lists: {listing}");
        let name = file.path().to_str().expect("UTF-8");
        assert!(!listing.contains(name), "a child inherited {name}");
        assert!(!listing.contains("eventfd") && !listing.contains("io_uring"), "{listing}");
    }
}

/// The tests of one back end.
macro_rules! suite {
    ($backend:ident: $($($test:ident)::+),+ $(,)?) => {
        $(suite!(@one $backend, $($test)::+);)+
    };
    (@one $backend:ident, $test:ident) => {
        #[test]
        fn $test() {
            super::$test(&super::Machine::new(super::Backend::$backend));
        }
    };
    (@one $backend:ident, $module:ident::$test:ident) => {
        #[test]
        fn $test() {
            super::$module::$test(&super::Machine::new(super::Backend::$backend));
        }
    };
}

macro_rules! common_suite {
    ($backend:ident) => {
        suite! { $backend:
            a_write_is_read_back,
            odd_ranges_are_fine_without_direct,
            reading_past_the_end_is_corrupt,
            errors_name_their_kind_and_path,
            create_decides_about_what_is_there,
            names_come_and_go,
            a_removed_file_lives_while_it_is_open,
            publishing_never_replaces,
            of_racing_publishers_one_wins,
            a_lock_excludes_others,
            waiting_for_locks_holds_up_nothing_else,
            a_back_end_can_be_dropped_while_it_waits_for_a_lock,
            direct_wants_alignment,
            a_longer_file_is_sparse_and_reads_as_zeros,
            zeroing_zeroes_what_was_asked,
            a_short_last_page_is_given_back,
            evicting_loses_nothing_that_was_written,
            many_operations_complete_once_each,
            large_transfers_are_whole,
            readiness_tells_of_completions,
            dropping_with_operations_in_flight_is_safe,
        }
    };
}

macro_rules! operating_system_suite {
    ($backend:ident) => {
        suite! { $backend:
            operating_system::a_full_device_is_no_space,
            operating_system::a_file_system_may_refuse_direct,
            operating_system::zeroing_falls_back_to_writing,
            operating_system::descriptors_do_not_leak_into_children,
        }
    };
}

mod uring {
    common_suite!(Uring);
    operating_system_suite!(Uring);
}

mod blocking {
    common_suite!(Blocking);
    operating_system_suite!(Blocking);
}

#[cfg(feature = "sim")]
mod simulated {
    common_suite!(Simulated);
}

/// Where io_uring works, it is what the best back end is.
#[test]
fn the_best_back_end_is_io_uring_where_it_works() {
    let best = open_best(&BackendOptions::default()).expect("some back end works");
    let forced = open_best(&BackendOptions { preference: Preference::Uring, ..BackendOptions::default() });
    match forced {
        Ok(_) => assert_eq!((best.storage.backend(), best.fallback), (Backend::Uring, None)),
        Err(error) => {
            assert_eq!((error.kind(), best.storage.backend()), (ErrorKind::Unsupported, Backend::Blocking));
            assert_eq!(best.fallback, Some(error.to_string()));
        }
    }
}
