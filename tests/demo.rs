//! `afterimage demo` as a newcomer runs it: it ends well and leaves nothing, also when it is interrupted.
#![cfg(feature = "server")]

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, test_kill_process};

fn start(temporary: &std::path::Path, options: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_afterimage"))
        .arg("demo")
        .args(options)
        .env("TMPDIR", temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn is_empty(directory: &std::path::Path) -> bool {
    std::fs::read_dir(directory).unwrap().next().is_none()
}

#[test]
fn the_demo_verifies_every_block_and_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let output = start(temporary.path(), &[]).wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}\n{errors}");
    assert!(text.contains("All 524,288 blocks are as they must be"), "{text}");
    assert_eq!(text.matches("as it must be").count(), 4, "three points and the disks: {text}");
    for shown in ["writes/s", "MB/s", "journal", "newest", "kill -9", "MEASURED", "WRITES HELD"] {
        assert!(text.contains(shown), "`{shown}` in: {text}");
    }
    assert!(!text.contains('\u{1b}') && errors.is_empty(), "plain lines in a pipe: {errors}");
    assert!(is_empty(temporary.path()), "nothing is left");
}

/// Reads what a demo says until its clients write; the gateway's process.
fn gateway_at_work(demo: &mut Child) -> Pid {
    let mut gateway = None;
    for line in BufReader::new(demo.stdout.as_mut().unwrap()).lines().map(Result::unwrap) {
        if let Some((_, rest)) = line.split_once("(pid ") {
            gateway = rest.split_once(')').and_then(|(pid, _)| Pid::from_raw(pid.parse().unwrap()));
        }
        if line.contains("NBD clients write") {
            break;
        }
    }
    let gateway = gateway.expect("the demo says which process its gateway is");
    test_kill_process(gateway).expect("the gateway runs");
    gateway
}

/// Waits until a process that may not be our child has ended.
fn wait_for(process: &OwnedFd) {
    let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&patience)).unwrap();
    assert_eq!(ended, 1, "it ends in time");
}

#[test]
fn an_interrupted_demo_takes_its_gateway_along() {
    let temporary = tempfile::tempdir().unwrap();
    let mut demo = start(temporary.path(), &[]);
    let gateway = gateway_at_work(&mut demo);
    kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
    let output = demo.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && errors.starts_with("error: interrupted"), "{errors}");
    assert_eq!(test_kill_process(gateway), Err(rustix::io::Errno::SRCH), "the gateway is gone");
    assert!(is_empty(temporary.path()), "nothing is left");
}

/// It has no time to do anything itself, so that the kernel must.
#[test]
fn a_demo_that_is_killed_takes_its_gateway_along() {
    let temporary = tempfile::tempdir().unwrap();
    let mut demo = start(temporary.path(), &[]);
    let gateway = pidfd_open(gateway_at_work(&mut demo), PidfdFlags::empty()).unwrap();
    demo.kill().unwrap();
    demo.wait().unwrap();
    wait_for(&gateway);
}

#[test]
fn a_gateway_that_is_kept_outlives_its_demo_and_ends_as_the_demo_says() {
    let temporary = tempfile::tempdir().unwrap();
    let output = start(temporary.path(), &["--keep"]).wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let (_, end) = text.split_once("end it:").expect("how to end it");
    let pid = end.trim_start().strip_prefix("kill ").and_then(|rest| rest.split(' ').next()).unwrap();
    let gateway = Pid::from_raw(pid.parse().unwrap()).unwrap();
    let process = pidfd_open(gateway, PidfdFlags::empty()).expect("it lives on");
    let status = text.lines().find(|line| line.contains("status --watch")).expect("how to look at it");
    let socket = text.split_once("AFTERIMAGE_SOCKET=").and_then(|(_, rest)| rest.lines().next()).unwrap();
    let binary = status.trim().strip_suffix(" status --watch").expect("a command");
    let asked = Command::new(binary).arg("status").env("AFTERIMAGE_SOCKET", socket).output().unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    kill_process(gateway, Signal::TERM).unwrap();
    wait_for(&process);
}

/// A parent that ended before the gateway could ask to be told is noticed all the same.
#[test]
fn a_gateway_whose_parent_is_another_does_not_start() {
    let output = Command::new(env!("CARGO_BIN_EXE_afterimage"))
        .args(["serve", "--config", "/nowhere", "--dies-with", "1"])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("process 1"), "{errors}");
}
