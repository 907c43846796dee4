//! Latched disks: what becomes of a disk whose image failed, and how it comes back.
//!
//! ```text
//!             two failures in a row            nothing of it left to destage
//!  serving ───────────────────────▶ latched ─────────────────────────────────▶ side file ─▶ the journal lets go
//!     ▲                                │ ▲                                          │
//!     │        mended                  │ │ failed: the reason is reported           │
//!     └──────────────────── mend ◀─────┴─┴───────── resume ◀────────────────────────┘
//! ```
//!
//! From the latch on the disk's writes fail, so what its image lacks is finite. A side file is begun once all of that
//! which is visible is held; what becomes visible later, having been acknowledged or queued before the latch, makes
//! another. Where no side file can be written the journal keeps the records, and it is tried again.
//!
//! Records that the journal's device does not give, however often it is asked, may come back: while the journal has room it keeps
//! all that the image lacks, and a resume asks again. Once it is pressed, or the loss is accepted, they are as lost as rotten ones.
//!
//! Records that rotted in the journal are in no side file, which notes them as lost. Then a mend is refused, unless the
//! loss is accepted: the image takes the rest, and what it has of the lost sectors is written anew ([`super::renewal`]), which
//! hides the notes; the mend goes on like any other.

use std::rc::Rc;

use crate::error::{Error, Result};
use crate::extent::Ranges;
use crate::format::side::Identity as SideIdentity;
use crate::image::Image;
use crate::image::attach::{Reattached, reattach};
use crate::image::mend::{Mend, Rest, mend, take};
use crate::image::side::{self, SideWork, Written};
use crate::journal::sift::Lost;
use crate::journal::writer::Identity;
use crate::protect::disk::{Care, Disk};
use crate::protect::events::GroupEvent;
use crate::protect::group::{Group, nanos};
use crate::protect::mailbox::Done;
use crate::protect::resume::Finding;
use crate::protect::retry::RETRY_DELAY;
use crate::units::{DiskId, DiskSlot, MonotonicNanos};

/// The journal lets go of records that its device does not give once less than one part in this many of it is free.
const FREE_PART_KEPT: u64 = 4;

impl Group {
    /// Begins what can be begun for latched disks.
    pub(super) fn care_for_latched(&mut self) {
        let now = self.runtime.now();
        let latched = self.disks.iter().filter(|(_, disk)| disk.latched.is_some());
        for slot in latched.map(|(&slot, _)| slot).collect::<Vec<_>>() {
            let disk = &self.disks[&slot];
            match disk.care {
                Care::Saving { .. } | Care::Mending | Care::Renewing => {}
                Care::Mended if self.destaging => {}
                Care::Mended => self.end_mend(slot),
                Care::None | Care::Waiting(_) | Care::Kept if self.stopping => {}
                Care::None | Care::Waiting(_) | Care::Kept if disk.mend_asked && disk.image.is_none() => {
                    self.begin_reattach(slot)
                }
                Care::None | Care::Waiting(_) | Care::Kept if disk.accepts_loss => {
                    self.begin_acceptance(slot)
                }
                // What is kept is asked for again first.
                Care::Kept if disk.mend_asked || self.lets_go() => self.begin_side_file(slot),
                Care::Kept => {}
                // What rotted is noted first, so that who asks hears of it and not of the image.
                Care::None if disk.mend_asked && disk.lacks_rotten() && self.layers.held(slot).is_some() => {
                    self.begin_side_file(slot)
                }
                Care::None | Care::Waiting(_) if disk.mend_asked => self.begin_mend(slot),
                Care::Waiting(at) if at > now => {}
                Care::None | Care::Waiting(_) => self.begin_side_file(slot),
            }
        }
    }

    /// Whether a task works on a latched disk.
    pub(super) fn is_caring(&self) -> bool {
        self.disks.values().any(|disk| !matches!(disk.care, Care::None | Care::Waiting(_) | Care::Kept))
    }

    /// When a side file is tried again.
    pub(super) fn side_file_due(&self) -> Option<MonotonicNanos> {
        let due = |disk: &Disk| match disk.care {
            Care::Waiting(at) if !self.stopping => Some(at),
            _ => None,
        };
        self.disks.values().filter_map(due).min()
    }

