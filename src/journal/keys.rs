//! The keys of a journal's incarnations: each seals the frames that it wrote, and nothing else.
//!
//! A nonce is a place: the use of a segment, and the sector in it where a payload or a header starts. An incarnation
//! writes each place once, for it only appends, and a failed write ends it. What a next incarnation writes over a torn tail
//! is sealed under its own key. An opening's payload stays plain, and is bound: a scan without keys follows the chain.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::format::frame::{Frame, FrameSeal};
use crate::format::marker::Opening;
use crate::seal::{Forged, Generation, GroupKeys, Nonce, Purpose, Sealer, Tag};
use crate::units::{IncarnationId, PAGE_BYTES, SECTOR_BYTES, SegmentSequence};

const PAGE_SECTORS: u32 = 8;
const _: () = assert!(PAGE_SECTORS as u64 * SECTOR_BYTES == PAGE_BYTES as u64);

/// The key of one incarnation.
#[derive(Debug)]
pub struct FrameKey {
    /// Whose frames it seals.
    pub incarnation: IncarnationId,
    /// Of which group key it is.
    pub generation: Generation,
    sealer: Sealer,
}

fn nonce(segment: SegmentSequence, sector: u32) -> Nonce {
    Nonce { counter: segment.0, part: sector }
}

impl FrameKey {
    /// For an incarnation that begins; nothing where the group is not sealed.
    pub fn begin(keys: &GroupKeys, incarnation: IncarnationId) -> Option<Rc<FrameKey>> {
        let sealing = keys.sealing(Purpose::Journal, incarnation.0)?;
        Some(Rc::new(FrameKey { incarnation, generation: sealing.generation, sealer: sealing.sealer }))
    }

    /// Seals a payload that comes to stand at a sector of a segment.
    pub fn seal(&self, segment: SegmentSequence, sector: u32, plain: &[u8], sealed: &mut [u8]) -> Tag {
        self.sealer.seal_into(nonce(segment, sector), &[], plain, sealed)
    }

    /// Binds a payload that stays plain.
    pub fn bind(&self, segment: SegmentSequence, sector: u32, plain: &[u8]) -> Tag {
        self.sealer.seal(nonce(segment, sector), plain, &mut [])
    }

    /// Opens a payload in place.
    pub fn open(
        &self,
        segment: SegmentSequence,
        sector: u32,
        bytes: &mut [u8],
        tag: &Tag,
    ) -> std::result::Result<(), Forged> {
        self.sealer.open(nonce(segment, sector), &[], bytes, tag)
    }

    /// The tag of a frame's header, which is complete but for it.
    pub fn bind_header(&self, frame: &Frame) -> Tag {
        self.sealer.seal(header_nonce(frame), &frame.bound_header(), &mut [])
    }

    fn proves(&self, frame: &Frame, seal: &FrameSeal, opening: Option<&Opening>) -> bool {
        let header = self.sealer.open(header_nonce(frame), &frame.bound_header(), &mut [], &seal.header);
        let opening = opening.zip(frame.records.first()).zip(seal.payloads.first());
        let opening = opening.is_none_or(|((opening, record), tag)| {
            let sector = frame.payload_base() + record.payload.sector;
            self.sealer.open(nonce(frame.segment, sector), &opening.encode(), &mut [], tag).is_ok()
        });
        header.is_ok() && opening
    }
}

fn header_nonce(frame: &Frame) -> Nonce {
    nonce(frame.segment, frame.segment_page * PAGE_SECTORS)
}

/// The keys that were asked for so far.
#[derive(Debug)]
pub struct JournalKeys {
    keys: GroupKeys,
    known: RefCell<BTreeMap<(Generation, u128), Rc<FrameKey>>>,
}

impl JournalKeys {
    /// Of a group with these keys.
    pub fn new(keys: GroupKeys) -> JournalKeys {
        JournalKeys { keys, known: RefCell::default() }
    }

    /// The key of an incarnation; nothing where neither group nor frame is sealed.
    ///
    /// # Errors
    /// As [`GroupKeys::opener`].
    pub fn of(
        &self,
        incarnation: IncarnationId,
        generation: Option<Generation>,
    ) -> Result<Option<Rc<FrameKey>>> {
        let place = (generation.unwrap_or(Generation(0)), incarnation.0);
        if let Some(key) = self.known.borrow().get(&place) {
            return Ok(Some(Rc::clone(key)));
        }
        let Some(sealer) = self.keys.opener(place.0.0, Purpose::Journal, incarnation.0)? else {
            return Ok(None);
        };
        let key = Rc::new(FrameKey { incarnation, generation: place.0, sealer });
        self.known.borrow_mut().insert(place, Rc::clone(&key));
        Ok(Some(key))
    }

    /// The key of a frame whose header, and opening if it has one, were compared with their tags.
    pub fn of_frame(&self, frame: &Frame, opening: Option<&Opening>) -> Result<Option<Rc<FrameKey>>> {
        let seal = frame.seal.as_ref();
        let key = self.of(frame.incarnation, seal.map(|seal| seal.generation))?;
        match (&key, seal) {
            (Some(key), Some(seal)) if !key.proves(frame, seal, opening) => {
                let text =
                    format!("the seal of frame {} does not fit: its header was changed", frame.number.0);
                Err(Error::corrupt(text).at_offset(frame.segment_offset()))
            }
            _ => Ok(key),
        }
    }
}
