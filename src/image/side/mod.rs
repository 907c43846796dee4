//! Side files: what the image of a latched disk lacks, out of the journal and durable, until the image can take it.
//!
//! ```text
//!   image  <  side file 1  <  side file 2  <  …  <  layers       newer hides older
//! ```
//!
//! A side file is immutable. It is written under a partial name, synced, published, its name synced, and then a receipt,
//! an empty file, that says that it is counted on: only then may the journal let go of the records that it holds. A disk has
//! several when records that were acknowledged before it was latched became visible after the first was begun, or when its
//! files could not be had at several openings; their numbers order them. They may overlap: the newer one hides the older.
//!
//! Records that rotted in the journal are in no file: the file that should have them notes their sectors, and whoever asks
//! for these gets nothing, until something newer hides the note or the loss is accepted ([`lost`]).
//!
//! Here a file is opened, sealed table and all, and read; [`write`] makes one, [`names`] says which there are of a disk and lets go of
//! them, [`loss`] what is lost for good.
//!
//! Invariant: image ∪ side files hold, or note as lost, every record of the disk up to the last one's `through`. A file may go once
//! the checkpoint has reached its `through`, and its receipt before it; until then the image under it may hold anything in
//! the ranges of the file.

mod loss;
mod names;
mod write;

use std::path::Path;
use std::rc::Rc;

pub use self::loss::{lost, refusal, withheld};
pub use self::names::{SideNames, Sides, list, remove, remove_all, side_path};
pub use self::write::{SideWork, Written, write};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::{ExtentMap, Found, FrozenMap, Location};
use crate::format::checksum;
use crate::format::delta::DISK_SECTORS_MAX;
use crate::format::side::{Content, FOOTER_BYTES, Footer, Identity, SEAL_BYTES, Seal, SideExtent};
use crate::journal::sift::Lost;
use crate::runtime::Runtime;
use crate::seal::{GroupKeys, Nonce, Purpose, Sealer};
use crate::storage::{Buffer, File, OpenOptions, Slice};
use crate::units::{DiskId, Lsn, SECTOR_BYTES, SectorRange, to_usize};

/// Where bytes are in a side file: an extent of its table, and how far into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideLocation {
    extent: u32,
    sector: u32,
}

impl Location for SideLocation {
    fn advance(self, sectors: u64) -> SideLocation {
        let sectors = u32::try_from(sectors).expect("an entry says its sectors in 32 bits");
        SideLocation { sector: self.sector + sectors, ..self }
    }
}

/// What a range of a side file holds.
#[derive(Clone, Debug)]
pub enum SidePiece {
    /// Zeros.
    Zero {
        /// Whether the space is to stay allocated.
        allocated: bool,
    },
    /// A part of a chunk.
    Data(ChunkPart),
    /// Nothing: its record is lost.
    Unreadable,
}

/// A part of a chunk: the chunk is read whole, since its sum covers all of it.
#[derive(Clone, Debug)]
pub struct ChunkPart {
    /// The side file.
    pub file: File,
    /// Where the chunk starts.
    pub offset: u64,
    /// Its length.
    pub bytes: usize,
    /// Its sum, or its tag.
    checksum: u128,
    /// What opens it, and its number.
    seal: Option<(Rc<Sealer>, u64)>,
    part: std::ops::Range<usize>,
}

impl ChunkPart {
    /// The part, from the chunk as it was read; `Corrupt` if that is not what was written.
    pub fn verified(&self, chunk: Buffer) -> Result<Slice> {
        Ok(self.open(chunk)?.freeze().slice(self.part.clone()))
    }

    /// What of the chunk the part is.
    pub fn within(&self) -> std::ops::Range<usize> {
        self.part.clone()
    }

    /// All of the chunk.
    pub fn open(&self, mut chunk: Buffer) -> Result<Buffer> {
        let is_sound = match &self.seal {
            Some((sealer, index)) => {
                sealer.open(chunk_nonce(*index), &[], &mut chunk, &self.checksum.to_le_bytes()).is_ok()
            }
            None => checksum(&chunk) == self.checksum,
        };
        if is_sound {
            return Ok(chunk);
        }
        let text =
            "a chunk of the side file does not match its checksum: restore its disk from a recovery point";
        Err(Error::corrupt(text).at_path(self.file.path()).at_offset(self.offset))
    }
}

/// Of the chunk of an extent.
fn chunk_nonce(extent: u64) -> Nonce {
    Nonce { counter: extent, part: 0 }
}

/// Of the seal over table and footer: no table has so many extents.
const SEAL_NONCE: Nonce = Nonce { counter: u64::MAX, part: 0 };

/// An open side file.
#[derive(Debug)]
pub struct SideFile {
    file: File,
    identity: Identity,
    sealer: Option<Rc<Sealer>>,
    extents: Vec<SideExtent>,
    /// Where each extent's chunk starts.
    offsets: Vec<u64>,
    /// What it holds and what it notes, the notes on top.
    map: FrozenMap<SideLocation>,
}

impl SideFile {
    fn new(file: File, identity: Identity, extents: Vec<SideExtent>, sealer: Option<Rc<Sealer>>) -> SideFile {
        let mut offset = 0;
        let mut offsets = Vec::with_capacity(extents.len());
        // Notes stand behind what they hide.
        let mut map = ExtentMap::new();
        for (index, extent) in extents.iter().enumerate() {
            offsets.push(offset);
            offset += extent.chunk_bytes();
            let index = u32::try_from(index).expect("2^32 extents are a table of 128 GiB");
            map.insert(extent.range, SideLocation { extent: index, sector: 0 });
        }
        SideFile { file, identity, sealer, extents, offsets, map: map.freeze() }
    }

