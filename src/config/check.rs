//! Whether a configuration can be served on this machine now: directories, sockets, the data directory's lock,
//! the site key's file, io_uring if it must be.
//!
//! Only looks, and leaves nothing. Binding and locking come later and may still fail, when somebody was faster.

use std::path::Path;

use rustix::fs::statvfs;
use rustix::io::Errno;

use super::error::{Fault, quoted, quoted_path};
use super::tls;
use super::{Configuration, HookAction, StorageChoice};
use crate::byte_size::ByteSize;
use crate::data_directory::{self, Obstacle};
use crate::key_file;
use crate::listen::{self, ListenAddress};
use crate::storage::{BackendOptions, Preference, open_best};

pub(super) fn check(configuration: &Configuration) -> Result<(), Fault> {
    let data_dir = &configuration.site.data_dir;
    if let Some((place, obstacle)) = data_directory::obstacle(data_dir) {
        return Err(data_directory_fault(configuration, &place, obstacle));
    }
    let sockets = sockets(configuration);
    check_places(configuration, &sockets)?;
    for socket in &sockets {
        check_address(socket)?;
    }
    check_beside_each_other(&sockets)?;
    check_free_min(configuration)?;
    check_site_key(configuration)?;
    configuration.nbd.tls.as_ref().map_or(Ok(()), tls::check)?;
    check_hooks(configuration)?;
    check_backend(configuration)
}

/// That so much can be free at all: where it cannot, all of history would go, and in vain.
fn check_free_min(configuration: &Configuration) -> Result<(), Fault> {
    let data_dir = &configuration.site.data_dir;
    let Configuration { vault, images, .. } = configuration;
    let kept_free = [
        ("vault.free_min", vault.free_min, data_directory::vault(data_dir)),
        ("images.free_min", images.free_min, data_directory::groups(data_dir)),
    ];
    for (key, wanted, directory) in kept_free {
        let Some(wanted) = wanted else { continue };
        let directory = if directory.exists() { &directory } else { data_dir };
        // One that does not tell is none to refuse anybody for.
        let Ok(stat) = statvfs(directory) else { continue };
        let total = ByteSize(stat.f_blocks.saturating_mul(stat.f_frsize));
        if wanted >= total {
            let problem =
                format!("the file system of {} has {} in all", directory.display(), total.approximate());
            let mend = "write how much of it is to stay free, for example \"1G\"";
            return Err(Fault::of(key, quoted(&wanted.to_string()), problem, mend));
        }
    }
    Ok(())
}

/// An address with the key and the value that it comes from.
struct Socket {
    key: &'static str,
    shown: String,
    address: ListenAddress,
}

fn sockets(configuration: &Configuration) -> Vec<Socket> {
    let listen = configuration.nbd.listen.iter().zip(&configuration.written.listen);
    let nbd = listen.map(|(address, written)| ("nbd.listen", written, address.clone()));
    let api = ListenAddress::Unix(configuration.api.socket.clone());
    let read_only = configuration.api.read_only_socket.iter().map(|path| {
        let written = &configuration.written.api_read_only_socket;
        ("api.read_only_socket", written, ListenAddress::Unix(path.clone()))
    });
    let tcp = configuration.api.listen.iter().zip(&configuration.written.api_listen);
    let tcp = tcp.map(|(address, written)| ("api.listen", written, ListenAddress::Tcp(*address)));
    let written = &configuration.written.metrics_listen;
    let metrics = configuration.metrics.listen.iter();
    let metrics = metrics.map(|address| ("metrics.listen", written, ListenAddress::Tcp(*address)));
    let api =
        [("api.socket", &configuration.written.api_socket, api)].into_iter().chain(read_only).chain(tcp);
    let all = nbd.chain(api).chain(metrics);
    let sockets = all.map(|(key, written, address)| {
        let shown = match &address {
            ListenAddress::Unix(path) => quoted_path(written, path),
            ListenAddress::Tcp(_) => quoted(written),
        };
        Socket { key, shown, address }
    });
    sockets.collect()
}

