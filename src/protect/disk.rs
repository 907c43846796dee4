//! A protected disk: its place in the group, its image, and whether it is latched.

use crate::block::{Refusal, Request};
use crate::error::ErrorKind;
use crate::format::record::DiskRecord;
use crate::image::Image;
use crate::units::SectorRange;

/// A disk of a group.
#[derive(Debug)]
pub struct Disk {
    /// Slot, id, name, size.
    pub record: DiskRecord,
    /// Its image and checkpoint.
    pub image: Image,
    /// Why its image can take no more, if so: its writes fail, the others' go on.
    pub latched: Option<ErrorKind>,
    /// How often in a row destaging to it failed.
    pub failures: u32,
}

impl Disk {
    /// A healthy disk.
    pub fn new(record: DiskRecord, image: Image) -> Disk {
        Disk { record, image, latched: None, failures: 0 }
    }

    /// Whether the request can be carried out on this disk as it is.
    pub fn check(&self, request: &Request) -> Result<(), Refusal> {
        let (range, changes) = match request {
            Request::Read { range } | Request::Allocation { range } => (*range, false),
            Request::Write { range, .. } | Request::Zero { range, .. } => (*range, true),
            Request::Flush => return Ok(()),
        };
        if range.end > self.record.sectors.0 {
            return Err(if changes { Refusal::NoSpace } else { Refusal::Invalid });
        }
        if changes && self.latched.is_some() {
            return Err(Refusal::Io);
        }
        Ok(())
    }

    /// All of the disk.
    pub fn whole(&self) -> SectorRange {
        SectorRange::new(0, self.record.sectors.0)
    }
}
