//! The journal's single writer: gives records their LSNs, gathers them into frames, keeps several in flight, and
//! says what became visible and what is durable.
//!
//! ```text
//!  queue ──▶ frame ──submit──▶ in flight ──written, and all earlier too──▶ visible ──sync──▶ durable
//! ```
//!
//! Invariants, asserted: `durable ≤ visible ≤ written ≤ submitted`; records become visible in LSN order; a sync
//! covers the frames that were written when it was submitted, on the segments that they are in; a failed write or
//! sync latches the writer for good, but for a write that finds no space, which is tried again. The writer knows no disks, maps or
//! replies: its owner, the group, does.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::format::frame::{FRAME_PAYLOAD_BYTES_MAX, Frame, RECORD_PAYLOAD_BYTES_MAX};
use crate::format::marker::{Marker, Opening};
use crate::journal::commit::{Decision, FRAMES_IN_FLIGHT_MAX, QueueState, decide};
use crate::journal::durability::Durability;
use crate::journal::frame_plan::{Assembled, FramePlan, Pending, control_bytes};
use crate::journal::keys::FrameKey;
use crate::journal::runs::CoveredFrame;
use crate::journal::segments::{Segment, Segments, Source};
use crate::planted::{Bug, Planted};
use crate::runtime::{Runtime, Tag};
use crate::storage::{Op, Outcome, Slice};
use crate::units::{
    DiskSlot, FrameNumber, GroupId, IncarnationId, Lsn, MonotonicNanos, PAGE_BYTES, SECTOR_BYTES,
    SectorRange, TimelineId,
};

/// Frames are closed at this size, header included.
const FRAME_BYTES_TARGET: usize = 1 << 20;

const _: () = assert!(FRAME_BYTES_TARGET <= FRAME_PAYLOAD_BYTES_MAX);
const _: () = assert!(RECORD_PAYLOAD_BYTES_MAX + 2 * PAGE_BYTES <= FRAME_BYTES_TARGET);

/// Whose journal it is, in which history and incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The group.
    pub group: GroupId,
    /// The history.
    pub timeline: TimelineId,
    /// This opening.
    pub incarnation: IncarnationId,
}

/// What is to be recorded.
#[derive(Clone, Debug)]
pub enum Entry {
    /// New content; at most [`RECORD_PAYLOAD_BYTES_MAX`], as long as the range.
    Write {
        /// Which disk.
        disk: DiskSlot,
        /// Which sectors.
        range: SectorRange,
        /// The bytes.
        payload: Bytes,
    },
    /// Zeros.
    Zero {
        /// Which disk.
        disk: DiskSlot,
        /// Which sectors.
        range: SectorRange,
        /// Whether to keep the space.
        allocated: bool,
    },
    /// The end of an interval.
    Marker(Marker),
    /// The beginning of an incarnation.
    Opening(Opening),
    /// A clean stop.
    Seal,
}

impl Entry {
    /// Payload that it brings.
    pub(super) fn payload_bytes(&self) -> usize {
        match self {
            Entry::Write { payload, .. } => payload.len(),
            _ => 0,
        }
    }
}

/// A record that became visible, in LSN order.
#[derive(Clone, Debug)]
pub struct Visible {
    /// Its number.
    pub lsn: Lsn,
    /// What it says.
    pub event: VisibleEvent,
    /// What the owner wants to be reminded of.
    pub cookie: Option<u64>,
    /// Whether it is the last of its frame.
    pub ends_frame: bool,
}

/// What became visible.
#[derive(Clone, Debug)]
pub enum VisibleEvent {
    /// The newest bytes of a range are there.
    Data {
        /// Which disk.
        disk: DiskSlot,
        /// Which sectors.
        range: SectorRange,
        /// Where they are.
        source: Source,
    },
    /// An interval ended.
    Marker(Marker),
    /// An opening or a seal.
    Boundary,
}

/// Where the writer goes on.
#[derive(Clone, Debug)]
pub struct Position {
    /// The segment, or `None` to start with a fresh one.
    pub segment: Option<Rc<Segment>>,
    /// Where in it.
    pub offset: u64,
    /// Number of the next frame.
    pub next_frame: FrameNumber,
    /// `header_sum` of the last one.
    pub chain: u64,
    /// The last record accepted.
    pub accepted: Lsn,
    /// The newest record that was ever numbered, accepted or dead: numbers start above it.
    pub newest: Lsn,
}

