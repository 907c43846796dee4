//! The catalogue: an SQL copy of what manifests and journals say, to list and search without reading them.
//!
//! It is a cache. Nothing is true because it stands here; what it says of groups can be made again with
//! [`Catalogue::rebuild`], so a file that is damaged is moved aside and begun anew. What it says of
//! the past can't: events, the audit trail, ended jobs and samples are gone then, which its other id tells (docs/events.md). So what a later
//! version wrote is refused, and what the two versions before wrote is taken over. What it took is synced, so that a power cut loses none of it.
//!
//! The SQL is the subset that PostgreSQL takes too: TEXT, BIGINT and BLOB, `$n`, `ON CONFLICT`. Ids are 16 bytes,
//! big-endian, so that they sort like their text; PRAGMAs are set by the connection's options only.

mod audit;
mod events;
mod jobs;
mod rows;
mod samples;

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Row, SqliteConnection, SqlitePool};

pub use self::events::{EventFilter, EventsFound};
use self::rows::{
    bigint, blob, column, delete_group, id, insert_disk, insert_group, insert_point, insert_policy,
    insert_test, name, point, unblob, unsigned, unword,
};
use super::model::{Job, Point, Policy};
use super::name::Name;
use crate::block::TestId;
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{DiskId, GroupId, Lsn, PointId, SectorCount, WallNanos};

/// Given a new number with every change of the tables.
const SCHEMA_VERSION: i64 = 4;
/// Its tables are ours, but for those that it lacks.
const SCHEMA_VERSION_BEFORE: i64 = 3;
/// Its table `catalogue` has no id either.
const SCHEMA_VERSION_WITHOUT_ID: i64 = 2;

