//! A protection group: the disks that share one journal, and so one order of writes.
//!
//! ```text
//!  requests ─▶ group ─▶ journal ─▶ layers ─▶ destage ─▶ images
//!                │                   └─▶ interval ─▶ publisher ─▶ vault (deltas, points)
//!                └─ reads: layers, then images
//! ```

pub mod adopt;
mod alarm;
pub mod allocation;
mod checks;
pub mod clock;
mod destaging;
pub mod disk;
pub mod events;
pub mod failing;
mod fetch;
pub mod group;
pub mod indexing;
pub mod interval;
pub mod latching;
mod lateness;
pub mod layers;
pub mod loss;
mod mailbox;
mod map_limit;
pub mod membership;
mod observing;
pub mod open;
pub mod place;
mod points;
pub mod publisher;
pub mod reads;
mod recycling;
pub mod renewal;
pub mod repair;
pub mod repetition;
mod requests;
mod resizing;
pub mod resume;
pub mod retention;
mod retry;
pub mod shrinking;
pub mod status;
mod stopping;
pub mod summing;
mod suspension;
pub mod tasks;
mod telling;
mod throttle;
pub mod verify;
