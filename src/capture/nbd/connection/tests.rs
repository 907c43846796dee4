//! Limits, buffers and ends of a connection in transmission. What all share is in [`shared`].

use super::*;
use crate::block::{DataPiece, Refusal, Response};
use crate::capture::nbd::ExportInfo;
use crate::capture::nbd::client::{Command, encode_client_flags, encode_option, encode_request, info_data};
use crate::capture::nbd::codec::*;
use crate::storage::Buffer;
use crate::units::{DiskId, GroupId, to_usize};

mod shared;

struct Site;

impl Exports for Site {
    fn names(&self) -> Vec<String> {
        vec!["d".into()]
    }

    fn find(&self, _name: &str) -> Option<ExportInfo> {
        let export = Export::Disk(GroupId(1), DiskId(1));
        Some(ExportInfo { export, size: 1 << 30, read_only: false, description: String::new() })
    }
}

fn sent(connection: &mut Connection) -> Vec<u8> {
    let mut slices = Vec::new();
    connection.output(&mut slices);
    let sent: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
    connection.advance_output(sent.len());
    sent
}

fn transmitting(limits: Limits) -> Connection {
    sharing(limits, &Budget::unlimited())
}

fn sharing(limits: Limits, budget: &Arc<Budget>) -> Connection {
    let mut connection = Connection::new(5, limits, Arc::clone(budget));
    let mut bytes = Vec::new();
    encode_client_flags(&mut bytes);
    encode_option(NBD_OPT_GO, &info_data("d", &[]), &mut bytes);
    connection.input().extend_from_slice(&bytes);
    connection.advance(&Site, &mut Vec::new());
    sent(&mut connection);
    assert_eq!(connection.state(), State::Transmission);
    connection
}

/// Receives as a socket would: into the spare capacity, in as many receives as it takes.
fn receive(connection: &mut Connection, mut bytes: &[u8]) -> Vec<(Ticket, Export, Request)> {
    let mut requests = Vec::new();
    while !bytes.is_empty() {
        let input = connection.input();
        let room = (input.capacity() - input.len()).min(bytes.len());
        assert!(room > 0);
        input.extend_from_slice(&bytes[..room]);
        bytes = &bytes[room..];
        connection.advance(&Site, &mut requests);
    }
    requests
}

fn writes(count: u64, bytes: usize) -> Vec<u8> {
    let data = vec![0x5a; bytes];
    let mut encoded = Vec::new();
    for cookie in 0..count {
        let command = Command::Write { offset: cookie * bytes as u64, data: &data, durable: false };
        encode_request(cookie, &command, &mut encoded);
    }
    encoded
}

fn read(cookie: u64, length: u32) -> Vec<u8> {
    let mut encoded = Vec::new();
    encode_request(cookie, &Command::Read { offset: 0, length, unfragmented: false }, &mut encoded);
    encoded
}

#[test]
fn small_writes_come_out_of_one_receive_without_a_copy() {
    let mut connection = transmitting(Limits::default());
    let encoded = writes(32, 4096);
    let input = connection.input();
    input.extend_from_slice(&encoded);
    let memory = input.as_ptr() as usize..input.as_ptr() as usize + input.len();
    let mut requests = Vec::new();
    connection.advance(&Site, &mut requests);
    assert_eq!(requests.len(), 32);
    for (_, _, request) in &requests {
        let Request::Write { payload, .. } = request else { panic!("{request:?}") };
        assert!(memory.contains(&(payload.as_ptr() as usize)));
        assert!(payload.iter().all(|&byte| byte == 0x5a));
    }
    for (ticket, ..) in requests {
        connection.complete(ticket, Ok(Response::Done));
    }
    let mut slices = Vec::new();
    connection.output(&mut slices);
    assert_eq!((slices.len(), slices[0].len()), (1, 32 * 16));
}

