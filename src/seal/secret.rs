//! Keys as they are held and written down: 32 bytes that are never shown by accident, and cleared when they are dropped.

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// First word of a site key's line.
const WORD: &str = "afterimage-site-key-1";

/// A key.
#[derive(Clone)]
pub(super) struct SecretKey(Zeroizing<[u8; 32]>);

impl SecretKey {
    pub(super) fn new(bytes: [u8; 32]) -> SecretKey {
        SecretKey(Zeroizing::new(bytes))
    }

    /// A key of two random numbers.
    pub(super) fn drawn(random: [u128; 2]) -> SecretKey {
        let mut key = SecretKey::new([0; 32]);
        key.0[..16].copy_from_slice(&random[0].to_le_bytes());
        key.0[16..].copy_from_slice(&random[1].to_le_bytes());
        key
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8; 32] {
        &mut self.0
    }

    /// The key of `id` under this one: HKDF-SHA256 (RFC 5869) without salt, `label` and `id` (little-endian) as info.
    pub(super) fn derive(&self, label: &str, id: u128) -> SecretKey {
        let mut derived = SecretKey::new([0; 32]);
        let info = [label.as_bytes(), &id.to_le_bytes()];
        let hkdf = Hkdf::<Sha256>::new(None, &*self.0);
        hkdf.expand_multi_info(&info, &mut *derived.0).expect("32 bytes are one block of the hash");
        derived
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

/// Names a site key; says nothing about it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteKeyId(pub u128);

impl fmt::Display for SiteKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for SiteKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SiteKeyId({self})")
    }
}

/// The key that wraps the group keys of a site.
#[derive(Clone, Debug)]
pub struct SiteKey {
    id: SiteKeyId,
    pub(super) key: SecretKey,
}

impl SiteKey {
    /// A key of two random numbers.
    pub fn drawn(random: [u128; 2]) -> SiteKey {
        SiteKey::of(SecretKey::drawn(random))
    }

    fn of(key: SecretKey) -> SiteKey {
        let named = key.derive("afterimage 1 site key id", 0);
        let id = u128::from_be_bytes(named.bytes()[..16].try_into().expect("16 of 32 bytes"));
        SiteKey { id: SiteKeyId(id), key }
    }

    /// Its name, which follows from it.
    pub fn id(&self) -> SiteKeyId {
        self.id
    }

    /// The key as it is kept in a file: whoever reads this can open what the site sealed.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(512));
        text.push_str("# The site key of an Afterimage gateway. Whoever has it can read what the gateway sealed; without\n");
        text.push_str("# it nobody can. Keep a copy where the vault is not.\n");
        text.push_str(&format!("{WORD} {} ", self.id));
        for byte in self.key.bytes() {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(digit.into(), 16).expect("four bits"));
            }
        }
        text.push('\n');
        text
    }

    /// Reads [`SiteKey::to_text`].
    ///
    /// # Errors
    /// `Invalid`, saying what is wrong, and never what was read.
    pub fn from_text(text: &str) -> Result<SiteKey> {
        let invalid = |what: &str| Error::invalid(format!("this is no site key: {what}"));
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let (Some(line), None) = (lines.next(), lines.next()) else {
            return Err(invalid("it must be one line besides comments"));
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        let [WORD, id, digits] = words[..] else {
            return Err(invalid(&format!("the line must be `{WORD}`, an id, and the key")));
        };
        let key = parse_key(digits).ok_or_else(|| invalid("the key must be 64 hexadecimal digits"))?;
        let key = SiteKey::of(key);
        if key.id.to_string() != id {
            return Err(invalid("id and key do not belong together; a character may be wrong or missing"));
        }
        Ok(key)
    }
}

fn parse_key(digits: &str) -> Option<SecretKey> {
    let mut key = SecretKey::new([0; 32]);
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in key.0.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    /// RFC 5869, appendix A.3: SHA-256 without salt and info. And A.1 for the hash itself.
    #[test]
    fn the_vectors_of_rfc_5869_hold() {
        let mut out = [0; 42];
        let hkdf = Hkdf::<Sha256>::new(None, &[0x0b; 22]);
        hkdf.expand_multi_info(&[], &mut out).unwrap();
        let expected = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8";
        assert_eq!(out.as_slice(), hex(expected));
        let hkdf = Hkdf::<Sha256>::new(Some(&hex("000102030405060708090a0b0c")), &[0x0b; 22]);
        hkdf.expand_multi_info(&[&hex("f0f1f2f3f4"), &hex("f5f6f7f8f9")], &mut out).unwrap();
        let expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865";
        assert_eq!(out.as_slice(), hex(expected));
    }

    #[test]
    fn keys_of_different_labels_and_ids_differ() {
        let key = SecretKey::new([7; 32]);
        let mut derived: Vec<_> =
            [("a", 1), ("a", 2), ("b", 1), ("b", 2)].map(|(label, id)| *key.derive(label, id).bytes()).into();
        derived.sort_unstable();
        derived.dedup();
        assert_eq!(derived.len(), 4);
        assert_eq!(key.derive("a", 1).bytes(), SecretKey::new([7; 32]).derive("a", 1).bytes());
    }

    #[test]
    fn a_site_key_survives_its_text_and_a_slip_of_the_pen_is_noticed() {
        let key = SiteKey::drawn([1, u128::MAX]);
        let text = key.to_text();
        let read = SiteKey::from_text(&text).expect("as written");
        assert_eq!((read.id(), read.key.bytes()), (key.id(), key.key.bytes()));
        let line = text.lines().last().expect("the key's line");
        assert!(SiteKey::from_text(line).is_ok(), "comments can be left out");
        let slips = [
            line.replacen("ffff", "fffe", 1),
            line[..line.len() - 1].to_owned(),
            format!("{line}\n{line}"),
            line.replace("key-1", "key-2"),
            line.replace('f', "g"),
            String::new(),
        ];
        for slip in slips {
            let error = SiteKey::from_text(&slip).expect_err("not as written").to_string();
            assert!(!error.contains("ffff"), "an error shows no part of a key: {error}");
        }
    }

    #[test]
    fn no_key_is_shown() {
        let key = SiteKey::drawn([0x1111_2222_3333_4444_5555_6666_7777_8888; 2]);
        let shown = format!("{key:?}");
        assert!(shown.contains(&key.id().to_string()) && !shown.contains("8888"), "{shown}");
    }
}
