//! The files of a disk as of a recovery point: nbdfuse makes a file of a test failover's export, losetup a block
//! device of that, and the kernel mounts the file system on it, read-only. Needs root.
//!
//! The device itself is writable, into the test failover's throwaway overlay: after a crash, and every point is one, a file
//! system has to replay its own journal before it can be read.
//!
//! What a mount consists of stands in a note beside it, `/run/afterimage-mounts/…`, so that `point unmount` can take it
//! down again, also when a part of it is gone already. What is mounted, and which devices are ours, the kernel says.
//!
//! The note comes before any of it, so that a mount that was killed half-way is known. It goes last, once the test failover has ended: that takes a gateway, and taking down does not. So what was taken down
//! while none answered is known, and the next `point mount` or `point unmount` ends its test failover.
//!
//! An interrupted mount takes down what it had put up, from the top, before the test failover under it ends. So the programs
//! that change something run to their end first: one that was cut off might have done it all the same.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{not_started, run};
use crate::cli::failure::Failure;
use crate::cli::interrupt::Interrupts;
use crate::cli::output::complain;
use crate::control::model::{Test, TestExport};
use crate::control::name::{DiskPath, Name};
use crate::error::{Error, ErrorKind};
use crate::units::{SECTOR_BYTES, WallNanos};

/// Where mounts are noted; gone after a restart of the machine, as they are. Not below `/run/afterimage`: that belongs to the
/// gateway's user, and goes with the gateway.
pub const MOUNT_NOTES: &str = "/run/afterimage-mounts";
/// How long nbdfuse may take to connect, or to end.
const PATIENCE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
const INTERRUPTED: &str = "nothing stays mounted";

/// A mounted point of a disk.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Mounted {
    /// The disk.
    pub disk: String,
    /// The test failover that shows it.
    pub test: u64,
    /// The group that the test failover belongs to.
    pub group: String,
    /// The block device.
    pub device: String,
    /// Where it is mounted.
    pub directory: PathBuf,
}

/// What stands in the note beside a mount.
#[derive(Serialize, Deserialize)]
struct Note {
    #[serde(flatten)]
    mounted: Mounted,
    /// When the test failover was started: a group of the same name may have another of that number one day.
    started: WallNanos,
    /// Where its gateway was asked for it.
    gateway: PathBuf,
    /// Whether it was taken down.
    #[serde(default)]
    is_down: bool,
}

/// The test failover of a mount that was taken down.
pub struct LeftTest {
    /// Its group.
    pub group: Name,
    place: Place,
    number: u64,
    started: WallNanos,
}

impl LeftTest {
    /// Whether it is this one.
    pub fn is(&self, test: &Test) -> bool {
        (test.number.0, test.started) == (self.number, self.started)
    }

    /// It has ended: nothing is left of the mount.
    pub fn forget(self) -> Result<(), Failure> {
        self.place.remove()
    }
}

/// The test failovers that mounts left which were taken down, of the gateway on this socket.
pub fn left_tests(gateway: &Path) -> Result<Vec<LeftTest>, Failure> {
    let io = |error| Error::io("listing", error).at_path(Path::new(MOUNT_NOTES));
    let entries = match fs::read_dir(MOUNT_NOTES) {
        // Nobody ever mounted, or nobody who may look did.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            return Ok(Vec::new());
        }
        entries => entries.map_err(io)?,
    };
    let mut left = Vec::new();
    for entry in entries {
        let place = Place { root: entry.map_err(io)?.path() };
        // What cannot be read is said by who is asked to take it down.
        let Ok(note) = place.note() else { continue };
        if let (true, Ok(group)) = (note.is_down && note.gateway == gateway, note.mounted.group.parse()) {
            left.push(LeftTest { group, place, number: note.mounted.test, started: note.started });
        }
    }
    Ok(left)
}

/// The note of what is mounted on a directory, and what belongs to it.
struct Place {
    root: PathBuf,
}

impl Place {
    /// The place of a directory's mount; one directory, one place.
    fn of(directory: &Path) -> Place {
        let name =
            directory.to_string_lossy().trim_start_matches('/').replace('%', "%25").replace('/', "%2F");
        Place { root: Path::new(MOUNT_NOTES).join(name) }
    }

