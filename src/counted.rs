//! Counted nouns in text for people: `1 group`, `2 groups`, `3 latches`.

use std::fmt;

/// So many of something that `noun` names in the singular.
pub fn counted(count: impl TryInto<u64>, noun: &str) -> impl fmt::Display {
    // What does not fit is many.
    Counted { count: count.try_into().unwrap_or(u64::MAX), noun }
}

struct Counted<'a> {
    count: u64,
    noun: &'a str,
}

impl fmt::Display for Counted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counted { count, noun } = self;
        let ending = match noun.as_bytes() {
            _ if *count == 1 => "",
            [.., b's' | b'x'] | [.., b'c' | b's', b'h'] => "es",
            _ => "s",
        };
        write!(f, "{count} {noun}{ending}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_one_and_all_else_is_many() {
        for (count, noun, text) in [
            (0, "fault", "0 faults"),
            (1, "fault", "1 fault"),
            (2, "manifest step", "2 manifest steps"),
            (1, "latch", "1 latch"),
            (7, "latch", "7 latches"),
        ] {
            assert_eq!(counted(count, noun).to_string(), text);
        }
    }
}
