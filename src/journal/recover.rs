//! What opening makes of the scanned segments: a table of predicates → decision. Pure; `open` applies it.
//!
//! | frames seen | same group and timeline | tail segment there | chain reaches the floor | decision |
//! |---|---|---|---|---|
//! | no | – | – | floor is zero | [`Decision::Fresh`] |
//! | no | – | – | floor above zero | refuse: the journal is gone |
//! | yes | no | – | – | refuse: another group's journal |
//! | yes | yes | no | – | refuse: a segment is missing |
//! | yes | yes | yes | no | refuse: durable records are lost |
//! | yes | yes | yes | yes | [`Decision::Accept`] |
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
//! **Accept.** The chain from T is taken, whole; what lies past its end was never acknowledged as durable, and a torn
//! tail is no fault. Payloads of writes in it may have rotted, if their frames were durable: [`admit_rotten`]. Where two
//! openings in segments of their own follow the same frame, the newer one took the place of the other, which had died
//! before it said anything.

use crate::error::{Error, ErrorKind};
use crate::format::run::FrameLink;
use crate::journal::runs::{Jump, link_of};
use crate::journal::scan::{Checks, Claims, Owner, Scanned, SegmentScan};
use crate::journal::segments::SegmentIndex;
use crate::units::Lsn;

/// What is known besides the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Whose journal it must be.
    pub owner: Owner,
    /// The highest record of this timeline that a checkpoint or the vault names.
    pub floor: Lsn,
    /// Where the timeline begins: all of the journal's records are above.
    pub begin: Lsn,
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

/// Why a journal is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No frame, but something names records up to here.
    Gone {
        /// The floor.
        floor: Lsn,
    },
    /// A frame belongs to another group or timeline.
    Foreign {
        /// Where it stands.
        segment: SegmentIndex,
    },
    /// The segment from which records are needed is not there.
    TailMissing,
    /// The chain ends below the floor.
    BelowFloor {
        /// Where the chain ends.
        end: Lsn,
        /// What must be there.
        floor: Lsn,
    },
}

impl Refusal {
    /// The error that a person reads.
    pub fn error(self) -> Error {
        let text = match self {
            Refusal::Gone { floor } => format!(
                "the journal is empty, but the vault or a checkpoint knows records up to {floor}: restore the \
                 journal's directory, or move the group's away and adopt its vault"
            ),
            Refusal::Foreign { segment } => {
                format!(
                    "segment {} belongs to another group or timeline: put back this group's files",
                    segment.0
                )
            }
            Refusal::TailMissing => {
                "the oldest segment that is still needed is missing: put its file back, or \
                                     move the group's directory away and adopt its vault"
                    .to_owned()
            }
            Refusal::BelowFloor { end, floor } => format!(
                "the journal ends at record {end}, but records up to {floor} were durable: it is damaged or was \
                 rolled back; inspect it with 'afterimage journal verify', restore its files, or move the group's \
                 directory away and adopt its vault"
            ),
        };
        Error::new(ErrorKind::Corrupt, text)
    }
}

/// The predicates of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Predicates {
    any_frames: bool,
    foreign: Option<SegmentIndex>,
    tail_found: bool,
    end: Lsn,
    floor: Lsn,
}

