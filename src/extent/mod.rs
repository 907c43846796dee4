//! Extent maps: sector range → where its newest bytes are.
//!
//! An [`ExtentMap`] is open: inserts split and replace what they overlap, so later writes win. A [`FrozenMap`] is
//! its immutable form, the same tree (`tree.rs`), shared by reads, destage and the delta. Neither knows what a location
//! means, only that it can be advanced ([`Location`]); an extent therefore never spans two inserts, so that what
//! was stored and summed as one unit can still be found as one.
//!
//! Invariant: extents are sorted, disjoint and not empty.

mod leaf;
mod merge;
#[cfg(test)]
mod model;
mod ranges;
mod spans;
#[cfg(test)]
mod tests;
mod tree;

use std::sync::Arc;

pub use merge::merge;
pub use ranges::Ranges;
use spans::Spans;

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
    spans: Spans<L>,
}

impl<L> Default for ExtentMap<L> {
    fn default() -> ExtentMap<L> {
        ExtentMap { spans: Spans::EMPTY }
    }
}

impl<L> ExtentMap<L> {
    /// An empty map.
    pub fn new() -> ExtentMap<L> {
        ExtentMap::default()
    }

    /// Number of extents.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether nothing was inserted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory that it takes on the heap, without what the allocator adds.
    pub fn heap_bytes(&self) -> usize {
        self.spans.heap_bytes()
    }

    /// The immutable form: nothing is copied.
    pub fn freeze(self) -> FrozenMap<L> {
        FrozenMap { spans: Arc::new(self.spans) }
    }
}

impl<L: Location> ExtentMap<L> {
    /// Says that the newest bytes of `range` are at `location`; whatever was known of it before is forgotten.
    pub fn insert(&mut self, range: SectorRange, location: L) {
        if !range.is_empty() {
            self.spans.insert(range, location);
        }
    }

    /// Forgets `range`.
    pub fn remove(&mut self, range: SectorRange) {
        if !range.is_empty() {
            self.spans.remove(range);
        }
    }

    /// What is known of `window`, in order and without gaps.
    pub fn lookup(&self, window: SectorRange) -> impl Iterator<Item = Found<L>> + '_ {
        Gapless::new(self.spans.iter_after(window.start), window)
    }

    /// All extents, by start.
    pub fn iter(&self) -> impl Iterator<Item = Extent<L>> + '_ {
        self.spans.iter()
    }
}

/// An immutable extent map; clones share what it holds.
#[derive(Clone, Debug)]
pub struct FrozenMap<L> {
    spans: Arc<Spans<L>>,
}

impl<L: Location> PartialEq for FrozenMap<L> {
    fn eq(&self, other: &FrozenMap<L>) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl<L: Location> Eq for FrozenMap<L> {}

impl<L> FrozenMap<L> {
    /// Number of extents.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether the map knows nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory that it takes on the heap, without what the allocator adds; clones share it.
    pub fn heap_bytes(&self) -> usize {
        size_of::<Spans<L>>() + self.spans.heap_bytes()
    }
}

impl<L: Location> FrozenMap<L> {
    /// A map of `extents`; `None` unless they are sorted, disjoint and not empty.
    pub fn from_sorted(extents: Vec<Extent<L>>) -> Option<FrozenMap<L>> {
        let disjoint = extents.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start);
        let filled = extents.iter().all(|extent| extent.range.start < extent.range.end);
        (disjoint && filled).then(|| FrozenMap { spans: Arc::new(Spans::from_sorted(extents)) })
    }

    /// What is known of `window`, in order and without gaps.
    pub fn lookup(&self, window: SectorRange) -> impl Iterator<Item = Found<L>> + '_ {
        Gapless::new(self.spans.iter_after(window.start), window)
    }

    /// Where the extent starts that stands `count` places behind the first one that ends after `sector`; `None` if there are
    /// not so many.
    pub fn start_ahead(&self, sector: u64, count: usize) -> Option<u64> {
        self.spans.iter_after(sector).nth(count).map(|extent| extent.range.start)
    }

    /// All extents, by start.
    pub fn iter(&self) -> impl Iterator<Item = Extent<L>> + '_ {
        self.spans.iter()
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
