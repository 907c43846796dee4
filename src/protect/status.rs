//! How a group stands: a snapshot that can leave its owner thread.

use std::time::Duration;

use crate::error::ErrorKind;
use crate::format::record::{DiskRecord, PointRecord};
use crate::protect::failing::Failing;
use crate::protect::group::{Counters, Group};
use crate::protect::retention::RetentionStatus;
use crate::protect::retry::Retry;
use crate::protect::shrinking::Shrink;
use crate::storage::{Buffered, File};
use crate::units::{DiskId, GroupId, Lsn, MonotonicNanos, WallNanos};

/// Rates are averaged over this many samples,
const SAMPLES: usize = 6;
/// taken this far apart.
const SAMPLE_NANOS: u64 = 1_000_000_000;
/// A write that has no answer for as long waits for something.
const WAITING_MIN: Duration = Duration::from_secs(1);

/// What a group is doing, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// Its opening frame is not durable yet.
    Opening,
    /// Every write is captured.
    Protected,
    /// Writes are slowed down, or wait: little of the journal is free, or nothing.
    JournalFull,
    /// Writes wait: the maps are at their limit of memory.
    MapsFull,
    /// Points do not come as often as the policy says.
    PointsLate,
    /// Writes wait, or images lag: a file system is full, or no more files can be opened.
    NoSpace,
    /// The vault has too little room: its oldest points go, or should.
    SpaceShort,
    /// Retention meets damage in the vault: what it would drop stays.
    RetentionStalled,
    /// Points and retention rest: somebody asked for it.
    Paused,
    /// Images, journal or vault meet errors: what failed is tried again.
    Retrying,
    /// One disk's image failed, or cannot be opened, or what the journal holds of it is damaged: that disk's writes fail.
    ImageFailed,
    /// The vault refused a point for good: the journal fills.
    VaultFailed,
    /// The journal failed: all writes fail.
    JournalFailed,
    /// It is stopping.
    Stopping,
}

/// Why a group is as it is, and what a person can do: the same words wherever somebody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What is wrong, and what that means for guests.
    pub what: &'static str,
    /// What to do.
    pub mend: &'static str,
}

impl Condition {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Condition::Opening => "opening",
            Condition::Protected => "protected",
            Condition::JournalFull => "journal full",
            Condition::MapsFull => "maps full",
            Condition::NoSpace => "no space",
            Condition::SpaceShort => "space short",
            Condition::RetentionStalled => "retention stalled",
            Condition::Paused => "paused",
            Condition::PointsLate => "points late",
            Condition::Retrying => "retrying",
            Condition::ImageFailed => "image failed",
            Condition::VaultFailed => "vault failed",
            Condition::JournalFailed => "journal failed",
            Condition::Stopping => "stopping",
        }
    }

    /// Why a group is in this condition; none for those that nothing is wrong with.
    pub fn explanation(self) -> Option<Explanation> {
        let (what, mend) = match self {
            Condition::Opening | Condition::Protected | Condition::Paused | Condition::Stopping => {
                return None;
            }
            Condition::SpaceShort => (
                "the vault has too little room: its oldest points go, or should, and cannot (event history_cannot_shrink)",
                "free space, raise [vault] history_max, shorten the ladder, or release held points",
            ),
            Condition::RetentionStalled => (
                "retention meets damage or errors in the vault: points stay that should go, and history grows",
                "mend what it names. After damage `afterimage vault verify` names the points that it harms: put back an earlier copy of the file, or give them up by `afterimage vault repair`",
            ),
            Condition::JournalFull => (
                "the journal fills faster than images and vault take it: writes are slowed down to their pace, and wait where nothing of it is free",
                "nothing, if it passes; else a larger [journal] size, or faster disks",
            ),
            Condition::MapsFull => (
                "the extent maps are at their limit of memory: writes wait until images and vault catch up",
                "nothing, if it passes; else a larger [memory] maps, or faster disks",
            ),
            Condition::PointsLate => (
                "recovery points are late: there are writes of more than two intervals ago that no point holds",
                "nothing, if it passes; else a faster disk for the vault, or a longer interval",
            ),
            Condition::NoSpace => {
                let what = "a file system is full, or no more files can be opened: writes wait";
                (
                    what,
                    "free space, or raise the limit on open files (LimitNOFILE=); it is tried again every second",
                )
            }
            Condition::Retrying => (
                "an image, a new journal segment or the vault meets errors: points or destaging wait",
                "see the log and mend the device; what failed is tried again every second",
            ),
            Condition::ImageFailed => (
                "a disk's image fails: its writes fail, and its reads if its files cannot be opened; the other disks go on",
                "mend what it says, then `afterimage group resume` or restart the gateway; or remove the disk, whose points stay",
            ),
            Condition::VaultFailed => (
                "the vault refused a recovery point: no points are made, and the journal fills",
                "see the log, mend the vault, then `afterimage group resume` or restart the gateway",
            ),
            Condition::JournalFailed => (
                "a journal write or sync failed: all writes fail, no points are made",
                "see the log, mend the device, then `afterimage group resume` or restart the gateway",
            ),
        };
        Some(Explanation { what, mend })
    }
}

