//! Opening the catalogue: what lies at its path is looked through before anybody is shown any of it.
//!
//! ```text
//!   nothing ─▶ begun        damaged structure, tables or row that says what it is ─▶ moved aside, begun anew
//!   a version before ─▶ taken over: rows get sums        a later version ─▶ refused
//!   ours ─▶ every row is compared with its sum; damaged ones are taken out; damaged indices are made anew
//! ```

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Column, Connection, Row, SqliteConnection, SqlitePool};

use super::rot::{RottenRow, located};
use super::schema::{CATALOGUE, EVENTS, SCHEMA_VERSION, SCHEMA_VERSIONS_BEFORE, TABLES, Table};
use super::sums::{PLACE, SUM, Value, named};
use super::{Catalogue, Content, column, failed, id, unsigned};
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};

/// Rows that are looked at in one go.
const ROWS: usize = 1000;
const OTHER_TABLES: &str = "its tables are not those that were made";

/// What lies at a catalogue's path.
enum Found {
    /// Ours.
    Current,
    /// Of an earlier version.
    Earlier,
    New,
    /// To be moved aside.
    Unusable(Unusable),
}

struct Unusable {
    reason: String,
    /// Whether it is not what somebody wrote.
    is_damaged: bool,
}

impl Unusable {
    fn damaged(reason: impl Into<String>) -> Found {
        Found::Unusable(Unusable { reason: reason.into(), is_damaged: true })
    }

    fn foreign(reason: impl Into<String>) -> Found {
        Found::Unusable(Unusable { reason: reason.into(), is_damaged: false })
    }
}

