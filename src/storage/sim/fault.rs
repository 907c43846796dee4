//! Which operations fail, and how: by plan (the next that match, or all until a mend) or by chance.
//!
//! Short transfers are continued below the seam, so that what remains visible of one is a transfer that stopped in
//! the middle and failed.

use std::path::Path;

use super::process::ProcessId;
use crate::random::Random;
use crate::storage::Op;

/// The kinds of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum OpKind {
    Open,
    Read,
    Write,
    Sync,
    Evict,
    Zero,
    SetLength,
    Length,
    DataRanges,
    Publish,
    Remove,
    RemoveDirectory,
    CreateDirectory,
    List,
    SyncDirectory,
    Space,
}

impl OpKind {
    /// How many kinds there are.
    pub const COUNT: usize = OpKind::Space as usize + 1;

    /// The kind of an operation.
    pub fn of(op: &Op) -> OpKind {
        match op {
            Op::Open { .. } => OpKind::Open,
            Op::Read { .. } => OpKind::Read,
            Op::Write { .. } => OpKind::Write,
            Op::Sync { .. } => OpKind::Sync,
            Op::Evict { .. } => OpKind::Evict,
            Op::Zero { .. } => OpKind::Zero,
            Op::SetLength { .. } => OpKind::SetLength,
            Op::Length { .. } => OpKind::Length,
            Op::DataRanges { .. } => OpKind::DataRanges,
            Op::Publish { .. } => OpKind::Publish,
            Op::Remove { .. } => OpKind::Remove,
            Op::RemoveDirectory { .. } => OpKind::RemoveDirectory,
            Op::CreateDirectory { .. } => OpKind::CreateDirectory,
            Op::List { .. } => OpKind::List,
            Op::SyncDirectory { .. } => OpKind::SyncDirectory,
            Op::Space { .. } => OpKind::Space,
        }
    }
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// EIO. What the operation does may have happened, wholly or in part, or not; a failed sync loses what it covers.
    Io,
    /// ENOSPC, and nothing happened.
    NoSpace,
    /// A transfer that stops after a random number of its sectors.
    Short,
}

/// Which operation a planned fault hits.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    kind: Option<OpKind>,
    path_part: Option<String>,
    process: Option<ProcessId>,
    skip: u64,
}

impl Matcher {
    /// Any operation.
    #[must_use]
    pub fn any() -> Matcher {
        Matcher::default()
    }

    /// Operations of this kind.
    #[must_use]
    pub fn kind(kind: OpKind) -> Matcher {
        Matcher { kind: Some(kind), ..Matcher::default() }
    }

    /// Only those whose path has `part` in it.
    #[must_use]
    pub fn path(mut self, part: impl Into<String>) -> Matcher {
        self.path_part = Some(part.into());
        self
    }

    /// Only those of this process.
    #[must_use]
    pub fn process(mut self, process: ProcessId) -> Matcher {
        self.process = Some(process);
        self
    }

    /// Only after `count` others that match.
    #[must_use]
    pub fn after(mut self, count: u64) -> Matcher {
        self.skip = count;
        self
    }

    fn matches(&self, kind: OpKind, path: &Path, process: ProcessId) -> bool {
        self.kind.is_none_or(|wanted| wanted == kind)
            && self.process.is_none_or(|wanted| wanted == process)
            && self.path_part.as_ref().is_none_or(|part| path.to_string_lossy().contains(&**part))
    }
}

/// How often operations fail by chance, in parts per million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// Reads with EIO.
    pub read_io: u32,
    /// Writes and zeroings with EIO.
    pub write_io: u32,
    /// Writes that stop in the middle.
    pub write_short: u32,
    /// Writes with ENOSPC.
    pub write_no_space: u32,
    /// Syncs of files and directories with EIO.
    pub sync_io: u32,
    /// Everything that concerns names or lengths with EIO.
    pub other_io: u32,
}

/// Planned and random faults of a disk.
#[derive(Debug, Default)]
pub(super) struct FaultPlan {
    planned: Vec<(Matcher, FaultKind)>,
    lasting: Vec<(Matcher, FaultKind)>,
    pub(super) rates: FaultRates,
}

impl FaultPlan {
    pub(super) fn plan(&mut self, matcher: Matcher, kind: FaultKind) {
        self.planned.push((matcher, kind));
    }

    pub(super) fn break_for_good(&mut self, matcher: Matcher, kind: FaultKind) {
        self.lasting.push((matcher, kind));
    }

    pub(super) fn mend(&mut self) {
        self.lasting.clear();
    }

    pub(super) fn lasting(&self) -> usize {
        self.lasting.len()
    }

    pub(super) fn clear(&mut self) {
        self.planned.clear();
        self.rates = FaultRates::default();
    }

    pub(super) fn pending(&self) -> usize {
        self.planned.len()
    }

    /// Whether, and how, an operation fails.
    pub(super) fn draw(
        &mut self,
        kind: OpKind,
        path: &Path,
        process: ProcessId,
        random: &mut Random,
    ) -> Option<FaultKind> {
        for (index, (matcher, fault)) in self.planned.iter_mut().enumerate() {
            if !matcher.matches(kind, path, process) {
                continue;
            }
            if matcher.skip == 0 {
                let fault = *fault;
                self.planned.remove(index);
                return Some(fault);
            }
            matcher.skip -= 1;
        }
        let broken = self.lasting.iter().find(|(matcher, _)| matcher.matches(kind, path, process));
        if let Some((_, fault)) = broken {
            return Some(*fault);
        }
        self.draw_by_chance(kind, random)
    }

    fn draw_by_chance(&self, kind: OpKind, random: &mut Random) -> Option<FaultKind> {
        let rates = &self.rates;
        let candidates: &[(u32, FaultKind)] = match kind {
            OpKind::Read => &[(rates.read_io, FaultKind::Io)],
            OpKind::Write => &[
                (rates.write_io, FaultKind::Io),
                (rates.write_short, FaultKind::Short),
                (rates.write_no_space, FaultKind::NoSpace),
            ],
            OpKind::Zero => &[(rates.write_io, FaultKind::Io)],
            OpKind::Sync | OpKind::SyncDirectory => &[(rates.sync_io, FaultKind::Io)],
            _ => &[(rates.other_io, FaultKind::Io)],
        };
        let hit = candidates.iter().find(|(rate, _)| random.chance(u64::from(*rate), 1_000_000));
        hit.map(|(_, fault)| *fault)
    }
}
