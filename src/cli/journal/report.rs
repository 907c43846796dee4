//! The answer of `journal inspect`: segments, incarnations, frames and records, as JSON or text.

use std::fmt::Write;

use schemars::JsonSchema;
use serde::Serialize;

use super::{Depth, Verification};
use crate::byte_size::ByteSize;
use crate::cli::output::table;
use crate::control::wire::rfc3339;
use crate::counted::counted;
use crate::format::frame::{Frame, Record, RecordKind};
use crate::journal::inspect::{SegmentSurvey, Survey, describe};
use crate::journal::recover::Decision;
use crate::journal::scan::End;
use crate::units::Lsn;

/// The answer of `inspect`.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "JournalReport")]
pub struct Report {
    #[serde(flatten)]
    verification: Verification,
    /// The group that it belongs to, as an id.
    group: Option<String>,
    /// That group's timeline.
    timeline: Option<String>,
    /// What opening would do.
    decision: String,
    /// Up to which record the journal itself says that it is durable.
    stated_durable: Lsn,
    /// Up to which record the images' checkpoints have it; none without images beside it.
    destaged: Option<Lsn>,
    /// Each segment file.
    segment_files: Vec<SegmentReport>,
    /// Each time that it was opened to be written.
    incarnations: Vec<IncarnationReport>,
    /// Files that were being made when the gateway ended.
    unfinished: Vec<String>,
}

/// A segment file.
#[derive(JsonSchema, Serialize)]
struct SegmentReport {
    /// The number in its name.
    index: u32,
    /// The file.
    path: String,
    /// Which use of a segment it is; none if it was never used.
    sequence: Option<u64>,
    /// `accepted`, or `free`: nothing in it is needed. Where opening refuses: `sound`, `free`, or `cut_off` by a break.
    role: &'static str,
    /// Sound frames in it.
    frame_count: usize,
    /// The first record in it.
    first_lsn: Option<Lsn>,
    /// The last record in it.
    last_lsn: Option<Lsn>,
    /// The incarnation that wrote its last frame.
    incarnation: Option<String>,
    /// Its length.
    bytes: u64,
    /// Bytes from its start that its header and its frames take.
    used_bytes: u64,
    /// Why no more frames follow, for people.
    end: String,
    /// Frames of an earlier use behind that.
    left_over_frames: usize,
    /// Each frame, where they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    frames: Option<Vec<FrameReport>>,
}

/// What one opening wrote.
#[derive(JsonSchema, Serialize)]
struct IncarnationReport {
    /// Its id.
    id: String,
    /// The incarnation that it follows.
    predecessor: Option<String>,
    /// When it was opened: RFC 3339 in UTC; none if that frame is recycled.
    opened: Option<String>,
    /// The number of its first frame that is there.
    first_frame: u64,
    /// The number of its last frame.
    last_frame: u64,
    /// Its first record that is there.
    first_lsn: Lsn,
    /// Its last record.
    last_lsn: Lsn,
    /// Whether it was closed in good order.
    closed: bool,
}

/// A frame.
#[derive(JsonSchema, Serialize)]
struct FrameReport {
    /// Its number.
    number: u64,
    /// Where in the segment it begins, in bytes.
    offset: u64,
    /// Its length.
    bytes: usize,
    /// What it is for, by its most telling record.
    kind: &'static str,
    /// Its first record.
    first_lsn: Lsn,
    /// Its last record; none if it has none.
    last_lsn: Option<Lsn>,
    /// How many records it has.
    record_count: usize,
    /// Up to which record it says that all are durable.
    durable_through: Lsn,
    /// The oldest segment use that was still needed.
    tail: u64,
    /// The incarnation that wrote it.
    incarnation: String,
    /// Each record, where they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<Vec<RecordReport>>,
}

/// A record.
#[derive(JsonSchema, Serialize)]
struct RecordReport {
    /// Its place in the order.
    lsn: Lsn,
    /// What it is.
    kind: &'static str,
    /// The disk that it is about, by its number in the journal.
    disk_slot: Option<u32>,
    /// The first sector that it is about.
    sector: Option<u64>,
    /// How many.
    sectors: Option<u64>,
    /// Bytes of its payload.
    payload_bytes: u64,
    /// All of that for people.
    text: String,
}

