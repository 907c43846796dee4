//! What the service manager is told (sd_notify(3)): that groups are being opened, that we serve, that we live, that we stop.
//!
//! The watchdog is fed by the data threads: a task of the control plane's runtime asks every one, and only when the loop of each has come
//! round to answer is it said that we live. A loop that hangs, a thread that ended, or a runtime that runs no tasks any more leaves
//! the watchdog hungry, and systemd ends the process and starts it anew. A device that takes its time holds up no loop, and
//! starves nothing.
//!
//! While groups are opened, no watchdog counts yet (it does from READY=1 on), but the time that a start may take: each round of
//! answers extends it, so that a long opening is not cut off, and one whose thread hangs is. Without a service manager
//! (`NOTIFY_SOCKET` is not set) nothing is said, and nothing else is different.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::OnceLock;
use std::time::Duration;

use futures::{Stream, StreamExt};
use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::data_threads::DataThreads;
use super::gateway::Gateway;
use crate::block::Volume;
use crate::counted::counted;

/// Says where the service manager listens.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";
/// How long it may keep us waiting.
const TELLING: Duration = Duration::from_secs(1);
/// Between two rounds where no watchdog says how often.
const ROUND: Duration = Duration::from_secs(20);
/// How often a watchdog is fed within its time.
const ROUNDS_WITHIN: u32 = 3;
/// What a round of answers adds to the time that a start may take: a data thread may work for so long without coming round.
const EXTENSION: Duration = Duration::from_secs(300);

/// What the gateway is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    Serving,
    Stopping,
}

/// Tells the service manager how the gateway is.
pub(super) struct Supervision {
    phase: watch::Sender<Phase>,
    gateway: Gateway,
    rounds: JoinHandle<()>,
}

impl Supervision {
    /// Begins to say that groups are being opened.
    pub(super) fn begin(gateway: &Gateway) -> Supervision {
        let (phase, _) = watch::channel(Phase::Opening);
        let (asked, now) = (gateway.clone(), phase.clone());
        tell(&of_round(Phase::Opening, &summary(gateway, Phase::Opening)));
        let period = sd_notify::watchdog_enabled().map_or(ROUND, |within| within / ROUNDS_WITHIN);
        let rounds = tokio::spawn(async move {
            let ticks = Box::pin(ticks(period));
            let alive = || {
                let phase = *now.borrow();
                tell(&of_round(phase, &summary(&asked, phase)));
            };
            feed(asked.threads(), ticks, alive).await;
        });
        Supervision { phase, gateway: gateway.clone(), rounds }
    }

    /// All groups are open, or are said to be unable, and clients and administrators may connect.
    pub(super) fn ready(&self) {
        // No watchdog is fed before this.
        tell(&[NotifyState::Ready, NotifyState::Status(&summary(&self.gateway, Phase::Serving))]);
        self.phase.send_replace(Phase::Serving);
    }

    /// For whoever hears that we are to stop.
    pub(super) fn stopping(&self) -> impl FnOnce() + Send + 'static {
        let phase = self.phase.clone();
        move || {
            phase.send_replace(Phase::Stopping);
            tell(&[NotifyState::Stopping, NotifyState::Status(STOPPING)]);
        }
    }

    /// Lets go of the gateway.
    pub(super) async fn end(self) {
        self.rounds.abort();
        // It was aborted, or had ended before.
        let _ = self.rounds.await;
    }
}

const STOPPING: &str = "stopping: sessions drain, journals are sealed";

fn summary(gateway: &Gateway, phase: Phase) -> String {
    let (groups, failed) = gateway.count_groups();
    let failed = match failed {
        0 => String::new(),
        failed => format!(" ({failed} of them could not be: see `afterimage status`)"),
    };
    match phase {
        Phase::Opening => format!("opening groups: {groups} so far{failed}"),
        Phase::Serving => {
            let clients = counted(gateway.threads().connections(), "client");
            format!("{} opened{failed}, {clients}", counted(groups, "group"))
        }
        Phase::Stopping => STOPPING.to_owned(),
    }
}

/// What is said when every data thread has answered.
fn of_round(phase: Phase, status: &str) -> Vec<NotifyState<'_>> {
    let micros = u32::try_from(EXTENSION.as_micros()).expect("minutes");
    let news = match phase {
        Phase::Opening => NotifyState::ExtendTimeoutUsec(micros),
        // A stop has its own limit, TimeoutStopSec=, which our own is shorter than.
        Phase::Serving | Phase::Stopping => NotifyState::Watchdog,
    };
    vec![news, NotifyState::Status(status)]
}

fn ticks(period: Duration) -> impl Stream<Item = ()> {
    let mut interval = tokio::time::interval(period.max(Duration::from_millis(1)));
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    futures::stream::unfold(interval, async |mut interval| {
        interval.tick().await;
        Some(((), interval))
    })
}

