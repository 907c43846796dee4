//! The sockets of metrics, `[metrics] listen`: bound when the groups are open, served for as long as the API is.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::gateway::Gateway;
use crate::control::metrics;
use crate::control::server::{self, ApiConnections, Entrance};
use crate::env::Environment;
use crate::error::{Error, Result};

/// Addresses that are bound, and not served yet.
pub(super) struct MetricsListener(Vec<TcpListener>);

/// Addresses that are served.
pub(super) struct MetricsServed {
    stop: watch::Sender<()>,
    servers: JoinSet<std::io::Result<()>>,
}

impl MetricsListener {
    /// Binds them; none is fine.
    pub(super) fn bind(addresses: &[SocketAddr]) -> Result<MetricsListener> {
        let bind = |address: &SocketAddr| {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            tracing::info!(address = %listener.local_addr()?, "metrics may be scraped");
            Ok(listener)
        };
        let listeners = addresses.iter().map(|address| {
            bind(address).map_err(|error| Error::io(format!("listening on {address} for metrics"), error))
        });
        listeners.collect::<Result<_>>().map(MetricsListener)
    }

    /// Serves them in tasks of their own; `api` are the API's connections, which metrics tell of.
    pub(super) fn serve(
        self,
        gateway: &Gateway,
        api: &Arc<ApiConnections>,
        environment: Arc<dyn Environment + Send + Sync>,
    ) -> MetricsServed {
        let router = metrics::router(Arc::new(gateway.clone()), Arc::clone(api));
        let connections = Arc::new(ApiConnections::of_metrics(environment));
        let (stop, stopping) = watch::channel(());
        let mut servers = JoinSet::new();
        for listener in self.0 {
            let mut stopping = stopping.clone();
            // A sender that is dropped tells as well.
            let stopped = async move { drop(stopping.changed().await) };
            let (router, connections) = (router.clone(), Arc::clone(&connections));
            servers.spawn(server::serve_tcp(listener, Entrance::Metrics, router, connections, stopped));
        }
        MetricsServed { stop, servers }
    }
}

impl MetricsServed {
    /// Serves no more; whoever is being answered is waited for, for some seconds at most.
    pub(super) async fn end(mut self) {
        drop(self.stop);
        while let Some(ended) = self.servers.join_next().await {
            if let Ok(Err(error)) = ended {
                tracing::warn!(%error, "metrics could not be served");
            }
        }
    }
}
