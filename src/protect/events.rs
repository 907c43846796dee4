//! What happens to a group that people should be able to look back at: said once, when it happens.
//!
//! The log has every event at once; whoever hosts the group takes them from [`Group::take_events`] and keeps them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::byte_size::ByteSize;
use crate::counted::counted;
use crate::extent::Ranges;
use crate::image::Image;
use crate::journal::tail::Break;
use crate::protect::group::Group;
use crate::protect::shrinking::{ImagesSpace, SpaceStatus};
use crate::protect::status::Condition;
use crate::protect::suspension::{Suspension, stretch};
use crate::units::{DiskSlot, Lsn, MonotonicNanos, WallNanos};
use crate::vault::Forecast;

/// Most events that wait for somebody to take them, who does so every turn; beyond that the oldest are only counted.
const WAITING_MAX: usize = 256;

/// An event, and when it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimedEvent {
    /// When, by the wall clock.
    pub time: WallNanos,
    /// What.
    pub event: GroupEvent,
}

/// Something that happened to a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupEvent {
    /// It is in another condition from now on.
    Condition(Condition),
    /// Points do not come as often as the policy says.
    PointsLate,
    /// They do again.
    PointsInTime,
    /// Little space is left until history shrinks.
    SpaceLow(SpaceStatus),
    /// Little space is left in the images' file system, which is another one than the vault's.
    ImagesSpaceLow(ImagesSpace),
    /// History is about to shrink because of space: these points would go first.
    HistoryWillShrink {
        /// What goes first.
        forecast: Forecast,
        /// Why.
        space: SpaceStatus,
        /// Since when that is known,
        since: MonotonicNanos,
        /// and how long after that the first goes.
        grace: Duration,
    },
    /// These points went because of space.
    HistoryShrinks {
        /// What went.
        forecast: Forecast,
    },
    /// History should shrink, but the oldest point is held or being read.
    HistoryCannotShrink,
    /// The wall clock was set, or is far ahead at a start: no point goes by its age for a while.
    ClockStepped(Suspension),
    /// The wall clock was set back: group time that an earlier start had taken to have passed is no part of ages any more.
    LeapExcluded {
        /// How much, at most.
        doubtful: Duration,
    },
    /// Points and retention rest until somebody resumes the group.
    Paused,
    /// They go on.
    Resumed,
    /// From this point on points are without a disk: writes to these sectors of it are in no delta.
    DiskLacking {
        /// Its name.
        disk: String,
        /// The sectors.
        sectors: Ranges,
    },
    /// A disk's image failed, or cannot be opened, or what the journal holds of it is damaged: its writes fail.
    DiskLatched {
        /// Its name.
        disk: String,
        /// What failed, with file and error.
        because: String,
    },
    /// Points hold the disk again.
    DiskWhole {
        /// Its name.
        disk: String,
    },
    /// Sectors that points lacked were written anew with what the disk held.
    Renewed {
        /// Its name.
        disk: String,
        /// How many.
        sectors: u64,
    },
    /// The journal's device does not give writes to these sectors, however often it is asked.
    Withheld {
        /// The disk's name.
        disk: String,
        /// The sectors.
        sectors: Ranges,
    },
    /// Writes that rotted in the journal are lost for good, as somebody accepted: their sectors hold something older, or zeros where the
    /// image does not match its sums.
    LossAccepted {
        /// The disk's name.
        disk: String,
        /// The sectors.
        sectors: Ranges,
    },
    /// A bit of a disk's checkpoint has flipped. Its other slot was used: nothing is lost.
    CheckpointRotten {
        /// The disk's name.
        disk: String,
        /// The checkpoint,
        path: PathBuf,
        /// and where in it the slot begins.
        offset: u64,
    },
    /// A copy of the header of the sums of a disk's image was damaged. The other one was used, and it is written anew: nothing is lost.
    SumsRotten {
        /// The disk's name.
        disk: String,
        /// The sums,
        path: PathBuf,
        /// and where in them the copy begins.
        offset: u64,
    },
    /// The journal was cut at its opening where a frame was damaged, though sound ones stand behind it.
    JournalCut {
        /// Its directory,
        directory: PathBuf,
        /// which segment, where in it that frame begins, what is wrong with it, and what stands behind it.
        broken: Break,
        /// The last record that the journal still has.
        end: Lsn,
        /// Whether only the process has died since.
        same_boot: bool,
    },
    /// The journal ended at a frame that is not whole, with nothing behind it.
    JournalTorn {
        /// Its directory,
        directory: PathBuf,
        /// which segment, and where in it that frame begins.
        broken: Break,
    },
    /// Bits have flipped in a block of the sums of a base; an advance that met it has written the block anew.
    BaseSumsRotten {
        /// The disk's name.
        disk: String,
        /// The sums,
        path: PathBuf,
        /// and where in them the damaged copy begins.
        offset: u64,
        /// Whether both copies were damaged.
        is_lost: bool,
    },
    /// Bits of the sums of an overlay had flipped: what counts is elsewhere, and they were written anew.
    OverlaySumsRotten {
        /// The disk, and the test failover, as its export names them.
        export: String,
        /// The sums,
        path: PathBuf,
        /// and where in them what was damaged begins.
        offset: u64,
    },
    /// A test failover, or a disk of one, cannot be served.
    TestUnserved {
        /// Which: `test-N`, or the disk before it.
        what: String,
        /// Why, with file and offset.
        error: String,
    },
    /// Requests of clients, or reads for a renewal, failed, for a device or for bytes that are not what was stored: told when that begins
    /// or changes, and once a minute while it goes on.
    RequestsFailed {
        /// Why the newest one did.
        error: String,
        /// How many since it was told last.
        times: u64,
    },
    /// So many were told before this one that nobody took in time.
    EventsLost {
        /// How many.
        count: u64,
    },
}

