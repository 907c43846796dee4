//! A vault that takes no points: `status` says that they are late, and since when; the log says so once, and when it is
//! over. The vault has a file system of its own, which is frozen. Needs root.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::Value;

use crate::gateway::{Gateway, Setup};
use crate::small_file_system::SmallFileSystem;
use crate::tool;

fn write(gateway: &Gateway, byte: u8) {
    let write = format!("write -P {byte} 0 1M");
    tool::says("qemu-io", ["-f", "raw", "-c", &write, &gateway.uri("erp/db")]);
}

#[test]
fn late_points_are_told_and_told_to_be_over() {
    let small = SmallFileSystem::new();
    let setup = Setup { data: Some(small.path("../data")), ..Setup::default() };
    fs::create_dir(small.path("../data")).unwrap();
    symlink(small.path(""), small.path("../data/vault")).unwrap();
    let gateway = Gateway::with(&setup);
    gateway.protect([("db", "8M")]);
    gateway.says("policy set erp --interval 100ms");
    write(&gateway, 1);
    let status = gateway.until("a point", |status| status["groups"][0]["idle"] == true);
    assert_eq!(status["groups"][0]["late_since"], Value::Null, "an idle group is not late");
    let frozen = small.freeze();
    write(&gateway, 2);
    let late = gateway.until("late points", |status| status["groups"][0]["late_since"].is_string());
    let state = &late["groups"][0]["state"];
    assert_eq!((&state["condition"], &state["reason"]["code"]), (&"degraded".into(), &"points_late".into()));
    let told = gateway.says("status");
    assert!(told.contains(", LATE") && told.contains("points  late since"), "{told}");
    write(&gateway, 3);
    drop(frozen);
    let status = gateway.until("points again", |status| status["groups"][0]["idle"] == true);
    assert_eq!(status["groups"][0]["late_since"], Value::Null);
    assert_eq!(status["groups"][0]["state"]["condition"], "protected");
    // Once they have been in time for a while.
    gateway.until("the end of it", |_| !gateway.logged("recovery points are in time again").is_empty());
    for event in ["recovery points are late", "recovery points are in time again"] {
        assert_eq!(gateway.logged(event).len(), 1, "{event}");
    }
}
