//! Journals made by the real writer, for those who read journals from outside.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use afterimage::env::{Environment, OsEnvironment};
use afterimage::error::Result;
use afterimage::format::marker::{Consistency, DiskEntry, Marker};
use afterimage::journal::keys::JournalKeys;
use afterimage::journal::open::{self, JournalPlan, OpenedJournal};
use afterimage::journal::recover::Known;
use afterimage::journal::runs::Needs;
use afterimage::journal::scan::Owner;
use afterimage::journal::segments::{Segments, create};
use afterimage::journal::writer::{Entry, Identity, Writer};
use afterimage::planted::Planted;
use afterimage::runtime::Runtime;
use afterimage::seal::GroupKeys;
use afterimage::storage::blocking::Blocking;
use afterimage::units::{
    DiskId, DiskSlot, GroupId, GroupNanos, IncarnationId, Lsn, MonotonicNanos, PointId, SectorCount,
    SectorRange, TimelineId, WallNanos,
};

pub const GROUP: GroupId = GroupId(7);
pub const SEGMENT_BYTES: u64 = 256 << 10;

/// An open journal with its writer.
pub struct Journal {
    runtime: Rc<Runtime>,
    segments: Segments,
    pub writer: Writer,
}

/// Time stands still, and ids follow from a seed: two runs make the same bytes.
struct Repeatable(Cell<u128>);

impl Environment for Repeatable {
    fn monotonic(&self) -> MonotonicNanos {
        MonotonicNanos(0)
    }

    fn wall(&self) -> WallNanos {
        WallNanos(1_000_000_000)
    }

    fn random_u128(&self) -> u128 {
        self.0.update(|last| last + 1);
        self.0.get()
    }
}

fn runtime(environment: Rc<dyn Environment>) -> Rc<Runtime> {
    let storage = Blocking::new(2).expect("threads");
    Runtime::new(Box::new(storage), environment)
}

fn plan(directory: &Path) -> JournalPlan {
    JournalPlan {
        directory: directory.to_owned(),
        segment_bytes: SEGMENT_BYTES,
        journal_bytes: 32 * SEGMENT_BYTES,
    }
}

fn open_in(runtime: &Rc<Runtime>, directory: &Path, known: Known) -> Result<OpenedJournal> {
    let (opening, plan) = (Rc::clone(runtime), plan(directory));
    let keys = JournalKeys::new(GroupKeys::NONE);
    runtime.block_on(async move {
        open::open(opening, &plan, known, &Needs::default(), &keys, Planted::NONE).await
    })
}

/// What the gateway's opening says to a journal, without keeping it open.
pub fn opening_accepts(directory: &Path, group: GroupId, floor: Lsn) -> Result<usize> {
    let runtime = runtime(Rc::new(OsEnvironment::new()));
    let known = Known { floor, ..Known::of(Owner { group, timeline: TimelineId(1) }) };
    open_in(&runtime, directory, known).map(|opened| opened.accepted.len())
}

impl Journal {
    /// Opens, or begins, the journal in a directory; its opening frame is durable.
    pub fn open(directory: &Path, group: GroupId) -> Journal {
        Journal::open_in(directory, group, Rc::new(OsEnvironment::new()))
    }

    /// Like [`Journal::open`], with ids that follow from `seed`.
    pub fn open_seeded(directory: &Path, group: GroupId, seed: u128) -> Journal {
        Journal::open_in(directory, group, Rc::new(Repeatable(Cell::new(seed))))
    }

    fn open_in(directory: &Path, group: GroupId, environment: Rc<dyn Environment>) -> Journal {
        fs::create_dir_all(directory).expect("a directory");
        let runtime = runtime(environment);
        let known = Known::of(Owner { group, timeline: TimelineId(1) });
        let opened = open_in(&runtime, directory, known).expect("opens");
        let incarnation = IncarnationId(runtime.random_u128());
        let identity = Identity { group, timeline: TimelineId(1), incarnation };
        let owner = runtime.new_owner();
        let mut writer =
            Writer::new(Rc::clone(&runtime), owner, identity, opened.position, None, Planted::NONE);
        writer.enqueue_control(Entry::Opening(opened.opening), None);
        let mut journal = Journal { runtime, segments: opened.segments, writer };
        journal.supply();
        journal.settle();
        journal.sync();
        journal
    }

