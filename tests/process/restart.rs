//! Removing, listing and serving survive restarts, by SIGTERM and by kill -9 alike, also without the catalogue.

use std::fs;

use afterimage::capture::nbd::client::{Answer, Client, Command, Wishes};
use afterimage::capture::nbd::codec::{NBD_EPERM, NBD_FLAG_CAN_MULTI_CONN, NBD_FLAG_READ_ONLY};
use serde_json::Value;

use crate::content::{assert_same_bytes, content};
use crate::gateway::{Gateway, Setup};
use crate::tool;

/// How a gateway ends.
#[derive(Clone, Copy)]
enum End {
    Terminate,
    Kill,
}

const BOTH: [End; 2] = [End::Terminate, End::Kill];

fn again(gateway: &mut Gateway, end: End) {
    match end {
        End::Terminate => gateway.terminate(),
        End::Kill => gateway.kill(),
    }
    gateway.restart();
}

/// All that is listed, without what differs from moment to moment.
fn listed(gateway: &Gateway) -> Value {
    let points: Vec<Value> = gateway
        .json("group list")
        .as_array()
        .expect("a list")
        .iter()
        .map(|group| gateway.json(&format!("point list {}", group["name"].as_str().expect("text"))))
        .collect();
    serde_json::json!({
        "groups": gateway.json("group list"),
        "disks": gateway.json("disk list"),
        "tests": gateway.json("failover list"),
        "points": points,
    })
}

#[track_caller]
fn write(gateway: &Gateway, export: &str, bytes: &[u8]) {
    let file = gateway.path("written");
    fs::write(&file, bytes).unwrap();
    let file = file.to_str().expect("UTF-8");
    tool::says("nbdcopy", [file, &gateway.uri(export)]);
}

#[track_caller]
fn assert_serves(gateway: &Gateway, export: &str, bytes: &[u8]) {
    let file = gateway.path("served");
    tool::says("nbdcopy", [&gateway.uri(export), file.to_str().expect("UTF-8")]);
    assert_same_bytes(&fs::read(file).unwrap(), bytes);
}

/// Two groups, points, and a test failover that was written to.
fn furnish(gateway: &Gateway) -> [Vec<u8>; 3] {
    gateway.protect([("db", "4M"), ("log", "1M")]);
    gateway.says("group create web");
    gateway.says("disk create web/root --size 2M");
    gateway.says("policy set web --interval 250ms");
    gateway.says("policy set erp --interval 24h");
    let [old, new, overlay] = [1, 2, 3].map(|seed| content(seed, 4 << 20));
    write(gateway, "erp/db", &old);
    gateway.says("point create erp --label old");
    gateway.says("failover test erp --point old");
    write(gateway, "erp/db@test-1", &overlay);
    write(gateway, "erp/db", &new);
    [old, new, overlay]
}

#[test]
fn what_is_listed_and_served_survives() {
    let mut gateway = Gateway::start();
    let [old, new, overlay] = furnish(&gateway);
    let before = listed(&gateway);
    assert_eq!(before["disks"].as_array().map(Vec::len), Some(3));
    for end in BOTH {
        again(&mut gateway, end);
        let now = listed(&gateway);
        assert_eq!(now["groups"], before["groups"]);
        assert_eq!(now["disks"], before["disks"]);
        // A clean stop may have made another.
        assert_eq!(now["points"][0][0], before["points"][0][0]);
        assert_eq!(now["tests"][0]["exports"], before["tests"][0]["exports"]);
        assert_serves(&gateway, "erp/db", &new);
        assert_serves(&gateway, "erp/db@test-1", &overlay);
        let test = gateway.json("failover test erp --point old");
        assert_serves(&gateway, test["exports"][0]["export"].as_str().expect("text"), &old);
        gateway.says(&format!("failover cleanup erp --test {} --yes", test["number"]));
    }
}

