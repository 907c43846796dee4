//! `group create --no-points`: what is written outlives its process, and nothing of it is kept to go back to.

use std::fs;

use crate::content::{assert_same_bytes, content, files};
use crate::gateway::Gateway;
use crate::tool;

#[test]
fn a_group_without_points_serves_what_was_written_and_refuses_what_needs_a_point() {
    let mut gateway = Gateway::start();
    assert_eq!(
        gateway.says("group create bench --no-points"),
        "group bench created, without recovery points\n"
    );
    gateway.says("disk create bench/d --size 16M");
    let bytes = content(3, 16 << 20);
    let file = gateway.path("written");
    fs::write(&file, &bytes).unwrap();
    tool::says("nbdcopy", ["--flush", file.to_str().expect("UTF-8"), &gateway.uri("bench/d")]);
    gateway.kill();
    gateway.restart();
    let served = gateway.path("served");
    tool::says("nbdcopy", [&gateway.uri("bench/d"), served.to_str().expect("UTF-8")]);
    assert_same_bytes(&fs::read(served).unwrap(), &bytes);
    for line in ["point create bench", "policy set bench --interval 1s", "policy set bench --retain all"] {
        assert!(gateway.refuses(line, 1).contains("created without recovery points"), "{line}");
    }
    assert!(gateway.refuses("failover test bench --point latest", 1).contains("no recovery point"));
    assert!(gateway.says("group show bench").contains("interval  never"));
    assert!(gateway.says("verify bench").contains("compared with their sums"));
    gateway.says("check");
    gateway.terminate();
    assert_eq!(files(&gateway.data().join("vault"), "delta"), Vec::<std::path::PathBuf>::new());
    gateway.restart();
    gateway.says("group remove bench --yes");
}