/// How grave an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gravity {
    /// Worth knowing.
    Note,
    /// To be looked at.
    Warning,
    /// To be mended.
    Fault,
}

impl GroupEvent {
    /// One word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            GroupEvent::Condition(_) => "condition",
            GroupEvent::PointsLate => "points_late",
            GroupEvent::PointsInTime => "points_in_time",
            GroupEvent::SpaceLow(_) | GroupEvent::ImagesSpaceLow(_) => "space_low",
            GroupEvent::HistoryWillShrink { .. } => "history_will_shrink",
            GroupEvent::HistoryShrinks { .. } => "history_shrinks",
            GroupEvent::HistoryCannotShrink => "history_cannot_shrink",
            GroupEvent::ClockStepped(_) => "clock_stepped",
            GroupEvent::LeapExcluded { .. } => "leap_excluded",
            GroupEvent::Paused => "paused",
            GroupEvent::Resumed => "resumed",
            GroupEvent::DiskLacking { .. } => "disk_lacking",
            GroupEvent::DiskLatched { .. } => "disk_latched",
            GroupEvent::DiskWhole { .. } => "disk_whole",
            GroupEvent::Renewed { .. } => "renewed",
            GroupEvent::Withheld { .. } => "withheld",
            GroupEvent::LossAccepted { .. } => "loss_accepted",
            GroupEvent::CheckpointRotten { .. } => "checkpoint_rotten",
            GroupEvent::SumsRotten { .. }
            | GroupEvent::BaseSumsRotten { .. }
            | GroupEvent::OverlaySumsRotten { .. } => "sums_rotten",
            GroupEvent::JournalCut { .. } => "journal_cut",
            GroupEvent::JournalTorn { .. } => "journal_torn",
            GroupEvent::TestUnserved { .. } => "test_unserved",
            GroupEvent::RequestsFailed { .. } => "requests_failed",
            GroupEvent::EventsLost { .. } => "events_lost",
        }
    }

    /// How grave it is.
    pub fn gravity(&self) -> Gravity {
        match self {
            GroupEvent::Condition(condition) => match condition {
                Condition::Opening | Condition::Protected | Condition::Paused | Condition::Stopping => {
                    Gravity::Note
                }
                Condition::JournalFull
                | Condition::MapsFull
                | Condition::PointsLate
                | Condition::Retrying
                | Condition::SpaceShort => Gravity::Warning,
                Condition::NoSpace
                | Condition::RetentionStalled
                | Condition::ImageFailed
                | Condition::VaultFailed
                | Condition::JournalFailed => Gravity::Fault,
            },
            GroupEvent::PointsLate
            | GroupEvent::SpaceLow(_)
            | GroupEvent::ImagesSpaceLow(_)
            | GroupEvent::HistoryWillShrink { .. }
            | GroupEvent::HistoryShrinks { .. }
            | GroupEvent::ClockStepped(_)
            | GroupEvent::LossAccepted { .. }
            | GroupEvent::CheckpointRotten { .. }
            | GroupEvent::SumsRotten { .. }
            | GroupEvent::JournalCut { .. }
            | GroupEvent::BaseSumsRotten { .. }
            | GroupEvent::OverlaySumsRotten { .. }
            | GroupEvent::EventsLost { .. } => Gravity::Warning,
            GroupEvent::HistoryCannotShrink
            | GroupEvent::DiskLacking { .. }
            | GroupEvent::DiskLatched { .. }
            | GroupEvent::RequestsFailed { .. }
            | GroupEvent::TestUnserved { .. }
            | GroupEvent::Withheld { .. } => Gravity::Fault,
            GroupEvent::PointsInTime
            | GroupEvent::LeapExcluded { .. }
            | GroupEvent::Paused
            | GroupEvent::Resumed
            | GroupEvent::DiskWhole { .. }
            | GroupEvent::JournalTorn { .. }
            | GroupEvent::Renewed { .. } => Gravity::Note,
        }
    }

    /// One line for people.
    pub fn text(&self) -> String {
        match self {
            GroupEvent::Condition(condition) => match condition.explanation() {
                Some(why) => format!("{}: {}", why.what, why.mend),
                None => condition.name().to_owned(),
            },
            GroupEvent::PointsLate => "recovery points are late".to_owned(),
            GroupEvent::PointsInTime => "recovery points are in time again".to_owned(),
            GroupEvent::SpaceLow(space) => format!("little space is left: {}", room(*space)),
            GroupEvent::ImagesSpaceLow(space) => format!(
                "little space is left in the file system of the images: {} free, less than {} ([images] free_min): free space \
                 there; once it is full and the journal, too, writes wait",
                ByteSize(space.free_bytes).approximate(),
                ByteSize(space.free_bytes_min).approximate()
            ),
            GroupEvent::HistoryWillShrink { forecast, space, grace, .. } => format!(
                "history will shrink in {} s because of space ({}): the oldest points go, {} first, which gives back about {}; free space, \
                 raise [vault] history_max, or set a shorter ladder by `policy set --retain`",
                grace.as_secs(),
                room(*space),
                points(*forecast),
                ByteSize(forecast.bytes_max).approximate(),
            ),
            GroupEvent::HistoryShrinks { forecast } => format!(
                "{} went because of space, which gives back about {}",
                points(*forecast),
                ByteSize(forecast.bytes_max).approximate()
            ),
            GroupEvent::HistoryCannotShrink => "history should shrink because of space, but the oldest point is held, or \
                 being read, or the only one, or nothing comes back for the oldest: release it by `point release`, end its test failovers, or free \
                 space; for a point that does not fit, history of other groups in the same file system goes"
                .to_owned(),
            GroupEvent::ClockStepped(suspension) => format!(
                "no point goes by its age {}: if the clock is right, there is nothing to do; if not, set it right before then, or \
                 keep points from going by `group pause`",
                suspension.text()
            ),
            GroupEvent::LeapExcluded { doubtful } => format!(
                "the clock was set back: what a start took to have passed, {}, does not count as age of points any more",
                stretch(*doubtful)
            ),
            GroupEvent::Paused => "paused: no timed points are made, and none go, until `group resume`".to_owned(),
            GroupEvent::Resumed => "resumed: timed points are made again".to_owned(),
            GroupEvent::DiskLacking { disk, sectors } => format!(
                "points are without disk {disk} from now on: writes to its sectors {} rotted in the journal, or cannot be \
                 read from it, before a delta had them",
                ranges(sectors)
            ),
            GroupEvent::DiskLatched { disk, because } => format!(
                "disk {disk} is latched, and its writes fail: {because}: mend that, then `afterimage group resume`, or remove the disk, \
                 whose points stay"
            ),
            GroupEvent::DiskWhole { disk } => format!("points hold disk {disk} again"),
            GroupEvent::Renewed { disk, sectors } => {
                format!("{} of disk {disk} that points lacked were written anew with what it holds", counted(*sectors, "sector"))
            }
            GroupEvent::Withheld { disk, sectors } => format!(
                "writes to sectors {} of disk {disk} cannot be read from the journal, which keeps them while it has room: mend its \
                 device and run `group resume`, or give them up by `group resume --accept-loss`",
                ranges(sectors)
            ),
            GroupEvent::LossAccepted { disk, sectors } => format!(
                "writes to sectors {} of disk {disk} are lost, as was accepted: they hold something older, or zeros",
                ranges(sectors)
            ),
            GroupEvent::CheckpointRotten { disk, path, offset } => format!(
                "a bit has flipped in the checkpoint of disk {disk}: {} at byte {offset}: its other slot was used, and nothing is \
                 lost; a device that flips bits flips others: replace it",
                path.display()
            ),
            GroupEvent::SumsRotten { disk, path, offset } => format!(
                "bits have flipped in the header of the sums of disk {disk}'s image: {} at byte {offset}: its other copy was used, \
                 and nothing is lost; a device that flips bits flips others: replace it",
                path.display()
            ),
            GroupEvent::JournalCut { directory, broken, end, same_boot } => format!(
                "the journal {} was cut after record {end}: {}; what was acknowledged of records up to {} is lost: {}",
                directory.display(),
                broken.told(),
                broken.newest,
                why_cut(broken, *end, *same_boot),
            ),
            GroupEvent::JournalTorn { directory, broken } => format!(
                "the journal {} ends at {}: so it does after most deaths while something is written, and nothing that was flushed is \
                 lost then; bits of the last frame that flipped before anything followed it would look the same",
                directory.display(),
                broken.told(),
            ),
            GroupEvent::BaseSumsRotten { disk, path, offset, is_lost } => {
                let what = if *is_lost {
                    "both copies of a block are damaged, so that nobody can tell what those of its sectors should hold that were not written \
                     anew: they are refused; `vault verify` names them, and the points that show them"
                } else {
                    "one of the two copies of a block was damaged, and was written anew from the other one; nothing is lost"
                };
                format!(
                    "bits have flipped in the sums of the base of disk {disk}: {} at byte {offset}: {what}; a device that flips bits flips \
                     others: replace it",
                    path.display()
                )
            }
            GroupEvent::OverlaySumsRotten { export, path, offset } => format!(
                "bits have flipped in the sums of what was written to {export}: {} at byte {offset}: another copy was used, it was written \
                 anew, and nothing is lost; a device that flips bits flips others: replace it",
                path.display()
            ),
            GroupEvent::TestUnserved { what, error } => {
                format!("test failover {what} cannot be served, and can be ended: {error}")
            }
            GroupEvent::RequestsFailed { error, times } => {
                format!("{} failed: {error}", counted(*times, "request"))
            }
            GroupEvent::EventsLost { count } => {
                format!("{} up to here that nobody took in time; the log has them", counted(*count, "lost event"))
            }
        }
    }
}

