//! A summary: the extents of neighbouring deltas in one sorted table that is searched where it lies. `docs/format.md`
//! draws every byte, `docs/opening-a-point.md` says what for.
//!
//! ```text
//! 0                                                                root offset          total - 192   total
//! +---------------+-- … --+--------------+-- … --+-----------------+--------------------+-------------+
//! | extent page 0 |       | chunk page 0 |       | (4,096 B each)  | root: disks, fences | footer      |
//! +---------------+-- … --+--------------+-- … --+-----------------+--------------------+-------------+
//! ```
//!
//! It is read from its end: the [`Footer`] says which deltas it covers and where the [`Root`] is; the root has the first
//! sector of every extent page, so that any sector is one page away. A page is 4,080 bytes and what proves them. Pages
//! here are those bytes, opened: proving is the summary room's.
//!
//! Not the truth about anything: a cache of the deltas' own tables.

use std::ops::Range;

use zerocopy::little_endian::{I64, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum;
use super::delta::{
    CHUNK_BYTES_MAX, CHUNK_ENTRY_BYTES, Chunk, Content, DISK_SECTORS_MAX, DeltaExtent, EXTENT_ENTRY_BYTES,
    RawChunk, RawExtent, decode_chunk, decode_extent, encode_chunk, encode_extent,
};
use crate::error::{Error, Result};
use crate::seal::{Generation, sealed_len};
use crate::units::{BlobId, DiskSlot, GroupId, SectorRange, SummaryId, WallNanos, to_usize};

/// Length of a page as it is stored.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of it that say something; a tag or a sum follows.
pub const BODY_BYTES: usize = PAGE_BYTES - 16;
/// Extents in a page; the last one of a disk may have fewer.
pub const EXTENTS_A_PAGE: usize = BODY_BYTES / EXTENT_ENTRY_BYTES;
/// Chunks in a page; the last one may have fewer.
pub const CHUNKS_A_PAGE: usize = BODY_BYTES / CHUNK_ENTRY_BYTES;
/// Length of the footer.
pub const FOOTER_BYTES: usize = 192;

const MAGIC: [u8; 8] = *b"AFTRSUMM";
const VERSION: u32 = 1;
const DISK_ENTRY_BYTES: usize = size_of::<RawDisk>();
const FENCE_BYTES: usize = 8;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawFooter {
    magic: [u8; 8],
    version: U32,
    level: u8,
    reserved_short: [u8; 3],
    id: U128,
    group: U128,
    first: U128,
    digest: U128,
    members: U32,
    disks: U32,
    extents: U64,
    extent_pages: U64,
    chunks: U32,
    key_generation: U32,
    root_bytes: U64,
    root_checksum: U128,
    created: I64,
    reserved: [u8; 32],
    checksum: U128,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawDisk {
    slot: U32,
    reserved: U32,
    first_page: U64,
    extents: U64,
    end: U64,
}

const _: () = assert!(size_of::<RawFooter>() == FOOTER_BYTES && DISK_ENTRY_BYTES == 32);

/// Which deltas a summary stands for: its name, and what its footer repeats. It holds for these, in this order, and for
/// nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cover {
    /// The oldest of them.
    pub first: BlobId,
    /// How many.
    pub members: u32,
    /// Over their ids.
    pub digest: u128,
    /// How many times they were gathered.
    pub level: u8,
}

impl Cover {
    /// The cover of deltas with these ids, which are at least one and fewer than 2^32.
    ///
    /// # Panics
    /// If they are not.
    pub fn of(level: u8, blobs: &[BlobId]) -> Cover {
        let members = u32::try_from(blobs.len()).expect("a vault has fewer than 2^32 deltas");
        Cover { first: blobs[0], members, digest: digest(blobs), level }
    }
}

/// What tells one list of deltas from another: random ids, one behind the other, summed.
pub fn digest(blobs: &[BlobId]) -> u128 {
    let mut hasher = xxhash_rust::xxh3::Xxh3Default::new();
    blobs.iter().for_each(|blob| hasher.update(&blob.0.to_le_bytes()));
    hasher.digest128()
}

/// What a summary is, and where its parts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Drawn for this attempt to write it; names its key.
    pub id: SummaryId,
    /// Whose deltas.
    pub group: GroupId,
    /// Which of them.
    pub cover: Cover,
    /// Disks that have extents in it.
    pub disks: u32,
    /// Extents of all disks.
    pub extents: u64,
    /// Pages of extents.
    pub extent_pages: u64,
    /// Chunks of all its deltas.
    pub chunks: u32,
    /// Which group key sealed it.
    pub sealed_under: Option<Generation>,
    /// Over the stored root.
    pub root_checksum: u128,
    /// When it was built.
    pub created: WallNanos,
}

