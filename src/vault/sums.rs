//! The sums of a base: read and compared with what it holds, and changed with it. The bytes are `format::sums`'s.
//!
//! ```text
//!  advance:   base and one copy ──▶ sync ──▶ the other copy ──▶ sync ──▶ *base set*
//! ```
//!
//! Invariant: of each block that an advance changes, one copy that is durable and whole says the sums of all sectors that the advance
//! does not cover. Those that it covers it says anew, should it have to begin again.
//!
//! Of a block that is damaged in both copies, an advance writes what it covers anew; the others are *unknown* from then on, which no
//! content fits. So who is refused such a sector is told of the sums, and not of the base, in which nothing may have flipped.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::sums::{
    BLOCK_BYTES, Block, Copy, Of, SECTORS_A_BLOCK, UNKNOWN, blocks_of, by_block, sector_sums, sectors_of,
    within,
};
use crate::planted::{Bug, Planted};
use crate::pour::pour;
use crate::runtime::Runtime;
use crate::storage::{File, Op, OpenOptions};
use crate::sums::builder::SumsBuilder;
use crate::sums::{Stored, SumsFile, nonzero};
use crate::units::{DiskId, SECTOR_BYTES, SectorRange, to_usize};

/// Blocks that a reader keeps: those of 16 MiB of a base.
const RECENT_MAX: usize = 32;
/// Blocks that are changed at a time.
const BLOCKS_IN_FLIGHT: usize = 8;

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockFault {
    /// One copy is damaged, or they differ: the first is believed, or the one that is sound.
    One(Copy),
    /// Nobody knows the sums of its sectors.
    Both,
}

/// What an advance has met that flipped in the sums of a base since the advance before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SumsRot {
    /// Whose base.
    pub disk: DiskId,
    /// The sums,
    pub path: PathBuf,
    /// and where in them the damaged copy of a block is.
    pub offset: u64,
    /// Whether both copies are damaged, and what they said is lost.
    pub is_lost: bool,
}

/// What advances have met, and whether they tell: one that goes on after a death or a failure may find what that tore.
#[derive(Debug, Default)]
pub(super) struct Met {
    pub(super) tells: Cell<bool>,
    pub(super) rots: RefCell<Vec<SumsRot>>,
}

/// The sums of one base.
pub struct Sums {
    stored: SumsFile,
    /// The newest first.
    recent: RefCell<VecDeque<(u64, Rc<Block>)>>,
}

