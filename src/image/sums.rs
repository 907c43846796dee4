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
//!    counts is written again only once it is known to be durable: after an opening, and after any failure, the file is synced and
//!    evicted from memory first, so that what is read is what the device has. And whatever an attempt that failed left there, or a
//!    device that does not answer gives back later, is outranked by what is written next: sequence numbers are of records at least.
//! 2. While no layer and no side file holds a sector, image and sums agree on it, but for damage: from the moment that its places are
//!    looked up until the next batch [begins](ImageSums::begin) to write the image. So a read whose bytes do not match looks its places
//!    up again if one began since; then a layer has the sector, or image and sums are both the later ones, or nobody wrote it. If none
//!    began, it is damage. The same goes for what a block of the cache says: it is replaced before the layers of a batch go, and
//!    what was read while blocks were written is not kept.
//!
//! A rotten block has nothing served that was not checked: if both its places are damaged, its sectors are refused; if one is, the other
//! one may be older, and what was written since is refused. Good bytes may so be refused until somebody writes them anew, and
//! what is said of them names the sums, also when they have been written on since. To bring the other place up behind each batch would mend that, and cost a third more operations
//! where writes are scattered: one bit in 127 is of sums, and what a flip there takes with it is told, and in the points. That which is
//! neither is the *torn* place of a batch that a power cut ended: its journal has all that the other place does not say.
//!
//! Whoever writes the image or its sums has the [turn](ImageSums::turn): batches, the mend of a latched disk, who gives an image of
//! before there were sums its own ([`pass`]), and who writes anew what a verification found damaged ([`places`]).
//!
//! Most that is in memory for a batch are the sums of what it writes, 1/128 of it; each block is read and written once.

mod pass;
mod places;
mod writer;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use futures::lock::{Mutex, MutexGuard};

use crate::error::{Error, Result, is_of_the_file};
use crate::format::sums::{BLOCK_BYTES, Block, Copy, Holes, Of, SECTORS_A_BLOCK, by_block, within};
use crate::runtime::Runtime;
use crate::storage::{Buffer, Create, File, Op, OpenOptions};
use crate::sums::builder::SumsBuilder;
use crate::sums::cache::Kept;
use crate::sums::{Stored, SumsFile, nonzero};
use crate::units::{DiskId, SECTOR_BYTES, SectorCount, SectorRange, to_usize};

pub use pass::Summed;
pub use places::Looked;
pub(super) use writer::Put;
use writer::State;

/// Bytes of both places of a block, which lie side by side.
const PAIR_BYTES: usize = 2 * BLOCK_BYTES;

/// Path of the sums of a disk's image.
pub fn sums_path(directory: &Path, disk: DiskId) -> PathBuf {
    directory.join(format!("{disk}.sums"))
}

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
    /// What is known of the file's durability.
    state: Cell<State>,
    /// The copy of the header that was damaged when it was opened, until it is written anew.
    rotten_header: Cell<Option<Copy>>,
    /// What a block says that nobody wrote, where that is not zeros by now.
    empty: Rc<Block>,
    /// Blocks before this one say zeros where nobody wrote them: all of them, but of an image of before there were sums, until
    /// [somebody looked](Summed) what it holds.
    settled: Cell<u64>,
    /// Whoever writes the image or its sums: one at a time.
    turn: Mutex<()>,
}

/// What is known of a block.
#[derive(Clone, Debug)]
pub struct Known {
    /// What counts; `None` if nobody knows.
    newest: Option<Kept>,
    /// Neither of its places is damaged, or was not given, or became a hole.
    is_whole: bool,
}

impl Known {
    /// That nobody knows.
    pub const NOTHING: Known = Known { newest: None, is_whole: false };

    /// The sums of sectors of the block.
    fn sums(&self) -> &[u32] {
        self.newest.as_ref().map_or(Block::UNKNOWN.sums(), |newest| newest.sums.sums())
    }

    /// Whether what it says may be older than what was written.
    fn is_doubtful(&self) -> bool {
        !self.is_whole || self.newest.as_ref().is_none_or(|newest| newest.sums.is_doubtful())
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

impl ImageSums {
    fn new(stored: SumsFile, image: &Path, state: State, rotten_header: Option<Copy>) -> Rc<ImageSums> {
        let (number, empty) = (stored.runtime.new_owner(), Rc::new(stored.of.empty()));
        let settled = Cell::new(if stored.of == Of::Image(Holes::Zeros) { u64::MAX } else { 0 });
        let (image, state, rotten_header) = (image.to_owned(), Cell::new(state), Cell::new(rotten_header));
        let (epoch, is_writing, turn) = Default::default();
        Rc::new(ImageSums {
            stored,
            image,
            number,
            epoch,
            is_writing,
            state,
            rotten_header,
            empty,
            settled,
            turn,
        })
    }

    /// Keeps others from writing the image or its sums while the returned guard lives.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Opens the sums of an image.
    pub(super) async fn open(
        runtime: &Rc<Runtime>,
        file: File,
        disk: DiskId,
        image: &Path,
    ) -> Result<Rc<ImageSums>> {
        let stored = SumsFile::of_image(runtime, file, disk).await?;
        let rotten_header = stored.rotten_header().await?;
        Ok(ImageSums::new(stored, image, State::Unsettled, rotten_header))
    }

    /// Where its header was damaged when it was opened: file and offset. The other copy was used.
    pub fn rot(&self) -> Option<(&Path, u64)> {
        let copy = self.rotten_header.get()?;
        Some((self.stored.file.path(), self.stored.of.header_offset(copy)))
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
        let sums = ImageSums::new(stored, image, State::Durable, None);
        sums.lengthen(size).await?;
        Ok(sums)
    }

    /// Takes the sums of what a new image is filled with.
    pub(super) async fn builder(&self) -> Result<SumsBuilder> {
        SumsBuilder::begin(self.stored.clone()).await
    }

    /// Whether it says something of each sector: that of an image of before there were sums does not, until all of it was looked at.
    pub fn has_all(&self) -> bool {
        self.settled.get() == u64::MAX
    }

    /// What a block says that nobody wrote.
    fn unwritten(&self, block: u64) -> Rc<Block> {
        if block < self.settled.get() { Rc::new(Block::ZEROS) } else { Rc::clone(&self.empty) }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.stored.file
    }

    /// Gives the file places for all blocks of a disk of `size`, durably, if it has fewer.
    pub(super) async fn lengthen(&self, size: SectorCount) -> Result<()> {
        let blocks = size.0.div_ceil(SECTORS_A_BLOCK);
        let bytes = self.stored.of.block_offset(blocks, Copy::First);
        if self.stored.runtime.length(&self.stored.file).await? < bytes {
            self.stored.runtime.set_length(&self.stored.file, bytes).await?;
            self.stored.runtime.sync(&self.stored.file).await?;
        }
        Ok(())
    }

    /// The sums of what sectors from `first` on are about to hold.
    pub(super) fn of<'a>(&self, first: u64, data: &'a [u8]) -> impl Iterator<Item = u32> + use<'a> {
        self.stored.of.sums_of(first, data)
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
        let newest = self.stored.runtime.sums_cache().borrow().get((self.number, block))?;
        Some(Known { newest: Some(newest), is_whole: true })
    }

