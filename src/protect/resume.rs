//! Resuming a group after a mend: what is latched is looked at again.
//!
//! It clears the latches of disks whose images work again. A journal or vault that failed it only names: the group has to
//! be closed and opened again. A group that could not be opened is not here at all; its owner opens it.

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
    /// Looks again at what is latched; `callback` is told what was cleared and what was not.
    pub fn resume(&mut self, callback: Callback<Resumed>) {
        if self.writer.failure().is_some() || self.vault_failed.is_some() {
            return callback(Ok(Resumed { cleared: Vec::new(), latched: self.latches() }));
        }
        self.mend_disks(Box::new(move |report| callback(report.map(Resumed::from))));
    }

    fn latches(&self) -> Vec<String> {
        let line = |what: &str, condition: Condition| {
            let why = condition.explanation().expect("a failure is explained");
            format!("{what}: {}: {}", why.what, why.mend)
        };
        let journal = self.writer.failure().map(|_| line("journal", Condition::JournalFailed));
        let vault = self.vault_failed.map(|_| line("vault", Condition::VaultFailed));
        let disks = self.disks.values().filter(|disk| disk.latched.is_some());
        let disks = disks.map(|disk| line(&format!("disk {}", disk.record.name), Condition::ImageFailed));
        journal.into_iter().chain(vault).chain(disks).collect()
    }
}
