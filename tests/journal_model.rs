//! The seed inputs of the fuzz target `journal_model`, checked in under `fuzz/corpus/journal_model`: each is a story of what
//! may befall a journal, and breaks no rule; nor does what the fuzzer found once (`found_…`). That the target finds what it looks for, planted bugs show: each of them breaks a
//! rule in a seed or in one of a bounded number of mutants of the seeds. After a change of the stories:
//! `AFTERIMAGE_WRITE_CORPUS=1 cargo test --features sim --test journal_model`.

#[path = "support/model_fuzz.rs"]
mod model_fuzz;

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use afterimage::planted::{Bug, Planted};
use afterimage::sim::script::{ACT_BYTES, ACTS_MAX, Act, Place, Script, Setting};
use afterimage::sim::{Failure, Report};
use afterimage::storage::sim::Random;

/// Mutants that each planted bug must be found within.
const MUTANTS_MAX: u64 = 4000;
/// Mutants that must be clean: a taste where nothing is optimised.
const CLEAN_MUTANTS: u64 = if cfg!(debug_assertions) { 50 } else { 2000 };
/// Of the power cuts: nothing that was not synced stays, about half of it, all.
const NOTHING: u8 = 0;
const HALF: u8 = 2;
const ALL: u8 = 6;

/// Bugs that a journal's fuzzer must find; the others need more than a short script can do.
const FOUND: [Bug; 15] = [
    Bug::AcknowledgeBeforeWritten,
    Bug::VisibleAfterAcknowledged,
    Bug::SyncCoversInFlight,
    Bug::SegmentSwitchBeforeSync,
    Bug::NoChainCheck,
    Bug::ReplacedOpeningFollowed,
    Bug::AcceptanceNotRecorded,
    Bug::PageCacheTrusted,
    Bug::DestageAheadOfDurable,
    Bug::CheckpointBeforeImageSync,
    Bug::EarlyRecycling,
    Bug::GroupTimeFromClock,
    Bug::LeapCounted,
    Bug::DeltaFromOpenMap,
    Bug::PublishAheadOfDurable,
];

fn at(disk: u8, start: u8, sectors: u8) -> Place {
    Place { disk, start, more: sectors - 1 }
}

fn write(disk: u8, start: u8, sectors: u8) -> Act {
    Act::Write { place: at(disk, start, sectors), durable: false }
}

fn write_through(disk: u8, start: u8, sectors: u8) -> Act {
    Act::Write { place: at(disk, start, sectors), durable: true }
}

fn zero(disk: u8, start: u8, sectors: u8) -> Act {
    Act::Zero { place: at(disk, start, sectors), durable: false, keeps: start.is_multiple_of(2) }
}

fn read(disk: u8, start: u8, sectors: u8) -> Act {
    Act::Read { place: at(disk, start, sectors) }
}

fn work(rounds: u8) -> Act {
    Act::Work { more: rounds - 1, dice: 7 }
}

fn land(operations: u8) -> Act {
    Act::Land { more: operations - 1, dice: 11 }
}

const AWAIT: Act = Act::Await { dice: 1 };
const KILL: Act = Act::Kill { dice: 2 };

fn power_cut(severity: u8) -> Act {
    Act::PowerCut { severity, dice: 3 }
}

/// Many small writes, several in flight at a time.
fn batch(disk: u8) -> Vec<Act> {
    (0..12).flat_map(|index| [write(disk, index * 5, 4 + index), work(1 + index % 3)]).collect()
}

fn script(setting: Setting, acts: &[&[Act]]) -> Script {
    Script { setting, acts: acts.concat() }
}

fn small() -> Setting {
    Setting { two_disks: true, ..Setting::default() }
}

