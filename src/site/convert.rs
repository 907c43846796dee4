//! From what the owners of groups know to what the API says.

use crate::control::catalogue;
use crate::control::model::{
    Condition as ApiCondition, Disk, Group, GroupState, GroupStatus, History, JournalStatus, LsnLadder,
    NewestPoint, Point, PointKind, Policy, Reason, ReasonCode, Test, TestExport, WriteRate,
};
use crate::control::name::{DiskPath, Name};
use crate::error::{Error, Result};
use crate::failover::TestListing;
use crate::format::marker::Consistency;
use crate::format::record::{DiskRecord, PointRecord};
use crate::listen::ListenAddress;
use crate::protect::status::{Condition, GroupSnapshot};
use crate::units::WallNanos;

/// A stored name; what the manifest holds was checked when it was given.
pub fn name(text: &str) -> Result<Name> {
    text.parse().map_err(|error| Error::corrupt(format!("the manifest holds the name {text:?}: {error}")))
}

/// A disk.
pub fn disk(group: &Name, record: &DiskRecord, address: &ListenAddress) -> Result<Disk> {
    let path = DiskPath { group: group.clone(), disk: name(&record.name)? };
    let export = path.to_string();
    Ok(Disk {
        id: record.id,
        group: path.group,
        name: path.disk,
        size_bytes: record.sectors.bytes(),
        uri: address.nbd_uri(&export),
        export,
    })
}

/// A group with its disks.
pub fn group(snapshot: &GroupSnapshot, address: &ListenAddress) -> Result<Group> {
    let name = name(&snapshot.name)?;
    let mut disks =
        snapshot.disks.iter().map(|record| disk(&name, record, address)).collect::<Result<Vec<_>>>()?;
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    let policy = Policy { interval_ms: snapshot.interval_ms };
    Ok(Group { id: snapshot.id, name, created: snapshot.created, policy, disks })
}

/// A recovery point.
pub fn point(record: &PointRecord) -> Point {
    Point {
        id: record.id,
        lsn: record.marker,
        time: record.wall,
        kind: match record.consistency {
            Consistency::Crash => PointKind::Crash,
            Consistency::Application => PointKind::Application,
        },
        label: Some(record.label.clone()).filter(|label| !label.is_empty()),
        delta_bytes: record.delta.map_or(0, |delta| delta.total_bytes),
    }
}

/// A test failover.
pub fn test(group: &Name, failover: &TestListing, connections: u64, address: &ListenAddress) -> Result<Test> {
    let export = |disk: &crate::failover::TestListedDisk| {
        let path = DiskPath { group: group.clone(), disk: name(&disk.name)? };
        let export = path.test_export(failover.test);
        let uri = address.nbd_uri(&export);
        Ok(TestExport { disk: path.disk, export, uri, size_bytes: disk.sectors.bytes() })
    };
    Ok(Test {
        number: failover.test,
        group: group.clone(),
        point: point(&failover.point),
        started: failover.started,
        exports: failover.disks.iter().map(export).collect::<Result<Vec<_>>>()?,
        overlay_bytes: failover.overlay_bytes,
        connections,
    })
}

/// How a group stands.
pub fn status(
    snapshot: &GroupSnapshot,
    connections: u64,
    now: WallNanos,
    address: &ListenAddress,
) -> Result<GroupStatus> {
    let newest_point = snapshot.newest_point.as_ref().map(|point| NewestPoint {
        id: point.id,
        time: point.wall,
        age_ms: u64::try_from(now.0.saturating_sub(point.wall.0) / 1_000_000).unwrap_or(0),
    });
    let ladder = snapshot.ladder;
    Ok(GroupStatus {
        group: group(snapshot, address)?,
        state: state(snapshot),
        lsn: LsnLadder {
            submitted: ladder.submitted,
            written: ladder.visible,
            visible: ladder.visible,
            durable: ladder.durable,
            destaged: ladder.destaged,
            vaulted: ladder.vaulted,
        },
        journal: JournalStatus {
            used_bytes: snapshot.journal_used_bytes,
            limit_bytes: snapshot.journal_limit_bytes,
        },
        newest_point,
        idle: snapshot.idle,
        history: History {
            points: snapshot.points,
            oldest: snapshot.oldest,
            newest: snapshot.newest_point.as_ref().map(|point| point.wall),
        },
        writes: WriteRate { writes_per_s: snapshot.writes_per_s, bytes_per_s: snapshot.bytes_per_s },
        connections,
    })
}

fn state(snapshot: &GroupSnapshot) -> GroupState {
    let because = |code, detail: &str| Some(Reason { code, detail: detail.to_owned() });
    let (condition, reason) = match snapshot.condition {
        Condition::Opening => (ApiCondition::Opening, None),
        Condition::Protected => (ApiCondition::Protected, None),
        Condition::Stopping => (ApiCondition::Stopping, None),
        Condition::JournalFull => (
            ApiCondition::Degraded,
            because(
                ReasonCode::JournalFull,
                "the journal is at its limit: writes wait until images and vault catch up",
            ),
        ),
        Condition::NoSpace => (
            ApiCondition::Degraded,
            because(ReasonCode::NoSpace, "a file system is full: free space; it is tried again every second"),
        ),
        Condition::ImageFailed => {
            let detail = format!(
                "the image of {} failed: its writes fail, the other disks go on; mend the device and restart",
                snapshot.latched_disks.join(", ")
            );
            (ApiCondition::Latched, because(ReasonCode::ImageFailed, &detail))
        }
        Condition::VaultFailed => (
            ApiCondition::Degraded,
            because(
                ReasonCode::VaultFailed,
                "the vault refused a recovery point: see the log; no points are made",
            ),
        ),
        Condition::JournalFailed => (
            ApiCondition::Latched,
            because(
                ReasonCode::JournalFailed,
                "a journal write or sync failed: see the log, mend the device, restart",
            ),
        ),
    };
    GroupState { condition, reason, since: snapshot.since }
}

/// A group, as the catalogue keeps it.
pub fn catalogue_group(
    snapshot: &GroupSnapshot,
    points: &[PointRecord],
    tests: &[TestListing],
) -> Result<catalogue::GroupRecord> {
    let disk = |record: &DiskRecord| {
        Ok(catalogue::DiskRecord { id: record.id, name: name(&record.name)?, size: record.sectors })
    };
    let test = |failover: &TestListing| catalogue::TestRecord {
        number: failover.test,
        point: failover.point.id,
        started: failover.started,
    };
    Ok(catalogue::GroupRecord {
        id: snapshot.id,
        name: name(&snapshot.name)?,
        created: snapshot.created,
        policy: Policy { interval_ms: snapshot.interval_ms },
        disks: snapshot.disks.iter().map(disk).collect::<Result<Vec<_>>>()?,
        points: points.iter().map(point).collect(),
        tests: tests.iter().map(test).collect(),
    })
}
