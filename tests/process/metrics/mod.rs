//! `/metrics` of a gateway at work: what is served, on which sockets, and that docs/metrics.md, the dashboard and the alert rules speak of
//! just that.

mod documents;
mod exposition;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use afterimage::capture::nbd::client::{Client, Command, Wishes};
use serde_json::Value;

use crate::content::content;
use crate::gateway::{Gateway, PATIENCE, Setup};
use documents::Query;
use exposition::Exposition;

const BLOCK_BYTES: usize = 1 << 20;
const BLOCKS: u64 = 3;
/// Each takes a millisecond or two.
const SCRAPES_MAX: usize = 10_000;

/// Asks for a path; the head of the answer, and its body.
fn ask(mut socket: impl Read + Write, path: &str) -> (String, String) {
    write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("it listens");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    // Short answers have a length, longer ones may come in chunks.
    assert!(!head.contains("chunked"), "{head}");
    (head.to_owned(), body.to_owned())
}

#[track_caller]
fn scrape(gateway: &Gateway) -> Exposition {
    let (head, body) =
        ask(UnixStream::connect(gateway.api()).expect("its API takes connections"), "/metrics");
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    Exposition::parse(&body)
}

/// Where its metrics have an address of their own.
fn address(gateway: &Gateway) -> String {
    let line = gateway.logged("metrics may be scraped").pop().expect("it listens");
    line.rsplit_once("address=").expect("the key").1.trim().to_owned()
}

fn connect_tcp(gateway: &Gateway) -> TcpStream {
    let socket = TcpStream::connect(address(gateway)).expect("it takes connections");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out above zero");
    socket
}

fn at_work() -> Gateway {
    let more = "[[hooks]]\nname = \"page\"\non = [\"paused\"]\nexec = [\"/bin/true\"]\n\
                [metrics]\nlisten = \"127.0.0.1:0\"\n[vault]\nhistory_max = \"1GiB\"\n[verify]\nevery = \"1s\"\nrate = \"1GiB\"\n";
    let gateway = Gateway::with(&Setup { more, ..Setup::default() });
    gateway.protect([("db", "8M"), ("log", "4M")]);
    gateway
}

fn write(gateway: &Gateway) {
    let mut client =
        Client::connect(gateway.connect(), Wishes::all("erp/db".to_owned())).expect("it is served");
    for block in 0..BLOCKS {
        let data = content(block, BLOCK_BYTES);
        let write = Command::Write { offset: block * BLOCK_BYTES as u64, data: &data, durable: false };
        drop(client.call(&write).expect("served").expect("taken"));
    }
    let read = Command::Read { offset: 0, length: 4096, unfragmented: true };
    drop(client.call(&read).expect("served").expect("given"));
    drop(client.call(&Command::Flush).expect("served").expect("done"));
}

/// With all that there may be to tell: points, an event, a verification that ended and one that is due.
fn with_everything() -> Gateway {
    let gateway = at_work();
    write(&gateway);
    gateway.says("point create erp --label one");
    gateway.says("group pause erp");
    gateway.says("group resume erp");
    gateway.until("a verification ended, and the next is due", |status| {
        let verify = &status["groups"][0]["verify"];
        verify["last"] != Value::Null && verify["next"] != Value::Null
    });
    gateway
}

/// A scrape while no verification is under way: then it is not said when the next is due.
fn scrape_of_everything(gateway: &Gateway) -> Exposition {
    for _ in 0..SCRAPES_MAX {
        let served = scrape(gateway);
        if !served.0["afterimage_group_verify_due_timestamp_seconds"].samples.is_empty() {
            return served;
        }
    }
    panic!("verifications never rest");
}

#[test]
fn what_is_served_is_documented_and_what_is_documented_is_served() {
    let gateway = with_everything();
    let served = scrape_of_everything(&gateway);
    let documented = documents::metrics();
    assert!(documented.keys().eq(served.0.keys()), "{:?}\n{:?}", documented.keys(), served.0.keys());
    for (name, row) in &documented {
        let family = &served.0[name];
        assert_eq!((&row.kind, &row.unit), (&family.kind, &family.unit), "{name}");
        let labels = served.labels(name);
        assert!(row.labels.iter().map(String::as_str).eq(labels.iter().copied()), "{name}: {labels:?}");
    }
}

/// That a query asks for what is served, by labels and values that it is served with.
#[track_caller]
fn assert_answered(query: &Query, served: &Exposition) {
    assert!(!query.metrics.is_empty(), "{query:?}");
    let mut known = Vec::new();
    for metric in &query.metrics {
        // Prometheus says itself whether it reaches what it scrapes.
        if metric != "up" {
            assert!(served.0.contains_key(metric), "{metric} is served: {query:?}");
            known.extend(served.labels(metric));
        }
    }
    for label in query.own_labels() {
        assert!(known.contains(&label.as_str()), "label {label} is served: {query:?}");
    }
    for (metric, label, value) in query.own_matchers() {
        assert!(served.labels(metric).contains(label), "{metric} has {label}: {query:?}");
        let is_kind = metric == "afterimage_events_total";
        assert!(is_kind || served.values(metric, label).contains(value), "{label} may be {value}: {query:?}");
    }
    for (metric, label, _) in &query.matchers {
        assert!(
            label == "job" || served.labels(metric).contains(label.as_str()),
            "{metric} {label}: {query:?}"
        );
    }
}

