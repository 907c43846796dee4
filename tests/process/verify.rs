//! `verify GROUP` and the verification in the background, through the command line.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::content::content;
use crate::gateway::{Gateway, Setup, refusal};
use crate::tool;

/// A gateway with one disk of 8 MiB, of which 1 MiB is written, destaged and in a point; and the disk's image.
fn protected(more: &'static str) -> (Gateway, PathBuf) {
    let mut gateway = Gateway::with(&Setup { more, ..Setup::default() });
    gateway.protect([("db", "8M")]);
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 1 0 1M", &gateway.uri("erp/db")]);
    gateway.terminate();
    gateway.restart();
    let group = gateway.json("group list")[0].clone();
    let id = group["id"].as_str().expect("an id").to_owned();
    let disk = group["disks"][0]["id"].as_str().expect("an id").to_owned();
    let image = gateway.data().join("groups").join(id).join("images").join(format!("{disk}.raw"));
    (gateway, image)
}

fn flip(image: &PathBuf, offset: u64) {
    put(image, offset, 2);
}

fn put(file: &PathBuf, offset: u64, byte: u8) {
    let file = OpenOptions::new().write(true).open(file).expect("there");
    file.write_all_at(&[byte], offset).expect("tests may write it");
}

/// A byte of a file is another from now on; what it was.
fn damage(file: &PathBuf, offset: u64) -> u8 {
    let mut was = [0];
    fs::File::open(file).expect("there").read_exact_at(&mut was, offset).expect("read");
    put(file, offset, was[0] ^ 4);
    was[0]
}

/// A gateway with four points, of which the first two show what the first one's delta holds, and the third wrote it anew; the ids of
/// the points, and the file of that delta.
fn with_four_points() -> (Gateway, Vec<String>, PathBuf) {
    let gateway = Gateway::with(&Setup { more: "[verify]\nevery = \"never\"\n", ..Setup::default() });
    gateway.says("group create erp");
    gateway.says("policy set erp --interval 24h");
    gateway.says("disk create erp/db --size 8M");
    let point = |label: &str, write: &str| {
        tool::says("qemu-io", ["-f", "raw", "-c", write, &gateway.uri("erp/db")]);
        let point = gateway.json(&format!("point create erp --label {label}"));
        point["id"].as_str().expect("an id").to_owned()
    };
    let mut points = vec![point("first", "write -P 1 0 64k")];
    let group = gateway.json("group list")[0]["id"].as_str().expect("an id").to_owned();
    let blobs = fs::read_dir(gateway.data().join("vault").join(group).join("blobs")).expect("there");
    let blobs: Vec<PathBuf> = blobs.map(|entry| entry.expect("listed").path()).collect();
    let [blob] = &blobs[..] else { panic!("one delta, not {blobs:?}") };
    points.push(point("second", "write -P 2 128k 64k"));
    points.push(point("third", "write -P 3 0 64k"));
    points.push(point("fourth", "write -P 4 256k 64k"));
    (gateway, points, blob.clone())
}

/// The others were not read, or what was found in them was not said.
#[test]
fn a_vault_that_cannot_be_read_hides_no_other() {
    let (gateway, _, blob) = with_four_points();
    for group in ["aaa", "zzz"] {
        gateway.says(&format!("group create {group}"));
        let groups = gateway.json("group list");
        let is_named = |found: &&Value| found["name"] == group;
        let id = groups.as_array().expect("a list").iter().find(is_named).expect("there")["id"].clone();
        let manifest = gateway.data().join("vault").join(id.as_str().expect("an id")).join("manifest");
        fs::rename(&manifest, manifest.with_extension("away")).expect("there");
    }
    damage(&blob, 260);
    let output = gateway.cli("vault verify --json").output().expect("runs");
    let report: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    let faults: Vec<_> = report["faults"].as_array().expect("a list").iter().map(Value::to_string).collect();
    for named in ["group aaa: its vault cannot be read", "group zzz: its vault cannot be read", ".delta"] {
        assert!(faults.iter().any(|fault| fault.contains(named)), "{named}: {report:#}");
    }
    for group in ["aaa", "erp", "zzz"] {
        let events = gateway.json(&format!("events --group {group}"));
        assert!(events.to_string().contains("verify_found"), "{group}: {events:#}");
    }
}

