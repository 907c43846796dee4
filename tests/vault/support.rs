//! A runtime on real files, a storage that loses replies, and a group with a model beside it.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use afterimage::delta::{DiskExtents, Source, SourceContent};
use afterimage::env::{Environment, OsEnvironment};
use afterimage::error::{Error, Result};
use afterimage::extent::{ExtentMap, FrozenMap, Location};
use afterimage::format::delta::{CHUNK_BYTES, Header};
use afterimage::format::ladder::Ladder;
use afterimage::format::marker::Consistency;
use afterimage::format::record::{Change, DiskRecord, GroupRecord, Membership, PointDisk, PointRecord};
use afterimage::runtime::Runtime;
use afterimage::seal::{SiteKey, SiteKeys};
use afterimage::storage::{
    Backend, BackendOptions, Buffer, Completion, Op, Preference, Slice, Storage, Token, open_best,
};
use afterimage::units::{
    BlobId, DiskId, DiskSlot, GroupId, GroupNanos, Lsn, MonotonicNanos, PointId, SECTOR_BYTES, SectorCount,
    SectorRange, TimelineId, WallNanos, to_usize,
};
use afterimage::vault::Vault;
use proptest::prelude::*;
use tempfile::TempDir;

pub use crate::pieces::flatten;

pub const GROUP: GroupId = GroupId(0x67);
pub const TIMELINE: TimelineId = TimelineId(0x71);

/// The key of the site whose vaults these are.
pub fn site_keys() -> SiteKeys {
    SiteKeys::new(vec![SiteKey::drawn([0x517e, 0x6e7])])
}

pub fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the target directory takes a temporary one")
}

fn blocking() -> Box<dyn Storage> {
    let options = BackendOptions { preference: Preference::Blocking, ..BackendOptions::default() };
    open_best(&options).expect("threads can be started").storage
}

pub fn runtime() -> Rc<Runtime> {
    Runtime::new(blocking(), Rc::new(OsEnvironment::new()))
}

/// A clock that stands, and numbers in their order for random ones: what is made is the same each time.
#[derive(Default)]
struct SteadyEnvironment(Cell<u128>);

impl Environment for SteadyEnvironment {
    fn monotonic(&self) -> MonotonicNanos {
        MonotonicNanos(0)
    }

    fn wall(&self) -> WallNanos {
        WallNanos(0)
    }

    fn random_u128(&self) -> u128 {
        self.0.set(self.0.get() + 1);
        0x5ead_0000 + self.0.get()
    }
}

/// Runs a future that borrows: the runtime's own `block_on` wants one that does not.
pub fn block_on<T>(runtime: &Rc<Runtime>, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut events = Vec::new();
    loop {
        runtime.step(&mut events);
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        runtime.storage().start();
        runtime.storage().wait();
    }
}

/// What happens to a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is done, and reported as failed with this error.
    LostReply(io::ErrorKind),
    /// It is not done, and reported as failed.
    Refused,
}

/// The faults to come, for publishing names that end in a text.
#[derive(Clone, Default)]
pub struct Faults(Rc<RefCell<Vec<(String, Fault)>>>);

impl Faults {
    pub fn add(&self, suffix: &str, fault: Fault) {
        self.0.borrow_mut().push((suffix.to_owned(), fault));
    }

    pub fn are_spent(&self) -> bool {
        self.0.borrow().is_empty()
    }

    fn take(&self, path: &Path) -> Option<Fault> {
        let mut faults = self.0.borrow_mut();
        let index =
            faults.iter().position(|(suffix, _)| path.to_string_lossy().ends_with(suffix.as_str()))?;
        Some(faults.remove(index).1)
    }
}

struct Faulty {
    inner: Box<dyn Storage>,
    faults: Faults,
    lost: RefCell<Vec<(Token, io::ErrorKind)>>,
    refused: RefCell<Vec<Token>>,
}

impl Storage for Faulty {
    fn backend(&self) -> Backend {
        self.inner.backend()
    }

    fn submit(&self, token: Token, op: Op) {
        if let Op::Publish { to, .. } = &op {
            match self.faults.take(to) {
                Some(Fault::LostReply(kind)) => self.lost.borrow_mut().push((token, kind)),
                Some(Fault::Refused) => return self.refused.borrow_mut().push(token),
                None => {}
            }
        }
        self.inner.submit(token, op);
    }

