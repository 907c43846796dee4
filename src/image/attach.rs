//! Attaching a disk's files: the image with its checkpoint, and the side files that hold what it lacks.
//!
//! Neither is the disk without the other: an image whose side files are damaged or missing shows the past. So it is both,
//! or an error that names the file, and the disk is [detached](crate::protect::disk::Disk): it takes no write and answers no
//! read, while its group goes on. What the journal holds of it goes into further side files. These are all that mends it
//! later ([`reattach`]), since only they may be brought in twice: nothing says before how much of the journal the image
//! has, and a write below its checkpoint that a power cut tears would be mended by nobody.

use std::path::Path;
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::mend::{Mend, mend};
use crate::image::side::{self, SideFile, Sides, lost};
use crate::runtime::Runtime;
use crate::seal::GroupKeys;
use crate::units::{DiskId, Lsn, SectorCount};

/// What a disk's files are at opening.
pub enum Attached {
    /// All that belongs to the disk.
    Whole(Box<Image>, Sides),
    /// Something is missing, damaged or cannot be read.
    Broken {
        /// What.
        error: Error,
        /// Every record of the disk up to here is in its files, whatever became of them.
        stored: Lsn,
        /// The highest number of a side file that was ever seen.
        last_side: u32,
    },
}

/// A disk that was detached, and whose files can be had again.
pub struct Reattached {
    /// Its image.
    pub image: Image,
    /// The side files that it has not taken, since they note losses; none if it has taken all.
    pub sides: Vec<Rc<SideFile>>,
    /// The highest number of a side file that was seen.
    pub last_side: u32,
}

/// Opens the files of a disk, of whose side files `sides` is what was found.
pub async fn attach(
    runtime: &Rc<Runtime>,
    directory: &Path,
    (disk, size): (DiskId, SectorCount),
    mut sides: Sides,
) -> Attached {
    let (through, last_side) = (sides.through(), sides.last);
    let (error, destaged) = match Image::open(runtime, directory, disk, size).await {
        Err(error) => (error, Lsn::ZERO),
        Ok(image) => match sides.keep_lacked(runtime, directory, image.destaged()).await {
            Ok(()) => return Attached::Whole(Box::new(image), sides),
            Err(error) => (error, image.destaged()),
        },
    };
    Attached::Broken { error, stored: through.max(destaged), last_side }
}

/// Tries again to attach the files of a disk, and has the image take what the side files hold, unless they note losses. Whatever the journal held
/// of the disk is in these by now. The journal held records up to `accepted` when the group was opened.
pub async fn reattach(
    runtime: &Rc<Runtime>,
    directory: &Path,
    (disk, size): (DiskId, SectorCount),
    accepted: Lsn,
    keys: &GroupKeys,
) -> Result<Reattached> {
    let names = side::list(runtime, directory).await?;
    let sides = names.open(runtime, directory, disk, keys).await;
    match attach(runtime, directory, (disk, size), sides).await {
        Attached::Broken { error, .. } => Err(error),
        Attached::Whole(image, _) if image.destaged() > accepted => {
            let text = "the image has records that the journal no longer had when the group was opened: \
                        restore the disk from a recovery point";
            Err(Error::corrupt(text).at_path(image.file.path()))
        }
        Attached::Whole(image, Sides { files, last: last_side, .. }) if !lost(&files).is_empty() => {
            Ok(Reattached { image: *image, sides: files, last_side })
        }
        Attached::Whole(image, Sides { files, last: last_side, .. }) => {
            let directory = directory.to_owned();
            let work = Mend { directory, image: *image, sectors: size, sides: files, rest: None };
            Ok(Reattached { image: mend(runtime, work).await?, sides: Vec::new(), last_side })
        }
    }
}
