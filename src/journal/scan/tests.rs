//! Segments made header by header: what is taken, what is only heard, and what is neither.

use super::*;
use crate::format::frame::{Payload, Record};
use crate::units::{DiskSlot, SectorRange, WallNanos};

const SEGMENT: SegmentSequence = SegmentSequence(8);
pub(crate) const OURS: Owner = Owner { group: GroupId(1), timeline: TimelineId(2) };
const THEIRS: Owner = Owner { group: GroupId(9), timeline: TimelineId(2) };

/// A frame of zero records, which take no payload, that stands in `page`.
pub(crate) fn frame(number: u64, chain: u64, page: u32, records: u64) -> Frame {
    let kind =
        RecordKind::Zero { disk: DiskSlot(0), range: SectorRange { start: 0, end: 8 }, allocated: false };
    Frame {
        group: OURS.group,
        timeline: OURS.timeline,
        incarnation: IncarnationId(3),
        number: FrameNumber(number),
        chain,
        first_lsn: Lsn(10 * number),
        durable_through: Lsn(10 * number - 1),
        segment: SEGMENT,
        segment_page: page,
        tail: SegmentSequence(5),
        records: (0..records).map(|_| Record { kind, payload: Payload::default() }).collect(),
        payload_pages: 0,
        seal: None,
    }
}

/// Writes a frame's header where it says that it stands; returns its sum.
pub(crate) fn put(bytes: &mut [u8], frame: &Frame) -> u64 {
    let start = usize::try_from(frame.segment_offset()).expect("small");
    frame.encode_header(&mut bytes[start..start + frame.header_bytes()])
}

fn segment(pages: usize) -> Vec<u8> {
    vec![0; pages * PAGE_BYTES]
}

fn scan(bytes: &[u8]) -> SegmentScan {
    scan_segment(SegmentIndex(4), bytes, Checks::ALL)
}

fn claims(bytes: &[u8]) -> Claims {
    scan(bytes).claims(OURS, Checks::ALL)
}

/// A frame whose payload is not what its sum says.
fn torn(number: u64, chain: u64, page: u32) -> Frame {
    let mut frame = frame(number, chain, page, 0);
    let payload = Payload { sector: 0, sectors: 8, sum: 1 };
    frame.records = vec![Record { kind: RecordKind::Marker, payload }];
    frame.payload_pages = 1;
    frame
}

