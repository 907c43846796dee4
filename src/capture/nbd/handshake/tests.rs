//! The handshake through a [`Connection`], in hand-written bytes.

use std::io::IoSlice;

use super::*;
use crate::block::Export;
use crate::capture::nbd::client::{context_data, encode_option, info_data};
use crate::capture::nbd::{Budget, Connection, State};
use crate::units::{DiskId, GroupId};

struct Site;

impl Exports for Site {
    fn names(&self) -> Vec<String> {
        vec!["shop/db".into(), "shop/www".into()]
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        let export = Export::Disk(GroupId(1), DiskId(1));
        let description = "the shop's database".to_owned();
        (name == "shop/db").then_some(ExportInfo { export, size: 1 << 20, read_only: false, description })
    }
}

/// What a server says after being sent `bytes`.
fn say(connection: &mut Connection, bytes: &[u8]) -> Vec<u8> {
    connection.input().extend_from_slice(bytes);
    let mut requests = Vec::new();
    connection.advance(&Site, &mut requests);
    assert!(requests.is_empty());
    let mut slices: Vec<IoSlice<'_>> = Vec::new();
    connection.output(&mut slices);
    let said: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
    connection.advance_output(said.len());
    said
}

/// A connection after the greeting, with fixed newstyle and no zeroes agreed on.
fn greeted() -> Connection {
    let mut connection = Connection::new(1, Limits::default(), Budget::unlimited());
    let greeting = say(&mut connection, &[]);
    assert_eq!(greeting, [&b"NBDMAGICIHAVEOPT"[..], &[0, 3]].concat());
    assert_eq!(say(&mut connection, &[0, 0, 0, 3]), [0_u8; 0]);
    connection
}

fn structured() -> Connection {
    let mut connection = greeted();
    let said = option(&mut connection, NBD_OPT_STRUCTURED_REPLY, &[]);
    assert_eq!(said, [(NBD_REP_ACK, vec![])]);
    connection
}

/// Sends an option; the replies' types and data.
fn option(connection: &mut Connection, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut bytes = Vec::new();
    encode_option(option, data, &mut bytes);
    let said = say(connection, &bytes);
    let mut fields = Fields(&said);
    let mut replies = Vec::new();
    while !fields.is_empty() {
        assert_eq!(fields.u64(), Some(NBD_REP_MAGIC));
        assert_eq!(fields.u32(), Some(option));
        let kind = fields.u32().unwrap();
        let length = fields.u32().unwrap();
        replies.push((kind, fields.bytes(length as usize).unwrap().to_vec()));
    }
    replies
}

/// The one reply's type.
fn answer(connection: &mut Connection, code: u32, data: &[u8]) -> u32 {
    let replies = option(connection, code, data);
    assert_eq!(replies.len(), 1, "{replies:?}");
    replies[0].0
}

#[test]
fn export_name_in_bytes() {
    let mut connection = greeted();
    let said = say(&mut connection, b"IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x07shop/db");
    // 1 MiB; HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN, CACHE, FAST_ZERO; no DF without structured replies.
    assert_eq!(said, [0, 0, 0, 0, 0, 0x10, 0, 0, 0x0d, 0x6d]);
    assert_eq!(connection.state(), State::Transmission);
    assert_eq!(connection.export(), Some(Export::Disk(GroupId(1), DiskId(1))));
}

#[test]
fn export_name_is_followed_by_zeroes_unless_the_client_declined() {
    let mut connection = Connection::new(1, Limits::default(), Budget::unlimited());
    say(&mut connection, &[0, 0, 0, 1]);
    let said = say(&mut connection, b"IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x07shop/db");
    assert_eq!(said.len(), 10 + 124);
    assert_eq!(said[10..], [0; 124]);
}

#[test]
fn export_name_knows_no_refusal() {
    let long = "x".repeat(STRING_BYTES_MAX + 1);
    let too_long = "x".repeat(Limits::default().option_bytes_max + 1);
    for name in ["", "shop/www", "shop/db\0", &long, &too_long] {
        let mut connection = greeted();
        assert_eq!(option(&mut connection, NBD_OPT_EXPORT_NAME, name.as_bytes()), []);
        assert_eq!(connection.close_reason(), Some(CloseReason::ExportUnavailable));
        assert_eq!(connection.state(), State::Closed);
    }
}

#[test]
fn list_names_every_export() {
    let replies = option(&mut greeted(), NBD_OPT_LIST, &[]);
    let expected = [
        (NBD_REP_SERVER, b"\x00\x00\x00\x07shop/db".to_vec()),
        (NBD_REP_SERVER, b"\x00\x00\x00\x08shop/www".to_vec()),
        (NBD_REP_ACK, vec![]),
    ];
    assert_eq!(replies, expected);
    assert_eq!(answer(&mut greeted(), NBD_OPT_LIST, b"x"), NBD_REP_ERR_INVALID);
}

