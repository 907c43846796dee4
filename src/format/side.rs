//! A side file: what the image of a latched disk lacks, as bytes. `docs/format.md` draws every one of them.
//!
//! ```text
//! 0         table offset          table end = total - 128      total
//! +-- … --+-----------------------+------------------------------+
//! | chunks | table: 32 bytes an extent                  | footer |
//! +-- … --+-----------------------+------------------------------+
//! ```
//!
//! It is read from its end: the [`Footer`] says whose it is and sums the table; each entry of the table sums its own
//! chunk. Chunks stand in the order of their extents without gaps, so that no entry says where its chunk is. Offsets in
//! errors count from the start of the file.
//!
//! What the file should hold and the journal could not give stands behind all other entries, as notes: see [`Content::Unreadable`].
//!
//! In a sealed group a [`Seal`] stands between table and footer: it names the file's key, and its tag binds the table and the
//! footer. The entries then hold their chunks' tags instead of sums.

use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum;
use crate::error::{Error, Result};
use crate::format::delta::DISK_SECTORS_MAX;
use crate::format::frame::RECORD_PAYLOAD_BYTES_MAX;
use crate::seal::{Generation, TAG_BYTES, Tag};
use crate::units::{DiskId, GroupId, Lsn, SECTOR_BYTES, SectorRange, TimelineId};

/// Length of the footer.
pub const FOOTER_BYTES: usize = 128;
/// Length of an entry of the table.
pub const ENTRY_BYTES: usize = 32;
/// Sectors of a chunk at most: those of a record.
pub const CHUNK_SECTORS_MAX: u64 = RECORD_PAYLOAD_BYTES_MAX as u64 / SECTOR_BYTES;
/// Sectors that an entry of zeros can say.
pub const ZERO_SECTORS_MAX: u64 = u32::MAX as u64;

const MAGIC: [u8; 8] = *b"AFTRSIDE";
const VERSION: u32 = 1;
/// Of a sealed file.
const VERSION_SEALED: u32 = 2;
const KIND_DATA: u8 = 1;
const KIND_HOLE: u8 = 2;
const KIND_ZEROS_ALLOCATED: u8 = 3;
const KIND_UNREADABLE: u8 = 4;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawFooter {
    magic: [u8; 8],
    version: U32,
    number: U32,
    group: U128,
    timeline: U128,
    disk: U128,
    after: U64,
    through: U64,
    table_offset: U64,
    extents: U64,
    table_checksum: U128,
    checksum: U128,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    start: U64,
    sectors: U32,
    kind: u8,
    reserved: [u8; 3],
    checksum: U128,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSeal {
    id: U128,
    generation: U32,
    reserved: [u8; 12],
    tag: [u8; TAG_BYTES],
}

/// Length of the seal of a sealed file.
pub const SEAL_BYTES: usize = size_of::<RawSeal>();

const _: () = assert!(SEAL_BYTES == 48);
const _: () = assert!(size_of::<RawFooter>() == FOOTER_BYTES && size_of::<RawEntry>() == ENTRY_BYTES);

/// Which of a disk's side files it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The group.
    pub group: GroupId,
    /// Its history.
    pub timeline: TimelineId,
    /// The disk.
    pub disk: DiskId,
    /// Its place in the order of the disk's side files, from 1.
    pub number: u32,
    /// The disk's records up to here are in the image or in earlier side files,
    pub after: Lsn,
    /// and those up to here in this one as well, as far as no later one overwrote them.
    pub through: Lsn,
}

/// What an extent holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The bytes of its chunk.
    Data {
        /// The chunk's sum; in a sealed file its tag.
        checksum: u128,
    },
    /// Zeros.
    Zero {
        /// Whether the space is to stay allocated.
        allocated: bool,
    },
    /// Nothing: a note that the newest record of these sectors rotted in the journal. What other entries, earlier files and the
    /// image have of them is older.
    Unreadable(Stood),
}

/// Where a record's payload stood in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stood {
    /// The index of the segment's file.
    pub segment: u32,
    /// The payload's first sector in that file.
    pub sector: u32,
}

impl Stood {
    /// Byte offset in the segment's file.
    pub fn byte_offset(self) -> u64 {
        u64::from(self.sector) * SECTOR_BYTES
    }

    fn encode(self) -> u128 {
        u128::from(self.segment) | u128::from(self.sector) << 32
    }

    fn decode(field: u128) -> Option<Stood> {
        let part = |shift: u32| u32::try_from(field >> shift & u128::from(u32::MAX)).ok();
        (field >> 64 == 0).then_some(Stood { segment: part(0)?, sector: part(32)? })
    }
}