    fn start(&self) {
        self.inner.start();
    }

    fn reap(&self, completions: &mut Vec<Completion>) {
        self.inner.reap(completions);
        let failed = |kind: io::ErrorKind| Err(Error::io("publishing", io::Error::from(kind)));
        for completion in completions.iter_mut() {
            let mut lost = self.lost.borrow_mut();
            if let Some(index) = lost.iter().position(|(token, _)| *token == completion.token) {
                assert!(completion.result.is_ok(), "the fault is a lost reply, not a failure");
                completion.result = failed(lost.remove(index).1);
            }
        }
        let refused = self.refused.take().into_iter();
        completions
            .extend(refused.map(|token| Completion { token, result: failed(io::ErrorKind::StorageFull) }));
    }

    fn wait(&self) {
        if self.refused.borrow().is_empty() {
            self.inner.wait();
        }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.inner.readiness()
    }
}

pub fn faulty_runtime() -> (Rc<Runtime>, Faults) {
    let faults = Faults::default();
    let storage = Faulty {
        inner: blocking(),
        faults: faults.clone(),
        lost: RefCell::default(),
        refused: RefCell::default(),
    };
    (Runtime::new(Box::new(storage), Rc::new(OsEnvironment::new())), faults)
}

pub fn group_record(name: &str) -> GroupRecord {
    GroupRecord { name: name.to_owned(), created: WallNanos(1), interval_ms: 1000, retain: Ladder::default() }
}

pub fn disk_record(slot: u32, name: &str, sectors: u64) -> DiskRecord {
    let id = DiskId(0xd0 + u128::from(slot));
    DiskRecord { slot: DiskSlot(slot), id, name: name.to_owned(), sectors: SectorCount(sectors) }
}

pub fn point_record(number: u64, disks: &[DiskRecord]) -> PointRecord {
    let member = |disk: &DiskRecord| PointDisk {
        slot: disk.slot,
        disk: disk.id,
        sectors: disk.sectors,
        membership: Membership::Included,
    };
    PointRecord {
        id: PointId(0xb000 + u128::from(number)),
        marker: Lsn(number * 100),
        wall: WallNanos(1_000_000_000),
        group_time: GroupNanos(number),
        consistency: Consistency::Crash,
        label: format!("point {number}"),
        delta: None,
        disks: disks.iter().map(member).collect::<Arc<[_]>>(),
    }
}

/// Where the bytes of an interval are in [`Log`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Log(u64),
    Zero { allocated: bool },
}

impl Location for Place {
    fn advance(self, sectors: u64) -> Place {
        match self {
            Place::Log(sector) => Place::Log(sector + sectors),
            zero @ Place::Zero { .. } => zero,
        }
    }
}

/// Stands for the journal: everything that was written, one after the other.
#[derive(Default)]
pub struct Log {
    bytes: Vec<u8>,
    /// Reads that were in flight at once, at most.
    reading: Cell<u64>,
    pub read_sectors_max: Cell<u64>,
}

impl Source for Log {
    type Location = Place;

    fn content(&self, place: Place) -> SourceContent {
        match place {
            Place::Log(_) => SourceContent::Data,
            Place::Zero { allocated } => SourceContent::Zero { allocated },
        }
    }

    async fn read(&self, place: Place, sectors: SectorCount) -> Result<Slice> {
        let Place::Log(sector) = place else { panic!("zeros are not read") };
        self.reading.set(self.reading.get() + sectors.0);
        self.read_sectors_max.set(self.read_sectors_max.get().max(self.reading.get()));
        // As storage would: the answer comes later, so that what is in flight adds up.
        let mut waited = false;
        std::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let start = to_usize(sector * SECTOR_BYTES);
        let slice = Buffer::copy_of(&self.bytes[start..start + to_usize(sectors.bytes())]).freeze();
        self.reading.set(self.reading.get() - sectors.0);
        Ok(slice)
    }
}

/// A group that is written to, with a model of every disk at every point.
pub struct Group {
    pub runtime: Rc<Runtime>,
    pub vault: Rc<Vault>,
    pub disks: Vec<DiskRecord>,
    pub log: Log,
    pub model: Vec<Vec<u8>>,
    pub points: Vec<(PointId, Vec<Vec<u8>>)>,
    maps: Vec<ExtentMap<Place>>,
    prepared: u64,
    _directory: Option<TempDir>,
}

