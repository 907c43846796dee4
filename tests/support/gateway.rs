//! A gateway process for tests: the real program, in a directory of its own, spoken to by the real command line.
//!
//! It is ready when its API's socket takes a connection, and it says so in its log, which is what is waited for:
//! nothing here waits by the clock, but everything has a deadline. Dropping it kills it; the end of the log is
//! printed if the test failed.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use afterimage::env::{Environment, OsEnvironment};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, kill_process, pidfd_open, prlimit,
};
use serde_json::Value;
use tempfile::TempDir;

/// Nothing in these tests takes that long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of log that a failed test shows.
const LOG_LINES_SHOWN: usize = 40;

/// How a gateway is configured; what is not said here is left to its defaults.
#[derive(Clone, Debug)]
pub struct Setup {
    /// `[storage] backend`.
    pub backend: &'static str,
    /// What serves; the program that was built with the test unless said.
    pub program: Option<PathBuf>,
    /// Where the data directory is; in the gateway's own temporary directory unless said.
    pub data: Option<PathBuf>,
    /// `[nbd] connections_max`.
    pub connections_max: u32,
    /// `[api] connections_max`.
    pub api_connections_max: u32,
    /// `[nbd] buffers`.
    pub buffers: &'static str,
    /// `[nbd] buffers_total`.
    pub buffers_total: &'static str,
    /// What its address space may take, in KiB; no limit unless said.
    pub address_space_kib: Option<u64>,
    /// The hard limit on its open files, if not ours.
    pub descriptors: Option<u64>,
    /// What a file of its may have, in bytes; no limit unless said.
    pub file_bytes: Option<u64>,
    /// Whether it listens on a TCP port of its choice besides its unix socket.
    pub tcp: bool,
    /// Whether its API listens on a TCP port of its choice, and on a socket to read by, besides its own.
    pub api_tcp: bool,
    /// `[journal] size` and `segment_size`.
    pub journal: (&'static str, &'static str),
    /// Further tables.
    pub more: &'static str,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            backend: "auto",
            program: None,
            data: None,
            connections_max: 64,
            api_connections_max: 256,
            buffers: "64MiB",
            buffers_total: "1GiB",
            address_space_kib: None,
            descriptors: None,
            file_bytes: None,
            tcp: false,
            api_tcp: false,
            journal: ("256MiB", "8MiB"),
            more: "",
        }
    }
}

/// A gateway's directory, and its process while there is one.
pub struct Gateway {
    directory: TempDir,
    program: PathBuf,
    data: PathBuf,
    limits: String,
    process: Option<Running>,
}

struct Running {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Gateway {
    /// Starts one with the defaults of the tests.
    pub fn start() -> Gateway {
        Gateway::with(&Setup::default())
    }

    /// Starts one on a storage back end.
    pub fn on(backend: &'static str) -> Gateway {
        Gateway::with(&Setup { backend, ..Setup::default() })
    }

    /// Starts one.
    pub fn with(setup: &Setup) -> Gateway {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let data = setup.data.clone().unwrap_or_else(|| directory.path().join("data"));
        fs::create_dir_all(&data).expect("the data directory");
        let limit = |option: &str, limit: Option<u64>| {
            limit.map_or(String::new(), |n| format!("ulimit {option} {n}; "))
        };
        let file_blocks = setup.file_bytes.map(|bytes| bytes / 512);
        let limits = limit("-v", setup.address_space_kib)
            + &limit("-n", setup.descriptors)
            + &limit("-f", file_blocks);
        let program =
            setup.program.clone().unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_afterimage")));
        let mut gateway = Gateway { directory, program, data, limits, process: None };
        fs::write(gateway.configuration(), gateway.toml(setup)).expect("the configuration");
        gateway.restart();
        gateway
    }

    fn toml(&self, setup: &Setup) -> String {
        let socket = self.path("nbd.sock").display().to_string();
        let tcp = if setup.tcp { ", \"127.0.0.1:0\"" } else { "" };
        let api = match setup.api_tcp {
            true => format!("listen = [\"127.0.0.1:0\"]\nread_only_socket = {:?}\n", self.read_only_api()),
            false => String::new(),
        };
        format!(
            "[site]\nname = \"test\"\ndata_dir = {:?}\ndata_threads = 2\n\
             [nbd]\nlisten = [\"unix:{socket}\"{tcp}]\nconnections_max = {}\nbuffers = {:?}\nbuffers_total = {:?}\n\
             [api]\nsocket = {:?}\nconnections_max = {}\n{api}[storage]\nbackend = {:?}\n\
             [journal]\nsize = {:?}\nsegment_size = {:?}\n{}",
            self.data,
            setup.connections_max,
            setup.buffers,
            setup.buffers_total,
            self.api(),
            setup.api_connections_max,
            setup.backend,
            setup.journal.0,
            setup.journal.1,
            setup.more
        )
    }

