//! Records of the journal that its device does not give: for a moment, which nobody notices, or for good, which is their disk's
//! matter alone, and can be mended for as long as the journal has room.

use afterimage::block::{Refusal, Request};
use afterimage::error::{Error, ErrorKind};
use afterimage::extent::Ranges;
use afterimage::protect::events::GroupEvent;
use afterimage::protect::resume::Finding;
use afterimage::storage::sim::OpKind;
use afterimage::units::DiskId;

use crate::machine::{Machine, SECTORS, image};
use crate::rot::{
    LOST, Runs, accept, accepted_content, check_latched, evict, lacks, place, point, read_range, read_whole,
    stated, view, written,
};

const PAGE: u64 = 4096;

/// The device refuses the payload of the newest write to [`LOST`] from now on.
fn withhold(machine: &mut Machine, disk: DiskId) {
    let (path, _, payload) = place(machine, disk, LOST);
    assert!(machine.disk.spoil(&path, payload..payload + LOST.bytes()));
}

/// What the disk holds where nothing is lost.
fn whole_content() -> Runs {
    vec![(10, 1), (7, 2), (73, 1), (20, 3), (SECTORS - 110, 0)]
}

fn withheld() -> GroupEvent {
    GroupEvent::Withheld { disk: "first".to_owned(), sectors: Ranges::of([LOST]) }
}

/// A disk of which a write to [`LOST`] is withheld, and known to be.
fn kept(seed: u64) -> (Machine, DiskId, DiskId) {
    let (mut machine, broken, sound) = written(seed);
    evict(&mut machine, sound);
    withhold(&mut machine, broken);
    machine.drive("the disk's latch", |machine| machine.told().contains(&withheld()));
    (machine, broken, sound)
}

fn check_whole(machine: &mut Machine, disk: DiskId, seed: u64) {
    assert!(!machine.is_latched(disk), "seed {seed}");
    assert_eq!(read_whole(machine, disk), whole_content(), "seed {seed}");
    assert!(machine.write(disk, 200, 4, 1).is_ok());
    machine.drive("a point that lacks nothing", |machine| lacks(&point(machine), disk).is_empty());
    let newest = point(machine);
    let mut expected = whole_content();
    expected.pop();
    expected.extend([(90, 0), (1, 4), (55, 0)]);
    assert_eq!(view(machine, &newest, disk).expect("whole"), expected, "seed {seed}");
}

#[test]
fn a_refusal_that_passes_is_noticed_by_nobody() {
    for seed in 0..6 {
        let (mut machine, broken, sound) = written(seed);
        evict(&mut machine, sound);
        machine.told();
        withhold(&mut machine, broken);
        let reads = machine.disk.count(OpKind::Read);
        machine
            .drive("some refused reads", |machine| machine.disk.count(OpKind::Read) > reads + 1 + seed % 3);
        machine.disk.mend();
        machine.drive("destaging", |machine| {
            machine
                .disk
                .durable_file(&image(broken))
                .is_some_and(|bytes| bytes[10 * 512..11 * 512] == [2; 512])
        });
        assert_eq!(machine.told(), [], "seed {seed}");
        check_whole(&mut machine, broken, seed);
    }
}

#[test]
fn what_is_withheld_is_kept_until_it_is_given_again() {
    for seed in 0..6 {
        let (mut machine, broken, sound) = kept(seed);
        check_latched(&mut machine, broken);
        assert!(machine.write(sound, 0, 5, 1).is_ok());
        let lacking = point(&mut machine);
        assert_eq!(lacks(&lacking, broken), [LOST], "points go on without the disk");
        let before = read_whole(&mut machine, sound);
        assert_eq!(view(&mut machine, &lacking, sound).expect("the others are as good as ever"), before);

        let report = machine.resume().expect("a group that works");
        let Finding::Lost { reason } = &report.disks[0].finding else { panic!("{report:?}") };
        for named in ["disk first", "sectors 10..17", "segment-0000000", " at byte ", "--accept-loss"] {
            assert!(reason.contains(named), "{reason}");
        }
        assert_eq!(machine.member(broken).last_failure.as_ref(), Some(reason), "status says the same");
        assert!(machine.member(broken).sides.is_empty(), "the journal has room");
        machine.disk.mend();
        if seed % 2 == 0 {
            let report = machine.resume().expect("a group that works");
            assert_eq!(report.disks[0].finding, Finding::Mended);
        } else {
            machine = machine.restart(seed % 3 == 0);
        }
        check_whole(&mut machine, broken, seed);
        assert_eq!(read_whole(&mut machine.restart(true), broken).len(), 7);
    }
}

