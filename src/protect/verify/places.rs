//! The places of an image's sums, those too that no read meets: what is damaged there is a finding, and is written anew.

use super::task::{Target, Task};
use crate::error::{Error, Result};
use crate::format::sums::sectors_of;
use crate::image::Image;
use crate::image::sums::Looked;
use crate::units::SectorRange;

/// A block that is written all the time has its places written anew by that.
const LOOKS: usize = 4;

impl Task {
    /// Looks at the copies of the header of a disk's sums.
    pub(super) async fn headers(&mut self, target: &Target) -> Result<()> {
        let Ok(live) = self.asker.live(target.id, SectorRange::new(0, 1)).await else { return Ok(()) };
        let image = live.image().clone();
        if let Some(error) = image.sums.mend_headers(self.planted).await? {
            self.unreadable(target, SectorRange::new(0, target.sectors), &error);
        }
        self.note_unsummed(target, &image);
        Ok(())
    }

    fn note_unsummed(&mut self, target: &Target, image: &Image) {
        let bytes = image.sums.unsummed(image.sectors()).bytes();
        if bytes > 0 {
            let text = format!(
                "disk {}: {bytes} bytes of its image, which is of a version without sums, have none yet: they get them in the background",
                target.name
            );
            self.report.notes.push(text);
        }
    }

    /// Looks at the places of all blocks that begin in a range; the bytes that were read.
    pub(super) async fn places(&mut self, target: &Target, range: SectorRange) -> Result<u64> {
        let Ok(live) = self.asker.live(target.id, range).await else { return Ok(0) };
        let (suspects, read_bytes) = live.image().sums.suspects(range).await?;
        drop(live);
        for block in suspects {
            let all = sectors_of(block);
            let sectors = SectorRange::new(all.start, all.end.min(target.sectors));
            if let Some(error) = self.place(target, block, sectors).await? {
                self.unreadable(target, sectors, &error);
            }
        }
        Ok(read_bytes)
    }

    async fn place(&mut self, target: &Target, block: u64, sectors: SectorRange) -> Result<Option<Error>> {
        for _ in 0..LOOKS {
            let Ok(live) = self.asker.live(target.id, sectors).await else { return Ok(None) };
            // What layers and side files have is yet to be brought there, and with it the block: it may be torn, and that mends it.
            if !live.is_of_image() {
                return Ok(None);
            }
            let image = live.image();
            let of_image = (&image.file, image.sectors());
            let looked = image.sums.mend_places(block, live.epoch(), of_image, self.planted).await?;
            if let Looked::At(found) = looked {
                return Ok(found);
            }
        }
        Ok(None)
    }
}
