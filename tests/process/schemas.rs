//! What a real gateway's commands print with `--json`, and what its API answers, is what the committed schemas say: docs/api.

use std::fs;

use serde_json::Value;

use crate::gateway::{Gateway, Setup};
use crate::schema::Document;
use crate::tool;

/// What commands print, held against the schemas.
struct Examination {
    document: Document,
    examined: Vec<&'static str>,
}

impl Examination {
    fn begin() -> Examination {
        Examination { document: Document::committed("cli"), examined: Vec::new() }
    }

    /// Has a command say something; `line` begins with the command, and may fail once it has said it.
    #[track_caller]
    fn examine(&mut self, gateway: &Gateway, command: &'static str, line: &str) -> Value {
        let output = gateway.cli(&format!("{line} --json")).output().expect("the program");
        let errors = String::from_utf8_lossy(&output.stderr);
        let value: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{line} prints JSON ({error}): {errors}"));
        let schema = self.document.schema(&format!("/commands/{command}"));
        let faults = self.document.faults(schema, &value);
        assert!(faults.is_empty(), "{line}: {}\n{value:#}", faults.join("\n"));
        self.examined.push(command);
        value
    }

    /// The commands of the document that were not examined.
    fn left(&self) -> Vec<&str> {
        let commands = self.document.schema("/commands").as_object().expect("commands");
        commands.keys().map(String::as_str).filter(|command| !self.examined.contains(command)).collect()
    }
}

#[test]
fn what_commands_print_is_what_their_schemas_say() {
    let hook =
        "[verify]\nevery = \"1s\"\n[[hooks]]\nname = \"page\"\nseverity = \"info\"\nexec = [\"/bin/true\"]\n";
    let mut gateway = Gateway::with(&Setup { more: hook, tcp: true, ..Setup::default() });
    let mut all = Examination::begin();
    protect_and_write(&mut all, &gateway);
    change_points(&mut all, &gateway);
    look_around(&mut all, &gateway);
    look_offline(&mut all, &mut gateway);
    remove_everything(&mut all, &gateway);
    // They need root and FUSE, a vault that is elsewhere, or go on for ever: `--test clients`, `adoption` and `events` have them.
    assert_eq!(all.left(), ["events --follow", "point mount", "point unmount", "vault adopt"]);
}

fn protect_and_write(all: &mut Examination, gateway: &Gateway) {
    all.examine(gateway, "group create", "group create erp");
    all.examine(gateway, "disk create", "disk create erp/db --size 8M");
    let raw = gateway.path("disk.raw");
    fs::write(&raw, [7; 4096]).expect("writable");
    all.examine(gateway, "disk create", &format!("disk create erp/log --import {}", raw.display()));
    all.examine(gateway, "disk resize", "disk resize erp/db --size 16M");
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 1 0 1M", &gateway.uri("erp/db")]);
    all.examine(gateway, "policy set", "policy set erp --interval 24h --retain 1h:all,24h:1m");
    all.examine(gateway, "policy set --dry-run", "policy set erp --retain 1h:all --dry-run");
}

fn change_points(all: &mut Examination, gateway: &Gateway) {
    all.examine(gateway, "point create", "point create erp --label first");
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 2 0 1M", &gateway.uri("erp/db")]);
    all.examine(gateway, "point create", "point create erp");
    all.examine(gateway, "point hold", "point hold erp first");
    all.examine(gateway, "point list", "point list erp");
    all.examine(gateway, "failover test", "failover test erp --point first");
    all.examine(gateway, "failover list", "failover list");
    all.examine(gateway, "failover cleanup", "failover cleanup erp --all --yes");
    all.examine(gateway, "point release", "point release erp first");
    let to = gateway.path("restored");
    all.examine(gateway, "restore", &format!("restore erp --point first --to {}", to.display()));
    all.examine(gateway, "point delete", "point delete erp first --yes");
}

