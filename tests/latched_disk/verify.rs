//! A verification that meets what cannot be read: it says what, and goes on.

use std::path::Path;
use std::rc::Rc;

use afterimage::image::sums::sums_path;
use afterimage::protect::verify::{GroupReport, Verification, What};
use afterimage::storage::sim::{FaultKind, Matcher, OpKind};
use afterimage::throttle::Pacing;
use afterimage::units::{DiskId, to_usize};

use crate::machine::{Machine, SECTORS, Steps, image, part, plan};

/// Two disks that are written, destaged, in the newest point, and in the bases too.
fn settled() -> (Machine, DiskId, DiskId) {
    let (mut machine, broken, sound) = Machine::new(1);
    for disk in [broken, sound] {
        assert!(machine.write(disk, 0, 1, SECTORS).is_ok());
    }
    let first = machine.called(|group, done| group.create_point("first".into(), done)).expect("made");
    // The newest point's delta has half of each disk, and leaves the other half to the base.
    for disk in [broken, sound] {
        assert!(machine.write(disk, 0, 2, SECTORS / 2).is_ok());
    }
    machine.called(|group, done| group.create_point("second".into(), done)).expect("made");
    while let Some(oldest) = older_points(&mut machine).first() {
        machine.called(|group, done| group.delete_point(*oldest, done)).expect("the base advances");
    }
    assert!(machine.group().points().iter().all(|point| point.id != first.id));
    let half = to_usize(SECTORS / 2 * 512);
    let expected = [vec![2; half], vec![1; half]].concat();
    for disk in [broken, sound] {
        machine.drive("destaging", |machine| {
            machine.disk.durable_file(&image(disk)).expect("there") == expected
        });
    }
    (machine.restart(false), broken, sound)
}

fn older_points(machine: &mut Machine) -> Vec<afterimage::units::PointId> {
    let points = machine.group().points();
    points[..points.len() - 1].iter().map(|point| point.id).collect()
}

fn verify(machine: &mut Machine) -> GroupReport {
    let verification = Verification::new(Pacing::default(), Rc::new(|_, _| Ok(())));
    machine.called(|group, done| group.verify(verification, done)).expect("it comes to its end")
}

fn assert_names(report: &GroupReport, disk: DiskId, path: &Path) {
    assert!(!report.is_sound());
    for finding in &report.findings {
        assert_eq!(finding.disk, disk, "{finding}");
        let What::Unreadable { error } = &finding.what else { panic!("{finding}") };
        assert!(error.contains(&part(path)), "{error}");
    }
}

#[test]
fn an_image_and_a_base_that_cannot_be_read_are_named_and_the_rest_is_compared() {
    let (mut machine, broken, _) = settled();
    let sound = verify(&mut machine);
    assert!(sound.is_sound(), "{sound:?}");
    assert_eq!(sound.compared_bytes, 2 * SECTORS * 512);
    let base = plan().vault.join("base").join(format!("{broken}.summed.raw"));
    for path in [image(broken), base] {
        machine.disk.fail_always(Matcher::kind(OpKind::Read).path(part(&path)), FaultKind::Io);
        let report = verify(&mut machine);
        assert_names(&report, broken, &path);
        assert!(report.compared_bytes >= SECTORS * 512, "the other disk is compared: {report:?}");
        machine.disk.mend();
        assert!(verify(&mut machine).is_sound(), "nothing of it stays");
    }
}

/// Nothing at all was compared with the vault.
#[test]
fn a_base_that_cannot_be_opened_is_named_and_the_other_disk_is_compared() {
    let (mut machine, broken, _) = settled();
    let base = plan().vault.join("base").join(format!("{broken}.summed.raw"));
    machine.disk.fail_always(Matcher::kind(OpKind::Open).path(part(&base)), FaultKind::Io);
    let report = verify(&mut machine);
    assert_names(&report, broken, &base);
    assert_eq!((report.findings.len(), report.compared_bytes), (1, SECTORS * 512), "{report:?}");
    machine.disk.mend();
    assert!(verify(&mut machine).is_sound(), "nothing of it stays");
}

/// It ended the verification of all disks.
#[test]
fn sums_that_cannot_be_read_are_named_and_the_rest_is_compared() {
    let sums = |disk| sums_path(&plan().images(), disk);
    for refused in [Matcher::any(), Matcher::kind(OpKind::Read), Matcher::kind(OpKind::DataRanges)] {
        let (mut machine, broken, _) = settled();
        let refused = refused.path(part(&sums(broken)));
        machine.disk.fail_always(refused.clone(), FaultKind::Io);
        let report = verify(&mut machine);
        assert_names(&report, broken, &sums(broken));
        assert!(report.compared_bytes >= SECTORS * 512, "the other disk is compared: {refused:?} {report:?}");
        machine.disk.mend();
        assert!(verify(&mut machine).is_sound(), "nothing of it stays: {refused:?}");
    }
}
