//! Index runs of a group: what is frozen and durable is said again in few bytes, for the next opening.
//!
//! A run covers whole frames and whole layers, for nothing stands behind a marker in its frame, and layers are frozen
//! where frames end. Runs pay only where much is left to be destaged or vaulted: less than
//! [`GroupPlan::index_bytes_min`](crate::protect::open::GroupPlan) is read from the journal as fast. What is needed no
//! longer before its run was written gets none; what is needed no longer afterwards loses it.
//!
//! Invariant: a run's frames were durable when it was written. Runs are a cache: a failure to write one is noted and
//! forgotten.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::format::frame::Payload;
use crate::format::marker::Marker;
use crate::format::run::{FrameLink, PartSeal, Run, RunLayer, RunPart};
use crate::journal::runs::{self, CoveredFrame, LoadedRun, extents_of};
use crate::journal::segments::{SegmentIndex, Segments};
use crate::journal::writer::Identity;
use crate::planted::Bug;
use crate::protect::group::Group;
use crate::protect::layers::Layer;
use crate::protect::mailbox::Done;
use crate::units::{Lsn, SegmentSequence};

/// How many drafts may wait for their frames to become durable by themselves. Guests that flush, points and destage
/// see to that; where none of them does, this is what an opening reads beyond the last run.
const WAITING_MAX: usize = 4;

/// A run's file, and the last record that it is about.
#[derive(Clone, Debug)]
pub struct StoredRun {
    path: PathBuf,
    through: Lsn,
}

impl From<&LoadedRun> for StoredRun {
    fn from(run: &LoadedRun) -> StoredRun {
        StoredRun { path: run.path.clone(), through: run.through() }
    }
}

/// A layer of a run to come.
#[derive(Debug)]
struct Drafted {
    last: Lsn,
    oldest: SegmentSequence,
    layer: Option<Rc<Layer>>,
    marker: Option<Marker>,
}

/// What the frames of a run to come take of one segment.
#[derive(Debug)]
struct Part {
    index: SegmentIndex,
    sequence: SegmentSequence,
    sectors: std::ops::Range<u32>,
    last_lsn: Lsn,
    seal: Option<PartSeal>,
}

/// A run to come.
#[derive(Debug)]
struct Draft {
    begin: FrameLink,
    end: FrameLink,
    bytes: u64,
    parts: Vec<Part>,
    layers: Vec<Drafted>,
    /// The oldest segment that holds data since the last layer.
    oldest: Option<SegmentSequence>,
}

impl Draft {
    fn after(begin: FrameLink) -> Draft {
        Draft { begin, end: begin, bytes: 0, parts: Vec::new(), layers: Vec::new(), oldest: None }
    }

    fn add(&mut self, frame: &CoveredFrame) {
        self.end = frame.link;
        self.bytes += u64::from(frame.sectors.end - frame.sectors.start) * crate::units::SECTOR_BYTES;
        if frame.carries_data {
            self.oldest.get_or_insert(frame.link.segment);
        }
        match self.parts.last_mut() {
            Some(part) if part.sequence == frame.link.segment && part.seal == frame.seal => {
                part.sectors.end = frame.sectors.end;
                part.last_lsn = frame.link.last_lsn;
            }
            _ => self.parts.push(Part {
                index: frame.index,
                sequence: frame.link.segment,
                sectors: frame.sectors.clone(),
                last_lsn: frame.link.last_lsn,
                seal: frame.seal,
            }),
        }
    }

    /// The run as it is written; `None` if nothing of it is in use any more.
    fn encode(&self, identity: Identity, segments: &Segments) -> Option<Vec<u8>> {
        let tail = segments.tail()?;
        let (mut payloads, mut tags) = (Vec::new(), Vec::new());
        let mut parts = Vec::with_capacity(self.parts.len());
        for part in self.parts.iter().filter(|part| part.sequence >= tail) {
            let segment = segments.get(part.index).filter(|segment| segment.sequence() == part.sequence)?;
            let within = segment.payloads_within(&part.sectors);
            parts.push(RunPart {
                index: part.index.0,
                sequence: part.sequence,
                last_lsn: part.last_lsn,
                payloads: u32::try_from(within.payloads.len()).expect("a segment has fewer sectors"),
                seal: part.seal,
            });
            payloads.extend(within.payloads);
            tags.extend(within.tags);
        }
        // What stands in segments that were given back is needed by nobody.
        let drafted: Vec<&Drafted> = self.layers.iter().filter(|layer| layer.oldest >= tail).collect();
        if parts.is_empty() || drafted.is_empty() {
            return None;
        }
        let layers = drafted.iter().map(|drafted| drafted.table()).collect();
        let Identity { group, timeline, .. } = identity;
        let run = Run { group, timeline, begin: self.begin, end: self.end, parts, layers };
        let maps =
            drafted.iter().filter_map(|drafted| drafted.layer.as_ref()).flat_map(|layer| layer.maps.values());
        let payloads = payloads.into_iter().map(|stored| Payload {
            sector: stored.sector,
            sectors: stored.sectors,
            sum: stored.sum,
        });
        Some(run.encode(maps.flat_map(|map| extents_of(map)), payloads, &tags))
    }
}

