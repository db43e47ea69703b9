//! The key of a host, with which it signs reports: an Ed25519 key in PEM
//! (RFC 8410), so that OpenSSL makes, reads and uses it as well.

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use super::error::Error;
use crate::durable;
use crate::error::{Explain as _, Kind, io_kind};
use crate::kms;
use crate::kms::credential::SecretFile;
use crate::secret::Secret;
use crate::secret::private_key::{Algorithm, KEY_BYTES, of_pem, to_pem};

const PUBLIC: [&str; 2] = ["-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"];

/// `SubjectPublicKeyInfo` (RFC 5280) with the same algorithm.
const PUBLIC_HEAD: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// What a host signs with. Nothing of it is expanded but while it signs.
#[derive(Debug)]
pub struct HostKey {
    seed: Secret,
    public: PublicKey,
}

/// What its signatures are checked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; KEY_BYTES]);

impl HostKey {
    fn of(seed: Secret) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).ok()?;
        let public = PublicKey(pair.public_key().as_ref().try_into().ok()?);
        Some(HostKey { seed, public })
    }

    /// Makes a key, and writes it to `path`, where nothing must be yet.
    ///
    /// # Errors
    /// When something is there, or it cannot be written.
    pub fn make(path: &Path) -> Result<Self, Error> {
        let fail = |error: io::Error| Error::HostKey {
            what: "make",
            path: path.to_owned(),
            kind: match error.kind() {
                io::ErrorKind::AlreadyExists => Kind::Refused,
                _ => io_kind(&error),
            },
            why: match error.kind() {
                io::ErrorKind::AlreadyExists => "it is there already".into(),
                _ => error.to_string(),
            },
        };
        let seed = Secret::random(KEY_BYTES).map_err(fail)?;
        let pem = to_pem(Algorithm::Ed25519, &seed).map_err(fail)?;
        let key = HostKey::of(seed).ok_or(Error::Internal)?;
        durable::create(path, &pem, 0o600).map_err(fail)?;
        Ok(key)
    }

    /// Reads the key in the file `path`, which nobody else may read.
    ///
    /// # Errors
    /// When it is not there, not safe, or not such a key.
    pub fn read(path: &Path) -> Result<Self, Error> {
        if path
            .symlink_metadata()
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        {
            return Err(Error::NoHostKey {
                path: path.to_owned(),
            });
        }
        let fail = |kind, why: String| Error::HostKey {
            what: "read",
            path: path.to_owned(),
            kind,
            why,
        };
        let text = SecretFile::new(path).read().map_err(kms::Error::from);
        let text = text.map_err(|error| fail(error.kind(), error.to_string()))?;
        let seed =
            of_pem(Algorithm::Ed25519, &text).map_err(|error| fail(Kind::Io, error.to_string()))?;
        seed.and_then(HostKey::of).ok_or_else(|| {
            fail(
                Kind::Usage,
                "it is not an Ed25519 private key in PEM".into(),
            )
        })
    }

    /// The half that anybody may have.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs `message` (RFC 8032, Ed25519).
    ///
    /// # Errors
    /// Never, unless this key is none.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&self.seed);
        let pair = pair.map_err(|_| Error::Internal)?;
        Ok(pair.sign(message).as_ref().to_vec())
    }
}

impl PublicKey {
    /// Whether `signature` is that of `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, &self.0);
        key.verify(message, signature).is_ok()
    }

    /// As it stands in a file, for OpenSSL too.
    pub fn pem(&self) -> String {
        let der = [&PUBLIC_HEAD[..], &self.0].concat();
        let [begin, end] = PUBLIC;
        format!("{begin}\n{}\n{end}\n", BASE64.encode(der))
    }

    /// The key in a file, or in the argument itself: PEM or hexadecimal digits.
    ///
    /// # Errors
    /// When it is none.
    pub fn named(text: &str) -> Result<Self, Error> {
        if let Ok(key) = text.parse() {
            return Ok(key);
        }
        let path = Path::new(text);
        let content = std::fs::read_to_string(path).map_err(|source| Error::read(path, source))?;
        content
            .parse()
            .map_err(|_| Error::NoPublicKey(text.to_owned()))
    }
}

impl FromStr for PublicKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        let bad = || Error::NoPublicKey(text.chars().take(100).collect());
        let [begin, end] = PUBLIC;
        if let Some(body) = text.strip_prefix(begin) {
            let body = body.strip_suffix(end).ok_or_else(bad)?;
            let joined: String = body.split_whitespace().collect();
            let der = BASE64.decode(joined).map_err(|_| bad())?;
            let key = der.strip_prefix(&PUBLIC_HEAD).ok_or_else(bad)?;
            return Ok(PublicKey(key.try_into().map_err(|_| bad())?));
        }
        if text.len() != 2 * KEY_BYTES || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut key = [0; KEY_BYTES];
        for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
        }
        Ok(PublicKey(key))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;

    fn openssl(arguments: &[&str]) -> Vec<u8> {
        let output = Command::new("openssl").args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output.stdout
    }

    /// RFC 8032, section 7.1, test 1.
    #[test]
    fn signatures_are_those_of_the_standard() {
        let digits = |text: &str| hex::decode(text).unwrap();
        let seed = digits("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let key = HostKey::of(Secret::copy_of(&seed).unwrap()).unwrap();
        assert_eq!(
            key.public().to_string(),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
        assert_eq!(
            hex::encode(key.sign(b"").unwrap()),
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        );
    }

    #[test]
    fn openssl_reads_what_we_make_and_we_read_what_it_makes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ours");
        let name = path.to_str().unwrap();
        let key = HostKey::make(&path).unwrap();
        assert_eq!(
            path.metadata().unwrap().permissions().mode() & 0o7777,
            0o600
        );
        let theirs = openssl(&["pkey", "-in", name, "-pubout"]);
        assert_eq!(String::from_utf8(theirs).unwrap(), key.public().pem());
        assert_eq!(HostKey::read(&path).unwrap().public(), key.public());
        assert!(matches!(
            HostKey::make(&path).unwrap_err(),
            Error::HostKey {
                kind: Kind::Refused,
                ..
            }
        ));

        let path = directory.path().join("theirs");
        let name = path.to_str().unwrap();
        openssl(&["genpkey", "-algorithm", "ed25519", "-out", name]);
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let pem = String::from_utf8(openssl(&["pkey", "-in", name, "-pubout"])).unwrap();
        let read = HostKey::read(&path).unwrap();
        assert_eq!(read.public(), pem.parse().unwrap());
        assert_eq!(read.public(), read.public().to_string().parse().unwrap());
    }

    #[test]
    fn what_is_no_safe_host_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        assert!(matches!(
            HostKey::read(&path).unwrap_err(),
            Error::NoHostKey { .. }
        ));
        HostKey::make(&path).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(HostKey::read(&path).unwrap_err().kind(), Kind::Permission);
        durable::replace(&path, b"hush hush", 0o600).unwrap();
        let error = HostKey::read(&path).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(!error.to_string().contains("hush"), "{error}");
        // A key, and not for signatures.
        openssl(&[
            "genpkey",
            "-algorithm",
            "x25519",
            "-out",
            path.to_str().unwrap(),
        ]);
        assert_eq!(HostKey::read(&path).unwrap_err().kind(), Kind::Usage);
        for bad in ["", "00", &"0g".repeat(32), PUBLIC[0]] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
    }
}
