//! Metrics of groups and their disks: tables of a name, a unit, a line of help, and where the value comes from.
//!
//! What is not known of a group has no sample: of one that could not be opened, all but its condition, points and disks.

use std::fmt;

use prometheus_client::registry::Unit;
use serde::Serialize;

use super::families::{BYTES, Families, Labels, SECONDS, number, truth};
use crate::control::model::{
    Condition, Disk, GroupLimits, GroupStatus, GroupTotals, JournalStatus, ReasonCode, VerifyStatus,
};
use crate::units::WallNanos;

/// A number that rises and falls.
struct Gauge {
    name: &'static str,
    unit: Option<&'static Unit>,
    help: &'static str,
    value: fn(&GroupStatus) -> Option<f64>,
}

/// A number that only grows while a group is open.
struct Counter {
    name: &'static str,
    unit: Option<&'static Unit>,
    help: &'static str,
    value: fn(&GroupTotals) -> u64,
}

const fn gauge(
    name: &'static str,
    unit: Option<&'static Unit>,
    help: &'static str,
    value: fn(&GroupStatus) -> Option<f64>,
) -> Gauge {
    Gauge { name, unit, help, value }
}

const fn counter(
    name: &'static str,
    unit: Option<&'static Unit>,
    help: &'static str,
    value: fn(&GroupTotals) -> u64,
) -> Counter {
    Counter { name, unit, help, value }
}

static GAUGES: [Gauge; 32] = [
    gauge(
        "afterimage_group_condition_since_timestamp",
        SECONDS,
        "When the group came into its condition, Unix time.",
        |group| Some(unix(group.state.since)),
    ),
    gauge("afterimage_group_interval", SECONDS, "Time between points, as the policy has it.", |group| {
        group.group.policy.map(|policy| seconds(policy.interval_ms))
    }),
    gauge("afterimage_group_points", None, "Recovery points.", |group| group.history.points.map(number)),
    gauge(
        "afterimage_group_oldest_point_timestamp",
        SECONDS,
        "Time of the oldest point, Unix time.",
        |group| group.history.oldest.map(unix),
    ),
    gauge(
        "afterimage_group_newest_point_timestamp",
        SECONDS,
        "Time of the newest point, Unix time.",
        |group| group.newest_point.map(|point| unix(point.time)),
    ),
    gauge(
        "afterimage_group_newest_point_age",
        SECONDS,
        "Age of the newest point, also of one that holds all there is.",
        |group| group.newest_point.map(|point| seconds(point.age_ms)),
    ),
    gauge(
        "afterimage_group_unprotected",
        SECONDS,
        "How long ago the oldest write was made that no point holds; 0 if there is none.",
        |group| open(group).map(|_| group.unprotected_ms.map_or(0.0, seconds)),
    ),
    gauge("afterimage_group_idle", None, "Whether nothing was written since the newest point.", |group| {
        open(group).map(|_| truth(group.idle))
    }),
    gauge("afterimage_group_points_late", None, "Whether points come later than the policy says.", |group| {
        open(group).map(|_| truth(group.late_since.is_some()))
    }),
    gauge(
        "afterimage_group_writes_waiting",
        SECONDS,
        "How long the oldest write has waited for its answer, if that is a second or more; else 0.",
        |group| open(group).map(|_| group.writes_waiting_ms.map_or(0.0, seconds)),
    ),
    gauge("afterimage_group_connections", None, "Block clients connected to the group's disks.", |group| {
        Some(number(group.connections))
    }),
    gauge("afterimage_group_journal", BYTES, "Journal that cannot be used again yet.", |group| {
        journal(group, |journal| journal.used_bytes)
    }),
    gauge("afterimage_group_journal_limit", BYTES, "Most that the journal takes.", |group| {
        journal(group, |journal| journal.limit_bytes)
    }),
    gauge("afterimage_group_maps", BYTES, "Memory of extent maps and payload tables.", |group| {
        limit(group, |limits| Some(limits.maps_bytes))
    }),
    gauge("afterimage_group_maps_limit", BYTES, "Most memory of extent maps and payload tables.", |group| {
        limit(group, |limits| Some(limits.maps_limit_bytes))
    }),
    gauge("afterimage_group_frames", BYTES, "Memory of recently written frames.", |group| {
        limit(group, |limits| Some(limits.frames_bytes))
    }),
    gauge("afterimage_group_frames_limit", BYTES, "Most memory of recently written frames.", |group| {
        limit(group, |limits| Some(limits.frames_limit_bytes))
    }),
    gauge("afterimage_group_history", BYTES, "Deltas in the vault.", |group| {
        limit(group, |limits| Some(limits.history_bytes))
    }),
    gauge("afterimage_group_history_limit", BYTES, "Most that deltas take, if that has a limit.", |group| {
        limit(group, |limits| limits.history_limit_bytes)
    }),
    gauge("afterimage_group_vault_free", BYTES, "Free space of the vault's file system.", |group| {
        limit(group, |limits| limits.free_bytes)
    }),
    gauge(
        "afterimage_group_vault_free_min",
        BYTES,
        "Free space below which the oldest points go.",
        |group| limit(group, |limits| limits.free_min_bytes),
    ),
    gauge("afterimage_group_images_free", BYTES, "Free space of the images' file system.", |group| {
        limit(group, |limits| limits.images_free_bytes)
    }),
    gauge(
        "afterimage_group_images_free_min",
        BYTES,
        "Free space of the images' file system below which that is told.",
        |group| limit(group, |limits| limits.images_free_min_bytes),
    ),
    gauge(
        "afterimage_group_vault_reserve",
        BYTES,
        "What the vault keeps back, which counts as free.",
        |group| limit(group, |limits| limits.reserve_bytes),
    ),
    gauge("afterimage_group_retention_waits", None, "Whether points stay that should go.", |group| {
        open(group).map(|_| truth(group.history.retention.is_some()))
    }),
    gauge("afterimage_group_verify_running", None, "Whether a verification is under way.", |group| {
        verify(group, |verify| Some(truth(verify.running.is_some())))
    }),
    gauge(
        "afterimage_group_verify_last_timestamp",
        SECONDS,
        "When the last verification ended, Unix time.",
        |group| verify(group, |verify| verify.last.as_ref().map(|last| unix(last.finished))),
    ),
    gauge("afterimage_group_verify_last_read", BYTES, "What the last verification read.", |group| {
        verify(group, |verify| verify.last.as_ref().map(|last| number(last.read_bytes)))
    }),
    gauge("afterimage_group_verify_last_faults", None, "Faults that the last verification found.", |group| {
        verify(group, |verify| verify.last.as_ref().map(|last| number(last.faults)))
    }),
    gauge(
        "afterimage_group_verify_due_timestamp",
        SECONDS,
        "When the next verification is due, Unix time.",
        |group| verify(group, |verify| verify.next.map(unix)),
    ),
    gauge("afterimage_group_disks", None, "Disks of the group.", |group| {
        group.group.disks.as_ref().map(|disks| number(disks.len() as u64))
    }),
    gauge(
        "afterimage_group_damaged",
        None,
        "Whether a verification found damage that is not mended.",
        |group| Some(truth(group.group.damage.is_some())),
    ),
];

