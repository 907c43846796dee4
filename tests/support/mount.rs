//! A disk of a gateway as a block device of this machine: nbdfuse makes a file of it, a loop device a block device,
//! and the kernel mounts what is on it. Needs root.
//!
//! Dropping it takes all of that down again, also when a test failed half-way: a mount that outlives its gateway hangs
//! whoever looks at it.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::gateway;
use crate::tool;

/// Who may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nobody, on any layer.
    ReadOnly,
    /// Everybody.
    ReadWrite,
}

/// An attached disk.
pub struct Attached {
    nbdfuse: Child,
    fuse: PathBuf,
    device: Option<String>,
    root: PathBuf,
    is_mounted: bool,
    access: Access,
}

impl Attached {
    /// Attaches the export at `uri`, with everything that this needs in a new directory, `place`.
    #[track_caller]
    pub fn new(place: &Path, uri: &str, access: Access) -> Attached {
        let (fuse, root, ready) = (place.join("fuse"), place.join("root"), place.join("ready"));
        for directory in [&fuse, &root, &ready] {
            fs::create_dir_all(directory).expect("a temporary directory");
        }
        let mut attached = Attached {
            nbdfuse: start_nbdfuse(&fuse, &ready, uri, access),
            fuse,
            device: None,
            root,
            is_mounted: false,
            access,
        };
        let file = attached.fuse.join("disk");
        let flags: &[&str] = if access == Access::ReadOnly { &["--read-only"] } else { &[] };
        let found = ["--find", "--show"].iter().chain(flags).copied().chain([text(&file)]);
        attached.device = Some(tool::says("losetup", found).trim().to_owned());
        attached
    }

    /// The block device.
    pub fn device(&self) -> &str {
        self.device.as_deref().expect("it is attached")
    }

    /// Mounts the file system on it.
    #[track_caller]
    pub fn mount(&mut self) -> &Path {
        let option = if self.access == Access::ReadOnly { "ro" } else { "rw" };
        tool::says("mount", ["-t", "ext4", "-o", option, self.device(), text(&self.root)]);
        self.is_mounted = true;
        &self.root
    }

    /// Unmounts; all that was written has reached the gateway.
    #[track_caller]
    pub fn unmount(&mut self) {
        tool::says("umount", [&self.root]);
        self.is_mounted = false;
    }

    /// Takes it down; that must work.
    #[track_caller]
    pub fn detach(mut self) {
        assert!(!self.is_mounted, "unmount first");
        tool::says("losetup", ["--detach", self.device()]);
        self.device = None;
        // Whoever lists loop devices holds this one open for a moment; nbdfuse ends once nobody does any more.
        tool::says("umount", ["--lazy", text(&self.fuse)]);
        let status = gateway::wait(&mut self.nbdfuse);
        assert!(status.success(), "nbdfuse ends well when it is unmounted: {status}");
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // A test that failed half-way may have left any of it; what is gone already says so, and nobody listens.
        if self.is_mounted {
            quietly("umount", &["--lazy", text(&self.root)]);
        }
        if let Some(device) = &self.device {
            quietly("losetup", &["--detach", device]);
        }
        quietly("umount", &["--lazy", text(&self.fuse)]);
        let _ = self.nbdfuse.kill();
        let _ = self.nbdfuse.wait();
    }
}

/// Runs a program whose failure must not become a second panic.
fn quietly(program: &str, arguments: &[&str]) {
    let _ = tool::command(program).args(arguments).output();
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Starts nbdfuse and waits for the pid file that says that it serves.
#[track_caller]
fn start_nbdfuse(fuse: &Path, ready: &Path, uri: &str, access: Access) -> Child {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).expect("inotify");
    inotify::add_watch(&watch, ready, inotify::WatchFlags::CLOSE_WRITE).expect("a directory");
    let pid_file = ready.join("pid");
    let mut command = Command::new("nbdfuse");
    if access == Access::ReadOnly {
        command.arg("--readonly");
    }
    command.arg("--pidfile").arg(&pid_file).arg(fuse.join("disk")).arg(uri).stdin(Stdio::null());
    let mut child =
        command.spawn().expect("nbdfuse is missing: `tests/run` installs it as root, or says how");
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).expect("it is our child");
    let mut events = [watch.as_fd(), process.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let patience = Timespec { tv_sec: 30, tv_nsec: 0 };
    poll(&mut events, Some(&patience)).expect("descriptors");
    if !pid_file.exists() {
        let _ = child.kill();
        panic!("nbdfuse did not serve {uri}: {:?}", child.wait());
    }
    child
}
