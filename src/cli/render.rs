//! Answers as text for people: tables, rounded sizes, times in UTC. Scripts read `--json`.
//!
//! A point's time is exact everywhere, because people copy it into `--point`.

pub mod history;
mod report;
mod status;
mod verify;

use std::fmt::Write;
use std::time::Duration;

pub use report::report;
pub use status::{buffers_waiting, status};
pub use verify::{group_verified, repaired, verified};

use super::output::table;
use super::tools::Mounted;
use crate::byte_size::ByteSize;
use crate::control::model::{
    Adopted, Condition, Disk, Failure, Group, Keys, Point, PointCreated, PointKind, Policy, PolicyForecast,
    Reason, Restored, Resumed, Test,
};
use crate::control::wire::rfc3339;
use crate::counted::counted;
use crate::units::SECTOR_BYTES;

fn size(bytes: u64) -> String {
    ByteSize(bytes).approximate().to_string()
}

/// A duration by its two largest units; below a minute to the millisecond.
fn duration(ms: u64) -> String {
    let exact = Duration::from_millis(ms);
    let shown = if ms < 60_000 { exact } else { Duration::from_secs(exact.as_secs()) };
    humantime::format_duration(shown).to_string().split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// What stands where something is not known.
const UNKNOWN: &str = "-";

pub fn interval(policy: Option<Policy>) -> String {
    match policy {
        None => UNKNOWN.to_owned(),
        Some(Policy { interval_ms: 0 }) => "never".to_owned(),
        Some(policy) => duration(policy.interval_ms),
    }
}

/// Which points a group keeps.
pub fn retain(group: &Group) -> String {
    group.retain.as_ref().map_or(UNKNOWN.to_owned(), ToString::to_string)
}

pub fn forecast(forecast: &PolicyForecast) -> String {
    let PolicyForecast { points, bytes_max } = forecast;
    let points = counted(*points, "point");
    format!("{points} would go, and with them at most {}; nothing was changed\n", size(*bytes_max))
}

fn created(group: &Group) -> String {
    group.created.map_or(UNKNOWN.to_owned(), |created| created.to_string())
}

fn disk_count(group: &Group) -> String {
    group.disks.as_ref().map_or(UNKNOWN.to_owned(), |disks| disks.len().to_string())
}

pub fn groups(groups: &[Group]) -> String {
    let rows = groups.iter().map(|group| {
        let bytes = |disks: &Vec<Disk>| size(disks.iter().map(|disk| disk.size_bytes).sum());
        [
            group.name.to_string(),
            disk_count(group),
            group.disks.as_ref().map_or(UNKNOWN.to_owned(), bytes),
            interval(group.policy),
            created(group),
            group_state(group),
            group.id.to_string(),
        ]
    });
    let mut text = table(["GROUP", "DISKS", "SIZE", "INTERVAL", "CREATED", "STATE", "ID"], rows);
    for group in groups {
        if let Some(failure) = &group.failure {
            let _ = write!(text, "\n{}  could not be opened\n{}", group.name, why(&failure.reason));
        }
        if let Some(damage) = &group.damage {
            let _ = write!(text, "\n{}  damaged\n{}", group.name, why(&damage.reason));
        }
        if let Some(failing) = &group.failing {
            let _ = write!(
                text,
                "\n{}  requests fail, since {}\n{}",
                group.name,
                failing.since,
                why(&failing.reason)
            );
        }
        text += &latches(group.disks.iter().flatten());
    }
    text
}

fn group_state(group: &Group) -> String {
    match (&group.failure, group.latched_disks) {
        (Some(_), _) => "FAILED".to_owned(),
        (None, 0) if group.damage.is_some() => "DEGRADED: damaged".to_owned(),
        (None, 0) if group.failing.is_some() => "DEGRADED: requests fail".to_owned(),
        (None, 0) if group.condition == Some(Condition::Paused) => "paused".to_owned(),
        (None, 0) => "open".to_owned(),
        (None, latched) => {
            let disks = group.disks.as_ref().map_or(0, Vec::len);
            format!("LATCHED: {latched} of {}", counted(disks, "disk"))
        }
    }
}

/// Why the writes of disks fail, of each that is latched.
fn latches<'a>(disks: impl Iterator<Item = &'a Disk>) -> String {
    let lines = disks.filter_map(|disk| {
        let reason = disk.latched.as_ref()?;
        Some(format!("\n{}  latched\n{}", disk.export, why(reason)))
    });
    lines.collect()
}

fn why(reason: &Reason) -> String {
    format!("  why  {}\n  do   {}\n", reason.detail, reason.mend)
}

