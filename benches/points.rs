//! How long a point of a long history takes to open: 86,400 points over 10 million extents, from the command to the first byte.
//!
//! `cargo bench --no-default-features --bench points [-- POINTS [EXTENTS [DIRECTORY]]] [--plain] [--keep]`; the goals of part 2 are 1 s and 400 MB.
//! `--keep` leaves the vault and its site key there, for a gateway: docs/performance.md has how that is measured.
//!
//! The history is real: a vault that is sealed (unless `--plain`), a delta for each point by the gateway's own builder, each with its extents
//! all over the disk, and the summaries that the retention task would have built. Two things are not as a gateway would have them:
//! an extent is one sector, so that the history fits on a small disk; and names are not synced one by one while the history is made
//! (the manifest is written as its snapshot). Nothing of it is in the page cache when a point is opened.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use afterimage::block::DataPiece;
use afterimage::delta::{Build, DiskExtents, Sink, Source, SourceContent};
use afterimage::env::OsEnvironment;
use afterimage::error::Result;
use afterimage::extent::{Extent, ExtentMap, Location};
use afterimage::format::delta::{CHUNK_BYTES, DeltaRef, Header};
use afterimage::format::ladder::Ladder;
use afterimage::format::manifest::{self, Snapshot, WriterSeal};
use afterimage::format::marker::Consistency;
use afterimage::format::record::{
    Change, DiskRecord, GroupRecord, Membership, PinKind, PinRecord, PointDisk, PointRecord, TestUse,
};
use afterimage::runtime::Runtime;
use afterimage::seal::{Purpose, SiteKey, SiteKeys};
use afterimage::storage::{BackendOptions, Buffer, Slice, open_best};
use afterimage::units::{
    BlobId, DiskId, DiskSlot, GroupId, GroupNanos, Lsn, PinId, PointId, SectorCount, SectorRange, TimelineId,
    WallNanos, WriterId, to_usize,
};
use afterimage::vault::Vault;
use afterimage::view::View;

const DISK_SECTORS: u64 = 1 << 31;
const OPENINGS: usize = 9;
/// One sector in so many points is remembered.
const SAMPLE_EVERY: u64 = 50;

/// Numbers that look drawn, the same in each run.
struct Drawn(u64);

impl Drawn {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// What a sector holds: the number of the point that wrote it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp(u64);

impl Location for Stamp {
    fn advance(self, _sectors: u64) -> Stamp {
        self
    }
}

struct Stamps;

impl Source for Stamps {
    type Location = Stamp;

    fn content(&self, _stamp: Stamp) -> SourceContent {
        SourceContent::Data
    }

    async fn read(&self, stamp: Stamp, sectors: SectorCount) -> Result<Slice> {
        let mut bytes = Buffer::zeroed(to_usize(sectors.bytes()));
        bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&(stamp.0 + 1).to_le_bytes()));
        Ok(bytes.freeze())
    }
}

/// A blob in memory, to be written in one go.
#[derive(Default)]
struct Blob(Vec<u8>);

impl Sink for Blob {
    fn length(&self) -> u64 {
        self.0.len() as u64
    }

    async fn append(&mut self, piece: Slice) -> Result<()> {
        self.0.extend_from_slice(&piece);
        Ok(())
    }
}

fn disk() -> DiskRecord {
    DiskRecord {
        slot: DiskSlot(0),
        id: DiskId(0xd0),
        name: "disk".into(),
        sectors: SectorCount(DISK_SECTORS),
    }
}

fn site_keys() -> SiteKeys {
    SiteKeys::new(vec![SiteKey::drawn([0x517e, 0x6e7])])
}

/// Makes history.
struct Maker {
    runtime: Rc<Runtime>,
    vault: Rc<Vault>,
    drawn: Drawn,
    points: Vec<PointRecord>,
    members: Arc<[PointDisk]>,
    delta_bytes: u64,
    /// Of some points: their number, and a sector that they wrote.
    samples: Vec<(u64, u64)>,
}

