//! Writing sectors anew with what their disk holds: a record of the group's own, so that disk, deltas and points say the same
//! of them from there on.
//!
//! Points may lack what a disk has, when a record rotted that only a delta still needed, or when a delta itself is damaged
//! ([`super::repair`]); and when the loss of a record is accepted, what the image has instead must become a write like any other.
//! Either way the sectors are read and written piece by piece, through the journal.
//!
//! ```text
//!  piece ─▶ read what the disk holds ─▶ nobody wrote there meanwhile? ─▶ journal ─▶ visible ─▶ durable
//! ```
//!
//! Invariant: a renewal never hides a guest's write. A piece is read once every earlier write to it is visible, and it is
//! queued only if none was issued since; a later one comes later in the journal. A latched disk takes no writes at all.

use std::rc::Rc;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::extent::Ranges;
use crate::format::frame::RECORD_PAYLOAD_BYTES_MAX;
use crate::image::Image;
use crate::image::side::SidePiece;
use crate::image::sums::Verdict;
use crate::journal::reader::Reader;
use crate::journal::segments::Source;
use crate::journal::writer::Entry;
use crate::planted::Bug;
use crate::protect::allocation;
use crate::protect::disk::{Care, Disk};
use crate::protect::events::GroupEvent;
use crate::protect::group::{Group, nanos};
use crate::protect::mailbox::Done;
use crate::protect::place::Place;
use crate::protect::retry::RETRY_DELAY;
use crate::runtime::Runtime;
use crate::storage::Buffer;
use crate::units::{DiskSlot, Lsn, MonotonicNanos, SECTOR_BYTES, SectorRange, to_usize};

/// Sectors of a piece, at most: a record's.
const PIECE_SECTORS: u64 = RECORD_PAYLOAD_BYTES_MAX as u64 / SECTOR_BYTES;
/// Sectors of a piece that may be a hole: if it is not, it is read in pieces of records.
const HOLE_SECTORS: u64 = (64 << 20) / SECTOR_BYTES;
/// Pieces that wait for the journal at a time.
const QUEUED_MAX: usize = 16;
/// Marks the cookies of renewals among those of requests; the rest of one is the slot.
const COOKIE: u64 = 1 << 63;

/// What a disk holds at a piece.
#[derive(Debug)]
pub(super) enum Held {
    Bytes(Bytes),
    /// It has no space there, and reads as zeros.
    Hole,
    /// The image was written to meanwhile: it is to be looked up again.
    Overwritten,
    /// More than a record takes: it is read in parts.
    Much,
}

/// Sectors of a disk on their way into the journal.
#[derive(Debug)]
pub struct Renewal {
    /// Those that are still to be read, the next one last.
    pieces: Vec<SectorRange>,
    sectors: u64,
    /// The one that is being read, and whether somebody has written to it meanwhile.
    reading: Option<(SectorRange, bool)>,
    /// Queued, and not visible yet.
    queued: usize,
    /// The last record of it that became visible.
    last: Lsn,
    /// After a failure: when it goes on.
    due: Option<MonotonicNanos>,
    /// Where the disk has no space, zeros that take none are written.
    keeps_holes: bool,
    /// Sectors that are read at a time.
    piece_sectors: u64,
}

impl Renewal {
    fn of(ranges: &Ranges, keeps_holes: bool, piece_sectors: u64) -> Renewal {
        let first = if keeps_holes { HOLE_SECTORS } else { piece_sectors };
        let mut pieces: Vec<_> = ranges.pieces(first).collect();
        pieces.reverse();
        let (sectors, last) = (ranges.sectors(), Lsn::ZERO);
        Renewal { pieces, sectors, reading: None, queued: 0, last, due: None, keeps_holes, piece_sectors }
    }

