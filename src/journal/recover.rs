//! What opening makes of the scanned segments: a table of predicates → decision. Pure; `open` applies it.
//!
//! | frames seen | same group and timeline | tail segment there | chain reaches the floor | and what was written | decision |
//! |---|---|---|---|---|---|
//! | no | – | – | floor is zero | – | [`Decision::Fresh`] |
//! | no | – | – | floor above zero | – | refuse: the journal is gone |
//! | yes | no | – | – | – | refuse: another group's journal |
//! | yes | yes | no | – | – | refuse: a segment is missing |
//! | yes | yes | yes | no | – | refuse: durable records are lost |
//! | yes | yes | yes | yes | no | refuse: written records are lost |
//! | yes | yes | yes | yes | yes | [`Decision::Accept`] |
//!
//! **Fresh.** Nothing was ever written, and neither checkpoint nor vault knows of a record: a new group, or one
//! that crashed before its first frame was whole.
//!
//! **The journal is gone.** A checkpoint or the vault names records, but no frame exists: the directory was emptied
//! or exchanged.
//!
//! **Another group's journal.** Serving it would mix two histories.
//!
//! **A segment is missing.** Some frame states that the records from segment T on are needed, and no segment begins
//! with a frame of T. Only headers of this group and timeline are heard.
//!
//! **Durable records are lost.** The unbroken chain from T ends below the *durable floor*: what headers anywhere
//! claim, what checkpoints say is destaged, what the vault holds. It is corruption or a rollback, never a torn
//! tail.
//!
//! **Written records are lost.** The chain reaches the floor, and ends at a frame that was written whole, as those behind it
//! show ([`tail`]): the host has run on since, so nothing has torn it. Somebody may accept that loss.
//!
//! **Accept.** The chain from T is taken, whole; what lies past its end was never acknowledged as durable, and a torn
//! tail is no fault. Payloads of writes in it may have rotted, if their frames were durable: [`admit_rotten`]. Where two
//! openings in segments of their own follow the same frame, the newer one took the place of the other, which had died
//! before it said anything.

use std::collections::HashMap;

use crate::env::BootId;
use crate::format::run::FrameLink;
use crate::journal::refusal::Refusal;
use crate::journal::runs::{Jump, LoadedRun, link_of};
use crate::journal::scan::{Checks, Claims, Owner, Scanned, SegmentScan};
use crate::journal::segments::SegmentIndex;
use crate::journal::tail::{self, Break};
use crate::units::{Lsn, SECTOR_BYTES, SegmentSequence};

/// What is known besides the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Whose journal it must be.
    pub owner: Owner,
    /// The highest record of this timeline that a checkpoint or the vault names.
    pub floor: Lsn,
    /// Where the timeline begins: all of the journal's records are above.
    pub begin: Lsn,
    /// The newest point's record.
    pub vaulted: Lsn,
    /// The boot of the host, if it is known.
    pub boot: Option<BootId>,
    /// Whether it is accepted that records are lost which were acknowledged, but not durable.
    pub accepts_loss: bool,
}

impl Known {
    /// Nothing but whose journal it is.
    pub fn of(owner: Owner) -> Known {
        let (floor, begin, vaulted) = (Lsn::ZERO, Lsn::ZERO, Lsn::ZERO);
        Known { owner, floor, begin, vaulted, boot: None, accepts_loss: false }
    }

    /// What must be there although no sync has covered it: what was written before the frame at which the chain ends was
    /// damaged, if only a process has died since.
    fn written(&self, broken: Option<&Break>, checks: Checks) -> Lsn {
        let counts = |broken: &&Break| checks.written && broken.is_of(self.boot);
        broken.filter(counts).map_or(Lsn::ZERO, |broken| broken.written)
    }
}

/// A part of the accepted chain: frames of a scanned segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Position in the scans.
    pub scan: usize,
    /// The first of its frames that belongs to the part,
    pub from: usize,
    /// and the one after the last.
    pub frames: usize,
    /// The jump over index runs that leads here.
    pub jump: Option<usize>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Begin a new journal.
    Fresh,
    /// Go on after the last of these.
    Accept(Vec<Accepted>),
    /// Do not open.
    Refuse(Refusal),
}

/// The predicates of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Predicates {
    any_frames: bool,
    foreign: Option<SegmentIndex>,
    tail_found: bool,
    headless: Option<SegmentIndex>,
    end: Lsn,
    floor: Lsn,
    broken: Option<Break>,
    written: Lsn,
    vaulted: Lsn,
}

fn decide(predicates: Predicates, chain: Vec<Accepted>) -> Decision {
    let Predicates { any_frames, foreign, tail_found, headless, end, floor, broken, written, vaulted } =
        predicates;
    let lost = broken.filter(|_| end < written);
    match (any_frames, foreign, tail_found, end >= floor, lost) {
        (false, _, _, true, _) => Decision::Fresh,
        (false, _, _, false, _) => Decision::Refuse(Refusal::Gone { floor }),
        (true, Some(segment), _, _, _) => Decision::Refuse(Refusal::Foreign { segment }),
        (true, None, false, _, _) => Decision::Refuse(Refusal::TailMissing { headless }),
        (true, None, true, false, _) => Decision::Refuse(Refusal::BelowFloor { end, floor, broken, vaulted }),
        (true, None, true, true, Some(broken)) => Decision::Refuse(Refusal::WrittenLost { end, broken }),
        (true, None, true, true, None) => Decision::Accept(chain),
    }
}

