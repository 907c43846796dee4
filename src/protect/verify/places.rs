//! The places of an image's sums, those too that no read meets: what is damaged there is a finding, and is written anew.

use super::task::{Target, Task, is_of_content};
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
        match image.sums.mend_headers(self.planted).await {
            Err(error) if !is_of_content(&error) => return Err(error),
            Err(error) | Ok(Some(error)) => {
                self.unreadable(target, SectorRange::new(0, target.sectors), &error);
            }
            Ok(None) => {}
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
        let (suspects, read_bytes) = match live.image().sums.suspects(range).await {
            Err(error) if is_of_content(&error) => {
                self.unreadable(target, range, &error);
                return Ok(0);
            }
            looked => looked?,
        };
        drop(live);
        for block in suspects {
            // A device that does not give them takes its time to say so.
            self.tell()?;
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
            match image.sums.mend_places(block, live.epoch(), of_image, self.planted).await {
                Ok(Looked::At(found)) => return Ok(found),
                Ok(_) => {}
                Err(error) if is_of_content(&error) => return Ok(Some(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}
