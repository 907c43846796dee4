//! Bytes of the journal that change under a running gateway: the group goes on without them, and says what it lacks until
//! somebody gives it up. It began with a group whose every write waited for one record that had rotted.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use afterimage::capture::nbd::client::{Client, Command, Wishes};
use afterimage::capture::nbd::codec::NBD_EIO;
use afterimage::format::frame::RecordKind;
use afterimage::journal::scan::{Checks, scan_segment};
use afterimage::journal::segments::parse_file_name;
use afterimage::units::{SectorRange, to_usize};
use serde_json::Value;

use crate::content::{assert_same_bytes, content};
use crate::gateway::{Gateway, Setup};

const DISK_BYTES: usize = 2 << 20;
const PIECE: usize = 16 << 10;
/// A record may reach its image before this test reaches the record.
const ATTEMPTS: usize = 20;

fn client(gateway: &Gateway, disk: &str) -> Client<std::os::unix::net::UnixStream> {
    Client::connect(gateway.connect(), Wishes::all(format!("erp/{disk}"))).expect("served")
}

fn journal(gateway: &Gateway) -> PathBuf {
    let group = gateway.json("group show erp");
    gateway.data().join("groups").join(group["id"].as_str().expect("text")).join("journal")
}

/// The only group's journal, also while no gateway runs.
fn only_journal(gateway: &Gateway) -> PathBuf {
    let mut groups = fs::read_dir(gateway.data().join("groups")).unwrap();
    groups.next().expect("a group").unwrap().path().join("journal")
}

/// A byte of the journal that was flipped.
struct Flipped {
    file: fs::File,
    offset: u64,
    byte: u8,
}

impl Flipped {
    /// Flips a byte of the newest record that is a write of these sectors. It is in the file that was written last.
    fn of(gateway: &Gateway, range: SectorRange) -> Flipped {
        Flipped::of_journal(journal(gateway), range)
    }

    fn of_journal(journal: PathBuf, range: SectorRange) -> Flipped {
        let paths = fs::read_dir(journal).unwrap().map(|entry| entry.unwrap().path());
        let segment = |path: PathBuf| Some((path.clone(), parse_file_name(path.file_name()?.to_str()?)?));
        let modified = |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap();
        let newest = paths.filter_map(segment).max_by_key(|(path, _)| modified(path));
        let (path, index) = newest.expect("a segment");
        let bytes = fs::read(&path).unwrap();
        let mut found = None;
        for scanned in scan_segment(index, &bytes, Checks::ALL).frames {
            let frame = &scanned.frame;
            for record in &frame.records {
                if matches!(record.kind, RecordKind::Write { range: written, .. } if written == range) {
                    found =
                        Some(to_usize(frame.segment_offset()) + frame.payload_range(record.payload).start);
                }
            }
        }
        let offset = found.expect("the write is in the journal");
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[!bytes[offset]], offset as u64).unwrap();
        Flipped { file, offset: offset as u64, byte: bytes[offset] }
    }

    /// Puts it back, so that the next one is found behind it.
    fn put_back(self) {
        self.file.write_all_at(&[self.byte], self.offset).unwrap();
    }
}

fn is_destaged(group: &Value) -> bool {
    !group["lsn"]["destaged"].is_null() && group["lsn"]["destaged"] == group["lsn"]["visible"]
}

fn detail(group: &Value) -> String {
    group["state"]["reason"]["detail"].as_str().unwrap_or_default().to_owned()
}

/// Writes pieces of `db`, each elsewhere, and flips a byte of each at once, until one is met before it is destaged; which.
fn rot_one(gateway: &Gateway, db: &mut Client<std::os::unix::net::UnixStream>, held: &mut [u8]) -> usize {
    for place in (0..ATTEMPTS).map(|attempt| attempt * 2 * PIECE) {
        let new = content(100, PIECE);
        db.call(&Command::Write { offset: place as u64, data: &new, durable: true }).unwrap().unwrap();
        let sectors = SectorRange::new(place as u64 / 512, (place + PIECE) as u64 / 512);
        let flipped = Flipped::of(gateway, sectors);
        let status = gateway.until("destaging, or a latch", |status| {
            let group = &status["groups"][0];
            detail(group).contains("--accept-loss")
                || (group["state"]["condition"] != "latched" && is_destaged(group))
        });
        if status["groups"][0]["state"]["condition"] == "latched" {
            return place;
        }
        flipped.put_back();
        held[place..place + PIECE].copy_from_slice(&new);
    }
    panic!("every record was destaged before it was flipped");
}

