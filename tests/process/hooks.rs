//! Hooks: real programs and a real web server are told of events, or fail at it, and restarts lose none.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use afterimage::tls::ServerFiles;
use rustls::ServerConnection;
use serde_json::Value;
use tempfile::TempDir;

use crate::certificates::Certificates;
use crate::gateway::{Gateway, PATIENCE, Setup};

/// A gateway with these tables, in which ROOT is a directory of the test's own, and a group.
fn gateway(tables: &str) -> (TempDir, Gateway) {
    let root = tempfile::tempdir().unwrap();
    let tables = tables.replace("ROOT", &root.path().to_string_lossy());
    let gateway = Gateway::with(&Setup { more: tables.leak(), ..Setup::default() });
    gateway.protect([("db", "2M")]);
    (root, gateway)
}

/// Asks until a hook stands so; a program may take its time, so each question is a process.
#[track_caller]
fn until(gateway: &Gateway, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let mut hook = Value::Null;
    for _ in 0..20_000 {
        let hooks = gateway.json("hooks list");
        hook = hooks.as_array().unwrap().iter().find(|hook| hook["name"] == name).expect(name).clone();
        if is_so(&hook) {
            return hook;
        }
    }
    panic!("{what}: {hook:#}");
}

/// The messages that a program noted, one a line.
fn noted(root: &Path) -> Vec<Value> {
    let text = fs::read_to_string(root.join("out")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn codes(gateway: &Gateway) -> Vec<String> {
    let events = gateway.json("events");
    let codes = events.as_array().unwrap().iter().map(|event| event["code"].as_str().unwrap().to_owned());
    codes.collect()
}

#[test]
fn a_program_is_told_what_it_asks_for_and_nothing_else() {
    let (root, gateway) = gateway(
        r#"[[hooks]]
        name = "page"
        on = ["paused"]
        exec = ["/bin/sh", "-c", "cat >> ROOT/out && test \"$AFTERIMAGE_EVENT-$AFTERIMAGE_GROUP\" = \"$1\"", "sh", "paused-erp"]
        "#,
    );
    gateway.says("group pause erp");
    gateway.says("group resume erp");
    gateway.says("group pause erp");
    let hook = until(&gateway, "page", "both are told", |hook| hook["told"] == 2);
    assert_eq!((&hook["lost"], &hook["waiting"]), (&Value::from(0), &Value::from(0)));
    let noted = noted(root.path());
    let events = gateway.json("events --severity info");
    let paused: Vec<_> =
        events.as_array().unwrap().iter().filter(|event| event["code"] == "paused").collect();
    assert_eq!((noted.len(), paused.len()), (2, 2));
    for (told, event) in noted.iter().zip(paused.iter().rev()) {
        for key in ["id", "time", "group", "group_id", "severity", "code", "message"] {
            assert_eq!(told[key], event[key], "{key}");
        }
        assert_eq!((&told["site"], &told["hook"]), (&Value::from("test"), &Value::from("page")));
    }
}

/// A web server that answers each request with the next of these statuses; gives heads and bodies.
fn web_server(statuses: &'static [&'static str]) -> (u16, Receiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        for status in statuses {
            let answered = answer(listener.accept().unwrap().0, status);
            sender.send(answered).unwrap();
        }
    });
    (port, requests)
}

/// Answers one request with that status; gives its head and its body.
fn answer<S: Read + Write>(socket: S, status: &str) -> (String, Value) {
    let mut socket = BufReader::new(socket);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(socket.read_line(&mut head).unwrap(), 0, "{head}");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    socket.read_exact(&mut body).unwrap();
    write!(socket.get_mut(), "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").unwrap();
    socket.get_mut().flush().unwrap();
    (head, serde_json::from_slice(&body).unwrap())
}

