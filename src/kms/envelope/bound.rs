//! Envelopes around what a service wrapped in a way that takes no associated
//! data: AES key wrap, RSA-OAEP.
//!
//! ```text
//!  0  4  magic "sbWB"
//!  4  1  envelope version: 1
//!  5  1  algorithm, as the provider numbers them
//!  6  2  length k of the key id, big-endian
//!  8  k  key id, UTF-8
//!  …  2  length v of the version, big-endian
//!  …  v  version, UTF-8
//!  … 16  salt, random
//!  …  …  what the service made
//! ```
//!
//! What the service wraps is the payload, and then the SHA-256 of all before
//! "what the service made", the length of the caller's associated data
//! (8 bytes, big-endian), and these. So neither the header nor the binding can
//! change unnoticed, as far as the service authenticates what it wraps. The
//! salt makes two wraps of the same payload differ where the algorithm is
//! deterministic, as key wrap is.

use std::io;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::named::{name, push_name};
use super::{Malformed, PLAINTEXT_MAX, associated, preamble, read_preamble};
use crate::secret::Secret;

const MAGIC: [u8; 4] = *b"sbWB";
const SALT_BYTES: usize = 16;

/// How much longer than the payload that is which the service wraps, in bytes.
pub const DIGEST_BYTES: usize = 32;

/// The most that a service makes of [`PLAINTEXT_MAX`] bytes: an RSA key of
/// 16,384 bits has 2048.
const CIPHERTEXT_MAX: usize = 4096;

/// An envelope that has been taken apart, and not yet been opened.
#[derive(Debug)]
pub struct Envelope<'a> {
    header: &'a [u8],
    /// Which algorithm, as the provider numbers them.
    pub algorithm: u8,
    /// The key that wrapped it.
    pub key_id: &'a str,
    /// The version of the key.
    pub version: &'a str,
    /// What the service made.
    pub ciphertext: &'a [u8],
}

/// The header of an envelope, with a salt of its own. `None` when a name is
/// empty or too long.
///
/// # Errors
/// When there are no random bytes.
pub fn header(algorithm: u8, key_id: &str, version: &str) -> io::Result<Option<Vec<u8>>> {
    let mut header = preamble(MAGIC).to_vec();
    header[5] = algorithm;
    if push_name(&mut header, key_id).is_none() || push_name(&mut header, version).is_none() {
        return Ok(None);
    }
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt).map_err(io::Error::other)?;
    header.extend_from_slice(&salt);
    Ok(Some(header))
}

/// What the service is to wrap: `payload`, bound to `header` and `aad`.
///
/// # Errors
/// When `payload` is too long, or there is no secret memory.
pub fn bind(header: &[u8], payload: &Secret, aad: &[u8]) -> io::Result<Secret> {
    if payload.len() > PLAINTEXT_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bound = Secret::zeroed(payload.len() + DIGEST_BYTES)?;
    let (first, last) = bound.split_at_mut(payload.len());
    first.copy_from_slice(payload);
    last.copy_from_slice(&digest(header, aad));
    Ok(bound)
}

/// Takes `bytes` apart, of which the algorithm is at most `newest`.
///
/// # Errors
/// When they are not such an envelope.
pub fn parse(newest: u8, bytes: &[u8]) -> Result<Envelope<'_>, Malformed> {
    let algorithm = read_preamble(MAGIC, newest, bytes)?;
    let (key_id, rest) = name(&bytes[super::PREAMBLE_BYTES..])?;
    let (version, rest) = name(rest)?;
    let at = bytes.len() - rest.len() + SALT_BYTES;
    let (header, ciphertext) = bytes
        .split_at_checked(at)
        .ok_or(Malformed::Damaged("they are too short"))?;
    match ciphertext.len() {
        0 => Err(Malformed::Damaged("they are too short")),
        1..=CIPHERTEXT_MAX => Ok(Envelope {
            header,
            algorithm,
            key_id,
            version,
            ciphertext,
        }),
        _ => Err(Malformed::Damaged("they are too long")),
    }
}

impl Envelope<'_> {
    /// The payload in what the service unwrapped, if that was bound to this
    /// header and to `aad`.
    ///
    /// # Errors
    /// When there is no secret memory.
    pub fn unbind(&self, unwrapped: &Secret, aad: &[u8]) -> io::Result<Option<Secret>> {
        let Some(length) = unwrapped.len().checked_sub(DIGEST_BYTES) else {
            return Ok(None);
        };
        let (payload, found) = unwrapped.split_at(length);
        if !bool::from(found.ct_eq(&digest(self.header, aad))) {
            return Ok(None);
        }
        Secret::copy_of(payload).map(Some)
    }
}

fn digest(header: &[u8], aad: &[u8]) -> [u8; DIGEST_BYTES] {
    Sha256::digest(associated(header, aad)).into()
}

/// Whether `bytes` begin as such envelopes do.
#[cfg(feature = "pkcs11")]
pub fn is_one(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_bound_comes_back_with_its_header_and_binding_only() {
        let payload = Secret::random(64).unwrap();
        let header = header(2, "a key", "0a0b").unwrap().unwrap();
        let bound = bind(&header, &payload, b"volume").unwrap();
        assert_eq!(bound.len(), 96);
        // A service that changes nothing.
        let bytes = [&header[..], &bound].concat();
        let opened = |bytes: &[u8], aad: &[u8]| {
            let envelope = parse(3, bytes).ok()?;
            let unwrapped = Secret::copy_of(envelope.ciphertext).unwrap();
            envelope.unbind(&unwrapped, aad).unwrap()
        };
        assert_eq!(opened(&bytes, b"volume"), Some(payload));
        let envelope = parse(3, &bytes).unwrap();
        assert_eq!(
            (envelope.algorithm, envelope.key_id, envelope.version),
            (2, "a key", "0a0b")
        );
        for aad in [&b""[..], b"volum", b"volume\0"] {
            assert_eq!(opened(&bytes, aad), None);
        }
        // The payload itself is for the service to authenticate.
        let digest = bytes.len() - DIGEST_BYTES;
        for bit in (0..header.len() * 8).chain(digest * 8..bytes.len() * 8) {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opened(&changed, b"volume"), None, "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(opened(&bytes[..length], b"volume"), None, "{length} bytes");
        }
    }

    #[test]
    fn two_envelopes_of_the_same_differ() {
        assert_ne!(header(1, "k", "v").unwrap(), header(1, "k", "v").unwrap());
        assert_eq!(header(1, "", "v").unwrap(), None);
        let long = "x".repeat(super::super::named::NAME_MAX + 1);
        assert_eq!(header(1, "k", &long).unwrap(), None);
    }

    #[test]
    fn sizes_are_bounded() {
        let header = header(1, "k", "v").unwrap().unwrap();
        let long = [&header[..], &[0; CIPHERTEXT_MAX + 1]].concat();
        assert_eq!(
            parse(1, &long).unwrap_err(),
            Malformed::Damaged("they are too long")
        );
        assert!(parse(1, &long[..long.len() - 1]).is_ok());
        assert!(matches!(
            parse(1, &[&header[..5], &[2], &header[6..], &[0; 9]].concat()),
            Err(Malformed::Newer { found: 2, .. })
        ));
        let payload = Secret::zeroed(PLAINTEXT_MAX + 1).unwrap();
        assert!(bind(&header, &payload, b"").is_err());
    }
}
