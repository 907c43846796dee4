//! Groups that cannot be opened: they stay listed under their names, their vaults give what they have, and once what was
//! damaged is put back they are opened again. A review found that they vanished, and their names were free.

use std::fs;
use std::path::{Path, PathBuf};

use afterimage::capture::nbd::client::{Client, Wishes};
use serde_json::Value;

use crate::content::{assert_same_bytes, content, files};
use crate::gateway::Gateway;
use crate::tool;

const DISK_BYTES: usize = 2 << 20;
/// A bit in it is flipped where a file is damaged: inside the headers of a frame and of a step.
const DAMAGED_BYTE: usize = 100;

/// A gateway that was killed with four groups of one disk each, of which it will find three damaged.
struct Site {
    gateway: Gateway,
    /// A durable frame of its journal has a flipped bit.
    erp: GroupId,
    /// Its journal is missing.
    web: GroupId,
    /// A manifest step has a flipped bit.
    sap: GroupId,
}

struct GroupId(String);

impl GroupId {
    fn of(gateway: &Gateway, group: &str) -> GroupId {
        GroupId(gateway.json(&format!("group show {group}"))["id"].as_str().expect("text").to_owned())
    }

    fn files(&self, gateway: &Gateway, name: &str) -> PathBuf {
        gateway.data().join("groups").join(&self.0).join(name)
    }

    fn vault(&self, gateway: &Gateway, name: &str) -> PathBuf {
        gateway.data().join("vault").join(&self.0).join(name)
    }
}

fn old_content(seed: u64) -> Vec<u8> {
    content(seed, DISK_BYTES)
}

fn new_content(seed: u64) -> Vec<u8> {
    content(seed + 100, DISK_BYTES)
}

const GROUPS: [(&str, u64); 4] = [("crm", 1), ("erp", 2), ("sap", 3), ("web", 4)];

#[track_caller]
fn write(gateway: &Gateway, export: &str, bytes: &[u8]) {
    let file = gateway.path("written");
    fs::write(&file, bytes).unwrap();
    tool::says("nbdcopy", ["--flush", file.to_str().expect("UTF-8"), &gateway.uri(export)]);
}

#[track_caller]
fn assert_serves(gateway: &Gateway, export: &str, bytes: &[u8]) {
    let file = gateway.path("served");
    tool::says("nbdcopy", [&gateway.uri(export), file.to_str().expect("UTF-8")]);
    assert_same_bytes(&fs::read(file).unwrap(), bytes);
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[DAMAGED_BYTE] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

impl Site {
    fn damaged() -> Site {
        let mut site = Site::sound();
        site.gateway.kill();
        site.damage();
        site.gateway.restart();
        site
    }

    /// Each group has a point `old`, `erp` a test failover of it, and newer content.
    fn sound() -> Site {
        let gateway = Gateway::start();
        for (group, seed) in GROUPS {
            gateway.says(&format!("group create {group}"));
            gateway.says(&format!("policy set {group} --interval 24h"));
            gateway.says(&format!("disk create {group}/db --size 2M"));
            write(&gateway, &format!("{group}/db"), &old_content(seed));
            gateway.says(&format!("point create {group} --label old"));
        }
        gateway.says("failover test erp --point old");
        for (group, seed) in GROUPS {
            write(&gateway, &format!("{group}/db"), &new_content(seed));
        }
        let [erp, web, sap] = ["erp", "web", "sap"].map(|group| GroupId::of(&gateway, group));
        Site { gateway, erp, web, sap }
    }

    fn segment(&self) -> PathBuf {
        self.erp.files(&self.gateway, "journal/segment-00000000")
    }

    fn journal(&self) -> PathBuf {
        self.web.files(&self.gateway, "journal")
    }

    fn step(&self) -> PathBuf {
        self.sap.vault(&self.gateway, "manifest/0000000000000002")
    }

    fn damage(&self) {
        flip(&self.segment());
        fs::rename(self.journal(), self.gateway.path("journal-elsewhere")).unwrap();
        flip(&self.step());
    }

    fn put_back(&self) {
        flip(&self.segment());
        // The opening that failed made a directory in its place.
        let _ = fs::remove_dir(self.journal());
        fs::rename(self.gateway.path("journal-elsewhere"), self.journal()).unwrap();
        flip(&self.step());
    }
}

fn listed<'a>(groups: &'a Value, name: &str) -> &'a Value {
    let groups = groups.as_array().expect("a list");
    groups
        .iter()
        .find(|group| group["name"] == name)
        .unwrap_or_else(|| panic!("{name} is listed: {groups:?}"))
}

