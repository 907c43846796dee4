//! `report`: how a group fared over time, as a plot in a file and a few lines on the terminal.
//!
//! ```text
//!   the API's report ─▶ panels: what is drawn ─▶ plot: SVG ─▶ a file
//!                   └─▶ render: text
//! ```

mod axes;
mod panels;
mod plot;
mod theme;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::arguments::{Consent, ReportArguments};
use super::client::Client;
use super::failure::Failure;
use super::output::{Output, confirm, print};
use super::render;
use crate::control::model::GroupReport;
use crate::error::{Error, ErrorKind};

/// `report`
pub async fn run(arguments: ReportArguments, client: &Client, output: Output) -> Result<(), Failure> {
    let ReportArguments { group, last, to, consent } = arguments;
    let route = format!("/v1/groups/{group}/report?last_ms={}", last.as_millis());
    let report: GroupReport = client.get(&route).await?;
    output.show(&report, render::report)?;
    // Who reads JSON draws for himself, unless he names a file.
    let file = match (to, output.json) {
        (Some(file), _) => file,
        (None, false) => PathBuf::from(format!("{}-report.svg", report.group)),
        (None, true) => return Ok(()),
    };
    if is_empty(&report) {
        return Err(nothing(&report, last).into());
    }
    let drawn = plot::svg(&report)?;
    put(&file, &drawn, consent).await?;
    if output.json { Ok(()) } else { print(&format!("\nplot  {}\n", file.display())) }
}

fn is_empty(report: &GroupReport) -> bool {
    let was_written = report.spans.iter().any(|span| span.written_bytes > 0 || span.points > 0);
    !was_written && report.points.is_empty()
}

fn nothing(report: &GroupReport, last: Duration) -> Error {
    let text = format!(
        "nothing to draw: in the last {} nothing was written to {}, and it has no recovery point",
        humantime::format_duration(last),
        report.group
    );
    Error::new(ErrorKind::NotFound, text)
}

/// Writes a file; what has its name is overwritten only if a person agrees.
async fn put(file: &Path, text: &str, consent: Consent) -> Result<(), Failure> {
    match write(file, text, consent.yes) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            confirm(false, &format!("overwriting {}", file.display())).await?;
            Ok(write(file, text, true)?)
        }
        written => Ok(written?),
    }
}

fn write(file: &Path, text: &str, overwrite: bool) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    match overwrite {
        true => options.write(true).create(true).truncate(true),
        false => options.write(true).create_new(true),
    };
    let written = options.open(file).and_then(|mut target| target.write_all(text.as_bytes()));
    written.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            let text = "its directory does not exist: create it, or name another file";
            Error::new(ErrorKind::NotFound, text).at_path(file)
        }
        _ => Error::io("writing the plot", error).at_path(file),
    })
}
