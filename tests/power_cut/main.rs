//! Power cuts under the real program, on the real storage back end and a real file system.
//!
//! The gateway runs in a QEMU guest, with io_uring and O_DIRECT on ext4, on a device-mapper target that logs every
//! write. From the log the volume is made as a power cut would have left it: at each mark that followed an acknowledged
//! FLUSH, at random entries, and with a drive's cache that loses part of what was not flushed. ext4 recovers, the
//! gateway opens the journal, and the oracle, which is outside of the guest, judges disks and recovery points.
//!
//! `AFTERIMAGE_POWER_CUTS` sets how many cuts there are besides those at marks, `AFTERIMAGE_SEED` the seed, which is printed. The seed decides the
//! requests and the cuts; how requests interleave is the guest's. Needs root, for mounts.
#![cfg(feature = "server")]

mod examination;
#[path = "../support/guest.rs"]
mod guest;
#[path = "../support/initramfs.rs"]
mod initramfs;
mod machine;
mod recording;
mod replay;
#[path = "../support/tool.rs"]
#[allow(dead_code)]
mod tool;
mod write_log;

use std::path::Path;

use afterimage::env::{Environment, OsEnvironment};
use afterimage::oracle::{Effect, Operation};
use afterimage::random::Random;

use examination::Laboratory;
use recording::{Known, Mark, Plan, Recording};
use replay::{Cut, Replayer};

/// Cuts of a run besides those at marks, unless told otherwise.
const CUTS: usize = 110;
const OPERATIONS: u64 = 4000;
/// Cuts of the runs that must be found bad.
const BAD_CUTS: usize = 8;
const FAILURES_SHOWN: usize = 3;

fn gateway() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_afterimage"))
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

fn seed() -> u64 {
    let drawn = OsEnvironment::new().random_u128().to_le_bytes();
    let drawn = u64::from_le_bytes(drawn[..8].try_into().expect("eight bytes"));
    let seed = number("AFTERIMAGE_SEED").unwrap_or(drawn);
    println!("AFTERIMAGE_SEED={seed}");
    seed
}

/// A volume to make and look at.
struct Case {
    cut: Cut,
    /// What must be true of it.
    known: Known,
}

/// What was found: the number of points that were read, and of those that had to be, and what was wrong with which cut.
struct Findings {
    points_read: u64,
    points_owed: u64,
    failures: Vec<(Cut, Vec<String>)>,
}

/// Looks at all of them, on every processor, in the order of the log.
fn examine(recording: &Recording, mut cases: Vec<Case>, seed: u64) -> Findings {
    cases.sort_by_key(|case| case.cut.entries);
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    let shares = cases.chunks(cases.len().div_ceil(workers).max(1));
    let mut findings = Findings { points_read: 0, points_owed: 0, failures: Vec::new() };
    std::thread::scope(|scope| {
        let work =
            |(worker, share): (u64, _)| scope.spawn(move || examine_share(recording, share, seed ^ worker));
        let workers: Vec<_> = (0_u64..).zip(shares).map(work).collect();
        for worker in workers {
            let mut found = worker.join().expect("a worker does not panic");
            findings.points_read += found.points_read;
            findings.points_owed += found.points_owed;
            findings.failures.append(&mut found.failures);
        }
    });
    findings
}

fn examine_share(recording: &Recording, cases: &[Case], seed: u64) -> Findings {
    let mut random = Random::new(seed);
    let mut laboratory = Laboratory::new(recording, gateway());
    let mut replayer = Replayer::new(&recording.log, &recording.initial).expect("the volume's first state");
    let mut failures = Vec::new();
    for case in cases {
        replayer.write(&case.cut, &laboratory.volume()).expect("a file in memory");
        let complaints = laboratory.examine(case.known, &mut random);
        if !complaints.is_empty() {
            failures.push((case.cut.clone(), complaints));
        }
    }
    let Laboratory { points_read, points_owed, .. } = laboratory;
    Findings { points_read, points_owed, failures }
}

/// Every mark, and `count` others: a tenth of these while the gateway opens its journal, and the rest anywhere: half at random
/// entries, half at flushes that had not happened yet, where a drive's cache loses part of what they would have made
/// durable.
fn cuts(recording: &Recording, count: usize, random: &mut Random) -> Vec<Cut> {
    let entries = recording.log.entries();
    let marks = recording.marks.iter().map(|mark| Cut { entries: mark.entry + 1, loses: None });
    let mut cuts: Vec<Cut> = marks.collect();
    let count = cuts.len() + count;
    for _ in 0..count / 10 {
        let entries = recording.opening.start + random.index(recording.opening.len()) + 1;
        cuts.push(Cut { entries, loses: random.chance(1, 2).then(|| random.next()) });
    }
    let flushes: Vec<usize> = (0..entries.len()).filter(|&entry| entries[entry].is_flush).collect();
    while cuts.len() < count {
        let cut = if random.chance(1, 2) {
            Cut { entries: random.index(entries.len() + 1), loses: None }
        } else {
            Cut { entries: *random.choose(&flushes), loses: Some(random.next()) }
        };
        cuts.push(cut);
    }
    cuts
}

