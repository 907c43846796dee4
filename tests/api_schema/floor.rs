//! Whether a document still has all that an earlier one promised. Additions pass; what is gone, or has another type, is told.
//!
//! | of what is | must stay | may come |
//! |---|---|---|
//! | answered | fields, their types, that they are always there | fields, words |
//! | asked | fields, their types, that they may be left out | fields that may be left out, words |

use std::collections::BTreeSet;

use serde_json::{Map, Value};

const METHODS: [&str; 4] = ["get", "post", "put", "delete"];

/// Which way a value goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Asked,
    Answered,
}

/// What is gone or changed, one line each; either document is an OpenAPI text or one of commands.
pub fn missing(before: &Value, now: &Value) -> Vec<String> {
    let mut floor = Floor { before, now, compared: BTreeSet::new(), missing: Vec::new() };
    for (command, schema) in object(&before["commands"]) {
        let place = format!("{command} --json");
        match now["commands"].get(command) {
            Some(other) => floor.schema(&place, schema, other, Way::Answered),
            None => floor.gone(&place),
        }
    }
    for (path, operations) in object(&before["paths"]) {
        for method in METHODS {
            let Some(operation) = operations.get(method) else { continue };
            let place = format!("{} {path}", method.to_uppercase());
            match now["paths"][path].get(method) {
                Some(other) => floor.operation(&place, operation, other),
                None => floor.gone(&place),
            }
        }
    }
    floor.missing
}

fn object(value: &Value) -> &Map<String, Value> {
    static NONE: std::sync::OnceLock<Map<String, Value>> = std::sync::OnceLock::new();
    value.as_object().unwrap_or_else(|| NONE.get_or_init(Map::new))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

struct Floor<'a> {
    before: &'a Value,
    now: &'a Value,
    /// Definitions that were compared, or are being.
    compared: BTreeSet<String>,
    missing: Vec<String>,
}

impl<'a> Floor<'a> {
    fn gone(&mut self, place: &str) {
        self.missing.push(format!("{place}: is gone"));
    }

    fn operation(&mut self, place: &str, before: &'a Value, now: &'a Value) {
        for parameter in list(&before["parameters"]) {
            let place = format!("{place}: {}", parameter["name"].as_str().unwrap_or_default());
            match list(&now["parameters"]).iter().find(|other| is_same(parameter, other)) {
                Some(other) => self.schema(&place, &parameter["schema"], &other["schema"], Way::Asked),
                None => self.gone(&place),
            }
        }
        for parameter in list(&now["parameters"]).iter().filter(|parameter| parameter["required"] == true) {
            let before = list(&before["parameters"]).iter().find(|other| is_same(parameter, other));
            if before.is_none_or(|before| before["required"] != true) {
                self.missing.push(format!("{place}: must have {} now", parameter["name"]));
            }
        }
        if now["requestBody"]["required"] == true && before["requestBody"]["required"] != true {
            self.missing.push(format!("{place}: must have a body now"));
        }
        self.contents(&format!("{place}: request"), &before["requestBody"], &now["requestBody"], Way::Asked);
        for (status, answer) in object(&before["responses"]) {
            let place = format!("{place}: {status}");
            match now["responses"].get(status) {
                Some(other) => {
                    let (answer, other) = (resolve(self.before, answer).1, resolve(self.now, other).1);
                    self.contents(&place, answer, other, Way::Answered);
                }
                None => self.gone(&place),
            }
        }
    }

    fn contents(&mut self, place: &str, before: &'a Value, now: &'a Value, way: Way) {
        for (kind, content) in object(&before["content"]) {
            match now["content"].get(kind) {
                Some(other) => self.schema(place, &content["schema"], &other["schema"], way),
                None => self.gone(&format!("{place}: {kind}")),
            }
        }
    }

    fn schema(&mut self, place: &str, before: &'a Value, now: &'a Value, way: Way) {
        let (name, before) = resolve(self.before, before);
        let (other, now) = resolve(self.now, now);
        let place = name.unwrap_or(place);
        if let Some(name) = name {
            // Definitions may refer to themselves; one that got another name is compared with that.
            let pair = format!("{name} {} {}", other.unwrap_or_default(), way == Way::Asked);
            if !self.compared.insert(pair) {
                return;
            }
        }
        if types(before) != types(now) {
            let shown = |value: &Value| types(value).into_iter().collect::<Vec<_>>().join("|");
            self.missing.push(format!("{place}: was {}, and is {}", shown(before), shown(now)));
            return;
        }
        if before.get("format").is_some() && before["type"] == "string" && before["format"] != now["format"] {
            self.missing.push(format!("{place}: was a {}, and is none", before["format"]));
        }
        for word in words(before).difference(&words(now)) {
            self.missing.push(format!("{place}: the word {word} is gone"));
        }
        self.fields(place, before, now, way);
        if let Some(items) = before.get("items") {
            self.schema(&format!("{place}[]"), items, &now["items"], way);
        }
        for choice in ["oneOf", "anyOf", "allOf"] {
            for alternative in list(&before[choice]) {
                self.alternative(place, alternative, list(&now[choice]), way);
            }
        }
        if way == Way::Asked
            && now["additionalProperties"] == false
            && before["additionalProperties"] != false
        {
            self.missing.push(format!("{place}: refuses further fields now"));
        }
    }

