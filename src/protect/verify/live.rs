//! What a guest would read: where the newest bytes of a range are at one moment, and the bytes themselves, with the file that
//! each part came from.
//!
//! The places are taken down on the owner thread in one go; reading them takes as long as it takes, and pins the journal's
//! segments meanwhile. A part whose image is overwritten in between shows the newer bytes, as it may to a guest, or has to be looked up
//! again.

use std::rc::Rc;

use futures::channel::oneshot;

use super::findings::LiveSide;
use crate::allocation::AllocationRun;
use crate::block::DataPiece;
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use crate::image::side::SidePiece;
use crate::image::sums::Verdict;
use crate::journal::reader::Reader;
use crate::journal::segments::Source;
use crate::protect::allocation;
use crate::protect::group::Group;
use crate::protect::mailbox::{Done, Mailbox};
use crate::protect::place::Place;
use crate::runtime::Runtime;
use crate::units::{DiskId, DiskSlot, Lsn, SectorRange, to_usize};

use super::since::Since;

/// What a verification asks of its group, on whose thread it is answered in one go.
pub(in crate::protect) enum Question {
    /// Where the bytes of a range are.
    Live { disk: DiskId, range: SectorRange, answer: oneshot::Sender<Result<LiveRead>> },
    /// What of a range was written after a marker.
    Since { slot: DiskSlot, range: SectorRange, marker: Lsn, answer: oneshot::Sender<Since> },
}

/// How a verification's task reaches its group.
pub(super) struct Asker(Mailbox);

impl Asker {
    pub(super) fn new(mailbox: Mailbox) -> Asker {
        Asker(mailbox)
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        self.0.borrow_mut().push_back(Done::Asked(question(sender)));
        receiver.await.map_err(|_| Error::new(ErrorKind::Shutdown, "the group was closed meanwhile"))
    }

    /// Where the bytes of a range are now. Fails where the disk answers no read.
    pub(super) async fn live(&self, disk: DiskId, range: SectorRange) -> Result<LiveRead> {
        self.ask(|answer| Question::Live { disk, range, answer }).await?
    }

    /// What of a range was written after a marker, as of now.
    pub(super) async fn since(&self, slot: DiskSlot, range: SectorRange, marker: Lsn) -> Result<Since> {
        self.ask(|answer| Question::Since { slot, range, marker, answer }).await
    }
}

/// A range of a disk as a guest would read it at one moment.
pub struct LiveRead {
    runtime: Rc<Runtime>,
    image: Image,
    /// When the places were looked up.
    epoch: u64,
    reader: Reader,
    parts: Vec<(SectorRange, Place)>,
}

/// What was read.
pub(super) struct LiveBytes {
    /// The bytes, in order.
    pub pieces: Vec<DataPiece>,
    /// Of these, those of the image that do not match their sums.
    pub damaged: Vec<(SectorRange, Error)>,
}

impl LiveRead {
    /// The bytes; nothing, if the image was written to meanwhile, so that the places have to be looked up again.
    pub(super) async fn read(&self) -> Result<Option<LiveBytes>> {
        let (mut pieces, mut damaged) = (Vec::with_capacity(self.parts.len()), Vec::new());
        for (range, place) in &self.parts {
            let piece = self.read_part(*range, place).await?;
            if let (Place::Image, DataPiece::Bytes(bytes)) = (place, &piece) {
                match self.image.sums.check(self.epoch, *range, bytes).await? {
                    Verdict::Sound => {}
                    Verdict::Overwritten => return Ok(None),
                    Verdict::Damaged(found) => damaged.extend(found),
                }
            }
            pieces.push(piece);
        }
        Ok(Some(LiveBytes { pieces, damaged }))
    }

    async fn read_part(&self, range: SectorRange, place: &Place) -> Result<DataPiece> {
        Ok(match place {
            Place::Layer(Source::Zero { .. }) | Place::Side(SidePiece::Zero { .. }) => {
                DataPiece::Zeros(range.bytes())
            }
            Place::Layer(Source::Journal { segment, sector }) => {
                DataPiece::Bytes(self.reader.read(*segment, *sector, range.sectors()).await?)
            }
            Place::Side(SidePiece::Data(part)) => {
                let chunk = self.runtime.read(&part.file, part.offset, part.bytes).await?;
                DataPiece::Bytes(part.verified(chunk)?)
            }
            Place::Side(SidePiece::Unreadable) => {
                let text = "a record of it rotted in the journal: 'status' names what was lost";
                return Err(Error::corrupt(text));
            }
            Place::Image => {
                let bytes = to_usize(range.bytes());
                let buffer = self.runtime.read(&self.image.file, range.byte_offset(), bytes).await?;
                DataPiece::Bytes(buffer.freeze())
            }
        })
    }

    /// Which parts hold data; what does not reads as zeros.
    pub async fn allocation(&self) -> Result<Vec<AllocationRun>> {
        allocation::describe(&self.runtime, &self.image, &self.parts).await
    }

    /// The image of the disk.
    pub(super) fn image(&self) -> &Image {
        &self.image
    }

    /// When the places were looked up.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether the image has all of it.
    pub(super) fn is_of_image(&self) -> bool {
        self.parts.iter().all(|(_, place)| matches!(place, Place::Image))
    }

    /// The runs of a range of one kind, in order: what a finding names.
    pub(super) fn sides(&self, range: SectorRange) -> Vec<(SectorRange, LiveSide)> {
        let mut sides: Vec<(SectorRange, LiveSide)> = Vec::new();
        for (part, place) in &self.parts {
            let Some(part) = part.intersection(range) else { continue };
            let side = match place {
                Place::Image => {
                    let (path, offset) = (self.image.file.path().to_owned(), part.byte_offset());
                    LiveSide::Image { path, offset, has_sums: self.image.sums.has_all() }
                }
                Place::Layer(_) => LiveSide::Journal,
                Place::Side(_) => LiveSide::SideFile,
            };
            sides.push((part, side));
        }
        sides
    }
}

impl Group {
    /// Takes down where the bytes of a range are.
    pub(super) fn live_read(&self, disk: DiskId, range: SectorRange) -> Result<LiveRead> {
        if self.stopping || !self.serving {
            return Err(Error::new(ErrorKind::Shutdown, "the group is stopping"));
        }
        let slot = self.slots.get(&disk).copied();
        let Some((slot, known)) = slot.and_then(|slot| self.disks.get_key_value(&slot)) else {
            return Err(Error::new(ErrorKind::NotFound, "the disk left the group meanwhile"));
        };
        let Some(image) = &known.image else {
            let why = known.last_failure.as_deref().unwrap_or("its files cannot be had");
            return Err(Error::new(ErrorKind::Latched, format!("the disk answers no read: {why}")));
        };
        if range.end > known.record.sectors.0 {
            return Err(Error::new(ErrorKind::NotFound, "the disk is shorter than at the point"));
        }
        let (image, parts) = (image.clone(), self.places(*slot, range));
        let (runtime, epoch) = (Rc::clone(&self.runtime), image.sums.epoch());
        Ok(LiveRead { runtime, image, epoch, reader: self.reader(), parts })
    }
}
