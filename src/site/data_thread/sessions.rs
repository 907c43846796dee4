//! The sessions of a data thread: from accepted or attached, over the choice of an export, to their end.

use std::cmp::Reverse;
use std::time::Duration;

use mio::Token;
use tokio::sync::oneshot;

use super::{DataThread, Drain};
use crate::block::{Export, Reply, Request, Ticket, Volume};
use crate::capture::nbd::Connection;
use crate::site::message::Message;
use crate::site::session::Session;
use crate::units::to_usize;

/// Clients with whom TLS is agreed on in a turn, a millisecond each at worst: then those have theirs who are served already.
const TLS_AGREEMENTS_A_TURN: usize = 2;

/// What is left of a session that has ended while requests of its were in flight: they take memory until they are answered, so it
/// counts until then, to the budget and as a connection. Else who asks and hangs up, over and over, would be bounded by nothing.
pub(super) struct Orphan {
    pub(super) connection: Connection,
    home: Option<usize>,
}

impl Orphan {
    /// Takes an answer that nobody waits for; tells the session's number if it was the last.
    pub(super) fn take(&mut self, ticket: Ticket, reply: Reply) -> Option<u64> {
        self.connection.complete(ticket, reply);
        self.connection.abandon();
        (self.connection.requests_in_flight() == 0).then_some(ticket.session)
    }
}

fn token(session: u64) -> Token {
    Token(to_usize(session))
}

