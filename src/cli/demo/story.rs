//! The demo from start to end: what happens, in order.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::api::Api;
use super::process::{GatewayProcess, JournalSize};
use super::report::{self, Compared, LoadMeasured, grouped, seconds};
use super::screen::Screen;
use crate::byte_size::ByteSize;
use crate::cli::attach::{Load as FioLoad, Place};
use crate::cli::failure::Failure;
use crate::control::model::{Disk, GroupStatus, Point};
use crate::control::name::Name;
use crate::counted::counted;
use crate::env::{Environment, OsEnvironment};
use crate::error::{Error, ErrorKind};
use crate::listen::{Endpoint, ListenAddress};
use crate::oracle::{Bounds, Clock, Counters, History, Image, Load, OnLoss, Running, Stamp, Target, judge};
use crate::random::Random;
use crate::units::{Lsn, MonotonicNanos, SECTOR_BYTES};

const GROUP: &str = "shop";
const DISKS: [&str; 2] = ["database", "log"];
const DISK_BYTES: u64 = 32 << 20;
const INTERVAL_MS: u64 = 500;
const CONNECTIONS: usize = 2;
const DEPTH: usize = 8;
/// Before the kill, and again after it.
const LOAD_FOR: Duration = Duration::from_secs(4);
const GLANCE: Duration = Duration::from_millis(100);
const JOURNAL: JournalSize = JournalSize { total: ByteSize(384 << 20), segment: ByteSize(32 << 20) };
/// What the directory may grow to: the journal, images and bases of both disks, and a delta for each of some twenty points,
/// none longer than both disks. Where writes are so fast that the journal ends intervals early, there are more and shorter ones.
const SPACE_BYTES: u64 = 2 << 30;
const LATEST: &str = "end-of-demo";

/// What is said of the demo's group at a moment, and between which stamps it was said: so a point's LSN tells which
/// writes it must hold and which it cannot.
struct Glance {
    before: Stamp,
    visible: Lsn,
    submitted: Lsn,
    after: Stamp,
}

/// Tells the whole story; process and directory go with the future unless they are kept.
pub async fn tell(keep: bool) -> Result<(), Failure> {
    let directory = tempfile::Builder::new()
        .prefix("afterimage-demo-")
        .tempdir()
        .map_err(|error| Error::io("creating a temporary directory", error))?;
    check_space(directory.path())?;
    let mut demo = Demo::start(directory.path()).await?;
    let clean = demo.run().await?;
    if keep {
        demo.gateway.untie().await?;
        demo.leave_running(&directory.keep())?;
    } else {
        demo.screen.say("The gateway is stopped and the directory removed; --keep would leave both.")?;
    }
    if clean {
        return Ok(());
    }
    Err(Error::corrupt("what was read differs from what was written: see above").into())
}

fn check_space(directory: &Path) -> Result<(), Failure> {
    let found = rustix::fs::statvfs(directory)
        .map_err(|error| Error::io("measuring the free space", error.into()).at_path(directory))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free >= SPACE_BYTES {
        return Ok(());
    }
    let text = format!(
        "{} has {} free, and the demo may need {}: set TMPDIR to a directory with more",
        directory.display(),
        ByteSize(free).approximate(),
        ByteSize(SPACE_BYTES).approximate()
    );
    Err(Error::new(ErrorKind::NoSpace, text).into())
}

struct Demo {
    gateway: GatewayProcess,
    api: Api,
    disks: Vec<Disk>,
    screen: Screen,
    random: Random,
    environment: OsEnvironment,
    clock: Arc<Clock>,
    history: History,
    glances: Vec<Glance>,
}