    /// Keeps a block that was read since `epoch`.
    fn keep(&self, block: u64, known: &Known, epoch: u64) {
        if let Known { newest: Some(newest), is_whole: true } = known
            && epoch == self.epoch.get()
            && !self.is_writing.get()
        {
            self.stored.runtime.sums_cache().borrow_mut().insert((self.number, block), newest.clone());
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
        let known = self.known(block, pair);
        self.keep(block, &known, epoch);
        known
    }

    /// What the two places of a block say together: the one that counts is the newer one that is sound.
    pub fn known(&self, block: u64, pair: (Stored, Stored)) -> Known {
        let is_damaged = matches!(pair, (Stored::Damaged, _) | (_, Stored::Damaged));
        let became_a_hole = match &pair {
            (Stored::Hole, Stored::Sound(sums)) | (Stored::Sound(sums), Stored::Hole) => !sums.is_alone(),
            _ => false,
        };
        let (sums, at) = match pair {
            (Stored::Sound(first), Stored::Sound(second)) if second.sequence() > first.sequence() => {
                (second, Copy::Second)
            }
            (Stored::Sound(first), _) => (first, Copy::First),
            (_, Stored::Sound(second)) => (second, Copy::Second),
            (Stored::Hole, _) => (self.unwritten(block), Copy::First),
            (_, Stored::Hole) => (self.unwritten(block), Copy::Second),
            (Stored::Damaged, Stored::Damaged) => return Known::NOTHING,
        };
        Known { newest: Some(Kept { sums, at }), is_whole: !is_damaged && !became_a_hole }
    }

    /// A block, from memory or from the file, each place by itself: one of them may not be readable.
    pub async fn block(&self, block: u64) -> Result<Known> {
        if let Some(known) = self.recall(block) {
            return Ok(known);
        }
        let epoch = self.epoch.get();
        let known = self.known(block, self.read_places(block).await?);
        self.keep(block, &known, epoch);
        Ok(known)
    }

    async fn read_places(&self, block: u64) -> Result<(Stored, Stored)> {
        match self.read_pair(block).await? {
            Some(pair) => Ok(pair),
            None => Ok((
                self.stored.read(block, Copy::First).await?,
                self.stored.read(block, Copy::Second).await?,
            )),
        }
    }

    /// Reads both places at once; nothing, if one of them cannot be had so.
    async fn read_pair(&self, block: u64) -> Result<Option<(Stored, Stored)>> {
        let offset = self.stored.of.block_offset(block, Copy::First);
        match self.stored.runtime.read(&self.stored.file, offset, PAIR_BYTES).await {
            Ok(bytes) => {
                let (first, second) = bytes.split_at(BLOCK_BYTES);
                Ok(Some((self.stored.parse(block, first), self.stored.parse(block, second))))
            }
            Err(error) if is_of_the_file(error.kind()) => Ok(None),
            Err(error) => Err(error),
        }
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
            let stored = &known.sums()[within(block, sectors)];
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
        if known.is_doubtful() {
            let at = self.stored.of.block_offset(block, Copy::First);
            let path = self.stored.file.path().display();
            let what =
                if known.is_whole { "were taken over from damaged ones" } else { "are damaged themselves" };
            text += &format!(
                ", which {what} ({path} at byte {at}): the image may be what was written, and nobody can tell"
            );
        }
        Error::corrupt(text).at_path(&self.image).at_offset(sectors.byte_offset())
    }

    /// The sectors of some ranges, which ascend, that are not zeros by their sums.
    pub async fn nonzero(&self, ranges: &[SectorRange]) -> Result<Vec<SectorRange>> {
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { return Ok(Vec::new()) };
        let blocks = first.start / SECTORS_A_BLOCK..last.end.div_ceil(SECTORS_A_BLOCK);
        let blocks = self.stored_blocks(blocks).await?.into_iter();
        let sums = async |block| {
            let known = self.block(block).await?;
            Ok(known.newest.map_or_else(|| Rc::new(Block::UNKNOWN), |newest| newest.sums))
        };
        nonzero(ranges, blocks, self.stored.of, sums).await
    }
}

#[cfg(test)]
mod tests;
