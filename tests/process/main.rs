//! The gateway as a process: what survives its end, what it refuses, and what one client may do to another.
#![cfg(feature = "server")]

#[path = "../support/content.rs"]
#[allow(dead_code)]
mod content;
#[path = "../support/gateway.rs"]
#[allow(dead_code)]
mod gateway;
#[path = "../support/tool.rs"]
#[allow(dead_code)]
mod tool;

mod adoption;
mod cancelled;
mod connections;
mod events;
mod failed_groups;
mod freeing;
mod full_disk;
mod import;
mod index_runs;
mod keys;
mod lateness;
mod limits;
mod missing_images;
mod private;
mod refusals;
mod restart;
mod restore;
mod rot;
mod small_file_system;
mod storage;
mod unwritable_log;
mod verify;