/// That no two sockets are the same, by whatever paths, and none is a file of the gateway's own: what is made first would
/// be in the way of the other, when groups are open already.
fn check_places(configuration: &Configuration, sockets: &[Socket]) -> Result<(), Fault> {
    const SITE_KEY: &str = "keys.site_key";
    let data_dir = &configuration.site.data_dir;
    let data_dir = data_dir.canonicalize().unwrap_or_else(|_| data_dir.clone());
    let site_key = &configuration.keys.site_key;
    let key_files =
        [site_key.clone(), key_file::next(site_key)].map(|path| data_directory::normalised(&path));
    for path in &key_files {
        let is_among_keys = path.parent() == Some(&data_directory::keys(&data_dir));
        if let Some(name) = data_directory::own_name(&data_dir, path).filter(|_| !is_among_keys) {
            let value = quoted_path(&configuration.written.site_key, site_key);
            let mend = format!("choose another name, for example {}", quoted_example(&data_dir));
            return Err(Fault::of(SITE_KEY, value, own_file(&name), mend));
        }
    }
    let mut taken = Vec::from(key_files.map(|path| (SITE_KEY, ListenAddress::Unix(path))));
    for Socket { key, shown, address } in sockets {
        let mut address = address.clone();
        if let ListenAddress::Unix(path) = &mut address {
            *path = data_directory::normalised(path);
            if let Some(name) = data_directory::own_name(&data_dir, path) {
                return Err(Fault::of(key, shown, own_file(&name), "choose another name"));
            }
        }
        if let Some((other, _)) = taken.iter().find(|(_, other)| *other == address) {
            return Err(match *other {
                other if other == *key => Fault::of(key, shown, "named twice", "remove one of them"),
                SITE_KEY => {
                    Fault::of(key, shown, "keys.site_key has the same path", "give each its own path")
                }
                other => {
                    let (what, mend) = match address {
                        ListenAddress::Unix(_) => ("socket", "give each its own path"),
                        ListenAddress::Tcp(_) => ("address", "give each its own port"),
                    };
                    Fault::of(key, shown, format!("{other} has the same {what}"), mend)
                }
            });
        }
        taken.push((key, address));
    }
    Ok(())
}

fn own_file(name: &str) -> String {
    format!("the gateway itself uses {name} in its data directory")
}

fn quoted_example(data_dir: &Path) -> String {
    quoted(&data_directory::keys(data_dir).join("site.key").to_string_lossy())
}

/// That each can be bound while all others are: each alone can, but `0.0.0.0` takes a port of all of this host's addresses.
fn check_beside_each_other(sockets: &[Socket]) -> Result<(), Fault> {
    for (index, Socket { key, shown, address }) in sockets.iter().enumerate() {
        let in_the_way = |other: &&Socket| listen::exclude_each_other(&other.address, address);
        if let Some(other) = sockets[..index].iter().find(in_the_way) {
            let problem = format!("{} = {} takes this port of that address, too", other.key, other.shown);
            return Err(Fault::of(key, shown, problem, "remove one of them, or give each its own port"));
        }
    }
    Ok(())
}

/// That programs which are to be told of events are there, and may be run by us, and that servers can be known.
fn check_hooks(configuration: &Configuration) -> Result<(), Fault> {
    for hook in &configuration.hooks {
        let program = match &hook.action {
            HookAction::Exec(program, _) => program,
            HookAction::Webhook(address) => {
                if address.tls {
                    tls::check_webhook(&format!("hooks.{}", hook.name), &address.url, address.ca.as_ref())?;
                }
                continue;
            }
        };
        let (problem, mend) = match program.metadata() {
            Err(error) => (format!("the program cannot be found ({error})"), "name one that is there"),
            Ok(found) if !found.is_file() => ("this is no file".to_owned(), "name a program"),
            Ok(_) => match rustix::fs::access(program, rustix::fs::Access::EXEC_OK) {
                Ok(()) => continue,
                Err(errno) => (format!("it cannot be run ({errno})"), "make it executable for this user"),
            },
        };
        let value = quoted(&program.to_string_lossy());
        return Err(Fault::of(&format!("hooks.{}.exec", hook.name), value, problem, mend));
    }
    Ok(())
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
                    takes blocking threads instead; `afterimage doctor` looks at the machine";
        Fault::of("storage.backend", quoted("io_uring"), problem, mend)
    })
}