/// All of them: who reads it may look for one.
pub(super) fn ranges(ranges: &Ranges) -> String {
    ranges.as_slice().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Whether what is lost had been acknowledged.
fn why_cut(broken: &Break, end: Lsn, same_boot: bool) -> &'static str {
    match (same_boot, broken.written > end) {
        (true, true) => "that loss was accepted",
        (true, false) => "it was written last before the process died, and may not have been",
        (false, _) => "no flush had covered it, and the power may have failed since",
    }
}

fn points(forecast: Forecast) -> String {
    counted(forecast.points, "point").to_string()
}

fn room(space: SpaceStatus) -> String {
    let free = format!(
        "{} free, of which {} are to stay free",
        ByteSize(space.left()).approximate(),
        ByteSize(space.free_bytes_min).approximate()
    );
    let room = match space.history_bytes_max {
        Some(max) => format!(
            "history takes {} of {}; {free}",
            ByteSize(space.history_bytes).approximate(),
            ByteSize(max).approximate()
        ),
        None => free,
    };
    let needs = |whose: &str, exceeds: Option<u64>| {
        let bytes = ByteSize(exceeds?).approximate();
        Some(format!("; {whose} needs more than {bytes}"))
    };
    let own = needs("the next point", space.point_exceeds);
    let others = needs("a point of another group, which has nothing left to give up,", space.others_exceed);
    format!("{room}{}{}", own.unwrap_or_default(), others.unwrap_or_default())
}

