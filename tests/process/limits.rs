//! Limits of space, on a file system that is really small, and pauses: what people are told, and when.

use std::os::unix::net::UnixStream;

use afterimage::capture::nbd::client::{Client, Command, Wishes};
use serde_json::Value;

use crate::content::content;
use crate::gateway::{Gateway, Setup};
use crate::small_file_system::SmallFileSystem;

const BLOCK_BYTES: u64 = 1 << 20;

fn connect(gateway: &Gateway) -> Client<UnixStream> {
    Client::connect(gateway.connect(), Wishes::all("erp/db".to_owned())).expect("it is served")
}

fn write(client: &mut Client<UnixStream>, block: u64, seed: u64) {
    let data = content(seed, usize::try_from(BLOCK_BYTES).unwrap());
    let write = Command::Write { offset: block * BLOCK_BYTES, data: &data, durable: false };
    drop(client.call(&write).expect("served").expect("taken"));
}

/// Codes of a group's events, oldest first.
fn events(gateway: &Gateway) -> Vec<String> {
    let events = gateway.json("events --group erp --limit 1000");
    let codes = events.as_array().unwrap().iter().map(|event| event["code"].as_str().unwrap().to_owned());
    let mut codes: Vec<String> = codes.collect();
    codes.reverse();
    codes
}

fn group(status: &Value) -> &Value {
    &status["groups"][0]
}

#[test]
fn a_full_file_system_shrinks_history_after_an_event() {
    let small = SmallFileSystem::new();
    let setup =
        Setup { more: "[vault]\nfree_min = \"16MiB\"\n", journal: ("24MiB", "4MiB"), ..small.setup() };
    let gateway = Gateway::with(&setup);
    gateway.protect([("db", "8M")]);
    gateway.says("policy set erp --interval 24h --retain all");
    let mut client = connect(&gateway);
    // Each point overwrites the same 2 MiB: history grows, the disk does not. Once there is too little room, points wait
    // until the oldest have gone.
    let labels: Vec<String> = (0..14).map(|number| format!("p{number}")).collect();
    for (number, label) in (0..).zip(&labels) {
        write(&mut client, 0, number);
        write(&mut client, 1, 1000 + number);
        gateway.says(&format!("point create erp --label {label}"));
    }
    let codes = events(&gateway);
    let place = |code: &str| codes.iter().position(|found| found == code).expect(code);
    assert!(place("space_low") <= place("history_will_shrink"), "{codes:?}");
    assert!(place("history_will_shrink") < place("history_shrinks"), "{codes:?}");
    let limits = &group(&gateway.json("status"))["limits"].clone();
    assert_eq!(limits["free_min_bytes"], 16 << 20, "{limits:#}");
    let kept: Vec<String> = gateway.json("point list erp").as_array().unwrap().iter().map(label).collect();
    assert_eq!(kept.last(), labels.last());
    assert!(!kept.contains(&"p0".to_owned()), "the oldest go first: {kept:?}");
    assert_eq!(kept, labels[labels.len() - kept.len()..], "what is left is unbroken");
}

fn label(point: &Value) -> String {
    point["label"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_pause_outlives_a_restart_and_ends_with_a_resume() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "8M")]);
    gateway.says("policy set erp --interval 100ms");
    gateway.says("group pause erp");
    let condition = |gateway: &Gateway| group(&gateway.json("status"))["state"]["condition"].clone();
    assert_eq!(condition(&gateway), "paused");
    let points = gateway.json("point list erp").as_array().unwrap().len();
    write(&mut connect(&gateway), 0, 1);
    gateway.kill();
    gateway.restart();
    assert_eq!(condition(&gateway), "paused");
    write(&mut connect(&gateway), 0, 2);
    assert_eq!(gateway.json("point list erp").as_array().unwrap().len(), points);
    gateway.says("group resume erp");
    gateway.until("points", |status| group(status)["history"]["points"].as_u64() > Some(points as u64));
    let codes = events(&gateway);
    assert!(codes.contains(&"paused".to_owned()) && codes.contains(&"resumed".to_owned()), "{codes:?}");
}
