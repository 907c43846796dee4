//! A data thread: one loop that owns a runtime with its storage, some groups, and some clients' sessions.
//!
//! ```text
//!  ┌─▶ wait      epoll: sockets, storage, the intake's bell; until the next deadline; not at all if there is work;
//!  │             with open eyes first, where that paid lately
//!  │   messages  what other threads handed over: sessions, requests, replies, commands
//!  │   receive   each readable session a bounded turn; requests go to their volume, or to its thread
//!  │   serve     completions ▶ tasks ▶ volumes ▶ device, again while that brings completions
//!  │   reply     to sessions here, or to their thread
//!  │   send      one writev per session with output
//!  ├── expire    deadlines of handshakes, drains and dying sessions; what the log left out of clients
//!  └── share     who waits for room in the budget of all, and whom what was given back makes room for
//! ```
//!
//! Whoever shares the thread is called directly; only what crosses threads becomes a message. A turn handles all that
//! has gathered since the last one, so the more there is to do, the fewer system calls each request costs.
//!
//! Invariant: nothing in a turn waits for a client. A session that sends half a request, or takes no replies, holds
//! its own memory up to its limits and nothing else. What it asked counts until it is answered, whether it is still there or not.

mod client_lines;
mod listening;
mod patience;
mod room;
mod sessions;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use tokio::sync::oneshot;

use self::client_lines::ClientLines;
use self::listening::Listening;
use self::patience::Patience;
use self::room::Room;
use self::sessions::Orphan;
use super::data_threads::Shared;
use super::host::Host;
use super::message::Message;
use super::session::Session;
use crate::block::{Export, Reply, Request, Ticket, Volume};
use crate::capture::nbd::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::intake::Intake;
use crate::runtime::Runtime;
use crate::units::{GroupId, MonotonicNanos};

/// The intake's bell.
pub(super) const WAKE: Token = Token(0);
const STORAGE: Token = Token(1);
const FIRST_LISTENER: usize = 2;
/// A session's token is its id: ids start here.
pub(super) const FIRST_SESSION: u64 = 1 << 16;
const EVENTS_MAX: usize = 256;
/// Messages taken in a turn: then sockets and storage have theirs.
const MESSAGES_A_TURN: usize = 1024;
/// Steps of the host in a turn, as long as each brings completions.
const STEPS_A_TURN: usize = 4;

pub(super) struct DataThread<V> {
    index: usize,
    shared: Arc<Shared<V>>,
    poll: Poll,
    events: Events,
    intake: Intake<Message<V>>,
    host: Host<V>,
    listening: Listening,
    lines: ClientLines,
    sessions: HashMap<u64, Session>,
    /// Those that have not chosen an export yet, the one that came first first.
    negotiating: BTreeSet<u64>,
    /// What is left of sessions that have ended while requests of theirs were in flight.
    orphans: HashMap<u64, Orphan>,
    /// Sessions on other threads that use volumes here, and their threads.
    remote: HashMap<u64, usize>,
    /// Sessions that may receive; sessions that have something to send or may be over.
    turns: Vec<u64>,
    sends: Vec<u64>,
    room: Room,
    deadlines: BinaryHeap<Reverse<(MonotonicNanos, u64)>>,
    drains: Vec<Drain>,
    /// Set for good once all sessions are to end.
    draining: Option<MonotonicNanos>,
    stopping: bool,
    /// A turn ended with completions still coming.
    busy: bool,
    patience: Patience,
    messages: Vec<Message<V>>,
    requests: Vec<(Ticket, Export, Request)>,
    replies: Vec<(Ticket, Reply)>,
    /// By thread: what crosses at the end of this stage.
    crossing_requests: Vec<Vec<(Ticket, Export, Request)>>,
    crossing_replies: Vec<Vec<(Ticket, Reply)>>,
}

/// Sessions of one export, or all, are to end.
struct Drain {
    export: Option<Export>,
    deadline: MonotonicNanos,
    cut_off: usize,
    drained: Option<oneshot::Sender<usize>>,
}

impl Drain {
    fn concerns(&self, session: &Session) -> bool {
        self.export.is_none() || session.connection.export() == self.export
    }
}

