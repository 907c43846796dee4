//! Thinning: points go, and what changed up to them becomes part of the point after them. See `docs/retention.md`.
//!
//! Invariant: a blob is deleted only after the step that took its name away, and when no view reads it.

use super::{State, Vault, lacks_space};
use crate::byte_size::ByteSize;
use crate::delta::{DeltaReader, LayeredDisk, Layering, Place, merge};
use crate::error::{Error, ErrorKind, Result, is_of_the_file};
use crate::extent::FrozenMap;
use crate::format::delta::{DeltaRef, Header};
use crate::format::ladder::Ladder;
use crate::format::record::{Change, MergeRecord, PointRecord, Reached};
use crate::planted::Bug;
use crate::units::{BlobId, Lsn, PointId, SectorRange};

/// Deltas that are read at a time, at most: each is an open file with its tables in memory.
const DELTAS_MAX: usize = 64;
/// Bytes of their tables at most; a single pair may exceed it.
const TABLES_BYTES_MAX: u64 = 64 << 20;

/// How many of `points`, from the first, can be worked on at a time: at least two.
pub(super) fn batch(points: &[PointRecord]) -> usize {
    count(points.iter()).min(points.len())
}

/// The same from the last.
pub(super) fn batch_behind(points: &[PointRecord]) -> usize {
    count(points.iter().rev()).min(points.len())
}

fn count<'a>(points: impl Iterator<Item = &'a PointRecord>) -> usize {
    let (mut deltas, mut tables) = (0, 0);
    let fits = |point: &&PointRecord| {
        deltas += usize::from(point.delta.is_some());
        tables += point.delta.map_or(0, |delta| delta.tables_bytes);
        deltas <= DELTAS_MAX && tables <= TABLES_BYTES_MAX
    };
    points.take_while(fits).count().max(2)
}

/// Deltas that are layered over each other.
pub(super) struct Opened {
    pub(super) readers: Vec<DeltaReader>,
    /// How many of them, from the oldest, are left out: the last of these cannot be opened.
    pub(super) hidden: usize,
    /// Why, if one is: the others must hide all that it can have held.
    pub(super) lost: Option<Error>,
}

/// Fails with what was `lost` unless the layers that are left say what every sector holds that no base has taken in.
pub(super) fn check_hidden(
    lost: Option<Error>,
    disks: &[LayeredDisk<FrozenMap<Place>>],
    taken_in: Reached,
) -> Result<()> {
    let is_covered = |disk: &LayeredDisk<FrozenMap<Place>>| {
        let start = taken_in.of(disk.slot).min(disk.sectors.0);
        let wanted = SectorRange::new(start, disk.sectors.0);
        let covered = disk.map.iter().filter_map(|extent| extent.range.intersection(wanted));
        covered.map(SectorRange::sectors).sum::<u64>() == wanted.sectors()
    };
    match lost {
        Some(error) if !disks.iter().all(is_covered) => Err(error),
        _ => Ok(()),
    }
}

/// How many of `run`, from the oldest, have the first `deltas` deltas.
fn hidden_points(run: &[PointRecord], deltas: usize) -> usize {
    let with_delta = run.iter().enumerate().filter(|(_, point)| point.delta.is_some());
    deltas.checked_sub(1).and_then(|last| with_delta.map(|(index, _)| index + 1).nth(last)).unwrap_or(0)
}

impl Vault {
    /// Opens deltas, oldest first. One that cannot be opened is left out with those before it, for a caller who then asks whether
    /// the others hide it ([`check_hidden`]).
    pub(super) async fn open_layers(&self, deltas: impl Iterator<Item = DeltaRef>) -> Result<Opened> {
        let mut opened = Opened { readers: Vec::new(), hidden: 0, lost: None };
        for (index, delta) in deltas.enumerate() {
            match self.open_delta(&delta).await {
                Ok(reader) => opened.readers.push(reader),
                Err(error) if is_of_the_file(error.kind()) => {
                    opened = Opened { readers: Vec::new(), hidden: index + 1, lost: Some(error) };
                }
                Err(error) => return Err(error),
            }
        }
        Ok(opened)
    }

