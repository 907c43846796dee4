//! What goes into one frame, and where: gathers entries as long as they fit, then lays them out in one aligned buffer.
//!
//! Knows no queue and no policy: the writer says what comes next, and how much room there is.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::format::frame::{Frame, FrameSeal, Payload, Record, RecordKind, header_bytes, records_max};
use crate::format::marker::Marker;
use crate::journal::keys::FrameKey;
use crate::journal::segments::{Segment, Source};
use crate::journal::writer::{Entry, Visible, VisibleEvent};
use crate::seal::{TAG_BYTES, Tag};
use crate::storage::{Buffer, Slice};
use crate::units::{PAGE_BYTES, SECTOR_BYTES, SegmentSequence};

/// An entry that waits for its frame.
pub(super) struct Pending {
    /// What is to be recorded.
    pub entry: Entry,
    /// What the owner wants to be reminded of.
    pub cookie: Option<u64>,
}

/// Payload that a control record takes, at most.
pub(super) fn control_bytes(entry: &Entry) -> usize {
    match entry {
        Entry::Marker(marker) => marker.encode().len(),
        Entry::Opening(opening) => opening.encode().len(),
        Entry::Write { .. } | Entry::Zero { .. } | Entry::Seal => 0,
    }
}

/// The records that one frame is to carry.
pub(super) struct FramePlan {
    is_sealed: bool,
    pending: Vec<Pending>,
    records: usize,
    payload_bytes: usize,
}

/// A frame, ready to be written.
pub(super) struct Assembled {
    /// Header and payloads as they are stored.
    pub stored: Slice,
    /// The same with plain payloads, for the cache.
    pub plain: Slice,
    /// The header's sum.
    pub sum: u64,
    /// What becomes visible with it.
    pub visible: Vec<Visible>,
}

impl FramePlan {
    /// Of nothing yet.
    pub(super) fn new(is_sealed: bool) -> FramePlan {
        FramePlan { is_sealed, pending: Vec::new(), records: 0, payload_bytes: 0 }
    }

    /// Whether it carries nothing: the frame only states what is durable.
    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// How many records were added.
    pub(super) fn records(&self) -> usize {
        self.pending.len()
    }

    /// Counts a record of that payload.
    pub(super) fn reserve(&mut self, payload_bytes: usize) {
        self.records += 1;
        self.payload_bytes = aligned_start(self.payload_bytes, payload_bytes) + payload_bytes;
    }

    /// Adds a record.
    pub(super) fn push(&mut self, pending: Pending) {
        self.reserve(pending.entry.payload_bytes().max(control_bytes(&pending.entry)));
        self.pending.push(pending);
    }

    /// What the frame takes, header and all.
    pub(super) fn total_bytes(&self) -> usize {
        header_bytes(self.records, self.is_sealed) + self.payload_bytes.next_multiple_of(PAGE_BYTES)
    }

    /// Whether one more entry leaves the frame within `limit` bytes.
    pub(super) fn fits(&self, entry: &Entry, limit: usize) -> bool {
        let payload = entry.payload_bytes();
        let with = FramePlan {
            is_sealed: self.is_sealed,
            pending: Vec::new(),
            records: self.records + 1,
            payload_bytes: aligned_start(self.payload_bytes, payload) + payload,
        };
        with.records <= records_max(self.is_sealed) && with.total_bytes() <= limit
    }

