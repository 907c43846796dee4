//! Jobs: what takes too long for one answer, how far it is, and how it ended.
//!
//! A job lives as long as the process. The catalogue, where there is one, has what became of it, also after a restart: what it knows as
//! running and this process does not was cut off. Ids are random, so that a client that watches a job over a restart is never shown
//! another's. Running jobs and remembered ended ones are both bounded.
//!
//! A job is cancelled by its own work: it asks its [`Progress`] between two pieces whether to go on, gives up as after a
//! failure, and removes what it had made.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::audit;
use super::catalogue::Catalogue;
use super::model::{ApiError, Asker, Job, JobKind, JobResult, JobState};
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::units::WallNanos;

/// Most jobs at work at once.
pub const RUNNING_MAX: usize = 32;
/// How many jobs the table holds; the oldest ended one makes room.
pub const REMEMBERED_MAX: usize = 256;
/// How long a job's end waits for the catalogue to take it.
const TAKEN_WITHIN: Duration = Duration::from_secs(2);

/// How far a job is; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    bytes_done: AtomicU64,
    /// Zero until known.
    bytes_total: AtomicU64,
    /// Somebody wants the work to end before it is done.
    cancelled: AtomicBool,
}

impl Progress {
    /// Says how much there is to do.
    pub fn set_total(&self, bytes: u64) {
        self.0.bytes_total.store(bytes, Ordering::Relaxed);
    }

    /// Says that `bytes` more are done.
    pub fn advance(&self, bytes: u64) {
        self.0.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether the work is still wanted, to be asked between two pieces of it.
    ///
    /// # Errors
    /// `Shutdown` once it was cancelled.
    pub fn go_on(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::new(ErrorKind::Shutdown, "cancelled")) } else { Ok(()) }
    }

    fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Relaxed)
    }

    /// Has the work end before it is done.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }

    /// Bytes done.
    pub fn bytes_done(&self) -> u64 {
        self.0.bytes_done.load(Ordering::Relaxed)
    }

    /// Bytes to do, once known.
    pub fn bytes_total(&self) -> Option<u64> {
        Some(self.0.bytes_total.load(Ordering::Relaxed)).filter(|total| *total > 0)
    }
}

/// The table of jobs; clones share it.
#[derive(Clone)]
pub struct Jobs {
    environment: Arc<dyn Environment + Send + Sync>,
    catalogue: Option<Catalogue>,
    /// Those of earlier processes, oldest first.
    earlier: Arc<[Job]>,
    entries: Arc<Mutex<VecDeque<Arc<Entry>>>>,
}

struct Entry {
    id: String,
    kind: JobKind,
    what: String,
    asked_by: Option<Asker>,
    started: WallNanos,
    progress: Progress,
    ended: watch::Sender<Option<Ended>>,
}

#[derive(Clone)]
struct Ended {
    time: WallNanos,
    state: JobState,
}

impl Entry {
    fn is_running(&self) -> bool {
        self.ended.borrow().is_none()
    }

    fn job(&self) -> Job {
        let ended = self.ended.borrow().clone();
        self.job_as(ended)
    }

    fn job_as(&self, ended: Option<Ended>) -> Job {
        Job {
            id: self.id.clone(),
            kind: self.kind,
            what: self.what.clone(),
            started: self.started,
            ended: ended.as_ref().map(|ended| ended.time),
            bytes_done: self.progress.bytes_done(),
            bytes_total: self.progress.bytes_total(),
            asked_by: self.asked_by.clone(),
            state: ended.map_or(JobState::Running, |ended| ended.state),
        }
    }
}

impl Jobs {
    /// An empty table, with those in mind that `catalogue` knows.
    pub fn new(environment: Arc<dyn Environment + Send + Sync>, catalogue: Option<Catalogue>) -> Jobs {
        let earlier = catalogue.as_ref().map(Catalogue::earlier_jobs).unwrap_or_default();
        Jobs { environment, catalogue, earlier, entries: Arc::default() }
    }

