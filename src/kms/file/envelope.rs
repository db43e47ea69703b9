//! The wrapped bytes: layout, sealing and opening. `docs/kms.md` has the
//! layout byte for byte.
//!
//! ```text
//!  0  4  magic "sbWK"
//!  4  1  envelope version: 1
//!  5  1  algorithm: 1 = AES-256-GCM
//!  6 16  key id (UUID, network byte order)
//! 22  4  key version, big-endian
//! 26 12  nonce, random
//! 38  n  ciphertext, as long as what was wrapped
//!  …  16 tag
//! ```
//!
//! GCM's associated data are bytes 0 to 25, then the length of the caller's
//! associated data (8 bytes, big-endian), then these. The nonce is what GCM
//! starts from. So no bit of the envelope can change unnoticed.

use std::io;

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, Key, KeyInit, Nonce, Tag};
use uuid::Uuid;

use super::keyfile::VersionId;
use crate::secret::Secret;

const MAGIC: &[u8; 4] = b"sbWK";
const ENVELOPE_VERSION: u8 = 1;
const AES_256_GCM: u8 = 1;
const HEADER_BYTES: usize = 26;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// The name of AES-256-GCM (JOSE, RFC 7518) in [`crate::kms::Wrapped::alg`].
pub const ALG: &str = "A256GCM";

/// The most that is wrapped at once: keys are small, and a bound keeps an
/// envelope from being a way to have memory locked.
pub const PLAINTEXT_MAX: usize = 1024;

/// An envelope that has been taken apart, and not yet been opened.
#[derive(Debug)]
pub struct Envelope<'a> {
    /// The key file that wrapped it.
    pub key_id: Uuid,
    /// The version of the key.
    pub version: VersionId,
    header: &'a [u8],
    nonce: &'a [u8],
    ciphertext: &'a [u8],
    tag: &'a [u8],
}

/// Why bytes are not an envelope that can be opened.
#[derive(Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Not made by this provider, cut short, or overwritten.
    Damaged(&'static str),
    /// Its version or algorithm is one that this sealblk does not have.
    Newer {
        /// `envelope version` or `algorithm`.
        what: &'static str,
        /// The number found.
        found: u8,
    },
}

/// Why an envelope did not open.
#[derive(Debug)]
pub enum Unopened {
    /// The tag does not match: another key, other associated data, or changed bytes.
    Unauthentic,
    /// No secret memory.
    Memory(io::Error),
}

impl<'a> Envelope<'a> {
    /// Takes `bytes` apart.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (Some(magic), Some(&version)) = (bytes.get(..4), bytes.get(4)) else {
            return Err(Malformed::Damaged("they are too short"));
        };
        if magic != MAGIC {
            return Err(Malformed::Damaged("they do not begin as such bytes do"));
        }
        match version {
            ENVELOPE_VERSION => {}
            0 => return Err(Malformed::Damaged("there never was an envelope version 0")),
            found => {
                return Err(Malformed::Newer {
                    what: "envelope version",
                    found,
                });
            }
        }
        let overhead = HEADER_BYTES + NONCE_BYTES + TAG_BYTES;
        let length = bytes
            .len()
            .checked_sub(overhead)
            .ok_or(Malformed::Damaged("they are too short"))?;
        if length > PLAINTEXT_MAX {
            return Err(Malformed::Damaged("they are too long"));
        }
        match bytes[5] {
            AES_256_GCM => {}
            0 => return Err(Malformed::Damaged("there never was an algorithm 0")),
            found => {
                return Err(Malformed::Newer {
                    what: "algorithm",
                    found,
                });
            }
        }
        let (header, rest) = bytes.split_at(HEADER_BYTES);
        let (nonce, rest) = rest.split_at(NONCE_BYTES);
        let (ciphertext, tag) = rest.split_at(length);
        let key_id = Uuid::from_slice(&header[6..22])
            .map_err(|_| Malformed::Damaged("the key id is not a UUID"))?;
        let version = u32::from_be_bytes([header[22], header[23], header[24], header[25]]);
        Ok(Envelope {
            key_id,
            version: VersionId(version),
            header,
            nonce,
            ciphertext,
            tag,
        })
    }

    /// Decrypts the envelope, if `key` and `aad` are those it was sealed with.
    pub fn open(&self, key: &Secret, aad: &[u8]) -> Result<Secret, Unopened> {
        let (Some(key), Ok(nonce), Ok(tag)) = (
            gcm_key(key),
            Nonce::try_from(self.nonce),
            Tag::try_from(self.tag),
        ) else {
            return Err(Unopened::Unauthentic);
        };
        let mut plaintext = Secret::copy_of(self.ciphertext).map_err(Unopened::Memory)?;
        Aes256Gcm::new(key)
            .decrypt_inout_detached(
                &nonce,
                &associated(self.header, aad),
                (&mut plaintext[..]).into(),
                &tag,
            )
            .map_err(|_| Unopened::Unauthentic)?;
        Ok(plaintext)
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
    if plaintext.len() > PLAINTEXT_MAX {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;

    let mut bytes = Vec::with_capacity(HEADER_BYTES + NONCE_BYTES + plaintext.len() + TAG_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[ENVELOPE_VERSION, AES_256_GCM]);
    bytes.extend_from_slice(key_id.as_bytes());
    bytes.extend_from_slice(&version.0.to_be_bytes());
    let associated = associated(&bytes, aad);
    bytes.extend_from_slice(&nonce);

    // Encrypted in secret memory: the plaintext is never in ordinary memory.
    let mut buffer = Secret::copy_of(plaintext)?;
    let key = gcm_key(key).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let tag = Aes256Gcm::new(key)
        .encrypt_inout_detached(&nonce.into(), &associated, (&mut buffer[..]).into())
        .map_err(io::Error::other)?;
    bytes.extend_from_slice(&buffer);
    bytes.extend_from_slice(&tag);
    Ok(bytes)
}

fn gcm_key(key: &Secret) -> Option<&Key<Aes256Gcm>> {
    <&Key<Aes256Gcm>>::try_from(&key[..]).ok()
}

fn associated(header: &[u8], aad: &[u8]) -> Vec<u8> {
    let mut associated = Vec::with_capacity(header.len() + 8 + aad.len());
    associated.extend_from_slice(header);
    associated.extend_from_slice(&(aad.len() as u64).to_be_bytes());
    associated.extend_from_slice(aad);
    associated
}

#[cfg(test)]
mod tests {
    use super::*;

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
