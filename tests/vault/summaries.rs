//! Points that are read through summaries are what they are without; and whatever becomes of a summary harms nobody.

use std::fs;
use std::path::PathBuf;
use std::rc::Rc;

use afterimage::allocation::AllocationRun;
use afterimage::units::{PointId, SectorRange};
use afterimage::vault::{Severity, Vault, verify};
use afterimage::view::View;
use proptest::prelude::*;

use crate::support::{Edit, Group, block_on, edits, flatten, site_keys};

const SIZES: [u64; 2] = [900, 77];

#[derive(Clone, Debug)]
enum Step {
    Edit(Edit),
    Publish,
    /// Delete one of the points.
    Delete(prop::sample::Index),
    Summarize,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => edits(SIZES, 200).prop_map(Step::Edit),
        4 => Just(Step::Publish),
        2 => any::<prop::sample::Index>().prop_map(Step::Delete),
        2 => Just(Step::Summarize),
    ];
    proptest::collection::vec(step, 1..60)
}

fn delete(group: &mut Group, index: usize) {
    let (point, _) = group.points.remove(index);
    let deleted = async {
        group.vault.delete_point(point).await?;
        group.vault.finish_advance().await?;
        group.vault.sweep().await
    };
    block_on(&group.runtime, deleted).expect("it may go");
}

fn open(group: &Group, point: PointId) -> Rc<View> {
    block_on(&group.runtime, View::open(&group.vault, point)).expect("the point is sound")
}

fn contents(group: &Group, view: &View) -> Vec<Vec<u8>> {
    let read = |disk: &afterimage::view::ViewDisk| {
        let range = SectorRange::new(0, disk.sectors().0);
        flatten(&block_on(&group.runtime, view.read(disk.id(), range)).expect("sound"))
    };
    view.disks().iter().map(read).collect()
}

fn allocation(group: &Group, view: &View) -> Vec<Vec<AllocationRun>> {
    let look = |disk: &afterimage::view::ViewDisk| {
        let range = SectorRange::new(0, disk.sectors().0);
        block_on(&group.runtime, view.allocation(disk.id(), range)).expect("sound")
    };
    view.disks().iter().map(look).collect()
}

fn check(group: &Group) {
    for (point, model) in &group.points {
        assert!(contents(group, &open(group, *point)) == *model, "point {point}");
    }
}

/// The files of all summaries, the smallest first.
fn files(group: &Group) -> Vec<PathBuf> {
    let entries = fs::read_dir(group.vault.layout().index()).expect("there");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("read").path()).collect();
    files.sort_by_key(|path| (path.metadata().expect("there").len(), path.clone()));
    files
}

/// A group with this many points, each of which wrote a little here and there.
fn group(sealed: bool, points: u64) -> Group {
    let mut group = if sealed { Group::new(&SIZES) } else { Group::plain(&SIZES) };
    for number in 0..points {
        let start = number * 53 % 800;
        let seed = u8::try_from(number).expect("few");
        group.write(0, SectorRange::new(start, start + 60), seed + 1);
        group.zero(1, SectorRange::new(number % 70, number % 70 + 3), number % 2 == 0);
        group.publish();
    }
    group
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn every_point_is_what_it_was(steps in steps(), sealed in any::<bool>()) {
        let mut group = if sealed { Group::new(&SIZES) } else { Group::plain(&SIZES) };
        let mut early = None;
        for step in steps {
            match step {
                Step::Edit(edit) => group.apply(&edit),
                Step::Publish => {
                    group.publish();
                }
                Step::Delete(index) if group.points.len() > 2 => {
                    // The oldest is being read.
                    let index = 1 + index.index(group.points.len() - 2);
                    delete(&mut group, index);
                    check(&group);
                }
                Step::Delete(_) => {}
                Step::Summarize => {
                    group.summarize();
                    if early.is_none() && !group.points.is_empty() {
                        early = Some((open(&group, group.points[0].0), group.points[0].1.clone()));
                    }
                }
            }
        }
        group.publish();
        group.summarize();
        check(&group);
        if let Some((view, model)) = early {
            prop_assert!(contents(&group, &view) == model);
        }
        while group.points.len() > 1 {
            delete(&mut group, 0);
            check(&group);
            group.summarize();
            check(&group);
        }
        let report = block_on(&group.runtime, verify(&group.vault, |_, _| Ok(()))).expect("read");
        prop_assert_eq!(report.findings, []);
        let deltas = group.vault.manifest().state().all_deltas().len();
        prop_assert_eq!(files(&group).len(), deltas.saturating_sub(1));
    }
}

#[test]
fn a_point_in_the_midst_is_covered_by_what_lies_under_a_longer_summary() {
    let mut group = group(true, 16);
    group.summarize();
    assert_eq!(files(&group).len(), 8 + 4 + 2 + 1);
    let summaries: Vec<usize> =
        group.points.iter().map(|(point, _)| open(&group, *point).summaries()).collect();
    assert_eq!(summaries, [0, 1, 1, 1, 1, 2, 2, 1, 1, 2, 2, 2, 2, 3, 3, 1]);
    check(&group);
    // What a merge ends goes; what it does not touch stays.
    delete(&mut group, 9);
    group.summarize();
    assert_eq!(files(&group).len(), 8 - 1 + 4 - 1 + 2 - 1);
    check(&group);
}

