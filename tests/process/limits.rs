//! Limits, really reached: of space, on a file system that is really small, and of memory, by clients that ask for more than is
//! allowed; and pauses. What a guest sees, and what people are told, and when.

use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use afterimage::capture::nbd::client::{Answer, Client, Command, Wishes, encode_request};
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
    let points = gateway.json("point list erp");
    // Those without a label were made so that the journal has room.
    let kept: Vec<String> =
        points.as_array().unwrap().iter().map(label).filter(|label| !label.is_empty()).collect();
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

/// Each write is an extent of its own, and makes an entry of a payload table.
#[test]
fn maps_that_are_full_delay_writes_and_lose_none() {
    const LIMIT_BYTES: u64 = 1 << 20;
    const WRITES: u64 = 24_000;
    const STRIDE_BYTES: u64 = 1024;
    const DEPTH: u64 = 200;
    let gateway = Gateway::with(&Setup { more: "[memory]\nmaps = \"1MiB\"\n", ..Setup::default() });
    gateway.protect([("db", "32M")]);
    gateway.says("policy set erp --interval 24h");
    let mut client = connect(&gateway);
    let mut queued = 0;
    while queued < WRITES || client.in_flight() > 0 {
        while queued < WRITES && (client.in_flight() as u64) < DEPTH {
            let data = queued.to_le_bytes().repeat(64);
            let write = Command::Write { offset: queued * STRIDE_BYTES, data: &data, durable: false };
            client.queue(queued, &write).expect("a cookie of its own");
            queued += 1;
        }
        client.receive().expect("the connection holds").result.expect("delayed, never refused");
    }
    let told = gateway.json("events --group erp --limit 1000");
    let full = |event: &&Value| {
        event["message"].as_str().is_some_and(|text| text.contains("maps are at their limit"))
    };
    let event = told.as_array().unwrap().iter().find(full).unwrap_or_else(|| panic!("{told:#}"));
    assert_eq!(event["severity"], "warning");
    let passed = |status: &Value| {
        let limits = &group(status)["limits"];
        assert_eq!(limits["maps_limit_bytes"], LIMIT_BYTES);
        group(status)["state"]["condition"] == "protected"
            && limits["maps_bytes"].as_u64() <= Some(LIMIT_BYTES)
    };
    gateway.until("room in the maps again", passed);
    for number in (0..WRITES).step_by(97) {
        let read = Command::Read { offset: number * STRIDE_BYTES, length: 512, unfragmented: true };
        let Answer::Data(found) = client.call(&read).unwrap().expect("given") else { panic!("no read") };
        assert_eq!(found[..], number.to_le_bytes().repeat(64)[..]);
    }
}

/// The disk takes nothing for as long as its file system is frozen: what comes in stays in buffers.
#[test]
fn a_client_that_fills_its_buffers_is_left_unread_until_they_empty() {
    const LIMIT_BYTES: u64 = 32 << 20;
    const REQUESTS: u64 = 64;
    /// What lies unread in the socket, on both sides.
    const SOCKET_BYTES: u64 = 4 << 20;
    let small = SmallFileSystem::new();
    small.make_space();
    let gateway = Gateway::with(&Setup { buffers: "32MiB", ..small.setup() });
    gateway.protect([("db", "64M")]);
    let socket = gateway.connect();
    let mut rest = socket.try_clone().unwrap();
    let _client = Client::connect(socket, Wishes::all("erp/db".to_owned())).expect("it is served");
    let data = vec![7; usize::try_from(BLOCK_BYTES).unwrap()];
    let mut requests = Vec::new();
    for number in 0..REQUESTS {
        // The same 8 MiB over and over: the file system is small.
        let offset = number % 8 * BLOCK_BYTES;
        encode_request(number, &Command::Write { offset, data: &data, durable: false }, &mut requests);
    }
    let frozen = small.freeze();
    rest.set_nonblocking(true).unwrap();
    let sent = Cell::new(0);
    // Each question is a round trip to the thread that reads the socket: when it has not read more between two, it does not.
    let full = gateway.until("buffers at their limit", |status| {
        let before = sent.get();
        match (&rest).write(&requests[before..]) {
            Ok(bytes) => sent.set(before + bytes),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "the connection holds"),
        }
        sent.get() == before && status["buffers_bytes"].as_u64() >= Some(LIMIT_BYTES - BLOCK_BYTES)
    });
    let sent = sent.get();
    assert_eq!(full["buffers_limit_bytes"], LIMIT_BYTES);
    assert!(full["buffers_bytes"].as_u64() <= Some(LIMIT_BYTES + BLOCK_BYTES), "{full:#}");
    assert!(sent as u64 <= LIMIT_BYTES + BLOCK_BYTES + SOCKET_BYTES, "{sent} bytes were taken");
    drop(frozen);
    rest.set_nonblocking(false).unwrap();
    rest.write_all(&requests[sent..]).expect("it is read again");
    for _ in 0..REQUESTS {
        let mut header = [0; 16];
        rest.read_exact(&mut header).expect("each is answered");
        assert_eq!(header[4..8], [0; 4], "without an error");
    }
    gateway.until("empty buffers", |status| status["buffers_bytes"] == 0);
}

