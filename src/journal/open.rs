//! Opening a journal: lock and scan its segments, decide, apply.
//!
//! Segments are synced before they are read, and read from the device: what is accepted is durable before anyone may be
//! told of it, also where the last sync of a dead owner failed. Only segments that may still be needed are read whole, the one that
//! was begun last first, and of these only the ones that no index run speaks for; after a clean stop, none that was never used.
//! The opening frame that names the predecessor is the writer's first, and is synced before the group
//! serves.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use futures::stream::{self, StreamExt};

use crate::error::Result;
use crate::format::marker::Opening;
use crate::format::run::FrameLink;
use crate::journal::keys::JournalKeys;
use crate::journal::recover::{
    Accepted, Decision, Known, admit_rotten, claims, recover, silent_segments, stand_apart,
};
use crate::journal::runs::{self, Jump, LoadedRun, Needs, link_of};
use crate::journal::scan::{Checks, Scanned, SegmentScan, is_needless, scan_segment};
use crate::journal::segment_read::{Unread, read_head, read_segment};
use crate::journal::segments::{Segment, SegmentIndex, Segments, create, open_all};
use crate::journal::tail::{self, Break};
use crate::journal::writer::Position;
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::units::{FrameNumber, Lsn, PAGE_BYTES, SegmentSequence};

/// Segments that are read at a time.
const SEGMENTS_READ_AHEAD: usize = 3;
/// First pages that are read at a time.
const HEADS_READ_AHEAD: usize = 32;
/// What an opening must have room for: its own frame, a page of header and one of payload; the marker that may have to end
/// an interval, as much; and an empty frame, before any segment is free.
const OPENING_BYTES: u64 = 5 * PAGE_BYTES as u64;

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
    /// What was accepted, in order.
    pub accepted: Vec<Recovered>,
    /// The last accepted frame; `None` in a new journal.
    pub last: Option<FrameLink>,
    /// Bytes read to find all that.
    pub scanned_bytes: u64,
    /// The damaged frame at which it ends, if there is one: that and what is behind it is not accepted.
    pub broken: Option<Break>,
}

/// A piece of what was accepted.
pub enum Recovered {
    /// A frame, and where it stands.
    Frame(SegmentIndex, Box<Scanned>),
    /// What a run says instead of frames.
    Run(LoadedRun),
}

impl Recovered {
    /// The record before its first one.
    pub fn after(&self) -> Lsn {
        match self {
            Recovered::Frame(_, scanned) => runs::before(&scanned.frame).last_lsn,
            Recovered::Run(run) => run.begin.last_lsn,
        }
    }
}

