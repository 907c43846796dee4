//! nbdinfo: what is served, how large it is, what it can do, and where its bytes are.

use serde_json::{Value, json};

use crate::gateway::{Gateway, Setup};
use crate::tool;

on_each_backend!(lists_every_export, tells_what_is_read_only, maps_what_is_allocated, asks_over_tcp);

/// What every export says of itself, besides its name and size.
const ABILITIES: &[(&str, bool)] = &[
    ("is_read_only", false),
    ("is_rotational", false),
    ("can_cache", true),
    ("can_df", true),
    ("can_fast_zero", true),
    ("can_flush", true),
    ("can_fua", true),
    ("can_multi_conn", true),
    ("can_trim", true),
    ("can_zero", true),
];

#[track_caller]
fn listed(uri: &str) -> Vec<Value> {
    let text = tool::says("nbdinfo", ["--json", "--list", uri]);
    let told: Value = serde_json::from_str(&text).expect("nbdinfo prints JSON");
    assert_eq!(told["protocol"], "newstyle-fixed");
    assert_eq!(told["structured"], true);
    told["exports"].as_array().expect("a list").clone()
}

fn names(exports: &[Value]) -> Vec<&str> {
    let mut names: Vec<&str> =
        exports.iter().map(|export| export["export-name"].as_str().expect("text")).collect();
    names.sort_unstable();
    names
}

#[track_caller]
fn check_export(export: &Value, size: u64) {
    check_abilities(export, size, ABILITIES);
}

#[track_caller]
fn check_abilities(export: &Value, size: u64, abilities: &[(&str, bool)]) {
    assert_eq!(export["export-size"], size, "{export}");
    for &(ability, has) in abilities {
        assert_eq!(export[ability], has, "{ability}: {export}");
    }
    assert_eq!(export["contexts"], json!(["base:allocation"]));
    assert_eq!(export["block_size_minimum"], 512);
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["block_size_maximum"], 32 << 20);
}

fn lists_every_export(backend: &'static str) {
    let gateway = Gateway::on(backend);
    assert_eq!(listed(&gateway.uri("")), Vec::<Value>::new(), "nothing is served yet");
    gateway.protect([("db", "64M"), ("log", "1536")]);
    let exports = listed(&gateway.uri(""));
    assert_eq!(names(&exports), ["erp/db", "erp/log"]);
    for export in &exports {
        check_export(export, if export["export-name"] == "erp/db" { 64 << 20 } else { 1536 });
    }
    gateway.says("point create erp --label before");
    gateway.says("failover test erp --point before");
    let exports = listed(&gateway.uri(""));
    assert_eq!(names(&exports), ["erp/db", "erp/db@test-1", "erp/log", "erp/log@test-1"]);
    let test = exports.iter().find(|export| export["export-name"] == "erp/log@test-1").expect("listed");
    // Zeros are written to its overlay.
    let slow = |&(ability, has): &(&'static str, bool)| (ability, has && ability != "can_fast_zero");
    check_abilities(test, 1536, &ABILITIES.iter().map(slow).collect::<Vec<_>>());
    tool::fails("nbdinfo", [gateway.uri("erp/none")]);
    assert_eq!(tool::says("nbdinfo", ["--size", &gateway.uri("erp/db")]).trim(), "67108864");
}

fn tells_what_is_read_only(backend: &'static str) {
    let gateway = Gateway::on(backend);
    gateway.protect([("db", "64M")]);
    gateway.says("point create erp --label before");
    gateway.says("failover test erp --point before --read-only");
    let exports = listed(&gateway.uri(""));
    let of = |name: &str| exports.iter().find(|export| export["export-name"] == name).expect("listed");
    check_export(of("erp/db"), 64 << 20);
    let changes = ["can_trim", "can_zero", "can_fast_zero"];
    let abilities: Vec<(&str, bool)> = ABILITIES
        .iter()
        .map(|&(ability, has)| (ability, ability == "is_read_only" || (has && !changes.contains(&ability))))
        .collect();
    check_abilities(of("erp/db@test-1"), 64 << 20, &abilities);
}

#[track_caller]
fn map(uri: &str) -> Vec<(u64, u64, String)> {
    let text = tool::says("nbdinfo", ["--json", "--map", uri]);
    let extents: Vec<Value> = serde_json::from_str(&text).expect("nbdinfo prints JSON");
    let number = |extent: &Value, key: &str| extent[key].as_u64().expect("a number");
    let kind = |extent: &Value| extent["description"].as_str().expect("text").to_owned();
    extents.iter().map(|extent| (number(extent, "offset"), number(extent, "length"), kind(extent))).collect()
}

fn maps_what_is_allocated(backend: &'static str) {
    let gateway = Gateway::on(backend);
    gateway.protect([("db", "64M")]);
    let uri = gateway.uri("erp/db");
    let (hole, data) = ("hole,zero".to_owned(), "data".to_owned());
    assert_eq!(map(&uri), [(0, 64 << 20, hole.clone())]);
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 7 1M 1M", "-c", "write -P 8 3M 64k", &uri]);
    let written = [
        (0, 1 << 20, hole.clone()),
        (1 << 20, 1 << 20, data.clone()),
        (2 << 20, 1 << 20, hole.clone()),
        (3 << 20, 64 << 10, data.clone()),
        ((3 << 20) + (64 << 10), (61 << 20) - (64 << 10), hole.clone()),
    ];
    assert_eq!(map(&uri), written);
    gateway.says("point create erp --label before");
    tool::says("qemu-io", ["-f", "raw", "-c", "discard 1M 1M", &uri]);
    let tail = written[4].clone();
    assert_eq!(map(&uri), [(0, 3 << 20, hole), (3 << 20, 64 << 10, data), tail]);
    gateway.says("failover test erp --point before");
    assert_eq!(map(&gateway.uri("erp/db@test-1")), written, "the point has what was discarded since");
}

fn asks_over_tcp(backend: &'static str) {
    let gateway = Gateway::with(&Setup { backend, tcp: true, ..Setup::default() });
    gateway.protect([("db", "64M")]);
    let exports = listed(&format!("nbd://{}", gateway.tcp_address()));
    assert_eq!(names(&exports), ["erp/db"]);
    check_export(&exports[0], 64 << 20);
}