impl Maker {
    fn point(&mut self, number: u64, extents: u64) {
        let mut map = ExtentMap::new();
        for _ in 0..extents {
            let sector = self.drawn.next() % DISK_SECTORS;
            map.insert(SectorRange::new(sector, sector + 1), Stamp(number));
            if self.samples.last().is_none_or(|&(last, _)| last + SAMPLE_EVERY <= number) {
                self.samples.push((number, sector));
            }
        }
        let marker = Lsn((number + 1) * 1000);
        let delta = self.delta(marker, map);
        self.delta_bytes += delta.total_bytes;
        self.points.push(PointRecord {
            id: PointId(0x1_0000_0000 + u128::from(number)),
            marker,
            wall: WallNanos(0),
            group_time: GroupNanos(number * 1_000_000_000),
            consistency: Consistency::Crash,
            label: String::new(),
            delta: Some(delta),
            disks: Arc::clone(&self.members),
        });
    }

    fn delta(&mut self, marker: Lsn, map: ExtentMap<Stamp>) -> DeltaRef {
        let header = Header {
            blob: BlobId(u128::from(self.drawn.next()) << 64 | u128::from(self.drawn.next())),
            group: GroupId(1),
            timeline: TimelineId(2),
            after: Lsn(marker.0 - 1000),
            through: marker,
            marker,
            created: WallNanos(0),
            intervals: 1,
            chunk_bytes: CHUNK_BYTES,
        };
        let (slot, id) = (DiskSlot(0), DiskId(0xd0));
        let extents = map.freeze().iter().collect::<Vec<Extent<Stamp>>>().into_iter();
        let disk = DiskExtents { slot, disk: id, sectors: SectorCount(DISK_SECTORS), extents };
        let build = Build::new(&Stamps, std::iter::once(disk)).expect("something was written");
        let mut blob = Blob::default();
        let keys = self.vault.keys().clone();
        let built = block_on(&self.runtime, build.write(&mut blob, header, &keys)).expect("in memory");
        fs::write(self.vault.layout().blob(header.blob), blob.0).expect("there is room");
        built.reference
    }

    /// Says all of it in a snapshot, as the manifest does every 256 steps.
    fn state(&self, writer: u128) {
        let state = self.vault.manifest().state();
        let mut contents = state.contents().clone();
        contents.points.clone_from(&self.points);
        let header = manifest::Header {
            number: state.newest(),
            group: state.group(),
            writer: WriterId(writer),
            timeline: state.timeline(),
            previous: state.checksum(),
        };
        let began = now();
        let sealing = self.vault.keys().sealing(Purpose::Manifest, writer);
        let seal = sealing.as_ref().map(|sealing| WriterSeal { sealing, number: 0 });
        let encoded = Snapshot::encode_parts(&header, &contents, seal);
        let seconds = began.elapsed().as_secs_f64();
        fs::write(self.vault.layout().snapshot(state.newest()), &encoded.bytes).expect("there is room");
        println!(
            "manifest snapshot: {} of {} points, encoded in {:.0} ms",
            mib(encoded.bytes.len() as u64),
            self.points.len(),
            seconds * 1e3
        );
    }
}

fn runtime() -> Rc<Runtime> {
    let storage = open_best(&BackendOptions::default()).expect("a back end").storage;
    Runtime::new(storage, Rc::new(OsEnvironment::new()))
}

/// Runs a future that borrows: the runtime's own `block_on` wants one that does not.
fn block_on<T>(runtime: &Rc<Runtime>, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut events = Vec::new();
    loop {
        runtime.step(&mut events);
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        runtime.storage().start();
        if runtime.next_timer().is_none_or(|due| due > runtime.now()) {
            runtime.storage().wait();
        }
    }
}

