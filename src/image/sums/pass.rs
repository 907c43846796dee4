//! The sums of an image that was there before there were any: of what it holds now, for nobody can tell what it should hold.
//!
//! ```text
//!  what has no sums ─▶ read, beside everything ─▶ turn: did somebody write meanwhile? ─ no ─▶ a place each ─▶ sync
//!         ▲                                              │ yes
//!         └──────────────────────────────────────────────┘
//! ```
//!
//! Invariant: a sum that is written here is of bytes that no layer and no side file hides, or is written anew by what does. Only who has
//! the turn writes the image: if the epoch is what it was before the bytes were read, they are there still. Sums that are there stay.
//!
//! Blocks are gone through in order, and those before [`ImageSums::settled`] need no look again: what no place says of them is zeros
//! from then on. A process that comes later does not know that, and looks; what has sums it does not read. Once all are done, the header
//! says so.

use std::collections::BTreeSet;
use std::ops::Range;

use super::writer::State;
use super::{ImageSums, Known};
use crate::error::{Error, Result};
use crate::format::sums::{Block, Copy, Holes, Of, SECTORS_A_BLOCK, UNCHECKED, sectors_of};
use crate::journal::patience::{is_refusal, patiently};
use crate::planted::{Bug, Planted};
use crate::pour::pour;
use crate::storage::File;
use crate::sums::SumsFile;
use crate::sums::cache::Kept;
use crate::units::{SECTOR_BYTES, SectorCount, SectorRange, to_usize};

/// Blocks that are read, and then written together: 8 MiB of the image.
const BLOCKS_A_PIECE: usize = 16;
/// Blocks of which is asked at a time whether there is anything: 1 GiB.
const BLOCKS_A_WINDOW: u64 = 2064;
/// Blocks that are written at a time.
const BLOCKS_IN_FLIGHT: usize = 8;
/// What cannot be read has no sums by this many sectors.
const UNREADABLE_SECTORS: u64 = 8;

/// How far a piece brought it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Summed {
    /// Further: so many bytes were read.
    Piece(u64),
    /// Nowhere: somebody wrote meanwhile. So many bytes were read.
    Overtaken(u64),
    /// Each sector has its sum, and the header says so.
    All,
}

/// What is to become of a piece.
struct Piece {
    /// Blocks that have sectors without sums, and the sums of what they hold.
    news: Vec<(u64, Vec<u32>)>,
    /// All before this one is done then.
    end: u64,
    read_bytes: u64,
}

impl ImageSums {
    /// Gives the next piece of an image of `sectors` its sums. `alone`: nobody writes meanwhile, and it is a short one.
    pub async fn sum_piece(
        &self,
        image: &File,
        sectors: SectorCount,
        alone: bool,
        planted: Planted,
    ) -> Result<Summed> {
        if self.has_all() {
            return Ok(Summed::All);
        }
        if self.settled.get() >= sectors.0.div_ceil(SECTORS_A_BLOCK) {
            return self.complete(planted).await.map(|()| Summed::All);
        }
        let turn = self.turn().await;
        // What it finds of sums counts for good: a sync that failed, or fails later, must not take it back.
        self.sync(planted).await?;
        self.settle(planted).await?;
        let turn = Some(turn).filter(|_| alone);
        let epoch = self.epoch();
        let piece = self.next_piece(image, sectors, if alone { 1 } else { BLOCKS_A_PIECE }).await?;
        let _turn = match turn {
            Some(turn) => turn,
            None => self.turn().await,
        };
        if epoch != self.epoch() && !planted.is(Bug::StaleSumsSettled) {
            return Ok(Summed::Overtaken(piece.read_bytes));
        }
        let read_bytes = piece.read_bytes;
        self.take_up(piece, planted).await?;
        Ok(Summed::Piece(read_bytes))
    }

    /// Sectors of an image of `sectors` that may have no sums yet: at least those before are done.
    pub fn unsummed(&self, sectors: SectorCount) -> SectorCount {
        SectorCount(sectors.0.saturating_sub(self.settled.get().saturating_mul(SECTORS_A_BLOCK)))
    }

    async fn next_piece(&self, image: &File, sectors: SectorCount, count: usize) -> Result<Piece> {
        let start = self.settled.get();
        let end = sectors.0.div_ceil(SECTORS_A_BLOCK).min(start + BLOCKS_A_WINDOW);
        let mut blocks = self.blocks_with_anything(image, sectors, start..end).await?.into_iter();
        let mut piece = Piece { news: Vec::new(), end, read_bytes: 0 };
        while let Some(block) = blocks.next() {
            let known = self.block(block).await?;
            // Where nobody knows anything, nothing is without a sum: all of it is refused.
            if known.sums().contains(&UNCHECKED) {
                let within = SectorRange::new(sectors_of(block).start, sectors_of(block).end.min(sectors.0));
                piece.news.push((block, self.sums_as_it_is(image, within).await?));
                piece.read_bytes += within.bytes();
            }
            if piece.news.len() == count {
                piece.end = blocks.next().unwrap_or(end);
                break;
            }
        }
        Ok(piece)
    }

    /// Blocks of which the image or its sums have something: the others are zeros, and nobody wrote them.
    async fn blocks_with_anything(
        &self,
        image: &File,
        sectors: SectorCount,
        window: Range<u64>,
    ) -> Result<BTreeSet<u64>> {
        let bytes = |block: u64| sectors_of(block).byte_offset().min(sectors.bytes());
        let bytes = bytes(window.start)..bytes(window.end);
        let data = self.stored.runtime.data_ranges(image, bytes).await?;
        let block_bytes = SECTORS_A_BLOCK * SECTOR_BYTES;
        let of_image =
            data.into_iter().flat_map(|data| data.start / block_bytes..data.end.div_ceil(block_bytes));
        let mut blocks: BTreeSet<u64> = of_image.collect();
        blocks.extend(self.stored_blocks(window.clone()).await?);
        blocks.retain(|block| window.contains(block));
        Ok(blocks)
    }

