//! The files of a disk as of a recovery point: nbdfuse makes a file of a test failover's export, losetup a block
//! device of that, and the kernel mounts the file system on it, read-only. Needs root.
//!
//! The device itself is writable, into the test failover's throwaway overlay: after a crash, and every point is one, a file
//! system has to replay its own journal before it can be read.
//!
//! What a mount consists of stands in a note beside it, `/run/afterimage/mounts/…`, so that `point unmount` can take it
//! down again, also when a part of it is gone already.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::{not_started, run};
use crate::cli::failure::Failure;
use crate::control::model::{Test, TestExport};
use crate::control::name::DiskPath;
use crate::error::{Error, ErrorKind};
use crate::units::SECTOR_BYTES;

/// Where mounts are noted; gone after a restart of the machine, as they are.
const NOTES: &str = "/run/afterimage/mounts";
/// How long nbdfuse may take to connect, or to end.
const PATIENCE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// A mounted point of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// The note of what is mounted on a directory, and what belongs to it.
struct Place {
    root: PathBuf,
}

impl Place {
    /// The place of a directory's mount; one directory, one place.
    fn of(directory: &Path) -> Place {
        let name =
            directory.to_string_lossy().trim_start_matches('/').replace('%', "%25").replace('/', "%2F");
        Place { root: Path::new(NOTES).join(name) }
    }

    fn create(&self) -> Result<(), Failure> {
        if self.root.exists() {
            let text = "something is mounted there: `afterimage point unmount` takes it down";
            return Err(Error::new(ErrorKind::AlreadyExists, text).at_path(&self.root).into());
        }
        let created = fs::create_dir_all(self.fuse());
        created.map_err(|error| Error::io("creating", error).at_path(&self.root).into())
    }

    fn fuse(&self) -> PathBuf {
        self.root.join("fuse")
    }

    fn note(&self) -> PathBuf {
        self.root.join("mount.json")
    }

    fn pid(&self) -> PathBuf {
        self.root.join("nbdfuse.pid")
    }

    fn read(&self, directory: &Path) -> Result<Mounted, Failure> {
        let text = fs::read_to_string(self.note()).map_err(|_| {
            let text = format!("nothing that `afterimage point mount` mounted is on {}", directory.display());
            Error::new(ErrorKind::NotFound, text)
        })?;
        serde_json::from_str(&text)
            .map_err(|error| Error::corrupt(error.to_string()).at_path(&self.note()).into())
    }

    fn remove(&self) -> Result<(), Failure> {
        fs::remove_dir_all(&self.root)
            .map_err(|error| Error::io("removing", error).at_path(&self.root).into())
    }
}

/// Mounts `disk` as `test` shows it on `directory`, which exists. What fails half-way is taken down again.
pub async fn mount(
    test: &Test,
    disk: &DiskPath,
    partition: Option<u32>,
    directory: &Path,
) -> Result<Mounted, Failure> {
    let export = test.exports.iter().find(|export| export.disk == disk.disk).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("point {} does not hold disk {disk}", test.point.id))
    })?;
    let place = Place::of(directory);
    place.create()?;
    let mounted = attach(&place, test, disk, export, partition, directory).await;
    if mounted.is_err() {
        // Best effort; the error that matters is the first.
        let _ = take_down(&place, None).await;
    }
    mounted
}

async fn attach(
    place: &Place,
    test: &Test,
    disk: &DiskPath,
    export: &TestExport,
    partition: Option<u32>,
    directory: &Path,
) -> Result<Mounted, Failure> {
    serve_file(place, &export.uri)?;
    let device = loop_device(&place.fuse().join("disk"), partition).await?;
    let mounted = Mounted {
        disk: disk.to_string(),
        test: test.number.0,
        group: test.group.to_string(),
        device: device.clone(),
        directory: directory.to_owned(),
    };
    let text = serde_json::to_vec_pretty(&mounted).expect("strings and numbers");
    fs::write(place.note(), text).map_err(|error| Error::io("writing", error).at_path(&place.note()))?;
    let arguments = ["-o".as_ref(), "ro".as_ref(), device.as_ref(), directory.as_os_str()];
    if let Err(error) = run("mount", arguments).await {
        // Best effort, before the file under it goes; the error that matters is the first.
        let _ = run("losetup", ["--detach", &device]).await;
        return Err(error);
    }
    Ok(mounted)
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

/// Starts nbdfuse, which goes on when we are gone, and waits until it serves.
fn serve_file(place: &Place, uri: &str) -> Result<(), Failure> {
    let io = |context: &'static str| {
        let root = place.root.clone();
        move |error: rustix::io::Errno| Error::io(context, error.into()).at_path(&root)
    };
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).map_err(io("watching"))?;
    inotify::add_watch(&watch, &place.root, inotify::WatchFlags::CLOSE_WRITE).map_err(io("watching"))?;
    let mut nbdfuse = std::process::Command::new("nbdfuse");
    nbdfuse.arg("--pidfile").arg(place.pid()).arg(place.fuse().join("disk")).arg(uri);
    nbdfuse.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mut child = nbdfuse.spawn().map_err(|error| not_started("nbdfuse", error))?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(io("watching nbdfuse"))?;
    let mut events = [watch.as_fd(), process.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    poll(&mut events, Some(&PATIENCE)).map_err(io("waiting for nbdfuse"))?;
    if place.pid().exists() {
        return Ok(());
    }
    // It may be dead already.
    let _ = child.kill();
    let _ = child.wait();
    let text =
        format!("nbdfuse did not serve {uri}: is FUSE there (package fuse3, /dev/fuse), and are you root?");
    Err(Error::new(ErrorKind::Io, text).into())
}

