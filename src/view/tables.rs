//! Where a view's bytes are: the tables of its deltas, as few as cover them, newest first.
//!
//! A table is a summary, searched page by page where it lies, or a map in memory of neighbouring deltas that have none. A look
//! goes from the newest table to the oldest until nothing of its range is left. See `docs/opening-a-point.md`.
//!
//! Invariant: what a look finds is what layering every delta gives. A summary that turns out to be of no use is replaced
//! by what covers its deltas without it, at any time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::cache::{Generations, Recent};
use crate::delta::{LayeredDisk, Layering, Place, read_chunk};
use crate::error::{Error, Result};
use crate::extent::{Extent, Found, FrozenMap};
use crate::format::delta::{Chunk, Content, DeltaExtent, DeltaRef};
use crate::format::record::Reached;
use crate::format::summary::{Cover, DiskPages, EXTENTS_A_PAGE, MemberChunk};
use crate::storage::{File, Slice};
use crate::summary::SummaryReader;
use crate::units::{BlobId, DiskId, DiskSlot, SectorCount, SectorRange};
use crate::vault::{SummaryLease, Vault};

/// Tables that are opened at a time.
const OPENS_IN_FLIGHT: usize = 16;
/// Tables whose pages are read side by side: more would be read for nothing where the newest have all.
const TABLES_AT_A_TIME: usize = 8;
/// Pages of one look that are in flight at a time.
const PAGES_IN_FLIGHT: usize = 16;
/// Pages of a table, at most, that a window leads over.
const WINDOW_PAGES: usize = 4;
/// Pages of extents kept, in each of two generations: 11 MB in all.
const PAGES_KEPT: usize = 1024;
/// Pages of chunks kept, in each of two generations: 1 MB in all.
const DIRECTORIES_KEPT: usize = 128;
/// Chunks kept per view: 4 MiB.
const CHUNKS_KEPT: usize = 32;
/// Files kept open per view: a view of a day of points has more of them than a process may have files.
const FILES_KEPT: usize = 32;

/// A disk, and its size at the newest layer.
pub(super) type Size = (DiskSlot, DiskId, SectorCount);

/// Why a look did not come to its end.
pub(super) enum Trouble {
    /// A summary is of no use; it can go on without.
    Summary(Rc<Paged>, Error),
    /// Nothing helps.
    Lost(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Lost(error)
    }
}

type Attempt<T> = std::result::Result<T, Trouble>;

/// A summary, open.
pub(super) struct Paged {
    /// How places name it.
    source: u32,
    cover: Cover,
    /// Which of the view's deltas it is of.
    deltas: Range<usize>,
    reader: SummaryReader,
}

enum Table {
    /// Deltas without a summary, layered.
    Flat(Vec<LayeredDisk<FrozenMap<Place>>>),
    Paged(Rc<Paged>),
}

/// What the layer of a [`Place`] means.
enum Source {
    Delta { blob: BlobId, chunks: Box<[Chunk]> },
    Summary(Rc<Paged>),
}

#[derive(Clone, Copy, PartialEq)]
enum FileName {
    Blob(BlobId),
    Summary(Cover),
}

/// The tables of a view.
pub(super) struct Tables {
    vault: Rc<Vault>,
    /// Oldest first.
    deltas: Vec<DeltaRef>,
    /// What the base had taken in of the oldest of them: nobody looks for that here.
    taken_in: BTreeMap<BlobId, Reached>,
    sizes: Vec<Size>,
    /// Newest first.
    tables: RefCell<Rc<[Rc<Table>]>>,
    /// Only ever longer: what a look under way has found keeps its meaning.
    sources: RefCell<Vec<Rc<Source>>>,
    leases: RefCell<Vec<SummaryLease>>,
    pages: Generations<(u32, u64), Rc<FrozenMap<Place>>>,
    directories: Generations<(u32, u64), Rc<[MemberChunk]>>,
    chunks: Recent<(u32, u32), Slice>,
    files: Recent<FileName, File>,
}

