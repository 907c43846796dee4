//! How chunks and tables are stored: compressed where that pays, then sealed where the group is; and back.
//!
//! Invariant: a chunk is sealed under the key of the blob that it is first written in, with its index there as nonce, and
//! never again. A copy keeps both.

use super::adaptive::Adaptive;
use crate::error::{Error, Result};
use crate::format::checksum;
use crate::format::delta::{Chunk, Compression, EXPANSION_MAX, Footer, HEADER_BYTES, Tables, TablesForm};
use crate::seal::{GroupKeys, Purpose, Sealing, open_units, seal_units, sealed_len};
use crate::storage::{Buffer, Slice};
use crate::units::{BlobId, to_usize};

/// The level at which a core compresses about as fast as disks write.
const LEVEL: i32 = 1;
/// Tables shorter than this are not worth a call.
const TABLES_BYTES_MIN: usize = 4096;
/// Nonces of chunks are their indices, below 2^32; that of the tables lies above them all.
const TABLES_COUNTER: u64 = 1 << 32;

/// Packs what goes into one blob.
pub(super) struct Packer {
    blob: BlobId,
    sealing: Option<Sealing>,
    adaptive: Adaptive,
}

impl Packer {
    /// For a blob with a newly drawn id.
    pub(super) fn new(blob: BlobId, keys: &GroupKeys) -> Packer {
        Packer { blob, sealing: keys.sealing(Purpose::Delta, blob.0), adaptive: Adaptive::default() }
    }

    /// A chunk with that index and place, as it is stored, and its entry.
    pub(super) fn chunk(&mut self, index: u32, offset: u64, plain: Slice) -> (Chunk, Slice) {
        let packed = self.adaptive.compress(|| compress(&plain, sealed_len(plain.len()) - plain.len()));
        let compression = if packed.is_some() { Compression::Zstd } else { Compression::None };
        let packed_bytes = packed.as_ref().map_or(plain.len(), |(_, length)| *length);
        let stored_bytes = self.sealing.as_ref().map_or(packed_bytes, |_| sealed_len(packed_bytes));
        let length = |bytes: usize| u32::try_from(bytes).expect("a chunk is bounded");
        let mut chunk = Chunk {
            offset,
            stored_bytes: length(stored_bytes),
            plain_bytes: length(plain.len()),
            origin_blob: self.blob,
            origin_chunk: index,
            compression,
            sealed_under: self.sealing.as_ref().map(|sealing| sealing.generation),
            checksum: 0,
        };
        let stored = match (packed, &self.sealing) {
            (None, None) => plain,
            (packed, sealing) => {
                let mut bytes = packed.map_or_else(|| with_room(&plain, stored_bytes), |(bytes, _)| bytes);
                bytes.truncate(stored_bytes);
                if let Some(sealing) = sealing {
                    seal_units(&sealing.sealer, index.into(), &chunk.bound(), &mut bytes, packed_bytes);
                }
                bytes.freeze()
            }
        };
        chunk.checksum = checksum(&stored);
        (chunk, stored)
    }

    /// The tables and the footer of a blob that begins with `header`, as they are stored.
    pub(super) fn tail(&self, header: &[u8; HEADER_BYTES], tables: &Tables) -> (Footer, Vec<u8>) {
        let plain = tables.encode();
        let packed = (plain.len() >= TABLES_BYTES_MIN).then(|| compress(&plain, 0)).flatten();
        let is_legal = |length: usize| plain.len() as u64 / EXPANSION_MAX <= length as u64;
        let (mut bytes, compression) = match packed {
            Some((bytes, length)) if is_legal(length) => (bytes[..length].to_vec(), Compression::Zstd),
            _ => (plain, Compression::None),
        };
        let packed_bytes = bytes.len();
        if self.sealing.is_some() {
            bytes.resize(sealed_len(packed_bytes), 0);
        }
        let sealed_under = self.sealing.as_ref().map(|sealing| sealing.generation);
        let form = TablesForm { bytes: bytes.len() as u64, compression, sealed_under };
        let footer = Footer::new(header, self.blob, tables, form);
        if let Some(sealing) = &self.sealing {
            seal_units(&sealing.sealer, TABLES_COUNTER, &footer.bound(header), &mut bytes, packed_bytes);
        }
        let footer = footer.with_tables(&bytes);
        bytes.extend_from_slice(&footer.encode());
        (footer, bytes)
    }
}

