//! The server side of the NBD protocol, sans-IO, and a small client to drive and test servers with.
//!
//! The NBD project's `doc/proto.md` is the authority; constants carry its names. A [`Connection`] is the whole life
//! of one client: whoever owns the socket receives into [`Connection::input`], lets [`Connection::advance`] turn
//! bytes into requests, hands replies to [`Connection::complete`], and sends what [`Connection::output`] gathers.
//!
//! ```text
//!   socket ──▶ input ──▶ handshake ──GO──▶ session ──▶ (Ticket, Export, Request) ──▶ the disk's owner
//!                           │                 │                                          │
//!   socket ◀── output ◀─────┴─────────────────┴──────────────── complete ◀───────────────┘
//! ```
//!
//! Nothing here waits, reads a clock or knows a thread. What the owner of the socket must add is time: a deadline
//! for the handshake and one for a client that does not take its replies.
//!
//! Invariant: whatever a client sends or leaves unread, memory stays within [`Limits`], that of all clients together within
//! their [`Budget`], and only the broken connection suffers.

pub mod budget;
pub mod client;
pub mod codec;
mod connection;
mod handshake;
mod in_flight;
mod output;
mod reply;
mod request;
mod session;

pub use budget::Budget;
pub use connection::{CloseReason, Connection, State};

use crate::block::Export;

/// Something that a client may ask for by name, as it stands when asked.
#[derive(Clone, Debug)]
pub struct ExportInfo {
    /// What requests will name.
    pub export: Export,
    /// Size in bytes: a whole number of sectors.
    pub size: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// One line for a person.
    pub description: String,
}

/// The directory of what is served.
pub trait Exports {
    /// Every export's name.
    fn names(&self) -> Vec<String>;
    /// The export of that name; the empty name asks for the default export.
    fn find(&self, name: &str) -> Option<ExportInfo>;
    /// Why nothing is served by a name that a client may rightly ask for, in one line for a person.
    fn refusal(&self, name: &str) -> Option<String> {
        let _ = name;
        None
    }
}

/// What one connection may hold of the gateway; at a limit its socket is left unread until some of it is given back.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests handed out and not yet answered. Default 256.
    pub requests_max: usize,
    /// Bytes of write payloads being received or handed out, plus bytes of reads handed out, plus what replies that wait
    /// for the socket take. A single request is let through whatever its size, if nothing else is held. Default 64 MiB.
    pub payload_bytes_max: usize,
    /// Bytes of replies that wait for the socket, zeros among them, beyond which no further request is begun.
    /// Default 16 MiB.
    pub output_bytes_max: usize,
    /// What is asked of the socket at once, so that many small requests come in one receive: the size of an input
    /// buffer, which lives until the payloads in it are let go. A larger one is made only for a larger payload, and goes
    /// with it. Default 256 KiB.
    pub receive_bytes: usize,
    /// Length of a handshake option's data, beyond which it is skipped and refused. Default 64 KiB.
    pub option_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            requests_max: 256,
            payload_bytes_max: 64 << 20,
            output_bytes_max: 16 << 20,
            receive_bytes: 256 << 10,
            option_bytes_max: 64 << 10,
        }
    }
}
