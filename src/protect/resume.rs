//! Resuming a group after a mend: what is latched is looked at again.
//!
//! It clears the latches of disks whose images work again. Where journal or vault failed, the group has to be closed and
//! opened again, which is its owner's to do, as for one that could not be opened at all.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind};
use crate::extent::Ranges;
use crate::protect::events::ranges;
use crate::protect::group::{Callback, Group};
use crate::protect::status::Condition;
use crate::units::{DiskId, DiskSlot};

/// What a resume found of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumedDisk {
    /// The disk.
    pub disk: DiskId,
    /// What people call it.
    pub name: String,
    /// How it stands now.
    pub finding: Finding,
}

/// How a disk stands after a resume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It was not latched.
    Sound,
    /// Its image has taken all that it lacked; its writes are taken again.
    Mended,
    /// The same, but that writes to these sectors are lost, which was accepted: they hold something older.
    Accepted {
        /// The sectors.
        lost: Ranges,
    },
    /// It stays latched, since writes are lost and nobody accepted that.
    Lost {
        /// Which, with segment file and offset, in words.
        reason: String,
    },
    /// It stays latched.
    Latched {
        /// What its image still refuses with,
        kind: ErrorKind,
        /// in words, with path and offset.
        reason: String,
    },
}

/// What a resume found, disk by disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResumeReport {
    /// The disks, in the order of their places in the group.
    pub disks: Vec<ResumedDisk>,
}

/// A resume that waits for the mends of some disks.
pub(super) struct Resume {
    waiting: BTreeSet<DiskSlot>,
    found: Vec<(DiskSlot, ResumedDisk)>,
    done: Callback<ResumeReport>,
}

/// What became of a group's latches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// What takes writes again, one line each.
    pub cleared: Vec<String>,
    /// What stays latched, why, and what a person can do, one line each.
    pub latched: Vec<String>,
}

impl From<ResumeReport> for Resumed {
    fn from(report: ResumeReport) -> Resumed {
        let mut resumed = Resumed::default();
        for disk in report.disks {
            match disk.finding {
                Finding::Sound => {}
                Finding::Mended => resumed.cleared.push(format!("disk {}", disk.name)),
                Finding::Accepted { lost } => resumed.cleared.push(format!(
                    "disk {}: writes to sectors {} are lost; they hold something older, or zeros",
                    disk.name,
                    ranges(&lost)
                )),
                Finding::Lost { reason } => resumed.latched.push(reason),
                Finding::Latched { reason, .. } => {
                    let mend = "mend the device, then resume again";
                    resumed
                        .latched
                        .push(format!("disk {}: its image still fails: {reason}: {mend}", disk.name));
                }
            }
        }
        resumed
    }
}

impl Group {
    /// Looks again at what is latched; `callback` is told what was cleared and what was not. That writes are lost which
    /// rotted in the journal keeps a disk latched, unless that is accepted.
    pub fn resume(&mut self, accepts_loss: bool, callback: Callback<Resumed>) {
        if let Some(error) = self.fatal() {
            return callback(Err(error));
        }
        let done: Callback<ResumeReport> = Box::new(move |report| callback(report.map(Resumed::from)));
        if accepts_loss { self.mend_disks_accepting_loss(done) } else { self.mend_disks(done) }
    }

    /// What failed so that only opening the group again can mend it: its journal, or its vault.
    pub fn fatal(&self) -> Option<Error> {
        let (kind, condition) = match (self.writer.failure(), self.vault_failed) {
            (Some(kind), _) => (kind, Condition::JournalFailed),
            (None, Some(kind)) => (kind, Condition::VaultFailed),
            (None, None) => return None,
        };
        let why = condition.explanation().expect("a failure is explained");
        Some(Error::new(kind, why.what))
    }

