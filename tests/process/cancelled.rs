//! Ctrl-C at a job: it ends in the gateway too, and nothing of it stays. The file system that it writes to is frozen
//! meanwhile, so that it is at work for as long as the test wants. Needs root.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Child;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::content::{files, sparse_file};
use crate::freeing::is_reserve;
use crate::gateway::{Gateway, wait};
use crate::small_file_system::SmallFileSystem;
use crate::tool;

const INTERRUPTED: Option<i32> = Some(130);

/// A command that makes the gateway work, and the lines that it complains with.
struct AtWork {
    client: Child,
    lines: BufReader<std::process::ChildStderr>,
}

impl AtWork {
    #[track_caller]
    fn start(gateway: &Gateway, line: &str) -> AtWork {
        let mut client = gateway.start_cli(line);
        let lines = BufReader::new(client.stderr.take().expect("a pipe"));
        gateway.until_api("/v1/jobs", "a running job", |jobs| newest(jobs) == "running");
        AtWork { client, lines }
    }

    fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.client), signal).expect("it is our child");
    }

    /// Sends a signal, and waits until it says that the job is cancelled.
    #[track_caller]
    fn cancel(&mut self, signal: Signal) {
        self.send(signal);
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a pipe");
        assert!(line.contains("cancelled, ending; interrupt again"), "{line}");
    }

    #[track_caller]
    fn end(mut self) -> String {
        let status = wait(&mut self.client);
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).expect("a pipe");
        assert_eq!(status.code(), INTERRUPTED, "{rest}");
        assert!(rest.starts_with("error: interrupted: ") && rest.lines().count() == 1, "{rest}");
        rest
    }
}

/// How the newest job stands.
fn newest(jobs: &Value) -> Value {
    jobs.as_array().and_then(|jobs| jobs.last()).map_or(Value::Null, |job| job["state"].clone())
}

/// A gateway with a point of 16 MiB in one disk.
fn protected() -> Gateway {
    let gateway = Gateway::start();
    gateway.protect([("db", "64M")]);
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 1 0 16M", &gateway.uri("erp/db")]);
    gateway.says("point create erp --label filled");
    gateway
}

fn restore_to(directory: &Path) -> String {
    format!("restore erp --point filled --to {}", directory.display())
}

#[test]
fn a_restore_ends_with_its_client() {
    let gateway = protected();
    let small = SmallFileSystem::new();
    let directory = small.path("restored");
    for signal in [Signal::INT, Signal::TERM] {
        let frozen = small.freeze();
        let mut restore = AtWork::start(&gateway, &restore_to(&directory));
        restore.cancel(signal);
        assert_eq!(newest(&gateway.api_get("/v1/jobs")), "running", "it waits for the file system");
        drop(frozen);
        let told = restore.end();
        assert!(told.contains("nothing of it is left"), "{told}");
        assert_eq!(newest(&gateway.api_get("/v1/jobs")), "cancelled");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "no partial file");
    }
    gateway.says(&restore_to(&directory));
    assert!(directory.join("db.raw").exists(), "it can be done again");
}

#[test]
fn a_second_ctrl_c_leaves_at_once() {
    let gateway = protected();
    let small = SmallFileSystem::new();
    let directory = small.path("restored");
    let frozen = small.freeze();
    let mut restore = AtWork::start(&gateway, &restore_to(&directory));
    restore.cancel(Signal::INT);
    restore.send(Signal::INT);
    let told = restore.end();
    assert!(told.contains("left before the gateway had ended it"), "{told}");
    assert_eq!(newest(&gateway.api_get("/v1/jobs")), "running", "the file system is frozen");
    drop(frozen);
    gateway.until_api("/v1/jobs", "its end", |jobs| newest(jobs) == "cancelled");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "no partial file");
}

#[test]
fn a_verification_ends_with_its_client() {
    let gateway = protected();
    for line in ["verify erp --rate 64K", "vault verify erp --rate 1K"] {
        let mut verification = AtWork::start(&gateway, line);
        verification.cancel(Signal::INT);
        verification.end();
        assert_eq!(newest(&gateway.api_get("/v1/jobs")), "cancelled");
    }
    assert!(gateway.says("verify erp").contains("0 faults"), "it can be done again");
}

#[test]
fn an_import_ends_with_its_client() {
    let small = SmallFileSystem::new();
    let gateway = Gateway::with(&small.setup());
    gateway.says("group create erp");
    let source = gateway.path("source.raw");
    sparse_file(&source, 1, 64 << 20, 32);
    let line = format!("disk create erp/db --import {}", source.display());
    let frozen = small.freeze();
    let mut import = AtWork::start(&gateway, &line);
    import.cancel(Signal::INT);
    drop(frozen);
    import.end();
    assert_eq!(newest(&gateway.api_get("/v1/jobs")), "cancelled");
    assert_eq!(gateway.json("disk list"), Value::Array(Vec::new()));
    for extension in ["raw", "checkpoint", "partial"] {
        let mut left = files(gateway.data(), extension);
        left.retain(|path| !is_reserve(path));
        assert_eq!(left, Vec::<PathBuf>::new(), "nothing of it stays");
    }
    gateway.says(&line);
    assert_eq!(gateway.json("disk list").as_array().map(Vec::len), Some(1), "the name is free");
}
