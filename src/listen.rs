//! An address that the gateway listens on: a unix socket or a TCP address.
//!
//! It is text only at its edges ([`ListenAddress::parse`], [`Endpoint::nbd_uri`]). [`in_use`] looks without
//! touching anything; [`bind_unix`] is the only place that removes a file, and only a socket that nobody answers on.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Bytes of a path that fit `sockaddr_un.sun_path` with its terminating zero, unix(7).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListenAddress {
    /// A unix socket, by absolute path.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

/// Who may connect to a Unix socket. Nobody else ever may: on a disk's socket nobody is asked who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketMode {
    /// 0600: the gateway's user.
    #[default]
    Owner,
    /// 0660: and the gateway's group.
    Group,
}

impl SocketMode {
    fn bits(self) -> u32 {
        match self {
            SocketMode::Owner => 0o600,
            SocketMode::Group => 0o660,
        }
    }
}

/// What is wrong with an address, and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressFault {
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub mend: String,
}

impl AddressFault {
    fn new(problem: impl Into<String>, mend: impl Into<String>) -> AddressFault {
        AddressFault { problem: problem.into(), mend: mend.into() }
    }
}

impl ListenAddress {
    /// `unix:PATH` or `HOST:PORT`. A relative path is taken from the working directory; a host name stands for all of
    /// its addresses, at least one.
    pub fn parse(text: &str) -> Result<Vec<ListenAddress>, AddressFault> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(vec![ListenAddress::Unix(socket_path(Path::new(path))?)]);
        }
        if !text.contains(':') {
            return Err(AddressFault::new(
                "neither a unix socket nor a TCP address",
                "write \"unix:/PATH\" or \"127.0.0.1:10809\"",
            ));
        }
        match text.to_socket_addrs().map(distinct) {
            Ok(addresses) if addresses.is_empty() => {
                Err(AddressFault::new("the host has no address", "write an address of this host"))
            }
            Ok(addresses) => Ok(addresses.into_iter().map(ListenAddress::Tcp).collect()),
            Err(error) => Err(AddressFault::new(
                format!("not a TCP address ({error})"),
                "write HOST:PORT, for example \"127.0.0.1:10809\" or \"[::1]:10809\"",
            )),
        }
    }

    /// Whether only this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            ListenAddress::Unix(_) => true,
            ListenAddress::Tcp(address) => address.ip().to_canonical().is_loopback(),
        }
    }
}

/// Where clients connect, and whether they must begin TLS there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: ListenAddress,
    /// Whether it is served by TLS.
    pub tls: bool,
}

impl Endpoint {
    /// An address of a gateway, whose TCP addresses are served by TLS or not; its unix sockets never are.
    pub fn new(address: ListenAddress, tcp_by_tls: bool) -> Endpoint {
        let tls = tcp_by_tls && matches!(address, ListenAddress::Tcp(_));
        Endpoint { address, tls }
    }

