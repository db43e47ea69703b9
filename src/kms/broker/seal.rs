//! Messages that only one host and one broker can make and read, whoever
//! carries them: HPKE (RFC 9180) in its authenticated mode, with X25519,
//! HKDF-SHA256 and AES-256-GCM.
//!
//! A request is sealed by the host's key to the broker's, and bound to the
//! protocol version, the host's name and the broker's public key. An answer
//! is sealed by the broker's key to the host's, and bound to all of the
//! request: it fits no other one.

use std::fmt;
use std::io;
use std::str::FromStr;

use aes_gcm::aead::inout::InOutBuf;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hpke::aead::{AeadTag, AesGcm256};
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use super::protocol::{Frame, VERSION};
use crate::secret::{Secret, scrubbed};

/// The length of keys, public and private, in bytes.
pub const KEY_BYTES: usize = 32;

const TAG_BYTES: usize = 16;
const REQUEST: &[u8] = b"sealblk broker request v1";
const ANSWER: &[u8] = b"sealblk broker answer v1";

/// The public X25519 key of a host or a broker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// The key with these bytes.
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        PublicKey(bytes)
    }

    /// Its bytes, as RFC 7748 has them.
    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match BASE64.decode(text).map(<[u8; KEY_BYTES]>::try_from) {
            Ok(Ok(bytes)) => Ok(PublicKey(bytes)),
            _ => Err(format!(
                "{text:?} is not a public key: write the base64 text that `sealblk broker pubkey FILE` prints ({KEY_BYTES} bytes)"
            )),
        }
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

impl TryFrom<String> for PublicKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The private X25519 key of a host or a broker.
pub struct PrivateKey {
    bytes: Secret,
    public: PublicKey,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public)
    }
}

/// Why a message was not sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The keys, the host's name, the request or the bytes are not those that
    /// it was sealed with.
    #[error("it was not sealed by that key for this one, or was changed on its way")]
    Unauthentic,
    /// The other end speaks another version.
    #[error("it has version {0} of the protocol, and this sealblk speaks version {VERSION}")]
    Version(u32),
    /// A key is one with which no secret can be agreed on.
    #[error("the public key {0} is not one that can be used")]
    Key(PublicKey),
    /// No locked memory or random bytes.
    #[error("no locked memory or random bytes: {0}")]
    Memory(#[from] io::Error),
}

type Private = <X25519HkdfSha256 as Kem>::PrivateKey;
type Public = <X25519HkdfSha256 as Kem>::PublicKey;

impl PrivateKey {
    /// A new random key.
    ///
    /// # Errors
    /// When there is no locked memory, or no random bytes.
    pub fn generate() -> io::Result<Self> {
        Self::new(Secret::random(KEY_BYTES)?)
    }

    /// The key with these bytes.
    ///
    /// # Errors
    /// When they are not [`KEY_BYTES`].
    pub fn new(bytes: Secret) -> io::Result<Self> {
        let public = scrubbed(|| {
            private(&bytes).map(|key| X25519HkdfSha256::sk_to_pk(&key).to_bytes().into())
        })?;
        Ok(PrivateKey {
            bytes,
            public: PublicKey(public),
        })
    }

    /// The public key that goes with it.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Its bytes, for a key file.
    pub(super) fn bytes(&self) -> &Secret {
        &self.bytes
    }
}

