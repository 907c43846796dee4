//! What clients hold together: who waits for room goes on when there is some, wherever it is given back; who hoards it is cut off;
//! and what was asked counts until it is answered.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use afterimage::capture::nbd::budget::OWN_BYTES;
use afterimage::capture::nbd::client::{Answer, Client, Command, encode_request};
use afterimage::site::SessionLimits;

use crate::gateway::{Gateway, PATIENCE};
use crate::ram_volume::RamVolume;

const MIB: usize = 1 << 20;
/// Two of these take all that there is.
const LARGE_BYTES: usize = 16 * MIB;
const TOTAL_BYTES: usize = 2 * LARGE_BYTES;
/// Nobody is ever cut off within this.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

fn gateway(hoarding: Duration) -> Gateway {
    Gateway::with_limits(
        2,
        SessionLimits { hoarding, buffers_total: TOTAL_BYTES, ..SessionLimits::default() },
    )
}

fn read(bytes: usize) -> Command<'static> {
    Command::Read { offset: 0, length: bytes.try_into().unwrap(), unfragmented: false }
}

/// Asks for all that there is, and takes nothing of it.
fn hoard(client: &mut Client<UnixStream>) {
    for cookie in 0..2 {
        client.queue(cookie, &read(LARGE_BYTES)).unwrap();
    }
    client.send_queued().unwrap();
}

fn ask(client: &mut Client<UnixStream>, bytes: usize) {
    client.queue(9, &read(bytes)).unwrap();
    client.send_queued().unwrap();
}

#[track_caller]
fn expect_zeros(client: &mut Client<UnixStream>, bytes: usize) {
    let answered = client.receive().unwrap();
    assert!(answered.result == Ok(Answer::Data(vec![0; bytes])), "cookie {}", answered.cookie);
}

/// The first client's session is on the group's thread, the second's on the other.
fn two_clients(gateway: &Gateway) -> [(Client<UnixStream>, UnixStream); 2] {
    let clients = [gateway.connect(0), gateway.connect(0)];
    gateway.until_threads(|threads| threads.sessions() == [1, 1]);
    clients
}

#[test]
fn who_waits_on_one_thread_goes_on_when_another_gives_back() {
    // Either may be the thread that waits.
    for hoarder in [0, 1] {
        let gateway = gateway(FOR_EVER);
        let mut clients = two_clients(&gateway);
        let [(one, _), (other, _)] = &mut clients;
        let (hoarder, waiter) = if hoarder == 0 { (one, other) } else { (other, one) };
        hoard(hoarder);
        gateway.until_threads(|threads| threads.budget().held() >= TOTAL_BYTES - MIB);
        ask(waiter, 8 * MIB);
        gateway.until_threads(|threads| threads.budget().is_awaited());
        // Small requests are served, however little room there is: also many at once, as far as they are small together.
        let (mut small, _) = gateway.connect(1);
        for cookie in 0..64 {
            small.queue(cookie, &read(4096)).unwrap();
        }
        (0..64).for_each(|_| expect_zeros(&mut small, 4096));
        assert!(gateway.threads.budget().held() <= TOTAL_BYTES);
        for _ in 0..2 {
            expect_zeros(hoarder, LARGE_BYTES);
        }
        expect_zeros(waiter, 8 * MIB);
        gateway.until_threads(|threads| threads.budget().held() == 0 && !threads.budget().is_awaited());
        drop((clients, small));
        gateway.stop();
    }
}

#[test]
fn who_waits_on_one_thread_goes_on_when_a_client_of_another_is_gone() {
    let gateway = gateway(FOR_EVER);
    let [(mut hoarder, _), (mut waiter, _)] = two_clients(&gateway);
    hoard(&mut hoarder);
    gateway.until_threads(|threads| threads.budget().held() >= TOTAL_BYTES - MIB);
    ask(&mut waiter, 8 * MIB);
    gateway.until_threads(|threads| threads.budget().is_awaited());
    drop(hoarder);
    expect_zeros(&mut waiter, 8 * MIB);
    drop(waiter);
    gateway.stop();
}

