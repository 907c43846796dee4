//! The words of the API: what a request holds and what an answer says. Shared by server and command line.
//!
//! Plain values, no behaviour. Sizes are bytes, durations milliseconds, times RFC 3339 in UTC; see `wire.rs`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::name::{Label, Name};
use super::retain::Retain;
use super::selector::PointSelector;
use crate::block::TestId;
use crate::error::{Error, ErrorKind};
use crate::units::{DiskId, GroupId, Lsn, PointId, WallNanos};

/// A protection group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Permanent id.
    pub id: GroupId,
    /// What people call it.
    pub name: Name,
    /// When it was created; unknown where its manifest cannot be read.
    pub created: Option<WallNanos>,
    /// How it is protected; unknown where its manifest cannot be read.
    pub policy: Option<Policy>,
    /// Which points it keeps; unknown where its manifest cannot be read.
    pub retain: Option<Retain>,
    /// Its disks, by name; none where its manifest cannot be read.
    pub disks: Vec<Disk>,
    /// Why it could not be opened, if so. Its points, test failovers and restores are served as far as its vault can be
    /// read; nothing else is.
    pub failure: Option<Failure>,
}

/// Why a group could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Why.
    pub reason: Reason,
    /// Since when.
    pub since: WallNanos,
}

/// How a group is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Time between recovery points; none is made while nothing is written.
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Whether it is served: not if its group could not be opened.
    pub served: bool,
}

/// A recovery point of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// How consistent a recovery point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PointKind {
    /// As after a power cut, over all disks of the group at once.
    Crash,
    /// The applications had been told to come to rest.
    Application,
}

/// A test failover: a point served beside ongoing protection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Test {
    /// The N of `GROUP/DISK@test-N`.
    pub number: TestId,
    /// The group's name.
    pub group: Name,
    /// The point that it shows.
    pub point: Point,
    /// When it was started.
    pub started: WallNanos,
    /// Its disks.
    pub exports: Vec<TestExport>,
    /// Bytes written to it so far, which cleanup throws away.
    pub overlay_bytes: u64,
    /// Clients connected to it now.
    pub connections: u64,
}

/// A disk of a test failover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRequest {
    /// The new group's name.
    pub name: Name,
}

/// `PUT /v1/groups/{group}/policy`, and `POST …/policy/dry-run`; what is not given stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyForecast {
    /// Points that would go.
    pub points: u64,
    /// Bytes that would come back at most: what a merge keeps of the deltas stays.
    pub bytes_max: u64,
}

/// `POST /v1/groups/{group}/points/hold`, `…/release` and `…/delete`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointSelection {
    /// Which point.
    pub point: PointSelector,
}

/// `POST /v1/groups/{group}/disks`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRequest {
    /// The new disk's name.
    pub name: Name,
    /// What it holds.
    pub source: DiskSource,
}

/// What a new disk holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DiskSource {
    /// Zeros; the size is a positive multiple of 512. Answered with a [`Disk`].
    SizeBytes(u64),
    /// A raw file's content and size. Answered with a [`Job`].
    Import(PathBuf),
}

/// `POST /v1/groups/{group}/points`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointRequest {
    /// What the point is called.
    pub label: Option<Label>,
}

/// `POST /v1/groups/{group}/tests`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestRequest {
    /// Which point.
    pub point: PointSelector,
}

/// `POST /v1/groups/{group}/restore`; answered with a [`Job`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// One group, or every group.
    pub group: Option<Name>,
}

/// What `POST /v1/groups/{group}/resume` did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// The group, as it is now.
    pub group: Group,
    /// Whether it could not be opened before, and is open now.
    pub opened: bool,
    /// What takes writes again, one line each.
    pub cleared: Vec<String>,
    /// What stays latched, and why, one line each.
    pub latched: Vec<String>,
}

/// What a restore wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// The point.
    pub point: Point,
    /// The files.
    pub files: Vec<PathBuf>,
    /// Bytes written, without holes.
    pub bytes: u64,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Groups looked at.
    pub groups: u64,
    /// Manifest steps read.
    pub steps: u64,
    /// Blobs read.
    pub blobs: u64,
    /// Bytes read and summed.
    pub bytes: u64,
    /// What is wrong, one line each; empty when all is well.
    pub faults: Vec<String>,
}

