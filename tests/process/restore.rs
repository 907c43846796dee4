//! Restoring to files: over nothing, unless told to; and what is left of a restore when the gateway dies in the middle.
//!
//! A restore does not outlive its gateway. Needs root: the file system that it writes to is frozen in the middle.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Output};

use crate::content::{allocated_bytes, assert_same, content, sparse_file};
use crate::gateway::{Gateway, refusal, wait};
use crate::small_file_system::SmallFileSystem;
use crate::tool;

#[test]
fn what_is_there_is_kept_unless_yes_is_said() {
    let gateway = Gateway::start();
    gateway.protect([("db", "256M"), ("log", "1M")]);
    let original = gateway.path("original");
    sparse_file(&original, 1, 256 << 20, 16);
    tool::says(
        "nbdcopy",
        ["--destination-is-zero", original.to_str().expect("UTF-8"), &gateway.uri("erp/db")],
    );
    gateway.says("point create erp --label filled");
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 1 0 1M", &gateway.uri("erp/db")]);

    let directory = gateway.path("restored");
    let line = format!("restore erp --point filled --to {}", directory.display());
    let restored = gateway.json(&line);
    assert!(restored.to_string().contains("db.raw"), "{restored}");
    assert_same(&directory.join("db.raw"), &original);
    let (taken, needed) = (allocated_bytes(&directory.join("db.raw")), allocated_bytes(&original));
    assert!(taken <= needed + (1 << 20), "sparse: {taken} of {needed} bytes");
    assert_eq!(fs::metadata(directory.join("log.raw")).unwrap().len(), 1 << 20);

    fs::write(directory.join("db.raw"), "precious").unwrap();
    fs::remove_file(directory.join("log.raw")).unwrap();
    let told = gateway.refuses(&line, 2);
    assert!(told.contains("db.raw") && told.contains("--yes"), "{told}");
    assert_eq!(fs::read_to_string(directory.join("db.raw")).unwrap(), "precious");
    assert!(!directory.join("log.raw").exists(), "all or nothing");

    gateway.says(&format!("{line} --yes"));
    assert_same(&directory.join("db.raw"), &original);
    let names = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["db.raw", "log.raw"], "and no partial file");
}

#[test]
fn a_point_that_is_not_there_restores_nothing() {
    let gateway = Gateway::start();
    gateway.protect([("db", "1M")]);
    let directory = gateway.path("restored");
    gateway.refuses(&format!("restore erp --point none --to {}", directory.display()), 1);
    assert!(!directory.exists());
}

/// What takes a while to restore, so that the gateway can be killed in the middle: an unoptimized one is slow.
const OLD_BYTES: usize = if cfg!(debug_assertions) { 8 << 20 } else { 128 << 20 };

/// A gateway with a point of a file that takes a while to restore, which is given too, and a newer point.
fn with_an_old_point() -> (Gateway, PathBuf) {
    let gateway = Gateway::start();
    gateway.protect([("db", &OLD_BYTES.to_string())]);
    let original = gateway.path("original");
    fs::write(&original, content(1, OLD_BYTES)).unwrap();
    tool::says("nbdcopy", [original.to_str().expect("UTF-8"), &gateway.uri("erp/db")]);
    gateway.says("point create erp --label filled");
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 1 0 1M", &gateway.uri("erp/db")]);
    gateway.says("point create erp --label newer");
    (gateway, original)
}

/// How a command ended that was started.
fn end(mut client: Child) -> Output {
    wait(&mut client);
    client.wait_with_output().expect("it is our child")
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

#[test]
fn a_killed_gateway_leaves_of_a_restore_no_file_that_looks_whole_and_nothing_that_keeps_the_point() {
    let (mut gateway, original) = with_an_old_point();
    let small = SmallFileSystem::new();
    small.make_space();
    let directory = small.path("restored");
    let line = format!("restore erp --point filled --to {}", directory.display());
    let client = gateway.start_cli(&line);
    gateway.until_api("/v1/jobs", "a restore that has begun to write", |jobs| {
        jobs[0]["bytes_done"].as_u64().is_some_and(|bytes| bytes > 0)
    });
    let frozen = small.freeze();
    let used = gateway.refuses("point delete erp filled --yes", 1);
    assert!(used.contains("being read"), "{used}");
    gateway.kill_at_work(|| drop(frozen));
    refusal(&end(client), 1);
    assert_eq!(names(&directory), ["db.raw.partial"]);

    gateway.restart();
    let jobs = gateway.api_get("/v1/jobs");
    assert!(
        jobs[0]["kind"] == "restore" && jobs[0]["state"] != "running",
        "nobody goes on with it: {jobs:#}"
    );
    let told = gateway.refuses(&line, 2);
    assert!(told.contains("db.raw.partial") && told.contains("--yes"), "{told}");
    gateway.says(&format!("{line} --yes"));
    assert_same(&directory.join("db.raw"), &original);
    assert_eq!(names(&directory), ["db.raw"]);
    gateway.says("point delete erp filled --yes");
}

#[test]
fn a_killed_gateway_leaves_of_a_restore_by_qemu_img_no_image_and_no_test_failover() {
    let (mut gateway, original) = with_an_old_point();
    let directory = gateway.path("restored");
    let line = format!("restore erp --point filled --to {} --format qcow2", directory.display());
    let client = gateway.start_cli(&line);
    let tests = gateway.until_api("/v1/tests", "qemu-img at work", |tests| tests[0]["connections"] == 1);
    assert_eq!((&tests[0]["for_restore"], &tests[0]["read_only"]), (&true.into(), &true.into()));
    let used = gateway.refuses("point delete erp filled --yes", 1);
    assert!(used.contains("being read"), "{used}");
    gateway.kill();
    refusal(&end(client), 1);
    gateway.restart();
    assert_eq!(gateway.json("failover list").as_array().map(Vec::len), Some(0), "it ended");
    assert_eq!(names(&directory), Vec::<String>::new());

    gateway.says(&line);
    let image = directory.join("db.qcow2");
    let (expected, image) = (original.to_str().expect("UTF-8"), image.to_str().expect("UTF-8"));
    tool::says("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", expected, image]);
    gateway.says("point delete erp filled --yes");
}
