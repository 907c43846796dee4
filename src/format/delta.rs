//! The delta blob: header, chunks, tables, footer. `docs/format.md` draws every byte.
//!
//! A blob is read from its end: the [`Footer`] tells where the [`Tables`] are and repeats the [`Header`]'s checksum.
//! The `Raw…` layouts are what the bytes claim; only the validated types leave this module. Offsets in errors count
//! from the start of the blob.

mod tables;

use zerocopy::little_endian::{I64, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum;
use crate::error::{Error, ErrorKind, Result};
use crate::seal::{Generation, plain_len};
use crate::units::{BlobId, GroupId, Lsn, TimelineId, WallNanos};

pub(super) use tables::{
    CHUNK_ENTRY_BYTES, EXTENT_ENTRY_BYTES, RawChunk, RawExtent, decode_chunk, decode_extent, encode_chunk,
    encode_extent,
};
pub use tables::{Chunk, Content, DeltaExtent, DiskTable, Tables};

/// Length of the header.
pub const HEADER_BYTES: usize = 256;
/// Length of the footer.
pub const FOOTER_BYTES: usize = 128;
/// Plain bytes of a chunk that the builder fills: what one read of a view verifies, and one sync unit of a merge.
pub const CHUNK_BYTES: u32 = 128 << 10;
/// Largest disk that the tables can address: byte offsets stay below 2^63.
pub const DISK_SECTORS_MAX: u64 = 1 << 54;

const CHUNK_BYTES_MIN: u32 = 64 << 10;
pub(super) const CHUNK_BYTES_MAX: u32 = 256 << 10;
const VERSION: u32 = 1;
const HEADER_MAGIC: [u8; 8] = *b"AFTRDLTA";
const FOOTER_MAGIC: [u8; 8] = *b"AFTRDEND";

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U32,
    header_bytes: U32,
    blob: U128,
    group: U128,
    timeline: U128,
    after: U64,
    through: U64,
    marker: U64,
    created: I64,
    chunk_bytes: U32,
    intervals: U32,
    reserved_long: U64,
    features: U64,
    reserved: [u8; 120],
    checksum: U128,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawFooter {
    magic: [u8; 8],
    blob: U128,
    tables_offset: U64,
    tables_bytes: U64,
    disks: U32,
    chunks: U32,
    extents: U64,
    total_bytes: U64,
    tables_checksum: U128,
    header_checksum: U128,
    plain_bytes: U64,
    key_generation: U32,
    tables_compression: u8,
    reserved: [u8; 3],
    checksum: U128,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES && size_of::<RawFooter>() == FOOTER_BYTES);

/// How bytes were made shorter before they were sealed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// A zstd frame (RFC 8878).
    Zstd,
}

impl Compression {
    fn code(self) -> u8 {
        match self {
            Compression::None => 0,
            Compression::Zstd => 1,
        }
    }

    fn from_code(code: u8) -> Result<Compression> {
        match code {
            0 => Ok(Compression::None),
            1 => Ok(Compression::Zstd),
            other => {
                let text = format!("compression {other} is not known to this build");
                Err(Error::new(ErrorKind::Unsupported, text))
            }
        }
    }
}

/// How many times as long as they are stored tables can be: what a reader makes room for is bounded by what it read.
pub const EXPANSION_MAX: u64 = 1024;

/// Whether `plain` bytes can have become `stored` ones.
fn is_legal_length(plain: u64, stored: u64, compression: Compression, generation: u32) -> bool {
    let packed = match generation {
        0 => Some(stored),
        _ => usize::try_from(stored).ok().and_then(plain_len).map(|packed| packed as u64),
    };
    match (packed, compression) {
        (None, _) => false,
        (Some(packed), Compression::None) => packed == plain,
        (Some(packed), Compression::Zstd) => (1..plain).contains(&packed),
    }
}

/// What a blob is: whose content, of which interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The blob's own id.
    pub blob: BlobId,
    /// Whose disks.
    pub group: GroupId,
    /// Of which history.
    pub timeline: TimelineId,
    /// The interval starts after this record,
    pub after: Lsn,
    /// and holds everything up to and including this one.
    pub through: Lsn,
    /// The marker that ends it.
    pub marker: Lsn,
    /// When it was built.
    pub created: WallNanos,
    /// How many intervals were merged into it; 1 for one that was not merged.
    pub intervals: u32,
    /// Plain bytes of a chunk, at most.
    pub chunk_bytes: u32,
}

