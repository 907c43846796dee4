//! Keeps what happened to groups, for people to look back at.
//!
//! ```text
//!   group ─▶ member ─▶ queue ─▶ the keeper ─▶ catalogue ─▶ who follows
//!   gateway ───────────▲                 └──▶ hooks
//! ```
//!
//! An event bears the time at which it happened, and is in the queue by the end of the data thread's turn in which it did. The
//! keeper writes down what is there as soon as something is, many in one go; what a group tells that has no name yet, since it is
//! being opened, waits until it has one, and what the catalogue does not take until it does. The log has each event at once. Hooks are
//! told what the catalogue took, and without it what it did not take in time: it may be what fails.
//!
//! Invariant: an orderly stop loses none: it ends the keeper between two writes, and writes down the rest once all groups are
//! stopped. A process that is killed loses what the catalogue had not taken yet: milliseconds, unless it was slow. What waits is
//! bounded all the same: the oldest go beyond that, and an event in their place says how many.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Mutex, Notify, watch};

use crate::control::catalogue::{Catalogue, EventFilter};
use crate::control::model::{Event, EventCount, EventGap, EventPage, EventQuery, Severity};
use crate::control::name::Name;
use crate::error::{Error, ErrorKind, Result};
use crate::protect::events::{Gravity, TimedEvent};
use crate::site::event_counts::EventCounts;
use crate::site::gateway::Inner;
use crate::units::{GroupId, WallNanos};

/// Most events that wait for the catalogue, which takes several thousand a second: some megabytes.
const WAITING_MAX: usize = 16_384;
/// Events that the catalogue is given at a time.
const BATCH: usize = 1024;
/// After the catalogue took none it is asked again.
const RETRY: Duration = Duration::from_secs(1);
/// How long hooks wait for the catalogue, which gives events their ids.
const HOOKS_PATIENCE: Duration = Duration::from_secs(5);

/// What happened and is not in the catalogue yet.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    waiting: parking_lot::Mutex<Waiting>,
    /// All that there were.
    counts: EventCounts,
    news: Notify,
    /// Held by who writes them down: events are taken off the queue before the catalogue has them.
    writing: Mutex<()>,
    /// Changes when the catalogue took some.
    recorded: watch::Sender<Recorded>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Recorded {
    batches: u64,
    /// Nobody who follows waits any longer.
    ended: bool,
}

/// An event on its way.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub event: Event,
    /// The hook that it is about, which is not told it.
    pub about: Option<Name>,
    /// Whether hooks have it already.
    pub offered: bool,
}

impl From<Event> for Told {
    fn from(event: Event) -> Told {
        Told { event, about: None, offered: false }
    }
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Told>,
    /// How many were too many, and when the last of these was.
    lost: Option<(u64, WallNanos)>,
    /// Whether the catalogue took none when it was asked last.
    refused: bool,
    ended: bool,
}

impl Waiting {
    fn bound(&mut self) {
        while self.events.len() > WAITING_MAX {
            let Some(gone) = self.events.pop_front() else { return };
            let (count, last) = self.lost.unwrap_or((0, gone.event.time));
            self.lost = Some((count + 1, last.max(gone.event.time)));
        }
    }
}

impl EventQueue {
    /// Takes what a group tells.
    pub(super) fn tell(&self, id: GroupId, told: &TimedEvent) {
        let TimedEvent { time, event } = told;
        self.push(Event {
            id: None,
            time: *time,
            group: None,
            group_id: Some(id),
            severity: severity(event.gravity()),
            code: event.code().to_owned(),
            message: event.text(),
        });
    }

    /// How many there were of each kind since the process began to serve.
    pub(super) fn counts(&self) -> Vec<EventCount> {
        self.counts.read()
    }

    fn push(&self, event: Event) {
        self.push_told(event.into());
    }

    /// Tells something about a hook; the log has it.
    pub(super) fn tell_of_hook(&self, hook: &Name, time: WallNanos, kind: (Severity, &str), message: String) {
        let (severity, code) = (kind.0, kind.1.to_owned());
        let event = Event { id: None, time, group: None, group_id: None, severity, code, message };
        self.push_told(Told { about: Some(hook.clone()), ..Told::from(event) });
    }

    fn push_told(&self, told: Told) {
        self.counts.add(&told.event);
        let mut waiting = self.waiting.lock();
        waiting.events.push_back(told);
        waiting.bound();
        drop(waiting);
        self.news.notify_one();
    }

