//! Who may take space of a file system that is full, and who lacks it, whatever group of the process they are of.
//!
//! While a vault gives space back, and needs some first, what guests write waits, and so do new recovery points: else what the vault kept
//! back for that would be taken by whoever comes first. And a recovery point that does not fit, and for which the history of its own group
//! can give nothing, is known here to those whose history can. See `docs/limits.md`.
//!
//! Invariant: while a gate is closed nobody passes it, and who closed it can tell when all who passed before are done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};

/// The gates of all file systems, for all groups of a process.
#[derive(Debug, Default)]
pub struct SpaceGates {
    by_device: Mutex<BTreeMap<u64, Arc<SpaceGate>>>,
    unknown: Arc<SpaceGate>,
}

impl SpaceGates {
    /// That of the file system which `Space::device` names; of one that nobody has asked for its device yet, a gate that is closed while any
    /// is.
    pub fn of(&self, device: Option<u64>) -> Arc<SpaceGate> {
        match device {
            Some(device) => Arc::clone(self.by_device.lock().entry(device).or_default()),
            None => Arc::clone(&self.unknown),
        }
    }

    /// Closes that of a device for as long as what is returned lives.
    pub fn close(&self, device: Option<u64>) -> Closed {
        let gates = [self.of(device), Arc::clone(&self.unknown)];
        for gate in &gates {
            gate.closed.fetch_add(1, Ordering::SeqCst);
        }
        Closed(gates)
    }
}

/// What whoever writes what may take space passes.
#[derive(Debug, Default)]
pub struct SpaceGate {
    /// How many keep it closed.
    closed: AtomicUsize,
    /// How many passed it and are not done.
    inside: AtomicUsize,
    wants: Mutex<Wants>,
}

/// What did not fit behind a gate: how many bytes were free, by the numbers of those who wait.
#[derive(Debug, Default)]
struct Wants {
    exceeds: BTreeMap<u64, u64>,
    last: u64,
}

/// Somebody waits for more than was free, until this is dropped.
#[derive(Debug)]
pub struct Want {
    gate: Arc<SpaceGate>,
    number: u64,
}

/// Somebody passed, and is done when this is dropped.
#[derive(Debug)]
pub struct Passage(Arc<SpaceGate>);

/// Keeps a gate closed, and with it that of who does not know where it writes.
#[derive(Debug)]
pub struct Closed([Arc<SpaceGate>; 2]);

impl SpaceGate {
    /// Passes, unless it is closed: then it fails with `NoSpace`, and is to be tried again later.
    pub fn pass(self: &Arc<SpaceGate>) -> Result<Passage> {
        // Before looking, as who closes it looks for those inside after closing: one of the two sees the other.
        self.inside.fetch_add(1, Ordering::SeqCst);
        let passage = Passage(Arc::clone(self));
        if self.closed.load(Ordering::SeqCst) > 0 {
            let text = "what is left of the file system is kept for giving space back";
            return Err(Error::new(ErrorKind::NoSpace, text));
        }
        Ok(passage)
    }

    /// Lets all others know that more than so many bytes are wanted.
    pub fn want(self: &Arc<SpaceGate>, exceeds: u64) -> Want {
        let mut wants = self.wants.lock();
        wants.last += 1;
        let number = wants.last;
        wants.exceeds.insert(number, exceeds);
        Want { gate: Arc::clone(self), number }
    }

    /// What any other than `own` wants more than: the most of it.
    pub fn wanted_by_others(&self, own: Option<&Want>) -> Option<u64> {
        let is_others = |number: u64| own.is_none_or(|own| own.number != number);
        self.wants
            .lock()
            .exceeds
            .iter()
            .filter(|&(&number, _)| is_others(number))
            .map(|(_, &bytes)| bytes)
            .max()
    }
}

impl Closed {
    /// Whether nobody is inside any more.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|gate| gate.inside.load(Ordering::SeqCst) == 0)
    }
}

impl Drop for Want {
    fn drop(&mut self) {
        self.gate.wants.lock().exceeds.remove(&self.number);
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        for gate in &self.0 {
            gate.closed.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_closes_sees_who_is_inside_and_nobody_passes_until_all_have_opened() {
        let gates = SpaceGates::default();
        let (gate, other, unknown) = (gates.of(Some(1)), gates.of(Some(2)), gates.of(None));
        let inside = [gate.pass().expect("open"), unknown.pass().expect("open")];
        let closed = gates.close(Some(1));
        assert_eq!(gate.pass().expect_err("closed").kind(), ErrorKind::NoSpace);
        for passage in inside {
            assert!(!closed.is_empty());
            drop(passage);
        }
        assert!(closed.is_empty(), "who was refused is not inside");
        assert!(other.pass().is_ok() && unknown.pass().is_err(), "which may be the same file system");
        let again = gates.close(Some(1));
        drop(closed);
        assert!(gate.pass().is_err());
        drop(again);
        assert!(gate.pass().is_ok() && unknown.pass().is_ok());
    }

    #[test]
    fn what_is_wanted_is_the_most_that_another_lacks() {
        let gate = SpaceGates::default().of(Some(1));
        assert_eq!(gate.wanted_by_others(None), None);
        let (own, other) = (gate.want(100), gate.want(70));
        assert_eq!(gate.wanted_by_others(None), Some(100));
        assert_eq!(
            (gate.wanted_by_others(Some(&own)), gate.wanted_by_others(Some(&other))),
            (Some(70), Some(100))
        );
        drop(own);
        assert_eq!((gate.wanted_by_others(None), gate.wanted_by_others(Some(&other))), (Some(70), None));
    }
}