#[test]
fn a_read_only_test_failover_stays_one() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "1M")]);
    let old = content(1, 1 << 20);
    write(&gateway, "erp/db", &old);
    gateway.says("point create erp --label old");
    let test = gateway.json("failover test erp --point old --read-only");
    assert_eq!(test["read_only"], true);
    write(&gateway, "erp/db", &content(2, 1 << 20));
    for end in BOTH {
        refuses_writes(&gateway, "erp/db@test-1");
        assert_serves(&gateway, "erp/db@test-1", &old);
        again(&mut gateway, end);
        let tests = gateway.json("failover list");
        assert_eq!((&tests[0]["read_only"], &tests[0]["overlay_bytes"]), (&true.into(), &0.into()));
        assert_eq!(tests[0]["exports"], test["exports"]);
    }
    refuses_writes(&gateway, "erp/db@test-1");
    for group in fs::read_dir(gateway.data().join("groups")).unwrap() {
        let overlays = group.unwrap().path().join("tests");
        assert_eq!(fs::read_dir(overlays).unwrap().count(), 0, "no overlay is made");
    }
    gateway.says("failover cleanup erp");
    assert_eq!(gateway.json("failover list"), serde_json::json!([]));
}

/// Whatever writes is refused with EPERM, on two connections that go on.
fn refuses_writes(gateway: &Gateway, export: &str) {
    let connect = || Client::connect(gateway.connect(), Wishes::all(export.to_owned())).expect("served");
    let mut clients = [connect(), connect()];
    let (offset, length, durable) = (0, 4096, true);
    let (keep_allocated, fast_only) = (true, false);
    let changes = [
        Command::Write { offset, data: &[9; 4096], durable },
        Command::Trim { offset, length, durable },
        Command::WriteZeroes { offset, length, durable, keep_allocated, fast_only },
    ];
    for client in &mut clients {
        let flags = client.granted().flags;
        assert_eq!(flags & NBD_FLAG_READ_ONLY, NBD_FLAG_READ_ONLY);
        assert_eq!(flags & NBD_FLAG_CAN_MULTI_CONN, NBD_FLAG_CAN_MULTI_CONN);
        for (cookie, change) in (1..).zip(&changes) {
            client.queue(cookie, change).unwrap();
        }
        for _ in &changes {
            let answered = client.receive().unwrap();
            assert_eq!(answered.result.unwrap_err().code, NBD_EPERM, "request {}", answered.cookie);
        }
        assert_eq!(client.call(&Command::Flush).unwrap(), Ok(Answer::Done));
    }
}

#[test]
fn what_was_removed_stays_removed() {
    for end in BOTH {
        let mut gateway = Gateway::start();
        furnish(&gateway);
        gateway.says("failover cleanup erp --test 1 --yes");
        gateway.says("disk remove erp/log --yes");
        gateway.says("group remove web --yes");
        again(&mut gateway, end);
        let now = listed(&gateway);
        assert_eq!(now["groups"].as_array().map(Vec::len), Some(1));
        assert_eq!(now["disks"][0]["export"], "erp/db");
        assert_eq!(now["disks"].as_array().map(Vec::len), Some(1));
        assert_eq!(now["tests"], Value::Array(Vec::new()));
        tool::fails("nbdinfo", [gateway.uri("web/root")]);
        tool::fails("nbdinfo", [gateway.uri("erp/log")]);
        // The point was made when the disk was there, and keeps it.
        let test = gateway.json("failover test erp --point old");
        assert_eq!(test["exports"].as_array().map(Vec::len), Some(2), "{test}");
        // Names are free again.
        gateway.says("disk create erp/log --size 3M");
        assert_serves(&gateway, "erp/log", &vec![0; 3 << 20]);
        gateway.says("group create web");
    }
}

#[test]
fn a_lost_catalogue_is_rebuilt() {
    let mut gateway = Gateway::start();
    let [_, new, overlay] = furnish(&gateway);
    let before = listed(&gateway);
    gateway.kill();
    for name in ["catalogue.sqlite", "catalogue.sqlite-wal", "catalogue.sqlite-shm"] {
        let path = gateway.data().join(name);
        assert!(path.exists() || name != "catalogue.sqlite", "there was one");
        let _ = fs::remove_file(path);
    }
    gateway.restart();
    let now = listed(&gateway);
    assert_eq!(now["groups"], before["groups"]);
    assert_eq!(now["disks"], before["disks"]);
    assert_eq!(now["points"][0], before["points"][0]);
    assert_serves(&gateway, "erp/db", &new);
    assert_serves(&gateway, "erp/db@test-1", &overlay);
    gateway.kill();
    fs::write(gateway.data().join("catalogue.sqlite"), "not a database").unwrap();
    gateway.restart();
    assert_eq!(listed(&gateway)["disks"], before["disks"], "a damaged one is no more than a lost one");
}

