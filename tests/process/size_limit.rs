//! A limit on the length of files (`ulimit -f`, LimitFSIZE=) is told to whoever meets it, and ends nothing else. It ended the gateway,
//! by SIGXFSZ and without a word.

use crate::gateway::{Gateway, Setup};
use crate::tool;

#[test]
fn a_disk_beyond_the_limit_is_refused_and_the_gateway_goes_on() {
    let mut gateway = Gateway::with(&Setup { file_bytes: Some(64 << 20), ..Setup::default() });
    gateway.protect([("db", "32M")]);
    let told = gateway.refuses("disk create erp/large --size 1G", 1);
    for words in ["size = 1GiB", "LimitFSIZE=, ulimit -f", "files of at most 64MiB", "raise it, or "] {
        assert!(told.contains(words), "{words} in: {told}");
    }
    assert_eq!(gateway.json("disk list").as_array().map(Vec::len), Some(1));
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 7 0 1M", "-c", "flush", &gateway.uri("erp/db")]);
    gateway.says("point create erp --label after");
    gateway.terminate();
    gateway.restart();
    tool::says("qemu-io", ["-f", "raw", "-c", "read -P 7 0 1M", &gateway.uri("erp/db")]);
}
