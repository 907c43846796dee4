//! The HTTP API over a real unix socket, with a site in memory behind it.
#![cfg(feature = "server")]

mod fake_site;
#[path = "control_api/tokens.rs"]
mod tokens;

use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use afterimage::control::server::ApiLimits;
use fake_site::Gateway;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

/// Sends one request; gives the status and the JSON of the answer.
async fn ask(gateway: &Gateway, method: &str, path: &str, body: &str) -> (StatusCode, Value) {
    ask_by(&gateway.socket, method, path, body).await
}

/// The same by another socket.
async fn ask_by(socket: &std::path::Path, method: &str, path: &str, body: &str) -> (StatusCode, Value) {
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "x");
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let value = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
    (status, value)
}

async fn done(gateway: &Gateway, job: &Value) -> Value {
    let id = job["id"].as_str().unwrap();
    let (status, job) = ask(gateway, "GET", &format!("/v1/jobs/{id}?wait_ms=30000"), "").await;
    assert_eq!(status, StatusCode::OK);
    job
}

#[tokio::test]
async fn a_group_lives_from_creation_to_removal() {
    let gateway = Gateway::start();
    let (status, group) = ask(&gateway, "POST", "/v1/groups", r#"{"name": "erp"}"#).await;
    assert_eq!((status, &group["name"]), (StatusCode::CREATED, &json!("erp")));
    assert_eq!(group["id"], json!("00000000000000000000000000000001"));
    let disk = r#"{"name": "db", "source": {"size_bytes": 1048576}}"#;
    let (status, disk) = ask(&gateway, "POST", "/v1/groups/erp/disks", disk).await;
    assert_eq!((status, &disk["export"]), (StatusCode::CREATED, &json!("erp/db")));
    let resize = "/v1/groups/erp/disks/db/resize";
    let (status, disk) = ask(&gateway, "POST", resize, r#"{"size_bytes": 2097152}"#).await;
    assert_eq!((status, &disk["size_bytes"]), (StatusCode::OK, &json!(2_097_152)));
    let smaller = r#"{"size_bytes": 512}"#;
    assert_eq!(ask(&gateway, "POST", resize, smaller).await.0, StatusCode::BAD_REQUEST);
    let smaller = r#"{"size_bytes": 512, "lose_tail": true}"#;
    assert_eq!(ask(&gateway, "POST", resize, smaller).await.0, StatusCode::OK);
    assert_eq!(ask(&gateway, "POST", resize, r#"{"size_bytes": 513}"#).await.0, StatusCode::BAD_REQUEST);
    let retain = r#"{"retain": "2h:all,2d:5m"}"#;
    let (status, group) = ask(&gateway, "PUT", "/v1/groups/erp/policy", retain).await;
    assert_eq!((status, &group["retain"]), (StatusCode::OK, &json!("2h:all,2d:5m")));
    let (status, forecast) = ask(&gateway, "POST", "/v1/groups/erp/policy/dry-run", retain).await;
    assert_eq!((status, &forecast["bytes_max"]), (StatusCode::OK, &json!(4096)));
    let (status, group) = ask(&gateway, "PUT", "/v1/groups/erp/policy", r#"{"interval_ms": 5000}"#).await;
    assert_eq!((status, &group["policy"]["interval_ms"]), (StatusCode::OK, &json!(5000)));
    let (status, paused) = ask(&gateway, "POST", "/v1/groups/erp/pause", "").await;
    assert_eq!((status, &paused["name"]), (StatusCode::OK, &json!("erp")));
    let (status, events) = ask(&gateway, "GET", "/v1/events?group=erp&limit=1", "").await;
    assert_eq!((status, events.as_array().unwrap().len()), (StatusCode::OK, 1));
    assert_eq!((&events[0]["group"], &events[0]["severity"]), (&json!("erp"), &json!("warning")));
    assert_eq!(ask(&gateway, "GET", "/v1/events?limits=1", "").await.0, StatusCode::BAD_REQUEST);
    let (status, resumed) = ask(&gateway, "POST", "/v1/groups/erp/resume", "").await;
    assert_eq!((status, &resumed["group"]["name"]), (StatusCode::OK, &json!("erp")));
    let (_, disks) = ask(&gateway, "GET", "/v1/disks?group=erp", "").await;
    assert_eq!(disks.as_array().unwrap().len(), 1);
    let (status, _) = ask(&gateway, "DELETE", "/v1/groups/erp/disks/db", "").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (_, disks) = ask(&gateway, "GET", "/v1/disks", "").await;
    assert_eq!(disks, json!([]));
    assert_eq!(ask(&gateway, "DELETE", "/v1/groups/erp", "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(ask(&gateway, "GET", "/v1/groups", "").await.1, json!([]));
}

#[tokio::test]
async fn points_are_chosen_by_selectors_and_tests_end() {
    let gateway = Gateway::start();
    ask(&gateway, "POST", "/v1/groups", r#"{"name": "erp"}"#).await;
    ask(&gateway, "POST", "/v1/groups/erp/disks", r#"{"name": "db", "source": {"size_bytes": 512}}"#).await;
    let (status, point) = ask(&gateway, "POST", "/v1/groups/erp/points", r#"{"label": "before"}"#).await;
    assert_eq!((status, &point["time"]), (StatusCode::CREATED, &json!("2026-11-21T12:01:00.000000000Z")));
    ask(&gateway, "POST", "/v1/groups/erp/points", "").await;
    let (_, points) = ask(&gateway, "GET", "/v1/groups/erp/points", "").await;
    assert_eq!(points[1]["label"], Value::Null);
    for (selector, lsn) in [
        ("latest", 2),
        ("before", 1),
        ("id:abcd0002", 2),
        ("2026-11-21 12:01:59", 1),
        ("2026-11-21T13:02:00+01:00", 2),
    ] {
        let body = json!({"point": selector}).to_string();
        let (status, test) = ask(&gateway, "POST", "/v1/groups/erp/tests", &body).await;
        assert_eq!((status, &test["point"]["lsn"]), (StatusCode::CREATED, &json!(lsn)), "{selector}");
    }
    for (later, status, says) in
        [("2026-11-21 13:00", 404, "`point create`"), ("2200-01-01 00:00", 400, "in the future")]
    {
        let body = json!({"point": later}).to_string();
        let (answered, error) = ask(&gateway, "POST", "/v1/groups/erp/tests", &body).await;
        assert_eq!(answered.as_u16(), status, "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(says) && message.contains("abcd0002"), "names the newest: {message}");
    }
    let (_, tests) = ask(&gateway, "GET", "/v1/tests?group=erp", "").await;
    assert_eq!(tests[0]["exports"][0]["export"], json!("erp/db@test-1"));
    assert_eq!(ask(&gateway, "DELETE", "/v1/groups/erp/tests/2", "").await.1, json!([2]));
    assert_eq!(ask(&gateway, "DELETE", "/v1/groups/erp/tests", "").await.1, json!([1, 3, 4, 5]));
}

#[tokio::test]
async fn long_work_is_a_job() {
    let gateway = Gateway::start();
    ask(&gateway, "POST", "/v1/groups", r#"{"name": "erp"}"#).await;
    let file = gateway.directory.path().join("disk.raw");
    std::fs::write(&file, [0; 1024]).unwrap();
    let import = |file: &std::path::Path| json!({"name": "db", "source": {"import": file}}).to_string();
    let (status, job) = ask(&gateway, "POST", "/v1/groups/erp/disks", &import(&file)).await;
    assert_eq!((status, &job["kind"]), (StatusCode::ACCEPTED, &json!("import")));
    let job = done(&gateway, &job).await;
    assert_eq!((&job["bytes_done"], &job["bytes_total"]), (&json!(1024), &json!(1024)));
    assert_eq!(job["state"]["done"]["disk"]["size_bytes"], json!(1024));
    let (status, job) = ask(&gateway, "POST", "/v1/groups/erp/disks", &import("/none".as_ref())).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(done(&gateway, &job).await["state"]["failed"]["kind"], json!("not_found"));
    ask(&gateway, "POST", "/v1/groups/erp/points", "").await;
    let restore = json!({"point": "latest", "directory": gateway.directory.path()}).to_string();
    let (_, job) = ask(&gateway, "POST", "/v1/groups/erp/restore", &restore).await;
    assert_eq!(done(&gateway, &job).await["state"]["done"]["restored"]["bytes"], json!(8));
    let (_, job) = ask(&gateway, "POST", "/v1/vault/verify", "").await;
    assert_eq!(done(&gateway, &job).await["state"]["done"]["verified"]["faults"], json!([]));
    assert_eq!(ask(&gateway, "GET", "/v1/jobs", "").await.1.as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn what_can_not_be_has_a_kind_a_status_and_one_line() {
    let gateway = Gateway::start();
    ask(&gateway, "POST", "/v1/groups", r#"{"name": "erp"}"#).await;
    let relative = r#"{"name": "db", "source": {"import": "disk.raw"}}"#;
    for (method, path, body, status, kind, says) in [
        ("POST", "/v1/groups", r#"{"name": "erp"}"#, 409, "already_exists", "erp"),
        ("POST", "/v1/groups", r#"{"name": "a/b"}"#, 400, "invalid", "letters"),
        ("POST", "/v1/groups", r#"{"name": "x", "colour": 1}"#, 400, "invalid", "colour"),
        ("POST", "/v1/groups", "{", 400, "invalid", "EOF"),
        ("POST", "/v1/groups", "", 400, "invalid", "missing field `name`"),
        ("GET", "/v1/groups/none", "", 404, "not_found", "none"),
        ("GET", "/v1/groups/a%20b", "", 400, "invalid", "letters"),
        ("GET", "/v1/disks?grup=erp", "", 400, "invalid", "grup"),
        ("PUT", "/v1/groups/erp/policy", r#"{"interval_ms": 1}"#, 400, "invalid", "100ms"),
        ("PUT", "/v1/groups/erp/policy", "{}", 400, "invalid", "interval_ms, retain"),
        ("PUT", "/v1/groups/erp/policy", r#"{"retain": "1h"}"#, 400, "invalid", "1h:all,24h:1m,15d:1h"),
        (
            "POST",
            "/v1/groups/erp/disks",
            r#"{"name": "db", "source": {"size_bytes": 100}}"#,
            400,
            "invalid",
            "512",
        ),
        (
            "POST",
            "/v1/groups/erp/disks",
            r#"{"name": "db", "source": {"size_bytes": 0}}"#,
            400,
            "invalid",
            "512",
        ),
        ("POST", "/v1/groups/erp/disks", relative, 400, "invalid", "absolute"),
        ("POST", "/v1/groups/erp/points", r#"{"label": "a\nb"}"#, 400, "invalid", "one line"),
        ("POST", "/v1/groups/erp/tests", r#"{"point": "latest"}"#, 404, "not_found", "no recovery point yet"),
        ("POST", "/v1/groups/erp/tests", r#"{"point": "10m ago"}"#, 400, "invalid", "RFC 3339"),
        ("DELETE", "/v1/groups/erp/tests/x", "", 400, "invalid", "x"),
        ("GET", "/v1/jobs/7", "", 404, "not_found", "restarted"),
        ("GET", "/v2/groups", "", 404, "not_found", "/v2/groups"),
        ("PATCH", "/v1/groups", "", 405, "unsupported", "PATCH"),
    ] {
        let (answered, error) = ask(&gateway, method, path, body).await;
        assert_eq!(answered.as_u16(), status, "{method} {path} {body}: {error}");
        assert_eq!(error["kind"], json!(kind), "{method} {path} {body}: {error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(says) && !message.contains('\n'), "{method} {path} {body}: {message}");
    }
}

/// A client that sends half a request holds up neither others nor the end.
#[tokio::test]
async fn a_stalled_client_holds_up_nobody() {
    use tokio::io::AsyncWriteExt;
    let gateway = Gateway::start();
    let mut stalled = tokio::net::UnixStream::connect(&gateway.socket).await.unwrap();
    stalled.write_all(b"POST /v1/groups HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").await.unwrap();
    let (status, _) = ask(&gateway, "POST", "/v1/groups", r#"{"name": "erp"}"#).await;
    assert_eq!(status, StatusCode::CREATED);
    tokio::task::spawn_blocking(move || drop(gateway))
        .await
        .expect("the API stops though a request is unfinished");
}

fn limits(connections_max: usize) -> ApiLimits {
    ApiLimits::new(NonZeroUsize::new(connections_max).unwrap())
}

/// What comes on a socket until the other end closes it.
fn rest(mut socket: &UnixStream) -> String {
    let mut text = Vec::new();
    // Closed with unread bytes on our side of it, it is reset.
    let _ = socket.read_to_end(&mut text);
    String::from_utf8(text).unwrap()
}

fn connect(gateway: &Gateway) -> UnixStream {
    let socket = UnixStream::connect(&gateway.socket).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket
}

#[tokio::test]
async fn one_too_many_is_told_so_and_the_next_is_not() {
    let gateway = Gateway::with_limits(limits(2));
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut socket = connect(&gateway);
        socket.write_all(b"GET /v1/groups HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        socket.read_exact(&mut [0; 15]).unwrap();
        held.push(socket);
    }
    for _ in 0..40 {
        let (status, refusal) = ask(&gateway, "POST", "/v1/groups", r#"{"name": "erp"}"#).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refusal["kind"], "no_space");
        let message = refusal["message"].as_str().unwrap();
        assert!(message.contains("[api] connections_max = 2: try again"), "{message}");
    }
    held.pop();
    // Its end is seen in time; until then there are two.
    let status = loop {
        let (code, status) = ask(&gateway, "GET", "/v1/status", "").await;
        if code == StatusCode::OK {
            break status;
        }
    };
    assert_eq!((&status["api_connections"], &status["api_connections_limit"]), (&json!(2), &json!(2)));
    let turned_away = &status["api_turned_away"];
    assert!(
        turned_away["clients"].as_u64() >= Some(40) && turned_away["newest"].is_string(),
        "{turned_away}"
    );
}

/// They were kept for as long as they liked, each with a descriptor.
#[test]
fn clients_that_do_nothing_are_ended() {
    let short = Duration::from_millis(100);
    let gateway = Gateway::with_limits(ApiLimits { head: short, body: short, stalled: short, ..limits(16) });
    let silent = connect(&gateway);
    assert_eq!(rest(&silent), "");
    let mut half = connect(&gateway);
    half.write_all(b"GET /v1/status HTTP/1.1\r\nHost:").unwrap();
    assert!(!rest(&half).contains("200 OK"));
    let mut idle = connect(&gateway);
    idle.write_all(b"GET /v1/groups HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(rest(&idle).ends_with("[]"), "answered, and closed when nothing else came");
    let mut late = connect(&gateway);
    late.write_all(b"POST /v1/groups HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{").unwrap();
    assert!(rest(&late).contains("the request's body did not come within"));
    // More answers than its socket takes.
    let mut deaf = connect(&gateway);
    deaf.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    let request = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n".repeat(64);
    let ended = (0..100_000).find_map(|_| deaf.write_all(&request).err());
    assert!(ended.is_some_and(|error| error.kind() != std::io::ErrorKind::WouldBlock), "hung up on");
}

#[test]
fn who_follows_waits_for_longer_than_a_client_may_do_nothing() {
    let short = Duration::from_millis(500);
    let gateway = Gateway::with_limits(ApiLimits { head: short, body: short, stalled: short, ..limits(16) });
    let mut follower = connect(&gateway);
    follower.write_all(b"GET /v1/events?wait_ms=2000 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let answer = rest(&follower);
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains(r#""events":[]"#), "{answer}");
}

#[tokio::test]
async fn bodies_are_bounded() {
    let gateway = Gateway::start();
    // One byte too many: who is refused while it still writes may see that it is hung up on before it sees why.
    let long = format!(r#"{{"name": "{}"#, "x".repeat((256 << 10) - 9));
    assert_eq!(long.len(), (256 << 10) + 1);
    let (status, refusal) = ask(&gateway, "POST", "/v1/groups", &long).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{refusal}");
    assert!(refusal["message"].as_str().is_some_and(|text| text.contains("length limit")), "{refusal}");
}

/// What the trail says, oldest first.
async fn audit(gateway: &Gateway) -> Vec<Value> {
    let (status, records) = ask(gateway, "GET", "/v1/audit?limit=100", "").await;
    assert_eq!(status, StatusCode::OK);
    records.as_array().unwrap().iter().rev().cloned().collect()
}

#[tokio::test]
async fn what_changes_something_is_recorded_with_who_and_how_it_went() {
    let gateway = Gateway::start();
    ask(&gateway, "GET", "/v1/groups", "").await;
    ask(&gateway, "POST", "/v1/groups", r#"{"name": "erp"}"#).await;
    ask(&gateway, "POST", "/v1/groups", r#"{"name": "erp"}"#).await;
    ask(&gateway, "DELETE", "/v1/groups/erp/disks/db", "").await;
    ask(&gateway, "PUT", "/v1/groups/erp/policy", "{").await;
    let (_, job) = ask(&gateway, "POST", "/v1/vault/verify", "").await;
    ask(&gateway, "POST", "/v1/none", "").await;
    let records = audit(&gateway).await;
    let said: Vec<_> = records
        .iter()
        .map(|record| (record["verb"].as_str().unwrap(), &record["outcome"]["failed"]["kind"]))
        .collect();
    let expected = [
        ("group create", &Value::Null),
        ("group create", &json!("already_exists")),
        ("disk remove", &json!("not_found")),
        ("policy set", &json!("invalid")),
        ("vault verify", &Value::Null),
        ("POST /v1/none", &json!("not_found")),
    ];
    assert_eq!(said, expected);
    assert_eq!((&records[0]["subject"], &records[0]["parameters"]), (&json!("erp"), &json!({"name": "erp"})));
    assert_eq!(records[2]["subject"], json!("erp/db"));
    assert_eq!(records[4]["job"], job["id"]);
    for record in &records {
        let (uid, pid) = (rustix::process::getuid().as_raw(), std::process::id());
        assert_eq!((&record["asked_by"]["uid"], &record["asked_by"]["pid"]), (&json!(uid), &json!(pid)));
    }
    let (_, jobs) = ask(&gateway, "GET", "/v1/jobs", "").await;
    assert_eq!(jobs[0]["asked_by"], records[4]["asked_by"]);
}

#[tokio::test]
async fn no_key_is_recorded_whatever_is_sent() {
    let gateway = Gateway::start();
    ask(&gateway, "POST", "/v1/keys/export", "").await;
    for body in [
        r#"{"key": "TOPSECRET", "replace": true}"#,
        r#"{"key": "TOPSECRET"}"#,
        r#"{"TOPSECRET": true}"#,
        r#"{"replace": "TOPSECRET"}"#,
        r#""TOPSECRET""#,
        "TOPSECRET",
    ] {
        ask(&gateway, "POST", "/v1/keys/import", body).await;
    }
    let records = audit(&gateway).await;
    assert_eq!(records.len(), 7);
    assert_eq!((&records[0]["verb"], &records[1]["verb"]), (&json!("key export"), &json!("key import")));
    assert_eq!(records[1]["parameters"], json!({"replace": true}));
    assert_eq!(
        (&records[1]["outcome"], &records[2]["outcome"]["failed"]["kind"]),
        (&json!("done"), &json!("already_exists"))
    );
    for name in ["catalogue.sqlite", "catalogue.sqlite-wal"] {
        let kept = std::fs::read(gateway.directory.path().join(name)).unwrap();
        for secret in [&b"TOPSECRET"[..], b"the key"] {
            assert!(!kept.windows(secret.len()).any(|bytes| bytes == secret), "{name}");
        }
    }
}

#[tokio::test]
async fn a_trail_that_takes_no_records_fails_no_verb() {
    let gateway = Gateway::start();
    ask(&gateway, "GET", "/v1/groups", "").await;
    gateway.catalogue.close().await;
    let (status, _) = ask(&gateway, "POST", "/v1/groups", r#"{"name": "erp"}"#).await;
    assert_eq!(status, StatusCode::CREATED);
    let (status, error) = ask(&gateway, "GET", "/v1/audit", "").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{error}");
}

#[tokio::test]
async fn who_follows_gets_pages_and_who_looks_back_lists() {
    let gateway = Gateway::start();
    let (status, page) = ask(&gateway, "GET", "/v1/events?after=3&wait_ms=0", "").await;
    assert_eq!((status, &page["next"], &page["gap"]), (StatusCode::OK, &json!(0), &json!("cut_back")));
    let (status, page) = ask(&gateway, "GET", "/v1/events?wait_ms=0", "").await;
    assert_eq!((status, &page["events"], &page["gap"]), (StatusCode::OK, &json!([]), &Value::Null));
    assert!(ask(&gateway, "GET", "/v1/events?severity=error", "").await.1.is_array());
    for wrong in ["severity=loud", "since=soon", "after=-1", "wait_ms=x"] {
        assert_eq!(ask(&gateway, "GET", &format!("/v1/events?{wrong}"), "").await.0, StatusCode::BAD_REQUEST);
    }
}
