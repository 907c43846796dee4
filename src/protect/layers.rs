//! The read path's layers: one open map that takes what becomes visible, and frozen ones above the images.
//!
//! ```text
//!   reads ─▶ open ─▶ frozen, newest ─▶ … ─▶ frozen, oldest ─▶ image
//! ```
//!
//! A layer leaves when every image it concerns holds it under a durable checkpoint. What a latched disk lacks of it is
//! held until a side file has it. Maps live on for as long as a delta still needs them.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use crate::extent::{ExtentMap, FrozenMap};
use crate::journal::segments::Source;
use crate::units::{DiskSlot, Lsn, SectorRange};

/// A layer is frozen when it holds this many extents, marker or not.
const LAYER_EXTENTS_MAX: usize = 32 << 10;
/// A layer is frozen when its records carry this many bytes, marker or not.
const LAYER_BYTES_MAX: u64 = 128 << 20;

/// Maps of consecutive records, frozen.
#[derive(Debug)]
pub struct Layer {
    /// The first record after the layer before.
    pub first: Lsn,
    /// The last record of this one.
    pub last: Lsn,
    /// What they say, per disk.
    pub maps: BTreeMap<DiskSlot, Rc<FrozenMap<Source>>>,
    /// Bytes of data that the records carried.
    pub bytes: u64,
    memory: MapMemory,
}

impl Layer {
    fn new(
        (first, last): (Lsn, Lsn),
        maps: BTreeMap<DiskSlot, Rc<FrozenMap<Source>>>,
        bytes: u64,
        memory: MapMemory,
    ) -> Layer {
        let layer = Layer { first, last, maps, bytes, memory };
        layer.memory.0.set(layer.memory.0.get() + layer.memory_bytes());
        layer
    }

    /// The same records, but only these of its maps.
    pub fn with_maps(&self, maps: BTreeMap<DiskSlot, Rc<FrozenMap<Source>>>) -> Layer {
        Layer::new((self.first, self.last), maps, self.bytes, self.memory.clone())
    }

    fn memory_bytes(&self) -> usize {
        self.maps.values().map(|map| map.heap_bytes()).sum()
    }

    /// Number of extents.
    pub fn extents(&self) -> usize {
        self.maps.values().map(|map| map.len()).sum()
    }

    /// What it says of some disks; `None` if nothing.
    pub fn of(self: &Rc<Layer>, is_wanted: impl Fn(&DiskSlot) -> bool) -> Option<Rc<Layer>> {
        let wanted = || self.maps.keys().filter(|slot| is_wanted(slot)).count();
        if wanted() == self.maps.len() {
            return (!self.maps.is_empty()).then(|| Rc::clone(self));
        }
        let maps = self.maps.iter().filter(|(slot, _)| is_wanted(slot));
        let maps: BTreeMap<_, _> = maps.map(|(&slot, map)| (slot, Rc::clone(map))).collect();
        (!maps.is_empty()).then(|| Rc::new(self.with_maps(maps)))
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        self.memory.0.set(self.memory.0.get() - self.memory_bytes());
    }
}

/// Memory that a group's frozen maps take, whoever still holds them: reads, destage, or a delta that is not built yet.
/// Maps that two layers share count twice.
#[derive(Clone, Debug, Default)]
struct MapMemory(Rc<Cell<usize>>);

impl MapMemory {
    fn bytes(&self) -> usize {
        self.0.get()
    }
}

/// Maps that still take records.
#[derive(Debug, Default)]
struct OpenLayer {
    maps: BTreeMap<DiskSlot, ExtentMap<Source>>,
    bytes: u64,
}

/// All layers of a group.
#[derive(Debug)]
pub struct Layers {
    open: OpenLayer,
    open_first: Lsn,
    frozen: VecDeque<Rc<Layer>>,
    /// What latched disks lack in images and side files: it stays in the journal. Of each disk the oldest first; what is held
    /// of another since opening may be newer.
    held: Vec<Rc<Layer>>,
    memory: MapMemory,
    extents_max: usize,
    bytes_max: u64,
}

impl Layers {
    /// No layers; records up to `last` are in the images.
    pub fn new(last: Lsn) -> Layers {
        Layers {
            open: OpenLayer::default(),
            open_first: last.next(),
            frozen: VecDeque::new(),
            held: Vec::new(),
            memory: MapMemory::default(),
            extents_max: LAYER_EXTENTS_MAX,
            bytes_max: LAYER_BYTES_MAX,
        }
    }

