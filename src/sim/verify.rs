//! Verifications of the group beside everything else: they find nothing where nothing rotted, and what rotted in a raw file.

use std::cell::RefCell;
use std::num::NonZeroU64;
use std::path::Path;
use std::rc::Rc;

use super::clients::{Member, News};
use super::site::{Outcome, Site};
use crate::error::{ErrorKind, Result};
use crate::image::image_path;
use crate::protect::verify::{GroupReport, Verification, What};
use crate::storage::sim::Rot;
use crate::throttle::{ByteRate, Pacing};
use crate::units::{DiskId, SECTOR_BYTES, SectorRange};
use crate::vault::Layout;
use crate::view::{Origin, View};

/// Bits flipped in images and bases of one run, one after the other.
const ROTS: u64 = 2;
/// Writes that come between a flip and its verification, at most.
const WRITES_MAX: u64 = 6;

/// What became of a flipped bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    Found,
    /// The newest point does not show it.
    Hidden,
    /// Somebody wrote there: it may be gone.
    Overwritten,
}

impl Site {
    /// Somebody has the group compared with its newest point.
    pub(super) fn verify(&mut self) {
        if self.clients.verifying > 0 {
            return;
        }
        self.tracer.note(|| "verify".to_owned());
        let (verification, callback) = (self.verification(), self.callback(News::Verified));
        let Some(group) = self.process.group() else { return };
        self.clients.verifying += 1;
        group.verify(verification, callback);
    }

    fn verification(&self) -> Verification {
        let rate = NonZeroU64::new(self.plan.verify_rate).map(ByteRate);
        let pacing = Pacing { rate, ..Pacing::default() };
        let piece_bytes = self.plan.verify_bytes;
        Verification { piece_bytes, ..Verification::new(pacing, Rc::new(|_, _| Ok(()))) }
    }

    /// What came of it: nothing rotted yet.
    pub(super) fn take_verified(&mut self, result: Result<GroupReport>) -> Outcome {
        self.clients.verifying = self.clients.verifying.saturating_sub(1);
        let is_faulted = std::mem::take(&mut self.clients.verifies_amid_faults) || self.is_faulted;
        let report = match result {
            Ok(report) => report,
            Err(error) if is_faulted || error.kind() == ErrorKind::Shutdown => return Ok(()),
            Err(error) => return Err(format!("a verification failed without a fault: {error}")),
        };
        self.tracer.note(|| format!("verified: {report:?}"));
        self.report.verifications += 1;
        self.report.verified_beside_writes += u64::from(report.newer_bytes > 0);
        let is_excused = |what: &What| is_faulted && matches!(what, What::Unreadable { .. });
        match report.findings.iter().find(|finding| !is_excused(&finding.what)) {
            Some(finding) => Err(format!("a verification finds what is not: {finding}")),
            None => Ok(()),
        }
    }

    /// Flips bits in images and bases under the running process, which is written to and verified. Afterwards everything is
    /// as it was.
    pub(super) fn damage_raw(&mut self) -> Outcome {
        self.rest()?;
        let written = self.write_somewhere()?;
        let sound = self.disk.image();
        // No point is taken up that will not have been.
        self.is_verified = false;
        for _ in 0..ROTS {
            let seed = self.random.next();
            let Some(rot) = self.disk.rot_somewhere(seed, is_raw) else { break };
            self.report.raw_rots += 1;
            self.tracer.note(|| format!("under way: {rot:?}"));
            let judged = self.judge_raw(&rot, &written);
            if judged.map_err(|text| format!("after {rot:?}: {text}"))? == Judged::Overwritten {
                break;
            }
            // The same bit once more: it is as it was.
            self.disk.rot(&rot.path, rot.offset, rot.bit);
        }
        self.disk.kill_process(self.process.id());
        self.disk.run();
        self.disk.restore(&sound);
        self.start_process();
        Ok(())
    }

    /// Acknowledged writes, and where they are.
    pub(super) fn write_somewhere(&mut self) -> std::result::Result<Vec<(DiskId, SectorRange)>, String> {
        let mut written = Vec::new();
        for _ in 0..self.random.below(WRITES_MAX) {
            let staying: Vec<Member> =
                self.clients.members.iter().filter(|member| !member.leaving).cloned().collect();
            let member = self.random.choose(&staying).clone();
            let range = self.draw_range(self.history.sectors(member.number));
            let stamp = self.clients.next_stamp();
            self.change(&member, range, Some(stamp))?;
            self.drive("a write", |site| site.clients.pending.is_empty())?;
            written.push((member.id, range));
        }
        Ok(written)
    }