#[test]
fn pages_and_windows_show_what_one_map_of_all_shows() {
    let mut group = Group::new(&[1 << 20]);
    let mut random = 7_u64;
    for number in 0..8_u8 {
        for _ in 0..900 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let start = (random >> 40) % ((1 << 20) - 8);
            let range = SectorRange::new(start, start + 1 + (random >> 33) % 7);
            match number % 3 {
                2 => group.zero(0, range, random.is_multiple_of(2)),
                _ => group.write(0, range, number + 1),
            }
        }
        group.publish();
    }
    let newest = group.points[7].0;
    let flat = open(&group, newest);
    group.summarize();
    let paged = open(&group, newest);
    assert_eq!((flat.summaries(), paged.summaries()), (0, 1));
    assert_eq!(allocation(&group, &flat), allocation(&group, &paged));
    check(&group);
    let disk = paged.disks()[0].id();
    for start in (0..1 << 20).step_by(40_961) {
        let range = SectorRange::new(start, start + 3000);
        let read = |view: &View| flatten(&block_on(&group.runtime, view.read(disk, range)).expect("sound"));
        assert!(read(&flat) == read(&paged), "{range}");
    }
}

#[test]
fn a_damaged_summary_is_refused_and_built_anew_and_no_point_is_wrong() {
    for sealed in [true, false] {
        let group = group(sealed, 4);
        group.summarize();
        let path = files(&group).pop().expect("three");
        let kept = fs::read(&path).expect("there");
        let places = (0..kept.len()).step_by(611).chain(kept.len() - 250..kept.len());
        for (count, offset) in (1..).zip(places) {
            let mut bytes = fs::read(&path).expect("built anew");
            bytes[offset] ^= 0x20;
            fs::write(&path, bytes).expect("tests may write it");
            let report = block_on(&group.runtime, verify(&group.vault, |_, _| Ok(()))).expect("read");
            assert!(report.is_sound());
            let [finding] = &report.findings[..] else { panic!("byte {offset}: {:?}", report.findings) };
            assert_eq!((finding.severity, &finding.path), (Severity::Cache, &path), "byte {offset}");
            check(&group);
            assert_eq!(group.vault.summaries().refusals(), count, "byte {offset} was not looked at");
            group.summarize();
        }
    }
}

#[test]
fn an_open_view_goes_on_without_a_summary_that_is_lost() {
    let group = group(true, 8);
    group.summarize();
    let (point, model) = &group.points[6];
    let views = [open(&group, *point), open(&group, *point)];
    assert_eq!(views[0].summaries(), 2);
    for path in files(&group) {
        fs::write(&path, vec![0; 100]).expect("tests may write it");
    }
    for view in &views {
        assert!(contents(&group, view) == *model);
        assert_eq!(view.summaries(), 0);
    }
    // One is of no use to this point, and nobody has met it yet.
    group.summarize();
    assert!(contents(&group, &open(&group, *point)) == *model);
    fs::remove_dir_all(group.vault.layout().index()).expect("it is a cache");
    fs::create_dir(group.vault.layout().index()).expect("as it was");
    check(&group);
}

#[test]
fn a_summary_under_another_name_is_refused() {
    let group = group(true, 4);
    group.summarize();
    let [first, second, whole] = &files(&group)[..] else { panic!("three summaries") };
    // One of the two is of no use to any point.
    for path in [first, second] {
        fs::copy(whole, path).expect("tests may write it");
    }
    check(&group);
    assert_eq!(group.vault.summaries().refusals(), 1);
}

#[test]
fn what_holds_for_nothing_is_removed_at_opening() {
    let mut group = group(true, 4);
    group.summarize();
    let index = group.vault.layout().index();
    fs::write(index.join("1-x.summary"), b"").expect("written");
    fs::write(index.join("half.1.partial"), b"").expect("written");
    delete(&mut group, 2);
    let reopen =
        || block_on(&group.runtime, Vault::open(&group.runtime, &group.path(), &site_keys())).expect("sound");
    let vault = reopen();
    assert_eq!((files(&group).len(), vault.summaries().len()), (1, 1));
    fs::remove_dir_all(&index).expect("it is a cache");
    assert!(reopen().summaries().is_empty());
    assert!(index.is_dir());
}

#[test]
fn a_summary_that_a_view_reads_stays_until_it_is_dropped() {
    let mut group = group(true, 4);
    group.summarize();
    let (point, model) = group.points[3].clone();
    let view = open(&group, point);
    assert_eq!(view.summaries(), 1);
    delete(&mut group, 1);
    group.summarize();
    assert!(contents(&group, &view) == model);
    assert_eq!((group.vault.summaries().refusals(), files(&group).len()), (0, 1 + 1));
    drop(view);
    group.summarize();
    assert_eq!(files(&group).len(), 1);
}
