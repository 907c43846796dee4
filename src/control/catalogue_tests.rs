//! The catalogue against real SQLite files, whole and broken ones.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use sqlx::{Connection, Executor, SqliteConnection};

use super::opening::with_suffix;
use super::rot::tests::Everything;
use super::*;
use crate::control::model::PointKind;
use crate::control::samples::Sample;
use crate::env::OsEnvironment;
use crate::error::ErrorKind;

fn point(lsn: u64, label: Option<&str>) -> Point {
    Point {
        id: PointId(u128::MAX - u128::from(lsn)),
        lsn: Lsn(lsn),
        time: WallNanos(i64::try_from(lsn).unwrap() * 1_000_000_000),
        kind: if label.is_some() { PointKind::Application } else { PointKind::Crash },
        label: label.map(str::to_owned),
        delta_bytes: lsn * 4096,
        held: false,
        lacks: Vec::new(),
    }
}

fn group(id: u128, name: &str) -> GroupRecord {
    GroupRecord {
        id: GroupId(id),
        name: name.parse().unwrap(),
        created: WallNanos(-1),
        policy: Policy { interval_ms: 1000 },
        disks: vec![
            DiskRecord { id: DiskId(id + 1), name: "data".parse().unwrap(), size: SectorCount(8) },
            DiskRecord { id: DiskId(id + 2), name: "log".parse().unwrap(), size: SectorCount(1 << 33) },
        ],
        points: vec![point(1, None), point(1 << 33, Some("before upgrade"))],
        tests: vec![TestRecord { number: TestId(3), point: PointId(7), started: WallNanos(5) }],
    }
}

pub(super) fn snapshot() -> Snapshot {
    Snapshot { groups: vec![group(0x10, "erp"), group(u128::MAX - 9, "mail")] }
}

pub(super) async fn open(path: &Path) -> (Catalogue, Content) {
    Catalogue::open(path, &OsEnvironment::new()).await.unwrap()
}

/// A process had no catalogue, for its whole life, where somebody looked into it while it started.
#[tokio::test]
async fn a_catalogue_that_somebody_reads_is_opened_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalogue.sqlite");
    let (catalogue, _) = open(&path).await;
    catalogue.rebuild(&snapshot()).await.unwrap();
    catalogue.close().await;
    let mut reader = SqliteConnection::connect(&path.display().to_string()).await.unwrap();
    for statement in ["BEGIN", "SELECT * FROM protection_groups"] {
        reader.execute(sqlx::query(statement)).await.unwrap();
    }
    let (catalogue, content) = open(&path).await;
    assert_eq!((content, catalogue.snapshot().await.unwrap()), (Content::Kept, snapshot()));
    catalogue.rebuild(&Snapshot { groups: vec![group(0x99, "new")] }).await.unwrap();
    reader.close().await.unwrap();
    catalogue.close().await;
}

#[tokio::test]
async fn a_rebuild_says_what_the_snapshot_says_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalogue.sqlite");
    let (catalogue, content) = open(&path).await;
    assert_eq!(content, Content::Empty);
    catalogue.rebuild(&Snapshot { groups: vec![group(0x99, "gone")] }).await.unwrap();
    catalogue.rebuild(&snapshot()).await.unwrap();
    assert_eq!(catalogue.snapshot().await.unwrap(), snapshot());
    catalogue.close().await;
    let (catalogue, content) = open(&path).await;
    assert_eq!(content, Content::Kept);
    assert_eq!(catalogue.snapshot().await.unwrap(), snapshot());
}

#[tokio::test]
async fn a_group_is_described_without_its_points_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let (catalogue, _) = open(&directory.path().join("catalogue.sqlite")).await;
    catalogue.rebuild(&snapshot()).await.unwrap();
    let GroupRecord { id, created, policy, disks, .. } = group(0x10, "erp");
    let expected = GroupDescription { created, policy, disks };
    assert_eq!(catalogue.describe(id).await.unwrap(), Some(expected));
    assert_eq!(catalogue.describe(GroupId(0x11)).await.unwrap(), None);
}

