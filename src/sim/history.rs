//! The oracle: every change that the clients asked for, in the order in which the group took them, and how far they
//! were acknowledged and made durable. It knows nothing of journals, segments or LSNs.
//!
//! ```text
//!  changes:  0 ─────────────── durable ─────── acknowledged ─────── issued
//!            survives everything │ survives kill -9  │ may survive, as a prefix
//! ```
//!
//! A group must keep the order in which it took changes: so a state of its disks is right only if it is the one
//! after some *prefix* of the changes, on all disks at once. After a death the history is cut where the disks show
//! that it was cut; what lies past that is gone for ever.

use std::collections::BTreeMap;

use super::sector::Stamp;
use crate::units::{SectorRange, to_usize};

/// One change of one disk: what becomes one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Number of the disk.
    pub disk: usize,
    /// Which sectors.
    pub range: SectorRange,
    /// What they hold afterwards.
    pub stamp: Stamp,
}

/// What a disk gained when it grew: whatever was written there before is gone.
#[derive(Clone, Debug)]
struct Growth {
    disk: usize,
    range: SectorRange,
    /// How many changes came before.
    position: usize,
}

/// What disks hold, by their number, sector by sector.
pub type Contents = BTreeMap<usize, Vec<Stamp>>;

/// All changes, and how far they came.
#[derive(Clone, Debug, Default)]
pub struct History {
    sizes: Vec<u64>,
    growths: Vec<Growth>,
    changes: Vec<Change>,
    acknowledged: usize,
    durable: usize,
    /// The disks after the acknowledged changes.
    current: Vec<Vec<Stamp>>,
}

impl History {
    /// Adds a disk of zeros; returns its number, which is never given again.
    pub fn add_disk(&mut self, sectors: u64) -> usize {
        self.sizes.push(sectors);
        self.current.push(vec![Stamp::ZEROS; to_usize(sectors)]);
        self.sizes.len() - 1
    }

    /// Sectors of a disk.
    pub fn sectors(&self, disk: usize) -> u64 {
        self.sizes[disk]
    }

    /// A disk has another size from now on. A growth has a number, by which states tell whether it is part of them.
    pub fn resize(&mut self, disk: usize, sectors: u64) -> Option<usize> {
        let old = std::mem::replace(&mut self.sizes[disk], sectors);
        if sectors <= old {
            return None;
        }
        let most = self.current[disk].len().max(to_usize(sectors));
        self.current[disk].resize(most, Stamp::ZEROS);
        self.current[disk][to_usize(old)..to_usize(sectors)].fill(Stamp::ZEROS);
        let range = SectorRange::new(old, sectors);
        self.growths.push(Growth { disk, range, position: self.changes.len() });
        Some(self.growths.len() - 1)
    }

    /// Of each sector of a disk, how many changes the last growth made void, of those that `is_part` names.
    fn floors(&self, disk: usize, is_part: &dyn Fn(usize) -> bool) -> Vec<usize> {
        let mut floors = vec![0; self.current[disk].len()];
        for (number, growth) in self.growths.iter().enumerate() {
            if growth.disk == disk && is_part(number) {
                floors[to_usize(growth.range.start)..to_usize(growth.range.end)].fill(growth.position);
            }
        }
        floors
    }

    /// How many changes were issued.
    pub fn issued(&self) -> usize {
        self.changes.len()
    }

    /// How many changes were acknowledged, themselves or by way of a later one.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    /// Whether one of some changes is of a disk.
    pub fn touches(&self, disk: usize, changes: std::ops::Range<usize>) -> bool {
        self.changes[changes].iter().any(|change| change.disk == disk)
    }

