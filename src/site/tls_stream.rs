//! TLS between a client's socket and its connection: ciphertext on one side, plaintext on the other.
//!
//! ```text
//!   socket ──▶ received ──▶ rustls ──▶ the connection's input
//!   socket ◀── preface, then rustls ◀── the connection's output
//! ```
//!
//! Nothing here waits. A socket without TLS does not come by here: its bytes are received where they are parsed, and sent from where
//! they lie.
//!
//! Invariant: memory is bounded, whatever the client sends or leaves unread: [`RECEIVE_BYTES`] of ciphertext, what rustls keeps of a
//! record or of a handshake's message (64 KiB at most) and of its plaintext (two records), and [`UNSENT_BYTES_MAX`] on the way out,
//! which counts as output of the connection. What is received is only taken out of here as TLS has authenticated it.

use std::io::{self, BufRead, IoSlice, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::{ServerConfig, ServerConnection};

use crate::storage::receive;

/// What is asked of the socket at once.
const RECEIVE_BYTES: usize = 64 << 10;
/// Receives of one call: one that brings no plaintext must not keep others waiting.
const RECEIVES_MAX: usize = 8;
/// What is encrypted at most and waits for the socket.
const UNSENT_BYTES_MAX: usize = 256 << 10;

/// One client's TLS.
pub(super) struct TlsStream {
    tls: ServerConnection,
    /// What goes out before TLS: the answer to the client that asked for it.
    preface: BytesMut,
    /// Ciphertext that rustls has not taken yet.
    received: BytesMut,
    /// Plaintext that nobody has taken yet.
    plaintext_bytes: usize,
    peer_has_closed: bool,
    unsent_bytes: usize,
    closing: bool,
}

/// What a receive found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    /// Bytes of plaintext that were appended.
    pub(super) bytes: usize,
    /// How it ended.
    pub(super) ended: Ended,
}

/// Why a receive ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// There may be more.
    Early,
    /// The socket is empty, and so is all that lies between.
    Empty,
    /// The client sends no more.
    EndOfStream,
}

/// Why a receive failed.
#[derive(Debug)]
pub(super) enum ReceiveError {
    /// The socket's.
    Io(io::Error),
    /// What came is not the TLS that it should be. An alert waits to be sent.
    Tls(rustls::Error),
}

impl TlsStream {
    /// TLS with a client that was told by `preface` to begin it.
    pub(super) fn new(config: Arc<ServerConfig>, preface: &[u8]) -> Result<TlsStream, rustls::Error> {
        let mut tls = ServerConnection::new(config)?;
        tls.set_buffer_limit(Some(UNSENT_BYTES_MAX));
        Ok(TlsStream {
            tls,
            preface: BytesMut::from(preface),
            received: BytesMut::new(),
            plaintext_bytes: 0,
            peer_has_closed: false,
            unsent_bytes: 0,
            closing: false,
        })
    }

    /// Whether client and server have not agreed yet.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Whether there is something to decrypt or to take, though the socket may be empty.
    pub(super) fn has_pending(&self) -> bool {
        self.plaintext_bytes > 0 || !self.received.is_empty()
    }

    /// Appends plaintext to `input`, as far as its spare capacity and `bytes_max` take it.
    pub(super) fn receive(
        &mut self,
        socket: impl AsFd,
        input: &mut BytesMut,
        bytes_max: usize,
    ) -> Result<Received, ReceiveError> {
        let room = (input.capacity() - input.len()).min(bytes_max);
        let (mut bytes, mut receives, mut is_empty) = (0, 0, false);
        let ended = loop {
            bytes += self.take_plaintext(input, room - bytes);
            if bytes == room {
                break Ended::Early;
            } else if self.peer_has_closed {
                self.received.clear();
                break Ended::EndOfStream;
            } else if !self.received.is_empty() {
                self.decrypt().map_err(ReceiveError::Tls)?;
            } else if is_empty {
                break Ended::Empty;
            } else if receives == RECEIVES_MAX {
                break Ended::Early;
            } else {
                receives += 1;
                match self.fill(&socket) {
                    Ok(0) => break Ended::EndOfStream,
                    // A receive that leaves room has emptied the socket.
                    Ok(count) => is_empty = count < RECEIVE_BYTES,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ended::Empty,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(ReceiveError::Io(error)),
                }
            }
        };
        Ok(Received { bytes, ended })
    }

    fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        // All of it was decrypted, so nothing is moved.
        self.received.reserve(RECEIVE_BYTES);
        receive(socket, &mut self.received, RECEIVE_BYTES)
    }

    /// Has rustls take some of what was received; there is no plaintext yet that nobody has taken.
    fn decrypt(&mut self) -> Result<(), rustls::Error> {
        let taken = self.tls.read_tls(&mut &self.received[..]);
        // Its buffers are full only of what makes no message.
        let taken = taken.map_err(|error| rustls::Error::General(error.to_string()))?;
        self.received.advance(taken);
        let state = self.tls.process_new_packets()?;
        self.plaintext_bytes = state.plaintext_bytes_to_read();
        self.peer_has_closed = state.peer_has_closed();
        Ok(())
    }

    fn take_plaintext(&mut self, input: &mut BytesMut, room: usize) -> usize {
        let mut bytes = 0;
        while self.plaintext_bytes > 0 && bytes < room {
            let mut reader = self.tls.reader();
            let chunk = reader.fill_buf().expect("rustls said that there is plaintext");
            let count = chunk.len().min(room - bytes);
            input.extend_from_slice(&chunk[..count]);
            reader.consume(count);
            self.plaintext_bytes -= count;
            bytes += count;
        }
        bytes
    }

    /// Encrypts the beginning of `plaintext`; how many bytes of it. None while too much waits for the socket, or before client and server
    /// have agreed.
    pub(super) fn encrypt(&mut self, plaintext: &[IoSlice<'_>]) -> usize {
        if plaintext.is_empty() || self.closing || self.tls.is_handshaking() {
            return 0;
        }
        // It fails where the connection has failed, and then nothing more is sent.
        let bytes = self.tls.writer().write_vectored(plaintext).unwrap_or(0);
        self.unsent_bytes += bytes;
        bytes
    }

    /// Nothing more will be encrypted: the client is told so, behind what waits.
    pub(super) fn close(&mut self) {
        if !self.closing {
            self.closing = true;
            self.tls.send_close_notify();
        }
    }

    /// Whether the client is told that nothing more comes, and all is with the socket.
    pub(super) fn is_closed(&self) -> bool {
        self.closing && !self.wants_send()
    }

    /// Whether something waits for the socket.
    pub(super) fn wants_send(&self) -> bool {
        !self.preface.is_empty() || self.tls.wants_write()
    }

    /// About how many bytes were encrypted and wait for the socket.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// Gives the socket what it takes of what waits; how much of it that was.
    pub(super) fn send(&mut self, socket: &mut impl Write) -> io::Result<usize> {
        if !self.preface.is_empty() {
            let sent = socket.write(&self.preface)?;
            self.preface.advance(sent);
            return Ok(sent);
        }
        let sent = self.tls.write_tls(socket)?;
        self.unsent_bytes = if self.tls.wants_write() { self.unsent_bytes.saturating_sub(sent) } else { 0 };
        Ok(sent)
    }
}

#[cfg(test)]
mod tests;
