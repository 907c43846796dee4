//! Images that break until somebody mends them: what an administrator does about them, and what must follow.

use crate::protect::resume::{Finding, ResumeReport};
use crate::storage::sim::{FaultKind, Matcher, OpKind};
use crate::units::{SECTOR_BYTES, SectorRange};

use super::clients::{Member, News};
use super::site::{Outcome, Site};

/// One look at a broken image in so many steps ends in a mend.
const MEND_EVERY: u64 = 300;
/// How often the journal is turned over beside an image that stays broken.
const TURNS: u64 = 2;
/// One resume in so many steps is asked for while a disk is latched, whether or not its image was mended; at other
/// times one in ten times as many.
const RESUME_EVERY: u64 = 60;
/// One look at a group with a detached disk in so many steps ends in a mend.
const ATTACH_EVERY: u64 = 100;
/// One look at a group whose journal or vault failed in so many steps ends in a resume that opens it again.
const REOPEN_EVERY: u64 = 20;

impl Site {
    /// An image breaks for good; or somebody mends what is broken; or asks for a resume.
    pub(super) fn break_or_repair(&mut self) {
        let breaks = self.plan.break_every;
        if breaks > 0 && self.random.chance(1, breaks) {
            self.break_image();
        }
        if self.disk.lasting_faults() > 0 && self.random.chance(1, MEND_EVERY) {
            self.mend_images();
        }
        if !self.clients.is_stopping && self.can_reopen() && self.random.chance(1, REOPEN_EVERY) {
            return self.reopen();
        }
        if self.is_verified && !self.clients.is_stopping {
            let every = if self.has_latched_disks() { RESUME_EVERY } else { 10 * RESUME_EVERY };
            if self.random.chance(1, every) {
                self.resume();
            }
        }
    }

    /// The writes, the syncs or the openings of one disk's image, or of its sums, fail from now on; with them, at times, those of its side
    /// files and of its checkpoint.
    pub(super) fn break_image(&mut self) {
        let members = &self.clients.members;
        if members.is_empty() {
            return;
        }
        let member = self.random.choose(members).clone();
        let suffix = *self.random.choose(&[".raw", ".raw", ".sums", ".checkpoint", "."]);
        let kind = *self.random.choose(&[OpKind::Write, OpKind::Sync, OpKind::Open, OpKind::Open]);
        let path = format!("{}{suffix}", member.id);
        self.tracer.note(|| format!("every {kind:?} of {path} (disk {}) fails from now on", member.number));
        self.disk.fail_always(Matcher::kind(kind).path(path), FaultKind::Io);
        self.clients.broken.push((member.id, suffix == "."));
        self.report.breaks += 1;
        self.note_fault();
    }

    /// Whether a disk is detached, so that what was recovered can't be compared, and stays so for a while; meanwhile the
    /// group may be resumed in vain, or die.
    pub(super) fn leaves_detached(&mut self) -> bool {
        if self.detached_disks() == 0 {
            return false;
        }
        if self.clients.resuming == 0 && self.random.chance(1, RESUME_EVERY) {
            self.resume();
        }
        !self.random.chance(1, ATTACH_EVERY)
    }

    pub(super) fn detached_disks(&mut self) -> u64 {
        let Some(group) = self.process.group() else { return 0 };
        group.disks().filter(|disk| disk.image.is_none()).count() as u64
    }

    /// Mends what is broken until no disk is detached any more.
    pub(super) fn attach_disks(&mut self) -> Outcome {
        self.report.detached += self.detached_disks();
        if self.detached_disks() == 0 {
            return Ok(());
        }
        self.mend_images();
        self.clear_faults();
        self.drive("what was asked before", |site| site.clients.resuming == 0)?;
        if self.can_go_on() {
            self.resume();
            self.drive("a resume of detached disks", |site| site.clients.resuming == 0)?;
        }
        if !self.can_go_on() {
            // Nothing but another opening helps.
            self.die(false);
            self.drive("opening", |site| site.process.is_serving())?;
        }
        if self.detached_disks() == 0 {
            return Ok(());
        }
        Err("a disk stays detached though nothing is broken any more".to_owned())
    }

    pub(super) fn mend_images(&mut self) {
        if self.disk.lasting_faults() > 0 {
            self.tracer.note(|| "the broken images are mended".to_owned());
            self.disk.mend();
            self.clients.broken.clear();
        }
    }

    pub(super) fn resume(&mut self) {
        self.tracer.note(|| "resume".to_owned());
        let callback = self.callback(News::Resumed);
        let Some(group) = self.process.group() else { return };
        self.clients.resuming += 1;
        group.mend_disks(callback);
    }

    /// Whether a resume closes the group and opens it again: its journal or its vault failed, and nobody waits for it.
    pub(super) fn can_reopen(&mut self) -> bool {
        let clients = &self.clients;
        let is_quiet = clients.pending.is_empty()
            && clients.asked == 0
            && clients.resuming == 0
            && clients.joining.is_empty()
            && clients.starting.is_empty()
            && self.resizes_rest()
            && clients.members.iter().all(|member| !member.leaving)
            && clients.tests.values().all(|test| !test.leaving);
        self.is_verified && is_quiet && self.process.group().is_some_and(|group| group.fatal().is_some())
    }

    /// The group is closed in the middle of whatever works for it, and opened again by the same process.
    pub(super) fn reopen(&mut self) {
        self.tracer.note(|| "the group is closed and opened again".to_owned());
        self.report.reopenings += 1;
        // As after any death that a fault may have been part of.
        self.environment.reboot();
        self.process.reopen(self.group_plan());
        self.was_closed = true;
        // It ended with the group.
        self.clients.verifying = 0;
        self.note_failed_syncs(false);
        self.is_verified = false;
    }

