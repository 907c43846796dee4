//! Whole data directories, as a kill -9 left them: what a gateway of that time wrote is opened, served, verified and carried on by
//! this one.
//!
//! An archive holds `data/`, the data directory; `away/`, an image that was missing when the gateway died, so that its disk
//! was latched and has side files; and `expected`, a line for each content: what it is, its length and sum.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::content::{files, sparse_file};
use crate::files::{first, may_write, second};
use crate::gateway::{Gateway, Setup};
use crate::tool;

pub const SEALED: &str = "site-sealed.tar.gz";
pub const PLAIN: &str = "site-plain.tar.gz";
/// The settings of a site without seals.
pub const UNSEALED: &str = "[keys]\nseal_groups = false\n";
/// The disk that is latched when the gateway dies.
const LATCHED: &str = "late";

pub fn setup(more: &'static str) -> Setup {
    Setup { journal: ("4MiB", "1MiB"), more, ..Setup::default() }
}

pub fn qemu_io(gateway: &Gateway, disk: &str, commands: &[&str]) {
    let mut arguments = vec!["-d".to_owned(), "unmap".to_owned(), "-f".to_owned(), "raw".to_owned()];
    arguments.extend(commands.iter().flat_map(|&command| ["-c".to_owned(), command.to_owned()]));
    arguments.push(gateway.uri(disk));
    tool::says("qemu-io", arguments);
}

fn sum(path: &Path) -> String {
    let bytes = fs::read(path).expect("readable");
    let mut line = format!("{} ", bytes.len());
    for byte in Sha256::digest(&bytes) {
        write!(line, "{byte:02x}").expect("to memory");
    }
    line
}

/// What every labelled point, every living disk and every test failover holds. Points without a label are timed ones: whether
/// there are any depends on how long the site rested.
fn contents(gateway: &Gateway) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for point in list(gateway, "point list erp").iter().filter(|point| point["label"] != "") {
        let id = point["id"].as_str().expect("text");
        let directory = gateway.path(format!("restored-{id}"));
        gateway.says(&format!("restore erp --point {id} --to {}", directory.display()));
        for image in files(&directory, "raw") {
            let disk = image.file_stem().expect("a name").to_string_lossy().into_owned();
            lines.insert(format!("point {} {disk} {}", point["label"].as_str().expect("text"), sum(&image)));
        }
        fs::remove_dir_all(directory).expect("removable");
    }
    let tests = list(gateway, "failover list");
    let tests = tests.iter().flat_map(|test| test["exports"].as_array().expect("a list"));
    for served in list(gateway, "disk list").iter().chain(tests) {
        let export = served["export"].as_str().expect("text");
        let copy = gateway.path("copy");
        tool::says("nbdcopy", [&gateway.uri(export), text(&copy)]);
        lines.insert(format!("export {export} {}", sum(&copy)));
        fs::remove_file(copy).expect("removable");
    }
    lines
}

