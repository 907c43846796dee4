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

/// Asks for a job and follows it to its end; gives what it made. The first interruption cancels the job, whose end, and
/// that of what it had made, is waited for; the second leaves at once.
pub async fn run(
    client: &Client,
    asked: impl Future<Output = Result<Job, Failure>>,
    label: &str,
) -> Result<JobResult, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let wanted = Cell::new(true);
    let mut following = pin!(async { follow(client, asked.await?, label, &wanted).await });
    tokio::select! {
        ended = &mut following => return ended,
        () = interrupts.next() => wanted.set(false),
    }
    tokio::select! {
        ended = &mut following => ended,
        () = interrupts.next() => {
            Err(Failure::Interrupted(format!("{label}: left before the gateway had ended it")))
        }
    }
}

/// Follows `job` until it ends; gives what it made.
pub async fn watch(client: &Client, job: Job, label: &str) -> Result<JobResult, Failure> {
    follow(client, job, label, &Cell::new(true)).await
}

/// Follows `job` until it ends, and cancels it once it is not `wanted` any more.
async fn follow(
    client: &Client,
    mut job: Job,
    label: &str,
    wanted: &Cell<bool>,
) -> Result<JobResult, Failure> {
    let bar = ProgressBar::new_spinner().with_message(label.to_owned());
    let mut cancelled = false;
    loop {
        show(&bar, &job);
        if let Some(ended) = ended(&job, label, cancelled) {
            bar.finish_and_clear();
            return ended;
        }
        let route = format!("/v1/jobs/{}", job.id);
        if wanted.get() || cancelled {
            job = client.get(&format!("{route}?wait_ms={WAIT_MS}")).await?;
        } else {
            job = client.delete(&route).await?;
            cancelled = true;
            bar.suspend(|| {
                complain(&format!("{label}: cancelled, ending; interrupt again to leave at once\n"))
            });
        }
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
