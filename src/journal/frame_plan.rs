//! What goes into one frame, and where: gathers entries as long as they fit, then lays them out in one aligned buffer.
//!
//! Knows no queue and no policy: the writer says what comes next, and how much room there is.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::format::frame::{Frame, Payload, RECORDS_MAX, Record, RecordKind, header_bytes};
use crate::format::marker::Marker;
use crate::journal::segments::{Segment, Source};
use crate::journal::writer::{Entry, Visible, VisibleEvent};
use crate::storage::{Buffer, Slice};
use crate::units::{PAGE_BYTES, SECTOR_BYTES};

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
#[derive(Default)]
pub(super) struct FramePlan {
    pending: Vec<Pending>,
    records: usize,
    payload_bytes: usize,
}

impl FramePlan {
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
        header_bytes(self.records) + self.payload_bytes.next_multiple_of(PAGE_BYTES)
    }

    /// Whether one more entry leaves the frame within `limit` bytes.
    pub(super) fn fits(&self, entry: &Entry, limit: usize) -> bool {
        let payload = entry.payload_bytes();
        let with = FramePlan {
            pending: Vec::new(),
            records: self.records + 1,
            payload_bytes: aligned_start(self.payload_bytes, payload) + payload,
        };
        with.records <= RECORDS_MAX && with.total_bytes() <= limit
    }

    /// Fills in the frame's records and lays header and payloads out in one aligned buffer; with the header's sum.
    pub(super) fn assemble(
        self,
        frame: &mut Frame,
        segment: &Segment,
        first_sector: u32,
    ) -> (Slice, u64, Vec<Visible>) {
        let header = header_bytes(self.pending.len());
        let total = self.total_bytes();
        let mut buffer = Buffer::recycled(total);
        let mut visible = Vec::with_capacity(self.pending.len());
        let (mut end, records) = (0, self.pending.len());
        let header_sectors = u32::try_from(header as u64 / SECTOR_BYTES).expect("a header has few pages");
        for (index, pending) in self.pending.into_iter().enumerate() {
            let body = Body::of(pending.entry);
            let start = aligned_start(end, body.payload.len());
            buffer[header + end..header + start].fill(0);
            end = start + body.payload.len();
            buffer[header + start..header + end].copy_from_slice(&body.payload);
            let payload = Payload {
                sector: u32::try_from(start as u64 / SECTOR_BYTES).expect("frames are small"),
                sectors: u32::try_from(body.payload.len() as u64 / SECTOR_BYTES).expect("records are small"),
                sum: if body.payload.is_empty() { 0 } else { xxh3_64(&buffer[header + start..header + end]) },
            };
            let sector = first_sector + header_sectors + payload.sector;
            frame.records.push(Record { kind: body.kind, payload });
            let lsn = frame.first_lsn.advance(index as u64);
            let source = Source::Journal { segment: segment.index, sector };
            let ends_frame = index + 1 == records;
            visible.push(Visible { lsn, event: body.event(source), cookie: pending.cookie, ends_frame });
        }
        buffer[header + end..].fill(0);
        frame.payload_pages = u32::try_from((total - header) / PAGE_BYTES).expect("frames are small");
        let sum = frame.encode_header(&mut buffer[..header]);
        (buffer.freeze(), sum, visible)
    }
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