    /// Has layers frozen when their records carry `bytes` of data, if that is earlier.
    #[must_use]
    pub fn with_bytes_max(mut self, bytes: u64) -> Layers {
        self.bytes_max = bytes.min(LAYER_BYTES_MAX);
        self
    }

    /// Has layers frozen at `extents` extents, if that is earlier.
    #[must_use]
    pub fn with_extents_max(mut self, extents: usize) -> Layers {
        self.extents_max = extents.min(LAYER_EXTENTS_MAX);
        self
    }

    /// Layers without content, whose maps count with these.
    pub fn sibling(&self) -> Layers {
        let Layers { extents_max, bytes_max, .. } = *self;
        Layers { memory: self.memory.clone(), extents_max, bytes_max, ..Layers::new(Lsn::ZERO) }
    }

    /// Memory that maps take, whoever holds the frozen ones.
    pub fn memory_bytes(&self) -> usize {
        self.memory.bytes() + self.open.maps.values().map(ExtentMap::heap_bytes).sum::<usize>()
    }

    fn open_extents(&self) -> usize {
        self.open.maps.values().map(ExtentMap::len).sum()
    }

    /// A frozen layer of the records from `first` to `last`, which carry `bytes` of data.
    pub fn make(
        &self,
        (first, last): (Lsn, Lsn),
        maps: BTreeMap<DiskSlot, Rc<FrozenMap<Source>>>,
        bytes: u64,
    ) -> Rc<Layer> {
        Rc::new(Layer::new((first, last), maps, bytes, self.memory.clone()))
    }

    /// Takes a record that became visible.
    pub fn insert(&mut self, disk: DiskSlot, range: SectorRange, source: Source) {
        if matches!(source, Source::Journal { .. }) {
            self.open.bytes += range.bytes();
        }
        self.open.maps.entry(disk).or_default().insert(range, source);
    }

    /// Whether the open layer reached its limits.
    pub fn is_full(&self) -> bool {
        self.open_extents() >= self.extents_max || self.open.bytes >= self.bytes_max
    }

    /// Whether the open layer holds nothing.
    pub fn is_open_empty(&self) -> bool {
        self.open.maps.is_empty()
    }

    /// Freezes the open layer, which holds the records up to `last`; `None` if it holds nothing.
    pub fn freeze(&mut self, last: Lsn) -> Option<Rc<Layer>> {
        let first = std::mem::replace(&mut self.open_first, last.next());
        if self.is_open_empty() {
            return None;
        }
        let open = std::mem::take(&mut self.open);
        let maps = open.maps.into_iter().map(|(disk, map)| (disk, Rc::new(map.freeze()))).collect();
        let layer = self.make((first, last), maps, open.bytes);
        self.frozen.push_back(Rc::clone(&layer));
        Some(layer)
    }

    /// Adds a layer that opening made again, newer than all that are here.
    pub fn adopt(&mut self, layer: Rc<Layer>) {
        self.open_first = layer.last.next();
        self.frozen.push_back(layer);
    }

    /// Adds a layer that opening made again, all of it of disks that cannot take it.
    pub fn hold(&mut self, layer: Rc<Layer>) {
        self.open_first = layer.last.next();
        self.held.push(layer);
    }

    /// Records up to `last` are in no open layer any more.
    pub fn resume(&mut self, last: Lsn) {
        self.open_first = last.next();
    }

    /// What of a window the open layer says something of, in order.
    pub fn open_ranges(&self, disk: DiskSlot, window: SectorRange) -> Vec<SectorRange> {
        let found = self.open.maps.get(&disk).into_iter().flat_map(|map| map.lookup(window));
        found.filter(|(_, source)| source.is_some()).map(|(range, _)| range).collect()
    }

    /// The frozen layers, oldest first.
    pub fn frozen(&self) -> &VecDeque<Rc<Layer>> {
        &self.frozen
    }

    /// Lets layers leave the read path whose records are all at or below `destaged`; what they hold of latched disks
    /// stays.
    pub fn retire(&mut self, destaged: Lsn, is_latched: impl Fn(&DiskSlot) -> bool) {
        while self.frozen.front().is_some_and(|layer| layer.last <= destaged) {
            let Some(layer) = self.frozen.pop_front() else { break };
            self.held.extend(layer.of(&is_latched));
        }
    }

