//! An overlay: what a test failover writes to a disk of a view, in a throwaway sparse file.
//!
//! The file's own allocation says what it holds: at opening it becomes the presence map in memory. So everything
//! that the overlay is to hold is really written, in blocks of 4 KiB, zeros too; where the view reads as zeros anyway,
//! zeroing gives the block back instead. A file system that cannot tell holes of that size is refused when an overlay
//! is created.
//!
//! Invariant: a sector is read from the file if it is present there, else from the view; a block becomes present
//! only when all its sectors are written. Requests on overlapping blocks go one after the other. A request's future
//! has to be driven to its end: its write may land after it was dropped.
//!
//! What this asks of the file system: a block that counts as data after a death holds what was written to it. Page cache
//! and delayed allocation of ext4 and XFS keep that for the death of the process, and for that of the machine once it
//! was flushed; a power cut may tear a block that was not, including sectors in it that the guest did not write. Those are refused: what
//! is read of the file has to have its [sums](super::overlay_sums). One of before there were any is [given them](summing) while it is served.
//!
//! What a hole is, is [asked of the sums](holes) before it is read or written to for the first time, if these say anything of it: a copy of the file
//! may have made holes of blocks of zeros.

mod holes;
mod summing;
mod verify;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use self::holes::Intent;
pub use self::verify::OverlayReport;
use super::View;
use super::overlay_sums::{OverlaySums, Rot, beside};
use super::presence::Presence;
use super::turns::Turns;
use crate::allocation::{AllocationRun, AllocationRuns, Windows};
use crate::block::DataPiece;
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::Runtime;
use crate::storage::{Access, Buffer, Create, File, Lock, OpenOptions, Slice};
use crate::units::{DiskId, SECTOR_BYTES, SectorRange, to_usize};

/// Bytes of a block of an overlay.
pub const BLOCK_BYTES: u64 = 4096;

pub(super) const BLOCK_SECTORS: u64 = BLOCK_BYTES / SECTOR_BYTES;
/// A long request is written in pieces of this size.
const PIECE_SECTORS: u64 = (1 << 20) / SECTOR_BYTES;
/// A long zeroing asks the view about this much at a time.
const WINDOW_SECTORS: u64 = (256 << 20) / SECTOR_BYTES;

/// A writable disk over a view.
pub struct Overlay {
    view: Rc<View>,
    disk: DiskId,
    sectors: u64,
    file: File,
    sums: Option<OverlaySums>,
    presence: RefCell<Presence>,
    /// Holes of which the sums may say that they were written, and nobody has looked yet.
    undecided: RefCell<Presence>,
    /// Whether it was told that some were.
    has_told: Cell<bool>,
    turns: Turns,
    flushes: Flushes,
    latched: Cell<bool>,
}

/// Flushes one after the other: the error of a sync is told to one caller only, and whoever flushes beside it must not miss it.
#[derive(Default)]
struct Flushes {
    turn: Turns,
    /// How many were asked for.
    asked: Cell<u64>,
    /// So many of these had been asked for when the last one that succeeded began.
    covered: Cell<u64>,
}

/// How what was written is read.
#[derive(Clone, Copy)]
enum Manner {
    /// Beside whoever writes there: what does not have its sums has to be read again.
    Glance,
    /// In a turn: nobody writes there.
    Alone,
}

/// What a piece of a write holds.
enum Payload<'a> {
    Bytes(&'a [u8]),
    Zeros,
}

