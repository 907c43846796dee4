//! Tokens of the API over TCP, in the words of the API: docs/api.md.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::name::Name;
use crate::units::WallNanos;

/// What whoever asks may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// To look: `GET`, and nothing else.
    Read,
    /// Everything.
    Admin,
}

impl Role {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Role::Read => "read",
            Role::Admin => "admin",
        }
    }
}

/// A token, without its text, which nobody has but whom it was given to.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Token {
    /// What it is called, also in the audit trail.
    pub name: Name,
    /// What it is good for.
    pub role: Role,
    /// When it was made.
    pub created: WallNanos,
    /// From when on it is good for nothing, if ever.
    pub expires: Option<WallNanos>,
    /// Whether it is good for nothing any more.
    pub expired: bool,
}

/// A token that was just made.
#[derive(Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct TokenCreated {
    /// The token.
    #[serde(flatten)]
    pub token: Token,
    /// What is sent as `Authorization: Bearer TEXT`. It is told this once, and kept nowhere.
    pub text: String,
}

/// `POST /v1/tokens`
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// The new token's name.
    pub name: Name,
    /// What it is to be good for.
    pub role: Role,
    /// For how long it is good; without it, until it is revoked.
    #[serde(default)]
    pub expires_after_ms: Option<u64>,
}

impl fmt::Debug for TokenCreated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenCreated({:?}, …)", self.token)
    }
}
