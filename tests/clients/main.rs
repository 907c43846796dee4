//! Real block clients against the real program: a file per client, each once on the storage back end that `auto`
//! finds and once on the blocking one.
//!
//! A client that is not installed fails its tests; none is ever skipped. `tests/run` installs what is missing.
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
#[path = "../support/mount.rs"]
mod mount;
#[path = "../support/tool.rs"]
#[allow(dead_code)]
mod tool;

/// Makes of `fn name(backend)` two tests: `name::auto` and `name::blocking`.
macro_rules! on_each_backend {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn auto() {
                super::$name("auto");
            }

            #[test]
            fn blocking() {
                super::$name("blocking");
            }
        }
    )+};
}

mod attach;
mod concurrency;
mod ext4;
mod fio;
mod geometry;
mod nbdcopy;
mod nbdinfo;
mod point_mount;
mod postgres;
mod qemu_img;
mod qemu_io;
mod restore_formats;
mod tls;