impl<V: Volume + 'static> DataThread<V> {
    /// Notes that a session may go on, in whichever ways it may.
    pub(super) fn mark(session: &mut Session, turns: &mut Vec<u64>, sends: &mut Vec<u64>) {
        if !session.has_turn && (session.wants_turn() || session.is_blocked()) {
            session.has_turn = true;
            turns.push(session.id);
        }
        if !session.has_send {
            session.has_send = true;
            sends.push(session.id);
        }
    }

    /// Takes a session in.
    pub(super) fn adopt(&mut self, mut session: Session) {
        let id = session.id;
        if let Err(error) = session.register(self.poll.registry(), token(id)) {
            tracing::error!(session = id, %error, "cannot watch a client's socket");
            self.forget(session);
            return;
        }
        if let Some(deadline) = session.deadline {
            self.deadlines.push(Reverse((deadline, id)));
        }
        if let Some(deadline) = self.draining {
            session.begin_closing(deadline);
            self.deadlines.push(Reverse((deadline, id)));
        }
        session.has_turn = false;
        session.has_send = false;
        session.waits_for_room = false;
        Self::mark(&mut session, &mut self.turns, &mut self.sends);
        self.sessions.insert(id, session);
        self.shared.set_sessions(self.index, self.sessions.len());
    }

    /// Takes over a session that another thread accepted.
    pub(super) fn attach(&mut self, mut session: Session, requests: Vec<(Ticket, Export, Request)>) {
        let home = session.home;
        if session.connection.export().is_none_or(|export| !self.shared.exports.serves(export)) {
            // Its export was removed while it crossed, and those told to close its sessions did not meet it.
            session.begin_closing(self.after(self.shared.limits.closing));
        }
        self.adopt(session);
        self.requests.extend(requests);
        self.route(home);
    }

    /// Each session whose turn it is receives, and its requests go to their volume.
    pub(super) fn receive(&mut self) {
        let mut turns = std::mem::take(&mut self.turns);
        let mut agreements = 0;
        for id in turns.drain(..) {
            let is_agreeing = self.sessions.get(&id).is_some_and(Session::is_agreeing_on_tls);
            agreements += usize::from(is_agreeing);
            if is_agreeing && agreements > TLS_AGREEMENTS_A_TURN {
                self.turns.push(id);
            } else {
                self.receive_from(id);
            }
        }
        // Those that have more to do are in `self.turns` by now: the old vector only keeps its memory if unused.
        if self.turns.is_empty() {
            self.turns = turns;
        }
        self.cross_requests();
    }

    fn receive_from(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.has_turn = false;
        session.receive(&*self.shared.exports, &mut self.requests);
        if let Some(error) = session.take_tls_failure() {
            self.lines.tls_failed(self.host.runtime().now(), id, error);
        }
        let misses_room = session.connection.missing_bytes() > 0;
        if session.home.is_none() && !session.connection.in_handshake() {
            self.place(id);
            return;
        }
        if session.wants_turn() {
            session.has_turn = true;
            self.turns.push(id);
        }
        if !session.has_send && session.wants_send() {
            session.has_send = true;
            self.sends.push(id);
        }
        let home = session.home;
        self.route(home);
        if misses_room {
            self.note_missing(id);
        }
    }

    /// A session has chosen its export: it stays, or moves to the thread that should have it.
    fn place(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let export = session.connection.export().expect("the handshake ends with an export");
        session.deadline = None;
        self.negotiating.remove(&id);
        // A group that is not hosted any more is answered for by this host, which refuses.
        let placement = self.shared.exports.begin_session(export, self.shared.threads());
        session.home = Some(placement.map_or(self.index, |placement| placement.home));
        let thread = placement.map_or(self.index, |placement| placement.thread);
        if thread == self.index || self.draining.is_some() {
            Self::mark(session, &mut self.turns, &mut self.sends);
            let home = session.home;
            self.route(home);
            return;
        }
        let Some(mut session) = self.take_out(id) else { return };
        if let Err(error) = session.deregister(self.poll.registry()) {
            tracing::error!(session = id, %error, "cannot hand a client's socket over");
            self.requests.clear();
            self.forget_unasked(session);
            return;
        }
        let requests = std::mem::take(&mut self.requests);
        let message = Message::Attach { session: Box::new(session), requests };
        if let Err(Message::Attach { session, .. }) = self.shared.publish(thread, message) {
            self.forget_unasked(*session);
        }
    }

    /// Each session with output sends; those that are over end.
    pub(super) fn send(&mut self) {
        let mut sends = std::mem::take(&mut self.sends);
        for id in sends.drain(..) {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            session.has_send = false;
            let sent = session.send(self.poll.registry(), token(id));
            if session.is_over() {
                self.end(id);
                continue;
            }
            if !session.has_turn && (session.wants_turn() || (sent && session.is_blocked())) {
                session.has_turn = true;
                self.turns.push(id);
            }
            if session.is_draining() && session.deadline.is_none() {
                self.give_deadline(id);
            }
        }
        self.sends = sends;
        self.finish_drains();
    }

    /// A client that ended its session and takes no replies is not waited for without end.
    fn give_deadline(&mut self, id: u64) {
        let deadline = self.after(self.shared.limits.closing);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.deadline = Some(deadline);
            self.deadlines.push(Reverse((deadline, id)));
        }
    }

    /// Takes a session out of the list.
    fn take_out(&mut self, id: u64) -> Option<Session> {
        let session = self.sessions.remove(&id);
        self.negotiating.remove(&id);
        self.shared.set_sessions(self.index, self.sessions.len());
        session
    }

    /// Ends one that has not chosen an export yet; nothing of it is in flight.
    pub(super) fn end_negotiating(&mut self, id: u64) {
        if let Some(session) = self.take_out(id) {
            self.forget(session);
        }
    }

    fn end(&mut self, id: u64) {
        let Some(session) = self.take_out(id) else { return };
        match session.connection.close_reason() {
            Some(reason) if !reason.is_orderly() => self.lines.ended(self.host.runtime().now(), id, reason),
            _ => tracing::debug!(session = id, "a session ended"),
        }
        self.forget(session);
    }

    /// Undoes what others know of a session that is in no list any more; the socket closes. What it has in flight is still waited
    /// for.
    fn forget(&mut self, session: Session) {
        let orphan = self.orphan(session);
        if orphan.connection.requests_in_flight() == 0 {
            self.end_orphan(orphan);
        } else {
            self.orphans.insert(orphan.connection.session(), orphan);
        }
    }

    /// The same where nothing that it asked was handed on, so that nothing will be answered.
    fn forget_unasked(&mut self, session: Session) {
        let orphan = self.orphan(session);
        self.end_orphan(orphan);
    }

    fn orphan(&self, session: Session) -> Orphan {
        if let (Some(_), Some(export)) = (session.home, session.connection.export()) {
            self.shared.exports.end_session(export);
        }
        let mut orphan = Orphan { home: session.home, connection: session.connection };
        orphan.connection.abandon();
        orphan
    }

    /// Ends what is left of a session, all of whose requests are answered by now.
    pub(super) fn bury(&mut self, id: u64) {
        if let Some(orphan) = self.orphans.remove(&id) {
            self.end_orphan(orphan);
        }
    }

    fn end_orphan(&mut self, orphan: Orphan) {
        self.shared.dismiss();
        let (Some(home), Some(export)) = (orphan.home, orphan.connection.export()) else { return };
        let session = orphan.connection.session();
        if home == self.index {
            self.host.session_ended(export.group(), session);
        } else {
            self.tell_ended(home, export.group(), session);
        }
    }

    /// Sessions of an export, or all, are to end: no new requests, what is in flight is answered.
    pub(super) fn drain(
        &mut self,
        export: Option<Export>,
        within: Duration,
        drained: oneshot::Sender<usize>,
    ) {
        let deadline = self.after(within);
        let drain = Drain { export, deadline, cut_off: 0, drained: Some(drained) };
        if export.is_none() {
            self.draining = Some(deadline);
            self.listening.close();
        }
        for session in self.sessions.values_mut().filter(|session| drain.concerns(session)) {
            session.begin_closing(deadline);
            Self::mark(session, &mut self.turns, &mut self.sends);
        }
        self.drains.push(drain);
    }

    fn finish_drains(&mut self) {
        let sessions = &self.sessions;
        self.drains.retain_mut(|drain| {
            let lives = sessions.values().any(|session| drain.concerns(session));
            if !lives && let Some(drained) = drain.drained.take() {
                // Whoever asked may have lost interest.
                let _ = drained.send(drain.cut_off);
            }
            lives
        });
    }

    /// Cuts off whoever is past a deadline.
    pub(super) fn expire(&mut self) {
        if self.deadlines.is_empty() && self.drains.is_empty() {
            return;
        }
        let now = self.now();
        for drain in self.drains.iter_mut().filter(|drain| drain.deadline <= now) {
            let concerned = self.sessions.values().filter(|session| drain.concerns(session));
            let ids: Vec<u64> = concerned.map(|session| session.id).collect();
            drain.cut_off += ids.len();
            self.sends.extend(&ids);
            for id in ids {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.cut_off();
                }
            }
        }
        while self.deadlines.peek().is_some_and(|Reverse((deadline, _))| *deadline <= now) {
            let Some(Reverse((_, id))) = self.deadlines.pop() else { break };
            let session = self.sessions.get(&id);
            if session.is_some_and(|session| session.deadline.is_some_and(|deadline| deadline <= now)) {
                self.lines.cut_off(now, id);
                self.end(id);
            }
        }
        if !self.sends.is_empty() {
            self.send();
        }
    }
}