impl Tables {
    /// Opens what covers `deltas`, which are leased, given oldest first.
    pub(super) async fn open(
        vault: &Rc<Vault>,
        deltas: Vec<DeltaRef>,
        taken_in: BTreeMap<BlobId, Reached>,
        sizes: Vec<Size>,
    ) -> Result<Tables> {
        let all = 0..deltas.len();
        let tables = Tables {
            vault: Rc::clone(vault),
            deltas,
            taken_in,
            sizes,
            tables: RefCell::new(Rc::new([])),
            sources: RefCell::default(),
            leases: RefCell::default(),
            pages: Generations::new(PAGES_KEPT),
            directories: Generations::new(DIRECTORIES_KEPT),
            chunks: Recent::new(CHUNKS_KEPT),
            files: Recent::new(FILES_KEPT),
        };
        let opened = tables.open_cover(all).await?;
        tables.tables.replace(opened.into_iter().rev().collect());
        Ok(tables)
    }

    /// Summaries among the tables.
    pub(super) fn summaries(&self) -> usize {
        self.tables.borrow().iter().filter(|table| matches!(***table, Table::Paged(_))).count()
    }

    /// The tables that cover some of the deltas, oldest first. A summary that cannot be opened is refused, and the cover
    /// is asked for anew.
    async fn open_cover(&self, deltas: Range<usize>) -> Result<Vec<Rc<Table>>> {
        let is_taken_in = |delta: &&DeltaRef| self.taken_in.contains_key(&delta.blob);
        let taken_in = self.deltas[deltas.clone()].iter().take_while(is_taken_in).count();
        if taken_in > 0 {
            // A summary says where these were before the base took some of them in.
            let standing = deltas.start + taken_in;
            let mut tables = vec![Rc::new(Table::Flat(self.layer(deltas.start..standing).await?))];
            tables.extend(self.cover(standing..deltas.end).await?);
            return Ok(tables);
        }
        self.cover(deltas).await
    }

    async fn cover(&self, deltas: Range<usize>) -> Result<Vec<Rc<Table>>> {
        let blobs: Vec<BlobId> = self.deltas[deltas.clone()].iter().map(|delta| delta.blob).collect();
        let summaries = self.vault.summaries();
        loop {
            let stretches = summaries.cover(&blobs);
            let covers = || stretches.iter().filter_map(|stretch| stretch.summary);
            let leases = covers().map(|cover| self.vault.leases().take_summary(cover));
            self.leases.borrow_mut().extend(leases);
            let opened = stream::iter(covers()).map(|cover| async move {
                self.vault.open_summary(&cover).await.map_err(|error| (cover, error))
            });
            let opened: Vec<_> = opened.buffered(OPENS_IN_FLIGHT).collect().await;
            let failed = opened.iter().filter_map(|opened| opened.as_ref().err());
            let failures = failed.map(|(cover, error)| summaries.refuse(cover, error)).count();
            if failures > 0 {
                continue;
            }
            let mut opened = opened.into_iter().flatten();
            let mut tables = Vec::new();
            for run in stretches.chunk_by(|a, b| a.summary.is_none() && b.summary.is_none()) {
                let from = deltas.start + run[0].deltas.start;
                let to = deltas.start + run[run.len() - 1].deltas.end;
                let table = match run[0].summary {
                    None => Table::Flat(self.layer(from..to).await?),
                    Some(cover) => {
                        let (reader, file) = opened.next().expect("one was opened for each");
                        self.files.put(FileName::Summary(cover), file);
                        Table::Paged(self.add_paged(cover, from..to, reader))
                    }
                };
                tables.push(Rc::new(table));
            }
            return Ok(tables);
        }
    }

    fn add_source(&self, source: impl FnOnce(u32) -> Source) -> Rc<Source> {
        let mut sources = self.sources.borrow_mut();
        let number = u32::try_from(sources.len()).expect("a view has fewer than 2^32 tables");
        sources.push(Rc::new(source(number)));
        Rc::clone(&sources[number as usize])
    }

