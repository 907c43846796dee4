//! Bytes ↔ values: pure, no I/O, no clock. Every byte is described in `docs/format.md`.
//!
//! Hostile or damaged bytes give a typed fault, never a panic and never an allocation beyond the stated bounds.

pub mod checkpoint;
pub mod frame;
pub mod marker;
