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

mod connections;
mod failed_groups;
mod full_disk;
mod import;
mod keys;
mod refusals;
mod restart;
mod restore;
mod storage;