#[test]
fn a_large_payload_gets_room_for_all_of_it_and_is_moved_once_at_most() {
    let mut connection = transmitting(Limits::default());
    let encoded = writes(1, 8 << 20);
    let (first, rest) = encoded.split_at(1000);
    assert!(receive(&mut connection, first).is_empty());
    let input = connection.input();
    assert!(input.capacity() - input.len() >= rest.len());
    let memory = input.as_ptr();
    let requests = receive(&mut connection, rest);
    let Request::Write { payload, .. } = &requests[0].2 else { panic!("{requests:?}") };
    assert_eq!((payload.len(), payload.as_ptr()), (8 << 20, memory));
    // The next one is expected to be as long: no second move.
    let input = connection.input();
    assert!(input.capacity() - input.len() >= 28 + (8 << 20));
    // If nothing came, or only a header, nothing is kept for it.
    assert_eq!(connection.receive_bytes_max(), Limits::default().receive_bytes);
    assert!(receive(&mut connection, &encoded[..20]).is_empty());
    assert!(connection.input_allocated <= Limits::default().receive_bytes);
    assert!(receive(&mut connection, &encoded[20..100]).is_empty());
    connection.input();
    assert_eq!(connection.receive_bytes_max(), usize::MAX);
}

#[test]
fn room_for_a_payload_that_is_something_else_is_left_at_once() {
    let limits = Limits::default();
    let mut connection = transmitting(limits);
    let large = receive(&mut connection, &writes(1, 8 << 20));
    // What lies behind the payload keeps all of it no more.
    assert!(connection.input_allocated <= limits.receive_bytes);
    // There is room for another one, but small ones come.
    let input = connection.input();
    input.extend_from_slice(&writes(8, 4096));
    let memory = input.as_ptr() as usize..input.as_ptr() as usize + (8 << 20);
    let mut requests = Vec::new();
    connection.advance(&Site, &mut requests);
    assert_eq!(requests.len(), 8);
    let Request::Write { payload, .. } = &requests[7].2 else { panic!("{requests:?}") };
    assert!(!memory.contains(&(payload.as_ptr() as usize)));
    assert!(connection.input_allocated <= limits.receive_bytes);
    drop(large);
    // A large one that a limit keeps waiting keeps no room either.
    let mut connection = transmitting(Limits { payload_bytes_max: 8 << 20, ..limits });
    let large = receive(&mut connection, &writes(1, 8 << 20));
    connection.input().extend_from_slice(&writes(1, 8 << 20)[..1000]);
    let mut requests = Vec::new();
    connection.advance(&Site, &mut requests);
    assert!(!connection.wants_input() && connection.input_allocated <= limits.receive_bytes);
    connection.complete(large[0].0, Ok(Response::Done));
    sent(&mut connection);
    connection.advance(&Site, &mut requests);
    assert!(connection.awaits_payload());
    assert_eq!(receive(&mut connection, &writes(1, 8 << 20)[1000..]).len(), 1);
}

#[test]
fn requests_in_flight_are_limited() {
    let mut connection = transmitting(Limits { requests_max: 4, ..Limits::default() });
    let mut requests = receive(&mut connection, &writes(10, 512));
    assert_eq!(requests.len(), 4);
    assert!(!connection.wants_input());
    let (ticket, ..) = requests.remove(0);
    connection.complete(ticket, Ok(Response::Done));
    connection.advance(&Site, &mut requests);
    assert_eq!((requests.len(), connection.requests_in_flight()), (4, 4));
    assert!(!connection.wants_input());
    for _ in 0..2 {
        for (ticket, ..) in requests.drain(..) {
            connection.complete(ticket, Ok(Response::Done));
        }
        connection.advance(&Site, &mut requests);
    }
    assert!(connection.wants_input());
}

#[test]
fn payload_bytes_are_limited_but_one_request_always_passes() {
    let mut connection = transmitting(Limits { payload_bytes_max: 8192, ..Limits::default() });
    let requests = receive(&mut connection, &writes(3, 4096));
    assert_eq!((requests.len(), connection.payload_bytes_in_flight()), (2, 8192));
    assert!(!connection.wants_input());

    let mut connection = transmitting(Limits { payload_bytes_max: 8192, ..Limits::default() });
    let mut requests = receive(&mut connection, &[read(1, 1 << 20), read(2, 512)].concat());
    assert_eq!(requests.len(), 1);
    let (ticket, ..) = requests.remove(0);
    connection.complete(ticket, Ok(Response::Data(vec![DataPiece::Zeros(1 << 20)])));
    assert_eq!(connection.payload_bytes_in_flight(), 0);
    connection.advance(&Site, &mut requests);
    assert_eq!(requests.len(), 1);
}

