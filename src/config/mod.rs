//! The configuration of `afterimage serve --config FILE`, parsed: paths are absolute, sizes are numbers, addresses
//! are addresses. `docs/afterimage.example.toml` documents every key.
//!
//! [`Configuration::load`] reads the text; [`Configuration::check`] looks at the machine (directories, sockets, the
//! data directory's lock, the site key's file) and touches nothing. Either fails with one line that names key, value and mend.

mod api;
mod check;
mod error;
mod file;
mod hooks;
mod metrics;
mod number;
mod tls;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::ConfigurationError;
pub(crate) use error::one_line;
pub use hooks::{Hook, HookAction, WebhookAddress};
pub use tls::{NamedFile, NbdTls};

use crate::byte_size::ByteSize;
use crate::control::name::Name;
use crate::data_directory::DataDirectory;
use crate::listen::{ListenAddress, SocketMode};
use crate::throttle::ByteRate;

/// Everything that a gateway process is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// The file that it came from, for messages.
    pub file: PathBuf,
    /// What that file says where paths and addresses below are made of it, for messages.
    pub written: Written,
    /// `[site]`
    pub site: Site,
    /// `[nbd]`
    pub nbd: Nbd,
    /// `[api]`
    pub api: Api,
    /// `[log]`
    pub log: Log,
    /// `[storage]`
    pub storage: Storage,
    /// `[journal]`
    pub journal: Journal,
    /// `[memory]`
    pub memory: Memory,
    /// `[vault]`
    pub vault: Vault,
    /// `[images]`
    pub images: Images,
    /// `[keys]`
    pub keys: Keys,
    /// `[verify]`
    pub verify: Verify,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[[hooks]]`
    pub hooks: Vec<Hook>,
}

/// Paths and addresses as the file has them, or as their defaults would be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// `site.data_dir`
    pub data_dir: String,
    /// `nbd.listen`: the text of each address in [`Nbd::listen`]; a host's addresses have the same.
    pub listen: Vec<String>,
    /// `api.socket`
    pub api_socket: String,
    /// `api.read_only_socket`; empty if it is not there.
    pub api_read_only_socket: String,
    /// `api.listen`: the text of each address in [`Api::listen`].
    pub api_listen: Vec<String>,
    /// `keys.site_key`
    pub site_key: String,
    /// `metrics.listen`; empty if it is not there.
    pub metrics_listen: String,
}

/// `[site]`: what this process is called and where it keeps its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The site's name.
    pub name: Name,
    /// The data directory, absolute.
    pub data_dir: PathBuf,
    /// Threads of the data path, each with its own storage back end; groups are spread over them.
    pub data_threads: NonZeroUsize,
}

/// `[nbd]`: the block front end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nbd {
    /// Where it listens; never empty.
    pub listen: Vec<ListenAddress>,
    /// Who may connect to its Unix sockets.
    pub socket_mode: SocketMode,
    /// How many clients may be connected at once.
    pub connections_max: NonZeroUsize,
    /// Bytes of requests in flight and of replies that wait, of one client.
    pub buffers: ByteSize,
    /// The same of all clients together, beyond the little that each may hold anyhow; `buffers` at least.
    pub buffers_total: ByteSize,
    /// What TCP clients must begin TLS by; `None`: there is none.
    pub tls: Option<NbdTls>,
}

/// `[api]`: the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// The unix socket of the HTTP API, absolute.
    pub socket: PathBuf,
    /// Another one, by which it is only to read; none unless asked for.
    pub read_only_socket: Option<PathBuf>,
    /// Where it is served to those who have a token; nowhere unless asked for.
    pub listen: Vec<SocketAddr>,
    /// How many clients may be connected at once.
    pub connections_max: NonZeroUsize,
}

/// `[log]`: what the process says on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// In which form.
    pub format: LogFormat,
    /// How much; the environment variable `AFTERIMAGE_LOG` overrides it.
    pub level: LogLevel,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The least severe line that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is wrong, and was coped with.
    Warn,
    /// What an operator wants to know in normal times.
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

/// `[storage]`: what the data path's I/O goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage {
    /// The wanted back end.
    pub backend: StorageChoice,
}

/// Which storage back end is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageChoice {
    /// io_uring, or blocking threads where it is not to be had; log and status say which.
    Auto,
    /// io_uring, or fail to start.
    Uring,
    /// Blocking threads.
    Blocking,
}

/// `[journal]`: every group's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Journal {
    /// The most that one group's journal takes on disk.
    pub size: ByteSize,
    /// Size of one segment file.
    pub segment_size: ByteSize,
}

/// `[memory]`: what each group may take, and all of them together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// For extent maps and the tables of payloads; beyond it, writes wait.
    pub maps: ByteSize,
    /// For recently written frames; beyond it, the oldest are read from the journal.
    pub frames: ByteSize,
    /// For those of all groups together.
    pub frames_total: ByteSize,
}

/// `[vault]`: what history may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vault {
    /// Most bytes of a group's deltas; beyond it, the oldest points go.
    pub history_max: Option<ByteSize>,
    /// Bytes that stay free in the vault's file system: below, the oldest points go. `None`: a twentieth of it, 1 GiB at
    /// most.
    pub free_min: Option<ByteSize>,
}

/// `[images]`: what their file system is to have left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Images {
    /// Below so many free bytes that is told. `None`: a twentieth of it, 1 GiB at most.
    pub free_min: Option<ByteSize>,
}

/// `[keys]`: what seals the groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Where the site key is kept, absolute.
    pub site_key: PathBuf,
    /// Whether new groups are sealed.
    pub seals_groups: bool,
}

/// `[verify]`: what is read again in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verify {
    /// How long after one verification the next is due; `None`: never.
    pub every: Option<Duration>,
    /// Bytes that are read in a second at most.
    pub rate: ByteRate,
}

/// `[metrics]`: a socket of their own for `GET /metrics`, which the API's serves too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Where they are served: all addresses of the host that is named; none unless asked for.
    pub listen: Vec<SocketAddr>,
}

impl Configuration {
    /// Reads and parses a file; looks at nothing else.
    pub fn load(file: &Path) -> Result<Configuration, ConfigurationError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigurationError {
            file: file.to_owned(),
            place: String::new(),
            problem: format!("cannot read the configuration ({error})"),
            mend: match error.kind() {
                ErrorKind::PermissionDenied => {
                    "give this user permission to read it, and to search the directories above it"
                }
                ErrorKind::IsADirectory => "name a file in it with --config",
                ErrorKind::InvalidData => "write it as UTF-8 text",
                _ => "name an existing file with --config; docs/afterimage.example.toml is a documented one",
            }
            .into(),
        })?;
        Configuration::parse(file, &text)
    }

    /// Parses the text of `file`.
    pub fn parse(file: &Path, text: &str) -> Result<Configuration, ConfigurationError> {
        file::parse(file, text).map_err(|fault| fault.at(file))
    }

    /// Looks whether it can be served on this machine now. Creates, binds and locks nothing that lasts.
    pub fn check(&self) -> Result<(), ConfigurationError> {
        check::check(self).map_err(|fault| fault.at(&self.file))
    }

    /// Takes the data directory, which [`Configuration::check`] found free.
    pub fn acquire(&self) -> Result<DataDirectory, ConfigurationError> {
        let path = &self.site.data_dir;
        DataDirectory::acquire(path).map_err(|error| ConfigurationError {
            file: self.file.clone(),
            place: format!("site.data_dir = {}", error::quoted_path(&self.written.data_dir, path)),
            problem: error.to_string(),
            mend: "stop whatever uses it, or name another directory".into(),
        })
    }
}
