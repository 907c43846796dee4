//! Delta blobs: built from an interval's extents in one pass, read by ranges of chunks.
//!
//! The bytes are `format::delta`'s, the place is the vault's to choose. Merging, compressing and sealing belong here and do
//! not exist yet; the format has their fields.

mod builder;
mod reader;

pub use builder::{Build, BuiltDelta, DiskExtents, Sink, Source, SourceContent};
pub use reader::{DeltaReader, read_chunk};
