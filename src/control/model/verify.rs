//! What verifications found, in the words of the API: docs/verify.md.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::name::Name;
use crate::units::{PointId, WallNanos};

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Groups looked at.
    pub groups: u64,
    /// Manifest steps read.
    pub steps: u64,
    /// Blobs read.
    pub blobs: u64,
    /// Bytes of blobs read and summed.
    pub bytes: u64,
    /// Bytes of bases read and compared with their sums.
    #[serde(default)]
    pub base_bytes: u64,
    /// What is wrong, one line each; empty when all is well.
    pub faults: Vec<String>,
    /// What is damaged and does no harm, one line each: parts of caches, which are made anew.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Every recovery point that one of the faults harms or several do: by group, the oldest first.
    #[serde(default)]
    pub harmed: Vec<HarmedPoint>,
}

/// What a repair of a group's vault did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct RepairReport {
    /// The group.
    pub group: Name,
    /// What is damaged, one line each; empty when all is well.
    pub faults: Vec<String>,
    /// The recovery points that need what is lost, oldest first: they went, or would go.
    pub points: Vec<HarmedPoint>,
    /// Bytes of the disks that were written anew, or would be, since the newest recovery point shows what is lost there.
    pub renewed_bytes: u64,
    /// How many recovery points stay.
    pub staying: u64,
    /// Whether it was done, not only looked at.
    pub done: bool,
    /// The recovery point that was made, which has what was written anew.
    pub point: Option<PointId>,
    /// What is damaged still, one line each.
    pub left: Vec<String>,
}

/// A recovery point that shows something that is damaged.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct HarmedPoint {
    /// Its group.
    pub group: Name,
    /// Its id.
    pub id: PointId,
    /// The group's time at its marker.
    pub time: WallNanos,
    /// What a person called it.
    pub label: Option<String>,
}

/// What a comparison of a group with the newest point of its vault found.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct GroupVerified {
    /// The group.
    pub group: Name,
    /// The last point that was compared with; none where there is none yet.
    pub point: Option<PointId>,
    /// Bytes of disks that were compared, holes included.
    pub compared_bytes: u64,
    /// Of these, how many differ because they were written since the point.
    pub newer_bytes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// What is wrong; empty when all is well.
    pub faults: Vec<GroupFault>,
    /// Faults beyond those that are listed.
    pub more_faults: u64,
    /// What was not compared with a point, though nothing is wrong with it, one line each.
    pub notes: Vec<String>,
}

/// A range of a disk that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct GroupFault {
    /// The disk's name.
    pub disk: String,
    /// The first of its sectors,
    pub first_sector: u64,
    /// and how many.
    pub sectors: u64,
    /// What is wrong, in which files, at which bytes.
    pub message: String,
}
