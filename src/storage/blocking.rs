//! The blocking back end: a few worker threads that run operations one after the other.
//!
//! It serves where io_uring is not to be had, and runs for [`uring`](super::uring) what has no ring operation. It is
//! not fast, but it is everywhere. Submitted operations go down one channel, completions come back up another, and
//! an eventfd says that there are some. Nothing that may wait for long runs on a worker: a lock that somebody
//! holds is waited for on a thread of its own, so that operations which would make its holder go away still run.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::{Errno, retry_on_intr};

use super::lock_wait::LockWait;
use super::syscalls::{Executed, execute, failed};
use super::{Backend, Completion, LOCK_PATIENCE, Op, Storage, Token};
use crate::error::Result;

/// Workers need little stack: they run system calls.
const WORKER_STACK_BYTES: usize = 256 << 10;

/// An eventfd that says "something has completed".
///
/// Whoever completes puts the completion where the owner finds it, then raises the signal; the owner lowers it, then
/// looks. So nothing is overlooked, though it may be raised once too often.
#[derive(Debug)]
pub(super) struct Signal(OwnedFd);

impl Signal {
    pub(super) fn new() -> Result<Signal> {
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map(Signal)
            .map_err(|errno| failed("creating an eventfd", errno))
    }

    pub(super) fn raise(&self) {
        match retry_on_intr(|| rustix::io::write(&self.0, &1_u64.to_ne_bytes())) {
            // A full counter says what it has to say.
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(errno) => panic!("an eventfd takes eight bytes: {errno}"),
        }
    }

    pub(super) fn lower(&self) {
        match retry_on_intr(|| rustix::io::read(&self.0, &mut [0_u8; 8])) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(errno) => panic!("an eventfd gives eight bytes: {errno}"),
        }
    }

    /// Waits until it is raised, or a signal handler ran.
    pub(super) fn wait(&self) {
        let mut descriptors = [PollFd::new(&self.0, PollFlags::IN)];
        match rustix::event::poll(&mut descriptors, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => panic!("one descriptor can be polled: {errno}"),
        }
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

struct Job {
    token: Token,
    op: Op,
}

/// Where completions go from a worker: first the channel, then the signal.
#[derive(Clone)]
struct Outbox {
    completions: Sender<Completion>,
    signal: Arc<Signal>,
    /// Without a sender once the pool goes: for who waits for something else meanwhile.
    closing: Receiver<Infallible>,
}

impl Outbox {
    fn send(&self, completion: Completion) {
        // An owner that is gone wants nothing; a file in the completion closes here, and gives up its lock.
        if self.completions.send(completion).is_ok() {
            self.signal.raise();
        }
    }
}

/// The workers and their two channels.
pub(super) struct Pool {
    jobs: Option<Sender<Job>>,
    closing: Option<Sender<Infallible>>,
    completions: Receiver<Completion>,
    in_flight: Cell<usize>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(super) fn new(workers: usize, signal: Arc<Signal>) -> Result<Pool> {
        assert!(workers > 0, "a pool without workers completes nothing");
        let (jobs, queued) = unbounded();
        let (sender, completions) = unbounded();
        let (closing, closed) = bounded(0);
        let outbox = Outbox { completions: sender, signal, closing: closed };
        let (jobs, closing) = (Some(jobs), Some(closing));
        let mut pool = Pool { jobs, closing, completions, in_flight: Cell::new(0), workers: Vec::new() };
        for _ in 0..workers {
            let (queued, outbox) = (queued.clone(), outbox.clone());
            let worker = spawn("storage-worker", move || work(&queued, &outbox))
                .map_err(|error| failed("starting a storage worker", error))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    pub(super) fn submit(&self, token: Token, op: Op) {
        self.in_flight.update(|count| count + 1);
        let jobs = self.jobs.as_ref().expect("jobs are open until the pool is dropped");
        jobs.send(Job { token, op }).unwrap_or_else(|_| panic!("workers live as long as their pool"));
    }

    /// Moves what has completed. Whoever finds nothing lowers the signal and calls again.
    pub(super) fn reap(&self, completions: &mut Vec<Completion>) {
        if self.in_flight.get() == 0 {
            return;
        }
        for completion in self.completions.try_iter() {
            self.in_flight.update(|count| count - 1);
            completions.push(completion);
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    pub(super) fn has_completions(&self) -> bool {
        !self.completions.is_empty()
    }
}

impl Drop for Pool {
    /// Runs what was accepted to its end. Only threads that wait for a lock are left behind: they own all that they
    /// use, and end soon.
    fn drop(&mut self) {
        self.jobs = None;
        self.closing = None;
        for worker in self.workers.drain(..) {
            // A worker that panicked has said so on its own; there is nothing to add while dropping.
            drop(worker.join());
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(WORKER_STACK_BYTES).spawn(work)
}

fn work(queued: &Receiver<Job>, outbox: &Outbox) {
    for Job { token, op } in queued {
        match execute(op) {
            Executed::Done(result) => outbox.send(Completion { token, result }),
            Executed::LockHeld(wait) => wait_elsewhere(token, wait, outbox),
        }
    }
}

/// Waits for a lock on a thread of its own.
fn wait_elsewhere(token: Token, wait: LockWait, outbox: &Outbox) {
    let waiter = outbox.clone();
    let started = spawn("storage-lock", move || {
        let result = wait.wait(LOCK_PATIENCE, &waiter.closing);
        waiter.send(Completion { token, result });
    });
    if let Err(error) = started {
        let result = Err(failed("starting a thread that waits for a lock", error));
        outbox.send(Completion { token, result });
    }
}

/// Storage on pread, pwrite and fdatasync.
pub struct Blocking {
    pool: Pool,
    signal: Arc<Signal>,
}

impl Blocking {
    /// Starts `workers` threads; each runs one operation at a time.
    pub fn new(workers: usize) -> Result<Blocking> {
        let signal = Arc::new(Signal::new()?);
        Ok(Blocking { pool: Pool::new(workers, Arc::clone(&signal))?, signal })
    }
}

impl Storage for Blocking {
    fn backend(&self) -> Backend {
        Backend::Blocking
    }

    fn submit(&self, token: Token, op: Op) {
        self.pool.submit(token, op);
    }

    /// Workers have begun already.
    fn start(&self) {}

    fn reap(&self, completions: &mut Vec<Completion>) {
        let before = completions.len();
        self.pool.reap(completions);
        if completions.len() == before {
            self.signal.lower();
            self.pool.reap(completions);
        }
    }

    fn wait(&self) {
        while self.pool.in_flight() > 0 && !self.pool.has_completions() {
            self.signal.wait();
            if !self.pool.has_completions() {
                // Raised for what was reaped already.
                self.signal.lower();
                if self.pool.has_completions() {
                    self.signal.raise();
                }
            }
        }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.signal.as_fd())
    }
}