fn deaths() -> Vec<(&'static str, Script)> {
    let reading = [AWAIT, read(0, 0, 64), read(1, 0, 64), AWAIT];
    vec![
        ("kill", script(small(), &[&batch(0), &[KILL], &reading, &batch(1), &[KILL], &reading])),
        (
            "kill_answered",
            script(
                small(),
                &[&[write(0, 0, 8), AWAIT, write(1, 3, 2), AWAIT, zero(0, 2, 3), AWAIT, KILL], &reading],
            ),
        ),
        (
            "power_cut_flushed",
            script(
                small(),
                &[
                    &batch(0),
                    &[Act::Flush, AWAIT],
                    &batch(1),
                    &[power_cut(NOTHING)],
                    &reading,
                    &[power_cut(ALL)],
                ],
            ),
        ),
        (
            "power_cut_in_flight",
            script(
                small(),
                &[
                    &batch(0),
                    &[Act::Flush],
                    &batch(1),
                    &[power_cut(HALF), AWAIT],
                    &batch(0),
                    &[power_cut(NOTHING)],
                ],
            ),
        ),
        (
            "write_through",
            script(
                Setting { is_plain: true, ..small() },
                &[
                    &[
                        write_through(0, 0, 8),
                        write(0, 4, 8),
                        write_through(1, 1, 1),
                        AWAIT,
                        power_cut(NOTHING),
                    ],
                    &reading,
                    &[write(0, 0, 1), write_through(0, 2, 9), work(6), power_cut(HALF)],
                    &reading,
                ],
            ),
        ),
        (
            "late_writes",
            script(
                small(),
                &[
                    &batch(0),
                    &[KILL, work(4), land(3), KILL, land(8), AWAIT],
                    &batch(0),
                    &[KILL, AWAIT, power_cut(HALF)],
                ],
            ),
        ),
        (
            "deaths_while_opening",
            script(
                small(),
                &[
                    &batch(0),
                    &[Act::Flush, AWAIT, write(0, 0, 30), KILL, work(9), KILL, work(17), power_cut(HALF)],
                    &[work(25), power_cut(NOTHING), work(40), KILL, AWAIT, write(0, 9, 9), AWAIT, KILL],
                    &reading,
                ],
            ),
        ),
        (
            "born",
            script(
                Setting { starts_cold: true, ..Setting::default() },
                &[
                    &[work(6), KILL, work(14), power_cut(NOTHING), work(30), power_cut(HALF), AWAIT],
                    &[Act::AddDisk { dice: 0 }, work(9), KILL, AWAIT, Act::AddDisk { dice: 5 }, AWAIT],
                    &batch(0),
                    &[power_cut(HALF)],
                ],
            ),
        ),
    ]
}

fn journals() -> Vec<(&'static str, Script)> {
    let fill: Vec<Act> =
        (0..40).flat_map(|index| [write(index % 2, index * 3, 32), work(2)]).chain([AWAIT]).collect();
    // Each lives as long as it takes to open, and no longer.
    let openings: Vec<Act> =
        (0..40).flat_map(|dice| [Act::PowerCut { severity: HALF, dice: 3 + dice }, work(96)]).collect();
    let fill_again = [fill.as_slice(), &[Act::Deadline, AWAIT]].concat();
    vec![
        (
            "turned_over",
            script(small(), &[&fill_again, &[KILL, AWAIT], &batch(0), &[power_cut(HALF), AWAIT]]),
        ),
        (
            "openings_of_a_full_journal",
            script(small(), &[&fill[..20], &openings, &[AWAIT, write(0, 0, 9), AWAIT]]),
        ),
        (
            "turned_over_under_points",
            script(
                Setting { interval: 3, ladder: 2, is_plain: true, ..small() },
                &[
                    &[Act::Point],
                    &fill,
                    &[Act::Pass { time: 600 }, Act::Point, work(30), power_cut(HALF), AWAIT],
                ],
            ),
        ),
        (
            "runs",
            script(
                Setting { index: 1, maps: 3, cache: 1, ..small() },
                &[&fill, &[Act::Flush, AWAIT, KILL, AWAIT], &batch(1), &[power_cut(NOTHING), AWAIT]],
            ),
        ),
        (
            "segments_switched",
            script(
                small(),
                &[
                    &fill[..20],
                    &[Act::Flush, work(3)],
                    &fill[20..44],
                    &[Act::Flush, work(5), power_cut(NOTHING), AWAIT],
                ],
            ),
        ),
        (
            "stopped",
            script(
                Setting { has_large_segments: true, more_segments: 3, ..small() },
                &[
                    &batch(0),
                    &[Act::Stop { dice: 4 }, AWAIT],
                    &batch(1),
                    &[Act::Stop { dice: 1 }, work(9), KILL],
                ],
            ),
        ),
    ]
}

