//! Which sectors an overlay holds: sorted, disjoint ranges, neighbours joined.

use std::collections::BTreeMap;

use crate::units::SectorRange;

/// A set of sectors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Presence {
    /// Start → end.
    ranges: BTreeMap<u64, u64>,
}

impl Presence {
    pub(super) fn insert(&mut self, range: SectorRange) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Whatever overlaps or touches becomes part of the new range.
        while let Some((&other_start, &other_end)) = self.ranges.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.ranges.remove(&other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.ranges.insert(start, end);
    }

    pub(super) fn remove(&mut self, range: SectorRange) {
        if range.is_empty() {
            // Or a range around it would be cut in two that touch.
            return;
        }
        while let Some((&start, &end)) = self.ranges.range(..range.end).next_back() {
            if end <= range.start {
                break;
            }
            self.ranges.remove(&start);
            if start < range.start {
                self.ranges.insert(start, range.start);
            }
            if end > range.end {
                self.ranges.insert(range.end, end);
            }
        }
    }

    /// The ranges, in order.
    pub(super) fn ranges(&self) -> impl Iterator<Item = SectorRange> {
        self.ranges.iter().map(|(&start, &end)| SectorRange::new(start, end))
    }

    /// Whether any sector of a range is in the set.
    pub(super) fn touches(&self, range: SectorRange) -> bool {
        let last = self.ranges.range(..range.end).next_back();
        last.is_some_and(|(_, &end)| end > range.start) && !range.is_empty()
    }

    /// The parts of a range that are in the set.
    pub(super) fn within(&self, range: SectorRange) -> Vec<SectorRange> {
        self.lookup(range).into_iter().filter(|(_, present)| *present).map(|(part, _)| part).collect()
    }

    /// Sectors in the set.
    pub(super) fn sectors(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// The parts of a range and whether they are in the set: in order, without gaps, alternating.
    pub(super) fn lookup(&self, range: SectorRange) -> Vec<(SectorRange, bool)> {
        let mut parts = Vec::new();
        let mut position = range.start;
        let first = self.ranges.range(..=range.start).next_back().map_or(range.start, |(&start, _)| start);
        for (&start, &end) in self.ranges.range(first..range.end) {
            let Some(present) = SectorRange::new(start, end).intersection(range) else { continue };
            if position < present.start {
                parts.push((SectorRange::new(position, present.start), false));
            }
            parts.push((present, true));
            position = present.end;
        }
        if position < range.end {
            parts.push((SectorRange::new(position, range.end), false));
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::to_usize;

    proptest! {
        #[test]
        fn the_set_is_what_marking_sector_by_sector_gives(
            operations in proptest::collection::vec((0..60_u64, 0..20_u64, any::<bool>()), 0..60),
            (from, count) in (0..60_u64, 0..20_u64),
        ) {
            let mut presence = Presence::default();
            let mut model = [false; 80];
            for (start, count, insert) in operations {
                let range = SectorRange::new(start, start + count);
                if insert { presence.insert(range) } else { presence.remove(range) }
                model[to_usize(range.start)..to_usize(range.end)].fill(insert);
            }
            let window = SectorRange::new(from, from + count);
            let parts = presence.lookup(window);
            prop_assert!(parts.windows(2).all(|pair| pair[0].0.end == pair[1].0.start && pair[0].1 != pair[1].1));
            let flat: Vec<bool> =
                parts.iter().flat_map(|(range, present)| vec![*present; to_usize(range.sectors())]).collect();
            prop_assert_eq!(&flat[..], &model[to_usize(window.start)..to_usize(window.end)]);
            prop_assert_eq!(presence.touches(window), flat.contains(&true));
            let within: u64 = presence.within(window).iter().map(|part| part.sectors()).sum();
            prop_assert_eq!(to_usize(within), flat.iter().filter(|present| **present).count());
            prop_assert_eq!(presence.ranges().map(|range| range.sectors()).sum::<u64>(), presence.sectors());
        }
    }
}
