//! What one owner thread runs on: its storage, its clock and randomness, its timers, and its tasks.
//!
//! A [`Runtime`] belongs to one thread and is stepped by it; nothing here waits or knows threads, so the simulator
//! steps it just as the gateway does. The hot path submits operations with a [`Tag`] and gets [`Event`]s back; all
//! that is not hot (destage, deltas, the vault, opening) is written as `async` tasks over [`Runtime::call`]. A task
//! is dropped with its runtime, at any await: that is what a crash looks like to it.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{Either, LocalBoxFuture, select};
use futures::stream::{FuturesUnordered, StreamExt};
use futures::task::{ArcWake, waker_ref};

use crate::env::{BootId, Environment};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{
    Buffer, Completion, File, LOCK_PATIENCE, Lock, Op, OpenOptions, Outcome, Slice, Space, Storage, Token,
};
use crate::sums::cache::SumsCache;
use crate::units::{MonotonicNanos, WallNanos};

/// Names a hot-path operation to its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag {
    /// Which component of the thread it belongs to; from [`Runtime::new_owner`].
    pub owner: u32,
    /// That component's own number of it.
    pub operation: u64,
}

/// A completed hot-path operation.
#[derive(Debug)]
pub struct Event {
    /// The tag it was submitted with.
    pub tag: Tag,
    /// How it went.
    pub result: Result<Outcome>,
}

/// One thread's storage, time, randomness, timers and tasks.
pub struct Runtime {
    storage: Box<dyn Storage>,
    environment: Rc<dyn Environment>,
    waiters: RefCell<HashMap<u64, Waiter>>,
    next_token: Cell<u64>,
    next_owner: Cell<u32>,
    timers: RefCell<BinaryHeap<Reverse<Timer>>>,
    tasks: RefCell<FuturesUnordered<LocalBoxFuture<'static, ()>>>,
    spawned: RefCell<Vec<LocalBoxFuture<'static, ()>>>,
    completions: RefCell<Vec<Completion>>,
    /// Files whose lock another process kept when it was waited for.
    kept_locks: RefCell<HashSet<PathBuf>>,
    /// Set by tasks that may concern anybody.
    stirred: Rc<Cell<bool>>,
    woken: Arc<Woken>,
    sums_cache: RefCell<SumsCache>,
}

/// Says that a task became ready while tasks were being run. Only this thread sets or reads it.
#[derive(Default)]
struct Woken(AtomicBool);

impl ArcWake for Woken {
    fn wake_by_ref(woken: &Arc<Woken>) {
        woken.0.store(true, Ordering::Relaxed);
    }
}

enum Waiter {
    Task(oneshot::Sender<Result<Outcome>>),
    Hot(Tag),
}

struct Timer {
    due: MonotonicNanos,
    sequence: u64,
    fire: oneshot::Sender<()>,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Timer) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Timer) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Timer) -> std::cmp::Ordering {
        (self.due, self.sequence).cmp(&(other.due, other.sequence))
    }
}

impl Runtime {
    /// A runtime over `storage`, with time and randomness from `environment`.
    pub fn new(storage: Box<dyn Storage>, environment: Rc<dyn Environment>) -> Rc<Runtime> {
        Rc::new(Runtime {
            storage,
            environment,
            waiters: RefCell::default(),
            next_token: Cell::new(0),
            next_owner: Cell::new(0),
            timers: RefCell::default(),
            tasks: RefCell::new(FuturesUnordered::new()),
            spawned: RefCell::default(),
            completions: RefCell::default(),
            kept_locks: RefCell::default(),
            woken: Arc::default(),
            stirred: Rc::default(),
            sums_cache: RefCell::default(),
        })
    }

    /// The storage back end.
    pub fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// What is kept of the sums of images: one for all of the thread, so that it is bounded.
    pub fn sums_cache(&self) -> &RefCell<SumsCache> {
        &self.sums_cache
    }

    /// The forward-only clock.
    pub fn now(&self) -> MonotonicNanos {
        self.environment.monotonic()
    }

