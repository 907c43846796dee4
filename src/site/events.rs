//! Keeps what groups tell: asked of every data thread once a second, for all its groups at once, and put into the catalogue. What a
//! group cannot tell, that it could not be opened, is kept at once.
//!
//! The log has each event at once; a process that dies takes those of its last second with it.

use std::sync::Weak;
use std::time::Duration;

use crate::control::model::{Event, EventQuery, Severity};
use crate::control::name::Name;
use crate::error::Result;
use crate::protect::events::{Gravity, GroupEvent};
use crate::site::gateway::{Inner, cached};
use crate::site::host::Host;
use crate::site::member::Member;
use crate::units::GroupId;

const PERIOD: Duration = Duration::from_secs(1);

/// Runs until the gateway is gone.
pub(super) async fn keep(gateway: Weak<Inner>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(inner) = gateway.upgrade() else { return };
        inner.keep_events().await;
    }
}

impl Inner {
    /// Takes what every open group has told since the last time.
    pub(super) async fn keep_events(&self) {
        let threads = 0..self.threads.count();
        let asked: Vec<_> = threads.map(|thread| self.threads.call(thread, take_events)).collect();
        for told in asked {
            // A thread that stopped has told what it had to.
            let Ok(told) = told else { continue };
            for (id, event) in told.await.unwrap_or_default() {
                // One that is being removed leaves no events behind.
                let Some((name, _)) = self.find_by_id(id) else { continue };
                let severity = severity(event.gravity());
                self.keep_event(id, &name, (severity, event.code()), event.text()).await;
            }
        }
    }

    /// Tells how an opening of a group ended, which it cannot tell itself. The log has it already.
    pub(super) async fn tell_opening(&self, id: GroupId) {
        let Some((name, entry)) = self.find_by_id(id) else { return };
        match entry.failure {
            Some(failure) => {
                self.keep_event(id, &name, (Severity::Error, "opening_failed"), failure.event(&name)).await;
            }
            None => self.keep_event(id, &name, (Severity::Info, "opened"), "open again".to_owned()).await,
        }
    }

    pub(super) async fn keep_event(&self, id: GroupId, name: &Name, kind: (Severity, &str), message: String) {
        let (severity, code) = kind;
        let event = Event {
            time: self.environment.wall(),
            group: Some(id),
            name: Some(name.clone()),
            severity,
            code: code.to_owned(),
            message,
        };
        cached(self.catalogue.as_ref().map(|catalogue| catalogue.record_event(&event))).await;
    }

    pub(super) async fn events(&self, query: EventQuery) -> Result<Vec<Event>> {
        self.keep_events().await;
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

/// What the open groups of a data thread have to tell.
fn take_events(host: &mut Host<Member>) -> Vec<(GroupId, GroupEvent)> {
    let told = host.volumes().flat_map(|(id, member)| {
        // One that is not open has nothing to tell.
        let events = member.group().map(|group| group.take_events()).unwrap_or_default();
        events.into_iter().map(move |event| (id, event))
    });
    told.collect()
}

fn severity(gravity: Gravity) -> Severity {
    match gravity {
        Gravity::Note => Severity::Info,
        Gravity::Warning => Severity::Warning,
        Gravity::Fault => Severity::Error,
    }
}
