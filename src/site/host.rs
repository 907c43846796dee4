//! What a data thread hosts: the volumes of its groups, and the runtime that they and their tasks run on.
//!
//! Everything that happens to a group happens through its host, on its thread: requests, completions, commands of the
//! control plane, and what tasks leave for [`Later`]. Nothing here waits.
//!
//! Invariant: a volume leaves its host with every request answered, refused if need be. A session counts until its last request is
//! answered, so one that is forgotten would take its place, and its part of the buffers, until the gateway ends.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use crate::block::{Export, Refusal, Reply, Request, Ticket, Volume};
use crate::runtime::{Event, Runtime};
use crate::units::{GroupId, MonotonicNanos};

/// The volumes of one data thread.
pub struct Host<V> {
    runtime: Rc<Runtime>,
    thread: usize,
    volumes: HashMap<GroupId, Hosted<V>>,
    /// Which volume owns a tag's owner, as found by asking them.
    owners: HashMap<u32, GroupId>,
    later: Later<V>,
    events: Vec<Event>,
    replies: Vec<(Ticket, Reply)>,
}

/// Times that a volume goes on after something happened to it: what the first time brought about may let it go on once more.
const TURNS_AFTER: u8 = 2;

/// A volume, and how many of its requests it has not answered yet.
struct Hosted<V> {
    volume: V,
    unanswered: usize,
    /// How often it goes on for what happened to it.
    turns: u8,
    /// When it goes on although nothing happens.
    deadline: Option<MonotonicNanos>,
}

impl<V: Volume> Hosted<V> {
    fn new(volume: V) -> Hosted<V> {
        Hosted { volume, unanswered: 0, turns: TURNS_AFTER, deadline: None }
    }

    /// Something happens to it.
    fn stir(&mut self) -> &mut V {
        self.turns = TURNS_AFTER;
        &mut self.volume
    }

    /// Goes on if there is a reason to. Of a hundred groups few have one at a time.
    fn advance(&mut self, now: MonotonicNanos, replies: &mut Vec<(Ticket, Reply)>) {
        if self.volume.take_stirred() || self.deadline.is_some_and(|deadline| deadline <= now) {
            self.turns = TURNS_AFTER;
        }
        let Some(turns) = self.turns.checked_sub(1) else { return };
        self.turns = turns;
        self.volume.advance();
        self.take_replies(replies);
        self.deadline = self.volume.next_deadline();
    }

    fn take_replies(&mut self, replies: &mut Vec<(Ticket, Reply)>) {
        let before = replies.len();
        self.volume.take_replies(replies);
        self.unanswered -= replies.len() - before;
    }
}

type LocalCommand<V> = Box<dyn FnOnce(&mut Host<V>)>;

/// How a task on the runtime reaches the host: what it leaves here runs as soon as the tasks have run.
pub struct Later<V>(Rc<RefCell<Vec<LocalCommand<V>>>>);

impl<V> Later<V> {
    /// Runs `command` on the host soon.
    pub fn run(&self, command: impl FnOnce(&mut Host<V>) + 'static) {
        self.0.borrow_mut().push(Box::new(command));
    }
}

impl<V> Clone for Later<V> {
    fn clone(&self) -> Later<V> {
        Later(Rc::clone(&self.0))
    }
}

impl<V> fmt::Debug for Later<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Later({})", self.0.borrow().len())
    }
}

impl<V: Volume> Host<V> {
    pub(super) fn new(runtime: Rc<Runtime>, thread: usize) -> Host<V> {
        Host {
            runtime,
            thread,
            volumes: HashMap::new(),
            owners: HashMap::new(),
            later: Later(Rc::default()),
            events: Vec::new(),
            replies: Vec::new(),
        }
    }

    /// The runtime of this thread.
    pub fn runtime(&self) -> &Rc<Runtime> {
        &self.runtime
    }

    /// The number of this data thread.
    pub fn thread(&self) -> usize {
        self.thread
    }

    /// A way back to this host for a task.
    pub fn later(&self) -> Later<V> {
        self.later.clone()
    }

