//! A run of the gateway in the guest, with all that was written to its volume, and all that the clients outside know.
//!
//! The clients write over NBD, with FLUSH and FUA. Whenever a flush was acknowledged, a mark goes into the log of the
//! volume's writes: what was promised before the mark was asked for had been promised when the volume's power would
//! have been cut anywhere after it. Recovery points are made, held and let go meanwhile, the journal is turned over,
//! points are thinned and the base advances. In the middle the gateway is killed and started again; at the end it is stopped.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use afterimage::byte_size::ByteSize;
use afterimage::cli::demo::JournalSize;
use afterimage::env::{Environment, OsEnvironment};
use afterimage::listen::ListenAddress;
use afterimage::oracle::{Clock, History, Load, OnLoss, Outcome, Running, Stamp, Target};
use afterimage::random::Random;
use tempfile::TempDir;

use crate::guest::Guest;
use crate::machine;
use crate::tool;
use crate::write_log::{Kind, WriteLog};

/// The group's disks, as exports.
pub const EXPORTS: [&str; 2] = ["erp/data", "erp/wal"];
/// The least there is, so that segments are recycled all the time.
pub const JOURNAL: JournalSize = JournalSize { total: ByteSize(4 << 20), segment: ByteSize(1 << 20) };
const DISK_BYTES: u64 = 8 << 20;
const VOLUME_BYTES: u64 = 192 << 20;
/// Sparse.
const LOG_BYTES: u64 = 16 << 30;
const CONNECTIONS: usize = 2;
const DEPTH: usize = 6;
/// Marks between two recovery points that are asked for.
const MARKS_PER_POINT: usize = 3;
/// A gateway that acknowledges no flush for so long has failed.
const PROGRESS_WITHIN: Duration = Duration::from_secs(60);

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Decides what is written where.
    pub seed: u64,
    /// Operations before the gateway is killed, and again as many after it.
    pub operations: u64,
    /// Whether it is long enough for the base to advance; that is checked.
    pub advances: bool,
    /// Options of the guest's mount.
    pub mount: &'static str,
}

/// A mark in the log.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// Its entry.
    pub entry: usize,
    /// Before it was asked for.
    pub asked: Stamp,
    /// After it was written.
    pub written: Stamp,
}

/// A recovery point that was asked for.
#[derive(Clone, Debug)]
pub struct KnownPoint {
    /// What it is called.
    pub label: String,
    /// Before it was asked for.
    pub asked: Stamp,
    /// After it was granted.
    pub granted: Stamp,
    /// When it was held for sure.
    pub held: Stamp,
    /// When letting it go was asked for.
    pub released: Stamp,
}

/// What is known of a moment of the log.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Everything promised before this had been promised.
    pub promised: Stamp,
    /// Nothing issued after this can be there.
    pub nothing_after: Stamp,
}

/// A run that has ended.
pub struct Recording {
    _directory: TempDir,
    /// The volume before it.
    pub initial: PathBuf,
    /// What was written to it.
    pub log: WriteLog,
    /// By entry.
    pub marks: Vec<Mark>,
    /// What was asked and answered.
    pub history: History,
    /// In order.
    pub points: Vec<KnownPoint>,
    /// When the group and its disks were there.
    pub created: Stamp,
    /// Entries while the gateway that had been killed was started again.
    pub opening: Range<usize>,
    /// How long it took.
    pub took: Duration,
}

impl Recording {
    /// Boots a guest, runs the gateway in it, and switches it off.
    pub fn make(plan: &Plan, gateway: &Path) -> Recording {
        let environment = OsEnvironment::new();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let [initial, volume, log] = ["initial", "volume", "log"].map(|name| directory.path().join(name));
        make_volume(&initial);
        tool::says("cp", ["--sparse=always".as_ref(), initial.as_os_str(), volume.as_os_str()]);
        let file = std::fs::File::create(&log).expect("a file in a temporary directory");
        file.set_len(LOG_BYTES).expect("a sparse file");
        let (guest, address) = machine::boot(directory.path(), &volume, &log, gateway, &configuration());
        let mut random = Random::new(plan.seed);
        let history = History::new(random.next(), vec![DISK_BYTES / 512; EXPORTS.len()]);
        let mut run = Run {
            guest,
            address,
            clock: Arc::default(),
            history,
            random,
            marks: Vec::new(),
            points: Vec::new(),
        };
        let (created, dead) = run.drive(plan);
        let Run { guest, history, marks, points, .. } = run;
        guest.power_off();
        let log = WriteLog::open(&log).expect("a log of dm-log-writes");
        let marks = find_marks(&log, &marks);
        let opening = marks[dead].entry..marks[dead + 1].entry;
        let took = Duration::from_nanos(environment.monotonic().0);
        Recording { _directory: directory, initial, log, marks, history, points, created, opening, took }
    }

    /// What is known of the moment at which so many entries of the log had been written.
    pub fn known(&self, entries: usize) -> Known {
        let next = self.marks.partition_point(|mark| mark.entry < entries);
        Known {
            promised: next.checked_sub(1).map_or(Stamp::START, |last| self.marks[last].asked),
            nothing_after: self.marks.get(next).map_or(Stamp::END, |mark| mark.written),
        }
    }
}

