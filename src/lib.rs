//! Afterimage: continuous replication and point-in-time recovery for VM disks on Linux/KVM.
//!
//! The rooms and their dependencies, which point downwards only, are drawn in `docs/architecture.md`; the formats
//! are in `docs/format.md`.

pub mod block;
pub mod capture;
pub mod env;
pub mod error;
pub mod journal;
pub mod runtime;
#[cfg(feature = "server")]
pub mod site;
pub mod storage;
pub mod sync;
pub mod units;
