//! Watching a job to its end, with a bar on standard error where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

use super::client::Client;
use super::failure::Failure;
use crate::control::model::{Job, JobResult, JobState};

/// How long one request waits for the job's end: the bar moves at least as often.
const WAIT_MS: u64 = 200;

/// Follows `job` until it ends; gives what it made.
pub async fn watch(client: &Client, mut job: Job, label: &str) -> Result<JobResult, Failure> {
    let bar = ProgressBar::new_spinner().with_message(label.to_owned());
    loop {
        show(&bar, &job);
        match job.state {
            JobState::Running => {}
            JobState::Done(result) => {
                bar.finish_and_clear();
                return Ok(result);
            }
            JobState::Failed(error) => {
                bar.finish_and_clear();
                return Err(Failure::Failed(error.into()));
            }
        }
        job = client.get(&format!("/v1/jobs/{}?wait_ms={WAIT_MS}", job.id)).await?;
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
