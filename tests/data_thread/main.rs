//! Data threads over real sockets, with a volume in memory: what is served, who waits for whom, and how it ends.

#![cfg(feature = "server")]

mod budget;
mod gateway;
#[allow(dead_code)]
#[path = "../ram_volume/mod.rs"]
mod ram_volume;
mod tls;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use afterimage::capture::nbd::Limits;
use afterimage::capture::nbd::client::{Answer, Client, Command, Wishes, encode_request};
use afterimage::capture::nbd::codec::{ErrorCode, NBD_EINVAL, NBD_ESHUTDOWN};
use afterimage::listen::{ListenAddress, SocketMode};
use afterimage::site::{DataThreads, DataThreadsOptions, SessionLimits};
use afterimage::storage::{BackendOptions, open_best};
use gateway::{GROUP, Gateway, PATIENCE, SIZE_BYTES, disk, name};
use ram_volume::RamVolume;

const BLOCK_BYTES: usize = 4096;

/// A simple reply's error and cookie.
fn simple_reply(socket: &mut UnixStream) -> (ErrorCode, u64) {
    let mut reply = [0; 16];
    socket.read_exact(&mut reply).unwrap();
    let field = |at: usize| u32::from_be_bytes(reply[at..at + 4].try_into().unwrap());
    (ErrorCode(field(4)), u64::from(field(8)) << 32 | u64::from(field(12)))
}

/// The header of a write that is as long as a header can say.
fn long_write(cookie: u64) -> Vec<u8> {
    let mut encoded = Vec::new();
    encode_request(cookie, &Command::Write { offset: 0, data: &[], durable: false }, &mut encoded);
    encoded[24..].copy_from_slice(&u32::MAX.to_be_bytes());
    encoded
}

/// A block that says whose it is.
fn block(client: u64, index: u64, version: u64) -> Vec<u8> {
    let words = [client, index, version].map(u64::to_le_bytes).concat();
    words.iter().copied().cycle().take(BLOCK_BYTES).collect()
}

/// Writes blocks twice and reads them back, many in flight; then flushes.
fn write_and_verify<S: Read + Write>(mut client: Client<S>, id: u64) {
    const BLOCKS: u64 = 128;
    const DEPTH: usize = 32;
    let offset = |index: u64| (id * BLOCKS + index) * BLOCK_BYTES as u64;
    for version in 0..2 {
        for index in 0..BLOCKS {
            let data = block(id, index, version);
            let write = Command::Write { offset: offset(index), data: &data, durable: index % 16 == 0 };
            client.queue(index, &write).unwrap();
            if client.in_flight() == DEPTH {
                assert_eq!(client.receive().unwrap().result, Ok(Answer::Done));
            }
        }
        while client.in_flight() > 0 {
            assert_eq!(client.receive().unwrap().result, Ok(Answer::Done));
        }
    }
    assert_eq!(client.call(&Command::Flush).unwrap(), Ok(Answer::Done));
    let length = u32::try_from(BLOCK_BYTES).unwrap();
    for index in 0..BLOCKS {
        client.queue(index, &Command::Read { offset: offset(index), length, unfragmented: false }).unwrap();
    }
    for _ in 0..BLOCKS {
        let answered = client.receive().unwrap();
        assert_eq!(
            answered.result,
            Ok(Answer::Data(block(id, answered.cookie, 1))),
            "block {}",
            answered.cookie
        );
    }
    client.disconnect().unwrap();
}

