//! The judge, judged: an honest group of disks in memory is always clean, and each planted violation is told with
//! disk, offset, what was expected and what was found.

use super::*;
use crate::oracle::{Clock, sector};
use crate::random::Random;
use crate::units::SectorRange;

const DISKS: usize = 2;
const SECTORS: u64 = 256;

/// Disks of an honest gateway: what is applied is there, in the order of application.
struct Group {
    clock: Clock,
    history: History,
    operations: Vec<Operation>,
    images: Vec<Image>,
}

impl Group {
    fn new() -> Group {
        let image = |disk| Image { disk, sectors: vec![Found::Zero; to_usize(SECTORS)] };
        Group {
            clock: Clock::default(),
            history: History::new(1, vec![SECTORS; DISKS]),
            operations: Vec::new(),
            images: (0..DISKS).map(image).collect(),
        }
    }

    fn issue(&mut self, disk: usize, start: u64, sectors: u64, effect: Effect) -> usize {
        let range = SectorRange::new(start, start + sectors);
        let operation =
            Operation { issued: self.clock.stamp(), acknowledged: None, disk, range, effect, durable: false };
        self.operations.push(operation);
        self.operations.len() - 1
    }

    fn apply(&mut self, index: usize) {
        let Operation { issued, disk, range, effect, .. } = self.operations[index];
        let content = if effect == Effect::Write { Found::Write(issued) } else { Found::Zero };
        self.images[disk].sectors[to_usize(range.start)..to_usize(range.end)].fill(content);
    }

    fn acknowledge(&mut self, index: usize) {
        self.operations[index].acknowledged = Some(self.clock.stamp());
    }

    /// Issues, applies and acknowledges.
    fn write(&mut self, disk: usize, start: u64, sectors: u64) -> Operation {
        self.done(disk, start, sectors, Effect::Write)
    }

    fn done(&mut self, disk: usize, start: u64, sectors: u64, effect: Effect) -> Operation {
        let index = self.issue(disk, start, sectors, effect);
        self.apply(index);
        self.acknowledge(index);
        self.operations[index]
    }

    fn judge(mut self, bounds: Bounds) -> Verdict {
        self.history.add(self.operations);
        judge(&self.history, &self.images, bounds)
    }

    fn now(&self) -> Bounds {
        Bounds { holds_before: self.clock.stamp(), nothing_after: Stamp::END }
    }
}

#[track_caller]
fn only(verdict: &Verdict) -> Violation {
    assert_eq!(verdict.violations_count, 1, "{verdict}");
    verdict.violations[0]
}

/// A state of the disks that must be clean, and its bounds.
struct Snapshot {
    images: Vec<Image>,
    bounds: Bounds,
}

/// Many requests in flight, applied and acknowledged in random order, with crashes between.
fn honest_run(seed: u64) -> (History, Vec<Snapshot>) {
    let mut random = Random::new(seed);
    let (mut group, mut snapshots) = (Group::new(), Vec::new());
    let (mut in_flight, mut applied) = (Vec::new(), Vec::new());
    for _ in 0..400 {
        match random.below(20) {
            0..8 => {
                let effect = if random.chance(1, 5) { Effect::Zero } else { Effect::Write };
                let (disk, start) = (random.index(DISKS), random.below(40));
                let most = if random.chance(1, 20) { 200 } else { 12 };
                let sectors = 1 + random.below(most);
                in_flight.push(group.issue(disk, start, sectors, effect));
            }
            8..14 if !in_flight.is_empty() => {
                let index = in_flight.swap_remove(random.index(in_flight.len()));
                group.apply(index);
                applied.push(index);
            }
            14..18 if !applied.is_empty() => {
                group.acknowledge(applied.swap_remove(random.index(applied.len())));
            }
            18 => {
                let holds_before = group.clock.stamp();
                let images = group.images.clone();
                let bounds = Bounds { holds_before, nothing_after: group.clock.stamp() };
                snapshots.push(Snapshot { images, bounds });
            }
            19 if random.chance(1, 10) => {
                in_flight.clear();
                applied.clear();
                let death = group.clock.stamp();
                group.history.add_death(death);
            }
            _ => {}
        }
    }
    group.history.add(group.operations);
    (group.history, snapshots)
}

