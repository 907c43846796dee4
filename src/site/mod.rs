//! The process: data threads, and what is shared between them.
//!
//! ```text
//!   clients ─▶ Listener ─▶ Session ─┐ same thread: a call
//!                                   ├──────────────────────▶ Host ─▶ Volume (a group)
//!   clients ─▶ Listener ─▶ Session ─┘ other thread: its intake
//!                                                       DataThread = Host + sessions + one loop
//!   control plane ─▶ DataThreads ─▶ intake of each thread
//! ```

mod adoption;
mod api_listeners;
mod background_verification;
mod clients;
mod convert;
mod damage;
mod data_thread;
mod data_threads;
mod disk_verbs;
mod disks_verification;
mod event_counts;
mod events;
mod export_registry;
mod failing;
mod gateway;
mod group_table;
mod group_verbs;
mod hooks;
mod host;
mod idle_memory;
mod keys;
mod listener;
mod member;
mod message;
mod metrics_listener;
mod opening;
mod reach;
mod removal;
mod repair;
mod reporting;
mod retention_verbs;
mod sampling;
mod serve;
mod session;
mod supervision;
mod suspicion;
mod tls_stream;
mod verbs;
mod verification;
mod verify_marks;

pub use data_threads::{DataThreads, DataThreadsOptions, Draining, SessionLimits};
pub use export_registry::ExportRegistry;
pub use gateway::{Gateway, StorageFound};
pub(crate) use hooks::descriptors_of_hooks;
pub use host::{Host, Later};
pub use keys::KeyStore;
pub use member::Member;
pub use serve::ControlPlane;
