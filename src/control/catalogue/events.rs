//! Events in the catalogue, and how far each hook has told them.
//!
//! Invariant: an event's id is one more than that of the event before it, also over restarts; the newest is never forgotten, so
//! that no id is given twice.

use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Row, SqliteConnection};

use super::schema::{EVENTS, HOOK_CURSORS};
use super::{Catalogue, bigint, blob, column, failed, unblob, unsigned, unword};
use crate::control::model::{Event, EventGap, Severity};
use crate::control::name::Name;
use crate::error::Result;
use crate::units::{GroupId, WallNanos};

/// How many events are kept.
pub(super) const EVENTS_MAX: i64 = 10_000;

/// Which events are meant.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventFilter {
    /// Only this group's.
    pub group: Option<GroupId>,
    /// At least so grave.
    pub severity: Option<Severity>,
    /// From then on.
    pub since: Option<WallNanos>,
}

/// What came after an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsFound {
    /// Oldest first.
    pub events: Vec<Event>,
    /// From where to look on.
    pub next: u64,
    /// What is missing before them.
    pub gap: Option<EventGap>,
}

/// Whatever is not asked for is NULL; a severity is at least the one that is asked for if it is one of three words.
const FILTER: &str =
    "($1 IS NULL OR group_id = $1) AND ($2 IS NULL OR time_ns >= $2) AND severity IN ($3, $4, $5)";

impl Catalogue {
    /// Remembers events, all or none, and forgets those that are too many; gives the id of the first.
    pub async fn record_events(&self, events: &[Event]) -> Result<u64> {
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        let first = self.newest_of(&mut transaction).await? + 1;
        for (sequence, event) in (first..).zip(events) {
            let row = [
                bigint(sequence)?.into(),
                event.time.0.into(),
                event.group_id.map(|group| group.0).into(),
                event.group.as_ref().map(Name::as_str).into(),
                event.severity.word().into(),
                event.code.as_str().into(),
                event.message.as_str().into(),
            ];
            EVENTS.put(&mut transaction, &row).await?;
        }
        sqlx::query("DELETE FROM events WHERE sequence <= (SELECT MAX(sequence) FROM events) - $1")
            .bind(EVENTS_MAX)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(first)
    }

    /// The newest events that are meant, newest first.
    pub async fn events(&self, filter: EventFilter, count_max: u32) -> Result<Vec<Event>> {
        let text = format!("SELECT * FROM events WHERE {FILTER} ORDER BY sequence DESC LIMIT $6");
        let query = filtered(sqlx::query(sqlx::AssertSqlSafe(text)), filter).bind(i64::from(count_max));
        self.read(&EVENTS, query).await?.iter().map(event).collect()
    }

    /// The id of the newest event; 0 if there is none.
    pub async fn newest_event(&self) -> Result<u64> {
        let mut connection = self.pool.acquire().await.map_err(failed)?;
        self.newest_of(&mut connection).await
    }

    /// The greatest id that was given; of an event that is gone, if it was damaged.
    async fn newest_of(&self, connection: &mut SqliteConnection) -> Result<u64> {
        let query = sqlx::query("SELECT COALESCE(MAX(sequence), 0) AS newest FROM events");
        let newest = unsigned(&query.fetch_one(connection).await.map_err(failed)?, "newest")?;
        Ok(newest.max(self.events_before))
    }

