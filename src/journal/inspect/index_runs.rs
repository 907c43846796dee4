//! Whether the index runs beside a journal are whole, and say what the frames say.
//!
//! A run is a cache, so nothing here makes a journal unsound: opening reads the frames instead of a run that it cannot
//! believe. But opening compares no more of a run than its ends, for the sum of its file stands for the rest. This compares all
//! of it with the frames that are still there: what they say, put together again, is what the run must say.
//!
//! One thing a run does tell of the journal: it is made of durable frames only, so those that it ends with were there once.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use super::Survey;
use crate::extent::ExtentMap;
use crate::format::frame::RecordKind;
use crate::format::marker::Marker;
use crate::format::run::{FrameLink, PartSeal, RunFault};
use crate::journal::payloads::Payloads;
use crate::journal::recover::Decision;
use crate::journal::runs::{CoveredFrame, IndexedLayer, LoadedRun, link_of};
use crate::journal::scan::Scanned;
use crate::journal::segments::{SegmentIndex, Source};
use crate::units::{DiskSlot, FrameNumber, Lsn, to_usize};

/// An index run, looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSurvey {
    /// Its file.
    pub path: PathBuf,
    /// Why opening must not use it, if so.
    pub fault: Option<String>,
    /// The frame that it ends with, where the journal ends before that.
    pub missing: Option<FrameLink>,
}

/// Looks at the runs beside a journal whose frames were judged. In a journal at work one may go meanwhile.
pub(super) fn survey(survey: &Survey, paths: Vec<PathBuf>) -> Vec<RunSurvey> {
    let frames = Frames::of(survey);
    let look = |path: PathBuf| match fs::read(&path) {
        Ok(mut bytes) => Some(match LoadedRun::decode(&path, &mut bytes) {
            Ok(run) => {
                let missing = missing(survey, frames.as_ref(), &run);
                let frames = frames.as_ref().filter(|_| missing.is_none());
                RunSurvey { path, fault: frames.and_then(|frames| frames.contradicts(&run, survey)), missing }
            }
            Err(RunFault(what)) => {
                RunSurvey { path, fault: Some(format!("damaged: its {what}")), missing: None }
            }
        }),
        Err(error) if survey.in_use && error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            Some(RunSurvey { path, fault: Some(format!("it cannot be read: {error}")), missing: None })
        }
    };
    paths.into_iter().filter_map(look).collect()
}

/// The frame that a run ends with, if the journal ends before it. Of one at work the frames were copied before the run was written.
fn missing(survey: &Survey, frames: Option<&Frames<'_>>, run: &LoadedRun) -> Option<FrameLink> {
    let is_beyond = match (frames, &survey.decision) {
        (Some(frames), _) => {
            let newest = frames.placed.last().map(|(_, scanned)| scanned.frame.number);
            survey.owner == Some(run.owner) && newest < Some(run.end.number)
        }
        (None, Some(Decision::Fresh)) => true,
        (None, _) => false,
    };
    (is_beyond && !survey.in_use).then_some(run.end)
}

/// An accepted frame, and the file that it stands in.
type Placed<'a> = (SegmentIndex, &'a Scanned);

/// The accepted frames, whose numbers follow one another, and the markers in them.
struct Frames<'a> {
    placed: Vec<Placed<'a>>,
    markers: BTreeMap<Lsn, Option<&'a Marker>>,
}

/// What the frames of a run say of one segment.
struct Part {
    index: SegmentIndex,
    last_lsn: Lsn,
    payloads: Payloads,
}

impl<'a> Frames<'a> {
    /// `None` where opening accepts no frames, so that there is nothing to compare with.
    fn of(survey: &'a Survey) -> Option<Frames<'a>> {
        let Some(Decision::Accept(chain)) = &survey.decision else { return None };
        let mut frames = Frames { placed: Vec::new(), markers: BTreeMap::new() };
        for accepted in chain {
            let segment = &survey.segments[accepted.scan];
            let placed = segment.scan.frames[..accepted.frames].iter();
            frames.placed.extend(placed.map(|scanned| (segment.scan.index, scanned)));
            let markers = segment.markers.iter();
            let known = markers.filter(|found| found.marker.is_some() || found.is_sealed);
            frames.markers.extend(known.map(|found| (found.lsn, found.marker.as_ref())));
        }
        (!frames.placed.is_empty()).then_some(frames)
    }

    /// What a run says otherwise than the frames, if anything.
    fn contradicts(&self, run: &LoadedRun, survey: &Survey) -> Option<String> {
        if survey.owner != Some(run.owner) {
            return Some("it belongs to another group or timeline".into());
        }
        let first = self.placed[0].1.frame.number;
        if run.end.number < first {
            // Recycled since: opening does not look at it, and the gateway removes it.
            return None;
        }
        let at = |number: FrameNumber| self.placed.get(to_usize(number.0.checked_sub(first.0)?));
        match at(run.end.number) {
            // The frames were copied before the run was written.
            None => return None,
            Some((_, last)) if link_of(&last.frame, last.sum) != run.end => {
                return Some(format!("frame {} is not the one that it ends with", run.end.number.0));
            }
            Some(_) => {}
        }
        if at(run.begin.number).is_some_and(|(_, before)| link_of(&before.frame, before.sum) != run.begin) {
            return Some(format!("frame {} is not the one that it begins behind", run.begin.number.0));
        }
        let covered = |&&(_, scanned): &&Placed<'_>| {
            run.begin.number < scanned.frame.number && scanned.frame.number <= run.end.number
        };
        let covered: Vec<Placed<'_>> = self.placed.iter().filter(covered).copied().collect();
        let begins_with = run.parts.first().map(|(part, _)| part.sequence);
        // What was recycled before the run was written is not in it; what was recycled since is not in the frames.
        let is_whole = covered.first().is_some_and(|(_, scanned)| {
            scanned.frame.number == run.begin.number.next() && Some(scanned.frame.segment) == begins_with
        });
        self.parts(run, &covered).or_else(|| self.layers(run, &covered, is_whole))
    }

