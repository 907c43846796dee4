//! The words of the API: what a request holds and what an answer says. Shared by server and command line.
//!
//! Plain values, no behaviour. Sizes are bytes, durations milliseconds, times RFC 3339 in UTC; see `wire.rs`.

mod audit;
mod events;
mod keys;
mod report;
mod status;
mod tokens;
mod verify;

use std::num::NonZeroU64;
use std::path::PathBuf;

pub use audit::*;
pub use events::*;
pub use keys::*;
pub use report::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
pub use status::*;
pub use tokens::*;
pub use verify::*;

use super::name::{Label, Name};
use super::retain::Retain;
use super::selector::PointSelector;
use crate::block::TestId;
use crate::error::{Error, ErrorKind};
use crate::units::{DiskId, GroupId, Lsn, PointId, WallNanos};

/// A protection group.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Group {
    /// Permanent id.
    pub id: GroupId,
    /// What people call it.
    pub name: Name,
    /// When it was created. Where its manifest cannot be read, this, policy and disks are what the catalogue knew last, or
    /// unknown.
    pub created: Option<WallNanos>,
    /// How it is protected.
    pub policy: Option<Policy>,
    /// Which points it keeps; unknown where its manifest cannot be read.
    pub retain: Option<Retain>,
    /// Its disks, by name.
    pub disks: Option<Vec<Disk>>,
    /// Its condition, in the word of `status`; unknown while it is being opened or closed.
    #[serde(default)]
    pub condition: Option<Condition>,
    /// Of how many of its disks writes fail, though it is open: [`Disk::latched`] says why.
    #[serde(default)]
    pub latched_disks: u64,
    /// Why it could not be opened, if so. Its points, test failovers and restores are served as far as its vault can be
    /// read; nothing else is.
    pub failure: Option<Failure>,
    /// What verifications found damaged, of its vault, its disks or its test failovers, and what of these cannot be served.
    #[serde(default)]
    pub damage: Option<Box<Failure>>,
    /// Which requests of clients fail, to its disks or test failovers, or did so within the last five minutes.
    #[serde(default)]
    pub failing: Option<Box<Failure>>,
}

/// Why a group could not be opened, what is damaged of it, or which requests fail.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Failure {
    /// Why.
    pub reason: Reason,
    /// Since when.
    pub since: WallNanos,
}

/// How a group is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Time between recovery points; none is made while nothing is written. 0 of a group that was created without them.
    pub interval_ms: u64,
}

impl Policy {
    /// Shortest interval: below it markers and manifest steps outweigh the writes.
    pub const INTERVAL_MS_MIN: u64 = 100;
    /// Longest interval.
    pub const INTERVAL_MS_MAX: u64 = 24 * 3600 * 1000;

    /// The policy, if its interval is one that can be kept.
    pub fn checked(self) -> Result<Policy, Error> {
        if (Policy::INTERVAL_MS_MIN..=Policy::INTERVAL_MS_MAX).contains(&self.interval_ms) {
            return Ok(self);
        }
        Err(Error::invalid(format!(
            "interval = {}ms: out of range: write a duration from 100ms to 24h, for example 1s",
            self.interval_ms
        )))
    }
}

/// A protected disk.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Disk {
    /// Permanent id.
    pub id: DiskId,
    /// The name of its group.
    pub group: Name,
    /// What people call it.
    pub name: Name,
    /// Its size.
    pub size_bytes: u64,
    /// The NBD export's name.
    pub export: String,
    /// The NBD URI of the export at the gateway's first address.
    pub uri: String,
    /// Whether it is served: not if its group could not be opened, nor if it is latched.
    pub served: bool,
    /// Why its writes fail, and its reads if its files cannot be opened, though its group is open: in the words of `status`.
    #[serde(default)]
    pub latched: Option<Reason>,
}

/// A recovery point of a group.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Point {
    /// Permanent id.
    pub id: PointId,
    /// The marker's LSN; points are ordered by it.
    pub lsn: Lsn,
    /// The group's time at the marker.
    pub time: WallNanos,
    /// How consistent it is.
    pub kind: PointKind,
    /// What a person called it.
    pub label: Option<String>,
    /// Bytes of the delta since the point before it, as stored.
    pub delta_bytes: u64,
    /// Whether somebody holds it: it stays until it is released.
    #[serde(default)]
    pub held: bool,
    /// Disks that it cannot give, since writes to them rotted in the journal before a delta had them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<String>,
}

/// A recovery point that was just made.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct PointCreated {
    /// The point.
    #[serde(flatten)]
    pub point: Point,
    /// How many other points have its label: where there are any, the label chooses none of them, nor this one.
    pub same_label: u64,
}