/// How far a group's records are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ladder {
    /// Handed to the storage.
    pub submitted: Lsn,
    /// Seen by reads, and acknowledged; written, and so safe from the death of the process.
    pub visible: Lsn,
    /// Safe from a power cut.
    pub durable: Lsn,
    /// In the images, under a durable checkpoint; of latched disks: held, or in side files.
    pub destaged: Lsn,
    /// In the vault, in a published point.
    pub vaulted: Lsn,
}

/// A group as it stands at one moment.
#[derive(Clone, Debug)]
pub struct GroupSnapshot {
    /// Its id.
    pub id: GroupId,
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created: WallNanos,
    /// Milliseconds between points.
    pub interval_ms: u64,
    /// Its disks.
    pub disks: Vec<DiskRecord>,
    /// Names of the disks whose image failed, or whose records in the journal are damaged,
    pub latched_disks: Vec<String>,
    /// and what went wrong with each, in the same order.
    pub latched_because: Vec<String>,
    /// If disks are latched: what the group does apart from that.
    pub beside_latches: Option<Condition>,
    /// Why the vault refused a point for good, if it did.
    pub vault_failure: Option<String>,
    /// What it is doing,
    pub condition: Condition,
    /// and since when.
    pub since: WallNanos,
    /// How far its records are.
    pub ladder: Ladder,
    /// Bytes of journal segments in use.
    pub journal_used_bytes: u64,
    /// Most bytes of journal segments.
    pub journal_limit_bytes: u64,
    /// Memory that extent maps and payload tables take,
    pub map_bytes: usize,
    /// and may take.
    pub map_bytes_max: usize,
    /// Memory that recently written frames take,
    pub cache_bytes: usize,
    /// and may take.
    pub cache_bytes_max: usize,
    /// Whether nothing was written since the newest point.
    pub idle: bool,
    /// The newest point.
    pub newest_point: Option<PointRecord>,
    /// Since when points are late, if they are.
    pub late_since: Option<WallNanos>,
    /// How long ago the oldest write was made that no point holds, if there is one.
    pub unprotected: Option<Duration>,
    /// How long the oldest write has waited for its answer, if that is long.
    pub writes_waiting: Option<Duration>,
    /// The disks that requests failed of lately, by name.
    pub failing: Vec<Failing<String>>,
    /// Time of the oldest point.
    pub oldest: Option<WallNanos>,
    /// How many points there are.
    pub points: u64,
    /// When the group was opened, by the clock of its thread: totals begin anew then.
    pub opened: MonotonicNanos,
    /// Totals since the group was opened.
    pub counters: Counters,
    /// Of each disk, the bytes of write requests acknowledged since the group was opened, or the disk made.
    pub written_bytes: Vec<(DiskId, u64)>,
    /// Write requests a second, lately.
    pub writes_per_s: f64,
    /// Bytes of write requests a second, lately.
    pub bytes_per_s: f64,
    /// How retention stands.
    pub retention: RetentionStatus,
    /// Which points are kept.
    pub retain: crate::format::ladder::Ladder,
    /// Why journal or images go through the page cache, if any file of them does.
    pub buffered: Option<Buffered>,
}