    /// Sectors that were not read yet.
    pub(super) fn unread(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.sectors()).sum()
    }

    /// Somebody writes to `range`.
    pub fn disturb(&mut self, range: SectorRange) {
        if let Some((piece, is_disturbed)) = &mut self.reading {
            *is_disturbed |= piece.intersection(range).is_some();
        }
    }

    /// A piece that is not a hole is read in parts.
    fn split(&mut self, piece: SectorRange) {
        let parts: Vec<_> = Ranges::of([piece]).pieces(self.piece_sectors).collect();
        self.pieces.extend(parts.into_iter().rev());
    }

    fn is_whole(&self) -> bool {
        self.pieces.is_empty() && self.reading.is_none() && self.queued == 0
    }
}

/// The disk whose renewal a cookie is of.
pub(super) fn renewed_slot(cookie: u64) -> Option<DiskSlot> {
    let slot = u32::try_from(cookie & !COOKIE).ok()?;
    (cookie & COOKIE != 0).then_some(DiskSlot(slot))
}

impl Group {
    /// Begins to write `ranges` of a disk anew.
    pub(super) fn renew(&mut self, slot: DiskSlot, ranges: Ranges, keeps_holes: bool) {
        let Some(disk) = self.disks.get_mut(&slot) else { return };
        // The smallest segments do not take the largest records.
        let piece_sectors = PIECE_SECTORS.min(self.settings.plan.segment_bytes / 2 / SECTOR_BYTES);
        // It may have become smaller.
        let ranges = ranges.without([SectorRange::new(disk.record.sectors.0, u64::MAX)]);
        disk.renewal = Some(Renewal::of(&ranges, keeps_holes, piece_sectors));
        self.is_renewing = true;
    }

    /// Begins to renew what the newest point lacks of disks that have it.
    pub(super) fn renew_lacking(&mut self) {
        let Some(newest) = self.points.last().filter(|_| !self.stopping) else { return };
        let marker = newest.marker;
        let lacking = newest.disks.iter().filter(|disk| !disk.lacking().is_empty());
        let lacking: Vec<_> =
            lacking.map(|disk| (disk.slot, Ranges::of(disk.lacking().iter().copied()))).collect();
        for (slot, ranges) in lacking {
            // What was renewed after the marker is on its way into the next point.
            let wants =
                |disk: &Disk| disk.latched.is_none() && disk.renewal.is_none() && disk.renewed <= marker;
            // What is renewed must not come after the zeros of a growth.
            if self.disks.get(&slot).is_some_and(wants) && !self.resizes(slot) {
                self.renew(slot, ranges, false);
            }
        }
    }

    /// Goes on with what is being renewed.
    pub(super) fn care_for_renewals(&mut self) {
        if !self.is_renewing {
            return;
        }
        let slots: Vec<_> =
            self.disks.iter().filter(|(_, disk)| disk.renewal.is_some()).map(|(&slot, _)| slot).collect();
        self.is_renewing = !slots.is_empty();
        for slot in slots {
            self.go_on_renewing(slot);
        }
    }

    fn go_on_renewing(&mut self, slot: DiskSlot) {
        let (now, durable) = (self.runtime.now(), self.writer.durable());
        let disk = self.disks.get_mut(&slot).expect("it was looked for");
        let is_acceptance = disk.care == Care::Renewing;
        if self.stopping || disk.latched.is_some() != is_acceptance {
            // A latch that came in between is another matter; what is queued already does no harm.
            disk.renewal = None;
            if is_acceptance {
                disk.care = Care::None;
            }
            return;
        }
        let renewal = disk.renewal.as_mut().expect("it was looked for");
        if renewal.is_whole() {
            if renewal.last <= durable {
                self.end_renewal(slot);
            }
            return;
        }
        let is_due = renewal.due.is_none_or(|due| due <= now);
        let Some(&piece) = renewal.pieces.last().filter(|_| is_due) else { return };
        if renewal.reading.is_some() || renewal.queued >= QUEUED_MAX {
            return;
        }
        if self.has_writes_under_way(slot, piece) {
            // Where there is always somebody who writes to a large piece, small ones get their turn.
            let renewal = self.disks.get_mut(&slot).and_then(|disk| disk.renewal.as_mut());
            if let Some(renewal) = renewal.filter(|renewal| piece.sectors() > renewal.piece_sectors) {
                renewal.pieces.pop();
                renewal.split(piece);
            }
            return;
        }
        self.begin_piece(slot, is_acceptance);
    }