    /// The sums of what sectors of one block hold; what its device does not give has none, as before. Behind its end are zeros.
    pub(super) async fn sums_as_it_is(&self, image: &File, range: SectorRange) -> Result<Vec<u32>> {
        let runtime = &self.stored.runtime;
        let read = async |range: SectorRange| {
            runtime.read(image, range.byte_offset(), to_usize(range.bytes())).await
        };
        let mut sums = Vec::with_capacity(Block::ZEROS.sums().len());
        match patiently(runtime, || read(range)).await {
            Ok(bytes) => sums.extend(self.of(range.start, &bytes)),
            Err(error) if is_refusal(&error) => {
                tracing::warn!(%error, "sectors of an image cannot be read, and get no sums");
                for start in (range.start..range.end).step_by(to_usize(UNREADABLE_SECTORS)) {
                    let page = SectorRange::new(start, range.end.min(start + UNREADABLE_SECTORS));
                    match read(page).await {
                        Ok(bytes) => sums.extend(self.of(page.start, &bytes)),
                        Err(error) if is_refusal(&error) => {
                            sums.resize(sums.len() + to_usize(page.sectors()), UNCHECKED);
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            Err(error) => return Err(error),
        }
        sums.resize(Block::ZEROS.sums().len(), 0);
        Ok(sums)
    }

    /// Writes the sums of a piece, durably. The turn is held.
    async fn take_up(&self, piece: Piece, planted: Planted) -> Result<()> {
        let Piece { news, end, .. } = piece;
        if !news.is_empty() {
            let fills = || news.iter().map(|(block, sums)| self.fill(*block, sums, planted));
            self.write_durably(planted, async || pour(fills(), BLOCKS_IN_FLIGHT, |()| ()).await).await?;
        }
        let done = self.settled.replace(end)..end;
        // Of those that nobody wrote, memory may say that nobody knows.
        let is_meant = |(owner, block): &(u32, u64)| *owner == self.number && done.contains(block);
        self.stored.runtime.sums_cache().borrow_mut().forget(is_meant);
        self.begin();
        Ok(())
    }

    /// Gives those sectors of a block their sums that have none.
    async fn fill(&self, block: u64, news: &[u32], planted: Planted) -> Result<()> {
        let known = match self.recall(block) {
            Some(known) => known,
            None => self.known(block, self.ask_for_places(block, false).await?),
        };
        let Some(newest) = &known.newest else { return Ok(()) };
        let is_hole = newest.sums.sequence() == 0 && known.is_whole;
        if is_hole && news.iter().all(|sum| *sum == 0) {
            return Ok(());
        }
        let to = newest.at.other();
        if is_hole {
            self.allocate(block).await?;
        }
        let is_filled = |stored: u32| stored == UNCHECKED || planted.is(Bug::StaleSumsSettled);
        self.rewrite(block, &known, to, Some(news), is_filled).await
    }

    /// Writes a block to a place, with the sums that it has, and `news` where it is to be `filled`. It says that sums may be older than
    /// what was written only where they are not those of what is there.
    pub(super) async fn rewrite(
        &self,
        block: u64,
        known: &Known,
        to: Copy,
        news: Option<&[u32]>,
        is_filled: impl Fn(u32) -> bool,
    ) -> Result<()> {
        let Some(newest) = &known.newest else { return Ok(()) };
        let mut sums = Block::clone(&newest.sums);
        let mut is_as_it_is = news.is_some();
        for (stored, new) in sums.sums_mut().iter_mut().zip(news.into_iter().flatten()) {
            if is_filled(*stored) {
                *stored = *new;
            }
            is_as_it_is &= stored == new || *stored == UNCHECKED;
        }
        sums.succeed(0);
        sums.mark_doubtful(known.is_doubtful() && !is_as_it_is);
        self.stored.write(block, to, &sums).await?;
        let kept = Kept { sums: sums.into(), at: to };
        self.stored.runtime.sums_cache().borrow_mut().insert((self.number, block), kept);
        Ok(())
    }

    /// Says for good that each sector has its sum. Whatever copy of the header the next process finds is right: the other one only has
    /// it look again.
    async fn complete(&self, planted: Planted) -> Result<()> {
        let _turn = self.turn().await;
        let whole = SumsFile { of: Of::Image(Holes::Zeros), ..self.stored.clone() };
        let write = async || {
            for copy in [Copy::Second, Copy::First] {
                whole.write_copy_of_header(copy).await?;
                whole.runtime.sync(&whole.file).await?;
            }
            Ok(())
        };
        self.write_durably(planted, write).await?;
        self.rotten_header.set(None);
        self.settled.set(u64::MAX);
        Ok(())
    }

    /// Has something written to the file, durably. The turn is held.
    pub(super) async fn write_durably(
        &self,
        planted: Planted,
        write: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        self.sync(planted).await?;
        self.settle(planted).await?;
        self.state.set(State::Unsettled);
        self.is_writing.set(true);
        self.begin();
        let result: std::result::Result<(), Error> = write().await;
        self.begin();
        self.is_writing.set(false);
        result?;
        self.state.set(State::Written);
        self.sync(planted).await
    }
}