    fn create(&self) -> Result<(), Failure> {
        if self.root.exists() {
            if self.note().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
                // Killed before anything was put up.
                self.remove()?;
                return self.create();
            }
            let text = "something is mounted there: `afterimage point unmount` takes it down";
            return Err(Error::new(ErrorKind::AlreadyExists, text).at_path(&self.root).into());
        }
        let created = fs::create_dir_all(self.fuse());
        created.map_err(|error| Error::io("creating", error).at_path(&self.root).into())
    }

    fn fuse(&self) -> PathBuf {
        self.root.join("fuse")
    }

    /// The file that nbdfuse shows.
    fn file(&self) -> PathBuf {
        self.fuse().join("disk")
    }

    fn note_path(&self) -> PathBuf {
        self.root.join("mount.json")
    }

    fn pid(&self) -> PathBuf {
        self.root.join("nbdfuse.pid")
    }

    /// # Errors
    /// `NotFound` where there is none.
    fn note(&self) -> crate::error::Result<Note> {
        let path = self.note_path();
        let text = fs::read_to_string(&path).map_err(|error| Error::io("reading", error).at_path(&path))?;
        serde_json::from_str(&text).map_err(|error| Error::corrupt(error.to_string()).at_path(&path))
    }

    fn write_note(&self, note: &Note) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(note).expect("strings and numbers");
        let (path, partial) = (self.note_path(), self.root.join("mount.partial"));
        let written = fs::write(&partial, text).and_then(|()| fs::rename(&partial, &path));
        written.map_err(|error| Error::io("writing", error).at_path(&path).into())
    }

    fn remove(&self) -> Result<(), Failure> {
        fs::remove_dir_all(&self.root)
            .map_err(|error| Error::io("removing", error).at_path(&self.root).into())
    }
}

/// Mounts `disk` as `test` shows it on `directory`, which exists. What fails or is interrupted half-way is taken down again.
pub async fn mount(
    (test, gateway): (&Test, &Path),
    disk: &DiskPath,
    partition: Option<u32>,
    directory: &Path,
    interrupts: &mut Interrupts,
) -> Result<Mounted, Failure> {
    let export = test.exports.iter().find(|export| export.disk == disk.disk).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("point {} does not hold disk {disk}", test.point.id))
    })?;
    let place = Place::of(directory);
    place.create()?;
    let mounted = Mounted {
        disk: disk.to_string(),
        test: test.number.0,
        group: test.group.to_string(),
        device: String::new(),
        directory: directory.to_owned(),
    };
    let note = Note { mounted, started: test.started, gateway: gateway.to_owned(), is_down: false };
    place.write_note(&note)?;
    let mounted = attach(&place, note, export, partition, interrupts).await;
    if mounted.is_err() {
        // The error that matters is the first; but what stays must be known.
        let down = take_down(&place, directory).await;
        if let Err(failure) = down.and_then(|()| place.remove()) {
            complain(&format!("{} could not be taken down: {failure}\n", directory.display()));
        }
    }
    mounted
}

async fn attach(
    place: &Place,
    mut note: Note,
    export: &TestExport,
    partition: Option<u32>,
    interrupts: &mut Interrupts,
) -> Result<Mounted, Failure> {
    tokio::select! {
        served = serve_file(place, &export.uri) => served?,
        () = interrupts.next() => return Err(Failure::Interrupted(INTERRUPTED.into())),
    }
    let device = loop_device(&place.file(), partition).await?;
    interrupts.check(INTERRUPTED).await?;
    note.mounted.device = device.clone();
    place.write_note(&note)?;
    let directory = note.mounted.directory.as_os_str();
    run("mount", ["-o".as_ref(), "ro".as_ref(), device.as_ref(), directory]).await?;
    interrupts.check(INTERRUPTED).await?;
    Ok(note.mounted)
}

/// A block device over the file, or over one of its partitions: the kernel need not know its partition table.
async fn loop_device(file: &Path, partition: Option<u32>) -> Result<String, Failure> {
    let mut options = Vec::new();
    match partition {
        Some(partition) => {
            let (start, sectors) = place_of_partition(file, partition).await?;
            options.push(format!("--offset={}", start * SECTOR_BYTES));
            options.push(format!("--sizelimit={}", sectors * SECTOR_BYTES));
        }
        None => refuse_partitioned(file).await?,
    }
    let arguments = ["--find", "--show"].into_iter().chain(options.iter().map(String::as_str));
    run("losetup", arguments.map(OsStr::new).chain([file.as_os_str()])).await
}

