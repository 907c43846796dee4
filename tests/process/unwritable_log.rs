//! A log that cannot be written takes nothing else with it: the file system that it is on is full, or who read it has gone.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::gateway::{Gateway, wait};
use crate::tool;

/// Questions after which a gateway is taken not to come.
const QUESTIONS_MAX: usize = 2_000;

fn start(gateway: &Gateway, log: Stdio) -> Child {
    let mut serve = Command::new(env!("CARGO_BIN_EXE_afterimage"));
    serve.args(["serve", "--config"]).arg(gateway.configuration());
    // Much is to be said.
    serve.env("AFTERIMAGE_LOG", "debug").stdin(Stdio::null()).stderr(log).spawn().expect("the program")
}

#[track_caller]
fn until_it_serves(gateway: &Gateway, process: &mut Child) {
    for _ in 0..QUESTIONS_MAX {
        if gateway.cli("status").output().expect("runs").status.success() {
            return;
        }
        assert_eq!(process.try_wait().expect("our child"), None, "it has ended");
    }
    panic!("it does not serve");
}

#[test]
fn a_gateway_whose_log_cannot_be_written_goes_on() {
    let mut gateway = Gateway::start();
    gateway.terminate();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let full = File::options().write(true).open("/dev/full").expect("it is there");
    for (group, log) in [("full", Stdio::from(full)), ("gone", Stdio::from(writer))] {
        let mut process = start(&gateway, log);
        until_it_serves(&gateway, &mut process);
        gateway.says(&format!("group create {group}"));
        gateway.says(&format!("disk create {group}/db --size 8M"));
        tool::says("qemu-io", ["-f", "raw", "-c", "write -P 7 0 64k", &gateway.uri(&format!("{group}/db"))]);
        gateway.says(&format!("point create {group} --label first"));
        kill_process(Pid::from_child(&process), Signal::TERM).expect("it runs");
        let status = wait(&mut process);
        assert!(status.success(), "SIGTERM ends it in good order: {status}");
    }
    gateway.restart();
    assert_eq!(gateway.json("disk list").as_array().map(Vec::len), Some(2));
}
