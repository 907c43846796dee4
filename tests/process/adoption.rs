//! A vault and the exported key are all that is left: everything else is made anew, and every point is what it was.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::content::{assert_same, files, sparse_file};
use crate::gateway::{Gateway, Setup};
use crate::tool;

/// Points of two disks, and what their disks held.
struct Story {
    points: Vec<(String, PathBuf)>,
}

fn restored(gateway: &Gateway, point: &str, name: &str) -> PathBuf {
    let directory = gateway.path(name);
    gateway.says(&format!("restore erp --point {point} --to {}", directory.display()));
    directory
}

fn fill(gateway: &Gateway, disk: &str, pattern: u8, range: &str) {
    tool::says("qemu-io", ["-f", "raw", "-c", &format!("write -P {pattern} {range}"), &gateway.uri(disk)]);
}

/// Writes three points, one of them held, one with a test failover, and a disk that joins after the last of them.
fn story(gateway: &Gateway) -> Story {
    gateway.protect([("db", "64M"), ("log", "1M")]);
    let original = gateway.path("original");
    sparse_file(&original, 1, 64 << 20, 16);
    tool::says(
        "nbdcopy",
        ["--destination-is-zero", original.to_str().expect("UTF-8"), &gateway.uri("erp/db")],
    );
    let mut points = Vec::new();
    for (index, label) in ["one", "two", "three"].into_iter().enumerate() {
        let pattern = u8::try_from(index + 1).unwrap();
        fill(gateway, "erp/db", pattern, &format!("{index}M 512k"));
        fill(gateway, "erp/log", pattern, "0 64k");
        gateway.says(&format!("point create erp --label {label}"));
        points.push((label.to_owned(), restored(gateway, label, &format!("before-{label}"))));
    }
    gateway.says("point hold erp two");
    gateway.says("failover test erp --point one");
    gateway.says(&format!("disk create erp/late --import {}", original.display()));
    Story { points }
}

/// Everything that the story promised is there, and the group goes on.
fn assert_told(gateway: &mut Gateway, story: &Story) {
    let newest = &story.points.last().unwrap().1;
    for disk in ["db", "log"] {
        let live = gateway.path(format!("live-{disk}"));
        tool::says("nbdcopy", [&gateway.uri(&format!("erp/{disk}")), live.to_str().expect("UTF-8")]);
        assert_same(&live, &newest.join(format!("{disk}.raw")));
        fs::remove_file(live).unwrap();
    }
    let late = gateway.path("live-late");
    tool::says("nbdcopy", [&gateway.uri("erp/late"), late.to_str().expect("UTF-8")]);
    assert_same(&late, &gateway.path("original"));
    fs::remove_file(late).unwrap();
    assert_eq!(gateway.json("failover list").as_array().unwrap().len(), 0, "their files are gone");
    let held = gateway.json("point list erp");
    let held = held.as_array().unwrap().iter().filter(|point| point["held"] == true).count();
    assert_eq!(held, 1);
    fill(gateway, "erp/db", 9, "7M 1M");
    gateway.says("point create erp --label afterwards");
    for round in ["at once", "after a restart"] {
        for (label, before) in &story.points {
            let after = restored(gateway, label, &format!("after-{label}"));
            for disk in ["db.raw", "log.raw"] {
                assert_same(&after.join(disk), &before.join(disk));
            }
            fs::remove_dir_all(after).unwrap();
        }
        gateway.says("vault verify erp");
        if round == "at once" {
            gateway.terminate();
            gateway.restart();
        }
    }
    assert!(gateway.says("point list erp").contains("afterwards"));
}

fn vault_of(gateway: &Gateway) -> PathBuf {
    let entries = fs::read_dir(gateway.data().join("vault")).unwrap();
    entries.map(|entry| entry.unwrap().path()).next().expect("it has a group")
}

fn remove_all_but_vault(data: &Path) {
    for entry in fs::read_dir(data).unwrap() {
        let path = entry.unwrap().path();
        match (path.is_dir(), path.file_name().unwrap() == "vault") {
            (_, true) => {}
            (true, _) => fs::remove_dir_all(path).unwrap(),
            (false, _) => fs::remove_file(path).unwrap(),
        }
    }
}

