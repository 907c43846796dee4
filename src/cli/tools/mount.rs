//! The files of a disk as of a recovery point: nbdfuse makes a file of a test failover's export, losetup a block
//! device of that, and the kernel mounts the file system on it, read-only. Needs root.
//!
//! The device itself is writable, into the test failover's throwaway overlay: after a crash, and every point is one, a file
//! system has to replay its own journal before it can be read.
//!
//! What a mount consists of stands in a note beside it, `/run/afterimage/mounts/…`, so that `point unmount` can take it
//! down again, also when a part of it is gone already.

use std::fs;
use std::os::fd::AsFd;
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
    let file = place.fuse().join("disk");
    let device =
        run("losetup", ["--find".as_ref(), "--show".as_ref(), "--partscan".as_ref(), file.as_os_str()])
            .await?;
    let mounted = Mounted {
        disk: disk.to_string(),
        test: test.number.0,
        group: test.group.to_string(),
        device: device.clone(),
        directory: directory.to_owned(),
    };
    let attached = async {
        let source = match partition {
            Some(partition) => format!("{device}p{partition}"),
            None => {
                refuse_partitioned(&device).await?;
                device.clone()
            }
        };
        let text = serde_json::to_vec_pretty(&mounted).expect("strings and numbers");
        fs::write(place.note(), text).map_err(|error| Error::io("writing", error).at_path(&place.note()))?;
        run("mount", ["-o".as_ref(), "ro".as_ref(), source.as_ref(), directory.as_os_str()]).await
    };
    if let Err(error) = attached.await {
        // Best effort, before the file under it goes; the error that matters is the first.
        let _ = run("losetup", ["--detach", &device]).await;
        return Err(error);
    }
    Ok(mounted)
}

/// A disk with a partition table holds no file system of its own.
async fn refuse_partitioned(device: &str) -> Result<(), Failure> {
    // It fails where it finds nothing, which is for mount to say.
    let table = run("blkid", ["--probe", "--match-tag", "PTTYPE", "--output", "value", device]).await;
    match table {
        Ok(table) if !table.is_empty() => Err(Failure::Usage(format!(
            "the disk has a partition table ({table}): write --partition N for one of its partitions"
        ))),
        _ => Ok(()),
    }
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
        run("umount", [&fuse]).await?;
        // Its connection ends with it, and only then nobody reads the test failover any more.
        if let Some(process) = process {
            let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&PATIENCE));
            ended.map_err(|error| Error::io("waiting for nbdfuse", error.into()))?;
        }
    }
    place.remove()
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
