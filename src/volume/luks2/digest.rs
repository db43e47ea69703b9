//! The digest that proves a volume key right ("Digests Object").
#![forbid(unsafe_code)]

use pbkdf2::pbkdf2_hmac;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::metadata::Fault;
use crate::secret::{Dek, scrub_stack};
use crate::volume::base64_text;

/// LUKS2's minimum. More would be waste: PBKDF2 is slow in order to protect
/// guessable passphrases, and the key is 512 random bits.
const ITERATIONS: u32 = 1000;

/// An edited header must not keep a host busy: the slowest digests that
/// cryptsetup makes stay far below.
const MAX_ITERATIONS: u32 = 50_000_000;

const SALT_BYTES: usize = 32;
const DIGEST_BYTES: usize = 32;

/// A digest of type `pbkdf2` over SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    #[serde(rename = "type")]
    kind: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    hash: String,
    iterations: u32,
    #[serde(with = "base64_text")]
    salt: Vec<u8>,
    #[serde(with = "base64_text")]
    digest: Vec<u8>,
}

impl Digest {
    /// The digest of a key, with a new salt, for segment 0.
    ///
    /// # Errors
    /// When the random number generator fails.
    pub fn of(dek: &Dek) -> Result<Self, getrandom::Error> {
        let mut salt = vec![0; SALT_BYTES];
        getrandom::fill(&mut salt)?;
        let mut digest = vec![0; DIGEST_BYTES];
        pbkdf2_hmac::<Sha256>(dek.bytes(), &salt, ITERATIONS, &mut digest);
        // HMAC has the key with a known pattern added, which is as good as the key.
        scrub_stack();
        Ok(Self::with(salt, digest))
    }

    /// A digest that proves no key right: random bytes in the place of a result.
    /// For a header whose key was destroyed, which without any digest would
    /// not be well-formed.
    ///
    /// # Errors
    /// When the random number generator fails.
    pub fn of_no_key() -> Result<Self, getrandom::Error> {
        let (mut salt, mut digest) = (vec![0; SALT_BYTES], vec![0; DIGEST_BYTES]);
        getrandom::fill(&mut salt)?;
        getrandom::fill(&mut digest)?;
        Ok(Self::with(salt, digest))
    }

    fn with(salt: Vec<u8>, digest: Vec<u8>) -> Self {
        Digest {
            kind: "pbkdf2".into(),
            keyslots: Vec::new(),
            segments: vec!["0".into()],
            hash: "sha256".into(),
            iterations: ITERATIONS,
            salt,
            digest,
        }
    }

    /// Reads a digest object.
    ///
    /// # Errors
    /// When it is malformed or of another kind.
    pub fn from_json(value: &Value) -> Result<Self, Fault> {
        for (name, ours) in [("type", "pbkdf2"), ("hash", "sha256")] {
            match value.get(name).and_then(Value::as_str) {
                Some(text) if text == ours => {}
                other => {
                    return Err(Fault::Unsupported(format!(
                        "its digest has {name} {other:?}, not {ours}"
                    )));
                }
            }
        }
        let digest: Digest = serde_json::from_value(value.clone())
            .map_err(|error| Fault::Invalid(format!("digest: {error}")))?;
        if digest.digest.len() != DIGEST_BYTES {
            return Err(Fault::Invalid("digest of a wrong length".into()));
        }
        if digest.iterations == 0 || digest.iterations > MAX_ITERATIONS {
            return Err(Fault::Unsupported(format!(
                "its digest has {} iterations",
                digest.iterations
            )));
        }
        Ok(digest)
    }

    /// Whether this is the digest of `dek`. Compared in constant time.
    pub fn proves(&self, dek: &Dek) -> bool {
        let mut computed = [0; DIGEST_BYTES];
        pbkdf2_hmac::<Sha256>(dek.bytes(), &self.salt, self.iterations, &mut computed);
        scrub_stack();
        computed.ct_eq(&self.digest).into()
    }

    /// Whether two digests are of the same key, as far as that can be told
    /// without the key: the same salt and result.
    pub fn same_key(&self, other: &Digest) -> bool {
        (self.iterations, &self.salt, &self.digest)
            == (other.iterations, &other.salt, &other.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn dek(start: u8) -> Dek {
        let bytes: Vec<u8> = (0..64).map(|i| start.wrapping_add(i)).collect();
        Dek::try_from(Secret::copy_of(&bytes).unwrap()).unwrap()
    }

    #[test]
    fn a_digest_proves_its_key_and_no_other() {
        let digest = Digest::of(&dek(0)).unwrap();
        assert!(digest.proves(&dek(0)));
        assert!(!digest.proves(&dek(1)));
        let value = serde_json::to_value(&digest).unwrap();
        assert_eq!(Digest::from_json(&value), Ok(digest));
    }

    #[test]
    fn two_digests_of_one_key_differ() {
        let (a, b) = (Digest::of(&dek(0)).unwrap(), Digest::of(&dek(0)).unwrap());
        assert!(!a.same_key(&b), "the salt must be new each time");
    }

    #[test]
    fn a_digest_of_no_key_is_well_formed_and_proves_none() {
        let digest = Digest::of_no_key().unwrap();
        let value = serde_json::to_value(&digest).unwrap();
        assert_eq!(Digest::from_json(&value).as_ref(), Ok(&digest));
        assert!(!digest.proves(&dek(0)));
        assert!(!digest.same_key(&Digest::of_no_key().unwrap()));
    }

    /// Computed with Python's `hashlib.pbkdf2_hmac`.
    #[test]
    fn the_digest_is_plain_pbkdf2() {
        let value = serde_json::json!({
            "type": "pbkdf2", "keyslots": [], "segments": ["0"], "hash": "sha256",
            "iterations": 1000,
            "salt": "c2FsdHNhbHRzYWx0c2FsdHNhbHRzYWx0c2FsdHNhbHQ=",
            "digest": "I+jqrMM56hzZWCxQH7aAiAW7OVeMO1zFznFSY56guJ8=",
        });
        assert!(Digest::from_json(&value).unwrap().proves(&dek(0)));
    }

    #[test]
    fn foreign_and_malformed_digests_are_refused() {
        let good = serde_json::to_value(Digest::of(&dek(0)).unwrap()).unwrap();
        for (name, wrong) in [
            ("type", "argon2".into()),
            ("hash", "sha512".into()),
            ("iterations", 0.into()),
            ("iterations", u32::MAX.into()),
            ("salt", "***".into()),
            ("digest", "AAAA".into()),
        ] {
            let mut value = good.clone();
            value[name] = wrong;
            assert!(Digest::from_json(&value).is_err(), "{name}");
        }
    }
}
