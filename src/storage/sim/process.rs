//! One process's view of a simulated disk: the [`Storage`] that code under test gets.

use std::cell::RefCell;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use super::SimDisk;
use super::world::World;
use crate::storage::{Backend, Completion, Op, Storage, Token};

/// Names a process on a disk; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(pub(super) u64);

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

/// What the disk knows of a living process.
#[derive(Debug, Default)]
pub(super) struct Process {
    /// What has completed and was not reaped.
    pub(super) completions: Vec<Completion>,
}

/// One process's storage. Dropping it is a process that stops by itself: what it had started completes, and its
/// files are closed. [`SimDisk::kill_process`] is the other way.
pub struct SimStorage {
    world: Rc<RefCell<World>>,
    process: ProcessId,
}

impl SimStorage {
    /// The storage of a new process.
    pub fn new(disk: &SimDisk) -> SimStorage {
        let world = Rc::clone(&disk.0);
        let process = world.borrow_mut().spawn();
        SimStorage { world, process }
    }

    /// The process that this is the storage of.
    pub fn process(&self) -> ProcessId {
        self.process
    }
}

impl Storage for SimStorage {
    fn backend(&self) -> Backend {
        Backend::Simulated
    }

    /// A dead process's operations go nowhere.
    fn submit(&self, token: Token, op: Op) {
        self.world.borrow_mut().submit(self.process, token, op);
    }

    fn start(&self) {
        self.world.borrow_mut().start(self.process);
    }

    fn reap(&self, completions: &mut Vec<Completion>) {
        self.world.borrow_mut().reap(self.process, completions);
    }

    /// Runs the disk until something of this process has completed: for tools and tests that have no simulator.
    ///
    /// # Panics
    /// If it can never complete, because it waits for a lock that nothing in flight will release.
    fn wait(&self) {
        self.start();
        let mut world = self.world.borrow_mut();
        while world.is_waiting(self.process) {
            assert!(world.step(), "{} waits for a lock that nobody will release", self.process);
        }
    }

    /// There is no descriptor: a simulator steps the disk instead of waiting.
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for SimStorage {
    fn drop(&mut self) {
        // While a simulator unwinds from a panic inside the disk there is nothing to tidy.
        if let Ok(mut world) = self.world.try_borrow_mut() {
            world.exit(self.process);
        }
    }
}

impl fmt::Debug for SimStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimStorage({})", self.process)
    }
}