    /// The wall clock.
    pub fn wall(&self) -> WallNanos {
        self.environment.wall()
    }

    /// 128 random bits.
    pub fn random_u128(&self) -> u128 {
        self.environment.random_u128()
    }

    /// The boot of the host, if it is known.
    pub fn boot(&self) -> Option<BootId> {
        self.environment.boot()
    }

    /// A number for [`Tag::owner`] that no other component of this thread has.
    pub fn new_owner(&self) -> u32 {
        self.next_owner.update(|owner| owner + 1);
        self.next_owner.get()
    }

    /// Submits a hot-path operation; its completion comes out of [`Runtime::step`] with the same tag.
    pub fn submit(&self, tag: Tag, op: Op) {
        self.submit_for(Waiter::Hot(tag), op);
    }

    /// Submits an operation now, and waits for its outcome when awaited.
    pub fn call(&self, op: Op) -> impl Future<Output = Result<Outcome>> + use<> {
        let (sender, receiver) = oneshot::channel();
        self.submit_for(Waiter::Task(sender), op);
        async move { receiver.await.expect("a runtime outlives the operations of its tasks") }
    }

    fn submit_for(&self, waiter: Waiter, op: Op) {
        let token = self.next_token.get();
        self.next_token.set(token + 1);
        self.waiters.borrow_mut().insert(token, waiter);
        self.storage.submit(Token(token), op);
    }

