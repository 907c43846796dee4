//! `doctor`: what this machine can do for a gateway, each with a verdict and a mend; no gateway is asked, and one may run meanwhile.
//!
//! [`machine`] looks at limits, memory and clock, [`disk`] at the file system that the data is on, where it writes for a moment what nobody sees:
//! a file whose name is gone before it is used. A verdict is about what `serve` would do: [`Verdict::Refused`] is what it refuses or what
//! would stop it soon, [`Verdict::Degraded`] what it goes on without.

mod disk;
mod machine;

use std::path::{Path, PathBuf};

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

use super::failure::Failure;
use super::output::Output;
use crate::config::Configuration;
use crate::counted::counted;
use crate::data_directory;

#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// The configuration of the gateway that is to run here
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// How it is with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "FindingVerdict")]
enum Verdict {
    /// Nothing is wrong.
    Ok,
    /// `serve` goes on without it.
    Degraded,
    /// `serve` refuses it, or it would stop it soon.
    Refused,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Degraded => "degraded",
            Verdict::Refused => "refused",
        }
    }
}

/// What was found of one thing.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize)]
pub struct Finding {
    /// What was looked at.
    what: &'static str,
    /// How it is with it.
    verdict: Verdict,
    /// What was found, for people.
    found: String,
    /// What to do about it, if anything.
    mend: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Finding {
        Finding { what, verdict: Verdict::Ok, found: found.into(), mend: None }
    }

    fn degraded(what: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { what, verdict: Verdict::Degraded, found: found.into(), mend: Some(mend.into()) }
    }

    fn refused(what: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { what, verdict: Verdict::Refused, found: found.into(), mend: Some(mend.into()) }
    }
}

/// Looks at everything, and says so; exit status 1 if anything is refused, 2 if the configuration cannot be read.
pub fn run(arguments: &DoctorArguments, output: Output) -> Result<(), Failure> {
    let configuration = Configuration::load(&arguments.config)?;
    let mut findings = vec![servable(&configuration)];
    findings.extend(machine::look(&configuration));
    findings.extend(disk::look(&configuration, existing(&configuration.site.data_dir)));
    output.show(&findings, |findings| text(findings))?;
    let is_refused = findings.iter().any(|finding| finding.verdict == Verdict::Refused);
    if is_refused { Err(Failure::Told(1)) } else { Ok(()) }
}

/// Whether `serve` would take the configuration as it is. A gateway that serves it already is no fault.
fn servable(configuration: &Configuration) -> Finding {
    const WHAT: &str = "configuration";
    if data_directory::is_in_use(&configuration.site.data_dir) == Some(true) {
        return Finding::ok(WHAT, format!("{}: a gateway serves it", configuration.file.display()));
    }
    match configuration.check() {
        Ok(()) => Finding::ok(WHAT, format!("{}: can be served", configuration.file.display())),
        Err(error) => Finding::refused(WHAT, format!("{}: {}", error.place, error.problem), error.mend),
    }
}

/// The directory, or the nearest one above it that is there.
fn existing(directory: &Path) -> &Path {
    directory.ancestors().find(|directory| directory.is_dir()).unwrap_or(Path::new("/"))
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { what, verdict, found, mend } in findings {
        text += &format!("{:<9} {what}: {found}\n", verdict.word());
        if let Some(mend) = mend {
            text += &format!("{:<9}   mend: {mend}\n", "");
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (degraded, refused) = (count(Verdict::Degraded), count(Verdict::Refused));
    text + &format!(
        "{} looked at: {refused} refused, {degraded} degraded\n",
        counted(findings.len(), "thing")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mend_stands_below_what_it_mends() {
        let findings = [Finding::ok("a", "fine"), Finding::degraded("b", "slow", "a faster one")];
        let expected = "ok        a: fine\ndegraded  b: slow\n            mend: a faster one\n\
                        2 things looked at: 0 refused, 1 degraded\n";
        assert_eq!(text(&findings), expected);
    }

    #[test]
    fn what_is_not_there_yet_is_looked_at_above() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(existing(&directory.path().join("data/of/a/site")), directory.path());
        assert_eq!(existing(directory.path()), directory.path());
    }
}
