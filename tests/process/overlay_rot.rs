//! A bit that flips in what clients wrote to a test failover, under the real program: that read is refused with file and offset, the
//! rest is served, and nobody reads the vault for it. It began with overlays that were served unchecked.

use std::fs::{File, OpenOptions, read_dir, rename};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use afterimage::capture::nbd::client::{Answer, Client, Command, Wishes};
use afterimage::capture::nbd::codec::{ErrorCode, NBD_EIO};

use crate::content::{assert_same_bytes, content};
use crate::gateway::Gateway;

const DISK_BYTES: usize = 1 << 20;
const PIECE: usize = 16 << 10;
const BLOCK: usize = 4096;
/// The block that a bit flips in.
const ROTTEN: usize = 5 * PIECE + BLOCK;

struct Site {
    gateway: Gateway,
    held: Vec<u8>,
    /// Where the overlay and its sums are.
    directory: PathBuf,
}

impl Site {
    /// A test failover that was written to whole, under a gateway that was stopped.
    fn stopped() -> Site {
        let mut gateway = Gateway::start();
        gateway.protect([("db", "1M")]);
        let wishes = Wishes::all("erp/db".to_owned());
        let mut guest = Client::connect(gateway.connect(), wishes).expect("served");
        // What would show wherever the overlay was lost.
        guest
            .call(&Command::Write { offset: 0, data: &content(3, DISK_BYTES), durable: true })
            .unwrap()
            .unwrap();
        guest.disconnect().unwrap();
        gateway.says("point create erp --label one");
        gateway.says("failover test erp --point one");
        let held = content(1, DISK_BYTES);
        let mut client = client(&gateway);
        for (index, data) in held.chunks(PIECE).enumerate() {
            let offset = (index * PIECE) as u64;
            client.call(&Command::Write { offset, data, durable: false }).unwrap().unwrap();
        }
        client.disconnect().unwrap();
        let id = gateway.json("group list")[0]["id"].as_str().expect("an id").to_owned();
        let directory = gateway.data().join("groups").join(id).join("tests").join("1");
        gateway.terminate();
        Site { gateway, held, directory }
    }

    fn file(&self, end: &str) -> PathBuf {
        let mut files = read_dir(&self.directory).unwrap().map(|entry| entry.unwrap().path());
        files.find(|path| path.to_str().unwrap().ends_with(end)).expect("it is there")
    }

    /// The pieces that are refused; all others are what was written.
    fn refused(&self) -> Vec<usize> {
        let mut client = client(&self.gateway);
        let mut is_refused = |piece: &usize| match read(&mut client, *piece) {
            Ok(bytes) => {
                assert_same_bytes(&bytes, &self.held[*piece..piece + PIECE]);
                false
            }
            Err(NBD_EIO) => true,
            Err(other) => panic!("{other:?}"),
        };
        (0..DISK_BYTES).step_by(PIECE).filter(|piece| is_refused(piece)).collect()
    }
}

fn client(gateway: &Gateway) -> Client<UnixStream> {
    Client::connect(gateway.connect(), Wishes::all("erp/db@test-1".to_owned())).expect("served")
}

fn read(client: &mut Client<UnixStream>, offset: usize) -> Result<Vec<u8>, ErrorCode> {
    let length = u32::try_from(PIECE).expect("small");
    let read = Command::Read { offset: offset as u64, length, unfragmented: true };
    match client.call(&read).unwrap().map_err(|refused| refused.code)? {
        Answer::Data(bytes) => Ok(bytes.to_vec()),
        _ => panic!("no data"),
    }
}

fn flip(file: &Path, offset: usize) {
    let (mut byte, offset) = ([0], offset as u64);
    File::open(file).unwrap().read_exact_at(&mut byte, offset).unwrap();
    OpenOptions::new().write(true).open(file).unwrap().write_all_at(&[byte[0] ^ 16], offset).unwrap();
}

