//! An image that fails while its group runs.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use afterimage::block::{Refusal, Request, Response, Ticket};
use afterimage::error::ErrorKind;
use afterimage::protect::events::GroupEvent;
use afterimage::protect::failing::FAILING_FOR;
use afterimage::protect::resume::Finding;
use afterimage::protect::status::Condition;
use afterimage::storage::sim::{FaultKind, Matcher, OpKind};
use afterimage::units::{Lsn, SectorRange, to_usize};

use crate::machine::{
    Machine, SECTORS, SEGMENT_BYTES, SEGMENTS, Steps, fill, image, latched, part, plan, side, write,
};
use crate::pieces::flatten;

#[test]
fn an_event_bears_the_time_at_which_it_happened_whenever_it_is_asked_for() {
    let (mut machine, ..) = latched(1);
    let snapshot = machine.group().snapshot();
    assert_eq!(snapshot.condition, Condition::ImageFailed);
    machine.environment.advance(Duration::from_secs(3600));
    let told = machine.group().take_events();
    let latches = told.iter().filter(|told| told.event == GroupEvent::Condition(Condition::ImageFailed));
    assert_eq!(latches.map(|told| told.time).collect::<Vec<_>>(), [snapshot.since]);
}

/// The second one was told of nowhere but in `status`.
#[test]
fn each_latched_disk_is_told_with_what_failed() {
    let (mut machine, first, second) = Machine::new(1);
    machine.told();
    for (disk, name) in [(first, "first"), (second, "second")] {
        machine.disk.fail_always(Matcher::kind(OpKind::Write).path(part(&image(disk))), FaultKind::Io);
        assert!(machine.write(disk, 0, 1, 1).is_ok());
        machine.drive("the latch", |machine| machine.is_latched(disk));
        let told = machine.told();
        let latches: Vec<_> =
            told.iter().filter(|told| matches!(told, GroupEvent::DiskLatched { .. })).collect();
        let [GroupEvent::DiskLatched { disk: told, because }] = &latches[..] else { panic!("{latches:?}") };
        assert_eq!(told, name);
        assert!(because.contains(&part(&image(disk))), "{because}");
    }
    machine.disk.mend();
    machine.resume().expect("a group that works");
    assert!(machine.told().contains(&GroupEvent::Condition(Condition::Protected)));
}

/// It was hidden behind the latch.
#[test]
fn a_lack_of_space_is_told_beside_a_latched_disk() {
    let (mut machine, _, sound, _) = latched(1);
    machine.told();
    machine.disk.fail_always(Matcher::kind(OpKind::Write).path(part(&image(sound))), FaultKind::NoSpace);
    assert!(machine.write(sound, 0, 1, 1).is_ok());
    let is_beside =
        |machine: &mut Machine| machine.group().snapshot().beside_latches == Some(Condition::NoSpace);
    machine.drive("a lack of space", is_beside);
    assert_eq!(machine.group().snapshot().condition, Condition::ImageFailed);
    assert!(machine.told().contains(&GroupEvent::Condition(Condition::NoSpace)));
}

/// Reads latch no disk: what writes meet is another matter.
#[test]
fn reads_that_an_image_refuses_are_told_with_their_disk_until_a_while_after_the_last() {
    let (mut machine, broken, sound) = Machine::new(1);
    machine.told();
    machine.disk.fail_always(Matcher::kind(OpKind::Read).path(part(&image(broken))), FaultKind::Io);
    let read = Request::Read { range: SectorRange::new(0, 8) };
    for _ in 0..3 {
        assert_eq!(machine.ask(broken, read.clone()).unwrap_err(), Refusal::Io);
        assert!(machine.ask(sound, read.clone()).is_ok());
    }
    let failing = machine.group().snapshot().failing;
    let [failing] = &failing[..] else { panic!("one disk: {failing:?}") };
    assert_eq!((&failing.export[..], failing.requests, failing.kind), ("first", 3, ErrorKind::Io));
    assert!(failing.error.contains(&part(&image(broken))), "{}", failing.error);
    let told = machine.told().into_iter().filter(|told| matches!(told, GroupEvent::RequestsFailed { .. }));
    assert_eq!(told.count(), 1);
    assert!(!machine.is_latched(broken));

    machine.disk.mend();
    assert!(machine.ask(broken, read).is_ok());
    let is_failing = |machine: &mut Machine| !machine.group().snapshot().failing.is_empty();
    machine.environment.advance(FAILING_FOR - Duration::from_secs(60));
    assert!(is_failing(&mut machine), "one that succeeds ends nothing");
    machine.environment.advance(Duration::from_secs(60));
    assert!(!is_failing(&mut machine));
}

