//! The io_uring back end: reads, writes and syncs go to a ring that one thread owns, all else to a few blocking
//! threads.
//!
//! ```text
//! submit ─▶ waiting ─ start ─▶ submission queue ─ io_uring_enter ─▶ kernel ─▶ completion queue ─ reap ─▶
//!              ▲                                                                    │
//!              └────────────── the rest of a short transfer ────────────────────────┘
//! ```
//!
//! What is accepted waits until [`Storage::start`] hands all of it over with one system call. No more requests are in
//! the ring than its completion queue has entries, so it never overflows; the others wait their turn.
//!
//! **Invariant**: a request's file and buffer sit in the slab of flights from before its entry is pushed until its
//! completion has been taken; the slab's keys are the ring's user data. Dropping waits for every completion, and leaks
//! the slab if the kernel refuses to give them: the kernel never writes into freed memory.
//!
//! One eventfd speaks for ring and threads; see `Signal`. The ring runs its completions only when this thread enters
//! the kernel for it (DEFER_TASKRUN, where there is such), and raises the eventfd when there is something to run.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};

use super::blocking::{Pool, Signal};
use super::slab::Slab;
use super::syscalls::{can_continue, failed, no_progress, past_end};
use super::{Backend, Buffer, Completion, File, Op, Outcome, Slice, Storage, Token};
use crate::error::{Error, ErrorKind, Result};

/// Threads that the kernel may run for operations that block, of each thread that owns a ring. By itself it runs four for each CPU: so many
/// writes to a device that hangs, and no sync of a journal on another device would be done any more. They are there while they are needed.
const KERNEL_WORKERS_MAX: u32 = 1024;

/// The kernel transfers at most 2 GiB less a page at once; a round number below that keeps the rest aligned.
const TRANSFER_BYTES_MAX: usize = 1 << 30;

/// Storage on io_uring; it stays on the thread that made it.
pub struct Uring {
    ring: RefCell<Ring>,
    pool: Pool,
    signal: Arc<Signal>,
    /// The kernel takes requests from the thread that made the ring only.
    owner: PhantomData<*const ()>,
}

/// One request and what it owns.
struct Flight {
    token: Token,
    /// Bytes transferred by earlier entries of this request.
    transferred: usize,
    work: Work,
}

enum Work {
    Read { file: File, offset: u64, buffer: Buffer },
    Write { file: File, offset: u64, data: Slice },
    Sync { file: File },
}

struct Ring {
    ring: IoUring,
    flights: Slab<Flight>,
    /// Keys of flights that have no entry in the ring.
    waiting: VecDeque<usize>,
    /// Entries pushed whose completion has not been taken.
    in_ring: usize,
    in_ring_max: usize,
    /// Whether something that was started already waits for room, for its rest, or for the kernel's memory.
    owed: bool,
}

impl Uring {
    /// A ring for `queue_depth` requests and `workers` threads for what it cannot do; `Unsupported` where io_uring
    /// does not work, with the reason.
    pub fn new(queue_depth: u32, workers: usize) -> Result<Uring> {
        let signal = Arc::new(Signal::new()?);
        let ring = Ring::new(queue_depth)?;
        ring.ring
            .submitter()
            .register_eventfd(signal.as_fd().as_raw_fd())
            .map_err(|error| unsupported("registering an eventfd", &error))?;
        let pool = Pool::new(workers, Arc::clone(&signal))?;
        Ok(Uring { ring: RefCell::new(ring), pool, signal, owner: PhantomData })
    }

    fn has_completions(&self) -> bool {
        self.ring.borrow_mut().has_completions() || self.pool.has_completions()
    }

    fn is_idle(&self) -> bool {
        self.ring.borrow().flights.is_empty() && self.pool.in_flight() == 0
    }
}

impl Storage for Uring {
    fn backend(&self) -> Backend {
        Backend::Uring
    }

    fn submit(&self, token: Token, op: Op) {
        match flight_work(op) {
            Ok(work) => self.ring.borrow_mut().accept(Flight { token, transferred: 0, work }),
            Err(op) => self.pool.submit(token, op),
        }
    }

    fn start(&self) {
        if !self.ring.borrow_mut().start() {
            // Out of kernel memory: the owner comes back at once to try again.
            self.signal.raise();
        }
    }