impl Drafted {
    fn table(&self) -> RunLayer {
        let maps = self.layer.iter().flat_map(|layer| &layer.maps);
        let count = |count: usize| u32::try_from(count).expect("a layer's extents are bounded");
        RunLayer {
            last: self.last,
            oldest: self.oldest,
            data_bytes: self.layer.as_ref().map_or(0, |layer| layer.bytes),
            disks: maps.map(|(&slot, map)| (slot, count(map.len()))).collect(),
            marker: self.marker.clone(),
        }
    }
}

/// The runs of a group: those that are there, and those to come.
#[derive(Debug)]
pub struct Indexing {
    bytes_min: u64,
    /// Frames that are visible, and in no layer yet.
    trail: VecDeque<CoveredFrame>,
    /// `None` before the first frame, and after a layer that ended amidst a frame.
    draft: Option<Draft>,
    /// Drafts to be written once their frames are durable.
    ready: VecDeque<Draft>,
    is_writing: bool,
    stored: VecDeque<StoredRun>,
    /// Runs that were there at the opening.
    adopted: usize,
}

impl Indexing {
    /// No runs, and no frames yet.
    pub fn new(bytes_min: u64) -> Indexing {
        Indexing {
            bytes_min,
            trail: VecDeque::new(),
            draft: None,
            ready: VecDeque::new(),
            is_writing: false,
            stored: VecDeque::new(),
            adopted: 0,
        }
    }

    /// Begins behind the frame `before`, the one before the first that comes.
    pub fn begin(&mut self, before: FrameLink) {
        self.draft.get_or_insert_with(|| Draft::after(before));
    }

    /// Takes a frame that became visible.
    pub fn add(&mut self, frame: CoveredFrame) {
        self.trail.push_back(frame);
    }

    /// Takes a run that is there already; what comes next begins behind it.
    pub fn adopt(&mut self, run: &LoadedRun) {
        self.close();
        // They stand before it: an opening, say, which no layer waits for. The next run would say what this one says again.
        self.trail.clear();
        self.draft = Some(Draft::after(run.end));
        self.stored.push_back(StoredRun::from(run));
        self.adopted += 1;
    }

    /// A layer ended at record `last`, with a marker or without one.
    pub fn freeze(&mut self, last: Lsn, layer: Option<Rc<Layer>>, marker: Option<&Marker>) {
        let mut newest = None;
        while let Some(frame) = self.trail.pop_front_if(|frame| frame.link.last_lsn <= last) {
            if let Some(draft) = &mut self.draft {
                draft.add(&frame);
            }
            newest = Some(frame.link);
        }
        if layer.is_none() && marker.is_none() {
            return;
        }
        let Some(draft) = self.draft.as_mut().filter(|draft| draft.end.last_lsn == last) else {
            // The layer begins or ends amidst a frame: it is read from the journal, and what comes then begins anew.
            self.close();
            self.draft = newest.filter(|newest| newest.last_lsn == last).map(Draft::after);
            return;
        };
        let oldest = draft.oldest.take().unwrap_or(draft.end.segment);
        draft.layers.push(Drafted { last, oldest, layer, marker: marker.cloned() });
        if draft.bytes >= self.bytes_min {
            let end = draft.end;
            self.close();
            self.draft = Some(Draft::after(end));
        }
    }

    /// What is drafted is to be written as it is, if it says anything.
    fn close(&mut self) {
        self.ready.extend(self.draft.take().filter(|draft| !draft.layers.is_empty()));
    }

    /// The last record of those drafts that wait for nothing but durability, if they have become many.
    fn overdue(&self) -> Option<Lsn> {
        let newest = self.ready.back().filter(|_| self.ready.len() >= WAITING_MAX)?;
        Some(newest.end.last_lsn)
    }

