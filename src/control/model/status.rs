//! How the gateway and its groups stand, in the words of the API: what `GET /v1/status` answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DiskChurn, Group, HookStatus, HourChurn, Severity};
use crate::control::name::Name;
use crate::units::{Lsn, PointId, WallNanos};

/// How the whole gateway stands.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Status {
    /// The site's name.
    pub site: Name,
    /// The gateway's version.
    pub version: String,
    /// When the process began to serve.
    pub started: WallNanos,
    /// Where block clients connect, as configured.
    pub listen: Vec<String>,
    /// What clients that come by TCP must begin; none where they come without TLS. Unix sockets have none.
    #[serde(default)]
    pub tls: Option<TlsStatus>,
    /// Block clients connected now.
    pub connections: u64,
    /// `[nbd] connections_max`
    #[serde(default)]
    pub connections_limit: u64,
    /// Block clients that were turned away because there were so many.
    #[serde(default)]
    pub turned_away: TurnedAway,
    /// Bytes that block clients hold now: of requests in flight, and of replies that they have not taken.
    #[serde(default)]
    pub buffers_bytes: u64,
    /// `[nbd] buffers`, of each client.
    #[serde(default)]
    pub buffers_limit_bytes: u64,
    /// What all of them together have of `[nbd] buffers_total`: what each holds beyond 128 KiB, in steps of 64 KiB.
    #[serde(default)]
    pub buffers_total_bytes: u64,
    /// `[nbd] buffers_total`
    #[serde(default)]
    pub buffers_total_limit_bytes: u64,
    /// Memory of recently written frames, of all groups together.
    #[serde(default)]
    pub frames_total_bytes: u64,
    /// `[memory] frames_total`
    #[serde(default)]
    pub frames_total_limit_bytes: u64,
    /// For how long some client has waited for room in `[nbd] buffers_total`, if one does.
    #[serde(default)]
    pub buffers_waiting_ms: Option<u64>,
    /// Clients of the API connected now, whoever asks among them.
    #[serde(default)]
    pub api_connections: u64,
    /// `[api] connections_max`
    #[serde(default)]
    pub api_connections_limit: u64,
    /// Clients of the API that were turned away because there were so many.
    #[serde(default)]
    pub api_turned_away: TurnedAway,
    /// Descriptors that the process has open: files of groups, clients, and what it needs for itself.
    #[serde(default)]
    pub descriptors: u64,
    /// How many it may have; none where there is no limit, or nothing is known of it.
    #[serde(default)]
    pub descriptors_limit: Option<u64>,
    /// What happened to groups since the process began to serve, by code and severity.
    #[serde(default)]
    pub event_counts: Vec<EventCount>,
    /// Who is told of events, as they are configured.
    #[serde(default)]
    pub hooks: Vec<HookStatus>,
    /// What the data path's I/O goes through.
    pub storage: StorageStatus,
    /// Every group, by name.
    pub groups: Vec<GroupStatus>,
}

/// `[nbd.tls]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TlsStatus {
    /// Whether clients must show a certificate that an authority named there has signed.
    pub client_certificates: bool,
}

/// Clients that were turned away since the process began to serve, because there were too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct TurnedAway {
    /// How many.
    pub clients: u64,
    /// When the last one was.
    pub newest: Option<WallNanos>,
}

/// How many events of one kind there were.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct EventCount {
    /// Their code.
    pub code: String,
    /// How grave they are.
    pub severity: Severity,
    /// How many.
    pub events: u64,
}

/// What the data path's I/O really goes through.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
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
    /// How long ago the oldest write was made that no point holds; none if there is no such write. Of writes from before the
    /// group was opened, how long ago that was.
    #[serde(default)]
    pub unprotected_ms: Option<u64>,
    /// How long the oldest write has waited for its answer, if that is a second or more.
    #[serde(default)]
    pub writes_waiting_ms: Option<u64>,
    /// Its recovery points.
    pub history: History,
    /// What its guests write now.
    pub writes: WriteRate,
    /// What was written and read since it was opened; unknown if it could not be.
    #[serde(default)]
    pub totals: Option<GroupTotals>,
    /// Bytes of write requests acknowledged since it was opened, by disk; unknown if it could not be.
    #[serde(default)]
    pub written_by_disk: Option<Vec<DiskChurn>>,
    /// Bytes written to journal, images and vault for each byte that guests wrote, since it was opened; none if they wrote nothing.
    #[serde(default)]
    pub written_per_byte: Option<f64>,
    /// What its guests wrote in the last 24 hours, also before a restart; none where nothing is known of it.
    #[serde(default)]
    pub churn: Option<Churn>,
    /// Block clients connected to its disks now.
    pub connections: u64,
    /// How its verification in the background stands; none where there is none.
    #[serde(default)]
    pub verify: Option<VerifyStatus>,
}