/// Opens the journal in `plan.directory`, which exists.
pub async fn open(
    runtime: Rc<Runtime>,
    plan: &JournalPlan,
    known: Known,
    needs: &Needs,
    keys: &JournalKeys,
    planted: Planted,
) -> Result<OpenedJournal> {
    let checks = Checks {
        chain: !planted.is(Bug::NoChainCheck),
        incarnation: !planted.is(Bug::NoIncarnationCheck),
        owner: !planted.is(Bug::GuestPagesBelieved),
        newest: !planted.is(Bug::ReplacedOpeningFollowed),
        floor: !planted.is(Bug::TornTailTakenForRot),
        unread: !planted.is(Bug::UnreadTakenForTorn),
        written: !planted.is(Bug::RotTakenForTornTail),
    };
    let (files, run_names) = open_all(&runtime, &plan.directory).await?;
    settle(&runtime, &files, planted).await?;
    let runs = runs::load(&runtime, &plan.directory, &run_names).await;
    let mut survey = Survey::of_heads(&runtime, &files, known, checks).await?;
    let (mut chain, jumps) = survey.chain(&plan.directory, &runs, needs).await?;
    let Survey { scans, .. } = survey;
    remove_unused(&runtime, plan, &run_names, &runs, &jumps).await?;
    let broken = tail::find(&scans, &chain, known.owner);
    let newest = claims(&scans, known.owner, checks);
    let reached = chain.last().map_or(known.begin, |last| last_frame(&scans, last).frame.last_lsn());
    let taken: Vec<SegmentIndex> = chain.iter().map(|part| scans[part.scan].index).collect();
    let has_room = chain.last().is_some_and(|last| has_room(&scans, last));
    if !has_room {
        chain.truncate(chain.len() - silent_segments(&scans, &chain));
    }
    let last = chain.last().map(|last| last_frame(&scans, last).clone());
    let opening = opening_after(last.as_ref(), &runtime);
    let number = last.as_ref().map_or(FrameNumber(1), |last| last.frame.number.next());
    let uses = scans.iter().map(|scan| scan.claims(known.owner, checks).segment).collect::<Vec<_>>();
    let mut accepted = accept(&scans, &chain, &jumps, runs);
    tell_rotten(&accepted, &files);
    let frames = chain.iter().flat_map(|part| &scans[part.scan].frames[..part.frames]);
    // These are synced by now; what frames past the end of the chain state may be gone after a power cut.
    let tail = frames.map(|scanned| scanned.frame.tail).max().unwrap_or_default();
    let begin = chain.first().map_or(SegmentSequence(0), |part| scans[part.scan].frames[0].frame.segment);
    let mut segments = Segments::new(plan.directory.clone(), plan.segment_bytes, plan.journal_bytes);
    let rest = adopt_live(files, begin, &mut accepted, &mut segments, keys)?;
    for (file, &seen) in rest.into_iter().zip(&uses) {
        if let Some(file) = file {
            segments.adopt_needless(file, seen, tail, number);
        }
    }
    let mut position = Position {
        segment: None,
        offset: 0,
        next_frame: number,
        chain: last.as_ref().map_or(0, |last| last.sum),
        accepted: reached,
        newest: newest.last_lsn.max(known.begin),
    };
    if has_room {
        position.segment = segments.live().last().cloned();
        position.offset = last.as_ref().map_or(0, Scanned::end_offset);
    } else {
        position.segment = Some(take_seat(&runtime, &mut segments, newest.tail, &taken).await?);
    }
    let scanned_bytes = scans.iter().map(|scan| scan.bytes).sum();
    let last = last.map(|last| link_of(&last.frame, last.sum));
    Ok(OpenedJournal { segments, position, opening, accepted, last, scanned_bytes, broken })
}

/// Names the records that rotted: whoever needs one of them finds that out, too.
fn tell_rotten(accepted: &[Recovered], files: &[Segment]) {
    for piece in accepted {
        let Recovered::Frame(index, scanned) = piece else { continue };
        let frame = &scanned.frame;
        for &record in &scanned.damaged {
            let payload = frame.records[record].payload;
            let offset = frame.segment_offset() + frame.payload_range(payload).start as u64;
            let path = files.iter().find(|file| file.index == *index).map(|file| file.path.display());
            let lsn = frame.first_lsn.advance(record as u64);
            tracing::error!(path = path.map(tracing::field::display), offset, %lsn, "a record in the journal is not what was written, or is not given");
        }
    }
}

fn last_frame<'a>(scans: &'a [SegmentScan], part: &Accepted) -> &'a Scanned {
    &scans[part.scan].frames[part.frames - 1]
}

/// Whether an opening fits behind the last accepted frame, with what may have to follow it.
fn has_room(scans: &[SegmentScan], last: &Accepted) -> bool {
    scans[last.scan].bytes - last_frame(scans, last).end_offset() >= OPENING_BYTES
}

/// The segment of an opening that has no room behind the last accepted frame: a free one; else one that an opening took
/// which came to nothing, and that no scan will look for; else a new one, whatever the limit.
async fn take_seat(
    runtime: &Rc<Runtime>,
    segments: &mut Segments,
    tail: SegmentSequence,
    accepted: &[SegmentIndex],
) -> Result<Rc<Segment>> {
    if !segments.has_free() {
        segments.free_dead(tail, accepted);
    }
    if !segments.has_free() {
        let (index, path, bytes) = segments.begin_creation_beyond_limit();
        segments.created(create(Rc::clone(runtime), index, path, bytes).await?);
    }
    Ok(segments.take(false).expect("one is free now"))
}

/// What is accepted, piece by piece.
fn accept(scans: &[SegmentScan], chain: &[Accepted], jumps: &[Jump], runs: Vec<LoadedRun>) -> Vec<Recovered> {
    let mut runs: Vec<Option<LoadedRun>> = runs.into_iter().map(Some).collect();
    let mut accepted = Vec::new();
    for part in chain {
        let jumped = part.jump.map(|jump| &jumps[jump].runs[..]).unwrap_or_default();
        accepted.extend(jumped.iter().filter_map(|&run| runs[run].take()).map(Recovered::Run));
        let scan = &scans[part.scan];
        let frames = scan.frames.get(part.from..part.frames).unwrap_or_default();
        accepted.extend(frames.iter().map(|frame| Recovered::Frame(scan.index, Box::new(frame.clone()))));
    }
    accepted
}

