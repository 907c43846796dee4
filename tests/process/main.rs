//! The gateway as a process: what survives its end, what it refuses, and what one client may do to another.
#![cfg(feature = "server")]

#[path = "../support/certificates.rs"]
#[allow(dead_code)]
mod certificates;
#[path = "../support/content.rs"]
#[allow(dead_code)]
mod content;
#[path = "../support/gateway.rs"]
#[allow(dead_code)]
mod gateway;
#[path = "../support/schema.rs"]
mod schema;
#[path = "../support/tool.rs"]
#[allow(dead_code)]
mod tool;

mod adoption;
mod cancelled;
mod catalogue_rot;
mod check;
mod connections;
mod descriptors;
mod doctor;
mod early_stop;
mod events;
mod failed_groups;
mod failing_requests;
mod freeing;
mod full_disk;
mod history;
mod hooks;
mod idle_memory;
mod image_rot;
mod import;
mod index_runs;
mod keys;
mod lateness;
mod limits;
mod locked_groups;
mod metrics;
mod missing_images;
mod no_points;
mod operations;
mod overlay_rot;
mod private;
mod refusals;
mod removal;
mod repair;
mod report;
mod restart;
mod restore;
mod rot;
mod schemas;
mod sectors;
mod size_limit;
mod small_file_system;
mod small_limits;
mod storage;
mod tail_rot;
mod tokens;
mod unwritable_log;
mod verify;