/// Something that takes long: asked for once, then watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// How it stands.
    pub state: JobState,
}

/// What kind of work a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// A disk is filled from a file.
    Import,
    /// A point is written to files.
    Restore,
    /// A vault is read and checked.
    Verify,
}

/// How a job stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// What a job made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobResult {
    /// An import's disk.
    Disk(Disk),
    /// A restore's files.
    Restored(Restored),
    /// A verification's findings.
    Verified(VerifyReport),
}

/// An error as the API says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// How the whole gateway stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The site's name.
    pub site: Name,
    /// The gateway's version.
    pub version: String,
    /// When the process began to serve.
    pub started: WallNanos,
    /// Where block clients connect, as configured.
    pub listen: Vec<String>,
    /// Block clients connected now.
    pub connections: u64,
    /// `[nbd] connections_max`
    #[serde(default)]
    pub connections_limit: u64,
    /// Bytes of requests that block clients have in flight now.
    #[serde(default)]
    pub buffers_bytes: u64,
    /// `[nbd] buffers`, of each client.
    #[serde(default)]
    pub buffers_limit_bytes: u64,
    /// What the data path's I/O goes through.
    pub storage: StorageStatus,
    /// Every group, by name.
    pub groups: Vec<GroupStatus>,
}

/// What the data path's I/O really goes through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageStatus {
    /// `io_uring` or `blocking`.
    pub backend: String,
    /// Why that one.
    pub backend_reason: String,
    /// Whether files bypass the page cache.
    pub direct: bool,
    /// Why they do not.
    pub direct_reason: Option<String>,
}

/// How a group stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// The group and its disks.
    pub group: Group,
    /// Its state.
    pub state: GroupState,
    /// How far its records are; unknown if it could not be opened.
    pub lsn: Option<LsnLadder>,
    /// Its journal; unknown if it could not be opened.
    pub journal: Option<JournalStatus>,
    /// What it takes of memory and space, and may take; unknown if it could not be opened.
    #[serde(default)]
    pub limits: Option<GroupLimits>,
    /// Its newest recovery point.
    pub newest_point: Option<NewestPoint>,
    /// Whether nothing was written since the newest point: idleness is not lateness.
    pub idle: bool,
    /// Since when points do not come as often as the policy says, if so, whatever else is wrong with the group.
    #[serde(default)]
    pub late_since: Option<WallNanos>,
    /// How long the oldest write has waited for its answer, if that is a second or more.
    #[serde(default)]
    pub writes_waiting_ms: Option<u64>,
    /// Its recovery points.
    pub history: History,
    /// What its guests write now.
    pub writes: WriteRate,
    /// Block clients connected to its disks now.
    pub connections: u64,
}

/// A group's state, why, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupState {
    /// The state.
    pub condition: Condition,
    /// Why it is not [`Condition::Protected`].
    pub reason: Option<Reason>,
    /// Since when.
    pub since: WallNanos,
}

/// What can be said of a group in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Served, but somebody asked that no timed points are made, and none go.
    Paused,
    /// Its journal is being opened; it is not served yet.
    Opening,
    /// Served, and every write is captured.
    Protected,
    /// Served, but something lags or failed that the reason names.
    Degraded,
    /// Writes fail until a person has mended what the reason names.
    Latched,
    /// It could not be opened: its disks are not served, its points are as far as its vault can be read.
    Failed,
    /// The process is stopping.
    Stopping,
}

/// Why a group is not simply protected, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Which kind of reason.
    pub code: ReasonCode,
    /// One line for people: what failed, on which file.
    pub detail: String,
    /// One line for people: what they can do.
    pub mend: String,
}

/// Which kind of reason a state has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// A journal write or sync failed.
    JournalFailed,
    /// The journal is at its limit: writes wait.
    JournalFull,
    /// The extent maps are at their limit of memory: writes wait.
    MapsFull,
    /// Recovery points do not come as often as the policy says.
    PointsLate,
    /// The vault has too little room: its oldest points go.
    SpaceShort,
    /// The file system is full: writes wait.
    NoSpace,
    /// A disk's image failed; that disk's writes fail.
    ImageFailed,
    /// The vault failed: no points are published.
    VaultFailed,
    /// What is on disk is not what was stored.
    Corrupt,
    /// A newer timeline exists.
    Fenced,
    /// A device or file system refused an operation.
    Io,
    /// A file is not there.
    Missing,
    /// Written by a newer version, or something here is not supported.
    Unsupported,
    /// Sealed under a key that is not here.
    NoKey,
}

