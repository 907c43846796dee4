//! Giving space back on a file system that is full to the last byte: disks that are removed, points that are deleted, a
//! shorter ladder; and a stop while somebody waits for a point there. Needs root.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use afterimage::capture::nbd::client::{Client, Command, Wishes};
use afterimage::units::to_usize;
use rustix::fs::{IFlags, ioctl_getflags};
use serde_json::Value;

use crate::content::{assert_same_bytes, content};
use crate::gateway::{Gateway, wait};
use crate::small_file_system::SmallFileSystem;
use crate::tool;

const BLOCK_BYTES: u32 = 256 << 10;

fn connect(gateway: &Gateway, disk: &str) -> Client<UnixStream> {
    Client::connect(gateway.connect(), Wishes::all(disk.to_owned())).expect("it is served")
}

fn write(client: &mut Client<UnixStream>, block: u64, seed: u64) {
    let data = content(seed, BLOCK_BYTES as usize);
    let write = Command::Write { offset: block * u64::from(BLOCK_BYTES), data: &data, durable: false };
    client.call(&write).expect("served").expect("no space is no error: the write waits");
}

/// Writes so many blocks to a disk, each once it is acknowledged the next.
fn write_all(gateway: &Gateway, disk: &str, blocks: u64) -> JoinHandle<()> {
    let mut client = connect(gateway, disk);
    thread::spawn(move || (0..blocks).for_each(|block| write(&mut client, block, block)))
}

/// The only group's vault.
fn vault(gateway: &Gateway) -> PathBuf {
    let mut groups = fs::read_dir(gateway.data().join("vault")).unwrap();
    groups.next().expect("a group").unwrap().path()
}

/// How many spares there are, and whether there is room in reserve: what was given up has a file, of no length.
fn reserve(gateway: &Gateway) -> (usize, bool) {
    let names = fs::read_dir(vault(gateway).join("manifest")).unwrap();
    let names = names.map(|name| name.unwrap().file_name().into_string().unwrap());
    let spares = names.filter(|name| name.starts_with("reserve-") && name.matches(".partial").count() == 1);
    let room = fs::metadata(vault(gateway).join("reserve.partial"));
    (spares.count(), room.is_ok_and(|room| room.len() > 0))
}

fn has_point(gateway: &Gateway, label: &str) -> bool {
    gateway.json("point list erp").as_array().expect("a list").iter().any(|point| point["label"] == label)
}

/// Deletes a point, unless it has gone by itself: for one that did not fit the oldest ones go, after some seconds.
#[track_caller]
fn delete_point(gateway: &Gateway, label: &str) {
    let deleted = gateway.output(&format!("point delete erp {label} --yes"));
    let told = String::from_utf8_lossy(&deleted.stderr);
    assert!(deleted.status.success() || told.contains("no recovery point has the label"), "{told}");
}

/// Whether a file is of what a vault keeps back, or is becoming so.
pub fn is_reserve(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("reserve"))
}

const WHOLE: (usize, bool) = (16, true);

/// Waits until the only group has its reserve.
#[track_caller]
pub fn until_reserve(gateway: &Gateway) {
    gateway.until("the reserve", |_| reserve(gateway) == WHOLE);
}

fn visible(status: &Value) -> u64 {
    status["groups"][0]["lsn"]["visible"].as_u64().expect("a number")
}

/// Waits until the disk is full and nothing further becomes visible, question after question.
#[track_caller]
fn until_writes_wait(gateway: &Gateway) -> u64 {
    const QUIET_QUESTIONS: u32 = 40;
    let (newest, quiet) = (Cell::new(0), Cell::new(0));
    let status = gateway.until("a full disk", |status| {
        let is_full = status["groups"][0]["state"]["reason"]["code"] == "no_space";
        let is_quiet = is_full && newest.replace(visible(status)) == visible(status);
        quiet.set(if is_quiet { quiet.get() + 1 } else { 0 });
        quiet.get() == QUIET_QUESTIONS
    });
    visible(&status)
}

