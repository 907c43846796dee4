//! The sums of a base: read and compared with what it holds, and changed with it. The bytes are `format::sums`'s.
//!
//! ```text
//!  advance:   base and one copy ──▶ sync ──▶ the other copy ──▶ sync ──▶ *base set*
//! ```
//!
//! Invariant: of each block that an advance changes, one copy that is durable and whole says the sums of all sectors that the advance
//! does not cover. Those that it covers it says anew, should it have to begin again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::sums::{
    BLOCK_BYTES, Block, Copy, Of, SECTORS_A_BLOCK, blocks_of, by_block, sector_sums, sectors_of, within,
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
        Ok(match (first, self.stored.read(block, Copy::Second).await?) {
            (_, Stored::Sound(sums)) => Some((sums, Copy::Second)),
            (Stored::Hole, _) => Some((Rc::new(Block::ZEROS), Copy::First)),
            (_, Stored::Hole) => Some((Rc::new(Block::ZEROS), Copy::Second)),
            (Stored::Damaged | Stored::Sound(_), Stored::Damaged) => None,
        })
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
        let (first, second) =
            (self.stored.read(block, Copy::First).await?, self.stored.read(block, Copy::Second).await?);
        Ok(match (first, second) {
            (Stored::Damaged, Stored::Damaged) => Some(BlockFault::Both),
            (Stored::Damaged | Stored::Hole, Stored::Sound(_)) => Some(BlockFault::One(Copy::First)),
            (Stored::Damaged, Stored::Hole) => Some(BlockFault::One(Copy::First)),
            (first, second) => (first != second).then_some(BlockFault::One(Copy::Second)),
        })
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
}

impl SumsWriter {
    /// Takes up what an advance before this one left: what is read from here on is durable.
    pub(super) async fn begin(sums: Sums, base_sectors: u64, planted: Planted) -> Result<SumsWriter> {
        let runtime = Rc::clone(&sums.stored.runtime);
        runtime.sync(sums.file()).await?;
        // After a failed sync, memory may go on showing what the device does not have.
        runtime.call(Op::Evict { file: sums.file().clone() }).await?;
        sums.forget();
        let (news, emptied, written) = (RefCell::default(), RefCell::default(), RefCell::default());
        Ok(SumsWriter { sums, planted, news, emptied, written, base_sectors })
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
            None => match self.sums.choose(block).await? {
                Some((sums, from)) => (sums, from.other()),
                None => (self.unknown(block).await?, Copy::First),
            },
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

    /// A block of which both copies are damaged: what is not written anew stays damaged. Nothing lies behind the base's end.
    async fn unknown(&self, block: u64) -> Result<Rc<Block>> {
        // What the device merely does not give now is not to be written over: the advance begins again later.
        for copy in Copy::BOTH {
            self.sums.stored.ask(block, copy).await?;
        }
        tracing::warn!(path = %self.sums.file().path().display(), block, "both copies of a block of sums are damaged");
        let mut sums = Block::UNKNOWN;
        for (sector, sum) in (sectors_of(block).start..).zip(sums.sums_mut()) {
            if sector >= self.base_sectors {
                *sum = 0;
            }
        }
        Ok(Rc::new(sums))
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
