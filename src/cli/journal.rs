//! `journal inspect|verify`: the offline tools, read-only, also on a damaged journal.

use std::path::Path;

use super::failure::Failure;
use super::output::Output;
use crate::error::{Error, ErrorKind};

/// Lists segments, incarnations and frames of the journal in a directory.
pub fn inspect(path: &Path, _output: Output) -> Result<(), Failure> {
    Err(Error::new(ErrorKind::Unsupported, "this build has no journal yet").at_path(path).into())
}

/// Checks every frame of the journal in a directory, and says what opening it would keep.
pub fn verify(path: &Path, _output: Output) -> Result<(), Failure> {
    Err(Error::new(ErrorKind::Unsupported, "this build has no journal yet").at_path(path).into())
}