#[test]
fn go_tells_sizes_and_begins() {
    let mut connection = structured();
    let data = b"\x00\x00\x00\x07shop/db\x00\x02\x00\x01\x00\x02";
    let replies = option(&mut connection, NBD_OPT_GO, data);
    let expected = [
        (NBD_REP_INFO, b"\x00\x01shop/db".to_vec()),
        (NBD_REP_INFO, b"\x00\x02the shop's database".to_vec()),
        (NBD_REP_INFO, vec![0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0]),
        (NBD_REP_INFO, vec![0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0x0d, 0xed]),
        (NBD_REP_ACK, vec![]),
    ];
    assert_eq!(replies, expected);
    assert!(!connection.in_handshake());
}

#[test]
fn info_tells_the_same_and_stays() {
    let mut connection = greeted();
    let replies = option(&mut connection, NBD_OPT_INFO, &info_data("shop/db", &[]));
    let kinds: Vec<u32> = replies.iter().map(|reply| reply.0).collect();
    assert_eq!(kinds, [NBD_REP_INFO, NBD_REP_INFO, NBD_REP_ACK]);
    assert!(connection.in_handshake());
}

#[test]
fn ill_formed_options_are_refused_and_the_haggling_goes_on() {
    let go = info_data("shop/db", &[NBD_INFO_NAME]);
    let surplus = [go.clone(), vec![0]].concat();
    let long = info_data(&"x".repeat(STRING_BYTES_MAX + 1), &[]);
    let contexts = context_data("shop/db", &["base:allocation"]);
    let table: [(u32, &[u8], u32); 14] = [
        (NBD_OPT_GO, &[], NBD_REP_ERR_INVALID),
        (NBD_OPT_GO, &go[..go.len() - 1], NBD_REP_ERR_INVALID),
        (NBD_OPT_GO, &surplus, NBD_REP_ERR_INVALID),
        (NBD_OPT_GO, &[0xff; 20], NBD_REP_ERR_INVALID),
        (NBD_OPT_INFO, b"\x00\x00\x00\x02\xff\xfe\x00\x00", NBD_REP_ERR_INVALID),
        (NBD_OPT_INFO, &long, NBD_REP_ERR_TOO_BIG),
        (NBD_OPT_GO, &info_data("shop/www", &[]), NBD_REP_ERR_UNKNOWN),
        (NBD_OPT_STRUCTURED_REPLY, b"x", NBD_REP_ERR_INVALID),
        (NBD_OPT_STARTTLS, &[], NBD_REP_ERR_UNSUP),
        (NBD_OPT_STARTTLS, b"x", NBD_REP_ERR_INVALID),
        (NBD_OPT_EXTENDED_HEADERS, &[], NBD_REP_ERR_UNSUP),
        (4, &[], NBD_REP_ERR_UNSUP),
        (0xdead_beef, b"anything", NBD_REP_ERR_UNSUP),
        (NBD_OPT_LIST_META_CONTEXT, &contexts, NBD_REP_ERR_INVALID),
    ];
    let mut connection = greeted();
    for (code, data, expected) in table {
        assert_eq!(answer(&mut connection, code, data), expected, "option {code} with {data:?}");
    }
    assert_eq!(option(&mut connection, NBD_OPT_GO, &go).last().unwrap().0, NBD_REP_ACK);
}

#[test]
fn a_long_option_is_skipped_not_kept() {
    let mut connection = greeted();
    let data = vec![0; Limits::default().option_bytes_max + 1];
    assert_eq!(answer(&mut connection, NBD_OPT_GO, &data), NBD_REP_ERR_TOO_BIG);
    assert_eq!(answer(&mut connection, 99, &data), NBD_REP_ERR_UNSUP);
    // The longest that there can be, of which little comes at a time: nothing is kept of it.
    let said = say(&mut connection, &[&b"IHAVEOPT\x00\x00\x00\x06"[..], &[0xff; 4]].concat());
    assert_eq!(said, [0_u8; 0]);
    for _ in 0..64 {
        assert_eq!(say(&mut connection, &data), [0_u8; 0]);
        assert!(connection.input().is_empty());
    }
}

