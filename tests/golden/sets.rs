//! The sets themselves: complete, and unchanged since they were made.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::files::{entries, may_write, root};

const SUMS: &str = "SHA256SUMS";

fn sets() -> Vec<PathBuf> {
    entries(&root()).into_iter().filter(|path| path.is_dir()).collect()
}

/// Names in a set, and sums of what they name, as sha256sum(1) prints them.
fn sums(set: &Path, directory: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for path in entries(directory) {
        if path.is_dir() {
            found.extend(sums(set, &path));
        } else if path.file_name().is_some_and(|name| name != SUMS) {
            let mut sum = String::new();
            for byte in Sha256::digest(fs::read(&path).expect("readable")) {
                write!(sum, "{byte:02x}").expect("to memory");
            }
            let name = path.strip_prefix(set).expect("below it").display().to_string();
            found.insert(name, sum);
        }
    }
    found
}

fn listed(set: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(set.join(SUMS)).unwrap_or_default();
    let entry = |line: &str| {
        let (sum, name) = line.split_once("  ").expect("SUM  NAME");
        (name.to_owned(), sum.to_owned())
    };
    text.lines().map(entry).collect()
}

#[test]
fn no_golden_file_changed_and_none_is_missing() {
    assert!(!sets().is_empty());
    for set in sets() {
        let (found, mut listed) = (sums(&set, &set), listed(&set));
        if may_write() {
            let new = found.iter().filter(|(name, _)| !listed.contains_key(*name)).collect::<Vec<_>>();
            listed.extend(new.into_iter().map(|(name, sum)| (name.clone(), sum.clone())));
            let lines = listed.iter().map(|(name, sum)| format!("{sum}  {name}\n"));
            fs::write(set.join(SUMS), lines.collect::<String>()).expect("the work tree can be written");
        }
        assert_eq!(found, listed, "golden files bind, and are only added: {}", set.display());
    }
}
