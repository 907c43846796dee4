//! Chains that end at a damaged frame, made header by header: what is told of it, and from when on it must have been whole.

use super::*;
use crate::format::frame::{Payload, Record, RecordKind};
use crate::journal::commit::{FRAMES_IN_FLIGHT_MAX, WORTHWHILE_BYTES};
use crate::journal::recover::{Decision, Known, admit_rotten, recover};
use crate::journal::refusal::Refusal;
use crate::journal::scan::tests::{OURS, frame, put};
use crate::journal::scan::{Checks, scan_segment};
use crate::units::{DiskSlot, PAGE_BYTES, SectorRange, SegmentSequence};

const BOOT: BootId = BootId(77);
const OTHER_BOOT: BootId = BootId(78);
/// Room behind the last frame, so that none was cut for lack of it.
const ROOM_PAGES: usize = 40;

/// Some break.
pub(crate) fn broken() -> Break {
    Break {
        segment: SegmentIndex(4),
        offset: 8192,
        damage: Damage::Header,
        behind: 5,
        newest: Lsn(0x1_0000_0008),
        written: Lsn(0x1_0000_0006),
        incarnation: IncarnationId(3),
    }
}

/// The frames of one segment, a page each; number `n` holds the record `10 n` if it holds one.
struct Pages {
    bytes: Vec<u8>,
    chain: u64,
    next: u64,
    segment: SegmentSequence,
}

impl Pages {
    fn of(segment: u64, first: u64, chain: u64) -> Pages {
        Pages { bytes: Vec::new(), chain, next: first, segment: SegmentSequence(segment) }
    }

    fn page(&self) -> u32 {
        u32::try_from(self.bytes.len() / PAGE_BYTES).expect("small")
    }

    /// Adds a frame, as `change` makes it.
    fn push(&mut self, records: u64, change: impl FnOnce(&mut Frame)) {
        let mut frame = frame(self.next, self.chain, self.page(), records);
        frame.incarnation = boot::begin(3 << 64, Some(BOOT));
        (frame.segment, frame.tail, frame.durable_through) = (self.segment, SegmentSequence(1), Lsn(9));
        change(&mut frame);
        self.bytes.resize(self.bytes.len() + frame.total_bytes(), 0);
        self.chain = put(&mut self.bytes, &frame);
        self.next += 1;
    }

    fn with(mut self, frames: u64) -> Pages {
        (0..frames).for_each(|_| self.push(1, |_| {}));
        self
    }

    fn flip(mut self, page: usize, byte: usize) -> Pages {
        self.bytes[page * PAGE_BYTES + byte] ^= 4;
        self
    }

    fn scan(&self, index: u32) -> SegmentScan {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len() + ROOM_PAGES * PAGE_BYTES, 0);
        scan_segment(SegmentIndex(index), &bytes, Checks::ALL)
    }
}

fn known(boot: BootId) -> Known {
    Known { boot: Some(boot), ..Known::of(OURS) }
}

/// The break at the end of what is accepted whatever was written.
fn break_of(scans: &[SegmentScan]) -> Option<Break> {
    match recover(scans, known(OTHER_BOOT), Checks::ALL, &[]) {
        Decision::Accept(chain) => find(scans, &chain, OURS),
        other => panic!("{other:?}"),
    }
}

fn told(found: Option<Break>) -> (u32, u64, Damage, usize) {
    let found = found.expect("a break");
    (found.segment.0, found.offset / PAGE_BYTES as u64, found.damage, found.behind)
}

#[test]
fn a_whole_chain_has_no_break_and_neither_have_older_frames_behind_it() {
    assert_eq!(break_of(&[Pages::of(1, 1, 0).with(4).scan(0)]), None);
    let mut used_twice = Pages::of(1, 1, 0).with(6);
    let mut newer = Pages::of(7, 21, 5);
    (0..3).for_each(|_| newer.push(1, |frame| frame.tail = SegmentSequence(7)));
    used_twice.bytes[..newer.bytes.len()].copy_from_slice(&newer.bytes);
    assert_eq!(break_of(&[used_twice.scan(0)]), None);
}