    fn step(&mut self) {
        let mut events = Vec::new();
        self.runtime.step(&mut events);
        for event in events {
            self.writer.handle(event.tag.operation, event.result);
        }
        self.writer.advance(&mut self.segments);
        self.runtime.storage().start();
        self.writer.take_visible();
        self.writer.take_written();
    }

    /// Makes segments ready, while nothing is in flight whose completion this would swallow.
    fn supply(&mut self) {
        while let Some((index, path, bytes)) = self.segments.begin_creation() {
            let creation = create(Rc::clone(&self.runtime), index, path, bytes);
            let created = self.runtime.block_on(creation).expect("creates");
            self.segments.created(created);
        }
    }

    fn settle(&mut self) {
        self.step();
        while !self.writer.is_idle() {
            self.runtime.storage().wait();
            self.step();
        }
        self.supply();
    }

    /// Writes `sectors` of `byte`; on disk, but not synced, when this returns.
    pub fn write(&mut self, start: u64, byte: u8, sectors: usize) {
        let range = SectorRange::new(start, start + sectors as u64);
        let payload = vec![byte; sectors * 512].into();
        self.writer.enqueue(Entry::Write { disk: DiskSlot(0), range, payload }, None);
        self.settle();
    }

    /// Writes several ranges, given as start and sectors, in one frame.
    pub fn write_together(&mut self, ranges: &[(u64, usize)]) {
        for &(start, sectors) in ranges {
            let range = SectorRange::new(start, start + sectors as u64);
            let payload = vec![5; sectors * 512].into();
            self.writer.enqueue(Entry::Write { disk: DiskSlot(0), range, payload }, None);
        }
        self.settle();
    }

    /// Writes zeros.
    pub fn zero(&mut self, start: u64, end: u64) {
        let range = SectorRange::new(start, end);
        self.writer.enqueue(Entry::Zero { disk: DiskSlot(0), range, allocated: false }, None);
        self.settle();
    }

    /// Ends an interval.
    pub fn mark(&mut self, label: &str) {
        let disk = DiskEntry { slot: DiskSlot(0), disk: DiskId(9), sectors: SectorCount(1 << 20) };
        let marker = Marker {
            point: PointId(self.runtime.random_u128()),
            wall: WallNanos(1_000_000_000),
            group_time: GroupNanos(5),
            consistency: Consistency::Crash,
            label: label.into(),
            disks: vec![disk],
        };
        self.writer.enqueue_control(Entry::Marker(marker), None);
        self.settle();
    }

    /// Makes everything so far durable.
    pub fn sync(&mut self) {
        let visible = self.writer.visible();
        self.writer.want_durable(visible);
        self.step();
        while self.writer.durable() < visible {
            self.runtime.storage().wait();
            self.step();
        }
    }

    /// Gives back the segments whose records are all durable, once a durable frame says so.
    pub fn recycle(&mut self) {
        let (needless, durable, next) =
            (self.writer.durable(), self.writer.durable_frame(), self.writer.next_frame());
        self.segments.recycle(needless, durable, next);
        if let Some(frame) = self.segments.wanted_statement() {
            self.writer.want_durable_frame(frame);
            self.step();
            self.settle();
        }
        self.segments.release(self.writer.durable_frame());
    }

    /// Closes it in good order.
    pub fn seal(mut self) {
        self.writer.enqueue_control(Entry::Seal, None);
        self.settle();
        self.sync();
    }
}

/// A copy of a journal's files, to be damaged.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for (name, bytes) in files(from) {
        fs::write(to.join(name), bytes).expect("written");
    }
}

/// Names and bytes of the files in a directory, sorted.
pub fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> = entries
        .map(|path| (PathBuf::from(path.file_name().expect("a name")), fs::read(&path).expect("readable")))
        .collect();
    files.sort();
    files
}
