//! A disk that is full to the last byte: whoever gives space back then is served, with what the vault keeps back for that.

use super::site::{Outcome, Site};
use crate::units::to_usize;
use crate::vault::SPARES;

/// What guests ask for on the full disk.
const REQUESTS: usize = 8;

impl Site {
    /// With neither faults nor a full disk the reserve becomes whole. Then the disk is full, and clients do what gives space
    /// back: all of it is done, for a refusal would be one without a fault.
    pub(super) fn check_full_disk(&mut self) -> Outcome {
        self.drive("the reserve", Site::has_reserve)?;
        self.tracer.note(|| "the disk has nothing left".to_owned());
        self.disk.set_capacity(Some(self.disk.allocated_bytes()));
        let ladder = self.random.index(super::retention::LADDERS.len());
        self.set_ladder(self.plan.ladder_at(ladder));
        self.release();
        // Guests write on meanwhile, and would take what comes back.
        for _ in 0..REQUESTS {
            self.request()?;
        }
        if self.clients.members.len() > 1 {
            self.remove_disk();
        }
        self.drive("giving space back", |site| {
            site.retention.asked == 0 && site.clients.members.iter().all(|member| !member.leaving)
        })?;
        self.disk.set_capacity(None);
        self.drive("the reserve, made anew", Site::has_reserve)
    }

    fn has_reserve(&mut self) -> bool {
        let Some(group) = self.process.group() else { return false };
        let reserve = group.vault().reserve();
        let is_recorded = reserve.spares() == to_usize(u64::from(SPARES)) && reserve.room_bytes() > 0;
        let layout = group.vault().layout();
        let mut files = (0..SPARES).map(|number| layout.spare(number)).chain([layout.room()]);
        is_recorded && files.all(|path| self.disk.file_length(&path).is_some_and(|length| length > 0))
    }
}
