//! What asks how a group fared.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::super::values::last;
use super::Consent;
use crate::control::name::Name;

#[derive(Debug, Args)]
pub struct ReportArguments {
    /// The group
    pub group: Name,
    /// How far back it reaches
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = last, allow_hyphen_values = true)]
    pub last: Duration,
    /// Where the plot goes, an SVG file; GROUP-report.svg unless given, and with --json none
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
    #[command(flatten)]
    pub consent: Consent,
}
