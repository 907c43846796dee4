//! A group that is removed while its clients' writes wait for space: whoever is still there is told, and nothing that clients held is
//! kept. Needs root.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;

use afterimage::capture::nbd::client::{Client, Command, Wishes};
use afterimage::capture::nbd::codec::NBD_ESHUTDOWN;
use serde_json::Value;

use crate::content::content;
use crate::gateway::{Gateway, Setup};
use crate::small_file_system::SmallFileSystem;

const BLOCK_BYTES: u32 = 1 << 20;
/// Of writes that a client has under way: as many as may be there in buffers.
const WRITES_MAX: u64 = 8;

fn connect(gateway: &Gateway, disk: &str) -> Client<UnixStream> {
    Client::connect(gateway.connect(), Wishes::all(disk.to_owned())).expect("it is served")
}

fn ask(client: &mut Client<UnixStream>, cookie: u64) {
    let data = content(cookie, BLOCK_BYTES as usize);
    let offset = cookie % 60 * u64::from(BLOCK_BYTES);
    client.queue(cookie, &Command::Write { offset, data: &data, durable: false }).unwrap();
    client.send_queued().unwrap();
}

/// A gateway on a full disk, with two groups.
fn full(small: &SmallFileSystem) -> Gateway {
    let more = "[vault]\nfree_min = \"2MiB\"\n";
    let gateway = Gateway::with(&Setup { journal: ("16MiB", "1MiB"), more, ..small.setup() });
    gateway.protect([("db", "64M")]);
    gateway.says("policy set erp --interval 24h");
    gateway.says("group create other");
    gateway.says("disk create other/db --size 8M");
    small.fill_up();
    gateway
}

/// Asks for writes until they wait; gives the cookies of those that do.
fn until_writes_wait(gateway: &Gateway, client: &mut Client<UnixStream>) -> Vec<u64> {
    const QUIET_QUESTIONS: u32 = 20;
    let written = |status: &Value| group(status, "erp")["totals"]["writes"].as_u64().expect("a number");
    let (mut next, mut answered) = (0, 0);
    loop {
        while next < answered + WRITES_MAX {
            ask(client, next);
            next += 1;
        }
        let (before, quiet) = (Cell::new(u64::MAX), Cell::new(0));
        let status = gateway.until("an answer, or none for long", |status| {
            let now = written(status);
            let is_quiet = before.replace(now) == now
                && group(status, "erp")["state"]["reason"]["code"] == "no_space"
                && status["buffers_total_bytes"].as_u64() > Some(0);
            quiet.set(if is_quiet { quiet.get() + 1 } else { 0 });
            now > answered || quiet.get() == QUIET_QUESTIONS
        });
        let done = written(&status);
        if done == answered {
            return (answered..next).collect();
        }
        for _ in answered..done {
            client.receive().unwrap().result.expect("no space is no error: the write waits");
        }
        answered = done;
    }
}

fn group<'a>(status: &'a Value, name: &str) -> &'a Value {
    let groups = status["groups"].as_array().expect("groups");
    groups.iter().find(|group| group["group"]["name"] == name).expect("it is there")
}

#[test]
fn who_waits_for_space_in_a_group_that_is_removed_is_told_and_gives_all_back() {
    for is_there in [true, false] {
        let small = SmallFileSystem::new();
        let gateway = full(&small);
        let mut client = connect(&gateway, "erp/db");
        let waiting = until_writes_wait(&gateway, &mut client);
        let mut client = Some(client).filter(|_| is_there);
        gateway.says("group remove erp --yes");
        if let Some(client) = &mut client {
            // In any order: some wait at the door, others for the journal.
            let mut told = BTreeSet::new();
            for _ in &waiting {
                let answer = client.receive().expect("it is told");
                assert_eq!(answer.result.unwrap_err().code, NBD_ESHUTDOWN);
                told.insert(answer.cookie);
            }
            assert_eq!(told, waiting.into_iter().collect());
            client.receive().expect_err("and then its session ends");
        }
        gateway.until("all given back", |status| {
            status["connections"] == 0 && status["buffers_total_bytes"] == 0 && status["buffers_bytes"] == 0
        });
        let mut other = connect(&gateway, "other/db");
        ask(&mut other, 1);
        other.receive().unwrap().result.expect("the other group is served");
    }
}

/// What is refused ends nothing: neither test failovers nor clients.
#[test]
fn a_group_of_which_points_are_held_stays_whole_and_is_told_which() {
    let gateway = Gateway::start();
    gateway.protect([("db", "1M")]);
    gateway.says("point create erp --label yearly");
    gateway.says("point create erp --label other");
    gateway.says("point hold erp yearly");
    gateway.says("failover test erp --point other");
    let told = gateway.refuses("group remove erp --yes", 1);
    assert!(told.contains("(yearly) is held: 'point release' it; then remove it again"), "{told}");
    assert!(!told.contains("(other)"), "that one goes with the group: {told}");
    assert_eq!(gateway.json("failover list").as_array().map(Vec::len), Some(1));
    let mut client = connect(&gateway, "erp/db@test-1");
    client.call(&Command::Flush).expect("it is served").expect("nothing is wrong");
    gateway.says("point release erp yearly");
    gateway.says("group remove erp --yes");
    assert_eq!(gateway.json("group list"), Value::Array(Vec::new()));
}