    /// The first record that a latched disk lacks.
    pub fn first_held(&self) -> Option<Lsn> {
        self.held.iter().map(|layer| layer.first).min()
    }

    /// What is held for a latched disk: its maps, oldest first, and the last record of the newest.
    pub fn held(&self, disk: DiskSlot) -> Option<(Vec<Rc<FrozenMap<Source>>>, Lsn)> {
        self.held_above(disk, Lsn::ZERO)
    }

    /// The same, but only of layers with records above `floor`.
    pub fn held_above(&self, disk: DiskSlot, floor: Lsn) -> Option<(Vec<Rc<FrozenMap<Source>>>, Lsn)> {
        let layers = self.held.iter().filter(|layer| layer.last > floor && layer.maps.contains_key(&disk));
        let last = layers.clone().next_back()?.last;
        Some((layers.map(|layer| Rc::clone(&layer.maps[&disk])).collect(), last))
    }

    /// Lets go of what is held for a disk up to `through`: image and side files have it, durably.
    pub fn release(&mut self, disk: DiskSlot, through: Lsn) {
        for layer in self.held.iter_mut().filter(|layer| layer.last <= through) {
            without(layer, disk);
        }
        self.held.retain(|layer| !layer.maps.is_empty());
    }

    /// Whether records of a disk have yet to be destaged, or held.
    pub fn has_undestaged(&self, disk: DiskSlot) -> bool {
        self.open.maps.contains_key(&disk) || self.frozen.iter().any(|layer| layer.maps.contains_key(&disk))
    }

    /// Whether all records have been destaged, or are held.
    pub fn is_destaged(&self) -> bool {
        self.frozen.is_empty() && self.is_open_empty()
    }

    /// The last record up to which all have been destaged, or are held; `last` is the newest of all.
    pub fn destaged(&self, last: Lsn) -> Lsn {
        let open = (!self.is_open_empty()).then_some(self.open_first);
        let first_waiting = self.frozen.front().map(|layer| layer.first).or(open);
        first_waiting.map_or(last, |first| Lsn(first.0 - 1))
    }

    /// Forgets a disk that left the group.
    pub fn forget(&mut self, disk: DiskSlot) {
        self.open.maps.remove(&disk);
        for layer in self.frozen.iter_mut().chain(&mut self.held) {
            without(layer, disk);
        }
        self.frozen.retain(|layer| !layer.maps.is_empty());
        self.held.retain(|layer| !layer.maps.is_empty());
    }

    /// Extents of all layers.
    pub fn extents(&self) -> usize {
        let open: usize = self.open.maps.values().map(ExtentMap::len).sum();
        open + self.frozen.iter().map(|layer| layer.extents()).sum::<usize>()
    }

    /// Where the newest bytes of `window` are, in order and without gaps; `None`: in the image.
    pub fn resolve(&self, disk: DiskSlot, window: SectorRange) -> Vec<(SectorRange, Option<Source>)> {
        let mut found = match self.open.maps.get(&disk) {
            Some(map) => map.lookup(window).collect(),
            None => vec![(window, None)],
        };
        for layer in self.held.iter().chain(&self.frozen).rev() {
            let Some(map) = layer.maps.get(&disk) else { continue };
            if found.iter().all(|(_, source)| source.is_some()) {
                break;
            }
            found = fill(found, map);
        }
        found
    }
}

/// Takes a disk's map out of a layer that others may share.
fn without(layer: &mut Rc<Layer>, disk: DiskSlot) {
    if layer.maps.contains_key(&disk) {
        let mut maps = layer.maps.clone();
        maps.remove(&disk);
        *layer = Rc::new(layer.with_maps(maps));
    }
}

