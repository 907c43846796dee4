//! The state of a simulated disk, and its queue: what is in flight, what can complete, what is told of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Weak;

use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3Default;

use super::Trace;
use super::fault::{FaultKind, FaultPlan, OpKind};
use super::file::{Moment, SimFile};
use super::names::{FileId, Names, Node};
use super::process::{Process, ProcessId};
use crate::error::Error;
use crate::random::Random;
use crate::storage::syscalls::failed;
use crate::storage::{Completion, File, Handle, Lock, Op, Outcome, Slice, Space, Token};
use crate::units::{SECTOR_BYTES, to_usize};

/// An accepted operation.
pub(super) struct Flight {
    pub(super) process: ProcessId,
    pub(super) token: Token,
    pub(super) op: Op,
    pub(super) submitted: Moment,
    pub(super) started: bool,
    /// Of a killed process, and still on its way to the disk.
    pub(super) late: bool,
}

/// An open file description.
pub(super) struct Description {
    pub(super) file: FileId,
    pub(super) writable: bool,
    pub(super) locked: bool,
    pub(super) process: ProcessId,
    /// Alive while the process, or one of its operations, holds the file.
    pub(super) handle: Weak<()>,
}

/// Everything that a disk and its operating system know.
pub(super) struct World {
    pub(super) random: Random,
    moment: Moment,
    next_id: u64,
    pub(super) files: BTreeMap<FileId, SimFile>,
    pub(super) names: Names,
    pub(super) descriptions: BTreeMap<u64, Description>,
    pub(super) flights: Vec<Flight>,
    pub(super) processes: BTreeMap<ProcessId, Process>,
    pub(super) faults: FaultPlan,
    pub(super) capacity: Option<u64>,
    /// The file whose reads do not complete.
    pub(super) held_reads: Option<PathBuf>,
    pub(super) counts: [u64; OpKind::COUNT],
    /// Writes of dead processes that landed once they were dead.
    pub(super) late_writes: u64,
    /// The file of every sync that failed.
    pub(super) failed_syncs: Vec<PathBuf>,
    /// Running hash of all that happened.
    history: Xxh3Default,
    pub(super) trace: Option<Trace>,
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        World {
            random: Random::new(seed),
            moment: Moment::default(),
            next_id: 0,
            files: BTreeMap::new(),
            names: Names::new(),
            descriptions: BTreeMap::new(),
            flights: Vec::new(),
            processes: BTreeMap::new(),
            faults: FaultPlan::default(),
            capacity: None,
            held_reads: None,
            counts: [0; OpKind::COUNT],
            late_writes: 0,
            failed_syncs: Vec::new(),
            history: Xxh3Default::new(),
            trace: None,
        }
    }

    pub(super) fn next_moment(&mut self) -> Moment {
        self.moment.0 += 1;
        self.moment
    }

    pub(super) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn spawn(&mut self) -> ProcessId {
        let process = ProcessId(self.new_id());
        self.processes.insert(process, Process::default());
        process
    }

    pub(super) fn submit(&mut self, process: ProcessId, token: Token, op: Op) {
        if self.processes.contains_key(&process) {
            let submitted = self.next_moment();
            self.flights.push(Flight { process, token, op, submitted, started: false, late: false });
        }
    }

    pub(super) fn start(&mut self, process: ProcessId) {
        for flight in self.flights.iter_mut().filter(|flight| flight.process == process) {
            flight.started = true;
        }
    }

    pub(super) fn reap(&mut self, process: ProcessId, completions: &mut Vec<Completion>) {
        if let Some(process) = self.processes.get_mut(&process) {
            completions.append(&mut process.completions);
        }
    }

    /// Whether a process has something in flight and nothing to reap.
    pub(super) fn is_waiting(&self, id: ProcessId) -> bool {
        let Some(process) = self.processes.get(&id) else { return false };
        process.completions.is_empty() && self.flights.iter().any(|flight| flight.process == id)
    }

    /// A process stops by itself: what it started completes first, and nobody hears of it.
    pub(super) fn exit(&mut self, process: ProcessId) {
        let mut ending: Vec<Flight> =
            self.flights.extract_if(.., |flight| flight.process == process && !flight.late).collect();
        let mut random = self.random.split();
        random.shuffle(&mut ending);
        for flight in ending {
            if self.can_complete(&flight) {
                self.complete(flight);
            }
        }
        self.processes.remove(&process);
        self.forget_closed();
    }

    /// Completes one operation, or lands a part of one; `false` if nothing can complete.
    pub(super) fn step(&mut self) -> bool {
        let ready: Vec<usize> =
            (0..self.flights.len()).filter(|&index| self.can_complete(&self.flights[index])).collect();
        if ready.is_empty() {
            return false;
        }
        let index = *self.random.choose(&ready);
        if self.random.chance(1, 8) && self.land_part(index) {
            return true;
        }
        let flight = self.flights.swap_remove(index);
        self.complete(flight);
        true
    }

    fn can_complete(&self, flight: &Flight) -> bool {
        let locked = match &flight.op {
            Op::Open { path, options } if options.lock == Lock::Wait => match self.names.get(path) {
                Some(Node::File(file)) => self.is_locked(file),
                _ => false,
            },
            _ => false,
        };
        let held = match &flight.op {
            Op::Read { file, .. } => self.held_reads.as_deref() == Some(file.path()),
            _ => false,
        };
        flight.started && !locked && !held
    }

    /// Whether a living process, or a dead one's operation that has yet to land, holds a file's lock.
    pub(super) fn is_locked(&self, file: FileId) -> bool {
        self.descriptions.iter().any(|(&id, held)| held.file == file && held.locked && self.is_open(id, held))
    }

    fn is_open(&self, id: u64, description: &Description) -> bool {
        if self.processes.contains_key(&description.process) {
            return description.handle.strong_count() > 0;
        }
        // A dead process's files are closed, whatever its simulator still holds; operations in flight keep theirs.
        self.flights.iter().any(|flight| file_of(&flight.op).is_some_and(|file| description_id(file) == id))
    }

    /// Some sectors of a write land before it completes.
    fn land_part(&mut self, index: usize) -> bool {
        let Op::Write { file, offset, data } = &self.flights[index].op else { return false };
        let (file, offset, data) = (file.clone(), *offset, data.clone());
        self.land_part_of(&file, offset, &data);
        self.record(|| format!("a part of a write to {} at {offset} lands", file.path().display()));
        true
    }

    pub(super) fn land_part_of(&mut self, file: &File, offset: u64, data: &Slice) {
        if self.check_write(file, offset, data).is_err() {
            return;
        }
        let at = self.next_moment();
        let mut random = self.random.split();
        self.file_mut(file).land_part(at, offset, data, &mut random);
    }

    fn complete(&mut self, flight: Flight) {
        let kind = OpKind::of(&flight.op);
        self.counts[kind as usize] += 1;
        self.late_writes += u64::from(flight.late);
        let summary = summary(&flight.op);
        let alive = self.processes.contains_key(&flight.process);
        let fault = alive
            .then(|| self.faults.draw(kind, path_of(&flight.op), flight.process, &mut self.random))
            .flatten();
        let late_part = flight.late && self.random.chance(1, 2);
        let frees = matches!(kind, OpKind::Remove | OpKind::SyncDirectory);
        let (process, token) = (flight.process, flight.token);
        let result = match (fault, &flight.op) {
            (Some(fault), _) => Err(self.fail(flight, fault)),
            (None, Op::Write { file, offset, data }) if late_part => {
                self.land_part_of(file, *offset, data);
                Ok(Outcome::Done)
            }
            (None, _) => self.execute(process, flight.submitted, flight.op),
        };
        self.record(|| match &result {
            Ok(_) => format!("{process} {summary}"),
            Err(error) => format!("{process} {summary}: {error}"),
        });
        if let Some(process) = self.processes.get_mut(&process) {
            process.completions.push(Completion { token, result });
        }
        if frees {
            self.forget_unreachable();
        }
        self.forget_closed();
    }

    /// An operation meets a fault.
    fn fail(&mut self, flight: Flight, fault: FaultKind) -> Error {
        let errno = if fault == FaultKind::NoSpace { Errno::NOSPC } else { Errno::IO };
        let error = error_of(&flight.op, errno);
        match (fault, &flight.op) {
            (FaultKind::NoSpace, _) => {}
            (FaultKind::Short, Op::Write { file, offset, data }) => {
                let whole = data.len() / to_usize(SECTOR_BYTES);
                let landed = self.random.index(whole + 1) * to_usize(SECTOR_BYTES);
                let (file, data) = (file.clone(), data.slice(0..landed));
                // An error here is the error of the whole.
                drop(self.write(&file, *offset, data));
            }
            (_, Op::Write { file, offset, data }) => self.land_part_of(file, *offset, data),
            (_, Op::Sync { file }) => {
                let mut random = self.random.split();
                self.file_mut(file).fail_sync(flight.submitted, &mut random);
                self.failed_syncs.push(file.path().to_owned());
            }
            // Nothing of a directory became durable for sure.
            (_, Op::SyncDirectory { .. }) => {}
            // It may have happened all the same.
            _ if self.random.chance(1, 2) => {
                drop(self.execute(flight.process, flight.submitted, flight.op));
            }
            _ => {}
        }
        error
    }

    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.capacity.is_none_or(|capacity| self.allocated_bytes() + bytes <= capacity)
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.files.values().map(|file| file.visible().allocated_bytes()).sum()
    }

    /// How full the file system is; one without a limit has as much again, whatever it holds.
    pub(super) fn space(&self) -> Space {
        let allocated = self.allocated_bytes();
        let total = self.capacity.unwrap_or(allocated + (1 << 50));
        Space { free: total.saturating_sub(allocated), total, device: 0 }
    }

    /// Gives up descriptions that nobody holds, and files that nothing leads to.
    pub(super) fn forget_closed(&mut self) {
        let closed: Vec<u64> = self
            .descriptions
            .iter()
            .filter(|&(&id, description)| !self.is_open(id, description))
            .map(|(&id, _)| id)
            .collect();
        if closed.is_empty() {
            return;
        }
        self.descriptions.retain(|id, _| !closed.contains(id));
        self.forget_unreachable();
    }

    pub(super) fn forget_unreachable(&mut self) {
        let named = self.names.files().chain(self.descriptions.values().map(|held| held.file));
        let kept: std::collections::BTreeSet<FileId> = named.collect();
        self.files.retain(|file, _| kept.contains(file));
    }

    /// Adds an event to the history, and to the trace if somebody reads it.
    pub(super) fn record(&mut self, event: impl FnOnce() -> String) {
        let event = event();
        self.history.update(event.as_bytes());
        if let Some(trace) = &mut self.trace {
            trace(&event);
        }
    }

    /// A hash of all that happened and of all that is stored.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hash = self.history.clone();
        for (tree, durable) in [(self.names.visible(), false), (self.names.durable(), true)] {
            for (path, node) in tree {
                hash.update(path.as_os_str().as_encoded_bytes());
                let Node::File(file) = node else { continue };
                let Some(file) = self.files.get(file) else { continue };
                let content = if durable { file.durable() } else { file.visible() };
                hash.update(&content.length().to_le_bytes());
                content.for_each_page(|offset, bytes| {
                    hash.update(&offset.to_le_bytes());
                    hash.update(bytes);
                });
            }
        }
        hash.digest()
    }
}

