//! A base advance in pieces, where there is no room for all of it at once: what the base has taken in is given back by the
//! deltas before it takes in more. See `docs/retention.md`.
//!
//! Invariants: a piece of the base is durable before a step says that it was reached; a delta gives back only what a durable step
//! says was reached, and only while no view reads the delta. A view that is opened later looks in the base for that.

use std::ops::Range;

use super::Vault;
use super::advance::{Advance, Layered};
use crate::delta::{DeltaReader, LayeredDisk, Place};
use crate::error::{ErrorKind, Result};
use crate::extent::FrozenMap;
use crate::format::delta::{Chunk, Content};
use crate::format::record::{Change, Reached};
use crate::planted::Bug;
use crate::units::{BlobId, DiskSlot, PointId, SectorRange};

/// What takes less is tried at once.
const PIECES_FROM_BYTES: u64 = 256 << 20;
/// A piece takes up one part in this many of what is free,
const PIECE_OF_FREE: u64 = 4;
/// and this many bytes,
const PIECE_BYTES_MIN: u64 = 1 << 20;
/// or this many: each costs a step, and syncs of the bases.
const PIECE_BYTES_MAX: u64 = 1 << 30;

/// Part of the way of a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    from: Reached,
    to: Reached,
}

impl Part {
    /// The whole way.
    pub(super) const ALL: Part = Part {
        from: Reached { slot: DiskSlot(0), sector: 0 },
        to: Reached { slot: DiskSlot(u32::MAX), sector: u64::MAX },
    };

    /// What it has of a disk, in order.
    pub(super) fn of(
        self,
        disk: &LayeredDisk<FrozenMap<Place>>,
    ) -> impl Iterator<Item = (SectorRange, Place)> + '_ {
        let from = if disk.slot == self.from.slot { self.from.sector } else { 0 };
        let to = if disk.slot == self.to.slot { self.to.sector } else { u64::MAX };
        let is_on_the_way = (self.from.slot..=self.to.slot).contains(&disk.slot) && from < to;
        let window = is_on_the_way.then(|| SectorRange::new(from, to));
        let found = window.into_iter().flat_map(|window| disk.map.lookup(window));
        found.filter_map(|(range, place)| Some((range, place?)))
    }

    /// The next part, from `from` on, with so many bytes of data or a little more; `None` at the end of the way.
    fn next(disks: &Layered, from: Reached, bytes: u64) -> Option<Part> {
        let rest = Part { from, ..Part::ALL };
        let mut found =
            disks.iter().flat_map(|disk| rest.of(disk).map(|found| (disk.slot, found))).peekable();
        found.peek()?;
        let mut left = bytes;
        for (slot, (range, place)) in found.by_ref() {
            left = left.saturating_sub(data_bytes(range, place));
            if left == 0 {
                return Some(Part { from, to: Reached { slot, sector: range.end } });
            }
        }
        Some(rest)
    }
}

fn data_bytes(range: SectorRange, place: Place) -> u64 {
    match place {
        Place::Chunk { .. } => range.bytes(),
        Place::Zero { .. } => 0,
    }
}

/// A delta that gives back what is taken in of it.
struct Giver {
    blob: BlobId,
    /// Where each chunk is, and where the last of it goes.
    chunks: Vec<(Range<u64>, Reached)>,
}

impl Giver {
    fn new(reader: &DeltaReader) -> Giver {
        let tables = reader.tables();
        let place =
            |chunk: &Chunk| (chunk.offset..chunk.offset + u64::from(chunk.stored_bytes), Reached::default());
        let mut chunks: Vec<_> = tables.chunks.iter().map(place).collect();
        for disk in &tables.disks {
            for extent in &disk.extents {
                if let Content::Data { chunk, .. } = extent.content {
                    let last = &mut chunks[chunk as usize].1;
                    *last = Reached { slot: disk.slot, sector: extent.range.end }.max(*last);
                }
            }
        }
        Giver { blob: reader.header().blob, chunks }
    }

    /// Parts of the file that were needed up to `reached` only, neighbours as one; they are not said again.
    fn give(&mut self, reached: Reached) -> Vec<Range<u64>> {
        let mut given: Vec<Range<u64>> = Vec::new();
        for (place, _) in self.chunks.extract_if(.., |(_, last)| *last <= reached) {
            match given.last_mut().filter(|before| before.end == place.start) {
                Some(before) => before.end = place.end,
                None => given.push(place),
            }
        }
        given
    }
}

impl Vault {
    /// Whether what the layers hold is too much for what is free.
    pub(super) async fn wants_pieces(&self, disks: &Layered) -> Result<bool> {
        let found = disks.iter().flat_map(|disk| Part::ALL.of(disk));
        let bytes: u64 = found.map(|(range, place)| data_bytes(range, place)).sum();
        Ok(self.piece_bytes.is_some()
            || bytes >= PIECES_FROM_BYTES && bytes > self.runtime.space(self.layout.root()).await?.free / 2)
    }

    async fn piece_bytes(&self) -> Result<u64> {
        if let Some(bytes) = self.piece_bytes {
            return Ok(bytes);
        }
        let free = self.runtime.space(self.layout.root()).await?.free;
        Ok((free / PIECE_OF_FREE).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX))
    }

    /// Writes what the layers hold to the bases, a piece at a time, and has the deltas give back what is in the bases; waits
    /// where a view reads one of them.
    pub(super) async fn apply_in_pieces(
        &self,
        point: PointId,
        readers: &[DeltaReader],
        disks: &Layered,
    ) -> Result<Advance> {
        let mut givers: Vec<Giver> = readers.iter().map(Giver::new).collect();
        // What a death kept from being given back.
        let mut reached = Reached::default();
        let mut bytes = self.piece_bytes().await?;
        loop {
            if !self.give_back(&mut givers, reached).await? {
                return Ok(Advance::Waits);
            }
            let Some(part) = Part::next(disks, reached, bytes) else { return Ok(Advance::Done) };
            match self.with_room(async || self.write(readers, disks, part).await).await {
                Err(error)
                    if error.kind() == ErrorKind::NoSpace
                        && !error.lacks_descriptors()
                        && bytes > PIECE_BYTES_MIN =>
                {
                    bytes = PIECE_BYTES_MIN;
                    continue;
                }
                written => written?,
            }
            if part.to == Part::ALL.to {
                return Ok(Advance::Done);
            }
            if self.planted.is(Bug::GivenBackBeforeStep) {
                self.give_back(&mut givers, part.to).await?;
            }
            self.manifest.append(Change::BaseReached { point, reached: part.to }).await?;
            (reached, bytes) = (part.to, self.piece_bytes().await?);
        }
    }

    /// Gives back what is not needed once the base has reached so far; `false` if a view may need it.
    async fn give_back(&self, givers: &mut [Giver], reached: Reached) -> Result<bool> {
        for giver in givers {
            if self.leases.hold_any([giver.blob].into_iter()) && !self.planted.is(Bug::GivenBackUnderView) {
                return Ok(false);
            }
            let given = giver.give(reached);
            if !given.is_empty() {
                self.blobs.punch(giver.blob, &given).await?;
            }
        }
        Ok(true)
    }
}
