//! Markers and recovery points of a group: when an interval ends, and what becomes of it.
//!
//! A marker is made when it is time, when somebody asks, and when the journal or the maps' memory is full, and when the journal is about to be sealed. Its
//! interval goes to the publisher once the marker is durable: the vault never knows more than the journal keeps.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};
use crate::extent::Ranges;
use crate::format::marker::{Consistency, DiskEntry, Marker};
use crate::format::record::{PointDisk, PointRecord};
use crate::journal::writer::Entry;
use crate::planted::Bug;
use crate::protect::events::GroupEvent;
use crate::protect::group::{Callback, Group};
use crate::protect::publisher::{Job, Published};
use crate::protect::status::Condition;
use crate::units::{GroupNanos, Lsn, PointId};
use crate::vault::{Moment, Refusal};

/// Closed intervals that may wait for the vault before timed markers are left out.
const INTERVALS_WAITING_MAX: usize = 2;
/// While little of the journal is free, an interval that takes this part of it is ended early.
const INTERVAL_PART_MAX: u64 = 4;

impl Group {
    pub(super) fn wants_marker(&self) -> bool {
        let waiting = self.intervals_waiting.len() + self.intervals_publishing.len();
        let wanted = self.interval.is_dirty() && self.markers_pending == 0 && !self.is_resizing();
        wanted && self.vault_failed.is_none() && waiting < INTERVALS_WAITING_MAX
    }

    /// Ends an interval when it is time and the group is not paused, when the journal has no room for more data, or when nothing more comes.
    pub(super) fn make_due_marker(&mut self) {
        let is_last = self.stopping && self.writer.is_idle();
        let heeds_pause = !self.settings.plan.planted.is(Bug::PauseForgotten);
        let is_time = !(self.is_paused && heeds_pause) && self.runtime.now() >= self.schedule.due();
        let is_short = self.is_short() || (self.is_interval_long() && !self.is_paused);
        if (is_time || is_short || is_last) && self.wants_marker() {
            let point = self.mark(String::new());
            if is_short && !is_time {
                self.forced_points.insert(point);
            }
        }
    }

    /// The points under way that nobody asked for, and whose time it was not: journal or maps were full.
    pub fn forced_points(&self) -> &BTreeSet<PointId> {
        &self.forced_points
    }

    /// Whether little of the journal is free, and much of it held for the open interval.
    fn is_interval_long(&self) -> bool {
        let room = self.journal_room();
        room.is_short() && self.interval_bytes >= room.limit / INTERVAL_PART_MAX
    }

    /// Whether writes wait for what only a point gives back.
    fn is_short(&self) -> bool {
        self.is_journal_full() || self.is_journal_short() || self.are_maps_full() || self.is_resize_short()
    }

    pub(super) fn mark(&mut self, label: String) -> PointId {
        self.schedule.made(self.runtime.now());
        self.markers_pending += 1;
        self.interval_bytes = 0;
        let point = PointId(self.runtime.random_u128());
        let disks = self.disks.values().map(|disk| DiskEntry {
            slot: disk.record.slot,
            disk: disk.record.id,
            sectors: disk.record.sectors,
        });
        let marker = Marker {
            point,
            wall: self.runtime.wall(),
            group_time: self.group_time(),
            consistency: Consistency::Crash,
            label,
            disks: disks.collect(),
        };
        self.writer.enqueue_control(Entry::Marker(marker), None);
        point
    }

    /// Both clocks of the group as they stand.
    pub fn moment(&self) -> Moment {
        self.clock.now(&self.runtime)
    }

    /// The group's own time: what it was at opening, plus what passed since.
    pub fn group_time(&self) -> GroupNanos {
        self.moment().group
    }

    /// Makes a recovery point now; `callback` gets it when it is restorable.
    pub fn create_point(&mut self, label: String, callback: Callback<PointRecord>) {
        if let Some(error) = self.latched_error() {
            return callback(Err(error));
        }
        if self.stopping {
            return callback(Err(Error::new(ErrorKind::Shutdown, "the group is stopping")));
        }
        if !self.interval.is_kept() {
            return callback(Err(Refusal::Pointless.into()));
        }
        if self.delays_points() {
            return self.points_delayed.push((label, callback));
        }
        let point = self.mark(label);
        self.waiting_points.insert(point, callback);
        self.writer.advance(&mut self.segments);
    }

    /// Whether a point that is asked for has to wait: for a resize, or until a full journal has its reserve again. The one marker
    /// that the reserve is for ends the interval; further ones would come one behind the other.
    fn delays_points(&self) -> bool {
        let ends_interval = self.interval.is_dirty() && self.markers_pending == 0;
        let is_needless = !ends_interval && self.segments.is_at_limit() && !self.segments.is_reserve_whole();
        self.is_resizing() || is_needless
    }

    /// Makes the points that waited, or says that they cannot be made.
    pub(super) fn make_delayed_points(&mut self) {
        let is_over = self.stopping || self.latched_error().is_some();
        if !self.points_delayed.is_empty() && (is_over || !self.delays_points()) {
            for (label, callback) in std::mem::take(&mut self.points_delayed) {
                self.create_point(label, callback);
            }
        }
    }

