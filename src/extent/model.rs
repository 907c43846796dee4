//! The same as an extent map by the plainest means, a B-tree of the standard library: what the map is tested against, and measured
//! (`benches/extents.rs`).

use std::collections::BTreeMap;

use super::{Extent, Location, SectorRange};

/// Start → (end, location).
#[derive(Clone)]
pub struct Model<L>(BTreeMap<u64, (u64, L)>);

impl<L: Location> Model<L> {
    /// Nothing.
    pub fn new() -> Model<L> {
        Model(BTreeMap::new())
    }

    /// As of an extent map.
    pub fn insert(&mut self, range: SectorRange, location: L) {
        self.remove(range);
        self.0.insert(range.start, (range.end, location));
    }

    /// As of an extent map.
    pub fn remove(&mut self, range: SectorRange) {
        // At most one extent starts before the range and reaches into it.
        if let Some((&start, &mut (ref mut end, location))) = self.0.range_mut(..range.start).next_back()
            && *end > range.start
        {
            let old_end = std::mem::replace(end, range.start);
            if old_end > range.end {
                self.0.insert(range.end, (old_end, location.advance(range.end - start)));
                return;
            }
        }
        // All others start inside; the last of them may reach out at the end.
        while let Some((&start, &(end, location))) = self.0.range(range.start..range.end).next() {
            self.0.remove(&start);
            if end > range.end {
                self.0.insert(range.end, (end, location.advance(range.end - start)));
            }
        }
    }

    /// Where a sector is.
    pub fn find(&self, sector: u64) -> Option<L> {
        let (&start, &(end, location)) = self.0.range(..=sector).next_back()?;
        (end > sector).then(|| location.advance(sector - start))
    }

    /// All extents, by start.
    pub fn iter(&self) -> impl Iterator<Item = Extent<L>> + '_ {
        self.0.iter().map(|(&start, &(end, location))| Extent { range: SectorRange { start, end }, location })
    }
}
