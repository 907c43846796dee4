//! Bits that flip in a disk's image, or in the sums of that, under the real program: what a guest reads is right or refused, somebody is
//! told of file and offset, and what the guest writes anew is served again. It began with images that were served unchecked.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use afterimage::capture::nbd::client::{Answer, Client, Command, Wishes};
use afterimage::capture::nbd::codec::{ErrorCode, NBD_EIO};
use serde_json::Value;

use crate::content::{assert_same_bytes, content};
use crate::gateway::{Gateway, Setup};

const DISK_BYTES: usize = 2 << 20;
const PIECE: usize = 16 << 10;
/// A sector in the midst of the disk, which a bit flips in.
const ROTTEN: usize = 1 << 20;

/// A gateway with a disk that is destaged, what it holds, its client, and its image.
struct Site {
    gateway: Gateway,
    held: Vec<u8>,
    client: Client<UnixStream>,
    image: PathBuf,
}

fn client(gateway: &Gateway) -> Client<UnixStream> {
    Client::connect(gateway.connect(), Wishes::all("erp/db".to_owned())).expect("served")
}

fn flip(file: &Path, offset: u64) {
    let mut byte = [0];
    File::open(file).unwrap().read_exact_at(&mut byte, offset).unwrap();
    OpenOptions::new().write(true).open(file).unwrap().write_all_at(&[byte[0] ^ 16], offset).unwrap();
}

impl Site {
    fn new() -> Site {
        let mut gateway = Gateway::with(&Setup { more: "[verify]\nevery = \"never\"\n", ..Setup::default() });
        gateway.protect([("db", "2M")]);
        let held = content(1, DISK_BYTES);
        let mut writer = client(&gateway);
        for (index, piece) in held.chunks(PIECE).enumerate() {
            let offset = (index * PIECE) as u64;
            writer.call(&Command::Write { offset, data: piece, durable: false }).unwrap().unwrap();
        }
        writer.disconnect().unwrap();
        gateway.says("point create erp --label all");
        // A stop destages; and the next one has nothing in memory.
        gateway.terminate();
        gateway.restart();
        let group = gateway.json("group list")[0].clone();
        let id = |value: &Value| value["id"].as_str().expect("an id").to_owned();
        let images = gateway.data().join("groups").join(id(&group)).join("images");
        let image = images.join(format!("{}.raw", id(&group["disks"][0])));
        Site { client: client(&gateway), gateway, held, image }
    }

    fn read(&mut self, offset: usize) -> Result<(), ErrorCode> {
        let length = u32::try_from(PIECE).expect("small");
        let read = Command::Read { offset: offset as u64, length, unfragmented: true };
        let answer = self.client.call(&read).unwrap();
        let Answer::Data(bytes) = answer.map_err(|refused| refused.code)? else { panic!("no data") };
        assert_same_bytes(&bytes, &self.held[offset..offset + PIECE]);
        Ok(())
    }

    /// The pieces that are refused; all others are what was written.
    fn refused(&mut self) -> Vec<usize> {
        let pieces = (0..DISK_BYTES).step_by(PIECE);
        let mut refused = Vec::new();
        for piece in pieces {
            match self.read(piece) {
                Ok(()) => {}
                Err(NBD_EIO) => refused.push(piece),
                Err(other) => panic!("{other:?}"),
            }
        }
        refused
    }

    /// Writes pieces anew with other bytes, and has them destaged.
    fn write_anew(&mut self, pieces: &[usize]) {
        for &piece in pieces {
            let new = content(piece as u64 + 7, PIECE);
            let write = Command::Write { offset: piece as u64, data: &new, durable: true };
            self.client.call(&write).unwrap().unwrap();
            self.held[piece..piece + PIECE].copy_from_slice(&new);
        }
        self.gateway.until("destaging", |status| {
            let lsn = &status["groups"][0]["lsn"];
            !lsn["destaged"].is_null() && lsn["destaged"] == lsn["visible"]
        });
    }

    fn told(&self) -> String {
        let events = self.gateway.json("events --group erp");
        let failed =
            events.as_array().expect("a list").iter().rfind(|event| event["code"] == "requests_failed");
        failed.expect("an event")["message"].as_str().expect("text").to_owned()
    }
}

#[test]
fn a_bit_flipped_in_an_image_is_refused_told_and_healed_by_a_write() {
    let mut site = Site::new();
    flip(&site.image, ROTTEN as u64 + 5 * 512 + 77);
    assert_eq!(site.refused(), [ROTTEN], "that read, and no other");
    let place = format!("{} at byte {}", site.image.display(), ROTTEN + 5 * 512);
    let told = site.told();
    assert!(told.contains(&place) && told.contains("do not match their sums"), "{told}");
    let state = site.gateway.group_status()["state"].clone();
    assert_eq!(
        (&state["condition"], &state["reason"]["code"]),
        (&"degraded".into(), &"requests_fail".into())
    );
    assert!(site.gateway.refuses("verify erp", 1).contains("1 fault"));
    let found = site.gateway.cli("verify erp --json").output().expect("runs");
    let found = String::from_utf8(found.stdout).expect("text");
    assert!(found.contains(&place), "{found}");
    // The journal has the sector now, and later the image again.
    site.write_anew(&[ROTTEN]);
    assert_eq!(site.refused(), [] as [usize; 0]);
    site.gateway.says("point create erp --label healed");
    assert!(site.gateway.says("verify erp").contains("0 faults"));
}

#[test]
fn bits_flipped_in_the_sums_of_an_image_have_nothing_wrong_served() {
    let mut site = Site::new();
    let sums = site.image.with_extension("sums");
    // Both places of the second block: of the sectors 1,016 to 2,031.
    flip(&sums, 2 * 8192 + 100);
    flip(&sums, 2 * 8192 + 4096 + 100);
    let refused: Vec<_> =
        (1016 * 512 / PIECE..(2032 * 512_usize).div_ceil(PIECE)).map(|piece| piece * PIECE).collect();
    assert_eq!(site.refused(), refused);
    let told = site.told();
    assert!(told.contains(&format!("{} at byte {}", sums.display(), 2 * 8192)), "{told}");
    site.write_anew(&refused);
    assert_eq!(site.refused(), [] as [usize; 0]);
    // One header of two.
    flip(&sums, 9);
    site.client = {
        site.gateway.terminate();
        site.gateway.restart();
        client(&site.gateway)
    };
    assert_eq!(site.refused(), [] as [usize; 0]);
}
