//! One client's whole life: handshake, transmission, and an end with a reason.
//!
//! The owner of the socket calls, in any order and as often as it likes: [`Connection::input`] to receive into,
//! [`Connection::advance`] after input, replies or sent output (each may lift a limit), [`Connection::complete`] with
//! replies, [`Connection::output`] and [`Connection::advance_output`] to send.
//!
//! Invariant: an end is final. From then on input is dropped; what is in flight is still answered, and what is
//! queued still waits for the socket; then the state is [`State::Closed`].

use std::fmt;
use std::io::IoSlice;

use bytes::BytesMut;

use super::handshake::Handshake;
use super::in_flight::InFlight;
use super::output::Output;
use super::request::Negotiated;
use super::session::{Context, Session};
use super::{Exports, Limits};
use crate::block::{Export, Reply, Request, Ticket};

/// Room around a large payload, for its header and the requests that follow it.
const RECEIVE_BYTES_BEHIND: usize = 4 << 10;
/// An incomplete message of at most this length is moved rather than received piecemeal.
const RECEIVED_BYTES_MOVED_MAX: usize = 16 << 10;

/// Where a connection's life stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No export is chosen yet.
    Handshake,
    /// Requests are served.
    Transmission,
    /// Nothing more is read; what is in flight or queued still goes out.
    Draining,
    /// Nothing more will happen.
    Closed,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// `NBD_CMD_DISC`.
    #[error("the client disconnected")]
    Disconnected,
    /// `NBD_OPT_ABORT`.
    #[error("the client aborted the handshake")]
    Aborted,
    /// The client closed its end without saying so.
    #[error("the client closed the connection without a disconnect")]
    EndOfStream,
    /// The server stops, and the client asked for an export in a way that knows no refusal.
    #[error("the server stops")]
    Shutdown,
    /// Client flags that were not offered.
    #[error("client flags {0:#x} hold some that were not offered")]
    UnknownClientFlags(u32),
    /// An option does not start with `IHAVEOPT`.
    #[error("an option starts with {0:#x}, not IHAVEOPT")]
    BadOptionMagic(u64),
    /// `NBD_OPT_EXPORT_NAME`, which knows no refusal, named what is not served.
    #[error("NBD_OPT_EXPORT_NAME named an export that is not served")]
    ExportUnavailable,
    /// A request does not start with `NBD_REQUEST_MAGIC`.
    #[error("a request starts with {0:#x}, not NBD_REQUEST_MAGIC")]
    BadRequestMagic(u32),
}

impl CloseReason {
    /// Whether the client ended it as the protocol says; otherwise it is worth a log line.
    pub fn is_orderly(self) -> bool {
        matches!(self, CloseReason::Disconnected | CloseReason::Aborted)
    }
}

/// What the connection does after a step.
pub(super) enum Step {
    /// Something was parsed; there may be more.
    Again,
    /// The next message is not complete.
    NeedInput,
    /// A limit was reached; the input waits.
    Blocked,
    /// The handshake is over.
    Enter(Negotiated),
    /// The connection ends.
    Close(CloseReason),
}

enum Phase {
    Handshake(Handshake),
    Transmission(Session),
}

/// One client.
pub struct Connection {
    session: u64,
    limits: Limits,
    phase: Phase,
    input: BytesMut,
    output: Output,
    in_flight: InFlight,
    stopping: bool,
    blocked: bool,
    closing: Option<CloseReason>,
}

impl Connection {
    /// A new client, whose greeting waits in the output; its tickets will carry `session`.
    pub fn new(session: u64, limits: Limits) -> Connection {
        let mut output = Output::default();
        let phase = Phase::Handshake(Handshake::new(&mut output));
        Connection {
            session,
            limits,
            phase,
            input: BytesMut::new(),
            output,
            in_flight: InFlight::default(),
            stopping: false,
            blocked: false,
            closing: None,
        }
    }

    /// Where to append what the socket receives. There is spare capacity: much, so that many requests come at once,
    /// and for all the rest of a payload that is being received, so that it lies in one piece.
    pub fn input(&mut self) -> &mut BytesMut {
        let received = self.input.len();
        let (rest, expected) = match &self.phase {
            Phase::Handshake(_) => (0, 0),
            Phase::Transmission(session) => (session.payload_rest(received), session.payload_expected()),
        };
        // Little room is not worth a receive, but new room means that what was received of a message moves there: worth it for little of it only.
        let least = if received > RECEIVED_BYTES_MOVED_MAX { 1 } else { self.limits.receive_bytes / 4 };
        if self.input.capacity() - received < least.max(rest) {
            let payload = if rest > 0 { rest } else { expected };
            self.input.reserve(self.limits.receive_bytes.max(payload + RECEIVE_BYTES_BEHIND));
        }
        &mut self.input
    }

