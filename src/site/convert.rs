//! From what the owners of groups know to what the API says.

use std::time::Duration;

use crate::control::catalogue;
use crate::control::model::{
    Churn, Condition as ApiCondition, Disk, DiskChurn, Failure, Group, GroupLimits, GroupState, GroupStatus,
    GroupTotals, HarmedPoint, History, JournalStatus, LsnLadder, NewestPoint, Point, PointKind, Policy,
    Reason, ReasonCode, Test, TestExport, TestUnserved, WriteRate,
};
use crate::control::name::{DiskPath, Name};
use crate::control::retain::Retain;
use crate::error::{Error, Result};
use crate::failover::TestListing;
use crate::format::ladder::Ladder;
use crate::format::marker::Consistency;
use crate::format::record::{DiskRecord, GroupRecord, PointRecord, TestUse};
use crate::listen::Endpoint;
use crate::protect::group::Counters;
use crate::protect::retention::RetentionStatus;
use crate::protect::status::{Condition, GroupSnapshot};
use crate::site::member::{Description, Member};
use crate::units::{DiskId, GroupId, PointId, SectorCount, WallNanos};

/// A stored name; what the manifest holds was checked when it was given.
pub fn name(text: &str) -> Result<Name> {
    text.parse().map_err(|error| Error::corrupt(format!("the manifest holds the name {text:?}: {error}")))
}

/// A stored disk's path.
pub fn disk_path(group: &Name, disk: &str) -> Result<DiskPath> {
    Ok(DiskPath { group: group.clone(), disk: name(disk)? })
}

/// A disk that is served.
pub fn disk(group: &Name, record: &DiskRecord, endpoint: &Endpoint) -> Result<Disk> {
    Ok(disk_at(disk_path(group, &record.name)?, record.id, record.sectors, true, endpoint))
}

fn disk_at(path: DiskPath, id: DiskId, size: SectorCount, served: bool, endpoint: &Endpoint) -> Disk {
    let export = path.to_string();
    Disk {
        id,
        group: path.group,
        name: path.disk,
        size_bytes: size.bytes(),
        uri: endpoint.nbd_uri(&export),
        export,
        served,
        latched: None,
    }
}

/// What is wrong with a group besides what its snapshot says.
pub(super) struct Troubles {
    /// Why it could not be opened.
    pub failure: Option<Failure>,
    /// What verifications found damaged.
    pub damage: Option<Failure>,
    /// Which requests fail.
    pub failing: Option<Failure>,
}

/// A group with its disks, as its manifest says; `snapshot` tells how it stands if it is open.
pub(super) fn group(
    id: GroupId,
    name: &Name,
    description: &Description,
    snapshot: Option<&GroupSnapshot>,
    Troubles { failure, damage, failing }: Troubles,
    endpoint: &Endpoint,
) -> Result<Group> {
    let record = &description.record;
    let disks = description.disks.iter().map(|record| {
        let latched = snapshot.and_then(|snapshot| latch(snapshot, &record.name));
        let served = failure.is_none() && latched.is_none();
        Ok(Disk { served, latched, ..disk(name, record, endpoint)? })
    });
    let mut disks = disks.collect::<Result<Vec<_>>>()?;
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    let lesser = damage.as_ref().or(failing.as_ref());
    let open = || snapshot.map(|snapshot| state(snapshot, lesser).condition);
    let condition = failure.as_ref().map(|_| ApiCondition::Failed).or_else(open);
    Ok(Group {
        id,
        name: name.clone(),
        created: Some(record.created),
        policy: Some(policy(record)),
        retain: Some(Retain(record.retain.clone())),
        condition,
        latched_disks: disks.iter().filter(|disk| disk.latched.is_some()).count() as u64,
        disks: Some(disks),
        failure,
        damage: damage.map(Box::new),
        failing: failing.map(Box::new),
    })
}

/// Why writes to a disk of an open group fail, if they do: in the words of `status`, which has one reason for the whole group.
fn latch(snapshot: &GroupSnapshot, disk: &str) -> Option<Reason> {
    if snapshot.condition == Condition::JournalFailed {
        return state(snapshot, None).reason;
    }
    let place = snapshot.latched_disks.iter().position(|latched| latched == disk)?;
    let why = Condition::ImageFailed.explanation().expect("a failure is explained");
    let detail = match snapshot.latched_because.get(place).filter(|because| !because.is_empty()) {
        Some(because) => format!("{}: {because}", why.what),
        None => why.what.to_owned(),
    };
    Some(Reason { code: ReasonCode::ImageFailed, detail, mend: why.mend.to_owned() })
}

