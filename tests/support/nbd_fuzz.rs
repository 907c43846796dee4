//! What the NBD fuzz targets do with an input; the ordinary tests replay the corpora through it.
//!
//! An input is three bytes and what a client sends:
//!
//! ```text
//!   0  switches   1 structured replies, 2 base:allocation, 4 read-only (of the agreed handshake; requests only)
//!   1  receive    one receive takes 1 + 16 × this many bytes
//!   2  answers    after each receive the low two bits say how many requests are answered, the rest which
//!   3  stream
//! ```

// Each target uses its half.
#![allow(dead_code)]

use afterimage::capture::nbd::client::{context_data, encode_client_flags, encode_option, info_data};
use afterimage::capture::nbd::codec::*;
use afterimage::capture::nbd::{CloseReason, Limits, State};
use afterimage::units::to_usize;

use crate::nbd_model::{EXPORT, Server};

const SIZE: u64 = 64 << 10;
/// Small, so that a short input reaches them.
const LIMITS: Limits = Limits {
    requests_max: 4,
    payload_bytes_max: 16 << 10,
    output_bytes_max: 8 << 10,
    option_bytes_max: 1024,
    receive_bytes: 4096,
};
/// The longest reply to one request or option here: a read of the whole disk in chunks of a sector.
const REPLY_BYTES_MAX: usize = 128 << 10;

/// How a run went.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub entered: bool,
    pub requests: usize,
    pub replies: usize,
    pub errors: usize,
    pub reason: Option<CloseReason>,
}

struct Script<'a> {
    switches: u8,
    receive_bytes: usize,
    answers: usize,
    choice: usize,
    stream: &'a [u8],
}

impl Script<'_> {
    fn parse(data: &[u8]) -> Option<Script<'_>> {
        let (&[switches, receive, answers], stream) = data.split_first_chunk()?;
        let receive_bytes = 1 + 16 * usize::from(receive);
        let (answers, choice) = (usize::from(answers & 3), usize::from(answers >> 2));
        Some(Script { switches, receive_bytes, answers, choice, stream })
    }

    /// Plays the stream to its end, with a client that takes its replies; what the server said.
    fn play(&self, server: &mut Server) -> Vec<u8> {
        let mut said = Vec::new();
        for piece in self.stream.chunks(self.receive_bytes) {
            server.receive(piece);
            for _ in 0..self.answers {
                server.answer(self.choice);
            }
            check(server);
            // A socket is not read while a limit holds; the fuzzer's next piece must find the limit lifted.
            while !server.connection.wants_input() && server.connection.close_reason().is_none() {
                server.answer(self.choice);
                said.extend(server.send_all());
                server.advance();
                check(server);
            }
            said.extend(server.send(self.receive_bytes));
        }
        server.connection.end_of_input();
        while server.answer(self.choice) {}
        said.extend(server.send_all());
        finish(server);
        said
    }
}

/// What holds at any moment.
fn check(server: &Server) {
    let connection = &server.connection;
    assert_eq!(connection.requests_in_flight(), server.requests.len());
    assert!(connection.requests_in_flight() <= LIMITS.requests_max);
    assert!(connection.payload_bytes_in_flight() <= LIMITS.payload_bytes_max.max(to_usize(SIZE)));
    let replies_max = (1 + LIMITS.requests_max) * REPLY_BYTES_MAX;
    assert!(connection.output_bytes() <= LIMITS.output_bytes_max + replies_max);
    assert_eq!(
        connection.close_reason().is_some(),
        matches!(connection.state(), State::Draining | State::Closed)
    );
}

/// What holds at the end, and after it.
fn finish(server: &mut Server) {
    assert_eq!(server.connection.state(), State::Closed, "{:?}", server.connection);
    let reason = server.connection.close_reason();
    server.receive(&[0x25, 0x60, 0x95, 0x13].repeat(16));
    assert!(
        server.requests.is_empty() && !server.connection.wants_input() && !server.connection.wants_output()
    );
    assert_eq!((server.connection.state(), server.connection.close_reason()), (State::Closed, reason));
}

/// A client's bytes from the first one on.
pub fn handshake(data: &[u8]) -> Option<Outcome> {
    let script = Script::parse(data)?;
    let mut server = Server::new(SIZE, false, LIMITS);
    let greeting = server.send_all();
    assert_eq!(greeting, b"NBDMAGICIHAVEOPT\x00\x03");
    let said = script.play(&mut server);
    insist_on_tls(&script);
    let entered = !server.connection.in_handshake();
    let (replies, errors) = if entered { (0, 0) } else { option_replies(&said) };
    Some(Outcome { entered, requests: 0, replies, errors, reason: server.connection.close_reason() })
}

