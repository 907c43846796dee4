//! Events that are followed, the audit trail and jobs, over restarts and without the catalogue that keeps them.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::gateway::{Gateway, PATIENCE, Setup, wait};

/// What a follower prints.
struct Follower {
    child: Child,
    lines: Receiver<Value>,
}

/// A test that fails leaves none behind.
impl Drop for Follower {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Follower {
    fn of(gateway: &Gateway, line: &str) -> Follower {
        let mut child = gateway.start_cli(line);
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // A test that has seen enough listens no longer.
                let _ = sender.send(serde_json::from_str(&line).expect("a JSON object a line"));
            }
        });
        Follower { child, lines }
    }

    /// The events up to the next one with that code.
    fn up_to(&self, code: &str) -> Vec<Value> {
        let mut events = Vec::new();
        while events.last().is_none_or(|event: &Value| event["code"] != code) {
            events.push(self.lines.recv_timeout(PATIENCE).expect(code));
        }
        events
    }

    /// Ctrl-C, after which it must end well; what it complained of.
    fn interrupt(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        assert!(wait(&mut self.child).success());
        let mut complaints = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut complaints).unwrap();
        complaints
    }
}

#[test]
fn who_follows_gets_each_event_once_over_restarts() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "2M")]);
    let follower = Follower::of(&gateway, "events --follow --json --since 1h");
    gateway.says("group pause erp");
    let mut events = follower.up_to("paused");
    gateway.kill();
    gateway.restart();
    gateway.says("group resume erp");
    events.extend(follower.up_to("resumed"));
    gateway.terminate();
    gateway.restart();
    gateway.says("group pause erp");
    events.extend(follower.up_to("paused"));
    let ids: Vec<u64> = events.iter().map(|event| event["id"].as_u64().unwrap()).collect();
    let all: Vec<u64> = (1..=ids.len() as u64).collect();
    assert_eq!(ids, all, "none is lost, none repeated");
    assert!(follower.interrupt().contains("waiting for it"));
}

#[test]
fn a_catalogue_that_was_begun_anew_is_said_and_followed() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "2M")]);
    let follower = Follower::of(&gateway, "events --follow --json --since 1h --severity info");
    gateway.says("group pause erp");
    follower.up_to("paused");
    gateway.terminate();
    for entry in fs::read_dir(gateway.data()).unwrap().map(Result::unwrap) {
        if entry.file_name().to_string_lossy().starts_with("catalogue.sqlite") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    gateway.restart();
    gateway.says("group resume erp");
    let ids: Vec<u64> = follower.up_to("resumed").iter().map(|event| event["id"].as_u64().unwrap()).collect();
    // The old one may have had more to tell.
    let begun = ids.iter().position(|id| *id == 1).expect("all that the new one has");
    let anew: Vec<u64> = (1..=(ids.len() - begun) as u64).collect();
    assert_eq!(ids[begun..], anew);
    assert!(follower.interrupt().contains("the catalogue was begun anew"));
    let audit = gateway.json("audit");
    assert_eq!(audit.as_array().unwrap().len(), 1, "what was asked before went with it: {audit:#}");
}

#[test]
fn who_asked_for_what_is_known_after_kill_nine() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "2M")]);
    gateway.says("point create erp --label before");
    gateway.refuses("group create erp", 1);
    gateway.kill();
    gateway.restart();
    let audit = gateway.json("audit --limit 3");
    let said = |index: usize, key: &str| audit[index][key].as_str().unwrap_or_default().to_owned();
    let verbs: Vec<String> =
        (0..3).map(|index| said(index, "verb") + " " + &said(index, "subject")).collect();
    assert_eq!(verbs, ["group create erp", "point create erp", "disk create erp/db"]);
    assert_eq!(audit[0]["outcome"]["failed"]["kind"], "already_exists");
    assert_eq!(
        (&audit[1]["outcome"], &audit[1]["parameters"]["label"]),
        (&Value::from("done"), &Value::from("before"))
    );
    let uid = u64::from(rustix::process::getuid().as_raw());
    assert!((0..3).all(|index| audit[index]["asked_by"]["uid"] == uid), "{audit:#}");
    assert!(gateway.says("audit").contains("point create"));
}

