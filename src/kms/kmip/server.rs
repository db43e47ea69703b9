//! One KMIP server: what a provider does, in terms of its operations.

use std::fmt;
use std::io;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::client::{Client, Fault, Session};
use super::find::Key;
use super::lifecycle::{self, Purpose};
use super::numbers::{self, MAY_DECRYPT, MAY_ENCRYPT, Operation};
use super::protocol::{self, Attribute, Attributes, Refusal, Version};
use super::{Mode, Offer, WrappingKey, failure, keywrap};
use crate::error::Kind;
use crate::kms::cluster::Failed;
use crate::kms::envelope::{self, ALG, Sealed, Unopened, cannot_seal, named};
use crate::kms::{Class, Error, KeyRef, KeyVersion, Wrapped};
use crate::secret::Secret;

/// The length of the keys that are used, in bytes.
const KEY_BYTES: usize = 32;

/// One server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) client: Client,
    pub(super) mode: Mode,
    pub(super) wrapping_key: Option<WrappingKey>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the KMIP server {}", self.client.endpoint)
    }
}

impl Server {
    /// Makes an AES-256 key with the name `name` and activates it: its unique identifier.
    pub(super) async fn create_key(&self, name: &str) -> Result<String, Failed> {
        let mut session = self.client.session().await?;
        let wanted = [
            Attribute::Aes,
            Attribute::Bits(256),
            Attribute::Usage(MAY_ENCRYPT | MAY_DECRYPT),
            Attribute::Name(name),
        ];
        let made = session.ask(
            Operation::Create,
            |version| protocol::create(version, &wanted),
            protocol::identifier,
        );
        let id = self.told(made.await, Operation::Create, name)?;
        let activated = session.ask(
            Operation::Activate,
            |_| protocol::activate(&id),
            protocol::identifier,
        );
        self.told(activated.await, Operation::Activate, &id)?;
        session.keep();
        Ok(id)
    }

