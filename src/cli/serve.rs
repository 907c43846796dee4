//! `serve`: configuration, lock, logs, then the site.

use std::path::Path;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::failure::Failure;
use super::logging;
use crate::config::{Api, Configuration, ConfigurationError, Journal};
use crate::control::server;
use crate::counted::counted;
use crate::data_directory;
use crate::descriptors::{self, Kept, Sharers, Shares};
use crate::error::{Error, ErrorKind, Result as Done};
use crate::site::ControlPlane;
use crate::units::to_usize;

/// Runs a gateway until it is told to stop, or until the process ends that started it and has this id, if one is given.
pub fn run(config: &Path, dies_with: Option<i32>) -> Result<(), Failure> {
    // First of all: whoever stops a gateway that only begins is answered by an orderly end, too.
    let control_plane = ControlPlane::start()?;
    dies_with.map_or(Ok(()), tie_to)?;
    let mut configuration = Configuration::load(config)?;
    configuration.check()?;
    logging::start(configuration.log)?;
    leave_descriptors(&mut configuration)?;
    let data_directory = configuration.acquire()?;
    control_plane.serve(configuration, data_directory).map_err(Failure::Failed)
}

/// Divides the file descriptors that there are between groups and clients. Where they do not do for what is there, nothing is served:
/// half of the groups would be worse.
fn leave_descriptors(configuration: &mut Configuration) -> Result<(), Failure> {
    let limit = descriptors::raise_limit()?;
    let sharers = Sharers {
        data_threads: configuration.site.data_threads.get(),
        connections_max: configuration.nbd.connections_max,
        api_connections_max: configuration.api.connections_max,
        api_own: server::descriptors_of_api(api_listeners(configuration))
            + server::descriptors_of_metrics(configuration.metrics.listen.len())
            + crate::site::descriptors_of_hooks(configuration.hooks.len()),
        kept: Kept::look(&data_directory::groups(&configuration.site.data_dir)),
    };
    let shares = sharers.share(limit).ok_or_else(|| too_few(configuration, limit, &sharers))?;
    warn_of(&sharers, &shares, limit, configuration.journal);
    configuration.nbd.connections_max = shares.connections_max;
    configuration.api.connections_max = shares.api_connections_max;
    Ok(())
}

/// Sockets that the API listens on.
fn api_listeners(configuration: &Configuration) -> usize {
    let Api { read_only_socket, listen, .. } = &configuration.api;
    1 + usize::from(read_only_socket.is_some()) + listen.len()
}

fn too_few(configuration: &Configuration, limit: usize, sharers: &Sharers) -> Failure {
    let Kept { groups, disks, files, .. } = sharers.kept;
    Failure::Configuration(ConfigurationError {
        file: configuration.file.clone(),
        place: format!("limit on open files = {limit}"),
        problem: format!(
            "{} kept open for {} with {}, and {} taken in all with a client for each disk",
            counted(files, "file"),
            counted(groups, "group"),
            counted(disks, "disk"),
            sharers.least()
        ),
        mend: format!(
            "raise the hard limit to {0} or more (ulimit -Hn {0}, LimitNOFILE={0}); `afterimage doctor` looks at the rest",
            sharers.least()
        ),
    })
}

/// Says what the limit does not hold.
fn warn_of(sharers: &Sharers, shares: &Shares, limit: usize, journal: Journal) {
    const MEND: &str =
        "raise the hard limit on open files (ulimit -Hn, LimitNOFILE=; see `afterimage doctor`)";
    if shares.connections_max < sharers.connections_max {
        let (configured, connections_max) = (sharers.connections_max, shares.connections_max);
        tracing::warn!(
            configured,
            connections_max,
            open_files = limit,
            "[nbd] connections_max is lowered: {MEND}"
        );
    }
    if shares.api_connections_max < sharers.api_connections_max {
        let (configured, connections_max) = (sharers.api_connections_max, shares.api_connections_max);
        tracing::debug!(
            configured,
            connections_max,
            open_files = limit,
            "[api] connections_max is lowered: {MEND}"
        );
    }
    let segments_max = to_usize(journal.size.0 / journal.segment_size.0);
    let most = sharers.most(shares, segments_max);
    if most > limit {
        tracing::warn!(
            most,
            open_files = limit,
            "journals that fill up together will find no more files to open, and writes wait then: {MEND}, or write a larger \
             [journal] segment_size"
        );
    }
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