fn list(gateway: &Gateway, command: &str) -> Vec<Value> {
    gateway.json(command).as_array().expect("a list").clone()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A site with something of everything that can lie on a disk.
fn tell(gateway: &mut Gateway) -> BTreeSet<String> {
    let original = gateway.path("original");
    sparse_file(&original, 1, 8 << 20, 4);
    gateway.says("group create erp");
    gateway.says("policy set erp --interval 24h");
    gateway.says(&format!("disk create erp/db --import {}", original.display()));
    gateway.says("disk create erp/log --size 1M");
    gateway.says("disk create erp/gone --size 64K");
    qemu_io(gateway, "erp/gone", &["write -P 7 0 64k"]);
    for round in 0..20_u8 {
        let at = u64::from(round) * 64;
        let write = format!("write -P {round} {at}k 24k");
        let small = format!("write -P {round} {} 512", u64::from(round) * 1536);
        qemu_io(gateway, "erp/db", &[&write, "write -z 2M 64k", "discard 4M 1M"]);
        qemu_io(gateway, "erp/log", &[&small]);
        gateway.says(&format!("point create erp --label p{round:02}"));
        if round == 3 {
            gateway.says("disk remove erp/gone --yes");
            gateway.says("disk resize erp/log --size 2M");
        }
    }
    gateway.says("point hold erp p05");
    gateway.says("point delete erp p07 --yes");
    gateway.says("point delete erp p00 --yes");
    gateway.says("failover test erp --point p10");
    qemu_io(gateway, "erp/db@test-1", &["write -P 99 100k 4k"]);
    gateway.says("failover test erp --point p11 --read-only");
    let vault = gateway.data().join("vault");
    gateway.until("a summary", |_| !files(&vault, "summary").is_empty());
    gateway.until("deltas of points that are gone to go", |status| {
        files(&vault, "delta").len() < 20 && status["groups"][0]["state"]["retention"].is_null()
    });
    gateway.says(&format!("disk create erp/{LATCHED} --size 1M"));
    qemu_io(gateway, "erp/late", &["write -P 3 0 512k"]);
    gateway.says("point create erp --label whole");
    qemu_io(gateway, "erp/late", &["write -P 4 256k 512k"]);
    contents(gateway)
}

/// The image of the disk that is to be latched.
fn image(gateway: &Gateway) -> PathBuf {
    let disks = list(gateway, "disk list erp");
    let disk = disks.iter().find(|disk| disk["name"] == LATCHED).expect("listed");
    let name = format!("{}.raw", disk["id"].as_str().expect("text"));
    let is_image = |path: &PathBuf| path.ends_with(Path::new("images").join(&name));
    files(gateway.data(), "raw").into_iter().find(is_image).expect("an image")
}

/// Starts a gateway without that image, and has it need more journal than there is: what the disk lacks goes to a side file.
fn latch(gateway: &mut Gateway, image: &Path, away: &Path) {
    gateway.kill();
    fs::rename(image, away).expect("moved");
    gateway.restart();
    for round in 0..5 {
        let write = format!("write -P {round} {}M 1M", 3 + round % 2);
        qemu_io(gateway, "erp/db", &[&write]);
        gateway.says(&format!("point create erp --label filled{round}"));
    }
    let images = image.parent().expect("a directory");
    gateway.until("a side file", |_| !files(images, "side-1").is_empty());
    qemu_io(gateway, "erp/db", &["write -P 77 7M 64k"]);
    gateway.kill();
}

/// Makes an archive, unless there is one.
fn make(archive: &Path, more: &'static str) {
    if archive.exists() {
        return;
    }
    let mut gateway = Gateway::with(&setup(more));
    let site = gateway.path("site");
    fs::create_dir_all(site.join("away")).expect("a directory");
    let before = tell(&mut gateway);
    let image = image(&gateway);
    let away = site.join("away").join(image.file_name().expect("a name"));
    latch(&mut gateway, &image, &away);
    tool::says("cp", ["-a", "--sparse=auto", text(gateway.data()), text(&site.join("data"))]);
    // What it holds is known once its disk is mended.
    fs::copy(&away, &image).expect("put back");
    gateway.restart();
    let after = contents(&gateway);
    let written = "export erp/db ";
    assert!(before.iter().filter(|line| !line.starts_with(written)).all(|line| after.contains(line)));
    fs::write(site.join("expected"), after.iter().map(|line| format!("{line}\n")).collect::<String>())
        .expect("written");
    let options = ["--create", "--sparse", "--gzip", "--file", text(archive), "--directory", text(&site)];
    tool::says("tar", options.into_iter().chain(["data", "away", "expected"]));
}

/// What an archive holds.
pub fn unpack(archive: &Path) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    tool::says(
        "tar",
        ["--extract", "--gzip", "--file", text(archive), "--directory", text(directory.path())],
    );
    directory
}

/// Puts the image that was missing back where it was.
pub fn put_back(site: &Path) {
    let image = fs::read_dir(site.join("away")).expect("a directory").next().expect("an image");
    let image = image.expect("readable").path();
    let images = files(&site.join("data"), "checkpoint");
    fs::rename(&image, images[0].with_file_name(image.file_name().expect("a name"))).expect("put back");
}

/// Takes an archive as an administrator would take that machine: starts, looks, mends, verifies, goes on.
fn carry_on(archive: &Path, more: &'static str) {
    if may_write() {
        make(archive, more);
    }
    let directory = unpack(archive);
    let data = directory.path().join("data");
    let mut gateway = Gateway::with(&Setup { data: Some(data), ..setup(more) });
    let status = gateway.group_status();
    assert_eq!(status["state"]["reason"]["code"], "image_failed", "{status:#}");
    put_back(directory.path());
    gateway.says("group resume erp");
    let text = fs::read_to_string(directory.path().join("expected")).expect("there");
    let expected: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    let found = contents(&gateway);
    let differing: Vec<_> = found.symmetric_difference(&expected).collect();
    assert!(differing.is_empty(), "{differing:#?}");
    gateway.says("vault verify erp");
    gateway.says("verify erp");
    let bases = gateway.data().join("vault");
    gateway.until("sums for bases of before there were any", |_| {
        let is_base = |path: &PathBuf| path.parent().is_some_and(|parent| parent.ends_with("base"));
        let names = files(&bases, "raw").into_iter().filter(is_base).map(|path| path.display().to_string());
        names.into_iter().all(|name| name.ends_with(".summed.raw"))
    });
    gateway.says("vault verify erp");
    qemu_io(&gateway, "erp/db", &["write -P 200 1M 128k"]);
    gateway.says("point create erp --label today");
    gateway.terminate();
    gateway.restart();
    let points = |lines: BTreeSet<String>| -> BTreeSet<String> {
        lines.into_iter().filter(|line| line.starts_with("point ") && !line.contains(" today ")).collect()
    };
    assert_eq!(points(contents(&gateway)), points(expected));
    gateway.says("vault verify erp");
    gateway.says("verify erp");
}

#[test]
fn a_sealed_site_of_set_1_is_carried_on() {
    carry_on(&first(SEALED), "");
}

#[test]
fn a_site_of_set_1_without_seals_is_carried_on() {
    carry_on(&first(PLAIN), UNSEALED);
}

/// Whose bases have sums.
#[test]
fn a_site_of_set_2_is_carried_on() {
    carry_on(&second(PLAIN), UNSEALED);
}
