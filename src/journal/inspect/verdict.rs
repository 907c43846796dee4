//! What a survey means: sound, a torn tail, or damaged, and where.
//!
//! | opening would | behind the accepted end stands | verdict |
//! |---|---|---|
//! | begin anew, or accept | nothing newer | sound |
//! | begin anew, or accept | a newer or broken frame | torn tail: never acknowledged as durable, no fault |
//! | refuse | – | damaged; the faults say where the chain breaks; also where what was written in this boot of the host rotted |
//! | whatever | an index run ends with a frame behind it | damaged: the run tells of durable records that are in no file |
//! | whatever | a flipped bit in a checkpoint beside it | damaged, though the other slot is used |
//!
//! Where only payloads of writes rotted, opening does not refuse ([`admit_rotten`](crate::journal::recover::admit_rotten)): what
//! reads them is told. Here the journal is damaged all the same.
//!
//! Whatever else makes opening refuse (a segment that cannot be opened, bytes that cannot be read, a stranger's file, a
//! version that this build does not read, a length that is
//! not whole pages, a marker that is none) is a fault too. A single segment is damaged only where it contradicts
//! itself, since what must be in it is known from the others; of one that is zeros all through nothing can be said but that.

use std::fmt;
use std::path::PathBuf;

use crate::format::frame::FrameFault;
use crate::journal::inspect::{LeftOver, SegmentSurvey, Survey};
use crate::journal::recover::Decision;
use crate::journal::refusal::Refusal;
use crate::journal::scan::{Claims, End};
use crate::units::{Lsn, PAGE_BYTES};

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file or directory.
    pub path: PathBuf,
    /// The byte in it, where there is one.
    pub offset: Option<u64>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Whether a journal is sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that must be there is there.
    Sound,
    /// A single segment that is zeros all through: it holds no journal, and whether it should only the others tell.
    NeverUsed,
    /// So it is; behind it stands what was never acknowledged as durable, as after a power cut.
    TornTail(Fault),
    /// Records that were durable are lost, or something does not belong there.
    Damaged(Vec<Fault>),
}

/// A fault of a frame, for people.
pub fn describe(fault: FrameFault) -> String {
    match fault {
        FrameFault::Blank => "no frame: zeros".into(),
        FrameFault::NoMagic => "no frame begins here".into(),
        FrameFault::Version(version) => {
            format!("a frame of format version {version}, which this build does not read")
        }
        FrameFault::Field(name) => format!("a frame whose field {name} is out of bounds"),
        FrameFault::Short(bytes) => format!("a frame of {bytes} bytes that the file is too short for"),
        FrameFault::HeaderSum => "a frame whose header does not match its checksum".into(),
        FrameFault::PayloadSum(record) => {
            format!("a frame whose payload of record {record} does not match its checksum")
        }
    }
}

/// Judges a survey, whose own verdict is not looked at.
pub(super) fn judge(survey: &Survey, claims: Claims) -> Verdict {
    let mut faults = foreign_matter(survey);
    let is_never_used = survey.decision.is_none() && survey.segments.iter().all(SegmentSurvey::is_never_used);
    match &survey.decision {
        Some(Decision::Refuse(refusal)) => faults.extend(explain(survey, *refusal, claims)),
        None => faults.extend(contradictions(survey, claims)),
        Some(_) => {}
    }
    match (faults.is_empty(), torn_tail(survey, claims)) {
        (false, _) => Verdict::Damaged(faults),
        (true, _) if is_never_used => Verdict::NeverUsed,
        (true, Some(tail)) => Verdict::TornTail(tail),
        (true, None) => Verdict::Sound,
    }
}

/// Records that an index run tells of and no segment holds are lost, whatever the segments that are there say: they were durable.
pub(super) fn add_what_runs_miss(survey: &mut Survey) {
    let missing = survey.runs.iter().filter_map(|run| Some((run, run.missing?)));
    let faults = missing.map(|(run, end)| {
        let what = format!(
            "an index run of frames up to {}, with records up to {}, which are in no file: a segment is missing, or the \
             journal was rolled back",
            end.number.0, end.last_lsn
        );
        Fault { path: run.path.clone(), offset: None, what }
    });
    let faults: Vec<_> = faults.collect();
    survey.verdict.add(faults);
}

impl Verdict {
    /// Adds what is damaged whatever the frames say.
    pub(super) fn add(&mut self, faults: Vec<Fault>) {
        match self {
            _ if faults.is_empty() => {}
            Verdict::Damaged(known) => known.extend(faults),
            verdict => *verdict = Verdict::Damaged(faults),
        }
    }
}

/// What makes opening refuse whatever the frames say.
fn foreign_matter(survey: &Survey) -> Vec<Fault> {
    let mut faults = Vec::new();
    for path in &survey.strangers {
        let what = "not a segment: opening refuses a journal with it".into();
        faults.push(Fault { path: path.clone(), offset: None, what });
    }
    faults.extend(survey.unopened.iter().cloned());
    for segment in &survey.segments {
        faults.extend(segment.unreadable.iter().map(|unreadable| {
            let bytes = unreadable.range.end - unreadable.range.start;
            at(segment, unreadable.range.start, format!("{bytes} bytes cannot be read: {}", unreadable.error))
        }));
        let length = segment.scan.bytes;
        if length == 0 || !length.is_multiple_of(PAGE_BYTES as u64) {
            let what = format!("{length} bytes long, not whole pages: the file was cut or is not a segment");
            faults.push(Fault { path: segment.path.clone(), offset: Some(length), what });
        }
        if let Some(fault @ FrameFault::Version(_)) = segment.first_fault {
            faults.push(at(segment, 0, describe(fault)));
        }
        for found in segment.markers.iter().filter(|found| found.marker.is_none() && !found.is_sealed) {
            let what = format!("record {} is no marker, though its checksum matches", found.lsn);
            faults.push(at(segment, found.offset, what));
        }
    }
    faults
}