/// What all scanned headers of an owner claim together.
pub fn claims(scans: &[SegmentScan], owner: Owner, checks: Checks) -> Claims {
    let mut claims = Claims::default();
    for scan in scans {
        claims.merge(scan.claims(owner, checks));
    }
    claims
}

/// Decides what opening does. `jumps` are stretches of the chain that index runs stand for.
pub fn recover(scans: &[SegmentScan], known: Known, checks: Checks, jumps: &[Jump]) -> Decision {
    let claims = claims(scans, known.owner, checks);
    let foreign =
        scans.iter().find(|scan| scan.frames.iter().any(|found| found.frame.owner() != known.owner));
    let first = scans.iter().position(|scan| first_segment_is(scan, claims));
    let chain = first.map(|first| follow(scans, first, checks, jumps)).unwrap_or_default();
    let end =
        chain.last().map_or(Lsn::ZERO, |last| scans[last.scan].frames[last.frames - 1].frame.last_lsn());
    let broken = tail::find(scans, &chain, known.owner);
    let predicates = Predicates {
        any_frames: scans.iter().any(|scan| !scan.frames.is_empty()),
        foreign: foreign.map(|scan| scan.index),
        tail_found: first.is_some(),
        headless: scans.iter().find(|scan| scan.is_headless(known.owner)).map(|scan| scan.index),
        end,
        floor: known.floor.max(claims.durable_through),
        broken,
        written: if known.accepts_loss { Lsn::ZERO } else { known.written(broken.as_ref(), checks) },
        vaulted: known.vaulted,
    };
    decide(predicates, chain)
}

/// What is sound of a journal that opening refuses: the unbroken chain from the oldest of the owner's segments that is there
/// and needed. Of one that opening accepts it is all that is accepted.
pub fn unbroken(scans: &[SegmentScan], owner: Owner, checks: Checks) -> Vec<Accepted> {
    let tail = claims(scans, owner, checks).tail;
    let is_needed = |first: &Scanned| first.frame.owner() == owner && first.frame.segment >= tail;
    let beginnings = scans.iter().enumerate().filter_map(|(position, scan)| {
        scan.frames.first().filter(|first| is_needed(first)).map(|first| (first.frame.segment, position))
    });
    beginnings.min().map(|(_, first)| follow(scans, first, checks, &[])).unwrap_or_default()
}

/// Takes frames that rotted up again, where the chain does not reach without them what must be there; says whether there were any.
///
/// A frame whose records were durable, or written before the host's next boot, was whole once: if its header is, and what follows says that it followed *it*, then
/// only the payloads of some writes rotted, and whoever reads those is told. Above the floor a frame may never have been whole,
/// and is the torn tail that it looks like; so is one behind whose predecessor another segment goes on: there an opening
/// decided so.
pub fn admit_rotten(scans: &mut [SegmentScan], known: Known, checks: Checks) -> bool {
    let heard = claims(scans, known.owner, checks);
    let first = scans.iter().position(|scan| first_segment_is(scan, heard));
    let chain = first.map(|first| follow(scans, first, checks, &[])).unwrap_or_default();
    let written = known.written(tail::find(scans, &chain, known.owner).as_ref(), checks);
    let floor = known.floor.max(heard.durable_through).max(written);
    let counts: Vec<usize> = scans.iter().map(|scan| rotten_frames(scans, scan, floor, checks)).collect();
    for (scan, &count) in scans.iter_mut().zip(&counts) {
        scan.frames.extend(scan.beyond.drain(..count));
    }
    counts.iter().any(|&count| count > 0)
}

/// How many frames beyond the sound ones of a segment were durable.
fn rotten_frames(scans: &[SegmentScan], scan: &SegmentScan, floor: Lsn, checks: Checks) -> usize {
    let before = scan.frames.last().into_iter().chain(&scan.beyond).map(Some);
    let before = scan.frames.is_empty().then_some(None).into_iter().chain(before);
    let is_rotten = |(before, next): &(Option<&Scanned>, &Scanned)| {
        let was_durable = next.frame.last_lsn() <= floor || !checks.floor;
        let was_left = before.is_some_and(|before| next_segment(scans, before, checks).is_some());
        next.damaged.is_empty() || was_durable && !was_left
    };
    before.zip(&scan.beyond).take_while(is_rotten).count()
}

fn first_segment_is(scan: &SegmentScan, claims: Claims) -> bool {
    scan.frames.first().is_some_and(|first| first.frame.segment == claims.tail)
}

