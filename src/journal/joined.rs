//! Many parts of one segment, read together: what lies close together there is one operation.
//!
//! Whoever moves most of what a segment holds, as destage does, would otherwise ask the device for each record by itself, in whatever order
//! it needs them. What is read is verified as ever, payload by payload; a payload that is not what was written, and all of an operation
//! that failed, is read again alone, with the patience and in the words of [`Reader::read`].

use std::ops::Range;
use std::rc::Rc;

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::error::Result;
use crate::journal::reader::{Located, PayloadRead, Reader};
use crate::journal::segments::{Segment, SegmentIndex};
use crate::storage::Slice;
use crate::units::{SECTOR_BYTES, to_usize};

/// Most bytes of one operation: deciphering them is one turn on the owner's thread.
const RUN_BYTES_MAX: u64 = 256 << 10;
/// Bytes that are read for nothing rather than that an operation ends before them.
pub const GAP_BYTES_MAX: u64 = 32 << 10;
/// Operations under way at once.
const CONCURRENCY: usize = 16;

/// Sectors of a segment, all of one record's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first of them, counted from the segment's start.
    pub sector: u32,
    /// How many.
    pub sectors: u64,
}

/// Payloads that one operation reads: of each the place among the parts that were asked for, and the read.
struct Run {
    bytes: Range<u64>,
    reads: Vec<(usize, PayloadRead)>,
}

impl Run {
    fn new(index: usize, read: PayloadRead) -> Run {
        Run { bytes: read.bytes(), reads: vec![(index, read)] }
    }

    /// Adds a read of what stands at or behind all others; gives it back if it is too far away.
    fn add(&mut self, index: usize, read: PayloadRead) -> std::result::Result<(), PayloadRead> {
        let bytes = read.bytes();
        let end = self.bytes.end.max(bytes.end);
        if bytes.start > self.bytes.end + GAP_BYTES_MAX || end - self.bytes.start > RUN_BYTES_MAX {
            return Err(read);
        }
        self.bytes.end = end;
        self.reads.push((index, read));
        Ok(())
    }
}

impl Reader {
    /// The bytes of each of `parts` of `segment`, which stand in their order there. `turn` is awaited before each operation.
    pub async fn read_all<T: Future<Output = ()>>(
        &self,
        segment: SegmentIndex,
        parts: &[Part],
        turn: impl Fn() -> T,
    ) -> Result<Vec<Slice>> {
        let mut found: Vec<Option<Slice>> = vec![None; parts.len()];
        let mut runs: Vec<Run> = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let read = match self.locate(segment, part.sector, part.sectors) {
                Located::Cached(slice) => {
                    found[index] = Some(slice);
                    continue;
                }
                Located::Stored(read) => read,
            };
            let apart = match runs.last_mut() {
                Some(run) => run.add(index, read).err(),
                None => Some(read),
            };
            runs.extend(apart.map(|read| Run::new(index, read)));
        }
        let Some(segment) = self.segment(segment).filter(|_| !runs.is_empty()) else {
            return Ok(found.into_iter().flatten().collect());
        };
        let read = |run| async {
            turn().await;
            self.read_run(segment, run, parts).await
        };
        let mut reads = stream::iter(runs).map(read).buffer_unordered(CONCURRENCY);
        while let Some(slices) = reads.try_next().await? {
            for (index, slice) in slices {
                found[index] = Some(slice);
            }
        }
        Ok(found.into_iter().map(|slice| slice.expect("each part was cached or read")).collect())
    }

    async fn read_run(&self, segment: &Rc<Segment>, run: Run, parts: &[Part]) -> Result<Vec<(usize, Slice)>> {
        let length = to_usize(run.bytes.end - run.bytes.start);
        let mut slices = Vec::with_capacity(run.reads.len());
        let mut alone = Vec::new();
        match self.runtime().read(&segment.file, run.bytes.start, length).await {
            Ok(mut buffer) => {
                // Parts of one payload stand beside each other: it is opened once.
                let mut opened: Option<(u64, bool)> = None;
                let mut sound = Vec::with_capacity(run.reads.len());
                for (index, read) in run.reads {
                    let payload = within(&run.bytes, &read.bytes());
                    let is_sound = match opened {
                        Some((start, is_sound)) if start == read.bytes().start => is_sound,
                        _ => read.open_in_place(&mut buffer[payload.clone()], self.planted()),
                    };
                    opened = Some((read.bytes().start, is_sound));
                    match is_sound {
                        true => sound.push((
                            index,
                            payload.start + read.within().start..payload.start + read.within().end,
                        )),
                        false => alone.push(index),
                    }
                }
                let buffer = buffer.freeze();
                slices.extend(sound.into_iter().map(|(index, bytes)| (index, buffer.slice(bytes))));
            }
            Err(error) => {
                tracing::debug!(%error, "a read of several records failed; each is read alone");
                alone.extend(run.reads.iter().map(|(index, _)| *index));
            }
        }
        for index in alone {
            let Part { sector, sectors } = parts[index];
            slices.push((index, self.read(segment.index, sector, sectors).await?));
        }
        Ok(slices)
    }
}

/// Where `inner` lies in `outer`, both in bytes of a file.
fn within(outer: &Range<u64>, inner: &Range<u64>) -> Range<usize> {
    to_usize(inner.start - outer.start)..to_usize(inner.end - outer.start)
}

/// Bytes that reading `part` costs behind what was read up to `end`, in sectors of the segment: the gap, where it is read, too.
pub fn cost(end: u64, part: Part) -> u64 {
    let gap = (u64::from(part.sector).saturating_sub(end)) * SECTOR_BYTES;
    part.sectors * SECTOR_BYTES + if gap <= GAP_BYTES_MAX { gap } else { 0 }
}