struct InFlight {
    number: FrameNumber,
    segment: Rc<Segment>,
    sector: u32,
    bytes: Slice,
    /// As it is written, and where.
    stored: Slice,
    offset: u64,
    written: bool,
    /// When it is written again, if it found no space,
    again_at: Option<MonotonicNanos>,
    /// and whether it did, as far as is known.
    lacks_space: bool,
    last_lsn: Lsn,
    visible: Vec<Visible>,
    covered: CoveredFrame,
}

/// A frame that was written: for the cache.
pub struct Written {
    /// Where it is.
    pub segment: Rc<Segment>,
    /// First sector of it in the segment.
    pub sector: u32,
    /// Header and plain payload.
    pub bytes: Slice,
    /// For index runs.
    pub covered: CoveredFrame,
}

/// The writer.
pub struct Writer {
    runtime: Rc<Runtime>,
    owner: u32,
    identity: Identity,
    /// Seals its frames, where the group is sealed.
    key: Option<Rc<FrameKey>>,
    planted: Planted,
    position: Position,
    control: VecDeque<Pending>,
    data: VecDeque<Pending>,
    data_bytes: usize,
    data_held: bool,
    /// Bytes of data that may go; less than none once a record took more than was left.
    allowance: Option<i64>,
    in_flight: VecDeque<InFlight>,
    first_in_flight: FrameNumber,
    became_visible: VecDeque<Visible>,
    written: Vec<Written>,
    first: Lsn,
    next_lsn: Lsn,
    visible: Lsn,
    /// The newest frame that is written, as all before it are.
    written_frame: FrameNumber,
    durability: Durability,
    stalled: bool,
    failed: Option<ErrorKind>,
}

const OPERATION_SYNC: u64 = 1 << 62;

/// After so long a frame is written again that found no space.
const AGAIN_DELAY: Duration = Duration::from_secs(1);

impl Writer {
    /// A writer that goes on at `position`; everything up to `position.accepted` is durable. Its operations carry
    /// `owner`.
    pub fn new(
        runtime: Rc<Runtime>,
        owner: u32,
        identity: Identity,
        position: Position,
        key: Option<Rc<FrameKey>>,
        planted: Planted,
    ) -> Writer {
        let last = position.accepted;
        let last_frame = FrameNumber(position.next_frame.0 - 1);
        let next_lsn = last.max(position.newest).first_of_next_incarnation();
        Writer {
            runtime,
            owner,
            identity,
            key,
            planted,
            first_in_flight: position.next_frame,
            position,
            control: VecDeque::new(),
            data: VecDeque::new(),
            data_bytes: 0,
            data_held: false,
            allowance: None,
            in_flight: VecDeque::new(),
            became_visible: VecDeque::new(),
            written: Vec::new(),
            first: next_lsn,
            next_lsn,
            visible: last,
            written_frame: last_frame,
            durability: Durability::of_opening(last, last_frame),
            stalled: false,
            failed: None,
        }
    }

    /// The first record of this incarnation: its opening.
    pub fn first(&self) -> Lsn {
        self.first
    }

    /// The last record submitted.
    pub fn submitted(&self) -> Lsn {
        self.in_flight.back().map_or(self.visible, |frame| frame.last_lsn)
    }

    /// The last record that reads may see.
    pub fn visible(&self) -> Lsn {
        self.visible
    }

    /// The last record that survives a power cut.
    pub fn durable(&self) -> Lsn {
        self.durability.record()
    }

    /// The last frame that survives a power cut, as all before it do.
    pub fn durable_frame(&self) -> FrameNumber {
        self.durability.frame()
    }

    /// The frame that will be submitted next.
    pub fn next_frame(&self) -> FrameNumber {
        self.position.next_frame
    }