#[test]
fn a_damaged_header_is_told_with_what_stands_behind_it_whichever_field_was_hit() {
    // Magic, version, sum, chain, group, incarnation, number, a descriptor.
    for byte in [0, 8, 16, 24, 32, 64, 80, 130] {
        let scan = Pages::of(1, 1, 0).with(6).flip(3, byte).scan(9);
        assert_eq!(told(break_of(&[scan])), (9, 3, Damage::Header, 2), "byte {byte}");
    }
    let newest = Pages::of(1, 1, 0).with(6).flip(5, 130).scan(9);
    assert_eq!(told(break_of(&[newest])), (9, 5, Damage::Header, 0), "the newest one looks torn");
}

#[test]
fn a_damaged_payload_and_a_page_that_is_gone_are_told_apart() {
    let mut pages = Pages::of(1, 1, 0).with(2);
    let payload = Payload { sector: 0, sectors: 8, sum: 1 };
    let kind = RecordKind::Write { disk: DiskSlot(0), range: SectorRange::new(0, 8) };
    pages.push(0, |frame| (frame.records, frame.payload_pages) = (vec![Record { kind, payload }], 1));
    let mut gone = Pages::of(1, 1, 0).with(7);
    gone.bytes[2 * PAGE_BYTES..3 * PAGE_BYTES].fill(0);
    assert_eq!(told(break_of(&[pages.with(3).scan(9)])), (9, 2, Damage::Payload, 3));
    assert_eq!(told(break_of(&[gone.scan(9)])), (9, 2, Damage::Missing, 4));
}

#[test]
fn a_segment_whose_first_frame_is_damaged_is_named() {
    let first = Pages::of(1, 1, 0).with(3);
    let second = Pages::of(2, 4, first.chain).with(5);
    let (first, sound) = (first.scan(0), second.scan(1));
    assert_eq!(break_of(&[first.clone(), sound]), None);
    let damaged = second.flip(0, 130).scan(1);
    assert_eq!(told(break_of(&[first.clone(), damaged])), (1, 0, Damage::Header, 4));
    let alone = Pages::of(2, 4, first.frames[2].sum).with(1).flip(0, 130).scan(1);
    assert_eq!(told(break_of(&[first, alone])), (1, 0, Damage::Header, 0));
}

#[test]
fn what_another_incarnation_left_says_nothing() {
    let mut pages = Pages::of(1, 1, 0).with(3);
    pages.push(1, |frame| frame.incarnation = IncarnationId(8));
    for _ in 0..20 {
        pages.push(1, |frame| frame.incarnation = IncarnationId(8));
    }
    let scan = pages.flip(3, 16).scan(0);
    let found = break_of(&[scan]).expect("its chain is the last frame's sum");
    assert_eq!((found.behind, found.written), (0, Lsn(30)));
}

/// Of ten frames the fourth is damaged: what behind it must be there that it must have been whole.
#[test]
fn what_was_written_is_told_by_number_and_by_frames_that_were_alone() {
    let in_flight = FRAMES_IN_FLIGHT_MAX as u64;
    let sectors = u32::try_from(WORTHWHILE_BYTES / 1024).expect("small");
    let kind = RecordKind::Write { disk: DiskSlot(0), range: SectorRange::new(0, sectors.into()) };
    let half = |sector| Record { kind, payload: Payload { sector, sectors, sum: 1 } };
    let large = |frame: &mut Frame| {
        (frame.records, frame.payload_pages) = (vec![half(0), half(sectors)], sectors / 4);
    };
    let written = |behind: u64, last_is_large: bool| {
        let mut pages = Pages::of(1, 1, 0).with(4);
        (1..behind).for_each(|_| pages.push(0, large));
        match last_is_large {
            true => pages.push(0, large),
            false => pages.push(1, |_| {}),
        }
        break_of(&[pages.flip(3, 130).scan(0)]).expect("a break").written
    };
    // A large one may be submitted beside others: at most so many are in flight.
    assert_eq!(written(in_flight - 1, true), Lsn(30));
    assert_eq!(written(in_flight, true), Lsn(49), "all up to the record before the next");
    assert_eq!(written(in_flight + 2, true), Lsn(69));
    // A small one waits for all others.
    assert_eq!(written(1, false), Lsn(49));
    assert_eq!(written(3, false), Lsn(69));
}

