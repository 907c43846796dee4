//! Nobody else reads what guests wrote: the tests start the gateway with an umask that forbids nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::gateway::Gateway;
use crate::tool;

fn modes(directory: &Path, found: &mut Vec<(String, u32)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        found.push((path.display().to_string(), metadata.permissions().mode()));
        if metadata.is_dir() {
            modes(&path, found);
        }
    }
}

#[test]
fn what_is_in_the_data_directory_is_for_its_owner_alone() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "8M")]);
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 1 0 1M", &gateway.uri("erp/db")]);
    gateway.says("point create erp --label kept");
    gateway.says("failover test erp --point kept");
    gateway.says("token create ci --role read");
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 2 0 1M", &gateway.uri("erp/db@test-1")]);
    let mut found = Vec::new();
    modes(gateway.data(), &mut found);
    gateway.terminate();
    gateway.restart();
    modes(gateway.data(), &mut found);
    for name in [
        "lock",
        "tokens.json",
        "catalogue.sqlite",
        "catalogue.sqlite-wal",
        "/segment-",
        ".raw",
        ".checkpoint",
        "images/",
        "/tests/",
    ] {
        assert!(found.iter().any(|(path, _)| path.contains(name)), "{name} in {found:#?}");
    }
    for (path, mode) in found {
        assert_eq!(mode & 0o077, 0, "{path} has the mode {mode:o}");
    }
}
