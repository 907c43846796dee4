//! TLS with a client of rustls, over a socket that carries bytes in whatever pieces.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore};

use super::*;
use crate::tls::{ServerFiles, server};

#[allow(dead_code)]
#[path = "../../../tests/support/certificates.rs"]
mod certificates;

use certificates::Certificates;

const PREFACE: &[u8] = b"begin TLS";

/// A server's stream and a client, with a socket between.
struct Pair {
    stream: TlsStream,
    /// The server's end.
    socket: UnixStream,
    /// The client's.
    peer: UnixStream,
    client: ClientConnection,
    /// What the stream gave the connection.
    input: BytesMut,
}

fn server_config(certificates: &Certificates, asks: bool) -> Arc<ServerConfig> {
    let ca = certificates.path("ca-cert.pem");
    server(&ServerFiles {
        certificate: &certificates.path("server-cert.pem"),
        key: &certificates.path("server-key.pem"),
        client_ca: asks.then_some(ca.as_path()),
    })
    .unwrap()
}

fn client(certificates: &Certificates, shows: bool) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificates.path("ca-cert.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = if shows {
        let certificate = CertificateDer::from_pem_file(certificates.path("client-cert.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(certificates.path("client-key.pem")).unwrap();
        builder.with_client_auth_cert(vec![certificate], key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap()
}

impl Pair {
    fn new(asks: bool, shows: bool) -> Pair {
        let certificates = Certificates::new();
        let (socket, peer) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        peer.set_nonblocking(true).unwrap();
        Pair {
            stream: TlsStream::new(server_config(&certificates, asks), PREFACE).unwrap(),
            socket,
            peer,
            client: client(&certificates, shows),
            input: BytesMut::with_capacity(1 << 20),
        }
    }

    /// After the preface and the handshake.
    fn agreed() -> Pair {
        let mut pair = Pair::new(true, true);
        pair.send();
        let mut preface = [0; PREFACE.len()];
        pair.peer.read_exact(&mut preface).unwrap();
        assert_eq!(preface, *PREFACE);
        for _ in 0..4 {
            pair.client_sends(usize::MAX);
            assert_eq!(pair.receive().unwrap().ended, Ended::Empty);
            pair.send();
            pair.client_receives().unwrap();
        }
        assert!(!pair.stream.is_handshaking() && !pair.client.is_handshaking());
        pair
    }

    fn receive(&mut self) -> Result<Received, ReceiveError> {
        self.stream.receive(&self.socket, &mut self.input, usize::MAX)
    }

    /// Sends as much as the socket takes.
    fn send(&mut self) {
        while self.stream.wants_send() {
            match self.stream.send(&mut self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                sent => sent.map(drop).unwrap(),
            }
        }
    }

    /// Has the client send what it has, `bytes_max` at most; whether there was anything.
    fn client_sends(&mut self, bytes_max: usize) -> bool {
        let mut waiting = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut waiting).unwrap();
        }
        for piece in waiting.chunks(bytes_max) {
            self.peer.write_all(piece).unwrap();
            if bytes_max < usize::MAX {
                self.receive().unwrap();
            }
        }
        !waiting.is_empty()
    }

    fn client_receives(&mut self) -> Result<Vec<u8>, rustls::Error> {
        let mut plaintext = Vec::new();
        loop {
            match self.client.read_tls(&mut self.peer) {
                Ok(0) => return Ok(plaintext),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(plaintext),
                Err(error) => panic!("{error}"),
            }
            let state = self.client.process_new_packets()?;
            let mut chunk = vec![0; state.plaintext_bytes_to_read()];
            self.client.reader().read_exact(&mut chunk).unwrap();
            plaintext.extend_from_slice(&chunk);
        }
    }

    fn client_says(&mut self, plaintext: &[u8]) -> Vec<u8> {
        self.client.writer().write_all(plaintext).unwrap();
        let mut records = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut records).unwrap();
        }
        records
    }
}

fn content(length: usize) -> Vec<u8> {
    (0..251).cycle().take(length).collect()
}

#[test]
fn whatever_the_pieces_the_bytes_are_the_same() {
    for piece in [1, 5, 1000, 17_000, 70_000] {
        let mut pair = Pair::agreed();
        let sent = content(50_000);
        let records = pair.client_says(&sent);
        for piece in records.chunks(piece) {
            pair.peer.write_all(piece).unwrap();
            assert_eq!(pair.receive().unwrap().ended, Ended::Empty);
            assert!(!pair.stream.has_pending());
        }
        assert!(pair.input == sent, "in pieces of {piece}");
    }
}

#[test]
fn a_handshake_may_come_byte_by_byte() {
    let mut pair = Pair::new(true, true);
    pair.send();
    pair.peer.read_exact(&mut [0; PREFACE.len()]).unwrap();
    while pair.stream.is_handshaking() || pair.client.is_handshaking() {
        pair.client_sends(1);
        pair.send();
        pair.client_receives().unwrap();
    }
    assert!(pair.input.is_empty());
}