/// What forty clients asked for and did not take was bounded by nothing: 2.6 GB, of which no gauge told.
#[test]
fn forty_clients_that_take_no_replies_hold_what_they_may_together_and_no_other_client_up() {
    const CLIENTS: usize = 40;
    const REQUESTS: u64 = 20;
    const READ_BYTES: u32 = 32 << 20;
    const TOTAL_BYTES: u64 = 256 << 20;
    const SMALL_BYTES: usize = 64 << 10;
    let gateway = Gateway::with(&Setup {
        buffers_total: "256MiB",
        // A process that does nothing takes a third of it: stacks, and what the allocator reserves for each thread.
        address_space_kib: Some(1_500_000),
        ..Setup::default()
    });
    gateway.protect([("db", "64M")]);
    let mut requests = Vec::new();
    for cookie in 0..REQUESTS {
        encode_request(
            cookie,
            &Command::Read { offset: 0, length: READ_BYTES, unfragmented: false },
            &mut requests,
        );
    }
    let hoarders: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let socket = gateway.connect();
            let client = Client::connect(socket.try_clone().unwrap(), Wishes::all("erp/db".to_owned()));
            (&socket).write_all(&requests).expect("so little fits the socket");
            (client.expect("it is served"), socket)
        })
        .collect();
    let full = gateway.until("all room taken", |status| {
        status["buffers_total_bytes"].as_u64() > Some(TOTAL_BYTES - u64::from(READ_BYTES))
    });
    assert_eq!(full["buffers_total_limit_bytes"], TOTAL_BYTES);
    let mut client = connect(&gateway);
    for seed in 0..64 {
        let data = content(seed, SMALL_BYTES);
        let offset = seed % 8 * SMALL_BYTES as u64;
        let write = Command::Write { offset, data: &data, durable: true };
        assert!(client.call(&write).expect("the connection holds").is_ok());
        let read = Command::Read { offset, length: SMALL_BYTES.try_into().unwrap(), unfragmented: true };
        assert!(client.call(&read).unwrap() == Ok(Answer::Data(data)));
    }
    let full = gateway.json("status");
    let (held, total) =
        (full["buffers_bytes"].as_u64().unwrap(), full["buffers_total_bytes"].as_u64().unwrap());
    // Headers of replies come on top.
    let own = (CLIENTS as u64 + 1) * (128 << 10);
    assert!(held <= TOTAL_BYTES + own + (1 << 20) && total <= TOTAL_BYTES + (1 << 20), "{full:#}");
    drop(hoarders);
    gateway.until("all room given back", |status| {
        status["buffers_total_bytes"] == 0 && status["buffers_bytes"] == 0 && status["connections"] == 1
    });
    write(&mut client, 0, 99);
}
