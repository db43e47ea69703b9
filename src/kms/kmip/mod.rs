//! KMIP 1.1 to 2.0 over mutual TLS: the protocol of hardware and enterprise
//! key managers.
//!
//! - [`ttlv`]: the encoding; [`numbers`]: its vocabulary,
//! - [`protocol`]: requests and answers; `client`: the connection,
//! - `server`: what a provider does, on one server; `find`: with which key,
//! - `lifecycle`: whether a key may be used; `failure`: refusals in our terms,
//! - `keywrap`: the key that a server gives out under another one.
//!
//! There are two styles, and both seal the same envelope with the same key:
//! the server encrypts ([`Mode::Server`]), or it gives the key out for one
//! call ([`Mode::Get`]). What was wrapped in one opens in the other.
//!
//! Keys of KMIP have no versions. Here a *key* is a name, which several keys
//! may have or which moves to another key when it is replaced, and its
//! *versions* are the keys themselves, by unique identifier.

mod client;
mod endpoint;
mod failure;
mod find;
mod keywrap;
mod lifecycle;
pub mod numbers;
pub mod protocol;
mod server;
pub mod ttlv;

pub use endpoint::{Endpoint, PORT};
pub use protocol::Offer;

use std::sync::Arc;

use async_trait::async_trait;

use self::client::Client;
use self::protocol::{Attribute, Version};
use self::server::Server;
use super::cluster::{Cluster, Failed, Timing};
use super::credential::SecretFile;
use super::envelope::{ALG, NONCE_BYTES, TAG_BYTES, check_beside, named};
use super::tls::{self, Tls};
use super::{Class, Error, KeyRef, KeyVersion, Provider, Wrapped};
use crate::secret::Secret;

/// What the id of a key begins with that is called by its name.
const NAME: &str = "name:";

/// The longest name or unique identifier, in bytes.
const CALLED_MAX: usize = 512;

/// Who encrypts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The server, and the key never leaves it (KMIP 1.4 or later).
    #[default]
    Server,
    /// This host, with the key that the server gives out for each call.
    Get,
}

/// A key under which the server wraps those that it gives out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappingKey {
    /// Its unique identifier on the server.
    pub id: String,
    /// The key itself: 32 bytes in base64.
    pub file: SecretFile,
}

/// What is configured of one or more servers that share their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where they listen, the one to ask first at the beginning.
    pub endpoints: Vec<Endpoint>,
    /// Authorities and the client certificate, which KMIP needs.
    pub tls: tls::Settings,
    /// Who encrypts.
    pub mode: Mode,
    /// How keys are given out in [`Mode::Get`]; in clear (within TLS) if `None`.
    pub wrapping_key: Option<WrappingKey>,
    /// How long to wait for a server, and for all of them.
    pub timing: Timing,
    /// The version of the protocol; `None` is the highest that both sides speak.
    pub version: Option<Version>,
}

/// How the key with the name `name` is called in [`KeyRef::id`].
///
/// # Errors
/// When a key cannot have such a name.
pub fn by_name(name: &str) -> Result<String, String> {
    bounded(name)?;
    Ok(format!("{NAME}{name}"))
}

/// How the key with the unique identifier `id` is called in [`KeyRef::id`].
///
/// # Errors
/// When a key cannot have such an identifier.
pub fn by_id(id: &str) -> Result<String, String> {
    bounded(id)?;
    if id.starts_with(NAME) {
        return Err(format!("{id:?} could be mistaken for a name: use key_name"));
    }
    Ok(id.into())
}

fn bounded(text: &str) -> Result<(), String> {
    match text.len() {
        1..=CALLED_MAX => Ok(()),
        0 => Err("it is empty: name a key".into()),
        _ => Err(format!("it is longer than {CALLED_MAX} bytes")),
    }
}

/// What no key opens, as if the key `id` had wrapped it, called by `key`. For
/// diagnosis: whoever may not unwrap is told so all the same, and who may gets
/// [`Class::BadKey`]. `None` where no key can be called so.
pub fn unopenable(key: &str, id: &str) -> Option<Wrapped> {
    let mut bytes = named::header(key, id)?;
    bytes.extend_from_slice(&[0; NONCE_BYTES + 64 + TAG_BYTES]);
    Some(Wrapped {
        key_id: key.into(),
        version: id.into(),
        alg: ALG.into(),
        bytes,
    })
}

/// The keys on KMIP servers.
#[derive(Debug)]
pub struct KmipProvider {
    servers: Cluster<Server>,
    timing: Timing,
}

impl KmipProvider {
    /// The provider's name.
    pub const NAME: &'static str = "kmip";

    /// The keys on the servers of `settings`. Nothing is read or connected yet.
    pub fn new(settings: Settings) -> Self {
        let tls = Arc::new(Tls::new(settings.tls));
        let servers = settings.endpoints.into_iter().map(|endpoint| Server {
            client: Client::new(endpoint, tls.clone(), settings.version),
            mode: settings.mode,
            wrapping_key: settings.wrapping_key.clone(),
        });
        KmipProvider {
            servers: Cluster::new(servers, settings.timing),
            timing: settings.timing,
        }
    }

    /// Makes a new AES-256 key with the name `name`, activates it, and returns
    /// its unique identifier. Only the first server is asked: a second try
    /// could make a second key.
    ///
    /// # Errors
    /// As the server answers. A key that was made and could not be activated
    /// stays, and is not used.
    pub async fn create_key(&self, name: &str) -> Result<String, Error> {
        let Some(server) = self.servers.endpoints().next() else {
            return Err(Error::new(
                Class::Unreachable,
                "no KMIP server is configured",
                "add one to endpoints",
            ));
        };
        let created = tokio::time::timeout(self.timing.deadline, server.create_key(name));
        match created.await {
            Ok(Ok(id)) => Ok(id),
            Ok(Err(Failed::Here(error) | Failed::Everywhere(error))) => Err(error),
            Err(_) => Err(Error::new(
                Class::Unreachable,
                format!("{server} did not answer within {:?}", self.timing.deadline),
                "see whether it made the key before you try again",
            )),
        }
    }

    /// The unique identifiers of the keys that have all of `wanted`.
    ///
    /// # Errors
    /// As the servers answer, or when there are more than [`protocol::LOCATE_MAX`].
    pub async fn locate(&self, wanted: &[Attribute<'_>]) -> Result<Vec<String>, Error> {
        self.servers.call(|server| server.locate(wanted)).await
    }

    /// What the first server that answers is and offers.
    ///
    /// # Errors
    /// As the servers answer.
    pub async fn offer(&self) -> Result<Offer, Error> {
        self.servers.call(Server::offer).await
    }
}

#[async_trait]
impl Provider for KmipProvider {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    async fn wrap(&self, key: &KeyRef, plaintext: &Secret, aad: &[u8]) -> Result<Wrapped, Error> {
        let wrap = |server| Server::wrap(server, key, plaintext, aad);
        self.servers.call(wrap).await
    }

    async fn unwrap(&self, wrapped: &Wrapped, aad: &[u8]) -> Result<Secret, Error> {
        let envelope = named::parse(&wrapped.bytes)?;
        check_beside(&[
            ("key", &wrapped.key_id, envelope.key_id),
            ("key version", &wrapped.version, envelope.version),
            ("algorithm", &wrapped.alg, ALG),
        ])?;
        let unwrap = |server| Server::unwrap(server, &envelope, aad);
        self.servers.call(unwrap).await
    }

    async fn current_version(&self, key: &KeyRef) -> Result<KeyVersion, Error> {
        let current = |server| Server::current_version(server, key);
        self.servers.call(current).await
    }
}
