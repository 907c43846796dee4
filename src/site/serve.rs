//! `serve`: starts the data threads, opens the groups, listens, and stops in good order.

use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fs::Mode;
use rustls::ServerConfig;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::api_listeners::ApiListeners;
use super::data_threads::{DataThreads, DataThreadsOptions, SessionLimits};
use super::gateway::{Gateway, StorageFound};
use super::keys::KeyStore;
use super::member::Member;
use super::metrics_listener::MetricsListener;
use super::supervision::Supervision;
use crate::capture::nbd::Limits;
use crate::config::{Api, Configuration, StorageChoice};
use crate::control::api;
use crate::control::catalogue::Catalogue;
use crate::control::server::{ApiConnections, ApiLimits};
use crate::control::tokens::Tokens;
use crate::data_directory::DataDirectory;
use crate::env::{Environment, OsEnvironment};
use crate::error::{Error, ErrorKind, Result};
use crate::listen::{Endpoint, ListenAddress, SocketMode};
use crate::storage::{BackendOptions, Preference, Storage, open_best};
use crate::tls::{self, Validity};
use crate::units::to_usize;

/// How long a clean stop may take, once sessions have drained; what is not sealed by then is recovered at the next start. Guests
/// with SCSI disks give up after thirty seconds, stop and start together: to destage a long backlog first would be no kindness.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// The control plane's threads before they serve anything.
pub struct ControlPlane {
    runtime: Runtime,
    signals: StopSignals,
}

impl ControlPlane {
    /// Starts them. From now on SIGTERM and SIGINT do not end the process, but are remembered for [`ControlPlane::serve`].
    pub fn start() -> Result<ControlPlane> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("control")
            .enable_all()
            .build()
            .map_err(|error| Error::io("starting the control plane's threads", error))?;
        let signals = {
            let _entered = runtime.enter();
            StopSignals::watch()?
        };
        Ok(ControlPlane { runtime, signals })
    }

    /// Serves until SIGTERM or SIGINT; the configuration was checked and the data directory is ours.
    pub fn serve(self, configuration: Configuration, directory: DataDirectory) -> Result<()> {
        // What guests wrote is for nobody else to read, whatever we were started with; nor are our sockets for anybody before
        // they have their own permissions.
        rustix::process::umask(Mode::RWXG | Mode::RWXO);
        self.runtime.block_on(run(configuration, directory, self.signals))
    }
}

/// The signals that ask for a clean stop.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn watch() -> Result<StopSignals> {
        Ok(StopSignals {
            terminate: signal(SignalKind::terminate())
                .map_err(|error| Error::io("watching for SIGTERM", error))?,
            interrupt: signal(SignalKind::interrupt())
                .map_err(|error| Error::io("watching for SIGINT", error))?,
        })
    }

    /// Waits for the next one, or takes one that came before.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn run(configuration: Configuration, directory: DataDirectory, mut signals: StopSignals) -> Result<()> {
    let environment: Arc<dyn Environment + Send + Sync> = Arc::new(OsEnvironment::new());
    let keys = KeyStore::open(&configuration.keys.site_key, &directory, &*environment)?;
    let tls = nbd_tls(&configuration, &*environment)?;
    let found = Arc::new(OnceLock::new());
    let threads = start_threads(&configuration, Arc::clone(&found))?;
    let catalogue = match Catalogue::open(&directory.catalogue(), &*environment).await {
        Ok((catalogue, _)) => Some(catalogue),
        // Events and audit trail cannot be made again: whoever has gone back goes forward again, or gives them up himself.
        Err(error) if error.kind() == ErrorKind::Unsupported => return Err(error),
        Err(error) => {
            tracing::warn!(%error, "the catalogue cannot be opened; it is a cache, and nothing waits for it");
            None
        }
    };
    let storage = found.get().cloned().expect("every data thread opened its storage");
    tracing::info!(backend = %storage.backend, reason = %storage.reason, "the storage back end");
    let (listen, mode) = (configuration.nbd.listen.clone(), configuration.nbd.socket_mode);
    let api = configuration.api.clone();
    let tokens = Arc::new(Tokens::open(directory.tokens(), Arc::clone(&environment)));
    let limits = ApiLimits::new(configuration.api.connections_max);
    let metrics = configuration.metrics.listen.clone();
    let gateway =
        Gateway::new(configuration, directory, keys, threads, Arc::clone(&environment), catalogue, storage);
    let supervision = Supervision::begin(&gateway);
    let opened = tokio::select! {
        opened = open(&gateway, &listen, mode, tls.as_ref(), &api) => opened,
        () = signals.next() => return stop_opening(gateway, supervision).await,
    };
    let (waits, stopping) = (gateway.clone(), supervision.stopping());
    let stop = async move {
        signals.next().await;
        tracing::info!("stopping: sessions drain, journals are sealed");
        stopping();
        waits.end_waits();
    };
    let opened = opened.and_then(|listeners| Ok((listeners, MetricsListener::bind(&metrics)?)));
    let served = match opened {
        Ok((listeners, metrics)) => {
            let connections = Arc::new(ApiConnections::new(limits, Arc::clone(&environment)));
            gateway.watch_clients(&connections).await;
            let metrics = metrics.serve(&gateway, &connections, Arc::clone(&environment));
            let site = Arc::new(gateway.clone());
            let router = api::router(site, Arc::clone(&connections), environment, tokens);
            tracing::info!(socket = %api.socket.display(), "ready");
            supervision.ready();
            let served = listeners.serve(router, connections, stop).await;
            metrics.end().await;
            served
        }
        Err(error) => {
            // It holds the gateway, which is about to end.
            drop(stop);
            Err(error)
        }
    };
    // Also what could not serve stops in good order: groups were opened, and have told what happened to them.
    gateway.stop(STOP_WITHIN).await;
    supervision.end().await;
    let ended = gateway.end();
    if ended.is_ok() {
        tracing::info!("stopped");
    }
    served.and(ended)
}

