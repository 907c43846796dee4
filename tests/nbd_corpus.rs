//! The fuzzers' seed inputs: made here, checked in under `fuzz/corpus/`, and replayed by the ordinary tests.
//!
//! A fuzzer that starts from nothing rarely gets past a magic number; these get it into every option and command.
//! After a change: `AFTERIMAGE_WRITE_CORPUS=1 cargo test --test nbd_corpus`.

#[path = "support/nbd_fuzz.rs"]
mod nbd_fuzz;
#[allow(dead_code)]
#[path = "support/nbd_model.rs"]
mod nbd_model;

use std::fs;
use std::path::{Path, PathBuf};

use afterimage::capture::nbd::CloseReason;
use afterimage::capture::nbd::client::{
    Command, context_data, encode_client_flags, encode_option, encode_request, info_data,
};
use afterimage::capture::nbd::codec::*;
use nbd_model::EXPORT;

type Seeds = Vec<(&'static str, Vec<u8>)>;
/// Option code and data.
type HaggledOption = (u32, Vec<u8>);

/// Small receives, one answer after each, always the second that waits.
const MODE: [u8; 2] = [3, 1 | 1 << 2];

fn handshake_seed(options: &[HaggledOption]) -> Vec<u8> {
    let mut input = [&[0][..], &MODE].concat();
    encode_client_flags(&mut input);
    for (option, data) in options {
        encode_option(*option, data, &mut input);
    }
    input
}

fn handshake_seeds() -> Seeds {
    let none = Vec::new;
    let structured = || (NBD_OPT_STRUCTURED_REPLY, none());
    let all_items = [NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE];
    let contexts = |queries: &[&str]| context_data(EXPORT, queries);
    let seeds: [(&str, Vec<HaggledOption>); 7] = [
        ("abort", vec![(NBD_OPT_ABORT, none())]),
        ("list", vec![(NBD_OPT_LIST, none()), (NBD_OPT_ABORT, none())]),
        ("export_name", vec![(NBD_OPT_EXPORT_NAME, EXPORT.into())]),
        (
            "info_go",
            vec![(NBD_OPT_INFO, info_data(EXPORT, &all_items)), (NBD_OPT_GO, info_data(EXPORT, &[]))],
        ),
        ("structured_go", vec![structured(), (NBD_OPT_GO, info_data(EXPORT, &all_items))]),
        (
            "contexts",
            vec![
                structured(),
                (NBD_OPT_LIST_META_CONTEXT, contexts(&["base:"])),
                (NBD_OPT_LIST_META_CONTEXT, contexts(&[])),
                (NBD_OPT_SET_META_CONTEXT, contexts(&["qemu:x", BASE_ALLOCATION])),
                (NBD_OPT_GO, info_data(EXPORT, &[])),
            ],
        ),
        (
            "refused",
            vec![
                (NBD_OPT_STARTTLS, none()),
                (NBD_OPT_EXTENDED_HEADERS, none()),
                (NBD_OPT_GO, info_data("nobody", &[])),
                (NBD_OPT_INFO, vec![0; 2000]),
                (NBD_OPT_ABORT, none()),
            ],
        ),
    ];
    seeds.into_iter().map(|(name, options)| (name, handshake_seed(&options))).collect()
}

fn request_seed(switches: u8, commands: &[Command<'_>]) -> Vec<u8> {
    let mut input = [&[switches][..], &MODE].concat();
    for (cookie, command) in (1..).zip(commands.iter().chain([&Command::Disconnect])) {
        encode_request(cookie, command, &mut input);
    }
    input
}

fn request_seeds() -> Seeds {
    let read = |offset, unfragmented| Command::Read { offset, length: 1024, unfragmented };
    let write = |offset, durable| Command::Write { offset, data: &[0x5a; 512], durable };
    let trim = Command::Trim { offset: 512, length: 512, durable: false };
    let zeroes = |keep_allocated| Command::WriteZeroes {
        offset: 0,
        length: 1024,
        durable: true,
        keep_allocated,
        fast_only: !keep_allocated,
    };
    let status = |first_only| Command::BlockStatus { offset: 0, length: 4096, first_only };
    let cache = Command::Cache { offset: 0, length: 4096 };
    let seeds: [(&str, u8, Vec<Command<'_>>); 7] = [
        ("simple", 0, vec![write(0, false), read(0, false), Command::Flush]),
        ("structured", 1, vec![write(512, true), read(0, false), read(512, true), Command::Flush]),
        ("zeroes", 1, vec![write(0, false), zeroes(true), trim, zeroes(false), read(0, false)]),
        ("status", 3, vec![write(512, false), status(false), status(true), cache]),
        ("read_only", 7, vec![read(0, false), status(false), Command::Flush]),
        ("deep", 1, (0..16).map(|index| write(index * 512, index % 2 == 0)).collect()),
        ("empty", 1, vec![Command::Write { offset: 0, data: &[], durable: false }]),
    ];
    seeds.into_iter().map(|(name, switches, commands)| (name, request_seed(switches, &commands))).collect()
}

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

fn check_in(target: &str, seeds: &Seeds) {
    let directory = directory(target);
    if std::env::var_os("AFTERIMAGE_WRITE_CORPUS").is_some() {
        fs::create_dir_all(&directory).unwrap();
        for (name, input) in seeds {
            fs::write(directory.join(name), input).unwrap();
        }
    }
    for (name, input) in seeds {
        let stored = fs::read(directory.join(name)).unwrap_or_default();
        assert!(stored == *input, "{target}/{name} is stale: run with AFTERIMAGE_WRITE_CORPUS=1");
    }
}

#[test]
fn handshake_seeds_are_valid_and_checked_in() {
    let seeds = handshake_seeds();
    check_in("nbd_handshake", &seeds);
    for (name, input) in &seeds {
        let outcome = nbd_fuzz::handshake(input).unwrap();
        let ends_in_abort = matches!(*name, "abort" | "list" | "refused");
        let reason = if ends_in_abort { CloseReason::Aborted } else { CloseReason::EndOfStream };
        assert_eq!((outcome.entered, outcome.reason), (!ends_in_abort, Some(reason)), "{name}");
        assert_eq!(outcome.errors, if *name == "refused" { 4 } else { 0 }, "{name}");
    }
}

#[test]
fn request_seeds_are_valid_and_checked_in() {
    let seeds = request_seeds();
    check_in("nbd_requests", &seeds);
    for (name, input) in &seeds {
        let outcome = nbd_fuzz::requests(input).unwrap();
        assert_eq!(outcome.reason, Some(CloseReason::Disconnected), "{name}");
        assert!(outcome.requests > 0, "{name}");
        assert_eq!(outcome.errors, 0, "{name}");
    }
}
