//! Transmission: requests in, replies out, for one export.
//!
//! A refusal never costs the connection: a refused WRITE's payload is skipped as it comes, however long its header says that it
//! is, and holds no memory beyond one receive; then it is answered. Only a header that is none ends the connection.

use bytes::{Buf, BytesMut};

use super::Limits;
use super::budget::Account;
use super::codec::*;
use super::connection::{CloseReason, Step};
use super::in_flight::{InFlight, PendingReply};
use super::output::Output;
use super::reply;
use super::request::{Fault, Negotiated, ReplyShape, Verdict, charge, classify, refusal_fault};
use crate::block::{Export, Refusal, Reply, Request, Ticket};
use crate::units::{SectorRange, to_usize};

pub(super) struct Session {
    pub(super) negotiated: Negotiated,
    expect: Expect,
    payload_expected: usize,
}

enum Expect {
    Request,
    /// A WRITE's payload.
    Payload {
        cookie: u64,
        range: SectorRange,
        durable: bool,
    },
    /// The rest of a payload that is not wanted, then that answer.
    Discard {
        cookie: u64,
        bytes: usize,
        answer: Fault,
    },
}

/// What a step works on.
pub(super) struct Context<'a> {
    pub(super) session: u64,
    pub(super) limits: &'a Limits,
    pub(super) stopping: bool,
    pub(super) input: &'a mut BytesMut,
    pub(super) output: &'a mut Output,
    pub(super) in_flight: &'a mut InFlight,
    pub(super) account: &'a mut Account,
    pub(super) requests: &'a mut Vec<(Ticket, Export, Request)>,
}

impl Session {
    pub(super) fn new(negotiated: Negotiated) -> Session {
        Session { negotiated, expect: Expect::Request, payload_expected: 0 }
    }

    /// Bytes of the payload being received that are still to come, when `received` are there.
    pub(super) fn payload_rest(&self, received: usize) -> usize {
        match &self.expect {
            Expect::Payload { range, .. } => to_usize(range.bytes()).saturating_sub(received),
            _ => 0,
        }
    }

    /// Bytes that the next message takes in one piece, as far as that is known.
    pub(super) fn message_bytes(&self, input: &[u8]) -> usize {
        match &self.expect {
            Expect::Payload { range, .. } => to_usize(range.bytes()),
            Expect::Discard { .. } => 0,
            Expect::Request => match RequestHeader::peek(input) {
                Some(header)
                    if header.kind.get() == NBD_CMD_WRITE && header.length.get() <= BLOCK_SIZE_MAX =>
                {
                    RequestHeader::BYTES + to_usize(u64::from(header.length.get()))
                }
                _ => 0,
            },
        }
    }

    /// Bytes of payload that the next request is likely to have: as many as the last.
    pub(super) fn payload_expected(&self) -> usize {
        self.payload_expected
    }

    /// Whether a WRITE's header was read and its payload is still on its way, so that an answer is owed.
    pub(super) fn awaits_payload(&self) -> bool {
        !matches!(self.expect, Expect::Request)
    }

    /// The payload that is being received is not wanted any more: what is still to come of it is skipped, then refused.
    pub(super) fn begin_shutdown(&mut self, in_flight: &mut InFlight) {
        if let Expect::Payload { cookie, range, .. } = self.expect {
            let bytes = to_usize(range.bytes());
            self.drop_payload(in_flight);
            self.expect = Expect::Discard { cookie, bytes, answer: refusal_fault(Refusal::Shutdown) };
        }
    }

    /// Nothing more is received: what had come of a payload holds nothing any more.
    pub(super) fn drop_payload(&mut self, in_flight: &mut InFlight) {
        if let Expect::Payload { range, .. } = self.expect {
            in_flight.payload_bytes -= to_usize(range.bytes());
            self.expect = Expect::Request;
        }
        self.payload_expected = 0;
    }

    /// Takes one request, payload or part of an unwanted payload off the input, if it is there.
    pub(super) fn step(&mut self, context: &mut Context<'_>) -> Step {
        match self.expect {
            Expect::Request => self.request(context),
            Expect::Payload { cookie, range, durable } => self.payload(context, cookie, range, durable),
            Expect::Discard { cookie, bytes, answer } => self.discard(context, cookie, bytes, answer),
        }
    }

