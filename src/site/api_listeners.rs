//! The sockets of the API: bound when the groups are open, served until the gateway stops.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use crate::config::Api;
use crate::control::server::{self, ApiConnections, Entrance};
use crate::error::{Error, Result};
use crate::listen::{SocketMode, bind_unix};

/// Sockets that are bound, and not served yet. Their names go with them.
pub(super) struct ApiListeners {
    sockets: Vec<BoundSocket>,
    addresses: Vec<TcpListener>,
}

struct BoundSocket {
    path: PathBuf,
    entrance: Entrance,
    listener: Option<UnixListener>,
}

/// The socket's name goes with the gateway that answered on it.
impl Drop for BoundSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl ApiListeners {
    /// Binds all of them, or none.
    pub(super) fn bind(api: &Api) -> Result<ApiListeners> {
        // Whoever may connect to a disk need not be who may destroy it.
        let mut sockets = vec![bind_socket(&api.socket, SocketMode::Owner, Entrance::Socket)?];
        if let Some(path) = &api.read_only_socket {
            sockets.push(bind_socket(path, SocketMode::Group, Entrance::ReadOnlySocket)?);
        }
        let addresses = api.listen.iter().map(bind_address).collect::<Result<_>>()?;
        Ok(ApiListeners { sockets, addresses })
    }

    /// Serves them until `shutdown` resolves and the requests at work have been answered, for some seconds at most.
    pub(super) async fn serve(
        mut self,
        router: Router,
        connections: Arc<ApiConnections>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<()> {
        let (stop, stopping) = watch::channel(());
        let mut servers = JoinSet::new();
        let stopped = || {
            let mut stopping = stopping.clone();
            // A sender that is dropped tells as well.
            async move { drop(stopping.changed().await) }
        };
        for BoundSocket { listener, entrance, .. } in &mut self.sockets {
            let listener = listener.take().expect("it is served once");
            let (router, connections) = (router.clone(), Arc::clone(&connections));
            servers.spawn(server::serve(listener, *entrance, router, connections, stopped()));
        }
        for listener in self.addresses {
            let (router, connections) = (router.clone(), Arc::clone(&connections));
            servers.spawn(server::serve_tcp(listener, Entrance::Tcp, router, connections, stopped()));
        }
        let mut served = Ok(());
        tokio::select! {
            () = shutdown => {}
            // None ends by itself but for an error.
            Some(ended) = servers.join_next() => served = outcome(ended),
        }
        drop(stop);
        while let Some(ended) = servers.join_next().await {
            served = served.and(outcome(ended));
        }
        served
    }
}

fn outcome(ended: std::result::Result<std::io::Result<()>, JoinError>) -> Result<()> {
    let ended = ended.unwrap_or_else(|stopped| Err(std::io::Error::other(stopped)));
    ended.map_err(|error| Error::io("serving the API", error))
}

fn bind_socket(path: &Path, mode: SocketMode, entrance: Entrance) -> Result<BoundSocket> {
    let listener = bind_unix(path, mode)
        .map_err(|error| Error::io("listening on the API's socket", error).at_path(path))?;
    Ok(BoundSocket { path: path.to_owned(), entrance, listener: Some(listener) })
}

fn bind_address(address: &SocketAddr) -> Result<TcpListener> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        tracing::info!(api = %listener.local_addr()?, "the API takes tokens");
        Ok(listener)
    };
    bind().map_err(|error| Error::io(format!("listening on {address} for the API"), error))
}
