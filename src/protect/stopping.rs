//! A clean stop: requests end, the interval becomes a point, everything is destaged, the journal is sealed. What a latched
//! disk lacks stays where it is, in side files or in the journal.

use crate::error::ErrorKind;
use crate::journal::writer::Entry;
use crate::protect::group::Group;

impl Group {
    /// Begins a clean stop: refuses new requests, ends the interval, and seals the journal once all else is done.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.refuse_resumes(ErrorKind::Shutdown, "the group is stopping");
        self.retention.stopping.set(true);
    }

    /// Whether a stop has come to its end: drained, destaged, sealed and durable. To be polled after
    /// [`Group::advance`].
    pub fn is_stopped(&mut self) -> bool {
        if self.writer.failure().is_some() {
            return true;
        }
        let vaulted = self.vaulted_all() || self.vault_failed.is_some();
        let settled = vaulted && !self.retention.busy.get();
        let quiet = !self.owes_replies() && self.writer.is_idle() && settled && !self.destaging;
        let idle = !self.is_caring() && self.resize.is_none();
        if !self.stopping || !quiet || !self.layers.is_destaged() || !idle {
            return false;
        }
        if !self.sealed {
            self.sealed = true;
            self.writer.enqueue_control(Entry::Seal, None);
            self.writer.advance(&mut self.segments);
            return false;
        }
        self.writer.want_durable(self.writer.visible());
        self.writer.advance(&mut self.segments);
        self.writer.is_idle() && self.writer.durable() >= self.writer.visible()
    }
}