fn points_and_faults() -> Vec<(&'static str, Script)> {
    let sync_of_journal = Act::Fail { fault: 2, after: 0 };
    let write_of_journal = Act::Fail { fault: 0, after: 1 };
    vec![
        (
            "points",
            script(
                small(),
                &[
                    &batch(0),
                    &[Act::Point],
                    &batch(1),
                    &[AWAIT, Act::Point, write(0, 0, 3), work(12), KILL, AWAIT],
                    &[Act::TestFailover { dice: 0 }, AWAIT, Act::AskTest { dice: 0 }, AWAIT],
                    &[Act::Point, write(1, 1, 1), work(20), power_cut(HALF), AWAIT],
                ],
            ),
        ),
        (
            "clock_set_back",
            script(
                small(),
                &[
                    &batch(0),
                    &[Act::Point, AWAIT, Act::SetClock { step: -5000 }, KILL, AWAIT],
                    &batch(1),
                    &[Act::Point, AWAIT, Act::SetClock { step: -5000 }, power_cut(HALF), AWAIT],
                    &batch(0),
                    &[Act::Point, AWAIT],
                ],
            ),
        ),
        (
            "clock_ahead_at_one_start",
            script(
                Setting { ladder: 3, ..small() },
                &[
                    &batch(0),
                    &[Act::Point, AWAIT, Act::SetClock { step: 20_000 }, KILL, work(250)],
                    &[Act::SetClock { step: -20_000 }, write(0, 8, 4), Act::Point, work(120), work(120)],
                    &[[Act::Pass { time: 60_000 }, work(120)]; 3].concat(),
                ],
            ),
        ),
        (
            "retention",
            script(
                Setting { interval: 3, ladder: 2, ..small() },
                &[
                    &batch(0),
                    &[Act::Pass { time: 800 }, AWAIT, Act::Retention { dice: 1 }, write(0, 0, 8), AWAIT],
                    &[Act::Pass { time: 2000 }, work(40), Act::Retention { dice: 9 }, write(1, 0, 8), AWAIT],
                    &[
                        Act::Pass { time: 6000 },
                        work(90),
                        power_cut(HALF),
                        AWAIT,
                        Act::SetClock { step: -3000 },
                    ],
                    &[Act::Retention { dice: 5 }, Act::Pass { time: 9000 }, AWAIT, KILL, AWAIT],
                ],
            ),
        ),
        (
            "members",
            script(
                small(),
                &[
                    &batch(1),
                    &[Act::AddDisk { dice: 3 }, AWAIT, write(2, 0, 9), Act::RemoveDisk { dice: 1 }, work(20)],
                    &[
                        KILL,
                        AWAIT,
                        write(1, 0, 9),
                        Act::Point,
                        AWAIT,
                        Act::Verify,
                        AWAIT,
                        power_cut(HALF),
                        AWAIT,
                    ],
                ],
            ),
        ),
        (
            "journal_fails",
            script(
                small(),
                &[
                    &batch(0),
                    &[sync_of_journal, Act::Flush, AWAIT, Act::Resume, AWAIT],
                    &batch(0),
                    &[
                        write_of_journal,
                        write(0, 3, 9),
                        AWAIT,
                        KILL,
                        AWAIT,
                        write(1, 3, 9),
                        power_cut(NOTHING),
                        AWAIT,
                    ],
                ],
            ),
        ),
        (
            "image_breaks",
            script(
                small(),
                &[
                    &batch(0),
                    &[
                        Act::Break { dice: 10 },
                        Act::Deadline,
                        AWAIT,
                        write(0, 0, 9),
                        write(1, 0, 9),
                        AWAIT,
                        KILL,
                        AWAIT,
                    ],
                    &[
                        Act::Resume,
                        AWAIT,
                        Act::Mend,
                        Act::Resume,
                        AWAIT,
                        write(0, 1, 9),
                        AWAIT,
                        power_cut(HALF),
                    ],
                ],
            ),
        ),
        (
            "full",
            script(
                small(),
                &[
                    &[Act::FillDisk { dice: 4 }],
                    &batch(0),
                    &[AWAIT, Act::Mend, AWAIT],
                    &batch(1),
                    &[power_cut(HALF)],
                ],
            ),
        ),
    ]
}

fn stories() -> Vec<(&'static str, Script)> {
    [deaths(), journals(), points_and_faults()].concat()
}

/// Plays a mutant of the seeds, which its number decides.
fn play_mutant(seeds: &[Vec<u8>], number: u64, planted: Planted) -> (Vec<u8>, Result<Report, Failure>) {
    let mut random = Random::new(number);
    let seed = random.choose(seeds);
    let mut bytes = vec![0; ACT_BYTES * (1 + ACTS_MAX)];
    bytes[..seed.len()].copy_from_slice(seed);
    let (mut size, max_size) = (seed.len(), bytes.len());
    for _ in 0..1 + random.below(3) {
        let seed = u32::try_from(random.below(1 << 32)).expect("32 bits");
        size = model_fuzz::mutate(&mut bytes, size, max_size, seed);
    }
    bytes.truncate(size);
    let outcome = model_fuzz::play(&bytes, planted);
    (bytes, outcome)
}

