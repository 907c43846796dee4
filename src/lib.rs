//! Afterimage: continuous replication and point-in-time recovery for VM disks on Linux/KVM.
//!
//! The rooms and their dependencies, which point downwards only, are drawn in `docs/architecture.md`; the formats
//! are in `docs/format.md`.

pub mod allocation;
pub mod block;
pub mod bookmark;
pub mod byte_size;
pub mod capture;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod control;
pub mod counted;
#[cfg(feature = "server")]
pub mod data_directory;
pub mod delta;
#[cfg(feature = "server")]
pub mod descriptors;
pub mod env;
pub mod error;
pub mod extent;
pub mod failover;
pub mod format;
pub mod image;
pub mod journal;
#[cfg(feature = "server")]
pub mod key_file;
#[cfg(feature = "server")]
pub mod listen;
#[cfg(feature = "server")]
pub mod oracle;
pub mod planted;
pub mod pour;
pub mod protect;
pub mod random;
pub mod runtime;
pub mod seal;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "server")]
pub mod site;
pub mod space_gate;
pub mod storage;
pub mod summary;
pub mod sums;
pub mod sync;
pub mod throttle;
#[cfg(feature = "server")]
pub mod tls;
pub mod units;
pub mod vault;
pub mod view;
