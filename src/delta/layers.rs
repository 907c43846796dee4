//! Deltas layered over each other, newest bytes winning: one extent map per disk, which views, merges and base
//! advances share.
//!
//! Invariant: a map covers just the sectors that some layer covers, within the disk.

use std::rc::Rc;

use crate::extent::{ExtentMap, FrozenMap, Location};
use crate::format::delta::{Content, DiskTable};
use crate::runtime::Runtime;
use crate::units::{DiskId, DiskSlot, SectorCount, SectorRange};

/// Extents that are layered before the owner's hot path gets its turn.
const EXTENTS_PER_TURN: usize = 8192;

/// Where layers have a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a chunk of a layer.
    Chunk {
        /// Which layer.
        layer: u32,
        /// Which of its chunks.
        chunk: u32,
        /// Where in the chunk's plain bytes, in sectors.
        sector: u32,
    },
    /// Nowhere: it is zero.
    Zero {
        /// Whether the space is to stay allocated.
        allocated: bool,
    },
}

impl Location for Place {
    fn advance(self, sectors: u64) -> Place {
        match self {
            Place::Chunk { layer, chunk, sector } => {
                let sectors = u32::try_from(sectors).expect("an extent with data lies within one chunk");
                Place::Chunk { layer, chunk, sector: sector + sectors }
            }
            zero @ Place::Zero { .. } => zero,
        }
    }
}

/// A disk and what the layers hold of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayeredDisk<M> {
    /// Its place in the group.
    pub slot: DiskSlot,
    /// The disk.
    pub id: DiskId,
    /// Its size at the newest layer.
    pub sectors: SectorCount,
    /// Its extents.
    pub map: M,
}

/// Layers on their way into one map per disk.
pub struct Layering {
    disks: Vec<LayeredDisk<ExtentMap<Place>>>,
}

impl Layering {
    /// No layers yet, for these disks, which have these sizes at the newest layer.
    pub fn new(disks: impl IntoIterator<Item = (DiskSlot, DiskId, SectorCount)>) -> Layering {
        let empty = |(slot, id, sectors)| LayeredDisk { slot, id, sectors, map: ExtentMap::new() };
        Layering { disks: disks.into_iter().map(empty).collect() }
    }

    fn disk(&mut self, slot: DiskSlot) -> Option<&mut LayeredDisk<ExtentMap<Place>>> {
        self.disks.iter_mut().find(|disk| disk.slot == slot)
    }

    /// Notes that a disk was this small at a layer: what lay behind its end, or comes to lie there, is zero.
    pub fn cut(&mut self, slot: DiskSlot, sectors: SectorCount) {
        if let Some(disk) = self.disk(slot).filter(|disk| sectors < disk.sectors) {
            let tail = SectorRange::new(sectors.0, disk.sectors.0);
            disk.map.insert(tail, Place::Zero { allocated: false });
        }
    }

    /// Lays the extents of one delta over those before; disks that were not asked for are left out.
    pub async fn add(&mut self, runtime: &Rc<Runtime>, layer: u32, tables: &[DiskTable]) {
        for table in tables {
            let Some(disk) = self.disk(table.slot) else { continue };
            for batch in table.extents.chunks(EXTENTS_PER_TURN) {
                for extent in batch {
                    let place = match extent.content {
                        Content::Data { chunk, sector } => Place::Chunk { layer, chunk, sector },
                        Content::Zero { allocated } => Place::Zero { allocated },
                    };
                    disk.map.insert(extent.range, place);
                }
                runtime.yield_now().await;
            }
        }
    }

    /// The maps, within their disks: one that shrank has older extents past its end.
    pub fn finish(self) -> Vec<LayeredDisk<FrozenMap<Place>>> {
        let finish = |disk: LayeredDisk<ExtentMap<Place>>| {
            let LayeredDisk { slot, id, sectors, mut map } = disk;
            map.remove(SectorRange::new(sectors.0, u64::MAX));
            LayeredDisk { slot, id, sectors, map: map.freeze() }
        };
        self.disks.into_iter().map(finish).collect()
    }
}
