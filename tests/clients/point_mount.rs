//! The files of a disk as of a recovery point, by `point mount`: of a file system that was in use at the point, and of a
//! partition. Needs root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use crate::gateway::{Gateway, refusal};
use crate::mount::{Access, Attached};
use crate::tool;

/// A gateway with a point of a file system that was in use, a directory, and the line that mounts the one on the other.
fn mountable() -> (Gateway, PathBuf, String) {
    let gateway = Gateway::start();
    gateway.protect([("db", "64M")]);
    prepare(&gateway);
    let place = gateway.path("files");
    fs::create_dir(&place).unwrap();
    let mount = format!("point mount erp/db --point in-use {}", place.display());
    (gateway, place, mount)
}

/// Makes a file system with one file in it, and a point while it is mounted.
fn prepare(gateway: &Gateway) {
    let mut disk = Attached::new(&gateway.path("disk"), &gateway.uri("erp/db"), Access::ReadWrite);
    tool::says("mkfs.ext4", ["-q", "-F", disk.device()]);
    let file = disk.mount().join("books");
    fs::write(&file, "as they stood").unwrap();
    fs::File::open(&file).unwrap().sync_all().unwrap();
    gateway.says("point create erp --label in-use");
    fs::write(&file, "overwritten").unwrap();
    disk.unmount();
    disk.detach();
}

#[track_caller]
fn assert_nothing_left(gateway: &Gateway, place: &Path) {
    assert_eq!(gateway.json("failover list").as_array().map(Vec::len), Some(0));
    assert_eq!(fs::read_dir(place).unwrap().count(), 0, "nothing is mounted there");
    let loops = tool::says("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"]);
    let own = place.to_str().unwrap().replace('/', "%2F");
    assert!(!loops.contains(own.trim_start_matches("%2F")), "{loops}");
}

#[test]
fn a_point_in_use_is_mounted_and_taken_down() {
    let (gateway, place, mount) = mountable();
    gateway.says(&mount);
    assert_eq!(fs::read_to_string(place.join("books")).unwrap(), "as they stood");
    fs::write(place.join("books"), "").expect_err("read-only");
    let twice = gateway.refuses(&mount, 1);
    assert!(twice.contains("point unmount"), "{twice}");
    gateway.says(&format!("point unmount {}", place.display()));
    assert_nothing_left(&gateway, &place);
    let gone = gateway.refuses(&format!("point unmount {}", place.display()), 1);
    assert!(gone.contains("nothing"), "{gone}");
}

/// Taking it down is this machine's business; the test failover under it is left to whichever gateway comes next.
#[test]
fn without_its_gateway_it_is_taken_down_all_the_same() {
    let (mut gateway, place, mount) = mountable();
    let (unmount, other) = (format!("point unmount {}", place.display()), gateway.path("other"));
    fs::create_dir(&other).unwrap();
    let mount_other = mount.replace(place.to_str().unwrap(), other.to_str().unwrap());
    let without_gateway = |gateway: &Gateway| {
        let output = gateway.cli(&unmount).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{told}");
        assert!(told.contains("test-") && told.contains("failover cleanup erp"), "{told}");
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "nothing is mounted there");
    };
    // Stopped, died, or died and come back: then it is unmounted as ever.
    gateway.says(&mount);
    gateway.terminate();
    without_gateway(&gateway);
    gateway.restart();
    assert_eq!(gateway.json("failover list").as_array().map(Vec::len), Some(1));
    gateway.says(&unmount);
    assert_nothing_left(&gateway, &place);
    gateway.says(&mount);
    gateway.kill();
    without_gateway(&gateway);
    gateway.restart();
    // Mounting elsewhere ends it as well, and so does mounting there once more.
    gateway.says(&mount_other);
    assert_eq!(gateway.json("failover list").as_array().map(Vec::len), Some(1));
    gateway.says(&mount);
    gateway.kill();
    gateway.restart();
    gateway.says(&unmount);
    gateway.says(&format!("point unmount {}", other.display()));
    assert_nothing_left(&gateway, &place);
    // One that was ended by hand leaves nothing to end; the next of its number is another.
    gateway.says(&mount);
    gateway.terminate();
    without_gateway(&gateway);
    gateway.restart();
    gateway.says("failover cleanup erp --yes");
    let rehearsal = gateway.json("failover test erp --point in-use");
    gateway.says(&unmount);
    assert_eq!(gateway.json("failover list")[0]["number"], rehearsal["number"]);
    gateway.says("failover cleanup erp --yes");
    assert_nothing_left(&gateway, &place);
}