static COUNTERS: [Counter; 7] = [
    counter("afterimage_group_writes", None, "Write, zero and trim requests acknowledged.", |totals| {
        totals.writes
    }),
    counter("afterimage_group_written", BYTES, "Bytes of write requests acknowledged.", |totals| {
        totals.written_bytes
    }),
    counter("afterimage_group_reads", None, "Read requests answered.", |totals| totals.reads),
    counter("afterimage_group_journal_written", BYTES, "Bytes written to the journal.", |totals| {
        totals.journal_bytes
    }),
    counter("afterimage_group_images_written", BYTES, "Bytes written to images.", |totals| {
        totals.images_bytes
    }),
    counter("afterimage_group_vault_written", BYTES, "Bytes written to the vault as deltas.", |totals| {
        totals.vault_bytes
    }),
    counter("afterimage_group_points_published", None, "Recovery points published.", |totals| totals.points),
];

pub(super) fn write(families: &mut Families<'_>, groups: &[GroupStatus]) -> fmt::Result {
    states(families, groups)?;
    for Gauge { name, unit, help, value } in &GAUGES {
        let samples = groups.iter().filter_map(|group| Some((of_group(group), value(group)?)));
        families.gauge(name, *unit, help, samples)?;
    }
    for Counter { name, unit, help, value } in &COUNTERS {
        let samples = groups.iter().filter_map(|group| Some((of_group(group), value(&group.totals?))));
        families.counter(name, *unit, help, samples)?;
    }
    ladder(families, groups)?;
    disks(families, groups)
}

