//! A protection group: the disks that share one journal, and so one order of writes.
//!
//! ```text
//!  requests ─▶ group ─▶ journal ─▶ layers ─▶ destage ─▶ images
//!                │                   └─▶ interval ─▶ publisher ─▶ vault (deltas, points)
//!                └─ reads: layers, then images
//! ```

pub mod allocation;
pub mod disk;
pub mod group;
pub mod interval;
pub mod layers;
pub mod membership;
pub mod open;
pub mod publisher;
pub mod reads;
pub mod status;
