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
//! Invariant: image ∪ side files hold, or note as lost, every record of the disk up to the last one's `through`. A file may go once
//! the checkpoint has reached its `through`, and its receipt before it; until then the image under it may hold anything in
//! the ranges of the file.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use futures::stream::{self, StreamExt};

use crate::error::{Error, ErrorKind, Result};
use crate::extent::{Extent, ExtentMap, Found, FrozenMap, Location, Ranges, merge};
use crate::format::checksum;
use crate::format::delta::DISK_SECTORS_MAX;
use crate::format::side::{
    CHUNK_SECTORS_MAX, Content, FOOTER_BYTES, Footer, Identity, SEAL_BYTES, Seal, SideExtent,
    ZERO_SECTORS_MAX, encode_table,
};
use crate::journal::reader::Reader;
use crate::journal::segments::{SegmentIndex, Source, file_name};
use crate::journal::sift::{Lost, Sifted, sift};
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::seal::{GroupKeys, Nonce, Purpose, Sealer, Sealing};
use crate::storage::{Buffer, File, OpenOptions, Slice};
use crate::units::{DiskId, Lsn, SECTOR_BYTES, SectorCount, SectorRange, to_usize};

/// Extents that are read at once while a file is written.
const READS_AHEAD: usize = 16;
/// Chunks are gathered into writes of about this size.
const WRITE_BYTES: usize = 1 << 20;

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
    pub fn verified(&self, mut chunk: Buffer) -> Result<Slice> {
        let is_sound = match &self.seal {
            Some((sealer, index)) => {
                sealer.open(chunk_nonce(*index), &[], &mut chunk, &self.checksum.to_le_bytes()).is_ok()
            }
            None => checksum(&chunk) == self.checksum,
        };
        if is_sound {
            return Ok(chunk.freeze().slice(self.part.clone()));
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

/// What is to be moved from the journal into a side file.
pub struct SideWork {
    /// Directory of the images.
    pub directory: PathBuf,
    /// What the file will be.
    pub identity: Identity,
    /// How long the disk is: what the maps hold beyond that is left out.
    pub sectors: SectorCount,
    /// The disk's maps, oldest first.
    pub maps: Vec<Rc<FrozenMap<Source>>>,
    /// Where payloads are read.
    pub reader: Reader,
    /// What seals it.
    pub keys: GroupKeys,
}

/// Path of a disk's side file.
pub fn side_path(directory: &Path, disk: DiskId, number: u32) -> PathBuf {
    directory.join(format!("{disk}.side-{number}"))
}

/// What a name with `.side-` in it is that of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum NameKind {
    /// A side file.
    File,
    /// One that was not published yet.
    Partial,
    /// An empty file that says: the side file of this number was counted on. Should that get lost, it is missed.
    Receipt,
}

impl NameKind {
    fn extension(self) -> Option<&'static str> {
        match self {
            NameKind::File => None,
            NameKind::Partial => Some("partial"),
            NameKind::Receipt => Some("receipt"),
        }
    }
}

/// A name that belongs to a disk's side file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SideName {
    disk: DiskId,
    number: u32,
    kind: NameKind,
}

impl SideName {
    fn parse(name: &str) -> Option<SideName> {
        let (disk, rest) = name.split_once(".side-")?;
        let (number, extension) = match rest.split_once('.') {
            Some((number, extension)) => (number, Some(extension)),
            None => (rest, None),
        };
        let kinds = [NameKind::File, NameKind::Partial, NameKind::Receipt];
        let kind = kinds.into_iter().find(|kind| kind.extension() == extension)?;
        Some(SideName { disk: disk.parse().ok()?, number: number.parse().ok()?, kind })
    }

