//! The task that keeps a group's history to its ladder: one step at a time, beside everything else.
//!
//! It decides when; what is done is the vault's (`docs/retention.md`). Each step is whole or not begun for whoever comes
//! after, so that the task may die at any await. What fails is tried again, and shown meanwhile.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures::channel::mpsc;
use futures::future::{Either, select};
use futures::{FutureExt, StreamExt};

use crate::error::{Error, ErrorKind, Result};
use crate::format::ladder::Ladder;
use crate::image::pace::Pace;
use crate::protect::clock::GroupClock;
use crate::protect::events::{GroupEvent, TimedEvent};
use crate::protect::group::{Callback, Group, nanos};
use crate::protect::mailbox::{Done, Mailbox};
use crate::protect::open::GroupPlan;
use crate::protect::retry::RETRY_DELAY;
use crate::protect::shrinking::{ImagesSpace, PointWait, Shrink, Shrinking, SpaceStatus};
use crate::protect::suspension::{ClockWatch, Suspension};
use crate::runtime::Runtime;
use crate::units::{MonotonicNanos, PointId};
use crate::vault::{Advance, Detour, Forecast, SumsRot, Vault};

/// A pass is due after the first rung's age divided by this,
const PASSES_PER_RUNG: u64 = 60;
/// but not more often,
const PASS_MIN: Duration = Duration::from_millis(10);
/// nor less often than this. So long it also waits after damage, which no other try mends.
const PASS_MAX: Duration = Duration::from_secs(60);
/// Summaries of deltas that are built in one pass: then whoever waits gets a turn.
const SUMMARIES_PER_PASS: usize = 64;

/// What the task is asked.
pub(super) enum Job {
    /// To look again: the policy changed, or a view ended.
    Look,
    /// To drop a point.
    Delete(PointId, Callback<()>),
}

/// How a group's retention stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionStatus {
    /// Why the last try failed, until one succeeds.
    pub stalled: Option<String>,
    /// Whether it failed of anything but a lack of space, which has a condition of its own: of damage, which no other try mends, of a device,
    /// or of another process's lock.
    pub meets_errors: bool,
    /// Why no point goes by its age, if so.
    pub suspended: Option<Suspension>,
    /// Whether the base waits for a view: of a point that is gone, or of deltas that are to give space back.
    pub waits_for_view: bool,
    /// How much room there is, as far as it was looked at.
    pub space: Option<SpaceStatus>,
    /// How much room the images have, once that was looked at.
    pub images: Option<ImagesSpace>,
    /// Whether points go because of space.
    pub shrink: Shrink,
}

/// What task and group share.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) status: RefCell<RetentionStatus>,
    /// Whether a step is under way.
    pub(super) busy: Cell<bool>,
    /// Whether no marker is under way that could list a disk that left.
    pub(super) quiet: Cell<bool>,
    /// No new step: the group stops.
    pub(super) stopping: Cell<bool>,
    /// What keeps the next recovery point from the vault.
    pub(super) point_wait: Cell<PointWait>,
    /// What happened that the group has not said yet.
    pub(super) events: RefCell<Vec<TimedEvent>>,
}

impl Shared {
    /// Has the group say something.
    pub(super) fn tell(&self, runtime: &Runtime, event: GroupEvent) {
        self.events.borrow_mut().push(TimedEvent { time: runtime.wall(), event });
    }
}

/// The task.
pub(super) struct Retention {
    runtime: Rc<Runtime>,
    vault: Rc<Vault>,
    shared: Rc<Shared>,
    mailbox: Mailbox,
    clock: ClockWatch,
    shrinking: Shrinking,
    /// When space is to be looked at again,
    space_due: MonotonicNanos,
    /// and summaries, if they failed,
    summaries_due: MonotonicNanos,
    /// and the reserve,
    reserve_due: MonotonicNanos,
    /// and bases without sums.
    sums_due: MonotonicNanos,
}