    /// Hands intervals on whose marker is durable: the vault never knows more than the journal keeps.
    pub(super) fn publish_waiting(&mut self) {
        let ahead = self.settings.plan.planted.is(Bug::PublishAheadOfDurable);
        while let Some(interval) = self.intervals_waiting.front() {
            if interval.marker_lsn > self.writer.durable() && !ahead {
                break;
            }
            let Some(interval) = self.intervals_waiting.pop_front() else { break };
            self.intervals_publishing.push_back((interval.marker_lsn, interval.layers.clone()));
            // The publisher ends only with the runtime, or by a failure, which was noted.
            let _ = self.publisher.unbounded_send(Job::Publish(interval));
        }
    }

    pub(super) fn finish_publish(&mut self, result: Result<Published>) {
        self.retention.point_wait.take();
        match result {
            Ok(published) => {
                // The manifest names the point by now: a verification finds its delta there.
                self.intervals_publishing.pop_front();
                self.measure_maps();
                self.lateness.published();
                self.publish_retry.succeeded();
                self.vaulted = published.point.marker;
                self.counters.vault_bytes += published.stored_bytes;
                self.counters.points += 1;
                self.forced_points.remove(&published.point.id);
                let callback = self.waiting_points.remove(&published.point.id);
                let point = published.point.clone();
                // Retention may have been told of it first.
                if self.points.last().is_none_or(|newest| newest.marker < published.point.marker) {
                    self.points.push(published.point.clone());
                }
                if let Some(callback) = callback {
                    callback(Ok(published.point));
                }
                self.tell_lacking(&point);
                self.renew_lacking();
            }
            // Nothing failed: whoever removed the group is about to close it.
            Err(_) if self.settings.vault.manifest().state().is_removed() => {
                self.refuse_waiting_points(|| Error::new(ErrorKind::NotFound, "the group was removed"));
            }
            Err(error) => {
                tracing::error!(group = %self.name, %error, "a recovery point could not be published");
                self.vault_failed = Some(error.kind());
                self.publish_retry.succeeded();
                self.vault_failed_because = Some(error.to_string());
                self.fail_waiting_points();
            }
        }
    }

    /// Tells which disks points are without from this one on, and which they have again.
    fn tell_lacking(&mut self, point: &PointRecord) {
        let lacking = |disk: &PointDisk| (!disk.lacking().is_empty()).then_some(disk.slot);
        let now: BTreeSet<_> = point.disks.iter().filter_map(lacking).collect();
        let before = std::mem::replace(&mut self.lacking, now);
        let name = |disk: &PointDisk| self.disks.get(&disk.slot).map(|disk| disk.record.name.clone());
        let mut events = Vec::new();
        for entry in &*point.disks {
            let Some(disk) = name(entry) else { continue };
            match (before.contains(&entry.slot), self.lacking.contains(&entry.slot)) {
                (false, true) => {
                    let sectors = Ranges::of(entry.lacking().iter().copied());
                    events.push(GroupEvent::DiskLacking { disk, sectors });
                }
                (true, false) => events.push(GroupEvent::DiskWhole { disk }),
                _ => {}
            }
        }
        events.into_iter().for_each(|event| self.tell(event));
    }

    pub(super) fn end_interval(&mut self, lsn: Lsn, marker: Marker) {
        if !self.settings.plan.planted.is(Bug::DeltaFromOpenMap) {
            self.freeze(lsn, Some(&marker));
        }
        self.markers_pending -= 1;
        let reader = self.reader();
        self.lateness.closed();
        self.intervals_waiting.push_back(self.interval.close(lsn, marker, reader));
        self.writer.want_durable(lsn);
    }

    /// Journal or vault failed: points that somebody waits for are not made.
    pub(super) fn fail_waiting_points(&mut self) {
        let waiting = std::mem::take(&mut self.waiting_points);
        for (_, callback) in waiting {
            callback(Err(self.latched_error().expect("called when something failed")));
        }
    }

    /// Nobody waits any longer for a point. One whose marker is in the journal is made after the next start, all the same.
    pub(super) fn refuse_waiting_points(&mut self, refusal: impl Fn() -> Error) {
        let delayed = std::mem::take(&mut self.points_delayed).into_iter().map(|(_, callback)| callback);
        let waiting = std::mem::take(&mut self.waiting_points).into_values();
        waiting.chain(delayed).for_each(|callback| callback(Err(refusal())));
    }

    /// Why no point can be made, in the words of `status`.
    pub(super) fn latched_error(&self) -> Option<Error> {
        let condition = match (self.writer.failure(), self.vault_failed) {
            (Some(_), _) => Condition::JournalFailed,
            (None, Some(_)) => Condition::VaultFailed,
            (None, None) => return None,
        };
        let why = condition.explanation().expect("a failure is explained");
        Some(Error::new(ErrorKind::Latched, format!("{}: {}", why.what, why.mend)))
    }

    pub(super) fn vaulted_all(&self) -> bool {
        !self.interval.is_dirty() && self.intervals_waiting.is_empty() && self.intervals_publishing.is_empty()
    }
}
