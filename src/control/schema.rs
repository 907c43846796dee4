//! Schemas of the JSON that is taken and given, made of the types that it is read into and written from, so that neither can change
//! without the other. Not the wire itself: that is serde's.
//!
//! They are JSON Schema 2020-12, which OpenAPI 3.1 has taken over. A type has one schema for what is asked and one for what is answered,
//! since what may be left out differs; where both exist, they must agree, or the type is two.

use std::borrow::Cow;

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema, json_schema};
use serde_json::{Map, Value};

use super::name::{Label, Name};
use super::retain::Retain;
use super::selector::PointSelector;
use super::wire;
use crate::block::TestId;
use crate::error::ErrorKind;
use crate::units::{DiskId, GroupId, Lsn, PointId, WallNanos};

/// The schemas of one document, which refer to its definitions.
pub(crate) struct Schemas {
    asked: SchemaGenerator,
    answered: SchemaGenerator,
}

impl Schemas {
    /// None yet; definitions will lie below `path`, a JSON pointer such as `/components/schemas`.
    pub(crate) fn new(path: &'static str) -> Schemas {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = Cow::Borrowed(path);
                settings.meta_schema = None;
            })
        };
        Schemas {
            asked: settings().for_deserialize().into_generator(),
            answered: settings().for_serialize().into_generator(),
        }
    }

    /// Of what is asked.
    pub(crate) fn asked<T: JsonSchema>(&mut self) -> Value {
        self.asked.subschema_for::<T>().to_value()
    }

    /// Of what is asked, as itself: nothing refers to it.
    pub(crate) fn asked_here<T: JsonSchema>(&mut self) -> Value {
        T::json_schema(&mut self.asked).to_value()
    }

    /// Of what is answered.
    pub(crate) fn answered<T: JsonSchema>(&mut self) -> Value {
        self.answered.subschema_for::<T>().to_value()
    }

    /// What all of them refer to.
    ///
    /// # Panics
    /// If a type is asked in another form than it is answered: write two.
    pub(crate) fn definitions(mut self) -> Map<String, Value> {
        let mut definitions = self.asked.take_definitions(true);
        for (name, answered) in self.answered.take_definitions(true) {
            let asked = definitions.insert(name.clone(), answered.clone());
            let agrees = asked.is_none_or(|asked| asked == answered);
            assert!(agrees, "{name} is asked in another form than it is answered: it takes two types");
        }
        definitions
    }
}

/// Text for people who do not read Rust, in a schema or a document of them: links to items lose their brackets, lines their breaks. A
/// default says how an older answer is read, which nobody else asks.
pub(crate) fn readable(document: &mut Value) {
    match document {
        Value::Object(object) => {
            if ["type", "$ref", "anyOf", "oneOf"].iter().any(|word| object.contains_key(*word)) {
                object.remove("default");
            }
            if let Some(Value::String(text)) = object.get_mut("description") {
                *text = plain(text);
            }
            object.values_mut().for_each(readable);
        }
        Value::Array(values) => values.iter_mut().for_each(readable),
        _ => {}
    }
}

fn plain(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " "));
    let text = paragraphs.collect::<Vec<_>>().join("\n\n");
    text.replace("[`", "`").replace("`]", "`").replace("::", ".")
}

/// Types whose JSON is a text or a number with a meaning that its type does not say.
macro_rules! described {
    ($($type:ty, $name:literal, $schema:tt;)*) => {$(
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn schema_id() -> Cow<'static, str> {
                concat!(module_path!(), "::", $name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

described! {
    DiskId, "DiskId", {"type": "string", "pattern": "^[0-9a-f]{32}$", "description": "A disk's permanent id: 32 hexadecimal digits."};
    GroupId, "GroupId", {"type": "string", "pattern": "^[0-9a-f]{32}$", "description": "A group's permanent id: 32 hexadecimal digits."};
    PointId, "PointId", {"type": "string", "pattern": "^[0-9a-f]{32}$", "description": "A recovery point's permanent id: 32 hexadecimal digits."};
    Lsn, "Lsn", {"type": "integer", "format": "uint64", "minimum": 0, "description": "A record's place in the one order of all writes of a group: it only grows, with gaps."};
    TestId, "TestId", {"type": "integer", "format": "uint64", "minimum": 0, "description": "The N of `GROUP/DISK@test-N`."};
    WallNanos, "Time", {"type": "string", "format": "date-time", "description": "A time: RFC 3339, in UTC with nanoseconds where it is answered."};
    Name, "Name", {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", "description": "A name of a site, group, disk, hook or token: 1 to 63 ASCII letters, digits, `-`, `_` or `.`, the first a letter or digit."};
    Label, "Label", {"type": "string", "minLength": 1, "maxLength": 255, "description": "What a person calls a recovery point: 1 to 255 bytes on one line."};
    Retain, "Retain", {"type": "string", "description": "A retention ladder, for example `1h:all,24h:1m,15d:1h`: up to each age, one point per spacing is kept; or `all`: docs/retention.md."};
    PointSelector, "PointSelector", {"type": "string", "description": "Which recovery point: `latest`; an id's first digits, 4 at least; a label; or a time, RFC 3339 or `2026-11-21 14:03[:05]` in UTC, which means the newest point at or before it. `id:`, `label:` and `time:` in front force one reading."};
}

impl JsonSchema for ErrorKind {
    fn schema_name() -> Cow<'static, str> {
        "ErrorKind".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let kinds = wire::ERROR_KINDS.map(|(_, word)| word);
        json_schema!({"type": "string", "enum": kinds, "description": "What can be done about an error: docs/api.md."})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programmers_write_becomes_text_for_people() {
        let mut document = serde_json::json!({
            "properties": {"latched": {
                "type": "integer", "default": 0,
                "description": "Of how many\nwrites fail: [`Disk::latched`] says why.\n\nAnd so on.",
            }},
        });
        readable(&mut document);
        let expected = serde_json::json!({"type": "integer", "description": "Of how many writes fail: `Disk.latched` says why.\n\nAnd so on."});
        assert_eq!(document["properties"]["latched"], expected);
    }

    #[test]
    fn what_is_asked_may_leave_out_what_is_always_answered() {
        #[derive(JsonSchema, serde::Serialize, serde::Deserialize)]
        struct Taken {
            #[serde(default)]
            count: u64,
        }
        let mut schemas = Schemas::new("/x");
        assert_eq!(schemas.asked_here::<Taken>().get("required"), None);
        assert_eq!(schemas.answered::<Taken>()["$ref"], "#/x/Taken");
        assert_eq!(schemas.definitions()["Taken"]["required"][0], "count");
    }
}
