//! Samples of groups in the catalogue: one row a group and span.
//!
//! ```text
//!   now ◀── five minutes, two days of them ──▶◀── hours, 1,440 of them ──▶ forgotten
//! ```
//!
//! What is counted back from is the newest row, not the clock, so that a clock that leaps and is set right again takes nothing away.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::schema::SAMPLES;
use super::{Catalogue, blob, column, failed, id};
use crate::control::samples::{Sample, Span, roll_up};
use crate::error::{Error, Result};
use crate::units::{GroupId, WallNanos};

/// So far back from a group's newest sample spans are of five minutes.
const FIVE_MINUTES_FOR: i64 = 48 * Span::Hour.nanos();
/// So many hours of a group are kept.
pub(super) const HOURS_MAX: i64 = 1440;

impl Catalogue {
    /// Adds to the spans of five minutes that these are of, all or none.
    pub async fn add_samples(&self, samples: &[(GroupId, WallNanos, Sample)]) -> Result<()> {
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        for (group, start, sample) in samples {
            self.add(&mut transaction, *group, Span::FiveMinutes, *start, sample).await?;
        }
        transaction.commit().await.map_err(failed)
    }

    /// A group's samples from then on, of whichever spans they are.
    pub async fn samples(&self, group: GroupId, from: WallNanos) -> Result<Vec<(WallNanos, Sample)>> {
        let query =
            sqlx::query("SELECT * FROM samples WHERE group_id = $1 AND start_ns >= $2 ORDER BY start_ns");
        let rows = self.read(&SAMPLES, query.bind(blob(group.0)).bind(from.0)).await?;
        rows.iter().map(started).collect()
    }

    /// The samples of all groups from then on that are of five minutes.
    pub async fn recent_samples(&self, from: WallNanos) -> Result<Vec<(GroupId, WallNanos, Sample)>> {
        let query = sqlx::query("SELECT * FROM samples WHERE span_s = $1 AND start_ns >= $2");
        let rows = self.read(&SAMPLES, query.bind(Span::FiveMinutes.seconds()).bind(from.0)).await?;
        let of_group = |row: &SqliteRow| {
            let (start, sample) = started(row)?;
            Ok((GroupId(id(row, "group_id")?), start, sample))
        };
        rows.iter().map(of_group).collect()
    }

    /// Makes hours of what is old enough, and forgets the hours that are too many.
    pub async fn roll_up_samples(&self) -> Result<()> {
        let query = sqlx::query(
            "SELECT * FROM samples WHERE span_s = $1 AND (group_id, start_ns) IN
                (SELECT group_id, MAX(start_ns) FROM samples WHERE span_s = $1 GROUP BY group_id)",
        );
        // A group whose newest row is damaged waits for another.
        for row in &self.read(&SAMPLES, query.bind(Span::FiveMinutes.seconds())).await? {
            let newest = WallNanos(column(row, "start_ns")?);
            let before = Span::Hour.start_of(WallNanos(newest.0.saturating_sub(FIVE_MINUTES_FOR)));
            self.roll_up_group(GroupId(id(row, "group_id")?), before).await?;
        }
        Ok(())
    }

    async fn roll_up_group(&self, group: GroupId, before: WallNanos) -> Result<()> {
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        let query =
            sqlx::query("SELECT * FROM samples WHERE group_id = $1 AND span_s = $2 AND start_ns < $3");
        let query = query.bind(blob(group.0)).bind(Span::FiveMinutes.seconds()).bind(before.0);
        let rows = query.fetch_all(&mut *transaction).await.map_err(failed)?;
        let old = self.sound(&SAMPLES, rows).await;
        let old = old.iter().map(started).collect::<Result<Vec<_>>>()?;
        for (start, sample) in roll_up(old, Span::Hour) {
            self.add(&mut transaction, group, Span::Hour, start, &sample).await?;
        }
        sqlx::query("DELETE FROM samples WHERE group_id = $1 AND span_s = $2 AND start_ns < $3")
            .bind(blob(group.0))
            .bind(Span::FiveMinutes.seconds())
            .bind(before.0)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        sqlx::query(
            "DELETE FROM samples WHERE group_id = $1 AND span_s = $2 AND start_ns <
                (SELECT start_ns FROM samples WHERE group_id = $1 AND span_s = $2
                 ORDER BY start_ns DESC LIMIT 1 OFFSET $3)",
        )
        .bind(blob(group.0))
        .bind(Span::Hour.seconds())
        .bind(HOURS_MAX - 1)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }

    /// Adds to one span.
    async fn add(
        &self,
        connection: &mut SqliteConnection,
        group: GroupId,
        span: Span,
        start: WallNanos,
        more: &Sample,
    ) -> Result<()> {
        let query =
            sqlx::query("SELECT * FROM samples WHERE group_id = $1 AND span_s = $2 AND start_ns = $3");
        let query = query.bind(blob(group.0)).bind(span.seconds()).bind(start.0);
        let rows = query.fetch_all(&mut *connection).await.map_err(failed)?;
        let rows = self.sound(&SAMPLES, rows).await;
        let known = rows.first().map(started).transpose()?;
        let mut sample = known.map_or_else(Sample::default, |(_, sample)| sample);
        sample.absorb(more);
        let text = serde_json::to_string(&sample).expect("our values have string keys");
        SAMPLES.put(connection, &[group.0.into(), span.seconds().into(), start.0.into(), text.into()]).await
    }
}