/// An entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideExtent {
    /// The sectors.
    pub range: SectorRange,
    /// What they hold.
    pub content: Content,
}

impl SideExtent {
    /// Length of its chunk; zeros have none.
    pub fn chunk_bytes(&self) -> u64 {
        match self.content {
            Content::Data { .. } => self.range.bytes(),
            Content::Zero { .. } | Content::Unreadable(_) => 0,
        }
    }

    fn encode(&self) -> RawEntry {
        let (kind, checksum) = match self.content {
            Content::Data { checksum } => (KIND_DATA, checksum),
            Content::Zero { allocated: false } => (KIND_HOLE, 0),
            Content::Zero { allocated: true } => (KIND_ZEROS_ALLOCATED, 0),
            Content::Unreadable(stood) => (KIND_UNREADABLE, stood.encode()),
        };
        let sectors =
            u32::try_from(self.range.sectors()).expect("an extent was cut to what an entry can say");
        RawEntry {
            start: self.range.start.into(),
            sectors: sectors.into(),
            kind,
            reserved: [0; 3],
            checksum: checksum.into(),
        }
    }

    fn decode(raw: &RawEntry, at: u64) -> Result<SideExtent> {
        let corrupt = |text: String| Err(Error::corrupt(text).at_offset(at));
        let (start, sectors) = (raw.start.get(), u64::from(raw.sectors.get()));
        let content = match raw.kind {
            KIND_DATA => Content::Data { checksum: raw.checksum.get() },
            KIND_HOLE => Content::Zero { allocated: false },
            KIND_ZEROS_ALLOCATED => Content::Zero { allocated: true },
            KIND_UNREADABLE => match Stood::decode(raw.checksum.get()) {
                Some(stood) => Content::Unreadable(stood),
                None => return corrupt("a note's place in the journal is not legal".to_owned()),
            },
            other => return corrupt(format!("an extent of kind {other}")),
        };
        let is_record = [KIND_DATA, KIND_UNREADABLE].contains(&raw.kind);
        if raw.reserved != [0; 3] || (!is_record && raw.checksum.get() != 0) {
            return corrupt("an extent's reserved bytes are not as written".to_owned());
        }
        if sectors == 0 || (is_record && sectors > CHUNK_SECTORS_MAX) {
            return corrupt(format!("an extent of {sectors} sectors"));
        }
        if start > DISK_SECTORS_MAX - sectors {
            return corrupt(format!("an extent of {sectors} sectors at {start} is on no disk"));
        }
        Ok(SideExtent { range: SectorRange::new(start, start + sectors), content })
    }
}

/// Writes the table of `extents`.
pub fn encode_table(extents: &[SideExtent]) -> Vec<u8> {
    extents.iter().flat_map(|extent| extent.encode().as_bytes().to_vec()).collect()
}

/// What sealed a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Drawn for the file: its key is derived with it,
    pub id: u128,
    /// of this group key.
    pub generation: Generation,
    /// Binds table and footer.
    pub tag: Tag,
}

impl Seal {
    /// The seal's bytes.
    pub fn encode(&self) -> [u8; SEAL_BYTES] {
        let Seal { id, generation, tag } = *self;
        let raw = RawSeal { id: id.into(), generation: generation.0.into(), reserved: [0; 12], tag };
        raw.as_bytes().try_into().expect("the sizes were compared at compile time")
    }

    /// The seal in `bytes`, which stand at `offset`.
    pub fn decode(bytes: &[u8], offset: u64) -> Result<Seal> {
        let corrupt = || Error::corrupt("the side file's seal is not legal").at_offset(offset);
        let raw = RawSeal::read_from_bytes(bytes).map_err(|_| corrupt())?;
        if raw.reserved != [0; 12] || raw.generation.get() == 0 {
            return Err(corrupt());
        }
        let generation = Generation(raw.generation.get());
        Ok(Seal { id: raw.id.get(), generation, tag: raw.tag })
    }
}

/// Whose file it is, and where its table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Whose.
    pub identity: Identity,
    /// Where the chunks end and the table starts.
    pub table_offset: u64,
    /// Entries in the table.
    pub extents: u64,
    /// Over the stored table.
    pub table_checksum: u128,
    /// Whether a seal stands before it.
    pub is_sealed: bool,
}

impl Footer {
    /// The footer of a file whose table of `extents` was encoded as `table`.
    pub fn new(identity: Identity, extents: &[SideExtent], table: &[u8]) -> Footer {
        Footer {
            identity,
            table_offset: extents.iter().map(SideExtent::chunk_bytes).sum(),
            extents: extents.len() as u64,
            table_checksum: checksum(table),
            is_sealed: false,
        }
    }

