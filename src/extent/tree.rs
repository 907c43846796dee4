//! A tree of three levels: a root of branches, a branch of leaves, a leaf of extents.
//!
//! ```text
//!   root ─▶ branch ─▶ leaf ─▶ extent
//!    any      ≤ 128     ≤ 96
//! ```
//!
//! An insert is one look in two small indices and one in a leaf, where what lies behind is moved. Only what crosses leaves takes longer.
//! Leaves are split when they are full, and joined when little is left in them.
//!
//! Invariant: no branch and no leaf is empty; an index has of each below it the first sector, which is exact; leaves are as `leaf.rs` says,
//! and disjoint.

use std::slice;

use super::leaf::{EXTENTS_MAX, Leaf, REACH};
use super::{Extent, Location};
use crate::units::SectorRange;

/// Leaves of a branch, of which one more makes two branches.
const LEAVES_MAX: usize = 128;

/// What lies below an index, and where each begins.
#[derive(Clone, Debug)]
struct Level<T> {
    firsts: Vec<u64>,
    below: Vec<T>,
}

impl<T> Level<T> {
    const EMPTY: Level<T> = Level { firsts: Vec::new(), below: Vec::new() };

    fn of(first: u64, below: T) -> Level<T> {
        Level { firsts: vec![first], below: vec![below] }
    }

    /// The last that begins at or before `sector`; the first one if none does.
    #[inline]
    fn find(&self, sector: u64) -> usize {
        self.firsts.partition_point(|&first| first <= sector).saturating_sub(1)
    }

    fn insert(&mut self, index: usize, first: u64, below: T) {
        self.firsts.insert(index, first);
        self.below.insert(index, below);
    }

    fn remove(&mut self, index: usize) -> T {
        self.firsts.remove(index);
        let below = self.below.remove(index);
        if self.below.capacity() > 4 * (self.below.len() + 1) {
            self.firsts.shrink_to(2 * self.below.len());
            self.below.shrink_to(2 * self.below.len());
        }
        below
    }

    fn split(&mut self) -> Level<T> {
        let middle = self.below.len() / 2;
        Level { firsts: self.firsts.split_off(middle), below: self.below.split_off(middle) }
    }

    fn heap_bytes(&self) -> usize {
        self.firsts.capacity() * size_of::<u64>() + self.below.capacity() * size_of::<T>()
    }
}

type Branch<L> = Level<Leaf<L>>;

/// Where a leaf is.
#[derive(Clone, Copy)]
struct Spot {
    branch: usize,
    leaf: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Tree<L> {
    root: Level<Branch<L>>,
    extents: usize,
    /// Memory that leaves and branches take; the root is looked at when it is asked for.
    below_bytes: usize,
}

impl<L> Tree<L> {
    pub(super) const EMPTY: Tree<L> = Tree { root: Level::EMPTY, extents: 0, below_bytes: 0 };

    pub(super) fn len(&self) -> usize {
        self.extents
    }

    /// Memory that it takes on the heap, without what the allocator adds.
    pub(super) fn heap_bytes(&self) -> usize {
        self.root.heap_bytes() + self.below_bytes
    }

    fn locate(&self, sector: u64) -> Option<Spot> {
        let branch = self.root.find(sector);
        let leaf = self.root.below.get(branch)?.find(sector);
        Some(Spot { branch, leaf })
    }

    /// Where the leaf behind another begins.
    #[inline]
    fn next_first(&self, spot: Spot) -> Option<u64> {
        let firsts = &self.root.below[spot.branch].firsts;
        firsts.get(spot.leaf + 1).or_else(|| self.root.firsts.get(spot.branch + 1)).copied()
    }
}

impl<L: Location> Tree<L> {
    /// A tree of extents that ascend, are disjoint, not empty, and no longer than a leaf reaches.
    pub(super) fn from_sorted(extents: impl IntoIterator<Item = Extent<L>>) -> Tree<L> {
        let mut tree = Tree::EMPTY;
        let mut waiting: Vec<Extent<L>> = Vec::with_capacity(EXTENTS_MAX);
        for extent in extents {
            let is_near = |first: &Extent<L>| extent.range.end - first.range.start <= REACH;
            if waiting.len() == EXTENTS_MAX || !waiting.first().is_none_or(is_near) {
                tree.add_leaf(Leaf::of(&waiting));
                waiting.clear();
            }
            waiting.push(extent);
        }
        if !waiting.is_empty() {
            tree.add_leaf(Leaf::of(&waiting));
        }
        tree
    }

