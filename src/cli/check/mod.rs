//! `check`: one line and an exit status for monitoring systems, in the form of the Monitoring Plugins guidelines. What is how bad is
//! [`verdict`]'s to say.
//!
//! Exit statuses are not those of the other commands: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN, which is also wrong usage and whatever keeps
//! the question from being answered. All that is said goes to standard output, which is what monitoring systems show.

mod verdict;

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use clap::Args;

use super::client::Client;
use super::failure::Failure;
use super::output::{Output, print};
use super::values::{duration, timeout};
use crate::config::one_line;
use crate::control::model::Status;
use crate::control::name::Name;
pub use verdict::Verdict;
use verdict::{Ages, Level};

/// The word that it is asked by.
const VERB: &str = "check";
/// Options before the verb that a value follows.
const WITH_VALUE: [&str; 2] = ["--socket", "--token-file"];

#[derive(Debug, Args)]
pub struct CheckArguments {
    /// Only this group
    group: Option<Name>,
    /// WARNING once the oldest write that no point holds is as old
    #[arg(long, value_name = "AGE", default_value = "2m", value_parser = duration, allow_hyphen_values = true)]
    warning_age: Duration,
    /// CRITICAL once it is as old
    #[arg(long, value_name = "AGE", default_value = "10m", value_parser = duration, allow_hyphen_values = true)]
    critical_age: Duration,
    /// UNKNOWN if the gateway has not answered within
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = timeout, allow_hyphen_values = true)]
    timeout: Duration,
}

/// Asks the gateway how it stands, and says how bad that is.
pub async fn run(arguments: CheckArguments, client: &Client, output: Output) -> Result<(), Failure> {
    let CheckArguments { group, warning_age: warning, critical_age: critical, timeout } = arguments;
    if warning > critical {
        let text = "--warning-age is longer than --critical-age: write a shorter one, or leave it out";
        return tell(&Verdict::unknown(text.to_owned()), output);
    }
    let asked = tokio::time::timeout(timeout, client.get::<Status>("/v1/status")).await;
    let verdict = match asked {
        Err(_) => {
            let seconds = timeout.as_secs_f64();
            Verdict::unknown(format!("the gateway has not answered within {seconds} s"))
        }
        Ok(Err(failure)) => Verdict::unknown(failure.to_string()),
        Ok(Ok(status)) => Verdict::of(&status, group.as_ref(), Ages { warning, critical }),
    };
    tell(&verdict, output)
}

fn tell(verdict: &Verdict, output: Output) -> Result<(), Failure> {
    output.show(verdict, |verdict| verdict.line() + "\n")?;
    Err(Failure::Told(verdict.level.exit_status()))
}

/// Whether these words, the program's name first, mean this command, even if they are not to be understood.
pub fn is_meant(words: &[OsString]) -> bool {
    let mut words = words.iter().skip(1).map(OsString::as_os_str);
    while let Some(word) = words.next() {
        if WITH_VALUE.iter().any(|option| word == OsStr::new(option)) {
            words.next();
        } else if !word.as_encoded_bytes().starts_with(b"-") {
            return word == OsStr::new(VERB);
        }
    }
    false
}

/// Says that it was asked wrongly, and how.
pub fn refused(problem: &str) -> Failure {
    let line = Verdict::unknown(one_line(problem)).line();
    match print(&(line + "\n")) {
        Ok(()) => Failure::Told(Level::Unknown.exit_status()),
        Err(failure) => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verb_is_known_among_words_that_are_wrong() {
        let is_meant = |line: &str| is_meant(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(
            is_meant("afterimage check --no-such") && is_meant("afterimage --json --socket /s check a b")
        );
        assert!(is_meant("afterimage --socket=/s check --warning-age x"));
        assert!(
            !is_meant("afterimage --socket check status") && !is_meant("afterimage events --group check")
        );
        assert!(!is_meant("afterimage"));
    }
}
