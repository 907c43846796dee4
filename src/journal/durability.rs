//! How much of the journal survives a power cut: which syncs are due, what each of them covers, and whether the journal
//! itself says so yet.
//!
//! Invariants: a sync covers the frames that were written when it was submitted, on the segments that they are in; what is
//! durable never goes back; a sync that nothing follows is stated by an empty frame within 50 ms, so that
//! an opening knows of it. Syncs themselves are the writer's to submit.

use std::rc::Rc;
use std::time::Duration;

use crate::journal::segments::Segment;
use crate::units::{FrameNumber, Lsn, MonotonicNanos};

/// How long a sync that nothing follows waits for a frame that would state it anyway.
const STATEMENT_DELAY: Duration = Duration::from_millis(50);

/// What is durable, what is to be, and what says so.
pub(super) struct Durability {
    record: Lsn,
    frame: FrameNumber,
    wanted: Lsn,
    wanted_frame: FrameNumber,
    /// Segments that hold written frames which no sync has covered yet.
    unsynced: Vec<Rc<Segment>>,
    round: Option<Round>,
    stated: Lsn,
    statement_due: Option<MonotonicNanos>,
}

/// Syncs in flight, one for each segment.
struct Round {
    covers: Lsn,
    covers_frame: FrameNumber,
    remaining: usize,
}

impl Durability {
    /// After an opening, which made all that it accepted durable.
    pub(super) fn of_opening(record: Lsn, frame: FrameNumber) -> Durability {
        Durability {
            record,
            frame,
            wanted: Lsn::ZERO,
            wanted_frame: FrameNumber(0),
            unsynced: Vec::new(),
            round: None,
            stated: Lsn::ZERO,
            statement_due: None,
        }
    }

    /// The last record that survives a power cut, as all before it do.
    pub(super) fn record(&self) -> Lsn {
        self.record
    }

    /// The last frame that does.
    pub(super) fn frame(&self) -> FrameNumber {
        self.frame
    }

    /// The newest frame that was asked for.
    pub(super) fn wanted_frame(&self) -> FrameNumber {
        self.wanted_frame
    }

    /// Whether syncs are in flight.
    pub(super) fn is_syncing(&self) -> bool {
        self.round.is_some()
    }

    /// Asks that records up to `record` become durable.
    pub(super) fn want(&mut self, record: Lsn) {
        self.wanted = self.wanted.max(record);
    }

    /// Asks that a frame does.
    pub(super) fn want_frame(&mut self, frame: FrameNumber) {
        self.wanted_frame = self.wanted_frame.max(frame);
    }

    /// A frame in `segment` was written.
    pub(super) fn wrote_to(&mut self, segment: &Rc<Segment>) {
        if !self.unsynced.iter().any(|unsynced| Rc::ptr_eq(unsynced, segment)) {
            self.unsynced.push(Rc::clone(segment));
        }
    }

    /// Whether a sync would bring what is wanted, now that `visible` and `written` are what they are.
    pub(super) fn is_sync_due(&self, visible: Lsn, written: FrameNumber) -> bool {
        let wants_record = self.wanted.min(visible) > self.record;
        let wants_frame = self.wanted_frame.min(written) > self.frame;
        self.round.is_none() && (wants_record || wants_frame)
    }

    /// The segments that the next syncs are for.
    pub(super) fn take_unsynced(&mut self) -> Vec<Rc<Segment>> {
        std::mem::take(&mut self.unsynced)
    }

    /// That many syncs are submitted; together they cover everything up to `covers` and `covers_frame`.
    pub(super) fn begin_sync(&mut self, covers: Lsn, covers_frame: FrameNumber, syncs: usize) {
        let round = Round { covers, covers_frame, remaining: syncs };
        if syncs == 0 {
            self.finish(&round);
        } else {
            self.round = Some(round);
        }
    }

    /// One of them succeeded.
    pub(super) fn synced_one(&mut self, now: MonotonicNanos) {
        let mut round = self.round.take().expect("only a submitted sync completes");
        round.remaining -= 1;
        if round.remaining > 0 {
            self.round = Some(round);
            return;
        }
        self.finish(&round);
        let delay = u64::try_from(STATEMENT_DELAY.as_nanos()).expect("milliseconds");
        self.statement_due = Some(MonotonicNanos(now.0 + delay));
    }

    fn finish(&mut self, round: &Round) {
        self.record = self.record.max(round.covers);
        self.frame = self.frame.max(round.covers_frame);
    }

    /// A frame was submitted that says that everything up to `through` is durable.
    pub(super) fn stated(&mut self, through: Lsn) {
        self.stated = self.stated.max(through);
        self.statement_due = None;
    }

    /// When [`Durability::takes_statement`] may say yes.
    pub(super) fn statement_due(&self) -> Option<MonotonicNanos> {
        self.statement_due
    }

    /// Whether it is time to state what is durable and nothing says yet. Asks once for each sync.
    pub(super) fn takes_statement(&mut self, now: MonotonicNanos) -> bool {
        let is_due = self.statement_due.is_some_and(|due| now >= due);
        if is_due {
            self.statement_due = None;
        }
        is_due && self.stated < self.record
    }

    /// Nothing will be stated any more.
    pub(super) fn give_up(&mut self) {
        self.statement_due = None;
    }
}
