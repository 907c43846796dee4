//! Keys, in the words of the API: what seals the groups, and what is asked of it.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::name::Name;

/// What there is of keys, and what the groups need.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Keys {
    /// The site key's id, if it is here.
    pub site_key: Option<String>,
    /// Where it is kept.
    pub file: PathBuf,
    /// What each group is sealed under.
    pub groups: Vec<GroupSeal>,
}

/// What a group is sealed under.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
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
#[derive(Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyText {
    /// Whoever reads this can open what the site sealed.
    pub key: String,
}

/// A site key to be taken.
#[derive(Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyImport {
    /// As it was exported.
    pub key: String,
    /// Whether it may take another's place.
    #[serde(default)]
    pub replace: bool,
}

/// How keys are to be rotated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
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