fn started(row: &SqliteRow) -> Result<(WallNanos, Sample)> {
    let text: String = row.try_get("sample").map_err(failed)?;
    let sample = serde_json::from_str(&text)
        .map_err(|error| Error::corrupt(format!("catalogue: a sample of a group: {error}")))?;
    Ok((WallNanos(column(row, "start_ns")?), sample))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::tests::{open, snapshot};
    use super::*;

    const ERP: GroupId = GroupId(0x10);
    const FIVE: i64 = Span::FiveMinutes.nanos();
    const HOUR: i64 = Span::Hour.nanos();
    /// Some whole hour of 2026.
    const NOON: i64 = 1_795_219_200_000_000_000;

    fn written(bytes: u64) -> Sample {
        let disks = BTreeMap::from([("db".to_owned(), bytes)]);
        Sample { disks, written_bytes: bytes, ..Sample::default() }
    }

    fn at(start: i64, bytes: u64) -> (GroupId, WallNanos, Sample) {
        (ERP, WallNanos(start), written(bytes))
    }

    async fn bytes(catalogue: &Catalogue, from: i64) -> Vec<(i64, u64)> {
        let samples = catalogue.samples(ERP, WallNanos(from)).await.unwrap().into_iter();
        samples.map(|(start, sample)| (start.0 - NOON, sample.disks["db"])).collect()
    }

    #[tokio::test]
    async fn samples_add_up_over_restarts_and_rebuilds_and_go_with_their_group() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalogue.sqlite");
        let (catalogue, _) = open(&path).await;
        catalogue.add_samples(&[at(NOON, 1), at(NOON + FIVE, 2)]).await.unwrap();
        catalogue.close().await;
        let (catalogue, _) = open(&path).await;
        catalogue.add_samples(&[at(NOON, 10)]).await.unwrap();
        catalogue.rebuild(&snapshot()).await.unwrap();
        catalogue.put_group(&snapshot().groups[0]).await.unwrap();
        assert_eq!(bytes(&catalogue, NOON).await, [(0, 11), (FIVE, 2)]);
        assert_eq!(bytes(&catalogue, NOON + 1).await, [(FIVE, 2)]);
        let recent = catalogue.recent_samples(WallNanos(NOON + FIVE)).await.unwrap();
        assert_eq!(recent, [at(NOON + FIVE, 2)]);
        catalogue.remove_group(ERP).await.unwrap();
        assert_eq!(bytes(&catalogue, 0).await, []);
    }

    #[tokio::test]
    async fn what_is_two_days_old_becomes_hours_once() {
        let directory = tempfile::tempdir().unwrap();
        let (catalogue, _) = open(&directory.path().join("catalogue.sqlite")).await;
        let old = [at(NOON, 1), at(NOON + FIVE, 2), at(NOON + HOUR, 4)];
        catalogue.add_samples(&old).await.unwrap();
        catalogue.add_samples(&[at(NOON + 49 * HOUR - FIVE, 8)]).await.unwrap();
        catalogue.roll_up_samples().await.unwrap();
        assert_eq!(bytes(&catalogue, 0).await.len(), 4, "the hour is not two days old to its end");
        catalogue.add_samples(&[at(NOON + 49 * HOUR, 16)]).await.unwrap();
        let rolled = [(0, 3), (HOUR, 4), (49 * HOUR - FIVE, 8), (49 * HOUR, 16)];
        for _ in 0..2 {
            catalogue.roll_up_samples().await.unwrap();
            assert_eq!(bytes(&catalogue, 0).await, rolled);
        }
        // A clock that was set back writes to an hour that is one already.
        catalogue.add_samples(&[at(NOON + FIVE, 32)]).await.unwrap();
        catalogue.roll_up_samples().await.unwrap();
        assert_eq!(bytes(&catalogue, 0).await[0], (0, 35));
    }

    #[tokio::test]
    async fn hours_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let (catalogue, _) = open(&directory.path().join("catalogue.sqlite")).await;
        let count = HOURS_MAX + 60;
        let all: Vec<_> = (0..count).map(|hour| at(NOON + hour * HOUR, 1)).collect();
        catalogue.add_samples(&all).await.unwrap();
        catalogue.roll_up_samples().await.unwrap();
        // The last two days are no hours yet.
        let kept = bytes(&catalogue, 0).await;
        assert_eq!(i64::try_from(kept.len()).unwrap(), HOURS_MAX + 49);
        assert_eq!((kept[0].0, kept[kept.len() - 1].0), (11 * HOUR, (count - 1) * HOUR));
    }
}
