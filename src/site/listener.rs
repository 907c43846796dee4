//! Where clients come in: Unix and TCP sockets that listen, and the sockets that they accept.
//!
//! Nothing here waits. A Unix socket that a dead process left behind is replaced; one that answers belongs to a
//! living process and is left alone.

use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd};

use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};

use crate::error::{Error, Result};
use crate::listen::{ListenAddress, bind_unix};

/// A socket that listens; a Unix socket's name goes when it is dropped.
pub(super) struct Listener {
    socket: ListeningSocket,
    address: ListenAddress,
}

enum ListeningSocket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens at `address`.
    pub(super) fn bind(address: &ListenAddress) -> Result<Listener> {
        let failed = |error| Error::io(format!("cannot listen at {address}"), error);
        match address {
            ListenAddress::Unix(path) => {
                let socket = UnixListener::from_std(bind_unix(path).map_err(failed)?);
                Ok(Listener { socket: ListeningSocket::Unix(socket), address: address.clone() })
            }
            ListenAddress::Tcp(address) => {
                let socket = TcpListener::bind(*address).map_err(failed)?;
                let address = ListenAddress::Tcp(socket.local_addr().map_err(failed)?);
                Ok(Listener { socket: ListeningSocket::Tcp(socket), address })
            }
        }
    }

    /// Where it listens, with the port that the system chose.
    pub(super) fn address(&self) -> &ListenAddress {
        &self.address
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
        if let ListenAddress::Unix(path) = &self.address {
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
