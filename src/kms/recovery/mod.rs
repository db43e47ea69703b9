//! Recovery keys: a key that wraps like that of a service, and that no service
//! and no host has. It is printed once, and lies in a safe.
//!
//! It is 256 random bits, and named by a hash of them, so that a wrap says
//! which paper opens it. What it makes is
//!
//! ```text
//!  0  6  preamble with magic "sbRK" (see `kms::envelope`)
//!  6  8  id of the recovery key
//! 14 12  nonce
//! 26  n  ciphertext
//!  … 16  tag
//! ```
#![forbid(unsafe_code)]

mod text;

pub use text::BadText;

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::credential::{SecretFile, Unreadable};
use super::envelope::{
    self, ALG, Malformed, PREAMBLE_BYTES, Sealed, Unopened, check_beside, check_preamble, damaged,
    no_memory, preamble,
};
use super::{Class, Error, Wrapped};
use crate::error::Kind;
use crate::secret::Secret;

/// What stands as the provider of a wrap, and as its key set.
pub const NAME: &str = "recovery-key";

/// AES-256.
const KEY_BYTES: usize = 32;

const MAGIC: [u8; 4] = *b"sbRK";
const ID_BYTES: usize = 8;
const HEADER_BYTES: usize = PREAMBLE_BYTES + ID_BYTES;

/// The one version that a recovery key has.
const VERSION: &str = "1";

const ID_PURPOSE: &[u8] = b"sealblk recovery key id v1";

/// Names a recovery key, and says nothing of it: sixteen hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id([u8; ID_BYTES]);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} is not the id of a recovery key, which has sixteen hexadecimal digits"
            )
        };
        let digits = text.len() == 2 * ID_BYTES && text.bytes().all(|c| c.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).map_err(|_| bad())?;
        match digits {
            true => Ok(Id(number.to_be_bytes())),
            false => Err(bad()),
        }
    }
}

/// A recovery key, while somebody has it out of the safe.
#[derive(Debug)]
pub struct RecoveryKey {
    id: Id,
    key: Secret,
}

impl RecoveryKey {
    /// A new one.
    ///
    /// # Errors
    /// When there is no locked memory, or there are no random bytes.
    pub fn generate() -> io::Result<Self> {
        Ok(Self::of(Secret::random(KEY_BYTES)?))
    }

    fn of(key: Secret) -> Self {
        let mut hash = Sha256::new();
        hash.update(ID_PURPOSE);
        hash.update(&key[..]);
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&hash.finalize()[..ID_BYTES]);
        RecoveryKey { id: Id(id), key }
    }

    /// The one that somebody typed.
    ///
    /// # Errors
    /// Which group of it is wrong.
    pub fn parse(text: &Secret) -> Result<Self, BadText> {
        text::read(text).map(Self::of)
    }

    /// The one in the file at `path`, which others must not be able to read.
    ///
    /// # Errors
    /// When the file cannot be read, is not safe, or has no recovery key.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let text = SecretFile::new(path).read().map_err(ReadError::File)?;
        Self::parse(&text).map_err(ReadError::Text)
    }

    /// The groups that are to be printed, with line breaks.
    ///
    /// # Errors
    /// When there is no locked memory.
    pub fn to_text(&self) -> io::Result<Secret> {
        text::write(&self.key)
    }

    /// Which one it is.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Wraps a key, bound to `aad`.
    ///
    /// # Errors
    /// When there is no locked memory, or there are no random bytes.
    pub fn wrap(&self, plaintext: &Secret, aad: &[u8]) -> Result<Wrapped, Error> {
        let mut header = [0; HEADER_BYTES];
        let (start, rest) = header.split_at_mut(PREAMBLE_BYTES);
        start.copy_from_slice(&preamble(MAGIC));
        rest.copy_from_slice(&self.id.0);
        let bytes = envelope::seal(&header, &self.key, plaintext, aad)
            .map_err(|error| envelope::cannot_seal(&error))?;
        Ok(Wrapped {
            key_id: self.id.to_string(),
            version: VERSION.into(),
            alg: ALG.into(),
            bytes,
        })
    }

    /// Opens what [`RecoveryKey::wrap`] made.
    ///
    /// # Errors
    /// [`Class::BadKey`] when it was made by another one, or for something else.
    pub fn unwrap(&self, wrapped: &Wrapped, aad: &[u8]) -> Result<Secret, Error> {
        check_preamble(MAGIC, &wrapped.bytes)?;
        let inside = wrapped.bytes.get(PREAMBLE_BYTES..HEADER_BYTES);
        let inside = inside.and_then(|id| id.try_into().ok()).map(Id);
        let inside = inside.ok_or(Malformed::Damaged("they are too short"))?;
        check_beside(&[
            ("recovery key", &wrapped.key_id, &inside.to_string()),
            ("key version", &wrapped.version, VERSION),
            ("algorithm", &wrapped.alg, ALG),
        ])?;
        if inside != self.id {
            return Err(Error::new(
                Class::BadKey,
                format!("this is recovery key {}, and {inside} is needed", self.id),
                "take the paper with that id",
            )
            .with_kind(Kind::Key));
        }
        let sealed = Sealed::split(&wrapped.bytes, HEADER_BYTES)?;
        sealed.open(&self.key, aad).map_err(|error| match error {
            Unopened::Unauthentic => damaged(
                "the recovery key does not open the wrapped key: it was tampered with, or belongs to another volume",
            )
            .with_kind(Kind::Key),
            Unopened::Memory(error) => no_memory(&error),
        })
    }
}