#[test]
fn frames_are_taken_in_order_up_to_a_left_over() {
    let mut bytes = segment(8);
    let first = put(&mut bytes, &frame(1, 0, 0, 1));
    // Its header takes three pages.
    let second = put(&mut bytes, &frame(2, first, 1, 300));
    put(&mut bytes, &frame(3, second, 4, 0));
    let mut left_over = frame(4, 77, 5, 2);
    left_over.tail = SegmentSequence(7);
    put(&mut bytes, &left_over);
    let scan = scan(&bytes);
    assert_eq!(scan.frames.iter().map(|found| found.frame.number.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(scan.frames[1].sum, second);
    assert_eq!(scan.end, End::Unlinked { offset: 5 * 4096 });
    assert_eq!((scan.index, scan.bytes), (SegmentIndex(4), 8 * 4096));
    let heard = Claims {
        durable_through: Lsn(39),
        tail: SegmentSequence(7),
        segment: SEGMENT,
        last_lsn: Lsn(10 * 2 + 300 - 1),
    };
    assert_eq!(scan.claims(OURS, Checks::ALL), heard);
}

#[test]
fn a_segment_ends_full_or_where_nothing_was_written() {
    let mut bytes = segment(2);
    let first = put(&mut bytes, &frame(1, 0, 0, 1));
    assert_eq!(scan(&bytes).end, End::Fault { offset: 4096, fault: FrameFault::Blank });
    put(&mut bytes, &frame(2, first, 1, 1));
    assert_eq!(scan(&bytes).end, End::Full);
    assert_eq!(scan(&bytes).frames.len(), 2);
    assert_eq!(scan(&[]).end, End::Full);
}

#[test]
fn headers_behind_a_torn_frame_are_heard_and_not_taken() {
    let mut bytes = segment(10);
    let first = put(&mut bytes, &frame(1, 0, 0, 1));
    put(&mut bytes, &torn(2, first, 1));
    // Page 2 is its payload, page 3 was never written.
    put(&mut bytes, &frame(7, 0, 4, 300));
    put(&mut bytes, &frame(8, 0, 7, 1));
    let scan = scan(&bytes);
    assert_eq!(scan.end, End::Fault { offset: 4096, fault: FrameFault::PayloadSum(0) });
    assert_eq!(scan.frames.len(), 1);
    let heard = scan.claims(OURS, Checks::ALL);
    assert_eq!((heard.durable_through, heard.last_lsn), (Lsn(79), Lsn(369)));
}

#[test]
fn a_torn_frame_is_heard_itself_and_in_the_last_page_too() {
    let mut bytes = segment(3);
    put(&mut bytes, &torn(2, 0, 0));
    assert_eq!(claims(&bytes).durable_through, Lsn(19));
    put(&mut bytes, &frame(3, 0, 2, 1));
    assert_eq!(claims(&bytes).durable_through, Lsn(29));
}

#[test]
fn a_frame_that_is_cut_off_is_heard_if_its_header_is_whole() {
    let mut bytes = segment(2);
    let first = put(&mut bytes, &frame(1, 0, 0, 1));
    put(&mut bytes, &torn(2, first, 1));
    let scan = scan(&bytes);
    assert_eq!(scan.end, End::Fault { offset: 4096, fault: FrameFault::Short(8192) });
    assert_eq!(scan.claims(OURS, Checks::ALL).durable_through, Lsn(19));
}

#[test]
fn a_header_that_stands_elsewhere_than_it_says_is_neither_taken_nor_heard() {
    let mut bytes = segment(4);
    let first = put(&mut bytes, &frame(1, 0, 0, 1));
    let copied = frame(2, first, 2, 1);
    copied.encode_header(&mut bytes[4096..8192]);
    let found = scan(&bytes);
    assert_eq!((found.frames.len(), found.end), (1, End::Unlinked { offset: 4096 }));
    // Behind a fault as well.
    let mut bytes = segment(4);
    copied.encode_header(&mut bytes[4096..8192]);
    assert_eq!(claims(&bytes), Claims::default());
    put(&mut bytes, &copied);
    assert_eq!(claims(&bytes).durable_through, Lsn(19));
}

#[test]
fn a_frame_of_another_use_of_the_segment_does_not_follow() {
    let mut bytes = segment(2);
    let first = put(&mut bytes, &frame(1, 0, 0, 1));
    let mut older = frame(2, first, 1, 1);
    older.segment = SegmentSequence(SEGMENT.0 - 1);
    put(&mut bytes, &older);
    assert_eq!(scan(&bytes).end, End::Unlinked { offset: 4096 });
}

#[test]
fn each_owner_is_heard_for_itself() {
    let mut bytes = segment(4);
    let mut foreign = frame(50, 0, 2, 1);
    foreign.group = THEIRS.group;
    put(&mut bytes, &frame(1, 0, 1, 1));
    put(&mut bytes, &foreign);
    let scan = scan(&bytes);
    assert_eq!(scan.owners().collect::<Vec<_>>(), [OURS, THEIRS]);
    assert_eq!(scan.claims(OURS, Checks::ALL).durable_through, Lsn(9));
    assert_eq!(scan.claims(THEIRS, Checks::ALL).durable_through, Lsn(499));
    let all = Checks { owner: false, ..Checks::ALL };
    assert_eq!(scan.claims(OURS, all).durable_through, Lsn(499));
}

#[test]
fn claims_merge_field_by_field() {
    let one = Claims {
        durable_through: Lsn(1),
        tail: SegmentSequence(9),
        segment: SegmentSequence(2),
        last_lsn: Lsn(8),
    };
    let other = Claims {
        durable_through: Lsn(5),
        tail: SegmentSequence(3),
        segment: SegmentSequence(7),
        last_lsn: Lsn(4),
    };
    let mut both = one;
    both.merge(other);
    let most = Claims {
        durable_through: Lsn(5),
        tail: SegmentSequence(9),
        segment: SegmentSequence(7),
        last_lsn: Lsn(8),
    };
    assert_eq!(both, most);
}

#[test]
fn a_segment_is_needless_only_between_never_used_and_the_tail() {
    let needless = |used| is_needless(SegmentSequence(used), SegmentSequence(4));
    assert_eq!([0, 1, 3, 4, 5].map(needless), [false, true, true, false, false]);
}

/// A frame that begins an incarnation, as what it says of its predecessor; what stands in its chain does not matter.
fn opened(number: u64, opening: Opening) -> Scanned {
    let mut frame = frame(number, 0, 1, 1);
    frame.incarnation = IncarnationId(4);
    Scanned { frame, sum: 0, opening: Some(opening), damaged: Vec::new() }
}

#[test]
fn a_frame_follows_by_number_chain_and_incarnation() {
    let last = Link { incarnation: IncarnationId(3), number: FrameNumber(6), sum: 60 };
    let follows = |number, chain, incarnation| {
        let mut frame = frame(number, chain, 1, 1);
        frame.incarnation = IncarnationId(incarnation);
        Checks::ALL.follows(last, &Scanned { frame, sum: 0, opening: None, damaged: Vec::new() })
    };
    assert!(follows(7, 60, 3));
    assert!(!follows(8, 60, 3) && !follows(6, 60, 3));
    assert!(!follows(7, 61, 3));
    assert!(!follows(7, 60, 4));
}

#[test]
fn an_opening_follows_whom_it_names_in_all_it_names() {
    let last = Link { incarnation: IncarnationId(3), number: FrameNumber(6), sum: 60 };
    let sound = Opening {
        predecessor: Some(last.incarnation),
        last_frame: last.number,
        last_sum: last.sum,
        last_lsn: Lsn(65),
        wall: WallNanos(0),
    };
    let follows = |number, opening| Checks::ALL.follows(last, &opened(number, opening));
    assert!(follows(7, sound));
    assert!(!follows(8, sound));
    assert!(!follows(7, Opening { predecessor: Some(IncarnationId(5)), ..sound }));
    assert!(!follows(7, Opening { predecessor: None, ..sound }));
    assert!(!follows(7, Opening { last_frame: FrameNumber(5), ..sound }));
    assert!(!follows(7, Opening { last_sum: 61, ..sound }));
}

#[test]
fn an_opening_is_read_from_its_frame_and_nothing_else_is() {
    let opening = Opening {
        predecessor: None,
        last_frame: FrameNumber(0),
        last_sum: 0,
        last_lsn: Lsn(0),
        wall: WallNanos(5),
    };
    let body = opening.encode();
    let sum = xxhash_rust::xxh3::xxh3_64(&body);
    let sectors = u32::try_from(body.len() / 512).expect("small");
    let payload = Payload { sector: 0, sectors, sum };
    let with = |kind| {
        let mut frame = frame(1, 0, 0, 0);
        frame.records = vec![Record { kind, payload }];
        frame.payload_pages = 1;
        let mut bytes = segment(2);
        put(&mut bytes, &frame);
        bytes[PAGE_BYTES..PAGE_BYTES + body.len()].copy_from_slice(&body);
        read_frame(&bytes, 0).expect("a whole frame")
    };
    let found = with(RecordKind::Opening);
    assert_eq!((found.opening, found.end_offset()), (Some(opening), 8192));
    assert_eq!(with(RecordKind::Marker).opening, None);
}