#[tokio::test]
async fn small_changes_end_where_a_rebuild_would() {
    let directory = tempfile::tempdir().unwrap();
    let (catalogue, _) = open(&directory.path().join("catalogue.sqlite")).await;
    let mut expected = snapshot();
    catalogue.rebuild(&expected).await.unwrap();
    let erp = &mut expected.groups[0];
    erp.policy.interval_ms = 5000;
    erp.disks.remove(0);
    erp.disks.push(DiskRecord { id: DiskId(77), name: "new".parse().unwrap(), size: SectorCount(1) });
    erp.points = vec![point(1 << 33, Some("renamed")), point((1 << 33) + 1, None)];
    erp.tests = vec![TestRecord { number: TestId(4), point: PointId(8), started: WallNanos(6) }];
    catalogue.put_policy(erp.id, erp.policy).await.unwrap();
    catalogue.remove_disk(DiskId(0x11)).await.unwrap();
    catalogue.put_disk(erp.id, &erp.disks[1]).await.unwrap();
    catalogue.remove_points_below(erp.id, Lsn(2)).await.unwrap();
    catalogue.put_points(erp.id, &erp.points).await.unwrap();
    catalogue.remove_test(erp.id, TestId(3)).await.unwrap();
    catalogue.put_test(erp.id, erp.tests[0]).await.unwrap();
    assert_eq!(catalogue.snapshot().await.unwrap(), expected);
    let mail = expected.groups.pop().unwrap();
    catalogue.remove_group(mail.id).await.unwrap();
    assert_eq!(catalogue.snapshot().await.unwrap(), expected);
    catalogue.put_group(&mail).await.unwrap();
    catalogue.put_group(&mail).await.unwrap();
    expected.groups.push(mail);
    assert_eq!(catalogue.snapshot().await.unwrap(), expected);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_moved_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalogue.sqlite");
    std::fs::write(&path, vec![b'x'; 10_000]).unwrap();
    let (catalogue, content) = open(&path).await;
    assert_eq!(content, Content::Empty);
    catalogue.rebuild(&snapshot()).await.unwrap();
    assert_eq!(catalogue.snapshot().await.unwrap(), snapshot());
    let aside = std::fs::read(directory.path().join("catalogue.sqlite.unusable")).unwrap();
    assert_eq!(aside, vec![b'x'; 10_000]);
}

#[tokio::test]
async fn a_damaged_page_is_found_at_opening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalogue.sqlite");
    let (catalogue, _) = open(&path).await;
    catalogue.rebuild(&snapshot()).await.unwrap();
    catalogue.close().await;
    let mut bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() > 5 * 4096, "several pages");
    bytes[4096..5 * 4096].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let (catalogue, content) = open(&path).await;
    assert_eq!(content, Content::Empty);
    assert_eq!(catalogue.snapshot().await.unwrap(), Snapshot::default());
    let [told] = &catalogue.take_rot()[..] else { panic!("one event") };
    assert!(told.contains("catalogue.sqlite") && told.contains("moved aside"), "{told}");
}

/// Makes it say, with the sum of it, that it is of another version.
async fn put_version(path: &Path, version: i64) {
    let mut catalogue = Catalogue::connect(path, 1);
    catalogue.id = 1;
    let mut connection = catalogue.pool.acquire().await.unwrap();
    let row = [0i64.into(), version.into(), 1u128.into(), 0i64.into()];
    schema::CATALOGUE.put(&mut connection, &row).await.unwrap();
    drop(connection);
    catalogue.close().await;
}

