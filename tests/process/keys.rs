//! The site key in the hands of people: made, lost, brought back, replaced, rotated; and what the gateway says each time.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::gateway::{Gateway, refusal};

fn key_file(gateway: &Gateway) -> PathBuf {
    gateway.data().join("keys/site.key")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

/// Exports the site key to a new file.
#[track_caller]
fn export(gateway: &Gateway, name: &str) -> PathBuf {
    let file = gateway.path(name);
    gateway.says(&format!("key export {}", file.display()));
    assert_eq!(mode(&file), 0o600);
    file
}

fn with_point() -> Gateway {
    let gateway = Gateway::start();
    gateway.protect([("db", "1M")]);
    gateway.says("point create erp --label kept");
    gateway
}

#[test]
fn a_missing_site_key_fails_sealed_groups_until_it_is_imported() {
    let mut gateway = with_point();
    assert_eq!(mode(&key_file(&gateway)), 0o600);
    let id = gateway.json("key show")["site_key"].as_str().expect("it has one").to_owned();
    let exported = export(&gateway, "exported");
    gateway.kill();
    fs::remove_file(key_file(&gateway)).unwrap();
    gateway.restart();
    let shown = gateway.says("group show erp");
    assert!(shown.contains("FAILED") && shown.contains(&id) && shown.contains("key import"), "{shown}");
    assert!(gateway.says("key show").contains("KEY MISSING"));
    assert!(gateway.refuses("point list erp", 1).contains("key import"));
    assert!(gateway.refuses("group create web", 1).contains("site key"));
    assert!(gateway.refuses("key export", 1).contains("key import"));
    gateway.says(&format!("key import {}", exported.display()));
    assert_eq!(mode(&key_file(&gateway)), 0o600);
    gateway.says("group resume erp");
    assert!(gateway.says("point list erp").contains("kept"));
    gateway.says("vault verify erp");
}

/// Every file of keys that another one took the place of, by name.
fn replaced(gateway: &Gateway) -> Vec<PathBuf> {
    let entries = fs::read_dir(gateway.data().join("keys")).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    let mut kept: Vec<_> = files.filter(|path| path.to_string_lossy().contains(".replaced-")).collect();
    kept.sort();
    kept
}

/// A gateway that was started without its site key, a file with that key, and the key's id.
fn without_key() -> (Gateway, PathBuf, String) {
    let mut gateway = with_point();
    let id = gateway.json("key show")["site_key"].as_str().expect("it has one").to_owned();
    let exported = export(&gateway, "exported");
    gateway.kill();
    fs::remove_file(key_file(&gateway)).unwrap();
    gateway.restart();
    (gateway, exported, id)
}

/// Puts a file with that content where the site key belongs.
fn put(gateway: &Gateway, content: &str, mode: u32) {
    fs::write(key_file(gateway), content).unwrap();
    fs::set_permissions(key_file(gateway), fs::Permissions::from_mode(mode)).unwrap();
}

/// A review found that only a restart did.
#[test]
fn a_resume_finds_a_site_key_that_was_put_back_by_hand() {
    let (gateway, exported, id) = without_key();
    let key = fs::read_to_string(exported).unwrap();
    // What lies there and is not right is said, with its own mend.
    put(&gateway, &key, 0o644);
    assert!(gateway.refuses("group resume erp", 1).contains("chmod 600"));
    put(&gateway, &key.replace("site-key-1", "site-kex-1"), 0o600);
    assert!(gateway.refuses("group resume erp", 1).contains("no site key"));
    put(&gateway, &key, 0o600);
    assert!(gateway.says("group resume erp").contains("open again"));
    assert_eq!(gateway.json("key show")["site_key"], id);
    assert!(gateway.says("point list erp").contains("kept"));
    // As if it had never been away.
    gateway.says("group create web");
    gateway.says("key rotate");
    gateway.says("vault verify");
}

#[test]
fn a_group_is_not_created_without_a_site_key_and_the_mend_is_said() {
    let (gateway, exported, _) = without_key();
    let told = gateway.refuses("group create web", 1);
    assert!(told.contains("'key import'") && told.contains("put its file back"), "{told}");
    assert!(told.contains("site.key"), "{told}");
    put(&gateway, &fs::read_to_string(exported).unwrap(), 0o600);
    gateway.says("group create web");
}

/// Another site's key in place of the one in use: nothing that is open suffers, and the key in use is kept.
#[test]
fn a_resume_drops_no_key_that_is_in_use() {
    let other = Gateway::start();
    let foreign = fs::read_to_string(export(&other, "foreign")).unwrap();
    let (gateway, exported, id) = without_key();
    gateway.says(&format!("key import {}", exported.display()));
    put(&gateway, &foreign, 0o600);
    assert!(
        gateway.says("group resume erp").contains("open again"),
        "its key is in use, whatever lies there"
    );
    assert_eq!(replaced(&gateway).len(), 1, "and is in a file again");
    assert_eq!(gateway.json("key show")["groups"][0]["has_key"], true);
    gateway.says(&format!("key import {} --yes", exported.display()));
    assert_eq!(fs::read(key_file(&gateway)).unwrap(), fs::read(&exported).unwrap());
    assert_eq!(gateway.json("key show")["site_key"], id);
    assert_eq!(replaced(&gateway).len(), 2, "the foreign one too");
}

/// A review found "File exists" and a left-over `site.key.partial`, also with `--yes`.
#[test]
fn an_import_takes_the_place_of_whatever_lies_there_and_that_is_kept() {
    let other = Gateway::start();
    let foreign = fs::read_to_string(export(&other, "foreign")).unwrap();
    let foreign_id = other.json("key show")["site_key"].as_str().unwrap().to_owned();
    for (content, mode, says) in [
        (foreign.as_str(), 0o600, foreign_id.as_str()),
        ("damaged", 0o600, "no site key"),
        (foreign.as_str(), 0o644, "others may read"),
    ] {
        let (mut gateway, exported, id) = without_key();
        put(&gateway, content, mode);
        fs::write(key_file(&gateway).with_added_extension("partial"), "left by a crash").unwrap();
        let import = format!("key import {}", exported.display());
        let told = gateway.refuses(&import, 2);
        assert!(told.contains(says) && told.contains("--yes") && told.contains(".replaced-"), "{told}");
        assert_eq!(fs::read_to_string(key_file(&gateway)).unwrap(), content, "nothing has changed");
        gateway.says(&format!("{import} --yes"));
        assert_eq!((mode_of(&gateway), gateway.json("key show")["site_key"].as_str()), (0o600, Some(&*id)));
        let kept = replaced(&gateway);
        assert_eq!(kept.len(), 1);
        assert_eq!(fs::read_to_string(&kept[0]).unwrap(), content);
        let name = if content == "damaged" {
            "site.key.replaced-1"
        } else {
            &*format!("site.key.replaced-{foreign_id}")
        };
        assert!(kept[0].ends_with(name), "{}", kept[0].display());
        assert!(!key_file(&gateway).with_added_extension("partial").exists());
        assert!(gateway.says("group resume erp").contains("open again"));
        gateway.terminate();
        gateway.restart();
        assert!(gateway.says("point list erp").contains("kept"));
    }
}

fn mode_of(gateway: &Gateway) -> u32 {
    mode(&key_file(gateway))
}

#[test]
fn an_import_over_the_file_of_the_very_key_needs_no_consent() {
    let (gateway, exported, id) = without_key();
    put(&gateway, &fs::read_to_string(&exported).unwrap(), 0o600);
    gateway.says(&format!("key import {}", exported.display()));
    assert_eq!(gateway.json("key show")["site_key"], id);
    assert_eq!(replaced(&gateway), Vec::<PathBuf>::new());
    // And where the file of the key in use went, it is made again.
    fs::remove_file(key_file(&gateway)).unwrap();
    gateway.says(&format!("key import {}", exported.display()));
    assert_eq!(fs::read(key_file(&gateway)).unwrap(), fs::read(&exported).unwrap());
}

#[test]
fn what_a_crash_left_half_written_is_in_nobodys_way() {
    let mut gateway = with_point();
    gateway.kill();
    let file = key_file(&gateway);
    let left = [file.with_added_extension("partial"), file.with_added_extension("next.partial")];
    left.iter().for_each(|path| fs::write(path, "half a key").unwrap());
    gateway.restart();
    assert!(left.iter().all(|path| !path.exists()));
    gateway.says("key rotate");
    assert!(gateway.says("point list erp").contains("kept"));
}

#[test]
fn an_export_takes_nothings_place_and_says_what_it_did() {
    let gateway = Gateway::start();
    let file = gateway.path("exported");
    let line = format!("key export {}", file.display());
    assert!(gateway.says(&line).contains("exported"));
    let written = fs::read(&file).unwrap();
    let told = gateway.refuses(&line, 1);
    assert!(told.contains("name another file") && told.contains("exported"), "{told}");
    assert_eq!(fs::read(&file).unwrap(), written);
    let shown = gateway.json(&format!("key export {}", gateway.path("second").display()));
    assert_eq!(shown["file"].as_str(), gateway.path("second").to_str());
    let told = gateway.refuses(&format!("key export {}", gateway.path("none/site.key").display()), 1);
    assert!(told.contains("create it"), "{told}");
}

/// A review found that nothing was told of it, and that it had lost its disks in the listings.
#[test]
fn a_group_without_its_key_is_among_the_events_and_keeps_its_disks() {
    let (gateway, exported, _) = without_key();
    let group = &gateway.json("group list")[0];
    assert_eq!(group["disks"][0]["name"], "db", "the catalogue knows: {group:#}");
    assert_eq!(group["disks"][0]["size_bytes"], 1 << 20);
    assert_eq!(group["disks"][0]["served"], false);
    assert!(group["policy"]["interval_ms"].is_u64() && group["created"].is_string(), "{group:#}");
    assert_eq!(gateway.group_status()["history"]["points"], serde_json::Value::Null, "nobody knows");
    let events = gateway.json("events --group erp --limit 1");
    assert_eq!((&events[0]["code"], &events[0]["severity"]), (&"opening_failed".into(), &"error".into()));
    let message = events[0]["message"].as_str().unwrap();
    assert!(message.contains("no site key is here") && message.contains("'key import FILE'"), "{message}");
    gateway.refuses("group resume erp", 1);
    gateway.says(&format!("key import {}", exported.display()));
    gateway.says("group resume erp");
    let events = gateway.json("events --group erp --limit 1000");
    let codes: Vec<_> =
        events.as_array().unwrap().iter().map(|event| event["code"].as_str().unwrap()).collect();
    assert_eq!(
        codes.iter().filter(|code| **code == "opening_failed").count(),
        2,
        "start and resume: {codes:?}"
    );
    assert_eq!(codes.iter().filter(|code| **code == "opened").count(), 1, "{codes:?}");
}

#[test]
fn another_site_key_replaces_the_present_one_only_by_consent_and_that_is_kept() {
    let other = Gateway::start();
    let foreign = export(&other, "foreign");
    let mut gateway = with_point();
    let own = export(&gateway, "own");
    let import = format!("key import {}", foreign.display());
    assert!(gateway.refuses(&import, 2).contains("--yes"));
    gateway.says(&format!("{import} --yes"));
    gateway.terminate();
    gateway.restart();
    assert!(gateway.says("group list").contains("FAILED"));
    gateway.says(&format!("key import {} --yes", own.display()));
    gateway.says("group resume erp");
    assert_eq!(replaced(&gateway).len(), 2, "each that another one took the place of");
}

#[test]
fn after_a_rotation_everything_opens_under_the_new_key_alone() {
    let mut gateway = with_point();
    let before = gateway.json("key show");
    let old = export(&gateway, "old");
    gateway.says("key rotate --new-group-keys");
    let after = gateway.json("key show");
    assert_ne!(before["site_key"], after["site_key"]);
    assert_eq!(after["groups"][0]["site_key"], after["site_key"]);
    assert_eq!(
        (&before["groups"][0]["generations"], &after["groups"][0]["generations"]),
        (&1.into(), &2.into())
    );
    gateway.says("point create erp --label meanwhile");
    gateway.terminate();
    gateway.restart();
    gateway.says("point create erp --label after");
    let points = gateway.says("point list erp");
    assert!(["kept", "meanwhile", "after"].iter().all(|label| points.contains(label)), "{points}");
    gateway.says("vault verify erp");
    gateway.says(&format!("key import {} --yes", old.display()));
    gateway.terminate();
    gateway.restart();
    assert!(gateway.says("group list").contains("FAILED"), "the old key opens nothing any more");
}

#[test]
fn a_rotation_that_was_cut_off_goes_on_at_the_next_start() {
    let other = Gateway::start();
    let next = export(&other, "next");
    let mut gateway = with_point();
    gateway.kill();
    // The new key is durable, and no group's keys are wrapped under it yet.
    fs::copy(&next, key_file(&gateway).with_added_extension("next")).unwrap();
    gateway.restart();
    let (shown, expected) = (gateway.json("key show"), other.json("key show"));
    assert_eq!(shown["site_key"], expected["site_key"]);
    assert_eq!(shown["groups"][0]["site_key"], expected["site_key"]);
    assert!(!key_file(&gateway).with_added_extension("next").exists());
    gateway.terminate();
    gateway.restart();
    assert!(gateway.says("point list erp").contains("kept"));
}

#[test]
fn new_group_keys_are_made_also_by_the_rest_of_a_rotation_that_was_cut_off() {
    let other = Gateway::start();
    let next = export(&other, "next");
    let mut gateway = with_point();
    let note = key_file(&gateway).with_added_extension("new-group-keys");
    let generations = |gateway: &Gateway| gateway.json("key show")["groups"][0]["generations"].clone();
    assert_eq!(generations(&gateway), 1);
    // Of a rotation that never began: another one does not heed it.
    fs::write(&note, "").unwrap();
    gateway.says("key rotate");
    assert_eq!((generations(&gateway), note.exists()), (1.into(), false));
    gateway.kill();
    fs::write(&note, "").unwrap();
    fs::copy(&next, key_file(&gateway).with_added_extension("next")).unwrap();
    gateway.restart();
    assert_eq!((generations(&gateway), note.exists()), (2.into(), false));
    assert_eq!(gateway.json("key show")["site_key"], other.json("key show")["site_key"]);
    gateway.terminate();
    gateway.restart();
    assert!(gateway.says("point list erp").contains("kept"));
}

/// What `serve` says to a configuration that it must refuse.
#[track_caller]
fn refused(gateway: &Gateway) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_afterimage"));
    command.args(["serve", "--config"]).arg(gateway.configuration()).stdin(Stdio::null());
    refusal(&command.output().expect("the program"), 2)
}

#[test]
fn a_key_file_that_others_may_read_or_that_holds_no_key_is_refused() {
    let mut gateway = with_point();
    gateway.terminate();
    let file = key_file(&gateway);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refused(&gateway).contains("chmod 600"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let key = fs::read_to_string(&file).unwrap();
    fs::write(&file, key.replace("site-key-1", "site-kex-1")).unwrap();
    let told = refused(&gateway);
    assert!(told.contains("site.key") && told.contains("no site key"), "{told}");
    fs::write(&file, key).unwrap();
    gateway.restart();
    assert!(gateway.says("point list erp").contains("kept"));
}
