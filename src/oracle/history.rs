//! What was asked of the disks and what was answered, in stamps of one counter.
//!
//! An operation that was never acknowledged may have happened or not; if it did, then before the gateway process that
//! it was sent to had died. [`History::settled`] says by which stamp an operation had its effect, if it had one.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::units::SectorRange;

/// A moment of a run; no two are the same. A write's issue stamp is its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u64);

impl Stamp {
    /// Before everything.
    pub const START: Stamp = Stamp(0);
    /// After everything.
    pub const END: Stamp = Stamp(u64::MAX);
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Where all stamps of a run come from.
#[derive(Debug, Default)]
pub struct Clock(AtomicU64);

impl Clock {
    /// The next moment. The first is 1, so that 0 names no write.
    pub fn stamp(&self) -> Stamp {
        Stamp(self.0.fetch_add(1, Ordering::SeqCst) + 1)
    }
}

/// What an operation leaves in its sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Sectors that name it.
    Write,
    /// Zeros (TRIM, WRITE_ZEROES).
    Zero,
}

/// One request that changes a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// When it was issued: its sequence.
    pub issued: Stamp,
    /// When it was acknowledged, if it was.
    pub acknowledged: Option<Stamp>,
    /// The disk's index.
    pub disk: usize,
    /// Which sectors.
    pub range: SectorRange,
    /// What it leaves there.
    pub effect: Effect,
}

impl Operation {
    /// Whether it was acknowledged before `stamp`.
    pub fn acknowledged_before(&self, stamp: Stamp) -> bool {
        self.acknowledged.is_some_and(|acknowledged| acknowledged < stamp)
    }
}

/// Everything that was asked of a group's disks in one run.
#[derive(Debug)]
pub struct History {
    run: u64,
    disks: Vec<u64>,
    /// By issue stamp.
    operations: Vec<Operation>,
    /// When each gateway process was known to be dead, in order.
    deaths: Vec<Stamp>,
}

impl History {
    /// The history of new disks with so many sectors each.
    pub fn new(run: u64, disks: Vec<u64>) -> History {
        History { run, disks, operations: Vec::new(), deaths: Vec::new() }
    }

    /// Which run it is; part of every sector's content.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// Sectors of each disk.
    pub fn disks(&self) -> &[u64] {
        &self.disks
    }

    /// Every operation, by issue stamp.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Adds what connections have logged.
    pub fn add(&mut self, operations: impl IntoIterator<Item = Operation>) {
        self.operations.extend(operations);
        self.operations.sort_unstable_by_key(|operation| operation.issued);
    }

    /// Notes that at `stamp` the gateway process was dead and no other had been started.
    pub fn add_death(&mut self, stamp: Stamp) {
        assert!(self.deaths.last().is_none_or(|last| *last < stamp), "deaths are told in order");
        self.deaths.push(stamp);
    }

    /// The operation issued at `sequence`, by index.
    pub fn find(&self, sequence: Stamp) -> Option<usize> {
        self.operations.binary_search_by_key(&sequence, |operation| operation.issued).ok()
    }

    /// By when an operation had happened, if it ever did: its acknowledgement, or the death of the process that it
    /// was sent to.
    pub fn settled(&self, operation: &Operation) -> Stamp {
        let death = self.deaths.get(self.deaths.partition_point(|death| *death < operation.issued));
        let acknowledged = operation.acknowledged.unwrap_or(Stamp::END);
        death.map_or(acknowledged, |death| acknowledged.min(*death))
    }
}