impl Footer {
    /// Pages of chunks.
    pub fn chunk_pages(&self) -> u64 {
        u64::from(self.chunks).div_ceil(CHUNKS_A_PAGE as u64)
    }

    /// Where the root starts.
    pub fn root_offset(&self) -> u64 {
        (self.extent_pages + self.chunk_pages()) * PAGE_BYTES as u64
    }

    /// Length of the root, opened.
    pub fn plain_root_bytes(&self) -> u64 {
        u64::from(self.disks) * DISK_ENTRY_BYTES as u64 + self.extent_pages * FENCE_BYTES as u64
    }

    /// Length of the root as it is stored.
    pub fn root_bytes(&self) -> u64 {
        match self.sealed_under {
            None => self.plain_root_bytes(),
            Some(_) => sealed_len(to_usize(self.plain_root_bytes())) as u64,
        }
    }

    /// Length of the whole file.
    pub fn total_bytes(&self) -> u64 {
        self.root_offset() + self.root_bytes() + FOOTER_BYTES as u64
    }

    /// What the seal of the root binds: all of the footer but for the two sums that follow from the sealed bytes.
    pub fn bound(&self) -> Vec<u8> {
        let mut raw = Footer { root_checksum: 0, ..*self }.raw();
        raw.checksum = 0.into();
        raw.as_bytes().to_vec()
    }

    /// The same, over the root as it is stored.
    #[must_use]
    pub fn with_root(self, stored: &[u8]) -> Footer {
        assert_eq!(stored.len() as u64, self.root_bytes(), "a root is stored as it was said");
        Footer { root_checksum: checksum(stored), ..self }
    }

    /// Checks the root as it is stored.
    pub fn verify_root(&self, stored: &[u8]) -> Result<()> {
        if stored.len() as u64 != self.root_bytes() || checksum(stored) != self.root_checksum {
            return Err(Error::corrupt("the summary's root does not match its checksum")
                .at_offset(self.root_offset()));
        }
        Ok(())
    }

    /// The footer's bytes.
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        self.raw().as_bytes().try_into().expect("the sizes were compared at compile time")
    }

    fn raw(&self) -> RawFooter {
        let mut raw = RawFooter {
            magic: MAGIC,
            version: VERSION.into(),
            level: self.cover.level,
            reserved_short: [0; 3],
            id: self.id.0.into(),
            group: self.group.0.into(),
            first: self.cover.first.0.into(),
            digest: self.cover.digest.into(),
            members: self.cover.members.into(),
            disks: self.disks.into(),
            extents: self.extents.into(),
            extent_pages: self.extent_pages.into(),
            chunks: self.chunks.into(),
            key_generation: self.sealed_under.map_or(0, |generation| generation.0).into(),
            root_bytes: self.root_bytes().into(),
            root_checksum: self.root_checksum.into(),
            created: self.created.0.into(),
            reserved: [0; 32],
            checksum: 0.into(),
        };
        raw.checksum = checksum(&raw.as_bytes()[..FOOTER_BYTES - 16]).into();
        raw
    }

    /// The footer in the last [`FOOTER_BYTES`] of a file of `total_bytes`.
    pub fn decode(bytes: &[u8], total_bytes: u64) -> Result<Footer> {
        let at = total_bytes.saturating_sub(FOOTER_BYTES as u64);
        let corrupt = |text: &str| Error::corrupt(text).at_offset(at);
        let (_, raw) = RawFooter::ref_from_suffix(bytes)
            .map_err(|_| corrupt("the summary is shorter than its footer"))?;
        if raw.magic != MAGIC {
            return Err(corrupt("the summary does not end in a footer"));
        }
        if raw.version.get() != VERSION {
            return Err(Error::unknown_version("the summary", raw.version, VERSION).at_offset(at + 8));
        }
        if raw.checksum.get() != checksum(&raw.as_bytes()[..FOOTER_BYTES - 16]) {
            return Err(corrupt("the summary footer's checksum does not match"));
        }
        let cover = Cover {
            first: BlobId(raw.first.get()),
            members: raw.members.get(),
            digest: raw.digest.get(),
            level: raw.level,
        };
        let footer = Footer {
            id: SummaryId(raw.id.get()),
            group: GroupId(raw.group.get()),
            cover,
            disks: raw.disks.get(),
            extents: raw.extents.get(),
            extent_pages: raw.extent_pages.get(),
            chunks: raw.chunks.get(),
            sealed_under: Some(Generation(raw.key_generation.get())).filter(|generation| generation.0 > 0),
            root_checksum: raw.root_checksum.get(),
            created: WallNanos(raw.created.get()),
        };
        // Bounds what is computed from the counts below, and is no bound on anything real.
        let pages_max = total_bytes / PAGE_BYTES as u64;
        let bounded = footer.extent_pages <= pages_max && footer.chunk_pages() <= pages_max;
        let reserved = raw.reserved_short != [0; 3] || raw.reserved != [0; 32];
        if !bounded
            || footer.cover.members == 0
            || footer.cover.level == 0
            || footer.total_bytes() != total_bytes
            || raw.root_bytes.get() != footer.root_bytes()
            || reserved
        {
            return Err(corrupt("the summary footer's fields do not add up to the file"));
        }
        Ok(footer)
    }
}

