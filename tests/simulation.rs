//! The seeded simulator of one site: seeds that must stay clean, and proof that it finds what is planted.
//!
//! `cargo run --release --no-default-features --features sim --bin sim -- SEED` replays one with a trace.
//!
//! A seed says what happens only for as long as the code does the same operations in the same order, so seeds are no regression
//! tests: what they once found is told again by scripts of the fuzz target (`tests/journal_model.rs`), where it can be, and a
//! planted bug undoes the mend. What seeds found so far, and what would find it now:
//!
//! | seeds, once | what it was | now |
//! |---|---|---|
//! | 0, 3, 8 | the wall clock stepped back over a restart: a point was refused, and its content lost to all later ones | story `clock_set_back`, bug `GroupTimeFromClock` |
//! | 33 | a segment was overwritten before a durable frame said that it was no longer needed | the sweep; a bug that undoes it was tried, and not found in two minutes |
//! | 437 | a sync had failed, and the next opening took what the page cache showed for durable | bug `PageCacheTrusted`, story `journal_fails` |
//! | 16 | an opening created a segment although there were free ones | the bound on segments, story `openings_of_a_full_journal` |
//! | 1679 | a segment whose name a dead process had not synced was adopted, and lost with the power | the sweep; a bug that undoes it was tried, and not found in 100 seeds |
//! | 2 | a stop with writes in flight never came to its end | story `stopped`; no bug undoes it |
//! | 19, 38 | data had eaten the reserve: an opening found no room in a full journal | the sweep; no bug undoes it |
//! | 2140 | markers took the last page, and the statement that frees segments found no room | the sweep; no bug undoes it |
//! | 29, 189 | a disk left while a marker that lists it was under way: the point lacked its last interval | the sweep; no bug undoes it |
//! | 514 | a failed manifest sync left a disk's joining in doubt, and its files were removed | the sweep; no bug undoes it |
//! | 4023, 4995 | a disk was destaged again below its checkpoint, and torn by a power cut | the sweep; no bug undoes it |
//! | 2580 | a mend left the checkpoint behind an image that had been synced, and began anew for ever | the sweep; no bug undoes it |
//! | 5439 | of two latched disks, what the one was last to hold was recycled | the sweep; no bug undoes it |
//! | 4, 6, 10 | the directory of a test failover was never synced, and lost with the power, with all that clients had flushed to it | the sweep; no bug undoes it |
//! | 10196 | data waited for ever where openings had taken two segments beyond the journal's limit | a unit test of `segments.rs` |

use afterimage::planted::{Bug, Planted};
use afterimage::sim::{Failure, Options, Report, run, sweep};

/// Seeds that each planted bug must be found within.
const SEEDS_MAX: u64 = 4000;
/// Where bugs that take long to be met were found last: looked at first, and of no use once the code does other operations.
const LAST_FOUND: [(Bug, u64); 2] = [(Bug::LeapCounted, 3298), (Bug::ReplacedOpeningFollowed, 969)];
/// Seeds of the clean sweep: a taste where nothing is optimised.
const CLEAN_SEEDS: u64 = if cfg!(debug_assertions) { 40 } else { 600 };

/// Runs seeds until one fails.
fn first_failure(seeds: std::ops::Range<u64>, planted: Planted) -> (Report, Option<Failure>) {
    let swept = sweep(seeds, planted, || false);
    (swept.report, swept.failures.into_iter().next())
}

#[test]
fn a_clean_sweep_meets_everything_and_breaks_no_rule() {
    let (report, failure) = first_failure(10_000..10_000 + CLEAN_SEEDS, Planted::NONE);
    if let Some(failure) = failure {
        panic!("{failure}");
    }
    // A sweep that meets none of these proves nothing.
    for (what, count) in [
        ("requests", report.requests),
        ("kills", report.kills),
        ("power cuts", report.power_cuts),
        ("deaths while opening", report.opening_deaths),
        ("groups opened again", report.reopenings),
        ("clean stops", report.stops),
        ("late writes", report.late_writes),
        ("points", report.points_checked),
        ("points that went", report.points_dropped),
        ("views", report.views),
        ("faults", report.faults),
        ("broken images", report.breaks),
        ("side files", report.side_files),
        ("detached disks", report.detached),
        ("mends", report.mends),
        ("refused rot", report.rots_refused),
        ("index runs", report.runs_used),
        ("rot met while running", report.rots_met),
        ("resizes", report.resizes),
        ("refusals of what rotted of a tail", report.tail_rots_refused),
        ("withheld pages", report.withheld),
        ("rounds of waiting for maps", report.map_waits),
        ("verifications", report.verifications),
        ("verifications beside writes", report.verified_beside_writes),
        ("flipped bits in raw files that were found", report.raw_rots_found),
        ("refusals of what rotted in an image", report.image_rots_refused),
        ("refusals of what rotted in an overlay", report.overlay_rots_refused),
        ("reads beside destage", report.reads_beside_destage),
        ("repairs of vaults", report.repairs),
        ("summaries read", report.summaries),
        ("settings of the clock", report.clock_steps),
        ("days", report.days),
        ("pauses", report.pauses),
        ("rotations", report.rotations),
    ] {
        assert!(count > CLEAN_SEEDS / 10, "only {count} {what} in {CLEAN_SEEDS} seeds");
    }
    // Few of the bits that flip are of a record that anybody reads.
    assert!(report.renewals > CLEAN_SEEDS / 20, "only {} repairs wrote sectors anew", report.renewals);
    assert!(report.losses > CLEAN_SEEDS / 20, "only {} losses were accepted", report.losses);
    for (what, count) in [
        ("openings refused for a page", report.withheld_openings),
        ("disks mended once a page was given again", report.withheld_mended),
        ("tails that were given up", report.tails_given_up),
        ("images of before there were sums that got them at rest", report.images_summed),
    ] {
        assert!(count > CLEAN_SEEDS / 60, "only {count} {what} in {CLEAN_SEEDS} seeds");
    }
    assert!(report.leaps > CLEAN_SEEDS / 30, "only {} clocks leapt", report.leaps);
    // Summaries are few until a history is long.
    let in_summaries = report.rots_in_summaries;
    assert!(in_summaries > CLEAN_SEEDS / 40, "only {in_summaries} bits flipped in summaries");
    // Two seeds in five have a limit to their history, and few of these reach it.
    assert!(report.shrinks > CLEAN_SEEDS / 20, "only {} announcements of a shorter history", report.shrinks);
}

#[test]
fn a_seed_decides_everything() {
    for seed in 0..6 {
        let (first, second) = (run(seed, &Options::default()), run(seed, &Options::default()));
        assert!(first.is_ok(), "{first:?}");
        assert_eq!(first, second, "seed {seed}");
    }
}

#[test]
fn every_planted_bug_is_found() {
    for bug in Bug::ALL {
        let last = LAST_FOUND.iter().find(|(found, _)| *found == bug).map(|&(_, seed)| seed..seed + 1);
        let mut looks = last.into_iter().chain(std::iter::once(0..SEEDS_MAX));
        let failure = looks.find_map(|seeds| first_failure(seeds, Planted::with(bug)).1);
        let failure = failure.unwrap_or_else(|| panic!("{bug:?} was not found within {SEEDS_MAX} seeds"));
        println!("{bug:?}: {failure}");
    }
}
