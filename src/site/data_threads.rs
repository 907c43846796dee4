//! The data threads as the control plane sees them: start, command, listen, drain, stop.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use mio::Poll;
use rustls::ServerConfig;
use tokio::sync::oneshot;

use super::data_thread::{DataThread, FIRST_SESSION, WAKE};
use super::export_registry::ExportRegistry;
use super::host::Host;
use super::listener::Listener;
use super::message::Message;
use crate::block::{Export, Volume};
use crate::capture::nbd::{Budget, Limits};
use crate::control::model::TurnedAway;
use crate::control::turned_away::TurnedAwayCount;
use crate::env::OsEnvironment;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::intake::{Closed, Intake, Publisher, Wake, intake};
use crate::listen::{ListenAddress, SocketMode};
use crate::runtime::Runtime;
use crate::storage::Storage;
use crate::units::GroupId;

/// What sessions may take of the process.
#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    /// Connections in all. Beyond it, a further client takes the place of the one that negotiates for longest, and is turned away if
    /// none does. Default 1024.
    pub connections_max: usize,
    /// For the handshake. Default 10 s.
    pub handshake: Duration,
    /// For a session that ends to take the replies that it is owed. Default 10 s.
    pub closing: Duration,
    /// For a client that holds what others wait for to take a byte or to send one. Default 10 s.
    pub hoarding: Duration,
    /// Of each connection.
    pub connection: Limits,
    /// Bytes of all connections together, beyond what each may hold anyhow, [`OWN_BYTES`](crate::capture::nbd::budget::OWN_BYTES);
    /// at least the longest request. Default 1 GiB.
    pub buffers_total: usize,
}

impl Default for SessionLimits {
    fn default() -> SessionLimits {
        SessionLimits {
            connections_max: 1024,
            handshake: Duration::from_secs(10),
            closing: Duration::from_secs(10),
            hoarding: Duration::from_secs(10),
            connection: Limits::default(),
            buffers_total: 1 << 30,
        }
    }
}

/// How many data threads, and what sessions may take.
#[derive(Clone, Copy, Debug)]
pub struct DataThreadsOptions {
    /// At least one.
    pub threads: usize,
    /// For sessions.
    pub limits: SessionLimits,
}

/// What the data threads share.
pub(super) struct Shared<V> {
    pub(super) exports: Arc<ExportRegistry>,
    pub(super) limits: SessionLimits,
    /// What connections hold together; its waiters are the threads.
    pub(super) budget: Arc<Budget>,
    /// By thread: whether it looks for clients that hold what others wait for, or was told to.
    looking: Vec<AtomicBool>,
    publishers: Vec<Publisher<Message<V>>>,
    connections: AtomicUsize,
    pub(super) turned_away: TurnedAwayCount,
    /// By thread.
    sessions: Vec<AtomicUsize>,
    next_session: AtomicU64,
}

impl<V> Shared<V> {
    pub(super) fn threads(&self) -> usize {
        self.publishers.len()
    }

    /// Hands a message over; it comes back if the thread has stopped.
    #[allow(clippy::result_large_err)]
    pub(super) fn publish(&self, thread: usize, message: Message<V>) -> std::result::Result<(), Message<V>> {
        self.publishers[thread].publish(message).map_err(|Closed(message)| message)
    }

