//! The listening sockets of a data thread: how clients become sessions.

use mio::Token;

use super::{DataThread, FIRST_LISTENER};
use crate::block::Volume;
use crate::capture::nbd::Connection;
use crate::site::listener::{Listener, Socket};
use crate::site::session::Session;
use crate::units::MonotonicNanos;

use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Clients accepted of one listener in a turn.
const ACCEPTS_A_TURN: usize = 64;
/// How long accepting rests when the system has no descriptors or memory for another socket.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Listeners, and which of them may have clients waiting.
#[derive(Default)]
pub(super) struct Listening {
    listeners: Vec<(Listener, bool)>,
    retry_at: Option<MonotonicNanos>,
}

impl Listening {
    pub(super) fn note(&mut self, token: Token) {
        if let Some((_, ready)) = self.listeners.get_mut(token.0 - FIRST_LISTENER) {
            *ready = true;
        }
    }

    pub(super) fn has_work(&self) -> bool {
        self.retry_at.is_none() && self.listeners.iter().any(|(_, ready)| *ready)
    }

    pub(super) fn retry_at(&self) -> Option<MonotonicNanos> {
        self.retry_at
    }

    /// No more clients come in.
    pub(super) fn close(&mut self) {
        self.listeners.clear();
        self.retry_at = None;
    }

    /// The next client of a listener; `None` when none waits.
    fn accept(&mut self, listener: usize) -> io::Result<Option<Socket>> {
        let (listener, ready) = &mut self.listeners[listener];
        match listener.accept() {
            Ok(socket) => Ok(Some(socket)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                *ready = false;
                Ok(None)
            }
            // A client that went away while it waited, and anything else that concerns one client only.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl<V: Volume + 'static> DataThread<V> {
    pub(super) fn listen(&mut self, mut listener: Listener) {
        if self.draining.is_some() {
            return;
        }
        let token = Token(FIRST_LISTENER + self.listening.listeners.len());
        match listener.register(self.poll.registry(), token) {
            Ok(()) => self.listening.listeners.push((listener, true)),
            Err(error) => {
                tracing::error!(address = %listener.address(), %error, "cannot watch for clients")
            }
        }
    }

    /// Accepts who waits, within the turn.
    pub(super) fn accept(&mut self) {
        if !self.listening.has_work() {
            let due = self.listening.retry_at.is_some_and(|retry_at| retry_at <= self.now());
            if !due {
                return;
            }
            self.listening.retry_at = None;
        }
        for listener in 0..self.listening.listeners.len() {
            for _ in 0..ACCEPTS_A_TURN {
                if !self.listening.listeners[listener].1 {
                    break;
                }
                match self.listening.accept(listener) {
                    Ok(Some(socket)) => self.admit(socket, listener),
                    Ok(None) => {}
                    Err(error) => {
                        self.lines.not_accepted(self.host.runtime().now(), &error);
                        self.listening.retry_at = Some(self.after(ACCEPT_REST));
                        return;
                    }
                }
            }
        }
    }

    /// Begins the handshake with a new client, in the place of another if there are too many.
    fn admit(&mut self, socket: Socket, listener: usize) {
        let Some(id) = self.shared.admit().or_else(|| self.admit_instead()) else {
            self.turn_away();
            return;
        };
        let connection = Connection::new(id, self.shared.limits.connection, Arc::clone(&self.shared.budget));
        let tls = self.listening.listeners[listener].0.tls().cloned();
        let mut session = Session::new(id, socket, connection, tls);
        session.deadline = Some(self.after(self.shared.limits.handshake));
        self.negotiating.insert(id);
        self.adopt(session);
    }

    /// Turns away who negotiates for longest. Else those who connect and say nothing, and connect again when their time is up,
    /// would shut out everybody else for ever. A client that negotiates at once is past that before so many others have come.
    fn admit_instead(&mut self) -> Option<u64> {
        let longest = self.negotiating.first().copied()?;
        self.end_negotiating(longest);
        self.turn_away();
        self.shared.admit()
    }

    fn turn_away(&mut self) {
        let runtime = self.host.runtime();
        self.shared.turned_away.add(runtime.wall());
        self.lines.turned_away(runtime.now(), self.shared.limits.connections_max);
    }
}
