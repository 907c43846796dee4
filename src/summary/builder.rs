//! Builds a summary from deltas' tables and other summaries, oldest first, in one pass and with bounded memory.
//!
//! Extents are swept, disk after disk, newest bytes winning; the directories of chunks are laid one behind the other, those
//! that nothing points to any more included, so that no map from chunk to entry is needed.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::SummaryReader;
use super::page::{self, ROOT_COUNTER};
use super::sweep::Sweep;
use crate::delta::Sink;
use crate::error::{Error, Result};
use crate::format::delta::{DeltaExtent, Tables};
use crate::format::summary::{
    BODY_BYTES, CHUNKS_A_PAGE, Cover, DiskPages, EXTENTS_A_PAGE, Footer, MemberChunk, PAGE_BYTES, Root,
    put_chunks, put_extents,
};
use crate::runtime::Runtime;
use crate::seal::{GroupKeys, Purpose, Sealer, seal_units};
use crate::storage::{Buffer, File};
use crate::units::{DiskSlot, GroupId, SummaryId, WallNanos, to_usize};

/// Pages that are written at a time.
const BATCH_PAGES: usize = 32;
/// Pages of chunks that are read at a time.
const CHUNK_PAGES_AHEAD: u64 = 32;
/// Extents after which whoever shares the thread gets a turn.
const EXTENTS_PER_TURN: usize = 4096;
/// The root is written in pieces of this size.
const ROOT_PIECE_BYTES: usize = 1 << 20;

/// What is summarized.
pub enum Input {
    /// A delta.
    Delta(Tables),
    /// A summary of deltas, and its file.
    Summary(Box<SummaryReader>, File),
}

impl Input {
    pub(super) fn chunks(&self) -> u32 {
        match self {
            Input::Delta(tables) => u32::try_from(tables.chunks.len()).expect("chunk numbers are u32"),
            Input::Summary(reader, _) => reader.footer().chunks,
        }
    }

    fn members(&self) -> u32 {
        match self {
            Input::Delta(_) => 1,
            Input::Summary(reader, _) => reader.footer().cover.members,
        }
    }

    fn slots(&self) -> Vec<DiskSlot> {
        match self {
            Input::Delta(tables) => tables.disks.iter().map(|table| table.slot).collect(),
            Input::Summary(reader, _) => reader.root().disks.iter().map(|disk| disk.slot).collect(),
        }
    }
}

/// Whose summary it is to be.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Drawn for this attempt.
    pub id: SummaryId,
    /// Whose deltas.
    pub group: GroupId,
    /// Which of them: those of the inputs.
    pub cover: Cover,
    /// Now.
    pub created: WallNanos,
}

/// Why a summary was not built.
#[derive(Debug)]
pub struct Failed {
    /// Which input could not be read, if that was it.
    pub input: Option<usize>,
    /// What went wrong.
    pub error: Error,
}

/// What comes of building.
pub(super) type Attempt<T> = std::result::Result<T, Failed>;

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed { input: None, error }
    }
}

/// Writes the summary of `inputs`, which are given oldest first. `proceed` is asked now and then, and its error ends
/// it; `oldest_wins` is a bug.
pub async fn build(
    runtime: &Rc<Runtime>,
    sink: &mut impl Sink,
    identity: Identity,
    inputs: &[Input],
    keys: &GroupKeys,
    oldest_wins: bool,
    proceed: &impl Fn() -> Result<()>,
) -> Attempt<Footer> {
    let chunks = inputs.iter().try_fold(0_u32, |sum, input| sum.checked_add(input.chunks()));
    let chunks = chunks.ok_or_else(|| Error::invalid("a summary has fewer than 2^32 chunks"))?;
    let sealing = keys.sealing(Purpose::Summary, identity.id.0);
    let sealed_under = sealing.as_ref().map(|sealing| sealing.generation);
    let sealer = sealing.map(|sealing| sealing.sealer);
    let mut pages = PageWriter::new(sink, identity.id, sealer);
    let root = write_extents(runtime, &mut pages, inputs, oldest_wins, proceed).await?;
    let footer = Footer {
        id: identity.id,
        group: identity.group,
        cover: identity.cover,
        disks: u32::try_from(root.disks.len()).expect("slots are u32"),
        extents: root.disks.iter().map(|disk| disk.extents).sum(),
        extent_pages: pages.count,
        chunks,
        sealed_under,
        root_checksum: 0,
        created: identity.created,
    };
    write_chunks(runtime, &mut pages, inputs).await?;
    pages.flush().await?;
    Ok(pages.end(footer, &root).await?)
}

