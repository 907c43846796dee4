//! What API and `--json` look like is committed, and binds: docs/api/openapi.json and docs/api/cli.json are what the code says, and
//! nothing that a golden file in tests/golden/api has may be gone from them or have another type.
//!
//! After a change: `AFTERIMAGE_WRITE_API=1 cargo test --test api_schema`. What was taken away on purpose before the first release stands in
//! [`WITHDRAWN`], with why.
#![cfg(feature = "server")]

mod floor;

use std::fs;
use std::path::{Path, PathBuf};

use afterimage::cli::schemas;
use afterimage::control::api;
use serde_json::Value;

/// Complaints of [`floor::missing`] that are meant, by how they begin, each with its reason.
const WITHDRAWN: [(&str, &str); 0] = [];

/// Each document, by the name of its file.
fn documents() -> [(&'static str, Value); 2] {
    [("openapi", api::openapi_document()), ("cli", schemas::document())]
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pretty(document: &Value) -> String {
    serde_json::to_string_pretty(document).expect("it has string keys") + "\n"
}

#[test]
fn what_is_committed_is_what_the_code_says() {
    for (name, document) in documents() {
        let path = root().join(format!("docs/api/{name}.json"));
        let text = pretty(&document);
        if std::env::var_os("AFTERIMAGE_WRITE_API").is_some() {
            fs::create_dir_all(path.parent().expect("a directory")).expect("the work tree can be written");
            fs::write(&path, &text).expect("the work tree can be written");
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        let differs = committed.lines().zip(text.lines()).find(|(committed, said)| committed != said);
        assert!(
            committed == text,
            "{} is not what the code says, first at {differs:?}: AFTERIMAGE_WRITE_API=1 cargo test --test api_schema",
            path.display()
        );
    }
}

/// Golden files of a document, the oldest first.
fn golden(name: &str) -> Vec<PathBuf> {
    let file = |number: u32| root().join(format!("tests/golden/api/{name}-{number}.json"));
    (1..).map(file).take_while(|path| path.exists()).collect()
}

/// What of a document binds: not its texts for people.
fn promise(document: &Value) -> Value {
    match document {
        Value::Object(object) => {
            let is_text =
                |name: &str, value: &Value| ["description", "summary"].contains(&name) && value.is_string();
            let kept = object.iter().filter(|(name, value)| !is_text(name, value));
            Value::Object(kept.map(|(name, value)| (name.clone(), promise(value))).collect())
        }
        Value::Array(values) => values.iter().map(promise).collect(),
        other => other.clone(),
    }
}

/// At a release: `AFTERIMAGE_WRITE_GOLDEN=1 cargo test --test api_schema`, and then `--test golden` for the sums.
fn write_golden(name: &str, document: &Value) {
    let text = promise(document).to_string() + "\n";
    let found = golden(name);
    let is_there = found.last().is_some_and(|path| fs::read_to_string(path).expect("readable") == text);
    if std::env::var_os("AFTERIMAGE_WRITE_GOLDEN").is_some() && !is_there {
        let next = root().join(format!("tests/golden/api/{name}-{}.json", found.len() + 1));
        fs::create_dir_all(next.parent().expect("a directory")).expect("the work tree can be written");
        fs::write(next, text).expect("the work tree can be written");
    }
}

#[test]
fn nothing_that_was_ever_promised_is_gone() {
    for (name, document) in documents() {
        write_golden(name, &document);
        let golden = golden(name);
        assert!(!golden.is_empty(), "no golden file of {name}");
        for path in golden {
            let promised: Value = serde_json::from_slice(&fs::read(&path).expect("readable")).expect("JSON");
            let mut missing = floor::missing(&promised, &document);
            missing.retain(|what| !WITHDRAWN.iter().any(|(withdrawn, _)| what.starts_with(withdrawn)));
            assert!(missing.is_empty(), "breaks who goes by {}:\n{}", path.display(), missing.join("\n"));
        }
    }
}

/// Every property and every word says what it is, itself or where it refers to.
#[test]
fn every_field_is_described() {
    fn undescribed(path: &str, value: &Value, found: &mut Vec<String>) {
        if let Some(properties) = value.get("properties").and_then(Value::as_object) {
            let bare = properties.iter().filter(|(_, property)| {
                !["description", "$ref"].iter().any(|word| property.get(word).is_some())
            });
            found.extend(bare.map(|(name, _)| format!("{path}.{name}")));
        }
        match value {
            Value::Object(object) => {
                object.iter().for_each(|(name, value)| undescribed(&format!("{path}.{name}"), value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| undescribed(path, value, found)),
            _ => {}
        }
    }
    for (name, document) in documents() {
        let mut found = Vec::new();
        undescribed(name, &document, &mut found);
        // The one field of a variant is described by the variant.
        found.retain(|path| !path.contains("oneOf"));
        assert!(found.is_empty(), "without a description: {}", found.join(", "));
    }
}