    /// Fills in the frame's records and lays header and payloads out in an aligned buffer, and in another one under `key`.
    pub(super) fn assemble(
        self,
        frame: &mut Frame,
        segment: &Segment,
        first_sector: u32,
        key: Option<&FrameKey>,
    ) -> Assembled {
        let header = header_bytes(self.pending.len(), self.is_sealed);
        let total = self.total_bytes();
        let mut plain = Buffer::recycled(total);
        let mut sealed = key.map(|key| (key, Buffer::recycled(total)));
        let mut tags = Vec::new();
        let mut visible = Vec::with_capacity(self.pending.len());
        let (mut end, records) = (0, self.pending.len());
        let header_sectors = u32::try_from(header as u64 / SECTOR_BYTES).expect("a header has few pages");
        for (index, pending) in self.pending.into_iter().enumerate() {
            let body = Body::of(pending.entry);
            let start = aligned_start(end, body.payload.len());
            let (gap, place) =
                (header + end..header + start, header + start..header + start + body.payload.len());
            end = start + body.payload.len();
            let mut payload = Payload {
                sector: u32::try_from(start as u64 / SECTOR_BYTES).expect("frames are small"),
                sectors: u32::try_from(body.payload.len() as u64 / SECTOR_BYTES).expect("records are small"),
                sum: 0,
            };
            let sector = first_sector + header_sectors + payload.sector;
            plain[gap.clone()].fill(0);
            plain[place.clone()].copy_from_slice(&body.payload);
            if let Some((key, sealed)) = &mut sealed {
                sealed[gap].fill(0);
                tags.push(seal(key, (frame.segment, sector), &body, &mut sealed[place.clone()]));
            }
            if !body.payload.is_empty() {
                let stored = sealed.as_ref().map_or(&plain, |(_, sealed)| sealed);
                payload.sum = xxh3_64(&stored[place]);
            }
            frame.records.push(Record { kind: body.kind, payload });
            let lsn = frame.first_lsn.advance(index as u64);
            let source = Source::Journal { segment: segment.index, sector };
            let ends_frame = index + 1 == records;
            visible.push(Visible { lsn, event: body.event(source), cookie: pending.cookie, ends_frame });
        }
        frame.payload_pages = u32::try_from((total - header) / PAGE_BYTES).expect("frames are small");
        let Some((key, mut sealed)) = sealed else {
            plain[header + end..].fill(0);
            let sum = frame.encode_header(&mut plain[..header]);
            let plain = plain.freeze();
            return Assembled { stored: plain.clone(), plain, sum, visible };
        };
        sealed[header + end..].fill(0);
        let unbound = FrameSeal { generation: key.generation, header: [0; TAG_BYTES], payloads: tags };
        frame.seal = Some(unbound);
        let tag = key.bind_header(frame);
        frame.seal.iter_mut().for_each(|seal| seal.header = tag);
        let sum = frame.encode_header(&mut sealed[..header]);
        Assembled { stored: sealed.freeze(), plain: plain.freeze(), sum, visible }
    }
}

/// Seals a record's payload into its place; an opening stays plain, for scans that have no keys.
fn seal(key: &FrameKey, (segment, sector): (SegmentSequence, u32), body: &Body, sealed: &mut [u8]) -> Tag {
    if body.payload.is_empty() {
        return [0; TAG_BYTES];
    }
    if body.kind == RecordKind::Opening {
        sealed.copy_from_slice(&body.payload);
        return key.bind(segment, sector, &body.payload);
    }
    key.seal(segment, sector, &body.payload, sealed)
}

/// Where a payload of `len` bytes starts when the area is filled to `end`: whole pages go to page boundaries, so
/// that what is page-aligned on the disk is page-aligned in the journal.
fn aligned_start(end: usize, len: usize) -> usize {
    if len > 0 && len.is_multiple_of(PAGE_BYTES) { end.next_multiple_of(PAGE_BYTES) } else { end }
}

/// An entry, ready to be laid out.
struct Body {
    kind: RecordKind,
    payload: Bytes,
    marker: Option<Marker>,
}

impl Body {
    fn of(entry: Entry) -> Body {
        match entry {
            Entry::Write { disk, range, payload } => {
                Body { kind: RecordKind::Write { disk, range }, payload, marker: None }
            }
            Entry::Zero { disk, range, allocated } => Body {
                kind: RecordKind::Zero { disk, range, allocated },
                payload: Bytes::new(),
                marker: None,
            },
            Entry::Marker(marker) => {
                Body { kind: RecordKind::Marker, payload: marker.encode().into(), marker: Some(marker) }
            }
            Entry::Opening(opening) => {
                Body { kind: RecordKind::Opening, payload: opening.encode().into(), marker: None }
            }
            Entry::Seal => Body { kind: RecordKind::Seal, payload: Bytes::new(), marker: None },
        }
    }

    fn event(self, source: Source) -> VisibleEvent {
        match (self.kind, self.marker) {
            (RecordKind::Write { disk, range }, _) => VisibleEvent::Data { disk, range, source },
            (RecordKind::Zero { disk, range, allocated }, _) => {
                VisibleEvent::Data { disk, range, source: Source::Zero { allocated } }
            }
            (_, Some(marker)) => VisibleEvent::Marker(marker),
            (_, None) => VisibleEvent::Boundary,
        }
    }
}