    fn reap(&self, completions: &mut Vec<Completion>) {
        let mut ring = self.ring.borrow_mut();
        let before = completions.len();
        ring.reap(completions);
        self.pool.reap(completions);
        if completions.len() == before {
            // Raised for nothing: lowered, and looked again, since something may have completed just before. What
            // completes from here on raises it anew. The other order would lose a completion for ever.
            self.signal.lower();
            ring.reap(completions);
            self.pool.reap(completions);
        }
        if ring.owed && !ring.start() {
            self.signal.raise();
        }
    }

    fn wait(&self) {
        loop {
            self.start();
            if self.has_completions() || self.is_idle() {
                return;
            }
            self.signal.wait();
            if self.has_completions() {
                return;
            }
            // Raised for what was reaped already; whatever completes from here on raises it anew.
            self.signal.lower();
            if self.has_completions() {
                self.signal.raise();
                return;
            }
        }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.signal.as_fd())
    }
}

/// What of an operation the ring can do. Empty transfers and misaligned ones, which never reach a device, are left to
/// the threads too, which answer them as every back end does.
fn flight_work(op: Op) -> std::result::Result<Work, Op> {
    let fits = |file: &File, offset: u64, bytes: &[u8]| {
        !bytes.is_empty() && file.check_alignment(offset, bytes).is_ok()
    };
    match op {
        Op::Read { file, offset, buffer } if fits(&file, offset, &buffer) => {
            Ok(Work::Read { file, offset, buffer })
        }
        // What more there is to do after a write, the ring does not.
        Op::Write { file, offset, data } if fits(&file, offset, &data) && file.unsent().is_none() => {
            Ok(Work::Write { file, offset, data })
        }
        Op::Sync { file } => Ok(Work::Sync { file }),
        other => Err(other),
    }
}

fn unsupported(what: &str, error: &io::Error) -> Error {
    Error::new(ErrorKind::Unsupported, format!("io_uring does not work here: {what} failed: {error}"))
}

impl Ring {
    fn new(queue_depth: u32) -> Result<Ring> {
        let mut ring = build(queue_depth).map_err(|error| unsupported("setting up a ring", &error))?;
        probe(&mut ring)?;
        // Best effort: kernels before 5.15 do not know it, and go on with what they have.
        let _ = ring.submitter().register_iowq_max_workers(&mut [KERNEL_WORKERS_MAX, 0]);
        let entries = usize::try_from(queue_depth).expect("32 bits fit 64");
        // The kernel rounds the submission queue up and makes the completion queue twice as long.
        let in_ring_max = ring.completion().capacity();
        let flights = Slab::with_capacity(in_ring_max);
        let waiting = VecDeque::with_capacity(entries);
        Ok(Ring { ring, flights, waiting, in_ring: 0, in_ring_max, owed: false })
    }

    fn accept(&mut self, flight: Flight) {
        let key = self.flights.insert(flight);
        self.waiting.push_back(key);
    }

    /// Hands over what waits, as far as there is room; `false` if the kernel was out of memory.
    fn start(&mut self) -> bool {
        loop {
            self.push_waiting();
            if self.ring.submission().is_empty() {
                break;
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_transient(&error) => {
                    self.owed = true;
                    return false;
                }
                // A wrong descriptor, flag or thread: only our own bug.
                Err(error) => panic!("io_uring_enter refused to submit: {error}"),
            }
        }
        self.owed = !self.waiting.is_empty();
        true
    }

    fn push_waiting(&mut self) {
        let mut submission = self.ring.submission();
        while self.in_ring < self.in_ring_max && !submission.is_full() {
            let Some(key) = self.waiting.pop_front() else { return };
            let entry = self.flights.get_mut(key).entry().user_data(key as u64);
            // SAFETY: the flight owns its file and its buffer's heap memory, which does not move, and stays in the
            // slab until this entry's completion is taken (the module's invariant).
            let pushed = unsafe { submission.push(&entry) };
            pushed.expect("the queue is not full");
            self.in_ring += 1;
        }
    }

