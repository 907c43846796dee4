//! Summaries: the extents of neighbouring deltas merged into one sorted table, newest bytes winning, which is searched
//! page by page where it lies. What they are for: `docs/opening-a-point.md`; the bytes are `format::summary`'s.
//!
//! Which deltas are summarized, and where the files lie, is the vault's to say. Nothing here is the truth about anything:
//! whatever is wrong with a summary, the deltas say the same.

mod builder;
mod page;
mod reader;
mod sweep;

pub use builder::{Failed, Identity, Input, build};
pub use reader::{SummaryReader, read_end};
