//! Which back end runs: io_uring where it works, else blocking threads, and why.
//!
//! Whether io_uring works is found out by using it (kernels are built without it, containers and sysctls forbid it),
//! not by looking at a version.

use super::blocking::Blocking;
use super::uring::Uring;
use super::{Backend, Storage};
use crate::error::Result;

/// Which back end a person wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// io_uring if it works here, else blocking threads.
    #[default]
    Best,
    /// io_uring, or an error.
    Uring,
    /// Blocking threads.
    Blocking,
}

/// How to open a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendOptions {
    /// Which one.
    pub preference: Preference,
    /// Requests that the ring holds at once; more are queued behind it.
    pub queue_depth: u32,
    /// Blocking threads: all I/O of the blocking back end, names and allocation of io_uring.
    pub workers: usize,
}

impl Default for BackendOptions {
    fn default() -> BackendOptions {
        BackendOptions { preference: Preference::Best, queue_depth: 256, workers: 4 }
    }
}

/// A back end, and why it is not the best one.
pub struct Chosen {
    /// The back end; it belongs to the thread that opened it.
    pub storage: Box<dyn Storage>,
    /// Why io_uring does not run although it was welcome; `None` when the wish was met.
    pub fallback: Option<String>,
}

impl std::fmt::Debug for Chosen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let backend: Backend = self.storage.backend();
        f.debug_struct("Chosen").field("backend", &backend).field("fallback", &self.fallback).finish()
    }
}

/// Opens the best back end that `options` allow, on the thread that will own it.
pub fn open_best(options: &BackendOptions) -> Result<Chosen> {
    let BackendOptions { preference, queue_depth, workers } = *options;
    let uring = || Uring::new(queue_depth, workers);
    match preference {
        Preference::Uring => Ok(Chosen { storage: Box::new(uring()?), fallback: None }),
        Preference::Blocking => Ok(Chosen { storage: Box::new(Blocking::new(workers)?), fallback: None }),
        Preference::Best => match uring() {
            Ok(uring) => Ok(Chosen { storage: Box::new(uring), fallback: None }),
            Err(error) => {
                Ok(Chosen { storage: Box::new(Blocking::new(workers)?), fallback: Some(error.to_string()) })
            }
        },
    }
}
