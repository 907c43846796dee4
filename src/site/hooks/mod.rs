//! Hooks: programs and web servers that are told of events. docs/events.md says what they may rely on.
//!
//! ```text
//!   the keeper ─▶ offer ─▶ queue of each hook ─▶ its task: try, wait, try again ─▶ program or web server
//!                                     catalogue ◀── how far it is ──┘
//! ```
//!
//! Each has a task of its own and one event at a time, in their order, so that none holds up another, or anything else. What one was
//! not told when the process ended it is told by the next, from the catalogue: at least once each, as long as that lives.
//!
//! Invariant: an event about a hook is not told to that hook, and that a hook could not be told one about another is no event.

mod exec;
mod queue;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use self::queue::{Queue, Turn, Waiting};
use super::events::{EventQueue, Told};
use crate::config::{Hook, HookAction};
use crate::control::catalogue::{Catalogue, EventFilter};
use crate::control::model::{Event, EventGap, EventQuery, HookStatus, Severity};
use crate::control::name::Name;
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};

/// Between the first try and the second; doubled with each.
const BACK_OFF: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// How long a hook waits for the catalogue to note how far it is.
const NOTED_WITHIN: Duration = Duration::from_secs(1);
/// Characters of a message that a variable holds: the kernel starts no program with one of 128 KiB.
const VARIABLE_MAX: usize = 4096;
/// How many events that are none of its own a hook lets pass until the catalogue is told.
const CURSOR_LAG_MAX: u64 = 1000;

/// Descriptors that one try takes: three pipes, the program's ends of them and what tells how its start went while it is started, its end.
const DESCRIPTORS_OF_TRY: usize = 9;

/// Descriptors that so many hooks take at most: each tells an event, while somebody tests it.
pub(crate) const fn descriptors_of_hooks(hooks: usize) -> usize {
    hooks * 2 * DESCRIPTORS_OF_TRY
}

/// The hooks of a gateway.
pub(super) struct Hooks {
    runners: Vec<Arc<Runner>>,
    stopping: watch::Sender<bool>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

/// One hook.
struct Runner {
    hook: Hook,
    site: Name,
    queue: Mutex<Queue>,
    news: Notify,
    events: Arc<EventQueue>,
    environment: Arc<dyn Environment + Send + Sync>,
    catalogue: Option<Catalogue>,
    /// Held by who tries it: so at most two programs of a hook run at once.
    testing: tokio::sync::Mutex<()>,
}

/// What a hook is told: the event, and by whom.
#[derive(Serialize)]
struct Message<'a> {
    site: &'a Name,
    hook: &'a Name,
    #[serde(flatten)]
    event: &'a Event,
}

impl Hooks {
    /// The hooks of a site, which tell nothing yet.
    pub fn new(
        hooks: &[Hook],
        site: &Name,
        events: &Arc<EventQueue>,
        environment: &Arc<dyn Environment + Send + Sync>,
        catalogue: Option<&Catalogue>,
    ) -> Hooks {
        let runner = |hook: &Hook| Runner {
            hook: hook.clone(),
            site: site.clone(),
            queue: Mutex::default(),
            news: Notify::new(),
            events: Arc::clone(events),
            environment: Arc::clone(environment),
            catalogue: catalogue.cloned(),
            testing: tokio::sync::Mutex::default(),
        };
        Hooks {
            runners: hooks.iter().map(|hook| Arc::new(runner(hook))).collect(),
            stopping: watch::Sender::new(false),
            tasks: tokio::sync::Mutex::default(),
        }
    }

    /// Begins to tell events: first those that the catalogue has from an earlier process. None of this one is in it yet.
    pub async fn start(&self) {
        let names: Vec<Name> = self.runners.iter().map(|runner| runner.hook.name.clone()).collect();
        if let Some(catalogue) = self.runners.first().and_then(|runner| runner.catalogue.as_ref())
            && let Err(error) = catalogue.keep_hook_cursors(&names).await
        {
            tracing::warn!(%error, "the catalogue does not forget hooks that are gone");
        }
        for runner in &self.runners {
            if let Err(error) = runner.resume().await {
                let hook = runner.hook.name.as_str();
                tracing::warn!(%error, hook, "what a hook was not told before the restart is not known");
            }
            let running = Arc::clone(runner).run(self.stopping.subscribe());
            self.tasks.lock().await.spawn(running);
        }
    }

    /// Has each hook wait for those events that are its own and that were not offered yet.
    pub fn offer(&self, events: &mut [Told]) {
        for runner in &self.runners {
            runner.offer(events);
        }
        for told in events {
            told.offered = true;
        }
    }

