//! Groups with a file that another process has locked, as a backup or a predecessor whose last write hangs may have: what needs it
//! fails by itself, the others are served, and what is let go is opened without anybody's help.

use std::fs::File;
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use serde_json::Value;

use crate::gateway::Gateway;
use crate::tool;

/// The file of a directory whose name ends so, locked by somebody else until it is dropped.
fn hold(directory: PathBuf, end: &str) -> File {
    let files = std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("a name").path());
    let mut named = files.filter(|path| path.to_str().expect("text").ends_with(end));
    let file = File::open(named.next().expect("there is one")).expect("a file");
    rustix::fs::flock(&file, FlockOperation::LockExclusive).expect("nobody else has it");
    file
}

fn state<'a>(status: &'a Value, group: &str) -> &'a Value {
    let groups = status["groups"].as_array().expect("a list");
    &groups.iter().find(|status| status["group"]["name"] == group).expect("it is listed")["state"]
}

#[test]
fn a_locked_segment_keeps_one_group_from_being_served_until_it_is_let_go() {
    let mut gateway = Gateway::start();
    for group in ["crm", "erp"] {
        gateway.says(&format!("group create {group}"));
        gateway.says(&format!("disk create {group}/db --size 2M"));
        let write = ["-f", "raw", "-c", "write -P 7 0 64k"];
        tool::says("qemu-io", [&write[..], &[&gateway.uri(&format!("{group}/db"))]].concat());
    }
    let id = gateway.json("group show crm")["id"].as_str().expect("text").to_owned();
    gateway.terminate();
    let held = hold(gateway.data().join("groups").join(id).join("journal"), "segment-00000000");
    gateway.restart();

    let status = gateway.json("status");
    assert_eq!(state(&status, "erp")["condition"], "protected");
    let failed = state(&status, "crm");
    assert_eq!((&failed["condition"], &failed["reason"]["code"]), (&"failed".into(), &"locked".into()));
    let said = failed["reason"].to_string();
    assert!(said.contains("segment-00000000") && said.contains("end that process"), "{said}");
    let read = ["-f", "raw", "-c", "read -P 7 0 64k"];
    tool::says("qemu-io", [&read[..], &[&gateway.uri("erp/db")]].concat());

    drop(held);
    gateway.until("crm is open", |status| state(status, "crm")["condition"] == "protected");
    tool::says("qemu-io", [&read[..], &[&gateway.uri("crm/db")]].concat());
}

#[test]
fn a_locked_overlay_or_base_holds_up_only_what_needs_it() {
    let mut gateway = Gateway::start();
    gateway.says("group create erp");
    gateway.says("policy set erp --interval 24h --retain all");
    gateway.says("disk create erp/db --size 2M");
    let write = ["-f", "raw", "-c", "write -P 7 0 64k"];
    tool::says("qemu-io", [&write[..], &[&gateway.uri("erp/db")]].concat());
    gateway.says("point create erp --label one");
    gateway.says("point create erp --label two");
    gateway.says("failover test erp --point two");
    let id = gateway.json("group show erp")["id"].as_str().expect("text").to_owned();
    gateway.terminate();
    let tests = gateway.data().join("groups").join(&id).join("tests");
    let overlay = hold(tests.join("1"), "");
    let base = hold(gateway.data().join("vault").join(&id).join("base"), ".summed.raw");
    gateway.restart();
    let told = state(&gateway.json("status"), "erp")["reason"].to_string();
    assert!(told.contains("test_damaged") && told.contains("holds the lock"), "{told}");
    tool::says("qemu-io", [&["-f", "raw", "-c", "read -P 7 0 64k"][..], &[&gateway.uri("erp/db")]].concat());
    let logged = gateway.logged("a test failover cannot be served");
    assert!(
        logged.iter().any(|line| line.contains("another process holds the lock of this file")),
        "{logged:?}"
    );
    drop(overlay);
    gateway.says("failover cleanup erp --test 1 --yes");
    gateway.until("it is ended", |status| state(status, "erp")["condition"] == "protected");

    // Its content goes into the base.
    gateway.says("point delete erp one --yes");
    gateway.until("it is told", |status| {
        let told = state(status, "erp")["reason"].to_string();
        told.contains("retention_stalled") && told.contains("holds the lock") && told.contains(".summed.raw")
    });
    drop(base);
    gateway.until("it is over", |status| state(status, "erp")["condition"] == "protected");
    assert_eq!(gateway.json("point list erp").as_array().map(Vec::len), Some(1));
}