#[test]
fn contexts_are_listed_by_wildcard_and_selected_by_name() {
    let found = |id: u8| {
        let context = [&[0, 0, 0, id][..], b"base:allocation"].concat();
        vec![(NBD_REP_META_CONTEXT, context), (NBD_REP_ACK, vec![])]
    };
    let none = || vec![(NBD_REP_ACK, vec![])];
    // Queries, whether they list base:allocation, whether they select it.
    let table: [(&[&str], bool, bool); 6] = [
        (&[], true, false),
        (&["base:"], true, false),
        (&["base:allocation"], true, true),
        (&["base:allocation", "base:allocation"], true, true),
        (&["base:depth", "qemu:dirty-bitmap:b0"], false, false),
        (&["qemu:", "base:allocation"], true, true),
    ];
    let mut connection = structured();
    for (queries, lists, selects) in table {
        let data = context_data("shop/db", queries);
        let listed = option(&mut connection, NBD_OPT_LIST_META_CONTEXT, &data);
        assert_eq!(listed, if lists { found(0) } else { none() }, "{queries:?}");
        let selected = option(&mut connection, NBD_OPT_SET_META_CONTEXT, &data);
        assert_eq!(selected, if selects { found(1) } else { none() }, "{queries:?}");
    }
}

#[test]
fn ill_formed_context_queries_are_refused() {
    let good = context_data("shop/db", &["base:allocation"]);
    let mut connection = structured();
    for cut in 0..good.len() {
        assert_eq!(answer(&mut connection, NBD_OPT_SET_META_CONTEXT, &good[..cut]), NBD_REP_ERR_INVALID);
    }
    let surplus = [good, vec![0]].concat();
    assert_eq!(answer(&mut connection, NBD_OPT_SET_META_CONTEXT, &surplus), NBD_REP_ERR_INVALID);
    let no_namespace = context_data("shop/db", &["allocation"]);
    assert_eq!(answer(&mut connection, NBD_OPT_SET_META_CONTEXT, &no_namespace), NBD_REP_ERR_INVALID);
    let unknown = context_data("shop/mail", &["base:allocation"]);
    assert_eq!(answer(&mut connection, NBD_OPT_SET_META_CONTEXT, &unknown), NBD_REP_ERR_UNKNOWN);
    // More queries claimed than could ever follow.
    let many = b"\x00\x00\x00\x07shop/db\xff\xff\xff\xff";
    assert_eq!(answer(&mut connection, NBD_OPT_SET_META_CONTEXT, many), NBD_REP_ERR_INVALID);
}

#[test]
fn a_refused_selection_replaces_the_one_before() {
    let good = context_data("shop/db", &["base:allocation"]);
    let block_status = |spoil: &[u8]| {
        let mut connection = structured();
        option(&mut connection, NBD_OPT_SET_META_CONTEXT, &good);
        if !spoil.is_empty() {
            option(&mut connection, NBD_OPT_SET_META_CONTEXT, spoil);
        }
        option(&mut connection, NBD_OPT_GO, &info_data("shop/db", &[]));
        let request = [&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 7][..], &[0; 16], &[0, 0, 2, 0]].concat();
        connection.input().extend_from_slice(&request);
        let mut requests = Vec::new();
        connection.advance(&Site, &mut requests);
        requests.len()
    };
    assert_eq!(block_status(&[]), 1);
    assert_eq!(block_status(&[0xff]), 0);
    assert_eq!(block_status(&vec![0; Limits::default().option_bytes_max + 1]), 0);
    assert_eq!(block_status(&context_data("shop/db", &[])), 0);
}

#[test]
fn abort_is_acknowledged_whatever_it_carries() {
    for data in [&b""[..], b"bye"] {
        let mut connection = greeted();
        assert_eq!(answer(&mut connection, NBD_OPT_ABORT, data), NBD_REP_ACK);
        assert_eq!(connection.close_reason(), Some(CloseReason::Aborted));
        assert_eq!(connection.state(), State::Closed);
    }
}

#[test]
fn what_is_no_handshake_closes_with_its_reason() {
    let mut connection = Connection::new(1, Limits::default(), Budget::unlimited());
    say(&mut connection, &[0, 0, 0, 4]);
    assert_eq!(connection.close_reason(), Some(CloseReason::UnknownClientFlags(4)));
    let mut connection = greeted();
    say(&mut connection, b"GET / HTTP/1.1\r\n");
    let magic = u64::from_be_bytes(*b"GET / HT");
    assert_eq!(connection.close_reason(), Some(CloseReason::BadOptionMagic(magic)));
    assert!(!connection.wants_input());
}

#[test]
fn a_stopping_server_says_so() {
    let mut connection = greeted();
    connection.begin_shutdown();
    let go = info_data("shop/db", &[]);
    assert_eq!(answer(&mut connection, NBD_OPT_GO, &go), NBD_REP_ERR_SHUTDOWN);
    assert_eq!(option(&mut connection, NBD_OPT_EXPORT_NAME, b"shop/db"), []);
    assert_eq!(connection.close_reason(), Some(CloseReason::Shutdown));
}

