//! The audit trail, in the words of the API: who asked for what, and how it went.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ApiError;
use crate::control::name::Name;
use crate::units::WallNanos;

/// Who is at the other end of a connection: of a unix socket as the kernel says, over TCP whose token it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Asker {
    /// The user id, on a unix socket.
    #[serde(default)]
    pub uid: Option<u32>,
    /// The user's name, where /etc/passwd has one.
    pub user: Option<String>,
    /// The process id, where the kernel tells.
    pub pid: Option<i32>,
    /// The token's name, over TCP.
    #[serde(default)]
    pub token: Option<Name>,
    /// The address that it came from, over TCP.
    #[serde(default)]
    pub address: Option<String>,
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Asker { token: Some(token), .. } => write!(f, "token {token}"),
            Asker { user: Some(user), .. } => f.write_str(user),
            Asker { uid: Some(uid), .. } => write!(f, "uid {uid}"),
            _ => f.write_str("unknown"),
        }
    }
}

/// A request that was to change something.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Its place in the trail: ids grow, also over restarts.
    pub id: u64,
    /// When it came.
    pub time: WallNanos,
    /// From whom.
    pub asked_by: Option<Asker>,
    /// What was asked for, in the words of the command line; method and route where it has none.
    pub verb: String,
    /// Of what: a group, GROUP/DISK, a job.
    pub subject: Option<String>,
    /// With what: the request's body; never a key.
    pub parameters: Value,
    /// The job that does it, where it is one.
    pub job: Option<String>,
    /// How it went.
    pub outcome: AuditOutcome,
    /// How long it took, once it has ended.
    pub duration_ms: Option<u64>,
}

/// How a request went.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditOutcome {
    /// It is not answered yet.
    AtWork,
    /// It was not answered when the gateway ended: whether it was done, what it was about says.
    CutOff,
    /// It was done; or, where it is a job, begun.
    Done,
    /// It failed.
    Failed(ApiError),
}

/// `GET /v1/audit`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// The newest so many.
    pub limit: Option<u32>,
}

impl AuditQuery {
    /// How many are given unless said.
    pub const LIMIT_DEFAULT: u32 = 100;
}
