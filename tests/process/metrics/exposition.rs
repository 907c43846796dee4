//! A strict reader of the OpenMetrics text format, as far as it is used here: gauges and counters. What Prometheus would refuse, or take
//! for something else, is a panic with the line.

use std::collections::{BTreeMap, BTreeSet};

pub type Labels = BTreeMap<String, String>;

/// A family, as its three lines and its samples say.
#[derive(Debug, Default)]
pub struct Family {
    pub kind: String,
    pub unit: Option<String>,
    pub samples: Vec<(Labels, f64)>,
}

/// Families by the names that their samples have, which are those that queries ask for.
#[derive(Debug)]
pub struct Exposition(pub BTreeMap<String, Family>);

impl Exposition {
    #[track_caller]
    pub fn parse(text: &str) -> Exposition {
        let body = text.strip_suffix("# EOF\n").expect("it ends with an end");
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        // The name that the metadata has, and that of the samples.
        let (mut described, mut current) = (String::new(), String::new());
        for line in body.lines() {
            if let Some(metadata) = line.strip_prefix("# ") {
                let [keyword, name, value] = metadata.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                    panic!("a keyword, a name and a text: {line}");
                };
                match keyword {
                    "HELP" => {
                        assert!(is_name(name) && !value.is_empty(), "{line}");
                        described = name.to_owned();
                    }
                    "TYPE" => {
                        assert_eq!(name, described, "the help comes first");
                        current = match value {
                            "counter" => format!("{name}_total"),
                            "gauge" => name.to_owned(),
                            other => panic!("a type that is not known here: {other}"),
                        };
                        let family = Family { kind: value.to_owned(), ..Family::default() };
                        assert!(families.insert(current.clone(), family).is_none(), "twice: {line}");
                    }
                    "UNIT" => {
                        assert!(name == described && name.ends_with(&format!("_{value}")), "{line}");
                        families.get_mut(&current).expect(line).unit = Some(value.to_owned());
                    }
                    _ => panic!("no metadata: {line}"),
                }
                continue;
            }
            let (name, labels, value) = sample(line);
            assert_eq!(name, current, "a family's samples stand together: {line}");
            families.get_mut(&current).expect(line).samples.push((labels, value));
        }
        let exposition = Exposition(families);
        exposition.assert_sound();
        exposition
    }

    fn assert_sound(&self) {
        for (name, family) in &self.0 {
            let distinct: BTreeSet<_> = family.samples.iter().map(|(labels, _)| labels).collect();
            assert_eq!(distinct.len(), family.samples.len(), "{name}: a series twice");
            assert!(family.samples.iter().all(|(_, value)| value.is_finite()), "{name}: {family:?}");
            assert!(family.samples.iter().all(|(_, value)| *value >= 0.0), "{name}: {family:?}");
        }
    }

    /// The value of the only series with these labels, among others.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let family = self.0.get(name).unwrap_or_else(|| panic!("{name} is served"));
        let wanted = |found: &Labels| {
            labels.iter().all(|(label, value)| found.get(*label).is_some_and(|found| found == value))
        };
        let found: Vec<_> = family.samples.iter().filter(|(found, _)| wanted(found)).collect();
        let [(_, value)] = found[..] else { panic!("one series of {name} with {labels:?}: {found:?}") };
        *value
    }

    /// The labels that a family's series have; all have the same.
    #[track_caller]
    pub fn labels(&self, name: &str) -> BTreeSet<&str> {
        let samples = &self.0[name].samples;
        let (first, _) = samples.first().unwrap_or_else(|| panic!("{name} has a series"));
        assert!(samples.iter().all(|(labels, _)| labels.keys().eq(first.keys())), "{name}: {samples:?}");
        first.keys().map(String::as_str).collect()
    }

    /// The values that a label has.
    pub fn values(&self, name: &str, label: &str) -> BTreeSet<&str> {
        self.0[name].samples.iter().map(|(labels, _)| labels[label].as_str()).collect()
    }
}

fn is_name(text: &str) -> bool {
    let first = text.starts_with(|first: char| first.is_ascii_lowercase());
    first && text.chars().all(|other| other.is_ascii_lowercase() || other.is_ascii_digit() || other == '_')
}

/// `name{label="value",…} number`
#[track_caller]
fn sample(line: &str) -> (&str, Labels, f64) {
    let (series, value) = line.rsplit_once(' ').expect(line);
    let value = value.parse().unwrap_or_else(|error| panic!("{error}: {line}"));
    let Some((name, rest)) = series.split_once('{') else { return (series, Labels::new(), value) };
    let mut rest = rest.strip_suffix('}').expect(line);
    let mut labels = Labels::new();
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"").expect(line);
        // Names and words: nothing that would have to be escaped.
        let (text, after) = after.split_once('"').expect(line);
        assert!(is_name(label) && !text.contains('\\'), "{line}");
        assert!(labels.insert(label.to_owned(), text.to_owned()).is_none(), "twice: {line}");
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    (name, labels, value)
}
