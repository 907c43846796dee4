//! Records that rot in the journal under a running group: what could be read goes on, what could not is noted, and
//! accepted or not, disk and points say the same.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use afterimage::block::{Refusal, Request, Response};
use afterimage::error::{ErrorKind, Result};
use afterimage::extent::Ranges;
use afterimage::format::frame::RecordKind;
use afterimage::format::record::{DiskRecord, Membership, PointRecord};
use afterimage::journal::scan::{Checks, scan_segment};
use afterimage::journal::segments::parse_file_name;
use afterimage::protect::events::GroupEvent;
use afterimage::protect::resume::{Finding, ResumeReport};
use afterimage::storage::sim::{FaultKind, Matcher, OpKind};
use afterimage::units::{DiskId, SectorRange};
use afterimage::view::View;

use crate::machine::{Machine, SECTORS, Steps, image, part};
use crate::pieces::flatten;

pub const LOST: SectorRange = SectorRange { start: 10, end: 17 };

/// Segment, byte offset of the frame and of the payload of the newest record in the journal that is a write of these sectors.
pub fn place(machine: &mut Machine, disk: DiskId, range: SectorRange) -> (PathBuf, u64, u64) {
    let slot = machine.member(disk).record.slot;
    let mut found = None;
    for path in machine.disk.files() {
        let Some(index) = path.file_name().and_then(|name| parse_file_name(name.to_str()?)) else { continue };
        let bytes = machine.disk.read_file(&path).expect("a segment");
        for scanned in scan_segment(index, &bytes, Checks::ALL).frames {
            let frame = &scanned.frame;
            for (record, lsn) in frame.records.iter().zip(frame.first_lsn.0..) {
                if record.kind == (RecordKind::Write { disk: slot, range }) {
                    let offset = frame.segment_offset();
                    let payload = offset + frame.payload_range(record.payload).start as u64;
                    found = found.max(Some((lsn, path.clone(), offset, payload)));
                }
            }
        }
    }
    let (_, path, frame, payload) = found.expect("the write is in the journal");
    (path, frame, payload)
}

/// Flips a bit of that record.
fn rot(machine: &mut Machine, disk: DiskId, range: SectorRange) {
    let (path, _, payload) = place(machine, disk, range);
    assert!(machine.disk.rot(&path, payload + 77, 3));
}

/// Pushes frames out of the cache, so that what is read comes from the journal.
pub fn evict(machine: &mut Machine, other: DiskId) {
    assert!(machine.write(other, 0, 9, 128).is_ok());
    assert!(machine.write(other, 128, 9, 64).is_ok());
}

pub fn set_interval(machine: &mut Machine, interval: Duration) {
    machine.called(|group, done| group.set_policy(Some(interval), None, done)).expect("set");
}

/// Sectors of one byte each: how many, and which.
pub type Runs = Vec<(u64, u8)>;

pub fn runs(bytes: &[u8]) -> Runs {
    let mut runs = Runs::new();
    for sector in bytes.chunks(512) {
        assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is torn");
        match runs.last_mut() {
            Some((count, byte)) if *byte == sector[0] => *count += 1,
            _ => runs.push((1, sector[0])),
        }
    }
    runs
}

pub fn read_whole(machine: &mut Machine, disk: DiskId) -> Runs {
    runs(&machine.read(disk))
}

pub fn read_range(
    machine: &mut Machine,
    disk: DiskId,
    start: u64,
    end: u64,
) -> std::result::Result<Runs, Refusal> {
    match machine.ask(disk, Request::Read { range: SectorRange::new(start, end) }) {
        Ok(Response::Data(pieces)) => Ok(runs(&flatten(&pieces))),
        Ok(other) => panic!("a read gave {other:?}"),
        Err(refusal) => Err(refusal),
    }
}

pub fn accept(machine: &mut Machine) -> ResumeReport {
    machine.called(|group, done| group.mend_disks_accepting_loss(done)).expect("a group that works")
}

pub fn point(machine: &mut Machine) -> PointRecord {
    machine.called(|group, done| group.create_point(String::new(), done)).expect("points go on")
}

pub fn lacks(point: &PointRecord, disk: DiskId) -> Vec<SectorRange> {
    point.disks.iter().find(|member| member.disk == disk).expect("in the table").lacking().to_vec()
}