#[test]
fn a_web_server_that_fails_is_asked_again() {
    let (port, requests) = web_server(&["503 Busy", "204 Taken"]);
    let (_root, gateway) = gateway(&format!(
        "[[hooks]]\nname = \"chat\"\non = [\"paused\"]\nwebhook = \"http://127.0.0.1:{port}/x?y=1\"\nretries = 1\n"
    ));
    gateway.says("group pause erp");
    let [first, second] = [(); 2].map(|()| requests.recv_timeout(PATIENCE).unwrap());
    assert!(first.0.starts_with("POST /x?y=1 HTTP/1.1\r\n"), "{}", first.0);
    assert!(first.0.contains("content-type: application/json\r\n"), "{}", first.0);
    assert_eq!(first.1["code"], "paused");
    assert_eq!(first.1, second.1, "it is the same event");
    let hook = until(&gateway, "chat", "it is told", |hook| hook["told"] == 1);
    assert_eq!((&hook["lost"], &hook["failure"]), (&Value::from(0), &Value::Null));
    assert!(!gateway.logged("it answers 503").is_empty());
}

/// A server whose authority the hook names is told; one that somebody else vouches for, or nobody, is told nothing.
#[test]
fn a_web_server_by_tls_must_be_who_it_is_taken_for() {
    let (certificates, others) = (Certificates::new(), Certificates::new());
    let tls = afterimage::tls::server(&ServerFiles {
        certificate: &certificates.path("server-cert.pem"),
        key: &certificates.path("server-key.pem"),
        client_ca: None,
    });
    let tls = tls.unwrap();
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        loop {
            let mut stream = rustls::StreamOwned::new(
                ServerConnection::new(Arc::clone(&tls)).unwrap(),
                listener.accept().unwrap().0,
            );
            // Who does not know this server ends it here.
            if stream.conn.complete_io(&mut stream.sock).is_ok()
                && stream.fill_buf().is_ok_and(|told| !told.is_empty())
            {
                sender.send(answer(stream, "204 Taken")).unwrap();
            }
        }
    });
    let hook = |name: &str, host: &str, ca: &str| {
        format!(
            "[[hooks]]\nname = {name:?}\non = [\"paused\"]\nwebhook = \"https://{host}:{port}/x\"\nretries = 0\n{ca}"
        )
    };
    let ca = |certificates: &Certificates| {
        format!("ca = {:?}\n", certificates.path("ca-cert.pem").display().to_string())
    };
    let (_root, gateway) = gateway(
        &[
            hook("known", "localhost", &ca(&certificates)),
            hook("by-address", "127.0.0.1", &ca(&certificates)),
            hook("another-name", "127.0.0.2", &ca(&certificates)),
            hook("another-authority", "localhost", &ca(&others)),
            hook("system", "localhost", ""),
        ]
        .concat(),
    );
    gateway.says("group pause erp");
    for _ in 0..2 {
        let (head, body) = requests.recv_timeout(PATIENCE).unwrap();
        assert!(head.starts_with("POST /x HTTP/1.1\r\n") && head.contains(&format!(":{port}\r\n")), "{head}");
        assert_eq!(body["code"], "paused");
    }
    for name in ["known", "by-address"] {
        until(&gateway, name, "it is told", |hook| hook["told"] == 1);
    }
    for (name, why) in
        [("another-name", "TLS failed"), ("another-authority", "TLS failed"), ("system", "`ca` names")]
    {
        let hook = until(&gateway, name, "it is given up", |hook| hook["lost"] == 1);
        assert!(hook["failure"].as_str().unwrap().contains(why), "{hook}");
    }
    assert!(requests.try_recv().is_err());
}

/// What holds up one hook holds up neither another nor the gateway; that it fails is told once, and not to itself.
#[test]
fn a_hook_that_hangs_is_killed_and_one_that_fails_is_given_up() {
    let (root, gateway) = gateway(
        r#"[[hooks]]
        name = "hangs"
        severity = "info"
        exec = ["/bin/sh", "-c", "test -e ROOT/mended || sleep 1000"]
        timeout = "500ms"
        retries = 0
        [[hooks]]
        name = "watches"
        on = ["hook_failed", "hook_works"]
        exec = ["/bin/sh", "-c", "cat >> ROOT/out"]
        "#,
    );
    for _ in 0..2 {
        gateway.says("group pause erp");
        gateway.says("group resume erp");
    }
    until(&gateway, "hangs", "each is given up", |hook| {
        hook["lost"].as_u64() >= Some(4) && hook["waiting"] == 0
    });
    let failed = codes(&gateway).iter().filter(|code| *code == "hook_failed").count();
    assert_eq!(failed, 1, "once for all");
    until(&gateway, "watches", "the other is told", |hook| hook["told"] == 1);
    assert!(gateway.refuses("hooks test hangs", 1).contains("took longer than 500ms"));
    fs::write(root.path().join("mended"), "").unwrap();
    gateway.says("group pause erp");
    until(&gateway, "watches", "that it works is told, too", |hook| hook["told"] == 2);
    let told: Vec<Value> = noted(root.path()).iter().map(|told| told["code"].clone()).collect();
    assert_eq!(told, ["hook_failed", "hook_works"]);
    let hook = until(&gateway, "hangs", "it works", |hook| hook["failure"].is_null());
    assert!(hook["told"].as_u64() >= Some(1), "{hook}");
    assert!(gateway.says("hooks test hangs").contains("was told"));
    assert!(gateway.says("hooks list").contains("works"));
    assert!(gateway.refuses("hooks test none", 1).contains("no hook none"));
}

