//! `afterimage demo` as a newcomer runs it: it ends well and leaves nothing, also when it is interrupted.
#![cfg(feature = "server")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

fn start(temporary: &std::path::Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_afterimage"))
        .arg("demo")
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
    let output = start(temporary.path()).wait_with_output().unwrap();
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

#[test]
fn an_interrupted_demo_takes_its_gateway_along() {
    let temporary = tempfile::tempdir().unwrap();
    let mut demo = start(temporary.path());
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
    kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
    let output = demo.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && errors.starts_with("error: interrupted"), "{errors}");
    assert_eq!(test_kill_process(gateway), Err(rustix::io::Errno::SRCH), "the gateway is gone");
    assert!(is_empty(temporary.path()), "nothing is left");
}
