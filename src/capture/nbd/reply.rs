//! Replies: what the disk's owner says, in the protocol's bytes.
//!
//! Success without data is a simple reply of 16 bytes. Where structured replies were agreed on, a READ is always
//! answered by chunks, and errors carry words for a person; elsewhere only a number.

use zerocopy::IntoBytes;

use super::codec::*;
use super::handshake::ALLOCATION_CONTEXT;
use super::in_flight::PendingReply;
use super::output::Output;
use super::request::{EXTENTS_MAX, Fault, ReplyShape, refusal_fault};
use crate::allocation::AllocationRun;
use crate::block::{DataPiece, Reply, Response};
use crate::units::to_usize;

/// Queues the answer to a request that was in flight.
///
/// # Panics
/// If the answer is not one to that kind of request, or not as long as the range: only our own bug does that,
/// and the client would take other bytes for its data.
pub(super) fn send(output: &mut Output, structured: bool, pending: &PendingReply, reply: Reply) {
    let cookie = pending.cookie;
    match (reply, pending.shape) {
        (Err(refusal), _) => send_fault(output, structured, cookie, refusal_fault(refusal)),
        (Ok(Response::Done), ReplyShape::Done) => output.simple_reply(cookie, None),
        (Ok(Response::Data(pieces)), ReplyShape::Data { offset, length, unfragmented }) => {
            let bytes: u64 = pieces.iter().map(DataPiece::bytes).sum();
            assert!(bytes == u64::from(length), "{bytes} bytes answer a read of {length}");
            if !structured {
                output.simple_reply(cookie, None);
                send_pieces(output, pieces);
            } else if unfragmented {
                data_chunk(output, cookie, true, offset, bytes);
                send_pieces(output, pieces);
            } else {
                send_chunks(output, cookie, offset, pieces);
            }
        }
        (Ok(Response::Allocation(runs)), ReplyShape::Extents { length, first_only }) => {
            send_extents(output, cookie, length, first_only, &runs);
        }
        (Ok(response), shape) => panic!("{response:?} does not answer a request that wants {shape:?}"),
    }
}

/// Answers a request that there was nothing to do for.
pub(super) fn send_empty(output: &mut Output, structured: bool, cookie: u64, kind: u16) {
    if kind == NBD_CMD_READ && structured {
        output.chunk(cookie, NBD_REPLY_TYPE_NONE, true, 0);
    } else {
        output.simple_reply(cookie, None);
    }
}

/// Refuses a request: with words and place where structured replies were agreed on.
pub(super) fn send_fault(output: &mut Output, structured: bool, cookie: u64, fault: Fault) {
    if !structured {
        return output.simple_reply(cookie, Some(fault.code));
    }
    let message = fault.message.as_bytes();
    let kind = if fault.offset.is_some() { NBD_REPLY_TYPE_ERROR_OFFSET } else { NBD_REPLY_TYPE_ERROR };
    let offset_bytes = if fault.offset.is_some() { size_of::<u64>() } else { 0 };
    output.chunk(cookie, kind, true, 6 + message.len() + offset_bytes);
    output.head(&fault.code.0.to_be_bytes());
    output.head(&u16::try_from(message.len()).expect("messages are short").to_be_bytes());
    output.head(message);
    if let Some(offset) = fault.offset {
        output.head(&offset.to_be_bytes());
    }
}

fn send_pieces(output: &mut Output, pieces: impl IntoIterator<Item = DataPiece>) {
    for piece in pieces {
        match piece {
            DataPiece::Bytes(slice) => output.data(slice),
            DataPiece::Zeros(count) => output.zeros(count),
        }
    }
}

/// As few chunks as the pieces allow: neighbours of one kind share one.
fn send_chunks(output: &mut Output, cookie: u64, mut offset: u64, mut pieces: Vec<DataPiece>) {
    pieces.retain(|piece| piece.bytes() > 0);
    let is_hole = |piece: &DataPiece| matches!(piece, DataPiece::Zeros(_));
    let mut pieces = pieces.into_iter();
    while let Some(hole) = pieces.as_slice().first().map(is_hole) {
        let run = pieces.as_slice().iter().take_while(|piece| is_hole(piece) == hole);
        let (count, bytes) = run.fold((0, 0), |(count, bytes), piece| (count + 1, bytes + piece.bytes()));
        let done = count == pieces.as_slice().len();
        let run = pieces.by_ref().take(count);
        if hole {
            run.for_each(drop);
            hole_chunk(output, cookie, done, offset, bytes);
        } else {
            data_chunk(output, cookie, done, offset, bytes);
            send_pieces(output, run);
        }
        offset += bytes;
    }
}

fn data_chunk(output: &mut Output, cookie: u64, done: bool, offset: u64, bytes: u64) {
    output.chunk(cookie, NBD_REPLY_TYPE_OFFSET_DATA, done, size_of::<u64>() + to_usize(bytes));
    output.head(&offset.to_be_bytes());
}

fn hole_chunk(output: &mut Output, cookie: u64, done: bool, offset: u64, bytes: u64) {
    let length = u32::try_from(bytes).expect("reads are bounded by the largest request");
    output.chunk(cookie, NBD_REPLY_TYPE_OFFSET_HOLE, done, size_of::<u64>() + size_of::<u32>());
    output.head(&offset.to_be_bytes());
    output.head(&length.to_be_bytes());
}

fn send_extents(output: &mut Output, cookie: u64, length: u32, first_only: bool, runs: &[AllocationRun]) {
    let covered: u64 = runs.iter().map(|run| run.bytes).sum();
    assert!((1..=u64::from(length)).contains(&covered), "{covered} bytes answer a status of {length}");
    let extents_max = if first_only { 1 } else { EXTENTS_MAX };
    let mut extents: Vec<ExtentDescriptor> = Vec::new();
    for run in runs.iter().filter(|run| run.bytes > 0) {
        let bytes = u32::try_from(run.bytes).expect("a run lies within a request of 32-bit length");
        let flags = if run.allocated { 0 } else { NBD_STATE_HOLE | NBD_STATE_ZERO };
        let room = extents.len() < extents_max;
        match extents.last_mut() {
            Some(last) if last.flags.get() == flags => last.length += bytes,
            _ if room => extents.push(ExtentDescriptor { length: bytes.into(), flags: flags.into() }),
            _ => break,
        }
    }
    let payload_bytes = size_of::<u32>() + extents.as_bytes().len();
    output.chunk(cookie, NBD_REPLY_TYPE_BLOCK_STATUS, true, payload_bytes);
    output.head(&ALLOCATION_CONTEXT.to_be_bytes());
    output.head(extents.as_bytes());
}

#[cfg(test)]
mod tests;
