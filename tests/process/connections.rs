//! What one client may do to another: nothing. Stalled, too many, broken, wrong, each beside one that works.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use afterimage::capture::nbd::client::{Answer, Client, Command, Wishes, encode_request};

use crate::content::{assert_same_bytes, content};
use crate::gateway::{Gateway, Setup};

fn connect(gateway: &Gateway, export: &str) -> Client<UnixStream> {
    Client::connect(gateway.connect(), Wishes::all(export.to_owned())).expect("it is served")
}

#[track_caller]
fn writes_and_reads(client: &mut Client<UnixStream>, offset: u64, seed: u64) {
    let data = content(seed, 64 << 10);
    client.call(&Command::Write { offset, data: &data, durable: true }).unwrap().expect("taken");
    let read = Command::Read { offset, length: 64 << 10, unfragmented: true };
    match client.call(&read).unwrap().expect("given") {
        Answer::Data(bytes) => assert_same_bytes(&bytes, &data),
        other => panic!("no read: {other:?}"),
    }
}

#[test]
fn half_a_write_holds_up_nobody() {
    let gateway = Gateway::start();
    gateway.protect([("db", "16M")]);
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let socket = gateway.connect();
        let mut rest = socket.try_clone().unwrap();
        // Kept: dropping it would close the connection.
        let client = Client::connect(socket, Wishes::all("erp/db".to_owned())).unwrap();
        let mut request = Vec::new();
        let data = vec![0xee; 1 << 20];
        encode_request(7, &Command::Write { offset: 8 << 20, data: &data, durable: false }, &mut request);
        rest.write_all(&request[..request.len() / 2]).unwrap();
        stalled.push((client, rest, request));
    }
    let mut working = connect(&gateway, "erp/db");
    for turn in 0..64 {
        writes_and_reads(&mut working, turn * (64 << 10), turn);
    }
    gateway.says("point create erp --label beside");
    // Not a byte of a half write is seen; the other half makes it whole.
    let read = Command::Read { offset: 8 << 20, length: 4096, unfragmented: true };
    assert!(matches!(working.call(&read).unwrap(), Ok(Answer::Data(bytes)) if bytes.iter().all(|&b| b == 0)));
    let (_client, socket, request) = &mut stalled[0];
    socket.write_all(&request[request.len() / 2..]).unwrap();
    socket.read_exact(&mut [0; 16]).unwrap();
    assert!(
        matches!(working.call(&read).unwrap(), Ok(Answer::Data(bytes)) if bytes.iter().all(|&b| b == 0xee))
    );
}

/// They took all that the journal, the vault and the API need.
#[test]
fn idle_clients_leave_half_of_the_descriptors() {
    let gateway = Gateway::with(&Setup { connections_max: 1000, descriptors: Some(256), ..Setup::default() });
    gateway.protect([("db", "16M")]);
    assert_eq!(gateway.json("status")["connections_limit"], 128);
    let mut working = connect(&gateway, "erp/db");
    let idle: Vec<_> = (1..128).map(|_| connect(&gateway, "erp/db")).collect();
    for turn in 0..64 {
        writes_and_reads(&mut working, turn * (64 << 10), turn);
    }
    gateway.says("point create erp --label beside");
    assert_eq!(gateway.json("status")["connections"], 128);
    drop(idle);
}

#[test]
fn one_too_many_is_turned_away_and_the_next_is_not() {
    let gateway = Gateway::with(&Setup { connections_max: 3, ..Setup::default() });
    gateway.protect([("db", "16M")]);
    let mut clients: Vec<_> = (0..3).map(|_| connect(&gateway, "erp/db")).collect();
    let refused = Client::connect(gateway.connect(), Wishes::all("erp/db".to_owned()));
    refused.expect_err("the fourth of three");
    gateway.until("a line in the log", |_| gateway.logged("too many connections").len() == 1);
    for (turn, client) in (0..).zip(&mut clients) {
        writes_and_reads(client, turn << 20, turn);
    }
    clients.pop().expect("three").disconnect().unwrap();
    gateway.until("a free place", |status| status["connections"] == 2);
    writes_and_reads(&mut connect(&gateway, "erp/db"), 0, 9);
}

#[test]
fn refused_requests_leave_the_connection() {
    let gateway = Gateway::start();
    gateway.protect([("db", "16M")]);
    let mut client = connect(&gateway, "erp/db");
    let data = [1; 512];
    let refused = [
        ("past the end", Command::Write { offset: 16 << 20, data: &data, durable: false }, 28),
        ("over the end", Command::Write { offset: (16 << 20) - 256, data: &data, durable: false }, 22),
        ("not aligned", Command::Write { offset: 1, data: &data, durable: false }, 22),
        ("no whole sector", Command::Write { offset: 0, data: &data[..100], durable: false }, 22),
        ("read past the end", Command::Read { offset: 16 << 20, length: 512, unfragmented: false }, 22),
        ("read not aligned", Command::Read { offset: 3, length: 512, unfragmented: false }, 22),
        ("trim past the end", Command::Trim { offset: 16 << 20, length: 512, durable: false }, 22),
    ];
    for (what, command, errno) in refused {
        let refusal = client.call(&command).expect("the connection goes on").expect_err(what);
        assert_eq!(refusal.code.0, errno, "{what}: {refusal:?}");
        writes_and_reads(&mut client, 0, 5);
    }
}

#[test]
fn noise_costs_only_its_own_connection() {
    let gateway = Gateway::start();
    gateway.protect([("db", "16M")]);
    let mut working = connect(&gateway, "erp/db");
    for seed in 0..16 {
        let mut noisy = gateway.connect();
        // It may be hung up on half-way through.
        let _ = noisy.write_all(&content(seed, 256 << 10));
        writes_and_reads(&mut working, 0, seed);
        let mut broken = connect(&gateway, "erp/db");
        assert!(broken.call(&Command::Flush).unwrap().is_ok());
    }
    gateway.until("all hung up on", |status| status["connections"].as_u64() <= Some(17));
    writes_and_reads(&mut working, 0, 99);
}