/// First sector and length of a partition.
async fn place_of_partition(file: &Path, partition: u32) -> Result<(u64, u64), Failure> {
    let number = partition.to_string();
    let columns = ["--raw", "--noheadings", "--output=START,SECTORS", "--nr", &number];
    let found = run("partx", columns.map(OsStr::new).into_iter().chain([file.as_os_str()])).await;
    let found = found.unwrap_or_default();
    let mut numbers = found.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(start)), Some(Ok(sectors))) => Ok((start, sectors)),
        _ => Err(Failure::Usage(format!("the disk has no partition {partition}: `partx --show` lists them"))),
    }
}

/// A disk with a partition table holds no file system of its own.
async fn refuse_partitioned(file: &Path) -> Result<(), Failure> {
    let columns = ["--raw", "--noheadings", "--output=NR"].map(OsStr::new);
    // It fails where it finds no table; what there is instead is for mount to say.
    let found = run("partx", columns.into_iter().chain([file.as_os_str()])).await.unwrap_or_default();
    let numbers: Vec<&str> = found.split_whitespace().collect();
    if numbers.is_empty() {
        return Ok(());
    }
    Err(Failure::Usage(format!("the disk has the partitions {}: write --partition N", numbers.join(", "))))
}

/// Waits until one of these can be read, for as long as patience lasts; whether one can.
async fn wait_for<const N: usize>(descriptors: [OwnedFd; N]) -> Result<bool, Failure> {
    let waiting = tokio::task::spawn_blocking(move || {
        let mut events = descriptors.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
        retry_on_intr(|| poll(&mut events, Some(&PATIENCE))).map(|ready| ready > 0)
    });
    let waited = waiting.await.expect("polling does not panic");
    waited.map_err(|error| Error::io("waiting for nbdfuse", error.into()).into())
}

/// nbdfuse, which is ended unless it is left to itself.
struct Nbdfuse(Option<std::process::Child>);

impl Drop for Nbdfuse {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may be dead already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts nbdfuse, which goes on when we are gone, and waits until it serves.
async fn serve_file(place: &Place, uri: &str) -> Result<(), Failure> {
    let watching = |error: Errno| Error::io("watching", error.into()).at_path(&place.root);
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).map_err(watching)?;
    inotify::add_watch(&watch, &place.root, inotify::WatchFlags::CLOSE_WRITE).map_err(watching)?;
    let mut nbdfuse = std::process::Command::new("nbdfuse");
    nbdfuse.arg("--pidfile").arg(place.pid()).arg(place.file()).arg(uri);
    nbdfuse.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let child = nbdfuse.spawn().map_err(|error| not_started("nbdfuse", error))?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
    let mut nbdfuse = Nbdfuse(Some(child));
    // Served, dead, or neither in time: the pid file says which.
    wait_for([watch, process.map_err(watching)?]).await?;
    if place.pid().exists() {
        nbdfuse.0 = None;
        return Ok(());
    }
    let text =
        format!("nbdfuse did not serve {uri}: is FUSE there (package fuse3, /dev/fuse), and are you root?");
    Err(Error::new(ErrorKind::Io, text).into())
}

/// Takes a mount down; what was mounted. Its test failover is [left](left_tests).
pub async fn unmount(directory: &Path) -> Result<Mounted, Failure> {
    let place = Place::of(directory);
    let mut note = place.note().map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            let text = format!("nothing that `afterimage point mount` mounted is on {}", directory.display());
            Error::new(ErrorKind::NotFound, text)
        }
        _ => error,
    })?;
    take_down(&place, directory).await?;
    note.is_down = true;
    place.write_note(&note)?;
    Ok(note.mounted)
}

/// A mount, as the kernel lists it.
struct MountPoint {
    device: Vec<u8>,
    directory: PathBuf,
}