#[test]
fn they_are_listed_with_name_reason_and_mend() {
    let site = Site::damaged();
    let gateway = &site.gateway;
    let groups = gateway.json("group list");
    assert_eq!(groups.as_array().map(Vec::len), Some(4), "{groups:#}");
    assert_eq!(listed(&groups, "crm")["failure"], Value::Null);
    for (name, id, code, says) in [
        ("erp", &site.erp, "corrupt", "segment-00000000"),
        ("web", &site.web, "corrupt", "journal"),
        ("sap", &site.sap, "corrupt", "manifest/0000000000000002"),
    ] {
        let failure = &listed(&groups, name)["failure"];
        assert_eq!(listed(&groups, name)["id"], id.0, "{groups:#}");
        assert_eq!(failure["reason"]["code"], code, "{failure:#}");
        let text = failure["reason"]["detail"].as_str().expect("text");
        assert!(name == "erp" || text.contains(says), "{text}");
        assert!(failure["reason"]["mend"].as_str().expect("text").contains(&format!("group resume {name}")));
        assert!(gateway.says(&format!("group show {name}")).contains("FAILED"));
    }
    // What the manifest says is shown where it can be read, else what the catalogue knew.
    let disks = gateway.json("disk list");
    let shown: Vec<_> =
        disks.as_array().unwrap().iter().map(|disk| (&disk["export"], &disk["served"])).collect();
    let [yes, no] = [Value::Bool(true), Value::Bool(false)];
    let names = ["crm/db", "erp/db", "sap/db", "web/db"].map(Value::from);
    assert_eq!(shown, [(&names[0], &yes), (&names[1], &no), (&names[2], &no), (&names[3], &no)]);

    let status = gateway.json("status");
    let conditions: Vec<_> =
        status["groups"].as_array().unwrap().iter().map(|group| &group["state"]["condition"]).collect();
    assert_eq!(conditions, ["protected", "failed", "failed", "failed"]);
    assert_eq!(status["groups"][1]["history"]["points"], 1, "its vault has it");
    assert_eq!(status["groups"][1]["lsn"], Value::Null, "nobody knows");
    let text = gateway.says("status");
    assert!(text.contains("FAILED") && text.contains("'group resume erp'"), "{text}");
}

#[test]
fn their_names_are_taken_and_their_disks_refused_with_the_reason() {
    let site = Site::damaged();
    let gateway = &site.gateway;
    for name in ["erp", "web", "sap"] {
        assert!(gateway.refuses(&format!("group create {name}"), 1).contains("already"));
        for line in ["disk create NAME/log --size 1M", "point create NAME", "policy set NAME --interval 1s"] {
            let told = gateway.refuses(&line.replace("NAME", name), 1);
            let reason = format!("group {name} could not be opened: ");
            assert!(told.contains(&reason) && told.contains(&format!("'group resume {name}'")), "{told}");
        }
        let client = Client::connect(gateway.connect(), Wishes::all(format!("{name}/db")));
        let Err(error) = client else { panic!("{name}/db is not served") };
        let told = error.to_string();
        assert!(told.contains(&format!("group {name} could not be opened: ")), "{told}");
    }
    // The others never notice.
    assert_serves(gateway, "crm/db", &new_content(1));
    gateway.says("disk create crm/log --size 1M");
}