/// Rates over the last seconds.
#[derive(Debug, Default)]
pub struct RateMeter {
    samples: std::collections::VecDeque<(MonotonicNanos, u64, u64)>,
}

impl RateMeter {
    /// Notes the totals, at most once a second.
    pub fn sample(&mut self, now: MonotonicNanos, counters: &Counters) {
        if self.samples.back().is_some_and(|&(at, ..)| now.0 < at.0 + SAMPLE_NANOS) {
            return;
        }
        self.samples.push_back((now, counters.writes, counters.written_bytes));
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
    }

    /// Writes and bytes a second since the oldest sample that is recent.
    #[allow(clippy::cast_precision_loss)]
    pub fn rates(&self, now: MonotonicNanos, counters: &Counters) -> (f64, f64) {
        let horizon = now.0.saturating_sub(SAMPLE_NANOS * SAMPLES as u64);
        let Some(&(at, writes, bytes)) = self.samples.iter().find(|(at, ..)| at.0 >= horizon) else {
            return (0.0, 0.0);
        };
        let seconds = (now.0 - at.0) as f64 / 1e9;
        if seconds <= 0.0 {
            return (0.0, 0.0);
        }
        ((counters.writes - writes) as f64 / seconds, (counters.written_bytes - bytes) as f64 / seconds)
    }
}

impl Group {
    /// What the group is doing now.
    pub fn condition(&self) -> Condition {
        match self.condition_of_others() {
            group @ (Condition::JournalFailed | Condition::Stopping | Condition::Opening) => group,
            _ if self.disks.values().any(|disk| disk.latched.is_some()) => Condition::ImageFailed,
            others => others,
        }
    }

    /// If disks are latched: what the group does apart from that.
    pub(super) fn beside_latches(&self) -> Option<Condition> {
        (self.condition.0 == Condition::ImageFailed).then(|| self.condition_of_others())
    }

    fn condition_of_others(&self) -> Condition {
        if self.writer.failure().is_some() {
            Condition::JournalFailed
        } else if self.stopping {
            Condition::Stopping
        } else if !self.serving {
            Condition::Opening
        } else if self.vault_failed.is_some() {
            Condition::VaultFailed
        } else if self.wants_space() {
            Condition::NoSpace
        } else if self.retries().iter().any(|retry| retry.is_failing()) {
            Condition::Retrying
        } else if self.is_journal_full() || self.throttle.is_slowing(self.runtime.now()) {
            Condition::JournalFull
        } else if self.retention.status.borrow().meets_errors {
            Condition::RetentionStalled
        } else if self.retention.status.borrow().shrink != Shrink::Rests {
            Condition::SpaceShort
        } else if self.writer.holds_data() {
            Condition::MapsFull
        } else if self.is_paused {
            Condition::Paused
        } else if self.late_since.is_some() {
            Condition::PointsLate
        } else {
            Condition::Protected
        }
    }

    /// Whether images, journal or vault wait for space: from the first refusal until the work succeeds, so that attempts
    /// in between do not make another reason of it.
    pub(super) fn wants_space(&self) -> bool {
        self.writer.lacks_space() || self.retries().iter().any(Retry::wants_space)
    }

    pub(super) fn retries(&self) -> [Retry; 3] {
        [self.destage_retry, self.segment_retry, self.publish_retry]
    }