/// A group with a large disk, and one whose image has 16 MiB, of which two points have 4.
fn protect(small: &SmallFileSystem) -> Gateway {
    let ballast = File::options().write(true).open(small.path("ballast")).unwrap();
    ballast.set_len(128 << 20).unwrap();
    let gateway = Gateway::with(&small.setup());
    gateway.protect([("db", "64M"), ("old", "16M")]);
    gateway.says("policy set erp --interval 24h --retain all");
    let mut client = connect(&gateway, "erp/old");
    for (label, blocks) in [("first", 0..4), ("second", 4..16)] {
        blocks.for_each(|block| write(&mut client, block, block));
        gateway.says(&format!("point create erp --label {label}"));
    }
    (16..64).for_each(|block| write(&mut client, block, block));
    let destaged = |status: &Value| status["groups"][0]["lsn"]["destaged"].as_u64() == Some(visible(status));
    gateway.until("all of it in the image", destaged);
    until_reserve(&gateway);
    gateway
}

/// Nothing could be given back, for each step of the manifest needs a block.
#[test]
fn what_gives_space_back_is_done_on_a_full_disk() {
    let small = SmallFileSystem::new();
    let mut gateway = protect(&small);
    small.fill_up();
    let writer = write_all(&gateway, "erp/db", 160);
    let before = until_writes_wait(&gateway);
    // The oldest point goes into the base, which was empty: for that there is the reserve.
    delete_point(&gateway, "first");
    gateway.until("one point less", |_| !has_point(&gateway, "first"));
    gateway.says("policy set erp --retain 1h:all");
    small.fill_up();
    gateway.says("disk remove erp/old --yes");
    gateway.until("writes go on", |status| visible(status) > before);
    until_writes_wait(&gateway);
    small.fill_up();
    gateway.says("group pause erp");
    gateway.says("group resume erp");
    small.make_space();
    writer.join().unwrap();
    gateway.says("point create erp --label after");
    until_reserve(&gateway);
    gateway.terminate();
    gateway.restart();
    assert_eq!(reserve(&gateway), WHOLE, "it outlives a restart");
    let report = gateway.json("vault verify");
    assert_eq!(
        (&report["faults"], &report["orphans"]),
        (&Value::Array(Vec::new()), &Value::Null),
        "{report:#}"
    );
}

/// The base takes up 20 MiB, and the reserve has 6: the delta gives back what the base has taken in.
#[test]
fn a_point_whose_delta_is_larger_than_the_reserve_goes_on_a_full_disk() {
    let small = SmallFileSystem::new();
    let ballast = File::options().write(true).open(small.path("ballast")).unwrap();
    ballast.set_len(128 << 20).unwrap();
    a_point_goes_in_pieces(&small);
}

/// Nothing came back of a delta whose bytes had been written out together; and where nothing is written in place, a
/// full file system takes no more writes to segments and images that are there.
#[test]
fn the_same_goes_on_btrfs_whose_files_are_written_in_place() {
    let small = SmallFileSystem::btrfs(240 << 20);
    a_point_goes_in_pieces(&small);
    let directories = ["data/groups", "data/vault"].map(|name| small.path(name).into_os_string());
    let arguments = ["-type", "f", "-size", "+64k"].map(OsString::from);
    let files = tool::says("find", directories.into_iter().chain(arguments));
    assert!(files.lines().count() > 4, "journal, image, base and what is kept back: {files}");
    for file in files.lines() {
        let flags = ioctl_getflags(File::open(file).unwrap()).unwrap();
        assert!(flags.contains(IFlags::NOCOW), "{file}: {flags:?}");
    }
}

