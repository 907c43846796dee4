//! The journal's segment files: created zero-filled, used in turn, recycled.
//!
//! A segment is pinned by whoever holds its [`Rc`]: reads, frames in flight, syncs. Its file keeps its space and its
//! length for ever, so that a write to it changes no metadata.
//!
//! ```text
//!  free ──take──▶ live ──recycle──▶ retired ──release──▶ free
//! ```
//!
//! A segment retires when its records are no longer needed, nobody pins it, and the segment after it begins with a
//! durable frame: the oldest live segment is where a scan begins, so its beginning must be there; and something more than an
//! opening must be durable in those after it, for openings that die make way for others. It is free only once
//! a *durable* frame says that the journal begins after it: a scan that finds an older statement would look for it.
//!
//! The last [`RESERVED`] segments are not given to data: a full journal can still end an interval and close. An opening
//! may go beyond the limit by a segment; data may not use what that adds.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::extent::Location;
use crate::format::frame::Frame;
use crate::journal::keys::FrameKey;
use crate::journal::payloads::{ListedPayloads, PayloadSeal, Payloads, StoredPayload};
use crate::journal::runs::{is_file_name, is_partial_name};
use crate::runtime::Runtime;
use crate::storage::{Buffer, Create, File, OpenOptions};
use crate::units::{FrameNumber, Lsn, SegmentSequence};

/// Segments kept back for openings, markers and closing.
pub const RESERVED: usize = 2;
/// Free segments that the supply keeps ready.
pub const READY: usize = 4;
/// Zeros are written in pieces of this size.
const FILL_BYTES: usize = 1 << 20;

/// Number of a segment's file; reused with it, unlike its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentIndex(pub u32);

/// Where a record's bytes are: in a segment's file, or nowhere because they are zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the journal.
    Journal {
        /// Which file.
        segment: SegmentIndex,
        /// First sector within it.
        sector: u32,
    },
    /// Zeros.
    Zero {
        /// Whether the source asked to keep the space.
        allocated: bool,
    },
}

impl Location for Source {
    fn advance(self, sectors: u64) -> Source {
        match self {
            Source::Journal { segment, sector } => {
                let sectors = u32::try_from(sectors).expect("an extent lies within a record");
                Source::Journal { segment, sector: sector + sectors }
            }
            zero @ Source::Zero { .. } => zero,
        }
    }
}

/// One segment file.
#[derive(Debug)]
pub struct Segment {
    /// Its number, in the file name.
    pub index: SegmentIndex,
    /// Its name by now; the file was opened by another one if this process created it.
    pub path: PathBuf,
    /// The file, locked.
    pub file: File,
    /// Its length.
    pub bytes: u64,
    sequence: Cell<SegmentSequence>,
    first_frame: Cell<Option<FrameNumber>>,
    /// The first that holds more than an opening.
    first_said: Cell<Option<FrameNumber>>,
    last_lsn: Cell<Lsn>,
    payloads: RefCell<Payloads>,
    /// First sectors of payloads that the device did not give, however often it was asked.
    refused: RefCell<BTreeSet<u32>>,
    /// Payloads that cannot be had, and whether the device withholds them, which the log has.
    told: RefCell<BTreeSet<(u32, bool)>>,
}

impl Segment {
    /// A segment over an open file.
    pub fn new(index: SegmentIndex, path: PathBuf, file: File, bytes: u64) -> Segment {
        Segment {
            index,
            path,
            file,
            bytes,
            sequence: Cell::default(),
            first_frame: Cell::default(),
            first_said: Cell::default(),
            last_lsn: Cell::default(),
            payloads: RefCell::default(),
            refused: RefCell::default(),
            told: RefCell::default(),
        }
    }

    /// The present use of the file.
    pub fn sequence(&self) -> SegmentSequence {
        self.sequence.get()
    }

    /// The newest record in it.
    pub fn last_lsn(&self) -> Lsn {
        self.last_lsn.get()
    }