fn four_clients_share_a_group(threads: usize) {
    let gateway = Gateway::start(threads);
    let clients: Vec<_> = (0..4).map(|id| (id, gateway.connect(u128::from(id % 2)).0)).collect();
    // Each has had an answer from its session's thread only; ask for one of the group's.
    let clients: Vec<_> = clients
        .into_iter()
        .map(|(id, mut client)| {
            assert_eq!(client.call(&Command::Flush).unwrap(), Ok(Answer::Done));
            (id, client)
        })
        .collect();
    let mut sessions = vec![0; threads];
    for id in 0..4 {
        sessions[(gateway.home + id) % threads] += 1;
    }
    assert_eq!(gateway.threads.sessions(), sessions, "the first is at home, the others are spread");
    let running =
        clients.into_iter().map(|(id, client)| std::thread::spawn(move || write_and_verify(client, id)));
    let running: Vec<_> = running.collect();
    for client in running {
        client.join().unwrap();
    }
    gateway.until(|volume| volume.sessions_ended() == 4);
    gateway.stop();
}

#[test]
fn four_pipelining_clients_on_one_thread() {
    four_clients_share_a_group(1);
}

#[test]
fn four_pipelining_clients_on_three_threads() {
    four_clients_share_a_group(3);
}

#[test]
fn large_requests_cross_whole() {
    let gateway = Gateway::start(2);
    // Both stay connected, so that the second is the group's second, on the other thread.
    let mut clients = [gateway.connect(0).0, gateway.connect(1).0];
    for client in &mut clients {
        let data: Vec<u8> = (0..9 << 20).map(|index: u32| (index % 251).try_into().unwrap()).collect();
        let write = Command::Write { offset: 512, data: &data, durable: true };
        assert_eq!(client.call(&write).unwrap(), Ok(Answer::Done));
        let read = Command::Read { offset: 512, length: 9 << 20, unfragmented: false };
        assert!(client.call(&read).unwrap() == Ok(Answer::Data(data)));
    }
    drop(clients);
    gateway.stop();
}

#[test]
fn stalled_clients_hold_up_nobody() {
    let gateway = Gateway::start(1);
    // One stops in the middle of a payload, one in that of a payload that is refused, one in the middle of the handshake, one
    // takes no replies at all.
    let (_half_a_write, mut socket) = gateway.connect(0);
    let mut encoded = Vec::new();
    encode_request(1, &Command::Write { offset: 0, data: &block(0, 0, 0), durable: false }, &mut encoded);
    socket.write_all(&encoded[..2000]).unwrap();
    let (_half_a_long_write, mut socket) = gateway.connect(1);
    socket.write_all(&long_write(1)).unwrap();
    socket.write_all(&[0x25; 100_000]).unwrap();
    let mut half_a_handshake = gateway.socket();
    half_a_handshake.write_all(&[0, 0]).unwrap();
    let (_no_reader, mut socket) = gateway.connect(1);
    socket.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut encoded = Vec::new();
    for cookie in 0..4096 {
        encode_request(
            cookie,
            &Command::Read { offset: 0, length: 1 << 20, unfragmented: false },
            &mut encoded,
        );
    }
    // At the limit its socket is not read any more, and this stops for lack of room: the requests are many times what the
    // kernel and one receive take.
    let _ = socket.write_all(&encoded.repeat(100)).unwrap_err();
    write_and_verify(gateway.connect(0).0, 3);
    assert_eq!(
        gateway.threads.drain(Duration::from_millis(100)).wait(),
        3,
        "who takes no replies is cut off, and who sends no more of a payload"
    );
    gateway.threads.stop().unwrap();
}

#[test]
fn a_drain_answers_what_is_in_flight_and_refuses_the_rest() {
    let gateway = Gateway::start(2);
    let (mut at_home, _) = gateway.connect(0);
    let (mut elsewhere, _) = gateway.connect(0);
    gateway.ask(RamVolume::hold);
    for client in [&mut at_home, &mut elsewhere] {
        client.queue(1, &Command::Write { offset: 0, data: &block(0, 0, 0), durable: false }).unwrap();
        client.send_queued().unwrap();
    }
    gateway.until(|volume| volume.held() == 2);
    let draining = gateway.threads.drain(PATIENCE);
    for client in [&mut at_home, &mut elsewhere] {
        client.queue(2, &Command::Write { offset: 0, data: &block(0, 0, 1), durable: false }).unwrap();
        let answered = client.receive().unwrap();
        assert_eq!((answered.cookie, answered.result.unwrap_err().code), (2, NBD_ESHUTDOWN));
    }
    assert!(UnixStream::connect(&gateway.socket).is_err(), "no new clients");
    gateway.ask(RamVolume::release);
    for client in [&mut at_home, &mut elsewhere] {
        let answered = client.receive().unwrap();
        assert_eq!((answered.cookie, answered.result), (1, Ok(Answer::Done)));
    }
    assert_eq!(draining.wait(), 0);
    gateway.threads.stop().unwrap();
}

