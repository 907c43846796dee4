//! Where clients come in: Unix and TCP sockets that listen, and the sockets that they accept.
//!
//! Nothing here waits. A Unix socket that a dead process left behind is replaced; one that answers belongs to a
//! living process and is left alone.

use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::net::sockopt;
use rustls::ServerConfig;

use crate::error::{Error, Result};
use crate::listen::{ListenAddress, SocketMode, bind_unix};

/// After so long without a word, a TCP peer is asked whether it is still there,
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// then so often,
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
/// and so many times: after five minutes it counts as gone. So does one that acknowledges nothing for as long, or, which is why it is
/// not less, takes nothing of what waits for it: a guest that is stopped for a while is no dead one.
const KEEPALIVE_PROBES: u32 = 8;

/// A socket that listens; a Unix socket's name goes when it is dropped.
pub(super) struct Listener {
    socket: ListeningSocket,
    address: ListenAddress,
    tls: Option<Arc<ServerConfig>>,
}

enum ListeningSocket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens at `address`; a Unix socket has that mode, and clients must begin TLS if there is a configuration of it.
    pub(super) fn bind(
        address: &ListenAddress,
        mode: SocketMode,
        tls: Option<Arc<ServerConfig>>,
    ) -> Result<Listener> {
        let failed = |error| Error::io(format!("cannot listen at {address}"), error);
        match address {
            ListenAddress::Unix(path) => {
                let socket = UnixListener::from_std(bind_unix(path, mode).map_err(failed)?);
                Ok(Listener { socket: ListeningSocket::Unix(socket), address: address.clone(), tls })
            }
            ListenAddress::Tcp(address) => {
                let socket = TcpListener::bind(*address).map_err(failed)?;
                let address = ListenAddress::Tcp(socket.local_addr().map_err(failed)?);
                Ok(Listener { socket: ListeningSocket::Tcp(socket), address, tls })
            }
        }
    }

    /// Where it listens, with the port that the system chose.
    pub(super) fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// What clients must begin TLS by, if they must.
    pub(super) fn tls(&self) -> Option<&Arc<ServerConfig>> {
        self.tls.as_ref()
    }

    /// The next client.
    pub(super) fn accept(&self) -> io::Result<Socket> {
        match &self.socket {
            ListeningSocket::Unix(listener) => listener.accept().map(|(socket, _)| Socket::Unix(socket)),
            ListeningSocket::Tcp(listener) => {
                let (socket, _) = listener.accept()?;
                // Replies are gathered by us already.
                socket.set_nodelay(true)?;
                end_with_peer(&socket)?;
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

/// Has the kernel end a connection whose peer vanished, whether something is on its way to it or not: a host that lost its power says
/// nothing, and an idle client is legal.
fn end_with_peer(socket: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_EVERY)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
    let gone = KEEPALIVE_IDLE + KEEPALIVE_EVERY * KEEPALIVE_PROBES;
    sockopt::set_tcp_user_timeout(socket, u32::try_from(gone.as_millis()).expect("minutes"))?;
    Ok(())
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

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Unix(socket) => socket.write_vectored(slices),
            Socket::Tcp(socket) => socket.write_vectored(slices),
        }
    }

    /// What was written is with the kernel.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Socket {
    /// The client is told that nothing more comes, behind what is on its way.
    pub(super) fn end_sending(&self) -> io::Result<()> {
        match self {
            Socket::Unix(socket) => socket.shutdown(Shutdown::Write),
            Socket::Tcp(socket) => socket.shutdown(Shutdown::Write),
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

    /// They were asked after two hours, as the kernel has it, and for as long took a place of `connections_max`.
    #[test]
    fn a_tcp_peer_that_vanished_is_gone_after_minutes() {
        let listener =
            Listener::bind(&ListenAddress::Tcp("127.0.0.1:0".parse().unwrap()), SocketMode::Owner, None)
                .unwrap();
        let ListenAddress::Tcp(address) = *listener.address() else { panic!("it listens on TCP") };
        let _client = std::net::TcpStream::connect(address).unwrap();
        let socket = listener.accept().unwrap();
        assert!(sockopt::socket_keepalive(&socket).unwrap());
        let probing = sockopt::tcp_keepintvl(&socket).unwrap() * sockopt::tcp_keepcnt(&socket).unwrap();
        let gone = sockopt::tcp_keepidle(&socket).unwrap() + probing;
        assert_eq!(gone, Duration::from_secs(300));
        assert_eq!(u128::from(sockopt::tcp_user_timeout(&socket).unwrap()), gone.as_millis());
    }
}
