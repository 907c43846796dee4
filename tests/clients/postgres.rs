//! PostgreSQL with data and WAL on two disks of one group, under pgbench: at every recovery point it recovers, its
//! structures are sound, pgbench's sums agree, and every commit that was acknowledged before the point was asked for is
//! there, and none that was sent after it was granted. Needs root, and the user `postgres` that Debian's package makes.
//!
//! Both disks as of one point are what matters here: WAL that is older than the data it describes, or data that is
//! older than the WAL that was recycled, and PostgreSQL does not start.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use afterimage::env::{Environment, OsEnvironment};
use afterimage::random::Random;

use crate::gateway::{Gateway, PATIENCE};
use crate::mount::{Access, Attached};
use crate::tool;

const POINTS: usize = 10;
/// Commits between two points: a number drawn for each.
const COMMITS: std::ops::Range<u64> = 20..110;

const SETTINGS: &str = "listen_addresses = ''\nshared_buffers = 16MB\nmax_wal_size = 32MB\nmin_wal_size = 32MB\n\
                        checkpoint_timeout = 30s\nautovacuum = on\nfull_page_writes = on\nfsync = on\n";

/// All of pgbench's books, which must agree at any moment, and how many ledger entries there are up to which.
const AUDIT: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM \
                     pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches), (SELECT \
                     coalesce(sum(delta), 0) FROM pgbench_history), (SELECT count(*) FROM ledger), (SELECT \
                     coalesce(max(entry), 0) FROM ledger), (SELECT count(*) FROM pgbench_history)";

/// A program of the server's, run as the user that may run it.
fn program(name: &str) -> Command {
    let mut command = tool::command("runuser");
    command.args(["-u", "postgres", "--"]).arg(binaries().join(name)).current_dir("/");
    command
}

/// Where Debian keeps the server's programs; not in the path.
fn binaries() -> PathBuf {
    let versions =
        fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is missing: `tests/run` installs it");
    let mut versions: Vec<PathBuf> = versions.map(|entry| entry.expect("a name").path()).collect();
    versions.sort();
    versions.pop().expect("a version of PostgreSQL").join("bin")
}

#[track_caller]
fn says(command: &mut Command) -> String {
    let output = command.output().expect("timeout(1) is part of coreutils");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {errors}");
    String::from_utf8(output.stdout).expect("it prints UTF-8")
}

/// A running server; dropping it ends it at once, also when a test failed half-way.
struct Postmaster {
    cluster: PathBuf,
}

impl Postmaster {
    #[track_caller]
    fn start(cluster: &Path) -> Postmaster {
        let log = cluster.with_file_name("server.log");
        let mut start = program("pg_ctl");
        start.args(["start", "--wait", "--timeout=60", "--silent", "--options"]);
        start.arg(format!("-k {}", cluster.display())).arg("--log").arg(&log).arg("--pgdata").arg(cluster);
        let started = start.status().expect("timeout(1) is part of coreutils").success();
        assert!(started, "PostgreSQL does not start: {}", fs::read_to_string(&log).unwrap_or_default());
        Postmaster { cluster: cluster.to_owned() }
    }

    /// A client program, told where the server is.
    fn client(&self, name: &str) -> Command {
        let mut command = program(name);
        command.arg("--host").arg(&self.cluster).args(["--username", "postgres"]);
        command
    }

    #[track_caller]
    fn query(&self, text: &str) -> String {
        let mut psql = self.client("psql");
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--command", text]);
        says(&mut psql).trim().to_owned()
    }
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        let mut stop = program("pg_ctl");
        stop.args(["stop", "--wait", "--silent", "--mode=immediate", "--pgdata"]).arg(&self.cluster);
        // A server that is gone already says so, and nobody listens.
        let _ = stop.output();
    }
}

/// The group's two disks, mounted.
struct Disks {
    data: Attached,
    wal: Attached,
}

impl Disks {
    /// Attaches the exports of the disks whose names end with `suffix`.
    fn attach(gateway: &Gateway, suffix: &str) -> Disks {
        let attach = |disk: &str| {
            let export = format!("{disk}{suffix}");
            Attached::new(&gateway.path(&export), &gateway.uri(&format!("erp/{export}")), Access::ReadWrite)
        };
        Disks { data: attach("data"), wal: attach("wal") }
    }

