//! Images that are missing or cut off when the gateway starts: their disks are latched alone, and once the files are back
//! a resume serves them again, byte for byte. It began with a group that could not be opened for one such image.

use std::fs::{self, File};
use std::path::PathBuf;

use afterimage::capture::nbd::client::{Client, Command, Wishes};
use afterimage::capture::nbd::codec::NBD_EIO;
use serde_json::Value;

use crate::content::{assert_same_bytes, content};
use crate::gateway::Gateway;
use crate::tool;

const DISK_BYTES: usize = 2 << 20;

/// A group `erp` with a disk whose image is damaged, `db`, and one that is sound, `log`.
struct Site {
    gateway: Gateway,
    images: PathBuf,
    /// The id of `db`, which its files are named after.
    id: String,
}

/// What keeps an image from being opened.
#[derive(Clone, Copy)]
enum Damage {
    Missing,
    CutOff,
}

impl Site {
    fn new() -> Site {
        let gateway = Gateway::start();
        gateway.protect([("db", "2M"), ("log", "2M")]);
        gateway.says("policy set erp --interval 24h");
        let group = gateway.json("group show erp");
        let images = gateway.data().join("groups").join(group["id"].as_str().expect("text")).join("images");
        let disks = gateway.json("disk list");
        let disk = disks.as_array().unwrap().iter().find(|disk| disk["export"] == "erp/db").expect("listed");
        let id = disk["id"].as_str().expect("text").to_owned();
        Site { gateway, images, id }
    }

    fn write(&self, disk: &str, bytes: &[u8]) {
        let file = self.gateway.path("written");
        fs::write(&file, bytes).unwrap();
        tool::says(
            "nbdcopy",
            ["--flush", file.to_str().expect("UTF-8"), &self.gateway.uri(&format!("erp/{disk}"))],
        );
    }

    #[track_caller]
    fn assert_serves(&self, disk: &str, bytes: &[u8]) {
        let file = self.gateway.path("served");
        tool::says("nbdcopy", [&self.gateway.uri(&format!("erp/{disk}")), file.to_str().expect("UTF-8")]);
        assert_same_bytes(&fs::read(file).unwrap(), bytes);
    }

    fn image(&self) -> PathBuf {
        self.images.join(format!("{}.raw", self.id))
    }

    fn kept(&self) -> PathBuf {
        self.gateway.path("image-elsewhere")
    }

    /// Kills the gateway, and starts one that finds the damage.
    fn restart_damaged(&mut self, damage: Damage) {
        self.gateway.kill();
        fs::rename(self.image(), self.kept()).unwrap();
        if let Damage::CutOff = damage {
            File::create(self.image()).unwrap().set_len(DISK_BYTES as u64 / 2).unwrap();
        }
        self.gateway.restart();
    }

    fn put_back(&self) {
        let _ = fs::remove_file(self.image());
        fs::rename(self.kept(), self.image()).unwrap();
    }

    #[track_caller]
    fn assert_latched(&self, says: &str) {
        let status = self.gateway.group_status();
        let state = &status["state"];
        assert_eq!(
            (&state["condition"], &state["reason"]["code"]),
            (&"latched".into(), &"image_failed".into())
        );
        let detail = state["reason"]["detail"].as_str().expect("text");
        let image = self.image();
        let names = [says, "db", image.to_str().expect("UTF-8")];
        assert!(names.iter().all(|name| detail.contains(name)), "{detail}");
        assert!(state["reason"]["mend"].as_str().expect("text").contains("group resume"), "{state:#}");
        self.assert_listed_as_latched(detail);
        let mut client =
            Client::connect(self.gateway.connect(), Wishes::all("erp/db".to_owned())).expect("served");
        let read = Command::Read { offset: 0, length: 512, unfragmented: true };
        let write = Command::Write { offset: 0, data: &[1; 512], durable: false };
        for command in [read, write] {
            let refused = client.call(&command).expect("the connection stays");
            assert_eq!(refused.expect_err("refused").code, NBD_EIO);
        }
    }
}

