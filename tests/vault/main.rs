//! Formats, vault, deltas, views and overlays: on the blocking back end, and what power cuts leave on the simulated one.

#[cfg(feature = "sim")]
mod base_faults;
mod base_in_pieces;
mod corpus;
mod delta;
mod format;
mod manifest;
mod overlay;
#[cfg(feature = "sim")]
mod overlay_faults;
#[path = "../support/pieces.rs"]
mod pieces;
#[cfg(feature = "sim")]
mod power;
mod repair;
#[cfg(feature = "sim")]
mod reserve;
mod retention;
mod sealing;
mod summaries;
#[path = "../support/summary_fuzz.rs"]
mod summary_fuzz;
#[path = "../support/sums_fuzz.rs"]
mod sums_fuzz;
mod support;
#[path = "../support/vault_fuzz.rs"]
mod vault_fuzz;
mod verify;
mod view;