/// The id of the open file description behind a file.
///
/// # Panics
/// If the file is another back end's: only our own bug mixes them.
pub(super) fn description_id(file: &File) -> u64 {
    match &file.0.handle {
        Handle::Sim(description) => description.id,
        Handle::Os(_) => panic!("{} was not opened by the simulated disk", file.path().display()),
    }
}

/// The open file that an operation works on.
pub(super) fn file_of(op: &Op) -> Option<&File> {
    match op {
        Op::Read { file, .. }
        | Op::Write { file, .. }
        | Op::Sync { file }
        | Op::Evict { file }
        | Op::Zero { file, .. }
        | Op::SetLength { file, .. }
        | Op::Length { file }
        | Op::DataRanges { file, .. } => Some(file),
        _ => None,
    }
}

fn path_of(op: &Op) -> &Path {
    match op {
        Op::Open { path, .. }
        | Op::Remove { path }
        | Op::RemoveDirectory { path }
        | Op::CreateDirectory { path }
        | Op::List { path }
        | Op::SyncDirectory { path }
        | Op::Space { path } => path,
        Op::Publish { to, .. } => to,
        other => file_of(other).expect("every other operation has a file").path(),
    }
}

fn offset_of(op: &Op) -> Option<u64> {
    match op {
        Op::Read { offset, .. } | Op::Write { offset, .. } => Some(*offset),
        Op::Zero { range, .. } => Some(range.start),
        _ => None,
    }
}

