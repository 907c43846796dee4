//! Values of options: text becomes what it means here, or is refused with what it is, why, and the mend. Clap says of which option.
//!
//! Options take values that begin with a hyphen, since clap's own refusal of these (`unexpected argument '-1'`, with a tip to write
//! `-- -1`) says nothing of the option. So each parser refuses what is an option and no value: whoever forgot the value of one
//! writes the next option in its place.

use std::fmt::Display;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use crate::byte_size::ByteSize;
use crate::control::model::{Policy, ReportQuery};
use crate::control::name::Label;
use crate::control::retain::Retain;
use crate::control::selector::PointSelector;
use crate::env::{Environment, OsEnvironment};
use crate::error::{Error, Result};
use crate::throttle::ByteRate;
use crate::units::{SECTOR_BYTES, SectorCount, WallNanos};

/// That `text` is no option that stands where a value should; `example` is one.
fn value<'a>(text: &'a str, example: &str) -> Result<&'a str> {
    match text.strip_prefix("--") {
        Some(_) => Err(Error::invalid(format!(
            "the value is missing, `{text}` is the next option: write for example {example}"
        ))),
        None => Ok(text),
    }
}

pub(super) fn rate(text: &str) -> Result<ByteRate> {
    let size: ByteSize = value(text, "100M")?.parse()?;
    let zero = || Error::invalid("rate = 0: nothing would be read: write for example 100M");
    NonZeroU64::new(size.0).map(ByteRate).ok_or_else(zero)
}

pub(super) fn disk_size(text: &str) -> Result<SectorCount> {
    let size = value(text, "20G")?.parse::<ByteSize>()?;
    if i64::try_from(size.0).is_err() {
        let text = format!(
            "`{text}` is longer than any file may be, which is less than 8192P: write for example 20G"
        );
        return Err(Error::invalid(text));
    }
    let no_size = format!(
        "`{text}` is no positive multiple of {SECTOR_BYTES} bytes, as a disk is: write for example 20G"
    );
    size.sectors().map_err(|_| Error::invalid(no_size))
}

pub(super) fn duration(text: &str) -> Result<Duration> {
    let no_duration =
        |error| Error::invalid(format!("`{text}` is not a duration ({error}): write for example 2m"));
    humantime::parse_duration(value(text, "2m")?).map_err(no_duration)
}

/// How far back a report reaches.
pub(super) fn last(text: &str) -> Result<Duration> {
    let last = duration(text)?;
    let ms = u64::try_from(last.as_millis()).unwrap_or(u64::MAX);
    if (ReportQuery::LAST_MS_MIN..=ReportQuery::LAST_MS_MAX).contains(&ms) {
        return Ok(last);
    }
    Err(Error::invalid(format!("`{text}` is out of range: write a duration from 1m to 366d, for example 7d")))
}

/// How long to wait for an answer.
pub(super) fn timeout(text: &str) -> Result<Duration> {
    match duration(text)? {
        Duration::ZERO => {
            Err(Error::invalid(format!("`{text}`: nothing answers in no time: write for example 10s")))
        }
        timeout => Ok(timeout),
    }
}

pub(super) fn interval(text: &str) -> Result<Policy> {
    let mend = "write a duration from 100ms to 24h, for example 1s";
    let duration = humantime::parse_duration(value(text, "1s")?)
        .map_err(|error| Error::invalid(format!("`{text}` is not a duration ({error}): {mend}")))?;
    let interval_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Policy { interval_ms }.checked().map_err(|_| Error::invalid(format!("`{text}` is out of range: {mend}")))
}

pub(super) fn retain(text: &str) -> Result<Retain> {
    value(text, "1h:all,24h:1m,15d:1h")?.parse()
}

pub(super) fn label(text: &str) -> Result<Label> {
    value(text, "before-upgrade")?.parse()
}

/// What begins with a hyphen is far more likely a time than a label, which `label:` in front chooses.
pub(super) fn point(text: &str) -> Result<PointSelector> {
    if let Some(rest) = value(text, "latest")?.strip_prefix('-') {
        let meant = match humantime::parse_duration(rest) {
            Ok(_) => format!("\"{rest} ago\""),
            Err(_) => "latest, an id's first digits, a label, \"10m ago\"".to_owned(),
        };
        return Err(Error::invalid(format!(
            "`{text}` is no recovery point: write {meant}, or label:{text} for the label"
        )));
    }
    PointSelector::parse(text, OsEnvironment::new().wall(), &jiff::tz::TimeZone::system())
}

pub(super) fn count(text: &str) -> Result<u32> {
    number(text, 0..=u32::MAX, "20")
}