#[test]
fn no_more_is_taken_than_there_is_room_for_and_the_rest_waits_here() {
    let mut pair = Pair::agreed();
    let sent = content(60_000);
    let records = pair.client_says(&sent);
    pair.peer.write_all(&records).unwrap();
    let mut taken = Vec::new();
    for bytes_max in (1..).step_by(7).map(|count| count * 10) {
        let before = pair.input.len();
        let received = pair.stream.receive(&pair.socket, &mut pair.input, bytes_max).unwrap();
        assert_eq!(pair.input.len() - before, received.bytes);
        assert!(received.bytes <= bytes_max);
        taken.extend_from_slice(&pair.input.split());
        match received.ended {
            Ended::Early => assert_eq!(received.bytes, bytes_max),
            ended => {
                assert_eq!(ended, Ended::Empty);
                break;
            }
        }
        if received.bytes < sent.len() - taken.len() {
            assert!(pair.stream.has_pending() || taken.len() + (64 << 10) > sent.len());
        }
    }
    assert!(taken == sent && !pair.stream.has_pending());
}

#[test]
fn a_client_that_takes_nothing_costs_no_more_than_the_bound() {
    let mut pair = Pair::agreed();
    let data = content(100_000);
    let slices = [IoSlice::new(b"header"), IoSlice::new(&data)];
    let mut sent = Vec::new();
    let mut refused = 0;
    while refused < 3 {
        let taken = pair.stream.encrypt(&slices);
        sent.extend([&b"header"[..], &data].concat().drain(..taken));
        pair.send();
        refused += usize::from(taken == 0);
        assert!(pair.stream.unsent_bytes() <= UNSENT_BYTES_MAX);
    }
    assert!(pair.stream.unsent_bytes() > UNSENT_BYTES_MAX / 2);
    let mut received = Vec::new();
    while received.len() < sent.len() {
        received.extend(pair.client_receives().unwrap());
        pair.send();
    }
    assert!(received == sent && pair.stream.unsent_bytes() == 0 && !pair.stream.wants_send());
}

#[test]
fn either_side_tells_the_other_that_it_ends() {
    let mut pair = Pair::agreed();
    assert_eq!(pair.stream.encrypt(&[IoSlice::new(b"last words")]), 10);
    pair.stream.close();
    pair.stream.close();
    assert!(!pair.stream.is_closed());
    pair.send();
    assert!(pair.stream.is_closed());
    assert_eq!(pair.stream.encrypt(&[IoSlice::new(b"more")]), 0);
    assert_eq!(pair.client_receives().unwrap(), b"last words");
    let state = pair.client.process_new_packets().unwrap();
    assert!(state.peer_has_closed());

    pair.client.send_close_notify();
    let records = pair.client_says(b"");
    pair.peer.write_all(&records).unwrap();
    let received = Received { bytes: 0, ended: Ended::EndOfStream };
    assert_eq!(pair.receive().unwrap(), received);
    assert_eq!(pair.receive().unwrap(), received, "and it stays so");
}

#[test]
fn what_came_before_the_end_is_not_lost() {
    for says_so in [true, false] {
        let mut pair = Pair::agreed();
        let mut records = pair.client_says(b"last words");
        if says_so {
            pair.client.send_close_notify();
            records.extend(pair.client_says(b""));
        }
        pair.peer.write_all(&records).unwrap();
        pair.peer.shutdown(std::net::Shutdown::Write).unwrap();
        let received = pair.stream.receive(&pair.socket, &mut pair.input, 4).unwrap();
        assert_eq!(received, Received { bytes: 4, ended: Ended::Early });
        assert!(pair.stream.has_pending());
        while pair.receive().unwrap().ended != Ended::EndOfStream {}
        assert_eq!(&pair.input[..], b"last words");
    }
}

/// The one error, and what the client is told.
fn failure(pair: &mut Pair) -> (rustls::Error, rustls::Error) {
    let Err(ReceiveError::Tls(error)) = pair.receive() else { panic!("it is taken") };
    pair.send();
    (error, pair.client_receives().unwrap_err())
}

#[test]
fn a_record_that_was_touched_on_the_way_is_not_taken() {
    let mut pair = Pair::agreed();
    let mut records = pair.client_says(b"write this");
    *records.last_mut().unwrap() ^= 1;
    pair.peer.write_all(&records).unwrap();
    let (error, told) = failure(&mut pair);
    assert_eq!(error, rustls::Error::DecryptError);
    assert_eq!(told, rustls::Error::AlertReceived(AlertDescription::BadRecordMac));
    assert!(pair.input.is_empty());
}

#[test]
fn a_client_without_a_certificate_that_is_asked_for_is_told_so() {
    let mut pair = Pair::new(true, false);
    pair.send();
    pair.peer.read_exact(&mut [0; PREFACE.len()]).unwrap();
    pair.client_sends(usize::MAX);
    pair.receive().unwrap();
    pair.send();
    pair.client_receives().unwrap();
    // It takes itself for let in, and asks at once.
    let records = pair.client_says(b"write this");
    pair.peer.write_all(&records).unwrap();
    let (error, told) = failure(&mut pair);
    assert_eq!(error, rustls::Error::NoCertificatesPresented);
    assert_eq!(told, rustls::Error::AlertReceived(AlertDescription::CertificateRequired));
    assert!(pair.input.is_empty());
}

#[test]
fn what_is_no_tls_fails() {
    let mut pair = Pair::new(false, false);
    pair.send();
    // An option of the protocol, as of somebody who goes on without.
    pair.peer.write_all(b"IHAVEOPT\x00\x00\x00\x03\x00\x00\x00\x00").unwrap();
    assert!(matches!(pair.receive(), Err(ReceiveError::Tls(_))));
    assert!(pair.input.is_empty());
}
