//! The wrapped bytes: which key and version, and what the service made.
//!
//! ```text
//!  0  6  preamble with magic "sbWG"
//!  6  2  length k of the key's resource name, big-endian
//!  8  k  the resource name, in ASCII
//!  …  8  the version, big-endian
//!  …  …  what the service made
//! ```
//!
//! The service's answer to a decryption does not say which version it was
//! with, so it stands here. All before "what the service made", the length of
//! the caller's associated data (8 bytes, big-endian), and these are the
//! service's additional authenticated data: none of it can change unnoticed.

use super::settings::KeyName;
use crate::kms::envelope::{
    Malformed, PREAMBLE_BYTES, associated, check_beside, check_preamble, damaged, preamble,
};
use crate::kms::{Error, Wrapped};

const MAGIC: [u8; 4] = *b"sbWG";

/// The longest resource name of a key.
const NAME_MAX: usize = 512;

/// Far more than the service makes of 1024 bytes.
const CIPHERTEXT_MAX: usize = 4096;

/// The algorithms of keys that encrypt and decrypt, in the service's terms: of
/// those that it holds, and of those that an external manager holds for it.
pub(super) const ALGORITHMS: [&str; 2] = [
    "GOOGLE_SYMMETRIC_ENCRYPTION",
    "EXTERNAL_SYMMETRIC_ENCRYPTION",
];

/// An envelope that has been taken apart, and not yet been opened.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    header: &'a [u8],
    /// The key that wrapped it.
    pub key: KeyName,
    /// Its version.
    pub version: u64,
    /// What the service made.
    pub ciphertext: &'a [u8],
}

/// All before "what the service made". `None` for a name that is too long.
pub fn header(key: &KeyName, version: u64) -> Option<Vec<u8>> {
    let name = key.as_str().as_bytes();
    if name.len() > NAME_MAX {
        return None;
    }
    let length = u16::try_from(name.len()).ok()?.to_be_bytes();
    let version = version.to_be_bytes();
    Some([&preamble(MAGIC)[..], &length, name, &version].concat())
}

/// The whole envelope. `None` when the service made too little or too much.
pub(super) fn seal(header: &[u8], ciphertext: &[u8]) -> Option<Vec<u8>> {
    let fits = !ciphertext.is_empty() && ciphertext.len() <= CIPHERTEXT_MAX;
    fits.then(|| [header, ciphertext].concat())
}

/// Takes `bytes` apart.
///
/// # Errors
/// When they are not such an envelope.
pub fn parse(bytes: &[u8]) -> Result<Envelope<'_>, Malformed> {
    const SHORT: Malformed = Malformed::Damaged("they are too short");
    check_preamble(MAGIC, bytes)?;
    let rest = bytes.get(PREAMBLE_BYTES..).ok_or(SHORT)?;
    let (length, rest) = rest.split_first_chunk::<2>().ok_or(SHORT)?;
    let (name, rest) = rest
        .split_at_checked(usize::from(u16::from_be_bytes(*length)))
        .ok_or(SHORT)?;
    let key = std::str::from_utf8(name)
        .ok()
        .filter(|name| name.len() <= NAME_MAX)
        .and_then(|name| name.parse().ok())
        .ok_or(Malformed::Damaged("they name no key of Cloud KMS"))?;
    let (version, ciphertext) = rest.split_first_chunk::<8>().ok_or(SHORT)?;
    let version = u64::from_be_bytes(*version);
    match (version, ciphertext.len()) {
        (0, _) => Err(Malformed::Damaged("there never was a version 0")),
        (_, 0) => Err(SHORT),
        (_, length) if length > CIPHERTEXT_MAX => Err(Malformed::Damaged("they are too long")),
        _ => Ok(Envelope {
            header: &bytes[..bytes.len() - ciphertext.len()],
            key,
            version,
            ciphertext,
        }),
    }
}

impl<'a> Envelope<'a> {
    /// What is in a wrap, if all that stands in it goes together.
    pub(super) fn of(wrapped: &'a Wrapped) -> Result<Self, Error> {
        let envelope = parse(&wrapped.bytes)?;
        let version = envelope.version.to_string();
        check_beside(&[
            ("key", &wrapped.key_id, envelope.key.as_str()),
            ("key version", &wrapped.version, &version),
        ])?;
        if !ALGORITHMS.contains(&wrapped.alg.as_str()) {
            return Err(damaged(format!(
                "the wrapped bytes have algorithm {:?} beside them, which is none of this provider",
                wrapped.alg
            )));
        }
        Ok(envelope)
    }

    /// What the service has to be told beside the ciphertext.
    pub(super) fn associated(&self, aad: &[u8]) -> Vec<u8> {
        associated(self.header, aad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "projects/p-1/locations/europe-west3/keyRings/r/cryptoKeys/k";

    #[test]
    fn an_envelope_comes_apart_as_it_was_put_together() {
        let key: KeyName = KEY.parse().unwrap();
        let header = header(&key, 7).unwrap();
        let bytes = seal(&header, b"made").unwrap();
        let parsed = parse(&bytes).unwrap();
        assert_eq!(
            (parsed.key.clone(), parsed.version, parsed.ciphertext),
            (key, 7, &b"made"[..])
        );
        let bound = parsed.associated(b"volume");
        assert!(bound.starts_with(&header) && bound.ends_with(b"\0\0\0\0\0\0\0\x06volume"));
        // Each other header is another binding, or none.
        for bit in 0..header.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            if let Ok(parsed) = parse(&changed) {
                assert_ne!(parsed.associated(b"volume"), bound, "bit {bit}");
            }
        }
        for length in 0..=header.len() {
            assert!(parse(&bytes[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn sizes_and_names_are_bounded() {
        let key: KeyName = KEY.parse().unwrap();
        let header = header(&key, 1).unwrap();
        assert_eq!(seal(&header, b""), None);
        assert_eq!(seal(&header, &[0; CIPHERTEXT_MAX + 1]), None);
        let long = [&header[..], &[0; CIPHERTEXT_MAX + 1]].concat();
        assert_eq!(
            parse(&long).unwrap_err(),
            Malformed::Damaged("they are too long")
        );
        let none = super::header(&key, 0).unwrap();
        assert!(parse(&[&none[..], b"made"].concat()).is_err());
        let mut other = seal(&header, b"made").unwrap();
        other[8] = b'P';
        assert_eq!(
            parse(&other).unwrap_err(),
            Malformed::Damaged("they name no key of Cloud KMS")
        );
    }

    #[test]
    fn what_stands_beside_it_has_to_agree() {
        let key: KeyName = KEY.parse().unwrap();
        let bytes = seal(&header(&key, 7).unwrap(), b"made").unwrap();
        let good = Wrapped {
            key_id: KEY.into(),
            version: "7".into(),
            alg: ALGORITHMS[0].into(),
            bytes,
        };
        assert!(Envelope::of(&good).is_ok());
        let with = |change: fn(&mut Wrapped)| {
            let mut wrapped = good.clone();
            change(&mut wrapped);
            Envelope::of(&wrapped).is_err()
        };
        assert!(with(|w| w.key_id.push('x')));
        assert!(with(|w| w.version = "07".into()));
        assert!(with(|w| w.alg = "AES_256_GCM".into()));
    }
}