/// The fault of what is in the way in the data directory, or of one of those in it.
fn data_directory_fault(configuration: &Configuration, place: &Path, obstacle: Obstacle) -> Fault {
    const KEY: &str = "site.data_dir";
    let data_dir = &configuration.site.data_dir;
    let value = quoted_path(&configuration.written.data_dir, data_dir);
    let fault = directory_fault(KEY, &value, place, obstacle);
    if place == data_dir || obstacle != Obstacle::NotADirectory {
        return fault;
    }
    let mend = format!("move {} away, or name another data directory", place.display());
    Fault::of(KEY, value, fault.problem, mend)
}

/// The site key's file may be missing: then one is made, or sealed groups wait for it. Its directory may not: what is
/// missing may be a volume that is not mounted, where a key must not be made instead.
fn check_site_key(configuration: &Configuration) -> Result<(), Fault> {
    const KEY: &str = "keys.site_key";
    let (path, data_dir) = (&configuration.keys.site_key, &configuration.site.data_dir);
    let value = quoted_path(&configuration.written.site_key, path);
    let directory = path.parent().unwrap_or(Path::new("/"));
    let is_own = directory == data_directory::keys(data_dir);
    let obstacle = data_directory::writable_directory(directory);
    let obstacle = obstacle.filter(|obstacle| !(is_own && *obstacle == Obstacle::Missing));
    if let Some(obstacle @ (Obstacle::Missing | Obstacle::NotADirectory)) = obstacle {
        return Err(directory_fault(KEY, &value, directory, obstacle));
    }
    let mut is_there = false;
    // One that waits to take its place is read as well.
    for file in [path.clone(), key_file::next(path)] {
        let found = key_file::look(&file).map_err(|unusable| {
            let which = if file == *path { String::new() } else { format!("{}: ", file.display()) };
            Fault::of(KEY, &value, which + &unusable.problem, unusable.mend)
        })?;
        is_there |= found.is_some();
        if let Some(obstacle) = obstacle.filter(|_| found.is_none() && file == *path) {
            return Err(directory_fault(KEY, &value, directory, obstacle));
        }
    }
    if is_there || data_directory::holds_groups(data_dir) {
        return Ok(());
    }
    // One is made.
    match data_directory::lacks_room(if is_own { data_dir } else { directory }) {
        Some(full) if is_own => Err(data_directory_fault(configuration, data_dir, full)),
        Some(full) => Err(directory_fault(KEY, &value, directory, full)),
        None => Ok(()),
    }
}

fn check_address(socket: &Socket) -> Result<(), Fault> {
    let Socket { key, shown: value, address } = socket;
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
        Obstacle::Unwritable(Errno::ROFS) => (
            format!("directory {shown} is on a file system that is read-only here"),
            format!(
                "mount it writable or name another; in the sandbox of afterimage.service, `systemctl edit afterimage`: ReadWritePaths={shown}"
            ),
        ),
        Obstacle::Unwritable(errno) => (
            format!("directory {shown} is not writable ({errno})"),
            "give this user write permission, or name another".to_owned(),
        ),
        Obstacle::TakesNoFiles(errno) => (
            format!("no file can be created in {shown} ({errno})"),
            "name a directory of a file system that keeps files".to_owned(),
        ),
        Obstacle::Full(errno) => (
            format!("no space is left in {shown} for a first start ({errno})"),
            "free some, or name a directory of a file system that has room".to_owned(),
        ),
        Obstacle::InUse => (
            "data directory in use by another gateway".to_owned(),
            "stop that one, or name another directory".to_owned(),
        ),
    };
    Fault::of(key, value, problem, mend)
}