/// How consistent a recovery point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PointKind {
    /// As after a power cut, over all disks of the group at once.
    Crash,
    /// The applications had been told to come to rest.
    Application,
}

/// A test failover: a point served beside ongoing protection.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Test {
    /// The N of `GROUP/DISK@test-N`.
    pub number: TestId,
    /// The group's name.
    pub group: Name,
    /// The point that it shows.
    pub point: Point,
    /// When it was started.
    pub started: WallNanos,
    /// Whether writes are refused.
    #[serde(default)]
    pub read_only: bool,
    /// Whether it is there for a restore, and ends with the gateway.
    #[serde(default)]
    pub for_restore: bool,
    /// Its disks that are served.
    pub exports: Vec<TestExport>,
    /// What of it cannot be served, and why.
    #[serde(default)]
    pub unserved: Vec<TestUnserved>,
    /// Bytes written to it so far, which cleanup throws away.
    pub overlay_bytes: u64,
    /// Clients connected to it now.
    pub connections: u64,
}

/// A disk of a test failover that is not served, or all of them.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct TestUnserved {
    /// The disk's name; none if it is all of them.
    pub disk: Option<String>,
    /// Why, with file and offset, and what to do.
    pub reason: String,
    /// Since when that is known.
    pub since: WallNanos,
}

/// A disk of a test failover.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct TestExport {
    /// The disk's name.
    pub disk: Name,
    /// The NBD export's name.
    pub export: String,
    /// The NBD URI of the export at the gateway's first address.
    pub uri: String,
    /// The disk's size at the point.
    pub size_bytes: u64,
}

/// `POST /v1/groups`
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRequest {
    /// The new group's name.
    pub name: Name,
    /// Whether recovery points are made of it: for good, for a group without them cannot have any later.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub points: bool,
}

fn yes() -> bool {
    true
}

// As serde asks for it.
#[expect(clippy::trivially_copy_pass_by_ref)]
fn is_yes(value: &bool) -> bool {
    *value
}

/// `PUT /v1/groups/{group}/policy`, and `POST …/policy/dry-run`; what is not given stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRequest {
    /// Time between recovery points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Which points are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain: Option<Retain>,
}

impl PolicyRequest {
    /// The request, if it asks for something that can be.
    pub fn checked(self) -> Result<PolicyRequest, Error> {
        if self == PolicyRequest::default() {
            return Err(Error::invalid("nothing to set: give interval_ms, retain, or both"));
        }
        if let Some(interval_ms) = self.interval_ms {
            Policy { interval_ms }.checked()?;
        }
        Ok(self)
    }
}

/// What a policy would do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct PolicyForecast {
    /// Points that would go.
    pub points: u64,
    /// Bytes that would come back at most: what a merge keeps of the deltas stays.
    pub bytes_max: u64,
}

/// `POST /v1/groups/{group}/points/hold`, `…/release` and `…/delete`
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointSelection {
    /// Which point.
    pub point: PointSelector,
}

/// `POST /v1/groups/{group}/disks`
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRequest {
    /// The new disk's name.
    pub name: Name,
    /// What it holds.
    pub source: DiskSource,
}

/// What a new disk holds.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DiskSource {
    /// Zeros; the size is a positive multiple of 512. Answered with a [`Disk`].
    SizeBytes(u64),
    /// A raw file's content and size. Answered with a [`Job`].
    Import(PathBuf),
}

/// `POST /v1/groups/{group}/disks/{disk}/resize`
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeRequest {
    /// Its new size, a positive multiple of 512.
    pub size_bytes: u64,
    /// Whether the disk may become smaller, and lose what lies behind its new end.
    #[serde(default)]
    pub lose_tail: bool,
}

/// `POST /v1/groups/{group}/points`
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointRequest {
    /// What the point is called.
    pub label: Option<Label>,
}

/// `POST /v1/groups/{group}/tests`
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestRequest {
    /// Which point.
    pub point: PointSelector,
    /// Whether writes are to be refused; nothing is stored for it then.
    #[serde(default)]
    pub read_only: bool,
    /// Whether it is for a restore, which a gateway's end cuts off: it takes no writes either, and ends with the gateway.
    #[serde(default)]
    pub for_restore: bool,
}

/// `POST /v1/groups/{group}/restore`; answered with a [`Job`].
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// Which point.
    pub point: PointSelector,
    /// Where one raw file a disk, `DISK.raw`, is written; absolute, created if missing.
    pub directory: PathBuf,
    /// Whether files that are there already may be overwritten.
    #[serde(default)]
    pub overwrite: bool,
}