    /// Hosts a group's volume; from now on it gets the group's requests.
    ///
    /// # Panics
    /// If the group is hosted already.
    pub fn insert(&mut self, group: GroupId, volume: V) {
        let before = self.volumes.insert(group, Hosted::new(volume));
        assert!(before.is_none(), "group {group} is hosted twice");
    }

    /// Stops hosting a group. Replies that are due still leave; whatever else was asked of it is refused.
    ///
    /// # Panics
    /// If the volume has forgotten a request.
    pub fn remove(&mut self, group: GroupId) -> Option<V> {
        let mut hosted = self.volumes.remove(&group)?;
        hosted.volume.close();
        hosted.take_replies(&mut self.replies);
        assert_eq!(hosted.unanswered, 0, "requests to group {group} would never be answered");
        self.owners.retain(|_, owner| *owner != group);
        Some(hosted.volume)
    }

    /// A hosted group.
    pub fn volume(&mut self, group: GroupId) -> Option<&mut V> {
        self.volumes.get_mut(&group).map(Hosted::stir)
    }

    /// All hosted groups.
    pub fn volumes(&mut self) -> impl Iterator<Item = (GroupId, &mut V)> {
        self.volumes.iter_mut().map(|(group, hosted)| (*group, hosted.stir()))
    }

    pub(super) fn submit(&mut self, ticket: Ticket, export: Export, request: Request) {
        match self.volumes.get_mut(&export.group()) {
            Some(hosted) => {
                hosted.unanswered += 1;
                hosted.stir().submit(ticket, export, request);
            }
            None => self.replies.push((ticket, Err(Refusal::Shutdown))),
        }
    }

    pub(super) fn session_ended(&mut self, group: GroupId, session: u64) {
        if let Some(volume) = self.volume(group) {
            volume.session_ended(session);
        }
    }

    /// Completions to volumes, tasks as far as they go, volumes as far as they go, and what they submitted to the
    /// device. Whether another step is likely to find more: there were completions or commands, or tasks became ready.
    pub(super) fn step(&mut self) -> bool {
        let mut events = std::mem::take(&mut self.events);
        self.runtime.step(&mut events);
        let had_events = !events.is_empty();
        let had_commands = self.run_later();
        for event in events.drain(..) {
            self.handle(event);
        }
        self.events = events;
        if self.runtime.take_stirred() {
            for hosted in self.volumes.values_mut() {
                hosted.stir();
            }
        }
        let now = self.runtime.now();
        for hosted in self.volumes.values_mut() {
            hosted.advance(now, &mut self.replies);
        }
        self.runtime.storage().start();
        had_events || had_commands || self.runtime.has_ready_tasks()
    }

    fn run_later(&mut self) -> bool {
        let commands = self.later.0.take();
        let any = !commands.is_empty();
        for command in commands {
            command(self);
        }
        any
    }

    fn handle(&mut self, event: Event) {
        let owner = event.tag.owner;
        let group = self.owners.get(&owner).copied().or_else(|| {
            let (group, _) = self.volumes.iter().find(|(_, hosted)| hosted.volume.owns(owner))?;
            self.owners.insert(owner, *group);
            Some(*group)
        });
        // A volume that was removed left its last completions to nobody.
        if let Some(volume) = group.and_then(|group| self.volume(group)) {
            volume.handle(event);
        }
    }

    /// Moves the replies that are due.
    pub(super) fn take_replies(&mut self, replies: &mut Vec<(Ticket, Reply)>) {
        replies.append(&mut self.replies);
    }

    /// Whether a step has something to do although nothing happened.
    pub(super) fn has_work(&self) -> bool {
        self.runtime.has_ready_tasks() || !self.later.0.borrow().is_empty() || !self.replies.is_empty()
    }

    /// When a step is due although nothing happens.
    pub(super) fn next_deadline(&self) -> Option<MonotonicNanos> {
        let volumes = self.volumes.values().filter_map(|hosted| hosted.deadline);
        volumes.chain(self.runtime.next_timer()).min()
    }
}

impl<V> fmt::Debug for Host<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups: Vec<_> = self.volumes.keys().collect();
        f.debug_struct("Host").field("thread", &self.thread).field("groups", &groups).finish_non_exhaustive()
    }
}
