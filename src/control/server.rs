//! The connections of the API, and of metrics: accepted, counted, limited, and ended when they do nothing. Not what is asked over them:
//! that is [`api`] and [`metrics`](super::metrics).
//!
//! | a client that | is ended after |
//! |---|---|
//! | connects and says nothing, trickles a request's head, or leaves a connection open after its answer | [`ApiLimits::head`] |
//! | trickles a request's body | [`ApiLimits::body`] |
//! | takes no byte of its answer | [`ApiLimits::stalled`] |
//! | is one too many | its request's head, which is answered with 503, or a second |
//!
//! Who waits for an answer is never ended: a verb takes what it takes.
//!
//! Invariant: there are at most [`ApiLimits::connections_max`] connections, and [`DESCRIPTORS_BEYOND`] more for each socket that listens,
//! so that who connects over and over takes no descriptor from a block client, or from a group's files. Half of them at most are not by
//! `[api] socket`.
//!
//! [`api`]: super::api

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::CONNECTION;
use axum::response::IntoResponse;
use axum::{Json, Router};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Sleep;

use super::model::{ApiError, Asker, Role, Status, TurnedAway};
use super::turned_away::TurnedAwayCount;
use crate::env::Environment;
use crate::error::ErrorKind;

/// Longest that stopping waits for requests at work: a client may be slow, or wait for a job.
const GRACE: Duration = Duration::from_secs(5);
/// How long one too many may take to ask, so that it can be told why it gets nothing.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);
/// Clients that are being told so at once: beyond these, the first of them is left without a word.
const REFUSED_MAX: usize = 16;
/// How long accepting rests when the system has no descriptors or memory for another socket.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Bytes that a connection buffers, and so of a request's head: names and numbers.
const BUFFER_BYTES: usize = 64 << 10;

/// Clients of `[metrics] listen` at once: a few that scrape, and whoever looks.
const METRICS_CONNECTIONS_MAX: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");

/// Descriptors that clients of metrics take at most, on so many sockets that listen.
pub const fn descriptors_of_metrics(listeners: usize) -> usize {
    match listeners {
        0 => 0,
        // Each listens on one, and has its own whom it tells that they are too many.
        _ => METRICS_CONNECTIONS_MAX.get() + listeners * (DESCRIPTORS_BEYOND + 1),
    }
}

/// Descriptors that sockets of the API take at most, so many of them, beyond [`ApiLimits::connections_max`]: each listens on one, and has
/// its own whom it tells that they are too many.
pub const fn descriptors_of_api(listeners: usize) -> usize {
    listeners * (DESCRIPTORS_BEYOND + 1)
}

/// What is asked over a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Api,
    Metrics,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Service::Api => "the API",
            Service::Metrics => "metrics",
        }
    }

    /// What one too many is told.
    fn refusal(self, connections_max: NonZeroUsize) -> String {
        match self {
            Service::Api => format!(
                "too many connections to the API: [api] connections_max = {connections_max}: try again, end some of them, or \
                 write a larger value; half of it is for [api] socket alone"
            ),
            Service::Metrics => format!(
                "too many connections to [metrics] listen, which takes {connections_max}: try again, or end some of them"
            ),
        }
    }
}

/// By where a client comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// `[api] socket`
    Socket,
    /// `[api] read_only_socket`
    ReadOnlySocket,
    /// `[api] listen`. Where TLS is spoken, that will be another.
    Tcp,
    /// `[metrics] listen`, where nothing else is served.
    Metrics,
}

impl Entrance {
    /// What whoever comes by it may do; `None` where that is said by a token.
    pub(super) fn role(self) -> Option<Role> {
        match self {
            Entrance::Socket => Some(Role::Admin),
            Entrance::ReadOnlySocket => Some(Role::Read),
            Entrance::Tcp | Entrance::Metrics => None,
        }
    }

    /// Whether others have a claim to a part of the places.
    fn leaves_some(self) -> bool {
        matches!(self, Entrance::ReadOnlySocket | Entrance::Tcp)
    }
}

/// What the API's clients may take.
#[derive(Clone, Copy, Debug)]
pub struct ApiLimits {
    /// Connections at once: `[api] connections_max`.
    pub connections_max: NonZeroUsize,
    /// For a request's head, also the next one's on the same connection. Default 10 s.
    pub head: Duration,
    /// For a request's body. Default 10 s.
    pub body: Duration,
    /// For a client to take some of its answer. Default 10 s.
    pub stalled: Duration,
}

impl ApiLimits {
    /// The defaults, with so many connections.
    pub fn new(connections_max: NonZeroUsize) -> ApiLimits {
        let (head, body, stalled) =
            (Duration::from_secs(10), Duration::from_secs(10), Duration::from_secs(10));
        ApiLimits { connections_max, head, body, stalled }
    }
}

