//! Group keys: one key of a key set between its service and its volumes.
//!
//! The service wraps the group key, and the group key wraps the keys of the
//! volumes. So a host with a thousand disks asks its service once, and a
//! rotation there re-wraps one key. The group key is made once, is in memory
//! in clear only while it is used (`cache`), and is stored wrapped: for new
//! volumes in a `record` of this host, and in each volume's own token, which
//! is all that opening it needs.
//!
//! ```text
//!  0  6  preamble with magic "sbGK" (see `kms::envelope`)
//!  6 16  id of the group key
//! 22 12  nonce
//! 34  n  ciphertext: the volume's key
//!  …  16 tag
//! ```
#![forbid(unsafe_code)]

pub(super) mod cache;
pub(super) mod record;

use std::io;

use uuid::Uuid;

use crate::kms;
use crate::kms::envelope::{
    self, Malformed, PREAMBLE_BYTES, Sealed, Unopened, check_preamble, damaged, preamble,
};
use crate::secret::Secret;

const MAGIC: [u8; 4] = *b"sbGK";
const HEADER_BYTES: usize = PREAMBLE_BYTES + 16;

/// The length of a group key: AES-256.
pub(super) const KEY_BYTES: usize = 32;

/// Says what the associated data of a group key's own wrap is for.
const PURPOSE: &str = "sealblk group key wrap v1";

/// What the wrap of group key `id` is bound to at its service: the purpose and
/// the id (16 bytes), each after its length as a 32-bit big-endian number.
pub fn binding(id: Uuid) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    for field in [PURPOSE.as_bytes(), id.as_bytes()] {
        bytes.extend_from_slice(&(field.len() as u32).to_be_bytes());
        bytes.extend_from_slice(field);
    }
    bytes
}

fn header(id: Uuid) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let (start, rest) = header.split_at_mut(PREAMBLE_BYTES);
    start.copy_from_slice(&preamble(MAGIC));
    rest.copy_from_slice(id.as_bytes());
    header
}

/// Wraps the key of a volume under group key `id`, bound to `aad`.
///
/// # Errors
/// When there is no locked memory, or there are no random bytes.
pub fn seal(id: Uuid, key: &Secret, dek: &Secret, aad: &[u8]) -> io::Result<Vec<u8>> {
    envelope::seal(&header(id), key, dek, aad)
}

/// The id of the group key that opens `bytes`.
///
/// # Errors
/// When they are not what [`seal`] makes.
pub fn id_of(bytes: &[u8]) -> Result<Uuid, kms::Error> {
    check_preamble(MAGIC, bytes)?;
    let id = bytes.get(PREAMBLE_BYTES..HEADER_BYTES);
    id.and_then(|id| Uuid::from_slice(id).ok())
        .ok_or_else(|| Malformed::Damaged("they are too short").into())
}

/// Unwraps the key of a volume.
///
/// # Errors
/// When `bytes` were not sealed under this key and `aad`.
pub fn open(key: &Secret, bytes: &[u8], aad: &[u8]) -> Result<Secret, kms::Error> {
    id_of(bytes)?;
    let sealed = Sealed::split(bytes, HEADER_BYTES)?;
    sealed.open(key, aad).map_err(|error| match error {
        Unopened::Unauthentic => damaged(
            "the group key does not open the wrapped key: it was tampered with, or belongs to another volume",
        )
        .with_kind(crate::error::Kind::Key),
        Unopened::Memory(error) => envelope::no_memory(&error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::Class;

    #[test]
    fn a_sealed_key_opens_with_its_group_key_and_binding_only() {
        let (key, other) = (Secret::random(32).unwrap(), Secret::random(32).unwrap());
        let dek = Secret::random(64).unwrap();
        let id = Uuid::new_v4();
        let bytes = seal(id, &key, &dek, b"volume").unwrap();
        assert_eq!(bytes.len(), 22 + 12 + 64 + 16);
        assert_eq!(id_of(&bytes).unwrap(), id);
        assert_eq!(open(&key, &bytes, b"volume").unwrap(), dek);
        for (key, aad) in [(&other, &b"volume"[..]), (&key, b"another")] {
            let error = open(key, &bytes, aad).unwrap_err();
            assert_eq!(error.class(), Class::BadKey);
        }
        for bit in 0..bytes.len() * 8 {
            let mut edited = bytes.clone();
            edited[bit / 8] ^= 1 << (bit % 8);
            open(&key, &edited, b"volume").unwrap_err();
        }
        for length in 0..bytes.len() {
            open(&key, &bytes[..length], b"volume").unwrap_err();
        }
    }

    #[test]
    fn the_layout_is_that_of_the_documentation() {
        let id = Uuid::from_u128(0x00112233_4455_6677_8899_aabbccddeeff);
        assert_eq!(
            hex(&header(id)),
            concat!("7362474b", "01", "01", "00112233445566778899aabbccddeeff")
        );
        let expected = concat!(
            "00000019",
            "7365616c626c6b2067726f7570206b65792077726170207631",
            "00000010",
            "00112233445566778899aabbccddeeff",
        );
        assert_eq!(hex(&binding(id)), expected);
        let page: String = include_str!("../../../docs/format.md")
            .split_whitespace()
            .collect();
        assert!(page.contains(expected));
    }

    fn hex(bytes: &[u8]) -> String {
        hex::encode(bytes)
    }
}