/// Removes the runs that say nothing of what was accepted, before others may get their names.
async fn remove_unused(
    runtime: &Rc<Runtime>,
    plan: &JournalPlan,
    names: &[String],
    runs: &[LoadedRun],
    jumps: &[Jump],
) -> Result<()> {
    let used: Vec<&PathBuf> = jumps.iter().flat_map(|jump| &jump.runs).map(|&run| &runs[run].path).collect();
    let unused: Vec<PathBuf> =
        names.iter().map(|name| plan.directory.join(name)).filter(|path| !used.contains(&path)).collect();
    if unused.is_empty() {
        return Ok(());
    }
    for path in unused {
        runtime.remove(path).await?;
    }
    runtime.sync_directory(&plan.directory).await
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

/// The segments, as far as they had to be read.
struct Survey<'a> {
    runtime: &'a Rc<Runtime>,
    files: &'a [Segment],
    known: Known,
    checks: Checks,
    /// How each file is used, going by the header at its start.
    uses: BTreeMap<SegmentIndex, SegmentSequence>,
    /// What stands in each: all of it, or that header only.
    scans: Vec<SegmentScan>,
    is_whole: Vec<bool>,
    /// Those that begin with a page of zeros: never used, as it seems.
    is_blank: Vec<bool>,
    /// Whether those are read, too.
    reads_blank: bool,
    /// What the device did not give of some.
    unread: BTreeMap<usize, Unread>,
}