#[test]
fn what_a_hook_was_not_told_before_kill_nine_it_is_told_after() {
    let (root, mut gateway) = gateway(
        r#"[[hooks]]
        name = "page"
        on = ["paused"]
        exec = ["/bin/sh", "-c", "test -e ROOT/mended && cat >> ROOT/out"]
        retries = 100
        "#,
    );
    gateway.says("group pause erp");
    until(&gateway, "page", "it fails", |hook| hook["failure"].is_string());
    gateway.kill();
    fs::write(root.path().join("mended"), "").unwrap();
    gateway.restart();
    until(&gateway, "page", "it is told", |hook| hook["told"] == 1);
    // A clean stop and a start tell nothing twice.
    gateway.terminate();
    gateway.restart();
    gateway.says("group resume erp");
    gateway.says("group pause erp");
    until(&gateway, "page", "the next is told", |hook| hook["told"] == 1);
    let ids: Vec<Value> = noted(root.path()).iter().map(|told| told["id"].clone()).collect();
    let events = gateway.json("events");
    let paused = events.as_array().unwrap().iter().rev().filter(|event| event["code"] == "paused");
    assert_eq!(ids, paused.map(|event| event["id"].clone()).collect::<Vec<_>>());
    assert_eq!(ids.len(), 2);
}

/// A program that never ends by itself: the fifo's reader learns when it has begun, and when it is gone.
#[test]
fn a_stop_kills_the_program_and_the_next_start_tells_the_event_again() {
    let root = tempfile::tempdir().unwrap();
    let fifo = root.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let table = format!(
        "[[hooks]]\nname = \"hangs\"\non = [\"paused\"]\nexec = [\"/bin/sh\", \"-c\", \"exec > {}; cat; sleep 1000\"]\n\
         timeout = \"10m\"\n",
        fifo.display()
    );
    let mut gateway = Gateway::with(&Setup { more: table.leak(), ..Setup::default() });
    gateway.protect([("db", "2M")]);
    gateway.says("group pause erp");
    let told = |mut reader: BufReader<fs::File>| {
        let mut line = String::new();
        reader.read_to_string(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).expect("one event")["id"].clone()
    };
    // Opens once the program has.
    let first = BufReader::new(fs::File::open(&fifo).unwrap());
    gateway.terminate();
    let first = told(first);
    gateway.restart();
    let second = BufReader::new(fs::File::open(&fifo).unwrap());
    gateway.terminate();
    assert_eq!(told(second), first, "the same event");
}

/// The catalogue may be on the disk that fails.
#[test]
fn hooks_are_told_without_a_catalogue() {
    let (root, mut gateway) = gateway(
        r#"[[hooks]]
        name = "page"
        on = ["paused"]
        exec = ["/bin/sh", "-c", "cat >> ROOT/out"]
        "#,
    );
    gateway.terminate();
    let catalogue = gateway.data().join("catalogue.sqlite");
    fs::remove_file(&catalogue).unwrap();
    fs::create_dir(&catalogue).unwrap();
    gateway.restart();
    gateway.says("group pause erp");
    until(&gateway, "page", "it is told", |hook| hook["told"] == 1);
    assert_eq!(noted(root.path())[0]["id"], Value::Null);
    assert_eq!(gateway.json("audit"), Value::Array(Vec::new()));
}
