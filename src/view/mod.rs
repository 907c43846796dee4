//! A view: the disks of a group as of a recovery point, read-only.
//!
//! The deltas up to the point are layered, newest bytes winning, over each disk's base, by the fewest tables that cover
//! them ([`tables`]): opening depends hardly on how many there are. Chunks are read, and compared with their checksums, when
//! they are asked for. Overlay and restore build on this; serving over NBD is the failover room's.
//!
//! Invariant: what a view reads never changes while it lives. Blobs are immutable, and a lease keeps them; the base is
//! written only where the view's map has something (`docs/retention.md`). A pin keeps the point over restarts.

mod cache;
mod origin;
mod overlay;
mod overlay_sums;
mod presence;
mod restore;
mod tables;
mod turns;

use std::rc::Rc;

use futures::stream::{self, StreamExt, TryStreamExt};

pub use origin::Origin;
pub use overlay::{BLOCK_BYTES, Overlay, OverlayReport};
pub use overlay_sums::Rot;
pub use restore::{RestoreProgress, allocated_pieces, copy_pieces, restore};

use self::tables::{Size, Tables, Trouble};
use crate::allocation::{AllocationRun, AllocationRuns};
use crate::block::DataPiece;
use crate::delta::Place;
use crate::error::{Error, ErrorKind, Result};
use crate::extent::Found;
use crate::format::record::{Membership, PointDisk, PointRecord};
use crate::runtime::Runtime;
use crate::units::{DiskId, DiskSlot, PointId, SECTOR_BYTES, SectorCount, SectorRange, to_usize};
use crate::vault::{Base, Lease, Vault};

/// Parts of one read that are in flight at a time.
const READS_IN_FLIGHT: usize = 16;

/// A disk of a view.
pub struct ViewDisk {
    slot: DiskSlot,
    id: DiskId,
    name: String,
    sectors: SectorCount,
    base: Base,
    base_sectors: u64,
}

impl ViewDisk {
    /// Its place in the group.
    pub fn slot(&self) -> DiskSlot {
        self.slot
    }

    /// Its permanent id.
    pub fn id(&self) -> DiskId {
        self.id
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its size at the point.
    pub fn sectors(&self) -> SectorCount {
        self.sectors
    }
}

/// A group's disks as of a recovery point.
pub struct View {
    vault: Rc<Vault>,
    point: PointRecord,
    disks: Vec<ViewDisk>,
    tables: Tables,
    _lease: Lease,
}

impl View {
    /// Opens the view of a point. It leases what it reads; whoever wants it to last longer than the process pins the point.
    pub async fn open(vault: &Rc<Vault>, point: PointId) -> Result<Rc<View>> {
        View::open_with(vault, point, |disk| disk.membership == Membership::Included).await
    }

    /// The same with the disks that the point lacks sectors of, for who knows which: it shows something older there.
    pub async fn open_with_lacking(vault: &Rc<Vault>, point: PointId) -> Result<Rc<View>> {
        View::open_with(vault, point, |disk| disk.membership != Membership::Excluded).await
    }

    /// The same without some disks.
    pub async fn open_without(vault: &Rc<Vault>, point: PointId, left_out: &[DiskId]) -> Result<Rc<View>> {
        let is_had =
            |disk: &PointDisk| disk.membership == Membership::Included && !left_out.contains(&disk.disk);
        View::open_with(vault, point, is_had).await
    }

