//! A run that is written down, act by act, instead of drawn from a seed: what a fuzzer varies, and a person can edit.
//!
//! ```text
//!  0        4        8       12
//!  ┌────────┬────────┬────────┬──────
//!  │ setting│ act 1  │ act 2  │ …            an act: kind, three bytes of arguments
//!  └────────┴────────┴────────┴──────
//! ```
//!
//! Every string of bytes is a script: bytes that are missing are zeros, what has no meaning is taken modulo what has, and acts
//! beyond [`ACTS_MAX`] are left out. What is still left to chance within an act (the order in which the disk completes
//! operations, which sectors survive a power cut) its own `dice` decide, and nothing that came before: so a change of one act
//! leaves the others what they were.

use crate::units::to_usize;

/// Length of the setting, and of each act.
pub const ACT_BYTES: usize = 4;
/// Acts of a script at most: many short runs find more than few long ones.
pub const ACTS_MAX: usize = 128;

/// Decides what an act leaves to chance.
pub type Dice = u16;

/// A whole run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// Sizes and limits.
    pub setting: Setting,
    /// What happens.
    pub acts: Vec<Act>,
}

/// Sizes and limits. Numbers choose from the tables of `play`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// Whether a second disk is there before the first act.
    pub two_disks: bool,
    /// The first act meets a process that is about to create the group, and no disk.
    pub starts_cold: bool,
    /// Nothing is sealed.
    pub is_plain: bool,
    /// Segments are larger, and writes may be.
    pub has_large_segments: bool,
    /// Journal segments beyond the least that a journal has: 0 to 7.
    pub more_segments: u8,
    /// Frame cache: 0 to 3.
    pub cache: u8,
    /// Journal bytes to an index run: 0 to 3.
    pub index: u8,
    /// Memory for maps: 0 to 3.
    pub maps: u8,
    /// What the vault may take: 0 to 3.
    pub space: u8,
    /// Time between points: 0 to 3.
    pub interval: u8,
    /// Which points are kept: 0 to 7.
    pub ladder: u8,
}

/// Where a request goes. The disk is one of those that there are; what lies beyond its end moves before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Which disk: 0 to 3.
    pub disk: u8,
    /// First sector.
    pub start: u8,
    /// How many more than one sector.
    pub more: u8,
}

/// What happens next. What can't happen, such as a request while nobody serves, is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Act {
    /// A client writes.
    Write { place: Place, durable: bool },
    /// A client zeroes, or trims unless it keeps the space.
    Zero { place: Place, durable: bool, keeps: bool },
    /// A client reads.
    Read { place: Place },
    /// A client flushes.
    Flush,
    /// Somebody asks for a recovery point.
    Point,
    /// The disk completes an operation and the process hears of it, so many times and once more.
    Work { more: u8, dice: Dice },
    /// The disk completes operations, also those of dead processes, and nobody hears of it yet.
    Land { more: u8, dice: Dice },
    /// The process goes on with what it heard, so many rounds and one more.
    Heed { more: u8 },
    /// All goes on until everything that was asked is answered, or for a while.
    Await { dice: Dice },
    /// Time passes: tens of microseconds.
    Pass { time: u16 },
    /// Time passes up to the next deadline.
    Deadline,
    /// Somebody sets the wall clock: by milliseconds.
    SetClock { step: i16 },
    /// kill -9: what is in flight lands wholly, partly, late or not.
    Kill { dice: Dice },
    /// The power goes: `severity` says how much stays of what was not synced, the dice say which sectors.
    PowerCut { severity: u8, dice: Dice },
    /// A clean stop.
    Stop { dice: Dice },
    /// An operation fails: one of the table of `play`, after so many others of its kind.
    Fail { fault: u8, after: u8 },
    /// A disk's image breaks until it is mended.
    Break { dice: Dice },
    /// Whatever is broken, or full, is mended.
    Mend,
    /// Somebody resumes the group.
    Resume,
    /// A disk joins.
    AddDisk { dice: Dice },
    /// A disk leaves.
    RemoveDisk { dice: Dice },
    /// Somebody changes the ladder, or holds, releases, deletes or reads a point.
    Retention { dice: Dice },
    /// A test failover starts or ends.
    TestFailover { dice: Dice },
    /// Somebody asks something of a test failover.
    AskTest { dice: Dice },
    /// The disk has hardly any space left.
    FillDisk { dice: Dice },
    /// Somebody has the group compared with its newest point.
    Verify,
}

const DURABLE: u8 = 1 << 7;
const KEEPS: u8 = 1 << 6;

impl Script {
    /// The script that `bytes` are.
    pub fn decode(bytes: &[u8]) -> Script {
        let mut records = bytes.chunks(ACT_BYTES).map(|chunk| {
            let mut record = [0; ACT_BYTES];
            record[..chunk.len()].copy_from_slice(chunk);
            record
        });
        let setting = Setting::decode(records.next().unwrap_or_default());
        Script { setting, acts: records.take(ACTS_MAX).map(Act::decode).collect() }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let acts = self.acts.iter().flat_map(|act| act.encode());
        self.setting.encode().into_iter().chain(acts).collect()
    }
}

impl Setting {
    fn decode([shape, memory, history, _]: [u8; ACT_BYTES]) -> Setting {
        Setting {
            two_disks: shape & 1 != 0,
            starts_cold: shape & 2 != 0,
            is_plain: shape & 4 != 0,
            has_large_segments: shape & 8 != 0,
            more_segments: shape >> 4 & 7,
            cache: memory & 3,
            index: memory >> 2 & 3,
            maps: memory >> 4 & 3,
            space: memory >> 6,
            interval: history & 3,
            ladder: history >> 2 & 7,
        }
    }

