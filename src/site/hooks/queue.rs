//! What waits to be told to one hook, bounded: the oldest go.
//!
//! Invariant: [`Queue::cursor`] is never beyond an event that the hook was not told and that is not given up, so that who goes on
//! behind it after a restart misses none.

use std::collections::VecDeque;

use crate::control::model::Event;

/// Most events that wait for one hook.
pub(super) const WAITING_MAX: usize = 1000;

/// An event that waits.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub event: Event,
    /// Whether it is about a hook: that it cannot be told is no event, or two hooks would keep each other busy for ever.
    pub is_about_hook: bool,
}

/// What waits, and what became of the rest.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
    /// The newest event that was looked at, whether it waits, or is none of the hook's.
    seen: u64,
    /// The newest that needs not be looked at again: with all before it, it was told, given up, or none of the hook's.
    done: u64,
    /// Whether one is being told.
    at_work: bool,
    pub told: u64,
    pub lost: u64,
    /// Those of `lost` since it last worked, if it does not.
    pub failing: Option<u64>,
    /// Why it failed last.
    pub failure: Option<String>,
}

/// What changed of how a hook stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It does not work any longer.
    Fails,
    /// It works again; so many it was not told.
    Works(u64),
}

impl Queue {
    /// One that goes on behind an event.
    pub fn behind(&mut self, cursor: u64) {
        (self.seen, self.done) = (self.seen.max(cursor), self.done.max(cursor));
    }

    /// Takes an event in; whether the hook fails from now on, since the oldest had to go.
    pub fn push(&mut self, event: Waiting) -> Option<Turn> {
        let id = event.event.id;
        self.waiting.push_back(event);
        self.see(id);
        if self.waiting.len() <= WAITING_MAX {
            return None;
        }
        let gone = self.waiting.pop_front()?;
        self.finish(gone.event.id);
        let is_news = !gone.is_about_hook;
        self.lose(format!("more than {WAITING_MAX} events waited, and the oldest went"), is_news)
    }

    /// Notes an event that is none of the hook's, or waits already.
    pub fn see(&mut self, id: Option<u64>) {
        self.seen = self.seen.max(id.unwrap_or(0));
        self.settle();
    }

    /// Where nothing waits, all that was seen is done.
    fn settle(&mut self) {
        if self.waiting() == 0 {
            self.done = self.done.max(self.seen);
        }
    }

    /// The next one to be told.
    pub fn take(&mut self) -> Option<Waiting> {
        let next = self.waiting.pop_front();
        self.at_work = next.is_some();
        next
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len() + usize::from(self.at_work)
    }

    fn finish(&mut self, id: Option<u64>) {
        self.done = self.done.max(id.unwrap_or(0));
    }

    /// The hook was told the event that was taken.
    pub fn tell(&mut self, event: &Waiting) -> Option<Turn> {
        self.at_work = false;
        self.finish(event.event.id);
        self.settle();
        self.told += 1;
        self.failure = None;
        // While events go unseen behind this one it does not work yet.
        if self.waiting.len() == WAITING_MAX {
            return None;
        }
        self.failing.take().map(Turn::Works).filter(|_| !event.is_about_hook)
    }

    /// The event that was taken is given up.
    pub fn give_up(&mut self, event: &Waiting, why: String) -> Option<Turn> {
        self.at_work = false;
        self.finish(event.event.id);
        self.settle();
        self.lose(why, !event.is_about_hook)
    }

    fn lose(&mut self, why: String, is_news: bool) -> Option<Turn> {
        self.lost += 1;
        self.failure = Some(why);
        if !is_news && self.failing.is_none() {
            return None;
        }
        let is_first = self.failing.is_none();
        self.failing = Some(self.failing.unwrap_or(0) + 1);
        is_first.then_some(Turn::Fails)
    }

    /// Behind which event to go on after a restart.
    pub fn cursor(&self) -> u64 {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::model::Severity;
    use crate::units::WallNanos;

    fn event(id: u64, is_about_hook: bool) -> Waiting {
        let event = Event {
            id: Some(id),
            time: WallNanos(1),
            group: None,
            group_id: None,
            severity: Severity::Info,
            code: "paused".to_owned(),
            message: "paused".to_owned(),
        };
        Waiting { event, is_about_hook }
    }

    #[test]
    fn the_cursor_is_never_beyond_what_waits() {
        let mut queue = Queue::default();
        queue.behind(4);
        queue.see(Some(5));
        assert_eq!(queue.cursor(), 5, "nothing waits");
        queue.push(event(6, false));
        queue.see(Some(7));
        assert_eq!((queue.cursor(), queue.waiting()), (5, 1), "one waits");
        let taken = queue.take().unwrap();
        assert_eq!((queue.cursor(), queue.waiting()), (5, 1), "and is being told");
        assert_eq!(queue.tell(&taken), None);
        assert_eq!((queue.cursor(), queue.waiting(), queue.told), (7, 0, 1));
    }

    #[test]
    fn the_oldest_go_and_are_counted_until_it_works_again() {
        let mut queue = Queue::default();
        for id in 1..=WAITING_MAX as u64 {
            assert_eq!(queue.push(event(id, false)), None);
        }
        assert_eq!(queue.push(event(5000, false)), Some(Turn::Fails));
        assert_eq!(queue.push(event(5001, false)), None, "it is told once");
        let taken = queue.take().unwrap();
        assert_eq!((taken.event.id, queue.lost), (Some(3), 2));
        assert_eq!(queue.tell(&taken), Some(Turn::Works(2)));
        assert_eq!(queue.push(event(5002, false)), None);
        assert_eq!(queue.push(event(5003, false)), Some(Turn::Fails), "and again");
    }

    #[test]
    fn what_fails_is_told_once_and_never_for_what_is_about_a_hook() {
        let mut queue = Queue::default();
        let next = |queue: &mut Queue, about| {
            queue.push(event(1, about));
            queue.take().unwrap()
        };
        let why = || "no".to_owned();
        let taken = next(&mut queue, true);
        assert_eq!(queue.give_up(&taken, why()), None);
        let taken = next(&mut queue, true);
        assert_eq!((queue.tell(&taken), queue.lost), (None, 1));
        let taken = next(&mut queue, false);
        assert_eq!(queue.give_up(&taken, why()), Some(Turn::Fails));
        let taken = next(&mut queue, false);
        assert_eq!(queue.give_up(&taken, why()), None);
        let taken = next(&mut queue, false);
        assert_eq!(queue.tell(&taken), Some(Turn::Works(2)));
    }
}
