//! Resuming a group after a mend: what is latched is looked at again.
//!
//! It clears the latches of disks whose images work again. Where journal or vault failed, the group has to be closed and
//! opened again, which is its owner's to do, as for one that could not be opened at all.

use crate::error::Error;
use crate::protect::events::ranges;
use crate::protect::group::{Callback, Group};
use crate::protect::latching::{Finding, ResumeReport};
use crate::protect::status::Condition;

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
                    "disk {}: writes to sectors {} are lost; they hold something older",
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
}