    /// Mounts both; gives the directories of the cluster and of its WAL.
    fn mount(&mut self) -> (PathBuf, PathBuf) {
        (self.data.mount().join("cluster"), self.wal.mount().join("wal"))
    }

    fn detach(mut self) {
        for disk in [&mut self.data, &mut self.wal] {
            disk.unmount();
        }
        for disk in [self.data, self.wal] {
            tool::says("e2fsck", ["-f", "-n", disk.device()]);
            disk.detach();
        }
    }
}

/// Makes file systems on both disks and a cluster on them.
fn initialise(disks: &mut Disks) -> PathBuf {
    for disk in [&disks.data, &disks.wal] {
        tool::says("mkfs.ext4", ["-q", "-F", disk.device()]);
    }
    let (cluster, wal) = disks.mount();
    for directory in [&cluster, &wal] {
        tool::says("chown", ["postgres:".as_ref(), directory.parent().expect("a mount").as_os_str()]);
    }
    let mut initdb = program("initdb");
    initdb.args(["--data-checksums", "--auth=trust", "--username=postgres", "--waldir"]).arg(wal);
    says(initdb.arg("--pgdata").arg(&cluster));
    let file = cluster.join("postgresql.conf");
    let settings = fs::read_to_string(&file).expect("initdb wrote it") + SETTINGS;
    fs::write(file, settings).expect("the configuration");
    cluster
}