impl Sums {
    /// Opens the sums that a base has by its name.
    pub(super) async fn open(
        runtime: &Rc<Runtime>,
        path: &Path,
        disk: DiskId,
        options: OpenOptions,
    ) -> Result<Sums> {
        let stored = SumsFile::of_base(runtime, path, disk, options).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                let text =
                    "the sums of this base are gone, so that nobody can tell whether it is what was stored";
                Error::corrupt(text).at_path(path)
            }
            _ => error,
        })?;
        Ok(Sums { stored, recent: RefCell::default() })
    }

    /// What is wrong with either copy of the header, if one is sound.
    pub(super) async fn header_fault(&self) -> Result<Option<Error>> {
        self.stored.header_fault().await
    }

    /// The file.
    pub(super) fn file(&self) -> &File {
        &self.stored.file
    }

    /// A block, and in which copy it is; `None` if neither says it.
    async fn choose(&self, block: u64) -> Result<Option<(Rc<Block>, Copy)>> {
        let first = self.stored.read(block, Copy::First).await?;
        if let Stored::Sound(sums) = first {
            return Ok(Some((sums, Copy::First)));
        }
        match chosen(first, self.stored.read(block, Copy::Second).await?) {
            None => {
                let (first, second) = self.ask_both(block).await?;
                Ok(chosen(first, second))
            }
            found => Ok(found),
        }
    }

    /// Both copies.
    async fn read_both(&self, block: u64) -> Result<(Stored, Stored)> {
        Ok((self.stored.read(block, Copy::First).await?, self.stored.read(block, Copy::Second).await?))
    }

    /// The same, where neither says anything: that may be the device, which did not give them, and they are asked for again. Fails
    /// if it still does not: nobody can say of such copies that they are damaged.
    async fn ask_both(&self, block: u64) -> Result<(Stored, Stored)> {
        Ok((self.stored.ask(block, Copy::First).await?, self.stored.ask(block, Copy::Second).await?))
    }

    /// The parts of sectors that do not match, each with where it is said what they should hold, if nobody knows that.
    pub(super) async fn blame(&self, sectors: SectorRange) -> Result<Vec<(SectorRange, Option<u64>)>> {
        let mut parts: Vec<(SectorRange, Option<u64>)> = Vec::new();
        for (block, within_block) in by_block(sectors) {
            let sums = self.block(block).await?;
            let at = Of::Base.block_offset(block, Copy::First);
            let stored = &sums.sums()[within(block, within_block)];
            for (sector, sum) in (within_block.start..).zip(stored) {
                let unknown = (*sum == UNKNOWN).then_some(at);
                match parts.last_mut() {
                    Some((last, blamed)) if *blamed == unknown => last.end += 1,
                    _ => parts.push((SectorRange::new(sector, sector + 1), unknown)),
                }
            }
        }
        Ok(parts)
    }

    async fn block(&self, block: u64) -> Result<Rc<Block>> {
        if let Some(known) = self.recall(block) {
            return Ok(known);
        }
        // What nobody knows fits nothing: it is not served. It is not remembered either, for an advance may write it anew.
        let Some((sums, _)) = self.choose(block).await? else { return Ok(Rc::new(Block::UNKNOWN)) };
        let mut recent = self.recent.borrow_mut();
        recent.retain(|(other, _)| *other != block);
        recent.push_front((block, Rc::clone(&sums)));
        recent.truncate(RECENT_MAX);
        Ok(sums)
    }

    fn recall(&self, block: u64) -> Option<Rc<Block>> {
        let mut recent = self.recent.borrow_mut();
        let at = recent.iter().position(|(other, _)| *other == block)?;
        let entry = recent.remove(at)?;
        recent.push_front(entry);
        recent.front().map(|(_, sums)| Rc::clone(sums))
    }

    /// Forgets what it read: for who looks whether it is still so.
    pub(super) fn forget(&self) {
        self.recent.borrow_mut().clear();
    }

    /// The sectors among these, which begin at `first`, that do not have their sums.
    pub(super) async fn mismatches(&self, first: u64, bytes: &[u8]) -> Result<Vec<SectorRange>> {
        let end = first + bytes.len() as u64 / SECTOR_BYTES;
        let mut found: Vec<SectorRange> = Vec::new();
        for (block, sectors) in by_block(SectorRange::new(first, end)) {
            let sums = self.block(block).await?;
            let start = to_usize((sectors.start - first) * SECTOR_BYTES);
            let content = &bytes[start..start + to_usize(sectors.bytes())];
            let stored = &sums.sums()[within(block, sectors)];
            found.extend(Of::Base.mismatches(sectors.start, content, stored));
        }
        Ok(found)
    }

    /// The sectors of some ranges, which ascend, that are not zeros by their sums.
    pub(super) async fn nonzero(&self, ranges: &[SectorRange]) -> Result<Vec<SectorRange>> {
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { return Ok(Vec::new()) };
        let blocks = self.stored_blocks(SectorRange::new(first.start, last.end)).await?;
        nonzero(ranges, blocks.into_iter(), Of::Base, async |block| self.block(block).await).await
    }

    /// The blocks of a range's sectors of which the file has something.
    pub(super) async fn stored_blocks(&self, range: SectorRange) -> Result<BTreeSet<u64>> {
        let wanted = range.start / SECTORS_A_BLOCK..range.end.div_ceil(SECTORS_A_BLOCK);
        let mut stored = BTreeSet::new();
        for (blocks, _) in self.stored_runs(wanted).await? {
            stored.extend(blocks);
        }
        Ok(stored)
    }

    async fn stored_runs(&self, wanted: Range<u64>) -> Result<Vec<(Range<u64>, Copy)>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let end = Of::Base.block_offset(wanted.end - 1, Copy::Second) + BLOCK_BYTES as u64;
        let start = Of::Base.block_offset(wanted.start, Copy::First);
        let data = self.stored.runtime.data_ranges(&self.stored.file, start..end).await?;
        let within = |(blocks, copy): (Range<u64>, Copy)| {
            let blocks = blocks.start.max(wanted.start)..blocks.end.min(wanted.end);
            (!blocks.is_empty()).then_some((blocks, copy))
        };
        Ok(data.into_iter().flat_map(blocks_of).filter_map(within).collect())
    }

    /// What is wrong with a block itself.
    pub(super) async fn fault_of(&self, block: u64) -> Result<Option<BlockFault>> {
        Ok(fault(&self.read_both(block).await?))
    }
}

