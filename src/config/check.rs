//! Whether a configuration can be served on this machine now: directories, sockets, the data directory's lock,
//! the site key's file, io_uring if it must be.
//!
//! Only looks, and leaves nothing. Binding and locking come later and may still fail, when somebody was faster.

use std::path::Path;

use super::error::{Fault, quoted};
use super::{Configuration, StorageChoice};
use crate::data_directory::{self, Obstacle};
use crate::key_file;
use crate::listen::{self, ListenAddress};
use crate::storage::{BackendOptions, Preference, open_best};

pub(super) fn check(configuration: &Configuration) -> Result<(), Fault> {
    let data_dir = &configuration.site.data_dir;
    if let Some((place, obstacle)) = data_directory::obstacle(data_dir) {
        return Err(data_directory_fault(data_dir, &place, obstacle));
    }
    for address in &configuration.nbd.listen {
        check_address("nbd.listen", &address.to_string(), address)?;
    }
    let api = &configuration.api.socket;
    check_address("api.socket", &api.to_string_lossy(), &ListenAddress::Unix(api.clone()))?;
    check_site_key(&configuration.keys.site_key, data_dir)?;
    check_backend(configuration)
}

/// Where io_uring must be, every data thread opens a ring: whether it works is found out by using it.
fn check_backend(configuration: &Configuration) -> Result<(), Fault> {
    if configuration.storage.backend != StorageChoice::Uring {
        return Ok(());
    }
    let options = BackendOptions { preference: Preference::Uring, ..BackendOptions::default() };
    let threads = 0..configuration.site.data_threads.get();
    let opened = threads.map(|_| open_best(&options)).collect::<Result<Vec<_>, _>>();
    opened.map(drop).map_err(|error| {
        let problem = format!("io_uring cannot be used here: {error}");
        let mend = "allow it (sysctl kernel.io_uring_disabled, the container's seccomp profile), or write \"auto\", which \
                    takes blocking threads instead";
        Fault::of("storage.backend", quoted("io_uring"), problem, mend)
    })
}

/// The fault of what is in the way in the data directory, or of one of those in it.
fn data_directory_fault(data_dir: &Path, place: &Path, obstacle: Obstacle) -> Fault {
    const KEY: &str = "site.data_dir";
    let value = data_dir.to_string_lossy();
    let fault = directory_fault(KEY, &value, place, obstacle);
    if place == data_dir || obstacle != Obstacle::NotADirectory {
        return fault;
    }
    let mend = format!("move {} away, or name another data directory", place.display());
    Fault::of(KEY, quoted(&value), fault.problem, mend)
}

/// The site key's file may be missing: then one is made, or sealed groups wait for it. Its directory may not: what is
/// missing may be a volume that is not mounted, where a key must not be made instead.
fn check_site_key(path: &Path, data_dir: &Path) -> Result<(), Fault> {
    const KEY: &str = "keys.site_key";
    let value = path.to_string_lossy();
    let directory = path.parent().unwrap_or(Path::new("/"));
    let is_own = directory == data_directory::keys(data_dir);
    let obstacle = data_directory::writable_directory(directory);
    let obstacle = obstacle.filter(|obstacle| !(is_own && *obstacle == Obstacle::Missing));
    if let Some(obstacle @ (Obstacle::Missing | Obstacle::NotADirectory)) = obstacle {
        return Err(directory_fault(KEY, &value, directory, obstacle));
    }
    // One that waits to take its place is read as well.
    for file in [path.to_owned(), key_file::next(path)] {
        let found = key_file::look(&file).map_err(|unusable| {
            let which = if file == path { String::new() } else { format!("{}: ", file.display()) };
            Fault::of(KEY, quoted(&value), which + &unusable.problem, unusable.mend)
        })?;
        if let Some(obstacle) = obstacle.filter(|_| found.is_none() && file == path) {
            return Err(directory_fault(KEY, &value, directory, obstacle));
        }
    }
    Ok(())
}

fn check_address(key: &str, value: &str, address: &ListenAddress) -> Result<(), Fault> {
    if let ListenAddress::Unix(path) = address {
        let directory = path.parent().unwrap_or(Path::new("/"));
        if let Some(obstacle) = data_directory::writable_directory(directory) {
            return Err(directory_fault(key, value, directory, obstacle));
        }
    }
    match listen::in_use(address) {
        Some(fault) => Err(Fault::of_address(key, value, fault)),
        None => Ok(()),
    }
}

fn directory_fault(key: &str, value: &str, directory: &Path, obstacle: Obstacle) -> Fault {
    let shown = directory.display();
    let (problem, mend) = match obstacle {
        Obstacle::Missing => (
            format!("directory {shown} does not exist"),
            format!("create it (`mkdir -p {shown}`) or name another"),
        ),
        Obstacle::NotADirectory => (format!("{shown} is not a directory"), "name a directory".to_owned()),
        Obstacle::Unwritable(errno) => (
            format!("directory {shown} is not writable ({errno})"),
            "give this user write permission, or name another".to_owned(),
        ),
        Obstacle::TakesNoFiles(errno) => (
            format!("no file can be created in {shown} ({errno})"),
            "name a directory of a file system that keeps files".to_owned(),
        ),
        Obstacle::InUse => (
            "data directory in use by another gateway".to_owned(),
            "stop that one, or name another directory".to_owned(),
        ),
    };
    Fault::of(key, quoted(value), problem, mend)
}
