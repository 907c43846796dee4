//! Requests that fail for bytes that are not what was stored: people are told, once, however often clients ask.

use std::fs;

use crate::gateway::Gateway;
use crate::tool;

#[test]
fn reads_of_damaged_bytes_are_told_once() {
    let gateway = Gateway::start();
    gateway.says("group create erp");
    let source = gateway.path("source.raw");
    fs::write(&source, vec![7; 1 << 20]).expect("our own directory");
    gateway.says(&format!("disk create erp/db --import {}", source.display()));
    gateway.says("point create erp --label whole");
    let group = gateway.json("group list")[0]["id"].as_str().expect("an id").to_owned();
    let bases = gateway.data().join("vault").join(group).join("base");
    let bases = fs::read_dir(bases).expect("there").map(|entry| entry.expect("listed").path());
    let base = bases.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "raw"));
    let base = base.expect("the disk's");
    let mut bytes = fs::read(&base).expect("there");
    bytes[70_000] ^= 4;
    fs::write(&base, bytes).expect("tests may write it");
    gateway.says("failover test erp --point whole --read-only");
    let uri = gateway.uri("erp/db@test-1");
    let events = |gateway: &Gateway| {
        let events = gateway.json("events");
        let told = events.as_array().expect("a list").iter();
        let told = told.filter(|event| event["code"] == "requests_failed").cloned();
        told.collect::<Vec<_>>()
    };
    for _ in 0..3 {
        tool::fails("qemu-io", ["-r", "-f", "raw", "-c", "read 64k 64k", &uri]);
        tool::says("qemu-io", ["-r", "-f", "raw", "-c", "read -P 7 0 64k", &uri]);
    }
    let told = events(&gateway);
    let [event] = &told[..] else { panic!("once: {told:#?}") };
    let message = event["message"].as_str().expect("text");
    assert!(message.contains(&base.display().to_string()) && message.contains("69632"), "{message}");
    assert_eq!((&event["severity"], &event["group"]), (&"error".into(), &"erp".into()));
    assert_eq!(gateway.logged("requests to a test failover failed").len(), 1);
}
