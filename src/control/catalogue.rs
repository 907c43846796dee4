//! The catalogue: an SQL copy of what manifests and journals say, to list and search without reading them.
//!
//! It is a cache. Nothing is true because it stands here; what it says of groups can be made again with
//! [`Catalogue::rebuild`], so a file that is damaged is moved aside and begun anew. What it says of
//! the past can't: events, the audit trail, ended jobs and samples are gone then, which its other id tells (docs/events.md). So what a later
//! version wrote is refused, and what the versions before wrote, from 2 on, is taken over. What it took is synced, so that a power cut loses none of it.
//! Each row has a sum ([`sums`]): one that is not what was written is shown to nobody, and told ([`rot`]).
//!
//! The SQL is the subset that PostgreSQL takes too: TEXT, BIGINT and BLOB, `$n`, `ON CONFLICT`. Ids are 16 bytes,
//! big-endian, so that they sort like their text; PRAGMAs are set by the connection's options only.

mod audit;
mod events;
mod jobs;
mod opening;
mod rot;
mod rows;
mod samples;
mod schema;
mod sums;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::SqlitePool;
use sqlx::sqlite::SqliteRow;

pub use self::events::{EventFilter, EventsFound};
use self::rot::Rot;
use self::rows::{
    bigint, blob, column, delete_group, id, insert_disk, insert_group, insert_point, insert_policy,
    insert_test, name, point, unblob, unsigned, unword,
};
use self::schema::{DISKS, GROUPS, POINTS, POLICIES, TESTS, Table};
use super::model::{Job, Point, Policy};
use super::name::Name;
use crate::block::TestId;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{DiskId, GroupId, Lsn, PointId, SectorCount, WallNanos};

/// What manifests and journals say, all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every group, by name.
    pub groups: Vec<GroupRecord>,
}

/// A group, as its manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRecord {
    /// Permanent id.
    pub id: GroupId,
    /// Its name.
    pub name: Name,
    /// When it was created.
    pub created: WallNanos,
    /// Its policy.
    pub policy: Policy,
    /// Its disks, by name.
    pub disks: Vec<DiskRecord>,
    /// Its points, oldest first.
    pub points: Vec<Point>,
    /// Its test failovers, by number.
    pub tests: Vec<TestRecord>,
}

/// A disk, as its group's manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRecord {
    /// Permanent id.
    pub id: DiskId,
    /// Its name.
    pub name: Name,
    /// Its size.
    pub size: SectorCount,
}

/// What is known of a group whose manifest cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// When it was created.
    pub created: WallNanos,
    /// Its policy.
    pub policy: Policy,
    /// Its disks, by name.
    pub disks: Vec<DiskRecord>,
}

/// A test failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestRecord {
    /// Its number.
    pub number: TestId,
    /// The point that it shows.
    pub point: PointId,
    /// When it was started.
    pub started: WallNanos,
}

/// Whether an opened catalogue knows anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// What it knew when it was last closed.
    Kept,
    /// Nothing: it is new, or what was there had to be moved aside.
    Empty,
}

/// The open catalogue; clones share it.
#[derive(Clone, Debug)]
pub struct Catalogue {
    pool: SqlitePool,
    /// Whether others may read it meanwhile.
    shared: bool,
    path: PathBuf,
    /// Drawn when the file was begun.
    id: u128,
    /// No event is given an id up to this one: one that is gone may have had it.
    events_before: u64,
    /// The newest record of the audit trail when it was opened: those up to it are of earlier processes.
    audited_before: u64,
    /// The jobs that it knew when it was opened, oldest first: in mind, since nobody who asks for jobs waits for its disk.
    earlier_jobs: Arc<[Job]>,
    /// What was found damaged.
    rot: Arc<Rot>,
}