    fn parts(&self, run: &LoadedRun, covered: &[Placed<'_>]) -> Option<String> {
        // An incarnation that goes on in a segment seals under its own key, and has a part of its own.
        let key_of = |seal: Option<PartSeal>| seal.map(|seal| (seal.generation, seal.incarnation.0));
        let mut parts: BTreeMap<_, Part> = BTreeMap::new();
        for &(index, scanned) in covered {
            let covered = CoveredFrame::new(index, &scanned.frame, scanned.sum);
            let place = (scanned.frame.segment, key_of(covered.seal));
            let part = parts.entry(place).or_insert_with(|| Part {
                index,
                last_lsn: Lsn::ZERO,
                payloads: Payloads::default(),
            });
            part.last_lsn = scanned.frame.last_lsn();
            part.payloads.add(&scanned.frame, None);
        }
        let oldest = parts.keys().next().map(|place| place.0)?;
        for (said, payloads) in run.parts.iter().filter(|(part, _)| part.sequence >= oldest) {
            let agrees = parts.get(&(said.sequence, key_of(said.seal))).is_some_and(|part| {
                part.index.0 == said.index
                    && part.last_lsn == said.last_lsn
                    && part.payloads.within(&(0..u32::MAX)) == *payloads
            });
            if !agrees {
                return Some(format!("the frames of segment use {} say otherwise", said.sequence.0));
            }
        }
        None
    }

    fn layers(&self, run: &LoadedRun, covered: &[Placed<'_>], is_whole: bool) -> Option<String> {
        let oldest = covered.first()?.1.frame.first_lsn;
        let mut after = is_whole.then_some(run.begin.last_lsn);
        for layer in &run.layers {
            let begins = after.replace(layer.last).filter(|after| after.next() >= oldest);
            let agrees = begins.is_none_or(|after| self.says(layer, after, covered));
            let ends = match (self.markers.get(&layer.last), &layer.marker) {
                (Some(Some(found)), Some(said)) => *found == said,
                // What a sealed one says nobody here can read.
                (Some(None), Some(_)) | (None, None) => true,
                _ => false,
            };
            if !agrees || !ends {
                return Some(format!("the frames up to record {} say otherwise", layer.last));
            }
        }
        None
    }

    /// Whether the records `after < lsn <= layer.last` say what the layer says.
    fn says(&self, layer: &IndexedLayer, after: Lsn, covered: &[Placed<'_>]) -> bool {
        let mut maps: BTreeMap<DiskSlot, ExtentMap<Source>> = BTreeMap::new();
        let mut data_bytes = 0;
        for &(segment, scanned) in covered {
            let frame = &scanned.frame;
            for (index, record) in frame.records.iter().enumerate() {
                let lsn = frame.first_lsn.advance(index as u64);
                if lsn <= after || lsn > layer.last {
                    continue;
                }
                match record.kind {
                    RecordKind::Write { disk, range } => {
                        let sector = frame.payload_base() + record.payload.sector;
                        maps.entry(disk).or_default().insert(range, Source::Journal { segment, sector });
                        data_bytes += range.bytes();
                    }
                    RecordKind::Zero { disk, range, allocated } => {
                        maps.entry(disk).or_default().insert(range, Source::Zero { allocated });
                    }
                    RecordKind::Marker | RecordKind::Opening | RecordKind::Seal => {}
                }
            }
        }
        let maps: BTreeMap<_, _> = maps.into_iter().map(|(disk, map)| (disk, map.freeze())).collect();
        let said = layer.maps.iter().map(|(disk, map)| (disk, &**map));
        data_bytes == layer.data_bytes && maps.iter().eq(said)
    }
}
