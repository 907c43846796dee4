//! Names that people give to sites, groups and disks, and the paths and export names made of them.
//!
//! A name never needs quoting in a shell, a URI or a file system, and holds neither `/` nor `@`, which export names
//! use: `GROUP/DISK` is a disk, `GROUP/DISK@test-N` the same disk in a test failover.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::block::TestId;
use crate::error::Error;

/// Longest name: what fits a DNS label, so that a name can be one.
pub const NAME_BYTES_MAX: usize = 63;

/// A name of a site, group or disk: 1 to 63 ASCII letters, digits, `-`, `_` or `.`, the first a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// A text that is not a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameError {
    text: String,
}

impl NameError {
    /// What is wrong.
    pub fn problem(&self) -> &'static str {
        "not a name"
    }

    /// What to do about it.
    pub fn mend(&self) -> &'static str {
        "write 1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit"
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is {}: {}", self.text.escape_debug(), self.problem(), self.mend())
    }
}

impl std::error::Error for NameError {}

impl From<NameError> for Error {
    fn from(error: NameError) -> Error {
        Error::invalid(error.to_string())
    }
}

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        let bytes = text.as_bytes();
        let fits = (1..=NAME_BYTES_MAX).contains(&bytes.len());
        let plain = bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte));
        if fits && plain && bytes[0].is_ascii_alphanumeric() {
            Ok(Name(text.to_owned()))
        } else {
            Err(NameError { text: text.to_owned() })
        }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Name, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a person calls a recovery point: 1 to 255 bytes on one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

impl Label {
    /// Longest label.
    pub const BYTES_MAX: usize = 255;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = Error;

    fn from_str(text: &str) -> Result<Label, Error> {
        let text = text.trim();
        if text.is_empty() || text.len() > Label::BYTES_MAX || text.chars().any(char::is_control) {
            return Err(Error::invalid(format!(
                "label = `{}`: not a label: write 1 to {} bytes on one line",
                text.escape_debug(),
                Label::BYTES_MAX
            )));
        }
        Ok(Label(text.to_owned()))
    }
}

impl TryFrom<String> for Label {
    type Error = Error;

    fn try_from(text: String) -> Result<Label, Error> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> String {
        label.0
    }
}

/// A disk by its names; also its export name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskPath {
    /// The group.
    pub group: Name,
    /// The disk in it.
    pub disk: Name,
}

impl DiskPath {
    /// The export name of the disk in a test failover.
    pub fn test_export(&self, test: TestId) -> String {
        format!("{self}@test-{}", test.0)
    }
}

impl fmt::Display for DiskPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.disk)
    }
}

impl FromStr for DiskPath {
    type Err = Error;

    fn from_str(text: &str) -> Result<DiskPath, Error> {
        let Some((group, disk)) = text.split_once('/') else {
            return Err(Error::invalid(format!(
                "`{text}` is not GROUP/DISK: write for example erp/database"
            )));
        };
        Ok(DiskPath { group: group.parse::<Name>()?, disk: disk.parse::<Name>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_need_no_quoting_anywhere() {
        for good in ["a", "9", "erp", "site-a", "Db_1.old", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".a", "a/b", "a@b", "a b", "ä", "a\n", &"x".repeat(64)] {
            let error = bad.parse::<Name>().expect_err(bad).to_string();
            assert!(!error.contains('\n') && error.contains("letters"), "{error}");
        }
    }

    #[test]
    fn a_label_is_one_line() {
        assert_eq!(" before upgrade ".parse::<Label>().unwrap().as_str(), "before upgrade");
        for bad in ["", "  ", "a\nb", &"x".repeat(256)] {
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_disk_has_two_names_and_its_exports_follow() {
        let path: DiskPath = "erp/db".parse().unwrap();
        assert_eq!(path.to_string(), "erp/db");
        assert_eq!(path.test_export(TestId(3)), "erp/db@test-3");
        for bad in ["erp", "erp/", "/db", "erp/db/x", "erp/db@test-1"] {
            assert!(bad.parse::<DiskPath>().is_err(), "{bad}");
        }
    }
}