    /// Notes a change that the group took.
    pub fn issue(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// Takes back the changes from `first` on, which the group refused at once.
    pub fn retract(&mut self, first: usize) {
        self.changes.truncate(first);
    }

    /// Notes that the first `count` changes can be seen.
    pub fn acknowledge(&mut self, count: usize) {
        for index in self.acknowledged.min(count)..count {
            let change = self.changes[index];
            // Changes that a growth made void were acknowledged before it.
            apply(&mut self.current[change.disk], &change);
        }
        self.acknowledged = self.acknowledged.max(count);
    }

    /// Notes that the first `count` changes survive a power cut.
    pub fn make_durable(&mut self, count: usize) {
        self.durable = self.durable.max(count);
    }

    /// What a range holds after the acknowledged changes.
    pub fn current(&self, disk: usize, range: SectorRange) -> &[Stamp] {
        &self.current[disk][to_usize(range.start)..to_usize(range.end)]
    }

    /// Whether a read that began when `before` held, and the first `low` changes were acknowledged, may show `found`:
    /// each sector is as then, or as a later change leaves it.
    pub fn explains_read(
        &self,
        disk: usize,
        range: SectorRange,
        (low, before): (usize, &[Stamp]),
        found: &[Stamp],
    ) -> Result<(), String> {
        for (index, (&found, &before)) in found.iter().zip(before).enumerate() {
            let sector = range.start + index as u64;
            let later = self.changes[low..].iter().any(|change| {
                let inside = (change.range.start..change.range.end).contains(&sector);
                change.disk == disk && inside && change.stamp == found
            });
            if found != before && !later {
                return Err(format!(
                    "a read of disk {disk} shows write {} in sector {sector}; write {} was acknowledged before it \
                     began, and nothing since explains it",
                    found.0, before.0
                ));
            }
        }
        Ok(())
    }

    /// A disk after the first `count` changes, and what it gained.
    fn state(&self, disk: usize, count: usize, floors: &[usize]) -> Vec<Stamp> {
        let mut state = vec![Stamp::ZEROS; floors.len()];
        let changes = self.changes[..count].iter().enumerate();
        for (index, change) in changes.filter(|(_, change)| change.disk == disk) {
            for sector in to_usize(change.range.start)..to_usize(change.range.end) {
                if index >= floors[sector] {
                    state[sector] = change.stamp;
                }
            }
        }
        state
    }

    /// Whether a sector of a disk held this at any time.
    pub fn was_ever(&self, disk: usize, sector: u64, stamp: Stamp) -> bool {
        let wrote = |change: &Change| {
            change.disk == disk
                && change.stamp == stamp
                && (change.range.start..change.range.end).contains(&sector)
        };
        stamp == Stamp::ZEROS || self.changes.iter().any(wrote)
    }

    /// The least and the most changes, from `low` to `high`, after which the disks are as `found`, as they are now.
    pub fn find(&self, low: usize, high: usize, found: &Contents) -> Option<(usize, usize)> {
        self.find_at(low, high, found, &|_| true)
    }

    /// The same of an earlier time, when only some growths had been.
    pub fn find_at(
        &self,
        low: usize,
        high: usize,
        found: &Contents,
        is_part: &dyn Fn(usize) -> bool,
    ) -> Option<(usize, usize)> {
        if low > high || high > self.changes.len() {
            return None;
        }
        let floors: BTreeMap<usize, Vec<usize>> =
            found.keys().map(|&disk| (disk, self.floors(disk, is_part))).collect();
        let mut states: Contents =
            floors.iter().map(|(&disk, floors)| (disk, self.state(disk, low, floors))).collect();
        let differing = |(disk, state): (&usize, &Vec<Stamp>)| {
            state.iter().zip(&found[disk]).filter(|(a, b)| a != b).count()
        };
        let mut wrong: usize = states.iter().map(differing).sum();
        let mut matching = (wrong == 0).then_some((low, low));
        for count in low + 1..=high {
            let change = &self.changes[count - 1];
            if let Some(state) = states.get_mut(&change.disk) {
                let (found, floors) = (&found[&change.disk], &floors[&change.disk]);
                // Beyond the end of what was found nothing is compared.
                let end = to_usize(change.range.end).min(found.len());
                for sector in to_usize(change.range.start)..end {
                    let (was, should) = (&mut state[sector], found[sector]);
                    if count > floors[sector] {
                        wrong = wrong + usize::from(change.stamp != should) - usize::from(*was != should);
                        *was = change.stamp;
                    }
                }
            }
            if wrong == 0 {
                matching = Some((matching.map_or(count, |(least, _)| least), count));
            }
        }
        matching
    }

    /// Says how `found` differs from the nearest prefix from `low` to `high`.
    pub fn explain(&self, low: usize, high: usize, found: &Contents) -> String {
        self.explain_at(low, high, found, &|_| true)
    }

    /// The same of an earlier time.
    pub fn explain_at(
        &self,
        low: usize,
        high: usize,
        found: &Contents,
        is_part: &dyn Fn(usize) -> bool,
    ) -> String {
        let mut best: Option<(usize, usize, String)> = None;
        let floors = |disk| self.floors(disk, is_part);
        for count in low..=high.min(self.changes.len()) {
            let mut wrong = 0;
            let mut first = String::new();
            for (&disk, stamps) in found {
                let state = self.state(disk, count, &floors(disk));
                for (sector, (should, is)) in state.iter().zip(stamps).enumerate() {
                    if should != is {
                        if wrong == 0 {
                            first = format!("disk {disk} sector {sector} holds {}, not {}", is.0, should.0);
                        }
                        wrong += 1;
                    }
                }
            }
            if best.as_ref().is_none_or(|(least, ..)| wrong < *least) {
                best = Some((wrong, count, first));
            }
        }
        let about = format!(
            "changes {low} to {high} ({} durable, {} acknowledged, {} issued)",
            self.durable,
            self.acknowledged,
            self.issued()
        );
        match best {
            None => format!("no prefix is allowed: {about}"),
            Some((wrong, count, first)) => {
                let next = self.changes.get(count).map(|change| format!("; the next is {change:?}"));
                format!(
                    "no prefix fits of {about}; the nearest, of {count}, differs in {wrong} sectors: {first}{}",
                    next.unwrap_or_default()
                )
            }
        }
    }

    /// A death left the first `count` changes: the others never happened, and these stay for ever.
    pub fn cut(&mut self, count: usize) {
        self.changes.truncate(count);
        self.acknowledged = count;
        self.durable = count;
        for growth in &mut self.growths {
            growth.position = growth.position.min(count);
        }
        for disk in 0..self.sizes.len() {
            self.current[disk] = self.state(disk, count, &self.floors(disk, &|_| true));
        }
    }

    /// The power went, or a sync failed: what was acknowledged and not durable may be gone.
    pub fn lose_unsynced(&mut self) {
        self.acknowledged = self.durable;
    }
}

fn apply(state: &mut [Stamp], change: &Change) {
    state[to_usize(change.range.start)..to_usize(change.range.end)].fill(change.stamp);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> History {
        let mut history = History::default();
        for _ in 0..2 {
            history.add_disk(4);
        }
        for (disk, start, end, stamp) in [(0, 0, 4, 1), (1, 0, 2, 2), (0, 1, 2, 3)] {
            history.issue(Change { disk, range: SectorRange::new(start, end), stamp: Stamp(stamp) });
        }
        history
    }

    fn contents(first: [u32; 4], second: [u32; 4]) -> Contents {
        Contents::from([(0, first.map(Stamp).to_vec()), (1, second.map(Stamp).to_vec())])
    }

    #[test]
    fn only_prefixes_over_all_disks_at_once_are_found() {
        let history = history();
        assert_eq!(history.find(0, 3, &contents([0; 4], [0; 4])), Some((0, 0)));
        assert_eq!(history.find(0, 3, &contents([1; 4], [2, 2, 0, 0])), Some((2, 2)));
        assert_eq!(history.find(0, 3, &contents([1, 3, 1, 1], [2, 2, 0, 0])), Some((3, 3)));
        assert_eq!(history.find(0, 2, &contents([1, 3, 1, 1], [2, 2, 0, 0])), None, "beyond what is allowed");
        assert_eq!(history.find(0, 3, &contents([1, 3, 1, 1], [0; 4])), None, "the second change is missing");
        assert_eq!(history.find(0, 3, &contents([0; 4], [2, 2, 0, 0])), None, "the first change is missing");
    }

    #[test]
    fn what_a_disk_gains_is_zeros_and_earlier_states_have_what_was_there() {
        let mut history = history();
        history.acknowledge(3);
        assert_eq!(history.resize(0, 2), None);
        let growth = history.resize(0, 5).expect("it grew");
        let found = |stamps: &[u32]| Contents::from([(0, stamps.iter().copied().map(Stamp).collect())]);
        assert_eq!(history.find(0, 3, &found(&[1, 3, 0, 0, 0])), Some((3, 3)));
        assert_eq!(history.find(0, 3, &found(&[1, 3, 1, 1, 0])), None, "from before the shrink");
        let before = |number| number < growth;
        assert_eq!(history.find_at(0, 3, &found(&[1, 3, 1, 1]), &before), Some((3, 3)));
        history.issue(Change { disk: 0, range: SectorRange::new(3, 5), stamp: Stamp(4) });
        assert_eq!(history.find(3, 4, &found(&[1, 3, 0, 4, 4])), Some((4, 4)));
        history.cut(1);
        assert_eq!(
            history.find(1, 1, &found(&[1, 1, 0, 0, 0])),
            Some((1, 1)),
            "a death takes no growth back"
        );
    }

    #[test]
    fn a_read_shows_what_was_acknowledged_or_something_later() {
        let mut history = history();
        history.acknowledge(1);
        let range = SectorRange::new(1, 3);
        let before = history.current(0, range).to_vec();
        let read = |found: [u32; 2]| history.explains_read(0, range, (1, &before), &found.map(Stamp));
        assert!(read([1, 1]).is_ok());
        assert!(read([3, 1]).is_ok());
        assert!(read([0, 1]).is_err(), "older than what was acknowledged");
        assert!(read([1, 3]).is_err(), "nobody wrote this there");
    }
}
