//! Other people's programs, as tests use them: each with a time limit, and none of them optional.
//!
//! A missing tool fails the test that needs it and says what installs it; nothing is ever skipped.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

/// Nothing that a test runs takes that long unless it hangs.
const SECONDS_MAX: &str = "180";
/// What timeout(1) says when the time is over, and when there is no such program.
const TIMED_OUT: i32 = 124;
const NOT_FOUND: i32 = 127;

/// A program to run, with a limit on its time.
pub fn command(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", SECONDS_MAX, program]).stdin(Stdio::null());
    command
}

/// Runs a program and gives back how it ended, whatever that was.
#[track_caller]
pub fn run<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> Output {
    let output = command(program).args(arguments).output().expect("timeout(1) is part of coreutils");
    ended(program, &output);
    output
}

/// Fails the test if the program was missing or hung.
#[track_caller]
pub fn ended(program: &str, output: &Output) {
    let errors = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(NOT_FOUND) => {
            panic!("{program} is missing: `tests/run` installs it as root, or says how ({errors})")
        }
        Some(TIMED_OUT) => panic!("{program} was still running after {SECONDS_MAX} s: {errors}"),
        _ => {}
    }
}

/// What a program prints; it must succeed.
#[track_caller]
pub fn says<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> String {
    let output = run(program, arguments);
    let text = String::from_utf8(output.stdout).expect("tools print UTF-8");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} failed with {}: {text}{errors}", output.status);
    text
}

/// What a program prints on both channels; it must fail.
#[track_caller]
pub fn fails<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> String {
    let output = run(program, arguments);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{program} should have failed: {text}");
    text.into_owned()
}

/// The words of a line, as the shell has them that a person would paste it into.
#[track_caller]
pub fn words(line: &str) -> Vec<String> {
    let script = format!("printf '%s\\n' {line}");
    says("sh", ["-c", script.as_str()]).lines().map(str::to_owned).collect()
}
