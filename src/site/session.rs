//! A client's socket and its [`Connection`], and when either may go on.
//!
//! Events come on edges: `readable` remembers that an edge was seen and the socket not emptied since, so a session
//! that may not read now (a limit holds, or others have their turn) goes on later without a new event. Room to send
//! is watched only while a send had to stop, since a peer that reads would otherwise wake the loop for nothing.
//!
//! A client that holds what others wait for is not waited for without end: [`Session::look`] counts for how long it has moved next to
//! nothing.

use std::io;

use mio::{Registry, Token};

use super::listener::Socket;
use crate::block::{Export, Request, Ticket};
use crate::capture::nbd::{Connection, Exports, State};
use crate::storage::receive;
use crate::units::MonotonicNanos;

/// Receives of one session in a turn of the loop: then the others have theirs.
const RECEIVES_A_TURN: usize = 4;
/// A client that moves less between two looks, a second, counts as idle,
const MOVED_MIN: usize = 4 << 10;
/// and one that would take more looks than this to come to the end of what it holds.
const LOOKS_TO_CLEAR: usize = 300;

pub(super) struct Session {
    pub(super) id: u64,
    pub(super) connection: Connection,
    /// The thread that owns its group, once an export is chosen.
    pub(super) home: Option<usize>,
    /// When it is cut off.
    pub(super) deadline: Option<MonotonicNanos>,
    /// Whether it waits for its turn to receive.
    pub(super) has_turn: bool,
    /// Whether it waits for its turn to send.
    pub(super) has_send: bool,
    /// Whether it is among those of its thread that wait for room in the budget of all.
    pub(super) waits_for_room: bool,
    socket: Socket,
    /// Bytes that moved since the last look.
    moved_bytes: usize,
    /// Looks in a row that found it holding what it keeps from others, and too little moved.
    looks_idle: u32,
    readable: bool,
    /// The peer sends no more, so a receive that leaves room is not yet the last.
    read_closed: bool,
    room_watched: bool,
    broken: bool,
    closing: bool,
}

impl Session {
    pub(super) fn new(id: u64, socket: Socket, connection: Connection) -> Session {
        Session {
            id,
            connection,
            home: None,
            deadline: None,
            has_turn: false,
            has_send: false,
            waits_for_room: false,
            socket,
            moved_bytes: 0,
            looks_idle: 0,
            readable: true,
            read_closed: false,
            room_watched: false,
            broken: false,
            closing: false,
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        // What came while nobody listened is found by looking, not by an edge.
        self.readable = true;
        self.room_watched = false;
        self.socket.register(registry, token)
    }

    pub(super) fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.socket.deregister(registry)
    }

    /// Takes note of an event.
    pub(super) fn note(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable() || event.is_read_closed();
        self.read_closed |= event.is_read_closed();
        // An error that only sending would show must not wait for something to send.
        self.broken |= event.is_error() && !event.is_readable();
    }

    /// Receives and parses, until the socket is empty, a limit holds, or its turn is over.
    pub(super) fn receive(&mut self, exports: &dyn Exports, requests: &mut Vec<(Ticket, Export, Request)>) {
        if !self.connection.wants_input() {
            self.connection.advance(exports, requests);
        }
        for _ in 0..RECEIVES_A_TURN {
            if !self.wants_turn() {
                return;
            }
            self.receive_once();
            self.connection.advance(exports, requests);
        }
    }

    fn receive_once(&mut self) {
        let bytes_max = self.connection.receive_bytes_max();
        let input = self.connection.input();
        let room = (input.capacity() - input.len()).min(bytes_max);
        match receive(&self.socket, input, bytes_max) {
            Ok(0) => {
                self.readable = false;
                self.connection.end_of_input();
            }
            // A receive that leaves room has emptied the socket: what comes from now on makes a new edge.
            Ok(bytes) => {
                self.readable = bytes == room || self.read_closed;
                self.moved_bytes += bytes;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.give_up("receive", &error),
        }
    }

    /// Sends what waits, until it is sent or there is no room; whether anything left.
    pub(super) fn send(&mut self, registry: &Registry, token: Token) -> bool {
        let mut any = false;
        while self.connection.wants_output() && !self.broken {
            let mut slices = Vec::with_capacity(16);
            self.connection.output(&mut slices);
            let sent = self.socket.write_vectored(&slices);
            match sent {
                Ok(bytes) => {
                    self.connection.advance_output(bytes);
                    self.moved_bytes += bytes;
                    any = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.watch_room(registry, token, true);
                    self.connection.output_stalled();
                    return any;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.give_up("send", &error),
            }
        }
        self.watch_room(registry, token, false);
        any
    }

    /// Looks, every so often while others wait for room: how many looks in a row have found that it holds some of what all share,
    /// that it is the client's turn to take replies or to send the rest of a payload, and that too little moved. A client that waits
    /// for us is never counted: requests that the disk does not answer are not its doing.
    pub(super) fn look(&mut self) -> u32 {
        let held = self.connection.shared_bytes();
        let moved = std::mem::take(&mut self.moved_bytes) >= MOVED_MIN.max(held / LOOKS_TO_CLEAR);
        let is_clients_turn = self.connection.wants_output() || self.connection.awaits_payload();
        let hoards = is_clients_turn && held > 0;
        self.looks_idle = if hoards && !moved { self.looks_idle + 1 } else { 0 };
        self.looks_idle
    }

    /// What was seen before does not count: nobody waited then.
    pub(super) fn begin_looks(&mut self) {
        self.moved_bytes = usize::MAX / 2;
        self.looks_idle = 0;
    }

    fn watch_room(&mut self, registry: &Registry, token: Token, watch: bool) {
        if self.room_watched == watch || self.broken {
            return;
        }
        self.room_watched = watch;
        if let Err(error) = self.socket.watch_room(registry, token, watch) {
            self.give_up("watch", &error);
        }
    }

    fn give_up(&mut self, what: &str, error: &io::Error) {
        tracing::debug!(session = self.id, %error, "cannot {what}: the connection is lost");
        self.broken = true;
    }

    /// From now on its requests are refused; it ends when what is in flight has been answered, and what had reached us by
    /// now has been refused: an idle one at once, as the protocol's "Terminating the transmission phase" has it. Of a write
    /// that has begun to come the rest is waited for, until the deadline: its client is owed an answer.
    pub(super) fn begin_closing(&mut self, deadline: MonotonicNanos) {
        self.connection.begin_shutdown();
        self.closing = true;
        // Requests may have come since the last look, whose edge nobody has seen yet.
        self.readable = true;
        self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
    }

    /// Ends it now, whatever is owed.
    pub(super) fn cut_off(&mut self) {
        self.broken = true;
    }

    /// Whether there is something to receive, and it may.
    pub(super) fn wants_turn(&self) -> bool {
        self.readable && !self.broken && self.connection.wants_input()
    }

    /// Whether a limit keeps it from going on; replies and sent output may lift it.
    pub(super) fn is_blocked(&self) -> bool {
        !self.connection.wants_input() && self.connection.close_reason().is_none()
    }

    /// Whether nothing more will come of it.
    pub(super) fn is_over(&self) -> bool {
        let answered = self.connection.requests_in_flight() == 0
            && !self.connection.wants_output()
            && !self.connection.awaits_payload();
        self.broken
            || self.connection.state() == State::Closed
            || (self.closing && answered && !self.readable && !self.is_blocked())
    }

    /// Whether the client has ended it, and only what it asked before is still owed.
    pub(super) fn is_draining(&self) -> bool {
        self.connection.state() == State::Draining
    }
}
