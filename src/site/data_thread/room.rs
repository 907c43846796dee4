//! Room in the budget of all connections: sessions of a data thread that wait for some, and clients that keep it from them.
//!
//! A session whose next request does not fit is left unread. At the end of a turn its thread announces the least that any of its
//! sessions waits for, and every thread looks whether what it gave back makes room for what is announced: who finds so tells the
//! thread that waits, and all of its waiting sessions try again. [`Budget`](crate::capture::nbd::Budget) says why no wake-up is lost.
//!
//! As long as anybody waits, all threads look at their sessions every so often; a client that holds some of the budget, and takes
//! or sends next to nothing though it is its turn to, is cut off when [`LOOKS`] looks in a row have found that. It is looks that are
//! counted, not the time between them: a thread that did not get to run for a while has looked once, and has read its sockets before.

use super::DataThread;
use crate::block::Volume;
use crate::site::message::Message;
use crate::units::MonotonicNanos;

/// Looks that find a client idle before it is cut off.
const LOOKS: u32 = 10;

/// What a data thread knows of the want of room.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Sessions here that wait, in the order in which they began to.
    waiting: Vec<u64>,
    /// Whether something else may have to be announced than is.
    has_news: bool,
    /// While somebody waits, here or elsewhere.
    look_at: Option<MonotonicNanos>,
    /// As often had there been no room at the last look.
    refusals_seen: usize,
}

impl Room {
    pub(super) fn next_deadline(&self) -> Option<MonotonicNanos> {
        self.look_at
    }
}

impl<V: Volume + 'static> DataThread<V> {
    /// Takes note of a session if it waits for room.
    pub(super) fn note_missing(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.connection.missing_bytes() == 0 {
            return;
        }
        self.room.has_news = true;
        if !session.waits_for_room {
            session.waits_for_room = true;
            self.room.waiting.push(id);
        }
    }

    /// The end of a turn: announces what is waited for here, and tells those who wait for what is given back by now.
    pub(super) fn share_room(&mut self) {
        if std::mem::take(&mut self.room.has_news) {
            self.announce();
        }
        let (shared, index) = (&self.shared, self.index);
        let mut is_roused = false;
        shared.budget.find_roused(|thread| {
            if thread == index {
                is_roused = true;
            } else {
                // A thread that stopped has no sessions left.
                let _ = shared.publish(thread, Message::Room);
            }
        });
        if is_roused {
            self.retry_waiting();
        }
    }

    fn announce(&mut self) {
        let sessions = &mut self.sessions;
        let mut least: Option<usize> = None;
        self.room.waiting.retain(|id| {
            let Some(session) = sessions.get_mut(id) else { return false };
            let missing = session.connection.missing_bytes();
            session.waits_for_room = missing > 0;
            if missing > 0 {
                least = Some(least.map_or(missing, |least| least.min(missing)));
            }
            missing > 0
        });
        if !self.shared.budget.wait_for(self.index, least.unwrap_or(0)) {
            self.retry_waiting();
        } else if least.is_some() {
            self.tell_of_shortage();
        }
    }

    /// Whoever waits for room here tries again; those for whom there is still none are noted again.
    pub(super) fn retry_waiting(&mut self) {
        for id in self.room.waiting.drain(..) {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            session.waits_for_room = false;
            if !session.has_turn && session.is_blocked() {
                session.has_turn = true;
                self.turns.push(id);
            }
        }
        self.room.has_news = true;
    }

    /// Has every thread look for clients that hold what is waited for here.
    fn tell_of_shortage(&mut self) {
        for thread in 0..self.shared.threads() {
            if self.shared.begin_looking(thread) {
                continue;
            }
            if thread == self.index {
                self.begin_looks();
            } else {
                // A thread that stopped has no sessions left.
                let _ = self.shared.publish(thread, Message::Shortage);
            }
        }
    }

    /// Looks from now on, as long as somebody waits.
    pub(super) fn begin_looks(&mut self) {
        self.sessions.values_mut().for_each(|session| session.begin_looks());
        self.room.refusals_seen = self.shared.budget.refusals();
        self.room.look_at = Some(self.after(self.shared.limits.hoarding / LOOKS));
    }

    /// Cuts off whoever has held for too long what others wait for.
    pub(super) fn look_for_hoarders(&mut self) {
        let Some(look_at) = self.room.look_at else { return };
        let now = self.now();
        if now < look_at || self.ends_looks() {
            return;
        }
        self.room.look_at = Some(self.after(self.shared.limits.hoarding / LOOKS));
        for session in self.sessions.values_mut() {
            if session.look() >= LOOKS {
                session.cut_off();
                self.lines.hoarder(now, session.id);
                self.sends.push(session.id);
            }
        }
        if !self.sends.is_empty() {
            self.send();
        }
    }

    /// Looks no more if nobody waits, nor did since the last look: who tries again is not announced for a moment.
    fn ends_looks(&mut self) -> bool {
        let budget = &self.shared.budget;
        let refusals = budget.refusals();
        if budget.is_awaited() || refusals != self.room.refusals_seen {
            self.room.refusals_seen = refusals;
            return false;
        }
        // Who announces before this is seen here; who announces after it sees that nobody looks, and tells.
        self.shared.end_looking(self.index);
        if budget.is_awaited() && !self.shared.begin_looking(self.index) {
            return false;
        }
        self.room.look_at = None;
        true
    }
}