fn look_around(all: &mut Examination, gateway: &Gateway) {
    all.examine(gateway, "verify", "verify erp");
    all.examine(gateway, "vault verify", "vault verify");
    all.examine(gateway, "vault repair", "vault repair erp");
    all.examine(gateway, "token create", "token create ci --role read --expires 1h");
    all.examine(gateway, "token list", "token list");
    all.examine(gateway, "token revoke", "token revoke ci");
    all.examine(gateway, "key show", "key show");
    all.examine(gateway, "key rotate", "key rotate --new-group-keys");
    let key = gateway.path("site.key");
    all.examine(gateway, "key export", &format!("key export {}", key.display()));
    all.examine(gateway, "key import", &format!("key import {} --yes", key.display()));
    all.examine(gateway, "hooks test", "hooks test page");
    all.examine(gateway, "hooks list", "hooks list");
    all.examine(gateway, "attach", "attach erp/db --for qemu");
    all.examine(gateway, "group pause", "group pause erp");
    all.examine(gateway, "check", "check");
    all.examine(gateway, "group resume", "group resume erp");
    all.examine(gateway, "group show", "group show erp");
    all.examine(gateway, "group list", "group list");
    all.examine(gateway, "disk list", "disk list erp");
    gateway
        .until("a verification in the background", |status| !status["groups"][0]["verify"]["last"].is_null());
    all.examine(gateway, "status", "status");
    all.examine(gateway, "report", "report erp");
    let jobs = all.examine(gateway, "jobs", "jobs");
    let id = jobs[0]["id"].as_str().expect("an id").to_owned();
    all.examine(gateway, "job show", &format!("job show {id}"));
    all.examine(gateway, "job cancel", &format!("job cancel {id}"));
    all.examine(gateway, "audit", "audit");
    all.examine(gateway, "events", "events");
}

fn look_offline(all: &mut Examination, gateway: &mut Gateway) {
    let configuration = gateway.configuration();
    let configuration = configuration.display();
    // They ask no gateway, and are told of none.
    all.examine(gateway, "doctor", &format!("doctor --config {configuration}"));
    let group = gateway.json("group list")[0]["id"].as_str().expect("an id").to_owned();
    let journal = gateway.data().join("groups").join(&group).join("journal");
    all.examine(gateway, "journal inspect", &format!("journal inspect {} --records", journal.display()));
    gateway.terminate();
    all.examine(gateway, "journal verify", &format!("journal verify {}", journal.display()));
    // One that cannot be opened.
    let images = gateway.data().join("groups").join(&group).join("images");
    fs::rename(&images, images.with_extension("elsewhere")).expect("there");
    gateway.restart();
    all.examine(gateway, "status", "status");
    all.examine(gateway, "group list", "group list");
    all.examine(gateway, "group resume", "group resume erp");
    all.examine(gateway, "check", "check");
    gateway.terminate();
    fs::remove_dir_all(&images).expect("there again, with nothing in it");
    fs::rename(images.with_extension("elsewhere"), &images).expect("there");
    gateway.restart();
}

fn remove_everything(all: &mut Examination, gateway: &Gateway) {
    all.examine(gateway, "disk remove", "disk remove erp/log --yes");
    all.examine(gateway, "group remove", "group remove erp --yes");
}

#[test]
fn the_gateway_serves_the_text_that_is_committed_and_answers_so() {
    let gateway = Gateway::start();
    gateway.protect([("db", "2M")]);
    gateway.says("point create erp");
    let document = Document::committed("openapi");
    assert_eq!(&gateway.api_get("/openapi.json"), document.schema(""));
    for (route, path, query) in [
        ("/v1/status", "/v1/status", ""),
        ("/v1/groups", "/v1/groups", ""),
        ("/v1/groups/{group}", "/v1/groups/erp", ""),
        ("/v1/groups/{group}/points", "/v1/groups/erp/points", ""),
        ("/v1/groups/{group}/report", "/v1/groups/erp/report", "?last_ms=3600000"),
        ("/v1/disks", "/v1/disks", "?group=erp"),
        ("/v1/events", "/v1/events", ""),
        ("/v1/events", "/v1/events", "?wait_ms=0&after=0"),
        ("/v1/audit", "/v1/audit", ""),
        ("/v1/hooks", "/v1/hooks", ""),
        ("/v1/tests", "/v1/tests", ""),
        ("/v1/keys", "/v1/keys", ""),
        ("/v1/jobs", "/v1/jobs", ""),
    ] {
        let route = route.replace('/', "~1");
        let pointer = format!("/paths/{route}/get/responses/200/content/application~1json/schema");
        let answer = gateway.api_get(&format!("{path}{query}"));
        let faults = document.faults(document.schema(&pointer), &answer);
        assert!(faults.is_empty(), "{path}{query}: {}\n{answer:#}", faults.join("\n"));
    }
    let refusal = gateway.api_get("/v1/groups/none");
    let schema = document.schema("/components/schemas/ApiError");
    assert_eq!(document.faults(schema, &refusal), Vec::<String>::new(), "{refusal}");
    assert_ne!(document.faults(schema, &serde_json::json!({"kind": "odd", "more": 1})), Vec::<String>::new());
}