const SCHEMA: [&str; 11] = [
    "CREATE TABLE IF NOT EXISTS catalogue (singleton BIGINT PRIMARY KEY, schema_version BIGINT NOT NULL,
        id BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS protection_groups (id BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        created_ns BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS policies (group_id BLOB PRIMARY KEY, interval_ms BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS disks (id BLOB PRIMARY KEY, group_id BLOB NOT NULL, name TEXT NOT NULL,
        sectors BIGINT NOT NULL, UNIQUE (group_id, name))",
    "CREATE TABLE IF NOT EXISTS points (group_id BLOB NOT NULL, lsn BIGINT NOT NULL, id BLOB NOT NULL,
        time_ns BIGINT NOT NULL, kind TEXT NOT NULL, label TEXT, delta_bytes BIGINT NOT NULL,
        PRIMARY KEY (group_id, lsn))",
    "CREATE TABLE IF NOT EXISTS tests (group_id BLOB NOT NULL, number BIGINT NOT NULL, point_id BLOB NOT NULL,
        started_ns BIGINT NOT NULL, PRIMARY KEY (group_id, number))",
    "CREATE TABLE IF NOT EXISTS events (sequence BIGINT PRIMARY KEY, time_ns BIGINT NOT NULL, group_id BLOB,
        name TEXT, severity TEXT NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS hook_cursors (name TEXT PRIMARY KEY, sequence BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS audit (sequence BIGINT PRIMARY KEY, record TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS jobs (sequence BIGINT PRIMARY KEY, id TEXT NOT NULL UNIQUE, job TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS samples (group_id BLOB NOT NULL, span_s BIGINT NOT NULL, start_ns BIGINT NOT NULL,
        sample TEXT NOT NULL, PRIMARY KEY (group_id, span_s, start_ns))",
];

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
    path: PathBuf,
    /// Drawn when the file was begun.
    id: u128,
    /// The newest record of the audit trail when it was opened: those up to it are of earlier processes.
    audited_before: u64,
    /// The jobs that it knew when it was opened, oldest first: in mind, since nobody who asks for jobs waits for its disk.
    earlier_jobs: Arc<[Job]>,
}

/// What lies at a catalogue's path.
enum Found {
    /// Ours, with its id.
    Current(u128),
    /// Of an earlier version, with its id if it has one.
    Earlier(Option<u128>),
    New,
    /// To be moved aside, and why.
    Unusable(String),
}

impl Catalogue {
    /// Opens the catalogue, creating it, or moving an unusable one aside to `PATH.unusable`. One that is begun draws its id.
    pub async fn open(path: &Path, environment: &dyn Environment) -> Result<(Catalogue, Content)> {
        make_private(path)?;
        let mut catalogue = Catalogue::connect(path, environment.random_u128());
        let reason = match catalogue.look().await {
            Ok(Found::Current(id)) => {
                catalogue.id = id;
                catalogue.look_back().await?;
                return Ok((catalogue, Content::Kept));
            }
            Ok(Found::Earlier(id)) => {
                catalogue.id = id.unwrap_or(catalogue.id);
                catalogue.take_over().await?;
                catalogue.look_back().await?;
                return Ok((catalogue, Content::Kept));
            }
            Ok(Found::New) => {
                catalogue.create().await?;
                return Ok((catalogue, Content::Empty));
            }
            Ok(Found::Unusable(reason)) => reason,
            Err(error) if error.kind() == ErrorKind::Corrupt => error.to_string(),
            Err(error) => return Err(error),
        };
        catalogue.pool.close().await;
        move_aside(path)?;
        make_private(path)?;
        tracing::warn!(path = %path.display(), reason, "catalogue moved aside to be rebuilt; no data is lost by it");
        let catalogue = Catalogue::connect(path, environment.random_u128());
        catalogue.create().await?;
        Ok((catalogue, Content::Empty))
    }

    fn connect(path: &Path, id: u128) -> Catalogue {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        // One connection: a cache's writers need no concurrency, and never see SQLITE_BUSY.
        let pool = SqlitePoolOptions::new().max_connections(1).connect_lazy_with(options);
        Catalogue { pool, path: path.to_owned(), id, audited_before: 0, earlier_jobs: Arc::default() }
    }

    /// Notes what it knew of earlier processes.
    async fn look_back(&mut self) -> Result<()> {
        self.audited_before = self.newest_audit().await?;
        self.earlier_jobs = self.jobs().await?.into();
        Ok(())
    }

    async fn stored_id(&self) -> Result<u128> {
        let row = sqlx::query("SELECT id FROM catalogue").fetch_one(&self.pool).await.map_err(failed)?;
        id(&row, "id")
    }

    async fn look(&self) -> Result<Found> {
        let tables = sqlx::query("SELECT COUNT(*) FROM sqlite_master");
        let tables: i64 =
            tables.fetch_one(&self.pool).await.and_then(|row| row.try_get(0)).map_err(failed)?;
        if tables == 0 {
            return Ok(Found::New);
        }
        let check = sqlx::query("PRAGMA quick_check(1)").fetch_one(&self.pool).await.map_err(failed)?;
        let check: String = check.try_get(0).map_err(failed)?;
        if check != "ok" {
            return Ok(Found::Unusable(check));
        }
        let version = sqlx::query("SELECT schema_version FROM catalogue").fetch_optional(&self.pool).await;
        match version.and_then(|row| row.map(|row| row.try_get::<i64, _>(0)).transpose()) {
            Ok(Some(SCHEMA_VERSION)) => Ok(Found::Current(self.stored_id().await?)),
            Ok(Some(SCHEMA_VERSION_BEFORE)) => Ok(Found::Earlier(Some(self.stored_id().await?))),
            Ok(Some(SCHEMA_VERSION_WITHOUT_ID)) => Ok(Found::Earlier(None)),
            Ok(Some(later)) if later > SCHEMA_VERSION => {
                Err(Error::unknown_version("the catalogue", later, SCHEMA_VERSION).at_path(&self.path))
            }
            Ok(Some(other)) => Ok(Found::Unusable(format!(
                "it has schema version {other}, this program writes {SCHEMA_VERSION}"
            ))),
            Ok(None) => Ok(Found::Unusable("it was never completed".to_owned())),
            Err(error) => Ok(Found::Unusable(error.to_string())),
        }
    }

    async fn create(&self) -> Result<()> {
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        self.complete(&mut transaction).await?;
        transaction.commit().await.map_err(failed)
    }

    /// Makes ours of one that an earlier version wrote: what it has stays.
    async fn take_over(&self) -> Result<()> {
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        sqlx::query("DROP TABLE catalogue").execute(&mut *transaction).await.map_err(failed)?;
        self.complete(&mut transaction).await?;
        transaction.commit().await.map_err(failed)
    }

    /// Makes the tables that are missing.
    async fn complete(&self, connection: &mut SqliteConnection) -> Result<()> {
        for statement in SCHEMA {
            sqlx::query(statement).execute(&mut *connection).await.map_err(failed)?;
        }
        let query = sqlx::query("INSERT INTO catalogue (singleton, schema_version, id) VALUES (0, $1, $2)");
        let query = query.bind(SCHEMA_VERSION).bind(blob(self.id));
        query.execute(connection).await.map(drop).map_err(failed)
    }

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
        let query = sqlx::query(
            "SELECT g.id, g.name, g.created_ns, p.interval_ms
             FROM protection_groups g JOIN policies p ON p.group_id = g.id ORDER BY g.name",
        );
        let mut groups = Vec::new();
        for row in query.fetch_all(&self.pool).await.map_err(failed)? {
            let id = GroupId(id(&row, "id")?);
            groups.push(GroupRecord {
                id,
                name: name(&row)?,
                created: WallNanos(column(&row, "created_ns")?),
                policy: Policy { interval_ms: unsigned(&row, "interval_ms")? },
                disks: self.disks(id).await?,
                points: self.points(id).await?,
                tests: self.tests(id).await?,
            });
        }
        Ok(Snapshot { groups })
    }

    /// What it says of a group, if it knows it; not its points, which may be many.
    pub async fn describe(&self, group: GroupId) -> Result<Option<GroupDescription>> {
        let query = sqlx::query(
            "SELECT g.created_ns, p.interval_ms
             FROM protection_groups g JOIN policies p ON p.group_id = g.id WHERE g.id = $1",
        );
        let row = query.bind(blob(group.0)).fetch_optional(&self.pool).await.map_err(failed)?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(GroupDescription {
            created: WallNanos(column(&row, "created_ns")?),
            policy: Policy { interval_ms: unsigned(&row, "interval_ms")? },
            disks: self.disks(group).await?,
        }))
    }

    async fn disks(&self, group: GroupId) -> Result<Vec<DiskRecord>> {
        let query = sqlx::query("SELECT id, name, sectors FROM disks WHERE group_id = $1 ORDER BY name");
        let rows = query.bind(blob(group.0)).fetch_all(&self.pool).await.map_err(failed)?;
        rows.iter()
            .map(|row| {
                let size = SectorCount(unsigned(row, "sectors")?);
                Ok(DiskRecord { id: DiskId(id(row, "id")?), name: name(row)?, size })
            })
            .collect()
    }

    /// A group's points, oldest first.
    pub async fn points(&self, group: GroupId) -> Result<Vec<Point>> {
        let query = sqlx::query(
            "SELECT id, lsn, time_ns, kind, label, delta_bytes FROM points WHERE group_id = $1 ORDER BY lsn",
        );
        let rows = query.bind(blob(group.0)).fetch_all(&self.pool).await.map_err(failed)?;
        rows.iter().map(point).collect()
    }

    async fn tests(&self, group: GroupId) -> Result<Vec<TestRecord>> {
        let query =
            sqlx::query("SELECT number, point_id, started_ns FROM tests WHERE group_id = $1 ORDER BY number");
        let rows = query.bind(blob(group.0)).fetch_all(&self.pool).await.map_err(failed)?;
        rows.iter()
            .map(|row| {
                Ok(TestRecord {
                    number: TestId(unsigned(row, "number")?),
                    point: PointId(id(row, "point_id")?),
                    started: WallNanos(column(row, "started_ns")?),
                })
            })
            .collect()
    }

    async fn execute(&self, query: Query<'_>) -> Result<()> {
        query.execute(&self.pool).await.map(drop).map_err(failed)
    }
}