/// Everything that is mounted, the topmost last.
fn mount_points() -> Result<Vec<MountPoint>, Failure> {
    const LIST: &str = "/proc/self/mountinfo";
    let text = fs::read(LIST).map_err(|error| Error::io("reading", error).at_path(Path::new(LIST)))?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(parse_mount_point).collect())
}

/// A line of /proc/self/mountinfo, see proc(5): the directory is its fifth word, the device the second behind a lone dash.
fn parse_mount_point(line: &[u8]) -> Option<MountPoint> {
    let mut words = line.split(|&byte| byte == b' ');
    let directory = PathBuf::from(std::ffi::OsString::from_vec(unescaped(words.nth(4)?)));
    let device = unescaped(words.skip_while(|word| word != b"-").nth(2)?);
    Some(MountPoint { device, directory })
}

/// Blanks and backslashes stand there as a backslash and three octal digits.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.filter(|_| byte == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    out
}

/// Takes down what there is of a mount, from the top; what an earlier attempt did is done.
async fn take_down(place: &Place, directory: &Path) -> Result<(), Failure> {
    let devices = loop_devices(&place.file())?;
    let is_ours = |mount: &MountPoint| {
        mount.directory == directory && devices.iter().any(|device| mount.device == device.as_bytes())
    };
    if mount_points()?.iter().any(is_ours) {
        run("umount", [directory]).await?;
    }
    for device in &devices {
        run("losetup", ["--detach", device]).await?;
    }
    let fuse = place.fuse();
    if mount_points()?.iter().any(|mount| mount.directory == fuse) {
        let text = fs::read_to_string(place.pid()).unwrap_or_default();
        let process = text.trim().parse().ok().and_then(Pid::from_raw);
        let process = process.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // The kernel may let go of the loop device a little later, and of the file with it; nbdfuse ends then.
        run("umount", ["--lazy".as_ref(), fuse.as_os_str()]).await?;
        if let Some(process) = process {
            wait_for_end(process, devices.first().map_or("the device", String::as_str)).await?;
        }
    }
    Ok(())
}

/// Waits for nbdfuse's end: its connection goes with it, and only then nobody reads the test failover any more.
async fn wait_for_end(process: OwnedFd, device: &str) -> Result<(), Failure> {
    if wait_for([process]).await? {
        return Ok(());
    }
    let text = format!("something still uses {device}: close it and try again");
    Err(Error::new(ErrorKind::Io, text).into())
}

/// The loop devices that show a file, whoever attached them: losetup may have been cut off before it said which.
fn loop_devices(file: &Path) -> Result<Vec<String>, Failure> {
    const BLOCK_DEVICES: &str = "/sys/block";
    let io = |error| Error::io("listing", error).at_path(Path::new(BLOCK_DEVICES));
    let mut devices = Vec::new();
    for entry in fs::read_dir(BLOCK_DEVICES).map_err(io)? {
        let entry = entry.map_err(io)?;
        // Other devices, and loop devices that show nothing, have no such file.
        let shown = fs::read(entry.path().join("loop/backing_file")).unwrap_or_default();
        if shown.strip_suffix(b"\n").is_some_and(|shown| shown == file.as_os_str().as_bytes()) {
            devices.push(format!("/dev/{}", entry.file_name().to_string_lossy()));
        }
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_list_of_mounts_is_read() {
        let line =
            b"36 35 98:0 /mnt1 /mnt/a\\040b\\134c rw,noatime master:1 - ext3 /dev/loop7 rw,errors=continue";
        let mount = parse_mount_point(line).expect("a mount");
        assert_eq!(mount.directory, Path::new("/mnt/a b\\c"));
        assert_eq!(mount.device, b"/dev/loop7");
        assert!(parse_mount_point(b"").is_none());
        assert!(mount_points().expect("listed").iter().any(|mount| mount.directory == Path::new("/")));
    }

    #[test]
    fn directories_have_places_of_their_own() {
        let places =
            ["/mnt/a", "/mnt/a/b", "/mnt%2Fa", "/mnt/a%2Fb"].map(|path| Place::of(Path::new(path)).root);
        for (index, place) in places.iter().enumerate() {
            assert_eq!(place.parent(), Some(Path::new(MOUNT_NOTES)));
            assert!(places[index + 1..].iter().all(|other| other != place), "{places:?}");
        }
    }
}