    /// A name in the gateway's own directory, beside its data directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The configuration file.
    pub fn configuration(&self) -> PathBuf {
        self.path("afterimage.toml")
    }

    /// The API's socket.
    pub fn api(&self) -> PathBuf {
        self.path("api.sock")
    }

    /// The API's socket to read by.
    pub fn read_only_api(&self) -> PathBuf {
        self.path("read.sock")
    }

    /// The URL of the API's TCP port.
    pub fn api_url(&self) -> String {
        let line = self.logged("api=127.0.0.1:").pop().expect("its API listens on a TCP port");
        format!("http://{}", line.rsplit_once("api=").expect("the key").1.trim())
    }

    /// Starts the process, which must not be running, and waits until it serves.
    #[track_caller]
    pub fn restart(&mut self) {
        let mut command = self.serve();
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program");
        let lines = BufReader::new(child.stderr.take().expect("a pipe"));
        let (log, ready) = follow(lines);
        self.process = Some(Running { child, log });
        ready.recv_timeout(PATIENCE).expect("the gateway serves");
        UnixStream::connect(self.api()).expect("its API takes connections");
    }

    fn serve(&self) -> Command {
        assert!(self.process.is_none(), "the gateway is running");
        let mut command = Command::new("sh");
        // As carelessly as somebody may start it: what others may read is not for the umask to decide.
        let script = format!("umask 000; {}exec \"$0\" \"$@\"", self.limits);
        command.args(["-c", script.as_str()]).arg(&self.program);
        command.args(["serve", "--config"]).arg(self.configuration()).env("AFTERIMAGE_LOG", "info");
        command
    }

    /// Has it started from that program from now on: an upgrade.
    pub fn install(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// Has it started with that hard limit on its open files from now on.
    pub fn limit_descriptors(&mut self, descriptors: u64) {
        self.limits = format!("ulimit -n {descriptors}; ");
    }

    /// The one line that the process complains with; it must not serve.
    #[track_caller]
    pub fn refuses_to_serve(&self, status: i32) -> String {
        let output = self.serve().stdin(Stdio::null()).output().expect("the program");
        refusal(&output, status)
    }

    /// SIGTERM; it must end in good order.
    #[track_caller]
    pub fn terminate(&mut self) {
        let status = self.end(Signal::TERM, || ());
        assert!(status.success(), "SIGTERM ends it in good order: {status}");
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.end(Signal::KILL, || ());
    }

    /// kill -9 while the kernel keeps it at something, which `let_go` ends.
    pub fn kill_at_work(&mut self, let_go: impl FnOnce()) {
        self.end(Signal::KILL, let_go);
    }

    fn end(&mut self, signal: Signal, let_go: impl FnOnce()) -> ExitStatus {
        let process = self.process.as_mut().expect("the gateway is running");
        let id = Pid::from_child(&process.child);
        kill_process(id, signal).expect("it is our child");
        let_go();
        let status = wait(&mut process.child);
        self.process = None;
        status
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("the gateway is running").child.id()
    }

    /// Has the running process open files as long as it has fewer than that; gives what it could before.
    pub fn allow_descriptors(&self, descriptors: Option<u64>) -> Option<u64> {
        let process = self.process.as_ref().expect("the gateway is running");
        let id = Some(Pid::from_child(&process.child));
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit { current: descriptors, maximum };
        prlimit(id, Resource::Nofile, limit).expect("it is our child").current
    }

    /// The lines of its log that contain `fragment`.
    pub fn logged(&self, fragment: &str) -> Vec<String> {
        let log = &self.process.as_ref().expect("the gateway is running").log;
        let log = log.lock().expect("no reader panics");
        log.iter().filter(|line| line.contains(fragment)).cloned().collect()
    }

    /// The URI of an export on the unix socket.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.path("nbd.sock").display())
    }

    /// A block client's socket.
    pub fn connect(&self) -> UnixStream {
        let socket = UnixStream::connect(self.path("nbd.sock")).expect("it takes block clients");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out above zero");
        socket.set_write_timeout(Some(PATIENCE)).expect("a time-out above zero");
        socket
    }