/// Takes down what an interrupted [`mount`] left.
pub async fn abandon(directory: &Path) -> Result<(), Failure> {
    let place = Place::of(directory);
    if !place.root.exists() {
        return Ok(());
    }
    let device = place.read(directory).ok().map(|mounted| mounted.device);
    if is_mounted(directory)? {
        run("umount", [directory]).await?;
    }
    take_down(&place, device.as_deref()).await
}

/// Takes a mount down; what was mounted.
pub async fn unmount(directory: &Path) -> Result<Mounted, Failure> {
    let place = Place::of(directory);
    let mounted = place.read(directory)?;
    if is_mounted(directory)? {
        run("umount", [directory]).await?;
    }
    take_down(&place, Some(&mounted.device)).await?;
    Ok(mounted)
}

/// Whether a directory is the root of a mount: of another device than the one that it stands in.
fn is_mounted(directory: &Path) -> Result<bool, Failure> {
    let device = |path: &Path| {
        let metadata = fs::metadata(path).map_err(|error| Error::io("looking", error).at_path(path))?;
        Ok::<u64, Failure>(metadata.dev())
    };
    let Some(parent) = directory.parent() else { return Ok(true) };
    Ok(device(directory)? != device(parent)?)
}

/// Takes down what there is below a mount, from the top; what an earlier attempt did is done.
async fn take_down(place: &Place, device: Option<&str>) -> Result<(), Failure> {
    let fuse = place.fuse();
    if is_mounted(&fuse)? {
        if let Some(device) = device.filter(|device| is_backed_by(device, &fuse)) {
            run("losetup", ["--detach", device]).await?;
        }
        let text = fs::read_to_string(place.pid()).unwrap_or_default();
        let process = text.trim().parse().ok().and_then(Pid::from_raw);
        let process = process.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // The kernel may let go of the loop device a little later, and of the file with it; nbdfuse ends then.
        run("umount", ["--lazy".as_ref(), fuse.as_os_str()]).await?;
        if let Some(process) = process {
            wait_for_end(&process, device.unwrap_or("the device"))?;
        }
    }
    place.remove()
}

/// Waits for nbdfuse's end: its connection goes with it, and only then nobody reads the test failover any more.
fn wait_for_end(process: &OwnedFd, device: &str) -> Result<(), Failure> {
    let ended = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&PATIENCE));
    match ended.map_err(|error| Error::io("waiting for nbdfuse", error.into()))? {
        0 => {
            let text = format!("something still uses {device}: close it and try again");
            Err(Error::new(ErrorKind::Io, text).into())
        }
        _ => Ok(()),
    }
}

/// Whether a loop device still shows the file that we gave it, and not somebody else's.
fn is_backed_by(device: &str, fuse: &Path) -> bool {
    let name = device.trim_start_matches("/dev/");
    let backing = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"));
    backing.is_ok_and(|file| Path::new(file.trim()) == fuse.join("disk"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_have_places_of_their_own() {
        let places =
            ["/mnt/a", "/mnt/a/b", "/mnt%2Fa", "/mnt/a%2Fb"].map(|path| Place::of(Path::new(path)).root);
        for (index, place) in places.iter().enumerate() {
            assert_eq!(place.parent(), Some(Path::new(NOTES)));
            assert!(places[index + 1..].iter().all(|other| other != place), "{places:?}");
        }
    }
}