impl Header {
    /// The header's bytes.
    ///
    /// # Panics
    /// If the fields contradict each other: only our own bug builds such a header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        self.check().expect("a header is checked by whoever builds it");
        let mut raw = RawHeader {
            magic: HEADER_MAGIC,
            version: VERSION.into(),
            header_bytes: 256.into(),
            blob: self.blob.0.into(),
            group: self.group.0.into(),
            timeline: self.timeline.0.into(),
            after: self.after.0.into(),
            through: self.through.0.into(),
            marker: self.marker.0.into(),
            created: self.created.0.into(),
            chunk_bytes: self.chunk_bytes.into(),
            intervals: self.intervals.into(),
            reserved_long: 0.into(),
            features: 0.into(),
            reserved: [0; 120],
            checksum: 0.into(),
        };
        raw.checksum = checksum(summed(raw.as_bytes())).into();
        raw.as_bytes().try_into().expect("the sizes were compared at compile time")
    }

    /// The header in the first [`HEADER_BYTES`] of a blob.
    pub fn decode(bytes: &[u8]) -> Result<Header> {
        let (raw, _) = RawHeader::ref_from_prefix(bytes)
            .map_err(|_| Error::corrupt("the delta is shorter than its header").at_offset(0))?;
        if raw.magic != HEADER_MAGIC {
            return Err(Error::corrupt("not a delta: its magic is wrong").at_offset(0));
        }
        if raw.version.get() != VERSION {
            return Err(Error::unknown_version("the delta", raw.version, VERSION).at_offset(8));
        }
        if raw.checksum.get() != checksum(summed(raw.as_bytes())) {
            return Err(Error::corrupt("the delta header's checksum does not match").at_offset(0));
        }
        check_known("delta feature bits", raw.features.get(), 0, 112)?;
        let reserved = raw.reserved_long.get() != 0 || raw.reserved.iter().any(|&b| b != 0);
        if reserved || raw.header_bytes.get() != 256 {
            return Err(Error::corrupt("the delta header's reserved bytes are not as written").at_offset(12));
        }
        let header = Header {
            blob: BlobId(raw.blob.get()),
            group: GroupId(raw.group.get()),
            timeline: TimelineId(raw.timeline.get()),
            after: Lsn(raw.after.get()),
            through: Lsn(raw.through.get()),
            marker: Lsn(raw.marker.get()),
            created: WallNanos(raw.created.get()),
            intervals: raw.intervals.get(),
            chunk_bytes: raw.chunk_bytes.get(),
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<()> {
        if !(self.after <= self.through && self.through <= self.marker) {
            let text = format!(
                "the delta's interval is out of order: after {}, through {}, marker {}",
                self.after, self.through, self.marker
            );
            return Err(Error::corrupt(text).at_offset(64));
        }
        let chunk = self.chunk_bytes;
        if !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk) || !chunk.is_multiple_of(4096) {
            return Err(Error::corrupt(format!("chunks of {chunk} bytes are not legal")).at_offset(96));
        }
        if self.intervals == 0 {
            return Err(Error::corrupt("a delta of no intervals").at_offset(100));
        }
        Ok(())
    }
}

/// Where the tables are, and what everything adds up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The blob's own id.
    pub blob: BlobId,
    /// Where the tables start.
    pub tables_offset: u64,
    /// How long they are.
    pub tables_bytes: u64,
    /// Disks in the tables.
    pub disks: u32,
    /// Chunks in the tables.
    pub chunks: u32,
    /// Extents in the tables.
    pub extents: u64,
    /// Length of the whole blob.
    pub total_bytes: u64,
    /// Over the stored tables.
    pub tables_checksum: u128,
    /// The header's own checksum.
    pub header_checksum: u128,
    /// Plain bytes of all chunks.
    pub plain_bytes: u64,
    /// How the tables were made shorter.
    pub tables_compression: Compression,
    /// Which group key sealed the tables, and binds header and footer to them.
    pub sealed_under: Option<Generation>,
}

/// How tables are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TablesForm {
    /// Their stored length.
    pub bytes: u64,
    /// How they were made shorter.
    pub compression: Compression,
    /// Which group key sealed them.
    pub sealed_under: Option<Generation>,
}

