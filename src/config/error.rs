//! What is wrong with a configuration: one line that names key, value and mend.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::listen::AddressFault;

/// A configuration that can't be served; nothing was touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigurationError {
    /// The file that says so.
    pub file: PathBuf,
    /// The key with its value, as in `nbd.listen = "0.0.0.0:10809"`; or where in the file.
    pub place: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub mend: String,
}

impl fmt::Display for ConfigurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        if !self.place.is_empty() {
            write!(f, "{}: ", one_line(&self.place))?;
        }
        write!(f, "{}: {}", one_line(&self.problem), one_line(&self.mend))
    }
}

impl std::error::Error for ConfigurationError {}

/// An error of a setting whose file is not known here: see [`Fault::at`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub place: String,
    pub problem: String,
    pub mend: String,
}

impl Fault {
    /// A fault of `key`, whose value is shown as TOML writes it.
    pub fn of(
        key: &str,
        value: impl fmt::Display,
        problem: impl Into<String>,
        mend: impl Into<String>,
    ) -> Fault {
        Fault { place: format!("{key} = {value}"), problem: problem.into(), mend: mend.into() }
    }

    /// A fault of a key with an address.
    pub fn of_address(key: &str, value: impl fmt::Display, fault: AddressFault) -> Fault {
        Fault::of(key, value, fault.problem, fault.mend)
    }

    /// The error, now that the file is known.
    pub fn at(self, file: &Path) -> ConfigurationError {
        ConfigurationError {
            file: file.to_owned(),
            place: self.place,
            problem: self.problem,
            mend: self.mend,
        }
    }
}

/// A string as TOML writes it.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// A path as the file has it, and where that is if it is relative.
pub(super) fn quoted_path(written: &str, path: &Path) -> String {
    if Path::new(written.strip_prefix("unix:").unwrap_or(written)).is_absolute() {
        return quoted(written);
    }
    format!("{} ({})", quoted(written), path.display())
}

/// Text without line breaks, whatever it came from.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
