//! A protection group at work: takes requests, keeps the journal, and moves what was recorded on to images and
//! recovery points.
//!
//! One owner thread calls [`Group::submit`] and [`Group::handle`] as things happen, [`Group::advance`] after each
//! round, and takes the replies. Nothing here waits: what waits is a task, which owns its inputs and leaves its
//! result in the group's mailbox.
//!
//! Invariants: a reply to a write leaves only after its records are in the open layer; a segment is recycled only
//! below `destaged`, `vaulted` and the first record that is held for a latched disk, and when nobody reads it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc;
use slab::Slab;

use crate::block::{Export, Refusal, Reply, Request, Response, Ticket};
use crate::error::{ErrorKind, Result};
use crate::format::frame::RECORD_PAYLOAD_BYTES_MAX;

use crate::format::marker::Marker;
use crate::format::record::{DiskRecord, PointRecord};
use crate::image::Image;
use crate::image::attach::Reattached;
use crate::image::destage::DiskResult;
use crate::image::pace::Pace;
use crate::image::side::SideFile;
use crate::journal::cache::FrameCache;
use crate::journal::reader::Reader;
use crate::journal::segments::{Segment, Segments};
use crate::journal::writer::{Entry, Identity, Visible, VisibleEvent, Writer};
use crate::planted::Bug;
use crate::protect::allocation;
use crate::protect::disk::Disk;
use crate::protect::events::TimedEvent;
use crate::protect::indexing::{Indexing, StoredRun};
use crate::protect::interval::{ClosedInterval, OpenInterval, Schedule};
use crate::protect::latching::Resume;
use crate::protect::lateness::Lateness;
use crate::protect::layers::{Layer, Layers};
use crate::protect::membership::Joined;
use crate::protect::open::GroupPlan;
use crate::protect::place::{Place, places};
use crate::protect::publisher::{Job, Published};
use crate::protect::reads::{OPERATION_READ, Reads};
use crate::protect::renewal::renewed_slot;
use crate::protect::repetition::Repetition;
use crate::protect::resizing::{Resize, Resized, ZEROED};
use crate::protect::retention;
use crate::protect::retry::Retry;
use crate::protect::status::{Condition, RateMeter};
use crate::protect::tasks::Tasks;
use crate::protect::verify::Question;
use crate::runtime::{Event, Runtime};
use crate::units::{
    DiskId, DiskSlot, GroupId, GroupNanos, Lsn, MonotonicNanos, PointId, SECTOR_BYTES, SectorRange,
    WallNanos, to_usize,
};
use crate::vault::Vault;

/// Called once with a result.
pub type Callback<T> = Box<dyn FnOnce(Result<T>)>;

/// What a task left behind.
pub(super) enum Done {
    /// A request's answer.
    Reply(Ticket, Reply),
    /// A destage batch ended.
    Destaged { through: Lsn, disks: Vec<DiskResult> },
    /// A side file of a latched disk was written, or not.
    SideFile(DiskSlot, DiskId, Result<SideFile>),
    /// The image of a latched disk has taken what it lacked, or not.
    Mended(DiskSlot, Result<Image>),
    /// The image of a disk has taken all but what is lost, whose loss is accepted, or not.
    Taken(DiskSlot, Result<Image>),
    /// Sectors were read that are to be written anew, or not.
    Renewed(DiskSlot, SectorRange, Result<Bytes>),
    /// The files of a detached disk were attached, or not.
    Reattached(DiskSlot, Result<Reattached>),
    /// A segment was created, or not.
    Segment(Result<Segment>),
    /// An index run was written, or not.
    Indexed(Result<StoredRun>),
    /// The publisher finished a job on an interval.
    Published(Result<Published>),
    /// The vault did not take an interval; the publisher tries again.
    PublishDelayed(ErrorKind),
    /// A disk joined, or not.
    Joined(Result<Joined>, Callback<DiskRecord>),
    /// A disk left, or not.
    Left(DiskId, DiskSlot, Result<()>, Callback<()>),
    /// A base is as long as its disk is about to be, or not.
    Lengthened(Result<()>),
    /// The image of a disk was prepared for another size, or not; then whether it was set back.
    ResizePrepared(Image, Result<()>, Result<()>),
    /// A resize was decided, or not.
    Resized(Resized),
    /// The policy was changed, or not; with the interval between points, if that was to change.
    Policy(Option<Duration>, Result<()>, Callback<()>),
    /// The group was paused, or goes on, or not.
    Paused(bool, Result<()>, Callback<()>),
    /// Retention took a step, or came to rest.
    Retained { changed: bool },
    /// A verification asks something.
    Asked(Question),
}

/// The group's mailbox.
pub(super) type Mailbox = Rc<RefCell<VecDeque<Done>>>;

