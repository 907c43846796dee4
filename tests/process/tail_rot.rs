//! Bits that flip in the newest frames of the journal, which no flush has covered, after a kill -9: the host runs on, so nothing has torn
//! them. A review found that acknowledged writes went without a word there, and that a refusal named neither segment nor byte.

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use afterimage::capture::nbd::client::{Answer, Client, Command, Wishes};
use afterimage::capture::nbd::codec::NBD_EIO;
use afterimage::format::frame::RecordKind;
use afterimage::journal::scan::{Checks, Scanned, scan_segment};
use afterimage::journal::segments::parse_file_name;
use serde_json::Value;

use crate::content::content;
use crate::gateway::Gateway;

const PIECE: usize = 4 << 10;
const PIECES: usize = 40;
/// The piece whose frame is damaged: no flush covers it, and others follow.
const HIT: usize = 25;
const OLD: u64 = 1;
const NEW: u64 = 2;

fn client(gateway: &Gateway) -> Client<UnixStream> {
    Client::connect(gateway.connect(), Wishes::all("erp/db".to_owned())).expect("served")
}

fn piece(seed: u64, place: usize) -> Vec<u8> {
    content(seed * 1000 + place as u64, PIECE)
}

fn write(db: &mut Client<UnixStream>, seed: u64, flushed: usize) {
    for place in 0..PIECES {
        let (offset, durable) = ((place * PIECE) as u64, place == flushed);
        db.call(&Command::Write { offset, data: &piece(seed, place), durable }).unwrap().unwrap();
    }
}

/// A gateway that was killed: every piece is in a point, and was written anew, each after the one before was answered. None is flushed
/// behind piece `flushed`.
fn killed(flushed: usize) -> Gateway {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "2M")]);
    gateway.says("policy set erp --interval 24h");
    let mut db = client(&gateway);
    write(&mut db, OLD, PIECES);
    gateway.says("point create erp");
    write(&mut db, NEW, flushed);
    gateway.kill();
    gateway
}

fn journal(gateway: &Gateway) -> PathBuf {
    let mut groups = fs::read_dir(gateway.data().join("groups")).unwrap();
    groups.next().expect("a group").unwrap().path().join("journal")
}

/// The newest frame that holds a write of a piece, with its segment.
fn frame_of(gateway: &Gateway, place: usize) -> (PathBuf, Scanned) {
    let journal = journal(gateway);
    let start = (place * PIECE / 512) as u64;
    let mut found = None;
    for path in fs::read_dir(journal).unwrap().map(|entry| entry.unwrap().path()) {
        let Some(index) = path.file_name().and_then(|name| parse_file_name(name.to_str()?)) else { continue };
        for scanned in scan_segment(index, &fs::read(&path).unwrap(), Checks::ALL).frames {
            let is_of = |kind| matches!(kind, RecordKind::Write { range, .. } if range.start == start);
            let is_newer = found
                .as_ref()
                .is_none_or(|(_, other): &(PathBuf, Scanned)| other.frame.number < scanned.frame.number);
            if is_newer && scanned.frame.records.iter().any(|record| is_of(record.kind)) {
                found = Some((path.clone(), scanned));
            }
        }
    }
    found.expect("it is in the journal")
}

/// Flips a bit of the frame of a piece, so many bytes into it or into its payload; how segment and byte are named.
fn flip(gateway: &Gateway, place: usize, in_payload: bool) -> String {
    let (path, scanned) = frame_of(gateway, place);
    let frame = &scanned.frame;
    let begin = frame.segment_offset();
    let payload = begin + frame.payload_range(frame.records[0].payload).start as u64;
    let offset = if in_payload { payload + 7 } else { begin + 100 };
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
    let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
    format!("{name} at byte {begin}")
}