    /// The same, of a sealed file.
    #[must_use]
    pub fn sealed(self) -> Footer {
        Footer { is_sealed: true, ..self }
    }

    /// What the seal's tag binds: the footer, which sums the table, and the table.
    pub fn bound(&self, table: &[u8]) -> Vec<u8> {
        [&self.encode()[..], table].concat()
    }

    /// Length of the seal.
    pub fn seal_bytes(&self) -> u64 {
        if self.is_sealed { SEAL_BYTES as u64 } else { 0 }
    }

    /// Length of the table; as the bytes claim it, so checked against the file's length by [`Footer::decode`].
    pub fn table_bytes(&self) -> u64 {
        self.extents * ENTRY_BYTES as u64
    }

    /// The footer's bytes.
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut raw = RawFooter {
            magic: MAGIC,
            version: if self.is_sealed { VERSION_SEALED } else { VERSION }.into(),
            number: self.identity.number.into(),
            group: self.identity.group.0.into(),
            timeline: self.identity.timeline.0.into(),
            disk: self.identity.disk.0.into(),
            after: self.identity.after.0.into(),
            through: self.identity.through.0.into(),
            table_offset: self.table_offset.into(),
            extents: self.extents.into(),
            table_checksum: self.table_checksum.into(),
            checksum: 0.into(),
        };
        raw.checksum = checksum(summed(&raw)).into();
        raw.as_bytes().try_into().expect("the sizes were compared at compile time")
    }

    /// The footer in the last [`FOOTER_BYTES`] of a file of `total_bytes`.
    pub fn decode(bytes: &[u8], total_bytes: u64) -> Result<Footer> {
        let at = total_bytes.saturating_sub(FOOTER_BYTES as u64);
        let corrupt = |text: &str| Error::corrupt(text).at_offset(at);
        let (_, raw) = RawFooter::ref_from_suffix(bytes)
            .map_err(|_| corrupt("the side file is shorter than its footer"))?;
        if raw.magic != MAGIC {
            return Err(corrupt("the side file does not end in a footer: it was cut off"));
        }
        if ![VERSION, VERSION_SEALED].contains(&raw.version.get()) {
            let known = format!("{VERSION} and {VERSION_SEALED}");
            return Err(Error::unknown_version("the side file", raw.version, known).at_offset(at + 8));
        }
        if raw.checksum.get() != checksum(summed(raw)) {
            return Err(corrupt("the side file's footer does not match its checksum"));
        }
        let identity = Identity {
            group: GroupId(raw.group.get()),
            timeline: TimelineId(raw.timeline.get()),
            disk: DiskId(raw.disk.get()),
            number: raw.number.get(),
            after: Lsn(raw.after.get()),
            through: Lsn(raw.through.get()),
        };
        let is_sealed = raw.version.get() == VERSION_SEALED;
        let seal_bytes = if is_sealed { SEAL_BYTES as u64 } else { 0 };
        let (table_offset, extents) = (raw.table_offset.get(), raw.extents.get());
        let table_bytes = extents.checked_mul(ENTRY_BYTES as u64);
        let end = table_bytes.and_then(|bytes| bytes.checked_add(table_offset)?.checked_add(seal_bytes));
        if end != Some(at) || identity.number == 0 || identity.after >= identity.through {
            return Err(corrupt("the side file's footer contradicts itself or the file's length"));
        }
        Ok(Footer { identity, table_offset, extents, table_checksum: raw.table_checksum.get(), is_sealed })
    }

    /// The extents of the stored `table`: ascending, disjoint, on a disk of `sectors`, with chunks that end where the
    /// table starts; then the notes, for themselves ascending and disjoint.
    pub fn decode_table(&self, table: &[u8], sectors: u64) -> Result<Vec<SideExtent>> {
        let corrupt = |text: &str| Err(Error::corrupt(text).at_offset(self.table_offset));
        if table.len() as u64 != self.table_bytes() || checksum(table) != self.table_checksum {
            return corrupt("the side file's table does not match its checksum");
        }
        let entries = <[RawEntry]>::ref_from_bytes(table).expect("whole entries");
        let mut extents = Vec::with_capacity(entries.len());
        let (mut position, mut chunks, mut are_notes) = (0, 0, false);
        for (index, entry) in entries.iter().enumerate() {
            let extent = SideExtent::decode(entry, self.table_offset + (index * ENTRY_BYTES) as u64)?;
            let is_note = matches!(extent.content, Content::Unreadable(_));
            if is_note && !are_notes {
                (position, are_notes) = (0, true);
            }
            if is_note != are_notes || extent.range.start < position || extent.range.end > sectors {
                return corrupt("the side file's extents are out of order or past the end of the disk");
            }
            position = extent.range.end;
            chunks += extent.chunk_bytes();
            extents.push(extent);
        }
        if chunks != self.table_offset {
            return corrupt("the side file's chunks do not end where its table starts");
        }
        Ok(extents)
    }
}