    /// Notes that a frame, sealed under `key`, was put into it, behind all others.
    pub fn takes_frame(&self, frame: &Frame, key: Option<&Rc<FrameKey>>) {
        self.first_frame.set(self.first_frame.get().or(Some(frame.number)));
        if !frame.is_silent() {
            self.first_said.set(self.first_said.get().or(Some(frame.number)));
        }
        self.last_lsn.set(self.last_lsn.get().max(frame.last_lsn()));
        self.payloads.borrow_mut().add(frame, key);
    }

    /// Notes what an index run says of frames in it, behind all others: the last of them is `frame`.
    pub fn takes_part(
        &self,
        frame: FrameNumber,
        last: Lsn,
        listed: ListedPayloads,
        key: Option<&Rc<FrameKey>>,
    ) {
        self.first_frame.set(self.first_frame.get().or(Some(frame)));
        if !listed.payloads.is_empty() {
            self.first_said.set(self.first_said.get().or(Some(frame)));
        }
        self.last_lsn.set(self.last_lsn.get().max(last));
        self.payloads.borrow_mut().extend(listed, key);
    }

    /// The payloads that stand within these sectors.
    pub fn payloads_within(&self, sectors: &Range<u32>) -> ListedPayloads {
        self.payloads.borrow().within(sectors)
    }

    /// What the table of its payloads takes.
    pub fn payload_table_bytes(&self) -> usize {
        self.payloads.borrow().memory_bytes()
    }

    /// The record's payload that holds `sectors` sectors from `sector` on.
    pub fn payload(&self, sector: u32, sectors: u64) -> Option<(StoredPayload, Option<PayloadSeal>)> {
        self.payloads.borrow().find(sector, sectors)
    }

    /// Whether the device refused the payload at `sector` for good, as far as is known.
    pub fn is_refused(&self, sector: u32) -> bool {
        self.refused.borrow().contains(&sector)
    }

    /// Notes whether it does.
    pub fn note_refused(&self, sector: u32, is_refused: bool) {
        let mut refused = self.refused.borrow_mut();
        if is_refused {
            refused.insert(sector);
        } else {
            refused.remove(&sector);
        }
    }

    /// Whether it is news that the payload at `sector` cannot be had: who needs a part of it finds that out, too.
    pub fn is_news(&self, sector: u32, withheld: bool) -> bool {
        self.told.borrow_mut().insert((sector, withheld))
    }

    fn begins_durably(&self, durable: FrameNumber) -> bool {
        self.first_frame.get().is_some_and(|first| first <= durable)
    }

    fn speaks_durably(&self, durable: FrameNumber) -> bool {
        self.first_said.get().is_some_and(|first| first <= durable)
    }
}

/// The name of a segment's file.
pub fn file_name(index: SegmentIndex) -> String {
    format!("segment-{:08}", index.0)
}

/// The number in a segment file's name.
pub fn parse_file_name(name: &str) -> Option<SegmentIndex> {
    let digits = name.strip_prefix("segment-").filter(|digits| digits.len() == 8)?;
    digits.parse().ok().map(SegmentIndex)
}

/// All segments of a journal.
#[derive(Debug)]
pub struct Segments {
    directory: PathBuf,
    segment_bytes: u64,
    count_max: usize,
    /// In use, oldest first.
    live: VecDeque<Rc<Segment>>,
    /// No longer needed, each once the frame that it comes with is durable.
    retired: VecDeque<(Rc<Segment>, FrameNumber)>,
    /// Free, to be reused in this order.
    free: VecDeque<Rc<Segment>>,
    next_sequence: SegmentSequence,
    next_index: u32,
    creating: bool,
}

impl Segments {
    /// An empty table: segments of `segment_bytes`, at most `journal_bytes` of them in all.
    pub fn new(directory: PathBuf, segment_bytes: u64, journal_bytes: u64) -> Segments {
        let count = usize::try_from(journal_bytes / segment_bytes).unwrap_or(usize::MAX);
        Segments {
            directory,
            segment_bytes,
            count_max: count.max(RESERVED + READY),
            live: VecDeque::new(),
            retired: VecDeque::new(),
            free: VecDeque::new(),
            next_sequence: SegmentSequence(1),
            next_index: 0,
            creating: false,
        }
    }