#[test]
fn their_points_are_reached_over_the_vault_alone() {
    let site = Site::damaged();
    let gateway = &site.gateway;
    for (name, seed) in [("erp", 2), ("web", 4)] {
        assert_eq!(gateway.json(&format!("point list {name}"))[0]["label"], "old");
        let directory = gateway.path(format!("restored-{name}"));
        gateway.says(&format!("restore {name} --point old --to {}", directory.display()));
        assert_same_bytes(&fs::read(directory.join("db.raw")).unwrap(), &old_content(seed));
        let test = gateway.json(&format!("failover test {name} --point latest"));
        let export = test["exports"][0]["export"].as_str().expect("text").to_owned();
        assert_serves(gateway, &export, &old_content(seed));
        write(gateway, &export, &new_content(seed));
        assert_serves(gateway, &export, &new_content(seed));
        gateway.says(&format!("failover cleanup {name} --test {} --yes", test["number"]));
        tool::fails("nbdinfo", [gateway.uri(&export)]);
    }
    // The one from before the damage is served as it was.
    assert_serves(gateway, "erp/db@test-1", &old_content(2));
    gateway.says("failover cleanup erp --all --yes");
    assert_eq!(gateway.json("failover list"), Value::Array(Vec::new()));
    // Without a manifest there are no points, which is said.
    for line in
        ["point list sap", "failover test sap --point latest", "restore sap --point latest --to /tmp/none"]
    {
        assert!(gateway.refuses(line, 1).contains("manifest/0000000000000002"), "{line}");
    }
}

#[test]
fn their_vaults_are_verified() {
    let mut site = Site::damaged();
    let output = site.gateway.cli("vault verify --json").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "damage is no success");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["groups"], report["faults"].as_array().map(Vec::len)),
        (&4.into(), Some(1)),
        "{report:#}"
    );
    assert!(report["faults"][0].as_str().unwrap().contains("manifest/0000000000000002"), "{report:#}");
    let gateway = &mut site.gateway;
    gateway.says("vault verify erp");
    let blobs = files(&site.erp.vault(gateway, "blobs"), "delta");
    flip(&blobs[0]);
    let output = gateway.cli("vault verify erp").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stdout).unwrap().contains(".delta"), "and names the file");
    // Put back, the manifest is read as it is now, though the group is not open yet.
    flip(&blobs[0]);
    site.put_back();
    site.gateway.says("vault verify");
}

#[test]
fn the_right_one_is_removed_by_name_or_by_id() {
    let mut site = Site::damaged();
    site.gateway.says("group remove erp --yes");
    site.gateway.says(&format!("group remove {} --yes", site.sap.0));
    for id in [&site.erp, &site.sap] {
        assert!(!id.files(&site.gateway, "").exists() && !id.vault(&site.gateway, "").exists());
    }
    let told = site.gateway.refuses(&format!("group remove {} --yes", site.sap.0), 1);
    assert!(told.contains("there is no group"), "{told}");
    site.gateway.says("group create erp");
    site.gateway.says("disk create erp/db --size 1M");
    site.gateway.kill();
    site.gateway.restart();
    let groups = site.gateway.json("group list");
    let names: Vec<_> = groups.as_array().unwrap().iter().map(|group| &group["name"]).collect();
    assert_eq!(names, ["crm", "erp", "web"]);
    assert_eq!(listed(&groups, "erp")["failure"], Value::Null);
    assert_ne!(listed(&groups, "erp")["id"], site.erp.0, "another one");
}

#[test]
fn they_are_opened_again_once_the_files_are_back() {
    let mut site = Site::damaged();
    for name in ["erp", "web", "sap"] {
        let told = site.gateway.refuses(&format!("group resume {name}"), 1);
        assert!(told.contains(&format!("group {name} could not be opened: ")), "{told}");
    }
    // A test failover that is started meanwhile goes on.
    site.gateway.says("failover test web --point old");
    site.put_back();
    for (name, seed) in [("erp", 2), ("web", 4), ("sap", 3)] {
        assert!(site.gateway.says(&format!("group resume {name}")).contains("open again"));
        assert_serves(&site.gateway, &format!("{name}/db"), &new_content(seed));
        write(&site.gateway, &format!("{name}/db"), &old_content(seed + 50));
        site.gateway.says(&format!("point create {name}"));
    }
    assert_serves(&site.gateway, "web/db@test-1", &old_content(4));
    assert_serves(&site.gateway, "erp/db@test-1", &old_content(2));
    assert!(
        site.gateway.says("group resume erp").contains("nothing is latched"),
        "and no harm in doing it again"
    );
    site.gateway.until("all protected", |status| {
        status["groups"].as_array().unwrap().iter().all(|group| group["state"]["condition"] == "protected")
    });
    site.gateway.terminate();
    site.gateway.restart();
    for (name, seed) in [("erp", 2), ("web", 4), ("sap", 3)] {
        assert_serves(&site.gateway, &format!("{name}/db"), &old_content(seed + 50));
    }
    assert_eq!(site.gateway.logged("could not be opened"), Vec::<String>::new());
}

