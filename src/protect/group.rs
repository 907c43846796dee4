//! A protection group at work: keeps the journal, and moves what was recorded on to images and recovery points.
//!
//! One owner thread calls [`Group::submit`] ([`requests`](super::requests)) and [`Group::handle`] as things happen, [`Group::advance`]
//! after each round, and takes the replies. Nothing here waits: what waits is a task, which owns its inputs and leaves its
//! result in the group's [`mailbox`](super::mailbox).
//!
//! Invariants: records enter the open layer in the order of their LSNs; a segment is recycled only
//! below `destaged`, `vaulted` and the first record that is held for a latched disk, and when nobody reads it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use futures::channel::mpsc;
use slab::Slab;

use crate::block::{Reply, Ticket};
use crate::error::{ErrorKind, Result};
use crate::format::marker::Marker;
use crate::format::record::PointRecord;
use crate::image::pace::Pace;
use crate::journal::cache::FrameCache;
use crate::journal::reader::Reader;
use crate::journal::segments::Segments;
use crate::journal::writer::{Identity, Visible, VisibleEvent, Writer};
use crate::planted::Bug;
use crate::protect::alarm::Alarm;
use crate::protect::allocation::AllocationQuestions;
use crate::protect::clock::GroupClock;
use crate::protect::disk::Disk;
use crate::protect::events::TimedEvent;
use crate::protect::failing::FailingRequests;
use crate::protect::indexing::Indexing;
use crate::protect::interval::{ClosedInterval, OpenInterval, Schedule};
use crate::protect::lateness::Lateness;
use crate::protect::layers::{Layer, Layers};
use crate::protect::mailbox::Mailbox;
use crate::protect::open::GroupPlan;
use crate::protect::publisher::Job;
use crate::protect::reads::{Ended, OPERATION_READ, Reads};
use crate::protect::repair::Repairing;
use crate::protect::repetition::Repetition;
use crate::protect::requests::{Barrier, WriteInFlight};
use crate::protect::resizing::{Resize, ZEROED};
use crate::protect::resume::{Resume, ResumeReport};
use crate::protect::retention;
use crate::protect::retry::Retry;
use crate::protect::status::{Condition, RateMeter};
use crate::protect::tasks::Tasks;
use crate::protect::telling::Telling;
use crate::protect::throttle::{Room, Throttle};
use crate::runtime::{Event, Runtime};
use crate::units::{DiskId, DiskSlot, GroupId, Lsn, MonotonicNanos, PointId, SectorRange, WallNanos};
use crate::vault::Vault;

/// Called once with a result.
pub type Callback<T> = Box<dyn FnOnce(Result<T>)>;

/// What a group is made of besides its journal.
#[derive(Clone)]
pub(super) struct GroupSettings {
    /// Directories and limits.
    pub plan: GroupPlan,
    /// Its vault.
    pub vault: Rc<Vault>,
}

/// Counters of a group; a request counts when it is answered, and only if it succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Write, zero and trim requests acknowledged.
    pub writes: u64,
    /// Bytes of write requests acknowledged.
    pub written_bytes: u64,
    /// Read requests answered.
    pub reads: u64,
    /// Bytes written to images.
    pub destaged_bytes: u64,
    /// Bytes written to the journal, headers included.
    pub journal_bytes: u64,
    /// Bytes written to the vault as deltas.
    pub vault_bytes: u64,
    /// Points published.
    pub points: u64,
}