#[test]
fn a_broken_image_stops_neither_the_other_disks_nor_its_own_reads() {
    for seed in 0..8 {
        let (mut machine, broken, sound, expected) = latched(seed);
        machine.turn_the_journal_over(sound);
        assert_eq!(machine.read(broken), expected, "seed {seed}");
        assert_eq!(machine.write(broken, 0, 9, 1).unwrap_err(), Refusal::Io);
        let segments = machine.disk.files().iter().filter(|path| path.starts_with(plan().journal())).count();
        assert!(segments as u64 <= SEGMENTS + 1, "{segments} segments");

        // The image fails still: the next process latches the disk again, and has lost nothing.
        let mut machine = machine.restart(seed % 2 == 0);
        assert!(machine.is_latched(broken));
        assert_eq!(machine.read(broken), expected, "seed {seed}");
        machine.turn_the_journal_over(sound);

        machine.disk.mend();
        let report = machine.resume().expect("a group that works");
        let found: Vec<_> = report.disks.into_iter().map(|disk| (disk.disk, disk.finding)).collect();
        assert_eq!(found, [(broken, Finding::Mended), (sound, Finding::Sound)]);
        assert!(!machine.has_side_file(broken));
        assert_eq!(machine.disk.durable_file(&image(broken)).expect("there"), expected);
        assert!(machine.write(broken, 0, 9, 1).is_ok());
        let mut machine = machine.restart(false);
        assert_eq!(machine.read(broken)[..1024], [vec![9; 512], vec![1; 512]].concat());
    }
}

#[test]
fn an_opening_mends_what_it_can() {
    for seed in 0..8 {
        let (machine, broken, _, expected) = latched(seed);
        machine.disk.mend();
        let mut machine = machine.restart(seed % 2 == 0);
        assert!(!machine.is_latched(broken) && !machine.has_side_file(broken));
        assert_eq!(machine.disk.durable_file(&image(broken)).expect("there"), expected, "seed {seed}");
        assert_eq!(machine.read(broken), expected);
        assert!(machine.write(broken, 0, 9, 1).is_ok());
    }
}

#[test]
fn a_resume_that_finds_the_image_broken_says_so_and_loses_nothing() {
    let (mut machine, broken, _, expected) = latched(1);
    let report = machine.resume().expect("a group that works");
    let Finding::Latched { kind, reason } = &report.disks[0].finding else { panic!("{report:?}") };
    assert_eq!(*kind, ErrorKind::Io);
    assert!(reason.contains(&part(&image(broken))), "{reason}");
    assert!(machine.is_latched(broken));
    assert_eq!(machine.read(broken), expected);
}