#[test]
fn honest_disks_are_clean_and_their_past_is_a_prefix_but_not_the_present() {
    let mut stale = 0;
    for seed in 0..300 {
        let (history, snapshots) = honest_run(seed);
        for (index, snapshot) in snapshots.iter().enumerate() {
            let verdict = judge(&history, &snapshot.images, snapshot.bounds);
            assert!(verdict.is_clean(), "seed {seed}, snapshot {index}: {verdict}");
            let verdict = judge(&history, &snapshot.images, Bounds::ANY);
            assert!(verdict.is_clean(), "seed {seed}, snapshot {index}, any past: {verdict}");
            let later = snapshots.get(index + 3).filter(|later| later.images != snapshot.images);
            if let Some(later) = later {
                stale += usize::from(!judge(&history, &snapshot.images, later.bounds).is_clean());
            }
        }
    }
    assert!(stale > 1000, "an older state is hardly ever taken for a newer one: {stale}");
}

#[test]
fn sectors_of_two_moments_do_not_pass_for_one() {
    let mut caught = 0;
    for seed in 0..300 {
        let (history, snapshots) = honest_run(seed);
        for pair in snapshots.windows(4) {
            let mixed = [pair[0].images[0].clone(), pair[3].images[1].clone()];
            caught += usize::from(!judge(&history, &mixed, Bounds::ANY).is_clean());
        }
    }
    assert!(caught > 1000, "disks of different moments: {caught}");
}

#[test]
fn a_lost_acknowledged_write_is_told() {
    let mut group = Group::new();
    let old = group.write(1, 8, 8);
    let lost = group.write(1, 8, 8);
    group.images[1].sectors[8..16].fill(Found::Write(old.issued));
    let bounds = group.now();
    let verdict = group.judge(bounds);
    let fault = Fault::Lost { expected: lost, because: Because::Acknowledged, found: Some(old.issued) };
    assert_eq!(only(&verdict), Violation { disk: 1, sector: 8, sectors: 8, fault });
    let text = verdict.to_string();
    for part in ["disk 1 at byte 4096, 8 sectors", "write #3 or newer (acknowledged at #4)", "found write #1"]
    {
        assert!(text.contains(part), "`{part}` in: {text}");
    }
}

#[test]
fn zeros_where_a_write_was_acknowledged_are_told_unless_a_zeroing_explains_them() {
    for explained in [false, true] {
        let mut group = Group::new();
        group.write(0, 0, 8);
        if explained {
            // Never acknowledged: it may have happened.
            group.issue(0, 2, 2, Effect::Zero);
        }
        group.images[0].sectors[2..4].fill(Found::Zero);
        let bounds = group.now();
        let verdict = group.judge(bounds);
        assert_eq!(verdict.is_clean(), explained, "{verdict}");
        if !explained {
            assert!(verdict.to_string().contains("byte 1024, 2 sectors"), "{verdict}");
        }
    }
}

#[test]
fn an_inverted_order_between_disks_is_told() {
    let mut group = Group::new();
    let first = group.write(0, 16, 8);
    let second = group.write(1, 32, 8);
    group.images[0].sectors[16..24].fill(Found::Zero);
    let verdict = group.judge(Bounds::ANY);
    let fault = Fault::Lost { expected: first, because: Because::Later(second), found: None };
    assert_eq!(only(&verdict), Violation { disk: 0, sector: 16, sectors: 8, fault });
    assert!(verdict.to_string().contains("before #3 was issued, which is there on disk 1 at byte 16384"));
}

#[test]
fn a_zeroing_that_must_have_happened_vouches_for_what_came_before_it() {
    let mut group = Group::new();
    group.write(0, 0, 8);
    let lost = group.write(1, 0, 8);
    let zero = group.done(0, 0, 8, Effect::Zero);
    // A write that is found nowhere, so that only the zeros tell how far things had come.
    group.images[1].sectors[0..8].fill(Found::Zero);
    let bounds = Bounds { holds_before: Stamp(3), nothing_after: Stamp::END };
    let verdict = group.judge(bounds);
    let fault = Fault::Lost { expected: lost, because: Because::Later(zero), found: None };
    assert_eq!(only(&verdict), Violation { disk: 1, sector: 0, sectors: 8, fault });
}