/// A group at work.
pub struct Group {
    pub(super) runtime: Rc<Runtime>,
    pub(super) tasks: Tasks,
    pub(super) owner: u32,
    pub(super) identity: Identity,
    pub(super) settings: GroupSettings,
    pub(super) name: String,
    pub(super) resumes: Vec<Resume>,
    /// Those that wait until what the opening found has been looked at, and whether they accept a loss.
    pub(super) resumes_early: Vec<(bool, Callback<ResumeReport>)>,
    /// The resize that is under way.
    pub(super) resize: Option<Resize>,
    /// Points that somebody asked for, and that have to wait.
    pub(super) points_delayed: Vec<(String, Callback<PointRecord>)>,
    /// Nobody waits any more for what cannot be had now: a stop is near.
    pub(super) ends_waits: bool,
    /// Points under way whose time it was not: journal or maps were full.
    pub(super) forced_points: BTreeSet<PointId>,
    pub(super) writer: Writer,
    /// The last record that the journal held when the group was opened.
    pub(super) accepted: Lsn,
    pub(super) segments: Segments,
    pub(super) cache: Rc<RefCell<FrameCache>>,
    pub(super) disks: BTreeMap<DiskSlot, Disk>,
    pub(super) slots: HashMap<DiskId, DiskSlot>,
    pub(super) layers: Layers,
    /// What maps take of memory, as measured last.
    pub(super) map_bytes: usize,
    pub(super) indexing: Indexing,
    pub(super) interval: OpenInterval,
    pub(super) schedule: Schedule,
    pub(super) points: Vec<PointRecord>,
    pub(super) waiting_points: HashMap<PointId, Callback<PointRecord>>,
    pub(super) publisher: mpsc::UnboundedSender<Job>,
    pub(super) intervals_waiting: VecDeque<ClosedInterval>,
    /// Intervals that the publisher has: their markers and layers, oldest first.
    pub(super) intervals_publishing: VecDeque<(Lsn, Vec<Rc<Layer>>)>,
    pub(super) lateness: Lateness,
    /// Since when points are late, if they are.
    pub(super) late_since: Option<WallNanos>,
    pub(super) vaulted: Lsn,
    pub(super) destaged: Lsn,
    pub(super) destaging: bool,
    /// Images of before there were sums get theirs.
    pub(super) is_summing: bool,
    /// What guests had written when the newest batch began.
    pub(super) written_before_batch: u64,
    /// What of the journal the open interval takes, about.
    pub(super) interval_bytes: u64,
    pub(super) retention: Rc<retention::Shared>,
    pub(super) retention_jobs: mpsc::UnboundedSender<retention::Job>,
    /// Retention was told that a view ended.
    pub(super) swept: bool,
    pub(super) pace: Rc<Pace>,
    pub(super) throttle: Throttle,
    /// When destaging, segment creation and publication are tried again. The publisher keeps its own time.
    pub(super) destage_retry: Retry,
    pub(super) segment_retry: Retry,
    pub(super) segment_failures: Repetition,
    pub(super) publish_retry: Retry,
    pub(super) last_activity: MonotonicNanos,
    pub(super) clock: GroupClock,
    pub(super) mailbox: Mailbox,
    pub(super) opened: MonotonicNanos,
    pub(super) counters: Counters,
    pub(super) rates: RateMeter,
    pub(super) condition: (Condition, WallNanos),
    pub(super) telling: Telling,
    /// The same of what is beside latched disks, while there are any,
    pub(super) beside: (Option<Condition>, Telling),
    /// and of which of these it was told.
    pub(super) latches_told: BTreeSet<DiskSlot>,
    /// Whether it was told that points are late.
    pub(super) late_told: Alarm,
    pub(super) events: Vec<TimedEvent>,
    /// Requests of clients that failed: when that is told again, and what of it holds.
    pub(super) failed_requests: Repetition,
    pub(super) failing_requests: FailingRequests<String>,
    pub(super) vault_failed: Option<ErrorKind>,
    pub(super) vault_failed_because: Option<String>,
    pub(super) serving: bool,
    /// Timed points and retention rest.
    pub(super) is_paused: bool,
    pub(super) stopping: bool,
    /// Since when it stops.
    pub(super) stops_since: Option<MonotonicNanos>,
    /// The disks that the newest point lacks something of.
    pub(super) lacking: BTreeSet<DiskSlot>,
    /// Some disk has a renewal.
    pub(super) is_renewing: bool,
    /// What a repair has written anew.
    pub(super) repairing: Option<Repairing>,
    pub(super) sealed: bool,
    /// Markers on their way into the journal.
    pub(super) markers_pending: usize,
    pub(super) writes: Slab<WriteInFlight>,
    pub(super) barriers: Vec<Barrier>,
    pub(super) reads: Reads,
    /// AllocationQuestions for allocations that are not answered yet.
    pub(super) allocations: AllocationQuestions,
    pub(super) replies: Vec<(Ticket, Reply)>,
    delayed: Vec<(DiskSlot, SectorRange, crate::journal::segments::Source)>,
}