fn decide(predicates: Predicates, chain: Vec<Accepted>) -> Decision {
    let Predicates { any_frames, foreign, tail_found, end, floor } = predicates;
    match (any_frames, foreign, tail_found, end >= floor) {
        (false, _, _, true) => Decision::Fresh,
        (false, _, _, false) => Decision::Refuse(Refusal::Gone { floor }),
        (true, Some(segment), _, _) => Decision::Refuse(Refusal::Foreign { segment }),
        (true, None, false, _) => Decision::Refuse(Refusal::TailMissing),
        (true, None, true, false) => Decision::Refuse(Refusal::BelowFloor { end, floor }),
        (true, None, true, true) => Decision::Accept(chain),
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
    let predicates = Predicates {
        any_frames: scans.iter().any(|scan| !scan.frames.is_empty()),
        foreign: foreign.map(|scan| scan.index),
        tail_found: first.is_some(),
        end,
        floor: known.floor.max(claims.durable_through),
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

/// Takes frames that rotted up again, where the chain does not reach the floor without them; says whether there were any.
///
/// A frame whose records were durable was whole once: if its header is, and what follows says that it followed *it*, then
/// only the payloads of some writes rotted, and whoever reads those is told. Above the floor a frame may never have been whole,
/// and is the torn tail that it looks like; so is one behind whose predecessor another segment goes on: there an opening
/// decided so.
pub fn admit_rotten(scans: &mut [SegmentScan], known: Known, checks: Checks) -> bool {
    let floor = known.floor.max(claims(scans, known.owner, checks).durable_through);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::scan::scan_segment;
    use crate::journal::scan::tests::{OURS, frame, put};
    use crate::units::{FrameNumber, PAGE_BYTES, SegmentSequence};

    /// The table of the module's header: `None` where a column does not matter. Every input has exactly one row.
    #[test]
    fn every_input_of_the_table_has_its_row() {
        #[derive(Debug, PartialEq, Eq)]
        enum Row {
            Fresh,
            Gone,
            Foreign,
            TailMissing,
            BelowFloor,
            Accept,
        }
        // Frames seen, all ours, tail segment there, chain reaches the floor.
        let table = [
            ([Some(false), None, None, Some(true)], Row::Fresh),
            ([Some(false), None, None, Some(false)], Row::Gone),
            ([Some(true), Some(false), None, None], Row::Foreign),
            ([Some(true), Some(true), Some(false), None], Row::TailMissing),
            ([Some(true), Some(true), Some(true), Some(false)], Row::BelowFloor),
            ([Some(true), Some(true), Some(true), Some(true)], Row::Accept),
        ];
        let chain = vec![Accepted { scan: 0, from: 0, frames: 1, jump: None }];
        for input in 0..16u8 {
            let input = [1, 2, 4, 8].map(|bit| input & bit != 0);
            let matches = |row: &[Option<bool>; 4]| {
                row.iter().zip(input).all(|(wanted, found)| wanted.is_none_or(|wanted| wanted == found))
            };
            let rows: Vec<_> = table.iter().filter(|(row, _)| matches(row)).collect();
            let [(_, expected)] = &rows[..] else { panic!("{input:?} has {} rows", rows.len()) };
            let [any_frames, ours, tail_found, reaches] = input;
            for (end, floor) in [(9, 10), (0, 1), (10, 10), (11, 10), (0, 0)] {
                if (end >= floor) != reaches {
                    continue;
                }
                let (end, floor) = (Lsn(end), Lsn(floor));
                let foreign = (!ours).then_some(SegmentIndex(3));
                let predicates = Predicates { any_frames, foreign, tail_found, end, floor };
                let row = match decide(predicates, chain.clone()) {
                    Decision::Fresh => Row::Fresh,
                    Decision::Accept(accepted) if accepted == chain => Row::Accept,
                    Decision::Accept(accepted) => panic!("{accepted:?} is not the chain"),
                    Decision::Refuse(Refusal::Gone { floor: named }) if named == floor => Row::Gone,
                    Decision::Refuse(Refusal::Foreign { segment: SegmentIndex(3) }) => Row::Foreign,
                    Decision::Refuse(Refusal::TailMissing) => Row::TailMissing,
                    Decision::Refuse(refusal) => {
                        assert_eq!(refusal, Refusal::BelowFloor { end, floor });
                        Row::BelowFloor
                    }
                };
                assert_eq!(row, *expected, "{predicates:?}");
            }
        }
    }

    #[test]
    fn every_refusal_says_how_to_mend_it() {
        let refusals = [
            Refusal::Gone { floor: Lsn(1) },
            Refusal::Foreign { segment: SegmentIndex(1) },
            Refusal::TailMissing,
            Refusal::BelowFloor { end: Lsn(1), floor: Lsn(2) },
        ];
        for refusal in refusals {
            let text = refusal.error().to_string();
            assert!(text.contains("restore") || text.contains("put "), "{text}");
        }
    }

    /// Three segments with two frames each; of frame `n` the number, and the last record, is `10 * n`.
    fn scans() -> (Vec<SegmentScan>, Vec<FrameLink>) {
        let (mut scans, mut links, mut chain) = (Vec::new(), Vec::new(), 0);
        for segment in 1..=3 {
            let mut bytes = vec![0; 3 * PAGE_BYTES];
            for page in 0..2 {
                let mut frame = frame(2 * segment - 1 + u64::from(page), chain, page, 1);
                (frame.segment, frame.tail) = (SegmentSequence(segment), SegmentSequence(1));
                chain = put(&mut bytes, &frame);
                links.push(link_of(&frame, chain));
            }
            let index = SegmentIndex(u32::try_from(segment).expect("small"));
            scans.push(scan_segment(index, &bytes, Checks::ALL));
        }
        (scans, links)
    }

    const KNOWN: Known = Known { owner: OURS, floor: Lsn::ZERO, begin: Lsn::ZERO };

    fn jump(begin: FrameLink, end: FrameLink) -> Jump {
        Jump { begin, end, runs: vec![] }
    }

    fn part(scan: usize, frames: std::ops::Range<usize>, jump: Option<usize>) -> Accepted {
        Accepted { scan, from: frames.start, frames: frames.end, jump }
    }

    /// The chain with these jumps, in whatever order the files are.
    fn chain(scans: &[SegmentScan], jumps: &[Jump]) -> Vec<Accepted> {
        match recover(scans, KNOWN, Checks::ALL, jumps) {
            Decision::Accept(chain) => chain,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_chain_goes_from_segment_to_segment_whatever_their_files() {
        let (mut scans, _) = scans();
        let whole = |order: [usize; 3]| order.map(|scan| part(scan, 0..2, None));
        assert_eq!(chain(&scans, &[]), whole([0, 1, 2]));
        scans.rotate_left(1);
        assert_eq!(chain(&scans, &[]), whole([2, 0, 1]));
    }

    #[test]
    fn the_chain_ends_where_a_segment_is_missing() {
        let (mut scans, _) = scans();
        scans.remove(1);
        let refused = Decision::Refuse(Refusal::BelowFloor { end: Lsn(20), floor: Lsn(59) });
        assert_eq!(recover(&scans, KNOWN, Checks::ALL, &[]), refused);
        scans.pop();
        assert_eq!(chain(&scans, &[]), [part(0, 0..2, None)]);
        let floor = |floor| recover(&scans, Known { floor: Lsn(floor), ..KNOWN }, Checks::ALL, &[]);
        assert!(matches!(floor(20), Decision::Accept(_)));
        assert_eq!(floor(21), Decision::Refuse(Refusal::BelowFloor { end: Lsn(20), floor: Lsn(21) }));
    }

    #[test]
    fn without_its_first_segment_a_journal_is_refused() {
        let (scans, _) = scans();
        assert_eq!(recover(&scans[1..], KNOWN, Checks::ALL, &[]), Decision::Refuse(Refusal::TailMissing));
        let foreign = Known { owner: Owner { group: crate::units::GroupId(77), ..OURS }, ..KNOWN };
        let refused = Decision::Refuse(Refusal::Foreign { segment: SegmentIndex(1) });
        assert_eq!(recover(&scans, foreign, Checks::ALL, &[]), refused);
        assert_eq!(recover(&[], KNOWN, Checks::ALL, &[]), Decision::Fresh);
    }

    #[test]
    fn a_jump_leads_from_the_frame_before_it_to_behind_its_last() {
        let (scans, links) = scans();
        let over = |begin: usize, end: usize| [jump(links[begin - 1], links[end - 1])];
        let rest = part(2, 0..2, None);
        assert_eq!(chain(&scans, &over(2, 4)), [part(0, 0..2, None), part(1, 2..2, Some(0)), rest]);
        assert_eq!(chain(&scans, &over(2, 3)), [part(0, 0..2, None), part(1, 1..2, Some(0)), rest]);
        assert_eq!(chain(&scans, &over(1, 5)), [part(0, 0..1, None), part(2, 1..2, Some(0))]);
        assert_eq!(chain(&scans, &over(1, 6)), [part(0, 0..1, None), part(2, 2..2, Some(0))]);
    }

    #[test]
    fn jumps_follow_one_another() {
        let (scans, links) = scans();
        let jumps = [jump(links[3], links[5]), jump(links[0], links[2])];
        let parts = [part(0, 0..1, None), part(1, 1..2, Some(1)), part(2, 2..2, Some(0))];
        assert_eq!(chain(&scans, &jumps), parts);
        let at_once = [jump(links[0], links[2]), jump(links[2], links[4])];
        let parts = [part(0, 0..1, None), part(1, 1..1, Some(0)), part(2, 1..2, Some(1))];
        assert_eq!(chain(&scans, &at_once), parts);
    }

    #[test]
    fn a_journal_may_begin_amidst_what_a_jump_is_over() {
        let (scans, links) = scans();
        let before = FrameLink { number: FrameNumber(0), ..links[0] };
        let rest = [part(1, 1..2, Some(0)), part(2, 0..2, None)];
        assert_eq!(
            chain(&scans, &[jump(before, links[2])])[..],
            [&[part(0, 0..0, None)][..], &rest].concat()
        );
        // Of what ends before the journal's first frame nothing is to be jumped over.
        let older = FrameLink { number: FrameNumber(0), sum: 1, ..before };
        assert_eq!(chain(&scans, &[jump(before, older)]).len(), 3);
    }

    #[test]
    fn a_jump_that_lands_nowhere_is_not_taken() {
        let (scans, links) = scans();
        let plain = chain(&scans, &[]);
        for end in [
            FrameLink { sum: 1, ..links[3] },
            FrameLink { number: FrameNumber(9), ..links[3] },
            FrameLink { number: FrameNumber(2), ..links[3] },
        ] {
            assert_eq!(chain(&scans, &[jump(links[1], end)]), plain);
        }
        assert_eq!(chain(&scans, &[jump(FrameLink { sum: 1, ..links[1] }, links[3])]), plain);
    }
}