/// What a point holds of a disk.
pub fn view(machine: &mut Machine, point: &PointRecord, disk: DiskId) -> Result<Runs> {
    let (vault, point) = (Rc::clone(machine.group().vault()), point.id);
    machine.run(async move {
        let view = View::open(&vault, point).await?;
        let pieces = view.read(disk, SectorRange::new(0, SECTORS)).await?;
        Ok(runs(&flatten(&pieces)))
    })
}

/// A disk whose image holds 1 in [`LOST`] and around it, and whose journal newer writes to both.
pub fn written(seed: u64) -> (Machine, DiskId, DiskId) {
    let (mut machine, rotten, sound) = Machine::new(seed);
    set_interval(&mut machine, Duration::from_secs(3600));
    assert!(machine.write(rotten, 0, 1, 100).is_ok());
    machine.drive("destaging", |machine| {
        machine.disk.durable_file(&image(rotten)).is_some_and(|bytes| bytes[..512] == [1; 512])
    });
    assert!(machine.write(rotten, LOST.start, 2, LOST.sectors()).is_ok());
    assert!(machine.write(rotten, 90, 3, 20).is_ok());
    (machine, rotten, sound)
}

/// The same, and further frames say that all this is durable.
pub fn stated(seed: u64) -> (Machine, DiskId, DiskId) {
    let (mut machine, broken, sound) = written(seed);
    assert!(machine.ask(broken, Request::Flush).is_ok());
    evict(&mut machine, sound);
    assert!(machine.ask(broken, Request::Flush).is_ok());
    (machine, broken, sound)
}

/// A disk of which a write to [`LOST`] rotted, with a side file that notes it. Before it the sectors held 1, in the image.
fn lossy(seed: u64) -> (Machine, DiskId, DiskId) {
    let (mut machine, rotten, sound) = written(seed);
    evict(&mut machine, sound);
    rot(&mut machine, rotten, LOST);
    machine.drive("a side file", |machine| !machine.member(rotten).sides.is_empty());
    (machine, rotten, sound)
}

/// What the disk holds once the loss is accepted.
pub fn accepted_content() -> Runs {
    vec![(90, 1), (20, 3), (SECTORS - 110, 0)]
}

pub fn check_latched(machine: &mut Machine, rotten: DiskId) {
    assert!(machine.is_latched(rotten));
    assert_eq!(read_range(machine, rotten, 9, 11), Err(Refusal::Io));
    assert_eq!(read_range(machine, rotten, 16, 17), Err(Refusal::Io));
    assert_eq!(read_range(machine, rotten, 0, 10).expect("sound"), [(10, 1)]);
    assert_eq!(
        read_range(machine, rotten, 17, SECTORS).expect("sound"),
        [(73, 1), (20, 3), (SECTORS - 110, 0)]
    );
    assert_eq!(machine.write(rotten, 0, 9, 1).unwrap_err(), Refusal::Io);
}

#[test]
fn what_is_lost_is_noted_and_accepted_and_the_rest_goes_on() {
    for seed in 0..4 {
        let (mut machine, rotten, sound) = lossy(seed);
        check_latched(&mut machine, rotten);
        // The journal lets go of the record, both for the image and for the vault.
        machine.turn_the_journal_over(sound);
        let lacking = point(&mut machine);
        assert_eq!(lacks(&lacking, rotten), [LOST]);
        let refused = view(&mut machine, &lacking, rotten).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotFound);
        assert!(
            refused.to_string().contains("disk first") && refused.to_string().contains("10..17"),
            "{refused}"
        );
        let before = read_whole(&mut machine, sound);
        assert_eq!(view(&mut machine, &lacking, sound).expect("the others are as good as ever"), before);

        let report = machine.resume().expect("a group that works");
        let Finding::Lost { reason } = &report.disks[0].finding else { panic!("{report:?}") };
        for named in ["disk first", "sectors 10..17", "segment-0000000", " at byte ", "--accept-loss"] {
            assert!(reason.contains(named), "{reason}");
        }
        let mut machine = machine.restart(seed % 2 == 0);
        check_latched(&mut machine, rotten);
        assert_eq!(lacks(&point(&mut machine), rotten), [LOST]);

        machine.told();
        let report = accept(&mut machine);
        let lost = Ranges::of([LOST]);
        assert_eq!(report.disks[0].finding, Finding::Accepted { lost: lost.clone() });
        let told = GroupEvent::LossAccepted { disk: "first".to_owned(), sectors: lost };
        assert_eq!(machine.told().iter().filter(|event| **event == told).count(), 1);
        assert_eq!(read_whole(&mut machine, rotten), accepted_content());
        assert!(machine.write(rotten, 200, 4, 1).is_ok());
        let expected = vec![(90, 1), (20, 3), (90, 0), (1, 4), (55, 0)];
        let whole = point(&mut machine);
        assert!(whole.disks.iter().all(|disk| disk.membership == Membership::Included));
        assert_eq!(view(&mut machine, &whole, rotten).expect("whole"), expected);
        let mut machine = machine.restart(seed % 2 == 1);
        assert_eq!(read_whole(&mut machine, rotten), expected);
        assert!(accept(&mut machine).disks.iter().all(|disk| disk.finding == Finding::Sound));
        // Whatever becomes of the points that lack the disk, the one behind them stays what it is.
        let into = whole.id;
        let vault = Rc::clone(machine.group().vault());
        machine.run(async move { vault.merge_points(lacking.id, into, None).await }).expect("merges");
        assert_eq!(view(&mut machine, &whole, rotten).expect("whole"), expected);
    }
}

