//! Reading a segment: which frames stand in it, in order, and why the sequence ends. Classifies only; decides
//! nothing and changes nothing.
//!
//! Past the end of the unbroken sequence the rest of the segment is still searched for headers, page by page: a
//! later frame cannot be accepted, but what it *claims* (how far the journal was durable, which segments were
//! needed) was true when it was written, and tells a torn tail from lost data.
//!
//! A guest chooses what its pages hold, and those stand there too, after a torn frame or from an earlier use of the
//! segment: a backup of some data directory, say, or worse. So claims are kept apart by the [`Owner`] that a header
//! names. Group and timeline are random ids that no guest gets to see; a page that names both is the journal's own, or
//! a true copy of what once was, and says nothing that was not so.

use std::collections::BTreeMap;

use crate::format::frame::{Frame, FrameFault, HeaderTraces, RecordKind, UntrustedHeader};
use crate::format::marker::Opening;
use crate::journal::segments::SegmentIndex;
use crate::journal::tail::Stray;
use crate::units::{FrameNumber, GroupId, IncarnationId, Lsn, PAGE_BYTES, SegmentSequence, TimelineId};

/// A frame, and its `header_sum`.
#[derive(Clone, Debug)]
pub struct Scanned {
    /// The frame.
    pub frame: Frame,
    /// Its sum: the next one's chain.
    pub sum: u64,
    /// What it says of its predecessor, if it begins an incarnation.
    pub opening: Option<Opening>,
    /// Its writes whose payload is not what was written: none, unless it stands [beyond](SegmentScan::beyond) the sound ones.
    pub damaged: Vec<usize>,
}

/// Whose journal, in which history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The group.
    pub group: GroupId,
    /// Its history.
    pub timeline: TimelineId,
}

/// What valid headers of one owner claim, wherever they stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Everything up to here was durable.
    pub durable_through: Lsn,
    /// Segments before this one were no longer needed.
    pub tail: SegmentSequence,
    /// The highest use of a segment seen.
    pub segment: SegmentSequence,
    /// The newest record that any header names, accepted or not: new incarnations start above it.
    pub last_lsn: Lsn,
}

impl Frame {
    /// Whose frame it says it is.
    pub fn owner(&self) -> Owner {
        Owner { group: self.group, timeline: self.timeline }
    }

    /// Whether it is the last one of a journal that was closed cleanly.
    pub fn is_seal(&self) -> bool {
        self.records.last().is_some_and(|record| record.kind == RecordKind::Seal)
    }

    /// Whether it is an opening or a statement only.
    pub fn is_silent(&self) -> bool {
        self.records.iter().all(|record| record.kind == RecordKind::Opening)
    }
}

impl From<&Frame> for Claims {
    fn from(frame: &Frame) -> Claims {
        Claims {
            durable_through: frame.durable_through,
            tail: frame.tail,
            segment: frame.segment,
            last_lsn: frame.last_lsn(),
        }
    }
}

impl Claims {
    /// The most that either claims.
    pub fn merge(&mut self, other: Claims) {
        self.durable_through = self.durable_through.max(other.durable_through);
        self.tail = self.tail.max(other.tail);
        self.segment = self.segment.max(other.segment);
        self.last_lsn = self.last_lsn.max(other.last_lsn);
    }
}

/// Why a segment's sequence of frames ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The segment is full.
    Full,
    /// No acceptable frame starts at this byte.
    Fault {
        /// Where.
        offset: u64,
        /// Why.
        fault: FrameFault,
    },
    /// A valid frame starts at this byte, but it does not follow the one before: a left-over.
    Unlinked {
        /// Where.
        offset: u64,
    },
}

/// What stands in a segment.
#[derive(Clone, Debug)]
pub struct SegmentScan {
    /// Which file.
    pub index: SegmentIndex,
    /// Its length.
    pub bytes: u64,
    /// Frames from the segment's start on, each following the one before.
    pub frames: Vec<Scanned>,
    /// Why there are no more.
    pub end: End,
    /// Frames that go on behind these, by their headers, of which some lack a write's payload. It rotted, or never was
    /// whole: that is not for the scan to say.
    pub beyond: Vec<Scanned>,
    /// Headers behind them that are newer.
    pub strays: Vec<Stray>,
    /// What can be recognised of a header where the next frame has to stand, if there are bytes that are none.
    pub traces: Option<HeaderTraces>,
    claims: BTreeMap<Owner, Claims>,
}