#[test]
fn a_drain_closes_idle_sessions_at_once() {
    let gateway = Gateway::start(2);
    let (_idle, mut idle) = gateway.connect(0);
    let (_half_a_write, mut half_a_write) = gateway.connect(0);
    half_a_write.write_all(&long_write(1)[..20]).unwrap();
    let mut half_a_handshake = gateway.socket();
    assert_eq!(half_a_handshake.read(&mut [0; 18]).unwrap(), 18);
    // Nobody is owed anything: all end in good order, and nobody is waited for until the deadline.
    assert_eq!(gateway.threads.drain(PATIENCE).wait(), 0);
    for socket in [&mut idle, &mut half_a_write, &mut half_a_handshake] {
        assert_eq!(socket.read(&mut [0]).unwrap(), 0, "its connection is closed");
    }
    gateway.threads.stop().unwrap();
}

/// A write that had begun to come when the drain began got no answer: nothing was in flight, so its connection was closed
/// as an idle one's is.
#[test]
fn a_drain_answers_a_write_whose_payload_is_still_to_come() {
    const MIB: usize = 1 << 20;
    let gateway = Gateway::start(2);
    let (_idle, mut idle) = gateway.connect(0);
    let mut begun = gateway.connect_simple(0);
    let mut refused = gateway.connect_simple(0);
    let mut encoded = Vec::new();
    encode_request(7, &Command::Write { offset: 0, data: &vec![0x5a; MIB], durable: false }, &mut encoded);
    begun.write_all(&encoded[..4000]).unwrap();
    let too_long = (33_u32 << 20).to_be_bytes();
    refused.write_all(&[&encoded[..24], &too_long, &encoded[28..4000]].concat()).unwrap();
    gateway.until_held(MIB);
    let draining = gateway.threads.drain(PATIENCE);
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "nobody owes it anything");
    // Memory for a payload that nobody wants is given back at once; so it is known that the drain has begun there too.
    gateway.until_held(0);
    begun.write_all(&encoded[4000..]).unwrap();
    assert_eq!(simple_reply(&mut begun), (NBD_ESHUTDOWN, 7));
    assert_eq!(begun.read(&mut [0]).unwrap(), 0, "answered, and closed");
    refused.write_all(&vec![0x5a; 33 * MIB + 28 - 4000]).unwrap();
    assert_eq!(simple_reply(&mut refused), (NBD_EINVAL, 7));
    assert_eq!(draining.wait(), 0);
    assert!(gateway.ask(|volume| volume.is_untouched()));
    gateway.threads.stop().unwrap();
}

#[test]
fn a_drain_waits_for_no_payload_beyond_its_deadline() {
    let gateway = Gateway::start(1);
    let (_stalled, mut socket) = gateway.connect(0);
    let (_trickling, mut trickle) = gateway.connect(1);
    for socket in [&mut socket, &mut trickle] {
        socket.write_all(&long_write(1)).unwrap();
    }
    let draining = gateway.threads.drain(Duration::from_millis(200));
    // Bytes that keep coming are no reason to wait longer.
    while trickle.write_all(&[0x25; 512]).is_ok() {}
    assert_eq!(draining.wait(), 2);
    assert_eq!(socket.read(&mut [0]).unwrap_or(0), 0, "cut off");
    gateway.threads.stop().unwrap();
}