impl Demo {
    async fn start(directory: &Path) -> Result<Demo, Failure> {
        let binary = std::env::current_exe().map_err(|error| Error::io("finding our own binary", error))?;
        let mut gateway = GatewayProcess::new(&binary, directory, JOURNAL)?.tied();
        gateway.start()?;
        let status = gateway.ready().await?;
        let mut screen = Screen::new();
        let pid = gateway.id().unwrap_or_default();
        screen.say("Afterimage: continuous protection of disks, shown on two of them, with a crash\n")?;
        screen.step(&format!("a gateway process (pid {pid}) serves {}", directory.display()))?;
        let io = if status.storage.direct { ", O_DIRECT" } else { "" };
        screen.say(&format!("     its I/O: {}{io}", status.storage.backend))?;
        let api = Api::new(gateway.client(), name(GROUP)?);
        api.create(true).await?;
        api.set_interval(INTERVAL_MS).await?;
        let mut disks = Vec::new();
        for disk in DISKS {
            disks.push(api.create_disk(name(disk)?, DISK_BYTES).await?);
        }
        screen.step(&format!(
            "group {GROUP} has the disks {}, {} each, and a recovery point of both every {INTERVAL_MS} ms",
            DISKS.join(" and "),
            ByteSize(DISK_BYTES)
        ))?;
        let environment = OsEnvironment::new();
        let seed = environment.random_u128().to_le_bytes();
        let [seed, run] =
            [&seed[..8], &seed[8..]].map(|half| u64::from_le_bytes(half.try_into().expect("eight bytes")));
        let history = History::new(run, vec![DISK_BYTES / SECTOR_BYTES; DISKS.len()]);
        Ok(Demo {
            gateway,
            api,
            disks,
            screen,
            random: Random::new(seed),
            environment,
            clock: Arc::default(),
            history,
            glances: Vec::new(),
        })
    }

    /// Whether all was as it must be.
    async fn run(&mut self) -> Result<bool, Failure> {
        let (measured, crash) = self.load_and_kill().await?;
        let problems = problems(&measured);
        let latest_bounds = Bounds { holds_before: self.clock.stamp(), nothing_after: Stamp::END };
        let label = LATEST.parse().map_err(Failure::Failed)?;
        let latest = self.api.create_point(Some(label)).await?;
        let points = self.api.points().await?;
        let chosen = self.choose(&points, &latest, crash);
        self.screen.step(&format!(
            "the load has ended: of {} recovery points the latest and two random older ones are opened by test failover, \
             and every block of both disks is compared with what the clients know",
            points.len()
        ))?;
        let now = self.environment.wall();
        let mut compared = vec![self.compare_point(&latest, latest_bounds, Duration::ZERO).await?];
        for point in &chosen {
            let age = u64::try_from(now.0.saturating_sub(point.time.0)).unwrap_or(0);
            let bounds = self.bounds(point);
            compared.push(self.compare_point(point, bounds, Duration::from_nanos(age)).await?);
        }
        compared.push(self.compare_disks(latest_bounds).await?);
        self.screen.say(&format!("\n{}\n{}", report::load(&measured), report::compared(&compared)))?;
        self.tell_result(&compared, &problems)
    }

    fn tell_result(&mut self, compared: &[Compared], problems: &[String]) -> Result<bool, Failure> {
        for one in compared.iter().filter(|one| !one.verdict.is_clean()) {
            self.screen.say(&format!("{}: {}", one.what, one.verdict))?;
        }
        for problem in problems {
            self.screen.say(&format!("PROBLEM: {problem}"))?;
        }
        let clean = problems.is_empty() && compared.iter().all(|one| one.verdict.is_clean());
        if clean {
            let blocks: u64 = compared.iter().map(|one| one.verdict.sectors).sum();
            self.screen.say(&format!(
                "All {} blocks are as they must be: no acknowledged write was lost, no point holds a later write \
                 without all that came before it, on both disks at once.",
                grouped(blocks)
            ))?;
        }
        Ok(clean)
    }

    /// Writes, kills the gateway in the middle, and goes on; says at which LSN it was killed.
    async fn load_and_kill(&mut self) -> Result<(LoadMeasured, Lsn), Failure> {
        let load = Load {
            gateway: ListenAddress::Unix(self.gateway.nbd_socket()),
            run: self.history.run(),
            seed: self.random.next(),
            targets: self.targets(),
            connections: CONNECTIONS,
            depth: DEPTH,
            on_loss: OnLoss::Reconnect,
        };
        self.screen.step(&format!(
            "{} NBD clients write to them; each block tells its disk, place and number",
            CONNECTIONS * DISKS.len()
        ))?;
        let running = load.start(&self.clock);
        let start = self.environment.monotonic();
        self.watch(&running).await?;
        let crash = self.glances.last().map_or(Lsn::ZERO, |glance| glance.submitted);
        let killed = self.environment.monotonic();
        self.gateway.kill();
        self.history.add_death(self.clock.stamp());
        let before = running.counters();
        self.screen.step(&format!(
            "kill -9: the gateway is dead, {} acknowledged writes old; the clients' connections are lost",
            grouped(before.operations)
        ))?;
        let started = self.environment.monotonic();
        self.gateway.start()?;
        self.gateway.ready().await?;
        let restart = self.since(started);
        let down = self.first_answer(&running, before, killed).await?;
        self.screen.step(&format!(
            "started again: it read its journal and served after {}; the clients reconnected and go on",
            seconds(restart)
        ))?;
        self.watch(&running).await?;
        let outcome = running.finish();
        let busy = self.since(start).saturating_sub(down);
        self.history.add(outcome.operations.iter().copied());
        Ok((LoadMeasured { outcome, busy, restart }, crash))
    }