/// `POST /v1/vault/verify`; answered with a [`Job`].
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// One group, or every group.
    pub group: Option<Name>,
    /// Bytes that are read in a second at most; without it, as many as there are.
    #[serde(default)]
    pub rate_bytes_per_s: Option<NonZeroU64>,
}

/// `POST /v1/groups/{group}/verify`; answered with a [`Job`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupVerifyRequest {
    /// Bytes that are read in a second at most; without it, as many as there are.
    #[serde(default)]
    pub rate_bytes_per_s: Option<NonZeroU64>,
}

/// `POST /v1/groups/{group}/repair`; answered with a [`Job`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepairRequest {
    /// Whether recovery points that need what is lost may go. Else it is only said what would be done.
    #[serde(default)]
    pub lose_points: bool,
    /// Bytes that are read in a second at most while the vault is looked through; without it, as many as there are.
    #[serde(default)]
    pub rate_bytes_per_s: Option<NonZeroU64>,
}

/// `POST /v1/vault/adopt`; answered with a [`Job`].
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdoptRequest {
    /// The vault of one group; absolute.
    pub directory: PathBuf,
    /// Whether what the newest point shows and nobody can read may become zeros.
    #[serde(default)]
    pub accept_loss: bool,
}

/// The group that was made of a vault.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Adopted {
    /// The group, as it is now.
    #[serde(flatten)]
    pub group: Group,
    /// What of its disks could not be read, and is zeros now.
    #[serde(default)]
    pub lost: Vec<LostSectors>,
}

/// Sectors of a disk whose content is lost.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct LostSectors {
    /// The disk's name.
    pub disk: String,
    /// The first of its sectors,
    pub first_sector: u64,
    /// and how many.
    pub sectors: u64,
}

/// `POST /v1/groups/{group}/resume`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumeRequest {
    /// Whether it is accepted that writes are lost which rotted in the journal.
    #[serde(default)]
    pub accept_loss: bool,
}

/// What `POST /v1/groups/{group}/resume` did.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Resumed {
    /// The group, as it is now.
    pub group: Group,
    /// Whether it could not be opened before, and is open now.
    pub opened: bool,
    /// Whether it was paused before, and makes timed points again now.
    #[serde(default)]
    pub unpaused: bool,
    /// What takes writes again, one line each.
    pub cleared: Vec<String>,
    /// What stays latched, and why, one line each.
    pub latched: Vec<String>,
}

/// What a restore wrote.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Restored {
    /// The point.
    pub point: Point,
    /// The files.
    pub files: Vec<PathBuf>,
    /// Bytes written, without holes.
    pub bytes: u64,
}

/// Something that takes long: asked for once, then watched.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Job {
    /// Permanent id: 32 hexadecimal digits.
    pub id: String,
    /// What kind of work.
    pub kind: JobKind,
    /// On what, for people.
    pub what: String,
    /// When it began.
    pub started: WallNanos,
    /// When it ended.
    pub ended: Option<WallNanos>,
    /// Bytes done.
    pub bytes_done: u64,
    /// Bytes to do, once known.
    pub bytes_total: Option<u64>,
    /// Who asked for it, where that is known.
    #[serde(default)]
    pub asked_by: Option<Asker>,
    /// How it stands.
    pub state: JobState,
}

/// What kind of work a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// A disk is filled from a file.
    Import,
    /// A point is written to files.
    Restore,
    /// A vault is read and checked, or a group compared with it.
    Verify,
    /// A group is made of a vault.
    Adopt,
    /// A vault is repaired, or looked at for that.
    Repair,
}

/// How a job stands.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// At work.
    Running,
    /// Done, with this result.
    Done(JobResult),
    /// Failed.
    Failed(ApiError),
    /// Somebody cancelled it, and what it had made is gone.
    Cancelled,
    /// The gateway ended before it did; nobody goes on with it.
    CutOff,
}

/// What a job made.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobResult {
    /// An import's disk.
    Disk(Disk),
    /// A restore's files.
    Restored(Restored),
    /// A verification's findings.
    Verified(VerifyReport),
    /// The group that was made of a vault.
    Adopted(Box<Adopted>),
    /// A comparison's.
    GroupVerified(GroupVerified),
    /// A repair's.
    Repaired(RepairReport),
}

/// An error as the API says it.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ApiError {
    /// What a caller can do about it.
    pub kind: ErrorKind,
    /// One line for people.
    pub message: String,
}

impl From<&Error> for ApiError {
    fn from(error: &Error) -> ApiError {
        ApiError { kind: error.kind(), message: error.to_string() }
    }
}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Error {
        Error::new(error.kind, error.message)
    }
}
