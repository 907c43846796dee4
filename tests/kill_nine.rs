//! The gateway as a process, killed without warning again and again, with the oracle outside of it.
//!
//! Each round loads three disks over several connections, sends SIGKILL at a random moment, starts the gateway again,
//! sometimes kills it once more while it recovers, and reads everything back over NBD: what was acknowledged must be
//! there, and what is there must be a prefix of the order in which it was asked for, over all disks. Now and then a
//! recovery point is made under load, and judged by test failover or restore.
//!
//! `AFTERIMAGE_KILL_ROUNDS` sets the number of rounds, `AFTERIMAGE_SEED` the seed, which is printed. The seed decides
//! the requests and the moments; how they interleave is the machine's.
#![cfg(feature = "server")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use afterimage::byte_size::ByteSize;
use afterimage::cli::Failure;
use afterimage::cli::demo::{Api, GatewayProcess, JournalSize};
use afterimage::control::model::{Disk, Point};
use afterimage::env::{Environment, OsEnvironment};
use afterimage::listen::ListenAddress;
use afterimage::oracle::{
    Bounds, Clock, Effect, Found, History, Image, Load, OnLoss, Operation, Outcome, Running, Stamp, Target,
    Verdict, judge,
};
use afterimage::random::Random;

const DISKS: usize = 3;
const DISK_BYTES: u64 = 16 << 20;
const CONNECTIONS: usize = 2;
const DEPTH: usize = 12;
const INTERVAL_MS: u64 = 150;
const ROUNDS: u64 = 12;
/// Small, so that segments are switched and recycled, and the limit is met.
const JOURNAL: JournalSize = JournalSize { total: ByteSize(64 << 20), segment: ByteSize(4 << 20) };
/// A load that does nothing for so long has failed.
const PROGRESS_WITHIN: Duration = Duration::from_secs(30);

/// A gateway under test, and all that is known of it from outside.
struct Trial {
    // Before the directory: the process ends first.
    gateway: GatewayProcess,
    directory: tempfile::TempDir,
    api: Api,
    disks: Vec<Disk>,
    clock: Arc<Clock>,
    history: History,
    random: Random,
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

#[track_caller]
fn done<T>(result: Result<T, Failure>) -> T {
    result.unwrap_or_else(|failure| panic!("{failure}"))
}

impl Trial {
    async fn start() -> Trial {
        let trial = Trial::start_with(true).await;
        done(trial.api.set_interval(INTERVAL_MS).await);
        trial
    }

    async fn start_with(points: bool) -> Trial {
        let drawn =
            u64::from_le_bytes(OsEnvironment::new().random_u128().to_le_bytes()[..8].try_into().unwrap());
        let seed = number("AFTERIMAGE_SEED").unwrap_or(drawn);
        println!("AFTERIMAGE_SEED={seed}");
        let directory = tempfile::tempdir().unwrap();
        let binary = Path::new(env!("CARGO_BIN_EXE_afterimage"));
        let mut gateway = GatewayProcess::new(binary, directory.path(), JOURNAL).unwrap();
        gateway.start().unwrap();
        gateway.ready().await.unwrap();
        let api = Api::new(gateway.client(), "trial".parse().unwrap());
        done(api.create(points).await);
        let mut disks = Vec::new();
        for disk in 0..DISKS {
            disks.push(done(api.create_disk(format!("disk-{disk}").parse().unwrap(), DISK_BYTES).await));
        }
        let history = History::new(drawn, vec![DISK_BYTES / 512; DISKS]);
        let random = Random::new(seed);
        Trial { gateway, directory, api, disks, clock: Arc::default(), history, random }
    }

    fn load(&mut self) -> Running {
        let target = |disk: &Disk| Target { export: disk.export.clone(), sectors: disk.size_bytes / 512 };
        let load = Load {
            gateway: ListenAddress::Unix(self.gateway.nbd_socket()),
            run: self.history.run(),
            seed: self.random.next(),
            targets: self.disks.iter().map(target).collect(),
            connections: CONNECTIONS,
            depth: DEPTH,
            on_loss: OnLoss::End,
        };
        load.start(&self.clock)
    }