/// The same bytes where TLS is insisted on: whatever they are, nothing is told or served by them.
fn insist_on_tls(script: &Script<'_>) {
    let mut server = Server::new(SIZE, false, LIMITS);
    server.connection = server.connection.require_tls();
    server.send_all();
    let mut said = Vec::new();
    for piece in script.stream.chunks(script.receive_bytes) {
        server.receive(piece);
        said.extend(server.send_all());
        check(&server);
        while !server.connection.wants_input() {
            if server.connection.starts_tls() || server.connection.close_reason().is_some() {
                break;
            }
            server.advance();
            said.extend(server.send_all());
        }
        if server.connection.starts_tls() {
            break;
        }
    }
    assert!(server.connection.in_handshake() && server.requests.is_empty());
    let mut fields = Fields(&said);
    while !fields.is_empty() {
        let (magic, option) = (fields.u64(), fields.u32().unwrap());
        let (kind, length) = (fields.u32().unwrap(), fields.u32().unwrap());
        fields.bytes(length as usize).expect("a reply is as long as it says");
        let is_error = kind & NBD_REP_FLAG_ERROR != 0;
        let is_answered = kind == NBD_REP_ACK && matches!(option, NBD_OPT_STARTTLS | NBD_OPT_ABORT);
        assert!(magic == Some(NBD_REP_MAGIC) && (is_error || is_answered), "option {option}: {kind:#x}");
    }
}

/// How many final replies and how many errors `said` holds; all of it must be replies to options.
fn option_replies(said: &[u8]) -> (usize, usize) {
    let mut fields = Fields(said);
    let (mut replies, mut errors) = (0, 0);
    while !fields.is_empty() {
        assert_eq!(fields.u64(), Some(NBD_REP_MAGIC));
        let (_, kind, length) = (fields.u32(), fields.u32().unwrap(), fields.u32().unwrap());
        fields.bytes(length as usize).expect("a reply is as long as it says");
        let is_error = kind & NBD_REP_FLAG_ERROR != 0;
        replies += usize::from(kind == NBD_REP_ACK || is_error);
        errors += usize::from(is_error);
    }
    (replies, errors)
}

/// A client's bytes after an agreed handshake.
pub fn requests(data: &[u8]) -> Option<Outcome> {
    let script = Script::parse(data)?;
    let mut server = Server::new(SIZE, script.switches & 4 != 0, LIMITS);
    let structured = script.switches & 1 != 0;
    server.receive(&agreed(structured, script.switches & 2 != 0));
    server.send_all();
    assert_eq!(server.connection.state(), State::Transmission);
    let said = script.play(&mut server);
    let requests = complete_requests(script.stream);
    let (replies, errors) = if structured { structured_replies(&said) } else { (requests, 0) };
    assert_eq!(replies, requests, "every complete request is answered once");
    Some(Outcome { entered: true, requests, replies, errors, reason: server.connection.close_reason() })
}

fn agreed(structured: bool, allocation: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_client_flags(&mut bytes);
    if structured {
        encode_option(NBD_OPT_STRUCTURED_REPLY, &[], &mut bytes);
    }
    if structured && allocation {
        encode_option(NBD_OPT_SET_META_CONTEXT, &context_data(EXPORT, &[BASE_ALLOCATION]), &mut bytes);
    }
    encode_option(NBD_OPT_GO, &info_data(EXPORT, &[]), &mut bytes);
    bytes
}

/// Requests that a server must answer, by a parser of our own.
fn complete_requests(mut stream: &[u8]) -> usize {
    let mut requests = 0;
    while let Some(header) = RequestHeader::peek(stream) {
        let is_write = header.kind.get() == NBD_CMD_WRITE;
        let payload = if is_write { to_usize(u64::from(header.length.get())) } else { 0 };
        let fits = header.magic.get() == NBD_REQUEST_MAGIC;
        if !fits || header.kind.get() == NBD_CMD_DISC || stream.len() < 28 + payload {
            break;
        }
        stream = &stream[28 + payload..];
        requests += 1;
    }
    requests
}

/// How many replies and how many errors `said` holds; all of it must be replies that can be told apart.
fn structured_replies(said: &[u8]) -> (usize, usize) {
    let mut fields = Fields(said);
    let (mut replies, mut errors) = (0, 0);
    while !fields.is_empty() {
        match fields.u32().unwrap() {
            NBD_SIMPLE_REPLY_MAGIC => {
                assert_eq!(fields.u32(), Some(0), "errors are structured");
                fields.u64().unwrap();
                replies += 1;
            }
            magic => {
                assert_eq!(magic, NBD_STRUCTURED_REPLY_MAGIC);
                let (flags, kind) = (fields.u16().unwrap(), fields.u16().unwrap());
                let (_cookie, length) = (fields.u64().unwrap(), fields.u32().unwrap());
                fields.bytes(length as usize).expect("a chunk is as long as it says");
                replies += usize::from(flags & NBD_REPLY_FLAG_DONE);
                errors += usize::from(kind & NBD_REPLY_TYPE_FLAG_ERROR != 0);
            }
        }
    }
    (replies, errors)
}
