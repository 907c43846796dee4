//! Reads in flight: each is cut into pieces by where its bytes are, and answered when the last piece is there.
//!
//! A read pins the segments that it reads, so that recycling waits for it. What it reads of a side file is compared with
//! its sum.

use std::rc::Rc;

use slab::Slab;

use crate::block::{DataPiece, Refusal, Reply, Response, Ticket};
use crate::error::Result;
use crate::image::side::{ChunkPart, SidePiece};
use crate::journal::cache::FrameCache;
use crate::journal::segments::{Segment, Segments, Source, byte_range};
use crate::protect::place::Place;
use crate::runtime::{Runtime, Tag};
use crate::storage::{Buffer, File, Op, Outcome, Slice};
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
    pieces: Vec<Piece>,
    missing: usize,
    failed: bool,
    _pins: Vec<Rc<Segment>>,
}

/// A part of the answer.
enum Piece {
    Here(DataPiece),
    /// Being read as it is.
    Awaited,
    /// Being read with the rest of its chunk.
    AwaitedIn(ChunkPart),
}

impl Piece {
    /// Takes what was read for it.
    fn fill(&mut self, slice: Slice) -> Result<()> {
        let slice = match self {
            Piece::AwaitedIn(part) => part.verified(&slice)?,
            _ => slice,
        };
        *self = Piece::Here(DataPiece::Bytes(slice));
        Ok(())
    }

    fn into_data(self) -> DataPiece {
        match self {
            Piece::Here(data) => data,
            Piece::Awaited | Piece::AwaitedIn(_) => {
                unreachable!("a read is answered when nothing is missing")
            }
        }
    }
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

    /// Starts a read whose bytes are at `parts`, where `image` is the disk's. Answers at once if memory has it all.
    pub fn start(
        &mut self,
        ticket: Ticket,
        parts: &[(SectorRange, Place)],
        image: &File,
        segments: &Segments,
        cache: &FrameCache,
    ) -> Option<Reply> {
        let entry = self.in_flight.vacant_entry();
        let read_operation = OPERATION_READ | (entry.key() as u64) << PIECE_BITS;
        let mut pieces = Vec::with_capacity(parts.len());
        let mut pins = Vec::new();
        let mut missing = 0;
        for (index, (range, place)) in parts.iter().enumerate() {
            let (file, offset, bytes) = match place {
                Place::Layer(Source::Zero { .. }) | Place::Side(SidePiece::Zero { .. }) => {
                    pieces.push(Piece::Here(DataPiece::Zeros(range.bytes())));
                    continue;
                }
                Place::Layer(Source::Journal { segment, sector }) => {
                    if let Some(slice) = cache.get(*segment, *sector, range.sectors()) {
                        pieces.push(Piece::Here(DataPiece::Bytes(slice)));
                        continue;
                    }
                    let pinned = segments.get(*segment).expect("a layer names only segments that are in use");
                    pins.push(Rc::clone(pinned));
                    pieces.push(Piece::Awaited);
                    (&pinned.file, byte_range(*sector, range.sectors()).start, to_usize(range.bytes()))
                }
                Place::Side(SidePiece::Data(part)) => {
                    pieces.push(Piece::AwaitedIn(part.clone()));
                    (&part.file, part.offset, part.bytes)
                }
                Place::Image => {
                    pieces.push(Piece::Awaited);
                    (image, range.byte_offset(), to_usize(range.bytes()))
                }
            };
            missing += 1;
            let buffer = Buffer::recycled(bytes);
            let tag = Tag { owner: self.owner, operation: read_operation | index as u64 };
            self.runtime.submit(tag, Op::Read { file: file.clone(), offset, buffer });
        }
        if missing == 0 {
            return Some(Ok(data_of(pieces)));
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
        let filled = result.and_then(|outcome| match outcome {
            Outcome::Read(buffer) => read.pieces[index].fill(buffer.freeze()),
            other => unreachable!("a read gives a buffer, not {other:?}"),
        });
        if let Err(error) = filled {
            tracing::error!(%error, "a read failed");
            read.failed = true;
        }
        read.missing -= 1;
        if read.missing > 0 {
            return None;
        }
        let read = self.in_flight.remove(key);
        let reply = if read.failed { Err(Refusal::Io) } else { Ok(data_of(read.pieces)) };
        Some((read.ticket, reply))
    }
}

fn data_of(pieces: Vec<Piece>) -> Response {
    Response::Data(pieces.into_iter().map(Piece::into_data).collect())
}
