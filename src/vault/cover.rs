//! Which summaries to use, and which to build: pure functions of what there is. `docs/opening-a-point.md` says why so.

use std::ops::Range;

/// Tables of a cover, for each part of a summary, that are too many however they came about.
const COVERS_MAX: usize = 16;

/// A part of a list of deltas that one table stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch<S> {
    /// Which deltas.
    pub deltas: Range<usize>,
    /// Their summary; the deltas' own tables where there is none.
    pub summary: Option<S>,
}

/// A stretch as far as the choice of what to build needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// The summary's level; 0 for a delta.
    pub level: u8,
    /// Whether it is a delta whose tables are long.
    pub is_long: bool,
}

/// The stretches that cover `count` deltas: from the first one on always the longest summary that `longest` knows to begin
/// at a delta and to end within the list.
pub fn cover<S>(count: usize, longest: impl Fn(usize) -> Option<(usize, S)>) -> Vec<Stretch<S>> {
    let mut stretches = Vec::new();
    let mut start = 0;
    while start < count {
        let (members, summary) = match longest(start) {
            Some((members, summary)) => (members, Some(summary)),
            None => (1, None),
        };
        stretches.push(Stretch { deltas: start..start + members, summary });
        start += members;
    }
    stretches
}

/// The stretches to make one summary of, and its level; `None` when all is well.
pub fn next_summary(weights: &[Weight], fan_out: usize) -> Option<(Range<usize>, u8)> {
    same_level(weights, fan_out)
        .or_else(|| long_delta(weights))
        .or_else(|| (weights.len() > COVERS_MAX * fan_out).then(|| at_most_level(weights, fan_out)).flatten())
}

/// The oldest neighbours of one level, the lowest level first.
fn same_level(weights: &[Weight], fan_out: usize) -> Option<(Range<usize>, u8)> {
    let mut runs = Vec::new();
    for run in weights.chunk_by(|a, b| a.level == b.level) {
        let start = runs.last().map_or(0, |&(end, _, _)| end);
        runs.push((start + run.len(), start, run[0].level));
    }
    let full = runs.into_iter().filter(|&(end, start, _)| end - start >= fan_out);
    full.min_by_key(|&(_, start, level)| (level, start))
        .and_then(|(_, start, level)| Some((start..start + fan_out, level.checked_add(1)?)))
}

fn long_delta(weights: &[Weight]) -> Option<(Range<usize>, u8)> {
    weights.iter().position(|weight| weight.level == 0 && weight.is_long).map(|at| (at..at + 1, 1))
}

/// The oldest neighbours of a level or below it, where one of that level stands behind those below: what points that went
/// have left in the midst.
fn at_most_level(weights: &[Weight], fan_out: usize) -> Option<(Range<usize>, u8)> {
    let top = weights.iter().map(|weight| weight.level).max()?;
    (1..=top).find_map(|level| {
        let last = weights.iter().rposition(|weight| weight.level >= level)?;
        let mut start = 0;
        for (at, weight) in weights[..=last].iter().enumerate() {
            if weight.level > level {
                start = at + 1;
            } else if at + 1 - start == fan_out {
                return Some((start..at + 1, level.checked_add(1)?));
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FAN_OUT: usize = 4;

    /// Levels of a cover, with the number of deltas of each stretch.
    type Tables = Vec<(u8, usize)>;

    fn weights(tables: &Tables) -> Vec<Weight> {
        tables.iter().map(|&(level, _)| Weight { level, is_long: false }).collect()
    }

    /// Builds until all is well; how many deltas were written into summaries.
    fn build(tables: &mut Tables) -> usize {
        let mut written = 0;
        while let Some((range, level)) = next_summary(&weights(tables), FAN_OUT) {
            let members = tables[range.clone()].iter().map(|&(_, members)| members).sum();
            written += members;
            tables.splice(range, [(level, members)]);
        }
        written
    }

    #[test]
    fn a_growing_history_has_few_tables_a_level_and_writes_each_delta_once_a_level() {
        let (mut tables, mut written) = (Tables::new(), 0);
        for count in 1..=5000 {
            tables.push((0, 1));
            written += build(&mut tables);
            let levels = usize::from(tables[0].0) + 1;
            assert!(tables.len() <= (FAN_OUT - 1) * levels, "{count}: {tables:?}");
            assert!(tables.is_sorted_by(|a, b| a.0 >= b.0), "{tables:?}");
        }
        assert_eq!(tables[0], (6, 4096));
        assert!(written <= 6 * 5000);
    }

    #[test]
    fn a_long_delta_is_summarized_alone_once() {
        let long = Weight { level: 0, is_long: true };
        let short = Weight { level: 0, is_long: false };
        assert_eq!(next_summary(&[short, long, short], FAN_OUT), Some((1..2, 1)));
        assert_eq!(next_summary(&[short, Weight { level: 1, is_long: false }, short], FAN_OUT), None);
    }

    #[test]
    fn the_longest_summary_within_the_list_is_taken() {
        let summaries = [(0, 2), (0, 4), (0, 16), (4, 4), (6, 2), (9, 1)];
        let longest = |count: usize| {
            move |start: usize| {
                let fits =
                    summaries.iter().filter(move |&&(at, members)| at == start && at + members <= count);
                fits.map(|&(_, members)| (members, members)).max()
            }
        };
        let found = |count| {
            let stretches = cover(count, longest(count)).into_iter();
            stretches.map(|stretch| (stretch.deltas.start, stretch.summary)).collect::<Vec<_>>()
        };
        assert_eq!(found(20), [(0, Some(16)), (16, None), (17, None), (18, None), (19, None)]);
        assert_eq!(found(10), [(0, Some(4)), (4, Some(4)), (8, None), (9, Some(1))]);
        assert_eq!(found(1), [(0, None)]);
        assert_eq!(found(0), []);
    }

    proptest! {
        /// Whatever holes points leave, building ends, and what is left is bounded.
        #[test]
        fn building_ends_with_few_tables(levels in proptest::collection::vec(0_u8..5, 0..600)) {
            let mut tables: Tables = levels.into_iter().map(|level| (level, 1)).collect();
            build(&mut tables);
            let levels = tables.iter().map(|&(level, _)| usize::from(level) + 1).max().unwrap_or(0);
            prop_assert!(tables.len() <= (COVERS_MAX * FAN_OUT).max((FAN_OUT - 1) * (levels + 1)), "{tables:?}");
        }
    }
}
