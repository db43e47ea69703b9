//! The wrapped bytes: what the plugin gave out, and a payload that is sealed
//! with the key in that.
//!
//! ```text
//!  0  6  preamble with magic "sbWP"
//!  6  2  length k of the key id, big-endian
//!  8  k  key id, UTF-8
//!  …  2  length c of what the plugin made, big-endian
//!  …  c  what the plugin made
//!  …  2  number of annotations, big-endian; for each, in the order of their names:
//!        2  length of its name, big-endian
//!        …  its name, a domain name in ASCII
//!        2  length of its value, big-endian
//!        …  its value
//! ```
//!
//! The rest is that of all envelopes (`kms::envelope`). The limits are
//! those of the API.

use std::collections::BTreeMap;

use crate::kms::envelope::{Malformed, PREAMBLE_BYTES, Sealed, check_preamble, preamble};

const MAGIC: [u8; 4] = *b"sbWP";

/// The longest key id, in bytes.
pub const KEY_ID_MAX: usize = 1024;
/// The longest ciphertext, in bytes.
pub const CIPHERTEXT_MAX: usize = 1024;
/// The most that the names and values of annotations have together, in bytes.
pub const ANNOTATIONS_MAX: usize = 32 * 1024;

/// What a plugin gives out for something that it encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encrypted {
    /// The ciphertext.
    pub ciphertext: Vec<u8>,
    /// The key that it was encrypted with.
    pub key_id: String,
    /// What it wants back with that.
    pub annotations: BTreeMap<String, Vec<u8>>,
}

/// An envelope that has been taken apart, and not yet been opened.
#[derive(Debug)]
pub struct Envelope<'a> {
    /// What the plugin gave out.
    pub encrypted: Encrypted,
    /// The rest.
    pub sealed: Sealed<'a>,
}

impl Encrypted {
    /// Checks it against the limits of the API.
    ///
    /// # Errors
    /// What is not as it must be: the end of a sentence.
    pub fn check(&self) -> Result<(), String> {
        check_key_id(&self.key_id)?;
        bounded("ciphertext", self.ciphertext.len(), CIPHERTEXT_MAX)?;
        let mut total = 0;
        for (name, value) in &self.annotations {
            if !is_domain_name(name) {
                let name: String = name.chars().take(100).collect();
                return Err(format!(
                    "an annotation with the name {name:?}, which is no fully qualified domain name"
                ));
            }
            total += name.len() + value.len();
        }
        if total > ANNOTATIONS_MAX {
            return Err(format!(
                "annotations with {total} bytes, and may give {ANNOTATIONS_MAX}"
            ));
        }
        Ok(())
    }

    /// The header of an envelope with it. `None` when it is beyond the limits.
    pub fn header(&self) -> Option<Vec<u8>> {
        self.check().ok()?;
        let mut header = preamble(MAGIC).to_vec();
        push(&mut header, self.key_id.as_bytes())?;
        push(&mut header, &self.ciphertext)?;
        let count = u16::try_from(self.annotations.len()).ok()?;
        header.extend_from_slice(&count.to_be_bytes());
        for (name, value) in &self.annotations {
            push(&mut header, name.as_bytes())?;
            push(&mut header, value)?;
        }
        Some(header)
    }
}

/// Checks a key id against the limits of the API.
///
/// # Errors
/// What is not as it must be: the end of a sentence.
pub fn check_key_id(key_id: &str) -> Result<(), String> {
    bounded("key_id", key_id.len(), KEY_ID_MAX)?;
    if key_id.chars().any(char::is_control) {
        return Err("a key_id with control characters".into());
    }
    Ok(())
}

fn bounded(what: &str, length: usize, max: usize) -> Result<(), String> {
    match length {
        0 => Err(format!("an empty {what}")),
        length if length > max => Err(format!("a {what} of {length} bytes, and may give {max}")),
        _ => Ok(()),
    }
}

/// As RFC 1123 has them, in lower case, with two labels or more.
fn is_domain_name(name: &str) -> bool {
    let label = |label: &str| {
        let end = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        let inner = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-';
        bytes.len() <= 63 && bytes.iter().all(inner) && end(bytes.first()) && end(bytes.last())
    };
    // A final dot is allowed.
    let name = name.strip_suffix('.').unwrap_or(name);
    name.len() <= 253 && name.contains('.') && name.split('.').all(label)
}