    /// Starts `work` on the current tokio runtime.
    pub fn start<W>(&self, kind: JobKind, what: String, work: impl FnOnce(Progress) -> W) -> Result<Job>
    where
        W: Future<Output = Result<JobResult>> + Send + 'static,
    {
        let entry = Arc::new(Entry {
            id: format!("{:032x}", self.environment.random_u128()),
            kind,
            what,
            asked_by: audit::asked_by(),
            started: self.environment.wall(),
            progress: Progress::default(),
            ended: watch::Sender::new(None),
        });
        self.admit(Arc::clone(&entry))?;
        audit::note_job(&entry.id);
        let task = tokio::spawn(work(entry.progress.clone()));
        let job = entry.job();
        let (jobs, begun) = (self.clone(), job.clone());
        tokio::spawn(async move {
            let known = tokio::spawn(remember(jobs.catalogue.clone(), begun));
            let state = match task.await {
                Ok(Ok(result)) => JobState::Done(result),
                Ok(Err(error)) if entry.progress.is_cancelled() && error.kind() == ErrorKind::Shutdown => {
                    JobState::Cancelled
                }
                Ok(Err(error)) => JobState::Failed(ApiError::from(&error)),
                Err(stopped) => JobState::Failed(ApiError {
                    kind: ErrorKind::Shutdown,
                    message: format!("the job stopped before its end ({stopped})"),
                }),
            };
            let ended = Ended { time: jobs.environment.wall(), state };
            let job = entry.job_as(Some(ended.clone()));
            let writing = async {
                let _ = known.await;
                let _ = tokio::spawn(remember(jobs.catalogue.clone(), job)).await;
            };
            // Who is told the end finds it after a restart, too; but nobody waits long for a catalogue.
            let _ = tokio::time::timeout(TAKEN_WITHIN, writing).await;
            entry.ended.send_replace(Some(ended));
        });
        Ok(job)
    }

    fn admit(&self, entry: Arc<Entry>) -> Result<()> {
        let mut entries = self.entries.lock();
        if entries.iter().filter(|entry| entry.is_running()).count() >= RUNNING_MAX {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!("{RUNNING_MAX} jobs are at work: wait until one has ended"),
            ));
        }
        if entries.len() >= REMEMBERED_MAX
            && let Some(oldest) = entries.iter().position(|entry| !entry.is_running())
        {
            entries.remove(oldest);
        }
        entries.push_back(entry);
        Ok(())
    }

    /// Every job, oldest first: the newest of earlier processes, and those of this one.
    pub fn list(&self) -> Vec<Job> {
        let here: Vec<Job> = self.entries.lock().iter().map(|entry| entry.job()).collect();
        let room = REMEMBERED_MAX.saturating_sub(here.len());
        let newest = self.earlier.len().saturating_sub(room);
        self.earlier[newest..].iter().cloned().map(cut_off).chain(here).collect()
    }

    fn find(&self, id: &str) -> Option<Arc<Entry>> {
        self.entries.lock().iter().find(|entry| entry.id == id).cloned()
    }

    /// A job that this process does not know.
    fn find_earlier(&self, id: &str) -> Result<Job> {
        let known = self.earlier.iter().find(|job| job.id == id);
        known.cloned().map(cut_off).ok_or_else(|| {
            let text = format!("no job {id}: it was forgotten, or the gateway was restarted meanwhile");
            Error::new(ErrorKind::NotFound, text)
        })
    }

    /// Asks a job to give up; it ends soon after, as cancelled unless it was done before it heard. One that has ended
    /// stays as it ended.
    pub fn cancel(&self, id: &str) -> Result<Job> {
        let Some(entry) = self.find(id) else { return self.find_earlier(id) };
        if entry.is_running() {
            tracing::info!(job = %entry.id, what = %entry.what, "the job is cancelled");
            entry.progress.cancel();
        }
        Ok(entry.job())
    }

    /// One job: at once if it has ended, else when it ends, and after `wait` at the latest.
    pub async fn get(&self, id: &str, wait: Duration) -> Result<Job> {
        let Some(entry) = self.find(id) else { return self.find_earlier(id) };
        let mut ended = entry.ended.subscribe();
        // Late or ended: the answer says which.
        let _ = tokio::time::timeout(wait, ended.wait_for(Option::is_some)).await;
        Ok(entry.job())
    }
}

/// Has the catalogue know a job as it stands.
async fn remember(catalogue: Option<Catalogue>, job: Job) {
    if let Some(catalogue) = catalogue
        && let Err(error) = catalogue.put_job(&job, REMEMBERED_MAX).await
    {
        tracing::warn!(%error, job = %job.id, "the catalogue took no note of a job: a restart forgets it");
    }
}