fn at(segment: &SegmentSurvey, offset: u64, what: String) -> Fault {
    Fault { path: segment.path.clone(), offset: Some(offset), what }
}

/// Where a refusal comes from.
fn explain(survey: &Survey, refusal: Refusal, claims: Claims) -> Vec<Fault> {
    let mut faults = match refusal {
        Refusal::Gone { .. } | Refusal::TailMissing { .. } => broken_heads(survey),
        Refusal::Foreign { segment } => strangers_frames(survey, segment),
        Refusal::BelowFloor { end, floor, .. } => breaks(survey, end, floor),
        Refusal::WrittenLost { end, broken } => breaks(survey, end, broken.written),
    };
    // What looks missing may stand in what cannot be read, which was named.
    if faults.is_empty() && !survey.is_partial() {
        let what = match refusal {
            Refusal::TailMissing { .. } => format!(
                "no file holds segment use {}, from which on records are needed: it is missing",
                claims.tail.0
            ),
            Refusal::BelowFloor { end, floor, .. } => format!(
                "the records after {end} up to {floor} were durable and are in no file: a segment is missing, or \
                 the journal was rolled back"
            ),
            other => other.error().to_string(),
        };
        faults.push(Fault { path: survey.path.clone(), offset: None, what });
    }
    faults
}

fn strangers_frames(survey: &Survey, index: crate::journal::segments::SegmentIndex) -> Vec<Fault> {
    let segment = survey.segments.iter().find(|segment| segment.scan.index == index);
    let found = segment.and_then(|segment| {
        let frame = segment.scan.frames.iter().find(|found| survey.owner != Some(found.frame.owner()))?;
        let frame = &frame.frame;
        let what =
            format!("a frame of group {} and timeline {}, another's journal", frame.group, frame.timeline);
        Some(at(segment, frame.segment_offset(), what))
    });
    found.into_iter().collect()
}

/// Segments that must begin with a frame, and do not.
fn broken_heads(survey: &Survey) -> Vec<Fault> {
    let heads = survey.segments.iter().filter(|segment| segment.scan.frames.is_empty());
    heads.filter_map(broken_head).collect()
}

fn broken_head(segment: &SegmentSurvey) -> Option<Fault> {
    let fault = segment.first_fault?;
    (!segment.is_never_used() && !segment.is_unreadable_at(0)).then(|| at(segment, 0, describe(fault)))
}

/// The places where the chain to the floor is interrupted.
fn breaks(survey: &Survey, end: Lsn, floor: Lsn) -> Vec<Fault> {
    let mut faults = Vec::new();
    for segment in survey.segments.iter().filter(|segment| !segment.scan.frames.is_empty()) {
        let last = segment.scan.frames.last().map_or(Lsn::ZERO, |last| last.frame.last_lsn());
        let is_newer = |left: &&LeftOver| left.last_lsn > last && left.last_lsn > end;
        let later: Vec<_> = segment.left_overs.iter().filter(is_newer).collect();
        let interrupted = match segment.scan.end {
            // The very last of a segment's frames is broken: nothing newer stands behind it.
            End::Fault { offset, fault } if last == end && is_of_a_frame(fault) => Some((offset, fault)),
            End::Fault { offset, fault } if !later.is_empty() => Some((offset, fault)),
            _ => None,
        };
        if let Some((offset, fault)) = interrupted {
            if !segment.is_unreadable_at(offset) {
                faults.push(at(segment, offset, describe(fault)));
            }
            let lost = later.iter().filter(|left| left.last_lsn <= floor && left.offset != offset);
            let lost = lost.filter(|left| !segment.is_unreadable_at(left.offset));
            faults.extend(lost.filter_map(|left| Some(at(segment, left.offset, describe(left.fault?)))));
        }
    }
    faults.extend(broken_heads(survey));
    faults
}

/// Whether a fault is one of something that was a frame, not of bytes that never were one.
fn is_of_a_frame(fault: FrameFault) -> bool {
    !matches!(fault, FrameFault::Blank | FrameFault::NoMagic)
}

/// What a single segment says against itself.
fn contradictions(survey: &Survey, claims: Claims) -> Vec<Fault> {
    let Some(segment) = survey.segments.first() else { return Vec::new() };
    if segment.scan.frames.is_empty() {
        return broken_head(segment).into_iter().collect();
    }
    // What a later segment begins with says nothing about this one: only its own records count.
    let own = segment.left_overs.iter().filter(|left| Some(left.segment) == segment.sequence());
    let newest = own.map(|left| left.last_lsn).max().unwrap_or_default();
    let floor = claims.durable_through.min(newest);
    let end = survey.end();
    if end >= floor { Vec::new() } else { breaks(survey, end, floor) }
}

/// What stands behind the accepted end and is newer, or broken.
fn torn_tail(survey: &Survey, claims: Claims) -> Option<Fault> {
    let end = survey.end();
    let chain = survey.chain();
    let last = chain.last().map(|last| &survey.segments[last.scan]);
    if let Some(segment) = last {
        let newer = segment.left_overs.iter().any(|left| left.last_lsn > end);
        match segment.scan.end {
            End::Fault { offset, fault } if newer || is_of_a_frame(fault) => {
                return Some(at(segment, offset, describe(fault)));
            }
            _ => {}
        }
    }
    if claims.last_lsn <= end && last.is_some() {
        return None;
    }
    survey.segments.iter().find_map(|segment| {
        let newer = segment.left_overs.iter().any(|left| left.last_lsn > end);
        (newer || last.is_none()).then(|| broken_head(segment)).flatten()
    })
}
