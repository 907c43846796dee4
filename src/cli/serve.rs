//! `serve`: configuration, lock, logs, then the site.

use std::path::Path;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::failure::Failure;
use super::logging;
use crate::config::{Configuration, Nbd};
use crate::descriptors;
use crate::error::{Error, ErrorKind, Result as Done};

/// Runs a gateway until it is told to stop, or until the process ends that started it and has this id, if one is given.
pub fn run(config: &Path, dies_with: Option<i32>) -> Result<(), Failure> {
    dies_with.map_or(Ok(()), tie_to)?;
    let mut configuration = Configuration::load(config)?;
    configuration.check()?;
    logging::start(configuration.log)?;
    leave_descriptors(&mut configuration.nbd)?;
    let data_directory = configuration.acquire()?;
    crate::site::serve(configuration, data_directory).map_err(Failure::Failed)
}

/// Lets clients take half of the file descriptors at most, whatever is configured.
fn leave_descriptors(nbd: &mut Nbd) -> Done<()> {
    let limit = descriptors::raise_limit()?;
    let (configured, connections_max) =
        (nbd.connections_max, descriptors::connections_max(nbd.connections_max, limit));
    if connections_max < configured {
        tracing::warn!(
            configured,
            connections_max,
            open_files = limit,
            "[nbd] connections_max is lowered: groups and API need files, too; raise the limit on open files (ulimit -n, LimitNOFILE=)"
        );
        nbd.connections_max = connections_max;
    }
    Ok(())
}

/// Has the kernel send us SIGTERM when our parent ends. One that ended before that was asked for sends none, so it is looked
/// afterwards whether it still is our parent.
fn tie_to(parent: i32) -> Done<()> {
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|errno| Error::io("asking to be told of the parent's end", errno.into()))?;
    if getppid().map(Pid::as_raw_nonzero).map(i32::from) == Some(parent) {
        return Ok(());
    }
    let text =
        format!("process {parent}, which this gateway was to end with, is not its parent, or has ended");
    Err(Error::new(ErrorKind::Shutdown, text))
}
