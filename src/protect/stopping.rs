//! A clean stop: requests end, the interval becomes a point, everything is destaged, the journal is sealed. What a latched
//! disk lacks stays where it is, in side files or in the journal; and so does what there is no space for: the journal is not
//! sealed then, and the next opening goes on. Whoever fails otherwise, as a vault whose device gives EIO, gets some seconds to come
//! to its senses, and then the same: nothing that was acknowledged is lost by that, for the journal has it.

use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::journal::writer::Entry;
use crate::protect::group::{Group, nanos};
use crate::protect::retry::Retry;
use crate::protect::status::Condition;
use crate::units::MonotonicNanos;

/// How long a stop waits for what fails, and is tried again each second;
const FAILING_MAX: Duration = Duration::from_secs(5);
/// and for what found no space: it is tried once more, as there may be some by now.
const LACKING_MAX: Duration = Duration::from_secs(2);

impl Group {
    /// A stop is near: whoever waits for what cannot be had now is told so, and need not wait until the group stops.
    pub fn end_waits(&mut self) {
        self.ends_waits = true;
    }

    /// Refuses what people asked for and what waits for space, or for a device that fails.
    pub(super) fn end_vain_waits(&mut self) {
        if !self.ends_waits || !self.retries().iter().any(Retry::is_failing) {
            return;
        }
        let condition = if self.wants_space() { Condition::NoSpace } else { Condition::Retrying };
        let why = condition.explanation().expect("a failure is explained").what;
        let refusal = || {
            let text = format!(
                "the gateway is stopping, and this was not done yet: {why}; ask again when it serves"
            );
            Error::new(ErrorKind::Shutdown, text)
        };
        self.refuse_waiting_points(refusal);
        self.refuse_waiting_resize(refusal);
    }

    /// Begins a clean stop: refuses new requests, ends the interval, and seals the journal once all else is done.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.stops_since.get_or_insert(self.runtime.now());
        self.ends_waits = true;
        self.refuse_resumes(ErrorKind::Shutdown, "the group is stopping");
        self.retention.stopping.set(true);
    }

    /// Whether a stop waits for what it cannot have: space, or a device that goes on failing.
    fn stops_in_vain(&self) -> bool {
        let [lacking, failing] =
            self.stop_deadlines().map(|at| at.is_some_and(|at| at <= self.runtime.now()));
        lacking && self.wants_space() || failing && self.retries().iter().any(Retry::is_failing)
    }

    /// Until when a stop waits for space, and for what fails otherwise; none while the group does not stop.
    pub(super) fn stop_deadlines(&self) -> [Option<MonotonicNanos>; 2] {
        [LACKING_MAX, FAILING_MAX].map(|patience| Some(MonotonicNanos(self.stops_since?.0 + nanos(patience))))
    }

    /// Whether a stop has come to its end: drained, destaged, sealed and durable; or, where that cannot be had,
    /// durable. To be polled after [`Group::advance`].
    pub fn is_stopped(&mut self) -> bool {
        if self.writer.failure().is_some() {
            return true;
        }
        if self.stops_in_vain() && self.waiting_points.is_empty() {
            self.writer.want_durable(self.writer.visible());
            self.writer.advance(&mut self.segments);
            return self.writer.durable() >= self.writer.visible() && !self.retention.busy.get();
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
