//! qemu-io: single requests with patterns, each read back; refused ones, on a connection that goes on.

use crate::gateway::Gateway;
use crate::tool;

on_each_backend!(
    patterns_are_found_again,
    durable_writes_survive_a_kill,
    zeros_and_discards_read_as_zeros,
    odd_requests_and_refusals_leave_the_connection,
    a_read_only_test_failover_is_read_and_not_written,
);

/// Runs commands on one connection; all must succeed, verification of patterns included.
#[track_caller]
fn commands(uri: &str, commands: &[&str]) -> String {
    let flags = commands.iter().flat_map(|command| ["-c", command]);
    let text = tool::says("qemu-io", ["-f", "raw"].into_iter().chain(flags).chain([uri]));
    // It prints this, and ends with success all the same.
    assert!(!text.contains("Pattern verification failed"), "{text}");
    assert!(!text.contains("failed:"), "{text}");
    text
}

fn patterns_are_found_again(backend: &'static str) {
    let gateway = Gateway::on(backend);
    gateway.protect([("db", "64M")]);
    let uri = gateway.uri("erp/db");
    let told = commands(
        &uri,
        &[
            "write -P 0xab 0 512",
            "write -P 0xcd 512 512",
            "write -P 0xef 1M 32M",
            "write -P 0x12 8388608 4096",
            "flush",
            "read -P 0xab 0 512",
            "read -P 0xcd 512 512",
            "read -P 0 1024 1047552",
            "read -P 0xef 1M 7M",
            "read -P 0x12 8M 4k",
            "read -P 0xef 8392704 25161728",
            "read -P 0 33M 31M",
        ],
    );
    assert_eq!(told.matches("read 512/512 bytes").count(), 2, "{told}");
    // That a wrong pattern would have been noticed:
    let told = tool::run("qemu-io", ["-f", "raw", "-c", "read -P 0xac 0 512", &uri]);
    assert!(String::from_utf8_lossy(&told.stdout).contains("Pattern verification failed"));
    // Many at once, out of order:
    let writes: Vec<String> = (0..64).map(|n| format!("aio_write -P {n} {}k 64k", 64 * n)).collect();
    let mut lines: Vec<&str> = writes.iter().map(String::as_str).collect();
    lines.push("aio_flush");
    commands(&uri, &lines);
    let reads: Vec<String> = (0..64).map(|n| format!("read -P {n} {}k 64k", 64 * n)).collect();
    commands(&uri, &reads.iter().map(String::as_str).collect::<Vec<_>>());
}

fn durable_writes_survive_a_kill(backend: &'static str) {
    let mut gateway = Gateway::on(backend);
    gateway.protect([("db", "64M"), ("log", "64M")]);
    let uri = gateway.uri("erp/db");
    commands(&uri, &["write -f -P 1 0 1M", "write -f -z 64k 4k", "write -f -P 2 60M 4M"]);
    commands(&gateway.uri("erp/log"), &["write -P 3 512 512"]);
    gateway.kill();
    gateway.restart();
    commands(&uri, &["read -P 1 0 64k", "read -P 0 64k 4k", "read -P 1 68k 956k", "read -P 2 60M 4M"]);
    commands(&gateway.uri("erp/log"), &["read -P 3 512 512", "read -P 0 0 512"]);
}

fn zeros_and_discards_read_as_zeros(backend: &'static str) {
    let gateway = Gateway::on(backend);
    gateway.protect([("db", "64M")]);
    commands(
        &gateway.uri("erp/db"),
        &[
            "write -P 0x55 0 32M",
            "write -z 4k 4k",
            "write -z -u 1M 1M",
            "discard 3M 1M",
            "discard 4096512 1024",
            "read -P 0x55 0 4k",
            "read -P 0 4k 4k",
            "read -P 0x55 8k 1016k",
            "read -P 0 1M 1M",
            "read -P 0x55 2M 1M",
            "read -P 0 3M 1M",
            "read -P 0x55 5M 27M",
            "write -z -u 0 64M",
            "read -P 0 0 64M",
        ],
    );
}

fn odd_requests_and_refusals_leave_the_connection(backend: &'static str) {
    let gateway = Gateway::on(backend);
    gateway.protect([("db", "64M")]);
    let uri = gateway.uri("erp/db");
    // QEMU widens what is not aligned to the block size that we advertise.
    commands(
        &uri,
        &[
            "write -P 1 0 4k",
            "write -P 9 100 700",
            "read -P 1 0 100",
            "read -P 9 100 700",
            "read -P 1 800 3296",
        ],
    );
    let lines = ["write 64M 512", "read 64M 512", "discard 65M 512", "write -P 4 1M 4k", "read -P 4 1M 4k"];
    let flags = lines.into_iter().flat_map(|line| ["-c", line]);
    let output = tool::run("qemu-io", ["-f", "raw"].into_iter().chain(flags).chain([uri.as_str()]));
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert_eq!(told.matches("failed: Input/output error").count(), 3, "past the end: {told}");
    assert!(told.contains("wrote 4096/4096 bytes at offset 1048576"), "the connection goes on: {told}");
    assert!(told.contains("read 4096/4096 bytes at offset 1048576"), "the connection goes on: {told}");
}

fn a_read_only_test_failover_is_read_and_not_written(backend: &'static str) {
    let gateway = Gateway::on(backend);
    gateway.protect([("db", "64M")]);
    commands(&gateway.uri("erp/db"), &["write -P 7 0 1M"]);
    gateway.says("point create erp --label before");
    commands(&gateway.uri("erp/db"), &["write -P 8 0 1M"]);
    gateway.says("failover test erp --point before --read-only");
    let uri = gateway.uri("erp/db@test-1");
    let told = tool::says("qemu-io", ["-r", "-f", "raw", "-c", "read -P 7 0 1M", "-c", "flush", &uri]);
    assert!(!told.contains("failed") && told.contains("read 1048576/1048576"), "{told}");
    // It asks for a writable export, and is told that this is none.
    let refused = tool::fails("qemu-io", ["-f", "raw", "-c", "write -P 9 0 4k", &uri]);
    assert!(refused.contains("read-only") || refused.contains("Permission denied"), "{refused}");
}
