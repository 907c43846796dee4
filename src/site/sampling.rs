//! Takes samples of what groups do, for `status` and reports: docs/reports.md.
//!
//! ```text
//!   snapshots ─▶ the book: deltas ─▶ every minute ─▶ catalogue ─▶ reports
//!   (status, metrics, once a minute)  └▶ the last 24 hours ─▶ status
//! ```
//!
//! Counters of a group begin at zero when it is opened, so the book knows the opening that it saw them of: what a later opening
//! counted is all new. An orderly stop loses nothing; a process that is killed loses what was counted after the last sample that the
//! catalogue took: a minute's worth. Owners of groups are asked no more than a scrape of the metrics asks them.
//!
//! Invariant: a byte that the catalogue took is not given to it again, and one that it did not take stays in the book, while a day's
//! worth of spans holds it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Mutex;

use crate::control::catalogue::Catalogue;
use crate::control::model::{Churn, DiskChurn, HourChurn};
use crate::control::samples::{Sample, Span, Standing};
use crate::error::Result;
use crate::protect::group::Counters;
use crate::protect::status::GroupSnapshot;
use crate::site::gateway::Inner;
use crate::units::{DiskId, GroupId, MonotonicNanos, WallNanos};

/// How often a sample of each group is taken.
const PERIOD: Duration = Duration::from_secs(60);
/// How long a group may take to say how it stands.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Spans of a group that wait for a catalogue that takes none: a day of them.
const WAITING_MAX: usize = 288;
/// Hours that `status` looks back over, the one that has begun among them.
const HOURS: i64 = 24;

/// What groups did lately.
#[derive(Debug, Default)]
pub(super) struct Sampling {
    book: parking_lot::Mutex<HashMap<GroupId, Page>>,
    /// Held by who gives the catalogue what waits; the hour up to which it was rolled up.
    writing: Mutex<WallNanos>,
    /// Whether the catalogue took none when it was asked last.
    refused: AtomicBool,
}

/// What is known of one group.
#[derive(Debug, Default)]
struct Page {
    seen: Option<Seen>,
    /// Bytes written by disk, in each of the last hours.
    hours: BTreeMap<WallNanos, BTreeMap<String, u64>>,
    /// What the catalogue has not taken yet, by the start of its span.
    waiting: BTreeMap<WallNanos, Sample>,
}

/// What a group had counted when it was looked at last.
#[derive(Debug)]
struct Seen {
    at: WallNanos,
    opened: MonotonicNanos,
    counters: Counters,
    disks: HashMap<DiskId, u64>,
}

impl Sampling {
    /// Takes what earlier processes left in the catalogue.
    fn load(&self, samples: Vec<(GroupId, WallNanos, Sample)>) {
        let mut book = self.book.lock();
        for (group, start, sample) in samples {
            let page = book.entry(group).or_default();
            note_hour(&mut page.hours, Span::Hour.start_of(start), &sample);
        }
    }

    /// Notes how a group stands; what it says of a time before one that was noted is known already.
    pub(super) fn note(&self, snapshot: &GroupSnapshot, now: WallNanos) {
        self.book.lock().entry(snapshot.id).or_default().note(snapshot, now);
    }

    /// What a group's guests wrote in the last hours, if it is known.
    pub(super) fn churn(&self, group: GroupId, now: WallNanos) -> Option<Churn> {
        self.book.lock().get(&group).map(|page| page.churn(now))
    }

    /// A group is gone for good; `forgotten` has the catalogue forget it, and nothing is added to it meanwhile.
    pub(super) async fn forget(&self, group: GroupId, forgotten: impl Future<Output = ()>) {
        let _writing = self.writing.lock().await;
        self.book.lock().remove(&group);
        forgotten.await;
    }

    /// Takes off what the catalogue is to be given.
    fn take(&self) -> Vec<(GroupId, WallNanos, Sample)> {
        let mut book = self.book.lock();
        let pages = book.iter_mut().flat_map(|(group, page)| {
            std::mem::take(&mut page.waiting).into_iter().map(|(start, sample)| (*group, start, sample))
        });
        pages.collect()
    }

