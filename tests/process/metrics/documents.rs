//! What docs/ say of metrics: the tables of docs/metrics.md, and the queries of the dashboard and the alert rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

/// What Prometheus itself adds.
const OF_PROMETHEUS: [&str; 2] = ["job", "instance"];
const FUNCTIONS: [&str; 6] = ["rate", "increase", "sum", "time", "vector", "label_values"];
const OPERATORS: [&str; 3] = ["and", "or", "unless"];

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A row of a table of metrics.
#[derive(Debug)]
pub struct Documented {
    pub kind: String,
    pub unit: Option<String>,
    pub labels: BTreeSet<String>,
}

fn quoted(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Every metric that docs/metrics.md has.
pub fn metrics() -> BTreeMap<String, Documented> {
    let text = read("metrics.md");
    let mut metrics = BTreeMap::new();
    let mut of_metrics = false;
    for line in text.lines() {
        if !line.starts_with('|') {
            of_metrics = false;
        } else if line == "| metric | type | unit | labels | meaning |" {
            of_metrics = true;
        } else if of_metrics && !line.starts_with("|---") {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, name, kind, unit, labels, meaning, _] = cells[..] else { panic!("five columns: {line}") };
            assert!(!meaning.is_empty(), "{line}");
            let row = Documented {
                kind: kind.to_owned(),
                unit: Some(unit).filter(|unit| *unit != "–").map(str::to_owned),
                labels: quoted(labels),
            };
            let name = quoted(name).pop_first().expect(line);
            assert!(metrics.insert(name, row).is_none(), "twice: {line}");
        }
    }
    metrics
}

/// What a query asks for, and what is said with its answer.
#[derive(Debug, Default)]
pub struct Query {
    /// Names of metrics.
    pub metrics: BTreeSet<String>,
    /// The metric, the label, and the values that it is compared with.
    pub matchers: Vec<(String, String, String)>,
    /// Labels that the answer is grouped by, or that a text names.
    pub labels: BTreeSet<String>,
}

impl Query {
    /// Takes a PromQL expression apart, as far as it is used here: whatever is not known here is a panic.
    pub fn parse(text: &str) -> Query {
        let mut query = Query::default();
        let mut rest = text;
        let mut of = String::new();
        while let Some(first) = rest.chars().next() {
            if first.is_ascii_alphabetic() {
                let end = rest.find(|next: char| !next.is_ascii_alphanumeric() && next != '_');
                let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
                rest = after;
                if word == "by" || word == "on" {
                    let (labels, after) = in_brackets(rest.trim_start(), '(', ')');
                    query.labels.extend(labels.split(',').map(|label| label.trim().to_owned()));
                    rest = after;
                } else if FUNCTIONS.contains(&word) {
                    assert!(rest.trim_start().starts_with(['(', 'b']), "{word} is called: {text}");
                } else if !OPERATORS.contains(&word) {
                    assert!(!rest.starts_with('('), "a function that is not known here: {word} in {text}");
                    query.metrics.insert(word.to_owned());
                    of = word.to_owned();
                }
            } else if first == '{' {
                let (matchers, after) = in_brackets(rest, '{', '}');
                for matcher in matchers.split(',') {
                    let (label, value) = matcher.split_once('=').expect(text);
                    let value = value.trim_start_matches('~').trim_matches('"').to_owned();
                    query.matchers.push((of.clone(), label.to_owned(), value));
                }
                rest = after;
            } else if first == '[' {
                rest = in_brackets(rest, '[', ']').1;
            } else {
                assert!(" ()+-*/<>=,.0123456789".contains(first), "`{first}` is not known here: {text}");
                rest = &rest[1..];
            }
        }
        query
    }

    /// Takes labels from a template: `{{group}}`, `{{ $labels.group }}`.
    fn with_template(mut self, template: &str) -> Query {
        for part in template.split("{{").skip(1) {
            let (inside, _) = part.split_once("}}").expect(template);
            let inside = inside.trim();
            let label = inside.strip_prefix("$labels.").unwrap_or(inside);
            if !inside.starts_with("$value") {
                self.labels.insert(label.to_owned());
            }
        }
        self
    }

    /// Without what Prometheus adds.
    pub fn own_labels(&self) -> impl Iterator<Item = &String> {
        self.labels.iter().filter(|label| !OF_PROMETHEUS.contains(&label.as_str()))
    }

    /// What values of labels are asked for, each alone, where they are words and not patterns.
    pub fn own_matchers(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let own = self.matchers.iter().filter(|(_, label, _)| !OF_PROMETHEUS.contains(&label.as_str()));
        own.flat_map(|(metric, label, values)| {
            let values = values.split('|').filter(|value| !value.starts_with('$'));
            values.map(move |value| (metric.as_str(), label.as_str(), value))
        })
    }
}

fn in_brackets(text: &str, open: char, close: char) -> (&str, &str) {
    text.strip_prefix(open).and_then(|text| text.split_once(close)).expect(text)
}

/// The queries of the dashboard, with their legends.
pub fn dashboard() -> Vec<Query> {
    let dashboard: Value = serde_json::from_str(&read("monitoring/afterimage-dashboard.json")).expect("JSON");
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let names: Vec<_> = variables.iter().map(|variable| variable["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["datasource", "group"], "an import asks for nothing");
    let definition = variables[1]["definition"].as_str().expect("a query");
    let (metric, label) = in_brackets(definition.trim_start_matches("label_values"), '(', ')')
        .0
        .split_once(", ")
        .expect(definition);
    let mut queries = vec![Query::parse(metric)];
    queries[0].labels.insert(label.to_owned());
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{panel:#}");
        assert!(panel["gridPos"]["w"].as_u64().expect("a width") <= 24, "{panel:#}");
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel:#}");
        for target in panel["targets"].as_array().expect("queries") {
            let query = Query::parse(target["expr"].as_str().expect("a query"));
            queries.push(query.with_template(target["legendFormat"].as_str().expect("a legend")));
        }
    }
    queries
}

/// The queries of the alert rules, with what they say: each has a name of its own, a severity, a summary and what to do.
pub fn alerts() -> BTreeMap<String, Query> {
    let text = read("monitoring/alerts.yml");
    let mut alerts = BTreeMap::new();
    for rule in text.split("      - alert: ").skip(1) {
        let key = |key: &str| {
            let lines: Vec<&str> = rule.lines().filter_map(|line| line.trim().strip_prefix(key)).collect();
            let [value] = lines[..] else { panic!("one `{key}`: {rule}") };
            value.trim().trim_matches('"')
        };
        let name = rule.lines().next().expect("a name");
        assert!(["critical", "warning"].contains(&key("severity:")), "{rule}");
        let (summary, what_to_do) = (key("summary:"), key("description:"));
        assert!(!summary.is_empty() && what_to_do.contains(' '), "{rule}");
        let query = Query::parse(key("expr:")).with_template(summary).with_template(what_to_do);
        assert!(alerts.insert(name.to_owned(), query).is_none(), "twice: {name}");
    }
    alerts
}