#[test]
fn a_record_that_rotted_is_named_given_up_and_forgotten() {
    let gateway = Gateway::with(&Setup { more: "[memory]\nframes = \"0MiB\"\n", ..Setup::default() });
    gateway.protect([("db", "2M"), ("log", "2M")]);
    gateway.says("policy set erp --interval 24h");
    let (mut db, mut log) = (client(&gateway, "db"), client(&gateway, "log"));
    let mut held = content(1, DISK_BYTES);
    for (index, piece) in held.chunks(PIECE).enumerate() {
        let offset = (index * PIECE) as u64;
        db.call(&Command::Write { offset, data: piece, durable: false }).unwrap().unwrap();
    }
    gateway.says("point create erp --label old");
    let old = held.clone();
    gateway.until("destaging", |status| is_destaged(&status["groups"][0]));
    let place = rot_one(&gateway, &mut db, &mut held);
    let sectors = format!("{}..{}", place / 512, (place + PIECE) / 512);

    // It is named, everything else goes on, and points are made without the disk.
    let told = detail(&gateway.group_status());
    assert!(
        ["disk db", &sectors, "segment-0000", " at byte "].iter().all(|named| told.contains(named)),
        "{told}"
    );
    let read = |offset: usize| Command::Read {
        offset: offset as u64,
        length: u32::try_from(PIECE).expect("small"),
        unfragmented: true,
    };
    assert_eq!(db.call(&read(place)).unwrap().expect_err("lost").code, NBD_EIO);
    assert!(db.call(&read(place + PIECE)).unwrap().is_ok(), "its neighbour is served");
    let logged = content(7, PIECE);
    log.call(&Command::Write { offset: 0, data: &logged, durable: true }).unwrap().unwrap();
    gateway.says("point create erp --label lacking");
    let points = gateway.json("point list erp");
    let lacks = |label: &str| {
        let points = points.as_array().expect("a list");
        points.iter().find(|point| point["label"] == label).expect("listed")["lacks"].clone()
    };
    assert_eq!((lacks("lacking"), lacks("old")), (serde_json::json!(["db"]), Value::Null));
    let directory = gateway.path("lacking");
    let refused = gateway.refuses(&format!("restore erp --point lacking --to {}", directory.display()), 1);
    assert!(refused.contains("not restored: db"), "{refused}");
    assert!(!directory.join("db.raw").exists());
    assert_same_bytes(&fs::read(directory.join("log.raw")).unwrap()[..PIECE], &logged);
    let directory = gateway.path("old");
    gateway.says(&format!("restore erp --point old --to {}", directory.display()));
    assert_same_bytes(&fs::read(directory.join("db.raw")).unwrap(), &old);

    // It is given up only by somebody who says so.
    let output = gateway.cli("group resume erp").output().unwrap();
    let told = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        output.status.code() == Some(1) && told.contains(&sectors) && told.contains("--accept-loss"),
        "{told}"
    );
    // The point made before it has what these sectors held: so nobody gives up without having heard how to look.
    let ways = ["a recovery point may still hold", "`point list`", "`failover test`", "`restore`"];
    assert!(ways.iter().all(|way| told.contains(way)), "{told}");
    let asked = gateway.refuses("group resume erp --accept-loss", 2);
    assert!(asked.contains("`point list erp`"), "{asked}");
    let told = gateway.says("group resume erp --accept-loss --yes");
    assert!(told.contains("cleared") && told.contains(&sectors), "{told}");
    let mut client = client(&gateway, "db");
    let data = content(9, PIECE);
    let offset = (DISK_BYTES - PIECE) as u64;
    client.call(&Command::Write { offset, data: &data, durable: true }).unwrap().unwrap();
    held[DISK_BYTES - PIECE..].copy_from_slice(&data);
    gateway.says("point create erp --label whole");
    let directory = gateway.path("whole");
    gateway.says(&format!("restore erp --point whole --to {}", directory.display()));
    assert_same_bytes(&fs::read(directory.join("db.raw")).unwrap(), &held);
    let events = gateway.json("events --group erp");
    let event =
        events.as_array().unwrap().iter().find(|event| event["code"] == "loss_accepted").expect("told");
    let message = event["message"].as_str().expect("text");
    assert!(message.contains("disk db") && message.contains(&sectors), "{message}");
}

/// In the first second nothing had been read of what the opening found: there was nothing to resume, and nobody heard of the loss.
#[test]
fn a_resume_right_after_a_start_waits_until_what_the_journal_holds_was_looked_at() {
    let mut gateway = Gateway::with(&Setup { more: "[memory]\nframes = \"0MiB\"\n", ..Setup::default() });
    gateway.protect([("db", "2M")]);
    gateway.says("policy set erp --interval 24h");
    let mut db = client(&gateway, "db");
    // The second states that the first is durable: what rotted is no torn end.
    for offset in [0, DISK_BYTES as u64 / 2] {
        let data = content(100 + offset, PIECE);
        db.call(&Command::Write { offset, data: &data, durable: true }).unwrap().unwrap();
    }
    gateway.kill();
    let sectors = SectorRange::new(0, PIECE as u64 / 512);
    Flipped::of_journal(only_journal(&gateway), sectors);
    gateway.restart();
    let output = gateway.cli("group resume erp").output().expect("the program");
    let told = String::from_utf8(output.stdout).expect("UTF-8");
    let named = format!("{}..{}", sectors.start, sectors.end);
    assert!(
        output.status.code() == Some(1) && told.contains(&named) && told.contains("--accept-loss"),
        "{told}"
    );
    let told = gateway.says("group resume erp --accept-loss --yes");
    assert!(told.contains("cleared"), "{told}");
    let mut db = client(&gateway, "db");
    let data = content(9, PIECE);
    db.call(&Command::Write { offset: 0, data: &data, durable: true }).unwrap().expect("taken again");
}