/// What opening hands over to a new group.
pub(super) struct Parts {
    pub runtime: Rc<Runtime>,
    pub tasks: Tasks,
    pub owner: u32,
    pub identity: Identity,
    pub settings: GroupSettings,
    pub pace: Rc<Pace>,
    pub name: String,
    pub writer: Writer,
    pub accepted: Lsn,
    pub segments: Segments,
    pub cache: Rc<RefCell<FrameCache>>,
    pub disks: BTreeMap<DiskSlot, Disk>,
    pub layers: Layers,
    pub indexing: Indexing,
    pub interval: OpenInterval,
    pub intervals_waiting: VecDeque<ClosedInterval>,
    pub points: Vec<PointRecord>,
    pub point_interval: Duration,
    pub publisher: mpsc::UnboundedSender<Job>,
    pub retention: Rc<retention::Shared>,
    pub retention_jobs: mpsc::UnboundedSender<retention::Job>,
    pub vaulted: Lsn,
    pub(super) clock: GroupClock,
    pub mailbox: Mailbox,
}

impl Group {
    pub(super) fn from_parts(parts: Parts) -> Group {
        let (now, wall) = (parts.runtime.now(), parts.runtime.wall());
        let interval_bytes = if parts.interval.is_dirty() { parts.segments.used_bytes() } else { 0 };
        let lateness = Lateness::at_opening(parts.intervals_waiting.len(), parts.interval.is_dirty(), now);
        let slots = parts.disks.iter().map(|(&slot, disk)| (disk.record.id, slot)).collect();
        let planted = parts.settings.plan.planted;
        let reads = Reads::new(Rc::clone(&parts.runtime), parts.owner, planted);
        let is_paused = parts.settings.vault.manifest().state().is_paused();
        let lacking = parts.points.last().into_iter().flat_map(|point| point.disks.iter());
        let lacking = lacking.filter(|disk| !disk.lacking().is_empty()).map(|disk| disk.slot).collect();
        let mut group = Group {
            runtime: parts.runtime,
            tasks: parts.tasks,
            owner: parts.owner,
            identity: parts.identity,
            settings: parts.settings,
            name: parts.name,
            resumes: Vec::new(),
            resumes_early: Vec::new(),
            resize: None,
            points_delayed: Vec::new(),
            ends_waits: false,
            forced_points: BTreeSet::new(),
            writer: parts.writer,
            accepted: parts.accepted,
            segments: parts.segments,
            cache: parts.cache,
            disks: parts.disks,
            slots,
            // What opening made no layer of, images and side files have: their checkpoints say so.
            destaged: parts.layers.destaged(parts.accepted),
            layers: parts.layers,
            map_bytes: 0,
            indexing: parts.indexing,
            interval: parts.interval,
            schedule: Schedule::new(parts.point_interval, now),
            points: parts.points,
            waiting_points: HashMap::new(),
            publisher: parts.publisher,
            intervals_waiting: parts.intervals_waiting,
            intervals_publishing: VecDeque::new(),
            lateness,
            late_since: None,
            vaulted: parts.vaulted,
            destaging: false,
            is_summing: false,
            written_before_batch: 0,
            interval_bytes,
            retention: parts.retention,
            retention_jobs: parts.retention_jobs,
            swept: false,
            pace: parts.pace,
            throttle: Throttle::default(),
            destage_retry: Retry::default(),
            segment_retry: Retry::default(),
            segment_failures: Repetition::default(),
            publish_retry: Retry::default(),
            last_activity: now,
            clock: parts.clock,
            mailbox: parts.mailbox,
            opened: now,
            counters: Counters::default(),
            rates: RateMeter::default(),
            condition: (Condition::Opening, wall),
            telling: Telling::default(),
            beside: (None, Telling::default()),
            latches_told: BTreeSet::new(),
            late_told: Alarm::default(),
            events: Vec::new(),
            failed_requests: Repetition::default(),
            failing_requests: FailingRequests::default(),
            vault_failed: None,
            vault_failed_because: None,
            serving: false,
            is_paused,
            stopping: false,
            stops_since: None,
            lacking,
            is_renewing: false,
            repairing: None,
            sealed: false,
            markers_pending: 0,
            writes: Slab::new(),
            barriers: Vec::new(),
            reads,
            allocations: AllocationQuestions::default(),
            replies: Vec::new(),
            delayed: Vec::new(),
        };
        group.measure_maps();
        group.take_up_mends();
        group
    }

