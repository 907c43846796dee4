//! `events`, `jobs`, `job`, `audit`, `hooks`: what happened, what is at work, who asked for what.

use std::time::Duration;

use super::arguments::{EventsArguments, HooksCommand, JobCommand};
use super::client::Client;
use super::failure::Failure;
use super::interrupt::Interrupts;
use super::output::{Output, complain, print};
use super::render::history as render;
use crate::control::model::{AuditRecord, Event, EventGap, EventPage, HookStatus, Job, JobState, Severity};
use crate::control::wire::rfc3339;
use crate::error::ErrorKind;

/// How long one question waits for an event.
const WAIT_MS: u64 = 20_000;
/// Between two questions of a gateway that does not answer.
const AGAIN: Duration = Duration::from_millis(500);

/// A gateway that ends may hang up some times; one that never answers otherwise is another program.
const HANG_UPS_MAX: u32 = 5;

/// `events`
pub async fn events(arguments: &EventsArguments, client: &Client, output: Output) -> Result<(), Failure> {
    let mut filter = String::new();
    filter.extend(arguments.group.as_ref().map(|group| format!("&group={group}")));
    filter
        .extend(arguments.severity.map(|severity| format!("&severity={}", Severity::from(severity).word())));
    filter.extend(arguments.since.map(|since| format!("&since={}", rfc3339(since))));
    if !arguments.follow {
        let events: Vec<Event> = client.get(&format!("/v1/events?limit={}{filter}", arguments.limit)).await?;
        return output.show(&events, |events| render::events(events));
    }
    let mut interrupts = Interrupts::listen()?;
    let from = if arguments.since.is_some() { Some(0) } else { None };
    tokio::select! {
        ended = follow(client, output, &filter, from) => ended,
        // That is how it ends.
        () = interrupts.next() => Ok(()),
    }
}

/// Prints what comes after an event, or from now on, for ever.
async fn follow(client: &Client, output: Output, filter: &str, from: Option<u64>) -> Result<(), Failure> {
    let after = from.map(|id| format!("&after={id}")).unwrap_or_default();
    // The first question is answered at once, and says where we are.
    let mut page: EventPage = client.get(&format!("/v1/events?wait_ms=0{filter}{after}")).await?;
    let mut failures = 0;
    loop {
        show(output, &page)?;
        let EventPage { catalogue, next, .. } = &page;
        let route = format!("/v1/events?wait_ms={WAIT_MS}{filter}&after={next}&catalogue={catalogue}");
        page = loop {
            match client.get(&route).await {
                Ok(page) => break page,
                Err(failure) => again(failure, &mut failures)?,
            }
            tokio::time::sleep(AGAIN).await;
        };
        if failures > 0 {
            complain("note: the gateway answers again\n");
            failures = 0;
        }
    }
}

/// Whether a question that failed is asked again: while there is no gateway, but not of one that answers something else.
fn again(failure: Failure, failures: &mut u32) -> Result<(), Failure> {
    let may_return = match &failure {
        Failure::Unreachable { .. } => true,
        Failure::Failed(error) if error.kind() == ErrorKind::Protocol => *failures < HANG_UPS_MAX,
        Failure::Failed(error) => matches!(error.kind(), ErrorKind::Shutdown | ErrorKind::NoSpace),
        _ => false,
    };
    if !may_return {
        return Err(failure);
    }
    if *failures == 0 {
        complain("note: the gateway does not answer; waiting for it\n");
    }
    *failures += 1;
    Ok(())
}

fn show(output: Output, page: &EventPage) -> Result<(), Failure> {
    match page.gap {
        None => {}
        Some(EventGap::Pruned(gone)) => {
            complain(&format!("warning: {gone} events went before they were asked for; the log has them\n"));
        }
        Some(EventGap::BegunAnew) => {
            complain(
                "warning: the catalogue was begun anew: earlier events are in the log alone, ids begin again\n",
            );
        }
        Some(EventGap::CutBack) => {
            complain(
                "warning: the catalogue lost its newest events: the log has them, ids are given again\n",
            );
        }
    }
    for event in &page.events {
        let line = match output.json {
            true => serde_json::to_string(event).expect("our values have string keys") + "\n",
            false => render::event_line(event),
        };
        print(&line)?;
    }
    Ok(())
}

/// `jobs`
pub async fn jobs(client: &Client, output: Output) -> Result<(), Failure> {
    let jobs: Vec<Job> = client.get("/v1/jobs").await?;
    output.show(&jobs, |jobs| render::jobs(jobs))
}

/// `job show|cancel`
pub async fn job(command: JobCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        JobCommand::Show { id } => {
            let job: Job = client.get(&format!("/v1/jobs/{id}")).await?;
            output.show(&job, render::job)
        }
        JobCommand::Cancel { id } => {
            let job: Job = client.delete(&format!("/v1/jobs/{id}")).await?;
            output.show(&job, |job| match job.state {
                JobState::Running => {
                    format!("job {} is asked to give up; `job show` says when it has\n", job.id)
                }
                _ => format!("job {} had ended before: {}\n", job.id, render::state(&job.state)),
            })
        }
    }
}

/// `audit`
pub async fn audit(limit: u32, client: &Client, output: Output) -> Result<(), Failure> {
    let records: Vec<AuditRecord> = client.get(&format!("/v1/audit?limit={limit}")).await?;
    output.show(&records, |records| render::audit(records))
}

/// `hooks list|test`
pub async fn hooks(command: HooksCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        HooksCommand::List => {
            let hooks: Vec<HookStatus> = client.get("/v1/hooks").await?;
            output.show(&hooks, |hooks| render::hooks(hooks))
        }
        HooksCommand::Test { name } => {
            let route = format!("/v1/hooks/{name}/test");
            let hook: HookStatus = client.post(&route, &serde_json::json!({})).await?;
            output.show(&hook, |hook| format!("hook {} was told: {}\n", hook.name, hook.action))
        }
    }
}