    /// Counts a connection and gives its session a number; `None` if there are too many.
    pub(super) fn admit(&self) -> Option<u64> {
        let below_max = |connections| (connections < self.limits.connections_max).then_some(connections + 1);
        self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below_max).ok()?;
        Some(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    /// Notes that a thread looks from now on; whether it did before. What makes it look was announced by [`Budget::wait_for`], whose
    /// fence stands between the announcement and this.
    pub(super) fn begin_looking(&self, thread: usize) -> bool {
        let looking = &self.looking[thread];
        looking.load(Ordering::Relaxed) || looking.swap(true, Ordering::Relaxed)
    }

    /// Notes that a thread looks no more. What is announced must be looked for again after this.
    pub(super) fn end_looking(&self, thread: usize) {
        self.looking[thread].store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Tells how many sessions a thread has.
    pub(super) fn set_sessions(&self, thread: usize, sessions: usize) {
        self.sessions[thread].store(sessions, Ordering::Relaxed);
    }

    /// Counts a connection off.
    pub(super) fn dismiss(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Wakes a data thread out of its poll.
struct PollWaker(mio::Waker);

impl Wake for PollWaker {
    fn wake(&self) {
        self.0.wake().expect("an eventfd takes a wake-up");
    }
}

/// The running data threads. Dropping it without [`DataThreads::stop`] leaves them running.
pub struct DataThreads<V> {
    shared: Arc<Shared<V>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// Sessions that are being drained, on each thread.
#[must_use]
#[derive(Debug)]
pub struct Draining(Vec<oneshot::Receiver<usize>>);

impl Draining {
    /// When the sessions have ended: how many had to be cut off.
    pub async fn finished(self) -> usize {
        let mut cut_off = 0;
        for thread in self.0 {
            // A thread that has stopped has no sessions.
            cut_off += thread.await.unwrap_or(0);
        }
        cut_off
    }

    /// Waits until the sessions have ended: how many had to be cut off. Not for async code.
    pub fn wait(self) -> usize {
        self.0.into_iter().map(|thread| thread.blocking_recv().unwrap_or(0)).sum()
    }
}

/// A data thread that panics takes the process along: its disks would be gone, and nobody would start it anew.
struct EndsWithAll;

impl Drop for EndsWithAll {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a data thread panicked: the process ends, to be started anew");
            std::process::abort();
        }
    }
}

impl<V: Volume + 'static> DataThreads<V> {
    /// Starts the threads; each opens its storage by `open_storage`, which gets the thread's number.
    pub fn start(
        options: DataThreadsOptions,
        open_storage: impl Fn(usize) -> Result<Box<dyn Storage>> + Send + Sync + 'static,
    ) -> Result<DataThreads<V>> {
        if options.threads == 0 {
            return Err(Error::invalid("threads = 0: at least one data thread is needed"));
        }
        let mut ends = Vec::new();
        let mut publishers = Vec::new();
        for _ in 0..options.threads {
            let failed = |error| Error::io("cannot set up a data thread", error);
            let poll = Poll::new().map_err(failed)?;
            let waker = mio::Waker::new(poll.registry(), WAKE).map_err(failed)?;
            let (publisher, intake) = intake(PollWaker(waker));
            publishers.push(publisher);
            ends.push((poll, intake));
        }
        let shared = Arc::new(Shared {
            exports: Arc::default(),
            limits: options.limits,
            budget: Arc::new(Budget::new(options.limits.buffers_total, options.threads)),
            looking: (0..options.threads).map(|_| AtomicBool::new(false)).collect(),
            publishers,
            connections: AtomicUsize::new(0),
            turned_away: TurnedAwayCount::default(),
            sessions: (0..options.threads).map(|_| AtomicUsize::new(0)).collect(),
            next_session: AtomicU64::new(FIRST_SESSION),
        });
        let open_storage: Arc<OpenStorage> = Arc::new(open_storage);
        let mut threads = DataThreads { shared, threads: Vec::new() };
        let mut started = Vec::new();
        for (index, (poll, intake)) in ends.into_iter().enumerate() {
            started.push(threads.spawn(index, poll, intake, Arc::clone(&open_storage))?);
        }
        for started in started {
            if let Err(error) = started.recv().expect("a starting thread says how it went") {
                let _ = threads.stop();
                return Err(error);
            }
        }
        Ok(threads)
    }

    fn spawn(
        &mut self,
        index: usize,
        poll: Poll,
        intake: Intake<Message<V>>,
        open_storage: Arc<OpenStorage>,
    ) -> Result<mpsc::Receiver<Result<()>>> {
        let (start, started) = mpsc::channel();
        let shared = Arc::clone(&self.shared);
        let run = move || {
            let _ends = EndsWithAll;
            let thread = open_storage(index).and_then(|storage| {
                let runtime = Runtime::new(storage, Rc::new(OsEnvironment::new()));
                DataThread::new(index, shared, poll, intake, runtime)
            });
            let (thread, outcome) = match thread {
                Ok(thread) => (Some(thread), Ok(())),
                Err(error) => (None, Err(error)),
            };
            // The starter waits for it.
            let _ = start.send(outcome);
            thread.map_or(Ok(()), DataThread::run)
        };
        let builder = std::thread::Builder::new().name(format!("data-{index}"));
        let thread = builder.spawn(run).map_err(|error| Error::io("cannot start a data thread", error))?;
        self.threads.push(thread);
        Ok(started)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.shared.threads()
    }

    /// What is served by which name, and where groups live.
    pub fn exports(&self) -> &Arc<ExportRegistry> {
        &self.shared.exports
    }

    /// Connections in all, now.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Clients that were turned away because there were too many.
    pub fn turned_away(&self) -> TurnedAway {
        self.shared.turned_away.read()
    }

    /// What connections hold together beyond their own, and may.
    pub fn budget(&self) -> &Budget {
        &self.shared.budget
    }

    /// Bytes that connections hold now: of requests in flight, and of replies that wait for their sockets.
    pub async fn buffered_bytes(&self) -> usize {
        let mut bytes = 0;
        for thread in 0..self.count() {
            let (sender, receiver) = oneshot::channel();
            // A thread that stopped has no sessions.
            if self.publish(thread, Message::Measure(sender)).is_ok() {
                bytes += receiver.await.unwrap_or(0);
            }
        }
        bytes
    }

    /// Sessions by thread, now.
    pub fn sessions(&self) -> Vec<usize> {
        self.shared.sessions.iter().map(|sessions| sessions.load(Ordering::Relaxed)).collect()
    }

    /// Accepts clients at `address`; returns it with the port that the system chose. A Unix socket that a dead
    /// process left is replaced; this one is for those whom `mode` allows to connect.
    pub fn listen(&self, address: &ListenAddress, mode: SocketMode) -> Result<ListenAddress> {
        self.listen_by(Listener::bind(address, mode, None)?)
    }

    /// The same for clients that must begin TLS, before they are told or served anything.
    pub fn listen_by_tls(
        &self,
        address: &ListenAddress,
        mode: SocketMode,
        tls: Arc<ServerConfig>,
    ) -> Result<ListenAddress> {
        self.listen_by(Listener::bind(address, mode, Some(tls))?)
    }

    fn listen_by(&self, listener: Listener) -> Result<ListenAddress> {
        let bound = listener.address().clone();
        self.publish(0, Message::Listen(listener))?;
        Ok(bound)
    }

    /// Runs `command` on a thread's host.
    pub fn command(&self, thread: usize, command: impl FnOnce(&mut Host<V>) + Send + 'static) -> Result<()> {
        self.publish(thread, Message::Command(Box::new(command)))
    }

    /// Runs `command` on the host of a group's thread.
    ///
    /// # Errors
    /// `NotFound` if the group was not placed.
    pub fn command_group(
        &self,
        group: GroupId,
        command: impl FnOnce(&mut Host<V>) + Send + 'static,
    ) -> Result<()> {
        let missing = || Error::new(ErrorKind::NotFound, format!("group {group} is not open"));
        let home = self.shared.exports.home(group).ok_or_else(missing)?;
        self.command(home, command)
    }

    /// Runs `command` on a thread's host and hands its value over; the receiver fails if the thread stops first.
    pub fn call<R: Send + 'static>(
        &self,
        thread: usize,
        command: impl FnOnce(&mut Host<V>) -> R + Send + 'static,
    ) -> Result<oneshot::Receiver<R>> {
        let (sender, receiver) = oneshot::channel();
        // Whoever asked may have lost interest.
        self.command(thread, move |host| drop(sender.send(command(host))))?;
        Ok(receiver)
    }

    /// Waits until the loop of every thread has come round: that of one that hangs never does.
    ///
    /// # Errors
    /// `Shutdown` if one has ended.
    pub async fn answer(&self) -> Result<()> {
        let asked = (0..self.count()).map(|thread| self.call(thread, |_| ()));
        for answer in asked.collect::<Result<Vec<_>>>()? {
            answer.await.map_err(|_| Error::new(ErrorKind::Shutdown, "a data thread has stopped"))?;
        }
        Ok(())
    }

    /// Closes the sessions of an export, which must have been taken off the registry before: requests that were not taken
    /// yet are refused with `ESHUTDOWN`, what is in flight is answered. A connection closes as soon as that is done, an idle
    /// one at once; after `within` it is cut off.
    pub fn close_sessions(&self, export: Export, within: Duration) -> Draining {
        self.drain_where(Some(export), within)
    }

    /// Accepts no more clients and closes all sessions, as [`DataThreads::close_sessions`] does. Volumes live on: the
    /// control plane closes them by command, and then calls [`DataThreads::stop`].
    pub fn drain(&self, within: Duration) -> Draining {
        self.drain_where(None, within)
    }

    fn drain_where(&self, export: Option<Export>, within: Duration) -> Draining {
        let threads = 0..self.count();
        let receivers = threads.map(|thread| {
            let (drained, receiver) = oneshot::channel();
            // A thread that has stopped drops the sender, which counts as drained.
            let _ = self.shared.publish(thread, Message::Drain { export, within, drained });
            receiver
        });
        Draining(receivers.collect())
    }

    /// Ends the threads once each has done what it accepted before; sessions that are left are cut off. The first
    /// error that ended a thread early, if any.
    pub fn stop(self) -> Result<()> {
        for thread in 0..self.count() {
            // One that ended early takes no message.
            let _ = self.shared.publish(thread, Message::Stop);
        }
        let mut outcome = Ok(());
        for (index, thread) in self.threads.into_iter().enumerate() {
            let panicked = |_| Err(Error::new(ErrorKind::Io, format!("data thread {index} panicked")));
            outcome = outcome.and(thread.join().unwrap_or_else(panicked));
        }
        outcome
    }

    fn publish(&self, thread: usize, message: Message<V>) -> Result<()> {
        let stopped = |_| Error::new(ErrorKind::Shutdown, format!("data thread {thread} has stopped"));
        self.shared.publish(thread, message).map_err(stopped)
    }
}

type OpenStorage = dyn Fn(usize) -> Result<Box<dyn Storage>> + Send + Sync;

impl<V> fmt::Debug for DataThreads<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataThreads").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}
