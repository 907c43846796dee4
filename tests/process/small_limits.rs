//! Every limit really met, one after the other, by one gateway whose data directory is on a small file system, and whose images are on
//! another: each has its gauge, its reason and its event, and passes. Needs root.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use afterimage::capture::nbd::client::{Answer, Client, Command, Wishes};
use serde_json::Value;

use crate::content::{assert_same_bytes, content};
use crate::gateway::{Gateway, Setup};
use crate::small_file_system::SmallFileSystem;
use crate::tool;

const BLOCK_BYTES: usize = 1 << 20;
const BUFFERS_BYTES: u64 = 32 << 20;
const JOURNAL_BYTES: u64 = 24 << 20;
const MAPS_BYTES: u64 = 1 << 20;

fn connect(gateway: &Gateway) -> Client<UnixStream> {
    Client::connect(gateway.connect(), Wishes::all("erp/db".to_owned())).expect("it is served")
}

/// Asks for so many writes, as many at a time as the gateway takes; all of them are answered in the end.
fn write_all(gateway: &Gateway, bytes: usize, stride: u64, writes: u64, depth: u64) -> JoinHandle<()> {
    let mut client = connect(gateway);
    thread::spawn(move || {
        let mut queued = 0;
        while queued < writes || client.in_flight() > 0 {
            while queued < writes && (client.in_flight() as u64) < depth {
                let data = content(queued, bytes);
                let write = Command::Write { offset: queued * stride, data: &data, durable: false };
                client.queue(queued, &write).expect("a cookie of its own");
                client.send_queued().expect("the connection holds");
                queued += 1;
            }
            client.receive().expect("the connection holds").result.expect("delayed, never refused");
        }
    })
}

fn group(status: &Value) -> &Value {
    &status["groups"][0]
}

#[track_caller]
fn until_reason(gateway: &Gateway, code: &str) -> Value {
    gateway.until(code, |status| group(status)["state"]["reason"]["code"] == code)
}

#[track_caller]
fn until_protected(gateway: &Gateway) {
    gateway.until("protected", |status| group(status)["state"]["condition"] == "protected");
}

/// Waits for an event whose message has this in it; it is a warning at least.
#[track_caller]
fn until_event(gateway: &Gateway, code: &str, text: &str) -> String {
    let message = |event: &Value| event["message"].as_str().unwrap_or_default().to_owned();
    let is_it = |event: &&Value| event["code"] == code && message(event).contains(text);
    let listed = || gateway.json("events --limit 1000").as_array().expect("a list").clone();
    gateway.until(text, |_| listed().iter().any(|event| is_it(&event)));
    let event = listed().iter().find(|event| is_it(event)).expect("it is there").clone();
    assert_ne!(event["severity"], "info", "{event:#}");
    message(&event)
}

/// A file system that a group's images are on, and nothing else.
struct Mounted(PathBuf);

