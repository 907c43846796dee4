//! fio's nbd engine with verification: every block carries a checksum of its own and is read back.

use serde_json::Value;

use crate::gateway::Gateway;
use crate::tool;

on_each_backend!(
    mixed_sizes_over_several_connections,
    trims_and_flushes_between_writes,
    what_was_written_is_verified_after_a_kill,
    two_disks_of_a_group_at_once,
);

/// Runs jobs that differ by `options` from these: 16 in flight, checksums verified, the first error is the last.
#[track_caller]
fn fio(options: &[&str]) -> std::process::Output {
    let common = [
        "--ioengine=nbd",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_fatal=1",
        // It would be a file in the working directory.
        "--verify_state_save=0",
        "--randrepeat=1",
        "--output-format=json",
        "--thread=1",
    ];
    tool::run("fio", common.iter().chain(options))
}

/// The finished jobs; none had an error.
#[track_caller]
fn passes(options: &[&str]) -> Vec<Value> {
    let output = fio(options);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    // Notes of the engine stand before it.
    let report = text.find("\n{").map_or(0, |newline| newline + 1);
    let told: Value = serde_json::from_str(&text[report..]).expect("fio prints JSON");
    let jobs = told["jobs"].as_array().expect("a list").clone();
    assert!(jobs.iter().all(|job| job["error"] == 0), "{told:#}");
    jobs
}

fn done(jobs: &[Value], direction: &str) -> u64 {
    jobs.iter().map(|job| job[direction]["total_ios"].as_u64().expect("a number")).sum()
}

fn mixed_sizes_over_several_connections(backend: &'static str) {
    let gateway = Gateway::on(backend);
    gateway.protect([("db", "128M")]);
    let uri = format!("--uri={}", gateway.uri("erp/db"));
    let jobs = passes(&[
        "--name=mixed",
        &uri,
        "--rw=randwrite",
        "--bsrange=512-256k",
        "--blockalign=512",
        "--numjobs=4",
        "--size=32M",
        "--offset_increment=32M",
    ]);
    assert_eq!(jobs.len(), 4);
    assert!(done(&jobs, "write") > 1000, "{jobs:#?}");
    assert!(done(&jobs, "read") >= done(&jobs, "write"), "each was read back");
    let again = passes(&["--name=small", &uri, "--rw=randrw", "--bs=4k", "--size=64M", "--io_size=32M"]);
    assert!(done(&again, "write") > 1000, "{again:#?}");
}

fn trims_and_flushes_between_writes(backend: &'static str) {
    let gateway = Gateway::on(backend);
    gateway.protect([("db", "64M")]);
    let uri = format!("--uri={}", gateway.uri("erp/db"));
    let flushed = passes(&["--name=flushed", &uri, "--rw=randwrite", "--bs=4k", "--size=64M", "--fsync=64"]);
    assert_eq!(done(&flushed, "write"), 16384, "{flushed:#?}");
    assert!(done(&flushed, "sync") > 200, "{flushed:#?}");
    // Each block is trimmed, then written, then verified.
    let again = passes(&["--name=again", &uri, "--rw=trimwrite", "--bs=16k", "--size=64M"]);
    assert_eq!(done(&again, "trim"), done(&again, "write"), "{again:#?}");
    assert!(done(&again, "read") >= done(&again, "write"), "{again:#?}");
    let trimmed =
        passes(&["--name=trimmed", &uri, "--verify=0", "--rw=randtrim", "--bsrange=4k-64k", "--size=32M"]);
    assert!(done(&trimmed, "trim") > 500, "{trimmed:#?}");
    let told = tool::says("qemu-io", ["-f", "raw", "-c", "read -P 0 0 32M", &gateway.uri("erp/db")]);
    assert!(!told.contains("verification failed"), "what was trimmed reads as zeros: {told}");
}

fn what_was_written_is_verified_after_a_kill(backend: &'static str) {
    let mut gateway = Gateway::on(backend);
    gateway.protect([("db", "64M")]);
    let uri = format!("--uri={}", gateway.uri("erp/db"));
    let job = ["--name=kept", &uri, "--rw=randwrite", "--bsrange=4k-64k", "--size=64M", "--end_fsync=1"];
    passes(&[&job[..], &["--do_verify=0"]].concat());
    gateway.kill();
    gateway.restart();
    let verified = passes(&[&job[..], &["--verify_only=1"]].concat());
    assert!(done(&verified, "read") > 100, "{verified:#?}");
    // That a wrong block would have been noticed:
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 1 32M 4k", &gateway.uri("erp/db")]);
    let output = fio(&[&job[..], &["--verify_only=1"]].concat());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("verify"), "{told}");
}

fn two_disks_of_a_group_at_once(backend: &'static str) {
    let gateway = Gateway::on(backend);
    gateway.protect([("db", "64M"), ("log", "64M")]);
    let (db, log) = (format!("--uri={}", gateway.uri("erp/db")), format!("--uri={}", gateway.uri("erp/log")));
    let jobs = passes(&[
        "--size=64M",
        "--name=db",
        &db,
        "--rw=randwrite",
        "--bs=8k",
        "--name=log",
        &log,
        "--rw=write",
        "--bsrange=512-64k",
        "--blockalign=512",
        "--fsync=16",
    ]);
    assert_eq!(jobs.len(), 2);
    assert_eq!(done(&jobs[..1], "write"), 8192, "{jobs:#?}");
}