pub fn group(group: &Group) -> String {
    let failed = |failure: &Failure| {
        format!("state     FAILED: could not be opened, since {}\n{}", failure.since, why(&failure.reason))
    };
    let damaged = |damage: &Failure| {
        format!("state     DEGRADED: damaged, found {}\n{}", damage.since, why(&damage.reason))
    };
    let failing = |failing: &Failure| {
        format!("state     DEGRADED: requests fail, since {}\n{}", failing.since, why(&failing.reason))
    };
    format!(
        "group     {}\nid        {}\ncreated   {}\ninterval  {}\nretain    {}\n{}{}{}\n{}",
        group.name,
        group.id,
        created(group),
        interval(group.policy),
        retain(group),
        group.failure.as_ref().map(failed).unwrap_or_default(),
        group.damage.as_deref().map(damaged).unwrap_or_default(),
        group.failing.as_deref().map(failing).unwrap_or_default(),
        group.disks.as_ref().map_or("its disks are not known\n".to_owned(), |known| disks(known))
    )
}

/// What there is of keys.
pub fn keys(keys: &Keys) -> String {
    let rows = keys.groups.iter().map(|seal| {
        let state = match (&seal.site_key, seal.has_key) {
            (None, _) => "not sealed",
            (Some(_), true) => "sealed",
            (Some(_), false) => "KEY MISSING",
        };
        let site_key = seal.site_key.clone().unwrap_or(UNKNOWN.to_owned());
        [seal.group.to_string(), state.to_owned(), seal.generations.to_string(), site_key]
    });
    let missing = "none: 'key import' the one that was exported";
    format!(
        "site key  {}\nkept in   {}\n\n{}",
        keys.site_key.as_deref().unwrap_or(missing),
        keys.file.display(),
        table(["GROUP", "STATE", "KEYS", "UNDER SITE KEY"], rows)
    )
}

pub fn disks(disks: &[Disk]) -> String {
    let rows = disks.iter().map(|disk| {
        let uri = match (&disk.latched, disk.served) {
            (Some(_), _) => "LATCHED: its writes fail",
            (None, true) => disk.uri.as_str(),
            (None, false) => "not served: its group could not be opened",
        };
        [disk.export.clone(), size(disk.size_bytes), disk.id.to_string(), uri.to_owned()]
    });
    table(["DISK", "SIZE", "ID", "NBD URI"], rows) + &latches(disks.iter())
}

pub fn disk_created(disk: &Disk) -> String {
    format!("disk {} created: {} at {}\n", disk.export, ByteSize(disk.size_bytes).exact(), disk.uri)
}

pub fn resumed(resumed: &Resumed) -> String {
    let name = &resumed.group.name;
    let is_sound = resumed.cleared.is_empty() && resumed.latched.is_empty();
    let mut text = match (resumed.opened, resumed.unpaused, is_sound) {
        (true, ..) => format!("group {name} is open again\n"),
        (_, true, _) => {
            format!("group {name} is no longer paused: timed points are made again, and points go again\n")
        }
        (_, _, true) => format!("group {name} is open, and nothing is latched\n"),
        (_, _, false) => format!("group {name}\n"),
    };
    for line in &resumed.cleared {
        let _ = writeln!(text, "  cleared  {line}");
    }
    for line in &resumed.latched {
        let _ = writeln!(text, "  latched  {line}");
    }
    text
}

pub fn point_created(point: &Point) -> String {
    format!("point {} of {} created\n", point.id, rfc3339(point.time))
}

/// What is to be known of a point without all of its group's disks; nothing if it has them.
pub fn lacking_warning(point: &Point) -> String {
    match point.lacks.as_slice() {
        [] => String::new(),
        lacks => format!(
            "warning: without {}: the point lacks writes that rotted in the journal; another point may have them (`point list` says which lack what)\n",
            lacks.join(", ")
        ),
    }
}

/// What is to be known of a label that other points have too; nothing if none has.
pub fn label_warning(created: &PointCreated) -> String {
    match (&created.point.label, created.same_label) {
        (None, _) | (_, 0) => String::new(),
        (Some(label), others) => format!(
            "warning: {} the label `{label}` too, so that `--point` refuses it: write an id or a time there\n",
            if others == 1 { "another point has".to_owned() } else { format!("{others} other points have") }
        ),
    }
}

pub fn point_changed(point: &Point, done: &str) -> String {
    format!("point {} of {} {done}\n", point.id, rfc3339(point.time))
}

pub fn points(points: &[Point]) -> String {
    let rows = points.iter().map(|point| {
        [
            point.id.to_string(),
            rfc3339(point.time),
            match point.kind {
                PointKind::Crash => "crash".to_owned(),
                PointKind::Application => "application".to_owned(),
            },
            size(point.delta_bytes),
            point.lsn.to_string(),
            if point.held { "held" } else { "" }.to_owned(),
            point.lacks.join(", "),
            point.label.clone().unwrap_or_default(),
        ]
    });
    table(["POINT", "TIME", "KIND", "DELTA", "LSN", "HELD", "LACKS", "LABEL"], rows)
}

