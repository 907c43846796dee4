//! Merges frozen maps into one, newest bytes winning, in slices: a long merge leaves room for others in between.

use std::rc::Rc;

use super::{ExtentMap, FrozenMap, Location};

/// Extents after which whoever shares the thread gets a turn.
const SLICE: usize = 512;

/// The newest of all `maps`, which are given oldest first. `turn` is awaited between slices.
pub async fn merge<L: Location, T: Future<Output = ()>>(
    maps: &[Rc<FrozenMap<L>>],
    turn: impl Fn() -> T,
) -> FrozenMap<L> {
    if let [only] = maps {
        return FrozenMap::clone(only);
    }
    let mut merged = ExtentMap::new();
    let mut since_turn = 0;
    for map in maps {
        for extent in map.iter() {
            merged.insert(extent.range, extent.location);
            since_turn += 1;
            if since_turn == SLICE {
                since_turn = 0;
                turn().await;
            }
        }
    }
    merged.freeze()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures::FutureExt;

    use super::*;
    use crate::extent::Extent;
    use crate::extent::tests::At;
    use crate::units::SectorRange;

    fn map(extents: impl IntoIterator<Item = (u64, u64, u64)>) -> Rc<FrozenMap<At>> {
        let extents = extents.into_iter();
        let extents =
            extents.map(|(start, end, at)| Extent { range: SectorRange::new(start, end), location: At(at) });
        Rc::new(FrozenMap::from_sorted(extents.collect()).expect("sorted"))
    }

    #[test]
    fn the_newest_map_wins_and_others_get_their_turns() {
        let turns = Cell::new(0);
        let turn = || {
            turns.set(turns.get() + 1);
            std::future::ready(())
        };
        let old = map((0..SLICE as u64).map(|index| (2 * index, 2 * index + 2, 1000 + 2 * index)));
        let merged = merge(&[old, map([(1, 3, 0)])], turn).now_or_never().expect("every turn is ready");
        let first: Vec<_> =
            merged.iter().take(3).map(|extent| (extent.range.start, extent.location)).collect();
        assert_eq!(first, [(0, At(1000)), (1, At(0)), (3, At(1003))]);
        assert_eq!(turns.get(), 1);
    }
}