    /// Opens the file of that name, which must be this disk's.
    async fn open(runtime: &Rc<Runtime>, path: &Path, expected: Expected<'_>) -> Result<SideFile> {
        let file = runtime.open(path, OpenOptions::READ).await.map_err(|error| missing(error, path))?;
        let read = SideFile::read_table(runtime, &file, expected).await;
        let (identity, extents, sealer) = read.map_err(|error| error.at_path(path))?;
        Ok(SideFile::new(file, identity, extents, sealer))
    }

    async fn read_table(
        runtime: &Rc<Runtime>,
        file: &File,
        expected: Expected<'_>,
    ) -> Result<(Identity, Vec<SideExtent>, Option<Rc<Sealer>>)> {
        let length = runtime.length(file).await?;
        let Some(footer_at) = length.checked_sub(FOOTER_BYTES as u64) else {
            return Err(Error::corrupt("the side file is shorter than its footer").at_offset(length));
        };
        let footer = Footer::decode(&runtime.read(file, footer_at, FOOTER_BYTES).await?, length)?;
        let table = runtime.read(file, footer.table_offset, to_usize(footer.table_bytes())).await?;
        let sealer = open_seal(runtime, file, &footer, &table, expected.keys).await?;
        // The disk may have been longer when the file was written.
        let extents = footer.decode_table(&table, DISK_SECTORS_MAX)?;
        let Identity { disk, number, .. } = footer.identity;
        if disk != expected.disk || number != expected.number {
            return Err(Error::corrupt("the side file is another disk's, or another of this disk's"));
        }
        Ok((footer.identity, extents, sealer))
    }

    /// Its place in the order of the disk's side files.
    pub fn number(&self) -> u32 {
        self.identity.number
    }

    /// With the image and the files before it, it holds the disk's records up to here.
    pub fn through(&self) -> Lsn {
        self.identity.through
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        let seal = if self.sealer.is_some() { SEAL_BYTES } else { 0 };
        let table = (self.extents.len() * crate::format::side::ENTRY_BYTES + seal + FOOTER_BYTES) as u64;
        self.extents.iter().map(SideExtent::chunk_bytes).sum::<u64>() + table
    }

    /// What it holds of `window`, in order and without gaps.
    pub fn lookup(&self, window: SectorRange) -> impl Iterator<Item = Found<SideLocation>> + '_ {
        self.map.lookup(window)
    }

    /// What the `sectors` sectors at a location are.
    pub fn piece(&self, location: SideLocation, sectors: u64) -> SidePiece {
        let index = location.extent as usize;
        let extent = &self.extents[index];
        match extent.content {
            Content::Zero { allocated } => SidePiece::Zero { allocated },
            Content::Unreadable(_) => SidePiece::Unreadable,
            Content::Data { checksum } => {
                let start = u64::from(location.sector) * SECTOR_BYTES;
                let part = to_usize(start)..to_usize(start + sectors * SECTOR_BYTES);
                let (offset, bytes) = (self.offsets[index], to_usize(extent.range.bytes()));
                let seal = self.sealer.as_ref().map(|sealer| (Rc::clone(sealer), index as u64));
                SidePiece::Data(ChunkPart { file: self.file.clone(), offset, bytes, checksum, seal, part })
            }
        }
    }

    /// All that it holds, by sector: also what its notes hide, which is older than what is lost.
    pub fn pieces(&self) -> impl Iterator<Item = (SectorRange, SidePiece)> + '_ {
        let held = (0_u32..).zip(&self.extents).filter(|(_, entry)| note(entry).is_none());
        held.map(|(extent, entry)| {
            (entry.range, self.piece(SideLocation { extent, sector: 0 }, entry.range.sectors()))
        })
    }

    /// What it notes as lost.
    pub fn notes(&self) -> impl Iterator<Item = Lost> + '_ {
        self.extents.iter().filter_map(note)
    }
}

fn note(entry: &SideExtent) -> Option<Lost> {
    match entry.content {
        Content::Unreadable(stood) => Some(Lost { range: entry.range, stood }),
        Content::Data { .. } | Content::Zero { .. } => None,
    }
}

/// Why a side file that was counted on cannot be opened.
fn missing(error: Error, path: &Path) -> Error {
    if error.kind() != ErrorKind::NotFound {
        return error;
    }
    let text = "a side file is missing, which holds what the image lacks: put it back";
    Error::new(ErrorKind::NotFound, text).at_path(path)
}

/// What an opened file must say of itself.
#[derive(Clone, Copy)]
struct Expected<'a> {
    disk: DiskId,
    number: u32,
    keys: &'a GroupKeys,
}

/// What opens the chunks of a file whose table and footer are as they were sealed; nothing where they are not sealed.
async fn open_seal(
    runtime: &Rc<Runtime>,
    file: &File,
    footer: &Footer,
    table: &[u8],
    keys: &GroupKeys,
) -> Result<Option<Rc<Sealer>>> {
    let offset = footer.table_offset + footer.table_bytes();
    let seal = match footer.is_sealed {
        true => Some(Seal::decode(&runtime.read(file, offset, SEAL_BYTES).await?, offset)?),
        false => None,
    };
    let (generation, id) = seal.map_or((0, 0), |seal| (seal.generation.0, seal.id));
    let sealer = keys.opener(generation, Purpose::Side, id).map_err(|error| error.at_offset(offset))?;
    if let (Some(sealer), Some(seal)) = (&sealer, seal)
        && sealer.open(SEAL_NONCE, &footer.bound(table), &mut [], &seal.tag).is_err()
    {
        let text = "the side file's seal does not fit: its table or footer was changed";
        return Err(Error::corrupt(text).at_offset(offset));
    }
    Ok(sealer.map(Rc::new))
}
