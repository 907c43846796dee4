//! The sums of what is written into a new file, on their way into another new one.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::{Stored, SumsFile};
use crate::error::Result;
use crate::format::sums::{Block, Copy, Of, by_block, within};
use crate::units::{SECTOR_BYTES, SectorRange, to_usize};

/// Blocks that are kept to be added to: what is written comes almost in order.
const OPEN_MAX: usize = 64;

/// New sums, in both places of each block. The file was empty, and nobody relies on it yet.
#[derive(Debug)]
pub struct SumsBuilder {
    sums: SumsFile,
    open: BTreeMap<u64, Block>,
    /// Blocks from here on have not been written.
    fresh: u64,
}

impl SumsBuilder {
    /// For an empty file, which gets its header.
    pub async fn begin(sums: SumsFile) -> Result<SumsBuilder> {
        sums.write_header().await?;
        Ok(SumsBuilder { sums, open: BTreeMap::new(), fresh: 0 })
    }

    /// Takes bytes that begin at a sector, and are nowhere else; what is missing of the last sector is zeros.
    pub async fn add(&mut self, first: u64, bytes: &[u8]) -> Result<()> {
        let sums: Vec<u32> = self.sums.of.sums_of(first, bytes).collect();
        let range = SectorRange::new(first, first + (bytes.len() as u64).div_ceil(SECTOR_BYTES));
        for (block, sectors) in by_block(range) {
            let news = &sums[to_usize(sectors.start - first)..to_usize(sectors.end - first)];
            if news.iter().any(|sum| *sum != 0) {
                self.open(block).await?.sums_mut()[within(block, sectors)].copy_from_slice(news);
            }
        }
        Ok(())
    }

    async fn open(&mut self, block: u64) -> Result<&mut Block> {
        if !self.open.contains_key(&block) {
            while self.open.len() >= OPEN_MAX {
                self.put_first().await?;
            }
            let stored =
                if block < self.fresh { self.sums.read(block, Copy::First).await? } else { Stored::Hole };
            self.fresh = self.fresh.max(block + 1);
            let sums =
                if let Stored::Sound(sums) = stored { Rc::unwrap_or_clone(sums) } else { Block::ZEROS };
            self.open.insert(block, sums);
        }
        Ok(self.open.get_mut(&block).expect("just opened"))
    }

    async fn put_first(&mut self) -> Result<()> {
        let Some((block, mut sums)) = self.open.pop_first() else { return Ok(()) };
        if self.sums.of != Of::Base {
            sums.succeed(0);
        }
        for copy in Copy::BOTH {
            self.sums.write(block, copy, &sums).await?;
        }
        Ok(())
    }

    /// Makes the file durable.
    pub async fn finish(mut self) -> Result<()> {
        while !self.open.is_empty() {
            self.put_first().await?;
        }
        self.sums.runtime.sync(&self.sums.file).await
    }
}
