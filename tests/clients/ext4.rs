//! ext4 on a protected disk, by nbdfuse and a loop device: what was fsynced before a point is in the point, and what
//! the file system checker and the kernel find there is a sound file system. Needs root.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::content::content;
use crate::gateway::Gateway;
use crate::mount::{Access, Attached};
use crate::tool;

on_each_backend!(a_point_of_a_mounted_file_system_holds_what_was_fsynced);

type Files = BTreeMap<String, Vec<u8>>;

const FILES: u64 = 120;
const DIRECTORIES: u64 = 8;

/// Files of many sizes, among them empty and odd ones; other bytes for another seed.
fn files(seed: u64) -> Files {
    let length = |file: u64| usize::try_from(file * file * 67 % 300_000).expect("below 300,000");
    let name = |file: u64| format!("directory-{}/file-{file}", file % DIRECTORIES);
    (0..FILES).map(|file| (name(file), content(seed ^ file, length(file)))).collect()
}

/// Writes files, and makes them and their names durable.
fn write(root: &Path, files: &Files) {
    for directory in 0..DIRECTORIES {
        fs::create_dir_all(root.join(format!("directory-{directory}"))).unwrap();
    }
    for (name, bytes) in files {
        let mut file = File::create(root.join(name)).unwrap();
        file.write_all(bytes).unwrap();
        file.sync_all().unwrap();
    }
    for directory in 0..DIRECTORIES {
        File::open(root.join(format!("directory-{directory}"))).unwrap().sync_all().unwrap();
    }
    File::open(root).unwrap().sync_all().unwrap();
}

#[track_caller]
fn assert_holds(root: &Path, files: &Files) {
    for (name, bytes) in files {
        let found = fs::read(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(found == *bytes, "{name} has other bytes");
    }
}

/// Looks at every structure of an unmounted file system; changes nothing.
#[track_caller]
fn assert_sound(device: &str) {
    tool::says("e2fsck", ["-f", "-n", device]);
}

/// Makes a file system with `old` in it, a point, and changes it after that.
fn prepare(gateway: &Gateway, old: &Files, new: &Files) {
    let mut disk = Attached::new(&gateway.path("disk"), &gateway.uri("erp/db"), Access::ReadWrite);
    tool::says("mkfs.ext4", ["-q", "-F", disk.device()]);
    let root = disk.mount().to_owned();
    write(&root, old);
    gateway.says("point create erp --label mounted");
    fs::remove_dir_all(root.join("directory-0")).unwrap();
    write(&root, new);
    disk.unmount();
    assert_sound(disk.device());
    disk.detach();
}

fn a_point_of_a_mounted_file_system_holds_what_was_fsynced(backend: &'static str) {
    let mut gateway = Gateway::on(backend);
    gateway.protect([("db", "128M")]);
    let (old, new) = (files(1), files(1 << 32));
    prepare(&gateway, &old, &new);

    gateway.says("failover test erp --point mounted");
    let uri = gateway.uri("erp/db@test-1");
    let mut test = Attached::new(&gateway.path("test"), &uri, Access::ReadWrite);
    // As after a power cut: the kernel replays the file system's journal, into the overlay.
    let root = test.mount();
    assert_holds(root, &old);
    fs::write(root.join("rehearsal"), "thrown away").unwrap();
    test.unmount();
    assert_sound(test.device());
    test.detach();

    let mut test = Attached::new(&gateway.path("again"), &uri, Access::ReadOnly);
    let root = test.mount();
    assert_holds(root, &old);
    assert_eq!(fs::read_to_string(root.join("rehearsal")).unwrap(), "thrown away");
    fs::write(root.join("refused"), "").expect_err("read-only");
    test.unmount();
    test.detach();
    gateway.says("failover cleanup erp --yes");

    gateway.kill();
    gateway.restart();
    let mut disk = Attached::new(&gateway.path("after"), &gateway.uri("erp/db"), Access::ReadOnly);
    assert_sound(disk.device());
    let root = disk.mount();
    assert_holds(root, &new);
    assert!(!root.join("rehearsal").exists(), "the rehearsal never touched the disk");
    disk.unmount();
    disk.detach();
}