type Query<'a> = sqlx::query::Query<'a, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

/// Result codes of sqlite.org/rescode.html, in the low byte of extended ones.
const SQLITE_CORRUPT: u32 = 11;
const SQLITE_FULL: u32 = 13;
const SQLITE_NOTADB: u32 = 26;

fn failed(error: sqlx::Error) -> Error {
    let code = error.as_database_error().and_then(|error| error.code());
    let code = code.and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff);
    let kind = match code {
        Some(SQLITE_CORRUPT | SQLITE_NOTADB) => ErrorKind::Corrupt,
        Some(SQLITE_FULL) => ErrorKind::NoSpace,
        _ if matches!(error, sqlx::Error::ColumnDecode { .. }) => ErrorKind::Corrupt,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("catalogue: {error}"))
}

/// Makes the file one that nobody else may read, before anything is in it; SQLite makes the files beside it like it.
fn make_private(path: &Path) -> Result<()> {
    let private = Permissions::from_mode(0o600);
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path);
    let made = file.and_then(|file| file.set_permissions(private.clone()));
    made.map_err(|error| Error::io("creating the catalogue", error).at_path(path))?;
    for suffix in ["-wal", "-shm"] {
        // What is not there will be made like the file.
        let _ = std::fs::set_permissions(with_suffix(path, suffix), private.clone());
    }
    Ok(())
}

/// Renames the database with its write-ahead log; an earlier one that was moved aside is overwritten, so that they
/// never add up.
fn move_aside(path: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let from = with_suffix(path, suffix);
        let to = with_suffix(path, &format!(".unusable{suffix}"));
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("moving an unusable catalogue aside", error).at_path(&from));
            }
            _ => {}
        }
    }
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
