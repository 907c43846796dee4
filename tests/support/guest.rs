//! A machine in QEMU without hardware acceleration: Debian's cloud kernel, an initramfs, and the devices that a test
//! gives it.
//!
//! The test speaks to its process 1 over a serial port: a line is a command, the answer its exit status; what runs in
//! the background may say lines of its own there. Nothing waits by the clock, but everything has a deadline. Dropping it
//! kills it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::initramfs::{self, Contents};

/// It boots in 3 s and answers within one, on an idle machine; beside others it has stood still for more than a minute.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes of the console that a failed test shows.
const CONSOLE_SHOWN: usize = 6000;

/// A running machine.
pub struct Guest {
    qemu: Child,
    port: BufReader<UnixStream>,
    console: PathBuf,
}

impl Guest {
    /// Boots one with these devices, which are arguments of QEMU; `directory` takes what else it needs.
    #[track_caller]
    pub fn boot(directory: &Path, contents: &Contents, devices: &[String]) -> Guest {
        let (kernel, modules) = initramfs::kernel();
        let archive = directory.join("initramfs");
        initramfs::build(&archive, &modules, contents);
        let listener = UnixListener::bind(directory.join("port")).expect("a short path");
        let console = directory.join("console");
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-accel", "tcg", "-smp", "1", "-m", "512"]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(&archive);
        command.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
        command.args(["-serial", &format!("file:{}", console.display())]);
        command.args(["-chardev", &format!("socket,id=port,path={}", directory.join("port").display())]);
        command.args(["-serial", "chardev:port"]);
        let mut qemu = command
            .args(devices)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 is missing: `tests/run` installs it as root, or says how");
        let port = match accept(&listener, &qemu) {
            Some(port) => BufReader::new(port),
            None => {
                let _ = qemu.kill();
                panic!("QEMU did not open its serial port: {:?}", qemu.wait());
            }
        };
        let mut guest = Guest { qemu, port, console };
        let said = guest.line();
        assert_eq!(said, "ready", "the guest booted");
        guest
    }

    /// Gives it a command, whose status comes as a line.
    #[track_caller]
    pub fn ask(&mut self, command: &str) {
        if let Err(error) = writeln!(self.port.get_mut(), "{command}") {
            panic!("the guest takes no commands ({error}); its console: {}", self.console());
        }
    }

    /// Runs a command in the guest, where nothing else says lines; it must succeed.
    #[track_caller]
    pub fn run(&mut self, command: &str) {
        self.ask(command);
        let status = self.line();
        assert!(status == "0", "`{command}` ended with {status} in the guest: {}", self.console());
    }

    /// Switches it off; nothing that it wrote is lost.
    #[track_caller]
    pub fn power_off(mut self) {
        self.ask("poweroff -f");
        assert!(is_readable(&process(&self.qemu)), "the guest did not switch off: {}", self.console());
        let status = self.qemu.wait().expect("it is our child");
        assert!(status.success(), "QEMU ended with {status}");
    }

    /// What comes next over the port.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        match self.port.read_line(&mut line) {
            Ok(1..) => line.trim().to_owned(),
            other => panic!("the guest does not answer ({other:?}); its console: {}", self.console()),
        }
    }

    /// The end of what the kernel and commands said.
    pub fn console(&self) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(CONSOLE_SHOWN)..]).into_owned()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// QEMU's end of its serial port; `None` if QEMU ended instead, or took too long.
fn accept(listener: &UnixListener, qemu: &Child) -> Option<UnixStream> {
    let process = process(qemu);
    let mut events =
        [listener.as_fd(), process.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    poll(&mut events, Some(&patience())).expect("descriptors");
    if !events[0].revents().contains(PollFlags::IN) {
        return None;
    }
    let (port, _) = listener.accept().expect("somebody connects");
    port.set_read_timeout(Some(PATIENCE)).expect("a time-out above zero");
    Some(port)
}

fn process(child: &Child) -> impl AsFd {
    pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("it is our child")
}

fn is_readable(fd: &impl AsFd) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&patience())).expect("a descriptor") == 1
}

fn patience() -> Timespec {
    Timespec { tv_sec: i64::try_from(PATIENCE.as_secs()).expect("a minute or two"), tv_nsec: 0 }
}