/// What an earlier process left at work was cut off by its end.
fn cut_off(job: Job) -> Job {
    let state = if job.state == JobState::Running { JobState::CutOff } else { job.state };
    Job { state, ..job }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::model::VerifyReport;
    use crate::env::OsEnvironment;

    const LONG: Duration = Duration::from_secs(60);

    fn jobs() -> Jobs {
        Jobs::new(Arc::new(OsEnvironment::new()), None)
    }

    fn verified() -> JobResult {
        JobResult::Verified(VerifyReport::default())
    }

    #[tokio::test]
    async fn a_job_tells_how_far_it_is_and_how_it_ended() {
        let jobs = jobs();
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let job = jobs
            .start(JobKind::Verify, "all".into(), |progress| {
                progress.set_total(100);
                progress.advance(40);
                async move {
                    gone.await.unwrap();
                    progress.advance(60);
                    Ok(verified())
                }
            })
            .unwrap();
        let running = jobs.get(&job.id, Duration::ZERO).await.unwrap();
        assert_eq!(
            (running.state, running.bytes_done, running.bytes_total),
            (JobState::Running, 40, Some(100))
        );
        go.send(()).unwrap();
        let done = jobs.get(&job.id, LONG).await.unwrap();
        assert_eq!((done.state, done.bytes_done), (JobState::Done(verified()), 100));
        assert!(done.ended.is_some());
    }

    #[tokio::test]
    async fn failures_and_panics_are_told() {
        let jobs = jobs();
        let failed = jobs
            .start(JobKind::Restore, "x".into(), |_| async {
                Err(Error::new(ErrorKind::NoSpace, "disk full"))
            })
            .unwrap();
        let JobState::Failed(error) = jobs.get(&failed.id, LONG).await.unwrap().state else {
            panic!("failed")
        };
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::NoSpace, "disk full"));
        let panicked = jobs.start(JobKind::Restore, "x".into(), |_| async { panic!("on purpose") }).unwrap();
        assert!(matches!(jobs.get(&panicked.id, LONG).await.unwrap().state, JobState::Failed(_)));
        assert_eq!(jobs.get("nothing", LONG).await.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_cancelled_job_ends_so_when_its_work_has_heard() {
        let jobs = jobs();
        let start = |failure: Option<ErrorKind>| {
            let (go, gone) = tokio::sync::oneshot::channel::<()>();
            let work = |progress: Progress| async move {
                gone.await.unwrap();
                match failure {
                    Some(kind) => Err(Error::new(kind, "of its own")),
                    None => progress.go_on().map(|()| verified()),
                }
            };
            (jobs.start(JobKind::Verify, "x".into(), work).unwrap(), go)
        };
        let (job, go) = start(None);
        assert_eq!(jobs.cancel(&job.id).unwrap().state, JobState::Running, "it has not heard yet");
        go.send(()).unwrap();
        assert_eq!(jobs.get(&job.id, LONG).await.unwrap().state, JobState::Cancelled);
        assert_eq!(jobs.cancel(&job.id).unwrap().state, JobState::Cancelled, "twice is once");
        let (job, go) = start(Some(ErrorKind::Io));
        jobs.cancel(&job.id).unwrap();
        go.send(()).unwrap();
        assert!(matches!(jobs.get(&job.id, LONG).await.unwrap().state, JobState::Failed(_)), "not hidden");
        let (job, go) = start(None);
        go.send(()).unwrap();
        let done = jobs.get(&job.id, LONG).await.unwrap();
        assert_eq!(jobs.cancel(&job.id).unwrap(), done, "what has ended stays");
        assert_eq!(jobs.cancel("nothing").unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn the_table_is_bounded() {
        let jobs = jobs();
        for _ in 0..REMEMBERED_MAX + 10 {
            let job = jobs.start(JobKind::Verify, "x".into(), |_| async { Ok(verified()) }).unwrap();
            jobs.get(&job.id, LONG).await.unwrap();
        }
        assert_eq!(jobs.list().len(), REMEMBERED_MAX);
        for _ in 0..RUNNING_MAX {
            jobs.start(JobKind::Verify, "x".into(), |_| std::future::pending()).unwrap();
        }
        let refused = jobs.start(JobKind::Verify, "x".into(), |_| std::future::pending());
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::NoSpace);
    }

    #[tokio::test]
    async fn a_restart_knows_what_ended_and_what_it_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalogue.sqlite");
        let open = async || Catalogue::open(&path, &OsEnvironment::new()).await.unwrap().0;
        let table = |catalogue| Jobs::new(Arc::new(OsEnvironment::new()), Some(catalogue));
        let catalogue = open().await;
        let jobs = table(catalogue.clone());
        let running = jobs.start(JobKind::Import, "b".into(), |_| std::future::pending()).unwrap();
        let ended = jobs.start(JobKind::Verify, "a".into(), |_| async { Ok(verified()) }).unwrap();
        let ended = jobs.get(&ended.id, LONG).await.unwrap();
        // The connection is one, and takes turns: the one that began first is in before the other's end.
        assert_eq!(catalogue.jobs().await.unwrap().len(), 2);
        assert_eq!(jobs.list().len(), 2, "none is listed twice");
        catalogue.close().await;
        let jobs = table(open().await);
        assert_eq!(jobs.get(&ended.id, LONG).await.unwrap(), ended);
        let cut = jobs.cancel(&running.id).unwrap();
        assert_eq!((cut.state, cut.ended), (JobState::CutOff, None));
        let states: Vec<JobState> = jobs.list().into_iter().map(|job| job.state).collect();
        assert_eq!(states, [JobState::CutOff, JobState::Done(verified())]);
        assert_eq!(jobs.get("nothing", LONG).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
}