impl<'a> Survey<'a> {
    async fn of_heads(
        runtime: &'a Rc<Runtime>,
        files: &'a [Segment],
        known: Known,
        checks: Checks,
    ) -> Result<Survey<'a>> {
        let reads = files.iter().map(|segment| read_head(runtime, segment));
        let mut reads = stream::iter(reads).buffered(HEADS_READ_AHEAD);
        let mut scans: Vec<SegmentScan> = Vec::with_capacity(files.len());
        let mut is_blank = Vec::with_capacity(files.len());
        while let Some(head) = reads.next().await {
            let head = head?;
            scans.push(scan_segment(files[scans.len()].index, &head, checks));
            is_blank.push(head.iter().all(|&byte| byte == 0));
        }
        let used = |scan: &SegmentScan| (scan.index, scan.claims(known.owner, checks).segment);
        let (uses, is_whole) = (scans.iter().map(used).collect(), vec![false; files.len()]);
        let unread = BTreeMap::new();
        Ok(Survey {
            runtime,
            files,
            known,
            checks,
            uses,
            scans,
            is_whole,
            is_blank,
            reads_blank: false,
            unread,
        })
    }

    /// The chain that is accepted, and the jumps in it. Where it leaves no room, its end is read frame by frame.
    async fn chain(
        &mut self,
        directory: &Path,
        runs: &[LoadedRun],
        needs: &Needs,
    ) -> Result<(Vec<Accepted>, Vec<Jump>)> {
        let mut runs = runs;
        loop {
            let (decision, jumps) = self.complete(runs, needs).await?;
            let chain = match decision {
                Decision::Fresh => Vec::new(),
                Decision::Accept(chain) => chain,
                Decision::Refuse(refusal) => return Err(refusal.error().at_path(directory)),
            };
            let hides_silence = |last: &Accepted| {
                let is_landing = last.jump.is_some() && self.scans[last.scan].is_silent();
                is_landing && !has_room(&self.scans, last)
            };
            if !chain.last().is_some_and(hides_silence) {
                return Ok((chain, jumps));
            }
            runs = &[];
        }
    }

    /// Reads what has to be read, and decides. Where a run turns out to lead nowhere, all are forgotten: the segments
    /// say it all again.
    async fn complete(&mut self, runs: &[LoadedRun], needs: &Needs) -> Result<(Decision, Vec<Jump>)> {
        let mut runs = runs;
        // What it says last of where the journal begins spares reading what was needed when it was begun.
        self.read_whole(&self.begun_last()).await?;
        loop {
            let tail = self.tail();
            let jumps = runs::jumps(runs, self.known.owner, &self.uses, tail, needs);
            self.read_wanted(tail, &jumps).await?;
            if self.tail() > tail {
                continue;
            }
            let strictly = Known { accepts_loss: false, ..self.known };
            let mut decision = recover(&self.scans, strictly, self.checks, &jumps);
            if !self.reads_blank && self.is_blank.contains(&true) && !self.ends_sealed(&decision) {
                self.reads_blank = true;
                continue;
            }
            let is_refused = matches!(decision, Decision::Refuse(_)) || !self.checks.floor;
            // What rotted is looked for only where the group would be refused without it.
            if is_refused && jumps.is_empty() {
                admit_rotten(&mut self.scans, self.known, self.checks);
                decision = recover(&self.scans, self.known, self.checks, &jumps);
            }
            let taken = match &decision {
                Decision::Accept(chain) => chain.iter().filter(|part| part.jump.is_some()).count(),
                Decision::Fresh | Decision::Refuse(_) => 0,
            };
            let is_apart = match &decision {
                Decision::Accept(chain) => stand_apart(&self.scans, chain, &jumps, runs),
                Decision::Fresh | Decision::Refuse(_) => true,
            };
            if taken == jumps.len() && is_apart {
                self.refuse_unknown()?;
                return Ok((decision, jumps));
            }
            tracing::warn!("index runs do not fit the journal's segments, which are read instead");
            runs = &[];
        }
    }

    /// The segment that was begun last, unless it is read already.
    fn begun_last(&self) -> Vec<usize> {
        let used = |index: &usize| self.uses[&self.files[*index].index];
        let last = (0..self.files.len()).max_by_key(used);
        last.filter(|last| used(last) > SegmentSequence(0) && !self.is_whole[*last]).into_iter().collect()
    }

    /// Reads the segments that nobody passes over, and that are not known to be needless.
    async fn read_wanted(&mut self, tail: SegmentSequence, jumps: &[Jump]) -> Result<()> {
        let used = |index: usize| self.uses[&self.files[index].index];
        let is_left = |index: usize| self.is_whole[index] || self.is_blank[index] && !self.reads_blank;
        let is_wanted = |&index: &usize| is_wanted(is_left(index), used(index), tail, jumps);
        let wanted: Vec<usize> = (0..self.files.len()).filter(is_wanted).collect();
        self.read_whole(&wanted).await
    }

    async fn read_whole(&mut self, wanted: &[usize]) -> Result<()> {
        // A large buffer's fresh pages cost as much as its content: each serves again once it is scanned.
        let scanned = RefCell::new(Vec::new());
        let reads = wanted.iter().map(|&index| read_segment(self.runtime, &self.files[index], &scanned));
        // The device reads the next segments while this thread sums the one before.
        let mut reads = stream::iter(reads.collect::<Vec<_>>()).buffered(SEGMENTS_READ_AHEAD);
        for &index in wanted {
            let (bytes, unread) = reads.next().await.expect("one read for each wanted segment")?;
            self.scans[index] = scan_segment(self.files[index].index, &bytes, self.checks);
            self.unread.extend(unread.map(|unread| (index, unread)));
            self.is_whole[index] = true;
            scanned.borrow_mut().push(bytes);
        }
        Ok(())
    }

    /// Whether the chain ends with a seal, and no header says that anything follows: then nothing was written behind it. What is written there
    /// begins with an opening, which is durable before anything else is, and which takes the place behind the seal, or the first one
    /// of a segment. So a segment that begins with zeros was not used since, and need not be read.
    fn ends_sealed(&self, decision: &Decision) -> bool {
        let Decision::Accept(chain) = decision else { return false };
        let Some(last) = chain.last() else { return false };
        let frames =
            self.scans[last.scan].frames[last.from..last.frames].iter().map(|scanned| &scanned.frame);
        // An empty frame says that the seal is durable.
        let last = frames.rev().find(|frame| !frame.records.is_empty());
        let newest = claims(&self.scans, self.known.owner, self.checks).last_lsn;
        last.is_some_and(|last| last.is_seal() && last.last_lsn() == newest)
    }

    /// Where the device does not give bytes of a segment, it must be known by a frame's header what stands there: else it may be a
    /// frame that somebody was told of, or one that says what the journal holds.
    fn refuse_unknown(&mut self) -> Result<()> {
        let is_known = |index: &usize, unread: &Unread| {
            let frames = &self.scans[*index].frames;
            unread.pages().all(|page| frames.iter().any(|scanned| scanned.frame.holds_payload(page)))
        };
        let unknown = self.unread.iter().find(|(index, unread)| !is_known(index, unread));
        match unknown.map(|(&index, _)| index).filter(|_| self.checks.unread) {
            Some(index) => Err(self.unread.remove(&index).expect("it was found").into_error()),
            None => Ok(()),
        }
    }

    fn tail(&self) -> SegmentSequence {
        claims(&self.scans, self.known.owner, self.checks).tail
    }
}

