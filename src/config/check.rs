//! Whether a configuration can be served on this machine now: directories, sockets, the data directory's lock.
//!
//! Only looks. Binding and locking come later and may still fail, when somebody was faster.

use std::path::Path;

use super::Configuration;
use super::error::{Fault, quoted};
use crate::data_directory::{self, Obstacle};
use crate::listen::{self, ListenAddress};

pub(super) fn check(configuration: &Configuration) -> Result<(), Fault> {
    let data_dir = &configuration.site.data_dir;
    if let Some(obstacle) = data_directory::obstacle(data_dir) {
        return Err(directory_fault("site.data_dir", &data_dir.to_string_lossy(), data_dir, obstacle));
    }
    for address in &configuration.nbd.listen {
        check_address("nbd.listen", &address.to_string(), address)?;
    }
    let api = &configuration.api.socket;
    check_address("api.socket", &api.to_string_lossy(), &ListenAddress::Unix(api.clone()))
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
        Obstacle::InUse => (
            "data directory in use by another gateway".to_owned(),
            "stop that one, or name another directory".to_owned(),
        ),
    };
    Fault::of(key, quoted(value), problem, mend)
}
