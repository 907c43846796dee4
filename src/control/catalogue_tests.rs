//! The catalogue against real SQLite files, whole and broken ones.

use super::*;
use crate::control::model::PointKind;
use crate::env::OsEnvironment;

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
}

#[tokio::test]
async fn an_ancient_version_is_moved_aside_and_a_later_one_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalogue.sqlite");
    let (catalogue, _) = open(&path).await;
    catalogue.rebuild(&snapshot()).await.unwrap();
    catalogue.execute(sqlx::query("UPDATE catalogue SET schema_version = 999")).await.unwrap();
    catalogue.close().await;
    let error = Catalogue::open(&path, &OsEnvironment::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let told = error.to_string();
    assert!(told.contains("format version 999") && told.contains("catalogue.sqlite"), "{told}");
    assert!(!directory.path().join("catalogue.sqlite.unusable").exists());

    let catalogue = Catalogue::connect(&path, 1);
    catalogue.execute(sqlx::query("UPDATE catalogue SET schema_version = 1")).await.unwrap();
    catalogue.close().await;
    assert_eq!(open(&path).await.1, Content::Empty);
    assert!(directory.path().join("catalogue.sqlite.unusable").exists());
}

/// Who follows events, or looks at jobs, goes on where he was.
#[tokio::test]
async fn the_version_before_is_taken_over_with_its_id_its_trail_and_its_jobs() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalogue.sqlite");
    let (catalogue, _) = open(&path).await;
    catalogue.rebuild(&snapshot()).await.unwrap();
    for statement in [
        "DROP TABLE samples",
        "UPDATE catalogue SET schema_version = 3",
        "INSERT INTO events (sequence, time_ns, severity, code, message) VALUES (7, 1, 'info', 'paused', 'paused')",
        "INSERT INTO audit (sequence, record) VALUES (9, '{}')",
    ] {
        catalogue.execute(sqlx::query(statement)).await.unwrap();
    }
    let id = catalogue.id();
    catalogue.close().await;
    for _ in 0..2 {
        let (catalogue, content) = open(&path).await;
        assert_eq!((content, catalogue.id()), (Content::Kept, id.clone()));
        assert_eq!(catalogue.audited_before, 9, "what is at work there is cut off");
        assert_eq!(catalogue.snapshot().await.unwrap(), snapshot());
        assert_eq!(catalogue.newest_event().await.unwrap(), 7);
        assert_eq!(catalogue.recent_samples(WallNanos(0)).await.unwrap(), []);
        catalogue.close().await;
    }
    assert!(!directory.path().join("catalogue.sqlite.unusable").exists());
}

/// What was before an upgrade is looked back at after it.
#[tokio::test]
async fn the_version_before_that_is_taken_over_with_its_events() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalogue.sqlite");
    let (catalogue, _) = open(&path).await;
    for statement in [
        "DROP TABLE hook_cursors",
        "DROP TABLE audit",
        "DROP TABLE jobs",
        "DROP TABLE samples",
        "DROP TABLE catalogue",
        "CREATE TABLE catalogue (singleton BIGINT PRIMARY KEY, schema_version BIGINT NOT NULL)",
        "INSERT INTO catalogue (singleton, schema_version) VALUES (0, 2)",
        "INSERT INTO events (sequence, time_ns, severity, code, message) VALUES (7, 1, 'info', 'paused', 'paused')",
    ] {
        catalogue.execute(sqlx::query(statement)).await.unwrap();
    }
    catalogue.rebuild(&snapshot()).await.unwrap();
    catalogue.close().await;
    let (catalogue, content) = open(&path).await;
    assert_eq!(content, Content::Kept);
    assert_eq!(catalogue.snapshot().await.unwrap(), snapshot());
    assert_eq!(catalogue.events(EventFilter::default(), 9).await.unwrap()[0].id, Some(7));
    assert_eq!(catalogue.newest_audit().await.unwrap(), 0);
    let id = catalogue.id();
    catalogue.close().await;
    let (catalogue, content) = open(&path).await;
    assert_eq!((content, catalogue.id()), (Content::Kept, id), "once for all");
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
    for suffix in ["", "-wal", "-shm"] {
        let file = with_suffix(&path, suffix);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    catalogue.close().await;
}