/// Descriptors that clients take at most beyond [`ApiLimits::connections_max`]: who is being told that it is one too many, and who is
/// being accepted, or has just been left without a word.
pub const DESCRIPTORS_BEYOND: usize = REFUSED_MAX + 1;

/// The API's clients, counted; those who have all of the API and others together.
pub struct ApiConnections {
    service: Service,
    limits: ApiLimits,
    connections: AtomicUsize,
    /// Those of them that have to leave places for `[api] socket`: whoever may do everything is not kept out by who may not.
    others: AtomicUsize,
    turned_away: TurnedAwayCount,
    environment: Arc<dyn Environment + Send + Sync>,
}

impl ApiConnections {
    /// None yet.
    pub fn new(limits: ApiLimits, environment: Arc<dyn Environment + Send + Sync>) -> ApiConnections {
        ApiConnections::of(Service::Api, limits, environment)
    }

    /// None yet, of those that ask for metrics only.
    pub fn of_metrics(environment: Arc<dyn Environment + Send + Sync>) -> ApiConnections {
        ApiConnections::of(Service::Metrics, ApiLimits::new(METRICS_CONNECTIONS_MAX), environment)
    }

    fn of(
        service: Service,
        limits: ApiLimits,
        environment: Arc<dyn Environment + Send + Sync>,
    ) -> ApiConnections {
        ApiConnections {
            service,
            limits,
            connections: AtomicUsize::new(0),
            others: AtomicUsize::new(0),
            turned_away: TurnedAwayCount::default(),
            environment,
        }
    }

    /// What each may take.
    pub(super) fn limits(&self) -> &ApiLimits {
        &self.limits
    }

    /// Says in `status` how they stand.
    pub(super) fn describe(&self, status: &mut Status) {
        status.api_connections = self.connections.load(Ordering::Relaxed) as u64;
        status.api_connections_limit = self.limits.connections_max.get() as u64;
        status.api_turned_away = self.turned_away.read();
    }

    /// Those that were turned away because there were too many.
    pub fn turned_away(&self) -> TurnedAway {
        self.turned_away.read()
    }

    /// A place for a client, until it is dropped; `None` if there are too many.
    fn admit(self: &Arc<Self>, entrance: Entrance) -> Option<Place> {
        let max = self.limits.connections_max.get();
        let is_other = entrance.leaves_some();
        if is_other {
            take_below(&self.others, max.div_ceil(2))?;
        }
        if take_below(&self.connections, max).is_none() {
            if is_other {
                self.others.fetch_sub(1, Ordering::Relaxed);
            }
            return None;
        }
        Some(Place { connections: Arc::clone(self), is_other })
    }

    fn turn_away(&self) {
        let clients = self.turned_away.add(self.environment.wall());
        // However many come, they are a few lines of the log.
        if clients.is_power_of_two() {
            let connections_max = self.limits.connections_max;
            tracing::warn!(
                connections_max,
                clients,
                "a client of {} is turned away: too many connections",
                self.service.name()
            );
        }
    }

    /// What is answered whatever is asked.
    fn refusal(&self) -> Router {
        let message = self.service.refusal(self.limits.connections_max);
        let error = ApiError { kind: ErrorKind::NoSpace, message };
        let answer = move || {
            let answer = (StatusCode::SERVICE_UNAVAILABLE, [(CONNECTION, "close")], Json(error.clone()));
            std::future::ready(answer.into_response())
        };
        Router::new().fallback(answer)
    }
}

/// One more, if there are fewer than `max`.
fn take_below(count: &AtomicUsize, max: usize) -> Option<()> {
    let below_max = |count| (count < max).then_some(count + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below_max).ok().map(drop)
}

/// One of the places that clients have.
struct Place {
    connections: Arc<ApiConnections>,
    is_other: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.connections.fetch_sub(1, Ordering::Relaxed);
        if self.is_other {
            self.connections.others.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Where clients come from.
trait Listener {
    type Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next client, and who it is.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Socket, Option<Asker>)>> + Send;
}

impl Listener for UnixListener {
    type Socket = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Option<Asker>)> {
        let (socket, _) = UnixListener::accept(self).await?;
        // It may have gone already.
        let peer = socket.peer_cred().ok();
        let asker = peer.map(|peer| Asker { uid: Some(peer.uid()), pid: peer.pid(), ..Asker::default() });
        Ok((socket, asker))
    }
}

impl Listener for TcpListener {
    type Socket = TcpStream;

    /// Who is at the other end, a token says.
    async fn accept(&self) -> io::Result<(TcpStream, Option<Asker>)> {
        let (socket, address) = TcpListener::accept(self).await?;
        let asker = Asker { address: Some(address.to_string()), ..Asker::default() };
        Ok((socket, Some(asker)))
    }
}

