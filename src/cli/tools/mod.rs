//! Other people's programs that the command line drives on the machine where it runs: qemu-img writes image formats,
//! nbdfuse, losetup and mount show a point's files.
//!
//! They see a recovery point through a test failover, which ends when they are done: the gateway itself starts no
//! program, and needs none of them.

mod image;
mod mount;

use std::ffi::OsStr;
use std::io;
use std::process::Stdio;

use tokio::process::Command;

pub use image::{ImageFormat, restore};
pub use mount::{MOUNT_NOTES, Mounted, left_tests, mount, unmount};

use super::failure::Failure;
use crate::error::{Error, ErrorKind};

/// A program that is not to be typed at, nor to outlive us; Ctrl-C is for us alone to hear.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).kill_on_drop(true).process_group(0);
    command
}

/// Runs a program; what it prints, or what it complains about.
async fn run<A: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Result<String, Failure> {
    let output = command(program).args(arguments).output().await;
    let output = output.map_err(|error| not_started(program, error))?;
    if !output.status.success() {
        return Err(failed(program, &String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn not_started(program: &str, error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::NotFound {
        let package = match program {
            "qemu-img" => "qemu-utils",
            "nbdfuse" => "libnbd-bin (Debian 12; nbdfuse later) and fuse3",
            _ => "mount",
        };
        let text = format!("`{program}` is not here: install the Debian package {package}");
        return Error::new(ErrorKind::Unsupported, text).into();
    }
    Error::io(format!("starting {program}"), error).into()
}

fn failed(program: &str, complaint: &str) -> Failure {
    let complaint = complaint.trim().trim_start_matches(program).trim_start_matches(": ");
    Error::new(ErrorKind::Io, format!("{program} failed: {complaint}")).into()
}
