//! Replies byte by byte, as the protocol lays them out.

use std::io::IoSlice;

use super::*;
use crate::block::Refusal;
use crate::storage::Buffer;

fn bytes(output: &Output) -> Vec<u8> {
    let mut slices: Vec<IoSlice<'_>> = Vec::new();
    output.gather(&mut slices);
    slices.iter().flat_map(|slice| slice.to_vec()).collect()
}

fn sent(structured: bool, shape: ReplyShape, reply: Reply) -> Vec<u8> {
    let mut output = Output::default();
    send(&mut output, structured, &PendingReply { cookie: 0x0102_0304_0506_0708, charge: 0, shape }, reply);
    bytes(&output)
}

fn data(byte: u8, count: usize) -> DataPiece {
    DataPiece::Bytes(Buffer::copy_of(&vec![byte; count]).freeze())
}

fn read(length: u32, unfragmented: bool) -> ReplyShape {
    ReplyShape::Data { offset: 0x1000, length, unfragmented }
}

const COOKIE: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
const AT_4096: [u8; 8] = [0, 0, 0, 0, 0, 0, 0x10, 0];

/// A chunk's header: flags, type, length of payload.
fn chunk(flags: u8, kind: [u8; 2], length: [u8; 4]) -> Vec<u8> {
    [&[0x66, 0x8e, 0x33, 0xef, 0, flags][..], &kind, &COOKIE, &length].concat()
}

#[test]
fn success_without_data_is_sixteen_bytes() {
    let expected = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &COOKIE].concat();
    for structured in [false, true] {
        assert_eq!(sent(structured, ReplyShape::Done, Ok(Response::Done)), expected);
    }
}

#[test]
fn a_simple_read_is_its_bytes_with_zeros_written_out() {
    let pieces = vec![data(9, 512), DataPiece::Zeros(512)];
    let reply = sent(false, read(1024, false), Ok(Response::Data(pieces)));
    let header = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &COOKIE].concat();
    assert_eq!(reply, [header, vec![9; 512], vec![0; 512]].concat());
}

#[test]
fn a_structured_read_is_one_chunk_a_run() {
    let pieces = vec![
        data(9, 512),
        DataPiece::Zeros(0),
        data(8, 512),
        DataPiece::Zeros(512),
        DataPiece::Zeros(512),
        data(7, 512),
    ];
    let reply = sent(true, read(2560, false), Ok(Response::Data(pieces)));
    let expected = [
        chunk(0, [0, 1], [0, 0, 4, 8]),
        AT_4096.to_vec(),
        vec![9; 512],
        vec![8; 512],
        chunk(0, [0, 2], [0, 0, 0, 12]),
        vec![0, 0, 0, 0, 0, 0, 0x14, 0, 0, 0, 4, 0],
        chunk(1, [0, 1], [0, 0, 2, 8]),
        vec![0, 0, 0, 0, 0, 0, 0x18, 0],
        vec![7; 512],
    ];
    assert_eq!(reply, expected.concat());
}

#[test]
fn an_unfragmented_read_is_one_chunk_with_its_zeros_written_out() {
    let pieces = vec![data(9, 512), DataPiece::Zeros(512)];
    let reply = sent(true, read(1024, true), Ok(Response::Data(pieces)));
    let expected = [chunk(1, [0, 1], [0, 0, 4, 8]), AT_4096.to_vec(), vec![9; 512], vec![0; 512]];
    assert_eq!(reply, expected.concat());
}

#[test]
fn every_refusal_has_its_number() {
    let table = [
        (Refusal::Invalid, 22),
        (Refusal::NoSpace, 28),
        (Refusal::ReadOnly, 1),
        (Refusal::Io, 5),
        (Refusal::Shutdown, 108),
    ];
    for (refusal, number) in table {
        let simple = sent(false, ReplyShape::Done, Err(refusal));
        assert_eq!(simple, [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, number][..], &COOKIE].concat());
        let structured = sent(true, read(512, false), Err(refusal));
        assert_eq!(structured[4..8], [0, 1, 0x80, 1]);
        assert_eq!(structured[20..24], [0, 0, 0, number]);
        let message_bytes = usize::from(u16::from_be_bytes([structured[24], structured[25]]));
        assert!(message_bytes > 0);
        assert_eq!(structured.len(), 26 + message_bytes);
    }
}

#[test]
fn an_error_with_a_place_carries_it_last() {
    let mut output = Output::default();
    let fault = Fault { code: NBD_EINVAL, message: "no", offset: Some(0x1000) };
    send_fault(&mut output, true, 0x0102_0304_0506_0708, fault);
    let expected =
        [chunk(1, [0x80, 2], [0, 0, 0, 16]), vec![0, 0, 0, 22, 0, 2], b"no".to_vec(), AT_4096.to_vec()];
    assert_eq!(bytes(&output), expected.concat());
}

#[test]
fn a_block_status_tells_runs_merged() {
    let run = |bytes, allocated| AllocationRun { bytes, allocated };
    let runs = vec![run(512, true), run(512, true), run(1024, false), run(512, true)];
    let extents = |first_only| ReplyShape::Extents { length: 2560, first_only };
    let reply = sent(true, extents(false), Ok(Response::Allocation(runs.clone())));
    let expected = [
        chunk(1, [0, 5], [0, 0, 0, 28]),
        vec![0, 0, 0, 1],             // the context's id
        vec![0, 0, 4, 0, 0, 0, 0, 0], // 1024 bytes of data
        vec![0, 0, 4, 0, 0, 0, 0, 3], // 1024 bytes of NBD_STATE_HOLE | NBD_STATE_ZERO
        vec![0, 0, 2, 0, 0, 0, 0, 0], // 512 bytes of data
    ];
    assert_eq!(reply, expected.concat());
    let reply = sent(true, extents(true), Ok(Response::Allocation(runs)));
    let expected = [chunk(1, [0, 5], [0, 0, 0, 12]), vec![0, 0, 0, 1], vec![0, 0, 4, 0, 0, 0, 0, 0]];
    assert_eq!(reply, expected.concat());
}

#[test]
fn a_block_status_stays_within_its_bound() {
    let runs: Vec<AllocationRun> =
        (0..10_000).map(|index| AllocationRun { bytes: 512, allocated: index % 2 == 0 }).collect();
    let shape = ReplyShape::Extents { length: 512 * 10_000, first_only: false };
    let reply = sent(true, shape, Ok(Response::Allocation(runs)));
    assert_eq!(reply.len(), 20 + 4 + 8 * EXTENTS_MAX);
}

#[test]
#[should_panic(expected = "answer a read of 1024")]
fn a_short_answer_is_never_sent() {
    sent(false, read(1024, false), Ok(Response::Data(vec![data(9, 512)])));
}
