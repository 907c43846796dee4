//! The seeded simulator of one site: the real group, journal, images, vault and test failovers on a simulated disk,
//! with simulated clients, and checkers outside the system that know only what the clients asked and were told.
//!
//! One seed decides everything: sizes, requests, the order in which the disk completes operations, time (one seed in eight lasts
//! months, with intervals and ladders to match), clocks that are set, kill -9, power cuts (also while opening), late writes of dead processes, I/O errors, images that fail until they are mended, full
//! disks, bit rot.
//!
//! | checker | where |
//! |---|---|
//! | a read shows the latest acknowledged write of each sector, or one in flight | `answers`, `history` |
//! | after kill -9, what was acknowledged is there; after a power cut, what was flushed; both are prefixes over all disks | `history`, `recovery` |
//! | what was served after an opening never vanishes again | `recovery` |
//! | a point holds a prefix: all that was acknowledged before it was asked for, nothing issued after it was granted; it never changes | `points` |
//! | a point goes only by a ladder or by request, and not while it is held or a test failover shows it; an open view reads the same for ever; space comes back | `points`, `retention` |
//! | a disk has the size that it was given, a point the one that it was made with, and what a disk gains is zeros, whatever older points hold there | `resizes`, `points` |
//! | a base is as long as its disk, at least | `finale` |
//! | after a clean stop the images alone hold everything | `finale` |
//! | a paused group makes no timed points, also after a death; a rotation of keys comes to its end, and leaves all readable under the new key alone | `administration` |
//! | on a full disk, what gives space back is done; and what is kept back for that is whole again once there is room | `space` |
//! | the journal stays within its limit; when faults end, everything comes to its end | `finale` |
//! | a latched disk loses nothing, also if its files could not be had at opening, holds up nobody, and takes writes again once its image was mended and resumed | `repair`, `finale` |
//! | no (key, nonce) pair seals twice, also where a copy of the data directory is restored and both go on | `site`, `copies`, `seal::Witness` |
//! | bit rot is refused or harmless, whether it happens at rest or under a process that runs; in a summary it is harmless | `rot` |
//! | what the journal's device does not give for a moment is noticed by nobody; for good, it is refused, and back once it is given again | `withheld` |
//! | images of a version without sums have theirs once all is at rest, and what rots in them then is refused | `unsummed`, `image_rot` |
//! | a verification finds nothing where nothing rotted, whatever is written meanwhile, and what rotted in an image or a base | `verify` |
//!
//! Besides seeds it takes [scripts](script), which say what happens act by act: the fuzz target `journal_model` writes them.
//!
//! It proves itself by [planted bugs](crate::planted), which `tests/simulation.rs` has it find.

mod administration;
mod ages;
mod answers;
mod blocks;
mod clients;
mod copies;
mod finale;
mod history;
mod image_rot;
#[cfg(test)]
mod judge;
mod loss;
mod overlay_rot;
mod plan;
mod play;
mod points;
mod process;
mod recovery;
mod repair;
mod resizes;
mod retention;
mod rot;
pub mod script;
mod sector;
mod site;
mod space;
mod sweep;
mod tail_rot;
mod trace;
mod unsummed;
mod vault_rot;
mod verify;
mod withheld;

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use crate::planted::Planted;
use script::Script;
use site::Site;

pub use plan::Plan;
pub use sweep::{Swept, sweep};
pub use trace::Sink;

/// What a run is to do besides what its seed says.
#[derive(Clone, Default)]
pub struct Options {
    /// The bug to plant.
    pub planted: Planted,
    /// Who reads along.
    pub sink: Option<Sink>,
}

/// What a clean run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// A hash of everything that happened: equal for equal seeds.
    pub fingerprint: u64,
    /// Steps.
    pub steps: u64,
    /// Requests answered.
    pub requests: u64,
    /// Processes killed.
    pub kills: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// Writes of dead processes that landed after their death.
    pub late_writes: u64,
    /// Deaths while opening.
    pub opening_deaths: u64,
    /// Groups closed and opened again by one process.
    pub reopenings: u64,
    /// Clean stops.
    pub stops: u64,
    /// Recovery points whose every sector was compared.
    pub points_checked: u64,
    /// Recovery points that went, by their ladder or by request.
    pub points_dropped: u64,
    /// Open views that were read again and again.
    pub views: u64,
    /// Faults injected.
    pub faults: u64,
    /// Images broken until a mend.
    pub breaks: u64,
    /// Side files that were seen.
    pub side_files: u64,
    /// Disks whose files could not be had at an opening.
    pub detached: u64,
    /// Disks that a resume mended while the group went on.
    pub mends: u64,
    /// Losses of disks whose records rotted that were accepted.
    pub losses: u64,
    /// Bits flipped.
    pub rots: u64,
    /// Of these, how many were refused.
    pub rots_refused: u64,
    /// Index runs that openings took for the frames.
    pub runs_used: u64,
    /// Things sealed.
    pub seals: u64,
    /// Reads and points that were refused because a bit had flipped while the process ran.
    pub rots_met: u64,
    /// Rounds in which writes waited for the memory of maps.
    pub map_waits: u64,
    /// Announcements that points go for lack of space.
    pub shrinks: u64,
    /// Summaries that points were read through.
    pub summaries: u64,
    /// Bits flipped in summaries, of which none may be seen in a point,
    pub rots_in_summaries: u64,
    /// and summaries that were refused for one.
    pub summaries_refused: u64,
    /// Pauses of points and retention.
    pub pauses: u64,
    /// Rotations of the site key.
    pub rotations: u64,
    /// Days that passed.
    pub days: u64,
    /// Times that somebody set the clock.
    pub clock_steps: u64,
    /// Times that a leap of group time was taken back.
    pub leaps: u64,
    /// Verifications of the group that came to their end.
    pub verifications: u64,
    /// Of these, how many had to leave out what was written meanwhile.
    pub verified_beside_writes: u64,
    /// Bits flipped in images and bases.
    pub raw_rots: u64,
    /// Of these, how many were found.
    pub raw_rots_found: u64,
    /// Bits flipped in images and their sums while guests went on reading.
    pub image_rots: u64,
    /// How often reads were refused for these.
    pub image_rots_refused: u64,
    /// Images that were declared to be of a version without sums,
    pub images_without_sums: u64,
    /// and waits, at rest, until all of them had sums again.
    pub images_summed: u64,
    /// Bits flipped in overlays of test failovers and their sums.
    pub overlay_rots: u64,
    /// How often reads were refused for these.
    pub overlay_rots_refused: u64,
    /// Reads that were under way while what they asked for was written over and destaged.
    pub reads_beside_destage: u64,
    /// Vaults that were repaired,
    pub repairs: u64,
    /// or were not, since somebody kept a point that would have had to go;
    pub repairs_refused: u64,
    /// and of these, how many had what the newest point showed written anew.
    pub renewals: u64,
    /// Points that could not be read since a bit had flipped in what they show.
    pub rots_unserved: u64,
    /// Pages of the journal that its device did not give,
    pub withheld: u64,
    /// openings that were refused for one,
    pub withheld_openings: u64,
    /// and disks that a resume mended once it gave them again.
    pub withheld_mended: u64,
    /// Disks that got another size.
    pub resizes: u64,
    /// Bits flipped in frames that were acknowledged and not flushed when the process died,
    pub tail_rots: u64,
    /// openings and reads that were refused for one,
    pub tail_rots_refused: u64,
    /// and openings where somebody accepted that loss.
    pub tails_given_up: u64,
}