/// Stops while groups are being opened: one that is not open yet, be it that it waits for another process's lock, is left as the
/// death of this process leaves it, and so are those behind it; the others are sealed.
async fn stop_opening(gateway: Gateway, supervision: Supervision) -> Result<()> {
    tracing::info!("stopping: groups that are not open yet are opened by the next start");
    supervision.stopping()();
    gateway.stop(STOP_WITHIN).await;
    supervision.end().await;
    // The data threads are not waited for, since an opening may wait for long: they end with the process.
    tracing::info!("stopped");
    Ok(())
}

/// Opens the groups, then lets clients connect, then administrators.
async fn open(
    gateway: &Gateway,
    listen: &[ListenAddress],
    mode: SocketMode,
    tls: Option<&Arc<ServerConfig>>,
    api: &Api,
) -> Result<ApiListeners> {
    gateway.open_groups().await?;
    for address in listen {
        let bound = gateway.listen(address, mode, tls)?;
        let tls = Endpoint::new(bound.clone(), tls.is_some()).tls;
        // The address last: a script takes it off the line's end.
        tracing::info!(tls, address = %bound, "block clients may connect");
    }
    ApiListeners::bind(api)
}

/// What TCP clients must begin TLS by, if that is configured; read once. A certificate that has expired is none that clients take, but
/// those who come by a unix socket do not ask for it: so it keeps nobody from his disks.
fn nbd_tls(
    configuration: &Configuration,
    environment: &dyn Environment,
) -> Result<Option<Arc<ServerConfig>>> {
    let Some(named) = &configuration.nbd.tls else { return Ok(None) };
    let path = &named.certificate.path;
    let unusable = |unusable: tls::Unusable| {
        Error::invalid(format!("[nbd.tls]: {}: {}", unusable.problem, unusable.mend)).at_path(path)
    };
    let config = tls::server(&named.files()).map_err(unusable)?;
    let certificate = path.display();
    match tls::validity(path, environment.wall()).map_err(unusable)? {
        Validity::Holds => {}
        Validity::NotYet => {
            tracing::warn!(%certificate, "the certificate of [nbd.tls] is not valid yet: is the clock right?");
        }
        Validity::ExpiresAt { second, is_past } => {
            let at = jiff::Timestamp::from_second(i64::try_from(second).unwrap_or(i64::MAX));
            let at = at.map(|at| at.to_string()).unwrap_or_default();
            let when = if is_past { "has expired: clients refuse it" } else { "expires soon" };
            tracing::warn!(%certificate, at, "the certificate of [nbd.tls] {when}; put a new one there and restart");
        }
    }
    Ok(Some(config))
}

fn start_threads(
    configuration: &Configuration,
    found: Arc<OnceLock<StorageFound>>,
) -> Result<DataThreads<Member>> {
    let connections_max = configuration.nbd.connections_max.get();
    let options = DataThreadsOptions {
        threads: configuration.site.data_threads.get(),
        limits: SessionLimits {
            connections_max,
            connection: Limits {
                payload_bytes_max: to_usize(configuration.nbd.buffers.0),
                ..Limits::default()
            },
            buffers_total: to_usize(configuration.nbd.buffers_total.0),
            ..SessionLimits::default()
        },
    };
    let preference = match configuration.storage.backend {
        StorageChoice::Auto => Preference::Best,
        StorageChoice::Uring => Preference::Uring,
        StorageChoice::Blocking => Preference::Blocking,
    };
    DataThreads::start(options, move |_| open_storage(preference, &found))
}

/// Opens a data thread's storage and notes what it really is.
fn open_storage(preference: Preference, found: &OnceLock<StorageFound>) -> Result<Box<dyn Storage>> {
    let chosen = open_best(&BackendOptions { preference, ..BackendOptions::default() })?;
    let reason = match (&chosen.fallback, preference) {
        (Some(reason), _) => {
            tracing::warn!(%reason, "io_uring cannot be used here; blocking threads take over: `afterimage doctor` says what is missing");
            format!("io_uring cannot be used here: {reason}")
        }
        (None, Preference::Best) => "the best that works here".to_owned(),
        (None, Preference::Uring | Preference::Blocking) => "chosen in the configuration".to_owned(),
    };
    let backend = chosen.storage.backend().to_string();
    found.get_or_init(|| StorageFound { backend, reason });
    Ok(chosen.storage)
}
