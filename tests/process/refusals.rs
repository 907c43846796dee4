//! What a second gateway beside a living one is told: one line, exit status 2, and the first one never notices.

use std::fs;
use std::process::{Command, Stdio};

use crate::gateway::{Gateway, refusal};

/// Starts a second gateway with a configuration that must be refused, and gives back the one line.
#[track_caller]
fn second(first: &Gateway, data: &str, nbd: &str, api: &str) -> String {
    let file = first.path("second.toml");
    let at = |name: &str| first.path(name).display().to_string();
    let text = format!(
        "[site]\nname = \"b\"\ndata_dir = {:?}\n[nbd]\nlisten = [\"unix:{}\"]\n[api]\nsocket = {:?}\n",
        at(data),
        at(nbd),
        at(api)
    );
    fs::write(&file, text).unwrap();
    fs::create_dir_all(first.path("data-2")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_afterimage"));
    let output = command.args(["serve", "--config"]).arg(&file).stdin(Stdio::null()).output().unwrap();
    assert_eq!(fs::read_dir(first.path("data-2")).unwrap().count(), 0, "nothing was touched");
    refusal(&output, 2)
}

#[test]
fn one_gateway_per_data_directory_and_socket() {
    let gateway = Gateway::start();
    gateway.protect([("db", "1M")]);
    let told = second(&gateway, "data", "nbd-2.sock", "api-2.sock");
    assert!(told.contains("site.data_dir") && told.contains("in use by another gateway"), "{told}");
    let told = second(&gateway, "data-2", "nbd.sock", "api-2.sock");
    assert!(told.contains("nbd.listen") && told.contains("socket in use"), "{told}");
    let told = second(&gateway, "data-2", "nbd-2.sock", "api.sock");
    assert!(told.contains("api.socket") && told.contains("socket in use"), "{told}");
    assert_eq!(gateway.json("disk list").as_array().map(Vec::len), Some(1), "the first one goes on");
}

#[test]
fn what_a_dead_gateway_left_behind_is_in_nobodys_way() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "1M")]);
    gateway.kill();
    assert!(gateway.path("nbd.sock").exists() && gateway.path("api.sock").exists());
    gateway.restart();
    assert_eq!(gateway.json("disk list").as_array().map(Vec::len), Some(1));
    gateway.terminate();
    assert!(!gateway.path("api.sock").exists(), "in good order, the name goes too");
}