    /// What the catalogue did not take waits again. Whether it is the first refusal since it took some.
    fn put_back(&self, events: &[Told]) -> bool {
        let mut waiting = self.waiting.lock();
        let later = std::mem::take(&mut waiting.events);
        waiting.events = events.iter().cloned().chain(later).collect();
        waiting.bound();
        !std::mem::replace(&mut waiting.refused, true)
    }

    fn taken_down(&self) {
        self.waiting.lock().refused = false;
        self.recorded.send_modify(|recorded| recorded.batches += 1);
    }

    /// Who waits for events is answered now.
    pub(super) fn end_waits(&self) {
        self.recorded.send_modify(|recorded| recorded.ended = true);
    }

    /// A group has got its name: what waits for that is news.
    pub(super) fn named(&self) {
        self.news.notify_one();
    }

    /// One that is gone leaves no events behind.
    pub(super) fn forget(&self, id: GroupId) {
        self.waiting.lock().events.retain(|told| told.event.group_id != Some(id));
    }

    /// No more news: the keeper ends.
    pub(super) fn end(&self) {
        self.waiting.lock().ended = true;
        self.news.notify_one();
    }

    /// Waits for news; whether there may be any.
    async fn has_news(&self) -> bool {
        if !self.waiting.lock().ended {
            self.news.notified().await;
        }
        !self.waiting.lock().ended
    }

    /// Takes the events that can be written down, in the order of their times: those of groups without a name have to wait.
    fn take(&self, name_of: impl Fn(GroupId) -> Option<Name>) -> Vec<Told> {
        let mut waiting = self.waiting.lock();
        let (mut taken, mut left) = (Vec::new(), VecDeque::new());
        taken.extend(waiting.lost.take().map(|(count, time)| Told::from(loss(count, time))));
        for mut told in waiting.events.drain(..) {
            let event = &mut told.event;
            event.group = event.group.take().or_else(|| event.group_id.and_then(&name_of));
            match (&event.group, event.group_id) {
                (None, Some(_)) => left.push_back(told),
                _ => taken.push(told),
            }
        }
        waiting.events = left;
        taken.sort_by_key(|told| told.event.time);
        taken
    }
}

/// What stands in the place of events that were too many.
fn loss(count: u64, time: WallNanos) -> Event {
    let events = if count == 1 { "1 event was".to_owned() } else { format!("{count} events were") };
    let (severity, code) = (Severity::Warning, "events_lost");
    Event {
        id: None,
        time,
        group: None,
        group_id: None,
        severity,
        code: code.to_owned(),
        message: format!(
            "{events} lost up to here, since the catalogue took none for too long; the log has them"
        ),
    }
}

/// Writes down what happens, until the queue ends or the gateway is gone.
pub(super) async fn keep(gateway: Weak<Inner>, queue: Arc<EventQueue>) {
    let catalogue = gateway.upgrade().and_then(|inner| inner.catalogue.clone());
    while has_news(&queue, catalogue.as_ref()).await {
        let Some(inner) = gateway.upgrade() else { return };
        let written = inner.write_events().await;
        drop(inner);
        if !written {
            tokio::time::sleep(RETRY).await;
            queue.news.notify_one();
        }
    }
}

/// Waits for news, also of the catalogue itself; whether there may be any.
async fn has_news(queue: &EventQueue, catalogue: Option<&Catalogue>) -> bool {
    let Some(catalogue) = catalogue else { return queue.has_news().await };
    tokio::select! {
        may_be = queue.has_news() => may_be,
        () = catalogue.rot_found() => true,
    }
}

impl Inner {
    /// Has all that happened by now in the catalogue; whether it took it.
    pub(super) async fn record_events(&self) -> bool {
        for thread in 0..self.threads.count() {
            // What happened in a turn is in the queue at its end. A thread that stopped has told what it had to.
            if let Ok(turned) = self.threads.call(thread, |_| ()) {
                let _ = turned.await;
            }
        }
        self.write_events().await
    }

    /// Whether the catalogue has all that can be written down.
    async fn write_events(&self) -> bool {
        let _writing = self.events.writing.lock().await;
        self.tell_rot();
        let mut taken = self.events.take(|id| self.find_by_id(id).map(|(name, _)| name));
        let Some(catalogue) = &self.catalogue else {
            self.hooks.offer(&mut taken);
            return true;
        };
        for from in (0..taken.len()).step_by(BATCH) {
            let to = taken.len().min(from + BATCH);
            if let Err(error) = self.write_batch(catalogue, &mut taken[from..to]).await {
                let left = &mut taken[from..];
                self.hooks.offer(left);
                if self.events.put_back(left) {
                    tracing::warn!(%error, events = left.len(), "the catalogue takes no events: they wait");
                }
                return false;
            }
            self.events.taken_down();
        }
        true
    }

