//! One process of the site: it opens the group and its test failovers, and serves until it is stopped or killed. The
//! real code, stepped by hand.

use std::cell::RefCell;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::block::{Export, Reply, Request, Ticket};
use crate::error::{Error, ErrorKind, Result};
use crate::failover::TestFailovers;
use crate::format::ladder::Ladder;
use crate::format::record::GroupRecord;
use crate::journal::cache::SharedFrames;
use crate::planted::Planted;
use crate::protect::group::Group;
use crate::protect::open::{self, GroupPlan};
use crate::protect::summing::Summing;
use crate::runtime::Runtime;
use crate::seal::SiteKeys;
use crate::sim::plan::Plan;
use crate::storage::sim::{ProcessId, SimDisk, SimEnvironment, SimStorage};
use crate::throttle::ByteRate;
use crate::units::{GroupId, MonotonicNanos, WallNanos};

/// The one group of the site.
pub const GROUP: GroupId = GroupId(7);

/// Where the group's files are, and its limits.
pub fn group_plan(plan: &Plan, planted: Planted, site_keys: SiteKeys) -> GroupPlan {
    GroupPlan {
        directory: PathBuf::from("/group"),
        vault: PathBuf::from("/vault"),
        segment_bytes: plan.segment_bytes,
        journal_bytes: plan.segment_bytes * plan.segments,
        cache_bytes_max: plan.cache_bytes,
        shared_frames: SharedFrames::unbounded(),
        shared_pieces: Arc::default(),
        map_bytes_max: plan.map_bytes,
        index_bytes_min: plan.index_bytes,
        fan_out: plan.fan_out,
        piece_bytes: plan.piece_bytes(),
        space: plan.space,
        gates: Arc::default(),
        site_keys,
        summing: Summing { rate: NonZeroU64::new(plan.verify_rate).map(ByteRate), ..Summing::default() },
        seals: plan.seals,
        accepts_loss: false,
        planted,
    }
}

/// What a task leaves when it is done.
type Left<T> = Rc<RefCell<Option<Result<T>>>>;

/// How far a process is.
enum Life {
    Opening(Left<(Group, TestFailovers)>),
    Open(Box<(Group, TestFailovers)>),
    /// The group was closed, and is being opened again; its test failovers go on.
    Reopening(Left<Group>, Box<TestFailovers>),
}

/// A living process.
pub struct Process {
    id: ProcessId,
    runtime: Rc<Runtime>,
    life: Life,
    replies: Vec<(Ticket, Reply)>,
}

impl Process {
    /// Starts a process on `disk`, which opens the group there, or creates it where none is.
    pub fn start(
        disk: &SimDisk,
        environment: &Rc<SimEnvironment>,
        plan: GroupPlan,
        policy: (Duration, Ladder),
    ) -> Process {
        let storage = SimStorage::new(disk);
        let id = storage.process();
        let runtime = Runtime::new(Box::new(storage), Rc::clone(environment) as _);
        let opened = Left::default();
        let (filled, opening) = (Rc::clone(&opened), open_all(Rc::clone(&runtime), plan, policy));
        runtime.spawn(async move { drop(filled.replace(Some(opening.await))) });
        Process { id, runtime, life: Life::Opening(opened), replies: Vec::new() }
    }

    /// Its name on the disk.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// What it runs on.
    pub fn runtime(&self) -> &Rc<Runtime> {
        &self.runtime
    }

    /// The group, once it is open.
    pub fn group(&mut self) -> Option<&mut Group> {
        match &mut self.life {
            Life::Opening(_) | Life::Reopening(..) => None,
            Life::Open(open) => Some(&mut open.0),
        }
    }

    /// The test failovers, once they are open.
    pub fn tests(&mut self) -> Option<&mut TestFailovers> {
        match &mut self.life {
            Life::Opening(_) => None,
            Life::Open(open) => Some(&mut open.1),
            Life::Reopening(_, tests) => Some(tests),
        }
    }

    /// Whether requests are taken.
    pub fn is_serving(&mut self) -> bool {
        self.group().is_some_and(|group| group.is_serving())
    }

