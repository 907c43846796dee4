//! The command line as a process, against the API of a site in memory: what it prints, and its exit status.
#![cfg(feature = "server")]

mod fake_site;

use std::io::Read;
use std::process::{Command, Output, Stdio};

use fake_site::Gateway;
use serde_json::Value;

fn command(gateway: &Gateway, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_afterimage"));
    command.args(line.split(' ')).env("AFTERIMAGE_SOCKET", &gateway.socket).stdin(Stdio::null());
    command
}

fn run(gateway: &Gateway, line: &str) -> Output {
    command(gateway, line).output().unwrap()
}

#[track_caller]
fn says(gateway: &Gateway, line: &str, fragment: &str) -> String {
    let output = run(gateway, line);
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{line}: {errors}");
    assert!(text.contains(fragment), "{line}: `{fragment}` in: {text}");
    assert!(!text.contains('\u{1b}'), "no escape codes in a pipe: {text:?}");
    text
}

#[track_caller]
fn json(gateway: &Gateway, line: &str) -> Value {
    serde_json::from_str(&says(gateway, &format!("{line} --json"), "")).unwrap()
}

#[track_caller]
fn fails(gateway: &Gateway, line: &str, status: i32, fragment: &str) {
    let output = run(gateway, line);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{line}: {errors}");
    assert_eq!(errors.lines().count(), 1, "one line: {errors}");
    assert!(errors.starts_with("error: ") && errors.contains(fragment), "{line}: `{fragment}` in: {errors}");
}

fn with_a_point(label: &str) -> Gateway {
    let gateway = Gateway::start();
    says(&gateway, "group create erp", "group erp created");
    says(&gateway, "disk create erp/db --size 20G", "erp/db");
    says(&gateway, "disk resize erp/db --size 40G", "erp/db has 40GiB");
    fails(&gateway, "disk resize erp/db --size 20G", 1, "--yes-lose-tail");
    says(&gateway, "disk resize erp/db --size 20G --yes-lose-tail", "erp/db has 20GiB");
    says(&gateway, &format!("point create erp --label {label}"), "created");
    gateway
}

#[test]
fn every_listing_is_text_or_json() {
    let gateway = with_a_point("before");
    says(&gateway, "group list", "GROUP  DISKS");
    says(&gateway, "group show erp", "interval  1s");
    says(&gateway, "disk list", "20.0 GiB");
    says(&gateway, "point list erp", "before");
    says(&gateway, "policy set erp --interval 5s", "every 5s");
    says(&gateway, "policy set erp --retain 1h:all,2d:1m --dry-run", "would go");
    says(&gateway, "policy set erp --retain 1h:all,2d:1m", "kept are 1h:all,2d:1m");
    says(&gateway, "point hold erp before", "held");
    assert_eq!(json(&gateway, "point list erp")[0]["held"], true);
    says(&gateway, "point release erp before", "released");
    assert_eq!(json(&gateway, "group list")[0]["policy"]["interval_ms"], 5000);
    assert_eq!(json(&gateway, "group show erp")["name"], "erp");
    assert_eq!(json(&gateway, "disk list erp")[0]["size_bytes"], 20_u64 << 30);
    assert_eq!(json(&gateway, "point list erp")[0]["label"], "before");
    assert_eq!(json(&gateway, "failover list"), Value::Array(Vec::new()));
    assert_eq!(json(&gateway, "status")["storage"]["backend"], "blocking");
    assert_eq!(json(&gateway, "vault verify")["blobs"], 3);
    says(&gateway, "vault verify", "of bases, with their sums: 0 faults");
    says(&gateway, "verify erp", "512 B that are not in the vault yet left out: 0 faults");
    says(&gateway, "attach erp/db --for qemu", "-blockdev driver=nbd,node-name=afterimage-");
    says(&gateway, "attach erp/db --for libvirt", "<reconnect delay=");
    assert_eq!(json(&gateway, "attach erp/db --for proxmox")["address"], "unix:/x");
    let event = &json(&gateway, "events --group erp")[0];
    assert_eq!((&event["group"], &event["group_id"]), (&"erp".into(), &format!("{:032x}", 1).into()));
}

#[test]
fn status_says_what_runs_and_why() {
    let gateway = with_a_point("before");
    let text = says(&gateway, "status", "blocking (io_uring_setup: EPERM), through the page cache (tmpfs");
    assert!(text.contains("clients  3, 2 turned away, the last 2026-"), "{text}");
    for fragment in [
        "LATCHED",
        "EIO on segment-3",
        "1s 500ms, LATE",
        "1.0 GiB of 4.0 GiB",
        "visible 0:00000007",
        "late since 2026-11-21",
        "the oldest for 1m 2s",
        "churn  3.0 MiB in 24h, most to disk db: 2.0 MiB, most in the hour from 2026-11-21T12:00:00.000Z: 1.0 MiB; 2.41 bytes",
        "history  1h 2m, of 15days that the ladder keeps",
    ] {
        assert!(text.contains(fragment), "`{fragment}` in: {text}");
    }
}