#[test]
fn what_rotted_in_an_image_is_named_and_a_sound_group_is_sound() {
    let (gateway, image) = protected("[verify]\nevery = \"never\"\n");
    let sound = gateway.json("verify erp");
    assert_eq!((&sound["faults"], &sound["compared_bytes"]), (&Value::Array(vec![]), &Value::from(8 << 20)));
    assert!(gateway.says("verify erp --rate 100M").contains("0 faults"));
    assert!(gateway.says("vault verify --rate 100M").contains("0 faults"));
    assert_eq!(gateway.group_status()["verify"], Value::Null, "off, and never asked for");
    flip(&image, 300_000);
    let told = gateway.refuses("verify erp", 1);
    assert!(told.contains("1 fault"), "{told}");
    let output = gateway.cli("verify erp --json").output().expect("runs");
    let report: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    let fault = &report["faults"][0];
    assert_eq!(
        (&fault["disk"], &fault["first_sector"], &fault["sectors"]),
        (&"db".into(), &585.into(), &1.into())
    );
    let message = fault["message"].as_str().expect("text");
    assert!(message.contains(&format!("{} at byte 299520", image.display())), "{message}");
    let events = gateway.json("events --group erp");
    let found = events.as_array().expect("a list").iter().find(|event| event["code"] == "verify_found");
    assert_eq!(found.expect("an event")["severity"], "error");
    // Whatever the vault's own verification says, the group is no longer simply protected, until a comparison finds it sound.
    let status = gateway.group_status();
    assert_eq!(
        (&status["state"]["condition"], &status["state"]["reason"]["code"]),
        (&"degraded".into(), &"verify_found".into())
    );
    let why = status["state"]["reason"]["detail"].as_str().expect("text");
    assert!(why.contains("1 place") && why.contains("at byte 299520"), "{why}");
    // A vault does not know what its group's image holds.
    assert!(gateway.says("vault verify erp").contains("0 faults"));
    assert_eq!(gateway.group_status()["state"]["condition"], "degraded");
    put(&image, 300_000, 1);
    assert!(gateway.says("verify erp").contains("0 faults"));
    assert_eq!(gateway.group_status()["state"]["condition"], "protected");
    assert!(gateway.refuses("verify erp --rate 0", 2).contains("rate"));
    gateway.refuses("verify nobody", 1);
}

/// Since the newest point it became shorter: nothing of it was compared, without end in a group at rest.
#[test]
fn a_disk_that_shrank_is_compared_up_to_its_end() {
    let (mut gateway, image) = protected("[verify]\nevery = \"never\"\n");
    gateway.says("policy set erp --interval 24h");
    gateway.says("disk resize erp/db --size 4M --yes-lose-tail");
    gateway.terminate();
    flip(&image, 300_000);
    gateway.restart();
    let output = gateway.cli("verify erp --json").output().expect("runs");
    let report: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    assert_eq!(
        (&report["faults"][0]["first_sector"], &report["compared_bytes"]),
        (&585.into(), &(4 << 20).into())
    );
    assert!(report["notes"][0].as_str().is_some_and(|note| note.contains("up to its end")), "{report:#}");
}