/// Makes room for one: the first says how many are gone, and when the last of them was.
fn lose_oldest(events: &mut Vec<TimedEvent>) {
    let known = match events[0].event {
        GroupEvent::EventsLost { count } => count,
        _ => 0,
    };
    let gone = if known == 0 { 2 } else { 1 };
    let time = events[1].time;
    events.remove(1);
    events[0] = TimedEvent { time, event: GroupEvent::EventsLost { count: known + gone } };
}

impl Group {
    /// Takes what happened since the last call, oldest first.
    pub fn take_events(&mut self) -> Vec<TimedEvent> {
        std::mem::take(&mut self.events)
    }

    pub(super) fn tell(&mut self, event: GroupEvent) {
        self.tell_timed(TimedEvent { time: self.runtime.wall(), event });
    }

    fn tell_timed(&mut self, told: TimedEvent) {
        let event = &told.event;
        let (name, code, text) = (&self.name, event.code(), event.text());
        match event.gravity() {
            Gravity::Note => tracing::info!(group = %name, code, "{text}"),
            Gravity::Warning => tracing::warn!(group = %name, code, "{text}"),
            Gravity::Fault => tracing::error!(group = %name, code, "{text}"),
        }
        if self.events.len() == WAITING_MAX {
            lose_oldest(&mut self.events);
        }
        self.events.push(told);
    }