#[test]
fn a_test_failover_from_start_to_cleanup() {
    let gateway = with_a_point("before");
    says(&gateway, "failover test erp --point before", "erp/db@test-1");
    fails(&gateway, "failover cleanup erp", 2, "512 bytes written to test-1 of erp");
    says(&gateway, "failover cleanup erp --yes", "test-1 of erp ended");
    says(&gateway, "failover cleanup erp", "no test failover");
    says(&gateway, "point create erp", "created");
    assert_eq!(json(&gateway, "failover test erp --point latest")["number"], 2);
    assert_eq!(json(&gateway, "failover test erp --point 2026-11-21T12:01:30Z")["point"]["label"], "before");
    fails(&gateway, "failover cleanup erp", 2, "test-2, test-3: write --test N or --all");
    fails(&gateway, "failover cleanup erp --test 9", 1, "no test-9");
    // Nothing was written to test-2: there is nothing to ask.
    says(&gateway, "failover cleanup erp --test 2", "test-2 of erp ended");
    assert_eq!(json(&gateway, "failover cleanup erp --all --yes"), serde_json::json!([3]));
}

#[test]
fn a_read_only_test_failover_says_so() {
    let gateway = with_a_point("before");
    says(&gateway, "failover test erp --point before", "serves point");
    says(&gateway, "failover test erp --point before --read-only", ", read-only\n");
    says(&gateway, "failover list", "read-only");
    let listed = json(&gateway, "failover list");
    assert_eq!((&listed[0]["read_only"], &listed[1]["read_only"]), (&false.into(), &true.into()));
    says(&gateway, "failover test --help", "--read-only");
}

#[test]
fn what_destroys_data_wants_yes() {
    let gateway = with_a_point("before");
    fails(&gateway, "disk remove erp/db", 2, "--yes");
    fails(&gateway, "group remove erp", 2, "--yes");
    let directory = gateway.directory.path().display().to_string();
    says(&gateway, &format!("restore erp --point before --to {directory}"), "db.raw");
    fails(&gateway, &format!("restore erp --point before --to {directory}"), 2, "--yes");
    says(&gateway, &format!("restore erp --point before --to {directory} --yes"), "db.raw");
    for format in ["raw", "qcow2"] {
        let line = format!("restore erp --point before --to {directory}/db.raw --format {format}");
        fails(&gateway, &line, 2, "no directory");
        assert!(
            !String::from_utf8(run(&gateway, &line).stderr).unwrap().contains("--yes"),
            "it would not help"
        );
    }
    says(&gateway, "disk remove erp/db --yes", "disk erp/db removed");
    says(&gateway, "group remove erp --yes", "group erp removed");
    assert_eq!(json(&gateway, "group list"), Value::Array(Vec::new()));
}

#[test]
fn a_resume_says_what_it_did_and_fails_while_a_latch_stays() {
    let gateway = with_a_point("before");
    says(&gateway, "group pause erp", "group erp is paused: no timed points are made");
    says(&gateway, "events --group erp", "history_will_shrink");
    assert_eq!(json(&gateway, "events --limit 1").as_array().unwrap().len(), 1);
    says(&gateway, "group resume erp", "group erp is open, and nothing is latched");
    assert_eq!(json(&gateway, "group resume erp")["opened"], false);
    says(&gateway, "group create stuck", "created");
    let output = run(&gateway, "group resume stuck");
    assert!(String::from_utf8(output.stdout).unwrap().contains("latched  disk db: EIO"));
    fails(&gateway, "group resume stuck", 1, "not cleared: 1 latch");
    fails(&gateway, "group resume none", 1, "no group none");
}

#[test]
fn an_import_is_followed_to_its_end() {
    let gateway = with_a_point("before");
    std::fs::write(gateway.directory.path().join("log.raw"), [0; 4096]).unwrap();
    let mut import = command(&gateway, "disk create erp/log --import log.raw");
    let output = import.current_dir(gateway.directory.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("erp/log created: 4KiB"), "{text}");
    assert!(output.stderr.is_empty(), "no progress bar in a pipe");
    fails(&gateway, "disk create erp/x --import /none", 1, "/none");
}

