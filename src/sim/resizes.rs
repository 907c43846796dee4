//! Disks that change their size: what the clients ask for, and which sizes a point may list.
//!
//! The oracle sees markers, and how far the journal was when it asked for a resize and when it was told of one; a point
//! whose marker lies between may be of before or of after.

use super::clients::{Member, News, Pending};
use super::site::{Outcome, Site};
use crate::error::{ErrorKind, Result};
use crate::format::record::DiskRecord;
use crate::units::{DiskId, Lsn, SectorCount};

/// A resize that was asked for, and of which nobody knows yet whether it happened.
#[derive(Clone, Debug)]
pub(super) struct Resizing {
    pub(super) id: DiskId,
    number: usize,
    to: u64,
    after: Lsn,
    /// The step is in doubt: the next opening tells.
    in_doubt: bool,
}

/// A resize that happened.
#[derive(Clone, Debug)]
struct Resized {
    id: DiskId,
    from: u64,
    to: u64,
    /// Markers up to here are of before,
    after: Lsn,
    /// and those above this one of after.
    by: Lsn,
    /// Its number in the history, if it is a growth.
    growth: Option<usize>,
}

/// All resizes.
#[derive(Clone, Debug, Default)]
pub(super) struct Resizes {
    happened: Vec<Resized>,
}

impl Resizes {
    /// Whether a point may list that size of a disk that has `now`.
    pub(super) fn allow(&self, id: DiskId, marker: Lsn, sectors: u64, now: u64) -> bool {
        let of_disk: Vec<&Resized> = self.happened.iter().filter(|resized| resized.id == id).collect();
        let first = of_disk.first().map_or(now, |resized| resized.from);
        let mut possible = vec![first];
        for resized in of_disk {
            if marker > resized.by {
                possible.clear();
            }
            if marker > resized.after {
                possible.push(resized.to);
            }
        }
        possible.contains(&sectors)
    }

    /// The growths that are part of a point for sure, and those that may be.
    pub(super) fn growths(&self, marker: Lsn) -> (Vec<usize>, Vec<usize>) {
        let before = self.happened.iter().filter(|resized| marker > resized.after);
        let (sure, perhaps): (Vec<_>, Vec<_>) = before.partition(|resized| marker > resized.by);
        let numbers = |resizes: Vec<&Resized>| resizes.iter().filter_map(|resized| resized.growth).collect();
        (numbers(sure), numbers(perhaps))
    }
}

impl Site {
    /// Whether nobody waits for a resize.
    pub(super) fn resizes_rest(&self) -> bool {
        self.clients.resizing.as_ref().is_none_or(|resizing| resizing.in_doubt)
    }

    /// Whether a client may use a disk now: not one that is about to shrink, for those have none.
    pub(super) fn is_usable(&self, member: &Member) -> bool {
        let shrinks = |resizing: &Resizing| {
            resizing.id == member.id && resizing.to < self.history.sectors(member.number)
        };
        !member.leaving && !self.clients.resizing.as_ref().is_some_and(shrinks)
    }

    /// Somebody gives a disk another size.
    pub(super) fn resize_disk(&mut self) {
        let staying: Vec<Member> =
            self.clients.members.iter().filter(|member| !member.leaving).cloned().collect();
        if staying.is_empty() || self.clients.resizing.is_some() {
            return;
        }
        let member = self.random.choose(&staying).clone();
        let to = self.draw_other_size();
        let number = member.number;
        let is_shrink = to < self.history.sectors(number);
        if is_shrink && self.has_pending(number) {
            return;
        }
        let Some(group) = self.process.group() else { return };
        let after = group.snapshot().ladder.visible;
        self.tracer.note(|| format!("resize disk {number} to {to} sectors after {after:?}"));
        self.clients.resizing = Some(Resizing { id: member.id, number, to, after, in_doubt: false });
        let callback = self.callback(move |result| News::Resized(member.id, result));
        let Some(group) = self.process.group() else { return };
        group.resize_disk(member.id, SectorCount(to), true, callback);
    }

    /// Whether a client waits for an answer of a disk.
    fn has_pending(&self, number: usize) -> bool {
        let concerns = |pending: &Pending| match pending {
            Pending::Read { disk, .. } | Pending::Allocation { disk, .. } => *disk == number,
            Pending::Change { first, end, .. } => self.history.touches(number, *first..*end),
            _ => false,
        };
        self.clients.pending.values().any(concerns)
    }

    pub(super) fn take_resized(&mut self, id: DiskId, result: Result<DiskRecord>) -> Outcome {
        let resizing = self.clients.resizing.take_if(|resizing| resizing.id == id);
        let Some(mut resizing) = resizing else { return Err("a resize was answered twice".to_owned()) };
        match result {
            Ok(record) if record.sectors.0 == resizing.to => {
                self.note_resized(&resizing);
                Ok(())
            }
            Ok(record) => Err(format!("disk {} has {} sectors, not {}", id, record.sectors.0, resizing.to)),
            Err(error) => {
                self.tracer.note(|| format!("no resize: {error}"));
                let in_doubt =
                    |group: &mut crate::protect::group::Group| group.vault().manifest().is_in_doubt();
                if self.process.group().is_some_and(in_doubt) {
                    resizing.in_doubt = true;
                    self.clients.resizing = Some(resizing);
                }
                // A write whose answer failed may still be under way.
                let is_expected = self.is_faulted || self.clients.is_stopping;
                if is_expected || error.kind() == ErrorKind::Latched {
                    return Ok(());
                }
                Err(format!("a resize failed without a fault: {error}"))
            }
        }
    }

    fn note_resized(&mut self, resizing: &Resizing) {
        let &Resizing { id, number, to, after, .. } = resizing;
        let Some(group) = self.process.group() else { return };
        let now = group.snapshot().ladder.submitted;
        let from = self.history.sectors(number);
        let growth = self.history.resize(number, to);
        self.tracer.note(|| format!("disk {number} has {to} sectors, not {from}, by {now:?}"));
        // A marker from before a growth is below its zeros; one from before a shrink may still wait for its place.
        let resizes = &mut self.points.resizes.happened;
        if growth.is_some() {
            for earlier in resizes.iter_mut().filter(|earlier| earlier.id == id) {
                earlier.by = earlier.by.min(now);
            }
        }
        let by = if growth.is_some() { now } else { Lsn(u64::MAX) };
        resizes.push(Resized { id, from, to, after, by, growth });
        self.report.resizes += 1;
    }

    /// After an opening: a disk has the size that it had, or the one that was asked for.
    pub(super) fn reconcile_sizes(&mut self) -> Outcome {
        let Some(group) = self.process.group() else { return Ok(()) };
        let sizes: Vec<(DiskId, u64)> =
            group.disks().map(|disk| (disk.record.id, disk.record.sectors.0)).collect();
        for (id, sectors) in sizes {
            let number = self.number_of(id)?;
            if sectors == self.history.sectors(number) {
                continue;
            }
            match self.clients.resizing.clone() {
                Some(resizing) if resizing.id == id && resizing.to == sectors => {
                    self.note_resized(&resizing);
                }
                _ => {
                    let known = self.history.sectors(number);
                    return Err(format!("disk {number} has {sectors} sectors, not {known}"));
                }
            }
        }
        self.clients.resizing = None;
        Ok(())
    }
}