/// What was written to each disk, by name.
fn written_by_disk(snapshot: &GroupSnapshot) -> Vec<DiskChurn> {
    let bytes = |id: DiskId| snapshot.written_bytes.iter().find(|(disk, _)| *disk == id);
    let churn = |disk: &DiskRecord| DiskChurn {
        disk: disk.name.clone(),
        written_bytes: bytes(disk.id).map_or(0, |(_, bytes)| *bytes),
    };
    let mut disks: Vec<DiskChurn> = snapshot.disks.iter().map(churn).collect();
    disks.sort_by(|a, b| a.disk.cmp(&b.disk));
    disks
}

fn policy(record: &GroupRecord) -> Policy {
    Policy { interval_ms: u64::from(record.interval_ms) }
}

/// A group whose manifest cannot be read, as far as the catalogue knew it.
pub fn unreadable_group(
    id: GroupId,
    name: &Name,
    known: Option<&catalogue::GroupDescription>,
    failure: Option<Failure>,
    endpoint: &Endpoint,
) -> Group {
    let disk = |disk: &catalogue::DiskRecord| {
        let path = DiskPath { group: name.clone(), disk: disk.name.clone() };
        disk_at(path, disk.id, disk.size, false, endpoint)
    };
    Group {
        id,
        name: name.clone(),
        created: known.map(|known| known.created),
        policy: known.map(|known| known.policy),
        retain: None,
        disks: known.map(|known| known.disks.iter().map(disk).collect()),
        condition: failure.as_ref().map(|_| ApiCondition::Failed),
        latched_disks: 0,
        failure,
        damage: None,
        failing: None,
    }
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
        held: false,
        lacks: Vec::new(),
    }
}

/// A point that something damaged harms.
pub fn harmed_point(group: &Name, record: &PointRecord) -> HarmedPoint {
    let Point { id, time, label, .. } = point(record);
    HarmedPoint { group: group.clone(), id, time, label }
}

/// A group's points, and which of them are held.
pub(super) fn points(member: &Member) -> Vec<Point> {
    let held = member.held();
    member.points().iter().map(|record| listed(member, record, held.contains(&record.id))).collect()
}

/// One of a group's points, as their list has it.
pub(super) fn listed_point(member: &Member, id: PointId) -> Option<Point> {
    let record = member.vault().manifest().state().point(id)?.clone();
    Some(listed(member, &record, member.held().contains(&id)))
}

fn listed(member: &Member, record: &PointRecord, held: bool) -> Point {
    Point { held, lacks: member.vault().lacking_disks(record), ..point(record) }
}

fn unserved(unserved: &crate::failover::Unserved) -> TestUnserved {
    let crate::failover::Unserved { disk, error, since } = unserved.clone();
    TestUnserved { disk, reason: error, since }
}

/// A test failover.
pub fn test(group: &Name, failover: &TestListing, connections: u64, endpoint: &Endpoint) -> Result<Test> {
    let export = |disk: &crate::failover::TestListedDisk| {
        let path = DiskPath { group: group.clone(), disk: name(&disk.name)? };
        let export = path.test_export(failover.test);
        let uri = endpoint.nbd_uri(&export);
        Ok(TestExport { disk: path.disk, export, uri, size_bytes: disk.sectors.bytes() })
    };
    Ok(Test {
        number: failover.test,
        group: group.clone(),
        point: point(&failover.point),
        started: failover.started,
        read_only: failover.purpose.is_read_only(),
        for_restore: failover.purpose == TestUse::Restore,
        exports: failover.disks.iter().map(export).collect::<Result<Vec<_>>>()?,
        unserved: failover.unserved.iter().map(unserved).collect(),
        overlay_bytes: failover.overlay_bytes,
        connections,
    })
}

