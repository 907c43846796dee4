//! How a group fared over time, in the words of the API: what `GET /v1/groups/{group}/report` answers. docs/reports.md.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::name::Name;
use crate::control::retain::Retain;
use crate::units::{GroupId, WallNanos};

/// `GET /v1/groups/{group}/report`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportQuery {
    /// How far back it reaches, if its group is that old: a minute to 366 days; seven days unless said.
    pub last_ms: Option<u64>,
}

impl ReportQuery {
    /// How far back it reaches unless said.
    pub const LAST_MS_DEFAULT: u64 = 7 * 24 * 3600 * 1000;
    /// Least that it reaches back.
    pub const LAST_MS_MIN: u64 = 60_000;
    /// Farthest that it reaches back.
    pub const LAST_MS_MAX: u64 = 366 * 24 * 3600 * 1000;
}

/// How a group fared over time.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct GroupReport {
    /// The group's name.
    pub group: Name,
    /// The group's id.
    pub group_id: GroupId,
    /// The start of the first span.
    pub from: WallNanos,
    /// When it was made.
    pub to: WallNanos,
    /// How long each span is: five minutes, or an hour where it reaches back more than two days.
    pub span_ms: u64,
    /// Which points the group keeps; unknown where its manifest cannot be read.
    pub retain: Option<Retain>,
    /// How far back the points are to reach that it keeps; none if it keeps all, or nothing is known of it.
    pub retain_ms: Option<u64>,
    /// Time between points, as the policy has it.
    pub interval_ms: Option<u64>,
    /// What the samples of that time come to.
    pub totals: ReportTotals,
    /// The spans in which samples were taken, oldest first.
    pub spans: Vec<ReportSpan>,
    /// The spans in which points are that there are now, oldest first: as the vault's manifest says, so also of before the first sample.
    pub points: Vec<ReportPoints>,
}

/// What the samples of a report come to.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct ReportTotals {
    /// Bytes of write requests acknowledged.
    pub written_bytes: u64,
    /// Bytes written to journal, images and vault for each of these; none if nothing was written.
    pub written_per_byte: Option<f64>,
    /// The same bytes by disk, the most first; also disks that were removed since.
    pub disks: Vec<DiskChurn>,
    /// The hour in which most was written.
    pub top_hour: Option<HourChurn>,
    /// Points made.
    pub points_made: u64,
    /// The longest time between two neighbouring points that there are now.
    pub longest_gap: Option<PointGap>,
}

/// What was written to a disk.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct DiskChurn {
    /// The disk's name.
    pub disk: String,
    /// Bytes of write requests acknowledged.
    pub written_bytes: u64,
}

/// What was written in an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct HourChurn {
    /// When the hour began: a whole one in UTC.
    pub start: WallNanos,
    /// Bytes of write requests acknowledged.
    pub written_bytes: u64,
}

/// A time from which there is no point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct PointGap {
    /// The time of the point before it.
    pub from: WallNanos,
    /// The time of the point after it.
    pub to: WallNanos,
}

/// A group in one span.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ReportSpan {
    /// When it began.
    pub start: WallNanos,
    /// What was written to each disk, by name; nothing of one to which nothing was.
    pub disks: Vec<DiskChurn>,
    /// Bytes of write requests acknowledged, of all disks.
    pub written_bytes: u64,
    /// Bytes written to the journal, headers included.
    pub journal_bytes: u64,
    /// Bytes written to images.
    pub images_bytes: u64,
    /// Bytes written to the vault as deltas.
    pub vault_bytes: u64,
    /// Points made.
    pub points_made: u64,
    /// How many points there were at its end.
    pub points: u64,
    /// The oldest one's time then.
    pub oldest: Option<WallNanos>,
    /// The newest one's time then.
    pub newest: Option<WallNanos>,
    /// The most of the journal that was in use when a sample was taken.
    pub journal_used_bytes: u64,
    /// The journal's limit at its end.
    pub journal_limit_bytes: u64,
    /// Bytes of all deltas at its end.
    pub history_bytes: u64,
    /// Free bytes in the vault's file system at its end, as looked at last.
    pub vault_free_bytes: Option<u64>,
    /// Free bytes in the images' file system at its end, as looked at last.
    pub images_free_bytes: Option<u64>,
}

/// The points of one span that there are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ReportPoints {
    /// When it began.
    pub start: WallNanos,
    /// How many there are.
    pub points: u64,
    /// Bytes of their deltas, as stored: what changed up to each, sealed and compressed.
    pub delta_bytes: u64,
}