    /// Lets the kernel post completions that it holds back until this thread asks.
    fn run_deferred(&mut self) {
        if !self.ring.submission().taskrun() {
            return;
        }
        match self.ring.submit() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted || is_transient(&error) => {}
            Err(error) => panic!("io_uring_enter refused to run completions: {error}"),
        }
    }

    fn has_completions(&mut self) -> bool {
        self.run_deferred();
        !self.ring.completion().is_empty()
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        self.run_deferred();
        self.take_completions(completions);
    }

    fn take_completions(&mut self, completions: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            self.in_ring -= 1;
            let key = usize::try_from(entry.user_data()).expect("user data are keys of the slab");
            match self.flights.get_mut(key).advance(entry.result()) {
                Progress::Unfinished => {
                    self.waiting.push_back(key);
                    self.owed = true;
                }
                Progress::Finished(result) => {
                    let Flight { token, work, .. } = self.flights.remove(key);
                    completions.push(Completion { token, result: result.map(|()| work.outcome()) });
                }
            }
        }
    }

    /// Waits until the kernel has given back every buffer; `false` if it refuses to.
    fn drain(&mut self) -> bool {
        while self.in_ring > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted || is_transient(&error) => {}
                Err(_) => return false,
            }
            self.in_ring -= self.ring.completion().count();
        }
        true
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if !self.drain() {
            let flights = std::mem::replace(&mut self.flights, Slab::with_capacity(0));
            // The kernel may still write into these buffers.
            std::mem::forget(flights);
        }
    }
}

/// Busy or out of memory for now.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM))
}

/// The best ring that this kernel makes: newer ones leave completions until they are asked for (DEFER_TASKRUN). The
/// others work too, but there each completion interrupts the owner's epoll_wait with EINTR: measured once per write at
/// depth 1, with the same latency and throughput.
fn build(queue_depth: u32) -> io::Result<IoUring> {
    let base = || {
        let mut builder = IoUring::builder();
        builder.setup_clamp().dontfork();
        builder
    };
    base()
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(queue_depth)
        .or_else(|_| base().setup_submit_all().setup_coop_taskrun().setup_taskrun_flag().build(queue_depth))
        .or_else(|_| base().build(queue_depth))
}

/// Asks for the operations that are needed, and sends one round, since a sandbox may let a ring be made only.
fn probe(ring: &mut IoUring) -> Result<()> {
    let mut known = Probe::new();
    ring.submitter().register_probe(&mut known).map_err(|error| unsupported("probing", &error))?;
    for (name, code) in
        [("READ", opcode::Read::CODE), ("WRITE", opcode::Write::CODE), ("FSYNC", opcode::Fsync::CODE)]
    {
        if !known.is_supported(code) {
            let context = format!("io_uring does not work here: this kernel's has no {name}");
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
    }
    // SAFETY: a no-op refers to no memory.
    let pushed = unsafe { ring.submission().push(&opcode::Nop::new().build()) };
    pushed.expect("a new ring has room");
    ring.submit_and_wait(1).map_err(|error| unsupported("a first request", &error))?;
    let answered = ring.completion().count();
    assert_eq!(answered, 1, "one request was sent");
    Ok(())
}

enum Progress {
    Finished(Result<()>),
    Unfinished,
}

impl Flight {
    /// The ring's entry for what is left of this request.
    fn entry(&mut self) -> squeue::Entry {
        let done = self.transferred;
        match &mut self.work {
            Work::Read { file, offset, buffer } => {
                let rest = &mut buffer[done..];
                opcode::Read::new(fd(file), rest.as_mut_ptr(), entry_len(rest.len()))
                    .offset(*offset + done as u64)
                    .build()
            }
            Work::Write { file, offset, data } => {
                let rest = &data[done..];
                opcode::Write::new(fd(file), rest.as_ptr(), entry_len(rest.len()))
                    .offset(*offset + done as u64)
                    .build()
            }
            Work::Sync { file } => opcode::Fsync::new(fd(file)).flags(FsyncFlags::DATASYNC).build(),
        }
    }

    /// Takes a completion's result: a negative error number, or a count of bytes.
    fn advance(&mut self, result: i32) -> Progress {
        match usize::try_from(result) {
            Ok(count) => self.advance_by(count),
            Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN) => Progress::Unfinished,
            Err(_) => {
                let error = io::Error::from_raw_os_error(-result);
                Progress::Finished(Err(self.failed(error)))
            }
        }
    }

    fn advance_by(&mut self, count: usize) -> Progress {
        self.transferred += count;
        let (file, offset, len) = match &self.work {
            Work::Read { file, offset, buffer } => (file, *offset, buffer.len()),
            Work::Write { file, offset, data } => (file, *offset, data.len()),
            Work::Sync { .. } => return Progress::Finished(Ok(())),
        };
        let missing = len - self.transferred;
        if missing == 0 {
            return Progress::Finished(Ok(()));
        }
        if can_continue(file, count) {
            return Progress::Unfinished;
        }
        Progress::Finished(Err(match &self.work {
            Work::Read { .. } => past_end(file, offset, missing),
            _ => no_progress(file, offset + self.transferred as u64),
        }))
    }

    fn failed(&self, error: io::Error) -> Error {
        let at = |offset: u64| offset + self.transferred as u64;
        match &self.work {
            Work::Read { file, offset, .. } => {
                failed("reading", error).at_path(file.path()).at_offset(at(*offset))
            }
            Work::Write { file, offset, .. } => {
                failed("writing", error).at_path(file.path()).at_offset(at(*offset))
            }
            Work::Sync { file } => failed("syncing", error).at_path(file.path()),
        }
    }
}

