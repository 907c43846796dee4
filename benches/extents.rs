//! The extent map at a million extents, beside the same as a B-tree of the standard library (the tests' model), in one run: random
//! writes of 4 KiB all over a disk of 1 TiB.
//!
//! `tests/run bench extents`. The goals of part 3 are 32 bytes an extent at rest, and 3 million random inserts a second.

use std::hint::black_box;

use afterimage::extent::{Extent, ExtentMap, FrozenMap, Location};
use afterimage::journal::segments::{SegmentIndex, Source};
use afterimage::units::SectorRange;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use model::Model;

#[allow(dead_code)]
#[path = "../src/extent/model.rs"]
mod model;

const EXTENTS: usize = 1_000_000;
/// Inserts that are timed at a time.
const BATCH: usize = 100_000;
const BLOCK_SECTORS: u64 = 8;
const DISK_BLOCKS: u64 = 1 << 28;

/// Either map.
trait Map: Clone {
    const NAME: &str;

    fn new() -> Self;
    fn insert(&mut self, range: SectorRange, location: Source);
    fn find(&self, range: SectorRange) -> Option<Source>;
    /// The immutable form.
    fn freeze(self) -> impl Sized;
}

impl Map for ExtentMap<Source> {
    const NAME: &str = "tree";

    fn new() -> ExtentMap<Source> {
        ExtentMap::new()
    }

    fn insert(&mut self, range: SectorRange, location: Source) {
        self.insert(range, location);
    }

    fn find(&self, range: SectorRange) -> Option<Source> {
        self.lookup(range).next().and_then(|(_, source)| source)
    }

    fn freeze(self) -> impl Sized {
        self.freeze()
    }
}

impl Map for Model<Source> {
    const NAME: &str = "BTreeMap";

    fn new() -> Model<Source> {
        Model::new()
    }

    fn insert(&mut self, range: SectorRange, location: Source) {
        self.insert(range, location);
    }

    fn find(&self, range: SectorRange) -> Option<Source> {
        self.find(range.start)
    }

    fn freeze(self) -> impl Sized {
        // Both are given back, so that neither is dropped while it is timed.
        (self.iter().collect::<Box<[Extent<Source>]>>(), self)
    }
}

/// Blocks that look drawn, the same in each run.
#[derive(Clone)]
struct Drawn(u64);

impl Iterator for Drawn {
    type Item = SectorRange;

    fn next(&mut self) -> Option<SectorRange> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let start = (self.0 >> 20) % DISK_BLOCKS * BLOCK_SECTORS;
        Some(SectorRange::new(start, start + BLOCK_SECTORS))
    }
}

/// The blocks that a map of a million extents has.
fn held() -> Drawn {
    Drawn(88_172_645_463_325_252)
}

fn fresh() -> Drawn {
    Drawn(362_436_069)
}

fn insert_all<M: Map>(map: &mut M, ranges: impl Iterator<Item = SectorRange>) {
    for (range, sector) in ranges.zip((0..).step_by(8)) {
        map.insert(range, Source::Journal { segment: SegmentIndex(0), sector });
    }
}

fn grown<M: Map>() -> M {
    let mut map = M::new();
    insert_all(&mut map, held().take(EXTENTS));
    map
}

fn measure<M: Map>(criterion: &mut Criterion) {
    let million: M = grown();
    let mut group = criterion.benchmark_group("extents");
    group.sample_size(10).throughput(Throughput::Elements(BATCH as u64));
    let mut over = million.clone();
    let mut again = held().take(EXTENTS).cycle();
    group.bench_function(format!("replace one of a million/{}", M::NAME), |bencher| {
        bencher.iter(|| insert_all(&mut over, again.by_ref().take(BATCH)));
    });
    drop(over);
    group.bench_function(format!("insert beside a million/{}", M::NAME), |bencher| {
        let insert = |mut map: M| {
            insert_all(&mut map, fresh().take(BATCH));
            map
        };
        // A clone would have no room in its leaves.
        bencher.iter_batched(grown::<M>, insert, BatchSize::PerIteration);
    });
    group.bench_function(format!("look one of a million up/{}", M::NAME), |bencher| {
        bencher.iter(|| held().take(BATCH).filter_map(|range| million.find(range)).count());
    });
    group.throughput(Throughput::Elements(EXTENTS as u64));
    group.bench_function(format!("insert a million, from nothing/{}", M::NAME), |bencher| {
        bencher.iter_with_large_drop(grown::<M>);
    });
    group.bench_function(format!("freeze a million/{}", M::NAME), |bencher| {
        bencher.iter_batched(|| million.clone(), |map| black_box(map).freeze(), BatchSize::PerIteration);
    });
    group.finish();
}

/// What the C library says is in use, with its own share of each allocation.
fn allocated_bytes() -> usize {
    // SAFETY: it takes nothing, and gives numbers.
    unsafe { libc::mallinfo2() }.uordblks
}

/// What `make` takes for each of a million extents, as allocated, and as the map itself says, if it does.
fn bytes_an_extent<M>(what: &str, make: impl FnOnce() -> M, own: impl FnOnce(&M) -> Option<usize>) {
    let before = allocated_bytes();
    let map = make();
    let an_extent = |bytes: usize| bytes as f64 / EXTENTS as f64;
    let own =
        own(&map).map_or_else(String::new, |bytes| format!("{:.1} by its own account, ", an_extent(bytes)));
    println!("{what}: {own}{:.1} bytes an extent as allocated", an_extent(allocated_bytes() - before));
}

fn memory(_: &mut Criterion) {
    let in_order =
        || (0..EXTENTS as u64).map(|block| SectorRange::new(16 * block, 16 * block + BLOCK_SECTORS));
    let open = |map: &ExtentMap<Source>| Some(map.heap_bytes());
    bytes_an_extent("tree, in any order", grown::<ExtentMap<Source>>, open);
    let mut map = ExtentMap::new();
    insert_all(&mut map, in_order());
    bytes_an_extent("tree, in order", || map.clone(), open);
    let frozen = |map: &FrozenMap<Source>| Some(map.heap_bytes());
    let extents: Vec<_> = map.iter().collect();
    bytes_an_extent("tree, frozen from a list", || FrozenMap::from_sorted(extents).expect("sorted"), frozen);
    bytes_an_extent("BTreeMap, in any order", grown::<Model<Source>>, |_| None);
}

criterion_group!(benches, memory, measure::<ExtentMap<Source>>, measure::<Model<Source>>);
criterion_main!(benches);