    /// The events that are meant and came after the one with that id, the oldest so many.
    pub async fn events_after(&self, after: u64, filter: EventFilter, count_max: u32) -> Result<EventsFound> {
        let mut connection = self.pool.acquire().await.map_err(failed)?;
        // One reading: what is written between two statements would be passed over.
        let mut transaction = connection.begin().await.map_err(failed)?;
        let newest = self.newest_of(&mut transaction).await?;
        let oldest = sqlx::query("SELECT COALESCE(MIN(sequence), 1) AS oldest FROM events");
        let oldest = unsigned(&oldest.fetch_one(&mut *transaction).await.map_err(failed)?, "oldest")?;
        let gap = if after > newest {
            Some(EventGap::CutBack)
        } else {
            Some(oldest.saturating_sub(after.saturating_add(1)))
                .filter(|gone| *gone > 0)
                .map(EventGap::Pruned)
        };
        let after = i64::try_from(after.min(newest)).unwrap_or(i64::MAX);
        let text =
            format!("SELECT * FROM events WHERE {FILTER} AND sequence > $6 ORDER BY sequence LIMIT $7");
        let query =
            filtered(sqlx::query(sqlx::AssertSqlSafe(text)), filter).bind(after).bind(i64::from(count_max));
        let rows = query.fetch_all(&mut *transaction).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        let is_full = rows.len() as u64 == u64::from(count_max);
        // Also if it is damaged: those behind it are not passed over.
        let last = rows.last().and_then(|row| unsigned(row, "sequence").ok());
        let next = last.filter(|_| is_full).unwrap_or(newest);
        let events = self.sound(&EVENTS, rows).await.iter().map(event).collect::<Result<Vec<Event>>>()?;
        Ok(EventsFound { events, next, gap })
    }

    /// How far a hook has told events; nothing of one that is new.
    pub async fn hook_cursor(&self, hook: &Name) -> Result<Option<u64>> {
        let query = sqlx::query("SELECT * FROM hook_cursors WHERE name = $1").bind(hook.as_str());
        let rows = self.read(&HOOK_CURSORS, query).await?;
        rows.first().map(|row| unsigned(row, "sequence")).transpose()
    }

    /// Notes how far a hook has told events.
    pub async fn put_hook_cursor(&self, hook: &Name, event: u64) -> Result<()> {
        let mut connection = self.pool.acquire().await.map_err(failed)?;
        HOOK_CURSORS.put(&mut connection, &[hook.as_str().into(), bigint(event)?.into()]).await
    }

    /// Forgets how far all other hooks are: one that is configured again later begins anew.
    pub async fn keep_hook_cursors(&self, hooks: &[Name]) -> Result<()> {
        let rows =
            sqlx::query("SELECT name FROM hook_cursors").fetch_all(&self.pool).await.map_err(failed)?;
        for row in rows {
            let name: String = row.try_get("name").map_err(failed)?;
            if !hooks.iter().any(|hook| hook.as_str() == name) {
                self.execute(sqlx::query("DELETE FROM hook_cursors WHERE name = $1").bind(name)).await?;
            }
        }
        Ok(())
    }
}

