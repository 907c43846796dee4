//! A disk whose image fails, or cannot be had at opening, on the simulated disk: the other disks live on, what it lacks
//! survives in a side file, and a resume or a restart brings it back.
//!
//! It began with a group that stopped for one broken image: what that lacked stayed in the journal, the journal filled,
//! and in the end every disk waited. Later a group with one missing image could not be opened at all.

mod fragmented;
mod machine;
mod opening;
#[path = "../support/pieces.rs"]
mod pieces;
mod rot;
mod running;
#[path = "../support/stepped.rs"]
mod stepped;
mod sums;
mod verify;
mod withheld;