#[test]
fn a_client_that_takes_no_replies_is_not_read() {
    let mut connection = transmitting(Limits { output_bytes_max: 1000, ..Limits::default() });
    let mut encoded = Vec::new();
    for cookie in 0..1000 {
        // Refused at once, so that only the output grows.
        encode_request(cookie, &Command::Cache { offset: 1, length: 1 }, &mut encoded);
    }
    receive(&mut connection, &encoded);
    assert!(!connection.wants_input());
    assert!((1000..1100).contains(&connection.output_bytes()));
    let mut replies = 0;
    while connection.wants_output() {
        replies += sent(&mut connection).len() / 16;
        connection.advance(&Site, &mut Vec::new());
    }
    assert_eq!(replies, 1000);
    assert!(connection.wants_input());
}

/// Replies that a client left unread counted to a limit of their own, beside that of its buffers, and to nothing that was seen.
#[test]
fn replies_that_wait_count_to_the_buffers_and_zeros_do_not() {
    let mut connection = transmitting(Limits { payload_bytes_max: 2 << 20, ..Limits::default() });
    let requests = receive(&mut connection, &[read(1, 1 << 20), read(2, 1 << 20), read(3, 512)].concat());
    assert_eq!((requests.len(), connection.held_bytes()), (2, 2 << 20));
    let (data, zeros) = (DataPiece::Bytes(Buffer::zeroed(1 << 20).freeze()), DataPiece::Zeros(1 << 20));
    connection.complete(requests[0].0, Ok(Response::Data(vec![data])));
    let mut requests_later = Vec::new();
    connection.advance(&Site, &mut requests_later);
    assert!(requests_later.is_empty() && connection.held_bytes() > 2 << 20);
    connection.complete(requests[1].0, Ok(Response::Data(vec![zeros])));
    assert!((1 << 20..(1 << 20) + 1000).contains(&connection.held_bytes()));
    connection.advance(&Site, &mut requests_later);
    assert_eq!(requests_later.len(), 1);
    connection.complete(requests_later[0].0, Err(Refusal::Io));
    sent(&mut connection);
    assert_eq!(connection.held_bytes(), 0);
}

#[test]
fn what_is_left_unread_does_not_keep_the_record_that_it_is_from() {
    let mut connection = transmitting(Limits::default());
    let requests = receive(&mut connection, &read(1, 512));
    let record = Buffer::zeroed(1 << 20).freeze();
    let data = DataPiece::Bytes(record.slice(512..1024));
    connection.complete(requests[0].0, Ok(Response::Data(vec![data])));
    connection.output_stalled();
    let mut slices = Vec::new();
    connection.output(&mut slices);
    assert_eq!(slices.len(), 1, "copied among the headers");
    assert!(connection.held_bytes() < 700);
}

#[test]
fn a_refused_write_has_its_payload_skipped() {
    let mut connection = transmitting(Limits::default());
    let data = vec![0x25; 1 << 20];
    let mut encoded = Vec::new();
    encode_request(1, &Command::Write { offset: 1 << 30, data: &data, durable: false }, &mut encoded);
    encode_request(2, &Command::Flush, &mut encoded);
    let requests = receive(&mut connection, &encoded);
    assert!(matches!(requests[..], [(_, _, Request::Flush)]));
    assert_eq!(sent(&mut connection)[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28]);
    assert_eq!(connection.payload_bytes_in_flight(), 0);
}

/// The header of a write of `length` bytes, which follow.
fn write_header(cookie: u64, length: u32) -> Vec<u8> {
    let mut encoded = Vec::new();
    encode_request(cookie, &Command::Write { offset: 0, data: &[], durable: false }, &mut encoded);
    encoded[24..].copy_from_slice(&length.to_be_bytes());
    encoded
}