    /// Adds a segment that opening found in use as `sequence`, and that [took](Segment::takes_frame) its durable frames;
    /// oldest first.
    pub fn adopt_live(&mut self, segment: Segment, sequence: SegmentSequence) {
        segment.sequence.set(sequence);
        self.saw(segment.index, sequence);
        self.live.push_back(Rc::new(segment));
    }

    /// Adds a segment that nobody needs; `seen` is the highest sequence that it was ever used as. It is free at once if
    /// durable frames say that the journal begins at `tail`, after it, else once the frame `opening` is durable.
    pub fn adopt_needless(
        &mut self,
        segment: Segment,
        seen: SegmentSequence,
        tail: SegmentSequence,
        opening: FrameNumber,
    ) {
        self.saw(segment.index, seen);
        segment.sequence.set(seen);
        if seen < tail || seen == SegmentSequence(0) {
            self.free.push_back(Rc::new(segment));
        } else {
            self.retired.push_back((Rc::new(segment), opening));
        }
    }

    /// Frees one of the segments that wait for the opening, if no scan would ever look for it: its use came after
    /// `tail`, the highest that any header states, and is none of `accepted`.
    pub fn free_dead(&mut self, tail: SegmentSequence, accepted: &[SegmentIndex]) {
        let is_dead = |segment: &Segment| segment.sequence() > tail && !accepted.contains(&segment.index);
        if let Some(dead) = self.retired.iter().position(|(segment, _)| is_dead(segment)) {
            self.free.extend(self.retired.remove(dead).map(|(segment, _)| segment));
        }
    }

    fn saw(&mut self, index: SegmentIndex, sequence: SegmentSequence) {
        self.next_index = self.next_index.max(index.0 + 1);
        self.next_sequence = self.next_sequence.max(SegmentSequence(sequence.0 + 1));
    }

    /// Takes a free segment into use as the newest. Data may not take the reserve. `None`: there is none now.
    pub fn take(&mut self, for_data: bool) -> Option<Rc<Segment>> {
        if for_data && self.free.len() <= self.reserve() {
            return None;
        }
        let segment = self.free.pop_front()?;
        segment.sequence.set(self.next_sequence);
        segment.first_frame.set(None);
        segment.first_said.set(None);
        segment.last_lsn.set(Lsn::ZERO);
        self.next_sequence.0 += 1;
        self.live.push_back(Rc::clone(&segment));
        Some(segment)
    }

    /// Whether a segment can be taken into use at once.
    pub fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    fn count(&self) -> usize {
        self.live.len() + self.retired.len() + self.free.len()
    }

    /// Segments that data may not take: what openings took beyond the limit is for the next ones.
    fn reserve(&self) -> usize {
        RESERVED + self.beyond_limit()
    }

    /// Segments that openings took beyond the limit.
    fn beyond_limit(&self) -> usize {
        self.count().saturating_sub(self.count_max)
    }

    /// Whether data may go on in the newest segment: not where it was taken from the reserve. What could still be
    /// created is no reserve, since the disk may be full by then.
    pub fn is_reserve_whole(&self) -> bool {
        self.free.len() >= self.reserve()
    }

    /// Retires the oldest segments whose records are all at or below `needless`, and that nobody pins; `durable` is the
    /// newest durable frame, `next` the first one that will say so. Returns which.
    pub fn recycle(&mut self, needless: Lsn, durable: FrameNumber, next: FrameNumber) -> Vec<SegmentIndex> {
        let mut recycled = Vec::new();
        while let [oldest, rest @ ..] = &*self.live.make_contiguous() {
            let Some(second) = rest.first() else { break };
            // The journal must not begin with a segment whose place an opening may take: a statement of that which a power
            // cut tore could become whole later, by what another one leaves of the next statement at the same place.
            let can_begin =
                second.begins_durably(durable) && rest.iter().any(|segment| segment.speaks_durably(durable));
            let is_needless = oldest.last_lsn() <= needless && can_begin;
            if !is_needless || Rc::strong_count(oldest) > 1 {
                break;
            }
            let Some(segment) = self.live.pop_front() else { break };
            segment.payloads.borrow_mut().clear();
            segment.refused.borrow_mut().clear();
            segment.told.borrow_mut().clear();
            recycled.push(segment.index);
            self.retired.push_back((segment, next));
        }
        recycled
    }

