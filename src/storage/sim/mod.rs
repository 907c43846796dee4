//! The simulated disk: a seeded model of what real disks and file systems do, at their worst, behind the same seam.
//!
//! A [`SimDisk`] is the machine's disk, seen from outside; a [`SimStorage`] is one process's view of it. Nothing
//! happens but in [`SimDisk::step`], which completes one operation in flight, picked at random; so a simulator can
//! interleave the disk, the clock ([`SimEnvironment`]), the code under test and deaths as its seed says:
//!
//! ```text
//! loop { match random { disk.step() | environment.advance(..) | runtime.step(..) | a client acts | a crash } }
//! ```
//!
//! - Operations complete in random order once they were started; parts of a write may land before it completes.
//! - [`SimDisk::power_cut`] keeps, drops or scrambles any subset of the sectors that no sync covers, and keeps or
//!   undoes any subset of the names that no directory sync covers. A sync covers what had completed when it was
//!   *submitted*, of its file only.
//! - [`SimDisk::kill_process`] keeps what completed; what was in flight lands wholly, partly, late, or not. The lock
//!   of a file is held until its late writes have landed.
//! - What a power cut drops shows what was there before, or garbage where nothing was; zeros only where somebody
//!   asked for zeros, by lengthening or zeroing.
//! - After a failed sync, what it covers stays in sight but may never reach the disk.
//!
//! It is not a model of time: how long an operation takes is how many steps it waits.

mod content;
mod crash;
mod environment;
mod execute;
mod fault;
mod file;
mod names;
mod process;
#[cfg(test)]
mod tests;
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

pub use crate::random::Random;
pub use environment::SimEnvironment;
pub use fault::{FaultKind, FaultRates, Matcher, OpKind};
pub use file::Severity;
pub use process::{ProcessId, SimStorage};

use content::Content;
use file::SimFile;
use names::{FileId, Names, Node};
use world::{World, visible_file, visible_files};

/// What a [`File`](super::File) holds of a simulated disk.
#[derive(Debug)]
pub(super) struct OpenDescription {
    id: u64,
    /// The disk looks whether anybody still has this.
    _alive: Arc<()>,
}

/// Gets a line for everything that happens on a disk. It must not call the disk.
pub type Trace = Box<dyn FnMut(&str)>;

/// A simulated machine's disk, seen from outside. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Rc<RefCell<World>>);

/// Where a bit was flipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rot {
    /// The file.
    pub path: PathBuf,
    /// The byte.
    pub offset: u64,
    /// The bit, 0 to 7.
    pub bit: u8,
}

/// A copy of all files and directories of a disk, as somebody may keep of a data directory.
#[derive(Clone, Debug)]
pub struct DiskImage {
    files: BTreeMap<PathBuf, Option<Content>>,
}

