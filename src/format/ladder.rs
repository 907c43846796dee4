//! The retention ladder: how long a group's points are kept, and how densely; its encoding.
//!
//! What becomes of the points is `vault::plan`'s to say; how people write a ladder, `control`'s.

use super::codec::{Decoder, Encoder};
use crate::error::{Error, Result};

/// Rungs that a ladder has at most.
pub const RUNGS_MAX: usize = 16;
/// Longest age that a rung may have: 1,000 years, so that sums of ages and times do not overflow.
pub const AGE_MS_MAX: u64 = 1000 * 366 * DAY_MS;

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// Points up to an age, and how far apart they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rung {
    /// The age up to which it holds, in milliseconds of group time.
    pub until_ms: u64,
    /// Of each so many milliseconds one point stays; 0: all of them do.
    pub spacing_ms: u64,
}

/// The rungs, by age; none: every point is kept for ever.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ladder {
    rungs: Vec<Rung>,
}

impl Default for Ladder {
    /// Every point for an hour, one a minute for a day, one an hour for fifteen days.
    fn default() -> Ladder {
        let rung = |until_ms, spacing_ms| Rung { until_ms, spacing_ms };
        Ladder { rungs: vec![rung(HOUR_MS, 0), rung(DAY_MS, 60_000), rung(15 * DAY_MS, HOUR_MS)] }
    }
}

impl Ladder {
    /// A ladder of these rungs: ages and spacings ascend, and no spacing is longer than its rung's age.
    pub fn new(rungs: Vec<Rung>) -> Result<Ladder> {
        if rungs.len() > RUNGS_MAX {
            let text = format!("{} rungs: a ladder has at most {RUNGS_MAX}", rungs.len());
            return Err(Error::invalid(text));
        }
        let is_legal =
            |rung: &Rung| (1..=AGE_MS_MAX).contains(&rung.until_ms) && rung.spacing_ms <= rung.until_ms;
        if let Some(rung) = rungs.iter().find(|rung| !is_legal(rung)) {
            let Rung { until_ms, spacing_ms } = rung;
            let text = format!(
                "a rung of {until_ms} ms with spacing {spacing_ms} ms: ages are 1 ms to 1000 years, spacings at most the age"
            );
            return Err(Error::invalid(text));
        }
        let ascends =
            |pair: &[Rung]| pair[0].until_ms < pair[1].until_ms && pair[0].spacing_ms < pair[1].spacing_ms;
        if !rungs.windows(2).all(ascends) {
            return Err(Error::invalid("a ladder's ages and spacings must ascend from rung to rung"));
        }
        Ok(Ladder { rungs })
    }

    /// Keeps every point for ever.
    pub fn keep_all() -> Ladder {
        Ladder { rungs: Vec::new() }
    }

    /// Its rungs, by age.
    pub fn rungs(&self) -> &[Rung] {
        &self.rungs
    }

    pub(super) fn encode(&self, to: &mut Encoder) {
        to.count(self.rungs.len());
        for rung in &self.rungs {
            to.u64(rung.until_ms);
            to.u64(rung.spacing_ms);
        }
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Ladder> {
        let count = from.count(16, "rung count")?;
        let rungs = (0..count)
            .map(|_| Ok(Rung { until_ms: from.u64("rung age")?, spacing_ms: from.u64("rung spacing")? }))
            .collect::<Result<Vec<_>>>()?;
        Ladder::new(rungs).map_err(|error| from.corrupt(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ladders_that_ascend_are_ladders() {
        let ladder = |rungs: &[(u64, u64)]| {
            let rungs = rungs.iter().map(|&(until_ms, spacing_ms)| Rung { until_ms, spacing_ms });
            Ladder::new(rungs.collect())
        };
        for good in [&[][..], &[(1, 0)], &[(10, 10)], &[(10, 0), (20, 1), (30, 20)]] {
            assert!(ladder(good).is_ok(), "{good:?}");
        }
        let long = [(AGE_MS_MAX + 1, 0)];
        for bad in
            [&[(0, 0)][..], &[(5, 6)], &[(10, 0), (10, 1)], &[(10, 2), (20, 2)], &[(10, 2), (20, 0)], &long]
        {
            assert!(ladder(bad).is_err(), "{bad:?}");
        }
        assert!(
            Ladder::new((1..=17).map(|age| Rung { until_ms: age * 100, spacing_ms: age }).collect()).is_err()
        );
        assert_eq!(Ladder::new(Ladder::default().rungs().to_vec()).ok(), Some(Ladder::default()));
    }
}