    /// Frees the retired segments of which a durable frame says that they are no longer needed.
    pub fn release(&mut self, durable: FrameNumber) {
        while let Some((segment, _)) = self.retired.pop_front_if(|(_, stated)| *stated <= durable) {
            self.free.push_back(segment);
        }
    }

    /// The frame that has to become durable for the supply of free segments, if it is short.
    pub fn wanted_statement(&self) -> Option<FrameNumber> {
        let is_short = self.free.len() < READY + self.beyond_limit();
        let (_, stated) = self.retired.back().filter(|_| is_short)?;
        Some(*stated)
    }

    /// The segment with this index, if it is in use: clone the `Rc` to pin it.
    pub fn get(&self, index: SegmentIndex) -> Option<&Rc<Segment>> {
        self.live.iter().find(|segment| segment.index == index)
    }

    /// Sequence of the oldest segment in use.
    pub fn tail(&self) -> Option<SegmentSequence> {
        self.live.front().map(|segment| segment.sequence())
    }

    /// Segments in use, oldest first.
    pub fn live(&self) -> impl Iterator<Item = &Rc<Segment>> {
        self.live.iter()
    }

    /// Bytes in use.
    pub fn used_bytes(&self) -> u64 {
        self.live.iter().map(|segment| segment.bytes).sum()
    }

    /// Whether no further segment may be created: data goes on only as segments are recycled.
    pub fn is_at_limit(&self) -> bool {
        self.count() >= self.count_max
    }

    /// Most bytes that segments may take.
    pub fn limit_bytes(&self) -> u64 {
        self.count_max as u64 * self.segment_bytes
    }

    /// Bytes that data may still take before it must wait for recycling.
    pub fn room_bytes(&self) -> u64 {
        let spare = self.count_max.saturating_sub(self.live.len() + RESERVED);
        spare as u64 * self.segment_bytes
    }

    /// The file to create next, if more are wanted and allowed; [`Segments::created`] or
    /// [`Segments::creation_failed`] ends it.
    pub fn begin_creation(&mut self) -> Option<(SegmentIndex, PathBuf, u64)> {
        if self.creating || self.free.len() >= READY || self.count() >= self.count_max {
            return None;
        }
        Some(self.begin_creation_beyond_limit())
    }

    /// The same, whatever the limit: for an opening that finds the journal full.
    pub fn begin_creation_beyond_limit(&mut self) -> (SegmentIndex, PathBuf, u64) {
        self.creating = true;
        let index = SegmentIndex(self.next_index);
        self.next_index += 1;
        (index, self.directory.join(file_name(index)), self.segment_bytes)
    }

    /// Whether a segment is being created.
    pub fn is_creating(&self) -> bool {
        self.creating
    }

    /// Adds a created segment to the free ones.
    pub fn created(&mut self, segment: Segment) {
        self.creating = false;
        self.free.push_back(Rc::new(segment));
    }

    /// Lets another attempt be made.
    pub fn creation_failed(&mut self) {
        self.creating = false;
    }
}

/// Creates a segment file: zeros all through, durable under its final name before anyone may use it.
pub async fn create(runtime: Rc<Runtime>, index: SegmentIndex, path: PathBuf, bytes: u64) -> Result<Segment> {
    let temporary = path.with_extension("new");
    let filled = fill(&runtime, &temporary, bytes).await;
    let file = match filled {
        Ok(file) => file,
        Err(error) => {
            // What there is of it keeps space from the images, whose progress is what frees segments. The error that
            // matters is the first.
            let _ = runtime.remove(&temporary).await;
            return Err(error);
        }
    };
    runtime.publish(&temporary, &path).await?;
    file.note_published(&path);
    runtime.sync_directory(directory_of(&path)).await?;
    Ok(Segment::new(index, path, file, bytes))
}