    /// Whether the journal needs the room of what it keeps for latched disks.
    fn lets_go(&self) -> bool {
        self.segments.room_bytes() < self.segments.limit_bytes() / FREE_PART_KEPT || self.are_maps_full()
    }

    fn begin_side_file(&mut self, slot: DiskSlot) {
        let lets_go = self.lets_go();
        if self.layers.has_undestaged(slot) {
            return;
        }
        let Some((maps, through)) = self.layers.held(slot) else { return };
        let disk = self.disks.get_mut(&slot).expect("a latched disk is there");
        let after = disk.stored();
        if through <= after {
            return self.layers.release(slot, through);
        }
        disk.last_side += 1;
        let number = disk.last_side;
        let Identity { group, timeline, .. } = self.identity;
        let identity = SideIdentity { group, timeline, disk: disk.record.id, number, after, through };
        disk.care = Care::Saving { for_mend: disk.mend_asked };
        let (directory, keys) = (self.settings.plan.images(), self.settings.vault.keys().clone());
        let (sectors, gives_up) = (disk.record.sectors, disk.accepts_loss || lets_go);
        let work = SideWork { directory, identity, sectors, maps, reader: self.reader(), keys, gives_up };
        let (runtime, mailbox) = (Rc::clone(&self.runtime), Rc::clone(&self.mailbox));
        let planted = self.settings.plan.planted;
        self.tasks.spawn(async move {
            let result = side::write(&runtime, work, planted).await;
            mailbox.borrow_mut().push_back(Done::SideFile(slot, identity.disk, result));
        });
    }

    pub(super) fn finish_side_file(&mut self, slot: DiskSlot, id: DiskId, result: Result<Written>) {
        let Some(disk) = self.disks.get_mut(&slot) else {
            // The disk left meanwhile, and its files with it, but for this one.
            let (runtime, images) = (Rc::clone(&self.runtime), self.settings.plan.images());
            self.tasks.spawn(async move { drop(side::remove_all(&runtime, &images, id).await) });
            return;
        };
        match result {
            Ok(Written::Kept(lost)) => self.keep(slot, &lost),
            Ok(Written::File(side)) => {
                tracing::warn!(
                    group = %self.name,
                    disk = %disk.record.name,
                    kib = side.bytes() >> 10,
                    "what the image lacks was moved from the journal to a side file"
                );
                self.layers.release(slot, side.through());
                disk.side_failures.succeeded();
                disk.sides.push(Rc::new(side));
                (disk.care, disk.withheld) = (Care::None, Ranges::default());
                if let Some(refusal) = self.refusal(slot) {
                    self.disks.get_mut(&slot).expect("looked at").latch(&refusal);
                }
                self.measure_maps();
            }
            Err(error) => {
                if let Some(times) = disk.side_failures.failed(self.runtime.now(), error.kind()) {
                    tracing::warn!(
                        group = %self.name,
                        disk = %disk.record.name,
                        %error,
                        times,
                        "no side file for a latched disk: the journal keeps what its image lacks; it is tried again"
                    );
                }
                let due = Care::Waiting(MonotonicNanos(self.runtime.now().0 + nanos(RETRY_DELAY)));
                let care = std::mem::replace(&mut disk.care, due);
                let needs_it = disk.image.is_none() || disk.accepts_loss;
                if needs_it && care == (Care::Saving { for_mend: true }) {
                    // Without one it is not mended.
                    self.stays_latched(slot, &error);
                }
            }
        }
    }

    /// The journal goes on keeping what the image lacks, since its device does not give these records.
    fn keep(&mut self, slot: DiskSlot, lost: &[Lost]) {
        let disk = self.disks.get_mut(&slot).expect("a latched disk is there");
        let refusal = side::withheld(lost, &disk.record.name, &self.settings.plan.journal());
        let is_answer = std::mem::replace(&mut disk.care, Care::Kept) == (Care::Saving { for_mend: true });
        disk.latch(&refusal);
        let sectors = Ranges::of(lost.iter().map(|lost| lost.range));
        if sectors != disk.withheld {
            disk.withheld = sectors.clone();
            let disk = disk.record.name.clone();
            self.tell(GroupEvent::Withheld { disk, sectors });
        }
        if is_answer {
            let reason = refusal.to_string();
            self.stays_latched_as(slot, &refusal, &Finding::Lost { reason });
        }
    }

