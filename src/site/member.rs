//! What a data thread hosts for one group: its vault, its test failovers, and the group itself if it could be opened.
//!
//! Without the group, what the vault gives is served all the same: points, views of them, test failovers.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

use crate::block::{Export, Refusal, Reply, Request, Ticket, Volume};
use crate::error::{Error, ErrorKind, Result};
use crate::failover::{TestFailover, TestFailovers, TestListing, TestTrouble};
use crate::format::record::{DiskRecord, GroupRecord, PinKind, PointRecord};
use crate::protect::group::Group;
use crate::protect::open::GroupPlan;
use crate::runtime::{Event, Runtime};
use crate::site::events::EventQueue;
use crate::site::failing::FailingTest;
use crate::site::suspicion::Suspicions;
use crate::units::{GroupId, MonotonicNanos, PointId};
use crate::vault::Vault;

type Notice<T> = Box<dyn FnOnce(T)>;

/// A group's vault, its test failovers, and the group, if it is open.
pub struct Member {
    vault: Rc<Vault>,
    group: Option<Group>,
    tests: Result<TestFailovers>,
    when_serving: Option<Notice<Result<()>>>,
    when_stopped: Option<Notice<()>>,
    /// What was refused without the group, and what the group refused when it was closed.
    replies: Vec<(Ticket, Reply)>,
    id: GroupId,
    /// For what the group tells,
    events: Arc<EventQueue>,
    /// and for damage that clients of test failovers meet.
    suspicions: Arc<Suspicions>,
}

/// What the manifest says of a group, its points aside.
#[derive(Clone, Debug)]
pub(super) struct Description {
    pub(super) record: GroupRecord,
    pub(super) disks: Vec<DiskRecord>,
}

impl Member {
    /// Hosts a vault and its test failovers, for now without the group.
    pub(super) async fn open(
        runtime: &Rc<Runtime>,
        vault: Rc<Vault>,
        plan: &GroupPlan,
        (events, suspicions): (Arc<EventQueue>, Arc<Suspicions>),
    ) -> Member {
        let tests = open_tests(runtime, &vault, plan).await;
        if let Err(error) = &tests {
            tracing::error!(group = %vault.manifest().state().group(), %error, "no test failovers can be served");
        }
        let id = vault.manifest().state().group();
        Member {
            id,
            vault,
            group: None,
            tests,
            when_serving: None,
            when_stopped: None,
            replies: Vec::new(),
            events,
            suspicions,
        }
    }

    /// Hosts the opened group too; `when_serving` is called once it takes requests, or turns out never to take any.
    pub fn protect(&mut self, group: Group, when_serving: impl FnOnce(Result<()>) + 'static) {
        self.group = Some(group);
        self.when_serving = Some(Box::new(when_serving));
    }

    /// Its vault.
    pub fn vault(&self) -> &Rc<Vault> {
        &self.vault
    }

    /// The group.
    ///
    /// # Errors
    /// `Latched` if it could not be opened.
    pub fn group(&mut self) -> Result<&mut Group> {
        let closed = || Error::new(ErrorKind::Latched, "the group is not open: 'group list' says why");
        self.group.as_mut().ok_or_else(closed)
    }

    /// Its test failovers; fails where their directory cannot be read.
    pub fn tests(&mut self) -> Result<&mut TestFailovers> {
        self.tests.as_mut().map_err(|error| Error::new(error.kind(), error.to_string()))
    }

    /// What only opening the group again can mend, if anything.
    pub(super) fn failure(&self) -> Option<Error> {
        self.group.as_ref().and_then(Group::fatal)
    }

    /// Lets the group go, with all that works for it. What it has not answered is refused.
    pub(super) fn close_group(&mut self) {
        self.pass_events();
        if let Some(group) = self.group.take() {
            self.replies.append(&mut group.close());
        }
    }

    /// Whether all but the group is as it should be, so that opening the group is all that is left to do.
    pub(super) fn lacks_only_the_group(&self) -> bool {
        self.group.is_none() && self.tests.is_ok()
    }

    /// What people are told of its test failovers; none where their directory cannot be read.
    pub(super) fn test_listings(&self) -> Vec<TestListing> {
        self.tests.as_ref().map(|tests| tests.list().map(TestFailover::listing).collect()).unwrap_or_default()
    }

    /// What the manifest says of the group.
    pub(super) fn description(&self) -> Description {
        let state = self.vault.manifest().state();
        Description { record: state.record().clone(), disks: state.disks().cloned().collect() }
    }

    /// The recovery points that can be opened.
    pub(super) fn points(&self) -> Vec<PointRecord> {
        self.vault.manifest().state().points().to_vec()
    }

