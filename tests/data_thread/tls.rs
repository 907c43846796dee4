//! Clients that come by TLS: what holds for others holds for them.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use afterimage::capture::nbd::client::{Answer, Client, Command, Wishes, encode_option};
use afterimage::capture::nbd::codec::NBD_OPT_STARTTLS;
use afterimage::listen::{ListenAddress, SocketMode};
use afterimage::site::SessionLimits;
use afterimage::tls::{ServerFiles, client, server};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use crate::gateway::{Gateway, PATIENCE, name};
use crate::{block, write_and_verify};

#[path = "../support/certificates.rs"]
#[allow(dead_code)]
mod certificates;

use certificates::Certificates;

/// The greeting of a server that speaks fixed newstyle and leaves zeros out.
const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03";

/// A client's stream after STARTTLS: it gives the greeting again, and keeps the client's flags, both of which have been exchanged.
struct AfterStartTls {
    tls: StreamOwned<ClientConnection, TcpStream>,
    greeting: &'static [u8],
    flags_left: usize,
}

impl Read for AfterStartTls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.greeting.is_empty() { self.tls.read(buffer) } else { self.greeting.read(buffer) }
    }
}

impl Write for AfterStartTls {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.flags_left == 0 {
            return self.tls.write(bytes);
        }
        let kept = self.flags_left.min(bytes.len());
        self.flags_left -= kept;
        Ok(kept)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tls.flush()
    }
}

/// A gateway that listens for TLS, too.
struct TlsGateway {
    gateway: Gateway,
    address: SocketAddr,
    certificates: Certificates,
}

impl TlsGateway {
    fn start(threads: usize, limits: SessionLimits) -> TlsGateway {
        let gateway = Gateway::with_limits(threads, limits);
        let certificates = Certificates::new();
        let tls = server(&ServerFiles {
            certificate: &certificates.path("server-cert.pem"),
            key: &certificates.path("server-key.pem"),
            client_ca: None,
        });
        let any = ListenAddress::Tcp("127.0.0.1:0".parse().unwrap());
        let bound = gateway.threads.listen_by_tls(&any, SocketMode::Owner, tls.unwrap()).unwrap();
        let ListenAddress::Tcp(address) = bound else { panic!("{bound} is not a TCP address") };
        TlsGateway { gateway, address, certificates }
    }

    fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// A socket whose client has been told to begin TLS.
    fn started(&self) -> TcpStream {
        let mut socket = self.socket();
        let mut greeting = [0; GREETING.len()];
        socket.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting, *GREETING);
        let mut asked = vec![0, 0, 0, 3];
        encode_option(NBD_OPT_STARTTLS, &[], &mut asked);
        socket.write_all(&asked).unwrap();
        let mut answer = [0; 20];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(answer[8..], [0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0], "STARTTLS is acknowledged");
        socket
    }

    fn stream(&self) -> AfterStartTls {
        let config = client(Some(&self.certificates.path("ca-cert.pem"))).unwrap();
        let tls = ClientConnection::new(config, ServerName::try_from("localhost").unwrap()).unwrap();
        let tls = StreamOwned::new(tls, self.started());
        AfterStartTls { tls, greeting: GREETING, flags_left: 4 }
    }

    fn connect(&self, number: u128) -> Client<AfterStartTls> {
        Client::connect(self.stream(), Wishes::all(name(number))).unwrap()
    }
}

/// On three threads most of them are handed over once they have chosen their export.
#[test]
fn clients_by_tls_pipeline_on_whatever_threads() {
    for threads in [1, 3] {
        let site = TlsGateway::start(threads, SessionLimits::default());
        let clients: Vec<_> = (0..4).map(|id| (id, site.connect(u128::from(id % 2)))).collect();
        let running: Vec<_> = clients
            .into_iter()
            .map(|(id, client)| std::thread::spawn(move || write_and_verify(client, id)))
            .collect();
        for client in running {
            client.join().unwrap();
        }
        site.gateway.until(|volume| volume.sessions_ended() == 4);
        site.gateway.stop();
    }
}

#[test]
fn large_requests_cross_whole_by_tls() {
    let site = TlsGateway::start(2, SessionLimits::default());
    let mut client = site.connect(1);
    let data: Vec<u8> = (0..251).cycle().take(32 << 20).collect();
    let length = u32::try_from(data.len()).unwrap();
    let write = Command::Write { offset: 4096, data: &data, durable: true };
    assert_eq!(client.call(&write).unwrap(), Ok(Answer::Done));
    let read = Command::Read { offset: 4096, length, unfragmented: false };
    let Ok(Answer::Data(told)) = client.call(&read).unwrap() else { panic!("no data") };
    assert!(told == data);
    drop(client);
    site.gateway.stop();
}

#[test]
fn who_goes_on_without_tls_is_told_that_it_comes_first() {
    let site = TlsGateway::start(1, SessionLimits::default());
    let error = Client::connect(site.socket(), Wishes::all(name(0))).unwrap_err();
    assert!(error.to_string().contains("TLS"), "{error}");
    // The unix socket beside it is as it was.
    assert_eq!(site.gateway.connect(0).0.call(&Command::Flush).unwrap(), Ok(Answer::Done));
    site.gateway.stop();
}

