//! One client's whole life: handshake, transmission, and an end with a reason.
//!
//! The owner of the socket calls, in any order and as often as it likes: [`Connection::input`] to receive into,
//! [`Connection::advance`] after input, replies or sent output (each may lift a limit), [`Connection::complete`] with
//! replies, [`Connection::output`] and [`Connection::advance_output`] to send.
//!
//! What a connection holds is counted to its own limit and to the [`Budget`] of all: requests in flight, a payload on its way,
//! replies until the socket has taken them. Beyond those it has an input buffer of [`Limits::receive_bytes`] at most between two
//! calls; a larger one is a payload's, and counted as that.
//!
//! Invariant: an end is final. From then on input is dropped; what is in flight is still answered, and what is
//! queued still waits for the socket; then the state is [`State::Closed`].

use std::fmt;
use std::io::IoSlice;

use bytes::BytesMut;

use super::budget::{Account, Budget};
use super::handshake::Handshake;
use super::in_flight::InFlight;
use super::output::Output;
use super::request::Negotiated;
use super::session::{Context, Session};
use super::{Exports, Limits};
use crate::block::{Export, Reply, Request, Ticket};
use crate::sync::Arc;

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
    /// The server insists on TLS, and the client asked for an export in a way that knows no refusal, or cannot be told to begin TLS.
    #[error("the client would go on without TLS, which this address insists on")]
    TlsRequired,
    /// More came behind `NBD_OPT_STARTTLS` before it was answered: what anybody on the way may have put there.
    #[error("something followed NBD_OPT_STARTTLS that is not part of TLS")]
    PlaintextBehindStartTls,
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
    /// What comes next is TLS.
    StartTls,
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
    /// Capacity of the whole buffer of which `input` is what is left.
    input_allocated: usize,
    output: Output,
    in_flight: InFlight,
    account: Account,
    stopping: bool,
    blocked: bool,
    starting_tls: bool,
    closing: Option<CloseReason>,
}

impl Connection {
    /// A new client, whose greeting waits in the output; its tickets will carry `session`, and what it holds comes out of
    /// `budget`.
    pub fn new(session: u64, limits: Limits, budget: Arc<Budget>) -> Connection {
        let mut output = Output::default();
        let phase = Phase::Handshake(Handshake::new(&mut output));
        Connection {
            session,
            limits,
            phase,
            input: BytesMut::new(),
            input_allocated: 0,
            output,
            in_flight: InFlight::default(),
            account: Account::new(budget),
            stopping: false,
            blocked: false,
            starting_tls: false,
            closing: None,
        }
    }

    /// The same, but nothing is told or served before the client has begun TLS, which the owner of the socket speaks: see
    /// [`Connection::starts_tls`]. To be said before anything is received.
    pub fn require_tls(mut self) -> Connection {
        match &mut self.phase {
            Phase::Handshake(handshake) => handshake.require_tls(),
            Phase::Transmission(_) => unreachable!("it has received nothing yet"),
        }
        self
    }

    /// Whether the client was told to begin TLS: what waits for the socket is the last that goes out without, and whatever is received
    /// from now on is TLS's, to be decrypted before it is put into the input. Nothing is parsed until [`Connection::tls_started`].
    pub fn starts_tls(&self) -> bool {
        self.starting_tls
    }