    /// Takes back what the catalogue did not take.
    fn put_back(&self, samples: Vec<(GroupId, WallNanos, Sample)>) {
        let mut book = self.book.lock();
        for (group, start, mut sample) in samples {
            // One that was removed meanwhile needs no more.
            let Some(page) = book.get_mut(&group) else { continue };
            if let Some(later) = page.waiting.get(&start) {
                sample.absorb(later);
            }
            page.waiting.insert(start, sample);
            page.bound();
        }
    }
}

impl Page {
    fn note(&mut self, snapshot: &GroupSnapshot, now: WallNanos) {
        let Some(delta) = self.delta(snapshot) else { return };
        let middle = self.middle(snapshot, now);
        note_hour(&mut self.hours, Span::Hour.start_of(middle), &delta);
        self.hours = self.hours.split_off(&first_hour(now));
        self.waiting.entry(Span::FiveMinutes.start_of(middle)).or_default().absorb(&delta);
        self.bound();
        self.seen = Some(Seen {
            at: now,
            opened: snapshot.opened,
            counters: snapshot.counters,
            disks: snapshot.written_bytes.iter().copied().collect(),
        });
    }

    /// Half way between this look and the one before, so that a look on the hour is of the hour that ended; not far back where there was
    /// none for long, be it for a clock that was set.
    fn middle(&self, snapshot: &GroupSnapshot, now: WallNanos) -> WallNanos {
        let seen = self.seen.as_ref().filter(|seen| seen.opened == snapshot.opened);
        let far = WallNanos(now.0.saturating_sub(2 * period_nanos()));
        let from = seen.map_or(now, |seen| seen.at.clamp(far, now));
        WallNanos(from.0 / 2 + now.0 / 2)
    }

    /// What happened since the last look; nothing of a look that is older than that one.
    fn delta(&self, snapshot: &GroupSnapshot) -> Option<Sample> {
        let none = (Counters::default(), HashMap::new());
        let (counters, disks) = match &self.seen {
            Some(seen) if seen.opened > snapshot.opened || is_older(snapshot, seen) => return None,
            Some(seen) if seen.opened == snapshot.opened => (&seen.counters, &seen.disks),
            _ => (&none.0, &none.1),
        };
        let now = &snapshot.counters;
        let written = |id: &DiskId| {
            let bytes =
                snapshot.written_bytes.iter().find(|(disk, _)| disk == id).map_or(0, |(_, bytes)| *bytes);
            bytes.saturating_sub(disks.get(id).copied().unwrap_or(0))
        };
        let by_disk = snapshot.disks.iter().map(|disk| (disk.name.clone(), written(&disk.id)));
        Some(Sample {
            disks: by_disk.filter(|(_, bytes)| *bytes > 0).collect(),
            written_bytes: now.written_bytes - counters.written_bytes,
            journal_bytes: now.journal_bytes - counters.journal_bytes,
            images_bytes: now.destaged_bytes - counters.destaged_bytes,
            vault_bytes: now.vault_bytes - counters.vault_bytes,
            points_made: now.points - counters.points,
            standing: standing(snapshot),
        })
    }

    fn churn(&self, now: WallNanos) -> Churn {
        let since = first_hour(now);
        let hours = || self.hours.range(since..);
        let mut disks: BTreeMap<&String, u64> = BTreeMap::new();
        for (disk, bytes) in hours().flat_map(|(_, disks)| disks) {
            let sum = disks.entry(disk).or_default();
            *sum = sum.saturating_add(*bytes);
        }
        let by_hour = hours().map(|(start, disks)| (*start, sum(disks.values())));
        Churn {
            since,
            written_bytes: sum(disks.values()),
            top_disk: disks
                .iter()
                .max_by_key(|(_, bytes)| **bytes)
                .map(|(disk, bytes)| DiskChurn { disk: (*disk).clone(), written_bytes: *bytes }),
            top_hour: by_hour
                .filter(|(_, bytes)| *bytes > 0)
                .max_by_key(|(_, bytes)| *bytes)
                .map(|(start, written_bytes)| HourChurn { start, written_bytes }),
        }
    }

