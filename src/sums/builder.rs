//! The sums of what is written into a new file, on their way into another new one.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::{Stored, SumsFile};
use crate::error::{Error, Result};
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
            let sums = if block < self.fresh { self.read_back(block).await? } else { Block::ZEROS };
            self.fresh = self.fresh.max(block + 1);
            self.open.insert(block, sums);
        }
        Ok(self.open.get_mut(&block).expect("just opened"))
    }

    /// A block that may have been put already. Were one that rotted since taken for zeros, what it said would be refused for ever.
    async fn read_back(&self, block: u64) -> Result<Block> {
        match self.sums.read(block, Copy::First).await? {
            Stored::Sound(sums) => Ok(Rc::unwrap_or_clone(sums)),
            Stored::Hole => Ok(Block::ZEROS),
            Stored::Damaged => {
                let text = "a block of sums cannot be read back as it was just written: see to its device, and do it again";
                let offset = self.sums.of.block_offset(block, Copy::First);
                Err(Error::corrupt(text).at_path(self.sums.file.path()).at_offset(offset))
            }
        }
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::rc::Rc;

    use super::*;
    use crate::env::OsEnvironment;
    use crate::error::ErrorKind;
    use crate::format::sums::{SECTORS_A_BLOCK, sectors_of};
    use crate::runtime::Runtime;
    use crate::storage::OpenOptions;
    use crate::storage::blocking::Blocking;
    use crate::units::DiskId;

    /// Sums are added to so many blocks that the first of them is put; then to that one, too, behind what `meanwhile` does with the file.
    fn added_late(meanwhile: impl FnOnce(&fs::File) + 'static) -> Result<Block> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let runtime =
            Runtime::new(Box::new(Blocking::new(2).expect("threads")), Rc::new(OsEnvironment::new()));
        let (with, path) = (Rc::clone(&runtime), directory.path().join("sums"));
        runtime.block_on(async move {
            let file = with.open(path.clone(), OpenOptions::CREATE).await?;
            let sums = SumsFile { runtime: with, file, disk: DiskId(1), of: Of::Base };
            let mut builder = SumsBuilder::begin(sums.clone()).await?;
            for block in 0..=OPEN_MAX as u64 {
                builder.add(sectors_of(block).start, &[1; to_usize(SECTOR_BYTES)]).await?;
            }
            meanwhile(&at(&path));
            builder.add(SECTORS_A_BLOCK - 1, &[2; to_usize(SECTOR_BYTES)]).await?;
            builder.finish().await?;
            match sums.read(0, Copy::Second).await? {
                Stored::Sound(sums) => Ok(Rc::unwrap_or_clone(sums)),
                other => panic!("block 0 is {other:?}"),
            }
        })
    }

    fn at(path: &Path) -> fs::File {
        fs::OpenOptions::new().read(true).write(true).open(path).expect("it is there")
    }

    #[test]
    fn what_comes_late_is_added_to_what_was_put() {
        let block = added_late(|_| ()).expect("nothing fails");
        let nonzero = block.sums().iter().filter(|sum| **sum != 0).count();
        assert_eq!(nonzero, 2, "the first sector and the last one");
    }

    #[test]
    fn a_block_that_rotted_since_it_was_put_is_an_error_and_no_zeros() {
        let offset = Of::Base.block_offset(0, Copy::First);
        let error = added_late(move |file| file.write_all_at(&[0xa5; 7], offset + 100).expect("written"));
        let error = error.expect_err("nobody knows the sums of the first sector");
        assert_eq!((error.kind(), error.offset()), (ErrorKind::Corrupt, Some(offset)));
    }
}
