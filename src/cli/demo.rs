//! `demo`: protects two disks in a temporary directory, crashes the gateway, recovers, verifies every block.

use super::failure::Failure;
use crate::error::{Error, ErrorKind};

/// Runs the demonstration; with `keep` the gateway stays.
pub fn run(_keep: bool) -> Result<(), Failure> {
    Err(Error::new(ErrorKind::Unsupported, "this build has no data path yet").into())
}
