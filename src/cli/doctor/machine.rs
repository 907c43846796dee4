//! The machine apart from its disks: io_uring, limits, memory, the clock.

use std::process::Command;
use std::time::SystemTime;

use rustix::process::{Resource, getrlimit};
use rustix::system::uname;

use super::Finding;
use crate::byte_size::ByteSize;
use crate::config::{Configuration, StorageChoice};
use crate::control::server;
use crate::counted::counted;
use crate::data_directory;
use crate::descriptors::{Kept, SEGMENTS_AT_REST, Sharers};
use crate::env::{Environment, OsEnvironment};
use crate::storage::{BackendOptions, Preference, open_best};
use crate::units::{WallNanos, to_usize};

/// From which on kernels charge rings to the memory of their control group, not to the limit on locked memory.
const RINGS_NOT_LOCKED: (u32, u32) = (5, 12);
/// What the rings of one data thread lock where that counts.
const LOCKED_BY_DATA_THREAD: u64 = 1 << 20;

pub(super) fn look(configuration: &Configuration) -> Vec<Finding> {
    let kept = Kept::look(&data_directory::groups(&configuration.site.data_dir));
    vec![
        io_uring(configuration.storage.backend),
        locked_memory(configuration),
        open_files(configuration, kept),
        memory(configuration, kept),
        clock_is_kept(),
        clock_goes_on(configuration),
    ]
}

fn io_uring(choice: StorageChoice) -> Finding {
    const WHAT: &str = "io_uring";
    let release = uname().release().to_string_lossy().into_owned();
    let options = BackendOptions { preference: Preference::Uring, ..BackendOptions::default() };
    let mend = "a kernel of 5.15 or later, kernel.io_uring_disabled = 0 (sysctl), and in a container a seccomp profile that lets \
                io_uring_setup, io_uring_enter and io_uring_register through";
    match (open_best(&options), choice) {
        (Ok(_), StorageChoice::Blocking) => {
            Finding::degraded(WHAT, "it works here, and is not used", "[storage] backend = \"auto\"")
        }
        (Ok(_), _) => Finding::ok(WHAT, format!("it works (Linux {release})")),
        (Err(error), StorageChoice::Uring) => Finding::refused(WHAT, error.to_string(), mend),
        (Err(error), _) => {
            Finding::degraded(WHAT, format!("{error}: blocking threads do its work, slower"), mend)
        }
    }
}

/// The version that a kernel's release begins with.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn locked_memory(configuration: &Configuration) -> Finding {
    const WHAT: &str = "locked memory";
    let release = uname().release().to_string_lossy().into_owned();
    let limit = getrlimit(Resource::Memlock).current;
    let shown = limit.map_or("no limit".to_owned(), |limit| ByteSize(limit).approximate().to_string());
    let needed = LOCKED_BY_DATA_THREAD * configuration.site.data_threads.get() as u64;
    let counts = version(&release).is_none_or(|version| version < RINGS_NOT_LOCKED);
    if !counts {
        return Finding::ok(WHAT, format!("{shown}; this kernel does not count rings to it"));
    }
    match limit.is_some_and(|limit| limit < needed) {
        true => {
            let mend = format!("raise it to {} or more (ulimit -Hl, LimitMEMLOCK=)", ByteSize(needed));
            Finding::degraded(WHAT, format!("{shown}, and this kernel counts rings to it"), mend)
        }
        false => Finding::ok(WHAT, shown),
    }
}