    /// The NBD URI of an export served here, as the NBD project's uri.md writes it.
    pub fn nbd_uri(&self, export: &str) -> String {
        match &self.address {
            ListenAddress::Unix(path) => {
                format!("nbd+unix:///{export}?socket={}", percent_encode(&path.to_string_lossy()))
            }
            ListenAddress::Tcp(address) => {
                format!("{}://{address}/{export}", if self.tls { "nbds" } else { "nbd" })
            }
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            ListenAddress::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// Each address once, in the order of the resolver, which may say one twice (several lines of `/etc/hosts`).
fn distinct(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut once = Vec::new();
    for address in addresses {
        if !once.contains(&address) {
            once.push(address);
        }
    }
    once
}

/// The absolute form of a socket's path, if the kernel can bind it.
pub fn socket_path(path: &Path) -> Result<PathBuf, AddressFault> {
    let is_directory = path.as_os_str().as_encoded_bytes().ends_with(b"/");
    if path.file_name().is_none() || is_directory {
        let problem =
            if path.as_os_str().is_empty() { "no path" } else { "a directory, not a socket's name" };
        let mend = "name a file in a directory, for example /run/afterimage/nbd.sock";
        return Err(AddressFault::new(problem, mend));
    }
    let path = std::path::absolute(path)
        .map_err(|error| AddressFault::new(format!("not a path ({error})"), "write \"unix:/PATH\""))?;
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(AddressFault::new(
            format!("a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes, this one has {bytes}"),
            "choose a shorter path, for example under /run/afterimage",
        ));
    }
    Ok(path)
}

/// What keeps `address` from being bound now, without touching it.
pub fn in_use(address: &ListenAddress) -> Option<AddressFault> {
    match address {
        ListenAddress::Unix(path) => unix_in_use(path),
        ListenAddress::Tcp(address) => match TcpListener::bind(address) {
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Some(AddressFault::new(
                "socket in use",
                format!(
                    "stop whatever listens there (`ss -ltnp sport = :{}`) or choose another port",
                    address.port()
                ),
            )),
            Err(error) => Some(AddressFault::new(error.to_string(), "choose an address of this host")),
        },
    }
}

/// Whether two TCP addresses that can be bound cannot both be, as this kernel has it: whether `[::]` takes IPv4 as well is a setting.
pub fn exclude_each_other(first: &ListenAddress, second: &ListenAddress) -> bool {
    let (ListenAddress::Tcp(first), ListenAddress::Tcp(second)) = (first, second) else { return false };
    // A port of zero is another one for each.
    if first.port() != second.port() || first.port() == 0 {
        return false;
    }
    let Ok(_held) = TcpListener::bind(first) else { return false };
    TcpListener::bind(second).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

fn unix_in_use(path: &Path) -> Option<AddressFault> {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(AddressFault::new(error.to_string(), "choose another path")),
    };
    if metadata.is_dir() {
        let mend = format!("name a file in it, for example {}", path.join("afterimage.sock").display());
        return Some(AddressFault::new("a directory has this name", mend));
    }
    if !metadata.file_type().is_socket() {
        return Some(AddressFault::new(
            "a file that is not a socket has this name",
            "choose another path, or move that file away",
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        _ => Some(AddressFault::new(
            "socket in use",
            "stop the process that listens there (perhaps another gateway) or choose another path",
        )),
    }
}

/// Binds a unix socket that only those whom `mode` names may connect to, over a dead process's socket if one lies there.
pub fn bind_unix(path: &Path, mode: SocketMode) -> io::Result<UnixListener> {
    if let Some(fault) = unix_in_use(path) {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, fault.problem));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode.bits()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// RFC 3986: everything but unreserved characters and `/`, which a query may hold.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unix_paths_or_tcp() {
        assert_eq!(
            ListenAddress::parse("unix:/run/a.sock").unwrap(),
            [ListenAddress::Unix("/run/a.sock".into())]
        );
        assert_eq!(
            ListenAddress::parse("[::1]:10809").unwrap(),
            [ListenAddress::Tcp("[::1]:10809".parse().unwrap())]
        );
        for text in [
            "10809",
            "/run/a.sock",
            "127.0.0.1:",
            "127.0.0.1:99999",
            "unix:",
            "unix:/",
            "unix:/run/",
            "unix:/run/..",
        ] {
            assert!(ListenAddress::parse(text).is_err(), "{text}");
        }
    }

    /// Only the first was listened on.
    #[test]
    fn a_host_stands_for_all_of_its_addresses_each_once() {
        let [four, six]: [SocketAddr; 2] = ["127.0.0.1:1", "[::1]:1"].map(|text| text.parse().unwrap());
        assert_eq!(distinct([six, four, six, four].into_iter()), [six, four]);
        let mut resolved = "localhost:1".to_socket_addrs().unwrap();
        let listened = ListenAddress::parse("localhost:1").unwrap();
        assert!(resolved.all(|address| listened.contains(&ListenAddress::Tcp(address))));
    }

    #[test]
    fn only_loopback_is_local() {
        let local = |text: &str| ListenAddress::Tcp(text.parse().unwrap()).is_local();
        assert!(
            local("127.0.0.1:1") && local("127.9.9.9:1") && local("[::1]:1") && local("[::ffff:127.0.0.1]:1")
        );
        assert!(!local("0.0.0.0:1") && !local("[::]:1") && !local("192.168.0.1:1"));
    }

    #[test]
    fn an_export_has_a_uri_that_nbd_clients_take() {
        let unix = ListenAddress::Unix("/run/a b.sock".into());
        let tcp = ListenAddress::parse("127.0.0.1:10809").unwrap().remove(0);
        let uri = |address: &ListenAddress, tls, export| Endpoint::new(address.clone(), tls).nbd_uri(export);
        for tls in [false, true] {
            let expected = "nbd+unix:///erp/db@test-1?socket=/run/a%20b.sock";
            assert_eq!(uri(&unix, tls, "erp/db@test-1"), expected);
        }
        assert_eq!(uri(&tcp, false, "erp/db"), "nbd://127.0.0.1:10809/erp/db");
        assert_eq!(uri(&tcp, true, "erp/db"), "nbds://127.0.0.1:10809/erp/db");
    }

    #[test]
    fn a_dead_socket_is_bound_over_and_a_living_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        let mode = || path.metadata().unwrap().permissions().mode() & 0o777;
        let living = bind_unix(&path, SocketMode::Group).expect("nobody answers on it");
        assert_eq!(mode(), 0o660);
        drop(living);
        let living = bind_unix(&path, SocketMode::Owner).expect("nobody answers on it");
        assert_eq!(mode(), 0o600);
        assert_eq!(bind_unix(&path, SocketMode::Owner).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(living);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "not a socket").unwrap();
        assert_eq!(bind_unix(&path, SocketMode::Owner).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "not a socket");
    }
}