    async fn open_with(
        vault: &Rc<Vault>,
        point: PointId,
        is_had: impl Fn(&PointDisk) -> bool,
    ) -> Result<Rc<View>> {
        let (point, deltas, taken_in, lease) = {
            let state = vault.manifest().state();
            let point = state.point(point).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("there is no recovery point {point}"))
            })?;
            let deltas = state.deltas_up_to(point.marker);
            // Taken in the same breath: nothing goes between the look and the lease.
            let lease = vault.leases().take(point.marker, deltas.iter().map(|delta| delta.blob).collect());
            (point.clone(), deltas, state.taken_in().clone(), lease)
        };
        let had = point.disks.iter().filter(|disk| is_had(disk));
        let sizes: Vec<Size> = had.map(|disk| (disk.slot, disk.disk, disk.sectors)).collect();
        if !point.disks.is_empty() && sizes.is_empty() {
            return Err(vault.missing_disk(&point, point.disks[0].disk));
        }
        let mut disks = Vec::with_capacity(sizes.len());
        let tables = Tables::open(vault, deltas, taken_in, sizes.clone()).await?;
        for size in sizes {
            disks.push(ViewDisk::open(vault, size).await?);
        }
        Ok(Rc::new(View { vault: Rc::clone(vault), point, disks, tables, _lease: lease }))
    }

    /// Summaries that stand for its deltas, as far as there are any.
    pub fn summaries(&self) -> usize {
        self.tables.summaries()
    }

    /// The point.
    pub fn point(&self) -> &PointRecord {
        &self.point
    }

    /// The disks that can be had at this point, ascending by slot.
    pub fn disks(&self) -> &[ViewDisk] {
        &self.disks
    }

    /// A disk by its id.
    pub fn disk(&self, disk: DiskId) -> Result<&ViewDisk> {
        let found = self.disks.iter().find(|viewed| viewed.id == disk);
        found.ok_or_else(|| self.vault.missing_disk(&self.point, disk))
    }

    /// What the view's I/O runs on.
    pub fn runtime(&self) -> &Rc<Runtime> {
        self.vault.runtime()
    }

    /// The bytes of a range, in order.
    pub async fn read(&self, disk: DiskId, range: SectorRange) -> Result<Vec<DataPiece>> {
        let disk = self.checked(disk, range)?;
        loop {
            match self.try_read(disk, range).await {
                Ok(pieces) => return Ok(pieces),
                Err(trouble) => self.mend(trouble).await?,
            }
        }
    }

    async fn try_read(
        &self,
        disk: &ViewDisk,
        range: SectorRange,
    ) -> std::result::Result<Vec<DataPiece>, Trouble> {
        let parts = self.tables.lookup(disk.slot, range).await?.into_iter();
        let parts: Vec<_> = parts.map(|(range, place)| self.read_part(disk, range, place)).collect();
        let pieces: Vec<Vec<DataPiece>> = stream::iter(parts).buffered(READS_IN_FLIGHT).try_collect().await?;
        Ok(pieces.into_iter().flatten().collect())
    }

    /// Has the next try go another way, if there is one.
    async fn mend(&self, trouble: Trouble) -> Result<()> {
        match trouble {
            Trouble::Summary(summary, error) => self.tables.fall_back(&summary, &error).await,
            Trouble::Lost(error) => Err(error),
        }
    }

    /// Which parts of a range are allocated, in order, neighbours of one state in one run. What is not reads as zeros.
    pub async fn allocation(&self, disk: DiskId, range: SectorRange) -> Result<Vec<AllocationRun>> {
        let mut runs = AllocationRuns::at_most(usize::MAX);
        self.describe(disk, range, &mut runs).await?;
        Ok(runs.into_runs())
    }

    /// The same, as far as `runs` takes it.
    pub async fn describe(&self, disk: DiskId, range: SectorRange, runs: &mut AllocationRuns) -> Result<()> {
        let disk = self.checked(disk, range)?;
        let mut start = range.start;
        // Not in one go: a large disk may have more extents than memory.
        while start < range.end {
            let end = self.tables.window_end(disk.slot, start, range.end);
            for (range, place) in self.lookup(disk, SectorRange::new(start, end)).await? {
                match place {
                    Some(Place::Chunk { .. }) => runs.push(range.bytes(), true),
                    Some(Place::Zero { allocated }) => runs.push(range.bytes(), allocated),
                    None => self.add_base_runs(disk, range, runs).await?,
                }
                if runs.is_full() {
                    return Ok(());
                }
            }
            start = end;
        }
        Ok(())
    }

    async fn lookup(&self, disk: &ViewDisk, range: SectorRange) -> Result<Vec<Found<Place>>> {
        loop {
            match self.tables.lookup(disk.slot, range).await {
                Ok(parts) => return Ok(parts),
                Err(trouble) => self.mend(trouble).await?,
            }
        }
    }

    fn checked(&self, disk: DiskId, range: SectorRange) -> Result<&ViewDisk> {
        let disk = self.disk(disk)?;
        if range.end > disk.sectors.0 {
            let text = format!("sectors {range} of disk {:?}, which has {}", disk.name, disk.sectors.0);
            return Err(Error::invalid(text));
        }
        Ok(disk)
    }

    async fn read_part(
        &self,
        disk: &ViewDisk,
        range: SectorRange,
        place: Option<Place>,
    ) -> std::result::Result<Vec<DataPiece>, Trouble> {
        match place {
            Some(Place::Zero { .. }) => Ok(vec![DataPiece::Zeros(range.bytes())]),
            Some(Place::Chunk { layer, chunk, sector }) => {
                let start = to_usize(u64::from(sector) * SECTOR_BYTES);
                let bytes = start..start + to_usize(range.bytes());
                Ok(vec![DataPiece::Bytes(self.tables.chunk(layer, chunk, bytes).await?)])
            }
            None => Ok(self.read_base(disk, range).await?),
        }
    }

    /// Past its end a base is zeros: the disk may have grown since.
    async fn read_base(&self, disk: &ViewDisk, range: SectorRange) -> Result<Vec<DataPiece>> {
        let mut pieces = Vec::new();
        let stored = range.intersection(SectorRange::new(0, disk.base_sectors));
        if let Some(stored) = stored {
            pieces.push(DataPiece::Bytes(disk.base.read(stored).await?));
        }
        let missing = range.bytes() - stored.map_or(0, SectorRange::bytes);
        if missing > 0 {
            disk.base
                .check_zeros(SectorRange::new(stored.map_or(range.start, |stored| stored.end), range.end))
                .await?;
            pieces.push(DataPiece::Zeros(missing));
        }
        Ok(pieces)
    }

    async fn add_base_runs(
        &self,
        disk: &ViewDisk,
        range: SectorRange,
        runs: &mut AllocationRuns,
    ) -> Result<()> {
        let bytes = range.byte_range();
        // Past its end, too: what was cut off is not a hole, and reading it fails.
        let data = disk.base.data_ranges(bytes.clone()).await?;
        runs.push_data(bytes.start, bytes.end, data);
        Ok(())
    }
}

impl ViewDisk {
    async fn open(vault: &Vault, (slot, id, sectors): Size) -> Result<ViewDisk> {
        let name =
            vault.manifest().state().disk(slot).map_or_else(String::new, |disk| disk.record.name.clone());
        let base = vault.bases().open(id).await?;
        let base_sectors = base.bytes().await? / SECTOR_BYTES;
        Ok(ViewDisk { slot, id, name, sectors, base, base_sectors })
    }
}
