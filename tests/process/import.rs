//! Importing a raw file: byte for byte, and holes stay holes in the base and in the image.

use std::fs;
use std::path::PathBuf;

use crate::content::{allocated_bytes, assert_same, content, files, sparse_file};
use crate::gateway::Gateway;
use crate::tool;

#[test]
fn a_sparse_file_stays_sparse() {
    const LENGTH: u64 = 1 << 30;
    let gateway = Gateway::start();
    gateway.says("group create erp");
    let source = gateway.path("source.raw");
    sparse_file(&source, 1, LENGTH, 32);
    let disk = gateway.json(&format!("disk create erp/db --import {}", source.display()));
    assert!(disk.to_string().contains("\"size_bytes\":1073741824"), "{disk}");
    let uri = gateway.uri("erp/db");
    tool::says("qemu-img", ["compare", "-f", "raw", "-F", "raw", source.to_str().expect("UTF-8"), &uri]);
    let copies = files(gateway.data(), "raw");
    assert_eq!(copies.len(), 2, "base and image: {copies:?}");
    for copy in &copies {
        assert_eq!(fs::metadata(copy).unwrap().len(), LENGTH);
        let (taken, needed) = (allocated_bytes(copy), allocated_bytes(&source));
        assert!(taken <= needed + (1 << 20), "{}: {taken} of {needed} bytes", copy.display());
    }
    // It is a disk like any other: it has points, and they hold what was imported.
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 1 0 64k", &uri]);
    gateway.says("point create erp --label changed");
    let directory = gateway.path("restored");
    gateway.says(&format!("restore erp --point changed --to {}", directory.display()));
    let changed = gateway.path("changed.raw");
    fs::copy(&source, &changed).unwrap();
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 1 0 64k", changed.to_str().expect("UTF-8")]);
    assert_same(&directory.join("db.raw"), &changed);
}

#[test]
fn an_odd_length_is_padded_to_a_sector() {
    let gateway = Gateway::start();
    gateway.says("group create erp");
    let source = gateway.path("odd.raw");
    fs::write(&source, content(1, 100_001)).unwrap();
    let output = gateway.cli(&format!("disk create erp/odd --import {}", source.display())).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && told.contains("100001 bytes") && told.contains("351 zeros"), "{told}");
    let returned = gateway.path("returned");
    tool::says("nbdcopy", [&gateway.uri("erp/odd"), returned.to_str().expect("UTF-8")]);
    let mut expected = content(1, 100_001);
    expected.resize(100_352, 0);
    assert!(fs::read(returned).unwrap() == expected, "the same bytes, then zeros");
}

#[test]
fn a_failed_import_leaves_nothing() {
    let gateway = Gateway::start();
    gateway.says("group create erp");
    let missing = gateway.path("none.raw");
    let told = gateway.refuses(&format!("disk create erp/db --import {}", missing.display()), 1);
    assert!(told.contains("none.raw") && told.contains("name a raw disk image"), "{told}");
    let directory = gateway.path("data");
    gateway.refuses(&format!("disk create erp/db --import {}", directory.display()), 1);
    assert_eq!(files(gateway.data(), "raw"), Vec::<PathBuf>::new());
    gateway.says("disk create erp/db --size 1M");
}