    fn path(self, directory: &Path) -> PathBuf {
        let path = side_path(directory, self.disk, self.number);
        match self.kind.extension() {
            Some(extension) => path.with_added_extension(extension),
            None => path,
        }
    }
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

/// What `files`, oldest first, note as lost and no later one of them hides.
pub fn lost(files: &[Rc<SideFile>]) -> Vec<Lost> {
    let mut lost = Vec::new();
    for (index, file) in files.iter().enumerate() {
        for note in file.notes() {
            let mut left = Ranges::of([note.range]);
            for later in &files[index + 1..] {
                let hides = later.lookup(note.range).filter(|(_, location)| location.is_some());
                left = left.without(hides.map(|(range, _)| range));
            }
            lost.extend(left.as_slice().iter().map(|&range| Lost { range, ..note }));
        }
    }
    lost
}

/// How many lost ranges an error names.
const NAMED_MAX: usize = 8;

/// Why a disk cannot be mended whose side files note losses, of which the first names the file.
pub fn refusal(lost: &[Lost], disk: &str, journal: &Path) -> Option<Error> {
    let stood = |lost: &Lost| file_name(SegmentIndex(lost.stood.segment));
    let name = |lost: &Lost| format!("{} ({} at byte {})", lost.range, stood(lost), lost.stood.byte_offset());
    let first = lost.first()?;
    let more = match lost.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let named = lost.iter().take(NAMED_MAX).map(name).collect::<Vec<_>>().join(", ");
    let text = format!(
        "disk {disk} lost writes to sectors {named}{more}: their records rotted in the journal; accept it by          `group resume --accept-loss`, or remove the disk, whose points stay"
    );
    let path = journal.join(stood(first));
    Some(Error::corrupt(text).at_path(&path).at_offset(first.stood.byte_offset()))
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

/// Writes a side file; durable under its name when this returns, and from then on it is missed if it gets lost. No number
/// is given twice, whatever became of the attempt: a file that stays behind holds what it says, and does no harm.
pub async fn write(runtime: &Rc<Runtime>, work: SideWork, planted: Planted) -> Result<SideFile> {
    let Identity { disk, number, .. } = work.identity;
    let name = |kind| SideName { disk, number, kind }.path(&work.directory);
    let (path, partial) = (name(NameKind::File), name(NameKind::Partial));
    // Where no name can be made durable nothing is written that would only have to be removed again.
    runtime.sync_directory(&work.directory).await?;
    let mut sifted = None;
    let side = loop {
        match publish(runtime, &work, sifted.as_ref(), &path, &partial, planted).await {
            Ok(side) => break side,
            Err(error) => {
                // What there is of it keeps space from others. The error that matters is the first.
                let _ = runtime.remove(&partial).await;
                let _ = runtime.remove(&path).await;
                sifted = Some(sift_again(runtime, &work, sifted, error).await?);
            }
        }
    };
    let receipt = name(NameKind::Receipt);
    if let Err(error) = acknowledge(runtime, &work.directory, &receipt).await {
        let _ = runtime.remove(&receipt).await;
        // A receipt that came back in a power cut would miss the file.
        if runtime.sync_directory(&work.directory).await.is_ok() {
            let _ = runtime.remove(&path).await;
        }
        return Err(error);
    }
    Ok(side)
}

/// After a failed attempt to write a file: what there is without the records that rotted. Where it is no such that kept the
/// file from being written, the error is given back.
async fn sift_again(
    runtime: &Rc<Runtime>,
    work: &SideWork,
    before: Option<Sifted>,
    error: Error,
) -> Result<Sifted> {
    if error.kind() != ErrorKind::Corrupt {
        return Err(error);
    }
    let sifted = sift(runtime, &work.reader, &work.maps).await?;
    if sifted.lost == before.map_or(Vec::new(), |before| before.lost) { Err(error) } else { Ok(sifted) }
}

/// Notes durably that a side file, which is durable, is counted on.
async fn acknowledge(runtime: &Rc<Runtime>, directory: &Path, receipt: &Path) -> Result<()> {
    runtime.open(receipt, OpenOptions::CREATE).await?;
    runtime.sync_directory(directory).await
}

async fn publish(
    runtime: &Rc<Runtime>,
    work: &SideWork,
    sifted: Option<&Sifted>,
    path: &Path,
    partial: &Path,
    planted: Planted,
) -> Result<SideFile> {
    let file = runtime.open(partial, OpenOptions::CREATE).await?;
    // Each attempt seals under a key of its own.
    let id = runtime.random_u128();
    let sealing = work.keys.sealing(Purpose::Side, id);
    let (map, lost) = match sifted {
        Some(sifted) => (sifted.map.clone(), sifted.lost.as_slice()),
        None => (merge(&work.maps, || runtime.yield_now()).await, [].as_slice()),
    };
    let lost = if planted.is(Bug::UnreadableForgotten) { &[] } else { lost };
    let mut out = Out { runtime, file: &file, offset: 0, gathered: Vec::new() };
    let table = fill(&mut out, (&work.reader, work.sectors), &map, lost, sealing.as_ref()).await?;
    end(&mut out, work.identity, &table, id, sealing.as_ref()).await?;
    if !planted.is(Bug::SideFileNotSynced) {
        runtime.sync(&file).await?;
    }
    runtime.publish(partial, path).await?;
    runtime.sync_directory(&work.directory).await?;
    Ok(SideFile::new(file, work.identity, table, sealing.map(|sealing| Rc::new(sealing.sealer))))
}

/// Writes the chunks of what `map` says; returns the table of it, and of the notes.
async fn fill(
    out: &mut Out<'_>,
    (reader, sectors): (&Reader, SectorCount),
    map: &FrozenMap<Source>,
    lost: &[Lost],
    sealing: Option<&Sealing>,
) -> Result<Vec<SideExtent>> {
    let extents = map.below(sectors).flat_map(pieces_of_entries);
    let mut reads = stream::iter(extents.map(|extent| read(reader, extent))).buffered(READS_AHEAD);
    let mut table = Vec::with_capacity(map.len() + lost.len());
    while let Some(read) = reads.next().await {
        let (range, piece) = read?;
        let content = match piece {
            Read::Zero { allocated } => Content::Zero { allocated },
            Read::Data(bytes) => {
                let start = out.gathered.len();
                out.gathered.extend_from_slice(&bytes);
                let stored = &mut out.gathered[start..];
                let checksum = match sealing {
                    Some(sealing) => {
                        let nonce = chunk_nonce(table.len() as u64);
                        u128::from_le_bytes(sealing.sealer.seal(nonce, &[], stored))
                    }
                    None => checksum(stored),
                };
                out.append(&[]).await?;
                Content::Data { checksum }
            }
        };
        table.push(SideExtent { range, content });
    }
    let disk = SectorRange::new(0, sectors.0);
    table.extend(lost.iter().filter_map(|lost| {
        let range = lost.range.intersection(disk)?;
        Some(SideExtent { range, content: Content::Unreadable(lost.stood) })
    }));
    Ok(table)
}

/// Writes table, seal and footer.
async fn end(
    out: &mut Out<'_>,
    identity: Identity,
    table: &[SideExtent],
    id: u128,
    sealing: Option<&Sealing>,
) -> Result<()> {
    let encoded = encode_table(table);
    let footer = Footer::new(identity, table, &encoded);
    for part in encoded.chunks(WRITE_BYTES) {
        out.append(part).await?;
    }
    let footer = match sealing {
        Some(Sealing { generation, sealer }) => {
            let footer = footer.sealed();
            let tag = sealer.seal(SEAL_NONCE, &footer.bound(&encoded), &mut []);
            out.append(&Seal { id, generation: *generation, tag }.encode()).await?;
            footer
        }
        None => footer,
    };
    out.append(&footer.encode()).await?;
    out.flush().await
}

/// Cuts an extent into what an entry of the table can say.
fn pieces_of_entries(extent: Extent<Source>) -> impl Iterator<Item = Extent<Source>> {
    let sectors_max = match extent.location {
        Source::Journal { .. } => CHUNK_SECTORS_MAX,
        Source::Zero { .. } => ZERO_SECTORS_MAX,
    };
    let Extent { range, location } = extent;
    (0..range.sectors().div_ceil(sectors_max)).map(move |index| {
        let start = range.start + index * sectors_max;
        let piece = SectorRange::new(start, range.end.min(start + sectors_max));
        Extent { range: piece, location: location.advance(start - range.start) }
    })
}

enum Read {
    Zero { allocated: bool },
    Data(Slice),
}

async fn read(reader: &Reader, extent: Extent<Source>) -> Result<(SectorRange, Read)> {
    let range = extent.range;
    let content = match extent.location {
        Source::Journal { segment, sector } => {
            Read::Data(reader.read(segment, sector, range.sectors()).await?)
        }
        Source::Zero { allocated } => Read::Zero { allocated },
    };
    Ok((range, content))
}

/// Gathers what is appended to a file into large writes.
struct Out<'a> {
    runtime: &'a Rc<Runtime>,
    file: &'a File,
    offset: u64,
    gathered: Vec<u8>,
}

impl Out<'_> {
    async fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() < WRITE_BYTES { Ok(()) } else { self.flush().await }
    }

    async fn flush(&mut self) -> Result<()> {
        let data = Buffer::copy_of(&self.gathered).freeze();
        self.runtime.write(self.file, self.offset, data).await?;
        self.offset += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }
}