fn a_point_goes_in_pieces(small: &SmallFileSystem) {
    let mut gateway = Gateway::with(&small.setup());
    gateway.protect([("db", "64M")]);
    gateway.says("policy set erp --interval 24h --retain all");
    let mut client = connect(&gateway, "erp/db");
    (0..80).for_each(|block| write(&mut client, block, block));
    gateway.says("point create erp --label first");
    (40..44).for_each(|block| write(&mut client, block, 200));
    gateway.says("point create erp --label second");
    let destaged = |status: &Value| status["groups"][0]["lsn"]["destaged"].as_u64() == Some(visible(status));
    gateway.until("all of it in the image", destaged);
    until_reserve(&gateway);
    small.fill_up();
    delete_point(&gateway, "first");
    let bytes = |status: &Value| status["groups"][0]["limits"]["history_bytes"].as_u64();
    gateway.until("its delta is gone", |status| bytes(status) == Some(0));
    gateway.says("verify erp");
    assert_eq!(gateway.json("vault verify")["faults"], Value::Array(Vec::new()));
    gateway.terminate();
    gateway.restart();
    let restored = tempfile::tempdir().unwrap();
    gateway.says(&format!("restore erp --point second --to {}", restored.path().display()));
    let restored = fs::read(restored.path().join("db.raw")).unwrap();
    for block in 0..80 {
        let seed = if (40..44).contains(&block) { 200 } else { block };
        let part = to_usize(block) * BLOCK_BYTES as usize..;
        assert_same_bytes(&restored[part][..BLOCK_BYTES as usize], &content(seed, BLOCK_BYTES as usize));
    }
}

fn blobs(gateway: &Gateway) -> BTreeSet<OsString> {
    let blobs = fs::read_dir(vault(gateway).join("blobs")).unwrap();
    blobs.map(|blob| blob.unwrap().file_name()).collect()
}

/// What guests wrote meanwhile took what came back, and nothing came back any more.
#[test]
fn points_go_from_a_full_disk_one_after_the_other_beside_a_guest_that_writes() {
    let small = SmallFileSystem::new();
    let ballast = File::options().write(true).open(small.path("ballast")).unwrap();
    ballast.set_len(96 << 20).unwrap();
    let gateway = Gateway::with(&small.setup());
    gateway.protect([("db", "64M")]);
    gateway.says("policy set erp --interval 24h --retain all");
    let mut client = connect(&gateway, "erp/db");
    for label in ["a", "b", "c", "d"] {
        (0..32).for_each(|block| write(&mut client, block, block + u64::from(label.as_bytes()[0])));
        gateway.says(&format!("point create erp --label {label}"));
    }
    let destaged = |status: &Value| status["groups"][0]["lsn"]["destaged"].as_u64() == Some(visible(status));
    gateway.until("all of it in the image", destaged);
    until_reserve(&gateway);
    let before = blobs(&gateway);
    assert_eq!(before.len(), 4);
    small.fill_up();
    // Where the image has holes.
    let mut client = connect(&gateway, "erp/db");
    let writer = thread::spawn(move || (32..256).for_each(|block| write(&mut client, block, block)));
    until_writes_wait(&gateway);
    for label in ["a", "b", "c"] {
        delete_point(&gateway, label);
    }
    gateway.until("their deltas are gone", |_| blobs(&gateway).is_disjoint(&before));
    small.make_space();
    writer.join().unwrap();
    gateway.says("verify erp");
    assert_eq!(gateway.json("vault verify")["faults"], Value::Array(Vec::new()));
    until_reserve(&gateway);
}

/// It waited without a word, and kept SIGTERM waiting for a minute.
#[test]
fn a_point_that_waits_for_space_says_so_and_ends_with_the_gateway() {
    let small = SmallFileSystem::new();
    let mut gateway = protect(&small);
    write(&mut connect(&gateway, "erp/db"), 0, 1);
    small.fill_up();
    let mut client = gateway.start_cli("point create erp --label waits");
    let mut lines = BufReader::new(client.stderr.take().expect("a pipe"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("a pipe");
    assert!(line.starts_with("erp waits: a file system is full") && line.contains("free space"), "{line}");
    gateway.terminate();
    let status = wait(&mut client);
    let mut rest = String::new();
    lines.read_to_string(&mut rest).expect("a pipe");
    assert_eq!(status.code(), Some(1), "{rest}");
    assert!(
        rest.contains("the gateway is stopping, and this was not done yet: a file system is full"),
        "{rest}"
    );
    small.make_space();
    gateway.restart();
    gateway.until("the point that was asked for", |_| has_point(&gateway, "waits"));
}