fn make(directory: &Path, points: u64, extents: u64, sealed: bool) -> Vec<(u64, u64)> {
    let runtime = runtime();
    let keys = site_keys();
    let record = GroupRecord {
        name: "g".into(),
        created: WallNanos(1),
        interval_ms: 1000,
        retain: Ladder::keep_all(),
    };
    let seal_with = sealed.then_some(&keys);
    let created = Vault::create(&runtime, directory, GroupId(1), TimelineId(2), record, seal_with);
    let vault = Rc::new(block_on(&runtime, created).expect("a new vault"));
    block_on(&runtime, async {
        vault.bases().create_empty(disk().id, disk().sectors).await?;
        vault.manifest().append(Change::DiskAdded(disk())).await
    })
    .expect("a disk");
    let member = PointDisk {
        slot: DiskSlot(0),
        disk: disk().id,
        sectors: disk().sectors,
        membership: Membership::Included,
    };
    let members: Arc<[PointDisk]> = Arc::new([member]);
    let (drawn, made) = (Drawn(88_172_645_463_325_252), Vec::new());
    let mut maker =
        Maker { runtime, vault, drawn, points: made, members, delta_bytes: 0, samples: Vec::new() };
    let began = now();
    for number in 0..points {
        let share = extents * (number + 1) / points - extents * number / points;
        maker.point(number, share);
    }
    println!(
        "history: {points} points, {extents} extents of one sector, {} of deltas, made in {:.0} s",
        mib(maker.delta_bytes),
        began.elapsed().as_secs_f64()
    );
    maker.state(0x77);
    maker.samples
}

fn summarize(directory: &Path, extents: u64) {
    let runtime = runtime();
    let (vault, seconds) = open_vault(&runtime, directory);
    println!("vault opened (manifest replayed, blobs listed): {:.0} ms", seconds * 1e3);
    let began = now();
    let built = Cell::new(0_u64);
    block_on(&runtime, async {
        while vault.build_summary(&|| Ok(())).await? {
            built.set(built.get() + 1);
        }
        Ok::<_, afterimage::error::Error>(())
    })
    .expect("there is room");
    let bytes: u64 = sizes(&vault.layout().index());
    println!(
        "summaries: {} built in {:.1} s, {} written, {:.0} bytes an extent",
        built.get(),
        began.elapsed().as_secs_f64(),
        mib(bytes),
        bytes as f64 / extents as f64,
    );
}

fn open_vault(runtime: &Rc<Runtime>, directory: &Path) -> (Rc<Vault>, f64) {
    let keys = site_keys();
    let began = now();
    let vault = block_on(runtime, Vault::open(runtime, directory, &keys)).expect("sound");
    (Rc::new(vault), began.elapsed().as_secs_f64())
}

/// Opens a point, as a restore does, and reads what an older one wrote, and then all over the disk.
fn open_point(
    runtime: &Rc<Runtime>,
    vault: &Rc<Vault>,
    number: usize,
    samples: &[(u64, u64)],
    drawn: &mut Drawn,
) -> f64 {
    let point = vault.manifest().state().points()[number].id;
    let older = samples.partition_point(|&(of, _)| of <= number as u64);
    let (wrote, sector) = samples[to_usize(drawn.next() % older as u64)];
    forget_cache(vault.layout().root());
    let (memory, read, began) = (anonymous_bytes(), read_bytes(), now());
    let kind = PinKind::Test { test: vault.manifest().state().next_test(), purpose: TestUse::Restore };
    let pin = PinRecord { id: PinId(drawn.next().into()), point, created: WallNanos(0), kind };
    block_on(runtime, vault.manifest().append(Change::PinAdded(pin))).expect("pinned");
    let pinned = began.elapsed().as_secs_f64();
    let view = block_on(runtime, View::open(vault, point)).expect("sound");
    let opened = began.elapsed().as_secs_f64();
    let range = SectorRange::new(sector, sector + 1);
    let pieces = block_on(runtime, view.read(disk().id, range)).expect("sound");
    let first = began.elapsed().as_secs_f64();
    let [DataPiece::Bytes(bytes)] = &pieces[..] else { panic!("it was written") };
    let stamp = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
    assert!((wrote + 1..=number as u64 + 1).contains(&stamp), "{stamp}, not from {wrote} on");
    let (memory, read) = (anonymous_bytes().saturating_sub(memory), read_bytes() - read);
    // Cold pages and a chunk for each read: what a guest sees that boots from the point.
    let (began, reads) = (now(), 100);
    for _ in 0..reads {
        let start = (drawn.next() % (DISK_SECTORS - 8)) & !7;
        block_on(runtime, view.read(disk().id, SectorRange::new(start, start + 8))).expect("sound");
    }
    println!(
        "point {number}: first byte after {:.0} ms (pin {:.0}, view {:.0}), {} summaries, {} read, {} more memory; then {:.1} ms a random read of 4 KiB",
        first * 1e3,
        pinned * 1e3,
        (opened - pinned) * 1e3,
        view.summaries(),
        mib(read),
        mib(memory),
        began.elapsed().as_secs_f64() * 1e3 / f64::from(reads),
    );
    first
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn sizes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).expect("a directory");
    entries.map(|entry| entry.expect("an entry").metadata().expect("there").len()).sum()
}

