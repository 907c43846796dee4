//! Resuming a group after a mend: what is latched is looked at again.
//!
//! It does not clear a latch yet: it says what is latched. A group that could not be opened is not here at all; its
//! owner opens it again.

use crate::error::Result;
use crate::protect::group::{Callback, Group};
use crate::protect::status::Condition;

/// What became of a group's latches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// What takes writes again, one line each.
    pub cleared: Vec<String>,
    /// What stays latched, why, and what a person can do, one line each.
    pub latched: Vec<String>,
}

impl Group {
    /// Looks again at what is latched; `callback` is told what was cleared and what was not.
    pub fn resume(&mut self, callback: Callback<Resumed>) {
        let result: Result<Resumed> = Ok(Resumed { cleared: Vec::new(), latched: self.latches() });
        callback(result);
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