impl Retention {
    pub(super) fn new(
        runtime: Rc<Runtime>,
        vault: Rc<Vault>,
        shared: Rc<Shared>,
        mailbox: Mailbox,
        clock: GroupClock,
        plan: &GroupPlan,
        pace: &Rc<Pace>,
    ) -> Retention {
        let first_rung = first_rung(&vault.manifest().state().record().retain);
        let (clock, event) = ClockWatch::new(clock, &runtime, &vault, first_rung);
        event.into_iter().for_each(|event| shared.tell(&runtime, event));
        let shrinking = Shrinking::new(plan, Rc::clone(pace));
        let space_due = MonotonicNanos(0);
        Retention {
            runtime,
            vault,
            shared,
            mailbox,
            clock,
            shrinking,
            space_due,
            summaries_due: MonotonicNanos(0),
            reserve_due: MonotonicNanos(0),
            sums_due: MonotonicNanos(0),
        }
    }

    fn ladder(&self) -> Ladder {
        self.vault.manifest().state().record().retain.clone()
    }

    /// Works until the group is dropped; begins when it is told that the group serves.
    pub(super) async fn run(mut self, mut jobs: mpsc::UnboundedReceiver<Job>) {
        let Some(first) = jobs.next().await else { return };
        let mut job = Some(first);
        loop {
            let delay = self.take_turn(job).await;
            let timer = self.runtime.sleep(delay);
            job = match select(jobs.next(), timer.boxed_local()).await {
                Either::Left((None, _)) => return,
                Either::Left((job, _)) => job,
                Either::Right(_) => None,
            };
        }
    }

    /// Does what is asked, then what the ladder wants; how long to wait then.
    async fn take_turn(&mut self, job: Option<Job>) -> Duration {
        if self.shared.stopping.get() {
            refuse(job);
            return PASS_MAX;
        }
        self.shared.busy.set(true);
        if let Some(Job::Delete(point, callback)) = job {
            callback(self.delete(point).await);
        }
        let result = self.pass().await;
        self.tell_rots();
        if result.is_err() {
            self.look_at_space().await;
        }
        self.mind_reserve().await;
        let has_more = self.mind_summaries().await;
        self.shared.busy.set(false);
        // Whoever waits for the task to be idle hears of it.
        self.report(false);
        let delay = self.note(result);
        if has_more { delay.min(PASS_MIN) } else { delay }
    }

    /// Makes the reserve anew, as far as there is room. What fails stalls nothing: it is tried again.
    async fn mind_reserve(&mut self) {
        // Others do not wait for longer than they have to.
        if self.runtime.now() < self.reserve_due && !self.vault.reserve().holds_others() {
            return;
        }
        let shared = Rc::clone(&self.shared);
        let proceed = || proceed(&shared);
        let minded = self.shrinking.mind_reserve(&self.runtime, &self.vault, &self.shared, &proceed).await;
        let Err(error) = minded else { return };
        let delay = match error.kind() {
            ErrorKind::Shutdown => return,
            ErrorKind::NoSpace => RETRY_DELAY,
            _ => {
                tracing::warn!(%error, "nothing is kept back to give space back with; it is tried again");
                PASS_MAX
            }
        };
        self.reserve_due = MonotonicNanos(self.runtime.now().0 + nanos(delay));
    }

    /// Removes summaries that do not hold any more and builds those that are wanted; whether there are more. They are a
    /// cache: what fails stalls nothing.
    async fn mind_summaries(&mut self) -> bool {
        if self.runtime.now() < self.summaries_due {
            return false;
        }
        let tended = tend_summaries(&self.vault, &self.shared).await;
        tended.unwrap_or_else(|error| {
            if error.kind() != ErrorKind::Shutdown {
                tracing::warn!(%error, "no summary of deltas is built: points open slower; it is tried again");
                self.summaries_due = MonotonicNanos(self.runtime.now().0 + nanos(PASS_MAX));
            }
            false
        })
    }