#[test]
fn an_invented_sector_is_told() {
    let mut group = Group::new();
    let write = group.write(0, 0, 8);
    group.images[0].sectors[9] = Found::Write(write.issued);
    group.images[1].sectors[3] = Found::Write(Stamp(77));
    group.images[1].sectors[5] = Found::Foreign(Foreign::Unknown([0xaa; 8]));
    let verdict = group.judge(Bounds::ANY);
    let told: Vec<_> = verdict.violations.iter().map(|v| (v.disk, v.sector, v.fault)).collect();
    assert_eq!(
        told,
        [
            (0, 9, Fault::Invented(write.issued)),
            (1, 3, Fault::Invented(Stamp(77))),
            (1, 5, Fault::Foreign(Foreign::Unknown([0xaa; 8]))),
        ]
    );
    assert!(verdict.to_string().contains("disk 0 at byte 4608, 1 sectors"), "{verdict}");
}

#[test]
fn a_torn_block_is_told_whole_or_within_a_sector() {
    let mut group = Group::new();
    let old = group.write(0, 0, 8);
    let index = group.issue(0, 0, 8, Effect::Write);
    let torn = group.operations[index];
    group.images[0].sectors[0..5].fill(Found::Write(torn.issued));
    let verdict = group.judge(Bounds::ANY);
    let fault = Fault::Lost { expected: torn, because: Because::Atomic, found: Some(old.issued) };
    assert_eq!(only(&verdict), Violation { disk: 0, sector: 5, sectors: 3, fault });

    let place = sector::Place { run: 1, disk: 0, sector: 0 };
    let (mut bytes, mut newer) = ([0; SECTOR_BYTES], [0; SECTOR_BYTES]);
    sector::fill(place, Stamp(1), &mut bytes);
    sector::fill(place, Stamp(3), &mut newer);
    bytes[..256].copy_from_slice(&newer[..256]);
    let foreign = sector::identify(place, &bytes).unwrap_err();
    let mut group = Group::new();
    group.write(0, 0, 8);
    group.images[0].sectors[0] = Found::Foreign(foreign);
    let violation = only(&group.judge(Bounds::ANY));
    assert_eq!(violation.fault, Fault::Foreign(Foreign::Torn { sequence: Stamp(3) }));
}

#[test]
fn a_long_write_in_flight_may_be_there_in_part() {
    let mut group = Group::new();
    let index = group.issue(0, 0, 200, Effect::Write);
    let issued = group.operations[index].issued;
    group.images[0].sectors[0..128].fill(Found::Write(issued));
    assert!(group.judge(Bounds::ANY).is_clean());
}

#[test]
fn what_was_issued_after_the_point_is_too_new() {
    let mut group = Group::new();
    group.write(0, 0, 8);
    let point = group.clock.stamp();
    let late = group.write(1, 0, 8);
    let verdict = group.judge(Bounds { holds_before: point, nothing_after: point });
    assert_eq!(only(&verdict).fault, Fault::TooNew(late.issued));
}

#[test]
fn a_dead_process_may_not_come_back_with_an_old_write() {
    let mut group = Group::new();
    let ghost = group.issue(0, 0, 8, Effect::Write);
    let death = group.clock.stamp();
    group.history.add_death(death);
    let newer = group.write(0, 0, 8);
    group.apply(ghost);
    let found = Some(group.operations[ghost].issued);
    let bounds = group.now();
    let verdict = group.judge(bounds);
    let fault = Fault::Lost { expected: newer, because: Because::Acknowledged, found };
    assert_eq!(only(&verdict).fault, fault);
}

#[test]
fn writes_that_overlap_in_flight_may_come_in_either_order() {
    for first in [0, 1] {
        let mut group = Group::new();
        let both = [group.issue(0, 0, 8, Effect::Write), group.issue(0, 4, 8, Effect::Write)];
        group.apply(both[first]);
        group.apply(both[1 - first]);
        group.acknowledge(both[0]);
        group.acknowledge(both[1]);
        let bounds = group.now();
        assert!(group.judge(bounds).is_clean());
    }
}