impl Mounted {
    /// Mounts it in the place of the directory of the only group, which has no disk yet.
    #[track_caller]
    fn over_images<const N: usize>(gateway: &Gateway, mount: [&str; N]) -> Mounted {
        let id = gateway.json("group show erp")["id"].as_str().expect("text").to_owned();
        let images = gateway.data().join("groups").join(id).join("images");
        fs::create_dir_all(&images).unwrap();
        tool::says("mount", mount.into_iter().chain([text(&images)]));
        Mounted(images)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The gateway holds its files still; a failure here must not become a second panic.
        let _ = tool::command("umount").args(["--lazy", text(&self.0)]).status();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn every_limit_is_met_told_of_and_passed() {
    let (small, of_images) = (SmallFileSystem::new(), SmallFileSystem::new());
    of_images.make_space();
    small.make_space();
    let gateway = Gateway::with(&Setup {
        connections_max: 4,
        buffers: "32MiB",
        buffers_total: "32MiB",
        journal: ("24MiB", "1MiB"),
        more: "[memory]\nmaps = \"1MiB\"\nframes = \"1MiB\"\n[vault]\nfree_min = \"2MiB\"\n",
        ..small.setup()
    });
    gateway.says("group create erp");
    let _images = Mounted::over_images(&gateway, ["--bind", text(&of_images.path("."))]);
    gateway.says("disk create erp/db --size 64M");
    gateway.says("policy set erp --interval 24h");

    connections(&gateway);
    maps(&gateway, &of_images);
    journal(&gateway);
    buffers(&gateway, &of_images);

    // Where the journal grows is full to the last byte.
    small.fill_up();
    let writer = write_all(&gateway, BLOCK_BYTES, BLOCK_BYTES as u64, 40, 1);
    until_reason(&gateway, "no_space");
    // How full it is was looked at up to a second ago.
    gateway.until("a look at it", |status| group(status)["limits"]["free_bytes"].as_u64() < Some(2 << 20));
    until_event(&gateway, "condition", "a file system is full");
    small.give_back();
    writer.join().unwrap();
    until_protected(&gateway);
    let mut client = connect(&gateway);
    for block in 0..60 {
        let length = BLOCK_BYTES.try_into().unwrap();
        let read = Command::Read { offset: block * BLOCK_BYTES as u64, length, unfragmented: true };
        let Ok(Answer::Data(found)) = client.call(&read).unwrap() else { panic!("no read") };
        assert_same_bytes(&found, &content(block, BLOCK_BYTES));
    }
}

fn connections(gateway: &Gateway) {
    let clients: Vec<_> = (0..4).map(|_| connect(gateway)).collect();
    let one_too_many = Client::connect(gateway.connect(), Wishes::all("erp/db".to_owned()));
    one_too_many.expect_err("the fifth of four");
    let status = gateway.until("turned away", |status| status["turned_away"]["clients"] == 1);
    assert_eq!((&status["connections"], &status["connections_limit"]), (&4.into(), &4.into()));
    until_event(gateway, "clients_turned_away", "4 are connected");
    drop(clients);
    gateway.until("places again", |status| status["connections"] == 0);
}

/// Images take nothing: maps stay.
fn maps(gateway: &Gateway, of_images: &SmallFileSystem) {
    let frozen = of_images.freeze();
    let writer = write_all(gateway, 512, 1024, 24_000, 200);
    let full = until_reason(gateway, "maps_full");
    let limits = &group(&full)["limits"];
    assert_eq!(limits["maps_limit_bytes"], MAPS_BYTES);
    assert!(limits["maps_bytes"].as_u64() >= Some(MAPS_BYTES / 2), "{limits:#}");
    until_event(gateway, "condition", "maps are at their limit");
    drop(frozen);
    writer.join().unwrap();
    until_protected(gateway);
}

/// Nothing is made of what is written until little of the journal is free: that ends the interval.
fn journal(gateway: &Gateway) {
    write_all(gateway, BLOCK_BYTES, BLOCK_BYTES as u64, 30, 8).join().unwrap();
    until_event(gateway, "condition", "the journal fills faster");
    let status = gateway.json("status");
    let journal = &group(&status)["journal"];
    assert_eq!(journal["limit_bytes"], JOURNAL_BYTES);
    assert!(journal["used_bytes"].as_u64() <= Some(JOURNAL_BYTES), "{journal:#}");
    until_protected(gateway);
}

/// Images take nothing, and what the journal does not take stays in buffers.
fn buffers(gateway: &Gateway, of_images: &SmallFileSystem) {
    let frozen = of_images.freeze();
    let hoarder = write_all(gateway, BLOCK_BYTES, BLOCK_BYTES as u64, 60, 60);
    gateway.until("all buffers taken", |status| {
        status["buffers_total_bytes"].as_u64() > Some(BUFFERS_BYTES - 2 * BLOCK_BYTES as u64)
    });
    // It needs more than what is left.
    let waiter = write_all(gateway, 4 * BLOCK_BYTES, 0, 1, 1);
    let told = gateway.until("somebody who waits", |status| status["buffers_waiting_ms"].is_u64());
    assert_eq!(told["buffers_total_limit_bytes"], BUFFERS_BYTES);
    until_event(gateway, "buffers_full", "[nbd] buffers_total (32MiB)");
    assert!(gateway.says("status").contains("buffers  for "), "people are told");
    let check = gateway.cli("check").output().expect("the program");
    let line = String::from_utf8(check.stdout).expect("UTF-8");
    assert!(check.status.code() != Some(0) && line.contains("[nbd] buffers_total"), "{line}");
    drop(frozen);
    for client in [hoarder, waiter] {
        client.join().unwrap();
    }
    let is_empty = |status: &Value| {
        status["buffers_total_bytes"] == 0
            && status["buffers_waiting_ms"].is_null()
            && status["connections"] == 0
    };
    gateway.until("empty buffers", is_empty);
    until_protected(gateway);
}

/// The images' file system had no gauge of its own, and nothing said that it would soon be full.
#[test]
fn images_alone_fill_their_file_system() {
    const FREE_MIN_BYTES: u64 = 8 << 20;
    let more = "[images]\nfree_min = \"8MiB\"\n";
    let gateway = Gateway::with(&Setup { journal: ("16MiB", "1MiB"), more, ..Setup::default() });
    gateway.says("group create erp");
    let images = Mounted::over_images(&gateway, ["-t", "tmpfs", "-o", "size=24M", "images"]);
    gateway.says("disk create erp/db --size 60M");
    gateway.says("policy set erp --interval 24h");
    let free = |status: &Value| group(status)["limits"]["images_free_bytes"].as_u64();
    let roomy = gateway.until("a look", |status| free(status) > Some(FREE_MIN_BYTES));
    assert_eq!(group(&roomy)["limits"]["images_free_min_bytes"], FREE_MIN_BYTES);
    write_all(&gateway, BLOCK_BYTES, BLOCK_BYTES as u64, 18, 4).join().unwrap();
    let told = until_event(&gateway, "space_low", "file system of the images");
    assert!(told.contains("[images] free_min"), "{told}");
    // It is told before it is full: a guest is slowed down meanwhile, no more.
    until_protected(&gateway);
    let low = gateway.json("status");
    assert!(free(&low) < Some(FREE_MIN_BYTES) && free(&low) > Some(0), "{low:#}");
    let writer = write_all(&gateway, BLOCK_BYTES, BLOCK_BYTES as u64, 60, 4);
    // How full it is was looked at up to a second ago.
    until_reason(&gateway, "no_space");
    let full = gateway.until("a look at it", |status| free(status) < Some(1 << 20));
    assert!(group(&full)["limits"]["free_bytes"].as_u64() > Some(100 << 20), "the vault has room: {full:#}");
    tool::says("mount", ["-o", "remount,size=128M", text(&images.0)]);
    writer.join().unwrap();
    until_protected(&gateway);
}