    /// Looks again whether the images of latched disks work, and clears the latches of those that do. Each gets what it
    /// lacks, sync and checkpoint; its side files go, and its writes are taken again. `done` gets what was found.
    ///
    /// A group whose journal failed, or whose vault is in doubt, is refused with [`ErrorKind::Latched`]: nothing in
    /// memory says what its files hold, so it has to be opened anew, which mends its disks as well.
    pub fn mend_disks(&mut self, done: Callback<ResumeReport>) {
        self.look_at_latches(false, done);
    }

    /// The same, and where writes are lost that rotted in the journal, that is accepted: their sectors hold something
    /// older, from now on as if somebody had written that.
    pub fn mend_disks_accepting_loss(&mut self, done: Callback<ResumeReport>) {
        self.look_at_latches(true, done);
    }

    /// Whether what the opening found in the journal has been destaged, or latched its disk: before, nobody knows whether it can be
    /// read. Where that waits for space, nobody waits for it.
    fn has_looked(&self) -> bool {
        self.layers.destaged(self.accepted) >= self.accepted || self.destage_retry.wants_space()
    }

    /// Whether somebody asked for a resume before that.
    pub(super) fn is_look_waited_for(&self) -> bool {
        !self.resumes_early.is_empty()
    }

    /// Takes up the resumes that came early.
    pub(super) fn take_up_resumes(&mut self) {
        if self.is_look_waited_for() && self.has_looked() {
            for (accepts_loss, done) in std::mem::take(&mut self.resumes_early) {
                self.look_at_latches(accepts_loss, done);
            }
        }
    }

    fn look_at_latches(&mut self, accepts_loss: bool, done: Callback<ResumeReport>) {
        if self.writer.failure().is_some() || self.vault_failed.is_some() {
            let text =
                "the journal failed, or the vault is in doubt: the group has to be closed and opened again";
            return done(Err(Error::new(ErrorKind::Latched, text)));
        }
        if self.stopping {
            return done(Err(Error::new(ErrorKind::Shutdown, "the group is stopping")));
        }
        if !self.has_looked() {
            return self.resumes_early.push((accepts_loss, done));
        }
        let mut resume = Resume { waiting: BTreeSet::new(), found: Vec::new(), done };
        for (&slot, disk) in &mut self.disks {
            if disk.latched.is_some() {
                resume.waiting.insert(slot);
                disk.mend_asked = true;
                disk.accepts_loss |= accepts_loss;
            } else {
                let (disk, name) = (disk.record.id, disk.record.name.clone());
                resume.found.push((slot, ResumedDisk { disk, name, finding: Finding::Sound }));
            }
        }
        self.resumes.push(resume);
        self.answer_resumes();
    }

    pub(super) fn found(&mut self, slot: DiskSlot, finding: &Finding) {
        let record = &self.disks[&slot].record;
        for resume in &mut self.resumes {
            if resume.waiting.remove(&slot) {
                let (disk, name, finding) = (record.id, record.name.clone(), finding.clone());
                resume.found.push((slot, ResumedDisk { disk, name, finding }));
            }
        }
        self.answer_resumes();
    }

    /// Answers the resumes that wait for no disk any more.
    pub(super) fn answer_resumes(&mut self) {
        for mut resume in std::mem::take(&mut self.resumes) {
            resume.waiting.retain(|slot| self.disks.contains_key(slot));
            if resume.waiting.is_empty() {
                resume.found.sort_by_key(|(slot, _)| *slot);
                let disks = resume.found.into_iter().map(|(_, disk)| disk).collect();
                (resume.done)(Ok(ResumeReport { disks }));
            } else {
                self.resumes.push(resume);
            }
        }
    }

    /// The group failed, or stops: nobody clears latches any more.
    pub(super) fn refuse_resumes(&mut self, kind: ErrorKind, why: &str) {
        for disk in self.disks.values_mut() {
            (disk.mend_asked, disk.accepts_loss) = (false, false);
        }
        let early = self.resumes_early.drain(..).map(|(_, done)| done);
        for done in self.resumes.drain(..).map(|resume| resume.done).chain(early) {
            done(Err(Error::new(kind, why)));
        }
    }
}
