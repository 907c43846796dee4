//! Opening a journal: lock and scan its segments, decide, apply.
//!
//! Segments are synced before they are read, and read from the device: what is accepted is durable before anyone may be
//! told of it, also where the last sync of a dead owner failed. Only segments that may still be needed are read whole.
//! The opening frame that names the predecessor is the writer's first, and is synced before the group
//! serves.

use std::path::PathBuf;
use std::rc::Rc;

use futures::stream::{self, StreamExt};

use crate::error::{Error, Result};
use crate::format::frame::{FrameFault, UntrustedHeader};
use crate::format::marker::Opening;
use crate::journal::recover::{Accepted, Decision, Known, claims, recover};
use crate::journal::scan::{Checks, Owner, Scanned, SegmentScan, is_needless, scan_segment};
use crate::journal::segments::{Segment, SegmentIndex, Segments, create, open_all};
use crate::journal::writer::Position;
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::units::{FrameNumber, Lsn, PAGE_BYTES, SegmentSequence, to_usize};

/// Segments that are read at a time.
const SEGMENTS_READ_AHEAD: usize = 2;
/// What an opening frame takes, a page of header and a page of payload, and the empty frame that may have to follow
/// before any segment is free.
const OPENING_BYTES: u64 = 3 * PAGE_BYTES as u64;

/// Where a journal is, and how large it may become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalPlan {
    /// Its directory.
    pub directory: PathBuf,
    /// Size of new segments.
    pub segment_bytes: u64,
    /// Most bytes of all segments.
    pub journal_bytes: u64,
}

/// A journal ready for its writer.
pub struct OpenedJournal {
    /// Its segments.
    pub segments: Segments,
    /// Where the writer goes on.
    pub position: Position,
    /// What the writer's first frame must say.
    pub opening: Opening,
    /// The accepted frames, in order, and where they stand.
    pub accepted: Vec<(SegmentIndex, Scanned)>,
    /// Bytes read to find them.
    pub scanned_bytes: u64,
}

/// Opens the journal in `plan.directory`, which exists.
pub async fn open(
    runtime: Rc<Runtime>,
    plan: &JournalPlan,
    known: Known,
    planted: Planted,
) -> Result<OpenedJournal> {
    let checks = Checks {
        chain: !planted.is(Bug::NoChainCheck),
        incarnation: !planted.is(Bug::NoIncarnationCheck),
        owner: !planted.is(Bug::GuestPagesBelieved),
    };
    let files = open_all(&runtime, &plan.directory).await?;
    settle(&runtime, &files, planted).await?;
    let scans = scan_all(&runtime, &files, known.owner, checks).await?;
    let chain = match recover(&scans, known, checks) {
        Decision::Fresh => Vec::new(),
        Decision::Accept(chain) => chain,
        Decision::Refuse(refusal) => return Err(refusal.error().at_path(&plan.directory)),
    };
    let mut segments = Segments::new(plan.directory.clone(), plan.segment_bytes, plan.journal_bytes);
    let last = chain.last().map(|last| scans[last.scan].frames[last.frames - 1].clone());
    let opening = opening_after(last.as_ref(), &runtime);
    let newest = claims(&scans, known.owner, checks).last_lsn;
    let number = last.as_ref().map_or(FrameNumber(1), |last| last.frame.number.next());
    let uses = scans.iter().map(|scan| scan.claims(known.owner, checks).segment).collect::<Vec<_>>();
    adopt(files, &scans, &uses, &chain, number, &mut segments);
    let room = segments
        .live()
        .last()
        .map_or(0, |newest| newest.bytes - last.as_ref().map_or(0, Scanned::end_offset));
    if room < OPENING_BYTES && !segments.has_free() {
        let (index, path, bytes) = segments.begin_creation_beyond_limit();
        segments.created(create(Rc::clone(&runtime), index, path, bytes).await?);
    }
    if segments.live().next().is_none() {
        segments.take(false);
    }
    let position = position_after(last.as_ref(), newest, &segments);
    let scanned_bytes = scans.iter().map(|scan| scan.bytes).sum();
    let accepted = chain.iter().flat_map(|accepted| {
        let scan = &scans[accepted.scan];
        scan.frames[..accepted.frames].iter().map(|frame| (scan.index, frame.clone()))
    });
    let accepted = accepted.collect();
    Ok(OpenedJournal { segments, position, opening, accepted, scanned_bytes })
}