impl Report {
    /// Adds the numbers of another run.
    pub fn add(&mut self, other: &Report) {
        self.fingerprint ^= other.fingerprint;
        self.steps += other.steps;
        self.requests += other.requests;
        self.kills += other.kills;
        self.power_cuts += other.power_cuts;
        self.late_writes += other.late_writes;
        self.opening_deaths += other.opening_deaths;
        self.reopenings += other.reopenings;
        self.stops += other.stops;
        self.points_checked += other.points_checked;
        self.points_dropped += other.points_dropped;
        self.views += other.views;
        self.faults += other.faults;
        self.breaks += other.breaks;
        self.side_files += other.side_files;
        self.detached += other.detached;
        self.mends += other.mends;
        self.losses += other.losses;
        self.rots += other.rots;
        self.rots_refused += other.rots_refused;
        self.runs_used += other.runs_used;
        self.seals += other.seals;
        self.rots_met += other.rots_met;
        self.map_waits += other.map_waits;
        self.shrinks += other.shrinks;
        self.summaries += other.summaries;
        self.rots_in_summaries += other.rots_in_summaries;
        self.summaries_refused += other.summaries_refused;
        self.pauses += other.pauses;
        self.rotations += other.rotations;
        self.days += other.days;
        self.clock_steps += other.clock_steps;
        self.leaps += other.leaps;
        self.verifications += other.verifications;
        self.verified_beside_writes += other.verified_beside_writes;
        self.raw_rots += other.raw_rots;
        self.raw_rots_found += other.raw_rots_found;
        self.image_rots += other.image_rots;
        self.image_rots_refused += other.image_rots_refused;
        self.images_without_sums += other.images_without_sums;
        self.images_summed += other.images_summed;
        self.overlay_rots += other.overlay_rots;
        self.overlay_rots_refused += other.overlay_rots_refused;
        self.reads_beside_destage += other.reads_beside_destage;
        self.repairs += other.repairs;
        self.repairs_refused += other.repairs_refused;
        self.renewals += other.renewals;
        self.rots_unserved += other.rots_unserved;
        self.withheld += other.withheld;
        self.withheld_openings += other.withheld_openings;
        self.withheld_mended += other.withheld_mended;
        self.resizes += other.resizes;
        self.tail_rots += other.tail_rots;
        self.tail_rots_refused += other.tail_rots_refused;
        self.tails_given_up += other.tails_given_up;
    }
}

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The seed that shows it, unless it was a script.
    pub seed: Option<u64>,
    /// When: the step, or the act of the script.
    pub step: u64,
    /// What.
    pub text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seed {
            Some(seed) => write!(f, "seed {seed} step {}: {}", self.step, self.text),
            None => write!(f, "act {}: {}", self.step, self.text),
        }
    }
}

/// Runs one seed.
///
/// # Errors
/// The first rule that was broken; an assertion of the code under test counts as one.
pub fn run(seed: u64, options: &Options) -> Result<Report, Failure> {
    judged(Some(seed), |step| Site::new(seed, options, step).run())
}

/// Plays one script.
///
/// # Errors
/// As [`run`].
pub fn play(script: &Script, options: &Options) -> Result<Report, Failure> {
    judged(None, |step| Site::of_script(script, options, step).play(script))
}

fn judged(
    seed: Option<u64>,
    run: impl FnOnce(Rc<RefCell<u64>>) -> Result<Report, String>,
) -> Result<Report, Failure> {
    let step = Rc::new(RefCell::new(0));
    let counted = Rc::clone(&step);
    let outcome = catch_unwind(AssertUnwindSafe(|| run(counted)));
    let fail = |text| Failure { seed, step: *step.borrow(), text };
    match outcome {
        Ok(outcome) => outcome.map_err(fail),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(fail(format!("panic: {}", text.unwrap_or_default())))
        }
    }
}
