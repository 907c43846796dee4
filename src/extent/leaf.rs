//! A leaf of the tree: neighbouring extents, in columns.
//!
//! ```text
//!   base ─┬─ starts     u32 from base  │ 0 │ 8 │ 24 │ …
//!         ├─ sectors    u32            │ 8 │ 8 │  1 │ …
//!         └─ locations  L              │   │   │    │ …
//! ```
//!
//! A look counts the starts below a sector instead of halving: what it reads lies together, and no read waits for the one before.
//!
//! Invariant: extents ascend, are disjoint and not empty; the first starts at the base, and the last ends at most [`REACH`] behind it, so
//! that what is left of an extent that was cut is within reach, too.

use super::{Extent, Location};
use crate::units::SectorRange;

/// How far behind a leaf's base its last extent may end, in sectors: 2 TiB.
pub(super) const REACH: u64 = u32::MAX as u64;

/// Extents of a leaf, of which one more makes two leaves.
pub(super) const EXTENTS_MAX: usize = 96;

/// A leaf grows by so many, so that hardly any of its memory lies idle.
const GROWTH: usize = 16;

#[derive(Clone, Debug)]
pub(super) struct Leaf<L> {
    base: u64,
    starts: Vec<u32>,
    sectors: Vec<u32>,
    locations: Vec<L>,
}

impl<L: Location> Leaf<L> {
    /// A leaf of at least one extent; they ascend, are disjoint, and the last ends within [`REACH`] of the first one's start.
    pub(super) fn of(extents: &[Extent<L>]) -> Leaf<L> {
        let base = extents[0].range.start;
        Leaf {
            base,
            starts: extents.iter().map(|extent| near(extent.range.start - base)).collect(),
            sectors: extents.iter().map(|extent| near(extent.range.sectors())).collect(),
            locations: extents.iter().map(|extent| extent.location).collect(),
        }
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= EXTENTS_MAX
    }

    /// Where the last extent ends.
    pub(super) fn end(&self) -> u64 {
        self.len().checked_sub(1).map_or(self.base, |last| self.end_of(last))
    }

    /// Memory that its columns take.
    pub(super) fn heap_bytes(&self) -> usize {
        self.starts.capacity() * size_of::<u32>()
            + self.sectors.capacity() * size_of::<u32>()
            + self.locations.capacity() * size_of::<L>()
    }

    /// Whether an extent of `range` may be added to those that are here.
    pub(super) fn reaches(&self, range: SectorRange) -> bool {
        // What starts at or behind the base does not move it: the last extent, which lies elsewhere in memory, is within reach already.
        let end = if range.start < self.base { self.end().max(range.end) } else { range.end };
        end - self.base.min(range.start) <= REACH
    }

    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<Extent<L>> {
        let start = self.base + u64::from(*self.starts.get(index)?);
        let range = SectorRange { start, end: start + u64::from(self.sectors[index]) };
        Some(Extent { range, location: self.locations[index] })
    }

    #[inline]
    fn start_of(&self, index: usize) -> u64 {
        self.base + u64::from(self.starts[index])
    }

    #[inline]
    fn end_of(&self, index: usize) -> u64 {
        self.start_of(index) + u64::from(self.sectors[index])
    }

    /// How many extents start before `sector`.
    #[inline]
    fn count_before(&self, sector: u64) -> usize {
        let Some(offset) = sector.checked_sub(self.base) else { return 0 };
        let offset = u32::try_from(offset).unwrap_or(u32::MAX);
        let count = |starts: &[u32]| starts.iter().map(|&start| u32::from(start < offset)).sum::<u32>();
        let (sixteens, rest) = self.starts.as_chunks::<16>();
        let before: u32 = sixteens.iter().map(|starts| count(starts)).sum::<u32>() + count(rest);
        before as usize
    }

    /// The first extent that ends after `sector`; as many as there are if none does.
    #[inline]
    pub(super) fn first_after(&self, sector: u64) -> usize {
        let before = self.count_before(sector);
        if before > 0 && self.end_of(before - 1) > sector { before - 1 } else { before }
    }

    /// Says that the newest bytes of `range`, which is within reach, are at `location`.
    #[inline]
    pub(super) fn insert(&mut self, range: SectorRange, location: L) {
        if range.start < self.base {
            self.rebase(range.start);
        }
        let (inside, tail) = self.clear(range);
        let extent = Extent { range, location };
        match tail {
            Some(tail) => {
                self.add(inside.start, extent);
                self.add(inside.start + 1, tail);
            }
            None if inside.is_empty() => self.add(inside.start, extent),
            None => {
                self.set(inside.start, extent);
                self.drop_extents(inside.start + 1..inside.end);
            }
        }
    }

