//! What a group tells of itself as it goes on: its condition, points that are late, disks that are latched.

use crate::protect::alarm::Told;
use crate::protect::disk::Disk;
use crate::protect::events::GroupEvent;
use crate::protect::group::Group;
use crate::protect::status::Condition;
use crate::protect::telling::Telling;
use crate::units::{DiskSlot, MonotonicNanos};

impl Group {
    /// Notes whether points are late, and tells it once, and when it is over.
    fn observe_lateness(&mut self, now: MonotonicNanos) {
        let due = self.lateness.due(self.schedule.interval());
        // Nobody waits for the points of a paused group.
        let is_late = !self.is_paused && due.is_some_and(|due| due <= now);
        self.late_since = is_late.then(|| self.late_since.unwrap_or_else(|| self.runtime.wall()));
        match self.late_told.look(is_late, now) {
            Some(Told::Raised) => self.tell(GroupEvent::PointsLate),
            Some(Told::Over) => self.tell(GroupEvent::PointsInTime),
            None => {}
        }
    }

    /// Tells of each disk that it is latched, and of what.
    fn observe_latches(&mut self) {
        let disks = &self.disks;
        self.latches_told.retain(|slot| disks.get(slot).is_some_and(|disk| disk.latched.is_some()));
        if self.condition.0 != Condition::ImageFailed {
            return;
        }
        let is_new =
            |(slot, disk): &(&DiskSlot, &Disk)| disk.latched.is_some() && !self.latches_told.contains(slot);
        let named =
            |(&slot, disk): (&DiskSlot, &Disk)| (slot, disk.record.name.clone(), disk.last_failure.clone());
        let latched: Vec<_> = self.disks.iter().filter(is_new).map(named).collect();
        for (slot, disk, because) in latched {
            self.latches_told.insert(slot);
            self.tell(GroupEvent::DiskLatched { disk, because: because.unwrap_or_default() });
        }
    }

    /// Tells of what is wrong with the other disks of a group that has latched ones.
    fn observe_beside_latches(&mut self, now: MonotonicNanos) {
        let beside = self.beside_latches();
        let has_changed = beside != self.beside.0;
        self.beside.0 = beside;
        let Some(beside) = beside else {
            self.beside.1 = Telling::default();
            return;
        };
        if self.beside.1.turn(beside, has_changed, now) && beside.explanation().is_some() {
            self.tell(GroupEvent::Condition(beside));
        }
    }

    /// Notes what the group does, and since when, and how fast.
    pub(super) fn observe(&mut self) {
        let now = self.runtime.now();
        self.observe_lateness(now);
        let condition = self.condition();
        let has_changed = condition != self.condition.0;
        if has_changed {
            self.condition = (condition, self.runtime.wall());
        }
        if self.telling.turn(condition, has_changed, now) {
            self.tell(GroupEvent::Condition(condition));
        }
        self.observe_latches();
        self.observe_beside_latches(now);
        self.tell_noted();
        self.rates.sample(now, &self.counters);
    }
}
