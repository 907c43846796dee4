//! A file system that really fills up under the data directory: writes wait, nothing that was acknowledged is lost, and
//! all goes on when there is space again. Needs root.

use std::cell::Cell;
use std::fs;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use afterimage::capture::nbd::client::{Answer, Client, Command, Wishes};
use afterimage::capture::nbd::codec::NBD_ESHUTDOWN;
use serde_json::Value;

use crate::content::{assert_same_bytes, content, files};
use crate::freeing::until_reserve;
use crate::gateway::Gateway;
use crate::small_file_system::SmallFileSystem;

const BLOCK_BYTES: u32 = 256 << 10;
/// 48 MiB: more than is free at first; three times that fits when the ballast is gone.
const BLOCKS: u64 = 192;

fn connect(gateway: &Gateway) -> Client<UnixStream> {
    Client::connect(gateway.connect(), Wishes::all("erp/db".to_owned())).expect("it is served")
}

/// Writes all blocks, each once it is acknowledged the next, until the gateway is gone; gives back how many were.
fn write_all(gateway: &Gateway) -> JoinHandle<u64> {
    let mut client = connect(gateway);
    thread::spawn(move || {
        for block in 0..BLOCKS {
            let data = content(block, BLOCK_BYTES as usize);
            let write =
                Command::Write { offset: block * u64::from(BLOCK_BYTES), data: &data, durable: false };
            match client.call(&write) {
                Ok(Ok(_)) => {}
                // The group went.
                Ok(Err(refused)) if refused.code == NBD_ESHUTDOWN => return block,
                Ok(Err(refused)) => panic!("no space is no error: the write waits: {refused:?}"),
                Err(_) => return block,
            }
        }
        BLOCKS
    })
}

#[track_caller]
fn assert_reads(gateway: &Gateway, blocks: u64) {
    let mut client = connect(gateway);
    for block in 0..blocks {
        let offset = block * u64::from(BLOCK_BYTES);
        let read = Command::Read { offset, length: BLOCK_BYTES, unfragmented: true };
        match client.call(&read).expect("served").expect("readable") {
            Answer::Data(bytes) => assert_same_bytes(&bytes, &content(block, BLOCK_BYTES as usize)),
            other => panic!("no data: {other:?}"),
        }
    }
}

/// Waits until the disk is full and the journal has used up what it had in hand: question after question, nothing
/// further becomes visible.
#[track_caller]
fn until_writes_wait(gateway: &Gateway) -> Value {
    const QUIET_QUESTIONS: u32 = 40;
    let (visible, quiet) = (Cell::new(0), Cell::new(0));
    gateway.until("a full disk", |status| {
        let now = status["groups"][0]["lsn"]["visible"].as_u64().expect("a number");
        let is_quiet = is_full(status) && visible.replace(now) == now;
        quiet.set(if is_quiet { quiet.get() + 1 } else { 0 });
        quiet.get() == QUIET_QUESTIONS
    })
}

/// Whether `status` says that there is no space.
fn is_full(status: &Value) -> bool {
    status["groups"][0]["state"]["reason"]["code"] == "no_space"
}

fn is_protected(status: &Value) -> bool {
    status["groups"][0]["state"]["condition"] == "protected"
}

fn protect(small: &SmallFileSystem) -> Gateway {
    let gateway = Gateway::with(&small.setup());
    gateway.protect([("db", "64M")]);
    gateway.says("policy set erp --interval 24h");
    gateway
}

#[test]
fn writes_wait_for_space_and_go_on() {
    let small = SmallFileSystem::new();
    let mut gateway = protect(&small);
    let writer = write_all(&gateway);
    let status = until_writes_wait(&gateway);
    assert_eq!(status["groups"][0]["state"]["condition"], "degraded", "{status:#}");
    assert!(gateway.says("status").contains("free space"), "people are told");
    gateway.until("for how long", |status| status["groups"][0]["writes_waiting_ms"].as_u64() >= Some(1000));
    assert!(gateway.says("status").contains("writes  wait: the oldest for "), "people are told for how long");
    // It is tried again every second; attempts that failed must not pile up and hold the last space.
    // While they are made, the reason stays the one that a person can do something about.
    gateway.until("a third attempt", |status| {
        assert!(is_full(status), "{status:#}");
        status["groups"][0]["writes_waiting_ms"].as_u64() >= Some(3500)
    });
    // What goes on is no news each time.
    assert_eq!(gateway.logged("no new journal segment").len(), 1);
    let unfinished = files(gateway.data(), "new");
    assert!(unfinished.len() <= 1, "{unfinished:?}");
    small.make_space();
    assert_eq!(writer.join().unwrap(), BLOCKS, "every write was taken in the end");
    let status = gateway.until("protected again", is_protected);
    assert_eq!(status["groups"][0]["writes_waiting_ms"], Value::Null);
    assert_reads(&gateway, BLOCKS);
    gateway.says("point create erp --label after");
    gateway.terminate();
    gateway.restart();
    assert_reads(&gateway, BLOCKS);
    assert_eq!(gateway.json("vault verify")["faults"], Value::Array(Vec::new()));
}