/// Why a file gives no recovery key.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read, or is not safe.
    #[error("cannot read the recovery key in {0}")]
    File(Unreadable),
    /// It has none.
    #[error(transparent)]
    Text(BadText),
}

impl crate::error::Explain for ReadError {
    fn kind(&self) -> Kind {
        match self {
            ReadError::File(source) => source.kind(),
            ReadError::Text(source) => source.kind(),
        }
    }

    fn help(&self) -> Option<String> {
        match self {
            ReadError::File(_) => Some(
                "type it into a file of mode 0600 that is yours, best in memory (/dev/shm), and \
                 destroy that afterwards"
                    .into(),
            ),
            ReadError::Text(source) => source.help(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrap_opens_with_its_own_recovery_key_and_binding_only() {
        let (key, other) = (
            RecoveryKey::generate().unwrap(),
            RecoveryKey::generate().unwrap(),
        );
        let dek = Secret::random(64).unwrap();
        let wrapped = key.wrap(&dek, b"volume").unwrap();
        assert_eq!(wrapped.bytes.len(), 14 + 12 + 64 + 16);
        assert_eq!(key.unwrap(&wrapped, b"volume").unwrap(), dek);
        let again = RecoveryKey::parse(&key.to_text().unwrap()).unwrap();
        assert_eq!(again.id(), key.id());
        assert_eq!(again.unwrap(&wrapped, b"volume").unwrap(), dek);
        let error = other.unwrap(&wrapped, b"volume").unwrap_err();
        assert_eq!(error.class(), Class::BadKey);
        assert!(error.to_string().contains(&key.id().to_string()), "{error}");
        key.unwrap(&wrapped, b"another").unwrap_err();
        for bit in 0..wrapped.bytes.len() * 8 {
            let mut edited = wrapped.clone();
            edited.bytes[bit / 8] ^= 1 << (bit % 8);
            key.unwrap(&edited, b"volume").unwrap_err();
        }
        for length in 0..wrapped.bytes.len() {
            let mut cut = wrapped.clone();
            cut.bytes.truncate(length);
            key.unwrap(&cut, b"volume").unwrap_err();
        }
    }

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let id = RecoveryKey::generate().unwrap().id();
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "12", "+123456789abcdef", "0123456789abcdefa"] {
            assert!(bad.parse::<Id>().is_err(), "{bad}");
        }
    }
}