#[test]
fn a_restart_that_meets_the_record_goes_on_with_it_noted() {
    for seed in 0..6 {
        let (machine, rotten, _) = lossy(seed % 3);
        // The journal has not let go of the record.
        let mut machine = machine.restart(seed % 2 == 0);
        check_latched(&mut machine, rotten);
        assert_eq!(lacks(&point(&mut machine), rotten), [LOST]);
        let lost = Ranges::of([LOST]);
        assert_eq!(accept(&mut machine).disks[0].finding, Finding::Accepted { lost });
        let mut machine = machine.restart(seed % 2 == 1);
        assert!(!machine.is_latched(rotten), "what hides the note is durable");
        assert_eq!(read_whole(&mut machine, rotten), accepted_content());
        let whole = point(&mut machine);
        assert_eq!(view(&mut machine, &whole, rotten).expect("whole"), accepted_content());
    }
}

#[test]
fn a_restart_that_is_the_first_to_meet_the_record_latches_its_disk_alone() {
    for seed in 0..6 {
        let (mut machine, rotten, sound) = stated(seed % 3);
        rot(&mut machine, rotten, LOST);
        let mut machine = machine.restart(seed % 2 == 0);
        assert_eq!(read_range(&mut machine, rotten, 9, 11), Err(Refusal::Io));
        machine.drive("a side file", |machine| !machine.member(rotten).sides.is_empty());
        check_latched(&mut machine, rotten);
        assert!(machine.write(sound, 0, 5, 1).is_ok());
        assert_eq!(lacks(&point(&mut machine), rotten), [LOST]);
        let lost = Ranges::of([LOST]);
        assert_eq!(accept(&mut machine).disks[0].finding, Finding::Accepted { lost });
        assert_eq!(read_whole(&mut machine, rotten), accepted_content());
    }
}

#[test]
fn the_base_passes_points_that_lack_a_disk() {
    let (mut machine, rotten, _) = lossy(3);
    point(&mut machine);
    let lacking = point(&mut machine);
    accept(&mut machine);
    let whole = point(&mut machine);
    assert_eq!(lacks(&lacking, rotten), [LOST]);
    let beyond = point(&mut machine);
    for target in [lacking.id, whole.id] {
        let vault = Rc::clone(machine.group().vault());
        let advanced = machine.run(async move {
            vault.retire_before(target, None).await?;
            vault.finish_advance().await
        });
        advanced.expect("advances");
        for point in [&whole, &beyond] {
            assert_eq!(view(&mut machine, point, rotten).expect("whole"), accepted_content());
        }
    }
}

#[test]
fn a_death_at_any_step_of_an_acceptance_is_survived() {
    let mut ends = [0; 2];
    for seed in 0..20 {
        let (mut machine, rotten, sound) = lossy(seed % 4);
        if seed % 3 == 0 {
            // Else the restart meets the record.
            machine.turn_the_journal_over(sound);
        }
        machine.group().mend_disks_accepting_loss(Box::new(|_| ()));
        for _ in 0..6 * seed {
            machine.step();
        }
        let mut machine = machine.restart(seed % 2 == 0);
        machine.drive("what was begun", |machine| {
            !machine.is_latched(rotten) || !machine.member(rotten).mend_asked
        });
        machine.drive("rest", |machine| machine.disk.in_flight() == 0);
        let is_accepted = !machine.is_latched(rotten);
        ends[usize::from(is_accepted)] += 1;
        if !is_accepted {
            check_latched(&mut machine, rotten);
            accept(&mut machine);
        }
        assert_eq!(read_whole(&mut machine, rotten), accepted_content(), "seed {seed}");
        let whole = point(&mut machine);
        assert_eq!(view(&mut machine, &whole, rotten).expect("whole"), accepted_content(), "seed {seed}");
        assert_eq!(read_whole(&mut machine.restart(true), rotten), accepted_content(), "seed {seed}");
    }
    assert!(ends.iter().all(|&count| count > 0), "deaths before and after: {ends:?}");
}

