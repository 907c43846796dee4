//! The sum of a row: a bit that flips on the disk in what the row says is found by whoever reads it.
//!
//! SQLite looks at the structure of its pages only. A row's first column is the XXH3-128, big-endian, of what follows:
//!
//! ```text
//!   u32  length of the table's name      then, for each column but the sum, in their order:
//!   ...  the table's name                  0                          NULL
//!                                          1, i64                     BIGINT
//!                                          2, u64 length, bytes       TEXT
//!                                          3, u64 length, bytes       BLOB
//! ```
//!
//! Integers are big-endian. Invariant: nothing writes a row but [`Table::put`], and nothing of a row is used that
//! [`Table::is_sound`] did not look at. Sums are against accidents: whoever may write the file can write sums.

use sqlx::sqlite::SqliteRow;
use sqlx::{Column, Decode, Row, Sqlite, SqliteConnection, TypeInfo, ValueRef};

use super::failed;
use super::schema::Table;
use crate::error::Result;
use crate::format::checksum;

/// The column that has the sum.
pub(super) const SUM: &str = "sum";
/// What SQLite's own name of a row is read as; no column of ours.
pub(super) const PLACE: &str = "place";

/// What stands in a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Integer(i64),
    Text(String),
    Blob(Vec<u8>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Value {
        Value::Integer(value)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl From<u128> for Value {
    fn from(id: u128) -> Value {
        Value::Blob(super::blob(id))
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Value {
        value.map_or(Value::Null, Into::into)
    }
}

/// As people are told it; a damaged one may be anything.
impl std::fmt::Display for Value {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Null => write!(formatter, "NULL"),
            Value::Integer(value) => write!(formatter, "{value}"),
            Value::Text(text) => write!(formatter, "{:?}", text.chars().take(40).collect::<String>()),
            Value::Blob(bytes) => bytes.iter().take(16).try_for_each(|byte| write!(formatter, "{byte:02x}")),
        }
    }
}

impl Table {
    /// Adds a row, or changes the one with its key.
    pub async fn put(&self, connection: &mut SqliteConnection, values: &[Value]) -> Result<()> {
        assert_eq!(values.len(), self.columns.len(), "a value a column of {}", self.name);
        let sum = self.sum(values.iter().cloned());
        let mut query = sqlx::query(sqlx::AssertSqlSafe(self.put_text())).bind(sum.to_vec());
        for value in values {
            query = match value {
                Value::Null => query.bind(None::<i64>),
                Value::Integer(value) => query.bind(*value),
                Value::Text(text) => query.bind(text.clone()),
                Value::Blob(bytes) => query.bind(bytes.clone()),
            };
        }
        query.execute(connection).await.map(drop).map_err(failed)
    }

    fn put_text(&self) -> String {
        let numbers: Vec<String> = (1..=self.columns.len() + 1).map(|number| format!("${number}")).collect();
        let others = self.columns[self.keys..].iter().chain([&SUM]);
        let others: Vec<String> = others.map(|column| format!("{column} = excluded.{column}")).collect();
        format!(
            "INSERT INTO {} ({SUM}, {}) VALUES ({}) ON CONFLICT ({}) DO UPDATE SET {}",
            self.name,
            self.columns.join(", "),
            numbers.join(", "),
            self.key().join(", "),
            others.join(", ")
        )
    }

    /// Whether a row, of which every column was read, is what was written.
    pub fn is_sound(&self, row: &SqliteRow) -> bool {
        let mut encoded = self.begin();
        for (at, column) in row.columns().iter().enumerate() {
            if column.name() != SUM && column.name() != PLACE {
                let Some(value) = value(row, at) else { return false };
                push(&mut encoded, &value);
            }
        }
        stored_sum(row).is_some_and(|sum| sum == checksum(&encoded).to_be_bytes())
    }

    fn sum(&self, values: impl Iterator<Item = Value>) -> [u8; 16] {
        let mut encoded = self.begin();
        values.for_each(|value| push(&mut encoded, &value));
        checksum(&encoded).to_be_bytes()
    }

    fn begin(&self) -> Vec<u8> {
        let length = u32::try_from(self.name.len()).expect("the names of our tables are short");
        [&length.to_be_bytes(), self.name.as_bytes()].concat()
    }
}

fn push(encoded: &mut Vec<u8>, value: &Value) {
    let (kind, bytes) = match value {
        Value::Null => return encoded.push(0),
        Value::Integer(value) => {
            encoded.push(1);
            return encoded.extend(value.to_be_bytes());
        }
        Value::Text(text) => (2, text.as_bytes()),
        Value::Blob(bytes) => (3, bytes.as_slice()),
    };
    encoded.push(kind);
    encoded.extend((bytes.len() as u64).to_be_bytes());
    encoded.extend(bytes);
}

/// What stands in a column; nothing if we write no such thing.
fn value(row: &SqliteRow, at: usize) -> Option<Value> {
    let stored = row.try_get_raw(at).ok()?;
    if stored.is_null() {
        return Some(Value::Null);
    }
    let kind = stored.type_info().name().to_owned();
    match kind.as_str() {
        "INTEGER" => <i64 as Decode<Sqlite>>::decode(stored).ok().map(Value::Integer),
        "TEXT" => <String as Decode<Sqlite>>::decode(stored).ok().map(Value::Text),
        "BLOB" => <Vec<u8> as Decode<Sqlite>>::decode(stored).ok().map(Value::Blob),
        _ => None,
    }
}

/// What stands in a column of that name.
pub(super) fn named(row: &SqliteRow, name: &str) -> Option<Value> {
    let at = row.columns().iter().position(|column| column.name() == name)?;
    value(row, at)
}

/// The sum that stands in a row, if it can be one.
pub(super) fn stored_sum(row: &SqliteRow) -> Option<[u8; 16]> {
    match named(row, SUM)? {
        Value::Blob(bytes) => bytes.try_into().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema::{AUDIT, EVENTS, JOBS};
    use super::*;

    #[test]
    fn no_two_rows_are_encoded_alike() {
        let text = |text: &str| Value::from(text);
        let rows = [
            (&JOBS, vec![Value::Null, text("ab"), text("c")]),
            (&JOBS, vec![Value::Null, text("a"), text("bc")]),
            (&JOBS, vec![text(""), text("ab"), text("c")]),
            (&JOBS, vec![Value::Integer(0), text("ab"), text("c")]),
            (&JOBS, vec![Value::Null, Value::Blob(b"ab".to_vec()), text("c")]),
            (&EVENTS, vec![Value::Null, text("ab"), text("c")]),
        ];
        let sums: std::collections::BTreeSet<_> =
            rows.iter().map(|(table, values)| table.sum(values.iter().cloned())).collect();
        assert_eq!(sums.len(), rows.len());
    }

    /// What is on disk is compared with it: docs/format.md has the encoding.
    #[test]
    fn the_encoding_stays() {
        let encoded = b"\0\0\0\x05audit\x01\0\0\0\0\0\0\0\x07\x02\0\0\0\0\0\0\0\x02{}";
        let sum = AUDIT.sum([Value::Integer(7), Value::from("{}")].into_iter());
        assert_eq!(sum, xxhash_rust::xxh3::xxh3_128(encoded).to_be_bytes());
    }
}
