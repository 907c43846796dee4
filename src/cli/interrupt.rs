//! Somebody wants this process to end: Ctrl-C, SIGTERM, or a terminal that went away.
//!
//! Whoever has something to put right before the end hears of it here; everybody else is simply ended by the kernel.

use futures::FutureExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::Failure;
use crate::error::Error;

/// The signals that ask for the end. They are remembered from [`Interrupts::listen`] on, also while nobody waits here.
pub struct Interrupts([Signal; 3]);

impl Interrupts {
    /// From now on these signals do not end the process, until its end.
    pub fn listen() -> Result<Interrupts, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Error::io("listening for signals", error));
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(listen);
        Ok(Interrupts([interrupt?, terminate?, hangup?]))
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }

    /// Whether none came since the last one was asked for.
    ///
    /// # Errors
    /// [`Failure::Interrupted`], in the words of `what`, if one did.
    pub async fn check(&mut self, what: &str) -> Result<(), Failure> {
        // Signals reach us through the runtime, which has to have a turn.
        tokio::task::yield_now().await;
        match self.next().now_or_never() {
            Some(()) => Err(Failure::Interrupted(what.to_owned())),
            None => Ok(()),
        }
    }
}