    /// Tells of what flipped in the sums of bases that an advance has written anew.
    fn tell_rots(&self) {
        for SumsRot { disk, path, offset, is_lost } in self.vault.bases().take_rots() {
            let state = self.vault.manifest().state();
            let named = state.all_disks().iter().find(|known| known.record.id == disk);
            let disk = named.map_or_else(|| disk.to_string(), |known| known.record.name.clone());
            self.shared.tell(&self.runtime, GroupEvent::BaseSumsRotten { disk, path, offset, is_lost });
        }
    }

    async fn delete(&self, point: PointId) -> Result<()> {
        let _turn = self.vault.retention_turn().await;
        let failed = match self.vault.finish_advance().await {
            // Another point may go all the same.
            Err(error) if error.kind() != ErrorKind::Shutdown => Some(error),
            advanced => advanced.map(|_| None)?,
        };
        let result = match (self.vault.delete_point(point).await, failed) {
            (Err(error), Some(failed)) if error.kind() == ErrorKind::Invalid => Err(failed),
            (result, _) => result,
        };
        self.report(true);
        result
    }

    /// Tells the group of a step, or, where nothing changed, that the task is at rest.
    fn report(&self, changed: bool) {
        self.mailbox.borrow_mut().push_back(Done::Retained { changed });
    }

    /// Does what there is to do.
    async fn pass(&mut self) -> Result<()> {
        let vault = Rc::clone(&self.vault);
        let _turn = vault.retention_turn().await;
        self.mind_clock();
        vault.sweep().await?;
        // What lacks space waits for it, and what meets damage for a person; what gives space back comes all the more.
        let mut failed = None;
        set_aside(self.thin(&vault).await, &mut failed)?;
        set_aside(self.mind_space(&vault).await, &mut failed)?;
        if self.shared.quiet.get() {
            vault.delete_unneeded_bases().await?;
        }
        self.mind_sums(&vault).await;
        failed.map_or(Ok(()), Err)
    }

    /// Gives bases of before there were sums theirs. What fails stalls nothing: it is tried again.
    async fn mind_sums(&mut self, vault: &Vault) {
        if self.runtime.now() < self.sums_due {
            return;
        }
        let wait = match sum_bases(vault, &self.shared).await {
            // No base is made without them.
            Ok(true) => Duration::from_nanos(u64::MAX / 2),
            Ok(false) => Duration::ZERO,
            Err(error) if error.kind() == ErrorKind::Shutdown => return,
            Err(error) => {
                tracing::warn!(%error, "a base of a version without checksums gets none; it is tried again");
                PASS_MAX
            }
        };
        self.sums_due = MonotonicNanos(self.runtime.now().0.saturating_add(nanos(wait)));
    }

    /// Does what the ladder asks for.
    async fn thin(&mut self, vault: &Vault) -> Result<()> {
        let mut detour = Detour::default();
        loop {
            let advance = detour.finish_advance(vault).await?;
            self.shared.status.borrow_mut().waits_for_view = advance == Advance::Waits;
            vault.sweep().await?;
            self.report(advance == Advance::Done);
            self.runtime.yield_now().await;
            if self.shared.stopping.get() || self.mind_clock() || self.is_paused() {
                break;
            }
            let ladder = self.ladder();
            let now = self.clock.now(&self.runtime);
            let Some(step) = vault.next_step(&detour, &ladder, now) else { break };
            match detour.take_step(vault, step, &ladder).await {
                // Since then somebody pinned one of the points, or set another policy: the next pass plans anew.
                Err(error) if matches!(error.kind(), ErrorKind::Invalid | ErrorKind::NotFound) => break,
                taken => taken?,
            }
            self.report(true);
        }
        detour.end()
    }

    fn is_paused(&self) -> bool {
        self.vault.manifest().state().is_paused()
    }

    async fn mind_space(&mut self, vault: &Vault) -> Result<()> {
        if self.is_paused() {
            self.look_at_space().await;
        }
        if self.runtime.now() < self.space_due || self.shared.stopping.get() || self.is_paused() {
            return Ok(());
        }
        let before = vault.manifest().state().points().len();
        let wait = self.shrinking.pass(&self.runtime, vault, &self.shared).await;
        if vault.manifest().state().points().len() < before {
            self.report(true);
        }
        self.space_due = MonotonicNanos(self.runtime.now().0 + nanos(wait?));
        Ok(())
    }