/// One disk's extent pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPages {
    /// The disk's place in its group.
    pub slot: DiskSlot,
    /// Which page of the file is its first.
    pub first_page: u64,
    /// Extents in all of its pages.
    pub extents: u64,
    /// Where the last of them ends.
    pub end: u64,
    /// Where the first extent of each page starts.
    pub fences: Vec<u64>,
}

impl DiskPages {
    /// Extents of a page.
    pub fn extents_in(&self, page: usize) -> usize {
        let before = page * EXTENTS_A_PAGE;
        EXTENTS_A_PAGE.min(to_usize(self.extents) - before)
    }

    /// The sectors that the extents of a page lie within.
    pub fn range_of(&self, page: usize) -> SectorRange {
        let end = self.fences.get(page + 1).copied().unwrap_or(self.end);
        SectorRange::new(self.fences[page], end)
    }

    /// The pages that may have something of `range`.
    pub fn pages_for(&self, range: SectorRange) -> Range<usize> {
        if range.is_empty() || range.start >= self.end {
            return 0..0;
        }
        let first = self.fences.partition_point(|&fence| fence <= range.start).saturating_sub(1);
        let last = self.fences.partition_point(|&fence| fence < range.end);
        first..last.max(first)
    }
}

/// Which pages there are, and where each one begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// Ascending by slot, each with one extent at least.
    pub disks: Vec<DiskPages>,
}

impl Root {
    /// A disk's pages.
    pub fn disk(&self, slot: DiskSlot) -> Option<&DiskPages> {
        self.disks.binary_search_by_key(&slot, |disk| disk.slot).ok().map(|index| &self.disks[index])
    }

    /// The root, to be stored.
    pub fn encode(&self) -> Vec<u8> {
        let pages: usize = self.disks.iter().map(|disk| disk.fences.len()).sum();
        let mut bytes = Vec::with_capacity(self.disks.len() * DISK_ENTRY_BYTES + pages * FENCE_BYTES);
        for disk in &self.disks {
            let raw = RawDisk {
                slot: disk.slot.0.into(),
                reserved: 0.into(),
                first_page: disk.first_page.into(),
                extents: disk.extents.into(),
                end: disk.end.into(),
            };
            bytes.extend_from_slice(raw.as_bytes());
        }
        for fence in self.disks.iter().flat_map(|disk| &disk.fences) {
            bytes.extend_from_slice(&fence.to_le_bytes());
        }
        bytes
    }

    /// The root in `bytes`, which are what `footer` sums, opened.
    pub fn decode(bytes: &[u8], footer: &Footer) -> Result<Root> {
        let corrupt = |text: &str| Error::corrupt(text).at_offset(footer.root_offset());
        if bytes.len() as u64 != footer.plain_root_bytes() {
            return Err(corrupt("the summary's root is not as long as its footer says"));
        }
        let (disks, fences) = bytes.split_at(footer.disks as usize * DISK_ENTRY_BYTES);
        let (Ok(disks), Ok(fences)) = (<[RawDisk]>::ref_from_bytes(disks), <[U64]>::ref_from_bytes(fences))
        else {
            return Err(corrupt("the summary's root is not as long as its footer says"));
        };
        let mut root = Root { disks: Vec::with_capacity(disks.len()) };
        let (mut page, mut extents) = (0, 0_u64);
        for raw in disks {
            let disk = decode_disk(raw, fences, page).ok_or_else(|| {
                corrupt(&format!("the pages of disk slot {} do not add up, or are out of order", raw.slot))
            })?;
            if root.disks.last().is_some_and(|previous| previous.slot >= disk.slot) {
                return Err(corrupt("the summary's disks do not ascend"));
            }
            page += disk.fences.len();
            extents = extents.saturating_add(disk.extents);
            root.disks.push(disk);
        }
        if page != fences.len() || extents != footer.extents {
            return Err(corrupt("the summary's pages are not those of its disks"));
        }
        Ok(root)
    }
}

