//! Requests that fail for bytes that are not what was stored: people are told, once, however often clients ask.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::gateway::Gateway;
use crate::tool;

/// A group with a test failover, test-1, of whose disk a sector is damaged in the vault; and the damaged file.
fn damaged() -> (Gateway, PathBuf) {
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
    (gateway, base)
}

fn read_in_vain(gateway: &Gateway) {
    let uri = gateway.uri("erp/db@test-1");
    tool::fails("qemu-io", ["-r", "-f", "raw", "-c", "read 64k 64k", &uri]);
    tool::says("qemu-io", ["-r", "-f", "raw", "-c", "read -P 7 0 64k", &uri]);
}

fn events(gateway: &Gateway, code: &str) -> Vec<Value> {
    let events = gateway.json("events");
    events.as_array().expect("a list").iter().filter(|event| event["code"] == code).cloned().collect()
}

#[test]
fn reads_of_damaged_bytes_are_told_once() {
    let (gateway, base) = damaged();
    for _ in 0..3 {
        read_in_vain(&gateway);
    }
    let told = events(&gateway, "requests_failed");
    let [event] = &told[..] else { panic!("once: {told:#?}") };
    let message = event["message"].as_str().expect("text");
    assert!(message.contains(&base.display().to_string()) && message.contains("69632"), "{message}");
    assert_eq!((&event["severity"], &event["group"]), (&"error".into(), &"erp".into()));
    assert_eq!(gateway.logged("requests to a test failover failed").len(), 1);
}

/// While the group is paused its vault is not read, so that what clients met is all that is known.
#[test]
fn they_degrade_the_group_and_have_its_vault_verified_at_once() {
    let (gateway, base) = damaged();
    gateway.says("group pause erp");
    assert_eq!(gateway.group_status()["state"]["condition"], "paused");
    for _ in 0..2 {
        read_in_vain(&gateway);
    }
    let status = gateway.group_status();
    let (state, failing) = (&status["state"], &status["group"]["failing"]);
    assert_eq!(
        (&state["condition"], &state["reason"]["code"]),
        (&"degraded".into(), &"requests_fail".into()),
        "{status:#}"
    );
    assert_eq!((&state["reason"], &state["since"]), (&failing["reason"], &failing["since"]));
    let detail = failing["reason"]["detail"].as_str().expect("text");
    assert!(detail.starts_with("2 requests failed, 2 of erp/db@test-1; the last at "), "{detail}");
    assert!(detail.contains(&base.display().to_string()) && detail.contains("69632"), "{detail}");
    let mend = failing["reason"]["mend"].as_str().expect("text");
    assert!(mend.contains("`afterimage vault verify erp`"), "{mend}");
    for (line, says) in
        [("status", detail), ("group list", "DEGRADED: requests fail"), ("group show erp", mend)]
    {
        let text = gateway.says(line);
        assert!(text.contains(says), "{line}: {text}");
    }
    let output = gateway.cli("check").output().expect("the program");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.starts_with("AFTERIMAGE WARNING - erp degraded: 2 requests failed"), "{told}");

    let held = |status: &Value| status["groups"][0]["verify"]["running"]["held"] == true;
    let status = gateway.until("a verification that waits", held);
    assert_eq!(status["groups"][0]["verify"]["running"]["part"], "vault");
    let resumed = gateway.says("group resume erp");
    assert!(resumed.starts_with("group erp is no longer paused: timed points are made again"), "{resumed}");
    let found = |status: &Value| status["groups"][0]["state"]["reason"]["code"] == "verify_found";
    let status = gateway.until("what the verification found", found);
    let reason = &status["groups"][0]["state"]["reason"]["detail"];
    assert!(reason.as_str().expect("text").contains("(whole)"), "the point is named: {reason}");
    assert!(gateway.says("status").contains(detail), "what clients met is said beside it");
    gateway.until("its end", |status| status["groups"][0]["verify"]["running"].is_null());
    assert_eq!(events(&gateway, "verify_found").len(), 1);
    assert_eq!(gateway.logged("the vault is verified in the background").len(), 1);
}