impl SegmentScan {
    /// What all headers in it claim that name this owner.
    pub fn claims(&self, owner: Owner, checks: Checks) -> Claims {
        let mut claims = Claims::default();
        let heard = self.claims.iter().filter(|&(&named, _)| named == owner || !checks.owner);
        heard.for_each(|(_, claimed)| claims.merge(*claimed));
        claims
    }

    /// Who is named by any header in it.
    pub fn owners(&self) -> impl Iterator<Item = Owner> {
        self.claims.keys().copied()
    }

    /// Whether its frames are openings and statements only.
    pub fn is_silent(&self) -> bool {
        self.frames.iter().all(|scanned| scanned.frame.is_silent())
    }

    /// Whether it begins with what was a header of this owner, and cannot be read.
    pub fn is_headless(&self, owner: Owner) -> bool {
        let is_ours = |traces: HeaderTraces| traces.is_of(owner.group, owner.timeline);
        self.frames.is_empty() && self.traces.is_some_and(is_ours)
    }

    fn claim(&mut self, frame: &Frame) {
        self.claims.entry(frame.owner()).or_default().merge(Claims::from(frame));
    }

    /// Keeps a header that is newer than the sound frames; `rest` begins with it.
    fn note_stray(&mut self, frame: &Frame, rest: &[u8]) {
        if self.frames.last().is_some_and(|last| frame.number <= last.frame.number) {
            return;
        }
        let payload = rest.get(frame.header_bytes()..frame.total_bytes());
        let is_whole = payload.is_some_and(|payload| frame.verify_payloads(payload).is_ok());
        self.strays.push(Stray::of(frame, is_whole, self.bytes));
    }

    /// Follows the headers where payloads of writes are not what was written.
    fn look_beyond(&mut self, bytes: &[u8], mut offset: usize, checks: Checks) {
        if !matches!(self.end, End::Fault { fault: FrameFault::PayloadSum(_), .. }) {
            return;
        }
        while offset < bytes.len() {
            let last = self.beyond.last().or(self.frames.last());
            let next = read_damaged(bytes, offset).filter(|next| continues(last, next, offset, checks));
            let Some(next) = next else { break };
            offset += next.frame.total_bytes();
            self.beyond.push(next);
        }
    }

    /// Adds what every valid header from `offset` on claims. Payloads may be torn; headers are enough.
    fn collect_claims(&mut self, bytes: &[u8], mut offset: usize) {
        while offset < bytes.len() {
            let page = &bytes[offset..(offset + PAGE_BYTES).min(bytes.len())];
            let parsed = UntrustedHeader::read(page).and_then(|header| header.parse(&bytes[offset..]));
            match parsed {
                Ok((frame, _)) if frame.segment_offset() == offset as u64 => {
                    self.claim(&frame);
                    self.note_stray(&frame, &bytes[offset..]);
                    offset += frame.header_bytes();
                }
                _ => offset += PAGE_BYTES,
            }
        }
    }
}

/// Whether a segment is needed by nobody, going by how its first header says that it is `used`: only before `tail`.
pub fn is_needless(used: SegmentSequence, tail: SegmentSequence) -> bool {
    used < tail && used > SegmentSequence(0)
}

/// Which checks the scan makes; all of them, but for a planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Follow a frame only by number and chain.
    pub chain: bool,
    /// Follow a frame only within its incarnation, or by a stated opening.
    pub incarnation: bool,
    /// Hear only headers of the journal's own group and timeline.
    pub owner: bool,
    /// Of two openings behind one frame, follow the newer.
    pub newest: bool,
    /// Take only frames for rotten that were durable.
    pub floor: bool,
    /// Take nothing that a device does not give for what was never written.
    pub unread: bool,
    /// Take nothing for torn that was written in this boot of the host.
    pub written: bool,
}

impl Checks {
    /// All of them.
    pub const ALL: Checks = Checks {
        chain: true,
        incarnation: true,
        owner: true,
        newest: true,
        floor: true,
        unread: true,
        written: true,
    };