/// What came without TLS, behind the option that asks for it, is never taken for what came by it.
#[test]
fn what_is_put_behind_starttls_ends_the_connection() {
    let site = TlsGateway::start(1, SessionLimits::default());
    let mut socket = site.socket();
    let mut asked = vec![0, 0, 0, 3];
    encode_option(NBD_OPT_STARTTLS, &[], &mut asked);
    encode_option(NBD_OPT_STARTTLS, &[], &mut asked);
    socket.write_all(&asked).unwrap();
    let mut said = Vec::new();
    socket.read_to_end(&mut said).unwrap();
    assert_eq!(said, GREETING, "and no answer");
    site.gateway.stop();
}

#[test]
fn who_does_not_get_on_with_tls_has_the_deadline_of_a_handshake() {
    let handshake = Duration::from_millis(50);
    let site = TlsGateway::start(1, SessionLimits { handshake, ..SessionLimits::default() });
    let mut silent = site.started();
    // Half a record, which says that more is to come.
    silent.write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
    let mut said = Vec::new();
    silent.read_to_end(&mut said).unwrap();
    assert_eq!(said, b"", "cut off");
    site.gateway.stop();
}

#[test]
fn who_does_not_get_on_with_tls_gives_way_to_one_that_does() {
    let limits = SessionLimits { connections_max: 2, handshake: PATIENCE, ..SessionLimits::default() };
    let site = TlsGateway::start(1, limits);
    let mut stuck = [site.started(), site.started()];
    let mut client = site.connect(0);
    assert_eq!(client.call(&Command::Flush).unwrap(), Ok(Answer::Done));
    assert_eq!(stuck[0].read(&mut [0]).unwrap(), 0, "the one that came first");
    drop((client, stuck));
    site.gateway.stop();
}

#[test]
fn a_drain_tells_idle_clients_that_tls_ends() {
    let site = TlsGateway::start(2, SessionLimits::default());
    let mut stream = site.stream();
    let client = Client::connect(&mut stream, Wishes::all(name(1))).unwrap();
    drop(client);
    let stuck = site.started();
    assert_eq!(site.gateway.threads.drain(PATIENCE).wait(), 0, "no session had to be cut off");
    // Without it, this would be an unexpected end.
    assert_eq!(stream.tls.read(&mut [0]).unwrap(), 0);
    drop(stuck);
    site.gateway.threads.stop().unwrap();
}

#[test]
fn a_client_that_says_goodbye_is_answered_by_the_end_of_tls() {
    let site = TlsGateway::start(1, SessionLimits::default());
    let mut stream = site.stream();
    Client::connect(&mut stream, Wishes::all(name(0))).unwrap().disconnect().unwrap();
    stream.flush().unwrap();
    assert_eq!(stream.tls.read(&mut [0]).unwrap(), 0);
    site.gateway.stop();
}

/// Replies that a client does not take count, encrypted or not; and hold up nobody.
#[test]
fn a_stalled_client_by_tls_is_bounded_and_holds_up_nobody() {
    const MIB: usize = 1 << 20;
    let mut limits = SessionLimits::default();
    limits.connection.payload_bytes_max = 4 * MIB;
    let site = TlsGateway::start(2, limits);
    let mut stalled = site.connect(0);
    let data = vec![7; MIB];
    for cookie in 0..2 {
        let offset = cookie * MIB as u64;
        stalled.queue(cookie, &Command::Write { offset, data: &data, durable: false }).unwrap();
        assert_eq!(stalled.receive().unwrap().result, Ok(Answer::Done));
    }
    for cookie in 0..64 {
        let (offset, length) = (cookie % 2 * MIB as u64, u32::try_from(MIB).unwrap());
        stalled.queue(cookie, &Command::Read { offset, length, unfragmented: false }).unwrap();
    }
    stalled.send_queued().unwrap();
    // Headers come on top of what was reckoned.
    let most = 4 * MIB + (64 << 10);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let held = || runtime.block_on(site.gateway.threads.buffered_bytes());
    assert!((0..1_000_000).any(|_| held() > 3 * MIB), "it holds what it may");
    assert!((0..1000).all(|_| held() <= most), "and no more");
    let (mut other, _) = site.gateway.connect(1);
    let payload = block(1, 1, 1);
    let write = Command::Write { offset: 0, data: &payload, durable: true };
    assert_eq!(other.call(&write).unwrap(), Ok(Answer::Done));
    // It goes on when it takes its replies.
    for _ in 0..64 {
        assert_eq!(stalled.receive().unwrap().result, Ok(Answer::Data(data.clone())));
    }
    assert!((0..1_000_000).any(|_| held() == 0));
    drop((stalled, other));
    site.gateway.stop();
}

#[test]
fn who_ends_in_the_middle_of_tls_is_forgotten() {
    let site = TlsGateway::start(1, SessionLimits::default());
    let mut socket = site.started();
    socket.write_all(b"no record of TLS at all").unwrap();
    // It is told so, also if it goes on, and its going on does not take that from it.
    let mut alert = [0; 7];
    socket.read_exact(&mut alert).unwrap();
    assert_eq!(alert[0], 21, "an alert");
    for _ in 0..64 {
        socket.write_all(&[7; 4096]).unwrap();
    }
    assert_eq!(socket.read(&mut alert).unwrap(), 0, "and nothing more is said");
    drop(socket);
    drop(site.started());
    site.gateway.until_threads(|threads| threads.connections() == 0);
    site.gateway.stop();
}