    /// Forgets drafts about records that nobody needs, and tells which runs are about such.
    fn forget(&mut self, needless: Lsn) -> Vec<PathBuf> {
        let is_needless = |draft: &Draft| draft.layers.last().is_some_and(|layer| layer.last <= needless);
        while self.ready.pop_front_if(|draft| is_needless(draft)).is_some() {}
        if self.ready.is_empty()
            && let Some(draft) = self.draft.take_if(|draft| is_needless(draft))
        {
            self.draft = Some(Draft { oldest: draft.oldest, ..Draft::after(draft.end) });
        }
        let mut paths = Vec::new();
        while let Some(run) = self.stored.pop_front_if(|run| run.through <= needless) {
            paths.push(run.path);
        }
        paths
    }
}

impl Group {
    /// How many index runs stood for frames at the opening.
    pub fn adopted_runs(&self) -> usize {
        self.indexing.adopted
    }

    /// Writes the next run whose frames are durable, and removes those that say only what nobody needs.
    pub(super) fn index(&mut self, needless: Lsn) {
        for path in self.indexing.forget(needless) {
            let runtime = Rc::clone(&self.runtime);
            self.tasks.spawn(async move {
                if let Err(error) = runtime.remove(path).await {
                    tracing::warn!(%error, "an index run that is needed no longer stays");
                }
            });
        }
        let ahead = self.settings.plan.planted.is(Bug::RunAheadOfDurable);
        let durable = if ahead { self.writer.visible() } else { self.writer.durable() };
        if let Some(end) = self.indexing.overdue() {
            self.writer.want_durable(end);
        }
        if self.indexing.is_writing {
            return;
        }
        let Some(draft) = self.indexing.ready.pop_front_if(|draft| draft.end.last_lsn <= durable) else {
            return;
        };
        let Some(bytes) = draft.encode(self.identity, &self.segments) else { return };
        self.indexing.is_writing = true;
        let path = self.settings.plan.journal().join(runs::file_name(draft.end.number));
        let (runtime, mailbox) = (Rc::clone(&self.runtime), Rc::clone(&self.mailbox));
        self.tasks.spawn(async move {
            let result = runs::write(&runtime, &path, &bytes).await;
            let run = StoredRun { path, through: draft.end.last_lsn };
            mailbox.borrow_mut().push_back(Done::Indexed(result.map(|()| run)));
        });
    }

    pub(super) fn finish_indexing(&mut self, result: Result<StoredRun>) {
        self.indexing.is_writing = false;
        match result {
            Ok(run) => self.indexing.stored.push_back(run),
            Err(error) => self.index_failed(&error),
        }
    }

    fn index_failed(&self, error: &Error) {
        tracing::warn!(group = %self.name, %error, "no index run: the next opening reads the journal instead");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::scan::Owner;
    use crate::units::{FrameNumber, GroupId, IncarnationId, TimelineId};

    fn link(number: u64) -> FrameLink {
        FrameLink {
            incarnation: IncarnationId(3),
            number: FrameNumber(number),
            sum: number,
            segment: SegmentSequence(9),
            last_lsn: Lsn(number),
        }
    }

    fn frame(number: u64, sectors: std::ops::Range<u32>) -> CoveredFrame {
        CoveredFrame { link: link(number), index: SegmentIndex(1), sectors, carries_data: true, seal: None }
    }

    /// An empty frame is the last record's, which the layers may not have seen: then nothing takes it off the trail.
    #[test]
    fn frames_before_an_adopted_run_are_in_no_later_one() {
        let mut indexing = Indexing::new(1);
        indexing.begin(runs::NOTHING);
        indexing.add(frame(100, 0..8));
        indexing.freeze(Lsn::ZERO, None, None);
        let owner = Owner { group: GroupId(1), timeline: TimelineId(2) };
        let (path, parts, layers) = (PathBuf::new(), Vec::new(), Vec::new());
        indexing.adopt(&LoadedRun { path, owner, begin: link(100), end: link(106), parts, layers });
        indexing.add(frame(107, 136..144));
        indexing.freeze(Lsn(107), None, None);
        let draft = indexing.draft.expect("behind the run");
        assert_eq!((draft.begin.number, draft.end.number), (FrameNumber(106), FrameNumber(107)));
        let [part] = &draft.parts[..] else { panic!("one segment") };
        assert_eq!(part.sectors, 136..144);
    }
}