    fn add_paged(&self, cover: Cover, deltas: Range<usize>, reader: SummaryReader) -> Rc<Paged> {
        let source =
            self.add_source(|source| Source::Summary(Rc::new(Paged { source, cover, deltas, reader })));
        match &*source {
            Source::Summary(paged) => Rc::clone(paged),
            Source::Delta { .. } => unreachable!("it was added as a summary"),
        }
    }

    /// Layers the deltas' own tables.
    async fn layer(&self, deltas: Range<usize>) -> Result<Vec<LayeredDisk<FrozenMap<Place>>>> {
        let mut layering = Layering::new(self.sizes.iter().copied());
        let mut readers = stream::iter(&self.deltas[deltas])
            .map(|delta| self.vault.open_delta_beyond(delta, self.taken_in.get(&delta.blob).copied()))
            .buffered(OPENS_IN_FLIGHT)
            .boxed_local();
        while let Some(reader) = readers.next().await {
            let reader = reader?;
            let blob = reader.header().blob;
            let tables = reader.into_tables();
            let chunks = tables.chunks.into_boxed_slice();
            let mut layer = 0;
            self.add_source(|source| {
                layer = source;
                Source::Delta { blob, chunks }
            });
            layering.add(self.vault.runtime(), layer, &tables.disks).await;
        }
        Ok(layering.finish())
    }

    /// Goes on without a summary.
    pub(super) async fn fall_back(&self, paged: &Rc<Paged>, error: &Error) -> Result<()> {
        let is_it = |table: &Rc<Table>| matches!(&**table, Table::Paged(other) if Rc::ptr_eq(other, paged));
        if !self.tables.borrow().iter().any(is_it) {
            return Ok(());
        }
        self.vault.summaries().refuse(&paged.cover, error);
        let opened = self.open_cover(paged.deltas.clone()).await?;
        let mut tables = self.tables.borrow().to_vec();
        // Somebody else may have done the same meanwhile.
        if let Some(at) = tables.iter().position(is_it) {
            tables.splice(at..=at, opened.into_iter().rev());
            self.tables.replace(tables.into());
        }
        Ok(())
    }

    /// How far from `from` on one may look without finding more than some thousand extents; at most `end`.
    pub(super) fn window_end(&self, slot: DiskSlot, from: u64, end: u64) -> u64 {
        let rest = SectorRange::new(from, end);
        let ahead = |table: &Rc<Table>| match &**table {
            Table::Flat(disks) => {
                disk_of(disks, slot).and_then(|map| map.start_ahead(from, WINDOW_PAGES * EXTENTS_A_PAGE))
            }
            Table::Paged(paged) => paged.reader.root().disk(slot).and_then(|disk| {
                disk.fences
                    .get(disk.pages_for(rest).start + WINDOW_PAGES)
                    .copied()
                    .filter(|&fence| fence > from)
            }),
        };
        self.tables.borrow().iter().filter_map(ahead).fold(end, u64::min)
    }

    /// Where each part of `range` is, in order and without gaps; `None` is in the base.
    pub(super) async fn lookup(&self, slot: DiskSlot, range: SectorRange) -> Attempt<Vec<Found<Place>>> {
        let tables = Rc::clone(&self.tables.borrow());
        let mut look = Look { gaps: vec![range], found: Vec::new() };
        for batch in tables.chunks(TABLES_AT_A_TIME) {
            if look.gaps.is_empty() {
                break;
            }
            let mut pages = self.read_pages(batch, slot, &look.gaps).await?.into_iter().peekable();
            for (index, table) in batch.iter().enumerate() {
                match &**table {
                    Table::Flat(disks) => {
                        let whole = SectorRange::new(0, u64::MAX);
                        disk_of(disks, slot).into_iter().for_each(|map| look.fill(whole, map));
                    }
                    Table::Paged(_) => {
                        while let Some(page) = pages.next_if(|page| page.table == index) {
                            look.fill(page.bounds, &page.map);
                        }
                    }
                }
            }
        }
        Ok(look.finish())
    }

