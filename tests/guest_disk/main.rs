//! A machine whose disk is on the gateway: QEMU with what `attach --for qemu` prints, a Linux kernel and ext4 in it. It writes on
//! while the gateway is killed, upgraded and killed again: it sees a pause and no error, and nothing that it was told is durable is lost.
//!
//! Each record is written and fsynced by the guest before it tells the test. While nobody serves, the test waits until the guest's
//! writer hangs in the kernel for its disk; so each death has a write under way. Records are judged by the host, on the disk and
//! on a recovery point: the guest would read them from its own memory.
//!
//! `AFTERIMAGE_OLDER` names the program that serves before the upgrade: an older build, to upgrade from. Without it that is a
//! copy of the program itself. Needs root, for mounts.
#![cfg(feature = "server")]

#[path = "../support/gateway.rs"]
#[allow(dead_code)]
mod gateway;
#[path = "../support/guest.rs"]
#[allow(dead_code)]
mod guest;
#[path = "../support/initramfs.rs"]
#[allow(dead_code)]
mod initramfs;
#[path = "../support/mount.rs"]
mod mount;
#[path = "../support/tool.rs"]
#[allow(dead_code)]
mod tool;

use std::fs;
use std::path::{Path, PathBuf};

use gateway::{Gateway, Setup};
use guest::Guest;
use initramfs::Contents;
use mount::{Access, Attached};

/// Records that are acknowledged between one end of the gateway and the next.
const RECORDS: u64 = 40;
const RECORD_BYTES: usize = 4096;

/// A guest that writes to the gateway's disk, and what it has told.
struct Machine {
    guest: Guest,
    acknowledged: u64,
}

impl Machine {
    /// Boots it with that as its disk, mounts the file system there, and has it write.
    #[track_caller]
    fn start(gateway: &Gateway, attachment: &str) -> Machine {
        let place = gateway.path("guest");
        fs::create_dir(&place).expect("a temporary directory");
        let contents = Contents { functions: include_str!("functions.sh"), ..Contents::default() };
        let mut guest = Guest::boot(&place, &contents, &tool::words(attachment));
        guest.run("mkdir /mnt && mount -t ext4 /dev/vda /mnt");
        let mut machine = Machine { guest, acknowledged: 0 };
        machine.run("write_on");
        machine
    }

    /// What comes next that is not a record's number.
    #[track_caller]
    fn next_but_records(&mut self, records: u64) -> Option<String> {
        while self.acknowledged < records {
            let line = self.guest.line();
            let Some(number) = line.strip_prefix("written ") else { return Some(line) };
            self.acknowledged += 1;
            assert_eq!(number, self.acknowledged.to_string(), "records come in order");
        }
        None
    }

    /// Waits for so many further records.
    #[track_caller]
    fn goes_on(&mut self) {
        if let Some(line) = self.next_but_records(self.acknowledged + RECORDS) {
            panic!("the guest's writer says `{line}`: {}", self.guest.console());
        }
    }

    /// Runs a command in the guest while its writer may tell of records; it must succeed.
    #[track_caller]
    fn run(&mut self, command: &str) {
        self.guest.ask(command);
        let status = self.next_but_records(u64::MAX).expect("records do not run out");
        assert_eq!(status, "0", "`{command}` failed in the guest: {}", self.guest.console());
    }
}

/// What serves before the upgrade.
fn older(directory: &Path) -> PathBuf {
    let older = std::env::var_os("AFTERIMAGE_OLDER").map(PathBuf::from);
    older.unwrap_or_else(|| {
        let copy = directory.join("older-afterimage");
        fs::copy(env!("CARGO_BIN_EXE_afterimage"), &copy).expect("space for a program");
        copy
    })
}

/// A gateway whose only disk has an empty file system.
fn formatted(program: Option<PathBuf>) -> Gateway {
    let gateway = Gateway::with(&Setup { program, ..Setup::default() });
    gateway.protect([("db", "128M")]);
    let disk = Attached::new(&gateway.path("format"), &gateway.uri("erp/db"), Access::ReadWrite);
    tool::says("mkfs.ext4", ["-q", "-F", disk.device()]);
    disk.detach();
    gateway
}

/// Looks at every structure of the file system, and reads all records.
#[track_caller]
fn assert_holds(place: &Path, uri: &str, records: u64) {
    let mut disk = Attached::new(place, uri, Access::ReadOnly);
    tool::says("e2fsck", ["-f", "-n", disk.device()]);
    let bytes = fs::read(disk.mount().join("records")).expect("the file of the records");
    disk.unmount();
    disk.detach();
    let found: Vec<&[u8]> = bytes.chunks(RECORD_BYTES).collect();
    assert_eq!(u64::try_from(found.len()).expect("a count"), records, "records");
    for (number, record) in (1_u64..).zip(found) {
        let width = RECORD_BYTES - 1;
        assert!(record == format!("{number:0width$}\n").as_bytes(), "record {number} has other bytes");
    }
}

#[test]
fn a_guest_sees_a_pause_while_the_gateway_is_killed_and_upgraded() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut gateway = formatted(Some(older(directory.path())));
    let mut machine = Machine::start(&gateway, &gateway.says("attach erp/db --for qemu"));
    machine.goes_on();

    gateway.kill();
    machine.run("held");
    gateway.restart();
    machine.goes_on();

    gateway.terminate();
    machine.run("held");
    gateway.install(PathBuf::from(env!("CARGO_BIN_EXE_afterimage")));
    gateway.restart();
    machine.goes_on();

    gateway.kill();
    machine.run("held");
    gateway.restart();
    machine.goes_on();

    machine.run("finish");
    machine.run("umount /mnt");
    machine.run("unharmed");
    let Machine { guest, acknowledged } = machine;
    guest.power_off();
    println!("{acknowledged} records");
    assert_holds(&gateway.path("disk"), &gateway.uri("erp/db"), acknowledged);
    gateway.says("point create erp --label end");
    gateway.says("failover test erp --point end");
    assert_holds(&gateway.path("point"), &gateway.uri("erp/db@test-1"), acknowledged);
    gateway.says("failover cleanup erp --yes");
}

/// What `attach` says of reconnection is what does it, and an error would be noticed.
#[test]
fn without_its_reconnect_delay_a_guest_sees_an_error() {
    let mut gateway = formatted(None);
    let attachment = gateway.says("attach erp/db --for qemu");
    let (before, delay) = attachment.split_once("reconnect-delay=").expect("a delay is asked for");
    let after = delay.trim_start_matches(|digit: char| digit.is_ascii_digit());
    let mut machine = Machine::start(&gateway, &format!("{before}reconnect-delay=0{after}"));
    machine.goes_on();
    gateway.kill();
    let said = machine.next_but_records(u64::MAX).expect("records do not run out");
    assert_eq!(said, format!("failed {}", machine.acknowledged + 1));
    // Of a flush that fails the kernel says nothing, of a read it does.
    for command in ["finish", "dd if=/dev/vda of=/dev/null bs=4096 skip=20000 count=1", "unharmed"] {
        machine.guest.ask(command);
        assert_eq!(machine.guest.line(), "1", "{command}: {}", machine.guest.console());
    }
}