#[tokio::test]
async fn an_ancient_version_is_moved_aside_and_a_later_one_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalogue.sqlite");
    let (catalogue, _) = open(&path).await;
    catalogue.rebuild(&snapshot()).await.unwrap();
    catalogue.close().await;
    put_version(&path, 999).await;
    let error = Catalogue::open(&path, &OsEnvironment::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let told = error.to_string();
    assert!(told.contains("format version 999") && told.contains("catalogue.sqlite"), "{told}");
    assert!(!directory.path().join("catalogue.sqlite.unusable").exists());

    put_version(&path, 1).await;
    let (catalogue, content) = open(&path).await;
    assert_eq!((content, catalogue.take_rot()), (Content::Empty, Vec::new()));
    assert!(directory.path().join("catalogue.sqlite.unusable").exists());
}

/// Its tables, as it made them.
const VERSION_4: [&str; 11] = [
    "CREATE TABLE catalogue (singleton BIGINT PRIMARY KEY, schema_version BIGINT NOT NULL, id BLOB NOT NULL)",
    "CREATE TABLE protection_groups (id BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE, created_ns BIGINT NOT NULL)",
    "CREATE TABLE policies (group_id BLOB PRIMARY KEY, interval_ms BIGINT NOT NULL)",
    "CREATE TABLE disks (id BLOB PRIMARY KEY, group_id BLOB NOT NULL, name TEXT NOT NULL,
        sectors BIGINT NOT NULL, UNIQUE (group_id, name))",
    "CREATE TABLE points (group_id BLOB NOT NULL, lsn BIGINT NOT NULL, id BLOB NOT NULL,
        time_ns BIGINT NOT NULL, kind TEXT NOT NULL, label TEXT, delta_bytes BIGINT NOT NULL,
        PRIMARY KEY (group_id, lsn))",
    "CREATE TABLE tests (group_id BLOB NOT NULL, number BIGINT NOT NULL, point_id BLOB NOT NULL,
        started_ns BIGINT NOT NULL, PRIMARY KEY (group_id, number))",
    "CREATE TABLE events (sequence BIGINT PRIMARY KEY, time_ns BIGINT NOT NULL, group_id BLOB,
        name TEXT, severity TEXT NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL)",
    "CREATE TABLE hook_cursors (name TEXT PRIMARY KEY, sequence BIGINT NOT NULL)",
    "CREATE TABLE audit (sequence BIGINT PRIMARY KEY, record TEXT NOT NULL)",
    "CREATE TABLE jobs (sequence BIGINT PRIMARY KEY, id TEXT NOT NULL UNIQUE, job TEXT NOT NULL)",
    "CREATE TABLE samples (group_id BLOB NOT NULL, span_s BIGINT NOT NULL, start_ns BIGINT NOT NULL,
        sample TEXT NOT NULL, PRIMARY KEY (group_id, span_s, start_ns))",
];

/// Makes of ours what version 4 would have written.
async fn make_version_4(path: &Path) {
    let (catalogue, _) = open(path).await;
    let tables = std::iter::once(&schema::CATALOGUE).chain(schema::TABLES);
    for (table, text) in tables.zip(VERSION_4) {
        let (name, columns) = (table.name, table.columns.join(", "));
        let columns = columns.replace(", events_before", "");
        for statement in [
            format!("ALTER TABLE {name} RENAME TO later"),
            text.to_owned(),
            format!("INSERT INTO {name} ({columns}) SELECT {columns} FROM later"),
            "DROP TABLE later".to_owned(),
        ] {
            catalogue.execute(sqlx::query(sqlx::AssertSqlSafe(statement))).await.unwrap();
        }
    }
    catalogue.execute(sqlx::query("UPDATE catalogue SET schema_version = 4")).await.unwrap();
    catalogue.close().await;
}

/// Who follows events, or looks at jobs, goes on where he was.
#[tokio::test]
async fn the_version_before_is_taken_over_with_its_id_its_trail_and_its_jobs() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalogue.sqlite");
    let (catalogue, _) = open(&path).await;
    let id = catalogue.id();
    let all = Everything::write(&catalogue).await;
    catalogue.close().await;
    make_version_4(&path).await;
    for _ in 0..2 {
        let (catalogue, content) = open(&path).await;
        assert_eq!((content, catalogue.id()), (Content::Kept, id.clone()));
        assert_eq!(catalogue.audited_before, 2, "what is at work there is cut off");
        assert_eq!(Everything::of(&catalogue).await, all);
        assert_eq!(catalogue.earlier_jobs().len(), 2);
        assert_eq!(catalogue.take_rot(), [""; 0]);
        catalogue.close().await;
    }
    assert!(!directory.path().join("catalogue.sqlite.unusable").exists());
}