#[test]
fn failures_are_one_line_and_have_statuses() {
    let gateway = with_a_point("before");
    fails(&gateway, "group create erp", 1, "group erp exists");
    fails(&gateway, "group show none", 1, "no group none");
    fails(&gateway, "group create a/b", 2, "letters");
    fails(&gateway, "disk create erp/x", 2, "--size");
    fails(&gateway, "disk create erp/x --size -5", 2, "`-5` is not a size in bytes: write for example 20G");
    fails(&gateway, "disk create erp/x --size 20000000000000000000", 2, "is too large");
    fails(&gateway, "policy set erp --interval -1s", 2, "`-1s` is not a duration");
    fails(&gateway, "policy set erp", 2, "--interval <INTERVAL>|--retain <LADDER>");
    fails(&gateway, "vault verify broken", 1, "the vault has 1 fault");
    fails(&gateway, "--socket /none/api.sock group list", 1, "no gateway answers on /none/api.sock");
    fails(&gateway, "--socket /none/api.sock status --watch", 1, "afterimage serve --config");
    fails(&gateway, "demo --json", 2, "`demo` takes no --json");
    fails(&gateway, "demo --socket /none", 2, "`demo` takes no --socket");
    for line in ["status", "journal verify /none", "serve --config /none"] {
        let output = command(&gateway, line).env("AFTERIMAGE_SOCKET", "").output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!errors.contains("a value is required"), "{line}: {errors}");
        assert_eq!(
            errors.contains("no gateway answers on /run/afterimage/api.sock"),
            line == "status",
            "{errors}"
        );
    }
}

#[test]
fn what_is_not_known_is_no_zero() {
    let gateway = Gateway::start();
    says(&gateway, "group create lost", "created");
    let listed = says(&gateway, "group list", "lost");
    let line = listed.lines().nth(1).unwrap();
    assert_eq!(line.split_whitespace().take(3).collect::<Vec<_>>(), ["lost", "-", "-"], "{listed}");
    says(&gateway, "group show lost", "its disks are not known");
    assert_eq!(json(&gateway, "group list")[0]["disks"], Value::Null);
    assert_eq!(json(&gateway, "disk list"), Value::Array(Vec::new()));
    says(&gateway, "status", "lost");
}

#[test]
fn a_label_that_another_point_has_is_taken_with_a_warning_and_refused_as_a_choice() {
    let gateway = with_a_point("nightly");
    let output = run(&gateway, "point create erp --label other");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = run(&gateway, "point create erp --label nightly --json");
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && warning.contains("another point has the label `nightly`"),
        "{warning}"
    );
    let created: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&created["same_label"], &created["label"]), (&1.into(), &"nightly".into()));
    let points = json(&gateway, "point list erp");
    for (line, status) in [("failover test erp --point nightly", 1), ("point hold erp label:nightly", 1)] {
        let output = run(&gateway, line);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{told}");
        for point in [&points[0], &points[2]] {
            assert!(told.contains(point["id"].as_str().unwrap()), "{told}");
        }
    }
    fails(
        &gateway,
        "failover test erp --point label:zzz",
        1,
        "no recovery point has the label `zzz`: 'point list'",
    );
}

#[test]
fn an_imported_fraction_of_a_sector_is_said() {
    let gateway = with_a_point("before");
    for (length, says) in [
        (4096, ""),
        (3406, "note: the file has 3406 bytes: the disk's last sector is padded with 178 zeros\n"),
        (4097, "note: the file has 4097 bytes: the disk's last sector is padded with 511 zeros\n"),
    ] {
        let file = gateway.directory.path().join(format!("{length}.raw"));
        std::fs::write(&file, vec![0; length]).unwrap();
        let output = run(&gateway, &format!("disk create erp/d{length} --import {}", file.display()));
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stderr).unwrap(), says);
        let created = String::from_utf8(output.stdout).unwrap();
        let size = if length == 4096 {
            "4KiB".to_owned()
        } else {
            format!("{} bytes", length.next_multiple_of(512))
        };
        assert!(created.contains(&format!("erp/d{length} created: {size} at ")), "{created}");
    }
}

#[test]
fn a_reader_that_leaves_ends_a_command_quietly() {
    let gateway = with_a_point("before");
    let mut watch = command(&gateway, "status --watch --json")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut byte = [0];
    watch.stdout.take().unwrap().read_exact(&mut byte).unwrap();
    // The pipe is closed now; the next status finds nobody.
    let output = watch.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn help_is_an_answer_and_its_absence_is_not() {
    let gateway = Gateway::start();
    says(&gateway, "--help", "Example:");
    says(&gateway, "disk create --help", "Example:");
    says(&gateway, "--version", env!("CARGO_PKG_VERSION"));
    let output = Command::new(env!("CARGO_BIN_EXE_afterimage")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Usage:"));
}