async fn remove_if_there(runtime: &Rc<Runtime>, path: &Path) -> Result<()> {
    match runtime.remove(path).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The names of side files in a directory of images, as an opening found them.
#[derive(Debug, Default)]
pub struct SideNames(Vec<SideName>);

/// Lists the side files in `directory`, and makes their names durable: a dead owner may have published one without
/// living to sync its name, and nobody may count on it before.
pub async fn list(runtime: &Rc<Runtime>, directory: &Path) -> Result<SideNames> {
    let names = runtime.list(directory).await?;
    let mut found: Vec<_> = names.iter().filter_map(|name| SideName::parse(name)).collect();
    found.sort_unstable();
    if !found.is_empty() {
        runtime.sync_directory(directory).await?;
    }
    Ok(SideNames(found))
}

/// The side files of a disk.
#[derive(Debug)]
pub struct Sides {
    /// Those that can be read, oldest first.
    pub files: Vec<Rc<SideFile>>,
    /// The highest number that was ever seen; 0 if none was.
    pub last: u32,
    disk: DiskId,
    numbers: Vec<u32>,
    /// What is wrong with one that was counted on.
    damage: Option<Error>,
}

impl Sides {
    /// The disk's records up to here are in its image or in its side files, whatever became of those that cannot be read.
    pub fn through(&self) -> Lsn {
        self.files.iter().map(|file| file.through()).max().unwrap_or_default()
    }

    /// Keeps the files that an image lacks which has all records up to `destaged`; removes all if it lacks none.
    ///
    /// # Errors
    /// One that it lacks is missing, damaged, or cannot be read.
    pub async fn keep_lacked(
        &mut self,
        runtime: &Rc<Runtime>,
        directory: &Path,
        destaged: Lsn,
    ) -> Result<()> {
        let newest = self.files.last().filter(|newest| newest.number() == self.last);
        let is_needless = newest.is_some_and(|newest| newest.through() <= destaged);
        if is_needless {
            remove_numbers(runtime, directory, self.disk, &self.numbers).await;
            self.files.clear();
            return Ok(());
        }
        self.files.retain(|file| file.through() > destaged);
        self.damage.take().map_or(Ok(()), Err)
    }
}

impl SideNames {
    /// Opens the side files of a disk.
    pub async fn open(
        &self,
        runtime: &Rc<Runtime>,
        directory: &Path,
        disk: DiskId,
        keys: &GroupKeys,
    ) -> Sides {
        let of_disk = self.0.iter().filter(|name| name.disk == disk && name.kind != NameKind::Partial);
        let mut numbers: Vec<u32> = of_disk.map(|name| name.number).collect();
        numbers.dedup();
        let last = numbers.last().copied().unwrap_or(0);
        let (mut files, mut damage) = (Vec::new(), None);
        for &number in &numbers {
            let path = side_path(directory, disk, number);
            match SideFile::open(runtime, &path, Expected { disk, number, keys }).await {
                Ok(file) => files.push(Rc::new(file)),
                Err(error) => drop(damage.get_or_insert(error)),
            }
        }
        Sides { files, last, disk, numbers, damage }
    }

    /// Removes what belongs to no disk of the group, and what was never published.
    pub async fn clean(&self, runtime: &Rc<Runtime>, directory: &Path, is_known: impl Fn(DiskId) -> bool) {
        for name in self.0.iter().filter(|name| name.kind == NameKind::Partial || !is_known(name.disk)) {
            discard(runtime, &name.path(directory)).await;
        }
    }
}

/// Removes a file that nobody needs; one that cannot be removed now is found again by the next opening.
async fn discard(runtime: &Rc<Runtime>, path: &Path) {
    if let Err(error) = remove_if_there(runtime, path).await {
        tracing::warn!(%error, "a side file that is no longer needed could not be removed");
    }
}

/// Removes side files that a durable checkpoint has reached.
pub async fn remove(runtime: &Rc<Runtime>, directory: &Path, files: &[Rc<SideFile>]) {
    if files.is_empty() {
        return;
    }
    let numbers: Vec<u32> = files.iter().map(|file| file.number()).collect();
    remove_numbers(runtime, directory, files[0].identity.disk, &numbers).await;
}

/// Removes the side files of these numbers that a durable checkpoint has reached. Their receipts go first, so that none
/// misses a file.
async fn remove_numbers(runtime: &Rc<Runtime>, directory: &Path, disk: DiskId, numbers: &[u32]) {
    for kind in [NameKind::Receipt, NameKind::File] {
        let removed = async {
            for &number in numbers {
                remove_if_there(runtime, &SideName { disk, number, kind }.path(directory)).await?;
            }
            // Should a file's name come back in a power cut, the checkpoint says that it is not needed.
            runtime.sync_directory(directory).await
        };
        if let Err(error) = removed.await {
            tracing::warn!(%error, "side files that are no longer needed could not be removed");
            return;
        }
    }
}

/// Removes all side files of a disk that left.
pub async fn remove_all(runtime: &Rc<Runtime>, directory: &Path, disk: DiskId) -> Result<()> {
    for name in runtime.list(directory).await? {
        if SideName::parse(&name).is_some_and(|name| name.disk == disk) {
            remove_if_there(runtime, &directory.join(name)).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_files_name_says_whose_it_is() {
        for kind in [NameKind::File, NameKind::Partial, NameKind::Receipt] {
            let name = SideName { disk: DiskId(0xab), number: 12, kind };
            let path = name.path(Path::new("/images"));
            let text = path.file_name().and_then(|name| name.to_str()).expect("text");
            assert_eq!(SideName::parse(text), Some(name));
        }
        for other in ["ab.raw", "ab.checkpoint", "side-1", "ab.side-", "zz.side-1", "ab.side-1.old"] {
            assert_eq!(SideName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn extents_are_cut_to_what_an_entry_can_say() {
        let zeros = Extent {
            range: SectorRange::new(5, 5 + 2 * ZERO_SECTORS_MAX + 1),
            location: Source::Zero { allocated: true },
        };
        let ends: Vec<u64> = pieces_of_entries(zeros).map(|piece| piece.range.sectors()).collect();
        assert_eq!(ends, [ZERO_SECTORS_MAX, ZERO_SECTORS_MAX, 1]);
    }
}