/// A connection that insists on TLS, after the client's flags.
fn insisting() -> Connection {
    let mut connection = Connection::new(1, Limits::default(), Budget::unlimited()).require_tls();
    say(&mut connection, &[]);
    assert_eq!(say(&mut connection, &[0, 0, 0, 3]), [0_u8; 0]);
    connection
}

#[test]
fn nothing_is_told_or_served_before_tls_that_is_required() {
    let mut connection = insisting();
    let go = info_data("shop/db", &[]);
    let long = vec![0; 2 * Limits::default().option_bytes_max];
    let table: [(u32, &[u8]); 8] = [
        (NBD_OPT_LIST, &[]),
        (NBD_OPT_INFO, &go),
        (NBD_OPT_GO, &go),
        (NBD_OPT_GO, &long),
        (NBD_OPT_STRUCTURED_REPLY, &[]),
        (NBD_OPT_SET_META_CONTEXT, &context_data("shop/db", &["base:allocation"])),
        (4, &[]),
        (0xdead_beef, b"anything"),
    ];
    for (code, data) in table {
        assert_eq!(answer(&mut connection, code, data), NBD_REP_ERR_TLS_REQD, "option {code}");
    }
    assert_eq!(answer(&mut connection, NBD_OPT_STARTTLS, b"x"), NBD_REP_ERR_INVALID);
    assert_eq!(answer(&mut connection, NBD_OPT_STARTTLS, &long), NBD_REP_ERR_TOO_BIG);
    assert!(connection.in_handshake() && connection.close_reason().is_none() && !connection.starts_tls());
    assert_eq!(answer(&mut connection, NBD_OPT_ABORT, &[]), NBD_REP_ACK);
    assert_eq!(connection.close_reason(), Some(CloseReason::Aborted));
}

#[test]
fn who_cannot_be_told_to_begin_tls_is_dropped() {
    let mut connection = insisting();
    let mut bytes = Vec::new();
    encode_option(NBD_OPT_EXPORT_NAME, b"shop/db", &mut bytes);
    assert_eq!(say(&mut connection, &bytes), [0_u8; 0]);
    assert_eq!(connection.close_reason(), Some(CloseReason::TlsRequired));
    let mut connection = Connection::new(1, Limits::default(), Budget::unlimited()).require_tls();
    say(&mut connection, &[]);
    assert_eq!(say(&mut connection, &[0, 0, 0, 2]), [0_u8; 0], "no fixed newstyle");
    assert_eq!(connection.close_reason(), Some(CloseReason::TlsRequired));
}

#[test]
fn after_the_answer_to_starttls_nothing_is_parsed_until_tls_has_begun() {
    let mut connection = insisting();
    assert_eq!(answer(&mut connection, NBD_OPT_STARTTLS, &[]), NBD_REP_ACK);
    assert!(connection.starts_tls() && !connection.wants_input());
    connection.tls_started();
    assert!(!connection.starts_tls() && connection.wants_input());
    // What was refused before is not remembered, and now it is served.
    let contexts = context_data("shop/db", &["base:allocation"]);
    assert_eq!(answer(&mut connection, NBD_OPT_SET_META_CONTEXT, &contexts), NBD_REP_ERR_INVALID);
    assert_eq!(answer(&mut connection, NBD_OPT_STARTTLS, &[]), NBD_REP_ERR_INVALID, "there is TLS");
    assert_eq!(
        option(&mut connection, NBD_OPT_GO, &info_data("shop/db", &[])).last().unwrap().0,
        NBD_REP_ACK
    );
    assert_eq!(connection.state(), State::Transmission);
}

/// Who is on the way may put an option behind the client's STARTTLS, to be taken for one that came by TLS (CVE-2021-3716 is of that
/// kind).
#[test]
fn what_follows_starttls_in_one_receive_ends_the_connection() {
    let (mut start, mut behind) = (Vec::new(), Vec::new());
    encode_option(NBD_OPT_STARTTLS, &[], &mut start);
    encode_option(NBD_OPT_STRUCTURED_REPLY, &[], &mut behind);
    for length in 1..=behind.len() {
        let mut connection = insisting();
        let said = say(&mut connection, &[&start[..], &behind[..length]].concat());
        assert_eq!(said, [0_u8; 0], "with {length} bytes behind");
        assert_eq!(connection.close_reason(), Some(CloseReason::PlaintextBehindStartTls));
        assert!(!connection.starts_tls() && connection.state() == State::Closed);
    }
}

#[test]
fn what_waits_elsewhere_counts_as_output() {
    let mut connection = greeted();
    connection.note_unsent(3 << 20);
    assert_eq!((connection.held_bytes(), connection.shared_bytes()), (3 << 20, (3 << 20) - (128 << 10)));
    connection.note_unsent(0);
    assert_eq!((connection.held_bytes(), connection.shared_bytes()), (0, 0));
}
