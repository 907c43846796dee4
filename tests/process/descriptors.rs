//! Descriptors: who takes how many, what is refused when they do not do, and what clients of the API may take of them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use afterimage::capture::nbd::client::{Client, Command, Wishes};

use crate::content::content;
use crate::gateway::{Gateway, PATIENCE, Setup};

fn connect(gateway: &Gateway, export: &str) -> Client<UnixStream> {
    Client::connect(gateway.connect(), Wishes::all(export.to_owned())).expect("it is served")
}

fn write(client: &mut Client<UnixStream>, seed: u64) {
    let data = content(seed, 64 << 10);
    let write = Command::Write { offset: 0, data: &data, durable: true };
    drop(client.call(&write).expect("served").expect("taken"));
}

fn api_client(gateway: &Gateway) -> UnixStream {
    let socket = UnixStream::connect(gateway.api()).expect("its API takes connections");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out above zero");
    socket
}

/// A local client that opened connections to the API took what guests' disks needed.
#[test]
fn clients_of_the_api_take_nothing_of_block_clients_and_groups() {
    let setup = Setup { connections_max: 1000, descriptors: Some(256), ..Setup::default() };
    let gateway = Gateway::with(&setup);
    gateway.protect([("db", "16M")]);
    let status = gateway.json("status");
    assert_eq!(
        (status["api_connections_limit"].as_u64(), status["descriptors_limit"].as_u64()),
        (Some(16), Some(256))
    );
    let mut silent: Vec<_> = (0..200).map(|_| api_client(&gateway)).collect();
    // They are looked at in their order: once the last one is turned away, all places are taken.
    let _ = silent.last_mut().expect("there are 200").read_to_end(&mut Vec::new());
    let refusal = gateway.refuses("status", 1);
    assert!(refusal.contains("[api] connections_max = 16: try again"), "{refusal}");
    let mut clients: Vec<_> = (0..128).map(|_| connect(&gateway, "erp/db")).collect();
    for (seed, client) in (0..).zip(&mut clients) {
        write(client, seed);
    }
    // Who says nothing is ended, also those that have a place; then there is room.
    for socket in &mut silent {
        // Reset, if it was hung up on while it was being told why.
        let _ = socket.read_to_end(&mut Vec::new());
    }
    gateway.says("point create erp --label beside");
    let status = gateway.until("only who asks", |status| status["api_connections"] == 1);
    assert!(status["api_turned_away"]["clients"].as_u64() >= Some(185), "{status:#}");
    assert!(
        status["api_turned_away"]["newest"].is_string() && status["descriptors"].as_u64() <= Some(256),
        "{status:#}"
    );
    assert!(!gateway.logged("a client of the API is turned away").is_empty());
}

#[test]
fn clients_that_never_negotiate_keep_nobody_out() {
    let gateway = Gateway::with(&Setup { connections_max: 4, ..Setup::default() });
    gateway.protect([("db", "16M")]);
    for turn in 0..8 {
        let mut silent: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
        let mut client = connect(&gateway, "erp/db");
        write(&mut client, turn);
        // The rest of what it says, if it still is there.
        silent.iter_mut().for_each(|socket| drop(socket.write_all(&[0; 4])));
        write(&mut client, turn + 100);
        client.disconnect().unwrap();
    }
    let status = gateway.json("status");
    assert!(status["turned_away"]["clients"].as_u64() >= Some(8 * 5), "{status:#}");
    assert!(status["turned_away"]["newest"].is_string(), "{status:#}");
    assert!(!gateway.logged("too many connections").is_empty());
}

/// It was three: the checkpoint was kept open as well.
#[test]
fn an_idle_disk_keeps_its_image_and_its_sums_open() {
    let mut gateway = Gateway::start();
    gateway.protect([("d0", "1M")]);
    let open = |gateway: &Gateway| gateway.json("status")["descriptors"].as_u64().expect("a number");
    gateway.terminate();
    gateway.restart();
    let before = open(&gateway);
    for disk in 1..=20 {
        gateway.says(&format!("disk create erp/d{disk} --size 1M"));
    }
    write(&mut connect(&gateway, "erp/d7"), 1);
    gateway.says("point create erp");
    gateway.terminate();
    gateway.restart();
    // A segment may have been created meanwhile, and somebody may be at work for a moment.
    let kept = |status: &serde_json::Value| status["descriptors"].as_u64() <= Some(before + 2 * 20 + 2);
    gateway.until("two files for each disk", kept);
}

