//! What extent maps promise, and that they are what their model is.

use proptest::prelude::*;

use super::model::Model;
use super::*;
use crate::random::Random;
use crate::units::to_usize;

#[test]
fn what_lies_behind_a_disks_end_is_left_out_and_what_crosses_it_is_cut() {
    let mut map = ExtentMap::new();
    for (start, end) in [(0, 8), (10, 20), (30, 40)] {
        map.insert(SectorRange::new(start, end), At(100 + start));
    }
    let map = map.freeze();
    let below = |sectors| map.below(SectorCount(sectors)).collect::<Vec<_>>();
    let extent = |start, end| Extent { range: SectorRange::new(start, end), location: At(100 + start) };
    assert_eq!(below(15), [extent(0, 8), extent(10, 15)]);
    assert_eq!(below(10), [extent(0, 8)]);
    assert_eq!(below(u64::MAX), map.iter().collect::<Vec<_>>());
    assert!(below(0).is_empty());
}

/// A place that is just a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At(pub u64);

impl Location for At {
    fn advance(self, sectors: u64) -> At {
        At(self.0 + sectors)
    }
}

const SECTORS: u64 = 64;

/// Range to insert, or to remove where the location is `None`.
fn operations() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
    proptest::collection::vec((0..SECTORS, 1..24_u64, any::<bool>()), 0..60)
}

fn apply(operations: &[(u64, u64, bool)]) -> (ExtentMap<At>, Vec<Option<At>>) {
    let mut map = ExtentMap::new();
    let mut model = vec![None; 128];
    for (index, &(start, count, insert)) in operations.iter().enumerate() {
        let range = SectorRange::new(start, start + count);
        let location = At(1000 * (index as u64 + 1));
        if insert {
            map.insert(range, location);
        } else {
            map.remove(range);
        }
        for sector in range.start..range.end {
            let value = insert.then(|| location.advance(sector - start));
            model[usize::try_from(sector).expect("small")] = value;
        }
    }
    (map, model)
}

fn flatten(found: impl Iterator<Item = Found<At>>) -> Vec<Option<At>> {
    found
        .flat_map(|(range, at)| (0..range.sectors()).map(move |index| at.map(|at| at.advance(index))))
        .collect()
}

proptest! {
    #[test]
    fn a_map_is_what_inserting_sector_by_sector_gives(operations in operations()) {
        let (map, model) = apply(&operations);
        let whole = SectorRange::new(0, 128);
        prop_assert_eq!(flatten(map.lookup(whole)), model.clone());
        let sorted: Vec<_> = map.iter().collect();
        prop_assert!(FrozenMap::from_sorted(sorted).is_some());
        prop_assert_eq!(flatten(map.freeze().lookup(whole)), model);
    }

    #[test]
    fn a_window_shows_just_its_part(operations in operations(), start in 0..100_u64, count in 0..28_u64) {
        let (map, model) = apply(&operations);
        let window = SectorRange::new(start, start + count);
        let expected = &model[usize::try_from(start).expect("small")..][..usize::try_from(count).expect("small")];
        prop_assert_eq!(flatten(map.lookup(window)), expected);
        prop_assert_eq!(flatten(map.freeze().lookup(window)), expected);
    }
}

#[test]
fn unsorted_overlapping_or_empty_extents_are_no_map() {
    let extent = |start, end| Extent { range: SectorRange { start, end }, location: At(0) };
    assert!(FrozenMap::from_sorted(vec![extent(4, 8), extent(0, 4)]).is_none());
    assert!(FrozenMap::from_sorted(vec![extent(0, 5), extent(4, 8)]).is_none());
    assert!(FrozenMap::from_sorted(vec![extent(0, 0)]).is_none());
    assert!(FrozenMap::from_sorted(vec![extent(0, 4), extent(4, 8)]).is_some());
}

/// What is done to a map and to its model.
#[derive(Clone, Debug)]
enum Deed {
    Insert(SectorRange),
    Remove(SectorRange),
    /// So many inserts of so many sectors each, one such step after the other, in a scattered order or in order.
    Fill {
        start: u64,
        count: u64,
        sectors: u64,
        step: u64,
        is_scattered: bool,
    },
}

impl Deed {
    fn ranges(&self) -> Vec<SectorRange> {
        match *self {
            Deed::Insert(range) | Deed::Remove(range) => vec![range],
            Deed::Fill { start, count, sectors, step, is_scattered } => {
                let place = |index| if is_scattered { index * 7919 % count } else { index };
                let starts = (0..count).map(|index| start + step * place(index));
                starts.map(|start| SectorRange::new(start, start + sectors)).collect()
            }
        }
    }
}

/// Deeds on a disk where sectors lie `unit` apart: at the largest unit extents are as long as leaves reach, and longer.
fn deeds() -> impl Strategy<Value = (u64, Vec<Deed>)> {
    (prop_oneof![Just(1_u64), Just(8), Just(1 << 29), Just((1 << 32) - 1), Just(1 << 33)]).prop_flat_map(
        |unit| {
            let range = (0..40_000_u64, prop_oneof![1..24_u64, 1..2_000_u64, 1..30_000_u64], 0..3_u64)
                .prop_map(move |(start, count, odd)| {
                    SectorRange::new(unit * start + odd, unit * (start + count) + 2 * odd)
                });
            let fill = (0..20_000_u64, 1..3_000_u64, 1..3_u64, 1..4_u64, any::<bool>());
            let fill = fill.prop_map(move |(start, count, sectors, step, is_scattered)| Deed::Fill {
                start: unit * start,
                count,
                sectors: unit * sectors,
                step: unit * step,
                is_scattered,
            });
            let deed = prop_oneof![range.clone().prop_map(Deed::Insert), range.prop_map(Deed::Remove), fill];
            (Just(unit), proptest::collection::vec(deed, 1..12))
        },
    )
}