/// Makes a durable file of zeros, over what an earlier attempt may have left.
async fn fill(runtime: &Runtime, path: &Path, bytes: u64) -> Result<File> {
    let options = OpenOptions { create: Create::IfMissing, ..OpenOptions::OWNED };
    let file = runtime.open(path, options).await?;
    let zeros = Buffer::zeroed(FILL_BYTES).freeze();
    for offset in (0..bytes).step_by(FILL_BYTES) {
        let length = usize::try_from(bytes - offset).map_or(FILL_BYTES, |rest| rest.min(FILL_BYTES));
        runtime.write(&file, offset, zeros.slice(0..length)).await?;
    }
    runtime.sync(&file).await?;
    Ok(file)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().expect("a segment lies in its journal's directory")
}

/// Opens every segment file of a journal, locked, and names the index runs beside them; left-overs of a creation that a
/// crash cut short are removed.
pub async fn open_all(runtime: &Rc<Runtime>, directory: &Path) -> Result<(Vec<Segment>, Vec<String>)> {
    let (mut segments, mut runs) = (Vec::new(), Vec::new());
    // A dead owner may have published a segment without living to sync its name: nobody may write to it before.
    runtime.sync_directory(directory).await?;
    for name in runtime.list(directory).await? {
        let path = directory.join(&name);
        if name.ends_with(".new") || is_partial_name(&name) {
            runtime.remove(path).await?;
            continue;
        }
        if is_file_name(&name) {
            runs.push(name);
            continue;
        }
        let Some(index) = parse_file_name(&name) else {
            return Err(
                Error::corrupt("the journal's directory holds a file that is not a segment").at_path(&path)
            );
        };
        let file = runtime.open_owned(&path, "a segment of the journal").await?;
        let bytes = runtime.length(&file).await?;
        segments.push(Segment::new(index, path, file, bytes));
    }
    Ok((segments, runs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::OsEnvironment;
    use crate::storage::blocking::Blocking;
    use crate::units::PAGE_BYTES;

    const BYTES: u64 = PAGE_BYTES as u64;

    /// A journal of so many segments, `beyond` its limit: one in use, `free` free, and the others retired until frame 5 is
    /// durable.
    fn segments(beyond: usize, free: usize) -> (tempfile::TempDir, Segments) {
        let directory = tempfile::tempdir().expect("a directory");
        let runtime =
            Runtime::new(Box::new(Blocking::new(1).expect("threads")), Rc::new(OsEnvironment::new()));
        let limit = RESERVED + READY;
        let mut segments = Segments::new(directory.path().to_owned(), BYTES, limit as u64 * BYTES);
        for number in 0..limit + beyond {
            let (index, path, bytes) = segments.begin_creation_beyond_limit();
            let segment = runtime.block_on(create(Rc::clone(&runtime), index, path, bytes)).expect("created");
            let (used, tail) = (SegmentSequence(number as u64 + 10), SegmentSequence(10));
            match number {
                0 => segments.adopt_live(segment, tail),
                _ if number <= free => {
                    segments.adopt_needless(segment, SegmentSequence(0), tail, FrameNumber(5))
                }
                _ => segments.adopt_needless(segment, used, tail, FrameNumber(5)),
            }
        }
        (directory, segments)
    }

    /// Found by seed 10196: openings had taken two segments beyond the limit, so that data had to leave four, and four were
    /// taken to be enough.
    #[test]
    fn data_that_has_to_wait_for_a_segment_has_the_statement_written_that_frees_one() {
        for beyond in 0..5 {
            for free in 0..READY + beyond {
                let (_guard, mut segments) = segments(beyond, free);
                let statement = segments.wanted_statement();
                if segments.take(true).is_none() {
                    assert_eq!(statement, Some(FrameNumber(5)), "{free} free, {beyond} beyond the limit");
                    segments.release(FrameNumber(5));
                    assert!(segments.take(true).is_some(), "{free} free, {beyond} beyond the limit");
                }
            }
        }
    }
}