/// How a group's verification in the background stands: docs/verify.md.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct VerifyStatus {
    /// The one that is under way.
    pub running: Option<VerifyRunning>,
    /// How the last one ended.
    pub last: Option<VerifyLast>,
    /// When the next one is due; none while one is under way, or if they are off.
    pub next: Option<WallNanos>,
}

/// A verification that is under way.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct VerifyRunning {
    /// Since when.
    pub started: WallNanos,
    /// What of the group is being read.
    pub part: VerifyPart,
    /// Bytes of that done.
    pub bytes_done: u64,
    /// Bytes of that to do, once known.
    pub bytes_total: Option<u64>,
    /// Whether it rests because the group is paused.
    pub held: bool,
    /// Whether it goes on where a restart, or an error, had cut it off.
    #[serde(default)]
    pub resumed: bool,
}

/// The parts of a verification, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyPart {
    /// Every stored byte of the vault.
    Vault,
    /// The disks, compared with the newest point.
    Disks,
}

/// How a verification ended.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct VerifyLast {
    /// When it began.
    pub started: WallNanos,
    /// When it ended.
    pub finished: WallNanos,
    /// Bytes read.
    pub read_bytes: u64,
    /// How many faults it found.
    pub faults: u64,
    /// The first of them.
    pub first_fault: Option<String>,
}

/// A group's state, why, and since when.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct GroupState {
    /// The state.
    pub condition: Condition,
    /// Why it is not [`Condition::Protected`].
    pub reason: Option<Reason>,
    /// Since when.
    pub since: WallNanos,
}

/// What can be said of a group in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
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

impl Condition {
    /// All there are.
    pub const ALL: [Condition; 7] = [
        Condition::Paused,
        Condition::Opening,
        Condition::Protected,
        Condition::Degraded,
        Condition::Latched,
        Condition::Failed,
        Condition::Stopping,
    ];
}

/// Why a group is not simply protected, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Reason {
    /// Which kind of reason.
    pub code: ReasonCode,
    /// One line for people: what failed, on which file.
    pub detail: String,
    /// One line for people: what they can do.
    pub mend: String,
}

/// Which kind of reason a state has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// A journal write or sync failed.
    JournalFailed,
    /// Writes are slowed down, or wait: little of the journal is free, or nothing.
    JournalFull,
    /// The extent maps are at their limit of memory: writes wait.
    MapsFull,
    /// Recovery points do not come as often as the policy says.
    PointsLate,
    /// The vault has too little room: its oldest points go.
    SpaceShort,
    /// Retention meets damage or errors in the vault: points stay that should go.
    RetentionStalled,
    /// The file system is full: writes wait.
    NoSpace,
    /// A disk's image failed; that disk's writes fail.
    ImageFailed,
    /// The vault failed: no points are published.
    VaultFailed,
    /// What is on disk is not what was stored.
    Corrupt,
    /// A verification found damage, and none since found it mended.
    VerifyFound,
    /// A test failover, or a disk of one, cannot be served, or a verification found that it is not what was written to it.
    TestDamaged,
    /// Requests of clients fail, or did a moment ago, for bytes that are not what was stored, a device or a file system.
    RequestsFail,
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
    /// Another process has locked a file.
    Locked,
}

