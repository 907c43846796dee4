//! Damage in places that no read meets: the ones that do not count, and the copies of the header. Whoever verifies looks for it, and what
//! is found is written anew, so that each block has two places again.
//!
//! A torn place is no damage while a batch is to write it: it is one of a block of which layers or side files hold something. Nor is
//! one in blocks that have yet to get their sums: who gives them those writes it.

use std::ops::Range;

use super::{ImageSums, Known, PAIR_BYTES};
use crate::error::{Error, Result, is_of_the_file};
use crate::format::sums::{BLOCK_BYTES, Copy, Holes, Of, SECTORS_A_BLOCK, sectors_of};
use crate::planted::Planted;
use crate::storage::{File, Op};
use crate::sums::{Stored, SumsFile};
use crate::units::{SectorCount, SectorRange, to_usize};

/// Blocks whose places are read at a time: 1 MiB.
const BLOCKS_A_READ: u64 = 128;

/// What a second look at a block gave.
#[derive(Debug)]
pub enum Looked {
    /// Nothing: somebody wrote meanwhile.
    Overtaken,
    /// What is wrong with its places, and what became of it; nothing, if they are whole.
    At(Option<Error>),
}

impl ImageSums {
    /// The blocks that begin in a range of sectors of which a place is not whole, as the device has it; and the bytes read. Somebody may
    /// just be writing them, or about to.
    pub async fn suspects(&self, range: SectorRange) -> Result<(Vec<u64>, u64)> {
        // Best effort: what memory has is read from there.
        let _ = self.stored.runtime.call(Op::Evict { file: self.stored.file.clone() }).await;
        let end = range.end.div_ceil(SECTORS_A_BLOCK).min(self.settled.get());
        let blocks = range.start.div_ceil(SECTORS_A_BLOCK)..end;
        let (mut suspects, mut read_bytes) = (Vec::new(), 0);
        if blocks.is_empty() {
            return Ok((suspects, read_bytes));
        }
        for run in self.stored_runs(blocks).await? {
            for start in run.clone().step_by(to_usize(BLOCKS_A_READ)) {
                let part = start..run.end.min(start + BLOCKS_A_READ);
                read_bytes += (part.end - part.start) * PAIR_BYTES as u64;
                suspects.extend(self.suspects_of(part).await?);
            }
        }
        Ok((suspects, read_bytes))
    }

    async fn suspects_of(&self, blocks: Range<u64>) -> Result<Vec<u64>> {
        let offset = self.stored.of.block_offset(blocks.start, Copy::First);
        let bytes = to_usize(blocks.end - blocks.start) * PAIR_BYTES;
        let bytes = match self.stored.runtime.read(&self.stored.file, offset, bytes).await {
            Ok(bytes) => bytes,
            // Which of them it is, is seen one by one.
            Err(error) if is_of_the_file(error.kind()) => return Ok(blocks.collect()),
            Err(error) => return Err(error),
        };
        let is_suspect = |(block, pair): &(u64, &[u8])| {
            let (first, second) = pair.split_at(BLOCK_BYTES);
            let pair = (self.stored.parse(*block, first), self.stored.parse(*block, second));
            !self.known(*block, pair).is_whole
        };
        Ok(blocks.zip(bytes.chunks_exact(PAIR_BYTES)).filter(is_suspect).map(|(block, _)| block).collect())
    }