impl SimDisk {
    /// An empty disk; `seed` decides everything that is left to chance.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk(Rc::new(RefCell::new(World::new(seed))))
    }

    /// Completes one operation, or lands a part of one; `false` if none can complete, because none was started or all
    /// wait for locks.
    #[allow(clippy::must_use_candidate)]
    pub fn step(&self) -> bool {
        self.0.borrow_mut().step()
    }

    /// Completes operations until none can.
    pub fn run(&self) {
        while self.step() {}
    }

    /// Kills a process that lives (kill -9). Its runtime is to be dropped, and does nothing more to this disk.
    pub fn kill_process(&self, process: ProcessId) {
        self.0.borrow_mut().kill(process);
    }

    /// Cuts the power: every process dies.
    pub fn power_cut(&self) {
        self.0.borrow_mut().power_cut(None);
    }

    /// Cuts the power, and says how much survives of what no sync covers; which parts, is left to chance.
    pub fn power_cut_as(&self, severity: Severity) {
        self.0.borrow_mut().power_cut(Some(severity));
    }

    /// From now on `seed` decides what is left to chance, whatever was drawn before.
    pub fn reseed(&self, seed: u64) {
        self.0.borrow_mut().random = Random::new(seed);
    }

    /// Reads of this file, and of no other, do not complete until another one is named, or none.
    pub fn hold_reads(&self, path: Option<&Path>) {
        self.0.borrow_mut().held_reads = path.map(Path::to_owned);
    }

    /// The next operation that `matcher` matches fails. Plans are used up one by one, in the order of their making.
    pub fn fail_next(&self, matcher: Matcher, kind: FaultKind) {
        self.0.borrow_mut().faults.plan(matcher, kind);
    }

    /// How often operations fail by chance from now on.
    pub fn set_fault_rates(&self, rates: FaultRates) {
        self.0.borrow_mut().faults.rates = rates;
    }

    /// Every operation that `matcher` matches fails, until [`SimDisk::mend`].
    pub fn fail_always(&self, matcher: Matcher, kind: FaultKind) {
        self.0.borrow_mut().faults.break_for_good(matcher, kind);
    }

    /// Ends the faults that last, those of spoiled pages too.
    pub fn mend(&self) {
        let world = &mut *self.0.borrow_mut();
        world.faults.mend();
        world.files.values_mut().for_each(SimFile::heal);
    }

    /// Reads of these bytes of a file, by whole pages, fail with EIO from now on: until they are written anew, or
    /// [`SimDisk::mend`]. `false` if there is no such file.
    #[allow(clippy::must_use_candidate)]
    pub fn spoil(&self, path: &Path, range: std::ops::Range<u64>) -> bool {
        let world = &mut *self.0.borrow_mut();
        let Some(Node::File(file)) = world.names.get(path) else { return false };
        world.record(|| format!("bytes {range:?} of {} cannot be read any more", path.display()));
        world.files.get_mut(&file).map(|file| file.spoil(range)).is_some()
    }

    /// Faults that last.
    pub fn lasting_faults(&self) -> usize {
        self.0.borrow().faults.lasting()
    }

    /// Ends planned and random faults; those that last stay.
    pub fn clear_faults(&self) {
        self.0.borrow_mut().faults.clear();
    }

    /// Planned faults that have not happened yet.
    pub fn planned_faults(&self) -> usize {
        self.0.borrow().faults.pending()
    }

    /// How many bytes fit, in whole pages; `None` for as many as come. What is there already stays.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.borrow_mut().capacity = bytes;
    }

    /// Flips a bit of a stored byte, for good; `false` if the file or the byte is not stored.
    #[allow(clippy::must_use_candidate)]
    pub fn rot(&self, path: &Path, offset: u64, bit: u8) -> bool {
        let world = &mut *self.0.borrow_mut();
        let at = world.next_moment();
        let Some(Node::File(file)) = world.names.get(path) else { return false };
        let rotten = world.files.get_mut(&file).is_some_and(|file| file.rot(at, offset, bit));
        if rotten {
            world.record(|| format!("bit {bit} of byte {offset} of {} rots", path.display()));
        }
        rotten
    }

    /// Has stored bytes of a file be others, for good: a program of before wrote them.
    pub fn replace(&self, path: &Path, offset: u64, bytes: &[u8]) {
        let before = self.read_file(path).unwrap_or_default();
        let before = before.get(crate::units::to_usize(offset)..).unwrap_or_default();
        let world = &mut *self.0.borrow_mut();
        let at = world.next_moment();
        let Some(Node::File(file)) = world.names.get(path) else { return };
        let Some(file) = world.files.get_mut(&file) else { return };
        for (index, (old, new)) in (offset..).zip(before.iter().zip(bytes)) {
            for bit in (0..8).filter(|bit| (old ^ new) >> bit & 1 > 0) {
                file.rot(at, index, bit);
            }
        }
        world.record(|| format!("{} bytes at {offset} of {} are others", bytes.len(), path.display()));
    }

    /// Flips a random stored bit of a random one of the files that `select` takes; `None` if they store nothing. The
    /// seed is one of its own, so that the place depends only on it and on what is stored.
    pub fn rot_somewhere(&self, seed: u64, select: impl Fn(&Path) -> bool) -> Option<Rot> {
        let mut random = Random::new(seed);
        let paths: Vec<PathBuf> = self.files().into_iter().filter(|path| select(path)).collect();
        let ranges: Vec<(PathBuf, std::ops::Range<u64>)> = {
            let world = self.0.borrow();
            let stored = paths.into_iter().flat_map(|path| {
                let content = visible_file(&world, &path).map(|file| file.visible().data_ranges(0..u64::MAX));
                content.into_iter().flatten().map(move |range| (path.clone(), range))
            });
            stored.collect()
        };
        let total: u64 = ranges.iter().map(|(_, range)| range.end - range.start).sum();
        let mut left = (total > 0).then(|| random.below(total))?;
        let bit = u8::try_from(random.below(8)).expect("below 8");
        for (path, range) in ranges {
            let len = range.end - range.start;
            if left < len {
                let offset = range.start + left;
                return self.rot(&path, offset, bit).then_some(Rot { path, offset, bit });
            }
            left -= len;
        }
        None
    }

    /// A file's bytes as processes see them; `None` if there is no such file.
    pub fn read_file(&self, path: &Path) -> Option<Vec<u8>> {
        let world = self.0.borrow();
        visible_file(&world, path).map(|file| bytes_of(file.visible()))
    }

    /// The bytes of a visible file that survive any power cut, as far as nothing in flight or unsynced overwrites them.
    pub fn durable_file(&self, path: &Path) -> Option<Vec<u8>> {
        let world = self.0.borrow();
        visible_file(&world, path).map(|file| bytes_of(file.durable()))
    }

    /// A file's length as processes see it.
    pub fn file_length(&self, path: &Path) -> Option<u64> {
        let world = self.0.borrow();
        visible_file(&world, path).map(|file| file.visible().length())
    }

    /// All files that processes see, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        visible_files(&self.0.borrow())
    }

    /// Whether a name survives any power cut.
    pub fn is_durable(&self, path: &Path) -> bool {
        let world = self.0.borrow();
        world.names.get(path).is_some_and(|node| world.names.durable().get(path) == Some(&node))
    }

    /// Bytes of space that files take up, in whole pages; removed ones as well while they are open.
    pub fn allocated_bytes(&self) -> u64 {
        self.0.borrow().allocated_bytes()
    }

    /// Operations accepted and not completed, also those of dead processes that have yet to land.
    pub fn in_flight(&self) -> usize {
        self.0.borrow().flights.len()
    }

    /// Completed operations of a kind.
    pub fn count(&self, kind: OpKind) -> u64 {
        self.0.borrow().counts[kind as usize]
    }

    /// Writes of dead processes that landed once they were dead.
    pub fn late_writes(&self) -> u64 {
        self.0.borrow().late_writes
    }

    /// How many syncs of files whose path has `part` in it failed.
    pub fn failed_syncs(&self, part: &str) -> usize {
        let world = self.0.borrow();
        world.failed_syncs.iter().filter(|path| path.to_string_lossy().contains(part)).count()
    }

    /// A hash of everything that happened and is stored: equal runs have equal fingerprints.
    pub fn fingerprint(&self) -> u64 {
        self.0.borrow().fingerprint()
    }

    /// Has every event told to `trace`, or to nobody.
    pub fn set_trace(&self, trace: Option<Trace>) {
        self.0.borrow_mut().trace = trace;
    }

    /// Copies everything that processes see.
    pub fn image(&self) -> DiskImage {
        let world = self.0.borrow();
        let content = |node: &Node| match node {
            Node::File(file) => Some(world.files[file].visible().clone()),
            Node::Directory => None,
        };
        let files = world.names.visible().iter().map(|(path, node)| (path.clone(), content(node)));
        DiskImage { files: files.collect() }
    }

    /// Replaces everything by a copy, durably: a restored backup.
    ///
    /// # Panics
    /// If a process lives, or a dead one's write has yet to land.
    pub fn restore(&self, image: &DiskImage) {
        let world = &mut *self.0.borrow_mut();
        assert!(world.processes.is_empty() && world.flights.is_empty(), "a disk in use can't be replaced");
        world.descriptions.clear();
        world.files.clear();
        let mut tree = BTreeMap::new();
        for (path, content) in &image.files {
            let node = match content {
                None => Node::Directory,
                Some(content) => {
                    let file = FileId(world.new_id());
                    world.files.insert(file, SimFile::at_rest(content.clone()));
                    Node::File(file)
                }
            };
            tree.insert(path.clone(), node);
        }
        world.names = Names::at_rest(tree);
        world.record(|| "the disk is replaced by a copy".to_owned());
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDisk({} in flight)", self.in_flight())
    }
}

fn bytes_of(content: &Content) -> Vec<u8> {
    let mut bytes = vec![0; crate::units::to_usize(content.length())];
    content.read(0, &mut bytes);
    bytes
}