/// An opening that needs space, and finds none, is made again when there is some.
#[test]
fn a_group_that_lacks_only_space_is_opened_by_itself() {
    let small = SmallFileSystem::new();
    let mut gateway = protect(&small);
    // What is left of an unfinished one would be space for the opening.
    until_reserve(&gateway);
    gateway.kill();
    let group = gateway.data().join("groups");
    let group = fs::read_dir(&group).unwrap().next().expect("a group").unwrap().path();
    fs::remove_dir(group.join("tests")).unwrap();
    small.fill_up();
    // A directory needs a block; so does its name's directory if that is full.
    gateway.restart();
    let status = gateway.json("status");
    assert_eq!(status["groups"][0]["state"]["condition"], "failed", "{status:#}");
    assert!(is_full(&status), "{status:#}");
    small.make_space();
    gateway.until("opened", is_protected);
    assert_eq!(write_all(&gateway).join().unwrap(), BLOCKS);
    assert_reads(&gateway, BLOCKS);
}

#[test]
fn a_gateway_killed_on_a_full_disk_starts_on_it() {
    let small = SmallFileSystem::new();
    let mut gateway = protect(&small);
    let writer = write_all(&gateway);
    until_writes_wait(&gateway);
    gateway.kill();
    let acknowledged = writer.join().unwrap();
    assert!((1..BLOCKS).contains(&acknowledged), "the disk was full after {acknowledged} blocks");
    for _ in 0..4 {
        // Not even the catalogue finds room: it is a cache, and nobody needs it to be served.
        for name in ["catalogue.sqlite", "catalogue.sqlite-wal", "catalogue.sqlite-shm"] {
            let _ = fs::remove_file(gateway.data().join(name));
        }
        small.fill_up();
        gateway.restart();
        assert_eq!(gateway.logged("the catalogue cannot be opened").len(), 1);
        assert_reads(&gateway, acknowledged);
        gateway.kill();
    }
    gateway.restart();
    small.make_space();
    assert_eq!(write_all(&gateway).join().unwrap(), BLOCKS);
    gateway.until("protected again", is_protected);
    assert_reads(&gateway, BLOCKS);
}

/// Where retention rests or fails, `status` had neither history nor free space.
#[test]
fn how_full_it_is_is_told_after_a_start_on_a_full_disk() {
    let small = SmallFileSystem::new();
    let mut gateway = protect(&small);
    let mut client = connect(&gateway);
    let write = Command::Write { offset: 0, data: &content(1, BLOCK_BYTES as usize), durable: false };
    client.call(&write).expect("served").expect("taken");
    gateway.says("point create erp --label kept");
    gateway.says("group pause erp");
    drop(client);
    small.fill_up();
    gateway.kill();
    gateway.restart();
    let status =
        gateway.until("how full it is", |status| status["groups"][0]["limits"]["free_bytes"].is_u64());
    let limits = &status["groups"][0]["limits"];
    assert!(limits["free_bytes"].as_u64() < Some(1 << 20), "{limits:#}");
    assert!(limits["history_bytes"].as_u64() >= Some(u64::from(BLOCK_BYTES)), "{limits:#}");
}

/// The catalogue's memory that processes share is a file: there was no block for it, which ended the process by SIGBUS, at each start.
#[test]
fn a_gateway_starts_on_a_full_file_system_of_small_blocks() {
    let small = SmallFileSystem::of_small_blocks();
    let mut gateway = protect(&small);
    gateway.terminate();
    small.fill_up();
    gateway.restart();
    gateway.until("it is served", |status| status["groups"][0]["lsn"]["visible"].is_u64());
}

