//! Reads in flight: each is cut into pieces by where its bytes are, and answered when the last piece is there.
//!
//! A read pins the segments that it reads, so that recycling waits for it.

use std::rc::Rc;

use slab::Slab;

use crate::block::{DataPiece, Refusal, Reply, Response, Ticket};
use crate::error::Result;
use crate::journal::cache::FrameCache;
use crate::journal::segments::{Segment, Segments, Source, byte_range};
use crate::runtime::{Runtime, Tag};
use crate::storage::{Buffer, File, Op, Outcome};
use crate::units::{SectorRange, to_usize};

/// Marks the operations of reads among those of a group.
pub const OPERATION_READ: u64 = 1 << 63;
const PIECE_BITS: u32 = 24;

/// Reads that wait for the device.
pub struct Reads {
    runtime: Rc<Runtime>,
    owner: u32,
    in_flight: Slab<Read>,
}

struct Read {
    ticket: Ticket,
    pieces: Vec<Option<DataPiece>>,
    missing: usize,
    failed: bool,
    _pins: Vec<Rc<Segment>>,
}

impl Reads {
    /// No reads; operations carry `owner`.
    pub fn new(runtime: Rc<Runtime>, owner: u32) -> Reads {
        Reads { runtime, owner, in_flight: Slab::new() }
    }

    /// Number in flight.
    pub fn len(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether none is in flight.
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Starts a read whose bytes are at `parts`, or in `image` where a part names no source. Answers at once if
    /// memory has it all.
    pub fn start(
        &mut self,
        ticket: Ticket,
        parts: &[(SectorRange, Option<Source>)],
        image: &File,
        segments: &Segments,
        cache: &FrameCache,
    ) -> Option<Reply> {
        let entry = self.in_flight.vacant_entry();
        let read_operation = OPERATION_READ | (entry.key() as u64) << PIECE_BITS;
        let mut pieces = Vec::with_capacity(parts.len());
        let mut pins = Vec::new();
        for (index, &(range, source)) in parts.iter().enumerate() {
            let (file, offset) = match source {
                Some(Source::Zero { .. }) => {
                    pieces.push(Some(DataPiece::Zeros(range.bytes())));
                    continue;
                }
                Some(Source::Journal { segment, sector }) => {
                    if let Some(slice) = cache.get(segment, sector, range.sectors()) {
                        pieces.push(Some(DataPiece::Bytes(slice)));
                        continue;
                    }
                    let pinned = segments.get(segment).expect("a layer names only segments that are in use");
                    pins.push(Rc::clone(pinned));
                    (&pinned.file, byte_range(sector, range.sectors()).start)
                }
                None => (image, range.byte_offset()),
            };
            pieces.push(None);
            let buffer = Buffer::recycled(to_usize(range.bytes()));
            let tag = Tag { owner: self.owner, operation: read_operation | index as u64 };
            self.runtime.submit(tag, Op::Read { file: file.clone(), offset, buffer });
        }
        let missing = pieces.iter().filter(|piece| piece.is_none()).count();
        if missing == 0 {
            return Some(Ok(Response::Data(pieces.into_iter().flatten().collect())));
        }
        entry.insert(Read { ticket, pieces, missing, failed: false, _pins: pins });
        None
    }

    /// Takes a piece's completion; returns the answer if it was the last one.
    pub fn handle(&mut self, operation: u64, result: Result<Outcome>) -> Option<(Ticket, Reply)> {
        let operation = operation & !OPERATION_READ;
        let key = to_usize(operation >> PIECE_BITS);
        let index = to_usize(operation & ((1 << PIECE_BITS) - 1));
        let read = self.in_flight.get_mut(key).expect("a read stays until its last piece");
        match result {
            Ok(Outcome::Read(buffer)) => read.pieces[index] = Some(DataPiece::Bytes(buffer.freeze())),
            Ok(other) => unreachable!("a read gives a buffer, not {other:?}"),
            Err(error) => {
                tracing::error!(%error, "a read failed");
                read.failed = true;
            }
        }
        read.missing -= 1;
        if read.missing > 0 {
            return None;
        }
        let read = self.in_flight.remove(key);
        let reply = if read.failed {
            Err(Refusal::Io)
        } else {
            Ok(Response::Data(read.pieces.into_iter().flatten().collect()))
        };
        Some((read.ticket, reply))
    }
}
