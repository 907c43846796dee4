//! Jobs in the catalogue, so that they are known after a restart: written when they begin and when they end.

use std::sync::Arc;

use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

use super::schema::JOBS;
use super::{Catalogue, column, failed};
use crate::control::model::Job;
use crate::error::{Error, Result};

impl Catalogue {
    /// Adds a job, or changes it; `kept` of the newest stay.
    pub async fn put_job(&self, job: &Job, kept: usize) -> Result<()> {
        let text = serde_json::to_string(job).expect("our values have string keys");
        let kept = i64::try_from(kept).unwrap_or(i64::MAX);
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        let row =
            [self.job_sequence(&mut transaction, &job.id).await?.into(), job.id.as_str().into(), text.into()];
        JOBS.put(&mut transaction, &row).await?;
        sqlx::query("DELETE FROM jobs WHERE sequence <= (SELECT MAX(sequence) FROM jobs) - $1")
            .bind(kept)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }

    /// Under which number a job is, or is to be.
    async fn job_sequence(&self, connection: &mut SqliteConnection, job: &str) -> Result<i64> {
        let known = sqlx::query("SELECT * FROM jobs WHERE id = $1").bind(job);
        let known = known.fetch_all(&mut *connection).await.map_err(failed)?;
        if let Some(row) = self.sound(&JOBS, known).await.first() {
            return column(row, "sequence");
        }
        let next = sqlx::query("SELECT COALESCE(MAX(sequence), 0) + 1 AS next FROM jobs");
        column(&next.fetch_one(connection).await.map_err(failed)?, "next")
    }

    /// The jobs that it knew when it was opened, oldest first, as they stood when they were written last.
    pub fn earlier_jobs(&self) -> Arc<[Job]> {
        Arc::clone(&self.earlier_jobs)
    }

    /// Every job that it knows, oldest first.
    pub(in crate::control) async fn jobs(&self) -> Result<Vec<Job>> {
        let rows = self.read(&JOBS, sqlx::query("SELECT * FROM jobs ORDER BY sequence")).await?;
        // One that a later version wrote is no reason to have none.
        Ok(rows.iter().filter_map(|row| job(row).ok()).collect())
    }
}

fn job(row: &SqliteRow) -> Result<Job> {
    serde_json::from_str(&column::<String>(row, "job")?)
        .map_err(|error| Error::corrupt(format!("catalogue: a job: {error}")))
}