#[test]
fn a_restart_that_meets_what_is_withheld_latches_its_disk_alone() {
    for seed in 0..6 {
        let (mut machine, broken, sound) = stated(seed % 3);
        withhold(&mut machine, broken);
        let mut machine = machine.restart(seed % 2 == 0);
        assert_eq!(read_range(&mut machine, broken, 9, 11), Err(Refusal::Io));
        machine.drive("the disk's latch", |machine| machine.told().contains(&withheld()));
        check_latched(&mut machine, broken);
        assert!(machine.write(sound, 0, 5, 1).is_ok());
        assert_eq!(lacks(&point(&mut machine), broken), [LOST]);
        // Over one more restart, too.
        let mut machine = machine.restart(seed % 2 == 1);
        machine.disk.mend();
        machine.drive("rest", |machine| {
            let ladder = machine.group().ladder();
            let is_caring = machine.group().disks().any(|disk| disk.latched.is_some());
            ladder.destaged == ladder.visible || is_caring
        });
        machine.resume().expect("a group that works");
        check_whole(&mut machine, broken, seed);
    }
}

#[test]
fn a_journal_that_needs_the_room_notes_what_is_withheld() {
    for seed in 0..4 {
        let (mut machine, broken, sound) = kept(seed);
        machine.turn_the_journal_over(sound);
        assert!(!machine.member(broken).sides.is_empty());
        check_latched(&mut machine, broken);
        machine.disk.mend();
        let report = machine.resume().expect("a group that works");
        assert!(matches!(report.disks[0].finding, Finding::Lost { .. }), "{report:?}");
        let mut machine = machine.restart(seed % 2 == 0);
        check_latched(&mut machine, broken);
        assert_eq!(accept(&mut machine).disks[0].finding, Finding::Accepted { lost: Ranges::of([LOST]) });
        assert_eq!(read_whole(&mut machine, broken), accepted_content());
    }
}

#[test]
fn what_is_withheld_can_be_given_up() {
    for seed in 0..4 {
        let (mut machine, broken, _) = kept(seed);
        if seed % 2 == 0 {
            machine.disk.mend();
            assert_eq!(accept(&mut machine).disks[0].finding, Finding::Mended, "nothing is lost");
            check_whole(&mut machine, broken, seed);
            continue;
        }
        assert_eq!(accept(&mut machine).disks[0].finding, Finding::Accepted { lost: Ranges::of([LOST]) });
        assert_eq!(read_whole(&mut machine, broken), accepted_content());
        let whole = point(&mut machine);
        assert_eq!(view(&mut machine, &whole, broken).expect("whole"), accepted_content());
        assert_eq!(read_whole(&mut machine.restart(true), broken), accepted_content());
    }
}

/// Opens the group, which must fail; nothing is lost once the device gives everything.
fn check_refused(machine: Machine, broken: DiskId, path: &std::path::Path, offset: u64) {
    let mut machine = machine.die(false);
    let error: Error = machine.open().unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Io, Some(path)), "{error}");
    assert_eq!(error.offset(), Some(offset), "{error}");
    let mut machine = machine.die(false);
    machine.disk.mend();
    machine.open().expect("opens");
    assert_eq!(read_whole(&mut machine, broken), whole_content());
}

#[test]
fn a_header_that_cannot_be_read_keeps_the_group_from_opening() {
    for seed in 0..3 {
        let (mut machine, broken, sound) = written(seed);
        evict(&mut machine, sound);
        assert!(machine.ask(broken, Request::Flush).is_ok());
        let (path, frame, _) = place(&mut machine, broken, LOST);
        // The segment's first header, or one amidst of it.
        let offset = if seed == 0 { 0 } else { frame };
        assert!(machine.disk.spoil(&path, offset..offset + PAGE));
        check_refused(machine, broken, &path, offset);
    }
}

/// Nothing says that it was ever whole, and nothing that it was not: it was acknowledged.
#[test]
fn what_nothing_states_to_be_durable_and_cannot_be_read_keeps_the_group_from_opening() {
    for seed in 0..3 {
        let (mut machine, broken, _) = written(seed);
        let (path, _, payload) = place(&mut machine, broken, LOST);
        assert!(machine.disk.spoil(&path, payload..payload + 1));
        check_refused(machine, broken, &path, payload);
    }
}

#[test]
fn an_opening_waits_for_a_refusal_to_pass() {
    let (mut machine, broken, _) = written(0);
    let (path, _, payload) = place(&mut machine, broken, LOST);
    assert!(machine.disk.spoil(&path, payload..payload + 1));
    let mut machine = machine.die(false);
    let healing = machine.disk.clone();
    let runtime = std::rc::Rc::clone(&machine.runtime);
    machine.runtime.spawn(async move {
        runtime.sleep(std::time::Duration::from_millis(2500)).await;
        healing.mend();
    });
    machine.open().expect("opens");
    assert!(machine.disk.count(OpKind::Read) > 0);
    check_whole(&mut machine, broken, 0);
}
