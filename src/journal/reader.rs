//! Reads record payloads back: from the frame cache, or from the segment.
//!
//! Whatever comes from a file is read by whole payloads and compared with its sum, or opened by its seal, before any byte of it leaves here:
//! bit rot under a running gateway is an error with file and offset ([`PayloadRead`]), never somebody's data. So is a record that the
//! device does not give, once it was asked [often enough](crate::journal::patience): whoever reads goes on without it, as if it had
//! rotted; each later read asks once more, for it may come back. Frames in
//! the cache are what was sealed and written, still plain, and are not checked again. Guests' reads (`protect::reads`), which are no
//! tasks, go through the same [`locate`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use futures::FutureExt;

use crate::error::{Error, ErrorKind, Result};
use crate::journal::cache::FrameCache;
use crate::journal::patience::{is_refusal, patiently};
use crate::journal::payloads::{PayloadSeal, StoredPayload};
use crate::journal::recent::RecentPayloads;
use crate::journal::segments::{Segment, SegmentIndex, Segments};
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::storage::{Buffer, Op, Slice};
use crate::units::{SECTOR_BYTES, to_usize};

/// Where bytes of the journal are to be had.
pub enum Located {
    /// In memory.
    Cached(Slice),
    /// In their segment.
    Stored(PayloadRead),
}

/// Finds the bytes of `sectors` sectors at `sector` of a segment, which `find` knows where memory lacks them.
///
/// # Panics
/// If the segment is not in use, or no record's payload holds the bytes: extents lie within the records that they
/// were made of.
pub fn locate<'a>(
    cache: &FrameCache,
    (segment, sector): (SegmentIndex, u32),
    sectors: u64,
    find: impl FnOnce(SegmentIndex) -> Option<&'a Rc<Segment>>,
) -> Located {
    if let Some(slice) = cache.get(segment, sector, sectors) {
        return Located::Cached(slice);
    }
    let segment = find(segment).expect("a map names only segments that are in use");
    let (payload, seal) = segment.payload(sector, sectors).expect("an extent lies within a record's payload");
    let start = to_usize(u64::from(sector - payload.sector) * SECTOR_BYTES);
    let within = start..start + to_usize(sectors * SECTOR_BYTES);
    Located::Stored(PayloadRead { segment: Rc::clone(segment), payload, seal, within })
}

/// A read of a payload of which a part is wanted. It pins the segment.
pub struct PayloadRead {
    segment: Rc<Segment>,
    payload: StoredPayload,
    seal: Option<PayloadSeal>,
    within: Range<usize>,
}

impl PayloadRead {
    /// The operation that reads all of the payload.
    pub fn operation(&self) -> Op {
        let buffer = Buffer::recycled(self.payload_bytes());
        Op::Read { file: self.segment.file.clone(), offset: self.payload.byte_offset(), buffer }
    }

    /// Which payload it is: its file, and where it begins there.
    pub fn place(&self) -> (usize, u64) {
        (self.segment.file.identity(), self.payload.byte_offset())
    }

    /// Which bytes of the segment the payload is.
    pub(super) fn bytes(&self) -> Range<u64> {
        let start = self.payload.byte_offset();
        start..start + self.payload_bytes() as u64
    }

    /// How long the payload is.
    pub fn payload_bytes(&self) -> usize {
        to_usize(u64::from(self.payload.sectors) * SECTOR_BYTES)
    }

    /// Whether only a part of the payload is wanted.
    fn is_part(&self) -> bool {
        self.within.len() < self.payload_bytes()
    }

    /// What of the payload is wanted.
    pub fn within(&self) -> Range<usize> {
        self.within.clone()
    }

    /// The part that is wanted of what the operation read; `Corrupt` if it is not what was written.
    pub fn verify(&self, buffer: Buffer, planted: Planted) -> Result<Slice> {
        Ok(self.open(buffer, planted)?.freeze().slice(self.within.clone()))
    }

    /// Makes plain bytes of all of the payload as it was read; `false` if it is not what was written.
    pub(super) fn open_in_place(&self, bytes: &mut [u8], planted: Planted) -> bool {
        let is_sound = match &self.seal {
            // The tag says more than the checksum.
            Some(PayloadSeal { key, tag }) => {
                key.open(self.segment.sequence(), self.payload.sector, bytes, tag).is_ok()
            }
            None => self.payload.is_sound(bytes),
        };
        is_sound || planted.is(Bug::UnverifiedRead)
    }

