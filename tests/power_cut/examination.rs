//! What is left of a volume, looked at: its file system is mounted, the gateway is started on it, and everything that
//! it says it has is compared with what the clients know.
//!
//! All of it lies in memory, in a tmpfs. Needs root.

use std::path::{Path, PathBuf};

use afterimage::cli::Failure;
use afterimage::cli::demo::{Api, GatewayProcess};
use afterimage::control::model::{Condition, Point};
use afterimage::oracle::{Bounds, Image, Stamp, judge};
use afterimage::random::Random;
use tokio::runtime::Runtime;

use crate::recording::{EXPORTS, JOURNAL, Known, KnownPoint, Recording};
use crate::tool;

const LABORATORY_SIZE: &str = "size=1G";

/// A place for examinations, one after the other.
pub struct Laboratory<'a> {
    recording: &'a Recording,
    // Before the directory: the process ends first.
    gateway: GatewayProcess,
    runtime: Runtime,
    directory: Mounted,
    /// Points that were read.
    pub points_read: u64,
    /// Volumes in which a point had to be, which nothing but a failure keeps from being read.
    pub points_owed: u64,
}

impl<'a> Laboratory<'a> {
    /// A new one, which runs the program `gateway`.
    pub fn new(recording: &'a Recording, gateway: &Path) -> Laboratory<'a> {
        let place = tempfile::tempdir().expect("a temporary directory");
        let root = place.path().to_owned();
        tool::says("mount", ["-t", "tmpfs", "-o", LABORATORY_SIZE, "tmpfs", text(&root)]);
        let directory = Mounted { root, _place: Some(place) };
        let gateway = GatewayProcess::new(gateway, &directory.root, JOURNAL).expect("a directory of its own");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Laboratory { recording, gateway, runtime, directory, points_read: 0, points_owed: 0 }
    }

    /// Where the volume to look at must lie.
    pub fn volume(&self) -> PathBuf {
        self.directory.root.join("volume")
    }

    /// Everything that is not as it must be at a moment of which this is known.
    pub fn examine(&mut self, known: Known, random: &mut Random) -> Vec<String> {
        let data = self.gateway.data();
        let (volume, root) = (self.volume(), text(&data));
        let mounted = tool::run("mount", ["-t", "ext4", "-o", "loop", text(&volume), root]);
        if !mounted.status.success() {
            return vec![format!("ext4 does not mount: {}", String::from_utf8_lossy(&mounted.stderr))];
        }
        let mounted = Mounted { root: data.clone(), _place: None };
        let mut complaints = self.run(known, random).err().unwrap_or_default();
        self.gateway.kill();
        drop(mounted);
        // A file system that is busy still, with writes of the process that was killed, keeps its file and loop device.
        std::fs::remove_file(volume).expect("it is there");
        if !complaints.is_empty() {
            let log = std::fs::read_to_string(self.gateway.log()).unwrap_or_default();
            complaints.push(format!("the gateway's log: {log}"));
        }
        let _ = std::fs::remove_file(self.gateway.log());
        complaints
    }

    fn run(&mut self, known: Known, random: &mut Random) -> Result<(), Vec<String>> {
        let one = |failure: Failure| vec![failure.to_string()];
        self.gateway.start().map_err(|error| vec![error.to_string()])?;
        self.runtime.block_on(self.gateway.ready()).map_err(|error| vec![error.to_string()])?;
        let api = Api::new(self.gateway.client(), "erp".parse().expect("a name"));
        if known.promised < self.recording.created {
            return Ok(());
        }
        let status = self.runtime.block_on(api.status()).map_err(one)?;
        if !matches!(status.state.condition, Condition::Protected | Condition::Degraded) {
            return Err(vec![format!("the group is not served: {:?}", status.state)]);
        }
        let mut complaints = self.disks(known);
        let points = self.runtime.block_on(api.points()).map_err(one)?;
        complaints.extend(self.missing_points(known, &points));
        let is_owed = self.held_points(known).next().is_some();
        self.points_owed += u64::from(is_owed);
        if !points.is_empty() {
            complaints.extend(self.point(&api, &points, known, random));
        }
        if complaints.is_empty() { Ok(()) } else { Err(complaints) }
    }

    /// The disks hold what survives a power cut, and are a prefix of what was asked for.
    fn disks(&self, known: Known) -> Vec<String> {
        let exports: Vec<String> = EXPORTS.iter().map(|export| (*export).to_owned()).collect();
        let images = match self.read(&exports) {
            Ok(images) => images,
            Err(complaint) => return vec![complaint],
        };
        let history = &self.recording.history;
        let flushed = history.flushed_by(known.promised);
        let prefix = Bounds { holds_before: flushed, nothing_after: known.nothing_after };
        let durable = Bounds { holds_before: known.promised, nothing_after: known.nothing_after };
        let verdicts = [
            ("as a prefix", judge(history, &images, prefix)),
            ("as promised", judge(&history.durable_by(known.promised), &images, durable)),
        ];
        let bad = verdicts.iter().filter(|(_, verdict)| !verdict.is_clean());
        bad.map(|(how, verdict)| format!("the disks, {how}, by {known:?}: {verdict}")).collect()
    }

    fn read(&self, exports: &[String]) -> Result<Vec<Image>, String> {
        let socket = self.gateway.nbd_socket();
        let read = |(disk, export): (usize, &String)| {
            Image::of_export(&self.recording.history, disk, &socket, export)
                .map_err(|error| format!("{export}: {error}"))
        };
        exports.iter().enumerate().map(read).collect()
    }

    /// Points that are held at a moment.
    fn held_points(&self, known: Known) -> impl Iterator<Item = &KnownPoint> {
        let is_held =
            move |point: &&KnownPoint| point.held < known.promised && point.released >= known.nothing_after;
        self.recording.points.iter().filter(is_held)
    }

    /// Points that were held and are not there.
    fn missing_points(&self, known: Known, points: &[Point]) -> Vec<String> {
        let is_listed = |known: &KnownPoint| {
            points.iter().any(|point| point.held && point.label.as_deref() == Some(&known.label))
        };
        let held = self.held_points(known);
        held.filter(|point| !is_listed(point)).map(|point| format!("{} is lost", point.label)).collect()
    }

    /// One of the points, opened and read.
    fn point(&mut self, api: &Api, points: &[Point], known: Known, random: &mut Random) -> Vec<String> {
        let mut point = random.choose(points);
        let mut opened = self.runtime.block_on(api.start_test(point.id));
        if opened.is_err() && self.is_gone(api, point) {
            // Then one that stays, if there is any.
            let Some(held) = points.iter().find(|point| point.held) else { return Vec::new() };
            point = held;
            opened = self.runtime.block_on(api.start_test(point.id));
        }
        let test = match opened {
            Ok(test) => test,
            Err(failure) => return vec![format!("opening {point:?}: {failure}")],
        };
        let mut exports = test.exports.iter().map(|export| export.export.clone()).collect::<Vec<_>>();
        exports.sort();
        let called = |known: &&KnownPoint| Some(&*known.label) == point.label.as_deref();
        let asked = self.recording.points.iter().find(called);
        let bounds = Bounds {
            holds_before: asked.map_or(Stamp::START, |asked| asked.asked),
            nothing_after: asked.map_or(known.nothing_after, |asked| asked.granted.min(known.nothing_after)),
        };
        self.points_read += 1;
        match self.read(&exports).map(|images| judge(&self.recording.history, &images, bounds)) {
            Ok(verdict) if verdict.is_clean() => Vec::new(),
            Ok(verdict) => vec![format!("{point:?}: {verdict}")],
            Err(complaint) => vec![format!("reading {point:?}: {complaint}")],
        }
    }
}

impl Laboratory<'_> {
    /// Whether retention, which goes on, has taken a point away by now.
    fn is_gone(&self, api: &Api, point: &Point) -> bool {
        let left = self.runtime.block_on(api.points()).unwrap_or_default();
        !point.held && left.iter().all(|other| other.id != point.id)
    }
}

/// A mounted file system, unmounted when it is dropped.
struct Mounted {
    root: PathBuf,
    _place: Option<tempfile::TempDir>,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The loop device goes with the mount.
        let ended = tool::command("umount").arg(&self.root).output();
        if !ended.is_ok_and(|output| output.status.success()) {
            let _ = tool::command("umount").arg("--lazy").arg(&self.root).output();
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
