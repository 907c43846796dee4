//! A small file system of a test's own: it can really fill up, and be frozen while somebody writes to it. Needs root.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use afterimage::units::PAGE_BYTES;
use rustix::fs::statvfs;

use crate::gateway::Setup;
use crate::tool;

/// A small file system of its own, ext4 unless said, most of it taken by one file that can be deleted.
pub struct SmallFileSystem {
    root: PathBuf,
    device: String,
    /// Last: the image's file goes when it is unmounted.
    _directory: tempfile::TempDir,
}

impl SmallFileSystem {
    /// Makes and mounts one.
    #[track_caller]
    pub fn new() -> SmallFileSystem {
        let small = SmallFileSystem::on_device(256 << 20, 512, PAGE_BYTES);
        small.take(184 << 20);
        small
    }

    /// The same as a btrfs that says that so much is left.
    #[track_caller]
    pub fn btrfs(free_bytes: u64) -> SmallFileSystem {
        let small = SmallFileSystem::made(512 << 20, 512, &["mkfs.btrfs", "-q", "-m", "single"]);
        let found = statvfs(&small.root).unwrap();
        small.take(found.f_bavail * found.f_frsize - free_bytes);
        small
    }

    /// Makes and mounts one that is not so small and has nothing in it, on a device whose logical sectors are of that many bytes.
    #[track_caller]
    pub fn of_sectors(bytes: u64) -> SmallFileSystem {
        SmallFileSystem::on_device(2 << 30, bytes, PAGE_BYTES)
    }

    /// Makes and mounts one of blocks of 1 KiB.
    #[track_caller]
    pub fn of_small_blocks() -> SmallFileSystem {
        SmallFileSystem::on_device(256 << 20, 512, 1024)
    }

    #[track_caller]
    fn on_device(bytes: u64, sector_bytes: u64, block_bytes: usize) -> SmallFileSystem {
        let block_bytes = block_bytes.to_string();
        SmallFileSystem::made(bytes, sector_bytes, &["mkfs.ext4", "-q", "-F", "-m", "0", "-b", &block_bytes])
    }

    /// Makes one by this command, which the device's name ends.
    #[track_caller]
    fn made(bytes: u64, sector_bytes: u64, make: &[&str]) -> SmallFileSystem {
        let directory = tempfile::tempdir().unwrap();
        let (image, root) = (directory.path().join("image"), directory.path().join("root"));
        File::create(&image).unwrap().set_len(bytes).unwrap();
        fs::create_dir(&root).unwrap();
        let sectors = sector_bytes.to_string();
        let device = tool::says("losetup", ["--find", "--show", "--sector-size", &sectors, text(&image)]);
        let small = SmallFileSystem { root, device: device.trim().to_owned(), _directory: directory };
        tool::says(make[0], make[1..].iter().chain([&&*small.device]));
        tool::says("mount", [&*small.device, text(&small.root)]);
        small
    }

    fn take(&self, bytes: u64) {
        tool::says("fallocate", ["--length", &bytes.to_string(), text(&self.ballast())]);
    }

    /// A name in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Whoever changes anything in it waits until what this gives is dropped.
    pub fn freeze(&self) -> Frozen<'_> {
        tool::says("fsfreeze", ["--freeze", text(&self.root)]);
        Frozen(&self.root)
    }

    fn ballast(&self) -> PathBuf {
        self.root.join("ballast")
    }

    /// Gives all space back that was taken.
    pub fn make_space(&self) {
        fs::remove_file(self.ballast()).unwrap();
        let _ = fs::remove_file(self.root.join("filler"));
    }

    /// Gives what was taken by [`SmallFileSystem::fill_up`] back.
    pub fn give_back(&self) {
        fs::remove_file(self.root.join("filler")).unwrap();
    }

    /// Takes the last byte.
    pub fn fill_up(&self) {
        let mut filler = File::create(self.root.join("filler")).unwrap();
        for bytes in [1 << 20, 4096, 1] {
            while filler.write_all(&vec![1; bytes]).is_ok() {}
        }
    }

    /// A gateway whose data directory is there.
    pub fn setup(&self) -> Setup {
        Setup { data: Some(self.root.join("data")), journal: ("1GiB", "4MiB"), ..Setup::default() }
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // The gateway was dropped before, so nobody uses it; a failure here must not become a second panic.
        let _ = tool::command("umount").args(["--lazy", text(&self.root)]).status();
        let _ = tool::command("losetup").args(["--detach", &self.device]).status();
    }
}

/// A file system that nothing can be written to.
pub struct Frozen<'a>(&'a Path);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // Whoever waits goes on; a failure here must not become a second panic.
        let _ = tool::command("fsfreeze").args(["--unfreeze", text(self.0)]).status();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