fn carry_out(deeds: &[Deed]) -> (ExtentMap<At>, Model<At>) {
    let (mut map, mut model) = (ExtentMap::new(), Model::new());
    for (deed, number) in deeds.iter().zip(1..) {
        for (range, part) in deed.ranges().into_iter().zip(0..) {
            if let Deed::Remove(_) = deed {
                map.remove(range);
                model.remove(range);
            } else {
                let location = At((number << 12 | part) << 47);
                map.insert(range, location);
                model.insert(range, location);
            }
        }
        map.spans.check();
    }
    (map, model)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn a_map_is_what_its_model_is((unit, deeds) in deeds(), looks in proptest::collection::vec((0..70_000_u64, 0..100_u64), 20)) {
        let (map, model) = carry_out(&deeds);
        let expected: Vec<_> = model.iter().collect();
        prop_assert_eq!(map.iter().collect::<Vec<_>>(), expected.clone());
        let again = FrozenMap::from_sorted(map.iter().collect()).expect("sorted");
        again.spans.check();
        let frozen = map.clone().freeze();
        prop_assert_eq!(&again, &frozen);
        let edges = expected.iter().flat_map(|extent| [extent.range.start, extent.range.end]).take(200);
        for sector in edges.chain(looks.iter().map(|(sector, _)| unit * sector)) {
            for sector in [sector.saturating_sub(1), sector, sector + 1] {
                let window = SectorRange::new(sector, sector + 1);
                let found = (window, model.find(sector));
                prop_assert!(map.lookup(window).eq([found]));
                prop_assert!(frozen.lookup(window).eq([found]));
                prop_assert!(again.lookup(window).eq([found]));
            }
        }
        let extents: Vec<_> = frozen.iter().collect();
        for (sector, count) in looks {
            let ahead = extents.iter().filter(|extent| extent.range.end > unit * sector).nth(to_usize(50 * count));
            prop_assert_eq!(frozen.start_ahead(unit * sector, to_usize(50 * count)), ahead.map(|extent| extent.range.start));
        }
    }
}

#[test]
fn a_large_map_in_any_order_is_what_its_model_is() {
    let mut random = Random::new(5);
    let (mut map, mut model) = (ExtentMap::new(), Model::new());
    for round in 0..4_u64 {
        for index in 0..60_000_u64 {
            let start = random.below(400_000);
            // Mostly what guests write, seldom what swallows some leaves.
            let sectors =
                if random.below(1000) == 0 { 1 + random.below(20_000) } else { 1 + random.below(9) };
            let (range, location) =
                (SectorRange::new(start, start + sectors), At((round << 32 | index) << 24));
            map.insert(range, location);
            model.insert(range, location);
        }
        map.spans.check();
        assert!(map.iter().eq(model.iter()));
        for range in
            [SectorRange::new(0, 10 + round), SectorRange::new(100_000 * round, 100_000 * round + 30_000)]
        {
            map.remove(range);
            model.remove(range);
        }
    }
    assert!(map.len() > 40_000 && map.iter().eq(model.iter()));
    map.remove(SectorRange::new(0, u64::MAX));
    map.spans.check();
    assert!(map.is_empty());
}

#[test]
fn a_map_takes_little_memory_whatever_it_was_before() {
    let mut map = ExtentMap::new();
    assert_eq!(map.heap_bytes(), 0);
    let fill = |map: &mut ExtentMap<At>| {
        for index in 0..100_000 {
            map.insert(
                SectorRange::new(8 * (index * 7919 % 100_000), 8 * (index * 7919 % 100_000) + 4),
                At(0),
            );
        }
    };
    fill(&mut map);
    let (extents, full) = (map.len(), map.heap_bytes());
    assert!(full / extents <= 8 + size_of::<At>() + 6, "{full} bytes for {extents} extents");
    // A large write over almost everything leaves no leaves that are almost empty.
    map.insert(SectorRange::new(8, 8 * 99_999), At(0));
    assert_eq!(map.len(), 3);
    assert!(map.heap_bytes() < full / 100, "{} bytes are left of {full}", map.heap_bytes());
    map.remove(SectorRange::new(0, u64::MAX));
    fill(&mut map);
    // Neither do holes, each of which leaves one extent in a hundred.
    for hundred in 0..1000 {
        map.remove(SectorRange::new(800 * hundred + 8, 800 * (hundred + 1)));
    }
    assert_eq!(map.len(), 1000);
    assert!(map.heap_bytes() < 64 * 1000, "{} bytes", map.heap_bytes());
}

#[test]
fn zeros_over_the_largest_disk_are_one_extent_and_so_is_what_cuts_leave_of_them() {
    let end = (1 << 63) / 512;
    let mut map = ExtentMap::new();
    map.insert(SectorRange::new(0, end), At(0));
    assert_eq!((map.len(), map.iter().count()), (1, 1));
    map.insert(SectorRange::new(end / 2, end / 2 + 8), At(1));
    map.remove(SectorRange::new(end - 8, u64::MAX));
    let extent = |start, end, at| Extent { range: SectorRange::new(start, end), location: At(at) };
    let left =
        [extent(0, end / 2, 0), extent(end / 2, end / 2 + 8, 1), extent(end / 2 + 8, end - 8, end / 2 + 8)];
    assert!(map.iter().eq(left));
    assert_eq!(map.freeze().start_ahead(5, 2), Some(end / 2 + 8));
}