/// How an open group stands.
pub fn status(
    group: Group,
    snapshot: &GroupSnapshot,
    connections: u64,
    churn: Option<Churn>,
    now: WallNanos,
) -> GroupStatus {
    let ladder = snapshot.ladder;
    let totals = totals(&snapshot.counters);
    let newest = snapshot.newest_point.as_ref().map(|point| point.wall);
    GroupStatus {
        state: state(snapshot, group.damage.as_deref().or(group.failing.as_deref())),
        group,
        lsn: Some(LsnLadder {
            submitted: ladder.submitted,
            written: ladder.visible,
            visible: ladder.visible,
            durable: ladder.durable,
            destaged: ladder.destaged,
            vaulted: ladder.vaulted,
        }),
        journal: Some(JournalStatus {
            used_bytes: snapshot.journal_used_bytes,
            limit_bytes: snapshot.journal_limit_bytes,
        }),
        newest_point: snapshot.newest_point.as_ref().map(|point| newest_point(point, now)),
        limits: Some(limits(snapshot)),
        idle: snapshot.idle,
        late_since: snapshot.late_since,
        unprotected_ms: snapshot.unprotected.map(milliseconds),
        writes_waiting_ms: snapshot.writes_waiting.map(milliseconds),
        history: History {
            points: Some(snapshot.points),
            oldest: snapshot.oldest,
            newest,
            span_ms: span(snapshot.oldest, newest),
            retain_ms: reach(&snapshot.retain),
            retention: retention(&snapshot.retention),
        },
        writes: WriteRate { writes_per_s: snapshot.writes_per_s, bytes_per_s: snapshot.bytes_per_s },
        totals: Some(totals),
        written_by_disk: Some(written_by_disk(snapshot)),
        written_per_byte: totals.written_per_byte(),
        churn,
        connections,
        verify: None,
    }
}

/// How far back from the newest point the oldest one is.
fn span(oldest: Option<WallNanos>, newest: Option<WallNanos>) -> Option<u64> {
    let (oldest, newest) = oldest.zip(newest)?;
    // A clock that was set back may have put the newest before the oldest.
    Some(u64::try_from(newest.0.saturating_sub(oldest.0) / 1_000_000).unwrap_or(0))
}

/// How far back a ladder has points reach; none if it keeps every one.
pub(super) fn reach(ladder: &Ladder) -> Option<u64> {
    ladder.rungs().last().map(|rung| rung.until_ms)
}