/// Makes what is read from now on durable.
async fn settle(runtime: &Runtime, files: &[Segment], planted: Planted) -> Result<()> {
    for segment in files {
        if planted.is(Bug::PageCacheTrusted) {
            runtime.sync(&segment.file).await?;
        } else if !planted.is(Bug::AcceptanceNotRecorded) {
            runtime.settle(&segment.file).await?;
        }
    }
    Ok(())
}

/// Scans the segments that may be needed; the others are known by their first page only.
async fn scan_all(
    runtime: &Rc<Runtime>,
    files: &[Segment],
    owner: Owner,
    checks: Checks,
) -> Result<Vec<SegmentScan>> {
    let mut heads = Vec::with_capacity(files.len());
    for segment in files {
        let page = runtime.read(&segment.file, 0, PAGE_BYTES.min(to_usize(segment.bytes))).await?;
        refuse_newer_version(&page, segment)?;
        heads.push(page);
    }
    let first_scans: Vec<_> =
        files.iter().zip(&heads).map(|(segment, page)| scan_segment(segment.index, page, checks)).collect();
    let tail = claims(&first_scans, owner, checks).tail;
    let is_needless = |head: &SegmentScan| is_needless(head.claims(owner, checks), tail);
    let needed = files.iter().zip(&first_scans).filter(|(_, head)| !is_needless(head));
    let needed = needed.map(|(segment, _)| segment);
    let reads = needed.map(|segment| runtime.read(&segment.file, 0, to_usize(segment.bytes)));
    // The device reads the next segment while this thread sums the one before.
    let mut reads = stream::iter(reads.collect::<Vec<_>>()).buffered(SEGMENTS_READ_AHEAD);
    let mut scans = Vec::with_capacity(files.len());
    for (segment, head) in files.iter().zip(&first_scans) {
        if is_needless(head) {
            scans.push(head.clone());
            continue;
        }
        let bytes = reads.next().await.expect("one read for each needed segment")?;
        scans.push(scan_segment(segment.index, &bytes, checks));
    }
    Ok(scans)
}

fn refuse_newer_version(page: &[u8], segment: &Segment) -> Result<()> {
    match UntrustedHeader::read(page) {
        Err(FrameFault::Version(version)) => Err(Error::new(
            crate::error::ErrorKind::Unsupported,
            format!("the journal has format version {version}; open it with the version that wrote it"),
        )
        .at_path(segment.file.path())),
        _ => Ok(()),
    }
}

fn opening_after(last: Option<&Scanned>, runtime: &Runtime) -> Opening {
    Opening {
        predecessor: last.map(|last| last.frame.incarnation),
        last_frame: last.map_or(FrameNumber(0), |last| last.frame.number),
        last_sum: last.map_or(0, |last| last.sum),
        last_lsn: last.map_or(Lsn::ZERO, |last| last.frame.last_lsn()),
        wall: runtime.wall(),
    }
}

fn adopt(
    files: Vec<Segment>,
    scans: &[SegmentScan],
    uses: &[SegmentSequence],
    chain: &[Accepted],
    opening: FrameNumber,
    segments: &mut Segments,
) {
    let mut files: Vec<Option<Segment>> = files.into_iter().map(Some).collect();
    let accepted = chain.iter().flat_map(|accepted| &scans[accepted.scan].frames[..accepted.frames]);
    // These are synced by now; what frames past the end of the chain state may be gone after a power cut.
    let tail = accepted.map(|scanned| scanned.frame.tail).max().unwrap_or_default();
    for accepted in chain {
        let frames = &scans[accepted.scan].frames[..accepted.frames];
        let file = files[accepted.scan].take().expect("a chain visits a segment once");
        frames.iter().for_each(|scanned| file.takes_frame(&scanned.frame));
        segments.adopt_live(file, frames[0].frame.segment);
    }
    for (file, &seen) in files.into_iter().zip(uses) {
        if let Some(file) = file {
            segments.adopt_needless(file, seen, tail, opening);
        }
    }
}

/// Goes on behind the last accepted frame. LSNs start above everything that any frame ever named, accepted or
/// dead, so that none is given twice.
fn position_after(last: Option<&Scanned>, newest: Lsn, segments: &Segments) -> Position {
    Position {
        segment: segments.live().last().cloned(),
        offset: last.map_or(0, Scanned::end_offset),
        next_frame: last.map_or(FrameNumber(1), |last| last.frame.number.next()),
        chain: last.map_or(0, |last| last.sum),
        accepted: last.map_or(Lsn::ZERO, |last| last.frame.last_lsn()),
        newest,
    }
}
