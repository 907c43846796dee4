//! A disk's content as found: what each sector says of itself. Read from an NBD export or a raw file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::history::{History, Stamp};
use super::sector::{Foreign, Place, SECTOR_BYTES, identify};
use crate::capture::nbd::client::{Answer, Client, Command, Wishes};
use crate::error::{Error, ErrorKind, Result};
use crate::units::to_usize;

const READ_BYTES: u32 = 1 << 20;
const READS_IN_FLIGHT: u64 = 4;

/// What a sector says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Zeros.
    Zero,
    /// The content of a write.
    Write(Stamp),
    /// What no write of this run left in this place.
    Foreign(Foreign),
}

/// A whole disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The disk's index in the history.
    pub disk: usize,
    /// Sector by sector.
    pub sectors: Vec<Found>,
}

impl Image {
    fn empty(history: &History, disk: usize) -> Image {
        Image { disk, sectors: vec![Found::Zero; to_usize(history.disks()[disk])] }
    }

    /// Takes note of what lies at the byte `offset`.
    fn put(&mut self, run: u64, offset: u64, bytes: &[u8]) {
        let first = offset / SECTOR_BYTES as u64;
        for (sector, bytes) in (first..).zip(bytes.as_chunks::<SECTOR_BYTES>().0) {
            let place = Place { run, disk: self.disk, sector };
            self.sectors[to_usize(sector)] = match identify(place, bytes) {
                Ok(None) => Found::Zero,
                Ok(Some(sequence)) => Found::Write(sequence),
                Err(foreign) => Found::Foreign(foreign),
            };
        }
    }

    /// The content of a raw file.
    ///
    /// # Errors
    /// The file's, or `Invalid` if it does not have the disk's size.
    pub fn of_file(history: &History, disk: usize, path: &Path) -> Result<Image> {
        let wrong = |context: &str, error| Error::io(context, error).at_path(path);
        let file = File::open(path).map_err(|error| wrong("opening an image", error))?;
        let bytes = file.metadata().map_err(|error| wrong("measuring an image", error))?.len();
        let mut image = Image::empty(history, disk);
        check_size(history, disk, bytes).map_err(|error| error.at_path(path))?;
        let mut buffer = vec![0; to_usize(u64::from(READ_BYTES))];
        for offset in (0..bytes).step_by(buffer.len()) {
            let chunk = &mut buffer[..to_usize(u64::from(READ_BYTES).min(bytes - offset))];
            file.read_exact_at(chunk, offset).map_err(|error| wrong("reading an image", error))?;
            image.put(history.run(), offset, chunk);
        }
        Ok(image)
    }

    /// The content of an export, read over NBD.
    ///
    /// # Errors
    /// The connection's; `Io` if the gateway refuses a read; `Invalid` if the size is not the disk's.
    pub fn of_export(history: &History, disk: usize, socket: &Path, export: &str) -> Result<Image> {
        let stream = UnixStream::connect(socket)
            .map_err(|error| Error::io("connecting to read a disk", error).at_path(socket))?;
        let mut client = Client::connect(stream, Wishes::all(export))?;
        let bytes = client.granted().size;
        check_size(history, disk, bytes)?;
        let mut image = Image::empty(history, disk);
        let step = u64::from(READ_BYTES);
        let chunks = bytes.div_ceil(step);
        for next in 0..chunks + READS_IN_FLIGHT {
            if next < chunks {
                let offset = next * step;
                let length = u32::try_from(step.min(bytes - offset)).expect("at most one step");
                client.queue(offset, &Command::Read { offset, length, unfragmented: false })?;
            }
            if next >= READS_IN_FLIGHT && client.in_flight() > 0 {
                let answered = client.receive()?;
                match answered.result {
                    Ok(Answer::Data(data)) => image.put(history.run(), answered.cookie, &data),
                    other => return Err(refused(export, answered.cookie, &other)),
                }
            }
        }
        client.disconnect()?;
        Ok(image)
    }
}

fn check_size(history: &History, disk: usize, bytes: u64) -> Result<()> {
    let expected = history.disks()[disk] * SECTOR_BYTES as u64;
    if bytes == expected {
        return Ok(());
    }
    Err(Error::invalid(format!("disk {disk} has {bytes} bytes, and was created with {expected}")))
}

fn refused(export: &str, offset: u64, answer: &impl std::fmt::Debug) -> Error {
    Error::new(ErrorKind::Io, format!("reading {export} was answered by {answer:?}")).at_offset(offset)
}
