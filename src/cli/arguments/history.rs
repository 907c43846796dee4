//! What asks for the past: events, jobs, the audit trail, hooks.

use clap::{Args, Subcommand, ValueEnum};

use super::super::values::{count, since};
use crate::control::model::{AuditQuery, EventQuery, Severity};
use crate::control::name::Name;
use crate::units::WallNanos;

#[derive(Debug, Args)]
pub struct EventsArguments {
    /// Only this group's
    #[arg(long, value_name = "GROUP")]
    pub group: Option<Name>,
    /// Only those that are at least so grave
    #[arg(long, value_enum)]
    pub severity: Option<SeverityArgument>,
    /// Only those from then on: a duration ago, as in 2h, or a time, RFC 3339
    #[arg(long, value_name = "AGE|TIME", value_parser = since, allow_hyphen_values = true)]
    pub since: Option<WallNanos>,
    /// The newest so many
    #[arg(long, value_name = "COUNT", default_value_t = EventQuery::LIMIT_DEFAULT, value_parser = count,
          allow_hyphen_values = true)]
    pub limit: u32,
    /// Print events as they come, also over restarts of the gateway, until Ctrl-C; with --since, those from then on first
    #[arg(long, conflicts_with = "limit")]
    pub follow: bool,
}

/// How grave an event is, as it is typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SeverityArgument {
    Info,
    Warning,
    Error,
}

impl From<SeverityArgument> for Severity {
    fn from(argument: SeverityArgument) -> Severity {
        match argument {
            SeverityArgument::Info => Severity::Info,
            SeverityArgument::Warning => Severity::Warning,
            SeverityArgument::Error => Severity::Error,
        }
    }
}

#[derive(Debug, Args)]
pub struct AuditArguments {
    /// The newest so many
    #[arg(long, value_name = "COUNT", default_value_t = AuditQuery::LIMIT_DEFAULT, value_parser = count,
          allow_hyphen_values = true)]
    pub limit: u32,
}

#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// Show a job: what, who asked for it, how far it is, or how it ended
    #[command(after_help = "Example:\n  afterimage job show 0123456789abcdef0123456789abcdef")]
    Show {
        /// Its id, as `jobs` lists it
        #[arg(value_parser = super::super::values::job)]
        id: String,
    },
    /// Have a job give up; what it had made goes
    #[command(after_help = "Example:\n  afterimage job cancel 0123456789abcdef0123456789abcdef")]
    Cancel {
        /// Its id, as `jobs` lists it
        #[arg(value_parser = super::super::values::job)]
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum HooksCommand {
    /// List hooks, and how each stands since the gateway was started
    #[command(after_help = "Example:\n  afterimage hooks list")]
    List,
    /// Have a hook told an event `hook_test`, once; exit status 1 if it fails
    #[command(after_help = "Example:\n  afterimage hooks test page")]
    Test {
        /// The hook's name in the configuration
        name: Name,
    },
}