#[test]
fn it_goes_on_in_the_background_and_over_restarts() {
    let (mut gateway, image) = protected("[verify]\nevery = \"2s\"\nrate = \"100MiB\"\n");
    let verified = |status: &Value| status["groups"][0]["verify"]["last"]["faults"] == 0;
    gateway.until("a sound verification", verified);
    assert!(gateway.says("status").contains("verified  "));
    flip(&image, 300_000);
    let found = |status: &Value| status["groups"][0]["verify"]["last"]["faults"] == 1;
    let status = gateway.until("a verification that finds it", found);
    let first = status["groups"][0]["verify"]["last"]["first_fault"].as_str().expect("text").to_owned();
    assert!(first.contains("at byte 299520"), "{first}");
    let events = gateway.json("events --group erp");
    let codes: Vec<&Value> = events.as_array().expect("a list").iter().map(|event| &event["code"]).collect();
    assert!(codes.contains(&&"verify_found".into()) && codes.contains(&&"verify_done".into()), "{codes:?}");
    gateway.says("group pause erp");
    let before = gateway.group_status()["verify"]["last"].clone();
    gateway.terminate();
    gateway.restart();
    // Paused: the last one is from before the restart.
    let after = gateway.group_status()["verify"]["last"].clone();
    assert_eq!(after["faults"], 1);
    assert!(after["finished"].as_str() >= before["finished"].as_str(), "{before} {after}");
}

/// It said "no faults", and nobody heard of it.
#[test]
fn one_damaged_copy_of_the_sums_of_a_base_is_told_by_a_verification_in_the_background() {
    let (gateway, image) = protected("[verify]\nevery = \"2s\"\nrate = \"100MiB\"\n");
    gateway.says("policy set erp --interval 24h");
    gateway.says("point create erp --label first");
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 2 0 64k", &gateway.uri("erp/db")]);
    gateway.says("point create erp --label kept");
    let points = gateway.json("point list erp").as_array().expect("a list").clone();
    for point in points.iter().filter(|point| point["label"] != "kept") {
        gateway.says(&format!("point delete erp {} --yes", point["id"].as_str().expect("an id")));
    }
    let group = gateway.json("group list")[0]["id"].as_str().expect("an id").to_owned();
    let name = image.file_stem().expect("a name").to_string_lossy().into_owned();
    let bases = gateway.data().join("vault").join(group).join("base");
    let sums = bases.join(format!("{name}.sums"));
    gateway.until("a base", |_| fs::metadata(&sums).is_ok_and(|sums| sums.len() > 2 * 4096));
    damage(&sums, 4096 + 100);
    let told = |_: &Value| {
        let events = events(&gateway, "sums_rotten");
        events.iter().any(|event| {
            event["message"]
                .as_str()
                .is_some_and(|text| text.contains(&format!("{} at byte 4096", sums.display())))
        })
    };
    gateway.until("an event", told);
    assert!(gateway.says("vault verify").contains("0 faults"), "the other copy is used");
}

#[test]
fn it_rests_in_the_background_while_the_group_is_paused() {
    let gateway =
        Gateway::with(&Setup { more: "[verify]\nevery = \"2s\"\nrate = \"2MiB\"\n", ..Setup::default() });
    gateway.protect([("db", "8M")]);
    // Some seconds of work at that rate, in the vault and in the image.
    let written = gateway.path("written");
    fs::write(&written, content(7, 8 << 20)).unwrap();
    tool::says("nbdcopy", ["--flush", written.to_str().expect("UTF-8"), &gateway.uri("erp/db")]);
    gateway.says("point create erp --label written");
    let running = |status: &Value| status["groups"][0]["verify"]["running"].clone();
    let place = |running: &Value| (running["part"].clone(), running["bytes_done"].clone());
    // Begun after the point was there, or it would have nothing to do.
    gateway.until("a verification under way", |status| {
        let now = running(status);
        now["bytes_done"].as_u64() > Some(0) && now["bytes_total"].as_u64() > Some(4 << 20)
    });
    gateway.says("group pause erp");
    let held = running(&gateway.until("a rest", |status| running(status)["held"] == true));
    // What a watch of a second is long enough for, in questions: at this rate it would go on several times.
    for _ in 0..100 {
        assert_eq!(place(&running(&gateway.json("status"))), place(&held));
    }
    gateway.says("group resume erp");
    gateway.until("progress", |status| {
        let now = running(status);
        now["held"] == false && place(&now) != place(&held)
    });
}