#[test]
fn all_but_the_vault_is_deleted_and_made_anew() {
    let mut gateway = Gateway::start();
    let story = story(&gateway);
    let key = gateway.path("exported");
    gateway.says(&format!("key export {}", key.display()));
    gateway.kill();
    remove_all_but_vault(gateway.data());
    let vault = vault_of(&gateway);
    gateway.restart();
    let adopt = format!("vault adopt {}", vault.display());
    let told = gateway.refuses(&adopt, 1);
    assert!(told.contains("key import"), "{told}");
    gateway.says(&format!("key import {} --yes", key.display()));
    gateway.says(&adopt);
    assert!(gateway.refuses(&adopt, 1).contains("is open here"));
    assert_told(&mut gateway, &story);
}

#[test]
fn a_copy_of_the_vault_is_enough_for_another_gateway() {
    let mut first = Gateway::start();
    let story = story(&first);
    let key = first.path("exported");
    first.says(&format!("key export {}", key.display()));
    let mut second = Gateway::start();
    second.says(&format!("key import {} --yes", key.display()));
    let adopt = format!("vault adopt {}", vault_of(&first).display());
    assert!(second.refuses(&adopt, 1).contains("a gateway serves this vault"));
    first.terminate();
    second.says(&adopt);
    fs::copy(first.path("original"), second.path("original")).unwrap();
    assert_told(&mut second, &story);
    first.restart();
    assert!(first.says("group list").contains("erp"), "the source stays as it is");
}

#[test]
fn what_may_know_more_than_the_vault_is_not_overwritten() {
    let mut gateway = Gateway::start();
    story(&gateway);
    gateway.kill();
    let journal = fs::read_dir(gateway.data().join("groups")).unwrap().next().unwrap().unwrap().path();
    fs::rename(journal.join("journal"), gateway.path("journal")).unwrap();
    gateway.restart();
    let told = gateway.refuses(&format!("vault adopt {}", vault_of(&gateway).display()), 1);
    assert!(told.contains("move this directory away first"), "{told}");
    gateway.refuses(&format!("vault adopt {}", gateway.path("none").display()), 1);
    gateway.refuses(&format!("vault adopt {}", gateway.data().display()), 1);
}

#[test]
fn an_adoption_that_was_cut_off_is_listed_and_begun_anew() {
    let mut gateway = Gateway::start();
    let story = story(&gateway);
    gateway.terminate();
    let groups = gateway.data().join("groups");
    let directory = fs::read_dir(&groups).unwrap().next().unwrap().unwrap().path();
    let vault = vault_of(&gateway);
    let elsewhere = gateway.path("rescued");
    fs::rename(&vault, &elsewhere).unwrap();
    // As a death in the middle of the copy leaves it.
    fs::remove_dir_all(&directory).unwrap();
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("copying"), "").unwrap();
    fs::create_dir_all(vault.join("manifest")).unwrap();
    fs::copy(elsewhere.join("manifest/0000000000000001"), vault.join("manifest/0000000000000001")).unwrap();
    gateway.restart();
    assert!(gateway.says("group list").contains("FAILED"));
    let own = gateway.refuses(&format!("vault adopt {}", vault.display()), 1);
    assert!(own.contains("cut off"), "{own}");
    gateway.says(&format!("vault adopt {}", elsewhere.display()));
    // As a death between images and fork leaves it.
    gateway.terminate();
    fs::remove_dir_all(directory.join("journal")).unwrap();
    fs::write(directory.join("adopting"), "").unwrap();
    gateway.restart();
    assert!(gateway.says("group list").contains("FAILED"));
    assert!(gateway.says("group show erp").contains("adoption did not finish"));
    gateway.says(&format!("vault adopt {}", vault.display()));
    assert_told(&mut gateway, &story);
}