#[test]
fn a_limit_that_does_not_hold_what_is_there_is_told_before_anything_is_opened() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "16M"), ("log", "16M")]);
    write(&mut connect(&gateway, "erp/db"), 1);
    gateway.terminate();
    gateway.limit_descriptors(64);
    let refusal = gateway.refuses_to_serve(2);
    assert!(
        refusal.contains("limit on open files = 64: ")
            && refusal.contains(" kept open for 1 group with 2 disks"),
        "{refusal}"
    );
    let (_, mend) = refusal.split_once("raise the hard limit to ").expect("a mend");
    let least = mend.split(' ').next().and_then(|least| least.parse().ok()).expect("a number");
    // What it says does.
    gateway.limit_descriptors(least);
    gateway.restart();
    for disk in ["erp/db", "erp/log"] {
        write(&mut connect(&gateway, disk), 2);
    }
    gateway.says("point create erp --label enough");
    assert_eq!(gateway.json("status")["connections_limit"], 2, "a client for each disk");
    assert_eq!(gateway.logged("[nbd] connections_max is lowered").len(), 1);
}

#[test]
fn a_disk_that_cannot_be_kept_open_is_refused_and_the_others_go_on() {
    let gateway = Gateway::with(&Setup { descriptors: Some(256), ..Setup::default() });
    gateway.protect([("db", "1M")]);
    let refusal = (0..256).find_map(|disk| {
        let output =
            gateway.cli(&format!("disk create erp/d{disk} --size 1M")).output().expect("the program");
        (!output.status.success()).then(|| crate::gateway::refusal(&output, 1))
    });
    let refusal = refusal.expect("there is a limit");
    assert!(refusal.contains("the limit on open files, 256, has no room"), "{refusal}");
    assert!(gateway.refuses("group create other", 1).contains("raise it (LimitNOFILE="));
    // All of the clients that there may be have their descriptors.
    let mut clients: Vec<_> = (0..64).map(|_| connect(&gateway, "erp/db")).collect();
    for (seed, client) in (0..).zip(&mut clients) {
        write(client, seed);
    }
    gateway.says("point create erp --label all");
    assert_eq!(gateway.group_status()["state"]["condition"], "protected");
}

/// Asks over a connection that is there already; gives the answer's status line and body.
fn ask(socket: &mut UnixStream, request: &str) -> (String, String) {
    write!(socket, "{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").expect("it listens");
    answer(socket)
}

fn answer(socket: &mut UnixStream) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).expect("it answers");
        head.extend(byte);
    }
    let head = String::from_utf8(head).expect("text");
    let length =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.expect("a length")];
    socket.read_exact(&mut body).expect("it answers");
    (head, String::from_utf8(body).expect("text"))
}

/// Whatever took them: a checkpoint, a delta, a segment that cannot be opened for want of a descriptor has not failed.
#[test]
fn a_gateway_that_runs_out_of_descriptors_waits_and_latches_nothing() {
    let gateway = Gateway::start();
    gateway.protect([("db", "16M"), ("log", "16M")]);
    let mut clients = ["erp/db", "erp/log"].map(|disk| connect(&gateway, disk));
    clients.iter_mut().for_each(|client| write(client, 1));
    // Nor can the API take a client then: these are there already.
    let (mut asks, mut waits) = (api_client(&gateway), api_client(&gateway));
    assert!(ask(&mut asks, "GET /v1/groups").0.starts_with("HTTP/1.1 200"));
    let before = gateway.allow_descriptors(Some(8));
    clients.iter_mut().for_each(|client| write(client, 2));
    write!(waits, "POST /v1/groups/erp/points HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        .expect("sent");
    let state = loop {
        let (_, body) = ask(&mut asks, "GET /v1/status");
        let status: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        let state = &status["groups"][0]["state"];
        if state["condition"] != "protected" {
            break state.clone();
        }
    };
    assert_eq!(state["reason"]["code"], "no_space", "{state:#}");
    assert!(state["reason"]["mend"].as_str().is_some_and(|mend| mend.contains("LimitNOFILE=")), "{state:#}");
    gateway.allow_descriptors(before);
    let (head, _) = answer(&mut waits);
    assert!(head.starts_with("HTTP/1.1 201"), "{head}");
    gateway.until("all is well", |status| status["groups"][0]["state"]["condition"] == "protected");
    clients.iter_mut().for_each(|client| write(client, 3));
    assert!(!gateway.logged("Too many open files").is_empty());
}
