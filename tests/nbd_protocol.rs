//! The NBD server against its own client and against hostile bytes, in memory.
//!
//! How a stream is cut into receives is the network's business: whatever the cuts, the same requests come out and
//! the same replies go back. And whatever a client sends, it is only its own connection that ends.

#[path = "support/nbd_model.rs"]
mod nbd_model;

use afterimage::capture::nbd::client::{
    Answer, Client, Command, Extent, Wishes, context_data, encode_client_flags, encode_option,
    encode_request, info_data,
};
use afterimage::capture::nbd::codec::*;
use afterimage::capture::nbd::{CloseReason, Limits, State};
use afterimage::error::ErrorKind;
use afterimage::units::to_usize;
use nbd_model::{EXPORT, Server};
use proptest::prelude::*;

const SIZE: u64 = 256 << 10;

fn server(limits: Limits) -> Server {
    Server::new(SIZE, false, limits)
}

fn client(wishes: Wishes) -> Client<Server> {
    Client::connect(server(Limits::default()), wishes).unwrap()
}

fn plain() -> Wishes {
    Wishes { structured: false, allocation: false, ..Wishes::all(EXPORT) }
}

const fn read(offset: u64, length: u32) -> Command<'static> {
    Command::Read { offset, length, unfragmented: false }
}

#[test]
fn what_a_client_writes_it_reads_with_and_without_structured_replies() {
    for wishes in [Wishes::all(EXPORT), plain()] {
        let structured = wishes.structured;
        let mut client = client(wishes);
        assert_eq!(client.granted().size, SIZE);
        assert_eq!(client.granted().structured, structured);
        assert_eq!(client.granted().block_sizes, Some((512, 4096, 32 << 20)));
        let data: Vec<u8> = (0..4096_u32).map(|index| (index % 251) as u8).collect();
        let write = Command::Write { offset: 4096, data: &data, durable: true };
        assert_eq!(client.call(&write).unwrap(), Ok(Answer::Done));
        assert_eq!(client.call(&Command::Flush).unwrap(), Ok(Answer::Done));
        let expected = [vec![0; 4096], data, vec![0; 4096]].concat();
        for unfragmented in [false, structured] {
            let read = Command::Read { offset: 0, length: 12288, unfragmented };
            assert_eq!(client.call(&read).unwrap(), Ok(Answer::Data(expected.clone())));
        }
        let trim = Command::Trim { offset: 4096, length: 512, durable: false };
        assert_eq!(client.call(&trim).unwrap(), Ok(Answer::Done));
        assert_eq!(client.call(&read(4096, 512)).unwrap(), Ok(Answer::Data(vec![0; 512])));
        client.disconnect().unwrap();
    }
}

#[test]
fn block_status_tells_holes() {
    let mut client = client(Wishes::all(EXPORT));
    client.call(&Command::Write { offset: 512, data: &[1; 1024], durable: false }).unwrap().unwrap();
    let zeroes = Command::WriteZeroes {
        offset: 4096,
        length: 512,
        durable: false,
        keep_allocated: true,
        fast_only: true,
    };
    client.call(&zeroes).unwrap().unwrap();
    let extent = |bytes, hole| Extent { bytes, hole, zero: hole };
    let all = vec![extent(512, true), extent(1024, false), extent(2560, true), extent(512, false)];
    let status = |length, first_only| Command::BlockStatus { offset: 0, length, first_only };
    assert_eq!(client.call(&status(4608, false)).unwrap(), Ok(Answer::Extents(all.clone())));
    assert_eq!(client.call(&status(4608, true)).unwrap(), Ok(Answer::Extents(all[..1].to_vec())));
}

#[test]
fn pipelined_requests_are_answered_in_any_order() {
    let mut client = client(Wishes::all(EXPORT));
    let data: Vec<Vec<u8>> = (0..32_u8).map(|index| vec![index; 4096]).collect();
    for (cookie, data) in (0..).zip(&data) {
        client.queue(cookie, &Command::Write { offset: cookie * 4096, data, durable: false }).unwrap();
    }
    let error = client.queue(3, &Command::Flush).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let mut order = Vec::new();
    while client.in_flight() > 0 {
        order.push(client.receive().unwrap().cookie);
    }
    assert!(!order.is_sorted(), "the model answers the newest first");
    for cookie in 0..32 {
        client.queue(cookie, &read(cookie * 4096, 4096)).unwrap();
    }
    while client.in_flight() > 0 {
        let answered = client.receive().unwrap();
        assert_eq!(answered.result, Ok(Answer::Data(data[to_usize(answered.cookie)].clone())));
    }
}

