//! What a data thread hosts for one group: the group itself, and its test failovers beside it.

use crate::block::{Export, Reply, Request, Ticket, Volume};
use crate::failover::TestFailovers;
use crate::protect::group::Group;
use crate::runtime::Event;
use crate::units::MonotonicNanos;

type Notice = Box<dyn FnOnce()>;

/// A group and its test failovers.
pub struct Member {
    /// The group.
    pub group: Group,
    /// Its test failovers.
    pub tests: TestFailovers,
    when_serving: Option<Notice>,
    when_stopped: Option<Notice>,
}

impl Member {
    /// Hosts an opened group; `when_serving` is called once it takes requests, or can never take any.
    pub fn new(group: Group, tests: TestFailovers, when_serving: impl FnOnce() + 'static) -> Member {
        Member { group, tests, when_serving: Some(Box::new(when_serving)), when_stopped: None }
    }

    /// Begins a clean stop; `when_stopped` is called at its end.
    pub fn stop(&mut self, when_stopped: impl FnOnce() + 'static) {
        self.group.stop();
        self.when_stopped = Some(Box::new(when_stopped));
    }

    fn notify(&mut self) {
        if self.when_serving.is_some() && (self.group.is_serving() || self.group.has_failed()) {
            self.when_serving.take().into_iter().for_each(|notice| notice());
        }
        if self.when_stopped.is_some() && self.group.is_stopped() {
            self.when_stopped.take().into_iter().for_each(|notice| notice());
        }
    }
}

impl Volume for Member {
    fn submit(&mut self, ticket: Ticket, export: Export, request: Request) {
        match export {
            Export::Disk(..) => self.group.submit(ticket, export, request),
            Export::Test(..) => self.tests.submit(ticket, export, request),
        }
    }

    fn handle(&mut self, event: Event) {
        self.group.handle(event);
    }

    fn owns(&self, owner: u32) -> bool {
        self.group.owner() == owner
    }

    fn advance(&mut self) {
        self.group.advance();
        self.tests.advance();
        self.notify();
    }

    fn take_replies(&mut self, replies: &mut Vec<(Ticket, Reply)>) {
        self.group.take_replies(replies);
        self.tests.take_replies(replies);
    }

    fn next_deadline(&self) -> Option<MonotonicNanos> {
        self.group.next_deadline()
    }
}
