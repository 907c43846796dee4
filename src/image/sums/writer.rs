//! The writer of the sums of an image: what a batch brought there goes to that place of each block that does not count.
//!
//! ```text
//!            put            sync                        a block: A counts ─▶ B is written, durable ─▶ B counts ─▶ A is written …
//!  Durable ───────▶ Written ─────▶ Durable
//!     ▲ settle         │ any failure
//!  Unsettled ◀─────────┘
//! ```

use std::iter::Peekable;
use std::ops::Range;
use std::rc::Rc;

use super::{ImageSums, Known, PAIR_BYTES};
use crate::error::{ErrorKind, Result};
use crate::format::sums::{BLOCK_BYTES, Block, Copy, SECTORS_A_BLOCK, by_block, within};
use crate::image::pace::Pace;
use crate::journal::patience::{is_refusal, patiently};
use crate::planted::{Bug, Planted};
use crate::pour::pour;
use crate::sums::Stored;
use crate::sums::cache::Kept;
use crate::units::{Lsn, SectorRange, to_usize};

/// Blocks that are changed at a time.
const BLOCKS_IN_FLIGHT: usize = 32;
/// Blocks whose news are gathered before they are changed.
const BLOCKS_A_ROUND: usize = 256;

/// What sectors are about to hold: zeros, or what has these sums.
pub type News<'a> = (SectorRange, Option<&'a [u32]>);

/// How the sums of a batch are written.
pub struct Put<'a> {
    /// The newest record of the batch.
    pub through: Lsn,
    /// Whether a block that its device does not give is done without: what is not written anew of it is refused from then on. Otherwise
    /// it is an error, after a while.
    pub gives_up: bool,
    /// The gate that each operation passes.
    pub pace: &'a Pace,
    /// A bug to plant.
    pub planted: Planted,
}

/// What is known of the file's durability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// What is read of it may not be durable: another process wrote it, or something failed.
    Unsettled,
    /// What was written is whole, but not synced.
    Written,
    /// All that is read of it is durable.
    Durable,
}

impl ImageSums {
    /// Writes the sums of what was written to the image: news ascend, and are disjoint. Not durable before a
    /// [sync](ImageSums::sync), and nothing of it counts after an error. Adds the bytes to `written`.
    pub(in crate::image) async fn put<'a>(
        &self,
        news: impl Iterator<Item = News<'a>>,
        put: &Put<'_>,
        written: &mut u64,
    ) -> Result<()> {
        let mut news = news.peekable();
        if news.peek().is_none() {
            return Ok(());
        }
        self.sync(put.planted).await?;
        self.settle(put.planted).await?;
        self.state.set(State::Unsettled);
        self.is_writing.set(true);
        self.begin();
        let result = self.write_all(news, put, written).await;
        self.begin();
        self.is_writing.set(false);
        result.map(|()| self.state.set(State::Written))
    }

    /// Makes durable what was put.
    pub(in crate::image) async fn sync(&self, planted: Planted) -> Result<()> {
        if self.state.get() == State::Written {
            // After a failure nobody knows what is durable, whatever a later sync says.
            self.state.set(State::Unsettled);
            if !planted.is(Bug::ImageSumsNotSynced) {
                self.stored.runtime.sync(&self.stored.file).await?;
            }
            self.state.set(State::Durable);
        }
        Ok(())
    }

    /// Makes sure that what is read from here on is durable.
    pub(super) async fn settle(&self, planted: Planted) -> Result<()> {
        if self.state.get() == State::Unsettled && !planted.is(Bug::ImageSumsNotSettled) {
            self.stored.runtime.settle(&self.stored.file).await?;
            self.stored.runtime.sums_cache().borrow_mut().forget(|(owner, _)| *owner == self.number);
            self.mend_header().await?;
            self.state.set(State::Durable);
        }
        Ok(())
    }

    /// Writes anew a copy of the header in which a bit flipped.
    async fn mend_header(&self) -> Result<()> {
        if let Some(copy) = self.rotten_header.take() {
            let mended = self.stored.write_copy_of_header(copy).await;
            mended.inspect_err(|_| self.rotten_header.set(Some(copy)))?;
        }
        Ok(())
    }

    async fn write_all<'a>(
        &self,
        news: impl Iterator<Item = News<'a>>,
        put: &Put<'_>,
        written: &mut u64,
    ) -> Result<()> {
        let mut pieces = news.flat_map(|(range, sums)| pieces_of(range, sums)).peekable();
        while pieces.peek().is_some() {
            let (changes, emptied) = next_round(&mut pieces);
            let changes = changes.into_iter().map(|(block, parts)| self.change(block, parts, put));
            pour(changes, BLOCKS_IN_FLIGHT, |bytes| *written += bytes).await?;
            pour(emptied.into_iter().map(|blocks| self.empty(blocks, put)), BLOCKS_IN_FLIGHT, |()| ())
                .await?;
            self.stored.runtime.yield_now().await;
        }
        Ok(())
    }

    /// Of blocks that come to hold zeros only, all of them written: nothing in them is to be kept from harm.
    async fn empty(&self, blocks: Range<u64>, put: &Put<'_>) -> Result<()> {
        put.pace.turn().await;
        let places = |block| self.stored.of.block_offset(block, Copy::First);
        let bytes = places(blocks.start)..places(blocks.end);
        self.stored.runtime.zero(&self.stored.file, bytes, false).await?;
        let is_meant = |(owner, block): &(u32, u64)| *owner == self.number && blocks.contains(block);
        self.stored.runtime.sums_cache().borrow_mut().forget(is_meant);
        Ok(())
    }

    /// Writes one block; returns the bytes.
    async fn change(&self, block: u64, parts: Vec<Part<'_>>, put: &Put<'_>) -> Result<u64> {
        let _passage = put.pace.pass().await?;
        let known = match self.recall(block) {
            Some(known) => known,
            None => self.known(block, self.ask_for_places(block, put.gives_up).await?),
        };
        let covered: usize = parts.iter().map(|part| part.within.len()).sum();
        let is_doubtful = self.is_doubtful(block, &known) && covered < Block::ZEROS.sums().len();
        let (mut sums, at) = match known.newest {
            Some(Kept { sums, at }) => (sums, at),
            None => (Block::UNKNOWN.into(), Copy::Second),
        };
        let to = if put.planted.is(Bug::ImageSumsInPlace) { at } else { at.other() };
        let is_first = sums.sequence() == 0 && known.is_whole;
        let changed = Rc::make_mut(&mut sums);
        for Part { within, sums: news } in parts {
            match news {
                Some(news) => changed.sums_mut()[within].copy_from_slice(news),
                None => changed.sums_mut()[within].fill(0),
            }
        }
        changed.succeed(put.through.0);
        changed.mark_doubtful(is_doubtful);
        if is_first {
            self.allocate(block).await?;
        }
        self.stored.write(block, to, &sums).await?;
        let kept = Kept { sums, at: to };
        self.stored.runtime.sums_cache().borrow_mut().insert((self.number, block), kept);
        Ok(BLOCK_BYTES as u64)
    }

    /// Gives a block that has been a hole space for both places, so that who overwrites what is there needs none. Nothing is written
    /// to the other place: torn together, they would take the zeros along of which the block says that nobody wrote them.
    pub(super) async fn allocate(&self, block: u64) -> Result<()> {
        let start = self.stored.of.block_offset(block, Copy::First);
        self.stored.runtime.zero(&self.stored.file, start..start + PAIR_BYTES as u64, true).await
    }

    /// Reads both places of a block. What a device does not give may be what counts, and is not written over at the first refusal.
    pub(super) async fn ask_for_places(&self, block: u64, gives_up: bool) -> Result<(Stored, Stored)> {
        if let Some(pair) = self.read_pair(block).await? {
            return Ok(pair);
        }
        let mut refused = None;
        let mut places = [Stored::Damaged, Stored::Damaged];
        for (place, copy) in places.iter_mut().zip(Copy::BOTH) {
            match patiently(&self.stored.runtime, || self.stored.ask(block, copy)).await {
                Ok(stored) => *place = stored,
                Err(error) if is_refusal(&error) => refused = Some(error),
                Err(error) if error.kind() == ErrorKind::Corrupt => {}
                Err(error) => return Err(error),
            }
        }
        let [first, second] = places;
        match refused {
            Some(error) if !gives_up && (&first, &second) == (&Stored::Damaged, &Stored::Damaged) => {
                Err(error)
            }
            _ => Ok((first, second)),
        }
    }

    /// Whether something of a block may be older than what was written; the log notes if that is new.
    fn is_doubtful(&self, block: u64, known: &Known) -> bool {
        if !known.is_whole {
            let path = self.stored.file.path().display();
            let offset = self.stored.of.block_offset(block, Copy::First);
            let what = if known.newest.is_some() { "one place of a block" } else { "both places of a block" };
            tracing::warn!(%path, block, offset, "{what} of sums is damaged, as after a power cut or by a flipped bit");
        }
        known.is_doubtful()
    }
}

