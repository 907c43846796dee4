//! Retention beside everything else: clients who change the ladder, hold, release and delete points, and who read points
//! while the ladder works; and what a ladder may take away, put down apart from the code that does it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use super::ages::{Ages, TrueTime};
use super::answers::joined;
use super::clients::News;
use super::history::Contents;
use super::sector::stamps;
use super::site::{Outcome, Site};
use crate::block::DataPiece;
use crate::error::{Error, ErrorKind, Result};
use crate::format::ladder::{Ladder, Rung};
use crate::format::record::PointRecord;
use crate::protect::events::{GroupEvent, TimedEvent};
use crate::units::{DiskId, GroupNanos, Lsn, MonotonicNanos, PointId, SectorRange};
use crate::view::View;

/// Times that an open view is read.
const READINGS: usize = 3;
/// Views that clients have open at a time.
const VIEWS_MAX: usize = 2;

/// What somebody read of a point: disk by disk, once and again.
pub(super) type Readings = Vec<Vec<(DiskId, SectorRange, Vec<DataPiece>)>>;

/// Why a view could not be read.
pub(super) enum Unread {
    /// It could not be opened.
    Closed(Error),
    /// It was open, and a read failed.
    Failed(Error),
}

/// What the clients know of retention.
pub(super) struct Retention {
    /// The ladders that may be in force.
    ladders: Vec<Ladder>,
    /// The one that is, once the group said so: the others may have worked up to now.
    confirmed: Option<Ladder>,
    /// When the process announced that the oldest points go for lack of space,
    announced: Option<MonotonicNanos>,
    /// and whether some may have gone since they were looked at last.
    may_shrink: bool,
    /// Held points, and whether they are for sure.
    holds: BTreeMap<PointId, bool>,
    /// Those of them that somebody lets go of.
    releasing: BTreeSet<PointId>,
    /// Requests without answers,
    pub(super) asked: usize,
    /// and those among them that set a ladder.
    ladders_asked: usize,
    /// Open views.
    pub(super) views: usize,
    newest: GroupNanos,
    pub(super) true_time: TrueTime,
}

/// What may go.
pub(super) struct Rules<'a> {
    now: u64,
    ladders: Vec<Ladder>,
    /// The oldest point that is left, if older ones may have gone for lack of space.
    space: Option<Lsn>,
    kept: BTreeSet<PointId>,
    ages: Ages<'a>,
}

impl Rules<'_> {
    /// Whether a ladder may have dropped a point; `seen` are the times and markers of all points that ever were.
    pub(super) fn allow(&self, point: &PointRecord, seen: &BTreeSet<(u64, Lsn)>) -> bool {
        let at = (point.group_time.0, point.marker);
        // Neither older than group time says, nor than the truth, as far as the clock allows that to be known.
        let now = self.ages.most(point).map_or(self.now, |age| self.now.min(at.0.saturating_add(age)));
        let by_ladder = |ladder: &Ladder| is_expired(ladder, at.0, now) || is_thinned(ladder, at, now, seen);
        let by_space = self.space.is_some_and(|oldest| point.marker < oldest);
        self.may_go(point.id) && (by_space || self.ladders.iter().any(by_ladder))
    }

    /// What was in force, for people.
    pub(super) fn describe(&self, point: &PointRecord) -> String {
        let age = self.ages.most(point);
        format!("at {}, {age:?} ns old at most, {} kept, {:?}", self.now, self.kept.len(), self.ladders)
    }

    /// Whether nobody keeps the point.
    pub(super) fn may_go(&self, point: PointId) -> bool {
        !self.kept.contains(&point)
    }
}

fn is_expired(ladder: &Ladder, time: u64, now: u64) -> bool {
    ladder.rungs().last().is_some_and(|last| time + last.until_ms * 1_000_000 < now)
}

/// Whether an older point of the same bucket stands for this one.
fn is_thinned(ladder: &Ladder, at: (u64, Lsn), now: u64, seen: &BTreeSet<(u64, Lsn)>) -> bool {
    let mut begins = 0;
    ladder.rungs().iter().any(|rung| {
        let from = std::mem::replace(&mut begins, rung.until_ms * 1_000_000);
        let spacing = rung.spacing_ms * 1_000_000;
        let Some(bucket) = at.0.checked_div(spacing) else { return false };
        let has_older = seen.range((bucket * spacing, Lsn::ZERO)..at).next().is_some();
        has_older && (bucket + 1) * spacing + from <= now
    })
}