impl Overlay {
    /// Creates the overlay of a disk as `path`, durably, and opens it.
    pub async fn create(path: &Path, view: &Rc<View>, disk: DiskId) -> Result<Overlay> {
        let runtime = view.runtime();
        let sectors = view.disk(disk)?.sectors();
        check_missing(runtime, path).await?;
        OverlaySums::check_empty(runtime, path).await?;
        OverlaySums::create(runtime, path, disk, sectors.0).await?;
        let partial = beside(path, ".partial");
        match runtime.remove(&partial).await {
            // Left by a crash of an earlier attempt, or not there.
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = runtime.open(&partial, OpenOptions::CREATE).await?;
        check_sparse(runtime, &file).await?;
        runtime.set_length(&file, 0).await?;
        runtime.set_length(&file, sectors.bytes()).await?;
        runtime.sync(&file).await?;
        drop(file);
        runtime.publish(&partial, path).await?;
        if let Some(directory) = path.parent() {
            runtime.sync_directory(directory).await?;
        }
        Overlay::open(path, view, disk).await
    }

    /// Opens the overlay that an earlier process left in `path`, once that process's requests have landed.
    pub async fn open(path: &Path, view: &Rc<View>, disk: DiskId) -> Result<Overlay> {
        let runtime = view.runtime();
        let sectors = view.disk(disk)?.sectors();
        let options = OpenOptions {
            access: Access::ReadWrite,
            create: Create::Existing,
            lock: Lock::Wait,
            direct: false,
        };
        let file = runtime.open(path, options).await?;
        // What is shown to clients from here on must not go back to something older once they flush it.
        runtime.settle(&file).await?;
        let length = runtime.length(&file).await?;
        if length != sectors.bytes() {
            let text = format!("the overlay has {length} bytes, its disk {}", sectors.bytes());
            return Err(Error::corrupt(text).at_path(path));
        }
        let mut presence = Presence::default();
        for range in runtime.data_ranges(&file, 0..length).await? {
            if !range.start.is_multiple_of(SECTOR_BYTES) || !range.end.is_multiple_of(SECTOR_BYTES) {
                return Err(cannot_tell(path));
            }
            presence.insert(SectorRange::new(range.start / SECTOR_BYTES, range.end / SECTOR_BYTES));
        }
        let (planted, what) = (view.vault.planted(), (disk, sectors.0));
        let sums = match OverlaySums::open(runtime, &file, what, presence.clone(), planted).await? {
            None => summing::begin(runtime, &file, what, &presence, planted).await,
            opened => opened,
        };
        let mut undecided = match &sums {
            Some(sums) => sums.said(sectors.0).await?,
            None => Presence::default(),
        };
        presence.ranges().for_each(|range| undecided.remove(range));
        Ok(Overlay {
            view: Rc::clone(view),
            disk,
            sectors: sectors.0,
            file,
            sums,
            presence: RefCell::new(presence),
            undecided: RefCell::new(undecided),
            has_told: Cell::new(false),
            turns: Turns::default(),
            flushes: Flushes::default(),
            latched: Cell::new(false),
        })
    }

    /// The disk that it covers.
    pub fn disk(&self) -> DiskId {
        self.disk
    }

    /// Bytes that were written to it: what throwing it away loses.
    pub fn present_bytes(&self) -> u64 {
        self.presence.borrow().sectors() * SECTOR_BYTES
    }

    /// Where bits of its sums had flipped that were written anew, and nobody was told yet.
    pub fn take_rot(&self) -> Vec<Rot> {
        self.sums.as_ref().map(OverlaySums::take_rot).unwrap_or_default()
    }

    /// The view under it.
    pub fn view(&self) -> &Rc<View> {
        &self.view
    }

    /// Whether an error is of the overlay's own files, and not of what it lies over.
    pub fn is_own(&self, error: &Error) -> bool {
        let own = [Some(self.file.path()), self.sums.as_ref().map(OverlaySums::path)];
        error.path().is_some_and(|path| own.contains(&Some(path)))
    }

    /// The bytes of a range, in order.
    pub async fn read(&self, range: SectorRange) -> Result<Vec<DataPiece>> {
        self.check(range)?;
        self.decide(range, Intent::Read).await?;
        match self.read_parts(range, Manner::Glance).await {
            Err(error) if error.kind() == ErrorKind::Corrupt && self.is_own(&error) => {
                let _turn = self.turns.take(self.blocks_around(range)).await;
                self.read_parts(range, Manner::Alone).await
            }
            read => read,
        }
    }

    async fn read_parts(&self, range: SectorRange, manner: Manner) -> Result<Vec<DataPiece>> {
        let mut pieces = Vec::new();
        let parts = self.presence.borrow().lookup(range);
        for (part, present) in parts {
            match (present, &self.sums) {
                (false, _) => pieces.extend(self.view.read(self.disk, part).await?),
                (true, None) => {
                    let bytes = to_usize(part.bytes());
                    let read = self.runtime().read(&self.file, part.byte_offset(), bytes).await?;
                    pieces.push(DataPiece::Bytes(read.freeze()));
                }
                (true, Some(sums)) => {
                    // In pieces, so that comparing a long one holds nobody up.
                    for piece in self::pieces(part) {
                        let read = match manner {
                            Manner::Glance => sums.glance(piece).await?,
                            Manner::Alone => sums.read(piece).await?,
                        };
                        pieces.push(DataPiece::Bytes(read.freeze()));
                    }
                }
            }
        }
        Ok(pieces)
    }

    /// Writes `payload`, which is as long as `range`; durably if asked.
    pub async fn write(&self, range: SectorRange, payload: &[u8], durable: bool) -> Result<()> {
        self.check(range)?;
        assert_eq!(payload.len() as u64, range.bytes(), "a payload is as long as its range");
        self.decide(range, Intent::Write).await?;
        let _turn = self.turns.take(self.blocks_around(range)).await;
        for piece in pieces(range) {
            let start = to_usize(piece.byte_offset() - range.byte_offset());
            let bytes = &payload[start..start + to_usize(piece.bytes())];
            self.put(piece, &Payload::Bytes(bytes)).await?;
        }
        if durable { self.flush().await } else { Ok(()) }
    }

    /// Writes zeros; durably if asked. Space is given back where the view reads as zeros, unless it is to be kept.
    pub async fn zero(&self, range: SectorRange, durable: bool, keep_allocated: bool) -> Result<()> {
        self.check(range)?;
        self.decide(range, Intent::Write).await?;
        let _turn = self.turns.take(self.blocks_around(range)).await;
        let mut start = range.start;
        while start < range.end {
            let window = SectorRange::new(start, range.end.min(start + WINDOW_SECTORS));
            if keep_allocated {
                self.put_zeros(window).await?;
            } else {
                self.zero_window(window).await?;
            }
            start = window.end;
        }
        if durable { self.flush().await } else { Ok(()) }
    }

    /// Makes everything that was acknowledged before survive a power cut.
    pub async fn flush(&self) -> Result<()> {
        let flushes = &self.flushes;
        let number = flushes.asked.get() + 1;
        flushes.asked.set(number);
        let _turn = flushes.turn.take(SectorRange::new(0, 1)).await;
        self.check_latch()?;
        if flushes.covered.get() >= number {
            return Ok(());
        }
        let covered = flushes.asked.get();
        self.sync().await.map_err(|error| self.latch(error))?;
        flushes.covered.set(covered);
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        if let Some(sums) = &self.sums {
            // First: these say what blocks held when they were flushed last as well as what they hold now, and blocks do not.
            sums.sync().await?;
        }
        self.runtime().sync(&self.file).await
    }

    /// Which parts of a range are allocated, in so many runs at most; what is not reads as zeros.
    pub async fn allocation(&self, range: SectorRange, runs_max: usize) -> Result<Vec<AllocationRun>> {
        self.check(range)?;
        let (mut windows, mut runs) = (Windows::of(range, runs_max), AllocationRuns::at_most(runs_max));
        while let Some(window) = windows.next_window().filter(|_| !runs.is_full()) {
            let runs_before = runs.len();
            self.decide(window, Intent::Describe).await?;
            let parts = self.allocated(window).lookup(window);
            let found = parts.len();
            for (part, present) in parts {
                match present {
                    true => runs.push(part.bytes(), true),
                    false => self.view.describe(self.disk, part, &mut runs).await?,
                }
            }
            windows.found(found.max(runs.len() - runs_before));
        }
        Ok(runs.into_runs())
    }

    fn runtime(&self) -> &Rc<Runtime> {
        self.view.runtime()
    }

    fn check(&self, range: SectorRange) -> Result<()> {
        self.check_latch()?;
        if range.end <= self.sectors {
            return Ok(());
        }
        Err(Error::invalid(format!("sectors {range} of a disk of {}", self.sectors)))
    }

    fn check_latch(&self) -> Result<()> {
        if !self.latched.get() {
            return Ok(());
        }
        let text = "an earlier write failed and left the overlay in doubt; clean up the test failover";
        Err(Error::new(ErrorKind::Latched, text).at_path(self.file.path()))
    }

    fn latch(&self, error: Error) -> Error {
        self.latched.set(true);
        error
    }

    /// The whole blocks that a range touches; the last block of a disk may be short.
    fn blocks_around(&self, range: SectorRange) -> SectorRange {
        let start = range.start / BLOCK_SECTORS * BLOCK_SECTORS;
        SectorRange::new(start, range.end.next_multiple_of(BLOCK_SECTORS).min(self.sectors))
    }

    /// The whole blocks inside a range, if any.
    fn blocks_inside(&self, range: SectorRange) -> Option<SectorRange> {
        let start = range.start.next_multiple_of(BLOCK_SECTORS);
        let end =
            if range.end == self.sectors { range.end } else { range.end / BLOCK_SECTORS * BLOCK_SECTORS };
        (start < end).then(|| SectorRange::new(start, end))
    }

    /// Gives back the blocks under which the view reads as zeros, and writes zeros to the others.
    async fn zero_window(&self, window: SectorRange) -> Result<()> {
        let mut position = window.start;
        let mut written = window.start;
        for run in self.view.allocation(self.disk, window).await? {
            let part = SectorRange::new(position, position + run.bytes / SECTOR_BYTES);
            position = part.end;
            let Some(hole) = self.blocks_inside(part).filter(|_| !run.allocated) else { continue };
            self.put_zeros(SectorRange::new(written, hole.start)).await?;
            self.give_back(hole).await?;
            written = hole.end;
        }
        self.put_zeros(SectorRange::new(written, window.end)).await
    }

    async fn give_back(&self, blocks: SectorRange) -> Result<()> {
        let parts = self.presence.borrow().lookup(blocks);
        for (part, _) in parts.into_iter().filter(|(_, present)| *present) {
            let zeroed = self.runtime().zero(&self.file, part.byte_range(), false).await;
            // Also of what failed halfway; and a file system may have written zeros instead, which have no sums yet.
            let data = self.look_at_holes(part).await.map_err(|error| self.latch(error))?;
            zeroed?;
            for left in data {
                self.put_zeros(left).await?;
            }
        }
        Ok(())
    }

    /// Asks the file which blocks of a part have become holes; those that have not.
    async fn look_at_holes(&self, part: SectorRange) -> Result<Vec<SectorRange>> {
        let ranges = self.runtime().data_ranges(&self.file, part.byte_range()).await?;
        let sectors = |bytes: Range<u64>| {
            SectorRange::new(bytes.start / SECTOR_BYTES, bytes.end.div_ceil(SECTOR_BYTES))
        };
        let data: Vec<_> = ranges.into_iter().map(sectors).collect();
        let mut presence = self.presence.borrow_mut();
        presence.remove(part);
        data.iter().for_each(|data| presence.insert(*data));
        if let Some(sums) = &self.sums {
            let holes = presence.lookup(part).into_iter().filter(|(_, present)| !present);
            holes.for_each(|(hole, _)| sums.forget(hole));
        }
        Ok(data)
    }

    async fn put_zeros(&self, range: SectorRange) -> Result<()> {
        for piece in pieces(range) {
            self.put(piece, &Payload::Zeros).await?;
        }
        Ok(())
    }

    /// Writes a piece with the rest of its blocks around it.
    async fn put(&self, range: SectorRange, payload: &Payload<'_>) -> Result<()> {
        self.check_latch()?;
        let blocks = self.blocks_around(range);
        let mut buffer = Buffer::recycled(to_usize(blocks.bytes()));
        let (head, rest) = buffer.split_at_mut(to_usize((range.start - blocks.start) * SECTOR_BYTES));
        let (middle, tail) = rest.split_at_mut(to_usize(range.bytes()));
        self.fill(SectorRange::new(blocks.start, range.start), head).await?;
        self.fill(SectorRange::new(range.end, blocks.end), tail).await?;
        match payload {
            Payload::Bytes(bytes) => middle.copy_from_slice(bytes),
            Payload::Zeros => middle.fill(0),
        }
        let bytes = buffer.freeze();
        let written = self.write_blocks(blocks, bytes.clone()).await;
        if let (Err(_), Some(sums)) = (&written, &self.sums) {
            sums.doubt(blocks, &self.presence.borrow());
            self.take_back(sums, blocks, &bytes).await;
        }
        written?;
        self.presence.borrow_mut().insert(blocks);
        let Some(sums) = &self.sums else { return Ok(()) };
        sums.settle(blocks);
        if sums.wants_sync() { self.flush().await } else { Ok(()) }
    }

    async fn write_blocks(&self, blocks: SectorRange, bytes: Slice) -> Result<()> {
        if let Some(sums) = &self.sums {
            sums.announce(blocks, &bytes, &self.presence).await?;
        }
        let written = self.runtime().write(&self.file, blocks.byte_offset(), bytes).await;
        if written.is_err() {
            self.undo(blocks).await;
        }
        written
    }

    async fn fill(&self, range: SectorRange, mut target: &mut [u8]) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        for piece in self.read_parts(range, Manner::Alone).await? {
            let (place, rest) = target.split_at_mut(to_usize(piece.bytes()));
            match piece {
                DataPiece::Bytes(bytes) => place.copy_from_slice(&bytes),
                DataPiece::Zeros(_) => place.fill(0),
            }
            target = rest;
        }
        Ok(())
    }

