//! A guest's root file system: an initramfs with busybox, what a test runs in it, the libraries that this loads, and
//! the kernel modules that the guest inserts.
//!
//! The archive is in the "newc" format of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst:
//! uncompressed, everything owned by root.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::tool;

/// A disk takes these; in the order in which they are inserted, since each needs some of those before it.
const DISK_MODULES: [&str; 6] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
];
const DIRECTORIES: [&str; 9] = ["bin", "data", "dev", "etc", "lib", "modules", "proc", "sys", "tmp"];
const INIT: &str = include_str!("init.sh");

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;

/// What a test has in its guest besides busybox and disks.
#[derive(Default)]
pub struct Contents<'a> {
    /// Functions for the commands that the test gives, and what is done before the first one: sourced by process 1.
    pub functions: &'a str,
    /// Further modules, in order.
    pub modules: &'a [&'a str],
    /// Programs that come with the libraries that they load, by the name that they have in /bin.
    pub programs: &'a [(&'a str, PathBuf)],
    /// Further files, by name.
    pub files: &'a [(&'a str, &'a str)],
}

/// The kernel that `tests/run` unpacked, and where its modules are.
#[track_caller]
pub fn kernel() -> (PathBuf, PathBuf) {
    let unpacked = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("guest-kernel");
    let only = |directory: PathBuf, prefix: &str| {
        let names = fs::read_dir(&directory).into_iter().flatten().map(|entry| entry.expect("a name").path());
        let mut fitting =
            names.filter(|path| path.file_name().is_some_and(|name| text(name).starts_with(prefix)));
        fitting.next().unwrap_or_else(|| {
            panic!("no guest kernel in {}: `tests/run packages` fetches it", directory.display())
        })
    };
    (only(unpacked.join("boot"), "vmlinuz"), only(unpacked.join("lib/modules"), "").join("kernel"))
}

/// Writes the archive to `path`; `modules` is where the kernel's are.
pub fn build(path: &Path, modules: &Path, contents: &Contents) {
    let file = fs::File::create(path).expect("a file in a temporary directory");
    let mut archive = Archive::new(io::BufWriter::new(file));
    for directory in DIRECTORIES {
        archive.directory(directory);
    }
    archive.file("init", INIT.as_bytes());
    archive.file("etc/functions.sh", contents.functions.as_bytes());
    for (name, content) in contents.files {
        archive.file(name, content.as_bytes());
    }
    for (number, module) in DISK_MODULES.iter().chain(contents.modules).enumerate() {
        archive.copy(&format!("modules/{number:02}.ko"), &modules.join(module));
    }
    let mut libraries = BTreeSet::new();
    for (name, program) in [("busybox", find("busybox"))].iter().chain(contents.programs) {
        archive.copy(&format!("bin/{name}"), program);
        libraries.append(&mut libraries_of(program));
    }
    let mut made = BTreeSet::new();
    for library in &libraries {
        let name = text(library.as_os_str()).trim_start_matches('/');
        let parents: Vec<&Path> = Path::new(name).ancestors().skip(1).collect();
        for parent in parents.into_iter().rev().filter(|parent| !parent.as_os_str().is_empty()) {
            if made.insert(parent.to_owned()) {
                archive.directory(text(parent.as_os_str()));
            }
        }
        archive.copy(name, library);
    }
    archive.finish().expect("space for an initramfs");
}

/// A program of this machine's.
#[track_caller]
pub fn find(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let administrators = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut places = std::env::split_paths(&path).chain(administrators).map(|place| place.join(program));
    places
        .find(|place| place.is_file())
        .unwrap_or_else(|| panic!("{program} is missing: `tests/run` installs it as root, or says how"))
}

/// What a program loads, by absolute path; nothing if it is linked statically.
fn libraries_of(program: &Path) -> BTreeSet<PathBuf> {
    let output = tool::run("ldd", [program]);
    let said = String::from_utf8(output.stdout).expect("paths in UTF-8");
    said.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

fn text(name: &std::ffi::OsStr) -> &str {
    name.to_str().expect("a path in UTF-8")
}

struct Archive<W> {
    output: W,
    written: usize,
    entries: u32,
}

impl<W: Write> Archive<W> {
    fn new(output: W) -> Archive<W> {
        Archive { output, written: 0, entries: 0 }
    }

    fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, &[]).expect("space for an initramfs");
    }

    fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, EXECUTABLE, content).expect("space for an initramfs");
    }

    #[track_caller]
    fn copy(&mut self, name: &str, from: &Path) {
        let content = fs::read(from).unwrap_or_else(|error| panic!("reading {}: {error}", from.display()));
        self.file(name, &content);
    }

    fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        // Inode, mode, user, group, links, time, bytes, device, device of a node, bytes of the name, checksum.
        let fields =
            [self.entries, mode, 0, 0, links, 0, length(content), 0, 0, 0, 0, length(name.as_bytes()) + 1, 0];
        let mut header = "070701".to_owned();
        for field in fields {
            header += &format!("{field:08x}");
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.align()?;
        self.put(content)?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.output.write_all(bytes)
    }

    fn align(&mut self) -> io::Result<()> {
        let padding = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 4][..padding])
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("an initramfs holds no file of 4 GiB")
}