/// A gateway with a disk of 8 MiB, all of it written, destaged and in a point.
fn filled(more: &'static str) -> Gateway {
    let mut gateway = Gateway::with(&Setup { more, ..Setup::default() });
    gateway.protect([("db", "8M")]);
    let written = gateway.path("written");
    fs::write(&written, content(7, 8 << 20)).unwrap();
    tool::says("nbdcopy", ["--flush", written.to_str().expect("UTF-8"), &gateway.uri("erp/db")]);
    gateway.says("point create erp --label written");
    gateway.terminate();
    gateway.restart();
    gateway
}

fn verifying(gateway: &Gateway) -> PathBuf {
    verifying_of(gateway, "erp")
}

/// Where it is kept how far a verification of a group is.
fn verifying_of(gateway: &Gateway, group: &str) -> PathBuf {
    let id = gateway.json(&format!("group show {group}"))["id"].as_str().expect("an id").to_owned();
    gateway.data().join("groups").join(id).join("verifying")
}

/// What is kept of a verification under way.
fn kept(gateway: &Gateway) -> Option<Value> {
    kept_at(&verifying(gateway))
}

fn kept_at(path: &PathBuf) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn is_amidst_disks(gateway: &Gateway) -> bool {
    kept(gateway).is_some_and(|kept| kept["place"]["disks"]["sectors"].as_u64() > Some(0))
}

fn events(gateway: &Gateway, code: &str) -> Vec<Value> {
    events_of(gateway, "erp", code)
}

fn events_of(gateway: &Gateway, group: &str, code: &str) -> Vec<Value> {
    let events = gateway.json(&format!("events --group {group}"));
    events.as_array().expect("a list").iter().filter(|event| event["code"] == code).cloned().collect()
}

#[test]
fn one_that_a_restart_cuts_off_goes_on_where_it_was() {
    let mut gateway = filled("[verify]\nevery = \"never\"\nrate = \"2MiB\"\n");
    let path = verifying(&gateway);
    let created = gateway.json("group list")[0]["created"].as_str().expect("a time").to_owned();
    // One in the background that had read the vault, and half of the disk.
    gateway.terminate();
    let mark = format!(
        r#"{{"version":1,"started":"{created}","scope":"both","place":{{"disks":{{"slot":0,"sectors":8192}}}},"read_bytes":1000}}"#
    );
    fs::write(path, mark).unwrap();
    gateway.restart();
    let running = |status: &Value| status["groups"][0]["verify"]["running"].clone();
    let resumed = running(&gateway.until("the verification", |status| running(status)["resumed"] == true));
    assert_eq!(resumed["part"], "disks", "the vault was read");
    assert_eq!(events(&gateway, "verify_resumed").len(), 1);
    // Once more, amidst the disk.
    gateway.until("some progress", |_| {
        kept(&gateway).is_some_and(|kept| kept["place"]["disks"]["sectors"].as_u64() > Some(8192))
    });
    let before = kept(&gateway).expect("under way");
    gateway.kill();
    gateway.restart();
    let last = |status: &Value| status["groups"][0]["verify"]["last"].clone();
    let done = last(&gateway.until("its end", |status| last(status)["faults"] == 0));
    assert_eq!(events(&gateway, "verify_resumed").len(), 2);
    assert_eq!(events(&gateway, "verify_done").len(), 1);
    // Half of the image and of what the point shows of it, and what was read before; not all of it again.
    let read = done["read_bytes"].as_u64().expect("a number");
    assert!(read >= (8 << 20) + 1000, "{done} {before}");
    assert!(read < (16 << 20), "{done} {before}");
    assert_eq!(kept(&gateway), None);
}