    fn begin_piece(&mut self, slot: DiskSlot, is_acceptance: bool) {
        let disk = self.disks.get_mut(&slot).expect("it was looked for");
        let renewal = disk.renewal.as_mut().expect("it was looked for");
        let piece = renewal.pieces.pop().expect("there is one");
        (renewal.reading, renewal.due) = (Some((piece, false)), None);
        let (keeps_holes, piece_sectors) = (renewal.keeps_holes, renewal.piece_sectors);
        let image = disk.attached().clone();
        let epoch = image.sums.epoch();
        // An image that took all but what is lost has what is to be written; over it are the notes.
        let parts = if is_acceptance { vec![(piece, Place::Image)] } else { self.places(slot, piece) };
        let (runtime, reader, mailbox) = (Rc::clone(&self.runtime), self.reader(), Rc::clone(&self.mailbox));
        let is_forgetful = self.settings.plan.planted.is(Bug::RenewedAsHoles);
        self.tasks.spawn(async move {
            let result = match keeps_holes && (is_forgetful || is_hole(&runtime, &image, &parts).await) {
                true => Ok(Held::Hole),
                false if piece.sectors() > piece_sectors => Ok(Held::Much),
                false => {
                    let (runtime, reader, image, is_lost) = (&runtime, &reader, &image, is_acceptance);
                    Places { runtime, reader, image, epoch, is_lost }.read(&parts).await
                }
            };
            mailbox.borrow_mut().push_back(Done::Renewed(slot, piece, result));
        });
    }

    /// A piece was read, or not.
    pub(super) fn finish_piece(&mut self, slot: DiskSlot, piece: SectorRange, result: Result<Held>) {
        let now = self.runtime.now();
        let Some(disk) = self.disks.get_mut(&slot) else { return };
        // It may have been given up, and another begun.
        let reading = |renewal: &&mut Renewal| renewal.reading.is_some_and(|(range, _)| range == piece);
        let Some(renewal) = disk.renewal.as_mut().filter(reading) else { return };
        let is_disturbed = renewal.reading.take().is_some_and(|(_, is_disturbed)| is_disturbed);
        match result {
            Ok(Held::Much) => renewal.split(piece),
            Ok(Held::Overwritten) => renewal.split(piece),
            Ok(_) if is_disturbed => renewal.split(piece),
            Ok(Held::Bytes(payload)) => {
                renewal.queued += 1;
                let entry = Entry::Write { disk: slot, range: piece, payload };
                self.writer.enqueue(entry, Some(COOKIE | u64::from(slot.0)));
            }
            Ok(Held::Hole) => {
                renewal.queued += 1;
                let entry = Entry::Zero { disk: slot, range: piece, allocated: false };
                self.writer.enqueue(entry, Some(COOKIE | u64::from(slot.0)));
            }
            Err(error) if disk.care == Care::Renewing => {
                (disk.renewal, disk.care) = (None, Care::None);
                self.stays_latched(slot, &error);
            }
            Err(error) if self.repairing.as_ref().is_some_and(|repairing| repairing.renews(slot)) => {
                disk.renewal = None;
                self.fail_repair(error);
            }
            Err(error) => {
                tracing::warn!(group = %self.name, disk = %disk.record.name, %error, "what points lack of a disk cannot be read yet");
                // The others come first: one that stays so must not keep the rest from the points.
                renewal.pieces.insert(0, piece);
                renewal.due = Some(MonotonicNanos(now.0 + nanos(RETRY_DELAY)));
                self.note_failed_request(slot, &error);
            }
        }
    }

    /// A piece became visible.
    pub(super) fn piece_is_visible(&mut self, slot: DiskSlot, lsn: Lsn) {
        if let Some(renewal) = self.disks.get_mut(&slot).and_then(|disk| disk.renewal.as_mut()) {
            renewal.queued = renewal.queued.saturating_sub(1);
            renewal.last = lsn;
            self.writer.want_durable(lsn);
        }
    }