/// What was before an upgrade is looked back at after it.
#[tokio::test]
async fn the_versions_before_that_are_taken_over_with_their_events() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalogue.sqlite");
    let (catalogue, _) = open(&path).await;
    let written = Everything::write(&catalogue).await;
    catalogue.close().await;
    make_version_4(&path).await;
    let before = Catalogue::connect(&path, 1);
    for statement in ["DROP TABLE samples", "UPDATE catalogue SET schema_version = 3"] {
        before.execute(sqlx::query(statement)).await.unwrap();
    }
    before.close().await;
    let (catalogue, content) = open(&path).await;
    assert_eq!(content, Content::Kept);
    assert_eq!(Everything::of(&catalogue).await, Everything { samples: Vec::new(), ..written.clone() });
    catalogue.add_samples(&[(GroupId(0x10), WallNanos(1), Sample::default())]).await.unwrap();
    let id = catalogue.id();
    catalogue.close().await;
    let (catalogue, content) = open(&path).await;
    assert_eq!((content, catalogue.id()), (Content::Kept, id), "once for all");
    catalogue.close().await;
    // Golden sites have one that is older still.
    make_version_4(&path).await;
    let before = Catalogue::connect(&path, 1);
    for statement in [
        "DROP TABLE hook_cursors",
        "DROP TABLE audit",
        "DROP TABLE jobs",
        "DROP TABLE samples",
        "ALTER TABLE catalogue DROP COLUMN id",
        "UPDATE catalogue SET schema_version = 2",
    ] {
        before.execute(sqlx::query(statement)).await.unwrap();
    }
    before.close().await;
    let (catalogue, content) = open(&path).await;
    let (audit, jobs) = (Vec::new(), Vec::new());
    let left = Everything { cursor: None, audit, jobs, samples: Vec::new(), ..written };
    assert_eq!((content, Everything::of(&catalogue).await), (Content::Kept, left));
    assert!(!directory.path().join("catalogue.sqlite.unusable").exists());
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_an_error_and_not_a_rebuild() {
    let directory = tempfile::tempdir().unwrap();
    let error = Catalogue::open(&directory.path().join("none/catalogue.sqlite"), &OsEnvironment::new())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn nobody_else_reads_it_also_if_an_older_version_made_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalogue.sqlite");
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    let (catalogue, _) = open(&path).await;
    for suffix in ["", "-wal"] {
        let file = with_suffix(&path, suffix);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    assert!(!with_suffix(&path, "-shm").exists(), "it needs no memory of a file's");
    catalogue.close().await;
}

/// What was written after that went into it, was shown, and was gone with the process.
#[tokio::test]
async fn a_connection_that_was_left_within_a_transaction_is_not_written_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalogue.sqlite");
    let (catalogue, _) = open(&path).await;
    let mut connection = catalogue.pool.acquire().await.unwrap();
    sqlx::raw_sql("BEGIN").execute(&mut *connection).await.unwrap();
    drop(connection);
    catalogue.put_group(&group(0x10, "erp")).await.unwrap();
    // SQLite ended it by itself, as it does where there is no space, and sqlx counts on.
    let mut transaction = catalogue.pool.begin().await.unwrap();
    sqlx::raw_sql("ROLLBACK").execute(&mut *transaction).await.unwrap();
    drop(transaction);
    catalogue.put_group(&group(0x20, "mail")).await.unwrap();
    catalogue.close().await;
    let (catalogue, _) = open(&path).await;
    assert_eq!(catalogue.snapshot().await.unwrap().groups.len(), 2);
}