fn private(bytes: &Secret) -> io::Result<Private> {
    Private::from_bytes(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn public(key: PublicKey) -> Result<Public, Error> {
    Public::from_bytes(&key.0).map_err(|_| Error::Key(key))
}

/// Seals `message` from `host`, whose key is `from`, to the broker with key `to`.
///
/// # Errors
/// When `to` is no key, or there is no memory.
pub fn request(
    from: &PrivateKey,
    host: &str,
    to: PublicKey,
    message: &Secret,
) -> Result<Frame, Error> {
    seal(from, to, REQUEST, host, &request_aad(host, to), message)
}

/// Opens a request that the host with key `from` made for the broker with key `to`.
///
/// # Errors
/// [`Error::Unauthentic`] if it is not one.
pub fn open_request(to: &PrivateKey, from: PublicKey, frame: &Frame) -> Result<Secret, Error> {
    open(
        to,
        from,
        REQUEST,
        &request_aad(&frame.host, to.public),
        frame,
    )
}

/// Seals `message` from the broker with key `from` to the host with key `to`,
/// as the answer to `request`.
///
/// # Errors
/// When `to` is no key, or there is no memory.
pub fn answer(
    from: &PrivateKey,
    to: PublicKey,
    request: &Frame,
    message: &Secret,
) -> Result<Frame, Error> {
    seal(
        from,
        to,
        ANSWER,
        &request.host,
        &answer_aad(request),
        message,
    )
}

/// Opens the answer to `request` that the broker with key `from` made for the
/// host with key `to`.
///
/// # Errors
/// [`Error::Unauthentic`] if it is not that.
pub fn open_answer(
    to: &PrivateKey,
    from: PublicKey,
    request: &Frame,
    frame: &Frame,
) -> Result<Secret, Error> {
    open(to, from, ANSWER, &answer_aad(request), frame)
}

/// Version (4 bytes, big-endian), length of the name (4 bytes, big-endian),
/// name, the broker's public key.
fn request_aad(host: &str, broker: PublicKey) -> Vec<u8> {
    let length = u32::try_from(host.len()).unwrap_or(u32::MAX);
    let mut aad = Vec::with_capacity(8 + host.len() + KEY_BYTES);
    aad.extend_from_slice(&VERSION.to_be_bytes());
    aad.extend_from_slice(&length.to_be_bytes());
    aad.extend_from_slice(host.as_bytes());
    aad.extend_from_slice(&broker.0);
    aad
}

/// SHA-256 of the request's encapsulated key and ciphertext. No two requests
/// have the same encapsulated key.
fn answer_aad(request: &Frame) -> [u8; 32] {
    Sha256::new()
        .chain_update(&request.enc)
        .chain_update(&request.ciphertext)
        .finalize()
        .into()
}

fn seal(
    from: &PrivateKey,
    to: PublicKey,
    info: &[u8],
    host: &str,
    aad: &[u8],
    message: &Secret,
) -> Result<Frame, Error> {
    // Encrypted where it lies: what is left is ciphertext.
    let mut ciphertext = Vec::with_capacity(message.len() + TAG_BYTES);
    ciphertext.extend_from_slice(message);
    let sealed =
        scrubbed(|| {
            let sealed =
                hpke::single_shot_seal_inout_detached::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
                    &OpModeS::Auth((private(&from.bytes)?, public(from.public)?)),
                    &public(to)?,
                    info,
                    InOutBuf::from(&mut ciphertext[..]),
                    aad,
                );
            Ok::<_, Error>(sealed)
        })
        .inspect_err(|_| ciphertext.zeroize())?;
    let Ok((enc, tag)) = sealed else {
        ciphertext.zeroize();
        return Err(Error::Key(to));
    };
    ciphertext.extend_from_slice(&tag.to_bytes());
    Ok(Frame {
        version: VERSION,
        host: host.into(),
        enc: enc.to_bytes().to_vec(),
        ciphertext,
    })
}

fn open(
    to: &PrivateKey,
    from: PublicKey,
    info: &[u8],
    aad: &[u8],
    frame: &Frame,
) -> Result<Secret, Error> {
    if frame.version != VERSION {
        return Err(Error::Version(frame.version));
    }
    open_raw(to, from, info, aad, &frame.enc, &frame.ciphertext)
}

fn open_raw(
    to: &PrivateKey,
    from: PublicKey,
    info: &[u8],
    aad: &[u8],
    enc: &[u8],
    ciphertext: &[u8],
) -> Result<Secret, Error> {
    let unauthentic = |_| Error::Unauthentic;
    let enc = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(enc).map_err(unauthentic)?;
    let length = ciphertext
        .len()
        .checked_sub(TAG_BYTES)
        .ok_or(Error::Unauthentic)?;
    let (ciphertext, tag) = ciphertext.split_at(length);
    let tag = AeadTag::from_bytes(tag).map_err(unauthentic)?;
    let mut message = Secret::copy_of(ciphertext)?;
    scrubbed(|| {
        hpke::single_shot_open_inout_detached::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Auth(public(from)?),
            &private(&to.bytes)?,
            &enc,
            info,
            InOutBuf::from(&mut message[..]),
            aad,
            &tag,
        )
        .map_err(unauthentic)
    })?;
    Ok(message)
}

#[cfg(test)]
mod tests;