    /// The unique identifiers of the keys that have all of `wanted`.
    pub(super) async fn locate(&self, wanted: &[Attribute<'_>]) -> Result<Vec<String>, Failed> {
        let mut session = self.client.session().await?;
        let located = self.locate_in(&mut session, wanted).await?;
        session.keep();
        Ok(located)
    }

    /// What the server is and offers.
    pub(super) async fn offer(&self) -> Result<Offer, Failed> {
        let mut session = self.client.session().await?;
        let version = session.version();
        let queried = session.ask(
            Operation::Query,
            |_| protocol::query(),
            |payload| Ok(protocol::queried(version, payload)),
        );
        let offer = self.told(queried.await, Operation::Query, "")?;
        session.keep();
        Ok(offer)
    }

    pub(super) async fn wrap(
        &self,
        key: &KeyRef,
        plaintext: &Secret,
        aad: &[u8],
    ) -> Result<Wrapped, Failed> {
        if plaintext.len() > envelope::PLAINTEXT_MAX {
            return Err(Failed::Everywhere(envelope::too_long()));
        }
        let mut session = self.client.session().await?;
        let Key { id, told } = self.resolve(&mut session, key).await?;
        self.check(&id, &told, Purpose::Wrap)?;
        let key_id = key.id.clone().unwrap_or_else(|| id.clone());
        let header = named::header(&key_id, &id).ok_or_else(|| {
            failure::malformed(
                &self.client.endpoint,
                "the name or the unique identifier of the key is empty or very long",
            )
        })?;
        let bytes = self
            .seal(&mut session, &id, &header, plaintext, aad)
            .await?;
        session.keep();
        Ok(Wrapped {
            key_id,
            version: id,
            alg: ALG.into(),
            bytes,
        })
    }

    pub(super) async fn unwrap(
        &self,
        envelope: &named::Envelope<'_>,
        aad: &[u8],
    ) -> Result<Secret, Failed> {
        let mut session = self.client.session().await?;
        let id = envelope.version;
        let told = self.attributes(&mut session, id).await?;
        self.check(id, &told, Purpose::Unwrap)?;
        let opened = self.open(&mut session, id, &envelope.sealed, aad).await?;
        session.keep();
        Ok(opened)
    }

    pub(super) async fn current_version(&self, key: &KeyRef) -> Result<KeyVersion, Failed> {
        let mut session = self.client.session().await?;
        let Key { id, told } = self.resolve(&mut session, key).await?;
        session.keep();
        Ok(KeyVersion {
            id,
            enabled: lifecycle::enabled(&told, now()),
            expires: lifecycle::expires(&told),
        })
    }

    /// What came of a request about the key `id`.
    pub(super) fn told<T>(
        &self,
        done: Result<T, Fault>,
        operation: Operation,
        id: &str,
    ) -> Result<T, Failed> {
        done.map_err(|fault| match fault {
            Fault::Refused(refusal) => {
                failure::error(self.client.asked(operation, id), refusal).into()
            }
            Fault::Broken(failed) => failed,
        })
    }

    /// The same for an operation that the key's state may not allow. Servers
    /// do not say so: then the state is looked up again.
    async fn used<T>(
        &self,
        session: &mut Session<'_>,
        done: Result<T, Fault>,
        operation: Operation,
        id: &str,
        purpose: Purpose,
    ) -> Result<T, Failed> {
        if let Err(Fault::Refused(refusal)) = &done
            && failure::may_be_the_state(refusal)
        {
            let told = self.attributes(session, id).await?;
            self.check(id, &told, purpose)?;
        }
        self.told(done, operation, id)
    }

    fn check(&self, id: &str, told: &Attributes, purpose: Purpose) -> Result<(), Error> {
        let key = format!("key {id:?} on the KMIP server {}", self.client.endpoint);
        lifecycle::check(&key, told, purpose, now())
    }

    pub(super) async fn attributes(
        &self,
        session: &mut Session<'_>,
        id: &str,
    ) -> Result<Attributes, Failed> {
        let version = session.version();
        let asked = session.ask(
            Operation::GetAttributes,
            |version| protocol::get_attributes(version, id),
            |payload| protocol::got_attributes(version, payload),
        );
        self.told(asked.await, Operation::GetAttributes, id)
    }

    /// The key itself, for one call.
    async fn get(
        &self,
        session: &mut Session<'_>,
        id: &str,
        purpose: Purpose,
    ) -> Result<Secret, Failed> {
        let wrapping = self.wrapping_key.as_ref();
        let got = session
            .ask(
                Operation::Get,
                |_| protocol::get(id, wrapping.map(|key| key.id.as_str())),
                |payload| Ok(Secret::copy_of(protocol::got(payload, wrapping.is_some())?)),
            )
            .await;
        let got = self.used(session, got, Operation::Get, id, purpose).await?;
        let got = got.map_err(|error| no_memory(&error))?;
        let key = match wrapping {
            None => got,
            Some(wrapping) => keywrap::unwrap(&read_wrapping_key(wrapping)?, &got).ok_or_else(|| {
                Error::new(
                    Class::Protocol,
                    format!(
                        "{} is not key {:?} of the KMIP server {}, or that did not wrap key {id:?} with it",
                        wrapping.file, wrapping.id, self.client.endpoint
                    ),
                    "put the wrapping key into the file, and its unique identifier into wrapping_key",
                )
            })?,
        };
        if key.len() != KEY_BYTES {
            return Err(failure::malformed(
                &self.client.endpoint,
                &format!("the key in it has {} bytes, and not {KEY_BYTES}", key.len()),
            )
            .into());
        }
        Ok(key)
    }

    /// What the server needs to speak for it to encrypt with associated data.
    fn needs_aead(&self, session: &Session<'_>) -> Result<(), Error> {
        let version = session.version();
        if version >= Version::V1_4 {
            return Ok(());
        }
        Err(Error::new(
            Class::Protocol,
            format!(
                "the KMIP server {} speaks KMIP {version}, in which it cannot encrypt with associated data",
                self.client.endpoint
            ),
            "use mode = \"get\", or switch KMIP 1.4 or 2.0 on at the server",
        ))
    }

    async fn seal(
        &self,
        session: &mut Session<'_>,
        id: &str,
        header: &[u8],
        plaintext: &Secret,
        aad: &[u8],
    ) -> Result<Vec<u8>, Failed> {
        if self.mode == Mode::Get {
            let key = self.get(session, id, Purpose::Wrap).await?;
            return envelope::seal(header, &key, plaintext, aad)
                .map_err(|error| Failed::Everywhere(cannot_seal(&error)));
        }
        self.needs_aead(session)?;
        let nonce = envelope::nonce().map_err(|error| no_memory(&error))?;
        let associated = envelope::associated(header, aad);
        let encrypted = session
            .ask(
                Operation::Encrypt,
                |_| protocol::encrypt(id, &nonce, &associated, plaintext),
                |payload| {
                    let (data, tag) = protocol::encrypted(payload, &nonce, plaintext.len())?;
                    Ok([header, &nonce, data, tag].concat())
                },
            )
            .await;
        self.used(session, encrypted, Operation::Encrypt, id, Purpose::Wrap)
            .await
    }

    async fn open(
        &self,
        session: &mut Session<'_>,
        id: &str,
        sealed: &Sealed<'_>,
        aad: &[u8],
    ) -> Result<Secret, Failed> {
        if self.mode == Mode::Get {
            let key = self.get(session, id, Purpose::Unwrap).await?;
            return sealed.open(&key, aad).map_err(|error| match error {
                Unopened::Unauthentic => failure::error(
                    self.client.asked(Operation::Decrypt, id),
                    Refusal::Failed {
                        reason: numbers::reason::CRYPTOGRAPHIC_FAILURE,
                        message: String::new(),
                    },
                )
                .into(),
                Unopened::Memory(error) => no_memory(&error),
            });
        }
        self.needs_aead(session)?;
        let associated = sealed.associated(aad);
        let (nonce, data, tag) = (sealed.nonce, sealed.ciphertext, sealed.tag);
        let decrypted = session
            .ask(
                Operation::Decrypt,
                |_| protocol::decrypt(id, nonce, &associated, data, tag),
                |payload| Ok(Secret::copy_of(protocol::decrypted(payload, data.len())?)),
            )
            .await;
        self.used(session, decrypted, Operation::Decrypt, id, Purpose::Unwrap)
            .await?
            .map_err(|error| no_memory(&error))
    }
}

/// No server could change that this host has no memory for the key.
fn no_memory(error: &io::Error) -> Failed {
    Failed::Everywhere(envelope::no_memory(error))
}

/// The key in the file of `wrapping`.
fn read_wrapping_key(wrapping: &WrappingKey) -> Result<Secret, Failed> {
    let text = wrapping
        .file
        .read()
        .map_err(|error| Failed::Everywhere(error.into()))?;
    // The decoder wants room for the padding, too.
    let mut room = Secret::zeroed(KEY_BYTES + 1).map_err(|error| no_memory(&error))?;
    match BASE64.decode_slice(&text[..], &mut room) {
        Ok(KEY_BYTES) => Secret::copy_of(&room[..KEY_BYTES]).map_err(|error| no_memory(&error)),
        _ => Err(Failed::Everywhere(
            Error::new(
                Class::Unreachable,
                format!("{} does not hold 32 bytes in base64", wrapping.file),
                "put the wrapping key into it, in base64",
            )
            .with_kind(Kind::Usage),
        )),
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or(0)
}
