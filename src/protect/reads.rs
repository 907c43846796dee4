//! Reads in flight: each is cut into pieces by where its bytes are, and answered when the last piece is there.
//!
//! A read pins the segments that it reads, so that recycling waits for it. What comes from the journal is verified by
//! `journal::reader`, what comes from a side file by its sum, what comes from an image by its sums: where that does not match, and the
//! image has been written to since the read's places were looked up, they are [looked up again](Ended::Again).
//!
//! However many pieces the reads have, and however much has to be fetched for each ([`super::fetch`]), what is under way for all of
//! them together is bounded, and they take turns: one that needs a lot holds up nobody else.

use std::collections::VecDeque;
use std::rc::Rc;

use slab::Slab;

use crate::block::{DataPiece, Refusal, Reply, Response, Ticket};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::side::SidePiece;
use crate::image::sums::Verdict;
use crate::journal::cache::FrameCache;
use crate::journal::reader::{Located, locate};
use crate::journal::segments::{Segments, Source};
use crate::planted::Planted;
use crate::protect::fetch::{Assembly, Stored};
use crate::protect::place::Place;
use crate::runtime::{Runtime, Tag};
use crate::storage::Outcome;
use crate::units::{DiskSlot, SectorRange, to_usize};

/// Marks the operations of reads among those of a group.
pub const OPERATION_READ: u64 = 1 << 63;
const FETCH_BITS: u32 = 24;
/// Bytes that a group's reads have under way at once; one operation may be longer.
const UNDER_WAY_BYTES_MAX: usize = 32 << 20;

/// Reads that wait for the device.
pub struct Reads {
    runtime: Rc<Runtime>,
    owner: u32,
    planted: Planted,
    in_flight: Slab<Read>,
    /// Those that have operations to begin, whose turn is next first.
    waiting: VecDeque<usize>,
    under_way_bytes: usize,
    failure: Option<(DiskSlot, Error)>,
}

struct Read {
    ticket: Ticket,
    slot: DiskSlot,
    range: SectorRange,
    assembly: Assembly,
    failure: Option<Error>,
}

/// How a read ended.
pub enum Ended {
    /// With an answer.
    Answered(Ticket, Reply),
    /// Its bytes may be half of what was there and half of what is: it has to be started anew.
    Again(Ticket, DiskSlot, SectorRange),
}

impl Reads {
    /// No reads; operations carry `owner`.
    pub fn new(runtime: Rc<Runtime>, owner: u32, planted: Planted) -> Reads {
        let (in_flight, waiting) = (Slab::new(), VecDeque::new());
        Reads { runtime, owner, planted, in_flight, waiting, under_way_bytes: 0, failure: None }
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
        self.waiting.clear();
        self.in_flight.drain().map(|read| read.ticket)
    }

    /// Starts a read of a disk whose bytes are at `parts`, where `image` is the disk's. Answers at once if memory has it all.
    pub fn start(
        &mut self,
        ticket: Ticket,
        parts: &[(SectorRange, Place)],
        (slot, image): (DiskSlot, &Image),
        segments: &Segments,
        cache: &FrameCache,
    ) -> Option<Reply> {
        if parts.iter().any(|(_, place)| matches!(place, Place::Side(SidePiece::Unreadable))) {
            return Some(Err(Refusal::Io));
        }
        let mut assembly = Assembly::default();
        for (range, place) in parts {
            add(&mut assembly, *range, place, image, segments, cache);
        }
        if assembly.is_whole() {
            return Some(Ok(Response::Data(assembly.into_pieces())));
        }
        let range = SectorRange::new(parts[0].0.start, parts[parts.len() - 1].0.end);
        let key = self.in_flight.insert(Read { ticket, slot, range, assembly, failure: None });
        self.waiting.push_back(key);
        self.begin_waiting();
        None
    }

    /// Begins what may be under way.
    fn begin_waiting(&mut self) {
        while let Some(&key) = self.waiting.front()
            && self.under_way_bytes < UNDER_WAY_BYTES_MAX
        {
            self.waiting.pop_front();
            let assembly = &mut self.in_flight[key].assembly;
            let (number, bytes, operation) =
                assembly.begin_next().expect("who waits has operations to begin");
            if assembly.has_next() {
                self.waiting.push_back(key);
            }
            self.under_way_bytes += bytes;
            let operation_number = OPERATION_READ | (key as u64) << FETCH_BITS | number as u64;
            self.runtime.submit(Tag { owner: self.owner, operation: operation_number }, operation);
        }
    }

    /// Of which disk a read failed, and why, if one did since this was asked last.
    pub fn take_failure(&mut self) -> Option<(DiskSlot, Error)> {
        self.failure.take()
    }

    /// Takes an operation's completion; tells how its read ended if it was the last one of it.
    pub fn handle(&mut self, operation: u64, result: Result<Outcome>) -> Option<Ended> {
        let operation = operation & !OPERATION_READ;
        let key = to_usize(operation >> FETCH_BITS);
        let number = to_usize(operation & ((1 << FETCH_BITS) - 1));
        let read = self.in_flight.get_mut(key).expect("a read stays until its last operation");
        self.under_way_bytes -= read.assembly.fetch_bytes(number);
        let result = result.map(Outcome::into_buffer);
        let is_waiting = read.assembly.has_next();
        if let Err(error) = read.assembly.take(number, result, self.planted) {
            read.failure = Some(error);
        }
        if read.assembly.has_next() && !is_waiting {
            self.waiting.push_back(key);
        }
        let ended = read.assembly.is_whole().then(|| self.in_flight.remove(key));
        self.begin_waiting();
        let Read { ticket, slot, range, assembly, failure } = ended?;
        let verdict = if failure.is_some() { Verdict::Sound } else { assembly.judge(self.planted) };
        let damage = match verdict {
            Verdict::Sound => None,
            Verdict::Overwritten => return Some(Ended::Again(ticket, slot, range)),
            Verdict::Damaged(damage) => damage.into_iter().next().map(|(_, error)| error),
        };
        let reply = match failure.or(damage) {
            Some(error) => {
                self.failure = Some((slot, error));
                Err(Refusal::Io)
            }
            None => Ok(Response::Data(assembly.into_pieces())),
        };
        Some(Ended::Answered(ticket, reply))
    }
}

/// Adds a part of a read, which memory has or which has to be fetched.
fn add(
    assembly: &mut Assembly,
    range: SectorRange,
    place: &Place,
    image: &Image,
    segments: &Segments,
    cache: &FrameCache,
) {
    match place {
        Place::Layer(Source::Zero { .. }) | Place::Side(SidePiece::Zero { .. }) => {
            assembly.add_here(DataPiece::Zeros(range.bytes()));
        }
        Place::Layer(Source::Journal { segment, sector }) => {
            match locate(cache, (*segment, *sector), range.sectors(), |index| segments.get(index)) {
                Located::Cached(slice) => assembly.add_here(DataPiece::Bytes(slice)),
                Located::Stored(read) => assembly.add_stored(Stored::Payload(read)),
            }
        }
        Place::Side(SidePiece::Unreadable) => unreachable!("refused before"),
        Place::Side(SidePiece::Data(part)) => assembly.add_stored(Stored::Chunk(part.clone())),
        Place::Image => assembly.add_image(image, range),
    }
}
