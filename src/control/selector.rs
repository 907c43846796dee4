//! Which recovery point a person means: `latest`, an id, a label, or a time.
//!
//! Text ends at [`PointSelector::parse`], which needs to know what time it is and where the person lives; the typed
//! selector travels as canonical text ([`Display`](fmt::Display)). [`resolve`] is pure. What could mean two points
//! is an error that lists them: nobody restores the wrong moment because we guessed.

use std::fmt;
use std::time::Duration;

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::model::Point;
use super::wire::{rfc3339, wall_nanos};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{PointId, WallNanos};

/// Fewest digits of an abbreviated id: shorter ones are too easily something else.
pub const ID_PREFIX_DIGITS_MIN: usize = 4;
const ID_DIGITS: usize = 32;
/// How many candidates an ambiguity lists before it says how many more there are.
const CANDIDATES_LISTED: usize = 8;

/// Which point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PointSelector {
    /// The newest.
    Latest,
    /// The one whose id begins like this.
    Id(IdPrefix),
    /// The one with this label.
    Label(String),
    /// The newest at or before this time.
    Time(WallNanos),
    /// The one whose label this is or whose id begins like this: the text could be either.
    IdOrLabel(IdPrefix, String),
}

/// The first 4 to 32 digits of a point's id, lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdPrefix(String);

impl IdPrefix {
    fn parse(text: &str) -> Option<IdPrefix> {
        let fits = (ID_PREFIX_DIGITS_MIN..=ID_DIGITS).contains(&text.len());
        (fits && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .then(|| IdPrefix(text.to_ascii_lowercase()))
    }

    fn matches(&self, id: PointId) -> bool {
        id.to_string().starts_with(&self.0)
    }
}

impl PointSelector {
    /// What `text` means at the moment `now` to somebody in `zone`.
    ///
    /// `latest`; an id's first digits; a label; a time: RFC 3339, `2026-11-21 14:03[:05]` in `zone` (or in UTC with
    /// ` UTC` or `Z` behind it), or `10m ago`. `id:`, `label:` and `time:` in front force one reading.
    pub fn parse(text: &str, now: WallNanos, zone: &TimeZone) -> Result<PointSelector> {
        let text = text.trim();
        if let Some(prefix) = text.strip_prefix("id:") {
            return IdPrefix::parse(prefix).map(PointSelector::Id).ok_or_else(|| {
                Error::invalid(format!(
                    "`{text}`: an id is {ID_PREFIX_DIGITS_MIN} to {ID_DIGITS} hexadecimal digits"
                ))
            });
        }
        if let Some(label) = text.strip_prefix("label:") {
            return Ok(PointSelector::Label(label.to_owned()));
        }
        if let Some(time) = text.strip_prefix("time:") {
            return parse_time(time, now, zone)?.map(PointSelector::Time).ok_or_else(|| not_a_time(time));
        }
        match text {
            "" => Err(Error::invalid("an empty point: write latest, an id, a label or a time")),
            "latest" => Ok(PointSelector::Latest),
            _ => Ok(match (parse_time(text, now, zone)?, IdPrefix::parse(text)) {
                (Some(time), _) => PointSelector::Time(time),
                (None, Some(prefix)) => PointSelector::IdOrLabel(prefix, text.to_owned()),
                (None, None) => PointSelector::Label(text.to_owned()),
            }),
        }
    }
}

/// Canonical: parses back to the same selector whatever the time and zone, except that what could be an id or a
/// label stays so.
impl fmt::Display for PointSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PointSelector::Latest => f.write_str("latest"),
            PointSelector::Id(prefix) => write!(f, "id:{}", prefix.0),
            PointSelector::Label(label) => write!(f, "label:{label}"),
            PointSelector::Time(time) => write!(f, "time:{}", rfc3339(*time)),
            PointSelector::IdOrLabel(_, text) => f.write_str(text),
        }
    }
}