    /// All of the payload.
    pub fn open(&self, mut buffer: Buffer, planted: Planted) -> Result<Buffer> {
        if !self.open_in_place(&mut buffer, planted) {
            let what = if self.seal.is_some() { "seal does not fit" } else { "checksum does not match" };
            let text = format!("a record in the journal is not what was written: its {what}");
            let error = Error::corrupt(text).at_path(&self.segment.path);
            return Err(error.at_offset(self.payload.byte_offset()));
        }
        Ok(buffer)
    }
}

/// Holds the segments that were in use when it was made: none of them is recycled while it lives.
#[derive(Clone)]
pub struct Reader {
    runtime: Rc<Runtime>,
    cache: Rc<RefCell<FrameCache>>,
    segments: Rc<HashMap<SegmentIndex, Rc<Segment>>>,
    recent: Rc<RecentPayloads>,
    planted: Planted,
}

impl Reader {
    /// A reader of all that is in use now.
    pub fn new(
        runtime: Rc<Runtime>,
        cache: Rc<RefCell<FrameCache>>,
        segments: &Segments,
        planted: Planted,
    ) -> Reader {
        let pinned = segments.live().map(|segment| (segment.index, Rc::clone(segment))).collect();
        Reader { runtime, cache, segments: Rc::new(pinned), recent: Rc::default(), planted }
    }

    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(super) fn planted(&self) -> Planted {
        self.planted
    }

    pub(super) fn segment(&self, index: SegmentIndex) -> Option<&Rc<Segment>> {
        self.segments.get(&index)
    }

    /// Where the bytes of `sectors` sectors at `sector` of `segment` are to be had.
    pub(super) fn locate(&self, segment: SegmentIndex, sector: u32, sectors: u64) -> Located {
        locate(&self.cache.borrow(), (segment, sector), sectors, |index| self.segments.get(&index))
    }

    /// The bytes of `sectors` sectors at `sector` of `segment`.
    pub async fn read(&self, segment: SegmentIndex, sector: u32, sectors: u64) -> Result<Slice> {
        let stored = match self.locate(segment, sector, sectors) {
            Located::Cached(slice) => return Ok(slice),
            Located::Stored(stored) => stored,
        };
        if stored.is_part() {
            return self.part(stored).await;
        }
        let buffer = fetch(&self.runtime, &stored).await?;
        stored.verify(buffer, self.planted)
    }

    /// A part of a payload, of which others may be wanted as well.
    async fn part(&self, stored: PayloadRead) -> Result<Slice> {
        let stored = Rc::new(stored);
        let payload = self.recent.get(stored.place(), || {
            let (runtime, stored, planted) = (Rc::clone(&self.runtime), Rc::clone(&stored), self.planted);
            let read = async move { stored.open(fetch(&runtime, &stored).await?, planted) };
            read.map(|payload| payload.ok().map(Buffer::freeze)).boxed_local()
        });
        if let Some(payload) = payload.await {
            return Ok(payload.slice(stored.within()));
        }
        // An error is told to each who wanted a part, in its own words; and the bytes may come back.
        self.recent.forget(stored.place());
        stored.verify(fetch(&self.runtime, &stored).await?, self.planted)
    }
}

/// The payload as its device gives it. One that it refuses for good is `Corrupt`: not what was stored is to be had there.
async fn fetch(runtime: &Rc<Runtime>, stored: &PayloadRead) -> Result<Buffer> {
    let attempt = async || Ok(runtime.call(stored.operation()).await?.into_buffer());
    let (segment, sector) = (&stored.segment, stored.payload.sector);
    let was_refused = segment.is_refused(sector);
    let result = if was_refused { attempt().await } else { patiently(runtime, attempt).await };
    let is_refused = result.as_ref().is_err_and(is_refusal);
    if is_refused != was_refused {
        segment.note_refused(sector, is_refused);
    }
    result.map_err(|error| match is_refused {
        true => error.as_kind(ErrorKind::Corrupt).at_offset(stored.payload.byte_offset()),
        false => error,
    })
}