    /// The pages of some tables that may have something of `gaps`, table after table.
    async fn read_pages(
        &self,
        tables: &[Rc<Table>],
        slot: DiskSlot,
        gaps: &[SectorRange],
    ) -> Attempt<Vec<Page>> {
        let mut reads = Vec::new();
        for (table, paged) in tables.iter().enumerate() {
            let Table::Paged(paged) = &**paged else { continue };
            let Some(disk) = paged.reader.root().disk(slot) else { continue };
            let mut next = 0;
            for gap in gaps {
                let pages = disk.pages_for(*gap);
                for page in pages.start.max(next)..pages.end {
                    reads.push(async move {
                        let map = self.page(paged, disk, page).await?;
                        Ok(Page { table, bounds: disk.range_of(page), map })
                    });
                }
                next = next.max(pages.end);
            }
        }
        stream::iter(reads).buffered(PAGES_IN_FLIGHT).try_collect().await
    }

    async fn page(&self, paged: &Rc<Paged>, disk: &DiskPages, page: usize) -> Attempt<Rc<FrozenMap<Place>>> {
        let key = (paged.source, disk.first_page + page as u64);
        if let Some(map) = self.pages.get(key) {
            return Ok(map);
        }
        let useless = |error| Trouble::Summary(Rc::clone(paged), error);
        let read = async {
            let file = self.summary_file(paged).await?;
            paged.reader.extents(self.vault.runtime(), &file, disk, page, 1).await
        };
        let extents = read.await.map_err(useless)?;
        let placed = extents.into_iter().flatten().map(|extent| place(extent, paged.source));
        let map = FrozenMap::from_sorted(placed.collect()).expect("a page is sorted and disjoint");
        let map = Rc::new(map);
        self.pages.put(key, Rc::clone(&map));
        Ok(map)
    }

    /// Some of a chunk's plain bytes.
    pub(super) async fn chunk(&self, layer: u32, index: u32, bytes: Range<usize>) -> Attempt<Slice> {
        let source = Rc::clone(&self.sources.borrow()[layer as usize]);
        let chunk = match self.chunks.get((layer, index)) {
            Some(chunk) => chunk,
            None => {
                let chunk = self.read_chunk(&source, index).await?;
                self.chunks.put((layer, index), chunk.clone());
                chunk
            }
        };
        if bytes.end <= chunk.len() {
            return Ok(chunk.slice(bytes));
        }
        // A delta's tables were compared with its chunks when they were read.
        let error = Error::corrupt(format!("an extent ends behind the {} bytes of its chunk", chunk.len()));
        match &*source {
            Source::Summary(paged) => Err(Trouble::Summary(Rc::clone(paged), error)),
            Source::Delta { .. } => Err(Trouble::Lost(error)),
        }
    }

    /// In which blob a chunk is, and where.
    pub(super) async fn stored(&self, layer: u32, index: u32) -> Attempt<(BlobId, Chunk)> {
        let source = Rc::clone(&self.sources.borrow()[layer as usize]);
        self.stored_in(&source, index).await
    }

    async fn stored_in(&self, source: &Source, index: u32) -> Attempt<(BlobId, Chunk)> {
        match source {
            Source::Delta { blob, chunks } => Ok((*blob, chunks[index as usize])),
            Source::Summary(paged) => self.entry(paged, index).await,
        }
    }

    async fn read_chunk(&self, source: &Source, index: u32) -> Attempt<Slice> {
        let (blob, entry) = self.stored_in(source, index).await?;
        let file = self.blob_file(blob).await?;
        Ok(read_chunk(self.vault.runtime(), &file, &entry, self.vault.keys()).await?)
    }

