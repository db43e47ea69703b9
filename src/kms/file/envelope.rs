//! The wrapped bytes of the platform key: the header. The rest is that of all
//! envelopes ([`crate::kms::envelope`]).
//!
//! ```text
//!  0  6  preamble with magic "sbWK"
//!  6 16  key id (UUID, network byte order)
//! 22  4  key version, big-endian
//! ```

use std::io;

use uuid::Uuid;

use super::keyfile::VersionId;
use crate::kms::envelope::{self, Malformed, Sealed, Unopened};
use crate::secret::Secret;

const MAGIC: [u8; 4] = *b"sbWK";
const HEADER_BYTES: usize = 26;

/// An envelope that has been taken apart, and not yet been opened.
#[derive(Debug)]
pub struct Envelope<'a> {
    /// The key file that wrapped it.
    pub key_id: Uuid,
    /// The version of the key.
    pub version: VersionId,
    sealed: Sealed<'a>,
}

impl<'a> Envelope<'a> {
    /// Takes `bytes` apart.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        envelope::check_preamble(MAGIC, bytes)?;
        let sealed = Sealed::split(bytes, HEADER_BYTES)?;
        let key_id = Uuid::from_slice(&bytes[6..22])
            .map_err(|_| Malformed::Damaged("the key id is not a UUID"))?;
        let version = u32::from_be_bytes([bytes[22], bytes[23], bytes[24], bytes[25]]);
        Ok(Envelope {
            key_id,
            version: VersionId(version),
            sealed,
        })
    }

    /// Decrypts the envelope, if `key` and `aad` are those it was sealed with.
    pub fn open(&self, key: &Secret, aad: &[u8]) -> Result<Secret, Unopened> {
        self.sealed.open(key, aad)
    }
}

/// Seals `plaintext` under `key`, bound to `aad`, with a nonce of its own.
pub fn seal(
    key_id: Uuid,
    version: VersionId,
    key: &Secret,
    plaintext: &Secret,
    aad: &[u8],
) -> io::Result<Vec<u8>> {
    let mut header = envelope::preamble(MAGIC).to_vec();
    header.extend_from_slice(key_id.as_bytes());
    header.extend_from_slice(&version.0.to_be_bytes());
    envelope::seal(&header, key, plaintext, aad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::envelope::PLAINTEXT_MAX;

    const KEY_ID: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
    const VERSION: VersionId = VersionId(0x0a0b_0c0d);

    fn sealed() -> (Secret, Secret, Vec<u8>) {
        let key = Secret::random(32).unwrap();
        let plaintext = Secret::random(64).unwrap();
        let bytes = seal(KEY_ID, VERSION, &key, &plaintext, b"volume").unwrap();
        (key, plaintext, bytes)
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let (_, plaintext, bytes) = sealed();
        assert_eq!(bytes.len(), 26 + 12 + plaintext.len() + 16);
        assert_eq!(&bytes[..6], b"sbWK\x01\x01");
        assert_eq!(&bytes[6..22], KEY_ID.as_bytes());
        assert_eq!(&bytes[22..26], &[0x0a, 0x0b, 0x0c, 0x0d]);
    }

    /// Made with Python's `cryptography` (OpenSSL) from the documented layout:
    /// key 00..1f, nonce a0..ab, plaintext 64 bytes of 00..3f, AAD "volume".
    const FOREIGN: &str = include_str!("envelope_vector.hex");

    #[test]
    fn an_envelope_made_by_openssl_opens() {
        let bytes = hex::decode(FOREIGN.trim()).unwrap();
        let key = Secret::copy_of(&(0..32).collect::<Vec<u8>>()).unwrap();
        let envelope = Envelope::parse(&bytes).unwrap();
        assert_eq!((envelope.key_id, envelope.version), (KEY_ID, VERSION));
        let plaintext = envelope.open(&key, b"volume").unwrap();
        assert_eq!(plaintext[..], (0..64).collect::<Vec<u8>>());
    }

    #[test]
    fn two_envelopes_of_one_key_share_no_nonce_and_no_ciphertext() {
        let key = Secret::random(32).unwrap();
        let plaintext = Secret::random(64).unwrap();
        let one = seal(KEY_ID, VERSION, &key, &plaintext, b"").unwrap();
        let two = seal(KEY_ID, VERSION, &key, &plaintext, b"").unwrap();
        assert_eq!(one[..26], two[..26]);
        assert_ne!(one[26..38], two[26..38]);
        assert_ne!(one[38..], two[38..]);
    }

    #[test]
    fn no_bit_can_change() {
        let (key, plaintext, bytes) = sealed();
        let open = |bytes: &[u8], aad: &[u8]| {
            Envelope::parse(bytes)
                .ok()
                .and_then(|envelope| envelope.open(&key, aad).ok())
        };
        assert_eq!(open(&bytes, b"volume"), Some(plaintext));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&changed, b"volume"), None, "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(open(&bytes[..length], b"volume"), None, "{length} bytes");
        }
        assert_eq!(open(&bytes, b"volumf"), None);
        assert_eq!(open(&bytes, b""), None);
    }

    #[test]
    fn newer_envelopes_are_told_from_damaged_ones() {
        let (_, _, mut bytes) = sealed();
        bytes[4] = 2;
        assert_eq!(
            Envelope::parse(&bytes).unwrap_err(),
            Malformed::Newer {
                what: "envelope version",
                found: 2
            }
        );
        // A newer envelope may be of any length.
        assert!(matches!(
            Envelope::parse(&bytes[..5]),
            Err(Malformed::Newer { .. })
        ));
        bytes[4] = 1;
        bytes[5] = 9;
        assert_eq!(
            Envelope::parse(&bytes).unwrap_err(),
            Malformed::Newer {
                what: "algorithm",
                found: 9
            }
        );
        assert!(matches!(
            Envelope::parse(&bytes[..4]),
            Err(Malformed::Damaged(_))
        ));
        assert!(matches!(
            Envelope::parse(b"LUKS\xba\xbe"),
            Err(Malformed::Damaged(_))
        ));
    }

    #[test]
    fn what_is_not_a_key_is_not_wrapped() {
        let key = Secret::random(32).unwrap();
        let large = Secret::zeroed(PLAINTEXT_MAX + 1).unwrap();
        assert!(seal(KEY_ID, VERSION, &key, &large, b"").is_err());
        assert!(matches!(
            Envelope::parse(&[&b"sbWK\x01\x01"[..], &[0; PLAINTEXT_MAX + 49]].concat()),
            Err(Malformed::Damaged(_))
        ));
    }
}
