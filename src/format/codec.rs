//! Little-endian scalars and strings of variable bodies, appended and taken one after the other.
//!
//! Not for fixed headers, which are zerocopy structs. A [`Decoder`] never looks past its input, and says at which
//! offset it stumbled.

use crate::error::{Error, Result};

/// Appends values to a body.
#[derive(Debug, Default)]
pub(crate) struct Encoder(Vec<u8>);

impl Encoder {
    pub(crate) fn new() -> Encoder {
        Encoder::default()
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn flag(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn i64(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u128(&mut self, value: u128) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Length, then bytes. Records are checked before they are encoded, so an over-long string is our own bug.
    pub(crate) fn string(&mut self, text: &str) {
        self.u16(u16::try_from(text.len()).expect("names and labels are bounded before they are encoded"));
        self.0.extend_from_slice(text.as_bytes());
    }

    /// A count of what follows.
    pub(crate) fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).expect("tables are bounded before they are encoded"));
    }
}

/// Takes values from a body.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    rest: &'a [u8],
    offset: u64,
}

impl<'a> Decoder<'a> {
    /// A decoder of `bytes`, which start at `offset` of their file.
    pub(crate) fn new(bytes: &'a [u8], offset: u64) -> Decoder<'a> {
        Decoder { rest: bytes, offset }
    }

    /// Whether nothing is left.
    pub(crate) fn is_finished(&self) -> bool {
        self.rest.is_empty()
    }

    /// An error about the value that was just taken or is taken next.
    pub(crate) fn corrupt(&self, context: impl Into<String>) -> Error {
        Error::corrupt(context).at_offset(self.offset)
    }

    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(len) else {
            let text = format!("{what} needs {len} bytes, {} are left", self.rest.len());
            return Err(self.corrupt(text));
        };
        self.rest = rest;
        self.offset += len as u64;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(self.take(N, what)?.try_into().expect("take gives what was asked for"))
    }

    pub(crate) fn u8(&mut self, what: &str) -> Result<u8> {
        Ok(self.array::<1>(what)?[0])
    }

    pub(crate) fn flag(&mut self, what: &str) -> Result<bool> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.corrupt(format!("{what} is {other}, neither 0 nor 1"))),
        }
    }

    pub(crate) fn u16(&mut self, what: &str) -> Result<u16> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self, what: &str) -> Result<i64> {
        self.array(what).map(i64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self, what: &str) -> Result<u128> {
        self.array(what).map(u128::from_le_bytes)
    }

    pub(crate) fn string(&mut self, what: &str) -> Result<&'a str> {
        let len = self.u16(what)?;
        let bytes = self.take(usize::from(len), what)?;
        std::str::from_utf8(bytes).map_err(|_| self.corrupt(format!("{what} is not UTF-8")))
    }

    /// A count of entries of at least `entry_bytes` each, so that what is reserved for them is bounded by the input.
    pub(crate) fn count(&mut self, entry_bytes: usize, what: &str) -> Result<usize> {
        let count = self.u32(what)? as usize;
        if count > self.rest.len() / entry_bytes {
            return Err(self.corrupt(format!("{what} says {count}, which the bytes left cannot hold")));
        }
        Ok(count)
    }

    /// Checks that nothing is left.
    pub(crate) fn finish(self, what: &str) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.corrupt(format!("{what} is followed by {} bytes that belong to nothing", self.rest.len())))
    }
}