/// A batch that began while a disk was latched leaves the disk out. Were the latch cleared before that batch ends, its
/// layers would retire as destaged, and what they hold of the disk would be lost.
#[test]
fn a_disk_that_is_mended_while_a_batch_runs_loses_nothing() {
    let mut mended_meanwhile = 0;
    for seed in 0..24 {
        let (mut machine, broken, sound) = Machine::new(seed);
        // No marker freezes a layer between the two failures.
        machine
            .called(|group, done| group.set_policy(Some(Duration::from_secs(3600)), None, done))
            .expect("set");
        machine.disk.fail_always(Matcher::kind(OpKind::Write).path(part(&image(broken))), FaultKind::Io);
        assert!(machine.write(broken, 0, 1, 16).is_ok());
        machine.drive("the first failure", |machine| {
            machine.group().disks().any(|disk| disk.record.id == broken && disk.failures == 1)
        });
        assert!(machine.write(broken, 8, 2, 16).is_ok());
        // Many extents, for a batch that takes long; at once, for else they would fill the journal.
        for start in (0..SECTORS).step_by(2) {
            machine.submit(sound, write(start, 7, 1));
        }
        machine.drive("many writes", |machine| machine.replies().len() as u64 == SECTORS / 2);
        machine.drive("the latch", |machine| machine.is_latched(broken));
        let expected =
            [vec![1; 8 * 512], vec![2; 16 * 512], vec![0; to_usize((SECTORS - 24) * 512)]].concat();
        assert_eq!(machine.read(broken), expected);

        let destaged = |machine: &Machine| machine.disk.read_file(&image(sound)).expect("there");
        machine.drive("a batch", |machine| destaged(machine).contains(&7));
        // A guest that writes holds the batch at its gate; the mend does not pass it.
        assert!(machine.write(sound, 1, 8, 1).is_ok());
        machine.disk.mend();
        let all = [vec![7; 512], vec![0; 512]].concat().repeat(to_usize(SECTORS / 2));
        let slot = Rc::new(RefCell::new(None));
        let filled = Rc::clone(&slot);
        machine.group().resume(false, Box::new(move |result| drop(filled.replace(Some(result)))));
        machine.drive("a mend", |machine| {
            let batch_runs = destaged(machine) != all;
            let mended = machine.disk.read_file(&image(broken)).is_some_and(|bytes| bytes[..512] == [1; 512]);
            mended_meanwhile += usize::from(batch_runs && mended);
            slot.borrow().is_some()
        });
        machine.drive("rest", |machine| {
            machine.group().ladder().destaged == machine.group().ladder().visible
                && machine.disk.in_flight() == 0
        });
        assert_eq!(machine.read(broken), expected, "seed {seed}");
        assert_eq!(machine.restart(true).read(broken), expected, "seed {seed}");
    }
    assert!(mended_meanwhile > 0, "no seed mends while a batch runs");
}

#[test]
fn where_no_side_file_can_be_written_the_journal_keeps_what_the_image_lacks() {
    let (mut machine, broken, sound) = Machine::new(3);
    machine.disk.fail_always(Matcher::kind(OpKind::Write).path(format!("{broken}.")), FaultKind::Io);
    let expected = fill(&mut machine, broken);
    machine.drive("the latch", |machine| machine.is_latched(broken));
    // More than the journal takes: the last of these wait.
    let asked =
        (0..2 * SEGMENTS * SEGMENT_BYTES / (64 << 10)).map(|_| machine.submit(sound, write(0, 7, 128)));
    let asked: Vec<Ticket> = asked.collect();
    machine.drive("a full journal", |machine| {
        machine.group().condition() == afterimage::protect::status::Condition::ImageFailed
            && machine.disk.in_flight() == 0
            && machine.group().snapshot().journal_used_bytes >= (SEGMENTS - 2) * SEGMENT_BYTES
    });
    assert!(machine.replies().len() < asked.len(), "the journal is too large for this test");
    assert_eq!(machine.read(broken), expected);
    machine.disk.mend();
    machine.resume().expect("a group that works");
    assert!(!machine.is_latched(broken));
    machine.drive("what waited", |machine| machine.replies().len() == asked.len());
    assert!(machine.replies().iter().all(|(_, reply)| reply.is_ok()));
    assert_eq!(machine.restart(true).read(broken), expected);
}

#[test]
fn a_checkpoint_that_cannot_be_had_from_the_device_latches_its_disk_only() {
    let (mut machine, broken, sound) = Machine::new(5);
    let expected = fill(&mut machine, broken);
    machine.drive("destaging", |machine| {
        machine.group().disks().any(|disk| disk.record.id == broken && disk.attached().destaged() > Lsn::ZERO)
    });
    let path = format!("{broken}.checkpoint");
    machine.disk.fail_always(Matcher::kind(OpKind::Sync).path(path), FaultKind::Io);
    let mut machine = machine.restart(false);
    assert!(machine.is_latched(broken));
    assert!(machine.write(sound, 0, 1, 1).is_ok());
    assert_eq!(machine.read(broken), expected);
    machine.disk.mend();
    machine.resume().expect("a group that works");
    assert!(machine.write(broken, 0, 9, 1).is_ok());
}

