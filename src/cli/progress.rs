//! Watching a job to its end, with a bar on standard error where that is a terminal.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;

use indicatif::{ProgressBar, ProgressStyle};

use super::client::Client;
use super::failure::Failure;
use super::interrupt::Interrupts;
use super::output::complain;
use crate::control::model::{Job, JobResult, JobState};
use crate::error::{Error, ErrorKind};

/// How long one request waits for the job's end: the bar moves at least as often, and an interruption is heard as soon.
const WAIT_MS: u64 = 200;

/// What is done of a job whose gateway ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Nothing any more.
    Lost,
    /// The rest of it, in the background, by the next gateway: so it is with verifications.
    GoneOnWith,
}

/// A job that is followed.
struct Followed<'a> {
    label: &'a str,
    rest: Rest,
    /// Whether somebody wants its end.
    wanted: Cell<bool>,
}

/// Asks for a job and follows it to its end; gives what it made. The first interruption cancels the job, whose end, and
/// that of what it had made, is waited for; the second leaves at once.
pub async fn run(
    client: &Client,
    asked: impl Future<Output = Result<Job, Failure>>,
    label: &str,
) -> Result<JobResult, Failure> {
    Followed::new(label, Rest::Lost).run(client, asked).await
}

/// The same for a verification, with which the next gateway goes on if this one ends.
pub async fn run_verification(
    client: &Client,
    asked: impl Future<Output = Result<Job, Failure>>,
    label: &str,
) -> Result<JobResult, Failure> {
    Followed::new(label, Rest::GoneOnWith).run(client, asked).await
}

/// Follows `job` until it ends; gives what it made.
pub async fn watch(client: &Client, job: Job, label: &str) -> Result<JobResult, Failure> {
    Followed::new(label, Rest::Lost).follow(client, job).await
}

impl Followed<'_> {
    fn new(label: &str, rest: Rest) -> Followed<'_> {
        Followed { label, rest, wanted: Cell::new(true) }
    }

    async fn run(
        self,
        client: &Client,
        asked: impl Future<Output = Result<Job, Failure>>,
    ) -> Result<JobResult, Failure> {
        let mut interrupts = Interrupts::listen()?;
        let mut following = pin!(async { self.follow(client, asked.await?).await });
        tokio::select! {
            ended = &mut following => return ended,
            () = interrupts.next() => self.wanted.set(false),
        }
        tokio::select! {
            ended = &mut following => ended,
            () = interrupts.next() => {
                let text = format!("{}: left before the gateway had ended it", self.label);
                Err(Failure::Interrupted(text))
            }
        }
    }

    /// Follows `job` until it ends, and cancels it once it is not wanted any more.
    async fn follow(&self, client: &Client, mut job: Job) -> Result<JobResult, Failure> {
        let label = self.label;
        let bar = ProgressBar::new_spinner().with_message(label.to_owned());
        let mut cancelled = false;
        loop {
            show(&bar, &job);
            if let Some(ended) = ended(&job, label, cancelled) {
                bar.finish_and_clear();
                let is_cut_off =
                    matches!(&job.state, JobState::Failed(error) if error.kind == ErrorKind::Shutdown);
                return ended.map_err(|failure| if is_cut_off { self.cut_off(failure) } else { failure });
            }
            let route = format!("/v1/jobs/{}", job.id);
            if self.wanted.get() || cancelled {
                let asked = client.get(&format!("{route}?wait_ms={WAIT_MS}")).await;
                job = asked.map_err(|failure| self.cut_off(failure))?;
            } else {
                job = client.delete(&route).await?;
                cancelled = true;
                bar.suspend(|| {
                    complain(&format!("{label}: cancelled, ending; interrupt again to leave at once\n"))
                });
            }
        }
    }

    /// What it means that a job ended before its work was done, or cannot be asked for: its gateway ends, or has gone.
    fn cut_off(&self, failure: Failure) -> Failure {
        if self.rest == Rest::Lost || !self.wanted.get() {
            return failure;
        }
        let why = match failure {
            Failure::Unreachable { place, source } => {
                format!("no gateway answers on {place} any more ({source})")
            }
            other => other.to_string(),
        };
        let text = format!(
            "{} was cut off: {why}; what was not read yet is read in the background once the gateway runs again: \
             `afterimage status` shows how far that is, and `afterimage events` what comes of it",
            self.label
        );
        Error::new(ErrorKind::Shutdown, text).into()
    }
}

/// What came of a job, if it has ended; `cancelled` by us, or not.
fn ended(job: &Job, label: &str, cancelled: bool) -> Option<Result<JobResult, Failure>> {
    match &job.state {
        JobState::Running => None,
        JobState::Done(result) => Some(Ok(result.clone())),
        JobState::Failed(error) => Some(Err(Failure::Failed(error.clone().into()))),
        JobState::Cancelled if cancelled => {
            Some(Err(Failure::Interrupted(format!("{label}: cancelled, nothing of it is left"))))
        }
        JobState::CutOff => {
            let text = format!("{label}: the gateway ended before it was done: ask for it again");
            Some(Err(Error::new(ErrorKind::Shutdown, text).into()))
        }
        JobState::Cancelled => {
            let text = format!("{label}: somebody else cancelled it");
            Some(Err(Error::new(ErrorKind::Shutdown, text).into()))
        }
    }
}

fn show(bar: &ProgressBar, job: &Job) {
    if let Some(total) = job.bytes_total
        && bar.length() != Some(total)
    {
        bar.set_length(total);
        let template = "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        bar.set_style(
            ProgressStyle::with_template(template).expect("a constant template").progress_chars("=> "),
        );
    }
    bar.set_position(job.bytes_done);
}
