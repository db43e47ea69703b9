//! Keys on a token that is reached through a PKCS#11 library: hardware security
//! modules, smart cards, and software in their place.
//!
//! - [`uri`]: which library, token and key (RFC 7512),
//! - `module`: the library, once in a process; `token`: sessions and the login,
//! - `key`: which object is meant; `lifecycle`: whether it may be used,
//! - `mechanism`: how it wraps; `failure`: what a token says, in our terms.
//!
//! AES-GCM takes associated data, and has the envelope that KMIP has. AES key
//! wrap and RSA-OAEP take none: the binding is inside of what they wrap
//! ([`super::envelope`]'s `bound`).
//!
//! A library may wait for its device as long as it likes. So each call runs
//! beside, and is given up at its deadline; what comes of it later is wiped.

mod failure;
mod key;
mod lifecycle;
mod mechanism;
mod module;
mod token;
pub mod uri;

pub use key::{KeyName, id_of};
pub use mechanism::Choice;
pub use uri::{TokenMatch, Uri};

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use self::key::Key;
use self::lifecycle::Purpose;
use self::mechanism::Mechanism;
use self::module::Module;
use self::token::{Fault, Open, Token};
use super::cluster::{Cluster, Failed, Timing};
use super::credential::SecretFile;
use super::envelope::{self, ALG, bound, check_beside, named};
use super::{Class, Error, KeyRef, KeyVersion, Provider, Wrapped};
use crate::error::Kind;
use crate::secret::Secret;

/// What is configured of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The library.
    pub module: PathBuf,
    /// The token.
    pub token: TokenMatch,
    /// The file with the PIN of its user, if it wants one.
    pub pin: Option<SecretFile>,
    /// How to wrap; by the kind of the key if `None`.
    pub mechanism: Option<Choice>,
    /// How long to wait for the library, and for the token to come.
    pub timing: Timing,
}

/// The keys on one token.
#[derive(Debug)]
pub struct Pkcs11Provider {
    tokens: Cluster<Server>,
}

/// The token, as the one endpoint.
#[derive(Debug)]
struct Server {
    token: Arc<Token>,
    mechanism: Option<Choice>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.token.fmt(f)
    }
}

impl Pkcs11Provider {
    /// The provider's name.
    pub const NAME: &'static str = "pkcs11";

    /// The keys on the token of `settings`. Nothing is loaded or opened yet.
    pub fn new(settings: Settings) -> Self {
        let module = Module::at(&settings.module);
        let server = Server {
            token: Arc::new(Token::new(module, settings.token, settings.pin)),
            mechanism: settings.mechanism,
        };
        Pkcs11Provider {
            tokens: Cluster::new([server], settings.timing),
        }
    }
}

impl Server {
    /// Does `work` where it may wait. What is given up does not end there: it
    /// keeps its permit until the library returns.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Token) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, Failed> {
        let calls = self.token.module().calls.clone();
        let permit = calls.acquire_owned().await;
        let token = self.token.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&token)
        });
        done.await.unwrap_or_else(|error| {
            Err(Error::new(
                Class::Protocol,
                format!("a call to {self} ended in a defect: {error}"),
                "report it",
            )
            .with_kind(Kind::Internal)
            .into())
        })
    }
}