fn filtered(query: super::Query<'_>, filter: EventFilter) -> super::Query<'_> {
    let mut words = filter.severity.unwrap_or(Severity::Info).and_graver().map(Severity::word);
    let mut query =
        query.bind(filter.group.map(|group| blob(group.0))).bind(filter.since.map(|since| since.0));
    for _ in Severity::WORDS {
        query = query.bind(words.next());
    }
    query
}

fn event(row: &SqliteRow) -> Result<Event> {
    let id: Option<Vec<u8>> = column(row, "group_id")?;
    Ok(Event {
        id: Some(unsigned(row, "sequence")?),
        time: WallNanos(column(row, "time_ns")?),
        group: column::<Option<String>>(row, "name")?.and_then(|name| name.parse().ok()),
        group_id: id.map(|bytes| unblob(&bytes)).transpose()?.map(GroupId),
        code: column(row, "code")?,
        severity: unword(Severity::WORDS, &column::<String>(row, "severity")?)?,
        message: column(row, "message")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{open, snapshot};
    use super::*;

    const ERP: GroupId = GroupId(0x10);

    /// Every second one is grave, and of the group ERP.
    fn event(n: i64) -> Event {
        let is_even = n % 2 == 0;
        Event {
            id: None,
            time: WallNanos(n),
            group: is_even.then(|| "erp".parse().unwrap()),
            group_id: is_even.then_some(ERP),
            severity: if is_even { Severity::Error } else { Severity::Info },
            code: "space_low".to_owned(),
            message: format!("event {n}"),
        }
    }

    fn times(events: &[Event]) -> Vec<i64> {
        events.iter().map(|event| event.time.0).collect()
    }

    #[tokio::test]
    async fn events_outlive_a_rebuild_and_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let (mut catalogue, _) = open(&directory.path().join("catalogue.sqlite")).await;
        assert_eq!(catalogue.newest_event().await.unwrap(), 0);
        assert_eq!(catalogue.record_events(&[]).await.unwrap(), 1);
        assert_eq!(catalogue.record_events(&[1, 2, 3].map(event)).await.unwrap(), 1);
        catalogue.rebuild(&snapshot()).await.unwrap();
        let all = EventFilter::default();
        let newest = catalogue.events(all, 2).await.unwrap();
        assert_eq!(newest, [Event { id: Some(3), ..event(3) }, Event { id: Some(2), ..event(2) }]);
        catalogue.events_before = 3 + u64::try_from(EVENTS_MAX).unwrap();
        catalogue.record_events(&[event(4)]).await.unwrap();
        assert_eq!(times(&catalogue.events(all, 100).await.unwrap()), [4]);
        let found = catalogue.events_after(3, all, 100).await.unwrap();
        let gone = u64::try_from(EVENTS_MAX).unwrap();
        assert_eq!((times(&found.events), found.gap), (vec![4], Some(EventGap::Pruned(gone))));
    }

    #[tokio::test]
    async fn who_follows_gets_each_event_once_whatever_it_asks_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalogue.sqlite");
        let (catalogue, _) = open(&path).await;
        catalogue.record_events(&[1, 2, 3, 4, 5].map(event)).await.unwrap();
        let id = catalogue.id();
        catalogue.close().await;
        let (catalogue, _) = open(&path).await;
        assert_eq!(catalogue.id(), id, "it is the same one");
        assert_eq!(catalogue.record_events(&[event(6)]).await.unwrap(), 6, "ids go on");
        let all = EventFilter::default();
        let after = async |after, filter, most| {
            let EventsFound { events, next, gap } =
                catalogue.events_after(after, filter, most).await.unwrap();
            (times(&events), next, gap)
        };
        assert_eq!(after(0, all, 2).await, (vec![1, 2], 2, None));
        assert_eq!(after(2, all, 100).await, (vec![3, 4, 5, 6], 6, None));
        assert_eq!(after(6, all, 100).await, (vec![], 6, None));
        assert_eq!(after(9, all, 100).await, (vec![], 6, Some(EventGap::CutBack)));
        let grave = EventFilter { severity: Some(Severity::Warning), ..all };
        assert_eq!(after(0, grave, 2).await, (vec![2, 4], 4, None));
        assert_eq!(
            after(4, grave, 2).await,
            (vec![6], 6, None),
            "what is passed over is not looked at again"
        );
        assert_eq!(after(1, EventFilter { group: Some(ERP), ..all }, 9).await.0, [2, 4, 6]);
        assert_eq!(after(1, EventFilter { since: Some(WallNanos(5)), ..all }, 9).await.0, [5, 6]);
        assert_eq!(times(&catalogue.events(grave, 2).await.unwrap()), [6, 4]);
    }

    #[tokio::test]
    async fn hooks_are_remembered_while_they_are_configured() {
        let directory = tempfile::tempdir().unwrap();
        let (catalogue, _) = open(&directory.path().join("catalogue.sqlite")).await;
        let [page, mail]: [Name; 2] = ["page", "mail"].map(|name| name.parse().unwrap());
        assert_eq!(catalogue.hook_cursor(&page).await.unwrap(), None);
        for (hook, event) in [(&page, 3), (&mail, 4), (&page, 5)] {
            catalogue.put_hook_cursor(hook, event).await.unwrap();
        }
        assert_eq!(catalogue.hook_cursor(&page).await.unwrap(), Some(5));
        catalogue.keep_hook_cursors(std::slice::from_ref(&mail)).await.unwrap();
        assert_eq!(catalogue.hook_cursor(&page).await.unwrap(), None);
        assert_eq!(catalogue.hook_cursor(&mail).await.unwrap(), Some(4));
    }
}
