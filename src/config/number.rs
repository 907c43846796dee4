//! Numbers of a configuration: whole ones within bounds, however wrong what stands in their place is.

use std::fmt;
use std::num::NonZeroUsize;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use super::error::{Fault, quoted};

/// A number, or what stands in its place, as TOML writes it.
pub(super) struct RawNumber {
    shown: String,
    /// None where it is not a whole number; a number that no count can be is zero, which none may be either.
    whole: Option<usize>,
}

impl RawNumber {
    fn whole(number: impl TryInto<usize> + fmt::Display) -> RawNumber {
        RawNumber { shown: number.to_string(), whole: Some(number.try_into().unwrap_or(0)) }
    }

    fn other(shown: impl fmt::Display) -> RawNumber {
        RawNumber { shown: shown.to_string(), whole: None }
    }
}

/// A count that a key has, from 1 to `max`.
pub(super) fn count_between(key: &str, value: &RawNumber, max: usize) -> Result<NonZeroUsize, Fault> {
    let Some(count) = value.whole else {
        let mend = format!("write a number from 1 to {max}, without quotes");
        return Err(Fault::of(key, &value.shown, "not a whole number", mend));
    };
    let parsed = NonZeroUsize::new(count).filter(|count| count.get() <= max);
    let fault = || Fault::of(key, &value.shown, "out of range", format!("write a number from 1 to {max}"));
    parsed.ok_or_else(fault)
}

impl<'de> Deserialize<'de> for RawNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawNumber, D::Error> {
        deserializer.deserialize_any(NumberVisitor)
    }
}

/// Takes anything: numbers beyond 64 bits, which `toml::Value` refuses in words of its own, as well as what is none.
struct NumberVisitor;

impl<'de> Visitor<'de> for NumberVisitor {
    type Value = RawNumber;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_i64<E>(self, number: i64) -> Result<RawNumber, E> {
        Ok(RawNumber::whole(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<RawNumber, E> {
        Ok(RawNumber::whole(number))
    }

    fn visit_i128<E>(self, number: i128) -> Result<RawNumber, E> {
        Ok(RawNumber::whole(number))
    }

    fn visit_u128<E>(self, number: u128) -> Result<RawNumber, E> {
        Ok(RawNumber::whole(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<RawNumber, E> {
        Ok(RawNumber::other(toml::Value::from(number)))
    }

    fn visit_bool<E>(self, truth: bool) -> Result<RawNumber, E> {
        Ok(RawNumber::other(truth))
    }

    fn visit_str<E>(self, text: &str) -> Result<RawNumber, E> {
        Ok(RawNumber::other(quoted(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<RawNumber, A::Error> {
        toml::Value::deserialize(SeqAccessDeserializer::new(list)).map(RawNumber::other)
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<RawNumber, A::Error> {
        toml::Value::deserialize(MapAccessDeserializer::new(table)).map(RawNumber::other)
    }
}
