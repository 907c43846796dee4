//! Groups with a file that another process has locked, as a backup or a predecessor whose last write hangs may have: they fail by
//! themselves, the others are served, and what is let go is opened without anybody's help.

use std::fs::File;
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use serde_json::Value;

use crate::gateway::Gateway;
use crate::tool;

/// A file of a journal, locked by somebody else until it is dropped.
fn hold(journal: PathBuf) -> File {
    let mut files = std::fs::read_dir(journal).expect("a journal").map(|entry| entry.expect("a name").path());
    let segment = files.find(|path| path.ends_with("segment-00000000")).expect("the first segment");
    let file = File::open(segment).expect("a segment");
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
    let held = hold(gateway.data().join("groups").join(id).join("journal"));
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
