//! Keys, their versions, and the wrapped bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::answer;
use super::client::Client;
use super::settings::{self, KeyName};
use crate::error::Kind;
use crate::kms::cluster::Failed;
use crate::kms::{Class, Denied, Error, Wrapped};
use crate::secret::Secret;

/// The types of transit keys that authenticate what they encrypt, and more
/// data beside it.
pub(super) const ALGORITHMS: [&str; 4] = [
    "aes256-gcm96",
    "aes128-gcm96",
    "chacha20-poly1305",
    "xchacha20-poly1305",
];

/// Far more than a wrapped key is.
const PLAINTEXT_MAX: usize = 1024;

/// What the service tells of a key.
#[derive(Debug, Deserialize)]
pub(super) struct Key {
    #[serde(rename = "type")]
    kind: String,
    latest_version: u32,
    #[serde(default)]
    min_available_version: u32,
    #[serde(default)]
    min_decryption_version: u32,
    #[serde(default)]
    min_encryption_version: u32,
    #[serde(default)]
    soft_deleted: bool,
    #[serde(default)]
    derived: bool,
}

#[derive(Deserialize)]
struct KeyAnswer {
    data: Key,
}

impl Key {
    pub(super) async fn read(client: &Client, name: &KeyName) -> Result<Self, Failed> {
        let operation = ["keys", name.as_str()];
        let (question, reply) = client.transit(operation, None::<&()>).await?;
        Ok(answer::parse::<KeyAnswer>(&question, &reply)?.data)
    }

    /// The version that is meant, whatever its state.
    pub(super) fn version(&self, name: &KeyName, pinned: Option<&str>) -> Result<u32, Error> {
        let Some(text) = pinned else {
            return Ok(self.latest_version);
        };
        match settings::version(text) {
            Ok(version) if version <= self.latest_version => Ok(version),
            _ => Err(Error::new(
                Class::NotFound,
                format!(
                    "transit key {name} has no version {text}: its latest is {}",
                    self.latest_version
                ),
                "name a version that it has in the key set, or \"latest\"",
            )),
        }
    }

    /// Whether `version` may be used to wrap, and what that wraps be unwrapped.
    pub(super) fn check_usable(&self, name: &KeyName, version: u32) -> Result<(), Error> {
        self.check_not_deleted(name, version)?;
        let least = self.min_decryption_version.max(self.min_encryption_version);
        if version < least {
            return Err(Error::new(
                Class::Denied(Denied::Disabled),
                format!(
                    "version {version} of transit key {name} is below its minimum, which is {least}"
                ),
                "use a newer version, or have min_encryption_version and min_decryption_version lowered",
            ));
        }
        Ok(())
    }

    pub(super) fn check_not_deleted(&self, name: &KeyName, version: u32) -> Result<(), Error> {
        let deleted = Class::Denied(Denied::Deleted);
        if self.soft_deleted {
            return Err(Error::new(
                deleted,
                format!("transit key {name} has been deleted, and can be restored still"),
                format!("have it restored: bao write -f MOUNT/keys/{name}/soft-delete-restore"),
            ));
        }
        if version < self.min_available_version {
            return Err(Error::new(
                deleted,
                format!("version {version} of transit key {name} has been trimmed away"),
                "it is gone, unless the service is restored from a backup",
            ));
        }
        Ok(())
    }

    /// The algorithm, if it is one that binds what it encrypts.
    pub(super) fn algorithm(&self, name: &KeyName) -> Result<&'static str, Error> {
        let unfit = |why: String, next: &str| Err(Error::new(Class::Protocol, why, next));
        if self.derived {
            return unfit(
                format!("transit key {name} is a derived one, which sealblk does not use"),
                "make a key with derived=false",
            );
        }
        match ALGORITHMS.into_iter().find(|one| *one == self.kind) {
            Some(algorithm) => Ok(algorithm),
            None => unfit(
                format!(
                    "transit key {name} is of type {:?}, which does not bind a wrapped key to its volume",
                    self.kind
                ),
                "make a key of type aes256-gcm96",
            ),
        }
    }
}

/// The envelope: a byte 1, then the text that the service gave:
/// `vault:vVERSION:BASE64`. So a person can have it opened by hand.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ciphertext {
    text: String,
    version: u32,
}

pub(super) const ENVELOPE: u8 = 1;

impl Ciphertext {
    /// The text, if it is in the one form that the service writes.
    fn parse(text: &str) -> Option<Self> {
        let (version, bytes) = text.strip_prefix("vault:v")?.split_once(':')?;
        let version = settings::version(version).ok()?;
        // Strict: no other text decodes to the same bytes.
        BASE64
            .decode(bytes)
            .ok()
            .filter(|bytes| !bytes.is_empty())?;
        Some(Ciphertext {
            text: text.into(),
            version,
        })
    }

    pub(super) fn version(&self) -> u32 {
        self.version
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        [&[ENVELOPE], self.text.as_bytes()].concat()
    }