    /// Why the vault refused a point for good, if it did.
    pub fn vault_failure(&self) -> Option<ErrorKind> {
        self.vault_failed
    }

    /// How far the group's records are.
    pub fn ladder(&self) -> Ladder {
        let durable = self.writer.durable();
        Ladder {
            submitted: self.writer.submitted(),
            visible: self.writer.visible(),
            durable,
            // Of a marker behind the last layer images have all that there is.
            destaged: self.destaged.max(self.layers.destaged(durable).min(durable)),
            vaulted: self.vaulted,
        }
    }

    /// The group as it stands.
    pub fn snapshot(&self) -> GroupSnapshot {
        let latched = || self.disks.values().filter(|disk| disk.latched.is_some());
        let (writes_per_s, bytes_per_s) = self.rates.rates(self.runtime.now(), &self.counters);
        GroupSnapshot {
            id: self.identity.group,
            name: self.name.clone(),
            created: self.settings.vault.manifest().state().record().created,
            interval_ms: u64::try_from(self.schedule.interval().as_millis()).unwrap_or(u64::MAX),
            disks: self.disks.values().map(|disk| disk.record.clone()).collect(),
            latched_disks: latched().map(|disk| disk.record.name.clone()).collect(),
            latched_because: latched().map(|disk| disk.last_failure.clone().unwrap_or_default()).collect(),
            vault_failure: self.vault_failed_because.clone(),
            condition: self.condition.0,
            since: self.condition.1,
            beside_latches: self.beside_latches(),
            ladder: self.ladder(),
            journal_used_bytes: self.segments.used_bytes(),
            journal_limit_bytes: self.segments.limit_bytes(),
            map_bytes: self.map_bytes(),
            map_bytes_max: self.settings.plan.map_bytes_max,
            cache_bytes: self.cache.borrow().bytes(),
            cache_bytes_max: self.settings.plan.cache_bytes_max,
            idle: self.vaulted_all(),
            newest_point: self.points.last().cloned(),
            late_since: self.late_since,
            unprotected: self.lateness.oldest().map(|oldest| self.since(oldest)),
            writes_waiting: self.writes_waiting(),
            failing: self.failing_disks(),
            oldest: self.points.first().map(|point| point.wall),
            points: self.points.len() as u64,
            opened: self.opened,
            counters: self.counters,
            written_bytes: self.disks.values().map(|disk| (disk.record.id, disk.written_bytes)).collect(),
            writes_per_s,
            bytes_per_s,
            retention: self.retention(),
            retain: self.settings.vault.manifest().state().record().retain.clone(),
            buffered: self.buffered(),
        }
    }

    fn buffered(&self) -> Option<Buffered> {
        let segments = self.segments.live().map(|segment| &segment.file);
        let images = self.disks.values().filter_map(|disk| disk.image.as_ref()).map(|image| &image.file);
        segments.chain(images).find_map(File::buffered)
    }

    fn writes_waiting(&self) -> Option<Duration> {
        let waited = self.since(self.oldest_write()?);
        (waited >= WAITING_MIN).then_some(waited)
    }

    fn since(&self, then: MonotonicNanos) -> Duration {
        Duration::from_nanos(self.runtime.now().0.saturating_sub(then.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_averaged_over_the_last_seconds_only() {
        let mut meter = RateMeter::default();
        let at = |seconds: u64| MonotonicNanos(seconds * SAMPLE_NANOS);
        for second in 0..10 {
            let counters =
                Counters { writes: second * 100, written_bytes: second * 4096, ..Counters::default() };
            meter.sample(at(second), &counters);
        }
        let counters = Counters { writes: 1000, written_bytes: 40960, ..Counters::default() };
        assert_eq!(meter.rates(at(10), &counters), (100.0, 4096.0));
        assert_eq!(meter.rates(at(100), &counters), (0.0, 0.0));
    }
}