/// A point on its way, with the delta that it is to have.
pub struct Prepared {
    pub point: PointRecord,
    header: Header,
    maps: Vec<FrozenMap<Place>>,
    disks: Vec<DiskRecord>,
}

impl Prepared {
    /// Puts the delta, then publishes the point.
    pub async fn publish(&self, vault: &Vault, log: &Log) -> Result<PointId> {
        let disks = self.disks.iter().zip(&self.maps).map(|(disk, map)| DiskExtents {
            slot: disk.slot,
            disk: disk.id,
            sectors: disk.sectors,
            extents: map.iter(),
        });
        let built = vault.put_delta(self.header, log, disks).await?;
        let mut point = self.point.clone();
        point.delta = built.map(|built| built.reference);
        vault.publish(point).await?;
        Ok(self.point.id)
    }
}

impl Group {
    /// A group of disks of these sizes, all zeros.
    pub fn new(sizes: &[u64]) -> Group {
        Group::in_new_directory(sizes, Some(&site_keys()))
    }

    /// As [`Group::new`], not sealed.
    pub fn plain(sizes: &[u64]) -> Group {
        Group::in_new_directory(sizes, None)
    }

    /// As [`Group::new`] or [`Group::plain`], of which each makes the same bytes.
    pub fn steady(sizes: &[u64], is_sealed: bool) -> Group {
        let runtime = Runtime::new(blocking(), Rc::new(SteadyEnvironment::default()));
        let keys = site_keys();
        Group::in_directory_of_its_own(&runtime, sizes, is_sealed.then_some(&keys))
    }

    fn in_new_directory(sizes: &[u64], seal_with: Option<&SiteKeys>) -> Group {
        Group::in_directory_of_its_own(&runtime(), sizes, seal_with)
    }

    fn in_directory_of_its_own(runtime: &Rc<Runtime>, sizes: &[u64], seal_with: Option<&SiteKeys>) -> Group {
        let directory = directory();
        let mut group = Group::create(runtime, &directory.path().join("vault"), sizes, seal_with);
        group._directory = Some(directory);
        group
    }

    /// As [`Group::new`], in a place and on a storage of the caller's choice.
    pub fn within(runtime: &Rc<Runtime>, path: &Path, sizes: &[u64]) -> Group {
        Group::create(runtime, path, sizes, Some(&site_keys()))
    }

    fn create(runtime: &Rc<Runtime>, path: &Path, sizes: &[u64], seal_with: Option<&SiteKeys>) -> Group {
        let runtime = Rc::clone(runtime);
        let created = Vault::create(&runtime, path, GROUP, TIMELINE, group_record("g"), seal_with);
        // Two to a summary, so that few points make several levels.
        let vault = block_on(&runtime, created).expect("a new group").with_fan_out(2);
        let names = (0_u32..).map(|slot| (slot, format!("disk{slot}")));
        let disks: Vec<DiskRecord> =
            names.zip(sizes).map(|((slot, name), &sectors)| disk_record(slot, &name, sectors)).collect();
        for disk in &disks {
            let added = async {
                vault.bases().create_empty(disk.id, disk.sectors).await?;
                vault.manifest().append(Change::DiskAdded(disk.clone())).await
            };
            block_on(&runtime, added).expect("a new disk");
        }
        let model: Vec<Vec<u8>> = disks.iter().map(|disk| vec![0; to_usize(disk.sectors.bytes())]).collect();
        let maps = disks.iter().map(|_| ExtentMap::new()).collect();
        let (log, points) = (Log::default(), Vec::new());
        let vault = Rc::new(vault);
        Group { runtime, vault, disks, log, model, points, maps, prepared: 0, _directory: None }
    }

    pub fn path(&self) -> PathBuf {
        self.vault.layout().root().to_owned()
    }

    pub fn write(&mut self, disk: usize, range: SectorRange, seed: u8) {
        self.write_bytes(disk, range, &pattern(range.bytes(), seed));
    }