/// Whether a segment that is `used` so has to be read, unless it is left. The first one always has: the chain begins in it.
fn is_wanted(is_left: bool, used: SegmentSequence, tail: SegmentSequence, jumps: &[Jump]) -> bool {
    let is_passed = used > tail && jumps.iter().any(|jump| jump.passes_over(used));
    !is_left && !is_passed && !is_needless(used, tail)
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

/// Takes the segments of what was accepted, from `begin` on, into use; gives the others back. In a sealed group each
/// accepted frame's header must bear its tag.
fn adopt_live(
    files: Vec<Segment>,
    begin: SegmentSequence,
    accepted: &mut [Recovered],
    segments: &mut Segments,
    keys: &JournalKeys,
) -> Result<Vec<Option<Segment>>> {
    let places: HashMap<SegmentIndex, usize> =
        files.iter().enumerate().map(|(place, file)| (file.index, place)).collect();
    let mut live: BTreeMap<SegmentSequence, usize> = BTreeMap::new();
    for piece in accepted {
        match piece {
            Recovered::Frame(index, scanned) => {
                let place = places[index];
                let key = keys.of_frame(&scanned.frame, scanned.opening.as_ref());
                let key = key.map_err(|error| error.at_path(&files[place].path))?;
                files[place].takes_frame(&scanned.frame, key.as_ref());
                live.insert(scanned.frame.segment, place);
            }
            Recovered::Run(run) => {
                for (part, payloads) in run.parts.iter_mut().filter(|(part, _)| part.sequence >= begin) {
                    let place = places[&SegmentIndex(part.index)];
                    let key = match part.seal {
                        Some(seal) => keys.of(seal.incarnation, Some(seal.generation)),
                        None => keys.of(run.end.incarnation, None),
                    };
                    let key = key.map_err(|error| error.at_path(&run.path))?;
                    let listed = std::mem::take(payloads);
                    files[place].takes_part(run.end.number, part.last_lsn, listed, key.as_ref());
                    live.insert(part.sequence, place);
                }
            }
        }
    }
    let mut files: Vec<Option<Segment>> = files.into_iter().map(Some).collect();
    for (sequence, place) in live {
        segments.adopt_live(files[place].take().expect("a file has one use"), sequence);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::runs::NOTHING;
    use crate::journal::scan::tests::frame;

    /// Disks whose files cannot be had go by it: they need nothing of the journal up to there.
    #[test]
    fn what_is_accepted_begins_behind_the_record_before_it() {
        let scanned = Scanned { frame: frame(7, 0, 0, 3), sum: 0, opening: None, damaged: Vec::new() };
        assert_eq!(Recovered::Frame(SegmentIndex(0), Box::new(scanned)).after(), Lsn(69));
    }

    #[test]
    fn what_is_needless_or_passed_over_is_not_read() {
        let link = |segment| FrameLink { segment: SegmentSequence(segment), ..NOTHING };
        let jump = |begin, end| Jump { begin: link(begin), end: link(end), runs: vec![] };
        let wanted = |tail, jumps: &[Jump]| {
            let wanted = |used: &u64| is_wanted(false, SegmentSequence(*used), SegmentSequence(tail), jumps);
            (0..10).filter(wanted).collect::<Vec<_>>()
        };
        // Whether what was never used holds anything, only reading it tells.
        assert_eq!(wanted(4, &[]), [0, 4, 5, 6, 7, 8, 9]);
        assert_eq!(wanted(4, &[jump(5, 8)]), [0, 4, 5, 8, 9]);
        assert_eq!(wanted(4, &[jump(4, 6), jump(6, 9)]), [0, 4, 6, 9]);
        assert_eq!(wanted(4, &[jump(2, 7)]), [0, 4, 7, 8, 9]);
        assert_eq!(wanted(0, &[]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let again = |used: u64| is_wanted(true, SegmentSequence(used), SegmentSequence(4), &[]);
        assert!(!(0..10).any(again), "nothing is read twice");
    }
}
