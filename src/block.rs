//! What a front end asks of a block device, and what it is told: the language between the capture modes above and
//! groups and views below.
//!
//! A [`Request`] names its disk by an [`Export`]; the [`Reply`] carries the same [`Ticket`]. Replies come in any
//! order. Ranges were checked against the disk's size by whoever owns the disk, not by the front end.

use bytes::Bytes;

use crate::allocation::AllocationRun;
use crate::runtime::Event;
use crate::storage::Slice;
use crate::units::{DiskId, GroupId, MonotonicNanos, SectorRange};

/// Names a request to whoever asked; opaque to whoever answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    /// The asking session.
    pub session: u64,
    /// The session's own number of the request.
    pub request: u64,
}

/// Something that can be served as a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Export {
    /// A protected disk of a group.
    Disk(GroupId, DiskId),
    /// A disk of a test failover: a view of a point with a throwaway overlay.
    Test(GroupId, DiskId, TestId),
}

impl Export {
    /// The group whose owner answers for it.
    pub fn group(self) -> GroupId {
        match self {
            Export::Disk(group, _) | Export::Test(group, _, _) => group,
        }
    }
}

/// A test failover of a group: the N of `GROUP/DISK@test-N`; never reused within a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TestId(pub u64);

/// What a front end asks.
#[derive(Clone, Debug)]
pub enum Request {
    /// The bytes of a range.
    Read {
        /// Which sectors.
        range: SectorRange,
    },
    /// New bytes for a range.
    Write {
        /// Which sectors; as long as `payload`.
        range: SectorRange,
        /// Received completely, and owned by the request.
        payload: Bytes,
        /// Answer only when it survives a power cut (FUA).
        durable: bool,
    },
    /// Zeros for a range.
    Zero {
        /// Which sectors.
        range: SectorRange,
        /// Answer only when it survives a power cut (FUA).
        durable: bool,
        /// Keep the space allocated (NBD's NO_HOLE); otherwise holes are welcome (TRIM, WRITE_ZEROES).
        keep_allocated: bool,
    },
    /// Answer when every write acknowledged before this was received survives a power cut.
    Flush,
    /// Which parts of a range are allocated, which are holes that read as zeros.
    Allocation {
        /// Which sectors.
        range: SectorRange,
        /// How many runs are wanted at most, one at least: the answer ends before the next one.
        runs_max: usize,
    },
}

/// A successful answer.
#[derive(Clone, Debug)]
pub enum Response {
    /// The write, zero or flush is done.
    Done,
    /// The bytes of a read, in order, as long as the range together.
    Data(Vec<DataPiece>),
    /// The state of a range, in order; it may end before the range does, not before its first sector.
    Allocation(Vec<AllocationRun>),
}

/// A part of a read's answer.
#[derive(Clone, Debug)]
pub enum DataPiece {
    /// These bytes.
    Bytes(Slice),
    /// This many zero bytes.
    Zeros(u64),
}

impl DataPiece {
    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            DataPiece::Bytes(slice) => slice.len() as u64,
            DataPiece::Zeros(count) => *count,
        }
    }
}

/// Why a request was refused; each is another answer to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Outside the disk, or not in whole sectors.
    Invalid,
    /// No space behind the disk.
    NoSpace,
    /// The export is read-only.
    ReadOnly,
    /// The device failed; the group or disk is latched.
    Io,
    /// The gateway stops, or the export was removed.
    Shutdown,
}

/// The answer to a request.
pub type Reply = Result<Response, Refusal>;

/// What a data thread hosts: all disks of a group. Its owner thread calls it, and nobody else; nothing here waits.
pub trait Volume {
    /// Takes a request. Its reply, with the same ticket, comes out of [`Volume::take_replies`] at some time.
    fn submit(&mut self, ticket: Ticket, export: Export, request: Request);

    /// Takes a completion of what it submitted to the runtime.
    fn handle(&mut self, event: Event);

    /// Whether completions tagged with that owner are its own; the answer does not change.
    fn owns(&self, owner: u32) -> bool;

    /// Goes as far as it can: called after requests, completions and tasks that concern it, so that much of each is seen at once.
    fn advance(&mut self);

    /// Whether a task has gone on since the last call that concerns nobody else, so that it must [advance](Volume::advance).
    fn take_stirred(&mut self) -> bool {
        false
    }

    /// Adds the replies that are due.
    fn take_replies(&mut self, replies: &mut Vec<(Ticket, Reply)>);

    /// It is about to be dropped, and nothing is submitted any more: whatever it has not answered yet is refused with
    /// [`Refusal::Shutdown`], so that every ticket comes out of [`Volume::take_replies`] once.
    fn close(&mut self);

    /// When [`Volume::advance`] must be called even if nothing happens. The loop keeps it to the millisecond.
    fn next_deadline(&self) -> Option<MonotonicNanos>;

    /// A session ended: its replies will reach nobody, so requests that have had no effect yet may be dropped.
    fn session_ended(&mut self, session: u64) {
        let _ = session;
    }
}