#[test]
fn errors_leave_the_connection_alone() {
    let mut client = client(Wishes::all(EXPORT));
    let write = Command::Write { offset: SIZE - 512, data: &[1; 1024], durable: false };
    let refused = client.call(&write).unwrap().unwrap_err();
    assert_eq!((refused.code, refused.offset), (NBD_ENOSPC, Some(SIZE)));
    let refused = client.call(&read(SIZE, 512)).unwrap().unwrap_err();
    assert_eq!((refused.code, refused.offset), (NBD_EINVAL, Some(SIZE)));
    assert!(!refused.message.is_empty());
    let refused = client.call(&read(1, 512)).unwrap().unwrap_err();
    assert_eq!((refused.code, refused.offset), (NBD_EINVAL, None));
    assert_eq!(client.call(&read(0, 0)).unwrap(), Ok(Answer::Data(vec![])));
    assert_eq!(client.call(&read(0, 512)).unwrap(), Ok(Answer::Data(vec![0; 512])));
}

#[test]
fn requests_beyond_the_end_or_the_limits_are_refused_one_after_the_other() {
    const BEYOND: u64 = SIZE - 512;
    let long = vec![0x5a; (32 << 20) + 512];
    let zeroes = |offset, length| Command::WriteZeroes {
        offset,
        length,
        durable: false,
        keep_allocated: false,
        fast_only: false,
    };
    let refusals = [
        (Command::Write { offset: 0, data: &long, durable: false }, NBD_EINVAL),
        (Command::Write { offset: SIZE, data: &long, durable: true }, NBD_EINVAL),
        (Command::Write { offset: BEYOND, data: &long[..1024], durable: false }, NBD_ENOSPC),
        (Command::Write { offset: 1, data: &long[..511], durable: false }, NBD_EINVAL),
        (read(0, (32 << 20) + 512), NBD_EINVAL),
        (read(0, u32::MAX), NBD_EINVAL),
        (Command::Read { offset: 0, length: u32::MAX - 511, unfragmented: true }, NBD_EOVERFLOW),
        (read(BEYOND, 1024), NBD_EINVAL),
        (zeroes(BEYOND, 1024), NBD_ENOSPC),
        (zeroes(0, u32::MAX - 511), NBD_ENOSPC),
        (Command::Trim { offset: BEYOND, length: 1024, durable: false }, NBD_EINVAL),
        (Command::Trim { offset: 0, length: u32::MAX - 511, durable: false }, NBD_EINVAL),
        (Command::Cache { offset: BEYOND, length: 1024 }, NBD_EINVAL),
        (Command::Cache { offset: 0, length: u32::MAX - 511 }, NBD_EINVAL),
        (Command::BlockStatus { offset: BEYOND, length: 1024, first_only: false }, NBD_EINVAL),
        (Command::BlockStatus { offset: 0, length: u32::MAX - 511, first_only: true }, NBD_EINVAL),
    ];
    let mut client = client(Wishes::all(EXPORT));
    for (index, (command, code)) in refusals.iter().enumerate() {
        assert_eq!(client.call(command).unwrap().unwrap_err().code, *code, "refusal {index}");
    }
    assert_eq!(client.call(&read(0, 512)).unwrap(), Ok(Answer::Data(vec![0; 512])), "nothing was written");
}

#[test]
fn a_read_only_export_says_so_and_means_it() {
    let server = Server::new(SIZE, true, Limits::default());
    let mut client = Client::connect(server, Wishes::all(EXPORT)).unwrap();
    assert_ne!(client.granted().flags & NBD_FLAG_READ_ONLY, 0);
    let (offset, length, durable) = (0, 4096, true);
    let zeroes = Command::WriteZeroes { offset, length, durable, keep_allocated: false, fast_only: false };
    let writes = [
        Command::Write { offset, data: &[1; 4096], durable },
        Command::Trim { offset, length, durable },
        zeroes,
    ];
    for write in writes {
        assert_eq!(client.call(&write).unwrap().unwrap_err().code, NBD_EPERM);
    }
    assert_eq!(client.call(&Command::Flush).unwrap(), Ok(Answer::Done));
    assert_eq!(client.call(&read(offset, length)).unwrap(), Ok(Answer::Data(vec![0; 4096])));
}

#[test]
fn an_unknown_export_is_not_found() {
    let connected = Client::connect(server(Limits::default()), Wishes::all("shop/www"));
    let Err(error) = connected else { panic!("there is no such export") };
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("shop/www"), "{error}");
}

/// Handshake bytes up to and including GO.
fn handshake() -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_client_flags(&mut bytes);
    encode_option(NBD_OPT_LIST, &[], &mut bytes);
    encode_option(77, &[9; 100], &mut bytes);
    encode_option(NBD_OPT_STRUCTURED_REPLY, &[], &mut bytes);
    encode_option(NBD_OPT_SET_META_CONTEXT, &context_data(EXPORT, &[BASE_ALLOCATION]), &mut bytes);
    encode_option(NBD_OPT_GO, &info_data(EXPORT, &[NBD_INFO_NAME]), &mut bytes);
    bytes
}