#[test]
fn a_damaged_chunk_of_a_side_file_is_never_served() {
    let (mut machine, broken, sound, expected) = latched(6);
    assert!(machine.disk.rot(&side(broken), 300, 3), "chunks come first");
    let whole = Request::Read { range: SectorRange::new(0, SECTORS) };
    assert_eq!(machine.ask(broken, whole.clone()).unwrap_err(), Refusal::Io);
    machine.disk.mend();
    let report = machine.resume().expect("a group that works");
    let Finding::Latched { kind, .. } = &report.disks[0].finding else { panic!("{report:?}") };
    assert_eq!(*kind, ErrorKind::Corrupt);
    let mut machine = machine.restart(false);
    assert_eq!(machine.ask(broken, whole).unwrap_err(), Refusal::Io);
    let sound_part = Request::Read { range: SectorRange::new(0, 80) };
    let Ok(Response::Data(pieces)) = machine.ask(broken, sound_part) else {
        panic!("what is sound is served")
    };
    assert_eq!(flatten(&pieces), expected[..80 * 512]);
    assert!(machine.write(sound, 0, 1, 1).is_ok());
}

#[test]
fn a_disk_leaves_with_its_side_files() {
    let (mut machine, broken, sound, _) = latched(7);
    machine.called(|group, done| group.remove_disk(broken, done)).expect("leaves");
    assert!(
        !machine
            .disk
            .files()
            .iter()
            .any(|path| part(path).contains(&broken.to_string()) && path.starts_with("/group"))
    );
    let mut machine = machine.restart(true);
    assert!(machine.write(sound, 0, 1, 1).is_ok());
}

#[test]
fn a_group_whose_journal_failed_is_not_resumed() {
    let (mut machine, first, _) = Machine::new(9);
    machine.disk.fail_next(Matcher::kind(OpKind::Write).path("/journal/"), FaultKind::Io);
    assert_eq!(machine.write(first, 0, 1, 1).unwrap_err(), Refusal::Io);
    assert_eq!(machine.resume().unwrap_err().kind(), ErrorKind::Latched);
}

/// Writes beyond the end would make the file longer, and what lies between read as zeros that nobody wrote.
#[test]
fn an_image_that_is_cut_short_under_its_group_is_not_made_longer_again() {
    let (mut machine, broken, sound) = Machine::new(7);
    let kept = fill(&mut machine, broken);
    machine.drive("destaging", |machine| machine.disk.durable_file(&image(broken)).expect("there") == kept);
    let cut = 20 * 512;
    machine.rewrite(image(broken), cut, Vec::new());
    assert!(machine.write(broken, 200, 9, 1).is_ok());
    machine.drive("the latch", |machine| machine.is_latched(broken));
    assert_eq!(machine.disk.read_file(&image(broken)).expect("there").len() as u64, cut);
    let beyond = Request::Read { range: SectorRange::new(30, 31) };
    assert_eq!(machine.ask(broken, beyond).unwrap_err(), Refusal::Io);
    machine.turn_the_journal_over(sound);

    let report = machine.resume().expect("a group that works");
    let Finding::Latched { kind, reason } = &report.disks[0].finding else { panic!("{report:?}") };
    assert_eq!(*kind, ErrorKind::Corrupt);
    assert!(reason.contains("10240 bytes") && reason.contains(&part(&image(broken))), "{reason}");
    assert_eq!(machine.disk.read_file(&image(broken)).expect("there").len() as u64, cut);

    machine.rewrite(image(broken), kept.len() as u64, kept.clone());
    let report = machine.resume().expect("a group that works");
    assert_eq!(report.disks[0].finding, Finding::Mended);
    let mut expected = kept;
    expected[200 * 512..201 * 512].fill(9);
    assert_eq!(machine.read(broken), expected);
}