    pub(super) fn take_resumed(&mut self, report: &ResumeReport) -> Outcome {
        for disk in &report.disks {
            match &disk.finding {
                Finding::Sound => {}
                Finding::Mended => {
                    self.tracer.note(|| format!("{} was mended", disk.name));
                    self.report.mends += 1;
                }
                Finding::Accepted { lost } => {
                    self.tracer.note(|| format!("{} was mended without {lost:?}", disk.name));
                    self.report.losses += 1;
                }
                Finding::Latched { reason, .. } | Finding::Lost { reason } if self.is_faulted => {
                    self.tracer.note(|| format!("{} stays latched: {reason}", disk.name));
                }
                // A dead process's write may take longer to land than a resume waits for, as it may for an opening.
                Finding::Latched { reason, .. } if reason.contains("holds the lock") => {}
                Finding::Latched { reason, .. } | Finding::Lost { reason } => {
                    return Err(format!("{} stays latched without a fault: {reason}", disk.name));
                }
            }
        }
        Ok(())
    }

    /// Side files that came since the last look.
    pub(super) fn watch_side_files(&mut self) {
        if self.plan.break_every == 0 && self.plan.fault_every == 0 {
            return;
        }
        let is_side_file = |path: &std::path::PathBuf| {
            path.extension()
                .and_then(|extension| extension.to_str())
                .is_some_and(|text| text.starts_with("side-"))
        };
        let count = self.disk.files().iter().filter(|path| is_side_file(path)).count();
        self.report.side_files += count.saturating_sub(self.side_files) as u64;
        self.side_files = count;
    }

    /// Whether some disk is latched, or is being mended.
    pub(super) fn has_latched_disks(&mut self) -> bool {
        self.process.group().is_some_and(|group| group.disks().any(|disk| disk.latched.is_some()))
    }

    /// Before the end: what is broken is mended, and a group that can go on does so without a restart.
    pub(super) fn repair(&mut self) -> Outcome {
        if self.is_verified && self.can_go_on() && self.random.chance(1, 2) {
            self.others_live_on()?;
        }
        self.mend_images();
        if !self.is_verified || !self.has_latched_disks() || !self.can_go_on() || self.random.chance(1, 3) {
            return Ok(());
        }
        self.drive("what was asked before the resume", |site| {
            let is_quiet = site.clients.pending.is_empty() && site.clients.asked == 0;
            is_quiet && site.clients.resuming == 0 && site.resizes_rest()
        })?;
        self.resume();
        self.drive("a resume", |site| site.clients.resuming == 0)?;
        if !self.can_go_on() {
            return Ok(());
        }
        if self.has_latched_disks() {
            return Err("a disk stays latched though nothing is broken any more".to_owned());
        }
        // Whether a disk joined or left whose step failed is seen at the next opening only.
        let clients = &self.clients;
        let is_certain = clients.joining.is_empty()
            && clients.resizing.is_none()
            && clients.starting.is_empty()
            && clients.members.iter().all(|member| !member.leaving)
            && clients.tests.values().all(|test| !test.leaving);
        self.is_faulted = !is_certain;
        // What is under way met the faults.
        self.clients.verifies_amid_faults = self.clients.verifying > 0;
        Ok(())
    }

    /// Beside a broken image the other disks take so many writes that the journal is turned over more than once, for it
    /// lets go of what a side file holds.
    fn others_live_on(&mut self) -> Outcome {
        let broken = &self.clients.broken;
        if broken.is_empty() || broken.iter().any(|(_, side_files)| *side_files) {
            return Ok(());
        }
        let is_sound =
            |member: &&Member| self.is_usable(member) && broken.iter().all(|(id, _)| *id != member.id);
        let sound: Vec<Member> = self.clients.members.iter().filter(is_sound).cloned().collect();
        let latched = self.process.group().map(|group| {
            let latched = group.disks().filter(|disk| disk.latched.is_some());
            latched.map(|disk| disk.record.id).collect::<Vec<_>>()
        });
        let latched = latched.unwrap_or_default();
        let Some(member) = sound.into_iter().find(|member| !latched.contains(&member.id)) else {
            return Ok(());
        };
        self.tracer.note(|| format!("disk {} goes on beside a broken image", member.number));
        let sectors = self.plan.write_sectors_max.min(self.history.sectors(member.number));
        let total = TURNS * self.plan.segment_bytes * self.plan.segments / SECTOR_BYTES;
        for _ in 0..total / sectors {
            let (before, stamp) = (self.history.issued(), self.clients.next_stamp());
            self.change(&member, SectorRange::new(0, sectors), Some(stamp))?;
            if self.history.issued() == before {
                return Err(format!(
                    "disk {} is sound, and refuses writes beside a broken image",
                    member.number
                ));
            }
            let depth = self.plan.depth;
            self.drive("a write beside a broken image", |site| site.clients.pending.len() < depth)?;
        }
        self.drive("writes beside a broken image", |site| site.clients.pending.is_empty())?;
        if self.history.acknowledged() == self.history.issued() {
            return Ok(());
        }
        Err("writes beside a broken image failed".to_owned())
    }

    /// Whether neither journal nor vault failed for good.
    fn can_go_on(&mut self) -> bool {
        self.process.group().is_some_and(|group| {
            let in_doubt = group.vault().manifest().is_in_doubt();
            group.failure().is_none() && group.vault_failure().is_none() && !in_doubt
        })
    }
}
