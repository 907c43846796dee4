//! Events, jobs, the audit trail and hooks as text.

use super::super::output::table;
use super::{UNKNOWN, duration, size};
use crate::control::model::{
    Asker, AuditOutcome, AuditRecord, Event, HookStatus, Job, JobKind, JobState, Severity,
};
use crate::control::wire::rfc3339;

pub fn events(events: &[Event]) -> String {
    let rows = events.iter().map(|event| {
        let severity = severity(event.severity).to_owned();
        [rfc3339(event.time), group(event), severity, event.code.clone(), event.message.clone()]
    });
    table(["TIME", "GROUP", "SEVERITY", "EVENT", "MESSAGE"], rows)
}

/// One event, on a line of its own.
pub fn event_line(event: &Event) -> String {
    let group = Some(group(event)).filter(|group| !group.is_empty()).unwrap_or_else(|| UNKNOWN.to_owned());
    let (time, severity) = (rfc3339(event.time), severity(event.severity));
    format!("{time} {severity:<7} {group} {}: {}\n", event.code, event.message)
}

fn group(event: &Event) -> String {
    let name = event.group.as_ref().map(ToString::to_string);
    name.or(event.group_id.map(|group| group.to_string())).unwrap_or_default()
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "WARNING",
        Severity::Error => "ERROR",
    }
}

pub fn jobs(jobs: &[Job]) -> String {
    let rows = jobs.iter().map(|job| {
        [
            job.id.clone(),
            kind(job.kind).to_owned(),
            job.what.clone(),
            state(&job.state),
            rfc3339(job.ended.unwrap_or(job.started)),
            progress(job),
            asked_by(job.asked_by.as_ref()),
        ]
    });
    table(["ID", "KIND", "SUBJECT", "STATE", "SINCE", "PROGRESS", "ASKED BY"], rows)
}

pub fn job(job: &Job) -> String {
    let ended = job.ended.map_or_else(String::new, |ended| format!("ended {}\n", rfc3339(ended)));
    let failure = match &job.state {
        JobState::Failed(error) => format!("error {}\n", error.message),
        _ => String::new(),
    };
    format!(
        "job {}: {} {}\nstate {}\nasked by {}\nbegun {}\n{ended}progress {}\n{failure}",
        job.id,
        kind(job.kind),
        job.what,
        state(&job.state),
        asked_by(job.asked_by.as_ref()),
        rfc3339(job.started),
        progress(job),
    )
}

fn kind(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Import => "import",
        JobKind::Restore => "restore",
        JobKind::Verify => "verify",
        JobKind::Adopt => "adopt",
        JobKind::Repair => "repair",
    }
}

pub fn state(state: &JobState) -> String {
    let word = match state {
        JobState::Running => "running",
        JobState::Done(_) => "done",
        JobState::Failed(_) => "FAILED",
        JobState::Cancelled => "cancelled",
        JobState::CutOff => "CUT OFF by a restart",
    };
    word.to_owned()
}

fn progress(job: &Job) -> String {
    // What the catalogue has of one that was cut off is how it began.
    match (&job.state, job.bytes_total) {
        (JobState::CutOff, _) => UNKNOWN.to_owned(),
        (_, Some(total)) => format!("{} of {}", size(job.bytes_done), size(total)),
        (_, None) => size(job.bytes_done),
    }
}

fn asked_by(asker: Option<&Asker>) -> String {
    asker.map_or_else(|| UNKNOWN.to_owned(), Asker::to_string)
}

pub fn audit(records: &[AuditRecord]) -> String {
    let rows = records.iter().map(|record| {
        let outcome = match (&record.outcome, &record.job) {
            (AuditOutcome::Failed(error), _) => format!("FAILED: {}", error.message),
            (AuditOutcome::Done, Some(job)) => format!("job {job}"),
            (AuditOutcome::Done, None) => "ok".to_owned(),
            (AuditOutcome::AtWork, _) => "at work".to_owned(),
            (AuditOutcome::CutOff, _) => "CUT OFF: not known".to_owned(),
        };
        [
            rfc3339(record.time),
            asked_by(record.asked_by.as_ref()),
            record.verb.clone(),
            record.subject.clone().unwrap_or_default(),
            record.duration_ms.map_or_else(|| UNKNOWN.to_owned(), duration),
            outcome,
        ]
    });
    table(["TIME", "ASKED BY", "VERB", "SUBJECT", "TOOK", "OUTCOME"], rows)
}

pub fn hooks(hooks: &[HookStatus]) -> String {
    let rows = hooks.iter().map(|hook| {
        [
            hook.name.to_string(),
            hook.told.to_string(),
            hook.lost.to_string(),
            hook.waiting.to_string(),
            hook.failure.as_ref().map_or_else(|| "works".to_owned(), |why| format!("FAILS: {why}")),
            hook.action.clone(),
        ]
    });
    table(["HOOK", "TOLD", "LOST", "WAITING", "STATE", "ACTION"], rows)
}