    /// Says that a disk's checkpoint, or the header of the sums of its image, had rotted when the image was opened, if so.
    pub(super) fn tell_of_rot(&mut self, slot: DiskSlot, image: &Image) {
        let Some(disk) = self.disks.get(&slot).map(|disk| disk.record.name.clone()) else { return };
        if let Some((path, offset)) = image.rot() {
            let (disk, path) = (disk.clone(), path.to_owned());
            self.tell(GroupEvent::CheckpointRotten { disk, path, offset });
        }
        if let Some((path, offset)) = image.sums.rot() {
            let path = path.to_owned();
            self.tell(GroupEvent::SumsRotten { disk, path, offset });
        }
    }

    /// Says where the journal was cut at its opening. That the newest frame is torn is usual after any crash.
    pub(super) fn tell_of_break(&mut self, broken: Break, (directory, end): (&Path, Lsn)) {
        if broken.behind == 0 && broken.written <= end {
            return self.tell(GroupEvent::JournalTorn { directory: directory.to_owned(), broken });
        }
        let (directory, same_boot) = (directory.to_owned(), broken.is_of(self.runtime.boot()));
        self.tell(GroupEvent::JournalCut { directory, broken, end, same_boot });
    }

    /// Says what tasks have noted.
    pub(super) fn tell_noted(&mut self) {
        let noted = self.retention.events.take();
        noted.into_iter().for_each(|told| self.tell_timed(told));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_counted_in_its_place() {
        let event = |nanos| TimedEvent { time: WallNanos(nanos), event: GroupEvent::Paused };
        let mut events: Vec<TimedEvent> = (1..=5).map(event).collect();
        for (lost, first_left, count) in [(2, 3, 2), (3, 4, 3), (4, 5, 4)] {
            lose_oldest(&mut events);
            let loss = TimedEvent { time: WallNanos(lost), event: GroupEvent::EventsLost { count } };
            assert_eq!((&events[0], events[1].time), (&loss, WallNanos(first_left)));
        }
        assert_eq!(
            events[0].event.text(),
            "4 lost events up to here that nobody took in time; the log has them"
        );
    }
}