/// Makes the files durable, and the page cache forget them: one by one would take minutes, so the whole cache, where that is
/// permitted.
fn forget_cache(root: &Path) {
    rustix::fs::sync();
    if fs::write("/proc/sys/vm/drop_caches", "3").is_ok() {
        return;
    }
    for directory in ["blobs", "index", "manifest", "base"] {
        for entry in fs::read_dir(root.join(directory)).expect("a directory") {
            let file = fs::File::open(entry.expect("an entry").path()).expect("a file");
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("forgotten");
        }
    }
}

fn number_in(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).expect("a process has it");
    let line = text.lines().find(|line| line.starts_with(name)).expect("a line");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

fn anonymous_bytes() -> u64 {
    number_in("/proc/self/status", "RssAnon") * 1024
}

fn read_bytes() -> u64 {
    number_in("/proc/self/io", "read_bytes")
}

#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

/// Leaves what was made, as the tree of a gateway's vaults and the key that opens them.
fn keep(scratch: tempfile::TempDir) {
    let root = scratch.keep();
    let vaults = root.join("data/vault");
    fs::create_dir_all(&vaults).expect("a directory");
    fs::rename(root.join("vault"), vaults.join(GroupId(1).to_string())).expect("the same file system");
    let keys = site_keys();
    let key = root.join("site.key");
    fs::write(&key, keys.current().expect("it has one").to_text().as_bytes()).expect("written");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("ours");
    println!("kept: {}", root.display());
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let is_plain = std::env::args().any(|word| word == "--plain");
    let number =
        |at: usize, unless: u64| words.get(at).map_or(unless, |word| word.parse().expect("a number"));
    let (points, extents) = (number(0, 86_400), number(1, 10_000_000));
    let root = words.get(2).map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let scratch = tempfile::tempdir_in(root).expect("a directory");
    let directory = scratch.path().join("vault");
    let samples = make(&directory, points, extents, !is_plain);
    if std::env::args().any(|word| word == "--keep") {
        summarize(&directory, extents);
        return keep(scratch);
    }
    summarize(&directory, extents);
    let runtime = runtime();
    let (vault, seconds) = {
        forget_cache(&directory);
        open_vault(&runtime, &directory)
    };
    println!(
        "vault opened cold, with summaries: {:.0} ms; {} of memory",
        seconds * 1e3,
        mib(anonymous_bytes())
    );
    let mut drawn = Drawn(0x9e37_79b9_7f4a_7c15);
    let last = to_usize(points) - 1;
    let mut times = Vec::with_capacity(OPENINGS);
    for opening in 0..OPENINGS {
        let point = if opening == 0 { last } else { to_usize(drawn.next() % points) };
        times.push(open_point(&runtime, &vault, point, &samples, &mut drawn));
    }
    times.sort_by(f64::total_cmp);
    println!(
        "{points} points, {extents} extents over {:?}: first byte after {:.0} ms in the median, {:.0} at most; {} of memory in all",
        runtime.storage().backend(),
        times[times.len() / 2] * 1e3,
        times[times.len() - 1] * 1e3,
        mib(anonymous_bytes()),
    );
}
