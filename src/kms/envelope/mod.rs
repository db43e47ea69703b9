//! What envelopes that are sealed with AES-256-GCM have in common, whoever
//! holds the key and whoever computes.
//!
//! ```text
//!  0  4  magic of the kind of header
//!  4  1  envelope version: 1
//!  5  1  algorithm: 1 = AES-256-GCM
//!  6  …  the rest of the header: which key
//!  … 12  nonce, random
//!  …  n  ciphertext, as long as what was wrapped
//!  … 16  tag
//! ```
//!
//! GCM's associated data are the whole header, then the length of the caller's
//! associated data (8 bytes, big-endian), then these. The nonce is what GCM
//! starts from. So no bit of the envelope can change unnoticed. `docs/kms.md`
//! has the layouts byte for byte.

#[cfg(any(feature = "azure-keyvault", feature = "pkcs11"))]
pub mod bound;
#[cfg(feature = "aws-kms")]
pub mod context;
pub mod named;

use std::io;

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, Key, KeyInit, Nonce, Tag};

use super::{Class, Error};
use crate::error::Kind;
use crate::secret::{Secret, scrubbed};

const ENVELOPE_VERSION: u8 = 1;
const AES_256_GCM: u8 = 1;

/// The length of what all headers begin with, in bytes.
pub const PREAMBLE_BYTES: usize = 6;
/// The length of a nonce, in bytes.
pub const NONCE_BYTES: usize = 12;
/// The length of a tag, in bytes.
pub const TAG_BYTES: usize = 16;

/// The name of AES-256-GCM (JOSE, RFC 7518) in [`crate::kms::Wrapped::alg`].
pub const ALG: &str = "A256GCM";

/// The most that is wrapped at once: keys are small, and a bound keeps an
/// envelope from being a way to have memory locked.
pub const PLAINTEXT_MAX: usize = 1024;

/// The beginning of a header of the kind that `magic` names.
pub fn preamble(magic: [u8; 4]) -> [u8; PREAMBLE_BYTES] {
    let [a, b, c, d] = magic;
    [a, b, c, d, ENVELOPE_VERSION, AES_256_GCM]
}

/// Checks that `bytes` begin as envelopes of the kind that `magic` names do.
pub fn check_preamble(magic: [u8; 4], bytes: &[u8]) -> Result<(), Malformed> {
    read_preamble(magic, AES_256_GCM, bytes).map(drop)
}

/// The same for a kind of which the algorithms are numbered up to `newest`:
/// that of `bytes`.
fn read_preamble(magic: [u8; 4], newest: u8, bytes: &[u8]) -> Result<u8, Malformed> {
    let (Some(found), Some(&version)) = (bytes.get(..4), bytes.get(4)) else {
        return Err(Malformed::Damaged("they are too short"));
    };
    if found != magic {
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
    match bytes.get(5) {
        Some(0) => Err(Malformed::Damaged("there never was an algorithm 0")),
        Some(&found) if found <= newest => Ok(found),
        Some(&found) => Err(Malformed::Newer {
            what: "algorithm",
            found,
        }),
        None => Err(Malformed::Damaged("they are too short")),
    }
}

/// An envelope that has been taken apart, and not yet been opened.
#[derive(Debug)]
pub struct Sealed<'a> {
    header: &'a [u8],
    /// What GCM starts from.
    pub nonce: &'a [u8],
    /// As long as what was wrapped.
    pub ciphertext: &'a [u8],
    /// GCM's tag.
    pub tag: &'a [u8],
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

impl<'a> Sealed<'a> {
    /// Takes an envelope apart of which the first `header` bytes are the header.
    pub fn split(bytes: &'a [u8], header: usize) -> Result<Self, Malformed> {
        const SHORT: Malformed = Malformed::Damaged("they are too short");
        let (header, rest) = bytes.split_at_checked(header).ok_or(SHORT)?;
        let (nonce, rest) = rest.split_at_checked(NONCE_BYTES).ok_or(SHORT)?;
        let length = rest.len().checked_sub(TAG_BYTES).ok_or(SHORT)?;
        if length > PLAINTEXT_MAX {
            return Err(Malformed::Damaged("they are too long"));
        }
        let (ciphertext, tag) = rest.split_at(length);
        Ok(Sealed {
            header,
            nonce,
            ciphertext,
            tag,
        })
    }

    /// The additional authenticated data that GCM gets, of which `aad` is the caller's.
    pub fn associated(&self, aad: &[u8]) -> Vec<u8> {
        associated(self.header, aad)
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
        let associated = self.associated(aad);
        // It leaves round keys, and blocks of what was decrypted.
        scrubbed(|| {
            let buffer = (&mut plaintext[..]).into();
            Aes256Gcm::new(key).decrypt_inout_detached(&nonce, &associated, buffer, &tag)
        })
        .map_err(|_| Unopened::Unauthentic)?;
        Ok(plaintext)
    }
}

/// A nonce for one envelope.
pub fn nonce() -> io::Result<[u8; NONCE_BYTES]> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}

