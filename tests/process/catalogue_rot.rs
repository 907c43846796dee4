//! Bits that flip in the catalogue, under the real program: nobody is shown what nobody wrote, and somebody is told of file and place.

use std::fs;

use serde_json::Value;

use crate::gateway::Gateway;

/// Flips a bit in the midst of each place of the catalogue where these bytes stand; the file, and how many there were.
fn flip(gateway: &Gateway, bytes: &[u8]) -> (String, usize) {
    let path = gateway.data().join("catalogue.sqlite");
    let mut file = fs::read(&path).expect("readable");
    let found = file.windows(bytes.len()).enumerate().filter(|(_, window)| *window == bytes);
    let places: Vec<usize> = found.map(|(at, _)| at + bytes.len() / 2).collect();
    places.iter().for_each(|at| file[*at] ^= 4);
    fs::write(&path, file).expect("writable");
    (path.display().to_string(), places.len())
}

fn with_code<'a>(events: &'a Value, code: &str) -> Vec<&'a Value> {
    events.as_array().expect("a list").iter().filter(|event| event["code"] == code).collect()
}

#[test]
fn a_bit_flipped_in_an_event_is_told_and_the_event_is_shown_no_more() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "2M")]);
    gateway.says("point create erp --label before-the-flip");
    gateway.says("group pause erp");
    gateway.says("group resume erp");
    let before = gateway.json("events");
    let paused = with_code(&before, "paused")[0];
    let id = paused["id"].as_u64().expect("an id");
    gateway.terminate();
    let (path, places) = flip(&gateway, paused["message"].as_str().expect("text").as_bytes());
    assert_eq!(places, 1, "the message stands there once");
    let (_, places) = flip(&gateway, b"before-the-flip\"");
    assert!(places >= 1, "what was asked for stands there");
    gateway.restart();
    let now = gateway.json("events");
    assert_eq!(with_code(&now, "paused"), [&Value::Null; 0], "{now:#}");
    let kept = before.as_array().unwrap().iter().filter(|event| event["id"] != id);
    kept.for_each(|event| assert!(now.as_array().unwrap().contains(event), "{event:#}"));
    let [told] = with_code(&now, "catalogue_rotten")[..] else { panic!("one event: {now:#}") };
    assert_eq!((&told["severity"], &told["group"]), (&Value::from("warning"), &Value::Null));
    let message = told["message"].as_str().expect("text");
    let row = format!("events (sequence {id}, at byte ");
    assert!(message.contains(&path) && message.contains("2 rows") && message.contains(&row), "{message}");
    assert!(message.contains("audit (sequence "), "{message}");
    let logged = gateway.logged("a row of the catalogue is not what was written");
    assert_eq!(logged.len(), 2, "{logged:?}");
    assert!(logged.iter().all(|line| line.contains(&path) && line.contains("at_byte")), "{logged:?}");
    let audit = gateway.json("audit").to_string();
    assert!(audit.contains("group pause") && !audit.contains("point create"), "{audit}");
    // Of what is protected nothing is there, and nobody says that something of it was lost.
    assert!(gateway.says("point list erp").contains("before-the-flip"), "its manifest has that");
    assert!(gateway.says("check").contains(" OK - "));
    assert_eq!(gateway.group_status()["state"]["condition"], "protected");
    gateway.terminate();
    gateway.restart();
    assert_eq!(with_code(&gateway.json("events"), "catalogue_rotten").len(), 1, "once");
}