    /// The address of the TCP port that it chose.
    pub fn tcp_address(&self) -> String {
        let line = self.logged("address=127.0.0.1:").pop().expect("it listens on a TCP port");
        line.rsplit_once("address=").expect("the key").1.trim().to_owned()
    }

    /// A command line to this gateway; words are separated by single spaces.
    pub fn cli(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_afterimage"));
        command.args(line.split(' ')).env("AFTERIMAGE_SOCKET", self.api()).stdin(Stdio::null());
        command
    }

    /// Starts a command; what it prints goes to pipes.
    pub fn start_cli(&self, line: &str) -> Child {
        self.cli(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program")
    }

    /// What `GET path` of the API answers.
    #[track_caller]
    pub fn api_get(&self, path: &str) -> Value {
        let mut socket = UnixStream::connect(self.api()).expect("its API takes connections");
        write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("it listens");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("it answers");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        serde_json::from_str(body).expect("it answers in JSON")
    }

    /// What becomes of a command.
    pub fn output(&self, line: &str) -> Output {
        self.cli(line).output().expect("the program")
    }

    /// What a command prints; it must succeed.
    #[track_caller]
    pub fn says(&self, line: &str) -> String {
        let output = self.output(line);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "afterimage {line}: {errors}");
        String::from_utf8(output.stdout).expect("it prints UTF-8")
    }

    /// What a command prints as JSON; it must succeed.
    #[track_caller]
    pub fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.says(&format!("{line} --json"))).expect("it prints JSON")
    }

    /// The one line that a command complains with; it must fail with that exit status.
    #[track_caller]
    pub fn refuses(&self, line: &str, status: i32) -> String {
        let output = self.output(line);
        refusal(&output, status)
    }

    /// Creates the group `erp` with disks of these sizes.
    #[track_caller]
    pub fn protect<const N: usize>(&self, disks: [(&str, &str); N]) {
        self.says("group create erp");
        for (disk, size) in disks {
            self.says(&format!("disk create erp/{disk} --size {size}"));
        }
    }

    /// What `status` says of the only group.
    #[track_caller]
    pub fn group_status(&self) -> Value {
        self.json("status")["groups"][0].clone()
    }

    /// Asks `status` again until it is so: each question is a round trip, nothing is waited for by the clock.
    #[track_caller]
    pub fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        until(what, || self.json("status"), is_so)
    }

    /// The same, of the API.
    #[track_caller]
    pub fn until_api(&self, path: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        until(what, || self.api_get(path), is_so)
    }
}

#[track_caller]
fn until(what: &str, ask: impl Fn() -> Value, is_so: impl Fn(&Value) -> bool) -> Value {
    let clock = OsEnvironment::new();
    let asked_first = clock.monotonic();
    loop {
        let answer = ask();
        if is_so(&answer) {
            return answer;
        }
        // Not a count: some questions take a fiftieth of what others do.
        let waited = Duration::from_nanos(clock.monotonic().0 - asked_first.0);
        assert!(waited < PATIENCE, "{what} did not come about: {answer:#}");
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have died, which is what the test then fails for.
            let _ = process.child.kill();
            let _ = process.child.wait();
            if std::thread::panicking() {
                let log = process.log.lock().expect("no reader panics");
                let from = log.len().saturating_sub(LOG_LINES_SHOWN);
                eprintln!("the gateway's log:\n{}", log[from..].join("\n"));
            }
        }
    }
}

/// Collects a log as it is written; the receiver hears when the gateway says that it serves.
fn follow(lines: impl BufRead + Send + 'static) -> (Arc<Mutex<Vec<String>>>, Receiver<()>) {
    let log = Arc::new(Mutex::new(Vec::new()));
    let (serves, ready) = channel();
    let kept = Arc::clone(&log);
    std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            let is_ready = line.contains("afterimage::site::serve: ready ");
            kept.lock().expect("no reader panics").push(line);
            if is_ready {
                // Nobody waits if the start was given up.
                let _ = serves.send(());
            }
        }
    });
    (log, ready)
}

/// Waits for a child's end, with a deadline.
#[track_caller]
pub fn wait(child: &mut Child) -> ExitStatus {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("it is our child");
    let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)).expect("a descriptor");
    assert_eq!(ended, 1, "a process did not end in time");
    child.wait().expect("it is our child")
}

/// The one line of a refusal, after the checks that hold for every one.
#[track_caller]
pub fn refusal(output: &Output, status: i32) -> String {
    let text = String::from_utf8(output.stderr.clone()).expect("it prints UTF-8");
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    assert!(text.starts_with("error: "), "{text}");
    text
}