/// The parts of the chain that begins with scan `first`.
fn follow(scans: &[SegmentScan], first: usize, checks: Checks, jumps: &[Jump]) -> Vec<Accepted> {
    let mut chain = vec![Accepted { scan: first, from: 0, frames: scans[first].frames.len(), jump: None }];
    // The journal may begin amidst what a run covers.
    let begin = scans[first].frames[0].frame.number;
    let over = |jump: &Jump| jump.begin.number < begin && begin <= jump.end.number;
    if let Some(landed) = jumps.iter().position(over).and_then(|index| land(scans, jumps, index)) {
        chain[0].frames = 0;
        chain.push(landed);
    }
    while let Some(last) = chain.last_mut() {
        if let Some((frames, landed)) = leap(scans, *last, jumps) {
            last.frames = frames;
            chain.push(landed);
            continue;
        }
        let last = &scans[last.scan].frames[last.frames - 1];
        let Some(next) = next_segment(scans, last, checks) else { break };
        chain.push(Accepted { scan: next, from: 0, frames: scans[next].frames.len(), jump: None });
    }
    chain
}

/// The segment that begins with the frame behind `last`. There may be several, where openings died before they had said
/// anything else: each newer one takes the place of those before it.
fn next_segment(scans: &[SegmentScan], last: &Scanned, checks: Checks) -> Option<usize> {
    let begins = |scan: &SegmentScan| {
        let next = scan.frames.first()?;
        let follows = next.frame.segment > last.frame.segment && checks.follows(last.link(), next);
        follows.then_some(next.frame.segment)
    };
    let next = scans.iter().enumerate().filter_map(|(place, scan)| Some((begins(scan)?, place)));
    let chosen = if checks.newest { next.max() } else { next.min() };
    chosen.map(|(_, place)| place)
}

/// How many of the last segments of a chain hold nothing but openings and statements: nobody was ever served what came of
/// them, and an opening that has no room may take their place. Not the first segment: a scan begins there.
pub fn silent_segments(scans: &[SegmentScan], chain: &[Accepted]) -> usize {
    let is_silent = |part: &&Accepted| part.jump.is_none() && scans[part.scan].is_silent();
    chain.iter().skip(1).rev().take_while(is_silent).count()
}

/// The first jump that begins at a frame of `part`: how many of its frames come before, and where the jump leads.
fn leap(scans: &[SegmentScan], part: Accepted, jumps: &[Jump]) -> Option<(usize, Accepted)> {
    let start = part.from.saturating_sub(1);
    let frames = &scans[part.scan].frames[start..part.frames];
    jumps.iter().enumerate().find_map(|(index, jump)| {
        let place = place_of(frames, jump.begin)?;
        Some((start + place + 1, land(scans, jumps, index)?))
    })
}

/// Where a jump leads, if its last frame stands there.
fn land(scans: &[SegmentScan], jumps: &[Jump], index: usize) -> Option<Accepted> {
    let end = jumps[index].end;
    scans.iter().enumerate().find_map(|(scan, found)| {
        let place = place_of(&found.frames, end)?;
        Some(Accepted { scan, from: place + 1, frames: found.frames.len(), jump: Some(index) })
    })
}

fn place_of(frames: &[Scanned], link: FrameLink) -> Option<usize> {
    let first = frames.first()?.frame.number.0;
    let place = usize::try_from(link.number.0.checked_sub(first)?).ok()?;
    frames.get(place).filter(|found| link_of(&found.frame, found.sum) == link).map(|_| place)
}

/// Whether runs and frames say of no place in a segment twice what stands there, as runs of builds of before 23 November 2026 may.
pub fn stand_apart(scans: &[SegmentScan], chain: &[Accepted], jumps: &[Jump], runs: &[LoadedRun]) -> bool {
    let mut ends: HashMap<(SegmentIndex, SegmentSequence), u32> = HashMap::new();
    let mut follows = |place, begin: u32, end: u32| {
        let known = ends.entry(place).or_default();
        let is_behind = begin >= *known;
        *known = end.max(*known);
        is_behind
    };
    chain.iter().all(|part| {
        let jumped = part.jump.map(|jump| &jumps[jump].runs[..]).unwrap_or_default();
        let parts = jumped.iter().flat_map(|&run| &runs[run].parts);
        let listed = parts.filter_map(|(part, listed)| {
            let (first, last) = (listed.payloads.first()?, listed.payloads.last()?);
            Some(((SegmentIndex(part.index), part.sequence), first.sector, last.end()))
        });
        let scan = &scans[part.scan];
        let frames = scan.frames.get(part.from..part.frames).unwrap_or_default().iter().map(|scanned| {
            let sectors = |bytes: u64| u32::try_from(bytes / SECTOR_BYTES).expect("segments are bounded");
            let begin = scanned.frame.segment_offset();
            ((scan.index, scanned.frame.segment), sectors(begin), sectors(scanned.end_offset()))
        });
        listed.chain(frames).all(|(place, begin, end)| follows(place, begin, end))
    })
}

#[cfg(test)]
mod tests;