/// Seals `plaintext` under `key`, bound to `aad`, with a nonce of its own:
/// the whole envelope, which begins with `header`.
pub fn seal(header: &[u8], key: &Secret, plaintext: &Secret, aad: &[u8]) -> io::Result<Vec<u8>> {
    if plaintext.len() > PLAINTEXT_MAX {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let nonce = nonce()?;
    // Encrypted in secret memory: the plaintext is never in ordinary memory.
    let mut buffer = Secret::copy_of(plaintext)?;
    let key = gcm_key(key).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let associated = associated(header, aad);
    // It leaves round keys, and blocks of what was encrypted.
    let tag = scrubbed(|| {
        let buffer = (&mut buffer[..]).into();
        Aes256Gcm::new(key).encrypt_inout_detached(&nonce.into(), &associated, buffer)
    })
    .map_err(io::Error::other)?;
    Ok([header, &nonce, &buffer, &tag].concat())
}

fn gcm_key(key: &Secret) -> Option<&Key<Aes256Gcm>> {
    <&Key<Aes256Gcm>>::try_from(&key[..]).ok()
}

/// The additional authenticated data of an envelope with `header`, of which
/// `aad` is the caller's.
pub fn associated(header: &[u8], aad: &[u8]) -> Vec<u8> {
    let mut associated = Vec::with_capacity(header.len() + 8 + aad.len());
    associated.extend_from_slice(header);
    associated.extend_from_slice(&(aad.len() as u64).to_be_bytes());
    associated.extend_from_slice(aad);
    associated
}

/// The error of an envelope that is not what was written.
pub fn damaged(cause: impl Into<String>) -> Error {
    Error::new(
        Class::BadKey,
        cause,
        "restore the volume's header from a backup, and find out who changed it",
    )
    .with_kind(Kind::Corrupt)
}

/// Compares what an envelope says of itself with what stands beside it. The
/// envelope's own fields are the authentic ones, once it opens.
///
/// # Errors
/// When one of `fields` (what it is, outside, inside) differs.
pub fn check_beside(fields: &[(&str, &str, &str)]) -> Result<(), Error> {
    for (what, outside, inside) in fields {
        if outside != inside {
            return Err(damaged(format!(
                "the wrapped bytes name {what} {}, and what stands beside them says {}",
                shown(inside),
                shown(outside)
            )));
        }
    }
    Ok(())
}

/// A name from a disk, on which anybody may have written: on one line, and not
/// endlessly.
fn shown(name: &str) -> String {
    const SHOWN_MAX: usize = 100;
    let mut shown: String = name.escape_debug().take(SHOWN_MAX).collect();
    if name.escape_debug().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}

impl From<Malformed> for Error {
    fn from(error: Malformed) -> Self {
        match error {
            Malformed::Damaged(why) => damaged(format!(
                "the wrapped bytes were not made by this provider, or are damaged: {why}"
            )),
            Malformed::Newer { what, found } => Error::new(
                Class::Protocol,
                format!("the wrapped bytes have {what} {found}, made by a newer sealblk"),
                "upgrade sealblk on this host",
            ),
        }
    }
}

/// The error of a key that could not be sealed.
pub fn cannot_seal(error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::InvalidInput {
        return too_long();
    }
    no_memory(error)
}

/// The error of more than [`PLAINTEXT_MAX`] bytes.
pub fn too_long() -> Error {
    Error::new(
        Class::Protocol,
        format!("more than {PLAINTEXT_MAX} bytes cannot be wrapped"),
        "this is a defect of sealblk: report it",
    )
    .with_kind(Kind::Internal)
}

/// The error of a host that has no locked memory or random bytes.
pub fn no_memory(error: &io::Error) -> Error {
    Error::new(
        Class::Unreachable,
        format!("no locked memory or random bytes for the key: {error}"),
        "raise the limit of locked memory (`ulimit -l`, or LimitMEMLOCK= in a systemd unit)",
    )
    .with_kind(Kind::Io)
}