/// The ladders that seeds draw from: short, since so are their lives.
pub(super) const LADDERS: [&[(u64, u64)]; 5] =
    [&[], &[(50, 0)], &[(20, 0), (200, 10), (1000, 50)], &[(100, 0), (3000, 100)], &[(500, 40)]];

impl Retention {
    pub(super) fn new(ladder: Ladder) -> Retention {
        let (holds, newest) = (BTreeMap::new(), GroupNanos(0));
        Retention {
            ladders: vec![ladder],
            confirmed: None,
            announced: None,
            may_shrink: false,
            holds,
            releasing: BTreeSet::new(),
            asked: 0,
            ladders_asked: 0,
            views: 0,
            newest,
            true_time: TrueTime::default(),
        }
    }

    /// The process died: what was asked may have happened.
    pub(super) fn forget_pending(&mut self) {
        (self.asked, self.ladders_asked, self.views) = (0, 0, 0);
        self.announced = None;
    }
}

impl Site {
    /// A client does something about retention.
    pub(super) fn change_retention(&mut self) {
        if self.points.is_empty() {
            return;
        }
        let point = self.points.id(self.random.index(self.points.len()));
        match self.random.below(8) {
            0 => {
                let ladder = self.plan.ladder_at(self.random.index(LADDERS.len()));
                self.set_ladder(ladder);
            }
            1 => self.hold(point),
            2 => self.release(),
            3..5 => self.delete(point),
            _ if self.retention.views < VIEWS_MAX => self.read_slowly(point),
            _ => {}
        }
    }

    pub(super) fn set_ladder(&mut self, ladder: Ladder) {
        self.tracer.note(|| format!("retain {:?}", ladder.rungs()));
        self.retention.ladders.push(ladder.clone());
        self.retention.confirmed = None;
        self.retention.asked += 1;
        self.retention.ladders_asked += 1;
        let set = ladder.clone();
        let callback = self.callback(move |result| News::Retain(set, result));
        let Some(group) = self.process.group() else { return };
        group.set_policy(None, Some(ladder), callback);
    }

    fn hold(&mut self, point: PointId) {
        self.tracer.note(|| format!("hold {point}"));
        self.retention.holds.entry(point).or_insert(false);
        self.retention.asked += 1;
        let callback = self.callback(move |result| News::Held(point, result));
        let Some(group) = self.process.group() else { return };
        group.hold_point(point, callback);
    }

    pub(super) fn release(&mut self) {
        // While a hold is under way its answer would pass for that of one after the release (seed 1346).
        let sure = self.retention.holds.iter().filter(|(_, sure)| **sure);
        let held: Vec<PointId> = sure.map(|(&point, _)| point).collect();
        if held.is_empty() {
            return;
        }
        let point = *self.random.choose(&held);
        self.tracer.note(|| format!("release {point}"));
        self.retention.holds.insert(point, false);
        self.retention.releasing.insert(point);
        self.retention.asked += 1;
        let callback = self.callback(move |result| News::Released(point, result));
        let Some(group) = self.process.group() else { return };
        group.release_point(point, callback);
    }

    fn delete(&mut self, point: PointId) {
        self.tracer.note(|| format!("delete {point}"));
        self.points.request_deletion(point);
        self.retention.asked += 1;
        let callback = self.callback(move |result| News::Deleted(point, result));
        let Some(group) = self.process.group() else { return };
        group.delete_point(point, callback);
    }

    /// Opens a view and reads it again and again: what it shows does not change, and does not go.
    fn read_slowly(&mut self, point: PointId) {
        self.tracer.note(|| format!("read {point} slowly"));
        self.retention.views += 1;
        // Not at the whole pace of the run: the end waits for it, from one pass of retention to the next.
        let pause = Duration::from_micros(1 + self.random.below(20_000)) * (self.plan.pace / 10_000).max(1);
        let mailbox = Rc::clone(&self.news);
        let runtime = Rc::clone(self.process.runtime());
        let Some(group) = self.process.group() else { return };
        let vault = Rc::clone(group.vault());
        runtime.clone().spawn(async move {
            let result = match View::open(&vault, point).await {
                Ok(view) => {
                    let mut readings = Readings::new();
                    let mut failed = None;
                    for _ in 0..READINGS {
                        match read_whole(&view).await {
                            Ok(disks) => readings.push(disks),
                            Err(error) => failed = Some(Unread::Failed(error)),
                        }
                        runtime.sleep(pause).await;
                    }
                    failed.map_or(Ok(readings), Err)
                }
                Err(error) => Err(Unread::Closed(error)),
            };
            mailbox.borrow_mut().push_back(News::Viewed(point, result));
        });
    }