#[test]
fn a_drain_answers_what_a_limit_had_kept_waiting() {
    let connection = Limits { requests_max: 4, ..Limits::default() };
    let gateway = Gateway::with_limits(1, SessionLimits { connection, ..SessionLimits::default() });
    let (mut client, _) = gateway.connect(0);
    gateway.ask(RamVolume::hold);
    for cookie in 0..10 {
        let write = Command::Write { offset: 0, data: &block(0, 0, 0), durable: false };
        client.queue(cookie, &write).unwrap();
    }
    client.send_queued().unwrap();
    gateway.until(|volume| volume.held() == 4);
    let draining = gateway.threads.drain(PATIENCE);
    gateway.ask(RamVolume::release);
    let answers: Vec<_> = (0..10).map(|_| client.receive().unwrap()).collect();
    for answered in answers {
        match answered.result {
            Ok(answer) => assert!(answered.cookie < 4 && answer == Answer::Done, "{}", answered.cookie),
            Err(refused) => assert_eq!((answered.cookie >= 4, refused.code), (true, NBD_ESHUTDOWN)),
        }
    }
    assert_eq!(draining.wait(), 0);
    gateway.threads.stop().unwrap();
}

/// Keeps a data thread from going on, until it is dropped.
struct Halted(#[allow(dead_code)] std::sync::mpsc::Sender<()>);

impl Gateway {
    /// Halts the thread when it comes to this command; the receiver says when that is.
    fn halt(&self) -> (Halted, std::sync::mpsc::Receiver<()>) {
        let (halted, go) = std::sync::mpsc::channel();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let halt = move |_: &mut afterimage::site::Host<RamVolume>| {
            begun.send(()).unwrap();
            let _ = go.recv();
        };
        self.threads.command(self.home, halt).unwrap();
        (Halted(halted), has_begun)
    }
}

/// A request that had reached the socket, but whose edge the loop had not seen when it began to drain, was left without
/// an answer.
#[test]
fn a_drain_answers_what_had_reached_the_socket() {
    let gateway = Gateway::start(1);
    let (mut client, _) = gateway.connect(0);
    assert_eq!(client.call(&Command::Flush).unwrap(), Ok(Answer::Done));
    let (before, has_begun) = gateway.halt();
    has_begun.recv_timeout(PATIENCE).unwrap();
    // The next turn takes these two together, and looks at no socket in between.
    let (between, has_begun) = gateway.halt();
    let draining = gateway.threads.drain(PATIENCE);
    drop(before);
    has_begun.recv_timeout(PATIENCE).unwrap();
    client.queue(1, &Command::Flush).unwrap();
    client.send_queued().unwrap();
    drop(between);
    assert_eq!(client.receive().unwrap().result.unwrap_err().code, NBD_ESHUTDOWN);
    assert_eq!(draining.wait(), 0);
    gateway.threads.stop().unwrap();
}

#[test]
fn a_write_above_the_maximum_is_refused_and_the_next_is_served() {
    let gateway = Gateway::start(2);
    for mut client in [gateway.connect(0).0, gateway.connect(0).0] {
        let long = vec![0x5a; (32 << 20) + 512];
        let write = Command::Write { offset: 0, data: &long, durable: false };
        assert_eq!(client.call(&write).unwrap().unwrap_err().code, NBD_EINVAL);
        let read = Command::Read { offset: 0, length: 512, unfragmented: false };
        assert_eq!(client.call(&read).unwrap(), Ok(Answer::Data(vec![0; 512])));
        let write = Command::Write { offset: SIZE_BYTES - 512, data: &[1; 512], durable: true };
        assert_eq!(client.call(&write).unwrap(), Ok(Answer::Done));
        client.disconnect().unwrap();
    }
    gateway.stop();
}

#[test]
fn a_drain_does_not_wait_beyond_its_deadline() {
    let gateway = Gateway::start(1);
    let (mut client, _) = gateway.connect(0);
    gateway.ask(RamVolume::hold);
    client.queue(1, &Command::Write { offset: 0, data: &block(0, 0, 0), durable: false }).unwrap();
    client.send_queued().unwrap();
    gateway.until(|volume| volume.held() == 1);
    assert_eq!(gateway.threads.drain(Duration::from_millis(50)).wait(), 1);
    assert!(client.receive().is_err(), "cut off");
    gateway.threads.stop().unwrap();
}

#[test]
fn a_removed_export_loses_its_sessions_and_no_other_does() {
    let gateway = Gateway::start(2);
    let (mut removed, mut socket) = gateway.connect(0);
    let (mut kept, _) = gateway.connect(1);
    assert_eq!(removed.call(&Command::Flush).unwrap(), Ok(Answer::Done));
    gateway.threads.exports().remove(&name(0)).unwrap();
    assert_eq!(gateway.threads.close_sessions(disk(0), PATIENCE).wait(), 0);
    assert_eq!(socket.read(&mut [0]).unwrap(), 0, "its connection is closed");
    assert_eq!(kept.call(&Command::Flush).unwrap(), Ok(Answer::Done));
    assert!(Client::connect(gateway.socket(), Wishes::all(name(0))).is_err());
    drop(kept);
    gateway.stop();
}

#[test]
fn a_group_that_is_not_hosted_refuses() {
    let gateway = Gateway::start(1);
    let (mut client, _) = gateway.connect(0);
    let removed = gateway.threads.call(gateway.home, |host| host.remove(GROUP).is_some());
    assert!(removed.unwrap().blocking_recv().unwrap());
    assert_eq!(client.call(&Command::Flush).unwrap().unwrap_err().code, NBD_ESHUTDOWN);
    drop(client);
    gateway.stop();
}

/// A review found that they were waited for until the gateway ended, and what their clients held with them.
#[test]
fn what_a_group_has_not_answered_when_it_is_removed_is_refused() {
    let gateway = Gateway::start(2);
    // On either thread, so that refusals cross.
    let [(mut there, handle), (mut gone, gone_handle)] = [gateway.connect(0), gateway.connect(0)];
    gateway.until_threads(|threads| threads.sessions() == [1, 1]);
    gateway.ask(RamVolume::hold);
    let write = Command::Write { offset: 0, data: &vec![7; 1 << 20], durable: false };
    let read = Command::Read { offset: 0, length: 1 << 20, unfragmented: false };
    for client in [&mut there, &mut gone] {
        client.queue(1, &write).unwrap();
        client.queue(2, &read).unwrap();
        client.queue(3, &Command::Flush).unwrap();
        client.send_queued().unwrap();
    }
    gateway.until(|volume| volume.held() == 6);
    drop((gone, gone_handle));
    gateway.until_threads(|threads| threads.sessions().iter().sum::<usize>() == 1);
    let removed = gateway.threads.call(gateway.home, |host| host.remove(GROUP).is_some());
    assert!(removed.unwrap().blocking_recv().unwrap());
    for _ in 0..3 {
        assert_eq!(there.receive().unwrap().result.unwrap_err().code, NBD_ESHUTDOWN);
    }
    gateway.until_threads(|threads| threads.connections() == 1 && threads.budget().held() == 0);
    drop((there, handle));
    gateway.until_threads(|threads| threads.connections() == 0);
    gateway.stop();
}

#[test]
fn clients_above_the_limit_are_turned_away() {
    let gateway = Gateway::with_limits(1, SessionLimits { connections_max: 2, ..SessionLimits::default() });
    let first = gateway.connect(0);
    let _second = gateway.connect(0);
    assert_eq!(gateway.socket().read(&mut [0; 64]).unwrap(), 0, "the third is closed unheard");
    assert_eq!(gateway.threads.connections(), 2);
    first.0.disconnect().unwrap();
    drop(first.1);
    gateway.until(|volume| volume.sessions_ended() == 1);
    write_and_verify(gateway.connect(0).0, 1);
}

/// For as long as their deadline was, they shut out everybody else; and came again.
#[test]
fn clients_that_only_connect_give_way_to_one_that_negotiates() {
    let gateway = Gateway::with_limits(1, SessionLimits { connections_max: 2, ..SessionLimits::default() });
    let mut silent = [gateway.socket(), gateway.socket()];
    for socket in &mut silent {
        socket.read_exact(&mut [0; 18]).expect("a greeting");
    }
    let first = gateway.connect(0);
    assert_eq!(silent[0].read(&mut [0; 64]).unwrap(), 0, "who waited for longest is turned away");
    let second = gateway.connect(0);
    assert_eq!(silent[1].read(&mut [0; 64]).unwrap(), 0);
    assert_eq!(gateway.socket().read(&mut [0; 64]).unwrap(), 0, "those that negotiated are left alone");
    let turned_away = gateway.threads.turned_away();
    assert!(turned_away.clients == 3 && turned_away.newest.is_some(), "{turned_away:?}");
    for (id, (client, _)) in (1..).zip([first, second]) {
        write_and_verify(client, id);
    }
    gateway.until(|volume| volume.sessions_ended() == 2);
    gateway.stop();
}

#[test]
fn a_handshake_has_a_deadline() {
    let handshake = Duration::from_millis(50);
    let gateway = Gateway::with_limits(1, SessionLimits { handshake, ..SessionLimits::default() });
    let (mut served, _) = gateway.connect(0);
    let mut silent = gateway.socket();
    let mut greeting = Vec::new();
    silent.read_to_end(&mut greeting).unwrap();
    assert!(greeting.starts_with(b"NBDMAGIC"), "greeted, and cut off");
    assert_eq!(served.call(&Command::Flush).unwrap(), Ok(Answer::Done), "who is past it has no deadline");
    drop(served);
    gateway.stop();
}

#[test]
fn tcp_clients_are_served_beside_unix_ones() {
    let gateway = Gateway::start(1);
    let bound = gateway
        .threads
        .listen(&ListenAddress::Tcp("127.0.0.1:0".parse().unwrap()), SocketMode::Owner)
        .unwrap();
    let ListenAddress::Tcp(address) = bound else { panic!("{bound} is not a TCP address") };
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut tcp = Client::connect(socket, Wishes::all(name(0))).unwrap();
    let data = block(9, 9, 9);
    let write = Command::Write { offset: 0, data: &data, durable: false };
    assert_eq!(tcp.call(&write).unwrap(), Ok(Answer::Done));
    let length = u32::try_from(BLOCK_BYTES).unwrap();
    let read = Command::Read { offset: 0, length, unfragmented: false };
    assert_eq!(gateway.connect(0).0.call(&read).unwrap(), Ok(Answer::Data(data)));
    drop(tcp);
    gateway.stop();
}

#[test]
fn a_socket_that_answers_is_refused() {
    let gateway = Gateway::start(1);
    let error =
        gateway.threads.listen(&ListenAddress::Unix(gateway.socket.clone()), SocketMode::Owner).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    let other = gateway.directory.path().join("other.sock");
    drop(std::os::unix::net::UnixListener::bind(&other).unwrap());
    gateway.threads.listen(&ListenAddress::Unix(other.clone()), SocketMode::Owner).unwrap();
    let socket = UnixStream::connect(other).unwrap();
    assert!(Client::connect(socket, Wishes::all(name(1))).is_ok());
    gateway.stop();
}

#[test]
fn an_error_at_the_start_is_the_starters() {
    let options = DataThreadsOptions { threads: 2, limits: SessionLimits::default() };
    let error = DataThreads::<RamVolume>::start(options, |thread| match thread {
        0 => open_best(&BackendOptions::default()).map(|chosen| chosen.storage),
        _ => Err(afterimage::error::Error::invalid("no storage for this thread")),
    });
    assert!(error.unwrap_err().to_string().contains("no storage"));
}