impl Serialize for PointSelector {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// From canonical text, or any other that needs no clock: a civil time is read as UTC.
impl<'de> Deserialize<'de> for PointSelector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<PointSelector, D::Error> {
        let text = String::deserialize(deserializer)?;
        if relative(text.strip_prefix("time:").unwrap_or(&text)).is_some() {
            return Err(D::Error::custom(format!(
                "`{text}`: the API takes no relative times: write RFC 3339"
            )));
        }
        PointSelector::parse(&text, WallNanos::default(), &TimeZone::UTC).map_err(D::Error::custom)
    }
}

fn not_a_time(text: &str) -> Error {
    Error::invalid(format!(
        "`{text}` is not a time: write 2026-11-21T14:03:05Z, \"2026-11-21 14:03\" or \"10m ago\""
    ))
}

/// How long ago `text` says that it was; `None` where it says something else.
fn relative(text: &str) -> Option<Duration> {
    humantime::parse_duration(text.strip_suffix(" ago")?.trim()).ok()
}

/// The time that `text` names; `None` if it isn't one, an error if it is one that can't be.
fn parse_time(text: &str, now: WallNanos, zone: &TimeZone) -> Result<Option<WallNanos>> {
    if let Some(duration) = relative(text) {
        let nanos = i64::try_from(duration.as_nanos()).ok().and_then(|nanos| now.0.checked_sub(nanos));
        return nanos.map(|nanos| Some(WallNanos(nanos))).ok_or_else(|| not_a_time(text));
    }
    if let Ok(timestamp) = text.parse::<jiff::Timestamp>() {
        return wall_nanos(timestamp).map(Some).ok_or_else(|| not_a_time(text));
    }
    let (civil, zone) = match text.strip_suffix("UTC").or_else(|| text.strip_suffix('Z')) {
        Some(civil) => (civil.trim_end(), &TimeZone::UTC),
        None => (text, zone),
    };
    let Some(civil) = parse_civil(civil) else { return Ok(None) };
    let zoned = zone.to_ambiguous_zoned(civil).unambiguous().map_err(|_| {
        Error::invalid(format!("`{text}` happened twice or never where clocks are changed: write it in UTC"))
    })?;
    wall_nanos(zoned.timestamp()).map(Some).ok_or_else(|| not_a_time(text))
}

/// Refuses a label that [`PointSelector::parse`] takes for something else: whoever wrote it there would get another point.
pub fn refuse_ambiguous(label: &str, now: WallNanos) -> Result<()> {
    let what = match PointSelector::parse(label, now, &TimeZone::UTC) {
        Ok(PointSelector::Latest) => "the newest point",
        Ok(PointSelector::Time(_)) => "a time",
        _ => return Ok(()),
    };
    Err(Error::invalid(format!("label = `{label}`: --point would take it for {what}: choose other words")))
}

fn parse_civil(text: &str) -> Option<DateTime> {
    // A date alone, which jiff would take for its midnight, is too likely a label such as 20261121.
    let looks_like_one = text.len() >= "2026-11-21 14:03".len() && text.as_bytes().get(4) == Some(&b'-');
    if looks_like_one { text.parse().ok() } else { None }
}

/// The point that `selector` means among all points of a group, at the moment `now`.
///
/// A time after the newest point is refused: what the disks held then is not, or not yet, a recovery point, and the
/// newest one is not what was asked for.
pub fn resolve<'a>(selector: &PointSelector, points: &'a [Point], now: WallNanos) -> Result<&'a Point> {
    let newest = |points: &mut dyn Iterator<Item = &'a Point>| points.max_by_key(|point| point.lsn);
    match selector {
        PointSelector::Latest => newest(&mut points.iter())
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "the group has no recovery point yet")),
        PointSelector::Time(time) => {
            refuse_later(*time, points, now)?;
            newest(&mut points.iter().filter(|point| point.time <= *time))
                .ok_or_else(|| none_before(*time, points))
        }
        PointSelector::Id(prefix) => {
            the_only(selector, points.iter().filter(|point| prefix.matches(point.id)))
        }
        PointSelector::Label(label) => {
            the_only(selector, points.iter().filter(|point| labelled(point, label)))
        }
        PointSelector::IdOrLabel(prefix, label) => the_only(
            selector,
            points.iter().filter(|point| prefix.matches(point.id) || labelled(point, label)),
        ),
    }
}