    fn bound(&mut self) {
        while self.waiting.len() > WAITING_MAX {
            self.waiting.pop_first();
        }
    }
}

fn sum<'a>(bytes: impl Iterator<Item = &'a u64>) -> u64 {
    bytes.fold(0, |sum, bytes| sum.saturating_add(*bytes))
}

fn note_hour(hours: &mut BTreeMap<WallNanos, BTreeMap<String, u64>>, hour: WallNanos, sample: &Sample) {
    for (disk, bytes) in &sample.disks {
        let sum = hours.entry(hour).or_default().entry(disk.clone()).or_default();
        *sum = sum.saturating_add(*bytes);
    }
}

/// The first hour that `status` looks back to.
fn first_hour(now: WallNanos) -> WallNanos {
    WallNanos(Span::Hour.start_of(now).0.saturating_sub((HOURS - 1) * Span::Hour.nanos()))
}

/// Whether two looks at one opening came in another order than they were taken: counters only grow.
fn is_older(snapshot: &GroupSnapshot, seen: &Seen) -> bool {
    let (now, before) = (&snapshot.counters, &seen.counters);
    snapshot.opened == seen.opened
        && (now.writes < before.writes
            || now.written_bytes < before.written_bytes
            || now.journal_bytes < before.journal_bytes
            || now.destaged_bytes < before.destaged_bytes
            || now.vault_bytes < before.vault_bytes
            || now.points < before.points)
}

fn standing(snapshot: &GroupSnapshot) -> Standing {
    let (space, images) = (snapshot.retention.space, snapshot.retention.images);
    Standing {
        points: snapshot.points,
        oldest: snapshot.oldest,
        newest: snapshot.newest_point.as_ref().map(|point| point.wall),
        journal_used_bytes: snapshot.journal_used_bytes,
        journal_limit_bytes: snapshot.journal_limit_bytes,
        history_bytes: space.map_or(0, |space| space.history_bytes),
        vault_free_bytes: space.map(|space| space.free_bytes),
        images_free_bytes: images.map(|images| images.free_bytes),
    }
}

/// Takes samples until the gateway is gone.
pub(super) async fn keep(gateway: Weak<Inner>) {
    loop {
        let Some(now) = gateway.upgrade().map(|inner| inner.environment.wall()) else { return };
        tokio::time::sleep(until_next(now)).await;
        let Some(inner) = gateway.upgrade() else { return };
        inner.record_samples().await;
    }
}

/// On the minute, so that no sample is of two spans.
fn until_next(now: WallNanos) -> Duration {
    Duration::from_nanos((period_nanos() - now.0.rem_euclid(period_nanos())).unsigned_abs())
}

fn period_nanos() -> i64 {
    i64::try_from(PERIOD.as_nanos()).expect("a minute")
}

impl Inner {
    /// Has what earlier processes left of the last hours in mind.
    pub(super) async fn load_samples(&self) {
        let Some(catalogue) = &self.catalogue else { return };
        match catalogue.recent_samples(first_hour(self.environment.wall())).await {
            Ok(samples) => self.sampling.load(samples),
            Err(error) => tracing::warn!(%error, "what was written before is not in `status`"),
        }
    }

    /// Has what groups did up to now in the catalogue, as far as it takes it. Goes on also where nobody waits for it: what was taken
    /// off the book comes into the catalogue, or back.
    pub(super) async fn record_samples(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        let recording = tokio::spawn(async move {
            inner.look_at_groups().await;
            let mut rolled_up = inner.sampling.writing.lock().await;
            if let Some(catalogue) = &inner.catalogue {
                inner.write_samples(catalogue, &mut rolled_up).await;
            } else {
                drop(inner.sampling.take());
            }
        });
        if let Err(error) = recording.await {
            tracing::warn!(%error, "samples could not be taken");
        }
    }

    async fn look_at_groups(&self) {
        for (_, entry) in self.groups_now().into_iter().filter(|(_, entry)| entry.is_hosted()) {
            let asking = self.read(entry.id, |member| member.group().map(|group| group.snapshot()));
            // One that is not open does nothing; one that does not answer has no sample.
            if let Ok(Ok(Ok(snapshot))) = tokio::time::timeout(LOOK_MAX, asking).await {
                self.sampling.note(&snapshot, self.environment.wall());
            }
        }
    }