impl Report {
    pub(super) fn of(survey: &Survey, depth: Depth) -> Report {
        let segments = survey.segments.iter().enumerate();
        let segment_files =
            segments.map(|(position, segment)| SegmentReport::of(segment, role(survey, position), depth));
        Report {
            verification: Verification::of(survey),
            group: survey.owner.map(|owner| owner.group.to_string()),
            timeline: survey.owner.map(|owner| owner.timeline.to_string()),
            decision: decision(survey),
            stated_durable: survey.floor.stated,
            destaged: survey.floor.destaged,
            segment_files: segment_files.collect(),
            incarnations: survey.incarnations.iter().map(IncarnationReport::of).collect(),
            unfinished: survey.unfinished.iter().map(|path| path.display().to_string()).collect(),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = self.verification.text();
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".into());
        let destaged = self.destaged.map_or("no images beside it".into(), |lsn| lsn.to_string());
        let _ = writeln!(
            text,
            "\ngroup         {}\ntimeline      {}\nopening       {}\nstated durable  {}\ndestaged      {destaged}\n",
            or_none(&self.group),
            or_none(&self.timeline),
            self.decision,
            self.stated_durable,
        );
        text += &self.segments_table();
        text += "\n";
        text += &self.incarnations_table();
        for path in &self.unfinished {
            let _ = writeln!(text, "\nunfinished    {path}: opening removes it");
        }
        for segment in &self.segment_files {
            text += &segment.frames_text();
        }
        text
    }

    fn segments_table(&self) -> String {
        let shown = |lsn: Option<Lsn>| lsn.map_or("-".into(), |lsn| lsn.to_string());
        let rows = self.segment_files.iter().map(|segment| {
            [
                segment.index.to_string(),
                segment.sequence.map_or("-".into(), |sequence| sequence.to_string()),
                segment.role.to_owned(),
                segment.frame_count.to_string(),
                shown(segment.first_lsn),
                shown(segment.last_lsn),
                format!("{} of {}", size(segment.used_bytes), size(segment.bytes)),
                segment.left_over_frames.to_string(),
                segment.end.clone(),
            ]
        });
        table(["SEGMENT", "USE", "ROLE", "FRAMES", "FIRST", "LAST", "USED", "LEFT OVER", "ENDS"], rows)
    }

    fn incarnations_table(&self) -> String {
        let rows = self.incarnations.iter().map(|incarnation| {
            [
                incarnation.id.clone(),
                incarnation.predecessor.clone().unwrap_or_else(|| "-".into()),
                incarnation.opened.clone().unwrap_or_else(|| "recycled".into()),
                format!("{}-{}", incarnation.first_frame, incarnation.last_frame),
                format!("{}-{}", incarnation.first_lsn, incarnation.last_lsn),
                if incarnation.closed { "closed" } else { "open" }.to_owned(),
            ]
        });
        table(["INCARNATION", "FOLLOWS", "OPENED", "FRAMES", "RECORDS", "END"], rows)
    }
}

/// What a segment is to the journal.
fn role(survey: &Survey, position: usize) -> &'static str {
    let is_unbroken = survey.unbroken.iter().any(|part| part.scan == position);
    let is_refused = matches!(survey.decision, Some(Decision::Refuse(_)));
    match (is_refused, is_unbroken) {
        (false, true) => "accepted",
        (true, true) => "sound",
        (true, false) if !survey.is_free(&survey.segments[position]) => "cut_off",
        (_, false) => "free",
    }
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).approximate().to_string()
}

fn decision(survey: &Survey) -> String {
    match &survey.decision {
        _ if survey.is_partial() => "cannot be told: a part of the journal cannot be read".into(),
        None => "one segment: what opening does depends on the others".into(),
        Some(Decision::Fresh) => "begins a new journal".into(),
        Some(Decision::Accept(chain)) => {
            format!("accepts {} up to record {}", counted(chain.len(), "segment"), survey.end())
        }
        Some(Decision::Refuse(refusal)) => format!("refuses: {}", refusal.error()),
    }
}

fn end(end: End) -> String {
    match end {
        End::Full => "full".into(),
        End::Fault { offset, fault } => format!("at byte {offset}: {}", describe(fault)),
        End::Unlinked { offset } => format!("at byte {offset}: a frame that does not follow"),
    }
}

impl SegmentReport {
    fn of(segment: &SegmentSurvey, role: &'static str, depth: Depth) -> SegmentReport {
        let frames = &segment.scan.frames;
        let with_frames = depth >= Depth::Frames;
        SegmentReport {
            index: segment.scan.index.0,
            path: segment.path.display().to_string(),
            sequence: segment.sequence().map(|sequence| sequence.0),
            role,
            frame_count: frames.len(),
            first_lsn: frames.first().map(|first| first.frame.first_lsn),
            last_lsn: frames.last().map(|last| last.frame.last_lsn()),
            incarnation: frames.last().map(|last| last.frame.incarnation.to_string()),
            bytes: segment.scan.bytes,
            used_bytes: segment.used_bytes(),
            end: end(segment.scan.end),
            left_over_frames: segment.left_overs.len(),
            frames: with_frames
                .then(|| frames.iter().map(|found| FrameReport::of(&found.frame, segment, depth)).collect()),
        }
    }

