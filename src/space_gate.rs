//! Who may take space of a file system that is full: while a vault gives space back there, and needs some first, what guests write
//! waits, and so do new recovery points; whatever group of the process they are of.
//!
//! Else what the vault kept back for that would be taken by whoever comes first. See `docs/limits.md`.
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
}

impl Closed {
    /// Whether nobody is inside any more.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|gate| gate.inside.load(Ordering::SeqCst) == 0)
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
}