fn error_of(op: &Op, errno: Errno) -> Error {
    let context = format!("{:?}", OpKind::of(op)).to_lowercase();
    let error = failed(&context, errno).at_path(path_of(op));
    match offset_of(op) {
        Some(offset) => error.at_offset(offset),
        None => error,
    }
}

/// What an operation is, in a line of the trace.
fn summary(op: &Op) -> String {
    let mut text = format!("{:?} {}", OpKind::of(op), path_of(op).display()).to_lowercase();
    let len = match op {
        Op::Read { buffer, .. } => Some(buffer.len()),
        Op::Write { data, .. } => Some(data.len()),
        Op::Zero { range, .. } => Some(to_usize(range.end - range.start)),
        _ => None,
    };
    if let (Some(offset), Some(len)) = (offset_of(op), len) {
        // Writing to a string can't fail.
        let _ = write!(text, " {offset}+{len}");
    }
    text
}

/// A file's bytes as processes see them.
pub(super) fn visible_file<'a>(world: &'a World, path: &Path) -> Option<&'a SimFile> {
    match world.names.get(path)? {
        Node::File(file) => world.files.get(&file),
        Node::Directory => None,
    }
}

/// All names of files that processes see.
pub(super) fn visible_files(world: &World) -> Vec<PathBuf> {
    let files = world.names.visible().iter().filter(|(_, node)| matches!(node, Node::File(_)));
    files.map(|(path, _)| path.clone()).collect()
}
