//! `serve`: configuration, lock, logs, then the site.

use std::path::Path;

use super::failure::Failure;
use super::logging;
use crate::config::Configuration;

/// Runs a gateway until it is told to stop.
pub fn run(config: &Path) -> Result<(), Failure> {
    let configuration = Configuration::load(config)?;
    configuration.check()?;
    logging::start(configuration.log)?;
    let data_directory = configuration.acquire()?;
    crate::site::serve(configuration, data_directory).map_err(Failure::Failed)
}