    /// What came of it.
    pub(super) fn take_retention_news(&mut self, news: News) -> Outcome {
        match news {
            News::Retain(ladder, Ok(())) => {
                self.retention.asked -= 1;
                self.tracer.note(|| format!("retained {:?}", ladder.rungs()));
                self.confirm_ladder();
                Ok(())
            }
            News::Retain(_, Err(error)) => {
                self.retention.asked -= 1;
                // It may be in force all the same, so all that may be stay.
                self.retention.ladders_asked -= 1;
                self.refused_retention(&error)
            }
            News::Held(point, Ok(())) => {
                self.retention.asked -= 1;
                self.retention.holds.insert(point, true);
                self.retention.releasing.remove(&point);
                Ok(())
            }
            News::Released(point, Ok(())) => {
                self.retention.asked -= 1;
                self.retention.holds.remove(&point);
                self.retention.releasing.remove(&point);
                Ok(())
            }
            News::Deleted(point, Ok(())) => {
                self.retention.asked -= 1;
                self.tracer.note(|| format!("{point} was deleted"));
                self.points.deleted(point);
                Ok(())
            }
            News::Held(_, Err(error)) | News::Released(_, Err(error)) | News::Deleted(_, Err(error)) => {
                self.retention.asked -= 1;
                self.refused_retention(&error)
            }
            News::Viewed(point, result) => self.take_readings(point, result),
            _ => unreachable!("not about retention"),
        }
    }

    /// Of several ladders on their way nobody knows which will be the last; once all were answered, the group says.
    fn confirm_ladder(&mut self) {
        self.retention.ladders_asked -= 1;
        if self.retention.ladders_asked > 0 {
            return;
        }
        let Some(group) = self.process.group() else { return };
        let ladder = group.vault().manifest().state().record().retain.clone();
        self.retention.confirmed = Some(ladder);
    }

    /// Points go at any time, are held or the newest: whoever asks learns it.
    fn refused_retention(&self, error: &Error) -> Outcome {
        let is_answer = matches!(
            error.kind(),
            ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::AlreadyExists | ErrorKind::Shutdown
        );
        if is_answer || self.is_faulted {
            Ok(())
        } else {
            Err(format!("retention failed without a fault: {error}"))
        }
    }

    fn take_readings(&mut self, point: PointId, result: std::result::Result<Readings, Unread>) -> Outcome {
        self.retention.views -= 1;
        let readings = match result {
            Ok(readings) => readings,
            Err(Unread::Closed(error)) => return self.refused_retention(&error),
            Err(Unread::Failed(_)) if self.is_faulted => return Ok(()),
            Err(Unread::Failed(error)) => {
                return Err(format!("an open view of {point} can't be read: {error}"));
            }
        };
        let mut first: Option<Contents> = None;
        for disks in readings {
            let mut contents = Contents::new();
            for (id, range, pieces) in disks {
                let number = self.number_of(id)?;
                contents.insert(number, stamps(number, 0, &joined(&pieces, range)?)?);
            }
            match &first {
                Some(first) if *first != contents => return Err(format!("an open view of {point} changed")),
                Some(_) => {}
                None => first = Some(contents),
            }
        }
        self.report.views += 1;
        match first {
            Some(contents) if self.points.is_known(point) => self.check_point(point, &contents),
            _ => Ok(()),
        }
    }

    /// How far the group's time ever came: a later process may be behind, if somebody set the clock back.
    pub(super) fn note_time(&mut self) {
        let life = self.process.group().map(|group| group.moment());
        self.retention.true_time.note(&*self.environment, life);
        if let Some(group) = self.process.group() {
            self.retention.newest = self.retention.newest.max(group.group_time());
        }
    }

    /// Hears what the group says: points may go for lack of space once that was announced, and time was left.
    pub(super) fn hear_events(&mut self) {
        let Some(group) = self.process.group() else { return };
        let events = group.take_events();
        let now = self.process.runtime().now();
        for TimedEvent { event, .. } in events {
            self.tracer.note(|| format!("event: {}", event.text()));
            if let GroupEvent::HistoryWillShrink { since, .. } = event {
                self.retention.announced = Some(since);
                self.report.shrinks += 1;
            }
            self.report.leaps += u64::from(matches!(event, GroupEvent::LeapExcluded { .. }));
        }
        let grace = u64::try_from(self.plan.space.grace.as_nanos()).expect("short");
        self.retention.may_shrink |= self.retention.announced.is_some_and(|at| at.0 + grace <= now.0);
    }

