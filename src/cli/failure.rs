//! How a command failed: what is said on standard error, and the exit status.

use std::fmt;
use std::io;
use std::process::ExitCode;

use super::output;
use super::place::Place;
use crate::config::{ConfigurationError, one_line};
use crate::error::{Error, ErrorKind};

/// Exit status of wrong usage or configuration.
pub(super) const USAGE: u8 = 2;
const FAILED: u8 = 1;
/// What shells say of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;
/// What each exit status means.
pub(super) const EXIT_STATUSES: [(u8, &str); 4] = [
    (0, "Done."),
    (FAILED, "It was tried and failed, or what was looked at is damaged; a line on standard error says why."),
    (
        USAGE,
        "Wrong usage or configuration: nothing was touched. Of check, these statuses are those of monitoring: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.",
    ),
    (
        INTERRUPTED,
        "Interrupted by Ctrl-C; what had been begun is put right as far as the line on standard error says.",
    ),
];

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// It was asked wrongly.
    Usage(String),
    /// The configuration can't be served.
    Configuration(ConfigurationError),
    /// It was tried and failed.
    Failed(Error),
    /// No gateway answers.
    Unreachable {
        /// Where it was looked for.
        place: Place,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody wanted it to end before it was done; what it had begun is put right as far as the text says.
    Interrupted(String),
    /// It is said already, where it was asked for; the exit status says how it is.
    Told(u8),
    /// Whoever read our output went away: nothing to tell them.
    Hangup,
}

impl Failure {
    /// Whether there was no gateway to ask, or none any more.
    pub fn is_without_gateway(&self) -> bool {
        match self {
            Failure::Unreachable { .. } => true,
            Failure::Failed(error) => matches!(error.kind(), ErrorKind::Shutdown | ErrorKind::Protocol),
            _ => false,
        }
    }

    /// Says it in one line, and gives the exit status.
    pub fn report(&self) -> ExitCode {
        if !matches!(self, Failure::Hangup | Failure::Told(_)) {
            output::complain(&format!("error: {}\n", one_line(&self.to_string())));
        }
        match self {
            Failure::Usage(_) | Failure::Configuration(_) => ExitCode::from(USAGE),
            Failure::Failed(_) | Failure::Unreachable { .. } => ExitCode::from(FAILED),
            Failure::Interrupted(_) => ExitCode::from(INTERRUPTED),
            Failure::Told(status) => ExitCode::from(*status),
            Failure::Hangup => ExitCode::SUCCESS,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(text) => f.write_str(text),
            Failure::Configuration(error) => error.fmt(f),
            Failure::Failed(error) => error.fmt(f),
            Failure::Unreachable { place: Place::Socket(socket), source }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                write!(
                    f,
                    "the gateway's socket {} is for root and for the user that the gateway runs as ({source}): ask as one of them, \
                 for example by sudo",
                    socket.display()
                )
            }
            Failure::Unreachable { place: Place::Address(address), source } => write!(
                f,
                "no gateway answers on {address} ({source}): its configuration must have this address in [api] listen, and the way to it \
                 must be open"
            ),
            Failure::Unreachable { place, source } => write!(
                f,
                "no gateway answers on {place} ({source}): start one with `afterimage serve --config FILE`, or name its \
                 socket with --socket or AFTERIMAGE_SOCKET"
            ),
            Failure::Interrupted(what) => write!(f, "interrupted: {what}"),
            Failure::Told(status) => write!(f, "exit status {status}"),
            Failure::Hangup => f.write_str("nobody reads the output"),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Failed(error)
    }
}

impl From<ConfigurationError> for Failure {
    fn from(error: ConfigurationError) -> Failure {
        Failure::Configuration(error)
    }
}
