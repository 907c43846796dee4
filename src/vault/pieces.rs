//! A base advance in pieces, where there is no room for all of it at once: what the base has taken in is given back by the
//! deltas before it takes in more. See `docs/retention.md`.
//!
//! Invariants: a piece of the base is durable before a step says that it was reached; a delta gives back only what a durable step
//! says was reached, and only while no view reads the delta. A view that is opened later looks in the base for that.

use std::ops::Range;

use super::advance::{Advance, Layered};
use super::{Vault, lacks_space};
use crate::delta::{DeltaReader, LayeredDisk, Place};
use crate::error::Result;
use crate::extent::FrozenMap;
use crate::format::delta::{Chunk, Content};
use crate::format::record::{Change, Reached};
use crate::format::sums::{BLOCK_BYTES, SECTORS_A_BLOCK};
use crate::planted::Bug;
use crate::units::{BlobId, DiskSlot, PAGE_BYTES, PointId, SECTOR_BYTES, SectorRange};

/// Sectors of what file systems allocate at least.
const PAGE_SECTORS: u64 = PAGE_BYTES as u64 / SECTOR_BYTES;
/// All is written at once where it takes no more than one part in this many of what is free,
const WHOLE_OF_FREE: u64 = 2;
/// A piece takes up one part in this many of what is free, or would be,
const PIECE_OF_FREE: u64 = 4;
/// and this many bytes,
const PIECE_BYTES_MIN: u64 = 64 << 10;
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
            let data = if is_allocated(place) { range.bytes() } else { 0 };
            if data >= left {
                let sector = range.end - (data - left) / SECTOR_BYTES;
                return Some(Part { from, to: Reached { slot, sector } });
            }
            left -= data;
        }
        Some(rest)
    }
}

/// Bytes that the base of a disk takes for what is written to it, at most: whole pages, and both copies of the blocks of sums.
fn cost(disk: &LayeredDisk<FrozenMap<Place>>) -> u64 {
    let (mut bytes, mut page, mut block) = (0, 0, 0);
    for (range, place) in Part::ALL.of(disk) {
        if is_allocated(place) {
            let pages = (range.start / PAGE_SECTORS).max(page)..range.end.div_ceil(PAGE_SECTORS);
            bytes += (pages.end - pages.start) * PAGE_BYTES as u64;
            page = pages.end;
        }
        let blocks = (range.start / SECTORS_A_BLOCK).max(block)..range.end.div_ceil(SECTORS_A_BLOCK);
        bytes += (blocks.end - blocks.start) * 2 * BLOCK_BYTES as u64;
        block = blocks.end;
    }
    bytes
}

/// Whether a base has to have blocks for it.
fn is_allocated(place: Place) -> bool {
    matches!(place, Place::Chunk { .. } | Place::Zero { allocated: true })
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
    /// Whether there is room enough for all that the layers hold, beside what others may write meanwhile.
    pub(super) async fn fits(&self, disks: &Layered) -> Result<bool> {
        let bytes = disks.iter().map(cost).sum();
        let fits = self.has_free(bytes).await?;
        self.did_not_fit.set((!fits).then(|| (self.manifest.state().newest(), bytes)));
        Ok(fits)
    }

    /// Whether it is worth while to look whether there is: not where nothing changed since there was not.
    pub(super) async fn may_fit(&self) -> Result<bool> {
        match self.did_not_fit.get() {
            Some((step, bytes)) if step == self.manifest.state().newest() => self.has_free(bytes).await,
            _ => Ok(true),
        }
    }

    async fn has_free(&self, bytes: u64) -> Result<bool> {
        Ok(bytes <= self.runtime.space(self.layout.root()).await?.free / WHOLE_OF_FREE)
    }

    /// Whether a base goes in pieces whatever room there is.
    pub(super) fn has_piece_bytes(&self) -> bool {
        self.piece_bytes.is_some()
    }

    async fn piece_bytes(&self) -> Result<u64> {
        if let Some(bytes) = self.piece_bytes {
            return Ok(bytes);
        }
        let free = self.runtime.space(self.layout.root()).await?.free + self.reserve().room_bytes();
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
            self.refill_reserve().await?;
            let Some(part) = Part::next(disks, reached, bytes) else { return Ok(Advance::Done) };
            let write = async || self.write(readers, disks, part).await;
            let written = if bytes > PIECE_BYTES_MIN { write().await } else { self.with_room(write).await };
            match written {
                Err(error) if lacks_space(&error) && bytes > PIECE_BYTES_MIN => {
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

    /// Each piece takes a spare where its step finds no room, and perhaps the room.
    async fn refill_reserve(&self) -> Result<()> {
        match self.reserve().refill_between().await {
            Err(error) if lacks_space(&error) => Ok(()),
            refilled => refilled,
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
