//! Sorted tables side by side, swept from the first sector to the last: what comes out is sorted and disjoint, and of
//! several tables that have a sector the newest says where it is.
//!
//! Memory is a batch of pages of each table, however long they are.

use std::rc::Rc;

use super::builder::{Attempt, Failed, Input};
use crate::format::delta::{Content, DeltaExtent};
use crate::format::summary::DiskPages;
use crate::runtime::Runtime;
use crate::storage::File;
use crate::summary::SummaryReader;
use crate::units::{DiskSlot, SectorRange};

/// Pages of one table that are read at a time.
const PAGES_AHEAD: usize = 16;

/// Where more extents of a table come from.
struct Pages<'a> {
    reader: &'a SummaryReader,
    file: &'a File,
    disk: &'a DiskPages,
    next: usize,
}

/// One table of a disk.
struct Part<'a> {
    /// Which of the inputs it is.
    input: usize,
    /// Where its chunks come to lie among all chunks.
    chunk_base: u32,
    /// The extent that is not swept over yet.
    current: Option<DeltaExtent>,
    buffered: std::vec::IntoIter<DeltaExtent>,
    pages: Option<Pages<'a>>,
}

impl Part<'_> {
    async fn advance(&mut self, runtime: &Rc<Runtime>) -> Attempt<()> {
        if self.buffered.len() == 0 {
            self.read_ahead(runtime).await?;
        }
        self.current = self.buffered.next().map(|mut extent| {
            if let Content::Data { chunk, .. } = &mut extent.content {
                *chunk += self.chunk_base;
            }
            extent
        });
        Ok(())
    }

    async fn read_ahead(&mut self, runtime: &Rc<Runtime>) -> Attempt<()> {
        let Some(Pages { reader, file, disk, next }) = &mut self.pages else { return Ok(()) };
        let count = PAGES_AHEAD.min(disk.fences.len() - *next);
        if count == 0 {
            return Ok(());
        }
        let pages = reader.extents(runtime, file, disk, *next, count).await;
        let pages = pages.map_err(|error| Failed { input: Some(self.input), error })?;
        *next += count;
        self.buffered = pages.into_iter().flatten().collect::<Vec<_>>().into_iter();
        Ok(())
    }
}

/// The part of an extent from `start` up to `end`, which lie within it.
fn clip(extent: &DeltaExtent, start: u64, end: u64) -> DeltaExtent {
    let content = match extent.content {
        Content::Data { chunk, sector } => {
            let before =
                u32::try_from(start - extent.range.start).expect("an extent says its sectors in 32 bits");
            Content::Data { chunk, sector: sector + before }
        }
        zero @ Content::Zero { .. } => zero,
    };
    DeltaExtent { range: SectorRange::new(start, end), content }
}

/// The sweep over one disk.
pub(super) struct Sweep<'a> {
    /// The newest first.
    parts: Vec<Part<'a>>,
    position: u64,
}

impl<'a> Sweep<'a> {
    /// Over what the inputs, oldest first, have of a disk; `oldest_wins` is a bug.
    pub(super) async fn new(
        runtime: &Rc<Runtime>,
        inputs: &'a [Input],
        slot: DiskSlot,
        oldest_wins: bool,
    ) -> Attempt<Sweep<'a>> {
        let mut parts = Vec::with_capacity(inputs.len());
        let mut chunk_base = 0;
        for (index, input) in inputs.iter().enumerate() {
            let (buffered, pages) = match input {
                Input::Delta(tables) => {
                    let table = tables.disks.iter().find(|table| table.slot == slot);
                    (table.map_or_else(Vec::new, |table| table.extents.clone()), None)
                }
                Input::Summary(reader, file) => {
                    let pages = |disk| Pages { reader, file, disk, next: 0 };
                    (Vec::new(), reader.root().disk(slot).map(pages))
                }
            };
            let mut part =
                Part { input: index, chunk_base, current: None, buffered: buffered.into_iter(), pages };
            part.advance(runtime).await?;
            parts.push(part);
            chunk_base += input.chunks();
        }
        if !oldest_wins {
            parts.reverse();
        }
        Ok(Sweep { parts, position: 0 })
    }

    /// The next extent.
    pub(super) async fn next(&mut self, runtime: &Rc<Runtime>) -> Attempt<Option<DeltaExtent>> {
        // Every current extent ends behind the position.
        let starts = self.parts.iter().filter_map(|part| part.current).map(|extent| extent.range.start);
        let Some(first) = starts.min() else { return Ok(None) };
        let start = self.position.max(first);
        let covers = |part: &Part<'_>| part.current.is_some_and(|extent| extent.range.start <= start);
        let newest = self.parts.iter().position(covers).expect("one of them begins there");
        let winner = self.parts[newest].current.expect("it covers the position");
        let newer = self.parts[..newest].iter().filter_map(|part| part.current);
        let end = newer.map(|extent| extent.range.start).fold(winner.range.end, u64::min);
        let extent = clip(&winner, start, end);
        for part in &mut self.parts {
            while part.current.is_some_and(|extent| extent.range.end <= end) {
                part.advance(runtime).await?;
            }
        }
        self.position = end;
        Ok(Some(extent))
    }
}