#[test]
fn an_older_write_of_the_same_journal_shows_again() {
    let (mut machine, rotten, sound) = Machine::new(1);
    set_interval(&mut machine, Duration::from_secs(3600));
    // No layer knows what its own records hid: it takes a point to have it shown again.
    let mut expected = Vec::new();
    for (start, byte, count) in [(0, 1, 40), (5, 2, 10), (8, 3, 4)] {
        assert!(machine.write(rotten, start, byte, count).is_ok());
        if start == 0 {
            expected = read_whole(&mut machine, rotten);
            point(&mut machine);
        }
    }
    evict(&mut machine, sound);
    // The newer one first: a scan goes no further than the first that rotted.
    rot(&mut machine, rotten, SectorRange::new(8, 12));
    rot(&mut machine, rotten, SectorRange::new(5, 15));
    machine.drive("a side file", |machine| !machine.member(rotten).sides.is_empty());
    assert_eq!(lacks(&point(&mut machine), rotten), [SectorRange::new(5, 15)]);
    let lost = Ranges::of([SectorRange::new(5, 15)]);
    assert_eq!(accept(&mut machine).disks[0].finding, Finding::Accepted { lost });
    assert_eq!(read_whole(&mut machine, rotten), expected);
    let whole = point(&mut machine);
    assert_eq!(view(&mut machine, &whole, rotten).expect("whole"), expected);
}

#[test]
fn a_broken_image_and_a_lost_record_together_are_mended_one_after_the_other() {
    let (mut machine, rotten, sound) = Machine::new(5);
    set_interval(&mut machine, Duration::from_secs(3600));
    machine.disk.fail_always(Matcher::kind(OpKind::Write).path(part(&image(rotten))), FaultKind::Io);
    assert!(machine.write(rotten, 0, 1, 20).is_ok());
    point(&mut machine);
    assert!(machine.write(rotten, LOST.start, 2, LOST.sectors()).is_ok());
    evict(&mut machine, sound);
    rot(&mut machine, rotten, LOST);
    machine.drive("a side file", |machine| !machine.member(rotten).sides.is_empty());
    machine.turn_the_journal_over(sound);
    let report = accept(&mut machine);
    assert!(matches!(report.disks[0].finding, Finding::Latched { kind: ErrorKind::Io, .. }), "{report:?}");
    assert_eq!(read_range(&mut machine, rotten, 10, 11), Err(Refusal::Io));
    machine.disk.mend();
    let report = machine.resume().expect("a group that works");
    assert!(matches!(report.disks[0].finding, Finding::Lost { .. }), "an acceptance counts once: {report:?}");
    accept(&mut machine);
    assert_eq!(read_whole(&mut machine, rotten), [(20, 1), (SECTORS - 20, 0)]);
}

/// A delta may need a record that the image has already. Nothing of the disk is lost then, and it comes back by itself.
#[test]
fn what_only_points_lack_is_written_anew() {
    for seed in 0..6 {
        let (mut machine, rotten, sound) = Machine::new(seed);
        set_interval(&mut machine, Duration::from_secs(3600));
        let other: DiskRecord = machine.member(sound).record.clone();
        assert_eq!(other.id, sound);
        assert!(machine.write(rotten, 0, 1, 20).is_ok());
        assert!(machine.write(rotten, LOST.start, 2, LOST.sectors()).is_ok());
        machine.drive("destaging", |machine| {
            machine.group().ladder().destaged == machine.group().ladder().visible
                && machine.disk.in_flight() == 0
        });
        evict(&mut machine, sound);
        rot(&mut machine, rotten, LOST);
        let lacking = point(&mut machine);
        assert_eq!(lacks(&lacking, rotten), [LOST], "seed {seed}");
        assert!(!machine.is_latched(rotten), "the image has it");
        // A guest writes while the gateway writes the sectors anew; each is read back as it was written last.
        for _ in 0..3 * seed {
            machine.step();
        }
        assert!(machine.write(rotten, 12, 3, 1).is_ok());
        let expected = vec![(10, 1), (2, 2), (1, 3), (4, 2), (3, 1), (SECTORS - 20, 0)];
        machine.drive("the renewal", |machine| {
            machine.told().iter().any(|event| matches!(event, GroupEvent::Renewed { sectors: 7, .. }))
        });
        assert_eq!(read_whole(&mut machine, rotten), expected, "seed {seed}");
        let whole = point(&mut machine);
        assert!(lacks(&whole, rotten).is_empty());
        assert_eq!(view(&mut machine, &whole, rotten).expect("whole"), expected, "seed {seed}");
        let told = machine.told();
        assert!(told.contains(&GroupEvent::DiskWhole { disk: "first".to_owned() }), "{told:?}");
        machine.turn_the_journal_over(sound);
        assert_eq!(read_whole(&mut machine.restart(seed % 2 == 0), rotten), expected, "seed {seed}");
    }
}

