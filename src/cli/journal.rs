//! `journal inspect|verify`: the offline tools, read-only, also on a damaged journal. What they find is
//! [`Survey`]'s; this makes text or JSON of it.

mod report;

use std::fmt::Write;
use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;

use super::failure::Failure;
use super::output::Output;
use crate::counted::counted;
use crate::env::{Environment, OsEnvironment};
use crate::error::{Error, ErrorKind};
use crate::journal::inspect::{Fault, Survey, Verdict};
use crate::units::Lsn;

pub use report::Report;

/// How much `inspect` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Segments and incarnations.
    Segments,
    /// Frames too.
    Frames,
    /// Records too.
    Records,
}

impl Depth {
    /// What the two switches ask for.
    pub fn chosen(frames: bool, records: bool) -> Depth {
        match (frames, records) {
            (_, true) => Depth::Records,
            (true, false) => Depth::Frames,
            (false, false) => Depth::Segments,
        }
    }
}

/// Looks at what stands under a path; what is no journal is the wrong argument.
fn survey(path: &Path) -> Result<Survey, Failure> {
    Survey::of_boot(path, OsEnvironment::new().boot()).map_err(|error| match error.kind() {
        ErrorKind::Invalid => Failure::Usage(error.to_string()),
        _ => error.into(),
    })
}

/// Tells what stands in a journal, and what opening would take of it.
pub fn inspect(path: &Path, depth: Depth, output: Output) -> Result<(), Failure> {
    let report = Report::of(&survey(path)?, depth);
    output.show(&report, Report::text)
}

/// Says whether a journal is sound; fails if it is damaged.
pub fn verify(path: &Path, output: Output) -> Result<(), Failure> {
    let survey = survey(path)?;
    output.show(&Verification::of(&survey), Verification::text)?;
    match &survey.verdict {
        Verdict::Sound | Verdict::NeverUsed | Verdict::TornTail(_) => Ok(()),
        Verdict::Damaged(faults) => {
            let text = format!("the journal is damaged: {}", counted(faults.len(), "fault"));
            Err(Error::new(ErrorKind::Corrupt, text).at_path(path).into())
        }
    }
}

/// Something that is wrong in a file.
#[derive(JsonSchema, Serialize)]
struct FaultReport {
    /// The file.
    path: String,
    /// The byte in it, if it is at one.
    offset: Option<u64>,
    /// What is wrong, for people.
    what: String,
    #[serde(skip)]
    line: String,
}

impl FaultReport {
    fn of(fault: &Fault) -> FaultReport {
        FaultReport {
            path: fault.path.display().to_string(),
            offset: fault.offset,
            what: fault.what.clone(),
            line: fault.to_string(),
        }
    }
}

/// The answer of `verify`.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "JournalVerification")]
pub struct Verification {
    /// What was looked at.
    path: String,
    /// Whether a gateway has it open: then this is a snapshot.
    snapshot: bool,
    /// `sound`, `torn_tail`, `damaged`, or `never_used` of a single segment.
    verdict: &'static str,
    /// Whether it was closed in good order.
    closed: bool,
    /// Segment files.
    segments: usize,
    /// What opening takes: nothing of a journal that it refuses.
    accepted_frames: usize,
    /// The last record that opening takes.
    end: Lsn,
    /// What follows without a break, of a journal that opening refuses too.
    sound_frames: usize,
    /// The first record of these.
    sound_first: Option<Lsn>,
    /// The last record of these.
    sound_last: Option<Lsn>,
    /// Up to which record it was durable at least.
    durable_floor: Lsn,
    /// Where the torn tail is, which is normal after a crash.
    torn_tail: Option<FaultReport>,
    /// What is damaged.
    faults: Vec<FaultReport>,
    /// A cache beside the segments.
    index_runs: usize,
    /// Those that opening must not use: harmless.
    damaged_index_runs: Vec<RunReport>,
}

/// An index run that cannot be used.
#[derive(JsonSchema, Serialize)]
struct RunReport {
    /// Its file.
    path: String,
    /// Why not, for people.
    what: String,
}

impl Verification {
    fn of(survey: &Survey) -> Verification {
        let (verdict, torn_tail, faults) = match &survey.verdict {
            Verdict::Sound => ("sound", None, Vec::new()),
            Verdict::NeverUsed => ("never_used", None, Vec::new()),
            Verdict::TornTail(tail) => ("torn_tail", Some(FaultReport::of(tail)), Vec::new()),
            Verdict::Damaged(faults) => ("damaged", None, faults.iter().map(FaultReport::of).collect()),
        };
        Verification {
            path: survey.path.display().to_string(),
            snapshot: survey.in_use,
            verdict,
            closed: survey.is_closed(),
            segments: survey.segments.len(),
            accepted_frames: survey.chain().iter().map(|accepted| accepted.frames).sum(),
            end: survey.end(),
            sound_frames: survey.unbroken.iter().map(|part| part.frames).sum(),
            sound_first: survey.unbroken_records().map(|(first, _)| first),
            sound_last: survey.unbroken_records().map(|(_, last)| last),
            durable_floor: survey.floor.lsn(),
            torn_tail,
            faults,
            index_runs: survey.runs.len(),
            damaged_index_runs: damaged_runs(survey),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if self.snapshot {
            text += "a gateway has this journal open: what follows is a snapshot of a journal at work\n";
        }
        let took = format!(
            "{} of {} up to record {}; durable up to {} at least",
            counted(self.accepted_frames, "frame"),
            counted(self.segments, "segment"),
            self.end,
            self.durable_floor
        );
        let closed = if self.closed { ", closed in good order" } else { "" };
        match (&self.torn_tail, self.verdict) {
            (Some(tail), _) => {
                let _ = writeln!(text, "torn tail (normal after a crash): {took}\n  {}", tail.line);
                text +=
                    "  nothing that is left says that what stands there was durable; opening leaves it out\n";
            }
            (None, "sound") => {
                let _ = writeln!(text, "sound{closed}: {took}");
            }
            (None, "never_used") => {
                text += "never used: this segment is zeros all through, so it holds no journal\n";
                text += "  a gateway keeps such segments ready; whether something should stand in it, its directory tells\n";
            }
            (None, _) => {
                let _ = writeln!(text, "damaged: {}", self.sound_text());
                self.faults.iter().for_each(|fault| {
                    let _ = writeln!(text, "  {}", fault.line);
                });
            }
        }
        text + &self.runs_text()
    }

    /// What is sound of a damaged journal, and how far it must be.
    fn sound_text(&self) -> String {
        let sound = match (self.sound_first, self.sound_last) {
            (Some(first), Some(last)) => format!(
                "sound from record {first} up to record {last} ({} in {})",
                counted(self.sound_frames, "frame"),
                counted(self.segments, "segment")
            ),
            _ => format!("no sound frame in {}", counted(self.segments, "segment")),
        };
        format!("{sound}; durable up to {} at least", self.durable_floor)
    }

    fn runs_text(&self) -> String {
        let mut text = String::new();
        if self.index_runs > 0 {
            let _ = writeln!(text, "{} beside it", counted(self.index_runs, "index run"));
        }
        for run in &self.damaged_index_runs {
            let _ = writeln!(
                text,
                "  {}: {}; harmless: a cache, and opening reads the frames instead",
                run.path, run.what
            );
        }
        text
    }
}

fn damaged_runs(survey: &Survey) -> Vec<RunReport> {
    let damaged = survey.runs.iter().filter_map(|run| {
        let what = run.fault.clone()?;
        Some(RunReport { path: run.path.display().to_string(), what })
    });
    damaged.collect()
}
