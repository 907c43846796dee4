//! The memory that a group's maps may take: extents of frozen and open layers, and the tables that say where payloads
//! stand in the journal.
//!
//! At the limit writes wait, and what holds the memory is brought on: layers are destaged, and the interval ends, so that a
//! delta lets go of its own. So a guest sees a delayed answer, never a failed one. Where nothing could give memory back,
//! nothing waits either: an opening may find more in the journal than the limit allows.

use crate::extent::Extent;
use crate::journal::segments::Source;
use crate::protect::disk::Care;
use crate::protect::group::Group;

/// A layer is frozen when it takes this part of the limit, so that there are several to let go of.
const LAYERS_IN_LIMIT: usize = 8;

/// Extents that a layer may hold where maps may take `bytes`. What they take is measured; here it is enough that an extent in its tree takes
/// less than one by itself.
pub(super) fn layer_extents_max(bytes: usize) -> usize {
    (bytes / LAYERS_IN_LIMIT / size_of::<Extent<Source>>()).max(1)
}

impl Group {
    /// Memory that maps take, as measured last.
    pub fn map_bytes(&self) -> usize {
        self.map_bytes
    }

    /// Looks again, after something was added or given back.
    pub(super) fn measure_maps(&mut self) {
        let payloads: usize = self.segments.live().map(|segment| segment.payload_table_bytes()).sum();
        self.map_bytes = self.layers.memory_bytes() + payloads;
    }

    /// Whether writes are to wait until maps give memory back.
    pub(super) fn are_maps_full(&self) -> bool {
        let is_over = self.map_bytes > self.settings.plan.map_bytes_max;
        is_over && self.gives_maps_back()
    }

    fn gives_maps_back(&self) -> bool {
        !self.layers.is_destaged()
            || !(self.vaulted_all() || self.vault_failed.is_some())
            || self.disks.iter().any(|(&slot, disk)| {
                // What is held of a renewal goes once all of it is in the journal: waiting for that would keep the rest of it out.
                disk.care != Care::Renewing && self.layers.held(slot).is_some()
            })
    }
}