#[test]
fn one_that_was_asked_for_goes_on_in_the_background_and_its_end_is_an_event() {
    let mut gateway = filled("[verify]\nevery = \"never\"\nrate = \"100MiB\"\n");
    let client = gateway.start_cli("verify erp --rate 1M");
    gateway.until("some progress", |_| is_amidst_disks(&gateway));
    gateway.kill();
    let told = refusal(&client.wait_with_output().expect("it ends"), 1);
    assert!(told.contains("in the background") && told.contains("afterimage events"), "{told}");
    gateway.restart();
    gateway.until("its end", |_| !events(&gateway, "verify_done").is_empty());
    let told = events(&gateway, "verify_resumed");
    assert!(told[0]["message"].as_str().expect("text").contains("somebody asked"), "{told:?}");
    assert_eq!(gateway.group_status()["verify"]["last"], Value::Null, "it was no whole one");
    assert_eq!(kept(&gateway), None);
    // Who gives it up has it given up.
    let mut client = gateway.start_cli("verify erp --rate 1M");
    gateway.until("some progress", |_| is_amidst_disks(&gateway));
    kill_process(Pid::from_child(&client), Signal::INT).expect("it runs");
    client.wait().expect("it ends");
    gateway.until("nothing that is kept", |_| kept(&gateway).is_none());
}

/// A review found that the next gateway went on with the one group whose turn it was, and forgot the others.
#[test]
fn one_of_all_vaults_goes_on_with_each_that_is_left() {
    const GROUPS: [&str; 3] = ["erp", "web", "mail"];
    let mut gateway = filled("[verify]\nevery = \"never\"\nrate = \"100MiB\"\n");
    for group in &GROUPS[1..] {
        gateway.says(&format!("group create {group}"));
        gateway.says(&format!("disk create {group}/db --size 1M"));
        tool::says("qemu-io", ["-f", "raw", "-c", "write -P 1 0 1M", &gateway.uri(&format!("{group}/db"))]);
        gateway.says(&format!("point create {group} --label written"));
    }
    let marks = GROUPS.map(|group| verifying_of(&gateway, group));
    let all_waiting = |_: &Value| marks.iter().all(|path| kept_at(path).is_some());
    // The rate is such that none comes to its end.
    let mut client = gateway.start_cli("vault verify --rate 1k");
    gateway.until("all of them", all_waiting);
    // Who gives it up gives all of it up.
    kill_process(Pid::from_child(&client), Signal::INT).expect("it runs");
    client.wait().expect("it ends");
    gateway.until("nothing that is kept", |_| marks.iter().all(|path| kept_at(path).is_none()));

    let client = gateway.start_cli("vault verify --rate 1k");
    gateway.until("all of them", all_waiting);
    gateway.terminate();
    let told = refusal(&client.wait_with_output().expect("it ends"), 1);
    assert!(told.contains("in the background") && !told.contains("start one"), "{told}");
    gateway.restart();
    for group in GROUPS {
        gateway.until("its end", |_| !events_of(&gateway, group, "verify_done").is_empty());
        assert_eq!(events_of(&gateway, group, "verify_resumed").len(), 1, "{group}");
    }
    gateway.until("nothing that is kept", |_| marks.iter().all(|path| kept_at(path).is_none()));
}

