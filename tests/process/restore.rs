//! Restoring to files: over nothing, unless told to.

use std::fs;

use crate::content::{allocated_bytes, assert_same, sparse_file};
use crate::gateway::Gateway;
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
