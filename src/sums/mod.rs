//! Files of sums, whatever they are of: their headers, and the two places of each block. What the places mean together, and in which
//! order they are written, is for who keeps them to say: `vault::sums` those of bases, `image::sums` those of images.

pub mod builder;
pub mod cache;

use std::ops::Range;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;

use futures::stream::{self, StreamExt};

use crate::error::{Error, ErrorKind, Result, is_of_the_file};
use crate::format::sums::{
    BLOCK_BYTES, Block, Copy, Holes, Of, UNCHECKED, check_header, check_image_header, encode_header,
    sectors_of, within,
};
use crate::runtime::Runtime;
use crate::storage::{Buffer, File, OpenOptions};
use crate::units::{DiskId, SECTOR_BYTES, SectorRange, to_usize};

/// Blocks that are looked up at a time.
const BLOCKS_IN_FLIGHT: usize = 16;

/// A place of a block, as it lies there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Nobody wrote it.
    Hole,
    /// What was written there.
    Sound(Rc<Block>),
    /// It is not what was written, or is not to be had.
    Damaged,
}

/// A file of sums.
#[derive(Clone)]
pub struct SumsFile {
    /// What it is read and written with.
    pub runtime: Rc<Runtime>,
    /// The file.
    pub file: File,
    /// Whose sums it holds,
    pub disk: DiskId,
    /// and of what of it.
    pub of: Of,
}

impl std::fmt::Debug for SumsFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SumsFile").field("file", &self.file).field("of", &self.of).finish_non_exhaustive()
    }
}

impl SumsFile {
    /// The sums of a base, of which one copy of the header is sound at least.
    pub async fn of_base(
        runtime: &Rc<Runtime>,
        path: &Path,
        disk: DiskId,
        options: OpenOptions,
    ) -> Result<SumsFile> {
        let file = runtime.open(path, options).await?;
        let sums = SumsFile { runtime: Rc::clone(runtime), file, disk, of: Of::Base };
        sums.read_header().await?;
        Ok(sums)
    }

    /// The sums of an image, as [`SumsFile::of_base`].
    pub async fn of_image(runtime: &Rc<Runtime>, file: File, disk: DiskId) -> Result<SumsFile> {
        let mut sums = SumsFile { runtime: Rc::clone(runtime), file, disk, of: Of::Image(Holes::default()) };
        sums.of = sums.read_header().await?;
        Ok(sums)
    }

    async fn read_header(&self) -> Result<Of> {
        let first = match self.read_copy_of_header(Copy::First).await {
            Err(error) => error,
            sound => return sound,
        };
        self.read_copy_of_header(Copy::Second).await.map_err(|second| match second.kind() {
            // A newer program's says more than that the other copy is damaged.
            ErrorKind::Unsupported => second,
            _ => first,
        })
    }

    async fn read_copy_of_header(&self, copy: Copy) -> Result<Of> {
        let at = self.of.header_offset(copy);
        let bytes = self.runtime.read(&self.file, at, BLOCK_BYTES).await?;
        let read = match self.of {
            Of::Base => check_header(&bytes, self.disk).map(|()| Of::Base),
            Of::Image(_) => check_image_header(&bytes, self.disk),
        };
        read.map_err(|error| error.at_offset(at).at_path(self.file.path()))
    }

    /// What is wrong with either copy of the header, if one is sound.
    pub async fn header_fault(&self) -> Result<Option<Error>> {
        for copy in Copy::BOTH {
            match self.read_copy_of_header(copy).await {
                Err(error) if error.kind() == ErrorKind::Shutdown => return Err(error),
                Err(error) => return Ok(Some(error)),
                Ok(_) => {}
            }
        }
        Ok(None)
    }

