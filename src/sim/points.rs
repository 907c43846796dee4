//! What the oracle knows of recovery points: between which changes each lies, that none ever changes, and that none
//! goes but by a ladder or by request.

use std::collections::BTreeSet;

use super::history::{Contents, History};
use super::resizes::Resizes;
use super::retention::Rules;
use crate::format::record::PointRecord;
use crate::units::{DiskId, Lsn, PointId};

/// A point, and the least and most changes that it may hold.
#[derive(Clone, Debug)]
struct Known {
    record: PointRecord,
    low: usize,
    high: usize,
}

/// A point that somebody asked for.
#[derive(Clone, Debug)]
struct Asked {
    label: String,
    /// Changes acknowledged before it was asked for.
    low: usize,
    /// Disks that it must hold.
    members: Vec<DiskId>,
}

/// All points that were seen.
#[derive(Clone, Debug, Default)]
pub struct Points {
    known: Vec<Known>,
    /// Which sizes they may list.
    pub(super) resizes: Resizes,
    asked: Vec<Asked>,
    dropped: BTreeSet<PointId>,
    /// Points that somebody asked to be deleted,
    requested: BTreeSet<PointId>,
    /// and those of them that were.
    deleted: BTreeSet<PointId>,
    /// Group times and markers of all points that ever were.
    times: BTreeSet<(u64, Lsn)>,
}

impl Points {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The id of a point by its place.
    pub fn id(&self, index: usize) -> PointId {
        self.known[index].record.id
    }

    /// The marker of a point by its place.
    pub fn marker(&self, index: usize) -> Lsn {
        self.known[index].record.marker
    }

    /// Notes that a point was asked for, when so many changes were acknowledged and the group had these disks.
    pub fn ask(&mut self, label: String, low: usize, members: Vec<DiskId>) {
        self.asked.push(Asked { label, low, members });
    }

    /// A disk may leave before the point's marker is made.
    pub fn release(&mut self, disk: DiskId) {
        for asked in &mut self.asked {
            asked.members.retain(|member| *member != disk);
        }
    }

    /// A point that was asked for is restorable: it holds nothing that was not issued by now.
    pub fn granted(&mut self, record: &PointRecord, history: &History) -> Result<(), String> {
        if self.dropped.contains(&record.id) {
            return Ok(());
        }
        let found = self.known.iter_mut().find(|known| known.record.id == record.id);
        let known = found.ok_or_else(|| format!("point {} was granted but is not listed", record.id))?;
        known.high = known.high.min(history.issued());
        Ok(())
    }

    /// Compares the group's points with those seen before, and takes up new ones; gives how many went.
    pub fn observe(
        &mut self,
        points: &[PointRecord],
        history: &History,
        rules: &Rules<'_>,
    ) -> Result<u64, String> {
        let mut listed = points.iter().peekable();
        let mut gone = Vec::new();
        for known in &self.known {
            match listed.next_if(|record| record.id == known.record.id) {
                Some(record) if self.deleted.contains(&record.id) => {
                    return Err(format!("point {} was deleted and is still listed", record.id));
                }
                Some(_) => {}
                None => gone.push(known.record.clone()),
            }
        }
        for record in listed {
            if self.dropped.contains(&record.id) {
                return Err(format!("point {} was gone and is back", record.id));
            }
            let before = self.known.last().map_or(0, |known| known.low);
            let low = self.admit(record)?.max(before);
            self.times.insert((record.group_time.0, record.marker));
            self.known.push(Known { record: record.clone(), low, high: history.issued() });
        }
        gone.iter().try_for_each(|record| self.drop_point(record, rules))?;
        Ok(gone.len() as u64)
    }

    /// A point is gone: that must be right.
    fn drop_point(&mut self, record: &PointRecord, rules: &Rules<'_>) -> Result<(), String> {
        let PointRecord { id, group_time, .. } = record;
        if self.known.last().is_some_and(|newest| newest.record.id == *id) {
            return Err(format!("point {id}, the newest, is gone"));
        }
        let by_request = self.requested.contains(id) && rules.may_go(*id);
        let is_right = by_request || rules.allow(record, &self.times);
        self.known.retain(|known| known.record.id != *id);
        self.dropped.insert(*id);
        if is_right {
            Ok(())
        } else {
            Err(format!("point {id} of group time {} is gone: {}", group_time.0, rules.describe(record)))
        }
    }

    /// Somebody asked for a point to be deleted.
    pub fn request_deletion(&mut self, point: PointId) {
        self.requested.insert(point);
    }

    /// It was.
    pub fn deleted(&mut self, point: PointId) {
        self.deleted.insert(point);
    }

    /// Whether the point is there.
    pub fn is_known(&self, point: PointId) -> bool {
        self.known.iter().any(|known| known.record.id == point)
    }

    /// Compares every known point with the group's: after an opening.
    pub fn compare(&self, points: &[PointRecord]) -> Result<(), String> {
        for known in &self.known {
            let Some(found) = points.iter().find(|found| found.id == known.record.id) else { continue };
            // What was merged into it since is part of its delta.
            if known.record != (PointRecord { delta: known.record.delta, ..found.clone() }) {
                return Err(format!("point {} became {found:?}", known.record.id));
            }
        }
        Ok(())
    }

    /// The least that a new point must hold.
    fn admit(&mut self, record: &PointRecord) -> Result<usize, String> {
        if record.label.is_empty() {
            return Ok(0);
        }
        let Some(index) = self.asked.iter().position(|asked| asked.label == record.label) else {
            return Err(format!("point {} with label {} came from nowhere", record.id, record.label));
        };
        let asked = self.asked.remove(index);
        for member in asked.members {
            if !record.disks.iter().any(|disk| disk.disk == member) {
                return Err(format!("point {} lacks disk {member}", record.label));
            }
        }
        Ok(asked.low)
    }

    /// A death left the first `count` changes.
    pub fn cut(&mut self, count: usize) -> Result<(), String> {
        self.asked.retain(|asked| asked.low <= count);
        for known in &mut self.known {
            known.high = known.high.min(count);
            if known.low > known.high {
                let Known { record, low, .. } = known;
                return Err(format!("point {} holds {low} changes; only {count} survived", record.id));
            }
        }
        Ok(())
    }

    /// The size that a point lists of a disk.
    pub fn sectors(&self, point: PointId, disk: DiskId) -> Option<u64> {
        let known = self.known.iter().find(|known| known.record.id == point)?;
        known.record.disks.iter().find(|member| member.disk == disk).map(|member| member.sectors.0)
    }

    /// Compares what a point's disks hold with the history.
    pub fn check(&mut self, index: usize, found: &Contents, history: &History) -> Result<(), String> {
        let before = index.checked_sub(1).map_or(0, |before| self.known[before].low);
        let after = self.known.get(index + 1).map_or(usize::MAX, |after| after.high);
        let known = &mut self.known[index];
        let (low, high) = (known.low.max(before), known.high.min(after));
        let (sure, perhaps) = self.resizes.growths(known.record.marker);
        // What lies between asking and being told may be part of it or not.
        let mut parts = (0..=perhaps.len()).map(|count| {
            let part = |number: usize| sure.contains(&number) || perhaps[..count].contains(&number);
            history.find_at(low, high, found, &part)
        });
        let Some((least, most)) = parts.find_map(|found| found) else {
            let (id, label) = (known.record.id, &known.record.label);
            let why = history.explain_at(low, high, found, &|number| sure.contains(&number));
            return Err(format!("point {id} {label:?} at {:?} is wrong: {why}", known.record.marker));
        };
        (known.low, known.high) = (least, most);
        Ok(())
    }
}
