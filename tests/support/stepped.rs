//! A group that a test steps by hand, whatever it stands on: what is asked of it, and what it answers.
//!
//! What a round is says who has the disk ([`Steps::step`]): a real one waits by itself; where a simulated one has nothing left to do,
//! time passes.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use afterimage::block::{Export, Reply, Request, Ticket};
use afterimage::error::Result;
use afterimage::format::ladder::Ladder;
use afterimage::format::record::{DiskRecord, GroupRecord};
use afterimage::journal::cache::SharedFrames;
use afterimage::planted::Planted;
use afterimage::protect::group::{Callback, Group};
use afterimage::protect::membership::Content;
use afterimage::protect::open::{GroupPlan, INDEX_BYTES_MIN};
use afterimage::protect::shrinking::SpaceLimits;
use afterimage::protect::summing::Summing;
use afterimage::runtime::Runtime;
use afterimage::seal::{SiteKey, SiteKeys};
use afterimage::units::{GroupId, SectorCount, SectorRange, WallNanos, to_usize};
use bytes::Bytes;

/// The group of these tests.
pub const GROUP: GroupId = GroupId(7);

/// A group of that id in these directories.
pub fn plan(directory: PathBuf, vault: PathBuf) -> GroupPlan {
    GroupPlan {
        directory,
        vault,
        segment_bytes: 4 << 20,
        journal_bytes: 64 << 20,
        cache_bytes_max: 8 << 20,
        shared_frames: SharedFrames::unbounded(),
        shared_pieces: Arc::default(),
        map_bytes_max: 16 << 20,
        index_bytes_min: INDEX_BYTES_MIN,
        fan_out: afterimage::vault::FAN_OUT,
        piece_bytes: None,
        space: SpaceLimits::default(),
        gates: Arc::default(),
        site_keys: SiteKeys::new(vec![SiteKey::drawn([1, 2])]),
        summing: Summing::default(),
        seals: true,
        accepts_loss: false,
        planted: Planted::NONE,
    }
}

/// A group that keeps every point.
pub fn record(interval_ms: u32) -> GroupRecord {
    GroupRecord { name: "g".into(), created: WallNanos(0), interval_ms, retain: Ladder::keep_all() }
}

/// A write of sectors of one byte.
pub fn write(start: u64, byte: u8, sectors: u64) -> Request {
    let payload = Bytes::from(vec![byte; to_usize(sectors * 512)]);
    Request::Write { range: SectorRange::new(start, start + sectors), payload, durable: false }
}

/// What somebody is told in the end.
pub type Told<T> = Rc<RefCell<Option<Result<T>>>>;

/// Something to call back, and what it was told.
pub fn callback<T: 'static>() -> (Told<T>, Callback<T>) {
    let told = Told::default();
    let filled = Rc::clone(&told);
    (told, Box::new(move |result| drop(filled.replace(Some(result)))))
}

/// A group, and what was asked of it.
pub struct Stepped {
    pub runtime: Rc<Runtime>,
    pub group: Group,
    /// Answers that nobody has taken yet.
    pub replies: Vec<(Ticket, Reply)>,
    requests: u64,
}

impl Stepped {
    pub fn new(runtime: Rc<Runtime>, group: Group) -> Stepped {
        Stepped { runtime, group, replies: Vec::new(), requests: 0 }
    }

    /// Tasks and group go as far as they can, and hand to the disk what they ask of it.
    pub fn round(&mut self) {
        let mut events = Vec::new();
        self.runtime.step(&mut events);
        events.into_iter().for_each(|event| self.group.handle(event));
        self.group.advance();
        self.group.take_replies(&mut self.replies);
        self.runtime.storage().start();
    }

    pub fn submit(&mut self, export: Export, request: Request) -> Ticket {
        self.requests += 1;
        let ticket = Ticket { session: 1, request: self.requests };
        self.group.submit(ticket, export, request);
        ticket
    }
}

/// Who steps a group, and the disk under it.
pub trait Steps {
    /// Rounds after which what is waited for is taken not to come.
    const ROUNDS_MAX: u64;

    /// The group.
    fn stepped(&mut self) -> &mut Stepped;

    /// A round, and what the disk makes of it.
    fn step(&mut self);

    /// Steps until something is so.
    #[track_caller]
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        for _ in 0..Self::ROUNDS_MAX {
            self.step();
            if is_so(self) {
                return;
            }
        }
        panic!("{what} never comes to its end");
    }

    /// What a call of the group comes to.
    #[track_caller]
    fn called<T: 'static>(&mut self, start: impl FnOnce(&mut Group, Callback<T>)) -> Result<T> {
        let (told, callback) = callback();
        start(&mut self.stepped().group, callback);
        self.until("a call", |_| told.borrow().is_some());
        told.take().expect("told")
    }

    /// What a request is answered.
    #[track_caller]
    fn answer(&mut self, export: Export, request: Request) -> Reply {
        let ticket = self.stepped().submit(export, request);
        let place = |stepped: &Stepped| stepped.replies.iter().position(|(answered, _)| *answered == ticket);
        self.until("a request", |steps| place(steps.stepped()).is_some());
        let place = place(self.stepped()).expect("answered");
        self.stepped().replies.swap_remove(place).1
    }

    /// An empty disk joins.
    #[track_caller]
    fn join(&mut self, name: &str, sectors: u64) -> DiskRecord {
        let joined = self
            .called(|group, done| group.add_disk(name.into(), SectorCount(sectors), Content::Empty, done));
        joined.expect("joins")
    }
}