#[test]
fn what_cannot_be_mounted_leaves_nothing_behind() {
    let gateway = Gateway::start();
    gateway.protect([("empty", "16M")]);
    let image = gateway.path("image");
    partitioned(&image);
    gateway.says(&format!("disk create erp/table --import {}", image.display()));
    gateway.says("point create erp --label kept");
    let place = gateway.path("files");
    fs::create_dir(&place).unwrap();
    gateway.refuses(&format!("point mount erp/empty --point kept {}", place.display()), 1);
    assert_nothing_left(&gateway, &place);
    let whole = gateway.refuses(&format!("point mount erp/table --point kept {}", place.display()), 2);
    assert!(whole.contains("--partition"), "{whole}");
    let beyond = format!("point mount erp/table --point kept --partition 7 {}", place.display());
    assert!(gateway.refuses(&beyond, 2).contains("no partition 7"));
    assert_nothing_left(&gateway, &place);
    gateway.says(&format!("point mount erp/table --point kept --partition 1 {}", place.display()));
    assert!(place.join("lost+found").is_dir());
    gateway.says(&format!("point unmount {}", place.display()));
    assert_nothing_left(&gateway, &place);
}

/// An image with one partition, in a master boot record, that holds a file system.
fn partitioned(file: &Path) {
    const START: u32 = 2048;
    const SECTORS: u32 = (64 << 20) / 512 - START;
    let mut record = [0; 512];
    // Type Linux, and by number of sector: the cylinders, heads and sectors before it are nobody's any more.
    record[446 + 4] = 0x83;
    record[446 + 8..][..4].copy_from_slice(&START.to_le_bytes());
    record[446 + 12..][..4].copy_from_slice(&SECTORS.to_le_bytes());
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    fs::write(file, record).unwrap();
    fs::OpenOptions::new().write(true).open(file).unwrap().set_len(64 << 20).unwrap();
    let offset = format!("offset={}", START * 512);
    let blocks = format!("{}k", SECTORS / 2);
    tool::says("mkfs.ext4", ["-q", "-F", "-E", &offset, file.to_str().unwrap(), &blocks]);
}

/// Ctrl-C comes while each of the programs that put a mount up is about to run: what it then does must not stay, and the
/// test failover under it must outlast it.
#[test]
fn an_interrupted_mount_leaves_nothing_behind() {
    let (gateway, place, mount) = mountable();
    for (program, signal) in [("nbdfuse", "INT"), ("losetup", "TERM"), ("mount", "INT"), ("mount", "HUP")] {
        let wrappers = gateway.path(format!("{program}-{signal}"));
        let witness = wrappers.join("witness");
        fs::create_dir(&wrappers).unwrap();
        // Only the first run: losetup detaches too.
        wrap(
            &wrappers,
            program,
            &format!("mkdir {0}.done 2>/dev/null && kill -{signal} $PPID", wrappers.join(program).display()),
        );
        wrap(
            &wrappers,
            "umount",
            &format!("{} failover list --json >>{}", env!("CARGO_BIN_EXE_afterimage"), witness.display()),
        );
        let path = format!("{}:{}", wrappers.display(), std::env::var("PATH").unwrap());
        let output = gateway.cli(&mount).env("PATH", path).output().unwrap();
        let told = refusal(&output, 130);
        assert!(told.contains("nothing stays mounted"), "{program}: {told}");
        assert_nothing_left(&gateway, &place);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(place.to_str().unwrap().trim_start_matches('/')), "{program}: {mounts}");
        if program != "nbdfuse" {
            let witness = fs::read_to_string(&witness).unwrap();
            assert!(witness.contains("\"number\""), "{program}: the test failover ended first: {witness}");
        }
    }
    gateway.says(&mount);
    gateway.says(&format!("point unmount {}", place.display()));
    assert_nothing_left(&gateway, &place);
}

/// `point unmount` knew nothing of it, and `point mount` referred to `point unmount`.
#[test]
fn a_mount_that_was_killed_half_way_is_taken_down_by_unmount() {
    let (gateway, place, mount) = mountable();
    let wrappers = gateway.path("wrappers");
    fs::create_dir(&wrappers).unwrap();
    let losetup = tool::says("which", ["losetup"]);
    wrap(&wrappers, "losetup", &format!("{} \"$@\"\nkill -KILL $PPID\nexit", losetup.trim()));
    let path = format!("{}:{}", wrappers.display(), std::env::var("PATH").unwrap());
    let output = gateway.cli(&mount).env("PATH", path).output().unwrap();
    assert_eq!(output.status.signal(), Some(9), "{output:?}");
    gateway.says(&format!("point unmount {}", place.display()));
    assert_nothing_left(&gateway, &place);
    gateway.says(&mount);
    gateway.says(&format!("point unmount {}", place.display()));
    assert_nothing_left(&gateway, &place);
}

/// Puts a script before a program in the path, which does something first.
fn wrap(directory: &Path, program: &str, first: &str) {
    let real = tool::says("which", [program]);
    let script = directory.join(program);
    fs::write(&script, format!("#!/bin/sh\n{first}\nexec {} \"$@\"\n", real.trim())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
}
