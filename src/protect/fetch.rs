//! What a read has to fetch: one operation for everything that it wants of one stored payload, and what becomes of the bytes.
//!
//! ```text
//!  read        │ new │ old │ new │   old   │ new │        five parts
//!                       └──────┬──────┘
//!  payload     ▒▒▒▒▒▒▒▒▒▒▒████▒▒▒▒████████▒▒▒▒▒▒▒▒▒▒      fetched and verified once, whole; kept whole only if most of it is wanted
//! ```
//!
//! A payload is up to 64 KiB and verified as a whole, while the parts that later writes left of it may be sectors. Were each part to
//! fetch its payload, and to keep it until the answer is sent, a read would take a hundred times its length.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::block::DataPiece;
use crate::error::Result;
use crate::format::sums::by_block;
use crate::image::Image;
use crate::image::side::ChunkPart;
use crate::image::sums::Verdict;
use crate::journal::reader::PayloadRead;
use crate::planted::Planted;
use crate::protect::checks::{Checks, SumsRead};
use crate::storage::{Buffer, File, Op, Slice};
use crate::units::{SectorRange, to_usize};

/// Parts of payloads of which little is wanted are copied together into buffers of so many bytes.
const BLOCK_BYTES: usize = 256 << 10;
/// A payload is kept whole if this much of it is wanted: one part in so many.
const KEPT_PART: usize = 2;

/// Where bytes are stored that a read wants.
pub(super) enum Stored {
    /// In an image: it is compared with its sums once these are there, too.
    Image(File, SectorRange),
    /// The sums of an image.
    Sums(SumsRead),
    /// In a record of the journal.
    Payload(PayloadRead),
    /// In a chunk of a side file.
    Chunk(ChunkPart),
}

impl Stored {
    /// What is fetched once, however many parts of it are wanted.
    fn key(&self) -> Option<(usize, u64)> {
        match self {
            Stored::Image(..) | Stored::Sums(_) => None,
            Stored::Payload(read) => Some(read.place()),
            Stored::Chunk(part) => Some((part.file.identity(), part.offset)),
        }
    }

    /// Bytes that it takes while it is under way.
    fn bytes(&self) -> usize {
        match self {
            Stored::Image(_, range) => to_usize(range.bytes()),
            Stored::Sums(read) => read.bytes(),
            Stored::Payload(read) => read.payload_bytes(),
            Stored::Chunk(part) => part.bytes,
        }
    }

    /// What of it is wanted.
    fn within(&self) -> Range<usize> {
        match self {
            Stored::Image(_, range) => 0..to_usize(range.bytes()),
            Stored::Sums(_) => 0..0,
            Stored::Payload(read) => read.within(),
            Stored::Chunk(part) => part.within(),
        }
    }

    fn operation(&self) -> Op {
        let (file, offset) = match self {
            Stored::Image(file, range) => (file, range.byte_offset()),
            Stored::Sums(read) => return read.operation(),
            Stored::Payload(read) => return read.operation(),
            Stored::Chunk(part) => (&part.file, part.offset),
        };
        Op::Read { file: file.clone(), offset, buffer: Buffer::recycled(self.bytes()) }
    }

    fn verified(&self, buffer: Buffer, planted: Planted) -> Result<Buffer> {
        match self {
            Stored::Image(..) | Stored::Sums(_) => Ok(buffer),
            Stored::Payload(read) => read.open(buffer, planted),
            Stored::Chunk(part) => part.open(buffer),
        }
    }
}

/// One operation of a read.
struct Fetch {
    stored: Stored,
    /// The pieces of the answer that it brings, and where they are in it.
    parts: Vec<(usize, Range<usize>)>,
}

impl Fetch {
    fn of_sums(read: SumsRead) -> Fetch {
        Fetch { stored: Stored::Sums(read), parts: Vec::new() }
    }
}

/// A piece of an answer.
enum Piece {
    Here(DataPiece),
    Missing,
    /// In the block where it begins.
    Gathered,
}

/// The bytes of a read, as far as they are there.
#[derive(Default)]
pub(super) struct Assembly {
    /// Each with its place in the answer.
    pieces: Vec<(Range<usize>, Piece)>,
    bytes: usize,
    fetches: Vec<Fetch>,
    by_place: HashMap<(usize, u64), usize>,
    begun: usize,
    ended: usize,
    /// Copies of parts, by which block of the answer they are in.
    blocks: BTreeMap<usize, Buffer>,
    /// What comes from an image, and its sums.
    checks: Option<Checks>,
}

impl Assembly {
    /// Adds what memory has.
    pub(super) fn add_here(&mut self, data: DataPiece) {
        let bytes = to_usize(data.bytes());
        self.add(bytes, Piece::Here(data));
    }

    /// Adds what has to be fetched of an image, with the sums that it takes.
    pub(super) fn add_image(&mut self, image: &Image, range: SectorRange) {
        let checks = self.checks.get_or_insert_with(|| Checks::new(&image.sums));
        let wanted: Vec<_> = by_block(range).filter_map(|(block, _)| checks.want(block)).collect();
        self.fetches.extend(wanted.into_iter().map(Fetch::of_sums));
        self.add_stored(Stored::Image(image.file.clone(), range));
    }

