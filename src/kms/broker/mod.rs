//! The provider `broker`: another sealblk asks the key service for us.
//!
//! This room has both ends' words: what is said ([`protocol`]), how it is
//! sealed from one end to the other ([`seal`]), and the key files of both
//! ([`keyfile`]). It knows nothing of disks, and nothing of policy: who may
//! have what is decided by the broker alone. `docs/broker-protocol.md` has
//! the protocol byte for byte.
//!
//! - `settings`: what is configured, and the names that may be,
//! - `challenges`: what a broker gave us for calls to come,
//! - `client`: one broker: challenges, sealed calls,
//! - `refusal`: what is not a sealed answer, none of which is a denial.

mod challenges;
mod client;
pub mod keyfile;
pub mod protocol;
mod refusal;
pub mod seal;
mod settings;
mod text;

pub use settings::{NAME_MAX, PlainName, Settings};

use std::sync::Arc;

use async_trait::async_trait;

use self::client::Client;
use self::protocol::{Health, Operation, Outcome};
use super::cluster::Cluster;
use super::http::Http;
use super::{Class, Error, KeyRef, KeyVersion, Provider, Wrapped, envelope};
use crate::secret::Secret;
use crate::timestamp::Timestamp;

/// The key sets of brokers, as one host may use them.
#[derive(Debug)]
pub struct BrokerProvider {
    cluster: Cluster<Client>,
}

/// The most that a broker's wrapped bytes have.
pub const WRAPPED_MAX: usize = 16 << 10;

/// The most that the name of a version or an algorithm has.
const LABEL_MAX: usize = 1024;

impl BrokerProvider {
    /// The provider's name.
    pub const NAME: &'static str = "broker";

    /// Nothing is read or connected to yet.
    pub fn new(settings: Settings) -> Self {
        let http = Arc::new(Http::new(settings.tls.clone()));
        let timing = settings.timing;
        let settings = Arc::new(settings);
        let clients: Vec<Client> = settings
            .endpoints
            .iter()
            .map(|endpoint| Client::new(endpoint.clone(), http.clone(), settings.clone()))
            .collect();
        BrokerProvider {
            cluster: Cluster::new(clients, timing),
        }
    }

    /// Has a broker do `operation`, and takes from its answer what `take` does.
    async fn call<T>(
        &self,
        key_set: &str,
        operation: impl Fn() -> Result<Operation, Error>,
        take: impl Fn(Outcome) -> Option<T>,
    ) -> Result<T, Error> {
        self.cluster
            .call(
                async |client: &Client| match client.call(key_set, &operation).await? {
                    Outcome::Error(failure) => Err(client.told(key_set, &failure)),
                    outcome => take(outcome).ok_or_else(|| client.beside_the_point()),
                },
            )
            .await
    }

    /// What the first broker that answers tells of itself, and what time it is
    /// there.
    ///
    /// # Errors
    /// When none answers, or with something else.
    pub async fn health(&self) -> Result<(Health, Option<Timestamp>), Error> {
        self.cluster
            .call(async |client: &Client| client.health().await)
            .await
    }

    /// Whether a broker knows us: both by our certificate and by our key. It
    /// does if it answers a call at all, be it with a denial.
    ///
    /// # Errors
    /// When none does.
    pub async fn greet(&self, key: &KeyRef) -> Result<(), Error> {
        let key_set = &key_set(key)?;
        let ask = || Ok(Operation::CurrentVersion { version: None });
        self.cluster
            .call(async |client: &Client| client.call(key_set.as_str(), ask).await)
            .await
            .map(drop)
    }
}

/// The key set that is meant.
fn key_set(key: &KeyRef) -> Result<PlainName, Error> {
    let id = key.id.as_deref().unwrap_or_default();
    id.parse().map_err(|why: String| {
        Error::new(
            Class::NotFound,
            why,
            "name a key set of the broker: key_set = \"NAME\"",
        )
    })
}

/// What no key opens, as if `version` of `key` had wrapped it. Whoever may not
/// unwrap is told so all the same; who may gets [`Class::BadKey`].
pub fn unopenable(key: &str, version: &str) -> Wrapped {
    Wrapped {
        key_id: key.into(),
        version: version.into(),
        alg: BrokerProvider::NAME.into(),
        bytes: vec![0; 32],
    }
}

fn no_memory(error: std::io::Error) -> Error {
    envelope::no_memory(&error)
}

#[async_trait]
impl Provider for BrokerProvider {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    async fn wrap(&self, key: &KeyRef, plaintext: &Secret, aad: &[u8]) -> Result<Wrapped, Error> {
        let key_set = key_set(key)?;
        if plaintext.len() > envelope::PLAINTEXT_MAX {
            return Err(envelope::too_long());
        }
        let operation = || {
            Ok(Operation::Wrap {
                version: key.version.clone(),
                aad: aad.to_vec(),
                payload: Secret::copy_of(plaintext).map_err(no_memory)?,
            })
        };
        self.call(key_set.as_str(), operation, |outcome| match outcome {
            Outcome::Wrapped(wrapped) => Some(wrapped),
            _ => None,
        })
        .await
    }

    async fn unwrap(&self, wrapped: &Wrapped, aad: &[u8]) -> Result<Secret, Error> {
        let labels = wrapped.version.len().max(wrapped.alg.len());
        let Ok(key_set) = wrapped.key_id.parse::<PlainName>() else {
            return Err(envelope::damaged(
                "what stands beside the wrapped bytes names no key set of a broker",
            ));
        };
        if wrapped.bytes.len() > WRAPPED_MAX || labels > LABEL_MAX {
            return Err(envelope::damaged(
                "the wrapped bytes were not made by this provider, or are damaged: they are too long",
            ));
        }
        let operation = || {
            Ok(Operation::Unwrap {
                wrapped: wrapped.clone(),
                aad: aad.to_vec(),
            })
        };
        self.call(key_set.as_str(), operation, |outcome| match outcome {
            Outcome::Payload(payload) => Some(payload),
            _ => None,
        })
        .await
    }

    async fn current_version(&self, key: &KeyRef) -> Result<KeyVersion, Error> {
        let key_set = key_set(key)?;
        let operation = || {
            Ok(Operation::CurrentVersion {
                version: key.version.clone(),
            })
        };
        self.call(key_set.as_str(), operation, |outcome| match outcome {
            Outcome::Version(version) => Some(version),
            _ => None,
        })
        .await
    }
}

impl Settings {
    /// The same with no broker but `endpoint`.
    #[must_use]
    pub fn alone(&self, endpoint: &super::http::BaseUrl) -> Self {
        Settings {
            endpoints: vec![endpoint.clone()],
            ..self.clone()
        }
    }
}
