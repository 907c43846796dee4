//! Sets of sectors: what is lacking, without where anything is.
//!
//! Invariant: ranges ascend, are not empty, and have gaps between them, so that equal sets are equal vectors.

use crate::units::SectorRange;

/// A set of sectors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<SectorRange>);

impl Ranges {
    /// The sectors of `ranges`, which come in any order and may overlap.
    pub fn of(ranges: impl IntoIterator<Item = SectorRange>) -> Ranges {
        let mut sorted: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        sorted.sort_unstable_by_key(|range| range.start);
        let mut joined: Vec<SectorRange> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Ranges(joined)
    }

    /// The sectors of either.
    #[must_use]
    pub fn union(self, other: impl IntoIterator<Item = SectorRange>) -> Ranges {
        Ranges::of(self.0.into_iter().chain(other))
    }

    /// Those that are not in `taken`, which ascends and does not overlap.
    #[must_use]
    pub fn without(&self, taken: impl IntoIterator<Item = SectorRange>) -> Ranges {
        let mut taken = taken.into_iter().peekable();
        let mut left = Vec::with_capacity(self.0.len());
        for &range in &self.0 {
            let mut start = range.start;
            while taken.next_if(|taken| taken.end <= start).is_some() {}
            // One that reaches past this range may reach into the next one.
            while let Some(&next) = taken.peek().filter(|next| next.start < range.end) {
                if start < next.start {
                    left.push(SectorRange::new(start, next.start));
                }
                start = start.max(next.end).min(range.end);
                if next.end > range.end {
                    break;
                }
                taken.next();
            }
            if start < range.end {
                left.push(SectorRange::new(start, range.end));
            }
        }
        Ranges(left)
    }

    /// The same sectors and some more, in `count` ranges at most (one at least): neighbours are joined across the smallest gaps.
    #[must_use]
    pub fn coarsened(self, count: usize) -> Ranges {
        let joins = self.0.len().saturating_sub(count.max(1));
        if joins == 0 {
            return self;
        }
        let mut gaps: Vec<_> = self.0.windows(2).map(|pair| (pair[1].start - pair[0].end, pair[0])).collect();
        gaps.sort_unstable_by_key(|(gap, before)| (*gap, before.start));
        let bridges =
            gaps.iter().take(joins).map(|(gap, before)| SectorRange::new(before.end, before.end + gap));
        let bridges: Vec<_> = bridges.collect();
        self.union(bridges)
    }

    /// Whether one of them is in `range`.
    pub fn meets(&self, range: SectorRange) -> bool {
        let next = self.0.partition_point(|own| own.end <= range.start);
        !range.is_empty() && self.0.get(next).is_some_and(|own| own.start < range.end)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn sectors(&self) -> u64 {
        self.0.iter().map(|range| range.sectors()).sum()
    }

    /// The ranges, ascending.
    pub fn as_slice(&self) -> &[SectorRange] {
        &self.0
    }

    /// The same in pieces of at most so many sectors.
    pub fn pieces(&self, sectors_max: u64) -> impl Iterator<Item = SectorRange> + '_ {
        self.0.iter().flat_map(move |range| {
            (0..range.sectors().div_ceil(sectors_max)).map(move |index| {
                let start = range.start + index * sectors_max;
                SectorRange::new(start, range.end.min(start + sectors_max))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(ends: &[(u64, u64)]) -> Vec<SectorRange> {
        ends.iter().map(|&(start, end)| SectorRange::new(start, end)).collect()
    }

    fn bits(ranges: &[SectorRange]) -> u64 {
        (0..64)
            .filter(|&bit| ranges.iter().any(|range| range.start <= bit && bit < range.end))
            .fold(0, |all, bit| all | 1 << bit)
    }

    #[test]
    fn the_smallest_gaps_are_joined_first() {
        let set = Ranges::of(ranges(&[(0, 1), (5, 6), (7, 8), (20, 30)]));
        assert_eq!(set.clone().coarsened(4), set);
        assert_eq!(set.clone().coarsened(3).as_slice(), ranges(&[(0, 1), (5, 8), (20, 30)]));
        assert_eq!(set.clone().coarsened(2).as_slice(), ranges(&[(0, 8), (20, 30)]));
        assert_eq!(set.coarsened(0).as_slice(), ranges(&[(0, 30)]));
    }

    #[test]
    fn pieces_are_cut_to_what_is_asked_for() {
        let set = Ranges::of(ranges(&[(0, 5), (8, 10)]));
        assert_eq!(set.pieces(2).collect::<Vec<_>>(), ranges(&[(0, 2), (2, 4), (4, 5), (8, 10)]));
    }

    fn is_set(ranges: &[SectorRange]) -> bool {
        let filled = ranges.iter().all(|range| !range.is_empty());
        filled && ranges.windows(2).all(|pair| pair[0].end < pair[1].start)
    }

    proptest! {
        #[test]
        fn sets_are_as_bits_are(
            a in proptest::collection::vec((0_u64..60, 0_u64..8), 0..8),
            b in proptest::collection::vec((0_u64..60, 0_u64..8), 0..8),
        ) {
            let set = |pairs: &[(u64, u64)]| {
                Ranges::of(pairs.iter().map(|&(start, count)| SectorRange::new(start, (start + count).min(64))))
            };
            let (a, b) = (set(&a), set(&b));
            prop_assert!(is_set(a.as_slice()));
            let left = a.without(b.as_slice().iter().copied());
            prop_assert!(is_set(left.as_slice()));
            prop_assert_eq!(bits(left.as_slice()), bits(a.as_slice()) & !bits(b.as_slice()));
            let both = a.clone().union(b.as_slice().iter().copied());
            prop_assert_eq!(bits(both.as_slice()), bits(a.as_slice()) | bits(b.as_slice()));
            let coarse = both.clone().coarsened(2);
            prop_assert!(coarse.as_slice().len() <= 2);
            prop_assert_eq!(bits(coarse.as_slice()) & bits(both.as_slice()), bits(both.as_slice()));
        }
    }
}