impl Catalogue {
    /// Which one it is: 32 hexadecimal digits, others once it had to be begun anew.
    pub fn id(&self) -> String {
        format!("{:032x}", self.id)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Finishes what is at work and closes the file.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Makes it say what `snapshot` says and nothing else; events stay.
    pub async fn rebuild(&self, snapshot: &Snapshot) -> Result<()> {
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        for statement in [
            "DELETE FROM tests",
            "DELETE FROM points",
            "DELETE FROM disks",
            "DELETE FROM policies",
            "DELETE FROM protection_groups",
        ] {
            sqlx::query(statement).execute(&mut *transaction).await.map_err(failed)?;
        }
        for group in &snapshot.groups {
            insert_group(&mut transaction, group).await?;
        }
        transaction.commit().await.map_err(failed)
    }

    /// Makes it say what `group` says about that group.
    pub async fn put_group(&self, group: &GroupRecord) -> Result<()> {
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        delete_group(&mut transaction, group.id).await?;
        insert_group(&mut transaction, group).await?;
        transaction.commit().await.map_err(failed)
    }

    /// Forgets a group and all that belongs to it; its events stay.
    pub async fn remove_group(&self, group: GroupId) -> Result<()> {
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        delete_group(&mut transaction, group).await?;
        let samples = sqlx::query("DELETE FROM samples WHERE group_id = $1").bind(blob(group.0));
        samples.execute(&mut *transaction).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }

    /// Changes a group's policy.
    pub async fn put_policy(&self, group: GroupId, policy: Policy) -> Result<()> {
        let mut connection = self.pool.acquire().await.map_err(failed)?;
        insert_policy(&mut connection, group, policy).await
    }

    /// Adds a disk, or changes it.
    pub async fn put_disk(&self, group: GroupId, disk: &DiskRecord) -> Result<()> {
        let mut connection = self.pool.acquire().await.map_err(failed)?;
        insert_disk(&mut connection, group, disk).await
    }

    /// Forgets a disk.
    pub async fn remove_disk(&self, disk: DiskId) -> Result<()> {
        self.execute(sqlx::query("DELETE FROM disks WHERE id = $1").bind(blob(disk.0))).await
    }

    /// Adds points, or changes them.
    pub async fn put_points(&self, group: GroupId, points: &[Point]) -> Result<()> {
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        for point in points {
            insert_point(&mut transaction, group, point).await?;
        }
        transaction.commit().await.map_err(failed)
    }

    /// Forgets a group's points below an LSN.
    pub async fn remove_points_below(&self, group: GroupId, lsn: Lsn) -> Result<()> {
        let query = sqlx::query("DELETE FROM points WHERE group_id = $1 AND lsn < $2");
        self.execute(query.bind(blob(group.0)).bind(bigint(lsn.0)?)).await
    }

    /// Adds a test failover.
    pub async fn put_test(&self, group: GroupId, test: TestRecord) -> Result<()> {
        let mut connection = self.pool.acquire().await.map_err(failed)?;
        insert_test(&mut connection, group, test).await
    }

    /// Forgets a test failover.
    pub async fn remove_test(&self, group: GroupId, number: TestId) -> Result<()> {
        let query = sqlx::query("DELETE FROM tests WHERE group_id = $1 AND number = $2");
        self.execute(query.bind(blob(group.0)).bind(bigint(number.0)?)).await
    }

    /// Everything that it says.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        let query = sqlx::query("SELECT * FROM protection_groups ORDER BY name");
        let mut groups = Vec::new();
        for row in self.read(&GROUPS, query).await? {
            let id = GroupId(id(&row, "id")?);
            let Some(policy) = self.policy(id).await? else { continue };
            groups.push(GroupRecord {
                id,
                name: name(&row)?,
                created: WallNanos(column(&row, "created_ns")?),
                policy,
                disks: self.disks(id).await?,
                points: self.points(id).await?,
                tests: self.tests(id).await?,
            });
        }
        Ok(Snapshot { groups })
    }

    /// What it says of a group, if it knows it; not its points, which may be many.
    pub async fn describe(&self, group: GroupId) -> Result<Option<GroupDescription>> {
        let rows = self.of_group(&GROUPS, "SELECT * FROM protection_groups WHERE id = $1", group).await?;
        let (Some(row), Some(policy)) = (rows.first(), self.policy(group).await?) else { return Ok(None) };
        let created = WallNanos(column(row, "created_ns")?);
        Ok(Some(GroupDescription { created, policy, disks: self.disks(group).await? }))
    }

    async fn policy(&self, group: GroupId) -> Result<Option<Policy>> {
        let rows = self.of_group(&POLICIES, "SELECT * FROM policies WHERE group_id = $1", group).await?;
        let policy = |row| Ok(Policy { interval_ms: unsigned(row, "interval_ms")? });
        rows.first().map(policy).transpose()
    }

    async fn disks(&self, group: GroupId) -> Result<Vec<DiskRecord>> {
        let text = "SELECT * FROM disks WHERE group_id = $1 ORDER BY name";
        let disk = |row| {
            let size = SectorCount(unsigned(row, "sectors")?);
            Ok(DiskRecord { id: DiskId(id(row, "id")?), name: name(row)?, size })
        };
        self.of_group(&DISKS, text, group).await?.iter().map(disk).collect()
    }

    /// A group's points, oldest first.
    pub async fn points(&self, group: GroupId) -> Result<Vec<Point>> {
        let text = "SELECT * FROM points WHERE group_id = $1 ORDER BY lsn";
        self.of_group(&POINTS, text, group).await?.iter().map(point).collect()
    }

    async fn tests(&self, group: GroupId) -> Result<Vec<TestRecord>> {
        let text = "SELECT * FROM tests WHERE group_id = $1 ORDER BY number";
        let test = |row| {
            Ok(TestRecord {
                number: TestId(unsigned(row, "number")?),
                point: PointId(id(row, "point_id")?),
                started: WallNanos(column(row, "started_ns")?),
            })
        };
        self.of_group(&TESTS, text, group).await?.iter().map(test).collect()
    }

    async fn of_group(&self, table: &Table, text: &'static str, group: GroupId) -> Result<Vec<SqliteRow>> {
        self.read(table, sqlx::query(text).bind(blob(group.0))).await
    }

    async fn execute(&self, query: Query<'_>) -> Result<()> {
        query.execute(&self.pool).await.map(drop).map_err(failed)
    }
}

type Query<'a> = sqlx::query::Query<'a, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

/// Result codes of sqlite.org/rescode.html, in the low byte of extended ones.
const SQLITE_BUSY: u32 = 5;
const SQLITE_CORRUPT: u32 = 11;
const SQLITE_FULL: u32 = 13;
const SQLITE_NOTADB: u32 = 26;

fn failed(error: sqlx::Error) -> Error {
    let code = error.as_database_error().and_then(|error| error.code());
    let code = code.and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff);
    let kind = match code {
        Some(SQLITE_CORRUPT | SQLITE_NOTADB) => ErrorKind::Corrupt,
        Some(SQLITE_FULL) => ErrorKind::NoSpace,
        Some(SQLITE_BUSY) => ErrorKind::Locked,
        _ if matches!(error, sqlx::Error::ColumnDecode { .. }) => ErrorKind::Corrupt,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("catalogue: {error}"))
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
