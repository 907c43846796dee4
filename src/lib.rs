//! Afterimage: continuous replication and point-in-time recovery for VM disks on Linux/KVM.
//!
//! The rooms and their dependencies, which point downwards only, are drawn in `docs/architecture.md`; the formats
//! are in `docs/format.md`.

pub mod block;
#[cfg(feature = "server")]
pub mod byte_size;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod control;
#[cfg(feature = "server")]
pub mod data_directory;
pub mod env;
pub mod error;
#[cfg(feature = "server")]
pub mod listen;
pub mod runtime;
#[cfg(feature = "server")]
pub mod site;
pub mod storage;
pub mod units;
