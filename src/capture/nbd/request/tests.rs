//! Every command, flag and kind of range against the answer that the protocol wants.

use super::*;
use crate::block::TestId;
use crate::units::{DiskId, GroupId};

const SIZE: u64 = 1 << 20;

fn negotiated() -> Negotiated {
    let export = Export::Disk(GroupId(1), DiskId(2));
    Negotiated { export, size: SIZE, read_only: false, structured: true, allocation: true }
}

fn header(kind: u16, flags: u16, offset: u64, length: u32) -> RequestHeader {
    RequestHeader {
        magic: NBD_REQUEST_MAGIC.into(),
        flags: flags.into(),
        kind: kind.into(),
        cookie: 7.into(),
        offset: offset.into(),
        length: length.into(),
    }
}

fn name(code: ErrorCode) -> &'static str {
    match code {
        NBD_EPERM => "EPERM",
        NBD_EINVAL => "EINVAL",
        NBD_ENOSPC => "ENOSPC",
        NBD_EOVERFLOW => "EOVERFLOW",
        other => panic!("unexpected {other:?}"),
    }
}

fn outcome(negotiated: &Negotiated, kind: u16, flags: u16, offset: u64, length: u32) -> &'static str {
    match classify(&header(kind, flags, offset, length), negotiated) {
        Verdict::Ask(..) | Verdict::Write { .. } => "ask",
        Verdict::Done => "done",
        Verdict::Refuse(fault) => name(fault.code),
        Verdict::Disconnect => "disc",
    }
}

#[test]
fn every_command_on_every_kind_of_range() {
    let ranges: [(u64, u32); 9] = [
        (0, 4096),             // within
        (SIZE - 512, 512),     // the last sector
        (100, 512),            // offset not in whole sectors
        (512, 100),            // length not in whole sectors
        (SIZE - 512, 1024),    // partly beyond
        (SIZE, 512),           // wholly beyond
        (u64::MAX - 511, 512), // the end overflows
        (SIZE, 0),             // empty, at the end
        (SIZE + 512, 0),       // empty, beyond
    ];
    let (inval, nospc) = ("EINVAL", "ENOSPC");
    let table: [(u16, [&str; 9]); 9] = [
        (NBD_CMD_READ, ["ask", "ask", inval, inval, inval, inval, inval, "done", inval]),
        (NBD_CMD_WRITE, ["ask", "ask", inval, inval, nospc, nospc, nospc, "done", nospc]),
        (NBD_CMD_DISC, ["disc"; 9]),
        (NBD_CMD_FLUSH, [inval; 9]),
        (NBD_CMD_TRIM, ["ask", "ask", inval, inval, inval, inval, inval, "done", inval]),
        (NBD_CMD_CACHE, ["done", "done", inval, inval, inval, inval, inval, "done", inval]),
        (NBD_CMD_WRITE_ZEROES, ["ask", "ask", inval, inval, nospc, nospc, nospc, "done", nospc]),
        (NBD_CMD_BLOCK_STATUS, ["ask", "ask", inval, inval, inval, inval, inval, inval, inval]),
        (8, [inval; 9]),
    ];
    for (kind, expected) in table {
        for ((offset, length), expected) in ranges.into_iter().zip(expected) {
            let outcome = outcome(&negotiated(), kind, 0, offset, length);
            assert_eq!(outcome, expected, "command {kind} at {offset} for {length}");
        }
    }
    assert_eq!(outcome(&negotiated(), NBD_CMD_FLUSH, 0, 0, 0), "ask");
}

#[test]
fn every_command_with_every_flag() {
    const FUA: u16 = NBD_CMD_FLAG_FUA;
    let accepted: [(u16, u16); 8] = [
        (NBD_CMD_READ, FUA | NBD_CMD_FLAG_DF),
        (NBD_CMD_WRITE, FUA),
        (NBD_CMD_DISC, u16::MAX),
        (NBD_CMD_FLUSH, FUA),
        (NBD_CMD_TRIM, FUA),
        (NBD_CMD_CACHE, FUA),
        (NBD_CMD_WRITE_ZEROES, FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO),
        (NBD_CMD_BLOCK_STATUS, FUA | NBD_CMD_FLAG_REQ_ONE),
    ];
    for (kind, accepted) in accepted {
        let length = if kind == NBD_CMD_FLUSH { 0 } else { 512 };
        for flag in (0..16).map(|bit| 1_u16 << bit) {
            let refused = outcome(&negotiated(), kind, flag, 0, length) == "EINVAL";
            assert_eq!(refused, accepted & flag == 0, "command {kind} with flag {flag:#x}");
        }
    }
}

