//! An overlay whose device does not do what it should: what is shown never goes back, no flush is answered that was none, and nothing is
//! lost because a device did not answer once.

use std::path::Path;
use std::rc::Rc;

use afterimage::error::{ErrorKind, Result};
use afterimage::runtime::Runtime;
use afterimage::storage::sim::{FaultKind, Matcher, OpKind, SimDisk};
use afterimage::units::{PointId, SectorRange, to_usize};
use afterimage::vault::Vault;
use afterimage::view::{Overlay, View};

use crate::power::{Process, prepare_disk, process};
use crate::support::{Group, block_on, flatten, pattern, site_keys};

/// The last block of the disk is short, and the point has zeros there and from sector 200 on.
const SECTORS: u64 = 403;
const OVERLAY: &str = "/data/overlay";
const SEEDS: u64 = 40;

/// A process that has an overlay open, and the disk that it is on.
struct Site {
    disk: SimDisk,
    vault: &'static Path,
    point: PointId,
    process: Process,
    overlay: Overlay,
}

impl Site {
    fn new(seed: u64) -> Site {
        let disk = SimDisk::new(seed);
        let vault = prepare_disk(&disk);
        let mut group = Group::within(&process(&disk, seed).runtime, vault, &[SECTORS]);
        group.write(0, SectorRange::new(10, 200), 9);
        let point = group.publish();
        let process = process(&disk, seed + SEEDS);
        let view = view(&process.runtime, vault, point);
        let created = Overlay::create(Path::new(OVERLAY), &view, view.disks()[0].id());
        let overlay = block_on(&process.runtime, created).expect("a new overlay");
        Site { disk, vault, point, process, overlay }
    }

    /// After the death of the process, or of the machine.
    fn reopened(self, power: bool) -> Site {
        let Site { disk, vault, point, process: dead, overlay } = self;
        match power {
            true => disk.power_cut(),
            false => disk.kill_process(dead.id),
        }
        drop((overlay, dead));
        let process = process(&disk, 1);
        let view = view(&process.runtime, vault, point);
        let opened = Overlay::open(Path::new(OVERLAY), &view, view.disks()[0].id());
        let overlay = block_on(&process.runtime, opened).expect("it was created");
        Site { disk, vault, point, process, overlay }
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(&self.process.runtime, future)
    }

    fn write(&self, range: SectorRange, seed: u8, durable: bool) -> Result<()> {
        self.run(self.overlay.write(range, &pattern(range.bytes(), seed), durable))
    }

    fn read(&self, range: SectorRange) -> Result<Vec<u8>> {
        self.run(self.overlay.read(range)).map(|pieces| flatten(&pieces))
    }
}

fn view(runtime: &Rc<Runtime>, vault: &Path, point: PointId) -> Rc<View> {
    let vault = block_on(runtime, Vault::open(runtime, vault, &site_keys())).expect("sound");
    block_on(runtime, View::open(&Rc::new(vault), point)).expect("sound")
}

/// An error of a sync is told once: the next sync of the same file says that all is well.
#[test]
fn no_flush_beside_one_that_failed_is_answered_as_done() {
    for seed in 0..SEEDS {
        for of_sums in [true, false] {
            let site = Site::new(seed);
            site.write(SectorRange::new(16, 64), 1, false).expect("nothing fails yet");
            let matcher = Matcher::kind(OpKind::Sync).path(OVERLAY).after(u64::from(!of_sums));
            site.disk.fail_next(matcher, FaultKind::Io);
            let overlay = &site.overlay;
            let flushes = futures::future::join_all((0..3).map(|_| overlay.flush()));
            for flushed in site.run(flushes) {
                flushed.expect_err("what one of them was to make durable is not");
            }
            let error = site.write(SectorRange::new(16, 64), 2, false).expect_err("in doubt");
            assert_eq!(error.kind(), ErrorKind::Latched, "{error}");
        }
    }
}