    /// Whether `next` follows `last`.
    pub fn follows(self, last: Link, next: &Scanned) -> bool {
        let number = next.frame.number == last.number.next();
        let linked = match next.opening {
            Some(opening) => {
                opening.predecessor == Some(last.incarnation)
                    && opening.last_frame == last.number
                    && opening.last_sum == last.sum
            }
            None => next.frame.incarnation == last.incarnation && next.frame.chain == last.sum,
        };
        match (self.chain, self.incarnation) {
            (true, true) => number && linked,
            (false, _) => next.frame.incarnation == last.incarnation || linked,
            (true, false) => number,
        }
    }
}

/// What the next frame must follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The incarnation.
    pub incarnation: IncarnationId,
    /// The frame's number.
    pub number: FrameNumber,
    /// Its `header_sum`.
    pub sum: u64,
}

impl Scanned {
    /// This frame, as the one to follow.
    pub fn link(&self) -> Link {
        Link { incarnation: self.frame.incarnation, number: self.frame.number, sum: self.sum }
    }

    /// Byte offset just past the frame.
    pub fn end_offset(&self) -> u64 {
        self.frame.segment_offset() + self.frame.total_bytes() as u64
    }
}

/// Reads a whole segment's bytes.
pub fn scan_segment(index: SegmentIndex, bytes: &[u8], checks: Checks) -> SegmentScan {
    let mut scan = SegmentScan {
        index,
        bytes: bytes.len() as u64,
        frames: Vec::new(),
        end: End::Full,
        beyond: Vec::new(),
        strays: Vec::new(),
        traces: None,
        claims: BTreeMap::new(),
    };
    let mut offset = 0;
    while offset < bytes.len() {
        match read_frame(bytes, offset) {
            Ok(scanned) => {
                scan.claim(&scanned.frame);
                if !continues(scan.frames.last(), &scanned, offset, checks) {
                    scan.end = End::Unlinked { offset: offset as u64 };
                    break;
                }
                offset += scanned.frame.total_bytes();
                scan.frames.push(scanned);
            }
            Err(fault) => {
                scan.end = End::Fault { offset: offset as u64, fault };
                let is_blank = fault == FrameFault::Blank;
                scan.traces = HeaderTraces::read(&bytes[offset..]).filter(|_| !is_blank);
                break;
            }
        }
    }
    scan.collect_claims(bytes, offset);
    scan.look_beyond(bytes, offset, checks);
    scan
}

fn continues(last: Option<&Scanned>, next: &Scanned, offset: usize, checks: Checks) -> bool {
    let placed = next.frame.segment_offset() == offset as u64;
    let linked =
        last.is_none_or(|last| last.frame.segment == next.frame.segment && checks.follows(last.link(), next));
    placed && linked
}

/// The frame at `offset`, header and payloads checked.
pub fn read_frame(bytes: &[u8], offset: usize) -> Result<Scanned, FrameFault> {
    let bytes = &bytes[offset..];
    let header = UntrustedHeader::read(&bytes[..bytes.len().min(PAGE_BYTES)])?;
    let whole = bytes.get(..header.total_bytes()).ok_or(FrameFault::Short(header.total_bytes()))?;
    let (frame, sum) = header.parse(whole)?;
    frame.verify_payloads(&whole[frame.header_bytes()..])?;
    let opening = opening_of(&frame, whole)?;
    Ok(Scanned { frame, sum, opening, damaged: Vec::new() })
}

/// The same, where only payloads of writes may be something else.
fn read_damaged(bytes: &[u8], offset: usize) -> Option<Scanned> {
    let bytes = &bytes[offset..];
    let header = UntrustedHeader::read(&bytes[..bytes.len().min(PAGE_BYTES)]).ok()?;
    let whole = bytes.get(..header.total_bytes())?;
    let (frame, sum) = header.parse(whole).ok()?;
    let damaged: Vec<usize> = frame.damaged_payloads(&whole[frame.header_bytes()..]).collect();
    if !damaged.iter().all(|&index| matches!(frame.records[index].kind, RecordKind::Write { .. })) {
        return None;
    }
    let opening = opening_of(&frame, whole).ok()?;
    Some(Scanned { frame, sum, opening, damaged })
}

fn opening_of(frame: &Frame, whole: &[u8]) -> Result<Option<Opening>, FrameFault> {
    match frame.records.first() {
        Some(record) if record.kind == RecordKind::Opening => {
            let body = &whole[frame.payload_range(record.payload)];
            Opening::decode(body).map(Some).ok_or(FrameFault::Field("opening"))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
pub(crate) mod tests;
