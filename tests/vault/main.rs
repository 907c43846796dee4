//! Formats, vault, deltas, views and overlays, on the blocking back end.

mod delta;
mod format;
mod manifest;
mod overlay;
mod support;
mod verify;
mod view;