    /// In which blob a chunk is that a summary names, and where.
    async fn entry(&self, paged: &Rc<Paged>, index: u32) -> Attempt<(BlobId, Chunk)> {
        let (page, at) = SummaryReader::page_of(index);
        let useless = |error| Trouble::Summary(Rc::clone(paged), error);
        let directory = match self.directories.get((paged.source, page)) {
            Some(directory) => directory,
            None => {
                let read = async {
                    let file = self.summary_file(paged).await?;
                    paged.reader.chunks(self.vault.runtime(), &file, page, 1).await
                };
                let chunks: Vec<MemberChunk> = read.await.map_err(useless)?.into_iter().flatten().collect();
                let chunks: Rc<[MemberChunk]> = chunks.into();
                self.directories.put((paged.source, page), Rc::clone(&chunks));
                chunks
            }
        };
        let MemberChunk { member, chunk } = directory[at];
        Ok((self.deltas[paged.deltas.start + member as usize].blob, chunk))
    }

    async fn summary_file(&self, paged: &Paged) -> Result<File> {
        let name = FileName::Summary(paged.cover);
        if let Some(file) = self.files.get(name) {
            return Ok(file);
        }
        let file = self.vault.summaries().open_file(&paged.cover).await?;
        self.files.put(name, file.clone());
        Ok(file)
    }

    async fn blob_file(&self, blob: BlobId) -> Result<File> {
        if let Some(file) = self.files.get(FileName::Blob(blob)) {
            return Ok(file);
        }
        let file = self.vault.blobs().open(blob).await?;
        self.files.put(FileName::Blob(blob), file.clone());
        Ok(file)
    }
}

fn disk_of(disks: &[LayeredDisk<FrozenMap<Place>>], slot: DiskSlot) -> Option<&FrozenMap<Place>> {
    disks.iter().find(|disk| disk.slot == slot).map(|disk| &disk.map)
}

fn place(extent: DeltaExtent, layer: u32) -> Extent<Place> {
    let location = match extent.content {
        Content::Data { chunk, sector } => Place::Chunk { layer, chunk, sector },
        Content::Zero { allocated } => Place::Zero { allocated },
    };
    Extent { range: extent.range, location }
}

/// A page of one of the tables that are looked at.
struct Page {
    table: usize,
    bounds: SectorRange,
    map: Rc<FrozenMap<Place>>,
}

/// A look on its way down.
struct Look {
    /// What no table had so far: ascending, no two next to each other.
    gaps: Vec<SectorRange>,
    found: Vec<(SectorRange, Place)>,
}

impl Look {
    /// Takes what `map` has within `bounds`.
    fn fill(&mut self, bounds: SectorRange, map: &FrozenMap<Place>) {
        let mut rest = Vec::with_capacity(self.gaps.len());
        for gap in std::mem::take(&mut self.gaps) {
            let Some(within) = gap.intersection(bounds) else {
                leave(&mut rest, gap);
                continue;
            };
            leave(&mut rest, SectorRange::new(gap.start, within.start));
            for (part, place) in map.lookup(within) {
                match place {
                    Some(place) => self.found.push((part, place)),
                    None => leave(&mut rest, part),
                }
            }
            leave(&mut rest, SectorRange::new(within.end, gap.end));
        }
        self.gaps = rest;
    }

    fn finish(self) -> Vec<Found<Place>> {
        let found = self.found.into_iter().map(|(range, place)| (range, Some(place)));
        let mut parts: Vec<_> = found.chain(self.gaps.into_iter().map(|gap| (gap, None))).collect();
        parts.sort_unstable_by_key(|(range, _)| range.start);
        parts
    }
}

/// Adds a gap behind those before it.
fn leave(gaps: &mut Vec<SectorRange>, gap: SectorRange) {
    match gaps.last_mut() {
        _ if gap.is_empty() => {}
        Some(last) if last.end == gap.start => last.end = gap.end,
        _ => gaps.push(gap),
    }
}
