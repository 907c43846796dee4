//! How many events there were of each kind since the process began to serve: for metrics, which count what nobody looked at in time.
//!
//! Invariant: counts only grow, and each event counts once, when it happens, whatever the catalogue does with it.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::control::model::{Event, EventCount, Severity};

/// Counts by code and severity: as many as there are kinds of events.
#[derive(Debug, Default)]
pub(super) struct EventCounts(Mutex<BTreeMap<String, BTreeMap<Severity, u64>>>);

impl EventCounts {
    /// One more.
    pub(super) fn add(&self, event: &Event) {
        let mut counts = self.0.lock();
        if !counts.contains_key(&event.code) {
            counts.insert(event.code.clone(), BTreeMap::new());
        }
        if let Some(of_code) = counts.get_mut(&event.code) {
            *of_code.entry(event.severity).or_default() += 1;
        }
    }

    /// Those that there were, by code.
    pub(super) fn read(&self) -> Vec<EventCount> {
        let counts = self.0.lock();
        let kinds = counts.iter().flat_map(|(code, of_code)| of_code.iter().map(move |count| (code, count)));
        let count = |(code, (severity, events)): (&String, (&Severity, &u64))| EventCount {
            code: code.clone(),
            severity: *severity,
            events: *events,
        };
        kinds.map(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::WallNanos;

    #[test]
    fn an_event_counts_by_its_code_and_its_severity() {
        let counts = EventCounts::default();
        for (code, severity) in [
            ("condition", Severity::Error),
            ("paused", Severity::Info),
            ("condition", Severity::Info),
            ("condition", Severity::Error),
        ] {
            let (code, message) = (code.to_owned(), String::new());
            counts.add(&Event {
                id: None,
                time: WallNanos(0),
                group: None,
                group_id: None,
                severity,
                code,
                message,
            });
        }
        let read = counts.read();
        let read: Vec<_> =
            read.iter().map(|count| (count.code.as_str(), count.severity, count.events)).collect();
        let expected = [
            ("condition", Severity::Info, 1),
            ("condition", Severity::Error, 2),
            ("paused", Severity::Info, 1),
        ];
        assert_eq!(read, expected);
    }
}
