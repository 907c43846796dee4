//! The table of recovery, over every input; and chains over segments and jumps.

use std::path::PathBuf;

use super::*;
use crate::format::run::RunPart;
use crate::journal::payloads::{ListedPayloads, StoredPayload};
use crate::journal::runs::NOTHING;
use crate::journal::scan::scan_segment;
use crate::journal::scan::tests::{OURS, frame, put};
use crate::journal::tail::Damage;
use crate::journal::tail::tests::broken;
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
        WrittenLost,
        Accept,
    }
    // Frames seen, all ours, tail segment there, chain reaches the floor, and what was written.
    let table = [
        ([Some(false), None, None, Some(true), None], Row::Fresh),
        ([Some(false), None, None, Some(false), None], Row::Gone),
        ([Some(true), Some(false), None, None, None], Row::Foreign),
        ([Some(true), Some(true), Some(false), None, None], Row::TailMissing),
        ([Some(true), Some(true), Some(true), Some(false), None], Row::BelowFloor),
        ([Some(true), Some(true), Some(true), Some(true), Some(false)], Row::WrittenLost),
        ([Some(true), Some(true), Some(true), Some(true), Some(true)], Row::Accept),
    ];
    let chain = vec![Accepted { scan: 0, from: 0, frames: 1, jump: None }];
    for input in 0..32u8 {
        let input = [1, 2, 4, 8, 16].map(|bit| input & bit != 0);
        let matches = |row: &[Option<bool>; 5]| {
            row.iter().zip(input).all(|(wanted, found)| wanted.is_none_or(|wanted| wanted == found))
        };
        let rows: Vec<_> = table.iter().filter(|(row, _)| matches(row)).collect();
        let [(_, expected)] = &rows[..] else { panic!("{input:?} has {} rows", rows.len()) };
        let [any_frames, ours, tail_found, reaches, has_written] = input;
        for (end, floor) in [(9, 10), (0, 1), (10, 10), (11, 10), (0, 0)] {
            if (end >= floor) != reaches {
                continue;
            }
            let (end, floor) = (Lsn(end), Lsn(floor));
            let foreign = (!ours).then_some(SegmentIndex(3));
            let (headless, vaulted) = (Some(SegmentIndex(4)), Lsn(5));
            let broken = (!has_written).then(broken);
            let written = if has_written { end } else { end.next() };
            let predicates = Predicates {
                any_frames,
                foreign,
                tail_found,
                headless,
                end,
                floor,
                broken,
                written,
                vaulted,
            };
            let row = match decide(predicates, chain.clone()) {
                Decision::Fresh => Row::Fresh,
                Decision::Accept(accepted) if accepted == chain => Row::Accept,
                Decision::Accept(accepted) => panic!("{accepted:?} is not the chain"),
                Decision::Refuse(Refusal::Gone { floor: named }) if named == floor => Row::Gone,
                Decision::Refuse(Refusal::Foreign { segment: SegmentIndex(3) }) => Row::Foreign,
                Decision::Refuse(Refusal::TailMissing { headless: named }) if named == headless => {
                    Row::TailMissing
                }
                Decision::Refuse(Refusal::WrittenLost { end: named, .. }) if named == end => Row::WrittenLost,
                Decision::Refuse(refusal) => {
                    assert_eq!(refusal, Refusal::BelowFloor { end, floor, broken, vaulted });
                    Row::BelowFloor
                }
            };
            assert_eq!(row, *expected, "{predicates:?}");
        }
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

const KNOWN: Known = Known {
    owner: OURS,
    floor: Lsn::ZERO,
    begin: Lsn::ZERO,
    vaulted: Lsn::ZERO,
    boot: None,
    accepts_loss: false,
};

fn below(end: u64, floor: u64, found: Option<Break>) -> Decision {
    Decision::Refuse(Refusal::BelowFloor {
        end: Lsn(end),
        floor: Lsn(floor),
        broken: found,
        vaulted: Lsn::ZERO,
    })
}

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
    let found = tail::find(&scans, &[part(0, 0..2, None)], OURS);
    assert_eq!(found.map(|found| (found.damage, found.behind)), Some((Damage::Missing, 2)));
    let refused = below(20, 59, found);
    assert_eq!(recover(&scans, KNOWN, Checks::ALL, &[]), refused);
    scans.pop();
    assert_eq!(chain(&scans, &[]), [part(0, 0..2, None)]);
    let floor = |floor| recover(&scans, Known { floor: Lsn(floor), ..KNOWN }, Checks::ALL, &[]);
    assert!(matches!(floor(20), Decision::Accept(_)));
    assert_eq!(floor(21), below(20, 21, None));
}

#[test]
fn without_its_first_segment_a_journal_is_refused() {
    let (scans, _) = scans();
    assert_eq!(
        recover(&scans[1..], KNOWN, Checks::ALL, &[]),
        Decision::Refuse(Refusal::TailMissing { headless: None })
    );
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
    assert_eq!(chain(&scans, &[jump(before, links[2])])[..], [&[part(0, 0..0, None)][..], &rest].concat());
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

/// Builds before 23 November 2026 wrote a run that began with what the one before it says.
#[test]
fn runs_that_say_twice_what_stands_in_a_place_do_not_stand_apart() {
    let run = |sector, sectors| {
        let payload = StoredPayload { sector, sectors, sum: 0 };
        let listed = ListedPayloads { payloads: vec![payload], tags: Vec::new() };
        let (sequence, last_lsn) = (SegmentSequence(9), Lsn(1));
        let part = RunPart { index: 1, sequence, last_lsn, payloads: 1, seal: None };
        let (path, owner, layers) = (PathBuf::new(), OURS, Vec::new());
        LoadedRun { path, owner, begin: NOTHING, end: NOTHING, parts: vec![(part, listed)], layers }
    };
    let chain = [Accepted { scan: 0, from: 0, frames: 0, jump: Some(0) }];
    let jumps = [Jump { begin: NOTHING, end: NOTHING, runs: vec![0, 1] }];
    let scans = [scan_segment(SegmentIndex(1), &[], Checks::ALL)];
    for (second, is_apart) in [(56, true), (80, true), (24, false), (8, false), (55, false)] {
        let runs = [run(24, 32), run(second, 4)];
        assert_eq!(stand_apart(&scans, &chain, &jumps, &runs), is_apart, "a second run at {second}");
    }
}