    /// What is in a wrap, if all that stands in it goes together.
    pub(super) fn of(wrapped: &Wrapped) -> Result<(KeyName, Self), Error> {
        let text = match wrapped.bytes.split_first() {
            Some((&ENVELOPE, text)) => text,
            Some((&newer @ 2..16, _)) => {
                return Err(Error::new(
                    Class::Protocol,
                    format!("the wrapped bytes have version {newer}, made by a newer sealblk"),
                    "upgrade sealblk on this host",
                ));
            }
            _ => return Err(damaged("they do not begin as they should".into())),
        };
        let ciphertext = std::str::from_utf8(text)
            .ok()
            .and_then(Self::parse)
            .ok_or_else(|| damaged("they hold no ciphertext of a transit engine".into()))?;
        if wrapped.version != ciphertext.version.to_string() {
            return Err(damaged(format!(
                "they name version {}, and what stands beside them says {:?}",
                ciphertext.version, wrapped.version
            )));
        }
        if !ALGORITHMS.contains(&wrapped.alg.as_str()) {
            return Err(damaged(format!(
                "their algorithm is {:?}, which is none of this provider",
                wrapped.alg
            )));
        }
        Ok((wrapped.key_id.parse().map_err(damaged)?, ciphertext))
    }
}

fn damaged(why: String) -> Error {
    Error::new(
        Class::BadKey,
        format!("the wrapped bytes were not made by this provider, or are damaged: {why}"),
        "restore the volume's header from a backup, and find out who changed it",
    )
    .with_kind(Kind::Corrupt)
}

/// Wraps with exactly this version.
pub(super) async fn encrypt(
    client: &Client,
    name: &KeyName,
    version: u32,
    plaintext: &Secret,
    aad: &[u8],
) -> Result<Ciphertext, Failed> {
    #[derive(Serialize)]
    struct Encrypt<'e> {
        plaintext: &'e str,
        associated_data: &'e str,
        key_version: u32,
    }
    #[derive(Deserialize)]
    struct Encrypted {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        ciphertext: String,
    }
    if plaintext.len() > PLAINTEXT_MAX {
        return Err(Failed::Everywhere(
            Error::new(
                Class::Protocol,
                format!("more than {PLAINTEXT_MAX} bytes cannot be wrapped"),
                "this is a defect of sealblk: report it",
            )
            .with_kind(Kind::Internal),
        ));
    }
    let encoded = Zeroizing::new(BASE64.encode(&**plaintext));
    let body = Encrypt {
        plaintext: &encoded,
        associated_data: &BASE64.encode(aad),
        key_version: version,
    };
    let operation = ["encrypt", name.as_str()];
    let (question, reply) = client.transit(operation, Some(&body)).await?;
    let answer: Encrypted =
        answer::parse(&question, &reply).map_err(|failed| failed.without_echo(&encoded))?;
    Ciphertext::parse(&answer.data.ciphertext)
        .filter(|ciphertext| ciphertext.version == version)
        .ok_or_else(|| {
            Failed::Here(Error::new(
                Class::Protocol,
                format!(
                    "{client} answers {} with no ciphertext of version {version}",
                    question.path
                ),
                "check that the mount is that of a transit engine",
            ))
        })
}

/// Opens it under the version that it names.
pub(super) async fn decrypt(
    client: &Client,
    name: &KeyName,
    ciphertext: &Ciphertext,
    aad: &[u8],
) -> Result<Secret, Failed> {
    #[derive(Serialize)]
    struct Decrypt<'d> {
        ciphertext: &'d str,
        associated_data: &'d str,
    }
    #[derive(Deserialize)]
    struct Decrypted<'d> {
        #[serde(borrow)]
        data: Data<'d>,
    }
    #[derive(Deserialize)]
    struct Data<'d> {
        // Borrowed, so that there is no copy: base64 has nothing to unescape.
        plaintext: &'d str,
    }
    let body = Decrypt {
        ciphertext: &ciphertext.text,
        associated_data: &BASE64.encode(aad),
    };
    let operation = ["decrypt", name.as_str()];
    let (question, reply) = client.transit(operation, Some(&body)).await?;
    Client::check(&question, &reply)?;
    let strange = || {
        Failed::Here(Error::new(
            Class::Protocol,
            format!("{client} answers {} with no plaintext", question.path),
            "check that the mount is that of a transit engine",
        ))
    };
    let answer: Decrypted<'_> = serde_json::from_slice(&reply.body).map_err(|_| strange())?;
    let encoded = answer.data.plaintext.as_bytes();
    let room = base64::decoded_len_estimate(encoded.len());
    if room > PLAINTEXT_MAX + 3 {
        return Err(strange());
    }
    let no_memory = |error: std::io::Error| {
        Failed::Everywhere(
            Error::new(
                Class::Unreachable,
                format!("no locked memory for the key: {error}"),
                "raise the limit of locked memory (`ulimit -l`, or LimitMEMLOCK= in a systemd unit)",
            )
            .with_kind(Kind::Io),
        )
    };
    let mut decoded = Secret::zeroed(room).map_err(no_memory)?;
    let length = BASE64
        .decode_slice(encoded, &mut decoded)
        .map_err(|_| strange())?;
    Secret::copy_of(&decoded[..length]).map_err(no_memory)
}