    /// Says that an extent, which is not empty and no longer than a leaf reaches, is the newest of its range.
    #[inline]
    pub(super) fn insert(&mut self, extent: Extent<L>) {
        if !self.insert_in_leaf(extent) {
            self.remove(extent.range);
            if !self.insert_in_leaf(extent) {
                self.add_leaf(Leaf::of(&[extent]));
            }
        }
    }

    /// Inserts what one leaf can take; false if it would reach into the next leaf, or is out of reach.
    fn insert_in_leaf(&mut self, Extent { range, location }: Extent<L>) -> bool {
        loop {
            let Some(spot) = self.locate(range.start) else { return false };
            let is_within = self.next_first(spot).is_none_or(|next| range.end <= next);
            let leaf = &self.root.below[spot.branch].below[spot.leaf];
            if !is_within || !leaf.reaches(range) {
                return false;
            }
            if !leaf.is_full() {
                self.change(spot, |leaf| leaf.insert(range, location));
                return true;
            }
            if leaf.end() <= range.start {
                // Whoever writes in order fills one leaf after the other, and leaves none half empty.
                self.add_leaf(Leaf::of(&[Extent { range, location }]));
                return true;
            }
            self.split(spot);
        }
    }

    /// Forgets `range`.
    pub(super) fn remove(&mut self, range: SectorRange) {
        let mut from = range.start;
        while let Some(spot) = self.locate(from) {
            let next = self.next_first(spot);
            self.change(spot, |leaf| leaf.remove(range));
            self.tidy(spot);
            match next.filter(|&next| next < range.end) {
                Some(next) => from = next,
                None => break,
            }
        }
    }

    /// Changes a leaf, and what is known of it above.
    #[inline]
    fn change(&mut self, spot: Spot, change: impl FnOnce(&mut Leaf<L>)) {
        let branch = &mut self.root.below[spot.branch];
        let leaf = &mut branch.below[spot.leaf];
        let (extents, bytes) = (leaf.len(), leaf.heap_bytes());
        change(leaf);
        self.extents = self.extents - extents + leaf.len();
        self.below_bytes = self.below_bytes - bytes + leaf.heap_bytes();
        let first = leaf.base();
        if branch.firsts[spot.leaf] != first {
            branch.firsts[spot.leaf] = first;
            self.root.firsts[spot.branch] = branch.firsts[0];
        }
    }

    /// Puts a leaf in order from which something was taken: an empty one goes, and small neighbours are joined. What was cut in two may
    /// be one more than before.
    fn tidy(&mut self, spot: Spot) {
        let leaves = &self.root.below[spot.branch].below;
        let joins = |lower: &usize| {
            leaves.get(*lower).zip(leaves.get(lower + 1)).is_some_and(|(leaf, next)| leaf.may_join(next))
        };
        if leaves[spot.leaf].is_empty() {
            self.take_leaf(spot);
        } else if leaves[spot.leaf].len() > EXTENTS_MAX {
            self.split(spot);
        } else if let Some(lower) =
            [Some(spot.leaf), spot.leaf.checked_sub(1)].into_iter().flatten().find(joins)
        {
            let next = self.take_leaf(Spot { leaf: lower + 1, ..spot });
            self.change(Spot { leaf: lower, ..spot }, |leaf| leaf.join(&next));
        }
    }

    fn take_leaf(&mut self, spot: Spot) -> Leaf<L> {
        let branch = &mut self.root.below[spot.branch];
        let bytes = branch.heap_bytes();
        let leaf = branch.remove(spot.leaf);
        self.extents -= leaf.len();
        self.below_bytes = self.below_bytes - bytes - leaf.heap_bytes() + branch.heap_bytes();
        match branch.firsts.first() {
            Some(&first) => self.root.firsts[spot.branch] = first,
            None => self.below_bytes -= self.root.remove(spot.branch).heap_bytes(),
        }
        leaf
    }

    /// Adds a leaf where no other has anything.
    fn add_leaf(&mut self, leaf: Leaf<L>) {
        let first = leaf.base();
        let Some(spot) = self.locate(first) else {
            self.extents = leaf.len();
            self.below_bytes = leaf.heap_bytes();
            let branch = Level::of(first, leaf);
            self.below_bytes += branch.heap_bytes();
            self.root = Level::of(first, branch);
            return;
        };
        let spot = self.with_room(spot);
        let branch = &mut self.root.below[spot.branch];
        let bytes = branch.heap_bytes();
        self.extents += leaf.len();
        self.below_bytes += leaf.heap_bytes();
        branch.insert(spot.leaf + usize::from(branch.firsts[spot.leaf] < first), first, leaf);
        self.below_bytes = self.below_bytes - bytes + branch.heap_bytes();
        self.root.firsts[spot.branch] = branch.firsts[0];
    }