/// What a group is made of besides its journal.
#[derive(Clone)]
pub(super) struct GroupSettings {
    /// Directories and limits.
    pub plan: GroupPlan,
    /// Its vault.
    pub vault: Rc<Vault>,
}

struct WriteInFlight {
    ticket: Ticket,
    slot: DiskSlot,
    range: SectorRange,
    payload_bytes: u64,
    durable: bool,
    since: MonotonicNanos,
}

/// A request that is answered once everything up to an LSN is durable.
struct Barrier {
    lsn: Lsn,
    ticket: Ticket,
    /// The write that asked for it, by its payload's length; none for a flush.
    write_bytes: Option<u64>,
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
    /// The resize that is under way.
    pub(super) resize: Option<Resize>,
    /// Points that somebody asked for meanwhile.
    pub(super) points_delayed: Vec<(String, Callback<PointRecord>)>,
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
    pub(super) retention: Rc<retention::Shared>,
    pub(super) retention_jobs: mpsc::UnboundedSender<retention::Job>,
    /// Retention was told that a view ended.
    pub(super) swept: bool,
    pub(super) pace: Rc<Pace>,
    /// When destaging, segment creation and publication are tried again. The publisher keeps its own time.
    pub(super) destage_retry: Retry,
    pub(super) segment_retry: Retry,
    pub(super) segment_failures: Repetition,
    pub(super) publish_retry: Retry,
    pub(super) last_activity: MonotonicNanos,
    pub(super) started: MonotonicNanos,
    pub(super) group_time: GroupNanos,
    pub(super) mailbox: Mailbox,
    pub(super) counters: Counters,
    pub(super) rates: RateMeter,
    pub(super) condition: (Condition, WallNanos),
    pub(super) events: Vec<TimedEvent>,
    pub(super) vault_failed: Option<ErrorKind>,
    pub(super) vault_failed_because: Option<String>,
    pub(super) serving: bool,
    /// Timed points and retention rest.
    pub(super) is_paused: bool,
    pub(super) stopping: bool,
    /// The disks that the newest point lacks something of.
    pub(super) lacking: BTreeSet<DiskSlot>,
    /// Some disk has a renewal.
    pub(super) is_renewing: bool,
    pub(super) sealed: bool,
    /// Markers on their way into the journal.
    pub(super) markers_pending: usize,
    writes: Slab<WriteInFlight>,
    barriers: Vec<Barrier>,
    reads: Reads,
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
    pub group_time: GroupNanos,
    pub mailbox: Mailbox,
}

