//! Events are there when they are looked for, whatever became of the process meanwhile, with the times at which they happened.
//! A review found that those of a process's last second were lost, and the others up to a second late.

use std::fs;
use std::path::PathBuf;

use afterimage::env::{Environment, OsEnvironment};
use serde_json::Value;

use crate::gateway::Gateway;

/// The only disk's image.
fn image(gateway: &Gateway) -> PathBuf {
    let group = gateway.json("group show erp");
    let images = gateway.data().join("groups").join(group["id"].as_str().expect("text")).join("images");
    images.join(format!("{}.raw", group["disks"][0]["id"].as_str().expect("text")))
}

fn now() -> String {
    let wall = serde_json::to_value(OsEnvironment::new().wall()).expect("a time");
    wall.as_str().expect("text").to_owned()
}

/// The times of the events whose message begins like that, newest first.
fn times(events: &Value, message: &str) -> Vec<String> {
    let said = |event: &&Value| event["message"].as_str().expect("text").starts_with(message);
    let found = events.as_array().expect("events").iter().filter(said);
    found.map(|event| event["time"].as_str().expect("text").to_owned()).collect()
}

#[test]
fn a_latch_at_opening_is_told_though_the_gateway_stops_at_once() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "2M")]);
    let image = image(&gateway);
    let elsewhere = gateway.path("image");
    gateway.kill();
    fs::rename(&image, &elsewhere).unwrap();
    let before = now();
    gateway.restart();
    let ready = now();
    gateway.terminate();
    let stopped = now();
    fs::rename(&elsewhere, &image).unwrap();
    gateway.restart();
    let events = gateway.json("events");
    let latches = times(&events, "a disk's image fails");
    let [latched] = &latches[..] else { panic!("one latch: {events:#}") };
    assert!(before <= *latched && *latched <= ready, "{before} <= {latched} <= {ready}");
    // The stop itself is an event too, and the last of that process.
    let stops = times(&events, "stopping");
    assert!(stops.iter().any(|stop| ready <= *stop && *stop <= stopped), "{ready} <= {stops:?} <= {stopped}");
}

/// What no group can tell is told by the gateway, also if it comes to serve nothing else.
#[test]
fn an_opening_that_failed_is_told_though_the_gateway_stops_at_once() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "2M")]);
    let key = gateway.data().join("keys/site.key");
    let elsewhere = gateway.path("site.key");
    gateway.kill();
    fs::rename(&key, &elsewhere).unwrap();
    let before = now();
    gateway.restart();
    let ready = now();
    gateway.terminate();
    fs::rename(&elsewhere, &key).unwrap();
    gateway.restart();
    let events = gateway.json("events");
    let failures = times(&events, "could not be opened");
    let [failed] = &failures[..] else { panic!("one failure: {events:#}") };
    assert!(before <= *failed && *failed <= ready, "{before} <= {failed} <= {ready}");
}
