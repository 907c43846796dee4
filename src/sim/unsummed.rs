//! Images of before there were sums, in one seed of [`LOSES_EVERY`]: now and then, when power fails, what was written there is declared
//! to be of such a version. Its sums are begun anew then, by guests' writes and in the background, and at the end all are there.

use super::site::{Outcome, Site};
use crate::format::checkpoint::Checkpoint;
use crate::image::checkpoint_path;
use crate::units::{PAGE_BYTES, to_usize};

/// One seed in so many has such images.
const LOSES_EVERY: u64 = 3;

/// Whether images of a seed are of such a version now and then.
pub(super) fn loses_sums(seed: u64) -> bool {
    seed % LOSES_EVERY == 1
}

impl Site {
    /// Nobody lives, and nothing is on its way to the disk.
    pub(super) fn lose_sums(&mut self) {
        if !self.plan.loses_sums || !self.random.chance(1, 2) {
            return;
        }
        let directory = self.group_plan().images();
        for (_, disk) in self.numbers.clone() {
            let path = checkpoint_path(&directory, disk);
            let file = self.disk.read_file(&path).unwrap_or_default();
            for slot in Checkpoint::slots(&file).into_iter().flatten() {
                let mut page = file[to_usize(slot.slot_offset())..][..PAGE_BYTES].to_vec();
                Checkpoint { has_sums: false, ..slot }.encode(&mut page);
                self.disk.replace(&path, slot.slot_offset(), &page);
                self.report.images_without_sums += 1;
            }
        }
    }

    /// Waits until all images have their sums again, unless nobody works at that.
    pub(super) fn have_sums(&mut self) -> Outcome {
        let is_paused =
            self.process.group().is_some_and(|group| group.vault().manifest().state().is_paused());
        if self.lacks_sums() && !is_paused {
            self.drive("giving images their sums", |site| !site.lacks_sums())?;
            self.report.images_summed += 1;
        }
        Ok(())
    }

    fn lacks_sums(&mut self) -> bool {
        self.process.group().is_some_and(|group| group.disks().any(|disk| disk.unsummed_bytes() > 0))
    }
}