    fn encode(self) -> [u8; ACT_BYTES] {
        let flags = [self.two_disks, self.starts_cold, self.is_plain, self.has_large_segments];
        let flags = (0..).zip(flags).fold(0, |byte, (bit, flag)| byte | u8::from(flag) << bit);
        [
            flags | self.more_segments << 4,
            self.cache | self.index << 2 | self.maps << 4 | self.space << 6,
            self.interval | self.ladder << 2,
            0,
        ]
    }
}

impl Act {
    /// How many kinds there are.
    pub const KINDS: u8 = 26;

    fn decode([kind, a, b, c]: [u8; ACT_BYTES]) -> Act {
        let place = Place { disk: a & 3, start: b, more: c };
        let durable = a & DURABLE != 0;
        let pair = u16::from_be_bytes([b, c]);
        let dice = pair;
        match kind % Act::KINDS {
            0 => Act::Write { place, durable },
            1 => Act::Zero { place, durable, keeps: a & KEEPS != 0 },
            2 => Act::Read { place },
            3 => Act::Flush,
            4 => Act::Point,
            5 => Act::Work { more: a, dice },
            6 => Act::Land { more: a, dice },
            7 => Act::Heed { more: a },
            8 => Act::Await { dice },
            9 => Act::Pass { time: pair },
            10 => Act::Deadline,
            11 => Act::SetClock { step: i16::from_be_bytes([b, c]) },
            12 => Act::Kill { dice },
            13 => Act::PowerCut { severity: a, dice },
            14 => Act::Stop { dice },
            15 => Act::Fail { fault: a, after: b },
            16 => Act::Break { dice },
            17 => Act::Mend,
            18 => Act::Resume,
            19 => Act::AddDisk { dice },
            20 => Act::RemoveDisk { dice },
            21 => Act::Retention { dice },
            22 => Act::TestFailover { dice },
            23 => Act::AskTest { dice },
            24 => Act::FillDisk { dice },
            _ => Act::Verify,
        }
    }

    fn encode(self) -> [u8; ACT_BYTES] {
        let at = |kind, place: Place, flags| [kind, place.disk | flags, place.start, place.more];
        let with = |kind, a, pair: u16| [kind, a, pair.to_be_bytes()[0], pair.to_be_bytes()[1]];
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        match self {
            Act::Write { place, durable } => at(0, place, flag(durable, DURABLE)),
            Act::Zero { place, durable, keeps } => at(1, place, flag(durable, DURABLE) | flag(keeps, KEEPS)),
            Act::Read { place } => at(2, place, 0),
            Act::Flush => with(3, 0, 0),
            Act::Point => with(4, 0, 0),
            Act::Work { more, dice } => with(5, more, dice),
            Act::Land { more, dice } => with(6, more, dice),
            Act::Heed { more } => with(7, more, 0),
            Act::Await { dice } => with(8, 0, dice),
            Act::Pass { time } => with(9, 0, time),
            Act::Deadline => with(10, 0, 0),
            Act::SetClock { step } => with(11, 0, u16::from_be_bytes(step.to_be_bytes())),
            Act::Kill { dice } => with(12, 0, dice),
            Act::PowerCut { severity, dice } => with(13, severity, dice),
            Act::Stop { dice } => with(14, 0, dice),
            Act::Fail { fault, after } => [15, fault, after, 0],
            Act::Break { dice } => with(16, 0, dice),
            Act::Mend => with(17, 0, 0),
            Act::Resume => with(18, 0, 0),
            Act::AddDisk { dice } => with(19, 0, dice),
            Act::RemoveDisk { dice } => with(20, 0, dice),
            Act::Retention { dice } => with(21, 0, dice),
            Act::TestFailover { dice } => with(22, 0, dice),
            Act::AskTest { dice } => with(23, 0, dice),
            Act::FillDisk { dice } => with(24, 0, dice),
            Act::Verify => with(25, 0, 0),
        }
    }

    /// What decides what the act leaves to chance.
    pub(super) fn dice(self) -> Dice {
        match self {
            Act::Work { dice, .. }
            | Act::Land { dice, .. }
            | Act::Await { dice }
            | Act::Kill { dice }
            | Act::PowerCut { dice, .. }
            | Act::Stop { dice }
            | Act::Break { dice }
            | Act::AddDisk { dice }
            | Act::RemoveDisk { dice }
            | Act::Retention { dice }
            | Act::TestFailover { dice }
            | Act::AskTest { dice }
            | Act::FillDisk { dice } => dice,
            _ => 0,
        }
    }
}

/// One of `choices`, by number.
pub(super) fn choice<T: Copy>(choices: &[T], number: u8) -> T {
    choices[to_usize(u64::from(number)) % choices.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn every_string_of_bytes_is_a_script_and_every_script_a_string_of_bytes() {
        let mut random = Random::new(3);
        for len in 0..2000 {
            let script = Script::decode(&random.garbage(len));
            assert!(script.acts.len() <= ACTS_MAX);
            assert_eq!(Script::decode(&script.encode()), script);
        }
    }

    #[test]
    fn every_kind_of_act_is_reached_and_keeps_its_arguments() {
        let acts: Vec<Act> = (0..Act::KINDS).map(|kind| Act::decode([kind, 0xc1, 0x82, 0x43])).collect();
        for (index, act) in acts.iter().enumerate() {
            assert!(!acts[..index].contains(act), "{act:?} has two kinds");
            assert_eq!(usize::from(act.encode()[0]), index);
            assert_eq!(Act::decode(act.encode()), *act);
        }
    }
}