    pub fn write_bytes(&mut self, disk: usize, range: SectorRange, bytes: &[u8]) {
        let place = Place::Log(self.log.bytes.len() as u64 / SECTOR_BYTES);
        let target = range.byte_range();
        self.model[disk][to_usize(target.start)..to_usize(target.end)].copy_from_slice(bytes);
        self.log.bytes.extend(bytes);
        self.maps[disk].insert(range, place);
    }

    pub fn zero(&mut self, disk: usize, range: SectorRange, allocated: bool) {
        let target = range.byte_range();
        self.model[disk][to_usize(target.start)..to_usize(target.end)].fill(0);
        self.maps[disk].insert(range, Place::Zero { allocated });
    }

    /// As [`Group::write`], for disks that are too big for a model.
    pub fn write_unmodelled(&mut self, disk: usize, range: SectorRange, seed: u8) {
        let place = Place::Log(self.log.bytes.len() as u64 / SECTOR_BYTES);
        self.log.bytes.extend(pattern(range.bytes(), seed));
        self.maps[disk].insert(range, place);
    }

    /// As [`Group::zero`], for disks that are too big for a model.
    pub fn zero_unmodelled(&mut self, disk: usize, range: SectorRange) {
        self.maps[disk].insert(range, Place::Zero { allocated: false });
    }

    /// Takes everything written since the last point for a new one, and notes what the disks hold at it.
    pub fn prepare(&mut self) -> Prepared {
        self.prepared += 1;
        let number = self.prepared;
        let point = point_record(number, &self.disks);
        self.points.push((point.id, self.model.clone()));
        let header = Header {
            blob: BlobId(0xb10b_0000 + u128::from(number)),
            group: GROUP,
            timeline: TIMELINE,
            after: Lsn((number - 1) * 100),
            through: Lsn(number * 100),
            marker: Lsn(number * 100),
            created: WallNanos(0),
            intervals: 1,
            chunk_bytes: CHUNK_BYTES,
        };
        let maps = self.maps.iter_mut().map(|map| std::mem::take(map).freeze()).collect();
        Prepared { point, header, maps, disks: self.disks.clone() }
    }

    /// Ends and builds summaries until all is well.
    pub fn summarize(&self) {
        let summarized = async {
            self.vault.end_summaries().await?;
            while self.vault.build_summary(&|| Ok(())).await? {}
            Ok::<_, Error>(())
        };
        block_on(&self.runtime, summarized).expect("there is room");
    }

    /// Does what a guest does.
    pub fn apply(&mut self, edit: &Edit) {
        match *edit {
            Edit::Write { disk, range, seed } => self.write(disk, range, seed),
            Edit::Zero { disk, range, allocated } => self.zero(disk, range, allocated),
        }
    }

    /// Publishes everything written since the last point.
    pub fn publish(&mut self) -> PointId {
        let prepared = self.prepare();
        block_on(&self.runtime, prepared.publish(&self.vault, &self.log)).expect("a new point")
    }
}

/// What a guest does to one of a group's disks.
#[derive(Clone, Debug)]
pub enum Edit {
    Write { disk: usize, range: SectorRange, seed: u8 },
    Zero { disk: usize, range: SectorRange, allocated: bool },
}

/// Edits of disks of these sizes, of up to `sectors_max` sectors each; twice as many writes as zeros.
pub fn edits(sizes: [u64; 2], sectors_max: u64) -> impl Strategy<Value = Edit> {
    let place = (0..sizes.len(), any::<prop::sample::Index>(), 1..sectors_max);
    let place = place.prop_map(move |(disk, start, sectors)| {
        let start = start.index(to_usize(sizes[disk])) as u64;
        (disk, SectorRange::new(start, start + sectors.min(sizes[disk] - start)))
    });
    prop_oneof![
        2 => (place.clone(), any::<u8>()).prop_map(|((disk, range), seed)| Edit::Write { disk, range, seed }),
        1 => (place, any::<bool>())
            .prop_map(|((disk, range), allocated)| Edit::Zero { disk, range, allocated }),
    ]
}

/// Bytes that tell where they belong: never zero.
pub fn pattern(bytes: u64, seed: u8) -> Vec<u8> {
    let byte = |index: u64| u8::try_from((index / SECTOR_BYTES * 31 + index + u64::from(seed)) % 255 + 1);
    (0..bytes).map(|index| byte(index).expect("below 256")).collect()
}