/// Which of two copies is believed; `None` if neither says anything.
fn chosen(first: Stored, second: Stored) -> Option<(Rc<Block>, Copy)> {
    match (first, second) {
        (Stored::Sound(sums), _) => Some((sums, Copy::First)),
        (_, Stored::Sound(sums)) => Some((sums, Copy::Second)),
        (Stored::Hole, _) => Some((Rc::new(Block::ZEROS), Copy::First)),
        (_, Stored::Hole) => Some((Rc::new(Block::ZEROS), Copy::Second)),
        (Stored::Damaged, Stored::Damaged) => None,
    }
}

fn fault((first, second): &(Stored, Stored)) -> Option<BlockFault> {
    match (first, second) {
        (Stored::Damaged, Stored::Damaged) => Some(BlockFault::Both),
        (Stored::Damaged | Stored::Hole, Stored::Sound(_)) => Some(BlockFault::One(Copy::First)),
        (Stored::Damaged, Stored::Hole) => Some(BlockFault::One(Copy::First)),
        (first, second) => (first != second).then_some(BlockFault::One(Copy::Second)),
    }
}

/// The sums of a new base, on their way into a new file.
pub(super) async fn build(runtime: &Rc<Runtime>, partial: &Path, disk: DiskId) -> Result<SumsBuilder> {
    let file = runtime.open(partial, OpenOptions::CREATE).await?;
    SumsBuilder::begin(SumsFile { runtime: Rc::clone(runtime), file, disk, of: Of::Base }).await
}

/// New sums of some sectors of a block: where they begin in it.
type Part = (usize, Vec<u32>);

/// The sums of a base that an advance changes.
pub(super) struct SumsWriter {
    sums: Sums,
    planted: Planted,
    /// What was noted since the last flush, by blocks.
    news: RefCell<BTreeMap<u64, Vec<Part>>>,
    /// Blocks that come to hold zeros only, all of them covered.
    emptied: RefCell<Vec<Range<u64>>>,
    /// Blocks that were written, and in which copy: the other one is as the last advance left it.
    written: RefCell<BTreeMap<u64, Copy>>,
    /// Where the base ends.
    base_sectors: u64,
    /// Where it notes what has flipped, if what is damaged can be nothing else.
    met: Option<Rc<Met>>,
}

impl SumsWriter {
    /// Takes up what an advance before this one left: what is read from here on is durable.
    pub(super) async fn begin(
        sums: Sums,
        base_sectors: u64,
        met: &Rc<Met>,
        planted: Planted,
    ) -> Result<SumsWriter> {
        let runtime = Rc::clone(&sums.stored.runtime);
        runtime.sync(sums.file()).await?;
        // After a failed sync, memory may go on showing what the device does not have.
        runtime.call(Op::Evict { file: sums.file().clone() }).await?;
        sums.forget();
        let (news, emptied, written) = (RefCell::default(), RefCell::default(), RefCell::default());
        let met = met.tells.get().then(|| Rc::clone(met));
        Ok(SumsWriter { sums, planted, news, emptied, written, base_sectors, met })
    }

    /// Notes what sectors are about to hold.
    pub(super) fn note(&self, range: SectorRange, bytes: &[u8]) {
        for (block, sectors) in by_block(range) {
            let start = to_usize((sectors.start - range.start) * SECTOR_BYTES);
            let content = &bytes[start..start + to_usize(sectors.bytes())];
            self.note_sums(block, sectors, sector_sums(sectors.start, content).collect());
        }
    }

    fn note_sums(&self, block: u64, sectors: SectorRange, sums: Vec<u32>) {
        let at = to_usize(sectors.start - sectors_of(block).start);
        self.news.borrow_mut().entry(block).or_default().push((at, sums));
    }

    /// Notes that sectors are about to be zeros.
    pub(super) fn note_zeros(&self, range: SectorRange) {
        let whole = range.start.div_ceil(SECTORS_A_BLOCK)..range.end / SECTORS_A_BLOCK;
        let mut parts = vec![range];
        if !whole.is_empty() {
            let (start, end) = (whole.start * SECTORS_A_BLOCK, whole.end * SECTORS_A_BLOCK);
            parts = vec![SectorRange::new(range.start, start), SectorRange::new(end, range.end)];
            self.emptied.borrow_mut().push(whole);
        }
        for (block, sectors) in parts.into_iter().flat_map(by_block) {
            self.note_sums(block, sectors, vec![0; to_usize(sectors.sectors())]);
        }
    }