    /// Tells what was found damaged in the catalogue, which has it in the log already.
    fn tell_rot(&self) {
        for message in self.catalogue.iter().flat_map(Catalogue::take_rot) {
            self.tell_of_gateway(self.environment.wall(), (Severity::Warning, "catalogue_rotten"), message);
        }
    }

    /// Has the catalogue take events, which gives them their ids, and hooks be told.
    async fn write_batch(&self, catalogue: &Catalogue, batch: &mut [Told]) -> Result<()> {
        let events: Vec<Event> = batch.iter().map(|told| told.event.clone()).collect();
        let mut writing = std::pin::pin!(catalogue.record_events(&events));
        let first = loop {
            match tokio::time::timeout(HOOKS_PATIENCE, writing.as_mut()).await {
                Ok(written) => break written?,
                Err(_) => {
                    self.hooks.offer(batch);
                    self.offer_waiting();
                }
            }
        };
        for (id, told) in (first..).zip(batch.iter_mut()) {
            told.event.id = Some(id);
        }
        self.hooks.offer(batch);
        Ok(())
    }

    /// Has hooks be told what waits for a catalogue that is at something else, and leaves it there.
    fn offer_waiting(&self) {
        let mut waiting = self.events.take(|id| self.find_by_id(id).map(|(name, _)| name));
        self.hooks.offer(&mut waiting);
        if self.events.put_back(&waiting) {
            tracing::warn!(events = waiting.len(), "the catalogue is slow to take events: they wait");
        }
    }

    /// Tells how an opening of a group ended at that time, which it cannot tell itself. The log has it already.
    pub(super) fn tell_opening(&self, id: GroupId, time: WallNanos) {
        let Some((name, entry)) = self.find_by_id(id) else { return };
        let (kind, message) = match entry.failure {
            Some(failure) => ((Severity::Error, "opening_failed"), failure.event(&name)),
            None => ((Severity::Info, "opened"), "open again".to_owned()),
        };
        self.tell_event(id, &name, time, kind, message);
    }

    /// Tells what happens to a group right now.
    pub(super) fn tell_now(&self, id: GroupId, name: &Name, kind: (Severity, &str), message: String) {
        self.tell_event(id, name, self.environment.wall(), kind, message);
    }

    fn tell_event(&self, id: GroupId, name: &Name, time: WallNanos, kind: (Severity, &str), message: String) {
        let (severity, code) = kind;
        let (group, group_id, code) = (Some(name.clone()), Some(id), code.to_owned());
        self.events.push(Event { id: None, time, group, group_id, severity, code, message });
    }

    fn filter(&self, query: &EventQuery) -> Result<EventFilter> {
        let group = match &query.group {
            Some(name) => Some(self.find(name)?.1.id),
            None => None,
        };
        Ok(EventFilter { group, severity: query.severity, since: query.since })
    }

    /// Tells what happened to the gateway as a whole.
    pub(super) fn tell_of_gateway(&self, time: WallNanos, kind: (Severity, &str), message: String) {
        let (severity, code) = (kind.0, kind.1.to_owned());
        self.events.push(Event { id: None, time, group: None, group_id: None, severity, code, message });
    }

    pub(super) async fn events(&self, query: EventQuery) -> Result<Vec<Event>> {
        self.record_events().await;
        let filter = self.filter(&query)?;
        match &self.catalogue {
            Some(catalogue) => {
                catalogue.events(filter, query.limit.unwrap_or(EventQuery::LIMIT_DEFAULT)).await
            }
            None => Ok(Vec::new()),
        }
    }

    /// What came after an event, once there is some, or after `wait`.
    pub(super) async fn events_after(&self, query: EventQuery, wait: Duration) -> Result<EventPage> {
        let missing = || {
            let text = "the catalogue could not be opened, so that only the log has events: see there why";
            Error::new(ErrorKind::Unsupported, text)
        };
        let catalogue = self.catalogue.as_ref().ok_or_else(missing)?;
        let filter = self.filter(&query)?;
        let mut recorded = self.events.recorded.subscribe();
        self.record_events().await;
        let is_another = query.catalogue.as_ref().is_some_and(|asked| *asked != catalogue.id());
        let after = match query.after {
            Some(_) if is_another => 0,
            Some(after) => after,
            None => catalogue.newest_event().await?,
        };
        let count_max = query.limit.unwrap_or(EventQuery::PAGE_MAX).clamp(1, EventQuery::PAGE_MAX);
        let mut found = catalogue.events_after(after, filter, count_max).await?;
        if is_another {
            found.gap = Some(EventGap::BegunAnew);
        }
        let waiting = async {
            while found.events.is_empty() && found.gap.is_none() && !recorded.borrow_and_update().ended {
                if recorded.changed().await.is_err() {
                    break;
                }
                found = catalogue.events_after(found.next, filter, count_max).await?;
            }
            Ok::<(), Error>(())
        };
        if let Ok(looked) = tokio::time::timeout(wait, waiting).await {
            looked?;
        }
        Ok(EventPage { catalogue: catalogue.id(), events: found.events, next: found.next, gap: found.gap })
    }
}