/// Commits entry after entry to the ledger, each once the one before was acknowledged; every acknowledgement is told.
struct Ledger {
    psql: Child,
    sent: Arc<AtomicU64>,
    acknowledged: Arc<AtomicU64>,
    commits: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Ledger {
    fn open(server: &Postmaster) -> Ledger {
        let mut psql = server.client("psql");
        psql.args(["--no-psqlrc", "--set=ON_ERROR_STOP=1"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut psql = psql.spawn().expect("timeout(1) is part of coreutils");
        let (mut to, from) = (psql.stdin.take().expect("a pipe"), psql.stdout.take().expect("a pipe"));
        let (sent, acknowledged) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (tell, commits) = sync_channel(1 << 20);
        let (sending, counted) = (Arc::clone(&sent), Arc::clone(&acknowledged));
        let thread = std::thread::spawn(move || {
            let mut replies = BufReader::new(from).lines();
            for entry in 1.. {
                sending.store(entry, Ordering::SeqCst);
                // When the server is stopped, psql ends, and so does this.
                let written = writeln!(to, "INSERT INTO ledger VALUES ({entry});").and_then(|()| to.flush());
                let reply = replies.next().and_then(Result::ok);
                if written.is_err() || reply.as_deref() != Some("INSERT 0 1") {
                    return;
                }
                counted.store(entry, Ordering::SeqCst);
                if tell.send(()).is_err() {
                    return;
                }
            }
        });
        Ledger { psql, sent, acknowledged, commits, thread }
    }

    /// Waits for so many more commits.
    #[track_caller]
    fn wait(&self, commits: u64) {
        for _ in 0..commits {
            self.commits.recv_timeout(PATIENCE).expect("commits go on");
        }
    }

    fn close(mut self) {
        drop(self.commits);
        self.thread.join().expect("it does not panic");
        self.psql.wait().expect("it is our child");
    }
}

/// Where the points lie; drawn, unless told.
fn seed() -> u64 {
    let told = std::env::var("AFTERIMAGE_SEED").ok();
    let drawn = OsEnvironment::new().random_u128() % u128::from(u64::MAX);
    told.map_or_else(
        || u64::try_from(drawn).expect("it is less"),
        |text| text.parse().expect("AFTERIMAGE_SEED is a number"),
    )
}

/// A point, and which of the ledger's entries must and may be in it.
struct Granted {
    label: String,
    entries: std::ops::RangeInclusive<u64>,
}

/// Makes points while pgbench and the ledger go on.
fn load(gateway: &Gateway, server: &Postmaster) -> Vec<Granted> {
    says(server.client("pgbench").args(["--initialize", "--quiet", "--scale=2", "postgres"]));
    server.query("CREATE EXTENSION amcheck; CREATE TABLE ledger (entry bigint PRIMARY KEY)");
    let mut pgbench = server.client("pgbench");
    pgbench.args(["--no-vacuum", "--client=4", "--time=150", "postgres"]);
    let mut pgbench = pgbench.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("timeout(1)");
    let work_began = || server.query("SELECT count(*) FROM pgbench_history") != "0";
    while !work_began() {
        assert_eq!(pgbench.try_wait().expect("our child"), None, "pgbench works");
    }
    let ledger = Ledger::open(server);
    let seed = seed();
    println!("AFTERIMAGE_SEED={seed}");
    let mut random = Random::new(seed);
    let mut points = Vec::new();
    for index in 0..POINTS {
        ledger.wait(COMMITS.start + random.below(COMMITS.end - COMMITS.start));
        let label = format!("under-load-{index}");
        let before = ledger.acknowledged.load(Ordering::SeqCst);
        gateway.says(&format!("point create erp --label {label}"));
        let after = ledger.sent.load(Ordering::SeqCst);
        points.push(Granted { label, entries: before..=after });
    }
    ledger.close();
    let mut stop = program("pg_ctl");
    says(stop.args(["stop", "--wait", "--silent", "--mode=fast", "--pgdata"]).arg(&server.cluster));
    // Its connections were cut, and that is how it ends.
    pgbench.wait().expect("it is our child");
    points
}

/// Opens a point by test failover, starts the server on it, and compares; how many of pgbench's transactions it holds.
fn audit(gateway: &Gateway, number: usize, point: &Granted) -> i64 {
    gateway.says(&format!("failover test erp --point {}", point.label));
    let mut disks = Disks::attach(gateway, &format!("@test-{number}"));
    let (cluster, wal) = disks.mount();
    // It leads to where the protected machine has its WAL disk.
    fs::remove_file(cluster.join("pg_wal")).expect("initdb made the link");
    symlink(wal, cluster.join("pg_wal")).expect("the file system has room");
    // They name a process of the protected machine; on another one nothing would have that number.
    for lock in ["postmaster.pid", ".s.PGSQL.5432.lock", ".s.PGSQL.5432"] {
        let _ = fs::remove_file(cluster.join(lock));
    }
    let server = Postmaster::start(&cluster);
    let books = server.query(AUDIT);
    let books: Vec<i64> = books.split('|').map(|sum| sum.parse().expect("a number")).collect();
    let [accounts, tellers, branches, history, entries, newest, transactions] = books[..] else {
        panic!("{books:?}")
    };
    assert_eq!([accounts, tellers, branches], [history; 3], "{}: pgbench's books disagree", point.label);
    assert_eq!(entries, newest, "{}: the ledger has a gap", point.label);
    let newest = u64::try_from(newest).expect("not negative");
    assert!(point.entries.contains(&newest), "{}: {newest} is not in {:?}", point.label, point.entries);
    says(server.client("pg_amcheck").args(["--heapallindexed", "--parent-check", "--database", "postgres"]));
    drop(server);
    disks.detach();
    gateway.says(&format!("failover cleanup erp --test {number} --yes"));
    transactions
}

#[test]
fn every_point_of_a_database_under_load_recovers() {
    let gateway = Gateway::start();
    // The server's user has to get through to the mounts.
    fs::set_permissions(gateway.path(""), Permissions::from_mode(0o711)).expect("our own directory");
    gateway.protect([("data", "384M"), ("wal", "192M")]);
    gateway.says("policy set erp --interval 500ms");
    let mut disks = Disks::attach(&gateway, "");
    let cluster = initialise(&mut disks);
    let server = Postmaster::start(&cluster);
    let points = load(&gateway, &server);
    drop(server);
    disks.detach();
    assert!(points.windows(2).all(|pair| pair[0].entries.start() < pair[1].entries.start()));
    let transactions: Vec<_> =
        points.iter().enumerate().map(|(index, point)| audit(&gateway, index + 1, point)).collect();
    let is_at_work = transactions.windows(2).all(|pair| pair[0] < pair[1]);
    assert!(is_at_work && transactions[0] > 0, "pgbench is at work before each point: {transactions:?}");
}