pub fn tests(tests: &[Test]) -> String {
    let rows = tests.iter().map(|test| {
        let exports: Vec<&str> = test.exports.iter().map(|export| export.export.as_str()).collect();
        [
            test.group.to_string(),
            test.number.0.to_string(),
            test.point.id.to_string(),
            rfc3339(test.point.time),
            written(test),
            test.connections.to_string(),
            exports.join(" "),
        ]
    });
    let mut text = table(["GROUP", "TEST", "POINT", "TIME", "WRITTEN", "CLIENTS", "EXPORTS"], rows);
    for test in tests {
        for unserved in &test.unserved {
            let (group, number) = (&test.group, test.number.0);
            let what = match &unserved.disk {
                Some(disk) => format!("{group}/{disk}@test-{number}"),
                None => format!("test-{number} of {group}"),
            };
            let _ =
                write!(text, "\n{what}  not served, since {}\n  why  {}\n", unserved.since, unserved.reason);
        }
    }
    text
}

fn written(test: &Test) -> String {
    match (test.for_restore, test.read_only) {
        (true, _) => "restore".into(),
        (false, true) => "read-only".into(),
        (false, false) => size(test.overlay_bytes),
    }
}

pub fn test_started(test: &Test) -> String {
    let mut text = format!(
        "test-{} of {} serves point {} of {}{}\n",
        test.number.0,
        test.group,
        test.point.id,
        rfc3339(test.point.time),
        if test.read_only { ", read-only" } else { "" }
    );
    for export in &test.exports {
        let _ = writeln!(text, "  {}  {}  {}", export.export, size(export.size_bytes), export.uri);
    }
    text
}

/// `test-1, test-4`
pub fn test_numbers(tests: &[&Test]) -> String {
    tests.iter().map(|test| format!("test-{}", test.number.0)).collect::<Vec<_>>().join(", ")
}

pub fn restored(restored: &Restored) -> String {
    let mut text = format!(
        "restored point {} of {}: {} of data\n",
        restored.point.id,
        rfc3339(restored.point.time),
        size(restored.bytes)
    );
    for file in &restored.files {
        let _ = writeln!(text, "  {}", file.display());
    }
    text
}

pub fn adopted(adopted: &Adopted) -> String {
    let group = &adopted.group;
    let disks = group.disks.as_deref().unwrap_or_default();
    let mut text = format!("group {} adopted: {}\n", group.name, counted(disks.len(), "disk"));
    for disk in disks {
        let _ = writeln!(text, "  {}  {}  {}", disk.export, size(disk.size_bytes), disk.uri);
    }
    for lost in &adopted.lost {
        let (first, end) = (lost.first_sector, lost.first_sector + lost.sectors);
        let bytes = lost.sectors * SECTOR_BYTES;
        let _ =
            writeln!(text, "lost, and zeros now: disk {}, sectors {first}..{end} ({bytes} bytes)", lost.disk);
    }
    if !adopted.lost.is_empty() {
        let name = &group.name;
        let _ = writeln!(
            text,
            "check what uses these disks; then `afterimage vault repair {name}` says which recovery points show the loss, and leads out"
        );
    }
    text
}

pub fn mounted(mounted: &Mounted) -> String {
    format!(
        "{} is mounted on {}, read-only; `afterimage point unmount {}` ends it\n",
        mounted.disk,
        mounted.directory.display(),
        mounted.directory.display()
    )
}

/// What was unmounted while no gateway answered.
pub fn test_left(mounted: &Mounted) -> String {
    let Mounted { test, group, .. } = mounted;
    format!(
        "no gateway answers: test-{test} of {group} stays until one does; then the next `afterimage point mount` or `point \
         unmount` ends it, or `afterimage failover cleanup {group} --test {test}`\n"
    )
}

pub fn unmounted(mounted: &Mounted) -> String {
    format!("{} is no longer on {}\n", mounted.disk, mounted.directory.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::WallNanos;

    #[test]
    fn durations_keep_what_matters() {
        for (ms, text) in [
            (0, "0s"),
            (340, "340ms"),
            (1_000, "1s"),
            (1_250, "1s 250ms"),
            (61_900, "1m 1s"),
            (90_061_000, "1day 1h"),
        ] {
            assert_eq!(duration(ms), text);
        }
    }

    #[test]
    fn the_time_of_a_point_can_be_copied() {
        let point = Point {
            id: crate::units::PointId(1),
            lsn: crate::units::Lsn(1),
            time: WallNanos(1_795_262_400_123_456_789),
            kind: PointKind::Crash,
            label: None,
            delta_bytes: 0,
            held: false,
            lacks: Vec::new(),
        };
        for text in [point_created(&point), points(std::slice::from_ref(&point))] {
            assert!(text.contains("2026-11-21T12:00:00.123456789Z"), "{text}");
        }
    }

    #[test]
    fn tables_are_plain_columns() {
        let text = table(["A", "LONG"], [["xyz".to_owned(), "1".to_owned()]]);
        assert_eq!(text, "A    LONG\nxyz  1\n");
    }
}
