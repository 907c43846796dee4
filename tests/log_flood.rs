//! What a flood of hostile clients writes into the log: a few lines, which count all of them.
#![cfg(feature = "server")]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use afterimage::listen::{ListenAddress, SocketMode};
use afterimage::site::{DataThreads, DataThreadsOptions, Member, SessionLimits};
use afterimage::storage::{BackendOptions, open_best};
use serde_json::Value;

const CLIENTS: u64 = 1000;
/// For as many to have a line of their own, they would have to come for minutes.
const LINES_MAX: u64 = CLIENTS / 8;
/// Nothing here takes that long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A writer of the log that hands each line over.
struct Lines(Sender<String>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Once the test is over nobody reads them.
        let _ = self.0.send(String::from_utf8_lossy(line).into_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads lines of the log until they tell of that many clients: those that begin with `one` of one and of those left out,
/// those that begin with `more` of those left out. Gives how many lines it took.
fn lines_until_told(log: &Receiver<String>, one: &str, more: &str) -> u64 {
    let (mut lines, mut told) = (0, 0);
    while told < CLIENTS {
        let line = log.recv_timeout(PATIENCE).expect("all clients are told of");
        let line: Value = serde_json::from_str(&line).expect("JSON");
        let message = line["fields"]["message"].as_str().expect("a message");
        let is_one = message.starts_with(one);
        if is_one || message.starts_with(more) {
            lines += 1;
            told += u64::from(is_one) + line["fields"]["left_out"].as_u64().unwrap_or(0);
        }
    }
    assert_eq!(told, CLIENTS, "each is counted once");
    lines
}

#[test]
fn a_flood_of_clients_is_a_few_lines_that_count_all_of_them() {
    let (sender, log) = channel();
    tracing_subscriber::fmt().json().with_writer(move || Lines(sender.clone())).init();
    let directory = tempfile::tempdir().expect("a directory");
    let open_storage = |_| open_best(&BackendOptions::default()).map(|chosen| chosen.storage);
    let limits = SessionLimits { connections_max: 1, ..SessionLimits::default() };
    let threads: DataThreads<Member> =
        DataThreads::start(DataThreadsOptions { threads: 1, limits }, open_storage).expect("starts");
    let socket = directory.path().join("nbd.sock");
    threads.listen(&ListenAddress::Unix(socket.clone()), SocketMode::Owner).expect("listens");
    let connect = || {
        let client = UnixStream::connect(&socket).expect("connects");
        client.set_read_timeout(Some(PATIENCE)).expect("set");
        client
    };
    for _ in 0..CLIENTS {
        let mut client = connect();
        client.write_all(&[0xa5; 64]).expect("written");
        // Until it is closed, which may be by a reset.
        while client.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
    }
    let lines = lines_until_told(&log, "a session ended", "more sessions ended");
    assert!(lines <= LINES_MAX, "{lines} lines for {CLIENTS} sessions");
    let mut held = connect();
    held.read_exact(&mut [0; 18]).expect("a greeting");
    for _ in 0..CLIENTS {
        let mut next = connect();
        next.read_exact(&mut [0; 18]).expect("a greeting: who negotiates for longest gives way");
        assert_eq!(held.read(&mut [0; 1]).expect("closed"), 0, "turned away without a word");
        held = next;
    }
    assert_eq!(threads.turned_away().clients, CLIENTS);
    let lines = lines_until_told(&log, "a client is turned away", "more clients were turned away");
    assert!(lines <= LINES_MAX, "{lines} lines for {CLIENTS} clients");
    drop(held);
    assert_eq!(threads.drain(PATIENCE).wait(), 0);
    threads.stop().expect("stops");
}