impl ReasonCode {
    /// All there are.
    pub const ALL: [ReasonCode; 19] = [
        ReasonCode::JournalFailed,
        ReasonCode::JournalFull,
        ReasonCode::MapsFull,
        ReasonCode::PointsLate,
        ReasonCode::SpaceShort,
        ReasonCode::RetentionStalled,
        ReasonCode::NoSpace,
        ReasonCode::ImageFailed,
        ReasonCode::VaultFailed,
        ReasonCode::Corrupt,
        ReasonCode::VerifyFound,
        ReasonCode::TestDamaged,
        ReasonCode::RequestsFail,
        ReasonCode::Fenced,
        ReasonCode::Io,
        ReasonCode::Missing,
        ReasonCode::Unsupported,
        ReasonCode::NoKey,
        ReasonCode::Locked,
    ];
}

/// How far a group's records are: each at most the one before it, except that durable and visible do not bind each
/// other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Bytes that cannot be recycled yet.
    pub used_bytes: u64,
    /// The configured limit.
    pub limit_bytes: u64,
}

/// What a group takes, and may take: docs/limits.md.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
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
    /// What the vault keeps back of it, to be free when nothing else is: counts as free towards `free_min`.
    pub reserve_bytes: Option<u64>,
    /// `[vault] free_min`, or what it is unless said.
    pub free_min_bytes: Option<u64>,
    /// Free bytes in the images' file system, which may be another one.
    #[serde(default)]
    pub images_free_bytes: Option<u64>,
    /// `[images] free_min`, or what it is unless said.
    #[serde(default)]
    pub images_free_min_bytes: Option<u64>,
}

/// A group's newest recovery point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct NewestPoint {
    /// Its id.
    pub id: PointId,
    /// Its time.
    pub time: WallNanos,
    /// How old it is.
    pub age_ms: u64,
}

/// A group's recovery points.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct History {
    /// How many there are; unknown where the vault of a group that could not be opened cannot be read.
    pub points: Option<u64>,
    /// The oldest one's time.
    pub oldest: Option<WallNanos>,
    /// The newest one's time.
    pub newest: Option<WallNanos>,
    /// How long it is from the oldest one to the newest: how far back one can go; none if there is no point.
    #[serde(default)]
    pub span_ms: Option<u64>,
    /// How far back its ladder has points reach; none if it keeps every one.
    #[serde(default)]
    pub retain_ms: Option<u64>,
    /// Why points that should go stay, if so.
    #[serde(default)]
    pub retention: Option<String>,
}

/// What a group's guests write, averaged over the last seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct WriteRate {
    /// Write requests a second.
    pub writes_per_s: f64,
    /// Bytes a second.
    pub bytes_per_s: f64,
}

/// What a group's guests wrote in the last 24 hours: this one, of which there is a part, and the 23 before it.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Churn {
    /// The start of the first of those hours: a whole one in UTC.
    pub since: WallNanos,
    /// Bytes of write requests acknowledged since then.
    pub written_bytes: u64,
    /// The disk to which most of it was written; none if nothing was.
    pub top_disk: Option<DiskChurn>,
    /// The hour in which most of it was; none if nothing was.
    pub top_hour: Option<HourChurn>,
}

/// What a group did since it was opened: numbers that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct GroupTotals {
    /// Write, zero and trim requests that were acknowledged.
    pub writes: u64,
    /// Bytes of the write requests among them.
    pub written_bytes: u64,
    /// Read requests that were answered.
    pub reads: u64,
    /// Bytes written to the journal, headers included.
    pub journal_bytes: u64,
    /// Bytes written to images.
    pub images_bytes: u64,
    /// Bytes written to the vault as deltas.
    pub vault_bytes: u64,
    /// Points published.
    pub points: u64,
}

impl GroupTotals {
    /// Bytes written to journal, images and vault for each byte that guests wrote; none if they wrote nothing.
    pub fn written_per_byte(&self) -> Option<f64> {
        per_byte(self.written_bytes, [self.journal_bytes, self.images_bytes, self.vault_bytes])
    }
}

/// So many bytes were written in all for each that guests wrote.
#[allow(clippy::cast_precision_loss)]
pub fn per_byte(guests: u64, written: [u64; 3]) -> Option<f64> {
    let all = written.into_iter().fold(0, u64::saturating_add);
    // To the thousandth: more digits say nothing.
    (guests > 0).then(|| (all as f64 / guests as f64 * 1e3).round() / 1e3)
}
