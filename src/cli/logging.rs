//! Logs on standard error, as text or JSON. `AFTERIMAGE_LOG` says more precisely than the configuration how much.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use super::failure::Failure;
use crate::config::{Log, LogFormat, LogLevel};

/// Says more precisely than the configuration what is logged.
pub const VARIABLE: &str = "AFTERIMAGE_LOG";

/// Starts logging for the rest of the process.
pub fn start(log: Log) -> Result<(), Failure> {
    let filter = filter(log.level)?;
    // What cannot be written is not complained of there, either: that would end the thread that has something to tell.
    let builder =
        tracing_subscriber::fmt().log_internal_errors(false).with_env_filter(filter).with_writer(io::stderr);
    let started = match log.format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => {
            let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colour).try_init()
        }
    };
    started.map_err(|error| Failure::Usage(format!("logging was started already ({error})")))
}

fn filter(level: LogLevel) -> Result<EnvFilter, Failure> {
    match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|error| {
            Failure::Usage(format!(
                "{VARIABLE} = \"{text}\": not a filter ({error}): write for example info or debug"
            ))
        }),
        _ => {
            let level = match level {
                LogLevel::Error => "error",
                LogLevel::Warn => "warn",
                LogLevel::Info => "info",
                LogLevel::Debug => "debug",
                LogLevel::Trace => "trace",
            };
            // The level is for our own lines; the libraries' debugging is for whoever asks for it by name.
            Ok(EnvFilter::new(format!("warn,afterimage={level}")))
        }
    }
}
