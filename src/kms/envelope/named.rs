//! Envelopes whose header names a key and a version as their service does.
//!
//! ```text
//!  0  6  preamble with magic "sbWN"
//!  6  2  length k of the key id, big-endian
//!  8  k  key id, UTF-8
//!  …  2  length v of the version, big-endian
//!  …  v  version, UTF-8
//! ```

use super::{Malformed, Sealed, check_preamble, preamble};

const MAGIC: [u8; 4] = *b"sbWN";

/// The longest key id or version, in bytes.
pub const NAME_MAX: usize = 1024;

/// An envelope that has been taken apart, and not yet been opened.
#[derive(Debug)]
pub struct Envelope<'a> {
    /// The key that wrapped it.
    pub key_id: &'a str,
    /// The version of the key.
    pub version: &'a str,
    /// The rest.
    pub sealed: Sealed<'a>,
}

/// The header of an envelope under version `version` of key `key_id`. `None`
/// when one of them is empty or longer than [`NAME_MAX`].
pub fn header(key_id: &str, version: &str) -> Option<Vec<u8>> {
    let mut header = preamble(MAGIC).to_vec();
    for name in [key_id, version] {
        push_name(&mut header, name)?;
    }
    Some(header)
}

/// Adds a name to a header. `None` when it is empty or longer than [`NAME_MAX`].
pub(super) fn push_name(header: &mut Vec<u8>, name: &str) -> Option<()> {
    if name.is_empty() || name.len() > NAME_MAX {
        return None;
    }
    header.extend_from_slice(&u16::try_from(name.len()).ok()?.to_be_bytes());
    header.extend_from_slice(name.as_bytes());
    Some(())
}

/// Takes `bytes` apart.
///
/// # Errors
/// When they are not such an envelope.
pub fn parse(bytes: &[u8]) -> Result<Envelope<'_>, Malformed> {
    check_preamble(MAGIC, bytes)?;
    let (key_id, rest) = name(&bytes[super::PREAMBLE_BYTES..])?;
    let (version, rest) = name(rest)?;
    Ok(Envelope {
        key_id,
        version,
        sealed: Sealed::split(bytes, bytes.len() - rest.len())?,
    })
}

/// Takes a name off the beginning of `bytes`.
pub(super) fn name(bytes: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    const SHORT: Malformed = Malformed::Damaged("they are too short");
    let (length, rest) = bytes.split_first_chunk::<2>().ok_or(SHORT)?;
    let length = usize::from(u16::from_be_bytes(*length));
    if length == 0 || length > NAME_MAX {
        return Err(Malformed::Damaged("a name in them is empty or too long"));
    }
    let (name, rest) = rest.split_at_checked(length).ok_or(SHORT)?;
    let name =
        std::str::from_utf8(name).map_err(|_| Malformed::Damaged("a name in them is not UTF-8"))?;
    Ok((name, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::envelope::seal;
    use crate::secret::Secret;

    /// Made with Python's `cryptography` (OpenSSL) from the documented layout:
    /// key 00..1f, nonce a0..ab, plaintext 64 bytes of 00..3f, key id
    /// "name:kek", version "17", AAD "volume".
    const FOREIGN: &str = include_str!("named_vector.hex");

    #[test]
    fn an_envelope_made_by_openssl_opens() {
        let bytes = hex::decode(FOREIGN.trim()).unwrap();
        let key = Secret::copy_of(&(0..32).collect::<Vec<u8>>()).unwrap();
        let envelope = parse(&bytes).unwrap();
        assert_eq!((envelope.key_id, envelope.version), ("name:kek", "17"));
        let plaintext = envelope.sealed.open(&key, b"volume").unwrap();
        assert_eq!(plaintext[..], (0..64).collect::<Vec<u8>>());
    }

    #[test]
    fn no_bit_can_change_and_no_end_be_missing() {
        let key = Secret::random(32).unwrap();
        let plaintext = Secret::random(64).unwrap();
        let header = header("a key", "a version").unwrap();
        let bytes = seal(&header, &key, &plaintext, b"volume").unwrap();
        let open = |bytes: &[u8]| {
            let envelope = parse(bytes).ok()?;
            envelope.sealed.open(&key, b"volume").ok()
        };
        assert_eq!(open(&bytes), Some(plaintext));
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
    fn names_are_bounded() {
        let long = "x".repeat(NAME_MAX + 1);
        for (key_id, version) in [("", "1"), ("k", ""), (&long, "1"), ("k", &long)] {
            assert_eq!(header(key_id, version), None);
        }
        assert!(header(&long[1..], &long[1..]).is_some());
        let empty = [&preamble(MAGIC)[..], &[0; 200]].concat();
        assert_eq!(
            parse(&empty).unwrap_err(),
            Malformed::Damaged("a name in them is empty or too long")
        );
    }
}