#[test]
fn a_write_above_the_maximum_is_skipped_as_it_comes_and_refused() {
    let limits = Limits { receive_bytes: 64 << 10, ..Limits::default() };
    let mut connection = transmitting(limits);
    // As long as a header can say, in bytes that would be requests if they were looked at.
    let length = u32::MAX;
    let piece = read(9, 512).repeat(64 << 10);
    assert!(receive(&mut connection, &write_header(1, length)).is_empty());
    let mut left = to_usize(u64::from(length));
    while left > 0 {
        let mut requests = Vec::new();
        let input = connection.input();
        assert!(input.is_empty() && input.capacity() <= 2 * limits.receive_bytes, "{}", input.capacity());
        let bytes = left.min(input.capacity());
        input.extend_from_slice(&piece[..bytes]);
        left -= bytes;
        assert!(!connection.wants_output(), "answered before its payload has come");
        connection.advance(&Site, &mut requests);
        assert!(requests.is_empty() && connection.wants_input());
        assert_eq!((connection.requests_in_flight(), connection.payload_bytes_in_flight()), (0, 0));
    }
    assert_eq!(sent(&mut connection)[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22]);
    assert_eq!(receive(&mut connection, &read(2, 512)).len(), 1, "the next request is served");
}

#[test]
fn after_disc_what_is_in_flight_is_finished_and_nothing_more_is_read() {
    let mut connection = transmitting(Limits::default());
    let mut encoded = writes(2, 512);
    encode_request(0, &Command::Disconnect, &mut encoded);
    encoded.extend_from_slice(&writes(1, 512));
    let mut requests = receive(&mut connection, &encoded);
    assert_eq!(requests.len(), 2);
    assert_eq!((connection.state(), connection.wants_input()), (State::Draining, false));
    connection.complete(requests.pop().unwrap().0, Ok(Response::Done));
    assert_eq!(connection.state(), State::Draining);
    connection.complete(requests.pop().unwrap().0, Err(Refusal::Io));
    assert_eq!(connection.state(), State::Draining);
    assert_eq!(sent(&mut connection).len(), 32);
    assert_eq!(connection.state(), State::Closed);
    assert_eq!(connection.close_reason(), Some(CloseReason::Disconnected));
    assert!(receive(&mut connection, &writes(1, 512)).is_empty());
    assert_eq!(connection.state(), State::Closed);
}

#[test]
fn what_cannot_be_a_request_closes_with_its_reason() {
    let mut connection = transmitting(Limits::default());
    receive(&mut connection, &[0xee; 28]);
    assert_eq!(connection.close_reason(), Some(CloseReason::BadRequestMagic(0xeeee_eeee)));
    assert_eq!(connection.state(), State::Closed);
}

#[test]
fn a_closed_sending_side_still_gets_its_answers() {
    let mut connection = transmitting(Limits::default());
    let requests = receive(&mut connection, &writes(1, 512));
    connection.end_of_input();
    assert_eq!(connection.state(), State::Draining);
    connection.complete(requests[0].0, Ok(Response::Done));
    assert_eq!(sent(&mut connection).len(), 16);
    assert_eq!(connection.close_reason(), Some(CloseReason::EndOfStream));
    assert_eq!(connection.state(), State::Closed);
}

#[test]
fn a_stopping_server_refuses_and_still_takes_a_disconnect() {
    let mut connection = transmitting(Limits::default());
    connection.begin_shutdown();
    assert!(receive(&mut connection, &[writes(1, 4096), read(1, 512)].concat()).is_empty());
    let replies = sent(&mut connection);
    assert_eq!(replies.len(), 32);
    assert!(replies.chunks(16).all(|reply| reply[4..8] == [0, 0, 0, 108]));
    let mut encoded = Vec::new();
    encode_request(0, &Command::Disconnect, &mut encoded);
    receive(&mut connection, &encoded);
    assert_eq!(connection.state(), State::Closed);
}

#[test]
fn a_stopping_server_skips_a_payload_that_had_begun_to_come_and_refuses_it() {
    let mut connection = transmitting(Limits::default());
    let encoded = writes(1, 4096);
    assert!(receive(&mut connection, &encoded[..1000]).is_empty());
    connection.begin_shutdown();
    assert!(connection.awaits_payload() && connection.payload_bytes_in_flight() == 0);
    assert!(receive(&mut connection, &encoded[1000..]).is_empty());
    assert!(!connection.awaits_payload());
    let replies = sent(&mut connection);
    assert_eq!((replies.len(), &replies[4..8]), (16, &[0, 0, 0, 108][..]));
}

#[test]
#[should_panic(expected = "came to session 5")]
fn a_ticket_of_another_session_is_our_own_bug() {
    let mut connection = transmitting(Limits::default());
    receive(&mut connection, &writes(1, 512));
    connection.complete(Ticket { session: 6, request: 0 }, Ok(Response::Done));
}