/// Serves the API until `shutdown` resolves and the requests at work have been answered, for five seconds at most.
pub async fn serve(
    listener: std::os::unix::net::UnixListener,
    entrance: Entrance,
    router: Router,
    connections: Arc<ApiConnections>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    serve_on(UnixListener::from_std(listener)?, entrance, router, connections, shutdown).await;
    Ok(())
}

/// The same, on a TCP address.
pub async fn serve_tcp(
    listener: std::net::TcpListener,
    entrance: Entrance,
    router: Router,
    connections: Arc<ApiConnections>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    serve_on(TcpListener::from_std(listener)?, entrance, router, connections, shutdown).await;
    Ok(())
}

async fn serve_on(
    listener: impl Listener,
    entrance: Entrance,
    router: Router,
    connections: Arc<ApiConnections>,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopping) = watch::channel(());
    let mut server = Server {
        entrance,
        refusal: connections.refusal(),
        router,
        connections,
        stopping,
        at_work: JoinSet::new(),
        refusing: JoinSet::new(),
        refused: VecDeque::new(),
    };
    tokio::select! {
        () = shutdown => {}
        never = server.accept(&listener) => match never {},
    }
    drop(listener);
    // Whoever serves a connection hears it.
    drop(stop);
    let ended = async {
        while server.at_work.join_next().await.is_some() {}
        while server.refusing.join_next().await.is_some() {}
    };
    // Who is still there then is cut off as the sets are dropped.
    let _ = tokio::time::timeout(GRACE, ended).await;
}

struct Server {
    entrance: Entrance,
    router: Router,
    refusal: Router,
    connections: Arc<ApiConnections>,
    stopping: watch::Receiver<()>,
    at_work: JoinSet<()>,
    /// Those that are told that they are too many.
    refusing: JoinSet<()>,
    /// Who is being told that it is one too many, the first one first; some may have ended.
    refused: VecDeque<AbortHandle>,
}

impl Server {
    async fn accept(&mut self, listener: &impl Listener) -> std::convert::Infallible {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                // Else what is left of those that ended would add up.
                Some(_) = self.at_work.join_next() => continue,
                Some(_) = self.refusing.join_next() => continue,
            };
            match accepted {
                Ok((socket, asker)) => {
                    self.take(socket, asker);
                    self.await_aborted().await;
                }
                Err(error) => {
                    let service = self.connections.service.name();
                    tracing::warn!(%error, "cannot accept a client of {service} now");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    /// Who was left without a word has a descriptor until its task is gone.
    async fn await_aborted(&mut self) {
        while self.refusing.len() > REFUSED_MAX {
            self.refusing.join_next().await;
        }
    }

    fn take(&mut self, socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, asker: Option<Asker>) {
        let limits = self.connections.limits;
        let caller = Caller { asker, entrance: self.entrance };
        if let Some(place) = self.connections.admit(self.entrance) {
            let (router, stopping) = (self.router.clone(), self.stopping.clone());
            self.at_work.spawn(async move {
                serve_one(socket, caller, router, limits, stopping).await;
                drop(place);
            });
            return;
        }
        self.connections.turn_away();
        if self.refused.len() == REFUSED_MAX
            && let Some(first) = self.refused.pop_front()
        {
            first.abort();
        }
        let limits = ApiLimits { head: REFUSED_WITHIN, stalled: REFUSED_WITHIN, ..limits };
        let answering = serve_one(socket, caller, self.refusal.clone(), limits, self.stopping.clone());
        self.refused.push_back(self.refusing.spawn(answering));
    }
}

/// Who is at the other end of a connection.
struct Caller {
    asker: Option<Asker>,
    entrance: Entrance,
}

/// Answers what comes on a connection, until it ends.
async fn serve_one(
    socket: impl AsyncRead + AsyncWrite + Unpin,
    caller: Caller,
    router: Router,
    limits: ApiLimits,
    mut stopping: watch::Receiver<()>,
) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(BUFFER_BYTES);
    let socket = TokioIo::new(Watched::new(socket, limits.stalled));
    let routes = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(caller.entrance);
        // For the audit trail, and who refuses it.
        if let Some(asker) = caller.asker.clone() {
            request.extensions_mut().insert(asker);
        }
        routes.call(request)
    });
    let mut connection = std::pin::pin!(builder.serve_connection(socket, service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        // A sender that is dropped tells as well.
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a client's connection ended");
    }
}

/// A client's socket that fails once its client has taken nothing for so long of what it is to take.
struct Watched<S> {
    socket: S,
    patience: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    fn new(socket: S, patience: Duration) -> Watched<S> {
        Watched { socket, patience, stalled: None }
    }

    fn watch<T>(&mut self, context: &mut Context<'_>, wrote: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if wrote.is_ready() {
            self.stalled = None;
            return wrote;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.watch(context, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        self.watch(context, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
