//! What the oracle knows of recovery points: between which changes each lies, and that none ever changes or goes.

use super::history::{Contents, History};
use crate::format::record::PointRecord;
use crate::units::{DiskId, PointId};

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
    asked: Vec<Asked>,
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
        let found = self.known.iter_mut().find(|known| known.record.id == record.id);
        let known = found.ok_or_else(|| format!("point {} was granted but is not listed", record.id))?;
        known.high = known.high.min(history.issued());
        Ok(())
    }

    /// Compares the group's points with those seen before, and takes up new ones.
    pub fn observe(&mut self, points: &[PointRecord], history: &History) -> Result<(), String> {
        if points.len() < self.known.len() {
            return Err(format!("{} points were there, now {}", self.known.len(), points.len()));
        }
        for record in &points[self.known.len()..] {
            let before = self.known.last().map_or(0, |known| known.low);
            let low = self.admit(record)?.max(before);
            self.known.push(Known { record: record.clone(), low, high: history.issued() });
        }
        Ok(())
    }

    /// Compares every known point with the group's: after an opening.
    pub fn compare(&self, points: &[PointRecord]) -> Result<(), String> {
        for (known, found) in self.known.iter().zip(points) {
            if known.record != *found {
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

    /// Compares what a point's disks hold with the history.
    pub fn check(&mut self, index: usize, found: &Contents, history: &History) -> Result<(), String> {
        let before = index.checked_sub(1).map_or(0, |before| self.known[before].low);
        let after = self.known.get(index + 1).map_or(usize::MAX, |after| after.high);
        let known = &mut self.known[index];
        let (low, high) = (known.low.max(before), known.high.min(after));
        let Some((least, most)) = history.find(low, high, found) else {
            let (id, label) = (known.record.id, &known.record.label);
            return Err(format!("point {id} {label:?} is wrong: {}", history.explain(low, high, found)));
        };
        (known.low, known.high) = (least, most);
        Ok(())
    }
}