    async fn write_samples(&self, catalogue: &Catalogue, rolled_up: &mut WallNanos) {
        let samples = self.sampling.take();
        let taken = catalogue.add_samples(&samples).await;
        if taken.is_err() {
            self.sampling.put_back(samples);
        }
        let hour = Span::Hour.start_of(self.environment.wall());
        let written = match taken {
            Ok(()) if hour != *rolled_up => catalogue.roll_up_samples().await,
            taken => taken,
        };
        if written.is_ok() {
            *rolled_up = hour;
        }
        self.tell_samples_refused(&written);
    }

    /// Once, until the catalogue takes some again.
    fn tell_samples_refused(&self, written: &Result<()>) {
        let was_refused = self.sampling.refused.swap(written.is_err(), Ordering::Relaxed);
        if let Err(error) = written
            && !was_refused
        {
            tracing::warn!(%error, "the catalogue takes no samples: they wait, a day's worth at most");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::catalogue::Content;
    use crate::env::OsEnvironment;
    use crate::format::record::DiskRecord;
    use crate::protect::retention::RetentionStatus;
    use crate::protect::status::{Condition, Ladder};
    use crate::units::{DiskSlot, SectorCount};

    const ERP: GroupId = GroupId(1);
    const MINUTE: i64 = 60_000_000_000;
    /// A whole hour of November 2026.
    const NOON: WallNanos = WallNanos(1_795_219_200_000_000_000);

    /// An opening that counted these bytes, of disks that are called by their ids.
    fn snapshot(opened: u64, written: &[(u128, u64)]) -> GroupSnapshot {
        let slot = |id: u128| DiskSlot(u32::try_from(id).expect("small"));
        let disk = |&(id, _): &(u128, u64)| DiskRecord {
            slot: slot(id),
            id: DiskId(id),
            name: format!("disk{id}"),
            sectors: SectorCount(8),
        };
        let written_bytes = written.iter().map(|(_, bytes)| bytes).sum();
        GroupSnapshot {
            id: ERP,
            name: "erp".to_owned(),
            created: NOON,
            interval_ms: 1000,
            disks: written.iter().map(disk).collect(),
            latched_disks: Vec::new(),
            latched_because: Vec::new(),
            beside_latches: None,
            vault_failure: None,
            condition: Condition::Protected,
            since: NOON,
            ladder: Ladder::default(),
            journal_used_bytes: 7,
            journal_limit_bytes: 9,
            map_bytes: 0,
            map_bytes_max: 0,
            cache_bytes: 0,
            cache_bytes_max: 0,
            idle: true,
            newest_point: None,
            late_since: None,
            unprotected: None,
            writes_waiting: None,
            failing: Vec::new(),
            oldest: None,
            points: 3,
            opened: MonotonicNanos(opened),
            counters: Counters { writes: written_bytes, written_bytes, ..Counters::default() },
            written_bytes: written.iter().map(|&(id, bytes)| (DiskId(id), bytes)).collect(),
            writes_per_s: 0.0,
            bytes_per_s: 0.0,
            retention: RetentionStatus::default(),
            retain: crate::format::ladder::Ladder::default(),
            buffered: None,
        }
    }

    fn minutes(count: i64) -> WallNanos {
        WallNanos(NOON.0 + count * MINUTE)
    }

    fn bytes(samples: &[(GroupId, WallNanos, Sample)]) -> Vec<(i64, u64)> {
        let minute = |start: WallNanos| (start.0 - NOON.0) / MINUTE;
        samples.iter().map(|(_, start, sample)| (minute(*start), sample.written_bytes)).collect()
    }

    #[test]
    fn what_another_opening_counted_is_all_new_and_an_older_look_is_none() {
        let sampling = Sampling::default();
        sampling.note(&snapshot(10, &[(1, 100)]), minutes(1));
        sampling.note(&snapshot(10, &[(1, 150), (2, 5)]), minutes(2));
        sampling.note(&snapshot(10, &[(1, 120)]), minutes(2));
        sampling.note(&snapshot(20, &[(1, 160), (2, 5)]), minutes(3));
        sampling.note(&snapshot(10, &[(1, 900)]), minutes(3));
        let churn = sampling.churn(ERP, minutes(3)).expect("known");
        assert_eq!(churn.written_bytes, 320);
        assert_eq!(churn.top_disk, Some(DiskChurn { disk: "disk1".to_owned(), written_bytes: 310 }));
        assert_eq!(churn.top_hour, Some(HourChurn { start: NOON, written_bytes: 320 }));
        let taken = sampling.take();
        assert_eq!(bytes(&taken), [(0, 320)]);
        assert_eq!((taken[0].2.standing.points, taken[0].2.disks["disk2"]), (3, 10));
        assert_eq!(sampling.take(), []);
    }

    #[test]
    fn a_look_on_the_hour_is_of_the_hour_that_ended() {
        let sampling = Sampling::default();
        sampling.note(&snapshot(1, &[(1, 0)]), minutes(59));
        sampling.note(&snapshot(1, &[(1, 7)]), minutes(60));
        sampling.note(&snapshot(1, &[(1, 16)]), minutes(61));
        assert_eq!(bytes(&sampling.take()), [(55, 7), (60, 9)]);
        let churn = sampling.churn(ERP, minutes(61)).expect("known");
        assert_eq!(churn.top_hour, Some(HourChurn { start: minutes(60), written_bytes: 9 }));
    }

    #[test]
    fn status_forgets_after_a_day() {
        let sampling = Sampling::default();
        sampling.note(&snapshot(1, &[(1, 7)]), minutes(1));
        let hours = |count: i64| sampling.churn(ERP, minutes(60 * count + 1)).expect("known").written_bytes;
        assert_eq!((hours(23), hours(24)), (7, 0));
        assert_eq!(sampling.churn(GroupId(2), NOON), None);
    }

    #[test]
    fn what_the_catalogue_does_not_take_waits_for_a_day() {
        let sampling = Sampling::default();
        for day in 0..2 {
            for minute in 0..(24 * 60) {
                let at: i64 = day * 24 * 60 + minute;
                sampling.note(&snapshot(1, &[(1, at.unsigned_abs())]), minutes(at));
            }
            let taken = sampling.take();
            assert_eq!(taken.len(), WAITING_MAX);
            sampling.put_back(taken);
        }
        sampling.note(&snapshot(1, &[(1, 10_000)]), minutes(2 * 24 * 60 - 1));
        let taken = sampling.take();
        assert_eq!(taken.len(), WAITING_MAX);
        let last = bytes(&taken).last().copied().expect("some");
        assert_eq!(last, (2 * 24 * 60 - 5, 4 + 10_000 - 2879), "{taken:?}");
        // What was removed meanwhile does not come back.
        sampling.book.lock().remove(&ERP);
        sampling.put_back(taken);
        assert_eq!(sampling.take(), []);
    }

    /// As a killed process leaves it, and the next one finds it.
    #[tokio::test]
    async fn the_last_hours_are_known_to_the_next_process() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("catalogue.sqlite");
        let (catalogue, _) = Catalogue::open(&path, &OsEnvironment::new()).await.expect("opened");
        let before = Sampling::default();
        before.note(&snapshot(1, &[(1, 7)]), minutes(1));
        catalogue.add_samples(&before.take()).await.expect("taken");
        before.note(&snapshot(1, &[(1, 9)]), minutes(2));
        catalogue.close().await;
        let (catalogue, content) = Catalogue::open(&path, &OsEnvironment::new()).await.expect("opened");
        assert_eq!(content, Content::Kept);
        let next = Sampling::default();
        next.load(catalogue.recent_samples(first_hour(minutes(3))).await.expect("read"));
        next.note(&snapshot(1, &[(1, 5)]), minutes(3));
        assert_eq!(next.churn(ERP, minutes(3)).expect("known").written_bytes, 7 + 5, "two bytes were lost");
        catalogue.add_samples(&next.take()).await.expect("taken");
        let samples = catalogue.samples(ERP, NOON).await.expect("read");
        assert_eq!(samples[0].1.written_bytes, 12);
    }
}