/// The deltas of the only group.
fn blobs(vault: &Path) -> Vec<PathBuf> {
    fs::read_dir(vault.join("blobs")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

/// Points of a disk that was imported, and the delta of the second of them.
fn damaged_story(gateway: &Gateway) -> PathBuf {
    gateway.says("group create erp");
    gateway.says("policy set erp --interval 24h --retain all");
    let original = gateway.path("original");
    sparse_file(&original, 1, 64 << 20, 16);
    gateway.says(&format!("disk create erp/db --import {}", original.display()));
    let vault = vault_of(gateway);
    let mut blob = PathBuf::new();
    for (index, label) in ["one", "two", "three"].into_iter().enumerate() {
        let before = blobs(&vault);
        fill(gateway, "erp/db", u8::try_from(index + 1).unwrap(), &format!("{index}M 256k"));
        gateway.says(&format!("point create erp --label {label}"));
        let new = blobs(&vault).into_iter().find(|path| !before.contains(path)).expect("its delta");
        if label == "two" {
            blob = new;
        }
    }
    blob
}

#[test]
fn what_is_lost_of_the_newest_point_is_named_given_up_on_consent_and_repaired() {
    let mut gateway = Gateway::with(&Setup { more: "[verify]\nevery = \"never\"\n", ..Setup::default() });
    let blob = damaged_story(&gateway);
    let expected = restored(&gateway, "three", "before").join("db.raw");
    let key = gateway.path("exported");
    gateway.says(&format!("key export {}", key.display()));
    gateway.kill();
    remove_all_but_vault(gateway.data());
    let vault = vault_of(&gateway);
    let base = files(&vault.join("base"), "raw").pop().expect("one disk");
    // In the piece of content at 16 MiB, which no point wrote anew.
    let sector = (16 << 20) / 512 + 5;
    flip(&base, sector * 512);
    flip(&blob, 260);
    gateway.restart();
    gateway.says(&format!("key import {} --yes", key.display()));
    let adopt = format!("vault adopt {}", vault.display());
    let told = gateway.refuses(&adopt, 1);
    let (blob, base) = (blob.display().to_string(), base.display().to_string());
    let sectors = format!("{sector}..{}", sector + 1);
    for named in ["disk db: ", &sectors, "2048..", &blob, &base, "--accept-loss --yes"] {
        assert!(told.contains(named), "{named} in {told}");
    }
    for round in ["at once", "after a restart"] {
        assert!(gateway.says("group list").contains("FAILED"), "{round}");
        let listed = gateway.says("group show erp");
        let named =
            ["adoption did not finish", &sectors, &blob, "--accept-loss"].map(|text| listed.contains(text));
        assert_eq!(named, [true; 4], "{round}: {listed}");
        gateway.terminate();
        gateway.restart();
    }
    let asked = gateway.refuses(&format!("{adopt} --accept-loss"), 2);
    assert!(asked.contains("--yes"), "{asked}");
    let adopted = gateway.json(&format!("{adopt} --accept-loss --yes"));
    let file = fs::OpenOptions::new().write(true).open(&expected).unwrap();
    let lost = adopted["lost"].as_array().expect("ranges");
    for range in lost {
        assert_eq!(range["disk"], "db");
        let (first, count) = (range["first_sector"].as_u64().unwrap(), range["sectors"].as_u64().unwrap());
        assert!(count == 1 && first == sector || first >= 2048 && first + count <= 2048 + 512, "{adopted}");
        file.write_all_at(&vec![0; usize::try_from(count * 512).unwrap()], first * 512).unwrap();
    }
    assert!(lost.len() >= 2, "{adopted}");
    assert_eq!(gateway.logged("adopted with a loss").len(), 1);
    gateway.until_api("/v1/events", "it is an event", |events| {
        let mut events = events.as_array().expect("a list").iter();
        events.any(|event| {
            event["code"] == "adopted_with_loss" && event["message"].as_str().unwrap().contains(&sectors)
        })
    });
    // As it is after a restart, too.
    gateway.terminate();
    gateway.restart();
    let live = gateway.path("live");
    tool::says("nbdcopy", [&gateway.uri("erp/db"), live.to_str().expect("UTF-8")]);
    assert_same(&live, &expected);
    let state = &gateway.group_status()["state"];
    assert_eq!(state["condition"], "degraded", "{state}");
    assert!(gateway.says("group show erp").contains("vault repair erp"));
    let repaired = gateway.json("vault repair erp --yes");
    assert_eq!(repaired["left"].as_array().map(Vec::len), Some(0), "{repaired}");
    assert!(gateway.says("vault verify erp").contains("0 faults"));
    assert_eq!(gateway.group_status()["state"]["condition"], "protected");
    fill(&gateway, "erp/db", 9, "40M 64k");
    gateway.says("point create erp --label afterwards");
    fs::remove_file(&live).unwrap();
    tool::says("nbdcopy", [&gateway.uri("erp/db"), live.to_str().expect("UTF-8")]);
    assert_same(&restored(&gateway, "afterwards", "after").join("db.raw"), &live);
}
