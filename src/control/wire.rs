//! How the crate's ids, times and error kinds look in JSON: ids as 32 hexadecimal digits, times as RFC 3339 in UTC
//! with nanoseconds, LSNs and test numbers as numbers, error kinds as words.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::block::TestId;
use crate::error::ErrorKind;
use crate::units::{DiskId, GroupId, Lsn, PointId, WallNanos};

macro_rules! id_as_text {
    ($($id:ident),*) => {$(
        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$id, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    )*};
}

id_as_text!(DiskId, GroupId, PointId);

macro_rules! number {
    ($($number:ident),*) => {$(
        impl Serialize for $number {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_u64(self.0)
            }
        }

        impl<'de> Deserialize<'de> for $number {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$number, D::Error> {
                u64::deserialize(deserializer).map($number)
            }
        }
    )*};
}

number!(Lsn, TestId);

impl Serialize for WallNanos {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&rfc3339(*self))
    }
}

impl<'de> Deserialize<'de> for WallNanos {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WallNanos, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time: jiff::Timestamp = text.parse().map_err(D::Error::custom)?;
        wall_nanos(time).ok_or_else(|| D::Error::custom("a time between the years 1678 and 2262"))
    }
}

/// Exact, in UTC: a time that is cut short selects the point before it when it is written back to us.
pub(crate) fn rfc3339(time: WallNanos) -> String {
    let time =
        jiff::Timestamp::from_nanosecond(i128::from(time.0)).expect("jiff covers what 64 bits of ns cover");
    format!("{time:.9}")
}

/// The newtype of a timestamp that fits it.
pub(super) fn wall_nanos(time: jiff::Timestamp) -> Option<WallNanos> {
    i64::try_from(time.as_nanosecond()).ok().map(WallNanos)
}

/// Every kind and its word; the table is the mapping, both ways.
pub(super) const ERROR_KINDS: [(ErrorKind, &str); 14] = [
    (ErrorKind::Io, "io"),
    (ErrorKind::NoSpace, "no_space"),
    (ErrorKind::Corrupt, "corrupt"),
    (ErrorKind::Unsupported, "unsupported"),
    (ErrorKind::NoKey, "no_key"),
    (ErrorKind::Protocol, "protocol"),
    (ErrorKind::AlreadyExists, "already_exists"),
    (ErrorKind::NotFound, "not_found"),
    (ErrorKind::Invalid, "invalid"),
    (ErrorKind::Denied, "denied"),
    (ErrorKind::Fenced, "fenced"),
    (ErrorKind::Latched, "latched"),
    (ErrorKind::Locked, "locked"),
    (ErrorKind::Shutdown, "shutdown"),
];

impl Serialize for ErrorKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (_, word) = ERROR_KINDS.iter().find(|(kind, _)| kind == self).expect("every kind has a word");
        serializer.serialize_str(word)
    }
}

impl<'de> Deserialize<'de> for ErrorKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ErrorKind, D::Error> {
        let text = String::deserialize(deserializer)?;
        let known = ERROR_KINDS.iter().find(|(_, word)| *word == text);
        known.map(|(kind, _)| *kind).ok_or_else(|| D::Error::custom(format!("unknown error kind `{text}`")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_over_the_wire_comes_back() {
        let time = WallNanos(1_795_222_980_123_456_789);
        let json = serde_json::to_string(&time).unwrap();
        assert_eq!(json, "\"2026-11-21T01:03:00.123456789Z\"");
        assert_eq!(serde_json::from_str::<WallNanos>(&json).unwrap(), time);
        assert_eq!(rfc3339(WallNanos(i64::MIN)).len(), 30);
        let id = PointId(0xabc);
        assert_eq!(serde_json::from_str::<PointId>(&serde_json::to_string(&id).unwrap()).unwrap(), id);
        for (kind, _) in ERROR_KINDS {
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(serde_json::from_str::<ErrorKind>(&json).unwrap(), kind);
        }
    }
}