/// Removal is how people get space back. A review found that it waited for the points and images of what it was about to
/// delete, for which there was no room, and kept every other verb waiting.
#[test]
fn a_group_is_removed_from_a_full_disk() {
    let small = SmallFileSystem::new();
    let gateway = protect(&small);
    gateway.says("group create other");
    let writer = write_all(&gateway);
    until_writes_wait(&gateway);
    small.fill_up();
    gateway.says("group remove erp --yes");
    assert!(writer.join().unwrap() < BLOCKS, "its client was disconnected");
    gateway.says("disk create other/db --size 8M");
    gateway.says("point create other");
    assert!(!gateway.says("group list").contains("erp"));
}

#[test]
fn a_disk_that_is_longer_than_a_file_may_be_is_refused_with_the_limit() {
    let small = SmallFileSystem::new();
    let gateway = Gateway::with(&small.setup());
    gateway.says("group create erp");
    gateway.refuses("disk create erp/db --size 8192P", 2);
    let limit = ["4PiB", "8191PiB"].map(|size| {
        let told = gateway.refuses(&format!("disk create erp/db --size {size}"), 1);
        let (_, told) = told.split_once(&format!("size = {size}: ")).expect("key and value");
        let (_, limit) = told.split_once("at most ").expect("the limit");
        let (limit, mend) = limit.split_once(": ").expect("the mend");
        assert!(mend.contains("smaller size") && mend.contains("XFS"), "{mend}");
        limit.to_owned()
    });
    assert_eq!(limit[0], limit[1]);
    assert_eq!(files(gateway.data(), "raw").len(), 0);
    gateway.says(&format!("disk create erp/db --size {}", limit[0]));
}

/// A first start makes a lock and a key: where that cannot be, the configuration names a place that cannot be served. A review
/// found it refused with exit status 1, without key and mend.
#[test]
fn a_first_start_on_a_full_disk_is_refused_as_a_wrong_configuration() {
    let small = SmallFileSystem::new();
    let mut gateway = Gateway::with(&small.setup());
    gateway.terminate();
    let data = gateway.data().to_owned();
    let refused = |gateway: &Gateway| {
        let serve = format!("serve --config {}", gateway.configuration().display());
        let told = gateway.refuses(&serve, 2);
        let named = [&format!("site.data_dir = \"{}\"", data.display()), "no space", "free some"];
        assert!(named.iter().all(|text| told.contains(*text)), "{told}");
    };
    // As before the first start; and as after one that came no further than to its lock.
    for leaves_lock in [false, true] {
        std::fs::remove_dir_all(&data).unwrap();
        std::fs::create_dir(&data).unwrap();
        if leaves_lock {
            std::fs::write(data.join("lock"), "").unwrap();
        }
        small.fill_up();
        refused(&gateway);
        assert_eq!(
            std::fs::read_dir(&data).unwrap().count(),
            usize::from(leaves_lock),
            "nothing was touched"
        );
        small.give_back();
    }
    gateway.restart();
    gateway.protect([("db", "8M")]);
    gateway.terminate();
    // What is there is served on a full disk, too.
    small.fill_up();
    gateway.restart();
    assert_eq!(gateway.json("disk list")[0]["size_bytes"], 8 << 20);
}

/// What it took after a moment without space was shown, and was gone with the process.
#[test]
fn what_the_catalogue_takes_after_a_full_disk_outlives_a_kill() {
    let small = SmallFileSystem::new();
    let mut gateway = protect(&small);
    let codes = |gateway: &Gateway| {
        let events = gateway.json("events --group erp --limit 1000");
        let code = |event: &Value| event["code"].as_str().unwrap_or_default().to_owned();
        events.as_array().expect("a list").iter().map(code).collect::<Vec<_>>()
    };
    small.fill_up();
    // As often as it takes until there is no block left for one.
    gateway.until("a refusal", |_| {
        gateway.says("group pause erp");
        gateway.says("group resume erp");
        !gateway.logged("the catalogue takes no events").is_empty()
    });
    small.make_space();
    gateway.says("group pause erp");
    gateway.until("the last event", |_| codes(&gateway).iter().take(2).any(|code| code == "paused"));
    let before = codes(&gateway);
    gateway.kill();
    gateway.restart();
    let after = codes(&gateway);
    assert!(after.ends_with(&before), "{before:?}, then {after:?}");
}
