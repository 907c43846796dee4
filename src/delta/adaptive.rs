//! Whether to try to compress the next chunk: guests write what is compressed or encrypted already in long runs, and
//! trying costs more than anything else that is done to a chunk.

/// Chunks that are passed over at most after one that did not pay.
const SKIP_MAX: u32 = 32;

/// What the chunks before said.
#[derive(Debug, Default)]
pub(super) struct Adaptive {
    /// How many are passed over after the next one that does not pay.
    backoff: u32,
    /// How many are still to be passed over.
    skip: u32,
}

impl Adaptive {
    /// Tries it, unless the last tries say that it is in vain.
    pub(super) fn compress<T>(&mut self, attempt: impl FnOnce() -> Option<T>) -> Option<T> {
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let packed = attempt();
        self.backoff = match packed {
            Some(_) => 0,
            None => (self.backoff * 2).clamp(1, SKIP_MAX),
        };
        self.skip = self.backoff;
        packed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tries(chunks: impl Iterator<Item = bool>) -> Vec<usize> {
        let mut adaptive = Adaptive::default();
        let mut tried = Vec::new();
        for (index, pays) in chunks.enumerate() {
            adaptive.compress(|| {
                tried.push(index);
                pays.then_some(())
            });
        }
        tried
    }

    #[test]
    fn what_pays_is_tried_each_time_and_what_does_not_ever_more_seldom() {
        assert_eq!(tries([true; 5].into_iter()), [0, 1, 2, 3, 4]);
        assert_eq!(tries([false; 16].into_iter()), [0, 2, 5, 10]);
        let long = tries([false; 1000].into_iter());
        assert!(long.windows(2).all(|pair| pair[1] - pair[0] <= 33) && long.len() < 40);
    }

    #[test]
    fn one_that_pays_ends_the_waiting() {
        let chunks = (0..20).map(|index| index >= 5);
        assert_eq!(tries(chunks), [0, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]);
    }
}