fn labelled(point: &Point, label: &str) -> bool {
    point.label.as_deref() == Some(label)
}

fn the_only<'a>(selector: &PointSelector, matching: impl Iterator<Item = &'a Point>) -> Result<&'a Point> {
    let candidates: Vec<&Point> = matching.collect();
    match candidates[..] {
        [point] => Ok(point),
        [] => Err(Error::new(
            ErrorKind::NotFound,
            format!("{}: 'point list' shows ids, times and labels", nothing_is(selector)),
        )),
        _ => Err(Error::invalid(format!(
            "`{selector}` could be any of {} recovery points: {}: write an id",
            candidates.len(),
            list(&candidates)
        ))),
    }
}

/// That no point is what was asked for, in the words of the person who asked.
fn nothing_is(selector: &PointSelector) -> String {
    match selector {
        PointSelector::Id(prefix) => format!("no recovery point's id begins with `{}`", prefix.0),
        PointSelector::Label(label) if is_short_id(label) => format!(
            "no recovery point has the label `{label}`, and it is too short for an id, of which at least \
             {ID_PREFIX_DIGITS_MIN} digits are wanted"
        ),
        PointSelector::Label(label) => {
            let hour = label.parse::<Date>().map_or(String::new(), |date| {
                format!(", and a time is written with its hour, as in \"{date} 14:03\"")
            });
            format!("no recovery point has the label `{label}`{hour}")
        }
        PointSelector::IdOrLabel(_, text) => {
            format!("no recovery point has the label `{text}`, nor an id that begins with it")
        }
        PointSelector::Latest | PointSelector::Time(_) => format!("no recovery point is `{selector}`"),
    }
}

