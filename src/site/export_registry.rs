//! What is served by which name, and which data thread each group lives on.
//!
//! The control plane writes it; sessions read it while they shake hands, never per request.

use std::collections::{BTreeMap, HashMap};

use parking_lot::RwLock;

use crate::block::Export;
use crate::capture::nbd::{ExportInfo, Exports};
use crate::error::{Error, ErrorKind, Result};
use crate::units::GroupId;

/// The directory of exports and of the groups behind them.
#[derive(Debug, Default)]
pub struct ExportRegistry {
    directory: RwLock<Directory>,
}

#[derive(Debug, Default)]
struct Directory {
    exports: BTreeMap<String, ExportInfo>,
    /// Groups whose disks are not served, and why.
    refusals: HashMap<String, String>,
    groups: HashMap<GroupId, Placed>,
    /// Sessions of each export that has any.
    sessions: HashMap<Export, u64>,
}

/// Where a group lives, and how many sessions its exports have.
#[derive(Clone, Copy, Debug)]
struct Placed {
    home: usize,
    sessions: usize,
}

/// Where a session goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    /// The data thread that owns the group.
    pub(super) home: usize,
    /// The data thread that should own the session.
    pub(super) thread: usize,
}

impl ExportRegistry {
    /// Serves `info` by `name`.
    ///
    /// # Errors
    /// `AlreadyExists` if something is served by that name.
    pub fn add(&self, name: &str, info: ExportInfo) -> Result<()> {
        let mut directory = self.directory.write();
        if directory.exports.contains_key(name) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("export {name} is served already")));
        }
        directory.exports.insert(name.to_owned(), info);
        Ok(())
    }

    /// Whether something is served by `name`.
    pub fn has(&self, name: &str) -> bool {
        self.directory.read().exports.contains_key(name)
    }

    /// Tells clients another size from now on; those that are connected were told the one before.
    pub fn resize(&self, name: &str, bytes: u64) {
        if let Some(info) = self.directory.write().exports.get_mut(name) {
            info.size = bytes;
        }
    }

    /// Serves nothing by `name` any more; sessions that are under way stay.
    pub fn remove(&self, name: &str) -> Option<ExportInfo> {
        self.directory.write().exports.remove(name)
    }

    /// Tells clients that ask for a disk of the group of that name why it is not served, from now on.
    pub fn refuse_group(&self, name: &str, why: String) {
        self.directory.write().refusals.insert(name.to_owned(), why);
    }

    /// The disks of the group of that name are served, or there are none.
    pub fn end_refusal(&self, name: &str) {
        self.directory.write().refusals.remove(name);
    }

    /// Gives a group a home among `threads` data threads, the one with the fewest groups, unless it has one; returns
    /// it.
    pub fn place_group(&self, group: GroupId, threads: usize) -> usize {
        let mut directory = self.directory.write();
        if let Some(placed) = directory.groups.get(&group) {
            return placed.home;
        }
        let groups_on =
            |thread: &usize| directory.groups.values().filter(|placed| placed.home == *thread).count();
        let home = (0..threads).min_by_key(groups_on).expect("there is a data thread");
        directory.groups.insert(group, Placed { home, sessions: 0 });
        home
    }

    /// The group is gone.
    pub fn forget_group(&self, group: GroupId) {
        self.directory.write().groups.remove(&group);
    }

    /// The data thread that owns the group.
    pub fn home(&self, group: GroupId) -> Option<usize> {
        self.directory.read().groups.get(&group).map(|placed| placed.home)
    }

    /// Whether the export is served by any name.
    pub(super) fn serves(&self, export: Export) -> bool {
        self.directory.read().exports.values().any(|info| info.export == export)
    }

    /// Sessions that an export has now.
    pub fn sessions_of(&self, export: Export) -> u64 {
        self.directory.read().sessions.get(&export).copied().unwrap_or(0)
    }

    /// Counts a session of `export` and says where it goes: the first to the group's own thread, so that nothing is
    /// handed over, further ones round the others, so that sockets and journal share the work. `None` if no such
    /// group is hosted.
    pub(super) fn begin_session(&self, export: Export, threads: usize) -> Option<Placement> {
        let mut directory = self.directory.write();
        let placed = directory.groups.get_mut(&export.group())?;
        let placement = Placement { home: placed.home, thread: (placed.home + placed.sessions) % threads };
        placed.sessions += 1;
        *directory.sessions.entry(export).or_default() += 1;
        Some(placement)
    }

    /// Counts a session of `export` off.
    pub(super) fn end_session(&self, export: Export) {
        let mut directory = self.directory.write();
        if let Some(placed) = directory.groups.get_mut(&export.group()) {
            placed.sessions = placed.sessions.saturating_sub(1);
        }
        if let Some(sessions) = directory.sessions.get_mut(&export) {
            *sessions -= 1;
            if *sessions == 0 {
                directory.sessions.remove(&export);
            }
        }
    }
}

impl Exports for ExportRegistry {
    fn names(&self) -> Vec<String> {
        self.directory.read().exports.keys().cloned().collect()
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        self.directory.read().exports.get(name).cloned()
    }

    fn refusal(&self, name: &str) -> Option<String> {
        let (group, _) = name.split_once('/')?;
        self.directory.read().refusals.get(group).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::DiskId;

    #[test]
    fn groups_spread_over_threads_and_sessions_start_at_home() {
        let registry = ExportRegistry::default();
        let homes: Vec<usize> = (0..4).map(|id| registry.place_group(GroupId(id), 3)).collect();
        assert_eq!(homes, [0, 1, 2, 0]);
        assert_eq!(registry.place_group(GroupId(1), 3), 1, "a home is kept");
        let export = |group| Export::Disk(GroupId(group), DiskId(7));
        let threads: Vec<usize> =
            (0..4).map(|_| registry.begin_session(export(1), 3).unwrap().thread).collect();
        assert_eq!(threads, [1, 2, 0, 1]);
        assert_eq!(registry.begin_session(export(9), 3), None);
        assert_eq!(registry.sessions_of(export(1)), 4);
        (0..4).for_each(|_| registry.end_session(export(1)));
        assert_eq!(registry.sessions_of(export(1)), 0);
    }
}
