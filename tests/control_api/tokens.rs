//! Who is let in by which socket, and what he may do then.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};

use crate::fake_site::Gateway;
use crate::{ask, ask_by, audit, limits};

/// Asks over TCP with these lines in the request's head; gives the whole answer.
fn ask_with(gateway: &Gateway, method: &str, path: &str, head: &str, body: &str) -> String {
    let mut socket = TcpStream::connect(gateway.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{head}\r\n{body}"
    );
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

fn ask_as(gateway: &Gateway, token: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    let answer = ask_with(gateway, method, path, &format!("Authorization: Bearer {token}\r\n"), body);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

async fn token(gateway: &Gateway, name: &str, role: &str) -> String {
    let request = json!({"name": name, "role": role}).to_string();
    let (status, made) = ask(gateway, "POST", "/v1/tokens", &request).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    made["text"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn nobody_is_let_in_over_tcp_without_a_good_token() {
    let gateway = Gateway::start();
    let good = token(&gateway, "ci", "admin").await;
    for head in [
        String::new(),
        "Authorization: Bearer\r\n".to_owned(),
        "Authorization: Bearer \r\n".to_owned(),
        "Authorization: Bearer wrong\r\n".to_owned(),
        format!("Authorization: Basic {good}\r\n"),
        format!("Authorization: Bearer {good}0\r\n"),
        format!("Authorization: Bearer {}\r\n", &good[..good.len() - 1]),
        format!("X-Token: {good}\r\n"),
        "Authorization: Bearer \u{e4}\r\n".to_owned(),
    ] {
        for (method, path) in [
            ("GET", "/v1/status"),
            ("POST", "/v1/groups"),
            ("GET", "/metrics"),
            ("GET", "/openapi.json"),
            ("GET", "/none"),
        ] {
            let answer = ask_with(&gateway, method, path, &head, "");
            assert!(answer.starts_with("HTTP/1.1 401 "), "{method} {path} {head}: {answer}");
            assert!(answer.to_lowercase().contains("www-authenticate: bearer"), "{answer}");
            assert!(
                answer.contains("\"kind\":\"denied\"") && answer.contains("afterimage token create"),
                "{answer}"
            );
        }
    }
    assert_eq!(ask(&gateway, "GET", "/v1/groups", "").await.1, json!([]), "nothing was done");
    assert_eq!(audit(&gateway).await.len(), 1, "nor recorded: who knocks drives out no record");
    assert_eq!(ask_as(&gateway, &good, "GET", "/v1/groups", ""), (200, json!([])));
    let lower = format!("authorization: bearer {good}\r\n");
    assert!(ask_with(&gateway, "GET", "/v1/groups", &lower, "").starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_role_that_reads_may_get_and_nothing_else() {
    let gateway = Gateway::start();
    let reads = token(&gateway, "monitoring", "read").await;
    for path in ["/v1/status", "/v1/groups", "/v1/tokens", "/v1/keys", "/metrics", "/openapi.json"] {
        assert_eq!(ask_as(&gateway, &reads, "GET", path, "").0, 200, "{path}");
        assert_ne!(ask_by(&gateway.read_only_socket, "GET", "/v1/status", "").await.0, StatusCode::FORBIDDEN);
    }
    let document = afterimage::control::api::openapi_document();
    let mut refused = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys().filter(|method| *method != "get") {
            let (method, path) = (method.to_uppercase(), path.replace(['{', '}'], ""));
            let (status, error) = ask_as(&gateway, &reads, &method, &path, "");
            assert_eq!((status, &error["kind"]), (403, &json!("denied")), "{method} {path}");
            let message = error["message"].as_str().unwrap();
            assert!(
                message.contains("token monitoring has the role read") && message.contains("admin"),
                "{message}"
            );
            let (status, error) = ask_by(&gateway.read_only_socket, &method, &path, "").await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}");
            assert!(error["message"].as_str().unwrap().contains("[api] read_only_socket has the role read"));
            refused += 1;
        }
    }
    assert!(refused > 25, "{refused}");
    assert_eq!(audit(&gateway).await.len(), 1, "only the token's making");
}

#[tokio::test]
async fn who_did_what_by_which_token_is_recorded_and_a_revoked_one_does_nothing() {
    let gateway = Gateway::start();
    let admin = token(&gateway, "ci", "admin").await;
    let (status, group) = ask_as(&gateway, &admin, "POST", "/v1/groups", r#"{"name": "erp"}"#);
    assert_eq!((status, &group["name"]), (201, &json!("erp")));
    let records = audit(&gateway).await;
    assert_eq!((&records[0]["verb"], &records[0]["subject"]), (&json!("token create"), &json!("ci")));
    let asked_by = &records[1]["asked_by"];
    assert_eq!((&records[1]["verb"], &asked_by["token"]), (&json!("group create"), &json!("ci")));
    assert_eq!((&asked_by["uid"], &asked_by["pid"]), (&Value::Null, &Value::Null));
    assert!(asked_by["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{asked_by}");
    let kept = std::fs::read_dir(gateway.directory.path()).unwrap().map(|entry| entry.unwrap().path());
    for path in kept.filter(|path| path.is_file()) {
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(admin.len()).any(|found| found == admin.as_bytes()), "{}", path.display());
    }
    let (_, tokens) = ask(&gateway, "GET", "/v1/tokens", "").await;
    assert_eq!((&tokens[0]["name"], &tokens[0]["expired"]), (&json!("ci"), &json!(false)));
    assert!(tokens[0].get("text").is_none() && tokens[0].get("sha256").is_none(), "{tokens}");
    let (status, _) = ask_as(&gateway, &admin, "DELETE", "/v1/tokens/ci", "");
    assert_eq!(status, 200, "also itself");
    assert_eq!(ask_as(&gateway, &admin, "GET", "/v1/status", "").0, 401);
    assert_eq!(ask(&gateway, "DELETE", "/v1/tokens/ci", "").await.0, StatusCode::NOT_FOUND);
    let (status, error) = ask(&gateway, "POST", "/v1/tokens", r#"{"name": "x", "role": "root"}"#).await;
    assert!(
        status == StatusCode::BAD_REQUEST && error["message"].as_str().unwrap().contains("read"),
        "{error}"
    );
}

/// Whoever has no token could have kept out who has all rights.
#[tokio::test]
async fn half_of_the_places_are_kept_for_the_socket_of_those_who_may_do_everything() {
    let gateway = Gateway::with_limits(limits(4));
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut socket = TcpStream::connect(gateway.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // Its answer says that it has its place, and it goes on to have it.
        socket.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 401");
        held.push(socket);
    }
    let answer = ask_with(&gateway, "GET", "/v1/status", "", "");
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("half of it is for [api] socket alone"),
        "{answer}"
    );
    let (status, _) = ask_by(&gateway.read_only_socket, "GET", "/v1/groups", "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "these places are theirs together");
    let (status, said) = ask(&gateway, "GET", "/v1/status", "").await;
    assert_eq!((status, &said["api_connections"]), (StatusCode::OK, &json!(3)));
}

#[test]
fn clients_over_tcp_that_do_nothing_are_ended() {
    let short = Duration::from_millis(100);
    let gateway = Gateway::with_limits(afterimage::control::server::ApiLimits {
        head: short,
        body: short,
        ..limits(8)
    });
    let mut silent = TcpStream::connect(gateway.address).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut answer = String::new();
    silent.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "");
}