    /// Waits until `more` operations were acknowledged.
    async fn acknowledged(&self, running: &Running, more: u64) {
        let goal = running.counters().operations + more;
        let clock = OsEnvironment::new();
        while running.counters().operations < goal {
            assert!(
                u128::from(clock.monotonic().0) < PROGRESS_WITHIN.as_nanos(),
                "the gateway stopped answering writes"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Kills the gateway, and takes what its clients know.
    fn kill(&mut self, running: Option<Running>) {
        self.gateway.kill();
        self.history.add_death(self.clock.stamp());
        if let Some(mut running) = running {
            self.take(running.join());
        }
    }

    fn take(&mut self, outcome: Outcome) {
        assert!(outcome.refused.is_empty(), "refused: {:?}", outcome.refused);
        self.history.add(outcome.operations);
    }

    /// Starts the gateway; `interrupted` kills it first so many times while it recovers.
    async fn recover(&mut self, interrupted: u64) {
        for _ in 0..interrupted {
            self.gateway.start().unwrap();
            // No synchronisation: a moment at which to kill, anywhere between the first instruction and serving.
            tokio::time::sleep(Duration::from_micros(self.random.below(60_000))).await;
            self.kill(None);
        }
        self.gateway.start().unwrap();
        self.gateway.ready().await.unwrap();
    }

    /// What the disks hold; nobody may be writing.
    fn read_disks(&self) -> Vec<Image> {
        let exports: Vec<String> = self.disks.iter().map(|disk| disk.export.clone()).collect();
        self.read_exports(&exports)
    }

    fn read_exports(&self, exports: &[String]) -> Vec<Image> {
        let socket = self.gateway.nbd_socket();
        let read = |(disk, export): (usize, &String)| {
            Image::of_export(&self.history, disk, &socket, export).unwrap_or_else(|error| panic!("{error}"))
        };
        exports.iter().enumerate().map(read).collect()
    }

    /// Everything acknowledged so far.
    fn all(&self) -> Bounds {
        Bounds { holds_before: self.clock.stamp(), nothing_after: Stamp::END }
    }

    fn judge(&self, images: &[Image], bounds: Bounds) -> Verdict {
        judge(&self.history, images, bounds)
    }

    #[track_caller]
    fn check(&mut self, what: &str, images: &[Image], bounds: Bounds) {
        let verdict = self.judge(images, bounds);
        if !verdict.is_clean() {
            println!("the gateway's log: {}", std::fs::read_to_string(self.gateway.log()).unwrap());
        }
        assert!(verdict.is_clean(), "{what}: {verdict}");
    }

    /// A point made while others write, and the bounds that its making sets.
    async fn point(&self) -> (Point, Bounds) {
        let holds_before = self.clock.stamp();
        let point = done(self.api.create_point(None).await);
        (point, Bounds { holds_before, nothing_after: self.clock.stamp() })
    }

    async fn read_by_test_failover(&self, point: &Point) -> Vec<Image> {
        let test = done(self.api.start_test(point.id).await);
        let export = |disk: &Disk| {
            let export = test.exports.iter().find(|export| export.disk == disk.name);
            export.expect("a test failover has every disk").export.clone()
        };
        let exports: Vec<String> = self.disks.iter().map(export).collect();
        let images = self.read_exports(&exports);
        done(self.api.end_test(&test).await);
        images
    }

    async fn read_by_restore(&self, point: &Point) -> Vec<Image> {
        let directory = self.directory.path().join("restored");
        done(self.api.restore(point.id, &directory).await);
        let file = |(disk, one): (usize, &Disk)| {
            Image::of_file(&self.history, disk, &directory.join(format!("{}.raw", one.name))).unwrap()
        };
        self.disks.iter().enumerate().map(file).collect()
    }

    fn image_path(&self, disk: usize) -> std::path::PathBuf {
        let id = self.disks[disk].id;
        let groups: Vec<_> = std::fs::read_dir(self.gateway.data().join("groups")).unwrap().collect();
        let [group] = &groups[..] else { panic!("one group: {groups:?}") };
        group.as_ref().unwrap().path().join("images").join(format!("{id}.raw"))
    }

    fn read_raw_images(&self) -> Vec<Image> {
        (0..DISKS).map(|disk| Image::of_file(&self.history, disk, &self.image_path(disk)).unwrap()).collect()
    }

    /// Loads, kills, recovers, compares; every third round with a recovery point.
    async fn round(&mut self, round: u64) {
        let running = self.load();
        let before = self.random.below(4000);
        self.acknowledged(&running, before).await;
        let mut point = None;
        if round % 3 == 1 {
            point = Some(self.point().await);
            let more = self.random.below(2000);
            self.acknowledged(&running, more).await;
        }
        self.kill(Some(running));
        let bounds = self.all();
        let interrupted = self.random.below(3);
        self.recover(interrupted).await;
        let images = self.read_disks();
        self.check(&format!("round {round}, after {interrupted} more kills"), &images, bounds);
        if let Some((point, bounds)) = point {
            let (how, images) = if self.random.chance(1, 2) {
                ("test failover", self.read_by_test_failover(&point).await)
            } else {
                ("restore", self.read_by_restore(&point).await)
            };
            self.check(&format!("round {round}, the point by {how}"), &images, bounds);
        }
        if round % 4 == 2 {
            // What once was read stays: no write in doubt may come or go later.
            self.kill(None);
            self.recover(1).await;
            assert!(self.read_disks() == images, "round {round}: the disks changed while nobody wrote");
        }
        println!("round {round}: {} operations so far", self.history.operations().len());
    }

    /// SIGTERM under no load: afterwards the raw images alone are the disks.
    async fn clean_stop(&mut self) {
        let running = self.load();
        self.acknowledged(&running, 2000).await;
        let outcome = running.finish();
        assert!(outcome.lost.is_empty(), "nobody killed it: {:?}", outcome.lost);
        self.take(outcome);
        let bounds = self.all();
        let served = self.read_disks();
        let status = self.gateway.stop().await.unwrap();
        assert!(status.success(), "{status}");
        self.history.add_death(self.clock.stamp());
        let raw = self.read_raw_images();
        self.check("raw images after a clean stop", &raw, bounds);
        assert!(raw == served, "the raw images are what was served");
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_however_often_the_gateway_is_killed() {
    let mut trial = Trial::start().await;
    let rounds = number("AFTERIMAGE_KILL_ROUNDS").unwrap_or(ROUNDS);
    for round in 0..rounds {
        trial.round(round).await;
        if round == rounds / 2 {
            trial.clean_stop().await;
            trial.recover(0).await;
        }
    }
    let report = done(trial.api.verify_vault().await);
    assert!(report.faults.is_empty() && report.blobs > 0, "{report:?}");
    let points = done(trial.api.points().await);
    println!("{} points, {} blobs verified", points.len(), report.blobs);
    let oldest = points.first().expect("points were made");
    let images = trial.read_by_test_failover(oldest).await;
    trial.check("the oldest point", &images, Bounds::ANY);
}

/// The same where no recovery point needs the journal: its segments are used again as soon as images have them.
#[tokio::test]
async fn nothing_acknowledged_is_lost_of_a_group_without_points() {
    let mut trial = Trial::start_with(false).await;
    // Those in which no point is asked for.
    for round in [0, 2, 3, 5, 6] {
        trial.round(round).await;
    }
    trial.clean_stop().await;
    trial.recover(0).await;
    assert!(done(trial.api.points().await).is_empty());
    assert_eq!(done(trial.api.verify_vault().await).blobs, 0);
}

/// SIGTERM while clients write: they are told, and what they were told before is in the images.
#[tokio::test]
async fn a_stop_under_load_keeps_what_was_acknowledged() {
    let mut trial = Trial::start().await;
    let mut running = trial.load();
    trial.acknowledged(&running, 3000).await;
    let status = trial.gateway.stop().await.unwrap();
    assert!(status.success(), "{status}");
    trial.history.add_death(trial.clock.stamp());
    trial.take(running.join());
    let bounds = trial.all();
    let raw = trial.read_raw_images();
    trial.check("raw images after a stop under load", &raw, bounds);
    trial.recover(1).await;
    assert!(trial.read_disks() == raw, "what is served after the start is what the images hold");
}

/// The loop must be able to fail: one altered byte and one write that is taken back are both told, and neither is served.
#[tokio::test]
async fn what_is_altered_behind_the_gateway_is_told() {
    use std::os::unix::fs::FileExt;
    let mut trial = Trial::start().await;
    let running = trial.load();
    trial.acknowledged(&running, 3000).await;
    trial.take(running.finish());
    let bounds = trial.all();
    trial.gateway.stop().await.unwrap();
    trial.history.add_death(trial.clock.stamp());
    let written = |write: &&Operation| write.effect == Effect::Write;
    let images = trial.read_raw_images();
    let found = |write: &&Operation| {
        let first = usize::try_from(write.range.start).unwrap();
        images[write.disk].sectors[first] == Found::Write(write.issued)
    };
    let operations = trial.history.operations();
    // Where zeros may have come behind the write, zeros are no violation.
    let zeroed = |write: &&Operation| {
        let sector = write.range.start;
        let is_zero = |other: &&Operation| {
            other.effect == Effect::Zero
                && (other.disk, (other.range.start..other.range.end).contains(&sector)) == (write.disk, true)
        };
        operations.iter().filter(is_zero).any(|zero| !zero.acknowledged_before(write.issued))
    };
    let mut newest = operations.iter().rev().filter(written).filter(found).filter(|write| !zeroed(write));
    let (altered, lost) = (*newest.next().unwrap(), *newest.next().unwrap());
    for (write, is_lost) in [(altered, false), (lost, true)] {
        let file =
            std::fs::File::options().read(true).write(true).open(trial.image_path(write.disk)).unwrap();
        let (mut sector, at) = ([0; 512], write.range.byte_offset());
        file.read_exact_at(&mut sector, at).unwrap();
        match is_lost {
            true => sector = [0; 512],
            // Whatever stands there, it is another then.
            false => sector[300] ^= 0xff,
        }
        file.write_all_at(&sector, at).unwrap();
    }
    let verdict = trial.judge(&trial.read_raw_images(), bounds);
    let text = verdict.to_string();
    assert_eq!(verdict.violations_count, 2, "{text}");
    for (write, what) in [(altered, "a torn or altered sector of write"), (lost, "found zeros")] {
        let place = format!("disk {} at byte {}", write.disk, write.range.byte_offset());
        assert!(text.contains(&place) && text.contains(what), "`{place}`, `{what}` in: {text}");
    }
    // Clients get neither.
    trial.recover(0).await;
    for write in [altered, lost] {
        let (socket, export) = (trial.gateway.nbd_socket(), &trial.disks[write.disk].export);
        let read = Image::of_export(&trial.history, write.disk, &socket, export);
        let refusal = read.expect_err("refused").to_string();
        assert!(refusal.contains("the device failed"), "{refusal}");
    }
}