fn is_short_id(text: &str) -> bool {
    text.len() < ID_PREFIX_DIGITS_MIN && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn list(candidates: &[&Point]) -> String {
    let mut shown: Vec<String> = candidates
        .iter()
        .take(CANDIDATES_LISTED)
        .map(|point| match &point.label {
            Some(label) => format!("{} ({}, \"{label}\")", point.id, rfc3339(point.time)),
            None => format!("{} ({})", point.id, rfc3339(point.time)),
        })
        .collect();
    if candidates.len() > CANDIDATES_LISTED {
        shown.push(format!("and {} more", candidates.len() - CANDIDATES_LISTED));
    }
    shown.join(", ")
}

/// Points order by LSN, but a clock that was set back leaves one with a later time before the newest: so far a time
/// can be chosen.
fn refuse_later(time: WallNanos, points: &[Point], now: WallNanos) -> Result<()> {
    let Some(newest) = points.iter().max_by_key(|point| point.time).filter(|newest| newest.time < time)
    else {
        return Ok(());
    };
    let (asked, newest) = (rfc3339(time), format!("{} of {}", newest.id, rfc3339(newest.time)));
    if time > now {
        return Err(Error::invalid(format!(
            "{asked} lies in the future: the newest recovery point is {newest}: write an earlier time, or `latest`"
        )));
    }
    let text = format!(
        "no recovery point holds what was there at {asked}: the newest is {newest}: write `latest`, or make a point \
         of now with `point create`"
    );
    Err(Error::new(ErrorKind::NotFound, text))
}

fn none_before(time: WallNanos, points: &[Point]) -> Error {
    let context = match points.iter().min_by_key(|point| point.lsn) {
        Some(oldest) => format!(
            "no recovery point at or before {}: the oldest is of {}",
            rfc3339(time),
            rfc3339(oldest.time)
        ),
        None => "the group has no recovery point yet".to_owned(),
    };
    Error::new(ErrorKind::NotFound, context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::model::PointKind;
    use crate::units::Lsn;

    const SECOND: i64 = 1_000_000_000;
    /// 2026-11-21T14:00:00Z
    const NOW: WallNanos = WallNanos(1_795_269_600 * SECOND);

    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn parse(text: &str) -> Result<PointSelector> {
        PointSelector::parse(text, NOW, &berlin())
    }

    fn point(id: u128, lsn: u64, seconds_ago: i64, label: Option<&str>) -> Point {
        Point {
            id: PointId(id),
            lsn: Lsn(lsn),
            time: WallNanos(NOW.0 - seconds_ago * SECOND),
            kind: PointKind::Crash,
            label: label.map(str::to_owned),
            delta_bytes: 0,
            held: false,
            lacks: Vec::new(),
        }
    }

    fn points() -> Vec<Point> {
        vec![
            point(0xaaaa_1111 << 96, 10, 300, Some("before-upgrade")),
            point(0xaaaa_2222 << 96, 20, 200, Some("nightly")),
            point(0xbbbb_3333 << 96, 30, 100, Some("nightly")),
            point(0xcafe_4444 << 96, 40, 50, Some("beef")),
            point(0xbeef_5555 << 96, 50, 10, None),
        ]
    }

    #[test]
    fn times_are_read_where_the_person_lives() {
        let at = |offset: i64| PointSelector::Time(WallNanos(NOW.0 + offset * SECOND));
        for (text, expected) in [
            ("2026-11-21T14:00:00Z", at(0)),
            ("2026-11-21T15:00:00.5+01:00", PointSelector::Time(WallNanos(NOW.0 + SECOND / 2))),
            ("2026-11-21 15:00", at(0)),
            ("2026-11-21 15:00:05", at(5)),
            ("2026-11-21T15:00", at(0)),
            ("2026-11-21 14:00 UTC", at(0)),
            ("2026-11-21 14:00Z", at(0)),
            ("10m ago", at(-600)),
            ("1h 30m ago", at(-5400)),
            ("time:10m ago", at(-600)),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn an_hour_that_clocks_repeat_or_skip_is_refused() {
        for text in ["2026-10-25 02:30", "2026-03-29 02:30"] {
            assert!(parse(text).unwrap_err().to_string().contains("UTC"), "{text}");
        }
    }

    #[test]
    fn other_words_are_ids_or_labels() {
        assert_eq!(parse("latest").unwrap(), PointSelector::Latest);
        assert_eq!(parse("before-upgrade").unwrap(), PointSelector::Label("before-upgrade".into()));
        assert_eq!(parse("abc").unwrap(), PointSelector::Label("abc".into()));
        assert_eq!(parse("long ago").unwrap(), PointSelector::Label("long ago".into()));
        assert_eq!(parse("label:latest").unwrap(), PointSelector::Label("latest".into()));
        assert!(matches!(parse("CAFE").unwrap(), PointSelector::IdOrLabel(_, _)));
        assert!(matches!(parse("20261121").unwrap(), PointSelector::IdOrLabel(_, _)));
        assert!(matches!(parse("id:CAFE").unwrap(), PointSelector::Id(_)));
        for bad in ["", "id:abc", "id:xyzw", "time:soon", "500y ago"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_label_that_means_something_else_is_refused_for_what_it_means() {
        for (label, what) in [
            ("latest", "for the newest point"),
            ("2026-11-21 15:00", "for a time"),
            ("10m ago", "for a time"),
        ] {
            let error = refuse_ambiguous(label, NOW).expect_err(label).to_string();
            assert!(error.contains(&format!("`{label}`")) && error.contains(what), "{error}");
        }
        for label in ["before-upgrade", "cafe", "20261121", "latest-good"] {
            refuse_ambiguous(label, NOW).expect(label);
        }
    }

    #[test]
    fn canonical_text_means_the_same_elsewhere() {
        for text in ["latest", "id:cafe", "label:10m ago", "2026-11-21 15:00", "cafe", "x"] {
            let selector = parse(text).unwrap();
            let json = serde_json::to_string(&selector).unwrap();
            assert_eq!(serde_json::from_str::<PointSelector>(&json).unwrap(), selector, "{text}");
        }
        assert!(serde_json::from_str::<PointSelector>("\"10m ago\"").is_err());
    }

    #[test]
    fn the_newest_at_or_before_a_time() {
        let points = points();
        let at = |seconds_ago: i64| {
            resolve(&PointSelector::Time(WallNanos(NOW.0 - seconds_ago * SECOND)), &points, NOW)
        };
        assert_eq!(at(10).unwrap().lsn, Lsn(50));
        assert_eq!(at(100).unwrap().lsn, Lsn(30));
        assert_eq!(at(101).unwrap().lsn, Lsn(20));
        let error = at(301).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("the oldest is of 2026-11-21T13:55:00"), "{error}");
    }

    #[test]
    fn a_time_after_the_newest_point_is_refused_and_the_point_named() {
        let points = [point(1, 10, 300, None), point(2, 20, 60, None)];
        let at = |seconds_ago: i64| {
            resolve(&PointSelector::Time(WallNanos(NOW.0 - seconds_ago * SECOND)), &points, NOW)
        };
        assert_eq!(at(60).unwrap().lsn, Lsn(20), "its own time is not after it");
        for (seconds_ago, kind, says) in [
            (59, ErrorKind::NotFound, "`point create`"),
            (0, ErrorKind::NotFound, "`point create`"),
            (-1, ErrorKind::Invalid, "2026-11-21T14:00:01.000000000Z lies in the future"),
        ] {
            let error = at(seconds_ago).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            let newest = format!("{} of 2026-11-21T13:59:00.000000000Z", points[1].id);
            assert!(error.to_string().contains(says) && error.to_string().contains(&newest), "{error}");
        }
        let none = resolve(&PointSelector::Time(WallNanos(NOW.0 + 1)), &[], NOW).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::NotFound, "{none}");
    }

    #[test]
    fn points_are_ordered_by_lsn_when_a_clock_was_set_back() {
        let points = [point(1, 10, 0, None), point(2, 20, 60, None)];
        assert_eq!(resolve(&PointSelector::Latest, &points, NOW).unwrap().lsn, Lsn(20));
        assert_eq!(resolve(&PointSelector::Time(NOW), &points, NOW).unwrap().lsn, Lsn(20));
    }

    #[test]
    fn one_match_is_it_and_two_are_listed() {
        let points = points();
        let by = |text: &str| resolve(&parse(text).unwrap(), &points, NOW).map(|point| point.lsn.0);
        assert_eq!(by("latest").unwrap(), 50);
        assert_eq!(by("aaaa1").unwrap(), 10);
        assert_eq!(by("CAFE").unwrap(), 40);
        assert_eq!(by("before-upgrade").unwrap(), 10);
        assert_eq!(by("id:beef").unwrap(), 50);
        assert_eq!(by("label:beef").unwrap(), 40);
        for (text, listed) in [
            ("aaaa", ["aaaa1111", "aaaa2222"]),
            ("nightly", ["aaaa2222", "bbbb3333"]),
            ("beef", ["cafe4444", "beef5555"]),
        ] {
            let error = by(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(listed.iter().all(|id| error.to_string().contains(id)), "{error}");
        }
        for (text, says) in [
            ("dddd", "the label `dddd`, nor an id"),
            ("zzz", "no recovery point has the label `zzz`"),
            ("1999-01-01", "as in \"1999-01-01 14:03\""),
            ("label:zzz", "no recovery point has the label `zzz`"),
            ("id:dddd", "id begins with `dddd`"),
        ] {
            let error = by(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            let told = error.to_string();
            assert!(told.contains(says) && told.contains("'point list'"), "{told}");
        }
        assert_eq!(resolve(&PointSelector::Latest, &[], NOW).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_long_list_of_candidates_is_cut() {
        let points: Vec<Point> = (0..20).map(|n| point(n, u64::try_from(n).unwrap(), 0, Some("x"))).collect();
        let error = resolve(&PointSelector::Label("x".into()), &points, NOW).unwrap_err().to_string();
        assert!(error.contains("any of 20") && error.contains("and 12 more"), "{error}");
    }
}
