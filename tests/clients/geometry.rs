//! Disks whose size changes under real clients; small writes among larger ones; and discarded space, which stays away.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};

use crate::content::{allocated_bytes, assert_same, content, files};
use crate::gateway::{Gateway, wait};
use crate::tool;

on_each_backend!(
    a_disk_grows_beside_its_client_and_shrinks_without_one,
    small_writes_among_larger_ones_are_restored,
    what_was_discarded_stays_a_hole,
);

const MIB: u64 = 1 << 20;

#[track_caller]
fn commands(uri: &str, commands: &[&str]) {
    let flags = commands.iter().flat_map(|command| ["-c", command]);
    let text = tool::says("qemu-io", ["-f", "raw"].into_iter().chain(flags).chain([uri]));
    assert!(!text.contains("Pattern verification failed") && !text.contains("failed:"), "{text}");
}

#[track_caller]
fn size(uri: &str) -> u64 {
    let info = tool::says("qemu-img", ["info", "--output=json", uri]);
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    info["virtual-size"].as_u64().expect("a size")
}

/// A client that stays connected.
struct Client {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Client {
    fn connect(uri: &str) -> Client {
        let mut command = tool::command("qemu-io");
        command.args(["-f", "raw", uri]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("qemu-io");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Client { child, output }
    }

    /// Carries out a command; what it says of it.
    fn does(&mut self, command: &str) -> String {
        let input = self.child.stdin.as_mut().expect("piped");
        writeln!(input, "{command}").expect("it listens");
        let mut line = String::new();
        while !line.contains(" bytes at offset") && !line.contains("failed") {
            line.clear();
            assert!(self.output.read_line(&mut line).expect("it answers") > 0, "it is gone");
        }
        line
    }

    fn leave(mut self) {
        drop(self.child.stdin.take());
        wait(&mut self.child);
    }
}

/// Restores a point's disk.
#[track_caller]
fn restored(gateway: &Gateway, point: &str) -> PathBuf {
    let directory = gateway.path(format!("restored-{point}"));
    gateway.says(&format!("restore erp --point {point} --to {}", directory.display()));
    directory.join("db.raw")
}

fn a_disk_grows_beside_its_client_and_shrinks_without_one(backend: &'static str) {
    let mut gateway = Gateway::on(backend);
    gateway.protect([("db", "16M")]);
    let uri = gateway.uri("erp/db");
    let mut client = Client::connect(&uri);
    assert!(client.does("write -P 1 0 16M").contains("wrote"));
    gateway.says("point create erp --label full");

    let told = gateway.says("disk resize erp/db --size 40M");
    assert!(told.contains("40MiB"), "{told}");
    assert!(client.does("write -P 2 1M 1M").contains("wrote"), "its client goes on");
    assert_eq!(size(&uri), 40 * MIB, "a new one sees the new size");
    commands(&uri, &["read -P 0 16M 24M", "write -P 3 39M 1M", "read -P 2 1M 1M"]);
    assert_eq!(gateway.json("disk list erp")[0]["size_bytes"], 40 * MIB);
    gateway.says("point create erp --label grown");

    let told = gateway.refuses("disk resize erp/db --size 8M", 1);
    assert!(told.contains("--yes-lose-tail"), "{told}");
    let told = gateway.refuses("disk resize erp/db --size 8M --yes-lose-tail", 1);
    assert!(told.contains("1 connection"), "{told}");
    assert_eq!(size(&uri), 40 * MIB);
    client.leave();
    gateway.until("no client", |status| status["groups"][0]["connections"] == 0);
    gateway.says("disk resize erp/db --size 8M --yes-lose-tail");
    assert_eq!(size(&uri), 8 * MIB);
    let images = files(gateway.data(), "raw");
    let image = images.iter().find(|path| path.parent().is_some_and(|parent| parent.ends_with("images")));
    let length = |path: &Path| fs::metadata(path).expect("there").len();
    assert_eq!(length(image.expect("an image")), 8 * MIB);

    // What it regains is zeros, also where older points hold something, and after a death.
    gateway.says("disk resize erp/db --size 24M");
    commands(&uri, &["read -P 1 2M 6M", "read -P 0 8M 16M"]);
    gateway.says("point create erp --label regrown");
    gateway.kill();
    gateway.restart();
    let uri = gateway.uri("erp/db");
    assert_eq!(size(&uri), 24 * MIB);
    commands(&uri, &["read -P 1 2M 6M", "read -P 0 8M 16M"]);

    let (full, grown, regrown) =
        (restored(&gateway, "full"), restored(&gateway, "grown"), restored(&gateway, "regrown"));
    assert_eq!([&full, &grown, &regrown].map(|path| length(path)), [16 * MIB, 40 * MIB, 24 * MIB]);
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    commands(&path(&full), &["read -P 1 0 16M"]);
    commands(&path(&grown), &["read -P 1 2M 14M", "read -P 0 16M 23M", "read -P 3 39M 1M"]);
    commands(&path(&regrown), &["read -P 2 1M 1M", "read -P 1 2M 6M", "read -P 0 8M 16M"]);
    let events = gateway.says("events --group erp");
    assert_eq!(events.matches("was resized from").count(), 3, "{events}");
    let told = gateway.refuses("disk resize erp/db --size 400T", 1);
    assert!(told.contains("takes files of at most"), "{told}");
    assert_eq!(size(&uri), 24 * MIB, "a refusal changes nothing");
}

fn small_writes_among_larger_ones_are_restored(backend: &'static str) {
    const SECTORS: u64 = 2048;
    let mut gateway = Gateway::on(backend);
    gateway.protect([("db", "1M")]);
    let model = gateway.path("model");
    let file = File::create(&model).expect("a new file");
    file.set_len(SECTORS * 512).expect("room");
    for round in 0..3_u64 {
        let uri = gateway.uri("erp/db");
        let mut lines = Vec::new();
        for step in 0..200_u64 {
            // 512-byte writes into and across the 4 KiB ones.
            let sectors = if step % 3 == 0 { 8 } else { 1 };
            let draw = step.wrapping_mul(7919).wrapping_add(round * 104_729);
            let start = if sectors == 8 { draw % (SECTORS / 8) * 8 } else { draw % (SECTORS - 1) };
            let pattern = u8::try_from(1 + (round * 200 + step) % 250).expect("small");
            file.write_all_at(&vec![pattern; usize::try_from(sectors * 512).expect("small")], start * 512)
                .expect("room");
            lines.push(format!("write -P {pattern} {} {}", start * 512, sectors * 512));
        }
        lines.push("flush".to_owned());
        commands(&uri, &lines.iter().map(String::as_str).collect::<Vec<_>>());
        let label = format!("round-{round}");
        gateway.says(&format!("point create erp --label {label}"));
        fs::copy(&model, gateway.path(&label)).expect("room");
        gateway.kill();
        gateway.restart();
    }
    for round in 0..3 {
        let label = format!("round-{round}");
        assert_same(&restored(&gateway, &label), &gateway.path(&label));
    }
    gateway.says("point delete erp round-1 --yes");
    gateway.says("point delete erp round-0 --yes");
    let _ = fs::remove_dir_all(gateway.path("restored-round-2"));
    assert_same(&restored(&gateway, "round-2"), &model);
}

fn what_was_discarded_stays_a_hole(backend: &'static str) {
    const SLACK: u64 = MIB / 2;
    let mut gateway = Gateway::on(backend);
    gateway.protect([("db", "64M")]);
    let uri = gateway.uri("erp/db");
    let original = gateway.path("original");
    fs::write(&original, content(1, 16 << 20)).expect("room");
    tool::says("nbdcopy", ["--destination-is-zero", original.to_str().expect("UTF-8"), &uri]);
    gateway.says("point create erp --label full");
    commands(&uri, &["discard 4M 4M", "write -z -u 8M 4M", "write -P 0 12M 2M", "flush"]);
    gateway.says("point create erp --label holes");
    commands(&uri, &["write -P 9 0 64k", "flush"]);
    gateway.says("point create erp --label later");

    // Trimmed, zeroed with leave to discard, and plain zeros, which a delta knows for what they are.
    let kept = 4 * MIB + 2 * MIB;
    let check = |gateway: &Gateway, when: &str| {
        let _ = fs::remove_dir_all(gateway.path("restored-later"));
        let file = restored(gateway, "later");
        let path = file.to_str().expect("UTF-8");
        commands(path, &["read -P 9 0 64k", "read -P 0 4M 10M", "read -P 0 16M 48M"]);
        let taken = allocated_bytes(&file);
        assert!(taken <= kept + 2 * MIB + SLACK && taken >= kept, "{when}: {taken} of {kept} bytes");
    };
    check(&gateway, "from deltas");
    gateway.says("point delete erp holes --yes");
    check(&gateway, "after a merge");
    gateway.says("point delete erp full --yes");
    let base = || {
        let bases = files(gateway.data(), "raw");
        let base =
            bases.into_iter().find(|path| path.parent().is_some_and(|parent| parent.ends_with("base")));
        base.expect("a base")
    };
    let base = base();
    gateway.until("the base to be the oldest point", |_| {
        (kept..=kept + 2 * MIB + SLACK).contains(&allocated_bytes(&base))
    });
    check(&gateway, "from the base");
    gateway.terminate();
    gateway.restart();
    let images = files(gateway.data(), "raw");
    let image = images.iter().find(|path| path.parent().is_some_and(|parent| parent.ends_with("images")));
    let taken = allocated_bytes(image.expect("an image"));
    assert!(taken <= kept + 2 * MIB + SLACK, "the image takes {taken} bytes");
}