fn open_files(configuration: &Configuration, kept: Kept) -> Finding {
    const WHAT: &str = "open files";
    let sharers = Sharers {
        data_threads: configuration.site.data_threads.get(),
        connections_max: configuration.nbd.connections_max,
        api_connections_max: configuration.api.connections_max,
        api_own: server::DESCRIPTORS_BEYOND
            + server::descriptors_of_metrics(configuration.metrics.listen.len()),
        kept,
    };
    let hard = getrlimit(Resource::Nofile).maximum.and_then(|limit| usize::try_from(limit).ok());
    let limit = hard.unwrap_or(usize::MAX);
    let shown = hard.map_or("no limit".to_owned(), |limit| format!("a hard limit of {limit}"));
    let Kept { groups, disks, .. } = kept;
    let there = format!("{} with {}", counted(groups, "group"), counted(disks, "disk"));
    let raise =
        |to: usize| format!("raise the hard limit to {to} or more (ulimit -Hn {to}, LimitNOFILE={to})");
    let Some(shares) = sharers.share(limit) else {
        let least = sharers.least();
        return Finding::refused(WHAT, format!("{shown}, and {there} need {least}"), raise(least));
    };
    let segments_max = configuration.journal.size.0 / configuration.journal.segment_size.0;
    let segments_max = to_usize(segments_max).max(SEGMENTS_AT_REST);
    let most = sharers.most(&shares, segments_max);
    if most > limit || shares.connections_max < configuration.nbd.connections_max {
        let found = format!(
            "{shown}: with {there}, {} may connect, and journals that fill up together take {most}",
            counted(shares.connections_max.get(), "block client")
        );
        return Finding::degraded(WHAT, found, raise(most.max(2 * configuration.nbd.connections_max.get())));
    }
    Finding::ok(WHAT, format!("{shown}, and {there} need {most} at most, with all clients"))
}

fn memory(configuration: &Configuration, kept: Kept) -> Finding {
    const WHAT: &str = "memory";
    let (memory, groups) = (&configuration.memory, kept.groups.max(1) as u64);
    let frames = (memory.frames.0 * groups).min(memory.frames_total.0);
    let needed = memory.maps.0 * groups + frames + configuration.nbd.buffers_total.0;
    let needs = format!(
        "{} {} at most ([memory] maps, frames and frames_total, and [nbd] buffers_total)",
        if kept.groups > 1 { format!("{} groups take", kept.groups) } else { "a group takes".to_owned() },
        ByteSize(needed).approximate()
    );
    match std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text)) {
        None => Finding::ok(WHAT, format!("{needs}; what is available is not told here")),
        Some(free) if free < needed => {
            let found = format!("{} available, and {needs}", ByteSize(free).approximate());
            Finding::degraded(WHAT, found, "more memory, or lower values of these keys")
        }
        Some(free) => Finding::ok(WHAT, format!("{} available, and {needs}", ByteSize(free).approximate())),
    }
}

/// Bytes that `/proc/meminfo` says are available.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Whether something keeps the clock right. The kernel knows, and systemd asks it, whoever it is that does.
fn clock_is_kept() -> Finding {
    const WHAT: &str = "clock";
    const MEND: &str = "run chrony or systemd-timesyncd: points bear the wall clock's time, and their ages decide what retention keeps";
    let asked = Command::new("timedatectl").args(["show", "--property=NTPSynchronized", "--value"]).output();
    let told = asked.ok().filter(|output| output.status.success());
    match told.as_ref().map(|output| output.stdout.trim_ascii()) {
        Some(b"yes") => Finding::ok(WHAT, "it is kept"),
        Some(b"no") => Finding::degraded(WHAT, "nothing keeps it", MEND),
        _ => Finding::degraded(WHAT, "whether anything keeps it is not told here (timedatectl)", MEND),
    }
}

/// Whether it is behind what was written here.
fn clock_goes_on(configuration: &Configuration) -> Finding {
    const WHAT: &str = "clock and data";
    let now = OsEnvironment::new().wall();
    let catalogue = data_directory::catalogue(&configuration.site.data_dir);
    let written = std::fs::metadata(catalogue).and_then(|metadata| metadata.modified()).ok();
    let written = written.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    let written = written.and_then(|time| i64::try_from(time.as_nanos()).ok()).map(WallNanos);
    match written {
        None => Finding::ok(WHAT, format!("{now}; nothing was written here yet")),
        Some(written) if written > now => {
            let mend = "set the clock: retention rests until it is later than what was written last";
            Finding::degraded(WHAT, format!("{now} is before the last writing, {written}"), mend)
        }
        Some(written) => Finding::ok(WHAT, format!("{now}, after the last writing, {written}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_what_a_release_begins_with() {
        assert_eq!(version("6.1.0-13-cloud-amd64"), Some((6, 1)));
        assert_eq!(version("5.4"), Some((5, 4)));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn available_memory_is_read() {
        assert_eq!(available("MemTotal:  100 kB\nMemAvailable:   12 kB\n"), Some(12 << 10));
        assert_eq!(available("MemTotal:  100 kB\n"), None);
    }
}
