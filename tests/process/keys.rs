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
    let kept = fs::read_dir(gateway.data().join("keys")).unwrap();
    let kept =
        kept.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("replaced"));
    assert_eq!(kept.count(), 2, "each that another one took the place of");
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

/// What `serve` says to a configuration that it must refuse.
#[track_caller]
fn refused(gateway: &Gateway) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_afterimage"));
    command.args(["serve", "--config"]).arg(gateway.configuration()).stdin(Stdio::null());
    refusal(&command.output().expect("the program"), 1)
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
