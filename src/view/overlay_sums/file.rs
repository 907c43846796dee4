//! The file that has the sums of an overlay: how it is made, found and opened, and its header.
//!
//! What does not fit refuses the overlay, and that overlay only: sums that are filled beside no overlay, for it was there; a length that
//! is not the disk's; two headers that are damaged. One of two is written anew.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::{END, OverlaySums};
use crate::error::{Error, ErrorKind, Result};
use crate::format::overlay_sums::{
    HEADER_BYTES, PAIR_BYTES, SECTORS_A_UNIT, UNITS_A_PAGE, check_header, encode_header, file_bytes,
    header_offset, pair_offset,
};
use crate::format::sums::Copy;
use crate::planted::Planted;
use crate::runtime::Runtime;
use crate::storage::{Access, Buffer, Create, File, Lock, OpenOptions};
use crate::units::{DiskId, SectorRange};
use crate::view::presence::Presence;
use crate::view::turns::Turns;

const OPTIONS: OpenOptions =
    OpenOptions { access: Access::ReadWrite, create: Create::Existing, lock: Lock::Wait, direct: false };

/// Path of the sums of an overlay.
pub(super) fn sums_path(overlay: &Path) -> PathBuf {
    beside(overlay, ".sums")
}

/// A path with a longer name.
pub(in crate::view) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.file_name().expect("a file has a name").to_owned();
    name.push(end);
    path.with_file_name(name)
}

impl OverlaySums {
    /// Refuses sums that say something where their overlay is not: who has lost the one must not find the other empty.
    ///
    /// # Errors
    /// `Corrupt`, at the overlay's path.
    pub(in crate::view) async fn check_empty(runtime: &Rc<Runtime>, overlay: &Path) -> Result<()> {
        let path = sums_path(overlay);
        let file = match runtime.open(&path, OPTIONS).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        let length = runtime.length(&file).await?;
        let said = runtime.data_ranges(&file, pair_offset(0).min(length)..length).await?;
        if said.is_empty() {
            return Ok(());
        }
        let text = format!(
            "the overlay is not there, but {}, which lies beside it, says that it was written to: put it back, or {END}",
            path.display()
        );
        Err(Error::corrupt(text).at_path(overlay))
    }