/// The volume at a mark, taken for that of a later one, before which more had been promised: what a drive leaves that
/// loses what it said it had flushed.
fn lies(recording: &Recording, random: &mut Random) -> Vec<Case> {
    // What was issued after the first mark cannot be there, whatever was synced without having been promised.
    let promises_more = |pair: &&[Mark]| {
        let durable = recording.history.durable_by(pair[1].asked);
        let is_new =
            |operation: &&Operation| operation.issued > pair[0].written && operation.acknowledged.is_some();
        durable.operations().iter().filter(is_new).any(|operation| operation.effect == Effect::Write)
    };
    let mut pairs: Vec<&[Mark]> = recording.marks.windows(2).collect();
    random.shuffle(&mut pairs);
    let case = |pair: &[Mark]| Case {
        cut: Cut { entries: pair[0].entry + 1, loses: None },
        known: recording.known(pair[1].entry + 1),
    };
    pairs.into_iter().filter(promises_more).take(BAD_CUTS).map(case).collect()
}

fn show(failures: &[(Cut, Vec<String>)]) -> String {
    let shown = failures.iter().take(FAILURES_SHOWN);
    shown.map(|(cut, complaints)| format!("{cut:?}: {}\n", complaints.join("\n"))).collect()
}

fn tell(recording: &Recording) {
    println!(
        "{} operations, {} points asked for, {} marks in {} writes and flushes ({} while it was started again), {} ms",
        recording.history.operations().len(),
        recording.points.len(),
        recording.marks.len(),
        recording.log.entries().len(),
        recording.opening.len(),
        recording.took.as_millis()
    );
}

#[test]
fn every_power_cut_leaves_what_was_promised() {
    let seed = seed();
    let recording =
        Recording::make(&Plan { seed, operations: OPERATIONS, advances: true, mount: "rw" }, gateway());
    let clock = OsEnvironment::new();
    tell(&recording);
    let mut random = Random::new(seed);
    let count =
        number("AFTERIMAGE_POWER_CUTS").map_or(CUTS, |count| usize::try_from(count).expect("a count"));
    let cuts = cuts(&recording, count, &mut random);
    let count = cuts.len();
    let case = |cut: Cut| Case { known: recording.known(cut.entries), cut };
    let findings = examine(&recording, cuts.into_iter().map(case).collect(), seed);
    let failures = &findings.failures;
    assert!(failures.is_empty(), "{} of {count} cuts: {}", failures.len(), show(failures));
    println!(
        "{count} cuts are as they must be; {} points read, {} of which had to be, {} ms",
        findings.points_read,
        findings.points_owed,
        clock.monotonic().0 / 1_000_000
    );
    assert!(findings.points_owed > 0, "points are held from the first on, and the last mark is cut at");
    assert!(findings.points_read >= findings.points_owed, "where a point is held, one is read");

    let lies = lies(&recording, &mut random);
    let told = lies.len();
    assert!(told > 0, "flushes promise something");
    println!("{told} cuts that lose what was flushed");
    let noticed = examine(&recording, lies, seed).failures;
    assert_eq!(noticed.len(), told, "a drive that loses what it has flushed is noticed");
}

/// ext4 without barriers sends no flushes, so that nothing is durable when the gateway believes it is.
#[test]
fn a_file_system_that_does_not_flush_is_noticed() {
    let seed = seed();
    let recording =
        Recording::make(&Plan { seed, operations: 300, advances: false, mount: "barrier=0" }, gateway());
    tell(&recording);
    let later = recording.marks.iter().skip_while(|mark| mark.asked < recording.created);
    let later: Vec<&Mark> = later.filter(|mark| recording.history.flushed_by(mark.asked).0 > 0).collect();
    let at = |mark: &&Mark| {
        let entries = mark.entry + 1;
        Case { cut: Cut { entries, loses: None }, known: recording.known(entries) }
    };
    let cases: Vec<Case> = later.iter().take(BAD_CUTS).map(at).collect();
    let count = cases.len();
    assert!(count > 0, "flushes were acknowledged");
    let noticed = examine(&recording, cases, seed).failures;
    assert_eq!(noticed.len(), count, "every cut has lost what was promised");
}