/// Without manifest and catalogue the id is all that is left.
#[test]
fn a_group_whose_name_is_lost_goes_by_its_id() {
    let mut site = Site::sound();
    site.gateway.kill();
    site.damage();
    for name in ["catalogue.sqlite", "catalogue.sqlite-wal", "catalogue.sqlite-shm"] {
        let _ = fs::remove_file(site.gateway.data().join(name));
    }
    site.gateway.restart();
    let id = &site.sap.0;
    let groups = site.gateway.json("group list");
    assert_eq!(listed(&groups, id)["failure"]["reason"]["code"], "corrupt");
    assert_eq!(listed(&groups, id)["disks"], Value::Null, "nobody knows how many");
    // Its name is nobody's now: whoever takes it has it.
    site.gateway.says("group create sap");
    flip(&site.step());
    assert!(site.gateway.says(&format!("group resume {id}")).contains("open again"));
    assert_serves(&site.gateway, &format!("{id}/db"), &new_content(3));
    site.gateway.says("group remove sap --yes");
    assert_serves(&site.gateway, &format!("{id}/db"), &new_content(3));
    site.gateway.kill();
    site.gateway.restart();
    assert_serves(&site.gateway, "sap/db", &new_content(3));
}

/// A creation that a crash cut off left nothing that anybody was told of.
#[test]
fn a_vault_in_which_nothing_began_is_cleared_away_and_a_lost_one_is_not() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "1M")]);
    let erp = GroupId::of(&gateway, "erp");
    gateway.kill();
    let unbegun = gateway.data().join("vault").join("0123456789abcdef0123456789abcdef");
    fs::create_dir_all(unbegun.join("manifest")).unwrap();
    fs::rename(erp.vault(&gateway, ""), gateway.path("vault-elsewhere")).unwrap();
    gateway.restart();
    assert!(!unbegun.exists());
    let groups = gateway.json("group list");
    assert_eq!(listed(&groups, "erp")["failure"]["reason"]["code"], "missing", "{groups:#}");
    fs::rename(gateway.path("vault-elsewhere"), erp.vault(&gateway, "")).unwrap();
    gateway.says("group resume erp");
    assert_serves(&gateway, "erp/db", &vec![0; 1 << 20]);
}

#[test]
fn a_time_that_no_point_holds_is_refused() {
    let gateway = Gateway::start();
    gateway.protect([("db", "1M")]);
    gateway.says("policy set erp --interval 24h");
    write(&gateway, "erp/db", &content(1, 1 << 20));
    let point = gateway.json("point create erp --label only");
    let [id, time] = ["id", "time"].map(|key| point[key].as_str().expect("text"));
    let directory = gateway.path("restored").display().to_string();
    for (asked, says) in [("2200-01-01T00:00:00Z", "lies in the future"), ("0s ago", "`point create`")] {
        for line in [
            format!("failover test erp --point {asked}"),
            format!("restore erp --to {directory} --point {asked}"),
        ] {
            let mut command = gateway.cli(line.rsplit_once(" --point ").expect("a point").0);
            let output = command.args(["--point", asked]).output().unwrap();
            let told = crate::gateway::refusal(&output, 1);
            assert!(told.contains(says) && told.contains(id), "{told}");
        }
    }
    assert_eq!(gateway.json("failover list"), Value::Array(Vec::new()));
    assert!(!Path::new(&directory).exists());
    gateway.says(&format!("failover test erp --point {time}"));
    assert_serves(&gateway, "erp/db@test-1", &content(1, 1 << 20));
}