/// Looks what is still unknown up in an older map.
fn fill(
    found: Vec<(SectorRange, Option<Source>)>,
    older: &FrozenMap<Source>,
) -> Vec<(SectorRange, Option<Source>)> {
    let mut filled = Vec::with_capacity(found.len());
    for part in found {
        match part {
            (range, None) => filled.extend(older.lookup(range)),
            known => filled.push(known),
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::segments::SegmentIndex;

    fn at(sector: u32) -> Source {
        Source::Journal { segment: SegmentIndex(0), sector }
    }

    #[test]
    fn newer_layers_hide_older_ones_and_the_image_shows_through() {
        let disk = DiskSlot(0);
        let mut layers = Layers::new(Lsn(0));
        layers.insert(disk, SectorRange::new(0, 8), at(100));
        layers.freeze(Lsn(1)).expect("one record");
        layers.insert(disk, SectorRange::new(4, 6), at(200));
        layers.freeze(Lsn(2)).expect("one record");
        layers.insert(disk, SectorRange::new(5, 6), Source::Zero { allocated: false });
        let expected = vec![
            (SectorRange::new(0, 4), Some(at(100))),
            (SectorRange::new(4, 5), Some(at(200))),
            (SectorRange::new(5, 6), Some(Source::Zero { allocated: false })),
            (SectorRange::new(6, 8), Some(at(106))),
            (SectorRange::new(8, 10), None),
        ];
        assert_eq!(layers.resolve(disk, SectorRange::new(0, 10)), expected);
        assert_eq!(layers.resolve(DiskSlot(1), SectorRange::new(0, 2)), vec![(SectorRange::new(0, 2), None)]);
    }

    #[test]
    fn a_layer_retires_only_when_all_its_records_are_destaged() {
        let mut layers = Layers::new(Lsn(0));
        layers.insert(DiskSlot(0), SectorRange::new(0, 8), at(0));
        layers.freeze(Lsn(5)).expect("records");
        layers.retire(Lsn(4), |_| false);
        assert_eq!(layers.frozen().len(), 1);
        layers.retire(Lsn(5), |_| false);
        assert!(layers.frozen().is_empty());
        assert!(layers.freeze(Lsn(6)).is_none());
    }

    #[test]
    fn what_a_latched_disk_lacks_still_serves_its_reads() {
        let (sound, latched) = (DiskSlot(0), DiskSlot(1));
        let range = SectorRange::new(0, 8);
        let mut layers = Layers::new(Lsn(0));
        layers.insert(sound, range, at(0));
        layers.insert(latched, range, at(8));
        layers.freeze(Lsn(2)).expect("records");
        layers.retire(Lsn(2), |&slot| slot == latched);
        assert_eq!(layers.resolve(sound, range), vec![(range, None)]);
        assert_eq!(layers.resolve(latched, range), vec![(range, Some(at(8)))]);
        assert_eq!(layers.first_held(), Some(Lsn(1)));
        layers.forget(latched);
        assert_eq!(layers.first_held(), None);
    }

    #[test]
    fn the_first_record_that_is_held_counts_whichever_disk_it_is_of() {
        let (latched, detached) = (DiskSlot(0), DiskSlot(1));
        let mut layers = Layers::new(Lsn(0));
        let mut opening = Layers::new(Lsn(0));
        for (last, disk) in [(4, latched), (8, detached)] {
            opening.insert(disk, SectorRange::new(0, 8), at(0));
            let layer = opening.freeze(Lsn(last)).expect("records");
            if disk == detached { layers.hold(layer) } else { layers.adopt(layer) }
        }
        layers.retire(Lsn(8), |_| true);
        assert_eq!(layers.first_held(), Some(Lsn(1)));
    }

    #[test]
    fn what_a_side_file_has_is_let_go_and_what_came_later_is_not() {
        let disk = DiskSlot(0);
        let mut layers = Layers::new(Lsn(0));
        for (last, sector) in [(4, 0), (8, 8)] {
            layers.insert(disk, SectorRange::new(0, 8), at(sector));
            layers.freeze(Lsn(last)).expect("records");
        }
        assert!(layers.has_undestaged(disk));
        layers.retire(Lsn(8), |_| true);
        assert!(!layers.has_undestaged(disk) && layers.is_destaged());
        let (maps, through) = layers.held(disk).expect("both");
        assert_eq!((maps.len(), through), (2, Lsn(8)));
        layers.release(disk, Lsn(7));
        assert_eq!(layers.first_held(), Some(Lsn(5)));
        assert_eq!(layers.held(disk).map(|(maps, _)| maps.len()), Some(1));
        assert!(layers.held_above(disk, Lsn(8)).is_none());
        layers.release(disk, Lsn(8));
        assert!(layers.held(disk).is_none());
    }
}