/// One that takes no replies, and one that stops in the middle of a payload.
#[test]
fn a_client_that_holds_what_others_wait_for_and_does_nothing_is_cut_off() {
    let gateway = gateway(Duration::from_millis(100));
    let [(mut no_reader, socket), (mut waiter, _)] = two_clients(&gateway);
    hoard(&mut no_reader);
    gateway.until_threads(|threads| threads.budget().held() >= TOTAL_BYTES - MIB);
    let before = gateway.threads.sessions();
    ask(&mut waiter, 8 * MIB);
    expect_zeros(&mut waiter, 8 * MIB);
    gateway.until_threads(|threads| threads.sessions() != before && threads.budget().held() == 0);
    assert_cut_off(socket);

    let mut half_a_write = gateway.connect_simple(0);
    let mut encoded = Vec::new();
    let data = vec![0x5a; 2 * LARGE_BYTES];
    encode_request(1, &Command::Write { offset: 0, data: &data, durable: false }, &mut encoded);
    half_a_write.write_all(&encoded[..1000]).unwrap();
    gateway.until_held(2 * LARGE_BYTES);
    ask(&mut waiter, 8 * MIB);
    expect_zeros(&mut waiter, 8 * MIB);
    assert_cut_off(half_a_write);
    drop((no_reader, waiter));
    gateway.stop();
}

#[test]
fn a_client_that_trickles_what_others_wait_for_is_cut_off() {
    let gateway = gateway(Duration::from_millis(100));
    let mut trickling = gateway.connect_simple(0);
    let (mut waiter, _) = gateway.connect(0);
    let mut encoded = Vec::new();
    let data = vec![0x5a; 2 * LARGE_BYTES];
    encode_request(1, &Command::Write { offset: 0, data: &data, durable: false }, &mut encoded);
    trickling.write_all(&encoded[..1000]).unwrap();
    gateway.until_held(2 * LARGE_BYTES);
    // A byte, then a millisecond of looking for the end: the whole would take nine hours.
    trickling.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let trickle = std::thread::spawn(move || {
        let mut rest = encoded[1000..].iter();
        while rest.next().is_some_and(|&byte| trickling.write_all(&[byte]).is_ok()) {
            if trickling.read(&mut [0]).is_ok() {
                break;
            }
        }
        rest.len()
    });
    ask(&mut waiter, 8 * MIB);
    expect_zeros(&mut waiter, 8 * MIB);
    assert!(trickle.join().unwrap() > LARGE_BYTES);
    drop(waiter);
    gateway.stop();
}

/// Takes what the kernel still holds, to the end.
#[track_caller]
fn assert_cut_off(mut socket: UnixStream) {
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest);
    assert!(rest.len() < LARGE_BYTES, "the end came after {} bytes", rest.len());
}

#[test]
fn a_client_that_waits_for_us_is_not_cut_off() {
    let gateway = gateway(Duration::from_millis(100));
    let [(mut patient, _), (mut waiter, _)] = two_clients(&gateway);
    let (_idle, mut idle) = gateway.connect(0);
    gateway.ask(RamVolume::hold);
    ask(&mut patient, LARGE_BYTES);
    gateway.until(|volume| volume.held() == 1);
    // As long as the first, on the same thread, and its own fault.
    let mut encoded = Vec::new();
    let data = vec![0x5a; LARGE_BYTES];
    encode_request(1, &Command::Write { offset: 0, data: &data, durable: false }, &mut encoded);
    idle.write_all(&encoded[..1000]).unwrap();
    gateway.until_held(2 * LARGE_BYTES);
    ask(&mut waiter, 8 * MIB);
    assert_cut_off(idle);
    gateway.until(|volume| volume.held() == 2);
    gateway.ask(RamVolume::release);
    expect_zeros(&mut patient, LARGE_BYTES);
    expect_zeros(&mut waiter, 8 * MIB);
    drop((patient, waiter));
    gateway.stop();
}

#[test]
fn what_was_asked_counts_until_it_is_answered_though_the_client_is_gone() {
    let closing = Duration::from_millis(50);
    let limits = SessionLimits { buffers_total: TOTAL_BYTES, closing, ..SessionLimits::default() };
    let gateway = Gateway::with_limits(2, limits);
    let clients = two_clients(&gateway);
    gateway.ask(RamVolume::hold);
    for (mut client, _) in clients {
        ask(&mut client, LARGE_BYTES);
    }
    gateway.until(|volume| volume.held() == 2);
    gateway.until_threads(|threads| threads.sessions() == [0, 0]);
    let held = 2 * (LARGE_BYTES - OWN_BYTES);
    assert_eq!((gateway.threads.budget().held(), gateway.threads.connections()), (held, 2));
    gateway.until_held(2 * LARGE_BYTES);
    gateway.ask(RamVolume::release);
    gateway.until_threads(|threads| threads.budget().held() == 0 && threads.connections() == 0);
    gateway.until(|volume| volume.sessions_ended() == 2);
    assert_eq!(gateway.threads.drain(PATIENCE).wait(), 0);
    gateway.threads.stop().unwrap();
}