/// A request as a generated value; offsets and lengths reach past the end and between sectors now and then.
fn requests() -> impl Strategy<Value = Vec<(u8, u64, u32, bool)>> {
    let offset = prop_oneof![8 => (0..SIZE / 512).prop_map(|sector| sector * 512), 1 => 0..2 * SIZE];
    let length = prop_oneof![8 => (0..40_u32).prop_map(|sectors| sectors * 512), 1 => 0..20_000_u32];
    proptest::collection::vec((0..7_u8, offset, length, any::<bool>()), 0..24)
}

fn encoded(requests: &[(u8, u64, u32, bool)]) -> Vec<u8> {
    let mut bytes = handshake();
    for (cookie, &(kind, offset, length, flag)) in (0..).zip(requests) {
        let data = vec![u8::try_from(cookie).unwrap(); length as usize];
        let command = match kind {
            0 => Command::Read { offset, length, unfragmented: flag },
            1 => Command::Write { offset, data: &data, durable: flag },
            2 => Command::Flush,
            3 => Command::Trim { offset, length, durable: flag },
            4 => {
                let (durable, keep_allocated, fast_only) = (flag, flag, !flag);
                Command::WriteZeroes { offset, length, durable, keep_allocated, fast_only }
            }
            5 => Command::Cache { offset, length },
            _ => Command::BlockStatus { offset, length, first_only: flag },
        };
        encode_request(cookie, &command, &mut bytes);
    }
    encode_request(0, &Command::Disconnect, &mut bytes);
    bytes
}

fn received(stream: &[u8], cuts: &[usize]) -> (Vec<String>, Vec<u8>, Option<CloseReason>) {
    let mut server = server(Limits::default());
    let mut from = 0;
    for &cut in cuts {
        server.receive(&stream[from..cut]);
        from = cut;
    }
    server.receive(&stream[from..]);
    let requests = server.requests.iter().map(|(_, request)| format!("{request:?}")).collect();
    server.answer_all();
    (requests, server.send_all(), server.connection.close_reason())
}

proptest! {
    #[test]
    fn however_the_stream_is_cut_the_outcome_is_the_same(
        requests in requests(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let stream = encoded(&requests);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.sort_unstable();
        let whole = received(&stream, &[]);
        prop_assert_eq!(whole.2, Some(CloseReason::Disconnected));
        prop_assert!(received(&stream, &cuts) == whole, "cut at {:?}", cuts);
    }

    #[test]
    fn bytes_of_any_kind_end_only_their_own_connection(
        flipped in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        requests in requests(),
    ) {
        let limits = Limits { requests_max: 8, payload_bytes_max: 64 << 10, ..Limits::default() };
        let mut stream = encoded(&requests);
        for (index, byte) in flipped {
            let index = index.index(stream.len());
            stream[index] ^= byte;
        }
        let mut server = server(limits);
        for piece in stream.chunks(1000) {
            server.receive(piece);
            prop_assert!(server.connection.requests_in_flight() <= limits.requests_max);
            server.answer_all();
            server.send_all();
        }
        server.connection.end_of_input();
        server.answer_all();
        server.send_all();
        prop_assert_eq!(server.connection.state(), State::Closed);
    }
}

#[test]
fn a_stream_in_single_bytes_is_the_same_stream() {
    let stream = encoded(&[(1, 512, 1024, true), (0, 0, 4096, false), (6, 0, 4096, false), (1, 7, 9, false)]);
    let cuts: Vec<usize> = (1..stream.len()).collect();
    assert!(received(&stream, &cuts) == received(&stream, &[]));
}

#[test]
fn a_hostile_client_holds_no_more_than_the_limits() {
    let limits = Limits {
        requests_max: 16,
        payload_bytes_max: 1 << 20,
        output_bytes_max: 64 << 10,
        receive_bytes: 64 << 10,
        option_bytes_max: 4096,
    };
    let mut server = server(limits);
    server.receive(&handshake());
    server.send_all();
    let mut stream = Vec::new();
    for cookie in 0..10_000 {
        encode_request(cookie, &read(0, 256 << 10), &mut stream);
        encode_request(cookie, &read(1, 1), &mut stream);
    }
    // Takes no reply; its socket is read only while the connection wants input.
    let mut unsent = stream.chunks(4096);
    loop {
        assert!(server.connection.requests_in_flight() <= limits.requests_max);
        assert!(server.connection.payload_bytes_in_flight() <= limits.payload_bytes_max);
        assert!(server.connection.output_bytes() < limits.output_bytes_max + limits.payload_bytes_max);
        assert!(server.connection.held_bytes() <= limits.payload_bytes_max + limits.requests_max * 64);
        if server.connection.wants_input() {
            server.receive(unsent.next().expect("blocked long before the stream ends"));
        } else if server.answer(0) {
            server.advance();
        } else {
            break;
        }
    }
    // What holds it up is its own unread replies: once it takes them it is served again.
    assert!(server.connection.output_bytes() >= limits.output_bytes_max);
    server.send_all();
    server.advance();
    assert!(server.connection.requests_in_flight() > 0);
}
