//! The oracle: a workload whose every sector says what it is, a history of what was asked and answered, and a judge
//! of what is found later. The demo and the process tests share it.
//!
//! It stands outside of what it judges: it knows disks, requests and answers as an NBD client does, and nothing of
//! journals, frames or LSNs.
//!
//! ```text
//!   Workload ──▶ Load: connections ──NBD──▶ gateway
//!                  │ issued, acknowledged        │
//!                  ▼                             ▼ disks, points, restored files
//!               History ──────▶ judge ◀──────  Image
//! ```
//!
//! Invariant: stamps come from one counter ([`Clock`]). A write's is drawn before its first byte is sent, an
//! acknowledgement's after its last byte was received; so `acknowledged < issued` means that the gateway had said
//! yes to the one before anybody could ask for the other, on whatever disk or connection.

mod driver;
mod history;
mod image;
mod judge;
mod sector;
mod workload;

pub use driver::{Counters, Load, OnLoss, Outcome, Running, Target};
pub use history::{Clock, Effect, Flush, History, Operation, Stamp};
pub use image::{Found, Image};
pub use judge::{ATOMIC_BYTES, Because, Bounds, Fault, Verdict, Violation, judge};
pub use sector::{Foreign, Place, SECTOR_BYTES, fill, identify};
pub use workload::{Step, Workload};
