//! Rows of the catalogue's tables: what they are made of, and what they are read as.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::schema::{DISKS, GROUPS, POINTS, POLICIES, TESTS};
use super::{DiskRecord, GroupRecord, TestRecord, failed};
use crate::control::model::{Point, PointKind, Policy};
use crate::control::name::Name;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{GroupId, Lsn, PointId, WallNanos};

const POINT_KINDS: [(PointKind, &str); 2] =
    [(PointKind::Crash, "crash"), (PointKind::Application, "application")];

pub(super) async fn insert_group(connection: &mut SqliteConnection, group: &GroupRecord) -> Result<()> {
    let row = [group.id.0.into(), group.name.as_str().into(), group.created.0.into()];
    GROUPS.put(connection, &row).await?;
    insert_policy(connection, group.id, group.policy).await?;
    for disk in &group.disks {
        insert_disk(connection, group.id, disk).await?;
    }
    for point in &group.points {
        insert_point(connection, group.id, point).await?;
    }
    for test in &group.tests {
        insert_test(connection, group.id, *test).await?;
    }
    Ok(())
}

pub(super) async fn delete_group(connection: &mut SqliteConnection, group: GroupId) -> Result<()> {
    for statement in [
        "DELETE FROM tests WHERE group_id = $1",
        "DELETE FROM points WHERE group_id = $1",
        "DELETE FROM disks WHERE group_id = $1",
        "DELETE FROM policies WHERE group_id = $1",
        "DELETE FROM protection_groups WHERE id = $1",
    ] {
        sqlx::query(statement).bind(blob(group.0)).execute(&mut *connection).await.map_err(failed)?;
    }
    Ok(())
}

pub(super) async fn insert_policy(
    connection: &mut SqliteConnection,
    group: GroupId,
    policy: Policy,
) -> Result<()> {
    POLICIES.put(connection, &[group.0.into(), bigint(policy.interval_ms)?.into()]).await
}

pub(super) async fn insert_disk(
    connection: &mut SqliteConnection,
    group: GroupId,
    disk: &DiskRecord,
) -> Result<()> {
    let row = [disk.id.0.into(), group.0.into(), disk.name.as_str().into(), bigint(disk.size.0)?.into()];
    DISKS.put(connection, &row).await
}

pub(super) async fn insert_point(
    connection: &mut SqliteConnection,
    group: GroupId,
    point: &Point,
) -> Result<()> {
    let row = [
        group.0.into(),
        bigint(point.lsn.0)?.into(),
        point.id.0.into(),
        point.time.0.into(),
        word(POINT_KINDS, point.kind).into(),
        point.label.as_deref().into(),
        bigint(point.delta_bytes)?.into(),
    ];
    POINTS.put(connection, &row).await
}

pub(super) async fn insert_test(
    connection: &mut SqliteConnection,
    group: GroupId,
    test: TestRecord,
) -> Result<()> {
    let row = [group.0.into(), bigint(test.number.0)?.into(), test.point.0.into(), test.started.0.into()];
    TESTS.put(connection, &row).await
}

pub(super) fn point(row: &SqliteRow) -> Result<Point> {
    Ok(Point {
        id: PointId(id(row, "id")?),
        lsn: Lsn(unsigned(row, "lsn")?),
        time: WallNanos(column(row, "time_ns")?),
        kind: unword(POINT_KINDS, &column::<String>(row, "kind")?)?,
        label: column(row, "label")?,
        delta_bytes: unsigned(row, "delta_bytes")?,
        // The manifest's pins say which are; nobody asks the cache.
        held: false,
        lacks: Vec::new(),
    })
}

pub(super) fn name(row: &SqliteRow) -> Result<Name> {
    let text: String = column(row, "name")?;
    text.parse().map_err(|_| Error::corrupt(format!("catalogue: `{text}` is not a name")))
}

pub(super) fn column<'r, T>(row: &'r SqliteRow, name: &str) -> Result<T>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(name).map_err(failed)
}

pub(super) fn unsigned(row: &SqliteRow, name: &str) -> Result<u64> {
    let value: i64 = column(row, name)?;
    u64::try_from(value).map_err(|_| Error::corrupt(format!("catalogue: {name} = {value} is negative")))
}

pub(super) fn bigint(value: u64) -> Result<i64> {
    i64::try_from(value)
        .map_err(|_| Error::new(ErrorKind::Unsupported, format!("catalogue: {value} does not fit a BIGINT")))
}

pub(super) fn id(row: &SqliteRow, name: &str) -> Result<u128> {
    unblob(&column::<Vec<u8>>(row, name)?)
}

pub(super) fn blob(id: u128) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

pub(super) fn unblob(bytes: &[u8]) -> Result<u128> {
    let bytes = bytes.try_into().map_err(|_| Error::corrupt("catalogue: an id does not have 16 bytes"))?;
    Ok(u128::from_be_bytes(bytes))
}

pub(super) fn word<T: PartialEq, const N: usize>(words: [(T, &'static str); N], value: T) -> &'static str {
    words.iter().find(|(known, _)| *known == value).expect("every value has a word").1
}

pub(super) fn unword<T: Copy, const N: usize>(words: [(T, &'static str); N], text: &str) -> Result<T> {
    let known = words.iter().find(|(_, word)| *word == text);
    known.map(|(value, _)| *value).ok_or_else(|| Error::corrupt(format!("catalogue: unknown word `{text}`")))
}