    /// Forgets `range`.
    pub(super) fn remove(&mut self, range: SectorRange) {
        let (inside, tail) = self.clear(range);
        match tail {
            Some(tail) => self.add(inside.start, tail),
            None => self.drop_extents(inside),
        }
        if let Some(&first) = self.starts.first().filter(|&&first| first > 0) {
            self.rebase(self.base + u64::from(first));
        }
    }

    /// Cuts what crosses the ends of `range`; returns which extents lie inside, and what is left behind the range of one that crosses both
    /// ends.
    #[inline]
    fn clear(&mut self, range: SectorRange) -> (std::ops::Range<usize>, Option<Extent<L>>) {
        let first = self.count_before(range.start);
        let mut tail = None;
        if let Some(before) = first.checked_sub(1)
            && self.end_of(before) > range.start
        {
            tail = self.behind(before, range.end);
            self.sectors[before] = near(range.start - self.start_of(before));
        }
        let mut end = first;
        while end < self.len() && self.end_of(end) <= range.end {
            end += 1;
        }
        if end < self.len() && self.start_of(end) < range.end {
            let rest = self.behind(end, range.end).expect("it ends behind the range");
            self.set(end, rest);
        }
        (first..end, tail)
    }

    /// The part of an extent that lies behind `sector`, if any.
    fn behind(&self, index: usize, sector: u64) -> Option<Extent<L>> {
        let Extent { range, location } = self.get(index)?;
        (range.end > sector).then(|| Extent {
            range: SectorRange { start: sector, end: range.end },
            location: location.advance(sector - range.start),
        })
    }

    #[inline]
    fn set(&mut self, index: usize, extent: Extent<L>) {
        self.starts[index] = near(extent.range.start - self.base);
        self.sectors[index] = near(extent.range.sectors());
        self.locations[index] = extent.location;
    }

    #[inline]
    fn add(&mut self, index: usize, extent: Extent<L>) {
        if self.len() == self.starts.capacity() {
            self.grow();
        }
        self.starts.insert(index, near(extent.range.start - self.base));
        self.sectors.insert(index, near(extent.range.sectors()));
        self.locations.insert(index, extent.location);
    }

    #[cold]
    fn grow(&mut self) {
        let by = self.len().clamp(3, GROWTH);
        self.starts.reserve_exact(by);
        self.sectors.reserve_exact(by);
        self.locations.reserve_exact(by);
    }

    fn drop_extents(&mut self, indices: std::ops::Range<usize>) {
        self.starts.drain(indices.clone());
        self.sectors.drain(indices.clone());
        self.locations.drain(indices);
        if self.starts.capacity() > 4 * (self.len() + GROWTH) {
            self.trim(GROWTH);
        }
    }

    /// Gives memory back but for `spare` extents.
    fn trim(&mut self, spare: usize) {
        let capacity = self.len() + spare;
        self.starts.shrink_to(capacity);
        self.sectors.shrink_to(capacity);
        self.locations.shrink_to(capacity);
    }

    fn rebase(&mut self, base: u64) {
        let old = std::mem::replace(&mut self.base, base);
        for start in &mut self.starts {
            *start = near(old + u64::from(*start) - base);
        }
    }

    /// Takes the upper half away, as a leaf of its own.
    pub(super) fn split(&mut self) -> Leaf<L> {
        let middle = self.len() / 2;
        let mut upper = Leaf {
            base: self.base,
            starts: upper_half(&mut self.starts, middle),
            sectors: upper_half(&mut self.sectors, middle),
            locations: upper_half(&mut self.locations, middle),
        };
        upper.rebase(self.base + u64::from(upper.starts[0]));
        self.trim(GROWTH);
        upper
    }

    /// Whether this and `next`, which comes behind it, are small enough for one leaf.
    pub(super) fn may_join(&self, next: &Leaf<L>) -> bool {
        self.len() + next.len() <= EXTENTS_MAX / 2 && next.end() - self.base <= REACH
    }

    /// Takes what is in `next`, which comes behind it.
    pub(super) fn join(&mut self, next: &Leaf<L>) {
        for extent in (0..next.len()).filter_map(|index| next.get(index)) {
            self.add(self.len(), extent);
        }
    }
}

fn upper_half<T: Copy>(column: &mut Vec<T>, middle: usize) -> Vec<T> {
    let mut upper = Vec::with_capacity(column.len() - middle + GROWTH);
    upper.extend_from_slice(&column[middle..]);
    column.truncate(middle);
    upper
}

#[inline]
fn near(sectors: u64) -> u32 {
    u32::try_from(sectors).expect("a leaf's extents are within its reach")
}
