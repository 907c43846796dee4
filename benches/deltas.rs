//! What a delta costs: an interval of 60 s of 4 KiB writes whose places are drawn as a cache's keys are, zipf(0.99), so that most are
//! overwritten before the marker.
//!
//! `tests/run bench deltas`. The goals of part 3 are bytes within 2 % of the distinct ones, and 1 GB/s a core before compression.
//!
//! The maps are frozen as a group freezes them, merged and built by the gateway's own code. Journal and vault are memory: what is read comes from
//! one buffer whose bytes do not compress (which the builder finds out by trying one chunk in 33), what is written is counted. Seconds are CPU seconds
//! of this thread.

use std::rc::Rc;

use afterimage::delta::{Build, BuiltDelta, DiskExtents, Sink, Source, SourceContent};
use afterimage::error::Result;
use afterimage::extent::{ExtentMap, FrozenMap, Location, merge};
use afterimage::format::delta::{CHUNK_BYTES, Header};
use afterimage::random::Random;
use afterimage::seal::{GroupKeys, SiteKey, SiteKeys};
use afterimage::storage::{Buffer, Slice};
use afterimage::units::{
    BlobId, DiskId, DiskSlot, GroupId, Lsn, SECTOR_BYTES, SectorCount, SectorRange, TimelineId, WallNanos,
    to_usize,
};
use futures::FutureExt;

const BLOCK_SECTORS: u64 = 8;
/// A disk of 16 GiB.
const BLOCKS: u64 = 4 << 20;
/// 20,000 a second.
const WRITES: u64 = 60 * 20_000;
const ZIPF: f64 = 0.99;
/// As many as a layer of a group may have.
const LAYER_EXTENTS: usize = 32 << 10;
const JOURNAL_BYTES: usize = 8 << 20;
const ROUNDS: usize = 5;

/// Ranks by zipf's law, by J. Gray's way of drawing them, as YCSB does.
struct Zipf {
    random: Random,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    fn new() -> Zipf {
        let zeta = |count: u64| (1..=count).map(|rank| (rank as f64).powf(-ZIPF)).sum::<f64>();
        let (two, all) = (zeta(2), zeta(BLOCKS));
        let eta = (1.0 - (2.0 / BLOCKS as f64).powf(1.0 - ZIPF)) / (1.0 - two / all);
        Zipf { random: Random::new(1), zeta: all, eta }
    }

    // A rank is below the number of blocks.
    #[allow(clippy::cast_possible_truncation)]
    fn rank(&mut self) -> u64 {
        let uniform = (self.random.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let scaled = uniform * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(ZIPF) {
            return 1;
        }
        let rank = BLOCKS as f64 * (self.eta * uniform - self.eta + 1.0).powf(1.0 / (1.0 - ZIPF));
        (rank as u64).min(BLOCKS - 1)
    }

    /// A block: neighbours in rank are none on the disk.
    fn block(&mut self) -> u64 {
        self.rank().wrapping_mul(0x9e37_79b9_7f4a_7c15) % BLOCKS
    }
}

/// Where a write's bytes are in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place(u32);

impl Location for Place {
    fn advance(self, sectors: u64) -> Place {
        Place(self.0 + u32::try_from(sectors).expect("within a block"))
    }
}

/// The journal: bytes that do not compress.
struct Memory(Slice);

impl Source for Memory {
    type Location = Place;

    fn content(&self, _: Place) -> SourceContent {
        SourceContent::Data
    }

    async fn read(&self, place: Place, sectors: SectorCount) -> Result<Slice> {
        let start = to_usize(u64::from(place.0) * SECTOR_BYTES);
        Ok(self.0.slice(start..start + to_usize(sectors.bytes())))
    }
}

/// The vault: only the length counts.
#[derive(Default)]
struct Count(u64);

impl Sink for Count {
    fn length(&self) -> u64 {
        self.0
    }

    async fn append(&mut self, piece: Slice) -> Result<()> {
        self.0 += piece.len() as u64;
        Ok(())
    }
}

/// The interval's layers, as a group freezes them.
fn layers() -> Vec<Rc<FrozenMap<Place>>> {
    let (mut zipf, mut layers, mut open) = (Zipf::new(), Vec::new(), ExtentMap::new());
    for write in 0..WRITES {
        let start = zipf.block() * BLOCK_SECTORS;
        let place = write * BLOCK_SECTORS % (JOURNAL_BYTES as u64 / SECTOR_BYTES);
        open.insert(
            SectorRange::new(start, start + BLOCK_SECTORS),
            Place(u32::try_from(place).expect("small")),
        );
        if open.len() >= LAYER_EXTENTS {
            layers.push(Rc::new(std::mem::take(&mut open).freeze()));
        }
    }
    layers.push(Rc::new(open.freeze()));
    layers
}

fn build(memory: &Memory, map: &FrozenMap<Place>, keys: &GroupKeys) -> (BuiltDelta, u64) {
    let header = Header {
        blob: BlobId(1),
        group: GroupId(1),
        timeline: TimelineId(2),
        after: Lsn(0),
        through: Lsn(WRITES),
        marker: Lsn(WRITES),
        created: WallNanos(0),
        intervals: 1,
        chunk_bytes: CHUNK_BYTES,
    };
    let sectors = SectorCount(BLOCKS * BLOCK_SECTORS);
    let disk = DiskExtents { slot: DiskSlot(0), disk: DiskId(1), sectors, extents: map.below(sectors) };
    let build = Build::new(memory, std::iter::once(disk)).expect("something was written");
    let mut sink = Count::default();
    let built =
        build.write(&mut sink, header, keys).now_or_never().expect("memory is ready").expect("no fault");
    (built, sink.0)
}

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The least of some rounds' seconds, and what the last gave.
fn timed<T>(mut round: impl FnMut() -> T) -> (f64, T) {
    let mut once = || {
        let began = cpu_seconds();
        let result = round();
        (cpu_seconds() - began, result)
    };
    let mut least = once();
    for _ in 1..ROUNDS {
        let (seconds, result) = once();
        least = (least.0.min(seconds), result);
    }
    least
}

fn main() {
    let mut bytes = Buffer::zeroed(JOURNAL_BYTES);
    let mut random = Random::new(2);
    bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
    let memory = Memory(bytes.freeze());
    let layers = layers();
    let (seconds, map) = timed(|| merge(&layers, || std::future::ready(())).now_or_never().expect("ready"));
    let distinct: u64 = map.iter().map(|extent| extent.range.bytes()).sum();
    println!(
        "interval: {WRITES} writes of 4 KiB, zipf({ZIPF}), {} layers; {distinct} distinct bytes, {:.1} % of those written",
        layers.len(),
        100.0 * distinct as f64 / (WRITES * BLOCK_SECTORS * SECTOR_BYTES) as f64
    );
    println!("merge of the layers: {seconds:.3} s, {:.2} GB/s", distinct as f64 / 1e9 / seconds);
    let site = SiteKeys::new(vec![SiteKey::drawn([1, 2])]);
    for (what, keys) in [("plain", GroupKeys::default()), ("sealed", GroupKeys::drawn([3, 4], &site))] {
        let (build_seconds, (built, stored)) = timed(|| build(&memory, &map, &keys));
        let over = 100.0 * (stored as f64 / distinct as f64 - 1.0);
        println!(
            "delta, {what}: {} extents, {stored} bytes, {over:+.2} % of the distinct ones; {build_seconds:.3} s, {:.2} GB/s, with the merge {:.2} GB/s",
            built.extents,
            distinct as f64 / 1e9 / build_seconds,
            distinct as f64 / 1e9 / (build_seconds + seconds)
        );
    }
}