fn totals(counters: &Counters) -> GroupTotals {
    GroupTotals {
        writes: counters.writes,
        written_bytes: counters.written_bytes,
        reads: counters.reads,
        journal_bytes: counters.journal_bytes,
        images_bytes: counters.destaged_bytes,
        vault_bytes: counters.vault_bytes,
        points: counters.points,
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn limits(snapshot: &GroupSnapshot) -> GroupLimits {
    let (space, images) = (snapshot.retention.space, snapshot.retention.images);
    GroupLimits {
        maps_bytes: snapshot.map_bytes as u64,
        maps_limit_bytes: snapshot.map_bytes_max as u64,
        frames_bytes: snapshot.cache_bytes as u64,
        frames_limit_bytes: snapshot.cache_bytes_max as u64,
        history_bytes: space.map_or(0, |space| space.history_bytes),
        history_limit_bytes: space.and_then(|space| space.history_bytes_max),
        free_bytes: space.map(|space| space.free_bytes),
        reserve_bytes: space.map(|space| space.reserve_bytes),
        free_min_bytes: space.map(|space| space.free_bytes_min),
        images_free_bytes: images.map(|images| images.free_bytes),
        images_free_min_bytes: images.map(|images| images.free_bytes_min),
    }
}

/// Why retention does not do what the policy says, if so.
fn retention(status: &RetentionStatus) -> Option<String> {
    let stalled = status.stalled.as_ref().map(|why| format!("stalled: {why}; it is tried again"));
    let suspended = || status.suspended.map(|suspension| format!("suspended {}", suspension.text()));
    let waits = || {
        status
            .waits_for_view
            .then(|| "waits for a test failover, a mount or a restore that reads what would go".to_owned())
    };
    stalled.or_else(suspended).or_else(waits)
}

/// How a group stands that could not be opened; `points` are those that its vault gives, if it gives any answer.
pub fn failed_status(
    group: Group,
    failure: Failure,
    points: Option<&[PointRecord]>,
    churn: Option<Churn>,
    now: WallNanos,
) -> GroupStatus {
    let count = points.map(|points| points.len() as u64);
    let points = points.unwrap_or_default();
    let (oldest, newest) = (points.first().map(|point| point.wall), points.last().map(|point| point.wall));
    GroupStatus {
        history: History {
            points: count,
            oldest,
            newest,
            span_ms: span(oldest, newest),
            retain_ms: group.retain.as_ref().and_then(|retain| reach(&retain.0)),
            retention: None,
        },
        group,
        state: GroupState {
            condition: ApiCondition::Failed,
            reason: Some(failure.reason),
            since: failure.since,
        },
        lsn: None,
        journal: None,
        limits: None,
        newest_point: points.last().map(|point| newest_point(point, now)),
        idle: false,
        late_since: None,
        unprotected_ms: None,
        writes_waiting_ms: None,
        writes: WriteRate::default(),
        totals: None,
        written_by_disk: None,
        written_per_byte: None,
        churn,
        connections: 0,
        verify: None,
    }
}

fn newest_point(point: &PointRecord, now: WallNanos) -> NewestPoint {
    let age_ms = u64::try_from(now.0.saturating_sub(point.wall.0) / 1_000_000).unwrap_or(0);
    NewestPoint { id: point.id, time: point.wall, age_ms }
}

/// What a verification found, or else what clients met, is the `lesser`: it comes after what is wrong with the group itself, and before
/// points that are late or rest.
fn state(snapshot: &GroupSnapshot, lesser: Option<&Failure>) -> GroupState {
    let waits = matches!(
        snapshot.condition,
        Condition::Protected | Condition::Paused | Condition::PointsLate | Condition::RetentionStalled
    );
    if let Some(Failure { reason, since }) = lesser.filter(|_| waits) {
        let (condition, reason) = (ApiCondition::Degraded, Some(reason.clone()));
        return GroupState { condition, reason, since: *since };
    }
    let (condition, code) = match snapshot.condition {
        Condition::Opening => (ApiCondition::Opening, None),
        Condition::Protected => (ApiCondition::Protected, None),
        Condition::Stopping => (ApiCondition::Stopping, None),
        Condition::JournalFull => (ApiCondition::Degraded, Some(ReasonCode::JournalFull)),
        Condition::MapsFull => (ApiCondition::Degraded, Some(ReasonCode::MapsFull)),
        Condition::PointsLate => (ApiCondition::Degraded, Some(ReasonCode::PointsLate)),
        Condition::SpaceShort => (ApiCondition::Degraded, Some(ReasonCode::SpaceShort)),
        Condition::RetentionStalled => (ApiCondition::Degraded, Some(ReasonCode::RetentionStalled)),
        Condition::Paused => (ApiCondition::Paused, None),
        Condition::NoSpace => (ApiCondition::Degraded, Some(ReasonCode::NoSpace)),
        Condition::Retrying => (ApiCondition::Degraded, Some(ReasonCode::Io)),
        Condition::ImageFailed => (ApiCondition::Latched, Some(ReasonCode::ImageFailed)),
        Condition::VaultFailed => (ApiCondition::Degraded, Some(ReasonCode::VaultFailed)),
        Condition::JournalFailed => (ApiCondition::Latched, Some(ReasonCode::JournalFailed)),
    };
    let disks = match snapshot.latched_disks.as_slice() {
        [] => String::new(),
        names => format!(" ({})", names.join(", ")),
    };
    let because = match snapshot.condition {
        Condition::ImageFailed => snapshot.latched_because.join("; "),
        Condition::VaultFailed => snapshot.vault_failure.clone().unwrap_or_default(),
        Condition::RetentionStalled => snapshot.retention.stalled.clone().unwrap_or_default(),
        _ => String::new(),
    };
    let because = if because.is_empty() { because } else { format!(": {because}") };
    let beside = snapshot.beside_latches.and_then(Condition::explanation);
    let (and_what, and_mend) = match beside {
        Some(why) => (format!("; and {}", why.what), format!("; and {}", why.mend)),
        None => Default::default(),
    };
    let reason = code.zip(snapshot.condition.explanation()).map(|(code, why)| Reason {
        code,
        detail: format!("{}{disks}{because}{and_what}", why.what),
        mend: format!("{}{and_mend}", why.mend),
    });
    GroupState { condition, reason, since: snapshot.since }
}

/// A group, as the catalogue keeps it.
pub(super) fn catalogue_group(id: GroupId, name: Name, member: &Member) -> Result<catalogue::GroupRecord> {
    let Description { record, disks } = member.description();
    Ok(catalogue::GroupRecord {
        id,
        name,
        created: record.created,
        policy: policy(&record),
        disks: disks.iter().map(catalogue_disk).collect::<Result<Vec<_>>>()?,
        points: member.points().iter().map(point).collect(),
        tests: member.test_listings().iter().map(catalogue_test).collect(),
    })
}

/// A disk, as the catalogue keeps it.
pub(super) fn catalogue_disk(record: &DiskRecord) -> Result<catalogue::DiskRecord> {
    Ok(catalogue::DiskRecord { id: record.id, name: name(&record.name)?, size: record.sectors })
}

/// A test failover, as the catalogue keeps it.
pub(super) fn catalogue_test(failover: &TestListing) -> catalogue::TestRecord {
    catalogue::TestRecord { number: failover.test, point: failover.point.id, started: failover.started }
}
