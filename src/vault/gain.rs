//! What it gives back to retire the oldest points: what their deltas take, less what the bases need blocks for first.
//!
//! What a delta holds and no base has moves from the one to the other, and nothing comes back for it; less than nothing where
//! it was compressed. So history that nothing was written over is not worth its going.

use std::collections::{BTreeMap, BTreeSet};

use super::Vault;
use crate::error::{ErrorKind, Result, is_of_the_file};
use crate::extent::Ranges;
use crate::format::delta::{Content, DeltaExtent, DeltaRef};
use crate::format::record::PointRecord;
use crate::format::sums::{BLOCK_BYTES, SECTORS_A_BLOCK};
use crate::storage::OpenOptions;
use crate::units::{DiskId, PAGE_BYTES, PointId, SECTOR_BYTES, SectorRange};

/// Sectors of what file systems allocate at least.
const PAGE_SECTORS: u64 = PAGE_BYTES as u64 / SECTOR_BYTES;
/// Both copies of a block of a base's sums.
const SUMS_BYTES: u64 = 2 * BLOCK_BYTES as u64;

/// What it gives back to retire the points before each of the oldest, about.
#[derive(Clone, Debug)]
pub(super) struct Gains {
    oldest: PointId,
    newest: PointId,
    /// Bytes, by the points' places; less than nothing where the bases take more than the deltas did.
    pub(super) bytes: Vec<i64>,
}

impl Gains {
    fn are_of(&self, points: &[PointRecord]) -> bool {
        let ends = points.first().zip(points.last());
        ends.is_some_and(|(first, last)| (first.id, last.id) == (self.oldest, self.newest))
            && points.len() == self.bytes.len()
    }
}

impl Vault {
    /// What it gives back to retire the points before each of `points`, the oldest of all first. Looked up once for the same points: a step
    /// changes which they are.
    pub(super) async fn gains(&self, points: &[PointRecord]) -> Result<Gains> {
        if let Some(known) = self.gains.take().filter(|known| known.are_of(points)) {
            self.gains.set(Some(known.clone()));
            return Ok(known);
        }
        let (mut stored, mut sum, mut bytes) = (BTreeMap::new(), 0, Vec::with_capacity(points.len()));
        for point in points {
            if let Some(delta) = point.delta {
                sum += self.gain(&delta, &mut stored).await?;
            }
            bytes.push(sum);
            self.runtime.yield_now().await;
        }
        let (oldest, newest) = (points[0].id, points[points.len() - 1].id);
        let gains = Gains { oldest, newest, bytes };
        self.gains.set(Some(gains.clone()));
        Ok(gains)
    }

    /// The same of one delta, on bases that have stored so much by then.
    async fn gain(&self, delta: &DeltaRef, stored: &mut BTreeMap<DiskId, Ranges>) -> Result<i64> {
        let reader = match self.open_delta(delta).await {
            // What is damaged is met, and told, by the step itself.
            Err(error) if is_of_the_file(error.kind()) || error.kind() == ErrorKind::NotFound => {
                return Ok(signed(delta.total_bytes));
            }
            opened => opened?,
        };
        let mut gain = signed(delta.total_bytes);
        for disk in &reader.tables().disks {
            let base = match stored.remove(&disk.disk) {
                Some(base) => base,
                None => self.stored(disk.disk).await?,
            };
            let (base, taken) = take_up(base, &disk.extents);
            gain -= taken;
            stored.insert(disk.disk, base);
        }
        Ok(gain)
    }

    /// The sectors of a disk's base that have blocks; all, if it needs no base any more.
    async fn stored(&self, disk: DiskId) -> Result<Ranges> {
        let file = match self.bases.open_file(disk, OpenOptions::READ).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Ranges::of([SectorRange::new(0, u64::MAX)]));
            }
            opened => opened?.0,
        };
        let length = self.runtime.length(&file).await?;
        let data = self.runtime.data_ranges(&file, 0..length).await?;
        Ok(Ranges::of(
            data.iter()
                .map(|part| SectorRange::new(part.start / SECTOR_BYTES, part.end.div_ceil(SECTOR_BYTES))),
        ))
    }
}

/// What a base has stored once it took up these extents, and how many bytes more that takes.
fn take_up(stored: Ranges, extents: &[DeltaExtent]) -> (Ranges, i64) {
    let needs_blocks = |extent: &&DeltaExtent| !matches!(extent.content, Content::Zero { allocated: false });
    let pages = |extent: &DeltaExtent| {
        let pages = extent.range.start / PAGE_SECTORS..extent.range.end.div_ceil(PAGE_SECTORS);
        SectorRange::new(pages.start * PAGE_SECTORS, pages.end * PAGE_SECTORS)
    };
    let wanted = Ranges::of(extents.iter().filter(needs_blocks).map(pages));
    let new = wanted.without(stored.as_slice().iter().copied());
    let block = |number: u64| SectorRange::new(number * SECTORS_A_BLOCK, (number + 1) * SECTORS_A_BLOCK);
    let blocks = |range: &SectorRange| range.start / SECTORS_A_BLOCK..range.end.div_ceil(SECTORS_A_BLOCK);
    let sums: BTreeSet<_> =
        new.as_slice().iter().flat_map(blocks).filter(|&number| !stored.meets(block(number))).collect();
    // Zeros that need no blocks give some back.
    let zeros = Ranges::of(extents.iter().filter(|extent| !needs_blocks(extent)).map(|extent| extent.range));
    let kept = stored.without(zeros.as_slice().iter().copied());
    let given = stored.sectors() - kept.sectors();
    let taken = signed(new.sectors() * SECTOR_BYTES + sums.len() as u64 * SUMS_BYTES);
    (kept.union(new.as_slice().iter().copied()), taken - signed(given * SECTOR_BYTES))
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u64, end: u64, content: Content) -> DeltaExtent {
        DeltaExtent { range: SectorRange::new(start, end), content }
    }

    const DATA: Content = Content::Data { chunk: 0, sector: 0 };

    #[test]
    fn what_a_base_has_not_takes_whole_pages_and_sums() {
        let stored = Ranges::of([SectorRange::new(0, 16)]);
        // One page is there, one is not; their sums are.
        let (stored, taken) = take_up(stored, &[extent(15, 17, DATA)]);
        assert_eq!((stored.as_slice(), taken), ([SectorRange::new(0, 24)].as_slice(), 4096));
        let (stored, taken) = take_up(stored, &[extent(0, 24, DATA)]);
        assert_eq!((stored.sectors(), taken), (24, 0));
        let far = 3 * SECTORS_A_BLOCK;
        let (_, taken) = take_up(stored, &[extent(far, far + 1, DATA)]);
        assert_eq!(taken, 4096 + signed(SUMS_BYTES));
    }

    #[test]
    fn holes_give_back_what_was_stored() {
        let stored = Ranges::of([SectorRange::new(0, 16)]);
        let (stored, taken) = take_up(stored, &[extent(8, 64, Content::Zero { allocated: false })]);
        assert_eq!((stored.as_slice(), taken), ([SectorRange::new(0, 8)].as_slice(), -4096));
        let (_, taken) = take_up(stored, &[extent(8, 16, Content::Zero { allocated: true })]);
        assert_eq!(taken, 4096);
    }
}
