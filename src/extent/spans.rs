//! All extents of a map: a tree, and beside it the few that are longer than a leaf reaches, as only zeros can be.
//!
//! Invariant: no two overlap, whichever side they are on, and what is left of a long one that was cut goes to the tree as soon as that takes
//! it: so there are no more long ones than the disk has times a leaf's reach.

use super::leaf::REACH;
use super::tree::{self, Tree};
use super::{Extent, Location};
use crate::units::SectorRange;

#[derive(Clone, Debug)]
pub(super) struct Spans<L> {
    tree: Tree<L>,
    /// By start.
    long: Vec<Extent<L>>,
}

impl<L> Spans<L> {
    pub(super) const EMPTY: Spans<L> = Spans { tree: Tree::EMPTY, long: Vec::new() };

    pub(super) fn len(&self) -> usize {
        self.tree.len() + self.long.len()
    }

    /// Memory that they take on the heap, without what the allocator adds.
    pub(super) fn heap_bytes(&self) -> usize {
        self.tree.heap_bytes() + self.long.capacity() * size_of::<Extent<L>>()
    }
}

impl<L: Location> Spans<L> {
    /// Of extents that ascend, are disjoint and not empty.
    pub(super) fn from_sorted(extents: Vec<Extent<L>>) -> Spans<L> {
        let is_long = |extent: &&Extent<L>| extent.range.sectors() > REACH;
        let long = extents.iter().filter(is_long).copied().collect();
        let short = extents.into_iter().filter(|extent| extent.range.sectors() <= REACH);
        Spans { tree: Tree::from_sorted(short), long }
    }

    /// Says that the newest bytes of `range`, which is not empty, are at `location`.
    #[inline]
    pub(super) fn insert(&mut self, range: SectorRange, location: L) {
        let extent = Extent { range, location };
        if !self.long.is_empty() {
            self.cut_long(range);
        }
        if range.sectors() > REACH {
            self.tree.remove(range);
        }
        self.add(extent);
    }

    /// Forgets `range`.
    pub(super) fn remove(&mut self, range: SectorRange) {
        self.cut_long(range);
        self.tree.remove(range);
    }

    /// Adds an extent where no long one is.
    #[inline]
    fn add(&mut self, extent: Extent<L>) {
        if extent.range.sectors() <= REACH {
            self.tree.insert(extent);
        } else {
            let index = self.long.partition_point(|long| long.range.start < extent.range.start);
            self.long.insert(index, extent);
        }
    }

    /// Takes `range` out of the long ones.
    fn cut_long(&mut self, range: SectorRange) {
        let first = self.long.partition_point(|long| long.range.end <= range.start);
        let end = self.long.partition_point(|long| long.range.start < range.end);
        if first >= end {
            return;
        }
        let cut: Vec<Extent<L>> = self.long.drain(first..end).collect();
        for extent in cut {
            let before = SectorRange::new(0, range.start);
            let behind = SectorRange::new(range.end, u64::MAX);
            [before, behind].into_iter().filter_map(|side| extent.clip(side)).for_each(|rest| self.add(rest));
        }
    }

    pub(super) fn iter(&self) -> Iter<'_, L> {
        Iter { short: self.tree.iter(), ahead: None, long: &self.long }
    }

    /// The extents that end after `sector`.
    #[inline]
    pub(super) fn iter_after(&self, sector: u64) -> Iter<'_, L> {
        let first = self.long.partition_point(|long| long.range.end <= sector);
        Iter { short: self.tree.iter_after(sector), ahead: None, long: &self.long[first..] }
    }

    /// Panics unless all that is said of it above holds.
    #[cfg(test)]
    pub(super) fn check(&self) {
        self.tree.check();
        assert!(self.long.iter().all(|long| long.range.sectors() > REACH));
        let extents: Vec<_> = self.iter().collect();
        assert_eq!(extents.len(), self.len());
        assert!(extents.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
    }
}

/// Extents by start.
pub(super) struct Iter<'a, L> {
    short: tree::Iter<'a, L>,
    /// A short one that comes behind a long one.
    ahead: Option<Extent<L>>,
    long: &'a [Extent<L>],
}

impl<L: Location> Iterator for Iter<'_, L> {
    type Item = Extent<L>;

    #[inline]
    fn next(&mut self) -> Option<Extent<L>> {
        let short = self.ahead.take().or_else(|| self.short.next());
        match (self.long.split_first(), short) {
            (Some((long, rest)), short) if short.is_none_or(|short| long.range.start < short.range.start) => {
                self.ahead = short;
                self.long = rest;
                Some(*long)
            }
            (_, short) => short,
        }
    }

    #[inline]
    fn nth(&mut self, count: usize) -> Option<Extent<L>> {
        if self.long.is_empty() && self.ahead.is_none() {
            return self.short.nth(count);
        }
        (0..count).try_for_each(|_| self.next().map(drop))?;
        self.next()
    }
}
