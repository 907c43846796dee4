//! A machine whose power can be cut: QEMU without hardware acceleration, a volume, and a log of all that is written to
//! the volume.
//!
//! The test speaks to its process 1 over a serial port: a line is a command, the answer its exit status. Nothing waits
//! by the clock, but everything has a deadline. Dropping it kills it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::initramfs;

/// It boots in 3 s and answers within one, on an idle machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// Where the gateway listens in the guest.
const NBD_PORT: u16 = 10809;
/// Bytes of the console that a failed test shows.
const CONSOLE_SHOWN: usize = 6000;

/// A running machine.
pub struct Guest {
    qemu: Child,
    port: BufReader<UnixStream>,
    console: PathBuf,
    nbd: SocketAddr,
}

impl Guest {
    /// Boots one whose disks are the raw files `volume` and `log`; `directory` takes what else it needs.
    #[track_caller]
    pub fn boot(directory: &Path, volume: &Path, log: &Path, gateway: &Path, configuration: &str) -> Guest {
        let (kernel, modules) = initramfs::kernel();
        let archive = directory.join("initramfs");
        initramfs::build(&archive, &modules, gateway, configuration);
        let listener = UnixListener::bind(directory.join("port")).expect("a short path");
        let nbd = free_port();
        let console = directory.join("console");
        let mut command = Command::new("qemu-system-x86_64");
        // One processor, and a volume that says yes to a flush at once: dm-log-writes puts a write into its log when
        // a flush that was sent after it returns. Were two flushes under way at a time, the later one could return
        // first, and the log would lack what it had promised.
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-accel", "tcg", "-smp", "1", "-m", "512"]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(&archive);
        command.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
        command.args(["-serial", &format!("file:{}", console.display())]);
        command.args(["-chardev", &format!("socket,id=port,path={}", directory.join("port").display())]);
        command.args(["-serial", "chardev:port"]);
        for disk in [volume, log] {
            command.arg("-drive");
            command.arg(format!("file={},if=virtio,format=raw,cache=unsafe", disk.display()));
        }
        let forward = format!("hostfwd=tcp:{nbd}-:{NBD_PORT}");
        command.args(["-nic", &format!("user,model=virtio-net-pci,restrict=on,{forward}")]);
        let mut qemu = command
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
        let mut guest = Guest { qemu, port, console, nbd };
        let said = guest.line();
        assert_eq!(said, "ready", "the guest booted");
        guest
    }

    /// Where this machine reaches the gateway in the guest.
    pub fn nbd(&self) -> SocketAddr {
        self.nbd
    }

    /// Runs a command in the guest; it must succeed.
    #[track_caller]
    pub fn run(&mut self, command: &str) {
        if let Err(error) = writeln!(self.port.get_mut(), "{command}") {
            panic!("the guest takes no commands ({error}); its console: {}", self.console());
        }
        let status = self.line();
        assert!(status == "0", "`{command}` ended with {status} in the guest: {}", self.console());
    }

    /// Switches it off; nothing that it wrote is lost.
    #[track_caller]
    pub fn power_off(mut self) {
        writeln!(self.port.get_mut(), "poweroff -f").expect("the guest takes commands");
        assert!(is_readable(&process(&self.qemu)), "the guest did not switch off: {}", self.console());
        let status = self.qemu.wait().expect("it is our child");
        assert!(status.success(), "QEMU ended with {status}");
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = String::new();
        match self.port.read_line(&mut line) {
            Ok(1..) => line.trim().to_owned(),
            other => panic!("the guest does not answer ({other:?}); its console: {}", self.console()),
        }
    }

    fn console(&self) -> String {
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

/// An address that nobody listens on now; QEMU cannot be asked which port it chose.
fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound")
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