/// So long ago, or then.
pub(super) fn since(text: &str) -> Result<WallNanos> {
    let text = value(text, "2h")?;
    if let Ok(age) = humantime::parse_duration(text) {
        let age = i64::try_from(age.as_nanos()).unwrap_or(i64::MAX);
        return Ok(WallNanos(OsEnvironment::new().wall().0.saturating_sub(age)));
    }
    let time = text.parse::<jiff::Timestamp>().ok().and_then(|time| i64::try_from(time.as_nanosecond()).ok());
    time.map(WallNanos).ok_or_else(|| {
        Error::invalid(format!(
            "`{text}` is neither a duration nor a time: write for example 2h, or 2026-11-21T14:03:00Z"
        ))
    })
}

/// A job's id: 32 hexadecimal digits.
pub(super) fn job(text: &str) -> Result<String> {
    let is_id = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id {
        return Ok(text.to_ascii_lowercase());
    }
    Err(Error::invalid(format!(
        "`{text}` is no job's id, which has 32 hexadecimal digits: `jobs` lists them"
    )))
}

pub(super) fn partition(text: &str) -> Result<u32> {
    number(text, 1..=u32::MAX, "1")
}

pub(super) fn test(text: &str) -> Result<u64> {
    number(text, 1..=u64::MAX, "1")
}

fn number<T: FromStr + PartialOrd + Display>(
    text: &str,
    legal: RangeInclusive<T>,
    example: &str,
) -> Result<T> {
    let number = value(text, example)?.parse().ok().filter(|number| legal.contains(number));
    number.ok_or_else(|| {
        let (from, to) = legal.into_inner();
        let text = format!("`{text}` is no whole number from {from} to {to}: write for example {example}");
        Error::invalid(text)
    })
}

#[cfg(test)]
mod tests {
    use crate::cli::arguments::Arguments;

    fn refused(line: &str) -> String {
        let words = std::iter::once("afterimage").chain(line.split(' '));
        Arguments::of(words).expect_err(line).to_string()
    }

    /// Clap's tip was to write `-- -1h`, which is none.
    #[test]
    fn a_value_that_begins_with_a_hyphen_is_refused_with_option_value_and_mend() {
        for (line, option, mend) in [
            ("policy set erp --retain -1h", "--retain <LADDER>", "1h:all,24h:1m,15d:1h"),
            ("events --limit -1", "--limit <COUNT>", "from 0 to 4294967295: write for example 20"),
            ("failover test erp --point -5m", "--point <", "write \"5m ago\", or label:-5m"),
            ("failover test erp --point -x", "--point <", "an id's first digits"),
            ("point delete erp -5m --yes", "<POINT>", "write \"5m ago\""),
            ("failover cleanup erp --test -1", "--test <N>", "write for example 1"),
            ("point mount erp/db --point latest --partition -1 /mnt", "--partition <N>", "from 1 to"),
        ] {
            let told = refused(line);
            let value = line.split(' ').find(|word| word.starts_with('-') && !word.starts_with("--"));
            let value = format!("`{}`", value.expect("one"));
            assert!([option, &value, mend].iter().all(|part| told.contains(part)), "{line}: {told}");
            assert!(!told.contains("tip:"), "{line}: {told}");
        }
    }

    #[test]
    fn an_option_in_the_place_of_a_value_is_no_value() {
        for (line, option, example) in [
            ("disk create erp/db --size --json", "--size <SIZE>", "20G"),
            ("disk resize erp/db --size --yes-lose-tail", "--size <SIZE>", "20G"),
            ("verify erp --rate --json", "--rate <SIZE>", "100M"),
            ("policy set erp --interval --json", "--interval <INTERVAL>", "1s"),
            ("policy set erp --retain --dry-run", "--retain <LADDER>", "1h:all"),
            ("events --limit --json", "--limit <COUNT>", "20"),
            ("failover test erp --point --read-only", "--point <", "latest"),
            ("point create erp --label --json", "--label <TEXT>", "before-upgrade"),
        ] {
            let told = refused(line);
            let missing = format!(
                "the value is missing, `{}` is the next option",
                line.rsplit(' ').next().expect("one")
            );
            assert!([option, &missing, example].iter().all(|part| told.contains(part)), "{line}: {told}");
        }
    }

    #[test]
    fn what_begins_with_a_hyphen_is_still_chosen_by_its_kind() {
        for line in
            ["point delete erp label:-5m", "point delete erp before --yes", "point create erp --label -x"]
        {
            let words = std::iter::once("afterimage").chain(line.split(' '));
            Arguments::of(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}