    fn fields(&mut self, place: &str, before: &'a Value, now: &'a Value, way: Way) {
        for (field, schema) in object(&before["properties"]) {
            let place = format!("{place}.{field}");
            match now["properties"].get(field) {
                Some(other) => self.schema(&place, schema, other, way),
                None => self.gone(&place),
            }
        }
        let required = |value: &'a Value| list(&value["required"]).iter().filter_map(Value::as_str);
        let (before, now): (BTreeSet<_>, BTreeSet<_>) = (required(before).collect(), required(now).collect());
        match way {
            Way::Answered => before.difference(&now).for_each(|field| {
                self.missing.push(format!("{place}.{field}: was always there, and may be missing"));
            }),
            Way::Asked => now.difference(&before).for_each(|field| {
                self.missing.push(format!("{place}.{field}: must be there now"));
            }),
        }
    }

    /// One of several forms: some form now must have all of it.
    fn alternative(&mut self, place: &str, before: &'a Value, now: &'a [Value], way: Way) {
        let lacking = now.iter().map(|other| {
            let mut floor = Floor {
                before: self.before,
                now: self.now,
                compared: self.compared.clone(),
                missing: Vec::new(),
            };
            floor.schema(place, before, other, way);
            floor.missing
        });
        // The form that lacks least is the one that was meant.
        match lacking.min_by_key(Vec::len) {
            None => self.gone(&format!("{place}: one of its forms")),
            Some(lacking) => self.missing.extend(lacking),
        }
    }
}

fn is_same(parameter: &Value, other: &Value) -> bool {
    (&parameter["name"], &parameter["in"]) == (&other["name"], &other["in"])
}

/// What a reference refers to, and its name.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> (Option<&'a str>, &'a Value) {
    let Some(reference) = value.get("$ref").and_then(Value::as_str) else { return (None, value) };
    let pointer = reference.strip_prefix('#').expect("within the document");
    let found = document.pointer(pointer).unwrap_or_else(|| panic!("{reference} refers to nothing"));
    (reference.rsplit('/').next(), found)
}

fn types(schema: &Value) -> BTreeSet<String> {
    match &schema["type"] {
        Value::String(one) => BTreeSet::from([one.clone()]),
        Value::Array(several) => several.iter().map(ToString::to_string).collect(),
        _ => BTreeSet::new(),
    }
}

fn words(schema: &Value) -> BTreeSet<String> {
    list(&schema["enum"]).iter().chain(schema.get("const")).map(ToString::to_string).collect()
}

mod tests {
    use serde_json::json;

    use super::*;

    fn documents() -> Value {
        json!({
            "commands": {"group list": {"type": "array", "items": {"$ref": "#/$defs/Group"}}},
            "paths": {"/v1/groups": {"post": {
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/$defs/Request"}}}},
                "responses": {"201": {"content": {"application/json": {"schema": {"$ref": "#/$defs/Group"}}}}},
            }}},
            "$defs": {
                "Group": {
                    "type": "object",
                    "required": ["name", "kind"],
                    "properties": {
                        "name": {"type": "string"},
                        "kind": {"oneOf": [{"type": "string", "const": "a"}, {"type": "string", "const": "b"}]},
                        "within": {"anyOf": [{"$ref": "#/$defs/Group"}, {"type": "null"}]},
                    },
                },
                "Request": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}, "note": {"type": ["string", "null"]}},
                },
            },
        })
    }

    #[test]
    fn what_is_added_breaks_nobody() {
        let mut now = documents();
        now["$defs"]["Group"]["properties"]["size"] = json!({"type": "integer"});
        now["$defs"]["Group"]["required"] = json!(["name", "kind", "size"]);
        now["$defs"]["Request"]["properties"]["size"] = json!({"type": "integer"});
        let kinds = now["$defs"]["Group"]["properties"]["kind"]["oneOf"].as_array_mut().unwrap();
        kinds.insert(0, json!({"type": "string", "const": "c"}));
        now["paths"]["/v1/disks"] = json!({"get": {}});
        now["commands"]["disk list"] = json!({});
        assert_eq!(missing(&documents(), &now), Vec::<String>::new());
    }

    #[test]
    fn what_is_taken_away_or_changed_is_told() {
        for (pointer, value, told) in [
            ("/commands", json!({}), "group list --json: is gone"),
            ("/paths/~1v1~1groups", json!({}), "POST /v1/groups: is gone"),
            ("/paths/~1v1~1groups/post/responses", json!({}), "POST /v1/groups: 201: is gone"),
            ("/$defs/Group/properties/within", Value::Null, "Group.within: one of its forms: is gone"),
            (
                "/$defs/Group/properties/name",
                json!({"type": "integer"}),
                "Group.name: was string, and is integer",
            ),
            ("/$defs/Group/properties", json!({"name": {"type": "string"}}), "Group.kind: is gone"),
            ("/$defs/Group/properties/kind/oneOf/1/const", json!("c"), "Group.kind: the word \"b\" is gone"),
            ("/$defs/Group/required", json!(["kind"]), "Group.name: was always there, and may be missing"),
            ("/$defs/Request/required", json!(["name", "note"]), "Request.note: must be there now"),
            ("/$defs/Request/additionalProperties", json!(false), "Request: refuses further fields now"),
        ] {
            let mut now = documents();
            now["$defs"]["Request"]["additionalProperties"] = json!(true);
            *now.pointer_mut(pointer).expect(pointer) = value;
            let missing = missing(&documents(), &now);
            assert!(missing.iter().any(|line| line.starts_with(told)), "{told}: {missing:?}");
        }
    }
}