    /// From now on the input is what TLS gives, and TLS takes the output.
    ///
    /// # Panics
    /// If the client was not told to begin TLS.
    pub fn tls_started(&mut self) {
        assert!(std::mem::take(&mut self.starting_tls), "nobody asked for TLS");
        assert!(
            self.input.is_empty(),
            "what was received without TLS is not to be taken for what came by it"
        );
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
            self.make_room(self.limits.receive_bytes.max(received + payload + RECEIVE_BYTES_BEHIND));
        }
        &mut self.input
    }

    /// How much of the room in [`Connection::input`] one receive should take. Room for a payload that is only expected must not
    /// fill with what turns out to be something else.
    pub fn receive_bytes_max(&self) -> usize {
        match &self.phase {
            Phase::Transmission(session) if session.payload_rest(self.input.len()) > 0 => usize::MAX,
            _ => self.limits.receive_bytes,
        }
    }

    /// Gives the input that capacity, in the memory that it has if nobody else uses it.
    fn make_room(&mut self, capacity: usize) {
        if !self.input.try_reclaim(capacity - self.input.len()) {
            self.move_input(capacity);
        }
    }

    fn move_input(&mut self, capacity: usize) {
        let mut input = BytesMut::with_capacity(capacity);
        input.extend_from_slice(&self.input);
        self.input_allocated = input.capacity();
        self.input = input;
    }

    /// Leaves a buffer that is larger than what is received in it calls for: its payload has it now, or something else came.
    fn leave_large_input(&mut self, needed: usize) {
        let is_made_for_it =
            needed <= self.input.capacity() && self.input_allocated <= needed + self.limits.receive_bytes;
        if self.input_allocated > self.limits.receive_bytes && !is_made_for_it {
            let received = self.input.len();
            self.move_input(if received > 0 { received.max(self.limits.receive_bytes) } else { 0 });
        }
    }

    fn drop_input(&mut self) {
        self.input = BytesMut::new();
        self.input_allocated = 0;
    }

    /// Parses as many messages as are complete and the limits allow; adds what the disk's owner is asked.
    pub fn advance(&mut self, exports: &dyn Exports, requests: &mut Vec<(Ticket, Export, Request)>) {
        self.blocked = false;
        self.account.wait_no_more();
        self.parse(exports, requests);
        if self.closing.is_some() {
            self.drop_input();
        }
        self.settle();
    }

    fn parse(&mut self, exports: &dyn Exports, requests: &mut Vec<(Ticket, Export, Request)>) {
        while self.closing.is_none() && !self.starting_tls {
            let needed = match &self.phase {
                Phase::Handshake(_) => 0,
                Phase::Transmission(session) => session.message_bytes(&self.input),
            };
            self.leave_large_input(needed);
            match self.step(exports, requests) {
                Step::Again => {}
                Step::Enter(negotiated) => self.phase = Phase::Transmission(Session::new(negotiated)),
                Step::StartTls => self.starting_tls = true,
                Step::Close(reason) => self.closing = Some(reason),
                Step::NeedInput => return,
                Step::Blocked => {
                    self.blocked = true;
                    self.leave_large_input(0);
                    return;
                }
            }
        }
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
                account: &mut self.account,
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
        self.settle();
    }

    fn settle(&mut self) {
        self.account.settle(self.held_bytes());
    }

    /// Adds what waits for the socket, in order, as far as one `writev` takes it.
    pub fn output<'a>(&'a self, slices: &mut Vec<IoSlice<'a>>) {
        self.output.gather(slices);
    }

    /// Forgets the first `count` bytes of the output: the socket took them.
    pub fn advance_output(&mut self, count: usize) {
        self.output.advance(count);
        self.settle();
    }

    /// Whoever sends holds that many bytes of what was taken from the output, and the socket has not taken them yet: they count as what
    /// waits here.
    pub fn note_unsent(&mut self, bytes: usize) {
        self.output.set_unsent(bytes);
        self.settle();
    }

    /// The socket takes no more for now: what waits is to take no more memory than it must.
    pub fn output_stalled(&mut self) {
        self.output.let_go();
        self.settle();
    }

    /// The socket is gone: nothing is parsed or sent any more. What is in flight still takes memory until it is answered.
    pub fn abandon(&mut self) {
        self.closing.get_or_insert(CloseReason::EndOfStream);
        self.drop_input();
        if let Phase::Transmission(session) = &mut self.phase {
            session.drop_payload(&mut self.in_flight);
        }
        self.output = Output::default();
        self.settle();
    }

    /// The client closed its sending side; what it asked is still answered.
    pub fn end_of_input(&mut self) {
        self.closing.get_or_insert(CloseReason::EndOfStream);
        self.drop_input();
        if let Phase::Transmission(session) = &mut self.phase {
            session.drop_payload(&mut self.in_flight);
        }
        self.settle();
    }

    /// The server stops: from now on requests are refused with `ESHUTDOWN` and options with
    /// `NBD_REP_ERR_SHUTDOWN`, also a WRITE whose payload has not all come; what is in flight is still answered.
    pub fn begin_shutdown(&mut self) {
        self.stopping = true;
        if let Phase::Transmission(session) = &mut self.phase {
            session.begin_shutdown(&mut self.in_flight);
        }
        self.settle();
    }

    /// Whether a WRITE's payload is on its way, so that there is an answer to come, though nothing is in flight.
    pub fn awaits_payload(&self) -> bool {
        matches!(&self.phase, Phase::Transmission(session) if session.awaits_payload())
    }

    /// Whether the socket should be read. While a limit holds it should not: that is the back-pressure.
    pub fn wants_input(&self) -> bool {
        self.closing.is_none() && !self.blocked && !self.starting_tls
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

    /// The session of its tickets.
    pub fn session(&self) -> u64 {
        self.session
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

    /// Bytes of the requests in flight, and of the payload that is being received.
    pub fn payload_bytes_in_flight(&self) -> usize {
        self.in_flight.payload_bytes
    }

    /// Bytes that count towards [`Limits::payload_bytes_max`].
    pub fn held_bytes(&self) -> usize {
        self.in_flight.payload_bytes + self.output.held_bytes()
    }

    /// What it has of the budget that all connections share.
    pub fn shared_bytes(&self) -> usize {
        self.account.taken()
    }

    /// What it lacks of that budget for its next request; zero if it does not wait for that.
    pub fn missing_bytes(&self) -> usize {
        if self.blocked { self.account.missing() } else { 0 }
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
