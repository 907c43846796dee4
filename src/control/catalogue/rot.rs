//! Rows of the catalogue that are not what was written: who reads one is not shown it, and it is told once, in the log with its place in
//! the file, and for an event.
//!
//! The place is that of the row's sum, which stands at its beginning: its bytes are searched for in the file, since SQLite does not say
//! where a row is. Where an earlier copy of the row was left in a page, there are several.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteRow;
use tokio::sync::Notify;

use super::schema::Table;
use super::sums::{named, stored_sum};
use super::{Catalogue, Query, failed};
use crate::error::Result;

/// So many rows of those that are found at once are named in an event, and looked for in the file.
const NAMED_MAX: usize = 8;
/// So many are named in the log.
const LOGGED_MAX: usize = 100;
/// So many places of one row are told.
const PLACES_MAX: usize = 3;

/// What was found damaged, and is not an event yet.
#[derive(Debug, Default)]
pub(super) struct Rot {
    /// Messages of events.
    untold: parking_lot::Mutex<Vec<String>>,
    /// Rows that were told since the catalogue was opened.
    told: parking_lot::Mutex<HashSet<String>>,
    news: Notify,
}

impl Rot {
    pub fn push(&self, message: String) {
        self.untold.lock().push(message);
        self.news.notify_one();
    }
}

/// A row that is not what was written.
#[derive(Clone, Debug)]
pub(super) struct RottenRow {
    table: &'static str,
    /// As it stands there, and may be damaged itself.
    key: String,
    sum: Option<[u8; 16]>,
    /// Where its sum stands in the file.
    places: Vec<u64>,
}

impl RottenRow {
    pub fn of(table: &Table, row: &SqliteRow) -> RottenRow {
        let part = |column: &&str| {
            let value = named(row, column).map_or_else(|| "?".to_owned(), |value| value.to_string());
            format!("{column} {value}")
        };
        let key = table.key().iter().map(part).collect::<Vec<_>>().join(", ");
        RottenRow { table: table.name, key, sum: stored_sum(row), places: Vec::new() }
    }

    fn place(&self) -> Option<String> {
        let places: Vec<String> = self.places.iter().map(u64::to_string).collect();
        Some(places.join(" or ")).filter(|places| !places.is_empty())
    }

    fn text(&self) -> String {
        match self.place() {
            Some(place) => format!("{} ({}, at byte {place})", self.table, self.key),
            None => format!("{} ({})", self.table, self.key),
        }
    }
}

impl Catalogue {
    /// Messages of events that tell what was found damaged, each once.
    pub fn take_rot(&self) -> Vec<String> {
        std::mem::take(&mut self.rot.untold.lock())
    }

    /// Waits until there may be some.
    pub async fn rot_found(&self) {
        self.rot.news.notified().await;
    }

    /// What a query finds in a table, every column of it, but for what is not what was written.
    pub(super) async fn read(&self, table: &Table, query: Query<'_>) -> Result<Vec<SqliteRow>> {
        let rows = query.fetch_all(&self.pool).await.map_err(failed)?;
        Ok(self.sound(table, rows).await)
    }

    /// Those of a table's rows that are what was written; the others are told.
    pub(super) async fn sound(&self, table: &Table, rows: Vec<SqliteRow>) -> Vec<SqliteRow> {
        let (sound, damaged): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| table.is_sound(row));
        let mut found: Vec<RottenRow> = damaged.iter().map(|row| RottenRow::of(table, row)).collect();
        found.retain(|row| self.rot.told.lock().insert(row.text()));
        if !found.is_empty() {
            let found = located(&self.path, found).await;
            self.tell_rows(&found);
        }
        sound
    }

    /// Tells of rows that nobody is shown.
    pub(super) fn tell_rows(&self, rows: &[RottenRow]) {
        for row in &rows[..rows.len().min(LOGGED_MAX)] {
            let (path, place) = (self.path.display(), row.place());
            tracing::warn!(%path, table = row.table, key = row.key, at_byte = place, "a row of the catalogue is not what was written: it is left out");
        }
        self.rot.push(message(&self.path, rows));
    }
}

/// What an event says.
fn message(path: &Path, rows: &[RottenRow]) -> String {
    let (these, are) = if rows.len() == 1 {
        ("1 row".to_owned(), "is not what was written, and is left out")
    } else {
        (format!("{} rows", rows.len()), "are not what was written, and are left out")
    };
    let mut named: Vec<String> = rows.iter().take(NAMED_MAX).map(RottenRow::text).collect();
    if rows.len() > NAMED_MAX {
        named.push(format!("{} more: the log names {LOGGED_MAX} at most", rows.len() - NAMED_MAX));
    }
    format!(
        "bits have flipped in the catalogue, {}: {these} of it {are}: {}. What the past is known by is gone with that; nothing of what is \
         protected is kept there, and what it says of groups is made anew from their manifests. Replace the device",
        path.display(),
        named.join("; ")
    )
}

/// The rows with their places in the file, as far as they are found.
pub(super) async fn located(path: &Path, rows: Vec<RottenRow>) -> Vec<RottenRow> {
    let (path, mut searched) = (PathBuf::from(path), rows.clone());
    let search = tokio::task::spawn_blocking(move || {
        // A file that cannot be read has no places to tell.
        let _ = search(&path, &mut searched[..rows.len().min(NAMED_MAX)]);
        searched
    });
    search.await.expect("nothing in it panics")
}

fn search(path: &Path, rows: &mut [RottenRow]) -> std::io::Result<()> {
    const PIECE: usize = 1 << 20;
    const OVERLAP: usize = 15;
    let mut file = File::open(path)?;
    let (mut at, mut piece) = (0, Vec::new());
    loop {
        let kept = piece.len();
        let taken = file.by_ref().take(PIECE as u64).read_to_end(&mut piece)?;
        if taken == 0 {
            return Ok(());
        }
        for row in rows.iter_mut() {
            let Some(sum) = row.sum else { continue };
            let found = piece.windows(sum.len()).enumerate().filter(|(_, bytes)| **bytes == sum);
            let room = PLACES_MAX - row.places.len();
            row.places.extend(found.map(|(index, _)| at + index as u64).take(room));
        }
        let done = (kept + taken).saturating_sub(OVERLAP);
        piece.drain(..done);
        at += done as u64;
    }
}

#[cfg(test)]
#[path = "rot_tests.rs"]
pub(super) mod tests;