    /// Has `status` say how much room there is, though nothing is done about it: while the group is paused, and where a pass
    /// came to no end.
    async fn look_at_space(&mut self) {
        if self.runtime.now() < self.space_due || self.shared.stopping.get() {
            return;
        }
        // What cannot be looked at now is looked at again then.
        let _ = self.shrinking.measure(&self.runtime, &self.vault, &self.shared).await;
        self.space_due = MonotonicNanos(self.runtime.now().0 + nanos(self.shrinking.look_period()));
    }

    /// Notes how a pass went; when the next one is due.
    fn note(&self, result: Result<()>) -> Duration {
        let mut status = self.shared.status.borrow_mut();
        let Err(error) = result else {
            (status.stalled, status.meets_errors) = (None, false);
            let space = self.space_due.0.saturating_sub(self.runtime.now().0);
            let period = period(&self.ladder()).min(Duration::from_nanos(space).max(PASS_MIN));
            return if status.waits_for_view { period.min(RETRY_DELAY) } else { period };
        };
        if status.stalled.is_none() {
            tracing::warn!(%error, "retention is stalled; it is tried again");
        }
        (status.stalled, status.meets_errors) = (Some(error.to_string()), error.kind() != ErrorKind::NoSpace);
        match error.kind() {
            ErrorKind::Io | ErrorKind::NoSpace | ErrorKind::Locked => RETRY_DELAY,
            _ => PASS_MAX,
        }
    }

    /// Looks at the clock; whether no point may go by its age now.
    fn mind_clock(&mut self) -> bool {
        let first_rung = first_rung(&self.ladder());
        let events = self.clock.look(&self.runtime, &self.vault, first_rung);
        events.into_iter().for_each(|event| self.shared.tell(&self.runtime, event));
        let suspension = self.clock.suspension(&self.runtime, first_rung);
        self.shared.status.borrow_mut().suspended = suspension;
        suspension.is_some()
    }
}

impl Drop for Retention {
    fn drop(&mut self) {
        // Nobody gives space back any more; the vault may be read for longer.
        self.vault.reserve().let_others();
    }
}

/// The age that a ladder's first rung ends at.
fn first_rung(ladder: &Ladder) -> Option<Duration> {
    ladder.rungs().first().map(|rung| Duration::from_millis(rung.until_ms))
}