impl Group {
    pub(super) fn from_parts(parts: Parts) -> Group {
        let (now, wall) = (parts.runtime.now(), parts.runtime.wall());
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
            resize: None,
            points_delayed: Vec::new(),
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
            retention: parts.retention,
            retention_jobs: parts.retention_jobs,
            swept: false,
            pace: Rc::default(),
            destage_retry: Retry::default(),
            segment_retry: Retry::default(),
            segment_failures: Repetition::default(),
            publish_retry: Retry::default(),
            last_activity: now,
            started: now,
            group_time: parts.group_time,
            mailbox: parts.mailbox,
            counters: Counters::default(),
            rates: RateMeter::default(),
            condition: (Condition::Opening, wall),
            events: Vec::new(),
            vault_failed: None,
            vault_failed_because: None,
            serving: false,
            is_paused,
            stopping: false,
            lacking,
            is_renewing: false,
            sealed: false,
            markers_pending: 0,
            writes: Slab::new(),
            barriers: Vec::new(),
            reads,
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

    /// Takes a request; the reply comes out of [`Group::take_replies`].
    pub fn submit(&mut self, ticket: Ticket, export: Export, request: Request) {
        if let Err(refusal) = self.accept(ticket, export, request) {
            self.replies.push((ticket, Err(refusal)));
        }
    }

    fn accept(
        &mut self,
        ticket: Ticket,
        export: Export,
        request: Request,
    ) -> std::result::Result<(), Refusal> {
        let Export::Disk(_, id) = export else { return Err(Refusal::Shutdown) };
        if self.stopping || !self.serving {
            return Err(Refusal::Shutdown);
        }
        let slot = *self.slots.get(&id).ok_or(Refusal::Shutdown)?;
        let disk = self.disks.get(&slot).ok_or(Refusal::Shutdown)?;
        disk.check(&request)?;
        let changes = !matches!(request, Request::Read { .. } | Request::Allocation { .. });
        if changes && self.writer.failure().is_some() {
            return Err(Refusal::Io);
        }
        match request {
            Request::Read { range } => self.read(ticket, slot, range),
            Request::Write { range, payload, durable } => self.write(ticket, slot, range, &payload, durable),
            Request::Zero { range, durable, keep_allocated } => {
                let entry = Entry::Zero { disk: slot, range, allocated: keep_allocated };
                let cookie = self.begin_write(ticket, slot, range, 0, durable);
                self.writer.enqueue(entry, Some(cookie));
            }
            Request::Flush => {
                self.barrier(Barrier { lsn: self.writer.visible(), ticket, write_bytes: None });
            }
            Request::Allocation { range } => self.allocation(ticket, slot, range),
        }
        Ok(())
    }

    fn read(&mut self, ticket: Ticket, slot: DiskSlot, range: SectorRange) {
        let parts = self.places(slot, range);
        let image = &self.disks[&slot].attached().file;
        let answer = self.reads.start(ticket, &parts, image, &self.segments, &self.cache.borrow());
        if let Some(reply) = answer {
            self.answer_read(ticket, reply);
        }
    }

    fn answer_read(&mut self, ticket: Ticket, reply: Reply) {
        self.counters.reads += u64::from(reply.is_ok());
        self.replies.push((ticket, reply));
    }

    pub(super) fn places(&self, slot: DiskSlot, range: SectorRange) -> Vec<(SectorRange, Place)> {
        places(self.layers.resolve(slot, range), &self.disks[&slot].sides)
    }

    /// Notes a write, or zeroes, that is about to be queued; returns its cookie.
    fn begin_write(
        &mut self,
        ticket: Ticket,
        slot: DiskSlot,
        range: SectorRange,
        payload_bytes: u64,
        durable: bool,
    ) -> u64 {
        if self.is_renewing
            && let Some(renewal) = self.disks.get_mut(&slot).and_then(|disk| disk.renewal.as_mut())
        {
            renewal.disturb(range);
        }
        let since = self.runtime.now();
        self.writes.insert(WriteInFlight { ticket, slot, range, payload_bytes, durable, since }) as u64
    }

    /// Whether a write to `range` of a disk is not visible yet.
    pub(super) fn has_writes_under_way(&self, slot: DiskSlot, range: SectorRange) -> bool {
        let meets = |write: &WriteInFlight| write.slot == slot && write.range.intersection(range).is_some();
        self.writes.iter().any(|(_, write)| meets(write))
    }

    fn write(&mut self, ticket: Ticket, slot: DiskSlot, range: SectorRange, payload: &Bytes, durable: bool) {
        let cookie = self.begin_write(ticket, slot, range, payload.len() as u64, durable);
        let mut start = range.start;
        for offset in (0..payload.len()).step_by(RECORD_PAYLOAD_BYTES_MAX) {
            let piece = payload.slice(offset..payload.len().min(offset + RECORD_PAYLOAD_BYTES_MAX));
            let end = start + piece.len() as u64 / SECTOR_BYTES;
            let entry = Entry::Write { disk: slot, range: SectorRange::new(start, end), payload: piece };
            self.writer.enqueue(entry, (end == range.end).then_some(cookie));
            start = end;
        }
    }

    /// Answers a barrier now if all that it waits for is durable, else once it is.
    fn barrier(&mut self, barrier: Barrier) {
        if barrier.lsn <= self.writer.durable() {
            self.pass(&barrier);
        } else {
            self.writer.want_durable(barrier.lsn);
            self.barriers.push(barrier);
        }
    }

    fn pass(&mut self, barrier: &Barrier) {
        match barrier.write_bytes {
            Some(bytes) => self.answer_write(barrier.ticket, bytes),
            None => self.replies.push((barrier.ticket, Ok(Response::Done))),
        }
    }

    fn answer_write(&mut self, ticket: Ticket, payload_bytes: u64) {
        self.counters.writes += 1;
        self.counters.written_bytes += payload_bytes;
        self.replies.push((ticket, Ok(Response::Done)));
    }

    fn allocation(&mut self, ticket: Ticket, slot: DiskSlot, range: SectorRange) {
        let parts = self.places(slot, range);
        let image = self.disks[&slot].attached().file.clone();
        let (runtime, mailbox) = (Rc::clone(&self.runtime), Rc::clone(&self.mailbox));
        self.tasks.spawn(async move {
            let reply = allocation::describe(&runtime, &image, &parts).await;
            let reply = reply.map(Response::Allocation).map_err(|_| Refusal::Io);
            mailbox.borrow_mut().push_back(Done::Reply(ticket, reply));
        });
    }

    /// Takes a completion whose tag names this group.
    pub fn handle(&mut self, event: Event) {
        let operation = event.tag.operation;
        if operation & OPERATION_READ != 0 {
            if let Some((ticket, reply)) = self.reads.handle(operation, event.result) {
                self.answer_read(ticket, reply);
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
        self.writer.hold_data(self.are_maps_full());
        self.care_for_latched();
        self.care_for_renewals();
        self.advance_resize();
        self.start_destage();
        self.supply_segments();
        self.recycle();
        self.mind_retention();
        self.writer.advance(&mut self.segments);
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
        [self.writer.next_deadline(), marker, idle, late].into_iter().chain(retries).flatten().min()
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
                self.lateness.wrote(|| self.runtime.now());
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

    fn acknowledge(&mut self, cookie: u64, lsn: Lsn) {
        if let Some(slot) = renewed_slot(cookie) {
            return self.piece_is_visible(slot, lsn);
        }
        let write = self.writes.remove(to_usize(cookie));
        self.last_activity = self.runtime.now();
        if write.durable {
            self.barrier(Barrier { lsn, ticket: write.ticket, write_bytes: Some(write.payload_bytes) });
        } else {
            self.answer_write(write.ticket, write.payload_bytes);
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

    fn answer_barriers(&mut self) {
        let durable = self.writer.durable();
        if self.barriers.iter().all(|barrier| barrier.lsn > durable) {
            return;
        }
        let barriers = std::mem::take(&mut self.barriers).into_iter();
        let (passed, waiting): (Vec<_>, Vec<_>) = barriers.partition(|barrier| barrier.lsn <= durable);
        self.barriers = waiting;
        for barrier in &passed {
            self.pass(barrier);
        }
    }

    /// The journal failed: every change fails from now on, and what waited fails with it.
    fn fail_writes(&mut self, kind: ErrorKind) {
        self.writer.abandon_queue();
        let refusal = if kind == ErrorKind::NoSpace { Refusal::NoSpace } else { Refusal::Io };
        for write in self.writes.drain() {
            self.replies.push((write.ticket, Err(refusal)));
        }
        for barrier in self.barriers.drain(..) {
            self.replies.push((barrier.ticket, Err(refusal)));
        }
        self.abandon_resize();
        self.fail_waiting_points();
        self.refuse_resumes(
            ErrorKind::Latched,
            "the journal failed: the group has to be closed and opened again",
        );
    }

    fn apply_done(&mut self) {
        loop {
            let done = self.mailbox.borrow_mut().pop_front();
            match done {
                None => return,
                Some(Done::Reply(ticket, reply)) => self.replies.push((ticket, reply)),
                Some(Done::Destaged { through, disks }) => self.finish_destage(through, disks),
                Some(Done::SideFile(slot, id, result)) => self.finish_side_file(slot, id, result),
                Some(Done::Mended(slot, result)) => self.finish_mend(slot, result),
                Some(Done::Taken(slot, result)) => self.finish_taking(slot, result),
                Some(Done::Renewed(slot, piece, result)) => self.finish_piece(slot, piece, result),
                Some(Done::Reattached(slot, result)) => self.finish_reattach(slot, result),
                Some(Done::Segment(Ok(segment))) => self.segment_created(segment),
                Some(Done::Segment(Err(error))) => self.segment_failed(&error),
                Some(Done::Indexed(result)) => self.finish_indexing(result),
                Some(Done::Published(result)) => self.finish_publish(result),
                Some(Done::PublishDelayed(kind)) => self.publish_retry.failed(self.runtime.now(), kind),
                Some(Done::Joined(result, callback)) => self.finish_join(result, callback),
                Some(Done::Left(id, slot, result, callback)) => self.finish_leave(id, slot, result, callback),
                Some(Done::Lengthened(result)) => self.finish_lengthening(result),
                Some(Done::ResizePrepared(image, result, settled)) => {
                    self.finish_preparing(image, result, settled)
                }
                Some(Done::Resized(resized)) => self.finish_resize(resized),
                Some(Done::Policy(interval, result, callback)) => {
                    self.finish_policy(interval, result, callback)
                }
                Some(Done::Paused(paused, result, callback)) => self.finish_pause(paused, result, callback),
                Some(Done::Retained { changed }) => self.finish_retained(changed),
                Some(Done::Asked(question)) => self.answer_question(question),
            }
        }
    }

    /// Whether the opening frame is durable, and requests are taken.
    pub fn is_serving(&self) -> bool {
        self.serving
    }

    /// When the oldest write was issued that is not answered yet.
    pub(super) fn oldest_write(&self) -> Option<MonotonicNanos> {
        self.writes.iter().map(|(_, write)| write.since).min()
    }

    /// Whether somebody still waits for an answer.
    pub(super) fn owes_replies(&self) -> bool {
        !(self.writes.is_empty() && self.reads.is_empty() && self.barriers.is_empty())
    }

    /// Why the journal failed, if it did, so that it never takes writes again.
    pub fn failure(&self) -> Option<ErrorKind> {
        self.writer.failure()
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
