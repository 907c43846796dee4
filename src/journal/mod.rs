//! The journal of a group.

pub mod intake;