    /// Merges the points from `first` into `into`, or as many of them as are merged at a time. Refused where a pin names
    /// one of those that would go, or where the group has another ladder by now than the one that asks for it.
    pub async fn merge_points(&self, first: PointId, into: PointId, ladder: Option<&Ladder>) -> Result<()> {
        let (before, run) = {
            let state = self.manifest.state();
            state.check(&Change::PointsMerged(MergeRecord { first, into, delta: None }))?;
            let (start, end) = (state.index_of(first), state.index_of(into));
            let (start, end) = (start.expect("checked"), end.expect("checked"));
            let before = start.checked_sub(1).map_or(Lsn::ZERO, |index| state.points()[index].marker);
            let run = &state.points()[start..=end];
            (before, run[..batch(run)].to_vec())
        };
        let into = run.last().expect("a run has two points at least");
        let old: Vec<DeltaRef> = run.iter().filter_map(|point| point.delta).collect();
        // What changed at the kept point only is its delta already.
        let is_own = old.len() == usize::from(into.delta.is_some());
        let delta = if is_own { into.delta } else { self.put_merged_in_room(before, &run).await? };
        if self.planted.is(Bug::BlobsDeletedBeforeStep) {
            self.delete_all(old.iter().filter(|old| Some(**old) != delta)).await?;
        }
        let change = Change::PointsMerged(MergeRecord { first, into: into.id, delta });
        let step = self.append_for(ladder, change).await;
        let new = delta.filter(|_| !is_own);
        if let Err(error) = step {
            if let Some(new) = new.filter(|_| !self.manifest.is_in_doubt()) {
                // Best effort: what stays is removed when the vault is opened next.
                let _ = self.blobs.delete(new.blob).await;
            }
            return Err(error);
        }
        new.iter().for_each(|new| self.blobs.settle(new.blob));
        old.iter().filter(|old| Some(**old) != delta).for_each(|old| self.leases.doom(old.blob));
        Ok(())
    }

    /// Appends a step that a ladder asks for, if that is the group's still: what was just said to stay must not go.
    pub(super) async fn append_for(&self, ladder: Option<&Ladder>, change: Change) -> Result<()> {
        let decide = |state: &State| match ladder {
            Some(ladder) if *ladder != state.record().retain => Err(Error::invalid("the policy was changed")),
            _ => Ok(change.clone()),
        };
        self.manifest.append_with(decide).await.map(drop)
    }

    async fn delete_all(&self, deltas: impl Iterator<Item = &DeltaRef>) -> Result<()> {
        for delta in deltas {
            self.blobs.delete(delta.blob).await?;
        }
        Ok(())
    }

    /// [`Vault::put_merged`], in the reserve's room if need be. What found no space is not tried again before there is more: that would fill
    /// the file system once more, and take the room, in vain.
    async fn put_merged_in_room(&self, before: Lsn, run: &[PointRecord]) -> Result<Option<DeltaRef>> {
        let into = run.last().expect("a run is not empty").id;
        if let Some((_, bytes)) = self.merge_exceeds.get().filter(|&(point, _)| point == into)
            && self.free_bytes().await? + self.reserve().room_bytes() <= bytes
        {
            let text =
                format!("a merge takes more than the {} that were free", ByteSize(bytes).approximate());
            return Err(Error::new(ErrorKind::NoSpace, text));
        }
        let put = self.with_room(async || self.put_merged(before, run).await).await;
        self.merge_exceeds.set(match &put {
            Err(error) if lacks_space(error) => Some((into, self.free_bytes().await?)),
            _ => None,
        });
        put
    }

    async fn free_bytes(&self) -> Result<u64> {
        Ok(self.runtime.space(self.layout.root()).await?.free)
    }

    /// Puts one delta in the place of those of `run`, for its last point; durable when this returns.
    async fn put_merged(&self, before: Lsn, run: &[PointRecord]) -> Result<Option<DeltaRef>> {
        let into = run.last().expect("a run is not empty");
        let sizes = into.disks.iter().map(|disk| (disk.slot, disk.disk, disk.sectors));
        let mut layering = Layering::new(sizes);
        let Opened { readers, hidden, lost } =
            self.open_layers(run.iter().filter_map(|point| point.delta)).await?;
        let mut opened = (0_u32..).zip(&readers);
        let mut layers: Vec<_> = run
            .iter()
            .skip(hidden_points(run, hidden))
            .map(|point| (point, point.delta.and_then(|_| opened.next())))
            .collect();
        if self.planted.is(Bug::MergeOldestWins) {
            layers.reverse();
        }
        for (point, delta) in layers {
            point.disks.iter().for_each(|disk| layering.cut(disk.slot, disk.sectors));
            if let Some((layer, reader)) = delta {
                layering.add(&self.runtime, layer, &reader.tables().disks).await;
            }
        }
        let disks = layering.finish();
        check_hidden(lost, &disks, Reached::default())?;
        let header = self.merged_header(before, into.marker, &readers);
        let mut writer = self.blobs.create(header.blob).await?;
        match merge(&mut writer, header, &readers, &disks, self.keys()).await {
            Ok(Some(built)) => writer.finish().await.map(|()| Some(built.reference)),
            Ok(None) => writer.abandon().await.map(|()| None),
            Err(error) => {
                // Best effort, as above.
                let _ = writer.abandon().await;
                Err(error)
            }
        }
    }