    /// Parses as many messages as are complete and the limits allow; adds what the disk's owner is asked.
    pub fn advance(&mut self, exports: &dyn Exports, requests: &mut Vec<(Ticket, Export, Request)>) {
        self.blocked = false;
        while self.closing.is_none() {
            match self.step(exports, requests) {
                Step::Again => {}
                Step::Enter(negotiated) => self.phase = Phase::Transmission(Session::new(negotiated)),
                Step::Close(reason) => self.closing = Some(reason),
                Step::NeedInput => return,
                Step::Blocked => {
                    self.blocked = true;
                    return;
                }
            }
        }
        self.input = BytesMut::new();
    }

    fn step(&mut self, exports: &dyn Exports, requests: &mut Vec<(Ticket, Export, Request)>) -> Step {
        match &mut self.phase {
            Phase::Handshake(handshake) => {
                handshake.step(&mut self.input, exports, &mut self.output, &self.limits, self.stopping)
            }
            Phase::Transmission(session) => session.step(&mut Context {
                session: self.session,
                limits: &self.limits,
                stopping: self.stopping,
                input: &mut self.input,
                output: &mut self.output,
                in_flight: &mut self.in_flight,
                requests,
            }),
        }
    }

    /// Queues the reply to a request.
    ///
    /// # Panics
    /// If the ticket is not that of a request in flight here, or the reply not one to that request.
    pub fn complete(&mut self, ticket: Ticket, reply: Reply) {
        assert!(ticket.session == self.session, "{ticket:?} came to session {}", self.session);
        let pending = self.in_flight.remove(ticket.request);
        match &self.phase {
            Phase::Transmission(session) => session.reply(&mut self.output, &pending, reply),
            Phase::Handshake(_) => unreachable!("nothing is in flight before an export is chosen"),
        }
    }

    /// Adds what waits for the socket, in order, as far as one `writev` takes it.
    pub fn output<'a>(&'a self, slices: &mut Vec<IoSlice<'a>>) {
        self.output.gather(slices);
    }

    /// Forgets the first `count` bytes of the output: the socket took them.
    pub fn advance_output(&mut self, count: usize) {
        self.output.advance(count);
    }

    /// The client closed its sending side; what it asked is still answered.
    pub fn end_of_input(&mut self) {
        self.closing.get_or_insert(CloseReason::EndOfStream);
        self.input = BytesMut::new();
    }

    /// The server stops: from now on requests are refused with `ESHUTDOWN` and options with
    /// `NBD_REP_ERR_SHUTDOWN`, also a WRITE whose payload has not all come; what is in flight is still answered.
    pub fn begin_shutdown(&mut self) {
        self.stopping = true;
        if let Phase::Transmission(session) = &mut self.phase {
            session.begin_shutdown(&mut self.in_flight);
        }
    }

    /// Whether a WRITE's payload is on its way, so that there is an answer to come, though nothing is in flight.
    pub fn awaits_payload(&self) -> bool {
        matches!(&self.phase, Phase::Transmission(session) if session.awaits_payload())
    }

    /// Whether the socket should be read. While a limit holds it should not: that is the back-pressure.
    pub fn wants_input(&self) -> bool {
        self.closing.is_none() && !self.blocked
    }

    /// Whether something waits for the socket.
    pub fn wants_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether no export is chosen yet.
    pub fn in_handshake(&self) -> bool {
        matches!(self.phase, Phase::Handshake(_))
    }

    /// The export that was chosen.
    pub fn export(&self) -> Option<Export> {
        match &self.phase {
            Phase::Handshake(_) => None,
            Phase::Transmission(session) => Some(session.negotiated.export),
        }
    }

    /// Where its life stands.
    pub fn state(&self) -> State {
        match (self.closing, &self.phase) {
            (Some(_), _) if self.in_flight.is_empty() && self.output.is_empty() => State::Closed,
            (Some(_), _) => State::Draining,
            (None, Phase::Handshake(_)) => State::Handshake,
            (None, Phase::Transmission(_)) => State::Transmission,
        }
    }

    /// Why it ends or ended.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.closing
    }

    /// Requests handed out and not answered.
    pub fn requests_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Bytes that count towards [`Limits::payload_bytes_max`].
    pub fn payload_bytes_in_flight(&self) -> usize {
        self.in_flight.payload_bytes
    }

    /// Bytes that wait for the socket.
    pub fn output_bytes(&self) -> usize {
        self.output.bytes()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("session", &self.session)
            .field("state", &self.state())
            .field("close_reason", &self.closing)
            .field("requests_in_flight", &self.in_flight.len())
            .field("output_bytes", &self.output.bytes())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