fn severity(gravity: Gravity) -> Severity {
    match gravity {
        Gravity::Note => Severity::Info,
        Gravity::Warning => Severity::Warning,
        Gravity::Fault => Severity::Error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protect::events::GroupEvent;

    const KNOWN: GroupId = GroupId(1);
    const OPENING: GroupId = GroupId(2);

    fn told(queue: &EventQueue, id: GroupId, nanos: i64) {
        queue.tell(id, &TimedEvent { time: WallNanos(nanos), event: GroupEvent::Paused });
    }

    fn taken(queue: &EventQueue, known: &[GroupId]) -> Vec<(Option<GroupId>, i64)> {
        let name_of = |id| known.contains(&id).then(|| "erp".parse().unwrap());
        let events = queue.take(name_of).into_iter();
        events.map(|told| (told.event.group_id, told.event.time.0)).collect()
    }

    #[test]
    fn events_come_in_the_order_of_their_times_and_wait_for_their_groups_name() {
        let queue = EventQueue::default();
        told(&queue, KNOWN, 3);
        told(&queue, OPENING, 1);
        told(&queue, KNOWN, 2);
        assert_eq!(taken(&queue, &[KNOWN]), [(Some(KNOWN), 2), (Some(KNOWN), 3)]);
        told(&queue, KNOWN, 5);
        assert_eq!(taken(&queue, &[KNOWN, OPENING]), [(Some(OPENING), 1), (Some(KNOWN), 5)]);
        told(&queue, OPENING, 6);
        queue.forget(OPENING);
        assert_eq!(taken(&queue, &[KNOWN, OPENING]), []);
    }

    /// They used to go without a trace.
    #[test]
    fn what_waits_is_bounded_and_the_oldest_are_counted_as_lost() {
        let queue = EventQueue::default();
        let count = i64::try_from(WAITING_MAX).unwrap();
        (0..count).for_each(|time| told(&queue, OPENING, time));
        assert_eq!(taken(&queue, &[]), [], "none is lost yet, nor can one be written down");
        (count..count + 3).for_each(|time| told(&queue, OPENING, time));
        let lost = queue.take(|_| None);
        let [Told { event: lost, .. }] = &lost[..] else { panic!("one event: {lost:?}") };
        assert_eq!((lost.code.as_str(), lost.time, lost.group_id), ("events_lost", WallNanos(2), None));
        assert!(lost.message.starts_with("3 events were lost"), "{}", lost.message);
        let left = taken(&queue, &[OPENING]);
        assert_eq!((left.len(), left[0].1), (WAITING_MAX, 3));
        assert_eq!(taken(&queue, &[OPENING]), []);
    }

    /// A catalogue on a full disk takes none for a while: what it was given used to be lost.
    #[test]
    fn what_the_catalogue_does_not_take_waits_in_its_order() {
        let queue = EventQueue::default();
        (1..=4).for_each(|time| told(&queue, KNOWN, time));
        let batch = queue.take(|_| Some("erp".parse().unwrap()));
        told(&queue, KNOWN, 5);
        assert!(queue.put_back(&batch[1..]), "the first refusal is told");
        assert!(!queue.put_back(&[]), "and no other");
        queue.taken_down();
        assert!(queue.put_back(&[]));
        let times: Vec<i64> = taken(&queue, &[KNOWN]).into_iter().map(|(_, time)| time).collect();
        assert_eq!(times, [2, 3, 4, 5]);
    }

    #[tokio::test]
    async fn news_before_the_keeper_waits_are_news_and_an_end_is_final() {
        let queue = EventQueue::default();
        told(&queue, KNOWN, 1);
        assert!(queue.has_news().await);
        queue.named();
        assert!(queue.has_news().await);
        queue.end();
        assert!(!queue.has_news().await && !queue.has_news().await);
    }
}