/// What the footer's own checksum covers.
fn summed(raw: &RawFooter) -> &[u8] {
    &raw.as_bytes()[..FOOTER_BYTES - size_of::<U128>()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity() -> Identity {
        Identity {
            group: GroupId(1),
            timeline: TimelineId(2),
            disk: DiskId(3),
            number: 4,
            after: Lsn(5),
            through: Lsn(6),
        }
    }

    fn extents() -> Vec<SideExtent> {
        let data = |checksum| Content::Data { checksum };
        let extent = |start, end, content| SideExtent { range: SectorRange::new(start, end), content };
        vec![
            extent(0, 1, data(7)),
            extent(1, 2, Content::Zero { allocated: false }),
            extent(8, 8 + CHUNK_SECTORS_MAX, data(8)),
            extent(1000, 1000 + ZERO_SECTORS_MAX, Content::Zero { allocated: true }),
            extent(0, 4, Content::Unreadable(Stood { segment: 9, sector: 10 })),
            extent(8, 9, Content::Unreadable(Stood { segment: u32::MAX, sector: u32::MAX })),
        ]
    }

    /// Table and footer of a file whose chunks nobody reads.
    fn tail(extents: &[SideExtent]) -> (Vec<u8>, u64) {
        let table = encode_table(extents);
        let footer = Footer::new(identity(), extents, &table);
        let total = footer.table_offset + footer.table_bytes() + FOOTER_BYTES as u64;
        ([table.as_slice(), &footer.encode()].concat(), total)
    }

    fn decode(tail: &[u8], total: u64, sectors: u64) -> Result<(Identity, Vec<SideExtent>)> {
        let footer = Footer::decode(tail, total)?;
        let table = &tail[..tail.len() - FOOTER_BYTES];
        Ok((footer.identity, footer.decode_table(table, sectors)?))
    }

    #[test]
    fn what_is_written_is_read() {
        let (bytes, total) = tail(&extents());
        let (found, table) = decode(&bytes, total, DISK_SECTORS_MAX).expect("sound");
        assert_eq!((found, table), (identity(), extents()));
    }

    #[test]
    fn no_flipped_bit_is_believed() {
        let (bytes, total) = tail(&extents());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad, total, DISK_SECTORS_MAX).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn another_length_a_smaller_disk_or_mixed_up_extents_are_refused() {
        let (bytes, total) = tail(&extents());
        assert!(decode(&bytes, total + 512, DISK_SECTORS_MAX).is_err(), "a chunk too many");
        assert!(decode(&bytes[1..], total - 1, DISK_SECTORS_MAX).is_err(), "a byte of the table is missing");
        assert!(decode(&bytes, total, 1000).is_err(), "the last extent is not on the disk");
        let mut swapped = extents();
        swapped.swap(0, 1);
        let (bytes, total) = tail(&swapped);
        assert!(decode(&bytes, total, DISK_SECTORS_MAX).is_err());
        let note = SideExtent {
            range: SectorRange::new(0, 1),
            content: Content::Unreadable(Stood { segment: 0, sector: 8 }),
        };
        let (bytes, total) = tail(&[note, extents()[2]]);
        assert!(decode(&bytes, total, DISK_SECTORS_MAX).is_err(), "a note before what the file holds");
        let overlapping = [extents()[0], extents()[0]];
        let (bytes, total) = tail(&overlapping);
        assert!(decode(&bytes, total, DISK_SECTORS_MAX).is_err());
    }

    proptest! {
        #[test]
        fn whatever_a_file_ends_in_is_a_value_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            total in any::<u64>(),
            sums_match in any::<bool>(),
        ) {
            let mut bytes = bytes;
            if let Some(start) = bytes.len().checked_sub(FOOTER_BYTES).filter(|_| sums_match) {
                bytes[start..start + 8].copy_from_slice(&MAGIC);
                bytes[start + 8..start + 12].copy_from_slice(&VERSION.to_le_bytes());
                let sum = checksum(&bytes[start..start + 112]);
                bytes[start + 112..].copy_from_slice(&sum.to_le_bytes());
            }
            if let Ok(footer) = Footer::decode(&bytes, total) {
                let table = &bytes[..bytes.len() - FOOTER_BYTES];
                prop_assert!(footer.decode_table(table, DISK_SECTORS_MAX).is_err() || table.is_empty());
            }
        }
    }
}