    /// Adds what has to be fetched.
    pub(super) fn add_stored(&mut self, stored: Stored) {
        let (within, piece) = (stored.within(), self.pieces.len());
        let fetches = &mut self.fetches;
        let index = match stored.key() {
            Some(key) => *self.by_place.entry(key).or_insert(fetches.len()),
            None => fetches.len(),
        };
        if index == fetches.len() {
            fetches.push(Fetch { stored, parts: Vec::new() });
        }
        fetches[index].parts.push((piece, within.clone()));
        self.add(within.len(), Piece::Missing);
    }

    fn add(&mut self, bytes: usize, piece: Piece) {
        let start = self.bytes;
        self.bytes += bytes;
        self.pieces.push((start..self.bytes, piece));
    }

    /// Whether nothing has to be waited for.
    pub(super) fn is_whole(&self) -> bool {
        self.ended == self.fetches.len()
    }

    /// The next operation to be begun, with its number and its bytes.
    pub(super) fn begin_next(&mut self) -> Option<(usize, usize, Op)> {
        let number = self.begun;
        let fetch = self.fetches.get(number)?;
        self.begun += 1;
        Some((number, fetch.stored.bytes(), fetch.stored.operation()))
    }

    /// Whether operations have not begun.
    pub(super) fn has_next(&self) -> bool {
        self.begun < self.fetches.len()
    }

    /// What an operation takes while it is under way.
    pub(super) fn fetch_bytes(&self, number: usize) -> usize {
        self.fetches[number].stored.bytes()
    }

    /// Takes what an operation brought.
    pub(super) fn take(&mut self, number: usize, result: Result<Buffer>, planted: Planted) -> Result<()> {
        self.ended += 1;
        let Fetch { stored, parts } = &mut self.fetches[number];
        let parts = std::mem::take(parts);
        if let (Stored::Sums(read), Some(checks)) = (&*stored, &mut self.checks) {
            let instead = checks.take_sums(read, result.as_deref().ok());
            self.fetches.extend(instead.into_iter().map(Fetch::of_sums));
            return Ok(());
        }
        let buffer = stored.verified(result?, planted)?;
        let wanted: usize = parts.iter().map(|(_, within)| within.len()).sum();
        if wanted * KEPT_PART >= buffer.len() {
            let all = buffer.freeze();
            if let (Stored::Image(_, range), Some(checks)) = (&*stored, &mut self.checks) {
                checks.take_bytes(*range, all.clone());
            }
            for (piece, within) in parts {
                self.pieces[piece].1 = Piece::Here(DataPiece::Bytes(all.slice(within)));
            }
        } else {
            for (piece, within) in parts {
                self.gather(piece, &buffer[within]);
            }
        }
        Ok(())
    }

    fn gather(&mut self, piece: usize, bytes: &[u8]) {
        let (place, state) = &mut self.pieces[piece];
        let block = place.start / BLOCK_BYTES;
        let (start, end) = (place.start - block * BLOCK_BYTES, place.end - block * BLOCK_BYTES);
        *state = if end > BLOCK_BYTES {
            Piece::Here(DataPiece::Bytes(Buffer::copy_of(bytes).freeze()))
        } else {
            let length = (self.bytes - block * BLOCK_BYTES).min(BLOCK_BYTES);
            let gathered = self.blocks.entry(block).or_insert_with(|| Buffer::recycled(length));
            gathered[start..end].copy_from_slice(bytes);
            Piece::Gathered
        };
    }

    /// Whether what comes from an image is what should be there.
    pub(super) fn judge(&self, planted: Planted) -> Verdict {
        self.checks.as_ref().map_or(Verdict::Sound, |checks| checks.judge(planted))
    }

    /// The answer: neighbours that were copied together are one piece.
    pub(super) fn into_pieces(self) -> Vec<DataPiece> {
        assert!(self.ended == self.fetches.len(), "no piece is missing");
        let blocks: BTreeMap<usize, Slice> =
            self.blocks.into_iter().map(|(block, buffer)| (block, buffer.freeze())).collect();
        let mut answer = Vec::with_capacity(self.pieces.len());
        let mut run: Range<usize> = 0..0;
        let put = |run: &Range<usize>, answer: &mut Vec<DataPiece>| {
            if !run.is_empty() {
                let block = run.start / BLOCK_BYTES;
                let within = run.start - block * BLOCK_BYTES..run.end - block * BLOCK_BYTES;
                answer.push(DataPiece::Bytes(blocks[&block].slice(within)));
            }
        };
        for (place, piece) in self.pieces {
            match piece {
                Piece::Gathered
                    if run.end == place.start && run.start / BLOCK_BYTES == place.start / BLOCK_BYTES =>
                {
                    run.end = place.end;
                }
                Piece::Gathered => {
                    put(&run, &mut answer);
                    run = place;
                }
                Piece::Here(data) => {
                    put(&run, &mut answer);
                    run = 0..0;
                    answer.push(data);
                }
                Piece::Missing => unreachable!("all of them were brought"),
            }
        }
        put(&run, &mut answer);
        answer
    }
}
