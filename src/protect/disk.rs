//! A protected disk: its place in the group, its image, and whether it is latched.
//!
//! A disk is **detached** while its image, checkpoint or side files cannot be had: the newest bytes of a sector may be in any
//! of them, so it answers no read, besides taking no write. A detached disk is always latched.

use std::rc::Rc;

use crate::block::{Refusal, Request};
use crate::error::{Error, ErrorKind};
use crate::extent::Ranges;
use crate::format::record::DiskRecord;
use crate::image::Image;
use crate::image::side::{self, SideFile};
use crate::protect::renewal::Renewal;
use crate::protect::repetition::Repetition;
use crate::units::{Lsn, MonotonicNanos, SectorRange};

/// A disk of a group.
#[derive(Debug)]
pub struct Disk {
    /// Slot, id, name, size.
    pub record: DiskRecord,
    /// Its image and checkpoint; none while it is detached.
    pub image: Option<Image>,
    /// Why its image can take no more, if so: its writes fail, the others' go on.
    pub latched: Option<ErrorKind>,
    /// Bytes of write requests to it that were acknowledged since it was opened, or made.
    pub written_bytes: u64,
    /// How often in a row destaging to it failed.
    pub failures: u32,
    /// That its image finds no space,
    pub space_failures: Repetition,
    /// or that no side file can be written.
    pub side_failures: Repetition,
    /// What went wrong the last time, for people: it names file and offset.
    pub last_failure: Option<String>,
    /// What its image lacks and the journal no longer holds, oldest first: of a latched disk only.
    pub sides: Vec<Rc<SideFile>>,
    /// The highest number that a side file of the disk had, or was to have: none is given twice.
    pub last_side: u32,
    /// Of a detached disk: every record up to here is in its files, so the journal need not hold it.
    pub stored_before: Lsn,
    /// What is done about its latch at present.
    pub care: Care,
    /// Sectors whose newest records the journal keeps, although its device does not give them.
    pub withheld: Ranges,
    /// Whether somebody asked for a mend that has yet to come to its end.
    pub mend_asked: bool,
    /// Whether that somebody accepts that records are lost.
    pub accepts_loss: bool,
    /// What was lost, and accepted by a mend that has yet to come to its end.
    pub accepted: Ranges,
    /// Sectors that are being written anew with what the disk holds.
    pub renewal: Option<Renewal>,
    /// The last record of a renewal that came to its end.
    pub renewed: Lsn,
}

/// What is done about a disk's latch. At most one task at a time touches its image and its side files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Care {
    /// Nothing.
    #[default]
    None,
    /// A side file could not be written; it is tried again then.
    Waiting(MonotonicNanos),
    /// A side file is being written.
    Saving {
        /// Whether a mend waits for it since it was begun.
        for_mend: bool,
    },
    /// The journal's device does not give records of it, which the journal keeps while it has room.
    Kept,
    /// Its image takes what it lacks.
    Mending,
    /// What is lost is written anew with what the image has.
    Renewing,
    /// Its image has taken what it lacked; the latch goes once no destage batch runs that left the disk out.
    Mended,
}

impl Disk {
    /// A healthy disk.
    pub fn new(record: DiskRecord, image: Image) -> Disk {
        Disk {
            record,
            image: Some(image),
            latched: None,
            written_bytes: 0,
            failures: 0,
            space_failures: Repetition::default(),
            side_failures: Repetition::default(),
            last_failure: None,
            sides: Vec::new(),
            last_side: 0,
            stored_before: Lsn::ZERO,
            care: Care::None,
            withheld: Ranges::default(),
            mend_asked: false,
            accepts_loss: false,
            accepted: Ranges::default(),
            renewal: None,
            renewed: Lsn::ZERO,
        }
    }

    /// A disk whose files cannot be had, of which every record up to `stored` is in them.
    pub fn detached(record: DiskRecord, stored: Lsn, last_side: u32, error: &Error) -> Disk {
        let mut disk = Disk {
            record,
            image: None,
            latched: None,
            written_bytes: 0,
            failures: 0,
            space_failures: Repetition::default(),
            side_failures: Repetition::default(),
            last_failure: None,
            sides: Vec::new(),
            last_side,
            stored_before: stored,
            care: Care::None,
            withheld: Ranges::default(),
            mend_asked: false,
            accepts_loss: false,
            accepted: Ranges::default(),
            renewal: None,
            renewed: Lsn::ZERO,
        };
        disk.latch(error);
        disk
    }

    /// Notes that its image can take no more, and why.
    pub fn latch(&mut self, error: &Error) {
        self.latched = Some(error.kind());
        self.last_failure = Some(error.to_string());
    }

    /// Whether it was latched because stored bytes are not what was written, and no side file has noted yet which.
    pub fn lacks_rotten(&self) -> bool {
        self.latched == Some(ErrorKind::Corrupt) && side::lost(&self.sides).is_empty()
    }

    /// Every record of the disk up to here is in its image or in its side files, durably.
    pub fn stored(&self) -> Lsn {
        let sides = self.sides.last().map_or(self.stored_before, |side| side.through());
        self.image.as_ref().map_or(Lsn::ZERO, Image::destaged).max(sides)
    }

    /// Its image.
    ///
    /// # Panics
    /// If the disk is detached: [`Disk::check`] refuses what would need one.
    pub fn attached(&self) -> &Image {
        self.image.as_ref().expect("a detached disk answers no read")
    }

    /// Whether the request can be carried out on this disk as it is.
    pub fn check(&self, request: &Request) -> Result<(), Refusal> {
        let (range, changes) = match request {
            Request::Read { range } | Request::Allocation { range, .. } => (*range, false),
            Request::Write { range, .. } | Request::Zero { range, .. } => (*range, true),
            Request::Flush => return Ok(()),
        };
        if range.end > self.record.sectors.0 {
            return Err(if changes { Refusal::NoSpace } else { Refusal::Invalid });
        }
        if self.image.is_none() || (changes && self.latched.is_some()) {
            return Err(Refusal::Io);
        }
        Ok(())
    }

    /// All of the disk.
    pub fn whole(&self) -> SectorRange {
        SectorRange::new(0, self.record.sectors.0)
    }
}