    /// The group's id.
    pub fn id(&self) -> GroupId {
        self.identity.group
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its vault.
    pub fn vault(&self) -> &Rc<Vault> {
        &self.settings.vault
    }

    /// Its directories and limits.
    pub fn plan(&self) -> &GroupPlan {
        &self.settings.plan
    }

    /// Its disks.
    pub fn disks(&self) -> impl Iterator<Item = &Disk> {
        self.disks.values()
    }

    /// Its recovery points, oldest first.
    pub fn points(&self) -> &[PointRecord] {
        &self.points
    }

    /// The number that its operations carry as [`crate::runtime::Tag::owner`].
    pub fn owner(&self) -> u32 {
        self.owner
    }

    /// Takes a completion whose tag names this group.
    pub fn handle(&mut self, event: Event) {
        let operation = event.tag.operation;
        if operation & OPERATION_READ != 0 {
            match self.reads.handle(operation, event.result) {
                Some(Ended::Answered(ticket, reply)) => self.answer_read(ticket, reply),
                Some(Ended::Again(ticket, slot, range)) => self.read_again(ticket, slot, range),
                None => {}
            }
            if let Some((slot, error)) = self.reads.take_failure() {
                self.note_failed_request(slot, &error);
            }
        } else {
            self.writer.handle(operation, event.result);
        }
    }

    /// Goes on with everything that can go on. To be called after requests, completions and time.
    pub fn advance(&mut self) {
        self.work();
        self.observe();
    }

    fn work(&mut self) {
        self.apply_visible();
        self.apply_done();
        self.writer.advance(&mut self.segments);
        self.serve_when_stated();
        self.answer_barriers();
        self.care_for_repair();
        if let Some(kind) = self.writer.failure() {
            self.fail_writes(kind);
            return;
        }
        if !self.serving {
            self.writer.advance(&mut self.segments);
            return;
        }
        self.make_due_marker();
        self.publish_waiting();
        self.take_up_resumes();
        self.care_for_latched();
        self.care_for_renewals();
        self.advance_resize();
        self.start_destage();
        self.mind_sums();
        self.supply_segments();
        self.recycle();
        self.make_delayed_points();
        self.end_vain_waits();
        self.mind_retention();
        // A layer takes less once it is frozen, and nothing else may come to say so.
        self.writer.hold_data(self.are_maps_full());
        self.pace_data();
        self.writer.advance(&mut self.segments);
    }

    /// Has data wait for its turn while little of the journal is free.
    fn pace_data(&mut self) {
        let now = self.runtime.now();
        if self.writer.waits_for_allowance() {
            self.throttle.withholds(now);
        }
        let allowed = self.throttle.allow(now, self.journal_room(), self.writer.allowance());
        // Nothing is kept for guests that a stop would wait for.
        self.writer.allow_data(allowed.filter(|_| !self.stopping));
    }

    /// What is free of the journal.
    pub(super) fn journal_room(&self) -> Room {
        let free = self.segments.room_bytes() + self.writer.room_in_segment();
        Room { free, limit: self.segments.limit_bytes() }
    }

    /// Whether a task of its own has gone on since the last call, so that there may be something to go on with.
    pub fn take_stirred(&self) -> bool {
        self.tasks.take_stirred()
    }

    /// Moves the replies that are ready to `out`.
    pub fn take_replies(&mut self, out: &mut Vec<(Ticket, Reply)>) {
        out.append(&mut self.replies);
    }

    /// When [`Group::advance`] has something to do even if nothing happens.
    pub fn next_deadline(&self) -> Option<MonotonicNanos> {
        if self.writer.failure().is_some() {
            return None;
        }
        let marker = (self.wants_marker() && !self.is_paused).then(|| self.schedule.due());
        // While a retry is due, idleness is no reason to come back before it.
        let retry_at = self.destage_retry.at().unwrap_or_default();
        let idle = self.has_undestaged().then(|| self.idle_at().max(retry_at));
        let retries =
            [self.destage_retry.at(), self.segment_retry.at(), self.side_file_due(), self.renewal_due()];
        let late = self
            .lateness
            .due(self.schedule.interval())
            .filter(|_| self.late_since.is_none() && !self.is_paused);
        let now = self.runtime.now();
        let gives_up = self.stop_deadlines().into_iter().filter(|at| at.is_some_and(|at| at > now));
        let slowed = if self.writer.waits_for_allowance() { self.throttle.due() } else { None };
        let others = [self.writer.next_deadline(), marker, idle, late, slowed];
        let told = [self.telling.due(), self.beside.1.due(), self.late_told.due()];
        others.into_iter().chain(told).chain(retries).chain(gives_up).flatten().min()
    }

    /// The opening frame names what was accepted; until that is durable, nobody may see it.
    fn serve_when_stated(&mut self) {
        if !self.serving {
            self.writer.want_durable(self.writer.visible());
            let stated = self.writer.visible() >= self.writer.first();
            self.serving = stated && (self.writer.durable() >= self.writer.first() || self.skips_statement());
            if self.serving {
                self.look_at_ladder();
                self.renew_lacking();
            }
        }
    }

    fn skips_statement(&self) -> bool {
        self.settings.plan.planted.is(Bug::AcceptanceNotRecorded)
    }

    fn apply_visible(&mut self) {
        for (disk, range, source) in std::mem::take(&mut self.delayed) {
            self.layers.insert(disk, range, source);
        }
        for written in self.writer.take_written() {
            self.counters.journal_bytes += written.bytes.len() as u64;
            self.interval_bytes += written.bytes.len() as u64;
            self.cache.borrow_mut().insert(written.segment.index, written.sector, written.bytes);
            self.indexing.add(written.covered);
        }
        for visible in self.writer.take_visible() {
            self.apply(visible);
        }
    }

    fn apply(&mut self, visible: Visible) {
        match visible.event {
            VisibleEvent::Data { disk, range, source } => {
                if self.settings.plan.planted.is(Bug::VisibleAfterAcknowledged) {
                    self.delayed.push((disk, range, source));
                } else {
                    self.layers.insert(disk, range, source);
                }
                self.interval.touch();
                if self.interval.is_kept() {
                    self.lateness.wrote(|| self.runtime.now());
                }
            }
            VisibleEvent::Marker(marker) => self.end_interval(visible.lsn, marker),
            VisibleEvent::Boundary => {}
        }
        // Where a frame ends, so that index runs are of whole frames.
        if visible.ends_frame && self.layers.is_full() {
            self.freeze(visible.lsn, None);
        }
        match visible.cookie {
            Some(ZEROED) => self.zeroed(visible.lsn),
            Some(cookie) => self.acknowledge(cookie, visible.lsn),
            None => {}
        }
    }

    /// Ends the open layer at record `last`, the end of a frame, with a marker or without one.
    pub(super) fn freeze(&mut self, last: Lsn, marker: Option<&Marker>) {
        let layer = self.layers.freeze(last);
        if let Some(layer) = &layer {
            self.interval.add(Rc::clone(layer));
        }
        self.indexing.freeze(last, layer, marker);
        self.measure_maps();
    }

    pub(super) fn reader(&self) -> Reader {
        let planted = self.settings.plan.planted;
        Reader::new(Rc::clone(&self.runtime), Rc::clone(&self.cache), &self.segments, planted)
    }

    /// Whether the opening frame is durable, and requests are taken.
    pub fn is_serving(&self) -> bool {
        self.serving
    }

    /// Why the journal failed, if it did, so that it never takes writes again.
    pub fn failure(&self) -> Option<ErrorKind> {
        self.writer.failure()
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
