//! Tokens on the real gateway: made by the command line, asked with over TCP, kept over kill -9, and told of when they do not do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use crate::gateway::{Gateway, Setup, refusal};

fn gateway() -> Gateway {
    Gateway::with(&Setup { api_tcp: true, ..Setup::default() })
}

/// A command line to the gateway's TCP port; an empty token is none.
fn over_tcp(gateway: &Gateway, token: &str, line: &str) -> Output {
    let mut command = gateway.cli(line);
    command.env("AFTERIMAGE_SOCKET", gateway.api_url()).env("AFTERIMAGE_TOKEN", token);
    command.output().expect("the program")
}

#[track_caller]
fn says(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("it prints UTF-8")
}

#[test]
fn a_token_does_what_its_role_says_until_it_is_revoked_also_after_kill_nine() {
    let mut gateway = gateway();
    let admin = gateway.says("token create deployment --role admin --expires 90d").trim().to_owned();
    let reads = gateway.says("token create monitoring --role read").trim().to_owned();
    gateway.kill();
    gateway.restart();
    let file = gateway.data().join("tokens.json");
    assert_eq!(file.metadata().expect("there").permissions().mode() & 0o777, 0o600);
    let created = over_tcp(&gateway, &admin, "group create erp --json");
    assert!(says(&created).contains("\"erp\""));
    assert!(says(&over_tcp(&gateway, &reads, "group list")).contains("erp"));
    let refused = refusal(&over_tcp(&gateway, &reads, "group remove erp --yes"), 1);
    assert!(
        refused.contains("token monitoring has the role read") && refused.contains("role admin"),
        "{refused}"
    );
    assert!(says(&over_tcp(&gateway, &reads, "check")).starts_with("AFTERIMAGE OK"));
    let audit = gateway.says("audit");
    assert!(audit.contains("token deployment"), "{audit}");
    let list = gateway.says("token list");
    assert!(list.contains("deployment") && list.contains("never") && !list.contains(&reads), "{list}");
    gateway.says("token revoke deployment");
    let refused = refusal(&over_tcp(&gateway, &admin, "group list"), 1);
    assert!(refused.contains("--token-file") && refused.contains("afterimage token create"), "{refused}");
    gateway.terminate();
    gateway.restart();
    refusal(&over_tcp(&gateway, &admin, "group list"), 1);
    assert!(says(&over_tcp(&gateway, &reads, "group list")).contains("erp"));
}

#[test]
fn what_the_command_line_lacks_is_said_before_anything_is_asked() {
    let gateway = gateway();
    let lacking = refusal(&over_tcp(&gateway, "", "status"), 2);
    assert!(lacking.contains("AFTERIMAGE_TOKEN") && lacking.contains("--token-file"), "{lacking}");
    let file = gateway.path("token");
    fs::write(&file, gateway.says("token create ci --role read")).expect("writable");
    let line = format!("status --token-file {}", file.display());
    assert!(says(&over_tcp(&gateway, "", &line)).contains("site"));
    refusal(&over_tcp(&gateway, "two words", "status"), 2);
    for (place, mend) in [("https://127.0.0.1:1", "ssh -L"), ("http://127.0.0.1", "http://HOST:PORT")] {
        let output = gateway.cli("status").env("AFTERIMAGE_SOCKET", place).output().expect("the program");
        assert!(refusal(&output, 2).contains(mend), "{place}");
    }
    let nobody = gateway.cli("status --socket http://127.0.0.1:1").env("AFTERIMAGE_TOKEN", "x").output();
    assert!(refusal(&nobody.expect("the program"), 1).contains("[api] listen"));
}

#[test]
fn by_the_read_only_socket_one_looks_and_its_group_may() {
    let mut gateway = gateway();
    let socket = gateway.read_only_api();
    let asked =
        |line: &str| gateway.cli(line).env("AFTERIMAGE_SOCKET", &socket).output().expect("the program");
    assert_eq!(socket.metadata().expect("there").permissions().mode() & 0o777, 0o660);
    assert_eq!(gateway.api().metadata().expect("there").permissions().mode() & 0o777, 0o600);
    says(&asked("status"));
    let refused = refusal(&asked("group create erp"), 1);
    assert!(refused.contains("[api] read_only_socket") && refused.contains("[api] socket"), "{refused}");
    gateway.terminate();
    assert!(!socket.exists() && !gateway.api().exists(), "their names go with the gateway");
}

#[test]
fn a_damaged_file_of_tokens_keeps_nobody_from_a_disk_and_lets_nobody_in() {
    let mut gateway = gateway();
    let token = gateway.says("token create ci --role admin").trim().to_owned();
    gateway.terminate();
    let file = gateway.data().join("tokens.json");
    fs::write(&file, "{").expect("writable");
    gateway.restart();
    gateway.protect([("db", "2M")]);
    assert_eq!(gateway.logged("no token is good for anything over TCP").len(), 1);
    refusal(&over_tcp(&gateway, &token, "status"), 1);
    let refused = gateway.refuses("token list", 1);
    assert!(refused.contains("tokens.json") && refused.contains("move it away"), "{refused}");
    assert!(gateway.refuses("token create new --role admin", 1).contains("tokens.json"));
    fs::remove_file(&file).expect("there");
    let token = gateway.says("token create new --role admin").trim().to_owned();
    says(&over_tcp(&gateway, &token, "status"));
}