fn decode_disk(raw: &RawDisk, fences: &[U64], page: usize) -> Option<DiskPages> {
    let (extents, end) = (raw.extents.get(), raw.end.get());
    let pages = usize::try_from(extents.div_ceil(EXTENTS_A_PAGE as u64)).ok()?;
    let fences: Vec<u64> =
        fences.get(page..page.checked_add(pages)?)?.iter().map(|fence| fence.get()).collect();
    let ascend = fences.windows(2).all(|pair| pair[0] < pair[1]);
    let within = fences.last().is_some_and(|&last| last < end) && end <= DISK_SECTORS_MAX;
    let legal = ascend && within && raw.reserved.get() == 0 && raw.first_page.get() == page as u64;
    let (slot, first_page) = (DiskSlot(raw.slot.get()), page as u64);
    legal.then_some(DiskPages { slot, first_page, extents, end, fences })
}

/// Writes extents, at most [`EXTENTS_A_PAGE`], into a page of zeros.
pub fn put_extents(body: &mut [u8], extents: &[DeltaExtent]) {
    for (entry, extent) in body.chunks_exact_mut(EXTENT_ENTRY_BYTES).zip(extents) {
        entry.copy_from_slice(encode_extent(extent).as_bytes());
    }
}

/// The extents of a page of `disk`, in a summary of so many chunks: sorted, disjoint and between the fences.
pub fn decode_extents(body: &[u8], disk: &DiskPages, page: usize, chunks: u32) -> Result<Vec<DeltaExtent>> {
    let count = disk.extents_in(page);
    let (entries, rest) = body.split_at(count * EXTENT_ENTRY_BYTES);
    let raw = <[RawExtent]>::ref_from_bytes(entries).map_err(|_| Error::corrupt("a page is too short"))?;
    let bounds = disk.range_of(page);
    let mut extents: Vec<DeltaExtent> = Vec::with_capacity(count);
    for raw in raw {
        let extent = decode_extent(raw)?;
        let known = !matches!(extent.content, Content::Data { chunk, .. } if chunk >= chunks);
        let follows = match extents.last() {
            None => extent.range.start == bounds.start,
            Some(previous) => previous.range.end <= extent.range.start,
        };
        if !known || !follows || extent.range.end > bounds.end {
            return Err(Error::corrupt(format!("extent {} is out of place in its page", extent.range)));
        }
        extents.push(extent);
    }
    let is_last = page + 1 == disk.fences.len();
    let ends = !is_last || extents.last().is_some_and(|last| last.range.end == bounds.end);
    if !ends || rest.iter().any(|&byte| byte != 0) {
        return Err(Error::corrupt("a page does not end as it should"));
    }
    Ok(extents)
}

/// A chunk, and in which of the covered deltas it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberChunk {
    /// Counted from the oldest.
    pub member: u32,
    /// The chunk.
    pub chunk: Chunk,
}

/// Writes chunks, at most [`CHUNKS_A_PAGE`], into a page of zeros.
pub fn put_chunks(body: &mut [u8], chunks: &[MemberChunk]) {
    for (entry, chunk) in body.chunks_exact_mut(CHUNK_ENTRY_BYTES).zip(chunks) {
        let mut raw = encode_chunk(&chunk.chunk);
        raw.member = chunk.member.into();
        entry.copy_from_slice(raw.as_bytes());
    }
}

/// The chunks of a page of chunks, the first being 0.
pub fn decode_chunks(body: &[u8], footer: &Footer, page: u64) -> Result<Vec<MemberChunk>> {
    let before = page * CHUNKS_A_PAGE as u64;
    let count = to_usize((u64::from(footer.chunks) - before).min(CHUNKS_A_PAGE as u64));
    let (entries, rest) = body.split_at(count * CHUNK_ENTRY_BYTES);
    let raw = <[RawChunk]>::ref_from_bytes(entries).map_err(|_| Error::corrupt("a page is too short"))?;
    let mut chunks = Vec::with_capacity(count);
    for raw in raw {
        let (chunk, member) = (decode_chunk(raw, CHUNK_BYTES_MAX)?, raw.member.get());
        if member >= footer.cover.members {
            return Err(Error::corrupt(format!("a chunk is in delta {member} of {}", footer.cover.members)));
        }
        chunks.push(MemberChunk { member, chunk });
    }
    if rest.iter().any(|&byte| byte != 0) {
        return Err(Error::corrupt("a page of chunks does not end in zeros"));
    }
    Ok(chunks)
}
