//! `vault repair`: what is lost goes, what stays is what it was, and a repair that was killed is taken up by asking for it again.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde_json::Value;

use crate::gateway::{Gateway, Setup};
use crate::tool;

/// So much takes a moment to be written anew, even of nothing but zeros.
const SIZE: u64 = 4 << 30;
const MIB: u64 = 1 << 20;

/// A write of a guest: offset, bytes, and the byte that it is of.
type Write = (u64, u64, u8);

/// A gateway with points, each after one write.
struct Site {
    gateway: Gateway,
    /// Their ids, and what was written up to each.
    points: Vec<(String, Vec<Write>)>,
    /// Their deltas.
    blobs: Vec<PathBuf>,
}

impl Site {
    fn new(writes: &[Write]) -> Site {
        let gateway = Gateway::with(&Setup { more: "[verify]\nevery = \"never\"\n", ..Setup::default() });
        gateway.says("group create erp");
        gateway.says("policy set erp --interval 24h --retain all");
        gateway.says("disk create erp/db --size 4G");
        let mut site = Site { gateway, points: Vec::new(), blobs: Vec::new() };
        writes.iter().for_each(|&write| site.point(write));
        site
    }

    fn point(&mut self, (offset, bytes, byte): Write) {
        let before = self.stored();
        let write = format!("write -P {byte} {offset} {bytes}");
        tool::says("qemu-io", ["-f", "raw", "-c", &write, &self.gateway.uri("erp/db")]);
        let label = format!("point-{}", self.points.len());
        let point = self.gateway.json(&format!("point create erp --label {label}"));
        let mut written = self.points.last().map(|(_, written)| written.clone()).unwrap_or_default();
        written.push((offset, bytes, byte));
        self.points.push((point["id"].as_str().expect("an id").to_owned(), written));
        let new: Vec<_> = self.stored().into_iter().filter(|path| !before.contains(path)).collect();
        assert_eq!(new.len(), 1, "its delta; a write of the journal's size makes points in between: {new:?}");
        self.blobs.extend(new);
    }

    /// The deltas that there are.
    fn stored(&self) -> Vec<PathBuf> {
        let group = self.gateway.json("group list")[0]["id"].as_str().expect("an id").to_owned();
        let blobs = fs::read_dir(self.gateway.data().join("vault").join(group).join("blobs")).expect("there");
        blobs.map(|entry| entry.expect("listed").path()).collect()
    }

    /// The points that there are, oldest first.
    fn listed(&self) -> Vec<String> {
        let points = self.gateway.json("point list erp");
        let ids = points
            .as_array()
            .expect("a list")
            .iter()
            .map(|point| point["id"].as_str().expect("an id").to_owned());
        ids.collect()
    }

    /// Compares what a point holds with what was written.
    fn check(&self, point: &str, written: &[Write]) {
        let model = self.gateway.path("model.raw");
        let file = fs::File::create(&model).expect("new");
        file.set_len(SIZE).expect("sparse");
        for &(offset, bytes, byte) in written {
            let bytes = vec![byte; usize::try_from(bytes).expect("small")];
            file.write_all_at(&bytes, offset).expect("written");
        }
        let to = self.gateway.path("restored");
        self.gateway.says(&format!("restore erp --point {point} --to {} --yes", to.display()));
        let (model, restored) = (model.display().to_string(), to.join("db.raw").display().to_string());
        tool::says("qemu-img", ["compare", "-f", "raw", "-F", "raw", &model, &restored]);
    }

    /// All points are there but for some, and hold what they held; the newest what the disk does.
    fn check_all_but(&self, gone: &[usize], is_repaired: bool) {
        let stay = self.points.iter().enumerate().filter(|(index, _)| !gone.contains(index));
        let stay: Vec<_> = stay.map(|(_, point)| point).collect();
        let listed = self.listed();
        for (id, written) in &stay {
            assert!(listed.contains(id), "{id} stays: {listed:?}");
            self.check(id, written);
        }
        for index in gone {
            assert!(!listed.contains(&self.points[*index].0), "it shows what is lost");
        }
        if is_repaired {
            self.check("latest", &self.points.last().expect("there is one").1);
        }
    }

