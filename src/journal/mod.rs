//! The journal: every write of a group, in one order, on disk before it is acknowledged.
//!
//! ```text
//!  intake ─▶ writer ─(commit policy)─▶ frames ─▶ segments          opening: scan ─▶ recover ─▶ writer
//! ```
//!
//! `segments` keeps the files, `payloads` what stands in each, `writer` is the only one who writes to them: `frame_plan` lays out
//! what it writes, `durability` says what of it survives a power cut. `scan` reads them back, `recover` decides what that means,
//! `open` applies the decision, `cache` keeps what was written last, `reader` reads back and verifies, `joined` does so for many records at once, `patience` says how often a read that fails is tried again, `sift` finds what rotted or is not given, `runs` says much of it again
//! in few bytes, for the next opening, `inspect` looks at all of it from outside. The frame's bytes are `format::frame`'s.

pub mod boot;
pub mod cache;
pub mod commit;
mod durability;
mod frame_plan;
pub mod inspect;
pub mod intake;
pub mod joined;
pub mod keys;
pub mod open;
pub mod patience;
pub mod payloads;
pub mod reader;
mod recent;
pub mod recover;
pub mod refusal;
pub mod runs;
pub mod scan;
mod segment_read;
pub mod segments;
pub mod sift;
pub mod tail;
pub mod writer;