impl Catalogue {
    /// Opens the catalogue, creating it, or moving an unusable one aside to `PATH.unusable`. One that is begun draws its id.
    pub async fn open(path: &Path, environment: &dyn Environment) -> Result<(Catalogue, Content)> {
        make_private(path)?;
        let mut catalogue = Catalogue::connect(path, environment.random_u128());
        let mut taken_up = catalogue.take_up().await;
        if taken_up.as_ref().is_err_and(|error| error.kind() == ErrorKind::Locked) {
            tracing::warn!(path = %path.display(), "somebody else reads the catalogue: it is not locked, and may end the process should the file system be full at once");
            catalogue.pool.close().await;
            catalogue.shared = true;
            catalogue.pool = pool(path, true);
            taken_up = catalogue.take_up().await;
        }
        let unusable = match taken_up {
            Ok(Found::New) => return Ok((catalogue, Content::Empty)),
            Ok(Found::Current | Found::Earlier) => return Ok((catalogue, Content::Kept)),
            Ok(Found::Unusable(unusable)) => unusable,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                Unusable { reason: error.to_string(), is_damaged: true }
            }
            Err(error) => return Err(error),
        };
        catalogue.pool.close().await;
        move_aside(path)?;
        make_private(path)?;
        let reason = unusable.reason;
        tracing::warn!(path = %path.display(), reason, "catalogue moved aside to be rebuilt; no data is lost by it");
        let catalogue = Catalogue::connect(path, environment.random_u128());
        catalogue.create().await?;
        if unusable.is_damaged {
            catalogue.rot.push(format!(
                "the catalogue, {}, is damaged ({reason}), and was moved aside, to catalogue.sqlite.unusable: another is begun, which \
                 knows nothing of the past; nothing of what is protected is kept there",
                path.display()
            ));
        }
        Ok((catalogue, Content::Empty))
    }

    pub(super) fn connect(path: &Path, id: u128) -> Catalogue {
        Catalogue {
            pool: pool(path, false),
            shared: false,
            path: path.to_owned(),
            id,
            events_before: 0,
            audited_before: 0,
            earlier_jobs: Arc::default(),
            rot: Arc::default(),
        }
    }

    /// Makes ready what lies there, if it is usable.
    async fn take_up(&mut self) -> Result<Found> {
        let found = self.look().await?;
        match found {
            Found::New => self.create().await?,
            Found::Current => self.take_out_damage().await?,
            Found::Earlier => self.take_over().await?,
            Found::Unusable(_) => return Ok(found),
        }
        self.audited_before = self.newest_audit().await?;
        self.earlier_jobs = self.jobs().await?.into();
        Ok(found)
    }

    /// Looks whether it is a database, whole, and which version it is of.
    async fn look(&mut self) -> Result<Found> {
        // As bytes: sqlx does not survive a text of SQLite's own that is none.
        let texts = once("SELECT CAST(COALESCE(sql, '') AS BLOB) FROM sqlite_master").fetch_all(&self.pool);
        let texts = texts.await.map_err(failed)?;
        let pages = once("PRAGMA page_count").fetch_one(&self.pool).await.map_err(failed)?;
        if texts.is_empty() && pages.try_get::<i64, _>(0).map_err(failed)? <= 1 {
            return Ok(Found::New);
        }
        let texts = texts.iter().map(|row| row.try_get(0).ok().and_then(|text| String::from_utf8(text).ok()));
        let Some(texts) = texts.collect::<Option<Vec<String>>>() else {
            return Ok(Unusable::damaged(OTHER_TABLES));
        };
        let check = self.pragma("quick_check(1)").await?;
        if check != "ok" {
            return Ok(Unusable::damaged(check));
        }
        match once("SELECT * FROM catalogue").fetch_optional(&self.pool).await {
            Ok(Some(row)) => self.look_at(&row, &texts),
            Ok(None) => Ok(Unusable::damaged("nothing in it says what it is")),
            Err(error) => Ok(Unusable::damaged(error.to_string())),
        }
    }

    /// Looks at the row that says what the file is.
    fn look_at(&mut self, row: &SqliteRow, texts: &[String]) -> Result<Found> {
        let version = row.try_get::<i64, _>("schema_version");
        let has_sum = row.columns().iter().any(|column| column.name() == SUM);
        if has_sum && !CATALOGUE.is_sound(row) {
            return Ok(Unusable::damaged("the row that says what it is is not what was written"));
        }
        match version {
            // Later versions keep this row and its sum.
            Ok(later) if has_sum && later > SCHEMA_VERSION => {
                Err(Error::unknown_version("the catalogue", later, SCHEMA_VERSION).at_path(&self.path))
            }
            Ok(SCHEMA_VERSION) if has_sum => {
                self.id = id(row, "id")?;
                self.events_before = unsigned(row, "events_before")?;
                // A flip in what SQLite keeps of a table may name its columns otherwise.
                let mut tables = std::iter::once(&CATALOGUE).chain(TABLES);
                if tables.all(|table| texts.contains(&table.text())) {
                    Ok(Found::Current)
                } else {
                    Ok(Unusable::damaged(OTHER_TABLES))
                }
            }
            Ok(before) if !has_sum && SCHEMA_VERSIONS_BEFORE.contains(&before) => {
                if named(row, "id").is_some() {
                    self.id = id(row, "id")?;
                }
                Ok(Found::Earlier)
            }
            Ok(other) if other >= SCHEMA_VERSION => {
                Ok(Unusable::damaged(format!("it has schema version {other}, and its rows have no sums")))
            }
            Ok(other) => Ok(Unusable::foreign(format!(
                "it has schema version {other}, this program writes {SCHEMA_VERSION}"
            ))),
            Err(error) => Ok(Unusable::damaged(error.to_string())),
        }
    }

    async fn pragma(&self, what: &str) -> Result<String> {
        let text = format!("PRAGMA {what}");
        let row = sqlx::query(sqlx::AssertSqlSafe(text)).fetch_one(&self.pool).await.map_err(failed)?;
        row.try_get(0).map_err(failed)
    }

    async fn create(&self) -> Result<()> {
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        for table in std::iter::once(&CATALOGUE).chain(TABLES) {
            execute(&mut transaction, table.text()).await?;
        }
        self.put_catalogue(&mut transaction).await?;
        transaction.commit().await.map_err(failed)
    }

    /// Writes the row that says what the file is.
    async fn put_catalogue(&self, connection: &mut SqliteConnection) -> Result<()> {
        let before = super::bigint(self.events_before)?;
        CATALOGUE.put(connection, &[0i64.into(), SCHEMA_VERSION.into(), self.id.into(), before.into()]).await
    }

    /// Makes ours of one that an earlier version wrote: what it has stays, and gets sums.
    async fn take_over(&mut self) -> Result<()> {
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        let mut left_out = Vec::new();
        execute(&mut transaction, "DROP TABLE catalogue".to_owned()).await?;
        execute(&mut transaction, CATALOGUE.text()).await?;
        for table in TABLES {
            if exists(&mut transaction, table).await? {
                left_out.extend(take_over(&mut transaction, table).await?);
            } else {
                execute(&mut transaction, table.text()).await?;
            }
        }
        self.put_catalogue(&mut transaction).await?;
        transaction.commit().await.map_err(failed)?;
        // What it has prepared is of the tables of before.
        self.pool.close().await;
        self.pool = pool(&self.path, self.shared);
        if !left_out.is_empty() {
            self.tell_rows(&left_out);
        }
        Ok(())
    }

    /// Compares every row with its sum, and takes out those that are not what was written.
    async fn take_out_damage(&mut self) -> Result<()> {
        let mut connection = self.pool.acquire().await.map_err(failed)?;
        let (mut tables, mut rows) = (Vec::new(), Vec::new());
        for table in TABLES {
            let damaged = damaged(&mut connection, table).await?;
            if !damaged.is_empty() {
                tables.push((table, damaged.iter().map(|(place, _)| *place).collect::<Vec<_>>()));
                rows.extend(damaged.into_iter().map(|(_, row)| row));
            }
        }
        drop(connection);
        // Of indices, too: a row that is not found by its key would be missed, and an id be given twice.
        let check = self.pragma("integrity_check(1)").await?;
        if rows.is_empty() && check == "ok" {
            return Ok(());
        }
        // What is only in the write-ahead log yet has no place in the file.
        self.pragma_done("wal_checkpoint(TRUNCATE)").await?;
        let rows = located(&self.path, rows).await;
        self.without(&tables).await?;
        self.pool.close().await;
        self.pool = pool(&self.path, self.shared);
        if rows.is_empty() {
            self.tell_index(&check);
        } else {
            self.tell_rows(&rows);
        }
        Ok(())
    }

    async fn pragma_done(&self, what: &str) -> Result<()> {
        let text = format!("PRAGMA {what}");
        sqlx::query(sqlx::AssertSqlSafe(text)).execute(&self.pool).await.map(drop).map_err(failed)
    }

    /// Makes tables anew without those rows, and all indices.
    async fn without(&mut self, tables: &[(&'static Table, Vec<i64>)]) -> Result<()> {
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        for (table, places) in tables {
            renew_without(&mut transaction, table, places).await?;
            if table.name == EVENTS.name {
                // Ids grow by one: none of those that are gone can have had a greater one.
                let newest = once("SELECT COALESCE(MAX(sequence), 0) AS newest FROM events");
                let newest = newest.fetch_one(&mut *transaction).await.map_err(failed)?;
                let may_have_been = unsigned(&newest, "newest")? + places.len() as u64;
                self.events_before = self.events_before.max(may_have_been);
                self.put_catalogue(&mut transaction).await?;
            }
        }
        execute(&mut transaction, "REINDEX".to_owned()).await?;
        transaction.commit().await.map_err(failed)
    }

    fn tell_index(&self, check: &str) {
        let path = self.path.display();
        tracing::warn!(%path, found = check, "an index of the catalogue was damaged, and was made anew");
        self.rot.push(format!(
            "bits have flipped in an index of the catalogue, {path} ({check}): it was made anew, and nothing is lost. Replace the device"
        ));
    }
}

fn pool(path: &Path, shared: bool) -> SqlitePool {
    let locking = if shared { SqliteLockingMode::Normal } else { SqliteLockingMode::Exclusive };
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        // Locked, a write-ahead log needs no memory that is shared by a file: on a full file system that ends the process (SIGBUS).
        .locking_mode(locking)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    // One connection: a cache's writers need no concurrency, and never see SQLITE_BUSY.
    SqlitePoolOptions::new()
        .max_connections(1)
        .after_release(|connection, _| Box::pin(is_at_rest(connection)))
        .connect_lazy_with(options)
}

/// Whether no transaction is open on a connection that nobody uses; it is closed otherwise. On a full file system SQLite ends one by
/// itself, sqlx counts it on, and what is written from then on would go into it, and be gone with the process.
async fn is_at_rest(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    // Takes no lock, and is refused within another one.
    let is_open = sqlx::raw_sql("BEGIN; ROLLBACK").execute(&mut *connection).await.is_err();
    let is_counted_open = connection.is_in_transaction();
    if is_open || is_counted_open {
        tracing::debug!("the catalogue's connection was left within a transaction, and is opened anew");
    }
    Ok(!is_open && !is_counted_open)
}

/// A query that is not kept prepared: the tables may change behind it.
fn once(text: &'static str) -> super::Query<'static> {
    sqlx::query(text).persistent(false)
}

async fn execute(connection: &mut SqliteConnection, text: String) -> Result<()> {
    let query = sqlx::query(sqlx::AssertSqlSafe(text)).persistent(false);
    query.execute(connection).await.map(drop).map_err(failed)
}

async fn exists(connection: &mut SqliteConnection, table: &Table) -> Result<bool> {
    let query = once("SELECT name FROM sqlite_master WHERE type = 'table' AND name = $1").bind(table.name);
    query.fetch_optional(connection).await.map(|row| row.is_some()).map_err(failed)
}

/// The next rows behind a place, in the order in which they lie there: no index is asked.
async fn next_rows(connection: &mut SqliteConnection, table: &str, after: i64) -> Result<Vec<SqliteRow>> {
    let text =
        format!("SELECT rowid AS {PLACE}, * FROM {table} WHERE rowid > $1 ORDER BY rowid LIMIT {ROWS}");
    let query = sqlx::query(sqlx::AssertSqlSafe(text)).persistent(false).bind(after);
    query.fetch_all(connection).await.map_err(failed)
}

/// The rows of a table that are not what was written, with their places.
async fn damaged(connection: &mut SqliteConnection, table: &Table) -> Result<Vec<(i64, RottenRow)>> {
    let (mut found, mut after) = (Vec::new(), i64::MIN);
    loop {
        let rows = next_rows(connection, table.name, after).await?;
        let Some(last) = rows.last() else { return Ok(found) };
        after = column(last, PLACE)?;
        for row in rows.iter().filter(|row| !table.is_sound(row)) {
            found.push((column(row, PLACE)?, RottenRow::of(table, row)));
        }
    }
}

/// Gives the rows of a table of before their sums; those that are left out, being nothing that anybody writes.
async fn take_over(connection: &mut SqliteConnection, table: &Table) -> Result<Vec<RottenRow>> {
    let before = set_aside(connection, table).await?;
    let (mut left_out, mut after) = (Vec::new(), i64::MIN);
    loop {
        let rows = next_rows(connection, &before, after).await?;
        let Some(last) = rows.last() else { break };
        after = column(last, PLACE)?;
        for row in &rows {
            let values: Option<Vec<Value>> = table.columns.iter().map(|column| named(row, column)).collect();
            match values {
                Some(values) => table.put(connection, &values).await?,
                None => left_out.push(RottenRow::of(table, row)),
            }
        }
    }
    execute(connection, format!("DROP TABLE {before}")).await?;
    Ok(left_out)
}

/// Copies what is sound: to delete a row, SQLite would have to find it in indices by a key that may have flipped.
async fn renew_without(connection: &mut SqliteConnection, table: &Table, places: &[i64]) -> Result<()> {
    let before = set_aside(connection, table).await?;
    let places: Vec<String> = places.iter().map(i64::to_string).collect();
    let text = format!(
        "INSERT INTO {} SELECT * FROM {before} WHERE rowid NOT IN ({}) ORDER BY rowid",
        table.name,
        places.join(", ")
    );
    execute(connection, text).await?;
    execute(connection, format!("DROP TABLE {before}")).await
}

/// Makes a table anew beside what was there; the name of that.
async fn set_aside(connection: &mut SqliteConnection, table: &Table) -> Result<String> {
    let before = format!("{}_before", table.name);
    execute(connection, format!("ALTER TABLE {} RENAME TO {before}", table.name)).await?;
    execute(connection, table.text()).await?;
    Ok(before)
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

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}