/// The verb is at work for as long as the hook's program is, which reads what nobody writes.
#[test]
fn a_verb_that_kill_nine_cuts_off_is_in_the_trail() {
    let root = tempfile::tempdir().unwrap();
    let fifo = root.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // It lives until the test ends, and not longer: kill -9 leaves it alone.
    let _writer = fs::File::options().read(true).write(true).open(&fifo).unwrap();
    let table = format!(
        "[[hooks]]\nname = \"hangs\"\non = [\"hook_test\"]\nexec = [\"/bin/cat\", \"{}\"]\ntimeout = \"10m\"\n",
        fifo.display()
    );
    let mut gateway = Gateway::with(&Setup { more: table.leak(), ..Setup::default() });
    let mut asking = gateway.start_cli("hooks test hangs");
    let at_work = |audit: &Value| audit[0]["outcome"] == "at_work";
    let audit = gateway.until_api("/v1/audit", "it is at work", at_work);
    assert_eq!(
        (&audit[0]["verb"], &audit[0]["subject"]),
        (&Value::from("hooks test"), &Value::from("hangs"))
    );
    assert!(gateway.refuses("hooks test hangs", 1).contains("is being tested"));
    gateway.kill();
    assert!(!wait(&mut asking).success());
    gateway.restart();
    let audit = gateway.json("audit");
    let of: Vec<_> = (0..2).map(|index| &audit[index]["outcome"]).collect();
    assert_eq!((&of[0]["failed"]["kind"], of[1]), (&Value::from("already_exists"), &Value::from("cut_off")));
    assert_eq!(audit[1]["duration_ms"], Value::Null);
    assert!(gateway.says("audit").contains("CUT OFF"));
}

/// The key as it is exported is 64 characters that nothing else contains.
#[test]
fn no_key_comes_into_the_audit_trail_or_the_log() {
    let gateway = Gateway::start();
    gateway.protect([("db", "2M")]);
    let file = gateway.path("exported");
    gateway.says(&format!("key export {}", file.display()));
    gateway.says(&format!("key import {} --yes", file.display()));
    let key = fs::read_to_string(&file).unwrap();
    let words: Vec<&str> = key.split_whitespace().filter(|word| word.len() >= 32).collect();
    assert!(!words.is_empty(), "the key is among them");
    let mut kept = gateway.says("audit --json");
    for name in ["catalogue.sqlite", "catalogue.sqlite-wal"] {
        kept += &String::from_utf8_lossy(&fs::read(gateway.data().join(name)).unwrap());
    }
    kept += &gateway.logged("").join("\n");
    assert!(kept.contains("key export") && kept.contains("key import"));
    // Its id is public, and in the same file.
    let id = gateway.json("key show")["site_key"].as_str().unwrap().to_owned();
    for word in words.iter().filter(|word| !id.contains(**word) && !word.contains(&id)) {
        assert!(!kept.contains(word), "a key is kept");
    }
}

#[test]
fn jobs_are_listed_after_a_restart() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "2M")]);
    gateway.says("point create erp");
    gateway.says("vault verify erp");
    gateway.kill();
    gateway.restart();
    let jobs = gateway.json("jobs");
    let [job] = &jobs.as_array().unwrap()[..] else { panic!("one job: {jobs:#}") };
    assert_eq!((&job["kind"], &job["what"]), (&Value::from("verify"), &Value::from("erp")));
    assert!(job["state"]["done"]["verified"].is_object() && job["asked_by"]["uid"].is_u64(), "{job:#}");
    let id = job["id"].as_str().unwrap();
    assert_eq!(gateway.json(&format!("job show {id}")), *job);
    assert!(gateway.says(&format!("job cancel {id}")).contains("had ended before"));
    assert!(gateway.says("jobs").contains(id));
    assert!(gateway.refuses("job show 00000000000000000000000000000000", 1).contains("no job"));
}
