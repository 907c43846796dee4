//! Whether a JSON value is what a committed schema says: the keywords that ours use, and a panic at any other, so that none is passed over.
//! Stricter than JSON Schema where it finds what is described nowhere: a field that no schema names is a fault.

use std::path::Path;

use serde_json::{Map, Value};

/// Keywords that constrain nothing, or what is checked elsewhere.
const NOTES: [&str; 5] = ["description", "title", "$schema", "format", "pattern"];

/// A document that schemas refer into.
pub struct Document(Value);

impl Document {
    /// The committed document of that name.
    pub fn committed(name: &str) -> Document {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/api/{name}.json"));
        let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Document(serde_json::from_slice(&text).expect("JSON"))
    }

    /// The schema at a pointer.
    #[track_caller]
    pub fn schema(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or_else(|| panic!("nothing is at {pointer}"))
    }

    /// What of a value is not as its schema says, one line each.
    pub fn faults(&self, schema: &Value, value: &Value) -> Vec<String> {
        let mut faults = Vec::new();
        self.check("", schema, value, &mut faults);
        faults
    }

    fn check(&self, place: &str, schema: &Value, value: &Value, faults: &mut Vec<String>) {
        // True takes everything.
        let Some(schema) = schema.as_object() else { return };
        for (keyword, constraint) in schema {
            match keyword.as_str() {
                "$ref" => {
                    let pointer = constraint.as_str().and_then(|text| text.strip_prefix('#'));
                    self.check(place, self.schema(pointer.expect("within the document")), value, faults);
                }
                "type" => {
                    if !types(constraint).any(|name| is_a(value, name)) {
                        faults.push(format!("{place}: {value} is no {constraint}"));
                    }
                }
                "const" if value != constraint => {
                    faults.push(format!("{place}: {value} is not {constraint}"))
                }
                "enum" if !constraint.as_array().expect("words").contains(value) => {
                    faults.push(format!("{place}: {value} is none of {constraint}"));
                }
                "minimum" | "maximum" if !is_bounded(keyword, constraint, value) => {
                    faults.push(format!("{place}: {value} is beyond the {keyword} {constraint}"));
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(&format!("{place}[{index}]"), constraint, item, faults);
                    }
                }
                "oneOf" | "anyOf" => self.check_forms(place, constraint, value, faults),
                "required" => {
                    let missing = constraint.as_array().expect("names").iter().filter_map(Value::as_str);
                    let object = value.as_object();
                    let missing =
                        missing.filter(|name| object.is_some_and(|object| !object.contains_key(*name)));
                    faults.extend(missing.map(|name| format!("{place}.{name}: is missing")));
                }
                "properties" => self.check_fields(place, constraint, value, faults),
                // Fields that are described nowhere are faults whatever this says.
                "const"
                | "enum"
                | "minimum"
                | "maximum"
                | "additionalProperties"
                | "minLength"
                | "maxLength" => {}
                note if NOTES.contains(&note) => {}
                other => panic!("{place}: the keyword {other} is not known here"),
            }
        }
        let holds_fields =
            ["properties", "$ref", "oneOf", "anyOf"].iter().any(|word| schema.contains_key(*word));
        if schema.get("type").is_some_and(|name| name == "object") && !holds_fields {
            self.check_fields(place, &Value::Object(Map::new()), value, faults);
        }
    }

    fn check_fields(&self, place: &str, fields: &Value, value: &Value, faults: &mut Vec<String>) {
        for (name, value) in value.as_object().into_iter().flatten() {
            let place = format!("{place}.{name}");
            match fields.get(name) {
                Some(schema) => self.check(&place, schema, value, faults),
                None => faults.push(format!("{place}: no schema names it")),
            }
        }
    }

    /// Some form must fit; where none does, what is wrong with the nearest is told.
    fn check_forms(&self, place: &str, forms: &Value, value: &Value, faults: &mut Vec<String>) {
        let forms = forms.as_array().expect("schemas").iter().map(|form| {
            let mut faults = Vec::new();
            self.check(place, form, value, &mut faults);
            faults
        });
        faults.extend(forms.min_by_key(Vec::len).expect("at least one"));
    }
}

fn types(constraint: &Value) -> impl Iterator<Item = &str> {
    let one = constraint.as_str().into_iter();
    one.chain(constraint.as_array().into_iter().flatten().filter_map(Value::as_str))
}

fn is_a(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type {other}"),
    }
}

fn is_bounded(keyword: &str, bound: &Value, value: &Value) -> bool {
    let (Some(value), Some(bound)) = (value.as_f64(), bound.as_f64()) else { return true };
    if keyword == "minimum" { value >= bound } else { value <= bound }
}
