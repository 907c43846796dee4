//! A client's socket and its [`Connection`], and when either may go on.
//!
//! Events come on edges: `readable` remembers that an edge was seen and the socket not emptied since, so a session
//! that may not read now (a limit holds, or others have their turn) goes on later without a new event. Room to send
//! is watched only while a send had to stop, since a peer that reads would otherwise wake the loop for nothing.
//!
//! A client that is to come by TLS has it between the socket and its connection from the moment that it was told to begin; without, bytes
//! are received where they are parsed and sent from where they lie.
//!
//! Where TLS cannot be agreed on, the client is told why, and what it goes on sending is thrown away until it hangs up or its deadline has
//! passed: a socket that is closed over unread bytes is reset, and what the client was told might be lost.
//!
//! A client that holds what others wait for is not waited for without end: [`Session::look`] counts for how long it has moved next to
//! nothing.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::BytesMut;
use mio::{Registry, Token};
use rustls::ServerConfig;

use super::listener::Socket;
use super::tls_stream::{Ended, ReceiveError, TlsStream};
use crate::block::{Export, Request, Ticket};
use crate::capture::nbd::{Connection, Exports, State};
use crate::storage::receive;
use crate::units::MonotonicNanos;

/// Receives of one session in a turn of the loop: then the others have theirs.
const RECEIVES_A_TURN: usize = 4;
/// Bytes of a client that has failed, at once.
const THROWN_AWAY_AT_ONCE: usize = 16 << 10;
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
    /// For a client that must begin TLS.
    tls_config: Option<Arc<ServerConfig>>,
    /// Once it has begun.
    tls: Option<Box<TlsStream>>,
    tls_failure: Option<rustls::Error>,
    /// Whether TLS failed before client and server had agreed, and only the client's hanging up is waited for.
    lingers: bool,
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
    /// A client that has just come, and must begin TLS if there is a configuration of it.
    pub(super) fn new(
        id: u64,
        socket: Socket,
        connection: Connection,
        tls_config: Option<Arc<ServerConfig>>,
    ) -> Session {
        let connection = if tls_config.is_some() { connection.require_tls() } else { connection };
        Session {
            id,
            connection,
            home: None,
            deadline: None,
            has_turn: false,
            has_send: false,
            waits_for_room: false,
            socket,
            tls_config,
            tls: None,
            tls_failure: None,
            lingers: false,
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
            if self.lingers {
                self.throw_away();
                continue;
            }
            match self.tls.take() {
                None => self.receive_once(),
                Some(mut tls) => {
                    self.receive_by_tls(&mut tls);
                    // What failed takes nothing more, and says nothing more.
                    self.tls = Some(tls).filter(|_| !self.lingers);
                }
            }
            self.connection.advance(exports, requests);
            if self.connection.starts_tls() {
                self.start_tls();
            }
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

    /// The same where TLS lies between: what it decrypts is received.
    fn receive_by_tls(&mut self, tls: &mut TlsStream) {
        let bytes_max = self.connection.receive_bytes_max();
        match tls.receive(&self.socket, self.connection.input(), bytes_max) {
            Ok(received) => {
                self.moved_bytes += received.bytes;
                match received.ended {
                    Ended::Early => {}
                    Ended::Empty => self.readable = self.read_closed,
                    Ended::EndOfStream => {
                        self.readable = false;
                        self.connection.end_of_input();
                    }
                }
            }
            Err(ReceiveError::Io(error)) => self.give_up("receive", &error),
            Err(ReceiveError::Tls(error)) => self.fail(tls, error),
        }
    }

    /// The client is told why, if its socket takes that at once; nothing more is said.
    fn fail(&mut self, tls: &mut TlsStream, error: rustls::Error) {
        let told = tls.send(&mut self.socket).and_then(|_| self.socket.end_sending());
        self.tls_failure = Some(error);
        self.lingers = told.is_ok() && self.connection.in_handshake();
        self.broken = !self.lingers;
    }

    /// Receives what nobody looks at, until the client hangs up.
    fn throw_away(&mut self) {
        let mut nothing = BytesMut::with_capacity(THROWN_AWAY_AT_ONCE);
        match receive(&self.socket, &mut nothing, THROWN_AWAY_AT_ONCE) {
            Ok(0) => self.broken = true,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.broken = true,
        }
    }

    /// The client was told to begin TLS: that answer is the last that goes out without.
    fn start_tls(&mut self) {
        let config = self.tls_config.take().expect("only who must begin TLS is told to");
        let mut slices = Vec::with_capacity(1);
        self.connection.output(&mut slices);
        let preface: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.connection.advance_output(preface.len());
        self.connection.tls_started();
        match TlsStream::new(config, &preface) {
            Ok(tls) => self.tls = Some(Box::new(tls)),
            Err(error) => {
                self.tls_failure = Some(error);
                self.broken = true;
            }
        }
    }

    /// Sends what waits, until it is sent or there is no room; whether anything left.
    pub(super) fn send(&mut self, registry: &Registry, token: Token) -> bool {
        match self.tls.take() {
            None => self.send_plainly(registry, token),
            Some(mut tls) => {
                let sent = self.send_by_tls(&mut tls, registry, token);
                self.tls = Some(tls);
                sent
            }
        }
    }

    /// The same where TLS lies between; what it encrypted and the socket has not taken counts as output. Once nothing more will come it
    /// says so to the client.
    fn send_by_tls(&mut self, tls: &mut TlsStream, registry: &Registry, token: Token) -> bool {
        let mut any = false;
        while !self.broken {
            if self.has_ended() && !tls.has_pending() {
                tls.close();
            }
            let mut slices = Vec::with_capacity(16);
            self.connection.output(&mut slices);
            let taken = tls.encrypt(&slices);
            self.connection.advance_output(taken);
            self.moved_bytes += taken;
            any |= taken > 0;
            if !tls.wants_send() {
                break;
            }
            let sent = tls.send(&mut self.socket);
            self.connection.note_unsent(tls.unsent_bytes());
            match sent {
                Ok(bytes) => any |= bytes > 0,
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

    fn send_plainly(&mut self, registry: &Registry, token: Token) -> bool {
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
        let is_clients_turn = self.has_output() || self.connection.awaits_payload();
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
        self.may_receive() && !self.broken && self.connection.wants_input()
    }

    /// Whether something may have come that was not looked at yet.
    fn may_receive(&self) -> bool {
        self.readable || self.tls.as_ref().is_some_and(|tls| tls.has_pending())
    }

    /// Whether a limit keeps it from going on; replies and sent output may lift it.
    pub(super) fn is_blocked(&self) -> bool {
        !self.connection.wants_input() && self.connection.close_reason().is_none()
    }

    /// Whether client and server are agreeing on TLS, which takes the processor's time for a client of whom nothing is known.
    pub(super) fn is_agreeing_on_tls(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Why TLS failed, if it has just now.
    pub(super) fn take_tls_failure(&mut self) -> Option<rustls::Error> {
        self.tls_failure.take()
    }

    /// Whether something waits for the socket.
    fn has_output(&self) -> bool {
        self.connection.wants_output() || self.tls.as_ref().is_some_and(|tls| tls.wants_send())
    }

    /// Whether it has something to send, or to bring to its end.
    pub(super) fn wants_send(&self) -> bool {
        self.has_output() || self.broken || self.has_ended() || self.is_draining()
    }

    /// Whether nothing more will come of its connection.
    fn has_ended(&self) -> bool {
        let answered = self.connection.requests_in_flight() == 0
            && !self.connection.wants_output()
            && !self.connection.awaits_payload();
        self.connection.state() == State::Closed
            || (self.closing && answered && !self.may_receive() && !self.is_blocked())
    }

    /// Whether nothing more will come of it.
    pub(super) fn is_over(&self) -> bool {
        self.broken || (self.has_ended() && self.tls.as_ref().is_none_or(|tls| tls.is_closed()))
    }

    /// Whether the client has ended it, and only what it asked before is still owed.
    pub(super) fn is_draining(&self) -> bool {
        let is_unsent = || self.has_output() && self.connection.state() == State::Closed;
        self.connection.state() == State::Draining || is_unsent()
    }
}
