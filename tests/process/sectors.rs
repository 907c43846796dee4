//! A data directory on a device whose logical sectors are of 4 KiB. Guests write sectors of 512 bytes all the same: the first such write
//! latched its disk, after it had been acknowledged. Needs root.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;

use afterimage::capture::nbd::client::{Answer, Client, Command, Wishes};
use afterimage::storage::direct::{alignment_of_file, sector_of_device};
use serde_json::Value;

use crate::content::{assert_same_bytes, content};
use crate::doctor::{examine, verdict};
use crate::gateway::{Gateway, Setup};
use crate::small_file_system::SmallFileSystem;

const DISK_BYTES: usize = 16 << 20;
const SECTOR_BYTES: usize = 512;
const PAGE_BYTES: usize = 4096;
const REASON: &str = "O_DIRECT needs multiples of 4096 bytes here, and guests write 512";

/// A client, and what it has written.
struct Guest {
    client: Client<UnixStream>,
    bytes: Vec<u8>,
}

impl Guest {
    fn attach(gateway: &Gateway, bytes: Vec<u8>) -> Guest {
        let wishes = Wishes::all("erp/db".to_owned());
        Guest { client: Client::connect(gateway.connect(), wishes).expect("it is served"), bytes }
    }

    #[track_caller]
    fn write(&mut self, offset: usize, data: &[u8]) {
        let write = Command::Write { offset: offset as u64, data, durable: false };
        self.client.call(&write).expect("served").expect("taken");
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Sectors by themselves at all places of a page, as partition tables and superblocks are written, then pages, then what begins
    /// and ends within pages; then FLUSH.
    #[track_caller]
    fn write_all_sizes(&mut self, seed: u64) {
        for sector in 0..16 {
            let offset = sector * (PAGE_BYTES + SECTOR_BYTES);
            self.write(offset, &content(seed + sector as u64, SECTOR_BYTES));
        }
        for page in 0..16 {
            self.write((1 << 20) + 2 * page * PAGE_BYTES, &content(seed + page as u64, PAGE_BYTES));
        }
        self.write((4 << 20) + SECTOR_BYTES, &content(seed, (1 << 20) + SECTOR_BYTES));
        self.client.call(&Command::Flush).expect("served").expect("flushed");
    }

    #[track_caller]
    fn read(&mut self, offset: usize, length: usize) -> Vec<u8> {
        let length = u32::try_from(length).expect("one request");
        let read = Command::Read { offset: offset as u64, length, unfragmented: true };
        match self.client.call(&read).expect("served").expect("readable") {
            Answer::Data(bytes) => bytes,
            other => panic!("no data: {other:?}"),
        }
    }

    /// Everything at once, and the first sectors each by itself.
    #[track_caller]
    fn finds_its_bytes(&mut self) {
        assert_same_bytes(&self.read(0, DISK_BYTES), &self.bytes.clone());
        for offset in (0..64 << 10).step_by(SECTOR_BYTES) {
            let sector = self.bytes[offset..offset + SECTOR_BYTES].to_vec();
            assert_same_bytes(&self.read(offset, SECTOR_BYTES), &sector);
        }
    }
}

/// The last record that is visible.
#[track_caller]
fn visible(gateway: &Gateway) -> u64 {
    gateway.group_status()["lsn"]["visible"].as_u64().expect("a number")
}

#[track_caller]
fn until_destaged(gateway: &Gateway, last: u64) {
    gateway.until("all of it in the image", |status| {
        let group = &status["groups"][0];
        assert_eq!(group["state"]["condition"], "protected", "{status:#}");
        group["lsn"]["destaged"].as_u64() >= Some(last)
    });
}

#[track_caller]
fn assert_told(gateway: &Gateway) {
    let status = gateway.json("status");
    assert_eq!(status["storage"]["direct"], false, "{status:#}");
    assert_eq!(status["storage"]["direct_reason"], REASON);
    assert!(gateway.says("status").contains(&format!("through the page cache ({REASON})")));
    assert_eq!(gateway.logged(REASON).len(), 1, "once for all files: {:?}", gateway.logged(REASON));
}

/// From the first write to a restore, over a kill -9 with what was flushed only just before.
fn serve_from(coarse: &SmallFileSystem, backend: &'static str) -> Gateway {
    let setup = Setup {
        backend,
        data: Some(coarse.path(&format!("data-{backend}"))),
        journal: ("64MiB", "8MiB"),
        ..Setup::default()
    };
    let mut gateway = Gateway::with(&setup);
    gateway.protect([("db", &DISK_BYTES.to_string())]);
    let mut guest = Guest::attach(&gateway, vec![0; DISK_BYTES]);
    guest.write_all_sizes(100);
    // Out of the journal, then out of the image.
    guest.finds_its_bytes();
    until_destaged(&gateway, visible(&gateway));
    guest.finds_its_bytes();
    assert_told(&gateway);
    gateway.says("point create erp --label first");
    let of_the_point = guest.bytes.clone();
    guest.write_all_sizes(1000);
    let last = visible(&gateway);
    gateway.kill();
    gateway.restart();
    let mut guest = Guest::attach(&gateway, guest.bytes);
    guest.finds_its_bytes();
    until_destaged(&gateway, last);
    guest.finds_its_bytes();
    assert_told(&gateway);
    let restored = coarse.path(&format!("restored-{backend}"));
    gateway.says(&format!("restore erp --point first --to {}", restored.display()));
    assert_same_bytes(&fs::read(restored.join("db.raw")).expect("restored"), &of_the_point);
    assert_eq!(gateway.json("vault verify")["faults"], Value::Array(Vec::new()));
    gateway
}

#[test]
fn a_device_of_large_sectors_is_served_through_the_page_cache() {
    let coarse = SmallFileSystem::of_sectors(4096);
    for backend in ["auto", "blocking"] {
        let mut gateway = serve_from(&coarse, backend);
        let (findings, status) = examine(&gateway.configuration(), "");
        assert_eq!((verdict(&findings, "O_DIRECT"), status), ("degraded", Some(0)), "{findings:?}");
        let (.., finding) = findings.iter().find(|(what, ..)| what == "O_DIRECT").expect("it was found");
        assert!(finding["found"].as_str().expect("text").starts_with(REASON), "{finding}");
        gateway.terminate();
    }
}

/// Which of the two answers depends on the kernel's age, so each has to be right where it does.
#[test]
fn file_system_and_device_tell_the_same_alignment() {
    for sectors in [512, 4096] {
        let system = SmallFileSystem::of_sectors(sectors);
        let file = fs::File::create(system.path("file")).expect("room");
        assert_eq!(sector_of_device(&file), Some(sectors));
        assert!(
            alignment_of_file(&file).is_none_or(|told| told == sectors),
            "{:?}",
            alignment_of_file(&file)
        );
    }
    let nowhere = fs::File::open(Path::new("/proc/version")).expect("it is everywhere");
    assert_eq!(sector_of_device(&nowhere), None, "it is on no device");
}
