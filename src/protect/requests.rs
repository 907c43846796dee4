//! What clients ask of a group: from [`Group::submit`] to the reply.
//!
//! A read is answered from layers and images, a change goes to the journal's writer with a cookie, by which it is known again once it
//! is visible, and a flush, or a write that is to be durable, becomes a barrier.
//!
//! Invariants: a change is acknowledged only after its records are in the open layer, and a barrier passed only once all that it
//! waits for is durable; each request gets one reply, also when the journal fails, and when the group is closed.

use bytes::Bytes;

use crate::block::{Export, Refusal, Reply, Request, Response, Ticket};
use crate::error::{Error, ErrorKind};
use crate::format::frame::RECORD_PAYLOAD_BYTES_MAX;
use crate::journal::writer::Entry;
use crate::protect::events::GroupEvent;
use crate::protect::failing::Failing;
use crate::protect::group::Group;
use crate::protect::place::{Place, places};
use crate::protect::renewal::renewed_slot;
use crate::units::{DiskSlot, Lsn, MonotonicNanos, SECTOR_BYTES, SectorRange, to_usize};

/// A write, or zeroes, that is not visible yet.
pub(super) struct WriteInFlight {
    ticket: Ticket,
    slot: DiskSlot,
    range: SectorRange,
    payload_bytes: u64,
    durable: bool,
    since: MonotonicNanos,
}

/// A request that is answered once everything up to an LSN is durable.
pub(super) struct Barrier {
    lsn: Lsn,
    ticket: Ticket,
    /// The write that asked for it, by its disk and its payload's length; none for a flush.
    write: Option<(DiskSlot, u64)>,
}

impl Group {
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
                self.barrier(Barrier { lsn: self.writer.visible(), ticket, write: None });
            }
            Request::Allocation { range, runs_max } => self.ask_allocation(ticket, slot, range, runs_max),
        }
        Ok(())
    }

    fn read(&mut self, ticket: Ticket, slot: DiskSlot, range: SectorRange) {
        let parts = self.places(slot, range);
        let image = self.disks[&slot].attached();
        let answer = self.reads.start(ticket, &parts, (slot, image), &self.segments, &self.cache.borrow());
        if let Some(reply) = answer {
            self.answer_read(ticket, reply);
        }
    }

    /// Starts a read anew, whose disk may have become another one meanwhile.
    pub(super) fn read_again(&mut self, ticket: Ticket, slot: DiskSlot, range: SectorRange) {
        let checked = match self.disks.get(&slot) {
            Some(disk) => disk.check(&Request::Read { range }),
            None => Err(Refusal::Shutdown),
        };
        match checked {
            Ok(()) => self.read(ticket, slot, range),
            Err(refusal) => self.answer_read(ticket, Err(refusal)),
        }
    }

    pub(super) fn answer_read(&mut self, ticket: Ticket, reply: Reply) {
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
        match barrier.write {
            Some((slot, bytes)) => self.answer_write(barrier.ticket, slot, bytes),
            None => self.replies.push((barrier.ticket, Ok(Response::Done))),
        }
    }

    fn answer_write(&mut self, ticket: Ticket, slot: DiskSlot, payload_bytes: u64) {
        self.counters.writes += 1;
        self.counters.written_bytes += payload_bytes;
        // It may have left meanwhile.
        if let Some(disk) = self.disks.get_mut(&slot) {
            disk.written_bytes += payload_bytes;
        }
        self.replies.push((ticket, Ok(Response::Done)));
    }

    /// Notes that a request failed for what is stored, or for its device: for people, who are told while it goes on.
    pub(super) fn note_failed_request(&mut self, slot: DiskSlot, error: &Error) {
        let now = self.runtime.now();
        if let Some(disk) = self.disks.get(&slot) {
            self.failing_requests.note(disk.record.name.clone(), (now, self.runtime.wall()), error);
        }
        if let Some(times) = self.failed_requests.failed(now, error.kind()) {
            self.tell(GroupEvent::RequestsFailed { error: error.to_string(), times });
        }
    }

    /// The disks that requests fail of now.
    pub fn failing_disks(&self) -> Vec<Failing<String>> {
        let is_there = |name: &String| self.disks.values().any(|disk| disk.record.name == *name);
        let failing = self.failing_requests.now(self.runtime.now());
        failing.filter(|failing| is_there(&failing.export)).cloned().collect()
    }

    pub(super) fn acknowledge(&mut self, cookie: u64, lsn: Lsn) {
        if let Some(slot) = renewed_slot(cookie) {
            return self.piece_is_visible(slot, lsn);
        }
        let write = self.writes.remove(to_usize(cookie));
        self.last_activity = self.runtime.now();
        if write.durable {
            let asked = Some((write.slot, write.payload_bytes));
            self.barrier(Barrier { lsn, ticket: write.ticket, write: asked });
        } else {
            self.answer_write(write.ticket, write.slot, write.payload_bytes);
        }
    }

    pub(super) fn answer_barriers(&mut self) {
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
    pub(super) fn fail_writes(&mut self, kind: ErrorKind) {
        self.writer.abandon_queue();
        let refusal = if kind == ErrorKind::NoSpace { Refusal::NoSpace } else { Refusal::Io };
        self.refuse_changes(refusal);
        self.abandon_resize();
        self.make_delayed_points();
        self.fail_waiting_points();
        self.refuse_resumes(
            ErrorKind::Latched,
            "the journal failed: the group has to be closed and opened again",
        );
    }

    fn refuse_changes(&mut self, refusal: Refusal) {
        let writes = self.writes.drain().map(|write| write.ticket);
        let barriers = self.barriers.drain(..).map(|barrier| barrier.ticket);
        self.replies.extend(writes.chain(barriers).map(|ticket| (ticket, Err(refusal))));
    }

    /// Lets the group go, with all that works for it, whatever it is doing; gives the answers that are due, and a refusal to each
    /// request that waits. A change that is refused may be in the journal all the same.
    #[must_use]
    pub fn close(mut self) -> Vec<(Ticket, Reply)> {
        self.refuse_changes(Refusal::Shutdown);
        let rest = self.reads.abandon().chain(self.allocations.abandon());
        self.replies.extend(rest.map(|ticket| (ticket, Err(Refusal::Shutdown))));
        self.replies
    }

    /// When the oldest write was issued that is not answered yet.
    pub(super) fn oldest_write(&self) -> Option<MonotonicNanos> {
        self.writes.iter().map(|(_, write)| write.since).min()
    }

    /// Whether somebody still waits for an answer.
    pub(super) fn owes_replies(&self) -> bool {
        !(self.writes.is_empty()
            && self.reads.is_empty()
            && self.barriers.is_empty()
            && self.allocations.is_empty())
    }
}