#[test]
fn a_renewal_that_a_death_cuts_short_is_begun_anew_at_the_opening() {
    for steps in (0..60).step_by(6) {
        let (mut machine, rotten, sound) = Machine::new(steps % 3);
        set_interval(&mut machine, Duration::from_secs(3600));
        assert!(machine.write(rotten, LOST.start, 2, LOST.sectors()).is_ok());
        machine.drive("destaging", |machine| {
            machine.group().ladder().destaged == machine.group().ladder().visible
                && machine.disk.in_flight() == 0
        });
        evict(&mut machine, sound);
        rot(&mut machine, rotten, LOST);
        point(&mut machine);
        for _ in 0..steps {
            machine.step();
        }
        // The journal's own scan meets the record, unless it was recycled.
        let mut machine = machine.die(steps % 2 == 0);
        machine.open().expect("its disk does not need it");
        assert_eq!(machine.group().points().len(), 1, "no point was made since");
        machine.drive("the renewal", |machine| {
            machine.told().iter().any(|event| matches!(event, GroupEvent::Renewed { .. }))
        });
        assert_eq!(machine.group().points().len(), 1, "nor was one needed");
        let whole = point(&mut machine);
        assert!(lacks(&whole, rotten).is_empty(), "{steps} steps");
    }
}

/// Sectors of another record that only points lack.
const ALSO: SectorRange = SectorRange { start: 40, end: 44 };

#[test]
fn what_cannot_be_written_anew_is_told_of_and_does_not_keep_the_rest_from_points() {
    let (mut machine, rotten, sound) = Machine::new(3);
    set_interval(&mut machine, Duration::from_secs(3600));
    for range in [LOST, ALSO] {
        assert!(machine.write(rotten, range.start, 2, range.sectors()).is_ok());
    }
    machine.drive("destaging", |machine| {
        machine.group().ladder().destaged == machine.group().ladder().visible && machine.disk.in_flight() == 0
    });
    evict(&mut machine, sound);
    // Where both are, before a scan ends at the first.
    for (path, _, payload) in [LOST, ALSO].map(|range| place(&mut machine, rotten, range)) {
        assert!(machine.disk.rot(&path, payload + 77, 3));
    }
    assert!(machine.disk.rot(&image(rotten), 12 * 512 + 5, 1));
    assert_eq!(lacks(&point(&mut machine), rotten), [LOST, ALSO]);
    machine.drive("the attempt", |machine| !machine.group().failing_disks().is_empty());
    let failing = machine.group().failing_disks().remove(0);
    assert_eq!((&*failing.export, failing.kind), ("first", ErrorKind::Corrupt));
    assert!(failing.error.contains(&part(&image(rotten))), "{}", failing.error);
    assert!(machine.told().iter().any(|event| matches!(event, GroupEvent::RequestsFailed { .. })));
    // What comes behind it in the disk's order is renewed all the same.
    machine.drive("the next attempt", |machine| machine.group().failing_disks()[0].requests >= 3);
    assert_eq!(lacks(&point(&mut machine), rotten), [LOST]);
    // A guest writes the one sector anew that nobody has.
    assert!(machine.write(rotten, 12, 3, 1).is_ok());
    machine.drive("the renewal", |machine| {
        machine.told().iter().any(|event| matches!(event, GroupEvent::Renewed { sectors: 11, .. }))
    });
    let whole = point(&mut machine);
    assert!(lacks(&whole, rotten).is_empty());
    let expected = vec![(10, 0), (2, 2), (1, 3), (4, 2), (23, 0), (4, 2), (SECTORS - 44, 0)];
    assert_eq!(view(&mut machine, &whole, rotten).expect("whole"), expected);
}
