//! What was written after a marker: what a verification leaves out.
//!
//! Every record after the marker is, at any moment, in the open layer, in a layer of the open interval, in an interval that waits for
//! the vault or is on its way there, or in a delta of a later point. An interval leaves the group's memory only after the
//! manifest names its point, so whoever looks at all of them in one go misses none.

use std::rc::Rc;

use crate::error::Result;
use crate::extent::{ExtentMap, FrozenMap, Location};
use crate::format::delta::DeltaRef;
use crate::format::record::Membership;
use crate::journal::segments::Source;
use crate::planted::Bug;
use crate::protect::group::Group;
use crate::protect::layers::Layer;
use crate::units::{DiskSlot, Lsn, SectorRange};
use crate::vault::{Lease, Vault};

/// Says that a sector was written after the marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Newer;

impl Location for Newer {
    fn advance(self, _sectors: u64) -> Newer {
        self
    }
}

/// What of a range was written after a marker, as of one moment.
pub struct Since {
    written: ExtentMap<Newer>,
    /// Deltas of later points, whose tables say the rest.
    published: Vec<DeltaRef>,
    _lease: Lease,
}

impl Since {
    /// Brings in what the tables of later points say of a disk's range.
    pub(super) async fn complete(
        mut self,
        vault: &Vault,
        slot: DiskSlot,
        range: SectorRange,
    ) -> Result<Written> {
        for delta in std::mem::take(&mut self.published) {
            let reader = vault.open_delta(&delta).await?;
            for table in reader.tables().disks.iter().filter(|table| table.slot == slot) {
                let first = table.extents.partition_point(|extent| extent.range.end <= range.start);
                let extents = table.extents[first..].iter();
                for extent in extents.take_while(|extent| extent.range.start < range.end) {
                    note(&mut self.written, extent.range, range);
                }
            }
        }
        Ok(Written(self.written))
    }
}

/// Sectors of a range that were written after a marker.
pub(super) struct Written(ExtentMap<Newer>);

impl Written {
    /// What is left of `ranges` without them.
    pub(super) fn without(&self, ranges: &[SectorRange]) -> Vec<SectorRange> {
        let parts = ranges.iter().flat_map(|range| self.0.lookup(*range));
        parts.filter(|(_, written)| written.is_none()).map(|(range, _)| range).collect()
    }
}

/// Looks at everything that may hold a record after `marker`, in one go.
pub(super) fn written_since(group: &Group, slot: DiskSlot, range: SectorRange, marker: Lsn) -> Since {
    let mut written = ExtentMap::new();
    let is_planted = group.settings.plan.planted.is(Bug::VerifyForgetsWaiting);
    for part in group.layers.open_ranges(slot, range) {
        note(&mut written, part, range);
    }
    let waiting = group.intervals_waiting.iter().map(|interval| (interval.marker_lsn, &interval.layers));
    let publishing = group.intervals_publishing.iter().map(|(marker, layers)| (*marker, layers));
    let closed = waiting.chain(publishing).filter(|(closed, _)| *closed > marker && !is_planted);
    let layers = group.interval.layers().iter().chain(closed.flat_map(|(_, layers)| layers));
    for layer in layers {
        add(&mut written, layer, slot, range);
    }
    let vault = &group.settings.vault;
    let state = vault.manifest().state();
    let mut published = Vec::new();
    for point in state.points().iter().filter(|point| point.marker > marker) {
        let holds = |disk: &crate::format::record::PointDisk| {
            disk.slot == slot && disk.membership == Membership::Included
        };
        if point.disks.iter().any(holds) {
            published.extend(point.delta);
        } else {
            // It says nothing of the disk: anything may have been written.
            note(&mut written, range, range);
        }
    }
    let lease = vault.leases().take(marker, published.iter().map(|delta| delta.blob).collect());
    Since { written, published, _lease: lease }
}

fn add(written: &mut ExtentMap<Newer>, layer: &Rc<Layer>, slot: DiskSlot, range: SectorRange) {
    let Some(map) = layer.maps.get(&slot) else { return };
    for part in covered(map, range) {
        note(written, part, range);
    }
}

fn covered(map: &FrozenMap<Source>, range: SectorRange) -> impl Iterator<Item = SectorRange> + '_ {
    map.lookup(range).filter(|(_, source)| source.is_some()).map(|(part, _)| part)
}

fn note(written: &mut ExtentMap<Newer>, part: SectorRange, range: SectorRange) {
    if let Some(part) = part.intersection(range) {
        written.insert(part, Newer);
    }
}