#[test]
fn a_test_failover_offers_and_takes_no_fast_zeros() {
    let test = Negotiated { export: Export::Test(GroupId(1), DiskId(2), TestId(3)), ..negotiated() };
    assert_eq!(test.transmission_flags(), negotiated().transmission_flags() & !NBD_FLAG_SEND_FAST_ZERO);
    assert_eq!(outcome(&test, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0, 512), "EINVAL");
    assert_eq!(outcome(&test, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, 0, 512), "ask");
}

#[test]
fn what_was_not_negotiated_is_refused() {
    let plain = Negotiated { structured: false, allocation: false, ..negotiated() };
    assert_eq!(outcome(&plain, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 512), "EINVAL");
    assert_eq!(outcome(&plain, NBD_CMD_BLOCK_STATUS, 0, 0, 512), "EINVAL");
    assert_eq!(outcome(&plain, NBD_CMD_READ, 0, 0, 512), "ask");
}

#[test]
fn a_read_only_export_refuses_what_writes_and_nothing_else() {
    let read_only = Negotiated { read_only: true, ..negotiated() };
    for kind in NBD_CMD_READ..=NBD_CMD_BLOCK_STATUS {
        let length = if kind == NBD_CMD_FLUSH { 0 } else { 512 };
        let writes = matches!(kind, NBD_CMD_WRITE | NBD_CMD_TRIM | NBD_CMD_WRITE_ZEROES);
        assert_eq!(outcome(&read_only, kind, 0, 0, length) == "EPERM", writes, "command {kind}");
    }
    let changes = NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    assert_eq!(
        read_only.transmission_flags(),
        negotiated().transmission_flags() & !changes | NBD_FLAG_READ_ONLY
    );
    assert_ne!(read_only.transmission_flags() & NBD_FLAG_CAN_MULTI_CONN, 0);
}

#[test]
fn what_carries_data_is_bound_by_the_maximum_block_size() {
    let large = Negotiated { size: 8 << 30, ..negotiated() };
    let above = BLOCK_SIZE_MAX + 512;
    assert_eq!(outcome(&large, NBD_CMD_READ, 0, 0, BLOCK_SIZE_MAX), "ask");
    assert_eq!(outcome(&large, NBD_CMD_READ, 0, 0, above), "EINVAL");
    assert_eq!(outcome(&large, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, above), "EOVERFLOW");
    assert_eq!(outcome(&large, NBD_CMD_WRITE, 0, 0, BLOCK_SIZE_MAX), "ask");
    for offset in [0, large.size, large.size + 512] {
        assert_eq!(outcome(&large, NBD_CMD_WRITE, 0, offset, above), "EINVAL");
        assert_eq!(outcome(&large, NBD_CMD_WRITE, 0, offset, u32::MAX), "EINVAL");
    }
    for kind in [NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES, NBD_CMD_BLOCK_STATUS] {
        assert_eq!(outcome(&large, kind, 0, 0, u32::MAX - 511), "ask");
    }
    assert_eq!(outcome(&large, NBD_CMD_CACHE, 0, 0, u32::MAX - 511), "done");
}

#[test]
fn flags_reach_the_request() {
    let ask = |kind, flags| match classify(&header(kind, flags, 512, 1024), &negotiated()) {
        Verdict::Ask(request, shape) => (request, shape),
        other => panic!("{other:?}"),
    };
    let (request, _) = ask(NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE);
    let Request::Zero { range, durable: true, keep_allocated: true } = request else { panic!("{request:?}") };
    assert_eq!(range, SectorRange::new(1, 3));
    let (request, _) = ask(NBD_CMD_TRIM, 0);
    assert!(matches!(request, Request::Zero { durable: false, keep_allocated: false, .. }));
    let (_, shape) = ask(NBD_CMD_READ, NBD_CMD_FLAG_DF);
    assert!(matches!(shape, ReplyShape::Data { offset: 512, length: 1024, unfragmented: true }));
    let (_, shape) = ask(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE);
    assert!(matches!(shape, ReplyShape::Extents { length: 1024, first_only: true }));
    let write = classify(&header(NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 0, 512), &negotiated());
    assert!(matches!(write, Verdict::Write { durable: true, .. }));
}

#[test]
fn a_fault_beyond_the_end_names_its_first_byte_inside_the_request() {
    for (offset, first) in [(SIZE - 512, SIZE), (SIZE + 512, SIZE + 512)] {
        let Verdict::Refuse(fault) = classify(&header(NBD_CMD_READ, 0, offset, 1024), &negotiated()) else {
            panic!("beyond the end")
        };
        assert_eq!(fault.offset, Some(first));
    }
}