impl Site {
    /// Every listing says what `status` says. A review found the disk served and its group open in all others.
    #[track_caller]
    fn assert_listed_as_latched(&self, detail: &str) {
        let disks = self.gateway.json("disk list");
        let listed: Vec<_> = disks.as_array().unwrap().iter().map(|disk| &disk["served"]).collect();
        assert_eq!(listed, [&Value::Bool(false), &Value::Bool(true)], "{disks:#}");
        let latched = &disks[0]["latched"];
        assert_eq!(latched["code"], "image_failed");
        // Status has the disk's name in it, for it speaks of the whole group.
        assert_eq!(detail.replacen(" (db)", "", 1), latched["detail"].as_str().expect("text"));
        assert!(latched["mend"].as_str().expect("text").contains("group resume"));
        assert_eq!(disks[1]["latched"], Value::Null);
        let group = &self.gateway.json("group list")[0];
        assert_eq!((&group["condition"], &group["latched_disks"]), (&"latched".into(), &1.into()));
        assert_eq!(group["failure"], Value::Null, "it is open");
        for (line, fragment) in [
            ("disk list", "LATCHED: its writes fail"),
            ("group list", "LATCHED: 1 of 2 disks"),
            ("group show erp", "LATCHED: its writes fail"),
        ] {
            let told = self.gateway.says(line);
            assert!(told.contains(fragment) && told.contains(detail.rsplit(": ").next().unwrap()), "{told}");
        }
    }

    #[track_caller]
    fn assert_listed_as_sound(&self) {
        let disks = self.gateway.json("disk list");
        let is_sound = |disk: &Value| disk["served"] == true && disk["latched"] == Value::Null;
        assert!(disks.as_array().unwrap().iter().all(is_sound), "{disks:#}");
        let group = &self.gateway.json("group list")[0];
        assert_eq!((&group["condition"], &group["latched_disks"]), (&"protected".into(), &0.into()));
        assert!(!self.gateway.says("group list").contains("DEGRADED"));
    }
}

#[test]
fn their_disks_are_latched_alone_and_come_back() {
    for (damage, says) in [(Damage::Missing, "missing"), (Damage::CutOff, "bytes")] {
        let mut site = Site::new();
        let (old, new, log) = (content(1, DISK_BYTES), content(2, DISK_BYTES), content(3, DISK_BYTES));
        site.write("db", &old);
        site.gateway.says("point create erp --label old");
        site.write("db", &new);
        site.restart_damaged(damage);
        site.assert_latched(says);
        site.write("log", &log);
        site.assert_serves("log", &log);
        // Points need no image: neither old ones nor new ones.
        site.gateway.says("point create erp --label beside");
        for (label, bytes) in [("old", &old), ("beside", &new)] {
            let directory = site.gateway.path(format!("restored-{label}"));
            site.gateway.says(&format!("restore erp --point {label} --to {}", directory.display()));
            assert_same_bytes(&fs::read(directory.join("db.raw")).unwrap(), bytes);
        }
        let output = site.gateway.cli("group resume erp").output().unwrap();
        let told = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(output.status.code() == Some(1) && told.contains(says), "{told}");
        // A second start finds no more than the first.
        site.gateway.kill();
        site.gateway.restart();
        site.assert_latched(says);
        site.put_back();
        let told = site.gateway.says("group resume erp");
        assert!(told.contains("disk db"), "{told}");
        site.assert_serves("db", &new);
        site.assert_serves("log", &log);
        site.write("db", &old);
        site.gateway.terminate();
        site.gateway.restart();
        site.assert_serves("db", &old);
        assert_eq!(site.gateway.group_status()["state"]["condition"], "protected");
        site.assert_listed_as_sound();
    }
}

#[test]
fn their_disks_can_be_removed() {
    let mut site = Site::new();
    let (db, log) = (content(1, DISK_BYTES), content(3, DISK_BYTES));
    site.write("db", &db);
    site.write("log", &log);
    site.gateway.says("point create erp --label kept");
    site.restart_damaged(Damage::Missing);
    site.gateway.says("disk remove erp/db --yes");
    assert_eq!(site.gateway.group_status()["state"]["reason"], Value::Null);
    site.assert_serves("log", &log);
    let directory = site.gateway.path("restored");
    site.gateway.says(&format!("restore erp --point kept --to {}", directory.display()));
    assert_same_bytes(&fs::read(directory.join("db.raw")).unwrap(), &db);
}