/// What is served of each piece: the seed that it was written with; nothing where that is refused.
fn served(gateway: &Gateway) -> Vec<Option<u64>> {
    let mut db = client(gateway);
    let length = u32::try_from(PIECE).expect("small");
    let mut read = |place: usize| {
        let offset = (place * PIECE) as u64;
        match db.call(&Command::Read { offset, length, unfragmented: true }).unwrap() {
            Err(refused) => {
                assert_eq!(refused.code, NBD_EIO);
                None
            }
            Ok(answer) => {
                let Answer::Data(bytes) = answer else { panic!("{answer:?}") };
                Some([OLD, NEW].into_iter().find(|&seed| bytes == piece(seed, place)).expect("written"))
            }
        }
    };
    (0..PIECES).map(&mut read).collect()
}

fn events(gateway: &Gateway, code: &str) -> Vec<String> {
    let all = gateway.json("events");
    let told = all.as_array().expect("a list").iter().filter(|event| event["code"] == code);
    told.map(|event| event["message"].as_str().expect("text").to_owned()).collect()
}

#[test]
fn a_payload_that_flipped_behind_the_last_flush_is_refused_and_nothing_older_served() {
    let mut gateway = killed(10);
    flip(&gateway, HIT, true);
    gateway.restart();
    let found = served(&gateway);
    assert_eq!(found[HIT], None);
    assert_eq!(found.iter().filter(|&&seed| seed == Some(NEW)).count(), PIECES - 1, "{found:?}");
    assert!(gateway.group_status().to_string().contains("segment-0000"), "{}", gateway.group_status());
    // A write heals it, once the loss is accepted.
    gateway.says("group resume erp --accept-loss --yes");
    write(&mut client(&gateway), NEW, PIECES - 1);
    assert_eq!(served(&gateway), [Some(NEW); PIECES]);
}

#[test]
fn a_header_that_flipped_behind_the_last_flush_is_named_and_its_loss_may_be_accepted() {
    let mut gateway = killed(10);
    let place = flip(&gateway, HIT, false);
    let verify = format!("journal verify {}", journal(&gateway).display());
    let verified = gateway.cli(&verify).output().expect("the program");
    let told = String::from_utf8(verified.stdout).expect("UTF-8");
    assert!(verified.status.code() == Some(1) && told.contains(&place), "{told}");
    gateway.restart();
    let refused = gateway.refuses("group resume erp", 1);
    let behind = format!("{} sound frames stand behind it", PIECES - 1 - HIT);
    for named in [&place, &behind, "--accept-loss"] {
        assert!(refused.contains(named), "{named}: {refused}");
    }
    assert!(events(&gateway, "opening_failed")[0].contains(&place));
    assert!(gateway.says("group resume erp --accept-loss --yes").contains("group erp"));
    let found = served(&gateway);
    assert_eq!(found[..HIT], [Some(NEW); HIT]);
    assert_eq!(found[HIT..], [Some(OLD); PIECES - HIT]);
    let told = events(&gateway, "journal_cut");
    assert!(told.len() == 1 && told[0].contains(&place) && told[0].contains("accepted"), "{told:?}");
    // What was given up stays so, and nothing more is told of it.
    gateway.kill();
    gateway.restart();
    assert_eq!(served(&gateway), found);
    assert_eq!(events(&gateway, "journal_cut").len(), 1);
}

#[test]
fn the_newest_frame_may_have_been_torn_and_no_event_tells_of_it() {
    let mut gateway = killed(10);
    let place = flip(&gateway, PIECES - 1, false);
    gateway.restart();
    let found = served(&gateway);
    assert_eq!(found[PIECES - 2..], [Some(NEW), Some(OLD)]);
    assert_eq!(events(&gateway, "journal_cut"), Vec::<String>::new());
    assert_eq!(gateway.logged(&place).len(), 1);
}

#[test]
fn a_durable_header_is_refused_with_its_place_and_what_an_adoption_gives_up() {
    let mut gateway = killed(30);
    let place = flip(&gateway, HIT, false);
    gateway.restart();
    let refused = gateway.refuses("group resume erp --accept-loss --yes", 1);
    for named in [
        place.as_str(),
        "were durable",
        "which gives up what was written after its newest point",
        "40 records",
    ] {
        assert!(refused.contains(named), "{named}: {refused}");
    }
    let status: Value = gateway.group_status();
    assert!(status.to_string().contains(&place), "{status}");
    assert!(events(&gateway, "opening_failed")[0].contains(&place));
}
