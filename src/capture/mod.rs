//! How guests' writes come in: one module a capture mode, all of which end in [`block::Request`](crate::block).
//!
//! Today that is `nbd`, inline: the gateway serves the disk. Nothing here owns a socket, a clock or a disk.

pub mod nbd;