impl Work {
    fn outcome(self) -> Outcome {
        match self {
            Work::Read { buffer, .. } => Outcome::Read(buffer),
            Work::Write { .. } | Work::Sync { .. } => Outcome::Done,
        }
    }
}

fn fd(file: &File) -> Fd {
    Fd(file.descriptor().as_raw_fd())
}

fn entry_len(len: usize) -> u32 {
    u32::try_from(len.min(TRANSFER_BYTES_MAX)).expect("1 GiB fits 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Buffered, Handle};

    fn file(direct: bool) -> File {
        let null = std::fs::File::open("/dev/null").expect("/dev/null is everywhere");
        File::new("/dev/null".into(), (!direct).then_some(Buffered::Wanted), Handle::Os(null.into()))
    }

    fn read(direct: bool) -> Flight {
        let work = Work::Read { file: file(direct), offset: 4096, buffer: Buffer::zeroed(8192) };
        Flight { token: Token(0), transferred: 0, work }
    }

    fn write() -> Flight {
        let data = Buffer::zeroed(8192).freeze();
        let work = Work::Write { file: file(true), offset: 4096, data };
        Flight { token: Token(0), transferred: 0, work }
    }

    /// Feeds results until one finishes the flight; gives how many it took, and how it went.
    fn feed(mut flight: Flight, results: &[i32]) -> (usize, Result<()>) {
        for (index, result) in results.iter().enumerate() {
            if let Progress::Finished(result) = flight.advance(*result) {
                return (index + 1, result);
            }
        }
        panic!("unfinished after {results:?}");
    }

    #[test]
    fn short_transfers_go_on_until_they_are_whole() {
        for flight in [read(false), read(true), write()] {
            let (taken, result) = feed(flight, &[512, -libc::EINTR, 3584, -libc::EAGAIN, 4096, -libc::EIO]);
            assert_eq!(taken, 5);
            result.expect("all bytes were transferred");
        }
        let mut flight = read(true);
        assert!(matches!(flight.advance(512), Progress::Unfinished));
        assert_eq!(flight.transferred, 512, "the next entry asks for the rest");
    }

    #[test]
    fn a_read_that_meets_the_end_is_corrupt() {
        // Buffered, the end shows as nothing read; directly, as a part of a sector.
        for (direct, results) in [(false, &[1000, 0][..]), (true, &[512, 0]), (true, &[1000])] {
            let (taken, result) = feed(read(direct), results);
            let error = result.expect_err("the file ended");
            assert_eq!(
                (taken, error.kind(), error.offset()),
                (results.len(), ErrorKind::Corrupt, Some(4096))
            );
        }
    }

    #[test]
    fn a_write_that_stops_is_an_error_where_it_stopped() {
        let (_, result) = feed(write(), &[4096, 0]);
        let error = result.expect_err("nothing more was accepted");
        assert_eq!((error.kind(), error.offset()), (ErrorKind::Io, Some(8192)));
        let (_, result) = feed(write(), &[4096, -libc::ENOSPC]);
        let error = result.expect_err("the device is full");
        assert_eq!((error.kind(), error.offset()), (ErrorKind::NoSpace, Some(8192)));
    }
}
