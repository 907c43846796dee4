//! The process: data threads, start, drain, stop.

use crate::config::Configuration;
use crate::data_directory::DataDirectory;
use crate::error::{Error, ErrorKind, Result};

/// Serves until SIGTERM or SIGINT; the configuration was checked and the data directory is ours.
pub fn serve(configuration: Configuration, data_directory: DataDirectory) -> Result<()> {
    tracing::debug!(site = %configuration.site.name, data_dir = %data_directory.path().display(), "to be served");
    Err(Error::new(ErrorKind::Unsupported, "this build has no data path yet"))
}
