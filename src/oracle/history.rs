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
    /// FUA: once acknowledged, it survives a power cut.
    pub durable: bool,
}

/// A FLUSH that was acknowledged: everything acknowledged before it was issued survives a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    /// When it was issued.
    pub issued: Stamp,
    /// When it was acknowledged.
    pub acknowledged: Stamp,
}

impl Operation {
    /// Whether it was acknowledged before `stamp`.
    pub fn acknowledged_before(&self, stamp: Stamp) -> bool {
        self.acknowledged.is_some_and(|acknowledged| acknowledged < stamp)
    }
}

/// Everything that was asked of a group's disks in one run.
#[derive(Clone, Debug)]
pub struct History {
    run: u64,
    disks: Vec<u64>,
    /// By issue stamp.
    operations: Vec<Operation>,
    flushes: Vec<Flush>,
    /// When each gateway process was known to be dead, in order.
    deaths: Vec<Stamp>,
}

impl History {
    /// The history of new disks with so many sectors each.
    pub fn new(run: u64, disks: Vec<u64>) -> History {
        History { run, disks, operations: Vec::new(), flushes: Vec::new(), deaths: Vec::new() }
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

    /// Adds flushes that were acknowledged.
    pub fn add_flushes(&mut self, flushes: impl IntoIterator<Item = Flush>) {
        self.flushes.extend(flushes);
    }

    /// Everything acknowledged before this had been flushed by `stamp`, if that was acknowledged before it too.
    pub fn flushed_by(&self, stamp: Stamp) -> Stamp {
        let flushes = self.flushes.iter().filter(|flush| flush.acknowledged < stamp);
        flushes.map(|flush| flush.issued).max().unwrap_or(Stamp::START)
    }

    /// The same history, in which only that counts as acknowledged which had been promised by `stamp` to survive a
    /// power cut: what was flushed, and what asked for it by itself. What else may be there is left open.
    ///
    /// It says what a power cut may not take away, but not that what is left is a prefix: that is the whole history's.
    pub fn durable_by(&self, stamp: Stamp) -> History {
        let flushed = self.flushed_by(stamp);
        let keep = |operation: &Operation| {
            let by_itself = operation.durable && operation.acknowledged_before(stamp);
            let survives = operation.acknowledged_before(flushed) || by_itself;
            let acknowledged = operation.acknowledged.filter(|_| survives);
            Operation { acknowledged, ..*operation }
        };
        let operations = self.operations.iter().map(keep).collect();
        History {
            run: self.run,
            disks: self.disks.clone(),
            operations,
            flushes: Vec::new(),
            deaths: self.deaths.clone(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(issued: u64, acknowledged: u64, durable: bool) -> Operation {
        let range = SectorRange::new(issued, issued + 1);
        let acknowledged = Some(Stamp(acknowledged));
        Operation { issued: Stamp(issued), acknowledged, disk: 0, range, effect: Effect::Write, durable }
    }

    #[test]
    fn a_power_cut_may_take_what_was_neither_flushed_nor_fua() {
        let mut history = History::new(1, vec![64]);
        // Acknowledged before the flush was issued; after that; FUA, before and after the cut.
        history.add([
            operation(1, 2, false),
            operation(3, 5, false),
            operation(6, 8, true),
            operation(9, 20, true),
        ]);
        history.add_flushes([Flush { issued: Stamp(4), acknowledged: Stamp(10) }]);
        let survivors = |stamp| -> Vec<u64> {
            let durable = history.durable_by(Stamp(stamp));
            let kept = durable.operations().iter().filter(|operation| operation.acknowledged.is_some());
            kept.map(|operation| operation.issued.0).collect()
        };
        assert!(survivors(7).is_empty(), "nothing was promised yet");
        assert_eq!(survivors(10), [6], "the flush was not acknowledged before that");
        assert_eq!(survivors(15), [1, 6]);
        assert_eq!(survivors(21), [1, 6, 9]);
        assert_eq!([history.flushed_by(Stamp(10)), history.flushed_by(Stamp(11))], [Stamp::START, Stamp(4)]);
    }
}