    fn merged_header(&self, before: Lsn, marker: Lsn, readers: &[DeltaReader]) -> Header {
        let state = self.manifest.state();
        Header {
            blob: BlobId(self.runtime.random_u128()),
            group: state.group(),
            timeline: state.timeline(),
            after: before,
            through: marker,
            marker,
            created: self.runtime.wall(),
            intervals: readers.iter().map(|reader| reader.header().intervals).fold(0, u32::saturating_add),
            chunk_bytes: 0,
        }
    }

    /// Deletes the blobs that no step names any more and no view reads.
    pub async fn sweep(&self) -> Result<()> {
        for blob in self.leases.deletable(self.planted.is(Bug::LeaseIgnored)) {
            self.blobs.delete(blob).await?;
            self.leases.deleted(blob);
        }
        Ok(())
    }

    /// Deletes the bases of disks that left and that no point holds any more. Only while no marker is under way that
    /// could list one of them.
    pub async fn delete_unneeded_bases(&self) -> Result<()> {
        let unneeded: Vec<_> = {
            let state = self.manifest.state();
            // Somebody may be opening the view of a point that is gone, and with it such a base.
            if !self.leases.are_for_points(state.points()) {
                return Ok(());
            }
            let left = state.all_disks().iter().filter(|disk| disk.removed);
            let left = left.filter(|disk| !self.bases.is_deleted(disk.record.id) && !state.needs_base(disk));
            left.map(|disk| disk.record.id).collect()
        };
        for disk in unneeded {
            tracing::info!(%disk, "removing the base of a disk that left: no recovery point holds it");
            self.bases.delete(disk).await?;
        }
        Ok(())
    }

    /// Whether a view of this process reads the point.
    pub(super) fn check_unread(&self, point: &PointRecord) -> Result<()> {
        if self.leases.holds_point(point.marker) {
            let text = format!("recovery point {} is being read: try again when that is done", point.id);
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::delta::DeltaRef;
    use crate::format::marker::Consistency;
    use crate::units::{GroupNanos, WallNanos};

    /// Points with deltas whose tables have these lengths, or without.
    fn points(tables: impl IntoIterator<Item = Option<u64>>) -> Vec<PointRecord> {
        let delta = |tables_bytes| DeltaRef { blob: BlobId(1), total_bytes: 0, tables_bytes, checksum: 0 };
        let point = |tables: Option<u64>| PointRecord {
            id: PointId(1),
            marker: Lsn(1),
            wall: WallNanos(0),
            group_time: GroupNanos(0),
            consistency: Consistency::Crash,
            label: String::new(),
            delta: tables.map(delta),
            disks: [].into(),
        };
        tables.into_iter().map(point).collect()
    }

    #[test]
    fn a_batch_has_so_many_deltas_and_bytes_of_tables_at_most_but_two_points() {
        let small = || std::iter::repeat_n(Some(1), 200);
        assert_eq!(batch(&points(small())), DELTAS_MAX);
        // Points without a delta cost nothing.
        let every_other = small().flat_map(|tables| [None, tables]);
        assert_eq!(batch(&points(every_other)), 2 * DELTAS_MAX + 1);
        let third = TABLES_BYTES_MAX / 3;
        assert_eq!(batch(&points([Some(third), None, Some(third), Some(third), Some(third)])), 4);
        assert_eq!(batch(&points([Some(TABLES_BYTES_MAX - 2), Some(1), Some(1), Some(1)])), 3);
        assert_eq!(batch(&points([Some(TABLES_BYTES_MAX + 1), Some(1), Some(1)])), 2);
        assert_eq!(batch(&points([Some(1)])), 1);
    }
}