impl<V: Volume + 'static> DataThread<V> {
    pub(super) fn new(
        index: usize,
        shared: Arc<Shared<V>>,
        poll: Poll,
        intake: Intake<Message<V>>,
        runtime: Rc<Runtime>,
    ) -> Result<DataThread<V>> {
        let backend = runtime.storage().backend();
        let readiness = runtime.storage().readiness().ok_or_else(|| {
            let message =
                format!("the {backend} back end has no descriptor to wait on, which a data thread needs");
            Error::new(ErrorKind::Unsupported, message)
        })?;
        poll.registry()
            .register(&mut SourceFd(&readiness.as_raw_fd()), STORAGE, Interest::READABLE)
            .map_err(|error| Error::io("cannot watch the storage back end", error))?;
        let threads = shared.threads();
        Ok(DataThread {
            index,
            shared,
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            intake,
            host: Host::new(runtime, index),
            listening: Listening::default(),
            lines: ClientLines::default(),
            sessions: HashMap::new(),
            negotiating: BTreeSet::new(),
            orphans: HashMap::new(),
            remote: HashMap::new(),
            turns: Vec::new(),
            sends: Vec::new(),
            room: Room::default(),
            deadlines: BinaryHeap::new(),
            drains: Vec::new(),
            draining: None,
            stopping: false,
            busy: false,
            patience: Patience::default(),
            messages: Vec::new(),
            requests: Vec::new(),
            replies: Vec::new(),
            crossing_requests: (0..threads).map(|_| Vec::new()).collect(),
            crossing_replies: (0..threads).map(|_| Vec::new()).collect(),
        })
    }

    /// Runs until it is told to stop.
    pub(super) fn run(mut self) -> Result<()> {
        while !(self.stopping && self.intake.is_finished()) {
            self.wait()?;
            self.take_messages();
            self.accept();
            self.receive();
            self.serve();
            self.reply();
            self.send();
            self.expire();
            self.look_for_hoarders();
            self.share_room();
            self.tell_left_out();
        }
        self.lines.finish();
        Ok(())
    }

    fn now(&self) -> MonotonicNanos {
        self.host.runtime().now()
    }

    fn after(&self, duration: Duration) -> MonotonicNanos {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        MonotonicNanos(self.now().0.saturating_add(nanos))
    }

    /// The clock is asked only if there is something to tell.
    fn tell_left_out(&mut self) {
        if self.lines.next_deadline().is_some() {
            self.lines.tell_left_out(self.host.runtime().now());
        }
    }

    fn wait(&mut self) -> Result<()> {
        let timeout = self.timeout();
        let may_sleep = timeout != Some(Duration::ZERO) && self.intake.prepare_to_sleep();
        let polled = match timeout {
            _ if !may_sleep => self.poll.poll(&mut self.events, Some(Duration::ZERO)),
            timeout => self.look_or_sleep(timeout),
        };
        if may_sleep {
            self.intake.awake();
        }
        match polled {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(Error::io("cannot wait for events", error)),
        }
        for event in &self.events {
            let token = event.token();
            if token.0 as u64 >= FIRST_SESSION {
                let id = token.0 as u64;
                // An event may have been under way while its session ended.
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.note(event);
                    Self::mark(session, &mut self.turns, &mut self.sends);
                }
            } else if token.0 >= FIRST_LISTENER {
                self.listening.note(token);
            }
        }
        Ok(())
    }

    /// Waits until something happens, or for `timeout`: with open eyes first, if it came soon lately.
    fn look_or_sleep(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let began = self.now();
        let waited = |thread: &Self| Duration::from_nanos(thread.now().0.saturating_sub(began.0));
        let look = self.patience.look().min(timeout.unwrap_or(Duration::MAX));
        while waited(self) < look {
            self.poll.poll(&mut self.events, Some(Duration::ZERO))?;
            if !self.events.is_empty() {
                return Ok(());
            }
        }
        self.poll.poll(&mut self.events, timeout.map(|timeout| timeout.saturating_sub(look)))?;
        self.patience.slept(waited(self));
        Ok(())
    }

    /// How long nothing needs to be done unless something happens; `None` for ever.
    fn timeout(&self) -> Option<Duration> {
        let has_work =
            self.busy || !self.turns.is_empty() || self.listening.has_work() || self.host.has_work();
        if has_work {
            return Some(Duration::ZERO);
        }
        let sessions = self.deadlines.peek().map(|Reverse((deadline, _))| *deadline);
        let drains = self.drains.iter().map(|drain| drain.deadline).min();
        let (lines, room) = (self.lines.next_deadline(), self.room.next_deadline());
        let deadlines = [self.host.next_deadline(), sessions, drains, self.listening.retry_at(), lines, room];
        let next = deadlines.into_iter().flatten().min()?;
        Some(Duration::from_nanos(next.0.saturating_sub(self.now().0)))
    }

    fn take_messages(&mut self) {
        let mut messages = std::mem::take(&mut self.messages);
        self.intake.drain(MESSAGES_A_TURN, &mut messages);
        for message in messages.drain(..) {
            self.take_message(message);
        }
        self.messages = messages;
    }

    fn take_message(&mut self, message: Message<V>) {
        match message {
            Message::Listen(listener) => self.listen(listener),
            Message::Attach { session, requests } => self.attach(*session, requests),
            Message::Submit { from, requests } => {
                for (ticket, export, request) in requests {
                    self.remote.insert(ticket.session, from);
                    self.host.submit(ticket, export, request);
                }
            }
            Message::Replies(replies) => self.replies.extend(replies),
            Message::SessionEnded { group, session } => {
                self.remote.remove(&session);
                self.host.session_ended(group, session);
            }
            Message::Measure(told) => {
                let sessions = self.sessions.values().map(|session| &session.connection);
                let orphans = self.orphans.values().map(|orphan| &orphan.connection);
                let held = sessions.chain(orphans).map(Connection::held_bytes);
                // Whoever asked may have lost interest.
                let _ = told.send(held.sum());
            }
            Message::Room => self.retry_waiting(),
            Message::Shortage => self.begin_looks(),
            Message::Command(command) => command(&mut self.host),
            Message::Drain { export, within, drained } => self.drain(export, within, drained),
            Message::Stop => {
                self.stopping = true;
                self.intake.close();
            }
        }
    }

    fn serve(&mut self) {
        self.busy = true;
        for step in 1..=STEPS_A_TURN {
            let progressed = self.host.step();
            // What a device with a fast answer was given in the first step is reaped in the second, without a wait.
            if !progressed && step > 1 {
                self.busy = false;
                break;
            }
        }
        self.host.take_replies(&mut self.replies);
    }

    fn reply(&mut self) {
        let mut answered = Vec::new();
        for (ticket, reply) in self.replies.drain(..) {
            if let Some(session) = self.sessions.get_mut(&ticket.session) {
                session.connection.complete(ticket, reply);
                Self::mark(session, &mut self.turns, &mut self.sends);
            } else if let Some(&thread) = self.remote.get(&ticket.session) {
                self.crossing_replies[thread].push((ticket, reply));
            } else {
                // The session has ended: nobody waits for it, but what it took is given back only now.
                answered.extend(
                    self.orphans.get_mut(&ticket.session).and_then(|orphan| orphan.take(ticket, reply)),
                );
            }
        }
        for id in answered {
            self.bury(id);
        }
        for (thread, crossing) in self.crossing_replies.iter_mut().enumerate() {
            if !crossing.is_empty() {
                // A thread that stopped has no sessions left.
                let _ = self.shared.publish(thread, Message::Replies(std::mem::take(crossing)));
            }
        }
    }

    /// Hands the requests gathered from a session to their volume: here by a call, elsewhere by a message.
    fn route(&mut self, home: Option<usize>) {
        match home {
            Some(home) if home != self.index => self.crossing_requests[home].append(&mut self.requests),
            _ => {
                for (ticket, export, request) in self.requests.drain(..) {
                    self.host.submit(ticket, export, request);
                }
            }
        }
    }

    fn cross_requests(&mut self) {
        for (thread, crossing) in self.crossing_requests.iter_mut().enumerate() {
            if crossing.is_empty() {
                continue;
            }
            let message = Message::Submit { from: self.index, requests: std::mem::take(crossing) };
            if let Err(Message::Submit { requests, .. }) = self.shared.publish(thread, message) {
                let refused = |(ticket, _, _)| (ticket, Err(crate::block::Refusal::Shutdown));
                self.replies.extend(requests.into_iter().map(refused));
            }
        }
    }
}

impl<V> DataThread<V> {
    /// Tells another thread's volume that a session here has ended.
    fn tell_ended(&self, home: usize, group: GroupId, session: u64) {
        // A thread that stopped needs no telling.
        let _ = self.shared.publish(home, Message::SessionEnded { group, session });
    }
}