    /// Compares the group's points with what may have gone since.
    pub(super) fn observe_points(&mut self) -> Outcome {
        self.note_time();
        // A stop makes the last interval a point, also of a group that is paused.
        let is_stopping = self.clients.is_stopping;
        let Some(group) = self.process.group() else { return Ok(()) };
        if !is_stopping {
            self.administration.check_pause(group.points())?;
        }
        let now = self.retention.newest;
        let tests = self.clients.tests.values().filter(|test| !test.leaving).map(|test| test.point);
        let held = self.retention.holds.iter().filter(|(_, sure)| **sure).map(|(&point, _)| point);
        let (kept, ladders) = (tests.chain(held).collect(), self.retention.ladders.clone());
        let oldest = group.points().first().map(|point| point.marker);
        let space = oldest.filter(|_| self.retention.may_shrink);
        let ages = self.retention.true_time.ages();
        let is_at_rest = !group.is_retaining();
        let rules = Rules { now: now.0, ladders, space, kept, ages };
        let dropped = self.points.observe(group.points(), &self.history, &rules)?;
        // What this process announced it goes on doing; what a dead one did is seen by now.
        self.retention.may_shrink &= self.retention.announced.is_some();
        self.report.points_dropped += dropped;
        if is_at_rest {
            self.retention.true_time.forget_plans();
        }
        if let Some(ladder) = self.retention.confirmed.take() {
            self.retention.ladders = vec![ladder];
        }
        Ok(())
    }

    /// What was held is held.
    pub(super) fn verify_holds(&mut self) -> Outcome {
        let Some(group) = self.process.group() else { return Ok(()) };
        let state = group.vault().manifest().state();
        for (&point, sure) in &self.retention.holds {
            if *sure && state.hold_of(point).is_none() {
                return Err(format!("point {point} is not held any more"));
            }
        }
        self.retention.holds = state
            .pins()
            .iter()
            .filter(|pin| pin.kind == crate::format::record::PinKind::Hold)
            // A release that got no answer may still be on its way when the manifest is read again (seed 355).
            .map(|pin| (pin.point, !self.retention.releasing.contains(&pin.point)))
            .collect();
        Ok(())
    }

    /// Space comes back: with a short ladder only the newest point and those that somebody keeps stay, and the vault
    /// holds the blobs that they name and no other.
    pub(super) fn check_space(&mut self) -> Outcome {
        self.set_ladder(Ladder::new(vec![Rung { until_ms: 10, spacing_ms: 0 }]).expect("legal"));
        if let Err(text) = self.drive("retention", |site| site.retention.asked == 0 && site.has_little()) {
            let files = self.disk.files();
            let Some(group) = self.process.group() else { return Err(text) };
            let (status, state) = (group.retention(), group.vault().manifest().state());
            let (points, time) = (state.points().len(), group.group_time());
            let files: Vec<_> = files
                .iter()
                .filter(|path| path.starts_with("/vault") && !path.starts_with("/vault/manifest"))
                .collect();
            let pins = state.pins().len();
            return Err(format!("{text}: {points} points, {pins} pins at {time:?}: {status:?}, {files:?}"));
        }
        Ok(())
    }

    /// Whether all that can go is gone.
    fn has_little(&mut self) -> bool {
        let files = self.disk.files();
        let Some(group) = self.process.group() else { return false };
        let state = group.vault().manifest().state();
        let kept: BTreeSet<PointId> = state.pins().iter().map(|pin| pin.point).collect();
        let newest = state.points().last().map(|point| point.id);
        let stay = |point: PointId| kept.contains(&point) || newest == Some(point);
        let (blobs, bases) = (group.vault().layout().blobs(), group.vault().layout().bases());
        let index = group.vault().layout().index();
        let in_directory = |directory| files.iter().filter(|path| path.starts_with(directory)).count();
        let named = state.points().iter().filter(|point| point.delta.is_some()).count();
        let read = group.vault().leases().waiting();
        let needed = state.all_disks().iter().filter(|disk| state.needs_base(disk)).count();
        state.base_advance().is_none()
            && state.points().iter().all(|point| stay(point.id))
            && in_directory(&blobs) == named + read
            // Each has its sums.
            && in_directory(&bases) == 2 * needed
            // Each gathers two tables at least, so that there are always fewer.
            && in_directory(&index) <= named + read
    }
}

/// Reads every disk of a view whole.
pub(super) async fn read_whole(view: &Rc<View>) -> Result<Vec<(DiskId, SectorRange, Vec<DataPiece>)>> {
    let mut disks = Vec::new();
    for disk in view.disks() {
        let range = SectorRange::new(0, disk.sectors().0);
        disks.push((disk.id(), range, view.read(disk.id(), range).await?));
    }
    Ok(disks)
}