#[test]
fn the_dashboard_and_the_alerts_ask_for_what_is_served() {
    let gateway = with_everything();
    let served = scrape_of_everything(&gateway);
    let (dashboard, alerts) = (documents::dashboard(), documents::alerts());
    assert!(dashboard.len() > 20 && alerts.len() > 10, "{} {}", dashboard.len(), alerts.len());
    dashboard.iter().chain(alerts.values()).for_each(|query| assert_answered(query, &served));
}

#[test]
fn counters_count_and_a_group_that_is_removed_is_gone() {
    let gateway = at_work();
    let erp = [("group", "erp")];
    let before = scrape(&gateway);
    assert_eq!(before.value("afterimage_group_written_bytes_total", &erp), 0.0);
    write(&gateway);
    gateway.says("point create erp");
    let after = scrape(&gateway);
    assert_eq!(after.value("afterimage_group_writes_total", &erp), BLOCKS as f64);
    let written = BLOCKS as f64 * BLOCK_BYTES as f64;
    assert_eq!(after.value("afterimage_group_written_bytes_total", &erp), written);
    assert_eq!(after.value("afterimage_group_reads_total", &erp), 1.0);
    assert!(after.value("afterimage_group_journal_written_bytes_total", &erp) > written);
    assert!(after.value("afterimage_group_vault_written_bytes_total", &erp) > 0.0);
    assert!(after.value("afterimage_group_points_published_total", &erp) >= 1.0);
    assert_eq!(after.value("afterimage_group_unprotected_seconds", &erp), 0.0, "a point holds all");
    assert_eq!(
        after.value("afterimage_group_condition", &[("group", "erp"), ("condition", "protected")]),
        1.0
    );
    assert_eq!(after.value("afterimage_group_condition", &[("group", "erp"), ("condition", "latched")]), 0.0);
    assert_eq!(after.value("afterimage_disk_size_bytes", &[("disk", "db")]), (8 << 20) as f64);
    for (name, family) in before.0.iter().filter(|(_, family)| family.kind == "counter") {
        for (labels, value) in &family.samples {
            let labels: Vec<_> =
                labels.iter().map(|(label, value)| (label.as_str(), value.as_str())).collect();
            assert!(after.value(name, &labels) >= *value, "{name} {labels:?}");
        }
    }
    gateway.says("group remove erp --yes");
    let left = scrape(&gateway);
    let of_erp = |family: &exposition::Family| {
        family.samples.iter().any(|(labels, _)| labels.get("group").is_some_and(|group| group == "erp"))
    };
    let stale: Vec<_> = left.0.iter().filter(|(_, family)| of_erp(family)).collect();
    assert!(stale.is_empty(), "{stale:?}");
}

#[test]
fn a_socket_of_their_own_serves_metrics_and_nothing_else() {
    let mut gateway = at_work();
    let (head, body) = ask(connect_tcp(&gateway), "/metrics");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let names: Vec<String> = Exposition::parse(&body).0.into_keys().collect();
    assert_eq!(names, scrape(&gateway).0.into_keys().collect::<Vec<_>>());
    for path in ["/v1/status", "/v1/groups", "/"] {
        let (head, body) = ask(connect_tcp(&gateway), path);
        assert!(head.starts_with("HTTP/1.1 404"), "{path}: {head}");
        assert_eq!(body, "only /metrics is served here\n");
    }
    // Clients that say nothing do not hold up a stop.
    let idle = connect_tcp(&gateway);
    gateway.terminate();
    drop(idle);
}

/// As with the API: who is one too many is told so.
#[test]
fn clients_of_metrics_are_limited() {
    let gateway = at_work();
    let mut idle: Vec<TcpStream> = (0..16).map(|_| connect_tcp(&gateway)).collect();
    // A scrape is answered by each; they stay connected.
    for socket in &mut idle {
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").expect("it listens");
        socket.read_exact(&mut [0; 12]).expect("it answers");
    }
    let (head, body) = ask(connect_tcp(&gateway), "/metrics");
    assert!(head.starts_with("HTTP/1.1 503") && body.contains("[metrics] listen"), "{head}\n{body}");
    // Neither the API nor block clients feel it.
    write(&gateway);
    assert_eq!(scrape(&gateway).value("afterimage_clients_turned_away_total", &[("service", "api")]), 0.0);
}