    /// The job that repairs, if one is at work: bytes done and their sum.
    fn at_work(jobs: &Value) -> Option<(u64, u64)> {
        let mut jobs = jobs.as_array().expect("a list").iter();
        let job = jobs.find(|job| job["kind"] == "repair" && job["state"] == "running")?;
        Some((job["bytes_done"].as_u64()?, job["bytes_total"].as_u64()?))
    }

    fn is_sound(&self) {
        assert!(self.gateway.says("vault verify erp").contains("0 faults"));
        assert_eq!(self.gateway.group_status()["state"]["condition"], "protected");
        assert!(self.gateway.says("vault repair erp").contains("nothing in its vault is damaged"));
    }
}

fn flip(blob: &PathBuf) {
    let mut bytes = fs::read(blob).expect("there");
    bytes[260] ^= 4;
    fs::write(blob, bytes).expect("tests may write it");
}

#[test]
fn what_would_go_is_said_a_held_point_stays_and_the_rest_is_what_it_was() {
    let site =
        Site::new(&[(0, MIB, 1), (8 * MIB, MIB, 2), (16 * MIB, MIB, 3), (8 * MIB, MIB, 4), (0, 4096, 5)]);
    assert!(site.gateway.says("vault repair erp").contains("nothing in its vault is damaged"));
    flip(&site.blobs[1]);
    let output = site.gateway.cli("vault repair erp").output().expect("runs");
    let told = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("2 recovery points that need what is lost would go"), "{told}");
    let named = [&site.points[1].0, &site.points[2].0, "(point-1)", "3 recovery points stay"]
        .map(|text| told.contains(text));
    assert_eq!(named, [true; 4], "{told}");
    assert!(!told.contains("written anew"), "the fourth wrote all of it: {told}");
    assert_eq!(site.listed().len(), 5, "nothing was done");
    assert_eq!(site.gateway.group_status()["state"]["condition"], "degraded");
    site.gateway.says("point hold erp point-2");
    let refused = site.gateway.refuses("vault repair erp --yes", 1);
    assert!(refused.contains(&site.points[2].0) && refused.contains("'point release'"), "{refused}");
    assert_eq!(site.listed().len(), 5, "nothing was done");
    site.gateway.says("point release erp point-2");
    let told = site.gateway.json("vault repair erp --yes");
    assert_eq!(
        (&told["done"], &told["renewed_bytes"], &told["staying"]),
        (&true.into(), &0.into(), &3.into())
    );
    site.check_all_but(&[1, 2], false);
    site.is_sound();
    assert!(!site.blobs[1].exists());
}

#[test]
fn one_that_was_killed_is_taken_up_again() {
    let mut site = Site::new(&[(0, MIB, 1), (64 * MIB, 16 * MIB, 2), (80 * MIB, 4096, 3)]);
    // Nobody knows what it held: all of the disk is written anew.
    fs::remove_file(&site.blobs[1]).expect("there");
    for part in [SIZE / 6, SIZE / 3] {
        let mut client = site.gateway.start_cli("vault repair erp --yes");
        site.gateway.until_api("/v1/jobs", "some of the disk", |jobs| {
            Site::at_work(jobs).is_some_and(|(done, total)| total > SIZE - 4 * MIB && done > part)
        });
        site.gateway.kill();
        assert!(!client.wait().expect("it ends").success(), "its gateway has gone");
        site.gateway.restart();
        site.check("point-0", &site.points[0].1);
        assert!(site.listed().contains(&site.points[2].0), "nothing goes before there is a sound one");
    }
    let told = site.gateway.json("vault repair erp --yes");
    assert_eq!((&told["done"], &told["left"]), (&true.into(), &Value::Array(vec![])));
    assert!(told["point"].is_string(), "{told}");
    site.check_all_but(&[1, 2], true);
    site.is_sound();
    site.point((0, MIB, 9));
    site.check_all_but(&[1, 2], true);
}