    #[cold]
    fn split(&mut self, spot: Spot) {
        let mut upper = None;
        self.change(spot, |leaf| upper = Some(leaf.split()));
        self.add_leaf(upper.expect("it was split"));
    }

    /// Where a leaf is once its branch has room for one more.
    fn with_room(&mut self, spot: Spot) -> Spot {
        let branch = &mut self.root.below[spot.branch];
        if branch.below.len() < LEAVES_MAX {
            return spot;
        }
        let bytes = branch.heap_bytes();
        let upper = branch.split();
        self.below_bytes = self.below_bytes - bytes + branch.heap_bytes() + upper.heap_bytes();
        let lower = branch.below.len();
        self.root.insert(spot.branch + 1, upper.firsts[0], upper);
        match spot.leaf.checked_sub(lower) {
            Some(leaf) => Spot { branch: spot.branch + 1, leaf },
            None => spot,
        }
    }

    pub(super) fn iter(&self) -> Iter<'_, L> {
        Iter { leaf: None, index: 0, leaves: [].iter(), branches: self.root.below.iter() }
    }

    /// The extents that end after `sector`.
    pub(super) fn iter_after(&self, sector: u64) -> Iter<'_, L> {
        let Some(spot) = self.locate(sector) else { return self.iter() };
        let (branch, behind) = (&self.root.below[spot.branch], &self.root.below[spot.branch + 1..]);
        let leaf = &branch.below[spot.leaf];
        Iter {
            leaf: Some(leaf),
            index: leaf.first_after(sector),
            leaves: branch.below[spot.leaf + 1..].iter(),
            branches: behind.iter(),
        }
    }
}

/// Extents by start.
pub(super) struct Iter<'a, L> {
    leaf: Option<&'a Leaf<L>>,
    index: usize,
    leaves: slice::Iter<'a, Leaf<L>>,
    branches: slice::Iter<'a, Branch<L>>,
}

impl<L: Location> Iter<'_, L> {
    /// Goes on to the next leaf; false if there is none.
    fn next_leaf(&mut self) -> bool {
        self.index = 0;
        self.leaf = self.leaves.next();
        while self.leaf.is_none() {
            let Some(branch) = self.branches.next() else { return false };
            self.leaves = branch.below.iter();
            self.leaf = self.leaves.next();
        }
        true
    }
}

impl<L: Location> Iterator for Iter<'_, L> {
    type Item = Extent<L>;

    #[inline]
    fn next(&mut self) -> Option<Extent<L>> {
        self.nth(0)
    }

    #[inline]
    fn nth(&mut self, mut count: usize) -> Option<Extent<L>> {
        loop {
            let left = self.leaf.map_or(0, |leaf| leaf.len() - self.index);
            if count < left {
                let extent = self.leaf?.get(self.index + count);
                self.index += count + 1;
                return extent;
            }
            count -= left;
            if !self.next_leaf() {
                return None;
            }
        }
    }
}

#[cfg(test)]
impl<L: Location> Tree<L> {
    /// Panics unless all that is said of a tree above holds.
    pub(super) fn check(&self) {
        let branches = || self.root.below.iter();
        let leaves = || branches().flat_map(|branch| &branch.below);
        assert_eq!(self.extents, leaves().map(Leaf::len).sum::<usize>());
        let bytes = branches().map(Level::heap_bytes).chain(leaves().map(Leaf::heap_bytes));
        assert_eq!(self.below_bytes, bytes.sum::<usize>());
        for (&first, branch) in self.root.firsts.iter().zip(branches()) {
            assert!((1..=LEAVES_MAX).contains(&branch.below.len()));
            assert_eq!(first, branch.firsts[0]);
            assert!(branch.firsts.iter().copied().eq(branch.below.iter().map(Leaf::base)));
        }
        for leaf in leaves() {
            assert!((1..=EXTENTS_MAX + 1).contains(&leaf.len()));
            assert_eq!(leaf.get(0).map(|extent| extent.range.start), Some(leaf.base()));
            assert!(leaf.end() - leaf.base() <= REACH);
        }
        let ascends = |pair: &[Extent<L>]| pair[0].range.end <= pair[1].range.start;
        let extents: Vec<_> = self.iter().collect();
        assert!(extents.windows(2).all(ascends));
        assert!(extents.iter().all(|extent| !extent.range.is_empty()));
    }
}