    /// What requests to test failovers fail of now.
    pub(super) fn failing_tests(&self) -> Vec<FailingTest> {
        self.tests.as_ref().map_or(Vec::new(), TestFailovers::failing)
    }

    /// What of its test failovers cannot be served, or is damaged.
    pub(super) fn test_troubles(&self) -> Vec<TestTrouble> {
        self.tests.as_ref().map_or(Vec::new(), TestFailovers::troubles)
    }

    /// How many recovery points have a label.
    pub(super) fn labelled(&self, label: &str) -> u64 {
        let state = self.vault.manifest().state();
        state.points().iter().filter(|point| point.label == label).count() as u64
    }

    /// The points that somebody holds.
    pub(super) fn held(&self) -> HashSet<PointId> {
        let state = self.vault.manifest().state();
        let held = state.pins().iter().filter(|pin| pin.kind == PinKind::Hold);
        held.map(|pin| pin.point).collect()
    }

    /// Begins a clean stop; `when_stopped` is called at its end.
    pub fn stop(&mut self, when_stopped: impl FnOnce() + 'static) {
        if let Some(group) = &mut self.group {
            group.stop();
        }
        self.when_stopped = Some(Box::new(|()| when_stopped()));
    }

    /// Hands on what the group has told.
    fn pass_events(&mut self) {
        if let Some(group) = &mut self.group {
            group.take_events().iter().for_each(|told| self.events.tell(self.id, told));
        }
        if let Ok(tests) = &mut self.tests {
            tests.take_events().iter().for_each(|told| self.events.tell(self.id, told));
            if tests.take_met_damage() {
                self.suspicions.raise(self.id);
            }
        }
    }

    fn notify(&mut self) {
        if self.when_serving.is_some()
            && let Some(result) = self.opened()
        {
            if result.is_err() {
                self.close_group();
            }
            if let Some(notice) = self.when_serving.take() {
                notice(result);
            }
            return;
        }
        if self.when_stopped.is_some()
            && self.group.as_mut().is_none_or(Group::is_stopped)
            && let Some(notice) = self.when_stopped.take()
        {
            notice(());
        }
    }

    /// How an opening ended, if it did.
    fn opened(&self) -> Option<Result<()>> {
        let group = self.group.as_ref()?;
        if group.is_serving() {
            return Some(Ok(()));
        }
        let kind = group.failure()?;
        Some(Err(Error::new(kind, "the journal's first frame could not be written: see the log")))
    }
}

async fn open_tests(runtime: &Rc<Runtime>, vault: &Rc<Vault>, plan: &GroupPlan) -> Result<TestFailovers> {
    // An opening that failed may not have come so far.
    runtime.create_directory(plan.tests()).await?;
    TestFailovers::open_readable(Rc::clone(runtime), Rc::clone(vault), plan.tests()).await
}

impl Volume for Member {
    fn submit(&mut self, ticket: Ticket, export: Export, request: Request) {
        match (export, &mut self.group, &mut self.tests) {
            (Export::Disk(..), Some(group), _) => group.submit(ticket, export, request),
            (Export::Test(..), _, Ok(tests)) => tests.submit(ticket, export, request),
            _ => self.replies.push((ticket, Err(Refusal::Shutdown))),
        }
    }

    fn handle(&mut self, event: Event) {
        // A group that failed while it was opened left its last completions to nobody.
        if let Some(group) = self.group.as_mut().filter(|group| group.owner() == event.tag.owner) {
            group.handle(event);
        }
    }

    fn owns(&self, owner: u32) -> bool {
        self.group.as_ref().is_some_and(|group| group.owner() == owner)
    }

    fn advance(&mut self) {
        if let Some(group) = &mut self.group {
            group.advance();
        }
        if let Ok(tests) = &mut self.tests {
            tests.advance();
        }
        // Before anybody is told that it serves, or stopped.
        self.pass_events();
        self.notify();
    }

    fn take_stirred(&mut self) -> bool {
        self.group.as_ref().is_some_and(Group::take_stirred)
    }

    fn take_replies(&mut self, replies: &mut Vec<(Ticket, Reply)>) {
        replies.append(&mut self.replies);
        if let Some(group) = &mut self.group {
            group.take_replies(replies);
        }
        if let Ok(tests) = &mut self.tests {
            tests.take_replies(replies);
        }
    }

    fn close(&mut self) {
        self.close_group();
        if let Ok(tests) = &mut self.tests {
            tests.refuse_all();
        }
    }

    fn next_deadline(&self) -> Option<MonotonicNanos> {
        self.group.as_ref().and_then(Group::next_deadline)
    }
}