#[test]
fn a_bit_flipped_in_an_overlay_is_refused_told_and_healed_by_a_write() {
    let mut site = Site::stopped();
    let overlay = site.file(".overlay");
    flip(&overlay, ROTTEN + 512 + 7);
    site.gateway.restart();
    assert_eq!(site.refused(), [5 * PIECE], "that read, and no other");

    let events = site.gateway.json("events --group erp");
    let events = events.as_array().expect("a list");
    let failed = events.iter().rfind(|event| event["code"] == "requests_failed").expect("an event");
    let told = failed["message"].as_str().expect("text");
    let place = format!("{} at byte {}", overlay.display(), ROTTEN + 512);
    assert!(told.contains(&place) && told.contains("failover cleanup"), "{told}");
    let state = site.gateway.group_status()["state"].clone();
    let told = (&state["condition"], &state["reason"]["code"]);
    assert_eq!(told, (&"degraded".into(), &"requests_fail".into()));
    // The vault has nothing of it.
    assert!(site.gateway.logged("the vault is verified in the background").is_empty());
    assert!(site.gateway.says("vault verify erp").contains("0 faults"));

    let new = content(2, BLOCK);
    let write = Command::Write { offset: ROTTEN as u64, data: &new, durable: true };
    client(&site.gateway).call(&write).unwrap().unwrap();
    site.held[ROTTEN..ROTTEN + BLOCK].copy_from_slice(&new);
    assert_eq!(site.refused(), [] as [usize; 0]);

    site.gateway.says("failover cleanup erp --test 1 --yes");
    assert!(!site.directory.exists(), "the overlay, and its sums");
}

/// An end by kill -9 leaves nothing that would be refused; and of before there were sums an overlay has none.
#[test]
fn an_overlay_outlives_its_gateway_and_is_served_without_sums_where_it_has_none() {
    let mut site = Site::stopped();
    site.gateway.restart();
    let new = content(3, PIECE);
    let write = Command::Write { offset: 0, data: &new, durable: false };
    client(&site.gateway).call(&write).unwrap().unwrap();
    site.held[..PIECE].copy_from_slice(&new);
    site.gateway.kill();
    site.gateway.restart();
    assert_eq!(site.refused(), [] as [usize; 0]);

    site.gateway.terminate();
    std::fs::remove_file(site.file(".overlay.sums")).unwrap();
    site.gateway.restart();
    assert_eq!(site.refused(), [] as [usize; 0]);
    let gateway = &site.gateway;
    let told = "an overlay of a test failover has no sums";
    gateway.until("a line in the log", |_| !gateway.logged(told).is_empty());
    gateway
        .until("sums", |_| !gateway.logged("an overlay of before there were sums has them now").is_empty());

    site.gateway.terminate();
    flip(&site.file(".overlay"), ROTTEN + 9);
    site.gateway.restart();
    assert_eq!(site.refused(), [5 * PIECE], "what was believed once is no more than that");
}

/// `cp -a` makes holes of blocks of zeros: the point showed through them, and nothing said so.
#[test]
fn a_data_directory_that_was_copied_sparsely_serves_what_was_written() {
    let mut site = Site::stopped();
    site.gateway.restart();
    let zeros = vec![0; PIECE];
    let write = Command::Write { offset: (9 * PIECE) as u64, data: &zeros, durable: true };
    client(&site.gateway).call(&write).unwrap().unwrap();
    site.held[9 * PIECE..10 * PIECE].fill(0);
    site.gateway.terminate();
    let overlay = site.file(".overlay");
    let before = overlay.metadata().unwrap().blocks();
    let copy = overlay.with_extension("copy");
    let copied = std::process::Command::new("cp")
        .args(["-a", "--sparse=always"])
        .arg(&overlay)
        .arg(&copy)
        .status()
        .unwrap();
    assert!(copied.success());
    rename(&copy, &overlay).unwrap();
    assert_eq!(overlay.metadata().unwrap().blocks(), before - (PIECE / 512) as u64, "a hole in the copy");
    site.gateway.restart();
    assert_eq!(site.refused(), [] as [usize; 0]);
    let gateway = &site.gateway;
    let told = "blocks of zeros of an overlay have become holes";
    gateway.until("a line in the log", |_| !gateway.logged(told).is_empty());
    site.gateway.kill();
    site.gateway.restart();
    assert_eq!(site.refused(), [] as [usize; 0]);
}

impl Site {
    /// What is told of a disk that is not served: by whom, in which words.
    fn told_unserved(&self) -> [String; 4] {
        let gateway = &self.gateway;
        let events = gateway.json("events --group erp");
        let event =
            events.as_array().unwrap().iter().find(|event| event["code"] == "test_unserved").expect("told");
        assert_eq!(event["severity"], "error");
        let state = gateway.group_status()["state"].clone();
        let code = (&state["condition"], &state["reason"]["code"]);
        assert_eq!(code, (&"degraded".into(), &"test_damaged".into()));
        let check = gateway.cli("check").output().unwrap();
        assert_eq!(check.status.code(), Some(1), "not OK");
        let listed = gateway.json("failover list erp");
        assert_eq!(listed[0]["exports"].as_array().map(Vec::len), Some(0), "{listed}");
        assert_eq!(listed[0]["unserved"][0]["disk"], "db");
        let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
        [
            text(&event["message"]),
            text(&state["reason"]["detail"]),
            text(&listed[0]["unserved"][0]["reason"]),
            gateway.says("failover list erp"),
        ]
    }
}