/// How far a group's records are: each at most the one before it, except that durable and visible do not bind each
/// other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LsnLadder {
    /// Handed to the storage.
    pub submitted: Lsn,
    /// Survives the death of the process.
    pub written: Lsn,
    /// Seen by reads, and acknowledged.
    pub visible: Lsn,
    /// Survives the death of the machine.
    pub durable: Lsn,
    /// In the images, under a durable checkpoint.
    pub destaged: Lsn,
    /// In the vault, in a published point.
    pub vaulted: Lsn,
}

/// A group's journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Bytes that cannot be recycled yet.
    pub used_bytes: u64,
    /// The configured limit.
    pub limit_bytes: u64,
}

/// What a group takes, and may take: docs/limits.md.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLimits {
    /// Memory of extent maps.
    pub maps_bytes: u64,
    /// `[memory] maps`
    pub maps_limit_bytes: u64,
    /// Memory of recently written frames.
    pub frames_bytes: u64,
    /// `[memory] frames`
    pub frames_limit_bytes: u64,
    /// Bytes of all deltas.
    pub history_bytes: u64,
    /// `[vault] history_max`, if there is one.
    pub history_limit_bytes: Option<u64>,
    /// Free bytes in the vault's file system, as looked at last.
    pub free_bytes: Option<u64>,
    /// `[vault] free_min`, or what it is unless said.
    pub free_min_bytes: Option<u64>,
}

/// A group's newest recovery point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewestPoint {
    /// Its id.
    pub id: PointId,
    /// Its time.
    pub time: WallNanos,
    /// How old it is.
    pub age_ms: u64,
}

/// A group's recovery points.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// How many there are.
    pub points: u64,
    /// The oldest one's time.
    pub oldest: Option<WallNanos>,
    /// The newest one's time.
    pub newest: Option<WallNanos>,
    /// Why points that should go stay, if so.
    #[serde(default)]
    pub retention: Option<String>,
}

/// What a group's guests write, averaged over the last seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WriteRate {
    /// Write requests a second.
    pub writes_per_s: f64,
    /// Bytes a second.
    pub bytes_per_s: f64,
}

/// What there is of keys, and what the groups need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// The site key's id, if it is here.
    pub site_key: Option<String>,
    /// Where it is kept.
    pub file: PathBuf,
    /// What each group is sealed under.
    pub groups: Vec<GroupSeal>,
}

/// What a group is sealed under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSeal {
    /// The group.
    pub group: Name,
    /// The site key that wraps its keys; nothing if it is not sealed.
    pub site_key: Option<String>,
    /// How many keys it had so far.
    pub generations: u32,
    /// Whether the key that it needs is here.
    pub has_key: bool,
}

/// A site key, as it is kept in a file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyText {
    /// Whoever reads this can open what the site sealed.
    pub key: String,
}

/// A site key to be taken.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyImport {
    /// As it was exported.
    pub key: String,
    /// Whether it may take another's place.
    #[serde(default)]
    pub replace: bool,
}

/// How keys are to be rotated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRotation {
    /// Whether each group gets a new key as well, for what it seals from its next opening on.
    #[serde(default)]
    pub new_group_keys: bool,
}

impl std::fmt::Debug for KeyText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyText(…)")
    }
}

impl std::fmt::Debug for KeyImport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyImport(…, replace: {})", self.replace)
    }
}

/// Something that happened, for people to look back at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub time: WallNanos,
    /// To which group.
    pub group: Option<GroupId>,
    /// What that was called then.
    pub name: Option<Name>,
    /// How grave it is.
    pub severity: Severity,
    /// What kind of event, in one word for programs: docs/limits.md has those of limits.
    pub code: String,
    /// One line for people.
    pub message: String,
}

/// `GET /v1/events`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    /// Only this group's.
    pub group: Option<Name>,
    /// The newest so many.
    pub limit: Option<u32>,
}

impl EventQuery {
    /// How many are given unless said.
    pub const LIMIT_DEFAULT: u32 = 100;
}

/// How grave an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// To be looked at.
    Warning,
    /// To be mended.
    Error,
}
