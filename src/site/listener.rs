//! Where clients come in: Unix and TCP sockets that listen, and the sockets that they accept.
//!
//! Nothing here waits. A Unix socket that a dead process left behind is replaced; one that answers belongs to a
//! living process and is left alone.

use std::fmt;
use std::io::{self, IoSlice, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};

use crate::error::{Error, Result};

/// An address that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// A TCP address; port 0 lets the system choose.
    Tcp(SocketAddr),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// Refuses a path that cannot become a Unix socket: a living process answers there, or something else has the name.
/// Touches nothing; a stale socket passes.
pub fn check_unix_socket_is_free(path: &Path) -> Result<()> {
    match unix_socket_state(path)? {
        UnixSocketState::Absent | UnixSocketState::Stale => Ok(()),
        UnixSocketState::Answers => Err(Error::invalid(format!(
            "socket {} is in use by a living process; stop it, or name another path",
            path.display()
        ))),
    }
}

enum UnixSocketState {
    Absent,
    Stale,
    Answers,
}

fn unix_socket_state(path: &Path) -> Result<UnixSocketState> {
    let failed = |error| Error::io("cannot look at the socket", error).at_path(path);
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(UnixSocketState::Absent),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let message = format!("{} exists and is not a socket; name another path", path.display());
            return Err(Error::invalid(message));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        // A full backlog is an answer too.
        Ok(_) => Ok(UnixSocketState::Answers),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(UnixSocketState::Answers),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(UnixSocketState::Stale),
        Err(error) => Err(failed(error)),
    }
}

/// A socket that listens; a Unix socket's name goes when it is dropped.
pub(super) struct Listener {
    socket: ListeningSocket,
    endpoint: Endpoint,
}

enum ListeningSocket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens at `endpoint`.
    pub(super) fn bind(endpoint: &Endpoint) -> Result<Listener> {
        let failed = |error| Error::io(format!("cannot listen at {endpoint}"), error);
        match endpoint {
            Endpoint::Unix(path) => {
                check_unix_socket_is_free(path)?;
                if let UnixSocketState::Stale = unix_socket_state(path)? {
                    std::fs::remove_file(path).map_err(failed)?;
                }
                let socket = UnixListener::bind(path).map_err(failed)?;
                Ok(Listener { socket: ListeningSocket::Unix(socket), endpoint: endpoint.clone() })
            }
            Endpoint::Tcp(address) => {
                let socket = TcpListener::bind(*address).map_err(failed)?;
                let endpoint = Endpoint::Tcp(socket.local_addr().map_err(failed)?);
                Ok(Listener { socket: ListeningSocket::Tcp(socket), endpoint })
            }
        }
    }

    /// Where it listens, with the port that the system chose.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The next client.
    pub(super) fn accept(&self) -> io::Result<Socket> {
        match &self.socket {
            ListeningSocket::Unix(listener) => listener.accept().map(|(socket, _)| Socket::Unix(socket)),
            ListeningSocket::Tcp(listener) => {
                let (socket, _) = listener.accept()?;
                // Replies are gathered by us already; and a peer that vanished is not kept for ever.
                socket.set_nodelay(true)?;
                rustix::net::sockopt::set_socket_keepalive(&socket, true)?;
                Ok(Socket::Tcp(socket))
            }
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.socket {
            ListeningSocket::Unix(listener) => listener.register(registry, token, Interest::READABLE),
            ListeningSocket::Tcp(listener) => listener.register(registry, token, Interest::READABLE),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Endpoint::Unix(path) = &self.endpoint {
            // While this still listens nobody else replaced it. If the name cannot be removed, it is stale to the next.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A client's socket.
pub(super) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    pub(super) fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Unix(socket) => socket.write_vectored(slices),
            Socket::Tcp(socket) => socket.write_vectored(slices),
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Socket::Unix(socket) => socket,
            Socket::Tcp(socket) => socket,
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.source().register(registry, token, Interest::READABLE)
    }

    /// Asks for events when there is room to send, or stops asking.
    pub(super) fn watch_room(&mut self, registry: &Registry, token: Token, watch: bool) -> io::Result<()> {
        let interest = if watch { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        self.source().reregister(registry, token, interest)
    }

    pub(super) fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.source().deregister(registry)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Unix(socket) => socket.as_fd(),
            Socket::Tcp(socket) => socket.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nbd.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a dead process leaves its socket behind");
        check_unix_socket_is_free(&path).unwrap();
        let living = Listener::bind(&Endpoint::Unix(path.clone())).unwrap();
        let error = check_unix_socket_is_free(&path).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(Listener::bind(&Endpoint::Unix(path.clone())).is_err());
        drop(living);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_is_never_taken_for_a_stale_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        let error = Listener::bind(&Endpoint::Unix(path.clone())).err().unwrap();
        assert!(error.to_string().contains("not a socket"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }
}