    /// Brings what was noted to one copy of each block; not durably.
    pub(super) async fn flush(&self) -> Result<()> {
        let news = self.news.take().into_iter().map(|(block, parts)| self.change(block, parts));
        pour(news, BLOCKS_IN_FLIGHT, |()| ()).await?;
        let emptied = self.emptied.take();
        for blocks in emptied {
            for (blocks, copy) in self.sums.stored_runs(blocks).await? {
                let bytes = (blocks.end - blocks.start) * BLOCK_BYTES as u64;
                let start = Of::Base.block_offset(blocks.start, copy);
                self.sums.stored.runtime.zero(self.sums.file(), start..start + bytes, false).await?;
            }
        }
        Ok(())
    }

    async fn change(&self, block: u64, parts: Vec<Part>) -> Result<()> {
        let before = self.written.borrow().get(&block).copied();
        let (mut sums, to) = match before {
            Some(copy) => (self.read_back(block, copy).await?, copy),
            None => {
                let mut pair = self.sums.read_both(block).await?;
                if matches!(pair, (Stored::Damaged, Stored::Damaged)) {
                    // The advance begins again later, if that fails: what nobody gives is not to be written over.
                    pair = self.sums.ask_both(block).await?;
                }
                self.note_fault(block, &pair).await;
                match chosen(pair.0, pair.1) {
                    Some((sums, from)) => (sums, from.other()),
                    None => (self.unknown(block), Copy::First),
                }
            }
        };
        let changed = Rc::make_mut(&mut sums);
        for (at, news) in parts {
            changed.sums_mut()[at..at + news.len()].copy_from_slice(&news);
        }
        self.written.borrow_mut().insert(block, to);
        if self.planted.is(Bug::SumCopiesTogether) {
            self.sums.stored.write(block, to.other(), &sums).await?;
        }
        self.sums.stored.write(block, to, &sums).await
    }

    /// Tells what is damaged of a block that is about to be written anew.
    async fn note_fault(&self, block: u64, pair: &(Stored, Stored)) {
        let (copy, is_lost) = match fault(pair) {
            None => return,
            Some(BlockFault::One(copy)) => (copy, false),
            Some(BlockFault::Both) => (Copy::First, true),
        };
        if !is_lost && !self.is_damaged(block, copy).await {
            return;
        }
        let path = self.sums.file().path().to_owned();
        let offset = Of::Base.block_offset(block, copy);
        let copies = if is_lost { "both copies" } else { "one of the two copies" };
        tracing::warn!(path = %path.display(), offset, block, "{copies} of a block of a base's sums are damaged, by a flipped bit, or by the end of an advance before");
        if let Some(met) = &self.met {
            met.rots.borrow_mut().push(SumsRot { disk: self.sums.stored.disk, path, offset, is_lost });
        }
    }

    /// Whether a copy that does not say what the other one does is damaged, and was not merely kept back by the device.
    async fn is_damaged(&self, block: u64, copy: Copy) -> bool {
        let other = self.sums.stored.read(block, copy.other()).await;
        match (self.sums.stored.ask(block, copy).await, other) {
            (Ok(asked), Ok(other)) => asked != other,
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%error, block, "one copy of a block of sums is not to be had, and is written anew");
                false
            }
        }
    }

    /// A block of which both copies are damaged: what is not written anew stays damaged. Nothing lies behind the base's end.
    fn unknown(&self, block: u64) -> Rc<Block> {
        let mut sums = Block::UNKNOWN;
        for (sector, sum) in (sectors_of(block).start..).zip(sums.sums_mut()) {
            if sector >= self.base_sectors {
                *sum = 0;
            }
        }
        Rc::new(sums)
    }

    async fn read_back(&self, block: u64, copy: Copy) -> Result<Rc<Block>> {
        match self.sums.stored.read(block, copy).await? {
            Stored::Sound(sums) => Ok(sums),
            Stored::Hole | Stored::Damaged => {
                let text = "a block of sums is not what was just written";
                let offset = Of::Base.block_offset(block, copy);
                Err(Error::corrupt(text).at_path(self.sums.file().path()).at_offset(offset))
            }
        }
    }

    /// Makes it durable, first in one copy and then in the other. The base is synced before.
    pub(super) async fn finish(self) -> Result<()> {
        self.flush().await?;
        if self.planted.is(Bug::SumsNotSynced) {
            return Ok(());
        }
        let runtime = &self.sums.stored.runtime;
        runtime.sync(self.sums.file()).await?;
        let written = self.written.take();
        let written = written.into_iter().map(async |(block, copy)| {
            let sums = self.read_back(block, copy).await?;
            self.sums.stored.write(block, copy.other(), &sums).await
        });
        pour(written, BLOCKS_IN_FLIGHT, |()| ()).await?;
        runtime.sync(self.sums.file()).await
    }
}