async fn tend_summaries(vault: &Vault, shared: &Shared) -> Result<bool> {
    let _turn = vault.retention_turn().await;
    vault.end_summaries().await?;
    let proceed = || proceed(shared);
    for _ in 0..SUMMARIES_PER_PASS {
        proceed()?;
        if !vault.build_summary(&proceed).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Sets an error aside, the first one, unless it says that the group stops: what comes next may succeed all the same.
fn set_aside(result: Result<()>, first: &mut Option<Error>) -> Result<()> {
    match result {
        Err(error) if error.kind() != ErrorKind::Shutdown => {
            first.get_or_insert(error);
            Ok(())
        }
        result => result,
    }
}

/// Gives bases their sums that have none, unless one is being written to; whether all have them.
async fn sum_bases(vault: &Vault, shared: &Shared) -> Result<bool> {
    let disks: Vec<_> = {
        let state = vault.manifest().state();
        if state.base_advance().is_some() {
            return Ok(false);
        }
        let needed = state.all_disks().iter().filter(|disk| state.needs_base(disk));
        needed.map(|disk| disk.record.id).collect()
    };
    for disk in vault.bases().unsummed(&disks).await? {
        tracing::info!(%disk, "reading its base, whose version has no checksums, to give it some: retention waits meanwhile");
        vault.bases().sum(disk, |_| proceed(shared)).await?;
        tracing::warn!(
            %disk,
            "its base is of a version without checksums, and has them now: what flips from here on is found, not what flipped before"
        );
    }
    Ok(true)
}

/// Fails once the group stops.
fn proceed(shared: &Shared) -> Result<()> {
    if shared.stopping.get() { Err(stopping()) } else { Ok(()) }
}

fn stopping() -> Error {
    Error::new(ErrorKind::Shutdown, "the group is stopping")
}

fn period(ladder: &Ladder) -> Duration {
    let first = ladder
        .rungs()
        .first()
        .map_or(PASS_MAX, |rung| Duration::from_millis(rung.until_ms / PASSES_PER_RUNG));
    first.clamp(PASS_MIN, PASS_MAX)
}

fn refuse(job: Option<Job>) {
    if let Some(Job::Delete(_, callback)) = job {
        callback(Err(stopping()));
    }
}

impl Group {
    /// Keeps a point until it is released.
    pub fn hold_point(&mut self, point: PointId, callback: Callback<()>) {
        let vault = Rc::clone(&self.settings.vault);
        self.tasks.spawn(async move { callback(vault.hold_point(point).await) });
    }

    /// Ends a hold.
    pub fn release_point(&mut self, point: PointId, callback: Callback<()>) {
        let vault = Rc::clone(&self.settings.vault);
        self.tasks.spawn(async move { callback(vault.release_point(point).await) });
    }

    /// Drops a point.
    pub fn delete_point(&mut self, point: PointId, callback: Callback<()>) {
        if let Err(refused) = self.retention_jobs.unbounded_send(Job::Delete(point, callback)) {
            refuse(Some(refused.into_inner()));
        }
    }

    /// What a ladder would do to the points now.
    pub fn forecast(&self, ladder: &Ladder) -> Forecast {
        self.settings.vault.forecast(ladder, self.moment())
    }

    /// How retention stands.
    pub fn retention(&self) -> RetentionStatus {
        self.retention.status.borrow().clone()
    }

    /// Whether a step of it may be under way.
    pub fn is_retaining(&self) -> bool {
        self.retention.busy.get()
    }

    /// Has the ladder looked at again.
    pub(super) fn look_at_ladder(&self) {
        // The task ends only with the runtime.
        let _ = self.retention_jobs.unbounded_send(Job::Look);
    }

    /// Tells the task how things stand; wakes it when a view ended that it waited for.
    pub(super) fn mind_retention(&mut self) {
        let under_way = self.markers_pending + self.intervals_waiting.len() + self.intervals_publishing.len();
        // A disk that is leaving is still in the table, and so in the next marker.
        self.retention.quiet.set(under_way == 0 && self.slots.len() == self.disks.len());
        self.retention.stopping.set(self.stopping);
        let vault = &self.settings.vault;
        if !self.retention.busy.get() && !self.stopping && vault.leases().has_freed() && !self.swept {
            self.swept = true;
            self.look_at_ladder();
        }
    }

    /// The task took a step, or is done for now: the points are what the vault says.
    pub(super) fn finish_retained(&mut self, changed: bool) {
        self.swept = false;
        if !changed {
            return;
        }
        let state = self.settings.vault.manifest().state();
        // A point that was published a moment ago is announced when the publisher says so. But it may be waiting to try a step
        // again that is there, and the newest point may have been merged into that one since: there must be a newest.
        let mut markers = state.points().iter().map(|point| point.marker);
        let kept = self.points.last().and_then(|newest| markers.find(|&marker| marker >= newest.marker));
        let through = kept.map_or(self.vaulted, |kept| kept.max(self.vaulted));
        let known = state.points().iter().take_while(|point| point.marker <= through);
        self.points = known.cloned().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ladder::Rung;

    #[test]
    fn passes_follow_the_first_rung_within_bounds() {
        let ladder = |until_ms| Ladder::new(vec![Rung { until_ms, spacing_ms: 0 }]).expect("legal");
        assert_eq!(period(&ladder(10)), PASS_MIN);
        assert_eq!(period(&ladder(60_000)), Duration::from_secs(1));
        assert_eq!(period(&Ladder::default()), PASS_MAX);
        assert_eq!(period(&Ladder::keep_all()), PASS_MAX);
    }
}
