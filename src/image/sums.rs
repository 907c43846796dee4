//! The sums of an image: what each sector should hold, beside an image that is written to all the time. The bytes are `format::sums`'s.
//!
//! ```text
//!  batch:   image ──▶ sums, each block to the place that does not count ──▶ sync of both ──▶ checkpoint
//!  read:    places looked up ──▶ image and sums ──▶ compared ──▶ given │ looked up again │ refused
//! ```
//!
//! A sum matters only of a sector that no layer and no side file holds: of the others these have the bytes. A batch writes what layers
//! hold, and they stay until its checkpoint is durable; so its sums need no order among its writes. What it must not harm is the sums
//! of the *other* sectors of the blocks that it writes, also when power fails in the midst of that. So a block has two places, and is
//! written to the one that does not count.
//!
//! Invariants:
//!
//! 1. Of each block, one place that is durable and whole says the sums of all sectors that no batch under way writes. So the place that
//!    counts is written again only once it is known to be durable: after an opening the file is synced first, and an attempt after a
//!    failed one writes the places that the failed one wrote.
//! 2. While no layer and no side file holds a sector, image and sums agree on it, but for damage: from the moment that its places are
//!    looked up until the next batch [begins](ImageSums::begin) to write the image. So a read whose bytes do not match looks its places
//!    up again if one began since; then a layer has the sector, or image and sums are both the later ones, or nobody wrote it. If none
//!    began, it is damage. The same goes for what a block of the cache says: it is replaced before the layers of a batch go, and
//!    what was read while blocks were written is not kept.
//!
//! A rotten block has nothing served that was not checked: if both its places are damaged, its sectors are refused; if one is, the other
//! one may be older, and what was written since is refused. Good bytes may so be refused until somebody writes them anew, and
//! what is said of them names the sums. To bring the other place up behind each batch would mend that, and cost a third more operations
//! where writes are scattered: one bit in 127 is of sums, and what a flip there takes with it is told, and in the points. That which is
//! neither is the *torn* place of a batch that a power cut ended: its journal has all that the other place does not say.
//!
//! Most that is in memory for a batch are the sums of what it writes, 1/128 of it; each block is read and written once.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::error::{Error, Result};
use crate::format::sums::{
    BLOCK_BYTES, Block, Copy, Holes, Of, SECTORS_A_BLOCK, by_block, sectors_of, within,
};
use crate::image::pace::Pace;
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::storage::{Buffer, Create, File, Op, OpenOptions};
use crate::sums::builder::SumsBuilder;
use crate::sums::{Stored, SumsFile};
use crate::units::{DiskId, SECTOR_BYTES, SectorCount, SectorRange, to_usize};

/// Bytes of both places of a block, which lie side by side.
const PAIR_BYTES: usize = 2 * BLOCK_BYTES;
/// Blocks that are changed at a time.
const BLOCKS_IN_FLIGHT: usize = 32;
/// Blocks whose news are gathered before they are changed.
const BLOCKS_A_ROUND: usize = 256;

/// Path of the sums of a disk's image.
pub fn sums_path(directory: &Path, disk: DiskId) -> PathBuf {
    directory.join(format!("{disk}.sums"))
}

/// What sectors are about to hold: zeros, or what has these sums.
pub type News<'a> = (SectorRange, Option<&'a [u32]>);

/// The sums of one image; shared by whoever reads and writes it.
#[derive(Debug)]
pub struct ImageSums {
    stored: SumsFile,
    image: PathBuf,
    /// Its own among what the thread's cache has.
    number: u32,
    /// Grows whenever somebody begins to write the image or its sums, and when the latter ends.
    epoch: Cell<u64>,
    /// Blocks are being written.
    is_writing: Cell<bool>,
    /// Whether what is read of the file is durable; after an opening nobody knows.
    is_settled: Cell<bool>,
    /// What was written of it is whole, but not synced.
    awaits_sync: Cell<bool>,
    /// Blocks that were written and not synced. The other place of each has what is durable.
    unsynced: RefCell<BTreeMap<u64, Written>>,
}

/// What is not known to be durable of a block.
#[derive(Clone, Copy, Debug)]
struct Written {
    /// The place that was written.
    to: Copy,
    /// Whether the last attempt wrote it. What one before wrote is not made durable by the sync of a later one, if its own failed.
    is_of_last: bool,
}

