//! What a burst of writes took in memory is given back once the gateway has nothing to do.

use std::process::Stdio;
use std::time::Duration;

use afterimage::env::{Environment, OsEnvironment};

use crate::gateway::Gateway;
use crate::tool;

/// What an idle gateway may keep, in KiB; frames alone are 64 MiB while it works.
const IDLE_KIB: u64 = 64 << 10;
/// For destage, a point and an idle moment.
const PATIENCE: Duration = Duration::from_secs(120);

fn anonymous_kib(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("proc(5)");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn what_was_freed_is_given_back() {
    let gateway = Gateway::start();
    gateway.protect([("db", "1G")]);
    let mut fio = tool::command("fio");
    fio.args(["--name=burst", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=512M"]);
    fio.arg(format!("--uri={}", gateway.uri("erp/db")));
    let mut fio = fio.stdout(Stdio::null()).spawn().expect("fio");
    let mut most = 0;
    let status = loop {
        most = most.max(anonymous_kib(&gateway));
        if let Some(status) = fio.try_wait().expect("our child") {
            break status;
        }
        gateway.says("status");
    };
    assert!(status.success(), "fio: {status}");
    assert!(most > IDLE_KIB, "the burst took {most} KiB: too few to tell anything");
    // Nothing is asked of it meanwhile: it would not be idle.
    let clock = OsEnvironment::new();
    let began = clock.monotonic();
    while anonymous_kib(&gateway) >= IDLE_KIB {
        assert!(
            Duration::from_nanos(clock.monotonic().0 - began.0) < PATIENCE,
            "{} KiB are kept",
            anonymous_kib(&gateway)
        );
        std::thread::yield_now();
    }
}
