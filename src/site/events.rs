//! Keeps what happened to groups, for people to look back at.
//!
//! ```text
//!   group ─▶ member ─▶ queue ─▶ the keeper ─▶ catalogue
//!   gateway ───────────▲
//! ```
//!
//! An event bears the time at which it happened, and is in the queue by the end of the data thread's turn in which it did. The
//! keeper writes down what is there as soon as something is; what a group tells that has no name yet, since it is being opened,
//! waits until it has one. The log has each event at once.
//!
//! Invariant: an orderly stop loses none: it ends the keeper between two writes, and writes down the rest once all groups are
//! stopped. A process that is killed loses what the catalogue had not taken yet: milliseconds, unless it was slow.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use tokio::sync::{Mutex, Notify};

use crate::control::model::{Event, EventQuery, Severity};
use crate::control::name::Name;
use crate::error::Result;
use crate::protect::events::{Gravity, TimedEvent};
use crate::site::gateway::{Inner, cached};
use crate::units::{GroupId, WallNanos};

/// Most events that wait for the catalogue; the oldest go first.
const WAITING_MAX: usize = 1024;

/// What happened and is not in the catalogue yet.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    waiting: parking_lot::Mutex<Waiting>,
    news: Notify,
    /// Held by who writes them down: events are taken off the queue before the catalogue has them.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    ended: bool,
}

impl EventQueue {
    /// Takes what a group tells.
    pub(super) fn tell(&self, id: GroupId, told: &TimedEvent) {
        let TimedEvent { time, event } = told;
        self.push(Event {
            time: *time,
            group: None,
            group_id: Some(id),
            severity: severity(event.gravity()),
            code: event.code().to_owned(),
            message: event.text(),
        });
    }

    fn push(&self, event: Event) {
        let mut waiting = self.waiting.lock();
        if waiting.events.len() == WAITING_MAX {
            waiting.events.pop_front();
        }
        waiting.events.push_back(event);
        drop(waiting);
        self.news.notify_one();
    }

    /// A group has got its name: what waits for that is news.
    pub(super) fn named(&self) {
        self.news.notify_one();
    }

    /// One that is gone leaves no events behind.
    pub(super) fn forget(&self, id: GroupId) {
        self.waiting.lock().events.retain(|event| event.group_id != Some(id));
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
    fn take(&self, name_of: impl Fn(GroupId) -> Option<Name>) -> Vec<Event> {
        let mut waiting = self.waiting.lock();
        let (mut taken, mut left) = (Vec::new(), VecDeque::new());
        for mut event in waiting.events.drain(..) {
            event.group = event.group.or_else(|| event.group_id.and_then(&name_of));
            match event.group {
                Some(_) => taken.push(event),
                None => left.push_back(event),
            }
        }
        waiting.events = left;
        taken.sort_by_key(|event| event.time);
        taken
    }
}

/// Writes down what happens, until the queue ends or the gateway is gone.
pub(super) async fn keep(gateway: Weak<Inner>, queue: Arc<EventQueue>) {
    while queue.has_news().await {
        let Some(inner) = gateway.upgrade() else { return };
        inner.write_events().await;
    }
}

impl Inner {
    /// Has all that happened by now in the catalogue.
    pub(super) async fn record_events(&self) {
        for thread in 0..self.threads.count() {
            // What happened in a turn is in the queue at its end. A thread that stopped has told what it had to.
            if let Ok(turned) = self.threads.call(thread, |_| ()) {
                let _ = turned.await;
            }
        }
        self.write_events().await;
    }

    async fn write_events(&self) {
        let _writing = self.events.writing.lock().await;
        for event in self.events.take(|id| self.find_by_id(id).map(|(name, _)| name)) {
            cached(self.catalogue.as_ref().map(|catalogue| catalogue.record_event(&event))).await;
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
        self.events.push(Event { time, group, group_id, severity, code, message });
    }

    pub(super) async fn events(&self, query: EventQuery) -> Result<Vec<Event>> {
        self.record_events().await;
        let id = match &query.group {
            Some(name) => Some(self.find(name)?.1.id),
            None => None,
        };
        match &self.catalogue {
            Some(catalogue) => catalogue.events(id, query.limit.unwrap_or(EventQuery::LIMIT_DEFAULT)).await,
            None => Ok(Vec::new()),
        }
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
        events.map(|event| (event.group_id, event.time.0)).collect()
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

    #[test]
    fn what_waits_is_bounded_and_the_oldest_goes_first() {
        let queue = EventQueue::default();
        let count = i64::try_from(WAITING_MAX).unwrap() + 1;
        (0..count).for_each(|time| told(&queue, OPENING, time));
        let left = taken(&queue, &[OPENING]);
        assert_eq!((left.len(), left[0].1), (WAITING_MAX, 1));
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