    /// Looks at a block while nobody writes, if nobody did since `epoch`, and writes anew what is damaged: what is there of an image of
    /// `sectors` tells whether its sums are the newest.
    pub async fn mend_places(
        &self,
        block: u64,
        epoch: u64,
        (image, sectors): (&File, SectorCount),
        planted: Planted,
    ) -> Result<Looked> {
        let _turn = self.turn().await;
        if epoch != self.epoch() {
            return Ok(Looked::Overtaken);
        }
        let pair = self.ask_for_places(block, true).await?;
        let damaged = match &pair {
            (Stored::Damaged, Stored::Damaged) => Some((Copy::First, true)),
            (Stored::Damaged, _) => Some((Copy::First, false)),
            (_, Stored::Damaged) => Some((Copy::Second, false)),
            (Stored::Hole, Stored::Sound(sums)) if !sums.is_alone() => Some((Copy::First, false)),
            (Stored::Sound(sums), Stored::Hole) if !sums.is_alone() => Some((Copy::Second, false)),
            _ => None,
        };
        let Some((copy, is_lost)) = damaged else { return Ok(Looked::At(None)) };
        // What memory has was written, or read when it was whole.
        let known = self.recall(block).unwrap_or_else(|| self.known(block, pair));
        let within = SectorRange::new(sectors_of(block).start, sectors_of(block).end.min(sectors.0));
        let mended = match &known.newest {
            None => Ok(false),
            Some(_) => self.write_anew(block, &known, copy, (image, within), planted).await.map(|()| true),
        };
        let both = if is_lost { "both places" } else { "one of the two places" };
        let what = match mended {
            Ok(true) => "it was written anew".to_owned(),
            Ok(false) => {
                "what it said is lost, and its sectors are refused until they are written anew".to_owned()
            }
            Err(error) => format!("it could not be written anew: {error}"),
        };
        let text = format!("{both} of the sums of the image's sectors {within} is damaged; {what}");
        let offset = self.stored.of.block_offset(block, copy);
        Ok(Looked::At(Some(Error::corrupt(text).at_path(self.stored.file.path()).at_offset(offset))))
    }

    async fn write_anew(
        &self,
        block: u64,
        known: &Known,
        copy: Copy,
        (image, within): (&File, SectorRange),
        planted: Planted,
    ) -> Result<()> {
        let news = self.sums_as_it_is(image, within).await?;
        let rewrite = async || self.rewrite(block, known, copy, Some(&news), |_| false).await;
        self.write_durably(planted, rewrite).await
    }

    /// Looks at the copies of the header, and writes anew one that is damaged: what there is to say of it.
    pub async fn mend_headers(&self, planted: Planted) -> Result<Option<Error>> {
        let _turn = self.turn().await;
        let Some(copy) = self.stored.rotten_header().await? else { return Ok(None) };
        let holes = if self.has_all() { Holes::Zeros } else { Holes::Unchecked };
        let whole = SumsFile { of: Of::Image(holes), ..self.stored.clone() };
        let mended = self.write_durably(planted, async || whole.write_copy_of_header(copy).await).await;
        let what = match mended {
            Ok(()) => {
                self.rotten_header.set(None);
                "it was written anew".to_owned()
            }
            Err(error) => format!("it could not be written anew: {error}"),
        };
        let text = format!("one of the two copies of the header of the image's sums is damaged; {what}");
        let offset = self.stored.of.header_offset(copy);
        Ok(Some(Error::corrupt(text).at_path(self.stored.file.path()).at_offset(offset)))
    }

    /// The blocks among these of which the file has something, in runs.
    pub(super) async fn stored_runs(&self, blocks: Range<u64>) -> Result<Vec<Range<u64>>> {
        let places = |block| self.stored.of.block_offset(block, Copy::First);
        let bytes = places(blocks.start)..places(blocks.end);
        let data = self.stored.runtime.data_ranges(&self.stored.file, bytes).await?;
        let pair = PAIR_BYTES as u64;
        // Where a file system's blocks are longer than ours, one may be told twice.
        let mut end = blocks.start;
        let runs = data.into_iter().filter_map(|data| {
            let run = (data.start / pair - 1).max(end)..(data.end.div_ceil(pair) - 1).min(blocks.end);
            end = end.max(run.end);
            (!run.is_empty()).then_some(run)
        });
        Ok(runs.collect())
    }

    /// The same, one by one.
    pub(super) async fn stored_blocks(&self, blocks: Range<u64>) -> Result<Vec<u64>> {
        Ok(self.stored_runs(blocks).await?.into_iter().flatten().collect())
    }
}