#[test]
fn one_that_began_before_damage_was_found_declares_it_mended_no_more() {
    let (mut gateway, _, blob) = with_four_points();
    let created = gateway.json("group list")[0]["created"].as_str().expect("a time").to_owned();
    let path = verifying(&gateway);
    damage(&blob, 260);
    gateway.refuses("vault verify erp", 1);
    gateway.terminate();
    // One that was past the place before it was damaged, or read it from a cache: what is left of it is sound.
    let place = format!(r#"{{"blobs":{{"through":{}}}}}"#, u64::MAX);
    let mark =
        format!(r#"{{"version":1,"started":"{created}","scope":"vault","place":{place},"read_bytes":1}}"#);
    fs::write(path, mark).unwrap();
    gateway.restart();
    gateway.until("its end", |_| !events(&gateway, "verify_done").is_empty());
    assert_eq!(events(&gateway, "verify_resumed").len(), 1);
    assert_eq!(gateway.group_status()["state"]["reason"]["code"], "verify_found");
    assert!(events(&gateway, "verify_mended").is_empty());
    // The damage is there still, and one that begins now finds it.
    gateway.refuses("vault verify erp", 1);
}

#[test]
fn a_damaged_delta_names_its_points_and_degrades_its_group_until_it_is_put_back() {
    let (mut gateway, points, blob) = with_four_points();
    let was = damage(&blob, 260);
    let output = gateway.cli("vault verify").output().expect("runs");
    let told = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{told}");
    let named = [blob.display().to_string(), format!("; 2 recovery points need it: {} of ", points[0])];
    assert!(named.iter().all(|text| told.contains(text)), "{told}");
    assert!(told.contains(&points[1]) && told.contains("(second)") && !told.contains(&points[2]), "{told}");
    let output = gateway.cli("vault verify erp --json").output().expect("runs");
    let report: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    let harmed = report["harmed"].as_array().expect("a list").iter();
    let harmed: Vec<_> = harmed.map(|point| (&point["group"], &point["id"], &point["label"])).collect();
    let expected = [(&points[0], "first"), (&points[1], "second")];
    let expected = expected.map(|(id, label)| (Value::from("erp"), Value::from(&id[..]), Value::from(label)));
    assert_eq!(harmed, expected.iter().map(|(group, id, label)| (group, id, label)).collect::<Vec<_>>());

    let is_degraded = |gateway: &Gateway| {
        let state = gateway.group_status()["state"].clone();
        assert_eq!(state["condition"], "degraded");
        assert_eq!(state["reason"]["code"], "verify_found");
        let (why, mend) = (state["reason"]["detail"].to_string(), state["reason"]["mend"].to_string());
        assert!(why.contains("2 recovery points") && points[..2].iter().all(|id| why.contains(id)), "{why}");
        assert!(why.contains(&*blob.to_string_lossy()) && !why.contains(&points[2]), "{why}");
        assert!(mend.contains("earlier copy") && mend.contains("vault repair"), "{mend}");
        let group = gateway.json("group list")[0].clone();
        assert_eq!(
            (&group["condition"], &group["damage"]["reason"]),
            (&state["condition"], &state["reason"])
        );
        assert!(gateway.says("group list").contains("DEGRADED: damaged"));
        assert!(gateway.says("status").contains(&points[1]));
    };
    is_degraded(&gateway);
    gateway.terminate();
    gateway.restart();
    is_degraded(&gateway);
    put(&blob, 260, was);
    is_degraded(&gateway);
    assert!(gateway.says("vault verify erp").contains("0 faults"));
    assert_eq!(gateway.group_status()["state"]["condition"], "protected");
    let events = gateway.json("events --group erp");
    assert!(events.as_array().expect("a list").iter().any(|event| event["code"] == "verify_mended"));
    gateway.kill();
    gateway.restart();
    assert_eq!(gateway.group_status()["state"]["condition"], "protected");
}

#[test]
fn a_group_is_no_longer_degraded_once_the_harmed_points_are_gone() {
    let (gateway, points, blob) = with_four_points();
    damage(&blob, 260);
    gateway.refuses("vault verify erp", 1);
    gateway.says(&format!("point delete erp {} --yes", points[1]));
    let why = gateway.group_status()["state"]["reason"]["detail"].to_string();
    assert!(why.contains("1 recovery point: ") && why.contains(&points[0]), "{why}");
    gateway.says(&format!("point delete erp {} --yes", points[0]));
    assert_eq!(gateway.group_status()["state"]["condition"], "protected");
    gateway.until("the base without the damage", |_| !blob.exists());
    assert!(gateway.says("vault verify erp").contains("0 faults"));
}
