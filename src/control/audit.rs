//! The audit trail: who asked for a change, when, for what, and how that went. Not who may: that is the socket's permissions.
//!
//! ```text
//!   request ─▶ its body ─▶ catalogue, synced: at work ─▶ handler (job, error are noted) ─▶ log ─▶ catalogue, synced: outcome ─▶ answer
//! ```
//!
//! Invariant: a request that is not only to read is in the catalogue before anything is done of it, and in the log and the catalogue
//! with its outcome before it is answered, also if its client left meanwhile; but no verb fails, or waits for longer than two seconds
//! each time, because the catalogue takes nothing. Of a request about keys neither text nor error message is kept: either might
//! hold a key.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::catalogue::Catalogue;
use super::model::{ApiError, Asker, AuditOutcome, AuditRecord};
use crate::env::Environment;
use crate::error::Result;
use crate::units::{MonotonicNanos, WallNanos};

/// How long a request waits for the catalogue to take its record.
const TAKEN_WITHIN: Duration = Duration::from_secs(2);
/// Characters that are kept of an error's text.
const MESSAGE_MAX: usize = 1024;

/// Where requests are recorded; clones share it.
#[derive(Clone)]
pub struct AuditTrail {
    catalogue: Option<Catalogue>,
    environment: Arc<dyn Environment + Send + Sync>,
}

/// A request that is at work.
pub(super) struct Entry {
    trail: AuditTrail,
    record: AuditRecord,
    began: MonotonicNanos,
    writing: Option<Writing>,
}

/// Who writes a record down: first as it begins, then as it was sent.
struct Writing {
    ended: oneshot::Sender<AuditRecord>,
    task: JoinHandle<Result<()>>,
}

/// What handlers note of the request that they answer; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Notes(Arc<Noted>);

#[derive(Debug)]
struct Noted {
    asked_by: Option<Asker>,
    is_of_keys: bool,
    job: Mutex<Option<String>>,
    error: Mutex<Option<ApiError>>,
}

tokio::task_local! {
    /// Of the request that this task answers, if it is one that is recorded.
    static NOTES: Notes;
}

/// Who asked for what this task does, where that is known.
pub(super) fn asked_by() -> Option<Asker> {
    NOTES.try_with(|notes| notes.0.asked_by.clone()).ok().flatten()
}

/// Notes the job that a request started.
pub(super) fn note_job(id: &str) {
    let _ = NOTES.try_with(|notes| *notes.0.job.lock() = Some(id.to_owned()));
}

/// Notes that a request is refused, or failed.
pub(super) fn note_error(error: &ApiError) {
    let _ = NOTES.try_with(|notes| {
        let message = if notes.0.is_of_keys {
            "not kept, since it might hold a key".to_owned()
        } else {
            error.message.chars().take(MESSAGE_MAX).collect()
        };
        *notes.0.error.lock() = Some(ApiError { kind: error.kind, message });
    });
}

impl Notes {
    /// None yet.
    pub(super) fn new(asked_by: Option<Asker>, is_of_keys: bool) -> Notes {
        Notes(Arc::new(Noted { asked_by, is_of_keys, job: Mutex::default(), error: Mutex::default() }))
    }

    /// Has what `answering` notes be noted here.
    pub(super) fn during<F: Future>(&self, answering: F) -> impl Future<Output = F::Output> + use<F> {
        NOTES.scope(self.clone(), answering)
    }

    /// The job that was started, and why it failed.
    pub(super) fn noted(&self) -> (Option<String>, Option<ApiError>) {
        (self.0.job.lock().take(), self.0.error.lock().take())
    }
}

impl AuditTrail {
    /// A trail in `catalogue`, if there is one; else only in the log.
    pub fn new(catalogue: Option<Catalogue>, environment: Arc<dyn Environment + Send + Sync>) -> AuditTrail {
        AuditTrail { catalogue, environment }
    }

    /// What the clock says.
    pub(super) fn now(&self) -> WallNanos {
        self.environment.wall()
    }

    /// Has the catalogue know of a request before anything is done of it.
    pub(super) async fn begin(&self, record: AuditRecord) -> Entry {
        let began = self.environment.monotonic();
        let mut entry = Entry { trail: self.clone(), record, began, writing: None };
        let Some(catalogue) = self.catalogue.clone() else { return entry };
        let (ended, end) = oneshot::channel();
        let (begun, is_begun) = oneshot::channel();
        let task = tokio::spawn(write(catalogue, entry.record.clone(), begun, end));
        if tokio::time::timeout(TAKEN_WITHIN, is_begun).await.is_err() {
            entry.complain(&late());
        }
        entry.writing = Some(Writing { ended, task });
        entry
    }

    /// The newest records, newest first.
    pub(super) async fn newest(&self, count_max: u32) -> Result<Vec<AuditRecord>> {
        match &self.catalogue {
            Some(catalogue) => catalogue.audit(count_max).await,
            None => Ok(Vec::new()),
        }
    }
}

impl Entry {
    /// Has log and catalogue know how a request went.
    pub(super) async fn end(mut self, job: Option<String>, outcome: AuditOutcome) {
        let environment = &self.trail.environment;
        let duration_ms = environment.monotonic().0.saturating_sub(self.began.0) / 1_000_000;
        self.record = AuditRecord { job, outcome, duration_ms: Some(duration_ms), ..self.record };
        self.log();
        let Some(Writing { ended, task }) = self.writing.take() else { return };
        // Who writes waits for it, unless it failed, which it says.
        let _ = ended.send(self.record.clone());
        match tokio::time::timeout(TAKEN_WITHIN, task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => self.complain(&error.to_string()),
            Ok(Err(stopped)) => self.complain(&stopped.to_string()),
            Err(_) => self.complain(&late()),
        }
    }

    fn log(&self) {
        let AuditRecord { asked_by, verb, subject, parameters, outcome, .. } = &self.record;
        let uid = asked_by.as_ref().and_then(|asker| asker.uid);
        let asked_by = asked_by.as_ref().map_or_else(|| "unknown".to_owned(), Asker::to_string);
        let subject = subject.as_deref().unwrap_or_default();
        let outcome = match outcome {
            AuditOutcome::Failed(error) => error.message.as_str(),
            _ => "ok",
        };
        tracing::info!(asked_by, uid, verb, subject, %parameters, outcome, "asked for");
    }

    fn complain(&self, problem: &str) {
        let AuditRecord { verb, subject, .. } = &self.record;
        let subject = subject.as_deref().unwrap_or_default();
        tracing::warn!(
            verb,
            subject,
            problem,
            "the catalogue's audit trail may lack a request: the log has it"
        );
    }
}

fn late() -> String {
    format!("it takes longer than {} s", TAKEN_WITHIN.as_secs())
}

/// Writes a request down as it begins, and as it ended. One whose end never comes was cut off.
async fn write(
    catalogue: Catalogue,
    record: AuditRecord,
    begun: oneshot::Sender<()>,
    ended: oneshot::Receiver<AuditRecord>,
) -> Result<()> {
    let added = catalogue.add_audit(&record).await;
    // Nobody may wait any longer.
    let _ = begun.send(());
    let Ok(record) = ended.await else { return added.map(drop) };
    match added {
        Ok(id) => catalogue.put_audit(id, &record).await,
        Err(_) => catalogue.add_audit(&record).await.map(drop),
    }
}