    /// Whether data waits for a segment to become free.
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Whether nothing waits and nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.control.is_empty()
            && self.data.is_empty()
            && self.in_flight.is_empty()
            && !self.durability.is_syncing()
    }

    /// Why the writer stopped, if it did.
    pub fn failure(&self) -> Option<ErrorKind> {
        self.failed
    }

    /// Whether a frame waits for space.
    pub fn lacks_space(&self) -> bool {
        self.in_flight.iter().any(|frame| frame.lacks_space)
    }

    /// Queues data; `cookie` comes back when it is visible.
    pub fn enqueue(&mut self, entry: Entry, cookie: Option<u64>) {
        self.data_bytes += entry.payload_bytes();
        self.data.push_back(Pending { entry, cookie });
    }

    /// Queues a record of the group's own. It goes before data that waits: nothing there was acknowledged, and a
    /// full journal must still end its interval.
    pub fn enqueue_control(&mut self, entry: Entry, cookie: Option<u64>) {
        self.control.push_back(Pending { entry, cookie });
    }

    /// Lets data wait, or go on. Control records are not concerned.
    pub fn hold_data(&mut self, held: bool) {
        self.data_held = held;
    }

    /// Whether data waits because it is [held](Writer::hold_data).
    pub fn holds_data(&self) -> bool {
        self.data_held && !self.data.is_empty()
    }

    /// Lets so many bytes of data go, and the record that they end in; all if there is no allowance. Control records are not concerned.
    pub fn allow_data(&mut self, allowance: Option<i64>) {
        self.allowance = allowance;
    }

    /// What is left of the allowance.
    pub fn allowance(&self) -> Option<i64> {
        self.allowance
    }

    /// Whether data waits because nothing is left of its [allowance](Writer::allow_data).
    pub fn waits_for_allowance(&self) -> bool {
        self.is_allowance_spent() && !self.data.is_empty()
    }

    fn is_allowance_spent(&self) -> bool {
        self.allowance.is_some_and(|bytes| bytes <= 0)
    }

    /// The data that may go next.
    fn next_data(&self) -> Option<&Pending> {
        self.data.front().filter(|_| !self.data_held && !self.is_allowance_spent())
    }

    /// Bytes that are left of the newest segment.
    pub fn room_in_segment(&self) -> u64 {
        self.room() as u64
    }

    /// Asks that records up to `lsn` become durable.
    pub fn want_durable(&mut self, lsn: Lsn) {
        self.durability.want(lsn);
    }

    /// Asks that a frame, which may be the next one, becomes durable.
    pub fn want_durable_frame(&mut self, frame: FrameNumber) {
        self.durability.want_frame(frame);
    }

    /// What became visible since the last call, in LSN order.
    pub fn take_visible(&mut self) -> VecDeque<Visible> {
        std::mem::take(&mut self.became_visible)
    }

    /// The frames written since the last call.
    pub fn take_written(&mut self) -> Vec<Written> {
        std::mem::take(&mut self.written)
    }

    /// Forgets what waits, when the group is latched or stops; returns the cookies.
    pub fn abandon_queue(&mut self) -> Vec<u64> {
        self.data_bytes = 0;
        let pending = self.data.drain(..).chain(self.control.drain(..));
        pending.filter_map(|pending| pending.cookie).collect()
    }

    /// When [`Writer::advance`] has something to do even if nothing happens.
    pub fn next_deadline(&self) -> Option<MonotonicNanos> {
        let again = self.in_flight.iter().filter_map(|frame| frame.again_at);
        again.chain(self.durability.statement_due()).min()
    }

    /// Submits what the policy says, and a sync if one is wanted.
    pub fn advance(&mut self, segments: &mut Segments) {
        if self.failed.is_some() {
            return;
        }
        self.write_again();
        self.stalled = false;
        while self.should_submit() {
            if !self.submit_frame(segments) {
                self.stalled = true;
                break;
            }
        }
        self.state_durability(segments);
        self.submit_wanted_frame(segments);
        self.start_sync();
    }

    fn should_submit(&self) -> bool {
        if !self.control.is_empty() {
            return self.in_flight.len() < FRAMES_IN_FLIGHT_MAX;
        }
        let state = QueueState {
            records: if self.next_data().is_some() { self.data.len() } else { 0 },
            payload_bytes: self.data_bytes,
            frames_in_flight: self.in_flight.len(),
        };
        decide(state) == Decision::Submit
    }

    /// Closes one frame over the front of the queues; `false` if there is no segment for it.
    fn submit_frame(&mut self, segments: &mut Segments) -> bool {
        let Some(room) = self.room_for_next(segments) else { return false };
        let mut plan = FramePlan::new(self.key.is_some());
        let (controls, is_ended) = self.next_controls();
        // They are few and small: they fit in any fresh segment.
        self.control.drain(..controls).for_each(|pending| plan.push(pending));
        let limit = room.min(FRAME_BYTES_TARGET);
        let may_take_data = !is_ended && segments.is_reserve_whole();
        while let Some(pending) = self.next_data().filter(|_| may_take_data) {
            if !plan.fits(&pending.entry, limit) {
                break;
            }
            let Some(pending) = self.data.pop_front() else { break };
            let bytes = pending.entry.payload_bytes();
            self.data_bytes -= bytes;
            self.allowance = self.allowance.map(|left| left.saturating_sub_unsigned(bytes as u64));
            plan.push(pending);
        }
        self.submit_plan(plan, segments);
        true
    }

    /// How many control records the next frame takes, and whether it ends with them: nothing stands behind a marker in its frame,
    /// so that what it ends can be told by whole frames.
    fn next_controls(&self) -> (usize, bool) {
        let marker = self.control.iter().position(|pending| matches!(pending.entry, Entry::Marker(_)));
        (marker.map_or(self.control.len(), |marker| marker + 1), marker.is_some())
    }

    /// Room in the segment that the next frame goes to, after switching to a fresh one if need be.
    fn room_for_next(&mut self, segments: &mut Segments) -> Option<usize> {
        let mut need = FramePlan::new(self.key.is_some());
        for pending in self.control.iter().take(self.next_controls().0) {
            need.reserve(control_bytes(&pending.entry));
        }
        // What is neither data nor the group's own is a statement, for which the reserve is not meant either.
        let for_data = need.is_empty();
        if for_data && let Some(first) = self.next_data() {
            need.reserve(first.entry.payload_bytes());
        }
        let need = need.total_bytes();
        if self.room() >= need && for_data && !segments.is_reserve_whole() {
            return None;
        }
        // Where nothing is free, room for the statement that frees retired segments stays.
        let kept = if segments.has_free() { 0 } else { FramePlan::new(self.key.is_some()).total_bytes() };
        if self.room() < need + kept {
            let fresh = segments.take(for_data)?;
            assert!(fresh.bytes >= need as u64, "a segment takes the largest record");
            self.position.segment = Some(fresh);
            self.position.offset = 0;
            return Some(self.room());
        }
        Some(self.room() - kept)
    }

    fn room(&self) -> usize {
        let Some(segment) = &self.position.segment else { return 0 };
        usize::try_from(segment.bytes.saturating_sub(self.position.offset)).unwrap_or(usize::MAX)
    }

    fn submit_plan(&mut self, plan: FramePlan, segments: &Segments) {
        let segment = Rc::clone(self.position.segment.as_ref().expect("room_for_next chose one"));
        let first_lsn = self.next_lsn;
        let page =
            u32::try_from(self.position.offset / PAGE_BYTES as u64).expect("segments are below 16 TiB");
        let mut frame = Frame {
            group: self.identity.group,
            timeline: self.identity.timeline,
            incarnation: self.identity.incarnation,
            number: self.position.next_frame,
            chain: self.position.chain,
            first_lsn,
            durable_through: self.durability.record(),
            segment: segment.sequence(),
            segment_page: page,
            tail: segments.tail().unwrap_or(segment.sequence()),
            records: Vec::with_capacity(plan.records()),
            payload_pages: 0,
            seal: None,
        };
        let first_sector = page * u32::try_from(PAGE_BYTES as u64 / SECTOR_BYTES).expect("eight");
        let Assembled { stored, plain, sum, visible } =
            plan.assemble(&mut frame, &segment, first_sector, self.key.as_deref());
        self.position.chain = sum;
        self.position.next_frame = frame.number.next();
        self.next_lsn = first_lsn.advance(frame.records.len() as u64);
        self.durability.stated(frame.durable_through);
        segment.takes_frame(&frame, self.key.as_ref());
        let covered = CoveredFrame::new(segment.index, &frame, sum);
        let tag = Tag { owner: self.owner, operation: frame.number.0 };
        let offset = self.position.offset;
        self.position.offset += stored.len() as u64;
        let data = stored.clone();
        self.runtime.submit(tag, Op::Write { file: segment.file.clone(), offset, data });
        let last_lsn = frame.last_lsn();
        let mut in_flight = InFlight {
            number: frame.number,
            segment,
            sector: first_sector,
            bytes: plain,
            stored,
            offset,
            written: false,
            again_at: None,
            lacks_space: false,
            last_lsn,
            visible,
            covered,
        };
        if self.planted.is(Bug::AcknowledgeBeforeWritten) {
            self.visible = self.visible.max(in_flight.last_lsn);
            self.became_visible.extend(in_flight.visible.drain(..));
        }
        self.in_flight.push_back(in_flight);
    }

    /// Takes a completion of one of this writer's operations.
    pub fn handle(&mut self, operation: u64, result: Result<Outcome>) {
        if operation == OPERATION_SYNC {
            self.handle_sync(result);
        } else {
            self.handle_frame(FrameNumber(operation), result);
        }
    }

    /// Whether an operation number belongs to a writer.
    pub fn owns(operation: u64) -> bool {
        operation <= OPERATION_SYNC
    }

    fn handle_frame(&mut self, number: FrameNumber, result: Result<Outcome>) {
        let index = usize::try_from(number.0 - self.first_in_flight.0).expect("few frames are in flight");
        if let Err(error) = result {
            match error.kind() {
                ErrorKind::NoSpace if self.visible >= self.first => self.postpone(index, &error),
                _ => self.fail(&error),
            }
            return;
        }
        let frame = self.in_flight.get_mut(index).expect("only frames in flight complete");
        (frame.written, frame.lacks_space) = (true, false);
        self.durability.wrote_to(&frame.segment);
        while self.failed.is_none() && self.in_flight.front().is_some_and(|frame| frame.written) {
            let Some(mut frame) = self.in_flight.pop_front() else { break };
            self.first_in_flight = self.first_in_flight.next();
            self.written_frame = frame.number;
            self.visible = self.visible.max(frame.last_lsn);
            self.became_visible.extend(frame.visible.drain(..));
            let InFlight { segment, sector, bytes, covered, .. } = frame;
            self.written.push(Written { segment, sector, bytes, covered });
        }
    }

    /// A segment that is there takes no space to be written, except on a file system that writes elsewhere than before: then the frame waits, and all
    /// behind it, which nobody has been told of. An opening's first frame does not: who opens the group tries that again.
    fn postpone(&mut self, index: usize, error: &Error) {
        if !self.lacks_space() {
            tracing::warn!(group = %self.identity.group, %error, "the journal finds no space: writes wait");
        }
        let again_at =
            MonotonicNanos(self.runtime.now().0 + u64::try_from(AGAIN_DELAY.as_nanos()).unwrap_or(u64::MAX));
        let frame = self.in_flight.get_mut(index).expect("only frames in flight complete");
        (frame.again_at, frame.lacks_space) = (Some(again_at), true);
    }

    /// Writes frames again that found no space a while ago.
    fn write_again(&mut self) {
        let now = self.runtime.now();
        for frame in self.in_flight.iter_mut().filter(|frame| frame.again_at.is_some_and(|at| at <= now)) {
            frame.again_at = None;
            let tag = Tag { owner: self.owner, operation: frame.number.0 };
            let write = Op::Write {
                file: frame.segment.file.clone(),
                offset: frame.offset,
                data: frame.stored.clone(),
            };
            self.runtime.submit(tag, write);
        }
    }

    /// A wanted frame that nothing else brings about is submitted empty.
    fn submit_wanted_frame(&mut self, segments: &mut Segments) {
        let is_missing =
            self.durability.wanted_frame() >= self.position.next_frame && self.in_flight.is_empty();
        if is_missing && self.room_for_statement(segments) {
            self.submit_plan(FramePlan::new(self.key.is_some()), segments);
        }
    }

    /// Room for an empty frame, if need be in the reserve: it is what frees segments.
    fn room_for_statement(&mut self, segments: &mut Segments) -> bool {
        if self.room() < FramePlan::new(self.key.is_some()).total_bytes() {
            let Some(fresh) = segments.take(false) else { return false };
            self.position.segment = Some(fresh);
            self.position.offset = 0;
        }
        true
    }

    fn start_sync(&mut self) {
        if !self.durability.is_sync_due(self.visible, self.written_frame) {
            return;
        }
        let mut segments = self.durability.take_unsynced();
        let mut covers = self.visible;
        if self.planted.is(Bug::SyncCoversInFlight) {
            covers = self.submitted();
            self.visible = self.visible.max(covers);
        }
        if self.planted.is(Bug::SegmentSwitchBeforeSync)
            && let Some(current) = &self.position.segment
        {
            segments.retain(|segment| Rc::ptr_eq(segment, current));
        }
        self.durability.begin_sync(covers, self.written_frame, segments.len());
        for segment in segments {
            let tag = Tag { owner: self.owner, operation: OPERATION_SYNC };
            self.runtime.submit(tag, Op::Sync { file: segment.file.clone() });
        }
    }

    fn handle_sync(&mut self, result: Result<Outcome>) {
        match result {
            Ok(_) => self.durability.synced_one(self.runtime.now()),
            Err(error) => self.fail(&error),
        }
        assert!(
            self.durability.record() <= self.visible,
            "a sync covers what was visible when it was submitted"
        );
    }

    /// A sync that nothing followed is stated by an empty frame, so that the next opening knows of it.
    fn state_durability(&mut self, segments: &mut Segments) {
        let settled = self.in_flight.is_empty() && self.next_data().is_none() && self.control.is_empty();
        let is_due = self.durability.takes_statement(self.runtime.now());
        if is_due && settled && self.room_for_next(segments).is_some() {
            self.submit_plan(FramePlan::new(self.key.is_some()), segments);
        }
    }

    fn fail(&mut self, error: &Error) {
        tracing::error!(group = %self.identity.group, %error, "the journal failed; the group is latched");
        self.failed.get_or_insert(error.kind());
        self.durability.give_up();
    }
}