    /// What is lost of a latched disk: noted by a side file, and hidden by nothing newer.
    fn lost(&self, slot: DiskSlot) -> Vec<Lost> {
        let noted = side::lost(&self.disks[&slot].sides).into_iter();
        let seen = noted.flat_map(|lost| {
            let parts = self.layers.resolve(slot, lost.range).into_iter();
            let shown = parts.filter(|(_, source)| source.is_none());
            shown.map(move |(range, _)| Lost { range, ..lost })
        });
        seen.collect()
    }

    /// Why a latched disk cannot be mended, if writes are lost.
    fn refusal(&self, slot: DiskSlot) -> Option<Error> {
        side::refusal(&self.lost(slot), &self.disks[&slot].record.name, &self.settings.plan.journal())
    }

    /// Ends what an earlier process began: a loss was accepted, and is hidden, but the side files are there still.
    pub(super) fn take_up_mends(&mut self) {
        let noting = self.disks.iter().filter(|(_, disk)| !side::lost(&disk.sides).is_empty());
        for slot in noting.map(|(&slot, _)| slot).collect::<Vec<_>>() {
            let is_hidden = self.lost(slot).is_empty();
            let disk = self.disks.get_mut(&slot).expect("it was looked for");
            disk.mend_asked |= is_hidden;
        }
    }

    /// Where writes are lost, the image takes the rest: all that the journal holds of the disk is in side files before, so that
    /// what is lost is known.
    fn begin_acceptance(&mut self, slot: DiskSlot) {
        self.begin_side_file(slot);
        let disk = &self.disks[&slot];
        let is_whole = !self.layers.has_undestaged(slot) && self.layers.held(slot).is_none();
        if !is_whole || self.has_writes_under_way(slot, disk.whole()) {
            return;
        }
        if self.lost(slot).is_empty() {
            return self.begin_mend(slot);
        }
        let disk = self.disks.get_mut(&slot).expect("a latched disk is there");
        disk.care = Care::Mending;
        let (image, sides) = (disk.attached().clone(), disk.sides.clone());
        let (runtime, mailbox) = (Rc::clone(&self.runtime), Rc::clone(&self.mailbox));
        self.tasks.spawn(async move {
            let result = take(&runtime, image, &sides).await;
            mailbox.borrow_mut().push_back(Done::Taken(slot, result));
        });
    }

    /// Whether a disk waits for the layers to be destaged around it, so that its loss can be accepted.
    pub(super) fn is_acceptance_waiting(&self) -> bool {
        self.disks.iter().any(|(&slot, disk)| disk.accepts_loss && self.layers.has_undestaged(slot))
    }

    pub(super) fn finish_taking(&mut self, slot: DiskSlot, result: Result<Image>) {
        let lacked = self.points.last().and_then(|point| point.disks.iter().find(|disk| disk.slot == slot));
        let lacked: Vec<_> = lacked.map_or(Vec::new(), |disk| disk.lacking().to_vec());
        if !self.disks.contains_key(&slot) {
            return self.answer_resumes();
        }
        let lost = Ranges::of(self.lost(slot).iter().map(|lost| lost.range));
        let disk = self.disks.get_mut(&slot).expect("looked at");
        match result {
            Ok(image) => {
                disk.image = Some(image);
                disk.care = Care::Renewing;
                disk.accepted = lost.clone();
                // Points may lack more of it.
                self.renew(slot, lost.union(lacked), false);
            }
            Err(error) => {
                disk.care = Care::None;
                self.stays_latched(slot, &error);
            }
        }
    }

    fn begin_mend(&mut self, slot: DiskSlot) {
        if let Some(refusal) = self.refusal(slot) {
            let reason = refusal.to_string();
            return self.stays_latched_as(slot, &refusal, &Finding::Lost { reason });
        }
        let reader = self.reader();
        let disk = self.disks.get_mut(&slot).expect("a latched disk is there");
        let image = disk.image.clone().expect("a detached disk is attached instead");
        let rest = self.layers.held_above(slot, image.synced());
        let work = Mend {
            directory: self.settings.plan.images(),
            image,
            sectors: disk.record.sectors,
            sides: disk.sides.clone(),
            rest: rest.map(|(maps, through)| Rest { maps, through, reader }),
        };
        disk.care = Care::Mending;
        let (runtime, mailbox) = (Rc::clone(&self.runtime), Rc::clone(&self.mailbox));
        self.tasks.spawn(async move {
            let result = mend(&runtime, work).await;
            mailbox.borrow_mut().push_back(Done::Mended(slot, result));
        });
    }

