//! Delta blobs: built from an interval's extents in one pass, read by ranges of chunks, layered, merged.
//!
//! The bytes are `format::delta`'s, the place is the vault's to choose. Chunks and tables are compressed and sealed here.

mod adaptive;
mod builder;
mod layers;
mod merge;
mod pack;
mod reader;

pub use builder::{Build, BuiltDelta, DiskExtents, Sink, Source, SourceContent};
pub use layers::{LayeredDisk, Layering, Place};
pub use merge::merge;
pub use reader::{DeltaReader, read_chunk};