    /// One round of the owner's loop. An error: it could not open.
    pub fn step(&mut self) -> Result<()> {
        let mut events = Vec::new();
        self.runtime.step(&mut events);
        match &mut self.life {
            Life::Opening(opened) => {
                let done = opened.take();
                if let Some(opened) = done {
                    self.life = Life::Open(Box::new(opened?));
                }
            }
            Life::Reopening(opened, tests) => {
                tests.advance();
                let done = opened.take();
                if let Some(group) = done {
                    self.finish_reopening(group?);
                }
            }
            Life::Open(open) => {
                let (group, tests) = &mut **open;
                // A group that was closed left its last completions to nobody.
                let owner = group.owner();
                for event in events.into_iter().filter(|event| event.tag.owner == owner) {
                    group.handle(event);
                }
                group.advance();
                tests.advance();
                self.take_replies();
            }
        }
        self.runtime.storage().start();
        Ok(())
    }

    /// Closes the open group, whatever it is doing, and opens it again, as a resume does after its journal or vault failed.
    pub fn reopen(&mut self, plan: GroupPlan) {
        let opened = Left::default();
        let filled = Rc::clone(&opened);
        let life = std::mem::replace(&mut self.life, Life::Opening(Left::default()));
        let Life::Open(open) = life else { unreachable!("only an open group is closed") };
        let (group, tests) = *open;
        let vault = Rc::clone(group.vault());
        self.replies.extend(group.close());
        let opening = open::reopen_over(Rc::clone(&self.runtime), plan, vault);
        self.runtime.spawn(async move { drop(filled.replace(Some(opening.await))) });
        self.life = Life::Reopening(opened, Box::new(tests));
    }

    fn finish_reopening(&mut self, group: Group) {
        let life = std::mem::replace(&mut self.life, Life::Opening(Left::default()));
        let Life::Reopening(_, tests) = life else { unreachable!("it is being opened again") };
        self.life = Life::Open(Box::new((group, *tests)));
    }

    /// Hands a request over.
    pub fn submit(&mut self, ticket: Ticket, export: Export, request: Request) {
        let Life::Open(open) = &mut self.life else { unreachable!("requests come to an open group") };
        match export {
            Export::Disk(..) => open.0.submit(ticket, export, request),
            Export::Test(..) => open.1.submit(ticket, export, request),
        }
        self.take_replies();
    }

    fn take_replies(&mut self) {
        if let Life::Open(open) = &mut self.life {
            open.0.take_replies(&mut self.replies);
            open.1.take_replies(&mut self.replies);
        }
    }

    /// The replies since the last call, in order.
    pub fn replies(&mut self) -> Vec<(Ticket, Reply)> {
        std::mem::take(&mut self.replies)
    }

    /// When something is due even if nothing happens.
    pub fn next_deadline(&mut self) -> Option<MonotonicNanos> {
        let group = self.group().and_then(|group| group.next_deadline());
        [group, self.runtime.next_timer()].into_iter().flatten().min()
    }

    /// Frees what the dead process held in memory.
    pub fn bury(self) {
        self.runtime.abandon_tasks();
    }
}

async fn open_all(
    runtime: Rc<Runtime>,
    plan: GroupPlan,
    (interval, retain): (Duration, Ladder),
) -> Result<(Group, TestFailovers)> {
    let tests = plan.tests();
    let group = match open::open(Rc::clone(&runtime), plan.clone()).await {
        Err(error) if is_nothing_there(&runtime, &plan, &error).await => {
            let interval_ms = u32::try_from(interval.as_millis()).expect("plans are below seconds");
            let record = GroupRecord { name: "group".into(), created: WallNanos(0), interval_ms, retain };
            open::create(Rc::clone(&runtime), plan, GROUP, record).await?
        }
        opened => opened?,
    };
    let vault = Rc::clone(group.vault());
    let tests = TestFailovers::open(runtime, vault, tests).await?;
    Ok((group, tests))
}

/// Whether no group was created yet: neither a manifest nor a journal is there.
async fn is_nothing_there(runtime: &Rc<Runtime>, plan: &GroupPlan, error: &Error) -> bool {
    let has_files = |names: Result<Vec<String>>| names.is_ok_and(|names| !names.is_empty());
    error.kind() == ErrorKind::NotFound && !has_files(runtime.list(plan.journal()).await)
}