/// With each tick asks every data thread, and calls `alive` when all have answered. Ends when one has ended.
async fn feed<V: Volume + 'static>(
    threads: &DataThreads<V>,
    mut ticks: impl Stream<Item = ()> + Unpin,
    mut alive: impl FnMut(),
) {
    while ticks.next().await.is_some() {
        if threads.answer().await.is_err() {
            return;
        }
        alive();
    }
}

/// Says it, where somebody wants to know.
fn tell(news: &[NotifyState<'_>]) {
    static COMPLAINED: OnceLock<()> = OnceLock::new();
    let Some(place) = std::env::var_os(SOCKET_VARIABLE) else { return };
    let text: String = news.iter().map(|news| format!("{news}\n")).collect();
    if let Err(error) = send(&place, &text)
        && COMPLAINED.set(()).is_ok()
    {
        tracing::warn!(%error, "the service manager cannot be told how we are ({SOCKET_VARIABLE})");
    }
}

/// One datagram to a socket's path, or its abstract name. sd_notify's own would wait without bound for one who does not read.
fn send(place: &OsStr, text: &str) -> io::Result<()> {
    let address = match place.as_encoded_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(place)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(TELLING))?;
    socket.send_to_addr(text.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures::channel::mpsc;
    use futures::future::poll_immediate;

    use super::*;
    use crate::site::member::Member;
    use crate::site::{DataThreadsOptions, SessionLimits};
    use crate::storage::{BackendOptions, open_best};

    const THREADS: usize = 2;

    fn data_threads() -> DataThreads<Member> {
        let options = DataThreadsOptions { threads: THREADS, limits: SessionLimits::default() };
        DataThreads::start(options, |_| open_best(&BackendOptions::default()).map(|chosen| chosen.storage))
            .unwrap()
    }

    /// A timer would feed the watchdog of a gateway whose disks hang.
    #[test]
    fn a_data_thread_that_hangs_starves_the_watchdog() {
        let threads = data_threads();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (ticker, ticks) = mpsc::unbounded();
            let fed = Cell::new(0);
            let mut feeding = Box::pin(feed(&threads, ticks, || fed.set(fed.get() + 1)));
            let tick = || ticker.unbounded_send(()).unwrap();
            tick();
            while fed.get() == 0 {
                let _ = poll_immediate(&mut feeding).await;
                tokio::task::yield_now().await;
            }
            for hung in 0..THREADS {
                let before = fed.get();
                let (let_go, held) = std::sync::mpsc::channel::<()>();
                let (stuck, is_stuck) = tokio::sync::oneshot::channel();
                threads
                    .command(hung, move |_| {
                        stuck.send(()).unwrap();
                        let _ = held.recv();
                    })
                    .unwrap();
                is_stuck.await.unwrap();
                tick();
                tick();
                assert!(poll_immediate(&mut feeding).await.is_none());
                // The other has answered us, and so the question before ours.
                threads.call(1 - hung, |_| ()).unwrap().await.unwrap();
                assert!(poll_immediate(&mut feeding).await.is_none());
                assert_eq!(fed.get(), before, "thread {hung} hangs");
                drop(let_go);
                while fed.get() < before + 2 {
                    let _ = poll_immediate(&mut feeding).await;
                    tokio::task::yield_now().await;
                }
            }
        });
        threads.stop().unwrap();
    }

    #[test]
    fn a_service_manager_that_does_not_read_holds_nothing_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("told.sock");
        let listener = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1\n").unwrap();
        let mut bytes = [0; 64];
        assert_eq!(listener.recv(&mut bytes).unwrap(), 8);
        assert_eq!(&bytes[..8], b"READY=1\n");
        let refused = (0..100_000).find_map(|_| send(path.as_os_str(), "WATCHDOG=1\n").err());
        assert_eq!(refused.expect("its queue is full some time").kind(), io::ErrorKind::WouldBlock);
        let name = format!("afterimage-test-{}", std::process::id());
        let listener = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(OsStr::new(&format!("@{name}")), "READY=1\n").unwrap();
        assert_eq!(listener.recv(&mut bytes).unwrap(), 8);
    }

    #[test]
    fn an_opening_has_its_time_extended_and_whoever_serves_feeds_the_watchdog() {
        let said = |phase| of_round(phase, "so").iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(said(Phase::Opening), ["EXTEND_TIMEOUT_USEC=300000000", "STATUS=so"]);
        assert_eq!(said(Phase::Serving), ["WATCHDOG=1", "STATUS=so"]);
        assert_eq!(said(Phase::Stopping), ["WATCHDOG=1", "STATUS=so"], "a drain is no hang");
    }
}