/// It was made anew, empty, and its sums with it; and what could not be served was in the log only.
#[test]
fn an_overlay_that_is_missing_or_cannot_be_served_is_refused_and_told() {
    let mut site = Site::stopped();
    let (overlay, sums) = (site.file(".overlay"), site.file(".overlay.sums"));
    let elsewhere = site.gateway.data().join("elsewhere");
    rename(&overlay, &elsewhere).unwrap();
    let filled = sums.metadata().unwrap().blocks();
    site.gateway.restart();
    for told in site.told_unserved() {
        assert!(told.contains(&overlay.display().to_string()) && told.contains("put it back"), "{told}");
    }
    assert!(
        !overlay.exists() && sums.metadata().unwrap().blocks() == filled,
        "nothing is made anew, nothing cut"
    );
    site.gateway.terminate();
    rename(&elsewhere, &overlay).unwrap();
    site.gateway.restart();
    assert_eq!(site.refused(), [] as [usize; 0], "it was put back");
    assert_eq!(site.gateway.group_status()["state"]["condition"], "protected");

    site.gateway.terminate();
    flip(&sums, 20);
    flip(&sums, 4096 + 20);
    site.gateway.restart();
    for told in site.told_unserved() {
        assert!(told.contains(&format!("{} at byte 0", sums.display())), "{told}");
    }
    site.gateway.says("failover cleanup erp --test 1 --yes");
    assert_eq!(site.gateway.group_status()["state"]["condition"], "protected");
}

#[test]
fn one_header_of_an_overlays_sums_is_written_anew_and_told() {
    let mut site = Site::stopped();
    let sums = site.file(".overlay.sums");
    let sound = std::fs::read(&sums).unwrap();
    flip(&sums, 4096 + 20);
    site.gateway.restart();
    assert_eq!(site.refused(), [] as [usize; 0]);
    assert!(std::fs::read(&sums).unwrap()[..8192] == sound[..8192], "the other one is as it was");
    let events = site.gateway.json("events --group erp");
    let told = events.as_array().unwrap().iter().find(|event| event["code"] == "sums_rotten").expect("told");
    let told = told["message"].as_str().unwrap();
    assert!(told.contains(&format!("db@test-1: {} at byte 4096", sums.display())), "{told}");
}

/// Bits where nobody reads: in what clients wrote, in the sums that count, and in those that do not.
#[test]
fn a_verification_of_the_group_reads_what_test_failovers_hold() {
    let mut site = Site::stopped();
    let (overlay, sums) = (site.file(".overlay"), site.file(".overlay.sums"));
    // The second place of the first unit was never written.
    site.gateway.restart();
    let write = Command::Write { offset: 0, data: &site.held[..BLOCK], durable: true };
    client(&site.gateway).call(&write).unwrap().unwrap();
    flip(&sums, 8192 + 30);
    let said = site.gateway.says("verify erp");
    assert!(said.contains("0 faults"), "{said}");
    assert!(said.contains(&format!("note: db@test-1: {} at byte 8192", sums.display())), "{said}");
    assert!(!site.gateway.says("verify erp").contains("note: db@test-1"), "it is mended");

    flip(&overlay, ROTTEN + 512 + 7);
    let output = site.gateway.cli("verify erp").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    let place = format!("{} at byte {}", overlay.display(), ROTTEN + 512);
    assert!(
        said.contains("1 fault") && said.contains("db@test-1, sectors") && said.contains(&place),
        "{said}"
    );
    let state = site.gateway.group_status()["state"].clone();
    assert_eq!(state["reason"]["code"], "test_damaged");
    assert!(state["reason"]["detail"].as_str().unwrap().contains(&place), "{state}");

    let new = site.held[ROTTEN..ROTTEN + BLOCK].to_vec();
    let write = Command::Write { offset: ROTTEN as u64, data: &new, durable: true };
    client(&site.gateway).call(&write).unwrap().unwrap();
    assert!(site.gateway.says("verify erp").contains("0 faults"));
    assert_eq!(site.gateway.group_status()["state"]["condition"], "protected");
}