/// One series for each condition and each reason there may be, of which the one that holds is 1: what does not hold is known, too.
fn states(families: &mut Families<'_>, groups: &[GroupStatus]) -> fmt::Result {
    let conditions = groups.iter().flat_map(|group| {
        let holds = group.state.condition;
        Condition::ALL
            .map(|condition| (with(group, "condition", word(&condition)), truth(condition == holds)))
    });
    families.gauge(
        "afterimage_group_condition",
        None,
        "1 for the condition that the group is in.",
        conditions,
    )?;
    let reasons = groups.iter().flat_map(|group| {
        let holds = group.state.reason.as_ref().map(|reason| reason.code);
        ReasonCode::ALL.map(|reason| (with(group, "reason", word(&reason)), truth(Some(reason) == holds)))
    });
    families.gauge("afterimage_group_reason", None, "1 for the reason of the group's condition.", reasons)
}

/// How far each rung is behind what was handed to the journal.
fn ladder(families: &mut Families<'_>, groups: &[GroupStatus]) -> fmt::Result {
    let samples = groups.iter().flat_map(|group| {
        let rungs = group.lsn.map(|lsn| {
            let behind = |rung: crate::units::Lsn| number(lsn.submitted.0.saturating_sub(rung.0));
            [
                ("visible", behind(lsn.visible)),
                ("durable", behind(lsn.durable)),
                ("destaged", behind(lsn.destaged)),
                ("vaulted", behind(lsn.vaulted)),
            ]
        });
        let labelled = |(rung, records): (&str, f64)| (with(group, "rung", rung.to_owned()), records);
        rungs.into_iter().flatten().map(labelled).collect::<Vec<_>>()
    });
    let help = "Records that were submitted and have not come that far.";
    families.gauge("afterimage_group_records_behind", None, help, samples)
}

fn disks(families: &mut Families<'_>, groups: &[GroupStatus]) -> fmt::Result {
    let each = |value: fn(&Disk) -> f64| {
        groups.iter().flat_map(move |group| {
            let disks = group.group.disks.iter().flatten();
            disks.map(move |disk| (with(group, "disk", disk.name.to_string()), value(disk)))
        })
    };
    let sizes = each(|disk| number(disk.size_bytes));
    families.gauge("afterimage_disk_size", BYTES, "Size of the disk.", sizes)?;
    let latched = each(|disk| truth(disk.latched.is_some()));
    families.gauge("afterimage_disk_latched", None, "Whether writes to the disk fail.", latched)?;
    let written = groups.iter().flat_map(|group| {
        let disks = group.written_by_disk.iter().flatten();
        disks.map(move |disk| (with(group, "disk", disk.disk.clone()), disk.written_bytes))
    });
    let help = "Bytes of write requests to the disk acknowledged.";
    families.counter("afterimage_disk_written", BYTES, help, written)
}

fn of_group(group: &GroupStatus) -> Labels {
    vec![("group", group.group.name.to_string())]
}

fn with(group: &GroupStatus, label: &'static str, value: String) -> Labels {
    vec![("group", group.group.name.to_string()), (label, value)]
}

/// Of a group that could not be opened, little is known.
fn open(group: &GroupStatus) -> Option<&GroupTotals> {
    group.totals.as_ref()
}

fn journal(group: &GroupStatus, bytes: fn(&JournalStatus) -> u64) -> Option<f64> {
    group.journal.as_ref().map(|journal| number(bytes(journal)))
}

fn limit(group: &GroupStatus, bytes: fn(&GroupLimits) -> Option<u64>) -> Option<f64> {
    group.limits.as_ref().and_then(bytes).map(number)
}

fn verify(group: &GroupStatus, value: fn(&VerifyStatus) -> Option<f64>) -> Option<f64> {
    group.verify.as_ref().and_then(value)
}

/// The word that the API has for it.
pub(super) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("the API has a word for it: {other:?}"),
    }
}

#[allow(clippy::cast_precision_loss)]
pub(super) fn unix(time: WallNanos) -> f64 {
    // To the millisecond: more digits do not fit beside the seconds anyhow.
    (time.0 / 1_000_000) as f64 / 1e3
}

pub(super) fn seconds(ms: u64) -> f64 {
    number(ms) / 1e3
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Debug;

    use serde::de::DeserializeOwned;

    use super::*;

    /// What serde knows of an enum, which no list can forget.
    fn words<T: DeserializeOwned + Debug>() -> BTreeSet<String> {
        let refusal = serde_json::from_str::<T>("\"no such word\"").expect_err("no such word").to_string();
        let (_, expected) = refusal.split_once("expected one of ").expect(&refusal);
        expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn every_condition_and_every_reason_has_a_series() {
        assert_eq!(Condition::ALL.iter().map(word).collect::<BTreeSet<_>>(), words::<Condition>());
        assert_eq!(ReasonCode::ALL.iter().map(word).collect::<BTreeSet<_>>(), words::<ReasonCode>());
    }
}
