//! Points and test failovers beside ongoing protection, several at once: each shows one moment of both disks.
//!
//! One writer, one request at a time, over both disks; every block says its disk, its place and its turn. So a point
//! is some prefix of the turns, and which one follows from the newest turn in it: it must hold every turn that was
//! acknowledged before `point create` was called, and none that was issued after it had returned.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use afterimage::capture::nbd::client::{Client, Command, Wishes};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::content::assert_same;
use crate::gateway::Gateway;
use crate::tool;

on_each_backend!(points_are_prefixes_of_what_was_written);

const DISKS: [&str; 2] = ["db", "log"];
const BLOCK_BYTES: usize = 4096;
const BLOCKS: u64 = 4096;
const POINTS: u64 = 4;
/// Turns that go by between two points, at least.
const TURNS_BETWEEN: u64 = 300;

/// Where a turn writes: disk and block.
fn place(turn: u64) -> (usize, u64) {
    let hash = xxh3_64(&turn.to_le_bytes());
    (usize::from(hash & 1 == 1), (hash >> 1) % BLOCKS)
}

fn block(turn: u64) -> Vec<u8> {
    let (disk, block) = place(turn);
    let header = [disk as u64, block, turn];
    let words = (0..BLOCK_BYTES / 8).map(|word| match header.get(word) {
        Some(&told) => told,
        None => xxh3_64(&(turn << 10 | word as u64).to_le_bytes()),
    });
    words.flat_map(u64::to_le_bytes).collect()
}

/// What every place holds after the first `turns` turns.
fn model(turns: u64) -> HashMap<(usize, u64), u64> {
    (1..=turns).map(|turn| (place(turn), turn)).collect()
}

/// The ongoing protection.
struct Writer {
    issued: Arc<AtomicU64>,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn start(gateway: &Gateway) -> Writer {
        let mut clients = DISKS.map(|disk| {
            Client::connect(gateway.connect(), Wishes::all(format!("erp/{disk}"))).expect("it is served")
        });
        let (issued, acknowledged) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let told = (Arc::clone(&issued), Arc::clone(&acknowledged), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let (issued, acknowledged, stop) = told;
            for turn in 1.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (disk, number) = place(turn);
                let command = Command::Write {
                    offset: number * BLOCK_BYTES as u64,
                    data: &block(turn),
                    durable: false,
                };
                issued.store(turn, Ordering::SeqCst);
                clients[disk].call(&command).expect("the gateway lives").expect("it takes writes");
                acknowledged.store(turn, Ordering::SeqCst);
            }
        });
        Writer { issued, acknowledged, stop, thread }
    }

    fn wait_for(&self, turn: u64) {
        while self.acknowledged.load(Ordering::SeqCst) < turn {
            assert!(!self.thread.is_finished(), "the writer failed");
            thread::yield_now();
        }
    }

    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("every write was taken");
        self.issued.load(Ordering::SeqCst)
    }
}

/// Checks that the files of both disks are some prefix of the turns, and says which.
#[track_caller]
fn prefix(disks: &[Vec<u8>; 2]) -> u64 {
    let turn_of = |bytes: &[u8]| u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes"));
    let turns = disks.iter().flat_map(|disk| disk.chunks(BLOCK_BYTES)).map(turn_of).max().expect("blocks");
    let model = model(turns);
    for (disk, bytes) in disks.iter().enumerate() {
        for (number, found) in bytes.chunks(BLOCK_BYTES).enumerate() {
            match model.get(&(disk, number as u64)) {
                Some(&turn) => {
                    assert!(found == block(turn), "disk {disk} block {number}: turn {turn} of {turns}")
                }
                None => assert!(found.iter().all(|&byte| byte == 0), "disk {disk} block {number} is empty"),
            }
        }
    }
    turns
}

/// Fetches both disks of a test failover with nbdcopy.
fn fetch(gateway: &Gateway, test: &Value) -> [Vec<u8>; 2] {
    DISKS.map(|disk| {
        let file = gateway.path(format!("{}-{disk}", test["number"]));
        let uri = gateway.uri(&format!("erp/{disk}@test-{}", test["number"]));
        tool::says("nbdcopy", [uri.as_ref(), file.as_os_str()]);
        fs::read(file).unwrap()
    })
}

fn points_are_prefixes_of_what_was_written(backend: &'static str) {
    let gateway = Gateway::on(backend);
    gateway.protect(DISKS.map(|disk| (disk, "16M")));
    gateway.says("policy set erp --interval 100ms");
    let writer = Writer::start(&gateway);
    let mut bounds = Vec::new();
    for number in 0..POINTS {
        writer.wait_for((number + 1) * TURNS_BETWEEN);
        let acknowledged = writer.acknowledged.load(Ordering::SeqCst);
        gateway.says(&format!("point create erp --label point-{number}"));
        bounds.push(acknowledged..=writer.issued.load(Ordering::SeqCst));
    }
    let start = |number| gateway.json(&format!("failover test erp --point point-{number}"));
    let tests: Vec<Value> = (0..POINTS).map(start).collect();
    let turns: Vec<u64> = thread::scope(|scope| {
        let fetching = tests.iter().map(|test| scope.spawn(|| prefix(&fetch(&gateway, test))));
        let fetching: Vec<_> = fetching.collect();
        fetching.into_iter().map(|checked| checked.join().expect("the point is a prefix")).collect()
    });
    for (turn, bounds) in turns.iter().zip(&bounds) {
        assert!(bounds.contains(turn), "turn {turn} in {bounds:?}");
    }
    overlays_are_apart(&gateway, &tests);
    writer.wait_for(bounds.last().expect("points").end() + TURNS_BETWEEN);
    restored_is_what_the_test_shows(&gateway, &tests[0]);
    let last = writer.finish();
    gateway.says("failover cleanup erp --all --yes");
    gateway.says("point create erp --label last");
    assert_eq!(prefix(&fetch(&gateway, &gateway.json("failover test erp --point last"))), last);
    assert_eq!(gateway.json("vault verify")["faults"], Value::Array(Vec::new()));
}

/// What is written to one test is seen in no other.
fn overlays_are_apart(gateway: &Gateway, tests: &[Value]) {
    let uri = |test: &Value| gateway.uri(&format!("erp/db@test-{}", test["number"]));
    for (number, test) in tests.iter().enumerate().skip(1) {
        tool::says("qemu-io", ["-f", "raw", "-c", &format!("write -P {number} 0 1M"), &uri(test)]);
    }
    for (number, test) in tests.iter().enumerate().skip(1) {
        let told = tool::says("qemu-io", ["-f", "raw", "-c", &format!("read -P {number} 0 1M"), &uri(test)]);
        assert!(!told.contains("verification failed"), "{told}");
    }
}

fn restored_is_what_the_test_shows(gateway: &Gateway, test: &Value) {
    let directory = gateway.path("restored");
    gateway.says(&format!("restore erp --point point-0 --to {}", directory.display()));
    for disk in DISKS {
        assert_same(
            &directory.join(format!("{disk}.raw")),
            &gateway.path(format!("{}-{disk}", test["number"])),
        );
    }
}