#[test]
fn a_frame_that_was_cut_for_lack_of_room_or_holds_a_marker_was_not_alone() {
    let mut pages = Pages::of(1, 1, 0).with(6);
    pages.bytes.resize(pages.bytes.len() + PAGE_BYTES, 0);
    let pages = pages.flip(3, 130);
    let scan = scan_segment(SegmentIndex(0), &pages.bytes, Checks::ALL);
    assert_eq!(break_of(&[scan]).expect("a break").written, Lsn(30));
    let mut marked = Pages::of(1, 1, 0).with(4);
    marked.push(0, |frame| {
        frame.records = vec![Record { kind: RecordKind::Seal, payload: Payload::default() }]
    });
    assert_eq!(break_of(&[marked.flip(3, 130).scan(0)]).expect("a break").written, Lsn(30));
    let mut stated = Pages::of(1, 1, 0).with(4);
    stated.push(0, |_| {});
    assert_eq!(
        break_of(&[stated.flip(3, 130).scan(0)]).expect("a break").written,
        Lsn(49),
        "a statement was"
    );
}

#[test]
fn what_was_written_in_this_boot_is_refused_unless_its_loss_is_accepted() {
    let scans = [Pages::of(1, 1, 0).with(6).flip(3, 130).scan(0)];
    let decide = |known| recover(&scans, known, Checks::ALL, &[]);
    let Decision::Refuse(Refusal::WrittenLost { end, broken }) = decide(known(BOOT)) else {
        panic!("{:?}", decide(known(BOOT)));
    };
    assert_eq!((end, broken.written, broken.behind), (Lsn(30), Lsn(59), 2));
    assert!(matches!(decide(known(OTHER_BOOT)), Decision::Accept(_)), "the power may have torn it");
    assert!(matches!(decide(Known::of(OURS)), Decision::Accept(_)), "nobody knows");
    assert!(matches!(decide(Known { accepts_loss: true, ..known(BOOT) }), Decision::Accept(_)));
    let below = decide(Known { accepts_loss: true, floor: Lsn(31), ..known(BOOT) });
    assert!(matches!(below, Decision::Refuse(Refusal::BelowFloor { .. })), "what is durable is not given up");
}

#[test]
fn a_payload_that_was_written_in_this_boot_rotted() {
    let payload = Payload { sector: 0, sectors: 8, sum: 1 };
    let kind = RecordKind::Write { disk: DiskSlot(0), range: SectorRange::new(0, 8) };
    let record = Record { kind, payload };
    for (boot, records) in [(BOOT, 60), (OTHER_BOOT, 20)] {
        let mut pages = Pages::of(1, 1, 0).with(2);
        pages.push(0, |frame| (frame.records, frame.payload_pages) = (vec![record], 1));
        let mut scans = [pages.with(3).scan(0)];
        assert_eq!(admit_rotten(&mut scans, known(boot), Checks::ALL), boot == BOOT);
        match recover(&scans, known(boot), Checks::ALL, &[]) {
            Decision::Accept(chain) => {
                let last = scans[0].frames[chain[0].frames - 1].frame.last_lsn();
                assert_eq!(last, Lsn(records), "{boot:?}");
            }
            other => panic!("{other:?}"),
        }
    }
}