/// Plays mutants on two threads until one fails: says what all did, and which failed how.
fn first_failure(
    seeds: &[Vec<u8>],
    count: u64,
    planted: Planted,
) -> (Report, Option<(u64, Vec<u8>, Failure)>) {
    let (next, outcome) = (AtomicU64::new(0), Mutex::new((Report::default(), None)));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            let (bytes, result) = play_mutant(seeds, number, planted);
            let mut outcome = outcome.lock().expect("no thread panics with it");
            match result {
                Ok(report) => outcome.0.add(&report),
                Err(failure) => {
                    next.store(count, Ordering::Relaxed);
                    outcome.1.get_or_insert((number, bytes, failure));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    outcome.into_inner().expect("no thread panics with it")
}

/// What the fuzzer found is kept as it was, beside the stories.
#[test]
fn what_was_found_once_breaks_no_rule_any_more() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/journal_model");
    let names = fs::read_dir(corpus).expect("a corpus").map(|entry| entry.expect("an entry").path());
    let is_found = |path: &std::path::PathBuf| path.to_string_lossy().contains("/found_");
    let found: Vec<_> = names.filter(is_found).collect();
    assert!(!found.is_empty());
    for path in found {
        let bytes = fs::read(&path).expect("read");
        model_fuzz::play(&bytes, Planted::NONE)
            .unwrap_or_else(|failure| panic!("{}: {failure}", path.display()));
    }
}

fn seeds() -> Vec<Vec<u8>> {
    stories().iter().map(|(_, script)| script.encode()).collect()
}

/// Where a script that failed is left for `sim --script`.
fn keep(bytes: &[u8]) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("journal_model.failed");
    fs::write(&path, bytes).expect("written");
    path.display().to_string()
}

#[test]
fn the_seeds_are_these_stories_and_break_no_rule() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/journal_model");
    let mut total = Report::default();
    for (name, script) in stories() {
        let (path, bytes) = (corpus.join(name), script.encode());
        if std::env::var_os("AFTERIMAGE_WRITE_CORPUS").is_some() {
            fs::create_dir_all(&corpus).expect("a directory");
            fs::write(&path, &bytes).expect("written");
        }
        assert!(fs::read(&path).expect("a seed") == bytes, "{name} is stale");
        assert!(script.acts.len() <= ACTS_MAX, "{name} is cut off");
        let report =
            model_fuzz::play(&bytes, Planted::NONE).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert_eq!(Ok(report), model_fuzz::play(&bytes, Planted::NONE), "{name} decides everything");
        total.add(&report);
    }
    for (what, count) in [
        ("requests", total.requests),
        ("kills", total.kills),
        ("power cuts", total.power_cuts),
        ("deaths while opening", total.opening_deaths),
        ("groups opened again", total.reopenings),
        ("clean stops", total.stops),
        ("points", total.points_checked),
        ("points that went", total.points_dropped),
        ("faults", total.faults),
        ("index runs", total.runs_used),
        ("mends", total.mends),
        ("verifications", total.verifications),
    ] {
        assert!(count > 0, "no story has {what}: {total:?}");
    }
}

#[test]
fn mutants_of_the_seeds_break_no_rule() {
    let (report, failure) = first_failure(&seeds(), CLEAN_MUTANTS, Planted::NONE);
    if let Some((number, bytes, failure)) = failure {
        panic!("mutant {number}: {failure}\nreplay: sim --script {}", keep(&bytes));
    }
    println!("{report:?}");
}

#[test]
fn planted_bugs_are_found() {
    let seeds = seeds();
    for bug in FOUND {
        let planted = Planted::with(bug);
        if let Some(failure) = seeds.iter().find_map(|seed| model_fuzz::play(seed, planted).err()) {
            println!("{bug:?}, by a seed: {failure}");
            continue;
        }
        let (_, failure) = first_failure(&seeds, MUTANTS_MAX, planted);
        let (number, _, failure) =
            failure.unwrap_or_else(|| panic!("{bug:?} was not found within {MUTANTS_MAX} mutants"));
        println!("{bug:?}, by mutant {number}: {failure}");
    }
}
