//! nbdcopy: in and out over four connections, which are one coherent disk because multi-conn is true.

use std::fs;
use std::path::Path;

use crate::content::{assert_same, content, sparse_file};
use crate::gateway::Gateway;
use crate::tool;

on_each_backend!(
    copies_both_ways_over_four_connections,
    what_was_flushed_survives_a_kill,
    copies_from_disk_to_disk
);

const SIZE_BYTES: usize = 96 << 20;

/// Copies, and proves that nbdcopy really used four connections.
#[track_caller]
fn copy(from: &str, to: &str) {
    // It uses no more connections than threads.
    let flow = ["--connections=4", "--threads=4", "--requests=16", "--request-size=131072"];
    let output = tool::run("nbdcopy", ["--verbose", "--flush"].iter().chain(&flow).chain(&[from, to]));
    let told = String::from_utf8_lossy(&output.stderr);
    let notes: Vec<&str> = told.lines().filter(|line| line.starts_with("nbdcopy: ")).collect();
    assert!(output.status.success(), "{notes:?}");
    // libnbd traces every connection under its name: "src0" to "src3", or "dst0" to "dst3".
    let fourth = |end: &str| told.contains(&format!("libnbd: debug: {end}3: "));
    assert!(!is_uri(from) || fourth("src"), "four connections: {notes:?}");
    assert!(!is_uri(to) || fourth("dst"), "four connections: {notes:?}");
}

fn is_uri(place: &str) -> bool {
    place.starts_with("nbd")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn copies_both_ways_over_four_connections(backend: &'static str) {
    let gateway = Gateway::on(backend);
    gateway.protect([("db", "96M")]);
    let (original, returned) = (gateway.path("original"), gateway.path("returned"));
    fs::write(&original, content(1, SIZE_BYTES)).unwrap();
    copy(text(&original), &gateway.uri("erp/db"));
    copy(&gateway.uri("erp/db"), text(&returned));
    assert_same(&original, &returned);
    // Over itself with holes: what was there must go.
    sparse_file(&original, 2, SIZE_BYTES as u64, 24);
    copy(text(&original), &gateway.uri("erp/db"));
    copy(&gateway.uri("erp/db"), text(&returned));
    assert_same(&original, &returned);
}

fn what_was_flushed_survives_a_kill(backend: &'static str) {
    let mut gateway = Gateway::on(backend);
    gateway.protect([("db", "96M")]);
    let (original, returned) = (gateway.path("original"), gateway.path("returned"));
    fs::write(&original, content(3, SIZE_BYTES)).unwrap();
    copy(text(&original), &gateway.uri("erp/db"));
    gateway.kill();
    gateway.restart();
    copy(&gateway.uri("erp/db"), text(&returned));
    assert_same(&original, &returned);
}

fn copies_from_disk_to_disk(backend: &'static str) {
    let gateway = Gateway::on(backend);
    gateway.protect([("db", "96M"), ("copy", "96M")]);
    let (original, returned) = (gateway.path("original"), gateway.path("returned"));
    sparse_file(&original, 4, SIZE_BYTES as u64, 24);
    copy(text(&original), &gateway.uri("erp/db"));
    copy(&gateway.uri("erp/db"), &gateway.uri("erp/copy"));
    copy(&gateway.uri("erp/copy"), text(&returned));
    assert_same(&original, &returned);
}
