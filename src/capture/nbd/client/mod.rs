//! A small NBD client: what the demo and the process tests drive a server with, pipelined.
//!
//! It is two sans-IO codecs, [`Negotiation`] and [`ReplyDecoder`], and [`Client`], which runs them over any blocking
//! stream. It speaks fixed newstyle with GO only, and holds a server to the protocol: a reply that is not one is an
//! error of kind `Protocol`. It is not a general client: no TLS, no lists.

mod command;
mod negotiation;
mod replies;

use std::io::{Read, Write};

use bytes::BytesMut;

pub use command::{Command, encode_request};
pub use negotiation::{
    Granted, Negotiation, Wishes, context_data, encode_client_flags, encode_option, info_data,
};
pub use replies::{Answer, Answered, Extent, Refused, ReplyDecoder};

use crate::error::{Error, ErrorKind, Result};

/// What one read asks of the stream.
const READ_BYTES: usize = 256 << 10;

/// A client over a blocking stream. Requests are sent at once and answered in any order.
///
/// Neither side reads while it waits to write, so keep what is in flight below what the server takes unread (its
/// payload limit); with a depth of 64 and requests of at most 1 MiB that always holds against our own.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    granted: Granted,
    decoder: ReplyDecoder,
    input: BytesMut,
    scratch: Box<[u8]>,
    encoded: Vec<u8>,
}

impl<S: Read + Write> Client<S> {
    /// Shakes hands.
    ///
    /// # Errors
    /// `NotFound` if there is no such export, `Protocol` if the server breaks the protocol, or the stream's.
    pub fn connect(mut stream: S, wishes: Wishes) -> Result<Client<S>> {
        let mut negotiation = Negotiation::new(wishes);
        let mut input = BytesMut::new();
        let mut scratch = vec![0; READ_BYTES].into_boxed_slice();
        let mut encoded = Vec::new();
        loop {
            let granted = negotiation.advance(&mut input, &mut encoded)?;
            send(&mut stream, &mut encoded)?;
            if let Some(granted) = granted {
                let decoder = ReplyDecoder::new(granted);
                return Ok(Client { stream, granted, decoder, input, scratch, encoded });
            }
            receive(&mut stream, &mut scratch, &mut input)?;
        }
    }

    /// What the handshake agreed on.
    pub fn granted(&self) -> &Granted {
        &self.granted
    }

    /// Requests sent and not answered.
    pub fn in_flight(&self) -> usize {
        self.decoder.in_flight()
    }

    /// Packs a request behind those not sent yet; `cookie` names it until it is answered.
    ///
    /// # Errors
    /// `Invalid` if the cookie is in use.
    pub fn queue(&mut self, cookie: u64, command: &Command<'_>) -> Result<()> {
        self.decoder.expect(cookie, command)?;
        encode_request(cookie, command, &mut self.encoded);
        Ok(())
    }

    /// Sends what is queued, in one go.
    pub fn send_queued(&mut self) -> Result<()> {
        send(&mut self.stream, &mut self.encoded)
    }

    /// Sends what is queued and waits for one more answer, to whichever request comes first.
    ///
    /// # Errors
    /// `Invalid` if nothing is in flight; `Protocol`, or the stream's.
    pub fn receive(&mut self) -> Result<Answered> {
        self.send_queued()?;
        loop {
            if let Some(answered) = self.decoder.next(&mut self.input)? {
                return Ok(answered);
            }
            if self.decoder.in_flight() == 0 {
                return Err(Error::invalid("no request is in flight, so no answer will come"));
            }
            receive(&mut self.stream, &mut self.scratch, &mut self.input)?;
        }
    }

    /// Sends one request and waits for its answer; nothing else may be in flight.
    ///
    /// # Errors
    /// `Invalid` if something is; `Protocol`, or the stream's. The outer error ends the connection, the inner one is
    /// the server's answer.
    pub fn call(&mut self, command: &Command<'_>) -> Result<std::result::Result<Answer, Refused>> {
        if self.in_flight() > 0 {
            return Err(Error::invalid("call() with requests in flight: use queue() and receive()"));
        }
        self.queue(0, command)?;
        self.receive().map(|answered| answered.result)
    }

    /// Says goodbye; answers to what is in flight are lost.
    pub fn disconnect(mut self) -> Result<()> {
        self.queue(0, &Command::Disconnect)?;
        self.send_queued()
    }
}

fn send<S: Write>(stream: &mut S, encoded: &mut Vec<u8>) -> Result<()> {
    if encoded.is_empty() {
        return Ok(());
    }
    let sent = stream.write_all(encoded).and_then(|()| stream.flush());
    encoded.clear();
    sent.map_err(|error| Error::io("cannot send to the NBD server", error))
}

fn receive<S: Read>(stream: &mut S, scratch: &mut [u8], input: &mut BytesMut) -> Result<()> {
    loop {
        match stream.read(scratch) {
            Ok(0) => return Err(protocol("the NBD server closed the connection")),
            Ok(count) => {
                input.extend_from_slice(&scratch[..count]);
                return Ok(());
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("cannot receive from the NBD server", error)),
        }
    }
}

fn protocol(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Protocol, what)
}