    pub(super) fn finish_mend(&mut self, slot: DiskSlot, result: Result<Image>) {
        // A disk that left meanwhile is waited for by nobody.
        let Some(disk) = self.disks.get_mut(&slot) else { return self.answer_resumes() };
        match result {
            Ok(image) => {
                self.layers.release(slot, image.destaged());
                let noted = side::lost(&disk.sides);
                disk.image = Some(image);
                disk.sides.clear();
                disk.care = Care::Mended;
                if !noted.is_empty() {
                    disk.accepted = Ranges::of(noted.iter().map(|lost| lost.range));
                    let (disk, sectors) = (disk.record.name.clone(), disk.accepted.clone());
                    self.tell(GroupEvent::LossAccepted { disk, sectors });
                }
                self.measure_maps();
            }
            Err(error) => {
                disk.care = Care::None;
                self.stays_latched(slot, &error);
            }
        }
    }

    /// Tries the files of a detached disk again, once side files have all that the journal holds of it.
    fn begin_reattach(&mut self, slot: DiskSlot) {
        self.begin_side_file(slot);
        if self.layers.held(slot).is_some() {
            return;
        }
        let disk = self.disks.get_mut(&slot).expect("a latched disk is there");
        disk.care = Care::Mending;
        let (directory, accepted) = (self.settings.plan.images(), self.accepted);
        let what = (disk.record.id, disk.record.sectors);
        let (runtime, mailbox) = (Rc::clone(&self.runtime), Rc::clone(&self.mailbox));
        let keys = self.settings.vault.keys().clone();
        self.tasks.spawn(async move {
            let result = reattach(&runtime, &directory, what, accepted, &keys).await;
            mailbox.borrow_mut().push_back(Done::Reattached(slot, result));
        });
    }

    pub(super) fn finish_reattach(&mut self, slot: DiskSlot, result: Result<Reattached>) {
        if let Ok(reattached) = &result {
            self.tell_of_rot(slot, &reattached.image);
        }
        if let (Some(disk), Ok(Reattached { image, sides, last_side })) = (self.disks.get_mut(&slot), &result)
        {
            disk.last_side = disk.last_side.max(*last_side);
            if !sides.is_empty() {
                // It is latched like others whose writes are lost.
                (disk.image, disk.sides, disk.care) = (Some(image.clone()), sides.clone(), Care::None);
                return;
            }
        }
        self.finish_mend(slot, result.map(|reattached| reattached.image));
    }

    pub(super) fn stays_latched(&mut self, slot: DiskSlot, error: &Error) {
        let finding = Finding::Latched { kind: error.kind(), reason: error.to_string() };
        self.stays_latched_as(slot, error, &finding);
    }

    fn stays_latched_as(&mut self, slot: DiskSlot, error: &Error, finding: &Finding) {
        let disk = self.disks.get_mut(&slot).expect("a latched disk is there");
        tracing::error!(group = %self.name, disk = %disk.record.name, %error, "the disk stays latched");
        disk.latch(error);
        (disk.mend_asked, disk.accepts_loss) = (false, false);
        self.found(slot, finding);
    }

    /// Clears the latch, unless the image has fallen behind again while it was mended: a batch that ran meanwhile left
    /// the disk out.
    fn end_mend(&mut self, slot: DiskSlot) {
        let disk = self.disks.get_mut(&slot).expect("a latched disk is there");
        disk.care = Care::None;
        if self.layers.held(slot).is_some() {
            return;
        }
        tracing::warn!(group = %self.name, disk = %disk.record.name, "the image was mended; the disk takes writes again");
        (disk.latched, disk.failures, disk.mend_asked, disk.accepts_loss) = (None, 0, false, false);
        (disk.last_failure, disk.withheld) = (None, Ranges::default());
        let lost = std::mem::take(&mut disk.accepted);
        let finding = if lost.is_empty() { Finding::Mended } else { Finding::Accepted { lost } };
        self.found(slot, &finding);
        self.renew_lacking();
    }
}
