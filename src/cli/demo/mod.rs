//! `demo`: protects two disks in a temporary directory, crashes the gateway, recovers, verifies every block.
//!
//! It needs nothing but the binary, leaves nothing behind unless asked to, and believes nobody: what it compares with
//! is the [oracle](crate::oracle), which has seen requests and answers only. The gateway process and its API serve
//! the process tests too.

mod api;
mod process;
mod report;
mod screen;
mod story;

use tokio::signal::unix::{SignalKind, signal};

pub use api::Api;
pub use process::{GatewayProcess, JournalSize};

use super::failure::Failure;
use crate::error::{Error, ErrorKind};

/// Runs the demonstration; with `keep` the gateway stays.
pub fn run(keep: bool) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("starting the demo", error))?;
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = story::tell(keep) => ended,
            interrupted = interruption() => Err(interrupted),
        }
    });
    // A thread that reads a disk ends with the gateway; nobody waits for what it has read.
    runtime.shutdown_background();
    ended
}

/// Waits until a person has had enough. What the story holds, process and directory, goes when it is dropped.
async fn interruption() -> Failure {
    let watch = |kind| signal(kind).map_err(|error| Error::io("watching for signals", error));
    let watched = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(watch);
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = watched else {
        return Error::new(ErrorKind::Io, "cannot watch for signals").into();
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Error::new(ErrorKind::Shutdown, "interrupted: the gateway was killed and the directory removed").into()
}
