//! Private keys of X25519 and Ed25519 in files: PEM (RFC 7468) with PKCS #8 as
//! RFC 8410 has it, so that OpenSSL makes, reads and uses them as well.
#![forbid(unsafe_code)]

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

use super::Secret;

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";

/// The length of such a key.
pub const KEY_BYTES: usize = 32;

const HEAD_BYTES: usize = 16;
const DER_BYTES: usize = HEAD_BYTES + KEY_BYTES;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// To agree on keys.
    X25519,
    /// To sign.
    Ed25519,
}

impl Algorithm {
    /// `OneAsymmetricKey` (RFC 5958) with version 0 and the algorithm, up to
    /// the key's bytes.
    fn head(self) -> [u8; HEAD_BYTES] {
        // The last number of id-X25519 and id-Ed25519 (RFC 8410, section 3).
        let id = match self {
            Algorithm::X25519 => 0x6e,
            Algorithm::Ed25519 => 0x70,
        };
        [
            0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, id, 0x04, 0x22, 0x04,
            0x20,
        ]
    }
}

/// The text of a file with `key`.
///
/// # Errors
/// When there is no locked memory, or the key has another length.
pub fn to_pem(algorithm: Algorithm, key: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
    if key.len() != KEY_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut der = Secret::zeroed(DER_BYTES)?;
    der[..HEAD_BYTES].copy_from_slice(&algorithm.head());
    der[HEAD_BYTES..].copy_from_slice(key);
    let mut body = Zeroizing::new([0; DER_BYTES.div_ceil(3) * 4]);
    BASE64
        .encode_slice(&der[..], &mut body[..])
        .map_err(io::Error::other)?;
    // Enough for all of it: nothing is left behind by growing.
    let mut text = Zeroizing::new(Vec::with_capacity(256));
    writeln!(text, "{BEGIN}")?;
    text.extend_from_slice(&body[..]);
    writeln!(text, "\n{END}")?;
    Ok(text)
}

/// The key in the text of a file, if it is one for `algorithm`.
///
/// # Errors
/// When there is no locked memory.
pub fn of_pem(algorithm: Algorithm, text: &Secret) -> io::Result<Option<Secret>> {
    let Some(body) = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.trim().strip_prefix(BEGIN))
        .and_then(|text| text.strip_suffix(END))
    else {
        return Ok(None);
    };
    let mut joined = Secret::zeroed(body.len())?;
    let mut length = 0;
    for byte in body.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        joined[length] = byte;
        length += 1;
    }
    let mut der = Secret::zeroed(base64::decoded_len_estimate(length))?;
    match BASE64.decode_slice(&joined[..length], &mut der) {
        Ok(DER_BYTES) if der.starts_with(&algorithm.head()) => {
            Secret::copy_of(&der[HEAD_BYTES..DER_BYTES]).map(Some)
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_what_it_was_written_for_and_as_nothing_else() {
        use Algorithm::{Ed25519, X25519};
        let key = Secret::random(KEY_BYTES).unwrap();
        for (algorithm, other) in [(X25519, Ed25519), (Ed25519, X25519)] {
            let text = Secret::copy_of(&to_pem(algorithm, &key).unwrap()).unwrap();
            assert_eq!(of_pem(algorithm, &text).unwrap().as_ref(), Some(&key));
            assert_eq!(of_pem(other, &text).unwrap(), None);
            for end in 0..text.len() - 1 {
                let cut = Secret::copy_of(&text[..end]).unwrap();
                assert_eq!(of_pem(algorithm, &cut).unwrap(), None, "{end}");
            }
        }
        assert!(to_pem(X25519, &key[1..]).is_err());
    }
}