    /// Runs `task` until it ends or the runtime is dropped.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.spawn_for(&self.stirred, task);
    }

    /// The same for a task that concerns one owner only, who finds `stirred` set after it has gone on.
    pub fn spawn_for(&self, stirred: &Rc<Cell<bool>>, task: impl Future<Output = ()> + 'static) {
        let stirred = Rc::clone(stirred);
        let mut task = Box::pin(task);
        let noting = poll_fn(move |context| {
            stirred.set(true);
            task.as_mut().poll(context)
        });
        self.spawned.borrow_mut().push(Box::pin(noting));
    }

    /// Whether a task has gone on since the last call that may concern anybody on this thread.
    pub fn take_stirred(&self) -> bool {
        self.stirred.take()
    }

    /// Waits until `duration` from now.
    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + use<> {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let due = MonotonicNanos(self.now().0.saturating_add(nanos));
        let (fire, fired) = oneshot::channel();
        let sequence = self.next_token.get();
        self.next_token.set(sequence + 1);
        self.timers.borrow_mut().push(Reverse(Timer { due, sequence, fire }));
        async move {
            // A cancelled timer can only mean that the runtime is being dropped, and this task with it.
            let _ = fired.await;
        }
    }

    /// Lets the owner serve its hot path before the task goes on; for long computations between I/O.
    pub fn yield_now(&self) -> impl Future<Output = ()> + use<> {
        self.sleep(Duration::ZERO)
    }

    /// When the next timer is due.
    pub fn next_timer(&self) -> Option<MonotonicNanos> {
        self.timers.borrow().peek().map(|Reverse(timer)| timer.due)
    }

    /// Whether a task became ready since tasks were last run, so that another [`Runtime::step`] would run it.
    pub fn has_ready_tasks(&self) -> bool {
        self.woken.0.load(Ordering::Relaxed) || !self.spawned.borrow().is_empty()
    }

    /// Reaps completions, fires timers and runs tasks as far as they go; hot-path completions are added to
    /// `events`. Never waits.
    pub fn step(&self, events: &mut Vec<Event>) {
        self.reap(events);
        self.fire_timers();
        self.run_tasks();
        self.storage.start();
    }

    fn reap(&self, events: &mut Vec<Event>) {
        let mut completions = self.completions.take();
        self.storage.reap(&mut completions);
        for completion in completions.drain(..) {
            let waiter = self.waiters.borrow_mut().remove(&completion.token.0);
            match waiter.expect("storage completes what was submitted, once") {
                Waiter::Hot(tag) => events.push(Event { tag, result: completion.result }),
                // The task may have been dropped with what it was doing; then nobody wants the outcome.
                Waiter::Task(sender) => drop(sender.send(completion.result)),
            }
        }
        self.completions.replace(completions);
    }

    fn fire_timers(&self) {
        let now = self.now();
        let mut timers = self.timers.borrow_mut();
        while timers.peek().is_some_and(|Reverse(timer)| timer.due <= now) {
            let Some(Reverse(timer)) = timers.pop() else { break };
            // As above: a dropped task does not care.
            let _ = timer.fire.send(());
        }
    }

    fn run_tasks(&self) {
        let waker = waker_ref(&self.woken);
        let mut context = Context::from_waker(&waker);
        let mut tasks = self.tasks.borrow_mut();
        loop {
            tasks.extend(self.spawned.take());
            self.woken.0.store(false, Ordering::Relaxed);
            let ended = matches!(tasks.poll_next_unpin(&mut context), Poll::Ready(Some(())));
            let again = ended || self.woken.0.load(Ordering::Relaxed) || !self.spawned.borrow().is_empty();
            if !again {
                return;
            }
        }
    }

    /// Drops all tasks where they are, as the death of the process would: for the simulator and for tests, whose processes
    /// die in memory. (Tasks hold the runtime, so it would never be freed, nor would the locks that they hold.)
    pub fn abandon_tasks(&self) {
        let (tasks, spawned) = (self.tasks.take(), self.spawned.take());
        let timers = self.timers.take();
        drop((tasks, spawned, timers));
    }

    /// Runs `future` to its end on this thread, waiting for storage: for tools and tests, which have no other loop.
    pub fn block_on<T: 'static>(self: &Rc<Runtime>, future: impl Future<Output = T> + 'static) -> T {
        let (sender, mut receiver) = oneshot::channel();
        self.spawn(async move { drop(sender.send(future.await)) });
        let mut events = Vec::new();
        loop {
            self.step(&mut events);
            if let Some(value) = receiver.try_recv().expect("the task sends before it ends") {
                return value;
            }
            self.storage.wait();
        }
    }

    /// Opens a file.
    pub async fn open(&self, path: impl Into<PathBuf>, options: OpenOptions) -> Result<File> {
        match self.call(Op::Open { path: path.into(), options }).await? {
            Outcome::Opened(file) => Ok(file),
            other => unreachable!("open gives a file, not {other:?}"),
        }
    }

    /// Opens `what`, a file that only this process may use ([`OpenOptions::OWNED`]). A dead owner's requests end in time, and its lock
    /// with them; where that was waited for in vain once, it is only tried from then on.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] where another process has kept the lock all the while.
    pub async fn open_owned(&self, path: &Path, what: &str) -> Result<File> {
        let was_kept = self.kept_locks.borrow().contains(path);
        let lock = if was_kept { Lock::Try } else { Lock::Wait };
        let opening = self.open(path, OpenOptions { lock, ..OpenOptions::OWNED });
        // Of the simulator's time, too: its storage knows none, and waits for as long as somebody has the lock.
        let opened = match select(pin!(opening), pin!(self.sleep(LOCK_PATIENCE))).await {
            Either::Left((opened, _)) => opened,
            Either::Right(_) => Err(Error::new(ErrorKind::Locked, "waited for in vain").at_path(path)),
        };
        let is_kept = matches!(&opened, Err(error) if error.kind() == ErrorKind::Locked);
        match (was_kept, is_kept) {
            (false, true) => drop(self.kept_locks.borrow_mut().insert(path.to_owned())),
            (true, false) => drop(self.kept_locks.borrow_mut().remove(path)),
            _ => {}
        }
        opened.map_err(|error| match is_kept {
            true => {
                let text = format!("another process holds the lock of {what}: end that process");
                Error::new(ErrorKind::Locked, text).at_path(path)
            }
            false => error,
        })
    }

    /// Reads `len` bytes at `offset`.
    pub async fn read(&self, file: &File, offset: u64, len: usize) -> Result<Buffer> {
        self.read_into(file, offset, Buffer::recycled(len)).await
    }

    /// Reads as many bytes at `offset` as `buffer` is long, into it.
    pub async fn read_into(&self, file: &File, offset: u64, buffer: Buffer) -> Result<Buffer> {
        Ok(self.call(Op::Read { file: file.clone(), offset, buffer }).await?.into_buffer())
    }

    /// Writes `data` at `offset`.
    pub async fn write(&self, file: &File, offset: u64, data: Slice) -> Result<()> {
        self.call(Op::Write { file: file.clone(), offset, data }).await.map(drop)
    }

    /// Makes completed writes to `file` survive a power cut.
    pub async fn sync(&self, file: &File) -> Result<()> {
        self.call(Op::Sync { file: file.clone() }).await.map(drop)
    }

    /// Makes sure that what is read of `file` from now on survives a power cut, for whoever takes over from a dead
    /// process, whose last sync may have failed. Nobody else may be writing to it.
    pub async fn settle(&self, file: &File) -> Result<()> {
        self.sync(file).await?;
        self.call(Op::Evict { file: file.clone() }).await.map(drop)
    }

    /// Makes a byte range read as zeros.
    pub async fn zero(&self, file: &File, range: Range<u64>, keep_allocated: bool) -> Result<()> {
        self.call(Op::Zero { file: file.clone(), range, keep_allocated }).await.map(drop)
    }

    /// Sets a file's length.
    pub async fn set_length(&self, file: &File, length: u64) -> Result<()> {
        self.call(Op::SetLength { file: file.clone(), length }).await.map(drop)
    }

    /// A file's length in bytes.
    pub async fn length(&self, file: &File) -> Result<u64> {
        match self.call(Op::Length { file: file.clone() }).await? {
            Outcome::Length(length) => Ok(length),
            other => unreachable!("length gives a length, not {other:?}"),
        }
    }

    /// The parts of a byte range that hold data.
    pub async fn data_ranges(&self, file: &File, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        match self.call(Op::DataRanges { file: file.clone(), range }).await? {
            Outcome::Ranges(ranges) => Ok(ranges),
            other => unreachable!("data ranges gives ranges, not {other:?}"),
        }
    }

    /// Gives a file its final name if nothing has it.
    pub async fn publish(&self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Result<()> {
        self.call(Op::Publish { from: from.into(), to: to.into() }).await.map(drop)
    }

    /// Removes a file.
    pub async fn remove(&self, path: impl Into<PathBuf>) -> Result<()> {
        self.call(Op::Remove { path: path.into() }).await.map(drop)
    }

    /// Removes an empty directory.
    pub async fn remove_directory(&self, path: impl Into<PathBuf>) -> Result<()> {
        self.call(Op::RemoveDirectory { path: path.into() }).await.map(drop)
    }

    /// Creates a directory and its parents.
    pub async fn create_directory(&self, path: impl Into<PathBuf>) -> Result<()> {
        self.call(Op::CreateDirectory { path: path.into() }).await.map(drop)
    }

    /// The names in a directory, sorted.
    pub async fn list(&self, path: impl Into<PathBuf>) -> Result<Vec<String>> {
        match self.call(Op::List { path: path.into() }).await? {
            Outcome::Names(names) => Ok(names),
            other => unreachable!("list gives names, not {other:?}"),
        }
    }

    /// How full the file system of a directory is.
    pub async fn space(&self, path: impl Into<PathBuf>) -> Result<Space> {
        match self.call(Op::Space { path: path.into() }).await? {
            Outcome::Space(space) => Ok(space),
            other => unreachable!("space gives space, not {other:?}"),
        }
    }

    /// Makes the names in a directory survive a power cut.
    pub async fn sync_directory(&self, path: impl Into<PathBuf>) -> Result<()> {
        self.call(Op::SyncDirectory { path: path.into() }).await.map(drop)
    }
}
