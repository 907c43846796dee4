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
    groups: HashMap<GroupId, Placed>,
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

    /// Serves nothing by `name` any more; sessions that are under way stay.
    pub fn remove(&self, name: &str) -> Option<ExportInfo> {
        self.directory.write().exports.remove(name)
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

    /// Counts a session of `group` and says where it goes: the first to the group's own thread, so that nothing is
    /// handed over, further ones round the others, so that sockets and journal share the work. `None` if no such
    /// group is hosted.
    pub(super) fn begin_session(&self, group: GroupId, threads: usize) -> Option<Placement> {
        let mut directory = self.directory.write();
        let placed = directory.groups.get_mut(&group)?;
        let thread = (placed.home + placed.sessions) % threads;
        placed.sessions += 1;
        Some(Placement { home: placed.home, thread })
    }

    /// Counts a session of `group` off.
    pub(super) fn end_session(&self, group: GroupId) {
        if let Some(placed) = self.directory.write().groups.get_mut(&group) {
            placed.sessions = placed.sessions.saturating_sub(1);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_spread_over_threads_and_sessions_start_at_home() {
        let registry = ExportRegistry::default();
        let homes: Vec<usize> = (0..4).map(|id| registry.place_group(GroupId(id), 3)).collect();
        assert_eq!(homes, [0, 1, 2, 0]);
        assert_eq!(registry.place_group(GroupId(1), 3), 1, "a home is kept");
        let threads: Vec<usize> =
            (0..4).map(|_| registry.begin_session(GroupId(1), 3).unwrap().thread).collect();
        assert_eq!(threads, [1, 2, 0, 1]);
        assert_eq!(registry.begin_session(GroupId(9), 3), None);
    }
}