/// An ext4 of ours, with nothing left to initialise later.
fn make_volume(path: &Path) {
    let file = std::fs::File::create(path).expect("a file in a temporary directory");
    file.set_len(VOLUME_BYTES).expect("a sparse file");
    let options = ["-q", "-F", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
    tool::says("mkfs.ext4", options.iter().map(std::ffi::OsStr::new).chain([path.as_os_str()]));
}

/// The guest's gateway. Its NBD port can be reached from this machine only.
fn configuration() -> String {
    format!(
        "[site]\nname = \"guest\"\ndata_dir = \"/data\"\ndata_threads = 1\n\n\
         [nbd]\nlisten = [\"0.0.0.0:10809\"]\nallow_insecure = true\n\n[api]\nsocket = \"/tmp/api.sock\"\n\n\
         [storage]\nbackend = \"io_uring\"\n\n[journal]\nsize = \"{}\"\nsegment_size = \"{}\"\n",
        JOURNAL.total, JOURNAL.segment
    )
}

/// Finds each mark's entry; they are numbered in order.
fn find_marks(log: &WriteLog, asked: &[(Stamp, Stamp)]) -> Vec<Mark> {
    let mut marks = Vec::new();
    for (entry, found) in log.entries().iter().enumerate() {
        if let Kind::Mark(text) = &found.kind
            && let Some(number) = text.strip_prefix("told-")
        {
            assert_eq!(
                number,
                marks.len().to_string(),
                "marks are logged in the order in which they were made"
            );
            let (asked, written) = asked[marks.len()];
            marks.push(Mark { entry, asked, written });
        }
    }
    assert_eq!(marks.len(), asked.len(), "every mark is in the log");
    marks
}

/// A run under way.
struct Run {
    guest: Guest,
    address: SocketAddr,
    clock: Arc<Clock>,
    history: History,
    random: Random,
    /// When each was asked for and written.
    marks: Vec<(Stamp, Stamp)>,
    points: Vec<KnownPoint>,
}

impl Run {
    /// Everything; says when the group was there, and between which mark and the next one it was opened again.
    fn drive(&mut self, plan: &Plan) -> (Stamp, usize) {
        self.guest.run("log_writes");
        self.guest.run(&format!("mount -t ext4 -o {} /dev/dm-0 /data", plan.mount));
        self.mark();
        self.guest.run("start");
        self.guest.run("afterimage status | grep -q 'io_uring .*, O_DIRECT'");
        self.mark();
        self.guest.run("afterimage group create erp");
        for disk in EXPORTS {
            self.mark();
            self.guest.run(&format!("afterimage disk create {disk} --size {DISK_BYTES}"));
        }
        let created = self.clock.stamp();
        self.guest.run("afterimage policy set erp --interval 200ms --retain 1s:all,4s:1s");
        self.mark();
        let running = self.load(plan.operations);
        self.end("KILL", running, true);
        let dead = self.marks.len();
        self.mark();
        self.guest.run("start");
        self.mark();
        let running = self.load(plan.operations);
        self.end("TERM", running, false);
        self.mark();
        if plan.advances {
            // Nothing else writes to the base.
            self.guest.run("test $(du -sk /data/vault/*/base | cut -f 1) -gt 64");
        }
        self.guest.run("umount /data");
        self.guest.run("dmsetup remove logged --noudevsync");
        (created, dead)
    }

    /// Writes until so many operations were acknowledged, with a mark after each flush; the load goes on.
    fn load(&mut self, operations: u64) -> Running {
        let target = |export: &&str| Target { export: (*export).to_owned(), sectors: DISK_BYTES / 512 };
        let load = Load {
            gateway: ListenAddress::Tcp(self.address),
            run: self.history.run(),
            seed: self.random.next(),
            targets: EXPORTS.iter().map(target).collect(),
            connections: CONNECTIONS,
            depth: DEPTH,
            on_loss: OnLoss::End,
        };
        let running = load.start(&self.clock);
        let mut flushes = 0;
        while running.counters().operations < operations {
            let flushed = running.wait_for_flush(flushes, PROGRESS_WITHIN);
            flushes = flushed.expect("the gateway in the guest acknowledges flushes");
            self.mark();
            if self.marks.len().is_multiple_of(MARKS_PER_POINT) {
                self.point();
            }
        }
        running
    }

    /// Ends the gateway: under load, or after it.
    fn end(&mut self, signal: &str, mut running: Running, under_load: bool) {
        let outcome = if under_load {
            self.guest.run(&format!("end {signal}"));
            running.join()
        } else {
            let outcome = running.finish();
            assert!(outcome.lost.is_empty(), "nobody killed it: {:?}", outcome.lost);
            self.guest.run(&format!("end {signal}"));
            outcome
        };
        self.history.add_death(self.clock.stamp());
        self.take(outcome);
    }

    fn take(&mut self, outcome: Outcome) {
        assert!(outcome.refused.is_empty(), "refused: {:?}", outcome.refused);
        self.history.add(outcome.operations);
        self.history.add_flushes(outcome.flushes);
    }

    fn mark(&mut self) {
        let asked = self.clock.stamp();
        self.guest.run(&format!("mark told-{}", self.marks.len()));
        self.marks.push((asked, self.clock.stamp()));
    }

    /// Makes a point and holds it; lets the one go that was held before the last one.
    fn point(&mut self) {
        let label = format!("point-{}", self.points.len());
        let asked = self.clock.stamp();
        self.guest.run(&format!("afterimage point create erp --label {label}"));
        let granted = self.clock.stamp();
        self.guest.run(&format!("afterimage point hold erp {label}"));
        let held = self.clock.stamp();
        self.points.push(KnownPoint { label, asked, granted, held, released: Stamp::END });
        if let Some(old) = self.points.len().checked_sub(3) {
            let old = &mut self.points[old];
            old.released = self.clock.stamp();
            self.guest.run(&format!("afterimage point release erp {}", old.label));
        }
        self.mark();
    }
}