/// What is known of a block.
#[derive(Clone, Debug)]
pub struct Known {
    sums: Rc<Block>,
    /// One of its places is damaged, or both are.
    is_doubtful: bool,
}

impl Known {
    /// That nobody knows.
    pub fn nothing() -> Known {
        Known { sums: Rc::new(Block::UNKNOWN), is_doubtful: true }
    }
}

/// What comparing bytes with their sums gave.
#[derive(Debug)]
pub enum Verdict {
    /// They match.
    Sound,
    /// They do not, but the image was written to since the places were looked up: they have to be looked up again.
    Overwritten,
    /// They are not what was written: which, and what there is to say of it.
    Damaged(Vec<(SectorRange, Error)>),
}

/// The durable place of a block, and what it says.
struct Newest {
    sums: Box<Block>,
    at: Copy,
    is_doubtful: bool,
}

impl ImageSums {
    fn new(stored: SumsFile, image: PathBuf, is_settled: bool) -> Rc<ImageSums> {
        let number = stored.runtime.new_owner();
        Rc::new(ImageSums {
            stored,
            image,
            number,
            epoch: Cell::default(),
            is_writing: Cell::default(),
            is_settled: Cell::new(is_settled),
            awaits_sync: Cell::default(),
            unsynced: RefCell::default(),
        })
    }

    /// Opens the sums of an image.
    pub(super) async fn open(
        runtime: &Rc<Runtime>,
        file: File,
        disk: DiskId,
        image: &Path,
    ) -> Result<Rc<ImageSums>> {
        let stored = SumsFile::of_image(runtime, file, disk).await?;
        Ok(ImageSums::new(stored, image.to_owned(), false))
    }

    /// Makes the sums of an image anew, whatever there is; durable when this returns, but for the name.
    pub(super) async fn create(
        runtime: &Rc<Runtime>,
        directory: &Path,
        (disk, size): (DiskId, SectorCount),
        holes: Holes,
        image: &Path,
    ) -> Result<Rc<ImageSums>> {
        let options = OpenOptions { create: Create::IfMissing, ..OpenOptions::OWNED };
        let file = runtime.open(sums_path(directory, disk), options).await?;
        runtime.set_length(&file, 0).await?;
        let stored = SumsFile { runtime: Rc::clone(runtime), file, disk, of: Of::Image(holes) };
        stored.write_header().await?;
        let sums = ImageSums::new(stored, image.to_owned(), true);
        sums.lengthen(size).await?;
        runtime.sync(&sums.stored.file).await?;
        Ok(sums)
    }

    /// Takes the sums of what a new image is filled with.
    pub(super) async fn builder(&self) -> Result<SumsBuilder> {
        SumsBuilder::begin(self.stored.clone()).await
    }

    /// Whether it says something of each sector: that of an image of before there were sums does not, where nobody has written since.
    pub fn has_all(&self) -> bool {
        self.stored.of == Of::Image(Holes::Zeros)
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.stored.file
    }

    /// Gives the file places for all blocks of a disk of `size`, if it has fewer.
    pub(super) async fn lengthen(&self, size: SectorCount) -> Result<()> {
        let blocks = size.0.div_ceil(SECTORS_A_BLOCK);
        let bytes = self.stored.of.block_offset(blocks, Copy::First);
        if self.stored.runtime.length(&self.stored.file).await? < bytes {
            self.stored.runtime.set_length(&self.stored.file, bytes).await?;
        }
        Ok(())
    }