    /// The copy of the header that is damaged, if one is and the other is sound.
    pub async fn rotten_header(&self) -> Result<Option<Copy>> {
        for copy in Copy::BOTH {
            match self.read_copy_of_header(copy).await {
                Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(Some(copy)),
                // What the device does not give now may be sound.
                Err(error) if error.kind() != ErrorKind::Io => return Err(error),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Writes both copies of the header.
    pub async fn write_header(&self) -> Result<()> {
        for copy in Copy::BOTH {
            self.write_copy_of_header(copy).await?;
        }
        Ok(())
    }

    /// Writes one of them.
    pub async fn write_copy_of_header(&self, copy: Copy) -> Result<()> {
        let header = Buffer::copy_of(&encode_header(self.of, self.disk)).freeze();
        self.runtime.write(&self.file, self.of.header_offset(copy), header).await
    }

    /// What lies in a place.
    pub async fn read(&self, block: u64, copy: Copy) -> Result<Stored> {
        match self.ask(block, copy).await {
            // Cut off meanwhile, or not given by the device: the other place is there for that.
            Err(error) if is_of_the_file(error.kind()) => Ok(Stored::Damaged),
            asked => asked,
        }
    }

    /// The same, where it matters whether the device gave it.
    pub async fn ask(&self, block: u64, copy: Copy) -> Result<Stored> {
        let (at, length) = (self.of.block_offset(block, copy), self.runtime.length(&self.file).await?);
        if at >= length {
            return Ok(Stored::Hole);
        }
        let stored = to_usize((length - at).min(BLOCK_BYTES as u64));
        let read = self.runtime.read(&self.file, at, stored).await?;
        let mut bytes = [0; BLOCK_BYTES];
        bytes[..stored].copy_from_slice(&read);
        Ok(self.parse(block, &bytes))
    }

    /// What the bytes of a place are.
    pub fn parse(&self, block: u64, bytes: &[u8]) -> Stored {
        if bytes.iter().fold(0, |found, byte| found | byte) == 0 {
            return Stored::Hole;
        }
        let sums = Block::decode(bytes, self.of, self.disk, block);
        sums.map_or(Stored::Damaged, |sums| Stored::Sound(Rc::new(sums)))
    }

    /// Writes a block to a place.
    pub async fn write(&self, block: u64, copy: Copy, sums: &Block) -> Result<()> {
        let bytes = Buffer::copy_of(&sums.encode(self.disk, block)).freeze();
        self.runtime.write(&self.file, self.of.block_offset(block, copy), bytes).await
    }
}

/// The sectors of some ranges, which ascend, that are not zeros by their sums. `blocks` are those of which the file has something, in order.
pub async fn nonzero(
    ranges: &[SectorRange],
    blocks: impl Iterator<Item = u64>,
    of: Of,
    sums: impl AsyncFn(u64) -> Result<Rc<Block>>,
) -> Result<Vec<SectorRange>> {
    let mut ranges = ranges.iter().peekable();
    let wanted = blocks.filter_map(|block| {
        let all = sectors_of(block);
        while ranges.next_if(|range| range.end <= all.start).is_some() {}
        // The last of them may reach into the next block.
        let parts: Vec<_> = ranges.clone().map_while(|range| all.intersection(*range)).collect();
        let sums = &sums;
        (!parts.is_empty()).then_some(async move { Ok::<_, Error>((block, parts, sums(block).await?)) })
    });
    let mut looked_up = pin!(stream::iter(wanted).buffered(BLOCKS_IN_FLIGHT));
    let is_nonzero = |sum: u32| sum != 0 && !(of != Of::Base && sum == UNCHECKED);
    let mut found: Vec<SectorRange> = Vec::new();
    while let Some((block, parts, sums)) = looked_up.next().await.transpose()? {
        for sectors in parts {
            let stored = (sectors.start..).zip(&sums.sums()[within(block, sectors)]);
            for (sector, _) in stored.filter(|(_, sum)| is_nonzero(**sum)) {
                match found.last_mut() {
                    Some(last) if last.end == sector => last.end += 1,
                    _ => found.push(SectorRange::new(sector, sector + 1)),
                }
            }
        }
    }
    Ok(found)
}

/// The parts of a range of bytes that hold data, or should by their sums: `data` is what is allocated, and `nonzero` tells the sectors of
/// what is not that are not zeros.
pub async fn with_lost(
    data: Vec<Range<u64>>,
    range: Range<u64>,
    nonzero: impl AsyncFnOnce(Vec<SectorRange>) -> Result<Vec<SectorRange>>,
) -> Result<Vec<Range<u64>>> {
    let ends = data.iter().map(|data| data.start).chain([range.end]);
    let holes = [range.start].into_iter().chain(data.iter().map(|data| data.end)).zip(ends);
    let sectors =
        |(start, end): (u64, u64)| SectorRange::new(start / SECTOR_BYTES, end.div_ceil(SECTOR_BYTES));
    let holes: Vec<_> = holes.filter(|(start, end)| start < end).map(sectors).collect();
    let lost = nonzero(holes).await?.into_iter().map(SectorRange::byte_range);
    let lost = lost.map(|lost| lost.start.max(range.start)..lost.end.min(range.end));
    let mut all: Vec<Range<u64>> = data.into_iter().chain(lost).collect();
    all.sort_unstable_by_key(|data| data.start);
    Ok(joined(all))
}

fn joined(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}
