//! Extent maps: sector range → where its newest bytes are.
//!
//! An [`ExtentMap`] is open: inserts split and replace what they overlap, so later writes win. A [`FrozenMap`] is
//! its immutable form, a sorted vector, shared by reads, destage and the delta. Neither knows what a location
//! means, only that it can be advanced ([`Location`]); an extent therefore never spans two inserts, so that what
//! was stored and summed as one unit can still be found as one.
//!
//! Invariant: extents are sorted, disjoint and not empty.

mod merge;
mod ranges;

use std::collections::BTreeMap;

pub use merge::merge;
pub use ranges::Ranges;

use crate::units::{SectorCount, SectorRange};

/// Where the bytes of an extent are.
pub trait Location: Copy + Eq {
    /// Where the sector `sectors` further on in the same extent is.
    #[must_use]
    fn advance(self, sectors: u64) -> Self;
}

/// A range of sectors, and where its bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent<L> {
    /// The sectors.
    pub range: SectorRange,
    /// Where the first of them is.
    pub location: L,
}

impl<L: Location> Extent<L> {
    /// The part of this extent that lies in `window`, if any.
    fn clip(&self, window: SectorRange) -> Option<Extent<L>> {
        let range = self.range.intersection(window)?;
        Some(Extent { range, location: self.location.advance(range.start - self.range.start) })
    }
}

/// A part of a looked-up range: where its bytes are, or `None` where the map has nothing.
pub type Found<L> = (SectorRange, Option<L>);

/// An extent map that takes inserts.
#[derive(Clone, Debug)]
pub struct ExtentMap<L> {
    /// Start → (end, location).
    extents: BTreeMap<u64, (u64, L)>,
}

impl<L> Default for ExtentMap<L> {
    fn default() -> ExtentMap<L> {
        ExtentMap { extents: BTreeMap::new() }
    }
}

impl<L: Location> ExtentMap<L> {
    /// An empty map.
    pub fn new() -> ExtentMap<L> {
        ExtentMap::default()
    }

    /// Number of extents.
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// Whether nothing was inserted.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Says that the newest bytes of `range` are at `location`; whatever was known of it before is forgotten.
    pub fn insert(&mut self, range: SectorRange, location: L) {
        if range.is_empty() {
            return;
        }
        self.remove(range);
        self.extents.insert(range.start, (range.end, location));
    }

    /// Forgets `range`.
    pub fn remove(&mut self, range: SectorRange) {
        if range.is_empty() {
            return;
        }
        // At most one extent starts before the range and reaches into it.
        if let Some((&start, &mut (ref mut end, location))) =
            self.extents.range_mut(..range.start).next_back()
            && *end > range.start
        {
            let old_end = std::mem::replace(end, range.start);
            if old_end > range.end {
                self.extents.insert(range.end, (old_end, location.advance(range.end - start)));
                return;
            }
        }
        // All others start inside; the last of them may reach out at the end.
        while let Some((&start, &(end, location))) = self.extents.range(range.start..range.end).next() {
            self.extents.remove(&start);
            if end > range.end {
                self.extents.insert(range.end, (end, location.advance(range.end - start)));
            }
        }
    }

    /// What is known of `window`, in order and without gaps.
    pub fn lookup(&self, window: SectorRange) -> impl Iterator<Item = Found<L>> + '_ {
        let first = self
            .extents
            .range(..=window.start)
            .next_back()
            .filter(|(_, (end, _))| *end > window.start)
            .map_or(window.start, |(&start, _)| start);
        let overlapping = self
            .extents
            .range(first..)
            .map(|(&start, &(end, location))| Extent { range: SectorRange { start, end }, location });
        Gapless::new(overlapping, window)
    }

    /// All extents, by start.
    pub fn iter(&self) -> impl Iterator<Item = Extent<L>> + '_ {
        self.extents
            .iter()
            .map(|(&start, &(end, location))| Extent { range: SectorRange { start, end }, location })
    }

    /// The immutable form.
    pub fn freeze(self) -> FrozenMap<L> {
        let extents = self.extents.into_iter();
        let extents =
            extents.map(|(start, (end, location))| Extent { range: SectorRange { start, end }, location });
        FrozenMap { extents: extents.collect() }
    }
}

/// An immutable extent map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenMap<L> {
    extents: Box<[Extent<L>]>,
}

impl<L: Location> FrozenMap<L> {
    /// A map of `extents`; `None` unless they are sorted, disjoint and not empty.
    pub fn from_sorted(extents: Vec<Extent<L>>) -> Option<FrozenMap<L>> {
        let disjoint = extents.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start);
        let filled = extents.iter().all(|extent| extent.range.start < extent.range.end);
        (disjoint && filled).then(|| FrozenMap { extents: extents.into_boxed_slice() })
    }

    /// Number of extents.
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// Whether the map knows nothing.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// What is known of `window`, in order and without gaps.
    pub fn lookup(&self, window: SectorRange) -> impl Iterator<Item = Found<L>> + '_ {
        let first = self.extents.partition_point(|extent| extent.range.end <= window.start);
        Gapless::new(self.extents[first..].iter().copied(), window)
    }

    /// Where the extent starts that stands `count` places behind the first one that ends after `sector`; `None` if there are
    /// not so many.
    pub fn start_ahead(&self, sector: u64, count: usize) -> Option<u64> {
        let first = self.extents.partition_point(|extent| extent.range.end <= sector);
        self.extents.get(first + count).map(|extent| extent.range.start)
    }

    /// All extents, by start.
    pub fn iter(&self) -> impl Iterator<Item = Extent<L>> + '_ {
        self.extents.iter().copied()
    }

    /// The extents of a disk of `sectors`, by start: what lies behind its end is left out.
    pub fn below(&self, sectors: SectorCount) -> impl Iterator<Item = Extent<L>> + '_ {
        let disk = SectorRange::new(0, sectors.0);
        self.iter().map_while(move |extent| extent.clip(disk))
    }
}

/// Clips sorted extents to a window and fills the gaps between them with `None`.
struct Gapless<I: Iterator> {
    extents: std::iter::Peekable<I>,
    window: SectorRange,
}

impl<L: Location, I: Iterator<Item = Extent<L>>> Gapless<I> {
    fn new(extents: I, window: SectorRange) -> Gapless<I> {
        Gapless { extents: extents.peekable(), window }
    }
}

impl<L: Location, I: Iterator<Item = Extent<L>>> Iterator for Gapless<I> {
    type Item = Found<L>;

    fn next(&mut self) -> Option<Found<L>> {
        if self.window.is_empty() {
            return None;
        }
        let found = match self.extents.peek().and_then(|extent| extent.clip(self.window)) {
            Some(part) if part.range.start == self.window.start => {
                self.extents.next();
                (part.range, Some(part.location))
            }
            Some(part) => (SectorRange { start: self.window.start, end: part.range.start }, None),
            None => (self.window, None),
        };
        self.window.start = found.0.end;
        Some(found)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

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
}