    /// The sums of what sectors are about to hold.
    pub(super) fn of<'a>(&self, range: SectorRange, data: &'a [u8]) -> impl Iterator<Item = u32> + use<'a> {
        self.stored.of.sums_of(range.start, data)
    }

    /// Somebody is about to write the image: what is read meanwhile may be neither what was there nor what will be.
    pub(super) fn begin(&self) {
        self.epoch.update(|epoch| epoch + 1);
    }

    /// What [`ImageSums::judge`] wants to be told: taken when the places of a read are looked up.
    pub fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    /// A block that memory has.
    pub fn recall(&self, block: u64) -> Option<Known> {
        let sums = self.stored.runtime.sums_cache().borrow().get((self.number, block))?;
        Some(Known { sums, is_doubtful: false })
    }

    /// Keeps a block that was read since `epoch`.
    fn keep(&self, block: u64, known: &Known, epoch: u64) {
        if epoch == self.epoch.get() && !self.is_writing.get() && !known.is_doubtful {
            let mut cache = self.stored.runtime.sums_cache().borrow_mut();
            cache.insert((self.number, block), Rc::clone(&known.sums));
        }
    }

    /// Reads one place of a block, or both.
    pub fn operation(&self, block: u64, copy: Option<Copy>) -> Op {
        let bytes = if copy.is_some() { BLOCK_BYTES } else { PAIR_BYTES };
        let offset = self.stored.of.block_offset(block, copy.unwrap_or(Copy::First));
        Op::Read { file: self.stored.file.clone(), offset, buffer: Buffer::recycled(bytes) }
    }

    /// What the bytes of one place are.
    pub fn parse(&self, block: u64, bytes: &[u8]) -> Stored {
        self.stored.parse(block, bytes)
    }

    /// What an [operation](ImageSums::operation) of both places, begun at `epoch`, brought.
    pub fn found(&self, block: u64, bytes: &[u8], epoch: u64) -> Known {
        let (first, second) = bytes.split_at(BLOCK_BYTES);
        let pair = (self.stored.parse(block, first), self.stored.parse(block, second));
        let known = self.known(pair);
        self.keep(block, &known, epoch);
        known
    }

    /// What the two places of a block say together.
    pub fn known(&self, pair: (Stored, Stored)) -> Known {
        match self.newest(pair) {
            Some(Newest { sums, is_doubtful, .. }) => Known { sums: Rc::from(sums), is_doubtful },
            None => Known::nothing(),
        }
    }

    /// A block, from memory or from the file, each place by itself: one of them may not be readable.
    pub async fn block(&self, block: u64) -> Result<Known> {
        if let Some(known) = self.recall(block) {
            return Ok(known);
        }
        let epoch = self.epoch.get();
        let known = self.known(self.read_places(block).await?);
        self.keep(block, &known, epoch);
        Ok(known)
    }

    async fn read_places(&self, block: u64) -> Result<(Stored, Stored)> {
        let offset = self.stored.of.block_offset(block, Copy::First);
        match self.stored.runtime.read(&self.stored.file, offset, PAIR_BYTES).await {
            Ok(bytes) => {
                let (first, second) = bytes.split_at(BLOCK_BYTES);
                Ok((self.stored.parse(block, first), self.stored.parse(block, second)))
            }
            Err(_) => Ok((
                self.stored.read(block, Copy::First).await?,
                self.stored.read(block, Copy::Second).await?,
            )),
        }
    }

    /// The place that counts; `None` if nobody knows.
    fn newest(&self, pair: (Stored, Stored)) -> Option<Newest> {
        let is_doubtful = matches!(pair, (Stored::Damaged, _) | (_, Stored::Damaged));
        let (sums, at) = match pair {
            (Stored::Sound(first), Stored::Sound(second)) if second.sequence() > first.sequence() => {
                (second, Copy::Second)
            }
            (Stored::Sound(first), _) => (first, Copy::First),
            (_, Stored::Sound(second)) => (second, Copy::Second),
            (Stored::Hole, _) => (Box::new(self.stored.of.empty()), Copy::First),
            (_, Stored::Hole) => (Box::new(self.stored.of.empty()), Copy::Second),
            (Stored::Damaged, Stored::Damaged) => return None,
        };
        Some(Newest { sums, at, is_doubtful })
    }

    /// Compares bytes of the image with their sums, of which `blocks` has all; their places were looked up at `epoch`.
    pub fn judge(
        &self,
        epoch: u64,
        range: SectorRange,
        bytes: &[u8],
        blocks: &BTreeMap<u64, Known>,
    ) -> Verdict {
        let mut damaged = Vec::new();
        for (block, sectors) in by_block(range) {
            let known = &blocks[&block];
            let start = to_usize((sectors.start - range.start) * SECTOR_BYTES);
            let content = &bytes[start..start + to_usize(sectors.bytes())];
            let stored = &known.sums.sums()[within(block, sectors)];
            let wrong = self.stored.of.mismatches(sectors.start, content, stored);
            damaged.extend(wrong.into_iter().map(|wrong| (wrong, self.mismatch(wrong, block, known))));
        }
        match damaged.is_empty() {
            true => Verdict::Sound,
            false if epoch != self.epoch.get() => Verdict::Overwritten,
            false => Verdict::Damaged(damaged),
        }
    }

    /// The same, with the blocks looked up.
    pub async fn check(&self, epoch: u64, range: SectorRange, bytes: &[u8]) -> Result<Verdict> {
        let mut blocks = BTreeMap::new();
        for (block, _) in by_block(range) {
            blocks.insert(block, self.block(block).await?);
        }
        Ok(self.judge(epoch, range, bytes, &blocks))
    }

    /// What there is to say of sectors that do not match their sums.
    fn mismatch(&self, sectors: SectorRange, block: u64, known: &Known) -> Error {
        let mut text = format!("sectors {sectors} of the image do not match their sums");
        if known.is_doubtful {
            let at = self.stored.of.block_offset(block, Copy::First);
            let path = self.stored.file.path().display();
            text += &format!(
                ", which are damaged themselves ({path} at byte {at}): the image may be what was written, and nobody can tell"
            );
        }
        Error::corrupt(text).at_path(&self.image).at_offset(sectors.byte_offset())
    }

    /// The sectors of a range that are not zeros by their sums.
    pub async fn nonzero(&self, range: SectorRange) -> Result<Vec<SectorRange>> {
        let mut found: Vec<SectorRange> = Vec::new();
        let places = |block| self.stored.of.block_offset(block, Copy::First);
        let blocks = range.start / SECTORS_A_BLOCK..range.end.div_ceil(SECTORS_A_BLOCK);
        let runtime = &self.stored.runtime;
        let stored = runtime.data_ranges(&self.stored.file, places(blocks.start)..places(blocks.end)).await?;
        for data in stored {
            let pair = PAIR_BYTES as u64;
            for block in data.start / pair - 1..data.end.div_ceil(pair) - 1 {
                let Some(sectors) = sectors_of(block).intersection(range) else { continue };
                let known = self.block(block).await?;
                let sums = &known.sums.sums()[within(block, sectors)];
                let is_nonzero = |sum: u32| sum != 0 && sum != crate::format::sums::UNCHECKED;
                for (sector, _) in (sectors.start..).zip(sums).filter(|(_, sum)| is_nonzero(**sum)) {
                    match found.last_mut() {
                        Some(last) if last.end == sector => last.end += 1,
                        _ => found.push(SectorRange::new(sector, sector + 1)),
                    }
                }
            }
        }
        Ok(found)
    }

    /// Writes the sums of what was written to the image: news ascend, and are disjoint. Not durable before a
    /// [sync](ImageSums::sync), and nothing of it counts after an error.
    pub(super) async fn put<'a>(
        &self,
        news: impl Iterator<Item = News<'a>>,
        pace: &Pace,
        planted: Planted,
    ) -> Result<()> {
        let mut news = news.peekable();
        if news.peek().is_none() {
            return Ok(());
        }
        if self.awaits_sync.get() {
            self.sync(planted).await?;
        }
        self.settle().await?;
        self.unsynced.borrow_mut().values_mut().for_each(|written| written.is_of_last = false);
        self.is_writing.set(true);
        self.begin();
        let written = self.write_all(news, pace, planted).await;
        self.begin();
        self.is_writing.set(false);
        self.awaits_sync.set(written.is_ok());
        written
    }

    /// Makes sure that what an owner before this one wrote is durable.
    async fn settle(&self) -> Result<()> {
        if !self.is_settled.get() {
            self.stored.runtime.settle(&self.stored.file).await?;
            self.stored.runtime.sums_cache().borrow_mut().forget(|(owner, _)| *owner == self.number);
            self.is_settled.set(true);
        }
        Ok(())
    }

    async fn write_all<'a>(
        &self,
        news: impl Iterator<Item = News<'a>>,
        pace: &Pace,
        planted: Planted,
    ) -> Result<()> {
        let mut pieces = news.flat_map(|(range, sums)| pieces_of(range, sums)).peekable();
        while pieces.peek().is_some() {
            let mut changes: Vec<(u64, Vec<Part<'a>>)> = Vec::with_capacity(BLOCKS_A_ROUND);
            let mut emptied = Vec::new();
            while let Some(piece) = pieces.next() {
                match piece {
                    Piece::Emptied(blocks) => emptied.push(blocks),
                    Piece::Part(block, part) => match changes.last_mut() {
                        Some((last, parts)) if *last == block => parts.push(part),
                        _ => changes.push((block, vec![part])),
                    },
                }
                let goes_on = |next: &Piece<'_>| match (next, changes.last()) {
                    (Piece::Part(block, _), Some((last, _))) => block == last,
                    _ => false,
                };
                if changes.len() + emptied.len() >= BLOCKS_A_ROUND && !pieces.peek().is_some_and(goes_on) {
                    break;
                }
            }
            let changes = changes.into_iter().map(|(block, parts)| self.change(block, parts, pace, planted));
            stream::iter(changes).buffer_unordered(BLOCKS_IN_FLIGHT).try_collect::<()>().await?;
            for blocks in emptied {
                self.empty(blocks, pace).await?;
            }
            self.stored.runtime.yield_now().await;
        }
        Ok(())
    }

    /// Of blocks that come to hold zeros only, all of them written: nothing in them is to be kept from harm.
    async fn empty(&self, blocks: Range<u64>, pace: &Pace) -> Result<()> {
        pace.turn().await;
        let places = |block| self.stored.of.block_offset(block, Copy::First);
        let bytes = places(blocks.start)..places(blocks.end);
        self.stored.runtime.zero(&self.stored.file, bytes, false).await?;
        let is_meant = |(owner, block): &(u32, u64)| *owner == self.number && blocks.contains(block);
        self.stored.runtime.sums_cache().borrow_mut().forget(is_meant);
        Ok(())
    }

    async fn change(&self, block: u64, parts: Vec<Part<'_>>, pace: &Pace, planted: Planted) -> Result<()> {
        pace.turn().await;
        let pair = self.read_places(block).await?;
        let before = self.unsynced.borrow().get(&block).map(|written| written.to);
        let pair = match (before, pair) {
            // What a failed attempt wrote may be torn, or never come to be durable: what is durable is in the other place.
            (Some(Copy::First), (_, second)) if second != Stored::Damaged => (Stored::Damaged, second),
            (Some(Copy::Second), (first, _)) if first != Stored::Damaged => (first, Stored::Damaged),
            (_, pair) => pair,
        };
        let (mut sums, at) = match self.newest(pair) {
            Some(Newest { sums, at, .. }) => (sums, at),
            None => (self.unknown(block), Copy::Second),
        };
        let mut to = before.unwrap_or(at.other());
        if planted.is(Bug::ImageSumsInPlace) {
            to = to.other();
        }
        for Part { within, sums: news } in parts {
            match news {
                Some(news) => sums.sums_mut()[within].copy_from_slice(news),
                None => sums.sums_mut()[within].fill(0),
            }
        }
        sums.succeed();
        self.unsynced.borrow_mut().insert(block, Written { to, is_of_last: true });
        self.stored.write(block, to, &sums).await?;
        self.stored.runtime.sums_cache().borrow_mut().replace((self.number, block), &Rc::from(sums));
        Ok(())
    }

    /// A block of which both places are damaged: what is not written anew stays refused.
    fn unknown(&self, block: u64) -> Box<Block> {
        let path = self.stored.file.path().display();
        tracing::warn!(%path, block, "both places of a block of sums are damaged");
        Box::new(Block::UNKNOWN)
    }

    /// Makes durable what was put.
    pub(super) async fn sync(&self, planted: Planted) -> Result<()> {
        // After a failure nobody knows what is durable, whatever a later sync says: it has to be written again.
        if !self.awaits_sync.take() {
            return Ok(());
        }
        if !planted.is(Bug::ImageSumsNotSynced) {
            self.stored.runtime.sync(&self.stored.file).await?;
        }
        self.unsynced.borrow_mut().retain(|_, written| !written.is_of_last);
        Ok(())
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

#[cfg(test)]
mod tests;