impl Footer {
    /// The footer of a blob that starts with `header` and has `tables`, which are to be stored in this form; their
    /// checksum is still to be [put in](Footer::with_tables).
    pub fn new(header: &[u8; HEADER_BYTES], blob: BlobId, tables: &Tables, form: TablesForm) -> Footer {
        let tables_offset = tables.chunks.last().map_or(HEADER_BYTES as u64, Chunk::end);
        let tables_bytes = form.bytes;
        Footer {
            blob,
            tables_offset,
            tables_bytes,
            disks: u32::try_from(tables.disks.len()).expect("slots are u32"),
            chunks: u32::try_from(tables.chunks.len()).expect("chunk numbers are u32"),
            extents: tables.disks.iter().map(|disk| disk.extents.len() as u64).sum(),
            total_bytes: tables_offset + tables_bytes + FOOTER_BYTES as u64,
            tables_checksum: 0,
            header_checksum: trailing_checksum(header),
            plain_bytes: tables.chunks.iter().map(|chunk| u64::from(chunk.plain_bytes)).sum(),
            tables_compression: form.compression,
            sealed_under: form.sealed_under,
        }
    }

    /// The same, over the tables as they are stored.
    #[must_use]
    pub fn with_tables(self, stored: &[u8]) -> Footer {
        assert_eq!(stored.len() as u64, self.tables_bytes, "tables are stored as it was said");
        Footer { tables_checksum: checksum(stored), ..self }
    }

    /// Checks the tables as they are stored.
    pub fn verify_tables(&self, stored: &[u8]) -> Result<()> {
        if stored.len() as u64 != self.tables_bytes || checksum(stored) != self.tables_checksum {
            let error = Error::corrupt("the delta tables' checksum does not match");
            return Err(error.at_offset(self.tables_offset));
        }
        Ok(())
    }

    /// Length of the tables once they are opened.
    pub fn plain_tables_bytes(&self) -> u64 {
        self.counted_bytes().expect("a footer is checked when it is read")
    }

    /// What the seal of the tables binds: the header, and all of the footer but for the two sums that follow from the
    /// sealed bytes.
    pub fn bound(&self, header: &[u8]) -> Vec<u8> {
        let mut raw = Footer { tables_checksum: 0, ..*self }.raw();
        raw.checksum = 0.into();
        [header, raw.as_bytes()].concat()
    }

