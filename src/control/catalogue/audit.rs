//! The audit trail in the catalogue: one row a request that was to change something, written before it is done, and again when it is.

use super::schema::AUDIT;
use super::{Catalogue, bigint, column, failed, unsigned};
use crate::control::model::{AuditOutcome, AuditRecord};
use crate::error::{Error, Result};

/// How many records are kept.
pub(super) const RECORDS_MAX: i64 = 10_000;

impl Catalogue {
    /// Remembers a request, and forgets those that are too many; gives its id.
    pub async fn add_audit(&self, record: &AuditRecord) -> Result<u64> {
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        let newest = sqlx::query("SELECT COALESCE(MAX(sequence), 0) AS newest FROM audit");
        let newest = newest.fetch_one(&mut *transaction).await.map_err(failed)?;
        let id = unsigned(&newest, "newest")? + 1;
        AUDIT.put(&mut transaction, &[bigint(id)?.into(), text(record).into()]).await?;
        sqlx::query("DELETE FROM audit WHERE sequence <= (SELECT MAX(sequence) FROM audit) - $1")
            .bind(RECORDS_MAX)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(id)
    }

    /// Says of a request that is remembered how it stands now.
    pub async fn put_audit(&self, id: u64, record: &AuditRecord) -> Result<()> {
        let mut connection = self.pool.acquire().await.map_err(failed)?;
        AUDIT.put(&mut connection, &[bigint(id)?.into(), text(record).into()]).await
    }

    /// The newest records, newest first. What was at work when the process before ended was cut off.
    pub async fn audit(&self, count_max: u32) -> Result<Vec<AuditRecord>> {
        let query = sqlx::query("SELECT * FROM audit ORDER BY sequence DESC LIMIT $1");
        let rows = self.read(&AUDIT, query.bind(i64::from(count_max))).await?;
        rows.iter()
            .map(|row| {
                let text: String = column(row, "record")?;
                let record: AuditRecord = serde_json::from_str(&text).map_err(|error| {
                    Error::corrupt(format!("catalogue: a record of the audit trail: {error}"))
                })?;
                let id = unsigned(row, "sequence")?;
                let outcome = match record.outcome {
                    AuditOutcome::AtWork if id <= self.audited_before => AuditOutcome::CutOff,
                    outcome => outcome,
                };
                Ok(AuditRecord { id, outcome, ..record })
            })
            .collect()
    }

    /// The id of the newest record; 0 if there is none.
    pub(super) async fn newest_audit(&self) -> Result<u64> {
        let query = sqlx::query("SELECT COALESCE(MAX(sequence), 0) AS newest FROM audit");
        unsigned(&query.fetch_one(&self.pool).await.map_err(failed)?, "newest")
    }

    /// How many records there are.
    #[cfg(test)]
    async fn audit_count(&self) -> i64 {
        use sqlx::Row;
        let row = sqlx::query("SELECT COUNT(*) FROM audit").fetch_one(&self.pool).await.unwrap();
        row.try_get(0).unwrap()
    }
}

fn text(record: &AuditRecord) -> String {
    serde_json::to_string(record).expect("our values have string keys")
}

#[cfg(test)]
mod tests {
    use super::super::tests::open;
    use super::*;
    use crate::control::model::{ApiError, Asker};
    use crate::error::ErrorKind;
    use crate::units::WallNanos;

    fn record(n: u64) -> AuditRecord {
        AuditRecord {
            id: n,
            time: WallNanos(7),
            asked_by: Some(Asker {
                uid: Some(0),
                user: Some("root".to_owned()),
                pid: Some(3),
                ..Asker::default()
            }),
            verb: "group create".to_owned(),
            subject: Some("erp".to_owned()),
            parameters: serde_json::json!({"name": "erp"}),
            job: None,
            outcome: AuditOutcome::Failed(ApiError {
                kind: ErrorKind::AlreadyExists,
                message: "group erp exists".to_owned(),
            }),
            duration_ms: Some(5),
        }
    }

    #[tokio::test]
    async fn records_outlive_a_restart_and_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalogue.sqlite");
        let (catalogue, _) = open(&path).await;
        for _ in 0..3 {
            catalogue.add_audit(&record(0)).await.unwrap();
        }
        catalogue.close().await;
        let (catalogue, _) = open(&path).await;
        assert_eq!(catalogue.audit(2).await.unwrap(), [record(3), record(2)]);
        let far = 3 + u64::try_from(RECORDS_MAX).unwrap();
        catalogue.execute(sqlx::query("DELETE FROM audit WHERE sequence = 3")).await.unwrap();
        catalogue.put_audit(far, &record(0)).await.unwrap();
        assert!(catalogue.add_audit(&record(0)).await.unwrap() > 3, "ids go on");
        assert_eq!(catalogue.audit_count().await, 2);
    }

    #[tokio::test]
    async fn what_was_at_work_when_the_process_ended_was_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalogue.sqlite");
        let at_work = AuditRecord { outcome: AuditOutcome::AtWork, duration_ms: None, ..record(0) };
        let outcomes = async |catalogue: &Catalogue| {
            let records = catalogue.audit(9).await.unwrap().into_iter();
            records.map(|record| (record.id, record.outcome)).collect::<Vec<_>>()
        };
        let (catalogue, _) = open(&path).await;
        for _ in 0..2 {
            catalogue.add_audit(&at_work).await.unwrap();
        }
        let done = AuditRecord { outcome: AuditOutcome::Done, duration_ms: Some(5), ..record(0) };
        catalogue.put_audit(1, &done).await.unwrap();
        assert_eq!(outcomes(&catalogue).await, [(2, AuditOutcome::AtWork), (1, AuditOutcome::Done)]);
        catalogue.close().await;
        let (catalogue, _) = open(&path).await;
        catalogue.add_audit(&at_work).await.unwrap();
        let expected = [(3, AuditOutcome::AtWork), (2, AuditOutcome::CutOff), (1, AuditOutcome::Done)];
        assert_eq!(outcomes(&catalogue).await, expected);
    }
}
