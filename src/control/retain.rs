//! A retention ladder as people write it: `1h:all,24h:1m,15d:1h`, or `all`.
//!
//! Text becomes a [`Ladder`] here and nowhere else, and is refused with the rung, the value and the mend.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::format::ladder::{Ladder, Rung};

const MEND: &str = "write rungs as AGE:SPACING, ages and spacings ascending, for example 1h:all,24h:1m,15d:1h, or all to keep every point";

/// Units, largest first, in milliseconds.
const UNITS: [(&str, u64); 6] =
    [("w", 7 * 86_400_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Which points a policy keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retain(pub Ladder);

impl FromStr for Retain {
    type Err = Error;

    fn from_str(text: &str) -> Result<Retain> {
        if text == "all" {
            return Ok(Retain(Ladder::keep_all()));
        }
        let rungs = text.split(',').map(rung).collect::<Result<Vec<_>>>()?;
        let legal = Ladder::new(rungs).map_err(|error| refused(text, &error.to_string()))?;
        Ok(Retain(legal))
    }
}

fn refused(what: &str, why: &str) -> Error {
    Error::invalid(format!("retain = `{what}`: {why}: {MEND}"))
}

fn rung(text: &str) -> Result<Rung> {
    let Some((age, spacing)) = text.trim().split_once(':') else {
        return Err(refused(text, "a rung has an age and a spacing"));
    };
    let until_ms = duration(age).ok_or_else(|| refused(text, &format!("`{age}` is no age")))?;
    let spacing_ms = match spacing {
        "all" => 0,
        spacing => duration(spacing).ok_or_else(|| refused(text, &format!("`{spacing}` is no spacing")))?,
    };
    Ok(Rung { until_ms, spacing_ms })
}

/// A whole number of a unit (s, m, h, d, w), above zero.
fn duration(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = text.split_at(digits);
    let unit = UNITS.iter().find(|(name, _)| *name == unit)?.1;
    count.parse::<u64>().ok()?.checked_mul(unit).filter(|&ms| ms > 0)
}

/// By the largest unit that divides it.
fn write_duration(f: &mut fmt::Formatter<'_>, ms: u64) -> fmt::Result {
    let (name, unit) = UNITS.iter().find(|(_, unit)| ms.is_multiple_of(*unit)).unwrap_or(&UNITS[5]);
    write!(f, "{}{name}", ms / unit)
}

impl fmt::Display for Retain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.rungs().is_empty() {
            return f.write_str("all");
        }
        for (index, rung) in self.0.rungs().iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write_duration(f, rung.until_ms)?;
            f.write_str(":")?;
            match rung.spacing_ms {
                0 => f.write_str("all")?,
                spacing => write_duration(f, spacing)?,
            }
        }
        Ok(())
    }
}

impl Serialize for Retain {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Retain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Retain, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ladders_survive_their_text() {
        for text in ["all", "1h:all", "1h:all,1d:1m,15d:1h", "30s:all,2w:1d", "90m:10s"] {
            assert_eq!(text.parse::<Retain>().expect(text).to_string(), text);
        }
        let default: Retain = "1h:all,24h:1m,15d:1h".parse().expect("legal");
        assert_eq!(default.0, Ladder::default());
    }

    #[test]
    fn what_is_no_ladder_is_refused_with_the_value_and_a_mend() {
        for (text, named) in [
            ("", "a rung has"),
            ("1h", "`1h`"),
            ("1x:all", "`1x`"),
            ("1h:often", "`often`"),
            ("0s:all", "`0s`"),
            ("24h:1m,1h:all", "ascend"),
            ("1h:2h", "at most the age"),
            ("99999999999999999999d:all", "no age"),
        ] {
            let error = text.parse::<Retain>().expect_err(text).to_string();
            assert!(error.contains(named) && error.contains("1h:all,24h:1m,15d:1h"), "{error}");
        }
    }
}