    /// The footer's bytes.
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        self.raw().as_bytes().try_into().expect("the sizes were compared at compile time")
    }

    fn raw(&self) -> RawFooter {
        let mut raw = RawFooter {
            magic: FOOTER_MAGIC,
            blob: self.blob.0.into(),
            tables_offset: self.tables_offset.into(),
            tables_bytes: self.tables_bytes.into(),
            disks: self.disks.into(),
            chunks: self.chunks.into(),
            extents: self.extents.into(),
            total_bytes: self.total_bytes.into(),
            tables_checksum: self.tables_checksum.into(),
            header_checksum: self.header_checksum.into(),
            plain_bytes: self.plain_bytes.into(),
            key_generation: self.sealed_under.map_or(0, |generation| generation.0).into(),
            tables_compression: self.tables_compression.code(),
            reserved: [0; 3],
            checksum: 0.into(),
        };
        raw.checksum = checksum(summed(raw.as_bytes())).into();
        raw
    }

    /// The footer in the last [`FOOTER_BYTES`] of a blob of `total_bytes`.
    pub fn decode(bytes: &[u8], total_bytes: u64) -> Result<Footer> {
        let at = total_bytes.saturating_sub(FOOTER_BYTES as u64);
        let corrupt = |text: &str| Error::corrupt(text).at_offset(at);
        let (_, raw) =
            RawFooter::ref_from_suffix(bytes).map_err(|_| corrupt("the delta is shorter than its footer"))?;
        if raw.magic != FOOTER_MAGIC {
            return Err(corrupt("the delta does not end in a footer: it was cut off"));
        }
        if raw.checksum.get() != checksum(summed(raw.as_bytes())) {
            return Err(corrupt("the delta footer's checksum does not match"));
        }
        let footer = Footer {
            blob: BlobId(raw.blob.get()),
            tables_offset: raw.tables_offset.get(),
            tables_bytes: raw.tables_bytes.get(),
            disks: raw.disks.get(),
            chunks: raw.chunks.get(),
            extents: raw.extents.get(),
            total_bytes: raw.total_bytes.get(),
            tables_checksum: raw.tables_checksum.get(),
            header_checksum: raw.header_checksum.get(),
            plain_bytes: raw.plain_bytes.get(),
            tables_compression: Compression::from_code(raw.tables_compression)
                .map_err(|error| error.at_offset(at + 108))?,
            sealed_under: generation(raw.key_generation),
        };
        let whole = footer.tables_offset.checked_add(footer.tables_bytes);
        let whole = whole.and_then(|tables_end| tables_end.checked_add(FOOTER_BYTES as u64));
        if footer.total_bytes != total_bytes
            || whole != Some(total_bytes)
            || footer.tables_offset < HEADER_BYTES as u64
            || !footer.tables_fit(raw.key_generation.get())
            || raw.reserved != [0; 3]
        {
            return Err(corrupt("the delta footer's lengths do not add up to the file's"));
        }
        Ok(footer)
    }

    fn tables_fit(&self, generation: u32) -> bool {
        let stored = self.tables_bytes;
        let fits = |plain| {
            plain / EXPANSION_MAX <= stored
                && is_legal_length(plain, stored, self.tables_compression, generation)
        };
        self.counted_bytes().is_some_and(fits)
    }

    fn counted_bytes(&self) -> Option<u64> {
        tables::stored_bytes(self.disks, self.extents, self.chunks)
    }

    /// What a manifest step says of this blob.
    pub fn reference(&self) -> DeltaRef {
        let checksum = trailing_checksum(&self.encode());
        DeltaRef { blob: self.blob, total_bytes: self.total_bytes, tables_bytes: self.tables_bytes, checksum }
    }

    /// Checks that this is the footer that a manifest step means, and `header` the header that it was written with.
    pub fn check_identity(&self, reference: &DeltaRef, header: &[u8]) -> Result<()> {
        if self.reference() != *reference {
            let text = format!("this is not the delta {} that the manifest means", reference.blob);
            return Err(Error::corrupt(text).at_offset(self.total_bytes - FOOTER_BYTES as u64));
        }
        if header.len() < HEADER_BYTES || trailing_checksum(&header[..HEADER_BYTES]) != self.header_checksum {
            return Err(
                Error::corrupt("the delta's header is not the one that its footer names").at_offset(0)
            );
        }
        Ok(())
    }
}

/// How a manifest step names a blob, so that its tables are one read away and nothing else can pass for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeltaRef {
    /// Which blob.
    pub blob: BlobId,
    /// Its length.
    pub total_bytes: u64,
    /// Its tables' length; they end where the footer starts.
    pub tables_bytes: u64,
    /// Its footer's checksum.
    pub checksum: u128,
}

impl DeltaRef {
    /// Checks that the lengths leave room for header and footer; a reference is read from untrusted bytes too.
    pub fn check(&self) -> Result<()> {
        let least = self.tables_bytes.checked_add((HEADER_BYTES + FOOTER_BYTES) as u64);
        if least.is_none_or(|least| least > self.total_bytes) || self.total_bytes > i64::MAX as u64 {
            let text = format!("a delta of {} bytes with {} of tables", self.total_bytes, self.tables_bytes);
            return Err(Error::corrupt(text));
        }
        Ok(())
    }

    /// Where the tables start.
    pub fn tables_offset(&self) -> u64 {
        self.total_bytes - FOOTER_BYTES as u64 - self.tables_bytes
    }
}

/// What a header's or footer's own checksum covers: everything before it.
fn summed(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len() - 16]
}

/// A header's or footer's own checksum.
fn trailing_checksum(bytes: &[u8]) -> u128 {
    u128::from_le_bytes(bytes[bytes.len() - 16..].try_into().expect("16 bytes"))
}

/// The generation that a stored number says; 0 says that nothing is sealed.
fn generation(stored: U32) -> Option<Generation> {
    Some(Generation(stored.get())).filter(|generation| generation.0 > 0)
}

fn check_known(what: &str, found: u64, known: u64, offset: u64) -> Result<()> {
    if found == known {
        return Ok(());
    }
    let text = format!("{what} {found} is not known; this build reads {known}");
    Err(Error::new(ErrorKind::Unsupported, text).at_offset(offset))
}