/// New sums of some sectors of a block: where in it, and which; none of zeros.
struct Part<'a> {
    within: Range<usize>,
    sums: Option<&'a [u32]>,
}

/// What news are of one block, or of several that come to hold zeros only.
enum Piece<'a> {
    Part(u64, Part<'a>),
    Emptied(Range<u64>),
}

/// Blocks, each with all that comes of it.
type Changes<'a> = Vec<(u64, Vec<Part<'a>>)>;

/// The blocks of the next round, and those that come to hold zeros only.
fn next_round<'a>(pieces: &mut Peekable<impl Iterator<Item = Piece<'a>>>) -> (Changes<'a>, Vec<Range<u64>>) {
    let mut changes: Changes<'a> = Vec::new();
    let mut emptied = Vec::new();
    while let Some(piece) = pieces.next() {
        match piece {
            Piece::Emptied(blocks) => emptied.push(blocks),
            Piece::Part(block, part) => match changes.last_mut() {
                Some((last, parts)) if *last == block => parts.push(part),
                _ => changes.push((block, vec![part])),
            },
        }
        let goes_on = match (pieces.peek(), changes.last()) {
            (Some(Piece::Part(block, _)), Some((last, _))) => block == last,
            _ => false,
        };
        if changes.len() + emptied.len() >= BLOCKS_A_ROUND && !goes_on {
            break;
        }
    }
    (changes, emptied)
}

fn pieces_of(range: SectorRange, sums: Option<&[u32]>) -> impl Iterator<Item = Piece<'_>> {
    let whole = range.start.div_ceil(SECTORS_A_BLOCK)..range.end / SECTORS_A_BLOCK;
    let (before, whole, behind) = match sums {
        None if whole.start < whole.end => {
            let (start, end) = (whole.start * SECTORS_A_BLOCK, whole.end * SECTORS_A_BLOCK);
            (SectorRange::new(range.start, start), Some(whole), SectorRange::new(end, range.end))
        }
        _ => (range, None, SectorRange::new(range.end, range.end)),
    };
    let parts = move |part: SectorRange| {
        by_block(part).map(move |(block, sectors)| {
            let news = to_usize(sectors.start - range.start)..to_usize(sectors.end - range.start);
            Piece::Part(block, Part { within: within(block, sectors), sums: sums.map(|sums| &sums[news]) })
        })
    };
    parts(before).chain(whole.map(Piece::Emptied)).chain(parts(behind))
}