    /// No more events come: those that wait are told, each tried once, for so long. The rest is for the next process.
    pub async fn stop(&self, within: Duration) {
        self.stopping.send_replace(true);
        let mut tasks = self.tasks.lock().await;
        let ended = tokio::time::timeout(within, async { while tasks.join_next().await.is_some() {} });
        if ended.await.is_err() {
            tracing::warn!("not every hook was told all in time: the next start goes on");
        }
        // With them end the programs that they run.
        tasks.shutdown().await;
        futures::future::join_all(self.runners.iter().map(|runner| runner.note_cursor())).await;
    }

    /// How each stands.
    pub fn status(&self) -> Vec<HookStatus> {
        self.runners.iter().map(|runner| runner.status()).collect()
    }

    /// Has a hook told an event that is only for it, once.
    pub async fn test(&self, name: &Name) -> Result<HookStatus> {
        let found = self.runners.iter().find(|runner| runner.hook.name == *name);
        let missing =
            || Error::new(ErrorKind::NotFound, format!("no hook {name}: the configuration has its table"));
        let runner = found.ok_or_else(missing)?;
        let at_work =
            |_| Error::new(ErrorKind::AlreadyExists, format!("hook {name} is being tested: try again then"));
        let _testing = runner.testing.try_lock().map_err(at_work)?;
        let event = Event {
            id: None,
            time: runner.environment.wall(),
            group: None,
            group_id: None,
            severity: Severity::Info,
            code: "hook_test".to_owned(),
            message: format!("a test of hook {name}"),
        };
        match runner.attempt(&event).await {
            Ok(()) => Ok(runner.status()),
            Err(why) => Err(Error::new(ErrorKind::Io, format!("hook {name}: {why}"))),
        }
    }
}

impl Runner {
    fn wants(&self, event: &Event) -> bool {
        let Hook { on, severity, .. } = &self.hook;
        (on.is_empty() || on.contains(&event.code)) && event.severity >= *severity
    }

    fn offer(&self, events: &[Told]) {
        let mut turns = Vec::new();
        {
            let mut queue = self.queue.lock();
            for told in events {
                let is_own = told.about.as_ref() == Some(&self.hook.name);
                if told.offered || is_own || !self.wants(&told.event) {
                    queue.see(told.event.id);
                } else {
                    let is_about_hook = told.about.is_some();
                    turns.extend(queue.push(Waiting { event: told.event.clone(), is_about_hook }));
                }
            }
        }
        self.news.notify_one();
        turns.into_iter().for_each(|turn| self.say(turn));
    }

    /// Takes up what the process before did not tell.
    async fn resume(&self) -> Result<()> {
        let Some(catalogue) = &self.catalogue else { return Ok(()) };
        let newest = catalogue.newest_event().await?;
        let known = catalogue.hook_cursor(&self.hook.name).await?;
        let mut cursor = known.unwrap_or(newest).min(newest);
        self.queue.lock().behind(cursor);
        if known.is_none() {
            return catalogue.put_hook_cursor(&self.hook.name, newest).await;
        }
        while cursor < newest {
            let filter = EventFilter { severity: Some(self.hook.severity), ..EventFilter::default() };
            let found = catalogue.events_after(cursor, filter, EventQuery::PAGE_MAX).await?;
            if let Some(EventGap::Pruned(gone)) = found.gap {
                let hook = self.hook.name.as_str();
                tracing::warn!(hook, gone, "events went before a hook was told, or not told, of them");
            }
            // Of which hook those are is not known any more.
            let is_of_group = |event: &Event| !event.code.starts_with("hook_");
            let wanted = found.events.into_iter().filter(|event| is_of_group(event) && self.wants(event));
            let mut queue = self.queue.lock();
            let turns: Vec<Turn> =
                wanted.filter_map(|event| queue.push(Waiting { event, is_about_hook: false })).collect();
            queue.see(Some(found.next));
            drop(queue);
            turns.into_iter().for_each(|turn| self.say(turn));
            cursor = found.next;
        }
        Ok(())
    }

    async fn run(self: Arc<Self>, mut stopping: watch::Receiver<bool>) {
        let mut noted = self.queue.lock().cursor();
        loop {
            let next = self.queue.lock().take();
            let Some(event) = next else {
                let cursor = self.queue.lock().cursor();
                if cursor >= noted + CURSOR_LAG_MAX {
                    noted = self.note_cursor().await;
                }
                if *stopping.borrow() {
                    return;
                }
                tokio::select! {
                    () = self.news.notified() => {}
                    _ = stopping.wait_for(|stopping| *stopping) => {}
                }
                continue;
            };
            let turn = match self.tell(&event.event, &mut stopping).await {
                Ok(()) => self.queue.lock().tell(&event),
                // It waits for the next process: the cursor stays before it.
                Err(_) if *stopping.borrow() => return,
                Err(why) => self.queue.lock().give_up(&event, why),
            };
            noted = self.note_cursor().await;
            turn.into_iter().for_each(|turn| self.say(turn));
        }
    }