    /// Makes the file for an overlay that is yet to be created, durably.
    pub(in crate::view) async fn create(
        runtime: &Rc<Runtime>,
        overlay: &Path,
        disk: DiskId,
        sectors: u64,
    ) -> Result<()> {
        let path = sums_path(overlay);
        match runtime.remove(&path).await {
            // Left by a crash of an earlier attempt, or not there.
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = make(runtime, &path, disk, sectors).await?;
        runtime.sync(&file).await?;
        drop(file);
        // Before the overlay is there: one without sums is taken for one of before there were any.
        publish(runtime, &path).await
    }

    /// Opens the sums of an overlay that holds `present`; `None` if it has none, being of before there were any.
    pub(in crate::view) async fn open(
        runtime: &Rc<Runtime>,
        overlay: &File,
        (disk, sectors): (DiskId, u64),
        present: Presence,
        planted: Planted,
    ) -> Result<Option<OverlaySums>> {
        let path = sums_path(overlay.path());
        let file = match runtime.open(&path, OPTIONS).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let (length, wanted) = (runtime.length(&file).await?, file_bytes(sectors));
        if length != wanted {
            let text = format!("the sums of an overlay have {length} bytes and should have {wanted}: {END}");
            return Err(Error::corrupt(text).at_path(&path));
        }
        let sums = OverlaySums::over(runtime, file, overlay, disk, planted);
        sums.doubtful.replace(present);
        sums.check_headers(false).await?;
        // Which of what is read is durable, nobody knows: all of it is, from here on.
        runtime.settle(&sums.file).await?;
        Ok(Some(sums))
    }

    /// Makes sums for an overlay that has none, under another name as long as they do not say of all that it holds what it is.
    pub(in crate::view) async fn begin(
        runtime: &Rc<Runtime>,
        overlay: &File,
        (disk, sectors): (DiskId, u64),
        present: Presence,
        planted: Planted,
    ) -> Result<OverlaySums> {
        let file = make(runtime, &sums_path(overlay.path()), disk, sectors).await?;
        let sums = OverlaySums::over(runtime, file, overlay, disk, planted);
        sums.unsummed.replace(present);
        Ok(sums)
    }

    /// Whether they have their name yet.
    pub(in crate::view) fn is_unfinished(&self) -> bool {
        self.path() != sums_path(self.overlay.path())
    }

    /// Gives them their name, by which the next opening believes them. Everything has its sums, and all of them are durable.
    pub(in crate::view) async fn finish(&self) -> Result<()> {
        let path = sums_path(self.overlay.path());
        publish(&self.runtime, &path).await?;
        self.file.note_published(&path);
        Ok(())
    }

    fn over(
        runtime: &Rc<Runtime>,
        file: File,
        overlay: &File,
        disk: DiskId,
        planted: Planted,
    ) -> OverlaySums {
        OverlaySums {
            runtime: Rc::clone(runtime),
            file,
            overlay: overlay.clone(),
            disk,
            turns: Turns::default(),
            unsynced: RefCell::default(),
            doubtful: RefCell::default(),
            unsummed: RefCell::default(),
            rot: RefCell::default(),
            planted,
        }
    }

    /// One of the two is enough, unless one is of a version that only a later build knows; the other one is written anew. Neither is
    /// needed where it `is_open`: somebody has read them.
    pub(super) async fn check_headers(&self, is_open: bool) -> Result<()> {
        let [first, second] = [self.read_header(Copy::First).await, self.read_header(Copy::Second).await];
        match (first, second) {
            (Err(error), _) | (_, Err(error)) if error.kind() == ErrorKind::Unsupported => Err(error),
            (Err(error), Err(_)) if !is_open => Err(error),
            (Err(first), Err(second)) => {
                self.renew_header(Copy::First, &first).await?;
                self.renew_header(Copy::Second, &second).await
            }
            (Err(error), Ok(())) => self.renew_header(Copy::First, &error).await,
            (Ok(()), Err(error)) => self.renew_header(Copy::Second, &error).await,
            (Ok(()), Ok(())) => Ok(()),
        }
    }

    async fn read_header(&self, copy: Copy) -> Result<()> {
        let at = header_offset(copy);
        let bytes = self.runtime.read(&self.file, at, HEADER_BYTES).await?;
        let mend = |error: Error| error.within(END).at_path(self.file.path()).at_offset(at);
        check_header(&bytes, self.disk).map_err(mend)
    }

    /// Also where it cannot be: the other one does as long as it lasts.
    async fn renew_header(&self, copy: Copy, error: &Error) -> Result<()> {
        tracing::warn!(%error, "a header of an overlay's sums is damaged, and written anew");
        self.rot.borrow_mut().push(header_offset(copy));
        let header = Buffer::copy_of(&encode_header(self.disk)).freeze();
        if let Err(error) = self.runtime.write(&self.file, header_offset(copy), header).await {
            tracing::warn!(%error, "it could not be");
        }
        Ok(())
    }

    /// The sectors of which the file may say something: of all others nobody ever wrote a unit.
    pub(in crate::view) async fn said(&self, sectors: u64) -> Result<Presence> {
        const SECTORS_A_PAGE: u64 = SECTORS_A_UNIT * UNITS_A_PAGE;
        let mut said = Presence::default();
        for range in self.runtime.data_ranges(&self.file, pair_offset(0)..file_bytes(sectors)).await? {
            let pages = range.start / PAIR_BYTES - 1..range.end.div_ceil(PAIR_BYTES) - 1;
            let end = (pages.end * SECTORS_A_PAGE).min(sectors);
            said.insert(SectorRange::new(pages.start * SECTORS_A_PAGE, end));
        }
        Ok(said)
    }
}

/// Makes the file under another name.
async fn make(runtime: &Rc<Runtime>, path: &Path, disk: DiskId, sectors: u64) -> Result<File> {
    let partial = beside(path, ".partial");
    match runtime.remove(&partial).await {
        // Left by a crash of an earlier attempt, or not there.
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = runtime.open(&partial, OpenOptions::CREATE).await?;
    runtime.set_length(&file, file_bytes(sectors)).await?;
    for copy in Copy::BOTH {
        let header = Buffer::copy_of(&encode_header(disk)).freeze();
        runtime.write(&file, header_offset(copy), header).await?;
    }
    Ok(file)
}

async fn publish(runtime: &Rc<Runtime>, path: &Path) -> Result<()> {
    runtime.publish(beside(path, ".partial"), path).await?;
    match path.parent() {
        Some(directory) => runtime.sync_directory(directory).await,
        None => Ok(()),
    }
}