#[test]
fn sigterm_leaves_nothing_to_recover() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "4M")]);
    write(&gateway, "erp/db", &content(1, 4 << 20));
    let before = gateway.group_status();
    again(&mut gateway, End::Terminate);
    let after = gateway.group_status();
    let lsn = |status: &Value, step: &str| status["lsn"][step].as_u64().expect("a number");
    assert!(lsn(&after, "durable") >= lsn(&before, "visible"), "sealed: {after:#}");
    assert!(lsn(&after, "destaged") >= lsn(&before, "visible"), "in the images: {after:#}");
    assert_eq!(after["state"]["condition"], "protected", "{after:#}");
}

/// What the last opening read of the journal.
fn read_mib(gateway: &Gateway) -> u64 {
    let opened = gateway.logged("the journal was opened");
    let told = opened.last().and_then(|line| line.split_once("scanned_mib=")?.1.split(' ').next());
    told.expect("it was opened").parse().expect("a number")
}

/// What images hold, an opening need not read, however many segments were in use when the last one was begun.
#[test]
fn of_a_journal_at_rest_one_segment_is_read() {
    let mut gateway = Gateway::with(&Setup { journal: ("1GiB", "16MiB"), ..Setup::default() });
    gateway.says("group create erp --no-points");
    gateway.says("disk create erp/db --size 64M");
    write(&gateway, "erp/db", &content(1, 64 << 20));
    gateway.until("all is in the image", |status| {
        let lsn = |step: &str| status["groups"][0]["lsn"][step].as_u64().expect("a number");
        lsn("destaged") >= lsn("visible")
    });
    gateway.terminate();
    gateway.restart();
    assert_eq!(read_mib(&gateway), 16);
}

/// Of each group four segments are ready that nobody has used: a site of a hundred groups would read gigabytes for nothing.
#[test]
fn segments_that_were_never_used_are_read_after_a_kill_but_not_after_a_clean_stop() {
    let mut gateway = Gateway::start();
    gateway.says("group create erp");
    gateway.says("disk create erp/db --size 2M");
    gateway.terminate();
    gateway.restart();
    let clean = read_mib(&gateway);
    gateway.kill();
    gateway.restart();
    let killed = read_mib(&gateway);
    assert!(clean > 0 && killed >= 4 * clean, "{clean} MiB, {killed} MiB");
}

/// A file system has a directory of its own where it begins, which is no file of ours: the journal's kept its group from opening.
#[test]
fn every_directory_may_be_a_file_system_of_its_own() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "8M")]);
    let bytes = content(1, 8 << 20);
    write(&gateway, "erp/db", &bytes);
    gateway.says("point create erp");
    gateway.terminate();
    let id = fs::read_dir(gateway.data().join("groups")).unwrap().next().expect("one").unwrap().file_name();
    let (group, vault) = (gateway.data().join("groups").join(&id), gateway.data().join("vault").join(&id));
    let mut directories = vec![gateway.data().to_owned(), group.clone(), vault.clone()];
    for parent in [group, vault] {
        let entries = fs::read_dir(parent).unwrap().map(|entry| entry.unwrap().path());
        directories.extend(entries.filter(|path| path.is_dir()));
    }
    for directory in directories {
        fs::create_dir(directory.join("lost+found")).unwrap();
    }
    gateway.restart();
    assert_serves(&gateway, "erp/db", &bytes);
    assert_eq!(gateway.json("vault verify")["warnings"], serde_json::json!([]));
    let journal = gateway.data().join("groups").join(&id).join("journal");
    gateway.says(&format!("journal verify {}", journal.display()));
}
