//! Golden files: bytes that a released Afterimage may have written, and what they mean. They bind: every later build reads
//! them as this one does.
//!
//! `tests/golden/N/` is a set, made when a format was new. Sets are only added: `SHA256SUMS` in each says what its files
//! are, and `tests/run check` refuses a history in which one of them changed. A format that changes gets a new version and a
//! new set; the old set's tests stay. To make the files that a set still lacks:
//! `AFTERIMAGE_WRITE_GOLDEN=1 cargo test --test golden`.

#[path = "../support/frame_fuzz.rs"]
mod frame_fuzz;
#[path = "../support/keyring_fuzz.rs"]
mod keyring_fuzz;
#[path = "../support/run_fuzz.rs"]
mod run_fuzz;
#[path = "../support/side_fuzz.rs"]
mod side_fuzz;
#[path = "../support/summary_fuzz.rs"]
mod summary_fuzz;
#[path = "../support/sums_fuzz.rs"]
mod sums_fuzz;
#[path = "../support/vault_fuzz.rs"]
mod vault_fuzz;

#[cfg(feature = "server")]
#[path = "../support/content.rs"]
#[allow(dead_code)]
mod content;
#[cfg(feature = "server")]
#[path = "../support/gateway.rs"]
#[allow(dead_code)]
mod gateway;
#[cfg(feature = "server")]
#[path = "../support/tool.rs"]
#[allow(dead_code)]
mod tool;

mod files;
mod formats;
#[cfg(feature = "server")]
mod later;
mod sets;
#[cfg(feature = "server")]
mod site;