    fn frames_text(&self) -> String {
        let Some(frames) = self.frames.as_ref().filter(|frames| !frames.is_empty()) else {
            return String::new();
        };
        let mut text = format!("\nsegment {}\n", self.index);
        for frame in frames {
            let last = frame.last_lsn.map_or(String::new(), |last| format!("-{last}"));
            let _ = writeln!(
                text,
                "  frame {} at byte {}: {}, {} bytes, {}, LSN {}{last}, durable through {}, needs use {} on",
                frame.number,
                frame.offset,
                frame.kind,
                frame.bytes,
                counted(frame.record_count, "record"),
                frame.first_lsn,
                frame.durable_through,
                frame.tail
            );
            for record in frame.records.iter().flatten() {
                let _ = writeln!(text, "    {} {}", record.lsn, record.text);
            }
        }
        text
    }
}

impl IncarnationReport {
    fn of(incarnation: &crate::journal::inspect::IncarnationSurvey) -> IncarnationReport {
        IncarnationReport {
            id: incarnation.id.to_string(),
            predecessor: incarnation
                .opening
                .and_then(|(_, predecessor)| predecessor)
                .map(|id| id.to_string()),
            opened: incarnation.opening.map(|(wall, _)| rfc3339(wall)),
            first_frame: incarnation.frames.0.0,
            last_frame: incarnation.frames.1.0,
            first_lsn: incarnation.records.0,
            last_lsn: incarnation.records.1,
            closed: incarnation.closed,
        }
    }
}

impl FrameReport {
    fn of(frame: &Frame, segment: &SegmentSurvey, depth: Depth) -> FrameReport {
        let records =
            frame.records.iter().enumerate().map(|(index, record)| {
                RecordReport::of(frame.first_lsn.advance(index as u64), record, segment)
            });
        FrameReport {
            number: frame.number.0,
            offset: frame.segment_offset(),
            bytes: frame.total_bytes(),
            kind: frame_kind(frame),
            first_lsn: frame.first_lsn,
            last_lsn: (!frame.records.is_empty()).then(|| frame.last_lsn()),
            record_count: frame.records.len(),
            durable_through: frame.durable_through,
            tail: frame.tail.0,
            incarnation: frame.incarnation.to_string(),
            records: (depth == Depth::Records).then(|| records.collect()),
        }
    }
}

/// What a frame is for: its most telling record.
fn frame_kind(frame: &Frame) -> &'static str {
    let has = |kind: RecordKind| frame.records.iter().any(|record| record.kind == kind);
    match () {
        () if frame.records.is_empty() => "statement",
        () if has(RecordKind::Opening) => "opening",
        () if has(RecordKind::Seal) => "seal",
        () if has(RecordKind::Marker) => "marker",
        () => "data",
    }
}

impl RecordReport {
    fn of(lsn: Lsn, record: &Record, segment: &SegmentSurvey) -> RecordReport {
        let payload_bytes = u64::from(record.payload.sectors) * crate::units::SECTOR_BYTES;
        let (kind, place, text) = match record.kind {
            RecordKind::Write { disk, range } => {
                ("write", Some((disk, range)), format!("write, disk {}, sectors {range}", disk.0))
            }
            RecordKind::Zero { disk, range, allocated } => {
                let space = if allocated { ", space kept" } else { "" };
                ("zero", Some((disk, range)), format!("zeros, disk {}, sectors {range}{space}", disk.0))
            }
            RecordKind::Marker => ("marker", None, marker_text(lsn, segment)),
            RecordKind::Opening => ("opening", None, "opening".into()),
            RecordKind::Seal => ("seal", None, "seal".into()),
        };
        RecordReport {
            lsn,
            kind,
            disk_slot: place.map(|(disk, _)| disk.0),
            sector: place.map(|(_, range)| range.start),
            sectors: place.map(|(_, range)| range.sectors()),
            payload_bytes,
            text,
        }
    }
}

fn marker_text(lsn: Lsn, segment: &SegmentSurvey) -> String {
    let found = segment.markers.iter().find(|found| found.lsn == lsn);
    let unreadable = match found {
        Some(found) if found.is_sealed => "marker, sealed",
        _ => "marker that cannot be read",
    };
    found.and_then(|found| found.marker.as_ref()).map_or(unreadable.into(), |marker| {
        let disks = counted(marker.disks.len(), "disk");
        format!(
            "marker of point {}, {}, label {:?}, {disks}",
            marker.point,
            rfc3339(marker.wall),
            marker.label
        )
    })
}