#[test]
fn a_label_that_two_points_have_chooses_neither() {
    let gateway = Gateway::start();
    gateway.protect([("db", "1M")]);
    gateway.says("policy set erp --interval 24h");
    let mut ids = Vec::new();
    for others in 0..2 {
        write(&gateway, "erp/db", &content(others, 1 << 20));
        let point = gateway.json("point create erp --label nightly");
        assert_eq!(point["same_label"], others, "{point:#}");
        ids.push(point["id"].as_str().expect("text").to_owned());
    }
    let told = gateway.refuses("failover test erp --point nightly", 1);
    assert!(ids.iter().all(|id| told.contains(id)), "{told}");
    gateway.says(&format!("failover test erp --point {}", ids[0]));
    assert_serves(&gateway, "erp/db@test-1", &content(0, 1 << 20));
}

/// The manifest step after the newest.
fn next_step(gateway: &Gateway, group: &GroupId) -> PathBuf {
    let manifest = group.vault(gateway, "manifest");
    let names = fs::read_dir(&manifest).unwrap().map(|entry| entry.unwrap().file_name());
    let newest = names.filter_map(|name| name.to_str()?.parse::<u64>().ok()).max().expect("a step");
    manifest.join(format!("{:016}", newest + 1))
}

#[test]
fn a_vault_that_contradicted_itself_takes_points_again_after_a_resume() {
    let site = Site::sound();
    let gateway = &site.gateway;
    let stranger = next_step(gateway, &site.erp);
    fs::write(&stranger, "no step of ours").unwrap();
    gateway.refuses("point create erp --label refused", 1);
    let status = gateway.until("the vault's failure", |status| status.to_string().contains("vault_failed"));
    assert!(status.to_string().contains("group resume"), "{status:#}");
    let still = gateway.refuses("group resume erp", 1);
    assert!(still.contains("manifest"), "{still}");
    assert_serves(gateway, "erp/db@test-1", &old_content(2));
    fs::remove_file(&stranger).unwrap();
    gateway.says("group resume erp");
    gateway.says("point create erp --label found");
    assert_serves(gateway, "erp/db", &new_content(2));
    assert_serves(gateway, "erp/db@test-1", &old_content(2));
    assert_serves(gateway, "crm/db", &new_content(1));
    let points = gateway.says("point list erp");
    // The refused one's marker was durable, and so it is published after all.
    assert!(points.contains("found") && points.contains("refused"), "{points}");
}

/// A review found that exports were withdrawn first, and stayed so when the manifest did not take the removal.
#[test]
fn what_could_not_be_removed_is_still_served() {
    let site = Site::sound();
    let gateway = &site.gateway;
    for verb in ["disk remove web/db --yes", "group remove web --yes"] {
        let stranger = next_step(gateway, &site.web);
        fs::write(&stranger, "no step of ours").unwrap();
        gateway.refuses(verb, 1);
        assert_serves(gateway, "web/db", &new_content(4));
        fs::remove_file(&stranger).unwrap();
        assert_serves(gateway, "web/db", &new_content(4));
    }
    gateway.says("group remove web --yes");
    assert!(!gateway.says("group list").contains("web"));
}

#[test]
fn no_group_is_named_like_the_id_of_another() {
    let site = Site::sound();
    let refused = site.gateway.refuses(&format!("group create {}", site.erp.0), 1);
    assert!(refused.contains("another name"), "{refused}");
    site.gateway.says("group create cafe");
}

/// The step that stopped the opening hid what was wrong with those behind it.
#[test]
fn every_damaged_step_of_a_manifest_is_named_though_its_vault_cannot_be_opened() {
    let mut site = Site::sound();
    site.gateway.kill();
    let steps = ["manifest/0000000000000002", "manifest/0000000000000004"];
    let steps = steps.map(|step| site.sap.vault(&site.gateway, step));
    steps.iter().for_each(|step| flip(step));
    site.gateway.restart();
    let output = site.gateway.cli("vault verify sap --json").output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    let faults: Vec<&str> = report["faults"]
        .as_array()
        .expect("faults")
        .iter()
        .map(|fault| fault.as_str().expect("text"))
        .collect();
    assert_eq!((output.status.code(), faults.len()), (Some(1), 2), "{report:#}");
    assert!(faults[0].contains("cannot be opened"), "{report:#}");
    for (fault, step) in faults.iter().zip(&steps) {
        assert!(fault.contains(step.to_str().expect("UTF-8")), "{report:#}");
    }
}
