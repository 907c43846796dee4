//! The command line: text in, text out. Every verb but `serve`, `demo`, `doctor`, `journal` and what prints
//! documents is a thin client of the API.
//!
//! Exit statuses: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted; of `check`, those of monitoring ([`check`]). Errors are one line on standard error that begins
//! with `error: `. Whoever stops reading our output (`| head`) ends us quietly.

mod arguments;
mod attach;
mod check;
pub mod client;
mod commands;
pub mod demo;
mod doctor;
mod documents;
mod failure;
mod history;
mod interrupt;
pub mod journal;
mod keys;
mod logging;
mod mounting;
pub mod output;
pub mod place;
mod progress;
mod render;
mod report;
pub mod schemas;
mod serve;
mod tokens;
mod tools;
mod values;
mod waiting;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind as UsageKind;

use arguments::{Arguments, Command, JournalCommand, SOCKET_VARIABLE};
pub use failure::Failure;
use output::Output;
use place::{Place, TOKEN_VARIABLE};

use crate::storage::size_limit;

/// Parses the process's arguments, does what they say, and tells how it went.
pub fn main() -> ExitCode {
    size_limit::survive();
    let words: Vec<OsString> = std::env::args_os().collect();
    let arguments = match Arguments::of(&words) {
        Ok(arguments) => arguments,
        Err(refusal) => return usage(&refusal, check::is_meant(&words)),
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// What clap says instead of arguments: help or version, or an error, which becomes one line.
fn usage(refusal: &clap::Error, for_monitoring: bool) -> ExitCode {
    match refusal.kind() {
        UsageKind::DisplayHelp | UsageKind::DisplayVersion => output::print(&refusal.render().to_string())
            .map_or_else(|failure| failure.report(), |()| ExitCode::SUCCESS),
        UsageKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            output::complain(&refusal.render().to_string());
            ExitCode::from(failure::USAGE)
        }
        _ => {
            let text = refusal.render().to_string();
            let (problem, _) = text.split_once("\n\nUsage:").unwrap_or((&text, ""));
            let problem = problem.split("\n\nFor more information").next().unwrap_or(problem);
            let problem = format!("{}; see --help", problem.trim_start_matches("error: ").trim_end());
            match for_monitoring {
                true => check::refused(&problem).report(),
                false => Failure::Usage(problem).report(),
            }
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let output = Output { json: arguments.json };
    let place = arguments.place(std::env::var_os(SOCKET_VARIABLE));
    let token_file = arguments.token_file.clone();
    match arguments.command {
        Command::Serve { config, dies_with } => serve::run(&config, dies_with),
        Command::Demo { keep } => demo::run(keep),
        Command::Doctor(arguments) => doctor::run(&arguments, output),
        Command::Journal(JournalCommand::Inspect { path, frames, records }) => {
            journal::inspect(&path, journal::Depth::chosen(frames, records), output)
        }
        Command::Journal(JournalCommand::Verify { path }) => journal::verify(&path, output),
        Command::Completions { shell } => output::print(&documents::completions(shell)),
        Command::Man { to } => documents::write_man_pages(&to),
        Command::Client(command) => {
            let place = place?;
            let token = match &place {
                Place::Socket(_) => None,
                Place::Address(_) => {
                    Some(place::token(token_file.as_deref(), std::env::var_os(TOKEN_VARIABLE))?)
                }
            };
            let client = client::Client::new(place, token);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| crate::error::Error::io("starting the client", error))?;
            let done = runtime.block_on(commands::run(command, client, output));
            // A question that nobody answers any more is not waited for.
            runtime.shutdown_background();
            done
        }
    }
}
