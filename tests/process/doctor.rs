//! `doctor`: its verdicts follow the machine, and it leaves nothing behind.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::gateway::Gateway;
use crate::small_file_system::SmallFileSystem;

/// What is found, by what it is found of, and the exit status; under a limit, if one is given in a shell's words.
#[track_caller]
pub fn examine(configuration: &Path, limits: &str) -> (Vec<(String, String, Value)>, Option<i32>) {
    let script = format!("{limits} exec \"$0\" \"$@\"");
    let mut doctor = Command::new("sh");
    doctor.args(["-c", &script, env!("CARGO_BIN_EXE_afterimage"), "doctor", "--json", "--config"]);
    let output = doctor.arg(configuration).output().expect("the program");
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).expect("a list");
    let text = |finding: &Value, key: &str| finding[key].as_str().expect("text").to_owned();
    let findings =
        findings.iter().map(|finding| (text(finding, "what"), text(finding, "verdict"), finding.clone()));
    (findings.collect(), output.status.code())
}

/// The verdict on one thing.
#[track_caller]
pub fn verdict<'a>(findings: &'a [(String, String, Value)], what: &str) -> &'a str {
    let finding = findings.iter().find(|finding| finding.0 == what);
    &finding.unwrap_or_else(|| panic!("{what} is looked at: {findings:?}")).1
}

#[test]
fn beside_a_gateway_everything_is_looked_at_and_nothing_stays() {
    let mut gateway = Gateway::start();
    let names = |directory: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(directory).expect("there").map(|entry| entry.expect("listed").file_name()).collect();
        names.sort();
        names
    };
    gateway.protect([("db", "16M")]);
    let before = names(gateway.data());
    let (findings, status) = examine(&gateway.configuration(), "");
    assert_eq!(names(gateway.data()), before);
    assert_eq!(status, Some(0), "{findings:?}");
    for what in
        ["configuration", "io_uring", "open files", "memory", "free space", "O_DIRECT", "clock and data"]
    {
        assert_eq!(verdict(&findings, what), "ok", "{what}: {findings:?}");
    }
    // How fast it is, and whether anything keeps its clock, is this machine's affair.
    for what in ["disk speed", "disk syncs", "clock", "locked memory", "file system"] {
        assert_ne!(verdict(&findings, what), "refused", "{what}: {findings:?}");
    }
    let mendless =
        findings.iter().filter(|(_, verdict, finding)| verdict != "ok" && finding["mend"].is_null());
    assert_eq!(mendless.count(), 0, "{findings:?}");
    // What a gateway would not start with.
    let (findings, status) = examine(&gateway.configuration(), "ulimit -n 64;");
    assert_eq!((verdict(&findings, "open files"), status), ("refused", Some(1)), "{findings:?}");
    gateway.terminate();
    gateway.limit_descriptors(64);
    gateway.refuses_to_serve(2);
}

#[test]
fn what_would_be_refused_or_degraded_is_said() {
    let small = SmallFileSystem::new();
    let mut gateway = Gateway::with(&small.setup());
    gateway.terminate();
    let (findings, _) = examine(&gateway.configuration(), "");
    assert_eq!(verdict(&findings, "free space"), "degraded", "less than a journal: {findings:?}");
    assert_eq!(verdict(&findings, "disk speed"), "degraded", "not measured: {findings:?}");
    small.fill_up();
    let (findings, status) = examine(&gateway.configuration(), "");
    assert_eq!((verdict(&findings, "free space"), status), ("refused", Some(1)), "{findings:?}");
    let text = fs::read_to_string(gateway.configuration()).expect("it was served");
    let nowhere = gateway.path("nowhere");
    let moved = text.replace(&gateway.data().display().to_string(), &nowhere.display().to_string());
    let configuration = gateway.path("moved.toml");
    fs::write(&configuration, moved).expect("our own directory");
    let (findings, status) = examine(&configuration, "");
    assert_eq!((verdict(&findings, "configuration"), status), ("refused", Some(1)), "{findings:?}");
    assert!(!nowhere.exists(), "nothing is made");
}
