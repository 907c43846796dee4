//! A size in bytes as people write it: `20G`, `512MiB`, `1.5T`, `65536`.
//!
//! Suffixes are powers of 1024, as in `qemu-img`: `20G` and `20GiB` are both 20 × 1024³ bytes. `20GB` is refused
//! rather than guessed at. A size is always a whole number of bytes; nothing here rounds.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;
use crate::units::{SECTOR_BYTES, SectorCount};

/// Suffixes and the power of 1024 that each stands for, smallest first.
const SUFFIXES: [(char, u32); 5] = [('K', 1), ('M', 2), ('G', 3), ('T', 4), ('P', 5)];

/// A number of bytes that a person wrote, or is to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// The size of a disk, which must hold at least one sector and no fraction of one.
    pub fn sectors(self) -> Result<SectorCount, Error> {
        match SectorCount::from_bytes(self.0) {
            Some(sectors) if sectors.0 > 0 => Ok(sectors),
            _ => Err(Error::invalid(format!(
                "size = {}: a disk is a positive multiple of {SECTOR_BYTES} bytes: write for example 20G",
                self.0
            ))),
        }
    }

    /// What a person wrote, or what is wrong with it.
    pub fn parse(text: &str) -> Result<ByteSize, SizeFault> {
        let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits_end);
        let unit = unit_bytes(suffix).ok_or(SizeFault::NotASize)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || (number.contains('.') && fraction.is_empty()) {
            return Err(SizeFault::NotASize);
        }
        let fraction = fraction_bytes(fraction, unit).ok_or(SizeFault::NotASize)?;
        // Digits only: what cannot be parsed is too large.
        let whole = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(unit));
        whole.and_then(|whole| whole.checked_add(fraction)).map(ByteSize).ok_or(SizeFault::TooLarge)
    }

    /// The size to the byte, for people: like [`ByteSize`]'s own text, which parses back, but never without a unit.
    pub fn exact(self) -> impl fmt::Display {
        let text = self.to_string();
        if text.ends_with('B') { text } else { text + " bytes" }
    }

    /// The size to three digits with the largest fitting suffix, for people: `1.5 GiB`.
    pub fn approximate(self) -> impl fmt::Display {
        Approximate(self.0)
    }
}

/// Exactly: the largest suffix that leaves a whole number.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, power) in SUFFIXES.into_iter().rev() {
            let unit = 1024_u64.pow(power);
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{suffix}iB", self.0 / unit);
            }
        }
        write!(f, "{}", self.0)
    }
}

struct Approximate(u64);

impl fmt::Display for Approximate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, power) in SUFFIXES.into_iter().rev() {
            let unit = 1024_u64.pow(power);
            if self.0 >= unit {
                #[allow(clippy::cast_precision_loss)]
                return write!(f, "{:.1} {suffix}iB", self.0 as f64 / unit as f64);
            }
        }
        write!(f, "{} B", self.0)
    }
}

impl FromStr for ByteSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<ByteSize, Error> {
        ByteSize::parse(text).map_err(|fault| {
            let problem = match fault {
                SizeFault::NotASize => "is not a size in bytes",
                SizeFault::TooLarge => "is too large, a size is less than 16384P",
            };
            Error::invalid(format!("`{text}` {problem}: write for example 20G, 512MiB or 65536"))
        })
    }
}

/// Why a text is no [`ByteSize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeFault {
    /// Not a whole number of bytes in the form that sizes have.
    NotASize,
    /// It would be 2^64 bytes or more.
    TooLarge,
}

/// `0.FRACTION × unit`, unless that is not a whole number of bytes.
fn fraction_bytes(fraction: &str, unit: u64) -> Option<u64> {
    if fraction.is_empty() {
        return Some(0);
    }
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let scaled = fraction.parse::<u128>().ok()?.checked_mul(u128::from(unit))?;
    if scaled.is_multiple_of(scale) { u64::try_from(scaled / scale).ok() } else { None }
}

fn unit_bytes(suffix: &str) -> Option<u64> {
    let mut characters = suffix.chars();
    let Some(letter) = characters.next() else { return Some(1) };
    let (_, power) = SUFFIXES.into_iter().find(|(known, _)| *known == letter.to_ascii_uppercase())?;
    matches!(characters.as_str(), "" | "iB" | "ib").then(|| 1024_u64.pow(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_mean_what_qemu_img_means_by_them() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("1k", 1024),
            ("1K", 1024),
            ("4GiB", 4 << 30),
            ("20G", 20 << 30),
            ("20g", 20 << 30),
            ("1.5T", 3 << 39),
            ("0.5KiB", 512),
            ("3P", 3 << 50),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap(), ByteSize(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused_with_an_example() {
        for text in [
            "",
            "G",
            "-1",
            "1 G",
            "20GB",
            "20Gi",
            "1.G",
            ".5G",
            "1.1G",
            "1.2.3",
            "1e3",
            "16384P",
            "99999999999P",
        ] {
            let error = text.parse::<ByteSize>().expect_err(text).to_string();
            assert!(error.contains(&format!("`{text}`")) && error.contains("20G"), "{error}");
        }
    }

    #[test]
    fn a_size_beyond_64_bits_is_too_large_and_not_misspelt() {
        for text in ["99999999T", "20000000000000000000", "99999999999GiB", "16384P", "18446744073709551616"]
        {
            assert_eq!(ByteSize::parse(text), Err(SizeFault::TooLarge), "{text}");
        }
        for text in ["99999999999X", "99999999999.P", "99999999999999999999.1"] {
            assert_eq!(ByteSize::parse(text), Err(SizeFault::NotASize), "{text}");
        }
        ByteSize::parse("16383.5P").expect("less than 2^64");
        let error = "99999999T".parse::<ByteSize>().unwrap_err().to_string();
        assert!(error.contains("`99999999T` is too large, a size is less than 16384P: write"), "{error}");
    }

    #[test]
    fn an_exact_size_has_a_unit() {
        let exact = |bytes| ByteSize(bytes).exact().to_string();
        assert_eq!([exact(3584), exact(4096), exact(0)], ["3584 bytes", "4KiB", "0 bytes"]);
    }

    #[test]
    fn a_disk_is_whole_sectors() {
        assert_eq!(ByteSize(1024).sectors().unwrap(), SectorCount(2));
        assert!(ByteSize(0).sectors().is_err());
        assert!(ByteSize(1000).sectors().is_err());
    }

    #[test]
    fn display_is_exact_and_parses_back() {
        for bytes in [0, 1, 1023, 1024, 1025, 64 << 20, (1 << 40) + 512, u64::MAX] {
            assert_eq!(ByteSize(bytes).to_string().parse::<ByteSize>().unwrap(), ByteSize(bytes));
        }
        assert_eq!(ByteSize(3 << 29).approximate().to_string(), "1.5 GiB");
    }
}