    fn targets(&self) -> Vec<Target> {
        let target =
            |disk: &Disk| Target { export: disk.export.clone(), sectors: disk.size_bytes / SECTOR_BYTES };
        self.disks.iter().map(target).collect()
    }

    /// How long after `killed` a client had an answer again.
    async fn first_answer(
        &self,
        running: &Running,
        before: Counters,
        killed: MonotonicNanos,
    ) -> Result<Duration, Failure> {
        const PATIENCE: Duration = Duration::from_secs(30);
        while running.counters() == before {
            if self.since(killed) > PATIENCE {
                return Err(Error::new(ErrorKind::Io, "no client had an answer after the restart").into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(self.since(killed))
    }

    fn since(&self, start: MonotonicNanos) -> Duration {
        Duration::from_nanos(self.environment.monotonic().0 - start.0)
    }

    /// Shows the load at work.
    async fn watch(&mut self, running: &Running) -> Result<(), Failure> {
        let start = self.environment.monotonic();
        let mut shown = (start, running.counters());
        let mut ticks = tokio::time::interval(GLANCE);
        while self.since(start) < LOAD_FOR {
            ticks.tick().await;
            let before = self.clock.stamp();
            let status = self.api.status().await?;
            let after = self.clock.stamp();
            if let Some(lsn) = status.lsn {
                self.glances.push(Glance { before, visible: lsn.visible, submitted: lsn.submitted, after });
            }
            let (since, counted) = (self.since(shown.0), running.counters());
            if since >= Duration::from_millis(400) {
                self.screen.live(&live_line(&status, shown.1, counted, since))?;
                shown = (self.environment.monotonic(), counted);
            }
        }
        Ok(())
    }

    /// A random point from before the crash and one from after it; where there is none, two of the others.
    fn choose(&mut self, points: &[Point], latest: &Point, crash: Lsn) -> Vec<Point> {
        let older = points.iter().filter(|point| point.lsn < latest.lsn);
        let (mut before, mut after): (Vec<&Point>, Vec<&Point>) = older.partition(|point| point.lsn <= crash);
        self.random.shuffle(&mut before);
        self.random.shuffle(&mut after);
        let mut all = Vec::new();
        all.extend(before.first());
        all.extend(after.first());
        all.extend(before.get(1));
        all.extend(after.get(1));
        all.into_iter().take(2).cloned().collect()
    }

    /// What a point must hold and cannot hold, by what the gateway had said of its LSNs.
    fn bounds(&self, point: &Point) -> Bounds {
        let held = self.glances.iter().filter(|glance| glance.visible <= point.lsn);
        let later = self.glances.iter().filter(|glance| glance.submitted >= point.lsn);
        Bounds {
            holds_before: held.map(|glance| glance.before).max().unwrap_or(Stamp::START),
            nothing_after: later.map(|glance| glance.after).min().unwrap_or(Stamp::END),
        }
    }

    async fn compare_point(
        &mut self,
        point: &Point,
        bounds: Bounds,
        age: Duration,
    ) -> Result<Compared, Failure> {
        let start = self.environment.monotonic();
        let what = format!("point {:.8}", point.id.to_string());
        self.screen.live(&format!("{what} is opened and read"))?;
        let test = self.api.start_test(point.id).await?;
        let opened = self.since(start);
        let exports = DISKS.iter().map(|disk| {
            let export = test.exports.iter().find(|export| export.disk.as_str() == *disk);
            export.map(|export| export.export.clone())
        });
        let exports: Option<Vec<String>> = exports.collect();
        let exports = exports.ok_or_else(|| Error::corrupt(format!("{what} lacks a disk")))?;
        let mut compared = self.compare(what, exports, bounds).await?;
        (compared.age, compared.opened) = (Some(age), Some(opened));
        self.api.end_test(&test).await?;
        Ok(compared)
    }

    async fn compare_disks(&mut self, bounds: Bounds) -> Result<Compared, Failure> {
        self.screen.live("the disks themselves are read")?;
        let exports = self.disks.iter().map(|disk| disk.export.clone()).collect();
        self.compare("the disks now".to_owned(), exports, bounds).await
    }

    /// Reads and judges one state of both disks, away from the thread that watches for signals.
    async fn compare(
        &mut self,
        what: String,
        exports: Vec<String>,
        bounds: Bounds,
    ) -> Result<Compared, Failure> {
        let start = self.environment.monotonic();
        let socket = self.gateway.nbd_socket();
        let history = std::mem::replace(&mut self.history, History::new(0, Vec::new()));
        let (history, judged) = tokio::task::spawn_blocking(move || {
            let images: crate::error::Result<Vec<Image>> = exports
                .iter()
                .enumerate()
                .map(|(disk, export)| Image::of_export(&history, disk, &socket, export))
                .collect();
            let verdict = images.map(|images| judge(&history, &images, bounds));
            (history, verdict)
        })
        .await
        .expect("reading and judging do not panic");
        self.history = history;
        Ok(Compared { what, age: None, opened: None, read: self.since(start), verdict: judged? })
    }

    /// Says how to use what stays, and lets it.
    fn leave_running(self, directory: &Path) -> Result<(), Failure> {
        let Demo { gateway, mut screen, disks, .. } = self;
        let endpoint = Endpoint::new(ListenAddress::Unix(gateway.nbd_socket()), false);
        let place =
            |disk: usize| Place { disk: &disks[disk], endpoint: &endpoint, credentials: Path::new("") };
        let binary = std::env::current_exe().map_err(|error| Error::io("finding our own binary", error))?;
        let text = format!(
            "The gateway runs on (pid {pid}): a recovery point every {INTERVAL_MS} ms while somebody writes.\n\n\
             attach QEMU:  qemu-system-x86_64 … {database}\n\
             or fio:       {log}\n\
             look at it:   export AFTERIMAGE_SOCKET={socket}\n              \
             {binary} status --watch\n              \
             {binary} point list {GROUP}\n              \
             {binary} failover test {GROUP} --point latest\n\
             end it:       kill {pid} && tail --pid={pid} -f /dev/null && rm -r {directory}",
            pid = gateway.id().unwrap_or_default(),
            binary = binary.display(),
            database = place(0).qemu(),
            log = place(1).fio(FioLoad::Writes),
            socket = gateway.api_socket().display(),
            directory = directory.display(),
        );
        gateway.keep();
        screen.say(&text)
    }
}

/// What the load met that no gateway should do.
fn problems(measured: &LoadMeasured) -> Vec<String> {
    let outcome = &measured.outcome;
    let mut problems = Vec::new();
    if let Some(refused) = outcome.refused.first() {
        let count = counted(outcome.refused.len(), "request");
        problems.push(format!("refused: {count}, the first with {refused:?}"));
    }
    let connections = CONNECTIONS * DISKS.len();
    if outcome.lost.len() > connections {
        let last = &outcome.lost[outcome.lost.len() - 1];
        problems.push(format!(
            "lost: {}, of which the kill explains {connections}; the last: {last}",
            counted(outcome.lost.len(), "connection")
        ));
    }
    problems
}

#[allow(clippy::cast_precision_loss)]
fn live_line(status: &GroupStatus, before: Counters, now: Counters, since: Duration) -> String {
    let a_second = |amount: u64| amount as f64 / since.as_secs_f64();
    let age = status.newest_point.map_or("none yet".to_owned(), |point| {
        format!("{:.1} s ago", Duration::from_millis(point.age_ms).as_secs_f64())
    });
    format!(
        "{:>7} writes/s  {:>6.1} MB/s  journal {:>9}  points {:>3}  newest {age}",
        format!("{:.0}", a_second(now.operations - before.operations)),
        a_second(now.bytes - before.bytes) / 1e6,
        ByteSize(status.journal.map_or(0, |journal| journal.used_bytes)).approximate().to_string(),
        status.history.points.unwrap_or_default(),
    )
}

fn name(text: &str) -> Result<Name, Failure> {
    text.parse().map_err(|error: crate::control::name::NameError| Failure::Failed(error.into()))
}