    fn end_renewal(&mut self, slot: DiskSlot) {
        let disk = self.disks.get_mut(&slot).expect("it was looked for");
        let renewal = disk.renewal.take().expect("it was looked for");
        disk.renewed = renewal.last;
        if let Some(repairing) = &mut self.repairing {
            repairing.ended(slot);
        }
        if disk.care == Care::Renewing {
            // The records hide the notes now: the image can be mended like any other.
            (disk.care, disk.accepts_loss) = (Care::None, false);
        } else {
            let event = GroupEvent::Renewed { disk: disk.record.name.clone(), sectors: renewal.sectors };
            self.tell(event);
        }
    }

    /// When a renewal that failed goes on.
    pub(super) fn renewal_due(&self) -> Option<MonotonicNanos> {
        self.disks.values().filter_map(|disk| disk.renewal.as_ref()?.due).min()
    }
}

/// Whether the disk has no space at `parts`; where that cannot be told, they are read.
async fn is_hole(runtime: &Rc<Runtime>, image: &Image, parts: &[(SectorRange, Place)]) -> bool {
    let runs = allocation::describe(runtime, image, parts).await;
    runs.is_ok_and(|runs| runs.iter().all(|run| !run.allocated))
}

/// Where a disk's bytes are read.
struct Places<'a> {
    runtime: &'a Rc<Runtime>,
    reader: &'a Reader,
    image: &'a Image,
    /// When the places were looked up.
    epoch: u64,
    /// It is accepted that what is read is lost: what the image has instead is taken, and zeros where that is damaged, too.
    is_lost: bool,
}

impl Places<'_> {
    /// What the disk holds at `parts`.
    async fn read(&self, parts: &[(SectorRange, Place)]) -> Result<Held> {
        let mut bytes = Vec::with_capacity(to_usize(parts.iter().map(|(range, _)| range.bytes()).sum()));
        for (range, place) in parts {
            let length = to_usize(range.bytes());
            match place {
                Place::Layer(Source::Zero { .. }) | Place::Side(SidePiece::Zero { .. }) => {
                    bytes.resize(bytes.len() + length, 0);
                }
                Place::Layer(Source::Journal { segment, sector }) => {
                    bytes.extend_from_slice(&self.reader.read(*segment, *sector, range.sectors()).await?);
                }
                Place::Side(SidePiece::Data(part)) => {
                    let chunk = self.runtime.read(&part.file, part.offset, part.bytes).await?;
                    bytes.extend_from_slice(&part.verified(chunk)?);
                }
                Place::Side(SidePiece::Unreadable) => {
                    return Err(Error::new(ErrorKind::Corrupt, "a record of the disk is lost"));
                }
                Place::Image => match self.read_image(*range).await? {
                    Some(data) => bytes.extend_from_slice(&data),
                    None => return Ok(Held::Overwritten),
                },
            }
        }
        Ok(Held::Bytes(Bytes::from(bytes)))
    }

    /// Fails where it is not what was written: damage is not to become a write.
    async fn read_image(&self, range: SectorRange) -> Result<Option<Buffer>> {
        let file = &self.image.file;
        let mut data = self.runtime.read(file, range.byte_offset(), to_usize(range.bytes())).await?;
        match self.image.sums.check(self.epoch, range, &data).await? {
            Verdict::Sound => {}
            Verdict::Overwritten => return Ok(None),
            Verdict::Damaged(damaged) if self.is_lost => {
                for (sectors, error) in damaged {
                    tracing::warn!(%error, "what is lost becomes zeros: the image has nothing to put in its place");
                    let start = to_usize((sectors.start - range.start) * SECTOR_BYTES);
                    data[start..start + to_usize(sectors.bytes())].fill(0);
                }
            }
            Verdict::Damaged(damaged) => {
                return Err(damaged.into_iter().next().expect("there is one, at least").1);
            }
        }
        Ok(Some(data))
    }
}