/// A copy with room behind it.
fn with_room(plain: &[u8], bytes: usize) -> Buffer {
    let mut buffer = Buffer::recycled(bytes);
    buffer[..plain.len()].copy_from_slice(plain);
    buffer
}

/// The compressed bytes at the start of a buffer, with `room` behind them, and their length; nothing where less than a
/// sixteenth is gained.
fn compress(plain: &[u8], room: usize) -> Option<(Buffer, usize)> {
    let limit = plain.len() - plain.len() / 16;
    let mut buffer = Buffer::recycled(limit + room);
    // It fails where the result is longer than the limit: then it does not pay.
    let length = zstd::bulk::compress_to_buffer(plain, &mut buffer[..limit], LEVEL).ok()?;
    Some((buffer, length))
}

fn decompress(packed: &[u8], plain_bytes: usize) -> Option<Buffer> {
    let mut plain = Buffer::recycled(plain_bytes);
    let length = zstd::bulk::decompress_to_buffer(packed, &mut plain).ok()?;
    (length == plain_bytes).then_some(plain)
}

/// The plain bytes of a chunk from its stored ones.
pub(super) fn open_chunk(chunk: &Chunk, mut bytes: Buffer, keys: &GroupKeys) -> Result<Slice> {
    chunk.verify(&bytes)?;
    let generation = chunk.sealed_under.map_or(0, |generation| generation.0);
    let opener = keys.opener(generation, Purpose::Delta, chunk.origin_blob.0);
    if let Some(sealer) = opener.map_err(|error| error.at_offset(chunk.offset))? {
        let plain = open_units(&sealer, chunk.origin_chunk.into(), &chunk.bound(), &mut bytes);
        let plain = plain.map_err(|(offset, _)| {
            Error::corrupt("a chunk's seal does not fit: it was changed").at_offset(chunk.offset + offset)
        })?;
        bytes.truncate(plain);
    }
    match chunk.compression {
        Compression::None => Ok(bytes.freeze()),
        Compression::Zstd => {
            let plain = decompress(&bytes, to_usize(chunk.plain_bytes.into()));
            let broken = || Error::corrupt("a chunk cannot be decompressed").at_offset(chunk.offset);
            plain.map(Buffer::freeze).ok_or_else(broken)
        }
    }
}

/// The plain tables from the stored ones, of a blob with this header and footer.
pub(super) fn open_tables(
    stored: &[u8],
    header: &[u8],
    blob: BlobId,
    footer: &Footer,
    keys: &GroupKeys,
) -> Result<Vec<u8>> {
    footer.verify_tables(stored)?;
    let at = footer.tables_offset;
    let mut bytes = stored.to_vec();
    let generation = footer.sealed_under.map_or(0, |generation| generation.0);
    let opener = keys.opener(generation, Purpose::Delta, blob.0).map_err(|error| error.at_offset(at))?;
    if let Some(sealer) = opener {
        let plain = open_units(&sealer, TABLES_COUNTER, &footer.bound(header), &mut bytes);
        let plain = plain.map_err(|(offset, _)| {
            let text = "the seal of the delta's tables does not fit: they, header or footer were changed";
            Error::corrupt(text).at_offset(at + offset)
        })?;
        bytes.truncate(plain);
    }
    match footer.tables_compression {
        Compression::None => Ok(bytes),
        Compression::Zstd => {
            let plain = decompress(&bytes, to_usize(footer.plain_tables_bytes()));
            let broken = || Error::corrupt("the delta's tables cannot be decompressed").at_offset(at);
            plain.map(|plain| plain.to_vec()).ok_or_else(broken)
        }
    }
}
