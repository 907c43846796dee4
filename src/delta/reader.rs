//! Reads a delta blob: its tables first, then chunks as they are needed.
//!
//! Opening reads header, tables and footer, and no chunk. Every byte that leaves was compared with its checksum and, in a
//! sealed group, with its seal, and the blob with what the manifest says of it; a difference is `Corrupt` with the blob's
//! path and the offset.

use std::rc::Rc;

use super::pack::{open_chunk, open_tables};
use crate::error::{Error, Result};
use crate::format::delta::{Chunk, DeltaRef, FOOTER_BYTES, Footer, HEADER_BYTES, Header, Tables};
use crate::format::record::Reached;
use crate::runtime::Runtime;
use crate::seal::GroupKeys;
use crate::storage::{Buffer, File, Slice};
use crate::units::{GroupId, to_usize};

/// An open delta blob.
pub struct DeltaReader {
    runtime: Rc<Runtime>,
    file: File,
    header: Header,
    tables: Tables,
    /// Whether extents were left out.
    is_cut: bool,
    keys: GroupKeys,
}

impl DeltaReader {
    /// Opens the blob in `file`, which must be the one that `reference` means, of `group`.
    pub async fn open(
        runtime: &Rc<Runtime>,
        file: File,
        reference: &DeltaRef,
        group: GroupId,
        keys: &GroupKeys,
    ) -> Result<DeltaReader> {
        let opened = DeltaReader::read_tables(runtime, &file, reference, group, keys).await;
        let (header, tables) = opened.map_err(|error| error.at_path(file.path()))?;
        Ok(DeltaReader {
            runtime: Rc::clone(runtime),
            file,
            header,
            tables,
            is_cut: false,
            keys: keys.clone(),
        })
    }

    async fn read_tables(
        runtime: &Rc<Runtime>,
        file: &File,
        reference: &DeltaRef,
        group: GroupId,
        keys: &GroupKeys,
    ) -> Result<(Header, Tables)> {
        let length = runtime.length(file).await?;
        if length != reference.total_bytes {
            let text = format!("the delta has {length} bytes, the manifest says {}", reference.total_bytes);
            return Err(Error::corrupt(text).at_offset(length.min(reference.total_bytes)));
        }
        let offset = reference.tables_offset();
        let tail = read_range(runtime, file, offset, to_usize(length - offset)).await?;
        let head = read_range(runtime, file, 0, HEADER_BYTES).await?;
        let footer = Footer::decode(&tail, length)?;
        footer.check_identity(reference, &head)?;
        let header = Header::decode(&head)?;
        if header.blob != reference.blob || header.group != group {
            return Err(Error::corrupt("the delta's header names another blob or group").at_offset(16));
        }
        let stored = &tail[..tail.len() - FOOTER_BYTES];
        let plain = open_tables(stored, &head, header.blob, &footer, keys)?;
        let tables = Tables::decode(&plain, &header, &footer)?;
        Ok((header, tables))
    }

    /// The same without what a base has taken in: the extents below `reached`, whose chunks may be gone.
    #[must_use]
    pub fn beyond(mut self, reached: Reached) -> DeltaReader {
        self.tables.disks.iter_mut().for_each(|table| table.cut_below(reached));
        self.is_cut = true;
        self
    }

    /// The chunks that are there, ascending: a base may have taken in the others.
    pub fn chunks(&self) -> impl Iterator<Item = u32> + use<> {
        let count = u32::try_from(self.tables.chunks.len()).expect("chunk numbers are u32");
        let needed = self.is_cut.then(|| self.tables.needed_chunks());
        (0..count).filter(move |&index| needed.as_ref().is_none_or(|needed| needed[index as usize]))
    }

    /// What the blob is.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Its extents and chunks.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Its tables, for who needs nothing else.
    pub fn into_tables(self) -> Tables {
        self.tables
    }

    /// What the blob's I/O runs on.
    pub fn runtime(&self) -> &Rc<Runtime> {
        &self.runtime
    }

    /// A chunk as it is stored, compared with its checksum: for who copies it.
    ///
    /// # Panics
    /// As [`DeltaReader::chunk`].
    pub async fn stored_chunk(&self, index: u32) -> Result<Slice> {
        let chunk = &self.tables.chunks[index as usize];
        let stored = read_stored(&self.runtime, &self.file, chunk).await?;
        chunk.verify(&stored).map_err(|error| error.at_path(self.file.path()))?;
        Ok(stored.freeze())
    }

    /// The plain bytes of a chunk.
    ///
    /// # Panics
    /// If the blob has no such chunk; the tables name only those that it has.
    pub async fn chunk(&self, index: u32) -> Result<Slice> {
        read_chunk(&self.runtime, &self.file, &self.tables.chunks[index as usize], &self.keys).await
    }
}

async fn read_range(runtime: &Rc<Runtime>, file: &File, offset: u64, len: usize) -> Result<Slice> {
    Ok(runtime.read(file, offset, len).await?.freeze())
}

async fn read_stored(runtime: &Rc<Runtime>, file: &File, chunk: &Chunk) -> Result<Buffer> {
    runtime.read(file, chunk.offset, to_usize(chunk.stored_bytes.into())).await
}

/// Reads, verifies and opens a chunk of an open blob.
pub async fn read_chunk(
    runtime: &Rc<Runtime>,
    file: &File,
    chunk: &Chunk,
    keys: &GroupKeys,
) -> Result<Slice> {
    let stored = read_stored(runtime, file, chunk).await?;
    open_chunk(chunk, stored, keys).map_err(|error| error.at_path(file.path()))
}
