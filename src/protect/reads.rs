//! Reads in flight: each is cut into pieces by where its bytes are, and answered when the last piece is there.
//!
//! A read pins the segments that it reads, so that recycling waits for it. What comes from the journal is verified by
//! `journal::reader`, what comes from a side file by its sum; what comes from an image cannot be.

use std::rc::Rc;

use slab::Slab;

use crate::block::{DataPiece, Refusal, Reply, Response, Ticket};
use crate::error::{Error, Result};
use crate::image::side::{ChunkPart, SidePiece};
use crate::journal::cache::FrameCache;
use crate::journal::reader::{Located, PayloadRead, locate};
use crate::journal::segments::{Segments, Source};
use crate::planted::Planted;
use crate::protect::place::Place;
use crate::runtime::{Runtime, Tag};
use crate::storage::{Buffer, File, Op, Outcome};
use crate::units::{DiskSlot, SectorRange, to_usize};

/// Marks the operations of reads among those of a group.
pub const OPERATION_READ: u64 = 1 << 63;
const PIECE_BITS: u32 = 24;

/// Reads that wait for the device.
pub struct Reads {
    runtime: Rc<Runtime>,
    owner: u32,
    planted: Planted,
    in_flight: Slab<Read>,
    failure: Option<(DiskSlot, Error)>,
}

struct Read {
    ticket: Ticket,
    slot: DiskSlot,
    pieces: Vec<Piece>,
    missing: usize,
    failure: Option<Error>,
}

/// A part of a read's range.
enum Piece {
    Here(DataPiece),
    InImage,
    InJournal(PayloadRead),
    InSideFile(ChunkPart),
}

impl Reads {
    /// No reads; operations carry `owner`.
    pub fn new(runtime: Rc<Runtime>, owner: u32, planted: Planted) -> Reads {
        Reads { runtime, owner, planted, in_flight: Slab::new(), failure: None }
    }

    /// Number in flight.
    pub fn len(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether none is in flight.
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Forgets all that are in flight; tells whose they are.
    pub fn abandon(&mut self) -> impl Iterator<Item = Ticket> {
        self.in_flight.drain().map(|read| read.ticket)
    }

    /// Starts a read of a disk whose bytes are at `parts`, where `image` is the disk's. Answers at once if memory has it all.
    pub fn start(
        &mut self,
        ticket: Ticket,
        parts: &[(SectorRange, Place)],
        (slot, image): (DiskSlot, &File),
        segments: &Segments,
        cache: &FrameCache,
    ) -> Option<Reply> {
        if parts.iter().any(|(_, place)| matches!(place, Place::Side(SidePiece::Unreadable))) {
            return Some(Err(Refusal::Io));
        }
        let entry = self.in_flight.vacant_entry();
        let read_operation = OPERATION_READ | (entry.key() as u64) << PIECE_BITS;
        let mut pieces = Vec::with_capacity(parts.len());
        let mut missing = 0;
        for (index, (range, place)) in parts.iter().enumerate() {
            let (piece, operation) = find(*range, place, image, segments, cache);
            pieces.push(piece);
            if let Some(operation) = operation {
                missing += 1;
                let tag = Tag { owner: self.owner, operation: read_operation | index as u64 };
                self.runtime.submit(tag, operation);
            }
        }
        if missing == 0 {
            return Some(Ok(answer(pieces)));
        }
        entry.insert(Read { ticket, slot, pieces, missing, failure: None });
        None
    }

    /// Of which disk a read failed, and why, if one did since this was asked last.
    pub fn take_failure(&mut self) -> Option<(DiskSlot, Error)> {
        self.failure.take()
    }

    /// Takes a piece's completion; returns the answer if it was the last one.
    pub fn handle(&mut self, operation: u64, result: Result<Outcome>) -> Option<(Ticket, Reply)> {
        let operation = operation & !OPERATION_READ;
        let key = to_usize(operation >> PIECE_BITS);
        let index = to_usize(operation & ((1 << PIECE_BITS) - 1));
        let read = self.in_flight.get_mut(key).expect("a read stays until its last piece");
        let piece = &mut read.pieces[index];
        match result.and_then(|outcome| piece.take(outcome.into_buffer(), self.planted)) {
            Ok(data) => *piece = Piece::Here(data),
            Err(error) => read.failure = Some(error),
        }
        read.missing -= 1;
        if read.missing > 0 {
            return None;
        }
        let read = self.in_flight.remove(key);
        let reply = match read.failure {
            Some(error) => {
                self.failure = Some((read.slot, error));
                Err(Refusal::Io)
            }
            None => Ok(answer(read.pieces)),
        };
        Some((read.ticket, reply))
    }
}

/// A piece, and the operation that brings it if memory does not have it.
fn find(
    range: SectorRange,
    place: &Place,
    image: &File,
    segments: &Segments,
    cache: &FrameCache,
) -> (Piece, Option<Op>) {
    match place {
        Place::Layer(Source::Zero { .. }) | Place::Side(SidePiece::Zero { .. }) => {
            (Piece::Here(DataPiece::Zeros(range.bytes())), None)
        }
        Place::Layer(Source::Journal { segment, sector }) => {
            match locate(cache, (*segment, *sector), range.sectors(), |index| segments.get(index)) {
                Located::Cached(slice) => (Piece::Here(DataPiece::Bytes(slice)), None),
                Located::Stored(read) => {
                    let operation = read.operation();
                    (Piece::InJournal(read), Some(operation))
                }
            }
        }
        Place::Side(SidePiece::Unreadable) => unreachable!("refused before"),
        Place::Side(SidePiece::Data(part)) => {
            let buffer = Buffer::recycled(part.bytes);
            let operation = Op::Read { file: part.file.clone(), offset: part.offset, buffer };
            (Piece::InSideFile(part.clone()), Some(operation))
        }
        Place::Image => {
            let buffer = Buffer::recycled(to_usize(range.bytes()));
            let operation = Op::Read { file: image.clone(), offset: range.byte_offset(), buffer };
            (Piece::InImage, Some(operation))
        }
    }
}

impl Piece {
    /// What the piece's operation brought.
    fn take(&self, buffer: Buffer, planted: Planted) -> Result<DataPiece> {
        match self {
            Piece::InJournal(read) => read.verify(buffer, planted).map(DataPiece::Bytes),
            Piece::InSideFile(part) => part.verified(buffer).map(DataPiece::Bytes),
            Piece::InImage => Ok(DataPiece::Bytes(buffer.freeze())),
            Piece::Here(_) => unreachable!("a piece that is here has no operation"),
        }
    }
}

fn answer(pieces: Vec<Piece>) -> Response {
    let data = pieces.into_iter().map(|piece| match piece {
        Piece::Here(data) => data,
        _ => unreachable!("no piece is missing"),
    });
    Response::Data(data.collect())
}