/// An envelope of this provider, taken apart.
enum Envelope<'a> {
    Gcm(named::Envelope<'a>),
    Bound(Mechanism, bound::Envelope<'a>),
}

impl<'a> Envelope<'a> {
    fn of(wrapped: &'a Wrapped) -> Result<Self, Error> {
        let envelope = if bound::is_one(&wrapped.bytes) {
            let envelope = bound::parse(Mechanism::NEWEST, &wrapped.bytes)?;
            let Some(mechanism) = Mechanism::numbered(envelope.algorithm) else {
                return Err(envelope::damaged("the wrapped bytes name no mechanism"));
            };
            Envelope::Bound(mechanism, envelope)
        } else {
            Envelope::Gcm(named::parse(&wrapped.bytes)?)
        };
        let (alg, key_id, version) = match &envelope {
            Envelope::Gcm(envelope) => (ALG, envelope.key_id, envelope.version),
            Envelope::Bound(mechanism, envelope) => {
                (mechanism.alg(), envelope.key_id, envelope.version)
            }
        };
        check_beside(&[
            ("key", &wrapped.key_id, key_id),
            ("key version", &wrapped.version, version),
            ("algorithm", &wrapped.alg, alg),
        ])?;
        Ok(envelope)
    }

    fn mechanism(&self) -> Mechanism {
        match self {
            Envelope::Gcm(_) => Mechanism::Gcm,
            Envelope::Bound(mechanism, _) => *mechanism,
        }
    }
}

/// The `CKA_ID` of a version that is asked for.
fn pinned(key: &KeyRef) -> Result<Option<Vec<u8>>, Error> {
    let id = key.version.as_deref().map(id_of).transpose();
    id.map_err(|why| {
        Error::new(
            Class::NotFound,
            why,
            "write the CKA_ID of one object in the key set, or version = \"latest\"",
        )
    })
}

/// Wraps with a key in one mechanism: the whole envelope.
fn seal(
    session: &Open,
    token: &Token,
    key: &Key,
    names: (&str, &str),
    mechanism: Mechanism,
    plaintext: &Secret,
    aad: &[u8],
) -> Result<Vec<u8>, Fault> {
    let (key_id, version) = names;
    let Some(wrapper) = key.wrapper else {
        return Err(Error::new(
            Class::NotFound,
            format!("{token} has the private key {key_id}, and no public key with its CKA_ID"),
            "put the public key on the token, too",
        )
        .into());
    };
    let long = || {
        Error::new(
            Class::Protocol,
            format!("label and id of {key_id} on {token} are too long"),
            "give the key a shorter label",
        )
    };
    let no_memory = |error| Fault::Told(Failed::Everywhere(envelope::no_memory(&error)));
    if mechanism == Mechanism::Gcm {
        let header = named::header(key_id, version).ok_or_else(long)?;
        let associated = envelope::associated(&header, aad);
        let sealed = mechanism::gcm_encrypt(session, wrapper, &associated, plaintext)?;
        return Ok([header, sealed].concat());
    }
    let header = bound::header(mechanism.number(), key_id, version)
        .map_err(no_memory)?
        .ok_or_else(long)?;
    let inside = bound::bind(&header, plaintext, aad).map_err(no_memory)?;
    let ciphertext = mechanism::wrap(session, mechanism, wrapper, &inside)?;
    Ok([header, ciphertext].concat())
}

/// Opens an envelope with the key that it names.
fn open(
    session: &Open,
    token: &Token,
    key: &Key,
    envelope: &Envelope<'_>,
    aad: &[u8],
) -> Result<Option<Secret>, Fault> {
    match envelope {
        Envelope::Gcm(named::Envelope { sealed, .. }) => {
            let associated = sealed.associated(aad);
            let bytes = [sealed.nonce, sealed.ciphertext, sealed.tag].concat();
            let opened = mechanism::gcm_decrypt(session, key.handle, &associated, &bytes)?;
            Ok((opened.len() == sealed.ciphertext.len()).then_some(opened))
        }
        Envelope::Bound(mechanism, envelope) => {
            let inside = mechanism::unwrap(session, *mechanism, key.handle, envelope.ciphertext)?;
            let opened = envelope.unbind(&inside, aad);
            opened.map_err(|error| {
                tracing::debug!(%token, "no memory for an unwrapped key");
                Fault::Told(Failed::Everywhere(envelope::no_memory(&error)))
            })
        }
    }
}

/// Whether a key does now what it is for: with data of our own.
fn works(session: &Open, token: &Token, key: &Key, mechanism: Mechanism) -> bool {
    let names = ("pkcs11:object=trial", "00");
    let tried = || {
        let Ok(trial) = Secret::random(32) else {
            return Ok(false);
        };
        if !key.told.is_enabled(mechanism.permission()) || key.wrapper.is_none() {
            // It only unwraps. That the token still answers has to do.
            session.get_session_info()?;
            return Ok(true);
        }
        let sealed = seal(session, token, key, names, mechanism, &trial, b"")?;
        let sealed = Wrapped {
            key_id: names.0.into(),
            version: names.1.into(),
            alg: mechanism.alg().into(),
            bytes: sealed,
        };
        let envelope = Envelope::of(&sealed)?;
        Ok::<_, Fault>(open(session, token, key, &envelope, b"")? == Some(trial))
    };
    tried().unwrap_or(false)
}

#[async_trait]
impl Provider for Pkcs11Provider {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    async fn wrap(&self, key: &KeyRef, plaintext: &Secret, aad: &[u8]) -> Result<Wrapped, Error> {
        if plaintext.len() > envelope::PLAINTEXT_MAX {
            return Err(envelope::too_long());
        }
        let name = &key::name(key)?;
        let pinned = &pinned(key)?;
        self.tokens
            .call(async |server: &Server| {
                let (name, pinned, aad) = (name.clone(), pinned.clone(), aad.to_vec());
                let plaintext = Secret::copy_of(plaintext)
                    .map_err(|error| Failed::Everywhere(envelope::no_memory(&error)))?;
                let choice = server.mechanism;
                let work = move |token: &Token| {
                    let key_id = name.to_string();
                    token.with_session(&key_id, |session| {
                        let key = key::resolve(session, token, &name, pinned.as_deref())?;
                        let mut mechanism = Mechanism::chosen(choice, session, token, &key)?;
                        key.check(&key_id, token, mechanism.permission(), Purpose::Wrap)?;
                        let version = key::version(&key.told.id);
                        let seal = |mechanism| {
                            let names = (key_id.as_str(), version.as_str());
                            seal(session, token, &key, names, mechanism, &plaintext, &aad)
                        };
                        let mut sealed = seal(mechanism);
                        if mechanism == Mechanism::OaepSha256
                            && sealed.as_ref().is_err_and(mechanism::wants_sha1)
                        {
                            mechanism = Mechanism::OaepSha1;
                            sealed = seal(mechanism);
                        }
                        let bytes = sealed?;
                        Ok(Wrapped {
                            key_id: key_id.clone(),
                            version,
                            alg: mechanism.alg().into(),
                            bytes,
                        })
                    })
                };
                server.run(work).await
            })
            .await
    }

    async fn unwrap(&self, wrapped: &Wrapped, aad: &[u8]) -> Result<Secret, Error> {
        Envelope::of(wrapped)?;
        let name = &wrapped
            .key_id
            .parse::<KeyName>()
            .map_err(envelope::damaged)?;
        let id = &id_of(&wrapped.version).map_err(envelope::damaged)?;
        self.tokens
            .call(async |server: &Server| {
                let (name, id) = (name.clone(), id.clone());
                let (wrapped, aad) = (wrapped.clone(), aad.to_vec());
                let work = move |token: &Token| {
                    let key_id = name.to_string();
                    token.with_session(&key_id, |session| {
                        let envelope = Envelope::of(&wrapped)?;
                        let mechanism = envelope.mechanism();
                        let key = key::resolve(session, token, &name, Some(&id))?;
                        key.check(&key_id, token, mechanism.permission(), Purpose::Unwrap)?;
                        if key.kind != mechanism.kind() {
                            return Err(mechanism::bad_key(&key_id, token).into());
                        }
                        match open(session, token, &key, &envelope, &aad) {
                            Ok(Some(opened)) => Ok(opened),
                            Ok(None) => Err(mechanism::bad_key(&key_id, token).into()),
                            Err(fault) => Err(mechanism::unopened(fault, &key_id, token, || {
                                works(session, token, &key, mechanism)
                            })),
                        }
                    })
                };
                server.run(work).await
            })
            .await
    }

    async fn current_version(&self, key: &KeyRef) -> Result<KeyVersion, Error> {
        let name = &key::name(key)?;
        let pinned = &pinned(key)?;
        self.tokens
            .call(async |server: &Server| {
                let (name, pinned) = (name.clone(), pinned.clone());
                let choice = server.mechanism;
                let work = move |token: &Token| {
                    token.with_session(&name.to_string(), |session| {
                        let key = key::resolve(session, token, &name, pinned.as_deref())?;
                        let mechanism = Mechanism::chosen(choice, session, token, &key)?;
                        Ok(KeyVersion {
                            id: key::version(&key.told.id),
                            enabled: key.told.is_enabled(mechanism.permission())
                                && key.wrapper.is_some(),
                            expires: key.told.expires(),
                        })
                    })
                };
                server.run(work).await
            })
            .await
    }
}