    /// After a failed write: what was absent must be absent in the file too, or the next opening would take torn
    /// blocks for present ones.
    async fn undo(&self, blocks: SectorRange) {
        let parts = self.presence.borrow().lookup(blocks);
        for (part, _) in parts.into_iter().filter(|(_, present)| !present) {
            if let Err(error) = self.runtime().zero(&self.file, part.byte_range(), false).await {
                tracing::error!(%error, "an overlay is latched: a failed write could not be undone");
                self.latched.set(true);
            }
        }
    }
}

/// A range in pieces that end on multiples of the piece's size.
fn pieces(range: SectorRange) -> impl Iterator<Item = SectorRange> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let end = ((start / PIECE_SECTORS + 1) * PIECE_SECTORS).min(range.end);
        let piece = (start < end).then(|| SectorRange::new(start, end));
        start = end;
        piece
    })
}

/// The sums that lie beside an overlay are its own, and are not to be made anew.
async fn check_missing(runtime: &Rc<Runtime>, path: &Path) -> Result<()> {
    match runtime.open(path, OpenOptions::READ).await {
        Ok(_) => Err(Error::new(ErrorKind::AlreadyExists, "the overlay is there already").at_path(path)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn cannot_tell(path: &Path) -> Error {
    let text = "the file system cannot tell which 4 KiB blocks of a file hold data, which overlays need; \
                put data_dir on ext4 or XFS";
    Error::new(ErrorKind::Unsupported, text).at_path(path)
}

/// Writes one block into an empty file and checks that just that block counts as data.
async fn check_sparse(runtime: &Rc<Runtime>, file: &File) -> Result<()> {
    const PROBE_BYTES: u64 = 1 << 20;
    const BLOCK_AT: u64 = 512 << 10;
    runtime.set_length(file, PROBE_BYTES).await?;
    let block = Buffer::zeroed(to_usize(BLOCK_BYTES)).freeze();
    runtime.write(file, BLOCK_AT, block).await?;
    let ranges = runtime.data_ranges(file, 0..PROBE_BYTES).await?;
    if ranges.len() == 1 && ranges[0] == (BLOCK_AT..BLOCK_AT + BLOCK_BYTES) {
        return Ok(());
    }
    Err(cannot_tell(file.path()))
}