    fn judge_raw(
        &mut self,
        rot: &Rot,
        written: &[(DiskId, SectorRange)],
    ) -> std::result::Result<Judged, String> {
        let sector = rot.offset / SECTOR_BYTES;
        let is_rotten =
            |range: SectorRange| range.intersection(SectorRange::new(sector, sector + 1)).is_some();
        let (images, bases) = (self.group_plan().images(), Layout::new(&self.group_plan().vault));
        let disks = || self.numbers.iter().map(|(_, disk)| *disk);
        let of_image = disks().find(|disk| image_path(&images, *disk) == rot.path);
        let of_base = disks().find(|disk| bases.base(*disk) == rot.path);
        // What was written lately is read from the journal, or was written over the flip.
        let is_of = |disk: DiskId| of_image == Some(disk) || of_base == Some(disk);
        let is_written = written.iter().any(|(disk, range)| is_of(*disk) && is_rotten(*range));
        let is_shown = match of_image {
            Some(disk) => self.is_in_newest(disk)?,
            None => self.is_base_of_newest(rot)?,
        };
        let report = self.verify_now()?;
        let is_it = |what: &What| match what {
            // Both have sums: what does not match them is not given to be compared.
            What::Unreadable { error } => error.contains(&*rot.path.to_string_lossy()),
            What::Differs { .. } => false,
        };
        let exactly = SectorRange::new(sector, sector + 1);
        let is_there = |range: SectorRange| {
            if of_base.is_some() { range.intersection(exactly).is_some() } else { range == exactly }
        };
        match &report.findings[..] {
            [] if is_written => Ok(Judged::Overwritten),
            [] if !is_shown => Ok(Judged::Hidden),
            [] => Err(format!("a verification does not find it: {report:?}")),
            [only] if is_there(only.range) && is_it(&only.what) => {
                self.report.raw_rots_found += 1;
                Ok(Judged::Found)
            }
            _ => Err(format!("a verification finds something else: {:?}", report.findings)),
        }
    }

    fn verify_now(&mut self) -> std::result::Result<GroupReport, String> {
        let answer: Rc<RefCell<Option<Result<GroupReport>>>> = Rc::default();
        let (slot, verification) = (Rc::clone(&answer), self.verification());
        let Some(group) = self.process.group() else { return Err("the group is not open".to_owned()) };
        group.verify(verification, Box::new(move |result| drop(slot.replace(Some(result)))));
        self.drive("a verification", |_| answer.borrow().is_some())?;
        answer.take().expect("answered").map_err(|error| format!("a verification failed: {error}"))
    }

    fn is_in_newest(&mut self, disk: DiskId) -> std::result::Result<bool, String> {
        let Some(group) = self.process.group() else { return Err("the group is not open".to_owned()) };
        let state = group.vault().manifest().state();
        let is_member = state.disks().any(|member| member.id == disk);
        let newest = state.points().last();
        Ok(is_member && newest.is_some_and(|point| point.disks.iter().any(|member| member.disk == disk)))
    }

    /// Whether the newest point reads the byte from the base, for a disk that is still there.
    fn is_base_of_newest(&mut self, rot: &Rot) -> std::result::Result<bool, String> {
        let answer: Rc<RefCell<Option<Result<bool>>>> = Rc::default();
        let slot = Rc::clone(&answer);
        let Some(group) = self.process.group() else { return Err("the group is not open".to_owned()) };
        let (vault, rot) = (Rc::clone(group.vault()), rot.clone());
        self.process.runtime().spawn(async move {
            let look = async {
                let Some(point) = vault.manifest().state().points().last().map(|point| point.id) else {
                    return Ok(false);
                };
                let view = View::open(&vault, point).await?;
                let sector = rot.offset / SECTOR_BYTES;
                for disk in view.disks().iter().filter(|disk| sector < disk.sectors().0) {
                    let is_member = vault.manifest().state().disks().any(|member| member.id == disk.id());
                    let origins = view.origins(disk.id(), SectorRange::new(sector, sector + 1)).await?;
                    let is_here =
                        |origin: &Origin| matches!(origin, Origin::Base { path, .. } if *path == rot.path);
                    if is_member && origins.iter().any(|(_, origin)| is_here(origin)) {
                        return Ok(true);
                    }
                }
                Ok(false)
            };
            let found = look.await;
            slot.replace(Some(found));
        });
        self.drive("a look at the newest point", |_| answer.borrow().is_some())?;
        answer.take().expect("answered").map_err(|error| format!("the newest point can't be opened: {error}"))
    }
}

/// Images and bases, complete ones.
fn is_raw(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "raw")
}
