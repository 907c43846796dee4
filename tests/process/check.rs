//! `check` against gateways that are well, that are not, and that are not there: one line, and the exit status that monitoring goes by.

use std::fs;

use serde_json::Value;

use crate::gateway::Gateway;

/// The line and the exit status.
fn check(gateway: &Gateway, line: &str) -> (String, i32) {
    let output = gateway.cli(line).output().expect("the program");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{line}: monitoring shows standard output");
    let text = String::from_utf8(output.stdout).expect("it prints UTF-8");
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    (text, output.status.code().expect("it ends by itself"))
}

#[track_caller]
fn assert_says(gateway: &Gateway, line: &str, says: &str, status: i32) {
    let (text, found) = check(gateway, line);
    assert!(found == status && text.starts_with(says), "{line}: {found}: {text}");
}

#[test]
fn a_gateway_is_well_paused_latched_or_gone() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "2M")]);
    assert_says(
        &gateway,
        "check",
        "AFTERIMAGE OK - 1 group protected, points hold every write | groups=1",
        0,
    );
    let said: Value = gateway.json("check erp");
    assert_eq!((&said["level"], &said["exit_status"]), (&"ok".into(), &0.into()));
    gateway.says("group pause erp");
    assert!(gateway.says("group list").contains(" paused "), "the word of `status`");
    assert_says(&gateway, "check", "AFTERIMAGE WARNING - erp paused (1 of 1 group) | ", 1);
    gateway.says("group resume erp");
    assert_says(&gateway, "check none", "AFTERIMAGE UNKNOWN - there is no group none", 3);
    assert_says(&gateway, "check --no-such", "AFTERIMAGE UNKNOWN - unexpected argument '--no-such'", 3);
    assert_says(&gateway, "check --warning-age soon", "AFTERIMAGE UNKNOWN - invalid value 'soon'", 3);
    assert_says(&gateway, "check --timeout 0s", "AFTERIMAGE UNKNOWN - invalid value '0s'", 3);
    assert_says(&gateway, "check --warning-age 1h", "AFTERIMAGE UNKNOWN - --warning-age is longer", 3);
    gateway.kill();
    assert_says(&gateway, "check", "AFTERIMAGE UNKNOWN - no gateway answers on ", 3);
    let groups = fs::read_dir(gateway.data().join("groups")).unwrap();
    for group in groups {
        let images = group.unwrap().path().join("images");
        fs::rename(&images, images.with_extension("elsewhere")).unwrap();
    }
    gateway.restart();
    let (text, status) = check(&gateway, "check");
    assert_eq!(status, 2, "{text}");
    assert!(text.starts_with("AFTERIMAGE CRITICAL - erp "), "{text}");
    let output = gateway.cli("check --json").output().expect("the program");
    let said: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    assert_eq!((output.status.code(), &said["groups"][0]["level"]), (Some(2), &"critical".into()));
}