    fn request(&mut self, context: &mut Context<'_>) -> Step {
        let Some(header) = RequestHeader::peek(context.input) else { return Step::NeedInput };
        let header = *header;
        if header.magic.get() != NBD_REQUEST_MAGIC {
            return Step::Close(CloseReason::BadRequestMagic(header.magic.get()));
        }
        let is_write = header.kind.get() == NBD_CMD_WRITE;
        let verdict = match classify(&header, &self.negotiated) {
            Verdict::Disconnect => return Step::Close(CloseReason::Disconnected),
            _ if context.stopping => Verdict::Refuse(refusal_fault(Refusal::Shutdown)),
            verdict => verdict,
        };
        let charge = charge(&verdict);
        if context.is_full(charge) {
            return Step::Blocked;
        }
        context.input.advance(RequestHeader::BYTES);
        let payload_bytes = if is_write { to_usize(u64::from(header.length.get())) } else { 0 };
        self.payload_expected = if is_write { charge } else { 0 };
        let cookie = header.cookie.get();
        match verdict {
            Verdict::Ask(request, shape) => {
                context.in_flight.payload_bytes += charge;
                context.ask(self.negotiated.export, request, PendingReply { cookie, charge, shape });
            }
            Verdict::Write { range, durable } => {
                context.in_flight.payload_bytes += charge;
                self.expect = Expect::Payload { cookie, range, durable };
            }
            Verdict::Refuse(fault) if is_write => {
                self.expect = Expect::Discard { cookie, bytes: payload_bytes, answer: fault };
            }
            Verdict::Refuse(fault) => self.send_fault(context.output, cookie, fault),
            Verdict::Done => {
                reply::send_empty(context.output, self.negotiated.structured, cookie, header.kind.get())
            }
            Verdict::Disconnect => unreachable!("returned above"),
        }
        Step::Again
    }

    fn payload(&mut self, context: &mut Context<'_>, cookie: u64, range: SectorRange, durable: bool) -> Step {
        let charge = to_usize(range.bytes());
        if context.input.len() < charge {
            return Step::NeedInput;
        }
        let payload = context.input.split_to(charge).freeze();
        self.expect = Expect::Request;
        let request = Request::Write { range, payload, durable };
        let pending = PendingReply { cookie, charge, shape: ReplyShape::Done };
        context.ask(self.negotiated.export, request, pending);
        Step::Again
    }

    fn discard(&mut self, context: &mut Context<'_>, cookie: u64, bytes: usize, answer: Fault) -> Step {
        let skipped = bytes.min(context.input.len());
        context.input.advance(skipped);
        let bytes = bytes - skipped;
        if bytes > 0 {
            self.expect = Expect::Discard { cookie, bytes, answer };
            return Step::NeedInput;
        }
        self.expect = Expect::Request;
        self.send_fault(context.output, cookie, answer);
        Step::Again
    }

    /// Queues the answer to a request that was in flight; panics as [`reply::send`] does.
    pub(super) fn reply(&self, output: &mut Output, pending: &PendingReply, reply: Reply) {
        reply::send(output, self.negotiated.structured, pending, reply);
    }

    fn send_fault(&self, output: &mut Output, cookie: u64, fault: Fault) {
        reply::send_fault(output, self.negotiated.structured, cookie, fault);
    }
}

impl Context<'_> {
    /// Whether a request of that charge must wait. As far as the connection's own limit goes, one is let through alone, whatever
    /// its size. One that takes nothing needs no room: so what is refused is refused whatever others hold.
    fn is_full(&mut self, charge: usize) -> bool {
        let held = self.in_flight.payload_bytes + self.output.held_bytes();
        self.in_flight.len() >= self.limits.requests_max
            || self.output.bytes() >= self.limits.output_bytes_max
            || (held > 0 && held + charge > self.limits.payload_bytes_max)
            || (charge > 0 && !self.account.cover(held + charge))
    }

    fn ask(&mut self, export: Export, request: Request, pending: PendingReply) {
        let number = self.in_flight.insert(pending);
        self.requests.push((Ticket { session: self.session, request: number }, export, request));
    }
}
