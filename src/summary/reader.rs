//! Reads a summary: its end when it is opened, then pages as they are needed. Every byte that leaves was proved.
//!
//! The file is the caller's to open and to hand in: a view has more summaries than a process may have files.

use std::rc::Rc;

use super::page::{self, ROOT_COUNTER};
use crate::error::{Error, Result};
use crate::format::delta::DeltaExtent;
use crate::format::summary::{
    self, CHUNKS_A_PAGE, Cover, DiskPages, FOOTER_BYTES, Footer, MemberChunk, PAGE_BYTES, Root,
};
use crate::runtime::Runtime;
use crate::seal::{GroupKeys, Purpose, Sealer, open_units};
use crate::storage::{Buffer, File};
use crate::units::{GroupId, to_usize};

/// Read from the end at first: footer and root of a summary of up to 400 pages.
const END_BYTES: u64 = 4096;

/// An open summary.
pub struct SummaryReader {
    footer: Footer,
    root: Root,
    sealer: Option<Sealer>,
}

/// Footer and stored root of the summary in `file`, neither of them compared with what was expected.
pub async fn read_end(runtime: &Rc<Runtime>, file: &File) -> Result<(Footer, Buffer)> {
    let length = runtime.length(file).await?;
    if length < FOOTER_BYTES as u64 {
        return Err(Error::corrupt("the summary is shorter than its footer").at_offset(0));
    }
    let start = length.saturating_sub(END_BYTES);
    let end = runtime.read(file, start, to_usize(length - start)).await?;
    let footer = Footer::decode(&end, length)?;
    let root_offset = footer.root_offset();
    let root_bytes = to_usize(footer.root_bytes());
    let root = if root_offset >= start {
        let at = to_usize(root_offset - start);
        Buffer::copy_of(&end[at..at + root_bytes])
    } else {
        runtime.read(file, root_offset, root_bytes).await?
    };
    debug_assert_eq!(root_offset + root_bytes as u64 + FOOTER_BYTES as u64, length);
    Ok((footer, root))
}

impl SummaryReader {
    /// Opens the summary in `file`, which must be the one of `cover`, of `group`.
    pub async fn open(
        runtime: &Rc<Runtime>,
        file: &File,
        cover: &Cover,
        group: GroupId,
        keys: &GroupKeys,
    ) -> Result<SummaryReader> {
        let opened = async {
            let (footer, root) = read_end(runtime, file).await?;
            if footer.cover != *cover || footer.group != group {
                let text = "the summary's footer names other deltas, or another group";
                return Err(Error::corrupt(text).at_offset(footer.total_bytes() - FOOTER_BYTES as u64));
            }
            SummaryReader::decode(footer, root, keys)
        };
        opened.await.map_err(|error| error.at_path(file.path()))
    }

    fn decode(footer: Footer, mut root: Buffer, keys: &GroupKeys) -> Result<SummaryReader> {
        let at = footer.root_offset();
        footer.verify_root(&root)?;
        let generation = footer.sealed_under.map_or(0, |generation| generation.0);
        let sealer = keys.opener(generation, Purpose::Summary, footer.id.0);
        let sealer = sealer.map_err(|error| error.at_offset(at))?;
        if let Some(sealer) = &sealer {
            let plain = open_units(sealer, ROOT_COUNTER, &footer.bound(), &mut root);
            let plain = plain.map_err(|(offset, _)| {
                let text = "the seal of the summary's root does not fit: it, or the footer, was changed";
                Error::corrupt(text).at_offset(at + offset)
            })?;
            root.truncate(plain);
        }
        let root = Root::decode(&root, &footer)?;
        Ok(SummaryReader { footer, root, sealer })
    }

    /// What it is.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Its pages.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The extents of `count` pages of a disk from `first` on, page after page.
    pub async fn extents(
        &self,
        runtime: &Rc<Runtime>,
        file: &File,
        disk: &DiskPages,
        first: usize,
        count: usize,
    ) -> Result<Vec<Vec<DeltaExtent>>> {
        let number = disk.first_page + first as u64;
        let decode = |body: &[u8], index: usize| {
            summary::decode_extents(body, disk, first + index, self.footer.chunks)
        };
        self.pages(runtime, file, number, count, decode).await
    }

    /// In which page of chunks a chunk is, and where in it.
    pub fn page_of(chunk: u32) -> (u64, usize) {
        let chunk = chunk as usize;
        ((chunk / CHUNKS_A_PAGE) as u64, chunk % CHUNKS_A_PAGE)
    }

    /// The chunks of `count` pages of them from `first` on.
    pub async fn chunks(
        &self,
        runtime: &Rc<Runtime>,
        file: &File,
        first: u64,
        count: usize,
    ) -> Result<Vec<Vec<MemberChunk>>> {
        let number = self.footer.extent_pages + first;
        let decode =
            |body: &[u8], index: usize| summary::decode_chunks(body, &self.footer, first + index as u64);
        self.pages(runtime, file, number, count, decode).await
    }

    async fn pages<T>(
        &self,
        runtime: &Rc<Runtime>,
        file: &File,
        number: u64,
        count: usize,
        decode: impl Fn(&[u8], usize) -> Result<T>,
    ) -> Result<Vec<T>> {
        let read = runtime.read(file, number * PAGE_BYTES as u64, count * PAGE_BYTES).await;
        let mut bytes = read.map_err(|error| error.at_path(file.path()))?;
        let mut pages = Vec::with_capacity(count);
        for (index, bytes) in bytes.chunks_exact_mut(PAGE_BYTES).enumerate() {
            let number = number + index as u64;
            let page = page::open(bytes, self.footer.id, number, self.sealer.as_ref())
                .and_then(|body| decode(body, index));
            pages.push(
                page.map_err(|error| error.at_path(file.path()).at_offset(number * PAGE_BYTES as u64))?,
            );
        }
        Ok(pages)
    }
}