/// Takes `bytes` apart.
///
/// # Errors
/// When they are not such an envelope.
pub fn parse(bytes: &[u8]) -> Result<Envelope<'_>, Malformed> {
    check_preamble(MAGIC, bytes)?;
    let mut rest = &bytes[PREAMBLE_BYTES..];
    let key_id = text(take(&mut rest)?)?;
    let ciphertext = take(&mut rest)?.to_vec();
    let count = number(&mut rest)?;
    let mut annotations = BTreeMap::new();
    for _ in 0..count {
        let name = text(take(&mut rest)?)?;
        let value = take(&mut rest)?;
        if annotations
            .last_key_value()
            .is_some_and(|(last, _)| *last >= name)
        {
            return Err(Malformed::Damaged("annotations in them are out of order"));
        }
        annotations.insert(name, value.to_vec());
    }
    let encrypted = Encrypted {
        ciphertext,
        key_id,
        annotations,
    };
    if encrypted.check().is_err() {
        return Err(Malformed::Damaged("they are beyond the limits of the API"));
    }
    let sealed = Sealed::split(bytes, bytes.len() - rest.len())?;
    Ok(Envelope { encrypted, sealed })
}

const SHORT: Malformed = Malformed::Damaged("they are too short");

fn push(header: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    header.extend_from_slice(&u16::try_from(bytes.len()).ok()?.to_be_bytes());
    header.extend_from_slice(bytes);
    Some(())
}

fn number(rest: &mut &[u8]) -> Result<usize, Malformed> {
    let (number, after) = rest.split_first_chunk::<2>().ok_or(SHORT)?;
    *rest = after;
    Ok(usize::from(u16::from_be_bytes(*number)))
}

fn take<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let length = number(rest)?;
    let (taken, after) = rest.split_at_checked(length).ok_or(SHORT)?;
    *rest = after;
    Ok(taken)
}

fn text(bytes: &[u8]) -> Result<String, Malformed> {
    let text = std::str::from_utf8(bytes);
    Ok(text
        .map_err(|_| Malformed::Damaged("a name in them is not UTF-8"))?
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::envelope::seal;
    use crate::secret::Secret;

    fn encrypted() -> Encrypted {
        Encrypted {
            ciphertext: vec![7; 60],
            key_id: "key 1".into(),
            annotations: [("b.example.com", vec![1, 2]), ("a.example.com", vec![])]
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
        }
    }

    #[test]
    fn no_bit_can_change_and_no_end_be_missing() {
        let (key, payload) = (Secret::random(32).unwrap(), Secret::random(64).unwrap());
        let header = encrypted().header().unwrap();
        let bytes = seal(&header, &key, &payload, b"volume").unwrap();
        let parsed = parse(&bytes).unwrap();
        assert_eq!(parsed.encrypted, encrypted());
        assert_eq!(parsed.sealed.open(&key, b"volume").unwrap(), payload);
        // Whoever has the key opens what it sealed, and nothing else.
        let open = |bytes: &[u8]| parse(bytes).ok()?.sealed.open(&key, b"volume").ok();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&changed), None, "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(open(&bytes[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn the_limits_are_those_of_the_api() {
        let with = |change: fn(&mut Encrypted)| {
            let mut encrypted = encrypted();
            change(&mut encrypted);
            encrypted.check().err().unwrap_or_default()
        };
        for (says, change) in [
            ("", (|_| {}) as fn(&mut Encrypted)),
            ("", |e| e.key_id = "k".repeat(KEY_ID_MAX)),
            ("a key_id of 1025 bytes", |e| {
                e.key_id = "k".repeat(KEY_ID_MAX + 1)
            }),
            ("an empty key_id", |e| e.key_id.clear()),
            ("control characters", |e| e.key_id = "a\nb".into()),
            ("", |e| e.ciphertext = vec![0; CIPHERTEXT_MAX]),
            ("a ciphertext of 1025 bytes", |e| {
                e.ciphertext = vec![0; CIPHERTEXT_MAX + 1]
            }),
            ("an empty ciphertext", |e| e.ciphertext.clear()),
            ("annotations with 32796 bytes", |e| {
                e.annotations
                    .insert("b.example.com".into(), vec![0; ANNOTATIONS_MAX + 2]);
            }),
            ("\"a\"", |e| {
                e.annotations.insert("a".into(), vec![]);
            }),
        ] {
            let found = with(change);
            assert!(
                found.contains(says) && found.is_empty() == says.is_empty(),
                "{says}: {found}"
            );
        }
        for good in ["a.b", "a-1.example.com.", "1.2"] {
            assert!(is_domain_name(good), "{good}");
        }
        for bad in [
            "", ".", "a", "a.", "a..b", "-a.b", "a-.b", "A.b", "a_b.c", "a b.c", "é.c",
        ] {
            assert!(!is_domain_name(bad), "{bad}");
        }
        assert!(!is_domain_name(&format!("{}.b", "a".repeat(64))));
    }
}