#[test]
fn what_is_shown_after_a_failed_flush_and_flushed_again_stays() {
    let range = SectorRange::new(16, 64);
    for seed in 0..SEEDS {
        for of_sums in [true, false] {
            let site = Site::new(seed);
            site.write(range, 1, true).expect("nothing fails yet");
            site.write(range, 2, false).expect("nothing fails yet");
            let matcher = Matcher::kind(OpKind::Sync).path(OVERLAY).after(u64::from(!of_sums));
            site.disk.fail_next(matcher, FaultKind::Io);
            site.run(site.overlay.flush()).expect_err("it fails");
            let site = site.reopened(false);
            let shown: Vec<_> =
                (16..64).map(|sector| site.read(SectorRange::new(sector, sector + 1))).collect();
            site.run(site.overlay.flush()).expect("it is mended");
            let site = site.reopened(true);
            for (sector, shown) in (16..64).zip(shown) {
                let at = to_usize((sector - 16) * 512)..to_usize((sector - 15) * 512);
                let read = site.read(SectorRange::new(sector, sector + 1));
                match (shown, read) {
                    (Ok(shown), Ok(read)) => {
                        assert!(shown == read, "seed {seed}: sector {sector} went back");
                        let written = [1, 2].map(|stamp| pattern(range.bytes(), stamp)[at.clone()].to_vec());
                        assert!(written.contains(&read), "seed {seed}: sector {sector}");
                    }
                    // Torn by the sync that failed: refused before and after.
                    (Err(shown), Err(_)) => assert_eq!(shown.kind(), ErrorKind::Corrupt, "{shown}"),
                    (shown, read) => panic!("seed {seed}: sector {sector}: {shown:?}, then {read:?}"),
                }
            }
        }
    }
}

#[test]
fn of_a_zeroing_that_fails_each_block_is_what_it_was_or_zeros() {
    let mut zeroed = 0;
    for seed in 0..SEEDS {
        let site = Site::new(seed);
        let range = SectorRange::new(240, SECTORS);
        site.write(range, 1, true).expect("nothing fails yet");
        site.disk.fail_next(Matcher::kind(OpKind::Zero).path(OVERLAY), FaultKind::Io);
        site.run(site.overlay.zero(range, false, false)).expect_err("it fails");
        let written = pattern(range.bytes(), 1);
        let found = site.read(range).expect("nothing is torn");
        for (was, found) in written.chunks(4096).zip(found.chunks(4096)) {
            let is_zeros = found.iter().all(|byte| *byte == 0);
            assert!(is_zeros || found == was, "seed {seed}");
            zeroed += u32::from(is_zeros);
        }
        let site = site.reopened(false);
        assert!(site.read(range).expect("nothing is torn") == found, "seed {seed}");
    }
    assert!(zeroed > 0, "it may have happened all the same");
}

#[test]
fn sums_that_the_device_does_not_give_once_are_not_lost() {
    let site = Site::new(7);
    let range = SectorRange::new(16, 64);
    site.write(range, 1, true).expect("nothing fails yet");
    let site = site.reopened(false);
    let fail = || site.disk.fail_next(Matcher::kind(OpKind::Read).path("overlay.sums"), FaultKind::Io);
    fail();
    assert_eq!(site.read(range).expect_err("the device").kind(), ErrorKind::Io);
    for part in [range, SectorRange::new(24, 32), SectorRange::new(30, 31)] {
        fail();
        assert_eq!(site.write(part, 2, false).expect_err("the device").kind(), ErrorKind::Io);
        assert!(site.read(range).expect("as before") == pattern(range.bytes(), 1));
    }
    let site = site.reopened(false);
    assert!(site.read(range).expect("as before") == pattern(range.bytes(), 1));
}

/// A write of zeros that failed was announced, and the next opening would take its holes for zeros that were lost.
#[test]
fn zeros_that_could_not_be_written_into_a_hole_are_not_shown_after_a_reopening() {
    for seed in 0..SEEDS {
        let site = Site::new(seed);
        let (range, part) = (SectorRange::new(16, 120), SectorRange::new(40, 96));
        let shown = site.read(range).expect("sound");
        let of_sums = seed % 2 == 0;
        let (path, kind) =
            if of_sums { ("overlay.sums", FaultKind::Io) } else { (OVERLAY, FaultKind::NoSpace) };
        // The first write goes to the sums, the second one to the overlay.
        site.disk.fail_next(Matcher::kind(OpKind::Write).path(path).after(u64::from(!of_sums)), kind);
        let zeroed = site.run(site.overlay.zero(part, false, true));
        assert!(zeroed.is_err(), "seed {seed}");
        assert!(site.read(range).expect("sound") == shown, "seed {seed}");
        site.run(site.overlay.flush()).expect("not latched");
        let site = site.reopened(seed % 3 == 0);
        assert!(site.read(range).expect("sound") == shown, "seed {seed}");
    }
}