    /// Tells an event, as often as it takes and is allowed.
    async fn tell(
        &self,
        event: &Event,
        stopping: &mut watch::Receiver<bool>,
    ) -> std::result::Result<(), String> {
        let mut back_off = BACK_OFF;
        let mut retries = self.hook.retries;
        loop {
            let why = match self.attempt(event).await {
                Ok(()) => return Ok(()),
                Err(why) => why,
            };
            let (hook, code) = (self.hook.name.as_str(), event.code.as_str());
            tracing::warn!(hook, id = event.id, code, retries, "a hook could not be told an event: {why}");
            if retries == 0 || *stopping.borrow() {
                return Err(why);
            }
            self.queue.lock().failure = Some(why.clone());
            tokio::select! {
                () = tokio::time::sleep(back_off) => {}
                _ = stopping.wait_for(|stopping| *stopping) => return Err(why),
            }
            retries -= 1;
            back_off = (back_off * 2).min(BACK_OFF_MAX);
        }
    }

    /// Tries once.
    async fn attempt(&self, event: &Event) -> std::result::Result<(), String> {
        let message = Message { site: &self.site, hook: &self.hook.name, event };
        let mut message = serde_json::to_vec(&message).expect("our values have string keys");
        // A line, so that a program may append it to a file.
        message.push(b'\n');
        match &self.hook.action {
            HookAction::Exec(program, arguments) => {
                let variables = self.variables(event);
                exec::run(
                    self.hook.name.as_str(),
                    program,
                    arguments,
                    &variables,
                    &message,
                    self.hook.timeout,
                )
                .await
            }
            HookAction::Webhook(address) => webhook::post(address, message, self.hook.timeout).await,
        }
    }

    fn variables(&self, event: &Event) -> Vec<(&'static str, String)> {
        let text = |value: Option<String>| value.unwrap_or_default();
        vec![
            ("AFTERIMAGE_SITE", self.site.to_string()),
            ("AFTERIMAGE_HOOK", self.hook.name.to_string()),
            ("AFTERIMAGE_EVENT_ID", text(event.id.map(|id| id.to_string()))),
            ("AFTERIMAGE_EVENT", event.code.clone()),
            ("AFTERIMAGE_SEVERITY", event.severity.word().to_owned()),
            ("AFTERIMAGE_GROUP", text(event.group.as_ref().map(Name::to_string))),
            ("AFTERIMAGE_MESSAGE", event.message.chars().take(VARIABLE_MAX).collect()),
        ]
    }

    /// Has the catalogue know how far it is; gives how far that is.
    async fn note_cursor(&self) -> u64 {
        let cursor = self.queue.lock().cursor();
        let Some(catalogue) = &self.catalogue else { return cursor };
        let noting = catalogue.put_hook_cursor(&self.hook.name, cursor);
        let hook = self.hook.name.as_str();
        match tokio::time::timeout(NOTED_WITHIN, noting).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, hook, "a restart will tell a hook events again"),
            Err(_) => tracing::debug!(hook, "the catalogue is slow: a restart may tell a hook events again"),
        }
        cursor
    }

    fn say(&self, turn: Turn) {
        let (name, time) = (&self.hook.name, self.environment.wall());
        let why = self.queue.lock().failure.clone().unwrap_or_default();
        let (kind, text) = match turn {
            Turn::Fails => {
                let text = format!(
                    "hook {name} is not told events any longer: {why}; mend it, and try it by `hooks test {name}`"
                );
                tracing::warn!(hook = %name, "{text}");
                ((Severity::Warning, "hook_failed"), text)
            }
            Turn::Works(lost) => {
                let events = crate::counted::counted(lost, "event");
                let text = format!("hook {name} works again; {events} it was not told");
                tracing::info!(hook = %name, "{text}");
                ((Severity::Info, "hook_works"), text)
            }
        };
        self.events.tell_of_hook(name, time, kind, text);
    }

    fn status(&self) -> HookStatus {
        let queue = self.queue.lock();
        HookStatus {
            name: self.hook.name.clone(),
            action: match &self.hook.action {
                HookAction::Exec(program, arguments) => {
                    let words =
                        std::iter::once(program.display().to_string()).chain(arguments.iter().cloned());
                    words.collect::<Vec<_>>().join(" ")
                }
                HookAction::Webhook(address) => address.url.clone(),
            },
            told: queue.told,
            lost: queue.lost,
            waiting: queue.waiting() as u64,
            failure: queue.failure.clone(),
        }
    }
}