async fn write_extents(
    runtime: &Rc<Runtime>,
    pages: &mut PageWriter<'_, impl Sink>,
    inputs: &[Input],
    oldest_wins: bool,
    proceed: &impl Fn() -> Result<()>,
) -> Attempt<Root> {
    let slots: BTreeSet<DiskSlot> = inputs.iter().flat_map(Input::slots).collect();
    let mut root = Root::default();
    let mut since_turn = 0;
    for slot in slots {
        let mut sweep = Sweep::new(runtime, inputs, slot, oldest_wins).await?;
        let mut disk = DiskPages { slot, first_page: pages.count, extents: 0, end: 0, fences: Vec::new() };
        let mut page: Vec<DeltaExtent> = Vec::with_capacity(EXTENTS_A_PAGE);
        while let Some(extent) = sweep.next(runtime).await? {
            disk.end = extent.range.end;
            page.push(extent);
            if page.len() == EXTENTS_A_PAGE {
                write_page(pages, &mut disk, &mut page).await?;
            }
            since_turn += 1;
            if since_turn == EXTENTS_PER_TURN {
                since_turn = 0;
                proceed()?;
                runtime.yield_now().await;
            }
        }
        write_page(pages, &mut disk, &mut page).await?;
        root.disks.push(disk);
    }
    Ok(root)
}

async fn write_page(
    pages: &mut PageWriter<'_, impl Sink>,
    disk: &mut DiskPages,
    page: &mut Vec<DeltaExtent>,
) -> Result<()> {
    let Some(first) = page.first() else { return Ok(()) };
    disk.fences.push(first.range.start);
    disk.extents += page.len() as u64;
    pages.push(|body| put_extents(body, page)).await?;
    page.clear();
    Ok(())
}

async fn write_chunks(
    runtime: &Rc<Runtime>,
    pages: &mut PageWriter<'_, impl Sink>,
    inputs: &[Input],
) -> Attempt<()> {
    let mut queue: Vec<MemberChunk> = Vec::new();
    let mut member = 0;
    for (index, input) in inputs.iter().enumerate() {
        match input {
            Input::Delta(tables) => {
                for chunks in tables.chunks.chunks(CHUNKS_A_PAGE) {
                    queue.extend(chunks.iter().map(|&chunk| MemberChunk { member, chunk }));
                    write_whole_pages(pages, &mut queue).await?;
                }
            }
            Input::Summary(reader, file) => {
                let end = reader.footer().chunk_pages();
                let mut next = 0;
                while next < end {
                    let count = CHUNK_PAGES_AHEAD.min(end - next);
                    let read = reader.chunks(runtime, file, next, to_usize(count)).await;
                    let read = read.map_err(|error| Failed { input: Some(index), error })?;
                    let chunks = read.into_iter().flatten();
                    queue.extend(chunks.map(|found| MemberChunk { member: member + found.member, ..found }));
                    write_whole_pages(pages, &mut queue).await?;
                    next += count;
                    runtime.yield_now().await;
                }
            }
        }
        member += input.members();
    }
    if !queue.is_empty() {
        pages.push(|body| put_chunks(body, &queue)).await?;
    }
    Ok(())
}

async fn write_whole_pages(
    pages: &mut PageWriter<'_, impl Sink>,
    queue: &mut Vec<MemberChunk>,
) -> Result<()> {
    let whole = queue.len() / CHUNKS_A_PAGE * CHUNKS_A_PAGE;
    for chunks in queue[..whole].chunks(CHUNKS_A_PAGE) {
        pages.push(|body| put_chunks(body, chunks)).await?;
    }
    queue.drain(..whole);
    Ok(())
}

/// Pages on their way, a batch at a time.
struct PageWriter<'a, S> {
    sink: &'a mut S,
    id: SummaryId,
    sealer: Option<Sealer>,
    batch: Vec<u8>,
    /// Pages so far.
    count: u64,
}

impl<S: Sink> PageWriter<'_, S> {
    fn new(sink: &mut S, id: SummaryId, sealer: Option<Sealer>) -> PageWriter<'_, S> {
        PageWriter { sink, id, sealer, batch: Vec::with_capacity(BATCH_PAGES * PAGE_BYTES), count: 0 }
    }

    async fn push(&mut self, fill: impl FnOnce(&mut [u8])) -> Result<()> {
        let start = self.batch.len();
        self.batch.resize(start + PAGE_BYTES, 0);
        let page = &mut self.batch[start..];
        fill(&mut page[..BODY_BYTES]);
        page::close(page, self.id, self.count, self.sealer.as_ref());
        self.count += 1;
        if self.batch.len() == BATCH_PAGES * PAGE_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        if !self.batch.is_empty() {
            self.sink.append(Buffer::copy_of(&self.batch).freeze()).await?;
            self.batch.clear();
        }
        Ok(())
    }

    /// Root and footer.
    async fn end(self, footer: Footer, root: &Root) -> Result<Footer> {
        let mut bytes = root.encode();
        let plain = bytes.len();
        if let Some(sealer) = &self.sealer {
            bytes.resize(to_usize(footer.root_bytes()), 0);
            seal_units(sealer, ROOT_COUNTER, &footer.bound(), &mut bytes, plain);
        }
        let footer = footer.with_root(&bytes);
        bytes.extend_from_slice(&footer.encode());
        for piece in bytes.chunks(ROOT_PIECE_BYTES) {
            self.sink.append(Buffer::copy_of(piece).freeze()).await?;
        }
        Ok(footer)
    }
}
