//! Envelopes around what a service encrypted with associated data that are
//! text and stand in its log: an encryption context.
//!
//! ```text
//!  0  4  magic "sbWX"
//!  4  1  envelope version: 1
//!  5  1  algorithm, as the provider numbers them
//!  6  2  length k of the key id, big-endian
//!  8  k  key id, UTF-8
//!  …  2  length v of the version, big-endian
//!  …  v  version, UTF-8
//!  …  …  what the service made
//! ```
//!
//! The context has the SHA-256, in base64, of all before "what the service
//! made", the length of the caller's associated data (8 bytes, big-endian), and
//! these. So neither the header nor the binding can change unnoticed, and the
//! log of the service tells nothing of either.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};

use super::named::{name, push_name};
use super::{Malformed, associated, preamble, read_preamble};

const MAGIC: [u8; 4] = *b"sbWX";

/// An envelope that has been taken apart, and not yet been opened.
#[derive(Debug)]
pub struct Envelope<'a> {
    header: &'a [u8],
    /// The key that wrapped it.
    pub key_id: &'a str,
    /// The version of the key.
    pub version: &'a str,
    /// What the service made.
    pub ciphertext: &'a [u8],
}

/// The header of an envelope. `None` when a name is empty or too long.
pub fn header(algorithm: u8, key_id: &str, version: &str) -> Option<Vec<u8>> {
    let mut header = preamble(MAGIC).to_vec();
    header[5] = algorithm;
    push_name(&mut header, key_id)?;
    push_name(&mut header, version)?;
    Some(header)
}

/// What stands in the context of an envelope with `header`, bound to `aad`.
pub fn binding(header: &[u8], aad: &[u8]) -> String {
    BASE64.encode(Sha256::digest(associated(header, aad)))
}

/// Takes `bytes` apart, of which the algorithm is at most `newest`, and what
/// the service made at most `longest` bytes long.
///
/// # Errors
/// When they are not such an envelope.
pub fn parse(newest: u8, longest: usize, bytes: &[u8]) -> Result<Envelope<'_>, Malformed> {
    read_preamble(MAGIC, newest, bytes)?;
    let (key_id, rest) = name(&bytes[super::PREAMBLE_BYTES..])?;
    let (version, ciphertext) = name(rest)?;
    match ciphertext.len() {
        0 => Err(Malformed::Damaged("they are too short")),
        length if length > longest => Err(Malformed::Damaged("they are too long")),
        length => Ok(Envelope {
            header: &bytes[..bytes.len() - length],
            key_id,
            version,
            ciphertext,
        }),
    }
}

impl Envelope<'_> {
    /// What stands in its context, if it was bound to `aad`.
    pub fn binding(&self, aad: &[u8]) -> String {
        binding(self.header, aad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with Python's `hashlib` from the documented layout.
    #[test]
    fn the_binding_is_as_documented() {
        let header = header(1, "key", "version").unwrap();
        assert_eq!(
            hex::encode(&header),
            "73625758010100036b6579000776657273696f6e"
        );
        assert_eq!(
            binding(&header, b"volume"),
            "6itdmhC6naP7cH2EIumXGqfie/L7mfO0rel3PmDj05g="
        );
    }

    #[test]
    fn each_bit_of_the_header_is_bound() {
        let head = header(1, "a key", "a version").unwrap();
        let bytes = [&head[..], b"blob"].concat();
        let bound = |bytes: &[u8], aad: &[u8]| {
            let envelope = parse(1, 4, bytes).ok()?;
            Some((envelope.binding(aad), envelope.ciphertext.to_vec()))
        };
        let good = bound(&bytes, b"volume").unwrap();
        assert_eq!(good, (binding(&head, b"volume"), b"blob".to_vec()));
        for bit in 0..head.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let changed = bound(&changed, b"volume").map(|(binding, _)| binding);
            assert_ne!(changed.as_ref(), Some(&good.0), "bit {bit}");
        }
        for aad in [&b""[..], b"volum", b"volume\0"] {
            assert_ne!(bound(&bytes, aad).unwrap().0, good.0);
        }
        for length in 0..=head.len() {
            assert_eq!(bound(&bytes[..length], b"volume"), None, "{length} bytes");
        }
        assert!(parse(1, 3, &bytes).is_err());
        assert_eq!(header(1, "", "v"), None);
    }
}
